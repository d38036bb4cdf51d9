"""The options that say what to run: one table for the command line and for pytest.

All are taken as text and judged here, so that both front ends refuse the same values in the same
words, before anything heavy is imported.
"""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgeverify.case import (
    DEFAULT_DECODE_STEPS,
    DEFAULT_PREFILL_LENGTHS,
    KERNELS,
    KV_LAYOUTS,
    Step,
    check_lengths,
    plan_steps,
    prompt_length,
)
from edgeverify.choices import one_of
from edgeverify.errors import UsageError
from edgeverify.recipes import ALL, FLOAT32, RECIPES, expand, label

# Of the invariants. ``nightly`` draws at least 20 times the examples of ``ci``.
PROFILES = ("dev", "ci", "nightly")
# What goldens are kept of: the reference, and the converted file with all that leads to it.
GOLDENS = ("reference", "tflite")
BACKENDS = ("reference", "reauthored", "tflite")
RUNTIMES = ("compiled_model", "tf_lite", "litert_lm")
MAX_SEED = 2**32 - 1  # what numpy takes
MAX_LENGTH = 2**20  # tokens; no model of today has as many positions
PREFIX = "edgeverify_"
_UNITS = {
    "B": 1,
    **{f"{letter}B": 1000 ** (n + 1) for n, letter in enumerate("KMGT")},
    **{f"{letter}iB": 1024 ** (n + 1) for n, letter in enumerate("KMGT")},
}

_LENGTHS = " ".join(str(length) for length in DEFAULT_PREFILL_LENGTHS)
# Flag → (metavar, how it is taken, help). Taken: once, repeated, or as a switch.
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


@dataclass(frozen=True)
class Selectors:
    """What to run, checked as far as it can be without loading anything.

    Attributes:
        size: a size of the port; its default size if None.
        checkpoint: file, directory or hub id; seeded random weights if None.
        recipes: quantization recipes, in the forms of ``edgeverify.recipes.FORMS``.
        backends: ``reauthored`` asks for the leg ``authoring``, ``tflite`` for ``conversion``,
            which needs the re-authored model, too.
        kv_layout: ``default`` or ``transposed``.
        prefill: lengths of the prefill signatures, in tokens.
        decode_steps: how many decode steps follow the prompt.
        seed: of random weights and random tokens.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        mask_as_input: masks are inputs of the signatures.
        prefill_logits: prefill signatures return logits, too; without, a file has what decoding
            needs and no more, as shipped files do.
        prompt: text to continue greedily; needs a checkpoint with a tokenizer.
        kv_cache_len: rows of the KV cache; a little longer than the case if None.
        trust_remote_code: handed to transformers where it reads a checkpoint's files itself.
        cache: the cache directory; the user's own if None.
        token_seed: of random tokens alone; ``seed`` if None.
        profile: how many examples of each invariant are drawn.
        runtimes: what runs the file beside the LiteRT interpreter: ``compiled_model``,
            ``tf_lite``, ``litert_lm``.
        memory_budget: bytes that comparing the models may take, or a text as ``"8GiB"``; what is
            available if None.
    """

    size: str | None = None
    checkpoint: str | None = None
    recipes: tuple[str, ...] = (FLOAT32,)
    backends: tuple[str, ...] = BACKENDS
    kv_layout: str = "default"
    prefill: tuple[int, ...] = DEFAULT_PREFILL_LENGTHS
    decode_steps: int = DEFAULT_DECODE_STEPS
    seed: int = 0
    kernel: str = "xnnpack"
    mask_as_input: bool = False
    prefill_logits: bool = True
    prompt: str | None = None
    kv_cache_len: int | None = None
    trust_remote_code: bool = False
    cache: Path | None = None
    token_seed: int | None = None
    profile: str = "dev"
    runtimes: tuple[str, ...] = ()
    memory_budget: int | None = None

    @classmethod
    def of(cls, **given: Any) -> Selectors:
        """Selectors from Python values; None means the default.

        Raises:
            UsageError: a name that is not a selector, or a value that no run could take.
        """
        names = [field.name for field in fields(cls)]
        for name in given:
            one_of("selectors", name, names)
        chosen = cls(**{name: value for name, value in given.items() if value is not None})
        chosen = replace(
            chosen,
            recipes=expand(chosen.recipes, where="recipes"),
            memory_budget=memory_size("memory_budget", chosen.memory_budget),
        )
        for backend in chosen.backends:
            one_of("backends", backend, BACKENDS)
        for runtime in chosen.runtimes:
            one_of("runtimes", runtime, RUNTIMES)
        one_of("kv_layout", chosen.kv_layout, KV_LAYOUTS)
        one_of("kernel", chosen.kernel, KERNELS)
        one_of("profile", chosen.profile, PROFILES)
        for name, values in (("prefill", chosen.prefill), ("decode_steps", [chosen.decode_steps])):
            odd = not values or min(values) < 1 or max(values) > MAX_LENGTH
            if odd or len(set(values)) < len(values):
                raise UsageError(
                    f"got {values}", where=name, expected="whole numbers from 1 on, each once"
                )
        for name, seed in (("seed", chosen.seed), ("token_seed", chosen.token_seed or 0)):
            if not 0 <= seed <= MAX_SEED:
                raise UsageError(f"got {seed}", where=name, expected=f"from 0 to {MAX_SEED}")
        return chosen.checked()

    def checked(self) -> Selectors:
        """Itself, if its parts go together.

        Raises:
            UsageError: nothing would be compared, or the steps do not fit the cache.
        """
        if not self.legs:
            raise UsageError(
                "the reference alone has nothing to be compared with",
                where="--backend",
                expected="reauthored, tflite or both",
            )
        quantized = [recipe for recipe in self.recipes if recipe != FLOAT32]
        if quantized and "tflite" not in self.backends:
            raise UsageError(
                f"{quantized[0]!r} is a recipe of files, and no file is run",
                where="--recipe",
                expected="--backend tflite, or no --backend at all",
            )
        if self.runtimes and "tflite" not in self.backends:
            raise UsageError(
                "there is no file to run",
                where="--runtime",
                expected="--backend tflite",
                fix="leave out --backend, or --runtime",
            )
        _check_cache_len(self)
        return self

    @property
    def legs(self) -> tuple[str, ...]:
        """The legs of the chosen backends; a file is judged beside the model it comes from."""
        if "tflite" in self.backends:
            quantized = [label(recipe) for recipe in self.recipes if recipe != FLOAT32]
            runs = [f"runtime:{name}" for name in self.runtimes]
            others = [
                leg
                for name in quantized
                for leg in (f"quantization:{name}", *(f"{run}:{name}" for run in runs))
            ]
            return ("authoring", "conversion", *runs, *others)
        return ("authoring",) if "reauthored" in self.backends else ()

    @property
    def implementations(self) -> tuple[str, ...]:
        """What invariants are asked of: the backends, a file with several kernels.

        Files are run with XNNPACK, which phones use, and with the built-in kernels; with the
        reference kernels, which are slow, where they are chosen and every night.
        """
        nightly = ("reference",) if self.profile == "nightly" else ()
        kernels = dict.fromkeys(("xnnpack", "builtin", self.kernel, *nightly))
        files = [f"tflite-{kernel}" for kernel in kernels]
        others = [name for name in ("reference", "reauthored") if name in self.backends]
        return (*others, *(files if "tflite" in self.backends else ()))

    @property
    def audits(self) -> tuple[str, ...]:
        """The audits of the chosen backends: signatures are a file's."""
        audits = ("config", "weights", "signatures")
        quantized = tuple(leg for leg in self.legs if leg.startswith("quantization:"))
        if "tflite" in self.backends:
            return (*audits, *quantized)
        return audits[:2] if self.legs else ()

    @property
    def step_names(self) -> tuple[str, ...] | None:
        """The steps of the case; None where a prompt has to be tokenized first."""
        if self.prompt is not None:
            return None
        tokens = range(prompt_length(self.prefill))
        steps = plan_steps(tokens, self.prefill, range(self.decode_steps))
        return tuple(step.name for step in steps)

    def steps_of(self, leg: str) -> tuple[str, ...]:
        """The steps that a leg is shown by: those of the case, or all as one nameless step.

        LiteRT-LM is asked questions of its own, not the case's steps.
        """
        return ("",) if leg == "runtime:litert_lm" else self.step_names or ("",)

    def options(self) -> str:
        """The options of the command line that choose the same; no cache, which changes nothing."""
        told = []
        names = {"recipes": "recipe", "backends": "backend", "runtimes": "runtime"}
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name in ("cache", "token_seed", "profile"):
                continue
            flag = f"--{names.get(field.name, field.name).replace('_', '-')}"
            if field.name == "prefill_logits":
                told.append("--no-prefill-logits")
            elif isinstance(value, bool):
                told.append(flag)
            else:
                several = value if isinstance(value, tuple) else (value,)
                told += [f"{flag} {shlex.quote(str(one))}" for one in several]
        return " ".join(told)

    def arguments(self) -> dict[str, Any]:
        """As ``edgeverify.verify`` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def add_options(add: Callable[..., Any], *, without: Sequence[str] = ()) -> None:
    """Declares the selectors with ``add``: argparse's ``add_argument``, pytest's ``addoption``.

    Args:
        add: takes a flag and what argparse takes.
        without: flags that have no meaning to a command; ``parse`` gives their defaults.
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
    """Judges the options' text.

    Args:
        options: holds the destinations that ``add_options`` declared.

    Raises:
        UsageError: a value that no run could take, by its option.
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
        memory_budget=memory_size("--memory-budget", given("memory_budget")),
    ).checked()


def memory_size(option: str, value: str | int | None) -> int | None:
    """A size in bytes: ``8GiB``, ``512MiB``, ``8GB``, or a number of bytes; None as it is.

    Raises:
        UsageError: no size, or none at all.
    """
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]i?B|B)?", str(value).strip())
    size = int(float(found.group(1)) * _UNITS[found.group(2) or "B"]) if found else 0
    if size < 1:
        raise UsageError(f"got {str(value)!r}", where=option, expected="a size as 8GiB or 512MiB")
    return size


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


def whole_number(
    option: str,
    value: str | None,
    default: int | None,
    *,
    lowest: int = 1,
    highest: int | None = None,
) -> int | None:
    """An option's text as a whole number; ``default`` where it was not given.

    Raises:
        UsageError: no whole number, or out of bounds.
    """
    if value is None:
        return default
    expected = f"a whole number of {lowest} or more"
    if highest is not None:
        expected = f"a whole number from {lowest} to {highest}"
    try:
        number = int(value)
    except ValueError:
        number = lowest - 1
    if number < lowest or (highest is not None and number > highest):
        raise UsageError(f"got {value!r}", where=option, expected=expected)
    return number


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


def _check_cache_len(selectors: Selectors) -> None:
    rows = selectors.kv_cache_len
    if rows is None:
        return
    steps: tuple[Step, ...] = ()
    if selectors.prompt is None:
        tokens = range(prompt_length(selectors.prefill))
        steps = plan_steps(tokens, selectors.prefill, range(selectors.decode_steps))
    # Without the tokenizer the steps are unknown, but the signatures must fit all the same.
    check_lengths(selectors.prefill, steps or plan_steps((0,), (1,), ()), rows, rows)
