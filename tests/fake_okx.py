"""A fake OKX on loopback: REST and the public WebSocket on one port, behaving as OKX does, with faults to switch on.

    with FakeOKX(seed=1, rate=50) as okx:
        ... okx.ws_url, okx.rest_url, okx.ledger["BTC-USDT-SWAP"], okx.faults.lose = 0.1, okx.half_open() ...

By hand, for people without access to OKX: `python tests/fake_okx.py --port 8900`.

The parts, in the order below: the market (one instrument: its trades, pushes and candles; no socket, no clock), the
faults (one switch a field), the exchange (REST, WebSocket, the clock and the thread they live in), the command line.

The exchange runs in a thread of its own. Its methods may be called from any thread; `faults`, `rates` and `instruments`
may be changed and `ledger`, `pushes`, `requests` and `received` read at any time.
"""

import argparse
import asyncio
import contextlib
import copy
import heapq
import itertools
import math
import random
import re
import signal
import struct
import threading
import time
import zlib
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple, Self, TypeVar

import orjson
from aiohttp import WSMsgType, web

BTC = "BTC-USDT-SWAP"
ETH = "ETH-USDT-SWAP"
FIRST_ID = 2_978_601_964  # the id of the first BTC trade, of the size real ones have
START = "2026-11-21T12:00:00Z"  # the exchange's time when it opens, unless told otherwise
HISTORY_DAYS = 90  # how far back history-trades goes
REST_LIMITS = {  # requests in 2 s per IP, and the largest `limit`
    "/api/v5/public/instruments": (20, 0),
    "/api/v5/market/trades": (100, 500),
    "/api/v5/market/history-trades": (20, 100),
    "/api/v5/market/history-candles": (20, 300),
    "/api/v5/public/time": (10, 0),
}
CONNECTIONS_PER_S = 3  # new WebSocket connections per IP
OPERATIONS_PER_HOUR = 480  # subscribe and unsubscribe requests per connection
MAX_REQUEST_BYTES = 65_536  # of one WebSocket message from the client; a larger one is answered by close code 1009
SLOW_READER_BYTES = 64_000_000  # unsent bytes at which a connection is closed with 4005
TICK_S = 0.01  # trades are made and sent in batches, once per tick
MAX_STALL_S = 0.5  # of trading made up for after this process was stopped or starved
CONTROL_S = 120.0  # deadline of one control call into the exchange's thread
SHUFFLE_S = 0.2  # a shuffled push comes this late at most; the exporter waits 0.25 s for late ones
ABSENT = object()  # as a field's value: the field is left out

INSTRUMENT_ROW: dict[str, object] = orjson.loads(
    '{"alias":"","auctionEndTime":"","baseCcy":"","category":"1","contTdSwTime":"1611916860000","ctMult":"1",'
    '"ctType":"linear","ctVal":"0.01","ctValCcy":"BTC","expTime":"","floatPxLmtPct":"0.005","freq":"",'
    '"futureSettlement":false,"groupId":"4","initPxLmtPct":"0.02","instCategory":"1","instFamily":"BTC-USDT",'
    '"instId":"BTC-USDT-SWAP","instIdCode":10459,"instType":"SWAP","lever":"100","listTime":"1573557408000",'
    '"longPosRemainingQuota":"","lotSz":"0.01","maxIcebergSz":"100000000.0000000000000000","maxLmtAmt":"20000000",'
    '"maxLmtSz":"100000000","maxMktAmt":"","maxMktSz":"35000","maxPlatOICoinLmt":"","maxPlatOILmt":"",'
    '"maxPxLmtPct":"0.01","maxStopSz":"35000","maxTriggerSz":"100000000.0000000000000000",'
    '"maxTwapSz":"100000000.0000000000000000","method":"","minSz":"0.01","openType":"call_auction","optType":"",'
    '"posLmtAmt":"250000","posLmtPct":"30","preMktSwTime":"","quoteCcy":"","rpiMinLevel":"3","rpiMinPxBand":"20",'
    '"ruleType":"normal","seriesId":"","settleCcy":"USDT","shortPosRemainingQuota":"","state":"live","stk":"",'
    '"tickSz":"0.1","tradeQuoteCcyList":[],"uly":"BTC-USDT","upcChg":[]}'
)
SENSELESS_COUNTS = (ABSENT, "0", "-1", "abc", "", "1.5", "99999999999999999999", None)
JUNK_FRAMES: dict[str, tuple[bytes, int]] = {  # name: payload, WebSocket opcode (1 text, 2 binary)
    "not JSON": (b"hello", 1),
    "empty": (b"", 1),
    "wrong UTF-8": (b'{"arg":{"channel":"trades","instId":"\xff\xfe"},"data":[]}', 1),
    "binary": (bytes(range(256)), 2),
    "deep nesting": (b"[" * 50_000 + b"]" * 50_000, 1),
    "900 KB": (b'{"event":"news","text":"' + b"x" * 900_000 + b'"}', 1),
    "a number": (b"42", 1),
    "a list": (b"[]", 1),
    "unknown event": (b'{"event":"party","connId":"a4d3ae55"}', 1),
    "another channel": (
        b'{"arg":{"channel":"tickers","instId":"BTC-USDT-SWAP"},"data":[{"instId":"BTC-USDT-SWAP","last":"1"}]}',
        1,
    ),
    "error event": (b'{"event":"error","code":"64007","msg":"Internal error.","connId":"a4d3ae55"}', 1),
    "data that is no list": (b'{"arg":{"channel":"trades","instId":"BTC-USDT-SWAP"},"data":{}}', 1),
}

T = TypeVar("T")
Row = dict[str, object]


# ---------------------------------------------------------------------------------------------------- the market


class Trade(NamedTuple):
    """One single trade, as REST serves it; `ts` in ms."""

    trade_id: int
    px: str
    sz: str
    side: str
    ts: int


class Push(NamedTuple):
    """What the WebSocket says at once: the trades first_id … last_id of one taker order at one price."""

    first_id: int
    last_id: int
    px: str
    sz: str
    side: str
    ts: int
    source: str
    seq_id: int

    @property
    def singles(self) -> int:
        """How many single trades it holds; `count` on the wire."""
        return self.last_id - self.first_id + 1


class View(NamedTuple):
    """What REST shows of a ledger at a moment: its first `end` trades, none before `oldest_ts`, no hidden ones."""

    end: int
    oldest_ts: int
    is_hidden: Callable[[Trade], bool]

    def newest_first(self, ledger: list[Trade], start: int, end: int) -> Iterator[Trade]:
        """Walk down from position end - 1 to start."""
        for index in range(min(end, self.end) - 1, start - 1, -1):
            if ledger[index].ts < self.oldest_ts:
                return
            if not self.is_hidden(ledger[index]):
                yield ledger[index]


SCALE_DIGITS = 12  # prices and sizes are computed as integers of 1e-12: exact, and fast
SCALE = 10**SCALE_DIGITS
trade_id_of = attrgetter("trade_id")
ts_of = attrgetter("ts")


@lru_cache(maxsize=100_000)  # equal texts share one string: a ledger of millions stays small
def decimal_text(scaled: int) -> str:
    """Write as OKX does: no exponent, no zeros at the end ("83725.9", "5", "0.05")."""
    whole, part = divmod(scaled, SCALE)
    return f"{whole}.{part:0{SCALE_DIGITS}d}".rstrip("0").rstrip(".")


@lru_cache(maxsize=100_000)
def scaled_value(text: str) -> int:
    """Read a plain decimal as an integer of 1e-12."""
    return int(Decimal(text) * SCALE)


@dataclass(slots=True)
class Candle:
    """One minute's trades added up, in integers of 1e-12."""

    open: int
    high: int
    low: int
    close: int
    contracts: int
    quote: int


class Market:
    """One instrument: a seeded random walk, every trade it made, in order, and every push that told of them.

    Given the seed, the sequence of ids, prices, sizes, sides and counts is always the same; only `ts` is the caller's.
    """

    def __init__(self, inst_id: str, *, seed: int, first_id: int, start_px: str, tick: str, ct_val: str) -> None:
        self.inst_id = inst_id
        self.ledger: list[Trade] = []
        self.pushes: list[Push] = []
        self.next_id = first_id
        self.epochs = [0]  # where in the ledger ids began anew; one entry unless reset_ids was called
        self._random = random.Random(f"{seed} {inst_id}")
        self._px = scaled_value(start_px)
        self._tick = scaled_value(tick)
        self._ct_val = scaled_value(ct_val)
        self._seq_id = 344_430_848_209
        self._made_at: list[float] = []  # per order: monotonic time, and the ledger's length after it
        self._made_end: list[int] = []
        self._candles: dict[int, Candle] = {}
        self._minutes: list[int] = []  # the keys of _candles, sorted

    # Making trades

    def make_order(
        self, ts: int, made_at: float, *, count: int = 0, px: str = "", sz: str = "", side: str = ""
    ) -> Push:
        """One taker order at one price: `count` single trades (0: as the market likes), and the push of them all."""
        chance = self._random
        count = count or self.usual_count()
        if not px:
            self._px = max(self._tick, self._px + self._tick * chance.choice((-3, -2, -1, 0, 0, 0, 1, 2, 3)))
            px = decimal_text(self._px)
        side = side or chance.choice(("buy", "sell"))
        price = scaled_value(px)
        total = 0
        first_id = self.next_id
        for trade_id in range(first_id, first_id + count):
            text = sz or decimal_text((1 + int(chance.expovariate(1 / 120))) * (SCALE // 100))
            total += scaled_value(text)
            self.ledger.append(Trade(trade_id, px, text, side, ts))
        self.next_id += count
        self._made_at.append(made_at)
        self._made_end.append(len(self.ledger))
        self._add_to_candle(ts, price, total)
        self._seq_id += chance.randrange(40)
        push_sz = self.ledger[-1].sz if count == 1 else decimal_text(total)
        source = "1" if chance.random() < 0.02 else "0"
        push = Push(first_id, self.next_id - 1, px, push_sz, side, ts, source, self._seq_id)
        self.pushes.append(push)
        return push

    def add_push(self, first_id: int, last_id: int, source: str = "0") -> Push:
        """Another push of trades that exist already; they must be of one order, as those of every push are."""
        start = self.position(first_id)
        trades = self.ledger[start : start + last_id - first_id + 1]
        if trades[-1].trade_id != last_id or len({trade[1:2] + trade[3:] for trade in trades}) != 1:
            raise ValueError(f"{first_id} to {last_id} are not trades of one order")
        sz = trades[0].sz if len(trades) == 1 else decimal_text(sum(scaled_value(trade.sz) for trade in trades))
        _, px, _, side, ts = trades[0]
        push = Push(first_id, last_id, px, sz, side, ts, source, self._seq_id)
        self.pushes.append(push)
        return push

    def reset_ids(self, first_id: int) -> None:
        """Give the next trade this id, lower than those before."""
        self.next_id = first_id
        self.epochs.append(len(self.ledger))

    def usual_count(self) -> int:
        """How many trades an order takes: 2 on average, now and then hundreds."""
        dice = self._random.random()
        if dice < 0.7:
            return 1
        return self._random.randint(100, 600) if dice > 0.9985 else 2 + int(self._random.expovariate(1 / 1.5))

    def _add_to_candle(self, ts: int, price: int, contracts: int) -> None:
        minute = ts - ts % 60_000
        candle = self._candles.get(minute)
        if candle is None:
            candle = self._candles[minute] = Candle(price, price, price, price, 0, 0)
            insort(self._minutes, minute)
        candle.high = max(candle.high, price)
        candle.low = min(candle.low, price)
        candle.close = price
        candle.contracts += contracts
        candle.quote += price * contracts

    # Looking things up

    def position(self, trade_id: int, ts: int | None = None) -> int:
        """Where this trade stands in the ledger (the newest of that id, or the one with this ts); -1: nowhere."""
        ends = [*self.epochs[1:], len(self.ledger)]
        for start, end in zip(reversed(self.epochs), reversed(ends), strict=True):
            at = bisect_left(self.ledger, trade_id, start, end, key=trade_id_of)
            if at < end and self.ledger[at].trade_id == trade_id and ts in (None, self.ledger[at].ts):
                return at
        return -1

    def visible_end(self, made_before: float) -> int:
        """Return how many trades of the ledger were made up to this monotonic time."""
        orders = bisect_right(self._made_at, made_before)
        return self._made_end[orders - 1] if orders else 0

    def page_by_id(self, view: View, after: int | None, above: int, limit: int) -> list[Trade]:
        """Return the newest `limit` trades with above < id < after."""
        start, end = self.epochs[-1], len(self.ledger)
        if after is not None:
            end = bisect_left(self.ledger, after, start, end, key=trade_id_of)
        trades = view.newest_first(self.ledger, start, end)
        return list(itertools.islice(itertools.takewhile(lambda trade: trade.trade_id > above, trades), limit))

    def page_by_time(self, view: View, after: int | None, limit: int, chance: random.Random) -> list[Trade]:
        """Return the newest `limit` trades with ts < after; of the oldest ms any part, which the limit may cut."""
        end = len(self.ledger) if after is None else bisect_left(self.ledger, after, key=ts_of)
        trades = view.newest_first(self.ledger, 0, end)
        page = list(itertools.islice(trades, limit))
        page += itertools.takewhile(lambda trade: trade.ts == page[-1].ts, trades)
        return shuffle_milliseconds(page, chance)[:limit]

    def candles(self, now_ms: int, after: int | None, before: int, limit: int) -> list[list[str]]:
        """1-minute candles with before < ts < after, newest first; a quiet minute repeats the last close."""
        newest = now_ms if after is None else min(now_ms, after - 1)
        rows: list[list[str]] = []
        minute = newest - newest % 60_000
        while len(rows) < limit and minute > before and self._minutes and minute >= self._minutes[0]:
            known = self._minutes[bisect_right(self._minutes, minute) - 1]
            candle = self._candles[known]
            if known == minute:
                contracts, quote = candle.contracts, candle.quote
                prices = (candle.open, candle.high, candle.low, candle.close)
            else:
                contracts, quote, prices = 0, 0, (candle.close,) * 4
            volumes = (contracts, contracts * self._ct_val // SCALE, quote * self._ct_val // SCALE // SCALE)
            confirm = "1" if minute + 60_000 <= now_ms else "0"
            rows.append([str(minute), *map(decimal_text, prices + volumes), confirm])
            minute -= 60_000
        return rows


def shuffle_milliseconds(trades: list[Trade], chance: random.Random) -> list[Trade]:
    """Newest ms first, and in any order within one: so OKX answers."""
    return sorted(trades, key=lambda trade: (-trade.ts, chance.random()))


# ---------------------------------------------------------------------------------------------------- the faults


@dataclass
class Faults:
    """The switches of what can go wrong; as they stand here, all is well. Probabilities are from 0 to 1.

    One-shot faults (closing, half-open, junk, …) are methods of FakeOKX.
    """

    # Pushes
    lose: float = 0.0  # probability that a push is never sent
    muted: dict[str, float] = field(default_factory=dict)  # instId: monotonic time until which all its pushes are lost
    double: float = 0.0  # probability that a push is sent twice, the second time up to delay_s later
    delay: float = 0.0  # probability that a push comes late, by …
    delay_s: tuple[float, float] = (0.3, 2.0)  # … this much
    shuffle: float = 0.0  # probability that a push comes up to SHUFFLE_S late, so that neighbours overtake it
    straddle: float = 0.0  # probability that an order is told by two pushes whose ids overlap
    twin: float = 0.0  # probability that a part of a push is pushed again, with the other `source`
    bad_count: float = 0.0  # … that `count` is missing or senseless; not where pushes overlap: nobody could tell then
    skip_id: float = 0.0  # probability that before an order one id is left out: it never exists
    several_rows: float = 0.0  # probability that a push shares its frame with the next one of the instrument
    # Connections
    ws_refuse: str = ""  # "503", "stall" (no answer at all), "reset" or "close": so every new connection is treated
    ws_script: deque[str] = field(default_factory=deque)  # the same for one attempt each, then "" = works
    reject_code: str = ""  # subscriptions are refused with this code …
    reject_left: float = math.inf  # … so many more times
    no_ack: set[str] = field(default_factory=set)  # subscriptions of these instruments come to nothing, silently
    ack_delay_s: float = 0.0
    live_delay_s: float = 0.0  # from a subscription's ack and the latest push to the pushes of the market
    always_notice: bool = False  # each connection hears of an upgrade (64008) as soon as it is subscribed
    # REST
    rest_only: str = ""  # the REST faults concern only paths that hold this; latency concerns all
    rest: dict[str, float] = field(default_factory=dict)  # kind (see REST_FAILURES): probability per request
    rest_latency_s: float = 0.0  # each answer is made at once and sent so much later …
    rest_latency_jitter_s: float = 0.0  # … plus up to this much
    rest_lag_s: float = 0.0  # trades younger than this are not in REST yet …
    rest_lag_jitter_s: float = 0.0  # … plus up to this, drawn for each answer: a later one may be older
    rest_partial: float = 0.0  # probability that an answer with trades lacks some of its rows
    rest_hidden: dict[tuple[str, int], float] = field(default_factory=dict)  # (instId, id): until; see hide()
    rest_corrupt: dict[tuple[str, int], tuple[Row, float]] = field(default_factory=dict)  # see corrupt()
    unconfirmed: set[int] = field(default_factory=set)  # minutes (ts) whose candle is never confirmed


REST_FAILURES: dict[str, tuple[int, bytes]] = {  # HTTP status and body; "reset", "hang" and "truncated" are built in
    "429": (429, b'{"code":"50011","msg":"Too Many Requests","data":[]}'),
    "50011": (200, b'{"code":"50011","msg":"Too Many Requests","data":[]}'),
    "50013": (429, b'{"code":"50013","msg":"Systems are busy. Please try again later.","data":[]}'),
    "50001": (503, b'{"code":"50001","msg":"Service temporarily unavailable. Try again later.","data":[]}'),
    "50026": (500, b'{"code":"50026","msg":"System error. Try again later.","data":[]}'),
    "50004": (400, b'{"code":"50004","msg":"API endpoint request timeout.","data":[]}'),
    "500": (500, b"Internal Server Error"),
    "503": (503, b"<html><body><h1>503 Service Unavailable</h1></body></html>"),
    "html": (200, b"<!DOCTYPE html><html><body>Checking your browser</body></html>"),
    "empty": (200, b""),
    "no rows": (200, b'{"code":"0","msg":"","data":[]}'),
    "no data": (200, b'{"code":"0","msg":""}'),
    "data that is no list": (200, b'{"code":"0","msg":"","data":{}}'),
    "a list": (200, b"[]"),
    "null": (200, b"null"),
}


# -------------------------------------------------------------------------------------------------- the exchange


class Connection:
    """One WebSocket connection. Frames are written by ourselves, many at once: that is what makes the fake fast."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport, conn_id: str) -> None:
        self.ws = ws
        self.transport = transport
        self.conn_id = conn_id
        self.subscribed: set[str] = set()
        self.operations: deque[float] = deque()
        self.half_open = False
        self.moved = time.monotonic()  # when a message came or went last

    def send(self, payload: bytes, opcode: int = 1) -> None:
        """Send one message."""
        self.write(websocket_frame(payload, opcode))

    def write(self, frames: bytes) -> None:
        """Send ready frames."""
        if frames and not self.half_open and not self.transport.is_closing():
            self.transport.write(frames)
            self.moved = time.monotonic()


def websocket_frame(payload: bytes, opcode: int = 1, *, final: bool = True) -> bytes:
    """One unmasked frame (RFC 6455, section 5.2): a whole message, or a fragment where it is not the final one."""
    first = 0x80 * final | opcode
    if len(payload) < 126:
        head = struct.pack("!BB", first, len(payload))
    elif len(payload) < 65_536:
        head = struct.pack("!BBH", first, 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, 127, len(payload))
    return head + payload


def utc_ms(text: str) -> int:
    """'2026-11-21T23:59:50Z' in ms since 1970."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def instrument_row(inst_id: str, number: int) -> Row:
    """Return the instrument's row for `/public/instruments`."""
    base = inst_id.partition("-")[0]
    family = inst_id.removesuffix("-SWAP")
    row = copy.deepcopy(INSTRUMENT_ROW)
    row |= {"instId": inst_id, "instFamily": family, "uly": family, "ctValCcy": base, "instIdCode": 10459 + 2 * number}
    if inst_id != BTC:
        row |= {"ctVal": "0.1", "tickSz": "0.01", "floatPxLmtPct": "0.01", "maxPxLmtPct": "0.02", "maxMktSz": "90000"}
    return row


class FakeOKX:
    """The exchange. A context manager; inside, it trades `rate` pushes a second and instrument, and serves them.

    `start` is the exchange's time now (ms, or ISO); it runs `speed` times as fast as ours.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        rate: float = 0.0,
        instruments: Sequence[str] = (BTC, ETH),
        start: int | str = START,
        speed: float = 1.0,
        first_id: int | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        idle_s: float = 30.0,
    ) -> None:
        self.host = host
        self.port = port
        self.idle_s = idle_s
        self.faults = Faults()
        self.rates: dict[str, float] = dict.fromkeys(instruments, rate)
        self.instruments = {inst_id: instrument_row(inst_id, number) for number, inst_id in enumerate(instruments)}
        self.markets = {
            inst_id: Market(
                inst_id,
                seed=seed,
                first_id=first_id or (FIRST_ID if inst_id == BTC else 10**9 + zlib.crc32(inst_id.encode()) % 10**9),
                start_px="83725.9" if inst_id == BTC else "2912.47",
                tick=str(row["tickSz"]),
                ct_val=str(row["ctVal"]),
            )
            for inst_id, row in self.instruments.items()
        }
        self.requests: list[tuple[float, str, dict[str, str]]] = []  # every REST request: monotonic time, path, query
        self.throttled = 0  # how many of them were over the limit
        self.connections: list[Connection] = []  # the open ones
        self.connects = 0  # WebSocket connections ever accepted
        self.received: deque[str] = deque(maxlen=10_000)  # the newest messages of clients
        self.set_clock(start, speed)
        self._chance = random.Random(f"{seed} faults")
        self._owed = dict.fromkeys(instruments, 0.0)  # pushes due, the fraction carried to the next tick
        self._ready: list[tuple[str, bytes]] = []  # instId and frame, to be sent with this tick
        self._later: list[tuple[float, int, str, bytes]] = []  # a heap: when, a tie-breaker, instId, frame
        self._order = itertools.count()
        self._held: dict[str, list[Row]] = {}  # rows that share their frame with the next one
        self._hits: dict[tuple[str | None, str], deque[float]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="fake OKX", daemon=True)
        self._opened: Future[None] = Future()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None

    # The thread

    def __enter__(self) -> Self:
        self._thread.start()
        self._opened.result(CONTROL_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed if the exchange failed
            self._running_loop().call_soon_threadsafe(self._stop.set)
        self._thread.join(CONTROL_S)
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 # it belongs to the thread that waits for us
            self._failure = error
            if not self._opened.done():
                self._opened.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application()
        app.router.add_get("/ws/v5/public", self._websocket)
        app.router.add_get("/api/{rest:.*}", self._rest)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
            self.port = runner.addresses[0][1]
            trading = asyncio.create_task(self._trade_until_stopped())
            self._opened.set_result(None)
            await trading
        finally:
            for connection in self.connections:
                connection.transport.abort()
            for task in self._tasks:
                task.cancel()
            await runner.cleanup()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the exchange has not been opened")
        return self._loop

    def _sync(self, function: Callable[[], T]) -> T:
        """Do something in the exchange's thread, wait, and return what it returns."""
        if self._loop is None:  # not open yet: nobody else is there
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 # raised in the caller's thread
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(CONTROL_S)

    def _spawn(self, what: asyncio.Task[object]) -> None:
        self._tasks.add(what)
        what.add_done_callback(self._tasks.discard)

    # Clock, market and sending

    @property
    def ws_url(self) -> str:
        """For `--ws-url`."""
        return f"ws://{self.host}:{self.port}/ws/v5/public"

    @property
    def rest_url(self) -> str:
        """For `--rest-url`."""
        return f"http://{self.host}:{self.port}"

    @property
    def ledger(self) -> dict[str, list[Trade]]:
        """Every single trade ever made, per instrument, in order."""
        return {inst_id: market.ledger for inst_id, market in self.markets.items()}

    @property
    def pushes(self) -> dict[str, list[Push]]:
        """Every push ever due, per instrument, whether it arrived or not."""
        return {inst_id: market.pushes for inst_id, market in self.markets.items()}

    def now_ms(self) -> int:
        """Return the exchange's time."""
        return self._clock_ms(time.monotonic())

    def _clock_ms(self, monotonic: float) -> int:
        return self._start_ms + int((monotonic - self._started) * 1000 * self._speed)

    def set_clock(self, start: int | str, speed: float = 1.0) -> None:
        """From now on it is `start` (ms, or ISO), running `speed` times as fast as our time."""
        self._start_ms = utc_ms(start) if isinstance(start, str) else start
        self._started = time.monotonic()
        self._speed = speed

    async def _trade_until_stopped(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            last = max(last, now - MAX_STALL_S)
            for inst_id, rate in self.rates.items():
                owed = self._owed[inst_id] + rate * (now - last)
                number = int(owed)
                self._owed[inst_id] = owed - number
                for index in range(number):
                    self._trade(inst_id, self._clock_ms(last + (now - last) * (index + 1) / number))
            last = now
            self._flush(now)
            self._close_idle_and_slow(now)

    def _trade(self, inst_id: str, ts: int) -> None:
        """Make one order as the market and the faults will have it, and send its pushes."""
        market, faults, chance = self.markets[inst_id], self.faults, self._chance
        if chance.random() < faults.skip_id:
            market.next_id += 1
        now = time.monotonic()
        if chance.random() < faults.straddle:
            self._straddle(inst_id, market.make_order(ts, now, count=chance.randint(3, 12)))
            return
        push = market.make_order(ts, now)
        has_twin = chance.random() < faults.twin
        if not has_twin and chance.random() < faults.bad_count:
            self._emit(inst_id, push, {"count": chance.choice((*SENSELESS_COUNTS, str(push.last_id + 1)))})
            return
        self._emit(inst_id, push)
        if has_twin:
            first_id, last_id = sorted(chance.choices(range(push.first_id, push.last_id + 1), k=2))
            self._emit(inst_id, market.add_push(first_id, last_id, "1" if push.source == "0" else "0"))

    def _straddle(self, inst_id: str, order: Push) -> None:
        """Tell an order by two pushes that overlap: 1 … 4 and 3 … 6, say."""
        market = self.markets[inst_id]
        market.pushes.pop()  # it is not told as one
        begin = self._chance.randint(order.first_id + 1, order.last_id - 1)
        end = self._chance.randint(begin, order.last_id - 1)
        self._emit(inst_id, market.add_push(order.first_id, end))
        self._emit(inst_id, market.add_push(begin, order.last_id))

    def _emit(self, inst_id: str, push: Push, fields: Mapping[str, object] | None = None) -> None:
        """Send a push, unless a fault loses, delays or doubles it. It goes out with the next flush."""
        faults, chance = self.faults, self._chance
        if time.monotonic() < faults.muted.get(inst_id, 0.0) or chance.random() < faults.lose:
            return
        row = push_row(inst_id, push) | dict(fields or {})
        row = {key: value for key, value in row.items() if value is not ABSENT}
        if chance.random() < faults.several_rows:
            self._held.setdefault(inst_id, []).append(row)
            return
        frame = push_frame(inst_id, [*self._held.pop(inst_id, ()), row])
        if chance.random() < faults.delay:
            self._send_later(chance.uniform(*faults.delay_s), inst_id, frame)
        elif chance.random() < faults.shuffle:
            self._send_later(chance.uniform(0, SHUFFLE_S), inst_id, frame)
        else:
            self._ready.append((inst_id, frame))
        if chance.random() < faults.double:
            self._send_later(chance.choice((0.0, *faults.delay_s)), inst_id, frame)

    def _send_later(self, seconds: float, inst_id: str, frame: bytes) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), inst_id, frame))

    def _flush(self, now: float) -> None:
        """Send what is due to everyone who subscribed to it."""
        for inst_id, rows in self._held.items():
            self._ready.append((inst_id, push_frame(inst_id, rows)))
        self._held.clear()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2:])
        for connection in self.connections:
            connection.write(b"".join([frame for inst_id, frame in self._ready if inst_id in connection.subscribed]))
        self._ready.clear()

    def _close_idle_and_slow(self, now: float) -> None:
        for connection in list(self.connections):
            if connection.half_open:
                continue
            if now - connection.moved > self.idle_s:
                self._close(connection, 4004, "No data received in 30s.")
            elif connection.transport.get_write_buffer_size() > SLOW_READER_BYTES:
                self._close(connection, 4005, "The client reads too slowly.")

    # REST

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        self.requests.append((time.monotonic(), path, query))
        answer = self._throttle(request.remote, path)
        if answer is None:
            kind = self._rest_failure(path)
            if kind == "reset":
                return self._reset(request)
            if kind == "hang":
                await self._stop.wait()
            if kind in REST_FAILURES:
                answer = REST_FAILURES[kind]
            else:
                status, body = self._answer(path, query)
                answer = (status, body[: len(body) // 2] if kind == "truncated" else body)
        await asyncio.sleep(self.faults.rest_latency_s + self._chance.random() * self.faults.rest_latency_jitter_s)
        status, body = answer
        return web.Response(
            status=status, body=body, content_type="text/html" if body[:1] == b"<" else "application/json"
        )

    def _throttle(self, client: str | None, path: str) -> tuple[int, bytes] | None:
        limit, _ = REST_LIMITS.get(path, (20, 0))
        if within_limit(self._hits.setdefault((client, path), deque()), limit, seconds=2.0):
            return None
        self.throttled += 1
        return REST_FAILURES["429"]

    def _rest_failure(self, path: str) -> str:
        if self.faults.rest_only in path:
            for kind, probability in self.faults.rest.items():
                if self._chance.random() < probability:
                    return kind
        return ""

    def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response(status=500)  # nobody reads it

    def _answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        """Status and body for a valid or invalid request to any endpoint."""
        endpoints: dict[str, Callable[[dict[str, str]], Sequence[object]]] = {
            "/api/v5/public/instruments": self._instruments,
            "/api/v5/market/trades": self._newest_trades,
            "/api/v5/market/history-trades": self._history_trades,
            "/api/v5/market/history-candles": self._history_candles,
            "/api/v5/public/time": lambda _: [{"ts": str(self.now_ms())}],
        }
        if path not in endpoints:
            return 404, b'{"code":"404","msg":"Not Found","data":[]}'
        if not path.endswith(("time", "instruments")) and query.get("instId") not in self.instruments:
            return 200, envelope([], "51001", "Instrument ID, Instrument ID code, or Spread ID doesn't exist.")
        try:
            return 200, envelope(endpoints[path](query))
        except BadParameterError as error:
            return 400, envelope([], "51000", f"Parameter {error} error")
        except LookupError:
            return 200, envelope([], "51001", "Instrument ID, Instrument ID code, or Spread ID doesn't exist.")

    def _instruments(self, query: dict[str, str]) -> Sequence[object]:
        if query.get("instType") != "SWAP":
            raise BadParameterError("instType")
        if "instId" not in query:
            return list(self.instruments.values())
        return [self.instruments[query["instId"]]]

    def _newest_trades(self, query: dict[str, str]) -> Sequence[object]:
        limit = number(query, "limit", 100, REST_LIMITS["/api/v5/market/trades"][1])
        inst_id = query["instId"]
        trades = self.markets[inst_id].page_by_time(self._view(inst_id), None, limit, self._chance)
        return self._trade_rows(inst_id, trades)

    def _history_trades(self, query: dict[str, str]) -> Sequence[object]:
        limit = number(query, "limit", 100, REST_LIMITS["/api/v5/market/history-trades"][1])
        after = number(query, "after") if "after" in query else None
        before = number(query, "before", -1)
        inst_id, kind = query["instId"], query.get("type", "1")
        market, view = self.markets[inst_id], self._view(inst_id)
        if kind == "1":
            trades = market.page_by_id(view, after, before, limit)
            return self._trade_rows(inst_id, shuffle_milliseconds(trades, self._chance))
        if kind != "2" or "before" in query:
            raise BadParameterError("before" if kind == "2" else "type")
        return self._trade_rows(inst_id, market.page_by_time(view, after, limit, self._chance))

    def _history_candles(self, query: dict[str, str]) -> Sequence[object]:
        if query.get("bar", "1m") != "1m":
            raise BadParameterError("bar")
        limit = number(query, "limit", 100, REST_LIMITS["/api/v5/market/history-candles"][1])
        after = number(query, "after") if "after" in query else None
        rows = self.markets[query["instId"]].candles(self.now_ms(), after, number(query, "before", -1), limit)
        for row in rows:
            if int(row[0]) in self.faults.unconfirmed:
                row[-1] = "0"
        return rows

    def _view(self, inst_id: str) -> View:
        """Return what REST shows just now."""
        lag = self.faults.rest_lag_s + self._chance.random() * self.faults.rest_lag_jitter_s
        now, hidden = time.monotonic(), self.faults.rest_hidden
        end = self.markets[inst_id].visible_end(now - lag)
        oldest = self.now_ms() - HISTORY_DAYS * 86_400_000
        return View(end, oldest, lambda trade: hidden.get((inst_id, trade.trade_id), 0.0) > now)

    def _trade_rows(self, inst_id: str, trades: list[Trade]) -> Sequence[object]:
        rows: list[Row] = []
        now = time.monotonic()
        partial = self._chance.random() < self.faults.rest_partial
        for trade in trades:
            if partial and self._chance.random() < 0.2:
                continue
            row = trade_row(inst_id, trade)
            fields, until = self.faults.rest_corrupt.get((inst_id, trade.trade_id), ({}, 0.0))
            if now < until:
                row |= fields
            rows.append({key: value for key, value in row.items() if value is not ABSENT})
        return rows

    # WebSocket

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults
        if not within_limit(self._hits.setdefault((request.remote, "ws"), deque()), CONNECTIONS_PER_S, seconds=1.0):
            return web.Response(status=429, text="Too many connections")
        refuse = faults.ws_script.popleft() if faults.ws_script else faults.ws_refuse
        if refuse == "503":
            return web.Response(status=503, text="<html>Service Unavailable</html>", content_type="text/html")
        if refuse == "stall":
            await self._stop.wait()
        if refuse in ("reset", "stall") or not isinstance(request.transport, asyncio.Transport):
            return self._reset(request)
        ws = web.WebSocketResponse(
            compress=False, autoping=False, autoclose=False, max_msg_size=MAX_REQUEST_BYTES, timeout=1.0
        )
        await ws.prepare(request)
        self.connects += 1
        connection = Connection(ws, request.transport, f"{self._chance.getrandbits(32):08x}")
        self.connections.append(connection)
        try:
            if refuse == "close":
                await ws.close(code=1001)
            async for message in ws:
                connection.moved = time.monotonic()
                if connection.half_open:
                    continue
                if message.type is WSMsgType.PING:
                    connection.send(message.data, opcode=10)
                elif message.type is WSMsgType.TEXT:
                    self.received.append(message.data)
                    await self._on_message(connection, message.data)
        finally:
            if connection in self.connections:
                self.connections.remove(connection)
        if not connection.half_open:
            await ws.close()
        return ws

    async def _on_message(self, connection: Connection, text: str) -> None:
        if text == "ping":
            connection.send(b"pong")
            return
        request, problem = self._read_request(connection, text)
        if problem:
            self._send_error(connection, *problem)
            return
        if self.faults.ack_delay_s:
            await asyncio.sleep(self.faults.ack_delay_s)
        for arg in request["args"]:
            self._change_subscription(connection, request, arg)

    def _read_request(self, connection: Connection, text: str) -> tuple[dict[str, list[Row]], tuple[str, str] | None]:
        """Return the request, or what is wrong with it: code and msg."""
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict) or "op" not in request:
            return {}, ("60012", f"Illegal request: {text}")
        if request["op"] not in ("subscribe", "unsubscribe"):
            return {}, ("60019", f"Invalid op: {request['op']}")
        if "id" in request and not re.fullmatch("[A-Za-z0-9]{1,32}", str(request["id"])):
            return {}, ("60033", "Parameter id error")
        args = request.get("args")
        if not isinstance(args, list) or not args or not all(isinstance(arg, dict) for arg in args):
            return {}, ("60013", f"Invalid args: {args}")
        if not within_limit(connection.operations, OPERATIONS_PER_HOUR, seconds=3600.0):
            return {}, ("60014", "Requests too frequent.")
        return request, None

    def _change_subscription(self, connection: Connection, request: dict[str, list[Row]], arg: Row) -> None:
        """Acknowledge or refuse one argument; after a new subscription the latest push there is follows."""
        inst_id = str(arg.get("instId"))
        op = str(request["op"])
        if inst_id in self.faults.no_ack:
            return
        if self.faults.reject_code and self.faults.reject_left > 0:
            self.faults.reject_left -= 1
            self._send_error(connection, self.faults.reject_code, "Subscribe failed, as this test asked for.")
            return
        if arg.get("channel") != "trades" or inst_id not in self.markets:
            what = f"channel:{arg.get('channel')},instId:{inst_id}"
            hint = "Please use the correct URL, channel and parameters referring to API document."
            self._send_error(connection, "60018", f"Wrong URL or {what} doesn't exist. {hint}")
            return
        echo = {"id": request["id"]} if "id" in request else {}
        connection.send(orjson.dumps({**echo, "event": op, "arg": arg, "connId": connection.conn_id}))
        if op == "unsubscribe":
            connection.subscribed.discard(inst_id)
            return
        if self.faults.live_delay_s:
            self._running_loop().call_later(self.faults.live_delay_s, connection.subscribed.add, inst_id)
        else:
            connection.subscribed.add(inst_id)
        if self.faults.always_notice:
            self._announce_upgrade(connection)
        pushes = self.markets[inst_id].pushes
        if pushes and time.monotonic() >= self.faults.muted.get(inst_id, 0.0):
            connection.send(push_payload(inst_id, [push_row(inst_id, pushes[-1])]))

    def _announce_upgrade(self, connection: Connection) -> None:
        msg = "The connection will soon be closed for a service upgrade. Please reconnect."
        event = {"event": "notice", "code": "64008", "msg": msg, "connId": connection.conn_id}
        connection.send(orjson.dumps(event))

    def _send_error(self, connection: Connection, code: str, msg: str) -> None:
        connection.send(orjson.dumps({"event": "error", "code": code, "msg": msg, "connId": connection.conn_id}))

    def _close(self, connection: Connection, code: int, reason: str = "") -> None:
        if connection in self.connections:
            self.connections.remove(connection)
        if code == 1006:
            connection.transport.abort()
        else:
            self._spawn(asyncio.create_task(connection.ws.close(code=code, message=reason.encode())))

    # By hand: trades

    def set_rate(self, rate: float, inst_id: str | None = None) -> None:
        """Pushes a second from now on, of one instrument or of each."""
        for name in self.rates if inst_id is None else (inst_id,):
            self.rates[name] = rate

    def prefill(self, inst_id: str, count: int, start: int | str, end: int | str) -> None:
        """Make `count` single trades of the past, evenly from start to end (ms, or ISO); nobody is told."""
        begin = utc_ms(start) if isinstance(start, str) else start
        span = (utc_ms(end) if isinstance(end, str) else end) - begin
        market = self.markets[inst_id]

        def make() -> None:
            goal = len(market.ledger) + count
            while (left := goal - len(market.ledger)) > 0:
                moment = begin + span * (count - left) // count
                market.make_order(moment, -math.inf, count=min(left, market.usual_count()))

        self._sync(make)

    def trade(
        self,
        inst_id: str = BTC,
        n: int = 1,
        *,
        count: int = 0,
        px: str = "",
        sz: str = "",
        side: str = "",
        ts: int | None = None,
        fields: Mapping[str, object] | None = None,
        lost: bool = False,
    ) -> list[Push]:
        """Make n orders of `count` trades each (0: as the market likes) and push them, unless `lost`.

        `fields` change the pushed row, ABSENT leaves one out. Faults apply. What is pushed has been sent on return.
        """

        def make() -> list[Push]:
            pushes = []
            for _ in range(n):
                moment = self.now_ms() if ts is None else ts
                market = self.markets[inst_id]
                pushes.append(market.make_order(moment, time.monotonic(), count=count, px=px, sz=sz, side=side))
                if not lost:
                    self._emit(inst_id, pushes[-1], fields)
            self._flush(time.monotonic())
            return pushes

        return self._sync(make)

    def push(
        self,
        first_id: int,
        last_id: int,
        inst_id: str = BTC,
        *,
        source: str = "0",
        fields: Mapping[str, object] | None = None,
    ) -> Push:
        """Push trades of one order that exist already, as an aggregate of their own. Faults apply."""

        def send() -> Push:
            push = self.markets[inst_id].add_push(first_id, last_id, source)
            self._emit(inst_id, push, fields)
            self._flush(time.monotonic())
            return push

        return self._sync(send)

    def resend(self, push: Push, inst_id: str = BTC, fields: Mapping[str, object] | None = None) -> None:
        """Send a push that was made before, or lost. Faults apply."""

        def send() -> None:
            self._emit(inst_id, push, fields)
            self._flush(time.monotonic())

        self._sync(send)

    def skip_ids(self, count: int = 1, inst_id: str = BTC) -> None:
        """Leave out the next `count` ids: they never exist."""

        def skip() -> None:
            self.markets[inst_id].next_id += count

        self._sync(skip)

    def reset_ids(self, first_id: int, inst_id: str = BTC) -> None:
        """Ids go on from here, lower than before."""
        self._sync(lambda: self.markets[inst_id].reset_ids(first_id))

    def settle(self) -> None:
        """Stop trading and all faults, and end with one push per instrument that arrives: now all can be known."""

        def end() -> None:
            self.set_rate(0.0)
            self.faults = Faults()
            self._flush(math.inf)  # what is still on its way arrives first
            for inst_id in self.markets:
                self._trade(inst_id, self.now_ms())
            self._flush(math.inf)

        self._sync(end)

    # By hand: connections and REST

    def _for_each(self, function: Callable[[Connection], None]) -> None:
        """Do something, in the exchange's thread, with every open connection."""

        def run() -> None:
            for connection in list(self.connections):
                function(connection)

        self._sync(run)

    def send_raw(self, payload: bytes | str, opcode: int = 1, *, fragments: int = 1) -> None:
        """Send one message of any content to every client, in so many fragments."""
        data = payload.encode() if isinstance(payload, str) else payload
        cuts = [len(data) * index // fragments for index in range(fragments + 1)]
        frames = [
            websocket_frame(data[cuts[i] : cuts[i + 1]], 0 if i else opcode, final=i == fragments - 1)
            for i in range(fragments)
        ]
        self._for_each(lambda connection: connection.write(b"".join(frames)))

    def send_junk(self, name: str) -> None:
        """Send one of JUNK_FRAMES to every client."""
        self.send_raw(*JUNK_FRAMES[name])

    def send_error(self, code: str, msg: str = "As this test asked for.") -> None:
        """Send an error event to every client."""
        self._for_each(lambda connection: self._send_error(connection, code, msg))

    def close(self, code: int = 1006, reason: str = "") -> None:
        """Close every connection with this code; 1006: cut it off without a word."""
        self._for_each(lambda connection: self._close(connection, code, reason))

    def notice(self, close_after_s: float, code: int = 1001) -> None:
        """Announce a service upgrade (64008) to those connected now, and close them so much later."""

        def announce(connection: Connection) -> None:
            self._announce_upgrade(connection)
            self._running_loop().call_later(close_after_s, self._close, connection, code, "upgrade")

        self._for_each(announce)

    def half_open(self) -> None:
        """From now on the connections of this moment are silent: nothing is read from them, nothing is sent."""

        def silence(connection: Connection) -> None:
            connection.half_open = True
            connection.transport.pause_reading()

        self._for_each(silence)

    def kill_subscription(self, inst_id: str) -> None:
        """Send no more of this instrument on the current connections; a new subscription gets it."""
        self._for_each(lambda connection: connection.subscribed.discard(inst_id))

    def mute(self, inst_id: str, seconds: float) -> None:
        """All pushes of this instrument are lost for so long, on every connection."""
        self.faults.muted[inst_id] = time.monotonic() + seconds

    def hide(self, ids: Iterable[int], inst_id: str = BTC, seconds: float = math.inf) -> None:
        """REST does not have these ids for so long."""
        until = time.monotonic() + seconds
        self.faults.rest_hidden.update({(inst_id, trade_id): until for trade_id in ids})

    def corrupt(self, trade_id: int, fields: Row, inst_id: str = BTC, seconds: float = math.inf) -> None:
        """REST serves this trade with these fields changed (ABSENT: left out) for so long."""
        self.faults.rest_corrupt[inst_id, trade_id] = (fields, time.monotonic() + seconds)

    def requests_to(self, path_end: str) -> list[dict[str, str]]:
        """Return the queries of all requests to the endpoint whose path ends so."""
        return [query for _, path, query in self.requests if path.endswith(path_end)]


class BadParameterError(Exception):
    """Answered with 51000; names the parameter."""


def number(query: dict[str, str], name: str, default: int | None = None, largest: int | None = None) -> int:
    """Read a whole number from a query."""
    text = query.get(name, "" if default is None else str(default))
    if not re.fullmatch("-?[0-9]{1,19}", text) or (largest is not None and not 1 <= int(text) <= largest):
        raise BadParameterError(name)
    return int(text)


def within_limit(hits: deque[float], limit: int, *, seconds: float) -> bool:
    """Count one more hit in a sliding window; return whether it is still within the limit."""
    now = time.monotonic()
    while hits and hits[0] <= now - seconds:
        hits.popleft()
    hits.append(now)
    return len(hits) <= limit


def envelope(rows: Sequence[object], code: str = "0", msg: str = "") -> bytes:
    """Return the body of every REST answer."""
    return orjson.dumps({"code": code, "msg": msg, "data": rows})


def trade_row(inst_id: str, trade: Trade) -> Row:
    """Return a single trade as REST serves it."""
    trade_id, px, sz, side, ts = trade
    names = ("instId", "side", "sz", "source", "px", "tradeId", "ts")
    return dict(zip(names, (inst_id, side, sz, "0", px, str(trade_id), str(ts)), strict=True))


def push_row(inst_id: str, push: Push) -> Row:
    """Return one row of a push."""
    return {
        "instId": inst_id,
        "tradeId": str(push.last_id),
        "px": push.px,
        "sz": push.sz,
        "side": push.side,
        "ts": str(push.ts),
        "count": str(push.singles),
        "source": push.source,
        "seqId": push.seq_id,
    }


def push_payload(inst_id: str, rows: Sequence[Row]) -> bytes:
    """Return the message that carries these rows."""
    return orjson.dumps({"arg": {"channel": "trades", "instId": inst_id}, "data": rows})


def push_frame(inst_id: str, rows: Sequence[Row]) -> bytes:
    """Return the same, as a WebSocket frame."""
    return websocket_frame(push_payload(inst_id, rows))


# ---------------------------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Trade until Ctrl+C, saying every few seconds how it goes."""
    parser = argparse.ArgumentParser(description="A fake OKX on loopback, to see trades_exporter.py at work.")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--seed", type=int, default=1, help="another seed, other trades")
    parser.add_argument("--rate", type=float, default=10.0, help="pushes a second and instrument (default 10)")
    parser.add_argument("--start", metavar="ISO", help="the exchange's time, e.g. 2026-11-21T23:59:30Z (default: now)")
    parser.add_argument("--speed", type=float, default=1.0, help="how fast its clock runs (default 1)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it otherwise
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = options.start or int(time.time() * 1000)
    okx = FakeOKX(seed=options.seed, rate=options.rate, start=start, speed=options.speed, port=options.port)
    with okx, contextlib.suppress(KeyboardInterrupt):
        print("A fake OKX trades until Ctrl+C. To record it:\n")
        print(f"  python trades_exporter.py --ws-url {okx.ws_url} --rest-url {okx.rest_url}\n", flush=True)
        while True:
            time.sleep(5)
            moment = datetime.fromtimestamp(okx.now_ms() / 1000, UTC)
            trades = ", ".join(f"{inst_id} {len(ledger)}" for inst_id, ledger in okx.ledger.items())
            clients = f"{len(okx.connections)} connected, {len(okx.requests)} requests, {okx.throttled} over the limit"
            print(f"{moment:%Y-%m-%d %H:%M:%S}Z  trades: {trades}; {clients}", flush=True)
    print("Stopped.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
