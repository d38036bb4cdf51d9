"""Diagnosis by repair: the likely cause of a failed authoring leg, as far as it can be measured."""

from edgeverify.diagnose.diagnosis import diagnose

__all__ = ["diagnose"]
