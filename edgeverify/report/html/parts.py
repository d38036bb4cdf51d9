"""What all parts of the page are made of: the style, tables, badges."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from edgeverify.core.results import FAIL, PASS, UNCHECKED

MARKS = {PASS: "✓", FAIL: "✗", UNCHECKED: "?"}

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem;
       color: #1b1b1b; background: #fff; overflow-wrap: anywhere; }
td code { white-space: nowrap; }
h1 { font-size: 1rem; margin: .75rem 0; font-weight: 600; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
.outcome { border-left: .5rem solid; border-radius: .3rem; padding: .75rem 1rem; }
.outcome p { margin: .4rem 0 0; } .outcome .verdict { font-size: 1.6rem; font-weight: 800; }
.outcome .where { font-size: 1.15rem; font-weight: 600; }
.outcome.pass { border-color: #2e7d32; background: #e8f5e9; }
.outcome.fail { border-color: #c62828; background: #fdecea; }
.outcome.unchecked { border-color: #f9a825; background: #fff8e1; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .85rem; overflow-wrap: normal; }
th, td { padding: .25rem .5rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.wide { min-width: 14rem; }
td.heat { text-align: right; border: 1px solid #fff; color: #000; white-space: nowrap;
          font-variant-numeric: tabular-nums; padding: .2rem .35rem; }
td.heat.source { outline: 3px solid #000; outline-offset: -3px; font-weight: 700; }
table.map th { padding: .2rem .35rem; white-space: nowrap; }
table.map tbody th { position: sticky; left: 0; background: #fff; }
tr.source th { font-weight: 800; }
.pass { background: #c8e6c9; } .fail { background: #ef9a9a; } .unchecked { background: #ffe082; }
.badge { padding: .1rem .5rem; border-radius: .3rem; color: #000; font-weight: 600;
         white-space: nowrap; }
.scale { display: flex; flex-wrap: wrap; gap: .25rem; font-size: .8rem; margin: .25rem 0 .5rem; }
.scale span { padding: .05rem .4rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .8rem; background: #f6f6f6; padding: .5rem; }
.muted { color: #555; font-size: .9rem; } summary { cursor: pointer; padding: .35rem 0; }
dl.next dt { font-weight: 600; margin-top: .6rem; } dl.next dd { margin: 0 0 0 1rem; }
figure { margin: .5rem 0; } svg { width: 100%; height: auto; display: block; max-width: 52rem; }
svg text { font: 11px system-ui, sans-serif; fill: #333; }
@media (max-width: 560px) {
  body { padding: .6rem; } table { font-size: .75rem; } table.map { font-size: .68rem; }
  td.heat, table.map th { padding: .1rem .15rem; }
  table.map td.heat { white-space: normal; overflow-wrap: normal; font-size: .6rem; }
  table.map thead th { writing-mode: vertical-rl; }
  th, td { padding: .2rem .3rem; }
}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
    )
    return head + "\n".join(part for part in parts if part) + "\n</body></html>\n"


def badge(outcome: str) -> str:
    mark = MARKS.get(outcome, "")
    return f'<span class="badge {escape(outcome)}">{mark} {escape(outcome)}</span>'


def table(heads: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls by itself where the screen is narrower.

    Args:
        heads: texts of the head; none for a table without one.
        rows: HTML of each row.
        kind: a class of the style, or "".
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    name = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{name}>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def folded(summary: str, inner: str, *, shown: bool = False) -> str:
    """A part that is opened by a tap on it; browsers do it without a script."""
    state = " open" if shown else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{inner}</details>"
