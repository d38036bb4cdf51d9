"""Gates: read from text and from a file, judged by the point estimate."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgeverify.core.errors import UsageError
from edgeverify.suites.quality import gate
from edgeverify.suites.quality.gate import Condition, Gates
from edgeverify.suites.quality.statistics import Estimate


def test_conditions_are_read_with_or_without_spaces() -> None:
    assert gate.parse("mean_kl<0.05, top1 >= 0.95,size_mb<=1.5e2,top5>0") == (
        Condition("mean_kl", "<", 0.05),
        Condition("top1", ">=", 0.95),
        Condition("size_mb", "<=", 150.0),
        Condition("top5", ">", 0.0),
    )


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("", "--gate: cannot read ''; expected conditions like mean_kl<0.05,top1>0.95 on "),
        ("mean_kl", "--gate: cannot read 'mean_kl'; "),
        ("mean_kl==1", "--gate: cannot read 'mean_kl==1'; "),
        ("mean_kl=1", "--gate: cannot read 'mean_kl=1'; "),
        ("0.05>mean_kl", "--gate: cannot read '0.05>mean_kl'; "),
        ("mean_kl<0.1,", "--gate: cannot read ''; "),
        ("mean_kl<x", "--gate: 'x' is no number; "),
        ("mean_kl<nan", "--gate: 'nan' is no number; "),
        ("mean-kl<1", "--gate: cannot read 'mean-kl<1'; "),
    ],
)
def test_what_is_no_condition_is_told_in_one_line(text: str, beginning: str) -> None:
    with pytest.raises(UsageError) as error:
        gate.parse(text)
    assert str(error.value).startswith(beginning)
    assert "\n" not in str(error.value)


def test_an_unknown_figure_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        gate.parse("mean_lk<1")
    assert str(error.value) == (
        "--gate: there is no figure 'mean_lk'; expected one of mean_kl, median_kl, p99_kl, "
        "max_kl, top1, top5, perplexity, mean_kl_over_float, log_perplexity_over_float, size_mb, "
        "tokens_per_second; did you mean 'mean_kl' or 'median_kl' or 'max_kl'?"
    )


@pytest.mark.parametrize(
    ("text", "holds", "uncertain"),
    [
        ("mean_kl<0.05", True, True),
        ("mean_kl<0.03", False, True),
        ("mean_kl<0.07", True, False),
        ("mean_kl<0.01", False, False),
        ("mean_kl<0.04", False, True),
        ("mean_kl<=0.04", True, True),
        ("mean_kl>0.04", False, True),
        ("mean_kl>=0.04", True, True),
        ("max_kl<2", True, False),
        ("max_kl<1", False, False),
    ],
)
def test_the_point_estimate_decides_and_the_interval_is_told(
    text: str, holds: bool, uncertain: bool
) -> None:
    figures = {"mean_kl": Estimate(0.04, 0.02, 0.06), "max_kl": Estimate(1.0)}
    (judged,) = gate.judge(gate.parse(text), figures)
    assert (judged.holds, judged.uncertain) == (holds, uncertain)


def test_no_condition_holds_for_what_is_not_a_number() -> None:
    for comparison in gate.OPERATORS:
        condition = Condition("mean_kl", comparison, 1.0)
        assert not gate.judge([condition], {"mean_kl": Estimate(math.nan)})[0].holds


def test_a_judged_condition_is_one_sentence() -> None:
    (judged,) = gate.judge(gate.parse("mean_kl<0.05"), {"mean_kl": Estimate(0.04, 0.02, 0.06)})
    assert str(judged) == "mean_kl < 0.05 holds: 0.04 (the bound is inside the 95 % interval)"


def test_a_file_has_gates_for_all_and_for_one(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text('gate = "top1>0.9"\n[fp16]\ngate = "mean_kl<1e-5"\n[mine]\ngate = "top1>0"\n')
    gates = gate.load_gates(path, ["mine"])
    assert gates.of("dynamic_int8") == (Condition("top1", ">", 0.9),)
    assert gates.of("fp16") == (Condition("mean_kl", "<", 1e-5),)
    assert gates.of("mine") == (Condition("top1", ">", 0.0),)
    assert Gates().of("fp16") == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gate = ", "--gate-file {path}: cannot be read ("),
        ("gate = 3", "{path}: got 3; expected "),
        ("[fp16]\nmean_kl = 1", "{path}: cannot read 'fp16'; expected "),
        ("[fp61]\ngate = 'top1>0'", "{path}: there is no recipe 'fp61'; expected "),
        ("[fp16]\ngate = 'top1'", "{path} [fp16]: cannot read 'top1'; expected "),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        gate.load_gates(path, [])
    assert str(error.value).startswith(told.format(path=path))
    assert "\n" not in str(error.value)


def test_gates_lie_beside_a_port_of_ones_own(tmp_path: Path) -> None:
    port = f"{tmp_path / 'my_port.py'}:PORT"
    assert gate.beside(port) is None
    path = tmp_path / "my_port.gates.toml"
    path.write_text("")
    assert gate.beside(port) == path
    assert gate.beside("tinyllama") is None
