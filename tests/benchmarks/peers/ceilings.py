"""What one core can do at most, step by step: ``ceilings.py read|decode|msgspec|insert``.

read: aiokafka hands over all records, with the worker's consumer settings; nothing is done with them. From the moment
it has its partitions.
decode: the same, and the worker's own decoding stage on blocks of 20,000 records (fields, instants, numbers, ids).
msgspec: the same with msgspec into a Struct instead, as a reference for what another decoder would take.
insert: blocks that were built beforehand go to the store as the worker sends them, with all default rollups.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from job import EVENTS, KAFKA, PARTITIONS, TOPIC, begun, done

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.catalog_log import CatalogClient, KafkaCatalogLog
from pipeline.adapters.clickhouse import Store
from pipeline.block import LogRecord, Place
from pipeline.settings import Settings
from pipeline.stages.build import build_block, in_columns
from pipeline.stages.columnar import warm_up
from pipeline.stages.mapping import Mapper, Mappers

_FAR_MS = 4_000_000_000_000  # a deadline that never comes
_Work = Callable[[int, Sequence[LogRecord]], None]


class Event(msgspec.Struct, rename="camel", gc=False):
    """An event's fields; its data stays as it came."""

    client_id: str
    timestamp: datetime
    transaction_id: str
    event_name: str
    value: int
    data: msgspec.Raw


async def read(work: _Work | None, at_first: Callable[[], None] = begun) -> None:
    """Reads the whole topic; `work` gets the records of a fetch with their partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=KAFKA,
        enable_auto_commit=False,
        isolation_level="read_committed",
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        ends = await consumer.end_offsets(places)
        at_first()
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        left, read = sum(ends.values()), 0
        while read < left:
            for place, found in (await consumer.getmany(timeout_ms=1000, max_records=20_000)).items():
                read += len(found)
                if work is not None:
                    work(place.partition, [LogRecord(r.offset, r.timestamp, r.value, r.headers) for r in found])
    finally:
        await consumer.stop()


async def mapper_of(settings: Settings) -> Mapper:
    """The catalog as it is now."""
    client = CatalogClient(KafkaCatalogLog(settings))
    await client.start()
    try:
        await client.catch_up()
        return Mappers(client.catalog).at(client.catalog.version)
    finally:
        await client.stop()


def place_of(settings: Settings, partition: int) -> Place:
    """A partition as the worker's stages want it."""
    ahead_max_us = settings.ahead_max_hours * 3_600_000_000
    return Place(settings.topic_events, 0, partition, settings.partitions, settings.default_account, ahead_max_us)


def msgspec_work() -> _Work:
    """Decodes each line into a Struct."""
    decode = msgspec.json.Decoder(Event).decode

    def work(partition: int, records: Sequence[LogRecord]) -> None:
        for record in records:
            for line in record.value.split(b"\n"):
                decode(line)

    return work


def insert_all(settings: Settings, mapper: Mapper) -> None:
    """Builds all blocks, as large as the worker's are, then inserts them one after the other."""
    by_partition: dict[int, list[LogRecord]] = {number: [] for number in range(PARTITIONS)}
    asyncio.run(read(lambda partition, records: by_partition[partition].extend(records), at_first=lambda: None))
    per_block = settings.block_rows_max * sum(map(len, by_partition.values())) // EVENTS
    blocks = []
    for partition, records in by_partition.items():
        for first in range(0, len(records), per_block):
            some = records[first : first + per_block]
            blocks.append(
                build_block(
                    place_of(settings, partition),
                    some,
                    start=some[0].offset,
                    end=some[-1].offset + 1,
                    mapper=mapper,
                    catalog_version=mapper.version,
                    lookup=lambda _: {},
                )
            )
    store = Store(settings)
    to = BlockStore(store, topic=settings.topic_events, database=settings.database)
    begun()
    for block in blocks:
        to.insert(block, _FAR_MS)
    done()


def main() -> None:
    """One of the steps."""
    what = sys.argv[1]
    settings = Settings()
    warm_up()
    mapper = asyncio.run(mapper_of(settings))
    if what == "insert":
        insert_all(settings, mapper)
        return

    def columns(partition: int, records: Sequence[LogRecord]) -> None:
        in_columns(place_of(settings, partition), records, mapper)

    works: dict[str, Any] = {"read": None, "decode": columns, "msgspec": msgspec_work()}
    asyncio.run(read(works[what]))
    done()


if __name__ == "__main__":
    main()
