"""Runs faults on one port; the reference and the clean file are run only once.

A fault of a port costs one run of the re-authored model; the file is not converted again. A fault
of a file costs a run of the edited copy; the port is known to be right.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgeverify.core.case import Case
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.core.judge import Baseline, judge_leg, judge_surely
from edgeverify.core.leg import AUTHORING, CONVERSION, Leg
from edgeverify.core.results import FAIL, LegResult
from edgeverify.hf.checkpoints import Checkpoint, open_checkpoint
from edgeverify.legs.authoring import find_causes, run_reauthored
from edgeverify.legs.baselines import reference_baselines
from edgeverify.legs.conversion import converted, run_file
from edgeverify.legs.inputs import plan_case
from edgeverify.legs.run import Run
from edgeverify.legs.selectors import Selectors
from edgeverify.suites.selftest import rows
from edgeverify.suites.selftest.faults.fault import Fault
from edgeverify.suites.selftest.faults.port_changes import with_hf
from edgeverify.suites.selftest.rows import UNCHANGED, Row
from edgeverify_models.port import Port

CLEAN = {
    leg: Fault(
        name=UNCHANGED,
        area="clean",
        description=f"The {what} as it is.",
        cause="",
        ports=(),
        where=(),
        port=(lambda port: port) if leg == "authoring" else None,
        harmless="nothing was changed",
    )
    for leg, what in (("authoring", "port"), ("conversion", "converted file"))
}


@dataclass
class Setting:
    """A port with one case, its reference's results, and its clean file, converted when needed."""

    port: Port
    checkpoint: Checkpoint
    case: Case
    baselines: Mapping[str, Baseline]
    cache: Path | None
    _file: Path | None = None

    @property
    def num_blocks(self) -> int:
        first = self.case.steps[0].name
        oracle = self.baselines["authoring"].oracle
        return sum(key.startswith(f"{first}/kv.") for key in oracle) // 2

    def run(self, port: Port, cache: Path | None = None) -> Run:
        case = replace(self.case, mask_kinds=port.mask_kinds)
        return Run(port, self.checkpoint, case, cache or self.cache)

    def file(self) -> Path:
        """Returns the clean conversion."""
        if self._file is None:
            self._file = converted(self.run(self.port))
        return self._file


@dataclass
class Bench:
    """One port, and the settings that its faults have needed so far."""

    port: Port
    cache: Path | None = None
    _settings: dict[str, Setting] = field(default_factory=dict)

    def setting(
        self, hf: Mapping[str, Any] | None = None, selectors: Mapping[str, Any] | None = None
    ) -> Setting:
        """Returns the port's case, with HF config changes on both sides and other selectors."""
        key = json.dumps([dict(hf or {}), dict(selectors or {})], sort_keys=True)
        if key not in self._settings:
            self._settings[key] = self._prepare(dict(hf or {}), dict(selectors or {}))
        return self._settings[key]

    def _prepare(self, hf: dict[str, Any], selectors: dict[str, Any]) -> Setting:
        port = with_hf(self.port, **hf) if hf else self.port
        opened = open_checkpoint(None, port, size="tiny", cache_root=self.cache)
        positions = port.model_config(opened.hf_config).max_seq_len
        chosen = Selectors.of(**selectors)
        case = plan_case(port, opened, None, chosen, positions)
        run = Run(port, opened, case, self.cache)
        run, baselines = reference_baselines(run, with_file=True)
        return Setting(port, opened, run.case, baselines, self.cache)

    def clean(self) -> Iterator[Row]:
        """Tries the unchanged port and its unchanged file: yields one row each."""
        for fault in CLEAN.values():
            yield self.try_fault(fault)

    def try_fault(self, fault: Fault) -> Row:
        """Runs one fault and compares the check's result with the expected one."""
        start = time.perf_counter()
        setting = self.setting(fault.hf, fault.selectors)
        try:
            with one_thread():
                leg = self.judge(fault, setting)
                diagnosis = self.diagnose(fault, setting, leg)
        except EdgeVerifyError as error:
            seconds = time.perf_counter() - start
            return rows.of_refusal(fault, self.port.name, fault.leg, str(error), seconds)
        seconds = time.perf_counter() - start
        return rows.of_leg(fault, self.port.name, leg, setting.num_blocks, seconds, diagnosis)

    def judge(self, fault: Fault, setting: Setting) -> LegResult:
        """Judges the leg that the fault belongs to.

        Raises:
            EdgeVerifyError: the faulty port or file could not be run.
        """
        if fault.port is not None:
            return judge_port(setting, fault.port(setting.port))
        return judge_file(setting, fault.file)

    def diagnose(self, fault: Fault, setting: Setting, leg: LegResult) -> tuple[str, ...] | None:
        """Returns the kinds of cause that are named for a failing port; None for anything else."""
        if fault.port is None or leg.outcome != FAIL:
            return None
        baseline = setting.baselines["authoring"]
        findings = find_causes(setting.run(fault.port(setting.port)), baseline)
        return tuple(dict.fromkeys(finding.cause for finding in findings if finding.cause))


def judge_port(setting: Setting, port: Port) -> LegResult:
    """Judges the leg ``authoring`` of another port with this setting's checkpoint and case."""
    baseline = setting.baselines["authoring"]
    run = setting.run(port)
    whole, isolated = run_reauthored(run, baseline.oracle)
    return _judge(Leg(AUTHORING), run, whole, isolated, baseline)


def judge_file(setting: Setting, edit: Callable[[Path, Path], None] | None = None) -> LegResult:
    """Judges the leg ``conversion`` of the clean file, or of an edited copy of it.

    Cache entries made from an edited copy go into a separate cache, which is thrown away.
    """
    baseline = setting.baselines["conversion"]
    if edit is None:
        run = setting.run(setting.port)
        whole, isolated = run_file(run, setting.file(), baseline.oracle)
        return _judge(Leg(CONVERSION), run, whole, isolated, baseline)
    with TemporaryDirectory(prefix="edgeverify-") as folder:
        target = Path(folder) / "edited.tflite"
        edit(setting.file(), target)
        run = setting.run(setting.port, Path(folder))
        whole, isolated = run_file(run, target, baseline.oracle)
        return _judge(Leg(CONVERSION), run, whole, isolated, baseline)


def _judge(leg: Leg, run: Run, whole: Any, isolated: Any, baseline: Baseline) -> LegResult:
    expected = run.expected(baseline.oracle)
    result, _ = judge_surely(
        lambda against: judge_leg(leg, whole, isolated, against, expected, run.case.starts),
        baseline,
    )
    return result


@contextmanager
def one_thread() -> Iterator[None]:
    """Uses one thread: tiny models are several times faster (see ``legs.run.fitting_threads``)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
