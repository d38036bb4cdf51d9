from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from edgeverify.core.results import Report
from edgeverify.report.terminal import console_for, print_outcome, print_report


def shown(report: Report, width: int = 120, *, verbose: bool = False, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=color, highlight=False)
    print_report(report, console, verbose=verbose)
    return stream.getvalue()


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


HEAD = "tinyllama tiny · seeded random weights · 69 prompt tokens + 8 decode steps"
PARTS = [
    "✗ authoring   Hugging Face → port: 2 of 66 taps differ",
    "✓ conversion  port → .tflite: 66 taps agree, worst 1.02 of 1.50 allowed",
]


def test_a_pass_is_a_line_for_each_leg(report: Callable[..., Report]) -> None:
    assert lines_of(shown(report())) == [
        f"PASS  {HEAD}",
        "✓ authoring   Hugging Face → port: 66 taps agree, worst 1.02 of 1.50 allowed",
        PARTS[1],
    ]


def test_a_failure_is_answered_first(report: Callable[..., Report]) -> None:
    assert lines_of(shown(report("fail"))) == [
        f"FAIL  {HEAD}",
        "cause  not named",
        "       the error: relative error 7e-06, near float32's own rounding",
        "where  authoring (Hugging Face → port): attn.k of block 1",
        "       first at prefill.0/blocks.1.attn.k: error 71.0 times float32 noise (allowed 1.50)",
        "next   look in tinyllama at the key projection, then: edgeverify.verify(port)",
        *PARTS,
    ]


def test_verbose_says_all_of_the_rest(report: Callable[..., Report]) -> None:
    text = shown(report("fail"), verbose=True)
    assert text.startswith(shown(report("fail")) + "\ncase: tinyllama tiny · ")
    assert lines_of(text)[10:15] == [
        "  authoring   fail      first diverging tap prefill.0/blocks.1.attn.k: error ratio 71.0",
        "                        faulty on its own: blocks.1.attn.k",
        "                        error ratio 71, allowed 1.5. Look at the key projection.",
        "                        worst 71.0 (allowed 1.50) at prefill.0/blocks.1.attn.k, worst row "
        "92.3 (allowed 4.00)",
        "                        66 taps compared: 64 pass, 2 fail, 0 unchecked",
    ]


def test_what_is_unchecked_gives_its_reason_once(report: Callable[..., Report]) -> None:
    text = shown(report(conversion="unchecked", reason="no tensor of that name"))
    assert lines_of(text)[1:5] == [
        "cause  no fault was found, but not everything could be checked",
        "       no tensor of that name",
        "where  conversion (port → .tflite): attn.k of block 1, logits",
        "next   see all that was not checked, and why: edgeverify.verify(port)",
    ]
    assert lines_of(text)[-1] == "? conversion  port → .tflite: 2 of 66 taps are unchecked"


def test_it_fits_60_columns(report: Callable[..., Report]) -> None:
    narrow = shown(report("fail", "unchecked", reason="[bold]brackets[/] are text"), 60)
    assert max(len(line) for line in lines_of(narrow)) <= 60
    assert "error 71.0 times" in narrow


def test_what_a_library_says_is_no_markup(report: Callable[..., Report]) -> None:
    text = shown(report(conversion="unchecked", reason="[bold]brackets[/] are text"))
    assert "[bold]brackets[/] are text" in text


def test_a_pipe_gets_whole_lines_without_colour(report: Callable[..., Report]) -> None:
    stream = io.StringIO()
    print_report(report("fail"), console_for(stream), verbose=True)
    assert "\x1b" not in stream.getvalue()
    assert any(
        line.split()[:1] == ["decode.7/blocks.1.attn.k"] and line.split()[-1] == "pass"
        for line in stream.getvalue().splitlines()
    )


def test_colour_only_underlines_the_words(report: Callable[..., Report]) -> None:
    text = shown(report("fail"), color=True)
    assert "\x1b[1;31mFAIL" in text
    assert "\x1b[1;31m✗" in text


def test_verbose_shows_every_tap_with_its_numbers(report: Callable[..., Report]) -> None:
    text = shown(report("fail"), verbose=True)
    (row,) = [
        line.split()
        for line in lines_of(text)
        if line.startswith("prefill.0/blocks.1.attn.k") and "7.0e-06" in line
    ]
    assert row[1:7] == ["7.0e-06", "9.0e-08", "71.0", "92.3", "0.98", "fail"]
    assert sum(line.startswith(("prefill.", "decode.")) for line in lines_of(text)) == 2 * 66
    assert "environment: torch 2.13.0, threads 2" in text
    assert "seconds: convert 1.2, re-authored 0.5" in text


def test_continuations_are_one_line_if_they_agree(report: Callable[..., Report]) -> None:
    same = report(continuation={"reference": " Paris.", "tflite": " Paris."})
    assert lines_of(shown(same))[-1] == "all continue with ' Paris.'"
    other = report(continuation={"reference": " Paris.", "tflite": " Rome."})
    assert "  tflite continues with ' Rome.'" in lines_of(shown(other, verbose=True))


def test_the_outcome_alone_is_one_line(report: Callable[..., Report]) -> None:
    stream = io.StringIO()
    print_outcome(report(), console_for(stream))
    assert stream.getvalue().count("\n") == 1


def test_a_report_without_legs_is_unchecked() -> None:
    assert lines_of(shown(Report(case={"model": "x"}, environment={}, legs={}))) == [
        "UNCHECKED  x",
        "cause  not checked: nothing was compared",
        "next   see all that was not checked, and why: edgeverify.verify(port)",
    ]
