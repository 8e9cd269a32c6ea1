"""The page in a real browser, without a network: sorting, filters, the fold, dark mode, and a telephone's width."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkal.report.command import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--virtual-time-budget=3000",
    "--dump-dom",
]
ASK = """<script>
const asked = (() => {{ {script} }})();
parent.document.body.textContent = JSON.stringify(asked);
</script></body>"""
FRAME = """<!doctype html><style>:root {{ color-scheme: light dark }}</style>
<body><iframe width="{width}" height="800" srcdoc="{page}"></iframe></body>"""
"""A window of Chromium is at least 500 pixels wide, a frame in it is not."""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """What a script returns that runs at the end of the page."""
    folder = tmp_path_factory.mktemp("page")
    main([str(outputs), "--out", str(folder)])
    page = (folder / "index.html").read_text(encoding="utf-8")

    def answer(script: str, width: int = 1400, *options: str) -> Any:
        asking = page.replace("</body>", ASK.format(script=script))
        path = folder / "frame.html"
        path.write_text(FRAME.format(width=width, page=html.escape(asking)), encoding="utf-8")
        command = [str(BROWSER), *OPTIONS, f"--user-data-dir={folder}/profile", *options, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
        assert body, done.stderr
        return json.loads(html.unescape(body[1].strip()))

    return answer


SCRIPT = """
  let place = [...document.querySelectorAll("h2")].find((h) => h.textContent.startsWith("digits"));
  while (!place.classList.contains("wide")) place = place.nextElementSibling;
  const overview = place.querySelector("table");
  const lines = () => [...overview.tBodies[0].rows].filter((r) => r.getClientRects().length)
    .map((r) => [...r.cells].map((c) => c.textContent));
  const tools = document.getElementById("tools");
  const change = (element, value) => {
    if (element.type === "checkbox") element.checked = value; else element.value = value;
    element.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const found = { header: [...overview.tHead.rows[0].cells].map((c) => c.textContent), folded: lines() };
  found.note = overview.closest(".wide").nextElementSibling.getClientRects().length;
  change(tools.querySelector("[type=checkbox]"), true);
  found.noteAfter = overview.closest(".wide").nextElementSibling.getClientRects().length;
  found.all = lines();
  const button = overview.tHead.rows[0].cells[6].querySelector("button");
  for (const name of ["up", "down", "back"]) {
    button.click();
    found[name] = lines();
    found[name + "Sort"] = overview.tHead.rows[0].cells[6].getAttribute("aria-sort");
  }
  overview.tHead.rows[0].cells[2].querySelector("button").click();
  found.byShots = lines().map((cells) => cells[2]);
  change(tools.querySelector("select"), "16");
  found.sixteen = lines();
  change(tools.querySelector("[type=search]"), "KALMAN");
  found.kalman = lines();
  return found;
"""


def test_tables_sort_filter_and_fold(ask: Ask) -> None:
    found = ask(SCRIPT)
    assert found["header"][:7] == [
        "method",
        "predictive",
        "shots",
        "seeds",
        "Acc. % ID",
        "Acc. % OOD",
        "NLL ID",
    ]
    assert len(found["all"]) == 10 and len(found["folded"]) == 8
    assert not any(cells[1].endswith("_scaled") for cells in found["folded"])
    assert found["note"] == 1 and found["noteAfter"] == 0

    def numbers(name: str) -> list[float]:
        return [float(cells[6].split()[0]) for cells in found[name]]

    assert numbers("up") == sorted(numbers("all")) and found["upSort"] == "ascending"
    assert numbers("down") == sorted(numbers("all"), reverse=True) and found["downSort"] == "descending"
    assert found["back"] == found["all"] and found["backSort"] is None
    assert found["byShots"] == ["1"] * 5 + ["16"] * 5
    assert {cells[2] for cells in found["sixteen"]} == {"16"} and len(found["sixteen"]) == 5
    assert [cells[0] for cells in found["kalman"]] == ["kalman", "kalman"]


LOOK = """
  const first = document.querySelector("td");
  const box = first.closest(".wide");
  box.scrollLeft = 200;
  const image = document.querySelector("img");
  return {
    paper: getComputedStyle(document.body).backgroundColor,
    filter: getComputedStyle(image).filter,
    page: document.documentElement.scrollWidth, window: innerWidth,
    scrolled: box.scrollLeft, column: first.getBoundingClientRect().left - box.getBoundingClientRect().left,
    images: [...document.images].every((one) => one.complete && one.naturalWidth > 0),
    requests: performance.getEntriesByType("resource").filter((one) => !one.name.startsWith("data:")).map((one) => one.name),
  };
"""


def test_light_and_wide_without_a_request(ask: Ask) -> None:
    found = ask(LOOK)
    assert found["paper"] == "rgb(255, 255, 255)" and found["filter"] == "none"
    assert found["page"] <= found["window"] and found["images"] and found["requests"] == []


def test_dark_and_on_a_telephone(ask: Ask) -> None:
    found = ask(LOOK, 390, "--blink-settings=preferredColorScheme=0")
    assert found["window"] == 390 and found["page"] <= 390  # only tables and figures scroll sideways
    assert found["paper"] == "rgb(26, 26, 26)" and "invert" in found["filter"]
    assert found["scrolled"] == 200 and found["column"] == 0  # the method stays where it is
