"""How a model is to be used, read from its tokenizer; and what is refused before a conversion."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edgeverify.cli.main import main
from edgeverify.core.errors import ArtifactError, EdgeVerifyError
from edgeverify.litert.bundle import writer
from tests.legs.runtime.engine.conftest import TEMPLATE, make_tokenizer

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("litert_lm_builder") is None, reason="needs the extra litert-lm"
)


def tokenizer(*, bos: bool, template: str | None) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(331, bos=bos),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    made.chat_template = template
    return made


WRITTEN_OUT = TEMPLATE.replace("{{ bos_token }}", "<s>")


@pytest.mark.parametrize(
    ("bos", "template", "start"),
    [
        (True, None, 1),
        (False, None, None),
        # The template alone decides, as for a conversation in transformers.
        (True, WRITTEN_OUT, None),
        (True, TEMPLATE.replace("{{ bos_token }}", ""), None),
        (False, TEMPLATE, 1),
        # SmolLM2: its template writes the BOS out, so the engine would put it twice.
        (False, WRITTEN_OUT, None),
    ],
)
def test_the_start_token_is_what_the_engine_has_to_put(
    bos: bool, template: str | None, start: int | None
) -> None:
    assert writer.usage_of(tokenizer(bos=bos, template=template), {}, 40).start == start


def test_stop_tokens_are_the_generation_configs_or_the_configs_and_the_tokenizers() -> None:
    made = tokenizer(bos=True, template=None)
    generation = {"eos_token_id": [7, 2]}
    assert writer.usage_of(made, {"eos_token_id": 9}, 40).stops == (9, 2)
    assert writer.usage_of(made, {"eos_token_id": 9}, 40, generation).stops == (7, 2)
    assert writer.usage_of(made, {"eos_token_id": [9, 8]}, 40).stops == (9, 8, 2)
    made.eos_token = None
    assert writer.usage_of(made, {"eos_token_id": [9, 8]}, 40).stops == (9, 8)


def test_an_end_that_the_model_cannot_write_is_refused() -> None:
    made = tokenizer(bos=True, template=None)
    config = {"eos_token_id": [2, 100000], "vocab_size": 331}
    with pytest.raises(ArtifactError) as error:
        writer.usage_of(made, config, 40)
    assert error.value.what == "eos_token_id names 100000, but the embedding table has 331 rows"


def test_the_engines_template_gives_what_transformers_gives() -> None:
    """Its special tokens are set in the text, and a content of parts is brought together."""
    made = tokenizer(bos=True, template=TEMPLATE)
    template = writer.usage_of(made, {}, 40).template
    assert template is not None
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"text": "y"}]}]
    whole = [{"role": "user", "content": "xy"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    told = made.apply_chat_template(parts, chat_template=template, **options)
    assert "<s>" + told == made.apply_chat_template(whole, **options)


def test_the_extra_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EdgeVerifyError) as error:
        writer.require("litert_lm_builder", "--format litertlm")
    assert str(error.value) == (
        "--format litertlm: needs the package litert-lm-builder, which is not installed; expected "
        "edgeverify with its extra 'litert-lm'; pip install 'edgeverify[litert-lm]'"
    )


@needs_builder
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["convert", "tinyllama", "--format", "litertlm"],
            "--format litertlm: LiteRT-LM would take the KV heads of the default layout for the "
            "cache's length; expected --kv-layout transposed; add --kv-layout transposed",
        ),
        (
            ["convert", "tinyllama", "--format", "litertlm", "--kv-layout", "transposed"],
            "--format litertlm: a .litertlm holds the model's tokenizer, and seeded weights have "
            "none; expected a --checkpoint that has one; give the checkpoint's directory",
        ),
        (
            ["check", "tinyllama", "--runtime", "litert_lm"],
            "--runtime litert_lm: a .litertlm holds the model's tokenizer, and seeded weights have "
            "none; expected a --checkpoint that has one; give the checkpoint's directory",
        ),
    ],
)
def test_what_cannot_become_a_litertlm_is_refused_at_once(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a model was converted")

    # The package's attribute of that name is the function.
    monkeypatch.setattr("edgeverify.legs.line.converted", never)
    output = ["--output", str(tmp_path)] if arguments[0] == "convert" else []
    assert main([*arguments, *output]) == 2
    assert capsys.readouterr().err == f"edgeverify: error: {told}\n"
    assert list(tmp_path.iterdir()) == []
