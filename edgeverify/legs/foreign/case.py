"""The Case of an existing file, which fixes its lengths, cache and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeverify.core.case import Case, Step, cache_rows_needed, plan_steps, prompt_length
from edgeverify.core.errors import UsageError
from edgeverify.litert.interface import DECODE, Facts


@dataclass(frozen=True)
class FileCase(Case):
    """A case whose signatures have the names that the file uses.

    Attributes:
        names: (prefill signature, tokens) pairs, ascending.
    """

    names: tuple[tuple[str, int], ...] = ()

    @property
    def signatures(self) -> dict[str, int]:
        return {**dict(self.names), DECODE: 1}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileCase:
        """Builds a case from JSON, which has lists for tuples."""
        steps = tuple(Step(**{**step, "tokens": tuple(step["tokens"])}) for step in data["steps"])
        names = tuple((name, length) for name, length in data["names"])
        lengths = tuple(data["prefill_lengths"])
        kinds = tuple(data["mask_kinds"])
        tuples = {"steps": steps, "names": names, "prefill_lengths": lengths, "mask_kinds": kinds}
        return cls(**{**data, **tuples})

    @property
    def unused(self) -> tuple[str, ...]:
        """Signatures that no step calls."""
        called = {step.signature for step in self.steps}
        return tuple(name for name in self.signatures if name not in called)


def wanted_tokens(facts: Facts) -> int:
    """Number of tokens of a prompt that fills every prefill signature and then pads one."""
    return prompt_length(tuple(facts.prefill.values()))


def case_of(
    facts: Facts,
    prompt: Sequence[int],
    decode: Sequence[int],
    *,
    model: str,
    size: str,
    kernel: str = "xnnpack",
    greedy: bool = False,
    window: int | None = None,
) -> FileCase:
    """Returns the case of a file.

    A prompt that does not fit the file's cache is shortened until it does. Then the longest
    signatures may have no step; ``unused`` lists them. A file whose ``decode`` takes several
    conversations at once is not decoded.

    Args:
        facts: of the file.
        prompt: token ids.
        decode: the token fed at each decode step.
        model, size: names for reports.
        kernel: runs the file.
        greedy, window: as in ``Case``.

    Raises:
        UsageError: not even one token and the decode steps fit the cache.
    """
    fed = decode if facts.decode_batch == 1 else ()
    steps = _fitting(facts, prompt, fed)
    names = {length: name for name, length in facts.prefill.items()}
    steps = tuple(
        step if step.is_decode else replace(step, signature=names[step.length]) for step in steps
    )
    return FileCase(
        model=model,
        size=size,
        kv_layout=facts.kv_layout,
        prefill_lengths=tuple(facts.prefill.values()),
        kv_cache_len=facts.kv_cache_len,
        steps=steps,
        mask_as_input=bool(facts.masks),
        prefill_logits=facts.prefill_logits,
        greedy=greedy and bool(fed),
        kernel=kernel,
        decode_batch=facts.decode_batch,
        mask_kinds=tuple(facts.masks) or ("global",),
        window=window,
        names=tuple(facts.prefill.items()),
    )


def _fitting(facts: Facts, prompt: Sequence[int], decode: Sequence[int]) -> tuple[Step, ...]:
    lengths = tuple(facts.prefill.values())
    for count in range(len(prompt), 0, -1):
        steps = plan_steps(prompt[:count], lengths, decode)
        if cache_rows_needed(steps) <= facts.kv_cache_len:
            return steps
    raise UsageError(
        f"{len(decode)} decode steps do not fit the file's KV cache of {facts.kv_cache_len} rows",
        where="--decode-steps",
        expected=f"prefill signatures ({', '.join(map(str, lengths))}) and decode steps that fit",
        fix="take fewer --decode-steps",
    )
