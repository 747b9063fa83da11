"""The worker: sessions for the partitions that Faust assigns, their health, progress and metrics.

Rules: a partition belongs to exactly one session of one membership; when the group moves, all sessions end before new
ones begin. A session that fails by a fault of the program stops the whole worker: whoever starts it again goes on from
the last commit.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import structlog

from pipeline import unpack
from pipeline.adapters import id_filter
from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.catalog_log import CatalogClient, KafkaCatalogLog
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.faust_bridge import App, GroupGate, SightingStore
from pipeline.adapters.kafka import LogRanges, RecordWriter
from pipeline.adapters.kafka_admin import (
    BrokerUnavailable,
    TopicLife,
    TopicMismatch,
    Trimmer,
    check_topics,
    topic_life,
)
from pipeline.block import Place
from pipeline.catalog_mirror import CatalogMirror
from pipeline.connecting import until_connected
from pipeline.fail_points import fail_points
from pipeline.metrics import WorkerMetrics
from pipeline.migrate import MigrationError, pending
from pipeline.ports import Batch, CatalogUnavailable, LogUnavailable, Member, Progress, StoreError, StoreUnavailable
from pipeline.session import REPEATS_LINGER_S, TAKEN_MAX, Limits, Outside, Session, Standing
from pipeline.settings import Settings
from pipeline.shared_inserts import SharedInserts, SharedLimits
from pipeline.stages import columnar
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.together import TogetherWriter

_PROGRESS_EVERY_S: Final = 1.0
_STALLED_S: Final = 30.0  # with lag and no movement for so long a worker is not ready
_PRECONDITIONS_EVERY_S: Final = 5.0
_REJOIN_AFTER_S: Final = 10.0  # a session that was refused waits this long for the group to move by itself
_EXIT_AFTER_S: Final = 20.0  # how long a failed worker may take to stop tidily
_EXIT_CODE: Final = 70

log = structlog.get_logger(__name__)


def _warm_up() -> None:
    for part in (unpack, columnar, id_filter):
        part.warm_up()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def shared_limits(settings: Settings) -> SharedLimits:
    """Never longer than a lease; without time enough for an insert of several blocks there is none.

    What is not half full goes with others: where the store is so busy that blocks become large, an insert for each
    would keep it busier still. Full ones, as they come from a backlog, go alone: then one can be on its way while
    another is under way."""
    lease_s = min(settings.shared_lease_s, settings.lease_s) if settings.shared_s_max >= 1 else 0.0
    return SharedLimits(
        lease_ms=int(lease_s * 1000),
        deadline_ms=int(min(settings.shared_deadline_s, settings.deadline_s) * 1000),
        tries_ms=int(settings.lease_s * 1000),
        rows_max=4 * settings.block_rows_max,
        bytes_max=2 * settings.block_bytes_max,
        block_rows_max=settings.block_rows_max // 2,
        block_bytes_max=settings.block_bytes_max // 2,
    )


class ClockSkew(Exception):  # noqa: N818
    """The clocks of worker and store differ by more than the lease can bear."""


class TopicChanged(Exception):  # noqa: N818
    """The events topic is not the one any more that the worker began with."""


class CatalogOfSessions:
    """The followed catalog, as sessions use it. In the application's event loop."""

    def __init__(self, client: CatalogClient) -> None:
        self._client = client
        self._mappers = Mappers(client.catalog)
        self._asking: asyncio.Task[int] | None = None

    def version(self) -> int:
        """The last version that was read."""
        return self._client.catalog.version

    def mapper(self, version: int) -> Mapper:
        """The mapping at a version that was read."""
        return self._mappers.at(version)

    async def wait_for(self, version: int) -> None:
        """Returns once the version is read. Raises CatalogUnavailable."""
        await self._client.wait_for(version)

    async def end(self) -> int:
        """The version that the log's end stands for, once it is read. Raises CatalogUnavailable, LogUnavailable. One
        question for all who ask before it is on its way: the first partitions close their blocks together."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> int:
        await asyncio.sleep(0)
        self._asking = None  # whoever comes from now on may have seen what this question's answer lacks
        return await self._client.catch_up()


class Worker:
    """Everything a worker process has besides Faust. Made once; `start` before the first assignment."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._gate = GroupGate(app)
        self._store = Store(settings)
        self._blocks = BlockStore(
            self._store,
            topic=settings.topic_events,
            database=settings.database,
            insert_s_max=settings.insert_s_max,
            shared_s_max=settings.shared_s_max,
        )
        self._writer = RecordWriter(settings, linger_ms=5)
        self._ranges = LogRanges(settings)
        self._trimmer = Trimmer(settings)
        self._catalog = CatalogClient(KafkaCatalogLog(settings))
        self._mappings = CatalogOfSessions(self._catalog)
        self._cpu = ThreadPoolExecutor(1, "build")
        self._io = ThreadPoolExecutor(max(8, settings.partitions * 3), "store")
        self._inserting = asyncio.Semaphore(settings.inserts_max)
        limits = shared_limits(settings)
        self._shared = SharedInserts(self._blocks.insert_together, self._io, _now_ms, self._inserting, limits)
        self._ledger = TogetherWriter(self._blocks.write_ledger, self._io)
        self._repeats = TogetherWriter(self._blocks.write_repeats, self._io, linger_s=REPEATS_LINGER_S)
        # blocks that go together wait for nobody; else one is built while the others are inserted
        self._closing = asyncio.Semaphore(2 * settings.partitions if limits.lease_ms else settings.inserts_max + 1)
        self._taking = asyncio.Semaphore(TAKEN_MAX)
        self._building = asyncio.Lock()
        self._sessions: dict[int, tuple[Session, asyncio.Task[None]]] = {}
        self._ends: dict[int, int] = {}
        self._looked: dict[int, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._life = TopicLife("", 0)
        self._schema = 0
        self._failed = ""
        self._stopping = False
        self._fail_point = fail_points(os.environ.get("TALLY_FAIL_POINT"))
        self.metrics = WorkerMetrics(self.standings, self.lags, self._ids, self._expired_ids)

    # -- life

    async def start(self) -> None:
        """Checks the preconditions and connects. Raises TopicMismatch, MigrationError, ClockSkew; waits while Kafka or
        the store is away."""
        await asyncio.get_running_loop().run_in_executor(self._cpu, _warm_up)
        await self._until_there(partial(check_topics, self._settings), BrokerUnavailable)
        self._life = await self._until_there(self._look_at_topic, BrokerUnavailable)
        await self._until_there(self._check_clock, StoreUnavailable, StoreError)
        await self._until_there(self._check_store, StoreUnavailable, StoreError)
        await until_connected(self._writer.start, LogUnavailable)
        await until_connected(self._catalog.start, CatalogUnavailable)
        mirror = CatalogMirror(self._catalog, self._store, self._settings.topic_catalog)
        self._tasks = [
            asyncio.create_task(self._look_at_ends(), name="look at ends"),
            asyncio.create_task(self._report_progress(), name="progress"),
            asyncio.create_task(self._watch_preconditions(), name="preconditions"),
            asyncio.create_task(mirror.run(), name="catalog mirror"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Ends the sessions where they are; what is under way is finished by whoever comes next."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await self.release()
        await self._shared.drain()
        for one in (self._shared, self._ledger, self._repeats):
            one.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.stop()
        await self._ranges.stop()
        await self._catalog.stop()
        self._store.close()

    # -- partitions

    async def take(self, partitions: Iterable[int]) -> None:
        """Begins a session for each partition."""
        await self.release()
        member = self._gate.member()
        if member is None or self._stopping:
            return  # the group has moved again already, and another assignment follows; or none is wanted any more
        for number in sorted(partitions):
            session = self._session(number, member)
            task = asyncio.create_task(session.run(), name=f"partition {number}")
            task.add_done_callback(self._ended)
            self._sessions[number] = (session, task)

    async def release(self) -> None:
        """Ends all sessions and closes their tables."""
        sessions, self._sessions = self._sessions, {}
        for _, task in sessions.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in sessions.values()), return_exceptions=True)
        loop = asyncio.get_running_loop()
        for number, (session, _) in sessions.items():
            self.metrics.ended(session.standing)
            # in the builder's thread, so that no build uses a table that is being closed
            await loop.run_in_executor(self._cpu, self._table_store().close, number)

    def deliver(self, batch: Batch) -> None:
        """A batch from the consumer to its session."""
        found = self._sessions.get(batch.partition)
        if found is not None:
            found[0].offer(batch)

    # -- health

    def standings(self) -> list[Standing]:
        """How the sessions stand."""
        return [session.standing for session, _ in self._sessions.values()]

    def lags(self) -> Mapping[int, int]:
        """Records per partition that are not counted yet, as of the last look."""
        return {s.partition: max(0, self._ends.get(s.partition, s.counted) - s.counted) for s in self.standings()}

    def not_ready(self) -> list[str]:
        """Why the worker is not ready; empty when it is."""
        if self._failed:
            return [self._failed]
        if self._gate.member() is None:
            return ["not a member of the consumer group"]
        reasons = []
        lags = self.lags()
        now = time.monotonic()
        for standing in self.standings():
            name = f"partition {standing.partition}"
            if standing.stopped:
                reasons.append(f"{name} is stopped: {standing.stopped}")
            elif standing.state != "running":
                reasons.append(f"{name} is {standing.state}")
            elif lags.get(standing.partition) and now - standing.moved_at_s > _STALLED_S:
                reasons.append(
                    f"{name} has not moved for {now - standing.moved_at_s:.0f} s with {lags[standing.partition]} "
                    "records to count"
                )
        return reasons

    # -- private

    def _session(self, number: int, member: Member) -> Session:
        settings = self._settings
        outside = Outside(
            group=self._gate,
            writer=self._writer,
            reader=self._ranges,
            trimmer=self._trimmer,
            blocks=self._blocks,
            catalog=self._mappings,
            now_ms=_now_ms,
            cpu=self._cpu,
            io=self._io,
            inserting=self._inserting,
            closing=self._closing,
            taking=self._taking,
            building=self._building,
            shared=self._shared,
            ledger=self._ledger,
            repeats=self._repeats,
            topic_rejects=settings.topic_rejects,
            topic_changelog=settings.topic_changelog,
            fail_point=self._fail_point,
        )
        limits = Limits(
            rows_max=settings.block_rows_max,
            bytes_max=settings.block_bytes_max,
            close_s=settings.block_close_ms / 1000,
            lease_ms=int(settings.lease_s * 1000),
            deadline_ms=int(settings.deadline_s * 1000),
            window_ms=int(settings.dedup_window_days * 86_400_000),
        )
        place = Place(
            settings.topic_events,
            0,
            number,
            settings.partitions,
            settings.default_account,
            settings.ahead_max_hours * 3_600_000_000,
        )
        return Session(outside, limits, place, member, self._life.identity, partial(self._table_store().open, number))

    def _table_store(self) -> SightingStore:
        store: SightingStore = self._app.tables["dedup"].data
        return store

    def _ids(self) -> Mapping[int, int]:
        return {number: table.ids_estimate() for number, table in self._table_store().opened().items()}

    def _expired_ids(self) -> Mapping[int, int]:
        return {number: table.expired_estimate() for number, table in self._table_store().opened().items()}

    def _look_at_topic(self) -> TopicLife:
        return topic_life(self._settings, self._settings.topic_events)

    async def _watch_preconditions(self) -> None:
        """Raises TopicChanged when the topic was given partitions, or deleted and made anew, and MigrationError when
        another version has migrated the store: until the worker starts again, and checks everything, it would not
        read, or take for known, what lies there."""
        looks = (
            (self._look_at_topic, self._life, self._topic_changed),
            (self._blocks.schema_version, self._schema, self._store_changed),
        )
        while True:
            await asyncio.sleep(_PRECONDITIONS_EVERY_S)
            for look, expected, changed in looks:
                try:
                    found = await asyncio.get_running_loop().run_in_executor(self._io, look)
                except (BrokerUnavailable, StoreUnavailable, StoreError) as error:
                    log.warning("preconditions_not_read", error=str(error)[:300])
                    continue
                if found != expected:
                    raise changed(found)

    def _topic_changed(self, found: Any) -> Exception:
        return TopicChanged(
            f"topic {self._settings.topic_events} had {self._life.partitions} partitions and the id "
            f"{self._life.identity}, now it has {found.partitions} and {found.identity}: start the workers again, they "
            "check the topics and say what is to be done; leave TALLY_PARTITIONS as it is"
        )

    def _store_changed(self, found: Any) -> Exception:
        return MigrationError(
            f"the store was migrated from version {self._schema} to {found} while this worker ran: start the workers "
            "of the version that did it"
        )

    def _check_store(self) -> None:
        """The store must be of this version, with all rollups filled, and know ids by the same number of partitions."""
        if missing := pending(self._settings):
            raise MigrationError(f"the store lacks {', '.join(missing)}: stop the workers and run `tally migrate`")
        if unfilled := self._blocks.unfilled():
            raise MigrationError(
                f"{', '.join(unfilled)} lacks blocks that other rollups hold: stop the workers and run `tally migrate`"
            )
        self._schema = self._blocks.schema_version()
        found = self._blocks.moduli()
        if found - {self._settings.partitions}:
            former = ", ".join(map(str, sorted(found)))
            raise TopicMismatch(
                f"TALLY_PARTITIONS is {self._settings.partitions}, but the ids in the store were spread over {former} "
                f"partitions: they would be looked for in others and count twice. Set TALLY_PARTITIONS={former} for "
                "workers and API; the topics may have more partitions than that"
            )

    def _check_clock(self) -> None:
        before = time.time() * 1000
        store_ms = self._blocks.now_ms()
        after = time.time() * 1000
        skew_s = max(before - store_ms, store_ms - after, 0) / 1000
        if skew_s > self._settings.clock_skew_max_s:
            raise ClockSkew(
                f"the clocks of worker and ClickHouse differ by {skew_s:.1f} s, at most "
                f"{self._settings.clock_skew_max_s} s are allowed (TALLY_CLOCK_SKEW_MAX_S): set them by NTP"
            )

    async def _until_there(self, work: Any, *away: type[Exception]) -> Any:
        async def once() -> Any:
            return await asyncio.get_running_loop().run_in_executor(self._io, work)

        return await until_connected(once, *away)

    async def _look_at_ends(self) -> None:
        """Each second: how long the partitions are, and whether a session has lost its partition. Does not wait for
        the store, so that lag and readiness are true while it is away."""
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            partitions = [s.partition for s in self.standings() if s.state == "running"]
            try:
                looked_ms = time.time_ns() // 1_000_000
                ends = await self._gate.ends(partitions) if partitions else {}
            except LogUnavailable as error:
                log.warning("ends_not_read", error=str(error)[:300])
            else:
                self._ends.update(ends)
                self._looked.update(dict.fromkeys(ends, looked_ms))
            await self._rejoin_if_refused()

    async def _report_progress(self) -> None:
        """Each second: how far the partitions are, for usage's `complete_until`."""
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            rows = [row for s in self.standings() if s.state == "running" and (row := self._progress(s))]
            try:
                await asyncio.get_running_loop().run_in_executor(self._io, self._blocks.write_progress, rows)
            except (StoreUnavailable, StoreError) as error:
                log.warning("progress_not_written", error=str(error)[:300])

    def _progress(self, standing: Standing) -> Progress | None:
        end = self._ends.get(standing.partition)
        if end is None:
            return None
        # what was acknowledged before the look lies below the end that the look found
        caught_up = standing.counted >= end
        until_ms = self._looked[standing.partition] if caught_up else standing.append_ms
        return Progress(standing.partition, standing.epoch, until_ms, standing.counted, end) if until_ms else None

    async def _rejoin_if_refused(self) -> None:
        """A refused session normally precedes a new assignment; where none comes, the worker asks for one."""
        member = self._gate.member()
        for session, task in list(self._sessions.values()):
            over = task.done() and session.standing.state == "over"
            if over and member is not None and time.monotonic() - session.standing.moved_at_s > _REJOIN_AFTER_S:
                session.standing.moved_at_s = time.monotonic()
                log.warning("rejoining", partition=session.standing.partition)
                await self._gate.rejoin()
                return

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        self._failed = f"{task.get_name()} failed: {error!r}"
        log.critical("worker_failed", part=task.get_name(), error=repr(error), exc_info=error)
        # Faust may take its time to stop, or hang: a worker that goes on half alive is worse than one that is gone
        deadline = threading.Timer(_EXIT_AFTER_S, os._exit, (_EXIT_CODE,))
        deadline.daemon = True
        deadline.start()
        asyncio.get_running_loop().create_task(self._app.crash(error))
