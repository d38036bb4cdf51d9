"""Finds the operators of a file that cause a difference from the model.

Both are computed in float64 on the same inputs, so no threshold for float32's noise is needed.
An operator agrees if its output is a value of the model. It is a source if it differs while its
inputs agree. Three things need care:

- The converter merges and moves operators, so some outputs of a correct file are not a value of
  the model. They do not count as differences if everything computed from them agrees.
- A wrong output may be another value of the model (V where K belongs). It then becomes visible at a
  later operator. The search therefore replaces inputs by other values of the model. If that makes
  the operator agree, the operator that made the input is the source.
- Nothing agrees behind a source. Its correct output is searched for among the model's values: the
  one that makes most operators behind it agree. With that value inserted, the search finds further
  sources.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeverify.diagnose.operators.graph import FileOp, FlatGraph, Tensor
from edgeverify.diagnose.operators.kernels import UnknownOpError, compute
from edgeverify.diagnose.operators.match import ROUNDING, ValueIndex, difference
from edgeverify.diagnose.operators.model_values import ModelValue, StepValues
from edgeverify.litert.flatbuffer.locate import LAYOUT_OPS

AGREES, DIFFERS, UNJUDGED = "agrees", "differs", "unjudged"
# How many operators back a wrong input is traced, and how many operators behind a source may have
# no counterpart in the model before the search rejoins it. A rewritten norm or index takes up to 9.
FARTHEST_BACK = 12
FARTHEST_AHEAD = 16
MOST_SOURCES = 32
LARGEST_KEPT = 4 * 2**20  # bytes of a constant in float64; larger ones are read again
# Of the model's values of one shape: how many of the nearest are considered, and how many of those
# that fit are tried in full.
MOST_CANDIDATES = 12
# Values between an operator's inputs and its output: views, and operators the converter merged.
NEAR = 24
MOST_TRIED = 4


@dataclass(frozen=True)
class Source:
    """An operator whose inputs agree and whose output differs.

    Attributes:
        op: the operator.
        expected: the value of the model that it should output; None if it is not known.
        error: the largest difference from it, over the largest value of the row.
        suspects: if no value of the model lies between them, all operators that may be the source,
            this one included; else only this one.
    """

    op: FileOp
    expected: ModelValue | None
    error: float | None
    suspects: tuple[FileOp, ...]

    @property
    def error_ratio(self) -> float | None:
        """``error`` over the error that the rounding of a constant explains."""
        return None if self.error is None else self.error / ROUNDING


@dataclass(frozen=True)
class _State:
    """One evaluation of the graph.

    Attributes:
        values: tensor → array; the model's value if the operator agrees.
        status: place of an operator → ``AGREES``, ``DIFFERS`` or ``UNJUDGED``.
        matches: tensor → the value of the model that it equals.
        differing: operators that differ and whose output leads to another difference.
        doubtful: places of those among them whose output also leads to an agreement.
    """

    values: Mapping[Tensor, np.ndarray | None]
    status: Mapping[tuple[int, ...], str]
    matches: Mapping[Tensor, ModelValue]
    differing: tuple[FileOp, ...]
    doubtful: frozenset[tuple[int, ...]]


@dataclass(frozen=True)
class _Repair:
    """An operator's output replaced by a value of the model, and the remaining differences."""

    op: FileOp
    value: ModelValue
    state: _State


def find_sources(graph: FlatGraph, step: StepValues) -> tuple[Source, ...]:
    """Returns the sources of one step, in the order of their discovery, which is execution order.

    Args:
        graph: the signature's graph.
        step: the model's values in that step, in float64.
    """
    return _Search(graph, step).run()


class _Search:
    def __init__(self, graph: FlatGraph, step: StepValues) -> None:
        self.graph = graph
        given = [ModelValue("", name, array) for name, array in step.inputs.items()]
        self.index = ValueIndex([*given, *step.values])
        self.given: dict[Tensor, np.ndarray] = {
            tensor: step.inputs[name]
            for name, tensor in graph.inputs.items()
            if name in step.inputs
        }
        self.order = {op.place: number for number, op in enumerate(graph.ops)}
        self.results = set(graph.outputs.values())
        self._constants: dict[Tensor, np.ndarray | None] = {}

    def run(self) -> tuple[Source, ...]:
        found: list[Source] = []
        given_up: set[tuple[int, ...]] = set()
        put_in: dict[Tensor, ModelValue] = {}
        state = self.evaluate(put_in)
        while len(found) < MOST_SOURCES:
            differing = [op for op in state.differing if op.place not in given_up]
            if not differing:
                break
            repair = self.best_repair(differing, state, put_in)
            if repair is None:
                first = self.certain(differing, state)
                found.append(self.unrepaired(first, state))
                given_up |= {first.place, *self.behind(first)}
                continue
            found.append(self.source(repair, differing, state))
            put_in[repair.op.outputs[0]] = repair.value
            state = repair.state
        return tuple(found)

    def certain(self, differing: list[FileOp], state: _State) -> FileOp:
        """Returns the first certain difference: nothing computed from it agrees, in any order."""
        sure = (op for op in differing if op.place not in state.doubtful)
        return next((op for op in sure if not self.moved(op, state)), differing[0])

    def best_repair(
        self, differing: list[FileOp], state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> _Repair | None:
        """Repairs one operator so that the first certain difference disappears.

        The operator with that difference may have no counterpart in the model. Then it cannot be
        repaired itself, but an operator after it can, and this excuses it. The best repair leaves
        the fewest differences; among equal ones it is the earliest, because later ones follow from
        it.
        """
        first = self.certain(differing, state)
        window = differing[: differing.index(first) + FARTHEST_AHEAD]
        best: _Repair | None = None
        for op in window:
            tried = (*self.blame(op, state, put_in), *self.rejoin(op, state, put_in))
            useful = [
                repair
                for repair in (best, *tried)
                if repair is not None
                and first not in repair.state.differing
                and len(repair.state.differing) < len(state.differing)
            ]
            best = min(useful, key=lambda r: self.rank(r, first, window, state), default=None)
            if best is not None and self.rank(best, first, window, state)[0] == 0:
                break
        return best

    def explains(self, repair: _Repair, first: FileOp, state: _State) -> bool:
        """Whether the first operator now agrees, by a value that the model computes nearby."""
        near = self.distance(repair.op, repair.value, state) <= NEAR
        return near and repair.state.status[first.place] == AGREES

    def rank(
        self, repair: _Repair, first: FileOp, window: list[FileOp], state: _State
    ) -> tuple[int, int, int, int, int]:
        left = repair.state.differing
        left_near = len(set(window).intersection(left))
        if not left_near and len(self.suspects(repair.op, window, state)) == 1:
            kind = 0
        else:
            kind = 1 if self.explains(repair, first, state) else 2
        return (
            kind,
            left_near,
            len(left),
            self.order[repair.op.place],
            self.distance(repair.op, repair.value, state),
        )

    def candidates(self, op: FileOp, state: _State) -> list[ModelValue]:
        """Returns the nearest values of the model that have the shape of an operator's output."""
        found = self.index.like(op.call.shape, op.call.dtype.kind)
        return sorted(found, key=lambda value: self.distance(op, value, state))[:MOST_CANDIDATES]

    def distance(self, op: FileOp, value: ModelValue, state: _State) -> int:
        """Returns how many values the model computes between the operator's inputs and ``value``.

        The distance separates ``value`` from equally suitable values of other blocks.
        """
        made = [state.matches[t] for t in op.inputs if t in state.matches]
        gap = self.index.order(value) - max(map(self.index.order, made), default=0)
        return gap if gap >= 0 else len(self.order) * 100 - gap

    def suspects(self, op: FileOp, differing: list[FileOp], state: _State) -> list[FileOp]:
        """Returns the differing operators before ``op``, or ``op``, that may be the source."""
        before = self.before(op)
        found = [
            other
            for other in differing
            if other.place in before
            and other.place not in state.doubtful
            and other is not op
            and not self.moved(other, state)
        ]
        if op.call.name not in LAYOUT_OPS:
            found.append(op)
        elif not found:
            found.append(self.first_move(op, differing))
        # Otherwise an operator that only moves elements is not a source, because its input is not a
        # value of the model.
        return found

    def first_move(self, op: FileOp, differing: list[FileOp]) -> FileOp:
        """Returns the first of consecutive operators that only move elements into a wrong order."""
        maker = self.graph.producer.get(op.inputs[0])
        while maker is not None and maker in differing and maker.call.name in LAYOUT_OPS:
            op, maker = maker, self.graph.producer.get(maker.inputs[0])
        return op

    def source(self, repair: _Repair, differing: list[FileOp], state: _State) -> Source:
        op = repair.op
        suspects = self.suspects(op, differing, state)
        array = state.values[op.outputs[0]]
        error = np.inf
        if array is not None:
            error = difference(array.squeeze(), repair.value.array.squeeze())
        return Source(suspects[0], repair.value, error, tuple(suspects))

    def unrepaired(self, op: FileOp, state: _State) -> Source:
        """Returns a source behind which nothing can agree, such as the maker of the logits."""
        array = state.values[op.outputs[0]]
        candidates = self.index.like(op.call.shape, op.call.dtype.kind)
        if array is None or not candidates or op.call.dtype.kind != "f":
            return Source(op, None, None, (op,))
        apart = lambda value: float(np.linalg.norm(value.array.squeeze() - array.squeeze()))  # noqa: E731
        nearest = min(candidates, key=apart)
        error = difference(array.squeeze(), nearest.array.squeeze())
        return Source(op, nearest, error, (op,))

    def moved(self, op: FileOp, state: _State) -> bool:
        """Whether a differing output equals a value of the model except for its elements' order."""
        array = state.values[op.outputs[0]]
        return array is not None and self.index.moved(array)

    # Evaluation.

    def evaluate(self, put_in: Mapping[Tensor, ModelValue], base: _State | None = None) -> _State:
        """Computes the graph; ``put_in`` replaces outputs. With ``base``, only what changed."""
        values: dict[Tensor, np.ndarray | None] = {**self.given}
        status: dict[tuple[int, ...], str] = {}
        matches: dict[Tensor, ModelValue] = {}
        changed: set[Tensor] = set()
        for op in self.graph.ops:
            out = op.outputs[0]
            if base is not None and not (out in put_in or changed.intersection(op.inputs)):
                values[out], status[op.place] = base.values[out], base.status[op.place]
                if out in base.matches:
                    matches[out] = base.matches[out]
                continue
            if out in put_in:
                found, array = put_in[out], put_in[out].array.reshape(op.call.shape)
                values[out], status[op.place], matches[out] = array, AGREES, found
            else:
                values[out], status[op.place], match = self.judge(op, values)
                if match is not None:
                    matches[out] = match
            if base is None or matches.get(out) is not base.matches.get(out) or out not in matches:
                changed.add(out)
        return _State(values, status, matches, *self.differing(status))

    def judge(
        self, op: FileOp, values: Mapping[Tensor, np.ndarray | None]
    ) -> tuple[np.ndarray | None, str, ModelValue | None]:
        """Returns an operator's output and the equal value of the model, which then replaces it."""
        inputs = [self.value(tensor, values) for tensor in op.inputs]
        known = [array for array in inputs if array is not None]
        if len(known) < len(inputs):
            return None, UNJUDGED, None
        try:
            array = compute(op.call, known)
        except UnknownOpError:
            return None, UNJUDGED, None
        except (ValueError, IndexError):
            return None, DIFFERS, None
        found = self.index.find(array)
        if found is None:
            return array, DIFFERS, None
        return found.array.reshape(array.shape), AGREES, found

    def value(
        self, tensor: Tensor, values: Mapping[Tensor, np.ndarray | None]
    ) -> np.ndarray | None:
        if tensor in values:
            return values[tensor]
        if tensor in self._constants:
            return self._constants[tensor]
        array = self.graph.constant(tensor)
        if array is None or array.nbytes <= LARGEST_KEPT:
            self._constants[tensor] = array
        return array

    def differing(
        self, status: Mapping[tuple[int, ...], str]
    ) -> tuple[tuple[FileOp, ...], frozenset[tuple[int, ...]]]:
        """Returns operators that differ and lead to a difference, and the doubtful among them."""
        excused: set[tuple[int, ...]] = set()
        hopeful: set[tuple[int, ...]] = set()
        for op in reversed(self.graph.ops):
            users = [user for out in op.outputs for user in self.graph.consumers.get(out, ())]
            shown = bool(self.results.intersection(op.outputs))
            fine = status[op.place] in (AGREES, UNJUDGED)
            if fine or (not shown and all(user.place in excused for user in users)):
                excused.add(op.place)
            if fine or (not shown and any(user.place in hopeful for user in users)):
                hopeful.add(op.place)
        left = tuple(op for op in self.graph.ops if op.place not in excused)
        return left, frozenset(op.place for op in left if op.place in hopeful)

    # Repairs.

    def repaired(
        self, op: FileOp, value: ModelValue, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> _Repair:
        return _Repair(op, value, self.evaluate({**put_in, op.outputs[0]: value}, state))

    def rejoin(
        self, op: FileOp, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> Iterator[_Repair]:
        """Yields every model value that, as the output of ``op``, makes a user of it agree."""
        out = op.outputs[0]
        users = self.graph.consumers.get(out, [])
        scored: list[tuple[int, int, ModelValue]] = []
        for value in self.candidates(op, state):
            given = {**state.values, out: value.array.reshape(op.call.shape)}
            agree = sum(self.judge(user, given)[1] == AGREES for user in users)
            if agree:
                scored.append((-agree, len(scored), value))
        for _, _, value in sorted(scored)[:MOST_TRIED]:
            yield self.repaired(op, value, state, put_in)

    def blame(
        self, op: FileOp, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> Iterator[_Repair]:
        """Yields earlier operators that make ``op`` agree once a model value is their output."""
        traced = self.traced(op, None, state, FARTHEST_BACK)
        for maker, value in itertools.islice(traced, MOST_CANDIDATES):
            if maker.outputs[0] not in put_in:
                yield self.repaired(maker, value, state, put_in)

    def traced(
        self, op: FileOp, target: np.ndarray | None, state: _State, steps: int
    ) -> Iterator[tuple[FileOp, ModelValue]]:
        """Yields makers of inputs and values for them that give ``target`` (or any model value)."""
        if steps == 0:
            return
        for tensor in dict.fromkeys(op.inputs):
            maker = self.graph.producer.get(tensor)
            if maker is None:
                continue
            for value in self.candidates(maker, state):
                array = value.array.reshape(maker.call.shape)
                if array is state.values[tensor] or not self.gives(
                    op, {**state.values, tensor: array}, target
                ):
                    continue
                yield from self.traced(maker, array, state, steps - 1)
                yield maker, value

    def gives(
        self,
        op: FileOp,
        values: Mapping[Tensor, np.ndarray | None],
        target: np.ndarray | None,
    ) -> bool:
        array, status, _ = self.judge(op, values)
        if target is None or array is None:
            return status == AGREES
        return difference(array, target) <= ROUNDING

    def behind(self, op: FileOp) -> set[tuple[int, ...]]:
        """Returns the places of the operators that depend on ``op``."""
        found: set[tuple[int, ...]] = set()
        todo = [op]
        while todo:
            for out in todo.pop().outputs:
                for user in self.graph.consumers.get(out, ()):
                    if user.place not in found:
                        found.add(user.place)
                        todo.append(user)
        return found

    def before(self, op: FileOp) -> set[tuple[int, ...]]:
        """Returns the places of the operators that ``op`` depends on, itself included."""
        found = {op.place}
        todo = [op]
        while todo:
            for tensor in todo.pop().inputs:
                maker = self.graph.producer.get(tensor)
                if maker is not None and maker.place not in found:
                    found.add(maker.place)
                    todo.append(maker)
        return found
