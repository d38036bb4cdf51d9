"""What LiteRT-LM makes of right and of wrong bundles of the same tiny file, each told by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgeverify import verify
from edgeverify.backends import litert_lm
from edgeverify.backends.sessions.tflite import TfliteSession
from edgeverify.core.errors import ArtifactError
from edgeverify.core.leg import RUNTIME, Leg
from edgeverify.core.results import FAIL, PASS, UNCHECKED, Finding, LegResult
from edgeverify.legs.runtime import engine
from edgeverify.legs.runtime.engine import Floors
from edgeverify.legs.runtime.engine.numbers import LOOSELY
from edgeverify.legs.runtime.engine.replay import continuation
from edgeverify.legs.selectors import Selectors
from edgeverify.litert.bundle import writer
from edgeverify.litert.recipes import RECIPES
from edgeverify_models import CATALOGUE
from tests.legs.runtime.engine.conftest import make_tokenizer
from tests.matrices import each_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("litert_lm") is None, reason="needs the extra litert-lm"
    ),
]
STEPS = 8
RUNTIMES = ("compiled_model", "tf_lite", "litert_lm")
ENGINE = Leg(RUNTIME, runtime="litert_lm")
FLOOR = 1e-6  # relative; the tiny ports' own is 4e-7 to 1e-6
NAMES = {
    *("tokenizer", "cache_length", "start_token", "stop_tokens"),
    *("chat_template", "greedy", "scores"),
}


@dataclass
class Tiny:
    """A tiny file in the transposed layout, with what a right use of it is."""

    path: Path
    tokenizer: Any
    usage: writer.Usage
    wanted: engine.Wanted
    session: TfliteSession
    folder: Path

    def bundled(self, tokenizer: str = "", **changes: Any) -> Path:
        target = self.folder / "model.litertlm"
        words = tokenizer or writer.tokenizer_json(self.tokenizer)
        writer.write_litertlm(self.path, words, replace(self.usage, **changes), target)
        return target

    def judged(self, **changes: Any) -> tuple[LegResult, tuple[Finding, ...]]:
        answers = litert_lm.ask(self.bundled(**changes), self.wanted.questions(STEPS))
        return engine.engine_leg(answers, self.wanted, self.session, Floors(FLOOR), STEPS, ENGINE)

    def failures(self, **changes: Any) -> dict[str, str]:
        """Name of each check that fails → why."""
        leg, _ = self.judged(**changes)
        assert {tap.tap for tap in leg.taps} == {f"litert_lm/{name}" for name in NAMES}
        assert leg.outcome == FAIL
        return {t.tap.split("/")[1]: t.reason for t in leg.taps if t.outcome == FAIL}


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    from edgeverify.legs.conversion import converted
    from edgeverify.legs.run import prepare

    chosen = Selectors.of(
        checkpoint=str(checkpoint("tinyllama")), kv_layout="transposed", decode_steps=STEPS
    )
    run, tokenizer = prepare("tinyllama", chosen, verbose=False, progress=None)
    assert tokenizer is not None
    usage = writer.usage_of(tokenizer, run.hf_config, run.case.kv_cache_len)
    prompt = [1, *tokenizer("A lighthouse by the sea", add_special_tokens=False)["input_ids"]]
    wanted = engine.wanted_of(tokenizer, usage, prompt, prompt[3:9])
    path = converted(run)
    session = TfliteSession(path, run.case, "xnnpack")
    place = tmp_path_factory.mktemp("bundles")
    return Tiny(path, tokenizer, usage, wanted, session, place)


@pytest.mark.parametrize("name", each_port(CATALOGUE))
def test_every_port_passes(name: str, checkpoint: Callable[[str], Path]) -> None:
    """In every recipe, on every runtime; blocks of 128 divide no tiny width."""
    report = verify(
        name,
        checkpoint=str(checkpoint(name)),
        kv_layout="transposed",
        recipes=RECIPES,
        runtimes=RUNTIMES,
    )
    applied = ("", *(f":{recipe}" for recipe in RECIPES[1:-1]))
    outcomes = {name: leg.outcome for name, leg in report.legs.items()}
    assert outcomes == {
        "authoring": PASS,
        "conversion": PASS,
        **{f"quantization{recipe}": PASS for recipe in applied[1:]},
        **{f"runtime:{r}{recipe}": PASS for r in RUNTIMES for recipe in applied},
        f"quantization:{RECIPES[-1]}": UNCHECKED,
        **{f"runtime:{r}:{RECIPES[-1]}": UNCHECKED for r in RUNTIMES},
    }
    assert "not divisible by block size 128" in report.legs[f"quantization:{RECIPES[-1]}"].reason
    for recipe in applied:
        taps = {tap.tap: tap.reason for tap in report.legs[f"runtime:litert_lm{recipe}"].taps}
        assert set(taps) == {f"litert_lm/{check}" for check in NAMES}
        # The engine runs the interpreter's kernels, so it is held to float32 rounding in int8, too,
        # and its own fault in scoring is seen there.
        assert "LiteRT-LM issue 3561" in taps["litert_lm/scores"]
        assert LOOSELY not in "".join(taps.values())


def test_a_right_use_passes_and_the_engines_own_fault_is_told(tiny: Tiny) -> None:
    """LiteRT-LM issue 3561; when it is mended, the scores pass without a remark."""
    leg, findings = tiny.judged()
    assert leg.outcome == PASS
    assert [finding.id for finding in findings] == ["runtime.litert_lm.scores"]
    assert "feeds the prompt's last token once more, one position early" in findings[0].message


def test_a_missing_start_token_is_named(tiny: Tiny) -> None:
    told = tiny.failures(start=None)
    assert told["start_token"] == ("the engine puts nothing before a prompt, expected 1 ('<s>')")
    assert told["greedy"].endswith(
        "it is the file's answer to the prompt without its start token 1 ('<s>')"
    )
    assert set(told) == {"start_token", "greedy", "chat_template"}


def test_another_start_token_is_named(tiny: Tiny) -> None:
    told = tiny.failures(start=2)
    assert told["start_token"] == ("the engine puts 2 ('</s>') before a prompt, expected 1 ('<s>')")
    assert "it is the file's answer to what the engine says that it fed, [2, " in told["greedy"]


def test_a_start_token_that_is_fed_twice_is_named(tiny: Tiny) -> None:
    """The template writes it out, and the engine puts it before: SmolLM2's case."""
    template = tiny.usage.template
    assert template is not None
    told = tiny.failures(template=template.replace('set bos_token = ""', 'set bos_token = "<s>"'))
    assert told == {
        "chat_template": "the start token 1 ('<s>') is fed twice: the template has it, and the "
        "engine puts it before"
    }


def test_wrong_stop_tokens_are_named(tiny: Tiny) -> None:
    told = tiny.failures(stops=(40,))
    assert told == {
        "stop_tokens": "the engine does not stop at 2 ('</s>'); it stops at 40 ('D'), which ends "
        "no answer"
    }


def test_another_tokenizer_is_named(tiny: Tiny) -> None:
    size = len(tiny.tokenizer)
    told = tiny.failures(tokenizer=make_tokenizer(size, first=0x3400).to_str())
    assert "greedy" in told  # its ids are other characters
    shifted = make_tokenizer(size)
    shifted.add_tokens(["fox"])
    told = tiny.failures(tokenizer=shifted.to_str())
    assert told == {
        "tokenizer": "'The quick brown fox, 12345.' is tokenized to [331, 16, 4, 21, …], expected "
        "[74, 83, 92, 16, …] from token 16 on"
    }


def test_a_template_that_the_engine_cannot_apply_is_named(tiny: Tiny) -> None:
    """As transformers has it, it adds a list of parts to a string."""
    told = tiny.failures(template=writer.chat_template(tiny.tokenizer))
    assert set(told) == {"chat_template"}
    assert told["chat_template"].startswith("the engine cannot apply it (Failed to render message")


def test_another_template_is_named(tiny: Tiny) -> None:
    template = tiny.usage.template
    assert template is not None
    told = tiny.failures(template=template.replace("'[assistant]'", "'[model]'"))
    assert told == {
        "chat_template": "a message becomes '<s>[user]What is the capital of France?</s>[model]', "
        "expected '<s>[user]What is the capital of France?</s>[assistant]'"
    }


def test_more_tokens_than_the_cache_has_rows_are_named(tiny: Tiny) -> None:
    rows = tiny.usage.rows
    assert tiny.failures(rows=400) == {
        "cache_length": f"the file says 400 tokens, its KV cache has {rows} rows"
    }
    leg, _ = tiny.judged(rows=rows - 1)
    assert leg.outcome == PASS


def test_a_graph_that_is_not_the_interpreters_is_told(tiny: Tiny) -> None:
    """The engine runs the file; the interpreter is given another: neither use explains it."""
    answers = litert_lm.ask(tiny.bundled(), tiny.wanted.questions(STEPS))
    other = replace(answers, text="nothing like it", scores=tuple(s + 0.01 for s in answers.scores))
    leg, _ = engine.engine_leg(other, tiny.wanted, tiny.session, Floors(FLOOR), STEPS, ENGINE)
    told = {t.tap.split("/")[1]: t.reason for t in leg.taps if t.outcome == FAIL}
    assert set(told) == {"greedy", "scores"}
    assert told["greedy"].endswith("another token at 0, and no near tie")


def test_a_near_tie_is_no_failure(tiny: Tiny) -> None:
    tokens, rows = continuation(tiny.session, tiny.wanted.fed, STEPS)
    second = int(rows[2].argsort()[-2])
    gap = float(rows[2].max() - rows[2, second])
    answers = litert_lm.ask(tiny.bundled(), tiny.wanted.questions(STEPS))
    other = replace(answers, text=tiny.wanted.decode([*tokens[:2], second]) + "and so on")
    typical = 8 * 4.4 * float((rows[2] ** 2).mean()) ** 0.5
    for floor, outcome in ((0.9 * gap / typical, FAIL), (1.1 * gap / typical, PASS)):
        leg, _ = engine.engine_leg(other, tiny.wanted, tiny.session, Floors(floor), STEPS, ENGINE)
        greedy = next(tap for tap in leg.taps if tap.tap == "litert_lm/greedy")
        assert greedy.outcome == outcome, greedy
    assert greedy.reason == "compared up to token 2, a near tie"


def test_what_rounding_activations_costs_is_asked_for_last(tiny: Tiny) -> None:
    """As wide as that is, it must not take a wrong feed for a right one."""
    tokens, rows = continuation(tiny.session, tiny.wanted.fed, STEPS)
    second = int(rows[2].argsort()[-2])
    answers = litert_lm.ask(tiny.bundled(), tiny.wanted.questions(STEPS))
    wide = 2.0  # everything is within it

    def told(answers: litert_lm.Answers) -> dict[str, tuple[str, str]]:
        leg, _ = engine.engine_leg(
            answers, tiny.wanted, tiny.session, Floors(FLOOR, wide), STEPS, ENGINE
        )
        return {t.tap.split("/")[1]: (t.outcome, t.reason) for t in leg.taps}

    found = told(answers)
    assert found["greedy"] == (PASS, "")
    assert "issue 3561" in found["scores"][1], "both are within it, and the right one is nearer"
    other = replace(answers, text=tiny.wanted.decode([*tokens[:2], second]) + "and so on")
    tie = "compared up to token 2, a near tie by what rounding activations costs"
    assert told(other)["greedy"] == (PASS, tie)
    off = replace(answers, scores=tuple(score + 1e-3 for score in answers.scores))
    assert told(off)["scores"][0] == PASS
    far = replace(answers, scores=tuple(score + 1e3 for score in answers.scores))
    assert told(far)["scores"][0] == FAIL
    wrong = litert_lm.ask(tiny.bundled(start=2), tiny.wanted.questions(STEPS))
    outcome, reason = told(wrong)["greedy"]
    assert outcome == FAIL
    assert "it is the file's answer to what the engine says that it fed, [2, " in reason


def test_the_default_layout_is_caught_before_the_engine_is_asked(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(litert_lm, "ask", never)
    report = verify("tinyllama", checkpoint=str(checkpoint("tinyllama")), runtimes=("litert_lm",))
    leg, audit = report.legs["runtime:litert_lm"], report.audits["signatures"]
    assert (audit.outcome, leg.outcome) == (FAIL, UNCHECKED)
    assert leg.reason.startswith("not asked: it would take the 2 KV heads for the cache's length")
    assert [check.item for check in audit.odd] == ["LiteRT-LM"]
    assert report.legs["conversion"].outcome == PASS


def test_a_damaged_file_is_an_error_with_the_engines_reason(tiny: Tiny, tmp_path: Path) -> None:
    whole = tiny.bundled().read_bytes()
    path = tmp_path / "half.litertlm"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError) as error:
        litert_lm.ask(path, tiny.wanted.questions(STEPS))
    assert error.value.what.startswith("LiteRT-LM refuses it at load (")
    assert error.value.where == str(path)
