"""The exporter, end to end: what it stores, what it refuses, and what its command line says."""

import json
import re
from pathlib import Path

import pytest

from fake_okx import ABSENT, BTC, ETH, FakeOKX, Push, push_payload, push_row, utc_ms
from harness import MakeExporter, MakeOKX, assert_vault_equals_ledger, day_files, finish, last_stored_id, stored_ids
from trades_exporter import main

ONLY_BTC = {"INSTRUMENTS": [BTC]}


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
    one.stop_when_stored()
    for inst_id in (BTC, ETH):
        verdict = assert_vault_equals_ledger(one.vault, okx, inst_id)
        assert verdict.missing == 0
        assert verdict.trades > 1000
        assert [path.name for path in day_files(one.vault, inst_id)] == ["2026-11-21.jsonl", "2026-11-22.jsonl"]
        assert re.search(rf"Metadata fetched and saved .*instId={inst_id}", one.log)
        assert re.search(rf"Subscribed to trades .*instId={inst_id}", one.log)
        stats = re.findall(rf"Stats: (\d+) written, .*instId={inst_id} .*repaired=(\d+) waiting=(\d+)", one.log)
        assert len(stats) >= 3
        assert stats[-1] == (str(verdict.lines), "0", "0")
    assert "Gap found" not in one.log


def test_a_record_is_the_line_that_the_contract_shows(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    """Byte for byte: keys, order, OKX's own characters, compact, one newline."""
    okx = make_okx(first_id=1234567890)
    one = exporter(okx).start_capture()
    okx.trade(count=1, px="101250.5", sz="45", side="buy", ts=utc_ms("2025-12-14T21:34:56.123Z"))
    one.wait_until(lambda: stored_ids(one.vault), what="the trade is stored")
    assert (one.vault / "raw/okx/trades_perps/BTC-USDT-SWAP/2025-12-14.jsonl").read_bytes() == (
        b'{"timestamp_utc":"2025-12-14T21:34:56.123Z","exchange":"okx","market":"perp","instId":"BTC-USDT-SWAP",'
        b'"symbol_canon":"BTC/USDT","trade_id":"1234567890","side":"buy","price":"101250.5","qty_contracts":"45",'
        b'"ctVal":"0.01","ctMult":"1","ctType":"linear"}\n'
    )


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
    one.wait_until(lambda: len(stored_ids(one.vault)) > 20, what="20 lines")
    assert one.stop() == 0
    before = {path: path.read_bytes() for inst_id in (BTC, ETH) for path in day_files(one.vault, inst_id)}
    one.start_capture()
    finish(one)
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
        assert path.stat().st_size > len(content)


def test_what_okx_pushes_again_after_a_subscription_is_not_written_twice(okx: FakeOKX, exporter: MakeExporter) -> None:
    """After a reconnect, and after a restart."""
    one = exporter(okx).start_capture()
    okx.trade(n=3)
    one.wait_until(lambda: len(stored_ids(one.vault)) == 3, what="three lines")
    okx.close()
    one.wait_for_log("Subscribed to trades", times=4)
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one.vault)) == 4, what="four lines")
    assert one.stop() == 0
    assert f"Stats: 4 written, 1 skipped instId={BTC}" in one.log
    one.start_capture()
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one.vault)) == 5, what="five lines")
    assert one.stop() == 0
    assert f"Stats: 1 written, 1 skipped instId={BTC}" in one.log_since_start
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
    one.wait_until(lambda: stored_ids(one.vault), what="a line")
    assert one.stop() == 0
    okx.faults.rest = {"503": 1.0}
    one.start_capture()
    assert "starting with saved metadata" in one.log_since_start
    okx.trade()
    one.wait_until(lambda: len(stored_ids(one.vault)) == 2, what="capture goes on")
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
    one.wait_for_log("REST request failed")
    assert not okx.connects
    okx.faults.rest = {}
    one.wait_for_log("Subscribed to trades", times=2)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"ctVal": ABSENT}, "ctVal"),
        ({"ctVal": "", "ctType": ABSENT}, "ctVal, ctType"),
        ({"ctVal": 0.01, "ctMult": {}}, "ctVal, ctMult"),
        ({"instId": "../../x"}, "ctVal, ctMult, ctType"),
    ],
)
def test_metadata_without_a_required_field_stops_it(
    okx: FakeOKX, exporter: MakeExporter, row: dict[str, object], named: str
) -> None:
    row = okx.instruments[BTC] | row
    okx.instruments[BTC] = {key: value for key, value in row.items() if value is not ABSENT}
    one = exporter(okx, settings=ONLY_BTC).start()
    assert one.wait() == 3
    message = f"BUILD_FAIL: Missing required metadata fields: {named} of {BTC}"
    assert message in one.log
    assert message in one.console
    assert not okx.connects
    assert files_in(one.vault) == {"exporter.lock"}


def test_an_instrument_that_okx_does_not_know_stops_it(make_okx: MakeOKX, exporter: MakeExporter) -> None:
    one = exporter(make_okx(instruments=(BTC,)), settings={"INSTRUMENTS": [BTC, ETH]}).start()
    assert one.wait() == 3
    assert f"BUILD_FAIL: Missing required metadata fields: ctVal, ctMult, ctType of {ETH}" in one.log


# ----------------------------------------------------------------------------------------------------- validation


def files_in(folder: Path) -> set[str]:
    """Return the paths of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def push_three_rows_with_a_bad_one_between(okx: FakeOKX, fields: dict[str, object]) -> list[Push]:
    """Push one frame of three rows whose second has these fields, and return the three pushes."""
    pushes = okx.trade(n=3, lost=True)
    rows = [push_row(BTC, push) for push in pushes]
    rows[1] = {key: value for key, value in (rows[1] | fields).items() if value is not ABSENT}
    okx.send_raw(push_payload(BTC, rows))
    return pushes


BAD_FIELDS: dict[str, tuple[dict[str, object], str]] = {
    "no price": ({"px": ABSENT}, "Missing required trade fields: px in {row}"),
    "no id": ({"tradeId": ABSENT}, "Missing required trade fields: tradeId in {row}"),
    "no instrument": ({"instId": ABSENT}, "Missing required trade fields: instId in {row}"),
    "a number": ({"px": 83725.9}, "Invalid trade field: px=83725.9 in {row}"),
    "an id of 400 digits": ({"tradeId": "9" * 400}, "Invalid trade field: tradeId="),
    "no id but null": ({"tradeId": None}, "Invalid trade field: tradeId=None in {row}"),
    "the year 9999": ({"ts": "253402300799000"}, "Invalid trade field: ts="),
    "another instrument": ({"instId": "DOGE-USDT-SWAP"}, "Unexpected instId: DOGE-USDT-SWAP in {row}"),
    "a path": ({"instId": f"{BTC}/../../../x"}, f"Unexpected instId: {BTC}/../../../x in "),
    "JSON in a price": ({"px": '1 1 1640131236050 5 buy x","evil":"y'}, "Invalid trade field: px="),
    "a newline": ({"sz": "1\n"}, "Invalid trade field: sz="),
    "a list": ({"side": ["buy"]}, "Invalid trade field: side="),
}


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_bad_row_stops_it_after_the_good_ones_before(
    okx: FakeOKX, exporter: MakeExporter, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    """The message names the field and shows the row; the row before is stored, the one behind is not."""
    one = exporter(okx, settings=ONLY_BTC).start()
    one.wait_for_log("Subscribed to trades")
    first, bad, _ = push_three_rows_with_a_bad_one_between(okx, fields)
    assert one.wait() == 3
    [shown] = re.findall("BUILD_FAIL: .*", one.log)
    assert shown.startswith(f"BUILD_FAIL: {message.format(row='')}")
    assert shown.endswith("...") or (str(bad.last_id) if "tradeId" not in fields else bad.px) in shown
    assert max(map(len, one.log.splitlines())) < 1000
    assert "Traceback" not in one.log
    assert "Stats: 1 written" in one.log
    assert stored_ids(one.vault) == [first.last_id]
    assert files_in(tmp_path) == {
        *(f"{one.folder.name}/{name}" for name in ("exporter.log", "console.txt", "Vault/exporter.lock")),
        *(f"{one.folder.name}/Vault/meta/okx/{name}" for name in (f"instruments/{BTC}.json", f"gaps/{BTC}.jsonl")),
        f"{one.folder.name}/Vault/raw/okx/trades_perps/{BTC}/{day_files(one.vault, BTC)[0].name}",
    }


def test_a_message_in_fragments_is_taken_whole(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx).start_capture()
    [push] = okx.trade(lost=True)
    okx.send_raw(push_payload(BTC, [push_row(BTC, push)]), fragments=3)
    one.wait_until(lambda: stored_ids(one.vault) == [push.last_id], what="stored")


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--nonsense"], "unrecognized arguments"),
        (["--backfill-hours", "24"], "see --since"),
        (["--since", "soon"], "no date like 2026-11-21"),
        (["--since", "2020-01-01"], "before 2021-11-01"),
        (["--since", "2999-01-01"], "in the future"),
        (["--audit", "yesterday"], "no date like 2026-11-21"),
        (["--ws-url", "http://127.0.0.1/"], "no wss or ws URL"),
        (["--ws-url", "ws://127.0.0.1:99999/"], "no wss or ws URL"),
        (["--rest-url", "http://[::1"], "no https or http URL"),
        (["--vault", ""], "an empty name"),
        (["--verify", "--audit"], "not allowed with"),
        (["an argument too many"], "unrecognized arguments"),
    ],
    ids=str,
)
def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str], args: list[str], hint: str) -> None:
    """It says what is wrong, and how it would be right."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "usage: trades_exporter.py" in said
    assert hint in said


def test_version_and_help_say_what_they_should(okx: FakeOKX, exporter: MakeExporter) -> None:
    one = exporter(okx)
    version, usage = one.run("--version"), one.run("--help")
    assert version.returncode == usage.returncode == 0
    assert re.fullmatch(r"trades_exporter \d+\.\d+\.\d+\n", version.stdout)
    options = "verify audit vault log-file ws-url rest-url archive-url since version help"
    assert set(re.findall(r"--([a-z-]+)", usage.stdout)) == set(options.split())
