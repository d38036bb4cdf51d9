"""The hooks of a pytest run that uses edgeverify; ``pytest_options`` registers them.

The tests need no file. They are made when the mark expression selects ``parity``, ``invariants``
or ``golden``, or when ``--model`` is given (which on its own means ``parity``). Each model is
verified, compared with its goldens, or loaded for its invariants once per session, when the first
of its tests is set up.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from edgeverify.cli.commands.golden import check_directory
from edgeverify.cli.options import parse
from edgeverify.cli.pytest_items import (
    CHOSEN,
    EXAMINATIONS,
    RUNS,
    GoldenCollector,
    InvariantsCollector,
    ParityCollector,
    golden_dir,
    models_of,
    report_paths,
)
from edgeverify.cli.pytest_marks import GOLDEN, INVARIANTS, PARITY, chosen_marks
from edgeverify.cli.pytest_options import given
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.legs.ports import check_name
from edgeverify.report.files import check_paths

COLLECTORS: dict[str, Any] = {
    PARITY: ParityCollector,
    INVARIANTS: InvariantsCollector,
    GOLDEN: GoldenCollector,
}


def pytest_configure(config: pytest.Config) -> None:
    """Refuses bad input before anything is collected."""
    config.stash[RUNS], config.stash[EXAMINATIONS] = {}, {}
    marks = _marks(config)
    if not marks:
        _refuse_options_without_effect(config)
        return
    try:
        chosen = parse(config.option)
        check_paths({f"--parity-{name}": path for name, path in report_paths(config).items()})
        for model in models_of(config):
            check_name(model, chosen.size)
        if GOLDEN in marks:
            check_directory("--golden-dir", golden_dir(config))
    except EdgeVerifyError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[CHOSEN] = chosen


def _refuse_options_without_effect(config: pytest.Config) -> None:
    """Refuses a run that names options of edgeverify and would check nothing.

    Options in ``addopts`` are fine: they wait for the runs that ask for a mark.
    """
    typed = given(config.invocation_params.args)
    if typed and not hasattr(config, "workerinput"):
        raise pytest.UsageError(
            f"{typed[0]}: nothing would be checked; expected -m parity, -m invariants, -m golden "
            "or --model, too"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Adds the tests before any plugin selects (``-m``, ``-k``) or groups (xdist) tests."""
    for mark in _marks(config):
        collector = COLLECTORS[mark].from_parent(session, nodeid=mark, name=mark)
        items.extend(session.genitems(collector))
    return (yield)


def _marks(config: pytest.Config) -> list[str]:
    """Returns the marks that ``-m`` selects; ``parity`` if only ``--model`` is given."""
    chosen = chosen_marks(config.option.markexpr)
    return chosen or ([PARITY] if config.option.edgeverify_model else [])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Shows the outcome and worst ratios of each model; under xdist only the workers have them."""
    reports = [run for run in config.stash[RUNS].values() if not isinstance(run, str)]
    if not reports:
        return
    from edgeverify.report.answer import answer_of
    from edgeverify.report.answer_text import answer_lines

    terminalreporter.section("edgeverify")
    for report in reports:
        for line in answer_lines(answer_of(report)):
            terminalreporter.write_line(line)
