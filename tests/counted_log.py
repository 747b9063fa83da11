"""A log of one partition and its worker, reduced to what the store sees: records become blocks by the pipeline's own
stages and go into the store as the worker puts them there (ledger, rows under a token, rejects, progress).
"""

import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.gap_store import Gap, GapStore
from pipeline.block import LogRecord, Place
from pipeline.catalog import Account, Catalog, Dimension, Feature, encode_account, encode_dimension, encode_feature
from pipeline.ports import Header, Progress, Record
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mappers
from pipeline.stages.sink import Block

FIRST = datetime(2025, 11, 20, tzinfo=UTC)
APPENDED_MS = 1_767_225_600_123
FAR_MS = 4_000_000_000_000
HEADERS: tuple[Header, ...] = (("account", b"acme"),)
AHEAD_MAX_US = 10**15


def catalog_of(features: Iterable[Feature], dimensions: Iterable[Dimension]) -> Catalog:
    """An account `acme` with these, in the order of their revisions."""
    records = [encode_account(Account(id="acme", name="Acme", mode="live"), "0")]
    records += [encode_feature(feature, str(i)) for i, feature in enumerate(features)]
    records += [encode_dimension(dimension, str(i)) for i, dimension in enumerate(dimensions)]
    made = Catalog()
    for offset, record in enumerate(records):
        made.apply(offset, *record)
    return made


def catalog() -> Catalog:
    """Features of several aggregations and a dimension of each type."""
    calls: Any = {"account": "acme", "event_names": ("call",)}
    features = [
        Feature(id="calls", name="Calls", aggregation="count", **calls),
        Feature(id="tokens", name="Tokens", value_key="tokens", **calls),
        Feature(id="peak", name="Peak", aggregation="max", value_key="tokens", **calls),
        Feature(id="last", name="Last", aggregation="latest", **calls),
        Feature(id="users", name="Users", aggregation="unique", unique_key="user", **calls),
    ]
    dimensions = [
        Dimension(account="acme", key="model", type="string"),
        Dimension(account="acme", key="seconds", type="number"),
    ]
    return catalog_of(features, dimensions)


def plain_events(seed: int, number: int) -> list[bytes]:
    """The same in the midst of a month, by a name that no feature counts: no sparse table gets anything of them."""
    return [json.dumps({**json.loads(event), "eventName": "mail"}).encode() for event in events(seed, number, 5)]


MAPPERS = Mappers(catalog())
VERSION = 7


def events(seed: int, number: int, days: int) -> list[bytes]:
    """Events from FIRST on, over so many days, each with an id of its own."""
    draw = random.Random(seed)
    return [
        json.dumps(
            {
                "clientId": draw.choice(("anna", "ben")),
                "timestamp": (FIRST + timedelta(seconds=draw.randrange(days * 86_400))).isoformat(),
                "transactionId": f"{seed}-{i}",
                "eventName": draw.choice(("call", "call", "mail")),
                "value": draw.randrange(-5, 100),
                "data": {
                    "tokens": draw.randrange(1000),
                    "user": draw.choice("abc"),
                    "model": draw.choice(("large", "small")),
                    "seconds": draw.randrange(100),
                },
            }
        ).encode()
        for i in range(number)
    ]


@dataclass
class CountedLog:
    """One partition's log and the blocks that were made of it. `partitions`: of the topic."""

    store: Store
    topic: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")  # tokens hold the topic's name
    partition: int = 0
    partitions: int = 1
    epoch: int = 0
    end: int = 0
    records: list[Record] = field(default_factory=list)
    seen: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def blocks(self) -> BlockStore:
        """The store as the worker writes it."""
        database = self.store.query("SELECT currentDatabase()").rows[0][0]
        return BlockStore(self.store, topic=self.topic, database=database)

    def count(self, values: Iterable[bytes], *, ledger: bool = True) -> Block:
        """Appends a record for each value and counts them as one block."""
        return self.count_records([(value, APPENDED_MS) for value in values], ledger=ledger)

    def count_records(self, values: Sequence[tuple[bytes, int]], *, ledger: bool = True) -> Block:
        """The same with the append times that the broker gave."""
        block = self.build(values)
        self.store_block(block)
        self.report()
        return block

    def build(self, values: Sequence[tuple[bytes, int]]) -> Block:
        """The next block, not in the store yet."""
        start = self.end
        added = [Record(start + i, None, value, at_ms, HEADERS) for i, (value, at_ms) in enumerate(values)]
        self.records += added
        self.end = start + len(added)
        block = build_block(
            Place(self.topic, self.epoch, self.partition, self.partitions, "acme", AHEAD_MAX_US),
            [LogRecord(r.offset, r.timestamp_ms, r.value, tuple(r.headers)) for r in added],
            start=start,
            end=self.end,
            mapper=MAPPERS.at(VERSION),
            catalog_version=VERSION,
            lookup=lambda keys: {key: self.seen[key] for key in keys if key in self.seen},
        )
        self.seen.update(block.sightings)
        return block

    def store_block(self, block: Block) -> None:
        """Ledger, rows, rejects, repeats."""
        self.blocks.write_ledger([(block, time.time_ns() // 1_000_000)])
        self.blocks.insert(block, FAR_MS)
        self.blocks.write_rejects(block)
        if block.repeats is not None:
            self.blocks.write_repeats([block])

    def give_up(self, values: Iterable[bytes]) -> None:
        """A block that was stated and left nothing else, and that nobody can build again."""
        block = self.build([(value, APPENDED_MS) for value in values])
        self.blocks.write_ledger([(block, time.time_ns() // 1_000_000)])
        gaps = GapStore(self.store, self.blocks, topic=self.topic)
        gap = Gap(block.epoch, block.partition, block.start, block.end, "retention", "ops@host", datetime.now(UTC))
        gaps.give_up(gap, gaps.block_at(block.epoch, block.partition, block.start))
        self.report()

    def report(self) -> None:
        """Everything so far is counted."""
        self.blocks.write_progress([Progress(self.partition, self.epoch, APPENDED_MS, self.end, self.end)])

    # -- the log, as LogRanges reads it

    first: int = 0

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First retained offset and the end."""
        return self.first, self.end

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The retained records of [start, end), ten at a time."""
        found = [record for record in self.records if max(start, self.first) <= record.offset < end]
        for at in range(0, len(found), 10):
            yield found[at : at + 10]
