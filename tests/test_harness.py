"""The judge of harness.py held against Vaults gone wrong: it can fail."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from fake_okx import BTC, FIRST_ID, FakeOKX, Push, utc_ms
from harness import KEYS, assert_vault_equals_ledger, last_stored_id, read_vault

DAY = utc_ms("2026-11-21T00:00:00Z")


@pytest.fixture
def history() -> FakeOKX:
    """Return an exchange that has traded around a midnight, as aggregates of three and single trades."""
    okx = FakeOKX()
    for index in range(20):
        okx.trade(count=3 if index % 2 else 1, ts=DAY - 10_000 + index * 1000)
    return okx


def line_of(okx: FakeOKX, push: Push) -> bytes:
    moment = datetime.fromtimestamp(push.ts / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = [moment, "okx", "perp", BTC, "BTC/USDT", str(push.last_id), push.side, push.px, push.sz]
    values += [str(okx.instruments[BTC][key]) for key in KEYS[9:]]
    return orjson.dumps(dict(zip(KEYS, values, strict=True))) + b"\n"


def single(okx: FakeOKX, position: int) -> Push:
    """Return a trade of the ledger as a push of its own."""
    trade_id, px, sz, side, ts = okx.ledger[BTC][position]
    return Push(trade_id, trade_id, px, sz, side, ts, "0", 0)


def write_vault(vault: Path, okx: FakeOKX, pushes: list[Push]) -> Path:
    """Write what a perfect exporter would have written of these pushes; return the second day's file."""
    folder = vault / "raw" / "okx" / "trades_perps" / BTC
    folder.mkdir(parents=True)
    for push in pushes:
        with (folder / f"{datetime.fromtimestamp(push.ts / 1000, UTC):%Y-%m-%d}.jsonl").open("ab") as file:
            file.write(line_of(okx, push))
    return folder / "2026-11-21.jsonl"


def test_the_judge_accepts_a_perfect_vault(tmp_path: Path, history: FakeOKX) -> None:
    write_vault(tmp_path, history, history.pushes[BTC])
    assert assert_vault_equals_ledger(tmp_path, history) == (20, 40, 0)
    assert last_stored_id(tmp_path) == FIRST_ID + 39
    assert len(read_vault(tmp_path)) == 20


def test_the_judge_accepts_single_trades_instead_of_their_aggregate(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:15], *(single(history, index) for index in (29, 30, 31)), *pushes[16:]])
    assert assert_vault_equals_ledger(tmp_path, history) == (22, 40, 0)


def test_the_judge_accepts_a_loss_on_record_and_no_other(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:11], *pushes[12:]])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    lost = pushes[11]
    assert assert_vault_equals_ledger(tmp_path, history, except_ranges=[(lost.first_id, lost.last_id)]).missing == 3
    gap = dict.fromkeys(("recorded_utc", "instId", "reason", "after_id", "before_id", "after_utc", "before_utc"), "")
    gap |= {"instId": BTC, "reason": "absent", "after_id": str(lost.first_id - 1), "before_id": str(lost.last_id + 1)}
    file = tmp_path / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(orjson.dumps(gap) + b"\n")
    assert assert_vault_equals_ledger(tmp_path, history).missing == 3
    file.write_bytes(orjson.dumps(gap | {"before_id": str(lost.last_id)}) + b"\n")
    with pytest.raises(AssertionError, match=f"1 trades are lost, {lost.last_id} to {lost.last_id}"):
        assert_vault_equals_ledger(tmp_path, history)


def test_the_judge_rejects_a_missing_end(tmp_path: Path, history: FakeOKX) -> None:
    write_vault(tmp_path, history, history.pushes[BTC][:-1])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    assert assert_vault_equals_ledger(tmp_path, history, upto_id=FIRST_ID + 36).lines == 19


def test_the_judge_rejects_an_aggregate_beside_one_of_its_trades(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_vault(tmp_path, history, [*pushes[:11], single(history, pushes[11].first_id - FIRST_ID), *pushes[11:]])
    with pytest.raises(AssertionError, match="stored twice"):
        assert_vault_equals_ledger(tmp_path, history)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [*lines[:2], *lines[1:]], "does not rise"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "does not rise"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "torn"),
        (lambda lines: [lines[0].replace(b'"price":"8', b'"price":"9'), *lines[1:]], "is really"),
        (lambda lines: [lines[0].replace(b'"qty_contracts":"', b'"qty_contracts":"1'), *lines[1:]], "is neither"),
        (lambda lines: [lines[0].replace(b"-21T", b"-20T"), *lines[1:]], "a trade of 2026-11-20"),
        (lambda lines: [lines[0].replace(b"Z", b"0Z"), *lines[1:]], "000Z"),
        (lambda lines: [lines[0].replace(b",", b", "), *lines[1:]], "not compact"),
        (lambda lines: [lines[0].replace(b"\n", b"\r\n"), *lines[1:]], "not compact"),
        (lambda lines: [b"\n", *lines], "not JSON"),
        (lambda lines: [lines[0].replace(b'"ctVal":"0.01"', b'"ctVal":"0.1"'), *lines[1:]], "should have"),
        (lambda lines: [lines[0].replace(b'"ctVal":"0.01"', b'"ctVal":0.01'), *lines[1:]], "not all strings"),
        (lambda lines: [lines[0].replace(b',"ctType":"linear"', b""), *lines[1:]], "other keys"),
    ],
)
def test_the_judge_rejects_damaged_lines(
    tmp_path: Path, history: FakeOKX, damage: Callable[[list[bytes]], list[bytes]], complaint: str
) -> None:
    file = write_vault(tmp_path, history, history.pushes[BTC])
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AssertionError, match=complaint):
        assert_vault_equals_ledger(tmp_path, history)
