"""The LRU set of the keys of what is stored."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trades_exporter
from trades_exporter import DEDUP_KEYS, DEDUP_SPARE, RecentKeys


def filled(count: int) -> RecentKeys:
    """Return a set that has seen so many keys."""
    recent = RecentKeys()
    for i in range(count):
        recent.add(f"okx:BTC-USDT-SWAP:{2_978_601_964 + i}")
    return recent


def test_it_knows_what_was_added_and_nothing_else() -> None:
    recent = RecentKeys()
    recent.add("okx:BTC-USDT-SWAP:1")
    assert "okx:BTC-USDT-SWAP:1" in recent
    assert "okx:ETH-USDT-SWAP:1" not in recent
    assert "okx:BTC-USDT-SWAP:01" not in recent


@pytest.mark.parametrize("count", [1, 9_999, 10_000, 10_499, 10_500, 25_000])
def test_the_last_10_000_keys_are_known_and_little_more(count: int) -> None:
    recent = filled(count)
    assert DEDUP_KEYS == 10_000
    assert all(f"okx:BTC-USDT-SWAP:{2_978_601_964 + i}" in recent for i in range(max(0, count - DEDUP_KEYS), count))
    assert len(recent) < DEDUP_KEYS + DEDUP_SPARE
    assert f"okx:BTC-USDT-SWAP:{2_978_601_964 + count - DEDUP_KEYS - DEDUP_SPARE}" not in recent


def test_a_key_that_is_touched_stays_longer() -> None:
    recent = filled(DEDUP_KEYS)
    oldest, second = list(recent)[:2]
    recent.touch(oldest)
    for i in range(DEDUP_SPARE):
        recent.add(f"new {i}")
    assert oldest in recent
    assert second not in recent


def test_a_key_that_is_added_again_is_there_once() -> None:
    recent = filled(5)
    recent.add(next(iter(recent)))
    assert len(recent) == 5


@given(ids=st.lists(st.integers(0, 12), max_size=60))
@settings(deadline=None, derandomize=True)
def test_it_is_a_least_recently_used_set(ids: list[int]) -> None:
    """Held against the plainest form of one; what leaves late is allowed, what leaves early is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trades_exporter, "DEDUP_KEYS", 4)
        patch.setattr(trades_exporter, "DEDUP_SPARE", 2)
        recent = RecentKeys()
        newest: list[int] = []
        for i in ids:
            if str(i) in recent:
                recent.touch(str(i))
            else:
                recent.add(str(i))
            newest = [*(other for other in newest if other != i), i]
            assert [int(key) for key in recent][-4:] == newest[-4:]
            assert len(recent) < 6


def test_it_costs_less_than_4_mb() -> None:
    tracemalloc.start()
    try:
        recent = filled(30_000)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(recent) >= DEDUP_KEYS
    assert size < 4e6
