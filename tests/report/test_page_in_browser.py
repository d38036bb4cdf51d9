"""The page in headless Chromium, as wide as a phone: what it shows, and that it fits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from edgeverify.core.results import Report
from edgeverify.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The page is in a frame of a phone's width: Chromium's own windows are never narrower than 500.
FRAME = """<!doctype html><body><iframe width="390" height="800" srcdoc="{}"></iframe><p id="m"></p>
<script>onload = () => {{ const d = document.querySelector("iframe").contentDocument;
const source = d.querySelector("td.source");
document.getElementById("m").textContent = [d.documentElement.scrollWidth,
d.documentElement.clientWidth, source ? getComputedStyle(source).outlineStyle : "none",
d.querySelectorAll("svg").length].join(" "); }}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_fits_a_phone_and_frames_the_faulty_cell(
    report: Callable[..., Report], tmp_path: Path
) -> None:
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(escape(render(report("fail")))), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'user'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.search(r'<p id="m">(\d+) (\d+) (\w+) (\d+)</p>', done.stdout)
    assert found, done.stderr[-500:]
    wide, shown, outline, curves = found.groups()
    assert int(wide) <= int(shown) <= 390
    assert outline == "solid"
    assert int(curves) >= 1
