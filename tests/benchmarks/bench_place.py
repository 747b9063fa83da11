"""Where `make bench` happens: one broker and one engine for all, topics with the same events, and clocks that are read
when a competitor says `begun` and `done`.

Rules: the competitor runs on the first core alone, broker, engine and this program on the others (on the same one
where there is no other). Processor time is of the whole family of a process, between the two words. Nothing else runs
meanwhile: before a run, the engine's merges of the former one have ended and its tables are dropped.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil
from bench_events import CATALOG, Event, Expected, envelopes, expected
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka_admin import log_bounds
from pipeline.event import id_hash, partition_of
from pipeline.local.port import choose
from pipeline.local.stack import Services, start_services
from pipeline.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
PEERS: Final = Path(__file__).resolve().parent / "peers"
PARTITIONS: Final = 6  # the product's default
ALL_CORES: Final = sorted(os.sched_getaffinity(0))
COMPETITOR_CORES: Final = frozenset(ALL_CORES[:1])
OTHER_CORES: Final = frozenset(ALL_CORES[1:] or ALL_CORES)
_LOOK_S: Final = 0.1  # more often, and the broker is busy with answering
_IDLE_S: Final = 60.0
_NO_COORDINATOR: Final = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "_TIMED_OUT")
_TALLY: Final = [sys.executable, "-m", "tally"]


class BenchError(Exception):
    """A competitor did not do its job; the message says what and where its log is."""


@dataclass(frozen=True, slots=True)
class Data:
    """A topic of the bench: `record_events` events in each of its records, and what they must come to."""

    topic: str
    record_events: int
    records: int
    expected: Expected
    partitions: int = PARTITIONS


@dataclass(slots=True)
class Timed:
    """What was measured between `begun` and `done`: seconds by the clock, processor seconds by process, memory at the
    end, and the most there was since the process began."""

    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mib: int = 0
    rss_peak_mib: int = 0


class Place:
    """Broker and engine, a context that ends both. `cores`: of both, and of this program, from the start: two threads
    of an engine that found a single core and is given a second one later take up to twice the processor time, but for
    JE_MALLOC_CONF=narenas:8 (README, "What limits it")."""

    def __init__(self, folder: Path, cores: Collection[int] = OTHER_CORES) -> None:
        self.folder = folder
        self._cores = cores
        self._services: Services
        self._data: dict[str, Data] = {}
        self._asking: dict[str, Consumer] = {}
        self._store: Store
        self._number = 0

    def __enter__(self) -> Self:
        os.sched_setaffinity(0, self._cores)  # broker and engine inherit it
        self._services = start_services(self.folder / "home")
        self.kafka, self.clickhouse = self._services.kafka, self._services.clickhouse
        self._store = Store(Settings(clickhouse=self.clickhouse, database="default"))
        return self

    def __exit__(self, *_: object) -> None:
        for consumer in self._asking.values():
            consumer.close()
        self._store.close()
        self._services.stop()
        os.sched_setaffinity(0, ALL_CORES)

    # -- data

    def load(
        self, events: Sequence[Event], record_events: int, *, kind: str = "", partitions: int = PARTITIONS
    ) -> Data:
        """A topic with these events, made by the product's own command and filled once; the same one the next time.
        `kind` keeps lists of other events of the same length apart."""
        topic = f"bench.{record_events}.{len(events)}{f'.{kind}' if kind else ''}"
        if partitions != PARTITIONS:
            topic += f".p{partitions}"
        if topic not in self._data:
            settings = self.settings(topic, f"loading_{partitions}", partitions)
            self.tally(settings, "init")
            catalog = self.folder / "catalog.yaml"
            catalog.write_text(CATALOG)
            self.tally(settings, "apply", str(catalog))
            records = self._produce(topic, events, record_events, settings)
            self._data[topic] = Data(topic, record_events, records, expected(events), partitions)
            self.drop(settings.database)
        return self._data[topic]

    def _produce(self, topic: str, events: Sequence[Event], record_events: int, settings: Settings) -> int:
        """Each event into the partition of its id. The key is the same for the same id: of a single event the id, of an
        envelope the partition's number."""
        producer = Producer(
            {
                "bootstrap.servers": self.kafka,
                "acks": "all",
                "compression.type": "lz4",
                "linger.ms": 20,
                "batch.size": 512 << 10,
                "queue.buffering.max.messages": 200_000,
            }
        )
        by_partition: list[list[Event]] = [[] for _ in range(settings.partitions)]
        for event in events:
            hashed = id_hash(settings.default_account, event.transaction_id)
            by_partition[partition_of(hashed, settings.partitions)].append(event)
        records = 0
        for partition, found in enumerate(by_partition):
            values = envelopes([event.line for event in found], record_events)
            keys = [event.transaction_id for event in found] if record_events == 1 else [str(partition)] * len(values)
            for key, value in zip(keys, values, strict=True):
                while True:
                    try:
                        producer.produce(topic, value, key, partition)
                        break
                    except BufferError:
                        producer.poll(0.1)
            records += len(values)
        if producer.flush(120):
            raise BenchError(f"the broker did not take all records of {topic}")
        return records

    # -- competitors

    def settings(self, topic: str, name: str, partitions: int = PARTITIONS) -> Settings:
        """A group, a database and a folder of their own over a topic; everything else is the product's default. The
        topic of rejects has as many partitions as that of the events, so each number has one of its own."""
        return Settings(
            home=self.folder / name,
            kafka=self.kafka,
            clickhouse=self.clickhouse,
            topic_events=topic,
            topic_rejects=f"bench.rejects.p{partitions}",
            partitions=partitions,
            group=f"group-{name}",
            database=f"db_{name}",
        )

    def environment(self, settings: Settings) -> dict[str, str]:
        """The same for a process of the product."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "TALLY_HOME": str(settings.home_dir),
            "TALLY_KAFKA": settings.kafka,
            "TALLY_CLICKHOUSE": settings.clickhouse,
            "TALLY_TOPIC_EVENTS": settings.topic_events,
            "TALLY_TOPIC_REJECTS": settings.topic_rejects,
            "TALLY_PARTITIONS": str(settings.partitions),
            "TALLY_GROUP": settings.group,
            "TALLY_DATABASE": settings.database,
        }

    def tally(self, settings: Settings, *arguments: str) -> str:
        """A command of the product to its end; what it prints."""
        done = subprocess.run(
            [*_TALLY, *arguments], env=self.environment(settings), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"tally {arguments[0]} exited {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def watch(self, pid: int) -> "Watch":
        """Clocks of a competitor with this process id, broker and engine."""
        return Watch(self._services.pids(), pid)

    def fresh(self, topic: str, kind: str, partitions: int = PARTITIONS) -> Settings:
        """Settings for one run, with nothing left of any other; waits until the engine has nothing to do."""
        self._number += 1
        settings = self.settings(topic, f"{kind}_{self._number}".replace("-", "_"), partitions)
        settings.home_dir.mkdir(parents=True)
        self._until_idle()
        return settings

    def run_worker(self, settings: Settings, data: Data, seconds_max: float) -> Timed:
        """`tally worker` from the moment it takes its first partition until the group's offsets are at the ends."""
        ends = self.ends(settings)
        with self.worker(settings) as running:
            watch = self.watch(running.pid)
            running.until("partition_taken", seconds_max)
            watch.start()
            while not self.counted(settings, ends):
                running.check(seconds_max)
                time.sleep(_LOOK_S)
            return watch.stop()

    @contextmanager
    def worker(
        self, settings: Settings, extra: Mapping[str, str] | None = None, *, cores: frozenset[int] = COMPETITOR_CORES
    ) -> "Iterator[Running]":
        """`tally worker`, killed at the end; `extra` goes into its environment."""
        port = choose("worker", wanted=None, remembered=None, taken=set())
        environment = self.environment(settings) | {"TALLY_WORKER_PORT": str(port)} | dict(extra or {})
        folder = Path(environment.get("TALLY_WORKER_DIR", settings.home_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with self.process([*_TALLY, "worker"], environment, folder, cores=cores) as running:
            yield running

    def ends(self, settings: Settings) -> dict[int, int]:
        """The offset after the last record of each partition of the events topic."""
        found = log_bounds(settings, settings.topic_events, range(settings.partitions))
        return {partition: end for partition, (_, end) in found.items()}

    def run_peer(self, argv: Sequence[str], settings: Settings, data: Data, seconds_max: float) -> Timed:
        """A program that says `begun` and `done` once."""
        return self.run_jobs(argv, settings, data, seconds_max, {}, jobs=1)[0]

    def run_jobs(
        self,
        argv: Sequence[str],
        settings: Settings,
        data: Data,
        seconds_max: float,
        extra: Mapping[str, str],
        *,
        jobs: int,
    ) -> list[Timed]:
        """A program that says `begun` and `done` for each of its jobs; what it needs is in its environment."""
        environment = self.environment(settings) | {
            "PYTHONPATH": os.pathsep.join((str(PEERS), str(ROOT))),
            "BENCH_KAFKA": self.kafka,
            "BENCH_CLICKHOUSE": self.clickhouse,
            "BENCH_TOPIC": data.topic,
            "BENCH_GROUP": settings.group,
            "BENCH_TABLE": f"{settings.database}.usage",
            "BENCH_FOLDER": str(settings.home_dir),
            "BENCH_PARTITIONS": str(PARTITIONS),
            "BENCH_EVENTS": str(data.expected.events),
            "BENCH_ROWS": str(data.expected.ids * len(data.expected.sums)),
            "BENCH_RECORD_EVENTS": str(data.record_events),
            **extra,
        }
        with self.process(argv, environment, settings.home_dir) as running:
            watch, timed = self.watch(running.pid), []
            for _ in range(jobs):
                running.until("begun", seconds_max)
                watch.start()
                running.until("done", seconds_max)
                timed.append(watch.stop())
            return timed

    @contextmanager
    def process(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        cores: frozenset[int] = COMPETITOR_CORES,
    ) -> "Iterator[Running]":
        """A process on the competitor's core or those given, with its log in `folder`; killed at the end."""
        os.sched_setaffinity(0, cores)  # inherited by what starts now
        try:
            running = Running(argv, environment, folder)
        finally:
            os.sched_setaffinity(0, self._cores)
        try:
            yield running
        finally:
            running.stop()

    def counted(self, settings: Settings, ends: Mapping[int, int]) -> bool:
        """Whether the group's offsets have reached these."""
        found = self.offsets(settings)
        return all(found[partition] >= end for partition, end in ends.items())

    def offsets(self, settings: Settings) -> dict[int, int]:
        """The group's offset of each partition of the events topic; 0 where there is none yet."""
        # by a consumer that never joins: the admin client's list of a group's offsets crashes the process when the
        # coordinator is not ready (librdkafka, issue 5040)
        if settings.group not in self._asking:
            self._asking[settings.group] = Consumer(
                {
                    "bootstrap.servers": self.kafka,
                    "group.id": settings.group,
                    "enable.auto.commit": False,
                    "log_level": 0,
                }
            )
        places = [TopicPartition(settings.topic_events, partition) for partition in range(settings.partitions)]
        end = time.monotonic() + _IDLE_S
        while True:
            try:
                found = self._asking[settings.group].committed(places, timeout=20)
            except KafkaException as error:
                if error.args[0].name() not in _NO_COORDINATOR or time.monotonic() > end:
                    raise
                time.sleep(_LOOK_S)
            else:
                return {at.partition: max(at.offset, 0) for at in found}

    # -- results

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a SELECT."""
        return self._store.query(sql).rows

    def command(self, sql: str) -> None:
        """A statement without rows."""
        self._store.command(sql)

    def make_table(self, settings: Settings) -> None:
        """The one table that peers insert into: sorted as the product's facts are by customer, without any rollup."""
        self.command(f"CREATE DATABASE IF NOT EXISTS {settings.database}")
        self.command(
            f"CREATE TABLE {settings.database}.usage (client_id String, timestamp DateTime64(6, 'UTC'), "
            "transaction_id String, feature LowCardinality(String), quantity Int64, region LowCardinality(String), "
            "model LowCardinality(String), status LowCardinality(String)) ENGINE = MergeTree "
            "PARTITION BY toYYYYMM(timestamp) ORDER BY (feature, client_id, timestamp)"
        )

    def wrong_in_table(self, settings: Settings, wanted: Expected) -> str:
        """What is wrong in the peers' table; empty when all is right."""
        rows = self.query(
            f"SELECT feature, count(), uniqExact(transaction_id), toInt64(sum(quantity)) "
            f"FROM {settings.database}.usage GROUP BY feature"
        )
        return differences({name: (count, ids, total) for name, count, ids, total in rows}, wanted)

    def wrong_in_store(self, settings: Settings, wanted: Expected) -> str:
        """What is wrong in facts and in the rollup by customer and day; empty when all is right."""
        database = settings.database
        facts = self.query(
            "SELECT f, count(), uniqExact(transaction_id), toInt64(sum(q)) FROM "
            f"{database}.events ARRAY JOIN meters.feature AS f, meters.quantity AS q WHERE account != '' GROUP BY f"
        )
        rollup = self.query(
            "SELECT feature, toInt64(sum(events)), toInt64(sum(total)) "
            f"FROM {database}.usage_client_day WHERE account != '' GROUP BY feature"
        )
        told = differences({name: (count, ids, total) for name, count, ids, total in facts}, wanted)
        rolled_up = {name: (count, wanted.ids, total) for name, count, total in rollup}
        return told or differences(rolled_up, wanted)

    def drop(self, database: str) -> None:
        """Removes a run's tables."""
        self.command(f"DROP DATABASE IF EXISTS {database} SYNC")

    def engine_cpu_s(self) -> float:
        """The engine's processor seconds so far."""
        return _cpu_s(psutil.Process(self._services.pids()["clickhouse"]))

    def _until_idle(self) -> None:
        """Waits until broker and engine have done what the former run left them; not for ever."""
        processes = [psutil.Process(pid) for pid in self._services.pids().values()]
        end = time.monotonic() + _IDLE_S
        while time.monotonic() < end:
            before = sum(map(_cpu_s, processes))
            time.sleep(0.5)
            if sum(map(_cpu_s, processes)) - before < 0.05:
                return


def differences(found: Mapping[str, tuple[int, int, int]], wanted: Expected) -> str:
    """What differs, in words. `found`: feature → rows, distinct ids, sum."""
    told = []
    for name, total in wanted.sums.items():
        rows, ids, summed = found.get(name, (0, 0, 0))
        for what, one, other in (("rows", rows, wanted.ids), ("ids", ids, wanted.ids), ("sum", summed, total)):
            if one != other:
                told.append(f"{name}: {what} {one:,} instead of {other:,}")
    told += [f"{name}: not wanted at all" for name in found if name not in wanted.sums]
    return "; ".join(told)


class Running:
    """A process whose lines are read as they come, with its log."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.log = folder / "log.txt"
        self._process = subprocess.Popen(
            argv, cwd=folder, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._started = time.monotonic()

    def until(self, word: str, seconds_max: float) -> str:
        """The next line that has the word; blocks until there is one. Raises BenchError when the process ends or takes
        too long."""
        while True:
            left = self._started + seconds_max - time.monotonic()
            try:
                line = self._lines.get(timeout=max(left, 0.0))
            except queue.Empty:
                raise BenchError(f"no {word!r} after {seconds_max:.0f} s; {self._told()}") from None
            if line is None:
                raise BenchError(f"it ended before it said {word!r}; {self._told()}")
            if word in line:
                return line

    def check(self, seconds_max: float) -> None:
        """Raises BenchError when the process has ended or takes too long."""
        if self._process.poll() is not None or time.monotonic() > self._started + seconds_max:
            raise BenchError(f"not finished after {time.monotonic() - self._started:.0f} s; {self._told()}")

    def stop(self) -> None:
        """Kills the process and its children: everything is counted, and nothing of them is needed any more."""
        with suppress(psutil.NoSuchProcess):
            for one in reversed(_family(psutil.Process(self.pid))):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self._process.wait()
        self._reader.join(5)

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with stream, self.log.open("a") as log:
            for line in stream:
                log.write(line)
                self._lines.put(line)
        self._lines.put(None)

    def _told(self) -> str:
        return f"its log ({self.log}) ends with:\n{self.log.read_text()[-2000:] if self.log.exists() else ''}"


class Watch:
    """Clock and processor time of competitor, broker and engine between two moments."""

    def __init__(self, services: Mapping[str, int], competitor: int) -> None:
        names = {"kafka": "broker", "clickhouse": "engine"}
        pids = {"competitor": competitor, **{names[name]: pid for name, pid in services.items()}}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before: dict[str, float] = {}
        self._began = 0.0

    def start(self) -> None:
        """The first moment."""
        self._began = time.perf_counter()
        self._before = {name: _cpu_s(process) for name, process in self._processes.items()}

    def stop(self) -> Timed:
        """The second one."""
        seconds = time.perf_counter() - self._began
        cpu_s = {name: _cpu_s(process) - self._before[name] for name, process in self._processes.items()}
        family = _family(self._processes["competitor"])
        rss = sum(_or_zero(lambda one=one: one.memory_info().rss) for one in family)
        return Timed(seconds, cpu_s, int(rss) >> 20, sum(map(_rss_peak, family)) >> 20)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """Processor seconds of a process, its children and those that have ended."""
    return sum(_or_zero(lambda one=one: sum(one.cpu_times()[:4])) for one in _family(process))


def _rss_peak(process: psutil.Process) -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def _or_zero(ask: Callable[[], float]) -> float:
    try:
        return ask()
    except psutil.NoSuchProcess:
        return 0.0
