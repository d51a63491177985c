"""The exporter and its launcher under a real Windows CPython, in wine; tests/wine.py says what that cannot show."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tarfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from fake_okx import ABSENT, BTC, ETH, FakeOKX
from harness import ROOT, STOP_S, Exporter, assert_vault_equals_ledger, day_files, finish_whole, wait_for
from wine import UnavailableError, Wine, windows_path

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

pytestmark = [pytest.mark.windows, pytest.mark.timeout(300)]

FOLDER = "My Trades (v1) & ünï ^!"
ENDLESS = "-1073741819"  # Windows' code for an access violation: a crash without Python's help
STOPPED_EARLY = "-1073741510"  # and for Ctrl+C, where the program did not take care of it
# Settings of another Python, as installers and people leave them behind. None of them may reach the exporter's.
OF_ANOTHER_PYTHON = {
    "PYTHONHOME": r"C:\no such folder",
    "PYTHONUTF8": "0",
    "ERRORLEVEL": "0",
    "PIP_TARGET": r"C:\elsewhere",
    "PIP_USER": "1",
    "PIP_NO_DEPS": "1",
    "pip_python": "python2.7",
}
# Stands in for the exporter: notes its arguments and ends with the next of the chosen exit codes. "1@700": with code 1,
# and as if 700 s after its start, which is when the launcher wrote started.txt.
STUB = """
import os, pathlib, sys, time
if sys.argv[1:] == ["--version"]:
    sys.exit()
here = pathlib.Path(__file__).parent
with (here / "starts.txt").open("a") as starts:
    print(sys.argv[1:], file=starts)
code, *rest = (here / "codes.txt").read_text().split()
(here / "codes.txt").write_text(" ".join(rest))
code, _, age = code.partition("@")
if age:
    os.utime(here / ".venv" / "started.txt", (time.time() - int(age),) * 2)
sys.exit(int(code))
"""
# Stands in for ping: notes how many it was asked for (one more than the seconds of the pause), and takes no time.
PING = """
import pathlib, sys
with pathlib.Path(sys.argv[0]).with_name("pauses.txt").open("a") as pauses:
    print(int(sys.argv[2]) - 1, file=pauses)
"""
# Runs a command on the console it is on itself, waits until its log names the subscriptions, shows the console's mode,
# and presses Ctrl+C.
PRESS_CTRL_C = """
import ctypes, pathlib, signal, subprocess, sys, time
log, *command = sys.argv[1:]
child = subprocess.Popen(command)
while not pathlib.Path(log).exists() or "Subscribed to trades" not in pathlib.Path(log).read_text("utf-8"):
    time.sleep(0.05)
mode = ctypes.c_ulong()
ctypes.windll.kernel32.GetConsoleMode(ctypes.windll.kernel32.GetStdHandle(-10), ctypes.byref(mode))
print(f"mode={mode.value:#x};", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
ctypes.windll.kernel32.GenerateConsoleCtrlEvent(0, 0)
sys.exit(child.wait())
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
        self.old_packages = self.tools / "old packages"
        self.old_packages.mkdir(parents=True)
        for name in ("pip", "websockets", "sitecustomize"):
            (self.old_packages / f"{name}.py").write_text("raise SystemExit('a package of another Python')")
        folder.mkdir(exist_ok=True)
        for name in ("start_trades.bat", "requirements.txt", "trades_exporter.py"):
            shutil.copy(ROOT / name, folder)

    def codes(self, *codes: str) -> None:
        """Put the stub in the exporter's place, ending with these exit codes one after the other."""
        (self.folder / "trades_exporter.py").write_text(STUB)
        (self.folder / "codes.txt").write_text(" ".join(codes))

    def environment(self, *path: Path, **more: str) -> dict[str, str]:
        """Return its environment, with settings of another Python; PATH begins with tools and CPython, or `path`."""
        hostile = OF_ANOTHER_PYTHON | {"PYTHONPATH": windows_path(self.old_packages)}
        return self.wine.environment(*(path or (self.tools, self.wine.cpython)), **hostile | more)

    def window(self, *arguments: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start it as a double-click does: its window waits for a key where something failed."""
        return self.wine.running(self.folder / "start_trades.bat", *arguments, environment=self.environment())

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


def read_until_pause(window: subprocess.Popen[bytes]) -> str:
    """Read what a window shows until it waits for a key, then press one."""
    assert window.stdout is not None
    output = b""
    while not output.endswith(b"Press any key to continue... "):
        byte = window.stdout.read(1)
        assert byte, f"the window closed: {output.decode(errors='replace')}"
        output += byte
    assert window.poll() is None
    window.communicate(b"x")
    return output.decode("utf-8", errors="replace")


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


def test_the_program_gets_utf8_mode_and_its_own_packages_only(launcher: Launcher) -> None:
    launcher.codes()
    shown = "sys.flags.utf8_mode, sys.prefix, *[p for p in sys.path if 'old packages' in p]"
    (launcher.folder / "trades_exporter.py").write_text(f"import sys, websockets; print({shown})")
    assert launcher.run() == (0, f"1 {windows_path(launcher.folder / '.venv')}\n")


def test_a_failed_installation_names_both_causes_and_is_repeated_by_the_next_start(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Nothing is built from source, which is what pip would try where Python is too new for ready-made packages."""
    launcher.codes("0")
    with tarfile.open(tmp_path / "only-source-1.0.tar.gz", "w:gz") as source:
        source.addfile(tarfile.TarInfo("only-source-1.0/setup.py"))
    with (launcher.folder / "requirements.txt").open("a") as requirements:
        requirements.write("only-source\n")
    code, output = launcher.run(PIP_FIND_LINKS=f"{windows_path(tmp_path)} {windows_path(launcher.wine.wheels)}")
    assert (code, launcher.starts) == (1, [])
    assert "No matching distribution found for only-source" in output
    assert "Check the connection, the firewall and the proxy" in output
    assert "is too new: there are no ready-made packages for it yet.\nPython 3.11.9\n" in output
    shutil.copy(ROOT / "requirements.txt", launcher.folder)
    code, output = launcher.run()
    assert (code, launcher.starts) == (0, ["[]"])
    assert "Installing the packages" in output


def test_packages_that_cannot_be_imported_are_no_installation(launcher: Launcher) -> None:
    """Otherwise the exporter would crash and be started again for ever."""
    (launcher.folder / ".venv/requirements-installed.txt").unlink()
    (launcher.folder / "trades_exporter.py").write_text("import not_installed")
    code, output = launcher.run("--verify")
    assert code == 1
    assert "ModuleNotFoundError" in output
    assert "Could not install the packages" in output


def test_a_half_made_environment_is_made_anew(bare: Launcher, first_start: tuple[Launcher, int, str]) -> None:
    shutil.copytree(first_start[0].folder / ".venv", bare.folder / ".venv")
    shutil.rmtree(bare.folder / ".venv/Lib/site-packages/pip")
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


def test_a_new_python_is_found_behind_an_old_one_and_replaces_a_damaged_one(bare: Launcher, wine: Wine) -> None:
    """Where that fails, its reason is shown."""
    wine.make_program(bare.tools / "py.exe", OLD_PYTHON)
    wine.make_program(bare.tools / "python.exe", "import sys; sys.exit('No space left' if '-c' not in sys.argv else 0)")
    damaged = bare.folder / ".venv/Scripts/python.exe"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    code, output = bare.run(path=(bare.tools,))
    assert (code, bare.starts) == (1, [])
    assert output.startswith("Making a Python environment in .venv ...\nNo space left\n")
    assert "Could not make the Python environment" in output


def test_opened_inside_a_zip_it_says_what_to_do(bare: Launcher) -> None:
    (bare.folder / "trades_exporter.py").unlink()
    code, output = bare.run()
    assert code == 1
    assert "extract the whole ZIP file" in output


@pytest.mark.parametrize("code", ["0", "2", "3", STOPPED_EARLY])
def test_an_exit_code_that_means_something_is_handed_on_without_a_restart(launcher: Launcher, code: str) -> None:
    launcher.codes(code, "0")
    assert launcher.run()[0] == int(code) & 0xFF
    assert len(launcher.starts) == 1


@pytest.mark.parametrize("code", ["1", "4"])
@pytest.mark.parametrize(
    "arguments", [("--verify",), ("--vault", "", "--audit"), ("--audit=2026-11-21", "--vault", "x"), ("-h",)]
)
def test_what_is_no_capture_is_not_restarted(launcher: Launcher, arguments: tuple[str, ...], code: str) -> None:
    launcher.codes(code, "0")
    assert launcher.run(*arguments)[0] == int(code)
    assert launcher.starts == [str(list(arguments))]


def test_a_capture_is_restarted_for_ever(launcher: Launcher) -> None:
    """Pauses grow to a minute while it crashes, and begin anew after 10 minutes without a crash; code 4: a minute."""
    arguments = ["--vault", "my --verify", "--since", "2026-11-01", "--archive-url", "https://host/a;b?(c)=d"]
    launcher.codes(*["1", ENDLESS] * 3, "1@590", "1@610", "4", ENDLESS, "4@700", "1", "0")
    code, output = launcher.run(*arguments)
    assert code == 0, output
    announced = re.findall(r"tarting (?:it )?again in (\d+) seconds", output)
    # on a busy machine wine itself crashes now and then: then there is a start more, or a pause that was not noted
    assert re.fullmatch(r"2 4 8 16 32 60 60( 60)* 2( 4)? 60 [48]( 8)? 60 (8|16)( 16| 32)?", " ".join(announced))
    assert len(launcher.pauses) >= 11
    assert set(map(str, launcher.pauses)) <= set(announced)
    assert set(launcher.starts) == {str(arguments)}
    assert f"crashed (exit code {ENDLESS}). Starting it again in" in output
    assert "The Vault or the log file cannot be used (exit code 4)" in output


def test_the_window_stays_open_after_a_failure(launcher: Launcher) -> None:
    launcher.codes("2")
    with launcher.window() as window:
        assert "exit code 2" in read_until_pause(window)
    assert window.returncode == 2


# ----------------------------------------------------------------------------------------------------------- capture


class WindowsExporter(Exporter):
    """The exporter as a Windows process. Killing it kills the Windows process, SIGINT is its Ctrl+C."""

    wine: Wine

    def command(self, *args: str) -> list[str]:
        """Return the command line of Linux with Windows' names for programs and files."""
        python, *arguments = super().command(*args)
        python = f"{self.wine.cpython}/python.exe"
        return [
            str(self.wine.program),
            python,
            *(windows_path(Path(text)) if text.startswith("/") else text for text in arguments),
        ]

    def start(self) -> Self:
        """Start the process; a thread copies what it prints to `console_file`."""
        self._log_start = len(self.log)
        self.process = process = self.wine.start(*self.command()[1:], environment=dict(self.env))
        self._printer = threading.Thread(target=self._print, args=(process,), daemon=True)
        self._printer.start()
        return self

    def _print(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with self.console_file.open("ab", buffering=0) as console:
            for line in process.stdout:
                console.write(line)

    def stop(self, sig: int | None = signal.SIGINT, seconds: float = STOP_S) -> int:
        """Press Ctrl+C and return the exit code."""
        return super().stop(sig, seconds)


@pytest.fixture
def windows_exporter(wine: Wine, tmp_path: Path) -> Iterator[Callable[..., WindowsExporter]]:
    """Make an exporter, not started yet, in a folder with a name such as people give."""
    made: list[WindowsExporter] = []

    def make(okx: FakeOKX, **settings: object) -> WindowsExporter:
        env = wine.environment(PYTHONPATH=windows_path(wine.packages))
        made.append(WindowsExporter(okx, tmp_path / FOLDER, settings, env=env))
        made[-1].wine = wine
        return made[-1]

    yield make
    for exporter in made:
        exporter.kill()


def test_it_captures_across_midnight_and_ends_with_ctrl_c(
    make_okx: Callable[..., FakeOKX], windows_exporter: Callable[..., WindowsExporter]
) -> None:
    """Files have the names and newlines of Linux, and the promised lines are in the log."""
    okx = make_okx(rate=50, start="2026-11-21T12:00:00Z")
    exporter = windows_exporter(okx).start_capture()
    exporter.wait_until(lambda: day_files(exporter.vault, BTC) and day_files(exporter.vault, ETH), what="trades")
    okx.set_clock("2026-11-21T23:59:59.5Z")
    exporter.wait_until(lambda: all(len(day_files(exporter.vault, inst)) == 2 for inst in (BTC, ETH)), what="a new day")
    finish_whole(exporter)
    names = {str(path.relative_to(exporter.vault)) for path in exporter.vault.rglob("*") if path.is_file()}
    expected = {f"raw/okx/trades_perps/{inst}/2026-11-{day}.jsonl" for inst in (BTC, ETH) for day in (21, 22)}
    expected |= {f"meta/okx/instruments/{inst}.json" for inst in (BTC, ETH)} | {"exporter.lock"}
    assert expected <= names <= expected | {f"meta/okx/gaps/{inst}.jsonl" for inst in (BTC, ETH)}
    for name in names:
        assert b"\r" not in (exporter.vault / name).read_bytes(), name
    for text in "Metadata fetched and saved", "Subscribed to trades", "Stats: ", "Stopped":
        assert text in exporter.log
    verdict = exporter.run("--verify")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_killed_in_the_midst_of_a_line_it_goes_on_without_a_gap(
    make_okx: Callable[..., FakeOKX], windows_exporter: Callable[..., WindowsExporter]
) -> None:
    okx = make_okx(rate=50)
    exporter = windows_exporter(okx).start_capture()
    exporter.wait_until(lambda: day_files(exporter.vault, BTC) and day_files(exporter.vault, ETH), what="trades")
    exporter.kill()
    with day_files(exporter.vault, BTC)[-1].open("ab") as file:
        file.write(b'{"timestamp_utc":"2026-11')
    exporter.start_capture().wait_for_log("Gap repaired", times=2)
    finish_whole(exporter)


def test_on_a_console_it_has_a_title_and_colours_and_no_quickedit_and_ends_with_ctrl_c(
    okx: FakeOKX, wine: Wine, launcher: Launcher
) -> None:
    """With nothing installed but the four packages: structlog's own colours would need a fifth on Windows.

    A click into the window does not stop it: QuickEdit (0x40) is off, which counts with ENABLE_EXTENDED_FLAGS (0x80).
    """
    log = launcher.folder / "trades_exporter.log"
    command = [windows_path(path) for path in (log, launcher.folder / "start_trades.bat")]
    command += ["--ws-url", okx.ws_url, "--rest-url", okx.rest_url]
    python = (wine.cpython / "python.exe", "-I", "-c", PRESS_CTRL_C)
    exit_code, shown = wine.run_on_console(*python, *command, environment=launcher.environment())
    assert exit_code == 0, shown
    assert "\x1b]0;OKX trades\x07" in shown
    assert re.search(r"\x1b\[32m.*info", shown)
    mode = re.search(r"mode=(0x[0-9a-f]+);", shown)
    assert mode, shown
    assert int(mode[1], 16) & 0xC0 == 0x80
    wait_for(lambda: "Stopped" in log.read_text("utf-8").splitlines()[-1], what="the end")


def test_a_second_exporter_says_who_holds_the_vault(
    okx: FakeOKX, windows_exporter: Callable[..., WindowsExporter]
) -> None:
    first = windows_exporter(okx).start_capture()
    second = windows_exporter(okx).run()
    assert second.returncode == 4, second.stdout + second.stderr
    holder = (first.vault / "exporter.lock").read_text().strip()
    assert re.fullmatch(r"process \d+", holder)
    assert holder in second.stdout + second.stderr
    first.kill()
    third = windows_exporter(okx).start_capture()
    assert third.stop() == 0


def test_the_log_rotates_while_somebody_else_has_it_open(
    okx: FakeOKX, wine: Wine, windows_exporter: Callable[..., WindowsExporter]
) -> None:
    """Windows refuses to rename such a file: it is copied and emptied. The same with an old one."""
    limit = 4000
    exporter = windows_exporter(okx, LOG_BYTES=limit, STATS_S=0.02).start()
    log = exporter.log_file
    exporter.wait_until(log.exists, what="a log")
    reader = "import sys; log = open(sys.argv[1]); print(flush=True); sys.stdin.read()"

    @contextmanager
    def opened(path: Path) -> Iterator[None]:
        with wine.running(wine.cpython / "python.exe", "-c", reader, windows_path(path)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            yield

    def largest() -> int:
        with suppress(FileNotFoundError):  # one of them was renamed meanwhile
            return max(path.stat().st_size for path in log.parent.glob("exporter.log*"))
        return largest()

    for held in (log, log.with_name("exporter.log.1")):
        with opened(held):
            for old in (log.with_name(f"exporter.log.{number}") for number in (2, 3)):
                old.unlink(missing_ok=True)
                exporter.wait_until(old.exists, what=f"{old.name} while {held.name} is open")
            assert largest() < 2 * limit
    assert exporter.stop() == 0
    assert "Stopped" in log.read_text("utf-8").splitlines()[-1]


def test_the_launcher_records_until_a_build_fail_and_keeps_its_window_open(
    make_okx: Callable[..., FakeOKX], launcher: Launcher
) -> None:
    okx = make_okx(rate=50)
    vault = launcher.folder / "Vault"
    with launcher.window("--ws-url", okx.ws_url, "--rest-url", okx.rest_url) as window:
        wait_for(lambda: day_files(vault, BTC) and day_files(vault, ETH), what="trades")
        okx.set_rate(0)
        bad = okx.trade(BTC, count=1, fields={"px": ABSENT})[0]
        output = read_until_pause(window)
    assert "BUILD_FAIL: Missing required trade fields" in output
    assert launcher.pauses == []
    assert window.returncode == 3
    assert_vault_equals_ledger(vault, okx, BTC, upto_id=bad.first_id - 1)
    assert_vault_equals_ledger(vault, okx, ETH)
