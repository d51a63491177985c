"""Measure the exporter: `python tests/bench.py [NAME ...]` prints one table; each figure stands beside its goal.

Figures are ratios to a floor that is measured in the same run, rounds interleaved, medians. The floor of capturing is
a bare websockets client over TLS that does `recv(decode=False)` and `orjson.loads` and nothing else; the floor of
archives is bare Python that unzips one and splits its lines into fields. The sender is a process of its own with
prebuilt frames and archives, so that it is not the limit. All of it goes over TLS, as with OKX: each sender has a
certificate of its own, which SSL_CERT_FILE makes its clients trust.
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Self

import orjson
import psutil
from aiohttp import web

from exact import SCRIPTS
from fake_okx import FakeOKX, server_context
from harness import ROOT, wait_for

FLOOR = """
import asyncio, os, sys, time, orjson, websockets
url, request, acks, trades = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
async def main():
    async with websockets.connect(url) as ws:
        await ws.send(request)
        for _ in range(acks):
            await ws.recv()
        started = time.process_time()
        for _ in range(trades):
            orjson.loads(await ws.recv(decode=False))
        print(time.process_time() - started, flush=True)
        os._exit(0)
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
UNZIP = """
import io, sys, time, zipfile
started = time.perf_counter()
with zipfile.ZipFile(sys.argv[1]) as archive, io.TextIOWrapper(archive.open(archive.namelist()[0])) as csv:
    for line in csv:
        line.split(",")
print(time.perf_counter() - started)
"""
PAIR = ["BTC-USDT-SWAP", "ETH-USDT-SWAP"]
FIRST_ID, START_MS = 2_978_601_964, 1_791_369_350_776  # of live trades; what is pending lies below this id
CONTRACT = {"ctVal": "0.01", "ctMult": "1", "ctType": "linear"}
ARCHIVE_DAY = date(2026, 11, 10)  # of UTC+8, the first one
ARCHIVE_HEADER = b"instrument_name,trade_id,side,price,size,created_time,source\r\n"
ROWS_A_DAY = 3_000_000  # of each instrument, as in 2026

# ------------------------------------------------------------------------------------------------------------ sender


def push(inst_id: str, number: int, ts: int) -> bytes:
    """Return the `number`th push of an instrument as a WebSocket text frame of a server; `ts` in ms."""
    fields = f'"tradeId":"{FIRST_ID + number}","px":"{83725 + number % 97}.{number % 10}","sz":"{number % 89 + 1}.25"'
    tail = f'"side":"{"buy" if number % 3 else "sell"}","ts":"{ts}","count":"1","source":"0","seqId":{10**11 + number}'
    payload = f'{{"arg":{{"channel":"trades","instId":"{inst_id}"}},"data":[{{"instId":"{inst_id}",{fields},{tail}}}]}}'
    return b"\x81\x7e" + struct.pack("!H", len(payload)) + payload.encode()


class Sender:
    """A process that serves metadata and archives over HTTPS and, over WebSocket, as many pushes as it is allowed to.

    `folder` is the bench's: the certificate goes there, and archives are served from its folder `archives`. `trades`
    says how many frames are built beforehand.
    """

    def __init__(self, folder: Path, trades: int = 0, instruments: Sequence[str] = PAIR) -> None:
        self.environment = {**os.environ, "SSL_CERT_FILE": str(folder / "ca.pem")}  # for whoever is to trust it
        self._folder = folder
        self._trades = trades
        self._instruments = instruments
        self._port = mp.Value("i", 0)
        self._allowed = mp.Value("q", 0)  # pushes so far
        self._rate = mp.Value("d", 0.0)  # pushes a second, each sent by itself; 0: a blast of prebuilt frames
        self._subscriptions = mp.Value("i", 0)  # that were acknowledged so far
        self._process = mp.Process(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        (self._folder / "archives").mkdir(exist_ok=True)
        self._process.start()
        wait_for(lambda: self._port.value, 120, "the sender's port")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def allow(self, trades: int, rate: float = 0.0) -> None:
        """Let it send up to so many pushes in all on each connection."""
        self._rate.value = rate
        self._allowed.value = trades

    def floor_cpu(self, trades: int, rate: float = 0.0) -> float:
        """Return the floor's CPU time for so many trades, s."""
        self.allow(trades, rate)
        args = [{"channel": "trades", "instId": inst_id} for inst_id in self._instruments]
        command = [sys.executable, "-c", FLOOR, f"wss://127.0.0.1:{self._port.value}/ws"]
        command += [json.dumps({"op": "subscribe", "args": args}), str(len(args)), str(trades)]
        return float(subprocess.check_output(command, env=self.environment, timeout=300))

    @contextmanager
    def exporter(self, vault: Path, *settings: str) -> Iterator[psutil.Process]:
        """Run an exporter that is subscribed, and has been sent nothing yet."""
        vault.with_suffix(".log").unlink(missing_ok=True)
        self.allow(0)
        before, web_url = self._subscriptions.value, f"https://127.0.0.1:{self._port.value}"
        command = ["tests/run_exporter.py", *settings, "--"] if settings else ["trades_exporter.py"]
        command += ["--vault", str(vault), "--log-file", str(vault.with_suffix(".log"))]
        command += ["--ws-url", f"wss://127.0.0.1:{self._port.value}/ws", "--rest-url", web_url]
        with running([*command, "--archive-url", f"{web_url}/archives"], self.environment) as process:
            wait_for(lambda: self._subscriptions.value > before, 120, "the subscription")
            yield process

    def _serve(self) -> None:
        count = len(self._instruments)
        frames = [push(self._instruments[i % count], i // count, START_MS + i // 10) for i in range(self._trades)]
        asyncio.run(self._run(frames))

    async def _run(self, frames: list[bytes]) -> None:
        async def websocket(request: web.Request) -> web.StreamResponse:
            ws = web.WebSocketResponse(compress=False)
            await ws.prepare(request)
            for arg in (await ws.receive_json())["args"]:
                await ws.send_json({"event": "subscribe", "arg": arg, "connId": "a4d3ae55"})
            self._subscriptions.value += 1
            if request.transport:
                await self._send(request.transport, frames)
            return ws

        app = web.Application()
        app.router.add_get("/ws", websocket)
        app.router.add_get("/api/v5/public/instruments", instrument)
        app.router.add_static("/archives", self._folder / "archives")
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = server_context("127.0.0.1", ca_file=self._folder / "ca.pem")
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self._port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    async def _send(self, transport: asyncio.Transport, frames: list[bytes]) -> None:
        """Send what is allowed until the connection ends: frames that are built already, or that carry the time."""
        sent, due = 0, time.monotonic()
        while not transport.is_closing():
            if sent == self._allowed.value or transport.get_write_buffer_size() > 1 << 20:
                due = time.monotonic()
                await asyncio.sleep(0.002)
            elif not self._rate.value:
                upto = min(self._allowed.value, sent + 100)
                for frame in frames[sent:upto]:  # each in a TLS record of its own, as OKX sends them
                    transport.write(frame)
                sent = upto
                await asyncio.sleep(0)
            else:
                number, which = divmod(sent, len(self._instruments))
                transport.write(push(self._instruments[which], number, time.time_ns() // 1_000_000))
                sent += 1
                due += 1 / self._rate.value
                await asyncio.sleep(due - time.monotonic())


async def instrument(request: web.Request) -> web.Response:
    """Answer as /api/v5/public/instruments does."""
    row = {"instId": request.query["instId"], **CONTRACT, "tickSz": "0.1", "lotSz": "0.01", "state": "live"}
    return web.json_response({"code": "0", "msg": "", "data": [row]})


# --------------------------------------------------------------------------------------------------------- processes


@contextmanager
def running(arguments: list[str], environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Run Python quietly, in the repository's folder, and end it."""
    quiet = subprocess.DEVNULL
    process = psutil.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def cpu(process: psutil.Process) -> float:
    """Return the CPU time of a process so far, s."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory_of(process: psutil.Process) -> float:
    """Return the resident memory of a process, MB."""
    return float(process.memory_info().rss / 1e6)


def logged(vault: Path, text: str) -> list[datetime]:
    """Return the times of the lines of the exporter's log that hold a text."""
    lines = vault.with_suffix(".log").read_text(encoding="utf-8").splitlines()
    return [datetime.fromisoformat(line.split()[0]) for line in lines if text in line]


# ------------------------------------------------------------------------------------------------------------ Vaults


def day_file(vault: Path, inst_id: str, day: str) -> Path:
    """Return the file of a day; its folder is there."""
    path = vault / "raw/okx/trades_perps" / inst_id / f"{day}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def record_parts(inst_id: str, timestamp_utc: str) -> tuple[str, str]:
    """Return what stands before and behind the trade id in a record."""
    head = {"timestamp_utc": timestamp_utc, "exchange": "okx", "market": "perp", "instId": inst_id}
    head |= {"symbol_canon": "/".join(inst_id.split("-")[:2]), "trade_id": "*"}
    record = head | {"side": "sell", "price": "83725.9", "qty_contracts": "5.25"} | CONTRACT
    before, _, after = orjson.dumps(record).decode().partition("*")
    return before, after + "\n"


def write_day(path: Path, size: int) -> int:
    """Write a day's file of about so many bytes and return its lines."""
    before, after = record_parts(path.parent.name, f"{path.stem}T10:35:50.776Z")
    lines = size // (len(before) + 10 + len(after))
    with path.open("w", newline="\n") as file:
        for start in range(0, lines, 10_000):
            file.write("".join(f"{before}{FIRST_ID + i}{after}" for i in range(start, min(lines, start + 10_000))))
    return lines


def write_archive(folder: Path, inst_id: str, day: date, rows: int, first_id: int) -> Path:
    """Write the archive of a UTC+8 day where the sender serves it, and return its path."""
    path = folder / "archives" / f"{day:%Y%m%d}" / f"{inst_id}-trades-{day}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() - 8 * 3600) * 1000
    chance = random.Random(1)
    trades = [
        f"{chance.choice(['buy', 'sell'])},{83725 + chance.randrange(40) / 10},{chance.randrange(1, 500) / 100}"
        for _ in range(10_000)
    ]
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(f"{path.stem}.csv", "w") as csv,
    ):
        csv.write(ARCHIVE_HEADER)
        for start in range(0, rows, len(trades)):
            numbered = enumerate(trades[: rows - start], start)
            lines = (
                f"{inst_id},{first_id + i},{trade},{begin + i * 86_400_000 // rows},0\r\n" for i, trade in numbered
            )
            csv.write("".join(lines).encode())
    return path


def leave_pending(vault: Path, inst_id: str, ids: int) -> None:
    """Make a Vault with one trade, and so many pending ids behind it, up to the first live one."""
    after_id, after_utc = FIRST_ID - ids - 1, f"{ARCHIVE_DAY - timedelta(days=1)}T16:00:00.000Z"
    before, after = record_parts(inst_id, after_utc)
    day_file(vault, inst_id, after_utc[:10]).write_text(f"{before}{after_id}{after}", newline="\n")
    gap = {"recorded_utc": after_utc, "instId": inst_id, "reason": "pending", "after_id": str(after_id)}
    gap |= {"before_id": str(FIRST_ID), "after_utc": after_utc, "before_utc": "2026-11-13T00:00:00.000Z"}
    gaps = vault / "meta/okx/gaps" / f"{inst_id}.jsonl"
    gaps.parent.mkdir(parents=True, exist_ok=True)
    gaps.write_bytes(orjson.dumps(gap) + b"\n")


class Tail:
    """Reads the lines of a Vault's day files while they are written, each once."""

    def __init__(self, vault: Path, since: str = "") -> None:
        self.count = 0  # lines that were read
        self._vault = vault
        self._since = since  # earlier days are left alone
        self._read: dict[Path, int] = {}  # bytes

    def read(self) -> list[bytes]:
        """Return the whole lines that are new."""
        new = []
        for path in self._vault.glob("raw/**/*.jsonl"):
            if path.stem < self._since:
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                block = file.read()
            block = block[: block.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(block)
            new += block.splitlines()
        self.count += len(new)
        return new

    def wait(self, lines: int) -> None:
        """Wait until there are so many lines in all."""

        def complete() -> bool:
            self.read()
            return self.count >= lines

        wait_for(complete, 300, f"line {lines}")


# ---------------------------------------------------------------------------------------------------------- measures

Rows = Iterator[tuple[str, str, str]]  # of the table: measure, found, goal


def fresh(vault: Path) -> Path:
    """Remove a Vault and return its path."""
    shutil.rmtree(vault, ignore_errors=True)
    return vault


def exporter_cpu(sender: Sender, vault: Path, trades: int, rate: float = 0.0) -> float:
    """Return the exporter's CPU time for so many trades, from socket to file, s."""
    with sender.exporter(fresh(vault)) as process:
        before = cpu(process)
        sender.allow(trades, rate)
        Tail(vault).wait(trades)
        return cpu(process) - before


def capture(folder: Path) -> Rows:
    """CPU time per trade in a blast of 200,000 trades, one a frame."""
    trades = 200_000
    with Sender(folder, trades) as sender:
        rounds = [(sender.floor_cpu(trades), exporter_cpu(sender, folder / "v", trades)) for _ in range(5)]
    floor, ours = (statistics.median(column) / trades * 1e6 for column in zip(*rounds, strict=True))
    ratio = statistics.median(ours / floor for floor, ours in rounds)
    yield "capture: CPU per trade", f"{ratio:.2f} x the floor ({ours:.1f} to {floor:.1f} us)", "1.35 x"


def memory(folder: Path) -> Rows:
    """Resident memory after a million trades, and its growth."""
    vault, used = folder / "v", {}
    with Sender(folder, 1_000_000) as sender:
        with running(["-c", BARE], sender.environment) as process:
            time.sleep(2)
            bare = memory_of(process)
        with sender.exporter(vault) as process:
            tail = Tail(vault)
            for trades in (300_000, 1_000_000):
                sender.allow(trades)
                tail.wait(trades)
                used[trades] = memory_of(process)
    yield "memory above a bare interpreter", f"{used[1_000_000] - bare:.1f} MB after 1,000,000 trades", "13 MB"
    yield "memory growth", f"{used[1_000_000] - used[300_000]:+.1f} MB from 300,000 to 1,000,000", "none"


def delays(tail: Tail, go_on: Callable[[int], bool]) -> str:
    """Return how long it takes from a frame being sent to its line being readable; the time is in the trade.

    `go_on` is told how many lines were read and decides whether to go on.
    """
    found: list[float] = []
    while go_on(len(found)):
        lines = tail.read()
        now = time.time()
        found += [now - datetime.fromisoformat(line[18:42].decode()).timestamp() for line in lines]
        time.sleep(0.001)
    found.sort()
    p50, p99 = found[len(found) // 2] * 1000, found[len(found) * 99 // 100] * 1000
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {found[-1] * 1000:.0f} ms"


def latency(folder: Path) -> Rows:
    """Delays at 200 trades a second."""
    vault, trades = folder / "v", 4000
    with Sender(folder) as sender, sender.exporter(vault):
        sender.allow(trades, 200)
        yield "latency at 200 trades/s", delays(Tail(vault), lambda read: read < trades), "p99 20 ms"


def pace(folder: Path) -> Rows:
    """CPU at a trader's pace, each frame sent by itself."""
    vault, seconds = folder / "v", 15
    with Sender(folder) as sender:
        with sender.exporter(vault) as process:
            before = cpu(process)
            time.sleep(seconds)
            yield "CPU at rest", f"{(cpu(process) - before) / seconds:.1%} of a core", "1 %"
        for rate, trades, count in ((100, 1500, 1), (1000, 8000, 3)):
            rounds = [(sender.floor_cpu(trades, rate), exporter_cpu(sender, vault, trades, rate)) for _ in range(count)]
            floor, ours = (statistics.median(column) / trades * rate for column in zip(*rounds, strict=True))
            ratio = statistics.median(ours / floor for floor, ours in rounds)
            found = f"{ratio:.2f} x the floor ({ours:.1%} to {floor:.1%} of a core)"
            yield f"CPU at {rate:,} trades/s", found, "1.35 x"


def backfill(folder: Path) -> Rows:
    """Trades a second fetched at 150 ms latency, both instruments behind, against what OKX's limit allows."""
    vault, behind = folder / "v", 15_000
    with FakeOKX(seed=4, tls=True) as okx:
        command = ["trades_exporter.py", "--vault", str(vault), "--log-file", str(vault.with_suffix(".log"))]
        command += ["--ws-url", okx.ws_url, "--rest-url", okx.rest_url, "--archive-url", okx.archive_url]
        environment = {**os.environ, "SSL_CERT_FILE": str(okx.ca_file)}
        for inst_id in PAIR:
            okx.trade(inst_id)
        with running(command, environment):
            Tail(vault).wait(len(PAIR))
        for inst_id in PAIR:
            okx.trade(inst_id, behind, count=1, lost=True)
        okx.faults.rest_latency_s = 0.15
        okx.requests.clear()
        with running(command, environment):
            Tail(vault).wait(len(PAIR) * (behind + 1))
        asked = [moment for moment, path, _ in okx.requests if path.endswith("history-trades")]
    speed = len(PAIR) * behind / (asked[-1] - asked[0] + 0.15)
    yield "backfill at 150 ms", f"{speed / 1000:.0%} of the limit ({speed:.0f} trades/s), {okx.throttled} x 429", "95 %"


def restart(folder: Path) -> Rows:
    """Time from start to subscribed with a 1 GB day file, against an empty Vault."""
    vault = folder / "v"

    def start() -> float:
        started = time.monotonic()
        with sender.exporter(vault):
            return time.monotonic() - started

    with Sender(folder) as sender:
        empty = statistics.median(start() for _ in range(5))
        write_day(day_file(vault, PAIR[0], "2026-10-07"), 1 << 30)
        full = statistics.median(start() for _ in range(5))
    yield "restart on a 1 GB file", f"{full - empty:+.2f} s ({full:.2f} s)", "+0.3 s"


def scale(folder: Path) -> Rows:
    """300 instruments at 5,000 trades a second in all."""
    vault, rate, trades = folder / "v", 5000, 60_000
    instruments = [f"C{i:03}-USDT-SWAP" for i in range(300)]
    with (
        Sender(folder, instruments=instruments) as sender,
        sender.exporter(vault, f"INSTRUMENTS={json.dumps(instruments)}") as process,
    ):
        before, started = cpu(process), time.monotonic()
        sender.allow(trades, rate)
        Tail(vault).wait(trades)
        took = time.monotonic() - started
        share, used, files = (cpu(process) - before) / took, memory_of(process), len(process.open_files())
    found = f"{share:.0%} of a core at {trades / took:.0f}/s, {used:.0f} MB, {files} files open, nothing lost"
    yield "scale: 300 instruments", found, "-"


def verify(folder: Path) -> Rows:
    """Lines a second of --verify against orjson.loads of the same lines."""
    vault = folder / "v"
    lines = 0
    (vault / "meta/okx/instruments").mkdir(parents=True)
    for inst_id in PAIR:
        path = day_file(vault, inst_id, "2026-10-07")
        lines += write_day(path, 128 << 20)
        row = {"instId": inst_id, **CONTRACT, "state": "live"}
        (vault / "meta/okx/instruments" / f"{inst_id}.json").write_bytes(orjson.dumps(row))
    ratios = []
    for _ in range(3):
        floor = float(subprocess.check_output([sys.executable, "-c", LOADS, str(path)]))
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "trades_exporter.py"), "--verify", "--vault", str(vault)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ratios.append(lines / (time.monotonic() - started) / floor)
    yield "verify: lines/s", f"{statistics.median(ratios):.2f} x the floor ({lines} lines)", "0.33 x"


def derive(folder: Path) -> Rows:
    """Measure README's derive.py on ten days of BTC: a first run, one a minute later, a first one on a cluster."""
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


def fill(sender: Sender, vault: Path, inst_ids: Sequence[str], ids: int) -> tuple[float, float]:
    """Let an exporter fetch pending ids of instruments; return the seconds it took and the most memory it had, MB."""
    fresh(vault)
    for inst_id in inst_ids:
        leave_pending(vault, inst_id, ids)
    most = 0.0
    with sender.exporter(vault) as process:
        while len(logged(vault, "History complete")) < len(inst_ids):
            most = max(most, memory_of(process))
            time.sleep(0.02)
    lines = sum(path.read_bytes().count(b"\n") for path in vault.glob("raw/**/*.jsonl"))
    if lines != len(inst_ids) * (ids + 1):
        raise AssertionError(f"{lines} lines of {len(inst_ids)} x {ids + 1}")
    took = logged(vault, "History complete")[-1] - logged(vault, "Metadata fetched and saved")[-1]
    return took.total_seconds(), most


def archive(folder: Path) -> Rows:
    """Time and memory in which an archive becomes day files, for a small day and a big one."""
    inst_id = PAIR[0]
    with Sender(folder) as sender:
        with sender.exporter(folder / "v") as process:
            time.sleep(2)
            without = memory_of(process)
        for rows, count in ((1_000_000, 3), (5_000_000, 1)):
            path = write_archive(folder, inst_id, ARCHIVE_DAY, rows, FIRST_ID - rows)
            rounds = []
            for _ in range(count):
                floor = float(subprocess.check_output([sys.executable, "-c", UNZIP, str(path)]))
                rounds.append((floor, *fill(sender, folder / "v", [inst_id], rows)))
            floor, took, most = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(took / floor for floor, took, _ in rounds)
            found = f"{ratio:.1f} x the floor ({took:.1f} to {floor:.2f} s), {rows / took:,.0f} trades/s"
            yield f"archive of {rows:,} rows", found, "20 x"
            yield "  memory more than without", f"{most - without:+.1f} MB", "60 MB"


def beside(folder: Path) -> Rows:
    """Delays of 200 live trades a second while an archive of five million rows is turned into lines."""
    vault, rows, inst_id = folder / "v", 5_000_000, PAIR[0]
    write_archive(folder, inst_id, ARCHIVE_DAY, rows, FIRST_ID - rows)
    leave_pending(vault, inst_id, rows)
    with Sender(folder) as sender, sender.exporter(vault):
        sender.allow(1 << 40, 200)
        tail = Tail(vault, f"{datetime.now(UTC):%Y-%m-%d}")
        found = delays(tail, lambda _: not logged(vault, "History complete"))
        yield "latency beside an archive", f"{found} ({tail.count:,} trades)", "p99 100 ms"


def month(folder: Path) -> Rows:
    """Two days of both instruments from archives, and what a month takes at that speed."""
    days, rows = 2, 1_000_000
    with Sender(folder) as sender:
        for inst_id in PAIR:
            for day in range(days):
                first_id = FIRST_ID - (days - day) * rows
                write_archive(folder, inst_id, ARCHIVE_DAY + timedelta(days=day), rows, first_id)
        took, _ = fill(sender, folder / "v", PAIR, days * rows)
    speed = len(PAIR) * days * rows / took
    yield "two days of both", f"{took:.0f} s for {len(PAIR)} x {days} x {rows:,}, {speed:,.0f} trades/s", "-"
    minutes = len(PAIR) * 30 * ROWS_A_DAY / speed / 60
    yield "  a month of both", f"{minutes:.0f} minutes at {ROWS_A_DAY:,} trades a day, without the download", "-"


MEASURES: list[Callable[[Path], Rows]] = [
    capture, memory, latency, pace, backfill, restart, scale, verify, archive, beside, month, derive,
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
