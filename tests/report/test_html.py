from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

from edgeverify.report.html import render
from edgeverify.report.model import Report

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


def test_the_heat_map_has_a_cell_for_each_block_and_tap(report: Callable[..., Report]) -> None:
    page = render(report("fail"))
    tables = re.findall(r"<table>.*?</table>", page)
    heat = [table for table in tables if 'class="heat' in table]
    assert len(heat) == 4  # blocks and model, for each of two legs
    assert "<th>block</th><th>attn.k</th><th>out</th><th>kv.k</th>" in heat[0]
    assert (
        '<tr><th>1</th><td class="heat fail" title="prefill.0/blocks.1.attn.k: fail">71.0</td>'
        "<td></td><td></td></tr>"
    ) in heat[0]
    assert re.search(r'<th>0</th><td class="heat pass" style="[^"]*rgba', heat[0])
    assert "<th>embed</th><th>logits</th>" in heat[1]


def test_everything_foreign_is_escaped(report: Callable[..., Report]) -> None:
    evil = "<script>alert('\"1\"')</script>"
    made = report("fail", "unchecked", reason=evil, checkpoint=evil, model=evil)
    assert "script" not in Page(render(made)).tags


def test_an_empty_report_is_a_page_too() -> None:
    assert "unchecked" in render(Report(case={}, environment={}, legs={}))
