"""Plans a run whose file has one prefill signature: it is scored and, with decode, timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeverify.core.errors import UsageError
from edgeverify.core.progress import Progress
from edgeverify.legs.run import Run, prepare
from edgeverify.legs.selectors import Selectors

# Tokens of a window, which is the length of the prefill signature. SmolLM2-135M, float32, 2 cores:
# 291 tokens a second at 128, 296 at 256; the shorter window gives twice as many independent
# windows.
WINDOW = 128


def windowed_run(
    port: Any,
    chosen: Selectors,
    window: int = WINDOW,
    *,
    decode: bool,
    verbose: bool = False,
    progress: Progress | None = None,
) -> tuple[Run, Any | None]:
    """Opens the checkpoint and plans a file with only ``prefill_{window}``, or also ``decode``.

    Without decode, the file is converted in half the time, and its cache has the rows of one
    window. With decode, its cache has the rows of two windows, so that steps follow a full prefill.

    Args:
        port: a port, or how one is named.
        chosen: its prefill lengths, steps and prompt are not used.
        window: tokens of the prefill signature.
        decode: whether the file has the signature ``decode``.
        verbose, progress: as for ``edgeverify.suites.check``.

    Returns:
        The run, whose case has no steps, and the checkpoint's tokenizer, if it has one.

    Raises:
        EdgeVerifyError: bad usage or bad input.
    """
    # Every model can be prepared with these steps; they do not run.
    small = replace(chosen, prefill=(8,), decode_steps=1, prompt=None, kv_cache_len=None)
    run, tokenizer = prepare(port, small, verbose=verbose, progress=progress)
    positions = run.port.model_config(run.hf_config).max_seq_len
    if window >= positions:
        raise UsageError(
            f"a window of {window} tokens does not fit the model's {positions} positions",
            where="--window",
            expected=f"at most {positions - 1}",
        )
    case = replace(
        run.case,
        prefill_lengths=(window,),
        kv_cache_len=min(2 * window, positions) if decode else window,
        decode_batch=1 if decode else 0,
        steps=(),
        greedy=False,
    )
    return run.of_case(case), tokenizer
