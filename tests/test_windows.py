"""The exporter and its launcher under a real Windows CPython, in wine; tests/wine.py says what that cannot show."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wine import UnavailableError, Wine, windows_path

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = [pytest.mark.windows, pytest.mark.timeout(300)]

PROJECT = Path(__file__).parent.parent
FOLDER = "My Trades (v1) & ünï ^!"
ENDLESS = "-1073741819"  # Windows' code for an access violation: a crash without Python's help
# Stands in for the exporter: notes its arguments and ends with the next of the chosen exit codes.
STUB = """
import pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "starts.txt").open("a") as starts:
    print(sys.argv[1:], file=starts)
code, *rest = (here / "codes.txt").read_text().split()
(here / "codes.txt").write_text(" ".join(rest))
sys.exit(int(code))
"""
# Stands in for ping: notes how many it was asked for (one more than the seconds of the pause), and takes no time.
PING = """
import pathlib, sys
with pathlib.Path(sys.argv[0]).with_name("pauses.txt").open("a") as pauses:
    print(int(sys.argv[2]) - 1, file=pauses)
"""
# Stands in for Python 3.10, as far as the launcher asks it anything.
OLD_PYTHON = """
import sys
sys.version_info = (3, 10, 11)
if sys.argv[-1] == "--version":
    print("Python 3.10.11")
else:
    exec(sys.argv[-1])
"""


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    """Return Windows, or skip with the reason; fail instead where REQUIRE_WINE=1 says that it must be there."""
    try:
        machine = Wine(tmp_path_factory.mktemp("wine"))
    except UnavailableError as reason:
        if os.environ.get("REQUIRE_WINE") == "1":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    with machine:
        yield machine


class Launcher:
    """A folder with start_trades.bat, the requirements and a program."""

    def __init__(self, wine: Wine, folder: Path) -> None:
        """Put the project's own files into `folder`."""
        self.wine = wine
        self.folder = folder
        self.tools = folder.with_name(f"{folder.name} tools")
        self.tools.mkdir(parents=True)
        folder.mkdir(exist_ok=True)
        for name in ("start_trades.bat", "requirements.txt", "trades_exporter.py"):
            shutil.copy(PROJECT / name, folder)

    def codes(self, *codes: str) -> None:
        """Put the stub in the exporter's place, ending with these exit codes one after the other."""
        (self.folder / "trades_exporter.py").write_text(STUB)
        (self.folder / "codes.txt").write_text(" ".join(codes))

    def environment(self, *path: Path, **more: str) -> dict[str, str]:
        """Return its environment; the PATH begins with the tools and CPython, or with `path`."""
        return self.wine.environment(*(path or (self.tools, self.wine.cpython)), **more)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it as a double-click does: its window waits for a key where something failed."""
        return self.wine.start(self.folder / "start_trades.bat", *arguments, environment=self.environment())

    def run(self, *arguments: str, path: tuple[Path, ...] = (), **more: str) -> tuple[int, str]:
        """Run it to its end without waiting for a key."""
        environment = self.environment(*path, TRADES_NO_PAUSE="1", **more)
        return self.wine.run(self.folder / "start_trades.bat", *arguments, environment=environment)

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a file that may not be there."""
        return path.read_text("utf-8").splitlines() if path.exists() else []

    @property
    def starts(self) -> list[str]:
        """The arguments of each start of the stub."""
        return self.lines(self.folder / "starts.txt")

    @property
    def pauses(self) -> list[int]:
        """The pauses between restarts, s."""
        return [int(line) for line in self.lines(self.tools / "pauses.txt")]


@pytest.fixture(scope="module")
def first_start(wine: Wine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Launcher, int, str]:
    """Start it once in an unpacked folder: the launcher, its exit code and its output."""
    launcher = Launcher(wine, tmp_path_factory.mktemp("first") / FOLDER)
    return launcher, *launcher.run("--version")


@pytest.fixture
def launcher(wine: Wine, first_start: tuple[Launcher, int, str], tmp_path: Path) -> Launcher:
    """Return a copy of the installed folder, with a ping that takes no time."""
    shutil.copytree(first_start[0].folder, tmp_path / FOLDER)
    copy = Launcher(wine, tmp_path / FOLDER)
    wine.make_program(copy.tools / "ping.exe", PING)
    return copy


@pytest.fixture
def bare(wine: Wine, tmp_path: Path) -> Launcher:
    """Return a folder just unpacked, that wants one small package."""
    launcher = Launcher(wine, tmp_path / FOLDER)
    (launcher.folder / "requirements.txt").write_text("idna\n")
    launcher.codes("0")
    return launcher


# ---------------------------------------------------------------------------------------------------------- launcher


def test_the_first_start_makes_the_environment_and_installs_the_packages(
    first_start: tuple[Launcher, int, str],
) -> None:
    launcher, code, output = first_start
    assert code == 0, output
    assert "Making a Python environment" in output
    assert "Successfully installed" in output
    site_packages = launcher.folder / ".venv/Lib/site-packages"
    assert {"aiohttp", "orjson", "structlog", "websockets"} <= {path.name for path in site_packages.iterdir()}


def test_the_second_start_only_runs_the_program(launcher: Launcher) -> None:
    launcher.codes("0")
    assert launcher.run("--vault", "my vault & more", "") == (0, "")
    assert launcher.starts == ["['--vault', 'my vault & more', '']"]


def test_the_program_gets_utf8_mode(launcher: Launcher) -> None:
    launcher.codes()
    (launcher.folder / "trades_exporter.py").write_text("import sys; print(sys.flags.utf8_mode, sys.prefix)")
    prefix = windows_path(launcher.folder / ".venv")
    assert launcher.run() == (0, f"1 {prefix}\n")


def test_a_changed_requirements_file_is_installed(launcher: Launcher) -> None:
    launcher.codes("0", "0")
    with (launcher.folder / "requirements.txt").open("a") as requirements:
        requirements.write("idna\n")
    assert "Installing the packages" in launcher.run()[1]
    assert "Installing the packages" not in launcher.run()[1]


def test_a_failed_installation_is_said_and_repeated_by_the_next_start(launcher: Launcher) -> None:
    launcher.codes("0")
    with (launcher.folder / "requirements.txt").open("a") as requirements:
        requirements.write("no-such-package-of-ours\n")
    code, output = launcher.run()
    assert (code, launcher.starts) == (1, [])
    assert "Could not install the packages" in output
    shutil.copy(PROJECT / "requirements.txt", launcher.folder)
    code, output = launcher.run()
    assert (code, launcher.starts) == (0, ["[]"])
    assert "Installing the packages" in output


@pytest.mark.parametrize("damage", ["Scripts/python.exe", "Lib/site-packages/pip"])
def test_a_half_made_environment_is_made_anew(
    bare: Launcher, first_start: tuple[Launcher, int, str], damage: str
) -> None:
    shutil.copytree(first_start[0].folder / ".venv", bare.folder / ".venv")
    lost = bare.folder / ".venv" / damage
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.write_bytes(b"")
    code, output = bare.run()
    assert (code, bare.starts) == (0, ["[]"])
    assert "Making a Python environment" in output
    assert not (bare.folder / ".venv/Lib/site-packages/aiohttp").exists(), "something of the old one is left"


def test_without_python_it_says_where_to_get_it(bare: Launcher) -> None:
    code, output = bare.run(path=(bare.tools,))
    assert (code, bare.starts) == (1, [])
    assert output.startswith("No Python was found. Install Python 3.11 or newer")


@pytest.mark.parametrize("command", ["py.exe", "python.exe"])
def test_a_python_that_is_too_old_is_named(bare: Launcher, wine: Wine, command: str) -> None:
    wine.make_program(bare.tools / command, OLD_PYTHON)
    code, output = bare.run(path=(bare.tools,))
    assert (code, bare.starts) == (1, [])
    assert output.startswith("The Python on this PC is too old:\nPython 3.10.11\nInstall Python 3.11 or newer")


def test_a_new_python_is_found_behind_an_old_one(bare: Launcher, wine: Wine) -> None:
    """It is used, and says what is in its way."""
    wine.make_program(bare.tools / "py.exe", OLD_PYTHON)
    (bare.folder / ".venv").write_text("in the way")
    code, output = bare.run()
    assert (code, bare.starts) == (1, [])
    assert output.startswith("Making a Python environment")
    assert "Could not make the Python environment" in output


def test_opened_inside_a_zip_it_says_what_to_do(bare: Launcher) -> None:
    (bare.folder / "trades_exporter.py").unlink()
    code, output = bare.run()
    assert code == 1
    assert "extract the whole ZIP file" in output


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_an_exit_code_that_means_something_is_handed_on_without_a_restart(launcher: Launcher, code: int) -> None:
    launcher.codes(str(code), "0")
    assert launcher.run()[0] == code
    assert len(launcher.starts) == 1


@pytest.mark.parametrize(
    "arguments", [("--verify",), ("--vault", "", "--audit"), ("--audit=2026-11-21", "--vault", "x"), ("-h",)]
)
def test_what_is_no_capture_is_not_restarted(launcher: Launcher, arguments: tuple[str, ...]) -> None:
    launcher.codes("1", "0")
    assert launcher.run(*arguments)[0] == 1
    assert launcher.starts == [str(list(arguments))]


def test_a_crashed_capture_is_restarted_for_ever_after_pauses_that_grow_to_a_minute(launcher: Launcher) -> None:
    launcher.codes(*["1", ENDLESS] * 4, "0")
    code, output = launcher.run("--vault", "my --verify")
    assert code == 0
    assert launcher.pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert launcher.starts == ["['--vault', 'my --verify']"] * 9
    assert f"crashed (exit code {ENDLESS}). Starting it again in 4 seconds" in output


@pytest.mark.parametrize("code", ["2", "3", "4"])
def test_the_window_stays_open_after_a_failure(launcher: Launcher, code: str) -> None:
    launcher.codes(code)
    with launcher.start() as window:
        assert window.stdout is not None
        output = b""
        while not output.endswith(b"Press any key to continue... "):
            output += window.stdout.read(1)
        assert f"exit code {code}".encode() in output
        assert window.poll() is None
        window.communicate(b"x")
    assert window.returncode == int(code)
