"""OKX's rate limits are kept whatever happens to the process."""

import asyncio
import time

import pytest

import trades_exporter
from trades_exporter import Lane


def test_a_sleep_of_the_pc_does_not_bunch_requests_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that were given for the time of the sleep are not all taken at its end."""
    monkeypatch.setattr(trades_exporter, "REST_WINDOW_S", 0.3)
    limit = 5

    async def ask() -> list[float]:
        lane = Lane(limit)
        turns = [asyncio.ensure_future(lane.turn()) for _ in range(4 * limit)]
        await turns[0]
        time.sleep(1.5)  # noqa: ASYNC251 - the whole process sleeps
        return sorted(await asyncio.gather(*turns))

    taken = asyncio.run(ask())
    assert all(later - earlier > 0.29 for earlier, later in zip(taken, taken[limit:], strict=False))
