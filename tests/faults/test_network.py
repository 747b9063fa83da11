"""One round behind proxies, with a clock that is wrong: `make faults` runs it; all of these faults are in run.py."""

from pathlib import Path

import clock_faults
import pytest
from between import proxied_cluster
from faults import FAULTS
from run import Driver


@pytest.mark.faults
def test_answers_lost_on_the_way_a_network_cut_and_a_clock_set_back(tmp_path: Path) -> None:
    """Facts, rollups, ledger and rejects come out exact."""
    settings = {"FAULTS_CLOCK": str(clock_faults.clock_file(tmp_path))}
    with proxied_cluster(tmp_path, workers=2, settings=settings, worker_argv=clock_faults.clocked) as cluster:
        driver = Driver(cluster)
        names = ["net-insert-answers-lost", "net-broker-cut", "clock-back-far"]
        struck: set[str] = set()
        for seed in (21, 22, 23):  # a fault that does not come to its point gets another round
            left = [FAULTS[name] for name in names if name not in struck]
            found = driver.run(seed, left, events=12_000, load_s=30.0, audit=True)
            assert found.outcome == "ok", f"{found.outcome}: {found.told}\nagain: {found.again}"
            struck.update(found.struck)
            if struck == set(names):
                break
        driver.close()
    assert struck == set(names), found.missed
