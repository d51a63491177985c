"""The show must be true: tests/demo.py exits with 0, says so, and is plain where nobody looks at colours."""

import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).with_name("demo.py")


def test_the_demo_goes_through_its_disasters_and_loses_nothing() -> None:
    run = subprocess.run(
        [sys.executable, str(DEMO), "--pace", "0.25"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    for happening in ("Not connected to OKX", "Gap found", "Gap repaired", "Torn end cut off", "Stopped"):
        assert happening in run.stdout, run.stdout
    assert "no problem found" in run.stdout, run.stdout
    assert len(re.findall(r"SWAP 2026-11-21: (\d+) of \1 covered minutes agree with OKX", run.stdout)) == 2, run.stdout
    assert re.search(r"^(\d+) trades happened, \1 are stored \(.*\): 0 lost, none twice\.$", run.stdout, re.MULTILINE)
    assert "\x1b" not in run.stdout
