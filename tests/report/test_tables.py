from __future__ import annotations

import subprocess
import sys

from edgeverify.report.tables import code, escaped, padded, piped

ROWS = [("name", "ratio"), ("[b] :smile:", "1.5"), ("", "12")]


def test_columns_are_padded_and_markup_is_text() -> None:
    assert padded(ROWS, right=(1,), indent="  ") == [
        "  name         ratio",
        "  [b] :smile:    1.5",
        "                  12",
    ]


def test_no_cell_is_cut_or_wrapped() -> None:
    assert padded([("a word " * 200, "end")]) == [f"{'a word ' * 200}  end"]


def test_a_markdown_table_has_its_rule() -> None:
    assert piped(ROWS, right=(1,))[:3] == [
        "| name | ratio |",
        "|---|---:|",
        "| [b] :smile: | 1.5 |",
    ]


def test_no_cell_ends_at_a_bar() -> None:
    assert piped([("a",), (code("x|y"),), (escaped("x|y"),)])[2:] == [r"| `x\|y` |", r"| x\|y |"]


def test_foreign_text_stays_in_its_cell() -> None:
    assert escaped("<b>|&\n`x`_*[") == r"\<b\>\|\& \`x\`\_\*\["
    assert code("a|b`\nc") == "`a|b' c`"


def test_help_does_not_wait_for_what_draws_tables() -> None:
    program = (
        "import sys; from edgeverify.cli.main import _parser; _parser([]);"
        "sys.exit(bool({'rich', 'jinja2'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
