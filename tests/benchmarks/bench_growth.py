"""Growth: the worker's rate and memory as the dedup table, the partitions, the workers and the disorder grow.

Each case is a backlog that `tally worker` counts from beginning to end on the competitor's core, as in the first part
of `make bench`, with one thing changed: ids that its table holds before it starts, partitions, workers, how late and
mixed the events come, how many come twice. The results are checked in facts and a rollup. Tables with millions of ids
are made once (filled_tables.py) and linked into each worker's folder.

Two workers: one on each core, so that the second one shares its core with broker and engine; timed from the moment at
which both have partitions. What two workers do with cores of their own, two cores cannot show.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from bench_events import DUPLICATES, Event, events
from bench_place import COMPETITOR_CORES, OTHER_CORES, PARTITIONS, BenchError, Data, Place, Timed
from filled_tables import Filled, filled

from pipeline.settings import Settings

_EVENTS: Final = 500_000
_EVENTS_QUICK: Final = 60_000
_TIMES_OF_SEVERAL: Final = 3  # the first worker counts some while the others begin
_QUICK_SHARE: Final = 50  # quick: a fiftieth of the ids
_SECONDS_MAX: Final = 300.0
_LOOK_S: Final = 0.1
_LATE_DAYS: Final = 60
_Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what is changed against `ids-0`. `repeated` cases run as often as competitors do, others once;
    `quick`: also in a quick run."""

    name: str
    title: str
    ids: int = 0
    partitions: int = PARTITIONS
    workers: int = 1
    days: int = 0
    month_end: bool = False
    duplicates: float = DUPLICATES
    repeated: bool = False
    quick: bool = False


CASES: Final = (
    Case("ids-0", "empty table, 6 partitions, 5 % twice", repeated=True, quick=True),
    Case("ids-10m", "10 million ids in the table", ids=10_000_000, repeated=True),
    Case("ids-50m", "50 million ids in the table", ids=50_000_000, repeated=True, quick=True),
    Case("partitions-1", "1 partition", partitions=1),
    Case("partitions-4", "4 partitions", partitions=4),
    Case("partitions-12", "12 partitions", partitions=12),
    Case("partitions-48", "48 partitions", partitions=48, quick=True),
    Case("workers-2", "2 workers, the second one on the core of broker and engine", workers=2),
    Case("month-end", "over the end of a month", month_end=True),
    Case("late", f"events of {_LATE_DAYS} days in any order", days=_LATE_DAYS),
    Case("duplicates-1", "1 % twice", duplicates=0.01),
    Case("duplicates-50", "50 % twice", duplicates=0.5),
)


class Growth:
    """The part `growth` of a run. `rows` gives each measurement as it is made; `made` tells about the tables."""

    def __init__(self, place: Place, *, runs: int, quick: bool, say: _Say) -> None:
        self._place = place
        self._runs = runs
        self._quick = quick
        self._say = say
        self._events: dict[tuple[int, float, int, bool], list[Event]] = {}
        self._tables: dict[int, Filled] = {}
        self.made: list[dict[str, Any]] = []

    def plan(self) -> list[tuple[int, Case]]:
        """Runs and cases, all repeated ones in turn, so that a slow minute hits all alike."""
        cases = [case for case in CASES if case.quick or not self._quick]
        return [(run, case) for run in range(1, self._runs + 1) for case in cases if run == 1 or case.repeated]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One measurement after the other. Raises BenchError and what the clients raise: see `measure` of bench.py."""
        for run, case in self.plan():
            yield self.measure(case, run)

    def measure(self, case: Case, run: int) -> dict[str, Any]:
        """One run of one case."""
        ids = case.ids // (_QUICK_SHARE if self._quick else 1)
        data = self._data(case)
        tables = self._filled(ids, case.partitions) if ids else None
        settings = self._place.fresh(data.topic, case.name, case.partitions)
        self._place.tally(settings, "init")
        if tables:
            tables.put_in(settings.table_dir, data.topic)
        if case.workers == 1:
            timed, counted = self._place.run_worker(settings, data, _SECONDS_MAX), data.expected.events
        else:
            timed, counted = self._run_workers(settings, case.workers)
        wrong = self._place.wrong_in_store(settings, data.expected)
        self._place.drop(settings.database)
        shutil.rmtree(settings.table_dir, ignore_errors=True)
        return {
            "name": case.name,
            "title": case.title if ids == case.ids else f"{ids:,} ids in the table",
            "run": run,
            "ids": ids,
            "events": counted,
            "seconds": round(timed.seconds, 3),
            "events_per_s": round(counted / timed.seconds),
            "cpu_s": {name: round(used, 2) for name, used in timed.cpu_s.items()},
            "per_cpu_s": {name: round(counted / used) for name, used in timed.cpu_s.items() if used > 0.01},
            "rss_mib": timed.rss_mib,
            "rss_peak_mib": timed.rss_peak_mib,
            "checked": wrong or "right",
        }

    def _data(self, case: Case) -> Data:
        number = _EVENTS_QUICK if self._quick else _EVENTS
        number *= 1 if case.workers == 1 else _TIMES_OF_SEVERAL
        key = number, case.duplicates, case.days, case.month_end
        if key not in self._events:
            self._events[key] = list(
                events(number, seed=2, duplicates=case.duplicates, days=case.days, month_end=case.month_end)
            )
        kind = f"growth.{case.duplicates:.0%}.{case.days}{'.end' if case.month_end else ''}".replace("%", "pc")
        return self._place.load(self._events[key], 1, kind=kind, partitions=case.partitions)

    def _filled(self, ids: int, partitions: int) -> Filled:
        if ids not in self._tables:
            folder = self._place.folder / f"filled-{ids}"
            folder.mkdir()
            made = filled(folder, ids, partitions, Settings().cache_bytes)
            self._tables[ids] = made
            self.made.append(
                {
                    "ids": made.ids,
                    "schema": made.schema,
                    "seconds": round(made.seconds, 1),
                    "bytes_per_id_compacted": made.bytes_per_id,
                }
            )
            self._say(
                f"{ids:,} ids loaded directly into tables of schema {made.schema} in {made.seconds:.0f} s; "
                f"{made.bytes_per_id} bytes an id, compacted"
            )
        return self._tables[ids]

    def _run_workers(self, settings: Settings, workers: int) -> tuple[Timed, int]:
        """Several workers from the moment at which all of them have partitions; and how many events were left then."""
        cores = [COMPETITOR_CORES, OTHER_CORES]
        ends = self._place.ends(settings)
        with ExitStack() as stack:
            running = [
                stack.enter_context(
                    self._place.worker(
                        settings,
                        {"TALLY_WORKER_DIR": str(settings.home_dir / f"worker-{number}")},
                        cores=cores[number % len(cores)],
                    )
                )
                for number in range(workers)
            ]
            for one in running:
                one.until("partition_taken", _SECONDS_MAX)
            watches = [self._place.watch(one.pid) for one in running]
            before = self._place.offsets(settings)
            left = sum(ends.values()) - sum(before.values())
            if left < sum(ends.values()) // 3:
                raise BenchError(f"only {left:,} events were left when all workers had partitions: give it more events")
            for watch in watches:
                watch.start()
            while not self._place.counted(settings, ends):
                for one in running:
                    one.check(_SECONDS_MAX)
                time.sleep(_LOOK_S)
            found = [watch.stop() for watch in watches]
        cpu_s = {**found[0].cpu_s, "competitor": sum(one.cpu_s["competitor"] for one in found)}
        largest = max(one.rss_peak_mib for one in found)
        timed = Timed(found[0].seconds, cpu_s, max(one.rss_mib for one in found), largest)
        return timed, left


def growth_medians(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each case in the order of the first run: medians, of memory the most; a note where no run has
    figures, and what any run found wrong."""
    rows = []
    for name in dict.fromkeys(run["name"] for run in runs):
        some = [run for run in runs if run["name"] == name]
        good = [run for run in some if "events_per_s" in run]
        row: dict[str, Any] = {"name": name, "title": some[0]["title"], "runs": len(good)}
        row["note"] = next((run["note"] for run in some if run.get("note")), "")
        if good:
            row |= {key: good[0][key] for key in ("ids", "events", "checked")}
            row["checked"] = next((run["checked"] for run in good if run["checked"] != "right"), "right")
            row["events_per_s"] = statistics.median(run["events_per_s"] for run in good)
            row["spread"] = (min(run["events_per_s"] for run in good), max(run["events_per_s"] for run in good))
            row["per_cpu_s"] = {
                process: statistics.median(run["per_cpu_s"].get(process, 0) for run in good)
                for process in good[0]["per_cpu_s"]
            }
            for most in ("rss_mib", "rss_peak_mib"):
                row[most] = max(run[most] for run in good)
        rows.append(row)
    return rows


def growth_figures(
    rows: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures by their names in bench.json, as far as there is what they are made of. A quick run, whose
    tables are small, has none of those that name 50 million."""
    by = {row["name"]: row for row in rows if "events_per_s" in row}
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    full = by.get("ids-50m")
    if full and full["ids"] == 50_000_000:
        figures["worker_rss_bytes_50m"] = full["rss_peak_mib"] << 20
        if "ids-0" in by:
            ratios["ids50m_vs_empty"] = round(full["events_per_s"] / by["ids-0"]["events_per_s"], 3)
    largest = max(made, key=lambda one: one["ids"], default=None)
    if largest and largest["ids"] >= 10_000_000:
        figures["dedup_bytes_per_id"] = largest["bytes_per_id_compacted"]
    return ratios, figures
