"""The verdict on made-up traces: what fails, what passes, what is left unchecked, in this order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeverify.core import compare as module
from edgeverify.core import judge as judge_module
from edgeverify.core import taps
from edgeverify.core.compare import Thresholds, compare, thresholds
from edgeverify.core.errors import TraceError
from edgeverify.core.judge import Baseline, judge_leg
from edgeverify.core.leg import AUTHORING, CONVERSION, Leg
from edgeverify.core.results import FAIL, PASS, UNCHECKED, LegResult, TapResult, worst_outcome
from edgeverify.core.trace import Trace

FLOOR = 1e-5  # far above float32 rounding, so that made-up errors are as large as they are meant
LIMITS = Thresholds(rms=1.5, row=4.0)
STEPS = {"prefill.0": 12, "prefill.1": 20, **{f"decode.{n}": 1 for n in range(10)}}
TAPS = tuple(tap for tap in taps.standard_taps(3) if not tap.endswith((".ff_norm", ".attn.q")))
WIDTH = 24


@dataclass
class World:
    """An oracle with its floor, and candidates at a chosen multiple of the floor."""

    steps: Mapping[str, int] = field(default_factory=lambda: STEPS)
    taps: Sequence[str] = TAPS
    seed: int = 0
    oracle: Trace = field(init=False)
    floor: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.oracle, self.floor = Trace(), {}
        end = 0
        for step, rows in self.steps.items():
            end += rows
            for tap in self.taps:
                shape = (1, end, 2, WIDTH // 2) if tap.startswith("kv.") else (1, rows, WIDTH)
                self.oracle.add(step, tap, rng.normal(size=shape))
                exact = tap == taps.EMBED
                self.floor[f"{step}/{tap}"] = np.full(shape[1], 0.0 if exact else FLOOR)
                if exact:  # a lookup: float32 holds it
                    key = f"{step}/{tap}"
                    self.oracle.arrays[key] = self.oracle[key].astype(np.float32).astype(float)

    @property
    def expected(self) -> list[str]:
        return list(self.oracle)

    def noisy(self, key: str, ratios: float | np.ndarray) -> np.ndarray:
        """The oracle's array, each row off by so many times its floor."""
        truth = self.oracle[key]
        rng = np.random.default_rng([self.seed, sum(key.encode())])
        rows = truth.reshape(truth.shape[1], WIDTH)
        noise = rng.normal(size=rows.shape)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        size = np.linalg.norm(rows, axis=1) * self.floor[key] * ratios
        return (rows + noise * size[:, None]).reshape(truth.shape).astype(np.float32)

    def candidate(self, ratio: float = 1.0, **changed: float | np.ndarray | None) -> Trace:
        """All taps at ``ratio``, and those of ``changed`` (key → ratios; None: left out)."""
        trace = Trace()
        for key in self.oracle:
            step, tap = taps.split(key)
            value = changed.get(key, ratio)
            if value is not None:
                trace.add(step, tap, self.noisy(key, value))
        return trace

    def judge(self, candidate: Trace, limits: Thresholds = LIMITS) -> dict[str, TapResult]:
        results = compare(candidate, self.oracle, self.floor, limits, self.expected)
        assert [result.tap for result in results][: len(self.expected)] == self.expected
        return {result.tap: result for result in results}

    def failed(self, candidate: Trace) -> set[str]:
        return {key for key, result in self.judge(candidate).items() if result.outcome == FAIL}

    def baseline(self) -> Baseline:
        return Baseline(self.oracle, self.floor, self.floor, self.candidate())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def leg(monkeypatch: pytest.MonkeyPatch, world: World) -> Callable[..., LegResult]:
    """``leg(candidate, isolated)`` judged with the limits of these tests."""
    monkeypatch.setattr(judge_module, "thresholds", lambda name: LIMITS)

    def judge(candidate: Trace, isolated: Trace | None = None) -> LegResult:
        return judge_leg(Leg(AUTHORING), candidate, isolated, world.baseline(), world.expected)

    return judge


KEY = "prefill.0/blocks.1.attn.k"


class TestIdentityComesFirst:
    def test_a_clean_run_passes_everywhere(self, world: World) -> None:
        results = world.judge(world.candidate())
        assert len(results) == len(STEPS) * len(TAPS)
        assert {result.outcome for result in results.values()} == {PASS}
        assert {result.reason for result in results.values()} == {""}

    def test_missing(self, world: World) -> None:
        result = world.judge(world.candidate(**{KEY: None}))[KEY]
        assert (result.outcome, result.reason) == (
            FAIL,
            "missing: the run did not produce this tap",
        )
        assert result.error_ratio is None

    def test_extra(self, world: World) -> None:
        candidate = world.candidate()
        candidate.add("prefill.0", "blocks.3.out", np.zeros((1, 12, WIDTH), np.float32))
        results = world.judge(candidate)
        extra = results.pop("prefill.0/blocks.3.out")
        assert (extra.outcome, extra.reason) == (FAIL, "extra: the baseline has no such tap")
        assert {result.outcome for result in results.values()} == {PASS}

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda a: a[:, :-1], "shape (1, 11, 24), expected (1, 12, 24)"),
            (lambda a: a[0], "shape (12, 24), expected (1, 12, 24)"),
            (lambda a: a.reshape(1, 24, 12), "shape (1, 24, 12), expected (1, 12, 24)"),
            (lambda a: a.astype(np.float64), "dtype float64, expected float32"),
            (lambda a: a.astype(np.float16), "dtype float16, expected float32"),
            # numpy has no bfloat16; this is how safetensors gives it
            (lambda a: a.astype(np.float16).view("V2"), "dtype bfloat16, expected float32"),
        ],
    )
    def test_another_shape_or_dtype(
        self, world: World, change: Callable[[np.ndarray], np.ndarray], reason: str
    ) -> None:
        candidate = world.candidate()
        candidate.arrays[KEY] = change(candidate[KEY])
        result = world.judge(candidate)[KEY]
        assert (result.outcome, result.reason) == (FAIL, reason)
        assert result.error_ratio is None  # no value was looked at
        assert world.failed(candidate) == {KEY}

    def test_empty(self) -> None:
        world = World({"prefill.0": 0}, ("kv.0.k",))
        result = world.judge(world.candidate())["prefill.0/kv.0.k"]
        assert (result.outcome, result.reason) == (FAIL, "empty: shape (1, 0, 2, 12)")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, world: World, bad: float) -> None:
        candidate = world.candidate()
        candidate[KEY][0, 7, 3] = bad
        candidate[KEY][0, 9] = bad
        result = world.judge(candidate)[KEY]
        assert result.outcome == FAIL
        assert f"25 of {12 * WIDTH} values are NaN or Inf, from position 7 on" in result.reason
        assert result.error_ratio is None
        assert world.failed(candidate) == {KEY}

    def test_unavailable_is_unchecked_for_its_reason(self, world: World) -> None:
        candidate = world.candidate(**{KEY: None})
        candidate.unavailable[KEY] = "the converter fused it away"
        results = world.judge(candidate)
        assert results[KEY].outcome == UNCHECKED
        assert results[KEY].reason == "the converter fused it away"
        assert {r.outcome for key, r in results.items() if key != KEY} == {PASS}

    def test_what_the_baseline_could_not_read_is_unchecked_for_its_reason(self) -> None:
        world = World(seed=1)
        candidate, expected = world.candidate(**{KEY: 50.0}), world.expected
        del world.oracle.arrays[KEY]
        world.oracle.unavailable[KEY] = "no module of this name"
        results = compare(candidate, world.oracle, world.floor, LIMITS, expected)
        odd = [result for result in results if result.outcome != PASS]
        told = TapResult(KEY, UNCHECKED, reason="the baseline: no module of this name")
        assert odd == [told]

    def test_a_tap_that_is_there_is_judged_even_if_it_is_called_unavailable(
        self, world: World
    ) -> None:
        candidate = world.candidate(**{KEY: 50.0})
        candidate.unavailable[KEY] = "not so"
        assert world.judge(candidate)[KEY].outcome == FAIL

    def test_nothing_expected_is_an_error(self, world: World) -> None:
        with pytest.raises(TraceError) as caught:
            compare(world.candidate(), world.oracle, world.floor, LIMITS, [])
        text = "nothing is to be compared; expected at least one step with one tap"
        assert str(caught.value) == text

    @pytest.mark.parametrize("lacking", ["oracle", "floor"])
    def test_a_baseline_that_lacks_a_key_is_an_error(self, world: World, lacking: str) -> None:
        oracle, floor = Trace(dict(world.oracle.arrays)), dict(world.floor)
        del (oracle.arrays if lacking == "oracle" else floor)[KEY]
        with pytest.raises(TraceError) as caught:
            compare(world.candidate(), oracle, floor, LIMITS, world.expected)
        text = f"the baseline has no {KEY}; delete the cache and run again"
        assert str(caught.value) == text

    @pytest.mark.parametrize("where", ["oracle", "floor"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_baseline_that_is_not_finite_passes_nothing(self, where: str, bad: float) -> None:
        world = World(seed=1)
        candidate = world.candidate()
        if where == "oracle":
            world.oracle[KEY][0, 3, 1] = bad
        else:
            world.floor[KEY][3] = bad
        result = world.judge(candidate)[KEY]
        assert result.outcome == UNCHECKED
        assert result.reason == "the baseline itself gives NaN or Inf here"
        assert world.failed(candidate) == set()


class TestThresholds:
    def test_three_times_the_floor_in_all_rows_is_found(self, world: World) -> None:
        candidate = world.candidate(**{KEY: 3.0})
        assert world.failed(candidate) == {KEY}
        result = world.judge(candidate)[KEY]
        assert result.error_ratio == pytest.approx(3.0, rel=0.02)
        assert result.error == pytest.approx(3 * FLOOR, rel=0.02)
        assert result.floor == pytest.approx(FLOOR)
        assert "error ratio 3" in result.reason
        assert "allowed 1.5" in result.reason

    def test_a_fifth_above_the_floor_is_not(self, world: World) -> None:
        assert world.failed(world.candidate(1.2)) == set()

    @pytest.mark.parametrize(("ratio", "outcome"), [(1.45, PASS), (1.55, FAIL)])
    def test_the_rms_threshold_is_where_it_is(
        self, world: World, ratio: float, outcome: str
    ) -> None:
        assert world.judge(world.candidate(**{KEY: ratio}))[KEY].outcome == outcome

    @pytest.mark.parametrize(("ratio", "outcome"), [(3.9, PASS), (4.1, FAIL)])
    def test_one_row_of_many_has_a_threshold_of_its_own(
        self, world: World, ratio: float, outcome: str
    ) -> None:
        ratios = np.ones(20)
        ratios[13] = ratio
        key = "prefill.1/blocks.0.out"
        result = world.judge(world.candidate(**{key: ratios}))[key]
        assert result.outcome == outcome
        assert result.error_ratio is not None
        assert result.error_ratio < LIMITS.rms  # the rms does not see it
        assert result.row_ratio == pytest.approx(ratio, rel=0.02)
        assert world.failed(world.candidate(**{key: ratios})) <= {key}

    def of_ratios(self, limits: Thresholds, **steps: list[int]) -> list[TapResult]:
        """Judged rows in powers of two, so that their ratios are integers to the last bit."""
        unit = 2.0**-10
        oracle, candidate, floor = Trace(), Trace(), {}
        for step, rows in steps.items():
            truth = np.zeros((1, len(rows), 4))
            truth[..., 0] = 1.0
            off = truth * (1 + np.array(rows)[:, None] * unit)
            oracle.add(step, "final_norm", truth)
            candidate.add(step, "final_norm", off.astype(np.float32))
            floor[f"{step}/final_norm"] = np.full(len(rows), unit)
        results = compare(candidate, oracle, floor, limits, list(oracle))
        assert [result.row_ratio for result in results] == [max(rows) for rows in steps.values()]
        return list(results)

    def test_what_is_at_its_limit_is_allowed(self) -> None:
        results = self.of_ratios(Thresholds(1.0, 1.0), long=[1] * 8, one=[1], other=[2])
        assert [result.outcome for result in results] == [PASS, PASS, FAIL]
        # Short steps whose rms is 1 together; one of them is above it, and at the limit of a row.
        short = {f"decode.{n}": [ratio] for n, ratio in enumerate([2, 1, 1, 1, 1, 0, 0, 0])}
        results = self.of_ratios(Thresholds(1.0, 2.0), **short)
        assert {result.outcome for result in results} == {PASS}

    @pytest.mark.parametrize("first_row", [0, 1])
    def test_position_0_agrees_up_to_its_limit(self, first_row: int) -> None:
        (result,) = self.of_ratios(Thresholds(1.0, 1.0), long=[first_row, *[2] * 7])
        assert result.reason.endswith("; position 0 agrees")

    def test_every_row_counts(self, world: World) -> None:
        for row in (0, 10, 19):
            ratios = np.ones(20)
            ratios[row] = 30.0
            assert world.failed(world.candidate(**{"prefill.1/blocks.0.out": ratios}))

    def test_a_row_is_told_by_its_position(self, world: World) -> None:
        ratios = np.ones(20)
        ratios[13] = 50.0
        keys = ["prefill.1/blocks.0.out", "prefill.1/kv.1.k"]
        candidate = world.candidate(
            **{keys[0]: ratios, keys[1]: np.concatenate([np.ones(12), ratios])}
        )
        candidate["prefill.1/logits"][0, 2, 0] = np.nan
        starts = {"prefill.0": 0, "prefill.1": 12}
        results = {
            result.tap: result
            for result in compare(
                candidate, world.oracle, world.floor, LIMITS, world.expected, starts
            )
        }
        assert [results[key].worst_row for key in keys] == [25, 25]
        for key in keys:
            assert "position 25: 50" in results[key].reason
        assert results["prefill.1/logits"].worst_row == 14

    @pytest.mark.parametrize(
        ("first_row", "start", "agrees"),
        [(1.0, 0, True), (0.0, 0, True), (5.0, 0, False), (1.0, 12, False), (1.0, 1, False)],
    )
    def test_it_is_told_that_position_0_alone_agrees(
        self, world: World, first_row: float, start: int, agrees: bool
    ) -> None:
        """It tells a fault of positions or of the mask from one of the weights."""
        key, ratios = "prefill.0/blocks.1.out", np.full(12, 30.0)
        ratios[0] = first_row
        (result,) = compare(
            Trace({key: world.noisy(key, ratios)}),
            world.oracle,
            world.floor,
            LIMITS,
            [key],
            {"prefill.0": start},
        )
        assert result.outcome == FAIL
        assert result.reason.endswith(f"; {module.POSITION_0_AGREES}") is agrees

    def test_two_rows_are_enough_to_tell_position_0_from_the_rest(self) -> None:
        world = World({"prefill.0": 2}, ("blocks.0.out",))
        key = "prefill.0/blocks.0.out"
        result = world.judge(world.candidate(**{key: np.array([1.0, 30.0])}))[key]
        assert result.reason.endswith(f"; {module.POSITION_0_AGREES}")

    @pytest.mark.parametrize("tap", ["kv.2.v", "final_norm", "logits", "blocks.0.attn.v"])
    @pytest.mark.parametrize("step", ["prefill.0", "prefill.1", "decode.0", "decode.9"])
    def test_every_tap_of_every_step_counts(self, world: World, step: str, tap: str) -> None:
        assert world.failed(world.candidate(**{f"{step}/{tap}": 40.0})) == {f"{step}/{tap}"}

    @pytest.mark.parametrize("step", ["prefill.0", "decode.3"])
    def test_a_lookup_is_exact(self, world: World, step: str) -> None:
        key = f"{step}/embed"
        assert world.judge(world.candidate())[key].error_ratio == 0.0
        candidate = world.candidate()
        candidate[key][0, 0, 0] = np.nextafter(candidate[key][0, 0, 0], np.float32(9))
        result = world.judge(candidate)[key]
        assert result.outcome == FAIL
        assert result.row_ratio == np.inf
        assert world.failed(candidate) == {key}


class TestShortSteps:
    """A decode step is one row, so the rms of a tap is that of all its short steps."""

    def decode(self, *ratios: float) -> dict[str, float]:
        return {f"decode.{n}/blocks.1.out": ratio for n, ratio in enumerate(ratios)}

    def test_the_allowance_falls_evenly_from_one_row_to_many(self) -> None:
        allowed = [LIMITS.rms_over(rows) for rows in range(1, module.MIN_ROWS_FOR_RMS + 1)]
        np.testing.assert_allclose(allowed, np.linspace(LIMITS.row, LIMITS.rms, len(allowed)))
        assert LIMITS.rms_over(module.MIN_ROWS_FOR_RMS + 1) == LIMITS.rms

    def test_a_fault_in_one_decode_step_is_found_there_alone(self, world: World) -> None:
        ratios = [1.0] * 10
        ratios[6] = 10.0
        assert world.failed(world.candidate(**self.decode(*ratios))) == {"decode.6/blocks.1.out"}

    def test_clean_noise_of_twice_the_floor_in_one_row_is_not(self, world: World) -> None:
        ratios = [1.0] * 10
        ratios[6] = 2.0
        assert world.failed(world.candidate(**self.decode(*ratios))) == set()

    def test_a_fault_of_twice_the_floor_in_all_of_them_is_found(self, world: World) -> None:
        candidate = world.candidate(**self.decode(*[2.0] * 10))
        assert world.failed(candidate) == {f"decode.{n}/blocks.1.out" for n in range(10)}
        reason = world.judge(candidate)["decode.0/blocks.1.out"].reason
        assert reason == "error ratio 2 (2 over all short steps), allowed 1.5"

    def test_the_same_row_again_and_again_is_held_to_what_one_row_is(self) -> None:
        """An answer that is one token over and over: before attention all its rows are one."""
        world = World(seed=3)
        for n in range(1, 10):
            key = f"decode.{n}/blocks.1.out"
            world.oracle.arrays[key] = world.oracle["decode.0/blocks.1.out"]
        assert world.failed(world.candidate(**self.decode(*[2.0] * 10))) == set()
        assert len(world.failed(world.candidate(**self.decode(*[5.0] * 10)))) == 10

    def test_a_step_that_is_fine_is_not_failed_for_the_others(self, world: World) -> None:
        ratios = [3.0] * 10
        ratios[4] = 0.9
        failed = world.failed(world.candidate(**self.decode(*ratios)))
        assert failed == {f"decode.{n}/blocks.1.out" for n in range(10) if n != 4}

    def test_long_steps_and_other_taps_do_not_dilute_them(self, world: World) -> None:
        candidate = world.candidate(0.5, **self.decode(*[2.0] * 10))
        assert len(world.failed(candidate)) == 10

    def test_a_step_of_enough_rows_is_judged_by_itself(self) -> None:
        long, few = "prefill.0/blocks.0.out", [f"decode.{n}/blocks.0.out" for n in range(7)]

        def failed(rows: int, long_ratio: float, short_ratio: float) -> set[str]:
            steps = {"prefill.0": rows, **{f"decode.{n}": 1 for n in range(len(few))}}
            world = World(steps, ("blocks.0.out",))
            return world.failed(world.candidate(short_ratio, **{long: long_ratio}))

        enough = module.MIN_ROWS_FOR_RMS
        assert failed(enough, 1.6, 0.0) == {long}
        assert failed(enough, 0.0, 2.0) == set(few)
        # One row fewer is judged together with the others.
        assert failed(enough - 1, 1.9, 0.0) == set()

    def test_the_cache_of_a_decode_step_is_long(self, world: World) -> None:
        """Its last row is the new one; an error there shows by itself."""
        rows = world.oracle["decode.9/kv.1.k"].shape[1]
        ratios = np.ones(rows)
        ratios[-1] = 12.0
        assert world.failed(world.candidate(**{"decode.9/kv.1.k": ratios})) == {"decode.9/kv.1.k"}


class TestGreedyTokens:
    KEY = "prefill.1/logits"

    def with_gap(self, gap: float) -> tuple[World, Trace]:
        """In row 5 ids 2 and 3 lead, ``gap`` times |row| apart; the candidate swaps them."""
        world = World(seed=2)
        row = world.oracle[self.KEY][0, 5]
        row[3] = 12.0
        row[2] = 12.0 + gap * np.linalg.norm(row)
        candidate = world.candidate(0.0)
        candidate[self.KEY][0, 5, [2, 3]] = candidate[self.KEY][0, 5, [3, 2]]
        return world, candidate

    def test_a_tie_that_rounding_explains_is_no_failure(self) -> None:
        world, candidate = self.with_gap(1.0 * FLOOR)
        assert world.oracle[self.KEY][0, 5].argmax() == 2
        assert candidate[self.KEY][0, 5].argmax() == 3
        assert world.failed(candidate) == set()

    def test_a_real_swap_fails_with_both_tokens(self) -> None:
        """Many logits share the floor, so one that is far off hides in the row's norm."""
        world = World({"prefill.0": 12}, ("logits",))
        key = "prefill.0/logits"
        rng = np.random.default_rng(4)
        vocabulary = 40_000
        oracle = rng.normal(size=(1, 12, vocabulary))
        oracle[0, 5, 3] = 12.0
        gap = 2.0 * FLOOR * np.linalg.norm(oracle[0, 5])
        oracle[0, 5, 2] = 12.0 + gap
        world.oracle.arrays[key] = oracle
        candidate = Trace({key: oracle.astype(np.float32)})
        candidate[key][0, 5, [2, 3]] = candidate[key][0, 5, [3, 2]]
        candidate[key][0, 2] *= np.float32(1 + 3.5 * FLOOR)  # further off, and the same token
        result = world.judge(candidate)[key]
        assert result.row_ratio is not None
        assert result.row_ratio < LIMITS.row  # it is the token that fails it
        assert result.error_ratio is not None
        assert result.error_ratio < LIMITS.rms
        assert (result.outcome, result.worst_row) == (FAIL, 5)
        assert result.reason.startswith("position 5: greedy token 3, expected 2; their logits are ")
        starts = {"prefill.0": 7}
        (later,) = compare(candidate, world.oracle, world.floor, LIMITS, [key], starts)
        assert (later.outcome, later.worst_row) == (FAIL, 12)
        assert later.reason == result.reason.replace("position 5", "position 12")
        # Only logits choose a token: the same in an activation is rounding.
        inner = "prefill.0/blocks.0.out"
        given, truth = Trace({inner: candidate[key]}), Trace({inner: oracle})
        floor = {inner: world.floor[key]}
        assert [r.outcome for r in compare(given, truth, floor, LIMITS, [inner])] == [PASS]

    def test_logits_that_fail_by_their_values_say_so(self, world: World) -> None:
        result = world.judge(world.candidate(**{self.KEY: 1e5}))[self.KEY]
        assert result.outcome == FAIL
        assert result.reason.startswith("error ratio ")


class TestTheLeg:
    def test_a_clean_leg(self, leg: Callable[..., LegResult], world: World) -> None:
        judged = leg(world.candidate(), world.candidate())
        assert (judged.outcome, judged.first_divergence, judged.reason) == (PASS, None, "")
        assert judged.threshold == {"rms": 1.5, "row": 4.0}
        assert all(result.isolated_outcome == PASS for result in judged.taps)

    def test_fail_before_unchecked_before_pass(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        unread = world.candidate(**{KEY: None})
        unread.unavailable[KEY] = "fused"
        assert leg(unread).outcome == UNCHECKED
        assert leg(unread).reason == "1 taps unchecked: fused"
        assert leg(unread).first_divergence is None
        unread.arrays["decode.2/logits"] = world.noisy("decode.2/logits", 50.0)
        assert leg(unread).outcome == FAIL

    def test_unchecked_block_by_block_is_no_pass(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        unread = world.candidate(**{KEY: None})
        unread.unavailable[KEY] = "fused"
        judged = leg(world.candidate(), unread)
        assert judged.outcome == UNCHECKED
        assert "fused" in judged.reason

    def test_a_block_by_block_run_of_nothing_is_no_pass(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        assert leg(world.candidate(), Trace()).outcome == FAIL

    def test_a_fault_that_only_the_block_by_block_run_sees_fails(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        judged = leg(world.candidate(), world.candidate(**{KEY: 9.0}))
        assert judged.outcome == FAIL
        assert judged.first_divergence is not None
        assert judged.first_divergence.tap == KEY
        assert judged.first_divergence.error_ratio == pytest.approx(9.0, rel=0.02)
        failed = [result for result in judged.taps if result.outcome == FAIL]
        assert [result.tap for result in failed] == [KEY]
        assert failed[0].reason.startswith("with its block fed by the oracle: error ratio 9")

    def test_the_first_divergence_is_the_first_in_forward_order(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        candidate = world.candidate(
            **{
                "prefill.0/logits": 900.0,
                "prefill.1/embed": 1.0,
                "prefill.0/blocks.2.attn.k": 20.0,
                "prefill.0/blocks.1.out": 60.0,
                "decode.0/blocks.0.attn_norm": 5000.0,
            }
        )
        divergence = leg(candidate).first_divergence
        assert divergence is not None
        assert divergence.tap == "prefill.0/blocks.1.out"
        assert divergence.error_ratio == pytest.approx(60, rel=0.02)

    def test_each_faulty_part_is_named_once_in_forward_order(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        faults = (
            "prefill.1/logits",
            "prefill.0/blocks.2.out",
            "prefill.0/blocks.2.attn.v",
            "decode.1/blocks.2.attn_norm",
            "prefill.1/blocks.0.attn.out",
            "prefill.1/final_norm",
            "prefill.0/kv.0.k",
        )
        isolated = world.candidate(**dict.fromkeys(faults, 30.0))
        key = "prefill.0/embed"
        isolated.arrays[key] = isolated[key] + np.float32(1)
        divergence = leg(isolated, isolated).first_divergence
        assert divergence is not None
        assert divergence.isolated == ("embed", "kv.0.k", "blocks.2.attn.v", "final_norm")

    def test_blocks_after_the_faulty_one_are_not_named(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        after = [key for key in world.oracle if "blocks.1" in key or "blocks.2" in key]
        whole = world.candidate(**dict.fromkeys(after, 30.0))
        divergence = leg(whole, world.candidate(**{KEY: 30.0})).first_divergence
        assert divergence is not None
        assert divergence.isolated == ("blocks.1.attn.k",)

    def test_worst_is_the_largest_ratio_or_what_has_none(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        key = "prefill.1/final_norm"

        def worst(ratio: float, **changed: float | None) -> str | None:
            found = leg(world.candidate(ratio, **changed)).worst
            return None if found is None else found.tap

        assert worst(1.0, **{key: 1.3}) == key
        assert worst(0.5, **{key: 0.7}) == key  # not a lookup, whose ratio is 0
        assert worst(1.0, **{KEY: 20.0, key: 80.0}) == key
        assert worst(1.0, **{KEY: None, key: 80.0}) == KEY

    def test_worst_is_a_step_of_many_rows_where_there_is_one(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        """The ratio of a decode step is that of one row."""
        one, many = "decode.3/final_norm", "prefill.1/final_norm"
        worst = leg(world.candidate(**{one: 2.0, many: 1.3})).worst
        assert worst is not None
        assert worst.tap == many
        decode = [key for key in world.expected if key.startswith("decode")]
        whole = world.candidate(**{one: 2.0})
        candidate = Trace({key: whole[key] for key in decode})
        worst = judge_leg(Leg(AUTHORING), candidate, None, world.baseline(), decode).worst
        assert worst is not None
        assert worst.tap == one

    def test_nothing_measured_has_no_worst(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        judged = leg(Trace(unavailable=dict.fromkeys(world.expected, "not readable")))
        assert (judged.outcome, judged.worst) == (UNCHECKED, None)

    def test_a_missing_tap_diverges_without_measure(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        divergence = leg(world.candidate(**{KEY: None})).first_divergence
        assert divergence is not None
        assert (divergence.tap, divergence.error_ratio) == (KEY, np.inf)

    def test_each_run_is_judged_by_its_own_limits(
        self, monkeypatch: pytest.MonkeyPatch, world: World
    ) -> None:
        limits = {"conversion": Thresholds(9.0, 30.0), "isolated": LIMITS}
        monkeypatch.setattr(judge_module, "thresholds", limits.__getitem__)
        off = world.candidate(**{KEY: 5.0})

        def judge(whole: Trace, isolated: Trace) -> LegResult:
            return judge_leg(Leg(CONVERSION), whole, isolated, world.baseline(), world.expected)

        judged = judge(off, world.candidate())
        assert (judged.name, judged.outcome) == ("conversion", PASS)
        assert judged.threshold == {"rms": 9.0, "row": 30.0}
        assert judge(world.candidate(), off).outcome == FAIL

    def test_each_run_is_held_against_its_own_floor(
        self, monkeypatch: pytest.MonkeyPatch, world: World
    ) -> None:
        monkeypatch.setattr(judge_module, "thresholds", lambda name: LIMITS)
        narrow = {key: rows / 10 for key, rows in world.floor.items()}
        baseline = Baseline(world.oracle, world.floor, narrow, world.candidate())
        clean = world.candidate()
        judged = judge_leg(Leg(AUTHORING), clean, clean, baseline, [KEY])
        assert judged.taps[0].error_ratio == pytest.approx(1.0, rel=0.02)
        assert judged.taps[0].isolated_ratio == pytest.approx(10.0, rel=0.02)
        assert judged.taps[0].isolated_row_ratio == pytest.approx(10.0, rel=0.05)

    def test_both_runs_tell_a_row_by_its_position(
        self, monkeypatch: pytest.MonkeyPatch, world: World
    ) -> None:
        monkeypatch.setattr(judge_module, "thresholds", lambda name: LIMITS)
        key, ratios = "prefill.1/blocks.0.out", np.ones(20)
        ratios[13] = 50.0
        off, starts = world.candidate(**{key: ratios}), {"prefill.0": 0, "prefill.1": 12}
        for whole, isolated in ((off, world.candidate()), (world.candidate(), off)):
            judged = judge_leg(
                Leg(AUTHORING), whole, isolated, world.baseline(), world.expected, starts
            )
            (failed,) = [result for result in judged.taps if result.outcome == FAIL]
            assert "position 25: 50" in failed.reason

    def test_the_reasons_of_both_runs_are_told_each_once(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        def reason(whole: Trace, isolated: Trace | None) -> str:
            return {result.tap: result for result in leg(whole, isolated).taps}[KEY].reason

        clean, off = world.candidate(), world.candidate(**{KEY: 3.0})
        own = reason(off, None)
        assert own.startswith("error ratio 3, allowed 1.5")
        assert reason(off, clean) == own
        worse = reason(clean, world.candidate(**{KEY: 9.0}))
        assert reason(off, world.candidate(**{KEY: 9.0})) == f"{own}; {worse}"
        unread = world.candidate(**{KEY: None})
        unread.unavailable[KEY] = "fused"
        assert reason(unread, unread) == "fused"

    def test_an_extra_tap_of_either_run_fails(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        odd = world.candidate()
        odd.add("prefill.0", "blocks.3.out", np.zeros((1, 12, WIDTH), np.float32))
        for judged in (leg(odd, world.candidate()), leg(world.candidate(), odd)):
            failed = [result.tap for result in judged.taps if result.outcome == FAIL]
            assert failed == ["prefill.0/blocks.3.out"]

    def test_what_is_unchecked_is_counted_and_its_reasons_too(
        self, leg: Callable[..., LegResult], world: World
    ) -> None:
        reasons = {KEY: "fused", "decode.0/logits": "fused"}
        for more, told in (
            ({}, "2 taps unchecked: fused"),
            ({"decode.1/logits": "lost"}, "3 taps unchecked: fused (and 1 more reasons)"),
            ({"decode.2/logits": "cut"}, "4 taps unchecked: fused (and 2 more reasons)"),
        ):
            reasons |= more
            candidate = world.candidate(**dict.fromkeys(reasons))
            candidate.unavailable |= reasons
            assert leg(candidate).reason == told

    @pytest.mark.parametrize("notes", [(), ("told before",)])
    def test_another_representation_passes_with_a_note(
        self, monkeypatch: pytest.MonkeyPatch, notes: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr(judge_module, "thresholds", lambda name: LIMITS)
        own = ("blocks.0.attn.k", "kv.0.k")
        world = World({"prefill.0": 12}, (*own, "blocks.0.out", "logits"))
        rows, cache = (f"prefill.0/{tap}" for tap in own)
        world.oracle.arrays[rows] = world.oracle[cache]
        candidate = world.candidate()
        candidate.arrays[rows] = candidate.arrays[cache] = world.noisy(rows, 1e4)

        def judge(run: Trace) -> LegResult:
            baseline, starts = world.baseline(), {"prefill.0": 0}
            return judge_leg(
                Leg(AUTHORING), run, None, baseline, world.expected, starts, notes=notes
            )

        judged = judge(candidate)
        assert judged.outcome == PASS
        assert judged.first_divergence is None
        assert judged.notes[:-1] == notes
        assert "other values in attn.k, the KV cache" in judged.notes[-1]
        candidate.arrays[cache] = world.noisy(cache, 1e4)  # not what was attended with
        assert judge(candidate).outcome == FAIL
        assert judge(candidate).notes == notes


def test_the_pages_of_what_was_compared_are_released(
    monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    released: list[int] = []
    monkeypatch.setattr(module, "forget", lambda *arrays: released.extend(map(id, arrays)))
    candidate = world.candidate()
    world.judge(candidate)
    once = [id(trace[key]) for key in world.expected for trace in (candidate, world.oracle)]
    # Logits are read again for the greedy tokens.
    logits = [key for key in world.expected if taps.split(key)[1] == taps.LOGITS]
    again = [id(trace[key]) for key in logits for trace in (candidate, world.oracle)]
    assert logits
    assert sorted(released) == sorted([*once, *again])


def test_nothing_judged_is_no_pass() -> None:
    assert worst_outcome([]) == UNCHECKED
    assert worst_outcome([PASS, UNCHECKED]) == UNCHECKED
    assert worst_outcome([UNCHECKED, FAIL, PASS]) == FAIL


def test_the_thresholds_are_the_packages_data() -> None:
    for name in ("authoring", "conversion", "isolated"):
        limits = thresholds(name)
        assert 1.0 < limits.rms < 3.0
        assert limits.rms < limits.row < 12.0
        assert json.dumps(limits.as_dict())


SMALL = {"prefill.0": 9, **{f"decode.{n}": 1 for n in range(8)}}
SMALL_TAPS = ("embed", "blocks.0.out", "logits", "kv.0.k")
FAULT = st.tuples(st.sampled_from(World(SMALL, SMALL_TAPS).expected), st.floats(0, 60))


@given(st.integers(-60, 60), st.lists(FAULT, max_size=4))
def test_the_scale_of_a_model_changes_no_verdict(
    power: int, faults: list[tuple[str, float]]
) -> None:
    world = World(SMALL, SMALL_TAPS)
    candidate = world.candidate(**dict(faults))
    before = world.judge(candidate)
    factor = 2.0**power
    scaled = Trace({key: candidate[key] * np.float32(factor) for key in candidate})
    world.oracle = Trace({key: world.oracle[key] * factor for key in world.oracle})
    after = world.judge(scaled)
    assert {k: (r.outcome, r.reason) for k, r in after.items() if "greedy" not in r.reason} == {
        k: (r.outcome, r.reason) for k, r in before.items() if "greedy" not in r.reason
    }
    assert {k: r.outcome for k, r in after.items()} == {k: r.outcome for k, r in before.items()}
    for key, result in before.items():
        assert after[key].error_ratio == pytest.approx(result.error_ratio, rel=1e-12)


@given(st.permutations(range(20)), st.lists(st.floats(0, 8), min_size=20, max_size=20))
def test_the_order_of_rows_changes_no_verdict(order: list[int], ratios: list[float]) -> None:
    world = World({"prefill.0": 20}, ("blocks.0.out",))
    key = "prefill.0/blocks.0.out"
    candidate = world.candidate(**{key: np.array(ratios)})
    before = world.judge(candidate)[key]
    moved = Trace({key: candidate[key][:, order]})
    world.oracle = Trace({key: world.oracle[key][:, order]})
    after = world.judge(moved)[key]
    assert after.outcome == before.outcome
    assert after.error_ratio == pytest.approx(before.error_ratio, rel=1e-12)
    assert after.row_ratio == pytest.approx(before.row_ratio, rel=1e-12)


@given(st.lists(FAULT, min_size=1, max_size=3), st.floats(1.0, 50.0))
def test_a_larger_error_never_turns_a_failure_into_a_pass(
    faults: list[tuple[str, float]], factor: float
) -> None:
    world = World(SMALL, SMALL_TAPS)
    before = world.failed(world.candidate(**dict(faults)))
    grown = {key: ratio * factor for key, ratio in dict(faults).items()}
    assert before <= world.failed(world.candidate(**grown))
