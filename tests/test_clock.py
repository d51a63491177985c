"""Sleep and clocks: a PC that sleeps, a clock that is wrong, and trades from the future."""

import re
import signal
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from fake_okx import BTC, ETH, FakeOKX, utc_ms
from harness import (
    MakeExporter,
    MakeOKX,
    day_files,
    finish,
    log_lines,
    reasons,
    start_with_a_trade,
    stored_ids,
    to_utc,
    wait_for,
)

# ----------------------------------------------------------------------------------------------------------- sleep


@pytest.mark.parametrize("half_open", [False, True], ids=["connection closed", "connection dead without a word"])
def test_after_sleep_it_reconnects_and_fetches_what_it_missed(
    make_okx: MakeOKX, exporter: MakeExporter, half_open: bool
) -> None:
    if sys.platform == "win32":
        pytest.skip("processes can't be stopped there")
    okx = make_okx(rate=100)
    one = exporter(okx, settings={"PING_AFTER_S": 1, "PONG_S": 1}).start_capture()
    one.wait_until(lambda: day_files(one.vault, BTC) and day_files(one.vault, ETH))
    assert one.process is not None
    one.process.send_signal(signal.SIGSTOP)
    if half_open:
        okx.half_open()
    else:
        okx.close(4004)
    slept_at = len(okx.ledger[BTC])
    wait_for(lambda: len(okx.ledger[BTC]) > slept_at + 300)
    one.process.send_signal(signal.SIGCONT)
    one.wait_until(lambda: okx.connects == 2, what="a new connection")
    one.wait_for_log("Gap repaired")
    finish(one)
    assert reasons(one.vault) == []


def test_a_sleep_in_the_midst_of_a_repair_is_not_held_against_rest(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It gave no answer for longer than it is given, but nobody was awake to hear one."""
    if sys.platform == "win32":
        pytest.skip("processes can't be stopped there")
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 3.0}))
    okx.prefill(BTC, 2_500, okx.now_ms(), okx.now_ms() + 1)
    okx.faults.rest_latency_s = 0.3
    okx.trade()
    one.wait_for_log("Gap found")
    assert one.process is not None
    one.process.send_signal(signal.SIGSTOP)
    slept = time.monotonic() + 4.0
    one.wait_until(lambda: time.monotonic() > slept, what="a long sleep")
    one.process.send_signal(signal.SIGCONT)
    one.wait_until_stored()
    finish(one)
    assert reasons(one.vault) == []


# ---------------------------------------------------------------------------------------------------- wrong clocks


@pytest.mark.parametrize(("day", "next_day"), [("2019-02-28", "2019-03-01"), ("2041-12-31", "2042-01-01")])
def test_a_clock_that_is_years_off_changes_nothing(
    make_okx: MakeOKX, exporter: MakeExporter, day: str, next_day: str
) -> None:
    """Midnight, a gap and a restart; where OKX's own clock agrees with its trades, a WARNING names both clocks."""
    okx = make_okx(rate=100, start=f"{day}T23:50:00Z")
    one = exporter(okx).start_capture()
    one.wait_until(lambda: day_files(one.vault, BTC) and day_files(one.vault, ETH))
    okx.set_clock(f"{day}T23:59:59.5Z")
    one.wait_until(lambda: len(day_files(one.vault, BTC)) == 2, what="a new day")
    one.kill()
    missed = len(okx.ledger[BTC])
    wait_for(lambda: len(okx.ledger[BTC]) > missed + 100)
    one.start_capture()
    one.wait_for_log("Gap repaired", times=2)
    finish(one)
    assert {path.name.partition(".")[0] for path in day_files(one.vault, BTC)} == {day, next_day}
    warnings = [line for line in log_lines(one, "This PC's clock is slow") if "[warning" in line]
    assert len(warnings) == (2 if day > "2040" else 0)
    assert all(re.search(r"okx=204\S+Z pc=20\S+Z", line) for line in warnings)


def ms_ahead(days: float) -> int:
    """Return the time so many days after now, ms."""
    return int((datetime.now(UTC) + timedelta(days=days)).timestamp() * 1000)


@pytest.mark.parametrize("stored", [False, True], ids=["the first trade", "a later one"])
def test_a_trade_from_the_future_stops_it(make_okx: MakeOKX, exporter: MakeExporter, stored: bool) -> None:
    """More than a day ahead of both clocks; the message shows the time."""
    okx = make_okx(start=ms_ahead(0))
    one = start_with_a_trade(exporter(okx)) if stored else exporter(okx).start_capture()
    ts = str(ms_ahead(1.1))
    okx.trade(fields={"ts": ts})
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: .*", one.log)
    assert message.startswith(f"BUILD_FAIL: Invalid trade field: ts='{ts}' ({to_utc(int(ts))})")
    assert len(stored_ids(one.vault)) == stored


def test_a_single_push_waits_until_okx_was_asked_for_the_time(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """This PC's clock is years slow: the push is held, not dropped."""
    okx = make_okx(start="2041-12-31T12:00:00Z")
    one = exporter(okx).start_capture()
    okx.trade()
    one.wait_until(lambda: stored_ids(one.vault), what="the only push is stored")
    assert "This PC's clock is slow" in one.log


def test_a_trade_of_tomorrow_is_stored_in_its_day(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Less than a day ahead: this PC's clock may be wrong by that, and OKX is not asked."""
    okx = make_okx(start=ms_ahead(0.9))
    finish(start_with_a_trade(exporter(okx)))
    assert not okx.requests_to("public/time")


def test_times_of_two_later_days_spoil_neither_a_repair_nor_the_next_start(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """Pushes had wrong times that are allowed; REST has the true ones. Nothing is stored twice, and nothing is lost."""
    one = start_with_a_trade(exporter(okx))

    def wait_until_all_are_stored() -> None:
        one.wait_until(lambda: len(stored_ids(one.vault)) == len(okx.ledger[BTC]), what="all stored")

    for day in ("2026-11-23", "2026-11-22"):
        okx.trade(n=20, count=1)
        okx.trade(n=5, count=1, lost=True)
        okx.trade(count=1, fields={"ts": str(utc_ms(f"{day}T10:00:00Z"))})
        okx.trade(n=3, count=1)
        wait_until_all_are_stored()
    assert one.stop() == 0
    one.start_capture()
    for _ in range(2):
        okx.trade(count=1, lost=True)
        okx.trade(count=1)
        wait_until_all_are_stored()
    assert one.stop() == 0
    assert sorted(stored_ids(one.vault)) == [trade.trade_id for trade in okx.ledger[BTC]]
    assert reasons(one.vault) == []


def test_a_wrong_time_just_after_midnight_costs_no_trade_before_it(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Ten minutes before midnight one push has a time of the next day; this PC's clock knows better."""
    today, tomorrow = (datetime.now(UTC).date() + timedelta(days=days) for days in (0, 1))
    okx = make_okx(start=f"{today}T23:50:00Z")
    one = start_with_a_trade(exporter(okx))
    okx.trade(count=1, fields={"ts": str(utc_ms(f"{tomorrow}T00:03:00Z"))})
    for second in range(10, 60, 10):
        okx.set_clock(f"{today}T23:50:{second}Z")
        okx.trade(n=3, count=1)
    one.wait_until(lambda: len(stored_ids(one.vault)) == len(okx.ledger[BTC]), what="all stored")
    assert one.stop() == 0
    assert reasons(one.vault) == []
