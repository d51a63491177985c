"""The LRU set of the keys of what is stored."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trades_exporter
from trades_exporter import DEDUP_KEYS, RecentKeys


def key(trade_id: int) -> str:
    """Return what dedup knows a trade by."""
    return f"okx:BTC-USDT-SWAP:{2_978_601_964 + trade_id}"


def filled(count: int) -> RecentKeys:
    """Return a set that has seen so many keys."""
    recent = RecentKeys()
    for i in range(count):
        recent.add(key(i))
    return recent


@pytest.mark.parametrize("count", [1, 9_999, 10_000, 10_001, 25_000])
def test_exactly_the_last_10_000_keys_are_known(count: int) -> None:
    recent = filled(count)
    assert DEDUP_KEYS == 10_000
    assert list(recent) == [key(i) for i in range(max(0, count - 10_000), count)]


@given(ids=st.lists(st.integers(0, 12), max_size=60))
@settings(deadline=None, derandomize=True)
def test_it_is_a_least_recently_used_set(ids: list[int]) -> None:
    """Held against the plainest form of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trades_exporter, "DEDUP_KEYS", 4)
        recent = RecentKeys()
        newest: list[int] = []
        for i in ids:
            if str(i) in recent:
                recent.move_to_end(str(i))
            else:
                recent.add(str(i))
            newest = [*(other for other in newest if other != i), i][-4:]
            assert [int(one) for one in recent] == newest


def test_a_key_that_is_added_again_is_there_once() -> None:
    recent = filled(DEDUP_KEYS)
    recent.add(key(5))
    assert len(recent) == DEDUP_KEYS


def test_it_costs_less_than_4_mb() -> None:
    tracemalloc.start()
    try:
        recent = filled(3 * DEDUP_KEYS)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(recent) == DEDUP_KEYS
    assert size < 4e6
