"""The harness sees what it is there to see: five bugs, each planted in the workers' code, each found by the oracle."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster
from faults import FAULTS
from planted import BUGS
from run import Driver

_PLANTED = Path(__file__).with_name("planted.py")


@dataclass(frozen=True)
class Planted:
    """A cluster whose workers have the bug that the file names when they start."""

    cluster: Cluster
    driver: Driver
    bug: Path

    def plant(self, name: str) -> None:
        """Starts all workers anew with this bug, or with none."""
        self.bug.write_text(name)
        for worker in self.cluster.running_workers:
            self.cluster.kill(worker)
        self.cluster.await_all_ready()


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    """A cluster of its own for each bug: a worker without it finds what a bug has left, and stops, as it should."""
    bug = tmp_path / "bug"
    bug.write_text("")
    # a lease that outlasts a restart: past it every block is looked up in the store first, which hides half of the bugs
    settings = {"TALLY_LEASE_S": "60", "TALLY_DEADLINE_S": "20"}
    with Cluster(
        tmp_path, settings=settings, worker_argv=lambda _: [sys.executable, str(_PLANTED), str(bug)]
    ) as cluster:
        driver = Driver(cluster)
        yield Planted(cluster, driver, bug)
        driver.close()


#: What provokes the bug, and what then shows.
_PROVOKED = {
    "seen-before-insert": ("workers-die-while-store-still", "lost"),
    "no-insert-dedup": ("kill-at-inserted", "doubled"),
    "wrong-block-edge": ("kill-at-intent_committed", "lost"),
    "end-before-insert": ("engine-killed-insert-cut", "lost"),
    "stale-generation": ("zombie-at-before_intent", "doubled"),
}


def test_every_bug_is_provoked() -> None:
    """The two tables name the same bugs."""
    assert set(_PROVOKED) == set(BUGS)


@pytest.mark.faults
@pytest.mark.parametrize("bug", _PROVOKED)
def test_a_planted_bug_is_found(planted: Planted, bug: str) -> None:
    """The round fails, by lost or doubled events."""
    fault, shows = _PROVOKED[bug]
    planted.plant(bug)
    found = planted.driver.run(21, [FAULTS[fault]], events=3_000, load_s=5.0, audit=False)
    assert found.struck == [fault], found.missed
    assert found.outcome == "failed", found.told
    assert getattr(found.report, shows) > 0, found.told


@pytest.mark.faults
def test_without_a_bug_the_same_rounds_are_clean(planted: Planted) -> None:
    """What found the bugs finds nothing else: the launcher by itself changes nothing."""
    planted.plant("")
    faults = [FAULTS[fault] for fault, _ in _PROVOKED.values()]
    found = planted.driver.run(22, faults, events=3_000, load_s=20.0, audit=False)
    assert found.outcome == "ok", found.told
