"""The gaps file's lines and ranges, and the patience with REST before something goes on record."""

import contextlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from test_sequence import INST_ID, ids_of
from trades_exporter import UNREPAIRED_S, Boundary, Gap, GapsFile, Patience, Vault, cut_from_gaps, merge_gaps, utc

with contextlib.suppress(ImportError):
    import resource  # not on Windows

REASONS = ("start", "absent", "unrepaired", "pending", "horizon")
NOW = "2026-11-21T12:00:00.000Z"
TIMES = st.one_of(st.just(""), st.integers(0, 10**13 - 1).map(lambda ts: utc(f"{ts:013}")))


def gaps_up_to(highest: int) -> st.SearchStrategy[Gap]:
    """Return gaps that hold at least one id, none above `highest`."""
    edges = st.tuples(st.none() | st.integers(0, highest - 1), st.integers(1, highest + 1))
    wide = edges.filter(lambda edge: edge[1] > (0 if edge[0] is None else edge[0] + 1))
    return st.builds(
        lambda reason, edge, *times: Gap(reason, *edge, *times), st.sampled_from(REASONS), wide, TIMES, TIMES
    )


GAPS = st.lists(gaps_up_to(30), max_size=12)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let writes fail, as on a full disk, that would make a file longer than this."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such limit")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def covered(gaps: list[Gap]) -> dict[str, set[int]]:
    """Return the ids that each reason covers."""
    return {reason: {i for gap in gaps if gap.reason == reason for i in ids_of(gap)} for reason in REASONS}


# ---------------------------------------------------------------------------------------------------------- the line


def test_the_line_has_strings_only_and_nothing_where_there_is_nothing() -> None:
    assert Gap("start", None, 5, "", "2026-10-07T10:35:50.776Z").line(INST_ID, NOW) == (
        b'{"recorded_utc":"2026-11-21T12:00:00.000Z","instId":"BTC-USDT-SWAP","reason":"start","after_id":"",'
        b'"before_id":"5","after_utc":"","before_utc":"2026-10-07T10:35:50.776Z"}\n'
    )


@given(gap=gaps_up_to(10**19 - 1))
@settings(deadline=None, derandomize=True)
def test_a_line_says_what_was_put_on_record(gap: Gap) -> None:
    line = gap.line(INST_ID, NOW)
    assert Gap.parse(INST_ID, line) == gap
    assert Gap.parse("ETH-USDT-SWAP", line) is None


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"}\n", b"}"),
        (b"}\n", b"}\r\n"),
        (b'"absent"', b'"id_reset"'),
        (b'"4"', b'"-4"'),
        (b'"4"', b"4"),
        (b'"4"', b'"9"'),
        (b'"9"', b'""'),
        (b'"9"', b'"' + b"9" * 21 + b'"'),
        (b"2026-10-07T10:35:50.776Z", b"2026-10-07 10:35:50.776Z"),
        (b"2026-10-07T10:35:50.776Z", b"1791369350776"),
        (b"2026-10-07T10:35:50.776Z", b"2026-30-07T10:35:50.776Z"),
        (b"2026-10-07T10:35:50.776Z", b"2026-10-07T10:35:70.776Z"),
        (b'{"recorded', b' {"recorded'),
    ],
)
def test_what_is_no_line_of_a_gap_says_nothing(good: bytes, bad: bytes) -> None:
    line = Gap("absent", 4, 9, "", "2026-10-07T10:35:50.776Z").line(INST_ID, NOW)
    assert line.count(good) == 1
    assert Gap.parse(INST_ID, line)
    assert Gap.parse(INST_ID, line.replace(good, bad)) is None


def test_lines_that_say_nothing_stay_when_the_file_is_replaced(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.lock()
    path = vault.with_folder(vault.gaps_path(INST_ID))
    pending = Gap("pending", 10, 50, "", NOW)
    path.write_bytes(b"a \0 note\n" + pending.line(INST_ID, NOW))
    gaps = GapsFile(vault, INST_ID)
    gaps.recover()
    gaps.clear({"pending"}, Boundary(11, ""), Boundary(20, NOW))
    assert path.read_bytes().startswith(b"a \0 note\n")
    assert vault.gaps(INST_ID) == [pending._replace(after_id=20, after_utc=NOW)]


def test_what_is_put_on_record_after_a_write_that_failed_halfway_stays_on_record(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.lock()
    gaps, later = GapsFile(vault, INST_ID), Gap("absent", 4, 9, "", "")
    with file_size_limit(100), pytest.raises(OSError, match="too large"):  # history writes, say, and recovers in 1 s
        gaps.add([Gap("unrepaired", 1, 3, "", "")])
    gaps.add([later])  # live capture
    gaps.recover()
    assert vault.gaps(INST_ID) == [later]


# -------------------------------------------------------------------------------------------------- ranges on record


@given(gaps=GAPS, reasons=st.sets(st.sampled_from(REASONS)), low=st.integers(0, 32), width=st.integers(0, 32))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_what_is_cut_out_is_gone_from_these_reasons_and_nothing_else(
    gaps: list[Gap], reasons: set[str], low: int, width: int
) -> None:
    ids = range(low, low + width + 1)
    before, left = covered(gaps), cut_from_gaps(gaps, reasons, Boundary(low, NOW), Boundary(ids[-1], NOW))
    assert covered(left) == {name: ids_ - set(ids) if name in reasons else ids_ for name, ids_ in before.items()}
    assert all(len(ids_of(gap)) for gap in left)
    begins = {(gap.after_id, gap.after_utc) for gap in gaps} | {(ids[-1], NOW)}
    ends = {(gap.before_id, gap.before_utc) for gap in gaps} | {(low, NOW)}
    assert all((gap.after_id, gap.after_utc) in begins and (gap.before_id, gap.before_utc) in ends for gap in left)


@given(gaps=GAPS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_merged_gaps_cover_the_same_ids_each_reason_once_and_in_order(gaps: list[Gap]) -> None:
    merged = merge_gaps(gaps)
    assert covered(merged) == covered(gaps)
    assert [gap.first for gap in merged] == sorted(gap.first for gap in merged)
    for reason in REASONS[1:]:
        ranges = [ids_of(gap) for gap in merged if gap.reason == reason]
        may_touch = reason == "pending"
        assert all(one.stop < other.start + may_touch for one, other in pairwise(ranges)), "with ids between them"
    begins = [{gap.before_id for gap in some if gap.reason == "start"} for some in (gaps, merged)]
    assert begins[0] == begins[1], "each says where a record begins"
    assert merge_gaps(merged) == merged
    ends = {(gap.reason, gap.after_id, gap.after_utc) for gap in gaps}
    assert all((gap.reason, gap.after_id, gap.after_utc) in ends for gap in merged)
    ends = {(gap.reason, gap.before_id, gap.before_utc) for gap in gaps}
    assert all((gap.reason, gap.before_id, gap.before_utc) in ends for gap in merged)


# ------------------------------------------------------------------------------------------------- patience with REST

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "end", "help", "give up", "probe fails", "probe works"]),
        st.sampled_from(["BTC", "ETH"]),
        st.sampled_from([0.0, 1.0, 600.0, 1799.0, 1800.0, 3600.0]),
    ),
    max_size=30,
)


SECOND_OUTAGE = ["begin", "give up", "probe fails", "probe works", "give up"]


@given(steps=STEPS)
@example(steps=[(what, "BTC", 1800.0) for what in SECOND_OUTAGE])
@settings(max_examples=400, deadline=None, derandomize=True)
def test_rest_is_given_up_after_half_an_hour_without_help_and_trusted_again_after_a_probe(
    steps: list[tuple[str, str, float]],
) -> None:
    """Held against the contract: awake, for all instruments together; then new gaps wait for a failed probe only."""
    patience, now = Patience(), 0.0
    repairing: dict[str, float] = {}  # since when
    waits_since = probe_began = 0.0  # for help; when the present or next probe began
    failed_probes: list[float] = []  # when those of this outage began
    given_up = False
    for what, inst_id, passes in steps:
        now += passes
        if what == "begin":
            waits_since = waits_since if repairing else now
            repairing.setdefault(inst_id, now)
            patience.begin(inst_id, now)
        elif what == "end":
            repairing.pop(inst_id, None)
            patience.end(inst_id)
        elif what == "help" and repairing:
            waits_since = now
            patience.helped(now)
        elif what == "give up" and repairing and (given_up or now >= waits_since + UNREPAIRED_S):
            assert patience.give_up() is not given_up, "the first to give up starts the probe"
            probe_began, given_up = (probe_began if given_up else now), True
        elif what == "probe fails" and given_up:
            patience.probe_failed(probe_began)
            failed_probes.append(probe_began)
            probe_began = now
        elif what == "probe works" and given_up:
            patience.trust_again(now)
            given_up, waits_since = False, now
            failed_probes.clear()
        assert patience.repairing is bool(repairing)
        assert patience.given_up is given_up
        for found_at in repairing.values():
            assert patience.probe_failed_since(found_at) is any(began >= found_at for began in failed_probes)
        if repairing and not given_up:
            assert patience.left(now) == max(0.0, UNREPAIRED_S - (now - waits_since))


def test_half_an_hour_is_what_it_takes() -> None:
    patience = Patience()
    patience.begin("BTC", 100.0)
    patience.begin("ETH", 1000.0)
    assert (patience.left(100.0), patience.left(1899.0), patience.left(1900.0)) == (1800.0, 1.0, 0.0)
    patience.helped(1899.0)
    assert patience.left(1900.0) == 1799.0
