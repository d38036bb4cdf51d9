"""The leg ``conversion``: the converted file, its audits, its runs and its operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeverify.audits.file_reading import FileReading
from edgeverify.audits.run import Auditor
from edgeverify.backends import reauthored, tflite
from edgeverify.backends.sessions.walk import unwalked
from edgeverify.backends.streaming import forgetting
from edgeverify.core.edges import Edge
from edgeverify.core.results import Finding, LegResult
from edgeverify.core.store import entries
from edgeverify.core.store.mapped import forget
from edgeverify.core.trace import Trace
from edgeverify.diagnose.operators import op_findings
from edgeverify.legs import fingerprint
from edgeverify.legs.run import CACHE_VERSION, Run
from edgeverify.litert.convert import convert
from edgeverify_models import is_registered

AUDIT_SOURCES = (
    "audits/*.py",
    "core/case.py",
    "litert/flatbuffer/*.py",
    "hf/config.py",
    "hf/openelm*.py",
    "core/results.py",
    "core/taps.py",
)


class _NotKeptError(Exception):
    """The result must not go into the cache."""


def audit_file(run: Run, auditor: Auditor, path: Path) -> None:
    """Audits the converted file and adds the results to those of the port.

    The cache keeps what was read from the same file for the same case and checkpoint.
    """
    model, case = run.model(), run.case
    key = entries.digest(
        "read-file",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*AUDIT_SOURCES),
        entries.file_digest(path, root=run.cache),
        run.checkpoint.identity,
        run.hf_config,
        fingerprint.of_config(model.config),
        [case.kv_layout, list(case.prefill_lengths), case.kv_cache_len, case.decode_batch],
        [case.mask_as_input, case.prefill_logits, list(case.mask_kinds), auditor.for_engine],
    )

    def remember(read: Callable[[], FileReading]) -> FileReading:
        found: list[FileReading] = []

        def make(target: Path) -> None:
            found.append(read())
            text = found[0].to_json() if found[0].whole else ""
            if not text:  # do not cache it
                raise _NotKeptError
            target.write_text(text, encoding="utf-8")

        try:
            entry = entries.cached("read-files", key, ".json", make, root=run.cache)
        except _NotKeptError:
            return found[0]
        return found[0] if found else FileReading.from_json(entry.read_text(encoding="utf-8"))

    with run.timed("audits"):
        auditor.file(path, model, run.state(), remember)


def converted(run: Run) -> Path:
    """Returns the float .tflite of this model, from the cache or by conversion."""
    case, model = run.case, run.model()
    with forgetting(model):
        probed = reauthored.run(
            model,
            fingerprint.probe(case, run.hf_config["vocab_size"]),
        )
    key = entries.digest(
        "converted",
        CACHE_VERSION,
        # No registered port imports transformers (tests/test_rooms.py), and neither do
        # litert-torch's layers and converter. Any other port may do so.
        entries.versions(*(("transformers",) if is_registered(run.port) else ())),
        run.checkpoint.identity,
        entries.source_digest("litert/convert.py"),
        fingerprint.of_module(model),
        fingerprint.of_trace(probed),
        [case.kv_layout, list(case.prefill_lengths), case.kv_cache_len, case.decode_batch],
        [case.mask_as_input, case.prefill_logits, list(case.mask_kinds)],
    )

    def make(path: Path) -> None:
        with run.timed("convert"):
            convert(model, case, path, verbose=run.verbose)
            forget(*model.parameters())

    return entries.cached("converted", key, ".tflite", make, root=run.cache)


def run_file(run: Run, path: Path, oracle: Trace) -> tuple[Trace, Trace | None]:
    """Runs the untouched file, reading its inner taps from a copy, and the file block by block."""
    whole, isolated, _ = run_and_walk(run, path, oracle, ())
    return whole, isolated


def run_and_walk(
    run: Run, path: Path, oracle: Trace, edges: Sequence[Edge]
) -> tuple[Trace, Trace | None, Trace]:
    """Like ``run_file``; also returns the trace of the edges, which the file runs at its end."""
    walked = [unwalked(edges, "the file was not run to its end")]
    run.release()
    with run.timed("run .tflite", len(run.case.steps)) as tick:
        setup = tflite.Setup(
            cache=run.cache,
            memory_budget=run.memory_budget,
            tick=tick,
            edges=edges,
            walked=walked.append,
        )
        whole, isolated = tflite.run_file(path, run.case, oracle, setup)
    run.log.runtime = whole.provenance["runtime"]
    return run.lean(whole), None if isolated is None else run.lean(isolated), walked[-1]


def every_tap_fed(run: Run, oracle: Trace, path: Path | None) -> Trace:
    """Runs the re-authored model, or its file, with the oracle's values fed into every tap."""
    with run.timed("sublayer by sublayer"):
        if path is None:
            model = run.model()
            return reauthored.run(model, run.case, inject=oracle, every_tap=True)
        setup = tflite.Setup(cache=run.cache, memory_budget=run.memory_budget)
        return tflite.run_every_tap(path, run.case, oracle, setup)


def op_sources(run: Run, path: Path, leg: LegResult) -> tuple[Finding, ...]:
    """Returns the operators that make a file fail.

    The search only adds to a verdict that stands without it. So no exception of the search may get
    through; a finding reports that the search failed.
    """
    with run.timed("find the operators"):
        try:
            return op_findings(
                path,
                leg,
                run.model(),
                run.case,
            )
        except Exception as error:
            told = f"the operator was not found: {type(error).__name__}: {error}"
            return (Finding("conversion.op.unchecked", "conversion", "", told),)
