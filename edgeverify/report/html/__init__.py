"""The report as one page: no script, nothing loaded from elsewhere, readable on a phone."""

from edgeverify.report.html.page import render

__all__ = ["render"]
