"""Months on a trader's PC: full and vanished disks, sleep, wrong clocks, hostile input, and a log worth reading."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

import trades_exporter
from fake_okx import BTC, ETH, JUNK_FRAMES, REST_FAILURES, FakeOKX, utc_ms
from harness import Exporter, assert_vault_equals_ledger, day_files, last_stored_id, read_gaps, read_vault, wait_for
from trades_exporter import BoundedLog, BuildFailError, Instrument, RecordFormat, Trade, TradeFiles, Vault, raise_in

with contextlib.suppress(ImportError):
    import resource  # not on Windows

MakeOKX = Callable[..., FakeOKX]
MakeExporter = Callable[..., Exporter]
ONLY_BTC = {"INSTRUMENTS": [BTC]}


@pytest.fixture
def btc(make_okx: MakeOKX) -> FakeOKX:
    """Return an exchange for BTC alone, where nothing is traded but by hand."""
    return make_okx(instruments=[BTC])


def assert_all_stored(capture: Exporter, *, lost: int = 0) -> None:
    """Settle, stop, and hold the Vault against the ledger; nothing is on record as missing but the start."""
    capture.okx.settle()
    capture.wait_until_stored()
    assert capture.stop() == 0, capture.tail()
    for inst_id in capture.okx.markets:
        assert assert_vault_equals_ledger(capture.vault, capture.okx, inst_id).missing == lost
        assert {gap["reason"] for gap in read_gaps(capture.vault, inst_id)} <= {"start"}


def log_lines(capture: Exporter, *texts: str) -> list[str]:
    """Return the lines of the log with any of these texts."""
    return [line for line in capture.log.splitlines() if any(text in line for text in texts)]


# One exporter per Vault


def test_a_second_exporter_names_the_first_and_exits_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    first = exporter(okx)
    first.start_capture()
    log = first.log
    second = exporter(okx, folder=first.folder).run()
    assert second.returncode == 4
    process = re.search(r"process=(\d+)", first.log)
    assert process
    assert f"process {process[1]}" in second.stderr
    assert str(first.vault) in second.stderr
    assert first.log == log, "the log belongs to the first"
    okx.trade()
    assert_all_stored(first)


def test_the_lock_is_gone_with_a_killed_process(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    for _ in range(2):
        capture.start_capture()
        okx.trade()
        capture.kill()
    capture.start_capture()
    assert_all_stored(capture)


# A Vault that can't be used


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


def assert_unusable(capture: Exporter) -> None:
    """Start it: exit code 4 and one line that names the Vault."""
    done = capture.run()
    assert done.returncode == 4
    assert str(capture.vault) in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not capture.log_file.exists()


def test_a_vault_that_is_a_file_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    capture.vault.write_text("no folder")
    assert_unusable(capture)
    assert capture.vault.read_text() == "no folder"


def test_a_read_only_vault_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    with tmpfs(capture.vault, "ro"):
        assert_unusable(capture)


def test_a_vault_where_days_can_not_be_stored_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Though all else could be."""
    capture = exporter(okx)
    days = capture.vault / "raw" / "okx" / "trades_perps"
    days.parent.mkdir(parents=True)
    days.write_text("no folder")
    done = capture.run()
    assert done.returncode == 4
    assert str(days) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_day_that_a_killed_process_left_is_on_the_disk_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have had no time yet to write what the process wrote."""
    vault = Vault(tmp_path)
    vault.lock()
    record = RecordFormat(Instrument(BTC, ("0.01", "1", "linear"), "live"))
    for trade_id, day in ((1, "2026-11-21"), (2, "2026-11-22")):
        ts = str(utc_ms(f"{day}T12:00:00Z"))
        trade = Trade(trade_id, trade_id, True, False, BTC, str(trade_id), ts, "1", "1", "buy", "")
        TradeFiles(vault, BTC).append(day, record.line(trade, f"{day}T12:00:00").encode())
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    assert TradeFiles(vault, BTC).recover()[0] == 2
    assert {path.stat().st_ino for path in day_files(tmp_path, BTC)} <= synced


def test_a_disk_that_is_full_at_start_is_exit_4(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    with tmpfs(capture.vault, "size=8k"):
        with contextlib.suppress(OSError):
            (capture.vault / "other.bin").write_bytes(bytes(1 << 20))
        done = capture.run()
        assert done.returncode == 4
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr


def test_what_an_editor_did_to_a_file_does_not_cost_its_lines(btc: FakeOKX, exporter: MakeExporter) -> None:
    """Complete lines are never removed, even if they are not ours any more."""
    capture = exporter(btc, settings=ONLY_BTC)
    capture.start_capture()
    btc.trade(n=50)
    capture.wait_until_stored()
    assert capture.stop() == 0
    (path,) = day_files(capture.vault, BTC)
    edited = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(edited)
    capture.start()
    capture.wait_until(lambda: "Subscribed" in capture.log_since_start or not capture.running)
    capture.kill()
    assert path.read_bytes().startswith(edited)


# Full and vanished disks


def write_errors(capture: Exporter) -> list[str]:
    """Return the lines of the log about a disk that can't be written."""
    return log_lines(capture, "Can't write to the Vault")


def assert_full_disk_is_survived(capture: Exporter, make_room: Callable[[], object]) -> None:
    """With the disk full: one message, whole lines, and capture goes on by itself when there is room."""
    capture.wait_until(lambda: write_errors(capture), what="the disk full")
    verdict = capture.run("--verify")  # takes a while, in which writing is tried again and again
    assert verdict.returncode == 0, verdict.stdout
    asked = len(capture.okx.ledger[BTC])
    capture.wait_until(lambda: len(capture.okx.ledger[BTC]) > asked + 2000, what="some more attempts to write")
    assert len(write_errors(capture)) == 1, "one message a minute"
    assert len(capture.log.splitlines()) < 20, capture.log
    make_room()
    assert_all_stored(capture)
    assert len(write_errors(capture)) == 1


def test_a_full_disk_costs_nothing_once_there_is_room(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(make_okx(rate=400))
    with tmpfs(capture.vault, "size=200k"):
        capture.start_capture()
        remount = ["mount", "-o", "remount,size=64m", str(capture.vault)]
        assert_full_disk_is_survived(capture, lambda: subprocess.run(remount, check=True))


def test_a_limit_of_the_file_size_costs_nothing_once_it_is_lifted(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """The same as a full disk, where nothing may be mounted; lines are torn in the middle by it."""
    if sys.platform != "linux":
        pytest.skip("limits of another process can be set on Linux only")
    capture = exporter(make_okx(rate=400))
    capture.start_capture()
    resource.prlimit(capture.pid, resource.RLIMIT_FSIZE, (100_001, resource.RLIM_INFINITY))
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert_full_disk_is_survived(capture, lambda: resource.prlimit(capture.pid, resource.RLIMIT_FSIZE, no_limit))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let go of a folder with open files")
def test_a_vanished_vault_is_not_made_anew_and_goes_on_when_it_is_back(
    make_okx: MakeOKX, exporter: MakeExporter
) -> None:
    """It is gone over midnight, when new files are due; the drive has to find its place free when it comes back."""
    okx = make_okx(rate=100)
    capture = exporter(okx)
    capture.start_capture()
    capture.wait_until(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    elsewhere = capture.vault.rename(capture.folder / "unplugged")
    okx.set_clock("2026-11-21T23:59:59.5Z")
    capture.wait_until(lambda: write_errors(capture), what="the Vault missed")
    capture.wait_until(lambda: len(okx.requests_to("public/instruments")) >= 4, what="metadata looked at again")
    fetched = len(okx.ledger[BTC])
    capture.wait_until(lambda: len(okx.ledger[BTC]) > fetched + 300)
    assert not capture.vault.exists()
    elsewhere.rename(capture.vault)
    assert_all_stored(capture)
    assert len(write_errors(capture)) == 1
    assert len(day_files(capture.vault, BTC)) == 2


# Sleep and clock


@pytest.mark.parametrize("half_open", [False, True], ids=["connection closed", "connection dead without a word"])
def test_after_sleep_it_reconnects_and_fetches_what_it_missed(
    make_okx: MakeOKX, exporter: MakeExporter, half_open: bool
) -> None:
    if sys.platform == "win32":
        pytest.skip("processes can't be stopped on Windows")
    okx = make_okx(rate=100)
    capture = exporter(okx, settings={"PING_AFTER_S": 1, "PONG_S": 1})
    capture.start_capture()
    capture.wait_until(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    os.kill(capture.pid, signal.SIGSTOP)
    if half_open:
        okx.half_open()
    else:
        okx.close(4004)
    slept_at = len(okx.ledger[BTC])
    wait_for(lambda: len(okx.ledger[BTC]) > slept_at + 300)
    os.kill(capture.pid, signal.SIGCONT)
    capture.wait_until(lambda: okx.connects == 2, what="a new connection")
    capture.wait_for_log("Gap repaired")
    assert_all_stored(capture)


@pytest.mark.parametrize(("day", "next_day"), [("2019-02-28", "2019-03-01"), ("2041-12-31", "2042-01-01")])
def test_a_clock_that_is_years_off_changes_nothing(
    make_okx: MakeOKX, exporter: MakeExporter, day: str, next_day: str
) -> None:
    """Midnight, a gap and a restart; the exchange lives in another decade than this machine."""
    okx = make_okx(rate=100, start=f"{day}T12:00:00Z")
    capture = exporter(okx)
    capture.start_capture()
    capture.wait_until(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    okx.set_clock(f"{day}T23:59:59.5Z")
    capture.wait_until(lambda: len(day_files(capture.vault, BTC)) == 2, what="a new day")
    capture.kill()
    missed = len(okx.ledger[BTC])
    wait_for(lambda: len(okx.ledger[BTC]) > missed + 100)
    capture.start_capture()
    capture.wait_for_log("Gap repaired", times=2)
    assert_all_stored(capture)
    assert {path.name.partition(".")[0] for path in day_files(capture.vault, BTC)} == {day, next_day}


# The log


def test_the_log_is_bounded(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx, settings={"LOG_BYTES": 3000, "STATS_S": 0.002})
    capture.start()
    oldest = capture.folder / f"{capture.log_file.name}.5"
    capture.wait_until(oldest.exists)
    first = oldest.read_bytes()
    capture.wait_until(lambda: oldest.exists() and oldest.read_bytes() != first)
    assert capture.stop() == 0
    logs = list(capture.folder.glob("exporter.log*"))
    assert len(logs) == 6
    assert sum(path.stat().st_size for path in logs) <= 6 * 3000
    lines = [line for path in logs for line in path.read_text("utf-8").splitlines()]
    assert all(re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d", line) for line in lines)


def announced_delays(lines: list[str]) -> list[float]:
    """Return the seconds after which each line says that it will be tried again."""
    return [float(delay) for line in lines for delay in re.findall(r"again_in=([0-9.]+)s", line)]


def assert_patience(delays: list[float]) -> None:
    """Expect a retry within a second, and then ever later ones: so the log gets a few lines a minute."""
    assert delays[0] <= 1
    assert delays[-1] > 1.5
    assert max(delays) <= 30


def test_a_dead_rest_writes_a_line_per_attempt_and_tries_ever_more_rarely(okx: FakeOKX, exporter: MakeExporter) -> None:
    okx.faults.rest = {"reset": 1.0}
    capture = exporter(okx)
    capture.start()
    capture.wait_until(lambda: len(announced_delays(capture.log.splitlines())) >= 4)
    assert_patience(announced_delays(capture.log.splitlines()))
    assert len(capture.log.splitlines()) <= 7, capture.log
    assert okx.rest_url in log_lines(capture, "again_in")[0]
    okx.faults.rest = {}
    capture.wait_for_log("Subscribed to trades", times=2)
    assert capture.stop() == 0


def test_a_flapping_connection_writes_a_few_lines_per_attempt_and_tries_ever_more_rarely(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    capture = exporter(okx)
    capture.start_capture()
    attempts = 4
    for number in range(1, attempts + 1):
        capture.wait_for_log("Subscribed to trades", times=2 * number)
        okx.close(1006)
    capture.wait_until(lambda: len(log_lines(capture, "again_in")) == attempts)
    assert_patience(announced_delays(capture.log.splitlines()))
    assert len(capture.log.splitlines()) <= 8 + 3 * attempts, capture.log
    assert okx.ws_url in log_lines(capture, "again_in")[0]


@pytest.mark.parametrize(
    "settings", [{"STATS_S": "soon"}, {"FLUSH_LINES": "many"}], ids=["in a task", "while a frame is taken"]
)
def test_an_unexpected_error_ends_it_with_one_traceback(
    btc: FakeOKX, exporter: MakeExporter, settings: dict[str, object]
) -> None:
    """A setting of the wrong type is a bug that shows late, as any other."""
    btc.trade()
    capture = exporter(btc, settings={**ONLY_BTC, **settings})
    capture.start()
    assert capture.wait() == 1
    for text in (capture.log, capture.console):
        assert text.count("Unexpected error") == text.count("TypeError: ") == 1, text
        assert "Traceback (most recent call last)" in text


# Hostile input


def files_in(folder: Path) -> set[str]:
    """Return the paths of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ODD_FRAMES = {
    "1 MB of text": b'{"event":"news","text":"' + b"x" * 1_000_000 + b'"}',
    "1 MB of rows": b'{"arg":{"channel":"tickers"},"data":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "nested objects": b'{"data":' * 5_000 + b"0" + b"}" * 5_000,
    "ack of a list": b'{"event":"subscribe","arg":{"channel":"trades","instId":["x"]}}',
    "ack of an object": b'{"event":"subscribe","arg":{"channel":"trades","instId":{}}}',
    "ack without arg": b'{"event":"subscribe","arg":null}',
    "ack of a path": b'{"event":"subscribe","arg":{"channel":"trades","instId":"../../x"}}',
    "error with a list": b'{"event":"error","code":[],"msg":{}}',
    "event that is a list": b'{"event":[],"code":[]}',
    "notice of a list": b'{"event":"notice","code":[]}',
    "data without arg": b'{"data":[]}',
    "arg that is a list": b'{"arg":[],"data":[]}',
    "channel that is a list": b'{"arg":{"channel":[]},"data":[]}',
    "no rows": b'{"arg":{"channel":"trades","instId":"BTC-USDT-SWAP"},"data":[]}',
    "null": b"null",
    "a surrogate": rb'{"event":"\ud800"}',
    "a number without end": b"9" * 100_000,
    "control characters": b'{"event":"\\u001b[31m\\r\\n2026-11-21 [info] Stats: forged"}',
}


def test_odd_frames_cost_neither_the_connection_nor_a_trade_nor_the_log(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    capture.start_capture()
    lines = len(capture.log.splitlines())
    for _ in range(3):
        for payload in ODD_FRAMES.values():
            okx.send_raw(payload)
            okx.trade()
        for name in JUNK_FRAMES:
            okx.send_junk(name)
            okx.trade()
    assert_all_stored(capture)
    assert okx.connects == 1
    assert len(capture.log.splitlines()) - lines <= 15, capture.log
    assert max(map(len, capture.log.splitlines())) < 2000
    assert not log_lines(capture, "\x1b[31m")
    assert not [line for line in capture.log.splitlines() if line.startswith("2026-11-21")]


def test_a_senseless_error_instead_of_an_ack_is_a_reason_to_reconnect(okx: FakeOKX, exporter: MakeExporter) -> None:
    okx.faults.no_ack = {BTC}
    capture = exporter(okx)
    capture.start()
    capture.wait_for_log("Subscribed to trades")
    okx.faults.no_ack = set()
    okx.send_raw(ODD_FRAMES["error with a list"])
    capture.wait_for_log("Subscribed to trades", times=3)
    assert okx.connects == 2
    assert_all_stored(capture)


def test_a_message_beyond_all_bounds_costs_the_connection_and_no_trade(okx: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(okx)
    capture.start_capture()
    okx.trade()
    okx.send_raw(b"x" * 5_000_000, fragments=500)
    okx.trade()
    capture.wait_until(lambda: okx.connects == 2)
    capture.wait_for_log("Subscribed to trades", times=4)
    assert_all_stored(capture)


HOSTILE_ROWS: dict[str, tuple[dict[str, object], str]] = {
    "a number": ({"px": 83725.9}, "Invalid trade field: px"),
    "an id of 400 digits": ({"tradeId": "9" * 400}, "Invalid trade field: tradeId"),
    "the year 9999": ({"ts": "253402300799000"}, "Invalid trade field: ts"),
    "a path": ({"instId": "../../x"}, "Unexpected instId: ../../x"),
    "a path below ours": ({"instId": f"{BTC}/../../../x"}, "Unexpected instId"),
    "JSON in a price": ({"px": '1 1 1640131236050 5 buy x","evil":"y'}, "Invalid trade field: px"),
    "fields in fields": (
        {"px": "1", "sz": "1 1640131236050", "ts": "123", "tradeId": "buy", "side": "x"},
        "Invalid trade field: ",
    ),
    "a newline": ({"sz": "1\n"}, "Invalid trade field: sz"),
    "a list": ({"side": ["buy"]}, "Invalid trade field: side"),
}


@pytest.mark.parametrize(("fields", "message"), HOSTILE_ROWS.values(), ids=HOSTILE_ROWS.keys())
def test_hostile_rows_stop_it_with_the_promised_message_and_leave_nothing_behind(
    btc: FakeOKX, exporter: MakeExporter, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    capture = exporter(btc, settings=ONLY_BTC)
    capture.start_capture()
    (good,) = btc.trade()
    btc.trade(fields=fields)
    assert capture.wait() == 3
    assert f"BUILD_FAIL: {message}" in capture.log
    assert "Traceback" not in capture.log
    assert max(map(len, capture.log.splitlines())) < 2000
    assert [record["trade_id"] for record in read_vault(capture.vault)] == [str(good.last_id)]
    folder = capture.folder.name
    assert files_in(tmp_path) == {
        f"{folder}/exporter.log",
        f"{folder}/console.txt",
        f"{folder}/Vault/exporter.lock",
        f"{folder}/Vault/meta/okx/instruments/{BTC}.json",
        f"{folder}/Vault/meta/okx/gaps/{BTC}.jsonl",
        f"{folder}/Vault/raw/okx/trades_perps/{BTC}/{day_files(capture.vault, BTC)[0].name}",
    }


@pytest.mark.parametrize(("ts", "year"), [("9999999999999", "2286"), ("0000000000000", "1970")])
def test_a_time_far_off_is_a_day_like_any_other(btc: FakeOKX, exporter: MakeExporter, ts: str, year: str) -> None:
    capture = exporter(btc, settings=ONLY_BTC)
    capture.start_capture()
    btc.trade()
    btc.trade(ts=int(ts), fields={"ts": ts})
    btc.trade()
    capture.wait_until_stored()
    assert capture.stop() == 0
    assert {path.name[:4] for path in day_files(capture.vault, BTC)} == {"2026", year}
    assert last_stored_id(capture.vault) == btc.ledger[BTC][-1].trade_id


@pytest.mark.parametrize("row", [{"instId": "../../x"}, {"ctVal": 0.01}, {"ctMult": {}}, {"ctType": ""}])
def test_hostile_metadata_stops_it_with_the_promised_message(
    btc: FakeOKX, exporter: MakeExporter, row: dict[str, object]
) -> None:
    btc.instruments[BTC] |= row
    capture = exporter(btc, settings=ONLY_BTC)
    capture.start()
    assert capture.wait() == 3
    assert "BUILD_FAIL: Missing required metadata fields" in capture.log
    assert BTC in log_lines(capture, "BUILD_FAIL")[0]
    assert files_in(capture.vault) == {"exporter.lock"}


def test_senseless_answers_of_rest_are_asked_for_again(btc: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(btc, settings=ONLY_BTC)
    capture.start_capture()
    btc.trade()
    btc.faults.rest = dict.fromkeys(REST_FAILURES, 0.04)
    for _ in range(3):
        btc.trade(n=20, lost=True)
        btc.trade()
        capture.wait_until_stored()
    assert_all_stored(capture)


@pytest.mark.parametrize(
    ("error", "ends"), [(ConnectionResetError("WinError 10054"), False), (BuildFailError("bad"), True), (None, False)]
)
def test_an_error_that_windows_has_with_a_dead_connection_ends_nothing(error: Exception | None, ends: bool) -> None:
    """Its event loop shuts down a socket that is gone; what our own callbacks raise is no OSError."""

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            raise_in(tasks, asyncio.get_running_loop(), {"message": "in a callback", "exception": error})

    with pytest.raises(ExceptionGroup) if ends else contextlib.nullcontext():
        asyncio.run(run())


def test_a_log_that_somebody_holds_stays_bounded_and_costs_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not rename a file that a viewer has open."""
    path = tmp_path / "x.log"
    monkeypatch.setattr(trades_exporter, "LOG_BYTES", 1000)
    rename = os.rename

    def refuse(source: str | Path, dest: str | Path) -> None:
        if "x.log.1" in (Path(source).name, Path(dest).name):
            raise PermissionError
        rename(source, dest)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, refuse)
    handler = BoundedLog(path, maxBytes=1000, backupCount=5)
    for number in range(100):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{number:0>90}", (), None))
    handler.close()
    files = [tmp_path / f"x.log.{number}" for number in (5, 4, 3, 2, 1)] + [path]
    kept = [int(line) for file in files for line in file.read_text().splitlines()]
    assert kept == list(range(kept[0], 100))
    assert max(file.stat().st_size for file in files) <= 1000


# TLS


CERTIFICATE = (
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-days",
    "2",
)


class TLSProxy:
    """Stands before an exchange, with a certificate that nobody has signed, and notes who goes along with it."""

    def __init__(self, okx: FakeOKX, folder: Path) -> None:
        self._okx = okx
        self.certificate, key = folder / "cert.pem", folder / "key.pem"
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        command = [*CERTIFICATE, *subject, "-keyout", str(key), "-out", str(self.certificate)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not there to make a certificate")
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self.certificate, key)
        self.accepted = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._on_client, "127.0.0.1", 0, ssl=self._context)
        self.port = asyncio.run_coroutine_threadsafe(start, self._loop).result(10).sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        from_okx, to_okx = await asyncio.open_connection(self._okx.host, self._okx.port)
        await asyncio.gather(self._pass_on(reader, to_okx), self._pass_on(from_okx, writer))

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while some := await reader.read(1 << 16):
                writer.write(some)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("protocol", ["wss", "https"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_that_nobody_signed_is_refused(
    btc: FakeOKX, exporter: MakeExporter, tmp_path: Path, protocol: str, trusted: bool
) -> None:
    """It says why and sends nothing; where the system is told to trust the certificate, it goes along."""
    with TLSProxy(btc, tmp_path) as server:
        url = f"{protocol}://127.0.0.1:{server.port}" + ("/ws/v5/public" if protocol == "wss" else "")
        option = "--ws-url" if protocol == "wss" else "--rest-url"
        env = {"SSL_CERT_FILE": str(server.certificate)} if trusted else {}
        capture = exporter(btc, settings=ONLY_BTC, args=[option, url], env=env)
        capture.start()
        if trusted:
            capture.wait_for_log("Subscribed to trades")
            assert server.accepted
        else:
            capture.wait_until(lambda: len(log_lines(capture, "certificate verify failed")) >= 2)
            assert url in log_lines(capture, "certificate verify failed")[0]
            assert server.accepted == 0
        assert capture.stop() == 0


def test_through_tls_it_is_all_the_same(make_okx: MakeOKX, exporter: MakeExporter, tmp_path: Path) -> None:
    """As with the real OKX: bursts, lost pushes, silent and cut connections, an upgrade, and `kill -9`."""
    okx = make_okx(rate=200)
    with TLSProxy(okx, tmp_path) as server:
        urls = ["--ws-url", f"wss://127.0.0.1:{server.port}/ws/v5/public"]
        urls += ["--rest-url", f"https://127.0.0.1:{server.port}"]
        quick = {"PING_AFTER_S": 1, "PONG_S": 1, "REPLACE_S": 1}
        capture = exporter(okx, settings=quick, args=urls, env={"SSL_CERT_FILE": str(server.certificate)})
        capture.start_capture()
        okx.trade(n=5000)
        okx.trade(n=50, lost=True)
        capture.wait_for_log("Gap repaired")
        okx.half_open()
        capture.wait_for_log("nothing heard for")
        capture.wait_for_log("Subscribed to trades", times=4)
        okx.notice(2.0)
        capture.wait_for_log("Connection replaced")
        okx.close()
        capture.wait_for_log("Subscribed to trades", times=8)
        capture.kill()
        okx.trade(ETH, n=500)
        capture.start_capture()
        assert_all_stored(capture)
    assert server.accepted > 5
