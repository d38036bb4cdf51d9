"""Tiny checkpoints with a tokenizer, so that LiteRT-LM runs them in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from edgeverify import load_port
from edgeverify.hf.checkpoints import open_checkpoint

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ASCII = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def make_tokenizer(size: int, *, bos: bool = True, first: int = 0x4E00) -> Tokenizer:
    """Every id is a character of its own, so that a text tells which tokens it is made of."""
    characters = [
        *ASCII,
        *(chr(first + index) for index in range(size - len(ASCII) - len(SPECIAL))),
    ]
    vocabulary = {name: index for index, name in enumerate((*SPECIAL, *characters))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return made


def write_checkpoint(folder: Path, name: str, *, template: str | None = TEMPLATE) -> Path:
    """A directory with a tiny port's config, seeded weights and a tokenizer."""
    port = load_port(name)
    config = {**port.hf_configs["tiny"], "eos_token_id": 2, "bos_token_id": 1}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(open_checkpoint(None, port, size="tiny").tensors(), folder / "model.safetensors")
    make_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    facts: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": name for kind, name in zip(("pad", "bos", "eos", "unk"), SPECIAL,
                                                       strict=True)},
    }  # fmt: skip
    if template is not None:
        facts["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(name)``: the directory of a tiny port, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(tmp_path_factory.mktemp("tiny") / name, name)
        return made[name]

    return get
