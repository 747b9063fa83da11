"""The catalog's log on Kafka, and the client that keeps a Catalog in step with such a log.

Rules: the topic has one partition, so that its offsets are a total order of all changes, and is compacted. A client
reads its own writes: `append` returns once its record is part of `catalog`. `changing` holds the process's lock and
has read to the log's end, so that a check such as "does not exist yet" sees everything acknowledged before it. Two
processes may still change at once: both records are kept, the later revision is the one that counts, nothing is lost.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Final, cast

import structlog

from pipeline.adapters.kafka import LogRanges, RecordWriter, follow
from pipeline.catalog import Catalog, Skipped
from pipeline.ports import CatalogLog, CatalogRecord, CatalogUnavailable, LogUnavailable, Record
from pipeline.settings import Settings

_PARTITION: Final = 0
_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0
_WRITES_AT_ONCE_MAX: Final = 500

_log = structlog.get_logger(__name__)


class KafkaCatalogLog:
    """CatalogLog on the catalog topic. The topic must exist. One per process and event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topic_catalog
        self._writer = RecordWriter(settings)
        self._ranges = LogRanges(settings)
        self._started = False

    async def start(self) -> None:
        """Connect the writer; readers connect when they begin."""
        if not self._started:
            with _as_unavailable():
                await self._writer.start()
            self._started = True

    async def stop(self) -> None:
        """Close the writer; a reader ends when its caller stops listening."""
        self._started = False
        await self._writer.stop()
        await self._ranges.stop()

    async def append(self, key: bytes, value: bytes | None) -> int:
        """Write one record; its offset, once all in-sync replicas have it."""
        with _as_unavailable():
            return await self._writer.write(self._topic, value, key=key, partition=_PARTITION)

    async def end_offset(self) -> int:
        """The offset after the last readable record. Asks the broker each time."""
        with _as_unavailable():
            return await self._ranges.end(self._topic, _PARTITION)

    async def read(self, from_offset: int) -> AsyncGenerator[CatalogRecord, None]:
        """Records from that offset on, then those that come."""
        followed = follow(self._settings, self._topic, from_offset, partition=_PARTITION)
        with _as_unavailable():
            async with aclosing(cast("AsyncGenerator[Record, None]", followed)) as records:
                async for record in records:
                    yield CatalogRecord(record.offset, record.key, record.value, record.timestamp_ms)


class CatalogClient:
    """Follows a log into `catalog` and writes to it. One per process and event loop; not thread-safe.

    `timeout_s` bounds every wait. While the log is away `catalog` stays as it was read last and the client tries
    again, at most every five seconds, until it is stopped.
    """

    def __init__(self, log: CatalogLog, *, timeout_s: float = 15.0) -> None:
        self.catalog = Catalog()
        self._log = log
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def start(self) -> None:
        """Connect and read to the log's present end. Raises CatalogUnavailable."""
        await self._log.start()
        self._follower = asyncio.create_task(self._follow(), name="catalog follower")
        self._follower.add_done_callback(self._fail_waiting)
        try:
            await self.catch_up()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop following and disconnect; the catalog stays readable."""
        if self._follower is not None:
            self._follower.cancel()
            with suppress(asyncio.CancelledError):
                await self._follower
            self._follower = None
        await self._log.stop()

    async def wait_for(self, version: int, timeout_s: float | None = None) -> None:
        """Return once the catalog has read that version. Raises CatalogUnavailable past the time-out."""
        if self.catalog.version >= version:
            return
        self._check_follower()
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (version, reached)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                await reached
        except TimeoutError as error:
            raise CatalogUnavailable(
                f"the catalog has read version {self.catalog.version} and not yet {version}; "
                "is Kafka reachable, and is the catalog topic the one that the sender used?"
            ) from error
        finally:
            self._waiting.remove(entry)

    async def changed(self, version: int) -> int:
        """Return the catalog's version once it is beyond `version`, however long that takes."""
        while self.catalog.version <= version:
            self._check_follower()
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (version + 1, reached)
            self._waiting.append(entry)
            try:
                await reached
            finally:
                self._waiting.remove(entry)
        return self.catalog.version

    async def catch_up(self) -> int:
        """Read everything that was acknowledged before this call; the version reached. Raises CatalogUnavailable."""
        await self.wait_for(await self._log.end_offset() - 1)
        return self.catalog.version

    async def append(self, key: bytes, value: bytes | None) -> int:
        """Write one record and return its offset once `catalog` has it. Raises CatalogUnavailable."""
        offset = await self._log.append(key, value)
        await self.wait_for(offset)
        return offset

    async def append_all(self, records: Sequence[tuple[bytes, bytes | None]]) -> list[int]:
        """Write records side by side, in no certain order; their offsets. Raises the first CatalogUnavailable once
        every write has ended: the others may have been written."""
        offsets: list[int] = []
        for start in range(0, len(records), _WRITES_AT_ONCE_MAX):
            writes = [self._log.append(key, value) for key, value in records[start : start + _WRITES_AT_ONCE_MAX]]
            for outcome in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                offsets.append(outcome)
        await self.wait_for(max(offsets, default=self.catalog.version))
        return offsets

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Catalog]:
        """The catalog as of now, while no other task of this process changes it through here. Raises
        CatalogUnavailable past the time-out: while Kafka is away each task before may take its own."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._lock.acquire()
        except TimeoutError as error:
            raise CatalogUnavailable("other changes of the catalog still wait; is Kafka reachable?") from error
        try:
            await self.catch_up()
            yield self.catalog
        finally:
            self._lock.release()

    async def _follow(self) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            try:
                async with aclosing(self._log.read(self.catalog.version + 1)) as records:
                    async for record in records:
                        self._take(record)
                        wait_s = _RETRY_FIRST_S
            except CatalogUnavailable as error:
                _log.warning("catalog_log_away", reason=str(error), version=self.catalog.version, retry_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _RETRY_MAX_S)

    def _take(self, record: CatalogRecord) -> None:
        outcome = self.catalog.apply(record.offset, record.key, record.value)
        if isinstance(outcome, Skipped):
            _log.error("catalog_record_skipped", offset=outcome.offset, reason=outcome.reason)
        if self._waiting:
            version = self.catalog.version
            for wanted, reached in self._waiting:
                if wanted <= version and not reached.done():
                    reached.set_result(None)

    def _check_follower(self) -> None:
        if self._follower is None:
            raise CatalogUnavailable("the catalog client is not started")
        if self._follower.done():
            raise CatalogUnavailable("the catalog is not followed any more; see the log for the cause, then restart")

    def _fail_waiting(self, follower: "asyncio.Task[None]") -> None:
        cause = None if follower.cancelled() else follower.exception()
        if cause is not None:
            _log.error("catalog_follower_failed", version=self.catalog.version, exc_info=cause)
        for _, reached in self._waiting:
            if not reached.done():
                failure = CatalogUnavailable("the catalog is not followed any more")
                failure.__cause__ = cause
                reached.set_exception(failure)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turns Kafka's outage into the port's."""
    try:
        yield
    except LogUnavailable as error:
        raise CatalogUnavailable(str(error), retry_after_s=error.retry_after_s) from error
