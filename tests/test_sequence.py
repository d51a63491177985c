"""Sequence: which push may be written now, what waits, what is missing, and what goes on record."""

from collections.abc import Iterable

import pytest

from trades_exporter import RESET_IDS, Gap, Sequence, Trade, parse_trade

INST_ID = "BTC-USDT-SWAP"
TS = 1_791_369_350_776


def row(trade_id: int, ts: int, px: str, sz: str, side: str) -> dict[str, object]:
    """Return a REST row of OKX."""
    return {"instId": INST_ID, "tradeId": str(trade_id), "px": px, "sz": sz, "side": side, "ts": str(ts), "source": "0"}


def push(last: int, count: object = 1, ts: int | None = None, px: str = "100.5", sz: str = "1") -> Trade:
    """Return a push as it comes over the WebSocket; by default its time is its id's, so no two share a millisecond."""
    return parse_trade(row(last, TS + last if ts is None else ts, px, sz, "buy") | {"count": str(count), "seqId": 1})


def single(trade_id: int, ts: int | None = None, px: str = "100.5", sz: str = "1") -> Trade:
    """Return a single trade as REST gives it."""
    return parse_trade(row(trade_id, TS + trade_id if ts is None else ts, px, sz, "buy"), repaired=True)


def stored_up_to(last: int, limit: int = 1000) -> Sequence:
    """Return a sequence behind a file that ends with this id, in an earlier millisecond than all that follows."""
    sequence = Sequence(limit)
    sequence.restart(last, str(TS))
    return sequence


def offer_all(sequence: Sequence, trades: Iterable[Trade]) -> list[Trade | Gap]:
    """Offer one after the other and return all that was let through."""
    return [item for trade in trades for item in sequence.offer(trade)]


def written(items: Iterable[Trade | Gap]) -> list[int]:
    """Return the ids of the trades among these."""
    return [item.last for item in items if isinstance(item, Trade)]


def missing(sequence: Sequence) -> list[tuple[int, int]]:
    """Return the missing ranges."""
    return list(sequence.missing())


# ------------------------------------------------------------------------------------ which push may be written


@pytest.mark.parametrize("count", [1, 3, 10, "", "0", "abc"])
def test_the_first_push_ever_is_written_and_the_start_is_on_record(count: object) -> None:
    """What lies before it is unknown."""
    trade = push(10, count)
    gap, first = Sequence(1000).offer(trade)
    assert isinstance(gap, Gap)
    assert first == trade
    assert (gap.reason, gap.after_id, gap.before_id) == ("start", None, trade.first)


def test_a_push_that_continues_the_file_is_written_at_once() -> None:
    sequence = stored_up_to(10)
    assert written(offer_all(sequence, [push(11), push(14, 3), push(15)])) == [11, 14, 15]
    assert not sequence.open
    assert sequence.last == 15


def test_a_taker_order_at_several_prices_is_written_push_by_push() -> None:
    """They share a millisecond; only behind single trades of it, from REST, a push may begin earlier than it says."""
    sequence = stored_up_to(10)
    assert written(offer_all(sequence, [push(last, 3, ts=TS + 5) for last in (13, 16, 19)])) == [13, 16, 19]
    assert written(offer_all(Sequence(1000), [push(last, "", ts=TS + 5) for last in (11, 12, 13)])) == [11, 12, 13]
    sequence.offer(push(21, 1, ts=TS + 5))
    assert written(sequence.offer(single(20, ts=TS + 5))) == [20, 21]
    assert written(sequence.offer(push(24, 3, ts=TS + 5))) == []
    assert missing(sequence) == [(22, 24)]


@pytest.mark.parametrize("count", ["", "0", "-1", "16", "1.5", "abc", "None", "9" * 400, "\u0661"])
def test_a_push_without_a_usable_count_continues_the_file_only_with_the_next_id(count: str) -> None:
    """Nothing is known of what else is in it."""
    sequence = stored_up_to(14)
    assert written(sequence.offer(push(15, count))) == [15]
    sequence = stored_up_to(13)
    assert written(sequence.offer(push(15, count))) == []
    assert missing(sequence) == [(14, 14)]
    assert written(sequence.offer(single(14))) == [14, 15], "another millisecond: 14 is no part of the push"


def test_a_push_without_count_gives_way_to_rest_where_it_may_hold_the_trades_before_it() -> None:
    """The true push may be 13 to 15."""
    sequence = stored_up_to(12)
    assert written(offer_all(sequence, [push(15, "", ts=TS + 5), single(13, ts=TS + 5), single(14, ts=TS + 5)])) == [
        13,
        14,
    ]
    assert missing(sequence) == [(15, 15)]
    assert written(sequence.offer(single(15, ts=TS + 5))) == [15]


def test_pushes_without_count_need_no_rest_once_the_gap_is_closed() -> None:
    """OKX left the count out until 2023: a gap then must not send every later push through REST."""
    sequence = stored_up_to(10)
    assert written(offer_all(sequence, [push(12, ""), single(11), push(13, ""), push(14, "")])) == [11, 12, 13, 14]
    assert not sequence.open


def test_a_late_push_closes_the_gap_without_rest() -> None:
    sequence = stored_up_to(10)
    assert written(offer_all(sequence, [push(16, 2), push(14), push(13, 2)])) == []
    assert missing(sequence) == [(11, 11)]
    assert written(sequence.offer(push(11))) == [11, 13, 14, 16]
    assert not sequence.open


def test_a_push_between_the_file_and_what_waits_is_written_at_once() -> None:
    sequence = stored_up_to(10)
    sequence.offer(push(14))
    assert written(sequence.offer(push(12, 2))) == [12]
    assert missing(sequence) == [(13, 13)]


def test_what_is_stored_is_a_duplicate() -> None:
    sequence = stored_up_to(10)
    assert offer_all(sequence, [push(10), push(9, 3), single(3)]) == []
    assert sequence.skipped == 3
    assert not sequence.open


def test_a_repeated_push_that_waits_is_a_duplicate() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(14, 2), push(14, 2)])
    assert sequence.skipped == 1
    assert missing(sequence) == [(11, 12)]


def test_a_straddling_aggregate_is_replaced_by_its_single_trades() -> None:
    sequence = stored_up_to(10)
    assert offer_all(sequence, [push(12, 4)]) == []
    assert missing(sequence) == [(11, 12)]
    assert written(offer_all(sequence, [single(11), single(12)])) == [11, 12]


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1, 0), (0,), (1,), (0, 0), (1, 1)])
def test_interleaved_aggregates_of_two_sources_come_from_rest(order: tuple[int, ...]) -> None:
    """11, 13, 15 and 12, 14, 16 of one order seem to cover 13-15 and 14-16, which is true of neither."""
    sequence = stored_up_to(10)
    pushes = push(15, 3, ts=TS + 9), push(16, 3, ts=TS + 9)
    items = offer_all(sequence, [pushes[i] for i in order])
    upto = 16 if 1 in order else 15
    while ranges := missing(sequence):
        items += sequence.offer(single(ranges[0][0], ts=TS + 9))
    assert written(items) == list(range(11, upto + 1))
    assert all(item.repaired for item in items if isinstance(item, Trade))


def test_an_interleaved_aggregate_is_not_believed_behind_a_single_push_of_its_order() -> None:
    """11 and 13 without count around 12 of the other source: behind 11 from REST, 13 as pushed would count 11 twice."""
    sequence = stored_up_to(10)
    pushes = [push(12, ts=TS + 9), push(13, "", ts=TS + 9, sz="2")]
    assert written(offer_all(sequence, [*pushes, single(11, ts=TS + 9)])) == [11, 12]
    assert missing(sequence) == [(13, 13)]


def test_an_aggregate_is_not_believed_behind_a_single_push_that_follows_its_own_single_trade() -> None:
    """11 and 14 of one source around 12 of the other, 13 never existed: 14 seems to cover 13 and 14, and holds 11."""
    sequence = stored_up_to(10)
    pushes = [push(12, ts=TS + 9), push(14, 2, ts=TS + 9)]
    assert written(offer_all(sequence, [*pushes, single(11, ts=TS + 9)])) == [11, 12]
    assert missing(sequence) == [(13, 14)]


@pytest.mark.parametrize(
    "pushes",
    [[(13, 2), (14, 2)], [(14, 2), (13, 2)], [(15, 4), (14, 1)], [(14, 1), (15, 4)], [(15, 3), (13, 3)]],
    ids=str,
)
def test_pushes_that_overlap_come_from_rest_however_they_do(pushes: list[tuple[int, int]]) -> None:
    sequence = stored_up_to(10)
    items = offer_all(sequence, [push(last, count) for last, count in pushes])
    items += offer_all(sequence, [single(i) for i in range(11, 16)])
    assert written(items) == [11, 12, 13, 14, 15]
    assert all(item.repaired for item in items if isinstance(item, Trade))


def test_an_interleaved_aggregate_is_not_believed_behind_another_price_of_its_order() -> None:
    """11 and 14 at one price, 12 and 13 (lost) at another: the push of 14 holds 11, not 13."""
    sequence = stored_up_to(10)
    items = offer_all(sequence, [push(14, 2, ts=TS + 9), single(11, ts=TS + 9)])
    items += offer_all(sequence, [single(12, ts=TS + 9, px="100.6"), single(13, ts=TS + 9, px="100.6")])
    assert written(items) == [11, 12, 13]
    assert missing(sequence) == [(14, 14)]


def test_an_aggregate_around_absent_ids_is_not_believed_behind_its_own_single_trades() -> None:
    """11 and 14 in one push, 12 and 13 never existed: the push seems to cover 13 and 14."""
    sequence = stored_up_to(10)
    items = offer_all(sequence, [push(14, 2, ts=TS + 9), single(11, ts=TS + 9)])
    items += sequence.give_up(12, "absent")
    assert written(items) == [11]
    assert missing(sequence) == [(13, 14)]


def test_an_aggregate_is_not_believed_right_after_a_restart_in_the_millisecond_of_the_last_stored_trade() -> None:
    """The last line may be a single trade out of that very aggregate, fetched before the crash."""
    sequence = Sequence(1000)
    sequence.restart(12, str(TS + 9))
    assert written(sequence.offer(push(15, 3, ts=TS + 9))) == []
    assert missing(sequence) == [(13, 15)]


def test_trades_behind_a_repair_are_believed_in_another_millisecond() -> None:
    sequence = stored_up_to(10)
    assert written(offer_all(sequence, [push(14, 3), single(11), push(16, 2), push(17, "")])) == [11, 14, 16, 17]


def test_a_restart_drops_what_waits_and_goes_on_behind_the_file() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(11), push(14)])
    sequence.restart(9, str(TS))
    assert missing(sequence) == [(10, 14)]
    assert written(sequence.offer(push(10))) == [10]


def test_a_restart_without_anything_stored_starts_anew() -> None:
    sequence = stored_up_to(10)
    sequence.restart(None, "")
    assert not sequence.open
    assert [type(item) for item in sequence.offer(push(20))] == [Gap, Trade]


# --------------------------------------------------------------------------------------- waiting, missing, lacks


def test_lacks_agrees_with_the_missing_ranges() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(20, 3), single(15), push(30, "")])
    absent = {i for low, high in sequence.missing() for i in range(low, high + 1)}
    assert absent == {*range(11, 15), 16, 17, *range(21, 30)}
    assert {i for i in range(40) if sequence.lacks(i)} == absent


@pytest.mark.parametrize("limit", [1, 5, 50])
def test_waiting_is_bounded_and_what_is_dropped_is_missing(limit: int) -> None:
    sequence = stored_up_to(10, limit)
    for trade_id in range(12, 200):
        sequence.offer(push(trade_id))
        assert len(sequence.waiting) <= limit
    assert sequence.seen == 199
    assert missing(sequence)[-1][1] <= 199
    items: list[Trade | Gap] = []
    while ranges := missing(sequence):
        items += sequence.offer(single(ranges[0][0]))
    assert written(items) == list(range(11, 200))


def test_rest_rows_ahead_of_their_turn_survive_the_waiting_bound() -> None:
    """They cost a request each hundred; pushes cost none."""
    sequence = stored_up_to(10, 2)
    offer_all(sequence, [push(20), single(15), push(25), push(27)])
    assert [trade.last for trade in sequence.waiting if trade.repaired] == [15]
    assert not sequence.lacks(15)


# ------------------------------------------------------------------------------------------------- what is given up


def test_giving_up_records_each_missing_range_and_stores_what_lies_between() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(15, 2), push(20)])
    items = sequence.give_up(20, "unrepaired")
    assert items == [
        Gap("unrepaired", 10, 14, str(TS), push(15, 2).ts),
        push(15, 2),
        Gap("unrepaired", 15, 20, push(15, 2).ts, push(20).ts),
        push(20),
    ]
    assert not sequence.open


def test_giving_up_the_older_part_leaves_the_newer_part_to_be_repaired() -> None:
    """That is the horizon: ids up to 14 are too old."""
    sequence = stored_up_to(10)
    sequence.offer(push(20))
    assert sequence.give_up(14, "horizon", str(TS + 14)) == [Gap("horizon", 10, 15, str(TS), str(TS + 14))]
    assert missing(sequence) == [(15, 19)]
    assert written(offer_all(sequence, [single(i) for i in range(15, 20)])) == [*range(15, 20), 20]


def test_giving_up_ids_that_pushes_showed_but_do_not_wait_goes_up_to_the_highest() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(15, 3), push(16, 3)])
    (gap,) = sequence.give_up(sequence.seen, "unrepaired")
    assert isinstance(gap, Gap)
    assert (gap.after_id, gap.before_id) == (10, 17)
    assert written(sequence.offer(push(17))) == [17]


def test_giving_up_nothing_does_nothing() -> None:
    assert stored_up_to(10).give_up(10**9, "absent") == []


def test_shown_ts_is_the_time_of_the_trade_that_showed_the_gap() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(20), push(25), push(22)])
    assert sequence.shown_ts == push(20).ts
    offer_all(sequence, [single(i) for i in range(11, 25) if i not in {20, 22}])
    assert not sequence.open
    sequence.offer(push(40))
    assert sequence.shown_ts == push(40).ts


# ------------------------------------------------------------------------------------------------------ reset of ids


HIGH = 2_978_601_964


@pytest.mark.parametrize(
    ("last", "newer", "hinted"),
    [(HIGH - RESET_IDS - 1, True, True), (HIGH - RESET_IDS, True, False), (7, True, True), (7, False, False)],
)
def test_only_a_much_lower_id_with_a_newer_time_hints_at_a_reset(last: int, newer: bool, hinted: bool) -> None:
    sequence = stored_up_to(HIGH)
    assert sequence.offer(push(last, ts=TS + 1 if newer else TS)) == ()
    assert (sequence.reset_hint is not None) == hinted
    assert sequence.skipped == 1, "until REST agrees it is a duplicate"


def test_after_a_reset_the_sequence_goes_on_at_the_lower_ids() -> None:
    """What was missing before goes on record with it; the push that showed it comes from REST."""
    sequence = stored_up_to(HIGH)
    sequence.offer(push(HIGH + 3))
    hint = push(7, 3, ts=TS * 2)
    sequence.offer(hint)
    items = sequence.reset(hint)
    assert items == [
        Gap("id_reset", HIGH, HIGH + 3, str(TS), push(HIGH + 3).ts),
        push(HIGH + 3),
        Gap("id_reset", HIGH + 3, 5, push(HIGH + 3).ts, hint.ts),
    ]
    assert missing(sequence) == [(5, 7)]
    assert written(offer_all(sequence, [*(single(i, ts=TS * 2) for i in (5, 6, 7)), push(8, ts=TS * 2 + 1)])) == [
        5,
        6,
        7,
        8,
    ]
    skipped = sequence.skipped
    assert written(sequence.offer(push(HIGH + 9))) == []
    assert (missing(sequence), sequence.skipped) == ([], skipped + 1), "a straggler with an id of before"
    assert written(offer_all(sequence, [push(10, ts=TS * 3), single(9, ts=TS * 2 - 1)])) == [9, 10], "times may fall"


def test_the_line_of_the_gaps_file_has_strings_only_and_nothing_where_there_is_nothing() -> None:
    gap = Gap("start", None, 5, "", "1791369350776")
    assert gap.line(INST_ID, "2026-11-21T12:00:00.000Z") == (
        b'{"recorded_utc":"2026-11-21T12:00:00.000Z","instId":"BTC-USDT-SWAP","reason":"start","after_id":"",'
        b'"before_id":"5","after_utc":"","before_utc":"2026-10-07T10:35:50.776Z"}\n'
    )
