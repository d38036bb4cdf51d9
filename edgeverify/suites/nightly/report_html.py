"""A nightly run as one self-contained page: the outcome first, then a grid, then what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgeverify.core.results import PASS
from edgeverify.suites.nightly.report_text import grid, headline, legs, reason

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .5rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { background: #c8e6c9; } .fail { background: #ef9a9a; } .unchecked { background: #ffe082; }
td.cell { border: 1px solid #fff; text-align: center; }
a { color: inherit; } code { overflow-wrap: anywhere; }
"""


def render(document: Mapping[str, Any], *, pages: str | None = None) -> str:
    """The page as HTML.

    Args:
        document: of the run.
        pages: folder, relative to the page, with a page for each case; no links if None.
    """
    title = headline(document)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f'<h1><span class="{escape(document["outcome"])}">{escape(title)}</span></h1>',
        f"<p>Started {escape(document['started'])}.</p>",
        _grid(document, pages),
        _odd(document, pages),
        _cases(document, pages),
        _facts("Excluded", {out["id"]: out["reason"] for out in document["excluded"]}),
        _facts("Not the same for all", document["differing"]),
        _facts("Environment", document["environment"]),
    ]
    return "\n".join(part for part in parts if part) + "\n</body></html>\n"


def _link(name: str, text: str, report: Mapping[str, Any], pages: str | None) -> str:
    if pages is None or not report.get("legs"):
        return escape(text)
    return f'<a href="{escape(f"{pages}/{name}.html")}">{escape(text)}</a>'


def _grid(document: Mapping[str, Any], pages: str | None) -> str:
    columns, rows = grid(document)
    out = []
    for row, cells in rows.items():
        line = f"<tr><th>{escape(row)}</th>"
        for column in columns:
            name = f"{row}.{column}"
            outcome = cells.get(column)
            if outcome is None:
                line += "<td>–</td>"
                continue
            text = _link(name, outcome, document["cases"][name], pages)
            line += f'<td class="cell {escape(outcome)}">{text}</td>'
        out.append(line + "</tr>")
    return _table(["", *columns], out)


def _odd(document: Mapping[str, Any], pages: str | None) -> str:
    odd = [(n, r) for n, r in document["cases"].items() if r["outcome"] != PASS]
    rows = [
        f"<tr><td><code>{_link(name, name, report, pages)}</code></td>"
        f'<td class="{escape(report["outcome"])}">{escape(report["outcome"])}</td>'
        f"<td>{escape(reason(report))}</td></tr>"
        for name, report in odd
    ]
    return "<h2>Did not pass</h2>" + _table(["case", "outcome", "why"], rows) if rows else ""


def _cases(document: Mapping[str, Any], pages: str | None) -> str:
    rows = []
    for name, report in document["cases"].items():
        facts = report.get("nightly", {})
        ratios = [
            (leg["worst"]["error_ratio"], kind)
            for kind, leg in legs(report)
            if leg.get("worst") and isinstance(leg["worst"]["error_ratio"], int | float)
        ]
        worst = max(ratios, default=None)
        told = "–" if worst is None else f"{worst[0]:.3g} ({worst[1]})"
        peak = facts.get("peak_memory")
        rows.append(
            f"<tr><td><code>{_link(name, name, report, pages)}</code></td>"
            f'<td class="{escape(report["outcome"])}">{escape(report["outcome"])}</td>'
            f"<td>{escape(told)}</td>"
            f'<td class="n">{_number(facts.get("seconds"))}</td>'
            f'<td class="n">{_number(peak and peak / 2**30)}</td></tr>'
        )
    heads = ["case", "outcome", "worst error ratio (leg)", "seconds", "peak of its process, GiB"]
    return "<h2>Cases</h2>" + _table(heads, rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    ]
    return f"<h2>{escape(title)}</h2>{_table([], rows)}" if rows else ""


def _table(heads: list[str], rows: list[str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'
