"""Run the real exporter with other settings: `python tests/run_exporter.py NAME=JSON ... -- <exporter arguments>`.

Each NAME is a constant of trades_exporter.py, such as STATS_S=0.5 or INSTRUMENTS='["BTC-USDT-SWAP"]'. HUNG_DISK names a
file instead: while it exists, no fsync returns, and the file `<name>.hangs` says that one does not.
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import trades_exporter  # noqa: E402 # the repository's root is not on the path before


def hang_disk(path: Path) -> None:
    """Let no fsync return while this file exists."""
    fsync = os.fsync

    def hanging(descriptor: int) -> None:
        while path.exists():
            path.with_name(f"{path.name}.hangs").touch()
            time.sleep(0.01)
        fsync(descriptor)

    os.fsync = hanging


if __name__ == "__main__":
    end = sys.argv.index("--")
    for assignment in sys.argv[1:end]:
        name, _, value = assignment.partition("=")
        setting = json.loads(value)
        if name == "HUNG_DISK":
            hang_disk(Path(setting))
            continue
        if not hasattr(trades_exporter, name):
            sys.exit(f"trades_exporter.py has no setting {name}")
        if isinstance(setting, list):  # JSON knows no tuples and sets
            setting = type(getattr(trades_exporter, name))(setting)
        setattr(trades_exporter, name, setting)
    sys.exit(trades_exporter.main(sys.argv[end + 1 :]))
