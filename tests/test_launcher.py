"""Plain checks of start_trades.bat: what cmd.exe trips over. tests/test_windows.py runs it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parent.parent / "start_trades.bat"
LINES = LAUNCHER.read_bytes().decode("ascii", errors="replace").split("\r\n")
CODE = [line for line in LINES if not line.startswith("rem ")]
LABELS = [line[1:] for line in CODE if line.startswith(":")]
JUMPS = re.findall(r"(?:goto|call) :?([a-z_]+)", "\n".join(line for line in CODE if not line.startswith("echo")))


def test_it_is_ascii_without_a_byte_order_mark() -> None:
    assert LAUNCHER.read_bytes().isascii()
    assert LINES[0] == "@echo off"


def test_every_line_ends_in_crlf() -> None:
    """Cmd.exe loses its place among labels in a file with LF only."""
    content = LAUNCHER.read_bytes()
    assert content.endswith(b"\r\n")
    assert content.count(b"\n") == content.count(b"\r") == content.count(b"\r\n")


def test_git_keeps_crlf_wherever_it_is_cloned() -> None:
    assert "*.bat text eol=crlf" in LAUNCHER.with_name(".gitattributes").read_text("utf-8").splitlines()


def test_every_jump_has_its_label_and_every_label_is_jumped_to() -> None:
    assert len(LABELS) == len(set(LABELS))
    assert set(JUMPS) == set(LABELS)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\berrorlevel \d", "is not true for crashes, whose codes are negative"),
        (r"(?i)enabledelayedexpansion", "eats exclamation marks in folder names"),
        (r"^(if|for) .*\($|^\)", "variables inside a block are expanded before it runs"),
        (r"&&|\|\|", "chains hide which command's exit code is looked at"),
        (r"\btimeout\b|\bchoice\b", "needs a console"),
        (r"\bwhere\b.*python", "also finds the Microsoft Store's fake python.exe"),
        (r"activate", "changes the environment for what python.exe does by itself"),
    ],
)
def test_it_keeps_clear_of(pattern: str, why: str) -> None:
    assert not [line for line in CODE if re.search(pattern, line)], why


def test_every_path_is_quoted() -> None:
    """Each variable that holds a path stands between quotes, for folders like `My Trades (v1) & more`."""
    for line in CODE:
        unquoted = "".join(line.split('"')[::2])
        assert not re.search(r"%~dp0|%(HERE|VENV_PYTHON|REQUIREMENTS|INSTALLED)%", unquoted), line
        assert line.count('"') % 2 == 0, line


def test_each_exit_code_is_saved_before_another_command_can_change_it() -> None:
    """%ERRORLEVEL% is only ever read on the line after the command it belongs to."""
    for before, line in itertools.pairwise(CODE):
        if "%ERRORLEVEL%" in line:
            assert before.startswith(('"%VENV_PYTHON%"', "call %")), line


def test_a_restart_does_not_wait_for_a_key() -> None:
    """An unattended PC goes on recording: the only `pause` is the one of a failed start, and it can be switched off."""
    assert [line for line in CODE if re.search(r"\bpause\b", line)] == ["if not defined TRADES_NO_PAUSE pause"]
