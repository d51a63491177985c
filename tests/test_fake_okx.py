"""The fake exchange held against what OKX is known to do, and its faults against what they say."""
# ruff: noqa: ANN401 # decoded JSON may be anything

import asyncio
import base64
import contextlib
import csv
import hashlib
import http.client
import io
import itertools
import math
import os
import shlex
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import trustme
from websockets.asyncio.client import connect as asyncio_connect
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    InvalidProxyMessage,
    InvalidProxyStatus,
    InvalidStatus,
)
from websockets.sync.client import ClientConnection, connect

from fake_okx import (
    ABSENT,
    BTC,
    DAY_MS,
    ETH,
    FIRST_ID,
    JUNK_FRAMES,
    STRANGE_LOCATIONS,
    FakeOKX,
    Faults,
    Proxy,
    crossing_times,
    utc_ms,
)
from harness import ROOT, wait_for

DAY = utc_ms("2026-11-21T00:00:00Z")
SUBSCRIBE: dict[str, Any] = {"op": "subscribe", "args": [{"channel": "trades", "instId": BTC}]}
RECV_S = 10.0


def ask(okx: FakeOKX, path: str, **query: object) -> Any:
    """Return the decoded answer of a REST endpoint, whatever its HTTP status."""
    text = "&".join(f"{name}={value}" for name, value in query.items())
    try:
        with urlopen(f"{okx.rest_url}/api/v5/{path}?{text}") as answer:
            return orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        return orjson.loads(error.read()) | {"status": error.code}


def urlopen(url: str | urllib.request.Request, timeout: float = RECV_S) -> http.client.HTTPResponse:
    """Ask by way of the proxy, and with the trust, of this moment's environment."""
    answer: http.client.HTTPResponse = urllib.request.build_opener().open(url, timeout=timeout)
    return answer


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
        urlopen(f"{okx.rest_url}/api/v5/public/time")
    assert failure.value.code == status


def test_rest_may_be_reset_or_hang_while_the_websocket_lives(okx: FakeOKX) -> None:
    okx.faults.rest = {"reset": 1.0}
    with pytest.raises(OSError, match=r"reset|closed|abort"):
        ask(okx, "public/time")
    okx.faults.rest = {"hang": 1.0}
    with pytest.raises(TimeoutError), urlopen(f"{okx.rest_url}/api/v5/public/time", timeout=0.2):
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


def test_hours_pass_at_once_and_are_served_like_any_others(okx: FakeOKX) -> None:
    okx.trade(count=1)
    okx.faults.rest_lag_s = 3600.0
    begin = okx.now_ms()
    okx.pass_hours(60, trades=20_000)
    assert okx.now_ms() - begin >= 60 * 3_600_000
    assert [len(ledger) for ledger in okx.ledger.values()] == [20_001, 20_000]
    stamps = [trade.ts for trade in okx.ledger[BTC]]
    assert stamps == sorted(stamps)
    assert ask(okx, "market/history-trades", instId=BTC, type=1)["data"] == [], "none before those made before it"
    okx.faults.rest_lag_s = 0.0
    page = ask(okx, "market/history-trades", instId=BTC, type=1)
    assert sorted(ids(page)) == list(range(FIRST_ID + 19_901, FIRST_ID + 20_001))


@pytest.mark.parametrize("later", range(4))
def test_times_cross_at_midnight_while_ids_rise(make_okx: Callable[..., FakeOKX], later: int) -> None:
    okx = make_okx(start=DAY + 60_000)
    for ts in [*crossing_times("2026-11-21"), *range(DAY + 1000, DAY + 1000 + later)]:
        okx.trade(ts=ts, count=1, lost=True)
    before = [trade.trade_id for trade in okx.ledger[BTC] if trade.ts < DAY]
    assert before == [FIRST_ID + 1, FIRST_ID + 3, FIRST_ID + 5]
    assert sorted(ids(ask(okx, "market/history-trades", instId=BTC, type=2, after=DAY))) == before
    page = ids(ask(okx, "market/history-trades", instId=BTC, type=1))
    assert sorted(page) == list(range(FIRST_ID, FIRST_ID + 6 + later))


# TLS, proxies, strange redirects


@pytest.fixture
def secure_okx(make_okx: Callable[..., FakeOKX], monkeypatch: pytest.MonkeyPatch) -> FakeOKX:
    """Return an exchange over TLS that whoever asks the environment trusts."""
    okx = make_okx(tls=True, start=DAY + 12 * 3_600_000)
    monkeypatch.setenv("SSL_CERT_FILE", str(okx.ca_file))
    return okx


async def subscribe_over_tls(okx: FakeOKX) -> tuple[Any, Any]:
    """Return the ack of a subscription and the push after it.

    In one thread: the client of `client` reads and writes from two, and CPython 3.11 does not guard one TLS connection
    against that. One in 400 hung.
    """
    async with asyncio_connect(okx.ws_url, compression=None) as ws:
        await ws.send(orjson.dumps(SUBSCRIBE).decode())
        return orjson.loads(await ws.recv()), orjson.loads(await ws.recv())


def test_all_of_it_is_served_over_tls(secure_okx: FakeOKX) -> None:
    okx = secure_okx
    okx.prefill(BTC, 10, DAY - DAY_MS, DAY - DAY_MS + 1000)
    assert (okx.ws_url[:6], okx.rest_url[:8], okx.archive_url[:8]) == ("wss://", "https://", "https://")
    ack, push = asyncio.run(subscribe_over_tls(okx))
    assert (ack["event"], [row["instId"] for row in push["data"]]) == ("subscribe", [BTC])
    assert ask(okx, "public/time")["code"] == "0"
    assert fetch(okx, "2026-11-20")[0] == 200
    okx.close()
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        connect(okx.ws_url, ssl=ssl.create_default_context(cadata=trustme.CA().cert_pem.bytes().decode())),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        ("works", None),
        ("refuses", InvalidProxyStatus),
        ("garbage", InvalidProxyMessage),
        ("closes", OSError),
        ("plain text", OSError),
        ("untrusted", ssl.SSLCertVerificationError),
    ],
)
def test_a_proxy_does_what_its_kind_says(
    secure_okx: FakeOKX, kind: str, failure: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure_okx.trade()
    with Proxy(kind) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        if failure is None:
            assert asyncio.run(subscribe_over_tls(secure_okx))[0]["event"] == "subscribe"
            assert ask(secure_okx, "public/time")["code"] == "0"
        else:
            with pytest.raises(failure):
                asyncio.run(subscribe_over_tls(secure_okx))
        assert proxy.targets == [f"127.0.0.1:{secure_okx.port}"] * (2 if failure is None else 1)


def test_a_proxy_passes_on_plain_http(okx: FakeOKX, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert ask(okx, "public/time")["code"] == "0"
        assert len(proxy.targets) == 1


@pytest.mark.parametrize("location", STRANGE_LOCATIONS)
def test_requests_and_upgrades_are_redirected_anywhere(okx: FakeOKX, location: str) -> None:
    okx.faults.rest = {f"redirect {location}": 1.0}
    okx.faults.ws_refuse = f"redirect {location}"
    okx.faults.archive = {"all": f"redirect {location}"}
    for url in ("/api/v5/public/time", "/ws/v5/public", urlsplit(archive_url(okx, "2026-11-20")).path):
        asked = http.client.HTTPConnection(okx.host, okx.port, timeout=RECV_S)
        asked.request("GET", url, headers={"User-Agent": "test"})
        answer = asked.getresponse()
        assert (answer.status, answer.headers["Location"]) == (302, location)
        asked.close()


# How far REST reaches


@pytest.mark.parametrize("kind", [1, 2])
def test_history_trades_reach_only_so_far_back(make_okx: Callable[..., FakeOKX], kind: int) -> None:
    okx = make_okx(start=DAY)
    okx.prefill(BTC, 4000, DAY - 4 * DAY_MS, DAY)
    okx.faults.rest_reach_days = 2.0
    ledger = okx.ledger[BTC]
    oldest = next(index for index, trade in enumerate(ledger) if trade.ts > DAY - 2 * DAY_MS + RECV_S * 1000)

    def page(position: int) -> list[int]:
        after = ledger[position].trade_id if kind == 1 else ledger[position].ts
        answer = ask(okx, "market/history-trades", instId=BTC, type=kind, after=after)
        return sorted(trade_id - FIRST_ID for trade_id in ids(answer))

    assert page(oldest + 1) == [oldest]
    assert page(oldest) == []
    okx.faults.rest_beyond = "newer"
    assert page(oldest + 1) == [oldest]
    newer = page(oldest - 1000)
    assert len(newer) == 100
    assert newer[0] > 3000
    old = ask(okx, "market/history-candles", instId=BTC, after=DAY - 4 * DAY_MS + 120_000, limit=2)["data"]
    assert int(old[0][0]) == DAY - 4 * DAY_MS + 60_000, "candles reach back for years"


def test_the_clock_that_okx_tells_may_be_another(make_okx: Callable[..., FakeOKX]) -> None:
    okx = make_okx(start=DAY)
    okx.faults.time_offset_ms = 5 * DAY_MS
    assert int(ask(okx, "public/time")["data"][0]["ts"]) >= DAY + 5 * DAY_MS
    assert okx.now_ms() < DAY + DAY_MS


# The archives


def archive_url(okx: FakeOKX, day: str, inst_id: str = BTC) -> str:
    return f"{okx.archive_url}/{day.replace('-', '')}/{inst_id}-trades-{day}.zip"


def fetch(okx: FakeOKX, day: str, inst_id: str = BTC, method: str = "GET") -> tuple[int, Message, bytes]:
    """Return status, headers and body of what is answered to a request for an archive."""
    request = urllib.request.Request(archive_url(okx, day, inst_id), method=method)
    try:
        with urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def unzip(content: bytes) -> bytes:
    """Return the CSV, after a look at the checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert len(file.namelist()) == 1
        return file.read(file.namelist()[0])


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(unzip(content).decode())))


@pytest.fixture
def past(make_okx: Callable[..., FakeOKX]) -> FakeOKX:
    """Return an exchange with trades of both instruments from the 18th on; it is noon of the 21st."""
    okx = make_okx(start=DAY + 12 * 3_600_000)
    for inst_id in okx.markets:
        okx.prefill(inst_id, 4000, DAY - 3 * DAY_MS, DAY + 12 * 3_600_000)
    return okx


def test_an_archive_holds_a_day_of_utc_plus_8_as_printed_floats(past: FakeOKX) -> None:
    status, headers, content = fetch(past, "2026-11-20")
    text = unzip(content).decode()
    trades = [trade for trade in past.ledger[BTC] if DAY - 8 * 3_600_000 <= trade.ts + DAY_MS < DAY + 16 * 3_600_000]
    assert status == 200
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert text.startswith("instrument_name,trade_id,side,price,size,created_time,source\r\nBTC-USDT-SWAP,")
    rows = rows_of(content)
    assert [int(row["trade_id"]) for row in rows] == [trade.trade_id for trade in trades]
    for row, trade in zip(rows, trades, strict=True):
        assert (row["side"], row["created_time"], row["source"]) == (trade.side, str(trade.ts), "0")
        assert (row["price"], row["size"]) == (str(float(trade.px)), str(float(trade.sz)))
    days = [ids_of for day in ("18", "19", "20") for ids_of in rows_of(fetch(past, f"2026-11-{day}")[2])]
    numbers = [int(row["trade_id"]) for row in days]
    assert numbers == list(range(FIRST_ID, FIRST_ID + len(numbers))), "on without a break from file to file"


def test_an_archive_appears_hours_after_its_day(past: FakeOKX) -> None:
    past.set_clock("2026-11-20T23:29:00Z")
    assert fetch(past, "2026-11-20", method="HEAD")[0] == 404
    past.set_clock("2026-11-20T23:30:00Z")
    assert fetch(past, "2026-11-20", method="HEAD")[0] == 200
    past.faults.archive_after_h = 48.0
    assert fetch(past, "2026-11-20")[0] == 404
    assert {path for _, path, _ in past.requests} == {urlsplit(archive_url(past, "2026-11-20")).path}


@pytest.mark.parametrize(
    ("day", "inst_id"), [("2026-11-20", "NO-SUCH-SWAP"), ("2025-01-01", BTC), ("2026-13-45", BTC), ("20261120", BTC)]
)
def test_what_is_no_archive_is_not_there(past: FakeOKX, day: str, inst_id: str) -> None:
    assert fetch(past, day, inst_id)[0] == 404


def test_who_does_not_say_what_he_is_gets_no_archive(past: FakeOKX) -> None:
    asked = http.client.HTTPConnection(past.host, past.port, timeout=RECV_S)
    asked.request("GET", urlsplit(archive_url(past, "2026-11-20")).path)
    assert asked.getresponse().status == 403
    asked.close()


def test_an_archive_follows_the_ledger_and_what_was_done_to_its_rows(past: FakeOKX) -> None:
    first = rows_of(fetch(past, "2026-11-19")[2])
    begin = int(first[0]["trade_id"])
    past.spoil_archive([begin + 1, begin + 2])
    past.spoil_archive([begin + 3], {"size": "0.16186999999999999"})
    past.spoil_archive([begin + 4], {"source": ABSENT})
    rows = rows_of(fetch(past, "2026-11-19")[2])
    assert [int(row["trade_id"]) - begin for row in rows[:4]] == [0, 3, 4, 5]
    assert [rows[1]["size"], rows[2].get("source")] == ["0.16186999999999999", None]
    past.faults = Faults()
    assert rows_of(fetch(past, "2026-11-19")[2]) == first
    today = len(rows_of(past.archive_file(BTC, "2026-11-21")[0].read_bytes()))
    past.trade(count=5)
    assert len(rows_of(past.archive_file(BTC, "2026-11-21")[0].read_bytes())) == today + 5


@pytest.mark.parametrize(
    ("kind", "status"), [("missing", 404), ("refused", 403), ("429", 429), ("500", 500), ("503", 503), ("html", 200)]
)
def test_an_archive_is_refused_on_its_day_and_no_other(past: FakeOKX, kind: str, status: int) -> None:
    past.faults.archive = {"2026-11-20": kind}
    assert fetch(past, "2026-11-20")[::2] == (status, b"<html>No</html>")
    assert rows_of(fetch(past, "2026-11-19")[2])
    past.faults = Faults(archive_often={kind: 1.0})
    assert fetch(past, "2026-11-19")[0] == status


def test_an_archive_comes_in_part_or_not_at_all(past: FakeOKX) -> None:
    whole = fetch(past, "2026-11-20")[2]
    past.faults.archive = {"all": "cut midway"}
    with pytest.raises(http.client.IncompleteRead) as cut:
        fetch(past, "2026-11-20")
    assert whole.startswith(cut.value.partial)
    assert len(cut.value.partial) == len(whole) // 2
    past.faults.archive = {"all": "stall midway"}
    with urlopen(archive_url(past, "2026-11-20"), timeout=0.2) as answer:
        assert answer.read(len(whole) // 2) == whole[: len(whole) // 2]
        with pytest.raises(TimeoutError):
            answer.read(1)
    past.faults.archive = {"all": "reset"}
    with pytest.raises(OSError, match=r"reset|closed|abort"):
        fetch(past, "2026-11-20")
    past.faults.archive = {"all": "hang"}
    with pytest.raises(TimeoutError), urlopen(archive_url(past, "2026-11-20"), timeout=0.2):
        pass
    past.faults = Faults(archive_bytes_per_s=len(whole) * 4)
    assert fetch(past, "2026-11-20")[2] == whole


def test_the_checksum_is_wrong_or_not_sent(past: FakeOKX) -> None:
    right = fetch(past, "2026-11-20")[1]["Content-MD5"]
    past.faults.archive = {"2026-11-20": "wrong MD5", "2026-11-19": "no MD5"}
    assert fetch(past, "2026-11-20")[1]["Content-MD5"] not in (right, None)
    assert fetch(past, "2026-11-19")[1]["Content-MD5"] is None


def zip_failure(content: bytes) -> str:
    try:
        unzip(content)
    except zipfile.BadZipFile as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "failure"), [("not a zip", "not a zip file"), ("truncated", "not a zip file"), ("bad CRC", "Bad CRC-32")]
)
def test_a_damaged_zip_has_a_checksum_that_is_right(past: FakeOKX, kind: str, failure: str) -> None:
    past.faults.archive = {"all": kind}
    status, headers, content = fetch(past, "2026-11-20")
    assert status == 200
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert failure in zip_failure(content)


@pytest.mark.parametrize(("kind", "declared"), [("bomb", 66 * 2**26), ("hidden bomb", 1_000_000)])
def test_a_bomb_is_small_and_unpacks_to_more_than_4_gb(past: FakeOKX, kind: str, declared: int) -> None:
    past.faults.archive = {"all": kind}
    content = fetch(past, "2026-11-20")[2]
    assert len(content) < 6_000_000
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        (info,) = file.infolist()
        assert info.file_size >= declared
        with file.open(info) as member:
            assert member.readline().startswith(b"instrument_name,")
            assert member.read(100_000) == bytes(100_000)
    blocks = content.split(b"\x00\x00\xff\xff")[1:-1]  # what stands between two flushes
    assert blocks == blocks[:1] * 66
    assert len(zlib.decompressobj(-15).decompress(blocks[0])) == 2**26


def test_a_zip_has_other_things_in_it_than_it_should(past: FakeOKX) -> None:
    def names(kind: str) -> list[str]:
        past.faults.archive = {"all": kind}
        with zipfile.ZipFile(io.BytesIO(fetch(past, "2026-11-20")[2])) as file:
            return file.namelist()

    usual = f"{BTC}-trades-2026-11-20.csv"
    assert names("two members") == [usual, f"2_{usual}"]
    assert names("path outside") == [f"../{usual}"]
    assert names("other instrument") == [f"{ETH}-trades-2026-11-20.csv"]
    assert {row["instrument_name"] for row in rows_of(fetch(past, "2026-11-20")[2])} == {ETH}
    assert names("other day") == [f"{BTC}-trades-2026-11-19.csv"]
    other = fetch(past, "2026-11-20")[2]
    past.faults = Faults()
    assert rows_of(other) == rows_of(fetch(past, "2026-11-19")[2])


GBK = "instrument_name/交易对,trade_id/撮合id,side/交易方向,price/价格,size/数量,created_time/成交时间"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("empty", lambda _: b""),
        ("no rows", lambda lines: lines[0]),
        ("no header", lambda lines: b"".join(lines[1:])),
        ("unknown header", lambda lines: b"".join([b"symbol,id,taker,px,qty,time,flag\r\n", *lines[1:]])),
        ("old header", lambda lines: b"".join(line.rpartition(b",")[0] + b"\r\n" for line in lines)),
        ("GBK header", lambda lines: GBK.encode("gbk") + b"".join(b"\r\n" + line[:-4] for line in lines[1:]) + b"\r\n"),
        (
            "moved columns",
            lambda lines: b"".join(b",".join(line.split()[0].split(b",")[::-1]) + b"\r\n" for line in lines),
        ),
        ("BOM", lambda lines: b"\xef\xbb\xbf" + b"".join(lines)),
        ("LF", lambda lines: b"".join(lines).replace(b"\r\n", b"\n")),
        ("upper case", lambda lines: b"".join(lines).replace(b",buy,", b",BUY,").replace(b",sell,", b",SELL,")),
        ("doubled", lambda lines: b"".join([lines[0], *(line * 2 for line in lines[1:])])),
        ("out of order", lambda lines: b"".join([*lines[:2], lines[3], lines[2], *lines[4:]])),
        ("holes", lambda lines: b"".join([*lines[:2], *lines[3:]])),
    ],
)
def test_a_csv_is_spoiled_as_it_is_told(
    make_okx: Callable[..., FakeOKX], kind: str, expected: Callable[[list[bytes]], bytes]
) -> None:
    okx = make_okx(start=DAY)
    okx.prefill(BTC, 100, DAY - DAY_MS, DAY - DAY_MS + 60_000)
    lines = unzip(fetch(okx, "2026-11-20")[2]).splitlines(keepends=True)
    okx.faults.archive = {"all": kind}
    assert unzip(fetch(okx, "2026-11-20")[2]) == expected(lines)


def test_some_rows_of_a_csv_are_not_to_be_believed(past: FakeOKX) -> None:
    rows = rows_of(fetch(past, "2026-11-20")[2])
    for kind, price in (("noise", "0000000001"), ("bad rows", "-1.0")):
        past.faults.archive = {"all": kind}
        spoiled = rows_of(fetch(past, "2026-11-20")[2])
        changed = [index for index, row in enumerate(spoiled) if row != rows[index]]
        assert changed == [1, 1001]
        assert all(spoiled[index]["price"].endswith(price) for index in changed)
    past.faults.archive = {"all": "short rows"}
    assert rows_of(fetch(past, "2026-11-20")[2])[1]["source"] is None
    past.faults.archive = {"all": "both sides"}
    pair = rows_of(fetch(past, "2026-11-20")[2])[:2]
    assert pair[0]["trade_id"] == pair[1]["trade_id"]
    assert {row["side"] for row in pair} == {"BUY", "SELL"}


# The command line


def test_the_command_line_offers_a_vault_of_its_own_and_a_past(tmp_path: Path) -> None:
    options = "--port 0 --days 2 --start 2026-11-21T12:00:00Z"
    command = [sys.executable, "-u", "tests/fake_okx.py", *options.split()]
    env = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env)
    with process:
        lines = [process.stdout.readline() for _ in range(5)] if process.stdout else []
        process.terminate()
    words = shlex.split(lines[2])
    shown = dict(itertools.pairwise(words[2:]))
    assert words[:2] == ["python", "trades_exporter.py"]
    assert Path(shown["--vault"]).parent.parent == tmp_path
    assert Path(shown["--log-file"]).parent == Path(shown["--vault"]).parent
    assert shown["--archive-url"].startswith(shown["--rest-url"])
    assert "--since 2026-11-19" in lines[4]
