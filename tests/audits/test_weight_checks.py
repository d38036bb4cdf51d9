"""What each check of a weight says, on tensors made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgeverify.audits.weight_map import Span
from edgeverify.audits.weights import Audit
from edgeverify.core.results import FAIL, PASS, Check

A, B, SQUARE, BIAS = "layers.0.a.weight", "layers.0.b.weight", "square.weight", "layers.0.a.bias"


@pytest.fixture
def audit() -> Audit:
    draw = torch.Generator().manual_seed(1)
    shapes = {A: (4, 3), B: (2, 3), SQUARE: (3, 3), BIAS: (4,)}
    return Audit({name: torch.randn(s, generator=draw) for name, s in shapes.items()}, "file")


def both(tensor: torch.Tensor) -> list[Any]:
    """A copy as a parameter and as a file's constant."""
    return [tensor.clone(), tensor.clone().numpy()]


def plus_one(weight: np.ndarray) -> np.ndarray:
    return np.float32(1.0) + weight


def test_a_pass_tells_what_was_done_to_the_values_and_else_nothing(audit: Audit) -> None:
    for held in both(audit.state[A]):
        audit.compare("w1", held, (Span(A),))
    audit.compare("w1", audit.state[A], (Span(A),))  # shared, without a look
    assert audit.checks == [Check(A, "file, w1", PASS)] * 3
    audit.checks.clear()
    audit.compare("w1", plus_one(audit.state[A].numpy()), (Span(A),), plus_one, "as 1 + weight")
    assert audit.checks == [Check(A, "file, w1", PASS, reason="as 1 + weight")]


def test_a_declared_change_that_was_not_made_is_a_fault(audit: Audit) -> None:
    audit.compare("w1", audit.state[A].numpy(), (Span(A),), plus_one, "as 1 + weight")
    (check,) = audit.checks
    assert (check.outcome, check.reason) == (FAIL, "12 of 12 values differ")


def test_a_view_of_the_same_memory_with_its_axes_exchanged_is_looked_at(audit: Audit) -> None:
    audit.compare("w1", audit.state[SQUARE].T, (Span(SQUARE),))
    assert audit.checks == [Check(SQUARE, "file, w1", FAIL, SQUARE, "its transpose")]


def test_another_shape_names_each_tensor_once(audit: Audit) -> None:
    spans = (Span(A, (0, 2), (0, 2)), Span(B, (0, 2), (2, 4)), Span(A, (2, 4), (4, 6)))
    audit.compare("fused", torch.zeros(5, 3), spans)
    text = "float32 (6, 3)", "float32 (5, 3)"
    assert audit.checks == [Check(f"{A} + {B}", "file, fused", FAIL, *text)]


def test_parts_of_one_parameter_are_held_by_their_rows(audit: Audit) -> None:
    spans = (Span(A, (0, 2), (0, 2)), Span(B, (0, 2), (2, 4)), Span(A, (2, 4), (4, 6)))
    a, b = audit.state[A], audit.state[B]
    for held in both(torch.cat([a[:2], b, a[2:]])):
        audit.compare("fused", held, spans)
    assert [(c.item, c.outcome) for c in audit.checks] == [(A, PASS), (B, PASS), (A, PASS)] * 2
    audit.checks.clear()
    changed = torch.cat([a[:2], b, a[2:]])
    changed[5, 1] = 7.0
    audit.compare("fused", changed, spans)
    assert audit.checks[:2] == [Check(A, "file, fused", PASS), Check(B, "file, fused", PASS)]
    assert audit.checks[2].expected == f"{np.float32(a[3, 1])!s} at [1, 1]"
    assert audit.checks[2].reason.startswith("rows 2 to 4, 1 of 6 values differ")


def test_another_tensor_in_some_rows_is_told_with_the_rows(audit: Audit) -> None:
    a, b = audit.state[A], audit.state[B]
    spans = (Span(A, (0, 2), (0, 2)), Span(A, (2, 4), (2, 4)))
    audit.compare("fused", torch.cat([b, a[2:]]), spans)
    assert audit.checks[0] == Check(A, "file, fused", FAIL, f"rows 0 to 2, {A}", B)
    assert audit.checks[1].outcome == PASS


def test_a_transpose_that_was_given_the_shape_of_the_matrix_is_recognised(audit: Audit) -> None:
    held = audit.state[A].T.reshape(4, 3)
    audit.compare("w1", held, (Span(A),))
    assert audit.checks == [Check(A, "file, w1", FAIL, A, "its transpose")]


def test_other_tensors_are_recognised_as_they_stand_in_the_file(audit: Audit) -> None:
    """Also where the file holds the weight plus one."""
    audit.state = {**audit.state, "c.weight": audit.state[A] * 2}
    other = plus_one(audit.state["c.weight"].numpy())
    audit.compare("w1", other, (Span(A),), plus_one)
    turned = np.ascontiguousarray(plus_one(audit.state[SQUARE].numpy()).T)
    audit.compare("w2", turned, (Span(SQUARE),), plus_one)
    assert [(c.item, c.where, c.found) for c in audit.checks] == [
        (A, "file, w1", "c.weight"),
        (SQUARE, "file, w2", "its transpose"),
    ]


def test_a_tensor_with_a_few_changed_values_is_itself_though_another_equals_it(
    audit: Audit,
) -> None:
    held = audit.state[A].clone()
    held[0, 0] = 9.0
    audit.state = {**audit.state, "copy": held.clone()}
    audit.compare("w1", held, (Span(A),))
    (check,) = audit.checks
    assert check.found == "9.0"


def test_values_of_nobody_s_are_told_by_the_first(audit: Audit) -> None:
    for name in (A, BIAS):
        held = torch.full(audit.state[name].shape, 5.0)
        audit.compare("w1", held, (Span(name),))
    assert [c.found for c in audit.checks] == ["5.0", "5.0"]


def test_what_has_no_known_place_is_found_by_its_bytes(audit: Audit) -> None:
    a, b, bias = audit.state[A], audit.state[B], audit.state[BIAS]
    spare = {"own": torch.cat([b, a]), "own_bias": bias.clone()}
    audit.search(dict.fromkeys((A, B, BIAS), "is in no parameter"), spare)
    assert audit.checks == [
        Check(A, "file, own", PASS, reason="found by its bytes, row 2"),
        Check(B, "file, own", PASS, reason="found by its bytes, row 0"),
        Check(BIAS, "file, own_bias", PASS, reason="found by its bytes, row 0"),
    ]


def test_what_stands_nowhere_or_twice_is_a_fault_and_so_is_what_holds_nothing(
    audit: Audit,
) -> None:
    a, reason = audit.state[A], "is in no parameter"
    audit.search({A: reason, B: reason}, {"one": a.clone(), "two": a.clone()})
    assert audit.checks == [
        Check(A, "file", FAIL, "once", "is in 2: one, two", reason),
        Check(B, "file", FAIL, "once", "", reason),
        Check("one", "file", FAIL, "", "one", "holds no tensor of the checkpoint"),
        Check("two", "file", FAIL, "", "two", "holds no tensor of the checkpoint"),
    ]


def test_a_parameter_that_holds_a_tensor_and_more_is_a_leftover(audit: Audit) -> None:
    spare = {"own": torch.cat([audit.state[A], torch.zeros(1, 3)])}
    audit.search({A: "is in no parameter"}, spare)
    assert [(c.item, c.outcome) for c in audit.checks] == [(A, PASS), ("own", FAIL)]


def test_a_tensor_of_which_some_rows_have_a_place_is_not_made_good_by_a_copy(
    audit: Audit,
) -> None:
    audit.search({A: "has 4 rows, of which 0 to 2 are used"}, {"own": audit.state[A].clone()})
    assert audit.checks[0].outcome == FAIL
    assert audit.checks[0].reason == "has 4 rows, of which 0 to 2 are used"


@pytest.mark.parametrize(
    ("name", "spare"),
    [
        (A, torch.zeros(5, 4)),  # other columns
        (A, torch.zeros(3, 3)),  # fewer rows
        (A, torch.zeros(4, 3, dtype=torch.float64)),
        (BIAS, torch.zeros(3)),
    ],
)
def test_what_cannot_hold_a_tensor_does_not(name: str, spare: torch.Tensor, audit: Audit) -> None:
    audit.search({name: "is in no parameter"}, {"own": spare})
    assert [c.outcome for c in audit.checks] == [FAIL, FAIL]


def test_a_tensor_whose_first_row_alone_recurs_is_not_found(audit: Audit) -> None:
    a = audit.state[A]
    audit.search({A: "is in no parameter"}, {"own": torch.cat([a[:1], a])})
    assert audit.checks[0] == Check(A, "file, own", PASS, reason="found by its bytes, row 1")
    audit.checks.clear()
    audit.search({A: "is in no parameter"}, {"own": a[:1].repeat(4, 1)})
    assert audit.checks[0].outcome == FAIL


def test_a_tensor_of_one_block_is_not_looked_for_in_another(audit: Audit) -> None:
    a = audit.state[A]
    audit.search({A: "is in no parameter"}, {"blocks.1.own": a.clone()})
    assert audit.checks[0].outcome == FAIL
    audit.checks.clear()
    audit.search({A: "is in no parameter"}, {"blocks.0.own": a.clone()})
    assert [c.outcome for c in audit.checks] == [PASS]
