"""`--verify`: an intact Vault passes; what a disk, an editor or a bug does to it is named with file and line."""

import gzip
import os
import re
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import orjson
import pytest

import trades_exporter
from fake_okx import BTC, ETH, FakeOKX
from harness import Exporter, MakeExporter, day_files, day_path, to_utc, write_gap, write_vault
from trades_exporter import Vault, check_day, verify

DAYS = ("2026-11-20", "2026-11-21")
Lines = list[bytes]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def okx() -> FakeOKX:
    """Return an exchange with two days of trades; nobody has to connect to it."""
    okx = FakeOKX(seed=6)
    for inst_id in (BTC, ETH):
        okx.prefill(inst_id, 300, f"{DAYS[0]}T03:00:00Z", f"{DAYS[1]}T21:00:00Z")
    return okx


@pytest.fixture
def vault(tmp_path: Path, okx: FakeOKX) -> Path:
    """Return an intact Vault of these trades."""
    write_vault(tmp_path / "Vault", okx)
    return tmp_path / "Vault"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trades_exporter, "UNFINISHED_LINE_S", 0.05)


def edit(path: Path, change: Callable[[Lines], object]) -> None:
    """Change a file as a list of lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def replace(number: int, old: str, new: str) -> Callable[[Lines], None]:
    """Return a change of a line, by its number from 1 on; `old` is a regular expression."""

    def change(lines: Lines) -> None:
        changed = re.sub(old.encode(), new.encode(), lines[number - 1], count=1)
        assert changed != lines[number - 1], f"{old} is not in {lines[number - 1]!r}"
        lines[number - 1] = changed

    return change


def tree_of(folder: Path) -> dict[Path, tuple[int, object]]:
    """Return time of change and content of everything in a folder."""
    paths = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


DAMAGES: list[tuple[str, Callable[[Lines], object], str, int]] = [  # name, change, what verify calls it, which line
    ("a line doubled", lambda lines: lines.insert(7, lines[6]), "twice", 8),
    ("a line doubled further down", lambda lines: lines.insert(20, lines[6]), "do not rise", 21),
    ("two lines swapped", lambda lines: lines.insert(6, lines.pop(7)), "do not rise", 8),
    ("an id too high", replace(9, '"trade_id":"2', '"trade_id":"3'), "do not rise", 10),
    ("an id of 20 digits", replace(9, '"trade_id":"', '"trade_id":"9999999999'), "invalid value", 9),
    ("only the last newline cut", replace(-0, "\n", ""), "torn last line", -1),
    ("a newline lost", replace(5, "\n", ""), "not JSON", 5),
    ("a byte order mark", replace(1, "^", "\ufeff"), "not JSON", 1),
    ("one CRLF", replace(5, "\n", "\r\n"), "CRLF", 5),
    ("a blank line", lambda lines: lines.insert(4, b"\n"), "not JSON", 5),
    ("another JSON value", lambda lines: lines.insert(4, b"5\n"), "twelve keys", 5),
    ("a space in JSON", replace(5, ":", ": "), "not compact", 5),
    ("keys out of order", replace(5, '("exchange.*"),("market":"perp")', r"\2,\1"), "twelve keys", 5),
    ("a number for a string", replace(5, '"price":"[^"]+"', '"price":83725.9'), "invalid value", 5),
    ("another exchange", replace(5, '"okx"', '"kraken"'), "invalid value", 5),
    ("another day's time", replace(5, DAYS[0], DAYS[1]), "another day", 5),
    ("another symbol", replace(5, "BTC/USDT", "ETH/USDT"), "another day or instrument", 5),
    ("another instrument", replace(5, "BTC-USDT-SWAP", "ETH-USDT-SWAP"), "another day or instrument", 5),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "number"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_damage_is_named_with_its_kind_file_and_line(
    vault: Path, capsys: Capture, change: Callable[[Lines], object], kind: str, number: int
) -> None:
    path = day_path(vault, DAYS[0])
    edit(path, change)
    lines = path.read_bytes().splitlines(keepends=True)
    number = number if number > 0 else len(lines)
    before = tree_of(vault)
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert tree_of(vault) == before, "verify changed something"
    _, _, findings = report.partition(kind)
    assert f"{path}:{number}: " in findings, report
    place = findings[findings.index(f"{path}:{number}: ") :].splitlines()[0]
    text = "".join(c for c in lines[number - 1].decode("ascii", "ignore") if c.isprintable()).strip()
    assert text[:8] in place, f"the line is not shown: {place}"
    assert report.endswith(": 1 problem\n"), report


def test_an_intact_vault_passes_and_its_table_tells_what_is_stored(vault: Path, okx: FakeOKX, capsys: Capture) -> None:
    day_path(vault, DAYS[0]).with_name(".probe-abc").write_bytes(b"")  # Windows shows what an exporter tries to write
    (vault / "meta/okx/instruments/notes.json").write_text("{}")  # is no instrument
    assert verify(Vault(vault)) == 0
    report = capsys.readouterr().out
    for inst_id in (BTC, ETH):
        for day in DAYS:
            pushes = [push for push in okx.pushes[inst_id] if to_utc(push.ts).startswith(day)]
            row = next(line.split() for line in report.splitlines() if line.startswith(f"{inst_id} ") and day in line)
            ends = pushes[0], pushes[-1]
            times, ids = [to_utc(push.ts)[11:] for push in ends], [str(push.last_id) for push in ends]
            assert row[2:7] == [str(len(pushes)), *times, *ids]
            for side, contracts in zip(("buy", "sell"), row[7:9], strict=True):
                assert Decimal(contracts) == sum(Decimal(push.sz) for push in pushes if push.side == side)
    assert report.endswith("lines in 4 day files: no problem found\n")


def test_a_byte_gone_bad_anywhere_in_a_line_is_noticed(vault: Path) -> None:
    """A zero, a byte that is no UTF-8, a quote or a letter can stand nowhere in a number, a name or between them."""
    path = day_path(vault, DAYS[0])
    lines = path.read_bytes().splitlines(keepends=True)[:3]
    for position in range(len(lines[1]) - 1):
        for bad in (b"\0", b"\xff", b'"', b"~"):
            line = lines[1][:position] + bad + lines[1][position + 1 :]
            path.write_bytes(lines[0] + line + lines[2])
            assert check_day(BTC, DAYS[0], [path]).problems or line == lines[1], line


LATE, EARLY = "20T23:59:58.000 9 20T23:59:59.500", "21T00:00:02.000 13"
SEAMS: dict[str, tuple[str, str, str]] = {  # the last lines of a day, the first of a later one; what is wrong
    "in order": ("20T23:00:00.000 100", "21T01:00:00.000 101", ""),
    "the same id": ("20T23:00:00.000 100", "21T01:00:00.000 100", ":1 has 100, 1 100"),
    "three days later": ("20T23:00:00.000 100", "23T01:00:00.000 99", ":1 has 99, 1 100"),
    "a second around midnight": ("20T23:59:59.000 100", "21T00:00:01.000 99", ""),
    "too early for that": ("20T23:59:58.999 100", "21T00:00:00.000 99", ":1 has 99, 1 100"),
    "too late for that": ("20T23:59:59.999 100", "21T00:00:01.001 99", ":1 has 99, 1 100"),
    "crossing": (f"{LATE} 12", f"21T00:00:00.500 10 {EARLY}", ""),
    "the last one raised": (f"{LATE} 99", f"21T00:00:00.500 10 {EARLY}", ":2 has 13, 2 99"),
    "the first one lowered": (f"{LATE} 10", f"21T00:00:00.500 1 {EARLY}", ":1 has 1, 1 9"),
}


@pytest.mark.parametrize(("before", "after", "wrong"), SEAMS.values(), ids=SEAMS.keys())
def test_ids_rise_over_midnight_but_for_a_second(
    vault: Path, capsys: Capture, before: str, after: str, wrong: str
) -> None:
    line = day_path(vault, DAYS[0]).read_bytes().splitlines()[0].decode()
    for path in day_files(vault, BTC):
        path.unlink()
    for stored in (before.split(), after.split()):
        path = day_path(vault, f"2026-11-{stored[0][:2]}")
        with path.open("a", newline="\n") as file:
            for stamp, trade_id in zip(stored[::2], stored[1::2], strict=True):
                text = re.sub('"timestamp_utc":"[^"]+"', f'"timestamp_utc":"2026-11-{stamp}Z"', line)
                file.write(re.sub(r'"trade_id":"\d+"', f'"trade_id":"{trade_id}"', text) + "\n")
    assert verify(Vault(vault)) == (1 if wrong else 0)
    report = capsys.readouterr().out
    if wrong:
        assert f"{path}{wrong.replace(', ', f', {day_path(vault, DAYS[0])}:')}" in report
        assert report.endswith(": 1 problem\n")


@pytest.mark.parametrize("folder", ["instruments", "gaps", "audit"])
def test_an_instrument_known_by_its_metadata_alone_is_checked(vault: Path, capsys: Capture, folder: str) -> None:
    path = vault / "meta" / "okx" / folder / "BTC-USD_UM-SWAP.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")
    assert "BTC-USD_UM-SWAP" in Vault(vault).instruments()
    assert verify(Vault(vault)) == (0 if folder == "instruments" else 1)
    assert folder == "instruments" or f"{path}:1: {{}}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["2026-11-31.jsonl", f"{DAYS[0]} (1).jsonl"])
def test_a_file_that_is_no_days_is_a_problem(vault: Path, capsys: Capture, name: str) -> None:
    stray = day_path(vault, DAYS[0]).rename(day_path(vault, DAYS[0]).with_name(name))
    assert verify(Vault(vault)) == 1
    assert str(stray) in capsys.readouterr().out


def test_after_twenty_of_a_kind_there_is_a_count(vault: Path, capsys: Capture) -> None:
    count = 0
    for day in DAYS:
        path = day_path(vault, day)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\n", b"\r\n"))
        count += content.count(b"\n")
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert re.findall(r"\.jsonl:(\d+)", report) == [str(number) for number in range(1, 21)]
    assert f"\n{count} x a CRLF line end\n" in report
    assert report.endswith(f": {count} problems\n")


# The instrument's values


OTHER = {"instId": BTC, "ctVal": "0.1", "ctMult": "1", "ctType": "linear"}


@pytest.mark.parametrize("content", [None, b"", b'{"ctVal":1}', orjson.dumps(OTHER)])
def test_metadata_that_is_missing_or_differs_is_a_problem(vault: Path, capsys: Capture, content: bytes | None) -> None:
    for day in DAYS:  # older lines may differ
        edit(day_path(vault, day), replace(1, '"ctVal":"0.01"', '"ctVal":"0.001"'))
    assert verify(Vault(vault)) == 0
    metadata = vault / "meta" / "okx" / "instruments" / f"{BTC}.json"
    metadata.unlink()
    if content is not None:
        metadata.write_bytes(content)
    assert verify(Vault(vault)) == 1
    shown = "0.1 1 linear" if content == orjson.dumps(OTHER) else "none that is valid"
    assert f"the newest line has 0.01 1 linear, {metadata} {shown}\n" in capsys.readouterr().out


# The gaps file and the audit file

VERDICT = (
    '{"audited_utc":"2026-11-21T00:05:00.000Z","instId":"BTC-USDT-SWAP","day":"2026-11-20","minutes_agreeing":"1079"'
    ',"minutes_differing":"1","minutes_not_covered":"360","last_id":"2978601964"}'
)
CHANGES = [(":", ": "), ("{", "x{"), ("BTC", "ETH"), ('"2026-11-20"', '"x"'), ('"1079"', "1079"), ('"360"', '""')]
BAD = [("gaps", ""), ("gaps", "{}"), ("audit", ""), *(("audit", VERDICT.replace(*change)) for change in CHANGES)]


@pytest.mark.parametrize(("folder", "bad"), BAD)
def test_a_bad_line_of_a_gaps_or_audit_file_is_named(vault: Path, capsys: Capture, folder: str, bad: str) -> None:
    path = vault / "meta" / "okx" / folder / f"{BTC}.jsonl"
    write_gap(vault, "absent", (10, 20), (f"{DAYS[0]}T10:56:10.500Z",) * 2)
    path.parent.mkdir(exist_ok=True)
    verdicts = VERDICT + "\n" + VERDICT.replace("2978601964", "")
    good = verdicts if folder == "audit" else path.read_text().rstrip()
    for content, wrong in ((good + "\n", False), (f"{good}\n{bad}\n", True), (good, True)):
        path.write_text(content, newline="\n")
        assert verify(Vault(vault)) == wrong
        report = capsys.readouterr().out
        place = f"1 x an invalid line in the {folder} file\n  {path}:{len(content.splitlines())}: "
        assert (place in report) == wrong, report


MISSING, PENDING, ONE_DAY = f"Missing: {BTC}", f"Pending: {BTC}", ", 1 day still to come (pending)"
IN_WORDS: dict[str, tuple[str, list[str], str]] = {
    # gaps on record (reason, ids, times; -: not known), lines before the last one, end of the last line
    "where the record begins": ("start - 10 - 20T10:56", [], ""),
    "later": ("start 5 10 20T00:00 20T10:56", [f"{MISSING} 2026-11-20 00:00 to 10:56 (start)"], ", 1 range missing"),
    "ranges that overlap, repeat or touch": (
        2 * "unrepaired 5 10 20T10:56 20T11:17 " + "unrepaired 7 8 20T11:00 20T11:01 "
        "unrepaired 9 20 20T11:17 21T03:00 horizon 5 10 20T10:56 20T10:56",
        [f"{MISSING} 2026-11-20 10:56 to {end}" for end in ("10:56 (horizon)", "2026-11-21 03:00 (unrepaired)")],
        ", 2 ranges missing",
    ),
    "ids without a trade": (
        "absent 5 10 20T10:56 20T10:56 absent 7 13 20T10:56 20T10:56 absent 20 22 20T10:56 20T10:56",
        [f"Not missing: {BTC}, 8 ids that OKX never used (absent)"], "",
    ),
    "one day to come": ("pending 1 4 20T03:00 20T10:56", [f"{PENDING} 2026-11-20 03:00 to 10:56"], ONE_DAY),
    "several": (
        "pending 1 4 16T03:00 18T00:00 pending 6 8 19T03:00 20T09:00",
        [f"{PENDING} 2026-11-16 03:00 to 2026-11-18 00:00", f"{PENDING} 2026-11-19 03:00 to 2026-11-20 09:00"],
        ", 4 days still to come (pending)",
    ),
    "no times known": (
        "pending - 4 - 20T00:00 horizon 5 10 20T10:56 -",
        [f"{MISSING} from 2026-11-20 10:56 (horizon)", f"{PENDING} up to 2026-11-20 00:00"],
        f", 1 range missing{ONE_DAY}",
    ),
    "many": (
        " ".join(f"horizon {2 * n} {2 * n + 2} 20T{n:02}:10 -" for n in range(23)),
        [*(f"{MISSING} from 2026-11-20 {n:02}:10 (horizon)" for n in range(20)), "and 3 more"], ", 23 ranges missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("gaps", "lines", "last"), IN_WORDS.values(), ids=IN_WORDS.keys())
def test_what_is_missing_is_in_words(vault: Path, capsys: Capture, gaps: str, lines: list[str], last: str) -> None:
    for reason, *values in re.findall(r"(\S+) (\S+) (\S+) (\S+) (\S+)", gaps):
        after_id, before_id = (value.strip("-") for value in values[:2])
        begin, end = ("" if stamp == "-" else f"2026-11-{stamp}:10.500Z" for stamp in values[2:])
        write_gap(vault, reason, (after_id, before_id), (begin, end))
    assert verify(Vault(vault)) == 0
    *words, verdict = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert words == lines
    assert verdict.endswith(f" day files: no problem found{last}")


def test_the_gaps_column_counts_what_touches_a_day_and_a_pending_day_says_so(vault: Path, capsys: Capture) -> None:
    write_gap(vault, "start", ("", 10), ("", f"{DAYS[0]}T03:00:00.000Z"))
    write_gap(vault, "pending", (1, 4), (f"{DAYS[0]}T01:00:00.000Z", f"{DAYS[1]}T00:00:00.000Z"))
    for reason in ("absent", "unrepaired", "horizon", "horizon"):
        write_gap(vault, reason, (10, 20), (f"{DAYS[1]}T03:00:00.000Z",) * 2)
    write_gap(vault, "unrepaired", (20, 30), (f"{DAYS[0]}T23:00:00.000Z", f"{DAYS[1]}T01:00:00.000Z"))
    assert verify(Vault(vault)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(BTC)]
    assert [row[9:] for row in rows] == [["1", "0", "pending"], ["4", "0"]]


# Files


def test_a_compressed_day_is_read_like_any_other(vault: Path, capsys: Capture) -> None:
    """Also where an interrupted compression left the plain file, or lines came behind: what it repeats is left out."""
    assert verify(Vault(vault)) == 0
    expected = capsys.readouterr().out
    path = day_path(vault, DAYS[0])
    packed = path.with_name(path.name + ".gz")
    lines = path.read_bytes().splitlines(keepends=True)
    for count in (len(lines), len(lines) - 20):
        packed.write_bytes(gzip.compress(b"".join(lines[:count])))
        assert verify(Vault(vault)) == 0
        assert capsys.readouterr().out == expected
    edit(path, replace(len(lines) - 5, "perp", "spot"))
    packed.write_bytes(gzip.compress(b"".join(lines[:6] + lines[5:-20])))
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert f"{path}:{len(lines) - 5}: " in report
    assert f"{packed}:7: " in report


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:999], lambda c: c[:999] + bytes(8) + c[1007:], lambda _: b"trades"],
    ids=["cut", "zeroes", "no gzip"],
)
def test_a_broken_compressed_file_is_named_and_the_rest_still_judged(
    vault: Path, capsys: Capture, damage: Callable[[bytes], bytes]
) -> None:
    path = day_path(vault, DAYS[0])
    packed = path.rename(path.with_name(path.name + ".gz"))
    packed.write_bytes(damage(gzip.compress(packed.read_bytes())))
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert str(packed) in report
    assert f"{ETH:<16} {DAYS[1]}" in report


def test_a_vault_without_a_line_has_no_data_to_check(tmp_path: Path, capsys: Capture) -> None:
    assert verify(Vault(tmp_path)) == 1
    assert "0 day files: no data to check" in capsys.readouterr().out
    path = day_path(tmp_path, DAYS[0])
    path.parent.mkdir(parents=True)
    path.touch()
    assert verify(Vault(tmp_path)) == 1
    assert "1 day file: no data to check" in capsys.readouterr().out


@pytest.mark.parametrize("rest", ["finished", "longer", "cut off"])
def test_a_last_line_that_changes_meanwhile_is_fine(vault: Path, monkeypatch: pytest.MonkeyPatch, rest: str) -> None:
    """While verify waits for an unfinished line, an exporter goes on with it, or one that starts cuts it off."""
    path = day_path(vault, DAYS[1])
    whole = path.read_bytes()
    later = {"finished": whole, "longer": whole[:-20], "cut off": b"".join(whole.splitlines(keepends=True)[:-1])}[rest]
    path.write_bytes(whole[:-60])
    waited: list[int] = []
    monkeypatch.setattr(time, "sleep", lambda _: waited.append(path.write_bytes(later)))
    assert verify(Vault(vault)) == 0
    assert waited


# The command


def test_the_command_judges_a_vault_while_an_exporter_writes_and_touches_nothing(
    make_okx: Callable[..., FakeOKX], exporter: MakeExporter
) -> None:
    okx = make_okx(rate=300)
    capture = exporter(okx)
    capture.start_capture()
    capture.wait_until(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    done = capture.run("--verify")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert capture.stop() == 0
    before = tree_of(capture.folder)
    done = capture.run("--verify")
    assert (done.returncode, done.stderr, tree_of(capture.folder)) == (0, "", before), done.stdout


def run_by_shell(judge: Exporter, script: str) -> subprocess.CompletedProcess[str]:
    """Run `--verify` as "$@" of a shell's script."""
    command = ["sh", "-c", script, "sh", *judge.command("--verify")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


needs_sh = pytest.mark.skipif(os.name == "nt", reason="needs sh")


@pytest.mark.parametrize("fds", ["", pytest.param("ulimit -n 8; ", marks=needs_sh)], ids=["all cores", "no processes"])
def test_the_command_reads_large_vaults_on_all_cores_if_it_can(
    vault: Path, okx: FakeOKX, exporter: MakeExporter, fds: str
) -> None:
    """With few file descriptors there are no worker processes; the result is the same."""
    judge = exporter(okx, folder=vault.parent, settings={"PARALLEL_BYTES": 0})
    run = partial(run_by_shell, judge, f'{fds}exec "$@"') if fds else partial(judge.run, "--verify")
    done = run()
    assert (done.returncode, "going on with one" in done.stderr) == (0, bool(fds)), done.stdout + done.stderr
    assert "lines in 4 day files: no problem found" in done.stdout
    edit(day_path(vault, DAYS[1]), lambda lines: lines.insert(6, lines.pop(7)))
    assert f"{day_path(vault, DAYS[1])}:8: " in run().stdout


@needs_sh
@pytest.mark.parametrize(("end", "message"), [("| true", ""), ("> /dev/full", "The report can't be written: ")])
def test_a_closed_or_full_output_is_not_the_vaults_fault(
    vault: Path, okx: FakeOKX, exporter: MakeExporter, end: str, message: str
) -> None:
    judge = exporter(okx, folder=vault.parent)
    done = run_by_shell(judge, f'{{ "$@"; echo "exit $?" >&2; }} {end}')
    assert done.stderr.endswith("exit 1\n")
    assert (message in done.stderr) if message else (done.stderr == "exit 1\n")
    assert "Vault" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "there", ["nothing", "a file", "a folder for a file", "a file for a folder", "a name too long to look for"]
)
def test_without_a_vault_that_can_be_read_the_command_exits_4(okx: FakeOKX, exporter: MakeExporter, there: str) -> None:
    """It names what can't be read, without a traceback, and makes nothing."""
    judge = exporter(okx)
    wrong = judge.vault
    if there == "a file":
        wrong.write_text("no folder")
    if there == "a folder for a file":
        wrong = judge.vault / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
        wrong.mkdir(parents=True)
    if there == "a file for a folder":
        write_gap(judge.vault, "start", ("", 5), ("", ""))
        wrong = day_path(judge.vault, DAYS[0]).parent
        wrong.parent.mkdir(parents=True)
        wrong.write_text("no folder")
    if there == "a name too long to look for":
        wrong = judge.vault = judge.folder / ("x" * 300)
    before = tree_of(judge.folder)
    done = judge.run("--verify")
    assert done.returncode == 4
    assert str(wrong) in done.stderr
    assert "Traceback" not in done.stderr
    assert tree_of(judge.folder) == before
