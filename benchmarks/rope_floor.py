"""Measures how far correct implementations of RoPE are from the floor: ratios, measured.

``python benchmarks/rope_floor.py [--draws N]`` first tries the edges of each contract of
``edgeverify.suites.invariants.rope``, then N drawn arguments. It does so on every port at ``tiny``
and at the geometry of every published size (one block with a narrow feed-forward), on the port's
own block and on Hugging Face's rotary. It prints the largest ratios beside the limits: error over
floor at one row, the same as rms over all rows of a draw of 8 rows or more, and the change of a
pair's norm in units of 2^-24.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import edgeverify_models as models
from edgeverify.core.compare import MIN_ROWS_FOR_RMS, thresholds
from edgeverify.core.noise import RowErrors
from edgeverify.hf.checkpoints import open_checkpoint
from edgeverify.suites.invariants import rope
from edgeverify.suites.invariants.model import Facts, Invariant, NotApplicableError
from edgeverify.suites.invariants.rotaries import ReauthoredRotation
from edgeverify_models.port import Port

ONE_BLOCK = {"intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 101}
ONE_OPENELM_BLOCK = {
    "ffn_multipliers": [0.1],
    "num_transformer_layers": 1,
    "qkv_multipliers": None,
    "vocab_size": 101,
}


def geometry(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of one small block with the same heads, base, share and positions."""
    if hf["model_type"] != "openelm":
        return {**hf, **ONE_BLOCK}
    heads = {key: hf[key][:1] for key in ("num_query_heads", "num_kv_heads")}
    return {**hf, **ONE_OPENELM_BLOCK, **heads}


class Largest:
    """The largest of the values that the contracts judged."""

    def __init__(self) -> None:
        self.row = self.rms = self.norm = 0.0

    def judged(self, seen: np.ndarray, right: np.ndarray, floor: np.ndarray, *_: Any) -> None:
        ratios = RowErrors(rope.row_norms(seen - right), floor).ratios(0.0)
        self.row = max(self.row, float(ratios.max()))
        if len(ratios) >= MIN_ROWS_FOR_RMS:
            self.rms = max(self.rms, float(np.sqrt(np.mean(ratios**2))))

    def normed(self, change: np.ndarray) -> None:
        self.norm = max(self.norm, float(change.max()) / rope.HALF_ULP)


def measure(rotation: rope.Rotation, facts: Facts, invariant: Invariant, draws: int) -> Largest:
    """Tries the edges and ``draws`` drawn arguments; raises a violation of any other kind."""
    largest = Largest()

    @seed(0)
    @settings(
        max_examples=draws,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(invariant.arguments(facts))
    def drawn(arguments: dict[str, Any]) -> None:
        invariant.holds(rotation, **arguments)

    with (
        mock.patch.object(rope, "_judge", lambda *a, **k: largest.judged(*a)),
        mock.patch.object(rope, "_judge_norms", lambda change, *_: largest.normed(change)),
    ):
        for arguments in invariant.edges(facts):
            invariant.holds(rotation, **arguments)
        drawn()
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the products are small
    limits = thresholds("authoring")
    print(f"allowed: row {limits.row:g}, rms {limits.rms:g}, norm {4 * 2**0.5:.3g}")
    for name in models.CATALOGUE:
        for size in models.load(name).hf_configs:
            port = models.load(name)
            if size != "tiny":
                hf = {**port.hf_configs, "tiny": geometry(port.hf_configs[size])}
                port = replace(port, hf_configs=hf)
            report(port, size, draws)


def report(port: Port, size: str, draws: int) -> None:
    checkpoint = open_checkpoint(None, port, size="tiny")
    rotation = ReauthoredRotation(port, checkpoint.hf_config, checkpoint.tensors())
    blocks = port.model_config(checkpoint.hf_config).num_layers
    facts = Facts(port.name, blocks, 0, 0, (), (None,) * blocks, rotation.rotary)
    for label, subject in (("port", rotation), ("HF", rotation.reference)):
        told = []
        for invariant in rope.ROPE:
            try:
                largest = measure(subject, facts, invariant, draws)
            except NotApplicableError:
                continue
            short = invariant.name.removeprefix("rope.")
            if largest.row:
                told.append(f"{short} {largest.row:.2f}/{largest.rms:.2f}")
            elif largest.norm:
                told.append(f"{short} {largest.norm:.2f}")
            else:
                told.append(f"{short} exact")
        print(f"{port.name} {size} {label}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
