"""What the tests stand on: the real exporter as a subprocess, and the judge that holds a Vault against the ledger."""

import contextlib
import gzip
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from fake_okx import BTC, ETH, REST_LIMITS, FakeOKX, Market, Push, Trade

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "trades_exporter.py"
KEYS: tuple[str, ...] = (
    *("timestamp_utc", "exchange", "market", "instId", "symbol_canon", "trade_id", "side", "price", "qty_contracts"),
    *("ctVal", "ctMult", "ctType"),
)
REASONS = {"start", "absent", "unrepaired", "pending", "horizon"}
GAP_KEYS = ("recorded_utc", "instId", "reason", "after_id", "before_id", "after_utc", "before_utc")
POLL_S = 0.02
DEADLINE_S = 30.0  # of whatever a test waits for, unless it says otherwise
STOP_S = 10.0  # the exporter promises 5 s; a busy machine gets twice that before the test fails
QUICK: dict[str, object] = {  # settings for tests of the past: patience in tenths of a second where people have seconds
    "ASK_AGAIN_S": [0.05, 0.3],
    "PROOF_S": 1.0,
    "HISTORY_WAIT_S": 0.1,
    "ARCHIVE_IDS": 10**9,  # REST alone
    "REST_LIMITS": dict.fromkeys(REST_LIMITS, 1000),
}

if sys.platform == "win32":  # Ctrl+Break is what one process can send another there, if that has its own group
    STOP_SIGNAL, OWN_GROUP = signal.CTRL_BREAK_EVENT, subprocess.CREATE_NEW_PROCESS_GROUP
else:
    STOP_SIGNAL, OWN_GROUP = signal.SIGTERM, 0
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # tests run under nohup; what they start shall not
        signal.signal(signal.SIGHUP, lambda *_: None)

Record = dict[str, str]
MakeOKX = Callable[..., FakeOKX]  # what the fixtures of conftest.py give
MakeExporter = Callable[..., "Exporter"]


def wait_for(predicate: Callable[[], object], seconds: float = DEADLINE_S, what: str = "") -> None:
    """Poll until the predicate is true; fail when the deadline passes."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or predicate}")
        time.sleep(POLL_S)


# -------------------------------------------------------------------------------------------------- the exporter


@dataclass
class Exporter:
    """The exporter as a process of its own, with a Vault and a log of its own. May be started again and again.

    `settings` are constants of trades_exporter.py to be changed, or faults of run_exporter.py; where the exchange has
    other instruments than usual, it records these. `args` are further arguments for the command line; `archives` and
    `rest` say whether it is told of the exchange's archives and its REST API. It trusts an exchange over TLS.
    """

    okx: FakeOKX
    folder: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    archives: bool = True
    rest: bool = True
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.vault = self.folder / "Vault"
        self.log_file = self.folder / "exporter.log"
        self.console_file = self.folder / "console.txt"
        self._log_start = 0  # how long the log was when the process was started

    def command(self, *args: str) -> list[str]:
        """Return the command line, with further arguments."""
        arguments = ["--vault", str(self.vault), "--log-file", str(self.log_file)]
        arguments += ["--ws-url", self.okx.ws_url, *(["--rest-url", self.okx.rest_url] if self.rest else [])]
        arguments += [*(["--archive-url", self.okx.archive_url] if self.archives else []), *self.args, *args]
        usual = [*self.okx.markets] == [BTC, ETH]
        changed = {**({} if usual else {"INSTRUMENTS": [*self.okx.markets]}), **self.settings}
        if not changed:
            return [sys.executable, str(SCRIPT), *arguments]
        settings = [f"{name}={json.dumps(value)}" for name, value in changed.items()]
        return [sys.executable, str(ROOT / "tests" / "run_exporter.py"), *settings, "--", *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the process."""
        trust = {"SSL_CERT_FILE": str(self.okx.ca_file)} if self.okx.ca_file else {}
        return {**os.environ, **trust, **self.env}

    def start(self) -> Self:
        """Start the process. What it prints goes to `console_file`."""
        self._log_start = len(self.log)
        with self.console_file.open("ab") as console:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                creationflags=OWN_GROUP,
            )
        return self

    def start_capture(self) -> Self:
        """Start, and wait until every instrument is subscribed."""
        self.start()
        self.wait_for_log("Subscribed to trades", times=len(self.okx.markets))
        return self

    def run(self, *args: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run the command with these arguments to its end: `--verify`, `--audit`."""
        env = {"PYTHONUTF8": "1", **self.environment()}
        return subprocess.run(
            self.command(*args), capture_output=True, text=True, encoding="utf-8", timeout=seconds, env=env, check=False
        )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id; with a venv on Windows, its launcher's."""
        return self._started().pid

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise AssertionError("the exporter has not been started")
        return self.process

    def kill(self) -> None:
        """Kill it without a warning, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, sig: int | None = None, seconds: float = STOP_S) -> int:
        """Ask it to stop (SIGTERM; Ctrl+Break on Windows) and return its exit code."""
        self._started().send_signal(STOP_SIGNAL if sig is None else sig)
        return self.wait(seconds)

    def wait(self, seconds: float = DEADLINE_S) -> int:
        """Wait until it ends by itself and return its exit code."""
        try:
            return self._started().wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the exporter did not end within {seconds:g} s\n{self.tail()}") from None

    @property
    def log(self) -> str:
        """The whole log."""
        return self.log_file.read_text("utf-8", errors="replace") if self.log_file.exists() else ""

    @property
    def log_since_start(self) -> str:
        """What the process that was started last has logged."""
        return self.log[self._log_start :]

    @property
    def console(self) -> str:
        """What the processes printed."""
        return self.console_file.read_text("utf-8", errors="replace")

    def tail(self, lines: int = 60) -> str:
        """Return the end of the log and of the console's output, for the report of a failed test."""
        files = [path for path in (self.log_file, self.console_file) if path.exists()]
        ends = [(path.name, path.read_text("utf-8", errors="replace")) for path in files]
        return "\n".join(f"--- {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in ends)

    def wait_for_log(self, text: str, times: int = 1, seconds: float = DEADLINE_S) -> None:
        """Wait until the process started last has logged the text so many times; fail at once if it ends before."""
        self.wait_until(
            lambda: self.log_since_start.count(text) >= times, seconds, f"{text!r} in the log, {times} times"
        )

    def wait_until(self, predicate: Callable[[], object], seconds: float = DEADLINE_S, what: str = "") -> None:
        """Wait until the predicate is true; fail at once if the exporter ends before."""

        def reached_or_dead() -> bool:
            return bool(predicate()) or not self.running

        try:
            wait_for(reached_or_dead, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        if not predicate():
            raise AssertionError(f"the exporter ended (exit {self.wait()}) before: {what or predicate}\n{self.tail()}")

    def wait_until_stored(self, seconds: float = 60.0) -> None:
        """Wait until the exchange's newest trades (at this moment) are stored; fail at once if it ends before."""
        for inst_id, ledger in self.okx.ledger.items():
            goal = ledger[-1].trade_id if ledger else 0
            self.wait_until(partial(self._has_stored, inst_id, goal), seconds, f"{goal} of {inst_id} stored")

    def wait_until_whole(self, seconds: float = 60.0) -> None:
        """Wait until the exchange's newest trades are stored and nothing is pending any more."""
        self.wait_until_stored(seconds)  # what precedes them is on record by then
        self.wait_until(lambda: not self.pending(), seconds, "nothing is pending")

    def stop_when_stored(self) -> None:
        """Stop it cleanly as soon as the exchange's newest trades are stored."""
        self.wait_until_stored()
        assert self.stop() == 0, self.tail()

    def pending(self) -> list[Record]:
        """Return the pending ranges of all instruments."""
        gaps = [gap for inst_id in self.okx.markets for gap in read_gaps(self.vault, inst_id)]
        return [gap for gap in gaps if gap["reason"] == "pending"]

    def _has_stored(self, inst_id: str, trade_id: int) -> bool:
        return last_stored_id(self.vault, inst_id) >= trade_id


def log_lines(one: Exporter, *texts: str) -> list[str]:
    """Return the lines of the log with any of these texts."""
    return [line for line in one.log.splitlines() if any(text in line for text in texts)]


def start_with_a_trade(one: Exporter) -> Exporter:
    """Start, and have each instrument's first trade stored, so that a gap can be seen."""
    one.start_capture()
    for inst_id in one.okx.markets:
        one.okx.trade(inst_id, count=1)
    one.wait_until_stored()
    return one


def finish(one: Exporter, missing: int = 0) -> None:
    """End the exchange, wait until all is stored, stop, and hold the Vaults of all instruments against the ledger."""
    one.okx.settle()
    one.wait_until_stored()
    assert one.stop() == 0, one.tail()
    found = sum(assert_vault_equals_ledger(one.vault, one.okx, inst_id).missing for inst_id in one.okx.markets)
    assert found == missing


def stopped_at(okx: FakeOKX, exporter: Exporter, trades: int = 20) -> Exporter:
    """Let the exporter record so many trades of each instrument, and stop it."""
    exporter.start_capture()
    for inst_id in okx.markets:
        okx.trade(inst_id, trades)
    exporter.stop_when_stored()
    return exporter


def finish_whole(exporter: Exporter, reasons: Iterable[str] = ("start",)) -> None:
    """End the exchange, wait until all is stored, the past too, stop, and hold the Vault against the ledger."""
    exporter.okx.settle()
    exporter.wait_until_whole()
    assert exporter.stop() == 0, exporter.tail()
    assert_whole(exporter.vault, exporter.okx, reasons)


def stored_bytes(vault: Path) -> int:
    """Return how much is in the plain day files of all instruments."""
    return sum(path.stat().st_size for path in (vault / "raw").rglob("*.jsonl"))


def has_stored(exporter: Exporter, size: int) -> bool:
    """Tell whether the day files hold more bytes than these, or nothing is pending any more."""
    return stored_bytes(exporter.vault) > size or not exporter.pending()


def kill_and_tear(exporter: Exporter, chance: random.Random) -> None:
    """Kill it, end the trading, and append part of their last line to most of the day files and gaps files."""
    exporter.kill()
    exporter.okx.set_rate(0)
    for inst_id in exporter.okx.markets:
        gaps = exporter.vault / "meta" / "okx" / "gaps" / f"{inst_id}.jsonl"
        for path in [*day_files(exporter.vault, inst_id), gaps]:
            if chance.random() < 0.6 and path.exists() and (lines := path.read_bytes().splitlines()):
                with path.open("ab") as file:
                    file.write(lines[-1][: chance.randrange(len(lines[-1]))])


# ----------------------------------------------------------------------------------------------------- the Vault


def day_files(vault: Path, inst_id: str) -> list[Path]:
    """Return the instrument's files, oldest day first; of one day the compressed file before the plain one."""
    files = (vault / "raw" / "okx" / "trades_perps" / inst_id).glob("*.jsonl*")
    return sorted(files, key=lambda path: (path.name.partition(".")[0], path.suffix != ".gz"))


def read_file(path: Path) -> bytes:
    """Read a day file, compressed or not."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def read_days(
    vault: Path, inst_id: str, read: Callable[[Path], Iterable[tuple[str, Record]]]
) -> Iterator[tuple[str, list[tuple[str, Record]]]]:
    """Yield each day, and place and record of its lines as `read` finds them in a file.

    Where a day has a compressed and a plain file, only ids above the compressed one's last count of the plain one.
    """
    for day, paths in itertools.groupby(day_files(vault, inst_id), key=lambda path: path.name.partition(".")[0]):
        lines: list[tuple[str, Record]] = []
        for path in paths:
            last = int(lines[-1][1]["trade_id"]) if lines else -1
            lines += [line for line in read(path) if last < 0 or int(line[1]["trade_id"]) > last]
        yield day, lines


def read_loosely(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield place and record of each line; one that is being written is left out."""
    for number, line in enumerate(read_file(path).split(b"\n")[:-1], start=1):
        yield f"{path.name}:{number}", orjson.loads(line)


def read_vault(vault: Path, inst_id: str = BTC) -> list[Record]:
    """Return every stored record, in the order of days and lines; a line that is being written is left out."""
    return [record for _, lines in read_days(vault, inst_id, read_loosely) for _, record in lines]


def read_gaps(vault: Path, inst_id: str = BTC) -> list[Record]:
    """Return the gaps on record, after a look at their form."""
    path = vault / "meta" / "okx" / "gaps" / f"{inst_id}.jsonl"
    gaps: list[Record] = [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
    for gap in gaps:
        assert tuple(gap) == GAP_KEYS, f"{path}: {gap}"
        assert all(isinstance(value, str) for value in gap.values()), f"{path}: {gap}"
        assert gap["instId"] == inst_id, f"{path}: {gap}"
        assert gap["reason"] in REASONS, f"{path}: {gap}"
        first, last = range_of_gap(gap)
        assert first <= last, f"{path}: it names nothing: {gap}"
    return gaps


def reasons(vault: Path, inst_id: str = BTC) -> list[str]:
    """Return why ids are on record as missing, in order, without the `start` that each file begins with."""
    first, *others = [gap["reason"] for gap in read_gaps(vault, inst_id)]
    assert first == "start"
    return others


def stored_ids(vault: Path, inst_id: str = BTC) -> list[int]:
    """Return the stored trade ids, in the order of the files."""
    return [int(record["trade_id"]) for record in read_vault(vault, inst_id)]


def day_path(vault: Path, day: str, inst_id: str = BTC) -> Path:
    """Return where the day's trades are."""
    return vault / "raw" / "okx" / "trades_perps" / inst_id / f"{day}.jsonl"


def to_utc(ts: int) -> str:
    """Write ms since 1970 as '2026-11-21T23:59:50.123Z'."""
    return f"{datetime.fromtimestamp(ts // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ts % 1000:03d}Z"


def line_of(okx: FakeOKX, push: Push, inst_id: str = BTC) -> bytes:
    """Write a push as the contract will have it."""
    row = okx.instruments[inst_id]
    symbol = inst_id.removesuffix("-SWAP").replace("-", "/")
    values = [to_utc(push.ts), "okx", "perp", inst_id, symbol, str(push.last_id), push.side, push.px, push.sz]
    values += [str(row[key]) for key in KEYS[9:]]
    return orjson.dumps(dict(zip(KEYS, values, strict=True))) + b"\n"


def write_pushes(vault: Path, okx: FakeOKX, pushes: Iterable[Push], inst_id: str = BTC) -> None:
    """Write these pushes by hand, each into the file of its day; such files are replaced."""
    days: dict[str, list[bytes]] = {}
    for push in pushes:
        days.setdefault(to_utc(push.ts)[:10], []).append(line_of(okx, push, inst_id))
    for day, lines in days.items():
        path = day_path(vault, day, inst_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(lines))


def write_days(vault: Path, okx: FakeOKX, inst_id: str = BTC, since: str = "", until: str = "~") -> None:
    """Write by hand what was pushed from `since` on and before `until`: days, or times, as they are stored."""
    pushes = (push for push in okx.pushes[inst_id] if since <= to_utc(push.ts) < until)
    write_pushes(vault, okx, pushes, inst_id)


def write_vault(vault: Path, okx: FakeOKX, since: str = "", until: str = "~") -> None:
    """Write by hand, after the contract alone, what an exporter stores that saw every push of this time (as above)."""
    for inst_id in okx.markets:
        metadata = vault / "meta" / "okx" / "instruments" / f"{inst_id}.json"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(json.dumps(okx.instruments[inst_id], indent=2))
        write_days(vault, okx, inst_id, since, until)


def write_gap(
    vault: Path, reason: str, ids: tuple[int | str, int | str], times: tuple[str, str], inst_id: str = BTC
) -> None:
    """Put a gap on record by hand: the ids and times after which and before which something is missing."""
    path = vault / "meta" / "okx" / "gaps" / f"{inst_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = ("2026-11-22T00:00:00.000Z", inst_id, reason, str(ids[0]), str(ids[1]), *times)
    with path.open("ab") as file:
        file.write(orjson.dumps(dict(zip(GAP_KEYS, values, strict=True))) + b"\n")


def last_line(path: Path) -> Record | None:
    """Return the last record of a day's file, whatever a crash left after it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16_384))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        with contextlib.suppress(orjson.JSONDecodeError):
            record: Record = orjson.loads(line)
            return record
    return None


def last_stored_id(vault: Path, inst_id: str = BTC) -> int:
    """Return the highest trade id at the ends of the two newest files that hold a whole line (0: there is none)."""
    lines = (last_line(path) for path in reversed(day_files(vault, inst_id)))
    newest = itertools.islice((int(line["trade_id"]) for line in lines if line), 2)
    return max(newest, default=0)


# ----------------------------------------------------------------------------------------------------- the judge


class Verdict(NamedTuple):
    """What the judge saw: stored lines, the single trades in them, and real trades that are missing but excused."""

    lines: int
    trades: int
    missing: int


class Stored(NamedTuple):
    """A line, and which trades of the ledger (by position, both inclusive) it holds."""

    first: int
    last: int
    where: str
    record: Record


def assert_vault_equals_ledger(
    vault: Path,
    okx: FakeOKX,
    inst_id: str = BTC,
    upto_id: int | None = None,
    except_ranges: Iterable[tuple[int, int]] = (),
) -> Verdict:
    """Hold every stored line against what the exchange knows it did, trade by trade.

    From the first stored trade to `upto_id` (default: the newest of the ledger) each must be there once, unless the
    gaps file or `except_ranges` (first and last id, inclusive) names it. The exchange should be settled before. Where
    nothing should be missing, on record or not, hold `missing` of what is returned against 0.
    """
    market = okx.markets[inst_id]
    gaps = read_gaps(vault, inst_id)
    stored = read_stored(vault, okx, inst_id)
    for before, line in itertools.pairwise(stored):
        assert line.first > before.last, f"{inst_id}: stored twice\n  {before}\n  {line}"
    ledger = market.ledger
    end = len(ledger) - 1 if upto_id is None else market.position(upto_id)
    assert end >= 0, f"{inst_id}: {upto_id} is not in the ledger"
    edges = [(before.last + 1, line.first - 1) for before, line in itertools.pairwise(stored)]
    edges.append((stored[-1].last + 1, end))
    missing = [ledger[index] for first, last in edges for index in range(first, last + 1)]
    excused = [*except_ranges, *(range_of_gap(gap) for gap in gaps if gap["reason"] != "start" or gap["after_id"])]
    lost = [trade for trade in missing if not any(first <= trade.trade_id <= last for first, last in excused)]
    assert not lost, f"{inst_id}: {len(lost)} trades are lost, {describe(lost)}; gaps on record: {gaps}"
    total = sum(Decimal(line.record["qty_contracts"]) for line in stored)
    real = sum(Decimal(trade.sz) for line in stored for trade in ledger[line.first : line.last + 1])
    assert total == real, f"{inst_id}: {total} contracts are stored, {real} were traded"
    return Verdict(len(stored), sum(line.last - line.first + 1 for line in stored), len(missing))


def assert_whole(vault: Path, okx: FakeOKX, reasons: Iterable[str] = ("start",)) -> dict[str, Verdict]:
    """Hold all instruments against the ledger; what is missing must be on record, with no other reasons than these."""
    verdicts = {}
    for inst_id in okx.markets:
        verdicts[inst_id] = assert_vault_equals_ledger(vault, okx, inst_id)
        gaps = read_gaps(vault, inst_id)
        assert {gap["reason"] for gap in gaps} <= set(reasons), f"{inst_id}: on record are {gaps}, expected {reasons}"
    return verdicts


def assert_judges_content(exporter: Exporter) -> None:
    """Let --verify, and --audit of all stored days, judge the Vault."""
    days = sorted(path.name[:10] for inst_id in exporter.okx.markets for path in day_files(exporter.vault, inst_id))
    for arguments in (["--verify"], ["--audit", f"{days[0]}..{days[-1]}"]):
        run = exporter.run(*arguments)
        assert run.returncode == 0, f"{arguments}:\n{run.stdout}{run.stderr}"


def read_stored(vault: Path, okx: FakeOKX, inst_id: str) -> list[Stored]:
    """Read every line strictly, hold the order of ids against the contract, and return the lines as trades rise."""
    market = okx.markets[inst_id]
    told: dict[int, list[Push]] = {}
    for push in market.pushes:
        told.setdefault(push.last_id, []).append(push)
    stored: list[Stored] = []
    days: dict[str, list[Record]] = {}
    for day, found in read_days(vault, inst_id, lambda path: parse_strictly(path, okx, inst_id)):
        for (_, before), (where, record) in itertools.pairwise(found):
            rises = int(record["trade_id"]) > int(before["trade_id"])
            assert rises, f"{where}: its id does not rise: {before} {record}"
        stored += [identify(market, told, where, record) for where, record in found]
        if found:
            days[day] = [record for _, record in found]
    assert stored, f"{inst_id}: nothing is stored"
    for (day, earlier), (next_day, later) in itertools.pairwise(days.items()):
        assert_day_precedes(day, earlier, next_day, later)
    return sorted(stored)


def assert_day_precedes(day: str, earlier: list[Record], next_day: str, later: list[Record]) -> None:
    """Hold the lines of two days against each other: all ids rise, but for those within a second of one midnight."""
    if date.fromisoformat(day) + timedelta(days=1) == date.fromisoformat(next_day):
        before = [record for record in earlier if record["timestamp_utc"][11:] < "23:59:59"]
        after = [record for record in later if record["timestamp_utc"][11:] > "00:00:01.000Z"]
    else:
        before, after = earlier, later
    for lower, upper in ((before, later), (earlier, after)):
        highest = max((int(record["trade_id"]) for record in lower), default=0)
        lowest = min((int(record["trade_id"]) for record in upper), default=10**20)
        assert highest < lowest, f"{day} has {highest} and {next_day} has {lowest}: ids fall from day to day"


def parse_strictly(path: Path, okx: FakeOKX, inst_id: str) -> Iterator[tuple[str, Record]]:
    """Yield place and record of each line, held against the contract's form."""
    day = path.name.partition(".")[0]
    content = read_file(path)
    assert content.endswith(b"\n") or not content, f"{path.name}: the last line is torn: {content[-300:]!r}"
    row = okx.instruments[inst_id]
    constant = {
        "exchange": "okx",
        "market": "perp",
        "instId": inst_id,
        "symbol_canon": inst_id.removesuffix("-SWAP").replace("-", "/"),
        **{key: str(row[key]) for key in ("ctVal", "ctMult", "ctType")},
    }
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        where = f"{inst_id}/{path.name}:{number}"
        try:
            record: Record = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise AssertionError(f"{where}: not JSON: {line[:400]!r}") from None
        assert tuple(record) == KEYS, f"{where}: other keys: {line!r}"
        assert orjson.dumps(record) == line, f"{where}: not compact: {line!r}"
        assert all(isinstance(value, str) for value in record.values()), f"{where}: not all strings: {line!r}"
        assert record.items() >= constant.items(), f"{where}: {line!r} should have {constant}"
        stamp = record["timestamp_utc"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp), f"{where}: {stamp!r}"
        assert stamp[:10] == day, f"{where}: a trade of {stamp}"
        yield where, record


def identify(market: Market, told: dict[int, list[Push]], where: str, record: Record) -> Stored:
    """Find the trades that a line holds: one single trade, or those of a push that was made just so."""
    trade_id = int(record["trade_id"])
    ts = to_ms(record["timestamp_utc"])
    last = market.position(trade_id, ts)
    assert last >= 0, f"{where}: the exchange made no trade {trade_id} at {record['timestamp_utc']}: {record}"
    trade = market.ledger[last]
    assert (record["price"], record["side"]) == (trade.px, trade.side), f"{where}: {record} is really {trade}"
    sz = record["qty_contracts"]
    if sz == trade.sz:
        return Stored(last, last, where, record)
    for push in told.get(trade_id, ()):
        if (push.sz, push.ts) == (sz, ts):
            return Stored(last - push.singles + 1, last, where, record)
    raise AssertionError(f"{where}: {record} is neither {trade} nor one of {told.get(trade_id, 'no pushes')}")


def to_ms(stamp: str) -> int:
    """'2026-11-21T23:59:50.123Z' in ms since 1970."""
    whole, millis = stamp[:-1].split(".")
    return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()) * 1000 + int(millis)


def range_of_gap(gap: Record) -> tuple[int, int]:
    """Return the first and last id that a gap names; both its own ids are exclusive, and empty where there is none."""
    after, before = gap["after_id"], gap["before_id"]
    return (int(after) + 1 if after else 0, int(before) - 1 if before else 10**20)


def describe(trades: list[Trade]) -> str:
    """Write down trades as ranges of ids, the first ten of them."""
    groups: list[list[int]] = []
    for trade in trades:
        if groups and trade.trade_id == groups[-1][-1] + 1:
            groups[-1][-1] = trade.trade_id
        else:
            groups.append([trade.trade_id, trade.trade_id])
    return ", ".join(f"{first} to {last}" for first, last in groups[:10]) + (" …" if len(groups) > 10 else "")
