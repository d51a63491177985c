"""Repair: whatever the feed loses, doubles, delays and shuffles and however REST answers, each trade is stored once.

A whole exchange in pure Python: a tape of taker orders, the pushes that the feed makes of it, a REST that lags, hides,
cuts and forgets, and a clock that is a number. `Exchange.record` does what Recorder does, without sockets and files.
"""

import heapq
import itertools
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from test_sequence import INST_ID, TS, missing, offer_all, push, row, single, written
from trades_exporter import (
    LATE_S,
    LOOKAHEAD_TRADES,
    PAGE,
    POLL_S,
    PROOF_ANSWERS,
    PROOF_S,
    Gap,
    HoleSearch,
    Learned,
    RecentKeys,
    Repair,
    Sequence,
    Trade,
    parse_rows,
    utc,
)

FIRST_ID = 2_978_601_964
PATIENCE_S = 600.0  # after the last push everything must be quiet by then
HIDDEN_S = 10.0  # a trade is in every answer of REST after that; 15 s of answers without it prove it absent


class Single(NamedTuple):
    """One single trade of the tape."""

    trade_id: int
    at: float  # when it happened, s
    ts: int
    px: str
    sz: str


class Push(NamedTuple):
    """What the feed says at once, and which trades it truly holds."""

    trade: Trade
    holds: tuple[int, ...]
    at: float


class Order(NamedTuple):
    """A taker order: for each id its `source`, or None for an id that never existed."""

    sources: Ordered[int | None]
    skipped: int = 0  # ids before it that never existed
    pause: float = 0.1  # s since the one before it
    same_ms: bool = False  # as the one before it
    prices: bool = False  # each source has its own price
    says: str = "true"  # the pushes' count; "true" is how many trades they hold


FIRST = Order((0,))


class Tape:
    """All that happened."""

    def __init__(self, orders: Iterable[Order], first_id: int = FIRST_ID) -> None:
        self.singles: list[Single] = []
        self.pushes: list[Push] = []
        trade_id, at, ts = first_id, 0.0, TS
        for order in orders:
            trade_id, at = trade_id + order.skipped, at + order.pause
            ts = ts if order.same_ms else ts + 1 + int(order.pause * 1000)
            filled: dict[int, list[Single]] = {}
            for source in order.sources:
                if source is not None:
                    px = f"100.{source}" if order.prices else "100.5"
                    one = Single(trade_id, at, ts, px, f"0.{trade_id % 997 + 1:03}")
                    filled.setdefault(source, []).append(one)
                    self.singles.append(one)
                trade_id += 1
            for singles in sorted(filled.values()):
                last = singles[-1]
                size = str(sum(Decimal(one.sz) for one in singles))
                said = str(len(singles)) if order.says == "true" else order.says
                holds = tuple(one.trade_id for one in singles)
                self.pushes.append(Push(push(last.trade_id, said, last.ts, last.px, size), holds, at))
        self.pushes.sort(key=lambda one: one.at)
        self.ids = [one.trade_id for one in self.singles]


@dataclass
class Rest:
    """OKX's history-trades, as bad as it is allowed to be: what is older than HIDDEN_S is in every full answer."""

    tape: Tape
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    lag: float = 0.0  # an answer shows what was there up to so long ago, each another
    hidden: float = 0.0  # the share of young trades that an answer lacks
    cut: float = 0.0  # the share of answers, in 10 of each 30 s, that end too early
    latency: float = 0.15  # the longest
    requests: int = 0
    pages: list[int] = field(default_factory=list)

    def answer(self, after: int, now: float) -> list[dict[str, object]]:
        """Return the page as OKX sends it, newest first."""
        self.requests += 1
        self.pages.append(after)
        seen_at = now - self.dice.choice((0.0, 1.0, self.dice.random())) * self.lag
        rows: list[dict[str, object]] = []
        for i in range(bisect_left(self.tape.ids, after) - 1, -1, -1):
            one = self.tape.singles[i]
            young = now < one.at + HIDDEN_S
            if one.at <= seen_at and not (young and self.dice.random() < self.hidden):
                rows.append(row(one.trade_id, one.ts, one.px, one.sz, "buy"))
                if len(rows) == PAGE:
                    break
        if now % 30 < 10 and self.dice.random() < self.cut:
            del rows[self.dice.randrange(len(rows) + 1) :]
        return rows


class Recording:
    """What Recorder does, with a number for a clock and lists for files."""

    def __init__(self, rest: Rest, limit: int = 1000) -> None:
        self.rest = rest
        self.limit = limit
        self.now = 0.0
        self.sequence = Sequence(limit)
        self.recent = RecentKeys()
        self.lines: list[Trade] = []
        self.gaps: list[Gap] = []
        self.coming: list[tuple[float, int, Callable[[], None]]] = []  # a heap: when, which first, what
        self._order = itertools.count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self.coming, (when, next(self._order), what))

    def take(self, trade: Trade) -> None:
        """Take a push."""
        if trade.key not in self.recent:
            self.store(self.sequence.offer(trade))

    def store(self, items: Iterable[Trade | Gap]) -> None:
        """Write lines, and put gaps on record."""
        for item in items:
            if isinstance(item, Gap):
                self.gaps.append(item)
            else:
                self.lines.append(item)
                self.recent.add(item.key)

    def crash(self, lost: int, *, process: bool) -> None:
        """Lose the newest lines, and go on behind the others; the process died, or a write failed."""
        del self.lines[max(1, len(self.lines) - lost) :]
        self.recent.clear()
        for trade in self.lines:
            self.recent.add(trade.key)
        if process:
            self.sequence = Sequence(self.limit)
        self.sequence.restart(self.lines[-1].last, self.lines[-1].ts)

    def pass_time(self, upto: float) -> None:
        """Let happen what happens until then."""
        while self.coming and self.coming[0][0] <= upto:
            self.now, _, what = heapq.heappop(self.coming)
            what()
        self.now = upto

    def run(self) -> None:
        """Record until all is quiet."""
        while self.coming:
            self.pass_time(self.coming[0][0])
            while self.sequence.open:
                self._repair()

    def _repair(self) -> None:
        sequence = self.sequence
        repair = Repair(sequence, self.now)
        while sequence is self.sequence and sequence.open:
            assert self.now < PATIENCE_S or self.coming, f"still missing: {list(sequence.missing())[:5]}"
            pages = repair.next_pages(self.now)
            asked_at = self.now
            if not pages:
                self.pass_time(self.now + POLL_S)
            for after in pages:
                answered_at = asked_at + self.rest.latency * self.rest.dice.uniform(0.1, 1)
                rows = self.rest.answer(after, answered_at)
                self.pass_time(max(self.now, answered_at))
                if sequence is not self.sequence or not sequence.open:
                    break
                trades, bad = parse_rows(INST_ID, rows)
                assert not bad
                self.store(repair.learn(after, trades, self.now).items)


def check(tape: Tape, recording: Recording) -> None:
    """Hold what was stored against what happened."""
    holds = {one.trade: one.holds for one in tape.pushes}
    lines = recording.lines
    assert all(before.last < after.last for before, after in itertools.pairwise(lines)), "ids rise strictly"
    stored = [i for line in lines for i in ((line.last,) if line.fetched else holds[line])]
    truth = tape.ids[bisect_left(tape.ids, min(stored)) :]
    assert sorted(stored) == truth, "each trade is stored, once"
    size = {one.trade_id: Decimal(one.sz) for one in tape.singles}
    assert sum(Decimal(line.sz) for line in lines) == sum(size[i] for i in truth)
    assert {gap.reason for gap in recording.gaps} <= {"start", "absent"}
    on_record = sorted((gap.after_id or 0, gap.before_id) for gap in recording.gaps if gap.reason == "absent")
    for after_id, before_id in on_record:
        inside = tape.ids[bisect_right(tape.ids, after_id) : bisect_left(tape.ids, before_id)]
        assert not inside, f"{after_id} to {before_id} is on record as absent, and holds trades"
    upto = truth[0]
    for trade_id in truth[1:]:
        for after_id, before_id in on_record:
            if after_id <= upto < before_id <= trade_id:
                upto = before_id - 1
        assert trade_id == upto + 1, f"nothing is on record between {upto} and {trade_id}"
        upto = trade_id


# ------------------------------------------------------------------------------------------------- any tape, any fault


COUNTS = ("", "0", "-3", "99999999999", "abc")
SOURCES = st.one_of(
    st.builds(lambda n: (0,) * n, st.sampled_from((1, 1, 1, 2, 3, 90, 250))),
    st.lists(st.sampled_from((0, 1)), min_size=2, max_size=8),
    st.lists(st.sampled_from((0, 1, None)), min_size=2, max_size=8),
)
ORDERS = st.builds(
    Order,
    sources=SOURCES,
    skipped=st.sampled_from((0,) * 12 + (1, 2, 99, 150, 10**9)),
    pause=st.sampled_from((0.0, 0.01, 0.1, 1.0, 6.0)),
    same_ms=st.booleans(),
    prices=st.booleans(),
    says=st.sampled_from(("true",) * 6 + COUNTS),
)
DELAYS = st.sampled_from(((), (), (0.0,), (0.0,), (0.0,), (0.1,), (0.0, 0.0), (0.0, 0.2, 3.0), (3.0,), (0.2, 20.0)))
NETWORKS = st.fixed_dictionaries(
    {
        "dice": st.integers(0, 2**32).map(random.Random),
        "lag": st.sampled_from((0.0, 0.5, 5.0, 10.0)),
        "hidden": st.sampled_from((0.0, 0.1, 0.7)),
        "cut": st.sampled_from((0.0, 0.5)),
        "latency": st.sampled_from((0.02, 0.15, 3.0)),
    }
)
CRASHES = st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 30), st.booleans()), max_size=3)


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), orders=st.lists(ORDERS, max_size=14), network=NETWORKS, crashes=CRASHES)
@pytest.mark.parametrize("limit", [1000, 3])
def test_whatever_happens_each_trade_is_stored_once(
    limit: int,
    data: st.DataObject,
    orders: list[Order],
    network: dict[str, Any],
    crashes: list[tuple[float, int, bool]],
) -> None:
    """Losses, doubles, delays and crashes on the one side, lags, holes and short answers on the other."""
    tape = Tape([FIRST, *orders, Order((0,), pause=7.0)])
    recording = Recording(Rest(tape, **network), limit)
    for one in tape.pushes:
        edge = one.holds[-1] in {tape.ids[0], tape.ids[-1]}
        for delay in (0.0,) if edge else data.draw(DELAYS):
            recording.at(one.at + delay, partial(recording.take, one.trade))
    for when, lost, process in crashes:
        recording.at(when, partial(recording.crash, lost, process=process))
    if crashes:  # a crash may lose all that is known of the last trades: another one shows them
        last = tape.pushes[-1].trade
        recording.at(max(tape.singles[-1].at, 30.0) + 0.1, partial(recording.take, last))
    recording.run()
    assert recording.sequence.last == tape.ids[-1]
    check(tape, recording)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_tape_with_every_fault_is_stored_whole(seed: int) -> None:
    """Thousands of trades, half of the pushes lost or late, stretches of seconds without any, and a few crashes."""
    dice = random.Random(seed)

    def order() -> Order:
        sources = dice.choice([(0,), (0,), (0, 0, 0), (0, 1, 0, 1), (1, 0, None, 1), (0,) * dice.randrange(1, 300)])
        count = dice.choice(("true",) * 9 + COUNTS)
        skipped = dice.choice((0,) * 60 + (1, 250, 10**9))
        return Order(sources, skipped, dice.choice((0.0, 0.02, 0.2)), dice.random() < 0.3, dice.random() < 0.5, count)

    tape = Tape([FIRST, *(order() for _ in range(200)), Order((0,))])
    recording = Recording(Rest(tape, dice, lag=3.0, hidden=0.2, cut=0.3), dice.choice((5, 60, 1000)))
    recording.take(tape.pushes[0].trade)
    for one in tape.pushes:
        down = 4 < one.at % 10 < 7 and one.holds[-1] != tape.ids[-1]
        for delay in () if down else dice.choice(((), (0.0,), (0.0,), (0.0, 0.0), (0.2,), (2.0, 9.0))):
            recording.at(one.at + delay, partial(recording.take, one.trade))
    for when in (5.0, 12.0, 12.5):
        recording.at(when, partial(recording.crash, dice.randrange(500), process=dice.random() < 0.5))
    recording.at(tape.singles[-1].at + 40, partial(recording.take, tape.pushes[-1].trade))
    recording.run()
    check(tape, recording)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    sizes=st.lists(st.tuples(st.sampled_from((1, 2, 5, 90)), st.sampled_from((0, 0, 0, 3, 10**9))), max_size=14),
    given_up=st.lists(st.floats(0.1, 12), min_size=1, max_size=4),
    crashes=CRASHES,
)
def test_what_is_given_up_is_on_record_and_all_else_stored(
    data: st.DataObject, sizes: list[tuple[int, int]], given_up: list[float], crashes: list[tuple[float, int, bool]]
) -> None:
    """REST helps nobody for half an hour, now and then; what is fetched after all wins."""
    tape = Tape([FIRST, *(Order((0,) * size, skipped, 1.0) for size, skipped in sizes), Order((0,), pause=7.0)])
    recording = Recording(Rest(tape, lag=5.0, latency=2.0))

    def give_up() -> None:
        recording.store(recording.sequence.put_on_record(recording.sequence.known_id, "unrepaired"))

    for one in tape.pushes[1:-1]:
        for delay in data.draw(DELAYS):
            recording.at(one.at + delay, partial(recording.take, one.trade))
    for when in given_up:
        recording.at(when, give_up)
    for when, lost, process in crashes:
        recording.at(when, partial(recording.crash, lost, process=process))
    recording.take(tape.pushes[0].trade)
    recording.at(40.0, partial(recording.take, tape.pushes[-1].trade))
    recording.run()
    holds = {one.trade: one.holds for one in tape.pushes}
    stored = [i for line in recording.lines for i in ((line.last,) if line.fetched else holds[line])]
    assert stored == sorted(set(stored))
    for trade_id in set(tape.ids) - set(stored):
        assert any(
            gap.reason == "unrepaired" and (gap.after_id or 0) < trade_id < gap.before_id for gap in recording.gaps
        )


# ------------------------------------------------------------------------------------------------ what a repair costs


def repair_of(orders: list[Order], lost: range) -> tuple[Tape, Recording]:
    """Record a tape of which the pushes of these orders are lost, and return what came of it."""
    tape = Tape([FIRST, *orders, Order((0,))])
    recording = Recording(Rest(tape), 200_000)
    for position, one in enumerate(tape.pushes):
        if position not in lost:
            recording.at(one.at, partial(recording.take, one.trade))
    recording.run()
    check(tape, recording)
    return tape, recording


@pytest.mark.parametrize("missing", [1, 2, 50, 99])
def test_a_short_gap_costs_one_request_or_two(missing: int) -> None:
    _, recording = repair_of([Order((0,))] * missing, range(1, missing + 1))
    assert recording.rest.requests <= 2


def test_a_long_gap_costs_a_page_for_a_hundred_trades() -> None:
    _, recording = repair_of([Order((0,), pause=0.001)] * 5000, range(1, 5001))
    assert recording.rest.requests <= 55


@pytest.mark.parametrize("jump", [10**3, 10**9, 10**15])
@pytest.mark.parametrize("lost_before", [0, 30, 250])
@pytest.mark.parametrize("lost_after", [0, 1, 30])
def test_a_jump_of_the_ids_costs_few_requests(jump: int, lost_before: int, lost_after: int) -> None:
    """It is known to be one after 15 s, as any absent id is, and not by asking for all that was passed over."""
    orders = [*[Order((0,))] * lost_before, Order((0,), skipped=jump), *[Order((0,))] * lost_after]
    lost = lost_before + (1 + lost_after if lost_after else 0)
    _, recording = repair_of(orders, range(1, 1 + lost))
    assert recording.rest.requests < 20 + lost_before // PAGE
    assert [gap.reason for gap in recording.gaps] == ["start", "absent"]


@pytest.mark.parametrize("lost_after", [99, 250, 3000])
def test_the_end_of_a_jump_is_searched_where_all_behind_it_was_lost(lost_after: int) -> None:
    """Nothing known is near it."""
    orders = [Order((0,), skipped=10**9), *[Order((0,), pause=0.001)] * lost_after]
    _, recording = repair_of(orders, range(1, lost_after + 2))
    assert recording.rest.requests < 25 + lost_after // PAGE
    assert [gap.reason for gap in recording.gaps] == ["start", "absent"]


def test_many_scattered_absent_ids_cost_15_s_in_all() -> None:
    """Their proofs run side by side."""
    tape, recording = repair_of([Order((0,), skipped=1), *[Order((0,) * 9)] * 7] * 40, range(0))
    assert sum(gap.reason == "absent" for gap in recording.gaps) == 40
    happened_s = tape.singles[-1].at
    assert recording.now < happened_s + 1.5 * PROOF_S


def test_scattered_absent_ids_among_lost_trades_cost_15_s_in_all() -> None:
    orders = [*[Order((0,), skipped=1, pause=0.0), *[Order((0,) * 9, pause=0.0)] * 7] * 40]
    _, recording = repair_of(orders, range(1, 40 * 8 + 1))
    assert sum(gap.reason == "absent" for gap in recording.gaps) == 40
    assert recording.now < 1.5 * PROOF_S
    assert recording.rest.requests < 400


@pytest.mark.parametrize("absent", [False, True])
def test_a_repair_keeps_up_with_a_feed_that_loses_a_tenth_of_its_pushes(absent: bool) -> None:
    """Pages that find little are no sign of a hole in the ids: several are asked for at a time."""
    orders = [Order((0,), pause=0.0003, skipped=int(absent and i % 90 == 7)) for i in range(10_000)]
    tape, recording = repair_of(orders, range(5, 10_000, 10))
    late = recording.now - tape.singles[-1].at
    assert late < (1.5 * PROOF_S if absent else 1.0)
    assert absent or recording.rest.requests < 200


# ---------------------------------------------------------------------------------------------- what proves an absence


def missing_11() -> tuple[Sequence, Repair]:
    """Return a repair of which id 11 is missing, and 12 waits."""
    sequence = Sequence(1000)
    sequence.restart(10, str(TS))
    offer_all(sequence, [push(12)])
    repair = Repair(sequence, 0.0)
    assert repair.next_pages(0.0) == [], "a late push may still come"
    return sequence, repair


def answer(repair: Repair, now: float, *ids: int, after: int = 13) -> Learned:
    """Answer a page with these ids."""
    return repair.learn(after, parse_rows(INST_ID, [row(i, TS + i, "1", "1", "buy") for i in ids])[0], now)


def test_five_answers_over_15_s_prove_an_absence() -> None:
    sequence, repair = missing_11()
    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 15.9):
        assert answer(repair, now, 12, 10) == ([], True)
    gap, trade = answer(repair, 16.0, 12, 10).items
    assert gap == Gap("absent", 10, 12, utc(str(TS)), utc(push(12).ts))
    assert trade == push(12)
    assert not sequence.open


def test_four_answers_prove_nothing_however_long_it_takes() -> None:
    _, repair = missing_11()
    for now in (1.0, 100.0, 200.0, 1000.0):
        assert answer(repair, now, 12, 10).items == []
    assert len(answer(repair, 1001.0, 12, 10).items) == 2
    assert PROOF_ANSWERS == 5


@pytest.mark.parametrize("later", [(), (10,), (12,), (20, 21)], ids=str)
def test_only_answers_that_show_it_make_the_15_s(later: tuple[int, ...]) -> None:
    """Five answers in two seconds, then none that proves anything for long: as while REST is down."""
    sequence, repair = missing_11()
    for now in (1.0, 1.5, 2.0, 2.5, 3.0):
        assert answer(repair, now, 12, 10).items == []
    assert answer(repair, 100.0, *later).items == []
    assert written(answer(repair, 101.0, 12, 11, 10).items) == [11, 12]
    assert not sequence.open


@pytest.mark.parametrize(
    "shows", [(), (10,), (9, 10), (12,), (12, 13), (10, 13), (10, 10**9), (10**9,), tuple(range(500, 600))], ids=str
)
def test_answers_without_ids_below_and_above_prove_nothing(shows: tuple[int, ...]) -> None:
    """A REST that lags shows none above, at the end of its reach none below; beyond it far newer trades were seen."""
    sequence, repair = missing_11()
    for now in range(1, 100):
        assert answer(repair, float(now), *shows) == ([], False)
    assert sequence.open


def test_rows_at_or_above_the_page_s_address_are_ignored() -> None:
    """An answer to another question proves nothing and is worth nothing."""
    sequence, repair = missing_11()
    sequence.offer(push(20))
    assert answer(repair, 1.0, 11, after=11) == ([], False)
    assert missing(sequence) == [(11, 11), (13, 19)]
    assert written(answer(repair, 1.0, 15, 13, 12, 11, after=15).items) == [11, 12, 13]


def test_a_found_trade_helps() -> None:
    sequence, repair = missing_11()
    assert answer(repair, 7.0, 11).helped
    assert not sequence.open
    assert not answer(repair, 8.0, 11).helped, "it is stored already"


def test_nothing_is_asked_for_what_may_still_come_late() -> None:
    sequence, repair = missing_11()
    assert repair.next_pages(LATE_S * 0.9) == []
    sequence.offer(push(11))
    assert repair.next_pages(LATE_S * 2) == []
    sequence.offer(push(20))
    assert repair.next_pages(LATE_S * 2) == []
    assert repair.next_pages(LATE_S * 3.1) == [13 + PAGE]


def test_where_nothing_comes_late_rest_is_asked_at_once() -> None:
    sequence = Sequence()
    sequence.restart(10, str(TS))
    sequence.expect(500, str(TS))
    assert Repair(sequence, 0.0, late_s=0.0).next_pages(0.0) == [11 + PAGE]


@pytest.mark.parametrize("low", [0, 1, 1000])
@pytest.mark.parametrize("exists", [0, 1, 99, 100, 101, 5000, 10**9])
@pytest.mark.parametrize("behind", [0, 50, 10_000])
def test_a_hole_search_finds_the_lowest_id_that_exists(low: int, exists: int, behind: int) -> None:
    """Whether REST has something below the hole, or nothing."""
    for below in (range(max(0, low - 500), low), range(0)):
        ids = [*below, *range(low + exists, low + exists + behind + 1)]
        search = HoleSearch(low, ids[-1])
        outcomes: list[str] = []
        while not outcomes or outcomes[-1] == "going on":
            after = search.address()
            outcomes.append(search.learn(after, ids[max(0, bisect_left(ids, after) - PAGE) : bisect_left(ids, after)]))
            assert len(outcomes) < 60
        assert outcomes[-1] == "found"
        assert search.high == low + exists


def test_a_hole_search_is_lost_where_rest_does_not_show_what_exists() -> None:
    assert HoleSearch(10, 10**6).learn(10**6 + 1, [3, 4]) == "lost"


def test_what_is_fetched_ahead_of_absent_ids_is_bounded() -> None:
    """Rows wait in memory behind ids that are not proven absent yet."""
    orders = [Order((None,)), *[Order((0,) * 1000, pause=0.0)] * 60]
    tape = Tape([FIRST, *orders, Order((0,))])
    recording = Recording(Rest(tape), 200_000)
    longest = 0

    def look() -> None:
        nonlocal longest
        longest = max(longest, len(recording.sequence.waiting))
        recording.at(recording.now + 0.1, look) if recording.sequence.open else None

    recording.take(tape.pushes[0].trade)
    recording.take(tape.pushes[-1].trade)
    recording.at(0.1, look)
    recording.run()
    check(tape, recording)
    assert PAGE < longest <= LOOKAHEAD_TRADES + 1


def test_the_page_of_the_lowest_missing_id_is_asked_for_however_much_waits() -> None:
    """All that waits needs it."""
    sequence = Sequence()
    sequence.restart(10, str(TS))
    sequence.expect(100_000, str(TS))
    repair = Repair(sequence, 0.0, late_s=0.0)
    offer_all(sequence, [single(i) for i in range(50_000, 50_000 + LOOKAHEAD_TRADES)])
    assert repair.next_pages(0.0) == [11 + PAGE]
    assert repair.next_pages(0.1) == [11 + PAGE + PAGE // 2], "no more than that page, once more"


# --------------------------------------------------------------------------------------------------- today first


def test_behind_a_horizon_only_the_newer_part_is_repaired() -> None:
    tape = Tape([FIRST, *[Order((0,))] * 400, Order((0,))])
    recording = Recording(Rest(tape))
    recording.take(tape.pushes[0].trade)
    recording.take(tape.pushes[-1].trade)
    recording.store(recording.sequence.put_on_record(FIRST_ID + 300, "horizon"))
    recording.at(0.0, lambda: None)
    recording.run()
    assert [line.last for line in recording.lines] == [FIRST_ID, *tape.ids[301:]]
    assert [gap.reason for gap in recording.gaps] == ["start", "horizon"]
    assert min(recording.rest.pages) > FIRST_ID + 301
