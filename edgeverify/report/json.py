"""The JSON report, schema 1."""

from __future__ import annotations

import json

from edgeverify.core.results import Report


def render(report: Report) -> str:
    """The report as strict JSON (no bare NaN or Infinity), ending with a line feed."""
    return json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
