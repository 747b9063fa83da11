"""Kafka: writing records, following a topic, reading a range. The one module that imports aiokafka.

Rules: producers are idempotent with acks=all, consumers read only what is committed, a missing offset is an error
and never a silent jump. Every wait has a bound.
"""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from struct import Struct as Packing
from typing import Any, Final

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, codec
from aiokafka import errors as Errors  # noqa: N812 - as the driver's own code calls them
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.consumer.group_coordinator import OffsetCommitRequest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from pipeline.block import LogRecord
from pipeline.ports import CommitAnswer, Header, LogUnavailable, Record
from pipeline.records import Records
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

RECORD_BYTES_MAX: Final = 512 * 1024
_REQUEST_BYTES_MAX: Final = 1024 * 1024  # Kafka's default of message.max.bytes
_FETCH_ROWS: Final = 20_000
_CONNECT_TIMEOUT_S: Final = 20.0
#: The broker has lost the producer's sequence: whatever this producer sends from now on is refused.
_PRODUCER_LOST: Final = (
    Errors.OutOfOrderSequenceNumber,
    Errors.UnknownProducerId,
    Errors.InvalidProducerEpoch,
    Errors.InvalidProducerIdMapping,
    Errors.ProducerFenced,
)


def connection(settings: Settings) -> dict[str, Any]:
    """What every client of the cluster is given."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka,
        "security_protocol": settings.kafka_security,
    }
    if settings.kafka_security.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context()
    if settings.kafka_security.startswith("SASL"):
        options["sasl_mechanism"] = "SCRAM-SHA-512"
        options["sasl_plain_username"] = settings.kafka_user
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return options


class RecordWriter:
    """Writes records and tells the offset once all in-sync replicas have them. One per process and event loop."""

    def __init__(self, settings: Settings, *, timeout_s: float = 10.0, linger_ms: int = 2) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._linger_ms = linger_ms
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()

    async def start(self) -> None:
        """Connects; raises LogUnavailable when no broker answers."""
        self._producer = await self._connected()

    async def stop(self) -> None:
        """Sends what is buffered as far as Kafka takes it within the time-out, then closes."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._closed(producer)

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return len(await self._running().partitions_for(topic))
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells nothing of topic {topic}: {error!r}") from error

    async def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> int:
        """One record; returns its offset after the acknowledgement. Raises LogUnavailable past the time-out."""
        producer = self._running()
        try:
            async with asyncio.timeout(self._timeout_s):
                sent = await producer.send(topic, value, key=key, partition=partition, headers=list(headers))
                # shielded: a caller that gives up must not cancel a batch that holds other callers' records
                metadata = await asyncio.shield(sent)
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, _PRODUCER_LOST) or producer._sender.sender_task.done():
                await self._renew(producer)
            raise LogUnavailable(f"Kafka did not acknowledge a record for {topic}: {error!r}") from error
        return int(metadata.offset)

    async def _renew(self, lost: AIOKafkaProducer) -> None:
        """A producer whose sequence the broker no longer knows fails for ever: another one takes its place."""
        async with self._renewing:
            if self._producer is lost:
                self._producer = await self._connected()
                await self._closed(lost)

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **connection(self._settings),
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",  # the library packs lz4 at its slowest level: 4.3 µs an event instead of 0.65
            linger_ms=self._linger_ms,
            max_batch_size=_REQUEST_BYTES_MAX // 2,
            max_request_size=_REQUEST_BYTES_MAX,
            request_timeout_ms=int(self._timeout_s * 1000),
        )
        await _start(producer)
        return producer

    async def _closed(self, producer: AIOKafkaProducer) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await producer.stop()
        except TimeoutError:  # an idempotent producer never gives up by itself
            await producer._sender.close()
            await producer.client.close()

    def _running(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise LogUnavailable("the writer is not started")
        return self._producer


async def follow(settings: Settings, topic: str, start: int, *, partition: int = 0) -> AsyncIterator[Record]:
    """The records of one partition from offset `start` on, for as long as the caller listens.

    Gaps in the offsets (compaction, transaction marks) are normal. Raises LogUnavailable.
    """
    consumer = _reader(settings)
    place = TopicPartition(topic, partition)
    await _start(consumer)
    try:
        consumer.assign([place])
        consumer.seek(place, start)
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    yield _record(record)
    except KafkaError as error:
        raise LogUnavailable(f"Kafka stopped giving {topic}: {error!r}") from error
    finally:
        await _stop(consumer)


async def read_range(
    settings: Settings, topic: str, partition: int, start: int, end: int
) -> AsyncIterator[Sequence[Record]]:
    """The records with offsets in [start, end), in batches, then stops. Blocks until `end` is reached.

    Raises LogUnavailable when the log does not hold `start` any more (the caller asked `bounds` first) or is away.
    """
    if start >= end:
        return
    consumer = _reader(settings)
    place = TopicPartition(topic, partition)
    await _start(consumer)
    try:
        consumer.assign([place])
        consumer.seek(place, start)
        position = start
        while position < end:
            batch = await consumer.getmany(timeout_ms=1000)
            records = [_record(r) for found in batch.values() for r in found if r.offset < end]
            if records:
                yield records
            position = await consumer.position(place)
    except KafkaError as error:
        raise LogUnavailable(f"Kafka stopped giving {topic}: {error!r}") from error
    finally:
        await _stop(consumer)


def _reader(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **connection(settings),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=250,
        max_partition_fetch_bytes=4 * RECORD_BYTES_MAX,
    )


async def _start(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await client.start()
    except asyncio.CancelledError:
        await _stop(client)  # half a connection would outlive whoever gave up
        raise
    except (KafkaError, TimeoutError, OSError) as error:
        await _stop(client)
        raise LogUnavailable(f"no Kafka broker answers: {error!r}; is it running, and is TALLY_KAFKA right?") from error


async def _stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Stops a client, in a task of its own: the driver waits for its tasks and swallows every cancellation meanwhile,
    also the caller's. A session that lost its cancellation so would hold up the rebalance for ever."""
    stopping = asyncio.ensure_future(client.stop())
    _stopping.add(stopping)
    stopping.add_done_callback(_stopping.discard)
    await asyncio.shield(stopping)


_stopping: set[asyncio.Future[None]] = set()


def _record(found: Any) -> Record:
    return Record(found.offset, found.key, found.value, found.timestamp, found.headers)


# ------------------------------------------------------------------------------------------------ consumer group


_NOT_APPLIED = (Errors.GroupLoadInProgressError, Errors.NotCoordinatorForGroupError)
_REFUSED = (
    Errors.UnknownMemberIdError,
    Errors.IllegalGenerationError,
    Errors.RebalanceInProgressError,
)


def group_consumer(settings: Settings) -> AIOKafkaConsumer:
    """The consumer of a worker, for Faust's consumer thread; call it there."""
    fetcher.MemoryRecords = _FetchedBytes  # to other consumers the same as before
    return AIOKafkaConsumer(
        **connection(settings),
        group_id=settings.group,
        group_instance_id=settings.instance or None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        session_timeout_ms=int(settings.session_timeout_s * 1000),
        heartbeat_interval_ms=int(min(3.0, settings.session_timeout_s / 3) * 1000),
        rebalance_timeout_ms=60_000,
        max_poll_interval_ms=1_000_000,
        max_poll_records=_FETCH_ROWS,
        fetch_min_bytes=256 << 10,  # each fetch costs broker and worker more than its bytes
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=4 << 20,
        request_timeout_ms=int(max(40.0, settings.session_timeout_s + 1) * 1000),
    )


class FetchedRecords(OrderedDict[Any, Any]):
    """What a consumer has fetched, by partition. Its records are unpacked a batch at a time into `Records`: the
    client's own, an object of eleven fields each, cost more than all the rest of reading. Which batches are read, and
    from which offset, stays the client's business (aborted transactions, control records, compaction, checksums)."""

    def __setitem__(self, tp: Any, result: Any) -> None:
        if type(result) is FetchResult:
            unpacking = result._partition_records
            if type(unpacking._records) is _FetchedBytes:
                unpacking._records = _Batches(unpacking._records)
                result.getall = partial(_all_of, result)
            unpacking._consumer_record = partial(_taken, unpacking)
        super().__setitem__(tp, result)


class _FetchedBytes:
    """What the client unpacks, and the bytes themselves, which it would keep to itself."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.records = MemoryRecords(data)
        self.has_next = self.records.has_next
        self.next_batch = self.records.next_batch
        self.size_in_bytes = self.records.size_in_bytes


class _Batches:
    """The batches of what was fetched, each read as one `_Chunk` where it has the present format."""

    def __init__(self, fetched: _FetchedBytes) -> None:
        self._data = memoryview(fetched.data)
        self._at = 0
        self._records = fetched.records
        self.has_next = self._records.has_next

    def next_batch(self) -> Any:
        """The client's own batch, whose records come all at once."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        _, length = _batch_start.unpack_from(self._data, self._at)
        data = self._data[self._at : self._at + _batch_start.size + length]
        self._at += len(data)
        return _Batch(batch, data) if data[_MAGIC_AT] >= _MAGIC else batch


class _Batch:
    """A batch of the present format. What the client asks of it it answers itself, but for its records."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        from pipeline.unpack import unpack  # noqa: PLC0415 - the compiler behind it takes a second to load

        base, _, _, _, _, attributes, _, first_ms, max_ms, _, _, _, count = _batch_head.unpack_from(self._data)
        packed, codec = self._data[_batch_head.size :], attributes & _CODEC_MASK
        found = None
        if codec in _DECODED:
            payload = _DECODED[codec](packed)
            found = unpack(payload, count, base, first_ms, max_ms if attributes & _APPEND_TIME else -1)
        if found is None:  # the client knows how to complain
            yield from self._batch
        elif found:
            yield _Chunk(found)


class _Chunk:
    """All records of a batch. `offset` is the last one's."""

    __slots__ = ("offset", "records")

    def __init__(self, records: Records) -> None:
        self.records = records
        self.offset = int(records.offsets[-1])


_MAGIC: Final = 2
_MAGIC_AT: Final = 16
_CODEC_MASK: Final = 0x07
_APPEND_TIME: Final = 0x08
_batch_start = Packing(">qi")
_batch_head = Packing(">qiibIhiqqqhii")
_DECODED: Final[dict[int, Callable[[memoryview], bytes]]] = {
    0: bytes,
    1: codec.gzip_decode,
    2: lambda packed: codec.snappy_decode(bytes(packed)),
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


def _taken(unpacking: Any, _: Any, record: Any) -> Any:
    """What the client gives out for a record, or for a chunk of them: those from its position on."""
    if type(record) is not _Chunk:
        return LogRecord(record.offset, record.timestamp, record.value, tuple(record.headers))
    first = int(np.searchsorted(record.records.offsets, unpacking.next_fetch_offset))
    return record.records[first:] if first else record.records


def _all_of(result: Any, max_records: int | None = None) -> Any:
    """`FetchResult.getall`, but for chunks: stops behind the one with which it has as many records as one fetch may
    bring. `max_records` counts what the driver would give out, one by one."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    found: list[Records] = []
    rows = 0
    for taken in result._partition_records:
        found.append(taken if isinstance(taken, Records) else Records.of([taken]))
        rows += len(found[-1])
        if rows >= _FETCH_ROWS:
            result._update_position()
            break
    else:
        result._update_position()
        result._partition_records = None
    return Records.joined(found) if found else []


async def committed_metadata(
    consumer: AIOKafkaConsumer, topic: str, partition: int, *, timeout_s: float
) -> tuple[int, str] | None:
    """The group's committed offset with its metadata. In the consumer's thread. Raises LogUnavailable."""
    place = TopicPartition(topic, partition)
    try:
        async with asyncio.timeout(timeout_s):
            found = (await consumer._coordinator.fetch_committed_offsets([place])).get(place)
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(f"the group's offset of {topic}/{partition} cannot be read: {error!r}") from error
    return None if found is None or found.offset < 0 else (found.offset, found.metadata or "")


async def commit_as(
    consumer: AIOKafkaConsumer,
    topic: str,
    offsets: Mapping[int, tuple[int, str]],
    *,
    generation: int,
    member_id: str,
    timeout_s: float,
) -> Mapping[int, CommitAnswer]:
    """Commits of partitions, offset and metadata of each, in one request under a given membership; each is sent once.
    What became of each. The driver's own `commit` would stamp the membership of the moment and let a member that was
    expelled and came back pass. In the consumer's thread.

    A commit without generation (-1) is what Kafka takes from anybody while a group is empty: never sent.
    """
    if generation < 0 or not member_id:
        return dict.fromkeys(offsets, CommitAnswer.REFUSED)
    coordinator = consumer._coordinator
    left = dict(offsets)
    answers: dict[int, CommitAnswer] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while left:
                await coordinator.ensure_coordinator_known()
                request = OffsetCommitRequest(
                    coordinator.group_id,
                    generation,
                    member_id,
                    OffsetCommitRequest.DEFAULT_RETENTION_TIME,
                    [(topic, [(partition, *left[partition]) for partition in left])],
                )
                response = await coordinator._send_req(request)
                codes: dict[int, int] = dict(response.topics[0][1])
                errors = {partition: Errors.for_code(codes.get(partition, -1)) for partition in left}
                # a definite no: nothing of it is on its way, so the same commit may go to the new coordinator
                left = {partition: left[partition] for partition in left if errors[partition] in _NOT_APPLIED}
                for partition in errors.keys() - left.keys():
                    answers[partition] = _answer(partition, offsets[partition][0], errors[partition])
                if left:
                    if Errors.NotCoordinatorForGroupError in errors.values():
                        coordinator.coordinator_dead()
                    await asyncio.sleep(0.1)
    except (KafkaError, TimeoutError) as error:
        log.warning("commit_unknown", offsets={partition: left[partition][0] for partition in left}, error=repr(error))
        answers |= dict.fromkeys(left, CommitAnswer.UNKNOWN)
    return answers


def _answer(partition: int, offset: int, error: type[Exception]) -> CommitAnswer:
    if error is Errors.NoError:
        return CommitAnswer.DONE
    if error in _REFUSED:
        return CommitAnswer.REFUSED
    log.warning("commit_unknown", offsets={partition: offset}, error=error.__name__)
    return CommitAnswer.UNKNOWN


async def end_offsets(
    consumer: AIOKafkaConsumer, topic: str, partitions: Iterable[int], *, timeout_s: float
) -> Mapping[int, int]:
    """The offset after the last readable record of each partition. In the consumer's thread. Raises LogUnavailable."""
    try:
        async with asyncio.timeout(timeout_s):
            found = await consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(f"Kafka tells no offsets of {topic}: {error!r}") from error
    return {place.partition: offset for place, offset in found.items()}


async def leave_group(consumer: AIOKafkaConsumer, *, timeout_s: float) -> None:
    """Leaves the group, so that the next heartbeat joins anew under another member id. In the consumer's thread."""
    coordinator = consumer._coordinator
    try:
        async with asyncio.timeout(timeout_s):
            await coordinator._maybe_leave_group()
    except (KafkaError, TimeoutError):
        coordinator.reset_generation()


async def group_offsets(settings: Settings, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
    """The workers' offset and metadata of each partition that has one, without being a member of their group.

    Not by the client that `kafka_admin` uses: it reads metadata beyond their end. Raises LogUnavailable.
    """
    client = AIOKafkaAdminClient(**connection(settings))
    places = [TopicPartition(topic, number) for number in partitions]
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await client.start()
            found = await client.list_consumer_group_offsets(settings.group, partitions=places)
    except (KafkaError, TimeoutError, OSError) as error:
        raise LogUnavailable(f"Kafka tells no offsets of {settings.group}: {error!r}") from error
    finally:
        await client.close()
    return {
        place.partition: (entry.offset, entry.metadata or "") for place, entry in found.items() if entry.offset >= 0
    }


async def move_offsets(settings: Settings, topic: str, offsets: Mapping[int, int], metadata: str = "") -> None:
    """Commits these offsets for the workers' group, as an operator: the broker refuses while it has members. Without
    metadata the workers take them for lost and go on from the ledger.

    Not by the client that `kafka_admin` uses: it adds a zero byte to the metadata. Raises LogUnavailable.
    """
    consumer = AIOKafkaConsumer(**connection(settings), group_id=settings.group, enable_auto_commit=False)
    places = {TopicPartition(topic, number): (offset, metadata) for number, offset in offsets.items()}
    await _start(consumer)
    try:
        consumer.assign(list(places))
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await consumer.commit(places)
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(
            f"Kafka did not move the offsets of {settings.group}: {error!r}; is a worker running?"
        ) from error
    finally:
        await consumer.stop()


class LogRanges:
    """Ranges of partitions, as the sessions read them. Keeps one connection for asking after bounds, on which nothing
    is fetched: a broker answers a connection's requests in turn, and a fetch waits for events."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def stop(self) -> None:
        """Disconnects; the next question connects again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _stop(consumer)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset, and the offset after the last readable record. Raises LogUnavailable."""
        place = TopicPartition(topic, partition)
        async with self._asking(topic) as consumer:
            first = await consumer.beginning_offsets([place])
            end = await consumer.end_offsets([place])
        return first[place], end[place]

    async def end(self, topic: str, partition: int) -> int:
        """The offset after the last readable record. Raises LogUnavailable."""
        place = TopicPartition(topic, partition)
        async with self._asking(topic) as consumer:
            return int((await consumer.end_offsets([place]))[place])

    def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The records of [start, end) in batches, then stops. Raises LogUnavailable."""
        return read_range(self._settings, topic, partition, start, end)

    @asynccontextmanager
    async def _asking(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                yield await self._connected()
        except (KafkaError, TimeoutError) as error:
            await self.stop()
            raise LogUnavailable(f"Kafka tells no offsets of {topic}: {error!r}") from error

    async def _connected(self) -> AIOKafkaConsumer:
        async with self._lock:
            if self._consumer is None:
                consumer = _reader(self._settings)
                await _start(consumer)
                self._consumer = consumer
            return self._consumer
