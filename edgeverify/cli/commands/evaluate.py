"""``edgeverify eval``: the quality of each recipe's file, and gates on it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgeverify.cli.frame import framed
from edgeverify.cli.options import add_selectors, parse
from edgeverify.core.choices import whole_number
from edgeverify.core.errors import UsageError
from edgeverify.legs import selectors
from edgeverify.legs.ports import check_name
from edgeverify.report.files import check_paths, write_atomically

if TYPE_CHECKING:
    from edgeverify.suites.quality.gate import Gates

# The steps of a check have no meaning here, and every recipe is one file.
WITHOUT = (
    "--backend",
    "--prefill",
    "--decode-steps",
    "--no-prefill-logits",
    "--prompt",
    "--kv-cache-len",
    "--profile",
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    command.add_argument("model", metavar="MODEL")
    add_selectors(command.add_argument, without=WITHOUT)
    add = command.add_argument
    add("--text", metavar="FILE", type=Path, help="a UTF-8 text (default: one that is shipped)")
    add("--tokens", metavar="N", help="take no more than the text's first N tokens")
    add("--window", metavar="N", help="tokens of a window, each from an empty cache (default: 128)")
    gates = command.add_mutually_exclusive_group()
    gates.add_argument(
        "--gate", metavar="EXPR", help="what must hold, e.g. 'mean_kl<0.05,top1>0.95'"
    )
    gates.add_argument(
        "--gate-file",
        metavar="FILE",
        type=Path,
        help="the same by recipe, in TOML (default: file.gates.toml beside file.py:PORT)",
    )
    add("--json", metavar="FILE", type=Path, help="write everything to a file")
    add("--markdown", metavar="FILE", type=Path, help="write the tables to a file")


def run(options: argparse.Namespace) -> str:
    """Evaluates and shows; the outcome.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    chosen = parse(options)
    check_name(options.model, chosen.size)
    files = {"--json": options.json, "--markdown": options.markdown}
    check_paths({option: path for option, path in files.items() if path})
    if options.text is not None and not options.text.is_file():
        raise UsageError("there is no such file", where=f"--text {options.text}")
    tokens = whole_number("--tokens", options.tokens, None, lowest=2)
    window = whole_number("--window", options.window, None, lowest=2, highest=selectors.MAX_LENGTH)
    gates = _gates(options, chosen)

    from edgeverify.suites.quality import tables

    given = {"text": options.text, "tokens": tokens, "gates": gates}
    given |= {} if window is None else {"window": window}
    result = framed(
        "edgeverify.suites.quality.run",
        lambda suite, loud: suite.evaluate(options.model, chosen, suite.Asked(**given), **loud),
        options,
    )
    shown = tables.lines(result)
    print("\n".join(shown[:1] if options.quiet and result.passed else shown))
    if options.json:
        text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(options.json, text + "\n")
    if options.markdown:
        write_atomically(options.markdown, tables.markdown(result))
    return result.outcome


def _gates(options: argparse.Namespace, chosen: selectors.Selectors) -> Gates:
    from edgeverify.litert.recipes import label
    from edgeverify.suites.quality import gate

    if options.gate is not None:
        return gate.Gates(default=gate.parse(options.gate), source="--gate")
    path = options.gate_file or gate.beside(options.model)
    if path is None:
        return gate.Gates()
    return gate.load_gates(path, [label(name) for name in chosen.recipes])
