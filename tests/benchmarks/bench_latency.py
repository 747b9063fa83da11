"""Latency from the HTTP answer to being countable, at idle, half and full load.

Probes go through `tally api`: single events and lists of 100, at an even pace. The load beside them goes straight to
Kafka in records of one event, as a customer's own client sends them. Full load is what is counted a second of a load
that comes as fast as the worker counted a backlog: taking the events in costs the broker's core too, so that is more
than can be carried. Half of it is measured once it has lasted as long already, without a pause in between: an idle
engine gives its memory back, and its next inserts take up to three times as long. A probe is countable when a query of
the facts, asked over and over with a rest of 0.1 s, has all of its events; the moment is when that answer has arrived,
so every figure contains a query and that rest. The load shares the worker's core, which half of it leaves idle for a
quarter; API, broker and engine share the others; who sends probes and looks for them runs where there is room. What the
store holds in the end is checked.
"""

import gc
import http.client
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil
from bench_doors import await_ready
from bench_events import ACCOUNT, CATALOG, EVENT_NAME, Event, Expected, events, expected, moment
from bench_place import ALL_CORES, COMPETITOR_CORES, OTHER_CORES, PEERS, BenchError, Place, Running

from pipeline.event import id_hash, partition_of
from pipeline.local.port import choose
from pipeline.ports import StoreError, StoreUnavailable
from pipeline.settings import Settings

LIST: Final = 100
_CUSTOMER: Final = "latency-probe"
_SECONDS: Final = 15.0
_SECONDS_HALF: Final = 45.0  # what the target is about: p99 of lists is of 180 of them, not the longest of 60
_SECONDS_QUICK: Final = 5.0
_WARM: Final = "warm"
_WARM_S: Final = 3.0
_BACKLOG: Final = 400_000
_BACKLOG_QUICK: Final = 60_000
_SETTLE_S: Final = 180.0  # how long what is under way may take once the load has ended
_REST_S: Final = 0.1
_BEGAN_S: Final = time.monotonic()
_MAX_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Level:
    """A load: its name, how long it is probed, events a second straight to Kafka, and probes a second of each kind.
    `lasted_s`: how long the load lasts before the first probe."""

    name: str
    seconds: float
    rate: float
    load: Sequence[Event]
    singles_per_s: float
    lists_per_s: float
    lasted_s: float = 0.0


@dataclass(slots=True)
class Probes:
    """Requests by their name: how many events each has and their timestamp, when it was answered and when it was
    countable, in seconds of `time.perf_counter`."""

    sizes: dict[str, int] = field(default_factory=dict)
    timestamps: dict[str, datetime] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    countable: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def waits(self, size: int) -> list[float]:
        """Seconds from answer to countable of the requests with so many events, ascending."""
        names = [name for name in self.countable if self.sizes[name] == size]
        return sorted(max(0.0, self.countable[name] - self.answered[name]) for name in names)

    def open(self) -> list[str]:
        """Requests that were answered and are not countable yet."""
        return [name for name in list(self.answered) if name not in self.countable]

    def since(self) -> datetime:
        """The earliest timestamp of a request that is not countable yet, answered or not."""
        waiting = [when for name, when in list(self.timestamps.items()) if name not in self.countable]
        return min(waiting, default=_now())

    def events(self) -> int:
        """Events of all requests that were answered."""
        return sum(self.sizes[name] for name in self.answered)


class Latency:
    """The part `latency` of a run. `backlog_per_s`: events a second of a backlog; measured first when it is not
    given."""

    def __init__(self, place: Place, *, quick: bool, backlog_per_s: float | None = None) -> None:
        self._place = place
        self._quick = quick
        self._backlog_per_s = backlog_per_s

    def rows(self) -> list[dict[str, Any]]:
        """A row for each load. Raises BenchError and what the clients raise."""
        seconds, seconds_half = (_SECONDS_QUICK, _SECONDS_QUICK) if self._quick else (_SECONDS, _SECONDS_HALF)
        full = self._carried(self._backlog_per_s or self._capacity(), seconds_half)
        half = int(full / 2 * seconds_half)
        load = list(events(2 * half + int(full * seconds), seed=4))
        levels = (
            Level("idle", seconds, 0.0, [], 5, 1),
            Level("half", seconds_half, full / 2, load[: 2 * half], 20, 4, lasted_s=seconds_half),
            Level("full", seconds, full, load[2 * half :], 20, 4),
        )
        settings = self._place.fresh(f"bench.latency.{time.time_ns()}", "latency")
        gc.collect()
        gc.freeze()  # millions of events of the load: going through them stops all who send and look for a second
        try:
            rows = self._measure(settings, levels)
        finally:
            gc.unfreeze()
        wanted = expected(load)
        probes = sum(row["probe_events"] for row in rows)
        sums = {name: total + probes for name, total in wanted.sums.items()}
        found = self._place.wrong_in_store(settings, Expected(wanted.events + probes, wanted.ids + probes, sums))
        untold = [row["checked"] for row in rows if row["name"] == _WARM]
        wrong = "; ".join(filter(None, [*untold, found]))
        self._place.drop(settings.database)
        return [{**row, "checked": row["checked"] or wrong or "right"} for row in rows if row["name"] != _WARM]

    def _carried(self, rate: float, seconds: float) -> float:
        """Events a second that are counted while so many come."""
        settings = self._place.fresh(f"bench.carried.{time.time_ns()}", "carried")
        over = Level("over", seconds, rate, list(events(int(rate * seconds), seed=5)), 5, 1)
        found = self._measure(settings, [over])
        self._place.drop(settings.database)
        return float(found[-1]["counted_per_s"])

    def _capacity(self) -> float:
        data = self._place.load(list(events(_BACKLOG_QUICK if self._quick else _BACKLOG, seed=3)), 1, kind="latency")
        settings = self._place.fresh(data.topic, "capacity")
        self._place.tally(settings, "init")
        timed = self._place.run_worker(settings, data, _MAX_S)
        self._place.drop(settings.database)
        return data.expected.events / timed.seconds

    def _measure(self, settings: Settings, levels: Sequence[Level]) -> list[dict[str, Any]]:
        place = self._place
        place.tally(settings, "init")
        catalog = settings.home_dir / "catalog.yaml"
        catalog.write_text(CATALOG)
        place.tally(settings, "apply", str(catalog))
        key = json.loads(place.tally(settings, "keys", "create"))["key"]
        port = choose("api", wanted=None, remembered=None, taken=set())
        folder = settings.home_dir / "api"
        folder.mkdir()
        environment = place.environment(settings) | {"TALLY_API_PORT": str(port)}
        files = {level.name: _written(settings, level) for level in levels if level.load}
        with (
            place.worker(settings) as worker,
            place.process([sys.executable, "-m", "tally", "api"], environment, folder, cores=OTHER_CORES),
        ):
            worker.until("partition_taken", _MAX_S)
            await_ready(f"http://127.0.0.1:{port}/readyz")
            rows = []
            for level in (Level(_WARM, _WARM_S, 0.0, [], 5, 2), *levels):
                row = {"name": level.name, "rate_per_s": round(level.rate), "seconds": level.seconds}
                prober = _Prober(place, settings, port, key, level)
                if level.load:
                    row |= self._send(settings, level, files[level.name], prober.start)
                else:
                    prober.start()
                prober.finish()
                row["left"] = sum(place.ends(settings).values()) - sum(place.offsets(settings).values())
                row["rss_mib"] = psutil.Process(worker.pid).memory_info().rss >> 20
                self._settle(settings, prober, worker)
                rows.append(row | latency_figures(prober.probes))
            return rows

    def _send(self, settings: Settings, level: Level, lines: Path, probe_it: Callable[[], None]) -> dict[str, Any]:
        """The load from its first record to the acknowledgement of its last one; calls `probe_it` once it has lasted
        long enough."""
        environment = self._place.environment(settings) | {
            "BENCH_KAFKA": self._place.kafka,
            "BENCH_TOPIC": settings.topic_events,
            "BENCH_RATE": str(level.rate),
            "BENCH_LINES": str(lines),
        }
        argv = [sys.executable, str(PEERS / "paced_load.py")]
        with self._place.process(argv, environment, lines.parent, cores=COMPETITOR_CORES) as running:
            running.until("begun", _MAX_S)
            time.sleep(level.lasted_s)
            probe_it()
            time.sleep(level.seconds / 3)  # until blocks are as large as the load makes them
            before, since = sum(self._place.offsets(settings).values()), time.monotonic()
            told: dict[str, Any] = json.loads(running.until("done ", _MAX_S).removeprefix("done "))
            counted = sum(self._place.offsets(settings).values()) - before
            counted_per_s = round(counted / (time.monotonic() - since))
        if told["sent"] != len(level.load):
            raise BenchError(f"{told['sent']:,} of {len(level.load):,} records of the load were sent")
        sent_per_s = round(told["sent"] / told["seconds"])
        return {"sent_per_s": sent_per_s, "behind_s": told["behind_s"], "counted_per_s": counted_per_s}

    def _settle(self, settings: Settings, prober: "_Prober", worker: Running) -> None:
        """Until all that was sent is counted, so that the next load does not begin on this one's backlog."""
        end = time.monotonic() + _SETTLE_S
        while prober.probes.open() or not self._place.counted(settings, self._place.ends(settings)):
            worker.check(_MAX_S)
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        prober.stop()


class _Prober:
    """Threads that send the probes of one level and look for them in the facts."""

    def __init__(self, place: Place, settings: Settings, port: int, key: str, level: Level) -> None:
        self._place = place
        self._settings = settings
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}"}
        self._level = level
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.probes = Probes()

    def start(self) -> None:
        """Begins to send, as long as the level is, and to look, until `stop`."""
        kinds = (("/v1/events", 1, self._level.singles_per_s), ("/v1/events/batch", LIST, self._level.lists_per_s))
        for path, size, rate in kinds:
            self._thread(self._send, path, size, rate, self._level.seconds)
        self._look_thread = threading.Thread(target=_anywhere, args=(self._look,), daemon=True)
        self._look_thread.start()

    def finish(self) -> None:
        """Blocks until all is sent."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Ends looking."""
        self._over.set()
        self._look_thread.join()

    def _thread(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=_anywhere, args=(work, *arguments), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _send(self, path: str, size: int, rate: float, seconds: float) -> None:
        """At even moments; after an answer that took too long, at once."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        began = time.perf_counter()
        for number in range(max(1, int(rate * seconds))):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            name = f"{self._level.name}-{size}-{number}"
            self.probes.timestamps[name] = now = _now()
            body, kind = probe(name, size, now)
            try:
                connection.request("POST", path, body, {**self._headers, "Content-Type": kind})
                answer = connection.getresponse()
                told = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.probes.faults.append(repr(error))
                connection.close()
                continue
            if answer.status >= 300:
                self.probes.faults.append(f"{answer.status} {told[:200]!r}")
                continue
            self.probes.sizes[name] = size
            self.probes.answered[name] = time.perf_counter()
        connection.close()

    def _look(self) -> None:
        probes = self.probes
        sql = (  # constants and a name that the settings have checked
            f"SELECT splitByChar('/', transaction_id)[1] AS request, count() FROM {self._settings.database}.events "
            f"WHERE account = '{ACCOUNT}' AND client_id = '{_CUSTOMER}' AND timestamp >= {{}} "
            f"AND startsWith(transaction_id, '{self._level.name}-') GROUP BY request"
        )
        seen: Mapping[str, int] = {}
        while not self._over.is_set():
            # also of requests whose answer is still on its way: they are countable before it
            try:
                since = f"'{probes.since():%Y-%m-%d %H:%M:%S.%f}'"  # spares the store the parts that are older
                seen = dict(self._place.query(sql.format(since)))
            except (StoreError, StoreUnavailable) as error:
                probes.faults.append(str(error))
            now = time.perf_counter()
            for name in probes.open():
                if seen.get(name) == probes.sizes[name]:
                    probes.countable[name] = now
            time.sleep(_REST_S)


def _now() -> datetime:
    """When a probe happens: in the load's month, so that no block is of two. Goes on as the clock does."""
    return moment(time.monotonic() - _BEGAN_S)


def _anywhere(work: Callable[..., None], *arguments: Any) -> None:
    """Who asks is a client: this thread runs where there is room, and takes no core from what it measures."""
    os.sched_setaffinity(0, ALL_CORES)
    work(*arguments)


def probe(name: str, size: int, now: datetime) -> tuple[bytes, str]:
    """Body and media type of a request with so many events of one customer, each of which adds 1 to both features."""
    data = {"region": "eu-central-1", "model": "large-2026", "status": "ok", "stream": True, "tokens": 1}
    when = f"{now:%Y-%m-%dT%H:%M:%S.%f}Z"
    if size == 1:
        one = {
            "customer_id": _CUSTOMER,
            "event_name": EVENT_NAME,
            "value": 1,
            "timestamp": when,
            "idempotency_key": f"{name}/0",
            "properties": data,
        }
        return json.dumps(one).encode(), "application/json"
    lines = [
        {
            "clientId": _CUSTOMER,
            "timestamp": when,
            "transactionId": f"{name}/{number}",
            "eventName": EVENT_NAME,
            "value": 1,
            "data": data,
        }
        for number in range(size)
    ]
    return b"\n".join(json.dumps(line).encode() for line in lines), "application/x-ndjson"


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed (nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def latency_figures(probes: Probes) -> dict[str, Any]:
    """What a level's probes come to; `checked` is empty when each was answered and became countable."""
    row: dict[str, Any] = {"probe_events": probes.events()}
    for kind, size in (("single", 1), ("list", LIST)):
        waits = probes.waits(size)
        if waits:
            row[kind] = {
                "requests": len(waits),
                "p50_s": round(percentile(waits, 0.5), 3),
                "p99_s": round(percentile(waits, 0.99), 3),
            }
    lost = probes.open()
    row["checked"] = "; ".join(
        told
        for told in (
            f"{len(lost)} requests not countable after {_SETTLE_S:.0f} s" if lost else "",
            f"{len(probes.faults)} requests refused, the first: {probes.faults[0]}" if probes.faults else "",
        )
        if told
    )
    return row


def countable_figure(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`countable_p99_s` of bench.json: half load, of single events or of lists, whichever is longer."""
    half = next((row for row in rows if row["name"] == "half"), {})
    found = [half[kind]["p99_s"] for kind in ("single", "list") if kind in half]
    return {"countable_p99_s": max(found)} if found else {}


def _written(settings: Settings, level: Level) -> Path:
    """The load's records in a file, with partition and key as in the other topics of the bench."""
    folder = settings.home_dir / f"load-{level.name}"
    folder.mkdir()
    file = folder / "records"
    with file.open("wb") as out:
        for event in level.load:
            hashed = id_hash(settings.default_account, event.transaction_id)
            place = partition_of(hashed, settings.partitions)
            out.write(b"%d\t%s\t%s\n" % (place, event.transaction_id.encode(), event.line))
    return file
