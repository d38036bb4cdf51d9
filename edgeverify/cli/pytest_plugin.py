"""``pytest -m parity --model tinyllama``: one test per audit, leg and step, in any project.
``pytest -m invariants --model tinyllama``: one test per invariant and implementation.
``pytest -m golden --model tinyllama``: one test per golden.

Only hooks and options are here. The tests need no file: they are made when the mark expression
asks for ``parity``, ``invariants`` or ``golden``, or ``--model`` is given (which alone means
``parity``), so that a plain ``pytest`` never runs them. Each model is verified, compared with its
goldens, or loaded for its invariants, once per session, when the first of its tests is set up.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from edgeverify.cli.commands.golden import check_directory
from edgeverify.cli.options import add_selectors, parse
from edgeverify.cli.pytest_items import (
    CHOSEN,
    EXAMINATIONS,
    GOLDEN,
    INVARIANTS,
    PARITY,
    RUNS,
    GoldenCollector,
    InvariantsCollector,
    ParityCollector,
    _golden_dir,
    _models,
    _paths,
)
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.legs.ports import check_name
from edgeverify.report.files import FORMATS, check_paths

if TYPE_CHECKING:
    pass

MARKS = {
    PARITY: "a model against its Hugging Face original",
    INVARIANTS: "the contracts of a model's cache, RoPE, mask, padding and batch",
    GOLDEN: "a model against what it gave when its goldens were kept",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares ``--model``, the selectors and the report files."""
    group = parser.getgroup("edgeverify", "edgeverify: model parity")
    group.addoption(
        "--model",
        dest="edgeverify_model",
        action="append",
        metavar="MODEL",
        help="a registered name, package.module:ATTR or path/to/file.py:ATTR; repeatable; "
        "default with -m parity: all",
    )
    group.addoption(
        "--golden-dir",
        dest="edgeverify_golden_dir",
        metavar="DIR",
        help="folder of the goldens (default: golden, in the project's root)",
    )
    group.addoption(
        "--update-golden",
        dest="edgeverify_update_golden",
        action="store_true",
        help="rewrite the goldens from this run; the tests of what is rewritten fail",
    )
    add_selectors(group.addoption)
    for name in FORMATS:
        # Not --html and --json: pytest-html and others have them.
        alias = ["--html-report"] if name == "html" else []
        group.addoption(
            f"--parity-{name}",
            *alias,
            dest=f"edgeverify_report_{name}",
            metavar="FILE",
            help=f"write a {name} report; of several models, to FILE with the model in its name",
        )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marks, and refuses bad input before anything is collected."""
    for name, text in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.stash[RUNS], config.stash[EXAMINATIONS] = {}, {}
    wanted = _wanted(config)
    if not wanted:
        return
    try:
        chosen = parse(config.option)
        check_paths({f"--parity-{name}": path for name, path in _paths(config).items()})
        for model in _models(config):
            check_name(model, chosen.size)
        if GOLDEN in wanted:
            check_directory("--golden-dir", _golden_dir(config))
    except EdgeVerifyError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[CHOSEN] = chosen


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Adds the tests before any plugin chooses (``-m``, ``-k``) or groups (xdist) tests."""
    collectors: dict[str, Any] = {
        PARITY: ParityCollector,
        INVARIANTS: InvariantsCollector,
        GOLDEN: GoldenCollector,
    }
    for mark in _wanted(config):
        collector = collectors[mark].from_parent(session, nodeid=mark, name=mark)
        items.extend(session.genitems(collector))
    return (yield)


def _wanted(config: pytest.Config) -> list[str]:
    """The marks that ``-m`` chooses by their names; ``parity`` where only ``--model`` is given."""
    text = config.option.markexpr
    wanted: list[str] = []
    if text and any(mark in text for mark in MARKS):
        from _pytest.mark.expression import Expression

        try:
            expression = Expression.compile(text)
        except SyntaxError:
            return []  # pytest itself will tell
        if not _chooses(expression, set()):
            wanted = [mark for mark in MARKS if mark in text and _chooses(expression, {mark})]
    return wanted or ([PARITY] if config.option.edgeverify_model else [])


def _chooses(expression: Any, marks: set[str]) -> bool:
    return bool(expression.evaluate(lambda name, /, **_: name in marks))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Shows outcome and worst ratios of each model; under xdist the workers have them instead."""
    reports = [run for run in config.stash[RUNS].values() if not isinstance(run, str)]
    if not reports:
        return
    from edgeverify.report.answer import answer_of
    from edgeverify.report.answer_text import answer_lines

    terminalreporter.section("edgeverify")
    for report in reports:
        for line in answer_lines(answer_of(report)):
            terminalreporter.write_line(line)
