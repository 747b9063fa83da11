"""The API beside a FastAPI endpoint of the same duty: one event a request, and the API's lists of 500.

The server runs on the competitor's core, wrk on the other one with broker and engine. A short load before the clock
starts makes customers known and connections warm. What was acknowledged is looked for in the topic: every answer's
events must be there.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench_environments import FASTAPI, Missing, environment
from bench_events import CATALOG
from bench_place import PARTITIONS, PEERS, BenchError, Place, Timed
from confluent_kafka import Consumer, TopicPartition

from pipeline.local.port import choose
from pipeline.settings import Settings

CONNECTIONS: Final = 64
_WARM_S: Final = 3
_READY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Door:
    """A server: its program, more for its environment, and where to send `many` events a request with which key."""

    argv: Sequence[str]
    extra: Mapping[str, str]
    url: str
    key: str
    many: int


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk was told and what it saw. `answers` are requests; `timed` is of the server, broker and engine."""

    answers: int
    p99_ms: float
    timed: Timed
    checked: str


def api(place: Place, many: int, seconds: int) -> Load:
    """`tally api`, one process, with `many` events in each request."""
    settings, key = _settings(place, f"api_{many}")
    port = choose("api", wanted=None, remembered=None, taken=set())
    path = "/v1/events" if many == 1 else "/v1/events/batch"
    argv = [sys.executable, "-m", "tally", "api"]
    door = Door(argv, {"TALLY_API_PORT": str(port)}, f"http://127.0.0.1:{port}{path}", key, many)
    return _measure(place, settings, door, seconds)


def fastapi(place: Place, seconds: int, say: Any) -> Load:
    """The endpoint in peers/fastapi_door.py, one uvicorn process."""
    python = environment("fastapi", FASTAPI, say)
    settings, key = _settings(place, "fastapi")
    port = choose("api", wanted=None, remembered=None, taken=set())
    argv = [
        str(python),
        "-m",
        "uvicorn",
        "fastapi_door:app",
        "--port",
        str(port),
        "--loop",
        "uvloop",
        "--no-access-log",
    ]
    extra = {
        "PYTHONPATH": str(PEERS),
        "BENCH_KAFKA": place.kafka,
        "BENCH_TOPIC": settings.topic_events,
        "BENCH_KEY": key,
    }
    return _measure(place, settings, Door(argv, extra, f"http://127.0.0.1:{port}/v1/events", key, 1), seconds)


def _settings(place: Place, name: str) -> tuple[Settings, str]:
    """A topic of its own with the bench's catalog, and a key to it."""
    settings = place.fresh(f"bench.{name}.{time.time_ns()}", name)
    place.tally(settings, "init")
    catalog = settings.home_dir / "catalog.yaml"
    catalog.write_text(CATALOG)
    place.tally(settings, "apply", str(catalog))
    return settings, json.loads(place.tally(settings, "keys", "create"))["key"]


def _measure(place: Place, settings: Settings, door: Door, seconds: int) -> Load:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Missing("wrk is missing: on Debian, apt install wrk")
    with place.process(door.argv, {**place.environment(settings), **door.extra}, settings.home_dir) as running:
        await_ready(door.url.partition("/v1/")[0] + "/readyz")
        _load(wrk, door, _WARM_S, "warm")
        before = _ends(place, settings)
        watch = place.watch(running.pid)
        watch.start()
        found = _load(wrk, door, seconds, "counted")
        timed = watch.stop()
    timed.seconds = found["seconds"]
    events = _lines(place, settings, before)
    answered = found["answers"] * door.many
    most = answered + CONNECTIONS * door.many  # wrk leaves when its time is over: what is under way may be written
    checked = "right" if answered <= events <= most else f"{answered:,} events answered, {events:,} in Kafka"
    if found["refused"]:
        checked = f"{found['refused']:,} of {found['answers']:,} requests refused"
    place.drop(settings.database)
    return Load(found["answers"], found["p99_ms"], timed, checked)


def _load(wrk: str, door: Door, seconds: int, ids: str) -> dict[str, Any]:
    """One call of wrk; `ids` keeps the ids of one call apart from those of another."""
    told = {"BENCH_LIST": str(door.many), "BENCH_KEY": door.key, "BENCH_IDS": f"{ids}-{'0' * 16}"}
    connections = CONNECTIONS if door.many == 1 else CONNECTIONS // 8  # lists of 500 keep a server busy with few
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(PEERS / "requests.lua")]
    done = subprocess.run(
        [wrk, *options, door.url], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("result "):
            found: dict[str, Any] = json.loads(line.removeprefix("result "))
            return found
    raise BenchError(f"wrk gave no result: {done.stdout}{done.stderr}")


def await_ready(url: str) -> None:
    """Blocks until the address answers 200. Raises BenchError after a minute."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own address
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise BenchError(f"{url} is not ready after {_READY_S:.0f} s")


def _ends(place: Place, settings: Settings) -> list[int]:
    consumer = _consumer(place)
    try:
        places = [TopicPartition(settings.topic_events, number) for number in range(PARTITIONS)]
        return [consumer.get_watermark_offsets(at, timeout=20, cached=False)[1] for at in places]
    finally:
        consumer.close()


def _lines(place: Place, settings: Settings, starts: Sequence[int]) -> int:
    """Events of the counted load in the topic; `starts`: offsets to look from."""
    ends, consumer = _ends(place, settings), _consumer(place)
    try:
        consumer.assign([TopicPartition(settings.topic_events, number, at) for number, at in enumerate(starts)])
        left, lines = sum(ends) - sum(starts), 0
        while left > 0:
            messages = consumer.consume(min(left, 10_000), timeout=5)
            if not messages:
                raise BenchError(f"{left} records of {settings.topic_events} cannot be read")
            left -= len(messages)
            lines += sum(message.value().count(b'"counted-') for message in messages)
        return lines
    finally:
        consumer.close()


def _consumer(place: Place) -> Consumer:
    return Consumer(
        {"bootstrap.servers": place.kafka, "group.id": "bench-look", "enable.auto.commit": False, "log_level": 0}
    )
