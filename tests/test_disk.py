"""The disk beneath the Vault: held by another, not usable, full, gone, or hung; and the lock that keeps others out."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from fake_okx import BTC, ETH, FakeOKX
from harness import (
    Exporter,
    MakeExporter,
    MakeOKX,
    assert_vault_equals_ledger,
    day_files,
    finish,
    log_lines,
    reasons,
    start_with_a_trade,
    stored_ids,
    wait_for,
    write_vault,
)
from trades_exporter import Instrument, TradeFiles, TradeWriter, Vault, parse_trade

with contextlib.suppress(ImportError):
    import resource  # not on Windows

# ------------------------------------------------------------------------------------------ one exporter per Vault


def test_a_second_exporter_names_the_first_and_exits_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    first = exporter(okx).start_capture()
    log = first.log
    second = exporter(okx, folder=first.folder).run()
    assert second.returncode == 4
    process = re.search(r"process=(\d+)", first.log)
    assert process
    assert f"is in use by process {process[1]}" in second.stderr
    assert str(first.vault) in second.stderr
    assert first.log == log, "the log belongs to the first"
    okx.trade()
    finish(first)


def test_the_lock_is_gone_with_a_killed_process(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    for _ in range(2):
        one.start_capture()
        okx.trade()
        one.kill()
    one.start_capture()
    finish(one)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to remove a file that is open")
@pytest.mark.parametrize("second", [False, True], ids=["removed", "removed and taken by a second exporter"])
def test_without_its_lock_it_stops_before_anything_is_doubled(
    okx: FakeOKX, exporter: MakeExporter, second: bool
) -> None:
    """A clean-up script took the file away; whoever comes then may take the Vault."""
    first = other = start_with_a_trade(exporter(okx))
    (first.vault / "exporter.lock").unlink()
    if second:
        other = exporter(okx)
        other.vault = first.vault
        other.start_capture()
    else:
        (first.vault / "exporter.lock").write_text("process 1\n")
    okx.trade(n=20)
    assert first.wait() == 4
    [line] = log_lines(first, "[critical")
    assert str(first.vault / "exporter.lock") in line
    if not second:
        assert len(stored_ids(first.vault)) == 1
        other.start_capture()
    finish(other)
    assert reasons(first.vault) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to remove a file that is open")
def test_closing_a_file_without_the_lock_is_logged_and_writes_nothing(tmp_path: Path) -> None:
    """Or else the other instrument's file would not be closed."""
    vault = Vault(tmp_path)
    vault.lock()
    row = {"instId": BTC, "ctVal": "0.01", "ctMult": "1", "ctType": "linear"}
    files = TradeFiles(vault, BTC)
    writer = TradeWriter(files, Instrument.from_row(BTC, row), lambda _: None, lambda _: None, live=True)
    trade = {"instId": BTC, "tradeId": "7", "px": "1", "sz": "1", "side": "buy", "ts": "1791369350776"}
    writer.store([parse_trade(trade)])
    (tmp_path / "exporter.lock").unlink()
    with structlog.testing.capture_logs() as lines:
        writer.close()
    assert "was removed or replaced" in lines[0]["error"]
    assert not day_files(tmp_path, BTC)


# ---------------------------------------------------------------------------------------- a Vault that can't be used


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system of its own, where this machine allows it."""
    if not shutil.which("mount"):
        pytest.skip("this system mounts nothing")
    folder.mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


DAYS = "raw/okx/trades_perps"


def assert_unusable(one: Exporter, what: Path | str, most: int = 1) -> None:
    """Start it: exit code 4, and at most so many lines, without a traceback; the last one says what can't be used."""
    done = one.run()
    assert done.returncode == 4
    assert str(what) in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) <= most, done.stderr
    assert one.log_file.is_file() == (most > 1)


def test_a_read_only_vault_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    with tmpfs(one.vault, "ro"):
        assert_unusable(one, one.vault)


@pytest.mark.parametrize("log_file", ["a folder", "no/such/folder/x.log"])
def test_a_log_that_can_not_be_written_is_exit_4(okx: FakeOKX, exporter: MakeExporter, log_file: str) -> None:
    one = exporter(okx)
    one.log_file = one.folder / log_file
    (one.folder / "a folder").mkdir()
    assert_unusable(one, one.log_file)
    assert not okx.requests


@pytest.mark.parametrize(
    ("in_the_way", "content", "most"),
    [("", "no folder", 1), (DAYS, "", 4), (f"{DAYS}/{BTC}/2026-11-20.jsonl", "{}\n", 4)],
    ids=["the Vault is a file", "days can't be stored", "a day of something else"],
)
def test_a_vault_where_days_can_not_be_stored_is_exit_4(
    okx: FakeOKX, exporter: MakeExporter, in_the_way: str, content: str, most: int
) -> None:
    """And what is there stays as it is."""
    one = exporter(okx)
    path = one.vault / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert_unusable(one, path, most)
    assert path.read_text() == content


def test_a_disk_that_is_full_at_start_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    with tmpfs(one.vault, "size=8k"):
        with contextlib.suppress(OSError):
            (one.vault / "other.bin").write_bytes(bytes(1 << 20))
        assert_unusable(one, "No space left")


def test_a_day_that_a_killed_process_left_is_on_the_disk_before_the_next(
    tmp_path: Path, make_okx: MakeOKX, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have had no time yet to write what the process wrote."""
    okx = make_okx()
    for day in ("2026-11-21", "2026-11-22"):
        okx.set_clock(f"{day}T12:00:00Z")
        okx.trade()
    write_vault(tmp_path, okx)
    vault = Vault(tmp_path)
    vault.lock()
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    assert len(TradeFiles(vault, BTC).recover()) == 2
    assert {path.stat().st_ino for path in day_files(tmp_path, BTC)} <= synced


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.decode().encode("utf-16"),
        lambda content: re.sub(rb'(utc":"\d{4}-)\d\d', rb"\g<1>19", content),
        lambda content: re.sub(rb'utc":"\d{4}', b'utc":"2023', content),
    ],
    ids=["CRLF", "UTF-16, as PowerShell writes it", "no date", "another date"],
)
def test_what_an_editor_did_to_a_file_does_not_cost_its_lines(
    okx: FakeOKX, exporter: MakeExporter, edit: Callable[[bytes], bytes]
) -> None:
    """Complete lines are never removed, even if they are not ours any more."""
    one = start_with_a_trade(exporter(okx))
    okx.trade(n=50)
    one.wait_until_stored()
    assert one.stop() == 0
    (path,) = day_files(one.vault, BTC)
    edited = edit(path.read_bytes())
    path.write_bytes(edited)
    assert one.start().wait() == 4
    assert str(path) in one.log_since_start
    assert "Traceback" not in one.log_since_start
    assert path.read_bytes() == edited


# ---------------------------------------------------------------------------------------- full and vanished disks


def write_errors(one: Exporter) -> list[str]:
    """Return the lines of the log about a disk that can't be written."""
    return log_lines(one, "Can't write to the Vault")


def assert_full_disk_is_survived(one: Exporter, make_room: Callable[[], object]) -> None:
    """With the disk full: one message an instrument, whole lines, and capture goes on by itself when there is room."""
    one.wait_until(lambda: write_errors(one), what="the disk full")
    verdict = one.run("--verify")  # takes a while, in which writing is tried again and again
    assert verdict.returncode == 0, verdict.stdout
    asked = len(one.okx.ledger[BTC])
    one.wait_until(lambda: len(one.okx.ledger[BTC]) > asked + 1000, what="some more attempts to write")
    assert len(write_errors(one)) == 1, "one message a minute"
    assert len(one.log.splitlines()) < 25, one.log
    make_room()
    finish(one)
    assert len(write_errors(one)) == len(log_lines(one, "The Vault can be written again")) == 1
    assert max(map(len, write_errors(one))) <= 160
    assert reasons(one.vault) == reasons(one.vault, ETH) == []


def test_a_full_disk_costs_nothing_once_there_is_room(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    one = exporter(make_okx(rate=400))
    with tmpfs(one.vault, "size=200k"):
        one.start_capture()
        remount = ["mount", "-o", "remount,size=64m", str(one.vault)]
        assert_full_disk_is_survived(one, lambda: subprocess.run(remount, check=True))


def test_a_limit_of_the_file_size_costs_nothing_once_it_is_lifted(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The same as a full disk, where nothing may be mounted; lines are torn in the middle by it."""
    if sys.platform != "linux":
        pytest.skip("limits of another process can be set on Linux only")
    one = exporter(make_okx(rate=400)).start_capture()
    resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (100_001, resource.RLIM_INFINITY))
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert_full_disk_is_survived(one, lambda: resource.prlimit(one.pid, resource.RLIMIT_FSIZE, no_limit))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let go of a folder with open files")
def test_a_vanished_vault_is_not_made_anew_and_goes_on_when_it_is_back(
    make_okx: MakeOKX, exporter: MakeExporter
) -> None:
    """It is gone over midnight, when new files are due; the drive has to find its place free when it comes back."""
    okx = make_okx(rate=100, start="2026-11-21T23:55:00Z")
    one = exporter(okx).start_capture()
    one.wait_until(lambda: day_files(one.vault, BTC) and day_files(one.vault, ETH))
    elsewhere = one.vault.rename(one.folder / "unplugged")
    okx.set_clock("2026-11-21T23:59:59.5Z")
    one.wait_until(lambda: write_errors(one), what="the Vault missed")
    fetched = len(okx.ledger[BTC])
    one.wait_until(lambda: len(okx.ledger[BTC]) > fetched + 300)
    assert not one.vault.exists()
    elsewhere.rename(one.vault)
    finish(one)
    assert len(write_errors(one)) == 1
    assert len(day_files(one.vault, BTC)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to move what is open")
@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_a_day_s_file_that_was_replaced_goes_on_without_a_gap(okx: FakeOKX, exporter: MakeExporter, what: str) -> None:
    """As an editor does when it saves: what was written to the old file is fetched again."""
    one = start_with_a_trade(exporter(okx, settings={"INSTRUMENT_SILENT_S": 3600.0}))
    [day] = day_files(one.vault, BTC)
    old = day if what == "a file" else day.parent
    moved = old.rename(one.folder / "moved")
    copy = shutil.copyfile if what == "a file" else shutil.copytree
    copy(moved, old)
    okx.trade(n=5)
    one.wait_until_stored()  # without another push
    finish(one)
    assert reasons(one.vault) == []


# ------------------------------------------------------------------------------------------------------ a hung disk


@pytest.mark.skipif(sys.platform == "win32", reason="a signal that asks to stop kills at once there")
@pytest.mark.parametrize(("where", "sig"), [("a trade file", signal.SIGTERM), ("the gaps file", signal.SIGINT)])
def test_a_hung_disk_does_not_keep_it_from_ending(
    okx: FakeOKX, exporter: MakeExporter, tmp_path: Path, where: str, sig: signal.Signals
) -> None:
    """Its fsync never returns: in the thread that syncs each second, or on the way to the next line."""
    hung, hangs = tmp_path / "hung", tmp_path / "hung.hangs"
    one = exporter(okx, settings={"HUNG_DISK": str(hung)})
    if where == "a trade file":
        start_with_a_trade(one)
    else:
        one.start_capture()
    hung.touch()
    okx.trade()
    wait_for(hangs.exists, what="an fsync that hangs")
    one.stop(sig)
    hung.unlink()
    one.start_capture()
    finish(one)


@pytest.mark.skipif(sys.platform == "win32", reason="a signal that asks to stop kills at once there")
def test_a_slow_disk_at_the_end_is_waited_for(okx: FakeOKX, exporter: MakeExporter, tmp_path: Path) -> None:
    """And further signals change nothing: all is on disk, and the exit code is that of the reason to stop."""
    hung, hangs = tmp_path / "hung", tmp_path / "hung.hangs"
    one = start_with_a_trade(exporter(okx, settings={"HUNG_DISK": str(hung), "FSYNC_S": 3600.0}))
    hung.touch()
    good = okx.trade()[-1].last_id
    okx.trade(fields={"px": "none"})
    wait_for(hangs.exists, what="an fsync that hangs")
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(one.pid, sig)
    hung.unlink()
    assert one.wait() == 3
    assert "BUILD_FAIL: Invalid trade field: px='none'" in one.log
    assert assert_vault_equals_ledger(one.vault, okx, upto_id=good).missing == 0
