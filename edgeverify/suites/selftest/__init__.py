"""Tries the checks themselves: every fault must be found, and nothing harmless reported."""
