"""Faults of the decode loop and of what a step is fed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeverify.suites.selftest.faults.fault import Faults
from edgeverify.suites.selftest.faults.port_changes import (
    Function,
    with_call,
    with_logits,
    with_model,
    with_output,
    with_rope,
)
from edgeverify_models.port import Port

FAULTS = Faults("decoding", where="embed")


def _with_tokens(port: Port, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Port:
    """What the model reads is ``change(tokens, input_pos)``."""

    def change_call(call: dict[str, Any]) -> None:
        call["tokens"] = change(call["tokens"], call["input_pos"])

    return with_call(port, change_call)


@FAULTS.add(
    "first token replaced",
    via=_with_tokens,
    step="prefill.0",
    kinds="embedding.ids",
    source="litert-torch #109",
)
def bos_replaced(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The first token is another one."""
    if positions[0] == 0:
        tokens = tokens.clone()
        tokens[0, 0] = 1
    return tokens


@FAULTS.add(
    "first token left out",
    via=_with_tokens,
    step="prefill.0",
    kinds="rows",
    source="litert-torch #109",
)
def bos_left_out(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The first token is left out; all others of its chunk move up."""
    return tokens.roll(-1, 1) if positions[0] == 0 else tokens


@FAULTS.add("pads in front", via=_with_tokens, step="prefill.2")
def padded_in_front(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A padded chunk has its pads before its tokens."""
    pads = int((tokens[0].flip(0) != 0).int().argmax())
    return tokens.roll(pads, 1) if tokens.shape[1] > 1 else tokens


@FAULTS.add("decode token one step late", via=with_model, step="decode.0", kinds="rows")
def decode_fed_with_the_token_before(model: Any) -> None:
    """Each decode step is fed with the token of the step before."""
    forward = model.forward
    last: list[torch.Tensor] = []

    def stale(**call: Any) -> Any:
        given = call["tokens"]
        if given.shape[1] == 1 and last:
            call["tokens"] = last[0]
        last[:] = [given[:, -1:]]
        return forward(**call)

    model.forward = stale


@FAULTS.add(
    "decode position off by one",
    via=with_rope,
    where="blocks.*.attn.q",
    step="decode.0",
    kinds="rope.positions",
)
def decode_position_off_by_one(build: Function, pos: Any, *rest: Any) -> Any:
    """A decode step's angles are those of the next position."""
    return build(pos + 1 if len(pos) == 1 else pos, *rest)


@FAULTS.add("logits of another row", via=with_logits, where="logits", step="prefill.0")
def logits_of_the_row_before(logits: torch.Tensor) -> torch.Tensor:
    """Every row of logits is the row before it."""
    return logits.roll(1, 1)


@FAULTS.add(
    "logits of the last position alone",
    via=with_logits,
    where="logits",
    step="prefill.0",
    kinds="shape",
)
def logits_of_the_last_position_alone(logits: torch.Tensor) -> torch.Tensor:
    """A prefill returns one row of logits."""
    return logits[:, -1:]


@FAULTS.add(
    "decode logits scaled", via=with_output, where="logits", step="decode.0", kinds="factor"
)
def temperature_left_in_decode(output: dict[str, Any], call: dict[str, Any]) -> None:
    """Decode logits are divided by a temperature of 0.5; prefill's are right."""
    if call["tokens"].shape[1] == 1:
        output["logits"] = output["logits"] / 0.5
