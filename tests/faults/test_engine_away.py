"""The engine is away for long while events come in: memory stays bounded, the worker tells the truth, then catches up.

The quick form takes 40 s; FAULTS_AWAY_S=600 is the long one (ten minutes; minutes more to run).
"""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Final

import psutil
import pytest
from cluster import Cluster, until
from load import Load
from oracle import Oracle
from run import _account

_AWAY_S: Final = float(os.environ.get("FAULTS_AWAY_S", "40"))
_EVENTS_A_SECOND: Final = 600
_LIMITS: Final = {"TALLY_BLOCK_ROWS_MAX": "5000", "TALLY_BLOCK_BYTES_MAX": str(1 << 20)}
_RSS_MORE_MAX: Final = 400 << 20  # two fetched blocks' worth a partition, what the clients buffer, and the allocator's


class _Watch(threading.Thread):
    """Each second: the worker's memory, and what its /readyz says."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(name="watch")
        self._cluster = cluster
        self._name = name
        self._process = psutil.Process(cluster.pid(name))
        self._over = threading.Event()
        self.rss: list[int] = []
        self.told: list[tuple[bool, str]] = []

    def run(self) -> None:
        while not self._over.wait(1.0):
            self.rss.append(self._process.memory_info().rss)
            found = self._cluster.readiness(self._name)
            self.told.append((bool(found["ready"]), " ".join(found["reasons"])))

    def end(self) -> None:
        """No more looks."""
        self._over.set()
        self.join()


@pytest.mark.faults
def test_the_worker_stays_small_and_truthful_while_the_engine_is_away(tmp_path: Path) -> None:
    """Ready, then not ready with the partitions' names and their lag, then ready again; never restarted."""
    events = int(_EVENTS_A_SECOND * (_AWAY_S + 10))
    with Cluster(tmp_path, workers=1, settings=_LIMITS) as cluster:
        account = "away"
        key = asyncio.run(_account(cluster, account))
        cluster.await_all_ready()
        starts = cluster.await_counted(seconds=120)
        load = Load(tmp_path, seed=5, account=account, key=key, events=events, seconds=_AWAY_S + 8, at=cluster)
        until(lambda: cluster.metrics("worker-1").get("tally_accepted_total", 0) > 0, seconds=120, why="it counts")
        watch = _Watch(cluster, "worker-1")
        before = psutil.Process(cluster.pid("worker-1")).memory_info().rss
        watch.start()
        try:
            cluster.stop("clickhouse")
            time.sleep(_AWAY_S)
            until(lambda: not watch.told[-1][0], seconds=60, why="the worker says that it is not ready")
            why = watch.told[-1][1]
            cluster.start("clickhouse")
            journal = load.join(_AWAY_S + 300)
            ends = cluster.await_counted(seconds=_AWAY_S + 300)
            until(lambda: cluster.ready("worker-1"), seconds=60, why="the worker is ready again")
        finally:
            watch.end()
            load.close()
        curve = [rss >> 20 for rss in watch.rss]
        (tmp_path / "rss.json").write_text(json.dumps({"mib": curve, "told": watch.told}))
        print(f"away {_AWAY_S:.0f} s, {events} events, RSS in MiB each second: {curve}")
        assert "has not moved" in why
        assert "records to count" in why
        assert watch.told[0][0], "ready before anything was missed"
        assert cluster.deaths("worker-1") == []
        assert max(watch.rss) - before < _RSS_MORE_MAX
        oracle = Oracle(cluster)
        report = oracle.check(5, account, events, journal, starts, ends)
        oracle.audit(report)
        oracle.close()
        assert report.clean, report.findings
