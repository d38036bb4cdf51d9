"""Verbs of the command line, each in a module: ``HELP``, ``add_options``, ``run``."""
