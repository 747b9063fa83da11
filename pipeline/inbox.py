"""The inbox of a partition: records that were fetched and belong to no block yet, as one gapless range."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.block import LogRecord


class GapInLog(Exception):  # noqa: N818
    """A batch does not begin where the one before it ended: going on would lose what lies between."""


class Range(NamedTuple):
    """The records of [start, end). Offsets may have gaps (transaction marks), ranges never."""

    start: int
    end: int
    records: list[LogRecord]


class Inbox:
    """Fetched records from `start` on. Bounded by its user: `rows` and `bytes` say when to pause the fetching.

    `rows` counts lines, roughly: a record counts at least one.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.rows = 0
        self.bytes = 0
        self._records: deque[tuple[LogRecord, int]] = deque()
        self._arrived = asyncio.Event()

    def add(self, start: int, end: int, records: Sequence[LogRecord]) -> None:
        """Appends what one fetch gave. Raises GapInLog."""
        if start != self.end or end < start:
            raise GapInLog(f"the log was read up to {self.end}, the next batch holds {start} to {end}")
        for record in records:
            lines = record.value.count(b"\n") + 1 if record.value else 1
            self._records.append((record, lines))
            self.rows += lines
            self.bytes += len(record.value or b"")
        self.end = end
        self._arrived.set()

    async def wait_beyond(self, offset: int) -> None:
        """Returns once the range reaches beyond `offset`."""
        while self.end <= offset:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self, rows_max: int, bytes_max: int) -> Range:
        """The next records, at least one if there is any, within the bounds otherwise."""
        taken: list[LogRecord] = []
        rows = size = 0
        while self._records:
            record, lines = self._records[0]
            length = len(record.value or b"")
            if taken and (rows + lines > rows_max or size + length > bytes_max):
                break
            rows += lines
            size += length
            taken.append(self._pop())
        return self._cut(taken, self._records[0][0].offset if self._records else self.end)

    def take_until(self, end: int) -> Range:
        """The records before `end`, which the range must have reached."""
        if end > self.end:
            raise GapInLog(f"the log was read up to {self.end}, not to {end}")
        taken = []
        while self._records and self._records[0][0].offset < end:
            taken.append(self._pop())
        return self._cut(taken, end)

    def _pop(self) -> LogRecord:
        record, lines = self._records.popleft()
        self.rows -= lines
        self.bytes -= len(record.value or b"")
        return record

    def _cut(self, taken: list[LogRecord], end: int) -> Range:
        start, self.start = self.start, end
        return Range(start, end, taken)
