"""Never lose a trade: each fault by itself against the real exporter, then the Vault against the ledger.

What comes together stands in campaign.py.
"""

import gzip
import json
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from campaign import DAMAGES, append

from fake_okx import BTC, ETH, REST_FAILURES, FakeOKX, Row, utc_ms
from harness import (
    Exporter,
    assert_vault_equals_ledger,
    day_files,
    last_stored_id,
    range_of_gap,
    read_file,
    read_gaps,
    read_vault,
    to_utc,
)
from trades_exporter import TradeFiles, Vault

MakeOKX = Callable[..., FakeOKX]
MakeExporter = Callable[..., Exporter]
SOON = {"ASK_AGAIN_S": [0.05, 0.2], "ABSENT_S": 1.0}  # what is absent is known to be after a second
HOUR_MS = 3_600_000


def finish(one: Exporter, missing: int = 0) -> None:
    """End the exchange, wait until all is stored, stop, and hold the Vaults of all instruments against the ledger."""
    one.okx.settle()
    one.wait_until_stored()
    assert one.stop() == 0
    found = sum(assert_vault_equals_ledger(one.vault, one.okx, inst_id).missing for inst_id in one.okx.markets)
    assert found == missing


def start_with_a_trade(one: Exporter) -> Exporter:
    """Start, and have each instrument's first trade stored, so that a gap can be seen."""
    one.start_capture()
    for inst_id in one.okx.markets:
        one.okx.trade(inst_id, count=1)
    one.wait_until_stored()
    return one


def miss_three_hours(one: Exporter, trades: int) -> Exporter:
    """Have a first trade stored, stop, and let so many trades happen in the three hours until now."""
    assert start_with_a_trade(one).stop() == 0
    begin = one.okx.now_ms()
    one.okx.prefill(BTC, trades, begin, begin + 3 * HOUR_MS)
    one.okx.set_clock(begin + 3 * HOUR_MS)
    return one


def reasons(one: Exporter, inst_id: str = BTC) -> list[str]:
    """Return why ids are on record as missing, in order; each file begins with `start`."""
    first, *others = [gap["reason"] for gap in read_gaps(one.vault, inst_id)]
    assert first == "start"
    return others


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
    one = start_with_a_trade(exporter(okx))
    okx.trade(count=3, lost=True)
    okx.trade()
    one.wait_until_stored()
    assert 1 <= history_requests(one) <= 2
    assert re.search(r"Gap found .*missing=3", one.log)
    one.wait_for_log("Gap repaired")
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
    assert reasons(one) == reasons(one, ETH) == []


def test_aggregates_that_overlap_are_replaced_by_their_single_trades(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Of 1 … 4 and 3 … 6 the first continues the file and stays; 5 and 6 come from REST, and none is counted twice."""
    one = start_with_a_trade(exporter(okx))
    [order] = okx.trade(count=6, lost=True)
    okx.push(order.first_id, order.first_id + 3)
    okx.push(order.first_id + 2, order.last_id)
    one.wait_until_stored()
    assert [int(record["trade_id"]) - order.first_id for record in read_vault(one.vault)[1:]] == [3, 4, 5]
    finish(one)


def test_a_push_without_a_sensible_count_may_hold_more_than_its_own_id(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Its ids come from REST, and it is not believed to be the last of them; where it is the next id, it is written."""
    one = start_with_a_trade(exporter(okx))
    okx.trade(count=4, fields={"count": "0"})
    one.wait_until_stored()
    assert len(read_vault(one.vault)) == 5
    assert history_requests(one) > 0
    finish(one)


@pytest.mark.parametrize("count", [1, 250])
def test_ids_that_never_existed_go_on_record_and_capture_goes_on(
    okx: FakeOKX, exporter: MakeExporter, count: int
) -> None:
    one = start_with_a_trade(exporter(okx, settings=SOON))
    last = okx.ledger[BTC][-1].trade_id
    okx.skip_ids(count)
    okx.trade(n=5)
    one.wait_until_stored()
    finish(one)
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "absent"]
    assert (int(gap["after_id"]), int(gap["before_id"])) == (last, last + count + 1)
    assert re.search(r"\[warning *\] Gap on record .*reason=absent", one.log)


def test_a_jump_of_a_thousand_million_ids_costs_few_requests(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx, settings=SOON))
    okx.trade(n=2, lost=True)
    okx.skip_ids(10**9)
    okx.trade(n=5)
    one.wait_until_stored()
    assert history_requests(one) < 20
    assert reasons(one) == ["absent"]
    finish(one)


@pytest.mark.parametrize("hours", ["24", "0"])
def test_ids_that_begin_anew_are_followed(okx: FakeOKX, exporter: MakeExporter, hours: str) -> None:
    """They go on record; a restart goes on behind them; --verify accepts the file."""
    one = start_with_a_trade(exporter(okx, settings={"RESET_CHECK_S": 0.2}, args=["--backfill-hours", hours]))
    last = okx.ledger[BTC][-1].trade_id
    okx.reset_ids(last - 2_000_000)
    okx.set_rate(20, BTC)
    one.wait_until(lambda: "id_reset" in reasons(one), what="the reset on record")
    one.wait_until(lambda: read_vault(one.vault)[-1]["trade_id"] == str(okx.ledger[BTC][-1].trade_id), what="stored")
    assert one.stop() == 0
    one.start_capture()
    okx.settle()
    goal = str(okx.ledger[BTC][-1].trade_id)
    one.wait_until(lambda: read_vault(one.vault)[-1]["trade_id"] == goal, what="all stored")
    assert one.stop() == 0
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0 or hours == "0"
    assert one.run("--verify").returncode == 0


def test_where_rest_lags_behind_a_reset_nothing_of_the_new_ids_is_passed_over(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """The first push that hinted at it is kept until REST has seen it too."""
    one = start_with_a_trade(exporter(okx, settings={"RESET_CHECK_S": 0.5}))
    okx.faults.rest_lag_s = 1.5
    okx.reset_ids(1000)
    okx.set_rate(20, BTC)
    one.wait_until(lambda: "id_reset" in reasons(one), what="the reset on record")
    okx.faults.rest_lag_s = 0.0
    okx.settle()
    goal = okx.ledger[BTC][-1].trade_id
    one.wait_until(lambda: last_stored_id(one.vault) == goal, what="all stored")
    assert one.stop() == 0
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0


def test_a_stray_low_push_does_not_hold_up_repairs(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Though REST can't be asked about it."""
    one = start_with_a_trade(exporter(okx, settings={"REST_TIMEOUT_S": 1.0}))
    push = okx.trade()[0]
    one.wait_until_stored()
    okx.faults.rest, okx.faults.rest_only = {"503": 1.0}, "market/trades"
    okx.resend(push, fields={"tradeId": "7", "count": "1", "ts": str(push.ts + 1)})
    one.wait_for_log("market/trades: HTTP 503")
    okx.trade(lost=True)
    okx.trade()
    one.wait_until_stored()
    finish(one)


def test_an_old_push_with_a_new_time_is_no_reset_unless_rest_agrees(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx))
    push = okx.trade()[0]
    one.wait_until_stored()
    okx.resend(push, fields={"tradeId": str(push.last_id - 5_000_000), "count": "1", "ts": str(push.ts + 1)})
    one.wait_until(lambda: okx.requests_to("market/trades"), what="REST is asked")
    okx.trade(n=3)
    one.wait_until_stored()
    assert reasons(one) == []
    finish(one)


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
    assert set(reasons(one) + reasons(one, ETH)) <= {"start"}


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
    path = tmp_path / "raw/okx/trades_perps" / BTC / "2025-12-14.jsonl"
    path.parent.mkdir(parents=True)
    files = TradeFiles(Vault(tmp_path), BTC)
    for cut in range(len(line)):
        path.write_bytes(line + line[:cut].replace(b'"7"', b'"8"') + rest)
        assert files.recover()[0] == 7
        assert path.read_bytes() == line
        path.write_bytes(line[:cut] + rest)
        assert files.recover()[0] is None
        assert path.read_bytes() == b""


def test_days_without_the_exporter_are_fetched_into_their_own_files(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Stopped on one day and started three days later; on one of the days nothing was traded."""
    okx = make_okx(start="2026-11-21T20:00:00Z")
    one = start_with_a_trade(exporter(okx, args=["--backfill-hours", "100"]))
    assert one.stop() == 0
    for inst_id in (BTC, ETH):
        okx.prefill(inst_id, 150, "2026-11-21T23:50:00Z", "2026-11-22T00:10:00Z")
        okx.prefill(inst_id, 50, "2026-11-24T01:00:00Z", "2026-11-24T02:00:00Z")
    okx.set_clock("2026-11-24T03:00:00Z")
    one.start_capture()
    finish(one)
    assert [path.name[:10] for path in day_files(one.vault, BTC)] == ["2026-11-21", "2026-11-22", "2026-11-24"]
    assert reasons(one) == reasons(one, ETH) == []


def test_empty_files_do_not_hide_where_the_vault_ends(okx: FakeOKX, exporter: MakeExporter) -> None:
    """However many of them there are."""
    one = start_with_a_trade(exporter(okx))
    one.kill()
    for day, content in (("2026-11-23", b""), ("2026-11-24", b'{"timest'), ("2026-11-25", b"\0\0\0")):
        append(day_files(one.vault, BTC)[0].with_name(f"{day}.jsonl"), content)
    okx.trade(n=5, lost=True)
    one.start_capture()
    finish(one)
    assert reasons(one) == []


def test_the_horizon_is_kept_though_rest_has_no_rows_at_first(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = miss_three_hours(exporter(okx, args=["--backfill-hours", "1"]), trades=500)
    okx.faults.rest, okx.faults.rest_only = {"no rows": 1.0}, "history-trades"
    one.start_capture()
    one.wait_until(lambda: history_requests(one) >= 2, what="REST is asked again")
    okx.faults.rest = {}
    one.wait_until_stored()
    assert one.stop() == 0
    assert reasons(one) == ["horizon"]


def test_a_torn_end_that_was_compressed_hides_nothing_behind_it(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It can't be cut off; the day goes on in a file of its own."""
    one = start_with_a_trade(exporter(okx))
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


def test_the_last_id_may_stand_in_the_file_of_yesterday(okx: FakeOKX, exporter: MakeExporter) -> None:
    """A ts may fall while the id rises; a restart looks at both days."""
    one = exporter(okx).start_capture()
    for stamp in ("2026-11-21T23:59:59Z", "2026-11-22T00:00:01Z", "2026-11-21T23:59:59.999Z"):
        okx.trade(count=1, ts=utc_ms(stamp))
    one.wait_until(lambda: len(read_vault(one.vault)) == 3, what="three lines")
    one.kill()
    okx.set_clock("2026-11-22T00:00:02Z")
    one.start_capture()
    finish(one)
    assert history_requests(one) == 0


# ------------------------------------------------------------------------------------------------------------ REST


def test_older_than_the_horizon_goes_on_record_and_the_rest_is_repaired(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = miss_three_hours(exporter(okx, args=["--backfill-hours", "1"]), trades=3000)
    shown_at = okx.pushes[BTC][-1].ts  # OKX pushes the latest after a subscription: that shows the gap
    one.start_capture()
    one.wait_until_stored()
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "horizon"]
    first, last = range_of_gap(gap)
    older = [trade.trade_id for trade in okx.ledger[BTC][1:] if trade.ts < shown_at - HOUR_MS]
    assert (first, last) == (older[0], older[-1])
    after, before = okx.ledger[BTC][0], okx.ledger[BTC][1 + len(older)]
    assert (gap["after_utc"], gap["before_utc"]) == (to_utc(after.ts), to_utc(before.ts))
    finish(one, missing=len(older))


def test_without_backfill_each_gap_goes_on_record_at_once(okx: FakeOKX, exporter: MakeExporter) -> None:
    """And REST is not asked."""
    one = start_with_a_trade(exporter(okx, args=["--backfill-hours", "0"]))
    lost = [okx.trade(count=2, lost=True)[0], *okx.trade(count=3, lost=True)]
    okx.trade()
    one.wait_until_stored()
    [gap] = [gap for gap in read_gaps(one.vault) if gap["reason"] == "horizon"]
    assert range_of_gap(gap) == (lost[0].first_id, lost[-1].last_id)
    assert history_requests(one) == 0
    finish(one, missing=5)


def test_while_rest_is_down_trades_wait_and_then_all_are_stored(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    okx = make_okx(rate=100)
    one = exporter(okx, settings={"STATS_S": 0.1}).start_capture()
    one.wait_until(lambda: read_vault(one.vault), what="a line")
    okx.faults.rest = {"reset": 1.0}
    okx.trade(lost=True)
    one.wait_until(lambda: re.search(r"waiting=\d\d", one.log), what="trades wait")
    one.wait_for_log("REST gave no answer of use", times=2)
    okx.faults.rest = {}
    one.wait_for_log("Gap repaired")
    finish(one)
    assert reasons(one) == []


def test_when_rest_is_refused_for_too_long_capture_goes_on_with_the_gap_on_record(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """Until it answers again, new gaps go on record at once; then they are repaired again."""
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 1.0}))
    okx.faults.rest = {"reset": 1.0}
    lost = okx.trade(count=3, lost=True)
    okx.trade(n=2)
    one.wait_until_stored()
    assert reasons(one) == ["unrepaired"]
    lost += okx.trade(count=2, lost=True)
    okx.trade()
    one.wait_until_stored()
    gaps = [gap for gap in read_gaps(one.vault) if gap["reason"] == "unrepaired"]
    assert [range_of_gap(gap) for gap in gaps] == [(push.first_id, push.last_id) for push in lost]
    okx.faults.rest = {}
    one.wait_for_log("REST helps again")
    okx.trade(n=3, lost=True)
    finish(one, missing=5)
    assert reasons(one) == ["unrepaired", "unrepaired"]


def test_when_rest_helps_nobody_all_that_waits_is_given_up_together(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The half hour is REST's, not the gap's: a gap that was found later does not wait longer."""
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 4.0}))
    okx.faults.rest = {"reset": 1.0}
    for failures, inst_id in ((3, BTC), (0, ETH)):
        okx.trade(inst_id, count=1, lost=True)
        okx.trade(inst_id)
        one.wait_for_log("REST gave no answer of use", times=failures)
    one.wait_until_stored()
    assert "Gap repaired" not in one.log
    (btc, eth), (btc_given_up, eth_given_up) = (
        sorted(datetime.fromisoformat(line.split()[0]) for line in one.log.splitlines() if words in line)
        for words in ("Gap found", "reason=unrepaired")
    )
    assert eth_given_up - btc_given_up < (eth - btc) / 2
    finish(one, missing=2)


def test_a_rest_that_answers_and_knows_nothing_new_is_no_help_either(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 1.0, "ASK_AGAIN_S": [0.25, 0.5]}))
    okx.faults.rest_lag_s = 3600.0
    for _ in range(2):
        okx.trade(count=1, lost=True)
        okx.trade()
        one.wait_until_stored()
    assert reasons(one) == ["unrepaired", "unrepaired"]
    okx.faults.rest_lag_s = 0.0
    one.wait_for_log("REST helps again")
    okx.trade(lost=True)
    finish(one, missing=2)


def test_what_is_missed_when_rest_is_back_is_not_given_up_unasked(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The internet was gone for hours and is back: nobody has asked REST yet for what came to light only now."""
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 1.0}))
    okx.faults.rest = {"503": 1.0}
    okx.trade(count=1, lost=True)
    okx.trade()
    one.wait_for_log("reason=unrepaired")
    one.wait_for_log("market/trades: HTTP 503", times=3)
    okx.faults.rest = {}
    okx.trade(n=5, lost=True)
    okx.trade()
    finish(one, missing=1)


def test_a_senseless_time_does_not_keep_rest_from_being_believed_again(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 1.0}))
    okx.faults.rest = {"503": 1.0}
    okx.trade(count=1, lost=True)
    okx.trade(count=1, fields={"ts": "4102444800000"})
    one.wait_for_log("reason=unrepaired")
    okx.faults.rest = {}
    one.wait_for_log("REST helps again")
    assert one.stop() == 0


def test_a_rest_that_fails_in_every_way_only_slows_repairs_down(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Too many requests, busy, HTML, nothing, half an answer, a hanging or a cut connection."""
    okx = make_okx(rate=50)
    one = exporter(okx, settings={"REST_TIMEOUT_S": 0.5}).start_capture()
    okx.faults.lose = 0.05
    okx.faults.rest = dict.fromkeys((*REST_FAILURES, "reset", "hang", "truncated"), 0.02)
    one.wait_for_log("Gap repaired", times=8)
    finish(one)
    assert reasons(one) == reasons(one, ETH) == []


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
    assert reasons(one) == reasons(one, ETH) == []


def test_a_bad_row_from_rest_is_asked_for_again(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx))
    bad = okx.trade(count=1, lost=True)[0].last_id
    okx.corrupt(bad, {"px": "-1"}, seconds=1.0)
    okx.trade()
    one.wait_until_stored()
    finish(one)
    assert str(bad) in [record["trade_id"] for record in read_vault(one.vault)]


@pytest.mark.parametrize("fields", [{"px": "-1"}, {"tradeId": "x"}], ids=json.dumps)
def test_a_row_from_rest_that_stays_bad_stops_it_and_can_be_passed_over(
    okx: FakeOKX, exporter: MakeExporter, fields: Row
) -> None:
    """The message names the id and the way around it, and that way works."""
    one = start_with_a_trade(exporter(okx, settings={"BAD_ROW_S": 0.3}))
    [_, bad, _] = [push.last_id for push in okx.trade(n=3, count=1, lost=True)]
    okx.corrupt(bad, fields)
    okx.trade()
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: Invalid trade field.*", one.log)
    assert str(fields.get("tradeId", bad)) in message
    assert "--backfill-hours 0" in message
    assert last_stored_id(one.vault) in {bad - 1, bad - 2}
    missing = okx.ledger[BTC][-1].trade_id - last_stored_id(one.vault)
    one.args = ["--backfill-hours", "0"]
    one.start_capture()
    okx.trade()
    one.wait_until_stored()
    assert reasons(one) == ["horizon"]
    finish(one, missing=missing - 1)


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


# ------------------------------------------------------------------------------------------------ the connection


@pytest.mark.parametrize("code", [1000, 1001, 1006, 4004])
def test_a_closed_connection_is_opened_again(make_okx: MakeOKX, exporter: MakeExporter, code: int) -> None:
    """And what was traded meanwhile is fetched."""
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    okx.close(code, "as this test asked for")
    one.wait_for_log("Subscribed to trades", times=4)
    assert re.search(r"Not connected to OKX .*reason=.*again_in=(0\.\d|1\.0)s", one.log)
    finish(one)


def test_attempts_to_connect_may_fail_in_every_way(okx: FakeOKX, exporter: MakeExporter) -> None:
    """No answer at all, then a 503, then cut off, and then it works."""
    okx.faults.ws_script.extend(["stall", "503", "reset"])
    one = exporter(okx, settings={"CONNECT_S": 0.5, "STEADY_S": 0.0}).start_capture()
    assert one.log.count("Not connected to OKX") == 3
    finish(one)


def test_a_half_open_connection_is_found_and_replaced(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    okx = make_okx(rate=50)
    one = exporter(okx, settings={"PING_AFTER_S": 0.5, "PONG_S": 0.5}).start_capture()
    okx.half_open()
    one.wait_for_log("nothing heard for")
    one.wait_for_log("Subscribed to trades", times=4)
    finish(one)


def test_a_quiet_connection_is_pinged_and_kept(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """OKX cuts it otherwise."""
    okx = make_okx(idle_s=3.0)
    one = exporter(okx, settings={"PING_AFTER_S": 1.0, "PONG_S": 2.0}).start_capture()
    one.wait_until(lambda: list(okx.received).count("ping") >= 2, what="two pings")
    assert okx.connects == 1
    assert one.stop() == 0


def test_a_dead_subscription_of_one_instrument_is_found_and_mended(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    okx = make_okx(rate=50)
    one = exporter(okx, settings={"INSTRUMENT_SILENT_S": 0.5}).start_capture()
    one.wait_until(lambda: read_vault(one.vault, ETH), what="a line")
    okx.kill_subscription(ETH)
    one.wait_for_log(f"no trade of {ETH}")
    one.wait_for_log("Subscribed to trades", times=4)
    finish(one)


def test_a_quiet_instrument_is_no_dead_subscription(okx: FakeOKX, exporter: MakeExporter) -> None:
    """REST is asked, has nothing newer, and the connection stays."""
    one = start_with_a_trade(exporter(okx, settings={"INSTRUMENT_SILENT_S": 0.5}))
    one.wait_until(lambda: len(okx.requests_to("market/trades")) >= 2, what="REST asked for each")
    assert okx.connects == 1
    finish(one)


def test_an_announced_upgrade_leaves_no_gap(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The new connection is there before the old one is closed, by us; nothing needs a repair."""
    okx = make_okx(rate=100)
    one = exporter(okx).start_capture()
    [old] = okx.connections
    okx.notice(close_after_s=60.0)
    one.wait_until(lambda: okx.connects == 2 and old not in okx.connections, what="the old one is closed")
    pushes = len(okx.pushes[BTC])
    one.wait_until(lambda: len(okx.pushes[BTC]) > pushes + 50, what="trades over the new one alone")
    finish(one)
    assert history_requests(one) == 0
    assert "Gap found" not in one.log


def test_an_upgrade_waits_for_new_trades_on_the_new_connection(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The latest trade, which OKX repeats after a subscription, does not say that the next ones will come."""
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    [old] = okx.connections
    okx.faults.live_delay_s = 1.0
    okx.notice(close_after_s=60.0)
    one.wait_until(lambda: okx.connects == 2 and old not in okx.connections, what="the old one is closed")
    finish(one)
    assert "Gap found" not in one.log


def test_upgrade_after_upgrade_is_no_storm_of_connections(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """OKX refuses more than three new ones a second."""
    okx = make_okx(rate=50)
    okx.faults.always_notice = True
    one = exporter(okx).start_capture()
    one.wait_until(lambda: okx.connects >= 6, what="six connections")
    assert "HTTP 429" not in one.log
    finish(one)


def test_an_announced_upgrade_of_a_quiet_connection_ends_too(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Where no trade comes in over the new one, the old one is closed all the same, after a while."""
    one = exporter(okx, settings={"REPLACE_S": 1.0}).start_capture()
    [old] = okx.connections
    okx.notice(close_after_s=60.0)
    one.wait_until(lambda: okx.connects == 2 and old not in okx.connections, what="the old one is closed")
    finish(one)


def test_an_upgrade_that_comes_sooner_than_announced_loses_nothing(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The old one closes at once, and the new one is refused at first."""
    okx = make_okx(rate=100)
    one = exporter(okx).start_capture()
    okx.faults.ws_script.append("503")
    okx.notice(close_after_s=0.0, code=1006)
    one.wait_for_log("Subscribed to trades", times=4)
    finish(one)


def test_a_missing_ack_is_not_accepted(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Trades of one instrument alone would be half a truth: it reconnects until both are there."""
    okx.faults.no_ack = {ETH}
    one = exporter(okx, settings={"SUBSCRIBE_S": 1.0}).start()
    one.wait_for_log(f"no ack within 1s for {ETH}")
    okx.faults.no_ack = set()
    one.wait_for_log(f"Subscribed to trades           instId={ETH}")
    finish(one)


def test_a_sleep_in_the_midst_of_a_repair_is_not_held_against_rest(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It gave no answer for longer than it is given, but nobody was awake to hear one."""
    if sys.platform == "win32":
        pytest.skip("no SIGSTOP there")
    one = start_with_a_trade(exporter(okx, settings={"UNREPAIRED_S": 3.0}))
    okx.prefill(BTC, 20_000, okx.now_ms(), okx.now_ms() + 1)
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
    assert reasons(one) == []


def test_after_a_sleep_the_time_slept_is_fetched(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The exchange cut the connection meanwhile."""
    if sys.platform == "win32":
        pytest.skip("no SIGSTOP there")
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    assert one.process is not None
    one.process.send_signal(signal.SIGSTOP)
    pushes = len(okx.pushes[BTC])
    okx.close()
    one.wait_until(lambda: len(okx.pushes[BTC]) > pushes + 50, what="trades while it sleeps")
    one.process.send_signal(signal.SIGCONT)
    one.wait_for_log("Subscribed to trades", times=4)
    finish(one)
    assert reasons(one) == []
