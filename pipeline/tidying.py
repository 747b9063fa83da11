"""Tidying: what keeps a partition's table small and its next start short, beside the blocks.

The marker: a session's own changelog records are in its table already, so the marker moves over them as far as they
lie next to it; what another worker wrote in between is read back.

Expiry: ids first seen before a border leave the table and go to a filter; who is asked for one later finds it in the
permanent ids. The border is the end of a block, at or before the committed offset C, whose events were appended before
the newest committed append time less the window, rounded down to an eighth of it: a function of the log, no clock is
looked at. Every verdict stays the same wherever the border lies, since whatever lies before C is in the permanent ids.
The order of the steps, each of which may be cut short and done again:
1. every key of the table below the border goes to the filter, and the filter is made durable with the border;
2. the border moves in the table and the keys leave it, border first and in the same batches;
3. the changelog's records of blocks below the border are let go.
A table whose border lies above its filter's, or whose marker lies outside of the changelog, is made whole from the
permanent ids when it is opened (`Session._restore`); so nobody's deletions can take away what an owner needs.

Rules: the builder's thread gets slices of some milliseconds, with rests between them; what fails is tried again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

import structlog

from pipeline.block import record_of
from pipeline.changelog import place_of, unpack_change
from pipeline.ports import (
    Blocks,
    Border,
    LogReader,
    LogTrimmer,
    LogUnavailable,
    Marker,
    Record,
    StoreError,
    StoreUnavailable,
    Table,
)

_PAGE: Final = 2_000
_REST_S: Final = 0.01
_BUCKETS: Final = 8
_T = TypeVar("_T")


class Tidier:
    """Tidies one partition's table for one session. `wrote` and `counted` from the session, `run` beside it."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        table: Table,
        marker: Marker,
        reader: LogReader,
        trimmer: LogTrimmer,
        blocks: Blocks,
        cpu: Executor,
        io: Executor,
        *,
        topic: str,
        partition: int,
        window_ms: int,
        every_s: float,
        fail_point: Callable[[str], None],
    ) -> None:
        self._table = table
        self._marker = marker
        self._reader = reader
        self._trimmer = trimmer
        self._blocks = blocks
        self._cpu_threads = cpu
        self._io_threads = io
        self._topic = topic
        self._partition = partition
        self._window_ms = window_ms
        self._every_s = every_s
        self._fail_point = fail_point
        self._own: dict[int, tuple[int, int]] = {}
        self._committed: tuple[int, int, int] | None = None
        self._horizon_ms = 0
        self._log = structlog.get_logger(__name__).bind(partition=partition)

    def wrote(self, offset: int, epoch: int, reach: int) -> None:
        """A record of this session is acknowledged at that offset of the changelog; its entries are in the table."""
        self._own[offset] = (epoch, reach)

    def counted(self, epoch: int, offset: int, append_ms: int) -> None:
        """A block's end is committed; the newest event up to there was appended at that time."""
        self._committed = (epoch, offset, append_ms)

    async def run(self) -> None:
        """Until it is cancelled, or the table is closed (TableClosed)."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._move_marker()
                await self._expire()
            except (LogUnavailable, StoreUnavailable, StoreError, OSError) as error:
                self._log.warning("tidying_waits", error=str(error)[:300])

    # -- the marker

    async def _move_marker(self) -> None:
        before = self._marker
        while self._own:
            ahead = min(self._own)
            if ahead < self._marker.offset:
                # only a changelog that was made anew begins again; the next start sees what it lacks
                self._log.warning("changelog_made_anew", offset=ahead, marker=self._marker.offset)
                self._own.clear()
                return
            if ahead > self._marker.offset:
                await self._read_back(ahead)
                before = self._marker
            self._marker = _next(self._marker, ahead, self._own.pop(ahead))
        if self._marker != before:
            await self._cpu(self._table.restore, [], self._marker)

    async def _read_back(self, end: int) -> None:
        """Takes what another worker wrote between the marker and `end`: blocks that this session counted too, or that
        it does not own any more."""
        first, _ = await self._reader.bounds(self._topic, self._partition)
        start = max(self._marker.offset, min(first, end))  # what was let go lies below C, and was restored before
        async for records in self._reader.read_range(self._topic, self._partition, start, end):
            for record in records:
                change = unpack_change(record.value or b"")
                for at in range(0, len(change.entries), _PAGE):
                    await self._cpu(self._table.restore, change.entries[at : at + _PAGE])
                    await asyncio.sleep(_REST_S)
        self._marker = self._marker._replace(offset=end)
        await self._cpu(self._table.restore, [], self._marker)

    # -- expiry

    async def _expire(self) -> None:
        if self._window_ms <= 0 or self._committed is None:
            return
        epoch, offset, append_ms = self._committed
        bucket_ms = max(1, self._window_ms // _BUCKETS)
        horizon_ms = (append_ms - self._window_ms) // bucket_ms * bucket_ms
        if horizon_ms <= self._horizon_ms:
            return
        found = await self._io(
            lambda: self._blocks.counted_before(epoch, self._partition, offset, appended_before_ms=horizon_ms)
        )
        if found is not None and Border(*found) > await self._cpu(self._table.border):
            await self._expire_below(Border(*found))
        self._horizon_ms = horizon_ms

    async def _expire_below(self, border: Border) -> None:
        ids = await self._sweep(lambda keys: self._table.remember_expired(b"".join(keys)), border)
        await self._io(self._table.save_expired, border)
        self._fail_point("filter_saved")
        await self._cpu(self._table.expire, [], border)
        await self._sweep(lambda keys: self._table.expire(keys, border), border)
        self._fail_point("expired_deleted")
        await self._io(self._trimmer.trim, self._topic, self._partition, await self._first_needed(border))
        self._fail_point("changelog_trimmed")
        self._log.info("ids_expired", epoch=border.epoch, end=border.end, ids=ids)

    async def _sweep(self, take: Callable[[list[bytes]], None], border: Border) -> int:
        """Hands over the keys of the table's entries below the border, slice after slice, in the builder's thread;
        how many there were."""

        def slice_after(after: bytes) -> tuple[bytes, int]:
            page = self._table.page(after, _PAGE)
            keys = [key for key, value in page if record_of(value) < border]
            if keys:
                take(keys)
            return (page[-1][0] if page else b""), len(keys)

        number = 0
        after, count = await self._cpu(slice_after, b"")
        while after:
            number += count
            await asyncio.sleep(_REST_S)
            after, count = await self._cpu(slice_after, after)
        return number

    async def _first_needed(self, border: Border) -> int:
        """The offset of the changelog's first record of a block that does not lie below the border."""
        first, end = await self._reader.bounds(self._topic, self._partition)
        found = self._reader.read_range(self._topic, self._partition, first, end)
        async with aclosing(cast(AsyncGenerator[list[Record], None], found)) as batches:
            async for records in batches:
                for record in records:
                    if place_of(record.value or b"") >= border:
                        return record.offset
        return end

    async def _cpu(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._cpu_threads, work, *arguments)

    async def _io(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._io_threads, work, *arguments)


def _next(marker: Marker, offset: int, reach: tuple[int, int]) -> Marker:
    return Marker(offset + 1, *max((marker.epoch, marker.end), reach))
