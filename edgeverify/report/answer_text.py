"""The answer as lines of text: at most ``WIDTH`` columns, at most ``LINES`` lines for one fault."""

from __future__ import annotations

import re
import textwrap
from itertools import groupby

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.report.answer import Answer
from edgeverify.report.answer_parts import Part

WIDTH = 100
LINES = 12
MARKS = {PASS: "✓", FAIL: "✗", UNCHECKED: "?"}
_WORD = re.compile(r"(?:[^\s']|'[^']*')+")
_WORDS = re.compile(rf"--[\w-]+ (?!-){_WORD.pattern}|{_WORD.pattern}")
_INDENT = 7  # of "cause  "


def answer_lines(answer: Answer, width: int = WIDTH) -> list[str]:
    """All lines: outcome and case, cause, where, next, parts, and what the models say next."""
    head = [*outcome_lines(answer, width), *body_lines(answer, width)]
    said = [_cut(text, width) for text in answer.said]
    return [*head, *part_lines(answer, width, LINES - len(head) - len(said)), *said]


def outcome_lines(answer: Answer, width: int = WIDTH) -> list[str]:
    """The outcome and the case."""
    return _wrapped(f"{answer.outcome.upper()}  ", answer.case, width)


def body_lines(answer: Answer, width: int = WIDTH) -> list[str]:
    """Cause, where and next; none for a pass."""
    lines: list[str] = []
    for label, told in (("cause", answer.cause), ("where", answer.where)):
        for place, text in enumerate(told):
            head = f"{label if place == 0 else '':{_INDENT}}"
            lines += _wrapped(head, text, width, most=2)
    if answer.next:
        head = f"{'next':{_INDENT}}"
        both = f"{answer.next} {answer.command}".rstrip()
        if len(head) + len(both) <= width:
            lines.append(head + both)
        else:
            lines += _wrapped(head, answer.next, width, most=2)
            lines += _command(answer.command, width)
    return lines


def _command(text: str, width: int) -> list[str]:
    """A command that can be copied: where it does not fit, a shell's line goes on below.

    A word that is longer than a line, a path, stays whole.
    """
    lines: list[str] = []
    head = " " * _INDENT
    for words in _WORDS.findall(text):
        # An option stays with its value where a line holds both.
        for word in [words] if len(words) + _INDENT + 4 <= width else _WORD.findall(words):
            if lines and len(lines[-1]) + len(word) + 3 <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(f"{head}{'  ' if lines else ''}{word}")
    return [*(f"{line} \\" for line in lines[:-1]), *lines[-1:]]


def part_lines(answer: Answer, width: int = WIDTH, room: int | None = None) -> list[str]:
    """A line for each audit and leg.

    Where there is no room for all, neighbours of one kind that agree share a line, then all that
    agree do; so do those that are unchecked. What fails has a line of its own.
    """
    parts = answer.parts
    runs = [list(group) for _, group in groupby(parts, key=lambda part: (part.outcome, part.kind))]
    kinds = {kind: [p for p in parts if p.outcome == kind] for kind in (FAIL, UNCHECKED, PASS)}
    named = max((len(part.name) for part in parts), default=0)
    alone = [_part(part, named, width) for part in parts]
    if room is None or len(alone) <= room:
        return alone
    lines = _sharing(runs, len(alone) - room, named, width)
    if len(lines) > room:
        lines = _sharing([group for group in kinds.values() if group], len(alone), named, width)
    return lines


def _sharing(groups: list[list[Part]], over: int, named: int, width: int) -> list[str]:
    """Groups of parts of one outcome, those that do not fail in one line until none is over."""
    lines: list[str] = []
    for parts in groups:
        if over > 0 and len(parts) > 1 and parts[0].outcome != FAIL:
            names = ", ".join(dict.fromkeys(part.name for part in parts))
            short = _wrapped(f"{MARKS[parts[0].outcome]} ", names, width)
            over -= len(parts) - len(short)
            lines += short
        else:
            lines += [_part(part, named, width) for part in parts]
    return lines


def _part(part: Part, named: int, width: int) -> str:
    return _cut(f"{MARKS[part.outcome]} {part.name:{named}}  {part.text}", width)


def _wrapped(head: str, text: str, width: int, most: int | None = None) -> list[str]:
    """``text`` after ``head``; what does not fit goes below, under its beginning.

    A word that is longer than a line is cut: a name may be.
    """
    room = max(width - len(head), 20)
    lines = textwrap.wrap(" ".join(text.split()), room, break_on_hyphens=False)
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], _cut(" ".join(lines[most - 1 :]), room)]
    below = " " * len(head)
    told = [f"{head if place == 0 else below}{line}" for place, line in enumerate(lines)]
    return told or [head.rstrip()]


def _cut(text: str, width: int) -> str:
    """One line; what is left out, from a word's beginning on, is in ``-v``."""
    line = text.replace("\n", " ")
    if len(line) <= width:
        return line
    kept = line[: width - 2]
    return f"{kept[: kept.rfind(' ')] if ' ' in kept.strip() else kept} …"
