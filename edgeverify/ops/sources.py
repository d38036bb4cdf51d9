"""Finds the operators of a file that are the source of a difference from the model.

Both are computed in float64 on the same inputs, so that no threshold for float32's noise is needed.
An operator agrees if its output is a value of the model. It is a source if it differs while its
inputs agree. Three things need care:

- The converter merges and moves operators, so some outputs of a right file are no value of the
  model. They are no difference as long as everything that is made of them agrees.
- A wrong output may be another value of the model (V where K belongs); it then shows at a later
  operator. So inputs are replaced by other values of the model, and where that makes the operator
  agree, the one that made the input is to blame.
- Behind a source nothing agrees. Its right output is looked for among the model's values, the one
  that makes most operators behind it agree; with it put in, further sources are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeverify.ops.graph import FileOp, FlatGraph, Tensor
from edgeverify.ops.kernels import UnknownOpError, compute
from edgeverify.ops.match import ROUNDING, ValueIndex, difference
from edgeverify.ops.model_values import ModelValue, StepValues

AGREES, MOVED, DIFFERS, UNJUDGED = "agrees", "moved", "differs", "unjudged"
# How far back a wrong input is followed, and how many operators behind a source may have no
# counterpart in the model before it is rejoined. A norm's or an index's rewriting takes up to 9.
FARTHEST_BACK = 12
FARTHEST_AHEAD = 16
MOST_SOURCES = 32


@dataclass(frozen=True)
class Source:
    """An operator whose inputs agree and whose output differs.

    Attributes:
        op: the operator.
        expected: the value of the model that it should give; None if it is not known.
        error: the largest difference from it, over the largest value of the row.
        suspects: where no value of the model lies between them, all operators it may be, this one
            included; else only this one.
    """

    op: FileOp
    expected: ModelValue | None
    error: float | None
    suspects: tuple[FileOp, ...]

    @property
    def error_ratio(self) -> float | None:
        """``error`` over what the rounding of a constant explains."""
        return None if self.error is None else self.error / ROUNDING


@dataclass(frozen=True)
class _State:
    """One evaluation of the graph."""

    values: Mapping[Tensor, np.ndarray | None]
    status: Mapping[tuple[int, ...], str]
    differing: tuple[FileOp, ...]


@dataclass(frozen=True)
class _Repair:
    """An operator's output replaced by a value of the model, and what then still differs."""

    op: FileOp
    value: ModelValue
    state: _State


def find_sources(graph: FlatGraph, step: StepValues) -> tuple[Source, ...]:
    """The sources of one step, in execution order of their discovery.

    Args:
        graph: the signature's.
        step: what the model computes there, in float64.
    """
    return _Search(graph, step).run()


class _Search:
    def __init__(self, graph: FlatGraph, step: StepValues) -> None:
        self.graph = graph
        given = [ModelValue("", name, array) for name, array in step.inputs.items()]
        self.index = ValueIndex([*given, *step.values])
        self.given = {
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
            first = next((op for op in differing if state.status[op.place] == DIFFERS), differing[0])
            repair = self.best([*self.blame(first, state, put_in), *self.rejoin(first, state, put_in)])
            if repair is not None and len(repair.state.differing) < len(state.differing):
                found.append(self.source(repair.op, state, repair.value))
            else:
                repair, suspects = self.rejoin_later(first, differing, state, put_in)
                found.append(Source(first, None, None, suspects))
                if repair is None:
                    given_up |= {first.place, *self.behind(first)}
                    continue
            put_in[repair.op.outputs[0]] = repair.value
            state = repair.state
        return tuple(found)

    # Evaluation.

    def evaluate(
        self, put_in: Mapping[Tensor, ModelValue], base: _State | None = None
    ) -> _State:
        """Computes the graph; ``put_in`` replaces outputs. With ``base``, only what changed."""
        values: dict[Tensor, np.ndarray | None] = {**self.given}
        status: dict[tuple[int, ...], str] = {}
        changed: set[Tensor] = set()
        for op in self.graph.ops:
            out = op.outputs[0]
            if base is not None and not (out in put_in or changed.intersection(op.inputs)):
                values[out], status[op.place] = base.values[out], base.status[op.place]
                continue
            if out in put_in:
                array = put_in[out].array.reshape(op.call.shape)
                values[out], status[op.place] = array, AGREES
            else:
                values[out], status[op.place] = self.judge(op, values)
            if base is not None and values[out] is not base.values[out]:
                changed.add(out)
        return _State(values, status, self.differing(status))

    def judge(
        self, op: FileOp, values: Mapping[Tensor, np.ndarray | None]
    ) -> tuple[np.ndarray | None, str]:
        """An operator's output and whether it is a value of the model, which then replaces it."""
        inputs = [self.value(tensor, values) for tensor in op.inputs]
        known = [array for array in inputs if array is not None]
        if len(known) < len(inputs):
            return None, UNJUDGED
        try:
            array = compute(op.call, known)
        except UnknownOpError:
            return None, UNJUDGED
        except (ValueError, IndexError):
            return None, DIFFERS
        found = self.index.find(array)
        if found is not None:
            return found.array.reshape(array.shape), AGREES
        return array, MOVED if self.index.moved(array) else DIFFERS

    def value(
        self, tensor: Tensor, values: Mapping[Tensor, np.ndarray | None]
    ) -> np.ndarray | None:
        if tensor in values:
            return values[tensor]
        if tensor not in self._constants:
            self._constants[tensor] = self.graph.constant(tensor)
        return self._constants[tensor]

    def differing(self, status: Mapping[tuple[int, ...], str]) -> tuple[FileOp, ...]:
        """Operators that differ, or are made into something that does."""
        excused: set[tuple[int, ...]] = set()
        for op in reversed(self.graph.ops):
            users = [user for out in op.outputs for user in self.graph.consumers.get(out, ())]
            shown = self.results.intersection(op.outputs)
            if status[op.place] in (AGREES, UNJUDGED) or (
                not shown and all(user.place in excused for user in users)
            ):
                excused.add(op.place)
        return tuple(op for op in self.graph.ops if op.place not in excused)

    # Repairs.

    def best(self, repairs: list[_Repair]) -> _Repair | None:
        """The one that leaves least; of equal ones the earliest, since later ones follow from it."""
        return min(
            repairs,
            key=lambda r: (len(r.state.differing), self.order[r.op.place]),
            default=None,
        )

    def repaired(
        self, op: FileOp, value: ModelValue, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> _Repair:
        return _Repair(op, value, self.evaluate({**put_in, op.outputs[0]: value}, state))

    def rejoin(
        self, op: FileOp, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> Iterator[_Repair]:
        """Every value of the model that, as the output of ``op``, makes a user of it agree."""
        out = op.outputs[0]
        users = self.graph.consumers.get(out, [])
        for value in self.index.like(op.call.shape, op.call.dtype.kind):
            array = value.array.reshape(op.call.shape)
            if out in self.results and not users:
                continue
            if any(self.judge(user, {**state.values, out: array})[1] == AGREES for user in users):
                yield self.repaired(op, value, state, put_in)

    def blame(
        self, op: FileOp, state: _State, put_in: Mapping[Tensor, ModelValue]
    ) -> Iterator[_Repair]:
        """Earlier operators whose output, replaced by a value of the model, makes ``op`` agree."""
        for maker, value in self.traced(op, None, state, FARTHEST_BACK):
            if maker.outputs[0] not in put_in:
                yield self.repaired(maker, value, state, put_in)

    def traced(
        self, op: FileOp, target: np.ndarray | None, state: _State, steps: int
    ) -> Iterator[tuple[FileOp, ModelValue]]:
        """Makers of inputs that, replaced, give ``target`` (or any value of the model)."""
        if steps == 0:
            return
        for tensor in dict.fromkeys(op.inputs):
            maker = self.graph.producer.get(tensor)
            if maker is None:
                continue
            for value in self.index.like(maker.call.shape, maker.call.dtype.kind):
                array = value.array.reshape(maker.call.shape)
                if array is state.values[tensor] or not self.gives(
                    op, {**state.values, tensor: array}, target
                ):
                    continue
                yield maker, value
                yield from self.traced(maker, array, state, steps - 1)

    def gives(
        self,
        op: FileOp,
        values: Mapping[Tensor, np.ndarray | None],
        target: np.ndarray | None,
    ) -> bool:
        array, status = self.judge(op, values)
        if target is None or array is None:
            return status == AGREES
        return difference(array, target) <= ROUNDING

    def rejoin_later(
        self,
        first: FileOp,
        differing: list[FileOp],
        state: _State,
        put_in: Mapping[Tensor, ModelValue],
    ) -> tuple[_Repair | None, tuple[FileOp, ...]]:
        """The nearest operator behind ``first`` that can be put right, and those up to it."""
        behind = self.behind(first)
        later = [op for op in differing if op.place in behind][:FARTHEST_AHEAD]
        for op in later:
            repair = self.best(list(self.rejoin(op, state, put_in)))
            if repair is not None and len(repair.state.differing) < len(state.differing):
                before = self.before(op)
                between = [o for o in differing if o.place in before and state.status[o.place] == DIFFERS]
                return repair, tuple(dict.fromkeys([first, *between]))
        return None, (first,)

    def behind(self, op: FileOp) -> set[tuple[int, ...]]:
        """Places of the operators that depend on ``op``."""
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
        """Places of the operators that ``op`` depends on, itself included."""
        found = {op.place}
        todo = [op]
        while todo:
            for tensor in todo.pop().inputs:
                maker = self.graph.producer.get(tensor)
                if maker is not None and maker.place not in found:
                    found.add(maker.place)
                    todo.append(maker)
        return found

    def source(self, op: FileOp, state: _State, value: ModelValue) -> Source:
        array = state.values[op.outputs[0]]
        error = np.inf
        if array is not None:
            error = difference(array.squeeze(), value.array.squeeze())
        return Source(op, value, error, (op,))
