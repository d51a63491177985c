"""What the network does to REST: OKX's limits are kept, and a name that can't be resolved holds nothing up."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trades_exporter
from harness import ROOT, STOP_S, wait_for
from trades_exporter import Lane, Rest, rest_session

HANGING_DNS = f"""
import socket, sys, time
sys.path.insert(0, {str(ROOT)!r})
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
import trades_exporter
sys.exit(trades_exporter.main(sys.argv[1:]))
"""


def test_a_sleep_of_the_pc_does_not_bunch_requests_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that were given for the time of the sleep are not all taken at its end."""
    monkeypatch.setattr(trades_exporter, "REST_WINDOW_S", 0.3)
    limit = 5

    async def ask() -> list[float]:
        lane = Lane(limit)
        turns = [asyncio.ensure_future(lane.turn()) for _ in range(4 * limit)]
        await turns[0]
        time.sleep(1.5)  # noqa: ASYNC251 - the whole process sleeps
        return sorted(await asyncio.gather(*turns))

    taken = asyncio.run(ask())
    assert all(later - earlier > 0.29 for earlier, later in zip(taken, taken[limit:], strict=False))


def test_a_redirect_to_nowhere_is_passing() -> None:
    """As of a captive portal: it is asked again, later."""
    requests = 0

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\nContent-Length: 0\r\n\r\n")

    async def ask() -> None:
        async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server, rest_session() as session:
            port = server.sockets[0].getsockname()[1]
            asking = asyncio.ensure_future(Rest(session, f"http://127.0.0.1:{port}").newest("BTC-USDT-SWAP", 1))
            while requests < 2 and not asking.done():
                await asyncio.sleep(0.02)
            asking.cancel()

    asyncio.run(ask())
    assert requests == 2


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM kills at once there")
def test_it_stops_while_dns_hangs(tmp_path: Path) -> None:
    """A thread in the system's resolver can't be cancelled, and is not waited for."""
    log_file = tmp_path / "x.log"
    options = ["--vault", str(tmp_path / "Vault"), "--log-file", str(log_file)]
    command = [sys.executable, "-c", HANGING_DNS, *options, "--rest-url", "http://okx.invalid"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: log_file.exists() and "started" in log_file.read_text(), what="the start")
        time.sleep(0.5)  # the first request is with the resolver by then; if not, the test is only easier to pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
