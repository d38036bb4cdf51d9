"""The documents: links, commands and examples are those of the program as it is.

``EDGEVERIFY_REWRITE_EXAMPLES=1 pytest tests/test_docs.py -k example`` writes the README's examples
anew from real runs, and fails, so that somebody looks at them.
"""

from __future__ import annotations

import ast
import contextlib
import glob
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeverify.cli import main as cli
from edgeverify.cli.options import parse
from edgeverify.core.errors import UsageError
from edgeverify.report import terminal
from tests import documented
from tests.documented import PAGES, ROOT, Command

README = ROOT / "README.md"
COMMANDS = [command for page in PAGES for command in documented.commands(page)]
FENCED = sorted({command.text for command in COMMANDS if command.fenced})
PORT = "my_port.py:PORT"

TABLE = "python -m edgeverify.suites.calibrate --table"
OUTLIERS = "python -m edgeverify.suites.outliers --table"
# Documented command → what is run for it, in the folder of ``run``, which has ``my_port.py``. Tiny
# ports take the place of other models. Some take files of others: see ``NEEDS``.
# The cache is that of the other tests, which convert the same; the verb ``cache`` has its own.
RUN = {
    "edgeverify list": "edgeverify list",
    "edgeverify check path/to/my_port.py:PORT --backend reauthored": (
        f"edgeverify check {PORT} --backend reauthored --cache c"
    ),
    "edgeverify check path/to/my_port.py:PORT": f"edgeverify check {PORT} --json reports/a.json",
    "edgeverify check gemma2": "edgeverify check tinyllama --json reports/b.json",
    "edgeverify check MODEL --recipe dynamic_int8 --recipe fp16": (
        "edgeverify check tinyllama --recipe dynamic_int8 --recipe fp16"
    ),
    "edgeverify convert MODEL --recipe all --output out": (
        "edgeverify convert tinyllama --prefill 8 --recipe dynamic_int8 --output out"
    ),
    "edgeverify inspect FILE.tflite": "edgeverify inspect out/*.tflite",
    "edgeverify diff A.json B.json": "edgeverify diff reports/b.json reports/b.json",
    "edgeverify history DIR [--html FILE]": "edgeverify history reports --html series.html",
    "python -m edgeverify_models tinyllama": "python -m edgeverify_models tinyllama",
    TABLE: TABLE,
    OUTLIERS: OUTLIERS,
    "edgeverify cache ls [-v] [--json FILE]": "edgeverify cache ls -v --json ls.json --cache c",
    "edgeverify cache verify [--remove]": "edgeverify cache verify --remove --cache c",
    "edgeverify cache prune --older-than 30d": "edgeverify cache prune --older-than 30d --cache c",
    "edgeverify cache prune --max-size 10GiB": "edgeverify cache prune --max-size 10GiB --cache c",
}
FAILS = {text for text, run in RUN.items() if PORT in run}
# The beginning of a command → the documented command whose files it takes. Another process may
# have run that one.
NEEDS = {
    "edgeverify cache": "edgeverify check path/to/my_port.py:PORT --backend reauthored",
    "edgeverify inspect": "edgeverify convert MODEL --recipe all --output out",
    "edgeverify diff": "edgeverify check gemma2",
    "edgeverify history": "edgeverify check gemma2",
}
# Test → the documented commands whose work it does, with a tiny model or a file of its own.
BY_ANOTHER_TEST = {
    "suites/golden/test_run.py::test_every_ports_goldens_hold": (
        "edgeverify golden",
        "edgeverify golden gemma1",
        "edgeverify check gemma2 --golden golden",
    ),
    "suites/golden/test_run.py::test_a_damaged_golden_fails_alone_and_can_be_rewritten": (
        "edgeverify golden --update-golden",
        "edgeverify golden gemma2 --update-golden",
    ),
    "cli/test_pytest_plugin.py::test_goldens_are_updated_where_that_is_asked_for": (
        "pytest -m golden --model gemma2 [--golden-dir DIR] [--update-golden]",
    ),
    "cli/test_pytest_plugin.py::test_a_port_of_a_file_has_a_readable_id": (
        "pytest -m parity --model path/to/my_port.py:PORT",
    ),
    "suites/invariants/test_ports.py::test_all_hold_on_pytorch": (
        "pytest -m invariants --model path/to/my_port.py:PORT",
    ),
    "suites/invariants/test_ports.py::test_all_hold_on_the_file": (
        "pytest -m invariants --model gemma2 [--profile dev|ci|nightly] [--seed 1]",
        "edgeverify check gemma2 --invariants",
    ),
    "suites/invariants/test_broken.py::test_a_broken_port_breaks_its_invariant": (
        "edgeverify check my_port.py:PORT --invariants",
    ),
    "suites/nightly/test_real.py::test_two_at_once_on_one_cache_convert_once_and_agree": (
        "edgeverify nightly",
        "edgeverify nightly --matrix matrix.toml --output report --jobs 4 --memory-budget 24GiB",
    ),
    "suites/nightly/test_command.py::test_shards_merge_into_the_whole": (
        "edgeverify nightly --shard 2/4 --output report",
        "edgeverify nightly --merge shards/* --output report",
    ),
    "suites/nightly/test_changed.py::test_since_where_the_branch_began": (
        "edgeverify nightly --changed-since origin/main",
    ),
    "legs/runtime/test_leg.py::test_every_port_passes_on_every_interpreter": (
        "edgeverify check gemma2 --recipe all --runtime compiled_model --runtime tf_lite",
    ),
    "legs/runtime/engine/test_real.py::"
    "test_the_transposed_file_answers_with_the_references_tokens": (
        "edgeverify check smollm2 --checkpoint DIR --kv-layout transposed --runtime litert_lm",
    ),
    "legs/foreign/test_check.py::test_a_transposed_bundle_with_masks_as_inputs_passes": (
        "edgeverify check-artifact FILE.litertlm --checkpoint DIR",
    ),
    "suites/quality/test_run.py::test_a_recipe_has_its_figures_and_its_own_gates": (
        "edgeverify eval MODEL --checkpoint DIR --recipe all",
        "edgeverify eval MODEL --checkpoint DIR --recipe dynamic_int8 --text my.txt "
        "--gate 'mean_kl<0.05,top1>0.95'",
    ),
    "suites/bench/test_bench.py::test_a_real_file_is_measured": (
        "edgeverify bench FILE.tflite --kernel xnnpack --kernel builtin",
        "edgeverify bench MODEL --checkpoint DIR --recipe all --repeats 5 --threads 2",
    ),
    "suites/test_check.py::test_a_real_model_passes_and_answers": (
        'edgeverify check smollm2 --checkpoint DIR_OR_FILE_OR_HUB_ID --prompt "The '
        'capital of France is"',
    ),
    "benchmarks/test_damage.py::test_damaged_files_end_in_a_verdict_or_an_error": (
        "python -m benchmarks.damaged_files FILE...",
    ),
    "benchmarks/test_odd_checkpoints.py::test_an_odd_checkpoint_is_judged_or_refused_in_a_line": (
        "python -m benchmarks.odd_checkpoints --count 300",
    ),
}
SIZE = "a published size: minutes, and gigabytes of memory"
CI = "the set-up itself: .ci/run does it"
# Documented command → why no test runs it.
NOT_RUN = {
    "pytest tests/test_docs.py -k example": "these tests themselves",
    ".venv/bin/pytest": CI,
    ".venv/bin/edgeverify check tinyllama": CI,
    "edgeverify check gemma2 --size 2b --backend reauthored --memory-budget 4.7GB": SIZE,
    "edgeverify check gemma2 --size 2b --recipe dynamic_int8 --memory-budget 20GiB": SIZE,
    "edgeverify check gemma1 --size 7b --backend reauthored --memory-budget 16GiB --prefill 16 "
    "--decode-steps 1": SIZE,
    "edgeverify check MODEL --size SIZE --recipe dynamic_int8 --memory-budget 20GiB --prefill 32 "
    "--decode-steps 4": SIZE,
    "edgeverify convert smollm2 --checkpoint DIR --kv-layout transposed --recipe dynamic_int8 "
    "--format litertlm --output out": "a real checkpoint; the engine's tests make the same bundle",
    "python -m benchmarks.growth --svg docs/growth.svg": "half an hour of measurements",
    "python benchmarks/real_model.py": "a quarter of an hour of measurements",
}


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 150


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Path and anchor of each relative link of a page."""
    text = documented.FENCE.sub("", page.read_text("utf-8"))
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        yield path, anchor


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = documented.FENCE.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / path).resolve() for path, _ in links(index)}
    assert set((ROOT / "docs").glob("*.md")) - {index} <= linked
    assert index in {(README.parent / path).resolve() for path, _ in links(README)}


def refused(command: Command) -> str:
    """Why the parser, or the options' own judgement, refuses a command of ``edgeverify``."""
    try:
        options = cli._parser(command.words[1:]).parse_args(command.words[1:])
        if all(hasattr(options, f"edgeverify_{flag}") for flag in ("kernel", "prefill")):
            parse(options)
    except UsageError as error:
        return str(error)
    except SystemExit as ended:  # --help
        return "" if ended.code == 0 else f"status {ended.code}"
    return ""


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command.program == "edgeverify"],
    ids=lambda command: f"{command.page}: {command.text}",
)
def test_the_parser_takes_every_command(command: Command) -> None:
    told = refused(command)
    if not command.fenced and "arguments are required" in told:
        return  # a sentence may name a verb without its arguments
    assert told == ""


def test_the_parser_refuses_what_is_no_option() -> None:
    assert "--nope" in refused(Command("", "edgeverify check tinyllama --nope", True))
    assert "'int9'" in refused(Command("", "edgeverify check tinyllama --recipe int9", True))
    assert "'nope'" in refused(Command("", "edgeverify nope", True))


def test_pytest_takes_every_command(tmp_path: Path) -> None:
    """Each is collected, not run, in a folder with a port and goldens: status 4 is bad usage."""
    for name, text in documented.files(README).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "golden").mkdir()
    places = {"M": "tinyllama", f"path/to/{PORT}": PORT, "DIR": "golden"}
    asked = [
        [places.get(word, word) for word in command.words[1:]]
        for command in dict.fromkeys(COMMANDS)
        if command.program == "pytest" and "tests/" not in command.text
    ]
    assert len(asked) > 5
    script = (
        f"import pytest\nfor words in {asked!r}:\n"
        "    print('status', int(pytest.main([*words, '--collect-only', '-q'])), words)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    statuses = re.findall(r"^status (\d+) (.*)$", done.stdout, re.MULTILINE)
    assert len(statuses) == len(asked), done.stderr
    assert [words for status, words in statuses if status not in "05"] == []  # 5: no test there


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command.program.startswith("python")],
    ids=lambda command: f"{command.page}: {command.text}",
)
def test_a_module_or_script_knows_the_options_that_are_shown(command: Command) -> None:
    """The module itself is found by test_names_in_strings.py."""
    words = command.words[1:]
    path = ROOT / words[0]
    if words[0] == "-m":
        name = words[1].replace(".", "/").replace("edgeverify_models", "models")
        path = next(p for p in (ROOT / f"{name}.py", ROOT / name / "__main__.py") if p.exists())
    flags = [word for word in words[: (*words, "--").index("--")] if word.startswith("--")]
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert [flag for flag in flags if flag not in strings] == []


def test_every_command_is_run_or_says_why_not() -> None:
    exemplified = {command for command, _ in documented.examples(README).values()}
    elsewhere = {text for texts in BY_ANOTHER_TEST.values() for text in texts}
    known = {*exemplified, *RUN, *elsewhere, *NOT_RUN}
    assert sorted(set(FENCED) - known) == []
    assert sorted(known - {command.text for command in COMMANDS}) == [], "no page shows these"
    assert len(known) == len(RUN) + len(elsewhere) + len(NOT_RUN) + len(exemplified - set(RUN))
    for test in BY_ANOTHER_TEST:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text("utf-8"), test


Run = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command in this process and one folder, and gives its status and output."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "reports").mkdir()
    for name, text in documented.files(README).items():
        (folder / name).write_text(text)

    def one(text: str) -> tuple[int, str]:
        words = [w for word in Command("", text, True).words for w in glob.glob(word) or [word]]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if words[0] == "edgeverify":
                return cli.main(words[1:]), out.getvalue()
            module = f"{words[2]}.__main__" if words[2] == "edgeverify_models" else words[2]
            return importlib.import_module(module).main(words[3:]), out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(terminal, "PIPED_WIDTH", 100)
        yield one


@pytest.fixture(scope="module")
def done() -> set[str]:
    """The documented commands that this process has run."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("name", documented.examples(README))
def test_an_example_is_what_the_command_prints(name: str, run: Run) -> None:
    command, shown = documented.examples(README)[name]
    status, printed = run(command)
    assert status == (1 if name == "fail" else 0), printed
    if os.environ.get("EDGEVERIFY_REWRITE_EXAMPLES"):
        documented.rewrite(README, name, printed)
    assert documented.differences(shown, printed) == [], printed


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUN)
def test_a_command_runs(shown: str, run: Run, done: set[str]) -> None:
    for start, needed in NEEDS.items():
        if shown.startswith(start) and needed not in done:
            run(RUN[needed])
            done.add(needed)
    status, printed = run(RUN[shown])
    done.add(shown)
    assert status == (1 if shown in FAILS else 0), printed
    assert printed


SHOWN = "fail  worst 0.97 (allowed 1.5) at prefill.0/a.b, position 12: 8.8e+05 in 21 s\n  363 taps"


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("fail worst 1.01 (allowed 1.5) at decode.3/c, position 7: 9.1e+05 in 9 s 363 taps", []),
        (SHOWN.replace("fail", "pass"), ["'fail' is 'pass'"]),
        (SHOWN.replace("363", "362"), ["'363' is '362'"]),
        (SHOWN.replace("0.97", "9.7"), ["'0.97' is '9.7'"]),
        (SHOWN.replace(" taps", ""), ["14 words are 13"]),
    ],
)
def test_only_what_is_measured_may_differ(printed: str, told: list[str]) -> None:
    assert documented.differences(SHOWN, printed) == told


def test_figures_of_the_self_test_are_those_of_its_page() -> None:
    """The README and measurements.md repeat what ``edgeverify selftest`` wrote."""
    page = (ROOT / "docs" / "selftest.md").read_text("utf-8")
    table = page[page.index("| area |") :].split("\n\n")[0]
    assert table in (ROOT / "docs" / "measurements.md").read_text("utf-8")
    faults, runs, harmless = re.search(
        r"^\| all \| (\d+) \| (\d+) .* (\d+) \| \d+ \|", table, re.M
    ).groups()  # type: ignore[union-attr]
    text = README.read_text("utf-8")
    assert f"detects {runs} of {runs} planted faults" in text
    assert f"false alarm in {harmless} harmless runs" in text
    assert f"plants {faults} known faults" in text
