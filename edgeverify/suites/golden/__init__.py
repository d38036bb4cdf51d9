"""Goldens: a run's traces on disk, and what has changed since."""
