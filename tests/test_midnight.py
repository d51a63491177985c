"""DayEnds: which trades fit their day's file at midnight, and what ends a pending range."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_sequence import single
from trades_exporter import NOTHING, DayEnds, milliseconds

MIDNIGHT = int(milliseconds("2026-11-21T00:00:00.000Z"))
NOON = "2026-11-21T12:00:00.000Z"


def ends(*trades: tuple[int, str]) -> DayEnds:
    """Return the ends of files that were given these ids with these times of November, `21T00:00:01.500`."""
    out = DayEnds()
    for trade_id, time in trades:
        out.add(single(trade_id, int(milliseconds(f"2026-11-{time}Z"))))
    return out


OLD, WRONG = (5, "20T23:59:50.000"), (8, "21T00:05:00.000")
FITS: dict[str, tuple[DayEnds, str, str, bool]] = {  # what is stored; the time of trade 9, and of this PC; does it fit
    "nothing is stored": (ends(), "20T12:00:00.000", NOON, True),
    "it goes on in its day": (ends(OLD), "20T23:59:51.000", NOON, True),
    "it begins a day": (ends(OLD), "21T00:00:00.000", NOON, True),
    "a later day has later ids only": (ends(OLD, (10, "21T06:00:00.000")), "20T23:59:51.000", NOON, True),
    "its day has its id": (ends((9, "20T12:00:00.000")), "20T12:00:00.000", NOON, False),
    "its day has later ids": (ends((10, "20T12:00:00.000")), "20T12:00:01.000", NOON, False),
    "a second around midnight": (ends(OLD, (8, "21T00:00:01.000")), "20T23:59:59.000", NOON, True),
    "too early for that": (ends(OLD, (8, "21T00:00:00.000")), "20T23:59:58.999", NOON, False),
    "too late for that": (ends(OLD, (8, "21T00:00:01.001")), "20T23:59:59.999", NOON, False),
    "15 minutes ahead": (ends(WRONG, (5, "20T23:49:59.000")), "20T23:50:00.000", NOON, False),
    "over 15 minutes ahead": (ends(WRONG, (5, "20T23:49:59.000")), "20T23:49:59.999", NOON, True),
    "that, a second before what is stored": (ends(WRONG, (5, "20T12:00:00.000")), "20T11:59:59.000", NOON, True),
    "that, and its own time is wrong": (ends(WRONG, (5, "20T12:00:00.000")), "20T11:59:58.999", NOON, False),
    "this PC's clock knows better": (ends(WRONG, OLD), "20T23:59:51.000", "2026-11-21T00:03:59.999Z", True),
    "this PC's clock may be slow": (ends(WRONG, OLD), "20T23:59:51.000", "2026-11-21T00:04:00.000Z", False),
    "a wrong time, with nothing before": (ends((8, "22T10:00:00.000")), "21T12:00:00.000", NOON, True),
    "of an old day, with nothing before": (ends((8, "21T10:00:00.000")), "20T12:00:00.000", NOON, False),
}


@pytest.mark.parametrize(("stored", "time", "now", "fits"), FITS.values(), ids=FITS.keys())
def test_a_trade_fits_its_days_file_or_not(stored: DayEnds, time: str, now: str, *, fits: bool) -> None:
    assert stored.fits(single(9, int(milliseconds(f"2026-11-{time}Z"))), now) == fits


@pytest.mark.parametrize(("pending_day", "fits"), [("2026-11-19", True), ("2026-11-20", True), ("2026-11-21", False)])
def test_a_live_trade_does_not_fit_a_day_that_history_fills(pending_day: str, *, fits: bool) -> None:
    """The pending range may end within that day: what follows it there is live."""
    assert ends(OLD).fits(single(9, MIDNIGHT - 1), NOON, pending_day) == fits


@given(times=st.lists(st.integers(-3000, 3000), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_what_would_break_the_order_of_the_days_does_not_fit_and_nothing_else(times: list[int]) -> None:
    """`times`: ms after midnight, of rising ids."""
    after = iter(sorted(time for time in times if time >= 0))  # within the new day they rise
    stored = DayEnds()
    new: list[int] = []  # times of the new day's trades
    for trade_id, time in enumerate(next(after) if time >= 0 else time for time in times):
        trade = single(trade_id, MIDNIGHT + time)
        fits = time >= 0 or not new or (time >= -1000 and max(new) <= 1000)
        assert stored.fits(trade, NOON) == fits
        if fits:
            stored.add(trade)
            new += [time] * (time >= 0)


@pytest.mark.parametrize(
    ("stored", "ms", "ends_range"),
    [
        (ends(), 5000, False),
        (ends((8, "21T06:00:00.000")), 5000, False),
        (ends((10, "20T23:00:00.000"), (8, "21T06:00:00.000")), 5000, False),
        (ends((10, "21T06:00:00.000")), -1, False),
        (ends((10, "21T06:00:00.000")), 999, False),
        (ends((10, "21T06:00:00.000")), 1000, True),
        (ends((9, "21T06:00:00.000")), 1000, True),
    ],
)
def test_a_trade_ends_a_range_where_its_day_is_stored_further_on(stored: DayEnds, ms: int, *, ends_range: bool) -> None:
    """But not in the first second of the day: times may cross there, and trades after it are of the day before."""
    assert stored.ends_range(single(9, MIDNIGHT + ms)) == ends_range


def test_the_highest_stored_trade_is_not_that_of_the_newest_day() -> None:
    stored = ends((9, "20T23:59:59.900"), (8, "21T00:00:00.100"))
    found = (stored.highest(), stored.highest(9), stored.highest_later(single(10, MIDNIGHT - 1)))
    assert [end.trade_id for end in found] == [9, 8, 8]
    assert stored.highest(8) == NOTHING
    assert stored.highest_later(single(8, MIDNIGHT - 1)) == NOTHING
