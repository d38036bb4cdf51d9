"""Faults that a check must find, and changes that it must not report."""
