"""README's picture, opened by a real browser that has no network: what is drawn, and what it says in its console.

`python tests/test_picture.py` takes the picture that README shows, of a market that the fake exchange makes.
"""

import itertools
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from exact import CONTRACT, Stored, derive, exact_cvd, exact_vwap, gap, put_on_record, run, store, verdict
from fake_okx import BTC, Market, utc_ms
from harness import ROOT

START, HOLE, HOLE_END, END = (
    utc_ms(f"2026-11-{moment}:00Z") for moment in ("03T00:00", "18T09:10", "18T10:05", "22T19:58")
)
LAST_DAY = "2026-11-22"
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
    "no-proxy-server", "host-resolver-rules=MAP * ~NOTFOUND", "hide-scrollbars", "window-size=1280,900",
)  # fmt: skip
DRAWN = """
const picture = document.getElementById("picture"), layout = picture._fullLayout;
return {
    traces: picture.data.map(t => ({name: t.name, x: t.x, y: t.y, axis: t.xaxis})),
    lines: document.querySelectorAll(".scatterlayer .trace path.js-line").length,
    bars: document.querySelectorAll(".barlayer .point path").length,
    shades: layout.shapes.map(s => [s.x0, s.x1]),
    ranges: ["xaxis", "xaxis2", "xaxis3", "xaxis4"].map(name => layout[name].range),
};
"""


def find_browser() -> tuple[str, str] | None:
    """Return where Chromium and its driver are."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(found: tuple[str, str]) -> Iterator[webdriver.Chrome]:
    """Start Chromium, without a window and without a network."""
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Return Chromium, or skip; fail instead where REQUIRE_CHROMIUM=1 says that it must be there."""
    found = find_browser()
    if found is None:
        assert os.environ.get("REQUIRE_CHROMIUM") != "1", "no Chromium with its driver: see .ci/install-chromium"
        pytest.skip("no Chromium with its driver (Debian: .ci/install-chromium)")
    with open_browser(found) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stored]:
    """Return a folder with twenty days of BTC after derive.py, of which one is pending, and what is stored there."""
    folder = tmp_path_factory.mktemp("picture")
    market = Market(BTC, seed=3, first_id=10_000, start_px="83725.9", tick="0.1", ct_val=str(CONTRACT[BTC]))
    for ts in range(START, END, 240_000):
        market.make_order(ts, -math.inf)
    inside = [push for push in market.pushes if not HOLE < push.ts < HOLE_END and not in_pending(push.ts)]
    store(folder / "Vault", BTC, inside)
    gaps = []
    for before, after in itertools.pairwise(inside):
        if after.first_id != before.last_id + 1:
            gaps.append(gap(BTC, "pending" if in_pending(before.ts + 240_000) else "unrepaired", before, after))
    assert [row["reason"] for row in gaps] == ["pending", "unrepaired"]
    put_on_record(folder / "Vault", "gaps", BTC, [*gaps, gap(BTC, "absent", inside[5], inside[6])])
    days = [f"2026-11-{day:02}" for day in range(3, 22)]
    verdicts = [verdict(BTC, day, differing=int(day[-2:] == "14")) for day in days if day[-2:] != "05"]
    put_on_record(folder / "Vault", "audit", BTC, verdicts)
    derive(folder)
    kept = [trade for trade in market.ledger if not HOLE < trade.ts < HOLE_END and not in_pending(trade.ts)]
    return folder, Stored(BTC, kept, gaps)


def in_pending(ts: int) -> bool:
    """Whether it is of the day that is pending."""
    return utc_ms("2026-11-10T00:00:00Z") <= ts < utc_ms("2026-11-11T00:00:00Z")


def look(browser: webdriver.Chrome, folder: Path, *days: str) -> dict[str, Any]:
    """Draw the page, open it, and return what is drawn."""
    done = run("Vault/picture.py", folder, *days)
    assert (done.returncode, done.stderr) == (0, "")
    browser.get((folder / f"Vault/derived/{BTC}.html").as_uri())
    seen: dict[str, Any] = browser.execute_script(DRAWN)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    return seen


def series(seen: dict[str, Any], name: str) -> dict[str, float]:
    """Return a line or the bars, by time; both parts of a line that is dotted where trades are missing."""
    found: dict[str, float] = {}
    for trace in seen["traces"]:
        if trace["name"] in (name, f"{name}, incomplete"):
            found |= {x: y for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None}
    return dict(sorted(found.items()))


def assert_last(found: dict[str, float], time: str, value: Decimal | bool | None) -> None:
    """Hold the last point against what it should be."""
    assert next(reversed(found)) == time
    assert found[time] == pytest.approx(float(value or 0), rel=1e-12)


@pytest.mark.parametrize(("days", "step"), [((LAST_DAY, LAST_DAY), 1), ((), 60)])
def test_what_is_drawn_is_exact(
    browser: webdriver.Chrome, drawn: tuple[Path, Stored], days: tuple[str, ...], step: int
) -> None:
    folder, stored = drawn
    seen = look(browser, folder, *days)
    last = max(stored.minutes)
    time = (last[:13] + ":00Z" if step == 60 else last).replace("T", " ")[:16]
    bar = [sums for minute, sums in stored.minutes.items() if minute >= time.replace(" ", "T")]
    assert_last(series(seen, "price"), time, stored.minutes[last].prices[-1])
    assert_last(series(seen, "VWAP 1 h"), time, exact_vwap(stored)[last][0])
    assert_last(series(seen, "VWAP 4 h"), time, exact_vwap(stored)[last][1])
    assert_last(series(seen, "CVD since 00:00"), time, exact_cvd(stored)[last][3])
    assert_last(series(seen, "bought"), time, sum((m.buy for m in bar), Decimal(0)))
    assert_last(series(seen, "sold"), time, -sum((m.sell for m in bar), Decimal(0)))
    width, first = (13, "") if step == 60 else (16, days[0])
    assert len(series(seen, "bought")) == len({minute[:width] for minute in stored.minutes if minute >= first})
    assert seen["lines"] >= 4
    assert seen["bars"] >= len(series(seen, "bought"))


def test_coverage_gaps_and_incomplete_lines_are_shown(browser: webdriver.Chrome, drawn: tuple[Path, Stored]) -> None:
    folder, stored = drawn
    seen = look(browser, folder)
    strip = {x[8:10]: trace["name"] for trace in seen["traces"] if trace["axis"] == "x4" for x in trace["x"]}
    special = dict.fromkeys(("09", "10", "11"), "pending") | {"14": "differs from OKX", "18": "gap"}
    special |= dict.fromkeys(("05", "22"), "whole")
    assert strip == {f"{day:02}": special.get(f"{day:02}", "agrees with OKX") for day in range(3, 23)}
    assert seen["shades"] == [[row["after_utc"][:23], row["before_utc"][:23]] for row in stored.gaps]
    dotted = {x for trace in seen["traces"] if trace["name"] == "CVD since 00:00, incomplete"
              for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None}  # fmt: skip
    flagged = {minute[:13].replace("T", " ") + ":00" for minute, row in exact_cvd(stored).items() if row[-1]}
    assert dotted == flagged


def test_all_parts_zoom_together(browser: webdriver.Chrome, drawn: tuple[Path, Stored]) -> None:
    look(browser, drawn[0])
    window = ["2026-11-20", "2026-11-21"]
    browser.execute_script("Plotly.relayout('picture', {'xaxis3.range': arguments[0]})", window)
    assert browser.execute_script(DRAWN)["ranges"] == [window] * 4


def take_picture(folder: Path) -> None:
    """Write .github/picture.png: three days of a busy market, with a gap, most of it audited."""
    chance, vault = random.Random(4), folder / "Vault"
    market = Market(BTC, seed=12, first_id=2_978_601_964, start_px="83725.9", tick="2.5", ct_val="0.01")
    ts = utc_ms("2026-11-20T00:00:00Z")
    while ts < utc_ms("2026-11-22T21:30:00Z"):
        busy = 1.5 + math.sin(ts / 86_400_000 * 2 * math.pi - 2)  # most of all in the afternoon
        market.make_order(ts, -math.inf, count=1 + int(chance.expovariate(0.7)))
        ts += int(chance.expovariate(busy / 12_000)) + 1
    begin, end = utc_ms("2026-11-21T05:40:00Z"), utc_ms("2026-11-21T07:25:00Z")
    inside = [push for push in market.pushes if not begin < push.ts < end]
    store(vault, BTC, inside)
    edges = next((a, b) for a, b in itertools.pairwise(inside) if b.first_id != a.last_id + 1)
    put_on_record(vault, "gaps", BTC, [gap(BTC, "unrepaired", *edges)])
    put_on_record(vault, "audit", BTC, [verdict(BTC, "2026-11-20"), verdict(BTC, "2026-11-21", not_covered=106)])
    derive(folder)
    found = find_browser()
    assert found, "no Chromium with its driver"
    with open_browser(found) as chrome:
        look(chrome, folder)
        chrome.save_screenshot(ROOT / ".github/picture.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        take_picture(Path(name))
