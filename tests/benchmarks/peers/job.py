"""What every competitor shares, so that they differ in nothing but themselves: addresses, mapping, insert, two words.

Runs in environments that have nothing of the project but clickhouse-connect and orjson. A competitor prints `begun`
when the first record is in its hands and `done` when all are counted; whoever started it takes the times.
"""

import os
import time
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import orjson

KAFKA = os.environ["BENCH_KAFKA"]
TOPIC = os.environ["BENCH_TOPIC"]
GROUP = os.environ["BENCH_GROUP"]
TABLE = os.environ["BENCH_TABLE"]
FOLDER = os.environ["BENCH_FOLDER"]  # for state on disk; empty at the start
PARTITIONS = int(os.environ["BENCH_PARTITIONS"])
EVENTS = int(os.environ["BENCH_EVENTS"])  # in the topic, repetitions included
ROWS = int(os.environ["BENCH_ROWS"])  # that must come out, for those that stop by what comes out
RECORD_EVENTS = int(os.environ["BENCH_RECORD_EVENTS"])
BATCH = 20_000  # rows of one insert; larger ones gain nothing here

FEATURES = {"generation": (("generations", None), ("tokens", "tokens"))}
COLUMNS = ("client_id", "timestamp", "transaction_id", "feature", "quantity", "region", "model", "status")
loads = orjson.loads


def begun() -> None:
    """The first record is here."""
    print("begun", flush=True)


def done() -> None:
    """All events are counted. Waits to be killed, so that what the process has used can still be read."""
    print("done", flush=True)
    time.sleep(600)


def rows_of(event: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The mapping: a row for each feature that the event's name feeds, with the three dimensions."""
    data = event["data"]
    when = datetime.fromisoformat(event["timestamp"])
    dimensions = (data.get("region"), data.get("model"), data.get("status"))
    return [
        (event["clientId"], when, event["transactionId"], feature, data[key] if key else event["value"], *dimensions)
        for feature, key in FEATURES[event["eventName"]]
    ]


class Sink:
    """Batched inserts into one plain table over HTTP."""

    def __init__(self) -> None:
        at = urlsplit(os.environ["BENCH_CLICKHOUSE"])
        self._client = clickhouse_connect.get_client(host=at.hostname, port=at.port)

    def insert(self, rows: list[tuple[Any, ...]]) -> None:
        """One insert; returns once the server has the rows. Blocks."""
        columns = list(zip(*rows, strict=True))
        self._client.insert(TABLE, columns, column_names=COLUMNS, column_oriented=True)
