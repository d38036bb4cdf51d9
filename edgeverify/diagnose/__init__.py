"""Diagnosis by repair: finds the likely cause of a failed authoring leg where it is measurable."""

from edgeverify.diagnose.diagnosis import diagnose

__all__ = ["diagnose"]
