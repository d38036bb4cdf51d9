"""Draws seeded random weights: a whole model of any size without a download.

The values are chosen so that every part of the model is *observable* in its activations:

- matrices, tables and heads are N(0, 1/columns). A matrix then preserves the scale of its input
  (norms give about 1), so scores and logits have a standard deviation near 1, at which softmax is
  neither flat nor one-hot and a softcap has an effect (measured: 0.6 caps for both in the tiny
  Gemma 2). The embeddings are 1 in Gemma, which multiplies the table by sqrt(hidden), and small
  elsewhere (0.02 at 2560 columns), so that the eps of the first norm has an effect;
- norm weights are ±(1 + 0.2·N), less 1 where the model adds it. They are never the neutral value,
  so that a norm whose weight was not loaded is detected. The signs keep a tied head from echoing
  its input: with positive weights the greedy token is the input in 48 of 48 rows of the tiny Gemma
  1;
- biases are 0.1·N, never zero.

Each tensor has its own generator, seeded with (seed, name). So a tensor does not depend on other
tensors, on their order or on the number of threads. The generator is numpy's, because torch's has
SIMD-dependent code paths that differ in the last bit between machines.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

SCHEME = "seeded-2"
NORM_SPREAD = 0.2
BIAS_STD = 0.1
# numpy releases the interpreter lock while it draws.
_THREADS = 2
# Values drawn at a time; the stream of values is the same for every size.
_PIECE = 1 << 24


@dataclass(frozen=True)
class Draw:
    """Says how one float32 tensor is drawn.

    Attributes:
        shape: the shape of the tensor.
        std: the standard deviation of the normal distribution.
        norm: True: the tensor is ±(1 + std · N(0, 1)); False: it is std · N(0, 1).
        offset: the number added to that.
    """

    shape: tuple[int, ...]
    std: float
    norm: bool = False
    offset: float = 0.0


def plan_draws(model: nn.Module) -> dict[str, Draw]:
    """Decides, from the reference model's modules, how each parameter is drawn.

    Args:
        model: the reference, on the meta device.

    Returns:
        Parameter name → draw, in forward order; a tied parameter occurs once, under its first name.
    """
    draws: dict[str, Draw] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        shape = tuple(parameter.shape)
        if leaf.endswith("bias"):
            draws[name] = Draw(shape, BIAS_STD)
        elif len(shape) == 1:
            offset = -1.0 if _adds_one(model.get_submodule(owner)) else 0.0
            draws[name] = Draw(shape, NORM_SPREAD, norm=True, offset=offset)
        else:
            draws[name] = Draw(shape, (parameter.numel() // shape[0]) ** -0.5)
    return draws


def draw_tensors(draws: Mapping[str, Draw], seed: int) -> dict[str, torch.Tensor]:
    """Draws all tensors, in float32 and in the order of ``draws``."""
    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = pool.map(lambda name: draw_tensor(name, draws[name], seed), draws)
        return dict(zip(draws, drawn, strict=True))


def draw_tensor(name: str, draw: Draw, seed: int) -> torch.Tensor:
    """Draws one tensor in place: no second copy of it is ever resident."""
    values = np.empty(draw.shape, dtype=np.float32)
    draw_into(values, name, draw, seed)
    return torch.from_numpy(values)


def draw_into(
    values: np.ndarray,
    name: str,
    draw: Draw,
    seed: int,
    done: Callable[[np.ndarray], None] = lambda _: None,
) -> None:
    """Draws one tensor into ``values`` (contiguous float32); calls ``done`` with each piece."""
    entropy = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(entropy, "little")))
    flat = values.reshape(-1)
    # A norm's signs follow all of its values in the generator's stream.
    size = len(flat) if draw.norm else _PIECE
    for start in range(0, len(flat), size):
        piece = flat[start : start + size]
        generator.standard_normal(out=piece, dtype=np.float32)
        piece *= np.float32(draw.std)
        if draw.norm:
            piece += np.float32(1.0)
            piece *= generator.choice(np.array([-1.0, 1.0], np.float32), size=len(piece))
            piece += np.float32(draw.offset)
        done(piece)


def _adds_one(norm: nn.Module) -> bool:
    """Checks whether a norm scales by ``1 + weight``, so that weight 0 passes its input."""
    probe = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        ramp = torch.arange(1.0, 1.0 + next(probe.parameters()).shape[0])
        return bool(probe(ramp[None]).any())
