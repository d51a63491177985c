"""Half a minute of show, without OKX: the real exporter on a fake exchange, through four disasters, and the proof.

`python tests/demo.py`; a smaller `--pace` is a faster show. Exit code 0 only if nothing was lost and nothing doubled.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import orjson

from fake_okx import BTC, ETH, FakeOKX
from harness import Exporter, assert_vault_equals_ledger, day_files, to_utc

BEGIN, SINCE = "2026-11-21T00:02:00Z", "2026-11-19"  # the exchange's time now, and the day from which all is wanted
PAST_BEGIN, PAST_TRADES = "2026-11-18T00:00:00Z", 22_500  # of each instrument, before BEGIN
OFF_HOURS, OFF_TRADES = 30, 3000  # of the fourth disaster; trades of each instrument at a pace of 1
RATE = 25.0  # pushes a second and instrument
CLOCK_SPEED = 40.0  # the exchange's seconds in one of ours: the audit wants whole minutes
GLANCE_S = 0.8  # between two looks at the newest trades
BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


class Show:
    """What the spectator sees: headings, the newest trades, the exporter's own log. In colour on a terminal."""

    def __init__(self, exporter: Exporter, pace: float) -> None:
        self.exporter = exporter
        self.pace = pace
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        if sys.platform == "win32":  # the old console shows the escape codes themselves
            self._coloured = self._coloured and "WT_SESSION" in os.environ
        self._width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 200
        self._log_shown = 0

    def say(self, text: str, colour: str = "") -> None:
        """Print text, in colour where that can be seen."""
        print(f"\x1b[{colour}m{text}\x1b[0m" if self._coloured and colour else text, flush=True)

    def heading(self, text: str) -> None:
        """Announce what comes."""
        self.show_log()
        self.say(f"\n{text}", BOLD)

    def show_log(self) -> None:
        """Print what the exporter has logged since the last look, without the times and no wider than the terminal."""
        log = self.exporter.log
        fresh, self._log_shown = log[self._log_shown : log.rfind("\n") + 1], log.rfind("\n") + 1
        for line in fresh.splitlines():
            level, _, text = line.partition("[")[2].partition("]")
            colour = {"info": DIM, "warning": YELLOW}.get(level.strip(), RED)
            self.say(("    log: " + re.sub(" {2,}", "  ", text.strip()))[: self._width], colour)

    def watch(self, seconds: float) -> None:
        """Let time pass, with an eye on the log and on the trades as they reach the files."""
        end = time.monotonic() + seconds * self.pace
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, GLANCE_S * self.pace))
            self.show_log()
            for inst_id in (BTC, ETH):
                self._show_newest(inst_id)

    def _show_newest(self, inst_id: str) -> None:
        if files := day_files(self.exporter.vault, inst_id):
            lines = files[-1].read_bytes().split(b"\n")[:-1]
            trade = orjson.loads(lines[-1])
            moment, size = trade["timestamp_utc"][11:23], f"{trade['qty_contracts']} @ {trade['price']}"
            self.say(f"  {moment}  {inst_id}  {trade['side']:<4}  {size:<20}  {len(lines):>5} lines stored")


def cut_the_connection(show: Show, okx: FakeOKX) -> None:
    """Let OKX be out of reach for a moment, while it trades on."""
    show.heading("1. The connection is cut, and OKX can't be reached for a moment. It trades on.")
    okx.faults.ws_refuse = "503"
    okx.close(1006)
    show.watch(2)
    okx.faults.ws_refuse = ""
    show.exporter.wait_until_stored()
    show.watch(2.5)


def lose_messages(show: Show, okx: FakeOKX) -> None:
    """Let pushes vanish on a connection that looks healthy."""
    show.heading("2. One message in five is lost on the way. The connection looks healthy.")
    okx.faults.lose = 0.2
    show.watch(4)
    okx.faults.lose = 0.0
    show.exporter.wait_until_stored()
    show.watch(1)


def kill_it_in_the_middle_of_a_line(show: Show) -> None:
    """Kill the exporter, leave half a line behind as a crash does, and start it again."""
    show.heading("3. kill -9, in the middle of a line. OKX trades on.")
    show.exporter.kill()
    newest = day_files(show.exporter.vault, BTC)[-1]
    line = newest.read_bytes().split(b"\n")[-2]
    with newest.open("ab") as file:
        file.write(line[: len(line) // 2])
    show.say(f"  {newest.name} of {BTC} now ends in: ...{line[: len(line) // 2].decode()[-60:]}", RED)
    time.sleep(3 * show.pace)
    show.heading("   It is started again.")
    show.exporter.start_capture()
    show.exporter.wait_until_stored()
    show.watch(3)


def leave_it_off_over_midnight(show: Show, okx: FakeOKX) -> None:
    """Stop the exporter for more than a day, and start it again: today comes first, what was missed behind it."""
    show.heading(f"4. The PC is off for {OFF_HOURS} hours, over midnight. OKX trades on.")
    stopped = show.exporter.stop()
    show.show_log()
    if stopped != 0:
        show.say(f"It should have stopped with exit code 0, not {stopped}.", RED)
    okx.set_rate(0)
    okx.pass_hours(OFF_HOURS, round(OFF_TRADES * show.pace))
    okx.set_rate(RATE)
    show.heading("   It is started again: the present day first.")
    show.exporter.start_capture()
    show.exporter.wait_until_stored()
    show.heading("   What happens now is stored at once; what was missed is filled in behind it, day by day.")
    show.watch(2)
    show.exporter.wait_until_whole()


def prove_it(show: Show, okx: FakeOKX) -> bool:
    """Stop, let --verify and --audit judge, then hold the files against what the exchange knows it did."""
    show.heading("5. Ctrl+C. Is it all there?")
    okx.settle()
    show.exporter.wait_until_whole()
    codes = [show.exporter.stop()]
    show.show_log()
    today = to_utc(okx.now_ms())[:10]
    for arguments in (["--verify"], ["--audit", f"{SINCE}..{today}"]):
        show.heading(f"python trades_exporter.py {' '.join(arguments)}")
        run = show.exporter.run(*arguments)
        show.say(run.stdout + run.stderr)
        codes.append(run.returncode)
    happened = sum(to_utc(trade.ts) >= SINCE for ledger in okx.ledger.values() for trade in ledger)
    try:
        verdicts = [assert_vault_equals_ledger(show.exporter.vault, okx, inst_id) for inst_id in (BTC, ETH)]
    except AssertionError as error:
        show.say(f"\n{error}", RED)
        return False
    stored, lines = (sum(verdict[part] for verdict in verdicts) for part in (1, 0))
    good = codes == [0, 0, 0] and stored == happened
    show.say(
        f"\n{happened} trades happened since {SINCE}, {stored} are stored (in {lines} lines):"
        f" {happened - stored} lost, none twice.",
        GREEN if good else RED,
    )
    if codes != [0, 0, 0]:
        show.say(f"But the exit codes of capture, verify and audit were {codes}.", RED)
    return good


def main() -> int:
    """Run the show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=1.0, help="0.2: five times as fast (default 1)")
    pace = parser.parse_args().pace
    okx = FakeOKX(start=BEGIN, speed=CLOCK_SPEED / pace)
    for inst_id in (BTC, ETH):
        okx.prefill(inst_id, PAST_TRADES, PAST_BEGIN, BEGIN)
    with tempfile.TemporaryDirectory(prefix="trades-demo-") as folder, okx:
        show = Show(Exporter(okx, Path(folder), args=["--since", SINCE]), pace)
        try:
            show.heading(f"A fake OKX trades (its clock runs fast), the real exporter records. Folder: {folder}")
            show.say(f"   --since {SINCE}: the present day first, the past behind it, from OKX's archives and REST")
            show.exporter.start_capture()
            okx.set_rate(RATE)
            show.watch(4)
            cut_the_connection(show, okx)
            lose_messages(show, okx)
            kill_it_in_the_middle_of_a_line(show)
            leave_it_off_over_midnight(show, okx)
            return 0 if prove_it(show, okx) else 1
        finally:
            show.exporter.kill()


if __name__ == "__main__":
    sys.exit(main())
