"""The three implementations of a session keep to one contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgeverify.backends import reference
from edgeverify.backends.sessions import Session
from edgeverify.backends.sessions.reauthored import ReauthoredSession
from edgeverify.backends.sessions.reference import ReferenceSession
from edgeverify.backends.sessions.tflite import TfliteSession
from edgeverify.core.errors import CacheFullError, UsageError
from edgeverify.legs.conversion import converted
from edgeverify.legs.run import Run, fitting_threads, prepare
from edgeverify.legs.selectors import Selectors

TOKENS = (5, 9, 2, 7, 7)
PYTORCH = ("reference", "default", "transposed")


@pytest.fixture(scope="module")
def new_session() -> Callable[[str], Session]:
    made: dict[str, Session] = {}

    def make(kind: str) -> Session:
        if kind not in made:
            layout = "transposed" if "transposed" in kind else "default"
            run, _ = prepare("gemma2", Selectors.of(kv_layout=layout), verbose=False, progress=None)
            with fitting_threads(run):
                made[kind] = _session(kind, run)
        made[kind].reset()
        return made[kind]

    return make


def _session(kind: str, run: Run) -> Session:
    case = run.case
    if kind == "reference":
        model = reference.build(run.hf_config, run.state())
        return ReferenceSession(model, case.kv_cache_len, case.prefill_lengths)
    if kind.startswith("tflite"):
        return TfliteSession(converted(run), case, "xnnpack")
    return ReauthoredSession(run.model(), case)


KINDS = [*PYTORCH, *(pytest.param(f"tflite {x}", marks=pytest.mark.slow) for x in PYTORCH[1:])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_then_decode(kind: str, new_session: Callable[[str], Session]) -> None:
    session = new_session(kind)
    logits = session.prefill(TOKENS)
    assert logits is not None
    assert logits.shape == (5, 307)
    assert logits.dtype == np.float32
    assert session.position == 5
    assert session.decode(1).shape == (307,)
    assert session.position == 6
    cache = session.read_cache()
    assert list(cache)[:3] == ["kv.0.k", "kv.0.v", "kv.1.k"]
    rows = 96 if session.fixed else 6
    assert {array.shape[0] for array in cache.values()} == {rows}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_is_read_can_be_written_back(
    kind: str, new_session: Callable[[str], Session]
) -> None:
    session = new_session(kind)
    session.prefill(TOKENS)
    cache = session.read_cache()
    wanted = session.decode(3)
    session.rewind(5)
    session.write_cache(cache)
    assert session.decode(3).tobytes() == wanted.tobytes()
    again = session.read_cache()
    assert all(np.array_equal(again[tap][:5], cache[tap][:5]) for tap in cache)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_a_copy(kind: str, new_session: Callable[[str], Session]) -> None:
    session = new_session(kind)
    session.prefill(TOKENS)
    session.read_cache()["kv.0.k"][:] = 99
    assert not (session.read_cache()["kv.0.k"] == 99).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_ends_past_the_last_row_is_refused(
    kind: str, new_session: Callable[[str], Session]
) -> None:
    session = new_session(kind)
    for _ in range(3):
        session.prefill((0,) * 32)
    with pytest.raises(CacheFullError) as raised:
        session.decode(0)
    assert str(raised.value) == (
        f"{session.name}: a step of 1 tokens at position 96 ends past the last of 96 rows of the "
        "KV cache (the runtime would overwrite older rows); expected at most 0 tokens, pads "
        "included; take a shorter signature, decode one by one, or convert with a longer cache"
    )
    assert session.position == 96


def test_pads_count_where_they_are_written(new_session: Callable[[str], Session]) -> None:
    session = new_session("default")
    session.prefill((0,) * 32)
    session.prefill((0,) * 32)
    session.prefill((0,) * 5)
    with pytest.raises(CacheFullError, match="a step of 32 tokens at position 69"):
        session.prefill((0,) * 2, length=32)


def test_the_smallest_signature_that_fits_is_taken(
    new_session: Callable[[str], Session],
) -> None:
    session = new_session("default")
    session.prefill((1,) * 3)
    written = np.flatnonzero(session.read_cache()["kv.0.k"].any(axis=(1, 2)))
    assert written.tolist() == list(range(16))


@pytest.mark.parametrize(
    ("tokens", "length"), [((), 16), ((0,) * 17, 16), ((0,) * 33, None), ((0,), 8)]
)
def test_what_no_signature_takes_is_refused(
    tokens: tuple[int, ...], length: int | None, new_session: Callable[[str], Session]
) -> None:
    with pytest.raises(UsageError, match=r"signature of N in \[16, 32\]"):
        new_session("default").prefill(tokens, length=length)


@pytest.mark.parametrize("position", [-1, 6])
def test_a_rewind_goes_back_only(position: int, new_session: Callable[[str], Session]) -> None:
    session = new_session("reference")
    session.prefill(TOKENS)
    with pytest.raises(UsageError, match="expected 0 to 5"):
        session.rewind(position)


@pytest.mark.slow
def test_a_file_without_a_batch_says_so(new_session: Callable[[str], Session]) -> None:
    session = new_session("tflite default")
    with pytest.raises(UsageError, match="has no batch"):
        session.decode_batch([0, 0], [session.read_cache()] * 2)
