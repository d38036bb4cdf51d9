"""A checkpoint's tokenizer that remembers its answers, and is loaded when one is not known yet.

transformers takes 2 s to read a tokenizer out of a GGUF, as long as all forward passes of a check
of a small model. The same text has the same ids as long as the tokenizer's files and the libraries
are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeverify.core.errors import CheckpointError
from edgeverify.core.store import entries

# What a tokenizer is read from, beside a GGUF. Weights are not.
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab"}
_PACKAGES = ("transformers", "tokenizers", "gguf", "sentencepiece", "tiktoken", "protobuf")


class RememberedTokenizer:
    """Stands for a tokenizer of transformers.

    A plain call with a text and a plain ``decode`` are answered from the cache where they can be;
    all else is asked of the tokenizer itself.
    """

    def __init__(
        self, directory: Path, gguf_file: str | None, *, trust_remote_code: bool, cache: Path | None
    ) -> None:
        """Loads nothing.

        Args:
            directory: of the tokenizer's files.
            gguf_file: the name of the GGUF in it that has the tokenizer, if one has.
            trust_remote_code: its code is then asked every time.
            cache: another cache than the default one.
        """
        self._directory, self._gguf_file, self._cache = directory, gguf_file, cache
        self._trust = trust_remote_code

    def __call__(self, text: str, **options: Any) -> Any:
        """The ids of a text, as ``{"input_ids": [...]}`` at least.

        Raises:
            CheckpointError: the tokenizer cannot be loaded.
        """
        if options or self._trust:
            return self._loaded(text, **options)
        ask = lambda: [int(token) for token in self._loaded(text)["input_ids"]]  # noqa: E731
        return {"input_ids": self._answer(["ids", text], ask)}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The text of some ids.

        Raises:
            CheckpointError: the tokenizer cannot be loaded.
        """
        ids = [int(token) for token in ids]
        if options or self._trust:
            return str(self._loaded.decode(ids, **options))
        return str(self._answer(["text", ids], lambda: str(self._loaded.decode(ids))))

    def __len__(self) -> int:
        return len(self._loaded)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loaded, name)

    @cached_property
    def _loaded(self) -> Any:
        from transformers import AutoTokenizer

        options: dict[str, Any] = {"trust_remote_code": self._trust}
        if self._gguf_file is not None:
            options["gguf_file"] = self._gguf_file
        try:
            return AutoTokenizer.from_pretrained(str(self._directory), **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(
                f"the tokenizer cannot be loaded ({error})",
                where=self._directory,
                expected="tokenizer.json or tokenizer.model beside the weights",
                fix="add the tokenizer's files, or leave out --prompt",
            ) from error

    @cached_property
    def _identity(self) -> str:
        """A digest of all that an answer depends on, but the question."""
        files = [
            path
            for path in sorted(self._directory.iterdir())
            if path.name == self._gguf_file or (path.suffix in _SUFFIXES and path.is_file())
        ]
        versions = {}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        digests = {path.name: entries.file_digest(path, root=self._cache) for path in files}
        return entries.digest("tokens-1", self._gguf_file, digests, versions)

    def _answer(self, question: Any, ask: Callable[[], Any]) -> Any:
        key = entries.digest(self._identity, question)

        def make(path: Path) -> None:
            path.write_text(json.dumps(ask()), encoding="utf-8")

        answer = entries.cached("tokens", key, ".json", make, root=self._cache)
        return json.loads(answer.read_text(encoding="utf-8"))
