"""Faults of the store itself: a view that fails for a while, a store that is put back to an older state, away long."""

import random
import re
import shutil
import time
from typing import Final

import httpx
from cluster import PARTITIONS, Cluster, ClusterError, until
from faults import Fault, NotStruck, add

_ROLLUPS: Final = (
    "event_ids",
    "usage_client_day",
    "usage_client_edge_15m",
    "usage_15m",
    "usage_dimension_15m",
    "events_client_day",
    "events_15m",
    "events_dimension_15m",
)
_GROUP_EMPTY_S: Final = 40.0


def _ask(cluster: Cluster, sql: str) -> str:
    """One statement; waits while the engine is away."""

    def ask() -> str | None:
        try:
            answer = httpx.post(cluster.clickhouse, content=sql.encode(), timeout=30)
        except httpx.TransportError:
            return None
        if not answer.is_success:
            raise ClusterError(f"{sql}: {answer.text[:500]}")
        return answer.text or " "

    return str(until(ask, seconds=60, why="the engine takes a statement"))


def _view_fails(cluster: Cluster, draw: random.Random) -> None:
    """What one view writes is refused by its target: facts are there, and this rollup is not."""
    table = draw.choice(_ROLLUPS)
    _ask(cluster, f"ALTER TABLE tally.{table} ADD CONSTRAINT broken CHECK 0")
    try:
        time.sleep(3 + draw.random() * 10)
    finally:
        _ask(cluster, f"ALTER TABLE tally.{table} DROP CONSTRAINT broken")


def _view_throws(cluster: Cluster, draw: random.Random) -> None:
    """The view's own statement throws, as after a change that was not tried; then it is put back."""
    table = draw.choice(_ROLLUPS[1:])
    sql = f"SELECT as_select FROM system.tables WHERE database = 'tally' AND name = 'ingest_to_{table}' FORMAT RawBLOB"
    select = _ask(cluster, sql).strip()
    broken = re.sub(r"FROM (tally\.ingest\w*)", r"FROM (SELECT * FROM \1 WHERE throwIf(1) = 0)", select, count=1)
    if broken == select:
        raise NotStruck(f"the view of {table} does not read from ingest: {select[:200]}")
    _ask(cluster, f"ALTER TABLE tally.ingest_to_{table} MODIFY QUERY {broken}")
    try:
        time.sleep(3 + draw.random() * 10)
    finally:
        _ask(cluster, f"ALTER TABLE tally.ingest_to_{table} MODIFY QUERY {select}")


def _put_back(cluster: Cluster, draw: random.Random) -> None:
    """A copy of the store from before takes its place while the offsets stay: workers must refuse, say the way out, and
    the way out must lead on."""
    workers = cluster.running_workers
    copy, folder = cluster.folder / "clickhouse-copy", cluster.folder / "clickhouse"
    shutil.rmtree(copy, ignore_errors=True)
    _stop(cluster, workers)
    cluster.stop("clickhouse")
    shutil.copytree(folder, copy, symlinks=True)
    before = cluster.counted()
    cluster.start("clickhouse", *workers)
    try:
        until(
            lambda: sum(cluster.counted().values()) > sum(before.values()) + PARTITIONS,
            seconds=30,
            why="the workers have counted more",
        )
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    time.sleep(1 + draw.random() * 4)
    _stop(cluster, workers)
    cluster.stop("clickhouse")
    shutil.rmtree(folder)
    copy.rename(folder)
    cluster.start("clickhouse")
    cluster.start(*workers, ready_s=0)

    def reasons() -> str:
        return " ".join(reason for name in workers for reason in cluster.readiness(name)["reasons"])

    until(lambda: "put back to an older state" in reasons(), seconds=120, why="a partition is stopped")
    told = reasons()
    if "tally offsets reset --partition" not in told:
        raise ClusterError(f"the way out is not told: {told}")
    _stop(cluster, workers)
    _reset_to_ledger(cluster)
    cluster.start(*workers)


def _stop(cluster: Cluster, workers: list[str]) -> None:
    for name in workers:
        cluster.stop(name)


def _reset_to_ledger(cluster: Cluster) -> None:
    """The way out; refused while static members are in the group, until their session has run out."""

    def done() -> bool:
        return "to the ledger at" in cluster.tally("offsets", "reset", "--all", "--to", "ledger", codes=(0, 2))

    until(done, seconds=_GROUP_EMPTY_S, why="the group is empty", step_s=1.0)


def _killed_with_two_at_once(cluster: Cluster, draw: random.Random) -> None:
    """A worker stands still in an insert, the next one sends the same block, both go on, and the engine is killed."""
    first = draw.choice(cluster.running_workers)
    for _ in range(3):
        cluster.sigstop(first)
        time.sleep(7.0 + draw.random())
        cluster.cont(first)
        time.sleep(draw.random() * 0.2)
        cluster.kill("clickhouse")
        cluster.await_ready("clickhouse")


add(Fault("store-view-refused", "one view fails for a while", _view_fails, quick=True))
add(Fault("store-view-throws", "one view throws for a while, then is put back", _view_throws))
add(Fault("store-put-back", "store put back to an older backup, offsets stay", _put_back))
add(Fault("store-two-at-once-killed", "the same block sent by two, and the engine killed", _killed_with_two_at_once))
