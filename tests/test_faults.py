"""Never lose a trade: each fault by itself against the real exporter, then the Vault against the ledger.

What comes together stands in campaign.py; faults of the connection, the disk and the clocks have files of their own.
"""

import gzip
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from campaign import DAMAGES, append

from fake_okx import BTC, ETH, FakeOKX, Row, utc_ms
from harness import (
    Exporter,
    MakeExporter,
    MakeOKX,
    day_files,
    day_path,
    finish,
    last_stored_id,
    log_lines,
    range_of_gap,
    read_file,
    read_gaps,
    read_vault,
    reasons,
    start_with_a_trade,
    to_utc,
    write_vault,
)
from trades_exporter import TradeFiles, Vault

SOON = {"ASK_AGAIN_S": [0.05, 0.2], "PROOF_S": 1.0}  # what is absent is known to be after a second
IMPATIENT = {"UNREPAIRED_S": 1.0, "ASK_AGAIN_S": [0.25, 0.5], "BACKOFF_S": 0.3}  # REST is given up after a second


def history_requests(one: Exporter) -> int:
    """Return how many pages of trades have been asked for."""
    return len(one.okx.requests_to("trades"))


# --------------------------------------------------------------------------------------------------------- pushes


def test_shuffled_pushes_cost_no_request(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """What comes late but soon is waited for. The exporter waits longer here, as this machine may be busy."""
    okx = make_okx(rate=100)
    one = exporter(okx, settings={"LATE_S": 3.0}).start_capture()
    okx.faults.shuffle = 0.5
    one.wait_until(lambda: len(okx.pushes[BTC]) > 200, what="200 pushes")
    finish(one)
    assert history_requests(one) == 0


def test_a_single_lost_push_costs_one_or_two_requests(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The log names the same ids where the gap is found and where it is repaired."""
    one = start_with_a_trade(exporter(okx))
    okx.trade(count=3, lost=True)
    okx.trade()
    one.wait_for_log("Gap repaired")
    assert 1 <= history_requests(one) <= 2
    first = okx.ledger[BTC][0].trade_id
    ids = f"instId={BTC} after_id={first} before_id={first + 4} "
    assert [f"{ids}missing=3" in log_lines(one, "Gap found")[0], ids in log_lines(one, "Gap repaired")[0]] == [True] * 2
    finish(one)


@pytest.mark.parametrize("fault", ["lose", "double", "delay", "straddle", "twin", "bad_count", "several_rows"])
def test_a_share_of_pushes_that_come_wrong_is_stored_right(
    make_okx: MakeOKX, exporter: MakeExporter, fault: str
) -> None:
    """Lost, doubled, late, overlapping, of two sources, without a sensible count, several in a frame."""
    okx = make_okx(rate=150)
    one = exporter(okx).start_capture()
    setattr(okx.faults, fault, 0.3)
    one.wait_until(lambda: len(okx.pushes[ETH]) > 150, what="150 pushes")
    finish(one)
    assert reasons(one.vault) == reasons(one.vault, ETH) == []


@pytest.mark.parametrize(("count", "requests"), [(1, 40), (250, 40), (10**9, 20)])
def test_ids_that_never_existed_go_on_record_and_capture_goes_on(
    okx: FakeOKX, exporter: MakeExporter, count: int, requests: int
) -> None:
    """However many there are: a jump by a thousand million costs few requests."""
    one = start_with_a_trade(exporter(okx, settings=SOON))
    last = okx.trade(n=2, lost=True)[-1].last_id
    okx.skip_ids(count)
    okx.trade(n=5)
    one.wait_until_stored()
    assert history_requests(one) < requests
    finish(one)
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "absent"]
    assert (int(gap["after_id"]), int(gap["before_id"])) == (last, last + count + 1)
    assert re.search(r"\[warning *\] Gap on record .*reason=absent", one.log)


# ---------------------------------------------------------------------------------------------------- ids that fall


@pytest.mark.parametrize("by", [1000, 2_000_000])
def test_ids_that_begin_anew_stop_it(okx: FakeOKX, exporter: MakeExporter, by: int) -> None:
    """Ten newer trades with ids that are stored already are believed; the message names both ids and times."""
    one = start_with_a_trade(exporter(okx))
    last = okx.ledger[BTC][-1]
    okx.reset_ids(last.trade_id - by)
    tenth = okx.trade(n=10, ts=last.ts + 5)[-1]
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: .*", one.log)
    assert message.startswith("BUILD_FAIL: Trade ids fell: ")
    for part in (BTC, str(tenth.last_id), to_utc(tenth.ts), str(last.trade_id), to_utc(last.ts), "--vault"):
        assert part in message
    assert last_stored_id(one.vault) == last.trade_id


def test_a_damaged_last_id_stops_it(okx: FakeOKX, exporter: MakeExporter) -> None:
    """A digit of it was raised: whatever OKX sends now seems to be stored already."""
    one = start_with_a_trade(exporter(okx))
    okx.trade(n=5)
    one.wait_until_stored()
    one.kill()
    [path] = day_files(one.vault, BTC)
    last = str(last_stored_id(one.vault))
    damaged = last[:2] + str(int(last[2]) + 1) + last[3:]
    path.write_bytes(path.read_bytes().replace(last.encode(), damaged.encode()))
    one.start_capture()
    okx.trade(n=10)
    assert one.wait() == 3
    assert re.search(f"BUILD_FAIL: Trade ids fell: .* {damaged} .*damaged", one.log)


def test_nine_stray_low_pushes_are_skipped(okx: FakeOKX, exporter: MakeExporter) -> None:
    """However low; and they do not hold up a repair."""
    one = start_with_a_trade(exporter(okx))
    push = okx.trade()[0]
    for number in range(2):
        for stray in range(9):
            low = str(7 + stray + 100_000_000 * number)
            okx.resend(push, fields={"tradeId": low, "count": "1", "ts": str(push.ts + 1)})
        okx.trade(lost=True)
        okx.trade()
    one.wait_until_stored()
    finish(one)
    assert re.search(f"Stats: .* 1[89] skipped instId={BTC}", one.log)


# --------------------------------------------------------------------------------------------- crash and restart


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_crash_left_is_mended_at_the_next_start(
    make_okx: MakeOKX, exporter: MakeExporter, damage: Callable[[list[Path], random.Random], None]
) -> None:
    """Trades went on meanwhile; two days' files are there."""
    okx = make_okx(start="2026-11-21T12:00:00Z")
    one = start_with_a_trade(exporter(okx))
    okx.set_clock("2026-11-22T12:00:00Z")
    okx.set_rate(50)
    one.wait_until(lambda: len(day_files(one.vault, BTC)) == len(day_files(one.vault, ETH)) == 2, what="two days")
    one.kill()
    for inst_id in (BTC, ETH):
        damage(day_files(one.vault, inst_id), random.Random(1))
    one.start_capture()
    finish(one)
    assert set(reasons(one.vault) + reasons(one.vault, ETH)) <= {"start"}


@pytest.mark.parametrize(
    "rest", [b"", bytes(700), b"\0\0\n\0", b"\xff\xfe \n {\n"], ids=["", "zeros", "a line of zeros", "garbage"]
)
def test_a_line_cut_at_any_byte_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    """Whatever follows it; and what stands before stays as it is."""
    line = (
        b'{"timestamp_utc":"2025-12-14T21:34:56.123Z","exchange":"okx","market":"perp","instId":"BTC-USDT-SWAP",'
        b'"symbol_canon":"BTC/USDT","trade_id":"7","side":"buy","price":"101250.5","qty_contracts":"45",'
        b'"ctVal":"0.01","ctMult":"1","ctType":"linear"}\n'
    )
    vault = Vault(tmp_path)
    vault.lock()
    files = TradeFiles(vault, BTC)
    path = files.path("2025-12-14")
    path.parent.mkdir(parents=True)
    for cut in range(len(line)):
        path.write_bytes(line + line[:cut].replace(b'"7"', b'"8"') + rest)
        assert files.recover() == [f"okx:{BTC}:7"]
        assert path.read_bytes() == line
        path.write_bytes(line[:cut] + rest)
        assert files.recover() == []
        assert files.ends.highest().trade_id == -1
        assert path.read_bytes() == b""


@pytest.mark.parametrize("day", ["2025-12-13", "2025-12-14"])
def test_a_zero_byte_costs_lines_of_the_newest_day_alone(tmp_path: Path, make_okx: MakeOKX, day: str) -> None:
    """A power cut leaves zeros where the newest lines were, and these are fetched again; older lines are not."""
    okx = make_okx()
    for date in ("2025-12-13", "2025-12-14"):
        okx.set_clock(f"{date}T12:00:00Z")
        okx.trade(n=4)
    write_vault(tmp_path, okx)
    path = day_path(tmp_path, day)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"okx", b"o\0x")
    path.write_bytes(b"".join(lines))
    vault = Vault(tmp_path)
    vault.lock()
    TradeFiles(vault, BTC).recover()
    assert path.read_bytes().splitlines(keepends=True) == (lines[:1] if day == "2025-12-14" else lines)


def test_empty_files_do_not_hide_where_the_vault_ends(okx: FakeOKX, exporter: MakeExporter) -> None:
    """However many of them there are."""
    one = start_with_a_trade(exporter(okx))
    one.kill()
    for day, content in (("2026-11-23", b""), ("2026-11-24", b'{"timest'), ("2026-11-25", b"\0\0\0")):
        append(day_files(one.vault, BTC)[0].with_name(f"{day}.jsonl"), content)
    okx.trade(n=5, lost=True)
    one.start_capture()
    finish(one)
    assert reasons(one.vault) == []


def test_a_torn_end_that_was_compressed_hides_nothing_behind_it(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It can't be cut off; the day goes on in a file of its own."""
    one = start_with_a_trade(exporter(okx, settings={"UNFINISHED_LINE_S": 0.1}))
    okx.trade(n=5, count=1)
    one.wait_until_stored()
    assert one.stop() == 0
    [day] = day_files(one.vault, BTC)
    day.with_name(day.name + ".gz").write_bytes(gzip.compress(day.read_bytes()[:-40]))
    day.unlink()

    def stored() -> list[int]:
        lines = b"".join(read_file(path) for path in day_files(one.vault, BTC))
        return [int(trade_id) for trade_id in re.findall(rb'"trade_id":"(\d+)".*\n', lines)]

    def stored_holds(trade_id: int) -> bool:
        return trade_id in stored()

    for _ in range(3):
        one.start_capture()
        goal = okx.ledger[BTC][-1].trade_id
        one.wait_until(partial(stored_holds, goal), what="all stored")
        assert one.stop() == 0
        okx.trade(count=1)
    assert len(stored()) == len(set(stored()))


def test_a_trade_of_last_night_that_comes_after_midnight_goes_to_its_own_day(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """The last id may then stand in the file of yesterday: a restart looks at both."""
    one = exporter(okx).start_capture()
    for stamp in ("21T23:59:59.800Z", "22T00:00:00.050Z", "21T23:59:59.900Z", "22T00:00:00.100Z", "21T23:59:59.990Z"):
        okx.trade(count=1, ts=utc_ms(f"2026-11-{stamp}"))
    one.wait_until(lambda: len(read_vault(one.vault)) == 5, what="five lines")
    one.kill()
    first = okx.ledger[BTC][0].trade_id
    by_day = [re.findall(r'"trade_id":"(\d+)"', path.read_text()) for path in day_files(one.vault, BTC)]
    assert [[int(text) - first for text in ids] for ids in by_day] == [[0, 2, 4], [1, 3]]
    okx.set_clock("2026-11-22T00:00:02Z")
    one.start_capture()
    finish(one)
    assert history_requests(one) == 0


# -------------------------------------------------------------------------------------------------- --since now


def test_with_since_now_what_was_missed_before_goes_on_record(okx: FakeOKX, exporter: MakeExporter) -> None:
    """And REST is not asked for it; what is missed from then on is repaired as ever."""
    one = start_with_a_trade(exporter(okx))
    assert one.stop() == 0
    [lost], _ = okx.trade(count=2, lost=True), okx.trade(count=3, lost=True)
    one.args = ["--since", "now"]
    one.start_capture()  # the latest push comes with the subscription
    one.wait_until_stored()
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "horizon"]
    assert range_of_gap(gap) == (lost.first_id, lost.last_id)
    assert history_requests(one) == 0
    okx.trade(count=4, lost=True)
    finish(one, missing=2)
    assert reasons(one.vault) == ["horizon"]


@pytest.mark.parametrize("fields", [{"px": "-1"}, {"tradeId": "x"}], ids=json.dumps)
def test_a_row_from_rest_that_stays_bad_stops_it_and_since_now_passes_over_it(
    okx: FakeOKX, exporter: MakeExporter, fields: Row
) -> None:
    """The message names the id and the way around it, and that way works."""
    one = start_with_a_trade(exporter(okx, settings={"PROOF_S": 0.3, "ASK_AGAIN_S": [0.05, 0.2]}))
    [_, bad, _] = [push.last_id for push in okx.trade(n=3, count=1, lost=True)]
    okx.corrupt(bad, fields)
    okx.trade()
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: Invalid trade field.*", one.log)
    assert str(fields.get("tradeId", bad)) in message
    assert "--since now" in message
    assert last_stored_id(one.vault) in {bad - 1, bad - 2}
    missing = okx.pushes[BTC][-1].first_id - 1 - last_stored_id(one.vault)
    one.args = ["--since", "now"]
    one.start_capture()
    one.wait_until_stored()
    assert reasons(one.vault) == ["horizon"]
    finish(one, missing=missing)


# ------------------------------------------------------------------------------------------------------------ REST


def test_while_rest_is_down_trades_wait_and_then_all_are_stored(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    okx = make_okx(rate=100)
    one = exporter(okx, settings={"STATS_S": 0.1}).start_capture()
    one.wait_until(lambda: read_vault(one.vault), what="a line")
    okx.faults.rest = {"reset": 1.0}
    okx.trade(lost=True)
    one.wait_until(lambda: re.search(r"waiting=\d\d", one.log), what="trades wait")
    asked = history_requests(one)
    one.wait_until(lambda: history_requests(one) > asked + 1, what="REST is asked again")
    okx.faults.rest = {}
    one.wait_for_log("Gap repaired")
    finish(one)
    assert reasons(one.vault) == []


def test_when_rest_is_refused_for_too_long_capture_goes_on_with_the_gap_on_record(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """Until the same endpoint answers again, new gaps go on record at once; then they are repaired again."""
    one = start_with_a_trade(exporter(okx, settings=IMPATIENT))
    okx.faults.rest, okx.faults.rest_only = {"reset": 1.0}, "history-trades"  # the other endpoints work
    lost = okx.trade(count=3, lost=True)
    okx.trade(n=2)
    one.wait_until_stored()
    assert reasons(one.vault) == ["unrepaired"]
    lost += okx.trade(count=2, lost=True)
    okx.trade()
    one.wait_until_stored()
    gaps = [gap for gap in read_gaps(one.vault) if gap["reason"] == "unrepaired"]
    assert [range_of_gap(gap) for gap in gaps] == [(push.first_id, push.last_id) for push in lost]
    assert "REST is back" not in one.log
    okx.faults.rest = {}
    one.wait_for_log("REST is back; repairs resume")
    okx.trade(n=3, lost=True)
    finish(one, missing=5)
    assert reasons(one.vault) == ["unrepaired", "unrepaired"]


def test_a_rest_that_answers_and_knows_nothing_new_is_no_help_either(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx, settings=IMPATIENT))
    okx.faults.rest_lag_s = 3600.0
    for _ in range(2):
        okx.trade(count=1, lost=True)
        okx.trade()
        one.wait_until_stored()
    assert reasons(one.vault) == ["unrepaired", "unrepaired"]
    okx.faults.rest_lag_s = 0.0
    one.wait_for_log("REST is back")
    okx.trade(lost=True)
    finish(one, missing=2)


def test_what_is_missed_when_rest_is_back_is_not_given_up_unasked(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The internet was gone for hours and is back: nobody has asked REST yet for what came to light only now."""
    one = start_with_a_trade(exporter(okx, settings={**IMPATIENT, "WATCH_S": 1.0}))
    okx.faults.rest = {"503": 1.0}
    okx.trade(count=1, lost=True)
    okx.trade()
    one.wait_for_log("reason=unrepaired")
    asked = history_requests(one)
    one.wait_until(lambda: history_requests(one) > asked, what="REST is probed")
    okx.faults.rest = {}
    okx.trade(n=5, lost=True)
    okx.trade()
    finish(one, missing=1)


def test_where_rest_is_given_up_over_midnight_only_today_is_lost(okx: FakeOKX, exporter: MakeExporter) -> None:
    """What is of yesterday becomes pending, and is fetched when REST is back."""
    one = start_with_a_trade(exporter(okx, settings=IMPATIENT))
    assert one.stop() == 0
    okx.prefill(BTC, 200, "2026-11-21T13:00:00Z", "2026-11-21T14:00:00Z")
    okx.set_clock("2026-11-22T00:30:00Z")
    okx.faults.rest, okx.faults.rest_only = {"reset": 1.0}, "history-trades"
    one.start_capture()
    okx.trade(count=1)
    [lost] = okx.trade(count=2, lost=True)
    okx.trade()
    one.wait_until_stored()
    assert sorted(reasons(one.vault)) == ["pending", "unrepaired"]
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "unrepaired"]
    assert range_of_gap(gap) == (lost.first_id, lost.last_id)
    okx.faults.rest = {}
    one.wait_for_log("History complete")
    finish(one, missing=2)
    assert reasons(one.vault) == ["unrepaired"]
    assert [path.name[:10] for path in day_files(one.vault, BTC)] == ["2026-11-21", "2026-11-22"]


def test_a_rest_that_is_late_stale_and_partial_is_not_believed_to_lack_trades(
    make_okx: MakeOKX, exporter: MakeExporter
) -> None:
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    okx.faults.lose = 0.05
    okx.faults.rest_lag_s, okx.faults.rest_lag_jitter_s, okx.faults.rest_partial = 0.3, 0.5, 0.5
    [hidden] = okx.trade(lost=True)
    okx.hide(range(hidden.first_id, hidden.last_id + 1), seconds=2.0)
    one.wait_until(lambda: len(okx.pushes[ETH]) > 150, what="150 pushes")
    finish(one)
    assert reasons(one.vault) == reasons(one.vault, ETH) == []


def test_a_bad_row_from_rest_is_asked_for_again(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx))
    bad = okx.trade(count=1, lost=True)[0].last_id
    okx.corrupt(bad, {"px": "-1"}, seconds=1.0)
    okx.trade()
    one.wait_until_stored()
    finish(one)
    assert str(bad) in [record["trade_id"] for record in read_vault(one.vault)]


def test_two_bad_rows_with_an_outage_between_them_stop_nothing(okx: FakeOKX, exporter: MakeExporter) -> None:
    """A row is believed to be bad as an id is to be absent: after five answers, however long they take."""
    one = start_with_a_trade(exporter(okx, settings={"PROOF_S": 0.5, "ASK_AGAIN_S": [1.0, 1.0], "BACKOFF_S": 0.2}))
    bad = okx.trade(count=1, lost=True)[0].last_id
    okx.corrupt(bad, {"px": "-1"})
    okx.trade()
    one.wait_until(lambda: history_requests(one), what="REST is asked")
    okx.faults.rest = {"reset": 1.0}
    one.wait_for_log("Next try in")
    okx.faults.rest = {}
    asked = history_requests(one)
    one.wait_until(lambda: history_requests(one) > asked, what="REST is asked again")
    okx.faults.rest_corrupt.clear()
    one.wait_until_stored()
    finish(one)


def test_waiting_is_bounded(okx: FakeOKX, exporter: MakeExporter) -> None:
    """What does not find room is dropped, and fetched like the rest."""
    one = start_with_a_trade(exporter(okx, settings={"WAITING_TRADES": 200, "STATS_S": 0.05}))
    okx.faults.rest = {"reset": 1.0}
    okx.trade(lost=True)
    for _ in range(10):
        last = okx.trade(n=50)[-1].last_id
    assert last_stored_id(one.vault) < last
    okx.faults.rest = {}
    one.wait_until_stored()
    finish(one)
    waited = [int(number) for number in re.findall(r"waiting=(\d+)", one.log)]
    assert 0 < max(waited) <= 200


def test_two_instruments_are_repaired_without_going_over_okx_limits(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx))
    assert one.stop() == 0
    for inst_id in (BTC, ETH):
        okx.prefill(inst_id, 1500, okx.now_ms(), okx.now_ms() + 1)
    one.start_capture()
    finish(one)
    assert okx.throttled == 0
