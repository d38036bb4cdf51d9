"""What the composites of every signature say, held against the HF config; on graphs by hand."""

from __future__ import annotations

from typing import Any

import pytest

from edgeverify.audits.attributes import odd_attributes
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import NONE
from edgeverify.core.results import FAIL
from tests.audits.graphs import Decoder, decoder, flex


def declared(**others: Any) -> Readings:
    """Of two blocks like those that are drawn."""
    values: dict[str, Any] = {"final norm": "RMSNorm", "final norm eps": 0.25}
    for block in range(2):
        at = f"blocks.{block}."
        for norm in ("attention norm", "feed-forward norm"):
            values |= {f"{at}{norm}": "RMSNorm", f"{at}{norm} eps": 0.25}
        values |= {f"{at}query norm": NONE, f"{at}attention softcap": NONE}
        values[f"{at}query scale"] = 0.5
    return Readings("HF config", values | others)


def told(*made: Decoder, of: Readings | None = None) -> list[str]:
    found = {f"signature_{n}": one.weights() for n, one in enumerate(made)}
    checks = odd_attributes(of or declared(), found, found)
    assert {check.outcome for check in checks} <= {FAIL}
    return [str(check) for check in checks]


def test_what_agrees_is_not_told() -> None:
    made = decoder(2)
    made.sketch.composites("attention")[0].compositeAttributes = flex(scale=0.5)
    assert told(made) == []


def test_an_epsilon_is_told_with_its_signature_and_block() -> None:
    made = decoder(2)
    made.sketch.composites("norm")[2].compositeAttributes = flex(epsilon=0.75)
    made.sketch.composites("norm")[4].compositeAttributes = flex(epsilon=0.5)
    assert told(decoder(2), made) == [
        "final norm eps (file, signature_1): expected 0.25, found 0.5",
        "attention norm eps (file, signature_1, block 1): expected 0.25, found 0.75",
    ]


@pytest.mark.parametrize(
    ("stated", "wrong"),
    [
        ({"scale": 0.25}, "query scale (file, signature_0, block 1): expected 0.5, found 0.25"),
        ({"logit_cap": 30.0}, "attention softcap (file, signature_0, block 1): expected none, "
                              "found 30.0"),
    ],
)  # fmt: skip
def test_an_attention_s_scale_and_cap_are_told(stated: dict[str, float], wrong: str) -> None:
    made = decoder(2)
    made.sketch.composites("attention")[1].compositeAttributes = flex(**stated)
    assert told(made) == [wrong]


def test_a_cap_that_is_not_there_is_told() -> None:
    wanted = declared(**{f"blocks.{block}.attention softcap": 30.0 for block in range(2)})
    assert told(decoder(2), of=wanted) == [
        "attention softcap (file, signature_0): expected 30.0, found none"
    ]


def test_norms_that_are_no_composites_or_not_needed_are_left_alone() -> None:
    """A prefill without logits has no final norm."""
    made = decoder(2)
    for norm in made.sketch.composites("norm"):
        norm.name = b"some_norm"
    assert told(made) == []
    silent = decoder(2)
    silent.sketch.composites("norm")[4].name = b"some_norm"
    assert told(silent) == []


def test_an_epsilon_that_is_not_said_is_no_failure() -> None:
    made = decoder(2)
    made.sketch.composites("norm")[0].compositeAttributes = None
    assert told(made) == []
