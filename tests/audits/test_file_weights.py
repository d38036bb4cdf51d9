"""What the audit says of a file's constants, on constants made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from litert_torch.generative.layers.model_config import FeedForwardType

from edgeverify.audits import file_weights
from edgeverify.audits.model import Readings
from edgeverify.core.results import FAIL, PASS, UNCHECKED, WEIGHTS, AuditResult, Check
from edgeverify.litert.flatbuffer.weights import Weights

BLOCK = "transformer_blocks.0."
LAYER = "model.layers.0."
# parameter → tensor of the checkpoint
PLACED = {
    "final_norm.weight": "model.norm.weight",
    f"{BLOCK}pre_atten_norm.weight": f"{LAYER}input_layernorm.weight",
    f"{BLOCK}pre_atten_norm.bias": f"{LAYER}input_layernorm.bias",
    f"{BLOCK}atten_func.query_norm.weight": f"{LAYER}self_attn.q_norm.weight",
    f"{BLOCK}atten_func.key_norm.weight": f"{LAYER}self_attn.k_norm.weight",
    f"{BLOCK}ff.w2.weight": f"{LAYER}mlp.down_proj.weight",
    "lm_head.weight": "lm_head.weight",
}
CONFIG = SimpleNamespace(
    num_layers=1,
    lm_head_share_weight_with_embedding=False,
    block_config=lambda _: SimpleNamespace(
        attn_config=SimpleNamespace(
            num_heads=1, num_query_groups=1, head_dim=1, qkv_transpose_before_split=True
        ),
        ff_config=SimpleNamespace(type=FeedForwardType.GATED),
    ),
)


class Constants:
    """A file's constants as they are made: each in a buffer of its own unless one is given."""

    def __init__(self) -> None:
        self.arrays: dict[int, np.ndarray | None] = {}
        self.raw = SimpleNamespace(tensors=[])
        self.producer: dict[int, Any] = {}
        self.consumers: dict[int, list[Any]] = {}
        self.ops: tuple[Any, ...] = ()

    def name(self, tensor: int) -> str:
        return f"{'x' * 90}/constant_{tensor}"

    def put(self, array: np.ndarray | None, buffer: int | None = None) -> int:
        number = len(self.arrays)
        self.arrays[number] = array
        own = 1000 + number if buffer is None else buffer
        self.raw.tensors.append(SimpleNamespace(buffer=own, type=0, quantization=None))
        return number


def weights(
    constants: Constants,
    tensors: Mapping[str, int],
    unknown: Mapping[int, str] | None = None,
    *,
    outputs: tuple[str, ...] = ("logits",),
    missing: Mapping[str, str] | None = None,
) -> Weights:
    graph: Any = constants
    signature: Any = SimpleNamespace(outputs=dict.fromkeys(outputs, 0))
    located: Any = SimpleNamespace(missing=dict(missing or {}))
    return Weights(graph, signature, located, dict(tensors), unknown=dict(unknown or {}))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    square = torch.randn(4, 4, generator=draw), torch.randn(4, 4, generator=draw)
    made = {name: torch.randn(4, generator=draw) for name in PLACED.values()}
    made[f"{LAYER}mlp.down_proj.weight"], made["lm_head.weight"] = square
    return made


@pytest.fixture
def audited(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AuditResult]:
    def values(file: Any, graph: Any, tensor: int) -> Any:
        assert file.constants is graph
        return graph.arrays[tensor]

    monkeypatch.setattr(file_weights, "values", values)
    monkeypatch.setattr(file_weights, "cap_is_folded", lambda weights: weights.signature.folded)

    def audit(found: Mapping[str, Weights], folded: bool = False, **said: Any) -> AuditResult:
        for one in found.values():
            one.signature.folded = folded  # type: ignore[attr-defined]
        declared = Readings("HF config", {"final softcap": "none", **said})
        constants = next(iter(found.values())).graph
        file: Any = SimpleNamespace(constants=constants, forget=lambda buffer: None)
        return file_weights.audit_file(file, found, CONFIG, state, declared)

    return audit


@pytest.fixture
def right(state: dict[str, torch.Tensor]) -> Callable[[Constants], dict[str, int]]:
    """Every tensor of the checkpoint as a constant, by parameter."""
    return lambda constants: {
        name: constants.put(state[tensor].numpy().copy()) for name, tensor in PLACED.items()
    }


def test_constants_are_held_and_counted(audited: Any, right: Any) -> None:
    constants = Constants()
    audit = audited({"decode": weights(constants, right(constants))})
    assert audit.name == WEIGHTS
    assert audit.checks == tuple(Check(t, f"file, {name}", PASS) for name, t in PLACED.items())
    assert audit.notes == ("the file's constants: 7 float32",)


# parameter → the field that says whether the norm multiplies by 1 + weight
FACTORS = {
    "final_norm.weight": "final norm factor",
    f"{BLOCK}pre_atten_norm.weight": "blocks.0.attention norm factor",
    f"{BLOCK}atten_func.query_norm.weight": "blocks.0.query norm factor",
    f"{BLOCK}atten_func.key_norm.weight": "blocks.0.key norm factor",
}


@pytest.mark.parametrize("parameter", FACTORS)
def test_a_norm_holds_the_sum_where_its_own_factor_is_declared_so(
    parameter: str, audited: Any, right: Any
) -> None:
    constants = Constants()
    tensors = right(constants)
    plain = constants.arrays[tensors[parameter]]
    constants.arrays[tensors[parameter]] = np.float32(1) + plain
    found = {"decode": weights(constants, tensors)}
    said = dict.fromkeys(FACTORS.values(), "weight") | {FACTORS[parameter]: "1 + weight"}
    audit = audited(found, **said)
    notes = {c.where: c.reason for c in audit.checks if c.outcome == PASS and c.reason}
    assert notes == {f"file, {parameter}": "as 1 + weight"}
    assert audit.odd == ()
    # Declared of none, the sum is wrong; declared and not made, the weight is.
    (check,) = audited(found, **dict.fromkeys(FACTORS.values(), "weight")).odd
    assert (check.item, check.outcome) == (PLACED[parameter], FAIL)
    constants.arrays[tensors[parameter]] = plain
    (check,) = audited(found, **said).odd
    assert (check.item, check.outcome) == (PLACED[parameter], FAIL)


@pytest.mark.parametrize("cap", ["none", 30.0])
@pytest.mark.parametrize("folded", [False, True])
def test_a_head_is_divided_by_the_cap_where_the_graph_leaves_the_division_out(
    cap: Any, folded: bool, audited: Any, right: Any
) -> None:
    constants = Constants()
    tensors = right(constants)
    found = {"decode": weights(constants, tensors)}
    divided = folded and cap != "none"
    said = {"final softcap": cap}
    assert (audited(found, folded, **said).odd == ()) != divided
    held = constants.arrays[tensors["lm_head.weight"]]
    constants.arrays[tensors["lm_head.weight"]] = held * (np.float32(1) / np.float32(30.0))
    audit = audited(found, folded, **said)
    assert (audit.odd == ()) == divided
    if divided:
        assert audit.checks[-1].reason == "divided by the final softcap"
    else:
        assert [c.item for c in audit.odd] == ["lm_head.weight"]


def test_what_is_computed_is_unchecked_and_the_others_are_held(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = right(constants)
    constants.arrays[tensors["final_norm.weight"]] = None
    constants.arrays[tensors["lm_head.weight"]] *= 2
    first, second = audited({"decode": weights(constants, tensors)}).odd
    assert first.item == "lm_head.weight"
    reason = "is computed from constants"
    assert second == Check("final_norm.weight", "file", UNCHECKED, reason=reason)


def test_a_constant_of_no_tensor_is_a_fault(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = {"lm_head.bias": constants.put(np.ones((3, 2), np.float32)), **right(constants)}
    audit = audited({"decode": weights(constants, tensors)})
    reason = "belongs to no tensor of the checkpoint"
    assert audit.odd == (Check("lm_head.bias", "file", FAIL, "", "float32 (3, 2)", reason),)
    assert len(audit.checks) == 8


def test_each_signature_s_own_constants_are_held_and_shared_ones_once(
    audited: Any, right: Any, state: Any
) -> None:
    constants = Constants()
    shared = right(constants)
    wrong = constants.put(state["model.norm.weight"].numpy() * 2)
    other = constants.put(state["lm_head.weight"].numpy() * 2)
    own = {**shared, "final_norm.weight": wrong, "lm_head.weight": other}
    found = {"decode": weights(constants, shared), "prefill_4": weights(constants, own)}
    for given in (found, dict(reversed(found.items()))):
        audit = audited(given)
        assert [c.item for c in audit.odd] == ["model.norm.weight", "lm_head.weight"]
        assert len(audit.checks) == 9
        assert audit.notes == ("the file's constants: 9 float32",)


def test_a_tensor_without_a_constant_is_named_with_the_signatures(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = right(constants)
    key_norm = f"{BLOCK}atten_func.key_norm.weight"
    short = {name: t for name, t in tensors.items() if name != key_norm}
    found = {
        "prefill_4": weights(constants, short, outputs=("kv_cache_k_0",)),
        "prefill_8": weights(constants, short),
        "decode": weights(constants, short),
    }
    tensor, where = PLACED[key_norm], f"file, {key_norm}, prefill_8, decode"
    assert audited(found).odd == (Check(tensor, where, FAIL, tensor, "", "has no constant"),)
    found["decode"] = weights(constants, tensors)
    assert [c.where for c in audited(found).odd] == [f"file, {key_norm}, prefill_8"]
    # A prefill without logits does not need it.
    del found["prefill_8"]
    assert audited(found).odd == ()


def test_all_tensors_of_a_constant_that_is_lacking_are_named(
    audited: Any, right: Any, state: Any
) -> None:
    names = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv"]
    state.update(dict.fromkeys(names, torch.ones(1, 4)))
    constants = Constants()
    (check,) = audited({"decode": weights(constants, right(constants))}).odd
    assert check.item == check.expected == ", ".join(names)


def test_a_tensor_whose_place_was_not_found_is_unchecked(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = right(constants)
    del tensors["final_norm.weight"]
    missing = {"final_norm": "no projection", "blocks.0.out": "nothing merges"}
    (check,) = audited({"decode": weights(constants, tensors, missing=missing)}).odd
    assert check.outcome == UNCHECKED
    assert check.reason == "its place was not found: no projection"


@pytest.mark.parametrize(
    ("form", "outcome"),
    [
        (lambda w: w.reshape(1, 1, -1), PASS),
        (lambda w: np.nextafter(w, np.float32(9)), UNCHECKED),
        (lambda w: w[:-1], FAIL),
    ],
)
def test_a_tensor_in_an_unknown_place_is_known_by_its_values(
    form: Any, outcome: str, audited: Any, right: Any, state: Any
) -> None:
    """A norm that is written by hand has its weight as an operand of some MUL."""
    state["model.norm.weight"] = torch.randn(4)
    constants = Constants()
    tensors = right(constants)
    name = "final_norm.weight"
    held = constants.put(form(state["model.norm.weight"].numpy().copy()))
    del tensors[name]
    audit = audited({"decode": weights(constants, tensors, unknown={held: "a MUL takes it"})})
    (check,) = (c for c in audit.checks if c.item == "model.norm.weight")
    assert check.outcome == outcome
    leftover = [c.outcome for c in audit.checks if c.item.startswith("constant")]
    assert leftover == ([] if outcome == PASS else [UNCHECKED])


def test_equal_tensors_share_a_constant_in_an_unknown_place(
    audited: Any, right: Any, state: Any
) -> None:
    norms = [
        name for name in PLACED if name.endswith("norm.weight") and len(state[PLACED[name]]) == 4
    ]
    assert len(norms) > 1
    for name in norms:
        state[PLACED[name]] = torch.tensor([1.0, 2.0, 3.0, 5.0])
    constants = Constants()
    tensors = {name: at for name, at in right(constants).items() if name not in norms}
    held = constants.put(state[PLACED[norms[0]]].numpy().reshape(1, 1, -1).copy())
    audit = audited({"decode": weights(constants, tensors, unknown={held: "a MUL takes it"})})
    found = {c.item: c.outcome for c in audit.checks if c.item in {PLACED[n] for n in norms}}
    assert set(found.values()) == {PASS}
    assert audit.odd == ()


def test_a_tensor_of_a_block_that_is_not_understood_is_unchecked(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = right(constants)
    del tensors[f"{BLOCK}ff.w2.weight"], tensors["final_norm.weight"]
    found = {"decode": weights(constants, tensors)}
    assert [c.outcome for c in audited(found).odd] == [FAIL, FAIL]
    found["decode"].untold.add(0)
    first, second = audited(found).odd
    assert (first.item, first.outcome) == ("model.norm.weight", FAIL)  # of no block
    assert (second.item, second.outcome) == (f"{LAYER}mlp.down_proj.weight", UNCHECKED)
    why = "its block has operations that are not known here"
    assert second.reason == f"its place was not found: {why}"


@pytest.mark.parametrize("fused", [False, True])
def test_q_k_and_v_apart_are_held_one_by_one(
    fused: bool, audited: Any, right: Any, state: Any
) -> None:
    constants = Constants()
    parts = dict(zip("qkv", torch.randn(3, 1, 4), strict=True))
    if fused:
        name = f"{LAYER}self_attn.qkv_proj.weight"
        state[name] = torch.cat(list(parts.values()))
        names = [name] * 3
    else:
        names = [f"{LAYER}self_attn.{part}_proj.weight" for part in parts]
        state |= dict(zip(names, parts.values(), strict=True))
    tensors = right(constants)
    for part, tensor in parts.items():
        name = f"{BLOCK}atten_func.{part}_projection.weight"
        tensors[name] = constants.put(tensor.numpy().copy())
    audit = audited({"decode": weights(constants, tensors)})
    assert audit.odd == ()
    assert [c.item for c in audit.checks[-3:]] == names
    del tensors[f"{BLOCK}atten_func.k_projection.weight"]
    (check,) = audited({"decode": weights(constants, tensors)}).odd
    assert (check.item, check.outcome, check.reason) == (names[1], FAIL, "has no constant")


MASK = np.triu(np.full((3, 3), -np.inf, np.float32), 1).reshape(1, 3, 1, 3)
ROPE = np.float32([[1.0, 0.1, 0.01]])


def test_other_constants_are_told_by_what_they_hold(audited: Any, right: Any) -> None:
    constants = Constants()
    tensors = right(constants)
    same = np.full((2, 3), 7.0, np.float32)
    odd = np.float32([[1.0, 2.0]])
    unknown = {
        constants.put(array): "a MUL takes it" for array in (MASK, ROPE, ROPE / 2 + 0.5, same, odd)
    }
    audit = audited({"decode": weights(constants, tensors, unknown)})
    kinds = "1 of masks, 2 of RoPE, 1 of one value throughout, 1 unexplained"
    assert audit.notes == (f"the file's constants: 7 float32, {kinds}",)
    name = f"{'x' * 68}/constant_11"
    assert len(name) == 80
    reason = "belongs to no tensor of the checkpoint; a MUL takes it"
    assert audit.odd == (
        Check(f"constant {name!r}", "file", UNCHECKED, "", "float32 (1, 2)", reason),
    )


def test_a_constant_is_counted_once_and_not_at_all_where_it_is_a_weight(
    audited: Any, right: Any
) -> None:
    constants = Constants()
    tensors = right(constants)
    weight = constants.raw.tensors[tensors["lm_head.weight"]].buffer
    again = constants.put(np.float32([1.0, 2.0]), weight)  # a MUL takes the head's buffer, too
    computed, first = constants.put(None), constants.put(MASK)
    second = constants.put(MASK, constants.raw.tensors[first].buffer)
    third = constants.put(ROPE)
    found = {
        "prefill_4": weights(constants, tensors, {again: "", computed: "", first: "", second: ""}),
        "decode": weights(constants, tensors, {third: ""}),
    }
    audit = audited(found)
    assert audit.odd == ()
    assert audit.notes == ("the file's constants: 7 float32, 1 of masks, 1 of RoPE",)
