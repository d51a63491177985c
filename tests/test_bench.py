"""The bench's own parts, with few trades: that they still fit the script. It asserts no times."""

from datetime import timedelta
from pathlib import Path

from bench import ARCHIVE_DAY, FIRST_ID, PAIR, Sender, exporter_cpu, fill, write_archive


def test_the_floor_and_the_exporter_get_every_trade_over_tls(tmp_path: Path) -> None:
    with Sender(tmp_path, 300) as sender:
        assert sender.floor_cpu(300) > 0
        assert exporter_cpu(sender, tmp_path / "v", 300) >= 0  # it waits until all are stored


def test_two_days_become_day_files_from_archives_alone(tmp_path: Path) -> None:
    rows = 6000  # more than REST would be asked for
    for day in range(2):
        write_archive(tmp_path, PAIR[0], ARCHIVE_DAY + timedelta(days=day), rows, FIRST_ID - (2 - day) * rows)
    with Sender(tmp_path) as sender:
        fill(sender, tmp_path / "v", PAIR[:1], 2 * rows)  # it raises where a line is missing
    assert len(list((tmp_path / "v").glob("raw/**/*.jsonl"))) == 3
