"""The way to OKX: subscriptions, odd frames, dead connections, TLS, proxies, and what a network may do to them."""

import contextlib
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fake_okx import BTC, ETH, JUNK_FRAMES, REST_FAILURES, STRANGE_LOCATIONS, FakeOKX, Proxy
from harness import MakeExporter, MakeOKX, day_files, finish, last_stored_id, log_lines, reasons, start_with_a_trade

SOON = {"BACKOFF_S": 0.05, "STEADY_S": 0.0}

# -------------------------------------------------------------------------------------------------- subscriptions


@pytest.mark.parametrize("code", ["60008", "60018", "64002"])
def test_a_subscription_that_is_refused_for_good_stops_it(okx: FakeOKX, exporter: MakeExporter, code: str) -> None:
    okx.faults.reject_code = code
    one = exporter(okx).start()
    assert one.wait() == 3
    assert re.search(f"BUILD_FAIL: Subscription rejected: .*{code}.*as this test asked for", one.log)


def test_a_subscription_that_is_refused_for_now_is_tried_again(okx: FakeOKX, exporter: MakeExporter) -> None:
    okx.faults.reject_code, okx.faults.reject_left = "60014", 1
    one = exporter(okx).start_capture()
    assert "60014" in one.log
    assert okx.connects == 2


def test_a_refusal_after_a_reconnect_is_believed_only_when_it_lasts(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx, settings={"REJECTED_S": 1.0, "BACKOFF_S": 0.5}).start_capture()
    okx.faults.reject_code, okx.faults.reject_left = "60018", 1
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    okx.faults.reject_left = 1000
    okx.close()
    assert one.wait() == 3
    assert "BUILD_FAIL: Subscription rejected" in one.log


def test_refusals_with_a_long_silence_between_are_not_without_a_break(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The PC slept, or was offline: two refusals are no ten minutes of them."""
    settings = {"REJECTED_S": 0.5, "REJECTIONS_APART_S": 1.0, "BACKOFF_S": 0.8}
    one = exporter(okx, settings=settings).start_capture()
    okx.faults.reject_code, okx.faults.reject_left = "60018", 4  # both instruments, twice
    okx.faults.ws_script.extend(["", "503", "503", ""])
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    assert okx.connects == 4
    assert one.stop() == 0


def test_a_missing_ack_is_not_accepted(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Trades of one instrument alone would be half a truth: it reconnects until both are there."""
    okx.faults.no_ack = {ETH}
    one = exporter(okx, settings={"SUBSCRIBE_S": 1.0}).start()
    one.wait_for_log(f"no ack within 1s for {ETH}")
    okx.faults.no_ack = set()
    one.wait_for_log(f"Subscribed to trades instId={ETH}")
    finish(one)


# --------------------------------------------------------------------------------------------------------- frames


ODD_FRAMES = {
    **{name: payload for name, (payload, opcode) in JUNK_FRAMES.items() if opcode == 1},
    "1 MB of rows": b'{"arg":{"channel":"tickers"},"data":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "nested objects": b'{"data":' * 5_000 + b"0" + b"}" * 5_000,
    "ack of a list": b'{"event":"subscribe","arg":{"channel":"trades","instId":["x"]}}',
    "ack without arg": b'{"event":"subscribe","arg":null}',
    "ack of a path": b'{"event":"subscribe","arg":{"channel":"trades","instId":"../../x"}}',
    "error with a list": b'{"event":"error","code":[],"msg":{}}',
    "event that is a list": b'{"event":[],"code":[]}',
    "notice of a list": b'{"event":"notice","code":[]}',
    "data without arg": b'{"data":[]}',
    "arg that is a list": b'{"arg":[],"data":[]}',
    "channel that is a list": b'{"arg":{"channel":[]},"data":[]}',
    "null": b"null",
    "a surrogate": rb'{"event":"\ud800"}',
    "a number without end": b"9" * 100_000,
    "control characters": b'{"event":"\\u001b[31m\\r\\n2026-11-21 [info] Stats: forged"}',
}


def test_a_frame_that_is_no_trade_is_a_warning_and_no_more(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The connection stays, what comes behind it is stored, and the log shows the frame."""
    one = exporter(okx, settings={"LOG_AGAIN_S": 0.0}).start_capture()
    okx.send_junk("binary")
    for number, (name, payload) in enumerate(ODD_FRAMES.items(), start=2):
        okx.send_raw(payload)
        [push] = okx.trade()
        one.wait_until(lambda push=push: last_stored_id(one.vault) == push.last_id, what=name)  # type: ignore[misc]
        assert one.log.count("[warning") == number, f"no warning for {name}"
    assert max(map(len, one.log.splitlines())) < 400
    assert "\x1b[31m" not in one.log
    assert not [line for line in one.log.splitlines() if line.startswith("2026-11-21")]
    assert okx.connects == 1
    finish(one)


def test_odd_frames_do_not_fill_the_log(okx: FakeOKX, exporter: MakeExporter) -> None:
    """One line a minute and kind."""
    one = exporter(okx).start_capture()
    lines = len(one.log.splitlines())
    for payload in [*ODD_FRAMES.values()] * 3:
        okx.send_raw(payload)
        okx.trade()
    one.wait_until_stored()
    assert len(one.log.splitlines()) - lines <= 8, one.log
    finish(one)


def test_a_senseless_error_instead_of_an_ack_is_a_reason_to_reconnect(okx: FakeOKX, exporter: MakeExporter) -> None:
    okx.faults.no_ack = {BTC}
    one = exporter(okx).start()
    one.wait_for_log("Subscribed to trades")
    okx.faults.no_ack = set()
    okx.send_raw(ODD_FRAMES["error with a list"])
    one.wait_for_log("Subscribed to trades", times=3)
    assert okx.connects == 2


def test_a_message_beyond_all_bounds_costs_the_connection_and_no_trade(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = start_with_a_trade(exporter(okx))
    okx.send_raw(b"x" * 5_000_000, fragments=500)
    okx.trade()
    one.wait_for_log("Subscribed to trades", times=4)
    assert okx.connects == 2
    finish(one)


# ------------------------------------------------------------------------------------------------ the connection


@pytest.mark.parametrize("code", [1000, 1001, 1006, 4004])
def test_a_closed_connection_is_opened_again(make_okx: MakeOKX, exporter: MakeExporter, code: int) -> None:
    """And what was traded meanwhile is fetched."""
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    okx.close(code, "as this test asked for")
    one.wait_for_log("Subscribed to trades", times=4)
    assert re.search(r"\[warning *\] Disconnected from OKX \(.+\)\. Next try in (0\.\d|1\.0) s", one.log)
    finish(one)


def test_attempts_to_connect_may_fail_in_every_way(okx: FakeOKX, exporter: MakeExporter) -> None:
    """No answer at all, a 503, HTML, cut off, closed, sent to strange places; then it works."""
    strange = [f"redirect {location}" for location in STRANGE_LOCATIONS]
    okx.faults.ws_script.extend(["stall", "503", "html", "reset", "close", *strange])
    one = exporter(okx, settings={"CONNECT_S": 0.5, "BACKOFF_S": 0.5}).start_capture()
    assert not okx.faults.ws_script
    finish(one)


def test_requests_may_be_answered_by_anything(okx: FakeOKX, exporter: MakeExporter) -> None:
    """They are asked again: too many, busy, HTML, nothing, half an answer, a strange redirect, a dead connection."""
    one = start_with_a_trade(exporter(okx, settings={**SOON, "REST_TIMEOUT_S": 0.5}))
    okx.faults.rest = {"reset": 1.0}
    okx.trade(count=2, lost=True)
    okx.trade()
    for kind in (*(f"redirect {location}" for location in STRANGE_LOCATIONS), *REST_FAILURES, "hang", "truncated"):
        okx.faults.rest = {kind: 1.0}
        asked = len(okx.requests)
        one.wait_until(lambda asked=asked: len(okx.requests) > asked + 1, what=kind)  # type: ignore[misc]
    assert "Gap repaired" not in one.log
    okx.faults.rest = {}
    one.wait_for_log("Gap repaired")
    finish(one)


def test_a_quiet_connection_is_pinged_and_kept(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """OKX cuts it otherwise."""
    okx = make_okx(idle_s=3.0)
    one = exporter(okx, settings={"PING_AFTER_S": 1.0, "PONG_S": 2.0}).start_capture()
    one.wait_until(lambda: list(okx.received).count("ping") >= 2, what="two pings")
    assert okx.connects == 1
    assert one.stop() == 0


def test_a_dead_subscription_of_one_instrument_is_found_and_mended(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    okx = make_okx(rate=50)
    one = exporter(okx, settings={"INSTRUMENT_SILENT_S": 0.5}).start_capture()
    one.wait_until(lambda: day_files(one.vault, ETH), what="a line")
    okx.kill_subscription(ETH)
    one.wait_for_log(f"no trade of {ETH}")
    one.wait_for_log("Subscribed to trades", times=4)
    finish(one)


def test_a_quiet_instrument_is_no_dead_subscription(okx: FakeOKX, exporter: MakeExporter) -> None:
    """REST is asked, has nothing newer, and the connection stays."""
    one = start_with_a_trade(exporter(okx, settings={"INSTRUMENT_SILENT_S": 0.5}))
    one.wait_until(lambda: len(okx.requests_to("market/trades")) >= 2, what="REST asked for each")
    assert okx.connects == 1
    finish(one)


@pytest.mark.parametrize("code", [1001, 1006])
def test_an_announced_upgrade_is_a_reconnect(make_okx: MakeOKX, exporter: MakeExporter, code: int) -> None:
    """At once, before OKX closes; and if OKX is quicker, that loses nothing either."""
    okx = make_okx(rate=100)
    one = exporter(okx).start_capture()
    [old] = okx.connections
    okx.notice(close_after_s=0.0 if code == 1006 else 60.0, code=code)
    one.wait_for_log("Subscribed to trades", times=4)
    assert old not in okx.connections
    finish(one)
    assert reasons(one.vault) == []


def test_upgrade_after_upgrade_is_no_storm_of_connections(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """A notice within a minute of the last is ignored, and when OKX closes, that is the usual reconnect."""
    okx = make_okx(rate=50)
    okx.faults.always_notice = True
    one = exporter(okx).start()
    one.wait_for_log("OKX announced an upgrade")
    one.wait_for_log("Subscribed to trades", times=3)
    last = okx.trade()[-1].last_id
    one.wait_until(lambda: last_stored_id(one.vault) >= last, what="trades behind the second notice")
    assert okx.connects == 2
    okx.close(1001)
    one.wait_until(lambda: okx.connects == 3, what="the usual reconnect")
    finish(one)


# -------------------------------------------------------------------------------------------------- TLS and proxies


def test_over_tls_all_is_the_same(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """As with the real OKX: bursts, lost pushes, silent and cut connections, an upgrade, and `kill -9`."""
    okx = make_okx(rate=200, tls=True)
    one = exporter(okx, settings={"PING_AFTER_S": 0.5, "PONG_S": 0.5, "BACKOFF_S": 0.5}).start_capture()
    okx.trade(n=1000)
    okx.trade(n=50, lost=True)
    one.wait_for_log("Gap repaired")
    okx.half_open()
    one.wait_for_log("nothing heard for")
    one.wait_for_log("Subscribed to trades", times=4)
    okx.notice(60.0)
    one.wait_for_log("Subscribed to trades", times=6)
    okx.close()
    one.wait_for_log("Subscribed to trades", times=8)
    one.kill()
    okx.trade(ETH, n=500)
    one.start_capture()
    finish(one)
    assert reasons(one.vault) == reasons(one.vault, ETH) == []


@pytest.mark.parametrize("option", ["--ws-url", "--rest-url"])
def test_a_certificate_that_nobody_signed_is_refused(
    make_okx: MakeOKX, okx: FakeOKX, exporter: MakeExporter, option: str
) -> None:
    """It says why, and sends nothing."""
    untrusted = make_okx(tls=True)
    url = untrusted.ws_url if option == "--ws-url" else untrusted.rest_url
    one = exporter(okx, args=[option, url], settings=SOON).start()
    one.wait_for_log("127.0.0.1: its certificate is not trusted")
    assert one.stop() == 0
    assert untrusted.connects == len(untrusted.requests) == 0


def test_a_proxy_that_does_anything_is_no_reason_to_give_up(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """It refuses, says nonsense, closes, answers in plain text, or shows a certificate that nobody trusts."""
    okx = make_okx(tls=True)
    with Proxy() as proxy:
        one = exporter(okx, settings={**SOON, "CONNECT_S": 3.0}, env=through(proxy.url))

        def fail_in_all_ways() -> None:
            for kind in Proxy.KINDS[1:]:
                proxy.kind = kind
                used = len(proxy.targets)
                one.wait_until(lambda: len(proxy.targets) > used + 2, what=kind)  # noqa: B023
            proxy.kind = "works"

        proxy.kind = "refuses"
        one.start()
        fail_in_all_ways()  # for REST
        one.wait_for_log("Subscribed to trades", times=2)
        proxy.kind = "refuses"
        okx.close()
        fail_in_all_ways()  # for the WebSocket
        one.wait_for_log("Subscribed to trades", times=4)
        assert set(proxy.targets) == {f"127.0.0.1:{okx.port}"}
        finish(one)
    assert len(one.log.splitlines()) < 30


def through(proxy: str) -> dict[str, str]:
    """Return the environment in which this proxy is the system's, also for addresses of this machine."""
    return {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:1", "https://127.0.0.1:1", "http://"])
def test_a_proxy_of_another_kind_is_named_and_not_used(make_okx: MakeOKX, exporter: MakeExporter, proxy: str) -> None:
    """Neither for REST nor for the WebSocket; which is said once."""
    one = start_with_a_trade(exporter(make_okx(tls=True), settings={"LOG_AGAIN_S": 0.0}, env=through(proxy)))
    one.okx.trade(count=2, lost=True)
    finish(one)
    [line] = log_lines(one, "The system's proxy can't be used")
    assert "[warning" in line
    assert proxy.partition(":")[0] in line
    assert "secret" not in one.log


def test_a_proxy_without_a_scheme_is_an_http_proxy(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """As curl takes it; REST and WebSocket go through it."""
    okx = make_okx(tls=True)
    with Proxy() as proxy:
        one = start_with_a_trade(exporter(okx, env=through(proxy.url.removeprefix("http://"))))
        finish(one)
        assert len(proxy.targets) > len(okx.markets)
    assert okx.connects == 1


@pytest.mark.parametrize("kind", ["nobody listens", "refuses"])
def test_a_proxy_that_refuses_is_named(
    make_okx: MakeOKX, okx: FakeOKX, exporter: MakeExporter, kind: str, tmp_path: Path
) -> None:
    """For REST, and, where metadata is saved, for the WebSocket."""
    start_with_a_trade(exporter(okx, folder=tmp_path / "one")).stop()
    with Proxy("refuses") as proxy:
        address = proxy.url.removeprefix("http://") if kind == "refuses" else "127.0.0.1:1"
        reason = "HTTP 502" if kind == "refuses" else "connection refused"
        env = through(f"http://me:secret@{address}")
        settings = {**SOON, "METADATA_S": 0.1}
        one = exporter(make_okx(tls=True), folder=tmp_path / "one", settings=settings, env=env).start()
        for begin in ("Can't reach OKX", "Not connected to OKX"):
            one.wait_for_log(f"{begin} (proxy {address} for 127.0.0.1: ")
        for begin in ("Can't reach OKX", "Not connected to OKX"):
            line = log_lines(one, begin)[0]
            assert reason in line
        assert one.stop() == 0
    assert "secret" not in one.log


class Refusing(BaseHTTPRequestHandler):
    """Refuses each request, sends a cookie along, and notes what it was told."""

    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        """Answer 503."""
        self.seen.append(dict(self.headers))
        self.send_response(503)
        self.send_header("Set-Cookie", "crumb=1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_passwords_and_cookies_are_not_sent(
    okx: FakeOKX, exporter: MakeExporter, tmp_path: Path, encoding: str
) -> None:
    """A ~/.netrc is nobody's business here, also where it can't be read."""
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("machine 127.0.0.1 login me password secret\n", encoding)
    handler = type("Handler", (Refusing,), {"seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        env = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
        url = f"http://127.0.0.1:{server.server_port}"
        one = exporter(okx, args=["--rest-url", url], settings=SOON, env=env).start()
        one.wait_until(lambda: len(handler.seen) >= 4, what="some requests")  # type: ignore[attr-defined]
        assert one.stop() == 0
        server.shutdown()
    sent = {name.lower() for headers in handler.seen for name in headers}  # type: ignore[attr-defined]
    assert "host" in sent
    assert not sent & {"authorization", "cookie"}


def test_a_key_log_that_can_not_be_written_is_no_reason_not_to_start(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Virus scanners set SSLKEYLOGFILE for all programs."""
    one = exporter(make_okx(tls=True), env={"SSLKEYLOGFILE": "/no/such/folder/keys"})
    start_with_a_trade(one)
    finish(one)


# ------------------------------------------------------------------------------------------------------ addresses


def test_the_second_endpoint_of_rest_is_asked_where_the_first_can_not_be_reached(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    """Which is said once; repairs go the same way."""
    one = exporter(okx, rest=False, settings={"REST_URLS": ["http://127.0.0.1:1", okx.rest_url], **SOON})
    start_with_a_trade(one)
    okx.trade(count=2, lost=True)
    finish(one)
    [line] = log_lines(one, "Can't reach http://127.0.0.1:1")
    assert line.endswith(f"(connection refused): asking {okx.rest_url}")


def test_with_rest_url_only_that_one_is_asked(okx: FakeOKX, exporter: MakeExporter) -> None:
    args = ["--rest-url", "http://127.0.0.1:1"]
    one = exporter(okx, args=args, settings={"REST_URLS": [okx.rest_url] * 2, "LOG_AGAIN_S": 0.0, **SOON}).start()
    one.wait_for_log("Can't reach OKX (127.0.0.1: connection refused)", times=5)
    assert not okx.requests
    assert one.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address, or a full backlog refuses")
def test_a_first_address_that_is_dead_keeps_nobody_from_the_next(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Broken IPv6 is the usual case."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.2", okx.port))
        server.listen(0)
        for _ in range(2):  # now its backlog is full, and it does not answer any more
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        urls = [url.replace("127.0.0.1", "localhost") for url in (okx.ws_url, okx.rest_url)]
        settings = {"FIRST_ADDRESS": "127.0.0.2", "CONNECT_S": 5.0}
        one = exporter(okx, args=["--ws-url", urls[0], "--rest-url", urls[1]], settings=settings)
        start_with_a_trade(one)
        finish(one)
