"""Caches a tokenizer's answers and loads the tokenizer only for an unknown question.

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

from edgeverify.core.errors import CheckpointError, EdgeVerifyError
from edgeverify.core.store import entries

# The files that a tokenizer is read from, besides a GGUF. Weights are not among them.
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab"}
_PACKAGES = ("transformers", "tokenizers", "gguf", "sentencepiece", "tiktoken", "protobuf")


class RememberedTokenizer:
    """Stands in for a transformers tokenizer.

    It answers a plain call with a text and a plain ``decode`` from the cache if it can. It passes
    everything else to the tokenizer itself.
    """

    def __init__(
        self, directory: Path, gguf_file: str | None, *, trust_remote_code: bool, cache: Path | None
    ) -> None:
        """Stores the arguments and loads nothing.

        Args:
            directory: the folder of the tokenizer's files.
            gguf_file: the name of the GGUF in it that contains the tokenizer, or None.
            trust_remote_code: allows the tokenizer's own code, which then answers every question.
            cache: another cache than the default one.
        """
        self._directory, self._gguf_file, self._cache = directory, gguf_file, cache
        self._trust = trust_remote_code

    def __call__(self, text: str, **options: Any) -> Any:
        """Returns the ids of a text, at least as ``{"input_ids": [...]}``.

        Raises:
            CheckpointError: the tokenizer cannot be loaded, or fails on the text.
        """
        if options or self._trust:
            return self._working(lambda: self._loaded(text, **options))
        ask = lambda: [int(token) for token in self._loaded(text)["input_ids"]]  # noqa: E731
        return {"input_ids": self._answer(["ids", text], ask)}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """Returns the text of a sequence of ids.

        Raises:
            CheckpointError: the tokenizer cannot be loaded, or fails on the ids.
        """
        ids = [int(token) for token in ids]
        if options or self._trust:
            return str(self._working(lambda: self._loaded.decode(ids, **options)))
        return str(self._answer(["text", ids], lambda: str(self._loaded.decode(ids))))

    def __len__(self) -> int:
        return int(self._facts()["size"])

    @property
    def bos_token_id(self) -> int | None:
        """The id of the start token."""
        start = self._facts()["start"]
        return None if start is None else int(start)

    def _facts(self) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            return {"size": len(self._loaded), "start": self._loaded.bos_token_id}

        return ask() if self._trust else dict(self._answer(["facts"], ask))

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
        except Exception as error:  # the readers of its files raise whatever their values lead to
            raise CheckpointError(
                f"the tokenizer cannot be loaded ({type(error).__name__}: {_line(error)})",
                where=self._directory,
                expected="tokenizer.json or tokenizer.model beside the weights",
                fix="add the tokenizer's files, or leave out --prompt",
            ) from error

    def _working(self, ask: Callable[[], Any]) -> Any:
        """Returns the tokenizer's answer.

        Raises:
            CheckpointError: it raises, as one does whose files contradict each other.
        """
        try:
            return ask()
        except EdgeVerifyError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the tokenizer fails ({type(error).__name__}: {_line(error)})",
                where=self._directory,
                expected="tokenizer files that fit together",
                fix="take the tokenizer's files as they were published",
            ) from error

    @cached_property
    def _identity(self) -> str:
        """A digest of everything that an answer depends on, except the question."""
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
            path.write_text(json.dumps(self._working(ask)), encoding="utf-8")

        answer = entries.cached("tokens", key, ".json", make, root=self._cache)
        return json.loads(answer.read_text(encoding="utf-8"))


def _line(error: Exception) -> str:
    """The message of an exception in one line, cut."""
    told = " ".join(str(error).split())
    return told if len(told) <= 200 else f"{told[:200]} …"
