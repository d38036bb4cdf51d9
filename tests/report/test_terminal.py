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


def test_a_pass_is_a_line_for_each_leg(report: Callable[..., Report]) -> None:
    worst = "pass      worst 1.02 (allowed 1.50) at prefill.0/embed, worst row 1.33 (allowed 4.00)"
    assert lines_of(shown(report())) == [
        "PASS  tinyllama tiny · seeded random weights · 69 prompt tokens in 3 chunks + 8 decode "
        "steps · KV default · xnnpack",
        f"  authoring   {worst} · 66 taps",
        f"  conversion  {worst} · 66 taps",
    ]


def test_a_failure_says_where_and_what_to_look_at(report: Callable[..., Report]) -> None:
    assert lines_of(shown(report("fail")))[1:7] == [
        "  authoring   fail      first diverging tap prefill.0/blocks.1.attn.k: error ratio 71.0",
        "                        faulty on its own: blocks.1.attn.k",
        "                        error ratio 71, allowed 1.5. Look at the key projection.",
        "                        worst 71.0 (allowed 1.50) at prefill.0/blocks.1.attn.k, worst row "
        "92.3 (allowed 4.00)",
        "                        66 taps compared: 64 pass, 2 fail, 0 unchecked",
        "  conversion  pass      worst 1.02 (allowed 1.50) at prefill.0/embed, worst row 1.33 "
        "(allowed 4.00) · 66 taps",
    ]


def test_what_is_unchecked_gives_its_reason_once(report: Callable[..., Report]) -> None:
    text = shown(report(conversion="unchecked", reason="no tensor of that name"))
    assert lines_of(text)[2:5] == [
        "  conversion  unchecked no tensor of that name",
        "                        prefill.0/blocks.1.attn.k: unchecked, no tensor of that name",
        "                        prefill.0/logits: unchecked, no tensor of that name",
    ]
    assert "66 taps compared: 64 pass, 0 fail, 2 unchecked" in text


def test_it_fits_60_columns_and_loses_nothing(report: Callable[..., Report]) -> None:
    wide = shown(report("fail", "unchecked", reason="[bold]brackets[/] are text"), 400)
    narrow = shown(report("fail", "unchecked", reason="[bold]brackets[/] are text"), 60)
    assert max(len(line) for line in lines_of(narrow)) <= 60
    assert sorted(narrow.split()) == sorted(wide.split())


def test_a_pipe_gets_whole_lines_without_colour(report: Callable[..., Report]) -> None:
    stream = io.StringIO()
    print_report(report("fail"), console_for(stream), verbose=True)
    assert "\x1b" not in stream.getvalue()
    assert any(
        line.split()[:1] == ["decode.7/blocks.1.attn.k"] and line.split()[-1] == "pass"
        for line in stream.getvalue().splitlines()
    )


def test_colour_only_underlines_the_words(report: Callable[..., Report]) -> None:
    assert "\x1b[1;31mFAIL" in shown(report("fail"), color=True)


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
    assert lines_of(shown(same))[-1] == "  all continue with ' Paris.'"
    other = report(continuation={"reference": " Paris.", "tflite": " Rome."})
    assert lines_of(shown(other))[-1] == "  tflite continues with ' Rome.'"


def test_the_outcome_alone_is_one_line(report: Callable[..., Report]) -> None:
    stream = io.StringIO()
    print_outcome(report(), console_for(stream))
    assert stream.getvalue().count("\n") == 1


def test_a_report_without_legs_is_unchecked() -> None:
    assert lines_of(shown(Report(case={"model": "x"}, environment={}, legs={}))) == ["UNCHECKED  x"]
