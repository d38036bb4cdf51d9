"""The JSON report, schema 1."""

from __future__ import annotations

import json
from typing import Any

from edgeverify.core.results import Report
from edgeverify.report.answer import answer_of


def render(report: Report) -> str:
    """The report as strict JSON (no bare NaN or Infinity), ending with a line feed."""
    return json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_dict(report: Report) -> dict[str, Any]:
    """The report with its answer."""
    return {**report.to_dict(), "answer": answer_of(report).to_dict()}
