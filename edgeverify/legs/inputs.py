"""What the implementations are fed with: the token ids of a prompt and of the decode steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeverify.core.case import (
    Case,
    cache_rows_needed,
    check_lengths,
    default_cache_len,
    plan_steps,
    prompt_length,
)
from edgeverify.core.errors import UsageError
from edgeverify.hf.forward import forward_of
from edgeverify.hf.token_ids import ids_of
from edgeverify.legs.selectors import Selectors

if TYPE_CHECKING:
    from edgeverify.hf.checkpoints import Checkpoint
    from edgeverify_models.port import Port

# Our own text. It is plain prose, so that a trained model runs on the kind of text it was trained
# on.
PROSE = (
    "The lighthouse keeper wrote down the weather every evening before he lit the lamp. "
    "Wind from the west, a falling glass, two ships on the horizon, and once, in a hard winter, "
    "ice as far as the outer rocks. His daughter learned to read from those books. She found that "
    "the storms of her childhood were shorter than she remembered, and that the quiet days, of "
    "which there were many more, had left no trace in anybody's memory but his. When she was asked "
    "later why she had become a scientist, she said that it began with a column of numbers that "
    "did not agree with her."
)


def plan_case(
    port: Port,
    checkpoint: Checkpoint,
    tokenizer: Any | None,
    chosen: Selectors,
    max_positions: int,
) -> Case:
    """Chooses the tokens and plans the steps.

    With a tokenizer, the prompt is text and the decode steps continue it greedily, as users do.
    Without one, all ids are drawn with the seed, and the first and the last id of the vocabulary
    are among them.

    Raises:
        UsageError: the case does not fit the cache or the model.
    """
    lengths = sorted(set(chosen.prefill))
    prompt, decode = tokens(checkpoint.hf_config, tokenizer, chosen, prompt_length(lengths))
    steps = plan_steps(prompt, lengths, decode)
    rows = chosen.kv_cache_len
    if rows is None:
        rows = default_cache_len(steps)
        if rows > max_positions >= cache_rows_needed(steps):
            rows = max_positions
    check_lengths(lengths, steps, rows, max_positions)
    return Case(
        model=port.name,
        size=checkpoint.size,
        kv_layout=chosen.kv_layout,
        prefill_lengths=tuple(lengths),
        kv_cache_len=rows,
        steps=steps,
        mask_as_input=chosen.mask_as_input,
        prefill_logits=chosen.prefill_logits,
        greedy=tokenizer is not None,
        kernel=chosen.kernel,
        mask_kinds=port.mask_kinds,
        window=forward_of(checkpoint.hf_config).window,
    )


def tokens(
    hf_config: Mapping[str, Any], tokenizer: Any | None, chosen: Selectors, wanted: int
) -> tuple[list[int], list[int]]:
    """Ids of a prompt of ``wanted`` tokens, and of the decode steps (zeros with a tokenizer).

    Raises:
        UsageError: a prompt without a tokenizer, or a prompt without tokens.
    """
    if tokenizer is not None:
        rows = int(hf_config["vocab_size"])
        return _text_tokens(tokenizer, chosen.prompt, wanted, rows), [0] * chosen.decode_steps
    if chosen.prompt is not None:
        raise UsageError(
            "a prompt needs a tokenizer",
            where="--prompt",
            expected="a --checkpoint that has one",
            fix="give the checkpoint's directory, or leave out --prompt",
        )
    seed = chosen.seed if chosen.token_seed is None else chosen.token_seed
    vocabulary = int(hf_config["vocab_size"])
    drawn = np.random.default_rng(seed).integers(0, vocabulary, wanted + chosen.decode_steps)
    drawn[min(1, wanted - 2)], drawn[wanted - 1] = vocabulary - 1, 0
    return drawn[:wanted].tolist(), drawn[wanted:].tolist()


def _text_tokens(tokenizer: Any, prompt: str | None, wanted: int, rows: int) -> list[int]:
    """Returns the prompt's ids, or ``wanted`` ids of our own prose."""
    if prompt is None:
        ids = ids_of(tokenizer, PROSE, rows, "the checkpoint's tokenizer, on edgeverify's own text")
    else:
        ids = ids_of(tokenizer, prompt, rows, "--prompt")
    if not ids:
        raise UsageError("the prompt has no tokens", where="--prompt", fix="give some text")
    if prompt is None:
        ids = (ids * -(-wanted // len(ids)))[:wanted]
    return ids
