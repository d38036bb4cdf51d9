"""Verbs of the command line, each in a module of its own: ``add_options`` and ``run``."""
