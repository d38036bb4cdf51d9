"""The options that select what to run, for the command line and for pytest."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeverify.core.case import DEFAULT_DECODE_STEPS, DEFAULT_PREFILL_LENGTHS, KERNELS, KV_LAYOUTS
from edgeverify.core.choices import one_of, whole_number
from edgeverify.core.errors import UsageError
from edgeverify.legs.selectors import (
    BACKENDS,
    MAX_LENGTH,
    MAX_SEED,
    PROFILES,
    RUNTIMES,
    Selectors,
    _budget,
)
from edgeverify.litert.recipes import ALL, FLOAT32, RECIPES, expand

PREFIX = "edgeverify_"


_LENGTHS = " ".join(str(length) for length in DEFAULT_PREFILL_LENGTHS)


# Flag → (metavar, how often it is taken, help). Taken: once, repeated, or as a switch.
OPTIONS: dict[str, tuple[str, str, str]] = {
    "--size": ("S", "once", "size of the model (default: the port's default size)"),
    "--checkpoint": (
        "PATH_OR_HUB_ID",
        "once",
        "weights: a file, a folder or a hub id (default: seeded random weights)",
    ),
    "--recipe": (
        "R",
        "repeated",
        f"recipe of the file, repeatable: {', '.join((*RECIPES, ALL))}, a JSON file of "
        "ai-edge-quantizer, or path/to/file.py:ATTR (default: float32)",
    ),
    "--backend": ("B", "repeated", f"what to run, repeatable (default: {' '.join(BACKENDS)})"),
    "--runtime": (
        "R",
        "repeated",
        f"another runtime that is to run the file, too, repeatable: {', '.join(RUNTIMES)}",
    ),
    "--kv-layout": ("LAYOUT", "once", f"layout of the KV cache: {', '.join(KV_LAYOUTS)}"),
    "--prefill": (
        "N",
        "repeated",
        f"length of a prefill signature, repeatable (default: {_LENGTHS})",
    ),
    "--decode-steps": (
        "N",
        "once",
        f"decode steps after the prompt (default: {DEFAULT_DECODE_STEPS})",
    ),
    "--seed": ("N", "once", "seed of random weights and of the prompt (default: 0)"),
    "--kernel": ("K", "once", f"LiteRT kernels: {', '.join(KERNELS)}"),
    "--mask-as-input": ("", "switch", "masks are inputs of the signatures"),
    "--no-prefill-logits": ("", "switch", "prefill signatures return the KV cache alone"),
    "--prompt": ("TEXT", "once", "a text to run instead of seeded tokens; needs a tokenizer"),
    "--kv-cache-len": ("N", "once", "rows of the KV cache (default: what the steps need)"),
    "--trust-remote-code": (
        "",
        "switch",
        "let transformers run a checkpoint's own code where it reads its tokenizer or GGUF",
    ),
    "--profile": (
        "P",
        "once",
        f"how many examples of each invariant are drawn: {', '.join(PROFILES)} (default: dev)",
    ),
    "--memory-budget": (
        "SIZE",
        "once",
        "memory that comparing the models may take, as 8GiB: where the whole model would take "
        "more, its weights stay on the disk (default: what is available)",
    ),
    "--cache": ("DIR", "once", "folder of converted files and oracle traces"),
}


def add_selectors(add: Callable[..., Any], *, without: Sequence[str] = ()) -> None:
    """Declares the selectors with ``add``: argparse's ``add_argument``, pytest's ``addoption``.

    Args:
        add: takes a flag and the keywords that argparse takes.
        without: flags that mean nothing to a command; ``parse`` uses their defaults.
    """
    for flag, (metavar, taken, text) in OPTIONS.items():
        if flag in without:
            continue
        destination = PREFIX + flag[2:].replace("-", "_")
        if taken == "switch":
            add(flag, dest=destination, action="store_true", default=False, help=text)
        else:
            action = "append" if taken == "repeated" else "store"
            add(flag, dest=destination, action=action, metavar=metavar, default=None, help=text)


def parse(options: Namespace) -> Selectors:
    """Checks the options' text and makes selectors of it.

    Args:
        options: holds the destinations that ``add_options`` declared.

    Raises:
        UsageError: an option's value is one that no run could take; the error names the option.
    """

    def given(name: str) -> Any:
        return getattr(options, PREFIX + name, None)

    return Selectors(
        size=_text("--size", given("size")),
        checkpoint=_text("--checkpoint", given("checkpoint")),
        recipes=expand(given("recipe") or (FLOAT32,)),
        backends=_several("--backend", given("backend"), BACKENDS, BACKENDS),
        runtimes=_several("--runtime", given("runtime"), RUNTIMES, ()),
        kv_layout=one_of("--kv-layout", given("kv_layout") or "default", KV_LAYOUTS),
        prefill=_lengths(given("prefill")),
        decode_steps=whole_number(
            "--decode-steps", given("decode_steps"), DEFAULT_DECODE_STEPS, highest=MAX_LENGTH
        )
        or 0,
        seed=whole_number("--seed", given("seed"), 0, lowest=0, highest=MAX_SEED) or 0,
        kernel=one_of("--kernel", given("kernel") or "xnnpack", KERNELS),
        mask_as_input=bool(given("mask_as_input")),
        prefill_logits=not given("no_prefill_logits"),
        prompt=_text("--prompt", given("prompt")),
        kv_cache_len=whole_number("--kv-cache-len", given("kv_cache_len"), None),
        trust_remote_code=bool(given("trust_remote_code")),
        cache=_folder("--cache", given("cache")),
        profile=one_of("--profile", given("profile") or "dev", PROFILES),
        memory_budget=_budget("--memory-budget", given("memory_budget")),
    ).checked()


def _several(
    option: str, values: Sequence[str] | None, choices: Sequence[str], default: tuple[str, ...]
) -> tuple[str, ...]:
    if not values:
        return default
    return tuple(dict.fromkeys(one_of(option, value, choices) for value in values))


def _text(option: str, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise UsageError("is empty", where=option, expected="a value")
    return value


def _folder(option: str, value: str | None) -> Path | None:
    if _text(option, value) is None:
        return None
    path = Path(str(value)).expanduser()
    if path.exists() and not path.is_dir():
        raise UsageError("is a file", where=f"{option} {path}", expected="a folder")
    return path


def _lengths(values: Sequence[str] | None) -> tuple[int, ...]:
    if not values:
        return DEFAULT_PREFILL_LENGTHS
    lengths = [whole_number("--prefill", value, None, highest=MAX_LENGTH) or 0 for value in values]
    twice = [length for length in lengths if lengths.count(length) > 1]
    if twice:
        raise UsageError(
            f"{twice[0]} is given {lengths.count(twice[0])} times",
            where="--prefill",
            expected="each length once",
        )
    return tuple(sorted(lengths))
