"""`--audit`, and the audit of the running exporter: every minute is held against OKX's own candles, exactly."""

import argparse
import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import structlog

import trades_exporter
from fake_okx import BTC, ETH, FakeOKX, utc_ms
from harness import (
    Exporter,
    MakeExporter,
    MakeOKX,
    day_files,
    day_path,
    last_stored_id,
    to_utc,
    wait_for,
    write_gap,
    write_vault,
)
from trades_exporter import VERDICT_KEYS, Auditor, Outage, Rest, Vault, audit, day_range, days_to_audit, open_session

FIRST, DAY, LAST = "2026-11-20", "2026-11-21", "2026-11-22"
Capture = pytest.CaptureFixture[str]


def trade_evenly(okx: FakeOKX, inst_id: str, start: str, end: str) -> None:
    """Trade the past, an order each 47 s."""
    for ts in range(utc_ms(start), utc_ms(end), 47_000):
        okx.markets[inst_id].make_order(ts, 0.0)


@pytest.fixture
def okx(make_okx: MakeOKX) -> FakeOKX:
    """Return an exchange that has traded BTC on three days, with a quiet night in between."""
    okx = make_okx(seed=6, instruments=[BTC], start=f"{LAST}T12:00:00Z")
    trade_evenly(okx, BTC, f"{FIRST}T12:00:30Z", f"{DAY}T01:00:00Z")
    trade_evenly(okx, BTC, f"{DAY}T05:00:30Z", f"{LAST}T06:00:00Z")
    return okx


@pytest.fixture
def vault(tmp_path: Path, okx: FakeOKX) -> Path:
    """Return an intact Vault of these trades."""
    write_vault(tmp_path / "Vault", okx)
    return tmp_path / "Vault"


@pytest.fixture
def judge(vault: Path, okx: FakeOKX, capsys: Capture) -> Callable[..., tuple[int, str]]:
    """Audit a day, or from one to another: exit code and report."""

    def run(first: str = DAY, last: str = "") -> tuple[int, str]:
        exit_code = asyncio.run(audit(Vault(vault), [okx.rest_url], first, last or first))
        return exit_code, capsys.readouterr().out

    return run


Judge = Callable[..., tuple[int, str]]
Lines = list[bytes]
Change = Callable[[Lines], Lines]


def change_lines(vault: Path, change: Change, day: str = DAY) -> None:
    """Change a stored day as a list of lines."""
    path = day_path(vault, day)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def without(begin: str, end: str) -> Change:
    """Return a change that deletes the lines from one time up to another."""
    return lambda lines: [line for line in lines if not begin <= line[18:42].decode() < end]


def minutes_with_trades(okx: FakeOKX, begin: str, end: str) -> list[str]:
    """Return the minutes (2026-11-21T12:34) from begin up to end in which there were trades."""
    stamps = [to_utc(trade.ts) for trade in okx.ledger[BTC]]
    return sorted({stamp[:16] for stamp in stamps if begin <= stamp < end})


# The verdict


def test_a_whole_day_agrees_quiet_minutes_included(okx: FakeOKX, judge: Judge) -> None:
    assert len(minutes_with_trades(okx, DAY, LAST)) < 1440, "there should be quiet minutes"
    assert judge() == (0, f"{BTC} {DAY}: 1440 of 1440 covered minutes agree with OKX\n")
    assert [page["limit"] for page in okx.requests_to("history-candles")] == 5 * ["300"]


def test_what_lies_outside_of_the_first_and_the_last_trade_is_not_covered(okx: FakeOKX, judge: Judge) -> None:
    """Nor are the minutes of these two."""
    last = datetime.fromisoformat(to_utc(okx.ledger[BTC][-1].ts))
    for day, covered in (("2026-11-19", 0), (FIRST, 719), (LAST, last.hour * 60 + last.minute), ("2026-11-23", 0)):
        verdict = f"{covered} of {covered} covered minutes agree with OKX, {1440 - covered} not covered"
        assert judge(day) == (0 if covered else 1, f"{BTC} {day}: {verdict}\n")


def test_candles_that_are_not_confirmed_are_not_covered(okx: FakeOKX, judge: Judge) -> None:
    okx.faults.unconfirmed = {utc_ms(f"{DAY}T{minute}:00Z") for minute in ("00:00", "12:34", "23:59")}
    assert judge() == (0, f"{BTC} {DAY}: 1437 of 1437 covered minutes agree with OKX, 3 not covered\n")


# What is wrong


def changed(number: int, key: str, change: Callable[[str], str]) -> Change:
    """Return a change of one field of a line, by the line's number from 1 on."""

    def change_line(lines: Lines) -> Lines:
        record = orjson.loads(lines[number - 1])
        record[key] = change(record[key])
        return [*lines[: number - 1], orjson.dumps(record) + b"\n", *lines[number:]]

    return change_line


DAMAGES: dict[str, Change] = {
    "a line dropped": lambda lines: lines[:499] + lines[500:],
    "a line doubled": lambda lines: lines[:500] + lines[499:],
    "the last digit of a size": changed(500, "qty_contracts", lambda sz: sz[:-1] + str((int(sz[-1]) + 1) % 10)),
    "the last digit of a price": changed(500, "price", lambda px: px + "1" if "." in px else px + ".1"),
    "another contract value": changed(500, "ctVal", lambda _: "0.1"),
    "another multiplier": changed(500, "ctMult", lambda _: "1.000000000001"),
    "a bad line": changed(500, "side", lambda _: "hold"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_line_is_found_by_its_minute(vault: Path, okx: FakeOKX, judge: Judge, damage: Change) -> None:
    """Also where --verify has nothing to say: a line that is gone, a digit that changed."""
    line = orjson.loads(day_path(vault, DAY).read_bytes().splitlines()[499])
    change_lines(vault, damage)
    exit_code, report = judge()
    assert exit_code == 1
    verdict, *differing = report.splitlines()
    agree = re.fullmatch(rf"{BTC} {DAY}: (\d+) of 1440 covered minutes agree with OKX", verdict)
    assert agree, report
    assert len(differing) == 1440 - int(agree[1]) in (1, 2)
    minute = line["timestamp_utc"][:16]
    shown = next(text for text in differing if minute in text)
    start = utc_ms(f"{minute}:00Z")
    candle = okx.markets[BTC].candles(okx.now_ms(), start + 1, start - 1, 1)[0]
    assert " ".join(candle[1:7]) in shown


@pytest.mark.parametrize("values", [{"ctVal": "0.0100"}, {"ctVal": "100", "ctType": "inverse"}], ids=repr)
def test_contract_values_are_numbers_that_count_if_linear(vault: Path, judge: Judge, values: dict[str, str]) -> None:
    change_lines(vault, lambda lines: [orjson.dumps(orjson.loads(line) | values) + b"\n" for line in lines])
    assert judge() == (0, f"{BTC} {DAY}: 1440 of 1440 covered minutes agree with OKX\n")


def test_the_first_twenty_minutes_that_differ_are_shown(vault: Path, okx: FakeOKX, judge: Judge) -> None:
    lost = minutes_with_trades(okx, f"{DAY}T12:00:00", f"{DAY}T15:00:00")
    change_lines(vault, without(f"{DAY}T12:00:00", f"{DAY}T15:00:00"))
    exit_code, report = judge()
    assert exit_code == 1
    assert report.startswith(f"{BTC} {DAY}: {1440 - len(lost)} of 1440 covered minutes agree with OKX\n")
    assert re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d", report) == lost[:20]
    assert str(len(lost) - 20) in report.splitlines()[-1]


def test_sums_are_exact_where_floats_would_not_be(make_okx: MakeOKX, tmp_path: Path) -> None:
    okx = make_okx(instruments=[BTC], start=f"{LAST}T12:00:00Z")
    for minute, sz in (("11:59", "1"), ("12:00", "1234567890123"), ("12:00", "0.0000000001"), ("12:01", "1")):
        okx.trade(count=1, px="0.1", sz=sz, ts=utc_ms(f"{DAY}T{minute}:00Z"))
    write_vault(tmp_path, okx)
    assert asyncio.run(audit(Vault(tmp_path), [okx.rest_url], DAY, DAY)) == 0
    change_lines(tmp_path, changed(3, "qty_contracts", lambda sz: sz + "2"))
    assert asyncio.run(audit(Vault(tmp_path), [okx.rest_url], DAY, DAY)) == 1


# Gaps on record


@pytest.mark.parametrize(
    ("reason", "not_covered"), [("start", 13 * 60 + 21), ("unrepaired", 71), ("horizon", 71), ("absent", 0)]
)
def test_a_gap_on_record_covers_nothing(vault: Path, okx: FakeOKX, judge: Judge, reason: str, not_covered: int) -> None:
    """From 12:10 to 13:20 the lines are gone; what is said to be absent has to be absent in the candles too."""
    change_lines(vault, without(f"{DAY}T12:10:20", f"{DAY}T13:20:10"))
    begin = ("", "") if reason == "start" else (10, f"{DAY}T12:10:10.000Z")
    write_gap(vault, reason, (begin[0], 20), (begin[1], f"{DAY}T13:20:50.000Z"))
    lost = 0 if not_covered else len(minutes_with_trades(okx, f"{DAY}T12:10:20", f"{DAY}T13:20:10"))
    exit_code, report = judge()
    assert exit_code == bool(lost)
    covered = 1440 - not_covered
    uncovered = f", {not_covered} not covered" if not_covered else ""
    verdict = f"{BTC} {DAY}: {covered - lost} of {covered} covered minutes agree with OKX{uncovered}"
    assert report.splitlines()[0] == verdict


# A range of days


def test_a_range_has_a_line_for_each_day_and_instrument_and_one_that_counts(vault: Path, judge: Judge) -> None:
    """A pending range ends with a day's first id, and that day is covered. Pending days are not judged."""
    (vault / "meta/okx/instruments" / f"{ETH}.json").write_text("{}")  # nothing of it is stored
    change_lines(vault, without(f"{FIRST}T18:00", DAY), day=FIRST)
    write_gap(vault, "pending", (10, 20), (f"{FIRST}T17:59:50.000Z", f"{DAY}T00:00:03.000Z"))
    exit_code, report = judge("2026-11-19", "2026-11-22")
    lines = report.splitlines()
    days = [f"{inst_id} 2026-11-{number}" for number in (19, 20, 21, 22) for inst_id in (BTC, ETH)]
    assert [line.split(":")[0] for line in lines] == [*days, "4 days of 2 instruments"]
    assert (exit_code, lines[2], lines[4]) == (0, f"{BTC} {FIRST}: pending", AGREES.removeprefix("info: Audit: "))
    assert lines[-1].endswith(": 2 agreeing, 0 differing, 1 pending, 5 uncovered")
    change_lines(vault, DAMAGES["a line dropped"])
    exit_code, report = judge("2026-11-19", "2026-11-22")
    assert (exit_code, report.splitlines()[-1]) == (1, lines[-1].replace("2 agreeing, 0 diff", "1 agreeing, 1 diff"))
    exit_code, report = judge(FIRST)
    counts = "1 day of 2 instruments: 0 agreeing, 0 differing, 1 pending, 1 uncovered"
    assert (exit_code, report.splitlines()) == (1, [*lines[2:4], counts])


def test_a_day_that_can_not_be_read_is_said_and_the_others_are_audited(vault: Path, judge: Judge) -> None:
    path = day_path(vault, DAY)
    path.rename(path.with_name(path.name + ".gz"))
    exit_code, report = judge(FIRST, LAST)
    assert exit_code == 1
    assert f"{path}.gz" in report
    counts = "3 days of 1 instrument: 2 agreeing, 0 differing, 0 pending, 0 uncovered, 1 not audited"
    assert report.splitlines()[-1] == counts


NO_RANGES = "yesterday 20261121 2026-02-30 2026-11-01.. 2026-11-01..2026-11-02..2026-11-03 2026-11-21..2026-11-20"


@pytest.mark.parametrize("text", NO_RANGES.split())
def test_a_date_or_a_range_of_dates_is_taken(text: str) -> None:
    assert [*map(str, day_range("2026-11-21"))] == ["2026-11-21", "2026-11-21"]
    assert [*map(str, day_range("2026-11-01..2026-11-21"))] == ["2026-11-01", "2026-11-21"]
    with pytest.raises(argparse.ArgumentTypeError, match="is no date like 2026-11-21, nor a range like"):
        day_range(text)


# OKX's answers


def test_without_any_answer_of_okx_it_says_so_and_ends(okx: FakeOKX, vault: Path, exporter: MakeExporter) -> None:
    okx.faults.rest = {"503": 1.0}
    done = exporter(okx, folder=vault.parent, settings={"AUDIT_PATIENCE_S": 0.5}).run("--audit", f"{FIRST}..{LAST}")
    assert done.returncode == 1
    counts = "3 days of 1 instrument: 0 agreeing, 0 differing, 0 pending, 0 uncovered, 3 not audited"
    assert done.stdout == f"{BTC} {FIRST}: OKX gave no candles within 0s\n{counts}\n"
    assert "Traceback" not in done.stderr


# The command


def test_the_default_is_yesterday_and_without_data_there_is_nothing_to_judge(
    okx: FakeOKX, exporter: MakeExporter
) -> None:
    judge = exporter(okx)
    done = judge.run("--audit")
    assert done.returncode == 4
    assert str(judge.vault) in done.stderr
    assert not judge.vault.exists()
    judge.vault.mkdir()
    done = judge.run("--audit")
    assert (done.returncode, done.stdout) == (1, "no data to check\n")
    write_vault(judge.vault, okx)
    days = [datetime.now(UTC).date() - timedelta(1)]
    done = judge.run("--audit")
    days.append(datetime.now(UTC).date() - timedelta(1))  # midnight may pass meanwhile
    assert done.returncode == 1, "that day is not stored"
    assert done.stdout in {f"{BTC} {day}: 0 of 0 covered minutes agree with OKX, 1440 not covered\n" for day in days}
    assert not judge.log_file.exists()


# Which days are audited

STATES: dict[str, tuple[str, str, str, str]] = {
    # stored lines (day of the month, id; .gz: compressed; -: none), verdicts, pending from one day to another; result
    "nothing stored": ("", "", "", ""),
    "the newest day is not finished": ("01 5", "", "", ""),
    "finished days": ("01 5 02 6 04 7 06 8", "", "", "01 02 03 04 05"),
    "a verdict is enough": ("01 5 02 6 04 7", "02 6 03 -", "", "01"),
    "lines were added": ("01 5 01 8 02 9", "01 5", "", "01"),
    "the last verdict counts": ("01 5 02 6 03 7", "01 4 01 5 02 6 02 5", "", "02"),
    "without a line": ("01 - 02 6", "01 -", "", ""),
    "compressed": ("01.gz 5 02 6", "01 4", "", ""),
    "compressed without a verdict": ("01.gz 5 02 6", "", "", "01"),
    "lines behind a compressed day": ("01.gz 5 01 6 02 7", "01 5", "", "01"),
    "pending": ("01 5 02 6 03 7 04 8 05 9", "02 5", "02 04", "01 04"),
}


@pytest.mark.parametrize(("stored", "audited", "pending", "expected"), STATES.values(), ids=STATES.keys())
def test_the_days_to_audit(tmp_path: Path, vault: Path, stored: str, audited: str, pending: str, expected: str) -> None:
    tmp_path /= "other"
    line = re.sub(b'"trade_id":"[^"]*"', b'"trade_id":"%s"', day_path(vault, DAY).read_bytes().splitlines(True)[0])
    for day, trade_id in re.findall(r"(\S+) (\S+)", stored):
        path = day_path(tmp_path, f"2026-11-{day[:2]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"" if trade_id == "-" else line % trade_id.encode()
        with path.with_name(path.name + day[2:]).open("ab") as file:
            file.write(gzip.compress(content) if day[2:] else content)
    audit_file(tmp_path).parent.mkdir(parents=True)
    with audit_file(tmp_path).open("ab") as file:
        for day, trade_id in re.findall(r"(\S+) (\S+)", audited):
            values = (f"{DAY}T00:00:00.000Z", BTC, f"2026-11-{day}", "1", "2", "3", trade_id.strip("-"))
            file.write(orjson.dumps(dict(zip(VERDICT_KEYS, values, strict=True))) + b"\n")
    for reason, days in (("absent", "01 05"), ("pending", pending)):
        for begin, end in re.findall(r"(\S+) (\S+)", days):
            write_gap(tmp_path, reason, (1, 3), (f"2026-11-{begin}T01:00:00.000Z", f"2026-11-{end}T00:00:00.000Z"))
    assert days_to_audit(Vault(tmp_path), BTC) == [f"2026-11-{day}" for day in expected.split()]


# In the background


def audit_file(vault: Path) -> Path:
    """Return where BTC's verdicts are."""
    return vault / "meta" / "okx" / "audit" / f"{BTC}.jsonl"


def recorded(vault: Path) -> list[list[str]]:
    """Return the verdicts on record (day, the three counts, last id), after a look at their form."""
    lines = audit_file(vault).read_bytes().splitlines() if audit_file(vault).is_file() else []
    rows = [orjson.loads(line) for line in lines if line.endswith(b"}") and b"invalid" not in line]
    assert all([*row] == VERDICT_KEYS and row["instId"] == BTC for row in rows), rows
    return [list(row.values())[2:] for row in rows]


def last_id(vault: Path, day: str) -> str:
    """Return the id of a day's last line."""
    return str(orjson.loads(day_path(vault, day).read_bytes().splitlines()[-1])["trade_id"])


def days_on_record(vault: Path) -> list[str]:
    """Return the days with a verdict."""
    return [row[0] for row in recorded(vault)]


Said = Callable[[], list[str]]
Steps = Callable[[Auditor], AsyncIterator[Callable[[], object]]]


@pytest.fixture
def said() -> Iterator[Said]:
    """Return what this process has logged up to now: level, message and day."""
    with structlog.testing.capture_logs() as lines:
        yield lambda: [f"{line['log_level']}: {line['event']} {line.get('day', '')}".strip() for line in lines]


@pytest.fixture
def run_auditor(vault: Path, okx: FakeOKX, said: Said, monkeypatch: pytest.MonkeyPatch) -> Callable[[Steps], list[str]]:
    """Let an Auditor run, wait for each state that the steps yield, and return what it logged."""
    monkeypatch.setattr(trades_exporter, "AUDIT_AFTER_S", 0.2)
    monkeypatch.setattr(trades_exporter, "AUDIT_PATIENCE_S", 3.0)
    locked = Vault(vault)
    locked.lock()

    async def run(steps: Steps) -> None:
        async with open_session() as session:
            auditor = Auditor(locked, Rest(session, [okx.rest_url], Outage()), [BTC, ETH])
            task = asyncio.ensure_future(auditor.run())
            async for reached in steps(auditor):
                await asyncio.to_thread(wait_for, lambda: reached() or task.done())  # noqa: B023 - waited for at once
            await asyncio.to_thread(wait_for, lambda: len(recorded(vault)) == sum("covered" in line for line in said()))
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.wait([task])

    def run_and_log(steps: Steps) -> list[str]:
        before = len(said())
        asyncio.run(run(steps))
        return said()[before:]

    return run_and_log


RunAuditor = Callable[[Steps], list[str]]
AGREES = f"info: Audit: {BTC} {DAY}: 1440 of 1440 covered minutes agree with OKX"
FIRST_AGREES = f"info: Audit: {BTC} {FIRST}: 719 of 719 covered minutes agree with OKX, 721 not covered"


def test_finished_days_are_audited_newest_first_and_once(
    vault: Path, run_auditor: RunAuditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn line of the audit file is cut, an invalid one ignored. An instrument whose day just began waits."""
    day_path(vault, DAY, ETH).parent.mkdir()
    for day in (FIRST, DAY):
        day_path(vault, day, ETH).touch()
    audit_file(vault).parent.mkdir(parents=True)
    audit_file(vault).write_bytes(b'{"invalid":1}\n{"audited_utc":"2026-11-2')
    verdicts = [[DAY, "1440", "0", "0", last_id(vault, DAY)], [FIRST, "719", "0", "721", last_id(vault, FIRST)]]

    async def steps(auditor: Auditor) -> AsyncIterator[Callable[[], object]]:
        with monkeypatch.context() as patch:
            patch.setattr(trades_exporter, "AUDIT_AFTER_S", 60.0)
            auditor.day_began(ETH)
        yield lambda: recorded(vault) == verdicts

    assert run_auditor(steps)[1:] == [AGREES, FIRST_AGREES]
    change_lines(vault, lambda lines: lines[:-1])
    verdicts.append([DAY, "1439", "1", "0", last_id(vault, DAY)])
    log = run_auditor(steps)  # in the next process: only the day that is not as it was audited
    assert log[0] == f"warning: Audit: {BTC} {DAY}: 1439 of 1440 covered minutes agree with OKX"
    assert log[1].startswith(f"warning: Audit: {DAY}T23:59Z stored ")
    assert len(log) == 2


def test_a_day_is_audited_once_the_next_has_begun_or_it_was_filled(vault: Path, run_auditor: RunAuditor) -> None:
    write_gap(vault, "pending", (10, 20), (f"{FIRST}T12:00:00.000Z", f"{DAY}T00:00:03.000Z"))
    last = day_path(vault, LAST)
    content = last.read_bytes()
    last.unlink()

    async def steps(auditor: Auditor) -> AsyncIterator[Callable[[], object]]:
        last.write_bytes(content)
        auditor.day_began(BTC)
        yield lambda: days_on_record(vault) == [DAY]
        Vault(vault).gaps_path(BTC).unlink()
        auditor.day_filled()
        yield lambda: days_on_record(vault) == [DAY, FIRST]

    assert run_auditor(steps) == [AGREES, FIRST_AGREES]


def test_a_file_that_can_not_be_read_is_tried_again_and_delays_no_other(vault: Path, run_auditor: RunAuditor) -> None:
    """Another day, of which nothing is covered, has that as its verdict."""
    write_gap(vault, "horizon", (10, 20), (f"{FIRST}T01:00:00.000Z", f"{FIRST}T23:59:00.000Z"))
    path = day_path(vault, DAY)
    packed = path.rename(path.with_name(path.name + ".gz"))

    async def steps(_: Auditor) -> AsyncIterator[Callable[[], object]]:
        yield lambda: [row[:4] for row in recorded(vault)] == [[FIRST, "0", "0", "1440"]]
        packed.rename(path)
        yield lambda: days_on_record(vault) == [FIRST, DAY]

    log = run_auditor(steps)
    uncovered = f"info: Audit: {BTC} {FIRST}: 0 of 0 covered minutes agree with OKX, 1440 not covered"
    assert log[:2] == [f"warning: Audit postponed {DAY}", uncovered]
    assert log[-1] == AGREES


@pytest.mark.parametrize("fault", ["503", "no rows"])
def test_without_candles_it_is_postponed(
    okx: FakeOKX, said: Said, run_auditor: RunAuditor, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """No answer at all speaks for all days, an empty one for its own."""
    okx.faults.rest, okx.faults.rest_only = {fault: 1.0}, "history-candles"
    monkeypatch.setattr(trades_exporter, "AUDIT_PATIENCE_S", 0.3)
    postponed = [f"warning: Audit postponed {day}" for day in (DAY, FIRST)][: 1 if fault == "503" else 2]

    async def steps(_: Auditor) -> AsyncIterator[Callable[[], object]]:
        yield lambda: said().count(postponed[-1]) == 2
        assert {line for line in said() if "REST request failed" not in line} == set(postponed)
        okx.faults.rest = {}
        monkeypatch.setattr(trades_exporter, "AUDIT_PATIENCE_S", 20.0)
        yield lambda: {AGREES, FIRST_AGREES} <= set(said())

    run_auditor(steps)


def test_an_audit_file_that_can_not_be_used_stops_nothing(vault: Path, said: Said, run_auditor: RunAuditor) -> None:
    folder = audit_file(vault).parent
    folder.symlink_to("other")
    (folder.with_name("ready") / audit_file(vault).name).mkdir(parents=True)

    async def steps(_: Auditor) -> AsyncIterator[Callable[[], object]]:
        yield lambda: said().count(f"warning: Audit postponed {FIRST}") == 2
        folder.with_name("ready").rename(folder.with_name("other"))
        yield lambda: "warning: Audit postponed" in said()
        audit_file(vault).rmdir()
        yield lambda: {*days_on_record(vault)} == {DAY, FIRST}

    log = run_auditor(steps)
    assert {*log[-2:]} == {AGREES, FIRST_AGREES}
    assert {*log[:-2]} == {f"warning: Audit postponed {day}".strip() for day in (DAY, FIRST, "")}


# The running exporter

MIDNIGHT = utc_ms(f"{LAST}T00:00:00Z")
SOON = {"AUDIT_AFTER_S": 0.5, "INSTRUMENTS": [BTC]}


def trade_through_midnight(okx: FakeOKX, capture: Exporter) -> None:
    """Trade for ten minutes up to midnight, one order each 10 s, and once after it; it is later than that then."""
    okx.set_clock(MIDNIGHT + 600_000)
    for ts in range(MIDNIGHT - 600_000, MIDNIGHT, 10_000):
        okx.trade(ts=ts)
    newest = okx.ledger[BTC][-1].trade_id
    capture.wait_until(lambda: last_stored_id(capture.vault) == newest, what="the day stored")
    okx.trade(ts=MIDNIGHT + 5_000)


@pytest.fixture
def market(make_okx: MakeOKX) -> FakeOKX:
    """Return an exchange for BTC where trades are made by hand, shortly before midnight."""
    return make_okx(instruments=[BTC], start=MIDNIGHT - 600_000)


def levels(log: str, text: str) -> list[str]:
    """Return the levels of the lines with this text."""
    return [match[1] for match in re.finditer(rf"\[(\w+) *\].*{re.escape(text)}", log)]


def test_a_running_exporter_audits_a_finished_day(market: FakeOKX, exporter: MakeExporter) -> None:
    capture = exporter(market, settings=SOON)
    capture.start_capture()
    market.instruments[BTC]["maxLmtSz"] = "77"
    trade_through_midnight(market, capture)
    verdict = f"{BTC} {DAY}: 9 of 9 covered minutes agree with OKX, 1431 not covered"
    capture.wait_for_log(verdict)
    assert levels(capture.log, verdict) == ["info"]
    wait_for(lambda: recorded(capture.vault))
    saved = capture.vault / "meta" / "okx" / "instruments" / f"{BTC}.json"
    capture.wait_until(lambda: orjson.loads(saved.read_bytes())["maxLmtSz"] == "77", what="the metadata saved anew")
    assert capture.stop() == 0
    done = capture.run("--audit", DAY)
    assert (done.returncode, done.stdout) == (0, verdict + "\n")
    assert capture.run("--verify").returncode == 0


# Metadata after midnight


def test_a_changed_contract_is_a_warning_with_both_values(market: FakeOKX, exporter: MakeExporter) -> None:
    """And so is an instrument that is not live."""
    capture = exporter(market, settings=SOON)
    market.instruments[BTC]["state"] = "suspend"
    capture.start_capture()
    assert "warning" in levels(capture.log, "suspend")
    market.instruments[BTC]["ctVal"] = "0.025"
    trade_through_midnight(market, capture)
    capture.wait_for_log("0.025")
    line = next(text for text in capture.log.splitlines() if "0.025" in text)
    assert levels(line, "0.025") == ["warning"]
    assert all(text in line for text in (BTC, "ctVal", "0.01", "restart"))
    capture.wait_for_log("covered minutes agree")
    assert capture.stop() == 0
    assert b"0.025" not in b"".join(path.read_bytes() for path in day_files(capture.vault, BTC))
    assert capture.run("--verify").returncode == 0


@pytest.mark.parametrize("row", [{"ctVal": ""}, {"ctType": None}, {"instId": ETH}, {"state": "suspend"}], ids=repr)
def test_metadata_of_no_use_is_a_warning(market: FakeOKX, exporter: MakeExporter, row: dict[str, object]) -> None:
    """What an editor did to the gaps file does not matter either."""
    capture = exporter(market, settings=SOON)
    gaps = capture.vault / "meta" / "okx" / "gaps" / f"{BTC}.jsonl"
    gaps.parent.mkdir(parents=True)
    gaps.write_bytes(b'{}\n[]\n{"reason":"absent","before_id":"x"}\n')
    capture.start_capture()
    saved = capture.vault / "meta" / "okx" / "instruments" / f"{BTC}.json"
    before = saved.read_bytes()
    market.instruments[BTC] |= row
    trade_through_midnight(market, capture)
    wait_for(lambda: "warning" in levels(capture.log, "suspend" if "state" in row else "metadata"))
    capture.wait_for_log("covered minutes agree")
    assert (saved.read_bytes() == before) == ("state" not in row)
    assert capture.stop() == 0
