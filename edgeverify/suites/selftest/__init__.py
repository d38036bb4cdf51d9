"""Tries the checks themselves: they must detect every fault and report nothing harmless."""
