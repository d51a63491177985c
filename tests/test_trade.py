"""What a row of OKX may be, and the record that a trade becomes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trades_exporter
from harness import KEYS
from trades_exporter import (
    RECORD,
    REQUIRED,
    BuildFailError,
    Instrument,
    RecordFormat,
    milliseconds,
    parse_rows,
    parse_trade,
    utc,
    utc_second,
)

ROW: dict[str, Any] = {
    "instId": "BTC-USDT-SWAP",
    "tradeId": "2978601964",
    "px": "83725.9",
    "sz": "5",
    "side": "buy",
    "ts": "1791369350776",
    "count": "1",
    "source": "0",
    "seqId": 344430848209,
}
BTC = Instrument.from_row(
    "BTC-USDT-SWAP", {"instId": "BTC-USDT-SWAP", "ctVal": "0.01", "ctMult": "1", "ctType": "linear"}
)
DIGITS = st.text("0123456789", min_size=1, max_size=12)
DECIMALS = st.one_of(DIGITS, st.tuples(DIGITS, DIGITS).map(".".join)).filter(lambda text: text.strip("0.") != "")
ROWS = st.builds(
    lambda trade_id, px, sz, side, ts: ROW | {"tradeId": trade_id, "px": px, "sz": sz, "side": side, "ts": ts},
    st.text("0123456789", min_size=1, max_size=19),
    DECIMALS,
    DECIMALS,
    st.sampled_from(("buy", "sell")),
    st.text("0123456789", min_size=13, max_size=13),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def refusal(row: object) -> str:
    """Return the message of the BUILD_FAIL that a row causes."""
    with pytest.raises(BuildFailError) as caught:
        parse_trade(row)
    assert caught.value.exit_code == 3
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what is taken


def test_a_push_of_today() -> None:
    trade = parse_trade(ROW)
    assert (trade.first, trade.last, trade.counted, trade.fetched) == (2978601964, 2978601964, True, False)
    assert (trade.inst_id, trade.trade_id, trade.ts) == ("BTC-USDT-SWAP", "2978601964", "1791369350776")
    assert (trade.px, trade.sz, trade.side) == ("83725.9", "5", "buy")
    assert trade.key == "okx:BTC-USDT-SWAP:2978601964"


@pytest.mark.parametrize("count", ["1", "2", "122", "123", "0003", "01", 3, 1])
def test_a_count_from_1_to_the_id_is_usable(count: object) -> None:
    trade = parse_trade(ROW | {"tradeId": "123", "count": count})
    assert (trade.first, trade.last, trade.counted) == (124 - int(str(count)), 123, True)


NO_COUNTS: list[object] = [
    "", "0", "-1", "+1", "124", "1.0", "1e1", " 1", "1\n", "one", "\u0661", "9" * 400, None, True, 0, -3, 2.0,
    [], ["1"], {},
]  # fmt: skip


@pytest.mark.parametrize("count", NO_COUNTS)
def test_any_other_count_is_no_defect_and_not_used(count: object) -> None:
    trade = parse_trade(ROW | {"tradeId": "123", "count": count})
    assert (trade.first, trade.last, trade.counted) == (123, 123, False)


def test_a_push_of_2021_has_no_count() -> None:
    old = {name: ROW[name] for name in REQUIRED}
    trade = parse_trade(old)
    assert (trade.first, trade.last, trade.counted) == (2978601964, 2978601964, False)


def test_a_row_of_rest_is_a_single_trade_whatever_count_says() -> None:
    trade = parse_trade(ROW | {"count": "7"}, fetched=True)
    assert (trade.first, trade.last, trade.counted, trade.fetched) == (2978601964, 2978601964, True, True)


def test_source_is_no_part_of_a_trades_identity() -> None:
    assert parse_trade(ROW) == parse_trade(ROW | {"source": "1", "seqId": 5})


@given(extra=st.dictionaries(st.text().filter(lambda name: name not in ROW), JSON))
@settings(deadline=None, derandomize=True)
def test_unknown_fields_are_ignored(extra: dict[str, Any]) -> None:
    assert parse_trade(extra | ROW) == parse_trade(ROW)


@given(row=ROWS)
@settings(deadline=None, derandomize=True)
def test_okx_s_own_characters_are_kept(row: dict[str, Any]) -> None:
    trade = parse_trade(row)
    assert [trade.trade_id, trade.px, trade.sz, trade.side, trade.ts] == [
        row[name] for name in ("tradeId", "px", "sz", "side", "ts")
    ]
    assert trade.last == int(row["tradeId"])


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named_and_the_row_shown(name: str) -> None:
    message = refusal({field: value for field, value in ROW.items() if field != name})
    assert message.startswith(f"BUILD_FAIL: Missing required trade fields: {name} in ")
    assert "344430848209" in message, "the row"


def test_all_missing_fields_are_named() -> None:
    assert refusal({}).startswith("BUILD_FAIL: Missing required trade fields: px, sz, ts, tradeId, side, instId in {}")


@pytest.mark.parametrize("row", [None, 5, "row", [], ["px"], True, 1.5])
def test_a_row_that_is_no_object_lacks_all_fields(row: object) -> None:
    message = refusal(row)
    assert message.startswith("BUILD_FAIL: Missing required trade fields: ")
    assert message.endswith(f" in {row}")


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, 5, 1.5, True, ["1"], {"a": "1"}])
def test_a_field_that_is_no_string_is_invalid(name: str, value: object) -> None:
    message = refusal(ROW | {name: value})
    assert message.startswith(f"BUILD_FAIL: Invalid trade field: {name}=")
    assert "344430848209" in message, "the row"


NO_DECIMALS = [
    "", "0", "0.0", "000", "-1", "+1", "1.", ".5", "1.5.2", "1e5", "1E5", "0x10", "1,5", "1_000", " 1", "1 ",
    "1\n",
]  # fmt: skip
NO_DECIMALS += ["NaN", "Infinity", "\u0661\u0662", "\uff11", "\u00b2", "\u00bd", "1\0", "abc", "1\n2", "0" * 500]
NO_TIMES = [
    "", "0", "179136935077", "17913693507760", "1791369350.77", "-179136935077", "179136935077\n", "\u0661" * 13,
    "x" * 13,
]  # fmt: skip
NO_IDS = [
    "", "-1", "+1", "1.0", " 1", "1\n", "9" * 20, "9" * 400, "0" * 20, "\u0661\u0662", "\u00b2", "0x1", "1_0",
    "../../x",
]  # fmt: skip
NO_SIDES = ["", "BUY", "Sell", "buy ", "buy\n", "sell\nbuy", "long", "buysell"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("px", value) for value in NO_DECIMALS),
        *(("sz", value) for value in NO_DECIMALS),
        *(("ts", value) for value in NO_TIMES),
        *(("tradeId", value) for value in NO_IDS),
        *(("side", value) for value in NO_SIDES),
    ],
)
def test_a_value_of_another_form_is_invalid(name: str, value: str) -> None:
    message = refusal(ROW | {name: value})
    assert message.startswith(f"BUILD_FAIL: Invalid trade field: {name}=")
    assert "\n" not in message
    assert len(message) < 1000


def test_all_invalid_fields_are_named() -> None:
    message = refusal(ROW | {"px": "0", "side": 7})
    assert "px='0'" in message
    assert "side=7" in message
    assert "sz=" not in message


@pytest.mark.parametrize("separator", ["\n", " ", "\0", "|", ","])
def test_a_value_can_not_reach_into_the_next_one(separator: str) -> None:
    """Each field is held against its own form, however they are checked together."""
    refusal(ROW | {"px": f"1{separator}1", "sz": "1"})
    refusal(ROW | {"px": "1", "sz": f"1{separator}1791369350776", "ts": "1"})
    refusal(ROW | {"side": f"buy{separator}BTC-USDT-SWAP", "instId": ""})


@pytest.mark.parametrize("inst_id", ["../../etc/passwd", "", "a\nb", "C:\\x", "ÉTH", '"', "x" * 1000])
def test_a_strange_inst_id_is_the_callers_business_or_refused(inst_id: str) -> None:
    """It is never stored: no such instrument is known."""
    try:
        assert parse_trade(ROW | {"instId": inst_id}).inst_id == inst_id
    except BuildFailError as exc:
        assert str(exc).startswith("BUILD_FAIL: Invalid trade field: instId=")  # noqa: PT017


def nested(depth: int) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return lists in lists, as deep as orjson still reads."""
    return orjson.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    "spoil", [lambda deep: ROW | {"px": deep}, lambda deep: {"deep": deep}, lambda deep: deep, lambda deep: [deep]]
)
@pytest.mark.parametrize("depth", [100, 900, 1000])
def test_deep_nesting_is_a_defect_like_any_other(spoil: Callable[[Any], Any], depth: int) -> None:
    assert refusal(spoil(nested(depth))).startswith("BUILD_FAIL: ")


@pytest.mark.parametrize("depth", [100, 900, 1000])
def test_a_deeply_nested_count_is_not_used(depth: int) -> None:
    assert not parse_trade(ROW | {"count": nested(depth)}).counted


@given(
    row=st.one_of(JSON, ROWS.flatmap(lambda row: st.dictionaries(st.sampled_from(sorted(ROW)), JSON).map(row.__or__)))
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_whatever_json_holds_a_trade_or_a_build_fail_comes_out(row: object) -> None:
    try:
        trade = parse_trade(row)
    except BuildFailError as exc:
        assert str(exc).startswith(("BUILD_FAIL: Missing required", "BUILD_FAIL: Invalid trade field: "))  # noqa: PT017
        assert str(exc).isprintable()  # noqa: PT017
    else:
        assert 0 <= trade.first <= trade.last < 10**19
        if trade.inst_id == BTC.inst_id:
            assert RECORD.fullmatch(record(trade))


# ---------------------------------------------------------------------------------------------------- answers of REST


def test_the_rows_of_an_answer_come_out_by_id_and_the_bad_ones_apart() -> None:
    rows = [
        ROW | {"tradeId": "9"},
        ROW | {"tradeId": "10"},
        ROW | {"tradeId": "8", "px": "-1"},
        ROW | {"tradeId": "7", "instId": "ETH-USDT-SWAP"},
        {},
        "junk",
        ROW | {"tradeId": 5},
    ]
    trades, bad = parse_rows("BTC-USDT-SWAP", rows)
    assert [trade.last for trade in trades] == [9, 10]
    assert all(trade.fetched for trade in trades)
    assert [trade_id for trade_id, _ in bad[:2]] == ["8", "7"]
    assert [str(exc).split(":")[1].strip() for _, exc in bad] == [
        "Invalid trade field",
        "Unexpected instId",
        "Missing required trade fields",
        "Missing required trade fields",
        "Invalid trade field",
    ]


@given(rows=st.lists(st.one_of(ROWS, JSON)))
@settings(deadline=None, derandomize=True)
def test_any_answer_is_split_into_good_and_bad_rows(rows: list[Any]) -> None:
    trades, bad = parse_rows("BTC-USDT-SWAP", rows)
    assert len(trades) + len(bad) == len(rows)
    assert [trade.last for trade in trades] == sorted(trade.last for trade in trades)


# --------------------------------------------------------------------------------------------------------- the record


def record(trade: trades_exporter.Trade) -> bytes:
    """Return the line that is stored."""
    return RecordFormat(BTC).line(trade, utc_second(trade.ts[:10])).encode()


@given(row=ROWS)
@settings(deadline=None, derandomize=True)
def test_a_record_round_trips_with_twelve_keys_in_order(row: dict[str, Any]) -> None:
    line = record(parse_trade(row))
    fields = orjson.loads(line)
    assert tuple(fields) == KEYS
    assert all(type(value) is str for value in fields.values())
    assert line == json.dumps(fields, separators=(",", ":")).encode() + b"\n", "compact, one line"
    stored = [fields[name] for name in ("trade_id", "price", "qty_contracts", "side")]
    assert stored == [row[name] for name in ("tradeId", "px", "sz", "side")]
    assert milliseconds(fields["timestamp_utc"]) == row["ts"]
    match = RECORD.fullmatch(line)
    assert match
    day, minute = utc(row["ts"])[:10], utc(row["ts"])[11:16]
    trade_id, price, size, side = stored
    seen = [group.decode() for group in match.groups()]
    assert seen[:8] == [day, minute, "BTC-USDT-SWAP", "BTC/USDT", trade_id, side, price, size]
    assert seen[8:] == ["0.01", "1", "linear"]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'"5"', b'"0"'),
        (b'"5"', b'"-5"'),
        (b'"5"', b'"5.0.0"'),
        (b'"5"', b"5"),
        (b'"buy"', b'"BUY"'),
        (b"\n", b"\r\n"),
        (b"\n", b""),
        (b"\n", b"\n\n"),
        (b"{", b"\xef\xbb\xbf{"),
        (b'"side"', b' "side"'),
        (b'"okx"', b'"binance"'),
        (b"T10:", b"T24:"),
        (b"T10:", b"T1:"),
        (b".776Z", b"Z"),
        (b'"2978601964"', b'""'),
        (b'"2978601964"', b'"' + b"1" * 20 + b'"'),
        (b'"price":"83725.9","qty_contracts":"5"', b'"qty_contracts":"5","price":"83725.9"'),
        (b'"linear"', b'"lin"ear"'),
        (b'"linear"', b'""'),
        (b"2978601964", b"297860\0964"),
    ],
)
def test_a_line_that_differs_is_no_record(good: bytes, bad: bytes) -> None:
    line = record(parse_trade(ROW))
    assert RECORD.fullmatch(line)
    assert line.count(good) == 1
    assert not RECORD.fullmatch(line.replace(good, bad))


# --------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("ts", "text"),
    [
        ("0000000000000", "1970-01-01T00:00:00.000Z"),
        ("1795391999999", "2026-11-22T23:59:59.999Z"),
        ("1795392000000", "2026-11-23T00:00:00.000Z"),
        ("1709164800001", "2024-02-29T00:00:00.001Z"),
        ("9999999999999", "2286-11-20T17:46:39.999Z"),
        ("", ""),
    ],
)
def test_milliseconds_become_a_utc_time(ts: str, text: str) -> None:
    assert utc(ts) == text
    assert not text or milliseconds(text) == ts


@given(ts=st.integers(0, 10**13 - 1))
@settings(deadline=None, derandomize=True)
def test_times_are_exact_to_the_millisecond(ts: int) -> None:
    digits = f"{ts:013}"
    moment = datetime.fromisoformat(utc(digits))
    assert moment.tzinfo == UTC
    assert int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000 == ts
    assert milliseconds(utc(digits)) == digits
