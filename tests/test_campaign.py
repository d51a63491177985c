"""A short campaign of faults; longer ones by hand: `python tests/campaign.py --seconds 600 --seed 7`."""

from pathlib import Path

import pytest
from campaign import Campaign


def test_nothing_is_lost_doubled_or_torn_in_a_campaign_of_faults(tmp_path: Path) -> None:
    """Three dozen faults of every kind, kill -9 with torn ends and long pauses among them; then all judges."""
    campaign = Campaign(seconds=22, seed=11, folder=tmp_path, rate=40, say=print)
    try:
        campaign.run()
    except AssertionError:
        pytest.fail(f"{campaign.report()}\n{campaign.exporter.tail(100)}")
    assert campaign.counts.total() >= 20
    assert campaign.counts["kill"] + campaign.counts["long_pause"] >= 3
