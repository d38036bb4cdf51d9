"""Audits the container of a .litertlm: reads its tokenizer, and opens the checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeverify.audits.bundle import Checkpoint, Held, audit_bundle
from edgeverify.core.results import BUNDLE, AuditResult, unchecked
from edgeverify.hf.generation_config import generation_config
from edgeverify.legs.foreign.tasks import TOKENIZER
from edgeverify.legs.run import Run


def container_audit(
    run: Run, tokenizer: Any | None, metadata: Mapping[str, Any], folder: Path
) -> AuditResult:
    """Audits a container; what cannot be read is ``unchecked``, with the exception.

    Args:
        run: of the checkpoint, with the file's case.
        tokenizer: the checkpoint's; None if it has none.
        metadata: what the container says.
        folder: has the container's ``tokenizer.json``, if it has one.
    """
    try:
        checkpoint = Checkpoint(
            tokenizer,
            run.hf_config,
            generation_config(run.checkpoint.tokenizer_dir),
            run.case.kv_cache_len,
        )
        return audit_bundle(_held(metadata, folder / TOKENIZER), checkpoint)
    except Exception as error:
        return unchecked(BUNDLE, "container", f"cannot be read: {type(error).__name__}: {error}")


def _held(metadata: Mapping[str, Any], words: Path) -> Held:
    kind = metadata.get("tokenizer")
    if not words.is_file():
        told = f"its tokenizer is a {kind}, which is not read here" if kind else "it has none"
        return Held(metadata, why_not=told)
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_str(words.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises a plain Exception for what it cannot read
        return Held(metadata, why_not=f"its tokenizer.json cannot be read: {error}")
    return Held(
        metadata,
        encode=lambda text: list(found.encode(text, add_special_tokens=False).ids),
        vocabulary=found.get_vocab(with_added_tokens=True),
    )
