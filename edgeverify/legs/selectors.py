"""The options that say what to run: one table for the command line and for pytest.

All options arrive as text and are validated here, before anything heavy is imported. So both front
ends refuse the same values in the same words.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgeverify.core.case import (
    DEFAULT_DECODE_STEPS,
    DEFAULT_PREFILL_LENGTHS,
    KERNELS,
    KV_LAYOUTS,
    Step,
    check_lengths,
    plan_steps,
    prompt_length,
)
from edgeverify.core.choices import one_of
from edgeverify.core.errors import UsageError
from edgeverify.core.leg import AUTHORING, CONVERSION, QUANTIZATION, Leg
from edgeverify.core.units import bytes_of
from edgeverify.litert.recipes import FLOAT32, expand, label

# How many examples the invariants get. ``nightly`` draws at least 20 times as many as ``ci``.
PROFILES = ("dev", "ci", "nightly")
# What goldens exist for: the reference, and the converted file with all that leads to it.
GOLDENS = ("reference", "tflite")
BACKENDS = ("reference", "reauthored", "tflite")
LITERT_LM = "litert_lm"
RUNTIMES = ("compiled_model", "tf_lite", LITERT_LM)
MAX_SEED = 2**32 - 1  # numpy's limit
MAX_LENGTH = 2**20  # tokens; no model of today has as many positions


@dataclass(frozen=True)
class Selectors:
    """What to run, validated as far as possible without loading anything.

    Attributes:
        size: a size of the port; its default size if None.
        checkpoint: file, directory or hub id; seeded random weights if None.
        recipes: quantization recipes, in the forms of ``edgeverify.litert.recipes.FORMS``.
        backends: ``reauthored`` requests the leg ``authoring``, ``tflite`` the leg ``conversion``,
            which needs the re-authored model, too.
        kv_layout: ``default`` or ``transposed``.
        prefill: lengths of the prefill signatures, in tokens.
        decode_steps: how many decode steps follow the prompt.
        seed: for random weights and random tokens.
        kernel: ``xnnpack``, ``builtin`` or ``reference``.
        mask_as_input: whether masks are inputs of the signatures.
        prefill_logits: whether prefill signatures return logits, too; if not, a file has only what
            decoding needs, as shipped files do.
        prompt: text to continue greedily; needs a checkpoint with a tokenizer.
        kv_cache_len: rows of the KV cache; a little longer than the case if None.
        trust_remote_code: passed to transformers where it reads a checkpoint's files itself.
        cache: the cache directory; the user's own if None.
        token_seed: for random tokens only; ``seed`` if None.
        profile: how many examples of each invariant are drawn.
        runtimes: the runtimes that run the file besides the LiteRT interpreter: ``compiled_model``,
            ``tf_lite``, ``litert_lm``.
        memory_budget: bytes that comparing the models may take, or a text such as ``"8GiB"``; what
            is available if None.
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
        """Builds selectors from Python values; None means the default.

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
            memory_budget=_budget("memory_budget", chosen.memory_budget),
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
        """Returns itself if its parts fit together.

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
    def legs(self) -> tuple[Leg, ...]:
        """The legs of the chosen backends; a file is judged together with its source model."""
        authoring, conversion = Leg(AUTHORING), Leg(CONVERSION)
        if "tflite" not in self.backends:
            return (authoring,) if "reauthored" in self.backends else ()
        chosen = [authoring, conversion, *(conversion.in_runtime(r) for r in self.runtimes)]
        for recipe in self.recipes:
            if recipe != FLOAT32:
                quantized = Leg(QUANTIZATION, label(recipe))
                chosen += [quantized, *(quantized.in_runtime(r) for r in self.runtimes)]
        return tuple(chosen)

    @property
    def implementations(self) -> tuple[str, ...]:
        """The implementations that invariants examine: backends, and a file with several kernels.

        Files run with XNNPACK, which phones use, and with the built-in kernels. They run with the
        reference kernels, which are slow, if those are chosen, and every night.
        """
        nightly = ("reference",) if self.profile == "nightly" else ()
        kernels = dict.fromkeys(("xnnpack", "builtin", self.kernel, *nightly))
        files = [f"tflite-{kernel}" for kernel in kernels]
        others = [name for name in ("reference", "reauthored") if name in self.backends]
        return (*others, *(files if "tflite" in self.backends else ()))

    @property
    def audits(self) -> tuple[str, ...]:
        """The audits of the chosen backends; only a file has the audit of signatures."""
        audits = ("config", "weights", "signatures", "edges")
        quantized = tuple(str(leg) for leg in self.legs if leg.kind == QUANTIZATION)
        if "tflite" in self.backends:
            return (*audits, *quantized)
        return ("config", "weights", "edges") if self.legs else ()

    @property
    def step_names(self) -> tuple[str, ...] | None:
        """The steps of the case; None if a prompt must be tokenized first."""
        if self.prompt is not None:
            return None
        tokens = range(prompt_length(self.prefill))
        steps = plan_steps(tokens, self.prefill, range(self.decode_steps))
        return tuple(step.name for step in steps)

    def steps_of(self, leg: Leg) -> tuple[str, ...]:
        """The steps that reports show for a leg: those of the case, or one nameless step.

        LiteRT-LM answers questions of its own and does not run the case's steps.
        """
        return ("",) if leg.runtime == LITERT_LM else self.step_names or ("",)

    def options(self) -> str:
        """The command-line options that choose the same; omits the cache, which changes nothing."""
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
        """Returns the arguments as ``edgeverify.suites.check`` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _budget(option: str, value: str | int | None) -> int | None:
    return None if value is None else bytes_of(option, value)


def _check_cache_len(selectors: Selectors) -> None:
    rows = selectors.kv_cache_len
    if rows is None:
        return
    steps: tuple[Step, ...] = ()
    if selectors.prompt is None:
        tokens = range(prompt_length(selectors.prefill))
        steps = plan_steps(tokens, selectors.prefill, range(selectors.decode_steps))
    # Without the tokenizer the steps are unknown, but the signatures must still fit.
    check_lengths(selectors.prefill, steps or plan_steps((0,), (1,), ()), rows, rows)
