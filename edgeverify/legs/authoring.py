"""The leg ``authoring``: compares the re-authored model with the reference."""

from __future__ import annotations

import torch

from edgeverify.audits.run import Auditor
from edgeverify.backends import reauthored
from edgeverify.backends.streaming import forgetting
from edgeverify.core.errors import PortError
from edgeverify.core.judge import Baseline
from edgeverify.core.results import Finding
from edgeverify.core.trace import Trace
from edgeverify.diagnose import diagnose
from edgeverify.diagnose.clock import Clock
from edgeverify.legs.conversion import every_tap_fed
from edgeverify.legs.run import Run


def audit_port(run: Run, auditor: Auditor) -> None:
    """Audits config and weights before anything runs.

    Raises:
        PortError: the weights do not fit the model; then only the config has been audited.
    """
    try:
        model = run.model()
    except PortError:
        auditor.config_alone(run.port.model_config(run.hf_config))
        raise
    with run.timed("audits"):
        auditor.port(model, run.state())


def run_reauthored(
    run: Run, oracle: Trace | None, dtype: torch.dtype = torch.float32
) -> tuple[Trace, Trace]:
    """Runs the re-authored model as a whole and, with an oracle, block by block (else empty)."""
    model = run.model()
    name = "re-authored" if dtype == torch.float32 else "re-authored, float64"
    with run.timed(name, len(run.case.steps) * (1 if oracle is None else 2)) as tick:
        with forgetting(model):
            whole = run.lean(reauthored.run(model, run.case, tick=tick, dtype=dtype))
            if oracle is None:
                return whole, Trace()
            isolated = reauthored.run(model, run.case, inject=oracle, tick=tick, dtype=dtype)
        return whole, run.lean(isolated)


def find_causes(run: Run, baseline: Baseline) -> tuple[Finding, ...]:
    """Returns the likely causes of a failed authoring leg.

    The causes only add to a verdict that stands without them. So no exception of the search may get
    through; a finding reports that the search failed.
    """
    model, oracle = run.model(), baseline.oracle

    def alone() -> Trace:
        return every_tap_fed(run, oracle, None)

    expected = run.expected(oracle)
    clock = Clock.of_check(sum(run.log.timings.values()))
    with run.timed("diagnose"):
        try:
            return diagnose(
                model,
                run.hf_config,
                run.state(),
                run.case,
                alone,
                baseline,
                expected,
                clock,
            )
        except Exception as error:
            told = f"the cause was not looked for to the end: {type(error).__name__}: {error}"
            return (Finding("authoring.unexplained", "authoring", "", told),)
