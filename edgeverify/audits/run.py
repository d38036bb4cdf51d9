"""Runs the three audits of a check: on the port before it runs, on the file after conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from edgeverify.audits.config import audit_config, audit_mask_inputs
from edgeverify.audits.file_reading import FileReading, Subject, not_made, read_file
from edgeverify.audits.model import Readings
from edgeverify.audits.of_hf_config import declared
from edgeverify.audits.of_port import of_config, of_module
from edgeverify.audits.weights import State, audit_module
from edgeverify.core.case import Case
from edgeverify.core.results import (
    CONFIG,
    FAIL,
    SIGNATURES,
    WEIGHTS,
    AuditResult,
    merged,
    unchecked,
)
from edgeverify.hf.remembered import described


@dataclass
class Auditor:
    """The audits of one port, checkpoint and case.

    A class of the user's own may lack anything that an audit reads. Then the audit is
    ``unchecked`` with the exception's text, and the check itself continues.

    Attributes:
        hf_config: the HF config.
        case: the case that the file should fit.
        for_engine: whether the file has to run in LiteRT-LM; then a refusal is a failure.
        results: the audits so far, by name.
        engine_refusal: why LiteRT-LM would refuse the file, or "".
        cache: a cache folder other than the default one.
    """

    hf_config: Mapping[str, Any]
    case: Case
    for_engine: bool = False
    results: dict[str, AuditResult] = field(default_factory=dict)
    engine_refusal: str = ""
    cache: Path | None = None
    _declared: Readings | None = None
    _read: list[Readings] = field(default_factory=list)
    _of_module: AuditResult | None = None

    def port(self, model: nn.Module, state: State) -> None:
        """Audits the config and the loaded module; runs nothing.

        Args:
            model: the re-authored model, loaded.
            state: the checkpoint, HF names → float32 tensors.
        """
        try:
            self._declared = self._read_config()
            config: Any = model.config
            self._read = [of_config(config), of_module(model)]
            self.results[CONFIG] = self._config()
        except Exception as error:
            self.results[CONFIG] = not_made(CONFIG, "HF config or module", error)
        try:
            self._of_module = audit_module(model, state)
        except Exception as error:
            self._of_module = not_made(WEIGHTS, "module", error)
        self.results[WEIGHTS] = self._of_module

    def config_alone(self, config: Any) -> None:
        """Audits a ``ModelConfig`` from which no module could be built or loaded."""
        try:
            self._declared = self._read_config()
            self._read = [of_config(config)]
            self.results[CONFIG] = self._config()
        except Exception as error:
            self.results[CONFIG] = not_made(CONFIG, "HF config", error)

    @property
    def failures(self) -> list[str]:
        """Returns the failures so far, one line each."""
        found = (check for audit in self.results.values() for check in audit.odd)
        return [str(check) for check in found if check.outcome == FAIL]

    def file(
        self,
        path: Path,
        model: nn.Module,
        state: State,
        remember: Callable[[Callable[[], FileReading]], FileReading] = lambda read: read(),
    ) -> None:
        """Audits a converted file, after ``port``.

        Args:
            path: the .tflite.
            model: as for ``port``.
            state: as for ``port``.
            remember: returns an earlier reading of this file, or calls the function that reads it.
        """
        declared = self._declared
        if declared is None or self._of_module is None:
            reason = "the HF config could not be read"
            self.results[SIGNATURES] = unchecked(SIGNATURES, "file", reason)
            return

        def read() -> FileReading:
            subject = Subject(self.hf_config, declared, model.config, state)
            return read_file(path, self.case, subject, for_engine=self.for_engine)

        found = remember(read)
        self.engine_refusal = found.engine_refusal
        self.results[SIGNATURES] = found.signatures
        if found.readings is None or found.attributes is None or found.constants is None:
            for name, before in ((CONFIG, self.results[CONFIG]), (WEIGHTS, self._of_module)):
                odd = unchecked(name, "file", found.fault)
                self.results[name] = merged(name, [before, odd])
            return
        self._read.append(found.readings)
        self.results[CONFIG] = merged(CONFIG, [self._config(), found.attributes])
        self.results[WEIGHTS] = merged(WEIGHTS, [self._of_module, found.constants])

    def _read_config(self) -> Readings:
        make = lambda: asdict(declared(self.hf_config))  # noqa: E731
        sources = (
            "audits/of_hf_config.py",
            "hf/forward.py",
            "hf/config.py",
            "audits/masks.py",
            "audits/model.py",
            "audits/probe.py",
        )
        return Readings(**described("declared", self.hf_config, sources, make, self.cache))

    def _config(self) -> AuditResult:
        assert self._declared is not None
        parts = [
            audit_config(
                self._declared,
                self._read,
                rows=self.case.kv_cache_len,
            )
        ]
        if self.case.mask_as_input:
            parts.append(audit_mask_inputs(self._declared, self.case.mask_kinds))
        return merged(CONFIG, parts)
