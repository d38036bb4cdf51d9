"""Reads from one converted file what the audits need, and stores the reading in the cache.

Parsing a file and walking its graphs takes as long as running it. The same file, compared with the
same checkpoint for the same case, gives the same reading. Code that caches a reading must define
what "the same" is (see ``legs.conversion.audit_file``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeverify.audits.attributes import odd_attributes
from edgeverify.audits.file_weights import audit_file
from edgeverify.audits.model import Readings
from edgeverify.audits.of_file import of_file
from edgeverify.audits.signatures import audit_signatures
from edgeverify.audits.weights import State
from edgeverify.core.case import Case
from edgeverify.core.results import CONFIG, SIGNATURES, WEIGHTS, AuditResult, Check, unchecked
from edgeverify.litert.bundle.accepts import litert_lm_accepts
from edgeverify.litert.flatbuffer import ModelFile, locate_taps
from edgeverify.litert.flatbuffer.weights import find_weights

DECODE = "decode"


@dataclass(frozen=True)
class FileReading:
    """The results of reading one file.

    Attributes:
        signatures: the audit of the signatures.
        engine_refusal: why LiteRT-LM would refuse the file, or "".
        readings: the config values; None if the file could not be read.
        attributes: attributes of composites that differ from the HF config.
        constants: the audit of the weights.
        fault: the exception's text if the file could not be read, or "".
        whole: whether every part could be made; False if an audit raised.
    """

    signatures: AuditResult
    engine_refusal: str
    readings: Readings | None = None
    attributes: AuditResult | None = None
    constants: AuditResult | None = None
    fault: str = ""
    whole: bool = True

    def to_json(self) -> str:
        """Returns the reading as JSON, or "" if JSON cannot represent all of it."""
        told = asdict(self)
        try:
            text = json.dumps(told)
            same = repr(asdict(_read_back(text))) == repr(told)
        except (TypeError, ValueError):
            return ""
        return text if same else ""

    @classmethod
    def from_json(cls, text: str) -> FileReading:
        """Returns the reading that ``to_json`` wrote."""
        return _read_back(text)


def _read_back(text: str) -> FileReading:
    data = json.loads(text)
    for name in ("signatures", "attributes", "constants"):
        part = data[name]
        if part is not None:
            checks = tuple(Check(**check) for check in part["checks"])
            data[name] = AuditResult(part["name"], checks, tuple(part["notes"]))
    if data["readings"] is not None:
        data["readings"] = Readings(**data["readings"])
    return FileReading(**data)


@dataclass(frozen=True)
class Subject:
    """The model that a file should contain.

    Attributes:
        hf_config: the HF config.
        declared: readings of Hugging Face's model of this config.
        config: the re-authored ``ModelConfig``.
        state: the checkpoint, HF names → float32 tensors.
    """

    hf_config: Mapping[str, Any]
    declared: Readings
    config: Any
    state: State


def read_file(path: Path, case: Case, subject: Subject, *, for_engine: bool) -> FileReading:
    """Reads a file; an audit that raises becomes ``unchecked`` in the result.

    Args:
        path: the .tflite.
        case: the case that the file should fit.
        subject: the model that the file should contain.
        for_engine: whether the file has to run in LiteRT-LM.
    """
    declared = subject.declared
    file = ModelFile(path)
    accepted, reason = litert_lm_accepts(file)
    refusal = "" if accepted else reason
    whole, fault = True, ""
    try:
        signatures = audit_signatures(file, case, declared, for_engine)
    except Exception as error:
        whole, signatures = False, not_made(SIGNATURES, "file", error)
    try:
        found = {
            name: find_weights(file, name, locate_taps(file, name)) for name in file.signatures
        }
        readings = of_file(file, found[DECODE], declared.values.get("rotary base"))
    except Exception as error:
        fault = f"cannot be read: {type(error).__name__}: {error}"
        return FileReading(signatures, refusal, fault=fault, whole=False)
    others = [name for name in found if name != DECODE]
    said = AuditResult(CONFIG, odd_attributes(declared, found, others))
    try:
        constants = audit_file(file, found, subject.config, subject.state, declared)
    except Exception as error:
        whole, constants = False, not_made(WEIGHTS, "file", error)
    return FileReading(signatures, refusal, readings, said, constants, whole=whole)


def not_made(name: str, where: str, error: Exception) -> AuditResult:
    """Returns the ``unchecked`` result of an audit that raised."""
    return unchecked(name, where, f"cannot be read: {type(error).__name__}: {error}")
