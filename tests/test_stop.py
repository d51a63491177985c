"""How it starts and stops: signals, a terminal that is gone, a backfill in its midst, and errors nobody foresaw."""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from fake_okx import BTC, FakeOKX
from harness import (
    ROOT,
    MakeExporter,
    assert_vault_equals_ledger,
    last_stored_id,
    log_lines,
    reasons,
    start_with_a_trade,
    stored_ids,
    wait_for,
)
from trades_exporter import BuildFailError, LogThrottle, end_with_error, parse_trade

NOBODY = ["--ws-url", "ws://127.0.0.1:1/ws/v5/public", "--rest-url", "http://127.0.0.1:1"]
SIGNALS = [signal.SIGTERM]
if sys.platform != "win32":
    SIGNALS += [signal.SIGINT, signal.SIGHUP]
not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="test_windows.py has Windows' own ways")


@not_on_windows
@pytest.mark.parametrize("sig", SIGNALS, ids=lambda sig: sig.name)
def test_a_signal_ends_it_cleanly_with_everything_accepted_on_disk(
    okx: FakeOKX, exporter: MakeExporter, sig: signal.Signals
) -> None:
    """In the midst of a flow, and with no fsync before the end; a second signal changes nothing."""
    one = exporter(okx, settings={"FSYNC_S": 3600.0, "STATS_S": 0.05}).start_capture()
    last = okx.trade(n=20)[-1].last_id
    one.wait_for_log(f"last={last} ")
    os.kill(one.pid, sig)
    assert one.stop(sig) == 0
    btc, eth, stopped = one.log.rstrip().splitlines()[-3:]
    assert f"Stats: 20 written, 0 skipped instId={BTC}" in btc
    assert "Stats: 0 written, 0 skipped" in eth
    assert f"Stopped signal={sig.name}" in stopped
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0


STOPS_ITSELF = f"""
import logging, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import trades_exporter
class AtFirst(logging.Handler):
    def emit(self, record):
        if " started" in str(record.msg):
            os.kill(os.getpid(), signal.SIGTERM)
logging.getLogger().addHandler(AtFirst())
sys.exit(trades_exporter.main(sys.argv[1:]))
"""


@not_on_windows
def test_it_can_be_stopped_from_its_first_line_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPS_ITSELF, *NOBODY, "--vault", str(tmp_path / "Vault")]
    done = subprocess.run([*command, "--log-file", str(tmp_path / "x.log")], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"signal=SIGTERM" in done.stderr


@not_on_windows
def test_it_can_be_stopped_while_nobody_can_be_reached(okx: FakeOKX, exporter: MakeExporter) -> None:
    for args in (NOBODY, NOBODY[:2]):
        one = exporter(okx, args=args).start()
        one.wait_for_log("Next try in")
        assert one.stop() == 0
        assert one.console.count("Stats: 0 written, 0 skipped instId=") == 2


@not_on_windows
def test_it_needs_no_console(okx: FakeOKX, exporter: MakeExporter) -> None:
    """As with pythonw; what it has to say stands in the log."""
    one = exporter(okx)
    one.process = subprocess.Popen(["/bin/sh", "-c", f"exec {shlex.join(one.command())} >&- 2>&-"])
    one.wait_for_log("Subscribed to trades", times=2)
    okx.trade()
    one.wait_until(lambda: stored_ids(one.vault), what="a line")
    assert one.stop() == 0


def test_under_nohup_it_outlives_its_terminal(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Whoever starts it so wants exactly that."""
    if sys.platform == "win32":
        pytest.skip("there is no nohup")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        one = exporter(okx).start_capture()
    finally:
        signal.signal(signal.SIGHUP, before)
    os.kill(one.pid, signal.SIGHUP)
    assert one.stop(signal.SIGTERM) == 0
    assert "signal=SIGTERM" in one.log


def test_it_stops_in_the_midst_of_a_backfill(okx: FakeOKX, exporter: MakeExporter) -> None:
    """What has been fetched so far is a gapless prefix, and the next start goes on behind it."""
    one = start_with_a_trade(exporter(okx, settings={"PROGRESS_S": 0.5}))
    first = last_stored_id(one.vault)
    okx.prefill(BTC, 20_000, okx.now_ms(), okx.now_ms() + 1)
    okx.faults.rest_latency_s = 0.3
    okx.trade()
    one.wait_for_log(f"Backfill {BTC}")
    assert one.stop() == 0
    assert "Gap repaired" not in one.log
    reached = last_stored_id(one.vault)
    assert first < reached < okx.ledger[BTC][-2].trade_id
    assert assert_vault_equals_ledger(one.vault, okx, upto_id=reached).missing == 0
    assert reasons(one.vault) == []


@not_on_windows
def test_why_it_ends_is_said_before_a_disk_that_hangs(okx: FakeOKX, exporter: MakeExporter, tmp_path: Path) -> None:
    """And it ends all the same."""
    hung = tmp_path / "hung"
    one = start_with_a_trade(exporter(okx, settings={"HUNG_DISK": str(hung), "FSYNC_S": 3600.0}))
    hung.touch()
    okx.trade(fields={"px": "none"})
    wait_for((tmp_path / "hung.hangs").exists, what="an fsync that hangs")
    assert "BUILD_FAIL: Invalid trade field: px='none'" in one.log
    assert one.wait() == 3


@pytest.mark.parametrize(
    "settings", [{"STATS_S": "soon"}, {"FLUSH_LINES": "many"}], ids=["in a task", "while a frame is taken"]
)
def test_an_unexpected_error_ends_it_with_one_traceback(
    okx: FakeOKX, exporter: MakeExporter, settings: dict[str, object]
) -> None:
    """A setting of the wrong type is a bug that shows late, as any other."""
    okx.trade()
    one = exporter(okx, settings=settings).start()
    assert one.wait() == 1
    for text in (one.log, one.console):
        assert text.count("Unexpected error") == text.count("TypeError: ") == 1, text
        assert "Traceback (most recent call last)" in text
    assert len(log_lines(one, "Stats:")) == 2


def our_error() -> BuildFailError:
    """Return an error that the script has raised."""
    with pytest.raises(BuildFailError) as raised:
        parse_trade({})
    return raised.value


@pytest.mark.parametrize(
    ("error", "ends"),
    [(ConnectionResetError("WinError 10054"), False), (AttributeError("x"), False), (None, False), (our_error(), True)],
    ids=repr,
)
def test_an_error_in_a_callback_ends_it_where_it_is_ours(error: Exception | None, ends: bool) -> None:
    """Windows' event loop shuts down sockets that are gone, and libraries have bugs."""

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            handle = partial(end_with_error, tasks, LogThrottle())
            handle(asyncio.get_running_loop(), {"message": "in a callback", "exception": error})

    with pytest.raises(ExceptionGroup) if ends else contextlib.nullcontext():
        asyncio.run(run())
