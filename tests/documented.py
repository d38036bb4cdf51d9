"""What the documents show: their commands, and the examples with their output."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "golden" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Command:
    """A command that a page shows.

    Attributes:
        page: the page's path in the project.
        text: the command without prompt, comment and environment.
        fenced: it stands in a block of its own, not in a sentence or table.
    """

    page: str
    text: str
    fenced: bool

    @property
    def words(self) -> list[str]:
        """The arguments, with all optional ones taken and the first of each choice."""
        text = re.sub(r"(?<=[ |])\[([^\]]*)\]|\[([^\]]*)\](?=$| )", r" \1\2 ", self.text)
        words = shlex.split(text)
        return [w if "<" in w or "'" in w else w.split("|")[0] for w in words]

    @property
    def program(self) -> str:
        """``edgeverify``, ``pytest`` or ``python``."""
        return Path(self.words[0]).name


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order, each once."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    shown = [
        Command(name, part, True)
        for _, language, block in FENCE.findall(text)
        if language in ("", "sh", "console")
        for line in _input(block.replace("\\\n", " ").splitlines())
        for part in _parts(line)
    ]
    for span in SPAN.findall(FENCE.sub("", text)):
        if " " in span and not re.search(r"[…]", span):
            shown += [Command(name, part, False) for part in _parts(span)]
    return list(dict.fromkeys(shown))


def _input(lines: list[str]) -> list[str]:
    """What a user types of a block: with prompts those lines, of a report nothing, else all."""
    prompted = [line for line in lines if line.startswith("$ ")]
    return prompted or ([] if lines[0].startswith(("PASS", "FAIL", "UNCHECKED")) else lines)


def _parts(line: str) -> list[str]:
    """The commands of ours in a line of a shell."""
    line = re.sub(r"\s+#.*$", "", line.strip()).removeprefix("$ ")
    parts = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", part.strip()) for part in line.split("&&")]
    return [
        part
        for part in parts
        if re.match(r"(?:\S*/)?(?:edgeverify |pytest|python -m (?!venv|build)|python \w+/)", part)
    ]


EXAMPLE = re.compile(
    r"<!-- example: (\w+) -->\n```\n\$ (.+?)\n(.*?)```\n<!-- /example -->", re.DOTALL
)
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```\n", re.DOTALL)


def examples(page: Path) -> dict[str, tuple[str, str]]:
    """Name → command and output of each example between its markers."""
    return {name: (command, out) for name, command, out in EXAMPLE.findall(page.read_text("utf-8"))}


def files(page: Path) -> dict[str, str]:
    """Name → text of each file that a page shows."""
    return dict(FILE.findall(page.read_text("utf-8")))


def rewrite(page: Path, name: str, output: str) -> None:
    """Puts an output between the markers of an example."""
    shown = "\n".join(line.rstrip() for line in output.rstrip().splitlines())

    def one(match: re.Match[str]) -> str:
        if match[1] != name:
            return match[0]
        return f"<!-- example: {name} -->\n```\n$ {match[2]}\n{shown}\n```\n<!-- /example -->"

    page.write_text(EXAMPLE.sub(one, page.read_text("utf-8")), encoding="utf-8")


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# Which tap or row is the worst of many right ones, and how long a run takes, differs by machine.
BY_MACHINE = (
    (re.compile(r"(worst [^@]*?) at (?:prefill|decode)\.\d+/[\w.]+"), r"\1 at TAP"),
    (re.compile(r"position [1-9]\d*"), "position N"),
    (re.compile(r"\b[\d.]+ (?:s|min)\b"), "TIME"),
)
FACTOR = 2.0  # of measured numbers; 0.97 and 1.01 have been seen on two machines


def differences(documented: str, printed: str) -> list[str]:
    """What two outputs say differently, word by word.

    Line breaks do not count. Whole numbers are equal or different; numbers with a fraction or an
    exponent are measured, and agree within ``FACTOR``.
    """
    words = [_words(documented), _words(printed)]
    found = [
        f"{ours!r} is {theirs!r}"
        for ours, theirs in zip(*words, strict=False)
        if not _same(ours, theirs)
    ]
    if len(words[0]) != len(words[1]):
        found.append(f"{len(words[0])} words are {len(words[1])}")
    return found


def _words(text: str) -> list[str]:
    text = " ".join(text.split())
    for pattern, replacement in BY_MACHINE:
        text = pattern.sub(replacement, text)
    return text.split(" ")


def _same(ours: str, theirs: str) -> bool:
    if NUMBER.sub("#", ours) != NUMBER.sub("#", theirs):
        return False
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True)
    return all(_close(a, b) for a, b in pairs)


def _close(ours: str, theirs: str) -> bool:
    if not any(sign in ours for sign in ".e") or ours == theirs:
        return ours == theirs
    a, b = abs(float(ours)), abs(float(theirs))
    return min(a, b) > 0 and max(a, b) / min(a, b) <= FACTOR
