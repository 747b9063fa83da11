"""A handful of faults on two workers, and one round whose seed is drawn anew each time.

The long profile is `make faults`; a round that fails here prints the command that does it again.
"""

import random
from collections.abc import Iterator

import pytest
from cluster import Cluster
from faults import FAULTS
from run import Driver

_EVENTS = 4_000
_TRIES = 3
_QUICK = [fault for fault in FAULTS.values() if fault.quick]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A cluster of its own: what is done to it would spoil the other tests."""
    folder = tmp_path_factory.mktemp("faults")
    with Cluster(folder) as cluster:
        driver = Driver(cluster)
        yield driver
        driver.close()


def _round(driver: Driver, seed: int, *names: str) -> None:
    """One round; a fault that did not come to its point gets another: when things happen is not in the seed."""
    left = list(names)
    for again in range(_TRIES):
        found = driver.run(seed + again, [FAULTS[name] for name in left], events=_EVENTS, load_s=6.0, audit=True)
        assert found.outcome == "ok", f"{found.outcome}: {found.told}\nagain: {found.again}"
        report = found.report
        assert report.sent > report.accepted >= _EVENTS
        assert min(report.verdicts.values()) > 0, f"a verdict that no line got was not tested: {report.verdicts}"
        left = [name for name in left if name not in found.struck]
        if not left:
            return
    pytest.fail(f"never struck: {found.missed}")


def test_points_of_the_protocol(driver: Driver) -> None:
    """A worker dies with a block half done, and the engine with an answer nobody heard."""
    _round(driver, 11, "kill-at-inserted", "engine-answer-lost")


def test_months_half_written_and_a_worker_that_dies(driver: Driver) -> None:
    """The engine dies between two months of one block, then a worker at any instant."""
    _round(driver, 12, "engine-killed-some-months", "kill-worker")


def test_a_zombie(driver: Driver) -> None:
    """A worker stands still past its session while another takes over, and goes on."""
    _round(driver, 13, "zombie-at-before_insert")


def test_a_seed_of_the_day(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    """Another seed and fault each time; both are printed."""
    seed = random.SystemRandom().randrange(1 << 30)
    name = random.Random(seed).choice(_QUICK).name
    with capsys.disabled():
        print(f" [faults: seed {seed}, {name}] ", end="")
    found = driver.run(seed, [FAULTS[name]], events=_EVENTS, load_s=6.0, audit=True)
    assert found.outcome == "ok", f"{found.outcome}: {found.told}\nagain: {found.again}"
