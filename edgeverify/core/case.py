"""A Case: one conversation, in full, that every implementation runs.

A case starts with an empty cache. Its prefill steps cover the ways in which a prompt reaches a
converted file: a chunk that fills its signature, chunks that follow other chunks (a prompt longer
than the largest signature), and a padded chunk. Decode steps follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeverify.core.errors import UsageError

DEFAULT_PREFILL_LENGTHS = (16, 32)
DEFAULT_DECODE_STEPS = 8
KV_LAYOUTS = ("default", "transposed")
KERNELS = ("xnnpack", "builtin", "reference")
# The share of real tokens in a padded chunk: about two thirds of the signature, so that there are
# many pads and still more real rows.
PADDED_SHARE = 0.66


@dataclass(frozen=True)
class Step:
    """One call of a signature.

    Attributes:
        name: ``prefill.{n}`` or ``decode.{t}``, counted from 0.
        signature: the signature that is called: ``prefill_{length}`` or ``decode``.
        length: how many tokens the signature takes.
        start: the position of the first token.
        tokens: the real token ids, at most ``length``; the rest is padding.
    """

    name: str
    signature: str
    length: int
    start: int
    tokens: tuple[int, ...]

    @property
    def is_decode(self) -> bool:
        return self.signature == "decode"

    @property
    def end(self) -> int:
        """The number of valid cache rows after this step."""
        return self.start + len(self.tokens)

    @property
    def padded_tokens(self) -> tuple[int, ...]:
        """The tokens that the signature receives, padded with id 0."""
        return self.tokens + (0,) * (self.length - len(self.tokens))


@dataclass(frozen=True)
class Case:
    """Says what to run. Equal cases give comparable traces.

    Attributes:
        model: the port's name.
        size: the port's size, or ``"custom"`` for a checkpoint whose config is not one of the
            port's.
        kv_layout: ``default`` (BTNH) or ``transposed`` (K BNTH, V BNHT).
        prefill_lengths: the lengths of the prefill signatures, ascending.
        kv_cache_len: rows of the KV cache.
        steps: the calls, in order.
        mask_as_input: masks are inputs of the signatures; they are not built inside the model.
        prefill_logits: prefill signatures also return logits.
        greedy: decode steps feed the reference's own greedy tokens; until the reference has run,
            the steps hold placeholders.
        kernel: the LiteRT kernels that run the file.
        decode_batch: conversations that one call of the decode signature takes; 0 for a file
            without a decode signature.
        mask_kinds: the masks that the port takes as inputs: ``global``, ``local``.
        window: how many tokens a ``local`` mask shows; None without such a mask.
    """

    model: str
    size: str
    kv_layout: str
    prefill_lengths: tuple[int, ...]
    kv_cache_len: int
    steps: tuple[Step, ...]
    mask_as_input: bool = False
    prefill_logits: bool = True
    greedy: bool = False
    kernel: str = "xnnpack"
    decode_batch: int = 1
    mask_kinds: tuple[str, ...] = ("global",)
    window: int | None = None

    @property
    def starts(self) -> dict[str, int]:
        """Step name → the position of its first token."""
        return {step.name: step.start for step in self.steps}

    @property
    def tokens(self) -> tuple[int, ...]:
        """All real tokens of the conversation."""
        return tuple(token for step in self.steps for token in step.tokens)

    @property
    def signatures(self) -> dict[str, int]:
        """Signature name → token length: prefill ascending, then decode if the file has it."""
        named = {f"prefill_{length}": length for length in self.prefill_lengths}
        return {**named, "decode": 1} if self.decode_batch else named

    def with_decode_tokens(self, tokens: Sequence[int]) -> Case:
        """Returns the same case with ``tokens`` as the input of its decode steps."""
        given = iter(tokens)
        steps = tuple(
            replace(step, tokens=(int(next(given)),)) if step.is_decode else step
            for step in self.steps
        )
        return replace(self, steps=steps, greedy=False)


def prompt_length(prefill_lengths: Sequence[int]) -> int:
    """Counts the default prompt's tokens: each signature full once, then the largest padded."""
    lengths = sorted(prefill_lengths)
    return sum(lengths) + max(1, int(lengths[-1] * PADDED_SHARE))


def plan_steps(
    prompt: Sequence[int],
    prefill_lengths: Sequence[int],
    decode_tokens: Sequence[int],
) -> tuple[Step, ...]:
    """Cuts a prompt into chunks and appends the decode steps.

    The chunks fill every signature once, ascending, as long as there are enough tokens. Then they
    repeat the largest signature. The remaining tokens go, padded, into the smallest signature that
    takes them.

    Args:
        prompt: token ids, at least one.
        prefill_lengths: the signatures' lengths.
        decode_tokens: the input token of each decode step.

    Returns:
        The steps, in order.
    """
    lengths = sorted(set(prefill_lengths))
    steps: list[Step] = []
    position = 0
    pending = list(lengths)
    while position < len(prompt):
        left = len(prompt) - position
        if pending and pending[0] <= left:
            length = pending.pop(0)
        elif lengths[-1] <= left:
            length = lengths[-1]
        else:
            pending = []
            length = next(n for n in lengths if n >= left)
        chunk = tuple(int(t) for t in prompt[position : position + length])
        steps.append(Step(f"prefill.{len(steps)}", f"prefill_{length}", length, position, chunk))
        position += len(chunk)
    for index, token in enumerate(decode_tokens):
        steps.append(Step(f"decode.{index}", "decode", 1, position, (int(token),)))
        position += 1
    return tuple(steps)


def cache_rows_needed(steps: Sequence[Step]) -> int:
    """Counts the rows that the steps write, pads included: the length of the shortest cache."""
    return max(step.start + step.length for step in steps)


def default_cache_len(steps: Sequence[Step]) -> int:
    """Returns the shortest multiple of 16 that leaves at least one cache row unused."""
    return (cache_rows_needed(steps) // 16 + 1) * 16


def check_lengths(
    prefill_lengths: Sequence[int], steps: Sequence[Step], kv_cache_len: int, max_positions: int
) -> None:
    """Refuses a case that does not fit its cache or the model.

    Raises:
        UsageError: the case does not fit; names the option to change.
    """
    for length in prefill_lengths:
        if length > kv_cache_len:
            raise UsageError(
                f"a prefill of {length} tokens does not fit a KV cache of {kv_cache_len} rows",
                where="--prefill",
                expected=f"at most {kv_cache_len}",
                fix="take a shorter --prefill or a longer --kv-cache-len",
            )
    needed = cache_rows_needed(steps)
    if needed > kv_cache_len:
        raise UsageError(
            f"the case writes {needed} rows into a KV cache of {kv_cache_len}",
            where="--kv-cache-len",
            expected=f"at least {needed}",
            fix="lengthen --kv-cache-len, or shorten --prefill or --decode-steps",
        )
    if kv_cache_len > max_positions:
        raise UsageError(
            f"a KV cache of {kv_cache_len} rows exceeds the model's {max_positions} positions",
            where="--prefill/--kv-cache-len",
            expected=f"at most {max_positions}",
            fix="shorten --prefill, --decode-steps or --kv-cache-len",
        )
