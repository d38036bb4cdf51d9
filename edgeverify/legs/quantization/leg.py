"""The leg ``quantization``: compares a quantized file with the reference that has its weights.

Whether the weights are the checkpoint's, rounded as the recipe says, is the audit's question
(``edgeverify.audits.quantized_weights``), which answers it exactly. Here the file's weights are
taken as they are, so that only the effect of the kernels is left: they round activations where they
compute with integers, and they err as float32 does. The control predicts both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeverify.backends.streaming import forgetting
from edgeverify.core import taps
from edgeverify.core.compare import thresholds
from edgeverify.core.judge import Baseline, judge_leg, judge_surely, leg_of
from edgeverify.core.leg import Leg
from edgeverify.core.noise import floor_of, widest
from edgeverify.core.results import FAIL, TapResult, worst_outcome
from edgeverify.core.store import entries
from edgeverify.core.trace import Trace
from edgeverify.hf.checkpoints import Checkpoint
from edgeverify.legs.baselines import REFERENCE_SOURCES, reference_baselines
from edgeverify.legs.conversion import run_file
from edgeverify.legs.quantization.control import rounded_inputs, roundings
from edgeverify.legs.quantization.control_leg import Control, judge
from edgeverify.legs.quantization.weights import FileWeights, untied
from edgeverify.legs.redraw import Draws
from edgeverify.legs.run import Run
from edgeverify.legs.runtime.stages import FileRun

Runs = Callable[[Run, Path, Trace], tuple[Trace, Trace | None]]
CACHE_VERSION = 1


@dataclass(frozen=True)
class Expectation:
    """What a quantized file should compute, and how far a correct one may be from it.

    Attributes:
        floating: for the file's weights, in float throughout: the oracle and its float32 floor.
        baseline: the same, with the cost of rounding activations included in the floors.
        control: whole, in float64; None if the kernels round no activations.
        alone: the control block by block; None likewise.
    """

    floating: Baseline
    baseline: Baseline
    control: Trace | None = None
    alone: Control | None = None


def judge_file(
    run: Run,
    path: Path,
    weights: FileWeights,
    leg: Leg,
    original: Baseline,
    runs: Runs = run_file,
) -> FileRun:
    """Runs a quantized file and judges it.

    Args:
        run: of the original checkpoint, decode tokens known.
        path: the file.
        weights: what it computes with.
        leg: what is judged.
        original: the reference with the checkpoint's own weights.
        runs: runs the file as a whole and block by block on the oracle's inputs.

    Returns:
        The leg, with its attribution, the file's trace, and what the file was compared with.
    """
    with_weights = _with_weights(run, path, weights)
    expectation = expect(with_weights, weights, original)
    whole, alone = runs(with_weights, path, expectation.baseline.oracle)
    starts = run.case.starts
    expected = run.expected(expectation.baseline.oracle)
    packing = tuple(filter(None, [whole.provenance.get("packing")]))
    result, baseline = judge_surely(
        lambda against: judge_leg(leg, whole, alone, against, expected, starts, notes=packing),
        expectation.baseline,
    )
    predicted: dict[str, Any] = {}
    if expectation.alone is not None and alone is not None:
        found = judge(alone, expectation.alone, thresholds(leg.kind), expected, starts)
        unpredicted = [key for key in expected if key not in found and key in alone]
        notes = result.notes
        if unpredicted:
            notes += (
                f"{len(unpredicted)} taps are held to what rounding activations costs, not to "
                "float32 rounding: the control's own float32 run rounds too many rows otherwise",
            )
        results = [_with_control(r, found.get(r.tap)) for r in result.taps]
        result = replace(leg_of(leg, results, notes), along=result.along)
        worst = max((r.error_ratio for r in found.values() if r.error_ratio is not None), default=0)
        predicted = {"taps": len(found), "worst": worst}
    figures = attribution(original.oracle, expectation, whole, weights)
    if figures:
        result = replace(result, attribution={**figures, "control": predicted})
    floating = None if expectation.control is None else expectation.floating
    return FileRun(path, result, whole, baseline, floating=floating)


def _with_weights(run: Run, path: Path, weights: FileWeights) -> Run:
    """Returns the same run with the checkpoint that the file's weights make."""
    original = run.state()
    config = untied(run.hf_config) if weights.unties(original) else dict(run.hf_config)
    checkpoint = Checkpoint(
        hf_config=config,
        size=run.checkpoint.size,
        identity=entries.digest(
            "with the weights of",
            CACHE_VERSION,
            entries.file_digest(path, root=run.cache),
            entries.source_digest("legs/quantization/weights.py", "litert/flatbuffer/*.py"),
            run.checkpoint.identity,
            dict(run.hf_config),
            # Where the port puts the tensors, and which of the file's weights are taken: another
            # port may take the same file for another model.
            repr(sorted(weights.places.items())),
            sorted(weights.held),
        ),
        description=f"{run.checkpoint.description}, with the weights of {path.name}",
        tokenizer_dir=None,
        _load=lambda: weights.state(original),
        _map=lambda _: weights.state(original, run.scratch),
    )
    return run.of_checkpoint(checkpoint)


def expect(run: Run, weights: FileWeights, original: Baseline) -> Expectation:
    """Runs the reference with the file's weights, with and without rounded activations; cached.

    Once one value is rounded the other way, all layers behind it round differently: in a deep
    model, each run is one draw of what rounding costs. In SmolLM2-135M's ``int4`` file, one row of
    logits was 3.9 times as far from the oracle as the float64 control is; compared with the largest
    of three runs, it is 1.8 times (worst rms over rows 1.50 and 1.00).

    Args:
        run: of the checkpoint that the file's weights make.
        weights: the file's.
        original: the baseline of the checkpoint's own weights.
    """
    run, baselines = reference_baselines(run, with_file=True, summed=original)
    floating = baselines["conversion"]
    from edgeverify.backends import reference  # it imports transformers' models

    rounded = roundings(weights, run.case.kernel)
    if not rounded:
        return Expectation(floating, floating)
    key = entries.digest(
        "control",
        CACHE_VERSION,
        entries.versions(),
        entries.source_digest(*REFERENCE_SOURCES, "legs/quantization/control.py"),
        run.checkpoint.identity,
        [[step.name, step.tokens, step.start] for step in run.case.steps],
        [[module, rounds.__name__] for module, rounds in rounded],
    )
    built: list[Any] = []

    def controlled(kind: str, make: Callable[[Any], Trace]) -> Trace:
        def write(target: Path) -> None:
            if not built:
                built.append(reference.build(run.hf_config, run.state()))
            with forgetting(built[0]), run.timed("control"), rounded_inputs(built[0], rounded):
                make(built[0]).save(target)

        path = entries.cached(kind, key, ".safetensors", write, root=run.cache)
        return Trace.load(path, mapped=run.streamed)

    oracle, case = floating.oracle, run.case
    whole = controlled("control", lambda model: reference.run_oracle(model, case))
    alone = controlled(
        "control-alone", lambda model: reference.run_oracle(model, case, inject=oracle)
    )
    float32 = controlled(
        "control-float32", lambda model: reference.run(model, case, inject=oracle)[0]
    )

    def cost(model: Any) -> Trace:
        """The cost of rounding in several correct runs, none of which is nearer to the file."""
        runs = (
            reference.run(model, case)[0],
            reference.run_otherwise(model, case, sequential=False),
        )
        return Trace(dict(floor_of(oracle.arrays, whole.arrays, *(run.arrays for run in runs))))

    baseline = Baseline(
        oracle,
        widest(floating.floor, controlled("control-floor", cost).arrays),
        widest(floating.isolated_floor, floor_of(oracle.arrays, alone.arrays, float32.arrays)),
        floating.own,
    )
    more = Draws(run, key, oracle, changing=lambda model: rounded_inputs(model, rounded))
    control = Control(alone, float32, floating.isolated_floor)
    return Expectation(floating, more.offered_to(baseline), whole, control)


def _with_control(result: TapResult, against: TapResult | None) -> TapResult:
    """Merges a tap's result with the result of its block against the control."""
    if against is None:
        return result
    reasons = [result.reason] if result.reason else []
    if against.outcome == FAIL:
        reasons.append(against.reason)
    return replace(
        result,
        outcome=worst_outcome([result.outcome, against.outcome]),
        isolated_ratio=result.isolated_ratio
        if against.error_ratio is None
        else against.error_ratio,
        isolated_outcome=worst_outcome([result.isolated_outcome or "pass", against.outcome]),
        reason="; ".join(reasons),
    )


def attribution(
    original: Trace, expectation: Expectation, whole: Trace, weights: FileWeights
) -> Mapping[str, Any]:
    """Says what moved the logits, and how far.

    Args:
        original: the oracle of the checkpoint's own weights.
        expectation: of the file.
        whole: the file's run.
        weights: of the file.

    Returns:
        ``weights``, ``activations``, ``kernels``: relative L2 distances, over all rows of logits,
        between the oracle, the oracle with the file's weights, the control and the file. ``kl``: in
        nats, the mean Kullback-Leibler divergence KL(oracle ‖ x), where x is the prediction with
        only the file's ``weights``, of the ``control`` and of the ``file``. ``quantized``: how many
        weights are not float32. Empty if the file returns no logits of the right shape.
    """
    keys = [
        key
        for key, logits in original.arrays.items()
        if taps.split(key)[1] == taps.LOGITS and key in whole and whole[key].shape == logits.shape
    ]
    if not keys:
        return {}
    with_weights = expectation.floating.oracle
    control = expectation.control or with_weights
    rows = {
        name: np.concatenate([trace[key][0].astype(np.float64) for key in keys])
        for name, trace in (
            ("oracle", original),
            ("weights", with_weights),
            ("control", control),
            ("file", whole),
        )
    }
    return {
        "weights": _distance(rows["weights"], rows["oracle"]),
        "activations": _distance(rows["control"], rows["weights"]),
        "kernels": _distance(rows["file"], rows["control"]),
        "kl": {name: _kl(rows["oracle"], rows[name]) for name in ("weights", "control", "file")},
        "quantized": sum(weight.quantized is not None for weight in weights.held.values()),
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _kl(truth: np.ndarray, other: np.ndarray) -> float:
    """Mean over rows of KL(truth ‖ other) of two arrays of logits (T, V), in nats."""
    p, q = _log_softmax(truth), _log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
