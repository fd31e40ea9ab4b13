"""Pages in headless Chromium, at the widths of a desk and a phone, light and dark: nothing is cut off, all works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from run_files import OVERRIDES, real_runs
from synthetic_runs import write_many, write_synthetic

from sq.analysis.report import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: no chromium or google-chrome on PATH"),
]
WIDTHS = (1440, 390)
SCRIPTS = Path(__file__).parent / "browser"


def ask(page: Path, width: int, *, dark: bool = False, use: bool = False) -> dict[str, Any]:
    """What browser/probe.js finds on a page that is as wide as told, after browser/use.js where `use` says so."""
    names = ["use.js", "probe.js"] if use else ["probe.js"]
    scripts = "".join(f"<script>{(SCRIPTS / name).read_text(encoding='utf-8')}</script>" for name in names)
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{scripts}</body>"), encoding="utf-8")
    frame = page.with_name("frame.html")
    around = (SCRIPTS / "frame.html").read_text(encoding="utf-8")
    frame.write_text(around.replace("WIDTH", str(width)), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,1000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []), f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=10000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-1000:] + done.stderr[-1000:]
    answer: dict[str, Any] = json.loads(unescape(found[1]))
    return answer


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of many runs, of experiments with figures and tables, and a page about one run."""
    folder = tmp_path_factory.mktemp("pages")
    write_many(folder / "many", 60)
    for rank in (0, 16):  # long names of models, and of methods that differ in many settings
        arguments = dict.fromkeys(("rank", "damping", "urt_sweeps", "art_steps", "block", "brake"), rank)
        name = "A-model-with-quite-a-long-name-Instruct-v2"
        write_synthetic(folder / "many", name, "singlequant_folded", arguments=arguments)
    real = real_runs(folder / "real" / "runs")
    main(["--results", str(folder / "many"), "--out", str(folder / "of-many")])
    main(
        ["--results", str(real), "--out", str(folder / "of-real"), *OVERRIDES, "--only", "quality", "outliers", "time"]
    )
    run = next(real.glob("tiny-singlequant-*"))
    main(["--run", str(run), "--out", str(folder)])
    return {
        "many": folder / "of-many" / "report.html",
        "real": folder / "of-real" / "report.html",
        "one": folder / "runs" / run.name / "summary.html",
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["many", "real", "one"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_off_and_all_text_can_be_read(name: str, width: int, dark: bool, pages: dict[str, Path]) -> None:
    found = ask(pages[name], width, dark=dark)
    assert found["wide"] == width
    assert found["page"] <= width, "the page scrolls sideways"
    assert found["lost"] == []
    assert found["outside"] == 0, "cells of the table of all runs lie outside the window"
    assert found["texts"] > 5
    assert (found["paper"] < 0.3) is dark
    assert found["contrast"] > 0.2, "text on paper of nearly the same lightness"


def test_the_table_of_all_runs_sorts_and_filters_and_marks_tell_their_numbers(pages: dict[str, Path]) -> None:
    for width in WIDTHS:
        found = ask(pages["many"], width, use=True)
        assert len(found["up"]) == 62
        assert found["up"] == sorted(found["up"])
        assert found["down"] == sorted(found["up"], reverse=True)
        assert found["flat"] == 0, "cells lie outside the window where runs are not grouped"
        assert found["names"]
        assert all("quarot" in name and "w4a8" not in name.lower() for name in found["names"])
        assert found["count"] == f"{len(found['names'])} of 62 runs"
        assert "multiply-adds a token" in found["tip"]


def test_the_file_makes_no_request(pages: dict[str, Path]) -> None:
    for page in pages.values():
        assert not re.search(r"""(src|href)=["'](?!#|data:)|@import|url\((?!#)|fetch\(""", page.read_text())
