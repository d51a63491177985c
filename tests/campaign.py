"""A campaign of faults against the real exporter: `python tests/campaign.py --seconds 600 --seed 7`.

The fake OKX trades, and everything that can go wrong does, at random and overlapping: lost, late, doubled and
overlapping pushes, connections that close, hang or lie, a REST that is slow, late, limited, broken or down, and
an exporter that is stopped, suspended, or killed in the middle of a line. Then all is healed, the exporter is
given time to catch up, and what it stored is held against what the exchange knows it did. Exit 0 only if nothing is
lost, doubled, out of order or torn. The seed decides which faults come, and in which order; not to the ms what they
hit.
"""

import argparse
import random
import re
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

from fake_okx import ABSENT, JUNK_FRAMES, REST_FAILURES, START, FakeOKX, Faults, Push, Row
from harness import Exporter, Verdict, assert_vault_equals_ledger, day_files, read_gaps

SETTINGS: dict[str, object] = {  # patience in seconds where people have minutes
    "PING_AFTER_S": 2.0,
    "PONG_S": 1.0,
    "SUBSCRIBE_S": 3.0,
    "INSTRUMENT_SILENT_S": 3.0,
    "REPLACE_S": 3.0,
    "METADATA_S": 2.0,
    "REST_TIMEOUT_S": 2.0,
    "STEADY_S": 1.0,
}
DAYS = 3  # that go by on the exchange during a campaign
BACKFILL_HOURS = "100000"  # its clock runs fast, and nothing shall be too old to be repaired
PAUSE_S = (0.05, 0.9)  # between faults
CALM_EVERY = 40  # faults; then all is healed and must be stored before the next one
CALM_S = 120.0  # at most until it is
LONGEST_LIE_S = 8.0  # REST may lack or garble a trade so long; after 15 s the exporter would be right to believe it


class Lasting(NamedTuple):
    """A fault that is on until a time (monotonic), and how to switch it off."""

    until: float
    undo: Callable[[], None]


class Campaign:
    """The exchange, the exporter and the dice. `say` takes each line for the person who watches."""

    def __init__(self, seconds: float, seed: int, folder: Path, *, rate: float, say: Callable[[str], None]) -> None:
        self.seconds = seconds
        self.okx = FakeOKX(seed=seed, rate=rate, start=START, speed=DAYS * 86_400 / seconds)
        args = ["--backfill-hours", BACKFILL_HOURS]
        self.exporter = Exporter(self.okx, folder, settings=SETTINGS, args=args)
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
        }

    def run(self) -> None:
        """Do it all; raise AssertionError when the exporter broke its word."""
        with self.okx:
            try:
                self.exporter.start_capture()
                self._measure()
                self._torment()
                self._settle()
                code = self.exporter.stop()
                assert code == 0, f"exit {code} after SIGTERM"
            finally:
                self.exporter.kill()
            assert "Traceback" not in self.exporter.log, "a traceback in the log"
            for inst_id in self.okx.markets:
                verdict = assert_vault_equals_ledger(self.exporter.vault, self.okx, inst_id)
                gaps = read_gaps(self.exporter.vault, inst_id)
                assert verdict.missing == 0, f"{inst_id}: {verdict.missing} trades are on record as missing: {gaps}"
                self.verdicts[inst_id] = verdict

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
        self.exporter.wait_until_stored(CALM_S)
        self._measure()

    def _calm(self) -> None:
        """Heal everything and wait until what happened is stored; trading goes on."""
        began = time.monotonic()
        self._switch_off(float("inf"))
        self.okx.faults = Faults()
        self._wait_until_recovered()
        self.exporter.wait_until_stored(CALM_S)
        self._tell(f"calm: all stored after {time.monotonic() - began:.1f} s")

    def _wait(self, seconds: float) -> None:
        """Let time go by; nothing is allowed to end the exporter meanwhile."""
        until = time.monotonic() + seconds
        self.exporter.wait_until(lambda: time.monotonic() >= until, seconds + 10, "the exporter still runs")

    def _wait_until_recovered(self) -> None:
        """Wait until the exporter has looked at its files, and so can be stopped, or have them taken away."""
        self.exporter.wait_for_log("Recording", times=len(self.okx.markets), seconds=60)

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
        """Take the folder of trades away for a while: what is open can be written on, the next day's file cannot."""
        self._wait_until_recovered()
        seconds = self._chance.uniform(0.2, 3)
        raw = self.exporter.vault / "raw"
        away = raw.rename(raw.with_name("raw-away"))
        time.sleep(seconds)
        away.rename(raw)
        return f"for {seconds:.1f} s"

    def restart(self) -> str:
        """Stop the exporter as a person does, and start it again."""
        self._wait_until_recovered()
        code = self.exporter.stop()
        assert code == 0, f"exit {code} after SIGTERM"
        seconds = self._chance.choice((0.0, 1.0))
        time.sleep(seconds)
        self._start()
        return f"after {seconds} s"

    def kill(self) -> str:
        """Kill the exporter, leave the end of its files as a crash or a power cut might, and start it again."""
        self.exporter.kill()
        damage = self._chance.choice((*DAMAGES, None))
        for inst_id in self.okx.markets:
            if damage and (files := day_files(self.exporter.vault, inst_id)):
                damage(files, self._chance)
        seconds = self._chance.choice((0.0, 0.0, 0.5, 2.0))
        time.sleep(seconds)
        self._start()
        return f"{damage.__name__ if damage else 'undamaged'}, start after {seconds} s"

    def _start(self) -> None:
        """Start the exporter; in half of the cases the next fault comes before it is subscribed."""
        self.exporter.start()
        if self._chance.random() < 0.5:
            self._switch_off(float("inf"))
            self.exporter.wait_for_log("Subscribed to trades", times=len(self.okx.markets), seconds=60)
        else:
            self.exporter.wait_for_log("started")


# What crashes leave: each takes an instrument's files, oldest first. What has been synced (a second ago) stays.


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
