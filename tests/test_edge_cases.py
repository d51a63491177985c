"""Defects that a review found, against the fake OKX's ledger: one test each."""

import shutil

import orjson
import pytest

from fake_okx import BTC
from harness import (
    QUICK,
    MakeExporter,
    MakeOKX,
    assert_whole,
    day_files,
    day_path,
    finish_whole,
    read_gaps,
    stopped_at,
    to_ms,
    to_utc,
    write_days,
    write_gap,
)

pytestmark = pytest.mark.usefixtures("fast_rest")


def test_what_does_not_fit_costs_nothing_of_the_next_range(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """One pending range ends in the midst of a day whose file goes on; the next one begins in that same day."""
    okx = make_okx(start="2026-11-18T21:00:00Z", instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=QUICK | {"UNREPAIRED_S": 1.0}))
    okx.pass_hours(15, trades=500)
    okx.faults.rest, okx.faults.rest_only = {"503": 1.0}, "history-trades"  # it is given up
    recorder.start_capture()
    okx.trade(BTC, 25)
    recorder.wait_for_log("reason=pending")
    recorder.stop_when_stored()
    okx.pass_hours(40, trades=1000)
    okx.faults.rest.clear()
    recorder.settings = QUICK
    recorder.start_capture()
    finish_whole(recorder, ("start", "unrepaired"))
    (lost,) = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "unrepaired"]
    assert lost["before_utc"] < "2026-11-19T12:01", "what follows that day's live trades can be fetched"


def test_a_late_push_that_closes_the_gap_while_the_day_s_start_is_searched(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """What is stored meanwhile is not stored again."""
    okx = make_okx(start="2026-11-18T21:00:00Z", instruments=[BTC])
    recorder = exporter(okx, settings=QUICK)
    recorder.start_capture()
    okx.trade(BTC, 20, count=2)
    recorder.wait_until_stored()
    okx.set_clock("2026-11-19T00:30:00Z")
    okx.faults.rest_latency_s = 1.0
    late = okx.trade(BTC, count=3, lost=True)[0]
    okx.trade(BTC, count=2)
    recorder.wait_until(lambda: okx.requests_to("history-trades"), what="REST is asked where the day begins")
    okx.resend(late)
    recorder.wait_until_stored()
    okx.trade(BTC, lost=True)
    okx.settle()
    recorder.stop_when_stored()
    assert_whole(recorder.vault, okx)


def test_since_reaches_up_to_what_is_stored_though_older_files_were_removed(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """The gaps file still says where the removed record began: that is not where the present one does."""
    okx = make_okx(start="2026-11-15T21:00:00Z", instruments=[BTC])
    recorder = exporter(okx, settings=QUICK)
    for hours in (100, 0):
        stopped_at(okx, recorder)
        if hours:
            shutil.rmtree(recorder.vault / "raw/okx/trades_perps" / BTC)
            okx.pass_hours(hours, trades=1000)
    recorder.args = ["--since", "2026-11-18"]
    recorder.start_capture()
    recorder.wait_for_log("History complete")
    finish_whole(recorder)
    assert [path.name for path in day_files(recorder.vault, BTC)] == [f"2026-11-{day}.jsonl" for day in (18, 19, 20)]


def test_a_pending_range_that_ends_in_the_midst_of_a_day_is_no_difference(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """REST was given up at 09:30: the day's beginning is still to come, which is no fault of what is stored."""
    okx = make_okx(start="2026-11-19T12:00:00Z", instruments=[BTC])
    okx.prefill(BTC, 3000, "2026-11-18T06:00:00Z", "2026-11-19T11:59:00Z")
    recorder = exporter(okx)
    write_days(recorder.vault, okx, until="2026-11-18T22:00:00")
    with day_path(recorder.vault, "2026-11-18").open("rb") as file:
        last = int(orjson.loads(file.readlines()[-1])["trade_id"])
    write_days(recorder.vault, okx, since="2026-11-19T09:30:00")
    first = next(push.first_id for push in okx.pushes[BTC] if to_utc(push.ts) >= "2026-11-19T09:30:00")
    write_gap(recorder.vault, "pending", (last, first), ("2026-11-18T22:00:00.000Z", "2026-11-19T09:30:00.000Z"))
    run = recorder.run("--audit", "2026-11-18..2026-11-19")
    assert "2 days of 1 instrument: 0 agreeing, 0 differing, 2 pending" in run.stdout, run.stdout


def test_a_torn_verdict_is_cut_at_start(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """It was being written when the power failed; --verify has nothing to complain of afterwards."""
    okx = make_okx(instruments=[BTC])
    recorder = exporter(okx, settings=QUICK)
    verdicts = recorder.vault / "meta/okx/audit" / f"{BTC}.jsonl"
    verdicts.parent.mkdir(parents=True)
    verdicts.write_bytes(b'{"audited_utc":"2026-11-2')
    recorder.start_capture()
    okx.trade()
    recorder.stop_when_stored()
    run = recorder.run("--verify")
    assert run.returncode == 0, run.stdout


def test_holes_of_an_archive_at_the_edge_of_rest_are_decided_together(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """REST reaches into what the archive lists: still not each hole below takes five answers of its own."""
    okx = make_okx(start="2026-11-18T02:00:00Z", instruments=[BTC])
    okx.prefill(BTC, 20_000, "2026-11-16T10:00:00Z", "2026-11-18T01:59:00Z")
    okx.faults.rest_reach_days = 0.5
    ids = [trade.trade_id for trade in okx.ledger[BTC] if to_utc(trade.ts) < "2026-11-17T13:00:00"][-6000::100]
    okx.spoil_archive(ids)
    settings = QUICK | {"ARCHIVE_IDS": 500, "PROOF_S": 0.2}
    recorder = exporter(okx, settings=settings, args=["--since", "2026-11-17"])
    recorder.start_capture()
    okx.trade()
    recorder.wait_for_log("History complete")
    finish_whole(recorder, ("start", "absent"))
    assert len(okx.requests_to("history-trades")) < 5 * len(ids)


def test_the_last_ids_before_midnight_are_not_the_newest_by_time(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Times cross at midnight, and a taker order of 60 trades has the highest ids of the old day: still it ends."""
    okx = make_okx(start="2026-11-20T12:00:00Z", instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=QUICK))
    for number, count, time in ((150, 1, "20T23:59:59.900"), (20, 1, "21T00:00:00.100"), (1, 60, "20T23:59:59.600")):
        okx.trade(BTC, number, count=count, ts=to_ms(f"2026-11-{time}Z"), lost=True)
    okx.set_clock("2026-11-21T08:00:00Z")
    okx.trade(BTC, 30, lost=True)
    recorder.start_capture()
    finish_whole(recorder, ("start", "unrepaired"))


@pytest.mark.parametrize("below", [0, 10], ids=["inside a pending range, and of today", "below a pending range"])
def test_what_was_decided_is_off_the_record_once_it_is_fetched(
    exporter: MakeExporter, make_okx: MakeOKX, below: int
) -> None:
    """It was on the disk, the trades after it were not: a crash, or ids given up just before those left to history."""
    okx = make_okx(start="2026-11-21T12:00:00Z", instruments=[BTC])
    okx.prefill(BTC, 3000, "2026-11-19T06:00:00Z", "2026-11-21T11:59:00Z")
    recorder = exporter(okx, settings=QUICK)
    write_days(recorder.vault, okx, until="2026-11-20T01:00:00")
    write_days(recorder.vault, okx, since="2026-11-21T00:00:00", until="2026-11-21T10:00:00")
    past, today, newest = (
        [p for p in okx.pushes[BTC] if to_utc(p.ts) >= f"2026-11-{t}"] for t in ("20T01", "21", "21T10")
    )
    times = (f"{to_utc(past[0].ts)[:19]}.000Z", "2026-11-21T00:00:00.000Z")
    write_gap(recorder.vault, "pending", (past[below].first_id - 1, today[0].first_id), times)
    for pushes, reason in ((past, "absent"), (past, "horizon"), (newest, "unrepaired")):
        write_gap(recorder.vault, reason, (pushes[0].first_id - 1, pushes[below or 9].first_id), (times[0], times[0]))
    recorder.start_capture()
    okx.trade()
    recorder.wait_until_stored()
    finish_whole(recorder)


def test_what_was_skipped_at_start_stays_skipped_after_a_failed_write(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """With `--since now` the pause is on record; the first line after it can't be written at first."""
    okx = make_okx(start="2026-11-20T22:00:00Z", instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=QUICK))
    okx.pass_hours(3, trades=100)
    recorder.args = ["--since", "now"]
    okx.faults.ws_refuse = "503"
    recorder.start()
    recorder.wait_for_log("Not connected")
    in_the_way = day_path(recorder.vault, "2026-11-21")
    in_the_way.mkdir()
    okx.faults.ws_refuse = ""
    recorder.wait_for_log("Can't write to the Vault")
    okx.trade(BTC, 5)
    in_the_way.rmdir()
    recorder.wait_until_stored()
    okx.trade(BTC, 5)
    recorder.wait_until_whole()
    assert recorder.stop() == 0
    assert_whole(recorder.vault, okx, reasons=("start", "horizon"))
    [gap] = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "horizon"]
    assert int(gap["before_id"]) - int(gap["after_id"]) > 90


def test_gaps_of_files_that_were_moved_away_stay_on_record(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Recording begins anew: nothing before it is asked for again."""
    okx = make_okx(start="2026-11-21T12:00:00Z", instruments=[BTC])
    recorder = exporter(okx, settings=QUICK)
    write_gap(recorder.vault, "absent", (100, 110), ("2026-11-01T06:00:00.000Z", "2026-11-01T06:00:00.000Z"))
    recorder.start_capture()
    okx.trade(BTC, 5)
    recorder.stop_when_stored()
    assert [gap["reason"] for gap in read_gaps(recorder.vault)] == ["absent", "start"]
