"""The exporter, end to end: what it stores, what it says, and when and how it stops."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_okx import ABSENT, BTC, ETH, JUNK_FRAMES, FakeOKX, Push, push_payload, push_row, utc_ms
from harness import ROOT, Exporter, assert_vault_equals_ledger, day_files, last_stored_id, read_gaps, read_vault
from trades_exporter import Desk, Instrument, Recorder, Rest, Vault, parse_trade, rest_session

MakeOKX = Callable[..., FakeOKX]
MakeExporter = Callable[..., Exporter]
NOBODY = ["--ws-url", "ws://127.0.0.1:1/ws/v5/public", "--rest-url", "http://127.0.0.1:1"]
TRADE_FIELDS = ("ts", "instId", "tradeId", "px", "sz", "side")
SIGNALS = [signal.SIGTERM]
if sys.platform != "win32":
    SIGNALS += [signal.SIGINT, signal.SIGHUP]


def stored_ids(exporter: Exporter, inst_id: str = BTC) -> list[int]:
    """Return the stored trade ids, in the order of the files."""
    return [int(record["trade_id"]) for record in read_vault(exporter.vault, inst_id)]


# ------------------------------------------------------------------------------------------------ what it stores


def test_two_busy_instruments_are_stored_across_midnight_as_they_were_traded(
    make_okx: MakeOKX, exporter: MakeExporter
) -> None:
    """200 pushes a second and instrument: the Vault equals the ledger, without repair, and the log says how it went."""
    okx = make_okx(rate=200, start="2026-11-21T23:59:57Z")
    one = exporter(okx, settings={"STATS_S": 1.0}).start_capture()
    midnight = utc_ms("2026-11-22T00:00:02Z")
    one.wait_until(lambda: okx.now_ms() > midnight, what="it is after midnight")
    okx.settle()
    one.wait_until_stored()
    assert one.stop() == 0
    lines = 0
    for inst_id in (BTC, ETH):
        verdict = assert_vault_equals_ledger(one.vault, okx, inst_id)
        assert verdict.missing == 0
        assert verdict.trades > 1000
        assert [path.name for path in day_files(one.vault, inst_id)] == ["2026-11-21.jsonl", "2026-11-22.jsonl"]
        assert re.search(rf"Metadata fetched and saved .*instId={inst_id}", one.log)
        assert re.search(rf"Subscribed to trades .*instId={inst_id}", one.log)
        lines += verdict.lines
    stats = re.findall(r"Stats: (\d+) written, (\d+) skipped .*repaired=(\d+) waiting=(\d+)", one.log)
    assert len(stats) >= 3
    assert stats[-1] == (str(lines), stats[-1][1], "0", "0")
    assert "Gap found" not in one.log


def test_a_record_is_the_line_that_the_contract_shows(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Byte for byte: keys, order, OKX's own characters, compact, one newline."""
    okx = make_okx(first_id=1234567890)
    one = exporter(okx).start_capture()
    okx.trade(count=1, px="101250.5", sz="45", side="buy", ts=utc_ms("2025-12-14T21:34:56.123Z"))
    one.wait_until(lambda: stored_ids(one), what="the trade is stored")
    assert (one.vault / "raw/okx/trades_perps/BTC-USDT-SWAP/2025-12-14.jsonl").read_bytes() == (
        b'{"timestamp_utc":"2025-12-14T21:34:56.123Z","exchange":"okx","market":"perp","instId":"BTC-USDT-SWAP",'
        b'"symbol_canon":"BTC/USDT","trade_id":"1234567890","side":"buy","price":"101250.5","qty_contracts":"45",'
        b'"ctVal":"0.01","ctMult":"1","ctType":"linear"}\n'
    )


def test_a_trade_of_last_night_that_comes_after_midnight_goes_to_its_own_day(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    one = exporter(okx).start_capture()
    for stamp in ("2026-11-21T23:59:59.800Z", "2026-11-22T00:00:00.050Z", "2026-11-21T23:59:59.900Z"):
        okx.trade(count=1, ts=utc_ms(stamp))
    okx.trade(count=1, ts=utc_ms("2026-11-22T00:00:00.100Z"))
    one.wait_until(lambda: len(stored_ids(one)) == 4, what="four trades stored")
    first = okx.ledger[BTC][0].trade_id
    by_day = {path.name[:10]: re.findall(r'"trade_id":"(\d+)"', path.read_text()) for path in day_files(one.vault, BTC)}
    assert by_day == {"2026-11-21": [str(first), str(first + 2)], "2026-11-22": [str(first + 1), str(first + 3)]}


def test_a_trade_can_be_read_from_the_file_at_once(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It does not wait for an fsync, for other trades or for the end."""
    one = exporter(okx, settings={"FSYNC_S": 3600.0}).start_capture()
    for _ in range(5):
        [push] = okx.trade()
        one.wait_until(lambda push=push: last_stored_id(one.vault) == push.last_id, seconds=5)  # type: ignore[misc]


def test_a_restart_on_the_same_day_appends(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """What was stored stays as it is, byte for byte, and goes on without a gap and without a double."""
    okx = make_okx(rate=50)
    one = exporter(okx).start_capture()
    one.wait_until(lambda: len(stored_ids(one)) > 20, what="20 lines")
    assert one.stop() == 0
    before = {path: path.read_bytes() for inst_id in (BTC, ETH) for path in day_files(one.vault, inst_id)}
    one.start_capture()
    okx.settle()
    one.wait_until_stored()
    assert one.stop() == 0
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
        assert path.stat().st_size > len(content)
    for inst_id in (BTC, ETH):
        assert assert_vault_equals_ledger(one.vault, okx, inst_id).missing == 0


def test_what_okx_pushes_again_after_a_subscription_is_not_written_twice(okx: FakeOKX, exporter: MakeExporter) -> None:
    """After a reconnect, and after a restart."""
    one = exporter(okx).start_capture()
    okx.trade(n=3)
    one.wait_until(lambda: len(stored_ids(one)) == 3, what="three lines")
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one)) == 4, what="four lines")
    assert one.stop() == 0
    assert "Stats: 4 written, 1 skipped" in one.log
    one.start_capture()
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one)) == 5, what="five lines")
    assert one.stop() == 0
    assert "Stats: 1 written, 1 skipped" in one.log_since_start
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0


# ------------------------------------------------------------------------------------------------------- metadata


def test_metadata_is_saved_whole_and_readable(okx: FakeOKX, exporter: MakeExporter) -> None:
    """Every field as OKX sent it, in its order, over several lines, and nothing half-written beside it."""
    one = exporter(okx).start_capture()
    assert one.stop() == 0
    folder = one.vault / "meta/okx/instruments"
    assert sorted(path.name for path in folder.iterdir()) == [f"{BTC}.json", f"{ETH}.json"]
    for inst_id, row in okx.instruments.items():
        text = (folder / f"{inst_id}.json").read_text("utf-8")
        assert list(json.loads(text).items()) == list(row.items())
        assert len(text.splitlines()) > len(row)
    assert sorted(okx.requests_to("/public/instruments"), key=lambda query: query["instId"]) == [
        {"instType": "SWAP", "instId": BTC},
        {"instType": "SWAP", "instId": ETH},
    ]


def test_it_starts_from_saved_metadata_while_rest_is_down(okx: FakeOKX, exporter: MakeExporter) -> None:
    """It says so, captures, and keeps asking."""
    one = exporter(okx, settings={"METADATA_S": 0.2}).start_capture()
    okx.trade()
    one.wait_until(lambda: stored_ids(one), what="a line")
    assert one.stop() == 0
    okx.faults.rest = {"503": 1.0}
    one.start_capture()
    assert "starting with saved metadata" in one.log_since_start
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one)) == 2, what="capture goes on")
    okx.faults.rest = {}
    one.wait_for_log("Metadata fetched and saved", times=2)


def test_it_waits_for_rest_where_the_saved_metadata_is_of_no_use(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx, settings={"METADATA_S": 0.1})
    saved = one.vault / "meta/okx/instruments"
    saved.mkdir(parents=True)
    (saved / f"{BTC}.json").write_text(json.dumps(okx.instruments[BTC] | {"ctVal": ""}))
    (saved / f"{ETH}.json").write_text(json.dumps(okx.instruments[ETH]))
    okx.faults.rest = {"html": 1.0}
    one.start()
    one.wait_for_log("REST gave no answer of use", times=2)
    assert not okx.connects
    okx.faults.rest = {}
    one.wait_for_log("Subscribed to trades", times=2)


@pytest.mark.parametrize("value", [ABSENT, ""], ids=["missing", "empty"])
@pytest.mark.parametrize("fields", [("ctVal",), ("ctMult",), ("ctType",), ("ctVal", "ctType")], ids=",".join)
def test_metadata_without_a_required_field_stops_it(
    okx: FakeOKX, exporter: MakeExporter, fields: tuple[str, ...], value: object
) -> None:
    row = {**okx.instruments[ETH], **dict.fromkeys(fields, value)}
    okx.instruments[ETH] = {key: field for key, field in row.items() if field is not ABSENT}
    one = exporter(okx).start()
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: Missing required metadata fields.*", one.log)
    assert message.endswith(f": {', '.join(fields)} of {ETH}")
    assert message in one.console
    assert not okx.connects


def test_an_instrument_that_okx_does_not_know_stops_it(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    one = exporter(make_okx(instruments=(BTC,))).start()
    assert one.wait() == 3
    assert f"BUILD_FAIL: Missing required metadata fields: ctVal, ctMult, ctType of {ETH}" in one.log


# ----------------------------------------------------------------------------------------------------- validation


def push_three_rows_with_a_bad_one_between(okx: FakeOKX, fields: dict[str, object]) -> list[Push]:
    """Push one frame of three rows whose second has these fields, and return the three pushes."""
    pushes = okx.trade(n=3, lost=True)
    rows = [push_row(BTC, push) for push in pushes]
    rows[1] = {key: value for key, value in (rows[1] | fields).items() if value is not ABSENT}
    okx.send_raw(push_payload(BTC, rows))
    return pushes


@pytest.mark.parametrize("name", TRADE_FIELDS)
def test_a_trade_without_a_required_field_stops_it_after_the_good_ones_before(
    okx: FakeOKX, exporter: MakeExporter, name: str
) -> None:
    """The message names the field and shows the row; the row before is stored, the one behind is not."""
    one = exporter(okx).start_capture()
    first, bad, _ = push_three_rows_with_a_bad_one_between(okx, {name: ABSENT})
    assert one.wait() == 3
    [message] = re.findall("BUILD_FAIL: Missing required trade fields.*", one.log)
    assert message.startswith(f"BUILD_FAIL: Missing required trade fields: {name} in ")
    assert (str(bad.last_id) if name != "tradeId" else bad.px) in message
    assert assert_vault_equals_ledger(one.vault, okx, upto_id=first.last_id).missing == 0
    assert stored_ids(one) == [first.last_id]
    assert "Traceback" not in one.log
    assert "Stats: 1 written" in one.log


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("px", 83725.9),
        ("px", "1e5"),
        ("px", "0.0"),
        ("sz", "-1"),
        ("sz", "١"),  # noqa: RUF001 # a digit, but not ASCII
        ("ts", 1791369350776),
        ("ts", "179136935077"),
        ("tradeId", "12345678901234567890"),
        ("tradeId", None),
        ("side", "Buy"),
        ("instId", ["BTC-USDT-SWAP"]),
    ],
)
def test_a_field_of_wrong_type_or_form_stops_it(okx: FakeOKX, exporter: MakeExporter, name: str, value: object) -> None:
    """The message names the field and shows it; the good row before is stored, the bad one is not."""
    one = exporter(okx).start_capture()
    first, *_ = push_three_rows_with_a_bad_one_between(okx, {name: value})
    assert one.wait() == 3
    assert f"BUILD_FAIL: Invalid trade field: {name}=" in one.log
    assert stored_ids(one) == [first.last_id]
    assert "Traceback" not in one.log


def test_a_trade_of_another_instrument_stops_it(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx).start_capture()
    first, *_ = push_three_rows_with_a_bad_one_between(okx, {"instId": "DOGE-USDT-SWAP"})
    assert one.wait() == 3
    assert "BUILD_FAIL: Unexpected instId: DOGE-USDT-SWAP" in one.log
    assert stored_ids(one) == [first.last_id]
    assert [path.name for path in (one.vault / "raw/okx/trades_perps").iterdir()] == [BTC]


def test_a_good_trade_has_unknown_extra_fields(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx).start_capture()
    okx.trade(fields={"brandNew": {"nested": [1, 2]}, "seqId": "now a string"})
    one.wait_until(lambda: stored_ids(one), what="stored all the same")
    assert one.stop() == 0


def test_a_frame_that_is_no_trade_is_a_warning_and_no_more(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The connection stays, what comes behind it is stored, and the log shows the frame."""
    one = exporter(okx, settings={"SAY_AGAIN_S": 0.0}).start_capture()
    for number, name in enumerate(JUNK_FRAMES, start=1):
        okx.send_junk(name)
        [push] = okx.trade()
        one.wait_until(lambda push=push: last_stored_id(one.vault) == push.last_id, what=name)  # type: ignore[misc]
        assert one.log.count("[warning") == number + 1, f"no warning for {name}"  # the first one: where it starts
    assert okx.connects == 1
    assert one.stop() == 0
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0


def test_a_message_in_fragments_is_taken_whole(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx).start_capture()
    [push] = okx.trade(lost=True)
    okx.send_raw(push_payload(BTC, [push_row(BTC, push)]), fragments=3)
    one.wait_until(lambda: stored_ids(one) == [push.last_id], what="stored")


# -------------------------------------------------------------------------------------------------- subscriptions


@pytest.mark.parametrize("code", ["60008", "60012", "60013", "60018", "60019", "64001", "64002"])
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
    one = exporter(okx, settings={"REJECTED_S": 1.0, "STEADY_S": 0.0}).start_capture()
    okx.faults.reject_code, okx.faults.reject_left = "60018", 1
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    okx.faults.reject_left = 1000
    okx.close()
    assert one.wait() == 3
    assert "BUILD_FAIL: Subscription rejected" in one.log


def test_refusals_with_a_long_silence_between_are_not_on_end(okx: FakeOKX, exporter: MakeExporter) -> None:
    """The PC slept, or was offline: two refusals are no ten minutes of them."""
    one = exporter(okx, settings={"REJECTED_S": 0.5, "ON_END_S": 1.0, "STEADY_S": 0.0}).start_capture()
    okx.faults.reject_code, okx.faults.reject_left = "60018", 4  # both instruments, twice
    okx.faults.ws_script.extend(["", "503", "503", ""])
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    assert one.log.count("subscription failed") == 2
    assert one.stop() == 0


# ------------------------------------------------------------------------------------------------- start and stop


@pytest.mark.skipif(sys.platform == "win32", reason="test_windows.py has Windows' own ways")
@pytest.mark.parametrize("sig", SIGNALS, ids=lambda sig: sig.name)
def test_a_signal_ends_it_cleanly_with_everything_accepted_on_disk(
    okx: FakeOKX, exporter: MakeExporter, sig: signal.Signals
) -> None:
    """In the midst of a flow, and with no fsync before the end."""
    one = exporter(okx, settings={"FSYNC_S": 3600.0, "STATS_S": 0.05}).start_capture()
    last = okx.trade(n=20)[-1].last_id
    one.wait_for_log(f"last={last} ")
    assert one.stop(sig) == 0
    assert one.log.rstrip().splitlines()[-2:][0].count("Stats: 20 written")
    assert assert_vault_equals_ledger(one.vault, okx).missing == 0


def test_closing_writes_what_was_still_gathered(tmp_path: Path) -> None:
    """Whatever ends the exporter, and however soon after a push."""
    vault = Vault(tmp_path)
    vault.lock()

    async def take_and_close() -> None:
        async with rest_session() as session, asyncio.TaskGroup() as tasks:
            desk = Desk(tasks.create_task, 1, 0, lambda *_: None)
            recorder = Recorder(Instrument(BTC, ("0.01", "1", "linear"), "live"), vault, Rest(session, NOBODY[3]), desk)
            for trade_id in range(1, 11):
                push = Push(trade_id, trade_id, "1", "1", "buy", 1767225600000, "0", 0)
                recorder.take(parse_trade(push_row(BTC, push)))
            recorder.close()
            assert len(day_files(tmp_path, BTC)[0].read_bytes().splitlines()) == 10

    asyncio.run(take_and_close())


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


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM kills at once there")
def test_it_can_be_stopped_from_its_first_line_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPS_ITSELF, *NOBODY, "--vault", str(tmp_path / "Vault")]
    done = subprocess.run([*command, "--log-file", str(tmp_path / "x.log")], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"signal=SIGTERM" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell to close it")
def test_it_needs_no_console(okx: FakeOKX, exporter: MakeExporter) -> None:
    """As with pythonw; what it has to say stands in the log."""
    one = exporter(okx)
    one.process = subprocess.Popen(["/bin/sh", "-c", f"exec {shlex.join(one.command())} >&- 2>&-"])
    one.wait_for_log("Subscribed to trades", times=2)
    okx.trade()
    one.wait_until(lambda: stored_ids(one), what="a line")
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


def test_it_says_what_it_cannot_reach_and_keeps_trying(okx: FakeOKX, exporter: MakeExporter) -> None:
    """What it tried, why that failed and when it tries again; and it can be stopped meanwhile."""
    one = exporter(okx, args=NOBODY).start()
    one.wait_for_log("REST gave no answer of use", times=2)
    [line, *_] = [line for line in one.log.splitlines() if "REST gave no answer of use" in line]
    assert re.search(r"http://127\.0\.0\.1:1/api/v5/public/instruments: .*again_in=(0\.\d|1\.0)s", line)
    assert one.stop() == 0
    one = exporter(okx, args=NOBODY[:2]).start()
    one.wait_for_log("Not connected to OKX", times=2)
    [line, *_] = [line for line in one.log.splitlines() if "Not connected to OKX" in line]
    assert re.search(r"ws://127\.0\.0\.1:1/ws/v5/public .*can't connect: .*again_in=(0\.\d|1\.0)s", line)
    assert one.stop() == 0


def test_it_stops_in_the_midst_of_a_backfill(okx: FakeOKX, exporter: MakeExporter) -> None:
    """What has been fetched so far is a gapless prefix, and the next start goes on behind it."""
    one = exporter(okx, settings={"PROGRESS_S": 0.5}).start_capture()
    first = okx.trade()[-1].last_id
    one.wait_until(lambda: stored_ids(one), what="a line")
    okx.prefill(BTC, 20_000, okx.now_ms(), okx.now_ms() + 1)
    okx.faults.rest_latency_s = 0.3
    okx.trade()
    one.wait_for_log(f"Backfill {BTC}")
    assert one.stop() == 0
    assert "Gap repaired" not in one.log
    reached = last_stored_id(one.vault)
    assert first < reached < okx.ledger[BTC][-2].trade_id
    assert assert_vault_equals_ledger(one.vault, okx, upto_id=reached).missing == 0
    assert [gap["reason"] for gap in read_gaps(one.vault)] == ["start"]


def test_the_log_is_for_people(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Each line begins with UTC time and level; no JSON, no traces; the console shows the same, plain in a pipe."""
    one = exporter(make_okx(rate=50)).start_capture()
    one.okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    assert one.stop() == 0
    for line in one.log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z \[(info|warning) *\] [A-Za-z_]+", line), line
    assert [line.rstrip() for line in one.console.splitlines()] == [line.rstrip() for line in one.log.splitlines()]


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "args",
    [
        ["--nonsense"],
        ["--backfill-hours", "soon"],
        ["--backfill-hours", "-1"],
        ["--audit", "2026-02-30"],
        ["--ws-url", "http://127.0.0.1/"],
        ["--ws-url", "ws://127.0.0.1:99999/"],
        ["--ws-url", "wss://.okx.com/"],
        ["--rest-url", "http://[::1"],
        ["--vault", ""],
        ["--verify", "--audit"],
        ["an argument too many"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(okx: FakeOKX, exporter: MakeExporter, args: list[str]) -> None:
    one = exporter(okx)
    ended = one.run(*args)
    assert ended.returncode == 2
    assert "usage: trades_exporter.py" in ended.stderr
    assert not one.vault.exists()


def test_version_and_help_say_what_they_should(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    version = one.run("--version")
    assert version.returncode == 0
    assert re.fullmatch(r"trades_exporter \d+\.\d+\.\d+\n", version.stdout)
    usage = one.run("--help")
    assert usage.returncode == 0
    for option in ("verify", "audit", "vault", "log-file", "ws-url", "rest-url", "backfill-hours", "version", "help"):
        assert f"--{option}" in usage.stdout
