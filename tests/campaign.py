"""A campaign of faults against the real exporter: `python tests/campaign.py --seconds 600 --seed 7`.

The fake OKX trades, and everything that can go wrong does, at random and overlapping: lost, late, doubled and
overlapping pushes, connections that close, hang or lie, a REST that is slow, late, limited, broken or down, archives
that are not what they should be, an exporter that is stopped for hours or days, suspended, robbed of its disk, its lock
or a file that it writes, or killed in the middle of a line of the present or of the past. Then all is healed, the
exporter is given time to catch up, and what it stored since the day that it was asked for is held against what the
exchange knows it did, by the ledger, --verify and --audit. Exit 0 only if nothing is lost, doubled, out of order or
torn. The seed decides which faults come, and in which order; not to the ms what they hit.
"""

import argparse
import contextlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from fake_okx import (
    ABSENT,
    ARCHIVE_FAULTS,
    DAY_MS,
    JUNK_FRAMES,
    REST_FAILURES,
    REST_LIMITS,
    FakeOKX,
    Faults,
    Push,
    Row,
    utc_ms,
)
from harness import (
    Exporter,
    Verdict,
    assert_judges_content,
    assert_whole,
    day_files,
    last_line,
    range_of_gap,
    read_gaps,
    to_utc,
)

with contextlib.suppress(ImportError):
    import resource  # not on Windows

SETTINGS: dict[str, object] = {  # patience in seconds where people have minutes
    "PING_AFTER_S": 2.0,
    "PONG_S": 1.0,
    "SUBSCRIBE_S": 3.0,
    "INSTRUMENT_SILENT_S": 3.0,
    "METADATA_S": 2.0,
    "REST_TIMEOUT_S": 2.0,
    "STEADY_S": 1.0,
    "PROOF_S": 6.0,
    "HISTORY_WAIT_S": 0.5,
    "ARCHIVE_IDS": 500,
    "ARCHIVE_RETRY_S": 2.0,
    "ARCHIVE_STALL_S": 1.0,
    "AUDIT_AFTER_S": 3.0,
}
START = "2026-09-15T12:00:00Z"  # long before this PC's time: the pauses add up
DAYS = 3  # that go by on the exchange during a campaign, and as many in each of the longest pauses
PAST_DAYS, PAST_TRADES = 6, 1500  # before the start; trades a day and instrument
PAUSE_S = (0.05, 0.9)  # between faults
CALM_EVERY = 40  # faults; then all is healed and must be stored before the next one
CALM_S = 120.0  # at most until it is
LONGEST_LIE_S = 4.0  # REST may lack or garble a trade so long; after PROOF_S the exporter would be right to believe it
MOST_MEMORY_MB = 60.0  # more than at the start


class Lasting(NamedTuple):
    """A fault that is on until a time (monotonic), and how to switch it off."""

    until: float
    undo: Callable[[], None]


class Campaign:
    """The exchange, the exporter and the dice. `say` takes each line for the person who watches."""

    def __init__(self, seconds: float, seed: int, folder: Path, *, rate: float, say: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._speed = DAYS * 86_400 / seconds  # of the exchange's clock
        self.okx = FakeOKX(seed=seed, rate=rate, start=START, speed=self._speed)
        first_day = utc_ms(START) // DAY_MS - PAST_DAYS
        for inst_id in self.okx.markets:
            self.okx.prefill(inst_id, PAST_TRADES * PAST_DAYS, first_day * DAY_MS, START)
        self.exporter = Exporter(self.okx, folder, settings=SETTINGS)
        self.since = ""  # the earliest day that was asked for
        self._days = [to_utc((first_day + number) * DAY_MS)[:10] for number in range(1, PAST_DAYS)]
        self.counts: Counter[str] = Counter()
        self.verdicts: dict[str, Verdict] = {}
        self.memory: list[float] = []  # MB of the exporter, now and then
        self._chance = random.Random(seed)
        self._say = say
        self._lasting: list[Lasting] = []
        self._started = time.monotonic()
        self._faults: dict[Callable[[], str], int] = {  # and how often each comes, compared with the others
            self.push_fault: 12,
            self.rest_fault: 6,
            self.rest_answers_late: 2,
            self.rest_lacks_a_trade: 2,
            self.rest_garbles_a_trade: 2,
            self.rest_is_down: 1,
            self.burst: 2,
            self.lost_run: 3,
            self.old_push: 3,
            self.skip_ids: 1,
            self.junk: 3,
            self.close: 5,
            self.notice: 4,
            self.half_open: 2,
            self.dead_subscription: 2,
            self.mute: 2,
            self.refuse_connections: 2,
            self.refuse_subscriptions: 1,
            self.suspend: 2,
            self.vanished_drive: 1,
            self.restart: 2,
            self.kill: 6,
            self.archive_fault: 3,
            self.long_pause: 4,
            self.clock_jumps: 2,
            self.lock_is_removed: 1,
            self.disk_is_full: 2,
            self.file_is_replaced: 2,
        }

    def run(self) -> None:
        """Do it all; raise AssertionError when the exporter broke its word."""
        with self.okx:
            try:
                self._ask_since(self._days[-2])
                self.exporter.start_capture()
                self.exporter.wait_for_log("to be fetched", times=len(self.okx.markets))  # or else a stop forgets it
                self._measure()
                self._torment()
                self._settle()
                code = self.exporter.stop()
                assert code == 0, f"exit {code} after SIGTERM"
            finally:
                self.exporter.kill()
            self._judge()

    def _judge(self) -> None:
        """Hold the Vault, the log and the memory against what was promised."""
        vault = self.exporter.vault
        assert "Traceback" not in self.exporter.log, "a traceback in the log"
        self.verdicts = assert_whole(vault, self.okx, ("start", "absent"))
        for inst_id, verdict in self.verdicts.items():
            gaps = read_gaps(vault, inst_id)
            assert verdict.missing == 0, f"{inst_id}: {verdict.missing} trades are on record as missing: {gaps}"
            [start] = [gap for gap in gaps if gap["reason"] == "start"]
            trades = self.okx.ledger[inst_id]
            first = next(trade.trade_id for trade in trades if to_utc(trade.ts) >= self.since)
            assert range_of_gap(start) == (0, first - 1), f"{inst_id} begins with {first}, on record is {start}"
        assert max(self.memory) < self.memory[0] + MOST_MEMORY_MB, f"memory grew: {self.memory}"
        path = "/api/v5/market/history-candles"
        limit = REST_LIMITS[path]
        try:  # for once the exchange answers as fast as it can: an audit of weeks would take minutes
            REST_LIMITS[path] = (10_000, limit[1])
            self.exporter.settings = {**SETTINGS, "REST_LIMITS": dict.fromkeys(REST_LIMITS, 10_000)}
            assert_judges_content(self.exporter)
        finally:
            REST_LIMITS[path] = limit

    def report(self) -> str:
        """Say what happened and how it ended."""
        log = self.exporter.log
        gaps = Counter(gap["reason"] for inst_id in self.okx.markets for gap in read_gaps(self.exporter.vault, inst_id))
        memory = (
            f"{self.memory[0]:.1f} MB at the start, {self.memory[-1]:.1f} at the end, {max(self.memory):.1f} at most"
        )
        fetched = sum(map(int, re.findall(r"Gap repaired .*?fetched=(\d+)", log)))
        requests = f"{len(self.okx.requests)} requests, {self.okx.throttled} over OKX's limits"
        found, repaired = log.count("Gap found"), log.count("Gap repaired")
        lines = [
            f"{self.counts.total()} faults: {listed(self.counts)}",
            f"repairs: {found} gaps found, {repaired} repaired with {fetched} trades; {requests}",
            f"on record: {listed(gaps)}",
            f"memory of the exporter: {memory}",
        ]
        for inst_id, verdict in self.verdicts.items():
            happened = f"{inst_id}: {len(self.okx.ledger[inst_id])} trades happened"
            lines.append(f"{happened}, {verdict.trades} are stored in {verdict.lines} lines")
        return "\n".join(lines)

    # The course of things

    def _torment(self) -> None:
        end = time.monotonic() + self.seconds
        while (now := time.monotonic()) < end:
            self._switch_off(now)
            if self.counts.total() % CALM_EVERY == CALM_EVERY - 1:
                self._calm()
            [fault] = self._chance.choices(list(self._faults), list(self._faults.values()))
            self._count(fault.__name__, fault())
            self._wait(self._chance.uniform(*PAUSE_S))
            self._measure()

    def _settle(self) -> None:
        self._switch_off(float("inf"))
        self._wait_until_recovered()
        self.okx.settle()
        self.exporter.wait_until_whole(CALM_S)
        self._measure()

    def _calm(self) -> None:
        """Heal everything and wait until what happened is stored; trading goes on."""
        began = time.monotonic()
        self._switch_off(float("inf"))
        self.okx.faults = Faults()
        self._wait_until_recovered()
        self.exporter.wait_until_whole(CALM_S)
        self._tell(f"calm: all stored after {time.monotonic() - began:.1f} s")

    def _wait(self, seconds: float) -> None:
        """Let time go by; nothing is allowed to end the exporter meanwhile."""
        until = time.monotonic() + seconds
        self.exporter.wait_until(lambda: time.monotonic() >= until, seconds + 10, "the exporter still runs")

    def _wait_until_recovered(self) -> None:
        """Wait until the exporter has looked at its files, and so can be stopped, or have them taken away."""
        self.exporter.wait_for_log("Recording", times=len(self.okx.markets), seconds=60)

    def _heal(self) -> None:
        """End all faults that last."""
        self._switch_off(float("inf"))

    def _switch_off(self, now: float) -> None:
        for fault in [fault for fault in self._lasting if fault.until <= now]:
            self._lasting.remove(fault)
            fault.undo()

    def _switch_on(self, name: str, value: object, seconds: float) -> None:
        """Set a field of the exchange's faults for so long."""
        setattr(self.okx.faults, name, value)
        self._lasting.append(
            Lasting(time.monotonic() + seconds, lambda: setattr(self.okx.faults, name, getattr(Faults(), name)))
        )

    def _count(self, name: str, detail: str) -> None:
        self.counts[name] += 1
        self._tell(f"{name} {detail}")

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._started:7.1f} s  {text}")

    def _measure(self) -> None:
        """Note the exporter's resident memory."""
        self.memory.append(psutil.Process(self.exporter.pid).memory_info().rss / 1_000_000)

    def _any_instrument(self) -> str:
        return self._chance.choice(list(self.okx.markets))

    # Faults of the pushes

    def push_fault(self) -> str:
        """Lose, double, delay … a share of the pushes for a while."""
        name = self._chance.choice(
            ("lose", "double", "delay", "shuffle", "straddle", "twin", "bad_count", "several_rows")
        )
        share, seconds = self._chance.choice((0.02, 0.1, 0.4)), self._chance.uniform(0.5, 4)
        self._switch_on(name, share, seconds)
        return f"{name} {share:.0%} for {seconds:.1f} s"

    def burst(self) -> str:
        """Trade a lot at once."""
        inst_id, n = self._any_instrument(), self._chance.randint(200, 2000)
        self.okx.trade(inst_id, n)
        return f"{n} pushes of {inst_id}"

    def lost_run(self) -> str:
        """Lose several pushes in a row."""
        inst_id, n = self._any_instrument(), self._chance.randint(1, 300)
        self.okx.trade(inst_id, n, lost=True)
        return f"{n} pushes of {inst_id}"

    def old_push(self) -> str:
        """Send again what was pushed before."""
        inst_id = self._any_instrument()
        pushes = self.okx.pushes[inst_id]
        push = pushes[-min(len(pushes), int(self._chance.paretovariate(0.3)))]
        self.okx.resend(push, inst_id)
        return f"{push.last_id} of {inst_id}"

    def skip_ids(self) -> str:
        """Leave out ids: they never exist."""
        inst_id, n = self._any_instrument(), self._chance.choice((1, 1, 3, 150, 5000, 10**9))
        self.okx.skip_ids(n, inst_id)
        return f"{n} of {inst_id}"

    # Faults of REST

    def rest_fault(self) -> str:
        """Let REST fail in one way for a while."""
        kind = self._chance.choice((*REST_FAILURES, "reset", "hang", "truncated"))
        share, seconds = self._chance.choice((0.3, 1.0)), self._chance.uniform(0.5, 4)
        self._switch_on("rest", {kind: share}, seconds)
        return f"{kind} {share:.0%} for {seconds:.1f} s"

    def rest_answers_late(self) -> str:
        """Let REST be slow, behind the pushes, older from answer to answer, or lack rows."""
        name, value = self._chance.choice(
            (
                ("rest_latency_s", 0.4),
                ("rest_latency_jitter_s", 1.0),
                ("rest_lag_s", 2.0),
                ("rest_lag_jitter_s", 3.0),
                ("rest_partial", 0.5),
            )
        )
        seconds = self._chance.uniform(1, LONGEST_LIE_S)
        self._switch_on(name, value, seconds)
        return f"{name} {value} for {seconds:.1f} s"

    def rest_lacks_a_trade(self) -> str:
        """Lose a push that REST does not have at first either."""
        inst_id, push, seconds = self._lost_push()
        self.okx.hide(range(push.first_id, push.last_id + 1), inst_id, seconds)
        return f"{push.first_id} to {push.last_id} of {inst_id} for {seconds:.1f} s"

    def rest_garbles_a_trade(self) -> str:
        """Lose a push of which REST sends a bad row at first."""
        inst_id, push, seconds = self._lost_push()
        garbled: tuple[Row, ...] = ({"px": "NaN"}, {"sz": 5}, {"side": ABSENT}, {"ts": ""}, {"tradeId": None})
        fields = self._chance.choice(garbled)
        self.okx.corrupt(push.last_id, fields, inst_id, seconds)
        return f"{push.last_id} of {inst_id} for {seconds:.1f} s: {next(iter(fields))}"

    def _lost_push(self) -> tuple[str, Push, float]:
        inst_id = self._any_instrument()
        [push] = self.okx.trade(inst_id, lost=True)
        return inst_id, push, self._chance.uniform(0.5, LONGEST_LIE_S)

    def rest_is_down(self) -> str:
        """Let REST answer nothing at all, long enough for a restart to need the saved metadata."""
        seconds = self._chance.uniform(4, 8)
        self._switch_on("rest", {"reset": 1.0}, seconds)
        return f"for {seconds:.1f} s"

    def archive_fault(self) -> str:
        """Let archives be refused, damaged or slow for a while."""
        kinds = sorted({*ARCHIVE_FAULTS} - {"bomb", "hidden bomb", "holes"})
        faults = dict.fromkeys(self._chance.sample(kinds, 3), 0.3)
        seconds = self._chance.uniform(2, 10)
        self._switch_on("archive_often", faults, seconds)
        self._switch_on("archive_bytes_per_s", self._chance.choice((float("inf"), 50_000.0)), seconds)
        return f"{', '.join(faults)} for {seconds:.1f} s"

    # Faults of the connection

    def junk(self) -> str:
        """Send what is no trade."""
        name = self._chance.choice(list(JUNK_FRAMES))
        self.okx.send_junk(name)
        return name

    def close(self) -> str:
        """Close the connection."""
        code = self._chance.choice((1000, 1001, 1006, 1006, 1011, 4004, 4005, 4006))
        self.okx.close(code)
        return str(code)

    def notice(self) -> str:
        """Announce an upgrade, and close soon."""
        seconds = self._chance.choice((0.0, 0.3, 2.0, 5.0))
        self.okx.notice(seconds, self._chance.choice((1001, 1006)))
        return f"and close after {seconds} s"

    def half_open(self) -> str:
        """Let the connection look alive and carry nothing."""
        self.okx.half_open()
        return ""

    def dead_subscription(self) -> str:
        """Send nothing more of one instrument until it is subscribed anew."""
        inst_id = self._any_instrument()
        self.okx.kill_subscription(inst_id)
        return inst_id

    def mute(self) -> str:
        """Lose all pushes of an instrument, through reconnects, for a while."""
        inst_id, seconds = self._any_instrument(), self._chance.uniform(0.5, 3)
        self.okx.mute(inst_id, seconds)
        return f"{inst_id} for {seconds:.1f} s"

    def refuse_connections(self) -> str:
        """Cut the connection and treat new ones badly for a while."""
        how, seconds = self._chance.choice(("503", "stall", "reset", "close")), self._chance.uniform(0.5, 3)
        self._switch_on("ws_refuse", how, seconds)
        self.okx.close()
        return f"with {how} for {seconds:.1f} s"

    def refuse_subscriptions(self) -> str:
        """Cut the connection; subscribing again fails, or one instrument's ack does not come, for a while."""
        name, value = self._chance.choice(
            (("reject_code", "60014"), ("no_ack", {self._any_instrument()}), ("ack_delay_s", 1.0))
        )
        seconds = self._chance.uniform(0.5, 3)
        self._switch_on(name, value, seconds)
        self.okx.close()
        return f"{name} {value} for {seconds:.1f} s"

    # Faults of the machine

    def suspend(self) -> str:
        """Let the exporter sleep, where processes can be stopped, while the exchange trades on."""
        seconds = self._chance.uniform(0.3, 4)
        if self.exporter.process is not None and sys.platform != "win32":
            self.exporter.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.exporter.process.send_signal(signal.SIGCONT)
        return f"for {seconds:.1f} s"

    def vanished_drive(self) -> str:
        """Take the Vault away for a while."""
        self._wait_until_recovered()
        seconds = self._chance.uniform(0.2, 3)
        vault = self.exporter.vault
        away = vault.rename(vault.with_name("away"))
        time.sleep(seconds)
        away.rename(vault)
        return f"for {seconds:.1f} s"

    def disk_is_full(self) -> str:
        """Let no file grow any more, for a while; the log's neither, so lines that are waited for come first."""
        self._wait_until_recovered()
        seconds = self._chance.uniform(0.3, 3)
        if sys.platform == "linux":
            size = self._chance.choice((0, 100_000, 1_000_000))
            unlimited = resource.RLIM_INFINITY
            resource.prlimit(self.exporter.pid, resource.RLIMIT_FSIZE, (size, unlimited))
            self._wait(seconds)
            resource.prlimit(self.exporter.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        return f"for {seconds:.1f} s"

    def file_is_replaced(self) -> str:
        """Put a copy in the place of each newest file, as an editor that saves; what comes meanwhile is not in it."""
        if sys.platform == "win32":
            return "not on Windows"
        self._wait_until_recovered()
        newest = [files[-1] for inst_id in self.okx.markets if (files := day_files(self.exporter.vault, inst_id))]
        for path in newest:
            shutil.copyfile(path, path.with_suffix(".copy")).replace(path)
        return ", ".join(path.name for path in newest)

    def lock_is_removed(self) -> str:
        """Remove the lock's file, where that is possible: the exporter stops before it writes again."""
        if sys.platform == "win32":
            return "not on Windows"
        self._wait_until_recovered()
        (self.exporter.vault / "exporter.lock").unlink()
        self._heal()  # or else nothing may come to be written
        code = self.exporter.wait(60)
        assert code == 4, f"exit {code} without the lock"
        self._start()
        return ""

    def clock_jumps(self) -> str:
        """Let the exchange's clock jump ahead."""
        hours = self._chance.choice((0.01, 1, 7, 30))
        self.okx.set_clock(self.okx.now_ms() + int(hours * 3_600_000), self._speed)
        return f"by {hours:g} h"

    def restart(self) -> str:
        """Stop the exporter as a person does, and start it again."""
        self._wait_until_recovered()
        code = self.exporter.stop()
        assert code == 0, f"exit {code} after SIGTERM"
        seconds = self._chance.choice((0.0, 1.0))
        time.sleep(seconds)
        self._start()
        return f"after {seconds} s"

    def long_pause(self) -> str:
        """Stop the exporter or kill it, and start it again hours or days later."""
        how = self._chance.choice(("stopped", "killed"))
        if how == "stopped":
            self._wait_until_recovered()
            code = self.exporter.stop()
            assert code == 0, f"exit {code} after SIGTERM"
        else:
            self._kill()
        rates = dict(self.okx.rates)
        self.okx.set_rate(0)
        hours, trades = self._chance.choice((0.1, 5, 26, 24 * DAYS)), self._chance.choice((0, 50, 1000, 4000))
        self.okx.pass_hours(hours, trades)
        self.okx.rates.update(rates)
        self._start()
        return f"{how}, {trades} trades in {hours:g} h"

    def kill(self) -> str:
        """Kill the exporter, leave the end of its files as a crash or a power cut might, and start it again."""
        damages = self._kill()
        seconds = self._chance.choice((0.0, 0.0, 0.5, 2.0))
        time.sleep(seconds)
        self._start()
        return f"{damages}, start after {seconds} s"

    def _kill(self) -> str:
        """Kill the exporter and damage the ends of the files of live capture and of history; say how."""
        self.exporter.kill()
        done = []
        for inst_id in self.okx.markets:
            files = day_files(self.exporter.vault, inst_id)
            for end in (files, files_of_history(self.exporter.vault, inst_id, files)):
                damage = self._chance.choice((*DAMAGES, None))
                if damage and end:
                    damage(end, self._chance)
                    done.append(damage.__name__)
        return ", ".join(done) or "undamaged"

    def _start(self) -> None:
        """Start the exporter; in half of the cases the next fault comes before it is subscribed."""
        self._ask_since(self._chance.choice((*self._days, "", "", "")))
        self.exporter.start()
        if self._chance.random() < 0.5:
            self._heal()
            self.exporter.wait_for_log("Subscribed to trades", times=len(self.okx.markets), seconds=60)
        else:
            self.exporter.wait_for_log("started")

    def _ask_since(self, day: str) -> None:
        """Let the next start ask for the past since this day, if one is given."""
        self.exporter.args = ["--since", day] if day else []
        self.since = min(filter(None, (day, self.since)), default="")


# What crashes leave: each takes files, oldest first, and damages the last. What has been synced (a second ago) stays.


def files_of_history(vault: Path, inst_id: str, files: list[Path]) -> list[Path]:
    """Return the files up to the one that history appends to; none where that is not known."""
    pending = [range_of_gap(gap) for gap in read_gaps(vault, inst_id) if gap["reason"] == "pending"]
    for number, path in enumerate(files[:-1]):
        line = last_line(path)
        if line and any(first <= int(line["trade_id"]) <= last for first, last in pending):
            return files[: number + 1]
    return []


def a_torn_line(files: list[Path], chance: random.Random) -> None:
    """Leave a line cut off at any byte."""
    line = (files[-1].read_bytes() or b'{"timestamp_utc":"2026\n').splitlines(keepends=True)[-1]
    append(files[-1], line[: chance.randrange(1, len(line))])


def lost_pages(files: list[Path], chance: random.Random) -> None:
    """Take away what had not been written back when the power went."""
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[: max(0, len(content) - chance.randrange(5000))])


def zero_bytes(files: list[Path], chance: random.Random) -> None:
    """Leave zeros where the file had grown and its content was not written yet."""
    lost_pages(files, chance)
    append(files[-1], bytes(chance.randrange(1, 9000)))


def garbage(files: list[Path], chance: random.Random) -> None:
    """Leave bytes of something else, line ends among them."""
    append(files[-1], chance.randbytes(chance.randrange(1, 9000)))


def a_torn_yesterday(files: list[Path], chance: random.Random) -> None:
    """Leave a torn line at the end of the file before the newest one."""
    a_torn_line(files[-2:][:1], chance)


def only_a_torn_line(files: list[Path], chance: random.Random) -> None:
    """Leave a new day's file that holds nothing whole."""
    day = datetime.fromisoformat(files[-1].name[:10]).replace(tzinfo=UTC) + timedelta(days=1)
    append(files[-1].with_name(f"{day:%Y-%m-%d}.jsonl"), b'{"timestamp_utc":"2026'[: chance.randrange(20)])


def a_torn_gaps_file(files: list[Path], chance: random.Random) -> None:
    """Leave a torn line at the end of what is on record."""
    gaps = files[-1].parents[4] / "meta" / "okx" / "gaps" / f"{files[-1].parent.name}.jsonl"
    append(gaps, b'{"recorded_utc":"2026-11-21T12:00:00.000Z","instId":"BTC'[: chance.randrange(1, 50)])


def listed(counts: Counter[str]) -> str:
    """Write down how many of each."""
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


def append(path: Path, content: bytes) -> None:
    """Append bytes to a file."""
    with path.open("ab") as file:
        file.write(content)


DAMAGES = (a_torn_line, lost_pages, zero_bytes, garbage, a_torn_yesterday, only_a_torn_line, a_torn_gaps_file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign and say how it ended."""
    parser = argparse.ArgumentParser(description="Faults of every kind against the real exporter.")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the faults go on (default 120)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other faults")
    parser.add_argument("--rate", type=float, default=50.0, help="pushes a second and instrument (default 50)")
    parser.add_argument("--folder", type=Path, help="where the Vault and the log go (default: a new temporary folder)")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="campaign-"))
    campaign = Campaign(options.seconds, options.seed, folder, rate=options.rate, say=partial(print, flush=True))
    print(f"seed {options.seed}, {options.seconds:g} s; Vault and log are in {folder}", flush=True)
    try:
        campaign.run()
    except AssertionError as error:
        print(f"\n{campaign.report()}\n\nVERDICT: broken: {error}")
        return 1
    print(f"\n{campaign.report()}\n\nVERDICT: 0 lost, 0 doubled, 0 out of order, 0 torn")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
