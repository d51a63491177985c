"""README's chapter "Using the data": each block, run as it stands there, against sums that are made without it."""

import gzip
import itertools
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from pathlib import Path

import duckdb
import orjson
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from exact import (
    CONTRACT,
    COPY,
    README,
    Minute,
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
)
from fake_okx import BTC, ETH, FakeOKX, Market, Push, Trade, utc_ms
from harness import KEYS, Exporter, day_path, to_utc

FIRST, HOLE, HOLE_END, END = (
    utc_ms(f"2026-11-{moment}Z") for moment in ("21T20:00:10", "22T09:10:30", "22T09:31:00", "23T00:10:30")
)
DAYS = ("2026-11-21", "2026-11-22", "2026-11-23")
NOON = FIRST + 16 * 3_600_000
PACE_MS = 40_000  # between two orders
MEASURES = [
    "cvd_1m", "vwap_1m", "minutes", "candles(5)", "vwap_from(8)", "footprint('*', '*', 15, 1)",
    "volume_profile('*', '*', 1)", "value_area('*', '*', 1)", "order_sizes('*', '*')", "aggression_1m('*', '*')",
    "taker_turnover_1m('*', '*')",
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
        if ts == NOON:
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
    skipped = next(at for at, (a, b) in enumerate(itertools.pairwise(inside)) if b.first_id - a.last_id == 1001)
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


def rows_of(
    folder: Path, query: str, keys: int, monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, ...], tuple[object, ...]]:
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
        row["minute_utc"]: (*(Decimal(row[name]) for name in ("buy", "sell", "delta", "cvd")), row["gap"])
        for _, row in rows
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


def total(values: Iterable[Decimal]) -> Decimal:
    """Add up."""
    return sum(values, Decimal(0))


def results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the rows of every measure."""
    monkeypatch.chdir(folder)
    with connect() as db:
        return {measure: sorted(map(repr, db.execute(f"FROM {measure}").fetchall())) for measure in MEASURES}


# ----------------------------------------------------------------------------------------------- the files of derive.py


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


def test_a_day_that_is_not_there_is_a_gap(captured: Captured, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captured.stored[BTC]
    shutil.rmtree(copied / "Vault/derived")
    day_path(copied / "Vault", DAYS[1]).unlink()
    derive(copied)
    rest = Stored(BTC, [trade for trade in whole.trades if to_utc(trade.ts)[:10] != DAYS[1]], whole.gaps)
    assert read_cvd(copied, BTC) == exact_cvd(rest)
    exact = {minute: row for minute, row in exact_vwap(rest).items() if minute[:10] != DAYS[1]}
    assert exact["2026-11-23T00:05:00Z"][2:] == (True, True)
    assert_vwap(read_vwap(copied, BTC), exact)
    query = f"SELECT minute_utc, * EXCLUDE (instId, minute_utc) FROM vwap_1m WHERE instId = '{BTC}' ORDER BY ALL"
    in_view = {minute: row for (minute,), row in rows_of(copied, query, 1, monkeypatch).items()}
    assert_vwap(in_view, exact_vwap(rest))
    query = f"SELECT minute_utc, trades FROM minutes WHERE instId = '{BTC}'"
    assert rows_of(copied, query, 1, monkeypatch)["2026-11-23T00:00:00Z",] == (None,)


def test_sums_of_a_hundred_trillion_are_exact(tmp_path: Path) -> None:
    ts = utc_ms("2026-11-21T12:00:00Z")
    trades = [Trade(1 + at, "83725.912345", "12345678901.23", "buy", ts) for at in range(1000)]
    store(tmp_path / "Vault", BTC, trades)
    derive(tmp_path)
    (row,) = duckdb.execute(f"FROM '{tmp_path}/Vault/derived/minutes/okx/{BTC}/2026-11-21.parquet'").fetchall()
    base = sum((Decimal(trade.sz) * CONTRACT[BTC] for trade in trades), Decimal(0))
    assert row[6:9] == (base, 0, base * Decimal("83725.912345"))
    assert row[8] > 10**16


def test_a_torn_last_line_is_no_line(captured: Captured, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = line_of(BTC, captured.stored[BTC].trades[-1])
    tails = {
        day_path(copied / "Vault", DAYS[0]): b"{",
        day_path(copied / "Vault", DAYS[2]): line[:-2],
        day_path(copied / "Vault", DAYS[1], ETH): line[:100],
        day_path(copied / "Vault", DAYS[2], ETH): b"\0" * 5000,
        copied / f"Vault/meta/okx/gaps/{BTC}.jsonl": b'{"recorded_utc":"2026',
    }
    for path, tail in tails.items():
        with path.open("ab") as file:
            file.write(tail)
    derive(copied)
    assert results(copied, monkeypatch) == results(captured.folder, monkeypatch)


def test_a_day_with_both_files_counts_once(captured: Captured, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ((DAYS[0], BTC, "all"), (DAYS[1], BTC, "some"), (DAYS[1], ETH, "the rest"))
    for day, inst_id, form in forms:
        path = day_path(copied / "Vault", day, inst_id)
        lines = path.read_bytes().splitlines(keepends=True)
        with gzip.open(f"{path}.gz", "wb") as file:
            file.writelines(lines if form == "all" else lines[:300])
        if form == "the rest":
            path.write_bytes(b"".join(lines[300:]))
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
    stored, old = captured.stored[BTC], day_path(copied / "Vault", DAYS[1])
    forge(old)
    today = Trade(captured.pushes[BTC][-1].last_id + 1, "83000", "5", "buy", END)
    store(copied / "Vault", BTC, [today])
    now = Stored(BTC, [*stored.trades, today], stored.gaps)
    inodes = {path: path.stat().st_ino for path in (copied / "Vault/derived").rglob("*.*")}
    derive(copied)
    assert read_cvd(copied, BTC) == exact_cvd(now)
    assert_vwap(read_vwap(copied, BTC), exact_vwap(now))
    renewed = {path.name for path, inode in inodes.items() if path.stat().st_ino != inode and path.name != "okx.sql"}
    assert renewed == {f"{DAYS[2]}.parquet", f"{DAYS[2]}.jsonl", "vwap_1m.jsonl"}
    os.utime(old)
    derive(copied)  # now the forged day is read
    assert not is_near(read_vwap(copied, BTC)["2026-11-22T06:00:00Z"][0], exact_vwap(now)["2026-11-22T06:00:00Z"][0])
    assert not list((copied / "Vault/derived").rglob("*.part"))


def test_flags_follow_the_record_of_gaps(captured: Captured, copied: Path) -> None:
    (copied / f"Vault/meta/okx/gaps/{ETH}.jsonl").unlink()
    derive(copied)
    filled = Stored(ETH, captured.stored[ETH].trades, [])
    assert read_cvd(copied, ETH) == exact_cvd(filled)
    assert_vwap(read_vwap(copied, ETH), exact_vwap(filled))
    assert read_cvd(copied, BTC) == exact_cvd(captured.stored[BTC])


def test_a_file_that_cannot_be_replaced_is_left_and_made_by_the_next_run(captured: Captured, copied: Path) -> None:
    target = copied / f"Vault/derived/cvd/okx/{BTC}/1m/{DAYS[2]}.jsonl"
    target.unlink()
    target.mkdir()  # like a file that is open on Windows, it can't be replaced
    os.utime(day_path(copied / "Vault", DAYS[2]))
    assert f"{DAYS[2]}.jsonl is left as it was" in run("Vault/derive.py", copied).stderr
    target.rmdir()
    derive(copied)
    assert read_cvd(copied, BTC) == exact_cvd(captured.stored[BTC])


def test_a_second_run_at_the_same_time_keeps_out(copied: Path) -> None:
    with duckdb.connect(str(copied / "Vault/derived/made.duckdb")):
        second = run("Vault/derive.py", copied)
    assert second.returncode == 1
    assert "Is another run at work?" in second.stderr


# -------------------------------------------------------------------------------------------------------- the measures


def test_candles_are_exact_and_know_the_number_of_trades(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of(captured.folder, "FROM candles(5)", 2, monkeypatch)
    for inst_id, stored in captured.stored.items():
        for start, minutes in by_candle(stored, 5).items():
            prices = [price for minute in minutes for price in minute.prices]
            buy, sell, quote = (total(getattr(m, name) for m in minutes) for name in ("buy", "sell", "quote"))
            *exact, imbalance, vwap, trades, is_gap = found.pop((inst_id, start))
            assert exact == [prices[0], max(prices), min(prices), prices[-1], buy, sell, buy - sell], start
            assert is_near(imbalance, (buy - sell) / (buy + sell)), start
            assert is_near(vwap, quote / (buy + sell)), start
            assert is_gap == stored.is_touched(start, later(start, 4)), start
            is_first = start == minute_of(stored.trades[0])  # the id before it is not known
            assert trades == (None if is_gap or is_first else len(prices)), start
    assert not found


def by_candle(stored: Stored, length: int) -> dict[str, list[Minute]]:
    """Return the minutes with a trade, by the candle they are in."""
    candles: dict[str, list[Minute]] = defaultdict(list)
    for minute, sums in stored.minutes.items():
        candles[minute[:14] + f"{int(minute[14:16]) // length * length:02}:00Z"].append(sums)
    return candles


def test_the_number_of_trades_is_unknown_where_ids_and_minutes_cross(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = ("12:00:59", "12:01:58", "12:02:01", "12:01:59", "12:02:30", "12:03:10")
    trades = [Trade(1 + at, "1", "1", "buy", utc_ms(f"2026-11-21T{moment}Z")) for at, moment in enumerate(moments)]
    store(tmp_path / "Vault", BTC, trades)
    derive(tmp_path)
    found = rows_of(tmp_path, "SELECT minute_utc, trades FROM minutes ORDER BY ALL", 1, monkeypatch)
    assert list(found.values()) == [(None,), (None,), (None,), (1,)]


def test_vwap_from_an_hour_has_bands(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of(
        captured.folder, "SELECT instId, minute_utc, * EXCLUDE (instId, minute_utc) FROM vwap_from(8)", 2, monkeypatch
    )
    for inst_id, stored in captured.stored.items():
        anchor, trades = "", list[Trade]()
        for minute, sums in stored.minutes.items():
            begin = later(minute, -480)[:10] + "T08:00:00Z"
            trades = [*(trades if begin == anchor else []), *sums.trades]
            anchor = begin
            found_here = found.pop((inst_id, minute))
            assert found_here[-1] == stored.is_touched(anchor, minute), minute
            if minute[14:16] in ("00", "07"):
                assert_bands(stored, trades, found_here)
    assert not found


def assert_bands(stored: Stored, trades: list[Trade], found: Sequence[object]) -> None:
    """Hold VWAP, standard deviation and bands against those of single trades."""
    base = total(map(stored.size, trades))
    vwap = total(stored.size(trade) * Decimal(trade.px) for trade in trades) / base
    deviation = (total(stored.size(trade) * (Decimal(trade.px) - vwap) ** 2 for trade in trades) / base).sqrt()
    assert is_near(found[0], vwap)
    assert isinstance(found[1], float)
    assert abs(Decimal(found[1]) - deviation) < Decimal("1e-9")
    for value, times in zip(found[2:6], (-2, -1, 1, 2), strict=True):
        assert is_near(value, vwap + times * deviation, Decimal("1e-13"))


def test_footprint_profile_and_value_area_are_exact(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for inst_id, bucket in ((BTC, Decimal(10)), (ETH, Decimal("0.5"))):
        stored, arguments = captured.stored[inst_id], f"'{inst_id}', '2026-11-2?'"
        exact: dict[tuple[str, Decimal], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
        profile: dict[str, dict[Decimal, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        for trade in stored.trades:
            minute, price = minute_of(trade), Decimal(trade.px) // bucket * bucket
            candle = minute[:14] + f"{int(minute[14:16]) // 15 * 15:02}:00Z"
            exact[candle, price][trade.side == "sell"] += stored.size(trade)
            profile[minute[:10]][price] += stored.size(trade)
        query = f"SELECT candle_utc, price_from::DOUBLE, buy, sell, gap FROM footprint({arguments}, 15, {bucket})"
        assert rows_of(captured.folder, query, 2, monkeypatch) == {
            (candle, str(float(price))): (*sums, stored.is_touched(candle, later(candle, 14)))
            for (candle, price), sums in exact.items()
        }
        query = f"SELECT left(day_utc, 10), price_from::DOUBLE, volume FROM volume_profile({arguments}, {bucket})"
        assert rows_of(captured.folder, query, 2, monkeypatch) == {
            (day, str(float(price))): (volume,) for day, prices in profile.items() for price, volume in prices.items()
        }
        query = f"SELECT day_utc, * EXCLUDE (instId, day_utc) FROM value_area({arguments}, {bucket})"
        assert rows_of(captured.folder, query, 1, monkeypatch) == {
            (day + "T00:00:00Z",): (*value_area(prices), stored.is_touched(day + "T00:00:00Z", day + "T23:59:00Z"))
            for day, prices in profile.items()
        }


def value_area(profile: dict[Decimal, Decimal]) -> tuple[Decimal, ...]:
    """Return point of control, lowest and highest bucket of the value area, the volume in it, and that of the day."""
    prices, total = sorted(profile), sum(profile.values(), Decimal(0))
    control = max(prices, key=lambda price: (profile[price], -price))
    low = high = prices.index(control)
    inside = profile[control]
    while inside * 10 < total * 7:
        above = profile[prices[high + 1]] if high + 1 < len(prices) else Decimal(-1)
        below = profile[prices[low - 1]] if low > 0 else Decimal(-1)
        low, high = (low, high + 1) if above >= below else (low - 1, high)
        inside += max(above, below)
    return control, prices[low], prices[high], inside, total


def test_of_equal_buckets_the_lower_is_the_point_of_control_and_the_upper_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {("100", "2026-11-20"): 2, ("110", "2026-11-20"): 5, ("120", "2026-11-20"): 2}
    sizes |= {("100", "2026-11-21"): 5, ("110", "2026-11-21"): 2, ("120", "2026-11-21"): 5}
    trades = [
        Trade(number, px, str(size), "buy", utc_ms(f"{day}T12:00:00Z"))
        for number, ((px, day), size) in enumerate(sizes.items())
    ]
    store(tmp_path / "Vault", BTC, trades)
    derive(tmp_path)
    query = (
        "SELECT day_utc, point_of_control::INT, lowest_bucket::INT, highest_bucket::INT FROM value_area('*', '*', 10)"
    )
    assert rows_of(tmp_path, query, 1, monkeypatch) == {
        ("2026-11-20T00:00:00Z",): (110, 110, 120),
        ("2026-11-21T00:00:00Z",): (100, 100, 120),
    }


def test_orders_aggression_and_turnover_are_exact(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = rows_of(captured.folder, "FROM order_sizes('*', '*')", 4, monkeypatch)
    aggression = rows_of(captured.folder, "FROM aggression_1m('*', '*')", 3, monkeypatch)
    turnover = rows_of(captured.folder, "FROM taker_turnover_1m('*', '*')", 2, monkeypatch)
    for inst_id, stored in captured.stored.items():
        classes: dict[tuple[str, ...], list[tuple[Decimal, Decimal]]] = defaultdict(list)
        for minute, sums in stored.minutes.items():
            orders = orders_of(stored, sums.trades)
            is_gap = stored.is_touched(minute, minute)
            for (side, _), (size, usdt) in orders.items():
                smallest = max((edge for edge in (1000, 10_000, 100_000, 1_000_000) if usdt >= edge), default=0)
                classes[inst_id, minute[:10] + "T00:00:00Z", side, str(smallest)].append((size, usdt))
            seconds: dict[str, Decimal] = defaultdict(Decimal)
            for (_, stamp), (_, usdt) in orders.items():
                seconds[stamp[:19]] += usdt
            per_second, busiest, found_gap = turnover.pop((inst_id, minute))
            assert (busiest, found_gap) == (max(seconds.values()), is_gap)
            is_over = minute < max(stored.minutes)
            assert is_near(per_second, sums.quote / 60 if is_over else None), minute
            for side in {side for side, _ in orders}:
                taken = [size for (of, _), (size, _) in orders.items() if of == side]
                count, volume, share, mean_size, largest, found_gap = aggression.pop((inst_id, minute, side))
                assert (count, volume, largest, found_gap) == (len(taken), sum(taken), max(taken), is_gap)
                assert is_near(share, total(taken) / (sums.buy + sums.sell))
                assert is_near(mean_size, total(taken) / len(taken))
        for key, orders_in in classes.items():
            touched = stored.is_touched(key[1], later(key[1], 1439))
            assert sizes.pop(key) == (len(orders_in), *map(sum, zip(*orders_in, strict=True)), touched)
    assert not sizes | aggression | turnover


def orders_of(stored: Stored, trades: list[Trade]) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Return base and USDT of what each side took within a millisecond."""
    orders: dict[tuple[str, str], tuple[Decimal, Decimal]] = defaultdict(lambda: (Decimal(0), Decimal(0)))
    for trade in trades:
        size, usdt = orders[trade.side, to_utc(trade.ts)]
        taken = stored.size(trade)
        orders[trade.side, to_utc(trade.ts)] = (size + taken, usdt + taken * Decimal(trade.px))
    return orders


def test_every_measure_is_the_same_from_pushes_and_from_single_trades(
    captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("pushes", "singles"):
        for inst_id in (BTC, ETH):
            market = make_market(inst_id)
            store(tmp_path / name / "Vault", inst_id, market.pushes if name == "pushes" else market.ledger)
        derive(tmp_path / name)
        made.append(results(tmp_path / name, monkeypatch))
    assert made[0] == made[1]
    assert all(made[0].values())
    assert len(captured.pushes[BTC]) < len(captured.stored[BTC].trades)


def test_all_times_have_one_form(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(captured.folder)
    with connect() as db:
        for measure in MEASURES:
            result = db.execute(f"FROM {measure}")
            names = [column[0] for column in result.description or []]
            (time,) = (at for at, name in enumerate(names) if name.endswith("_utc"))
            assert not {"day", "minute", "time"} & set(names)
            assert all(re.fullmatch(r"2026-11-2\dT\d\d:\d\d:00Z", row[time]) for row in result.fetchall()), measure


# ------------------------------------------------------------------------------------------- Parquet, pandas and polars


def test_finished_days_can_be_had_as_parquet(captured: Captured, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    with connect() as db:
        db.execute(COPY)
        db.execute(COPY)  # again, over the files that are there
        query = "SELECT instId, count(*), sum(base), max(trade_id), max(date::VARCHAR)"
        query += " FROM 'Vault/derived/trades/*/*/*.parquet' GROUP BY ALL"
        found = {inst_id: rest for inst_id, *rest in db.execute(query).fetchall()}
        lines = dict(db.execute("SELECT instId, count(*) FROM trades('*', '2026-11-2[12]') GROUP BY ALL").fetchall())
    for inst_id, stored in captured.stored.items():
        trades = [trade for trade in stored.trades if to_utc(trade.ts)[:10] < DAYS[2]]
        assert found[inst_id] == [lines[inst_id], sum(map(stored.size, trades)), trades[-1].trade_id, DAYS[1]]


def test_pandas_and_polars_read_what_okx_said(captured: Captured) -> None:
    path = day_path(captured.folder / "Vault", DAYS[0])
    known = {"pd": pd, "pl": pl, "json": json, "path": path}
    by_pandas, by_polars = re.findall(r"`(p[dl]\.\w+\(.*?\))`", README)
    records = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert eval(by_pandas, known).to_dict("records") == eval(by_polars, known).collect().to_dicts() == records
    known["path"] = path.with_name("2026-11-*.jsonl*")  # several days
    lines = sum(len(file.read_bytes().splitlines()) for file in path.parent.glob("*.jsonl*"))
    assert eval(by_polars, known).collect().height == lines


def test_the_files_of_an_exporter_are_those_that_readme_lists(okx: FakeOKX, exporter: Callable[..., Exporter]) -> None:
    recorder = exporter(okx).start_capture()
    for inst_id in (BTC, ETH):
        okx.trade(inst_id, 5)
    recorder.wait_until_stored()
    assert recorder.stop() == 0
    stored = {path.relative_to(recorder.folder).as_posix() for path in recorder.vault.rglob("*") if path.is_file()}
    general = {re.sub(r"\d{4}-\d\d-\d\d", "{DATE}", re.sub(f"{BTC}|{ETH}", "{INSTID}", path)) for path in stored}
    assert general <= set(re.findall(r"`(Vault/.*?)` \|", README))
    shutil.copytree(recorder.vault, recorder.folder / "read" / "Vault")
    derive(recorder.folder / "read")
    (row,) = read_cvd(recorder.folder / "read", BTC).values()
    assert row[-1]  # it began in the midst of a day


def test_the_tables_name_every_key_and_every_column(captured: Captured) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|")]
    begin, end = (
        next(at for at, row in enumerate(rows) if row[0] == title) for title in ("key", "file in `Vault/derived`")
    )
    assert [row[0].strip("`") for row in rows[begin + 2 : end]] == list(KEYS)
    example = {row[0].strip("`"): row[2].strip("`") for row in rows[begin + 2 : end]}
    assert orjson.dumps(example).decode() in README.replace("    {", "{")
    names: dict[str, list[str]] = {}
    for row in rows[end + 2 :]:
        if row[0].startswith("`"):
            names[row[0].strip("`")] = []
        if not row[0] or row[0].startswith("`"):
            names[list(names)[-1]] += re.findall(r"`(\w+)`", row[1])
    for pattern, columns in list(names.items())[:3]:
        path = captured.folder / "Vault/derived" / pattern.format(INSTID=BTC, DATE=DAYS[0])
        with duckdb.connect() as db:
            found = [row[0] for row in db.execute(f"DESCRIBE FROM '{path}'").fetchall()]
        assert [name for name in found if name not in ("instId", "minute_utc")] == columns
