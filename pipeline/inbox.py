"""The inbox of a partition: records that were fetched and belong to no block yet, as one gapless range."""

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from pipeline.block import LogRecord

_offset = attrgetter("offset")


class GapInLog(Exception):  # noqa: N818
    """A batch does not begin where the one before it ended: going on would lose what lies between."""


class Range(NamedTuple):
    """The records of [start, end). Offsets may have gaps (transaction marks), ranges never."""

    start: int
    end: int
    records: list[LogRecord]


class _Fetched:
    """What one fetch gave, and how much of it was taken; by sums, so that most of the time it is taken at once."""

    __slots__ = ("at", "bytes", "records", "rows")

    def __init__(self, records: Sequence[LogRecord]) -> None:
        values = [record.value or b"" for record in records]
        self.records = records
        self.rows = [0, *accumulate([value.count(b"\n") + 1 for value in values])]
        self.bytes = [0, *accumulate(map(len, values))]
        self.at = 0

    def within(self, rows: int, size: int) -> int:
        """How far one gets from where it was taken to, within so many rows and bytes."""
        by_rows = bisect_right(self.rows, self.rows[self.at] + rows, self.at)
        by_bytes = bisect_right(self.bytes, self.bytes[self.at] + size, self.at)
        return max(min(by_rows, by_bytes) - 1, self.at)


class Inbox:
    """Fetched records from `start` on. Bounded by its user: `rows` and `bytes` say when to pause the fetching.

    `rows` counts lines, roughly: a record counts at least one.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.rows = 0
        self.bytes = 0
        self._fetched: deque[_Fetched] = deque()
        self._arrived = asyncio.Event()

    def add(self, start: int, end: int, records: Sequence[LogRecord]) -> None:
        """Appends what one fetch gave. Raises GapInLog."""
        if start != self.end or end < start:
            raise GapInLog(f"the log was read up to {self.end}, the next batch holds {start} to {end}")
        if records:
            fetched = _Fetched(records)
            self._fetched.append(fetched)
            self.rows += fetched.rows[-1]
            self.bytes += fetched.bytes[-1]
        self.end = end
        self._arrived.set()

    async def wait_beyond(self, offset: int) -> None:
        """Returns once the range reaches beyond `offset`."""
        while self.end <= offset:
            self._arrived.clear()
            await self._arrived.wait()

    async def wait_until_holds(self, rows: int, size: int) -> None:
        """Returns once the range has so many rows or bytes."""
        while self.rows < rows and self.bytes < size:
            await self.wait_beyond(self.end)

    def take(self, rows_max: int, bytes_max: int) -> Range:
        """The next records, at least one if there is any, within the bounds otherwise."""
        taken: list[LogRecord] = []
        rows, size = self.rows - rows_max, self.bytes - bytes_max  # what must be left
        while self._fetched:
            first = self._fetched[0]
            until = first.within(self.rows - rows, self.bytes - size)
            if until == first.at:
                if taken:
                    break
                until += 1
            self._move(first, until, taken)
        return self._cut(taken, self._first.offset if self._fetched else self.end)

    def take_until(self, end: int) -> Range:
        """The records before `end`, which the range must have reached."""
        if end > self.end:
            raise GapInLog(f"the log was read up to {self.end}, not to {end}")
        taken: list[LogRecord] = []
        while self._fetched and self._first.offset < end:
            first = self._fetched[0]
            self._move(first, bisect_left(first.records, end, first.at, key=_offset), taken)
        return self._cut(taken, end)

    @property
    def _first(self) -> LogRecord:
        first = self._fetched[0]
        return first.records[first.at]

    def _move(self, first: _Fetched, until: int, taken: list[LogRecord]) -> None:
        taken += first.records[first.at : until]
        self.rows -= first.rows[until] - first.rows[first.at]
        self.bytes -= first.bytes[until] - first.bytes[first.at]
        first.at = until
        if until == len(first.records):
            self._fetched.popleft()

    def _cut(self, taken: list[LogRecord], end: int) -> Range:
        start, self.start = self.start, end
        return Range(start, end, taken)
