"""What wine does not hold against start_trades.bat, and Windows would. tests/test_windows.py runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parent.parent / "start_trades.bat"
CONTENT = LAUNCHER.read_bytes()
CODE = [line for line in CONTENT.decode("ascii", errors="replace").split("\r\n") if not line.startswith("rem ")]


def test_it_is_ascii_with_crlf_and_git_keeps_it_so() -> None:
    """Cmd.exe loses its place among labels in a file with LF only, and reads text as of the PC's code page."""
    assert CONTENT.isascii()
    assert CONTENT.endswith(b"\r\n")
    assert CONTENT.count(b"\n") == CONTENT.count(b"\r") == CONTENT.count(b"\r\n")
    assert "*.bat text eol=crlf" in LAUNCHER.with_name(".gitattributes").read_text("utf-8").splitlines()


def test_every_jump_has_its_label_and_every_label_is_jumped_to() -> None:
    """A jump to a label that is not there ends a batch file without a word."""
    labels = [line[1:] for line in CODE if line.startswith(":")]
    jumps = re.findall(r"(?:goto|call) :?([a-z_]+)", "\n".join(line for line in CODE if not line.startswith("echo")))
    assert len(labels) == len(set(labels))
    assert set(jumps) == set(labels)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\btimeout\b|\bchoice\b", "needs a console"),
        (r"\bwhere\b.*python", "also finds the Microsoft Store's fake python.exe"),
        (r"^(if|for) .*\($|^\)", "variables inside a block are expanded before it runs"),
    ],
)
def test_it_keeps_clear_of(pattern: str, why: str) -> None:
    assert not [line for line in CODE if re.search(pattern, line)], why
