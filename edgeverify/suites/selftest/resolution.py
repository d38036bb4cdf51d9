"""Measures which hyperparameters the checks can see, and how finely: the suite's *resolution*.

``python -m edgeverify.suites.selftest.resolution`` perturbs every field of every port's tiny HF
config, one at a time and only on the port's side. It writes two files: this package's
``resolution.json`` and, with ``--markdown``, the same as a table. Each field must be seen, either
because the run differs or because the model cannot be built, or ``INERT`` must list the reason why
it cannot be seen.

A number is multiplied by 1 + d, and bisection on a log scale finds the smallest d that is seen. An
integer is changed by one, a switch is flipped, a name is replaced by another.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edgeverify_models as models
from edgeverify.core.errors import EdgeVerifyError
from edgeverify.core.results import FAIL
from edgeverify.core.store.entries import versions
from edgeverify.report.tables import piped
from edgeverify.suites.selftest.faults.port_changes import with_config
from edgeverify.suites.selftest.trial import Bench, judge_port, one_thread

RESOLUTION = Path(__file__).with_name("resolution.json")
COMMAND = "python -m edgeverify.suites.selftest.resolution --markdown docs/resolution.md"
RUN, REFUSED, SAME, UNSEEN = "run", "refused", "same model", "unseen"
# The first change of a number; bisection continues from there in both directions.
SMALL = 1e-3
FINEST, COARSEST = -30.0, 0.0  # log2 of d
PRECISION = 0.25  # of log2 d: a factor of 1.19
# Integers that enter a formula like real numbers.
REAL = frozenset({"query_pre_attn_scalar", "rope_freq_constant"})
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu")

_SAVED = "says how the checkpoint was saved, not what the model computes"
_TRAINING = "of training alone"
_TOKENS = "a token id of the tokenizer; the model computes the same for given ids"
_LIMIT = "a limit of the length; no number in the forward pass depends on it"
INERT: Mapping[str, str] = {
    "architectures": _SAVED,
    "torch_dtype": _SAVED,
    "attention_dropout": _TRAINING,
    "embd_pdrop": _TRAINING,
    "resid_pdrop": _TRAINING,
    "initializer_range": _TRAINING,
    "pretraining_tp": "cuts matrix products into parts; transformers no longer reads it",
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "pad_token_id": _TOKENS,
    "cache_implementation": "chooses transformers' cache class; the Generative API has its own",
    "use_cache": "the Generative API always has a KV cache",
    "max_position_embeddings": _LIMIT,
    "max_context_length": _LIMIT,
    "rope_max_length": _LIMIT,
}
INERT_OF_PORT: Mapping[tuple[str, str], str] = {
    ("gemma1", "hidden_activation"): "transformers 5 reads hidden_act alone",
    ("gemma2", "hidden_act"): "transformers reads hidden_activation",
}


@dataclass(frozen=True)
class FieldResult:
    """The result of one field; for a list, the result of its least visible element.

    Attributes:
        port, field: the port and the perturbed field.
        value: its value in the tiny config.
        change: the perturbation, e.g. ``"× (1 + 1.2e-06)"``, ``"± 1"``.
        how: ``RUN`` (the run differs), ``REFUSED`` (no model, or one that cannot run), ``SAME``
            (the re-authored config is the same) or ``UNSEEN``.
        resolution: the smallest relative change that was seen; None if the field is not a number.
        message: the first diverging tap, or the message of the refusal.
        inert: the reason why it cannot be seen, or "".
    """

    port: str
    field: str
    value: Any
    change: str
    how: str
    resolution: float | None
    message: str
    inert: str = ""

    @property
    def is_explained(self) -> bool:
        """Whether the change was seen, or the field is listed as inert."""
        return self.how in (RUN, REFUSED) or bool(self.inert)


def fields_of(port: str) -> Mapping[str, Any]:
    """Returns the fields of a port's tiny config."""
    return models.load(port).hf_configs["tiny"]


def inert_reason(port: str, field: str) -> str:
    """Returns the reason why a field cannot be seen, or ""."""
    return INERT_OF_PORT.get((port, field), INERT.get(field, ""))


class Prober:
    """Perturbs the config of one port, whose reference is run once."""

    def __init__(self, port: str, cache: Path | None = None) -> None:
        self.bench = Bench(models.load(port), cache)
        self.setting = self.bench.setting()
        self.config = self.setting.checkpoint.hf_config

    def probe(self, field: str, value: Any) -> tuple[str, str]:
        """Gives a field another value on the port's side; returns (how it was seen, message)."""
        port = with_config(self.bench.port, **{field: value})
        try:
            if port.model_config(self.config) == self.bench.port.model_config(self.config):
                return SAME, ""
            with one_thread():
                leg = judge_port(self.setting, port)
        except (EdgeVerifyError, ValueError, TypeError, KeyError, AssertionError) as error:
            return REFUSED, str(error)
        if leg.outcome == FAIL and leg.first_divergence is not None:
            return RUN, leg.first_divergence.tap
        return UNSEEN, ""

    def field(self, field: str, *, bisect: bool = True) -> FieldResult:
        """Perturbs one field; for a list, each element, and the least visible element counts."""
        value = self.config[field]
        if isinstance(value, list):
            parts = [self._element(field, value, i, bisect=bisect) for i in range(len(value))]
            return max(parts, key=_obscurity)
        return self._scalar(field, value, lambda new: new, value, bisect=bisect)

    def _element(self, field: str, value: list[Any], index: int, *, bisect: bool) -> FieldResult:
        def place(new: Any) -> list[Any]:
            return [*value[:index], new, *value[index + 1 :]]

        return self._scalar(field, value[index], place, value, bisect=bisect)

    def _scalar(self, field: str, old: Any, place: Any, whole: Any, *, bisect: bool) -> FieldResult:
        resolution = None
        if (isinstance(old, float) and old) or field in REAL:
            change, how, message, resolution = self._number(field, old, place, bisect=bisect)
        else:
            tried = [
                (change, *self.probe(field, place(new))) for change, new in other_values(field, old)
            ]
            # Every one must be seen, except other names of the same function (swish and silu).
            tried = [t for t in tried if t[1] != SAME] or tried
            change, how, message = next((t for t in tried if t[1] in (SAME, UNSEEN)), tried[0])
        inert = inert_reason(self.bench.port.name, field) if how in (SAME, UNSEEN) else ""
        first_line = message.splitlines()[0][:160] if message else ""
        port = self.bench.port.name
        return FieldResult(port, field, whole, change, how, resolution, first_line, inert)

    def _number(
        self, field: str, old: float, place: Any, *, bisect: bool
    ) -> tuple[str, str, str, float | None]:
        def at(exponent: float) -> tuple[str, str]:
            return self.probe(field, place(old * (1 + 2.0**exponent)))

        small = math.log2(SMALL)
        how, message = at(small)
        if how in (RUN, REFUSED) and not bisect:
            return f"× (1 + {SMALL:g})", how, message, SMALL
        low, high = (FINEST, small) if how in (RUN, REFUSED) else (small, COARSEST)
        result = (how, message) if high == small else at(high)
        if result[0] not in (RUN, REFUSED):
            return f"× (1 + {2.0**high:g})", *result, None
        while high - low > PRECISION:
            middle = (low + high) / 2
            tried = at(middle)
            if tried[0] in (RUN, REFUSED):
                high, result = middle, tried
            else:
                low = middle
        return f"× (1 + {2.0**high:.1e})", *result, 2.0**high


def other_values(field: str, old: Any) -> list[tuple[str, Any]]:
    """Returns other values of a field that is not a real number: (the change, new value)."""
    if isinstance(old, bool):
        return [("flipped", not old)]
    if isinstance(old, int):
        return [("± 1", old + 1), ("± 1", old - 1)]
    if isinstance(old, float):
        return [("0.1", 0.1)]  # zero has no relative change
    if old is None:
        return [("set", {"rope_type": "linear", "factor": 2.0})]
    if "act" in field:
        return [("another", name) for name in ACTIVATIONS if name != old]
    return [("another", f"{old}_of_another_kind")]


def _obscurity(result: FieldResult) -> tuple[bool, float]:
    return result.how in (SAME, UNSEEN), result.resolution or 0.0


def measure(ports: Sequence[str], *, bisect: bool = True) -> Iterator[FieldResult]:
    """Perturbs every field of every port."""
    for port in ports:
        prober = Prober(port)
        for field in prober.config:
            yield prober.field(field, bisect=bisect)


def load(path: Path = RESOLUTION) -> list[FieldResult]:
    """Loads the measurement from disk."""
    return [FieldResult(**row) for row in json.loads(path.read_text())["fields"]]


def markdown(results: Sequence[FieldResult]) -> str:
    """Renders the documentation page: resolution per field and port, and the inert fields."""
    ports = list(dict.fromkeys(result.port for result in results))
    table = {(result.field, result.port): result for result in results}
    fields = list(dict.fromkeys(result.field for result in results if not result.inert))
    lines = [
        "# How finely a hyperparameter is seen",
        "",
        f"Made by `{COMMAND}`; do not edit.",
        "Each field of a port's tiny config is changed on the port's side alone. A number is the",
        "smallest relative change that the check sees (found by bisection); *build* means that the",
        "model refuses the change or cannot be run, *run* that the run differs (a switch flipped,",
        "an integer changed by one, another name). What only decides how many elements something",
        "has (`ffn_multipliers`, `qkv_multipliers`, `partial_rotary_factor`) is rounded to a whole",
        "number first, so that smaller changes make the same model.",
        "",
    ]
    rows = [["field", *(f"`{port}`" for port in ports)]]
    for field in sorted(fields):
        rows.append([f"`{field}`", *(_cell(table.get((field, port))) for port in ports)])
    lines += [*piped(rows), "", "Inert, so that no check can see them:", ""]
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.inert:
            reasons.setdefault((result.field, result.inert), []).append(result.port)
    rows = [["field", "ports", "why"]]
    rows += [[f"`{f}`", ", ".join(own), reason] for (f, reason), own in sorted(reasons.items())]
    return "\n".join([*lines, *piped(rows)]) + "\n"


def _cell(result: FieldResult | None) -> str:
    if result is None:
        return ""
    if result.inert:
        return "inert"
    how = {RUN: "run", REFUSED: "build"}.get(result.how, f"**{result.how}**")
    return how if result.resolution is None else f"{result.resolution:.1e} ({how})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; returns exit status 1 if a field is neither seen nor inert."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeverify.suites.selftest.resolution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", action="append", choices=sorted(models.CATALOGUE))
    parser.add_argument("--output", type=Path, default=RESOLUTION)
    parser.add_argument("--markdown", type=Path, help="write the table to a file")
    options = parser.parse_args(argv)
    results = []
    for result in measure(options.model or list(models.CATALOGUE)):
        results.append(result)
        print(
            f"{result.port:9} {result.field:26} {result.change:20} {result.how:10} "
            f"{result.message[:70]}",
            flush=True,
        )
    rows = ",\n    ".join(json.dumps(asdict(result)) for result in results)
    head = {"command": COMMAND, "environment": versions(), "fields": ["ROWS"]}
    options.output.write_text(json.dumps(head, indent=2).replace('"ROWS"', rows) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(results))
    wrong = [result for result in results if not result.is_explained]
    for result in wrong:
        print(f"neither seen nor inert: {result.field} of {result.port} ({result.how})")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
