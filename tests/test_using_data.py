"""README's chapter "Using the data", run as it stands there, against exact sums that are made without it."""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, localcontext
from pathlib import Path

import duckdb
import orjson
import pytest

from fake_okx import BTC, ETH, FakeOKX, Push, Trade, utc_ms
from harness import GAP_KEYS, KEYS, ROOT, Exporter, Record, read_gaps, read_vault

README = ROOT.joinpath("README.md").read_text("utf-8")
SQL = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
COMPRESS, WRITE, FRAMES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MEASURES = ("cvd_1m", "vwap_1m", "volume_profile", "imbalance_1m", "aggression_1m", "consumption_1m")
DIVISION = Decimal("1e-14")  # relative error of the one division, which is a float's

Key = tuple[str, ...]  # what a measure has one value for: the instrument, and a minute, say
Exact = Mapping[Key, tuple[Decimal | bool | int, ...]]


@dataclass(frozen=True)
class Captured:
    """A folder like the repository's: README.md and a Vault that the real exporter has filled."""

    folder: Path
    ledger: Mapping[str, list[Trade]]
    pushes: Mapping[str, list[Push]]

    @property
    def vault(self) -> Path:
        """The Vault."""
        return self.folder / "Vault"

    def records(self) -> list[Record]:
        """Return every stored line."""
        return [record for inst_id in (BTC, ETH) for record in read_vault(self.vault, inst_id)]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """Three days: pushes, hours of repaired single trades, pushes again, and a gap on record."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(ROOT / "README.md", folder)
    with FakeOKX(start="2026-11-21T20:00:00Z") as okx:
        exporter = Exporter(okx, folder)
        try:
            exporter.start_capture()
            for inst_id in (BTC, ETH):
                okx.trade(inst_id, 20)
            exporter.wait_until_stored()
            for inst_id in (BTC, ETH):
                okx.prefill(inst_id, 1500, "2026-11-21T20:00:01Z", "2026-11-22T00:40:00Z")
                for minute in range(40, 59):
                    okx.trade(inst_id, 5, ts=utc_ms(f"2026-11-22T00:{minute}:00Z"))
            exporter.wait_until_stored()
            assert exporter.stop() == 0
            exporter.args = ["--backfill-hours", "0"]
            okx.set_clock("2026-11-23T00:10:00Z")
            okx.trade(BTC, 5, lost=True)
            exporter.start_capture()
            for inst_id in (BTC, ETH):
                okx.trade(inst_id, 50)
            exporter.wait_until_stored()
            assert exporter.stop() == 0
            assert [gap["reason"] for gap in read_gaps(exporter.vault)] == ["start", "horizon"]
            yield Captured(folder, okx.ledger, okx.pushes)
        finally:
            exporter.kill()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], duckdb.DuckDBPyConnection]]:
    """Run README's SQL in a folder that has a Vault, block by block as it stands, and return the connection."""
    made: list[duckdb.DuckDBPyConnection] = []

    def run(folder: Path) -> duckdb.DuckDBPyConnection:
        monkeypatch.chdir(folder)
        made.append(duckdb.connect())
        for block in SQL:
            made[-1].execute(block)
        return made[-1]

    yield run
    for db in made:
        db.close()


def run_python(code: str, folder: Path) -> str:
    """Run README's Python as it stands, in a folder that has a Vault, and return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


# ---------------------------------------------------------------------------------------- the independent computation


@dataclass
class Sums:
    """What was traded in some time, exactly."""

    buy: Decimal = Decimal(0)
    sell: Decimal = Decimal(0)
    quote: Decimal = Decimal(0)
    orders: dict[tuple[str, str], Decimal] = field(default_factory=lambda: defaultdict(Decimal))  # by side and ms
    seconds: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))


def base_size(record: Record) -> Decimal:
    return Decimal(record["qty_contracts"]) * Decimal(record["ctVal"]) * Decimal(record["ctMult"])


def sums_by_minute(records: list[Record]) -> dict[str, dict[str, Sums]]:
    """Add up, per instrument and minute (2026-11-21T20:00)."""
    sums: dict[str, dict[str, Sums]] = {}
    for record in records:
        stamp, side, size = record["timestamp_utc"], record["side"], base_size(record)
        minute = sums.setdefault(record["instId"], {}).setdefault(stamp[:16], Sums())
        if side == "buy":
            minute.buy += size
        else:
            minute.sell += size
        minute.quote += size * Decimal(record["price"])
        minute.orders[side, stamp] += size
        minute.seconds[stamp[:19]] += size * Decimal(record["price"])
    return sums


def minutes_between(first: str, last: str) -> list[str]:
    start = datetime.fromisoformat(first)
    count = (datetime.fromisoformat(last) - start) // timedelta(minutes=1) + 1
    return [(start + timedelta(minutes=number)).isoformat()[:16] for number in range(count)]


def is_touched(vault: Path, inst_id: str, first: str, last: str) -> bool:
    """Whether something is missing that was traded from the first to the last minute, for all that is known."""
    return any(
        gap["reason"] != "absent" and gap["after_utc"][:16] <= last and first <= (gap["before_utc"][:16] or "9999")
        for gap in read_gaps(vault, inst_id)
    )


def exact_cvd(captured: Captured) -> Exact:
    result: dict[Key, tuple[Decimal | bool, ...]] = {}
    for inst_id, minutes in sums_by_minute(captured.records()).items():
        day, cvd = "", Decimal(0)
        for minute, sums in sorted(minutes.items()):
            cvd = (cvd if minute[:10] == day else 0) + sums.buy - sums.sell
            day = minute[:10]
            gap = is_touched(captured.vault, inst_id, minute, minute)
            result[inst_id, minute + "Z"] = (sums.buy, sums.sell, sums.buy - sums.sell, cvd, gap)
    return result


def exact_vwap(captured: Captured) -> dict[Key, tuple[Decimal | bool | None, ...]]:
    result: dict[Key, tuple[Decimal | bool | None, ...]] = {}
    for inst_id, minutes in sums_by_minute(captured.records()).items():
        grid = minutes_between(min(minutes), max(minutes))
        for end, minute in enumerate(grid):
            windows = [
                [minutes[at] for at in grid[max(0, end - size) : end + 1] if at in minutes] for size in (59, 239)
            ]
            prices = [
                sum((m.quote for m in w), Decimal(0)) / sum((m.buy + m.sell for m in w), Decimal(0)) if w else None
                for w in windows
            ]
            begins = [(datetime.fromisoformat(minute) - timedelta(minutes=size)).isoformat()[:16] for size in (59, 239)]
            gaps = [is_touched(captured.vault, inst_id, begin, minute) for begin in begins]
            result[inst_id, minute + "Z"] = (*prices, *gaps)
    return result


# ----------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    """Nothing in the independent computation is ever rounded, but quotients at the 60th digit."""
    with localcontext(Context(prec=60)):
        yield


def rows_of(db: duckdb.DuckDBPyConnection, query: str, keys: int) -> dict[Key, tuple[object, ...]]:
    """Return a query's rows, by their first `keys` columns."""
    rows = db.execute(query).fetchall()
    result = {tuple(map(str, row[:keys])): tuple(row[keys:]) for row in rows}
    assert len(result) == len(rows) > 0
    return result


def is_near(value: object, exact: Decimal) -> bool:
    """Whether a float is the quotient, but for its own last digit."""
    return isinstance(value, float) and abs(Decimal(value) - exact) <= abs(exact) * DIVISION


def is_vwap(value: object, exact: Decimal | bool | None) -> bool:
    """Whether this is the price; none where nothing was traded."""
    return value is None if exact is None else is_near(value, Decimal(exact))


def test_the_captured_vault_holds_pushes_and_single_trades(captured: Captured) -> None:
    """Else the other tests would not see what they should."""
    stored = {int(record["trade_id"]) for record in read_vault(captured.vault)}
    aggregates = [push for push in captured.pushes[BTC] if push.singles > 1]
    assert [push for push in aggregates if push.last_id in stored and push.last_id - 1 not in stored]
    assert [push for push in aggregates if push.last_id in stored and push.last_id - 1 in stored]


def test_the_files_are_those_that_readme_lists(captured: Captured) -> None:
    stored = {path.relative_to(captured.folder).as_posix() for path in captured.vault.rglob("*") if path.is_file()}
    general = {re.sub(r"\d{4}-\d\d-\d\d", "{DATE}", re.sub(f"{BTC}|{ETH}", "{INSTID}", path)) for path in stored}
    assert {path for path in general if "/derived/" not in path} == set(re.findall("`(Vault/.*?)` \\|", README))


def test_cvd_is_exact_and_flags_gaps(captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection]) -> None:
    query = "SELECT instId, minute_utc, buy, sell, delta, cvd, gap FROM cvd_1m"
    assert rows_of(connect(captured.folder), query, 2) == exact_cvd(captured)


def test_vwap_is_exact_until_the_division_and_flags_gaps(
    captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection]
) -> None:
    found, exact = rows_of(connect(captured.folder), "FROM vwap_1m", 2), exact_vwap(captured)
    assert found.keys() == exact.keys()
    for key, (*prices, gap_1h, gap_4h) in exact.items():
        assert found[key][2:] == (gap_1h, gap_4h), key
        assert all(map(is_vwap, found[key], prices)), key
    assert {gap_4h for *_, gap_4h in exact.values()} == {True, False}


def test_volume_profile_is_exact(captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection]) -> None:
    exact: dict[Key, Decimal] = defaultdict(Decimal)
    for record in captured.records():
        bucket = Decimal(record["price"]) // 10 * 10
        exact[record["instId"], record["timestamp_utc"][:10], str(bucket)] += base_size(record)
    query = "SELECT instId, day, bucket::BIGINT, volume FROM volume_profile"
    assert rows_of(connect(captured.folder), query, 3) == {key: (volume,) for key, volume in exact.items()}


def test_imbalance_aggression_and_consumption_are_exact_until_the_division(
    captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection]
) -> None:
    db = connect(captured.folder)
    imbalance = rows_of(db, "SELECT instId, minute_utc, imbalance FROM imbalance_1m", 2)
    consumption = rows_of(db, "FROM consumption_1m", 2)
    aggression = rows_of(db, "FROM aggression_1m", 3)
    for inst_id, minutes in sums_by_minute(captured.records()).items():
        for minute, sums in minutes.items():
            key, both = (inst_id, minute + "Z"), sums.buy + sums.sell
            assert is_near(imbalance.pop(key)[0], (sums.buy - sums.sell) / both), key
            per_second, busiest_second = consumption.pop(key)
            assert is_near(per_second, sums.quote / 60), key
            assert busiest_second == max(sums.seconds.values()), key
            for side, volume in (("buy", sums.buy), ("sell", sums.sell)):
                if sizes := [size for (of, _), size in sums.orders.items() if of == side]:
                    *counted, share, mean_size, largest_size = aggression.pop((*key, side))
                    assert counted == [len(sizes), volume], key
                    assert largest_size == max(sizes), key
                    assert is_near(share, volume / both), key
                    assert is_near(mean_size, volume / len(sizes)), key
    assert not imbalance
    assert not consumption
    assert not aggression


def store_all(folder: Path, forms: Mapping[str, list[Trade] | list[Push]]) -> Path:
    """Make a Vault, without the exporter, of everything that was traded: as pushes, or as single trades."""
    for inst_id, trades in forms.items():
        for trade in trades:
            moment = datetime.fromtimestamp(trade.ts // 1000, UTC)
            stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{trade.ts % 1000:03}Z"
            trade_id = trade.last_id if isinstance(trade, Push) else trade.trade_id
            contract = ("0.01" if inst_id == BTC else "0.1", "1", "linear")
            values = (stamp, "okx", "perp", inst_id, inst_id[:8], str(trade_id), trade.side, trade.px, trade.sz)
            path = folder / "Vault/raw/okx/trades_perps" / inst_id / f"{stamp[:10]}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(orjson.dumps(dict(zip(KEYS, values + contract, strict=True))) + b"\n")
    gaps = folder / "Vault/meta/okx/gaps"
    gaps.mkdir(parents=True)
    (gaps / f"{BTC}.jsonl").write_bytes(orjson.dumps(dict.fromkeys(GAP_KEYS, "") | {"reason": "absent"}) + b"\n")
    return folder


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_is_the_same_from_pushes_and_from_single_trades(
    measure: str, captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection], tmp_path: Path
) -> None:
    assert len(captured.pushes[BTC]) < len(captured.ledger[BTC])
    results = []
    for name, forms in (("pushes", captured.pushes), ("singles", captured.ledger)):
        db = connect(store_all(tmp_path / name, forms))
        results.append(sorted(map(repr, db.execute(f"FROM {measure}").fetchall())))
    assert results[0] == results[1]
    assert len(results[0]) > 0


def test_a_value_with_too_many_places_is_an_error_and_never_rounded(
    connect: Callable[[Path], duckdb.DuckDBPyConnection], tmp_path: Path
) -> None:
    ledger = {BTC: [Trade(1, "1.0000000000001", "1", "buy", 1_700_000_000_000)]}
    with pytest.raises(duckdb.Error, match=r"more than 12 decimals: 1\.0000000000001"):
        connect(store_all(tmp_path, ledger))


def test_the_files_that_python_writes_hold_cvd_and_vwap(captured: Captured) -> None:
    run_python(WRITE, captured.folder)
    run_python(WRITE, captured.folder)  # again, over the files that are there
    cvd: dict[Key, tuple[Decimal | bool, ...]] = {}
    vwap: dict[Key, tuple[object, ...]] = {}
    for inst_id in (BTC, ETH):
        for path in sorted((captured.vault / "derived/cvd/okx" / inst_id / "1m").glob("*")):
            for row in map(orjson.loads, path.read_bytes().splitlines()):
                assert row["minute_utc"].startswith(path.name.removesuffix(".jsonl"))
                *exact, gap = [row[name] for name in ("buy", "sell", "delta", "cvd", "gap")]
                cvd[inst_id, row["minute_utc"]] = (*map(Decimal, exact), gap)
        for row in map(
            orjson.loads,
            (captured.vault / "derived/vwap/okx/perps" / inst_id / "vwap_1m.jsonl").read_bytes().splitlines(),
        ):
            vwap[inst_id, row["minute_utc"]] = tuple(row[k] for k in ("vwap_1h", "vwap_4h", "gap_1h", "gap_4h"))
    assert cvd == exact_cvd(captured)
    expected = exact_vwap(captured)
    assert list(vwap) == list(expected)
    for key, (*prices, gap_1h, gap_4h) in expected.items():
        assert vwap[key][2:] == (gap_1h, gap_4h), key
        assert all(map(is_vwap, vwap[key], prices)), key


def test_pandas_and_polars_read_what_okx_said(captured: Captured) -> None:
    code = FRAMES + "print(contracts_pandas, contracts_polars, frame['price'][0], table['price'][0], table.dtypes)"
    contracts_pandas, contracts_polars, price_pandas, price_polars, dtypes = run_python(code, captured.folder).split(
        " ", 4
    )
    newest = [record for record in read_vault(captured.vault) if record["timestamp_utc"][:10] == "2026-11-23"]
    contracts = sum(Decimal(record["qty_contracts"]) for record in newest)
    assert Decimal(contracts_pandas) == Decimal(contracts_polars) == contracts
    assert price_pandas == price_polars == newest[0]["price"]
    assert set(re.findall(r"\w+", dtypes)) == {"String"}


def test_compressed_days_are_read_by_everything(
    captured: Captured, connect: Callable[[Path], duckdb.DuckDBPyConnection], tmp_path: Path
) -> None:
    folder = tmp_path / "compressed"
    shutil.copytree(captured.folder, folder)
    before = [sorted(connect(folder).execute(f"FROM {measure}").fetchall(), key=repr) for measure in MEASURES]
    run_python(COMPRESS, folder)
    run_python(COMPRESS, folder)  # again: there is nothing left to do
    names = [path.name for path in sorted((folder / "Vault/raw/okx/trades_perps" / BTC).iterdir())]
    assert names == ["2026-11-21.jsonl.gz", "2026-11-22.jsonl", "2026-11-23.jsonl"]
    after = [sorted(connect(folder).execute(f"FROM {measure}").fetchall(), key=repr) for measure in MEASURES]
    assert after == before
    verify = [sys.executable, str(ROOT / "trades_exporter.py"), "--verify", "--vault", str(folder / "Vault")]
    assert subprocess.run(verify, stdout=subprocess.DEVNULL, check=False).returncode == 0
    oldest = folder / "Vault/raw/okx/trades_perps" / BTC / names[0]
    read = FRAMES.replace("newest = ", f"newest = {str(oldest)!r} or ") + "print(contracts_pandas == contracts_polars)"
    assert run_python(read, folder) == "True\n"
