"""Audits the weights: every tensor of the checkpoint, exactly once, bit by bit.

A tensor is compared with the rows of the parameter, or of the file's constant, where it belongs
(see ``places``). If those rows differ, the audit says whether single values differ or another
tensor is there. A tensor without a known place is searched for by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from edgeverify.audits.bitwise import difference
from edgeverify.audits.weight_map import Places, Span, block_of, places, uncovered
from edgeverify.core.results import FAIL, PASS, WEIGHTS, AuditResult, Check
from edgeverify.core.store.mapped import forget
from edgeverify.litert.flatbuffer.weights import HEAD

State = Mapping[str, torch.Tensor]
Fold = Callable[[np.ndarray], np.ndarray]


def audit_module(model: nn.Module, state: State) -> AuditResult:
    """Compares a loaded module with the checkpoint.

    Args:
        model: the re-authored model; ``config`` is its ``ModelConfig``.
        state: the checkpoint, HF names → float32 tensors; without a tied head.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    planned = places({name: tuple(t.shape) for name, t in state.items()}, model.config)
    planned = {name: spans for name, spans in planned.items() if name in parameters}
    audit = Audit(state, "module")
    for name, spans in planned.items():
        audit.compare(name, parameters[name], spans)
        forget(parameters[name], *(state[span.tensor] for span in spans))
    used = [span for name, spans in planned.items() if not _tied(name, planned) for span in spans]
    homeless = uncovered(used, {name: len(tensor) for name, tensor in state.items()})
    spare = {name: p for name, p in parameters.items() if name not in planned}
    audit.search(homeless, spare)
    return AuditResult(WEIGHTS, tuple(audit.checks))


def _tied(name: str, planned: Places) -> bool:
    return name == HEAD and not planned[name][0].tensor.startswith("lm_head")


@dataclass
class Audit:
    """Collects the checks of one place.

    Attributes:
        state: the checkpoint.
        where: ``module`` or ``file``.
        checks: the checks so far.
    """

    state: State
    where: str
    checks: list[Check] = field(default_factory=list)

    def compare(
        self,
        name: str,
        holder: torch.Tensor | np.ndarray,
        spans: tuple[Span, ...],
        fold: Fold | None = None,
        note: str = "",
    ) -> None:
        """Compares a parameter or constant with the tensors that belong in it.

        Args:
            name: the parameter's name.
            holder: the loaded parameter or converted constant.
            spans: the rows that belong there, in order.
            fold: the declared change of the values, if there is one.
            note: text for a check that passes.
        """
        where = f"{self.where}, {name}"
        shape = tuple(holder.shape)
        kind = str(holder.dtype).removeprefix("torch.")
        rows = sum(_length(span, self.state) for span in spans)
        wanted = (rows, *self.state[spans[0].tensor].shape[1:])
        if kind != "float32" or shape != wanted:
            told = " + ".join(dict.fromkeys(span.tensor for span in spans))
            text = f"float32 {_shape(wanted)}", f"{kind} {_shape(shape)}"
            self.checks.append(Check(told, where, FAIL, *text))
            return
        for span in spans:
            rest = holder if span.target is None else holder[slice(*span.target)]
            self._span(span, rest, where, fold, note)

    def _span(
        self, span: Span, held: torch.Tensor | np.ndarray, where: str, fold: Fold | None, note: str
    ) -> None:
        tensor = self.state[span.tensor]
        tensor = tensor if span.source is None else tensor[slice(*span.source)]
        if isinstance(held, torch.Tensor):
            if held.data_ptr() == tensor.data_ptr() and held.stride() == tensor.stride():
                self.checks.append(Check(span.tensor, where, PASS))
                return
            held = held.detach().numpy()
        expected = tensor.numpy()
        found = difference(expected if fold is None else fold(expected), held)
        if found is None:
            self.checks.append(Check(span.tensor, where, PASS, reason=note))
            return
        other = None if found.slight else self._name_of(held, expected, fold)
        rows = "" if span.source is None else f"rows {span.source[0]} to {span.source[1]}, "
        if other is not None:
            check = Check(span.tensor, where, FAIL, rows + span.tensor, other)
        else:
            at = list(found.index)
            check = Check(
                span.tensor,
                where,
                FAIL,
                f"{np.float32(found.expected)!s} at {at}",
                f"{np.float32(found.found)!s}",
                f"{rows}{found}",
            )
        self.checks.append(check)

    def _name_of(self, held: np.ndarray, expected: np.ndarray, fold: Fold | None) -> str | None:
        """Returns the tensor of the checkpoint that is here instead."""
        for name, tensor in self.state.items():
            if tuple(tensor.shape) == held.shape:
                values = tensor.numpy() if fold is None else fold(tensor.numpy())
                if difference(values, held) is None:
                    return name
        turned = np.ascontiguousarray(expected.T).reshape(expected.shape)
        same = difference(turned if fold is None else fold(turned), held) is None
        return "its transpose" if same else None

    def search(self, homeless: Mapping[str, str], spare: Mapping[str, torch.Tensor]) -> None:
        """Searches for tensors without a known place among parameters without known content.

        Args:
            homeless: HF name → why its place is not known.
            spare: the remaining parameters; one that no tensor fills is a leftover.
        """
        filled: dict[str, int] = dict.fromkeys(spare, 0)
        for name, reason in homeless.items():
            found = [
                (parameter, row)
                for parameter, held in spare.items()
                if block_of(parameter) in (None, block_of(name))
                and (row := _row_of(self.state[name], held)) is not None
            ]
            if len(found) == 1 and reason.startswith("is in no"):
                parameter, row = found[0]
                filled[parameter] += len(self.state[name])
                where = f"{self.where}, {parameter}"
                self.checks.append(
                    Check(name, where, PASS, reason=f"found by its bytes, row {row}")
                )
            else:
                many = f"is in {len(found)}: " + ", ".join(p for p, _ in found)
                self.checks.append(
                    Check(name, self.where, FAIL, "once", many if found else "", reason)
                )
        self.checks += [
            Check(name, self.where, FAIL, "", name, "holds no tensor of the checkpoint")
            for name, rows in filled.items()
            if rows != len(spare[name])
        ]


def _length(span: Span, state: State) -> int:
    return len(state[span.tensor]) if span.source is None else span.source[1] - span.source[0]


def _row_of(tensor: torch.Tensor, held: torch.Tensor) -> int | None:
    """Returns the row of ``held`` at which all of ``tensor`` begins, bit by bit."""
    if tensor.shape[1:] != held.shape[1:] or len(tensor) > len(held) or held.dtype != tensor.dtype:
        return None
    bits, inside = tensor.detach().view(torch.int32), held.detach().view(torch.int32)
    first = inside == bits[0]
    starts = (first if first.dim() == 1 else first.flatten(1).all(1)).nonzero()[:, 0]
    for start in starts.tolist():
        if torch.equal(inside[start : start + len(bits)], bits):
            return int(start)
    return None


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
