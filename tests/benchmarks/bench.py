"""Everything side by side in one run, on one broker, one engine and the same events: ``make bench``.

    python tests/benchmarks/bench.py [--quick] [--runs 3] [--events 1000000] [--only worker,quix] [--json] [--record]

Each competitor does the whole job: every id once, the event's name to its two features, rows in ClickHouse; what comes
out is compared with plain Python. The backlog is in Kafka before the clock starts. Records of 1 event and of 100.

What is timed. This worker: `tally worker` as in production, from the moment it has its first partition until the
group's offsets have reached the ends of all partitions, which is after facts, ids, all rollups, ledger and changelog
are acknowledged; the peers insert into one table without rollups. Other programs: from the first record in their hands
until the last insert is acknowledged. Flink: the difference between a long and a short topic, once it is warm. Doors:
what wrk sees while it sends for some seconds. Starts of processes are never timed, everything after is. Competitors on
one core, broker and engine on the other.

Then the worker alone: how its rate and memory hold as its table, partitions and disorder grow (bench_growth.py), and
how long an event takes from the HTTP answer to being countable (bench_latency.py).

Slow competitors get the first part of the events (a twenty-fifth, a fifth), worker and Flink three times as many, so
that each runs for some seconds at its own rate.
`--record` puts the results into tests/benchmarks/results, from where bench_report.py makes the README's table and plot.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1])]

import psutil  # noqa: E402
from bench_doors import Load, api, fastapi  # noqa: E402
from bench_environments import (  # noqa: E402
    BUILD,
    FASTAPI,
    FLINK,
    QUIX,
    Missing,
    environment,
    flink_jar,
    flink_java,
)
from bench_events import Event, events  # noqa: E402
from bench_figures import CEILINGS, medians, ratios, table, verdicts  # noqa: E402
from bench_growth import Growth, growth_figures, growth_medians  # noqa: E402
from bench_latency import Latency, countable_figure  # noqa: E402
from bench_place import (  # noqa: E402
    ALL_CORES,
    COMPETITOR_CORES,
    OTHER_CORES,
    PEERS,
    BenchError,
    Place,
    Timed,
    differences,
)
from bench_queries import FACTS, FACTS_QUICK  # noqa: E402
from bench_queries import measure as measure_queries  # noqa: E402
from confluent_kafka import KafkaException  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markdown import Markdown  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402

from pipeline.adapters.clickhouse import Store  # noqa: E402
from pipeline.ports import StoreError, StoreUnavailable  # noqa: E402

RESULTS: Final = _HERE / "results" / "bench.json"
_EVENTS: Final = 1_000_000
_EVENTS_QUICK: Final = 100_000
_EVENTS_MIN: Final = 4_000
_DOOR_S: Final = 15
_DOOR_S_QUICK: Final = 5
_SECONDS_MAX: Final = 600.0  # of one measurement; nothing that works takes a fifth of it
_PACKAGES: Final = (
    "aiokafka",
    "faust-streaming",
    "confluent-kafka",
    "rocksdict",
    "clickhouse-connect",
    "chdb",
    "pyarrow",
)
PARTS: Final = ("growth", "latency", "queries")
_OTHER_PACKAGES: Final = (QUIX[0], FLINK[0], *FASTAPI[:2])  # of environments of their own
_console = Console(stderr=True)  # standard output is for the results


@dataclass(frozen=True, slots=True)
class Competitor:
    """Who is measured: a share of the events, the sizes of records it takes, and how."""

    name: str
    share: float
    measure: "Callable[[Place, Sequence[Event], int], Measured]"
    sizes: tuple[int, ...] = (1, 100)


@dataclass(frozen=True, slots=True)
class Measured:
    """`events` that were counted in what was timed; `checked`: `right`, or what is wrong, or why it is not checked."""

    events: int
    timed: Timed
    checked: str
    p99_ms: float | None = None


def worker(place: Place, sent: Sequence[Event], record_events: int) -> Measured:
    """This product's worker."""
    data = place.load(sent, record_events)
    settings = place.fresh(data.topic, "worker")
    place.tally(settings, "init")
    timed = place.run_worker(settings, data, _SECONDS_MAX)
    wrong = place.wrong_in_store(settings, data.expected)
    place.drop(settings.database)
    return Measured(data.expected.events, timed, wrong or "right")


def peer(name: str, program: str, python: Callable[[], Path]) -> Competitor:
    """A program that inserts into the peers' table."""

    def measure(place: Place, sent: Sequence[Event], record_events: int) -> Measured:
        data = place.load(sent, record_events)
        argv = [str(python()), str(PEERS / program)]
        settings = place.fresh(data.topic, name)
        place.make_table(settings)
        timed = place.run_peer(argv, settings, data, _SECONDS_MAX)
        wrong = place.wrong_in_table(settings, data.expected)
        place.drop(settings.database)
        return Measured(data.expected.events, timed, wrong or "right")

    return Competitor(name, _SHARES[name], measure)


def faust(place: Place, sent: Sequence[Event], record_events: int) -> Measured:
    """The agent as a program of its own, started as Faust's documentation says."""
    data = place.load(sent, record_events)
    settings = place.fresh(data.topic, "faust")
    place.make_table(settings)
    argv = [sys.executable, str(PEERS / "faust_agent.py"), "worker", "--without-web", "-l", "info"]
    timed = place.run_peer(argv, settings, data, _SECONDS_MAX)
    wrong = place.wrong_in_table(settings, data.expected)
    place.drop(settings.database)
    return Measured(data.expected.events, timed, wrong or "right")


def flink(place: Place, sent: Sequence[Event], record_events: int) -> Measured:
    """The difference between the topic and one of a third of its events, after one job to warm up, all in one process;
    its numbers are checked once, untimed."""
    java, jar, python = flink_java(), flink_jar(_console.print), environment("flink", FLINK, _console.print)
    data, short = place.load(sent, record_events), place.load(sent[: len(sent) // 3], record_events)
    extra = {"JAVA_HOME": str(java), "PYTHONPATH": "", "PATH": f"{java / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    argv = [str(python), str(PEERS / "flink_sql.py"), str(jar)]
    topics = [short.topic, short.topic, data.topic]
    settings = place.fresh(data.topic, "flink")
    _, one, other = place.run_jobs([*argv, *topics], settings, data, _SECONDS_MAX, extra, jobs=3)
    if other.seconds <= one.seconds:
        raise BenchError("the long topic took no longer than the short one: give it more events (--events)")
    cpu_s = {name: other.cpu_s[name] - one.cpu_s[name] for name in other.cpu_s}
    timed = Timed(other.seconds - one.seconds, cpu_s, other.rss_mib)
    if short.topic not in _flink_checked:
        settings = place.fresh(short.topic, "flink_check")
        place.run_jobs([*argv, "--check", short.topic], settings, short, _SECONDS_MAX, extra, jobs=1)
        log = (settings.home_dir / "log.txt").read_text()
        told = [line.split()[1:] for line in log.splitlines() if line.startswith("result ")]
        found = {name: (int(rows), int(ids), int(total)) for name, rows, ids, total in told}
        _flink_checked[short.topic] = differences(found, short.expected) or "right (by a query of its own, untimed)"
    return Measured(data.expected.events - short.expected.events, timed, _flink_checked[short.topic])


def ceiling(what: str) -> Competitor:
    """One step alone."""

    def measure(place: Place, sent: Sequence[Event], record_events: int) -> Measured:
        data = place.load(sent, record_events)
        settings = place.fresh(data.topic, what)
        place.tally(settings, "init")
        argv = [sys.executable, str(PEERS / "ceilings.py"), what]
        timed = place.run_peer(argv, settings, data, _SECONDS_MAX)
        place.drop(settings.database)
        return Measured(data.expected.events, timed, "")

    return Competitor(what, 1, measure)


def door(name: str, many: int, load: Callable[[Place, int], Load]) -> Competitor:
    """A server under load; the events' number sets how long (quick or not), since a door has no backlog."""

    def measure(place: Place, sent: Sequence[Event], _: int) -> Measured:
        found = load(place, _DOOR_S_QUICK if len(sent) < _EVENTS else _DOOR_S)
        return Measured(found.answers * many, found.timed, found.checked, found.p99_ms)

    return Competitor(name, 1, measure, sizes=(many,))


_flink_checked: dict[str, str] = {}
_SHARES: Final = {"faust": 1 / 25, "quix": 1 / 5, "plain": 1 / 5}
COMPETITORS: Final = (
    # at its rate a million events are a few blocks a partition, of which the first and the last ones are not alike
    Competitor("worker", 3, worker),
    Competitor("faust", _SHARES["faust"], faust),
    peer("quix", "quix.py", lambda: environment("quix", QUIX, _console.print)),
    # its JSON format takes one event a record; compiling as it goes, it needs more events to come to its rate
    Competitor("flink", 3, flink, sizes=(1,)),
    peer("plain", "plain_consumer.py", lambda: Path(sys.executable)),
    *map(ceiling, CEILINGS),
    door("api", 1, lambda place, seconds: api(place, 1, seconds)),
    door("fastapi", 1, lambda place, seconds: fastapi(place, seconds, _console.print)),
    door("api-500", 500, lambda place, seconds: api(place, 500, seconds)),
)


def measure(
    place: Place, competitor: Competitor, sent: Sequence[Event], record_events: int, run: int
) -> dict[str, Any]:
    """One run of one competitor as an entry of the results; why there are no figures stands in `note`."""
    row: dict[str, Any] = {"name": competitor.name, "record_events": record_events, "run": run}
    try:
        found = competitor.measure(place, sent, record_events)
    except _REFUSALS as error:
        return {**row, "note": str(error)}
    cpu_s = found.timed.cpu_s
    return {
        **row,
        "events": found.events,
        "seconds": round(found.timed.seconds, 3),
        "events_per_s": round(found.events / found.timed.seconds),
        "cpu_s": {name: round(used, 2) for name, used in cpu_s.items()},
        # 0: it did next to nothing, less than clocks of processes can tell
        "per_cpu_s": {name: round(found.events / used) if used > 0.01 else 0 for name, used in cpu_s.items()},
        "rss_mib": found.timed.rss_mib,
        "checked": found.checked,
        **({} if found.p99_ms is None else {"p99_ms": found.p99_ms}),
    }


def pinned(package: str) -> tuple[str, str]:
    """Name and version of `name==version` or `name[extra]==version`."""
    name, _, version = package.partition("==")
    return name.partition("[")[0], version


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_HERE, capture_output=True, text=True, check=False
    )
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": psutil.cpu_count(),
        "competitor_cores": sorted(COMPETITOR_CORES),
        "other_cores": sorted(OTHER_CORES),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES} | dict(map(pinned, _OTHER_PACKAGES)),
        "commit": commit.stdout.strip() or "unknown",
    }


_REFUSALS: Final = (Missing, BenchError, StoreError, StoreUnavailable, KafkaException, OSError)


def grow(place: Place, options: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    """The part `growth`; hands over what it has after each measurement."""
    growth, runs = Growth(place, runs=options.runs, quick=options.quick, say=_console.print), []
    for run, case in growth.plan():
        try:
            row = growth.measure(case, run)
        except _REFUSALS as error:
            row = {"name": case.name, "title": case.title, "run": run, "note": str(error)}
        told = f"{row['events_per_s']:>9,} events/s {row['checked']}" if "events" in row else row["note"]
        _console.print(f"run {run} growth {case.name:13}: {told}", markup=False, highlight=False)
        runs.append(row)
        rows = growth_medians(runs)
        found, figures = growth_figures(rows, growth.made)
        tables = growth.made
        tell({"rows": rows, "tables": tables, "measurements": list(runs), "ratios": found, "figures": figures})


def wait(place: Place, options: argparse.Namespace, results: Mapping[str, Any]) -> dict[str, Any]:
    """The part `latency`; how fast a backlog is counted was found by the growth part, if it ran."""
    grown = {row["name"]: row for row in results.get("growth", {}).get("rows", ())}
    backlog = grown.get("ids-0", {}).get("events_per_s")
    try:
        rows = Latency(place, quick=options.quick, backlog_per_s=backlog).rows()
    except _REFUSALS as error:
        rows = [{"name": name, "note": str(error)} for name in ("idle", "half", "full")]
    for row in rows:
        _console.print(f"latency {row['name']:4}: {row}", markup=False, highlight=False)
    return {"rows": rows, "ratios": {}, "figures": countable_figure(rows)}


def keep(results: Mapping[str, Any], file: Path) -> None:
    """Writes the results, making the folder if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def document(
    runs: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    options: argparse.Namespace,
    parts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """All results: runs, their medians, ratios, targets and the machine; each part under its name."""
    rows = medians(runs)
    found, figures = ratios(rows)
    for part in parts.values():
        found, figures = {**found, **part["ratios"]}, {**figures, **part["figures"]}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "quick": options.quick,
        "events": options.events,
        "runs": options.runs,
        "machine": facts,
        "ratios": found,
        "figures": figures,
        "targets": verdicts({**found, **figures}),
        "rows": rows,
        "measurements": list(runs),
        **parts,
    }


def with_recorded(parts: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parts, and those that were not measured this time as they are recorded, with the commit they are of."""
    found = dict(parts)
    for name in PARTS:
        if name not in parts and name in recorded:
            found[name] = {"commit": recorded["machine"]["commit"], **recorded[name]}
    return found


def amended(recorded: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], commit: str) -> dict[str, Any]:
    """What is recorded, with these parts measured anew, each with the commit it is of."""
    found, figures = dict(recorded["ratios"]), dict(recorded["figures"])
    for part in parts.values():
        found |= part["ratios"]
        figures |= part["figures"]
    anew = {name: {**part, "commit": commit} for name, part in parts.items()}
    return {**recorded, **anew, "ratios": found, "figures": figures, "targets": verdicts({**found, **figures})}


def chosen(names: str) -> tuple[list[Competitor], list[str]]:
    """Competitors and parts that were asked for; all when none are named. Raises SystemExit for a name that there is
    not."""
    known = [*(one.name for one in COMPETITORS), *PARTS]
    wanted = names.split(",") if names else known
    unknown = set(wanted) - set(known)
    if unknown:
        raise SystemExit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [one for one in COMPETITORS if one.name in wanted], [part for part in PARTS if part in wanted]


def all_runs(place: Place, competitors: Sequence[Competitor], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement after the other: all competitors, then all again, so that a slow minute hits all alike."""
    plan = [
        (run, size, one)
        for run in range(1, options.runs + 1)
        for size in (1, 100, 500)
        for one in competitors
        if size in one.sizes
    ]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=_console) as progress:
        task = progress.add_task("making events", total=len(plan))
        numbers = {one.name: max(_EVENTS_MIN, int(options.events * one.share)) for one in competitors}
        sent = list(events(max(numbers.values(), default=0)))
        for run, size, one in plan:
            progress.update(task, description=f"run {run}, {one.name}, records of {size}")
            row = measure(place, one, sent[: numbers[one.name]], size, run)
            told = f"{row['events_per_s']:>9,} events/s {row['checked']}" if "events" in row else row["note"]
            progress.console.print(f"run {run} {one.name:8} records of {size:3}: {told}", markup=False, highlight=False)
            progress.advance(task)
            yield row


def new_place(folder: Path, part: str, cores: Collection[int] = OTHER_CORES) -> Place:
    """Broker and engine of one part, so that none is measured beside what others have left behind."""
    (folder / part).mkdir()
    return Place(folder / part, cores)


def ask_queries(place: Place, facts: int) -> dict[str, Any]:
    """Questions over so many facts in a database of their own."""
    settings = place.fresh("bench.queries", "queries")
    store = Store(settings)
    try:
        return measure_queries(
            store, settings, facts, threads=len(ALL_CORES), engine_cpu_s=place.engine_cpu_s, say=_console.print
        )
    finally:
        store.close()
        place.drop(settings.database)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few events, one run: does it work, not how fast")
    parser.add_argument("--runs", type=int, help="of each competitor; default 3")
    parser.add_argument("--events", type=int, help=f"of the fast competitors; default {_EVENTS:,}")
    names = ",".join([*(one.name for one in COMPETITORS), *PARTS])
    parser.add_argument("--only", default="", metavar="NAMES", help=f"of {names}")
    parser.add_argument("--facts", type=int, help=f"that are asked about by queries; default {FACTS:,}")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    parser.add_argument("--record", action="store_true", help="keep the results in tests/benchmarks/results")
    options = parser.parse_args()
    if options.record and (options.quick or not set(options.only.split(",")) <= {"", *PARTS}):
        parser.error(
            f"--record goes with all rates at once, or with --only of {', '.join(PARTS)}, and not with --quick"
        )
    return options


def main() -> None:
    """The program."""
    options = _options()
    options.runs = options.runs or (1 if options.quick else 3)
    options.events = options.events or (_EVENTS_QUICK if options.quick else _EVENTS)
    options.facts = options.facts or (FACTS_QUICK if options.quick else FACTS)
    competitors, wanted = chosen(options.only)
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    facts, runs, parts, failed = machine(), [], {}, False
    results = document(runs, facts, options, parts)

    def kept(name: str = "", part: dict[str, Any] | None = None) -> None:
        """Called after each measurement, so that a run that is broken off has its first half."""
        nonlocal results
        if part is not None:
            parts[name] = part
        results = document(runs, facts, options, parts)
        keep(results, BUILD / "bench.json")

    if competitors:
        with new_place(folder, "rates") as place:
            for run in all_runs(place, competitors, options):
                runs.append(run)
                kept()
    if "growth" in wanted:
        with new_place(folder, "growth") as place:
            grow(place, options, partial(kept, "growth"))
    if "latency" in wanted:
        with new_place(folder, "latency") as place:
            kept("latency", wait(place, options, results))
    if "queries" in wanted:
        try:
            with new_place(folder, "queries", ALL_CORES) as place:
                kept("queries", ask_queries(place, options.facts))
        except (StoreError, StoreUnavailable, TimeoutError) as error:
            failed = True
            _console.print(f"queries: {error}", markup=False)
    if options.record:
        recorded = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        alone = recorded and not runs
        anew = document(runs, facts, options, with_recorded(parts, recorded))
        keep(amended(recorded, parts, facts["commit"]) if alone else anew, RESULTS)
    measured = [*runs, *(row for part in parts.values() for row in part.get("measurements", part["rows"]))]
    if failed or any("note" in run for run in measured):
        _console.print(f"logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(results, indent=1))
    elif sys.stdout.isatty():
        Console().print(Markdown(table(results)))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
