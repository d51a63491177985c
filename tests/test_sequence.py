"""Sequence: which push may be written now, what waits, what is missing, and what goes on record."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trades_exporter import FALLEN_PUSHES, BuildFailError, Gap, Sequence, Trade, parse_trade, utc

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
    return parse_trade(row(trade_id, TS + trade_id if ts is None else ts, px, sz, "buy"), fetched=True)


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
    assert all(item.fetched for item in items if isinstance(item, Trade))


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
    assert all(item.fetched for item in items if isinstance(item, Trade))


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
    items += sequence.put_on_record(12, "absent")
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


def test_what_was_stored_and_is_lost_is_missing_after_a_restart() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(11), push(14, 3)])
    sequence.restart(11, str(TS + 11))
    assert missing(sequence) == [(12, 14)]


def test_a_restart_without_anything_stored_starts_anew() -> None:
    sequence = stored_up_to(10)
    sequence.restart(None, "")
    assert not sequence.open
    assert [type(item) for item in sequence.offer(push(20))] == [Gap, Trade]


# --------------------------------------------------------------------------------------- waiting, missing, lacks


@pytest.mark.parametrize("limit", [1, 5, 50])
def test_waiting_is_bounded_and_what_is_dropped_is_missing(limit: int) -> None:
    sequence = stored_up_to(10, limit)
    for trade_id in range(12, 200):
        sequence.offer(push(trade_id))
        assert len(sequence.waiting) <= limit
    assert sequence.known_id == 199
    assert missing(sequence)[-1][1] <= 199
    items: list[Trade | Gap] = []
    while ranges := missing(sequence):
        items += sequence.offer(single(ranges[0][0]))
    assert written(items) == list(range(11, 200))


def test_rest_rows_ahead_of_their_turn_survive_the_waiting_bound() -> None:
    """They cost a request each hundred; pushes cost none."""
    sequence = stored_up_to(10, 2)
    offer_all(sequence, [push(20), single(15), push(25), push(27)])
    assert [trade.last for trade in sequence.waiting if trade.fetched] == [15]
    assert not sequence.lacks(15)


# ------------------------------------------------------------------------------------------------- what is given up


def test_giving_up_records_each_missing_range_and_stores_what_lies_between() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(15, 2), push(20)])
    stored, first, second = utc(str(TS)), utc(push(15, 2).ts), utc(push(20).ts)
    assert sequence.put_on_record(20, "unrepaired") == [
        Gap("unrepaired", 10, 14, stored, first),
        push(15, 2),
        Gap("unrepaired", 15, 20, first, second),
        push(20),
    ]
    assert not sequence.open


def test_giving_up_the_older_part_leaves_the_newer_part_to_be_repaired() -> None:
    sequence = stored_up_to(10)
    sequence.offer(push(20))
    assert sequence.put_on_record(14, "horizon") == [Gap("horizon", 10, 15, utc(str(TS)), utc(push(20).ts))]
    assert missing(sequence) == [(15, 19)]
    assert written(offer_all(sequence, [single(i) for i in range(15, 20)])) == [*range(15, 20), 20]


def test_giving_up_ids_that_pushes_showed_but_do_not_wait_goes_up_to_the_highest() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(15, 3), push(16, 3)])
    assert sequence.put_on_record(sequence.known_id, "unrepaired") == [
        Gap("unrepaired", 10, 17, utc(str(TS)), utc(push(16).ts))
    ]
    assert written(sequence.offer(push(17))) == [17]


@pytest.mark.parametrize("upto", [-1, 10, 10**9])
def test_giving_up_where_nothing_is_missing_does_nothing(upto: int) -> None:
    assert stored_up_to(10).put_on_record(upto, "absent") == []
    assert Sequence().put_on_record(upto, "absent") == []


def test_giving_up_below_what_is_missing_does_nothing() -> None:
    sequence = stored_up_to(10)
    sequence.offer(push(20))
    assert sequence.put_on_record(10, "absent") == []
    assert missing(sequence) == [(11, 19)]


def test_a_gap_from_the_lowest_id_of_all_has_none_before_it() -> None:
    """So a Vault is filled whose first id is not known yet."""
    sequence = Sequence()
    sequence.restart(-1, str(TS))
    assert written(sequence.offer(single(5))) == []
    gap, trade = sequence.put_on_record(4, "horizon")
    assert gap == Gap("horizon", None, 5, utc(str(TS)), utc(single(5).ts))
    assert trade == single(5)


# ------------------------------------------------------------------------------------------- present and history


def test_with_an_expected_end_all_ids_up_to_it_are_missing_and_none_above() -> None:
    """History has no feed that would show them."""
    sequence = stored_up_to(10)
    sequence.expect(14, str(TS + 14))
    assert missing(sequence) == [(11, 14)]
    assert written(offer_all(sequence, [single(11), single(13)])) == [11]
    assert sequence.put_on_record(99, "horizon") == [
        Gap("horizon", 11, 13, utc(single(11).ts), utc(single(13).ts)),
        single(13),
        Gap("horizon", 13, 15, utc(single(13).ts), utc(str(TS + 14))),
    ]
    assert not sequence.open
    assert sequence.last == 14


def test_an_expected_end_may_move_either_way() -> None:
    """While an archive is read only what it passed over is missing."""
    sequence = stored_up_to(10)
    for last, ranges in ((20, [(11, 20)]), (10, []), (30, [(11, 30)])):
        sequence.expect(last, str(TS))
        assert missing(sequence) == ranges


def test_what_lies_below_the_first_id_of_a_day_is_skipped_without_a_gap() -> None:
    """Somebody else fetches it; a push that reaches over the edge comes from REST."""
    sequence = stored_up_to(10)
    offer_all(sequence, [push(20, 3), push(30, 2), push(16, 3)])
    assert sequence.continue_at(20, str(TS + 20)) == []
    assert [trade.last for trade in sequence.waiting] == [30]
    assert missing(sequence) == [(20, 28)]
    assert sequence.last == 19
    items = offer_all(sequence, [push(15), single(20), *(single(i) for i in range(21, 29))])
    assert written(items) == [*range(20, 29), 30]
    assert sequence.skipped == 1


def test_what_waits_for_a_day_to_begin_is_stored_when_it_does() -> None:
    sequence = stored_up_to(10)
    offer_all(sequence, [push(20), push(22, 2), push(30)])
    assert written(sequence.continue_at(20, push(20).ts)) == [20, 22]
    assert missing(sequence) == [(23, 29)]


# -------------------------------------------------------------------------------------------------- ids that fell

NEWER, NOT_NEWER, NEXT, AHEAD, REST_ROW = "newer time, stored id", "stored time and id", "next", "ahead", "REST row"


def one_of(kind: str, sequence: Sequence) -> Trade:
    """Return a trade of this kind for a sequence; the ids up to `last` are stored."""
    last, ts = sequence.last or 0, int(sequence.ts)
    return {
        NEWER: push(last - last % 3, ts=ts + 1),
        NOT_NEWER: push(last, ts=ts),
        NEXT: push(last + 1, ts=ts + 1),
        AHEAD: push(sequence.known_id + 3 if sequence.open else last + 3, ts=ts + 1),
        REST_ROW: single(last, ts=ts + 1),
    }[kind]


@given(kinds=st.lists(st.tuples(st.sampled_from([NEWER, NEWER, NEWER, NOT_NEWER, NEXT, AHEAD]), st.integers(1, 11))))
@settings(deadline=None, derandomize=True)
def test_only_so_many_pushes_in_a_row_show_that_the_ids_fell(kinds: list[tuple[str, int]]) -> None:
    sequence = stored_up_to(10**9)
    in_a_row = skipped = 0
    for kind in [kind for kind, times in kinds for _ in range(times)]:
        in_a_row = in_a_row + 1 if kind == NEWER else 0
        skipped += kind in {NEWER, NOT_NEWER}
        if in_a_row == FALLEN_PUSHES:
            with pytest.raises(BuildFailError, match="Trade ids fell"):
                sequence.offer(one_of(kind, sequence))
            return
        sequence.offer(one_of(kind, sequence))
        assert sequence.skipped == skipped


def test_the_error_names_both_ids_and_times_and_what_to_do() -> None:
    sequence = stored_up_to(2_978_601_964)
    for _ in range(FALLEN_PUSHES - 1):
        assert sequence.offer(push(7, ts=TS + 5)) == ()
    with pytest.raises(BuildFailError) as caught:
        sequence.skip(push(7, ts=TS + 5))  # as where its key is known to be stored
    text = str(caught.value)
    assert text.startswith("BUILD_FAIL: Trade ids fell")
    for part in (INST_ID, "7", utc(str(TS + 5)), "2978601964", utc(str(TS)), "--vault"):
        assert part in text
    assert FALLEN_PUSHES == 10


def test_rows_of_rest_do_not_show_that_the_ids_fell() -> None:
    """They are asked for by id: what is stored comes with them all the time."""
    sequence = stored_up_to(10)
    assert offer_all(sequence, [one_of(REST_ROW, sequence)] * 3 * FALLEN_PUSHES) == []


# ---------------------------------------------------------------------------------------------- any order of anything

SPLITS = st.lists(st.sampled_from([1, 1, 1, 2, 3, 7]), min_size=1, max_size=15)
STEPS = st.lists(
    st.tuples(st.sampled_from(["push", "push", "push", "single", "single", "give up"]), st.integers(0, 60)), max_size=80
)


@given(counts=SPLITS, steps=STEPS, limit=st.sampled_from([1, 3, 1000]), same_ms=st.booleans(), first=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_comes_in_whatever_order_each_id_is_stored_once_or_on_record(
    counts: list[int], steps: list[tuple[str, int]], limit: int, same_ms: bool, first: bool
) -> None:
    """Pushes that are true, in any order and number, rows of REST between them, ranges given up now and then."""
    ends = [10 + sum(counts[: i + 1]) for i in range(len(counts))]
    ts = TS + 1 if same_ms else None
    pushes = [push(end, count, ts=ts) for end, count in zip(ends, counts, strict=True)]
    sequence = Sequence(limit) if first else stored_up_to(10, limit)
    items: list[Trade | Gap] = []
    for what, i in [*steps, ("push", len(pushes) - 1)]:
        if what == "push":
            items += sequence.offer(pushes[i % len(pushes)])
        elif what == "single":
            items += sequence.offer(single(11 + i % (ends[-1] - 10), ts=ts))
        else:
            items += sequence.put_on_record(10 + i, "unrepaired")
    while ranges := missing(sequence):
        items += sequence.offer(single(ranges[0][0], ts=ts))
    begin = 11
    if first:
        start = items.pop(0)
        assert isinstance(start, Gap)
        assert (start.reason, start.after_id) == ("start", None)
        begin = start.before_id
    assert [i for item in items for i in ids_of(item)] == list(range(begin, ends[-1] + 1)), "in order, once, all"
    assert not sequence.waiting
    assert (sequence.last, sequence.open) == (ends[-1], False)


def ids_of(item: Trade | Gap) -> range:
    """Return the ids that a trade or a gap covers."""
    return range(item.first, item.last + 1) if isinstance(item, Trade) else range(item.first, item.before_id)


@given(steps=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4), st.booleans()), max_size=40))
@settings(deadline=None, derandomize=True)
def test_what_is_missing_is_what_was_passed_over(steps: list[tuple[int, int, bool]]) -> None:
    """Of any pushes, true or not: `missing` and `lacks` agree, and what waits is in order, without overlaps."""
    sequence = stored_up_to(10)
    for last, count, fetched in steps:
        sequence.offer(single(last) if fetched else push(last, count))
        ranges = missing(sequence)
        assert all(low <= high for low, high in ranges)
        assert all(below < low - 1 for (_, below), (low, _) in pairwise(ranges))
        absent = {i for low, high in ranges for i in range(low, high + 1)}
        assert {i for i in range(-1, 50) if sequence.lacks(i)} == absent
        assert all(one.last < other.first for one, other in pairwise(sequence.waiting))
        waiting = {i for trade in sequence.waiting for i in ids_of(trade)}
        assert absent | waiting == set(range((sequence.last or 0) + 1, sequence.known_id + 1))
        assert not absent & waiting
