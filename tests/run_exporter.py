"""Run the real exporter with other settings: `python tests/run_exporter.py NAME=JSON ... -- <exporter arguments>`.

Each NAME is a constant of trades_exporter.py, such as STATS_S=0.5 or INSTRUMENTS='["BTC-USDT-SWAP"]', or one of FAULTS.
"""

import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import trades_exporter  # noqa: E402 # the repository's root is not on the path before


def hang_disk(name: str) -> None:
    """Let no fsync return while the file of this name exists; `<name>.hangs` says that one hangs."""
    fsync, path = os.fsync, Path(name)

    def hanging(descriptor: int) -> None:
        while path.exists():
            path.with_name(f"{path.name}.hangs").touch()
            time.sleep(0.01)
        fsync(descriptor)

    os.fsync = hanging  # type: ignore[assignment]


def retry_after(seconds: float) -> None:
    """Let attempts to connect and to ask be that far apart, less jitter, however many failed; OKX allows 3 a second."""
    vars(trades_exporter)["backoff"] = lambda **_: itertools.repeat(seconds)


def resolve_to(address: str) -> None:
    """Let each host's first address be this one."""
    getaddrinfo = socket.getaddrinfo

    def resolve(host: str, port: int, *args: int, **kwargs: int) -> list[tuple[object, ...]]:
        first = getaddrinfo(address, port, *args, **kwargs)
        return [*first, *(info for info in getaddrinfo(host, port, *args, **kwargs) if info not in first)]

    socket.getaddrinfo = resolve  # type: ignore[assignment]


FAULTS: dict[str, Callable[[Any], None]] = {
    "HUNG_DISK": hang_disk,
    "BACKOFF_S": retry_after,
    "FIRST_ADDRESS": resolve_to,
}


if __name__ == "__main__":
    end = sys.argv.index("--")
    for assignment in sys.argv[1:end]:
        name, _, value = assignment.partition("=")
        setting = json.loads(value)
        if name in FAULTS:
            FAULTS[name](setting)
            continue
        if not hasattr(trades_exporter, name):
            sys.exit(f"trades_exporter.py has no setting {name}")
        if isinstance(setting, list):  # JSON knows no tuples and sets
            setting = type(getattr(trades_exporter, name))(setting)
        setattr(trades_exporter, name, setting)
    sys.exit(trades_exporter.main(sys.argv[end + 1 :]))
