"""Record every BTC-USDT-SWAP and ETH-USDT-SWAP trade of OKX into daily JSONL files, and show that none is missing.

    OKX WebSocket "trades" -> validate -> LRU dedup -> sequence, repair over REST
        -> Vault/raw/okx/trades_perps/{INSTID}/{DATE}.jsonl
    OKX archives and REST -> earlier days, fetched in the background, into the same files

The idea: OKX numbers the trades of an instrument without gaps and serves each of them for months, so whatever is lost
in memory can be fetched again. A day's file is at any moment a gapless prefix of OKX's own sequence: a push is written
when it continues the file, and whatever is missing is fetched in order before anything newer of that day is written. A
lost message, a reconnect, a restart after `kill -9` and a full disk are one and the same case: the next trade does not
continue the last stored one.

What is missing of earlier UTC days is put on record as `pending` and fetched in the background. Live capture and this
history use the same four things: a Sequence (what may be written, what is missing), a Backfill (asks REST for it), a
TradeWriter (lines on disk) and the gaps file.

    push          what OKX sends at once: one or several single trades of one taker order at one price; one line
    single trade  what REST and archives list, each with an id of its own
    gap           a range of ids that is not stored; on record: named in the gaps file, with one of these reasons:
    start         before the first stored trade     pending  of an earlier day, being fetched
    absent        OKX has no trades with these ids  horizon  OKX no longer has them
    unrepaired    REST did not help in time

The sections, each using only what stands above it: settings, errors and words, instrument, trade, dedup, sequence,
repair, vault, REST, archives, feed, backfill, recorder, history, verify, audit, exporter, command line. Trade, dedup,
sequence and repair do no I/O and read no clock, so they can be tested alone. Facts about OKX's wire format come from
https://www.okx.com/docs-v5/en/.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import decimal
import errno
import gzip
import hashlib
import io
import itertools
import logging
import logging.handlers
import os
import random
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from operator import attrgetter, itemgetter
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol, Self, cast
from urllib.parse import urlsplit

# virus scanners set it; where that file can't be written, importing aiohttp fails
os.environ.pop("SSLKEYLOGFILE", None)

import aiohttp
import orjson
import structlog
import websockets
from websockets.client import backoff

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl

# ---------------------------------------------------------------------------------------------------------- settings

VERSION = "1.1.0"
INSTRUMENTS = ["BTC-USDT-SWAP", "ETH-USDT-SWAP"]
WS_URL = "wss://ws.okx.com/ws/v5/public"  # port 443; OKX closed port 8443 on 2026-10-31
REST_URLS = ["https://openapi.okx.com", "https://www.okx.com"]  # the second where the first can't be reached
ARCHIVE_URL = "https://static.okx.com/cdn/okex/traderecords/trades/daily"
FIRST_DAY = "2021-11-01"  # before it the archives do not name the taker
HERE = Path(__file__).resolve().parent

DEDUP_KEYS = 10_000  # newest keys per instrument that are known to be stored
FALLEN_PUSHES = 10  # pushes in a row with newer times than the last line and no higher id: OKX's ids fell
CLOCK_S = 86_400.0  # a trade's time is at most this far ahead of this PC's clock or of OKX's
WAITING_TRADES = 200_000  # pushes that may wait in memory for a repair, all instruments together

LATE_S = 0.25  # wait for late or shuffled pushes, before REST is asked
POLL_S = 0.05  # pause of a repair that has no page to ask for yet
LOOKAHEAD_TRADES = 20_000  # trades fetched ahead of ids that OKX does not show: 15 s of REST at its full rate
PAGE = 100  # trades in a page of history-trades, OKX's maximum
REST_TRADES_PER_S = 1000  # that history-trades gives at most
LINE_BYTES = 250  # of a record, about
ROUND_PAGES = 20  # pages asked for at a time: two seconds of OKX's rate limit
ASK_AGAIN_S = (0.25, 3.75)  # first and longest pause before ids that an answer lacked are asked for again
PROOF_ANSWERS, PROOF_S = 5, 15.0  # answers, and time from the first to the last, before REST is believed: see Evidence
UNREPAIRED_S = 1800.0  # without an answer of REST that helped: what is missing goes on record
MIDNIGHT_S = 900.0  # a gap that begins more than this before midnight is history; a day has a trade within it
CROSSING_S = 1.0  # at midnight, times of neighbouring trades may cross by this much
CLOCK_SLOW_S = 60.0  # a stored trade further ahead of this PC's clock than this had a wrong time

ARCHIVE_IDS = 5_000  # from this many ids on, an archive is quicker than REST
ARCHIVE_RETRY_S = 600.0  # pause before an archive that could not be downloaded is asked for again
ARCHIVE_STALL_S = 30.0  # a download that brings nothing for this long has failed
ARCHIVE_BYTES = 4 << 30  # the longest archive, unpacked, that is believed; real ones stay below 400 MB
ARCHIVE_CHUNK = 8 << 10  # unpacked and turned into lines at a time: 2 ms, so that live trades do not wait
ARCHIVE_LATE_DAYS = 7  # an archive that is missing this long after its day is never published
HISTORY_FREE_BYTES = 2 << 30  # history waits while the disk has less room than this
HISTORY_WAIT_S = 5.0  # pause between looks at the free room

FLUSH_LINES = 128  # buffered lines that go to the file even if more trades are waiting to be taken
FSYNC_S = 1.0  # pause between fsyncs: a power cut loses at most this much
PROBE = ".probe-"  # prefix of temporary files: downloads, and probes whether the disk can be written
PROBE_BYTES = 256 << 10  # a failed write is tried again when this much can be written
RETRY_WRITE_S = 1.0  # pause between attempts to write to a full or vanished disk
LOG_AGAIN_S = 60.0  # pause between two log lines about a condition that lasts
FORGET_S = 120.0  # an endpoint that failed and was not asked again for this long is no outage any more
TAIL_BYTES = 4 << 20  # read from the end of the newest files at start: more than DEDUP_KEYS lines
LAST_LINE_BYTES = 64 << 10  # read from the end of each older file
TORN_BYTES = 64 << 20  # the longest torn end that is believed to be one

REST_TIMEOUT_S = 10.0  # one request, from connecting to the last byte
REST_BODY_BYTES = 16 << 20  # the longest answer that is read; real ones stay below 1 MB
REST_WINDOW_S = 2.08  # OKX counts requests per 2 s; the rest is for the jitter of the network
LATE_TURN_S = 0.05  # a request that misses its turn by this much gets a new one
REST_LIMITS = {  # requests in that time and per IP
    "/api/v5/public/instruments": 20,
    "/api/v5/public/time": 10,
    "/api/v5/market/trades": 100,
    "/api/v5/market/history-trades": 20,
    "/api/v5/market/history-candles": 20,
}
METADATA_S = 15.0  # without an answer of REST at start, saved metadata is used

CONNECT_S = 10.0  # for the TCP, TLS and WebSocket handshakes together
NEXT_ADDRESS_S = 0.25  # a host's next address is tried beside one that does not answer within this
SUBSCRIBE_S = 10.0  # for the acks of all instruments
PING_AFTER_S = 20.0  # of silence; OKX cuts a silent connection after 30 s
WATCH_S = 0.25  # between looks at what has been heard
PONG_S = 10.0  # after a ping, for anything at all to arrive
INSTRUMENT_SILENT_S = 60.0  # then REST is asked whether there were trades
NOTICE_S = 60.0  # an upgrade notice (64008) this soon after the last one is ignored
STEADY_S = 10.0  # a connection that lasted this long: the next backoff starts afresh
REJECTED_S = 600.0  # a subscription that is refused for this long after a reconnect is refused for good
REJECTIONS_APART_S = 60.0  # refusals further apart than this are not one: the PC slept, or OKX was not reached
FRAME_BYTES = 2 << 20  # the longest frame that is read; real ones stay below 100 KB
REJECTIONS = {"60008", "60012", "60013", "60018", "60019", "64001", "64002"}  # of a subscription, for good

STOP_S = 4.0  # after a signal, for everything to be on disk; then it ends all the same
STATS_S = 60.0
OLD_TRADE_S = 60.0  # Stats warns where the newest trade is older
PROGRESS_S = 5.0  # a repair that takes longer says how far it is
LOG_BYTES, LOG_FILES = 10_000_000, 5
AUDIT_AFTER_S = 300.0  # a finished day is audited this long after the first line of the next
AUDIT_PATIENCE_S = 60.0  # for OKX to give candles
CANDLES = 300  # in a page of history-candles, OKX's maximum
AUDIT_PAUSE_S = 0.01  # between pieces of a file that is audited in the background
ID_TAIL_BYTES = 16 << 10  # read from the end of a day's file to find its last id
SHOWN = 20  # problems of a kind that are shown, before they are only counted
UNFINISHED_LINE_S = 2.0  # a last line that an exporter is writing is whole by then

log = structlog.get_logger("trades_exporter")

# -------------------------------------------------------------------------------------------------- errors and words


class BuildFailError(Exception):
    """OKX sends what must not be stored, or refuses for good: the exporter stops with exit code 3."""

    exit_code = 3

    def __str__(self) -> str:
        """Begin as the log and its readers expect it."""
        return f"BUILD_FAIL: {super().__str__()}"


class VaultError(Exception):
    """The Vault or the log file can't be used: exit code 4."""

    exit_code = 4


class RequestError(Exception):
    """A request to OKX failed; the next attempt may succeed."""


def unusable(root: Path, exc: OSError) -> VaultError:
    """Return the error that says what to do about a Vault that can't be written."""
    return VaultError(f"The Vault {root} can't be used: {exc}. Fix that, or choose another with --vault")


def printable(value: object, limit: int = 300) -> str:
    """Return whatever came over the wire, short and on one line, for a message."""
    try:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    except RecursionError:
        text = "something nested too deeply to be shown"
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


def describe(exc: BaseException) -> str:
    """Say in a few words what went wrong; some exceptions have no text of their own."""
    return printable(str(exc) or type(exc).__name__, 200)


def on_terminal() -> bool:
    """Tell whether a person is watching; there may be no console at all (pythonw)."""
    return bool(sys.stderr and sys.stderr.isatty())


# -------------------------------------------------------------------------------------------------------- instrument

DECIMAL = r"(?:0*[1-9][0-9]*(?:\.[0-9]+)?|0+\.0*[1-9][0-9]*)"  # plain and positive
CONTRACT = {"ctVal": DECIMAL, "ctMult": DECIMAL, "ctType": "[A-Za-z]+"}  # fields and their patterns
ANY_DECIMALS = 18  # where OKX does not say how fine prices or sizes are


def decimals_of(step: object) -> int:
    """Return how many decimals multiples of a step such as "0.01" have; ANY_DECIMALS where it is no such step."""
    if not isinstance(step, str) or not re.fullmatch(DECIMAL, step):
        return ANY_DECIMALS
    return len(step.partition(".")[2].rstrip("0"))


class Instrument(NamedTuple):
    """What the exporter knows of a contract, in OKX's own characters (GET /api/v5/public/instruments)."""

    inst_id: str
    contract: tuple[str, ...]  # the values of the fields in CONTRACT, which every record carries
    state: str
    px_decimals: int = ANY_DECIMALS  # of tickSz
    sz_decimals: int = ANY_DECIMALS  # of lotSz

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
        decimals = (decimals_of(fields.get("tickSz")), decimals_of(fields.get("lotSz")))
        return cls(inst_id, tuple(values), printable(fields.get("state")), *decimals)


def symbol_canon(inst_id: str) -> str:
    """Return base and quote currency: BTC/USDT."""
    return "/".join(inst_id.split("-")[:2])


# ------------------------------------------------------------------------------------------------------------- trade


class Trade(NamedTuple):
    """One line of a file: a push of OKX (single trades of one taker order at one price), or a single trade."""

    first: int  # id of the first single trade in it
    last: int  # id of the last one: OKX's tradeId
    counted: bool  # False: `count` was missing or unusable, so `first` is a guess
    fetched: bool  # a single trade, from REST or an archive
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
    """Say what is wrong with a row that parse_trade refuses."""
    fields = row if isinstance(row, dict) else {}
    if missing := [name for name in REQUIRED if name not in fields]:
        return f"Missing required trade fields: {', '.join(missing)} in {printable(row)}"
    invalid = [
        f"{name}={printable(repr(value) if isinstance(value := fields[name], str) else value, 60)}"
        for name, pattern in zip(REQUIRED, FIELD_PATTERNS, strict=True)
        if not isinstance(fields[name], str) or not re.fullmatch(pattern, fields[name])
    ]
    return f"Invalid trade field: {', '.join(invalid)} in {printable(row)}"


def parse_trade(row: Any, *, fetched: bool = False) -> Trade:  # noqa: ANN401 - whatever JSON holds
    """Check a row of the trades channel or of REST; raise BuildFailError naming what is wrong and showing the row.

    A push covers the ids `tradeId - count + 1` to `tradeId`; REST rows are single trades and have no count.
    """
    try:
        px, sz, ts, trade_id, side, inst_id = fields = required_fields(row)
        valid = match_fields("\n".join(fields))  # join raises TypeError where one is no string
    except (KeyError, TypeError):
        valid = None
    if not valid:
        raise BuildFailError(trade_defect(row))
    first = last = int(trade_id)
    counted = True
    count = row.get("count")
    if count != "1" and not fetched:
        text = str(count) if isinstance(count, str | int) else ""  # str of deeply nested lists is a RecursionError
        covered = int(text) if re.fullmatch("[0-9]{1,19}", text) else 0
        counted = 1 <= covered <= last
        first = last - covered + 1 if counted else last
    return Trade(first, last, counted, fetched, inst_id, trade_id, ts, px, sz, side, f"okx:{inst_id}:{trade_id}")


def parse_rows(inst_id: str, rows: Iterable[Any]) -> tuple[list[Trade], list[tuple[str, BuildFailError]]]:
    """Return the single trades of a REST answer by id, and the bad rows' ids with what is wrong with them."""
    trades: list[Trade] = []
    bad: list[tuple[str, BuildFailError]] = []
    for row in rows:
        try:
            trade = parse_trade(row, fetched=True)
            if trade.inst_id != inst_id:
                raise BuildFailError(f"Unexpected instId: {printable(trade.inst_id)} in {printable(row)}")
            trades.append(trade)
        except BuildFailError as exc:
            trade_id = row.get("tradeId") if isinstance(row, dict) else None
            bad.append((trade_id if isinstance(trade_id, str) else "", exc))
    return sorted(trades), bad


@lru_cache(maxsize=256)
def utc_second(seconds: str) -> str:
    """Return 2025-12-14T21:34:56 for the ten digits of a time in seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")


def utc(ts: str) -> str:
    """Return 2025-12-14T21:34:56.123Z for OKX's milliseconds, and nothing for none."""
    return f"{utc_second(ts[:10])}.{ts[10:]}Z" if ts else ""


def utc_day(ts: str) -> str:
    """Return the UTC day, 2025-12-14, of OKX's milliseconds."""
    return utc_second(ts[:10])[:10]


def milliseconds(timestamp_utc: str) -> str:
    """Return OKX's 13 digits for a stored timestamp_utc; nothing for none."""
    if not timestamp_utc:
        return ""
    moment = datetime.fromisoformat(timestamp_utc)
    return f"{int(moment.timestamp()):010}{moment.microsecond // 1000:03}"


def midnight_of(day: str) -> str:
    """Return the first millisecond of a UTC day, 13 digits."""
    return milliseconds(f"{day}T00:00:00.000Z")


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


class RecentKeys(collections.OrderedDict[str, None]):
    """LRU set of the last DEDUP_KEYS keys `okx:{instId}:{trade_id}` that were stored."""

    def add(self, key: str) -> None:
        """Enter the key of a trade that was written; the oldest is evicted."""
        self[key] = None
        if len(self) > DEDUP_KEYS:
            self.popitem(last=False)


# ---------------------------------------------------------------------------------------------------------- sequence

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
GAP_LINE = re.compile(
    rf'{{"recorded_utc":"{STAMP}","instId":"([^"\\]+)","reason":"(start|absent|unrepaired|pending|horizon)"'
    rf',"after_id":"(\d{{0,19}})","before_id":"(\d{{1,20}})","after_utc":"((?:{STAMP})?)","before_utc":"((?:{STAMP})?)"}}\n'.encode(),
    re.ASCII,
)


class Gap(NamedTuple):
    """A range of ids that is not in the files, as the gaps file names it."""

    reason: str  # start, absent, unrepaired, pending, horizon
    after_id: int | None  # exclusive; None: there is none
    before_id: int  # exclusive
    after_utc: str  # ISO, of the trades with these ids; empty where it is not known
    before_utc: str

    @property
    def first(self) -> int:
        """Return the lowest id in it."""
        return 0 if self.after_id is None else self.after_id + 1

    def line(self, inst_id: str, recorded_utc: str) -> bytes:
        """Return the line of the gaps file."""
        entry = {"recorded_utc": recorded_utc, "instId": inst_id, "reason": self.reason}
        entry |= {"after_id": "" if self.after_id is None else str(self.after_id), "before_id": str(self.before_id)}
        return orjson.dumps(entry | {"after_utc": self.after_utc, "before_utc": self.before_utc}) + b"\n"

    @classmethod
    def parse(cls, inst_id: str, line: bytes) -> Self | None:
        """Return what a line of the gaps file says, or None where it says nothing of this instrument."""
        match = GAP_LINE.fullmatch(line)
        if not match or match[1] != inst_id.encode():
            return None
        _, reason, after, before, after_utc, before_utc = (group.decode() for group in match.groups())
        gap = cls(reason, int(after) if after else None, int(before), after_utc, before_utc)
        with contextlib.suppress(ValueError):  # there is no such time
            milliseconds(after_utc), milliseconds(before_utc)
            return gap if gap.first <= gap.before_id else None
        return None


class Boundary(NamedTuple):
    """Where a range of ids or a file ends: a trade's id and its time (ISO, or empty)."""

    trade_id: int
    time_utc: str


NOTHING = Boundary(-1, "")  # below every trade


def cut_from_gaps(gaps: Iterable[Gap], reasons: set[str], low: Boundary, high: Boundary) -> list[Gap]:
    """Take the ids from `low` to `high`, inclusive, out of the gaps with these reasons; leave the other gaps alone."""
    out = []
    for gap in gaps:
        if gap.reason not in reasons or high.trade_id < gap.first or low.trade_id >= gap.before_id:
            out.append(gap)
            continue
        if gap.first < low.trade_id:
            out.append(gap._replace(before_id=low.trade_id, before_utc=low.time_utc))
        if high.trade_id < gap.before_id - 1:
            out.append(gap._replace(after_id=high.trade_id, after_utc=high.time_utc))
    return out


def merge_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Join gaps that have the same reason and overlap or touch; return all by id.

    `start` gaps stay: each says where a record begins. So do pending ones that only touch: history goes on after the
    highest stored id inside a range, which would jump over what is missing of the first if the second is partly stored.
    """
    out: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: (gap.reason, gap.first, gap.after_utc, gap.before_id)):
        last = out[-1] if out else None
        apart = last is None or gap.reason != last.reason or gap.first > last.before_id - (gap.reason == "pending")
        if last is None or apart or (gap.reason == "start" and gap.before_id != last.before_id):
            out.append(gap)
        elif gap.before_id > last.before_id:
            out[-1] = last._replace(before_id=gap.before_id, before_utc=gap.before_utc)
    return sorted(out, key=lambda gap: (gap.first, gap.before_id))


class FallenIds:
    """Notices that OKX counts anew: FALLEN_PUSHES in a row have newer times than what is stored, and no higher ids."""

    def __init__(self) -> None:
        self._pushes = 0  # in a row
        self._stored = -1  # the last stored id, at the last push

    def add(self, trade: Trade, stored: int, ts: str) -> None:
        """Count a skipped push if its id fell; `stored` and `ts` (ms) are of the last line. Raises BuildFailError."""
        fell = not trade.fetched and trade.last <= stored and trade.ts > ts
        self._pushes = self._pushes + 1 if fell and stored == self._stored else int(fell)
        self._stored = stored
        if self._pushes >= FALLEN_PUSHES:
            raise BuildFailError(
                f"Trade ids fell: OKX sends {trade.inst_id} {trade.last} of {utc(trade.ts)}, but {stored} of {utc(ts)}"
                " is stored. Either OKX counts anew: start with another --vault. Or the last line of the newest file is"
                " damaged: fix it"
            )

    def clear(self) -> None:
        """Count from nought: a push with a higher id came."""
        self._pushes = 0


first_id = attrgetter("first")


def insert_by_id(waiting: list[Trade], trade: Trade) -> bool:
    """Insert a trade into trades that are sorted by id and don't overlap; return False where it is there already.

    Where it overlaps others without being equal to one, neither is believed, and they leave: REST gives their ids.
    """
    low = high = bisect.bisect_left(waiting, trade.first, key=first_id)
    while low and waiting[low - 1].last >= trade.first:
        low -= 1
    while high < len(waiting) and waiting[high].first <= trade.last:
        high += 1
    if low == high:
        waiting.insert(low, trade)
    elif any((other.first, other.last) == (trade.first, trade.last) for other in waiting[low:high]):
        return False
    else:
        waiting[low:high] = [other for other in waiting[low:high] if other.fetched]
    return True


class Sequence:
    """Decides for one instrument which trades may be written now, in order and once, and which ids are missing.

    Methods that return Trades and Gaps return what is to be stored now, in this order. Trades that can't be written yet
    wait; whatever lies between them, up to the highest id known to exist, is missing.
    """

    def __init__(self, limit: int = WAITING_TRADES) -> None:
        self.next_id: int | None = None  # the id that continues the file; None: nothing is stored
        self.ts = ""  # of the last stored trade, or given to `restart` or `continue_at`, ms
        self.known_id, self.known_ts = -1, ""  # the highest id known to exist, and its time, ms
        self.waiting: list[Trade] = []  # by id, without overlaps
        self.skipped = 0  # duplicates
        self._limit = limit  # pushes that may wait
        self._stored = -1  # the last stored id
        self._fallen = FallenIds()
        self._may_overlap = True  # the file's end may hold single trades that a push of the same millisecond repeats

    def restart(self, last: int | None, ts: str) -> None:
        """Continue after the trade `last` of the time `ts` (ms); None: nothing is stored; -1: see `begin_unknown`."""
        if self.last is not None and self.last > self.known_id:
            self.known_id, self.known_ts = self.last, self.ts
        self.next_id, self.ts, self._may_overlap = None if last is None else last + 1, ts, True
        self._stored = -1 if last is None else last
        self.waiting.clear()

    @property
    def last(self) -> int | None:
        """Return the last id that is stored or on record as missing."""
        return None if self.next_id is None else self.next_id - 1

    @property
    def begin_unknown(self) -> bool:
        """Tell whether nothing is stored, and the lowest id that is wanted is not known yet."""
        return self.next_id == 0

    @property
    def open(self) -> bool:
        """Tell whether ids known to exist are neither stored nor on record: some may wait, the others are missing."""
        return self.next_id is not None and self.known_id >= self.next_id

    def offer(self, trade: Trade) -> Iterable[Trade | Gap]:
        """Take a push, or a single trade that was fetched; raise BuildFailError where OKX's ids fell."""
        if trade.first == self.next_id and not self.waiting and self._can_append(trade):
            self._store(trade)
            return (trade,)
        if self.next_id is None:
            self._store(trade)
            return Gap("start", None, trade.first, "", utc(trade.ts)), trade
        if trade.last < self.next_id:
            self.skip(trade)
            return ()
        self.note(trade)
        if trade.first == self.next_id and self._can_append(trade) and self.waiting[0].first > trade.last:  # some wait
            self._store(trade)
            return [trade, *self._waited()]
        if trade.first >= self.next_id:
            self._wait(trade)
        return self._waited()

    def note(self, trade: Trade) -> None:
        """Remember that a trade exists, whether it is stored or not."""
        self._fallen.clear()
        if trade.last > self.known_id:
            self.known_id, self.known_ts = trade.last, trade.ts

    def skip(self, trade: Trade) -> None:
        """Count a duplicate; raise BuildFailError where OKX's ids fell."""
        self.skipped += 1
        self._fallen.add(trade, self._stored, self.ts)

    def expect(self, last: int, ts: str) -> None:
        """Take `last`, of the time `ts` (ms), for the highest id known to exist, and drop what waits above it."""
        self.known_id, self.known_ts = last, ts
        self.waiting = [trade for trade in self.waiting if trade.last <= last]

    def continue_at(self, first: int, ts: str) -> list[Trade | Gap]:
        """Leave the ids below `first`, of the time `ts` (ms), to others; return what is to be stored now.

        It never goes back: late pushes may have filled the gap meanwhile, or the last one's time was wrong.
        """
        first = max(first, self.next_id or 0)
        self.next_id, self.ts, self._may_overlap = first, ts, True
        return self._waited()

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of missing ids, lowest first: those from `next_id` to `known_id` that don't wait."""
        if self.next_id is None:
            return
        low = self.next_id
        for trade in self.waiting:
            if low < trade.first:
                yield low, trade.first - 1
            low = trade.last + 1
        if low <= self.known_id:
            yield low, self.known_id

    def lacks(self, trade_id: int) -> bool:
        """Tell whether this id is one of the missing."""
        if self.next_id is None or not self.next_id <= trade_id <= self.known_id:
            return False
        i = bisect.bisect_right(self.waiting, trade_id, key=first_id)
        return not i or self.waiting[i - 1].last < trade_id

    def put_on_record(self, upto: int, reason: str) -> list[Trade | Gap]:
        """Turn all missing ids up to `upto` into Gaps with this reason, and continue after them."""
        out: list[Trade | Gap] = []
        while (gap := next(self.missing(), None)) and gap[0] <= upto:
            before = min(gap[1], upto) + 1
            waits = bool(self.waiting) and self.waiting[0].first == before
            ts = self.waiting[0].ts if waits else self.known_ts
            out.append(Gap(reason, gap[0] - 1 if gap[0] else None, before, utc(self.ts), utc(ts)))
            self.next_id = before
            out += self._waited()
        return out

    def _can_append(self, trade: Trade) -> bool:
        """Tell whether a push that begins at `next_id` can be appended: it must not hold what is stored already.

        OKX sends one push for each `source` of a taker order, and their ids may be interleaved: then a push holds lower
        ids than its count says. Those are stored only if they were fetched singly, in the millisecond of the push.
        """
        return (trade.counted and trade.first == trade.last) or trade.ts != self.ts or not self._may_overlap

    def _store(self, trade: Trade) -> None:
        self._may_overlap = trade.fetched or (self._may_overlap and trade.ts == self.ts)
        self.next_id, self.ts, self._stored = trade.last + 1, trade.ts, trade.last

    def _wait(self, trade: Trade) -> None:
        if not insert_by_id(self.waiting, trade):
            self.skipped += 1
        if len(self.waiting) > self._limit:
            self.waiting = [other for other in self.waiting if other.fetched]

    def _waited(self) -> list[Trade | Gap]:
        """Return the waiting trades whose turn has come, and drop those whose turn is over."""
        out: list[Trade | Gap] = []
        done = 0
        for trade in self.waiting:
            if self.next_id is None or trade.first > self.next_id:
                break
            done += 1
            if trade.first == self.next_id and self._can_append(trade):
                self._store(trade)
                out.append(trade)
        del self.waiting[:done]
        return out


class DayEnds(dict[str, Boundary]):
    """The last trade in the file of each UTC day, by day; decides which trades fit their day's file.

    Files are only appended to, and ids rise in a file and from day to day. So a trade does not fit if
    - its day's file already ends at its ids or above; or
    - it is live, and history is still to fill its day's file; or
    - a later day's file ends below its ids. But times may cross within CROSSING_S before and after midnight. And a
      later day is taken for one trade's wrong time, which is no reason to lose others, if it is over MIDNIGHT_S ahead
      of this trade, or CLOCK_SLOW_S of this PC's clock, and this trade goes on where the days before that one end
      (where there are none: it is of today).
    What does not fit goes on record as `unrepaired`; so does the rest of a pending range that such a trade ends.
    """

    def add(self, trade: Trade) -> None:
        """Note that its day's file ends with this trade now."""
        self[utc_day(trade.ts)] = Boundary(trade.last, utc(trade.ts))

    def fits(self, trade: Trade, now_utc: str, pending_day: str = "") -> bool:
        """Tell whether a trade fits: at the time `now_utc`; a live one, where history is pending up to that day."""
        if utc_day(trade.ts) < pending_day or self._is_behind(trade):
            return False
        later = self.highest_later(trade)
        if later == NOTHING:
            return True
        ts, later_ts, crossing = int(trade.ts), int(milliseconds(later.time_utc)), CROSSING_S * 1000
        if later_ts - crossing <= int(midnight_of(later.time_utc[:10])) <= ts + crossing:
            return True
        before = max((end.time_utc for day, end in self.items() if day < later.time_utc[:10]), default="")
        goes_on = int(milliseconds(before)) <= ts + crossing if before else utc_day(trade.ts) == now_utc[:10]
        slow_clock = int(milliseconds(now_utc)) + CLOCK_SLOW_S * 1000
        return goes_on and (later_ts > ts + MIDNIGHT_S * 1000 or later_ts > slow_clock)

    def ends_range(self, trade: Trade) -> bool:
        """Tell whether no later trade of a pending range fits either: its day is stored already, beyond a crossing."""
        return self._is_behind(trade) and int(trade.ts) % 86_400_000 >= CROSSING_S * 1000

    def _is_behind(self, trade: Trade) -> bool:
        return self.get(utc_day(trade.ts), NOTHING).trade_id >= trade.first

    def highest_later(self, trade: Trade) -> Boundary:
        """Return the highest stored trade of a later day with a lower id than this trade has, or NOTHING."""
        ends = (end for day, end in self.items() if day > utc_day(trade.ts) and end.trade_id < trade.first)
        return max(ends, default=NOTHING)

    def highest(self, before: int = 1 << 64) -> Boundary:
        """Return the highest stored trade with a lower id, or NOTHING."""
        return max((end for end in self.values() if end.trade_id < before), default=NOTHING)


# ------------------------------------------------------------------------------------------------------------ repair


class Evidence:
    """Counts answers of REST that show the same thing, a claim; PROOF_ANSWERS over PROOF_S or more prove it.

    A claim is anything hashable; `now` is any clock that only rises, s.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[int, float, float]] = {}  # by claim: how many, when the first and the last

    def add(self, claim: Hashable, now: float) -> bool:
        """Count an answer that shows this; return whether that proves it."""
        answers, first, _ = self._answers.get(claim, (0, now, now))
        self._answers[claim] = answers + 1, first, now
        return self.proves(claim)

    def proves(self, claim: Hashable) -> bool:
        """Tell whether enough answers showed this, for long enough; time without one does not count."""
        answers, first, last = self._answers.get(claim, (0, 0.0, 0.0))
        return answers >= PROOF_ANSWERS and last - first >= PROOF_S


class HoleSearch:
    """Finds the lowest id that exists at or above `low`, where `high` exists and REST shows nothing near `low`.

    It asks for the page that ends with `high`, then eight times as far below it each time, then halfway: a jump of the
    ids by a thousand million takes about ten requests.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high  # the lowest id at or above `low` is in between; it may be `high`
        self._step = PAGE  # how far below `high` it asks; PAGE: for `high` itself

    def address(self) -> int:
        """Return the `after` of the page to ask for."""
        if self._step == PAGE:
            return self.high + 1
        return max(self.high - self._step, (self.low + self.high + 1) // 2)

    def learn(self, after: int, ids: list[int]) -> str:
        """Take that page's ids, ascending; return found (`high` is it), lost (`high` is not shown) or going on."""
        above = [trade_id for trade_id in ids if trade_id >= self.low]
        if not above and self._step == PAGE:
            return "lost"
        shows_below = bool(above) and ids[0] < self.low
        self.low, self.high = (self.low, above[0]) if above else (after, self.high)
        self._step *= 8
        return "found" if shows_below or self.high <= self.low else "going on"


class Learned(NamedTuple):
    """What an answer of REST was worth."""

    items: list[Trade | Gap]  # to be stored now
    helped: bool  # it held a missing trade, or proved something


class Repair:
    """Which pages of history-trades close a gap, and what their answers prove. `now` is any clock that only rises, s.

    A page is addressed by `after`: it holds the PAGE newest trades with lower ids. New pages are asked for from the
    lowest missing id up. Ids that an answer lacked are asked for again together with ids above them, for only an answer
    that shows ids below and above them proves something: one that just ends there may come from a REST that lags, or
    that no longer has older trades.
    """

    def __init__(self, sequence: Sequence, now: float, late_s: float = LATE_S) -> None:
        self.sequence = sequence
        self.settled = -1  # the highest id that was known `late_s` ago: what is missing above may still come late
        self._late_s = late_s
        self._seen: collections.deque[tuple[float, int]] = collections.deque()  # the highest known id, at times
        self._asked_upto = -1  # ids up to this have been asked for
        self._pages = 1  # new ones in a round; grows with success, so that a jump of the ids costs few requests
        self._new_at = self._again_at = now  # no new pages before, and none asked for again
        self._pause = ASK_AGAIN_S[0]
        self._search: HoleSearch | None = None
        self._absent = Evidence()  # of missing ranges

    def next_pages(self, now: float) -> list[int]:
        """Choose the `after` of the pages to ask for now, in the order to learn from them; none: wait a little."""
        self._settle(now)
        if not self.sequence.open:
            self._search = None
        if self._search:
            return [self._search.address()]
        again = self._pages_again() if now >= self._again_at else []
        if again:
            self._again_at = now + self._longer_pause()
        return again + (self._new_pages() if now >= self._new_at else [])

    def _pages_again(self) -> list[int]:
        """Return pages of ids that answers lacked, with ids above them."""
        pages: list[int] = []
        for low, high in self.sequence.missing():
            if low > min(self.settled, self._asked_upto):
                break
            asked = min(high, self._asked_upto)
            if not pages or asked + 2 > pages[-1]:  # or else the page of a lower one shows this one too
                pages.append(max(low + PAGE, asked + 1 + PAGE // 2))
        return pages

    def _new_pages(self) -> list[int]:
        """Return the next pages of ids that were not asked for yet."""
        pages: list[int] = []
        ahead = sum(trade.fetched for trade in self.sequence.waiting)
        room = min(self._pages, (LOOKAHEAD_TRADES - ahead) // PAGE)
        for low, high in self.sequence.missing():
            if low > self.settled:
                break
            if low == self.sequence.next_id and low > self._asked_upto:
                room = max(room, 1)  # nothing that waits can be written before this page
            while self._asked_upto < high and len(pages) < room:
                pages.append(max(low, self._asked_upto + 1) + PAGE)
                self._asked_upto = pages[-1] - 1
            if self._asked_upto < high:
                break
        return pages

    def learn(self, after: int, rows: list[Trade], now: float) -> Learned:
        """Take the answer to a page, by id."""
        rows = [row for row in rows if row.last < after]  # for ids that are too old REST may answer with the newest
        items: list[Trade | Gap] = []
        helped = False
        for row in rows:
            if self.sequence.lacks(row.last):
                items += self.sequence.offer(row)
                helped, self._pause = True, ASK_AGAIN_S[0]
                self._again_at = min(self._again_at, now + self._pause)
        ids = [row.last for row in rows]
        if ids and ids[-1] == after - 1:
            self._pages = min(self._pages * 2, ROUND_PAGES)
        self._look_for_a_hole(after, ids, now)
        if ids and self._prove(ids[0], ids[-1], now):
            helped = True
        while (gap := next(self.sequence.missing(), None)) and self._absent.proves(gap):
            items += self.sequence.put_on_record(gap[1], "absent")
        return Learned(items, helped)

    def _settle(self, now: float) -> None:
        self._seen.append((now, self.sequence.known_id))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._late_s:
            self._seen.popleft()
        if self._seen[0][0] <= now - self._late_s:
            self.settled = self._seen[0][1]

    def _longer_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, ASK_AGAIN_S[1])
        return pause

    def _look_for_a_hole(self, after: int, ids: list[int], now: float) -> None:
        """Begin a HoleSearch where a page showed none of its ids and more are missing above it; or continue it."""
        search, sequence = self._search, self.sequence
        if search is None:
            low, top = after - PAGE, ids[-1] if ids else -1
            if top < low and sequence.lacks(low) and sequence.lacks(after):
                high = next(high for _, high in sequence.missing() if high >= after)
                self._search, self._asked_upto, self._pages = HoleSearch(low, high + 1), low - 1, 1
        elif after == search.address():
            outcome = search.learn(after, ids)
            if outcome == "lost":
                self._search, self._new_at = None, now + self._longer_pause()
            elif outcome == "found":
                self._search, self._asked_upto = None, search.high - 1

    def _prove(self, bottom: int, top: int, now: float) -> bool:
        """Count an answer as evidence for what is missing between its lowest and highest id; return whether any is."""
        proved = False
        for low, high in self.sequence.missing():
            if low >= top:
                break
            part = max(low, bottom + 1), min(high, top - 1)
            if part[0] <= part[1]:
                self._absent.add(part, now)
                proved = True
        return proved


class Patience:
    """Decides how long REST may fail to help before what is missing goes on record: UNREPAIRED_S, for all instruments.

    `now` is a clock, s, that stands still while the PC sleeps: then REST is not to blame. After giving up, REST is
    probed until it helps again; meanwhile a gap goes on record as soon as a probe that began after it was found failed.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._repairs: set[str] = set()  # instruments
        self._helped_at = 0.0
        self._probed_at = -1.0  # when the last probe that failed began, since REST was given up

    @property
    def repairing(self) -> bool:
        """Tell whether an instrument needs REST."""
        return bool(self._repairs)

    def begin(self, inst_id: str, now: float) -> None:
        """Note that an instrument needs REST."""
        if not self._repairs:
            self._helped_at = now
        self._repairs.add(inst_id)

    def end(self, inst_id: str) -> None:
        """Note that an instrument does not need REST any more."""
        self._repairs.discard(inst_id)

    def helped(self, now: float) -> None:
        """Note that an answer helped an instrument."""
        self._helped_at = now

    def left(self, now: float) -> float:
        """Return how long REST still has to help, s."""
        return max(0.0, self._helped_at + UNREPAIRED_S - now)

    def give_up(self) -> bool:
        """Give REST up; return whether that is new: then it is to be probed."""
        was_given_up, self.given_up = self.given_up, True
        return not was_given_up

    def probe_failed(self, began_at: float) -> None:
        """Note that REST, asked at this time, did not help."""
        self._probed_at = began_at

    def probe_failed_since(self, found_at: float) -> bool:
        """Tell whether, since REST was given up, a probe failed that began after this time."""
        return self._probed_at >= found_at

    def trust_again(self, now: float) -> None:
        """Note that the probe was answered with what was missed."""
        self.given_up, self._helped_at, self._probed_at = False, now, -1.0


# ------------------------------------------------------------------------------------------------------------- vault


def utc_now() -> str:
    """Return this PC's time, as in the files: 2025-12-14T21:34:56.123Z."""
    return utc(f"{time.time_ns() // 1_000_000:013}")


class LogThrottle:
    """Lets a lasting condition be logged at most once in LOG_AGAIN_S, per kind."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}

    def may_log(self, kind: str) -> bool:
        """Tell whether it is time to log it, and count it as logged then."""
        now = monotonic()
        self._logged = {kind: at for kind, at in self._logged.items() if now - at < LOG_AGAIN_S}
        if kind in self._logged:
            return False
        self._logged[kind] = now
        return True


def is_whole(line: bytes) -> bool:
    """Tell whether a line is a JSON object, as each is that was written whole; what a crash leaves of one is none."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def whole_lines(block: bytes, *, cut_zeros: bool) -> int:
    """Return up to which byte the end of a file is whole lines; with `cut_zeros`, up to the first zero byte at most."""
    end = block.find(b"\0") if cut_zeros else -1
    end = block.rfind(b"\n", 0, end if end >= 0 else len(block)) + 1
    while end and not is_whole(block[block.rfind(b"\n", 0, end - 1) + 1 : end]):
        end = block.rfind(b"\n", 0, end - 1) + 1
    return end


def cut_torn_end(path: Path, tail_bytes: int = TAIL_BYTES, *, sync: bool = True, cut_zeros: bool = False) -> bytes:
    """Cut off what a crash left of a line, and return the whole lines in the last `tail_bytes` of the file.

    With `cut_zeros` also what follows a zero byte, which a power cut leaves: only for files whose trades are fetched
    again. With `sync` the file is fsynced: a process that was killed left that to the system. Raises OSError, and
    VaultError where the file is not made of lines of JSON.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        length = min(size, tail_bytes)
        while True:
            file.seek(size - length)
            block = file.read(length)
            end = whole_lines(block, cut_zeros=cut_zeros)
            rewritten = not end and block.count(b'"\0i\0n\0s\0t\0I\0d\0') > 1  # as UTF-16, by PowerShell or an editor
            if rewritten or (not end and TORN_BYTES <= length < size):
                raise VaultError(f"{path} does not end in lines of JSON; move it away and start again")
            if end or length == size:
                break
            length = min(size, length * 2)
    if sync or end < length:
        with path.open("r+b") as file:
            if end < length:
                file.truncate(size - length + end)
                log.warning("Incomplete last line removed", file=path.name, bytes=length - end)
            os.fsync(file.fileno())
    return block[block.find(b"\n") + 1 if length < size else 0 : end]


def numbered_lines(paths: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield path, number and bytes of the lines of a day's files, compressed or not, or of any other file of lines.

    After a compressed file, records with ids up to its last one are left out: they are in it already, and the
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
        self._lock_path = root / "exporter.lock"
        self._lock: io.FileIO | None = None

    def instruments(self) -> list[str]:
        """Return the instruments that the Vault knows."""
        found = {path.name for path in self.trades.glob("*") if path.is_dir()}
        known = {path.name.partition(".")[0] for path in (self.root / "meta/okx").glob("*/*.json*")}
        return sorted(found | {name for name in known if re.fullmatch(r"[A-Z0-9]+(-[A-Z0-9_]+)+", name)})

    def days(self, inst_id: str) -> dict[str, list[Path]]:
        """Return the files of each stored day, oldest day first; a compressed file comes before its continuation.

        Raises OSError where the folder can't be read.
        """
        files: dict[str, list[Path]] = {}
        folder = self.trades / inst_id
        for path in sorted(folder.iterdir() if folder.exists() else (), reverse=True):
            if match := re.fullmatch(r"(\d{4}-\d\d-\d\d)\.jsonl(\.gz)?", path.name):
                with contextlib.suppress(ValueError):  # there is no such day
                    files.setdefault(str(date.fromisoformat(match[1])), []).append(path)
        return dict(sorted(files.items()))

    def gaps_path(self, inst_id: str) -> Path:
        """Return the file that names what is missing."""
        return self.root / "meta/okx/gaps" / f"{inst_id}.jsonl"

    def audit_path(self, inst_id: str) -> Path:
        """Return the file that holds an instrument's verdicts."""
        return self.root / "meta/okx/audit" / f"{inst_id}.jsonl"

    def gaps(self, inst_id: str) -> list[Gap]:
        """Return what the whole lines of the gaps file say."""
        path = self.gaps_path(inst_id)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [gap for line in lines if (gap := Gap.parse(inst_id, line))]

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
        """Replace the saved instrument, atomically; raise OSError where that fails."""
        self.replace(self.instrument_path(inst_id), orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n")

    def replace(self, path: Path, content: bytes) -> None:
        """Replace a file of the Vault atomically, on the disk when this returns; raise OSError where that fails."""
        new = self.with_folder(path).with_suffix(".new")
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def with_folder(self, path: Path) -> Path:
        """Return the path of a file that is to be written, after making its folder.

        Raises OSError where the Vault's drive is gone, or else a new Vault would be begun in its place, and VaultError
        where another exporter may write here.
        """
        self.check_lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def free_bytes(self) -> int:
        """Return how much room the disk has; raise OSError where it is gone."""
        return shutil.disk_usage(self.root).free

    def lock(self) -> None:
        """Hold the Vault until this process ends, however it ends; raise VaultError naming the one that holds it."""
        try:
            (self.root / "raw").mkdir(parents=True, exist_ok=True)
            self._lock = file = self._lock_path.open("a+b", buffering=0)
            if not self._try_lock(file):
                file.seek(0)
                holder = printable(file.read(100).strip()) or "another exporter"
                raise VaultError(
                    f"The Vault {self.root} is in use by {holder}; stop that, or choose another with --vault"
                )
            self.check_lock()
            file.truncate(0)
            file.write(f"process {os.getpid()}\n".encode())
        except OSError as exc:
            raise unusable(self.root, exc) from exc

    def check_lock(self) -> None:
        """Raise VaultError where the lock's file was removed or replaced: another exporter may hold the new one.

        Raises FileNotFoundError where the whole Vault is gone. Windows refuses to remove the open file, and what it
        says of a file's identity is not reliable on FAT and network drives.
        """
        try:
            if sys.platform == "win32":
                os.stat(self._lock_path)  # noqa: PTH116 - as below
                return
            found, held = os.stat(self._lock_path), os.fstat(self._lock.fileno() if self._lock else -1)  # noqa: PTH116 - once a write: Path is slow
            if (found.st_ino, found.st_dev) == (held.st_ino, held.st_dev):
                return
        except FileNotFoundError as exc:
            if not (self.root / "raw").is_dir():
                raise FileNotFoundError(f"the Vault {self.root} is gone") from exc
        raise VaultError(
            f"{self._lock_path} was removed or replaced: stopping, so that no second exporter writes the same trades"
        )

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


class GapsFile:
    """An instrument's gaps file: it names a gap before the trades after it are stored, and is kept true."""

    def __init__(self, vault: Vault, inst_id: str) -> None:
        self._vault = vault
        self._inst_id = inst_id
        self._path = vault.gaps_path(inst_id)
        self._gaps: list[Gap] = []
        self._invalid: list[bytes] = []  # lines that Gap.parse refuses; they stay, for a person to look at
        self._outdated = False  # the file names ids that are stored meanwhile, or on record otherwise
        self._torn = False  # a write failed, and may have left part of a line

    def recover(self) -> None:
        """Cut off a torn end and read the file; raise OSError where that fails."""
        lines: list[bytes] = []
        if self._vault.with_folder(self._path).exists():
            cut_torn_end(self._path)
            lines = self._path.read_bytes().splitlines(keepends=True)
        self._torn = False
        self._gaps = self._vault.gaps(self._inst_id)
        self._invalid = [line for line in lines if not Gap.parse(self._inst_id, line)]
        if self._invalid:
            log.warning("Invalid lines in the gaps file; see --verify", instId=self._inst_id, lines=len(self._invalid))

    def add(self, gaps: list[Gap]) -> None:
        """Put gaps on record, on the disk when this returns; raise OSError where that fails."""
        recorded_utc = utc_now()
        if self._torn:  # live capture and history add, and each recovers in its own time
            cut_torn_end(self._path)
        with self._vault.with_folder(self._path).open("ab") as file:
            self._torn = True
            file.writelines(gap.line(self._inst_id, recorded_utc) for gap in gaps)
            file.flush()
            os.fsync(file.fileno())
        self._torn = False
        self._gaps += gaps
        for gap in gaps:
            level = logging.INFO if gap.reason in {"start", "pending"} else logging.WARNING
            after, before = "" if gap.after_id is None else gap.after_id, gap.before_id
            log.log(level, "Gap on record", instId=self._inst_id, reason=gap.reason, after_id=after, before_id=before)

    def add_unfit(self, *trades: Trade) -> None:
        """Put trades in a row that do not fit their days' files on record; raise OSError as `add` does."""
        first, last = trades[0], trades[-1]
        self.add([Gap("unrepaired", first.first - 1, last.last + 1, utc(first.ts), utc(last.ts))])

    def pending(self) -> list[Gap]:
        """Return the ranges that are to be fetched, oldest first, without overlaps."""
        return merge_gaps(gap for gap in self._gaps if gap.reason == "pending")

    def of(self, reason: str) -> list[Gap]:
        """Return the gaps with this reason."""
        return [gap for gap in self._gaps if gap.reason == reason]

    def clear(self, reasons: set[str], low: Boundary, high: Boundary) -> None:
        """Take ids that are stored, or on record otherwise, out of the gaps with these reasons, and save."""
        left = cut_from_gaps(self._gaps, reasons, low, high)
        if left != self._gaps:
            self._gaps, self._outdated = merge_gaps(left), True
        self.save()

    def reopen(self, low: int, high: int = 1 << 64) -> None:
        """Take these ids off the record where they are not `start` or `pending`: they are fetched again.

        They went on record before a crash or a failed write, but the trades after them are not stored.
        """
        self.clear({"absent", "unrepaired", "horizon"}, Boundary(low, ""), Boundary(high, ""))

    def save(self) -> None:
        """Replace the file if it is outdated; where that fails the next call tries again."""
        if not self._outdated:
            return
        recorded_utc = utc_now()
        lines = self._invalid + [gap.line(self._inst_id, recorded_utc) for gap in self._gaps]
        with contextlib.suppress(OSError):  # Windows, while a reader has the file open
            self._vault.replace(self._path, b"".join(lines))
            self._outdated = False


class TradeFiles:
    """What is stored of one instrument: the last line of every day. Live capture and history share it."""

    def __init__(self, vault: Vault, inst_id: str) -> None:
        self.vault = vault
        self.inst_id = inst_id
        self.gaps = GapsFile(vault, inst_id)
        self.ends = DayEnds()

    def path(self, day: str) -> Path:
        """Return the file that a day's lines are appended to."""
        return self.vault.trades / self.inst_id / f"{day}.jsonl"

    def recover(self) -> list[str]:
        """Cut off torn ends, read the last line of every day, and return the newest dedup keys, oldest first.

        Raises OSError where the Vault can't be written. A compressed day is read only where its last id `matters`:
        nobody writes to it, and unpacking takes seconds.
        """
        self.try_to_write(0)
        self.gaps.recover()
        spans = [(gap.after_utc[:10], gap.before_utc[:10]) for gap in self.gaps.pending()]
        keys: list[str] = []
        ends = DayEnds()
        for day, paths in reversed(self.vault.days(self.inst_id).items()):
            newest = len(ends) < 2
            pending = any(low <= day <= high for low, high in spans)
            matters = newest or pending
            read = partial(self._tail_of, newest=newest, matters=matters, cut_zeros=pending or not ends)
            lines = [line for path in paths for line in read(path)]
            matches = [match for line in lines if (match := RECORD.fullmatch(line))]
            if matches:
                last = matches[-1]
                ends[day] = Boundary(int(last[5]), orjson.loads(last[0])["timestamp_utc"])
            elif not matters and day in self.ends:
                ends[day] = self.ends[day]
            if newest:
                keys = [f"okx:{self.inst_id}:{match[5].decode()}" for match in matches[-DEDUP_KEYS:]] + keys
        self.ends = ends
        return keys[-DEDUP_KEYS:]

    def _tail_of(self, path: Path, *, newest: bool, matters: bool, cut_zeros: bool) -> list[bytes]:
        """Cut off a torn end and return the last lines of a file, more of one of the `newest` days.

        Raises VaultError where a file whose last id `matters` does not end in a record of its day.
        """
        if path.suffix == ".gz":
            numbered = collections.deque(numbered_lines([path]) if matters else (), DEDUP_KEYS)
            return [line for _, _, line in numbered]
        tail_bytes = TAIL_BYTES if newest else LAST_LINE_BYTES
        lines = cut_torn_end(path, tail_bytes, sync=matters, cut_zeros=cut_zeros).splitlines(keepends=True)
        last = RECORD.fullmatch(lines[-1]) if lines else None
        if matters and lines and not (last and last[1].decode() == path.stem):
            raise VaultError(f"{path} does not end in a record of its day; fix it, or move it away, and start again")
        return lines

    def fits(self, trade: Trade, *, live: bool) -> bool:
        """Tell whether a trade fits its day's file: see DayEnds."""
        pending = [gap.before_utc[:10] for gap in self.gaps.pending()] if live else []
        return self.ends.fits(trade, utc_now(), max(pending, default=""))

    def first(self) -> Boundary | None:
        """Return the first stored trade; raise OSError where it can't be read."""
        for paths in self.vault.days(self.inst_id).values():
            for _, _, line in numbered_lines(paths):
                if match := RECORD.fullmatch(line):
                    return Boundary(int(match[5]), orjson.loads(line)["timestamp_utc"])
        return None

    def live_end(self) -> Boundary:
        """Return the trade after which live capture continues: the highest stored or pending one, or NOTHING."""
        pending = [Boundary(gap.before_id - 1, gap.before_utc) for gap in self.gaps.pending()]
        return max([self.ends.highest(), *pending], key=attrgetter("trade_id"))

    def try_to_write(self, size: int) -> None:
        """Raise OSError where `size` bytes can't be written; the file for the try is gone again, also after a crash."""
        folder = self.vault.trades / self.inst_id
        while not folder.exists() and folder != self.vault.root:
            folder = folder.parent
        with tempfile.TemporaryFile(prefix=PROBE, dir=folder) as probe:
            probe.write(bytes(size))
            probe.flush()
            os.fsync(probe.fileno())

    async def until_writable(self, throttle: LogThrottle, exc: OSError) -> list[str]:
        """After a failed write: try every second until there is room, then recover; return the newest dedup keys."""
        said = False
        while True:
            if throttle.may_log("disk"):
                said = True
                log.error("Can't write to the Vault: trying every second", instId=self.inst_id, error=describe(exc))
            await asyncio.sleep(RETRY_WRITE_S)
            try:
                self.try_to_write(PROBE_BYTES)
                keys = self.recover()
            except OSError as again:
                exc = again
                continue
            if said:
                log.info("The Vault can be written again", instId=self.inst_id)
            return keys


class TradeWriter:
    """Turns trades into lines of their days' files, open for append only. Live capture and history have one each.

    A trade that does not fit its day's file, see DayEnds, is handed to `on_unfit` instead; `on_day` is told before
    the first line of another day. Methods that write raise OSError; then `abandon` it and recover. They raise
    VaultError where the lock is lost.
    """

    def __init__(
        self,
        files: TradeFiles,
        instrument: Instrument,
        on_unfit: Callable[[Trade], None],
        on_day: Callable[[str], None],
        *,
        live: bool,  # or else of history
    ) -> None:
        self.written = 0  # lines
        self._files = files
        self._format = RecordFormat(instrument)
        self._on_unfit, self._on_day, self._live = on_unfit, on_day, live
        self._file: io.FileIO | None = None
        self._file_day = ""
        self._day = self._second = ""  # of the newest line
        self._unfit = False  # the present day's trades do not fit its file
        self._judge_each_second = False  # a later day has lower ids, so that trades fit only close to midnight
        self._lines: list[str] = []  # of the day, not yet in the file
        self._newest: Trade | None = None  # of these lines
        self._unsynced = False
        self._closing = threading.Lock()  # sync runs in a thread

    @property
    def buffered(self) -> bool:
        """Tell whether there are lines that are not yet in the file."""
        return bool(self._lines)

    def store(self, items: Iterable[Trade | Gap]) -> None:
        """Put gaps on record and buffer lines; items come in the order in which they are to be stored."""
        gaps: list[Gap] = []
        for item in items:
            if isinstance(item, Gap):
                if not gaps:  # all of them are on the disk before anything after the first
                    gaps = [gap for gap in items if isinstance(gap, Gap)]
                    self._files.gaps.add(gaps)
                continue
            second = utc_second(item.ts[:10])
            if second is not self._second:  # utc_second caches: the same second is the same object
                self._second = second
                if second[:10] != self._day or self._judge_each_second:
                    self._judge_day(second[:10], item)
            if self._unfit:
                self._on_unfit(item)
                continue
            self._lines.append(self._format.line(item, second))
            self._newest = item
        if len(self._lines) >= FLUSH_LINES:
            self.flush()

    def _judge_day(self, day: str, trade: Trade) -> None:
        """Find out whether this trade and those after it fit their day's file."""
        self.flush()
        self._unfit = not self._files.fits(trade, live=self._live)
        self._judge_each_second = self._files.ends.highest_later(trade) != NOTHING
        self._day = day
        if not self._unfit:
            self._on_day(day)

    def flush(self) -> None:
        """Hand the buffered lines to the file. A day is on the disk before the next one's first byte."""
        if not self._lines or self._newest is None:
            return
        lines = "".join(self._lines).encode()
        self._lines.clear()
        self._files.vault.check_lock()
        if self._file is None or self._day != self._file_day:
            self.close_file()
            path = self._files.vault.with_folder(self._files.path(self._day))
            self._file_day, self._file = self._day, path.open("ab", buffering=0)  # in this order: sync reads both
        done = 0
        try:
            while done < len(lines):
                done += self._file.write(lines[done:])
            self._files.ends.add(self._newest)
        except OSError:
            torn = done - (lines.rfind(b"\n", 0, done) + 1)
            with contextlib.suppress(OSError):  # then recover does it
                self._file.truncate(self._file.seek(0, io.SEEK_END) - torn)
            raise
        finally:
            self.written += lines.count(b"\n", 0, done)
            self._unsynced = True

    def sync(self) -> None:
        """Put what is new on the disk; the file stays open."""
        with self._closing:
            if self._unsynced and self._file is not None:
                self._unsynced = False
                self._fsync(self._file)

    def close_file(self, *, sync: bool = True) -> None:
        """Put everything that is in the file on the disk and close it."""
        with self._closing:
            file, self._file = self._file, None
            if file is not None:
                with file:
                    if sync:
                        self._fsync(file)

    def _fsync(self, file: io.FileIO) -> None:
        path = self._files.path(self._file_day)
        # a person may have compressed or moved it: what was written since is not in the Vault. Windows refuses that
        if sys.platform != "win32" and not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
            raise FileNotFoundError(f"the file of {self._file_day} was moved or replaced")
        os.fsync(file.fileno())

    def close(self) -> None:
        """Put everything on the disk, at the end."""
        try:
            self.flush()
            self.close_file()
        except (OSError, VaultError) as exc:
            text = "The last lines could not be written; they are fetched at the next start"
            log.error(text, instId=self._files.inst_id, error=describe(exc))

    def abandon(self) -> None:
        """Drop what is buffered and close the file as it is, after a failed write."""
        self._lines.clear()
        self.forget_day()
        with contextlib.suppress(OSError):
            self.close_file(sync=False)

    def forget_day(self) -> None:
        """Judge anew whether the next trade fits its day's file. Nothing may be buffered."""
        self._day = self._second = ""


# -------------------------------------------------------------------------------------------------------------- REST


def delays() -> Iterator[float]:
    """Yield delays, s, that grow, with jitter: the first within a second, none over 30 s."""
    for delay in backoff(initial_delay=1, min_delay=1, max_delay=30, factor=1.8):
        yield delay * random.uniform(0.7, 1)  # noqa: S311 - no secret


def reason_to_retry(exc: Exception) -> str:
    """Return why connecting or asking failed, in words that a user knows where there are some.

    BuildFailError and VaultError are ours and fatal: raised again. All else that the outside world makes a library
    raise is passing, for none of it is known to last:

    - RequestError: OKX answered with an error, a limit, HTML or nonsense.
    - ConnectionClosed: OKX, the network or we ended a WebSocket connection.
    - OSError with timeouts, DNS and certificates, aiohttp's ClientError, websockets' InvalidHandshake for HTTP errors
      and proxies, ValueError, LookupError and UnicodeError for redirects to nowhere and odd names, AttributeError
      where a proxy closes in the midst of a handshake.
    """
    if isinstance(exc, BuildFailError | VaultError):
        raise exc
    match cause := getattr(exc, "os_error", exc):  # aiohttp wraps what the system said
        case RequestError() | websockets.ConnectionClosed():
            reason = printable(exc, 100)
        case socket.gaierror():
            reason = "host not found"
        case ssl.SSLCertVerificationError(verify_message=message):
            reason = f"its certificate is not trusted: {printable(message, 60)}"
        case ConnectionRefusedError():
            reason = "connection refused"
        case TimeoutError():
            reason = "no answer in time"
        case aiohttp.ClientHttpProxyError(status=status):
            reason = f"HTTP {status}"
        case _:
            text = printable(re.sub(r"//\S*@", "//", str(cause)), 80)  # without a proxy's password
            reason = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    return reason


@lru_cache
def http_proxy(proxy: str) -> str | None:
    """Return the URL of a proxy of the system's settings if it is an HTTP proxy; warn of any other, once."""
    if re.fullmatch("(http://)?([^/@]*@)?[^/@]+/?", proxy):
        return proxy if "://" in proxy else f"http://{proxy}"
    shown = re.sub("//.*@", "//", proxy)
    log.warning("The system's proxy can't be used, only an HTTP one can: going without it", proxy=shown)
    return None


def system_proxy(url: str) -> str | None:
    """Return the HTTP proxy that the system's settings name for a URL of REST, archives or WebSocket, or None.

    The libraries' own search is not used: aiohttp's would also send passwords of ~/.netrc to OKX, and websockets' finds
    proxies that aiohttp can't use.
    """
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme.replace("ws", "http"))
    return http_proxy(proxy) if proxy and not urllib.request.proxy_bypass(parts.hostname or "") else None


def host_of(url: str) -> str:
    """Return the host of a URL for a message, with the proxy that it is asked through."""
    proxy, host = system_proxy(url), urlsplit(url).hostname
    return f"proxy {re.sub('http://|.*@', '', proxy)} for {host}" if proxy else f"{host}"


class Outage:
    """Logs that OKX can't be reached: when it begins, at most once in LOG_AGAIN_S while it lasts, and when it ends.

    REST, or an endpoint of it, that fails now and then is one condition: its next failure is logged after LOG_AGAIN_S.
    """

    def __init__(self) -> None:
        self._failing: dict[str, float] = {}  # WebSocket, REST, an endpoint of REST: when it failed last
        self._failed: set[str] = set()  # all that failed since the outage began
        self._began_at = 0.0
        self._logged = False  # that it began
        self._throttle = LogThrottle()

    def failed(self, what: str, reason: str, delay_s: float) -> None:
        """Log that `what` failed and is tried again after `delay_s`, unless that was logged a short while ago."""
        now = monotonic()
        if not self._lasts():
            self._began_at, self._logged = now, False
            self._failed.clear()
        self._failing[what] = now
        self._failed.add(what)
        if self._throttle.may_log(what if what.startswith("REST") else f"{what} since {self._began_at}"):
            self._logged = True
            lasts = now - self._began_at
            since = f" Down for {timedelta(seconds=round(lasts))}." if lasts >= 1 else ""
            log.warning(f"{reason}.{since} Next try in {delay_s:.1f} s")

    def works(self, what: str) -> None:
        """Log the end of the outage, if this was the last thing that failed."""
        if self._failing.pop(what, None) is not None and not self._lasts() and self._logged:
            lasted = monotonic() - self._began_at
            since = f"{datetime.now(UTC) - timedelta(seconds=lasted):%Y-%m-%dT%H:%M:%SZ}"
            whats = ", ".join(sorted(self._failed))
            log.info("OKX can be reached again", what=whats, since=since, took=f"{lasted:.1f}s")

    def _lasts(self) -> bool:
        """Tell whether something is failing, but for what failed last over FORGET_S ago: nobody tries that any more."""
        now = monotonic()
        self._failing = {what: at for what, at in self._failing.items() if now - at < FORGET_S}
        return bool(self._failing)


class EndpointLimit:
    """The requests to one endpoint: at most `limit` in REST_WINDOW_S, and a pause after a failure."""

    def __init__(self, limit: int) -> None:
        self._turns = collections.deque([-REST_WINDOW_S] * limit, limit)
        self._paused_until = 0.0
        self._delays = delays()

    async def turn(self, *, background: bool = False) -> float:
        """Wait for this request's turn and return the time; a `background` one lets all others go first."""
        while True:
            turn_at = max(monotonic(), self._turns[0] + REST_WINDOW_S, self._paused_until)
            if background and turn_at > monotonic():  # takes it only once it is free: others come first
                await asyncio.sleep(turn_at - monotonic())
                continue
            self._turns.append(turn_at)
            await asyncio.sleep(turn_at - monotonic())
            now = monotonic()
            if now >= self._paused_until and now < turn_at + LATE_TURN_S:  # after a sleep of the PC all miss theirs
                return now

    def succeeded(self) -> None:
        """Forget past failures."""
        self._delays = delays()

    def failed(self, sent_at: float) -> float:
        """Pause after a failure of a request sent at this time; return how long, s, or 0 where it pauses already.

        Requests that were on their way together count as one failure.
        """
        if sent_at < self._paused_until:
            return 0.0
        delay = next(self._delays)
        self._paused_until = monotonic() + delay
        return delay


def open_session() -> aiohttp.ClientSession:
    """Return what REST and archives are asked through; it keeps no cookies."""
    timeout = aiohttp.ClientTimeout(total=REST_TIMEOUT_S)
    return aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


HISTORY_TRADES = "/api/v5/market/history-trades"


class Rest:
    """OKX's public REST API: asks until there is an answer, as fast as OKX's limits allow (docs-v5, Public Data)."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str], outage: Outage) -> None:
        self._session = session
        self._urls = collections.deque(url.rstrip("/") for url in urls)  # the first is asked
        self._limits = {path: EndpointLimit(limit) for path, limit in REST_LIMITS.items()}
        self._outage = outage
        self._throttle = LogThrottle()

    async def get(self, path: str, *, background: bool = False, **query: str | int) -> list[Any]:
        """Return the `data` of an answer, however long it takes; an instrument that OKX does not know has none."""
        while True:
            with contextlib.suppress(RequestError):
                return await self.try_to_get(path, background=background, **query)

    async def try_to_get(self, path: str, *, background: bool = False, **query: str | int) -> list[Any]:
        """Ask once; raise RequestError where that fails. The next request to this endpoint waits a little then."""
        limit, url, name = self._limits[path], self._urls[0], path.rpartition("/")[2]
        sent_at = await limit.turn(background=background)
        try:
            data = await self._ask(url + path, query)
        except Exception as exc:
            what, reason = f"REST {name}", reason_to_retry(exc)
            text = f"REST request failed ({name}: {reason})"
            if isinstance(exc, OSError | aiohttp.ClientConnectionError | aiohttp.ClientHttpProxyError):
                what, text = "REST", f"Can't reach OKX ({host_of(url)}: {reason}). Check the internet connection"
                self._try_next_url(url, reason)
            if delay := limit.failed(sent_at):
                self._outage.failed(what, text, delay)
            raise RequestError(reason) from exc
        limit.succeeded()
        self._outage.works("REST")
        self._outage.works(f"REST {name}")
        return data

    def _try_next_url(self, url: str, reason: str) -> None:
        """Ask the next of OKX's addresses from now on, unless another request that failed has changed it already."""
        if len(self._urls) > 1 and self._urls[0] == url:
            self._urls.rotate(-1)
            if url == REST_URLS[0] and self._throttle.may_log(url):  # once a while, if neither is reached
                log.warning(f"Can't reach {url} ({reason}): asking {self._urls[0]}")

    async def _ask(self, url: str, query: dict[str, str | int]) -> list[Any]:
        async with self._session.get(url, params=query, proxy=system_proxy(url)) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > REST_BODY_BYTES:
                    raise RequestError("an answer without end")
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise RequestError(f"HTTP {response.status}, not JSON: {printable(bytes(body[:200]), 60)}") from None
        code, message, data = map(answer.get, ("code", "msg", "data")) if isinstance(answer, dict) else ("", answer, "")
        if code == "51001":
            return []
        if response.status != 200 or code != "0" or not isinstance(data, list):
            raise RequestError(f"HTTP {response.status}, code {printable(code, 20)}: {printable(message, 60)}")
        if not data and "instType" in query:
            raise RequestError("an instrument without a row")  # one that does not exist has code 51001
        return data

    async def instrument(self, inst_id: str) -> object:
        """Return the instrument's row, or None where OKX has none."""
        rows = await self.get("/api/v5/public/instruments", instType="SWAP", instId=inst_id)
        return next((row for row in rows if isinstance(row, dict) and row.get("instId") == inst_id), None)

    async def time(self) -> str:
        """Return OKX's clock, ms, 13 digits."""
        while True:
            rows = await self.get("/api/v5/public/time")
            ts = rows[0].get("ts") if rows and isinstance(rows[0], dict) else None
            if isinstance(ts, str) and re.fullmatch("[0-9]{13}", ts):
                return ts
            await asyncio.sleep(ASK_AGAIN_S[1])

    async def newest_id(self, inst_id: str) -> int:
        """Return the id of the newest trade; -1 where there is none or its row is bad."""
        trades, _ = parse_rows(inst_id, await self.get("/api/v5/market/trades", instId=inst_id, limit=1))
        return max((trade.last for trade in trades), default=-1)

    async def page_below(self, inst_id: str, after: int, *, background: bool = False) -> list[Any]:
        """Return PAGE single trades with lower ids than `after`, newest first; `background`: as EndpointLimit.turn."""
        return await self.get(HISTORY_TRADES, background=background, instId=inst_id, type=1, after=after, limit=PAGE)

    async def page_before(self, inst_id: str, ts: str) -> list[Any]:
        """Return PAGE single trades with earlier times than `ts` (ms), newest first."""
        return await self.get(HISTORY_TRADES, instId=inst_id, type=2, after=ts, limit=PAGE)

    async def try_page_below(self, inst_id: str, after: int) -> list[Any]:
        """Do as `page_below` does, but ask only once; raise RequestError where that fails."""
        return await self.try_to_get(HISTORY_TRADES, instId=inst_id, type=1, after=after, limit=PAGE)

    async def candles(self, inst_id: str, start: int, end: int) -> list[Any]:
        """Return the 1-minute candles from `start` up to and without `end` (ms), at most CANDLES, newest first."""
        page: dict[str, Any] = {"after": end, "before": start - 1, "limit": CANDLES}
        return await self.get("/api/v5/market/history-candles", instId=inst_id, bar="1m", **page)


class ExchangeClock:
    """Tells which trade times are believed: none is more than CLOCK_S ahead of both this PC's clock and OKX's."""

    def __init__(self, rest: Rest, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._rest = rest
        self._spawn = spawn  # runs a job beside everything else
        self._ahead_ms = 0  # how far OKX's clock is ahead of this PC's, where it was asked
        self._limit = ""  # ms
        self._held: list[tuple[Trade, Callable[[Trade], None]]] = []  # pushes, and who takes them once OKX was asked

    def allows(self, ts: str) -> bool:
        """Tell whether a trade can have this time (ms)."""
        if ts > self._limit:
            now = time.time_ns() // 1_000_000 + max(0, self._ahead_ms)
            self._limit = f"{now + round(CLOCK_S * 1000):013}"
        return ts <= self._limit

    async def confirm(self, trade: Trade) -> None:
        """Ask OKX for its time where the PC's clock does not allow a trade's; raise BuildFailError if both deny it."""
        if self.allows(trade.ts):
            return
        okx, pc = int(await self._rest.time()), time.time_ns() // 1_000_000
        self._ahead_ms = okx - pc
        if not self.allows(trade.ts):
            raise BuildFailError(
                f"Invalid trade field: ts='{trade.ts}' ({utc(trade.ts)}) is more than a day ahead of this PC's clock"
                f" and of OKX's, in trade {trade.trade_id} of {trade.inst_id}"
            )
        log.warning("This PC's clock is slow; please set it", okx=utc(f"{okx:013}"), pc=utc(f"{pc:013}"))

    def hold(self, trade: Trade, take: Callable[[Trade], None]) -> None:
        """Hold a push whose time is not allowed until OKX was asked, then `take` it; too many are dropped."""
        if len(self._held) < DEDUP_KEYS:
            self._held.append((trade, take))
        if len(self._held) == 1:
            self._spawn(self._release())

    async def _release(self) -> None:
        confirmed = 0
        while confirmed < len(self._held):
            await self.confirm(self._held[confirmed][0])
            confirmed += 1
        held, self._held = self._held, []
        for trade, take in held:
            take(trade)


# ---------------------------------------------------------------------------------------------------------- archives

ARCHIVE_COLUMNS = ("instrument_name", "trade_id", "side", "price", "size", "created_time")
ARCHIVE_SPAN_MS = (-8 * 3_600_000 - 60_000, 16 * 3_600_000 + 60_000)  # from midnight: a UTC+8 day, and a minute more


class ArchiveMissingError(Exception):
    """OKX has not published this archive, or no longer has it."""


class ArchiveDamagedError(Exception):
    """An archive is not what its name says, or is not whole: none of it is believed."""


def plain_number(text: str, decimals: int) -> str:
    """Return a printed float as REST writes it: 104503 for 104503.0; raise ValueError where it has more decimals."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"{text} has more than {decimals} decimals")
    return f"{whole}.{fraction}" if fraction else whole


class Archive:
    """A downloaded daily archive: a zip with one CSV of single trades, oldest first (OKX's historical data page)."""

    def __init__(self, file: BinaryIO, instrument: Instrument, day: date) -> None:
        self.day = day  # a UTC+8 day
        self.first_id = self.last_id = -1  # what it lists, once it is checked
        self._file = file
        self._instrument = instrument
        self._span = [f"{int(midnight_of(str(day))) + ms:013}" for ms in ARCHIVE_SPAN_MS]  # of times, ms
        self._columns: tuple[int, ...] = ()  # where ARCHIVE_COLUMNS stand
        self._batches = self._read()

    def close(self) -> None:
        """Let go of the temporary file."""
        self._batches.close()
        self._file.close()

    async def check(self) -> None:
        """Read all of it once; raise ArchiveDamagedError where it is not to be believed."""
        ends: list[list[str]] = []  # the first and the last row
        try:
            for rows in self._batches:
                self._check_rows(rows)
                ends = [ends[0] if ends else rows[0], rows[-1]]
                await asyncio.sleep(0)  # live trades first
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError, RuntimeError) as exc:
            raise ArchiveDamagedError(describe(exc)) from exc  # OSError: an address in the zip that leads nowhere
        if not ends:
            raise ArchiveDamagedError("it lists no trades")
        if not all(self._is_of_day(row) for row in ends):
            raise ArchiveDamagedError("it holds another day")
        self._batches = self._read()

    def trades(self) -> tuple[list[Trade], list[tuple[int, str]]] | None:
        """Return the next trades by id, and the ids of bad rows with what is wrong; None at the end."""
        rows = next(self._batches, None)
        if rows is None:
            return None
        trades: list[Trade] = []
        bad: list[tuple[int, str]] = []
        for row in rows:
            name, trade_id, side, price, size, ts = (row[column] for column in self._columns)
            fields = {"instId": name, "tradeId": trade_id, "side": side.lower(), "ts": ts}
            try:
                fields["px"] = plain_number(price, self._instrument.px_decimals)
                fields["sz"] = plain_number(size, self._instrument.sz_decimals)
                trade = parse_trade(fields, fetched=True)
                if not self._is_of_day(row):
                    raise ValueError(f"ts={ts!r} is of another day")
                trades.append(trade)
            except (ValueError, BuildFailError) as exc:
                bad.append((int(trade_id), f"{exc.args[0]} in {printable(','.join(row))}"))
        return trades, bad

    def _check_rows(self, rows: list[list[str]]) -> None:
        """Raise ArchiveDamagedError where ids do not rise or repeat, or rows are cut or of another instrument."""
        if min(map(len, rows)) <= max(self._columns):
            raise ArchiveDamagedError("it has a row without all fields")
        name, trade_id = self._columns[:2]
        ids = [int(row[trade_id]) for row in rows]
        if any(low >= high for low, high in itertools.pairwise([self.last_id, *ids])):
            raise ArchiveDamagedError("its ids do not rise, or repeat")
        self.first_id, self.last_id = self.first_id if self.first_id >= 0 else ids[0], ids[-1]
        if {row[name] for row in rows} != {self._instrument.inst_id}:
            raise ArchiveDamagedError("it holds another instrument")

    def _is_of_day(self, row: list[str]) -> bool:
        ts = row[self._columns[5]]
        return len(ts) == len(self._span[0]) and self._span[0] <= ts <= self._span[1]

    def _read(self) -> collections.abc.Generator[list[list[str]], None, None]:
        """Yield rows as lists of fields, ARCHIVE_CHUNK bytes at a time."""
        self._file.seek(0)
        with zipfile.ZipFile(self._file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".csv")]
            if len(members) != 1 or members[0].file_size > ARCHIVE_BYTES:  # more than it says is never unpacked
                raise ArchiveDamagedError("it does not hold one CSV of a believable size")
            if members[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ArchiveDamagedError("it is packed in a way that OKX does not use")
            with archive.open(members[0]) as csv:
                self._columns = self._find_columns(csv.readline(4096))
                rest = ""
                while chunk := csv.read(ARCHIVE_CHUNK):
                    *lines, rest = (rest + chunk.decode("latin-1")).split("\n")
                    if len(rest) > ARCHIVE_CHUNK:
                        raise ArchiveDamagedError("it has a line without end")
                    if rows := [text.split(",") for line in lines if (text := line.rstrip("\r"))]:
                        yield rows
                if rest:
                    yield [rest.split(",")]

    @staticmethod
    def _find_columns(header: bytes) -> tuple[int, ...]:
        """Return where ARCHIVE_COLUMNS stand; old headers have Chinese in GBK behind a slash in each name."""
        fields = [field.partition(b"/")[0] for field in header.lower().split(b",")]
        names = [field.strip(b'\xef\xbb\xbf" \r\n').decode("latin-1") for field in fields]
        if not set(ARCHIVE_COLUMNS) <= set(names):
            raise ArchiveDamagedError(f"its header is {printable(header, 100)}")
        return tuple(names.index(name) for name in ARCHIVE_COLUMNS)


class Archives:
    """OKX's daily archives: downloads one into a temporary file in `folder` and checks it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, folder: Path) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._folder = folder

    async def fetch(self, instrument: Instrument, day: date) -> Archive:
        """Return the archive of a UTC+8 day, checked; its file is gone when it is closed, also after a crash.

        Raises ArchiveMissingError, ArchiveDamagedError, and RequestError where it can't be had now.
        """
        url = f"{self._url}/{day:%Y%m%d}/{instrument.inst_id}-trades-{day}.zip"
        file = cast(BinaryIO, tempfile.TemporaryFile(prefix=PROBE, dir=self._folder))  # noqa: SIM115 - the archive closes it
        archive = Archive(file, instrument, day)
        try:
            await self._download(url, file)
            await archive.check()
        except BaseException:
            archive.close()
            raise
        return archive

    async def _download(self, url: str, file: BinaryIO) -> None:
        timeout = aiohttp.ClientTimeout(connect=REST_TIMEOUT_S, sock_read=ARCHIVE_STALL_S)
        digest = hashlib.md5(usedforsecurity=False)
        try:
            async with self._session.get(url, timeout=timeout, proxy=system_proxy(url)) as response:
                status, told = response.status, response.headers.get("Content-MD5", "")
                while status == 200 and (chunk := await response.content.read(ARCHIVE_CHUNK)):
                    file.write(chunk)
                    digest.update(chunk)
                    if file.tell() > ARCHIVE_BYTES:
                        raise RequestError("an answer without end")
        except Exception as exc:
            raise RequestError(reason_to_retry(exc)) from exc
        if status == 404:
            raise ArchiveMissingError
        if status != 200:
            raise RequestError(f"HTTP {status}")
        if told and told != base64.b64encode(digest.digest()).decode():
            raise ArchiveDamagedError("its checksum is wrong")


# -------------------------------------------------------------------------------------------------------------- feed


class Feed:
    """OKX's WebSocket `trades` channel: connected and subscribed, again and again (docs-v5, WebSocket, Public).

    `takers` take the pushes, by instId; what they raise ends the feed.
    """

    def __init__(self, url: str, takers: dict[str, Callable[[Trade], None]], outage: Outage) -> None:
        self._url = url
        self._takers = takers
        self._outage = outage
        self._throttle = LogThrottle()
        self._connection: websockets.ClientConnection | None = None
        self._unacked: set[str] = set()  # instruments whose subscription OKX has not acknowledged
        self._heard = True  # something arrived since _watch last looked
        self._cut_reason = ""  # why we ended the connection
        self._subscribed_once = False
        self._rejected_since = self._rejected_at = -REJECTIONS_APART_S
        self._noticed_at = -NOTICE_S

    async def stay_connected(self) -> None:
        """Serve one connection after the other, for ever; raise BuildFailError and VaultError."""
        pauses = delays()
        while True:
            opened_at = monotonic()
            try:
                self._connection = await websockets.connect(
                    self._url,
                    proxy=system_proxy(self._url),
                    compression=None,
                    ping_interval=None,
                    open_timeout=CONNECT_S,
                    close_timeout=1,
                    max_size=FRAME_BYTES,
                    happy_eyeballs_delay=NEXT_ADDRESS_S,
                )
            except Exception as exc:  # noqa: BLE001 - the outside world
                host, reason = host_of(self._url), reason_to_retry(exc)
                text = f"Not connected to OKX ({host}: {reason}). Check the internet connection"
            else:
                text = f"Disconnected from OKX ({await self._serve(self._connection)})"
                if monotonic() - opened_at >= STEADY_S and not self._unacked:
                    pauses = delays()
            delay = next(pauses)
            self._outage.failed("WebSocket", text, delay)
            await asyncio.sleep(delay)

    def reconnect(self, reason: str) -> None:
        """Cut the present connection without a close frame, which a half-open one would not answer."""
        if self._connection is not None:
            self._cut_reason = self._cut_reason or reason
            self._connection.transport.abort()

    async def _serve(self, connection: websockets.ClientConnection) -> str:
        """Subscribe and take messages until the connection ends; return why it ended."""
        self._unacked, self._heard, self._cut_reason = set(self._takers), True, ""
        args = [{"channel": "trades", "instId": inst_id} for inst_id in self._takers]
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(connection))
            try:
                with contextlib.suppress(websockets.ConnectionClosed):  # recv says why
                    await connection.send(orjson.dumps({"op": "subscribe", "args": args}).decode())
                while True:
                    try:
                        message = await connection.recv(decode=False)
                    except Exception as exc:  # noqa: BLE001 - the outside world
                        return self._cut_reason or reason_to_retry(exc)
                    self._heard = True
                    self._take(message)
            finally:
                watch.cancel()
                await connection.close()

    async def _watch(self, connection: websockets.ClientConnection) -> None:
        """End a connection that is silent, or not subscribed in time; ping it when it is quiet."""
        opened_at = heard_at = monotonic()
        pinged = False
        while not self._cut_reason:
            await asyncio.sleep(WATCH_S)
            now = monotonic()
            if self._heard:
                self._heard, pinged, heard_at = False, False, now
            if self._unacked and now - opened_at >= SUBSCRIBE_S:
                self.reconnect(f"no ack within {SUBSCRIBE_S:.0f}s for {', '.join(sorted(self._unacked))}")
            elif now - heard_at >= PING_AFTER_S + PONG_S:
                self.reconnect(f"nothing heard for {now - heard_at:.0f}s")
            elif now - heard_at >= PING_AFTER_S and not pinged:
                pinged = True
                with contextlib.suppress(websockets.ConnectionClosed):  # recv says why
                    await connection.send("ping")

    def _take(self, frame: bytes) -> None:
        """Take a message: the one path from the socket to the file's buffer; raise BuildFailError."""
        try:
            message = orjson.loads(frame)
            rows, channel = message["data"], message["arg"]["channel"]
        except orjson.JSONDecodeError:
            if frame != b"pong":
                self._warn("A frame that is not JSON", frame)
            return
        except (KeyError, TypeError):  # no push
            self._take_event(message if isinstance(message, dict) else {}, frame)
            return
        if channel != "trades" or type(rows) is not list:
            self._warn("A push that is not of the trades channel", frame)
            return
        for row in rows:
            trade = parse_trade(row)
            take = self._takers.get(trade.inst_id)
            if take is None:
                raise BuildFailError(f"Unexpected instId: {printable(trade.inst_id)} in {printable(row)}")
            take(trade)

    def _take_event(self, message: dict[str, Any], frame: bytes) -> None:
        """Take an ack, an error or a notice; raise BuildFailError where OKX refuses the subscription for good."""
        event, code, text = (printable(message.get(key)) for key in ("event", "code", "msg"))
        arg, now = message.get("arg"), monotonic()
        inst_id = printable(arg.get("instId")) if isinstance(arg, dict) else ""
        if event == "subscribe" and inst_id in self._unacked:
            self._unacked.discard(inst_id)
            log.info("Subscribed to trades", instId=inst_id)
            if not self._unacked:
                self._subscribed_once, self._rejected_at = True, -REJECTIONS_APART_S
                self._outage.works("WebSocket")
        elif event == "error" and self._unacked:
            if code in REJECTIONS and self._is_final(now):
                raise BuildFailError(f"Subscription rejected: code {code}, {text}")
            self.reconnect(f"subscription failed: code {code}, {text}")
        elif event == "notice" and code == "64008":
            if now - self._noticed_at >= NOTICE_S:  # each notice would bring a reconnect otherwise
                self.reconnect("OKX announced an upgrade")
            self._noticed_at = now
        else:
            self._warn("OKX reports an error" if event == "error" else "An unknown event", frame)

    def _is_final(self, now: float) -> bool:
        """Count a rejection; tell whether it is believed: at start, or after REJECTED_S of them without a break."""
        if now - self._rejected_at >= REJECTIONS_APART_S:
            self._rejected_since = now
        self._rejected_at = now
        return not self._subscribed_once or now - self._rejected_since >= REJECTED_S

    def _warn(self, what: str, frame: bytes) -> None:
        """Log a frame that is no trade; the connection stays."""
        if self._throttle.may_log(what):
            log.warning(what, frame=printable(frame[:500], 80))


# ---------------------------------------------------------------------------------------------------------- backfill


def spawn(tasks: asyncio.TaskGroup, job: Coroutine[Any, Any, None]) -> None:
    """Run a job beside everything else, unless the exporter is about to end."""
    try:
        tasks.create_task(job)
    except RuntimeError:  # the group is shutting down
        job.close()


class AwakeClock:
    """A clock, s, that stands still while the PC sleeps: between two ticks it goes on by 4 * WATCH_S at most."""

    def __init__(self) -> None:
        self._time = 0.0  # at the last tick
        self._ticked_at = monotonic()

    @property
    def now(self) -> float:
        """Return the time, s."""
        return self._time + min(monotonic() - self._ticked_at, 4 * WATCH_S)

    async def run(self) -> None:
        """Let the clock go on, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._time, self._ticked_at = self.now, monotonic()


@dataclasses.dataclass(frozen=True)
class Services:
    """What live capture and history use, of all instruments together."""

    rest: Rest
    clock: ExchangeClock
    awake: AwakeClock
    patience: Patience
    throttle: LogThrottle
    day_began: Callable[[str], None]  # told the instId before the first line of a day newer than all stored ones
    day_filled: Callable[[], None]  # told when history has stored all of a day
    spawn: Callable[[Coroutine[Any, Any, None]], None]  # runs it beside everything else; its errors end the exporter


def first_break(trades: list[Trade]) -> int:
    """Return the first id that is missing between these single trades, or the one after them."""
    upto = next((low.last for low, high in itertools.pairwise(trades) if high.last > low.last + 1), None)
    return 1 + (upto if upto is not None else trades[-1].last if trades else -1)


class Backfill:
    """Asks REST for what a sequence lacks, page by page, and stores it.

    A bad row is asked for again until PROOF_ANSWERS over PROOF_S had it; then `on_bad_row` is told its id (None: the id
    is what is bad) and what is wrong with it.
    """

    def __init__(
        self,
        inst_id: str,
        services: Services,
        sequence: Sequence,
        store: Callable[[Iterable[Trade | Gap]], None],
        on_bad_row: Callable[[int | None, BuildFailError], None],
        *,
        background: bool = False,  # all other requests go first, and nothing can still come late
    ) -> None:
        self.fetched = 0  # trades
        self.repair = Repair(sequence, monotonic(), 0.0 if background else LATE_S)
        self._inst_id = inst_id
        self._services = services
        self._sequence = sequence
        self._store = store
        self._on_bad_row = on_bad_row
        self._background = background
        self._bad = Evidence()  # of bad rows: the id as it was sent, and the missing id in whose place it was

    async def ask(self, pages: list[int], go_on: Callable[[], bool]) -> bool:
        """Ask for pages all at once and learn from them in order, while `go_on()`; return whether an answer helped."""
        page = partial(self._services.rest.page_below, self._inst_id, background=self._background)
        asked = [asyncio.ensure_future(page(after)) for after in pages]
        helped = False
        try:
            for after, answer in zip(pages, asked, strict=True):
                trades = await self._good_trades(await answer)
                if not go_on():
                    break
                learned = self.repair.learn(after, trades, monotonic())
                self._store(learned.items)
                self.fetched += sum(isinstance(item, Trade) and item.fetched for item in learned.items)
                helped = helped or learned.helped
        finally:
            for answer in asked:
                answer.cancel()
        return helped

    async def _good_trades(self, rows: list[Any]) -> list[Trade]:
        """Return an answer's trades by id, up to the first bad row of a missing trade: that is asked for again."""
        trades, bad = parse_rows(self._inst_id, rows)
        for trade in trades:
            try:
                await self._services.clock.confirm(trade)
            except BuildFailError as exc:
                bad.append((trade.trade_id, exc))
        for text, defect in dict(bad).items():
            bad_id = int(text) if re.fullmatch(FIELD_PATTERNS[3], text) else None
            if bad_id is not None and not self._sequence.lacks(bad_id):
                continue
            end = bad_id if bad_id is not None else first_break(trades)
            trades = [trade for trade in trades if trade.last < end]
            if self._bad.add((text, end), self._services.awake.now):
                self._on_bad_row(bad_id, defect)
        return trades


async def lowest_trade(rest: Rest, inst_id: str, known_id: int) -> Trade | None:
    """Return the trade with the lowest id that REST has, or None where it shows none up to `known_id`, which exists."""
    search, lowest, outcome = HoleSearch(0, known_id), None, "going on"
    while outcome == "going on":
        after = search.address()
        rows = [row for row in parse_rows(inst_id, await rest.page_below(inst_id, after))[0] if row.last < after]
        lowest = min([*rows, *([lowest] if lowest else [])], default=None)
        outcome = search.learn(after, [row.last for row in rows])
        if 0 < len(rows) < PAGE:  # there is nothing below
            break
    return lowest


class DayStart(NamedTuple):
    """Where a UTC day begins: the trade before its first one (None: REST has none), and its first one."""

    before: Trade | None
    first: Trade | None  # None: the day has not begun


class DayStartSearch:
    """Finds the first trade of a UTC day over REST. REST lags and forgets: it asks until the answer can be believed."""

    def __init__(self, inst_id: str, rest: Rest, day: str) -> None:
        self._inst_id = inst_id
        self._rest = rest
        self._midnight = midnight_of(day)
        self._evidence = Evidence()

    async def find(self, known_id: int) -> DayStart:
        """Return where the day begins; `known_id` is the highest id known to exist, of that day or later.

        A page that shows two neighbouring ids on both sides of midnight is believed. Where they are no neighbours, and
        where REST has nothing before midnight, PROOF_ANSWERS over PROOF_S have to agree.
        """
        last = 0  # the highest id that a page showed with a time before midnight
        for pause in itertools.chain(ASK_AGAIN_S[:1] * 3, itertools.repeat(ASK_AGAIN_S[1])):
            rows = self._rows(await self._rest.page_before(self._inst_id, self._midnight))
            if earlier := self._before_midnight(rows, last):
                # around that id; if the page shows a higher one before midnight, go on around that
                page = self._rows(await self._rest.page_below(self._inst_id, earlier + 1 + PAGE // 2))
                if start := self._judge(page, known_id):
                    return start
                if (last := self._before_midnight(page, earlier)) > earlier:
                    continue
            elif await self._rest.page_below(self._inst_id, known_id + 1) and self._evidence.add(None, monotonic()):
                return DayStart(None, await lowest_trade(self._rest, self._inst_id, known_id))
            await asyncio.sleep(pause)
        raise AssertionError  # the loop has no end

    def _rows(self, rows: list[Any]) -> list[Trade]:
        return parse_rows(self._inst_id, rows)[0]

    def _before_midnight(self, rows: list[Trade], least: int) -> int:
        """Return the highest id of rows with times before midnight, at least `least`."""
        return max((row.last for row in rows if row.ts < self._midnight and row.last > least), default=least)

    def _judge(self, page: list[Trade], known_id: int) -> DayStart | None:
        """Return the start of the day that a page shows, or None if it shows none that is believed."""
        before = next((row for row in reversed(page) if row.ts < self._midnight), None)
        if before is None:
            return None
        if before.last >= known_id:
            return DayStart(before, None)
        first = next((row for row in page if row.last > before.last), None)
        if first is None:
            return None
        neighbours = first.last == before.last + 1
        proved = neighbours or self._evidence.add((before.last, first.last), monotonic())
        return DayStart(before, first) if proved else None


class RepairProgress:
    """Logs how far a live repair is, from the first request on."""

    def __init__(self, inst_id: str, sequence: Sequence, throttle: LogThrottle) -> None:
        self._inst_id = inst_id
        self._sequence = sequence
        self._began_at = self._logged_at = monotonic()
        ranges = list(sequence.missing())
        self._ids = {"instId": inst_id, "after_id": ranges[0][0] - 1, "before_id": ranges[-1][1] + 1}
        if throttle.may_log(f"gap of {inst_id} after {ranges[0][0]}"):  # a full disk brings one again and again
            log.warning("Gap found", **self._ids, missing=sum(high - low + 1 for low, high in ranges))

    def log(self, fetched: int) -> None:
        """Log how far it is, every PROGRESS_S; `fetched` trades are stored."""
        now = monotonic()
        if now - self._logged_at >= PROGRESS_S and self._sequence.open:
            self._logged_at = now
            took = now - self._began_at
            missing = sum(high - low + 1 for low, high in self._sequence.missing())
            share = fetched / (fetched + missing)
            eta = timedelta(seconds=round(took / share - took)) if share > 0.0001 else "unknown"
            log.info(f"Backfill {self._inst_id} {share:.0%}", fetched=fetched, missing=missing, eta=str(eta))

    def end(self, fetched: int) -> None:
        """Log that nothing is missing any more."""
        log.info("Gap repaired", **self._ids, fetched=fetched, took=f"{monotonic() - self._began_at:.1f}s")


# ---------------------------------------------------------------------------------------------------------- recorder


class LiveCapture(Protocol):
    """What a live repair needs of the recorder."""

    @property
    def failed(self) -> bool:
        """Tell whether the last write failed: then the repair ends."""

    def store(self, items: Iterable[Trade | Gap]) -> None:
        """Store what the sequence lets through."""

    def leave_to_history(self, first: int, ts: str) -> None:
        """Put what is missing below the id `first`, of the time `ts` (ms), on record as pending, and go on there."""


class LiveRepair:
    """Asks REST for what live capture lacks, page by page, until nothing is missing of the newest trade's day."""

    def __init__(self, inst_id: str, sequence: Sequence, services: Services, capture: LiveCapture) -> None:
        self._inst_id = inst_id
        self._sequence = sequence
        self._services = services
        self._capture = capture
        self._start_over()

    def _start_over(self) -> None:
        """Forget what was asked for: ids went on record, and what is missing now is another gap."""
        self._backfill = Backfill(self._inst_id, self._services, self._sequence, self._capture.store, self._refuse)
        self._progress: RepairProgress | None = None

    async def run(self) -> None:
        """Repair until nothing is missing or a write fails; raise BuildFailError where REST's rows stay bad."""
        patience, awake, sequence = self._services.patience, self._services.awake, self._sequence
        found_at = awake.now
        patience.begin(self._inst_id, awake.now)
        try:
            while sequence.open and not self._capture.failed:
                pages = self._backfill.repair.next_pages(monotonic())
                left = patience.left(awake.now)
                if not pages or (patience.given_up and not patience.probe_failed_since(found_at)):
                    await asyncio.sleep(POLL_S)
                elif patience.given_up or not left:
                    self._give_up()
                else:
                    with contextlib.suppress(TimeoutError):  # `left` decides: a timeout also counts a sleep of the PC
                        async with asyncio.timeout(left):
                            await self._fetch(pages)
            if self._progress and not self._capture.failed:
                self._progress.end(self._backfill.fetched)
        finally:
            patience.end(self._inst_id)

    async def _fetch(self, pages: list[int]) -> None:
        """Ask for pages; but first, where earlier days are missing too, leave those to history."""
        if self._reaches_into_history():
            await self._leave_past_to_history()
            return
        self._progress = self._progress or RepairProgress(self._inst_id, self._sequence, self._services.throttle)
        if await self._backfill.ask(pages, lambda: self._sequence.open and not self._capture.failed):
            self._services.patience.helped(self._services.awake.now)
        self._progress.log(self._backfill.fetched)

    def _midnight(self) -> str:
        return midnight_of(utc_day(self._sequence.known_ts))

    def _reaches_into_history(self) -> bool:
        """Tell whether what is missing begins over MIDNIGHT_S before the newest trade's day: history repairs that."""
        sequence = self._sequence
        return sequence.begin_unknown or int(sequence.ts or 0) < int(self._midnight()) - MIDNIGHT_S * 1000

    async def _leave_past_to_history(self) -> None:
        """Leave to history what is missing before the day of the newest known trade."""
        sequence, midnight = self._sequence, self._midnight()
        search = DayStartSearch(self._inst_id, self._services.rest, utc_day(sequence.known_ts))
        start = await search.find(sequence.known_id)
        if self._capture.failed or self._midnight() != midnight:
            return
        if start.first:
            self._services.patience.helped(self._services.awake.now)
            self._capture.leave_to_history(start.first.first, start.first.ts)
            self._start_over()
        elif start.before and start.before.last >= sequence.known_id:  # the newest push had a wrong time, of tomorrow
            sequence.expect(sequence.known_id, start.before.ts)

    def _give_up(self) -> None:
        """Give REST up: what is missing goes on record, earlier days as pending, but for what may still come late."""
        sequence, settled = self._sequence, self._backfill.repair.settled
        if self._services.patience.give_up():
            self._services.spawn(self._probe(sequence.known_id, sequence.known_ts))
        if sequence.ts < (midnight := self._midnight()) and self._reaches_into_history():
            first = next(((trade.first, trade.ts) for trade in sequence.waiting if trade.ts >= midnight), None)
            self._capture.leave_to_history(*(first or (sequence.known_id + 1, sequence.known_ts)))
        self._capture.store(sequence.put_on_record(settled, "unrepaired"))
        self._start_over()

    async def _probe(self, trade_id: int, ts: str) -> None:
        """Keep asking REST until it shows a trade with this id or time, or later; then gaps are repaired again."""
        patience, awake = self._services.patience, self._services.awake
        while True:
            began_at = awake.now
            with contextlib.suppress(RequestError):
                page = await self._services.rest.try_page_below(self._inst_id, trade_id + 1)
                if any(row.last >= trade_id or row.ts >= ts for row in parse_rows(self._inst_id, page)[0]):
                    break
            patience.probe_failed(began_at)
            await asyncio.sleep(ASK_AGAIN_S[1])
        patience.trust_again(awake.now)
        log.info("REST is back; repairs resume")

    @staticmethod
    def _refuse(trade_id: int | None, exc: BuildFailError) -> None:
        what = "a trade" if trade_id is None else f"trade {trade_id}"
        raise BuildFailError(
            f"{exc.args[0]} (REST keeps sending {what} like this; start once with --since now to skip it)"
        )


class Recorder:
    """One instrument's live capture: from a push to the file, and the repair of what is missing of the present day.

    What is missing of earlier days goes on record as pending, and `on_pending` is called: that is history.
    """

    def __init__(
        self, instrument: Instrument, files: TradeFiles, services: Services, on_pending: Callable[[], None], since: str
    ) -> None:
        self.inst_id = instrument.inst_id
        self.sequence = Sequence(max(1, WAITING_TRADES // len(INSTRUMENTS)))
        self.failed = False  # the last write failed: pushes are dropped until the file is recovered, and fetched then
        self.repaired = 0  # single trades from REST
        self.heard_at = monotonic()  # when the last push came that OKX did not just repeat
        self.writer = TradeWriter(files, instrument, files.gaps.add_unfit, self._on_day, live=True)
        self._files = files
        self._services = services
        self._on_pending = on_pending
        self._since = since  # a UTC day, `now`, or nothing
        self._first_push = True
        self._missed_upto = -1  # with --since now, the last id that was missed before this start
        self._recent = RecentKeys()
        self._flush_due = self._repairing = False

    def recover(self) -> None:
        """Continue after what is stored, at start; raise OSError where that fails."""
        self._go_on(self._files.recover())

    def _go_on(self, keys: list[str]) -> None:
        """Continue after the highest stored or pending id; `keys`: newest dedup keys."""
        end = self._files.live_end()
        if end == NOTHING and self._since not in {"", "now"}:  # not even the lowest id that is wanted is known
            self.sequence.restart(-1, midnight_of(self._since))
        else:
            self.sequence.restart(None if end == NOTHING else end.trade_id, milliseconds(end.time_utc))
        if self.sequence.next_id is not None:  # or else files were moved away, and gaps tell of them
            self._files.gaps.reopen(end.trade_id + 1)
        self._recent = RecentKeys(dict.fromkeys(keys))
        self.failed = False

    def take(self, trade: Trade) -> None:
        """Take a push; raise BuildFailError and VaultError."""
        repeated = trade.key in self._recent
        if not repeated:  # OKX repeats the newest trade at each subscription
            self.heard_at = monotonic()
        if not self._services.clock.allows(trade.ts):
            self._services.clock.hold(trade, self.take)
            return
        if repeated:
            self._recent.move_to_end(trade.key)
            self.sequence.skip(trade)
        elif self.failed:
            self.sequence.note(trade)
        else:
            self.store(self.sequence.offer(trade))
        if self._first_push:
            self._on_first_push(trade)
        if self.sequence.open and not self._repairing and not self.failed:
            self._repair()

    def _on_first_push(self, trade: Trade) -> None:
        """Log the first push of this run; with --since now, put what was missed before it on record."""
        self._first_push = False
        log.info("First trade", instId=self.inst_id, trade_id=trade.trade_id, time=utc(trade.ts))
        if self._since == "now":
            self._missed_upto = trade.first - 1
            self.store(self.sequence.put_on_record(self._missed_upto, "horizon"))

    def leave_to_history(self, first: int, ts: str) -> None:
        """Put what is missing below the id `first`, of the time `ts` (ms), on record as pending, and go on there.

        Where nothing is stored and --since names this day, there is nothing below: the record begins here.
        """
        sequence = self.sequence
        after_id = None if sequence.begin_unknown else sequence.last
        gap = Gap("pending", after_id, first, utc(sequence.ts), utc(ts))
        if after_id is None and sequence.ts >= midnight_of(utc_day(ts)):
            gap = Gap("start", None, first, "", utc(ts))
        try:
            self.writer.flush()
            self.writer.close_file()  # what lies below `after_id` is on the disk before a restart relies on it
            if gap.first < first:
                self.writer.store([gap])
        except OSError as exc:
            self.fail(exc)
            return
        self.store(sequence.continue_at(first, ts))
        self._on_pending()

    def flush(self) -> None:
        """Hand the lines to the file."""
        self._flush_due = False
        try:
            self.writer.flush()
        except OSError as exc:
            self.fail(exc)

    def fail(self, exc: OSError) -> None:
        """Leave a file that can't be written, and recover it when there is room again."""
        self.writer.abandon()
        if not self.failed:
            self.failed = True
            self._services.spawn(self._mend(exc))

    def store(self, items: Iterable[Trade | Gap]) -> None:
        """Turn what the sequence lets through into lines, and see to it that they reach the file soon."""
        if self.failed:
            return
        try:
            self.writer.store(items)
        except OSError as exc:
            self.fail(exc)
            return
        for item in items:
            if isinstance(item, Trade):
                self._recent.add(item.key)
                self.repaired += item.fetched
        if not self._flush_due and self.writer.buffered:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)  # when all that came together is taken

    def _on_day(self, day: str) -> None:
        if day > max(self._files.ends, default=day):
            self._services.day_began(self.inst_id)

    async def _mend(self, exc: OSError) -> None:
        self._go_on(await self._files.until_writable(self._services.throttle, exc))
        self.store(self.sequence.put_on_record(self._missed_upto, "horizon"))  # where just that was not written
        if self.sequence.open and not self._repairing:
            self._repair()

    def _repair(self) -> None:
        """Fetch what is missing, in the background."""

        async def repair() -> None:
            try:
                await LiveRepair(self.inst_id, self.sequence, self._services, self).run()
            finally:
                self._repairing = False

        self._repairing = True
        self._services.spawn(repair())


# ----------------------------------------------------------------------------------------------------------- history


def archive_day(ts: str) -> date:
    """Return the UTC+8 day whose archive holds a time (ms)."""
    return (datetime.fromtimestamp(int(ts) / 1000, UTC) + timedelta(hours=8)).date()


def begins_archive(trade: Trade) -> bool:
    """Tell whether a trade is of the first minutes of its archive: trades before it belong to the archive before."""
    begin = int(midnight_of(str(archive_day(trade.ts)))) - 8 * 3_600_000  # 16:00 UTC
    return int(trade.ts) - begin < MIDNIGHT_S * 1000


class ArchiveSource:
    """An instrument's archives for one pending range, read one after the other; remembers which can't be had."""

    def __init__(self, archives: Archives, instrument: Instrument) -> None:
        self.listed = (-1, -1)  # first and last id that archives of days in a row list, up to the one opened last
        self.gone: set[date] = set()  # OKX does not have them, or sent damaged ones twice
        self._listed_day = date.min  # of the one opened last
        self._bad_ids: list[int] = []  # of rows that can't be used, ascending
        self._archives = archives
        self._instrument = instrument
        self._archive: Archive | None = None
        self._read_upto = date.min  # no archive up to this day has anything more for the range
        self._retry_at: dict[date, float] = {}  # by day that failed: not before
        self._damaged: set[date] = set()

    @property
    def is_open(self) -> bool:
        """Tell whether an archive is being read."""
        return self._archive is not None

    def close(self) -> None:
        """Let go of the archive that is being read."""
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def next_day(self, ts: str) -> date:
        """Return the day of the archive to read next, where the last trade had the time `ts` (ms)."""
        return max(archive_day(ts), self._read_upto + timedelta(days=1))

    def bad_run(self, low: int, high: int) -> tuple[int, int]:
        """Return first and last id of the lowest bad rows in a row from `low` to `high`; (high + 1, high) for none."""
        ids = self._bad_ids
        start = end = bisect.bisect_left(ids, low)
        while end < len(ids) and ids[end] <= high and ids[end] - ids[start] == end - start:
            end += 1
        return (ids[start], ids[end - 1]) if end > start else (high + 1, high)

    def finish_day(self, day: date) -> None:
        """Note that the archive of a day has nothing more for the range: the next day's comes next."""
        self._read_upto = day

    async def open(self, day: date) -> bool:
        """Fetch the archive of a day, unless that failed a short while ago; return whether there is one to read now."""
        if monotonic() < self._retry_at.get(day, 0.0):
            return False
        about = {"instId": self._instrument.inst_id, "day": str(day)}
        failed_before = day in self._retry_at
        try:
            self._archive = archive = await self._archives.fetch(self._instrument, day)
        except ArchiveMissingError:
            self.gone.add(day)
            if not failed_before:
                log.info("Archive not published yet; using REST instead", **about)
        except ArchiveDamagedError as exc:
            if day in self._damaged:
                self.gone.add(day)
            self._damaged.add(day)
            log.warning("Archive is damaged; using REST instead", **about, error=describe(exc))
        except RequestError as exc:
            if not failed_before:
                log.warning("Archive can't be downloaded now; using REST instead", **about, error=describe(exc))
        else:
            self.gone.discard(day)
            in_a_row = day == self._listed_day + timedelta(days=1)
            self.listed = self.listed[0] if in_a_row else archive.first_id, archive.last_id
            self._listed_day = day
            return True
        self._retry_at[day] = monotonic() + ARCHIVE_RETRY_S
        return False

    def read(self) -> list[Trade]:
        """Return the next trades of the open archive, by id; at its end close it and return none."""
        if self._archive is None:
            return []
        batch = self._archive.trades()
        if batch is None:
            self.finish_day(self._archive.day)
            self.close()
            return []
        trades, bad = batch
        for trade_id, defect in bad:
            bisect.insort(self._bad_ids, trade_id)
            if len(self._bad_ids) <= SHOWN:  # a number format that changed would be a warning a row
                what = "Invalid row in an archive; its trade is fetched over REST"
                log.warning(what, instId=self._instrument.inst_id, error=printable(defect, 200))
        return trades


class RestReach:
    """Finds out how far back REST reaches: it serves two to three months."""

    def __init__(self, rest: Rest, inst_id: str) -> None:
        self.lowest_id = -1  # REST shows nothing below it; -1: not known
        self._rest = rest
        self._inst_id = inst_id
        self._low, self._since = -1, 0.0  # the lowest missing id, and since when it is that

    async def look(self, low: int, high: int, newest: int) -> None:
        """Find out `lowest_id`, once the ids `low` to `high` have been the lowest missing ones for PROOF_S.

        A REST that shows trades up to the id `newest` works.
        """
        if low != self._low:
            self._low, self._since = low, monotonic()
        if high < self.lowest_id or monotonic() - self._since <= PROOF_S:
            return
        lowest = await lowest_trade(self._rest, self._inst_id, newest)
        if lowest and lowest.last > low and await self._shows_nothing_below(lowest.last, newest):
            self.lowest_id = lowest.last
        self._since = monotonic()

    async def _shows_nothing_below(self, begin: int, newest: int) -> bool:
        """Ask REST PROOF_ANSWERS times over PROOF_S whether it shows any id below `begin`.

        Each time it has to show trades up to `newest` as well: an answer of a REST that is broken proves nothing.
        """
        for pause in [PROOF_S / (PROOF_ANSWERS - 1)] * (PROOF_ANSWERS - 1) + [0.0]:
            rows = parse_rows(self._inst_id, await self._rest.page_below(self._inst_id, begin))[0]
            if any(row.last < begin for row in rows) or not await self._rest.page_below(self._inst_id, newest + 1):
                return False
            await asyncio.sleep(pause)
        return True


class RangeFill:
    """Fetches one pending range, lowest id first, from archives and REST into a sequence, and stores it.

    Archives come first while over ARCHIVE_IDS are missing, or REST does not reach them; REST gives what they lack.
    `newest` gives the highest id that live capture knows and its time (ms): a REST that shows trades up to it works.
    """

    def __init__(
        self,
        gap: Gap,
        files: TradeFiles,
        services: Services,
        source: ArchiveSource,
        newest: Callable[[], tuple[int, str]],
        store: Callable[[Iterable[Trade | Gap]], None],
    ) -> None:
        self._sequence = Sequence()
        self._end = gap.before_id  # exclusive
        self._gap = gap
        self._files = files
        self._services = services
        self._source = source
        self._newest = newest
        self._store = store
        self._end_ts = milliseconds(gap.before_utc) or newest()[1]
        self._since_ts = milliseconds(gap.after_utc)  # older trades are not wanted, where `after_id` is None
        self._backfill = Backfill(files.inst_id, services, self._sequence, store, self._on_bad_row, background=True)
        self._reach = RestReach(services.rest, files.inst_id)

    @property
    def done(self) -> bool:
        """Tell whether all of the range is stored or on record."""
        return self._sequence.next_id is not None and self._sequence.next_id >= self._end

    async def find_begin(self) -> None:
        """Find out where the range begins: after what is stored of it, or with the first trade of a day."""
        gap = self._gap
        stored = self._files.ends.highest(before=gap.before_id)  # may lie below the range, where a line was lost
        if stored != NOTHING or gap.after_id is not None:
            before = stored if stored != NOTHING else Boundary(gap.first - 1, gap.after_utc)
            self._sequence.restart(before.trade_id, milliseconds(before.time_utc) or self._end_ts)
            self._files.gaps.reopen(before.trade_id + 1, gap.before_id - 1)
            return
        self._sequence.restart(-1, self._since_ts)
        self._files.gaps.reopen(0, gap.before_id - 1)
        search = DayStartSearch(self._files.inst_id, self._services.rest, utc_day(self._since_ts))
        start = await search.find(max(self._newest()[0], self._end))  # there may have been no push yet
        if start.before and start.first:
            self._begin_with(start.first)

    async def step(self) -> None:
        """Take one batch of an archive, or one round of REST's pages, and decide about what neither of them has."""
        if await self._take_archive():
            await asyncio.sleep(0)  # live trades first
        else:
            await self._take_pages()
        decided: list[Trade | Gap] = []  # stored together: each gap on record costs an fsync
        while (missing := next(self._sequence.missing(), None)) and missing[1] < self._reach.lowest_id:
            items = self._decide(*missing)
            if items is None:
                break
            decided += items
        self._store(decided)

    def _begin_with(self, trade: Trade) -> None:
        """Let the range, whose begin was not known, begin with this trade."""
        since = self._gap.after_utc
        reason, after_utc = ("horizon", since) if self._begins_late(trade) else ("start", "")
        self._files.gaps.add([Gap(reason, None, trade.first, after_utc, utc(trade.ts))])
        self._files.gaps.clear({"pending"}, Boundary(0, ""), Boundary(trade.first - 1, since))
        self._sequence.restart(trade.first - 1, self._since_ts)

    def _begins_late(self, trade: Trade) -> bool:
        """Tell whether OKX once had trades of the range before this one, the first that it still has."""
        first_archive_gone = archive_day(self._since_ts) in self._source.gone and begins_archive(trade)
        return first_archive_gone or utc_day(trade.ts) > utc_day(self._since_ts)

    async def _take_archive(self) -> bool:
        """Offer a batch of an archive to the sequence; return False where REST is to be asked instead."""
        sequence, source = self._sequence, self._source
        low = sequence.next_id or 0
        if not source.is_open:
            day = source.next_day(sequence.ts)
            if low >= self._reach.lowest_id and (self._end - low <= ARCHIVE_IDS or sequence.waiting):
                return False
            if day > archive_day(self._end_ts) or not await source.open(day):
                return False
            sequence.expect(low - 1, sequence.ts)  # nothing but what this archive lists, as it is read
        if len(sequence.waiting) >= LOOKAHEAD_TRADES // 2:  # first REST is asked for what it does not list
            return False
        trades = [trade for trade in source.read() if low <= trade.first < self._end]
        if sequence.begin_unknown and (trades := [trade for trade in trades if trade.ts >= self._since_ts]):
            self._begin_with(trades[0])
        self._store([item for trade in trades for item in sequence.offer(trade)])
        return True

    async def _take_pages(self) -> None:
        """Ask REST for what is missing, and find out where it does not reach."""
        sequence, source = self._sequence, self._source
        low = sequence.next_id or 0
        if not source.is_open:  # first what archives left out between their ids, then all up to the end of the range
            upto = source.listed[1] if low < source.listed[1] else self._end - 1
            sequence.expect(min(upto, self._end - 1), self._end_ts)
        pages = self._backfill.repair.next_pages(monotonic())
        if not pages:
            await asyncio.sleep(POLL_S)
        with contextlib.suppress(TimeoutError):  # REST may be dead, while an archive has come meanwhile
            async with asyncio.timeout(ARCHIVE_RETRY_S + 2 * PROOF_S):  # a proof takes PROOF_S
                await self._backfill.ask(pages, lambda: not self.done)
                if missing := next(sequence.missing(), None):
                    await self._reach.look(*missing, max(self._newest()[0], self._end - 1))

    def _decide(self, low: int, high: int) -> list[Trade | Gap] | None:
        """Return what to store for the lowest missing ids, which REST lacks; None while an archive may still come.

        Between ids that archives list they never existed (absent), or their rows are bad (unrepaired). Below all that
        is to be had the range just begins later. All others are horizon, once their archive is overdue.
        """
        sequence, source = self._sequence, self._source
        if source.listed[0] < low and high < source.listed[1]:
            bad, last_bad = source.bad_run(low, high)
            upto, reason = (last_bad, "unrepaired") if bad == low else (bad - 1, "absent")
            return sequence.put_on_record(upto, reason)
        day, last_day = source.next_day(sequence.ts), archive_day(self._end_ts)
        none_left = source.is_open or day in source.gone or day > last_day  # of the archives that may hold them
        first = sequence.waiting[0] if sequence.waiting and sequence.begin_unknown else None
        if none_left and first and not self._begins_late(first):
            self._begin_with(first)
            return []
        age_ms = int(self._newest()[1]) - int(sequence.ts)
        if not none_left or age_ms <= (ARCHIVE_LATE_DAYS + 1) * 86_400_000:  # it may still be published
            if self._services.throttle.may_log(f"history of {self._files.inst_id} waits"):
                what = "History waits for an archive: these trades are older than REST reaches"
                log.info(what, instId=self._files.inst_id, day=str(day))
            return None
        if not source.is_open and day < last_day:  # a later archive shows how far the missing ids go
            source.finish_day(day)
            return None
        if first:
            self._begin_with(first)
            return []
        return sequence.put_on_record(high, "horizon")

    def _on_bad_row(self, trade_id: int | None, exc: BuildFailError) -> None:
        """Put an id whose row stays bad on record, when it is the lowest that is missing."""
        low = self._sequence.next_id or 0
        if trade_id is None or trade_id == low:
            what = "REST keeps sending an invalid row; its trade is skipped (unrepaired)"
            log.warning(what, instId=self._files.inst_id, error=exc.args[0])
            self._store(self._sequence.put_on_record(low, "unrepaired"))


class HistoryProgress:
    """Logs an instrument's history: what is pending, each finished day, how long it takes."""

    def __init__(self, files: TradeFiles) -> None:
        self._inst_id = files.inst_id
        self._files = files
        self._began_at = self._logged_at = monotonic()
        self._days = self._stored = 0  # finished, and trades, since `begin`

    def pending_ids(self) -> int:
        """Return how many ids are pending, but for ranges whose begin is not known."""
        ranges = [gap for gap in self._files.gaps.pending() if gap.after_id is not None]
        highest = self._files.ends.highest
        return sum(gap.before_id - max(gap.first, highest(gap.before_id).trade_id + 1) for gap in ranges)

    def begin(self) -> None:
        """Log the plan: days, and about how many trades, how much room, and how much time over REST alone."""
        self._days = self._stored = 0
        pending, trades = self._files.gaps.pending(), self.pending_ids()
        about = {}
        if all(gap.after_id is not None for gap in pending):
            over_rest = str(timedelta(seconds=trades // REST_TRADES_PER_S))
            about = {"trades": str(trades), "GB": f"{trades * LINE_BYTES / 1e9:.2f}", "over_rest": over_rest}
        days = f"{pending[0].after_utc[:10]} to {pending[-1].before_utc[:10]}"
        log.info(f"History {self._inst_id}: {days} to be fetched", **about)

    def stored(self, trades: int, day: str) -> None:
        """Count stored trades; log how far a day is, at most once in LOG_AGAIN_S."""
        if not self._stored:  # it may have waited for a live repair before
            self._began_at = monotonic()
        self._stored += trades
        if monotonic() - self._logged_at >= LOG_AGAIN_S:
            self._logged_at = monotonic()
            pending = self.pending_ids()
            log.info(f"History {self._inst_id} {day}", trades=self._stored, pending=pending, eta=self._eta(pending))

    def end_day(self, day: str) -> None:
        """Log a finished day."""
        self._days += 1
        ends = [gap.before_utc[:10] for gap in self._files.gaps.pending()]
        left = max(0, (date.fromisoformat(max(ends)) - date.fromisoformat(day)).days - 1) if ends else 0
        about = {"days_done": self._days, "days_left": left, "trades": self._stored}
        log.info(f"History {self._inst_id} {day} is done", **about, eta=self._eta(self.pending_ids()))

    def end(self) -> None:
        """Log that nothing is pending."""
        log.info("History complete", instId=self._inst_id, trades=self._stored)

    def _eta(self, pending: int) -> str:
        rate = self._stored / max(0.001, monotonic() - self._began_at)
        return str(timedelta(seconds=round(pending / rate))) if rate else "unknown"


def make_pending_since(files: TradeFiles, day: str) -> None:
    """Put on record as pending what lies before the first stored day, back to `day`; raise OSError.

    Nothing changes where that day is stored, pending or on record as no longer to be had.
    """
    gaps, first = files.gaps, files.first()
    begin = first.time_utc[:10] if first else ""  # what is on record before this day is of files that were removed
    horizon = [gap for gap in gaps.of("horizon") if gap.before_utc[:10] >= begin]
    known = [gap.after_utc[:10] for gap in [*gaps.of("pending"), *horizon] if gap.after_utc]
    days = known + ([begin] if first else [])
    if not days or min(days) <= day:
        return
    edges = [
        Boundary(gap.before_id, gap.before_utc) if gap.after_id is None else Boundary(gap.first, gap.after_utc)
        for gap in gaps.of("pending")
    ]
    if first:  # the line shows only its last id, its `start` gap the first one
        starts = (Boundary(gap.before_id, gap.before_utc) for gap in gaps.of("start") if gap.after_id is None)
        begins = (start for start in starts if start.trade_id <= first.trade_id and start.time_utc[:10] >= begin)
        edges.append(max(begins, default=first))
    if edges:
        before = min(edges)
        gaps.add([Gap("pending", None, before.trade_id, f"{day}T00:00:00.000Z", before.time_utc)])


class History:
    """One instrument's past: fetches the pending ranges in the background, oldest first, each day's file in order."""

    def __init__(
        self,
        instrument: Instrument,
        files: TradeFiles,
        services: Services,
        archives: Archives,
        newest: Callable[[], tuple[int, str]],
    ) -> None:
        self._unfit: list[Trade] = []  # in a row, with no trade after them that fits
        self.writer = TradeWriter(files, instrument, self._unfit.append, self._on_day, live=False)
        self.progress = HistoryProgress(files)
        self._instrument = instrument
        self._files = files
        self._services = services
        self._archives = archives
        self._newest = newest
        self._wanted = asyncio.Event()
        self._day = ""  # that is being filled
        self._failure: OSError | None = None  # of an fsync

    def wake(self) -> None:
        """Look whether something is pending."""
        self._wanted.set()

    def fail(self, exc: OSError) -> None:
        """Note that what was written may not be on the disk: the range is begun again after what is."""
        self._failure = exc

    async def run(self) -> None:
        """Fill what is pending, for ever."""
        while True:
            if not self._files.gaps.pending():
                await self._wanted.wait()
                self._wanted.clear()
                continue
            self.progress.begin()
            try:
                while pending := self._files.gaps.pending():
                    await self._fill_range(pending[0])
                self.progress.end()
            except OSError as exc:
                self.writer.abandon()
                await self._files.until_writable(self._services.throttle, exc)

    async def _fill_range(self, gap: Gap) -> None:
        self.writer.forget_day()  # trades of the last range did not fit, perhaps; those of this one may
        self._day = ""
        self._unfit.clear()
        with contextlib.closing(ArchiveSource(self._archives, self._instrument)) as source:
            fill = RangeFill(gap, self._files, self._services, source, self._newest, self._store)
            await fill.find_begin()
            while not (fill.done or any(map(self._files.ends.ends_range, self._unfit))):
                await self._give_way()
                await fill.step()
        self._end_day()
        before = self._unfit[0].first if self._unfit else gap.before_id
        end = Boundary(before - 1, self._files.ends.highest(before).time_utc)
        self._clear(end)
        if self._unfit:  # the rest of the range goes on record, unless a `start` gap names it
            gaps = self._files.gaps
            if not any(start.first <= before and gap.before_id <= start.before_id for start in gaps.of("start")):
                gaps.add([gap._replace(reason="unrepaired", after_id=before - 1, after_utc=end.time_utc)])
            gaps.clear({"pending"}, Boundary(before, ""), Boundary(gap.before_id - 1, ""))

    async def _give_way(self) -> None:
        """Wait while a live gap is being repaired, or the disk is nearly full; raise the OSError of a failed fsync."""
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure
        while self._services.patience.repairing:
            await asyncio.sleep(LATE_S)
        while (free := self._files.vault.free_bytes()) < HISTORY_FREE_BYTES:
            if self._services.throttle.may_log("little room"):
                needed = f"{HISTORY_FREE_BYTES / 1e9:.1f} GB"
                log.warning("History waits: the disk is nearly full", free=f"{free / 1e9:.1f} GB", needed=needed)
            await asyncio.sleep(HISTORY_WAIT_S)

    def _store(self, items: Iterable[Trade | Gap]) -> None:
        self.writer.store(items)
        self.writer.flush()
        if trades := sum(isinstance(item, Trade) for item in items):
            self.progress.stored(trades, self._day)

    def _on_day(self, day: str) -> None:
        if self._unfit:  # times cross at midnight
            self._files.gaps.add_unfit(*self._unfit)
            self._unfit.clear()
        if self._day and day > self._day:
            self._end_day()
        self._day = max(self._day, day)  # where times cross, a day is finished only once

    def _end_day(self) -> None:
        """Put a finished day on the disk, take it off the record, and tell the auditor and the log."""
        self.writer.flush()
        self.writer.close_file()
        if not self._day:
            return
        next_day = date.fromisoformat(self._day) + timedelta(days=1)
        self._clear(Boundary(self._files.ends.get(self._day, NOTHING).trade_id, f"{next_day}T00:00:00.000Z"))
        self._services.day_filled()
        self.progress.end_day(self._day)

    def _clear(self, high: Boundary) -> None:
        """Take what is stored up to `high` off the record."""
        gap = next((gap for gap in self._files.gaps.pending() if gap.first <= high.trade_id < gap.before_id), None)
        if gap is not None:
            self._files.gaps.clear({"pending", "start"}, Boundary(gap.first, gap.after_utc), high)


# ------------------------------------------------------------------------------------------------------------ verify

EXACT = decimal.Context(prec=200)  # sums of sizes are never rounded
Problems = dict[str, list[str]]  # by kind: the places, and empty texts beyond the first SHOWN
Place = dict[str, str]  # a stored record's fields, and under "where" its file and line
PARALLEL_BYTES = 32 << 20  # from this size on, several processes read a Vault faster than one
VERDICT_LINE = re.compile(
    rf'{{"audited_utc":"{STAMP}","instId":"([^"\\]+)","day":"(\d{{4}}-\d\d-\d\d)","minutes_agreeing":"\d{{1,4}}"'
    r',"minutes_differing":"\d{1,4}","minutes_not_covered":"\d{1,4}","last_id":"(\d{0,19})"}\n'.encode(),
    re.ASCII,
)
VERDICT_KEYS = re.findall(r'"(\w+)":', VERDICT_LINE.pattern.decode())


def parse_verdict(inst_id: str, line: bytes) -> tuple[str, str] | None:
    """Return day and last_id of a line of the audit file, or None where it is invalid or of another instrument."""
    match = VERDICT_LINE.fullmatch(line)
    return (match[2].decode(), match[3].decode()) if match and match[1] == inst_id.encode() else None


def show_progress(text: str) -> None:
    """Show how far verify or audit is, in place of what was shown before, where a person is watching."""
    if on_terminal():
        with contextlib.suppress(OSError):
            print(f"\r{text:<60}\r{text}", end="", file=sys.stderr, flush=True)


def print_report(*lines: str) -> None:
    """Print lines of a report; raise SystemExit(1) where the output is full, or its reader has left (`| head`)."""
    show_progress("")
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as exc:
        if exc.errno not in {errno.EPIPE, errno.EINVAL}:  # the second is what Windows says of a closed pipe
            log.error(f"The report can't be written: {describe(exc)}")
        raise SystemExit(1) from None


def number_of(number: int, noun: str) -> str:
    """Return a number with its noun: 1 problem, 2 problems."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(texts: list[str]) -> list[str]:
    """Return at most SHOWN of the texts, and how many more there are."""
    more = len(texts) - SHOWN
    return texts[:SHOWN] + ([f"and {more} more"] if more > 0 else [])


def add_problem(problems: Problems, kind: str, where: str, line: bytes = b"") -> None:
    """Add a problem; `where` names file and line. Only the first SHOWN of a kind have a text."""
    places = problems.setdefault(kind, [])
    places.append("" if len(places) >= SHOWN else f"{where}: {printable(line.rstrip())}" if line else where)


def record_defect(line: bytes) -> str:
    """Say what is wrong with a line that is no RECORD."""
    if not line.endswith(b"\n"):
        return "a torn last line"
    if line.endswith(b"\r\n"):
        return "a CRLF line end"
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "a line that is not JSON"
    if not isinstance(record, dict) or tuple(record) != RECORD_KEYS:
        return "a line without the twelve keys in order"
    return "a line that is not compact JSON" if orjson.dumps(record) + b"\n" != line else "an invalid value"


class DayCheck(NamedTuple):
    """What verify read in the files of one day. Lines that are no record of this day are in none of its figures."""

    inst_id: str
    day: str
    problems: Problems
    lines: int
    bought: Decimal  # contracts
    sold: Decimal
    first: Place | None
    first_after_midnight: Place | None  # the first line after 00:00:01
    last_before_midnight: Place | None  # the last line before 23:59:59
    last: Place | None


def check_day(inst_id: str, day: str, paths: list[Path]) -> DayCheck:
    """Check the form of each line of a day, and that the ids rise."""
    problems = Problems()
    problem = partial(add_problem, problems)
    expected = (day.encode(), inst_id.encode(), symbol_canon(inst_id).encode())
    sums = {b"buy": Decimal(0), b"sell": Decimal(0)}
    first = before_midnight = after_midnight = last = None
    lines, last_id = 0, -1
    try:
        for path, number, line in numbered_lines(paths):
            match = RECORD.fullmatch(line)
            if match is None:
                problem(record_defect(line), f"{path}:{number}", line)
                continue
            line_day, line_inst, symbol, trade_id, side, size = match.group(1, 3, 4, 5, 6, 8)
            if (line_day, line_inst, symbol) != expected:
                problem("a line of another day or instrument", f"{path}:{number}", line)
                continue
            number_id = int(trade_id)
            if number_id <= last_id:
                kind = "a trade stored twice" if number_id == last_id else "ids that do not rise"
                problem(kind, f"{path}:{number}", line)
            sums[side] = EXACT.add(sums[side], Decimal(size.decode()))
            lines += 1
            last_id, last = number_id, (line, path, number)
            time_of_day = line[29:41]
            if time_of_day < b"23:59:59":
                before_midnight = last
            if after_midnight is None:
                first = first or last
                if time_of_day > b"00:00:01.000":
                    after_midnight = last
    except OSError as exc:
        problem("a file that can't be read", f"{inst_id} {day}: {describe(exc)}")
    places = (
        place and orjson.loads(place[0]) | {"where": f"{place[1]}:{place[2]}"}
        for place in (first, after_midnight, before_midnight, last)
    )
    return DayCheck(inst_id, day, problems, lines, sums[b"buy"], sums[b"sell"], *places)


def check_days(jobs: list[tuple[str, str, list[Path]]]) -> Iterator[DayCheck]:
    """Check all days (instId, day, files) in this order, on all cores where there is much to read."""
    done = 0
    if sum(path.stat().st_size for job in jobs for path in job[2]) > PARALLEL_BYTES and len(jobs) > 1:
        workers = min(os.cpu_count() or 1, len(jobs), 61)  # more are an error on Windows
        ctrl_c = signal.SIGINT, signal.SIG_IGN  # only this process heeds it
        try:
            with concurrent.futures.ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ctrl_c) as pool:
                for check in pool.map(check_day, *zip(*jobs, strict=True)):
                    done += 1
                    yield check
        # no shared memory, no semaphores, no further process or thread, or one was killed: not the Vault's fault
        except (OSError, ImportError, RuntimeError) as exc:
            log.warning("Reading with several processes failed, going on with one", error=describe(exc))
    yield from itertools.starmap(check_day, jobs[done:])


def check_seams(days: list[DayCheck]) -> None:
    """Check that ids rise from each day to the next, but for a second around midnight; add problems to the later."""
    for day, other in itertools.pairwise(day for day in days if day.lines):
        for low, high in ((day.last_before_midnight, other.first), (day.last, other.first_after_midnight)):
            if low and high and int(low["trade_id"]) >= int(high["trade_id"]):
                where = f"{high['where']} has {high['trade_id']}, {low['where']} {low['trade_id']}"
                add_problem(other.problems, "ids that do not rise from day to day", where)
                break


def check_metadata(vault: Vault, inst_id: str, last: Place | None) -> Problems:
    """Check an instrument's gaps, audit and metadata files, and that all others are days; `last` is its newest line."""
    problems = Problems()
    for path, parse in ((vault.gaps_path(inst_id), Gap.parse), (vault.audit_path(inst_id), parse_verdict)):
        for _, number, line in numbered_lines([path] if path.exists() else []):
            if not parse(inst_id, line):
                add_problem(problems, f"an invalid line in the {path.parent.name} file", f"{path}:{number}", line)
    saved = vault.load_instrument(inst_id)
    found = " ".join(saved.contract) if saved else "none that is valid"
    wanted = " ".join(last[name] for name in CONTRACT) if last else found
    if wanted != found:
        what = f"the newest line has {wanted}, {vault.instrument_path(inst_id)} {found}"
        add_problem(problems, "ctVal, ctMult or ctType differ from the saved instrument", what)
    known = {path for paths in vault.days(inst_id).values() for path in paths}
    for path in sorted(set((vault.trades / inst_id).glob("*")) - known):
        if not path.name.startswith(PROBE):
            add_problem(problems, "a file that is no day of trades", str(path))
    return problems


def dates(first: str, last: str) -> list[str]:
    """Return all days from the first to the last, both included."""
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    return [str(begin + timedelta(number)) for number in range((end - begin).days + 1)]


def touches(gap: Gap, day: str) -> bool:
    """Tell whether a gap may hold trades of a day; a pending one that ends in its first minute ends before it."""
    begin, end = gap.after_utc[:10], gap.before_utc[:10] or "9"
    ends_before_it = gap.reason == "pending" and begin < end and gap.before_utc[11:16] == "00:00"
    return begin <= day < end or (day == end and not ends_before_it)


def is_pending(gaps: Iterable[Gap], day: str) -> bool:
    """Tell whether trades of a day are still to be fetched."""
    return any(gap.reason == "pending" and touches(gap, day) for gap in gaps)


def time_range(gap: Gap) -> str:
    """Return in words from when to when something is missing."""
    after, before = (stamp[:16].replace("T", " ") for stamp in (gap.after_utc, gap.before_utc))
    if not after or not before:
        return f"from {after}" if after else f"up to {before}"
    return f"{after} to {before[11:] if after[:10] == before[:10] else before}"


def missing_in_words(gaps: dict[str, list[Gap]]) -> tuple[list[str], list[str]]:
    """Return what is missing by the gaps files (by instrument, merged): lines for a report, parts of its last line."""
    holes, awaited, lines = [], [], []
    days: set[str] = set()  # that are pending
    for inst_id, recorded in gaps.items():
        for gap in recorded:
            if gap.reason == "pending":
                awaited.append(f"Pending: {inst_id} {time_range(gap)}")
                end = gap.before_utc[:10]
                days.update([day for day in dates(gap.after_utc[:10] or end, end) if touches(gap, day)] or [end])
            elif gap.reason != "absent":
                holes.append(f"Missing: {inst_id} {time_range(gap)} ({gap.reason})")
        if absent := sum(gap.before_id - gap.first for gap in recorded if gap.reason == "absent"):
            lines.append(f"Not missing: {inst_id}, {number_of(absent, 'id')} that OKX never used (absent)")
    parts = [f"{number_of(len(holes), 'range')} missing"] if holes else []
    parts += [f"{number_of(len(days), 'day')} still to come (pending)"] if days else []
    return shortened(holes) + shortened(awaited) + lines, parts


TABLE = "{:<16} {:<10} {:>9}  {:<13} {:<13} {:>12} {:>12} {:>16} {:>16} {:>4} {:>8}  {}"
TABLE_HEAD = TABLE.format(
    *("instrument", "UTC day", "lines", "first UTC", "last UTC", "first id", "last id", "contracts bought"),
    *("contracts sold", "gaps", "problems", ""),
).rstrip()


def table_row(check: DayCheck, gaps: list[Gap]) -> str:
    """Return a day's row of the table; `gaps` are those of the instrument."""
    ends = [place or collections.defaultdict(str) for place in (check.first, check.last)]
    times, ids = [end["timestamp_utc"][11:] for end in ends], [end["trade_id"] for end in ends]
    holes = sum(touches(gap, check.day) and gap.reason != "pending" for gap in gaps)
    figures = f"{check.bought:f}", f"{check.sold:f}", holes, sum(map(len, check.problems.values()))
    pending = "pending" if is_pending(gaps, check.day) else ""
    return TABLE.format(check.inst_id, check.day, check.lines, *times, *ids, *figures, pending).rstrip()


def verify(vault: Vault) -> int:
    """Check every stored line, print days, problems, gaps and a verdict; return the exit code, or raise VaultError."""
    output, problems, gaps = [TABLE_HEAD], Problems(), dict[str, list[Gap]]()
    try:
        checks: dict[str, list[DayCheck]] = {inst_id: [] for inst_id in vault.instruments()}
        jobs = [(inst_id, day, paths) for inst_id in checks for day, paths in vault.days(inst_id).items()]
        for done, check in enumerate(check_days(jobs), 1):
            checks[check.inst_id].append(check)
            show_progress(f"{done} of {len(jobs)} day files read")
        for inst_id, days in checks.items():
            check_seams(days)
            recorded = merge_gaps(vault.gaps(inst_id))
            gaps[inst_id] = [gap for gap in recorded if gap.reason != "start" or gap.after_id is not None]
            output += [table_row(day, gaps[inst_id]) for day in days]
            newest = next((day.last for day in reversed(days) if day.last), None)
            for found in [*(day.problems for day in days), check_metadata(vault, inst_id, newest)]:
                for kind, places in found.items():
                    problems.setdefault(kind, []).extend(places)
    except OSError as exc:
        raise unusable(vault.root, exc) from exc
    for kind, places in problems.items():
        output += ["", f"{len(places)} x {kind}", *(f"  {place}" for place in list(filter(None, places))[:SHOWN])]
    lines = sum(day.lines for days in checks.values() for day in days)
    total = sum(map(len, problems.values()))
    verdict = number_of(total, "problem") if total else "no problem found" if lines else "no data to check"
    missing, parts = missing_in_words(gaps)
    last = f"{number_of(lines, 'line')} in {number_of(len(jobs), 'day file')}: {', '.join([verdict, *parts])}"
    print_report(*output, "", *missing, last)
    return 1 if total or not lines else 0


# ------------------------------------------------------------------------------------------------------------- audit

Bar = tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal]  # as the columns
COLUMNS = "open high low close contracts currency"  # of a bar and of a candle; currency: the base currency
CANDLE = re.compile(r"[0-9]{13}( [0-9]+(\.[0-9]+)?){6}")  # start, ms, and COLUMNS


def add_records(bars: dict[str, Bar], records: Iterable[re.Match[bytes]]) -> str:
    """Add stored records to the bars by minute, and return the last one's id; nothing where there is no record."""
    trade_id = b""
    for record in records:
        trade_id, ct_type = record[5], record[11]
        px, sz, ct_val, ct_mult = (Decimal(value.decode()) for value in record.group(7, 8, 9, 10))
        currency = EXACT.multiply(EXACT.multiply(sz, ct_val), ct_mult) if ct_type == b"linear" else Decimal(0)
        minute = record[0][18:34].decode()
        bar = bars.get(minute) or (px, px, px, px, Decimal(0), Decimal(0))
        sums = EXACT.add(bar[4], sz), EXACT.add(bar[5], currency)  # currency: 0 for inverse contracts
        bars[minute] = bar[0], max(bar[1], px), min(bar[2], px), px, *sums
    return trade_id.decode()


def covered_minutes(vault: Vault, inst_id: str, day: str, bars: dict[str, Bar]) -> list[str]:
    """Return the minutes (2026-11-21T12:34) of a day that are stored whole; raise OSError.

    Not covered are the minutes up to the very first trade's, those from the very last one's on, and those that a gap
    touches: all but `absent`, since what OKX never had is in no candle either.
    """
    days = [other for other, paths in vault.days(inst_id).items() if any(path.stat().st_size for path in paths)]
    if not days or not days[0] <= day <= days[-1]:
        return []
    first = min(bars, default="") if day == days[0] else ""
    last = max(bars, default="") if day == days[-1] else "~"
    gaps = [gap for gap in vault.gaps(inst_id) if gap.reason != "absent" and touches(gap, day)]
    holes = [(gap.after_utc[:16], gap.before_utc[:16] or "~") for gap in gaps]
    minutes = (f"{day}T{number // 60:02}:{number % 60:02}" for number in range(1440))
    return [text for text in minutes if first < text < last and not any(low <= text <= high for low, high in holes)]


async def fetch_candles(rest: Rest, inst_id: str, day: str) -> dict[str, list[str]]:
    """Return the COLUMNS of a UTC day's confirmed 1-minute candles by minute (2026-11-21T12:34).

    Raises TimeoutError without answers in AUDIT_PATIENCE_S, and RequestError where they hold no candle.
    """
    start, candles = int(midnight_of(day)), {}
    try:
        async with asyncio.timeout(AUDIT_PATIENCE_S):
            for offset in range(0, 1440, CANDLES):
                page = start + offset * 60_000, start + min(offset + CANDLES, 1440) * 60_000
                for row in await rest.candles(inst_id, *page):
                    text = " ".join(map(str, row[:7])) if isinstance(row, list) and row[8:9] == ["1"] else ""
                    if CANDLE.fullmatch(text):
                        candles[utc(text[:13])[:16]] = text[14:].split()
    except TimeoutError:
        raise TimeoutError(f"OKX gave no candles within {AUDIT_PATIENCE_S:.0f}s") from None
    if not candles:
        raise RequestError("OKX has no candles of that day")
    return candles


def difference(minute: str, bar: Bar | None, candle: list[str]) -> str:
    """Return how a stored minute and OKX's candle differ, or nothing where they agree."""
    okx = tuple(map(Decimal, candle))
    agree = (bar[:5] == okx[:5] and bar[5] in {okx[5], 0}) if bar else okx[4] == 0  # 4: contracts, 5: currency
    if agree:
        return ""
    ours = " ".join(f"{value:f}" for value in bar) if bar else "nothing"
    return f"{minute}Z stored {ours}, OKX {' '.join(candle)} ({COLUMNS})"


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

    def save(self, vault: Vault) -> None:
        """Append it to the audit file, on the disk when this returns; raise OSError or VaultError."""
        values = map(str, (utc_now(), *self))
        path = vault.with_folder(vault.audit_path(self.inst_id))
        if path.exists():
            cut_torn_end(path)
        with path.open("ab") as file:
            file.write(orjson.dumps(dict(zip(VERDICT_KEYS, values, strict=True))) + b"\n")
            file.flush()
            os.fsync(file.fileno())


async def audit_day(vault: Vault, rest: Rest, inst_id: str, day: str, pause: float = 0.0) -> tuple[Verdict, list[str]]:
    """Compare a stored UTC day with OKX's candles, minute by minute and exactly; return also how minutes differ.

    `pause` (s) is made after each 1000 lines. Raises OSError where files can't be read, and RequestError or
    TimeoutError where candles can't be had.
    """
    paths = await asyncio.to_thread(lambda: vault.days(inst_id).get(day, []))
    records = (match for _, _, line in numbered_lines(paths) if (match := RECORD.fullmatch(line)))
    bars: dict[str, Bar] = {}
    last_id = ""
    while newest := await asyncio.to_thread(add_records, bars, itertools.islice(records, 1000)):
        last_id = newest
        await asyncio.sleep(pause)
    # a gap is on record before the trades after it are stored, so gaps are read after the lines
    minutes = await asyncio.to_thread(covered_minutes, vault, inst_id, day, bars)
    candles = await fetch_candles(rest, inst_id, day) if minutes else {}
    covered = [minute for minute in minutes if minute in candles]
    differing = [text for minute in covered if (text := difference(minute, bars.get(minute), candles[minute]))]
    counts = len(covered) - len(differing), len(differing), 1440 - len(covered)
    return Verdict(inst_id, day, *counts, last_id), differing


def day_range(text: str) -> tuple[date, date]:
    """Take a date, or a range of dates such as 2026-11-01..2026-11-21, from the command line."""
    with contextlib.suppress(ValueError):
        first, last = date.fromisoformat(text[:10]), date.fromisoformat(text[-10:])
        if first <= last and re.fullmatch(r"\d{4}-\d\d-\d\d(\.\.\d{4}-\d\d-\d\d)?", text, re.ASCII):
            return first, last
    raise argparse.ArgumentTypeError(f"{text!r} is no date like 2026-11-21, nor a range like 2026-11-01..2026-11-21")


async def judge_day(vault: Vault, rest: Rest, inst_id: str, day: str) -> tuple[str, list[str]]:
    """Audit a day for the command line: return what it counts as, and lines of the report; raise as audit_day does."""
    if is_pending(vault.gaps(inst_id), day):
        return "pending", [f"{inst_id} {day}: pending"]
    verdict, differing = await audit_day(vault, rest, inst_id, day)
    kind = "differing" if differing else "agreeing" if verdict.agreeing else "uncovered"
    return kind, [str(verdict), *(f"  {text}" for text in shortened(differing))]


async def audit(vault: Vault, rest_urls: list[str], first: str, last: str) -> int:
    """Audit days of every instrument, until OKX gives no answer; print a line for each and return the exit code."""
    days, inst_ids = dates(first, last), vault.instruments()
    if not inst_ids:
        print_report("no data to check")
    jobs = list(itertools.product(days, inst_ids))
    counts = dict.fromkeys(("agreeing", "differing", "pending", "uncovered"), 0)
    async with open_session() as session:
        rest = Rest(session, rest_urls, Outage())
        for number, (day, inst_id) in enumerate(jobs, 1):
            show_progress(f"{inst_id} {day}, {number} of {len(jobs)}")
            try:
                kind, lines = await judge_day(vault, rest, inst_id, day)
                counts[kind] += 1
                print_report(*lines)
            except (OSError, RequestError) as exc:
                print_report(f"{inst_id} {day}: {describe(exc)}")
                if isinstance(exc, TimeoutError):  # other days will fare no better now
                    break
    failed = len(jobs) - sum(counts.values())
    if len(jobs) > 1:
        words = [f"{count} {kind}" for kind, count in counts.items()] + ([f"{failed} not audited"] if failed else [])
        what = f"{number_of(len(days), 'day')} of {number_of(len(inst_ids), 'instrument')}"
        print_report(f"{what}: {', '.join(words)}")
    return 0 if counts["agreeing"] and not counts["differing"] + failed else 1


def last_stored_id(path: Path) -> str:
    """Return the last trade id of a day's file; empty where none can be seen, as in a compressed one."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - ID_TAIL_BYTES))
        ids = [record[4].decode() for record in RECORD.findall(file.read())]
    return ids[-1] if ids else ""


def days_to_audit(vault: Vault, inst_id: str) -> list[str]:
    """Return the days that need an audit, oldest first; raise OSError.

    These are finished (there is a newer one), not pending, and have no verdict or newer lines than those that it saw;
    also days of which all is missing, by the gaps file. A compressed day with a verdict does not change any more.
    """
    path = vault.audit_path(inst_id)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    audited = dict(verdict for line in lines if (verdict := parse_verdict(inst_id, line)))  # the last of a day counts
    gaps, stored = vault.gaps(inst_id), vault.days(inst_id)
    last_ids = {day: last_stored_id(paths[-1]) for day, paths in stored.items() if day in audited}
    changed = {day for day, last_id in last_ids.items() if last_id not in {"", audited[day]}}
    finished = dates(min(stored), max(stored))[:-1] if stored else []
    known = [day for day in finished if day in stored or any(touches(gap, day) for gap in gaps)]
    return [day for day in known if not is_pending(gaps, day) and (day not in audited or day in changed)]


class Auditor:
    """Audits the finished days of a running exporter in the background, one at a time, and records the verdicts."""

    def __init__(self, vault: Vault, rest: Rest, inst_ids: Iterable[str]) -> None:
        self._vault = vault
        self._rest = rest
        self._due_at = dict.fromkeys(inst_ids, monotonic() + AUDIT_AFTER_S)  # by instId: no audit before
        self._changed = asyncio.Event()

    def day_began(self, inst_id: str) -> None:
        """Note that a day's first line is being written: the day before may be audited in AUDIT_AFTER_S."""
        self._due_at[inst_id] = monotonic() + AUDIT_AFTER_S
        self._changed.set()

    def day_filled(self) -> None:
        """Note that history has finished a day: it may be audited now."""
        self._changed.set()

    async def run(self) -> None:
        """Audit whatever needs it, newest day first, until cancelled; what fails is tried again in AUDIT_AFTER_S.

        Raises VaultError where another exporter may write to the Vault.
        """
        while True:
            self._changed.clear()
            for day, inst_id in await asyncio.to_thread(self._due_days):
                try:  # slowly, so that live capture does not suffer
                    verdict, differing = await audit_day(self._vault, self._rest, inst_id, day, AUDIT_PAUSE_S)
                    await asyncio.to_thread(verdict.save, self._vault)
                    (log.warning if differing else log.info)(f"Audit: {verdict}")
                    for text in shortened(differing):
                        log.warning(f"Audit: {text}")
                except (OSError, RequestError) as exc:
                    self._postpone(inst_id, day, exc)
                    if isinstance(exc, TimeoutError):
                        break  # other days will fare no better now
                if self._changed.is_set():
                    break  # newer days may be due
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AUDIT_AFTER_S):
                    await self._changed.wait()

    def _due_days(self) -> list[tuple[str, str]]:
        """Return day and instrument of all audits that are due, the newest day first."""
        due: list[tuple[str, str]] = []
        for inst_id, due_at in list(self._due_at.items()):
            try:
                due += ((day, inst_id) for day in days_to_audit(self._vault, inst_id) if due_at <= monotonic())
            except OSError as exc:
                self._postpone(inst_id, "", exc)
        return sorted(due, reverse=True)

    @staticmethod
    def _postpone(inst_id: str, day: str, exc: Exception) -> None:
        again_in = f"{AUDIT_AFTER_S:.0f}s"
        log.warning("Audit postponed", instId=inst_id, day=day, error=describe(exc), again_in=again_in)


# ---------------------------------------------------------------------------------------------------------- exporter


def single_errors(exc: BaseException) -> list[BaseException]:
    """Return the errors of an exception group, or the one error that this is."""
    if isinstance(exc, BaseExceptionGroup):
        return [error for part in exc.exceptions for error in single_errors(part)]
    return [exc]


def report(exc: Exception) -> int:
    """Log what ended the exporter and return the exit code."""
    errors = single_errors(exc)
    foreseen = [error for error in errors if isinstance(error, BuildFailError | VaultError)]
    if len(foreseen) == len(errors):
        log.critical(str(foreseen[0]))
        return foreseen[0].exit_code
    log.critical("Unexpected error: please report it with what stands above", exc_info=exc)
    return 1


async def raise_error(exc: Exception) -> None:
    """Raise it, in a task."""
    raise exc


def end_with_error(
    tasks: asyncio.TaskGroup, throttle: LogThrottle, _: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """Let an error in a callback of the event loop end the exporter as one in a task does, if it came out of this file.

    What libraries raise there is passing, as where they connect: websockets has an AttributeError for a proxy that
    closes in the midst of a handshake, Windows' event loop OSErrors for connections that are gone.
    """
    exc = context.get("exception")
    frames = traceback.walk_tb(exc.__traceback__ if exc else None)
    ours = any(frame.f_globals is globals() for frame, _ in frames)
    if ours and isinstance(exc, Exception) and not isinstance(exc, OSError):
        spawn(tasks, raise_error(exc))
    elif throttle.may_log(type(exc).__name__):
        error = "" if exc is None else f"{type(exc).__name__}: {printable(exc, 60)}"
        log.warning(f"asyncio: {printable(context['message'], 60)}", error=error)


class Metadata:
    """The instruments' rows: fetched at start and looked at again each day, saved in the Vault."""

    def __init__(self, vault: Vault, rest: Rest) -> None:
        self._vault = vault
        self._rest = rest
        self._recording: dict[str, Instrument] = {}

    async def start(self, tasks: asyncio.TaskGroup, inst_id: str) -> Instrument:
        """Return an instrument from REST, or, where that gives none within METADATA_S, the one saved before.

        Raises BuildFailError where its row is invalid, VaultError where it can't be saved.
        """
        fetching = tasks.create_task(self._fetch(inst_id))
        instrument = None
        while instrument is None:
            if (await asyncio.wait([fetching], timeout=METADATA_S))[0]:
                instrument = fetching.result()
            elif instrument := self._vault.load_instrument(inst_id):
                fetching.cancel()
                log.warning("REST is silent: starting with saved metadata, still retrying", instId=inst_id)
                tasks.create_task(self.look_again(inst_id))
        self._recording[inst_id] = instrument
        return instrument

    async def look_again(self, inst_id: str) -> None:
        """Fetch an instrument's row while recording: whatever is wrong with it now is worth a warning, and no more."""
        try:
            await self._fetch(inst_id)
        except BuildFailError as exc:
            log.warning("OKX sent invalid metadata; keeping the previous", instId=inst_id, error=exc.args[0])

    async def _fetch(self, inst_id: str) -> Instrument:
        """Fetch and save a row; one with other contract values than the records have is not saved over them."""
        row = await self._rest.instrument(inst_id)
        instrument, recording = Instrument.from_row(inst_id, row), self._recording.get(inst_id)
        if recording and recording.contract != instrument.contract:
            what = "ctVal, ctMult or ctType changed: restart to record the new ones"
            log.warning(what, instId=inst_id, recording=" ".join(recording.contract), okx=" ".join(instrument.contract))
            return instrument
        try:
            self._vault.save_instrument(inst_id, row)
            values = dict(zip(CONTRACT, instrument.contract, strict=True))
            log.info("Metadata fetched and saved", instId=inst_id, **values)
        except OSError as exc:
            if not recording and not self._vault.load_instrument(inst_id):
                raise unusable(self._vault.root, exc) from exc
            log.warning("Metadata could not be saved", instId=inst_id, error=describe(exc))
        if instrument.state != "live":
            log.warning("Instrument is not live on OKX", instId=inst_id, state=instrument.state)
        return instrument


class InstrumentCapture:
    """All that works on one instrument: its files, live capture and history, and what is looked at now and then."""

    def __init__(
        self, vault: Vault, instrument: Instrument, services: Services, archives: Archives, since: str
    ) -> None:
        """Go on where the files end, or, where there are none, at `since` (a UTC day, `now`, or nothing).

        Raises VaultError where the files can't be used.
        """
        self.inst_id = instrument.inst_id
        self._rest = services.rest
        self._files = TradeFiles(vault, self.inst_id)
        self.history = History(instrument, self._files, services, archives, self._newest)
        self.recorder = Recorder(instrument, self._files, services, self.history.wake, since)
        self._logged_at, self._logged = monotonic(), 0  # Stats: when, and how many lines were written then
        try:
            self.recorder.recover()
            if (verdicts := vault.audit_path(self.inst_id)).exists():
                cut_torn_end(verdicts)
            if since not in {"", "now"}:
                make_pending_since(self._files, since)
        except OSError as exc:
            raise unusable(vault.root, exc) from exc
        last = self.recorder.sequence.last
        log.info("Recording", instId=self.inst_id, stored_up_to="nothing yet" if last in {None, -1} else last)

    def _newest(self) -> tuple[int, str]:
        """Return the highest id that is known, and its time (ms)."""
        sequence, stored = self.recorder.sequence, self._files.ends.highest()
        return max((sequence.known_id, sequence.known_ts), (stored.trade_id, milliseconds(stored.time_utc)))

    async def watch(self, feed: Feed) -> None:
        """Reconnect where REST has trades that the feed does not show: its subscription died."""
        checked_at = monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            heard_at = self.recorder.heard_at
            if monotonic() - max(heard_at, checked_at) >= INSTRUMENT_SILENT_S:
                newest_id = await self._rest.newest_id(self.inst_id)
                checked_at = monotonic()
                known_id = max(self._newest()[0], self.recorder.sequence.last or 0)
                if newest_id > known_id and self.recorder.heard_at == heard_at:
                    silent = f"no trade of {self.inst_id} for {INSTRUMENT_SILENT_S:.0f}s"
                    feed.reconnect(f"{silent}, but REST has newer ones")

    async def sync(self) -> None:
        """Put what is new on the disk, off the event loop."""
        self._files.gaps.save()
        for part in (self.recorder, self.history):
            try:
                await asyncio.to_thread(part.writer.sync)
            except OSError as exc:
                part.fail(exc)

    def close(self) -> None:
        """Put everything on the disk, at the end."""
        self.recorder.writer.close()
        self.history.writer.close()

    def log_stats(self) -> None:
        """Log the line that a person watches for, with the rate since the last one."""
        now, recorder = monotonic(), self.recorder
        written = recorder.writer.written + self.history.writer.written
        rate = (written - self._logged) / max(0.001, now - self._logged_at)
        self._logged_at, self._logged = now, written
        age = now - recorder.heard_at
        (log.warning if age > OLD_TRADE_S else log.info)(
            f"Stats: {written} written, {recorder.sequence.skipped} skipped",
            instId=self.inst_id,
            rate=f"{rate:.1f}/s",
            last=recorder.sequence.last,
            age=f"{age:.0f}s",
            repaired=recorder.repaired,
            waiting=len(recorder.sequence.waiting),
            pending=self.history.progress.pending_ids(),
        )


class Exporter:
    """Wires one Vault, one feed, REST, and an InstrumentCapture per instrument together, until it is stopped."""

    def __init__(self, vault: Vault, ws_url: str, rest_urls: list[str], archive_url: str, since: str) -> None:
        self.exit_code = 0  # of what ended it
        self._vault = vault
        self._ws_url = ws_url
        self._rest_urls = rest_urls
        self._archive_url = archive_url
        self._since = since  # a UTC day, `now`, or nothing
        self._captures: list[InstrumentCapture] = []

    async def run(self) -> None:
        """Capture until cancelled or `exit_code` is set; then all that was accepted is put on disk."""
        log.info(f"trades_exporter {VERSION} started", process=os.getpid(), vault=str(self._vault.root))
        try:
            async with open_session() as session, asyncio.TaskGroup() as tasks:
                asyncio.get_running_loop().set_exception_handler(partial(end_with_error, tasks, LogThrottle()))
                await self._start(session, tasks)
        except Exception as exc:  # noqa: BLE001 - the outermost edge
            self.fail(exc)  # before files are closed: the disk may hang
        finally:
            for capture in self._captures:
                capture.close()
            for capture in self._captures:
                capture.log_stats()
            if not self._captures and not self.exit_code:  # stopped before it had the metadata
                for inst_id in INSTRUMENTS:
                    log.info("Stats: 0 written, 0 skipped", instId=inst_id)

    def fail(self, exc: Exception) -> None:
        """Log what ends the exporter and set the exit code."""
        self.exit_code = report(exc)

    async def _start(self, session: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        """Get the metadata, go on where the files end, and start what runs for ever."""
        outage = Outage()
        rest = Rest(session, self._rest_urls, outage)
        metadata, auditor = Metadata(self._vault, rest), Auditor(self._vault, rest, INSTRUMENTS)
        instruments = await asyncio.gather(*(metadata.start(tasks, inst_id) for inst_id in INSTRUMENTS))
        run = partial(spawn, tasks)

        def day_began(inst_id: str) -> None:
            run(metadata.look_again(inst_id))
            auditor.day_began(inst_id)

        patience, clock = Patience(), ExchangeClock(rest, run)
        services = Services(rest, clock, AwakeClock(), patience, LogThrottle(), day_began, auditor.day_filled, run)
        archives = Archives(session, self._archive_url, self._vault.root)
        for instrument in instruments:
            self._captures.append(InstrumentCapture(self._vault, instrument, services, archives, self._since))
        feed = Feed(self._ws_url, {capture.inst_id: capture.recorder.take for capture in self._captures}, outage)
        jobs = [services.awake.run(), feed.stay_connected(), auditor.run(), self._sync_files(), self._log_stats()]
        for capture in self._captures:
            jobs += [capture.history.run(), capture.watch(feed)]
        for job in jobs:
            tasks.create_task(job)

    async def _sync_files(self) -> None:
        while True:
            await asyncio.sleep(FSYNC_S)
            for capture in self._captures:
                await capture.sync()

    async def _log_stats(self) -> None:
        while True:
            await asyncio.sleep(STATS_S)
            for capture in self._captures:
                capture.log_stats()


def capture_until_stopped(exporter: Exporter) -> NoReturn:
    """Run the exporter until it fails or a signal asks it to stop, and end this process with the exit code.

    It runs in a thread of its own, so that this one takes signals even while a disk hangs. From a signal or a failure
    on it has STOP_S. Threads that hang in a dead disk or in the system's DNS are not waited for.
    """
    loop = asyncio.new_event_loop()
    running = loop.create_task(exporter.run())
    ended = threading.Event()
    stopped_by: list[str] = []  # signals

    def run() -> None:
        try:
            loop.run_until_complete(running)
        except asyncio.CancelledError:
            log.info("Stopped", signal=stopped_by[0])
        except Exception as exc:  # noqa: BLE001 - the outermost edge
            exporter.fail(exc)
        finally:
            ended.set()

    def stop(signum: int, _: object) -> None:
        stopped_by.append(signal.Signals(signum).name)
        if len(stopped_by) == 1:
            loop.call_soon_threadsafe(running.cancel)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last is Windows' Ctrl+Break, which has no SIGHUP
        signum = getattr(signal, name, None)
        if signum and not (name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN):  # nohup
            signal.signal(signum, stop)
    threading.Thread(target=run, daemon=True).start()
    while not ended.wait(WATCH_S) and not stopped_by and not exporter.exit_code:
        pass
    ended.wait(STOP_S)
    os._exit(exporter.exit_code or (0 if stopped_by else 1))


# ------------------------------------------------------------------------------------------------------ command line

LEVEL_COLORS = {"warning": "33;1", "error": "31;1", "critical": "31;1"}


class BoundedLog(logging.handlers.RotatingFileHandler):
    """A rotating log that goes on where its file is removed, or open elsewhere: Windows forbids to rename it then."""

    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802 - the name of the standard library
        """Tell whether the file is full; open it anew where it is gone."""
        if self.stream and not Path(self.baseFilename).exists():
            self.stream.close()
            self.stream = None  # super opens it, now or with a later line
        return super().shouldRollover(record)

    def doRollover(self) -> None:  # noqa: N802 - the name of the standard library
        """Move each file one on, or copy and empty it; where even that is refused, grow by as much again."""
        if self.stream:
            self.stream.close()
            self.stream = None
        names = [self.baseFilename, *(f"{self.baseFilename}.{number}" for number in range(1, self.backupCount + 1))]
        try:
            for source, dest in reversed(list(itertools.pairwise(names))):
                if Path(source).exists():
                    self._move(source, dest)
            self.maxBytes = LOG_BYTES
        except OSError:
            self.maxBytes += LOG_BYTES
        self.stream = self._open()

    @staticmethod
    def _move(source: str, dest: str) -> None:
        try:
            Path(source).replace(dest)
        except PermissionError:
            shutil.copyfile(source, dest)
            os.truncate(source, 0)


def prepare_console() -> bool:
    """Return whether to write in colour; ask Windows' console for it, and for no QuickEdit: a click would freeze us."""
    if sys.platform == "win32" and on_terminal():
        kernel32, mode = ctypes.windll.kernel32, ctypes.c_ulong()
        keyboard, screen = kernel32.GetStdHandle(-10), kernel32.GetStdHandle(-12)  # standard input and error
        if kernel32.GetConsoleMode(keyboard, ctypes.byref(mode)):  # no QuickEdit; 0x80: heed that flag
            kernel32.SetConsoleMode(keyboard, mode.value & ~0x40 | 0x80)
        kernel32.GetConsoleMode(screen, ctypes.byref(mode))
        return bool(kernel32.SetConsoleMode(screen, mode.value | 4))  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
    return on_terminal()


class LogFormatter(logging.Formatter):
    """Writes a line of the log: UTC time, level, message, key=value pairs; then the traceback, if there is one."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what libraries log has no pairs."""
        level = record.levelname.lower()
        now = utc(f"{record.created * 1000:013.0f}")
        pairs = [f"{self._in(key, '36')}={self._value(value)}" for key, value in getattr(record, "pairs", {}).items()]
        level = self._in(f"{level:8}", LEVEL_COLORS.get(level, "32"))
        line = " ".join([self._in(now, "2"), f"[{level}]", self._in(record.getMessage(), "1"), *pairs])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def _in(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._colors else text

    @staticmethod
    def _value(value: object) -> str:
        """Return a value, in quotes where it is not one word."""
        return value if isinstance(value, str) and not re.search(r"""[\s="']""", value) else repr(value)


def add_log_handler(handler: logging.Handler, *, colors: bool) -> None:
    """Send every line of the log to this handler too."""
    handler.setFormatter(LogFormatter(colors=colors))
    logging.getLogger().addHandler(handler)


def to_record(_: object, __: str, event: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Return what the standard library's logger is called with, the key=value pairs as an attribute of its record."""
    message, exc_info = event.pop("event"), event.pop("exc_info", None)
    return (message,), {"exc_info": exc_info, "extra": {"pairs": event}}


def start_log() -> None:
    """Log to the console; what libraries have to say comes along from WARNING on."""
    logging.raiseExceptions = False  # a log that can't be written (disk full, console gone) stops nothing
    logging.getLogger("trades_exporter").setLevel(logging.INFO)
    if sys.stderr:
        add_log_handler(logging.StreamHandler(), colors=prepare_console())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, to_record],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def file_name(text: str) -> Path:
    """Take a name from the command line; an empty one is an unset variable, not the present folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


def since_day(text: str) -> str:
    """Take a UTC day from the command line, or `now`."""
    if text == "now":
        return text
    try:
        valid = str(date.fromisoformat(text)) == text
    except ValueError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"{text!r} is no date like 2026-11-21, and not `now`")
    if not FIRST_DAY <= text <= str(datetime.now(UTC).date()):
        raise argparse.ArgumentTypeError(
            f"{text} is in the future, or before {FIRST_DAY}: OKX's archives name no taker before"
        )
    return text


def removed_option(_: str) -> None:
    """Refuse --backfill-hours, which version 1.0 had."""
    raise argparse.ArgumentTypeError("it is gone: everything missed is fetched now; see --since")


def address(text: str, schemes: tuple[str, ...]) -> str:
    """Take a URL from the command line."""
    try:
        url = urlsplit(text)
        valid = url.scheme in schemes and url.hostname and url.port != -1 and not re.search(r"\s", text)
    except ValueError:  # what can't be a host or a port
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"{text!r} is no {' or '.join(schemes)} URL")
    return text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; wrong usage ends with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="trades_exporter.py",
        description=f"Record every trade of {' and '.join(INSTRUMENTS)} on OKX into daily files, until Ctrl+C.",
        epilog="Exit codes: 0 stopped cleanly, or nothing wrong found; 1 something found, no data to check, or an"
        " unexpected error; 2 wrong usage; 3 BUILD_FAIL; 4 the Vault or the log file can't be used.",
        allow_abbrev=False,
    )
    add_judge, add = parser.add_mutually_exclusive_group().add_argument, parser.add_argument
    add_judge("--verify", action="store_true", help="check the format of every stored line, and exit")
    yesterday, days = datetime.now(UTC).date() - timedelta(days=1), "DATE[..DATE]"
    audit_help = "compare UTC days (default: yesterday) with OKX's candles, and exit"
    add_judge("--audit", nargs="?", const=(yesterday, yesterday), type=day_range, metavar=days, help=audit_help)
    vault_help = "data folder (default: Vault next to the script)"
    add("--vault", type=file_name, default=HERE / "Vault", metavar="DIR", help=vault_help)
    log_help = "log file (default: trades_exporter.log next to the script)"
    add("--log-file", type=file_name, default=HERE / "trades_exporter.log", metavar="FILE", help=log_help)
    web_socket, web = partial(address, schemes=("wss", "ws")), partial(address, schemes=("https", "http"))
    add("--ws-url", type=web_socket, default=WS_URL, metavar="URL", help=f"default: {WS_URL}")
    rest_help = f"default: {REST_URLS[0]}, and {REST_URLS[1]} where that can't be reached"
    add("--rest-url", type=web, metavar="URL", help=rest_help)
    add("--archive-url", type=web, default=ARCHIVE_URL, metavar="URL", help=f"default: {ARCHIVE_URL}")
    since_help = "first UTC day to record, as far back as OKX has it; now: skip what was missed"
    add("--since", type=since_day, metavar="DATE", help=since_help)
    add("--backfill-hours", type=removed_option, help=argparse.SUPPRESS)
    add("--version", action="version", version=f"trades_exporter {VERSION}")
    return parser.parse_args(argv)


def run_capture(args: argparse.Namespace, rest_urls: list[str]) -> NoReturn:
    """Record until stopped, and exit; raise VaultError where Vault or log file can't be used."""
    vault = Vault(args.vault)
    vault.lock()
    try:
        handler = BoundedLog(args.log_file, "a", LOG_BYTES, LOG_FILES, "utf-8", errors="backslashreplace")
    except OSError as exc:
        raise VaultError(f"The log file {args.log_file} can't be written: {exc}") from exc
    add_log_handler(handler, colors=False)
    capture_until_stopped(Exporter(vault, args.ws_url, rest_urls, args.archive_url, args.since or ""))


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = parse_arguments(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console of another code page; standard error is so anyway
    start_log()
    rest_urls = [args.rest_url] if args.rest_url else REST_URLS
    try:
        if not args.verify and not args.audit:
            run_capture(args, rest_urls)
        try:
            os.scandir(args.vault).close()
        except OSError as exc:
            raise VaultError(f"There is no Vault at {args.vault}: {exc.strerror}") from exc
        if args.verify:
            return verify(Vault(args.vault))
        return asyncio.run(audit(Vault(args.vault), rest_urls, *map(str, args.audit)))
    except KeyboardInterrupt:
        return 1
    except Exception as exc:  # noqa: BLE001 - the outermost edge
        return report(exc)


if __name__ == "__main__":
    sys.exit(main())
