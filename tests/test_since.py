"""`--since DATE`: the past from archives and REST, joined to live capture, against the fake OKX's ledger."""

import random
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial

import pytest

from fake_okx import ARCHIVE_FAULTS, BTC, ETH, FakeOKX
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
    read_gaps,
    read_vault,
    stopped_at,
    stored_bytes,
    to_utc,
    write_gap,
)

NOW = "2026-11-21T12:00:00Z"
BELIEVED = {"old header", "GBK header", "moved columns", "BOM", "LF", "upper case", "path outside", "no MD5"}
BELIEVED |= {"holes", "noise", "bad rows"}  # but for these rows
SETTINGS = QUICK | {"PROOF_S": 0.5, "ARCHIVE_IDS": 50, "ARCHIVE_RETRY_S": 0.5, "ARCHIVE_STALL_S": 0.5}


pytestmark = pytest.mark.usefixtures("fast_rest")


@pytest.fixture
def old_okx(make_okx: MakeOKX) -> Callable[..., FakeOKX]:
    """Open an exchange with a past: `old_okx(5, 1000)` has 1000 trades of each instrument on each of 5 days."""

    def make(days: int, a_day: int, **options: object) -> FakeOKX:
        okx = make_okx(start=NOW, **options)
        for inst_id in okx.markets:
            okx.prefill(inst_id, days * a_day, okx.now_ms() - days * 86_400_000, NOW)
        return okx

    return make


def archives_asked_for(okx: FakeOKX) -> list[str]:
    """Return the days whose archives were asked for, in order, of all instruments."""
    return [path.rpartition("-trades-")[2][:10] for _, path, _ in okx.requests if path.endswith(".zip")]


def days_stored(exporter: Exporter, inst_id: str = BTC) -> list[int]:
    """Return the days of November that are stored."""
    return [int(path.name[8:10]) for path in day_files(exporter.vault, inst_id)]


def fetch(exporter: MakeExporter, okx: FakeOKX, since: str, **settings: object) -> Exporter:
    """Let an exporter with an empty Vault fetch all since a day, and stop it."""
    recorder = exporter(okx, settings=SETTINGS | settings, args=["--since", since])
    recorder.start().wait_for_log("History complete")
    assert recorder.stop() == 0
    return recorder


def test_four_days_back_with_an_empty_vault(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """Today over REST first, the past from archives, with few requests to REST; the same DATE again changes nothing."""
    okx = old_okx(6, 4000)
    okx.set_rate(20)
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-17"])
    recorder.start_capture()
    recorder.wait_until(lambda: day_path(recorder.vault, "2026-11-17").exists(), what="the past begins")
    assert day_path(recorder.vault, "2026-11-21").exists()
    okx.set_rate(0)
    recorder.wait_until_whole()
    assert recorder.stop() == 0
    assert days_stored(recorder) == [17, 18, 19, 20, 21]
    assert len(okx.requests_to("history-trades")) < 2 * (40 + 50)
    assert sorted(set(archives_asked_for(okx))) == [f"2026-11-{day}" for day in (17, 18, 19, 20, 21)]
    first = {record["trade_id"] for record in read_vault(recorder.vault)[:1]}
    before = (recorder.vault / "meta/okx/gaps" / f"{BTC}.jsonl").read_text()
    asked = len(archives_asked_for(okx))
    recorder.start_capture()
    finish_whole(recorder)
    assert (recorder.vault / "meta/okx/gaps" / f"{BTC}.jsonl").read_text() == before
    assert len(archives_asked_for(okx)) == asked
    assert first == {read_gaps(recorder.vault)[0]["before_id"]}
    assert first == {str(next(t.trade_id for t in okx.ledger[BTC] if to_utc(t.ts) > "2026-11-17"))}
    assert_judges_content(recorder)


def test_every_fault_of_an_archive_costs_requests_and_no_trade(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """A day for each fault: what is not believed comes from REST, and it is said once."""
    days = len(ARCHIVE_FAULTS) + 3
    okx = old_okx(days, 1300, instruments=[BTC])
    first = date(2026, 11, 21) - timedelta(days=days - 2)
    faults = {str(first + timedelta(days=index)): kind for index, kind in enumerate(ARCHIVE_FAULTS)}
    okx.faults.archive = dict(faults)
    recorder = fetch(exporter, okx, str(first), ROUND_PAGES=1, ARCHIVE_RETRY_S=600.0)
    last = int(read_vault(recorder.vault)[-1]["trade_id"])
    assert assert_vault_equals_ledger(recorder.vault, okx, upto_id=last).missing == 0
    assert set(faults) <= set(archives_asked_for(okx))
    for day, kind in faults.items():
        said = [line for line in recorder.log.splitlines() if f"day={day}" in line]
        assert len(said) == (kind not in BELIEVED), (kind, said)


@pytest.mark.parametrize("beyond", ["empty", "newer"])
def test_what_neither_archive_nor_rest_has_is_absent_or_unrepaired(
    exporter: MakeExporter, old_okx: MakeOKX, beyond: str
) -> None:
    """REST reaches one day back: ids that an archive leaves out are absent, those of bad rows unrepaired."""
    okx = old_okx(6, 1000, instruments=[BTC])
    okx.faults.rest_reach_days, okx.faults.rest_beyond = 1.0, beyond
    ids = [okx.ledger[BTC][index].trade_id for index in (1600, 1601, 1700, 2500, 2501, 2502, 2503, 5600)]
    okx.spoil_archive([ids[0], ids[3], ids[5]])
    okx.spoil_archive([ids[1], ids[6]], {"size": "0.16186999999999999"})
    okx.spoil_archive([ids[2], ids[4], ids[7]], {"price": "-1.0"})
    recorder = fetch(exporter, okx, "2026-11-17")
    assert assert_vault_equals_ledger(recorder.vault, okx).missing == 7
    assert recorder.run("--verify").returncode == 0
    named = {
        trade_id: gap["reason"]
        for trade_id in ids
        for gap in read_gaps(recorder.vault)
        if gap["after_id"] and int(gap["after_id"]) < trade_id < int(gap["before_id"])
    }
    absent, bad = "absent", "unrepaired"
    assert named == dict(zip(ids, [absent, bad, bad, absent, bad, absent, bad], strict=False))


def test_many_holes_beyond_rests_reach_cost_no_minute_each(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """All holes that are known at a time are decided at once."""
    okx = old_okx(6, 5000, instruments=[BTC])
    okx.faults.rest_reach_days = 1.0
    okx.spoil_archive([okx.ledger[BTC][index].trade_id for index in range(8050, 20000, 100)])
    recorder = fetch(exporter, okx, "2026-11-17")
    assert assert_vault_equals_ledger(recorder.vault, okx).missing == 120
    assert {gap["reason"] for gap in read_gaps(recorder.vault)} == {"start", "absent"}


def test_bad_rows_in_a_row_beyond_rests_reach_are_one_range(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """An archive with another number format has hundreds of thousands: each id by itself would stop everything else."""
    okx = old_okx(6, 5000, instruments=[BTC])
    okx.faults.rest_reach_days = 1.0
    okx.spoil_archive([trade.trade_id for trade in okx.ledger[BTC][8050:11050]], {"price": "-1.0"})
    recorder = fetch(exporter, okx, "2026-11-17")
    assert assert_vault_equals_ledger(recorder.vault, okx).missing == 3000
    assert [gap["reason"] for gap in read_gaps(recorder.vault)] == ["start", "unrepaired"]
    assert len([line for line in recorder.log.splitlines() if "reason=unrepaired" in line]) < 10


@pytest.mark.parametrize("beyond", ["empty", "newer"])
def test_what_okx_no_longer_has_is_horizon(exporter: MakeExporter, old_okx: MakeOKX, beyond: str) -> None:
    """The oldest archives are not there, and REST reaches two days back."""
    okx = old_okx(16, 400, instruments=[BTC])
    okx.faults.rest_reach_days, okx.faults.rest_beyond = 2.0, beyond
    okx.faults.archive = {f"2026-11-{day:02}": "missing" for day in (7, 8, 10)}
    recorder = fetch(exporter, okx, "2026-11-07")
    assert_whole(recorder.vault, okx, reasons=("horizon",))
    horizons = [(gap["after_utc"][:10], gap["before_utc"][:13]) for gap in read_gaps(recorder.vault)]
    assert horizons == [("2026-11-07", "2026-11-08T16"), ("2026-11-09", "2026-11-10T16")]
    recorder.start_capture()
    okx.trade()
    recorder.wait_until_whole()
    assert recorder.stop() == 0
    assert len(read_gaps(recorder.vault)) == 2


def test_what_okx_has_again_is_no_longer_horizon(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """An earlier DATE asks for all of it anew: only what its day's file can't take any more stays on record."""
    okx = old_okx(16, 400, instruments=[BTC])
    okx.faults.rest_reach_days, okx.faults.archive = 2.0, {"2026-11-07": "missing", "2026-11-08": "missing"}
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-07"])
    recorder.start().wait_for_log("History complete")
    assert recorder.stop() == 0
    assert read_gaps(recorder.vault)[0]["reason"] == "horizon"
    okx.faults.archive, recorder.args = {}, ["--since", "2026-11-06"]
    recorder.start_capture()
    finish_whole(recorder, ("start", "unrepaired"))
    assert days_stored(recorder)[:3] == [6, 7, 8]
    assert_judges_content(recorder)


@pytest.mark.parametrize(("reach_days", "reason"), [(2.0, "horizon"), (14.0, "start"), (14.499, "start")])
def test_where_the_first_day_begins_without_its_archive(
    exporter: MakeExporter, old_okx: MakeOKX, reach_days: float, reason: str
) -> None:
    """What precedes 16:00, where the next archive begins, is missing; where REST begins, the exchange may begin."""
    okx = old_okx(16, 1000, instruments=[BTC])
    okx.faults.rest_reach_days, okx.faults.archive = reach_days, {"2026-11-07": "missing"}
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-07"])
    recorder.start().wait_for_log("History complete")
    assert recorder.stop() == 0
    [gap] = read_gaps(recorder.vault)
    assert gap["reason"] == reason
    assert gap["after_utc"] == ("2026-11-07T00:00:00.000Z" if reason == "horizon" else "")


@pytest.mark.parametrize("missing", ["2026-11-17", "2026-11-18"])
def test_a_young_archive_is_waited_for(exporter: MakeExporter, old_okx: MakeOKX, missing: str) -> None:
    """It is not there yet, and REST does not reach so far: history says that it waits, and goes on when it comes."""
    okx = old_okx(6, 1000, instruments=[BTC])
    okx.faults.rest_reach_days = 1.0
    okx.faults.archive = {missing: "missing", "2026-11-19": "refused"}
    recorder = exporter(okx, settings=SETTINGS | {"LOOKAHEAD_TRADES": 600}, args=["--since", "2026-11-17"])
    recorder.start_capture()
    okx.trade()
    recorder.wait_for_log("History waits for an archive")
    assert [gap["reason"] for gap in read_gaps(recorder.vault)][-1] == "pending"
    okx.faults.archive = {}
    finish_whole(recorder)


def test_kills_with_torn_ends_in_the_midst_of_archives(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """Six times kill -9, while archives come slowly and fail now and then; no temporary file is left."""
    chance = random.Random(5)
    okx = old_okx(6, 4000)
    okx.faults.rest_reach_days = 2.0
    okx.faults.archive_often = {"503": 0.1, "cut midway": 0.1, "truncated": 0.1}
    okx.faults.archive_bytes_per_s = 150_000.0
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-17"])
    for _ in range(6):
        size = stored_bytes(recorder.vault) + 300_000
        okx.set_rate(20)
        recorder.start_capture()
        recorder.wait_until(partial(has_stored, recorder, size), what="more is stored")
        kill_and_tear(recorder, chance)
    okx.faults.archive_often = {}
    recorder.start_capture()
    finish_whole(recorder)
    assert_judges_content(recorder)
    files = {path.name for path in recorder.vault.rglob("*") if path.is_file()}
    days = {f"2026-11-{day}.jsonl" for day in range(17, 22)}
    assert files - days == {"exporter.lock", *(f"{i}.{end}" for i in (BTC, ETH) for end in ("json", "jsonl"))}


def test_days_before_the_first_stored_one_are_fetched(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """What is missing of the first stored day itself stays on record as `start`, now with the id before it."""
    okx = old_okx(6, 1000, instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=SETTINGS))
    (began,) = read_gaps(recorder.vault)
    recorder.args = ["--since", "2026-11-18"]
    recorder.start_capture()
    finish_whole(recorder)
    assert days_stored(recorder) == [18, 19, 20, 21]
    starts = read_gaps(recorder.vault)
    assert [gap["reason"] for gap in starts] == ["start", "start"]
    first = next(trade for trade in okx.ledger[BTC] if to_utc(trade.ts) > "2026-11-18")
    today = next(trade.trade_id for trade in okx.ledger[BTC] if to_utc(trade.ts) > "2026-11-21")
    assert [gap["after_id"] for gap in starts] == ["", str(today - 1)]
    assert (starts[0]["before_id"], starts[0]["before_utc"]) == (str(first.trade_id), to_utc(first.ts))
    assert starts[1]["before_id"] == began["before_id"]
    before = read_gaps(recorder.vault)
    recorder.start_capture()
    okx.trade()
    recorder.stop_when_stored()
    assert read_gaps(recorder.vault) == before
    run = recorder.run("--verify")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(("since", "begin"), [(14, "horizon"), (16, "horizon"), (18, "horizon"), (18, "start")])
def test_days_that_were_removed_are_fetched_again(
    exporter: MakeExporter, old_okx: MakeOKX, since: int, begin: str
) -> None:
    """What is on record of removed files says neither where the record begins nor what OKX no longer has."""
    okx = old_okx(10, 1000, instruments=[BTC])
    okx.faults.rest_reach_days = 1.0
    okx.faults.archive = {"2026-11-13": "missing"} if begin == "horizon" else {}
    settings = SETTINGS | {"ARCHIVE_LATE_DAYS": 1}
    recorder = exporter(okx, settings=settings, args=["--since", "2026-11-13"])
    recorder.start().wait_for_log("History complete")
    assert recorder.stop() == 0
    assert read_gaps(recorder.vault)[0]["reason"] == begin
    for day in range(13, 20):
        day_path(recorder.vault, f"2026-11-{day}").unlink()
    recorder.args = ["--since", f"2026-11-{since}"]
    recorder.start_capture()
    finish_whole(recorder)
    assert days_stored(recorder) == [*range(since, 22)]


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_an_earlier_date_while_the_first_is_pending(
    exporter: MakeExporter, old_okx: MakeOKX, *, filled: bool, empty: bool
) -> None:
    """The second is fetched first; where `filled`, part of the first is stored by then."""
    okx = old_okx(8, 2000, instruments=[BTC])
    settings = SETTINGS | {"ARCHIVE_IDS": 10**9, "ROUND_PAGES": 1}
    recorder = exporter(okx, settings=settings)
    if not empty:
        stopped_at(okx, recorder)
    recorder.args = ["--since", "2026-11-18"]
    recorder.settings = settings if filled else settings | {"HISTORY_FREE_BYTES": 1 << 60}
    okx.faults.rest_latency_s = 0.1 if filled else 0.0
    recorder.start_capture()
    okx.trade()
    recorder.wait_until_stored()
    if filled:
        path = day_path(recorder.vault, "2026-11-18")
        recorder.wait_until(lambda: path.exists() and path.stat().st_size > 50_000, what="the first part of the past")
    else:
        recorder.wait_for_log("History waits: the disk")
    recorder.kill()
    recorder.settings = SETTINGS
    recorder.args = ["--since", "2026-11-16"]
    okx.faults.rest_latency_s = 0.0
    recorder.start_capture()
    finish_whole(recorder)
    assert days_stored(recorder) == [16, 17, 18, 19, 20, 21]
    assert [gap["reason"] for gap in read_gaps(recorder.vault)] == ["start"] * (1 if empty else 2)


def test_since_today(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """The record begins with the first trade of the present day; nothing becomes history."""
    okx = old_okx(3, 1000, instruments=[BTC])
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-21"])
    recorder.start_capture()
    finish_whole(recorder)
    assert "reason=pending" not in recorder.log
    assert days_stored(recorder) == [21]
    first = next(trade.trade_id for trade in okx.ledger[BTC] if to_utc(trade.ts) > "2026-11-21")
    assert read_vault(recorder.vault)[0]["trade_id"] == str(first)


def test_since_today_while_rest_gives_no_trades(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """Once REST is given up, what of this day is missing is on record as that, and not as what was never wanted."""
    okx = old_okx(3, 1000, instruments=[BTC])
    okx.faults.rest, okx.faults.rest_only = {"503": 1.0}, "history-trades"
    settings = SETTINGS | {"UNREPAIRED_S": 1.0}
    recorder = exporter(okx, settings=settings, args=["--since", "2026-11-21"])
    recorder.start_capture()
    okx.trade()
    recorder.wait_for_log("Gap on record")
    assert recorder.stop() == 0
    [gap] = read_gaps(recorder.vault)
    assert (gap["reason"], gap["after_utc"]) == ("unrepaired", "2026-11-21T00:00:00.000Z")


def test_since_a_day_before_the_exchange_has_anything(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """The record begins with the first trade that there is, and says that it begins there."""
    okx = old_okx(2, 1000, instruments=[BTC])
    recorder = exporter(okx, settings=SETTINGS, args=["--since", "2026-11-10"])
    recorder.start_capture()
    finish_whole(recorder, ("start", "horizon"))
    assert days_stored(recorder) == [19, 20, 21]
    [gap] = read_gaps(recorder.vault)
    assert gap["before_id"] == str(okx.ledger[BTC][0].trade_id)


def test_since_now_leaves_a_pause_alone_and_pending_ranges_on_record(exporter: MakeExporter, old_okx: MakeOKX) -> None:
    """What was missed before this start is `horizon`; what was pending before still comes."""
    okx = old_okx(2, 500, instruments=[BTC])
    recorder = stopped_at(okx, exporter(okx, settings=SETTINGS | {"HISTORY_FREE_BYTES": 1 << 60}))
    okx.pass_hours(30, trades=500)
    recorder.start_capture()
    okx.trade()
    recorder.stop_when_stored()
    okx.pass_hours(30, trades=500)
    recorder.args, recorder.settings = ["--since", "now"], SETTINGS
    recorder.start_capture()
    finish_whole(recorder, ("start", "horizon"))
    [gap] = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "horizon"]
    assert int(gap["before_id"]) - int(gap["after_id"]) > 450
    assert days_stored(recorder) == [21, 22, 23, 24]


def test_killed_before_the_first_line_while_the_lower_edge_is_not_known(
    exporter: MakeExporter, old_okx: MakeOKX
) -> None:
    """History is awake before the first push: the record begins with the day that was named, not with REST's reach."""
    okx = old_okx(6, 500, instruments=[BTC])
    recorder = exporter(okx, settings=SETTINGS | {"ARCHIVE_IDS": 10**9}, args=["--since", "2026-11-19"])
    recorder.start_capture()
    okx.trade()
    recorder.wait_until_stored()
    recorder.kill()
    for path in day_files(recorder.vault, BTC):
        path.unlink()
    gaps = recorder.vault / "meta/okx/gaps" / f"{BTC}.jsonl"
    first = next(trade for trade in okx.ledger[BTC] if to_utc(trade.ts) > "2026-11-21")
    gaps.unlink()
    write_gap(recorder.vault, "pending", ("", first.trade_id), ("2026-11-19T00:00:00.000Z", to_utc(first.ts)))
    okx.mute(BTC, 2.0)
    recorder.start_capture()
    recorder.wait_until(lambda: not recorder.pending())
    finish_whole(recorder)
    assert days_stored(recorder) == [19, 20, 21]
