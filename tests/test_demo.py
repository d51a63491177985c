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
    happenings = ("Disconnected from OKX", "OKX can be reached again", "Gap found", "Gap repaired")
    for happening in (*happenings, "Incomplete last line removed", "Stopped", "History complete", "no problem found"):
        assert happening in run.stdout, run.stdout
    for day in (19, 20, 21, 22):
        assert day == 22 or f"2026-11-{day} is done" in run.stdout, run.stdout
        agreeing = rf"SWAP 2026-11-{day}: (\d+) of \1 covered minutes agree with OKX"
        assert len(re.findall(agreeing, run.stdout.partition("--audit")[2])) == 2, run.stdout
    total = r"^(\d+) trades happened since 2026-11-19, \1 are stored \(.*\): 0 lost, none twice\.$"
    assert re.search(total, run.stdout, re.MULTILINE), run.stdout
    assert "\x1b" not in run.stdout
