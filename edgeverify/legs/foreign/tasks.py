"""The tasks of the contained child: reads what a file is, runs it, writes traces.

Nothing here imports torch, because the child must start in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeverify.backends import tflite
from edgeverify.backends.interpreter import choose_opener
from edgeverify.core.edges import Edge
from edgeverify.core.localise import forget_unfed
from edgeverify.core.trace import Trace
from edgeverify.legs.foreign.case import FileCase
from edgeverify.litert.bundle.reader import read_bundle
from edgeverify.litert.dtypes import totals, weights_of
from edgeverify.litert.flatbuffer import Located, ModelFile, instrument, locate_taps
from edgeverify.litert.interface import SHAPES, Facts, facts_of

NOT_LOCATED = "nothing writes the KV cache in a way that is known, so that no tap can be located"
# The files that ``run`` reads from its folder and writes into it.
TOKENIZER = "tokenizer.json"
WHOLE, ISOLATED, EVERY_TAP, ORACLE, EDGES = (
    f"{name}.safetensors" for name in ("whole", "isolated", "every-tap", "oracle", "edges")
)


def survey(file: Path) -> dict[str, Any]:
    """Returns what decides how a file is checked: ``facts`` and ``weights`` (dtype → totals).

    Raises:
        ArtifactError: the file is damaged, or not a language model of a known form.
    """
    opened = ModelFile(file)
    facts = facts_of(opened)
    return {"facts": facts.to_dict(), "weights": totals(weights_of(opened))}


def unpack(file: Path, target: str) -> dict[str, Any]:
    """Writes the .tflite of a .litertlm to ``target``, and a tokenizer.json beside it.

    Returns:
        The container's metadata, and the kind of its ``tokenizer``.
    """
    bundle = read_bundle(file)
    bundle.unpack(Path(target))
    words = bundle.tokenizer_json()
    if words is not None:
        (Path(target).parent / TOKENIZER).write_text(words, encoding="utf-8")
    return {"tokenizer": bundle.tokenizer, **bundle.metadata()}


def run(
    file: Path,
    case: Mapping[str, Any],
    facts: Mapping[str, Any],
    folder: str,
    edges: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Runs a file as a whole and, if its taps can be located, block by block.

    Args:
        file: the .tflite.
        case: a ``FileCase`` as a dict.
        facts: ``Facts.to_dict()``.
        folder: contains the oracle's trace, ``ORACLE``; traces and copies of the file go there.
        edges: are walked at the end, each an ``Edge`` as a dict; their trace is ``EDGES``.

    Returns:
        The traces of the case that were written: ``WHOLE`` and ``ISOLATED``.
    """
    planned, known, place = FileCase.from_dict(case), Facts.from_dict(facts), Path(folder)
    steps = [Edge.from_dict(edge) for edge in edges]
    opener = choose_opener(file, planned.kernel)[0]
    setup = tflite.Setup(opener=opener, edges=steps, walked=lambda trace: trace.save(place / EDGES))
    if known.layout_from == SHAPES:
        trace = tflite.run(file, planned, setup)
        _explain(trace)
        trace.save(place / WHOLE)
        return [WHOLE]
    located = _located(file, planned)
    copy = place / "copy.tflite"
    instrument(file, copy, located)
    tflite.run(file, planned, setup, instrumented=copy).save(place / WHOLE)
    instrument(file, copy, located, isolate=True)
    oracle = Trace.load(place / ORACLE).arrays
    isolated = tflite.run(file, planned, setup, instrumented=copy, inject=oracle)
    isolated.save(place / ISOLATED)
    copy.unlink()
    return [WHOLE, ISOLATED]


def run_every_tap(
    file: Path,
    case: Mapping[str, Any],
    facts: Mapping[str, Any],
    folder: str,
) -> None:
    """Like ``run``, but feeds every tap with the oracle and writes ``EVERY_TAP``."""
    planned, blocks, place = FileCase.from_dict(case), int(facts["blocks"]), Path(folder)
    located = _located(file, planned)
    copy = place / "copy.tflite"
    instrument(file, copy, located, every_tap=True)
    setup = tflite.Setup(opener=choose_opener(file, planned.kernel)[0])
    fed = Trace.load(place / ORACLE).arrays
    trace = tflite.run(file, planned, setup, instrumented=copy, inject=fed)
    for step in planned.steps:
        forget_unfed(trace, step.name, blocks, located[step.signature].taps)
    trace.save(place / EVERY_TAP)
    copy.unlink()


def _located(file: Path, case: FileCase) -> dict[str, Located]:
    """The taps of the signatures that run; other signatures need not have a known form."""
    opened = ModelFile(file)
    return {name: locate_taps(opened, name) for name in case.signatures}


def _explain(trace: Trace) -> None:
    """Records for each inner tap why it could not be read."""
    for key, reason in trace.unavailable.items():
        if not reason.startswith("the signature returns no logits"):
            trace.unavailable[key] = NOT_LOCATED
