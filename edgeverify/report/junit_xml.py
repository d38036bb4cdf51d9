"""JUnit XML as CI systems read it: suites of testcases with their properties and counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

from edgeverify.core.results import FAIL, NOT_APPLICABLE, PASS

# ``unchecked`` is an error: readers count what is skipped as green.
KINDS = {PASS: "", FAIL: "failure", NOT_APPLICABLE: "skipped"}
COUNTED = {"failure": "failures", "error": "errors", "skipped": "skipped"}
# XML 1.0 has no way to write these, not even as references (https://www.w3.org/TR/xml/#charsets).
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class JunitCase:
    """One testcase.

    Attributes:
        classname: what groups it.
        name: its own.
        outcome: ``pass``, ``fail``, ``unchecked`` or ``not applicable``.
        text: why it is no pass.
        message: the same in one line; the text's first line if "".
        properties: what was measured.
        seconds: that it took, or None.
    """

    classname: str
    name: str
    outcome: str
    text: str = ""
    message: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class JunitSuite:
    """The testcases of one model."""

    name: str
    cases: Sequence[JunitCase]
    seconds: float
    properties: Mapping[str, Any] = field(default_factory=dict)


def document(name: str, suites: Sequence[JunitSuite]) -> str:
    """The XML document; its counts are those of all suites."""
    root = ET.Element("testsuites", name=name)
    for suite in suites:
        element = ET.SubElement(root, "testsuite", name=_clean(suite.name))
        _properties(element, suite.properties)
        for case in suite.cases:
            _add(element, case)
        _count(element, suite.cases, suite.seconds)
    _count(root, [case for s in suites for case in s.cases], sum(s.seconds for s in suites))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _add(suite: ET.Element, case: JunitCase) -> None:
    names = {"classname": _clean(case.classname), "name": _clean(case.name)}
    element = ET.SubElement(suite, "testcase", names)
    if case.seconds is not None:
        element.set("time", f"{case.seconds:.3f}")
    _properties(element, case.properties)
    if kind := _kind(case):
        message = case.message or case.text.split("\n")[0]
        told = ET.SubElement(element, kind, type=case.outcome, message=_clean(message))
        told.text = _clean(case.text)


def _kind(case: JunitCase) -> str:
    return KINDS.get(case.outcome, "error")


def _count(element: ET.Element, cases: Sequence[JunitCase], seconds: float) -> None:
    found = Counter(map(_kind, cases))
    element.set("tests", str(len(cases)))
    for kind, name in COUNTED.items():
        element.set(name, str(found[kind]))
    element.set("time", f"{seconds:.3f}")


def _properties(parent: ET.Element, facts: Mapping[str, Any]) -> None:
    if facts:
        holder = ET.SubElement(parent, "properties")
        for name, value in facts.items():
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            ET.SubElement(holder, "property", name=_clean(name), value=_clean(text))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
