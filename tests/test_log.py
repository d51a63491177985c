"""The log: what a person reads there, what an outage writes, and how long it gets."""

import contextlib
import logging
import re
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import trades_exporter
from fake_okx import BTC, ETH, FakeOKX
from harness import MakeExporter, MakeOKX, finish, log_lines, start_with_a_trade
from trades_exporter import BoundedLog, Outage

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[(info|warning|error|critical) *\] (.*)")


def message_of(line: str) -> str:
    """Return a line of the log without time and level."""
    match = LINE.fullmatch(line)
    assert match, line
    return match[2]


# ------------------------------------------------------------------------------------------------------- its lines


def test_the_log_is_for_people(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """UTC time to the millisecond, level, message; short lines; the console shows the same, plain in a pipe."""
    one = start_with_a_trade(exporter(make_okx(rate=50), settings={"STATS_S": 0.2}))
    one.okx.trade(lost=True)
    one.okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    one.wait_for_log("Gap repaired")
    finish(one)
    lines = one.log.splitlines()
    assert max(map(len, lines[1:])) <= 160  # the first names the Vault
    assert {LINE.fullmatch(line) is not None for line in lines} == {True}
    assert one.console.splitlines() == lines


def test_the_first_trade_and_where_the_record_begins_are_worth_a_line(okx: FakeOKX, exporter: MakeExporter) -> None:
    """No WARNING: that something precedes the first trade is no trouble."""
    one = start_with_a_trade(exporter(okx))
    okx.trade()
    assert one.stop() == 0
    for inst_id in (BTC, ETH):
        trade_id = okx.ledger[inst_id][0].trade_id
        [first] = log_lines(one, f"First trade instId={inst_id}")
        assert re.search(rf"trade_id={trade_id} time=2026-11-21T12:00:\d\d\.\d{{3}}Z$", first)
        [start] = log_lines(one, f"Gap on record instId={inst_id} reason=start")
        assert start.endswith(f"before_id={trade_id}")
    assert not log_lines(one, "[warning")


def test_stats_warn_of_an_instrument_without_news(okx: FakeOKX, exporter: MakeExporter) -> None:
    """A line for each instrument; the level is WARNING where its newest trade is old."""
    one = start_with_a_trade(exporter(okx, settings={"STATS_S": 0.1, "OLD_TRADE_S": 1.0}))
    one.wait_for_log(f"[warning ] Stats: 1 written, 0 skipped instId={ETH} ", times=2)
    [push] = okx.trade(count=1)
    one.wait_for_log(f"[info    ] Stats: 2 written, 0 skipped instId={BTC} ")
    line = log_lines(one, f"Stats: 2 written, 0 skipped instId={BTC} ")[0]
    assert re.search(rf"rate=\d+\.\d/s last={push.last_id} age=\ds repaired=0 waiting=0 pending=0$", line)


def test_what_okx_repeats_after_a_reconnect_does_not_make_the_newest_trade_younger(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    one = start_with_a_trade(exporter(okx, settings={"STATS_S": 0.1}))
    one.wait_for_log("age=2s")
    okx.close(1006)
    repeated = f"Stats: 1 written, 1 skipped instId={BTC} "
    one.wait_for_log(repeated)
    age = re.search(r" age=(\d+)s ", log_lines(one, repeated)[0])
    assert age
    assert int(age[1]) >= 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_costs_no_line(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    one.vault = Path(f"{one.vault}\udcff")
    one.start_capture()
    assert one.stop() == 0
    assert log_lines(one, "started process=")


# --------------------------------------------------------------------------------------------------------- outages


def test_an_outage_at_start_says_what_can_not_be_reached_and_why(okx: FakeOKX, exporter: MakeExporter) -> None:
    """With the host, in words, and when it is tried again; each attempt later than the one before."""
    args = ["--rest-url", "http://no.such.host.invalid"]
    one = exporter(okx, args=args, settings={"LOG_AGAIN_S": 0.0}).start()
    one.wait_for_log("Next try in", times=3)
    first, *others = [message_of(line) for line in log_lines(one, "Next try in")]
    what = r"Can't reach OKX \(no\.such\.host\.invalid: host not found\)\. Check the internet connection\."
    assert re.fullmatch(what + r" Next try in (0\.\d|1\.0) s", first)
    assert all(re.fullmatch(what + r"( Down for 0:00:\d\d\.)? Next try in \d+\.\d s", line) for line in others)
    delays = [float(line.split()[-2]) for line in (first, *others)]
    assert delays[-1] > 1.0
    assert one.stop() == 0


def test_an_outage_is_one_condition(okx: FakeOKX, exporter: MakeExporter) -> None:
    """A line when it begins, and one when it ends that says since when and how long, however many attempts failed."""
    one = start_with_a_trade(exporter(okx, settings={"BACKOFF_S": 0.5}))
    before = len(one.log.splitlines())
    okx.faults.ws_script.extend(["503"] * 4)
    okx.close()
    one.wait_for_log("OKX can be reached again")
    began, *_, ended = [message_of(line) for line in one.log.splitlines()[before:]]
    assert re.fullmatch(r"Disconnected from OKX \(.+\)\. Next try in 0\.\d s", began)
    assert re.fullmatch(r"OKX can be reached again what=WebSocket since=20\S+Z took=[1-9]\d*\.\ds", ended)
    assert len(one.log.splitlines()) == before + 4, one.log
    finish(one)


def test_what_nobody_asks_for_any_more_is_no_part_of_the_next_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candles could not be had, and their audit was put off; hours later the connection breaks."""
    now = [1000.0]
    monkeypatch.setattr(trades_exporter, "monotonic", lambda: now[0])
    outage = Outage()
    with capture_logs() as logs:
        outage.failed("REST history-candles", "REST request failed", 1.0)
        now[0] += 10_000
        outage.failed("WebSocket", "Disconnected from OKX", 1.0)
        outage.works("WebSocket")
    assert [line["event"] for line in logs[1:]] == [
        "Disconnected from OKX. Next try in 1.0 s",
        "OKX can be reached again",
    ]
    assert logs[-1]["what"] == "WebSocket"


@pytest.mark.parametrize("what", ["REST", "REST history-trades"])
def test_what_fails_now_and_then_is_one_condition(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Each time it is asked again, or somebody else asks it, that works."""
    now = [1000.0]
    monkeypatch.setattr(trades_exporter, "monotonic", lambda: now[0])
    outage = Outage()
    with capture_logs() as logs:
        for _ in range(130):
            outage.failed(what, "REST request failed", 0.5)
            now[0] += 0.5
            outage.works(what)
            now[0] += 0.5
    assert [line["event"][:7] for line in logs] == 3 * ["REST re", "OKX can"]


def test_a_flapping_connection_writes_a_few_lines_per_attempt_and_tries_ever_more_rarely(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    one = exporter(okx).start_capture()
    attempts = 4
    for number in range(1, attempts + 1):
        one.wait_for_log("Subscribed to trades", times=2 * number)
        okx.close(1006)
    one.wait_until(lambda: len(log_lines(one, "Next try in")) == attempts)
    delays = [float(line.split()[-2]) for line in log_lines(one, "Next try in")]
    assert delays[0] <= 1 < delays[-1] <= 30
    assert len(one.log.splitlines()) <= 8 + 4 * attempts, one.log


# ------------------------------------------------------------------------------------------------------- its length


def test_the_log_is_bounded(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx, settings={"LOG_BYTES": 3000, "STATS_S": 0.002}).start()
    oldest = one.folder / f"{one.log_file.name}.5"
    one.wait_until(oldest.exists)
    first = oldest.read_bytes()
    one.wait_until(lambda: oldest.exists() and oldest.read_bytes() != first)
    assert one.stop() == 0
    logs = list(one.folder.glob("exporter.log*"))
    assert len(logs) == 6
    assert sum(path.stat().st_size for path in logs) <= 6 * 3000
    assert all(LINE.fullmatch(line) for path in logs for line in path.read_text("utf-8").splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to remove what is open")
def test_the_log_goes_on_where_its_file_was_removed(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx).start_capture()
    one.log_file.unlink()
    assert one.stop() == 0
    assert log_lines(one, "Stopped")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to move what is open")
def test_the_log_goes_on_after_a_new_file_could_not_be_opened(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    with contextlib.closing(BoundedLog(folder / "x.log", maxBytes=1000)) as bounded:
        away = folder.rename(tmp_path / "away")
        with pytest.raises(FileNotFoundError):
            bounded.doRollover()
        away.rename(folder)
        bounded.emit(logging.makeLogRecord({"msg": "later"}))
    assert (folder / "x.log").read_text() == "later\n"
