"""Faults of the decode loop and of what a step is fed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeverify.suites.selftest.faults.changes import (
    Function,
    with_call,
    with_model,
    with_output,
    with_rope,
)
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.ports import ALL
from edgeverify_models.port import Port

LOGITS = ("logits",)


def _tokens(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """What the model reads is ``change(tokens, input_pos)``, both as they were given."""

    def change_call(call: dict[str, Any]) -> None:
        call["tokens"] = change(call["tokens"], call["input_pos"])

    return lambda port: with_call(port, change_call)


def _first_token_replaced(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    if positions[0] == 0:
        tokens = tokens.clone()
        tokens[0, 0] = 1
    return tokens


def _shifted(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Without the first token, every other stands one position earlier."""
    return tokens.roll(-1, 1) if positions[0] == 0 else tokens


def _padded_in_front(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    pads = int((tokens[0].flip(0) != 0).int().argmax())
    return tokens.roll(pads, 1) if tokens.shape[1] > 1 else tokens


def _token_before(port: Port) -> Port:
    def change(model: Any) -> None:
        forward = model.forward
        last: list[torch.Tensor] = []

        def stale(**call: Any) -> Any:
            given = call["tokens"]
            if given.shape[1] == 1 and last:
                call["tokens"] = last[0]
            last[:] = [given[:, -1:]]
            return forward(**call)

        model.forward = stale

    return with_model(port, change)


def _rope_in_decode(by: int) -> Callable[[Port], Port]:
    def make(build: Function) -> Function:
        return lambda pos, *rest: build(pos + by if len(pos) == 1 else pos, *rest)

    return lambda port: with_rope(port, make)


def _logits(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Port], Port]:
    def change_output(output: dict[str, Any], call: dict[str, Any]) -> None:
        if "logits" in output:
            output["logits"] = change(output["logits"])

    return lambda port: with_output(port, change_output)


def _decode_logits_doubled(output: dict[str, Any], call: dict[str, Any]) -> None:
    """A temperature of 0.5 that was left in the decode graph."""
    if call["tokens"].shape[1] == 1:
        output["logits"] = output["logits"] / 0.5


FAULTS = (
    Fault(
        name="bos_replaced",
        area="decoding",
        description="The first token is another one.",
        cause="first token replaced",
        ports=ALL,
        where=("embed",),
        step="prefill.0",
        port=_tokens(_first_token_replaced),
        source="litert-torch #109",
    ),
    Fault(
        name="bos_left_out",
        area="decoding",
        description="The first token is left out; all others of its chunk move up.",
        cause="first token left out",
        ports=ALL,
        where=("embed",),
        step="prefill.0",
        port=_tokens(_shifted),
        source="litert-torch #109",
    ),
    Fault(
        name="padded_in_front",
        area="decoding",
        description="A padded chunk has its pads before its tokens.",
        cause="pads in front",
        ports=ALL,
        where=("embed",),
        step="prefill.2",
        port=_tokens(_padded_in_front),
    ),
    Fault(
        name="decode_fed_with_the_token_before",
        area="decoding",
        description="Each decode step is fed with the token of the step before.",
        cause="decode token one step late",
        ports=ALL,
        where=("embed",),
        step="decode.0",
        port=_token_before,
    ),
    Fault(
        name="decode_position_off_by_one",
        area="decoding",
        description="A decode step's angles are those of the next position.",
        cause="decode position off by one",
        ports=ALL,
        where=("blocks.*.attn.q",),
        step="decode.0",
        port=_rope_in_decode(1),
    ),
    Fault(
        name="logits_of_the_row_before",
        area="decoding",
        description="Every row of logits is the row before it.",
        cause="logits of another row",
        ports=ALL,
        where=LOGITS,
        step="prefill.0",
        port=_logits(lambda logits: logits.roll(1, 1)),
    ),
    Fault(
        name="logits_of_the_last_position_alone",
        area="decoding",
        description="A prefill returns one row of logits.",
        cause="logits of the last position alone",
        ports=ALL,
        where=LOGITS,
        step="prefill.0",
        port=_logits(lambda logits: logits[:, -1:]),
    ),
    Fault(
        name="temperature_left_in_decode",
        area="decoding",
        description="Decode logits are divided by a temperature of 0.5; prefill's are right.",
        cause="decode logits scaled",
        ports=ALL,
        where=LOGITS,
        step="decode.0",
        port=lambda port: with_output(port, _decode_logits_doubled),
    ),
)
