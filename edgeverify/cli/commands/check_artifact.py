"""``edgeverify check-artifact FILE --checkpoint DIR``: verifies a file made by others."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeverify.cli.commands.inspect import check_file
from edgeverify.cli.commands.show_report import show
from edgeverify.cli.frame import framed
from edgeverify.core.case import DEFAULT_DECODE_STEPS, KERNELS
from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError
from edgeverify.legs.ports import check_name
from edgeverify.report.files import FORMATS, check_paths


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("file", metavar="FILE", type=Path)
    add(
        "--checkpoint",
        metavar="PATH_OR_HUB_ID",
        required=True,
        help="weights of the reference: a file, a folder or a hub id",
    )
    add("--model", metavar="MODEL", help="the port (default: found by the checkpoint's config)")
    add("--recipe", metavar="R", help="by which it was quantized, so that each layer is held to it")
    add("--size", metavar="S", help="size of the model, where the weights have no config.json")
    add("--kernel", metavar="K", default="xnnpack", help=f"LiteRT kernels: {', '.join(KERNELS)}")
    add(
        "--decode-steps",
        metavar="N",
        type=int,
        default=DEFAULT_DECODE_STEPS,
        help=f"decode steps after the prompt (default: {DEFAULT_DECODE_STEPS})",
    )
    add("--seed", metavar="N", type=int, default=0, help="seed of the prompt (default: 0)")
    add("--prompt", metavar="TEXT", help="a text to run instead; needs a tokenizer")
    add("--time-limit", metavar="SECONDS", type=float, help="end a file that runs longer")
    add("--trust-remote-code", action="store_true", help="as for check")
    add("--cache", metavar="DIR", type=Path, help="folder of oracle traces")
    for name in FORMATS:
        add(f"--{name}", metavar="FILE", type=Path, help=f"write a {name} report")


def run(options: argparse.Namespace) -> str:
    """Checks the file and shows the report; returns its outcome."""
    paths = {name: getattr(options, name) for name in FORMATS if getattr(options, name)}
    check_paths({f"--{name}": path for name, path in paths.items()})
    check_file(options.file)
    if options.model is not None:
        check_name(options.model, options.size)
    if options.time_limit is not None and options.time_limit <= 0:
        raise UsageError(
            f"got {options.time_limit:g}", where="--time-limit", expected="seconds above 0"
        )
    one_of("--kernel", options.kernel, KERNELS)

    names = ("size", "kernel", "decode_steps", "seed", "prompt", "trust_remote_code", "cache")
    asked = {name: getattr(options, name) for name in names}
    asked |= {"checkpoint": options.checkpoint, "port": options.model, "recipe": options.recipe}
    asked |= {"seconds": options.time_limit} if options.time_limit else {}
    report = framed(
        "edgeverify.legs.foreign.check",
        lambda suite, loud: suite.verify_artifact(options.file, **asked, **loud),
        options,
    )
    show(report, paths, quiet=options.quiet, verbose=options.verbose)
    return report.outcome
