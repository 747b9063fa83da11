"""The faults: what is done to a cluster while it counts, each with the row of the crash table that it stands for.

A fault blocks until it has struck and has undone what would not heal by itself (a part that is held down is started
again, one that stands still goes on). It draws everything that is not in its name from the round's own randomness.
Another module adds its faults with `add`.
"""

import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from cluster import Cluster, ClusterError, until
from store_contents import TARGETS
from watch import PartWatch

from pipeline.fail_points import POINTS, REPAIR_POINTS

#: Longer than the session time-out of the cluster's workers: by then the group has gone on without who is silent.
SILENT_S: Final = 8.0
_STRIKE_S: Final = 30.0
_AT_ONCE_S: Final = 20.0
_FACTS: Final = "events"


class NotStruck(Exception):  # noqa: N818
    """The fault never came to its point: this round has not tested it."""


Inject = Callable[[Cluster, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """One fault. `row`: the row of the crash table; `quick`: it takes a few seconds only; `often`: fail points (or a
    name for a cut of the engine's) that it strikes at little cost, so that a pass through all faults repeats it."""

    name: str
    row: str
    inject: Inject
    quick: bool = False
    often: tuple[str, ...] = ()


FAULTS: dict[str, Fault] = {}


def add(fault: Fault) -> None:
    """Puts a fault into the registry. Raises ValueError for a name that is taken."""
    if fault.name in FAULTS:
        raise ValueError(f"there are two faults {fault.name}")
    FAULTS[fault.name] = fault


def fault(name: str, row: str, *, quick: bool = False, often: tuple[str, ...] = ()) -> Callable[[Inject], Inject]:
    """The same as a decorator of `inject`."""

    def note(inject: Inject) -> Inject:
        add(Fault(name, row, inject, quick, often))
        return inject

    return note


# ------------------------------------------------------------------------------------------------ fail points


def strike_at(cluster: Cluster, draw: random.Random, setting: str, seconds: float = _STRIKE_S) -> str:
    """Arms the fail point in all workers, waits until one was struck, and disarms the others; who it was.

    Raises NotStruck."""
    before = {name: len(cluster.deaths(name)) for name in cluster.running_workers}
    names = draw.sample(list(before), len(before))
    for name in names:
        cluster.arm(name, setting)

    try:
        found = until(
            partial(_struck, cluster, before), seconds=seconds, why=f"a worker comes by {setting}", step_s=0.01
        )
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    finally:
        for name in names:
            cluster.disarm(name)
    cluster.hits[setting.partition(":")[0]] += 1
    return found


def _kill_at(point: str, delay_ms: tuple[int, int] | None = None) -> Inject:
    def inject(cluster: Cluster, draw: random.Random) -> None:
        action = "kill" if delay_ms is None else f"kill+{draw.randint(*delay_ms)}"
        strike_at(cluster, draw, f"{point}:{_times(point, draw)}:{action}")

    return inject


def _times(point: str, draw: random.Random) -> int:
    """The how-manieth block: not all blocks have rejects or forwards, and a round has few that do."""
    return 1 if "reject" in point or "forward" in point else draw.randint(1, 3)


def _zombie_at(point: str, delay_ms: tuple[int, int] | None = None) -> Inject:
    def inject(cluster: Cluster, draw: random.Random) -> None:
        action = "stop" if delay_ms is None else f"stop+{draw.randint(*delay_ms)}"
        zombie = strike_at(cluster, draw, f"{point}:{_times(point, draw)}:{action}")
        time.sleep(SILENT_S + draw.random() * 6)  # another takes over, and is under way or past its lease
        cluster.cont(zombie)

    return inject


_KILLED_AT: Final = {
    "before_intent": "before anything is stated",
    "intent_committed": "intent committed, insert not sent",
    "table_written": "table written, changelog not sent",
    "ledger_written": "ledger written, rows not",
    "before_insert": "intent committed, insert not sent",
    "inserted": "inserted, answer known to nobody",
    "before_rejects": "reject not sent",
    "rejects_acknowledged": "reject sent, table of rejects not written",
    "before_changelog": "table written, changelog not sent",
    "changelog_acknowledged": "changelog sent, end not committed",
    "before_end": "inserted, next commit not done",
    "end_committed": "commit done, answer known to nobody",
    "before_forwards": "forward not sent",
    "forwards_acknowledged": "forward sent, its block not ended",
    "filter_saved": "ids past the window: in the filter, not out of the table",
    "expired_deleted": "ids past the window: out of the table, still in the changelog",
    "changelog_trimmed": "ids past the window: changelog let go",
}
_UNDER_WAY: Final = {
    "before_intent": ("intent committed, acknowledgement lost", (0, 6)),
    "before_insert": ("insert sent, answer lost with the worker", (0, 60)),
    "before_rejects": ("reject sent, not acknowledged", (1, 12)),
    "before_changelog": ("changelog acknowledgement missing", (1, 12)),
    "before_forwards": ("forward sent, not acknowledged", (1, 12)),
    "before_end": ("commit done, answer lost", (0, 6)),
    "end_committed": ("before the table's write", (0, 3)),
}
_QUICK: Final = {"inserted", "before_end", "table_written"}

for _point, _row in _KILLED_AT.items():
    add(Fault(f"kill-at-{_point}", _row, _kill_at(_point), _point in _QUICK, (_point,)))
for _point, (_row, _delay) in _UNDER_WAY.items():
    add(Fault(f"kill-after-{_point}", _row, _kill_at(_point, _delay), often=(_point,)))
for _point in POINTS[POINTS.index("intent_committed") :]:
    add(Fault(f"zombie-at-{_point}", "zombie after the intent", _zombie_at(_point)))
add(Fault("zombie-at-before_intent", "rebalance before the intent", _zombie_at("before_intent")))
add(Fault("zombie-in-insert", "zombie after the intent", _zombie_at("before_insert", (1, 60))))


@fault("kill-at-points-at-once", "all workers killed, each at a point of its own")
def _kill_at_points_at_once(cluster: Cluster, draw: random.Random) -> None:
    """Points that were struck least so far are drawn most."""
    names = cluster.running_workers
    before = {name: len(cluster.deaths(name)) for name in names}
    points = [*_KILLED_AT]
    armed = {}
    for name in names:
        armed[name] = draw.choices(points, [1 / (1 + cluster.hits[point]) ** 4 for point in points])[0]
        points.remove(armed[name])
        cluster.arm(name, f"{armed[name]}:{_times(armed[name], draw)}:kill")
    end = time.monotonic() + _AT_ONCE_S
    left = set(names)
    while left and time.monotonic() < end:
        time.sleep(0.02)
        for name in [name for name in left if len(cluster.deaths(name)) > before[name]]:
            cluster.disarm(name)  # the one that is started in its place
            cluster.hits[armed[name]] += 1
            left.remove(name)
    for name in left:
        cluster.disarm(name)
    if len(left) == len(names):
        raise NotStruck(f"no worker came by its point of {armed}")


def _rebalance_at(point: str) -> Inject:
    """A worker stands still at the point while another one joins, and goes on while the group is moving."""

    def inject(cluster: Cluster, draw: random.Random) -> None:
        stopped = strike_at(cluster, draw, f"{point}:{draw.randint(1, 3)}:stop")
        with _third_worker(cluster):
            time.sleep(4 + draw.random())
            cluster.cont(stopped)
            _await_all_awake(cluster)

    return inject


def _await_all_awake(cluster: Cluster) -> None:
    """All parts are ready. Another worker may have come by the same point before it was disarmed."""

    def awake() -> bool:
        for name in cluster.running_workers:
            if cluster.standing_still(name):
                cluster.cont(name)
        return all(cluster.ready(name) for name in cluster.parts)

    until(awake, seconds=180, why="all parts are ready")


add(Fault("rebalance-before-intent", "rebalance before the intent", _rebalance_at("before_intent")))
add(Fault("rebalance-after-intent", "rebalance after the intent", _rebalance_at("intent_committed")))
add(Fault("rebalance-after-insert", "rebalance after the intent", _rebalance_at("inserted")))


class _third_worker:  # noqa: N801 - used as a context
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._name = f"worker-{cluster.workers + 1}"

    def __enter__(self) -> str:
        self._cluster.start(self._name, ready_s=0)
        return self._name

    def __exit__(self, *_: object) -> None:
        self._cluster.stop(self._name)


@fault("changelog-without-intent", "changelog sent, intent not committed: impossible, the nearest is its end")
def _changelog_without_intent(cluster: Cluster, draw: random.Random) -> None:
    """The changelog is sent only after its block's intent: what comes nearest is a changelog whose block's end, and
    with it the next block's intent, is never committed, while the worker's disk is lost as well."""
    name = strike_at(cluster, draw, f"changelog_acknowledged:{draw.randint(1, 3)}:kill")
    _lose_disk(cluster, name)


# ------------------------------------------------------------------------------------------- engine, while inserting


def _part_folders(cluster: Cluster) -> dict[str, Path]:
    names = ", ".join(f"'{table}'" for table in TARGETS)
    sql = f"SELECT name, data_paths[1] FROM system.tables WHERE database = 'tally' AND name IN ({names}) FORMAT TSV"

    def ask() -> str:
        try:
            return httpx.post(cluster.clickhouse, content=sql, timeout=10).text
        except httpx.TransportError:
            return ""

    rows = [row.split("\t") for row in until(ask, seconds=60, why="the engine tells its folders").splitlines()]
    return {name: Path(folder) for name, folder in rows}


def _begun(draw: random.Random) -> Callable[[str, bool, str], bool]:
    left = [draw.randint(1, 25)]

    def told(table: str, begun: bool, name: str) -> bool:
        left[0] -= begun
        return begun and left[0] <= 0

    return told


def _months(draw: random.Random) -> Callable[[str, bool, str], bool]:
    left = [draw.randint(1, 2)]

    def told(table: str, begun: bool, name: str) -> bool:
        left[0] -= table == _FACTS and not begun
        return left[0] <= 0

    return told


def _a_view(draw: random.Random) -> Callable[[str, bool, str], bool]:
    facts: list[str] = []
    target = draw.choice([table for table in TARGETS if table != _FACTS])

    def told(table: str, begun: bool, name: str) -> bool:
        if table == _FACTS and not begun:
            facts.append(name)
        return table == target and bool(facts)

    return told


_CUT: Final = {
    "insert-cut": ("insert cut in the middle", _begun),
    "some-months": ("some months' parts written, others not", _months),
    "a-view-missing": ("facts written, a view not", _a_view),
}


def _kill_engine_at(cut: str, down_s: float = 0.0) -> Inject:
    told = _CUT[cut][1]

    def inject(cluster: Cluster, draw: random.Random) -> None:
        with PartWatch(_part_folders(cluster)) as watch:
            struck = watch.strike_when(told(draw), lambda: cluster.kill("clickhouse", down=bool(down_s)), _STRIKE_S)
        if not struck:
            raise NotStruck("no part was seen in the engine's folders")
        cluster.hits[cut] += 1
        if down_s:
            time.sleep(down_s)
            cluster.start("clickhouse")

    return inject


for _cut, (_row, _) in _CUT.items():
    _away = _kill_engine_at(_cut, SILENT_S + 2)
    add(Fault(f"engine-killed-{_cut}", _row, _kill_engine_at(_cut), _cut == "some-months", (_cut,)))
    add(Fault(f"engine-away-{_cut}", f"{_row}, then away past the lease", _away))


@fault("engine-answer-lost", "inserted, answer lost", quick=True, often=("answer-lost",))
def _answer_lost(cluster: Cluster, draw: random.Random) -> None:
    before = len(cluster.deaths("clickhouse"))
    cluster.arm_engine("answer-lost")
    try:
        until(lambda: len(cluster.deaths("clickhouse")) > before, seconds=_STRIKE_S, why="the engine inserts a block")
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    finally:
        cluster.engine_arm.unlink(missing_ok=True)
    cluster.hits["answer-lost"] += 1


@fault("engine-answers-wrong", "inserted, answered with an error")
def _answers_wrong(cluster: Cluster, draw: random.Random) -> None:
    cluster.arm_engine(draw.choice(("refuse", "slow")))
    try:
        until(lambda: not cluster.engine_arm.exists(), seconds=_STRIKE_S, why="the engine inserts a block")
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    finally:
        cluster.engine_arm.unlink(missing_ok=True)


def _repair_killed(cluster: Cluster, draw: random.Random, *, point: str) -> None:
    """Some tables have the block, the engine is away past the lease: what is missing is added, and that is cut."""
    for name in cluster.running_workers:
        cluster.arm(name, f"{point}:1:{draw.choice(('kill', 'stop'))}")
    before = {name: len(cluster.deaths(name)) for name in cluster.running_workers}
    try:
        _kill_engine_at("some-months", SILENT_S)(cluster, draw)
        name = until(partial(_struck, cluster, before), seconds=45, why=f"a worker comes by {point}")
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    finally:
        for worker in cluster.running_workers:
            cluster.disarm(worker)
    cluster.hits[point] += 1
    if cluster.standing_still(name):
        time.sleep(SILENT_S + draw.random() * 10)
        cluster.cont(name)
    for worker in cluster.running_workers:
        cluster.cont(worker)


def _struck(cluster: Cluster, before: Mapping[str, int]) -> str:
    return next((n for n in before if len(cluster.deaths(n)) > before[n] or cluster.standing_still(n)), "")


for _point in REPAIR_POINTS:
    _row = "doubt after the lease, killed while repairing"
    add(Fault(f"repair-killed-at-{_point}", _row, partial(_repair_killed, point=_point)))


def _killed_in_turn(cut: str, *points: str) -> Inject:
    """One absence of the engine leaves several blocks in doubt: whoever mends them is killed, and who does it next."""

    def inject(cluster: Cluster, draw: random.Random) -> None:
        _kill_engine_at(cut, SILENT_S)(cluster, draw)
        for point in points:
            with suppress(NotStruck):
                strike_at(cluster, draw, f"{point}:1:kill")

    return inject


for _name, _cut, _points in (
    ("repair", "some-months", ("before_renewal", "before_repair", "repaired")),
    ("renewal", "insert-cut", ("renewed", "before_renewal", "renewed")),
):
    _row = "doubt after the lease, killed at one step after the other"
    add(Fault(f"{_name}-killed-in-turn", _row, _killed_in_turn(_cut, *_points), often=_points[-2:]))


# ------------------------------------------------------------------------------------- parts that die or stand still


def _kill_parts(*kinds: str) -> Inject:
    def inject(cluster: Cluster, draw: random.Random) -> None:
        for _ in range(draw.randint(1, 2)):
            time.sleep(draw.random() * 2)
            for kind in kinds:
                cluster.kill(draw.choice(cluster.running_workers) if kind == "worker" else kind)
            for name in cluster.parts:
                cluster.await_ready(name, seconds=180)

    return inject


_TOGETHER: Final[Sequence[tuple[str, ...]]] = (
    ("worker",),
    ("clickhouse",),
    ("kafka",),
    ("api",),
    ("worker", "clickhouse"),
    ("worker", "kafka"),
    ("kafka", "clickhouse"),
    ("kafka", "clickhouse", "api", "worker"),
)
for _parts in _TOGETHER:
    add(Fault(f"kill-{'-'.join(_parts)}", "at any instant", _kill_parts(*_parts), _parts == ("worker",)))


@fault("kill-all-workers", "at any instant, all workers")
def _kill_all_workers(cluster: Cluster, draw: random.Random) -> None:
    for name in cluster.running_workers:
        cluster.kill(name)


@fault("workers-die-while-store-still", "changelog sent, insert not sent")
def _workers_die_while_store_still(cluster: Cluster, draw: random.Random) -> None:
    """Blocks are stated and their changelog is sent, but nothing of them can be stored when all workers die."""
    cluster.sigstop("clickhouse")
    time.sleep(3 + draw.random() * 2)
    for name in cluster.running_workers:
        cluster.kill(name)
    cluster.cont("clickhouse")


@fault("broker-restart", "broker restarted in order")
def _broker_restart(cluster: Cluster, draw: random.Random) -> None:
    cluster.stop("kafka")
    time.sleep(draw.random() * 4)
    cluster.start("kafka")


@fault("broker-stands-still", "broker away longer than the session")
def _broker_stands_still(cluster: Cluster, draw: random.Random) -> None:
    _still(cluster, "kafka", SILENT_S + draw.random() * 4)


@fault("engine-stands-still", "store away longer than the lease")
def _engine_stands_still(cluster: Cluster, draw: random.Random) -> None:
    _still(cluster, "clickhouse", SILENT_S + draw.random() * 6)


@fault("engine-stopped", "store away longer than the session")
def _engine_stopped(cluster: Cluster, draw: random.Random) -> None:
    cluster.stop("clickhouse")
    time.sleep(SILENT_S + draw.random() * 8)
    cluster.start("clickhouse")


@fault("worker-stands-still", "zombie at any instant", quick=True)
def _worker_stands_still(cluster: Cluster, draw: random.Random) -> None:
    time.sleep(draw.random())
    _still(cluster, draw.choice(cluster.running_workers), SILENT_S + draw.random() * 6)


@fault("workers-stall-in-turn", "zombies one after another")
def _workers_stall_in_turn(cluster: Cluster, draw: random.Random) -> None:
    """The second stands still before the first goes on: nobody is there to take over but a zombie."""
    first, second = draw.sample(cluster.running_workers, 2)
    cluster.sigstop(first)
    time.sleep(SILENT_S - 3)
    cluster.sigstop(second)
    time.sleep(3 + draw.random() * 3)
    cluster.cont(first)
    time.sleep(2)
    cluster.cont(second)


def _still(cluster: Cluster, name: str, seconds: float) -> None:
    cluster.sigstop(name)
    time.sleep(seconds)
    cluster.cont(name)


@fault("rolling-restart", "rolling restart")
def _rolling_restart(cluster: Cluster, draw: random.Random) -> None:
    for name in (*cluster.running_workers, "api"):
        cluster.stop(name)
        cluster.start(name)


@fault("rebalance-storm", "rebalances one after another")
def _rebalance_storm(cluster: Cluster, draw: random.Random) -> None:
    """A third worker joins and leaves, in order and by dying, while the others come and go as well."""
    name = f"worker-{cluster.workers + 1}"
    for _ in range(3):
        cluster.start(name, ready_s=0)
        time.sleep(3 + draw.random() * 3)
        if draw.random() < 0.5:
            cluster.kill(draw.choice(cluster.running_workers))
        if draw.random() < 0.5:
            cluster.kill(name, down=True)
        else:
            cluster.stop(name)


# ------------------------------------------------------------------------------------------------ the worker's disk


def _lose_disk(cluster: Cluster, name: str) -> None:
    cluster.kill(name, down=True)
    shutil.rmtree(cluster.worker_dir(name), ignore_errors=True)
    cluster.start(name)


@fault("disk-deleted", "local table lost")
def _disk_deleted(cluster: Cluster, draw: random.Random) -> None:
    _lose_disk(cluster, draw.choice(cluster.running_workers))


@fault("disk-deleted-at-point", "local table lost while a block is under way")
def _disk_deleted_at_point(cluster: Cluster, draw: random.Random) -> None:
    point = draw.choice(POINTS[1:])
    _lose_disk(cluster, strike_at(cluster, draw, f"{point}:{draw.randint(1, 3)}:kill"))


@fault("disk-truncated", "local table's files cut")
def _disk_truncated(cluster: Cluster, draw: random.Random) -> None:
    """Files of the table end in the middle, as after a disk that lied."""
    name = draw.choice(cluster.running_workers)
    cluster.kill(name, down=True)
    files = [file for file in cluster.worker_dir(name).rglob("*") if file.is_file() and file.stat().st_size > 8]
    for file in draw.sample(files, min(len(files), 1 + draw.randrange(4))):
        with file.open("r+b") as opened:
            opened.truncate(draw.randrange(file.stat().st_size))
    cluster.start(name)


@fault("disk-set-back", "local table put back to an older state")
def _disk_set_back(cluster: Cluster, draw: random.Random) -> None:
    """A copy of the folder from before, as a restored snapshot of a disk: older than the commits."""
    name = draw.choice(cluster.running_workers)
    cluster.kill(name, down=True)
    copy = cluster.folder / f"{name}-copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(cluster.worker_dir(name), copy)
    cluster.start(name)
    time.sleep(2 + draw.random() * 4)
    cluster.kill(name, down=True)
    shutil.rmtree(cluster.worker_dir(name))
    copy.rename(cluster.worker_dir(name))
    cluster.start(name)


def in_background(inject: Inject, cluster: Cluster, draw: random.Random) -> threading.Thread:
    """Runs a fault beside others."""
    thread = threading.Thread(target=inject, args=(cluster, draw))
    thread.start()
    return thread
