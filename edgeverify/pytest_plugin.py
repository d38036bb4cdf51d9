"""``pytest -m parity --model tinyllama``: one test per audit, leg and step, in any project.
``pytest -m invariants --model tinyllama``: one test per invariant and implementation.
``pytest -m golden --model tinyllama``: one test per golden.

Only hooks and options are here. The tests need no file: they are made when the mark expression
asks for ``parity``, ``invariants`` or ``golden``, or ``--model`` is given (which alone means
``parity``), so that a plain ``pytest`` never runs them. Each model is verified, compared with its
goldens, or loaded for its invariants, once per session, when the first of its tests is set up.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeverify import selectors
from edgeverify.commands.golden import check_directory
from edgeverify.errors import EdgeVerifyError
from edgeverify.ports import catalogue, check_name, is_file
from edgeverify.report.files import FORMATS, check_paths, write_reports

if TYPE_CHECKING:
    from edgeverify.invariants.examination import Examination
    from edgeverify.report.model import GoldenResult, Report

PARITY, INVARIANTS, GOLDEN = "parity", "invariants", "golden"
MARKS = {
    PARITY: "a model against its Hugging Face original",
    INVARIANTS: "the contracts of a model's cache, RoPE, mask, padding and batch",
    GOLDEN: "a model against what it gave when its goldens were kept",
}
ALL = "all"
CHOSEN = pytest.StashKey[selectors.Selectors]()
RUNS = pytest.StashKey[dict[str, Any]]()
EXAMINATIONS = pytest.StashKey[dict[str, Any]]()


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
    selectors.add_options(group.addoption)
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
        chosen = selectors.parse(config.option)
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


def _models(config: pytest.Config) -> list[str]:
    given = config.option.edgeverify_model or [ALL]
    named = [name for model in given for name in (list(catalogue()) if model == ALL else [model])]
    return list(dict.fromkeys(named))


def _paths(config: pytest.Config) -> dict[str, Path]:
    given = {name: getattr(config.option, f"edgeverify_report_{name}") for name in FORMATS}
    return {name: config.invocation_params.dir / path for name, path in given.items() if path}


def _ids(models: list[str]) -> dict[str, str]:
    """Model → its name in ids and file names: ``path/to/file.py:PORT`` is ``file.PORT``."""
    ids = {model: _short(model) for model in models}
    names = list(ids.values())
    # Two files of one name keep their folders, as far as a file name can hold them.
    return {
        model: name if names.count(name) == 1 else re.sub(r"[^\w.-]+", "_", model)
        for model, name in ids.items()
    }


def _short(model: str) -> str:
    place, _, attribute = model.rpartition(":")
    if not place:
        return model
    return f"{Path(place).stem if is_file(place) else place}.{attribute}"


class ParityCollector(pytest.Collector):
    """Yields the tests of all chosen models."""

    def collect(self) -> Iterator[pytest.Item]:
        """One test per audit and per leg and step; per leg where the steps need a tokenizer."""
        chosen = self.config.stash[CHOSEN]
        # With ``--dist loadgroup`` a model's tests stay on one worker and share its run. xdist
        # knows a group by this suffix; its own mark (3.8) sets it in an attribute that pytest 9.2
        # no longer reads.
        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(_models(self.config)).items():
            group = f"@{name}" if grouped else ""
            for audit in chosen.audits:
                test = f"{name}[audit-{audit}]{group}"
                yield AuditItem.from_parent(self, name=test, model=model, audit=audit)
            for leg in chosen.legs:
                for step in chosen.steps_of(leg):
                    test = f"{name}[{leg}-{step}]" if step else f"{name}[{leg}]"
                    test += group
                    yield ParityItem.from_parent(self, name=test, model=model, leg=leg, step=step)


class InvariantsCollector(pytest.Collector):
    """Yields one test per model, invariant and implementation."""

    def collect(self) -> Iterator[pytest.Item]:
        """The pairs that say something about each other, one implementation after another."""
        from edgeverify.invariants.cells import cells

        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(_models(self.config)).items():
            for invariant, implementation in cells(self.config.stash[CHOSEN]):
                test = f"{name}[{invariant}-{implementation}]" + (f"@{name}" if grouped else "")
                yield InvariantItem.from_parent(
                    self,
                    name=test,
                    model=model,
                    invariant=invariant,
                    implementation=implementation,
                )


class GoldenCollector(pytest.Collector):
    """Yields one test per model and golden."""

    def collect(self) -> Iterator[pytest.Item]:
        """The golden of the reference, then that of the file."""
        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(_models(self.config)).items():
            for kind in selectors.GOLDENS:
                test = f"{name}[golden-{kind}]" + (f"@{name}" if grouped else "")
                yield GoldenItem.from_parent(self, name=test, model=model, kind=kind)


class GoldenItem(pytest.Item):
    """One golden of one model."""

    def __init__(self, *, model: str, kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.kind = model, kind
        self.add_marker(GOLDEN)

    def runtest(self) -> None:
        """Fails with what has moved."""
        from edgeverify.report.model import PASS
        from edgeverify.report.words import golden_lines

        result = self._compared()
        ratios = [change.ratio for change in result.changes if change.ratio is not None]
        self.user_properties.append(("moved", ", ".join(result.moved)))
        self.user_properties.append(("largest_change", max(ratios, default=0.0)))
        if result.outcome != PASS:
            pytest.fail("\n".join(golden_lines(result)), pytrace=False)

    def _compared(self) -> GoldenResult:
        from edgeverify import launch

        try:
            # This golden alone: another worker may have the other one, and say what it is.
            report = launch.golden(
                self.model,
                self.config.stash[CHOSEN],
                _golden_dir(self.config),
                update=self.config.option.edgeverify_update_golden,
                kinds=(self.kind,),
            )
        except EdgeVerifyError as error:
            pytest.fail(f"cannot compare {self.model} with its goldens: {error}", pytrace=False)
        return report.goldens[0]

    def reportinfo(self) -> tuple[Path, None, str]:
        """No file of its own: the project's root, and the id."""
        return self.config.rootpath, None, self.nodeid


def _golden_dir(config: pytest.Config) -> Path:
    given = config.option.edgeverify_golden_dir
    return config.invocation_params.dir / given if given else config.rootpath / "golden"


class ModelItem(pytest.Item):
    """A test of one model; all tests of a model share one run."""

    def __init__(self, *, model: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.add_marker(PARITY)

    def setup(self) -> None:
        """Runs the model's check, unless an earlier test has."""
        self.report = _report_of(self.config, self.model)

    def reportinfo(self) -> tuple[Path, None, str]:
        """No file of its own: the project's root, and the id."""
        return self.config.rootpath, None, self.nodeid


class AuditItem(ModelItem):
    """One audit of one model."""

    def __init__(self, *, audit: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.audit = audit

    def runtest(self) -> None:
        """Fails with what the audit found unless it passed."""
        from edgeverify.report.model import PASS
        from edgeverify.report.steps import failure_text

        audit = self.report.audits.get(self.audit)
        if audit is None:
            pytest.fail(f"{self.audit}: unchecked: the report has no such audit", pytrace=False)
        if audit.outcome != PASS:
            pytest.fail(failure_text(self.report, self.audit), pytrace=False)


class ParityItem(ModelItem):
    """One step of one leg of one model."""

    def __init__(self, *, leg: str, step: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.leg, self.step = leg, step

    def runtest(self) -> None:
        """Fails with the report's own words unless the step passed."""
        from edgeverify.report.model import PASS
        from edgeverify.report.steps import failure_text, find_step

        leg = self.report.legs.get(self.leg)
        if leg is None:
            pytest.fail(f"{self.leg}: unchecked: the report has no such leg", pytrace=False)
        result = find_step(leg, self.step)
        for ratio in ("error_ratio", "row_ratio"):
            self.user_properties.append((f"worst_{ratio}", result.worst(ratio)))
        if result.outcome != PASS:
            pytest.fail(failure_text(self.report, self.leg, self.step), pytrace=False)


class InvariantItem(pytest.Item):
    """One invariant of one implementation of one model."""

    def __init__(self, *, model: str, invariant: str, implementation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.invariant, self.implementation = model, invariant, implementation
        self.add_marker(INVARIANTS)

    def setup(self) -> None:
        """Loads the model, unless an earlier test has."""
        self.examination = _examination_of(self.config, self.model)

    def runtest(self) -> None:
        """Fails with the shortest case that was found and the way to see it again."""
        from edgeverify.launch import without_chatter
        from edgeverify.report.model import NOT_APPLICABLE, PASS
        from edgeverify.report.words import invariant_lines

        result = without_chatter(
            lambda: self.examination.examine(self.invariant, self.implementation)
        )
        self.user_properties.append(("cases", result.examples))
        told = "\n".join(invariant_lines(result))
        if result.outcome == NOT_APPLICABLE:
            pytest.skip(told)
        if result.outcome != PASS:
            pytest.fail(told, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """No file of its own: the project's root, and the id."""
        return self.config.rootpath, None, self.nodeid


def _examination_of(config: pytest.Config, model: str) -> Examination:
    """The model under examination in this session; loaded when first asked for."""
    from edgeverify import launch

    made = config.stash[EXAMINATIONS]
    if model not in made:
        try:
            made[model] = launch.examination(model, config.stash[CHOSEN])
        except EdgeVerifyError as error:
            made[model] = f"cannot examine {model}: {error}"
    found = made[model]
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


def _report_of(config: pytest.Config, model: str) -> Report:
    """The model's report of this session; made, and its files written, when first asked for."""
    from edgeverify import launch

    runs = config.stash[RUNS]
    if model not in runs:
        try:
            runs[model] = launch.check(model, config.stash[CHOSEN])
            write_reports(runs[model], _paths_of(config, model))
        except EdgeVerifyError as error:
            runs[model] = f"cannot check {model}: {error}"
        except Exception as error:
            # The first test shows the traceback, the others refer to it.
            told = f"{type(error).__name__}: {error}"
            runs[model] = f"cannot check {model}: the first of its tests raised {told}"
            raise
    found = runs[model]
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


def _paths_of(config: pytest.Config, model: str) -> dict[str, Path]:
    """The report files of one model: the options' own, with the model's name if there are more."""
    paths, models = _paths(config), _models(config)
    if len(models) == 1:
        return paths
    name = _ids(models)[model]
    return {format_: path.with_stem(f"{path.stem}-{name}") for format_, path in paths.items()}


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
