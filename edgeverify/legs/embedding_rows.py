"""Compares every row of a port's embedding with the table, by the port's own forward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from edgeverify.backends.reauthored_embeddings import looked_up
from edgeverify.core import taps
from edgeverify.core.case import Case
from edgeverify.core.compare import thresholds
from edgeverify.core.edges import EMBEDDING_ROWS
from edgeverify.core.errors import PortError
from edgeverify.core.judge import Baseline
from edgeverify.core.leg import AUTHORING
from edgeverify.core.noise import rms
from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS, Check

WHERE = "module"
# How far the reference's embeddings may be from a multiple of the table's rows, relatively: float64
# sums of a few thousand products.
EXACT = 1e-12


def embedding_rows(
    model: nn.Module, case: Case, state: Mapping[str, torch.Tensor], baseline: Baseline
) -> Check:
    """Looks up all ids in the port and in the table that the reference takes its embeddings from.

    Which tensor that is, and what its rows are multiplied with, the reference's own embeddings of
    the case's tokens tell.

    Args:
        model: the re-authored model.
        case: that the baseline is of.
        state: the checkpoint, HF names → float32 tensors.
        baseline: of the leg authoring.
    """
    oracle = baseline.oracle
    keys = [f"{step.name}/{taps.EMBED}" for step in case.steps]
    exact = np.concatenate([oracle[key][0] for key in keys])
    found = _table(state, np.array(case.tokens), exact)
    if found is None:
        reason = "the reference's embeddings are no multiple of the rows of a table"
        return Check(EMBEDDING_ROWS, WHERE, NOT_APPLICABLE, reason=reason)
    table, factor = found
    allowed = thresholds(AUTHORING).row
    floor = rms(np.concatenate([baseline.floor[key] for key in keys]))
    worst, odd, first, at = 0.0, 0, -1, 0
    try:
        for piece in looked_up(model, case, table.shape[1], table.shape[0]):
            rows = table[at : at + len(piece)]
            moved = np.flatnonzero((piece != (rows.double() * factor).float().numpy()).any(axis=1))
            exact_rows = rows.numpy()[moved].astype(np.float64) * factor
            ratios = _ratios(piece[moved].astype(np.float64), exact_rows, floor)
            wrong = np.flatnonzero(~(ratios <= allowed))
            if len(wrong) and first < 0:
                first, worst = at + int(moved[wrong[0]]), float(ratios[wrong[0]])
            odd += len(wrong)
            at += len(piece)
    except PortError as error:
        return Check(EMBEDDING_ROWS, WHERE, NOT_APPLICABLE, reason=error.what)
    if not odd:
        return Check(EMBEDDING_ROWS, WHERE, PASS, reason=f"{at} ids")
    reason = (
        f"{odd} of {at} ids are embedded as other rows: id {first} differs {worst:.3g} times as "
        f"much as rounding explains (allowed {allowed:g})"
    )
    return Check(EMBEDDING_ROWS, WHERE, FAIL, reason=reason)


def _table(
    state: Mapping[str, torch.Tensor], tokens: np.ndarray, exact: np.ndarray
) -> tuple[torch.Tensor, float] | None:
    """Returns the tensor whose rows, times a factor, are the embeddings; and the factor."""
    for tensor in state.values():
        if tensor.dim() != 2 or tensor.shape[1] != exact.shape[1] or len(tensor) <= tokens.max():
            continue
        rows = tensor[torch.from_numpy(tokens)].numpy().astype(np.float64)
        size = np.vdot(rows, rows)
        factor = np.vdot(rows, exact) / size if size else 0.0
        if factor and np.linalg.norm(exact - factor * rows) <= EXACT * np.linalg.norm(exact):
            return tensor, float(factor)
    return None


def _ratios(given: np.ndarray, exact: np.ndarray, floor: float) -> np.ndarray:
    """Returns each row's error over its floor, as in ``core.noise``; NaN if a value is NaN."""
    size = np.linalg.norm(exact, axis=1)
    size[size == 0] = 1.0
    rounding = np.linalg.norm(exact.astype(np.float32) - exact, axis=1) / size
    error = np.linalg.norm(given - exact, axis=1) / size
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = error / np.maximum(rounding, floor)
    return np.where(error == 0, 0.0, ratios)
