"""``Selectors.of``: what the Python API takes and refuses. The options are test_cli's."""

from __future__ import annotations

import argparse
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.cli import options
from edgeverify.core.errors import UsageError
from edgeverify.core.leg import Leg
from edgeverify.legs.selectors import Selectors
from edgeverify_models import load


def refusal(**given_values: Any) -> UsageError:
    with pytest.raises(UsageError) as error:
        Selectors.of(**given_values)
    return error.value


def test_none_is_the_default() -> None:
    assert Selectors.of() == Selectors()
    assert Selectors.of(size=None, recipes=None, seed=None, prefill=None) == Selectors()
    assert Selectors.of(seed=0, mask_as_input=False) == Selectors()


def test_what_is_given_is_kept() -> None:
    chosen = Selectors.of(prefill=(4, 11), decode_steps=3, kernel="reference", token_seed=5)
    assert (chosen.prefill, chosen.decode_steps, chosen.kernel) == ((4, 11), 3, "reference")
    assert Selectors.of(**chosen.arguments()) == chosen


@pytest.mark.parametrize(
    ("name", "near"),
    [("kv_layuot", "kv_layout"), ("kernels", "kernel"), ("prefil", "prefill"), ("seeds", "seed")],
)
def test_an_unknown_selector_is_told_the_nearest(name: str, near: str) -> None:
    error = refusal(**{name: 1})
    assert error.what == f"there is no {name!r}"
    assert error.where == "selectors"
    assert error.expected is not None
    assert near in error.expected
    assert f"did you mean {near!r}" in str(error.fix)


def test_an_unknown_selector_is_refused_even_if_it_is_none() -> None:
    assert refusal(kernal=None).what == "there is no 'kernal'"


@pytest.mark.parametrize(
    ("given_values", "where", "near"),
    [
        ({"recipes": ("float23",)}, "recipes", "float32"),
        ({"backends": ("reference", "tflight")}, "backends", "tflite"),
        ({"kernel": "xnn-pack"}, "kernel", "xnnpack"),
        ({"kv_layout": "transpose"}, "kv_layout", "transposed"),
    ],
)
def test_a_bad_choice_is_told_the_nearest(
    given_values: dict[str, Any], where: str, near: str
) -> None:
    error = refusal(**given_values)
    assert error.where == where
    assert repr(near) in str(error.fix)


@pytest.mark.parametrize(
    "given_values",
    [
        {"prefill": (0,)},
        {"prefill": (16, -1)},
        {"prefill": ()},
        {"prefill": (4, 4)},
        {"decode_steps": 0},
    ],
)
def test_lengths_start_at_one(given_values: dict[str, Any]) -> None:
    error = refusal(**given_values)
    assert error.where == next(iter(given_values))
    assert error.expected == "whole numbers from 1 on, each once"


@pytest.mark.parametrize("backends", [("reference",), ()])
def test_nothing_to_compare_is_refused(backends: tuple[str, ...]) -> None:
    assert refusal(backends=backends).where == "--backend"


@pytest.mark.parametrize(
    ("backends", "legs"),
    [
        (("reference", "reauthored"), ("authoring",)),
        (("reauthored",), ("authoring",)),
        (("tflite",), ("authoring", "conversion")),
        (("reference", "reauthored", "tflite"), ("authoring", "conversion")),
    ],
)
def test_the_legs_of_the_backends(backends: tuple[str, ...], legs: tuple[str, ...]) -> None:
    assert tuple(map(str, Selectors.of(backends=backends).legs)) == legs


@pytest.mark.parametrize("rows", [1, 40])
def test_a_cache_too_short_for_the_steps_is_refused_at_once(rows: int) -> None:
    assert refusal(kv_cache_len=rows).where in ("--prefill", "--kv-cache-len")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3, unique=True), st.integers(1, 5))
def test_the_steps_are_known_before_anything_is_loaded(lengths: list[int], steps: int) -> None:
    chosen = Selectors.of(prefill=tuple(lengths), decode_steps=steps)
    from edgeverify.legs.inputs import plan_case

    port: Any = SimpleNamespace(name="m", mask_kinds=("global",))
    hf_config = load("tinyllama").hf_configs["tiny"]
    checkpoint: Any = SimpleNamespace(size="tiny", hf_config=hf_config)
    case = plan_case(port, checkpoint, None, chosen, 4096)
    assert chosen.step_names == tuple(step.name for step in case.steps)
    assert Selectors.of(prompt="text").step_names is None


def test_every_runtime_is_a_leg_of_its_own() -> None:
    chosen = Selectors.of(runtimes=("tf_lite", "litert_lm"))
    assert tuple(map(str, chosen.legs)) == (
        "authoring",
        "conversion",
        "runtime:tf_lite",
        "runtime:litert_lm",
    )
    assert chosen.steps_of(Leg.of("runtime:tf_lite")) == chosen.step_names
    assert chosen.steps_of(Leg.of("runtime:litert_lm")) == ("",)


def test_a_runtime_needs_a_file() -> None:
    error = refusal(runtimes=("tf_lite",), backends=("reference", "reauthored"))
    assert (error.what, error.where) == ("there is no file to run", "--runtime")
    assert refusal(runtimes=("compiled",)).fix == "did you mean 'compiled_model'?"


@given(
    chosen=st.builds(
        dict,
        size=st.sampled_from([None, "tiny"]),
        checkpoint=st.sampled_from([None, "a folder/model"]),
        recipes=st.sampled_from([("float32",), ("dynamic_int8", "fp16")]),
        kernel=st.sampled_from(["xnnpack", "builtin"]),
        kv_layout=st.sampled_from(["default", "transposed"]),
        prefill=st.sampled_from([(16, 32), (4, 12)]),
        mask_as_input=st.booleans(),
        prefill_logits=st.booleans(),
        seed=st.integers(0, 5),
        memory_budget=st.sampled_from([None, 2**33]),
        runtimes=st.sampled_from([(), ("tf_lite", "compiled_model")]),
    )
)
def test_options_choose_the_same_again(chosen: dict[str, Any]) -> None:
    expected = Selectors.of(**chosen)
    parser = argparse.ArgumentParser()
    options.add_selectors(parser.add_argument)
    assert options.parse(parser.parse_args(shlex.split(expected.options()))) == expected
