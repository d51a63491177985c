"""A daily archive of OKX, from a zip in memory: what is believed, what costs a row, and what costs the file."""

import asyncio
import contextlib
import io
import zipfile
from datetime import date
from decimal import Decimal
from typing import IO, BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trades_exporter
from trades_exporter import Archive, ArchiveDamagedError, Instrument, Trade, midnight_of, plain_number

INST_ID = "BTC-USDT-SWAP"
BTC = Instrument.from_row(
    INST_ID, {"instId": INST_ID, "ctVal": "0.01", "ctMult": "1", "ctType": "linear", "tickSz": "0.1", "lotSz": "0.01"}
)
DAY = date(2026, 11, 21)
MIDNIGHT = int(midnight_of(str(DAY)))
HOUR = 3_600_000
HEADER = "instrument_name,trade_id,side,price,size,created_time,source"
CHINESE = "instrument_name/交易对,trade_id/撮合id,side/交易方向,price/价格,size/数量,created_time/成交时间"


def row(trade_id: object = 7, **fields: object) -> str:
    """Return a line of the CSV, without its end."""
    values = {"name": INST_ID, "trade_id": trade_id, "side": "sell", "price": "104503.0", "size": "4.0"}
    values |= {"ts": MIDNIGHT, "source": "0"}
    return ",".join(str(value) for value in (values | fields).values())


def csv(*rows: str, header: str = HEADER, end: str = "\r\n") -> str:
    """Return the CSV of an archive."""
    return end.join([header, *rows, ""])


def zipped(*members: bytes | str, name: str = f"{INST_ID}-trades-{DAY}.csv") -> bytes:
    """Return a zip of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, member in enumerate(members):
            archive.writestr(name.replace("csv", f"{number}.csv") if number else name, member)
    return file.getvalue()


def read(content: bytes, file: IO[bytes] | None = None) -> tuple[list[Trade], list[tuple[int, str]]]:
    """Return an archive's trades and bad rows; raise ArchiveDamagedError where it is not believed."""
    file = file or io.BytesIO()
    file.write(content)
    archive = Archive(cast(BinaryIO, file), BTC, DAY)
    try:
        asyncio.run(archive.check())
        trades: list[Trade] = []
        bad: list[tuple[int, str]] = []
        while (batch := archive.trades()) is not None:
            trades += batch[0]
            bad += batch[1]
    finally:
        archive.close()
    assert file.closed
    ids = [*(trade.last for trade in trades), *(trade_id for trade_id, _ in bad)]
    assert (archive.first_id, archive.last_id) == (min(ids), max(ids))
    return trades, bad


def refusal(content: bytes) -> str:
    """Return why an archive is not believed."""
    with pytest.raises(ArchiveDamagedError) as caught:
        read(content)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- numbers

DIGITS = st.text("0123456789", min_size=1, max_size=12)
PRINTED = st.one_of(DIGITS, st.tuples(DIGITS, DIGITS).map(".".join), st.decimals(0, 10**9, places=3).map(str))


@given(text=PRINTED)
@settings(deadline=None, derandomize=True)
def test_a_number_is_written_as_rest_writes_it(text: str) -> None:
    plain = plain_number(text, 18)
    assert Decimal(plain) == Decimal(text)
    assert set(plain) <= set("0123456789.")
    assert "." not in plain or plain[-1] not in "0."
    assert plain_number(plain, 18) == plain
    decimals = len(plain.partition(".")[2])
    assert plain_number(text, decimals) == plain
    if decimals:
        with pytest.raises(ValueError, match="decimals"):
            plain_number(text, decimals - 1)


# ------------------------------------------------------------------------------------------------ what is believed


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("header", [HEADER, HEADER.upper(), HEADER.removesuffix(",source"), f'"{HEADER}"'])
def test_a_row_becomes_a_single_trade(header: str, end: str, last_end: bool) -> None:
    text = csv(row(7), row(8, side="BUY", price="0.5", size="14.07", ts=MIDNIGHT + 1), header=header, end=end)
    trades, bad = read(zipped(text if last_end else text.removesuffix(end)))
    assert not bad
    shown = [(trade.first, trade.last, trade.trade_id, trade.side, trade.px, trade.sz, trade.ts) for trade in trades]
    assert shown == [
        (7, 7, "7", "sell", "104503", "4", str(MIDNIGHT)),
        (8, 8, "8", "buy", "0.5", "14.07", str(MIDNIGHT + 1)),
    ]
    assert all(trade.fetched and trade.inst_id == INST_ID for trade in trades)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("header", [HEADER, CHINESE])
def test_old_headers_are_read_by_their_english_names(header: str, encoding: str) -> None:
    trades, _ = read(zipped(csv(row(), header=header).encode(encoding)))
    assert [trade.last for trade in trades] == [7]


def test_columns_are_found_by_name() -> None:
    text = csv(
        f"0,{MIDNIGHT},x,4.0,104503.0,sell,7,{INST_ID}",
        header=f"{','.join(HEADER.split(',')[:4:-1])},new," + ",".join(HEADER.split(",")[4::-1]),
    )
    (trade,), _ = read(zipped(text))
    assert (trade.trade_id, trade.px, trade.sz, trade.ts) == ("7", "104503", "4", str(MIDNIGHT))


def test_empty_lines_cost_nothing() -> None:
    assert len(read(zipped(csv(row(7), "", row(8), "")))[0]) == 2


@pytest.mark.parametrize("chunk", [1, 7, 100, 32 << 10])
def test_rows_are_whole_however_they_are_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trades_exporter, "ARCHIVE_CHUNK", max(chunk, 100))
    count = 40 if chunk < 1000 else 5000
    trades, bad = read(zipped(csv(*(row(i) for i in range(count)))))
    assert [trade.last for trade in trades] == list(range(count))
    assert not bad


@pytest.mark.parametrize(
    "ts", [MIDNIGHT - 8 * HOUR, MIDNIGHT + 16 * HOUR - 1, MIDNIGHT - 8 * HOUR - 19_000, MIDNIGHT + 16 * HOUR + 19_000]
)
def test_a_day_is_one_of_utc_8_and_begins_a_little_early(ts: int) -> None:
    """Files of 2023 were seen to begin 19 s before the hour: the cut is by id."""
    assert read(zipped(csv(row(ts=ts))))[0]


# ------------------------------------------------------------------------------------------------ what costs a row


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"size": "0.16186999999999999"}, "0.16186999999999999"),
        ({"price": "0.15"}, "0.15 has more than 1 decimals"),
        ({"price": "0.0"}, "px='0'"),
        ({"price": "-1.0"}, "px='-1'"),
        ({"price": "1e5"}, "px='1e5'"),
        ({"price": "1.0E5"}, "1.0E5"),
        ({"price": "nan"}, "px='nan'"),
        ({"price": ""}, "px=''"),
        ({"size": ".5"}, "sz='.5'"),
        ({"side": "long"}, "side='long'"),
        ({"side": ""}, "side=''"),
        ({"ts": ""}, "ts=''"),
        ({"ts": "x"}, "ts='x'"),
        ({"ts": "17"}, "ts='17'"),
        ({"ts": MIDNIGHT + 17 * HOUR}, "is of another day"),
        ({"ts": f"{MIDNIGHT}.0"}, f"ts='{MIDNIGHT}.0'"),
    ],
)
def test_a_bad_row_costs_its_id_and_is_named(fields: dict[str, object], named: str) -> None:
    trades, ((trade_id, defect),) = read(zipped(csv(row(7), row(8, **fields), row(9))))
    assert [trade.last for trade in trades] == [7, 9]
    assert trade_id == 8
    assert named in defect
    assert row(8, **fields) in defect


# ------------------------------------------------------------------------------------------------ what costs the file


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "header"),
        (csv(), "no trades"),
        (csv(row(), header=HEADER.replace("side", "taker")), "header"),
        (csv(row(), header=row()), "header"),
        (csv(row(7), row(7)), "do not rise"),
        (csv(row(7), row(6)), "do not rise"),
        (csv(row(7), row(9), row(8)), "do not rise"),
        (csv(row(7), row(8, name="ETH-USDT-SWAP")), "another instrument"),
        (csv(row(ts=MIDNIGHT - 8 * HOUR - 61_000)), "another day"),
        (csv(row(ts=MIDNIGHT + 16 * HOUR + 61_000)), "another day"),
        (csv(row(ts=MIDNIGHT // 1000)), "another day"),
        (csv(row("x")), "invalid literal"),
        (csv(row("")), "invalid literal"),
        (csv(row(7), f"{INST_ID},8,sell,104503"), "without all fields"),
        (csv(row(7)) + f"{INST_ID},8,se", "without all fields"),
        (csv(row(7)) + f"{INST_ID},8,sell,1.0,1.0,{MIDNIGHT // 10}", "another day"),
        (csv(row(7), "x" * 100_000), "line without end"),
        (csv(row(7), "<html>"), "without all fields"),
    ],
)
def test_a_csv_that_is_not_what_it_says_is_not_believed(text: str, why: str) -> None:
    assert why in refusal(zipped(text))


def test_ids_that_do_not_rise_are_seen_wherever_the_file_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trades_exporter, "ARCHIVE_CHUNK", 100)
    for at in range(1, 12):
        rows = [row(i) for i in range(12)]
        rows[at] = row(at - 1)
        assert "do not rise" in refusal(zipped(csv(*rows)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a zip"),
        (b"<html>Forbidden</html>", "not a zip"),
        (zipped(), "one CSV"),
        (zipped(csv(row()), csv(row())), "one CSV"),
        (zipped(csv(row()), name="trades.txt"), "one CSV"),
        (zipped(csv(row()))[:-30], "zip"),
    ],
    ids=["empty", "HTML", "no member", "two members", "no CSV", "cut"],
)
def test_a_zip_that_is_not_what_it_says_is_not_believed(content: bytes, why: str) -> None:
    assert why in refusal(content)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the zip says of itself: more than it says is never unpacked."""
    text = csv(*(row(i) for i in range(2000)))
    assert len(read(zipped(text))[0]) == 2000
    monkeypatch.setattr(trades_exporter, "ARCHIVE_BYTES", len(text) - 1)
    assert "believable size" in refusal(zipped(text))


def test_a_bomb_that_says_it_is_small_is_not_unpacked_any_further() -> None:
    content = bytearray(zipped(csv(*(row(i) for i in range(2000)))))
    directory = content.rindex(b"PK\1\2")
    content[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    assert "CRC" in refusal(bytes(content))


WHOLE = zipped(csv(*(row(i, ts=MIDNIGHT + i) for i in range(300))))
TRADES = read(WHOLE)[0]


@given(damage=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_a_damaged_file_is_refused_or_read_as_it_was(damage: list[tuple[int, int]]) -> None:
    """No other error comes of it: an OSError would be taken for one of the disk."""
    content = bytearray(WHOLE)
    for at, bits in damage:
        content[at] ^= bits
    with io.BytesIO() as file, contextlib.suppress(ArchiveDamagedError):
        assert read(bytes(content), file) == (TRADES, [])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
@pytest.mark.parametrize("offset", [0, 40, 255])
def test_damage_where_the_zip_says_how_it_is_packed_is_seen(method: int, offset: int) -> None:
    """A changed bit there names another method; one in the directory's place leads before the file."""
    content = bytearray(WHOLE)
    directory = content.rindex(b"PK\1\2")
    content[directory + 10] = method
    end = content.rindex(b"PK\5\6")
    content[end + 19] ^= offset
    with io.BytesIO() as file, pytest.raises(ArchiveDamagedError):
        read(bytes(content), file)
