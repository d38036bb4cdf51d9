"""The verbs of the command line, each in a module of its own: ``add_options`` and ``run``.

``run`` returns an outcome of ``core.results``. A module is imported for its own verb alone, so
the line of each verb in ``edgeverify --help`` stands here.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        module: its module in this package.
        help: its line in ``edgeverify --help``.
        loudness: whether it has ``-v`` and ``-q``.
    """

    module: str
    help: str
    loudness: bool = True


VERBS = {
    "list": Verb("list_models", "list the registered models", loudness=False),
    "check": Verb("check", "compare reference, re-authored model and .tflite"),
    "convert": Verb("convert", "write the .tflite files that check would run"),
    "inspect": Verb(
        "inspect",
        "show what a .tflite or .litertlm holds: signatures, KV cache, weights, ops",
        loudness=False,
    ),
    "check-artifact": Verb(
        "check_artifact",
        "compare a .tflite or .litertlm that was made elsewhere with the reference",
    ),
    "eval": Verb(
        "evaluate", "score each recipe's file on a text: KL, top-1, perplexity, size; with gates"
    ),
    "bench": Verb("bench", "measure prefill, decode, load time, first token and peak memory"),
    "nightly": Verb(
        "nightly", "check a matrix of models, recipes, layouts and runtimes; go on after a kill"
    ),
    "cache": Verb("cache", "list the cache, bound its size, or read all of it again"),
    "golden": Verb("golden", "compare models with their goldens, and say what has moved since"),
    "diff": Verb("diff", "compare two JSON reports; fail on a regression"),
    "history": Verb("history", "show the series of JSON reports in a folder, by time"),
    "selftest": Verb("selftest", "try the checks on faults that they must find"),
}
