"""README's chapter "Using the data": each block, run as it stands there, against exact sums that are made without it."""

import gzip
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from pathlib import Path

import duckdb
import orjson
import pandas as pd
import polars as pl
import pytest

from exact import (
    CONTRACT,
    COPY,
    README,
    Stored,
    connect,
    derive,
    exact_cvd,
    exact_vwap,
    gap,
    is_near,
    later,
    line_of,
    minute_of,
    put_on_record,
    run,
    store,
    verdict,
)
from fake_okx import BTC, ETH, Market, Push, Trade, utc_ms
from harness import KEYS, day_path, to_utc

FIRST, HOLE, HOLE_END, END = (
    utc_ms(f"2026-11-{moment}Z") for moment in ("21T20:00:10", "22T09:10:30", "22T09:31:00", "23T00:10:30")
)
DAYS = ("2026-11-21", "2026-11-22", "2026-11-23")
PACE_MS = 20_000  # between two orders
MEASURES = [
    "cvd_1m", "vwap_1m", "minutes", "candles(5)", "vwap_from(8)", "footprint('*', '*', 15, 1)", "volume_profile('*', '*', 1)",
    "value_area('*', '*', 1)", "order_sizes('*', '*')", "aggression_1m('*', '*')", "taker_turnover_1m('*', '*')",
]  # fmt: skip


@dataclass(frozen=True)
class Captured:
    """A folder with a Vault, after derive.py, and what is stored in it."""

    folder: Path
    stored: dict[str, Stored]
    pushes: dict[str, list[Push]]  # all that was traded, whether it is stored or not


def make_market(inst_id: str) -> Market:
    """Trade for 28 hours; 1,000 ids at noon never exist, and nothing is traded between 13:00 and 18:00."""
    market = Market(
        inst_id, seed=1, first_id=2_978_601_964, start_px="83725.9" if inst_id == BTC else "2912.47",
        tick="0.1" if inst_id == BTC else "0.01", ct_val=str(CONTRACT[inst_id]),
    )  # fmt: skip
    for ts in range(FIRST, END, PACE_MS):
        if to_utc(ts)[:16] == "2026-11-22T12:00" and not market.next_id > market.ledger[-1].trade_id + 1:
            market.next_id += 1000
        if not "2026-11-22T13" <= to_utc(ts) < "2026-11-22T18":
            market.make_order(ts, -math.inf)
    return market


def store_most(vault: Path, market: Market) -> Stored:
    """Store pushes in even hours, single trades in odd ones, nothing for 20 minutes of one day, and the gaps."""
    forms: list[Push | Trade] = []
    inside = [push for push in market.pushes if not HOLE < push.ts < HOLE_END]
    for push in inside:
        start = market.position(push.first_id)
        singles = market.ledger[start : start + push.singles]
        forms += singles if push.ts // 3_600_000 % 2 else [push]
    store(vault, market.inst_id, forms)
    around = [max((p for p in inside if p.ts <= HOLE), key=lambda p: p.ts), next(p for p in inside if p.ts >= HOLE_END)]
    skipped = next(at for at, (a, b) in enumerate(zip(inside, inside[1:], strict=False)) if b.first_id - a.last_id == 1001)
    gaps = [gap(market.inst_id, "absent", *inside[skipped : skipped + 2])] * 2
    gaps.append(gap(market.inst_id, "unrepaired" if market.inst_id == BTC else "pending", around[0], around[1]))
    gaps += [gap(market.inst_id, "start", None, inside[0])] if market.inst_id == BTC else []
    put_on_record(vault, "gaps", market.inst_id, gaps)
    return Stored(market.inst_id, [trade for trade in market.ledger if not HOLE < trade.ts < HOLE_END], gaps)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Three days of both instruments: pushes, single trades, a hole, ids that never were, hours without a trade."""
    folder = tmp_path_factory.mktemp("data")
    markets = {inst_id: make_market(inst_id) for inst_id in (BTC, ETH)}
    stored = {inst_id: store_most(folder / "Vault", market) for inst_id, market in markets.items()}
    derive(folder)
    return Captured(folder, stored, {inst_id: market.pushes for inst_id, market in markets.items()})


@pytest.fixture
def copied(captured: Captured, tmp_path: Path) -> Path:
    """Return a copy of the folder, to be changed."""
    return Path(shutil.copytree(captured.folder, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    """Nothing in the independent computation is ever rounded, but quotients at the 60th digit."""
    with localcontext(Context(prec=60)):
        yield


def rows_of(folder: Path, query: str, keys: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], tuple[object, ...]]:
    """Return a query's rows, by their first `keys` columns."""
    monkeypatch.chdir(folder)
    with connect() as db:
        rows = db.execute(query).fetchall()
    result = {tuple(map(str, row[:keys])): tuple(row[keys:]) for row in rows}
    assert len(result) == len(rows) > 0
    return result


def read_cvd(folder: Path, inst_id: str) -> dict[str, tuple[object, ...]]:
    """Return the lines of the CVD files."""
    paths = sorted((folder / "Vault/derived/cvd/okx" / inst_id / "1m").glob("*.jsonl"))
    rows = [(path, orjson.loads(line)) for path in paths for line in path.read_bytes().splitlines()]
    assert all(row["minute_utc"].startswith(path.stem) for path, row in rows)
    return {
        row["minute_utc"]: (*(Decimal(row[name]) for name in ("buy", "sell", "delta", "cvd")), row["gap"]) for _, row in rows
    }


def read_vwap(folder: Path, inst_id: str) -> dict[str, tuple[object, ...]]:
    """Return the lines of the VWAP file."""
    path = folder / "Vault/derived/vwap/okx/perps" / inst_id / "vwap_1m.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return {row["minute_utc"]: tuple(row[name] for name in ("vwap_1h", "vwap_4h", "gap_1h", "gap_4h")) for row in rows}


def assert_vwap(found: dict[str, tuple[object, ...]], exact: dict[str, tuple[Decimal | bool | None, ...]]) -> None:
    """Hold prices and flags of every minute against what they should be."""
    assert list(found) == list(exact)
    for minute, (*prices, gap_1h, gap_4h) in exact.items():
        assert found[minute][2:] == (gap_1h, gap_4h), minute
        assert all(map(is_near, found[minute], prices)), minute


def results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the rows of every measure."""
    monkeypatch.chdir(folder)
    with connect() as db:
        return {measure: sorted(map(repr, db.execute(f"FROM {measure}").fetchall())) for measure in MEASURES}


# ------------------------------------------------------------------------------------------------- the files of derive.py


@pytest.mark.parametrize("inst_id", [BTC, ETH])
def test_cvd_is_exact_and_carries_the_gaps_since_midnight(captured: Captured, inst_id: str) -> None:
    exact = exact_cvd(captured.stored[inst_id])
    assert read_cvd(captured.folder, inst_id) == exact
    last_before, first_after = exact["2026-11-22T09:09:00Z"], exact["2026-11-22T23:59:00Z"]
    assert (last_before[-1], first_after[-1], exact["2026-11-23T00:00:00Z"][-1]) == (False, True, False)


@pytest.mark.parametrize("inst_id", [BTC, ETH])  # ETH has no `start` on record
def test_vwap_is_exact_and_a_window_that_begins_before_the_data_is_a_gap(captured: Captured, inst_id: str) -> None:
    exact = exact_vwap(captured.stored[inst_id])
    assert_vwap(read_vwap(captured.folder, inst_id), exact)
    assert [exact[minute][3] for minute in ("2026-11-21T23:58:00Z", "2026-11-22T00:03:00Z")] == [True, False]
    assert {prices[:2] for prices in exact.values()} >= {(None, None)}


def test_a_day_that_is_not_there_is_a_gap(captured: Captured, copied: Path) -> None:
    whole = captured.stored[BTC]
    shutil.rmtree(copied / "Vault/derived")
    day_path(copied / "Vault", DAYS[1]).unlink()
    derive(copied)
    rest = Stored(BTC, [trade for trade in whole.trades if to_utc(trade.ts)[:10] != DAYS[1]], whole.gaps)
    assert read_cvd(copied, BTC) == exact_cvd(rest)
    exact = {minute: row for minute, row in exact_vwap(rest).items() if minute[:10] != DAYS[1]}
    assert exact["2026-11-23T00:05:00Z"][2:] == (True, True)
    assert_vwap(read_vwap(copied, BTC), exact)


def test_sums_of_a_hundred_trillion_are_exact(tmp_path: Path) -> None:
    ts = utc_ms("2026-11-21T12:00:00Z")
    trades = [Trade(1 + at, "83725.912345", "12345678901.23", "buy", ts) for at in range(1000)]
    store(tmp_path / "Vault", BTC, trades)
    derive(tmp_path)
    (row,) = duckdb.sql(f"FROM '{tmp_path}/Vault/derived/minutes/okx/{BTC}/2026-11-21.parquet'").fetchall()
    base = sum((Decimal(trade.sz) * CONTRACT[BTC] for trade in trades), Decimal(0))
    assert row[6:9] == (base, 0, base * Decimal("83725.912345"))
    assert row[8] > 10**16


@pytest.mark.parametrize("tail", ["{", "all but its end", "\0" * 5000])
def test_a_torn_last_line_is_no_line(captured: Captured, copied: Path, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = line_of(BTC, captured.stored[BTC].trades[-1]).decode()
    gaps = copied / f"Vault/meta/okx/gaps/{BTC}.jsonl"
    for path in (day_path(copied / "Vault", DAYS[2]), day_path(copied / "Vault", DAYS[0], ETH), gaps):
        with path.open("a") as file:
            file.write(line[:-2] if tail.startswith("all") else tail)
    derive(copied)
    assert results(copied, monkeypatch) == results(captured.folder, monkeypatch)


@pytest.mark.parametrize("lines", ["all", "some", "the rest"])
def test_a_day_with_both_files_counts_once(
    captured: Captured, copied: Path, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = day_path(copied / "Vault", DAYS[1])
    content = path.read_bytes().splitlines(keepends=True)
    with gzip.open(f"{path}.gz", "wb") as file:
        file.writelines(content if lines == "all" else content[:700])
    if lines == "the rest":
        path.write_bytes(b"".join(content[700:]))
    derive(copied)
    assert results(copied, monkeypatch) == results(captured.folder, monkeypatch)


@pytest.mark.parametrize(
    ("px", "sz", "message"),
    [("1.0000001", "1", "more than 6 decimals: 1.0000001"), ("1", "1.001", "more than 4 decimals: 0.01001")],
)
def test_a_number_with_too_many_places_is_an_error_and_never_rounded(
    tmp_path: Path, px: str, sz: str, message: str
) -> None:
    ts = utc_ms("2026-11-21T12:00:00Z")
    store(tmp_path / "Vault", BTC, [Trade(1, px, sz, "buy", ts)])
    store(tmp_path / "Vault", ETH, [Trade(1, "2900.5", "1", "buy", ts)])
    assert message in run("Vault/derive.py", tmp_path).stderr
    assert read_cvd(tmp_path, ETH)["2026-11-21T12:00:00Z"][3] == Decimal("0.1")
    assert not (tmp_path / "Vault/derived/cvd/okx" / BTC).exists()


# ------------------------------------------------------------------------------------------------------ each minute


def forge(path: Path) -> None:
    """Change what a file says, but neither its size nor its times."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"price":"8', b'"price":"9'))
    assert path.read_bytes() != content
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_day_is_added_up_again_only_when_its_file_changed(captured: Captured, copied: Path) -> None:
    old = day_path(copied / "Vault", DAYS[1])
    run("Vault/derive.py", copied)  # the copy's files have times of their own... but shutil keeps them
    forge(old)
    today = Trade(captured.pushes[BTC][-1].last_id + 1, "83000", "5", "buy", END)
    store(copied / "Vault", BTC, [today])
    inodes = {path: path.stat().st_ino for path in (copied / "Vault/derived").rglob("*.*")}
    derive(copied)
    stored = captured.stored[BTC]
    now = Stored(BTC, [*stored.trades, today], stored.gaps)
    assert read_cvd(copied, BTC) == exact_cvd(now)
    assert_vwap(read_vwap(copied, BTC), exact_vwap(now))
    renewed = {path.name for path, inode in inodes.items() if path.stat().st_ino != inode and BTC in str(path)}
    assert renewed == {f"{DAYS[2]}.parquet", f"{DAYS[2]}.jsonl", "vwap_1m.jsonl"}
    os.utime(old)
    derive(copied)
    assert_is_other(read_vwap(copied, BTC), exact_vwap(now))


def assert_is_other(found: dict[str, tuple[object, ...]], exact: dict[str, tuple[Decimal | bool | None, ...]]) -> None:
    """See that the forged day is believed, once it is read."""
    assert not is_near(found["2026-11-22T06:00:00Z"][0], exact["2026-11-22T06:00:00Z"][0])
