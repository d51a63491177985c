"""A fake OKX on loopback: REST, the daily archives and the public WebSocket on one port, with faults to switch on.

    with FakeOKX(seed=1, rate=50) as okx:
        ... okx.ws_url, okx.rest_url, okx.archive_url, okx.ledger["BTC-USDT-SWAP"], okx.faults.lose = 0.1 ...

By hand, for people without access to OKX: `python tests/fake_okx.py --port 8900`.

The parts, in the order below: the market (one instrument: its trades, pushes and candles; no socket, no clock), the
archives (a past day as a zip file), the faults (one switch a field), the exchange (REST, WebSocket, the clock and the
thread they live in), a proxy, the command line.

The exchange runs in a thread of its own. Its methods may be called from any thread; `faults`, `rates` and `instruments`
may be changed and `ledger`, `pushes`, `requests` and `received` read at any time.
"""

import argparse
import asyncio
import base64
import contextlib
import copy
import gc
import hashlib
import heapq
import itertools
import math
import os
import random
import re
import signal
import socket
import socketserver
import ssl
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import orjson
from aiohttp import WSMsgType, web

BTC = "BTC-USDT-SWAP"
ETH = "ETH-USDT-SWAP"
FIRST_ID = 2_978_601_964  # the id of the first BTC trade, of the size real ones have
START = "2026-11-21T12:00:00Z"  # the exchange's time when it opens, unless told otherwise
HISTORY_DAYS = 90.0  # how far back history-trades goes
ARCHIVE_AFTER_H = 7.5  # an archive appears so long after the end of its day (in UTC+8)
DAY_MS = 86_400_000
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
CROSSING_TRADES = 100  # at most so many neighbouring trades have times that fall while their ids rise
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
        self._made_at: list[float] = []  # when orders were made (monotonic, rising), and the ledger's length after each
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
        if self._made_at and self._made_at[-1] >= made_at:  # what is visible stays a prefix of the ledger
            self._made_end[-1] = len(self.ledger)
        else:
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

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Return between which positions of the ledger the trades of this time (ms; end exclusive) stand."""
        start, stop = (bisect_left(self.ledger, ts, key=ts_of) for ts in (begin, end))
        return (start, stop) if start < stop else (0, 0)

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
        trades = view.newest_first(self.ledger, 0, end + CROSSING_TRADES)
        trades = (trade for trade in trades if after is None or trade.ts < after)
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


def make_past(market: Market, count: int, begin: int, end: int) -> None:
    """Make `count` single trades, evenly from begin to end (ms); REST shows them with those made before."""
    collects = gc.isenabled()
    gc.disable()  # it would look through the growing ledger again and again, and find nothing
    goal = len(market.ledger) + count
    while (left := goal - len(market.ledger)) > 0:
        moment = begin + (end - begin) * (count - left) // count
        market.make_order(moment, -math.inf, count=min(left, market.usual_count()))
    if collects:
        gc.enable()


def crossing_times(midnight: int | str, count: int = 6, spread_ms: int = 400) -> list[int]:
    """Return times (ms) that lie after and before a midnight (ms, or ISO) in turn, for trades whose ids rise.

    Told: `okx.trade(ts=ts)` for each. Of a past that nobody was told: `okx.trade(ts=ts, lost=True)`.
    """
    middle = utc_ms(midnight) if isinstance(midnight, str) else midnight
    return [middle + (-spread_ms if index % 2 else spread_ms) for index in range(count)]


def utc_ms(text: str) -> int:
    """'2026-11-21T23:59:50Z' in ms since 1970."""
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def shuffle_milliseconds(trades: list[Trade], chance: random.Random) -> list[Trade]:
    """Newest ms first, and in any order within one: so OKX answers."""
    return sorted(trades, key=lambda trade: (-trade.ts, chance.random()))


# -------------------------------------------------------------------------------------------------- the archives


ARCHIVE_PATH = "/cdn/okex/traderecords/trades/daily"
ARCHIVE_FIELDS = ("instrument_name", "trade_id", "side", "price", "size", "created_time", "source")
ARCHIVE_HEADER = ",".join(ARCHIVE_FIELDS) + "\r\n"
ARCHIVE_CHUNK = 20_000  # rows that are written at once
BOMB_BLOCK = 2**26  # bytes; BOMB_BLOCKS of them are what a bomb unpacks to: 4.4 GB
BOMB_BLOCKS = 66
ArchiveRows = dict[int, Row | None]  # what becomes of some ids' rows: fields changed (ABSENT: left out), or no row


class ArchiveText(NamedTuple):
    """How a CSV is written: its header, what becomes of each row, and of the second and each thousandth after it."""

    header: str = ARCHIVE_HEADER
    each: Callable[[str], str] | None = None
    some: Callable[[str, Iterator[str]], str] | None = None  # takes the row, and those that follow


def upper_case(row: str) -> str:
    """Write the side in upper case."""
    return row.replace(",buy,", ",BUY,").replace(",sell,", ",SELL,")


def other_side(row: str) -> str:
    """Return the row with the other side."""
    return row.replace(",buy,", ",sell,") if ",buy," in row else row.replace(",sell,", ",buy,")


def without_source(row: str) -> str:
    """Leave out the last field."""
    return row.rpartition(",")[0] + "\r\n"


def backwards(row: str) -> str:
    """Turn round the order of the fields."""
    return ",".join(reversed(row.rstrip().split(","))) + "\r\n"


def with_price(row: str, price: str) -> str:
    """Replace the price; {} in it is the price there was."""
    fields = row.split(",")
    return ",".join([*fields[:3], price.format(fields[3]), *fields[4:]])


GBK_HEADER = "instrument_name/交易对,trade_id/撮合id,side/交易方向,price/价格,size/数量,created_time/成交时间\r\n"
ARCHIVE_TEXTS = {  # CSVs, by kind of fault
    "": ArchiveText(),
    "old header": ArchiveText(header=without_source(ARCHIVE_HEADER), each=without_source),
    "GBK header": ArchiveText(header=GBK_HEADER, each=without_source),
    "unknown header": ArchiveText(header="symbol,id,taker,px,qty,time,flag\r\n"),
    "no header": ArchiveText(header=""),
    "moved columns": ArchiveText(header=backwards(ARCHIVE_HEADER), each=backwards),
    "BOM": ArchiveText(header="\ufeff" + ARCHIVE_HEADER),
    "LF": ArchiveText(header=ARCHIVE_HEADER.replace("\r", ""), each=lambda row: row.replace("\r", "")),
    "upper case": ArchiveText(each=upper_case),
    "doubled": ArchiveText(each=lambda row: row * 2),
    "both sides": ArchiveText(each=lambda row: upper_case(row + other_side(row))),  # as in October 2021
    "out of order": ArchiveText(some=lambda row, rest: next(rest, "") + row),
    "holes": ArchiveText(some=lambda _row, _rest: ""),
    "noise": ArchiveText(some=lambda row, _rest: with_price(row, "{}0000000001")),
    "bad rows": ArchiveText(some=lambda row, _rest: with_price(row, "-1.0")),
    "short rows": ArchiveText(some=lambda row, _rest: row[: len(row) // 2] + "\r\n"),
}
ARCHIVE_ZIPS = (  # files, by kind of fault, with an ordinary CSV in them or none
    *("empty", "no rows", "two members", "path outside", "bad CRC", "truncated", "not a zip", "bomb", "hidden bomb"),
    *("other instrument", "other day"),
)
ARCHIVE_ANSWERS = {  # HTTP answers instead of the file
    "missing": 404,
    "refused": 403,
    "429": 429,
    "500": 500,
    "503": 503,
    "html": 200,
}
ARCHIVE_WAYS = ("hang", "reset", "stall midway", "cut midway", "wrong MD5", "no MD5")  # what happens on the way
ARCHIVE_FAULTS = (*list(ARCHIVE_TEXTS)[1:], *ARCHIVE_ZIPS, *ARCHIVE_ANSWERS, *ARCHIVE_WAYS)  # all kinds there are


def archive_rows(inst_id: str, ledger: list[Trade], start: int, end: int, changed: ArchiveRows) -> Iterator[str]:
    """Write the trades from position start to end - 1 as rows of the CSV, numbers as printed floats."""
    for first in range(start, end, ARCHIVE_CHUNK):
        for trade_id, px, sz, side, ts in ledger[first : min(first + ARCHIVE_CHUNK, end)]:
            price = px if "." in px else px + ".0"
            size = sz if "." in sz else sz + ".0"
            if changed and trade_id in changed:
                values = (inst_id, str(trade_id), side, price, size, str(ts), "0")
                fields = changed[trade_id]
                if fields is not None:
                    row = dict(zip(ARCHIVE_FIELDS, values, strict=True)) | fields
                    yield ",".join(str(value) for value in row.values() if value is not ABSENT) + "\r\n"
                continue
            yield f"{inst_id},{trade_id},{side},{price},{size},{ts},0\r\n"


def archive_text(rows: Iterator[str], kind: str) -> Iterator[bytes]:
    """Write the CSV with its header, piece by piece, spoiled as this kind of fault will have it."""
    text = ARCHIVE_TEXTS.get(kind, ARCHIVE_TEXTS[""])
    if kind == "empty":
        return
    yield text.header.encode("gbk" if kind == "GBK header" else "utf-8")
    if kind == "no rows":
        return
    spoiled = rows if text.each is None else map(text.each, rows)
    if text.some is not None:
        spoiled = spoil_some(text.some, spoiled)
    while piece := "".join(itertools.islice(spoiled, ARCHIVE_CHUNK)):
        yield piece.encode()


def spoil_some(change: Callable[[str, Iterator[str]], str], rows: Iterator[str]) -> Iterator[str]:
    """Change the second row and each thousandth after it."""
    for index, row in enumerate(rows):
        yield change(row, rows) if index % 1000 == 1 else row


def write_archive(path: Path, name: str, pieces: Iterable[bytes], kind: str) -> None:
    """Write the zip file with a CSV of this name, spoiled as this kind of fault will have it."""
    if kind == "not a zip":
        path.write_bytes(b"<html><body>Service Unavailable</body></html>" * 100)
        return
    if kind in ("bomb", "hidden bomb"):
        write_bomb(path, name, hidden=kind == "hidden bomb")
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("../" + name if kind == "path outside" else name, "w") as member:
            for piece in pieces:
                member.write(piece)
        if kind == "two members":
            file.writestr("2_" + name, ARCHIVE_HEADER)
        if kind == "bad CRC":
            file.infolist()[0].CRC ^= 1  # of the directory that is written at the end
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)


def write_bomb(path: Path, name: str, *, hidden: bool) -> None:
    """Write a zip of 4 MB with a header line and 4.4 GB of zeros in it; hidden: it says that it were 1 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(ARCHIVE_HEADER.encode()) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BOMB_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)  # after a full flush: always the same
    content += block * BOMB_BLOCKS + packer.flush()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
        info = file.infolist()[0]
        info.compress_type = zipfile.ZIP_DEFLATED
        info.file_size = 1_000_000 if hidden else len(ARCHIVE_HEADER) + BOMB_BLOCK * BOMB_BLOCKS
    with path.open("r+b") as raw:  # the method in the header before the content
        raw.seek(8)
        raw.write(struct.pack("<H", zipfile.ZIP_DEFLATED))


class Archives:
    """The archives of past days, made in a folder when they are asked for, and kept until the ledger changes."""

    def __init__(self, markets: Mapping[str, Market], folder: Path) -> None:
        self._markets = markets
        self._folder = folder
        self._made: dict[tuple[str, str, str], tuple[str, Path, str]] = {}
        self._lock = threading.Lock()  # one is made at a time; whoever wants the same one waits for it
        self._number = itertools.count()

    def get(self, inst_id: str, day: str, kind: str, changed: ArchiveRows) -> tuple[Path, str]:
        """Return the file of a day (of UTC+8) and its MD5 in base64.

        Raises LookupError for an unknown instrument, or where nothing was traded on that day.
        """
        market = self._markets[inst_id]
        if market.span(*archive_times(day)) == (0, 0):
            raise LookupError(f"{inst_id} was not traded on {day}")
        if kind == "other instrument":
            market = next(other for name, other in self._markets.items() if name != inst_id)
        if kind == "other day":
            day = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
        kind = kind if kind in ARCHIVE_TEXTS or kind in ARCHIVE_ZIPS else ""
        start, end = market.span(*archive_times(day))
        stand = repr((start, end, sorted(changed.items())))
        with self._lock:
            made = self._made.get((inst_id, day, kind))
            if made is None or made[0] != stand:
                path = self._folder / f"archive{next(self._number)}.zip"
                rows = archive_rows(market.inst_id, market.ledger, start, end, changed)
                write_archive(path, f"{market.inst_id}-trades-{day}.csv", archive_text(rows, kind), kind)
                with path.open("rb") as file:
                    md5 = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
                made = self._made[inst_id, day, kind] = (stand, path, md5)
        return made[1:]


def archive_times(day: str) -> tuple[int, int]:
    """Return when a day of UTC+8 begins and ends, in ms; ValueError if there is no such day."""
    end = utc_ms(f"{day}T16:00:00Z")
    return end - DAY_MS, end


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
    # So every new connection is treated: "503", "html", "stall" (no answer at all), "reset", "close" or "redirect
    # LOCATION", to one of STRANGE_LOCATIONS, say
    ws_refuse: str = ""
    ws_script: deque[str] = field(default_factory=deque)  # the same for one attempt each, then "" = works
    reject_code: str = ""  # subscriptions are refused with this code …
    reject_left: float = math.inf  # … so many more times
    no_ack: set[str] = field(default_factory=set)  # subscriptions of these instruments come to nothing, silently
    ack_delay_s: float = 0.0
    live_delay_s: float = 0.0  # from a subscription's ack and the latest push to the pushes of the market
    always_notice: bool = False  # each connection hears of an upgrade (64008) as soon as it is subscribed
    # REST
    rest_only: str = ""  # the REST faults concern only paths that hold this; latency concerns all
    rest: dict[str, float] = field(default_factory=dict)  # kind (REST_FAILURES, or "redirect LOCATION"): probability
    rest_latency_s: float = 0.0  # each answer is made at once and sent so much later …
    rest_latency_jitter_s: float = 0.0  # … plus up to this much
    rest_lag_s: float = 0.0  # trades younger than this are not in REST yet …
    rest_lag_jitter_s: float = 0.0  # … plus up to this, drawn for each answer: a later one may be older
    rest_partial: float = 0.0  # probability that an answer with trades lacks some of its rows
    rest_hidden: dict[tuple[str, int], float] = field(default_factory=dict)  # (instId, id): until; see hide()
    rest_corrupt: dict[tuple[str, int], tuple[Row, float]] = field(default_factory=dict)  # see corrupt()
    unconfirmed: set[int] = field(default_factory=set)  # minutes (ts) whose candle is never confirmed
    rest_reach_days: float = HISTORY_DAYS  # history-trades shows nothing older; candles reach back for ever
    rest_beyond: str = "empty"  # what is answered where all asked for is older: nothing, or "newer": the newest trades
    time_offset_ms: int = 0  # by so much /public/time is ahead of the clock by which trades are made
    # Archives; a day is the one in the file's name
    archive: dict[str, str] = field(default_factory=dict)  # day, or "all": kind (see ARCHIVE_FAULTS)
    archive_often: dict[str, float] = field(default_factory=dict)  # kind: probability per request
    archive_rows: dict[str, ArchiveRows] = field(default_factory=dict)  # by instId; see spoil_archive()
    archive_after_h: float = ARCHIVE_AFTER_H  # from the end of a day until its archive is there
    archive_bytes_per_s: float = math.inf  # how fast a file is sent


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


STRANGE_LOCATIONS = ("http://[", "wss://x..y/", "http://x..y/", "//", "http://127.0.0.1:99999/", "foo://bar")


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

    `start` is the exchange's time now (ms, or ISO); it runs `speed` times as fast as ours. With `tls` everything is
    served over TLS; `ca_file` is then what a client has to trust, in the environment variable SSL_CERT_FILE, say.
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
        tls: bool = False,
    ) -> None:
        self.host = host
        self.tls = tls
        self.ca_file: Path | None = None  # while it is open, with tls
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
        self._folder = tempfile.TemporaryDirectory(prefix="fake-okx-", ignore_cleanup_errors=True)
        self._archives = Archives(self.markets, Path(self._folder.name))
        if self.tls:
            self.ca_file = Path(self._folder.name) / "ca.pem"
        self._thread.start()
        self._opened.result(CONTROL_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed if the exchange failed
            self._running_loop().call_soon_threadsafe(self._stop.set)
        self._thread.join(CONTROL_S)
        self._folder.cleanup()
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
        app.router.add_get(ARCHIVE_PATH + "/{folder}/{name}", self._archive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            context = server_context(self.host, ca_file=self.ca_file) if self.ca_file else None
            await web.TCPSite(runner, self.host, self.port, ssl_context=context).start()
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
        return f"{'wss' if self.tls else 'ws'}://{self.host}:{self.port}/ws/v5/public"

    @property
    def rest_url(self) -> str:
        """For `--rest-url`."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def archive_url(self) -> str:
        """For `--archive-url`."""
        return self.rest_url + ARCHIVE_PATH

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
        start, started, speed = self._clock
        return start + int((monotonic - started) * 1000 * speed)

    def set_clock(self, start: int | str, speed: float = 1.0) -> None:
        """From now on it is `start` (ms, or ISO), running `speed` times as fast as our time."""
        self._clock = (utc_ms(start) if isinstance(start, str) else start, time.monotonic(), speed)

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
            if connection.half_open or connection.transport.is_closing():
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
            if refused := await self._refuse(request, kind):
                return refused
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

    async def _refuse(self, request: web.Request, kind: str) -> web.StreamResponse | None:
        """Treat a request as a fault will have it that all servers share; None: it is none of these."""
        if kind in ("hang", "stall"):
            await self._stop.wait()
        if kind in ("hang", "stall", "reset"):
            return self._reset(request)
        if kind.startswith("redirect "):
            return web.Response(status=302, headers={"Location": kind.removeprefix("redirect ")})
        return None

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
            "/api/v5/public/time": lambda _: [{"ts": str(self.now_ms() + self.faults.time_offset_ms)}],
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
        if kind not in ("1", "2") or (kind == "2" and "before" in query):
            raise BadParameterError("before" if kind == "2" else "type")
        if self.faults.rest_beyond == "newer" and not (
            market.page_by_id(view, after, -1, 1) if kind == "1" else market.page_by_time(view, after, 1, self._chance)
        ):
            after, before = None, -1
        if kind == "1":
            trades = market.page_by_id(view, after, before, limit)
            return self._trade_rows(inst_id, shuffle_milliseconds(trades, self._chance))
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
        oldest = self.now_ms() - int(min(self.faults.rest_reach_days, 1e6) * DAY_MS)
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

    # Archives

    async def _archive(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((time.monotonic(), request.path, dict(request.query)))
        name = re.fullmatch(r"(.+)-trades-(\d{4}-\d\d-\d\d)\.zip", request.match_info["name"])
        if "User-Agent" not in request.headers:
            return web.Response(status=403)
        if name is None or name[2].replace("-", "") != request.match_info["folder"]:
            return web.Response(status=404)
        kind = self._archive_fault(name[2])
        if refused := await self._refuse(request, kind):
            return refused
        if kind in ARCHIVE_ANSWERS:
            return web.Response(status=ARCHIVE_ANSWERS[kind], text="<html>No</html>", content_type="text/html")
        try:
            path, md5 = await asyncio.to_thread(self._published_archive, name[1], name[2], kind)
        except (LookupError, ValueError):
            return web.Response(status=404)
        return await self._send_archive(request, path, md5, kind)

    def _archive_fault(self, day: str) -> str:
        kind = self.faults.archive.get(day) or self.faults.archive.get("all", "")
        for other, probability in self.faults.archive_often.items():
            kind = other if self._chance.random() < probability else kind
        if kind and kind not in ARCHIVE_FAULTS and not kind.startswith("redirect "):
            raise KeyError(f"{kind!r} is none of ARCHIVE_FAULTS")  # a test's mistake: answered by 500, with a traceback
        return kind

    def _published_archive(self, inst_id: str, day: str, kind: str) -> tuple[Path, str]:
        """Return the file and its MD5; LookupError or ValueError where there is none (yet)."""
        if self.now_ms() < archive_times(day)[1] + self.faults.archive_after_h * 3_600_000:
            raise LookupError(f"{day} is not published yet")
        return self.archive_file(inst_id, day, kind)

    async def _send_archive(self, request: web.Request, path: Path, md5: str, kind: str) -> web.StreamResponse:
        wrong = base64.b64encode(bytes(16)).decode()
        headers = {} if kind == "no MD5" else {"Content-MD5": wrong if kind == "wrong MD5" else md5}
        headers["Content-Type"] = "application/zip"
        speed = self.faults.archive_bytes_per_s
        if request.method == "HEAD" or (not kind.endswith("midway") and speed == math.inf):
            return web.FileResponse(path, headers=headers)
        content = await asyncio.to_thread(path.read_bytes)
        size = len(content)
        answer = web.StreamResponse(headers=headers)
        answer.content_length = size
        await answer.prepare(request)
        step = max(1, min(size // 2, int(min(speed, 1e9) / 20)))  # 20 of them in a second
        for first in range(0, size, step):
            if first >= size // 2 and kind == "stall midway":
                await self._stop.wait()
            if first >= size // 2 and kind == "cut midway" and request.transport:
                request.transport.close()
                break
            await answer.write(content[first : first + step])
            await asyncio.sleep(0 if speed == math.inf else 0.05)
        return answer

    # WebSocket

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        faults = self.faults
        if not within_limit(self._hits.setdefault((request.remote, "ws"), deque()), CONNECTIONS_PER_S, seconds=1.0):
            return web.Response(status=429, text="Too many connections")
        refuse = faults.ws_script.popleft() if faults.ws_script else faults.ws_refuse
        if refuse in ("503", "html"):
            status = 503 if refuse == "503" else 200
            return web.Response(status=status, text="<html>Service Unavailable</html>", content_type="text/html")
        if refused := await self._refuse(request, refuse):
            return refused
        if not isinstance(request.transport, asyncio.Transport):
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
        begin, stop = (utc_ms(moment) if isinstance(moment, str) else moment for moment in (start, end))
        self._sync(lambda: make_past(self.markets[inst_id], count, begin, stop))

    def pass_hours(self, hours: float, trades: int = 0) -> None:
        """Let time pass at once: the clock jumps ahead, and so many single trades of each instrument fill the time.

        Nobody is told of them. Switch off `rate` and clients before: those would see the jump.
        """

        def jump() -> None:
            begin = self.now_ms()
            end = begin + int(hours * 3_600_000)
            for market in self.markets.values():
                make_past(market, trades, begin, end)
            self.set_clock(end, self._clock[2])

        self._sync(jump)

    def archive_file(self, inst_id: str, day: str, kind: str = "") -> tuple[Path, str]:
        """Return a day's archive and its MD5, published or not; it is made now, not when it is asked for first."""
        return self._archives.get(inst_id, day, kind, self.faults.archive_rows.get(inst_id, {}))

    def spoil_archive(self, ids: Iterable[int], fields: Row | None = None, inst_id: str = BTC) -> None:
        """From now on the archives list these ids with these fields changed (ABSENT: left out); None: not at all."""
        self.faults.archive_rows.setdefault(inst_id, {}).update(dict.fromkeys(ids, fields))

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


def server_context(*hosts: str, ca_file: Path | None = None) -> ssl.SSLContext:
    """Return what a server on these hosts (or localhost) needs, signed by a new CA; the CA's certificate to ca_file."""
    import trustme  # noqa: PLC0415 # only tests have it; the command line and the demo do without

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*dict.fromkeys((*hosts, "127.0.0.1", "localhost", "::1"))).configure_cert(context)
    if ca_file:
        authority.cert_pem.write_to_path(str(ca_file))
    return context


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


# ------------------------------------------------------------------------------------------------------- a proxy


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy on loopback, for the environment variables HTTP_PROXY and HTTPS_PROXY. A context manager.

    `kind` is one of KINDS and may be changed at any time: "works" passes everything on; "refuses" answers 502 and
    "garbage" what is not HTTP; the others accept a CONNECT, and then say nothing and close, answer in plain text, or
    talk TLS with a certificate that nobody trusts.
    """

    KINDS = ("works", "refuses", "garbage", "closes", "plain text", "untrusted")
    daemon_threads = True
    block_on_close = False  # threads end with the connections of those who use it

    def __init__(self, kind: str = "works") -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.kind = kind
        self.targets: list[str] = []  # what was asked for: host and port, or the URL
        self.untrusted = server_context()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """For HTTP_PROXY and HTTPS_PROXY."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()


class ProxyHandler(socketserver.BaseRequestHandler):
    """One connection to the proxy."""

    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        """Read the request and treat it as the proxy's kind will have it."""
        with contextlib.suppress(OSError):  # one of both ends is gone
            head = b""
            while b"\r\n\r\n" not in head:
                received = self.request.recv(65_536)
                if not received:
                    return
                head += received
            method, target = head.decode("latin-1").split(" ", 2)[:2]
            self.server.targets.append(target)
            self._treat(self.server.kind, method, target, head)

    def _treat(self, kind: str, method: str, target: str, head: bytes) -> None:
        if kind in ("refuses", "garbage"):
            self.request.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n" if kind == "refuses" else b"What?\r\n\r\n")
            return
        accepted = b"HTTP/1.1 200 Connection established\r\n\r\n"
        if kind == "works":
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            with socket.create_connection((url.hostname, url.port or 80)) as upstream:
                (self.request if method == "CONNECT" else upstream).sendall(accepted if method == "CONNECT" else head)
                threading.Thread(target=pass_on, args=(upstream, self.request), daemon=True).start()
                pass_on(self.request, upstream)
            return
        self.request.sendall(accepted)
        if kind == "plain text":
            self.request.sendall(b"This network asks you to log in first.\r\n")
        if kind == "untrusted":
            self.server.untrusted.wrap_socket(self.request, server_side=True).close()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy what comes from one socket to another, until one of them is closed."""
    with contextlib.suppress(OSError):
        while content := source.recv(65_536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


# ---------------------------------------------------------------------------------------------- the command line


PAST_TRADES = 40_000  # of an instrument, on each day of `--days`


def main(argv: Sequence[str] | None = None) -> int:
    """Trade until Ctrl+C, saying every few seconds how it goes."""
    parser = argparse.ArgumentParser(description="A fake OKX on loopback, to see trades_exporter.py at work.")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--seed", type=int, default=1, help="another seed, other trades")
    parser.add_argument("--rate", type=float, default=10.0, help="pushes a second and instrument (default 10)")
    parser.add_argument("--start", metavar="ISO", help="the exchange's time, e.g. 2026-11-21T23:59:30Z (default: now)")
    parser.add_argument("--speed", type=float, default=1.0, help="how fast its clock runs (default 1)")
    parser.add_argument("--days", type=int, default=0, help="so many days of a past, for --since (default 0)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it otherwise
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = utc_ms(options.start) if options.start else int(time.time() * 1000)
    okx = FakeOKX(seed=options.seed, rate=options.rate, start=start, speed=options.speed, port=options.port)
    first_day = start - start % DAY_MS - options.days * DAY_MS
    for inst_id in okx.markets if options.days else ():
        okx.prefill(inst_id, (start - first_day) * PAST_TRADES // DAY_MS, first_day, start)
    folder = Path(tempfile.mkdtemp(prefix="fake-okx-"))  # invented trades have no business in the real Vault
    command = f'--vault "{folder / "Vault"}" --log-file "{folder / "trades_exporter.log"}"'
    with okx, contextlib.suppress(KeyboardInterrupt):
        command += f" --ws-url {okx.ws_url} --rest-url {okx.rest_url} --archive-url {okx.archive_url}"
        print("A fake OKX trades until Ctrl+C. To record it, in a Vault of its own:\n")
        print(f"  python trades_exporter.py {command}\n", flush=True)
        if options.days:
            since = f"{datetime.fromtimestamp(first_day / 1000, UTC):%Y-%m-%d}"
            print(f"Its past begins at {since}; with --since {since} it is recorded too.\n", flush=True)
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
