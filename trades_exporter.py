"""Record every BTC-USDT-SWAP and ETH-USDT-SWAP trade of OKX into daily JSONL files, and be able to prove it.

    OKX WebSocket "trades" -> validate -> LRU dedup -> sequence, repair over REST
        -> Vault/raw/okx/trades_perps/{INSTID}/{DATE}.jsonl

The idea that carries it: the exchange is the write-ahead log. Trade ids rise by one per trade and OKX serves each of
them over REST for months, so nothing that is only in memory is precious. A file is at any moment a gapless prefix of
the exchange's own sequence: a push is written when it continues the file, and whatever is missing is fetched in order
before anything newer is written. A lost message, a reconnect, a restart after `kill -9` and a full disk are one and the
same case: the next trade does not continue the last stored one.

The sections, each using only what stands above it: settings, errors, instrument, trade, dedup, sequence, repair, vault,
REST, feed, recorder, verify, audit, exporter, command line. What decides the truth (trade, dedup, sequence, repair) has
no socket, clock or file in it. Facts about OKX's wire format come from https://www.okx.com/docs-v5/en/.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import decimal
import errno
import gc
import gzip
import io
import itertools
import logging
import logging.handlers
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from operator import attrgetter, itemgetter
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple, Self, cast
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog
import websockets
from websockets.client import backoff
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl

# ---------------------------------------------------------------------------------------------------------- settings

VERSION = "1.0.0"
INSTRUMENTS = ["BTC-USDT-SWAP", "ETH-USDT-SWAP"]
WS_URL = "wss://ws.okx.com/ws/v5/public"  # port 443; OKX closed port 8443 on 2026-10-31
REST_URL = "https://openapi.okx.com"
HERE = Path(__file__).resolve().parent

DEDUP_KEYS = 10_000  # newest keys per instrument that are known to be stored
DEDUP_SPARE = 100  # keys by which it may be more, since they leave that many at a time
LATE_S = 0.25  # a late or shuffled push may arrive within this, before REST is asked
WAITING_TRADES = 200_000  # pushes that may wait in memory behind repairs, all instruments together
LOOKAHEAD_TRADES = 20_000  # trades fetched ahead of ids that OKX does not show: 15 s of REST at its full rate
PAGE = 100  # trades in a page of history-trades, OKX's maximum
ROUND_PAGES = 20  # pages asked for at a time: two seconds of OKX's rate limit
ASK_AGAIN_S = (0.25, 3.75)  # first and longest pause before ids that an answer lacked are asked for again
ABSENT_ANSWERS, ABSENT_S = 5, 15.0  # so many answers over so long show later ids and not these: they do not exist
UNREPAIRED_S = 1800.0  # REST helped nobody for so long: gaps go on record and capture goes on
BAD_ROW_S = 15.0  # a bad row from REST is asked for again for so long before it stops the exporter
RESET_IDS = 1_000_000  # a push so much lower, with a newer time, may be a reset of OKX's ids
RESET_CHECK_S = 3.0  # REST is asked at most so often whether the ids were reset

GATHER_S = 0.04  # pushes are gathered for so long before they are taken: a tenth of a second is promised
READ_BYTES = 32 << 10  # read from the socket at a time
BURST_BYTES = 16 << 10  # that many at once are a burst, which is taken as it comes
FLUSH_LINES = 128  # lines go to the file when all that came is taken, or when there are so many
FSYNC_S = 1.0  # what a power cut can take
PROBE = ".probe-"  # what begins so is written to see whether anything can be; Windows shows it
PROBE_BYTES = 256 << 10  # that much room is enough to go on
RETRY_WRITE_S = 1.0  # pause between attempts to write to a full or vanished disk
SAY_AGAIN_S = 60.0  # a condition that lasts is logged at most so often
TAIL_BYTES = 4 << 20  # read from the end of a file at start: more than 10,000 lines
TORN_BYTES = 64 << 20  # the longest torn end that is believed to be one

REST_TIMEOUT_S = 10.0  # one request, from connecting to the last byte
REST_BODY_BYTES = 16 << 20  # the longest answer that is read; real ones stay below 1 MB
REST_WINDOW_S = 2.08  # OKX counts requests per 2 s; the rest is for the jitter of the network
LATE_TURN_S = 0.05  # a request that is later than that gets a new turn
REST_LIMITS = {  # requests in that time and per IP
    "/api/v5/public/instruments": 20,
    "/api/v5/market/trades": 100,
    "/api/v5/market/history-trades": 20,
    "/api/v5/market/history-candles": 20,
}
METADATA_S = 15.0  # REST silent for so long at start: saved metadata will do

CONNECT_S = 10.0  # for the TCP, TLS and WebSocket handshakes together
SUBSCRIBE_S = 10.0  # for the acks of all instruments
SUBSCRIBE_ARGS = 500  # instruments in one request, which may hold 64 KB
PING_AFTER_S = 20.0  # of silence; OKX cuts a silent connection after 30 s
WATCH_S = 0.25  # between looks at what has been heard
PONG_S = 10.0  # for anything at all to arrive after that ping
INSTRUMENT_SILENT_S = 60.0  # then REST is asked whether there were trades
REPLACE_S = 10.0  # both connections stay open at most so long after notice 64008
UPGRADES_APART_S = 1.0  # should notice follow notice: OKX takes three new connections a second
STEADY_S = 10.0  # a connection that held so long is no flapping one: the next backoff starts afresh
REJECTED_S = 600.0  # a refused subscription after a reconnect is believed after so long on end
ON_END_S = 60.0  # refusals further apart are not on end: the PC slept, or nothing could be reached
FRAME_BYTES = 2 << 20  # the longest frame that is read; real ones stay below 100 KB
REJECTIONS = {"60008", "60012", "60013", "60018", "60019", "64001", "64002"}  # of a subscription, for good

LEAVE_S = 2.0  # for the interpreter to end, once all is done
STATS_S = 60.0
PROGRESS_S = 5.0  # a repair that takes longer says how far it is
LOG_BYTES, LOG_FILES = 10_000_000, 5
AUDIT_AFTER_S = 300.0  # a finished day is audited so long after the first line of the next
AUDIT_PATIENCE_S = 60.0  # for OKX to give candles
AUDIT_PAUSE_S = 0.01  # of the background audit, after each 1,000 lines
ID_TAIL_BYTES = 64 << 10  # at the end of a file, in which its last id is looked for
CANDLES = 300  # in a page of history-candles, OKX's maximum
SHOWN = 20  # problems of a kind that are shown, before they are only counted
UNFINISHED_LINE_S = 2.0  # a last line that an exporter is writing is whole by then

log = structlog.get_logger("trades_exporter")

# ------------------------------------------------------------------------------------------------------------ errors


class BuildFailError(Exception):
    """OKX sends what must not be stored, or refuses for good: the exporter stops with exit code 3."""

    exit_code = 3

    def __str__(self) -> str:
        """Begin as the log and its readers expect it."""
        return f"BUILD_FAIL: {super().__str__()}"


class VaultError(Exception):
    """The Vault can't be used: exit code 4."""

    exit_code = 4


class RestError(Exception):
    """An answer of REST that is no help: busy, limited, broken or HTML."""


def unusable(root: Path, exc: OSError) -> VaultError:
    """Say what to do about a Vault that can't be written."""
    return VaultError(f"The Vault {root} can't be used: {exc}. Mend that, or name another one with --vault")


def shown(value: object, limit: int = 300) -> str:
    """Return whatever came over the wire, short and on one line, for a message."""
    try:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    except RecursionError:
        text = "something nested too deeply to be shown"
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def describe(exc: BaseException) -> str:
    """Say in a few words what went wrong; some exceptions have no text of their own."""
    return shown(str(exc) or type(exc).__name__, 200)


def on_terminal() -> bool:
    """Tell whether a person is watching; there may be no console at all (pythonw)."""
    return bool(sys.stderr and sys.stderr.isatty())


# -------------------------------------------------------------------------------------------------------- instrument

DECIMAL = r"(?:0*[1-9][0-9]*(?:\.[0-9]+)?|0+\.0*[1-9][0-9]*)"  # plain and positive
CONTRACT = {"ctVal": DECIMAL, "ctMult": DECIMAL, "ctType": "[A-Za-z]+"}  # fields and their patterns


class Instrument(NamedTuple):
    """What every record carries about its contract, in OKX's own characters (GET /api/v5/public/instruments)."""

    inst_id: str
    contract: tuple[str, ...]  # the values of the fields in CONTRACT
    state: str

    @classmethod
    def from_row(cls, inst_id: str, row: object) -> Self:
        """Check a row of OKX's answer or a saved one; raise BuildFailError naming the instrument and the fields."""
        fields = row if isinstance(row, dict) and row.get("instId") == inst_id else {}
        values = [value if isinstance(value := fields.get(name), str) else "" for name in CONTRACT]
        missing = [
            name for name, value in zip(CONTRACT, values, strict=True) if not re.fullmatch(CONTRACT[name], value)
        ]
        if missing:
            raise BuildFailError(f"Missing required metadata fields: {', '.join(missing)} of {inst_id}")
        return cls(inst_id, tuple(values), shown(fields.get("state")))


def symbol_canon(inst_id: str) -> str:
    """Return base and quote currency: BTC/USDT."""
    return "/".join(inst_id.split("-")[:2])


# ------------------------------------------------------------------------------------------------------------- trade


class Trade(NamedTuple):
    """A push of OKX (one or several single trades of one taker order at one price) or a single trade from REST."""

    first: int  # id of the first single trade in it
    last: int  # id of the last one: OKX's tradeId
    counted: bool  # False: `count` was missing or senseless, so `first` is a guess
    repaired: bool  # from REST
    inst_id: str
    trade_id: str  # OKX's own digits
    ts: str  # ms since 1970, 13 digits
    px: str
    sz: str  # contracts
    side: str  # of the taker: buy or sell
    key: str  # what dedup knows it by; `source` may differ between WebSocket and REST and is no part of it


REQUIRED = ("px", "sz", "ts", "tradeId", "side", "instId")
FIELD_PATTERNS = (DECIMAL, DECIMAL, "[0-9]{13}", "[0-9]{1,19}", "(?:buy|sell)", ".*")
required_fields = itemgetter(*REQUIRED)
match_fields = re.compile("\n".join(FIELD_PATTERNS)).fullmatch  # none of them can hold a line feed


def trade_defect(row: object) -> str:
    """Say what is wrong with a row that parse_trade does not take."""
    fields = row if isinstance(row, dict) else {}
    if missing := [name for name in REQUIRED if name not in fields]:
        return f"Missing required trade fields: {', '.join(missing)} in {shown(row)}"
    invalid = [
        f"{name}={shown(repr(value) if isinstance(value := fields[name], str) else value, 60)}"
        for name, pattern in zip(REQUIRED, FIELD_PATTERNS, strict=True)
        if not isinstance(fields[name], str) or not re.fullmatch(pattern, fields[name])
    ]
    return f"Invalid trade field: {', '.join(invalid)} in {shown(row)}"


def parse_trade(row: Any, *, repaired: bool = False) -> Trade:  # noqa: ANN401 - whatever JSON holds
    """Check a row of the trades channel or of REST; raise BuildFailError naming what is wrong and showing the row.

    A push covers the ids `tradeId - count + 1` to `tradeId`; REST rows are single trades and have no count.
    """
    try:
        px, sz, ts, trade_id, side, inst_id = fields = required_fields(row)
        valid = match_fields("\n".join(fields))  # join: all of them are strings
    except (KeyError, TypeError):
        valid = None
    if not valid:
        raise BuildFailError(trade_defect(row))
    first = last = int(trade_id)
    counted = True
    count = row.get("count")
    if count != "1" and not repaired:
        covered = int(count) if re.fullmatch("[0-9]{1,19}", str(count)) else 0
        counted = 1 <= covered <= last
        first = last - covered + 1 if counted else last
    key = f"okx:{inst_id}:{trade_id}"
    # as Trade(...) does, in a third of the time
    return tuple.__new__(Trade, (first, last, counted, repaired, inst_id, trade_id, ts, px, sz, side, key))


def parse_rows(inst_id: str, rows: Iterable[Any]) -> tuple[list[Trade], list[tuple[str, BuildFailError]]]:
    """Return the single trades of a REST answer by id, and the bad rows' ids with what is wrong with them."""
    trades: list[Trade] = []
    bad: list[tuple[str, BuildFailError]] = []
    for row in rows:
        try:
            trade = parse_trade(row, repaired=True)
            if trade.inst_id != inst_id:
                raise BuildFailError(f"Unexpected instId: {shown(trade.inst_id)} in {shown(row)}")
            trades.append(trade)
        except BuildFailError as exc:
            trade_id = row.get("tradeId") if isinstance(row, dict) else None
            bad.append((trade_id if isinstance(trade_id, str) else shown(row), exc))
    return sorted(trades), bad


@lru_cache(maxsize=256)
def utc_second(seconds: str) -> str:
    """Return 2025-12-14T21:34:56 for the ten digits of a time in seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")


def utc(ts: str) -> str:
    """Return 2025-12-14T21:34:56.123Z for OKX's milliseconds, and nothing for none."""
    return f"{utc_second(ts[:10])}.{ts[10:]}Z" if ts else ""


def milliseconds(timestamp_utc: str) -> str:
    """Return OKX's 13 digits for a stored timestamp_utc."""
    moment = datetime.fromisoformat(timestamp_utc)
    return f"{int(moment.timestamp()):010}{moment.microsecond // 1000:03}"


KEYS = ("timestamp_utc", "exchange", "market", "instId", "symbol_canon", "trade_id", "side", "price", "qty_contracts")
RECORD_KEYS = KEYS + tuple(CONTRACT)


class RecordFormat:
    """The record of an instrument's trades: one line of compact JSON, RECORD_KEYS in order, all values strings."""

    def __init__(self, instrument: Instrument) -> None:
        inst_id, symbol = instrument.inst_id, symbol_canon(instrument.inst_id)
        market = f'"exchange":"okx","market":"perp","instId":"{inst_id}","symbol_canon":"{symbol}"'
        contract = ",".join(f'"{name}":"{value}"' for name, value in zip(CONTRACT, instrument.contract, strict=True))
        self._after_time, self._after_size = f'",{market},"trade_id":"', f'",{contract}}}\n'

    def line(self, trade: Trade, second: str) -> str:
        """Return the record; `second` is the trade's time as utc_second gives it."""
        _, _, _, _, _, trade_id, ts, px, sz, side, _ = trade
        return (
            f'{{"timestamp_utc":"{second}.{ts[10:]}Z{self._after_time}{trade_id}","side":"{side}"'
            f',"price":"{px}","qty_contracts":"{sz}{self._after_size}'
        )


TEXT = r"([ -!#-\[\]-~]+)"  # printable ASCII but for what JSON escapes
RECORD = re.compile(
    r'\{"timestamp_utc":"(\d{4}-\d\d-\d\d)T((?:[01]\d|2[0-3]):[0-5]\d):[0-5]\d\.\d{3}Z"'
    rf',"exchange":"okx","market":"perp","instId":"{TEXT}","symbol_canon":"{TEXT}","trade_id":"(\d{{1,19}})","side":"(buy|sell)"'
    rf',"price":"({DECIMAL})","qty_contracts":"({DECIMAL})"'
    rf',"ctVal":"({DECIMAL})","ctMult":"({DECIMAL})","ctType":"([A-Za-z]+)"\}}\n'.encode(),
    re.ASCII,
)  # what RecordFormat writes; groups: day, hh:mm, instId, symbol_canon, trade_id, side, price, qty, CONTRACT

# ------------------------------------------------------------------------------------------------------------- dedup


class RecentKeys(dict[str, None]):
    """LRU set of the keys `okx:{instId}:{trade_id}` that are stored: `key in recent`, then `add` or `touch`."""

    def add(self, key: str) -> None:
        """Enter the key of a trade that was written; the oldest ones leave, a few at a time."""
        self[key] = None
        if len(self) >= DEDUP_KEYS + DEDUP_SPARE:
            for old in list(itertools.islice(self, DEDUP_SPARE)):
                del self[old]

    def touch(self, key: str) -> None:
        """Make a key the newest again."""
        del self[key]
        self[key] = None


# ---------------------------------------------------------------------------------------------------------- sequence


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
GAP_LINE = re.compile(
    rf'{{"recorded_utc":"{STAMP}","instId":"([^"\\]+)","reason":"(start|absent|unrepaired|pending|horizon|id_reset)"'
    r',"after_id":"(\d{0,19})","before_id":"(\d{1,20})"'
    rf',"after_utc":"(?:{STAMP})?","before_utc":"(?:{STAMP})?"}}\n'.encode(),
    re.ASCII,
)


class Gap(NamedTuple):
    """A range of ids that is not in the files, for the gaps file; both ids exclusive, None where there is none."""

    reason: str  # start, absent, unrepaired, horizon, id_reset
    after_id: int | None
    before_id: int
    after_ts: str  # ms, or empty
    before_ts: str

    def line(self, inst_id: str, recorded_utc: str) -> bytes:
        """Return the line of the gaps file."""
        entry = {"recorded_utc": recorded_utc, "instId": inst_id, "reason": self.reason}
        entry |= {"after_id": "" if self.after_id is None else str(self.after_id), "before_id": str(self.before_id)}
        return orjson.dumps(entry | {"after_utc": utc(self.after_ts), "before_utc": utc(self.before_ts)}) + b"\n"

    @property
    def after_utc(self) -> str:
        """Return the time after which trades are missing, as the gaps file says it."""
        return utc(self.after_ts)

    @property
    def before_utc(self) -> str:
        """Return the time before which trades are missing, as the gaps file says it."""
        return utc(self.before_ts)

    @classmethod
    def parse(cls, inst_id: str, line: bytes) -> Self | None:
        """Return what a line of the gaps file says, or None where it says nothing of this instrument."""
        match = GAP_LINE.fullmatch(line)
        if not match or match[1] != inst_id.encode():
            return None
        entry = orjson.loads(line)
        after, before, reason = match[3] and int(match[3]), int(match[4]), entry["reason"]
        if after and after >= before and reason != "id_reset":
            return None
        try:
            times = [utc_text and milliseconds(utc_text) for utc_text in (entry["after_utc"], entry["before_utc"])]
        except ValueError:  # no such day
            return None
        return cls(reason, int(after) if after else None, before, *times)


first_id = attrgetter("first")


class Sequence:
    """Decides for one instrument which trades may be written now, in order and once, and which ids are missing.

    Every method that takes trades returns what is to be stored now, in this order: Trades and Gaps. Trades that can't
    be written yet wait, whether pushes or rows that REST gave ahead of time; whatever lies between them is missing.
    """

    def __init__(self, limit: int) -> None:
        self.next: int | None = None  # the id that continues the file; None: nothing is stored
        self.ts = ""  # of the last stored trade, ms
        self.seen = -1  # the highest id known to exist
        self.seen_ts = ""  # of that trade, ms
        self.shown_ts = ""  # the time of the trade that showed the present gap, ms
        self.waiting: list[Trade] = []  # by id, without overlaps
        self.skipped = 0  # duplicates
        self.reset_hint: Trade | None = None  # a push that may come from a reset of OKX's ids
        self._reset_ts = ""  # when OKX's ids were reset: what is older and far higher has ids of before
        self._limit = limit  # pushes that may wait
        self._patched = True  # the file's end may hold single trades out of an aggregate of the millisecond `ts`

    def restart(self, last: int | None, ts: str) -> None:
        """Go on behind what is stored. What waits is dropped: it will be missed, and come from REST."""
        self.next, self.ts, self._patched = None if last is None else last + 1, ts, True
        self.waiting.clear()

    @property
    def last(self) -> int | None:
        """Return the last stored id, or the last one that was put on record as missing."""
        return None if self.next is None else self.next - 1

    @property
    def open(self) -> bool:
        """Tell whether ids are known that can't be written yet."""
        return self.next is not None and self.seen >= self.next

    def offer(self, trade: Trade) -> Iterable[Trade | Gap]:
        """Take a push or a row from REST."""
        if trade.first == self.next and not self.waiting and self._continues(trade):
            self._store(trade)
            return (trade,)
        if self.next is None:
            self._store(trade)
            return Gap("start", None, trade.first, "", trade.ts), trade
        if trade.last < self.next:
            if trade.last < self.next - 1 - RESET_IDS and trade.ts > self.ts and not self.reset_hint:
                self.reset_hint = trade
            self.skipped += 1
            return ()
        if trade.ts < self._reset_ts and trade.last > self.next + RESET_IDS // 2:
            self.skipped += 1
            return ()
        self.note(trade)
        if trade.first == self.next and self._continues(trade) and self.waiting[0].first > trade.last:
            self._store(trade)
            return [trade, *self._waited()]
        if trade.first >= self.next:
            self._wait(trade)
        return self._waited()

    def note(self, trade: Trade) -> None:
        """Know that a trade exists, whatever becomes of it."""
        if not self.open:
            self.shown_ts = trade.ts
        if trade.last > self.seen:
            self.seen, self.seen_ts = trade.last, trade.ts

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of ids that were passed over, or are known to exist, and are not here; lowest first."""
        if self.next is None:
            return
        low = self.next
        for trade in self.waiting:
            if low < trade.first:
                yield low, trade.first - 1
            low = trade.last + 1
        if low <= self.seen:
            yield low, self.seen

    def lacks(self, trade_id: int) -> bool:
        """Tell whether this id is one of the missing."""
        if self.next is None or not self.next <= trade_id <= self.seen:
            return False
        i = bisect.bisect_right(self.waiting, trade_id, key=first_id)
        return i == 0 or self.waiting[i - 1].last < trade_id

    def give_up(self, upto: int, reason: str, before_ts: str = "") -> list[Trade | Gap]:
        """Put all missing ids up to `upto` on record, and go on behind them."""
        out: list[Trade | Gap] = []
        while (gap := next(self.missing(), None)) and gap[0] <= upto:
            before = min(gap[1], upto) + 1
            waits = bool(self.waiting) and self.waiting[0].first == before
            ts = self.waiting[0].ts if waits else before_ts or self.seen_ts
            out.append(Gap(reason, gap[0] - 1, before, self.ts, ts))
            self.next = before
            out += self._waited()
        return out

    def reset(self, hint: Trade) -> list[Trade | Gap]:
        """Start again at lower ids, since REST agrees that OKX's ids were reset; the hint itself comes from REST."""
        out = self.give_up(self.seen, "id_reset")
        out.append(Gap("id_reset", self.last, hint.first, self.ts, hint.ts))
        self.restart(hint.first - 1, hint.ts)
        self.seen, self.seen_ts, self.shown_ts, self._reset_ts = hint.last, hint.ts, hint.ts, hint.ts
        return out

    def _continues(self, trade: Trade) -> bool:
        """Tell whether a push with the right first id is sure not to hold what is stored already.

        Taker orders that fill against liquidity of both `source`s may be pushed as two aggregates with interleaved
        ids, and then one of them seems to begin later than it does; and without a count nothing is known. What is of
        another millisecond than the last stored trade can't hold that one.
        """
        single = trade.repaired or (trade.counted and trade.first == trade.last)
        return single or trade.ts != self.ts or not self._patched

    def _store(self, trade: Trade) -> None:
        self._patched = trade.repaired or (self._patched and trade.ts == self.ts)
        self.next, self.ts = trade.last + 1, trade.ts

    def _wait(self, trade: Trade) -> None:
        """Let a trade wait, unless it overlaps others: then neither is believed, and REST gives their ids."""
        waiting = self.waiting
        low = high = bisect.bisect_left(waiting, trade.first, key=first_id)
        while low and waiting[low - 1].last >= trade.first:
            low -= 1
        while high < len(waiting) and waiting[high].first <= trade.last:
            high += 1
        if low == high:
            waiting.insert(low, trade)
        elif any((other.first, other.last) == (trade.first, trade.last) for other in waiting[low:high]):
            self.skipped += 1
        else:
            waiting[low:high] = [other for other in waiting[low:high] if other.repaired]
        if len(waiting) > self._limit:
            self.waiting = [other for other in waiting if other.repaired]

    def _waited(self) -> list[Trade | Gap]:
        """Return the waiting trades whose turn has come."""
        out: list[Trade | Gap] = []
        done = 0
        for trade in self.waiting:
            if self.next is None or trade.first > self.next:
                break
            done += 1
            if trade.first == self.next and self._continues(trade):
                self._store(trade)
                out.append(trade)
        del self.waiting[:done]
        return out


# ------------------------------------------------------------------------------------------------------------ repair


class Repair:
    """Which pages of history-trades close a gap, and what their answers prove. `now` is any clock that only rises, s.

    A page is addressed by `after`: it holds the PAGE newest trades with lower ids. Ids not asked for yet are walked
    from the lowest up; ids that an answer lacked are asked for again together with ids above them: an answer that
    shows those and not these proves something. But for that, a REST that lags looks like one where ids do not exist.
    """

    def __init__(self, sequence: Sequence, now: float) -> None:
        self.sequence = sequence
        self.helped_at = now  # when an answer last found a missing trade, or proved something
        self.settled = -1  # the highest id that was known LATE_S ago: what is missing above may still come late
        self._seen: collections.deque[tuple[float, int]] = collections.deque()  # the highest known id, at times
        self._walked = -1  # ids up to this have been asked for
        self._pages = 1  # to walk in one round; grows with success, so that a jump of the ids costs few requests
        self._walk_at = self._again_at = now  # not before
        self._pause = ASK_AGAIN_S[0]
        self._search: tuple[int, int, int] | None = None  # see _narrow
        self._proofs: dict[tuple[int, int], tuple[int, float]] = {}  # missing range: answers that proved it, since when

    def plan(self, now: float) -> list[int]:
        """Return the `after` of the pages to ask for now, in the order to learn from them; none: wait a little."""
        self._seen.append((now, self.sequence.seen))
        while len(self._seen) > 1 and self._seen[1][0] <= now - LATE_S:
            self._seen.popleft()
        if self._seen[0][0] <= now - LATE_S:
            self.settled = self._seen[0][1]
        if not self.sequence.open:
            self._search = None
        if self._search:
            return [self._search_address()]
        again: list[int] = []
        walk: list[int] = []
        ahead = sum(trade.repaired for trade in self.sequence.waiting)
        room = min(self._pages, (LOOKAHEAD_TRADES - ahead) // PAGE) if now >= self._walk_at else 0
        for low, high in self.sequence.missing():
            if low > self.settled:
                break
            if low <= self._walked:
                asked = min(high, self._walked)
                if not again or asked + 2 > again[-1]:  # or else the page of a lower one shows this one too
                    again.append(max(low + PAGE, asked + 1 + PAGE // 2))
            while self._walked < high and len(walk) < room:
                walk.append(max(low, self._walked + 1) + PAGE)
                self._walked = walk[-1] - 1
            if self._walked < high:
                break
        if not again or now < self._again_at:
            return walk
        self._again_at = now + self._longer_pause()
        return again + walk

    def learn(self, after: int, rows: list[Trade], now: float) -> list[Trade | Gap]:
        """Take the answer to a page, by id, and return what is to be stored now."""
        sequence = self.sequence
        out: list[Trade | Gap] = []
        for row in rows:
            if sequence.lacks(row.last):
                out += sequence.offer(row)
                self.helped_at, self._pause = now, ASK_AGAIN_S[0]
                self._again_at = min(self._again_at, now + self._pause)
        ids = [row.last for row in rows] or [-1]
        bottom, top = ids[0], ids[-1]
        if top == after - 1:
            self._pages = min(self._pages * 2, ROUND_PAGES)
        if self._search:
            if after == self._search_address():
                self._narrow(after, ids, now)
        elif top < after - PAGE and sequence.lacks(after - PAGE) and sequence.lacks(after):
            high = next(high for _, high in sequence.missing() if high >= after)
            self._search, self._walked, self._pages = (after - PAGE, high + 1, PAGE), after - PAGE - 1, 1
        self._prove(bottom, top, now)
        while (gap := next(sequence.missing(), None)) and gap in self._proofs:
            answers, since = self._proofs[gap]
            if answers < ABSENT_ANSWERS or now - since < ABSENT_S:
                break
            del self._proofs[gap]
            out += sequence.give_up(gap[1], "absent")
        return out

    def _longer_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, ASK_AGAIN_S[1])
        return pause

    def _prove(self, bottom: int, top: int, now: float) -> None:
        """Count an answer for each missing range that it passes over, between its lowest and its highest id."""
        for low, high in self.sequence.missing():
            if low >= top:
                break
            passed = max(low, bottom + 1), min(high, top - 1)
            if passed[0] <= passed[1]:
                answers, since = self._proofs.get(passed, (0, now))
                self._proofs[passed] = answers + 1, since
                self.helped_at = now

    def _search_address(self) -> int:
        """Return where to look next for the lowest existing id from `low` on: near the known one, then halfway."""
        low, high, step = self._search or (0, 0, 0)
        return high + 1 if step == PAGE else max(high - step, (low + high + 1) // 2)

    def _narrow(self, after: int, ids: list[int], now: float) -> None:
        """Search, where a walked page was empty and more ids are missing behind it, for the end of the hole.

        The state is (low, high, step): REST shows nothing from `low` to where it was asked, `high` exists. Jumps of a
        thousand million ids so take about ten requests; where REST only lags, it does not even show `high`.
        """
        low, high, step = self._search or (0, 0, 0)
        above = [trade_id for trade_id in ids if trade_id >= low]
        if not above and step == PAGE:
            self._search, self._walk_at = None, now + self._longer_pause()
            return
        low, high = (low, above[0]) if above else (after, high)
        self._search = (low, high, step * 8)
        if (above and ids[0] < low) or high <= low:
            self._search, self._walked = None, high - 1


# ------------------------------------------------------------------------------------------------------------- vault


def is_whole(line: bytes) -> bool:
    """Tell whether a line was once written whole, whatever else is wrong with it; what a crash leaves is no object."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def whole_lines(block: bytes) -> int:
    """Return how many bytes of the end of a file are whole lines; zero bytes are what a power cut leaves."""
    end = block.find(b"\0")
    end = block.rfind(b"\n", 0, end if end >= 0 else len(block)) + 1
    while end and not is_whole(block[block.rfind(b"\n", 0, end - 1) + 1 : end]):
        end = block.rfind(b"\n", 0, end - 1) + 1
    return end


def cut_torn_end(path: Path) -> bytes:
    """Cut off what a crash left of a line, and return the whole lines of the file's last few MB."""
    with path.open("r+b") as file:
        size = file.seek(0, io.SEEK_END)
        length = min(size, TAIL_BYTES)
        while True:
            file.seek(size - length)
            block = file.read(length)
            end = whole_lines(block)
            if end or length == size:
                break
            if length >= TORN_BYTES:
                raise VaultError(f"{path} does not end in lines of JSON; move it away and start again")
            length = min(size, length * 2)
        if end < length:
            file.truncate(size - length + end)
            log.warning("Torn end cut off, its trades will be fetched again", file=str(path), bytes=length - end)
        os.fsync(file.fileno())  # a process that was killed left that to the system
    return block[block.find(b"\n") + 1 if length < size else 0 : end]


def numbered_lines(paths: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield path, number and bytes of the lines of a day's files, compressed or not, or of any other file of lines.

    Behind a compressed file, records with ids up to its last one are left out: they are in it already, and the
    compression was interrupted before it removed the plain file. A last line that is being written is given time to
    be whole. Raises OSError, also for a compressed file that is damaged.
    """
    compressed_up_to = -1  # id
    for path in paths:
        line = b""
        try:
            with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        time.sleep(UNFINISHED_LINE_S)
                        lines.seek(-len(line), io.SEEK_CUR)
                        before, line = line, lines.readline()  # noqa: PLW2901 - the same line, later
                        if not line.endswith(b"\n") and line != before:
                            continue  # gone, or still being written
                    if (
                        compressed_up_to >= 0
                        and (match := RECORD.fullmatch(line))
                        and int(match[5]) <= compressed_up_to
                    ):
                        continue
                    yield path, number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise OSError(f"{path} is damaged: {exc}") from exc
        if path.suffix == ".gz" and (match := RECORD.fullmatch(line)):
            compressed_up_to = int(match[5])


class Vault:
    """The folder of all that is stored: where things are, and the lock that keeps a second exporter out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trades = root / "raw/okx/trades_perps"
        self._lock: io.FileIO | None = None

    def instruments(self) -> list[str]:
        """Return the instruments that the Vault knows."""
        found = {path.name for path in self.trades.glob("*") if path.is_dir()}
        known = {path.stem for path in (self.root / "meta/okx").glob("*/*.json*")}
        return sorted(found | {name for name in known if re.fullmatch(r"[A-Z0-9]+(-[A-Z0-9_]+)+", name)})

    def days(self, inst_id: str) -> dict[str, list[Path]]:
        """Return the files of each stored day, oldest day first; a compressed file comes before its continuation."""
        files: dict[str, list[Path]] = {}
        for path in sorted((self.trades / inst_id).glob("*"), reverse=True):
            if match := re.fullmatch(r"(\d{4}-\d\d-\d\d)\.jsonl(\.gz)?", path.name):
                with contextlib.suppress(ValueError):  # there is no such day
                    files.setdefault(str(date.fromisoformat(match[1])), []).append(path)
        return dict(sorted(files.items()))

    def gaps_path(self, inst_id: str) -> Path:
        """Return the file that names what is missing."""
        return self.root / "meta/okx/gaps" / f"{inst_id}.jsonl"

    def gaps(self, inst_id: str) -> list[Gap]:
        """Return the whole entries of the gaps file."""
        path = self.gaps_path(inst_id)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [gap for line in lines if (gap := Gap.parse(inst_id, line))]

    def resets(self, inst_id: str) -> list[tuple[int, int]]:
        """Return the low and the high id of each id_reset on record: between these the ids may fall."""
        return [(gap.before_id, gap.after_id or -1) for gap in self.gaps(inst_id) if gap.reason == "id_reset"]

    def instrument_path(self, inst_id: str) -> Path:
        """Return the file of the instrument's metadata."""
        return self.root / "meta/okx/instruments" / f"{inst_id}.json"

    def load_instrument(self, inst_id: str) -> Instrument | None:
        """Return the saved instrument, or None where it is missing or invalid."""
        try:
            return Instrument.from_row(inst_id, orjson.loads(self.instrument_path(inst_id).read_bytes()))
        except (OSError, orjson.JSONDecodeError, BuildFailError):
            return None

    def save_instrument(self, inst_id: str, row: object) -> None:
        """Replace the saved instrument, atomically."""
        path = self.folder_of(self.instrument_path(inst_id))
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def folder_of(self, path: Path) -> Path:
        """Make the folder of a file that is to be written; raise OSError where the Vault's drive is gone."""
        if not (self.root / "raw").is_dir():  # or else a new Vault would be begun in its place
            raise FileNotFoundError(f"the Vault {self.root} is gone")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def lock(self) -> None:
        """Hold the Vault until this process ends, however it ends; raise VaultError naming the one that holds it."""
        try:
            (self.root / "raw").mkdir(parents=True, exist_ok=True)
            self._lock = file = (self.root / "exporter.lock").open("a+b", buffering=0)
            if not self._try_lock(file):
                file.seek(0)
                holder = shown(file.read(100).strip()) or "another exporter"
                raise VaultError(
                    f"The Vault {self.root} is held by {holder}; stop that, or name another one with --vault"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()}\n".encode())
        except OSError as exc:
            raise unusable(self.root, exc) from exc

    @staticmethod
    def _try_lock(file: io.FileIO) -> bool:
        try:
            if sys.platform == "win32":
                file.seek(1 << 30)  # Windows forbids others to read what is locked, and they shall read the process id
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if sys.platform == "win32" or isinstance(exc, BlockingIOError):
                return False
            raise
        return True


class TradeFiles:
    """An instrument's day files and gaps file, open for append only. Every method may raise OSError; then recover."""

    def __init__(self, vault: Vault, inst_id: str) -> None:
        self.vault = vault
        self._inst_id = inst_id
        self._file: io.FileIO | None = None
        self._day = ""
        self.written = 0  # lines
        self._unsynced = False
        self._closing = threading.Lock()  # sync runs in a thread

    def append(self, day: str, lines: bytes) -> None:
        """Write whole lines to the file of their day. A day is on the disk before the next one's first byte."""
        if self._file is None or day != self._day:
            self.close()
            path = self.vault.folder_of(self.vault.trades / self._inst_id / f"{day}.jsonl")
            self._file, self._day = path.open("ab", buffering=0), day
        done = 0
        try:
            while done < len(lines):
                done += self._file.write(lines[done:])
        except OSError:
            torn = done - (lines.rfind(b"\n", 0, done) + 1)
            with contextlib.suppress(OSError):  # then recover does it
                self._file.truncate(self._file.seek(0, io.SEEK_END) - torn)
            raise
        finally:
            self.written += lines.count(b"\n", 0, done)
            self._unsynced = True

    def append_gaps(self, gaps: list[Gap]) -> None:
        """Put gaps on record, on the disk when this returns."""
        recorded_utc = utc(f"{time.time_ns() // 1_000_000:013}")
        with self.vault.folder_of(self.vault.gaps_path(self._inst_id)).open("ab") as file:
            file.writelines(gap.line(self._inst_id, recorded_utc) for gap in gaps)
            file.flush()
            os.fsync(file.fileno())

    def try_to_write(self, size: int) -> None:
        """Raise OSError where so many bytes can't be written; what is tried is gone again, also after a crash."""
        folder = self.vault.trades / self._inst_id
        while not folder.exists() and folder != self.vault.root:
            folder = folder.parent
        with tempfile.TemporaryFile(prefix=PROBE, dir=folder) as probe:
            probe.write(bytes(size))
            probe.flush()
            os.fsync(probe.fileno())

    def sync(self) -> None:
        """Put what is new on the disk; the file stays open."""
        with self._closing:
            if self._unsynced and self._file is not None:
                self._unsynced = False
                if not os.fstat(self._file.fileno()).st_nlink:
                    raise FileNotFoundError(f"the file of {self._day} was removed")
                os.fsync(self._file.fileno())

    def close(self, *, sync: bool = True) -> None:
        """Put everything on the disk and close the file."""
        with self._closing:
            file, self._file = self._file, None
            if file is not None:
                with file:
                    if sync:
                        os.fsync(file.fileno())

    def recover(self) -> tuple[int | None, str, list[str]]:
        """Cut off torn ends; return the last id, its time (ms) and the newest dedup keys, oldest first.

        The two newest days count, since a time may fall while the id rises; the higher id is the last.
        """
        self.close(sync=False)
        self.try_to_write(0)
        gaps = self.vault.gaps_path(self._inst_id)
        if self.vault.folder_of(gaps).exists():
            cut_torn_end(gaps)
        resets = self.vault.resets(self._inst_id)
        last, ts = None, ""
        keys: list[str] = []
        days = 0
        for paths in reversed(self.vault.days(self._inst_id).values()):
            lines = [line for path in paths for line in self._tail_of(path).splitlines(keepends=True)]
            matches = [match for line in lines[-DEDUP_KEYS:] if (match := RECORD.fullmatch(line))]
            if not matches:
                continue
            keys = [f"okx:{self._inst_id}:{match[5].decode()}" for match in matches] + keys
            day_last = int(matches[-1][5])
            if last is None or (day_last > last and not any(low <= last < day_last <= high for low, high in resets)):
                last, ts = day_last, milliseconds(orjson.loads(matches[-1][0])["timestamp_utc"])
            days += 1
            if days == 2:
                break
        return last, ts, keys[-DEDUP_KEYS:]

    def _tail_of(self, path: Path) -> bytes:
        if path.suffix == ".gz":
            return b"".join(collections.deque((line for _, _, line in numbered_lines([path])), DEDUP_KEYS))
        lines = cut_torn_end(path)
        if lines and not RECORD.fullmatch(lines, lines.rfind(b"\n", 0, -1) + 1):
            raise VaultError(f"{path} does not end in a record; mend it, or move it away, and start again")
        return lines


# -------------------------------------------------------------------------------------------------------------- REST


def delays() -> Iterator[float]:
    """Yield delays, s, that grow, with jitter: the first within a second, none over 30 s."""
    for delay in backoff(initial_delay=1, min_delay=1, max_delay=30, factor=1.8):
        yield delay * random.uniform(0.7, 1)  # noqa: S311 - no secret


class Lane:
    """The requests to one endpoint: their rate, and a pause after a failure."""

    def __init__(self, limit: int) -> None:
        self._turns = collections.deque([-REST_WINDOW_S] * limit, limit)
        self._paused_until = 0.0
        self._delays = delays()

    async def turn(self) -> float:
        """Wait for this request's turn and return the time."""
        while True:
            turn_at = max(monotonic(), self._turns[0] + REST_WINDOW_S, self._paused_until)
            self._turns.append(turn_at)
            await asyncio.sleep(turn_at - monotonic())
            now = monotonic()
            if now >= self._paused_until and now < turn_at + LATE_TURN_S:  # after a sleep of the PC all are late
                return now

    def answered(self) -> None:
        """Forget past failures."""
        self._delays = delays()

    def failed(self, sent_at: float, what: str) -> None:
        """Pause; requests that were on their way together count as one failure."""
        if sent_at >= self._paused_until:
            delay = next(self._delays)
            self._paused_until = monotonic() + delay
            log.warning("REST gave no answer of use", what=what, again_in=f"{delay:.1f}s")


class Rest:
    """OKX's public REST API: asks until there is an answer, as fast as OKX's limits allow (docs-v5, Public Data)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._lanes = {path: Lane(limit) for path, limit in REST_LIMITS.items()}
        self.answered_at = monotonic()
        self.failed_at = 0.0  # when the last request without an answer of use was sent

    async def get(self, path: str, **query: str | int) -> list[Any]:
        """Return the `data` of an answer, however long it takes; an instrument that OKX does not know has none."""
        lane = self._lanes[path]
        while True:
            sent_at = await lane.turn()
            try:
                data = await self._ask(path, query)
            # a TimeoutError is an OSError; ValueError: a redirect to nowhere
            except (RestError, aiohttp.ClientError, OSError, ValueError) as exc:
                self.failed_at = sent_at
                lane.failed(sent_at, f"{self._url}{path}: {describe(exc)}")
            else:
                self.answered_at = monotonic()
                lane.answered()
                return data

    async def _ask(self, path: str, query: dict[str, str | int]) -> list[Any]:
        async with self._session.get(self._url + path, params=query) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > REST_BODY_BYTES:
                    raise RestError("an answer without end")
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise RestError(f"HTTP {response.status}, not JSON: {shown(bytes(body[:200]), 60)}") from None
        code, message, data = (
            map(answer.get, ("code", "msg", "data")) if isinstance(answer, dict) else (None, answer, None)
        )
        if code == "51001":
            return []
        if response.status != 200 or code != "0" or not isinstance(data, list):
            raise RestError(f"HTTP {response.status}, code {shown(code, 20)}: {shown(message, 100)}")
        if not data and "instType" in query:
            raise RestError("an instrument without a row")  # one that does not exist has code 51001
        return data

    async def instrument(self, inst_id: str) -> object:
        """Return the instrument's row, or None where OKX has none."""
        rows = await self.get("/api/v5/public/instruments", instType="SWAP", instId=inst_id)
        return next((row for row in rows if isinstance(row, dict) and row.get("instId") == inst_id), None)

    async def newest(self, inst_id: str, limit: int) -> list[Trade]:
        """Return the newest single trades, by id; what is no trade is left out."""
        return parse_rows(inst_id, await self.get("/api/v5/market/trades", instId=inst_id, limit=limit))[0]

    async def history(self, inst_id: str, kind: int, after: int) -> list[Any]:
        """Return PAGE single trades with lower ids (kind 1) or times (kind 2, ms), newest first."""
        return await self.get("/api/v5/market/history-trades", instId=inst_id, type=kind, after=after, limit=PAGE)

    async def candles(self, inst_id: str, start: int, end: int) -> list[Any]:
        """Return the 1-minute candles from `start` up to and without `end` (ms), at most CANDLES, newest first."""
        page = {"after": end, "before": start - 1, "limit": CANDLES}
        return await self.get("/api/v5/market/history-candles", instId=inst_id, bar="1m", **page)


def rest_session() -> aiohttp.ClientSession:
    """Return what Rest asks through; it honours the system's proxy, as websockets does."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REST_TIMEOUT_S), trust_env=True)


# -------------------------------------------------------------------------------------------------------------- feed


class Seldom:
    """Lets a lasting condition be said at most once in SAY_AGAIN_S, per kind."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def may_say(self, kind: str) -> bool:
        """Tell whether it is time to say it."""
        now = monotonic()
        self._said = {kind: said for kind, said in self._said.items() if now - said < SAY_AGAIN_S}
        if kind in self._said:
            return False
        self._said[kind] = now
        return True


def spawn(tasks: asyncio.TaskGroup, job: Coroutine[Any, Any, None]) -> None:
    """Run a job beside everything else, unless the exporter is about to end."""
    try:
        tasks.create_task(job)
    except RuntimeError:  # the group is shutting down
        job.close()


WHOLE_MESSAGES = {Opcode.TEXT, Opcode.BINARY}


class Link(websockets.ClientConnection):
    """A connection that hands over each frame as it comes from the socket: no queue between socket and file."""

    unacked: set[str]  # instruments whose subscription OKX has not acknowledged
    unheard: list[str]  # instruments by trades to come before it may replace another link; OKX repeats an old one first
    replaces: Link | None = None  # until this one is sure to bring everything
    leaving = False  # another link replaces this one, or has done so
    heard = True  # something arrived since somebody last looked
    reason = ""  # why we ended it
    take_frame: Callable[[bytes], None] | None = None  # its errors reach the event loop's exception handler

    def data_received(self, data: bytes) -> None:
        """Take a burst as fast as it comes, and single pushes a few at a time: waking up costs more than a trade."""
        super().data_received(data)
        if self.take_frame is not None and len(data) < BURST_BYTES:
            self.transport.pause_reading()
            self.loop.call_later(GATHER_S, self.transport.resume_reading)

    def process_event(self, event: Event) -> None:
        """Take a whole message at once; fragments, pings and closing are the library's."""
        if self.take_frame is not None and type(event) is Frame and event.fin and event.opcode in WHOLE_MESSAGES:
            self.take_frame(bytes(event.data))
        else:
            super().process_event(event)

    def end(self, reason: str) -> None:
        """Cut the connection; a half-open one would not answer a polite close."""
        self.reason = self.reason or reason
        self.transport.abort()


class Feed:
    """OKX's WebSocket `trades` channel: connected and subscribed, again and again (docs-v5, WebSocket, Public)."""

    def __init__(self, url: str, takes: dict[str, Callable[[Trade], None]], tasks: asyncio.TaskGroup) -> None:
        self._url = url
        self._takes = takes  # by instId, what takes its pushes
        self._tasks = tasks
        self._link: Link | None = None
        self._subscribed_once = False
        self._rejected_since = self._rejected_at = -ON_END_S
        self._replace_at = -UPGRADES_APART_S
        self._seldom = Seldom()

    def reconnect(self, reason: str) -> None:
        """Cut the present connection and open another."""
        if self._link is not None:
            self._link.end(reason)

    async def stay_connected(self, replaces: Link | None = None) -> None:
        """Serve one connection after the other; end when another takes over."""
        pauses = delays()
        options: dict[str, Any] = {"compression": None, "ping_interval": None, "create_connection": Link}
        options |= {"open_timeout": CONNECT_S, "close_timeout": 1, "max_size": FRAME_BYTES}
        if replaces:
            self._replace_at = max(monotonic(), self._replace_at + UPGRADES_APART_S)
            await asyncio.sleep(self._replace_at - monotonic())
        while True:
            opened_at = monotonic()
            try:
                self._link = link = cast(Link, await websockets.connect(self._url, **options))
            # ImportError: a SOCKS proxy; ValueError: a redirect to nowhere
            except (OSError, ImportError, ValueError, websockets.WebSocketException) as exc:
                reason = f"can't connect: {describe(exc)}"
            else:
                reason = await self._serve(link, replaces)
                replaces = link.replaces
                if link.leaving:
                    log.info("Connection replaced", reason=reason)
                    if replaces:  # two upgrades in a row
                        await replaces.close()
                    return
                if monotonic() - opened_at >= STEADY_S and not link.unacked:
                    pauses = delays()
            delay = next(pauses)
            log.warning("Not connected to OKX", url=self._url, reason=reason, again_in=f"{delay:.1f}s")
            await asyncio.sleep(delay)

    async def _serve(self, link: Link, replaces: Link | None) -> str:
        """Subscribe and take frames until the connection ends; return why it ended."""
        link.unacked, link.unheard, link.replaces = set(self._takes), [*self._takes] * 2, replaces
        link.take_frame = partial(self._on_frame, link)
        link.transport.max_size = READ_BYTES  # type: ignore[attr-defined] # asyncio's own is 256 KB, and stays in memory
        watch = self._tasks.create_task(self._watch(link))
        args = [{"channel": "trades", "instId": inst_id} for inst_id in self._takes]
        try:
            for i in range(0, len(args), SUBSCRIBE_ARGS):
                await link.send(orjson.dumps({"op": "subscribe", "args": args[i : i + SUBSCRIBE_ARGS]}).decode())
            while True:  # fragmented messages
                self._on_frame(link, await link.recv(decode=False))
        except websockets.ConnectionClosed as exc:
            return link.reason or describe(exc)
        finally:
            watch.cancel()
            await link.close()

    async def _watch(self, link: Link) -> None:
        """End a connection that is silent, or not subscribed in time; ping it when it is quiet."""
        opened_at = heard_at = monotonic()
        pinged = False
        while not link.reason:
            await asyncio.sleep(WATCH_S)
            now = monotonic()
            if link.heard:
                link.heard, pinged, heard_at = False, False, now
            if link.unacked and now - opened_at >= SUBSCRIBE_S:
                link.end(f"no ack within {SUBSCRIBE_S:.0f}s for {', '.join(sorted(link.unacked)[:5])}")
            elif now - heard_at >= PING_AFTER_S + PONG_S:
                link.end(f"nothing heard for {now - heard_at:.0f}s")
            elif link.replaces and not link.unacked and (not link.unheard or now - opened_at >= REPLACE_S):
                old, link.replaces = link.replaces, None
                await old.close()
            elif now - heard_at >= PING_AFTER_S and not pinged:
                pinged = True
                with contextlib.suppress(websockets.ConnectionClosed):  # _serve sees it as well
                    await link.send("ping")

    def _on_frame(self, link: Link, frame: bytes) -> None:
        """Take what arrived: the one path from the socket to the file's buffer."""
        link.heard = True
        try:
            message = orjson.loads(frame)
            rows, channel = message["data"], message["arg"]["channel"]
        except orjson.JSONDecodeError:
            if frame != b"pong":
                self._odd("A frame that is not JSON", frame)
            return
        except (KeyError, TypeError):  # no push
            self._on_event(link, message if isinstance(message, dict) else {}, frame)
            return
        if channel != "trades" or type(rows) is not list:
            self._odd("A push that is not of the trades channel", frame)
            return
        for row in rows:
            trade = parse_trade(row)
            take = self._takes.get(trade.inst_id)
            if take is None:
                raise BuildFailError(f"Unexpected instId: {shown(trade.inst_id)} in {shown(row)}")
            if link.replaces is not None and trade.inst_id in link.unheard:
                link.unheard.remove(trade.inst_id)
            take(trade)

    def _on_event(self, link: Link, message: dict[str, Any], frame: bytes) -> None:
        """Take an ack, an error or a notice."""
        event, code, text = (shown(message.get(key)) for key in ("event", "code", "msg"))
        arg = message.get("arg")
        inst_id = shown(arg.get("instId")) if isinstance(arg, dict) else ""
        if event == "subscribe" and inst_id in link.unacked:
            link.unacked.discard(inst_id)
            log.info("Subscribed to trades", instId=inst_id)
            if not link.unacked:
                self._subscribed_once, self._rejected_at = True, -ON_END_S
        elif event == "error" and link.unacked:
            self._on_rejection(link, f"code {code}, {text}", final=code in REJECTIONS)
        elif event == "notice" and code == "64008":
            if not link.leaving:
                log.info("OKX will close this connection for an upgrade: opening another beside it")
                link.leaving = True
                spawn(self._tasks, self.stay_connected(link))
        else:
            self._odd("OKX reports an error" if event == "error" else "An event of no known meaning", frame)

    def _on_rejection(self, link: Link, what: str, *, final: bool) -> None:
        """Stop where OKX refuses a subscription for good: at start, or for REJECTED_S on end; else try again."""
        now = monotonic()
        if final:
            if now - self._rejected_at >= ON_END_S:
                self._rejected_since = now
            self._rejected_at = now
            if not self._subscribed_once or now - self._rejected_since >= REJECTED_S:
                raise BuildFailError(f"Subscription rejected: {what}")
        link.end(f"subscription failed: {what}")

    def _odd(self, what: str, frame: bytes) -> None:
        """Warn of a frame that is no trade; the connection stays."""
        if self._seldom.may_say(what):
            log.warning(what, frame=shown(frame[:500]))


# ---------------------------------------------------------------------------------------------------------- recorder


@dataclasses.dataclass
class Desk:
    """What the recorders share."""

    spawn: Callable[[Coroutine[Any, Any, None]], object]  # runs it beside everything else; its errors end the exporter
    instruments: int
    backfill_ms: int  # how far back gaps are repaired
    day_finished: Callable[[str, str], None]  # takes instId and the finished day after the first line of the next
    seldom: Seldom = dataclasses.field(default_factory=Seldom)
    repairing: set[str] = dataclasses.field(default_factory=set)  # instIds
    awake_s: float = 0.0  # a clock that stands still while the PC sleeps: then REST is not to be blamed
    helped_at: float = 0.0  # of that clock, when REST last closed a gap or proved one, or was first needed
    given_up: bool = False  # it helped nobody for UNREPAIRED_S

    async def stay_awake(self) -> None:
        """Let the clock go on; a sleep of the PC looks like one long pause here."""
        while True:
            before = monotonic()
            await asyncio.sleep(WATCH_S)
            self.awake_s += min(monotonic() - before, 4 * WATCH_S)


class Progress:
    """What the log says of a repair, from the first request on."""

    def __init__(self, sequence: Sequence, inst_id: str, seldom: Seldom, now: float) -> None:
        self._sequence = sequence
        self._inst_id = inst_id
        self._started_at = self._said_at = now
        self.fetched = 0
        ranges = list(sequence.missing())
        self._ids = {"instId": inst_id, "after_id": ranges[0][0] - 1, "before_id": ranges[-1][1] + 1}
        if seldom.may_say(f"gap of {inst_id} after {ranges[0][0]}"):  # a full disk brings the same one again and again
            log.warning("Gap found", **self._ids, missing=sum(high - low + 1 for low, high in ranges))

    def say(self, now: float) -> None:
        """Say how far it is, every PROGRESS_S."""
        if now - self._said_at >= PROGRESS_S and self._sequence.open:
            self._said_at = now
            took = now - self._started_at
            missing = sum(high - low + 1 for low, high in self._sequence.missing())
            share = self.fetched / (self.fetched + missing)
            eta = timedelta(seconds=round(took / share - took)) if share > 0.0001 else "unknown"
            log.info(f"Backfill {self._inst_id} {share:.0%}", fetched=self.fetched, missing=missing, eta=str(eta))

    def end(self, now: float) -> None:
        """Say that it is closed."""
        ids = self._ids | {"before_id": self._sequence.next}
        log.info("Gap repaired", **ids, fetched=self.fetched, took=f"{now - self._started_at:.1f}s")


class Recorder:
    """One instrument's way from a push to the file: dedup, sequence, repair, day files."""

    def __init__(self, instrument: Instrument, vault: Vault, rest: Rest, desk: Desk) -> None:
        self.instrument = instrument
        self.inst_id = instrument.inst_id
        self.files = TradeFiles(vault, self.inst_id)
        self.sequence = Sequence(max(1, WAITING_TRADES // desk.instruments))
        self.recent = RecentKeys()
        self.failed = False  # the last write failed: pushes are dropped until the file is recovered, and fetched then
        self.received = self.repaired = 0  # pushes; single trades from REST
        self.received_before = self.written_before = 0  # when they were last looked at
        self.heard_at = monotonic()  # about when the last push came
        self._format = RecordFormat(instrument)
        self._rest = rest
        self._desk = desk
        self._newest_day = next(reversed(vault.days(self.inst_id)), "")
        self._day = self._second = ""  # of the newest line
        self._lines: list[str] = []  # of the day, not yet in the file
        self._reset_check_at = 0.0  # not before
        self._reset_checks = 0
        self._bad_rows: dict[str, float] = {}  # from REST, since when

    def recover(self) -> None:
        """Go on behind what is stored, at start and after a failed write; raise OSError where that fails."""
        self._lines.clear()
        last, ts, keys = self.files.recover()
        self.recent.clear()
        self.recent.update(dict.fromkeys(keys))
        self.sequence.restart(last, ts)
        self.failed = False

    def take(self, trade: Trade) -> None:
        """Take a push."""
        self.received += 1
        sequence = self.sequence
        if trade.key in self.recent:
            self.recent.touch(trade.key)
            sequence.skipped += 1
        elif self.failed:
            sequence.note(trade)
        else:
            self.store(sequence.offer(trade))
            if sequence.open or sequence.reset_hint:
                self._start_repair()

    def store(self, items: Iterable[Trade | Gap]) -> None:
        """Turn what the sequence lets through into lines, and see to it that they reach the file soon."""
        gaps: list[Gap] = []
        for item in items:
            if self.failed:
                return
            if isinstance(item, Gap):
                if not gaps:
                    gaps = [item for item in items if isinstance(item, Gap)]
                    self._store_gaps(gaps)
                continue
            second = utc_second(item.ts[:10])
            if second is not self._second:
                self._second = second
                if second[:10] != self._day:
                    self._turn_day(second[:10])
                    if self.failed:
                        return
            if not self._lines:
                asyncio.get_running_loop().call_soon(self.flush)  # when all that came together is taken
            self._lines.append(self._format.line(item, second))
            self.recent.add(item.key)
            if item.repaired:
                self.repaired += 1
        if len(self._lines) >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Hand the lines to the file."""
        try:
            self._write()
        except OSError as exc:
            self.fail(exc)

    def close(self) -> None:
        """Put everything on the disk, at the end."""
        try:
            self._write()
            self.files.close()
        except OSError as exc:
            log.error("The last lines are not written; they will be fetched", instId=self.inst_id, error=describe(exc))

    def fail(self, exc: OSError) -> None:
        """Leave a file that can't be written, and recover it when there is room again."""
        self._lines.clear()
        if self._desk.seldom.may_say("disk"):
            what = "Can't write to the Vault: trying every second; what is missed will be fetched"
            log.error(what, instId=self.inst_id, error=describe(exc))
        if not self.failed:
            self.failed = True
            self._desk.spawn(self._mend())

    def _write(self) -> None:
        if self._lines:
            lines = "".join(self._lines).encode()
            self._lines.clear()
            self.files.append(self._day, lines)

    async def _mend(self) -> None:
        while self.failed:
            await asyncio.sleep(RETRY_WRITE_S)
            try:
                self.files.try_to_write(PROBE_BYTES)
                self.recover()
            except OSError as exc:
                self.fail(exc)
        self._start_repair()

    def _store_gaps(self, gaps: list[Gap]) -> None:
        """Put gaps on record before anything behind them is stored."""
        try:
            self.files.append_gaps(gaps)
        except OSError as exc:
            self.fail(exc)
            return
        for gap in gaps:
            after, before = "" if gap.after_id is None else gap.after_id, gap.before_id
            log.warning("Gap on record", instId=self.inst_id, reason=gap.reason, after_id=after, before_id=before)

    def _turn_day(self, day: str) -> None:
        self.flush()
        self._day = day
        if day > self._newest_day:
            if self._newest_day:
                self._desk.day_finished(self.inst_id, self._newest_day)
            self._newest_day = day

    def _start_repair(self) -> None:
        repairing = self._desk.repairing
        if self.inst_id not in repairing:
            if not repairing:
                self._desk.helped_at = self._desk.awake_s
            repairing.add(self.inst_id)
            self._desk.spawn(self._repair())

    async def _repair(self) -> None:
        """Ask REST for whatever is missing, for whatever reason it is, round after round, until nothing is."""
        began = monotonic()
        repair, progress, horizon_kept = Repair(self.sequence, began), None, False
        try:
            while (self.sequence.open or self.sequence.reset_hint) and not self.failed:
                pages = repair.plan(monotonic())
                patience = self._patience()
                if not pages or (self._desk.given_up and self._rest.failed_at < began):  # it may answer by now
                    hint = self.sequence.reset_hint
                    if hint and monotonic() >= self._reset_check_at and await self._check_reset(hint):
                        repair, progress = Repair(self.sequence, monotonic()), None
                    await asyncio.sleep(LATE_S / 5)
                elif patience <= 0:
                    self._give_up(repair)
                    repair, progress = Repair(self.sequence, monotonic()), None
                else:
                    progress = progress or Progress(self.sequence, self.inst_id, self._desk.seldom, monotonic())
                    with contextlib.suppress(TimeoutError):  # after a sleep of the PC it comes too early
                        async with asyncio.timeout(patience):
                            horizon_kept = horizon_kept or await self._keep_horizon()
                            if horizon_kept:
                                await self._ask(repair, pages, progress)
            if progress and not self.failed:
                progress.end(monotonic())
        finally:
            self._desk.repairing.remove(self.inst_id)
            self._bad_rows.clear()

    async def _ask(self, repair: Repair, pages: list[int], progress: Progress) -> None:
        """Ask for pages all at once, and learn from them in order."""
        asked = [asyncio.ensure_future(self._rest.history(self.inst_id, 1, after)) for after in pages]
        try:
            for after, answer in zip(pages, asked, strict=True):
                trades = self._good_rows(await answer)
                if self.failed or not self.sequence.open:
                    return
                before, now = self.repaired, monotonic()
                self.store(repair.learn(after, trades, now))
                if repair.helped_at == now:
                    self._desk.helped_at = self._desk.awake_s
                progress.fetched += self.repaired - before
                progress.say(now)
        finally:
            for answer in asked:
                answer.cancel()

    def _patience(self) -> float:
        """Return how long REST has still to help, s, before what is missing goes on record."""
        desk = self._desk
        return desk.helped_at + UNREPAIRED_S - desk.awake_s if desk.backfill_ms and not desk.given_up else 0.0

    def _give_up(self, repair: Repair) -> None:
        """Put on record what is missing, but for what may still come late."""
        if self._desk.backfill_ms and not self._desk.given_up:
            self._desk.given_up = True
            self._desk.spawn(self._until_rest_helps(self.sequence.seen, self.sequence.seen_ts))
        self.store(self.sequence.give_up(repair.settled, "unrepaired" if self._desk.backfill_ms else "horizon"))

    async def _until_rest_helps(self, trade_id: int, ts: str) -> None:
        """Keep asking REST until it shows a trade with this id or time, or later; then gaps are repaired again."""
        asked_at = monotonic()
        while not any(row.last >= trade_id or row.ts >= ts for row in await self._rest.newest(self.inst_id, 1)):
            self._rest.failed_at = max(self._rest.failed_at, asked_at)
            await asyncio.sleep(ASK_AGAIN_S[1])
            asked_at = monotonic()
        self._desk.given_up, self._desk.helped_at = False, self._desk.awake_s
        log.info("REST helps again: from now on gaps are repaired")

    def _good_rows(self, rows: list[Any]) -> list[Trade]:
        """Return an answer's trades by id, up to the first bad row of a missing trade, which is asked for again."""
        trades, bad = parse_rows(self.inst_id, rows)
        for trade in trades:
            self._bad_rows.pop(trade.trade_id, None)
        for trade_id, exc in bad:
            known = int(trade_id) if re.fullmatch(FIELD_PATTERNS[3], trade_id) else -1
            if known < 0 or self.sequence.lacks(known):
                now = self._desk.awake_s
                if now - self._bad_rows.setdefault(trade_id, now) >= BAD_ROW_S:
                    way = f"REST sends trade {shown(trade_id, 60)} so; --backfill-hours 0 passes over it"
                    raise BuildFailError(f"{exc.args[0]} ({way})") from None
                trades = [trade for trade in trades if trade.last < known]
        return trades

    async def _keep_horizon(self) -> bool:
        """Put on record what is older than --backfill-hours before the trade that showed the gap; False: ask again."""
        sequence = self.sequence
        horizon = int(sequence.shown_ts or sequence.ts or 0) - self._desk.backfill_ms
        if not sequence.ts or int(sequence.ts) >= horizon:
            return True
        older = [row.last for row in self._good_rows(await self._rest.history(self.inst_id, 2, horizon))]
        if not older:
            await asyncio.sleep(ASK_AGAIN_S[1])
            return False
        rows = self._good_rows(await self._rest.history(self.inst_id, 1, older[-1] + 1 + PAGE))
        newer_ts = next((row.ts for row in rows if row.last > older[-1]), f"{horizon:013}")
        if not self.failed:
            self.store(sequence.give_up(older[-1], "horizon", newer_ts))
        return True

    async def _check_reset(self, hint: Trade) -> bool:
        """Ask REST whether OKX's ids were really reset; a stray old push is no more than a duplicate."""
        self._reset_check_at = monotonic() + RESET_CHECK_S
        self._reset_checks += 1
        rows: list[Trade] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_TIMEOUT_S):
                rows = await self._rest.newest(self.inst_id, PAGE)
        ts, newest = max(((row.ts, row.last) for row in rows), default=("", 0))  # the page may still hold ids of before
        if self.failed or (ts < hint.ts and self._reset_checks < ABSENT_ANSWERS):  # REST lags
            return False
        self._reset_checks, self.sequence.reset_hint = 0, None
        if ts < hint.ts or newest >= (self.sequence.next or 0) - 1 - RESET_IDS:
            return False
        self.recent.clear()
        self.store(self.sequence.reset(hint))
        return True

    async def missed_by_feed(self) -> bool:
        """Ask REST whether there are trades that the feed has not shown."""
        newest = await self._rest.newest(self.inst_id, 1)
        known = max(self.sequence.seen, self.sequence.last or 0)
        return any(trade.last > known for trade in newest)


# ------------------------------------------------------------------------------------------------------------ verify

EXACT = decimal.Context(prec=200)  # sums of sizes are never rounded
PARALLEL_BYTES = 32 << 20  # from this size on, several processes read a Vault faster than one
VERDICT_LINE = re.compile(
    rf'{{"audited_utc":"{STAMP}","instId":"([^"\\]+)","day":"(\d{{4}}-\d\d-\d\d)","minutes_agreeing":"(\d{{1,4}})"'
    r',"minutes_differing":"(\d{1,4})","minutes_not_covered":"(\d{1,4})","last_id":"(\d{0,19})"}\n'.encode(),
    re.ASCII,
)


class Verdict(NamedTuple):
    """How a stored UTC day agrees with OKX's candles; the last one of a day on record counts."""

    inst_id: str
    day: str
    agreeing: int  # minutes
    differing: int
    not_covered: int  # by what is stored, or by OKX's candles
    last_id: str  # of the day's last line when it was audited; empty where there was none

    def __str__(self) -> str:
        """Return it as the log and `--audit` show it."""
        covered = self.agreeing + self.differing
        uncovered = f", {self.not_covered} not covered" if self.not_covered else ""
        return f"{self.inst_id} {self.day}: {self.agreeing} of {covered} covered minutes agree with OKX{uncovered}"

    def line(self, audited_utc: str) -> bytes:
        """Return the line of the audit file."""
        names = ("instId", "day", "minutes_agreeing", "minutes_differing", "minutes_not_covered", "last_id")
        values = dict(zip(names, map(str, self), strict=True))
        return orjson.dumps({"audited_utc": audited_utc, **values}) + b"\n"

    @classmethod
    def parse(cls, inst_id: str, line: bytes) -> Self | None:
        """Return what a line of the audit file says, or None where it is invalid or of another instrument."""
        match = VERDICT_LINE.fullmatch(line)
        if not match or match[1] != inst_id.encode():
            return None
        return cls(inst_id, match[2].decode(), int(match[3]), int(match[4]), int(match[5]), match[6].decode())


def audit_path(vault: Vault, inst_id: str) -> Path:
    """Return the file that holds an instrument's verdicts."""
    return vault.root / "meta/okx/audit" / f"{inst_id}.jsonl"


@contextlib.contextmanager
def reading(vault: Vault) -> Iterator[None]:
    """Turn an OSError into a VaultError: for code that reads the Vault and does nothing else."""
    try:
        yield
    except OSError as exc:
        raise unusable(vault.root, exc) from exc


def print_report(*lines: str) -> None:
    """Print lines of a report; raise SystemExit(1) where the output is closed or full.

    A reader that has left (`--verify | head`) is no error worth a message.
    """
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as exc:
        if exc.errno not in {errno.EPIPE, errno.EINVAL}:  # the second is what Windows says of a closed pipe
            log.error(f"The report can't be written: {describe(exc)}")
        raise SystemExit(1) from None


def show_progress(text: str) -> None:
    """Show how far a judge is, in place of what it showed before, where a person is watching."""
    if on_terminal():
        with contextlib.suppress(OSError):
            print(f"\r{text:<60}\r{text}", end="", file=sys.stderr, flush=True)


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun: 1 problem, 2 problems."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(texts: list[str]) -> list[str]:
    """Return at most SHOWN of the texts, and how many more there are."""
    more = len(texts) - SHOWN
    return texts[:SHOWN] + ([f"and {more} more"] if more > 0 else [])


class Problems:
    """What verify found: of each kind the first SHOWN places, and how many there are."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, where: str, line: bytes = b"") -> None:
        """Add one; `where` names file and line."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.places.setdefault(kind, []).append(f"{where}: {shown(line.rstrip())}" if line else where)

    def merge(self, other: Problems) -> None:
        """Add those of another day."""
        for kind, places in other.places.items():
            self.places[kind] = [*self.places.get(kind, []), *places][:SHOWN]
        self.counts.update(other.counts)


def record_defect(line: bytes) -> str:
    """Say what is wrong with a line that is no RECORD."""
    for kind, wrong in (
        ("a torn last line", not line.endswith(b"\n")),
        ("a blank line", not line.strip()),
        ("a byte order mark", line.startswith(b"\xef\xbb\xbf")),
        ("a CRLF line end", line.endswith(b"\r\n")),
    ):
        if wrong:
            return kind
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "a line that is not JSON"
    if not isinstance(record, dict) or tuple(record) != RECORD_KEYS:
        return "a line without the twelve keys in order"
    if not all(isinstance(value, str) for value in record.values()):
        return "a value that is no string"
    return "a line that is not compact JSON" if orjson.dumps(record) + b"\n" != line else "an invalid value"


class Place(NamedTuple):
    """A valid record and where it stands."""

    line: bytes
    path: Path
    number: int

    @property
    def time(self) -> str:
        """Return 21:34:56.123Z."""
        return self.line[29:42].decode()

    @property
    def trade_id(self) -> int:
        """Return the trade's id."""
        return int(orjson.loads(self.line)["trade_id"])

    @property
    def contract(self) -> tuple[str, ...]:
        """Return the values of the fields in CONTRACT."""
        record = orjson.loads(self.line)
        return tuple(record[name] for name in CONTRACT)


@dataclasses.dataclass
class DayCheck:
    """What verify read in the files of one day. Lines that are no record of this day are in none of its figures."""

    inst_id: str
    day: str
    problems: Problems = dataclasses.field(default_factory=Problems)
    lines: int = 0
    first: Place | None = None
    first_after_midnight: Place | None = None  # the first line after 00:00:01
    last_before_midnight: Place | None = None  # the last line before 23:59:59
    last: Place | None = None
    bought: Decimal = Decimal(0)  # contracts
    sold: Decimal = Decimal(0)


def check_day(inst_id: str, day: str, paths: list[Path]) -> DayCheck:
    """Check the form of each line of a day, and that the ids rise."""
    check = DayCheck(inst_id, day)
    problem = check.problems.add
    expected = (day.encode(), inst_id.encode(), symbol_canon(inst_id).encode())
    sums = {b"buy": Decimal(0), b"sell": Decimal(0)}
    first = early = after_midnight = last = None
    last_id = -1
    try:
        for path, number, line in numbered_lines(paths):
            match = RECORD.fullmatch(line)
            if match is None:
                problem(record_defect(line), f"{path}:{number}", line)
                continue
            line_day, line_inst, symbol, trade_id, side, size = match.group(1, 3, 4, 5, 6, 8)
            if (line_day, line_inst, symbol) != expected:
                kind = "a line of another day" if line_day != expected[0] else "a line of another instrument"
                problem(kind, f"{path}:{number}", line)
                continue
            number_id = int(trade_id)
            if number_id <= last_id:
                kind = "a trade stored twice" if number_id == last_id else "ids that do not rise"
                problem(kind, f"{path}:{number}", line)
            sums[side] = EXACT.add(sums[side], Decimal(size.decode()))
            check.lines += 1
            last_id, last = number_id, (line, path, number)
            time_of_day = line[29:41]
            if time_of_day < b"23:59:59":
                early = last
            if after_midnight is None:
                first = first or last
                if time_of_day > b"00:00:01.000":
                    after_midnight = last
    except OSError as exc:
        problem("a file that can't be read", f"{inst_id} {day}: {describe(exc)}")
    check.first, check.first_after_midnight, check.last_before_midnight, check.last = (
        place and Place(*place) for place in (first, after_midnight, early, last)
    )
    check.bought, check.sold = sums[b"buy"], sums[b"sell"]
    return check


def check_days(jobs: list[tuple[str, str, list[Path]]]) -> Iterator[DayCheck]:
    """Check all days (instId, day, files), on all cores where there is much to read; show how far it is."""
    size = sum(path.stat().st_size for job in jobs for path in job[2])
    done = 0
    if size > PARALLEL_BYTES and len(jobs) > 1:
        workers = min(os.cpu_count() or 1, len(jobs), 61)  # more are an error on Windows
        leave_ctrl_c_to_us = signal.SIGINT, signal.SIG_IGN
        try:
            with concurrent.futures.ProcessPoolExecutor(
                workers, initializer=signal.signal, initargs=leave_ctrl_c_to_us
            ) as pool:
                for check in pool.map(check_day, *zip(*jobs, strict=True)):
                    done += 1
                    show_progress(f"{done} of {len(jobs)} day files read")
                    yield check
        # no shared memory, no semaphores, no further process or thread, or one was killed: not the Vault's fault
        except (OSError, ImportError, RuntimeError) as exc:
            log.warning("Reading with several processes failed, going on with one", error=describe(exc))
    for job in jobs[done:]:
        done += 1
        yield check_day(*job)
        show_progress(f"{done} of {len(jobs)} day files read")
    show_progress("")


def check_seams(days: list[DayCheck]) -> None:
    """Check that the ids of an instrument rise from each stored day to the next, but for a second around midnight.

    `days` are in order. A problem is added to the later day.
    """
    for day, other in itertools.pairwise(day for day in days if day.lines):
        for low, high in ((day.last_before_midnight, other.first), (day.last, other.first_after_midnight)):
            if low and high and low.trade_id >= high.trade_id:
                where = f"{high.path}:{high.number} has {high.trade_id}, {low.path}:{low.number} {low.trade_id}"
                other.problems.add("ids that do not rise from day to day", where)
                break


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line of a gaps or an audit file, which may not be there, or no longer."""
    with contextlib.suppress(FileNotFoundError):
        for _, number, line in numbered_lines([path]):
            yield number, line


def check_metadata(vault: Vault, inst_id: str, last: Place | None) -> Problems:
    """Check an instrument's gaps, audit and metadata files, and look for files that do not belong to its days.

    `last` is its newest line.
    """
    problems = Problems()
    for path, parse, name in (
        (vault.gaps_path(inst_id), Gap.parse, "gaps"),
        (audit_path(vault, inst_id), Verdict.parse, "audit"),
    ):
        for number, line in lines_of(path):
            if not parse(inst_id, line):
                problems.add(f"an invalid line in the {name} file", f"{path}:{number}", line)
    saved = vault.load_instrument(inst_id)
    if last and (saved is None or saved.contract != last.contract):
        values = " ".join(saved.contract) if saved else "none that is valid"
        what = f"the newest line has {' '.join(last.contract)}, {vault.instrument_path(inst_id)} {values}"
        problems.add("ctVal, ctMult or ctType differ from the saved instrument", what)
    known = {path for paths in vault.days(inst_id).values() for path in paths}
    for path in sorted(set((vault.trades / inst_id).glob("*")) - known):
        if not path.name.startswith(PROBE):
            problems.add("a file that is no day of trades", str(path))
    return problems


def dates(first: date, last: date) -> list[str]:
    """Return all days from the first to the last, both included."""
    return [str(first + timedelta(number)) for number in range((last - first).days + 1)]


def touches(gap: Gap, day: str) -> bool:
    """Tell whether a gap may hold trades of a day.

    A pending range that goes over midnight ends with the first id of a day, so it holds nothing of that day.
    """
    begin, end = gap.after_utc[:10], gap.before_utc[:10] or "9"
    return begin <= day < end or (day == end and (begin == end or gap.reason != "pending"))


def is_hole(gap: Gap) -> bool:
    """Tell whether trades are missing there for good: `start` without a lower end is where the record begins."""
    return gap.reason in {"unrepaired", "horizon"} or (gap.reason == "start" and gap.after_id is not None)


def time_range(begin: str, end: str) -> str:
    """Return a range of time in words, of two times like 2026-11-21T10:56:01.123Z, which may be empty."""
    length = 19 if begin[:16] == end[:16] else 16
    after, before = (stamp[:length].replace("T", " ") for stamp in (begin, end))
    if not after or not before:
        return f"from {after}" if after else f"up to {before}" if before else "at a time not known"
    return f"{after} to {before[11:] if after[:10] == before[:10] else before}"


def ranges_in_words(inst_id: str, gaps: Iterable[Gap]) -> list[str]:
    """Return a line for each range of time in which something is missing, in order; those that touch are merged."""
    merged: list[tuple[str, str, str]] = []  # begin, end, reason
    for gap in sorted(gaps, key=lambda gap: (gap.reason, gap.after_utc, gap.before_utc)):
        begin, end, reason = merged[-1] if merged else ("", "", "")
        if gap.reason == reason and gap.after_utc[:16] <= end[:16]:
            merged[-1] = begin, max(end, gap.before_utc), reason
        else:
            merged.append((gap.after_utc, gap.before_utc, gap.reason))
    return [f"{inst_id} {time_range(begin, end)} ({reason})" for begin, end, reason in sorted(merged)]


def count_ids(gaps: Iterable[Gap]) -> int:
    """Return how many ids gaps name, each counted once."""
    count = end = 0
    for low, high in sorted(((gap.after_id or 0) + 1, gap.before_id) for gap in gaps):
        count += max(0, high - max(low, end))
        end = max(end, high)
    return count


def pending_days(gaps: Iterable[Gap]) -> set[str]:
    """Return the days of which pending gaps may hold trades; where a gap begins is not always known."""
    days: set[str] = set()
    for gap in gaps:
        with contextlib.suppress(ValueError, OverflowError):  # an edited file may name a day that does not exist
            end = date.fromisoformat((gap.before_utc or gap.after_utc)[:10])
            begin = date.fromisoformat(gap.after_utc[:10]) if gap.after_utc else end - timedelta(1)
            days.update(filter(partial(touches, gap), dates(begin, end)))
    return days


def missing_in_words(gaps: dict[str, list[Gap]]) -> tuple[list[str], list[str]]:
    """Return what is missing by the gaps files (by instrument): lines for a report, and parts of its last line."""
    holes = [text for i in gaps for text in ranges_in_words(i, filter(is_hole, gaps[i]))]
    pending = {inst_id: [gap for gap in gaps[inst_id] if gap.reason == "pending"] for inst_id in gaps}
    awaited = [text for inst_id in gaps for text in ranges_in_words(inst_id, pending[inst_id])]
    lines = [f"Missing: {text}" for text in shortened(holes)] + [f"Pending: {text}" for text in shortened(awaited)]
    for inst_id, recorded in gaps.items():
        if absent := count_ids(gap for gap in recorded if gap.reason == "absent"):
            lines.append(f"Not missing: {inst_id}, {number_of(absent, 'id')} that OKX never used (absent)")
    days = pending_days(itertools.chain(*pending.values()))
    parts = [f"{number_of(len(holes), 'range')} missing"] if holes else []
    return lines, parts + ([f"{number_of(len(days), 'day')} still to come (pending)"] if awaited else [])


TABLE = "{:<16} {:<10} {:>9}  {:<13} {:<13} {:>12} {:>12} {:>16} {:>16} {:>4} {:>8}  {}"
TABLE_HEAD = TABLE.format(
    *("instrument", "UTC day", "lines", "first UTC", "last UTC", "first id", "last id"),
    *("contracts bought", "contracts sold", "gaps", "problems", ""),
).rstrip()


def table_row(check: DayCheck, gaps: list[Gap]) -> str:
    """Return a day's row of the table; `gaps` are those of the instrument."""
    ends = [(place.time, place.trade_id) if place else ("", "") for place in (check.first, check.last)]
    times, ids = zip(*ends, strict=True)
    here = [gap for gap in gaps if touches(gap, check.day)]
    holes = sum(gap.reason == "absent" or is_hole(gap) for gap in here)
    pending = "pending" if any(gap.reason == "pending" for gap in here) else ""
    sums = f"{check.bought:f}", f"{check.sold:f}"
    found = check.problems.counts.total()
    row = TABLE.format(check.inst_id, check.day, check.lines, *times, *ids, *sums, holes, found, pending)
    return row.rstrip()


def verify(vault: Vault) -> int:
    """Check the format of every stored line, print a table, what is missing and a verdict; return the exit code."""
    output, problems = [TABLE_HEAD], Problems()
    with reading(vault):
        checks: dict[str, list[DayCheck]] = {inst_id: [] for inst_id in vault.instruments()}
        jobs = [(inst_id, day, paths) for inst_id in checks for day, paths in vault.days(inst_id).items()]
        for check in check_days(jobs):
            checks[check.inst_id].append(check)
        gaps = {inst_id: list(dict.fromkeys(vault.gaps(inst_id))) for inst_id in checks}
        for inst_id, days in checks.items():
            check_seams(days)
            output += [table_row(day, gaps[inst_id]) for day in days]
            for day in days:
                problems.merge(day.problems)
            problems.merge(check_metadata(vault, inst_id, next((day.last for day in reversed(days) if day.last), None)))
    for kind, places in problems.places.items():
        output += ["", f"{problems.counts[kind]} x {kind}", *(f"  {place}" for place in places)]
    lines = sum(day.lines for days in checks.values() for day in days)
    total = problems.counts.total()
    verdict = number_of(total, "problem") if total else "no problem found" if lines else "no data to check"
    missing, parts = missing_in_words(gaps)
    last = f"{number_of(lines, 'line')} in {number_of(len(jobs), 'day file')}: {', '.join([verdict, *parts])}"
    print_report(*output, "", *missing, last)
    return 1 if total or not lines else 0


# ------------------------------------------------------------------------------------------------------------- audit

Bar = tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal]  # as the columns
COLUMNS = "open high low close contracts currency"  # of a bar and of a candle; currency: the base currency
CANDLE = re.compile(r"[0-9]{13}( [0-9]+(\.[0-9]+)?){6}")  # start, ms, and COLUMNS


@lru_cache(maxsize=16)
def currency_per_contract(ct_val: bytes, ct_mult: bytes, ct_type: bytes) -> Decimal:
    """Return ctVal x ctMult, or 0 for a contract that is not linear: there it takes a price to say that."""
    return EXACT.multiply(Decimal(ct_val.decode()), Decimal(ct_mult.decode())) if ct_type == b"linear" else Decimal(0)


class DayBars:
    """A stored day, added up by minute as a candle does."""

    def __init__(self) -> None:
        self.minutes: dict[str, Bar] = {}  # by hh:mm
        self.last_id = ""

    def add(self, lines: Iterable[bytes]) -> int:
        """Add stored lines, in order, and return how many there were; what is no record is left out."""
        count = 0
        match = None
        for count, line in enumerate(lines, 1):  # noqa: B007 - returned
            if found := RECORD.fullmatch(line):
                match = found
                minute, px, sz = match[2].decode(), Decimal(match[7].decode()), Decimal(match[8].decode())
                bar = self.minutes.get(minute) or (px, px, px, px, Decimal(0), Decimal(0))
                totals = EXACT.add(bar[4], sz), EXACT.fma(sz, currency_per_contract(*match.group(9, 10, 11)), bar[5])
                self.minutes[minute] = bar[0], max(bar[1], px), min(bar[2], px), px, *totals
        if match:
            self.last_id = match[5].decode()
        return count


def last_stored_id(paths: list[Path]) -> str | None:
    """Return the last trade id of a day's files: empty where there is none, None where all are compressed."""
    plain = [path for path in paths if path.suffix != ".gz"]
    if not plain:
        return None
    with plain[-1].open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - ID_TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    matches = (RECORD.fullmatch(line) for line in reversed(lines))
    return next((match[5].decode() for match in matches if match), "")


class StoredDay(NamedTuple):
    """What bounds the minutes of a day that can be audited."""

    paths: list[Path]
    last_id: str | None  # see last_stored_id
    inside: bool  # neither before the first stored day nor after the last: outside, nothing can be judged
    is_first: bool  # of the stored days that are not empty
    is_last: bool
    gaps: list[Gap]

    @classmethod
    def of(cls, vault: Vault, inst_id: str, day: str) -> Self:
        """Look at the files; raise OSError where that fails."""
        days = vault.days(inst_id)
        stored = [other for other, paths in days.items() if any(path.stat().st_size for path in paths)] or [""]
        paths = days.get(day, [])
        bounds = stored[0] <= day <= stored[-1], day == stored[0], day == stored[-1]
        return cls(paths, last_stored_id(paths), *bounds, vault.gaps(inst_id))


def covered_minutes(day: str, stored: StoredDay, bars: dict[str, Bar], gaps: Iterable[Gap]) -> list[str]:
    """Return the minutes (hh:mm) of a day that are stored whole.

    Not covered are the minutes up to the very first trade's, those from the very last one's on, and those that a gap
    touches: all but `absent`, since what OKX never had is in no candle either.
    """
    if not stored.inside:
        return []
    first = min(bars, default="") if stored.is_first else ""
    last = max(bars, default="") if stored.is_last else "~"
    touching = [gap for gap in gaps if gap.reason != "absent" and touches(gap, day)]
    holes = [(gap.after_utc[:16], gap.before_utc[:16] or "9") for gap in touching]
    minutes = [f"{number // 60:02}:{number % 60:02}" for number in range(1440)]
    return [
        minute
        for minute in minutes
        if first < minute < last and not any(low <= f"{day}T{minute}" <= high for low, high in holes)
    ]


class NoAnswerError(RestError):
    """OKX gave no candles within AUDIT_PATIENCE_S: other days will fare no better now."""


async def fetch_candles(rest: Rest, inst_id: str, start: int) -> dict[int, list[str]]:
    """Return the COLUMNS of a UTC day's confirmed 1-minute candles by their start, ms.

    Raises NoAnswerError without answers in time, and RestError where they hold no candle.
    """
    candles = {}
    try:
        async with asyncio.timeout(AUDIT_PATIENCE_S):
            for offset in range(0, 1440, CANDLES):
                page = start + offset * 60_000, start + min(offset + CANDLES, 1440) * 60_000
                for row in await rest.candles(inst_id, *page):
                    text = " ".join(map(str, row[:7])) if isinstance(row, list) and row[8:9] == ["1"] else ""
                    if CANDLE.fullmatch(text):
                        candles[int(text[:13])] = text[14:].split()
    except TimeoutError:
        raise NoAnswerError(f"OKX gave no candles within {AUDIT_PATIENCE_S:.0f}s") from None
    if not candles:
        raise RestError("OKX has no candles of that day")
    return candles


def differing_minute(minute: str, bar: Bar | None, candle: list[str]) -> str:
    """Return how a stored minute (2026-11-21T12:34) and OKX's candle differ, or nothing where they agree."""
    okx = tuple(map(Decimal, candle))
    if not bar:
        ours, differ = "nothing", bool(okx[4])
    else:
        ours = " ".join(f"{value:f}" for value in bar)
        differ = bar[:5] != okx[:5] or (bar[5] != okx[5] and bool(bar[5]))
    return f"{minute}Z stored {ours}, OKX {' '.join(candle)} ({COLUMNS})" if differ else ""


async def audit_day(
    vault: Vault, rest: Rest, inst_id: str, day: str, *, background: bool = False
) -> tuple[Verdict, list[str]]:
    """Compare a stored UTC day with OKX's candles, minute by minute and exactly; return also how minutes differ.

    `background`: the day is known not to be pending, and it is read slowly, so that live capture does not suffer.
    Raises OSError where files can't be read, and RestError (NoAnswerError) where candles can't be had.
    """
    # gaps are read before and after the lines: history may end in between, and a live gap may begin
    stored = await asyncio.to_thread(StoredDay.of, vault, inst_id, day)
    bars = DayBars()
    lines = (line for _, _, line in numbered_lines(stored.paths))
    while await asyncio.to_thread(bars.add, itertools.islice(lines, 1000)):
        await asyncio.sleep(AUDIT_PAUSE_S if background else 0)
    gaps = [*stored.gaps, *await asyncio.to_thread(vault.gaps, inst_id)]
    gaps = [gap for gap in gaps if not (background and gap.reason == "pending")]
    minutes = covered_minutes(day, stored, bars.minutes, gaps)
    start = int(datetime.fromisoformat(f"{day}T00:00:00Z").timestamp()) * 1000
    candles = await fetch_candles(rest, inst_id, start) if minutes else {}
    covered, differing = 0, []
    for minute in minutes:
        if candle := candles.get(start + (int(minute[:2]) * 60 + int(minute[3:])) * 60_000):
            covered += 1
            if text := differing_minute(f"{day}T{minute}", bars.minutes.get(minute), candle):
                differing.append(text)
    last_id = bars.last_id if stored.last_id is None else stored.last_id
    return Verdict(inst_id, day, covered - len(differing), len(differing), 1440 - covered, last_id), differing


def day_range(text: str) -> tuple[date, date]:
    """Take a date, or a range of dates such as 2026-11-01..2026-11-21, from the command line."""
    try:
        first, last = (
            date.fromisoformat(part) if re.fullmatch(r"\d{4}-\d\d-\d\d", part, re.ASCII) else None
            for part in (text.split("..") if ".." in text else (text, text))
        )
    except ValueError:  # no such day, or more than two
        first = last = None
    if not first or not last:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date like 2026-11-21, nor a range like 2026-11-01..2026-11-21"
        )
    if first > last:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return first, last


async def judge_day(vault: Vault, rest: Rest, inst_id: str, day: str) -> tuple[str, list[str]]:
    """Audit a day for the command line: return what it counts as, and the lines of the report.

    Raises NoAnswerError.
    """
    try:
        verdict, differing = await audit_day(vault, rest, inst_id, day)
        pending = any(gap.reason == "pending" and touches(gap, day) for gap in vault.gaps(inst_id))
    except NoAnswerError:
        raise
    except (OSError, RestError) as exc:
        return "not audited", [f"{inst_id} {day}: {describe(exc)}"]
    lines = [str(verdict), *(f"  {text}" for text in shortened(differing))]
    if differing:
        return "differing", lines
    if pending:
        return "pending", [f"{verdict} (pending)"]
    return "agreeing" if verdict.agreeing else "uncovered", lines


async def audit(vault: Vault, rest_url: str, first: str, last: str) -> int:
    """Audit the days from `first` to `last` of every instrument, print a line for each and return the exit code.

    It ends early where OKX gives no answer at all.
    """
    with reading(vault):
        inst_ids = vault.instruments()
    if not inst_ids:
        print_report("no data to check")
    jobs = list(itertools.product(dates(date.fromisoformat(first), date.fromisoformat(last)), inst_ids))
    counts = dict.fromkeys(("agreeing", "differing", "pending", "uncovered", "not audited"), 0)
    async with rest_session() as session:
        rest = Rest(session, rest_url)
        for number, (day, inst_id) in enumerate(jobs, 1):
            show_progress(f"{inst_id} {day}, {number} of {len(jobs)}")
            try:
                kind, lines = await judge_day(vault, rest, inst_id, day)
            except NoAnswerError as exc:
                counts["not audited"] += len(jobs) - number + 1
                print_report(f"{inst_id} {day}: {exc}")
                break
            show_progress("")
            counts[kind] += 1
            print_report(*lines)
    if len(jobs) > 1:
        failed = counts["not audited"]
        words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if kind != "not audited" or failed)
        print_report(f"{len(jobs)} days: {words}")
    return 0 if counts["agreeing"] and not counts["differing"] + counts["not audited"] else 1


def saved_verdicts(vault: Vault, inst_id: str) -> dict[str, Verdict]:
    """Return the verdicts on record by day; the last one of a day counts, invalid and torn lines do not."""
    try:
        lines = audit_path(vault, inst_id).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    return {verdict.day: verdict for line in lines if (verdict := Verdict.parse(inst_id, line))}


def save_verdict(vault: Vault, verdict: Verdict) -> None:
    """Append a verdict to the audit file, on the disk when this returns; raise OSError or VaultError."""
    path = vault.folder_of(audit_path(vault, verdict.inst_id))
    if path.exists():
        cut_torn_end(path)
    with path.open("ab") as file:
        file.write(verdict.line(utc(f"{time.time_ns() // 1_000_000:013}")))
        file.flush()
        os.fsync(file.fileno())


class AuditState(NamedTuple):
    """What the Vault says about an instrument's days."""

    last_ids: dict[str, str | None]  # of every stored day; see last_stored_id
    audited: dict[str, str]  # by day: last_id of the verdict on record
    pending: set[str]  # stored days that a pending range touches

    @classmethod
    def of(cls, vault: Vault, inst_id: str) -> Self:
        """Read it; raise OSError where that fails."""
        pending = [gap for gap in vault.gaps(inst_id) if gap.reason == "pending"]
        last_ids = {day: last_stored_id(paths) for day, paths in vault.days(inst_id).items()}
        audited = {day: verdict.last_id for day, verdict in saved_verdicts(vault, inst_id).items()}
        return cls(last_ids, audited, {day for day in last_ids if any(touches(gap, day) for gap in pending)})


def next_day_to_audit(state: AuditState, postponed: Container[str]) -> str:
    """Return the newest finished day that needs an audit now, or nothing where there is none.

    Finished is a day with a newer stored one. It needs an audit if it has no verdict, or lines behind those that the
    verdict saw; a compressed day with a verdict is not looked into again.
    """
    finished = sorted(state.last_ids)[:-1]
    for day in reversed(finished):
        changed = day not in state.audited or state.last_ids[day] not in {None, state.audited[day]}
        if changed and day not in state.pending and day not in postponed:
            return day
    return ""


class Auditor:
    """Audits the finished days of a running exporter in the background, one at a time, and records the verdicts."""

    def __init__(self, vault: Vault, rest: Rest, inst_ids: Iterable[str]) -> None:
        self._vault = vault
        self._rest = rest
        self._due_at = dict.fromkeys(inst_ids, monotonic() + AUDIT_AFTER_S)  # by instId: no audit before
        self._postponed: dict[tuple[str, str], float] = {}  # by instId and day: until when
        self._live_days: dict[str, str] = {}
        self._filled: set[tuple[str, str]] = set()  # days that history made whole
        self._verdicts: dict[tuple[str, str], str] = {}  # last_id of those given since the start, on record or not
        self._changed = asyncio.Event()

    def day_began(self, inst_id: str, day: str) -> None:
        """Know that the first line of a newer day was written: the day before may be audited in AUDIT_AFTER_S."""
        if day > self._live_days.get(inst_id, ""):
            self._live_days[inst_id] = day
            self._due_at[inst_id] = monotonic() + AUDIT_AFTER_S
            self._changed.set()

    def day_filled(self, inst_id: str, day: str) -> None:
        """Know that history has made a day whole: it may be audited now."""
        self._filled.add((inst_id, day))
        self._changed.set()

    async def run(self) -> None:
        """Audit whatever needs it, newest day first, until cancelled."""
        while True:
            self._changed.clear()
            now = monotonic()
            if job := await self._next_job(now):
                await self._audit(*job)
                continue
            times = [due for due in (*self._due_at.values(), *self._postponed.values()) if due > now]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(times, default=None)):
                    await self._changed.wait()

    async def _next_job(self, now: float) -> tuple[str, str] | None:
        """Return instrument and day of the newest day to be audited now, or None."""
        jobs = []
        for inst_id, due_at in list(self._due_at.items()):
            if due_at > now:
                continue
            try:
                state = await asyncio.to_thread(AuditState.of, self._vault, inst_id)
            except OSError as exc:
                self._due_at[inst_id] = monotonic() + AUDIT_AFTER_S
                log.warning("Audit postponed", instId=inst_id, error=describe(exc), again_in=f"{AUDIT_AFTER_S:.0f}s")
                continue
            state.audited.update({day: last_id for (i, day), last_id in self._verdicts.items() if i == inst_id})
            state.pending.difference_update(day for i, day in self._filled if i == inst_id)
            postponed = {day for (i, day), until in self._postponed.items() if i == inst_id and until > now}
            if day := next_day_to_audit(state, postponed):
                jobs.append((day, inst_id))
        return max(jobs)[::-1] if jobs else None

    async def _audit(self, inst_id: str, day: str) -> None:
        """Audit a day, gently, log how it agrees and put that on record."""
        try:
            verdict, differing = await audit_day(self._vault, self._rest, inst_id, day, background=True)
        except (OSError, RestError) as exc:
            self._postponed[inst_id, day] = again_at = monotonic() + AUDIT_AFTER_S
            if isinstance(exc, NoAnswerError):
                self._due_at = dict.fromkeys(self._due_at, again_at)
            again_in = f"{AUDIT_AFTER_S:.0f}s"
            log.warning("Audit postponed", instId=inst_id, day=day, error=describe(exc), again_in=again_in)
            return
        (log.warning if differing else log.info)(f"Audit: {verdict}")
        for text in shortened(differing):
            log.warning(f"Audit: {text}")
        self._verdicts[inst_id, day] = verdict.last_id
        try:
            await asyncio.to_thread(save_verdict, self._vault, verdict)
        except (OSError, VaultError) as exc:
            log.warning("The audit's verdict can't be saved", instId=inst_id, day=day, error=describe(exc))


# ---------------------------------------------------------------------------------------------------------- exporter


def sync_all(recorders: list[Recorder]) -> list[tuple[Recorder, OSError]]:
    """Fsync the recorders' files and return those that failed."""
    failed = []
    for recorder in recorders:
        try:
            recorder.files.sync()
        except OSError as exc:
            failed.append((recorder, exc))
    return failed


def raise_in(tasks: asyncio.TaskGroup, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Let an error in a callback, such as a frame's BUILD_FAIL, end the exporter as one in a task does."""
    exc = context.get("exception")
    if exc is None or isinstance(exc, OSError):  # Windows has some for a connection that is gone; ours do not come here
        log.warning(f"asyncio: {context['message']}", error=exc and describe(exc))
        return

    async def fail(error: BaseException) -> None:
        raise error

    spawn(tasks, fail(exc))


class Exporter:
    """Wires one Vault, one feed, REST and a recorder per instrument together, until it is stopped."""

    def __init__(self, vault: Vault, ws_url: str, rest_url: str, backfill_hours: float) -> None:
        self._vault = vault
        self.ws_url = ws_url
        self.rest_url = rest_url
        self._backfill_ms = round(backfill_hours * 3_600_000)
        self._recorders: dict[str, Recorder] = {}
        self._stats_at = monotonic()  # when the last Stats line was written

    async def run(self) -> None:
        """Capture until cancelled; whatever ends it, all that was accepted is on disk then."""
        try:
            async with rest_session() as session, asyncio.TaskGroup() as tasks:
                rest = Rest(session, self.rest_url)
                asyncio.get_running_loop().set_exception_handler(partial(raise_in, tasks))
                await self._start(rest, tasks)
                feed = Feed(self.ws_url, {key: value.take for key, value in self._recorders.items()}, tasks)
                for job in (
                    feed.stay_connected(),
                    self._sync_files(),
                    self._watch_instruments(feed),
                    self._say_stats(),
                ):
                    tasks.create_task(job)
                gc.collect()
                gc.freeze()  # what is alive now stays alive: the collector need not look at it again
        finally:
            for recorder in self._recorders.values():
                recorder.close()
            self._log_stats()

    async def _start(self, rest: Rest, tasks: asyncio.TaskGroup) -> None:
        """Get the metadata and go on where the files end."""
        instruments = await self._instruments(rest, tasks)

        auditor = Auditor(self._vault, rest, [instrument.inst_id for instrument in instruments])
        tasks.create_task(auditor.run())

        def day_finished(inst_id: str, day: str) -> None:
            spawn(tasks, self._look_again(rest, inst_id))
            auditor.day_began(inst_id, day)

        desk = Desk(partial(spawn, tasks), len(instruments), self._backfill_ms, day_finished)
        tasks.create_task(desk.stay_awake())
        for instrument in instruments:
            recorder = Recorder(instrument, self._vault, rest, desk)
            try:
                recorder.recover()
            except OSError as exc:
                raise unusable(self._vault.root, exc) from exc
            self._recorders[instrument.inst_id] = recorder
            last = "nothing yet" if recorder.sequence.last is None else recorder.sequence.last
            log.info("Recording", instId=instrument.inst_id, stored_up_to=last, vault=str(self._vault.root))

    async def _instruments(self, rest: Rest, tasks: asyncio.TaskGroup) -> list[Instrument]:
        """Return the instruments from REST, or, where it is silent for METADATA_S, those saved before."""
        asked = [tasks.create_task(self._fetch_instrument(rest, inst_id)) for inst_id in INSTRUMENTS]
        rest.answered_at = monotonic()
        while (await asyncio.wait(asked, timeout=WATCH_S))[1]:
            saved = [self._vault.load_instrument(inst_id) for inst_id in INSTRUMENTS]
            if monotonic() - rest.answered_at >= METADATA_S and all(saved):
                for task, inst_id in zip(asked, INSTRUMENTS, strict=True):
                    if task.done():
                        continue
                    task.cancel()
                    log.warning("REST can't be reached: starting with saved metadata, and asking on", instId=inst_id)
                    tasks.create_task(self._look_again(rest, inst_id))
                return [instrument for instrument in saved if instrument]
        return [task.result() for task in asked]

    async def _fetch_instrument(self, rest: Rest, inst_id: str) -> Instrument:
        """Fetch and save an instrument's metadata; a contract that differs from its records is not saved over them."""
        row = await rest.instrument(inst_id)
        instrument = Instrument.from_row(inst_id, row)
        recorder = self._recorders.get(inst_id)
        values = dict(zip(CONTRACT, instrument.contract, strict=True))
        if recorder and recorder.instrument.contract != instrument.contract:
            recording = dict(zip(CONTRACT, recorder.instrument.contract, strict=True))
            what = "ctVal, ctMult or ctType changed: restart the exporter to record with the new ones"
            log.warning(what, instId=inst_id, recording=recording, okx=values)
            return instrument
        try:
            self._vault.save_instrument(inst_id, row)
            log.info("Metadata fetched and saved", instId=inst_id, **values)
        except OSError as exc:
            if not recorder and not self._vault.load_instrument(inst_id):
                raise unusable(self._vault.root, exc) from exc
            log.warning("Metadata could not be saved", instId=inst_id, error=describe(exc))
        if instrument.state != "live":
            log.warning("OKX does not call this instrument live", instId=inst_id, state=instrument.state)
        return instrument

    async def _look_again(self, rest: Rest, inst_id: str) -> None:
        """Fetch the metadata while recording: whatever is wrong with it now is worth a warning, and no more."""
        try:
            await self._fetch_instrument(rest, inst_id)
        except BuildFailError as exc:
            log.warning(
                "OKX sent metadata of no use; recording goes on with the old", instId=inst_id, error=exc.args[0]
            )

    async def _sync_files(self) -> None:
        """Put what is new on the disk every second, off the event loop."""
        while True:
            await asyncio.sleep(FSYNC_S)
            for recorder, error in await asyncio.to_thread(sync_all, list(self._recorders.values())):
                recorder.fail(error)

    async def _watch_instruments(self, feed: Feed) -> None:
        """Reconnect where an instrument is silent while REST has newer trades: its subscription died."""
        checks: dict[str, asyncio.Task[bool]] = {}
        quiet_since = dict.fromkeys(self._recorders, monotonic())  # since the last push, or the last check
        while True:
            await asyncio.sleep(WATCH_S)
            for inst_id, recorder in self._recorders.items():
                if recorder.received != recorder.received_before:
                    recorder.received_before = recorder.received
                    recorder.heard_at = quiet_since[inst_id] = monotonic()
                elif monotonic() - quiet_since[inst_id] >= INSTRUMENT_SILENT_S and inst_id not in checks:
                    checks[inst_id] = asyncio.ensure_future(recorder.missed_by_feed())
            for inst_id in [inst_id for inst_id, check in checks.items() if check.done()]:
                silent = monotonic() - quiet_since[inst_id] >= INSTRUMENT_SILENT_S
                quiet_since[inst_id] = monotonic()
                if checks.pop(inst_id).result() and silent:
                    feed.reconnect(f"no trade of {inst_id} for {INSTRUMENT_SILENT_S:.0f}s, but REST has newer ones")

    async def _say_stats(self) -> None:
        while True:
            await asyncio.sleep(STATS_S)
            self._log_stats()

    def _log_stats(self) -> None:
        """Write the line that a person watches for."""
        now = monotonic()
        details = {}
        for inst_id, recorder in self._recorders.items():
            rate = (recorder.files.written - recorder.written_before) / max(0.001, now - self._stats_at)
            recorder.written_before = recorder.files.written
            stored = f"{rate:.1f}/s last={recorder.sequence.last} age={max(0.0, now - recorder.heard_at):.0f}s"
            details[inst_id] = f"{stored} repaired={recorder.repaired} waiting={len(recorder.sequence.waiting)}"
        self._stats_at = now
        written = sum(recorder.files.written for recorder in self._recorders.values())
        skipped = sum(recorder.sequence.skipped for recorder in self._recorders.values())
        log.info(f"Stats: {written} written, {skipped} skipped", **details)


def promised_end(exc: BaseException) -> BuildFailError | VaultError | None:
    """Return the foreseen reason to stop in what ended the exporter, if that is what it was."""
    if isinstance(exc, BaseExceptionGroup):
        ends = [promised_end(part) for part in exc.exceptions]
        return next((end for end in ends if end), None) if all(ends) else None
    return exc if isinstance(exc, BuildFailError | VaultError) else None


def report(exc: Exception) -> int:
    """Log what ended the exporter and return the exit code."""
    if end := promised_end(exc):
        log.critical(str(end))
        return end.exit_code
    log.critical("Unexpected error: please report it with what stands above", exc_info=exc)
    return 1


async def capture(exporter: Exporter) -> int:
    """Run the exporter until it fails or a signal asks it to stop; return the exit code."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(exporter.run())
    asked: list[int] = []

    def stop(signum: int, _: object) -> None:
        if not asked:
            asked.append(signum)
            loop.call_soon_threadsafe(running.cancel)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last is Windows' Ctrl+Break, which has no SIGHUP
        signum = getattr(signal, name, None)
        if signum and not (name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN):  # nohup
            signal.signal(signum, stop)
    urls = {"ws_url": exporter.ws_url, "rest_url": exporter.rest_url}
    log.info(f"trades_exporter {VERSION} started", process=os.getpid(), **urls)
    exit_code = 0
    try:
        await running
    except asyncio.CancelledError:
        if not asked:
            raise
        log.info("Stopped", signal=signal.Signals(asked[0]).name)
    except Exception as exc:  # noqa: BLE001 - the outermost edge
        exit_code = report(exc)
    # all is on the disk; a thread that hangs in the system's DNS or in a dead disk is not waited for
    leave = threading.Timer(LEAVE_S, os._exit, (exit_code,))
    leave.daemon = True
    leave.start()
    return exit_code


# ------------------------------------------------------------------------------------------------------ command line

LOG_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class BoundedLog(logging.handlers.RotatingFileHandler):
    """A rotating log that goes on where Windows forbids to rename a file that somebody else has open."""

    def rotate(self, source: str, dest: str) -> None:
        """Rename, or copy and empty."""
        try:
            Path(source).replace(dest)
        except PermissionError:
            shutil.copyfile(source, dest)
            os.truncate(source, 0)

    def doRollover(self) -> None:  # noqa: N802 - the name of the standard library
        """Move each file one on; where even a copy is refused, go on in the present one for as long again."""
        if self.stream:
            self.stream.close()
        names = [self.baseFilename, *(f"{self.baseFilename}.{number}" for number in range(1, self.backupCount + 1))]
        try:
            for source, dest in reversed(list(itertools.pairwise(names))):
                if Path(source).exists():
                    self.rotate(source, dest)
            self.maxBytes = LOG_BYTES
        except OSError:
            self.maxBytes += LOG_BYTES
        self.stream = self._open()


def shows_colors() -> bool:
    """Tell whether a person is watching in colour; Windows' console has to be asked for it."""
    if sys.platform == "win32" and on_terminal():
        kernel32, mode = ctypes.windll.kernel32, ctypes.c_ulong()
        console = kernel32.GetStdHandle(-12)  # standard error
        kernel32.GetConsoleMode(console, ctypes.byref(mode))
        return bool(kernel32.SetConsoleMode(console, mode.value | 4))  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
    return on_terminal()


def shown_value(value: object) -> str:
    """Return a value of a line of the log, in quotes where it is not one word."""
    return value if isinstance(value, str) and not re.search(r"""[\s="']""", value) else repr(value)


def add_log_handler(handler: logging.Handler, *, colors: bool) -> None:
    """Send every line of the log to this handler too: UTC time, level, message, key=value pairs.

    structlog's own colours need a package more on Windows, so these are ours.
    """
    bright, dim, key, value, reset = (f"\x1b[{code}m" if colors else "" for code in (1, 2, 36, 35, 0))
    levels = structlog.dev.ConsoleRenderer.get_default_level_styles(colors)
    column, text = structlog.dev.Column, structlog.dev.KeyValueColumnFormatter
    columns = [
        column("timestamp", text(None, dim, reset, str)),
        column("level", structlog.dev.LogLevelColumnFormatter({k: v + bright for k, v in levels.items()}, reset)),
        column("event", text(None, bright, reset, str, width=30)),
        column("", text(key, value, reset, shown_value)),
    ]
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(columns=columns, sort_keys=False, exception_formatter=plain)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(renderer, foreign_pre_chain=LOG_PROCESSORS))
    logging.getLogger().addHandler(handler)


def start_log() -> None:
    """Log to the console; what libraries have to say comes along from WARNING on."""
    logging.raiseExceptions = False  # a log that can't be written (disk full, console gone) stops nothing
    logging.getLogger("trades_exporter").setLevel(logging.INFO)
    if sys.stderr:
        add_log_handler(logging.StreamHandler(), colors=shows_colors())
    structlog.configure(
        processors=[*LOG_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def file_name(text: str) -> Path:
    """Take a name from the command line; an empty one is an unset variable, not the present folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


def hours(text: str) -> float:
    """Take a number of hours from 0 on from the command line."""
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours from 0 on")
    return float(text)


def address(text: str, schemes: tuple[str, ...]) -> str:
    """Take a URL from the command line."""
    try:
        url = urlsplit(text)
        labels = (url.hostname or "").rstrip(".").split(".")
        valid = url.scheme in schemes and all(0 < len(label) < 64 for label in labels) and url.port != -1
    except ValueError:  # what can't be a host or a port
        valid = False
    if not valid or re.search(r"\s", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no {' or '.join(schemes)} URL")
    return text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; wrong usage ends with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="trades_exporter.py",
        description=f"Record every trade of {' and '.join(INSTRUMENTS)} on OKX into daily files, until Ctrl+C.",
        epilog="Exit codes: 0 stopped cleanly, or nothing wrong found; 1 something found, or an unexpected error;"
        " 2 wrong usage; 3 BUILD_FAIL; 4 the Vault can't be used.",
        allow_abbrev=False,
    )
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument("--verify", action="store_true", help="check the format of every stored line, and exit")
    audit_help = "compare stored UTC days (default: yesterday) with OKX's 1-minute candles, and exit"
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    judge.add_argument(
        "--audit", nargs="?", const=(yesterday, yesterday), type=day_range, metavar="DATE[..DATE]", help=audit_help
    )
    add = parser.add_argument
    add("--vault", type=file_name, default=HERE / "Vault", metavar="DIR", help="Vault beside the script")
    log_file = HERE / "trades_exporter.log"
    add("--log-file", type=file_name, default=log_file, metavar="FILE", help="trades_exporter.log beside the script")
    web_socket, web = partial(address, schemes=("wss", "ws")), partial(address, schemes=("https", "http"))
    add("--ws-url", type=web_socket, default=WS_URL, metavar="URL", help=WS_URL)
    add("--rest-url", type=web, default=REST_URL, metavar="URL", help=REST_URL)
    how_far = "24: how far back a gap is repaired; 0: none is, each is put on record at once"
    add("--backfill-hours", type=hours, default=24.0, metavar="H", help=how_far)
    add("--version", action="version", version=f"trades_exporter {VERSION}")
    return parser.parse_args(argv)


def run_capture(args: argparse.Namespace) -> int:
    """Record until stopped and return the exit code."""
    vault = Vault(args.vault)
    vault.lock()
    try:
        handler = BoundedLog(args.log_file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    except OSError as exc:
        log.error(f"The log file {args.log_file} can't be written: {exc}")
        return 2
    add_log_handler(handler, colors=False)
    return asyncio.run(capture(Exporter(vault, args.ws_url, args.rest_url, args.backfill_hours)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console of another code page must not stop anything
    start_log()
    try:
        if not args.verify and not args.audit:
            return run_capture(args)
        if not args.vault.is_dir():
            raise VaultError(f"There is no Vault at {args.vault}")
        if args.verify:
            return verify(Vault(args.vault))
        return asyncio.run(audit(Vault(args.vault), args.rest_url, *map(str, args.audit)))
    except KeyboardInterrupt:
        return 1
    except Exception as exc:  # noqa: BLE001 - the outermost edge
        return report(exc)


if __name__ == "__main__":
    sys.exit(main())
