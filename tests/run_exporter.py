"""Run the real exporter with other settings: `python tests/run_exporter.py NAME=JSON ... -- <exporter arguments>`.

Each NAME is a constant of trades_exporter.py, such as STATS_S=0.5 or INSTRUMENTS='["BTC-USDT-SWAP"]'.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import trades_exporter  # noqa: E402 # the repository's root is not on the path before

if __name__ == "__main__":
    end = sys.argv.index("--")
    for assignment in sys.argv[1:end]:
        name, _, value = assignment.partition("=")
        if not hasattr(trades_exporter, name):
            sys.exit(f"trades_exporter.py has no setting {name}")
        setting = json.loads(value)
        if isinstance(setting, list):  # JSON knows no tuples and sets
            setting = type(getattr(trades_exporter, name))(setting)
        setattr(trades_exporter, name, setting)
    sys.exit(trades_exporter.main(sys.argv[end + 1 :]))
