"""``edgeverify bench``: measures speed and memory of a file, or of each recipe of a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeverify.cli.commands.evaluate import WITHOUT
from edgeverify.cli.frame import Loud, framed
from edgeverify.cli.options import add_selectors, parse
from edgeverify.core.case import KERNELS
from edgeverify.core.choices import one_of, whole_number
from edgeverify.core.errors import UsageError
from edgeverify.legs import selectors
from edgeverify.legs.ports import check_name
from edgeverify.report.files import check_paths, write_atomically

if TYPE_CHECKING:
    from edgeverify.suites.bench.run import Bench

MAX_THREADS, MAX_REPEATS = 1024, 1000


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    command.add_argument("model", metavar="FILE|MODEL", help="a .tflite, or a model as for check")
    add_selectors(command.add_argument, without=(*WITHOUT, "--kernel"))
    add = command.add_argument
    add(
        "--kernel",
        metavar="K",
        action="append",
        help=f"LiteRT kernels, repeatable: {', '.join(KERNELS)} (default: xnnpack)",
    )
    add("--repeats", metavar="N", help="how often each figure is measured (default: 5)")
    add("--threads", metavar="N", help="threads of the interpreter (default: one for each core)")
    add("--json", metavar="FILE", type=Path, help="write everything to a file")


def run(options: argparse.Namespace) -> str:
    """Measures, shows the result, and returns the outcome.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = parse(options)
    kernels = [one_of("--kernel", k, KERNELS) for k in dict.fromkeys(options.kernel or ["xnnpack"])]
    threads = whole_number("--threads", options.threads, None, highest=MAX_THREADS)
    repeats = whole_number("--repeats", options.repeats, None, highest=MAX_REPEATS)
    check_paths({"--json": options.json} if options.json else {})
    file = _file(options, chosen)
    if file is None:
        check_name(options.model, chosen.size)

    from edgeverify.suites.bench import tables

    given = {"threads": threads, **({} if repeats is None else {"repeats": repeats})}

    def measure(suite: Any, loud: Loud) -> Bench:
        if file is not None:
            return suite.bench_file(file, kernels, **given, progress=loud["progress"])
        return suite.bench_model(options.model, chosen, kernels, **given, **loud)

    result = framed("edgeverify.suites.bench.run", measure, options)
    print("\n".join(tables.lines(result)))
    if options.json:
        text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(options.json, text + "\n")
    return result.outcome


def _file(options: argparse.Namespace, chosen: selectors.Selectors) -> Path | None:
    """Returns the file, if one is named; options that select a model are then refused."""
    path = Path(options.model)
    if path.suffix in (".litertlm", ".task"):
        raise UsageError(
            f"measures no {path.suffix}",
            where=f"bench {path}",
            expected="a .tflite, or a model",
            fix="name the .tflite that it was made from",
        )
    if path.suffix != ".tflite":
        return None
    if not path.is_file():
        raise UsageError("there is no such file", where=path, expected="a .tflite")
    if chosen != selectors.Selectors(cache=chosen.cache):
        raise UsageError(
            "a file has its weights and its recipe already",
            where=path,
            expected="no more than --kernel, --repeats, --threads and --json",
            fix="leave the other options out, or name a model",
        )
    return path
