"""What all pages share: the templates, with every value escaped, and how numbers are shown."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from edgeverify.core.results import FAIL, PASS, UNCHECKED
from edgeverify.report.advice import hint
from edgeverify.report.words import counts, number, plural, scientific

HERE = "edgeverify.report.html"
MARKS = {PASS: "✓", FAIL: "✗", UNCHECKED: "?"}


def rendered(template: str, *, package: str = HERE, **values: Any) -> str:
    """A page.

    Args:
        template: its file's name.
        package: whose folder ``templates`` has it; it may use those of this one.
        values: what the template names.
    """
    return _environment(package).get_template(template).render(**values)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, HERE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["marks"] = MARKS
    environment.filters |= {
        function.__name__: function for function in (counts, hint, number, plural, scientific)
    }
    return environment
