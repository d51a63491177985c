"""Measure the exporter: `python tests/bench.py [NAME ...]` prints one table; each figure stands beside its goal.

Figures are ratios to a floor that is measured in the same run, rounds interleaved, medians. The floor of capturing is
a bare websockets client that does `recv(decode=False)` and `orjson.loads` and nothing else. The sender is a process of
its own with prebuilt frames, so that it is not the limit.
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import orjson
import psutil
import websockets
from aiohttp import web

from exact import SCRIPTS
from fake_okx import FakeOKX
from harness import ROOT, wait_for

FLOOR = """
import asyncio, sys, orjson, websockets
async def main():
    async with websockets.connect(sys.argv[1]) as ws:
        await ws.send(sys.argv[2])
        for _ in range(int(sys.argv[3])):
            orjson.loads(await ws.recv(decode=False))
        await asyncio.sleep(60)
asyncio.run(main())
"""
BARE = "import websockets, aiohttp, orjson, structlog, time; print(flush=True); time.sleep(60)"
LOADS = """
import sys, time, orjson
lines = open(sys.argv[1], "rb").readlines()
started = time.perf_counter()
for line in lines:
    orjson.loads(line)
print(len(lines) / (time.perf_counter() - started))
"""
PAIR = ["BTC-USDT-SWAP", "ETH-USDT-SWAP"]
FIRST_ID, START_MS = 2_978_601_964, 1_791_369_350_776

# ------------------------------------------------------------------------------------------------------------ sender


def push(inst_id: str, number: int, ts: int) -> bytes:
    """Return the `number`th push of an instrument as a WebSocket text frame of a server."""
    fields = f'"tradeId":"{FIRST_ID + number}","px":"{83725 + number % 97}.{number % 10}","sz":"{number % 89 + 1}.25"'
    tail = f'"side":"{"buy" if number % 3 else "sell"}","ts":"{ts}","count":"1","source":"0","seqId":{10**11 + number}'
    payload = f'{{"arg":{{"channel":"trades","instId":"{inst_id}"}},"data":[{{"instId":"{inst_id}",{fields},{tail}}}]}}'
    return b"\x81\x7e" + struct.pack("!H", len(payload)) + payload.encode()


class Sender:
    """A process that serves metadata over REST and, over WebSocket, as many pushes as it is allowed to."""

    def __init__(self, trades: int, instruments: Sequence[str] = PAIR) -> None:
        self._instruments = instruments
        self._trades = trades
        self._ports = [free_port(), free_port()]
        self._allowed = mp.Value("q", 0)  # pushes so far
        self._rate = mp.Value("d", 0.0)  # pushes a second, each sent by itself; 0: a blast of prebuilt frames
        self._process = mp.Process(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        wait_for(lambda: all(map(listens, self._ports)), 120, "the sender's ports")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def urls(self) -> list[str]:
        """Return WebSocket and REST URL."""
        return [f"ws://127.0.0.1:{self._ports[0]}/", f"http://127.0.0.1:{self._ports[1]}"]

    def allow(self, trades: int, rate: float = 0.0) -> None:
        """Let it send up to so many pushes in all on each connection."""
        self._rate.value = rate
        self._allowed.value = trades

    def floor(self, trades: int) -> list[str]:
        """Return the command of the floor's client."""
        args = [{"channel": "trades", "instId": inst_id} for inst_id in self._instruments]
        request = json.dumps({"op": "subscribe", "args": args})
        return [sys.executable, "-c", FLOOR, self.urls[0], request, str(trades + len(args))]

    def exporter(self, vault: Path, *settings: str) -> list[str]:
        """Return the command of the exporter."""
        script = (
            [str(ROOT / "tests/run_exporter.py"), *settings, "--"] if settings else [str(ROOT / "trades_exporter.py")]
        )
        options = ["--vault", str(vault), "--log-file", str(vault.with_suffix(".log"))]
        return [sys.executable, *script, *options, "--ws-url", self.urls[0], "--rest-url", self.urls[1]]

    def _serve(self) -> None:
        count = len(self._instruments)
        frames = [push(self._instruments[i % count], i // count, START_MS + i // 10) for i in range(self._trades)]
        asyncio.run(self._run(frames))

    async def _run(self, frames: list[bytes]) -> None:
        app = web.Application()
        app.router.add_get("/api/v5/public/instruments", instrument)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._ports[1]).start()

        async def connected(ws: websockets.ServerConnection) -> None:
            with suppress(websockets.ConnectionClosed):
                await self._send(ws, frames)

        async with websockets.serve(connected, "127.0.0.1", self._ports[0], compression=None, ping_interval=None):
            await asyncio.Future()

    async def _send(self, ws: websockets.ServerConnection, frames: list[bytes]) -> None:
        """Acknowledge the subscription and send what is allowed; frames are built already, or carry the time."""
        for arg in orjson.loads(await ws.recv())["args"]:
            await ws.send(orjson.dumps({"event": "subscribe", "arg": arg, "connId": "a4d3ae55"}).decode())
        sent, due = 0, time.monotonic()
        while ws.state is websockets.State.OPEN:
            if sent == self._allowed.value or ws.transport.get_write_buffer_size() > 1 << 20:
                due = time.monotonic()
                await asyncio.sleep(0.002)
            elif not self._rate.value:
                upto = min(self._allowed.value, sent + 1000)
                ws.transport.write(b"".join(frames[sent:upto]))
                sent = upto
                await asyncio.sleep(0)
            else:
                i = sent // len(self._instruments)
                ws.transport.write(
                    push(self._instruments[sent % len(self._instruments)], i, time.time_ns() // 1_000_000)
                )
                sent += 1
                due += 1 / self._rate.value
                await asyncio.sleep(due - time.monotonic())


async def instrument(request: web.Request) -> web.Response:
    """Answer as /api/v5/public/instruments does."""
    row = {"instId": request.query["instId"], "ctVal": "0.01", "ctMult": "1", "ctType": "linear", "state": "live"}
    return web.json_response({"code": "0", "msg": "", "data": [row]})


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --------------------------------------------------------------------------------------------------------- processes


@contextmanager
def running(command: list[str]) -> Iterator[psutil.Process]:
    """Run a command quietly, and end it."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def cpu(process: psutil.Process) -> float:
    """Return the CPU time of a process so far, s."""
    times = process.cpu_times()
    return float(times.user + times.system)


def day_files(vault: Path) -> list[Path]:
    """Return all files of trades."""
    return list((vault / "raw").rglob("*.jsonl"))


class Counter:
    """Counts the lines in a Vault while they are written, reading each byte once."""

    def __init__(self, vault: Path) -> None:
        self._vault = vault
        self._read: dict[Path, int] = {}
        self.lines = 0

    def count(self) -> int:
        """Return how many lines there are now."""
        for path in day_files(self._vault):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                block = file.read()
            self._read[path] = self._read.get(path, 0) + len(block)
            self.lines += block.count(b"\n")
        return self.lines


def subscribed(vault: Path) -> bool:
    """Tell whether the exporter's log says that it is subscribed to everything it records."""
    log = vault.with_suffix(".log")
    text = log.read_text() if log.exists() else ""
    return 0 < text.count("Recording ") == text.count("Subscribed to trades")


@contextmanager
def capturing(sender: Sender, vault: Path, *settings: str) -> Iterator[psutil.Process]:
    """Run an exporter that is subscribed, on an empty Vault."""
    shutil.rmtree(vault, ignore_errors=True)
    vault.with_suffix(".log").unlink(missing_ok=True)
    sender.allow(0)
    with running(sender.exporter(vault, *settings)) as process:
        wait_for(lambda: subscribed(vault), 90, "the subscription")
        yield process


# ---------------------------------------------------------------------------------------------------------- measures


def floor_cpu(sender: Sender, trades: int, rate: float = 0.0) -> float:
    """Return the floor's CPU time for so many trades, s."""
    sender.allow(0)
    with running(sender.floor(trades)) as process:
        time.sleep(1)  # imports and handshake
        before = cpu(process)
        sender.allow(trades, rate)
        last = -1.0
        while (now := cpu(process)) != last or now == before:
            last = now
            time.sleep(1)
        return now - before


def exporter_cpu(sender: Sender, vault: Path, trades: int, rate: float = 0.0) -> float:
    """Return the exporter's CPU time for so many trades, from socket to file, s."""
    with capturing(sender, vault) as process:
        counter = Counter(vault)
        before = cpu(process)
        sender.allow(trades, rate)
        wait_for(lambda: counter.count() == trades, 120, "the last line")
        return cpu(process) - before


def capture(folder: Path) -> Iterator[tuple[str, str, str]]:
    """CPU time per trade in a blast of 200,000 trades, one a frame."""
    trades = 200_000
    with Sender(trades) as sender:
        rounds = [(floor_cpu(sender, trades), exporter_cpu(sender, folder / "v", trades)) for _ in range(5)]
    floor, ours = (statistics.median(column) / trades * 1e6 for column in zip(*rounds, strict=True))
    ratio = statistics.median(ours / floor for floor, ours in rounds)
    yield "capture: CPU per trade", f"{ratio:.2f} x the floor ({ours:.1f} to {floor:.1f} us)", "1.6 x"


def memory(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Resident memory after a million trades, and its growth."""
    with running([sys.executable, "-c", BARE]) as process:
        time.sleep(2)
        bare = process.memory_info().rss / 1e6
    vault = folder / "v"
    with Sender(1_000_000) as sender, capturing(sender, vault) as process:
        counter = Counter(vault)
        used = {}
        for trades in (300_000, 1_000_000):
            sender.allow(trades)
            wait_for(lambda: counter.count() >= trades, 120, "the last line")  # noqa: B023 - called at once
            used[trades] = process.memory_info().rss / 1e6
    yield "memory above a bare interpreter", f"{used[1_000_000] - bare:.1f} MB after 1,000,000 trades", "12 MB"
    yield "memory growth", f"{used[1_000_000] - used[300_000]:+.1f} MB from 300,000 to 1,000,000", "none"


def latency(folder: Path) -> Iterator[tuple[str, str, str]]:
    """From the frame being sent to the line being readable, at 200 trades a second; the time is in the trade."""
    vault = folder / "v"
    delays: list[float] = []
    with Sender(0) as sender, capturing(sender, vault):
        sender.allow(4000, 200)
        files: dict[Path, int] = {}
        while len(delays) < 4000:
            for path in day_files(vault):
                with path.open("rb") as file:
                    file.seek(files.get(path, 0))
                    lines = [line for line in file if line.endswith(b"\n")]  # the last one may be half written
                now = time.time()
                files[path] = files.get(path, 0) + sum(map(len, lines))
                delays += [now - stamp(line) for line in lines]
            time.sleep(0.001)
    delays.sort()
    p50, p99 = delays[len(delays) // 2] * 1000, delays[len(delays) * 99 // 100] * 1000
    yield "latency at 200 trades/s", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms", "p99 100 ms"


def stamp(line: bytes) -> float:
    """Return a record's time, s since 1970."""
    seconds = time.mktime(time.strptime(line[18:37].decode(), "%Y-%m-%dT%H:%M:%S")) - time.timezone
    return seconds + int(line[38:41]) / 1000


def pace(folder: Path) -> Iterator[tuple[str, str, str]]:
    """CPU at a trader's pace, each frame sent by itself."""
    vault, seconds = folder / "v", 15
    with Sender(0) as sender:
        for rate, goal in ((0, "1 %"), (100, "2 %")):
            with capturing(sender, vault) as process:
                before = cpu(process)
                sender.allow(rate * 3600, rate)
                time.sleep(seconds)
                share = (cpu(process) - before) / seconds
            with running(sender.floor(rate * 3600)) as process:
                time.sleep(1)
                before = cpu(process)
                time.sleep(seconds)
                floor = (cpu(process) - before) / seconds
            yield f"CPU at {rate} trades/s", f"{share:.1%} of a core (the floor {floor:.1%})", goal
        trades = 8000
        rounds = [(floor_cpu(sender, trades, 1000), exporter_cpu(sender, vault, trades, 1000)) for _ in range(3)]
    yield "CPU at 1,000 trades/s", f"{statistics.median(b / a for a, b in rounds):.2f} x the floor", "1.3 x"


def backfill(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Trades a second fetched at 150 ms latency, both instruments behind, against what OKX's limit allows."""
    vault, behind = folder / "v", 15_000
    with FakeOKX(seed=4) as okx:
        command = [sys.executable, str(ROOT / "trades_exporter.py"), "--vault", str(vault)]
        command += ["--log-file", str(vault.with_suffix(".log")), "--ws-url", okx.ws_url, "--rest-url", okx.rest_url]
        for inst_id in PAIR:
            okx.trade(inst_id)
        with running(command):
            wait_for(lambda: Counter(vault).count() == len(PAIR), 30, "the first trades")
        for inst_id in PAIR:
            okx.trade(inst_id, behind, count=1, lost=True)
        okx.faults.rest_latency_s = 0.15
        okx.requests.clear()
        with running(command):
            wait_for(lambda: Counter(vault).count() == len(PAIR) * (behind + 1), 120, "the backfill")
        asked = [moment for moment, path, _ in okx.requests if path.endswith("history-trades")]
    speed = len(PAIR) * behind / (asked[-1] - asked[0] + 0.15)
    yield "backfill at 150 ms", f"{speed / 1000:.0%} of the limit ({speed:.0f} trades/s), {okx.throttled} x 429", "90 %"


def restart(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Time from start to subscribed with a 1 GB day file, against an empty Vault."""
    vault = folder / "v"

    def start() -> float:
        vault.with_suffix(".log").unlink(missing_ok=True)
        started = time.monotonic()
        with running(sender.exporter(vault)):
            wait_for(lambda: subscribed(vault), 60, "the subscription")
            return time.monotonic() - started

    with Sender(1) as sender:
        empty = statistics.median(start() for _ in range(5))
        for inst_id in PAIR[:1]:
            write_day(vault / "raw/okx/trades_perps" / inst_id / "2026-10-07.jsonl", inst_id, 1 << 30)
        full = statistics.median(start() for _ in range(5))
    yield "restart on a 1 GB file", f"{full - empty:+.2f} s ({full:.2f} s)", "+0.3 s"


def write_day(path: Path, inst_id: str, size: int) -> int:
    """Write a day's file of about so many bytes and return its lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    symbol = "/".join(inst_id.split("-")[:2])
    head = f'{{"timestamp_utc":"{path.stem}T10:35:50.776Z","exchange":"okx","market":"perp","instId":"{inst_id}"'
    head += f',"symbol_canon":"{symbol}","trade_id":"'
    tail = '","side":"sell","price":"83725.9","qty_contracts":"5.25","ctVal":"0.01","ctMult":"1","ctType":"linear"}\n'
    lines = size // (len(head) + 10 + len(tail))
    with path.open("w", newline="\n") as file:
        for start in range(0, lines, 10_000):
            file.write("".join(f"{head}{FIRST_ID + i}{tail}" for i in range(start, min(lines, start + 10_000))))
    return lines


def scale(folder: Path) -> Iterator[tuple[str, str, str]]:
    """300 instruments at 5,000 trades a second in all."""
    vault, rate, trades = folder / "v", 5000, 60_000
    instruments = [f"C{i:03}-USDT-SWAP" for i in range(300)]
    with (
        Sender(0, instruments) as sender,
        capturing(sender, vault, f"INSTRUMENTS={json.dumps(instruments)}") as process,
    ):
        counter = Counter(vault)
        before, started = cpu(process), time.monotonic()
        sender.allow(trades, rate)
        wait_for(lambda: counter.count() == trades, 120, "the last line")
        took = time.monotonic() - started
        share, used = (cpu(process) - before) / took, process.memory_info().rss / 1e6
        files = len(process.open_files())
    found = f"{share:.0%} of a core at {trades / took:.0f}/s, {used:.0f} MB, {files} files open, nothing lost"
    yield "scale: 300 instruments", found, "-"


def verify(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Lines a second of --verify against orjson.loads of the same lines."""
    vault = folder / "v"
    lines = 0
    for inst_id in PAIR:
        path = vault / "raw/okx/trades_perps" / inst_id / "2026-10-07.jsonl"
        lines += write_day(path, inst_id, 128 << 20)
    row = {"ctVal": "0.01", "ctMult": "1", "ctType": "linear", "state": "live"}
    for inst_id in PAIR:
        saved = vault / "meta/okx/instruments" / f"{inst_id}.json"
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_bytes(orjson.dumps({"instId": inst_id, **row}))
    ratios = []
    for _ in range(3):
        floor = float(subprocess.check_output([sys.executable, "-c", LOADS, str(path)]))
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "trades_exporter.py"), "--verify", "--vault", str(vault)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ratios.append(lines / (time.monotonic() - started) / floor)
    yield "verify: lines/s", f"{statistics.median(ratios):.2f} x the floor ({lines} lines)", "0.33 x"


def derive(folder: Path) -> Iterator[tuple[str, str, str]]:
    """README's derive.py, of ten days of BTC: its first run, the next one, and the first run on a Dask cluster."""
    days, lines = 10, 1_000_000
    raw = folder / "alone/Vault/raw/okx/trades_perps/BTC-USDT-SWAP"
    raw.mkdir(parents=True)
    for day in range(1, days + 1):
        write_busy_day(raw / f"2026-10-{day:02}.jsonl", lines)
    size = sum(path.stat().st_size for path in raw.iterdir()) / 1e9
    found = f"{size:.1f} GB, {days * lines / 1e6:.0f} million lines in"
    shutil.copytree(folder / "alone", folder / "together", copy_function=os.link)
    seconds, peak = timed("Vault/derive.py", folder / "alone")
    yield "derive: first run", f"{found} {seconds:.0f} s, {peak:.0f} MB of memory at most", "-"
    os.utime(raw / f"2026-10-{days:02}.jsonl")
    seconds, peak = timed("Vault/derive.py", folder / "alone")
    yield "derive: with a new minute", f"{seconds:.1f} s, {peak:.0f} MB of memory at most", "-"
    (folder / "together/Vault/derive.py").write_text(SCRIPTS["Vault/derive.py"], "utf-8")
    seconds, _ = timed("Vault/cluster.py", folder / "together")
    yield "derive: Dask, workers of this machine", f"{found} {seconds:.0f} s", "-"


def write_busy_day(path: Path, lines: int) -> None:
    """Write a day of BTC, its trades at even distances."""
    head = '","exchange":"okx","market":"perp","instId":"BTC-USDT-SWAP","symbol_canon":"BTC/USDT","trade_id":"'
    tail = '","ctVal":"0.01","ctMult":"1","ctType":"linear"}\n'
    with path.open("w", newline="\n") as file:
        for number in range(lines):
            ms = number * 86_400_000 // lines
            time_of_day = f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"
            told = f'","side":"{("buy", "sell")[number % 3 % 2]}","price":"{83000 + number % 997}.{number % 10}"'
            told += f',"qty_contracts":"{number % 311}.{1 + number % 9}'
            file.write(f'{{"timestamp_utc":"{path.stem}T{time_of_day}Z{head}{FIRST_ID + 2 * number}{told}{tail}')


def timed(name: str, folder: Path) -> tuple[float, float]:
    """Run a block of README; return seconds, and the most memory of its process in MB."""
    (folder / name).write_text(SCRIPTS[name], "utf-8")
    started, peak = time.monotonic(), 0.0
    process = psutil.Popen([sys.executable, name], cwd=folder)
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, process.memory_info().rss / 1e6)
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return time.monotonic() - started, peak


MEASURES: list[Callable[[Path], Iterator[tuple[str, str, str]]]] = [
    capture, memory, latency, pace, backfill, restart, scale, verify, derive,
]  # fmt: skip


def main() -> None:
    """Measure and print."""
    names = [measure.__name__ for measure in MEASURES]
    parser = argparse.ArgumentParser(description="Measure the exporter against a floor of the same run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all of them by default")
    chosen = parser.parse_args().names or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no measure is called {', '.join(sorted(unknown))}")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores\n\n{'measure':<34} {'found':<66} goal")
    for measure in MEASURES:
        if measure.__name__ in chosen:
            with tempfile.TemporaryDirectory() as folder:
                for name, found, goal in measure(Path(folder)):
                    print(f"{name:<34} {found:<66} {goal}", flush=True)


if __name__ == "__main__":
    main()
