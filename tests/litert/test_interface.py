"""What files tell of themselves, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeverify.core.errors import ArtifactError
from edgeverify.litert.flatbuffer import ModelFile
from edgeverify.litert.interface import Facts, facts_of
from tests.legs.foreign.edits import cache_writes_hidden, copied, edited, input_renamed, renamed
from tests.litert.flatbuffer import made

Get = Callable[..., Any]


def read_facts(path: Path) -> Facts:
    return facts_of(ModelFile(path))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_a_file_tells_lengths_layout_and_masks(converted: Get, layout: str) -> None:
    file = converted("tinyllama", layout)
    facts = read_facts(file.path)
    assert facts.prefill == {"prefill_4": 4, "prefill_11": 11}
    assert (facts.kv_layout, facts.layout_from) == (layout, "writes")
    assert (facts.kv_cache_len, facts.blocks) == (40, file.num_blocks)
    assert facts.vocabulary == file.model.config.vocab_size
    assert (facts.masks, facts.prefill_logits, facts.decode_batch) == ((), True, 1)
    assert facts.others == {}


@pytest.mark.slow
def test_masks_as_inputs_and_silent_prefills_are_told(converted: Get) -> None:
    masked = read_facts(converted("gemma2", "default", mask_as_input=True).path)
    assert set(masked.masks) == {"global", "local"}
    silent = read_facts(converted("tinyllama", "default", prefill_logits=False).path)
    assert not silent.prefill_logits


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["default", "transposed"])
def test_where_no_write_is_found_the_shapes_tell(
    converted: Get, layout: str, tmp_path: Path
) -> None:
    source = converted("smollm", layout).path
    facts = read_facts(edited(source, tmp_path / "x.tflite", cache_writes_hidden))
    assert (facts.kv_layout, facts.layout_from, facts.kv_cache_len) == (layout, "shapes", 40)


@pytest.mark.slow
def test_a_layout_that_shapes_do_not_tell_is_refused(converted: Get, tmp_path: Path) -> None:
    """This model's head_dim is 40, as many as the cache's rows."""
    source = converted("tinyllama", "transposed").path
    with pytest.raises(ArtifactError, match=r"cannot be told: K and V are both \[1, 2, 40, 40\]"):
        read_facts(edited(source, tmp_path / "x.tflite", cache_writes_hidden))


@pytest.mark.slow
def test_other_names_of_signatures(converted: Get, tmp_path: Path) -> None:
    source = converted("tinyllama", "default").path
    target = tmp_path / "x.tflite"
    facts = read_facts(edited(source, target, renamed(prefill_11="prefill", prefill_4="embed")))
    assert facts.prefill == {"prefill": 11}
    assert facts.others == {"embed": "is neither prefill, prefill_N nor decode"}
    facts = read_facts(edited(source, target, copied("prefill_4", "prefill_5")))
    assert facts.prefill == {"prefill_4": 4, "prefill_11": 11}
    assert list(facts.others) == ["prefill_5"]
    assert "does not return kv_cache_" in facts.others["prefill_5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (renamed(decode="generate"), r"generate is neither prefill, prefill_N nor decode"),
        (renamed(prefill_4="a", prefill_11="b"), "its signatures are a "),
        (input_renamed("tokens", "ids"), "decode has no input tokens"),
        (input_renamed("input_pos", "pos"), "decode has no input input_pos"),
        (input_renamed("kv_cache_v_1", "cache"), "decode has no input kv_cache_v_1"),
    ],
)
def test_what_is_no_such_model_is_refused(
    change: Callable[[Any], None], words: str, converted: Get, tmp_path: Path
) -> None:
    source = converted("tinyllama", "default").path
    with pytest.raises(ArtifactError, match=words) as caught:
        read_facts(edited(source, tmp_path / "x.tflite", change))
    assert caught.value.what.startswith("is no language model of a form that is known here: its s")
    assert str(caught.value.expected).startswith("signatures prefill_N (or prefill) and decode")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    weight = made.tensor("w", (3, 4), made.TYPES.FLOAT32, 1)
    path = made.write(tmp_path / "x.tflite", "FULLY_CONNECTED", weight, bytes(48), (1, 4), (1, 3))
    with pytest.raises(ArtifactError, match=r"its signatures are run \(x\)"):
        read_facts(path)
