"""Events as the worker stores them, for tests of the store and of what reads it: rows of a block, their ledger entry,
and a fresh store to put them into.

Rules: rows are made from plain Python values that the tests keep, so that what comes out is compared with what went
in, never with another query.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pyarrow as pa

from pipeline.adapters.clickhouse import Store
from pipeline.event import id_hash
from pipeline.migrate import migrate
from pipeline.settings import Settings

TOPIC = "tally.events"
FAR = datetime(2099, 1, 1, tzinfo=UTC)
DECIMAL = pa.decimal128(38, 9)
_databases = count()


@dataclass(frozen=True, slots=True)
class Metered:
    """What one event adds to one feature."""

    feature: str
    rev: int
    quantity: Decimal
    distinct_hash: int = 0


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One accepted event with its position, meters, string dimensions and number dimensions."""

    account: str
    client_id: str
    timestamp: datetime
    offset: int
    line: int = 0
    partition: int = 0
    epoch: int = 0
    entity_id: str = ""
    event_name: str = "call"
    value: Decimal = Decimal(1)
    meters: tuple[Metered, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Decimal] = field(default_factory=dict)
    append_time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    @property
    def transaction_id(self) -> str:
        """Unique by position."""
        return f"tx-{self.epoch}-{self.partition}-{self.offset}-{self.line}"

    @property
    def id_hash(self) -> int:
        """As the pipeline hashes it."""
        return id_hash(self.account, self.transaction_id)


def fresh_store(url: str, **settings: Any) -> Store:
    """A store over a new, migrated database of the engine at `url`."""
    name = f"tally_{next(_databases)}_{random.SystemRandom().randrange(1 << 40)}"
    values = Settings(clickhouse=url, database=name, **settings)
    migrate(values)
    return Store(values)


def emptied(store: Store) -> Store:
    """The same store without any rows; tokens of blocks are forgotten with their parts."""
    tables = store.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        " AND name != 'schema_versions' AND total_rows > 0"
    )
    for (name,) in tables.rows:
        store.command(f"TRUNCATE TABLE {name}")
    return store


def definition_of(store: Store, name: str) -> str:
    """The statement that makes this table or view as all migrations together have left it."""
    ((made,),) = store.query(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {name:String}",
        {"name": name},
    ).rows
    return str(made)


def block_rows(events: Sequence[StoredEvent], *, start: int, deadline: datetime = FAR) -> pa.Table:
    """The Arrow block that the worker inserts for these events."""
    names = [[*e.texts, *e.numbers] for e in events]
    columns: dict[str, tuple[Iterable[Any], pa.DataType]] = {
        "account": ((e.account for e in events), pa.string()),
        "client_id": ((e.client_id for e in events), pa.string()),
        "entity_id": ((e.entity_id for e in events), pa.string()),
        "timestamp": ((_micros(e.timestamp) for e in events), pa.int64()),
        "append_time": ((_micros(e.append_time) // 1000 for e in events), pa.int64()),
        "transaction_id": ((e.transaction_id for e in events), pa.string()),
        "id_hash": ((_wide(e.id_hash) for e in events), pa.binary(16)),
        "event_name": ((e.event_name for e in events), pa.string()),
        "feature_id": (("" for _ in events), pa.string()),
        "kind": (("delta" for _ in events), pa.string()),
        "target_id": (("" for _ in events), pa.string()),
        "value": ((e.value for e in events), DECIMAL),
        "data": (("" for _ in events), pa.string()),
        "meters.feature": (([m.feature for m in e.meters] for e in events), pa.list_(pa.string())),
        "meters.rev": (([m.rev for m in e.meters] for e in events), pa.list_(pa.uint64())),
        "meters.quantity": (([m.quantity for m in e.meters] for e in events), pa.list_(DECIMAL)),
        "meters.distinct_hash": (
            ([_wide(m.distinct_hash) for m in e.meters] for e in events),
            pa.list_(pa.binary(16)),
        ),
        "dims.name": (names, pa.list_(pa.string())),
        "dims.rev": (([1] * len(n) for n in names), pa.list_(pa.uint64())),
        "dims.text": (([*e.texts.values(), *("" for _ in e.numbers)] for e in events), pa.list_(pa.string())),
        "dims.number": (
            ([*(Decimal(0) for _ in e.texts), *e.numbers.values()] for e in events),
            pa.list_(DECIMAL),
        ),
        "dims.is_number": (([0] * len(e.texts) + [1] * len(e.numbers) for e in events), pa.list_(pa.uint8())),
        "catalog_version": ((7 for _ in events), pa.int64()),
        "epoch": ((e.epoch for e in events), pa.uint32()),
        "partition": ((e.partition for e in events), pa.uint32()),
        "offset": ((e.offset for e in events), pa.uint64()),
        "line": ((e.line for e in events), pa.uint32()),
        "block_start": ((start for _ in events), pa.uint64()),
        "content_hash": ((hash(e.offset) & 0xFFFF for e in events), pa.uint64()),
        "deadline": ((_micros(deadline) // 1000 for _ in events), pa.int64()),
    }
    instants = {"timestamp": "us", "append_time": "ms", "deadline": "ms"}
    arrays = {name: pa.array(list(values), type=type_) for name, (values, type_) in columns.items()}
    for name, unit in instants.items():
        arrays[name] = arrays[name].cast(pa.timestamp(unit, tz="UTC"))
    return pa.table(arrays)


def ledger_rows(events: Sequence[StoredEvent], *, start: int, end: int, **verdicts: int) -> pa.Table:
    """The ledger entry of the block [start, end) that accepted these events; `verdicts` beside accepted."""
    head = {name: verdicts.get(name, 0) for name in ("duplicates", "conflicts", "rejected", "rerouted")}
    partition, epoch = (events[0].partition, events[0].epoch) if events else (verdicts.get("partition", 0), 0)
    months = sorted({_month(e) for e in events})
    rows = []
    for month in [0, *months]:
        part = [e for e in events if month in (0, _month(e))]
        counts = {**head, "accepted": len(events), "events": len(events) + sum(head.values())} if not month else {}
        rows.append(
            {
                "topic": TOPIC,
                "epoch": epoch,
                "partition": partition,
                "start": start,
                "end": end,
                "month": month,
                **dict.fromkeys(("events", "accepted", *head), 0),
                **counts,
                "rows": len(part),
                "value_sum": sum((e.value for e in part), Decimal(0)),
                "rules": 1,
                "id_hash_sum": _wide(sum(e.id_hash for e in part) % (1 << 128)),
                "stated_at": datetime(2026, 1, 1, tzinfo=UTC),
            }
        )
    types = {"value_sum": pa.decimal256(76, 9), "id_hash_sum": pa.binary(16), "stated_at": pa.timestamp("ms", tz="UTC")}
    return pa.table(
        {
            name: pa.array(
                [row[name] for row in rows], type=types.get(name, pa.string() if name == "topic" else pa.uint64())
            )
            for name in rows[0]
        }
    )


def insert_block(store: Store, events: Sequence[StoredEvent], *, start: int, end: int, **verdicts: int) -> None:
    """Ledger entry, then the rows under the block's token, as the worker does."""
    store.insert_arrow("blocks", ledger_rows(events, start=start, end=end, **verdicts))
    if events:
        token = f"{events[0].epoch}:{TOPIC}:{events[0].partition}:{start}-{end}"
        store.insert_arrow("ingest", block_rows(events, start=start), {"insert_deduplication_token": token})


def random_events(seed: int, number: int, account: str, first: datetime, days: int) -> list[StoredEvent]:
    """Events with features of every aggregation in two revisions, dimensions that are sometimes absent, instants on and
    beside the edges of cells, negative values, and several events at one instant."""
    draw = random.Random(seed)
    change = first + timedelta(days=days // 2)
    events = []
    for i in range(number):
        at = first + timedelta(microseconds=draw.randrange(days * 86_400_000_000))
        if draw.random() < 0.4:
            at = at.replace(minute=draw.choice((0, 15, 30, 45)), second=0, microsecond=draw.choice((0, 0, 1)))
        quantity = Decimal(draw.randrange(-(10**11), 10**12)) / Decimal(10 ** draw.choice((0, 3, 9)))
        rev = 20 if at >= change else 10
        names = draw.sample(("sum", "count", "max", "min", "latest", "unique", "average"), draw.randrange(8))
        meters = tuple(
            Metered(
                n,
                rev,
                Decimal(1) if n in ("count", "unique") else quantity,
                draw.randrange(1, 6) << 100 if n == "unique" else 0,
            )
            for n in names
        )
        texts = {name: draw.choice(("a", "b", "")) for name in ("region", "model") if draw.random() < 0.7}
        numbers = {"latency": Decimal(draw.randrange(1000)) / 8} if draw.random() < 0.6 else {}
        events.append(
            StoredEvent(
                account,
                draw.choice(("anna", "ben", "c'\\\t\u00fc")),
                at,
                offset=i // 7,
                line=i % 7,
                entity_id=draw.choice(("", "seat")),
                event_name=draw.choice(("call", "mail", "")),
                value=quantity,
                meters=meters,
                texts=texts,
                numbers=numbers,
            )
        )
    return events


def _month(event: StoredEvent) -> int:
    return event.timestamp.year * 100 + event.timestamp.month


def _micros(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _wide(number: int) -> bytes:
    return number.to_bytes(16, "little")
