"""Fixtures: the fake exchange and the real exporter; both are gone after the test, whatever became of it."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fake_okx import REST_LIMITS, FakeOKX
from harness import Exporter

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test failed, for the fixtures that clean up after it."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def make_okx() -> Iterator[Callable[..., FakeOKX]]:
    """Open an exchange: `make_okx(rate=50, start="2026-11-21T23:59:50Z")`, any number of them."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(FakeOKX(**options))


@pytest.fixture
def okx(make_okx: Callable[..., FakeOKX]) -> FakeOKX:
    """Return an exchange where nothing is traded but by hand."""
    return make_okx()


@pytest.fixture
def fast_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exchange allow fifty times as many requests, so that a past takes a second."""
    for path, (limit, largest) in REST_LIMITS.items():
        monkeypatch.setitem(REST_LIMITS, path, (50 * limit, largest))


@pytest.fixture
def exporter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    """Make an exporter, not started yet: `exporter(okx, settings={"STATS_S": 0.5}, args=["--since", "now"])`.

    Each has a folder of its own, or shares the one it is given as `folder`.
    """
    made: list[Exporter] = []

    def make(okx: FakeOKX, folder: Path | None = None, **options: object) -> Exporter:
        made.append(Exporter(okx, folder or tmp_path / f"exporter{len(made)}", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.kill()
        if request.node.stash.get(FAILED, False) and one.console_file.exists():
            print(f"=== {one.folder}\n{one.tail()}")
