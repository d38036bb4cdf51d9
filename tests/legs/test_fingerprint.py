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

import numpy as np
import pytest
import torch
from torch import nn

import edgeverify_models as models
from edgeverify import verify
from edgeverify.backends import reauthored
from edgeverify.core.case import Case, plan_steps
from edgeverify.core.results import FAIL, PASS
from edgeverify.core.store import entries
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.legs import fingerprint
from edgeverify.suites.selftest.faults.port_changes import with_model
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


TABLE: Any = None


def reads_table(self: Small, x: torch.Tensor) -> torch.Tensor:
    return x * TABLE


def reading(table: Any) -> Callable[..., Any]:
    """``reads_table``, in a module whose ``TABLE`` is another one."""
    return types.FunctionType(reads_table.__code__, {**globals(), "TABLE": table}, "reads_table")


class Tables:
    """A plain object that a port may keep its tables in."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.of_all = self  # objects may name each other


class Slotted:
    __slots__ = ("__table",)

    def __init__(self, table: Any) -> None:
        self.__table = table


def inheriting(table: Any) -> Any:
    """An object whose class has the table from another class."""
    return type("Derived", (type("Base", (), {"table": Tables(table)}),), {})()


def unregistered(table: Any) -> nn.Module:
    """A module that PyTorch does not know as the model's, so that no path leads to it."""
    inner: Any = nn.Identity()
    inner.table = table
    return inner


def cyclic(table: Any) -> list[Any]:
    made = [table]
    made.append(made)
    return made


def frozen(table: Any) -> Any:
    """Something hashable that says the same."""
    if isinstance(table, np.ndarray):
        return tuple(table.flat)
    return repr(table) if isinstance(table, (list, dict, set)) else table


def in_sibling(table: Any) -> Callable[..., Any]:
    """Code that reads the table from another module of the port, which is not in sys.modules."""
    sibling = types.ModuleType("sibling")
    vars(sibling).update(TABLE=table, __file__="sibling.py")
    return types.FunctionType(read_sibling.__code__, {**globals(), "sibling": sibling}, "f")


def read_sibling(self: Small, x: torch.Tensor) -> torch.Tensor:
    return x * sibling.TABLE  # type: ignore[name-defined]  # noqa: F821


def of_sibling(table: Any) -> Callable[..., Any]:
    """Code that calls a function of such a module by its name."""
    function = types.FunctionType(
        reads_table.__code__, {"TABLE": table, "__name__": "sibling"}, "f"
    )
    return calling(function)


def decorated(table: Any) -> Callable[..., Any]:
    @functools.wraps(same_method)
    def wrapper(*args: Any) -> Any:
        return same_method(*args) * table

    return wrapper


class Scaling:
    def __init__(self, by: float) -> None:
        self.by = by

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


HOLDERS: dict[str, Callable[[Any], nn.Module]] = {
    "an attribute": lambda table: with_attribute(table),
    "an object": lambda table: with_attribute(Tables(table)),
    "an object in a list in a dict": lambda table: with_attribute({"a": [Tables(table)]}),
    "a simple namespace": lambda table: with_attribute(types.SimpleNamespace(table=table)),
    "what an object inherits": lambda table: with_attribute(inheriting(table)),
    "a list that is in itself": lambda table: with_attribute(cyclic(table)),
    "a module in a list": lambda table: with_attribute([unregistered(table)]),
    "a key": lambda table: with_attribute({frozen(table): 1}),
    "a module beside the port's": lambda table: small(forward=in_sibling(table)),
    "a function of a module beside it": lambda table: small(forward=of_sibling(table)),
    "a partial of the module": lambda table: small(
        forward=reading(functools.partial(keyword, by=table))
    ),
    "a decorator": lambda table: small(forward=decorated(table)),
    "an object with slots": lambda table: with_attribute(Slotted(table)),
    "a dataclass": lambda table: with_attribute(Config(act=table)),
    "a closure": lambda table: small(forward=closing_over(table)),
    "an object in a closure": lambda table: small(forward=closing_over(Tables(table))),
    "a default": lambda table: small(forward=types.FunctionType(
        same_method.__code__, globals(), "f", (Tables(table),))),
    "the module that the code is of": lambda table: small(forward=reading(table)),
    "an argument of a partial": lambda table: with_attribute(functools.partial(keyword, by=table)),
    "the object of a method": lambda table: with_attribute(Scaling(table).scaled),
}  # fmt: skip
TABLES: dict[str, Callable[[float], Any]] = {
    "tensor": lambda end: torch.tensor([1.0, 0.1, end]),
    "bfloat16 tensor": lambda end: torch.tensor([1.0, 0.1, 4 * end], dtype=torch.bfloat16),
    "transposed tensor": lambda end: torch.tensor([[1.0, 2.0], [0.1, end]]).T,
    "empty or not": lambda end: torch.zeros(0 if end < 0.012 else 1),
    "conjugate tensor": lambda end: torch.tensor([1.0, 1j * end]).conj(),
    "sparse tensor": lambda end: torch.tensor([0.0, end]).to_sparse(),
    "array of objects": lambda end: np.array([1.0, Tables(end)]),
    "array": lambda end: np.array([1.0, 0.1, end]),
    "list": lambda end: [1.0, 0.1, end],
    "dict": lambda end: {"frequencies": [1.0, 0.1, end]},
    "set": lambda end: {1.0, 0.1, end},
    "number": lambda end: end,
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_table_shows_wherever_it_is_held(holder: str, table: str) -> None:
    """Read from a file that was corrected, it made the old .tflite the right port's."""
    held, made = HOLDERS[holder], TABLES[table]
    assert fingerprint.of_module(held(made(0.01))) == fingerprint.of_module(held(made(0.01)))
    assert fingerprint.of_module(held(made(0.01))) != fingerprint.of_module(held(made(0.02)))


def test_which_of_two_objects_is_meant_shows() -> None:
    def digest(second: int) -> str:
        tables = [Tables(1.0), Tables(2.0)]
        return fingerprint.of_module(with_attribute([*tables, tables[second]]))

    assert digest(0) == digest(0) != digest(1)


def test_functions_of_libraries_are_told_by_their_names() -> None:
    functions = (torch.sin, torch.nn.functional.silu, torch.nn.functional.relu, nn.ReLU, nn.SiLU)
    assert len({fingerprint.of_module(with_attribute(f)) for f in functions}) == len(functions)
    assert len({fingerprint.of_config(Config(act=f)) for f in functions}) == len(functions)


def test_a_buffer_shows_and_a_weight_is_the_checkpoint_s() -> None:
    def digest(buffer: float, weight: float) -> str:
        model = small()
        model.register_buffer("table", torch.tensor([buffer]), persistent=False)
        for value in model.inner.parameters():
            torch.nn.init.constant_(value, weight)
        return fingerprint.of_module(model)

    assert digest(1.0, 1.0) == digest(1.0, 2.0) != digest(1.5, 1.0)


def test_a_parameter_that_no_checkpoint_fills_shows() -> None:
    def digest(value: float) -> str:
        return fingerprint.of_module(with_attribute([nn.Parameter(torch.tensor([value]))]))

    assert digest(1.0) == digest(1.0) != digest(2.0)


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


@pytest.mark.slow
def test_a_table_that_is_corrected_makes_another_file(tmp_path: Path) -> None:
    """It is wrong in rows that the probe's tokens do not ask for; the two share a cache."""
    clean = models.load("tinyllama")
    rows = clean.hf_configs["tiny"]["vocab_size"]

    def with_factors(factor: float) -> Port:
        probed = [(7 * i + 1) % rows for i in range(40)]
        tables = Tables([1.0 if row in probed else factor for row in range(rows)])

        def scaled(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
            return out * torch.tensor(tables.table)[inputs[0]].unsqueeze(-1)

        return with_model(clean, lambda m: m.tok_embedding.register_forward_hook(scaled))

    chosen: dict[str, Any] = {"kv_cache_len": 96, "decode_steps": 2, "cache": tmp_path}
    assert verify(with_factors(1.5), **chosen).outcome == FAIL
    report = verify(with_factors(1.0), **chosen)
    assert report.outcome == PASS, report.legs["conversion"].first_divergence
