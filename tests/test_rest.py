"""What the network does to REST and the feed: which failures pass, OKX's limits, a second address, a DNS that hangs."""

import asyncio
import itertools
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import structlog
import websockets
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

import trades_exporter
from harness import ROOT, STOP_S, wait_for
from trades_exporter import (
    BuildFailError,
    EndpointLimit,
    Outage,
    RequestError,
    Rest,
    VaultError,
    open_session,
    reason_to_retry,
)

HANGING_DNS = f"""
import pathlib, socket, sys, time
sys.path.insert(0, {str(ROOT)!r})
def hang(*_, **__):
    pathlib.Path("hangs").touch()
    time.sleep(60)
socket.getaddrinfo = hang
import trades_exporter
sys.exit(trades_exporter.main(sys.argv[1:]))
"""
HOST = ConnectionKey(
    "openapi.okx.com", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)
PROXY = URL("http://me:secret@127.0.0.1:1")


def untrusted() -> ssl.SSLCertVerificationError:
    """Return what ssl raises for a certificate of its own making."""
    exc = ssl.SSLCertVerificationError(1, "certificate verify failed")
    exc.verify_message = "self-signed certificate"
    return exc


# ----------------------------------------------------------------------------------------------- retry, or fatal


@pytest.mark.parametrize("exc", [BuildFailError("Unexpected instId"), VaultError("in use")], ids=repr)
def test_our_own_errors_are_fatal(exc: Exception) -> None:
    with pytest.raises(type(exc)) as caught:
        reason_to_retry(exc)
    assert caught.value is exc


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (RequestError("HTTP 429, code 50011: Too Many Requests"), "HTTP 429, code 50011: Too Many Requests"),
        (socket.gaierror(-2, "Name or service not known"), "host not found"),
        (aiohttp.ClientConnectorDNSError(HOST, socket.gaierror(-2, "unknown")), "host not found"),
        (aiohttp.ClientConnectorError(HOST, ConnectionRefusedError(111, "refused")), "connection refused"),
        (aiohttp.ClientConnectorError(HOST, untrusted()), "not trusted: self-signed certificate"),
        (aiohttp.ClientConnectorError(HOST, OSError(113, "No route to host")), "OSError: [Errno 113] No route to host"),
        (aiohttp.ClientConnectorError(HOST, ConnectionResetError()), "ConnectionResetError"),
        (aiohttp.ClientProxyConnectionError(HOST, ConnectionRefusedError(111, "refused")), "connection refused"),
        (aiohttp.ServerDisconnectedError(), "Server disconnected"),
        (aiohttp.ConnectionTimeoutError(), "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
        (aiohttp.ClientPayloadError("Response payload is not completed"), "not completed"),
        (aiohttp.InvalidURL("http://["), "InvalidURL"),
        (ValueError("Port out of range 0-65535"), "ValueError: Port out of range"),
        (LookupError("unknown encoding: x"), "LookupError: unknown encoding"),
        (UnicodeError("label too long"), "UnicodeError: label too long"),
        (RuntimeError(), "RuntimeError"),
        (websockets.ConnectionClosedError(websockets.frames.Close(4004, "No data received in 30s"), None), "4004"),
        (websockets.ConnectionClosedOK(websockets.frames.Close(1000, ""), None), "1000"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (untrusted(), "its certificate is not trusted: self-signed certificate"),
        (websockets.InvalidHandshake("HTTP 503"), "InvalidHandshake: HTTP 503"),
        (ValueError("invalid redirect"), "ValueError: invalid redirect"),
        (ImportError("connecting through a SOCKS proxy requires python-socks"), "ImportError: connecting through"),
        (AttributeError("recv_messages"), "AttributeError: recv_messages"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_whatever_else_connecting_and_asking_raises_is_passing(exc: Exception, reason: str) -> None:
    assert reason in reason_to_retry(exc)


@pytest.mark.parametrize(
    "exc",
    [
        aiohttp.InvalidURL("http://me:secret@127.0.0.1:99999"),
        aiohttp.ClientResponseError(
            aiohttp.RequestInfo(PROXY, "CONNECT", CIMultiDictProxy(CIMultiDict()), PROXY), (), message="Bad status line"
        ),
        websockets.InvalidProxy("http://me:secret@127.0.0.1:99999", "port out of range"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_a_proxy_s_password_is_not_shown(exc: Exception) -> None:
    assert "127.0.0.1" in reason_to_retry(exc)
    assert "secret" not in reason_to_retry(exc)


# ----------------------------------------------------------------------------------------------- limits and addresses


def test_a_sleep_of_the_pc_does_not_bunch_requests_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that were given for the time of the sleep are not all taken at its end."""
    monkeypatch.setattr(trades_exporter, "REST_WINDOW_S", 0.3)
    limit = 5

    async def ask() -> list[float]:
        endpoint = EndpointLimit(limit)
        turns = [asyncio.ensure_future(endpoint.turn()) for _ in range(4 * limit)]
        await turns[0]
        time.sleep(1.5)  # noqa: ASYNC251 - the whole process sleeps
        return sorted(await asyncio.gather(*turns))

    taken = asyncio.run(ask())
    assert all(later - earlier > 0.29 for earlier, later in zip(taken, taken[limit:], strict=False))


def test_a_background_request_lets_others_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live repair asks while pages of history wait for their turns: it has the next turns, and no turn is lost."""
    monkeypatch.setattr(trades_exporter, "REST_WINDOW_S", 0.3)
    order: list[str] = []

    async def take(limit: EndpointLimit, name: str) -> None:
        await limit.turn(background=name == "history")
        order.append(name)

    async def ask() -> None:
        limit = EndpointLimit(2)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(take(limit, "history"))
            await asyncio.sleep(0)  # they wait
            for _ in range(2):
                tasks.create_task(take(limit, "live"))

    asyncio.run(ask())
    assert order == ["history"] * 2 + ["live"] * 2 + ["history"] * 6


def test_requests_that_fail_together_are_one_failure() -> None:
    """The pause does not grow with the number of requests that were on their way."""

    async def fail() -> list[float]:
        endpoint = EndpointLimit(20)
        sent = await asyncio.gather(*(endpoint.turn() for _ in range(20)))
        return [endpoint.failed(sent_at) for sent_at in sent]

    pauses = asyncio.run(fail())
    assert 0 < pauses[0] <= 1
    assert set(pauses[1:]) == {0.0}


class Server:
    """A web server of OKX's, on a port of this machine: counts requests and answers each with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.requests = 0
        self._answer = answer

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            self.requests += 1
            writer.write(self._answer)


def unused_url() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"429 Too Many Requests"])
def test_an_address_that_answers_with_an_error_stays(status: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trades_exporter, "delays", lambda: itertools.repeat(0.01))
    first, other = Server(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status), Server(b"")

    async def ask() -> None:
        async with first as url, other as other_url, open_session() as session:
            rest = Rest(session, [url, other_url], Outage())
            for _ in range(3):
                with pytest.raises(RequestError):
                    await rest.try_to_get("/api/v5/public/time")

    asyncio.run(ask())
    assert (first.requests, other.requests) == (3, 0)


def test_an_outage_of_both_addresses_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One condition: at most one line a minute of each kind while it lasts."""
    monkeypatch.setattr(trades_exporter, "delays", lambda: itertools.repeat(0.01))
    urls = [unused_url(), unused_url()]
    monkeypatch.setattr(trades_exporter, "REST_URLS", urls)

    async def ask() -> None:
        async with open_session() as session:
            rest = Rest(session, urls, Outage())
            for _ in range(6):
                with pytest.raises(RequestError):
                    await rest.try_to_get("/api/v5/public/time")

    with structlog.testing.capture_logs() as lines:
        asyncio.run(ask())
    assert len(lines) == 2, lines
    assert "asking" in lines[0]["event"]
    assert "Check the internet connection" in lines[1]["event"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM kills at once there")
def test_it_stops_while_dns_hangs(tmp_path: Path) -> None:
    """A thread in the system's resolver can't be cancelled, and is not waited for."""
    options = ["--vault", "Vault", "--log-file", "x.log", "--rest-url", "http://okx.invalid"]
    command = [sys.executable, "-c", HANGING_DNS, *options]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for((tmp_path / "hangs").exists, what="a lookup that hangs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
