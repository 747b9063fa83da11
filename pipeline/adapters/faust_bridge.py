"""The bridge to Faust: everything that leans on Faust's and its Kafka driver's insides, in one place.

What it changes, and why:
- the consumer hands over one message per fetched partition batch, since Faust's work per message costs more than
  everything else together;
- records are unpacked into the pipeline's own type by the driver itself;
- batches come only from partitions that a session has opened, from the offset it asked for, each with the position
  it starts and ends at: a session notices a gap instead of skipping it;
- commits carry metadata and the member and generation under which their records were fetched, never the current
  ones: a worker that was away and came back is refused for what it began before;
- Faust's own acknowledgements, commits, seeks and table recovery are out of the way.
`tests/pipeline/test_faust_bridge.py` fails when a new Faust or driver no longer has what is used here.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar

import faust
from faust.stores.base import Store as FaustStore
from faust.tables.manager import TableManager as FaustTableManager
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage
from mode.supervisors import CrashingSupervisor

from pipeline.adapters.kafka import (
    FetchedRecords,
    commit_as,
    committed_metadata,
    end_offsets,
    group_consumer,
    leave_group,
)
from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.adapters.shared_commits import SharedCommits
from pipeline.block import TABLE_RULES, LogRecord
from pipeline.ports import Batch, CommitAnswer, Member
from pipeline.settings import Settings

_FETCH_WAIT_S: Final = 0.1  # how late a partition that is opened while all are silent begins at most
_T = TypeVar("_T")
_offset = attrgetter("offset")


class _Opened:
    """A partition that a session reads: `opening` tells this reading from earlier ones."""

    __slots__ = ("opening", "paused", "position")

    def __init__(self, opening: int, position: int) -> None:
        self.opening = opening
        self.position = position
        self.paused = False


class _Listener(driver.ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes in the consumer's own thread who the worker is, before anybody can fetch."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Any:
        self._thread.member = None
        self._thread.opened.clear()
        return super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        coordinator = self._thread._ensure_consumer()._coordinator
        self._thread.member = Member(coordinator.generation, coordinator.member_id)
        self._thread.opened.clear()
        await super().on_partitions_assigned(assigned)


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread, fetching opened partitions only. Methods without note run in that thread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.member: Member | None = None
        self.opened: dict[TP, _Opened] = {}
        self._openings = 0

    def _create_worker_consumer(self, transport: Any) -> Any:
        return group_consumer(self.app.settings)

    async def fetch(self, wait_s: float) -> list[Batch]:
        """Batches of the opened partitions; empty when there is nothing within `wait_s`."""
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        if type(fetcher._records) is not FetchedRecords:
            fetcher._records = FetchedRecords(fetcher._records)
        reading = {tp for tp, opened in self.opened.items() if not opened.paused}
        # the context marks activity: a worker whose partitions are all paused stays a member
        with fetcher._subscriptions.fetch_context():
            if not reading:
                await asyncio.sleep(wait_s)  # no set at all would mean all partitions to the driver
                return []
            found = await fetcher.fetched_records(reading, timeout=wait_s, max_records=None)
        assignment = fetcher._subscriptions.subscription.assignment
        batches = []
        for tp, records in found.items():
            opened = self.opened.get(TP(tp.topic, tp.partition))
            if opened is None or assignment is None or not assignment.active:
                continue  # closed or reassigned while the fetch was waiting; whoever reads next seeks first
            start, opened.position = opened.position, assignment.state_value(tp).position
            batches.append(Batch(tp.partition, opened.opening, start, opened.position, _from(start, records)))
        return batches

    async def open_at(self, tp: TP, offset: int) -> int:
        consumer = self._ensure_consumer()
        consumer.seek(driver.ensure_aiokafka_TP(tp), offset)
        # what was fetched, or failed, for another position is not for this reader
        consumer._fetcher._records.pop(driver.ensure_aiokafka_TP(tp), None)
        self._openings += 1
        self.opened[tp] = _Opened(self._openings, offset)
        return self._openings

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs in the consumer's thread what is awaited in the application's; not queued behind a fetch."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.thread_loop))


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer with one message per partition batch."""

    RebalanceListener = _Listener

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109 - Faust's signature
        """One message per batch; its value is the Batch. `timeout` of Faust's loop is longer than needed."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        for batch in await self._thread.run(self._thread.fetch(min(timeout, _FETCH_WAIT_S))):
            # Never dropped: its session would find a gap. Faust lets the flow go on some time after new sessions have
            # opened their partitions, and a fetch from before may bring the first batches meanwhile.
            if not self.flow_active:
                await self.wait(self.can_resume_flow)
            if self.should_stop:
                return
            yield self._message(batch)

    def _message(self, batch: Batch) -> tuple[TP, ConsumerMessage]:
        tp = TP(self.app.settings.topic_events, batch.partition)
        # Faust would drop a message that lies before its own read position after a seek back
        self._read_offset.pop(tp, None)
        message = ConsumerMessage(
            tp.topic, tp.partition, batch.end, time.time(), 0, (), None, batch, None, 0, 0, tp,
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        return tp, message

    async def perform_seek(self) -> None:
        """Positions belong to the sessions."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Progress is watched by /readyz, from the sessions' own positions."""


class Transport(driver.Transport):  # type: ignore[misc]
    """Faust's transport with the batch consumer."""

    Consumer = BatchConsumer


class TableManager(FaustTableManager):  # type: ignore[misc]
    """Keeps the tables, without recovery: the sessions restore them in the order that the protocol asks for."""

    def add(self, table: Any) -> Any:
        self[table.name] = table
        return table

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        for table in self.values():
            await table.maybe_start()
        self._tables_registered.set()


class SightingStore(FaustStore):  # type: ignore[misc]
    """The dedup table's store: one RocksDB per partition, opened by the session that owns the partition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings: Settings = self.app.settings
        self._tables = Tables(settings.table_dir, settings.cache_bytes, tables=settings.partitions)
        self._open: dict[int, SightingTable] = {}

    def open(self, partition: int) -> SightingTable:
        """The partition's table, opened if it is not; blocks. Raises OSError."""
        if partition not in self._open:
            self._open[partition] = self._tables.open(
                # other rules may judge otherwise: their table is read back anew
                f"{self.app.settings.topic_events}-{partition}.rules{TABLE_RULES}.v2"
            )
        return self._open[partition]

    def close(self, partition: int) -> None:
        """Flushes and closes the partition's table, if it is open; blocks."""
        table = self._open.pop(partition, None)
        if table is not None:
            table.close()

    def opened(self) -> Mapping[int, SightingTable]:
        """The tables of the partitions that this worker has."""
        return dict(self._open)

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        raise NotImplementedError("the sessions restore the table in the protocol's order, Faust's recovery never does")

    def reset_state(self) -> None:
        raise NotImplementedError("delete the worker's folder while no worker runs; the table is read back by itself")

    async def backup_partition(self, tp: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the table is a cache of its changelog: there is nothing to back up")

    def restore_backup(self, tp: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the table is a cache of its changelog: there is nothing to restore")

    async def on_stop(self) -> None:
        for partition in list(self._open):
            await asyncio.to_thread(self.close, partition)


class SightingTableOfApp(faust.Table):  # type: ignore[misc]
    """A Faust table on the sighting store."""

    def _new_store(self) -> SightingStore:
        return SightingStore(
            "rocksdb://sightings",
            self.app,
            self,
            table_name=self.name,
            key_type=bytes,
            value_type=bytes,
            loop=self.loop,
        )


class App(faust.App):  # type: ignore[misc]
    """A Faust app on the batch transport."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__(
            settings.group,
            broker=[f"kafka://{address.strip()}" for address in settings.kafka.split(",")],
            datadir=str(settings.home_dir / "faust"),
            store="memory://",
            topic_partitions=settings.partitions,
            topic_allow_declare=False,
            topic_disable_leader=True,
            key_serializer="raw",
            value_serializer="raw",
            stream_wait_empty=False,
            stream_buffer_maxsize=64,
            agent_supervisor=CrashingSupervisor,
            broker_session_timeout=settings.session_timeout_s,
            broker_request_timeout=max(90.0, settings.session_timeout_s + 1),
            web_bind="0.0.0.0" if settings.api_host == "0.0.0.0" else settings.api_host,  # noqa: S104
            web_port=settings.worker_port,
            TableManager=TableManager,
            Table=SightingTableOfApp,
        )

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self, loop=self.loop)


class GroupGate:
    """What sessions may do to the group and the consumer. Every request is bounded by `timeout_s`; a commit may wait
    for those before it."""

    def __init__(self, app: App, *, timeout_s: float = 15.0) -> None:
        self._app = app
        self._topic = app.settings.topic_events
        self._timeout_s = timeout_s
        self._commits = SharedCommits(self._commit)

    def member(self) -> Member | None:
        """Who this worker is in the group; None while it is in none."""
        found: Member | None = self._thread().member
        return found

    async def committed(self, partition: int) -> tuple[int, str] | None:
        """The group's offset and metadata; None when there is none. Raises LogUnavailable."""
        thread = self._thread()
        return await thread.run(
            committed_metadata(thread._ensure_consumer(), self._topic, partition, timeout_s=self._timeout_s)
        )

    async def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        """Commits as that member of that generation, whoever the worker is by now."""
        return await self._thread().run(self._commits.commit(partition, offset, metadata, member))

    async def _commit(self, offsets: Mapping[int, tuple[int, str]], member: Member) -> Mapping[int, CommitAnswer]:
        """In the consumer's thread."""
        return await commit_as(
            self._thread()._ensure_consumer(),
            self._topic,
            offsets,
            generation=member.generation,
            member_id=member.member_id,
            timeout_s=self._timeout_s,
        )

    async def rejoin(self) -> None:
        """Leaves the group and joins anew: every session of this worker ends and is begun afresh."""
        thread = self._thread()
        await thread.run(leave_group(thread._ensure_consumer(), timeout_s=self._timeout_s))

    async def ends(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """The offset after the last readable record of each partition, after the fetch that is under way. Raises
        LogUnavailable."""
        thread = self._thread()
        return await thread.run(
            end_offsets(thread._ensure_consumer(), self._topic, partitions, timeout_s=self._timeout_s)
        )

    async def open_at(self, partition: int, offset: int) -> int:
        """Batches of the partition come from `offset` on; returns the opening's number, which they carry."""
        thread = self._thread()
        return await thread.run(thread.open_at(TP(self._topic, partition), offset))

    def pause(self, partition: int) -> None:
        """No more batches until `resume`; one that is under way still comes."""
        opened = self._thread().opened.get(TP(self._topic, partition))
        if opened is not None:
            opened.paused = True

    def resume(self, partition: int) -> None:
        """Batches come again."""
        opened = self._thread().opened.get(TP(self._topic, partition))
        if opened is not None:
            opened.paused = False

    def _thread(self) -> _ConsumerThread:
        thread: _ConsumerThread = self._app.consumer._thread
        return thread


def _from(start: int, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
    if records and records[0].offset < start:
        return records[bisect_left(records, start, key=_offset) :]
    return records
