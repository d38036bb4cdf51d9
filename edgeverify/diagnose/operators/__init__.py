"""Finds operators of a .tflite that differ from the re-authored model, both in float64."""

from edgeverify.diagnose.operators.localise import op_findings
from edgeverify.diagnose.operators.sources import Source, find_sources

__all__ = ["Source", "find_sources", "op_findings"]
