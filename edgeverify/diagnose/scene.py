"""The data of a diagnosis as tensors: the oracle, the port tap by tap, the weights of both.

All steps of the conversation are joined: a tap is one tensor of T rows, for T tokens in total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeverify.core import noise, taps
from edgeverify.core.case import Case, Step
from edgeverify.core.compare import thresholds
from edgeverify.core.trace import Trace
from edgeverify.diagnose.clock import Clock
from edgeverify.diagnose.weights import PortWeights
from edgeverify.hf.roles import Roles


@dataclass(frozen=True)
class Inputs:
    """The oracle's taps as inputs of a sublayer.

    Attributes:
        oracle: the oracle's trace.
        case: the conversation.
        dtype: float64 gives the oracle's own values, or, with ``rounded``, those values rounded to
            float32, which the port receives; float32 gives the rounded values.
        rounded: see ``dtype``.
        wanted: (R,) the only rows of a result that are read; None for all. A sublayer for which a
            row is expensive may leave the others zero.
    """

    oracle: Trace
    case: Case
    dtype: torch.dtype = torch.float64
    rounded: bool = False
    wanted: torch.Tensor | None = None

    def tap(self, name: str) -> torch.Tensor:
        """Returns the tap of all steps, (T, ...) of ``dtype``."""
        parts = [self.oracle[f"{step.name}/{name}"][0] for step in self.case.steps]
        array = np.concatenate(parts)
        if self.rounded or self.dtype == torch.float32:
            array = array.astype(np.float32)
        return torch.from_numpy(array).to(self.dtype)

    @property
    def tokens(self) -> torch.Tensor:
        """(T,) ids."""
        return torch.tensor(self.case.tokens)

    @property
    def positions(self) -> torch.Tensor:
        """(T,) positions of ``dtype``."""
        return torch.arange(len(self.case.tokens)).to(self.dtype)

    @property
    def starts(self) -> torch.Tensor:
        """(T,) the position at which each row's step begins, of ``dtype``."""
        return torch.cat(
            [torch.full((len(step.tokens),), step.start, dtype=self.dtype) for step in self.steps]
        )

    @property
    def prefill(self) -> torch.Tensor:
        """(T,) 1 for the rows of prefill steps, 0 for those of decode steps, of ``dtype``."""
        return torch.cat(
            [
                torch.full((len(step.tokens),), float(not step.is_decode), dtype=self.dtype)
                for step in self.steps
            ]
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.case.steps


@dataclass(frozen=True)
class Seen:
    """One tap of the port and of the oracle.

    Attributes:
        tap: without its step.
        rows: (R,) which rows of a sublayer's result the port returned.
        positions: (R,) in the conversation.
        port: (R, ...) float64, what the port computed from the oracle's inputs.
        truth: (R, ...) float64.
        floor: (R,) relative.
        failing: (R,) whether the row's step failed.
        decode: (R,) whether the row's step is a decode step.
    """

    tap: str
    rows: torch.Tensor
    positions: np.ndarray
    port: torch.Tensor
    truth: torch.Tensor
    floor: np.ndarray
    failing: np.ndarray
    decode: np.ndarray

    def only(self, wanted: np.ndarray) -> Seen:
        """Returns a copy cut to the rows where ``wanted`` (R,) is true."""
        keep = torch.from_numpy(wanted)
        return Seen(
            self.tap,
            self.rows[keep],
            self.positions[wanted],
            self.port[keep],
            self.truth[keep],
            self.floor[wanted],
            self.failing[wanted],
            self.decode[wanted],
        )

    def sampled(self, most: int) -> Seen:
        """Returns a copy cut to at most so many rows: three of four differ, as far as they do.

        The first and the last row of each kind are among them, the others are spread evenly.
        """
        if len(self.rows) <= most:
            return self
        bad, keep = self.bad(), np.zeros(len(self.rows), bool)
        odd, right = np.flatnonzero(bad), np.flatnonzero(~bad)
        from_odd = min(len(odd), max(most * 3 // 4, most - len(right)))
        for rows, count in ((odd, from_odd), (right, most - from_odd)):
            keep[rows[_spread(len(rows), count)]] = True
        return self.only(keep)

    def bad(self) -> np.ndarray:
        """(R,) whether the row's own error is above the limit of a row."""
        errors = self.errors()
        return errors.ratios(errors.rms_floor) > thresholds("isolated").row

    def errors(self) -> noise.RowErrors:
        return noise.measure(self.port[None].numpy(), self.truth[None].numpy(), self.floor)


def _spread(size: int, count: int) -> np.ndarray:
    """Up to ``count`` indices below ``size``, evenly spread, with the first and the last."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(int)


@dataclass(frozen=True)
class Scene:
    """One port that failed.

    Attributes:
        model: the re-authored model, loaded.
        hf: the HF config.
        roles: the checkpoint's tensors by their role.
        case: the conversation.
        oracle: the oracle's trace.
        port: the port's trace; each tap is computed from the oracle's inputs to its sublayer.
        floor: the error that a correct run may have if the oracle feeds its blocks.
        failed: the ``step/tap`` keys of ``port`` that fail.
        clock: of the diagnosis.
    """

    model: nn.Module
    hf: Mapping[str, Any]
    roles: Roles
    case: Case
    oracle: Trace
    port: Trace
    floor: noise.Floor
    failed: frozenset[str]
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def port_weights(self) -> PortWeights:
        return PortWeights(self.model)

    @cached_property
    def blocks(self) -> int:
        return sum(key.startswith(f"{self.case.steps[0].name}/kv.") for key in self.oracle) // 2

    def inputs(
        self,
        dtype: torch.dtype = torch.float64,
        *,
        rounded: bool = False,
        wanted: torch.Tensor | None = None,
    ) -> Inputs:
        return Inputs(self.oracle, self.case, dtype, rounded, wanted)

    def faulty(self) -> list[str]:
        """Returns the taps that fail at some step, in forward order, without their steps."""
        names = taps.standard_taps(self.blocks)
        found = {taps.split(key)[1] for key in self.failed}
        return [name for name in names if name in found]

    def seen(self, tap: str) -> Seen | None:
        """Returns the tap at all steps that have it, or None if it cannot be compared."""
        rows, positions, port, truth, floor, failing, decode = [], [], [], [], [], [], []
        row = 0  # a cache's rows are the rows of all steps' caches, joined
        for step in self.case.steps:
            key = f"{step.name}/{tap}"
            if key not in self.port or key not in self.oracle or key not in self.floor:
                continue
            mine, right = self.port[key], self.oracle[key]
            if mine.dtype != np.float32 or mine.shape != right.shape:
                return None
            if not np.isfinite(mine).all():
                return None
            count = mine.shape[1]
            start = 0 if tap.startswith("kv.") else step.start
            first = row if tap.startswith("kv.") else start
            row += count
            rows.append(torch.arange(first, first + count))
            positions.append(np.arange(start, start + count))
            port.append(torch.from_numpy(mine[0].astype(np.float64)))
            truth.append(torch.from_numpy(right[0]))
            floor.append(self.floor[key])
            failing.append(np.full(count, key in self.failed))
            decode.append(np.full(count, step.is_decode))
        if not rows:
            return None
        return Seen(
            tap,
            torch.cat(rows),
            np.concatenate(positions),
            torch.cat(port),
            torch.cat(truth),
            np.concatenate(floor),
            np.concatenate(failing),
            np.concatenate(decode),
        )
