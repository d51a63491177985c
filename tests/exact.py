"""README's chapter "Using the data" as blocks that can be run, and what they should find, computed without them.

The computation is Python's decimals over the fake exchange's ledger, trade by trade.
"""

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import duckdb
import orjson

from fake_okx import BTC, ETH, Push, Trade
from harness import GAP_KEYS, KEYS, ROOT, Record, day_path, to_utc

README = ROOT.joinpath("README.md").read_text("utf-8")
SCRIPTS = {code.partition("\n")[0][2:]: code for code in re.findall(r"```python\n(# Vault/.*?)```", README, re.DOTALL)}
SQL: list[str] = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
MEASURES, COPY = SQL[:-1], SQL[-1]
CONTRACT = {BTC: Decimal("0.01"), ETH: Decimal("0.1")}
DIVISION = Decimal("1e-14")  # relative error of the one division, which is a float's


# --------------------------------------------------------------------------------------------------- making a Vault


def line_of(inst_id: str, trade: Trade | Push) -> bytes:
    """Write a push, or a single trade, as the exporter does."""
    trade_id = trade.last_id if isinstance(trade, Push) else trade.trade_id
    told = (to_utc(trade.ts), "okx", "perp", inst_id, inst_id[:8].replace("-", "/"), str(trade_id), trade.side)
    values = (*told, trade.px, trade.sz, str(CONTRACT[inst_id]), "1", "linear")
    return orjson.dumps(dict(zip(KEYS, values, strict=True))) + b"\n"


def store(vault: Path, inst_id: str, trades: Iterable[Trade | Push]) -> None:
    """Append to the files of the trades' days."""
    days: dict[str, list[bytes]] = defaultdict(list)
    for trade in trades:
        days[to_utc(trade.ts)[:10]].append(line_of(inst_id, trade))
    for day, lines in days.items():
        path = day_path(vault, day, inst_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.writelines(lines)


def put_on_record(vault: Path, kind: str, name: str, rows: Sequence[Record]) -> None:
    """Append lines to `meta/okx/{kind}/{name}.jsonl`: gaps, or verdicts of the audit."""
    path = vault / "meta/okx" / kind / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)


def gap(inst_id: str, reason: str, before: Trade | Push | None, after: Trade | Push | None) -> Record:
    """Return a gap's line: what is missing lies between two trades, of which there may be only one."""
    last = "" if before is None else str(before.last_id if isinstance(before, Push) else before.trade_id)
    first = "" if after is None else str(after.first_id if isinstance(after, Push) else after.trade_id)
    times = ["" if trade is None else to_utc(trade.ts) for trade in (before, after)]
    return dict(zip(GAP_KEYS, ("2026-11-23T00:00:00.000Z", inst_id, reason, last, first, *times), strict=True))


def verdict(inst_id: str, day: str, differing: int = 0, not_covered: int = 0) -> Record:
    """Return a day's line of the audit."""
    counts = {"agreeing": 1440 - differing - not_covered, "differing": differing, "not_covered": not_covered}
    about = {"audited_utc": f"{day}T23:59:59.999Z", "instId": inst_id, "day": day}
    return about | {f"minutes_{name}": str(count) for name, count in counts.items()} | {"last_id": ""}


# ---------------------------------------------------------------------------------------------------- running README


def run(name: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Save a block of README under its name, as README says, and run it in a folder that has a Vault."""
    path = folder / name
    path.write_text(SCRIPTS[name], "utf-8")
    command = [sys.executable, name, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def derive(folder: Path) -> None:
    """Run derive.py, to its full success."""
    done = run("Vault/derive.py", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def connect() -> duckdb.DuckDBPyConnection:
    """Open DuckDB with all views and measures, in the current folder, after derive.py."""
    db = duckdb.connect()
    for sql in (Path("Vault/derived/okx.sql").read_text("utf-8"), *MEASURES):
        db.execute(sql)
    return db


# ------------------------------------------------------------------------------------------------ what they should find


@dataclass
class Minute:
    """What was traded in a minute, exactly; prices in the order of the ids."""

    buy: Decimal = Decimal(0)
    sell: Decimal = Decimal(0)
    quote: Decimal = Decimal(0)
    trades: list[Trade] = field(default_factory=list)

    @property
    def prices(self) -> list[Decimal]:
        """The prices, by trade id."""
        return [Decimal(trade.px) for trade in self.trades]


@dataclass
class Stored:
    """An instrument as a Vault has it: the single trades that are stored, in the order of ids, and gaps on record."""

    inst_id: str
    trades: list[Trade]
    gaps: list[Record]

    def size(self, trade: Trade) -> Decimal:
        """Return the size in base currency."""
        return Decimal(trade.sz) * CONTRACT[self.inst_id]

    @cached_property
    def minutes(self) -> dict[str, Minute]:
        """Add up by minute (2026-11-21T20:00:00Z)."""
        minutes: dict[str, Minute] = defaultdict(Minute)
        for trade in self.trades:
            minute, size = minutes[minute_of(trade)], self.size(trade)
            minute.buy += size if trade.side == "buy" else 0
            minute.sell += size if trade.side == "sell" else 0
            minute.quote += size * Decimal(trade.px)
            minute.trades.append(trade)
        return dict(minutes)

    @cached_property
    def days(self) -> set[str]:
        """The days with a stored trade."""
        return {to_utc(trade.ts)[:10] for trade in self.trades}

    def is_touched(self, first: str, last: str) -> bool:
        """Whether anything is missing of what was traded from the first to the last minute, both included."""
        if first < minute_of(self.trades[0]):
            return True
        between = (date.fromisoformat(last[:10]) - date.fromisoformat(first[:10])).days
        if {later(first[:10], 1440 * count)[:10] for count in range(between + 1)} - self.days:
            return True
        ranges = [
            (row["after_utc"][:16], row["before_utc"][:16] or "9") for row in self.gaps if row["reason"] != "absent"
        ]
        return any(begin <= last[:16] and first[:16] <= end for begin, end in ranges)


def minute_of(trade: Trade) -> str:
    """Return the trade's minute."""
    return to_utc(trade.ts)[:16] + ":00Z"


def minutes_from(first: str, last: str) -> list[str]:
    """Return all minutes from one to another, both included."""
    count = (datetime.fromisoformat(last) - datetime.fromisoformat(first)) // timedelta(minutes=1)
    return [later(first, number) for number in range(count + 1)]


def later(minute: str, count: int) -> str:
    """Return the minute so many minutes later."""
    return f"{datetime.fromisoformat(minute) + timedelta(minutes=count):%Y-%m-%dT%H:%M:%SZ}"


def exact_cvd(stored: Stored) -> dict[str, tuple[Decimal | bool, ...]]:
    """Return buy, sell, delta, cvd and gap of each minute in which was traded."""
    result: dict[str, tuple[Decimal | bool, ...]] = {}
    day, cvd = "", Decimal(0)
    for minute, sums in stored.minutes.items():
        cvd = (cvd if minute[:10] == day else 0) + sums.buy - sums.sell
        day = minute[:10]
        touched = stored.is_touched(f"{day}T00:00:00Z", minute)
        result[minute] = (sums.buy, sums.sell, sums.buy - sums.sell, cvd, touched)
    return result


def exact_vwap(stored: Stored) -> dict[str, tuple[Decimal | bool | None, ...]]:
    """Return VWAP of one and of four hours, and whether anything is missing in these, of every minute."""
    minutes = stored.minutes
    every = minutes_from(min(minutes), max(minutes))
    sums = [minutes.get(minute, Minute()) for minute in every]
    bases = list(accumulate((one.buy + one.sell for one in sums), initial=Decimal(0)))
    quotes = list(accumulate((one.quote for one in sums), initial=Decimal(0)))
    result: dict[str, tuple[Decimal | bool | None, ...]] = {}
    for end, minute in enumerate(every, start=1):
        begins = [max(0, end - length) for length in (60, 240)]
        prices = [
            (quotes[end] - quotes[begin]) / (bases[end] - bases[begin]) if bases[end] > bases[begin] else None
            for begin in begins
        ]
        result[minute] = (*prices, *(stored.is_touched(later(minute, 1 - length), minute) for length in (60, 240)))
    return result


def is_near(value: object, exact: Decimal | bool | None, error: Decimal = DIVISION) -> bool:
    """Whether a float is this quotient, but for its own last digits; None where there is none."""
    if exact is None:
        return value is None
    return isinstance(value, float) and abs(Decimal(value) - exact) <= abs(Decimal(exact)) * error
