"""Today first, the past behind it: long pauses against the fake OKX's ledger, over REST and archives."""

import gzip
import json
import random
from functools import partial

import pytest

from fake_okx import BTC, ETH, REST_LIMITS, FakeOKX, Row, crossing_times
from harness import (
    QUICK,
    Exporter,
    MakeExporter,
    MakeOKX,
    assert_judges_content,
    assert_vault_equals_ledger,
    assert_whole,
    day_files,
    day_path,
    finish_whole,
    has_stored,
    kill_and_tear,
    last_stored_id,
    read_gaps,
    read_vault,
    stopped_at,
    stored_bytes,
    to_ms,
    to_utc,
)

pytestmark = pytest.mark.usefixtures("fast_rest")


def paused(exporter: MakeExporter, okx: FakeOKX, hours: float, trades: int, **settings: object) -> Exporter:
    """Let an exporter record a little; then it is off for hours, in which so many trades of each instrument happen."""
    recorder = stopped_at(okx, exporter(okx, settings=QUICK | settings))
    okx.pass_hours(hours, trades=trades)
    return recorder


def amid_history(
    exporter: MakeExporter, okx: FakeOKX, hours: float = 60, trades: int = 5000, rate: int = 0, **settings: object
) -> Exporter:
    """Let an exporter be off for hours, and go on until the past, of which REST gives pages slowly, begins to come."""
    recorder = paused(exporter, okx, hours, trades, **settings)
    okx.faults.rest_latency_s = 0.2
    okx.set_rate(rate)
    recorder.start_capture()
    last = [*okx.markets][-1]
    recorder.wait_until(day_path(recorder.vault, "2026-11-21", last).exists, what="the past begins")
    return recorder


def test_sixty_hours_off_are_whole_again_behind_the_present_day(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Every id of today is stored, in order, before the first one of the past; then all of it is there."""
    okx = make_okx(start="2026-11-20T21:00:00Z")
    recorder = paused(exporter, okx, 60, 6000)
    known = {inst_id: ledger[-1].trade_id for inst_id, ledger in okx.ledger.items()}
    okx.set_rate(20)
    recorder.start()
    for inst_id, newest in known.items():
        recorder.wait_until(day_path(recorder.vault, "2026-11-21", inst_id).exists, what="the past begins")
        today = [int(record["trade_id"]) for record in read_vault(recorder.vault, inst_id)]
        first = next(trade.trade_id for trade in okx.ledger[inst_id] if to_utc(trade.ts) > "2026-11-23")
        assert set(range(first, newest + 1)) <= set(today), "the past began before the present day was whole"
    finish_whole(recorder)
    assert recorder.log_since_start.count("History complete") == 2
    assert_judges_content(recorder)
    for inst_id in (BTC, ETH):
        days = [path.name for path in day_files(recorder.vault, inst_id)]
        assert days == [f"2026-11-{day}.jsonl" for day in (20, 21, 22, 23)]


def test_a_short_pause_over_midnight_is_no_history(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """What is missing from less than 15 minutes before midnight is repaired in order, before anything newer."""
    okx = make_okx(start="2026-11-20T23:50:00Z")
    recorder = paused(exporter, okx, 3, 500)
    recorder.start_capture()
    finish_whole(recorder)
    assert "reason=pending" not in recorder.log


def test_the_first_trade_of_a_day_is_stored_at_once_though_a_pause_precedes_it(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """The push that ends the pause is the day's first trade, and no other follows."""
    okx = make_okx(start="2026-11-20T12:00:00Z", instruments=[BTC])
    recorder = paused(exporter, okx, 11, 300)
    okx.set_clock("2026-11-21T00:10:00Z")
    okx.trade()
    recorder.start_capture()
    recorder.wait_until_whole()
    assert recorder.stop() == 0
    assert_whole(recorder.vault, okx)


def test_midnight_passes_while_today_is_repaired(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """What is left of today becomes history too, as soon as live trades are of the next day."""
    okx = make_okx(start="2026-11-20T12:00:00Z")
    recorder = paused(exporter, okx, 34, 6000)
    okx.faults.rest_latency_s = 0.4
    okx.set_rate(20)
    recorder.start_capture()
    recorder.wait_until(lambda: last_stored_id(recorder.vault) > okx.ledger[BTC][0].trade_id + 300)
    okx.set_clock("2026-11-22T00:00:05Z")
    recorder.wait_until(day_path(recorder.vault, "2026-11-22").exists, what="a third day")
    finish_whole(recorder)
    assert recorder.log.count("reason=pending") >= 3


def test_another_long_pause_before_the_first_is_filled(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Three pauses, three pending ranges, of which none is begun before all are on record."""
    okx = make_okx(start="2026-11-18T21:00:00Z")
    recorder = stopped_at(okx, exporter(okx, settings=QUICK | {"HISTORY_FREE_BYTES": 1 << 60}))
    for _ in range(3):
        okx.pass_hours(30, trades=700)
        recorder.start_capture()
        recorder.stop_when_stored()
    assert len(recorder.pending()) == 6
    recorder.settings = QUICK
    recorder.start_capture()
    finish_whole(recorder)


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_goes_on_where_the_files_end(
    exporter: MakeExporter, make_okx: MakeOKX, seed: int
) -> None:
    """Six times kill -9, with torn ends in the live file, in history's and in the gaps file."""
    chance = random.Random(seed)
    okx = make_okx(start="2026-11-19T21:00:00Z", seed=seed)
    recorder = stopped_at(okx, exporter(okx, settings=QUICK))
    okx.faults.rest_latency_s = 0.1
    for _ in range(6):
        okx.pass_hours(chance.choice((0.1, 0.5, 20)), trades=chance.choice((10, 900)))
        okx.set_rate(50)
        goal = stored_bytes(recorder.vault) + chance.randrange(200_000)
        recorder.start_capture()
        recorder.wait_until(partial(has_stored, recorder, goal), what="more is stored")
        kill_and_tear(recorder, chance)
    okx.faults.rest_latency_s = 0.0
    recorder.start_capture()
    finish_whole(recorder)
    assert_judges_content(recorder)


def test_a_day_is_whole_and_the_record_does_not_say_so_yet(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """The gaps file can't be replaced (as on Windows, while a reader has it open); kill -9 leaves it so."""
    okx = make_okx(start="2026-11-20T21:00:00Z")
    recorder = paused(exporter, okx, 60, 1000)
    blocks = [recorder.vault / "meta" / "okx" / "gaps" / f"{inst_id}.new" for inst_id in okx.markets]
    for block in blocks:
        block.mkdir()
    recorder.start_capture()
    recorder.wait_for_log("History complete", times=2)
    assert len(recorder.pending()) == 2
    recorder.kill()
    recorder.start_capture()
    recorder.wait_for_log("History complete", times=2)
    for block in blocks:
        block.rmdir()
    finish_whole(recorder)


@pytest.mark.parametrize("when", ["between two runs", "between two runs, interrupted", "while it writes there"])
def test_days_are_compressed_while_history_is_pending(exporter: MakeExporter, make_okx: MakeOKX, when: str) -> None:
    """The day that history stands in, and one that is whole; what is written to a file that was removed comes again."""
    okx = make_okx(start="2026-11-20T21:00:00Z", instruments=[BTC])
    recorder = amid_history(exporter, okx, trades=4000, FSYNC_S=60.0, ROUND_PAGES=3)
    second = day_path(recorder.vault, "2026-11-22")
    recorder.wait_until(lambda: second.exists() and second.stat().st_size > 50_000, what="the past's second day")
    if when != "while it writes there":
        recorder.kill()
    for path in (second.with_name("2026-11-21.jsonl"), second):
        content = path.read_bytes()  # its last line may be torn
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content[: content.rfind(b"\n") + 1]))
        if "interrupted" not in when:
            path.unlink()
    if not recorder.running:
        recorder.start_capture()
    finish_whole(recorder)


def test_midnight_passes_while_history_runs(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Live capture turns its day, history goes on in its own."""
    okx = make_okx(start="2026-11-20T12:00:00Z")
    recorder = amid_history(exporter, okx, hours=59.9, rate=30)
    okx.set_clock("2026-11-23T00:00:01Z")
    recorder.wait_until(day_path(recorder.vault, "2026-11-23").exists, what="the next day begins")
    assert recorder.pending()
    finish_whole(recorder)


def test_a_live_gap_is_repaired_while_history_waits(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """From its first request to its last, history asks for nothing."""
    okx = make_okx(start="2026-11-20T12:00:00Z", instruments=[BTC])
    recorder = amid_history(exporter, okx, trades=10_000, PROOF_S=30.0, ROUND_PAGES=5)
    first = okx.trade(n=50, lost=True)[0].first_id
    okx.hide([first], seconds=1.5)
    okx.trade()
    recorder.wait_until_stored()
    finish_whole(recorder)
    asked = [int(query["after"]) for query in okx.requests_to("history-trades") if query["type"] == "1"]
    live = [index for index, after in enumerate(asked) if after > first]
    assert len(live) > 3
    assert live == list(range(live[0], live[-1] + 1))
    assert asked[live[-1] + 1 :], "history was over before"


def test_history_waits_for_room_on_the_disk(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """It says so, and live capture does not suffer."""
    okx = make_okx(start="2026-11-20T21:00:00Z")
    recorder = paused(exporter, okx, 60, 1000, HISTORY_FREE_BYTES=1 << 60)
    okx.set_rate(20)
    recorder.start_capture()
    recorder.wait_for_log("History waits: the disk is nearly full")
    recorder.wait_until_stored()
    assert len(recorder.pending()) == 2
    assert [path.name for path in day_files(recorder.vault, BTC)] == ["2026-11-20.jsonl", "2026-11-23.jsonl"]
    assert recorder.stop() == 0
    recorder.settings = QUICK
    recorder.start_capture()
    finish_whole(recorder)


def test_a_disk_fails_in_the_midst_of_history(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """The Vault is away for a while: live capture and history both go on without a gap."""
    recorder = amid_history(exporter, make_okx(start="2026-11-20T12:00:00Z"), rate=20, RETRY_WRITE_S=0.1)
    away = recorder.vault.rename(recorder.vault.with_name("away"))
    recorder.wait_for_log("Can't write to the Vault")
    away.rename(recorder.vault)
    finish_whole(recorder)


def test_a_bad_row_costs_its_id_alone(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Of the past REST keeps sending bad rows: they go on record, with a warning that shows the row."""
    okx = make_okx(start="2026-11-20T12:00:00Z", instruments=[BTC])
    recorder = paused(exporter, okx, 60, 2000)
    bad = [okx.ledger[BTC][index].trade_id for index in (300, 301, 450, 1200)]
    garbled: tuple[Row, ...] = ({"px": "NaN"}, {"sz": 5}, {"side": ""}, {"ts": ""})
    for trade_id, fields in zip(bad, garbled, strict=True):
        okx.corrupt(trade_id, fields)
    recorder.start_capture()
    recorder.wait_until_whole()  # before the exchange settles, and mends its rows
    finish_whole(recorder, ("start", "unrepaired"))
    gaps = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "unrepaired"]
    named = [trade_id for trade_id in bad for gap in gaps if int(gap["after_id"]) < trade_id < int(gap["before_id"])]
    assert (named, sum(int(gap["before_id"]) - int(gap["after_id"]) - 1 for gap in gaps)) == (bad, 4)
    assert recorder.log.count("REST keeps sending an invalid row") == 4
    assert "px='NaN'" in recorder.log
    assert assert_vault_equals_ledger(recorder.vault, okx).missing == 4


def test_times_that_cross_at_midnight(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Between two days of the past all trades are stored; at the end of the past the misfits go on record."""
    okx = make_okx(start="2026-11-20T12:00:00Z", instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=QUICK))
    for day in (21, 22):
        okx.pass_hours(11, trades=300)
        for ts in crossing_times(f"2026-11-{day}"):
            okx.trade(ts=ts, lost=True)
        okx.set_clock(f"2026-11-{day}T12:00:00Z")
    okx.pass_hours(1, trades=300)
    recorder.start_capture()
    finish_whole(recorder, ("start", "unrepaired"))
    assert {gap["reason"] for gap in read_gaps(recorder.vault)} == {"start", "unrepaired"}
    assert assert_vault_equals_ledger(recorder.vault, okx).missing <= 20
    assert recorder.run("--verify").returncode == 0


@pytest.mark.parametrize("past", [True, False])
def test_times_that_cross_at_midnight_by_seconds(exporter: MakeExporter, make_okx: MakeOKX, *, past: bool) -> None:
    """What would break the order of ids from day to day goes on record as unrepaired, in history and live."""
    okx = make_okx(start="2026-11-20T23:59:00Z", instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=QUICK))
    if not past:
        recorder.start_capture()
    midnight = to_ms("2026-11-21T00:00:00.000Z")
    times = [midnight + after for after in (-3000, 900, -900, -2000, 3000)]
    unfit = [okx.trade(BTC, count=1, ts=ts, lost=past)[0].first_id for ts in times][3]
    okx.set_clock("2026-11-21T00:00:10Z")
    if past:
        okx.pass_hours(40, trades=300)
        recorder.start_capture()
    okx.trade(BTC, 5)
    finish_whole(recorder, ("start", "unrepaired"))
    assert assert_vault_equals_ledger(recorder.vault, okx).missing == 1
    [gap] = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "unrepaired"]
    assert (gap["after_id"], gap["before_id"]) == (str(unfit - 1), str(unfit + 1))
    assert recorder.run("--verify").returncode == 0


def test_each_day_gets_a_verdict_when_it_is_whole(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """None is audited while it is pending; the verdict is on record once, and no minute differs."""
    okx = make_okx(start="2026-11-20T21:00:00Z", instruments=[BTC])
    recorder = paused(exporter, okx, 60, 3000, AUDIT_AFTER_S=0.2)
    recorder.start_capture()
    recorder.wait_until_whole()
    path = recorder.vault / "meta" / "okx" / "audit" / f"{BTC}.jsonl"
    recorder.wait_until(lambda: path.exists() and path.read_text().count("\n") == 3, what="three verdicts")
    verdicts = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(verdict["day"] for verdict in verdicts) == [f"2026-11-{day}" for day in (20, 21, 22)]
    assert {verdict["minutes_differing"] for verdict in verdicts} == {"0"}
    finish_whole(recorder)
    assert_judges_content(recorder)


def test_a_signal_ends_it_in_the_midst_of_history(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """Exit 0 and whole files; the next start goes on."""
    recorder = amid_history(exporter, make_okx(start="2026-11-20T12:00:00Z"))
    assert recorder.stop() == 0
    assert recorder.run("--verify").returncode == 0
    assert recorder.pending()
    recorder.start_capture()
    finish_whole(recorder)


def test_an_archive_that_comes_late_is_read_however_much_rest_has_fetched_behind_it(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """What REST gives of newer trades waits for the older ones, which only the archive has: none of them is absent."""
    okx = make_okx(start="2026-11-18T02:00:00Z")
    okx.faults.rest_reach_days = 2.1  # on 2026-11-20, 12:00: back to 9:30 of the day that the pause begins in
    okx.faults.archive = {"all": "refused"}
    recorder = paused(exporter, okx, 58, 6000, ARCHIVE_IDS=100, ARCHIVE_RETRY_S=0.5, LOOKAHEAD_TRADES=400)
    recorder.start()
    recorder.wait_for_log("History waits for an archive")
    okx.faults.archive = {}
    recorder.wait_until(lambda: recorder.log_since_start.count("History complete") == 2, what="the past is whole")
    finish_whole(recorder)


def test_an_archive_that_comes_late_is_read_though_rest_is_dead(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """REST was asked for what is missing, then where it begins: neither question keeps the archive out for ever."""
    okx = make_okx(start="2026-11-18T02:00:00Z", instruments=[BTC])
    okx.faults.archive = {"all": "refused"}
    limits = dict.fromkeys(REST_LIMITS, 1000) | {"/api/v5/market/history-trades": 10}
    settings: dict[str, object] = {"ARCHIVE_IDS": 100, "ARCHIVE_RETRY_S": 2.5, "PROOF_S": 0.2, "REST_LIMITS": limits}
    recorder = paused(exporter, okx, 58, 6000, **settings)
    recorder.start()
    recorder.wait_for_log("Gap repaired")
    okx.faults.rest, okx.faults.rest_only = {"503": 1.0}, "history-trades"
    asked = len(okx.requests_to("history-trades"))
    recorder.wait_until(lambda: len(okx.requests_to("history-trades")) > asked + 4, what="REST asked in vain")
    size = stored_bytes(recorder.vault)
    okx.faults.archive = {}
    recorder.wait_until(lambda: has_stored(recorder, size), what="the archive read")
    okx.faults.rest.clear()
    finish_whole(recorder)
