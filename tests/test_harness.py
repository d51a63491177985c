"""The judge of harness.py held against Vaults gone wrong: it can fail."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_okx import BTC, FIRST_ID, FakeOKX, Push, crossing_times, utc_ms
from harness import (
    assert_vault_equals_ledger,
    day_path,
    last_line,
    last_stored_id,
    line_of,
    read_gaps,
    read_vault,
    write_days,
    write_gap,
    write_pushes,
)

DAY = utc_ms("2026-11-21T00:00:00Z")


@pytest.fixture
def history() -> FakeOKX:
    """Return an exchange that has traded around a midnight, as aggregates of three and single trades."""
    okx = FakeOKX()
    for index in range(20):
        okx.trade(count=3 if index % 2 else 1, ts=DAY - 10_000 + index * 1000)
    return okx


def single(okx: FakeOKX, position: int) -> Push:
    """Return a trade of the ledger as a push of its own."""
    trade_id, px, sz, side, ts = okx.ledger[BTC][position]
    return Push(trade_id, trade_id, px, sz, side, ts, "0", 0)


def test_the_judge_accepts_a_perfect_vault(tmp_path: Path, history: FakeOKX) -> None:
    write_days(tmp_path, history)
    assert assert_vault_equals_ledger(tmp_path, history) == (20, 40, 0)
    assert last_stored_id(tmp_path) == FIRST_ID + 39
    assert len(read_vault(tmp_path)) == 20


def test_the_judge_accepts_single_trades_instead_of_their_aggregate(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_pushes(tmp_path, history, [*pushes[:15], *(single(history, index) for index in (29, 30, 31)), *pushes[16:]])
    assert assert_vault_equals_ledger(tmp_path, history) == (22, 40, 0)


def test_the_judge_accepts_a_loss_on_record_and_no_other(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_pushes(tmp_path, history, [*pushes[:11], *pushes[12:]])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    lost = pushes[11]
    assert assert_vault_equals_ledger(tmp_path, history, except_ranges=[(lost.first_id, lost.last_id)]).missing == 3
    write_gap(tmp_path, "absent", (lost.first_id - 1, lost.last_id), ("", ""))
    with pytest.raises(AssertionError, match=f"1 trades are lost, {lost.last_id} to {lost.last_id}"):
        assert_vault_equals_ledger(tmp_path, history)


@pytest.mark.parametrize("reason", ["start", "absent", "unrepaired", "pending", "horizon"])
def test_each_reason_excuses_what_its_line_names(tmp_path: Path, history: FakeOKX, reason: str) -> None:
    pushes = history.pushes[BTC]
    lost = pushes[11]
    write_pushes(tmp_path, history, [*pushes[:11], *pushes[12:]])
    write_gap(tmp_path, reason, (lost.first_id - 1, lost.last_id + 1), ("", ""))
    assert assert_vault_equals_ledger(tmp_path, history).missing == 3


def test_a_start_with_nothing_before_it_excuses_nothing_after_the_first_trade(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_pushes(tmp_path, history, [*pushes[:11], *pushes[12:]])
    write_gap(tmp_path, "start", ("", pushes[12].first_id), ("", ""))
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)


@pytest.mark.parametrize(("reason", "ids"), [("id_reset", (1, 5)), ("absent", (5, 6)), ("absent", (6, 5))])
def test_a_gap_has_a_reason_of_the_contract_and_names_some_ids(
    tmp_path: Path, reason: str, ids: tuple[int, int]
) -> None:
    write_gap(tmp_path, reason, ids, ("", ""))
    with pytest.raises(AssertionError, match="gaps"):
        read_gaps(tmp_path)


def test_the_judge_rejects_a_missing_end(tmp_path: Path, history: FakeOKX) -> None:
    write_pushes(tmp_path, history, history.pushes[BTC][:-1])
    with pytest.raises(AssertionError, match="3 trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    assert assert_vault_equals_ledger(tmp_path, history, upto_id=FIRST_ID + 36).lines == 19


def test_the_judge_rejects_an_aggregate_beside_one_of_its_trades(tmp_path: Path, history: FakeOKX) -> None:
    pushes = history.pushes[BTC]
    write_pushes(tmp_path, history, [*pushes[:11], single(history, pushes[11].first_id - FIRST_ID), *pushes[11:]])
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
    write_days(tmp_path, history)
    file = day_path(tmp_path, "2026-11-21")
    file.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AssertionError, match=complaint):
        assert_vault_equals_ledger(tmp_path, history)


def test_times_may_cross_within_a_second_of_midnight_and_no_further(tmp_path: Path) -> None:
    def crossed(spread_ms: int) -> FakeOKX:
        okx = FakeOKX()
        okx.prefill(BTC, 5, DAY - 60_000, DAY - 30_000)
        for ts in crossing_times(DAY, spread_ms=spread_ms):
            okx.trade(ts=ts, count=1)
        okx.prefill(BTC, 5, DAY + 30_000, DAY + 60_000)
        write_days(tmp_path, okx)
        return okx

    assert assert_vault_equals_ledger(tmp_path, crossed(999)).missing == 0
    with pytest.raises(AssertionError, match="ids fall from day to day"):
        assert_vault_equals_ledger(tmp_path, crossed(1001))


@pytest.mark.parametrize(("before", "after"), [(-1001, 0), (-1, 1001), (-1, 86_400_000)])
def test_an_id_that_falls_is_found_on_either_side_of_midnight(tmp_path: Path, before: int, after: int) -> None:
    """Days that are not neighbours have no midnight in common."""
    okx = FakeOKX()
    okx.trade(ts=DAY + after, count=1)
    okx.trade(ts=DAY + before, count=1)
    write_days(tmp_path, okx)
    with pytest.raises(AssertionError, match="ids fall from day to day"):
        assert_vault_equals_ledger(tmp_path, okx)


def test_of_a_day_with_two_files_the_plain_one_counts_above_the_compressed_ones_last(
    tmp_path: Path, history: FakeOKX
) -> None:
    write_days(tmp_path, history)
    plain = day_path(tmp_path, "2026-11-21")
    lines = plain.read_bytes().splitlines(keepends=True)
    plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(b"".join(lines[:6])))
    assert assert_vault_equals_ledger(tmp_path, history) == (20, 40, 0)
    assert len(read_vault(tmp_path)) == 20
    plain.write_bytes(b"".join(lines[7:]))
    with pytest.raises(AssertionError, match="trades are lost"):
        assert_vault_equals_ledger(tmp_path, history)
    plain.unlink()
    assert last_stored_id(tmp_path) == history.pushes[BTC][15].last_id


def test_days_are_written_from_a_time_to_a_time(tmp_path: Path, history: FakeOKX) -> None:
    write_days(tmp_path, history, since="2026-11-20T23:59:55.000Z", until="2026-11-21T00:00:03.000Z")
    pushes = history.pushes[BTC][5:13]
    assert [record["trade_id"] for record in read_vault(tmp_path)] == [str(push.last_id) for push in pushes]
    assert day_path(tmp_path, "2026-11-20").read_bytes() == b"".join(line_of(history, push) for push in pushes[:5])


def test_the_last_record_is_the_one_before_what_crashes_left(tmp_path: Path) -> None:
    path = tmp_path / "2026-11-21.jsonl"
    path.write_bytes(b'{"trade_id":"7"}\n\xff\xed\xa0\n{"trade_')
    assert last_line(path) == {"trade_id": "7"}
