"""A named cause as plain data, and which fields and kinds of cause are the same thing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

CONFIG, WEIGHTS, MISPLACED = "config", "weights", "misplaced"
CODE, OPERATOR, OTHER = "code", "operator", "other"
LAYER = re.compile(r"\.(\d+)\.")
# Field of the config audit, or the end of one → what a reader knows it as, and the kinds of cause
# that are the same thing in the words of the diagnosis.
FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "norm eps": ("norm eps", ("norm.eps",)),
    "norm factor": ("norm factor", ("norm.offset",)),
    "norm": ("norm", ("norm.kind", "norm.missing", "norm.place")),
    "rotary base": ("rotary base", ("rope.base",)),
    "rotary elements": ("rotary elements", ("rope.share",)),
    "rotary scaling": ("rotary scaling", ("rope.positions",)),
    "query scale": ("softmax scale (query scale)", ("attention.scale",)),
    "attention softcap": ("attention softcap", ("attention.softcap",)),
    "window": ("window", ("attention.window",)),
    "heads": ("heads", ("attention.heads", "attention.groups")),
    "activation": ("activation", ("ff.activation",)),
    "gated": ("gated", ("ff.gate",)),
    "embedding scale": ("embedding scale", ("embedding.scale",)),
    "final softcap": ("final softcap", ("head.softcap",)),
    "tied head": ("tied head", ("head.weight",)),
    "bias": ("bias", ("bias",)),
    "parallel residual": ("parallel residual", ("residual",)),
}


@dataclass(frozen=True)
class Cause:
    """One named cause.

    Attributes:
        text: what was found and what is right, in one sentence.
        kind: ``CONFIG``, a field; ``WEIGHTS``, a tensor with other values; ``MISPLACED``, tensors
            in each other's places; ``CODE``; ``OPERATOR``, of a file; or ``OTHER``.
        leg: whom it is charged to.
        seen: who names it, e.g. ``config audit (ModelConfig, file)``.
        places: where an audit read it: ``ModelConfig``, ``module``, ``file``, a signature.
        repair: what to do, e.g. ``read rotary base from the HF config (here 5300)``; "" where the
            text says it.
        kinds: of the diagnosis.
        tensors: the tensors that are not right, HF names.
        blocks: which it holds for; empty for all, or for what is in no block.
        detail: one sentence more.
        label: of a field, its name.
        found: of a field, its value as text; "" where it is no number.
        holders: parameters or constants that hold the tensors.
    """

    text: str
    kind: str
    leg: str
    seen: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    repair: str = ""
    kinds: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    blocks: frozenset[int] = frozenset()
    detail: str = ""
    label: str = ""
    found: str = ""
    holders: tuple[str, ...] = ()


def any_layer(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``model.layers.*.mlp.up_proj.weight``."""
    return LAYER.sub(".*.", name, count=1)
