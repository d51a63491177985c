"""README's block for Dask, on a real cluster of two workers on this machine, against one machine alone."""

import math
import shutil
from pathlib import Path

import duckdb
import pytest
from dask.distributed import LocalCluster

from exact import SCRIPTS, derive, run, store
from fake_okx import BTC, ETH, Market, utc_ms


def make_days(vault: Path) -> None:
    """Store three days of both instruments."""
    for inst_id in (BTC, ETH):
        market = Market(inst_id, seed=5, first_id=1, start_px="83725.9", tick="0.1", ct_val="0.01")
        for ts in range(utc_ms("2026-11-20T06:00:00Z"), utc_ms("2026-11-22T18:00:00Z"), 120_000):
            market.make_order(ts, -math.inf)
        store(vault, inst_id, market.pushes)


def contents(folder: Path) -> dict[str, object]:
    """Return the rows of all tables of minutes, and the bytes of all series."""
    derived = folder / "Vault/derived"
    found: dict[str, object] = {str(p.relative_to(folder)): p.read_bytes() for p in derived.rglob("*.jsonl")}
    for path in derived.rglob("*.parquet"):
        found[str(path.relative_to(folder))] = duckdb.execute(f"FROM '{path}'").fetchall()
    return found


def test_a_cluster_gives_the_same_to_the_last_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    make_days(alone / "Vault")
    shutil.copytree(alone, together)
    derive(alone)
    (together / "Vault/derive.py").write_text(SCRIPTS["Vault/derive.py"], "utf-8")
    monkeypatch.chdir(together)  # the workers start here
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        done = run("Vault/cluster.py", together, cluster.scheduler_address)
        assert done.returncode == 0, done.stderr
        assert len(cluster.scheduler.workers) == 2
    assert contents(together) == contents(alone)
    assert len(contents(alone)) == 6 * 3 + 2
    inode = (together / f"Vault/derived/minutes/okx/{BTC}/2026-11-21.parquet").stat().st_ino
    derive(together)  # one machine goes on from there, and has nothing left to add up
    assert (together / f"Vault/derived/minutes/okx/{BTC}/2026-11-21.parquet").stat().st_ino == inode
