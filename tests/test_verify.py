"""`--verify`: an intact Vault passes; what a disk, an editor or a bug does to it is named with file and line."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

import trades_exporter
from fake_okx import BTC, ETH, FakeOKX
from harness import GAP_KEYS, KEYS, Exporter, day_files, day_path, to_utc, wait_for, write_gap, write_vault
from trades_exporter import Vault, verify

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


def replace(number: int, old: str, new: str | bytes) -> Callable[[Lines], None]:
    """Return a change of a line, by its number from 1 on; `old` is a regular expression."""

    def change(lines: Lines) -> None:
        text = new.encode() if isinstance(new, str) else new
        changed, count = re.subn(old.encode(), lambda _: text, lines[number - 1], count=1)
        assert count, f"{old} is not in {lines[number - 1]!r}"
        assert changed != lines[number - 1]
        lines[number - 1] = changed

    return change


def rewritten(number: int, dump: Callable[[dict[str, str]], str]) -> Callable[[Lines], None]:
    """Return a change of a line that writes its record in another way."""

    def change(lines: Lines) -> None:
        lines[number - 1] = dump(json.loads(lines[number - 1])).encode() + b"\n"

    return change


def every_line(change: Callable[[bytes], bytes]) -> Callable[[Lines], None]:
    """Return a change of all lines."""

    def change_all(lines: Lines) -> None:
        lines[:] = [change(line) for line in lines]

    return change_all


def swap(lines: Lines) -> None:
    """Exchange lines 7 and 8."""
    lines[6], lines[7] = lines[7], lines[6]


def compact(record: object) -> str:
    """Write JSON as the contract wants it."""
    return json.dumps(record, separators=(",", ":"))


def tree_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Return time of change and hash of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder",
        )
        for path in [folder, *folder.rglob("*")]
    }


DAMAGES: list[tuple[str, Callable[[Lines], object], str, int]] = [  # name, change, what verify calls it, which line
    ("a line doubled", lambda lines: lines.insert(7, lines[6]), "twice", 8),
    ("a line doubled further down", lambda lines: lines.insert(20, lines[6]), "do not rise", 21),
    ("two lines swapped", swap, "do not rise", 8),
    ("the first line moved to the end", lambda lines: lines.append(lines.pop(0)), "do not rise", -1),
    ("an id too low", replace(9, '"trade_id":"2', '"trade_id":"1'), "do not rise", 9),
    ("an id too high", replace(9, '"trade_id":"2', '"trade_id":"3'), "do not rise", 10),
    ("an id of 20 digits", replace(9, '"trade_id":"', '"trade_id":"9999999999'), "invalid value", 9),
    ("an empty id", replace(9, r'"trade_id":"\d+"', '"trade_id":""'), "invalid value", 9),
    ("the end cut", replace(-0, "...$\n", ""), "torn last line", -1),
    ("only the last newline cut", replace(-0, "\n", ""), "torn last line", -1),
    ("a newline lost", replace(5, "\n", ""), "not JSON", 5),
    ("a line broken in two", replace(5, '"side"', '\n"side"'), "not JSON", 5),
    ("zero bytes", replace(5, ".{80}$", b"\0" * 80), "not JSON", 5),
    ("a byte order mark", replace(1, "^", b"\xef\xbb\xbf"), "byte order mark", 1),
    ("one CRLF", replace(5, "\n", "\r\n"), "CRLF", 5),
    ("a blank line", lambda lines: lines.insert(4, b"\n"), "blank line", 5),
    ("a line of spaces", lambda lines: lines.insert(4, b"  \n"), "blank line", 5),
    ("text", lambda lines: lines.insert(4, b"edited by me\n"), "not JSON", 5),
    ("wrong UTF-8", replace(5, "perp", b"per\xff"), "not JSON", 5),
    ("wrong UTF-8 in ctVal", replace(5, '"ctVal":"0', b'"ctVal":"\xff'), "not JSON", 5),
    ("another JSON value", lambda lines: lines.insert(4, b"[]\n"), "twelve keys", 5),
    ("spaces in JSON", rewritten(5, json.dumps), "not compact", 5),
    ("an escape that needs none", replace(5, "okx", r"\u006fkx"), "not compact", 5),
    ("keys out of order", rewritten(5, lambda row: compact(dict(reversed(row.items())))), "twelve keys", 5),
    ("a key missing", rewritten(5, lambda row: compact({k: row[k] for k in KEYS[:-1]})), "twelve keys", 5),
    ("a key too many", rewritten(5, lambda row: compact(row | {"note": "x"})), "twelve keys", 5),
    ("a number for a string", rewritten(5, lambda row: compact(row | {"price": 83725.9})), "no string", 5),
    ("null for a string", rewritten(5, lambda row: compact(row | {"side": None})), "no string", 5),
    ("an unknown side", replace(5, '"side":"[a-z]+"', '"side":"hold"'), "invalid value", 5),
    ("another exchange", replace(5, '"okx"', '"kraken"'), "invalid value", 5),
    ("a time without Z", replace(5, r'(?<=\d)Z"', '"'), "invalid value", 5),
    ("an hour 25", replace(5, r"T\d\d", "T25"), "invalid value", 5),
    ("another day's time", replace(5, DAYS[0], DAYS[1]), "another day", 5),
    ("another symbol", replace(5, "BTC/USDT", "ETH/USDT"), "another instrument", 5),
    ("another instrument", replace(5, "BTC-USDT-SWAP", "ETH-USDT-SWAP"), "another instrument", 5),
    *(
        (f"{key} {value!r}", replace(5, f'"{key}":"[^"]+"', f'"{key}":"{value}"'), "invalid value", 5)
        for key in ("price", "qty_contracts")
        for value in ("", "0", "0.000", "-1", "+1", "1e5", "1.", ".5", "1,5", "NaN", "0x1F", " 1", "1\u0663")
    ),
]


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
    assert report.splitlines()[-1].endswith(("problem", "problems")), report


def test_an_intact_vault_passes_and_its_table_tells_what_is_stored(vault: Path, okx: FakeOKX, capsys: Capture) -> None:
    assert verify(Vault(vault)) == 0
    report = capsys.readouterr().out
    for inst_id in (BTC, ETH):
        for day in DAYS:
            pushes = [push for push in okx.pushes[inst_id] if to_utc(push.ts).startswith(day)]
            row = next(line.split() for line in report.splitlines() if line.startswith(f"{inst_id} ") and day in line)
            first, last = pushes[0], pushes[-1]
            assert row[2:7] == [
                str(len(pushes)),
                to_utc(first.ts)[11:],
                to_utc(last.ts)[11:],
                str(first.last_id),
                str(last.last_id),
            ]
            for side, contracts in zip(("buy", "sell"), row[7:9], strict=True):
                assert Decimal(contracts) == sum(Decimal(push.sz) for push in pushes if push.side == side)
    assert "no problem" in report.splitlines()[-1]


def test_a_byte_gone_bad_anywhere_in_a_line_is_noticed(tmp_path: Path, okx: FakeOKX, capsys: Capture) -> None:
    """A zero, a byte that is no UTF-8, a quote or a letter can stand nowhere in a number, a name or between them."""
    write_vault(tmp_path, okx)
    for path in [*day_files(tmp_path, ETH), day_path(tmp_path, DAYS[1])]:
        path.unlink()
    path = day_path(tmp_path, DAYS[0])
    lines = path.read_bytes().splitlines(keepends=True)[:3]
    unseen = []
    for position in range(len(lines[1]) - 1):
        for bad in (b"\0", b"\xff", b'"', b"~"):
            if lines[1][position : position + 1] != bad:
                line = lines[1][:position] + bad + lines[1][position + 1 :]
                path.write_bytes(lines[0] + line + lines[2])
                if verify(Vault(tmp_path)) != 1:
                    unseen.append(line)
    capsys.readouterr()
    assert not unseen


def test_a_line_moved_to_another_day_is_named_there(vault: Path, capsys: Capture) -> None:
    moved: Lines = []
    edit(day_path(vault, DAYS[0]), lambda lines: moved.append(lines.pop(4)))
    edit(day_path(vault, DAYS[1]), lambda lines: lines.insert(2, moved[0]))
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert f"{day_path(vault, DAYS[1])}:3: " in report.partition("another day")[2]
    assert report.endswith(": 1 problem\n")


SEAMS: dict[str, tuple[str, str, bool]] = {  # the last line of a day, the first of a later day, may they be so?
    "in order": (f"{DAYS[0]}T23:00:00.000Z 100", f"{DAYS[1]}T01:00:00.000Z 101", True),
    "the same id": (f"{DAYS[0]}T23:00:00.000Z 100", f"{DAYS[1]}T01:00:00.000Z 100", False),
    "three days later": (f"{DAYS[0]}T23:00:00.000Z 100", "2026-11-23T01:00:00.000Z 99", False),
    "a second around midnight": (f"{DAYS[0]}T23:59:59.000Z 100", f"{DAYS[1]}T00:00:01.000Z 99", True),
    "too early for that": (f"{DAYS[0]}T23:59:58.999Z 100", f"{DAYS[1]}T00:00:00.000Z 99", False),
    "too late for that": (f"{DAYS[0]}T23:59:59.999Z 100", f"{DAYS[1]}T00:00:01.001Z 99", False),
}


@pytest.mark.parametrize(("before", "after", "legal"), SEAMS.values(), ids=SEAMS.keys())
def test_ids_rise_from_day_to_day_but_for_a_second_around_midnight(
    vault: Path, capsys: Capture, before: str, after: str, legal: bool
) -> None:
    line = day_path(vault, DAYS[0]).read_bytes().splitlines()[0].decode()
    for path in day_files(vault, BTC):
        path.unlink()
    for stamp, trade_id in (before.split(), after.split()):
        path = day_path(vault, stamp[:10])
        text = re.sub('"timestamp_utc":"[^"]+"', f'"timestamp_utc":"{stamp}"', line)
        path.write_text(re.sub(r'"trade_id":"\d+"', f'"trade_id":"{trade_id}"', text) + "\n", newline="\n")
    assert verify(Vault(vault)) == (0 if legal else 1)
    report = capsys.readouterr().out
    assert legal or f"{path}:1 has {after.split()[1]}, {day_path(vault, DAYS[0])}:1 100" in report


@pytest.mark.parametrize(
    ("day", "number", "digit"), [(DAYS[0], -1, "9"), (DAYS[1], 0, "1")], ids=["last raised", "first lowered"]
)
def test_a_wrong_id_at_either_side_of_midnight_is_named_once(
    tmp_path: Path, capsys: Capture, day: str, number: int, digit: str
) -> None:
    """Also on a busy market, where the lines on both sides are within a second of midnight."""
    okx = FakeOKX(seed=6, instruments=[BTC])
    okx.prefill(BTC, 100, f"{DAYS[0]}T23:59:55Z", f"{DAYS[1]}T00:00:05Z")
    write_vault(tmp_path, okx)
    assert verify(Vault(tmp_path)) == 0
    path = day_path(tmp_path, day)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = re.sub(b'"trade_id":".', b'"trade_id":"' + digit.encode(), lines[number])
    path.write_bytes(b"".join(lines))
    capsys.readouterr()
    assert verify(Vault(tmp_path)) == 1
    report = capsys.readouterr().out
    assert "1 x ids that do not rise from day to day" in report
    assert report.splitlines()[-1].endswith(": 1 problem")


def test_what_an_exporter_only_tries_is_no_problem(vault: Path) -> None:
    """Windows shows the file with which it tries whether there is room."""
    day_path(vault, DAYS[0]).with_name(".probe-abc").write_bytes(b"")
    assert verify(Vault(vault)) == 0


def test_what_else_lies_beside_the_metadata_is_no_instrument(vault: Path, capsys: Capture) -> None:
    (vault / "meta" / "okx" / "instruments" / "notes.json").write_text("{}")
    assert verify(Vault(vault)) == 0
    assert "lines in 4 day files: " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("folder", ["instruments", "gaps", "audit"])
def test_an_instrument_known_by_its_metadata_alone_is_checked(vault: Path, capsys: Capture, folder: str) -> None:
    path = vault / "meta" / "okx" / folder / "BTC-USD_UM-SWAP.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")
    assert "BTC-USD_UM-SWAP" in Vault(vault).instruments()
    assert verify(Vault(vault)) == (0 if folder == "instruments" else 1)
    assert folder == "instruments" or f"{path}:1: {{}}" in capsys.readouterr().out


def test_a_day_that_does_not_exist_is_no_day(vault: Path, capsys: Capture) -> None:
    path = day_path(vault, "2026-11-31")
    path.write_bytes(b"")
    assert verify(Vault(vault)) == 1
    assert str(path) in capsys.readouterr().out


def test_after_twenty_of_a_kind_there_is_a_count(vault: Path, capsys: Capture) -> None:
    path = day_path(vault, DAYS[0])
    edit(path, every_line(lambda line: line.replace(b"\n", b"\r\n")))
    count = path.read_bytes().count(b"\n")
    assert count > 20
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert report.count(f"{path}:") == 20
    assert f"{path}:20: " in report
    assert re.search(rf"\b{count}\b.*CRLF", report), report


def test_only_the_unknown_part_of_a_file_is_lost_to_the_table(vault: Path, capsys: Capture) -> None:
    """One problem is one problem: the lines around a bad one are read and counted as ever."""
    path = day_path(vault, DAYS[0])
    edit(path, replace(5, "perp", "spot"))
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert re.search(": 1 problems?$", report.splitlines()[-1]), report


# The instrument's values


def save_ct_val(vault: Path, okx: FakeOKX, value: str) -> None:
    metadata = vault / "meta" / "okx" / "instruments" / f"{BTC}.json"
    metadata.write_text(json.dumps(okx.instruments[BTC] | {"ctVal": value}))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not JSON", b'{"ctVal":1}'])
def test_missing_or_senseless_metadata_is_a_problem(vault: Path, capsys: Capture, content: bytes | None) -> None:
    metadata = vault / "meta" / "okx" / "instruments" / f"{BTC}.json"
    metadata.unlink()
    if content is not None:
        metadata.write_bytes(content)
    assert verify(Vault(vault)) == 1
    assert "saved instrument" in capsys.readouterr().out


def test_metadata_that_differs_from_the_newest_lines_is_a_problem(vault: Path, okx: FakeOKX, capsys: Capture) -> None:
    edit(day_path(vault, DAYS[1]), replace(1, '"ctVal":"0.01"', '"ctVal":"0.001"'))  # an older one may differ
    assert verify(Vault(vault)) == 0
    save_ct_val(vault, okx, "0.1")
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert BTC in report.partition("saved instrument")[2]
    assert " 0.1 1 linear" in report
    assert " 0.01 1 linear" in report


# The gaps file

GAP = dict(
    zip(
        GAP_KEYS,
        ("2026-11-21T00:00:00.000Z", BTC, "absent", "10", "20", *[f"{DAYS[0]}T04:00:00.000Z"] * 2),
        strict=True,
    )
)
BAD_GAPS = {
    "no object": "[]",
    "not JSON": "gap",
    "no keys": "{}",
    "keys out of order": compact(dict(reversed(GAP.items()))),
    "a key too many": compact(GAP | {"note": ""}),
    "a key missing": compact({key: GAP[key] for key in GAP_KEYS[:-1]}),
    "unknown reason": compact(GAP | {"reason": "lost"}),
    "another instrument": compact(GAP | {"instId": ETH}),
    "a number": compact(GAP | {"after_id": 10}),
    "an id that is none": compact(GAP | {"before_id": "x"}),
    "an id of 21 digits": compact(GAP | {"before_id": "9" * 21}),
    "no end": compact(GAP | {"before_id": ""}),
    "nothing in it": compact(GAP | {"after_id": "20"}),
    "a time that is none": compact(GAP | {"after_utc": "yesterday"}),
    "recorded at no time": compact(GAP | {"recorded_utc": ""}),
    "blank": "",
}


@pytest.mark.parametrize("bad", BAD_GAPS.values(), ids=BAD_GAPS.keys())
def test_an_invalid_line_of_the_gaps_file_is_named(vault: Path, capsys: Capture, bad: str) -> None:
    write_gap(vault, "start", ("", 10), ("", f"{DAYS[0]}T03:00:00.000Z"))
    path = vault / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    path.write_bytes(path.read_bytes() + bad.encode() + b"\n")
    assert verify(Vault(vault)) == 1
    assert f"{path}:2" in capsys.readouterr().out.partition("gaps file")[2]


def test_a_torn_line_of_the_gaps_file_is_named(vault: Path, capsys: Capture) -> None:
    write_gap(vault, "absent", (10, 20), (f"{DAYS[0]}T03:00:00.000Z",) * 2)
    path = vault / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(Vault(vault)) == 1
    assert f"{path}:1" in capsys.readouterr().out.partition("gaps file")[2]


VERDICT = dict(
    zip(
        ("audited_utc", "instId", "day", "minutes_agreeing", "minutes_differing", "minutes_not_covered", "last_id"),
        (f"{DAYS[1]}T00:05:00.000Z", BTC, DAYS[0], "1079", "1", "360", "2978601964"),
        strict=True,
    )
)
BAD_VERDICTS = {
    "not JSON": "audit",
    "keys out of order": compact(dict(reversed(VERDICT.items()))),
    "a key missing": compact({key: VERDICT[key] for key in list(VERDICT)[:-1]}),
    "another instrument": compact(VERDICT | {"instId": ETH}),
    "a number": compact(VERDICT | {"minutes_agreeing": 1079}),
    "minutes that are none": compact(VERDICT | {"minutes_not_covered": ""}),
    "a day that is none": compact(VERDICT | {"day": "yesterday"}),
    "not compact": json.dumps(VERDICT),
    "blank": "",
}


@pytest.mark.parametrize("bad", BAD_VERDICTS.values(), ids=BAD_VERDICTS.keys())
def test_an_invalid_line_of_the_audit_file_is_named(vault: Path, capsys: Capture, bad: str) -> None:
    path = vault / "meta" / "okx" / "audit" / f"{BTC}.jsonl"
    path.parent.mkdir(parents=True)
    good = compact(VERDICT) + "\n" + compact(VERDICT | {"last_id": ""}) + "\n"
    path.write_text(good, newline="\n")
    assert verify(Vault(vault)) == 0
    path.write_text(good + bad + "\n", newline="\n")
    assert verify(Vault(vault)) == 1
    assert f"{path}:3" in capsys.readouterr().out.partition("audit file")[2]


# What is missing, in words

AT = f"{DAYS[0]}T10:56:10.500Z"
IN_WORDS: dict[str, tuple[list[tuple[str, tuple[int | str, int], tuple[str, str]]], list[str], str]] = {
    # gaps on record (reason, ids, times), lines before the last one, end of the last line
    "where the record begins": ([("start", ("", 10), ("", AT))], [], "no problem found"),
    "behind history": (
        [("start", (5, 10), (f"{DAYS[0]}T00:00:00.000Z", AT))],
        [f"Missing: {BTC} {DAYS[0]} 00:00 to 10:56 (start)"],
        "no problem found, 1 range missing",
    ),
    "a range": (
        [("horizon", (5, 10), (AT, f"{DAYS[0]}T11:17:00.000Z"))],
        [f"Missing: {BTC} {DAYS[0]} 10:56 to 11:17 (horizon)"],
        "no problem found, 1 range missing",
    ),
    "ranges that overlap, repeat or touch": (
        [
            ("unrepaired", (5, 10), (AT, f"{DAYS[0]}T11:17:00.000Z")),
            ("unrepaired", (5, 10), (AT, f"{DAYS[0]}T11:17:00.000Z")),
            ("unrepaired", (7, 8), (f"{DAYS[0]}T11:00:00.000Z", f"{DAYS[0]}T11:01:00.000Z")),
            ("unrepaired", (11, 20), (f"{DAYS[0]}T11:17:02.000Z", f"{DAYS[1]}T03:00:00.000Z")),
            ("horizon", (5, 10), (AT, AT)),
        ],
        [
            f"Missing: {BTC} {DAYS[0]} 10:56:10 to 10:56:10 (horizon)",
            f"Missing: {BTC} {DAYS[0]} 10:56 to {DAYS[1]} 03:00 (unrepaired)",
        ],
        "no problem found, 2 ranges missing",
    ),
    "ids without a trade": (
        [("absent", (5, 10), (AT, AT)), ("absent", (7, 13), (AT, AT)), ("absent", (20, 22), (AT, AT))],
        [f"Not missing: {BTC}, 8 ids that OKX never used (absent)"],
        "no problem found",
    ),
    "one day to come": (
        [("pending", (5, 10), (AT, f"{DAYS[0]}T23:00:00.000Z"))],
        [f"Pending: {BTC} {DAYS[0]} 10:56 to 23:00 (pending)"],
        "no problem found, 1 day still to come (pending)",
    ),
    "up to the first id of a day": (
        [("pending", (5, 10), (AT, f"{DAYS[1]}T00:00:00.020Z"))],
        [f"Pending: {BTC} {DAYS[0]} 10:56 to {DAYS[1]} 00:00 (pending)"],
        "no problem found, 1 day still to come (pending)",
    ),
    "several days to come": (
        [("pending", (1, 4), ("2026-11-16T03:00:00.000Z", f"{DAYS[0]}T00:00:00.000Z"))],
        [f"Pending: {BTC} 2026-11-16 03:00 to {DAYS[0]} 00:00 (pending)"],
        "no problem found, 4 days still to come (pending)",
    ),
    "no times known": (
        [("pending", ("", 4), ("", f"{DAYS[0]}T00:00:00.000Z")), ("horizon", (5, 10), (AT, ""))],
        [f"Missing: {BTC} from {DAYS[0]} 10:56 (horizon)", f"Pending: {BTC} up to {DAYS[0]} 00:00 (pending)"],
        "no problem found, 1 range missing, 1 day still to come (pending)",
    ),
    "many": (
        [("horizon", (n, n + 2), (f"{DAYS[0]}T{n:02}:10:00.000Z", f"{DAYS[0]}T{n:02}:11:00.000Z")) for n in range(23)],
        [
            *[f"Missing: {BTC} {DAYS[0]} {n:02}:10 to {n:02}:11 (horizon)" for n in range(20)],
            "Missing: and 3 more",
        ],
        "no problem found, 23 ranges missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("gaps", "lines", "last"), IN_WORDS.values(), ids=IN_WORDS.keys())
def test_what_is_missing_is_said_in_words_and_no_problem(
    vault: Path,
    capsys: Capture,
    gaps: list[tuple[str, tuple[int | str, int], tuple[str, str]]],
    lines: list[str],
    last: str,
) -> None:
    for gap in gaps:
        write_gap(vault, *gap)
    assert verify(Vault(vault)) == 0
    *words, verdict = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert words == lines
    assert verdict.endswith(f" day files: {last}")


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


def compress(path: Path) -> Path:
    """Replace a day's file by its .gz."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def test_a_compressed_day_is_read_like_any_other(vault: Path, capsys: Capture) -> None:
    assert verify(Vault(vault)) == 0
    plain = capsys.readouterr().out
    packed = compress(day_path(vault, DAYS[0]))
    assert verify(Vault(vault)) == 0
    assert capsys.readouterr().out == plain
    lines = gzip.decompress(packed.read_bytes()).splitlines(keepends=True)
    packed.write_bytes(gzip.compress(b"".join(lines[:6] + lines[5:])))
    assert verify(Vault(vault)) == 1
    assert f"{packed}:7: " in capsys.readouterr().out


def test_what_a_plain_file_repeats_of_the_compressed_one_is_left_out(vault: Path, capsys: Capture) -> None:
    """So an interrupted compression leaves it; what is behind it in the plain file is read as ever."""
    assert verify(Vault(vault)) == 0
    expected = capsys.readouterr().out
    path = day_path(vault, DAYS[0])
    lines = path.read_bytes().splitlines(keepends=True)
    packed = path.with_name(path.name + ".gz")
    for count in (len(lines), len(lines) - 20):
        packed.write_bytes(gzip.compress(b"".join(lines[:count])))
        assert verify(Vault(vault)) == 0
        assert capsys.readouterr().out == expected
    edit(path, replace(len(lines) - 5, "perp", "spot"))
    assert verify(Vault(vault)) == 1
    assert f"{path}:{len(lines) - 5}: " in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip at all"])
def test_a_broken_compressed_file_is_named_and_the_rest_still_judged(vault: Path, capsys: Capture, damage: str) -> None:
    first_line = day_path(vault, DAYS[0]).read_bytes().splitlines(keepends=True)[0]
    edit(day_path(vault, DAYS[1]), lambda lines: lines.insert(3, first_line))
    packed = compress(day_path(vault, DAYS[0]))
    content = packed.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes(byte ^ 0xFF for byte in content[half : half + 8]) + content[half + 8 :]
    packed.write_bytes({"cut": content[:half], "flipped": flipped}.get(damage, b"trades"))
    assert verify(Vault(vault)) == 1
    report = capsys.readouterr().out
    assert str(packed) in report
    assert f"{ETH:<16} {DAYS[1]}" in report


def test_a_file_that_is_no_days_is_a_problem(vault: Path, capsys: Capture) -> None:
    path = day_path(vault, DAYS[0])
    stray = path.rename(path.with_name(f"{DAYS[0]} (1).jsonl"))
    assert verify(Vault(vault)) == 1
    assert str(stray) in capsys.readouterr().out


def test_a_vault_without_a_line_has_no_data_to_check(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "raw").mkdir()
    assert verify(Vault(tmp_path)) == 1
    assert "0 day files: no data to check" in capsys.readouterr().out
    path = day_path(tmp_path, DAYS[0])
    path.parent.mkdir(parents=True)
    path.touch()
    assert verify(Vault(tmp_path)) == 1
    assert "1 day file: no data to check" in capsys.readouterr().out


# An exporter that writes meanwhile


@pytest.mark.parametrize("rest", ["finished", "longer", "cut off"])
def test_a_last_line_that_changes_meanwhile_is_no_problem(
    vault: Path, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    """While verify waits for an unfinished line, an exporter goes on with it, or one that starts cuts it off."""
    path = day_path(vault, DAYS[1])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[:-60])
    waited = []

    def exporter_goes_on(seconds: float) -> None:
        waited.append(seconds)
        path.write_bytes({"finished": whole, "longer": whole[:-20]}.get(rest, whole[:start]))

    monkeypatch.setattr(time, "sleep", exporter_goes_on)
    assert verify(Vault(vault)) == 0
    assert waited


def test_verify_passes_while_an_exporter_writes(
    make_okx: Callable[..., FakeOKX], exporter: Callable[..., Exporter]
) -> None:
    okx = make_okx(rate=300)
    capture = exporter(okx)
    capture.start_capture()
    wait_for(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    for _ in range(2):
        done = capture.run("--verify")
        assert done.returncode == 0, done.stdout + done.stderr
    assert capture.stop() == 0


# The command


def test_the_command_judges_a_captured_vault_and_touches_nothing(
    make_okx: Callable[..., FakeOKX], exporter: Callable[..., Exporter]
) -> None:
    okx = make_okx(rate=100)
    capture = exporter(okx)
    capture.start_capture()
    capture.wait_until(lambda: day_files(capture.vault, BTC) and day_files(capture.vault, ETH))
    okx.set_clock(f"{DAYS[1]}T23:59:59.5Z")
    capture.wait_until(lambda: len(day_files(capture.vault, BTC)) == len(day_files(capture.vault, ETH)) == 2)
    okx.settle()
    capture.wait_until_stored()
    assert capture.stop() == 0
    before = tree_of(capture.folder)
    done = capture.run("--verify")
    assert (done.returncode, tree_of(capture.folder)) == (0, before), done.stdout + done.stderr
    assert "no problem" in done.stdout.splitlines()[-1]
    assert done.stderr == ""
    path = day_files(capture.vault, BTC)[0]
    edit(path, lambda lines: lines.append(lines[-1]))
    done = capture.run("--verify")
    assert done.returncode == 1
    assert f"{path}:" in done.stdout


def run_by_shell(judge: Exporter, script: str) -> subprocess.CompletedProcess[str]:
    """Run `--verify` as "$@" of a shell's script."""
    command = ["sh", "-c", script, "sh", *judge.command("--verify")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


needs_sh = pytest.mark.skipif(os.name == "nt", reason="needs sh")


@pytest.mark.parametrize("fds", ["", pytest.param("ulimit -n 8;", marks=needs_sh)], ids=["all cores", "no processes"])
def test_the_command_reads_large_vaults_on_all_cores_if_it_can(
    vault: Path, okx: FakeOKX, exporter: Callable[..., Exporter], fds: str
) -> None:
    """With few file descriptors there are no worker processes; the result is the same."""
    judge = exporter(okx, folder=vault.parent, settings={"PARALLEL_BYTES": 0})
    run = partial(run_by_shell, judge, f'{fds} exec "$@"') if fds else partial(judge.run, "--verify")
    done = run()
    assert (done.returncode, "going on with one" in done.stderr) == (0, bool(fds)), done.stdout + done.stderr
    assert "lines in 4 day files: no problem found" in done.stdout
    edit(day_path(vault, DAYS[1]), swap)
    done = run()
    assert done.returncode == 1
    assert f"{day_path(vault, DAYS[1])}:8: " in done.stdout


@needs_sh
@pytest.mark.parametrize(("end", "message"), [("| true", ""), ("> /dev/full", "The report can't be written: ")])
def test_a_closed_or_full_output_is_not_the_vaults_fault(
    vault: Path, okx: FakeOKX, exporter: Callable[..., Exporter], end: str, message: str
) -> None:
    judge = exporter(okx, folder=vault.parent)
    done = run_by_shell(judge, f'{{ "$@"; echo "exit $?" >&2; }} {end}')
    assert done.stderr.endswith("exit 1\n")
    assert (message in done.stderr) if message else (done.stderr == "exit 1\n")
    assert "Vault" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("there", [False, True], ids=["missing", "a file"])
def test_without_a_vault_the_command_exits_4_and_makes_none(
    okx: FakeOKX, exporter: Callable[..., Exporter], there: bool
) -> None:
    judge = exporter(okx)
    if there:
        judge.vault.write_text("no folder")
    done = judge.run("--verify")
    assert done.returncode == 4
    assert str(judge.vault) in done.stderr
    assert "Traceback" not in done.stderr
    assert judge.vault.exists() == there


def test_a_vault_that_can_not_be_read_is_exit_4(okx: FakeOKX, exporter: Callable[..., Exporter]) -> None:
    """A folder where a file should be, say: the command names it, without a traceback."""
    judge = exporter(okx)
    write_vault(judge.vault, okx)
    gaps = judge.vault / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    gaps.unlink(missing_ok=True)
    gaps.mkdir(parents=True)
    done = judge.run("--verify")
    assert done.returncode == 4
    assert str(gaps) in done.stderr
    assert "Traceback" not in done.stderr
