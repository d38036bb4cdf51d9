"""Digests of a model: the same for the same model, another for every way of changing it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify.backends import reauthored
from edgeverify.core.case import Case, plan_steps
from edgeverify.core.store import entries
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.legs import fingerprint
from edgeverify_models.port import Port, build_model
from tests import variants

CASE = Case("m", "tiny", "default", (4, 11), 40, plan_steps(range(20), (4, 11), (1, 2)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads waiting for each other make tiny products ten times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(port: Port) -> nn.Module:
    checkpoint = open_checkpoint(None, port, size="tiny")
    return build_model(port, checkpoint.hf_config, checkpoint.tensors(), mask_cache_size=40)


def of_probe(model: nn.Module, case: Case = CASE) -> str:
    probe = fingerprint.probe(case, model.tok_embedding.num_embeddings)
    return fingerprint.of_trace(reauthored.run(model, probe))


def test_the_same_port_has_the_same_digests() -> None:
    port = models.load("tinyllama")
    first, second = built(port), built(port)
    assert fingerprint.of_module(first) == fingerprint.of_module(second)
    assert of_probe(first) == of_probe(second)


@pytest.mark.slow
def test_another_process_has_the_same_digests() -> None:
    names = ("gemma2", "openelm")
    script = (
        "import sys, edgeverify_models as models; from edgeverify.legs import fingerprint;"
        "from tests.legs.test_fingerprint import built;"
        "print(*(fingerprint.of_module(built(models.load(name))) for name in sys.argv[1:]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, *names],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    mine = [fingerprint.of_module(built(models.load(name))) for name in names]
    assert told.stdout.splitlines()[-1].split() == mine


@pytest.mark.parametrize(
    "fault",
    [
        "norm_eps_one_percent_off",
        "embedding_scale_in_bfloat16",
        "query_scale_off",
        "fourth_layer_masked_wrongly",
        "rope_base_off",
        "gate_and_up_swapped_in_block_1",
    ],
)
def test_a_variant_is_another_model(fault: str) -> None:
    port = getattr(variants, fault)()
    assert fingerprint.of_module(built(port)) != fingerprint.of_module(
        built(models.load(port.name))
    )


def test_a_replaced_mapping_of_the_config_shows() -> None:
    port = models.load("tinyllama")
    other = variants.with_config(port, rms_norm_eps=5.001e-3)
    assert fingerprint.of_module(built(other)) != fingerprint.of_module(built(port))


def test_a_weight_shows_on_the_probe_alone() -> None:
    def nudge(model: nn.Module) -> None:
        with torch.no_grad():
            model.transformer_blocks[2].ff.w2.weight[3, 5] *= 1.01

    model = built(models.load("tinyllama"))
    module, probe = fingerprint.of_module(model), of_probe(model)
    nudge(model)
    assert fingerprint.of_module(model) == module
    assert of_probe(model) != probe


def test_the_digest_of_a_trace_is_of_names_and_values() -> None:
    from edgeverify.core.trace import Trace

    array = torch.ones(1, 2, 3).numpy()
    digests = {
        fingerprint.of_trace(Trace(arrays))
        for arrays in (
            {"a": array},
            {"b": array},
            {"a": array * 2},
            {"a": array, "b": array},
            {"a": array.astype("float64")},
            {"a": array.reshape(1, 3, 2)},
        )
    }
    assert len(digests) == 6


def test_the_probe_depends_on_the_signatures_and_not_on_the_prompt() -> None:
    other = replace(CASE, steps=plan_steps([9] * 15, (4, 11), (5,)))
    assert fingerprint.probe(CASE, 331) == fingerprint.probe(other, 331)
    probe = fingerprint.probe(CASE, 331)
    assert [(step.signature, len(step.tokens)) for step in probe.steps] == [
        ("prefill_11", 11),
        ("decode", 1),
    ]
    assert max(fingerprint.probe(CASE, 5).tokens) < 5
    # A cache that the signature fills to the last row has none left for the decode step.
    tight = fingerprint.probe(replace(CASE, kv_cache_len=11), 331)
    assert tight.steps[-1].end <= 11


# Small modules whose only difference is the one a test names. They are made by a function, so that
# their names and places are the same.


@dataclass(frozen=True)
class Config:
    eps: float = 1e-5
    act: Callable[..., Any] | None = None


def factor_one(x: torch.Tensor) -> torch.Tensor:
    return x * 1.0


def factor_two(x: torch.Tensor) -> torch.Tensor:
    return x * 2.0


def keyword(x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
    return x * by


class Small(nn.Module):
    SCALE: ClassVar[float] = 1.0

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(2, 2)

    @property
    def bias(self) -> float:
        return 0.0

    @staticmethod
    def shift(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def forward(self, x: torch.Tensor, times: int = 1) -> torch.Tensor:
        return torch.sin(self.inner(x)) * times


def small(config: Config | None = None, **members: Any) -> nn.Module:
    """A ``Small`` of a class of its own with other ``members``."""
    for member in members.values():
        if isinstance(member, types.FunctionType):
            member.__qualname__ = member.__name__ = "member"
    return type("Other", (Small,), members)(*([] if config is None else [config]))


def swapped_method(self: Small, x: torch.Tensor, times: int = 1) -> torch.Tensor:
    return torch.cos(self.inner(x)) * times


def same_method(self: Small, x: torch.Tensor, times: int = 1) -> torch.Tensor:
    return torch.sin(self.inner(x)) * times


def other_default(self: Small, x: torch.Tensor, times: int = 2) -> torch.Tensor:
    return torch.sin(self.inner(x)) * times


def closing_over(value: Any) -> Callable[..., torch.Tensor]:
    def forward(self: Small, x: torch.Tensor) -> torch.Tensor:
        return value(self.inner(x)) if callable(value) else self.inner(x) * value

    return forward


def calls_one(self: Small, x: torch.Tensor) -> torch.Tensor:
    return factor_one(x)


def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    """``calls_one``, in a module whose ``factor_one`` is ``function``."""
    return types.FunctionType(
        calls_one.__code__, {**globals(), "factor_one": function}, "calls_one"
    )


def with_attribute(value: Any) -> nn.Module:
    model = small()
    model.extra = value
    return model


def hooked(function: Callable[..., Any]) -> nn.Module:
    model = small()
    model.register_forward_hook(function)
    return model


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "a config value": (lambda: small(Config(1e-5)), lambda: small(Config(1.1e-5))),
    "a function of the config": (
        lambda: small(Config(act=factor_one)),
        lambda: small(Config(act=factor_two)),
    ),
    "a class attribute": (lambda: small(SCALE=1.0), lambda: small(SCALE=2.0)),
    "a class attribute that is a tuple": (lambda: small(SIZES=(1, 2)), lambda: small(SIZES=(1, 3))),
    "a method that calls another function": (
        lambda: small(forward=same_method),
        lambda: small(forward=swapped_method),
    ),
    "a default": (lambda: small(forward=same_method), lambda: small(forward=other_default)),
    "a property": (
        lambda: small(bias=property(lambda self: 0.0)),
        lambda: small(bias=property(lambda self: 1.0)),
    ),
    "a static method": (
        lambda: small(shift=staticmethod(lambda x: x + 1)),
        lambda: small(shift=staticmethod(lambda x: x + 2)),
    ),
    "a number in a closure": (
        lambda: small(forward=closing_over(1.0)),
        lambda: small(forward=closing_over(2.0)),
    ),
    "a function in a closure": (
        lambda: small(forward=closing_over(factor_one)),
        lambda: small(forward=closing_over(factor_two)),
    ),
    "a function that is called by its name": (
        lambda: small(forward=calling(factor_one)),
        lambda: small(forward=calling(factor_two)),
    ),
    "an attribute of the module": (lambda: with_attribute(1.0), lambda: with_attribute(2.0)),
    "a list of the module": (lambda: with_attribute([13, 0]), lambda: with_attribute([13, 13])),
    "a dict of the module": (lambda: with_attribute({"a": 1}), lambda: with_attribute({"a": 2})),
    "a hook": (small, lambda: hooked(factor_one)),
    "another hook": (lambda: hooked(factor_one), lambda: hooked(factor_two)),
    "a function as attribute of the module": (
        lambda: with_attribute(factor_one),
        lambda: with_attribute(factor_two),
    ),
    "a bound method as attribute": (
        lambda: with_attribute(types.MethodType(same_method, object())),
        lambda: with_attribute(types.MethodType(swapped_method, object())),
    ),
    "an argument of a partial": (
        lambda: with_attribute(functools.partial(keyword, by=1.0)),
        lambda: with_attribute(functools.partial(keyword, by=2.0)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_shows(change: str) -> None:
    one, other = CHANGES[change]
    assert fingerprint.of_module(one()) == fingerprint.of_module(one())
    assert fingerprint.of_module(one()) != fingerprint.of_module(other())


def test_where_a_function_is_in_memory_does_not_show() -> None:
    def made() -> Callable[..., Any]:
        return eval("lambda x: x * 3.0 if x in {'a', 'b', 'c'} else x")

    assert fingerprint.of_module(small(Config(act=made()))) == fingerprint.of_module(
        small(Config(act=made()))
    )


def test_functions_that_call_each_other_end() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert fingerprint.of_module(small(forward=even)) != fingerprint.of_module(small())


def test_sources_change_with_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "PACKAGE_FOLDER", tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "sub" / "a.py").write_text("1")
    digests = [entries.source_digest("a.py", "sub/*.py")]
    (tmp_path / "a.py").write_text("2")
    digests.append(entries.source_digest("a.py", "sub/*.py"))
    (tmp_path / "sub" / "b.py").write_text("3")
    digests.append(entries.source_digest("a.py", "sub/*.py"))
    (tmp_path / "other.py").write_text("4")
    assert len(set(digests)) == 3
    assert entries.source_digest("a.py", "sub/*.py") == digests[-1]


def test_a_pattern_that_matches_no_file_is_refused() -> None:
    """After a rename, the code would silently leave the keys."""
    with pytest.raises(ValueError, match=re.escape("no file of edgeverify matches 'nope.py'")):
        entries.source_digest("litert/convert.py", "nope.py")
