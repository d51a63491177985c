"""README's blocks for a bot and for a scheduler: following the files, alive or not, compressing finished days."""

import gzip
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from exact import CONTRACT, SCRIPTS, connect, derive, line_of, put_on_record, run, store, verdict
from fake_okx import BTC, ETH, Market, Trade, utc_ms
from harness import SCRIPT, day_files, day_path, read_vault, to_utc, wait_for

DAYS = ("2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22")


def trades_of(day: str, count: int, first_id: int, inst_id: str = BTC) -> list[Trade]:
    """Return single trades of a day, one a second from noon on."""
    market = Market(inst_id, seed=7, first_id=first_id, start_px="83725.9", tick="0.1", ct_val=str(CONTRACT[inst_id]))
    for second in range(count):
        market.make_order(utc_ms(f"{day}T12:00:00Z") + 1000 * second, -math.inf, count=1)
    return market.ledger


# ---------------------------------------------------------------------------------------------------------------- live


class Follower:
    """live.py as a process, and what it has printed."""

    def __init__(self, folder: Path) -> None:
        (folder / "Vault/live.py").write_text(SCRIPTS["Vault/live.py"], "utf-8")
        command = [sys.executable, "Vault/live.py"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.printed: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.printed.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, trade: Trade, cvd: Decimal) -> None:
        """Wait until it says so of this trade."""
        line = f"{to_utc(trade.ts)} price {trade.px} CVD {cvd}\n"
        wait_for(lambda: line in self.printed or self.process.poll() is not None, what=line)
        assert line in self.printed, self.printed[-5:]


@contextmanager
def following(folder: Path) -> Iterator[Follower]:
    """Run live.py in a folder."""
    follower = Follower(folder)
    try:
        yield follower
    finally:
        follower.process.kill()
        follower.process.wait()


def cvd_of(trades: list[Trade]) -> Decimal:
    """Return what was bought minus what was sold, in BTC."""
    return sum((CONTRACT[BTC] * Decimal(t.sz) * (1 if t.side == "buy" else -1) for t in trades), Decimal(0))


def test_live_follows_whole_lines_over_midnight_and_a_crash(tmp_path: Path) -> None:
    vault = tmp_path / "Vault"
    today, tomorrow = trades_of(DAYS[0], 9000, 1), trades_of(DAYS[1], 10, 10_001)
    store(vault, BTC, today[:8000])  # more than is read at once
    path = day_path(vault, DAYS[0])
    with following(tmp_path) as follower:
        follower.wait_for(today[7999], cvd_of(today[:8000]))
        torn = line_of(BTC, today[8000])
        with path.open("ab") as file:
            file.write(torn[:120])
        store(vault, ETH, trades_of(DAYS[0], 5, 1, ETH))
        os.truncate(path, path.stat().st_size - 120)  # what the exporter does at its next start
        store(vault, BTC, today[8000:8500])
        follower.wait_for(today[8499], cvd_of(today[:8500]))
        store(vault, BTC, tomorrow[:5])
        follower.wait_for(tomorrow[4], cvd_of(tomorrow[:5]))
        store(vault, BTC, today[8500:8501])  # a trade of the old day that came late
        follower.wait_for(today[8500], cvd_of(today[:8501]))
        store(vault, BTC, tomorrow[5:])
        follower.wait_for(tomorrow[9], cvd_of(tomorrow))


# --------------------------------------------------------------------------------------------------------------- alive


def make_alive(vault: Path, age_s: float = 0.0) -> None:
    """Store a trade of each instrument, of now or some seconds ago, and verdicts that are fine in the end."""
    moment = datetime.now(UTC) - timedelta(seconds=age_s)
    for inst_id in (BTC, ETH):
        store(vault, inst_id, [Trade(1, "1", "1", "buy", int(moment.timestamp() * 1000))])
        verdicts = [verdict(inst_id, DAYS[0], differing=3), verdict(inst_id, DAYS[0]), verdict(inst_id, DAYS[1])]
        put_on_record(vault, "audit", inst_id, verdicts)


def test_alive_is_content_with_fresh_trades_and_agreeing_days(tmp_path: Path) -> None:
    make_alive(tmp_path / "Vault")
    for path in (tmp_path / "Vault").rglob("*.jsonl"):
        with path.open("ab") as file:
            file.write(b'{"timestamp_utc":"2026-')  # torn
    done = run("Vault/alive.py", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_alive_names_what_is_old_and_what_differs(tmp_path: Path) -> None:
    make_alive(tmp_path / "Vault")
    shutil.rmtree(tmp_path / "Vault/raw/okx/trades_perps" / ETH)
    store(tmp_path / "Vault", ETH, trades_of("2026-11-19", 3, 1, ETH))
    put_on_record(tmp_path / "Vault", "audit", BTC, [verdict(BTC, DAYS[1], differing=2)])
    done = run("Vault/alive.py", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{ETH}: the newest trade is of 2026-11-19T12:00:02.000Z",
        f"{BTC} {DAYS[1]}: 2 minutes differ from OKX's candles",
    ]


@pytest.mark.parametrize("folders", ["raw/okx/trades_perps", f"raw/okx/trades_perps/{BTC}"])
def test_alive_is_not_content_with_nothing(tmp_path: Path, folders: str) -> None:
    (tmp_path / "Vault" / folders).mkdir(parents=True)
    assert run("Vault/alive.py", tmp_path).returncode == 1


# ------------------------------------------------------------------------------------------------------------ compress


def make_days(folder: Path, audited: tuple[str, ...]) -> None:
    """Store four days of both instruments, some of them audited."""
    for inst_id in (BTC, ETH):
        for number, day in enumerate(DAYS):
            store(folder / "Vault", inst_id, trades_of(day, 50, 1 + 50 * number, inst_id))
        contract = {"instId": inst_id, "ctVal": str(CONTRACT[inst_id]), "ctMult": "1", "ctType": "linear"}
        put_on_record(folder / "Vault", "instruments", inst_id, [contract])
        saved = folder / f"Vault/meta/okx/instruments/{inst_id}.jsonl"
        saved.rename(saved.with_suffix(".json"))
        put_on_record(folder / "Vault", "audit", inst_id, [verdict(inst_id, day) for day in audited])


def verify(folder: Path) -> str:
    """Return what the exporter's --verify says; it must be content."""
    command = [sys.executable, str(SCRIPT), "--verify", "--vault", str(folder / "Vault")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def names(folder: Path) -> list[str]:
    """Return the day files of BTC."""
    return [path.name for path in day_files(folder / "Vault", BTC)]


def test_only_audited_days_are_compressed_and_never_the_two_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_days(tmp_path, (DAYS[1], DAYS[2], DAYS[3]))
    before, verified = read_vault(tmp_path / "Vault"), verify(tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        done = run("Vault/compress.py", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert names(tmp_path) == [f"{DAYS[0]}.jsonl", f"{DAYS[1]}.jsonl.gz", f"{DAYS[2]}.jsonl", f"{DAYS[3]}.jsonl"]
    assert read_vault(tmp_path / "Vault") == before
    derive(tmp_path)
    assert verify(tmp_path) == verified
    monkeypatch.chdir(tmp_path)
    with connect() as db:
        assert db.execute(f"SELECT count(*) FROM trades('{BTC}', '*')").fetchall() == [(200,)]


@pytest.mark.parametrize("packed", [50, 30])  # all lines: interrupted before its last step; some: history went on
def test_a_day_that_has_both_files_becomes_one(tmp_path: Path, packed: int) -> None:
    make_days(tmp_path, DAYS)
    before = read_vault(tmp_path / "Vault")
    path = day_path(tmp_path / "Vault", DAYS[0])
    lines = path.read_bytes().splitlines(keepends=True)
    with gzip.open(f"{path}.gz", "wb") as file:
        file.writelines(lines[:packed])
    if packed < 50:
        path.write_bytes(b"".join(lines[packed:]))
    path.with_suffix(".part").write_bytes(b"half of something")
    assert run("Vault/compress.py", tmp_path).returncode == 0
    assert names(tmp_path) == [f"{DAYS[0]}.jsonl.gz", f"{DAYS[1]}.jsonl.gz", f"{DAYS[2]}.jsonl", f"{DAYS[3]}.jsonl"]
    assert read_vault(tmp_path / "Vault") == before
    assert not list((tmp_path / "Vault").rglob("*.part"))


def test_each_block_names_its_file_and_can_be_saved() -> None:
    assert set(SCRIPTS) == {
        f"Vault/{name}.py" for name in ("derive", "picture", "live", "alive", "compress", "cluster")
    }
    for name, code in SCRIPTS.items():
        compile(code, name, "exec")
        assert not re.search("README", code)
