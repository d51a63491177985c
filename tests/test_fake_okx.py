"""The fake exchange held against what OKX is known to do, and the judge of harness.py against Vaults gone wrong."""
# ruff: noqa: ANN401 # decoded JSON may be anything

import contextlib
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fake_okx import ABSENT, BTC, ETH, FIRST_ID, JUNK_FRAMES, FakeOKX, Push, utc_ms
from harness import KEYS, assert_vault_equals_ledger, last_stored_id, read_vault, wait_for

DAY = utc_ms("2026-11-21T00:00:00Z")
SUBSCRIBE: dict[str, Any] = {"op": "subscribe", "args": [{"channel": "trades", "instId": BTC}]}
RECV_S = 10.0


def ask(okx: FakeOKX, path: str, **query: object) -> Any:
    """Return the decoded answer of a REST endpoint, whatever its HTTP status."""
    text = "&".join(f"{name}={value}" for name, value in query.items())
    try:
        with urllib.request.urlopen(f"{okx.rest_url}/api/v5/{path}?{text}", timeout=RECV_S) as answer:
            return orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        return orjson.loads(error.read()) | {"status": error.code}


def ids(answer: Any) -> list[int]:
    return [int(row["tradeId"]) for row in answer["data"]]


@contextlib.contextmanager
def client(okx: FakeOKX) -> Iterator[ClientConnection]:
    with connect(okx.ws_url, compression=None, ping_interval=None, close_timeout=1) as ws:
        yield ws


def recv(ws: ClientConnection) -> Any:
    return orjson.loads(ws.recv(RECV_S))


def subscribe(ws: ClientConnection, *instruments: str) -> None:
    """Subscribe and take the acks; the instruments must not have traded yet."""
    args = [{"channel": "trades", "instId": inst_id} for inst_id in instruments]
    ws.send(orjson.dumps({"op": "subscribe", "args": args}).decode())
    assert [recv(ws)["arg"]["instId"] for _ in instruments] == list(instruments)


# The WebSocket


def test_each_argument_is_acknowledged_and_followed_by_the_latest_push(okx: FakeOKX) -> None:
    newest = okx.trade(n=3)[-1]
    with client(okx) as ws:
        ws.send(orjson.dumps({"id": "x1", "op": "subscribe", "args": [{"channel": "trades", "instId": BTC}]}).decode())
        ack = recv(ws)
        assert ack == {"id": "x1", "event": "subscribe", "arg": SUBSCRIBE["args"][0], "connId": ack["connId"]}
        assert recv(ws)["data"][0]["tradeId"] == str(newest.last_id)


def test_a_push_looks_like_a_real_one_and_sums_up_its_single_trades(okx: FakeOKX) -> None:
    with client(okx) as ws:
        subscribe(ws, BTC, ETH)
        okx.trade(BTC, count=3)
        message = recv(ws)
        trades = okx.ledger[BTC]
        (row,) = message["data"]
        assert message["arg"] == {"channel": "trades", "instId": BTC}
        assert list(row) == ["instId", "tradeId", "px", "sz", "side", "ts", "count", "source", "seqId"]
        assert all(isinstance(row[key], str) for key in row if key != "seqId")
        assert isinstance(row["seqId"], int)
        assert [trade.trade_id for trade in trades] == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]
        assert (row["tradeId"], row["count"]) == (str(FIRST_ID + 2), "3")
        assert Decimal(row["sz"]) == sum(Decimal(trade.sz) for trade in trades)
        assert {(row["px"], row["side"], int(row["ts"]))} == {(trade.px, trade.side, trade.ts) for trade in trades}


@pytest.mark.parametrize(
    ("request_text", "code"),
    [
        ("nonsense", "60012"),
        ('{"args":[]}', "60012"),
        ('{"op":"dance","args":[{}]}', "60019"),
        ('{"op":"subscribe"}', "60013"),
        ('{"op":"subscribe","args":[]}', "60013"),
        ('{"op":"subscribe","id":"a-b","args":[{"channel":"trades","instId":"BTC-USDT-SWAP"}]}', "60033"),
        ('{"op":"subscribe","args":[{"channel":"trades","instId":"NO-SUCH-SWAP"}]}', "60018"),
        ('{"op":"subscribe","args":[{"channel":"tickers","instId":"BTC-USDT-SWAP"}]}', "60018"),
    ],
)
def test_a_wrong_request_is_answered_by_an_error_event(okx: FakeOKX, request_text: str, code: str) -> None:
    with client(okx) as ws:
        ws.send(request_text)
        answer = recv(ws)
        assert (answer["event"], answer["code"]) == ("error", code)
        assert answer.keys() == {"event", "code", "msg", "connId"}


def test_a_text_ping_is_answered_by_a_text_pong(okx: FakeOKX) -> None:
    with client(okx) as ws:
        ws.send("ping")
        assert ws.recv(RECV_S) == "pong"


def test_a_silent_connection_is_cut_with_4004(make_okx: Callable[..., FakeOKX]) -> None:
    with client(make_okx(idle_s=0.3)) as ws, pytest.raises(ConnectionClosedError) as closed:
        ws.recv(RECV_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4004


def test_the_fourth_connection_within_a_second_is_refused(okx: FakeOKX) -> None:
    with client(okx), client(okx), client(okx), pytest.raises(InvalidStatus), client(okx):
        pass


@pytest.mark.parametrize("code", [1000, 4005, 1006])
def test_connections_are_closed_with_the_code_asked_for(okx: FakeOKX, code: int) -> None:
    with client(okx) as ws:
        wait_for(lambda: okx.connections)
        okx.close(code)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(RECV_S)
    assert (closed.value.rcvd.code if closed.value.rcvd else 1006) == code


def test_a_half_open_connection_neither_sends_nor_answers(okx: FakeOKX) -> None:
    with client(okx) as silent:
        subscribe(silent, BTC)
        okx.half_open()
        with client(okx) as alive:
            subscribe(alive, BTC)
            silent.send("ping")
            okx.trade(BTC)
            assert recv(alive)["data"]
            with pytest.raises(TimeoutError):
                silent.recv(0.2)


def test_a_dead_subscription_gets_nothing_while_others_flow(okx: FakeOKX) -> None:
    with client(okx) as ws:
        subscribe(ws, BTC, ETH)
        okx.kill_subscription(BTC)
        okx.trade(BTC)
        okx.trade(ETH)
        assert recv(ws)["arg"]["instId"] == ETH


def test_a_notice_comes_before_the_close(okx: FakeOKX) -> None:
    with client(okx) as ws:
        subscribe(ws, BTC)
        okx.notice(close_after_s=0.05)
        assert recv(ws)["code"] == "64008"
        with pytest.raises(ConnectionClosed):
            ws.recv(RECV_S)


@pytest.mark.parametrize("name", JUNK_FRAMES)
def test_junk_frames_arrive_as_they_are(okx: FakeOKX, name: str) -> None:
    with client(okx) as ws:
        subscribe(ws, BTC)
        okx.send_junk(name)
        assert ws.recv(RECV_S, decode=False) == JUNK_FRAMES[name][0]


def test_a_message_may_come_in_fragments(okx: FakeOKX) -> None:
    with client(okx) as ws:
        subscribe(ws, BTC)
        okx.send_raw("fragments", fragments=4)
        assert list(ws.recv_streaming()) == ["fr", "ag", "me", "nts"]


def test_delivery_faults_lose_double_and_delay_but_the_ledger_is_whole(make_okx: Callable[..., FakeOKX]) -> None:
    okx = make_okx(rate=500.0)
    faults = okx.faults
    faults.lose = faults.double = faults.shuffle = faults.straddle = faults.twin = faults.several_rows = 0.2
    faults.bad_count = 0.1
    with client(okx) as ws:
        ws.send(orjson.dumps(SUBSCRIBE).decode())
        wait_for(lambda: len(okx.pushes[BTC]) > 1000)
        okx.settle()
        last = str(okx.ledger[BTC][-1].trade_id)
        rows: list[Any] = []
        while not rows or rows[-1]["tradeId"] != last:
            rows += recv(ws).get("data", [])
    seen = [int(row["tradeId"]) for row in rows]
    pushed = {push.last_id for push in okx.pushes[BTC]}
    assert set(seen) < pushed, "some are lost, none invented"
    assert len(seen) > len(set(seen)), "some come twice"
    assert seen != sorted(seen), "some come out of order"
    assert any(not str(row.get("count")).isdigit() for row in rows), "some have a senseless count"
    assert [trade.trade_id for trade in okx.ledger[BTC]] == list(range(FIRST_ID, int(last) + 1))


def test_a_thousand_pushes_a_second_of_many_instruments_all_arrive(make_okx: Callable[..., FakeOKX]) -> None:
    names = [f"COIN{index}-USDT-SWAP" for index in range(300)]
    okx = make_okx(instruments=names, rate=4.0)
    with client(okx) as ws:
        args = [{"channel": "trades", "instId": name} for name in names]
        ws.send(orjson.dumps({"op": "subscribe", "args": args}).decode())
        wait_for(lambda: len(okx.pushes[names[0]]) > 5)
        okx.settle()
        last = {name: okx.ledger[name][-1].trade_id for name in names}
        ends: dict[str, int] = {}
        while ends != last:
            message = recv(ws)
            if "data" in message:
                ends[message["arg"]["instId"]] = int(message["data"][-1]["tradeId"])


# REST


def test_pages_by_id_are_exact(okx: FakeOKX) -> None:
    okx.prefill(BTC, 1000, DAY, DAY + 60_000)
    page = ask(okx, "market/history-trades", instId=BTC, type=1, after=FIRST_ID + 500, limit=100)
    assert sorted(ids(page)) == list(range(FIRST_ID + 400, FIRST_ID + 500))
    assert set(page["data"][0]) == {"instId", "side", "sz", "source", "px", "tradeId", "ts"}
    stamps = [int(row["ts"]) for row in page["data"]]
    assert stamps == sorted(stamps, reverse=True), "newest first"
    both = ask(okx, "market/history-trades", instId=BTC, after=FIRST_ID + 500, before=FIRST_ID + 490)
    assert sorted(ids(both)) == list(range(FIRST_ID + 491, FIRST_ID + 500)), "before is exclusive too"
    alone = ask(okx, "market/history-trades", instId=BTC, type=1, before=FIRST_ID + 100, limit=50)
    assert sorted(ids(alone)) == list(range(FIRST_ID + 950, FIRST_ID + 1000)), "before alone: the newest page"


def test_rows_of_one_millisecond_need_not_come_in_id_order(okx: FakeOKX) -> None:
    okx.trade(count=100)
    page = ids(ask(okx, "market/history-trades", instId=BTC, type=1))
    assert page != sorted(page, reverse=True)
    assert sorted(page) == list(range(FIRST_ID, FIRST_ID + 100))


def test_pages_by_time_end_before_the_time(okx: FakeOKX) -> None:
    okx.prefill(BTC, 2000, DAY, DAY + 60_000)
    page = ask(okx, "market/history-trades", instId=BTC, type=2, after=DAY + 30_000, limit=100)
    older = [trade for trade in okx.ledger[BTC] if trade.ts < DAY + 30_000]
    assert len(page["data"]) == 100
    assert max(ids(page)) == older[-1].trade_id
    refused = ask(okx, "market/history-trades", instId=BTC, type=2, after=DAY, before=1)
    assert (refused["status"], refused["code"]) == (400, "51000")


def test_the_newest_trades_are_single_ones_and_500_at_most(okx: FakeOKX) -> None:
    okx.prefill(BTC, 1000, DAY, DAY + 86_400_000)
    page = ask(okx, "market/trades", instId=BTC, limit=500)
    assert max(ids(page)) == FIRST_ID + 999
    assert len(set(ids(page))) == 500
    assert ask(okx, "market/trades", instId=BTC, limit=501)["code"] == "51000"


def test_candles_add_up_to_the_ledger_and_quiet_minutes_repeat_the_last_close(make_okx: Callable[..., FakeOKX]) -> None:
    okx = make_okx(start=DAY + 3_600_000)
    okx.prefill(BTC, 500, DAY, DAY + 20 * 60_000)
    okx.prefill(BTC, 100, DAY + 30 * 60_000, DAY + 31 * 60_000)
    rows = ask(okx, "market/history-candles", instId=BTC, bar="1m", after=DAY + 60 * 60_000, limit=300)["data"]
    rows += ask(okx, "market/history-candles", instId=BTC, bar="1m", after=rows[-1][0])["data"]
    minutes = [int(row[0]) for row in rows]
    assert minutes == [DAY + index * 60_000 for index in reversed(range(60))]
    assert {row[8] for row in rows} == {"1"}
    for ts, opened, high, low, close, vol, *_ in rows:
        trades = [trade for trade in okx.ledger[BTC] if int(ts) <= trade.ts < int(ts) + 60_000]
        prices = [Decimal(trade.px) for trade in trades]
        assert Decimal(vol) == sum(Decimal(trade.sz) for trade in trades)
        if trades:
            assert [opened, close] == [trades[0].px, trades[-1].px]
            assert [Decimal(high), Decimal(low)] == [max(prices), min(prices)]
        else:
            assert (opened, high, low, vol) == (close, close, close, "0")
    window = ask(okx, "market/history-candles", instId=BTC, after=DAY + 300_000, before=DAY + 60_000)["data"]
    assert [int(row[0]) for row in window] == [DAY + 240_000, DAY + 180_000, DAY + 120_000], "both exclusive"


def test_the_running_minute_is_not_confirmed(make_okx: Callable[..., FakeOKX]) -> None:
    okx = make_okx(start=DAY)
    okx.trade()
    assert ask(okx, "market/history-candles", instId=BTC)["data"][0][8] == "0"


def test_an_instrument_is_one_row_of_about_55_fields(okx: FakeOKX) -> None:
    (row,) = ask(okx, "public/instruments", instType="SWAP", instId=ETH)["data"]
    assert (row["instId"], row["ctVal"], row["ctMult"], row["ctType"]) == (ETH, "0.1", "1", "linear")
    assert len(row) > 50
    assert ask(okx, "public/instruments", instType="SWAP", instId="NO-SUCH-SWAP")["code"] == "51001"
    assert ask(okx, "market/trades", instId="NO-SUCH-SWAP")["code"] == "51001"


def test_requests_over_the_limit_are_answered_by_429(okx: FakeOKX) -> None:
    answers = [ask(okx, "public/time") for _ in range(11)]
    assert [answer["code"] for answer in answers] == ["0"] * 10 + ["50011"]
    assert answers[-1]["status"] == 429
    assert okx.throttled == 1
    assert len(okx.requests_to("/public/time")) == 11
    assert ask(okx, "market/trades", instId=BTC)["code"] == "0", "each endpoint has a limit of its own"


def test_rest_lags_behind(okx: FakeOKX) -> None:
    okx.faults.rest_lag_s = 3600.0
    okx.trade(count=1)
    assert ask(okx, "market/trades", instId=BTC)["data"] == []
    okx.faults.rest_lag_s = 0.0
    assert ids(ask(okx, "market/trades", instId=BTC)) == [okx.ledger[BTC][0].trade_id]


def test_hidden_and_corrupt_rows(okx: FakeOKX) -> None:
    okx.prefill(BTC, 10, DAY, DAY + 10_000)
    okx.hide([FIRST_ID + 3])
    okx.corrupt(FIRST_ID + 5, {"px": ABSENT, "sz": "-1"})
    rows = {int(row["tradeId"]): row for row in ask(okx, "market/trades", instId=BTC)["data"]}
    assert sorted(rows) == [FIRST_ID + index for index in range(10) if index != 3]
    assert "px" not in rows[FIRST_ID + 5]
    assert rows[FIRST_ID + 5]["sz"] == "-1"


@pytest.mark.parametrize(
    ("kind", "status"), [("429", 429), ("50013", 429), ("50026", 500), ("503", 503), ("html", 200), ("truncated", 200)]
)
def test_rest_fails_as_it_is_told(okx: FakeOKX, kind: str, status: int) -> None:
    okx.faults.rest = {kind: 1.0}
    if status == 200:
        with pytest.raises(orjson.JSONDecodeError):
            ask(okx, "public/time")
        return
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(f"{okx.rest_url}/api/v5/public/time", timeout=RECV_S)
    assert failure.value.code == status


def test_rest_may_be_reset_or_hang_while_the_websocket_lives(okx: FakeOKX) -> None:
    okx.faults.rest = {"reset": 1.0}
    with pytest.raises(OSError, match=r"reset|closed|abort"):
        ask(okx, "public/time")
    okx.faults.rest = {"hang": 1.0}
    with pytest.raises(TimeoutError), urllib.request.urlopen(f"{okx.rest_url}/api/v5/public/time", timeout=0.2):
        pass
    with client(okx) as ws:
        subscribe(ws, BTC)


# The market


def test_the_same_seed_gives_the_same_trades() -> None:
    def sequence(seed: int) -> list[tuple[object, ...]]:
        okx = FakeOKX(seed=seed)
        okx.prefill(BTC, 3000, DAY, DAY + 1000)
        return [(trade[:4]) for trade in okx.ledger[BTC]]

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)


def test_ids_rise_by_one_except_where_told_otherwise(okx: FakeOKX) -> None:
    okx.trade(n=2, count=1)
    okx.skip_ids(5)
    okx.trade(count=2)
    okx.reset_ids(100)
    okx.trade(count=1)
    assert [trade.trade_id for trade in okx.ledger[BTC]] == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 7, FIRST_ID + 8, 100]
    assert ids(ask(okx, "market/history-trades", instId=BTC)) == [100]


def test_the_clock_starts_where_and_runs_as_fast_as_it_is_told(make_okx: Callable[..., FakeOKX]) -> None:
    okx = make_okx(start="2026-11-21T23:59:59.000Z", speed=1000.0, rate=200.0)
    wait_for(lambda: okx.ledger[BTC] and okx.ledger[BTC][-1].ts > DAY + 86_400_000 + 60_000)
    okx.settle()
    stamps = [trade.ts for trade in okx.ledger[BTC]]
    assert stamps[0] >= DAY + 86_399_000
    assert stamps == sorted(stamps)
    assert okx.now_ms() >= stamps[-1]


def test_a_long_history_is_made_and_searched_in_no_time(okx: FakeOKX) -> None:
    okx.prefill(BTC, 200_000, DAY, DAY + 86_400_000)
    assert len(okx.ledger[BTC]) == 200_000
    assert okx.markets[BTC].visible_end(-math.inf) == 200_000
    assert okx.markets[BTC].position(FIRST_ID + 123_456) == 123_456
    assert okx.markets[BTC].position(FIRST_ID + 200_000) == -1
    assert okx.markets[BTC].visible_end(time.monotonic()) == 200_000


# The judge


@pytest.fixture
def history() -> FakeOKX:
    """Return an exchange that has traded around a midnight, as aggregates of three and single trades."""
    okx = FakeOKX()
    for index in range(20):
        okx.trade(count=3 if index % 2 else 1, ts=DAY - 10_000 + index * 1000)
    return okx


def line_of(okx: FakeOKX, push: Push) -> bytes:
    moment = datetime.fromtimestamp(push.ts / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = [moment, "okx", "perp", BTC, "BTC/USDT", str(push.last_id), push.side, push.px, push.sz]
    values += [str(okx.instruments[BTC][key]) for key in KEYS[9:]]
    return orjson.dumps(dict(zip(KEYS, values, strict=True))) + b"\n"


def single(okx: FakeOKX, position: int) -> Push:
    """Return a trade of the ledger as a push of its own."""
    trade_id, px, sz, side, ts = okx.ledger[BTC][position]
    return Push(trade_id, trade_id, px, sz, side, ts, "0", 0)


def write_vault(vault: Path, okx: FakeOKX, pushes: list[Push]) -> Path:
    """Write what a perfect exporter would have written of these pushes; return the second day's file."""
    folder = vault / "raw" / "okx" / "trades_perps" / BTC
    folder.mkdir(parents=True)
    for push in pushes:
        with (folder / f"{datetime.fromtimestamp(push.ts / 1000, UTC):%Y-%m-%d}.jsonl").open("ab") as file:
            file.write(line_of(okx, push))
    return folder / "2026-11-21.jsonl"


def test_the_judge_accepts_a_perfect_vault(tmp_path: Path, history: FakeOKX) -> None:
    write_vault(tmp_path, history, history.pushes[BTC])
    assert assert_vault_equals_ledger(tmp_path, history) == (20, 40, 0)
    assert last_stored_id(tmp_path) == FIRST_ID + 39
    assert len(read_vault(tmp_path)) == 20


def test_the_judge_accepts_single_trades_instead_of_their_aggregate(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:15], *(single(history, index) for index in (29, 30, 31)), *pushes[16:]])
    assert assert_vault_equals_ledger(tmp_path, history) == (22, 40, 0)


def test_the_judge_accepts_a_loss_on_record_and_no_other(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:11], *pushes[12:]])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    lost = pushes[11]
    assert assert_vault_equals_ledger(tmp_path, history, except_ranges=[(lost.first_id, lost.last_id)]).missing == 3
    gap = dict.fromkeys(("recorded_utc", "instId", "reason", "after_id", "before_id", "after_utc", "before_utc"), "")
    gap |= {"instId": BTC, "reason": "absent", "after_id": str(lost.first_id - 1), "before_id": str(lost.last_id + 1)}
    file = tmp_path / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(orjson.dumps(gap) + b"\n")
    assert assert_vault_equals_ledger(tmp_path, history).missing == 3
    file.write_bytes(orjson.dumps(gap | {"before_id": str(lost.last_id)}) + b"\n")
    with pytest.raises(AssertionError, match=f"1 trades are lost, {lost.last_id} to {lost.last_id}"):
        assert_vault_equals_ledger(tmp_path, history)


def test_the_judge_rejects_a_missing_end(tmp_path: Path, history: FakeOKX) -> None:
    write_vault(tmp_path, history, history.pushes[BTC][:-1])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    assert assert_vault_equals_ledger(tmp_path, history, upto_id=FIRST_ID + 36).lines == 19


def test_the_judge_rejects_an_aggregate_beside_one_of_its_trades(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:11], single(history, pushes[11].first_id - FIRST_ID), *pushes[11:]])
    with pytest.raises(AssertionError, match="stored twice"):
        assert_vault_equals_ledger(tmp_path, history)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [*lines[:2], *lines[1:]], "does not rise"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "does not rise"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "torn"),
        (lambda lines: [lines[0].replace(b'"price":"8', b'"price":"9'), *lines[1:]], "is really"),
        (lambda lines: [lines[0].replace(b'"qty_contracts":"', b'"qty_contracts":"1'), *lines[1:]], "is neither"),
        (lambda lines: [lines[0].replace(b"-21T", b"-20T"), *lines[1:]], "a trade of 2026-11-20"),
        (lambda lines: [lines[0].replace(b"Z", b"0Z"), *lines[1:]], "000Z"),
        (lambda lines: [lines[0].replace(b",", b", "), *lines[1:]], "not compact"),
        (lambda lines: [lines[0].replace(b"\n", b"\r\n"), *lines[1:]], "not compact"),
        (lambda lines: [b"\n", *lines], "not JSON"),
        (lambda lines: [lines[0].replace(b'"ctVal":"0.01"', b'"ctVal":"0.1"'), *lines[1:]], "should have"),
        (lambda lines: [lines[0].replace(b'"ctVal":"0.01"', b'"ctVal":0.01'), *lines[1:]], "not all strings"),
        (lambda lines: [lines[0].replace(b',"ctType":"linear"', b""), *lines[1:]], "other keys"),
    ],
)
def test_the_judge_rejects_damaged_lines(
    tmp_path: Path, history: FakeOKX, damage: Callable[[list[bytes]], list[bytes]], complaint: str
) -> None:
    file = write_vault(tmp_path, history, history.pushes[BTC])
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AssertionError, match=complaint):
        assert_vault_equals_ledger(tmp_path, history)
