"""The contract of LogWriter, held by the fake and by the writer to Kafka; and a door on the real log."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from door_bench import Doors

from pipeline.adapters.kafka import LogRanges, RecordWriter, read_range
from pipeline.ports import LogUnavailable, LogWriter
from pipeline.settings import Settings
from pipeline.transaction_id import new_transaction_id
from producers.api import Services, build_app
from producers.intake import Intake
from producers.memory_log import MemoryLog
from producers.publisher import Publisher

Found = tuple[bytes | None, dict[str, bytes]]


@dataclass
class Bench:
    """A log with an empty topic of three partitions, and how to read a partition back."""

    log: LogWriter
    topic: str
    read: Callable[[int], Awaitable[list[Found]]]


async def _empty_topic(settings: Settings) -> str:
    topic = f"contract-{uuid.uuid4()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
    await admin.close()
    return topic


@pytest.fixture
async def kafka(kafka_bootstrap: str) -> AsyncIterator[Bench]:
    """The writer to Kafka."""
    settings = Settings(kafka=kafka_bootstrap)
    topic = await _empty_topic(settings)
    writer = RecordWriter(settings)
    ranges = LogRanges(settings)
    await writer.start()

    async def read(partition: int) -> list[Found]:
        start, end = await ranges.bounds(topic, partition)
        batches = read_range(settings, topic, partition, start, end)
        return [(record.value, dict(record.headers)) async for batch in batches for record in batch]

    yield Bench(writer, topic, read)
    await ranges.stop()
    await writer.stop()


@pytest.fixture
def memory() -> Bench:
    """The fake."""
    log = MemoryLog()

    async def read(partition: int) -> list[Found]:
        return [(record.value, record.headers) for record in log.records if record.partition == partition]

    return Bench(log, "events", read)


@pytest.fixture(params=["memory", "kafka"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each of the two in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Bench)
    return found


async def test_offsets_ascend_and_everything_is_read_back(bench: Bench) -> None:
    """What was acknowledged lies in its partition in the order of the offsets, with its headers."""
    headers = [("account", "ümlaut".encode()), ("defaulted", b"timestamp")]
    values = [f"v{n}".encode() for n in range(3)]
    offsets = [await bench.log.write(bench.topic, value, partition=1, headers=headers) for value in values]
    assert offsets == [0, 1, 2]
    assert await bench.read(1) == [(value, dict(headers)) for value in values]
    assert await bench.read(0) == []


async def test_writes_at_once_are_all_kept(bench: Bench) -> None:
    """Concurrent callers each get an offset of their own."""
    values = {str(n).encode() for n in range(20)}
    offsets = await asyncio.gather(*(bench.log.write(bench.topic, value, partition=2) for value in values))
    assert sorted(offsets) == list(range(20))
    assert {value for value, _ in await bench.read(2)} == values


async def test_the_largest_record_is_taken(bench: Bench) -> None:
    """512 KiB of bytes that do not compress."""
    value = uuid.uuid4().bytes * (512 * 1024 // 16)
    await bench.log.write(bench.topic, value, partition=0)
    assert [found for found, _ in await bench.read(0)] == [value]


async def test_a_writer_that_is_not_started_is_unavailable(kafka_bootstrap: str) -> None:
    """And says so instead of waiting."""
    with pytest.raises(LogUnavailable):
        await RecordWriter(Settings(kafka=kafka_bootstrap)).write("t", b"v", partition=0)


async def test_no_broker_is_unavailable_with_advice() -> None:
    """The message names the setting to look at."""
    with pytest.raises(LogUnavailable, match="TALLY_KAFKA"):
        await RecordWriter(Settings(kafka="127.0.0.1:1")).start()


async def test_events_through_a_door_lie_in_kafka(doors: Doors, kafka: Bench) -> None:
    """Every event once, in its partition, under its account; the answer came after the acknowledgement."""
    intake = Intake(
        Publisher(kafka.log, topic=kafka.topic, partitions=3),
        doors.intake.catalog,
        clock_us=doors.intake.clock_us,
        ahead_max_us=doors.intake.ahead_max_us,
        new_id=new_transaction_id,
    )
    sent = [{"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "transactionId": f"t{n}"} for n in range(500)]
    client = doors.on(build_app(Services(intake, {})))
    answer = await client.post("/api/v1/events", json=sent, headers={"authorization": doors.key})
    assert answer.json()["accepted"] == 500
    records = [record for partition in range(3) for record in await kafka.read(partition)]
    assert len(records) == 3
    assert {headers["account"] for _, headers in records} == {b"acme"}
    lines = [line for value, _ in records for line in (value or b"").split(b"\n")]
    assert sorted(json.loads(line)["transactionId"] for line in lines) == sorted(str(e["transactionId"]) for e in sent)
