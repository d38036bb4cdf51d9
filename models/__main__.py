"""``python -m edgeverify_models NAME [--size S]``: builds a port and runs sample inputs.

Exit status: 0 done, 2 bad usage, explained in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgeverify_models import CATALOGUE, load


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one port of the catalogue with random weights and prints shapes and some logits."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify_models",
        description="Build a re-authored model with seeded random weights and run it.",
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(CATALOGUE))
    parser.add_argument("--size", help="default: tiny (float32: 4 bytes for each parameter)")
    parser.add_argument("--prompt-length", type=int, default=24, metavar="N")
    parser.add_argument("--decode-steps", type=int, default=4, metavar="N")
    parser.add_argument("--kv-layout", choices=("default", "transposed"), default="default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    entry = CATALOGUE.get(options.name)
    if entry is None:
        return _usage(f"unknown model {options.name!r}; expected one of {', '.join(CATALOGUE)}")
    size = options.size or entry.default_size
    if size not in entry.sizes:
        return _usage(
            f"{options.name} has no size {size!r}; expected one of {', '.join(entry.sizes)}"
        )
    if options.prompt_length < 1 or options.decode_steps < 0:
        return _usage("--prompt-length is at least 1, --decode-steps at least 0")

    from edgeverify_models.run import (
        define_and_run,  # takes 4 s, so after the check of the arguments
    )

    port = load(options.name)
    rows = options.prompt_length + options.decode_steps
    positions = port.model_config(port.hf_configs[size]).max_seq_len
    if rows > positions:
        return _usage(f"{rows} positions are asked for; {options.name} {size} has {positions}")
    run = define_and_run(
        port,
        size,
        prompt_length=options.prompt_length,
        decode_steps=options.decode_steps,
        kv_layout=options.kv_layout,
        seed=options.seed,
    )
    print(run)
    return 0


def _usage(message: str) -> int:
    print(f"python -m edgeverify_models: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
