"""The tests that the pytest plugin adds: for each audit, step of a leg, invariant and golden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeverify.cli.frame import framed
from edgeverify.cli.pytest_marks import GOLDEN, INVARIANTS, PARITY
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.core.loading import is_file
from edgeverify.legs import selectors
from edgeverify.legs.ports import catalogue
from edgeverify.report.files import FORMATS, write_reports

if TYPE_CHECKING:
    from edgeverify.core.results import GoldenResult, Report
    from edgeverify.suites.invariants.examination import Examination

ALL = "all"

CHOSEN = pytest.StashKey[selectors.Selectors]()
RUNS = pytest.StashKey[dict[str, Any]]()
EXAMINATIONS = pytest.StashKey[dict[str, Any]]()


def models_of(config: pytest.Config) -> list[str]:
    given = config.option.edgeverify_model or [ALL]
    named = [name for model in given for name in (list(catalogue()) if model == ALL else [model])]
    return list(dict.fromkeys(named))


def report_paths(config: pytest.Config) -> dict[str, Path]:
    given = {name: getattr(config.option, f"edgeverify_report_{name}") for name in FORMATS}
    return {name: config.invocation_params.dir / path for name, path in given.items() if path}


def _ids(models: list[str]) -> dict[str, str]:
    """Maps a model to its name in ids and files: ``path/to/file.py:PORT`` is ``file.PORT``."""
    ids = {model: _short(model) for model in models}
    names = list(ids.values())
    # Two files with the same name keep their folders, as far as a file name can contain them.
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
        """Yields one test per audit and per leg and step; per leg if the steps need a tokenizer."""
        chosen = self.config.stash[CHOSEN]
        # With ``--dist loadgroup`` a model's tests stay on one worker and share its run. xdist
        # recognises a group by this suffix; xdist's own mark (3.8) sets it in an attribute that
        # pytest 9.2 no longer reads.
        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(models_of(self.config)).items():
            group = f"@{name}" if grouped else ""
            for audit in chosen.audits:
                test = f"{name}[audit-{audit}]{group}"
                yield AuditItem.from_parent(self, name=test, model=model, audit=audit)
            for leg in chosen.legs:
                for step in chosen.steps_of(leg):
                    test = f"{name}[{leg}-{step}]" if step else f"{name}[{leg}]"
                    test += group
                    yield ParityItem.from_parent(
                        self, name=test, model=model, leg=str(leg), step=step
                    )


class InvariantsCollector(pytest.Collector):
    """Yields one test per model, invariant and implementation."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yields the applicable pairs, one implementation after another."""
        from edgeverify.suites.invariants.pairs import cells

        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(models_of(self.config)).items():
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
        """Yields the reference's golden, then the file's."""
        grouped = getattr(self.config.option, "loadgroup", False)
        for model, name in _ids(models_of(self.config)).items():
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
        """Fails with a list of what has changed."""
        from edgeverify.core.results import PASS
        from edgeverify.report.words import golden_lines

        result = self._compared()
        ratios = [change.ratio for change in result.changes if change.ratio is not None]
        self.user_properties.append(("moved", ", ".join(result.moved)))
        self.user_properties.append(("largest_change", max(ratios, default=0.0)))
        if result.outcome != PASS:
            pytest.fail("\n".join(golden_lines(result)), pytrace=False)

    def _compared(self) -> GoldenResult:
        chosen, directory = self.config.stash[CHOSEN], golden_dir(self.config)
        asked = {"update": self.config.option.edgeverify_update_golden, "kinds": (self.kind,)}
        try:
            # Compares only this golden: another worker may have the other one and report it.
            report = framed(
                "edgeverify.suites.check",
                lambda suite, loud: suite.verify_goldens(
                    self.model, chosen, directory, **asked, **loud
                ),
            )
        except EdgeVerifyError as error:
            pytest.fail(f"cannot compare {self.model} with its goldens: {error}", pytrace=False)
        return report.goldens[0]

    def reportinfo(self) -> tuple[Path, None, str]:
        """Returns the project's root and the id, because the test has no file of its own."""
        return self.config.rootpath, None, self.nodeid


def golden_dir(config: pytest.Config) -> Path:
    given = config.option.edgeverify_golden_dir
    return config.invocation_params.dir / given if given else config.rootpath / "golden"


class ModelItem(pytest.Item):
    """A test of one model; all tests of a model share one run."""

    def __init__(self, *, model: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.add_marker(PARITY)

    def setup(self) -> None:
        """Runs the model's check, unless an earlier test has run it."""
        self.report = _report_of(self.config, self.model)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Returns the project's root and the id, because the test has no file of its own."""
        return self.config.rootpath, None, self.nodeid


class AuditItem(ModelItem):
    """One audit of one model."""

    def __init__(self, *, audit: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.audit = audit

    def runtest(self) -> None:
        """Fails with the audit's findings unless it passed."""
        from edgeverify.core.results import PASS
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
        """Fails with the report's own text unless the step passed."""
        from edgeverify.core.results import PASS
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
        """Loads the model, unless an earlier test has loaded it."""
        self.examination = _examination_of(self.config, self.model)

    def runtest(self) -> None:
        """Fails with the shortest case that was found and the way to reproduce it."""
        from edgeverify.core.quiet import without_chatter
        from edgeverify.core.results import NOT_APPLICABLE, PASS
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
        """Returns the project's root and the id, because the test has no file of its own."""
        return self.config.rootpath, None, self.nodeid


def _examination_of(config: pytest.Config, model: str) -> Examination:
    """Returns the model under examination in this session; the first call loads it."""

    from edgeverify.suites.invariants.examination import examination

    made = config.stash[EXAMINATIONS]
    if model not in made:
        try:
            made[model] = examination(model, config.stash[CHOSEN])
        except EdgeVerifyError as error:
            made[model] = f"cannot examine {model}: {error}"
    found = made[model]
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


def _report_of(config: pytest.Config, model: str) -> Report:
    """Returns the model's report of this session; the first call makes it and writes its files."""
    chosen = config.stash[CHOSEN].arguments()
    runs = config.stash[RUNS]
    if model not in runs:
        try:
            runs[model] = framed(
                "edgeverify.suites.check",
                lambda suite, loud: suite.verify(model, **chosen, **loud),
            )
            write_reports(runs[model], _paths_of(config, model))
        except EdgeVerifyError as error:
            runs[model] = f"cannot check {model}: {error}"
        except Exception as error:
            # Only the first test shows the traceback; the others refer to it.
            told = f"{type(error).__name__}: {error}"
            runs[model] = f"cannot check {model}: the first of its tests raised {told}"
            raise
    found = runs[model]
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


def _paths_of(config: pytest.Config, model: str) -> dict[str, Path]:
    """Returns the report files of one model; with several models, they contain its name."""
    paths, models = report_paths(config), models_of(config)
    if len(models) == 1:
        return paths
    name = _ids(models)[model]
    return {format_: path.with_stem(f"{path.stem}-{name}") for format_, path in paths.items()}
