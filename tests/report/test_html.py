from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

from conftest import make_leg
from edgeverify.core.results import GoldenChange, GoldenResult, InvariantResult, Report
from edgeverify.report import json as json_report
from edgeverify.report.html import render
from edgeverify.report.html.heat import SCALE, colour
from edgeverify.report.read import report_from

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced and gathers the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_stands_alone(report: Callable[..., Report]) -> None:
    page = render(report("fail"))
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert "http" not in page
    assert 'name="viewport"' in page


def test_outcome_legs_and_environment_are_shown(report: Callable[..., Report]) -> None:
    text = " ".join(Page(render(report("fail"))).text)
    for part in (
        "FAIL tinyllama tiny",
        "faulty on its own: blocks.1.attn.k",
        "Look at the key projection.",
        "Taps that did not pass",
        "2.13.0",
    ):
        assert part in text


def test_the_outcome_comes_first_with_leg_block_and_sublayer(
    report: Callable[..., Report],
) -> None:
    text = [part for part in Page(render(report("fail"))).text if part.strip()]
    assert "authoring fails in block 1, attn.k: error ratio 71.0" in " ".join(text[2:8])


def test_the_answer_comes_before_everything_else(report: Callable[..., Report]) -> None:
    page = render(report("fail", command="edgeverify check <x>.py:PORT"))
    places = [page.index(f"<dt>{label}</dt>") for label in ("cause", "where", "next")]
    assert places == sorted(places)
    assert places[-1] < page.index("<table")
    assert "<code>edgeverify check &lt;x&gt;.py:PORT</code>" in page
    assert "<dt>cause</dt>" not in render(report())


def test_the_faulty_cell_is_marked_in_text_and_framed(report: Callable[..., Report]) -> None:
    page = render(report("fail"))
    assert re.search(r'class="heat fail"[^>]*>✗ 71.0<', page)
    assert re.search(r'class="heat pass source"[^>]*>0.98<', page)
    assert "Look at the key projection" in page


def test_each_decade_over_what_is_allowed_has_its_colour() -> None:
    shades = [colour(ratio, 1.5) for ratio in (1.5, 4.0, 14.0, 140.0, 1400.0, 1e6)]
    assert shades == [shade for _, shade in SCALE]
    assert colour(float("nan"), 1.5) == colour(None, 1.5) == "#ffe082"


def test_a_page_of_a_report_read_back_is_the_same(report: Callable[..., Report]) -> None:
    made = report("fail")
    again = report_from(json.loads(json_report.render(made)))
    assert again.to_dict() == made.to_dict()
    assert render(again) == render(made)


def test_everything_foreign_is_escaped(report: Callable[..., Report]) -> None:
    evil = "<script>alert('\"1\"')</script>"
    made = report("fail", "unchecked", reason=evil, checkpoint=evil, model=evil)
    assert "script" not in Page(render(made)).tags


def test_a_name_that_is_markup_is_shown_as_it_is(report: Callable[..., Report]) -> None:
    name = """<b>&"'"""
    made = report("fail", "unchecked", reason=name, model=name)
    legs = {name: make_leg(name, "fail"), **made.legs}
    invariant = InvariantResult(name, name, "fail", 3, reason=name, reproduction=name)
    golden = GoldenResult(name, "fail", (), (name,), (GoldenChange(name, name),))
    page = render(replace(made, legs=legs, invariants=(invariant,), goldens=(golden,)))
    parsed = Page(page)
    assert "b" not in parsed.tags
    assert f"{name} tiny" in " ".join(parsed.text)
    assert "&lt;b&gt;&amp;&#34;&#39;" in page
    assert "&amp;lt;" not in page


def test_an_empty_report_is_a_page_too() -> None:
    assert "unchecked" in render(Report(case={}, environment={}, legs={}))
