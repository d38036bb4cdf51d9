"""The documents: links, commands and examples are those of the program as it is.

``EDGEVERIFY_REWRITE_EXAMPLES=1 pytest tests/test_docs.py -k example`` writes the README's examples
anew from real runs, and fails, so that somebody looks at them.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeverify.cli import main as cli
from edgeverify.cli.options import OPTIONS, parse
from edgeverify.core.errors import UsageError
from tests import documented
from tests.documented import PAGES, ROOT, Command

README = ROOT / "README.md"
COMMANDS = [command for page in PAGES for command in documented.commands(page)]
FENCED = sorted({command.text for command in COMMANDS if command.fenced})
PORT = "my_port.py:PORT"

# Documented command → what is run for it, in the folder of ``shared``, which has ``my_port.py``.
# The tiny TinyLlama takes the place of other models and sizes.
RUN = {
    "edgeverify list": "edgeverify list",
    "edgeverify check path/to/my_port.py:PORT --backend reauthored": (
        f"edgeverify check {PORT} --backend reauthored"
    ),
    "edgeverify check path/to/my_port.py:PORT": f"edgeverify check {PORT} --json fail.json",
    "edgeverify check MODEL --recipe dynamic_int8 --recipe fp16": (
        "edgeverify check tinyllama --recipe dynamic_int8 --recipe fp16 --json pass.json"
    ),
    "edgeverify convert MODEL --recipe all --output out": (
        "edgeverify convert tinyllama --recipe dynamic_int8 --output out"
    ),
    "edgeverify inspect FILE.tflite": "edgeverify inspect out/tinyllama_tiny_dynamic_int8.tflite",
    "edgeverify diff A.json B.json": "edgeverify diff fail.json pass.json",
    "edgeverify history DIR": "edgeverify history reports --html series.html",
    "python -m edgeverify_models tinyllama": "python -m edgeverify_models tinyllama",
    "python -m edgeverify.suites.calibrate --table": "python -m edgeverify.suites.calibrate --table",
    "edgeverify cache ls [-v] [--json FILE]": "edgeverify cache ls -v --json cache.json",
    "edgeverify cache verify [--remove]": "edgeverify cache verify --remove",
    "edgeverify cache prune --older-than 30d": "edgeverify cache prune --older-than 30d",
    "edgeverify cache prune --max-size 10GiB": "edgeverify cache prune --max-size 10GiB",
}
STATUS = {RUN["edgeverify check path/to/my_port.py:PORT"]: 1}
STATUS[RUN["edgeverify check path/to/my_port.py:PORT --backend reauthored"]] = 1

# Documented command → the test file that runs the same with a tiny model or a file of its own.
BY_ANOTHER_TEST = {
    "edgeverify golden": "tests/suites/golden/test_run.py",
    "edgeverify golden --update-golden": "tests/suites/golden/test_run.py",
    "edgeverify golden gemma2 --update-golden": "tests/suites/golden/test_run.py",
    "edgeverify golden gemma1": "tests/suites/golden/test_blame.py",
    "edgeverify check gemma2 --golden golden": "tests/suites/golden/test_run.py",
    "pytest -m golden --model gemma2 [--golden-dir DIR] [--update-golden]": (
        "tests/cli/test_pytest_plugin.py"
    ),
    "pytest -m parity --model path/to/my_port.py:PORT": "tests/cli/test_pytest_plugin.py",
    "pytest -m invariants --model path/to/my_port.py:PORT": "tests/suites/invariants/test_ports.py",
    "pytest -m invariants --model gemma2 [--profile dev|ci|nightly] [--seed 1]": (
        "tests/suites/invariants/test_ports.py"
    ),
    "edgeverify check gemma2 --invariants": "tests/suites/invariants/test_ports.py",
    "edgeverify check my_port.py:PORT --invariants": "tests/suites/invariants/test_broken.py",
    "edgeverify nightly": "tests/suites/nightly/test_real.py",
    "edgeverify nightly --matrix matrix.toml --output report --jobs 4 --memory-budget 24GiB": (
        "tests/suites/nightly/test_real.py"
    ),
    "edgeverify nightly --shard 2/4 --output report": "tests/suites/nightly/test_command.py",
    "edgeverify nightly --merge shards/* --output report": "tests/suites/nightly/test_command.py",
    "edgeverify nightly --changed-since origin/main": "tests/suites/nightly/test_changed.py",
    "edgeverify check gemma2 --recipe all --runtime compiled_model --runtime tf_lite": (
        "tests/legs/runtime/test_leg.py"
    ),
    "edgeverify check smollm2 --checkpoint DIR --kv-layout transposed --runtime litert_lm": (
        "tests/legs/runtime/engine/test_real.py"
    ),
    "edgeverify convert smollm2 --checkpoint DIR --kv-layout transposed --recipe dynamic_int8 "
    "--format litertlm --output out": "tests/litert/bundle/test_writer.py",
    "edgeverify check-artifact FILE.litertlm --checkpoint DIR": "tests/legs/foreign/test_check.py",
    "edgeverify eval MODEL --checkpoint DIR --recipe all": "tests/suites/quality/test_run.py",
    "edgeverify eval MODEL --checkpoint DIR --recipe dynamic_int8 --text my.txt "
    "--gate 'mean_kl<0.05,top1>0.95'": "tests/suites/quality/test_run.py",
    "edgeverify bench FILE.tflite --kernel xnnpack --kernel builtin": (
        "tests/suites/bench/test_bench.py"
    ),
    "edgeverify bench MODEL --checkpoint DIR --recipe all --repeats 5 --threads 2": (
        "tests/suites/bench/test_bench.py"
    ),
    'edgeverify check smollm2 --checkpoint DIR_OR_FILE_OR_HUB_ID --prompt "The capital of France '
    'is"': "tests/suites/test_real.py",
    "python -m benchmarks.damaged_files FILE...": "tests/benchmarks/test_damage.py",
}
SIZE = "a published size: minutes, and gigabytes of memory"
CI = "the set-up itself: .ci/run does it"
# Documented command → why no test runs it.
NOT_RUN = {
    ".venv/bin/pytest": CI,
    ".venv/bin/edgeverify check tinyllama": CI,
    "edgeverify check gemma2 --size 2b --backend reauthored --memory-budget 4.7GB": SIZE,
    "edgeverify check gemma2 --size 2b --recipe dynamic_int8 --memory-budget 20GiB": SIZE,
    "edgeverify check gemma1 --size 7b --backend reauthored --memory-budget 16GiB --prefill 16 "
    "--decode-steps 1": SIZE,
    "edgeverify check MODEL --size SIZE --recipe dynamic_int8 --memory-budget 20GiB --prefill 32 "
    "--decode-steps 4": SIZE,
    "edgeverify check gemma2": "in cache.md, with an environment; the README's example runs it",
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
        options = cli._parser().parse_args(command.words[1:])
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
        if command.program == "pytest" and "parity|" not in command.text
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
    known = [*exemplified, *RUN, *BY_ANOTHER_TEST, *NOT_RUN]
    assert sorted(set(FENCED) - set(known)) == []
    shown = {command.text for command in COMMANDS}
    assert sorted(set(known) - shown - set(RUN)) == [], "no page shows these any more"
    for name in BY_ANOTHER_TEST.values():
        assert (ROOT / name).exists(), name
