"""What every LogWriter with its LogReader promises to the block protocol: Kafka, and the log in memory."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.adapters.kafka import LogRanges, RecordWriter
from pipeline.adapters.log_fake import MemoryLog
from pipeline.ports import LogReader, LogUnavailable, LogWriter, Record
from pipeline.settings import Settings


@dataclass
class Bench:
    """An empty topic of two partitions. `delete_before(partition, offset)` does what retention does."""

    topic: str
    writer: LogWriter
    reader: LogReader
    delete_before: Callable[[int, int], Awaitable[None]]

    async def read(self, partition: int, start: int, end: int) -> list[Record]:
        """The whole range."""
        return [
            r for batch in [b async for b in self.reader.read_range(self.topic, partition, start, end)] for r in batch
        ]


@pytest.fixture
async def kafka(kafka_settings: Settings) -> AsyncIterator[Bench]:
    """The real broker."""
    writer, ranges = RecordWriter(kafka_settings), LogRanges(kafka_settings)
    topic = kafka_settings.topic_events
    await writer.start()

    async def delete_before(partition: int, offset: int) -> None:
        client = AdminClient({"bootstrap.servers": kafka_settings.kafka})
        for done in client.delete_records([TopicPartition(topic, partition, offset)]).values():
            done.result(20)

    yield Bench(topic, writer, ranges, delete_before)
    await ranges.stop()
    await writer.stop()


@pytest.fixture
def memory() -> Bench:
    """The fake."""
    log = MemoryLog(lambda: time.time_ns() // 1_000_000)

    async def delete_before(partition: int, offset: int) -> None:
        log.delete_before("events", partition, offset)

    return Bench("events", log, log, delete_before)


@pytest.fixture(params=["memory", "kafka"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each of the two in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found


async def test_what_was_acknowledged_is_read_back_as_it_was(bench: Bench) -> None:
    """At the offset that was told, with key, value, headers in their order, and an append time that never falls."""
    headers = [("account", "ümlaut".encode()), ("account", b"again"), ("empty", b"")]
    written: list[tuple[bytes | None, bytes | None]] = [(b"k", b"v"), (None, b""), (b"\x00\xff", None)]
    offsets = [
        await bench.writer.write(bench.topic, value, partition=1, key=key, headers=headers) for key, value in written
    ]
    found = await bench.read(1, 0, 3)
    assert offsets == [0, 1, 2]
    assert [r.offset for r in found] == offsets
    assert [(r.key, r.value) for r in found] == written
    assert all(list(r.headers) == headers for r in found)
    times = [r.timestamp_ms for r in found]
    assert times == sorted(times)
    assert await bench.reader.bounds(bench.topic, 0) == (0, 0)


async def test_a_range_is_read_to_its_end_and_no_further(bench: Bench) -> None:
    """Whatever the batches are; an empty range gives none."""
    for number in range(250):
        await bench.writer.write(bench.topic, b"%d" % number, partition=0)
    assert await bench.reader.bounds(bench.topic, 0) == (0, 250)
    assert [r.offset for r in await bench.read(0, 7, 249)] == list(range(7, 249))
    assert await bench.read(0, 5, 5) == []


async def test_what_was_deleted_is_told_and_never_skipped(bench: Bench) -> None:
    """A reader that silently began at the first record left would lose what lay before."""
    for number in range(5):
        await bench.writer.write(bench.topic, b"%d" % number, partition=0)
    await bench.delete_before(0, 3)
    assert await bench.reader.bounds(bench.topic, 0) == (3, 5)
    assert [r.value for r in await bench.read(0, 3, 5)] == [b"3", b"4"]
    with pytest.raises(LogUnavailable):
        await bench.read(0, 2, 5)
