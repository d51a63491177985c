"""Defects that a review found, against the fake OKX's ledger: one test each."""

from collections.abc import Callable

import pytest

from fake_okx import BTC, REST_LIMITS, FakeOKX
from harness import Exporter, assert_vault_equals_ledger, assert_whole, read_gaps

MakeExporter = Callable[..., Exporter]
MakeOKX = Callable[..., FakeOKX]
SETTINGS: dict[str, object] = {
    "INSTRUMENTS": [BTC],
    "ASK_AGAIN_S": [0.05, 0.3],
    "ABSENT_S": 1.0,
    "HISTORY_WAIT_S": 0.1,
    "ARCHIVE_IDS": 10**9,  # REST alone
    "REST_LIMITS": dict.fromkeys(REST_LIMITS, 1000),
}


@pytest.fixture(autouse=True)
def _fast_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exchange allow fifty times as many requests, so that a past takes a second."""
    for path, (limit, largest) in REST_LIMITS.items():
        monkeypatch.setitem(REST_LIMITS, path, (50 * limit, largest))


def test_what_does_not_fit_costs_nothing_of_the_next_range(exporter: MakeExporter, make_okx: MakeOKX) -> None:
    """One pending range ends in the midst of a day whose file goes on; the next one begins in that same day."""
    okx = make_okx(start="2026-11-18T21:00:00Z", instruments=[BTC])
    recorder = exporter(okx, settings=SETTINGS | {"UNREPAIRED_S": 1.0})
    recorder.start_capture()
    okx.trade(BTC, 20)
    recorder.wait_until_stored()
    assert recorder.stop() == 0
    okx.pass_hours(15, trades=500)
    okx.faults.rest, okx.faults.rest_only = {"503": 1.0}, "history-trades"  # it is given up
    recorder.start_capture()
    okx.trade(BTC, 25)
    recorder.wait_for_log("reason=pending")
    recorder.wait_until_stored()
    assert recorder.stop() == 0
    okx.pass_hours(40, trades=1000)
    okx.faults.rest.clear()
    recorder.settings = SETTINGS
    recorder.start_capture()
    okx.settle()
    recorder.wait_until_whole()
    assert recorder.stop() == 0
    assert_vault_equals_ledger(recorder.vault, okx)
    (lost,) = [gap for gap in read_gaps(recorder.vault) if gap["reason"] == "unrepaired"]
    assert lost["before_utc"] < "2026-11-19T12:01", "what follows that day's live trades can be fetched"


def test_a_late_push_that_closes_the_gap_while_the_day_s_start_is_searched(
    exporter: MakeExporter, make_okx: MakeOKX
) -> None:
    """What is stored meanwhile is not stored again."""
    okx = make_okx(start="2026-11-18T21:00:00Z", instruments=[BTC])
    recorder = exporter(okx, settings=SETTINGS)
    recorder.start_capture()
    okx.trade(BTC, 20, count=2)
    recorder.wait_until_stored()
    okx.set_clock("2026-11-19T00:30:00Z")
    okx.faults.rest_latency_s = 1.0
    late = okx.trade(BTC, count=3, lost=True)[0]
    okx.trade(BTC, count=2)
    recorder.wait_until(lambda: okx.requests_to("history-trades"), what="REST is asked where the day begins")
    okx.resend(late)
    recorder.wait_until_stored()
    okx.trade(BTC, lost=True)
    okx.settle()
    recorder.wait_until_stored()
    assert recorder.stop() == 0
    assert_whole(recorder.vault, okx)
