"""The inbox of a partition: records that were fetched and belong to no block yet, as one gapless range."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.block import LogRecord
from pipeline.records import Records


class GapInLog(Exception):  # noqa: N818
    """A batch does not begin where the one before it ended: going on would lose what lies between."""


class Range(NamedTuple):
    """The records of [start, end). Offsets may have gaps (transaction marks), ranges never."""

    start: int
    end: int
    records: Records


class _Fetched:
    """What one fetch gave, and how much of it was taken; by sums, so that most of the time it is taken at once."""

    __slots__ = ("at", "bytes", "records", "rows")

    def __init__(self, records: Sequence[LogRecord]) -> None:
        self.records = Records.of(records)
        self.rows = np.concatenate([[0], np.cumsum(self.records.lines)])
        self.bytes = np.concatenate([[0], np.cumsum(self.records.sizes)])
        self.at = 0

    def within(self, rows: int, size: int) -> int:
        """How far one gets from where it was taken to, within so many rows and bytes."""
        by_rows = np.searchsorted(self.rows, self.rows[self.at] + rows, side="right")
        by_bytes = np.searchsorted(self.bytes, self.bytes[self.at] + size, side="right")
        return max(int(min(by_rows, by_bytes)) - 1, self.at)

    def before(self, offset: int) -> int:
        """How far the records before this offset reach."""
        return max(int(np.searchsorted(self.records.offsets, offset)), self.at)


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
            self.rows += int(fetched.rows[-1])
            self.bytes += int(fetched.bytes[-1])
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
        taken: list[Records] = []
        rows, size = self.rows - rows_max, self.bytes - bytes_max  # what must be left
        while self._fetched:
            first = self._fetched[0]
            until = first.within(self.rows - rows, self.bytes - size)
            if until == first.at:
                if taken:
                    break
                until += 1
            self._move(first, until, taken)
        return self._cut(taken, self._first if self._fetched else self.end)

    def take_until(self, end: int) -> Range:
        """The records before `end`, which the range must have reached."""
        if end > self.end:
            raise GapInLog(f"the log was read up to {self.end}, not to {end}")
        taken: list[Records] = []
        while self._fetched and self._first < end:
            first = self._fetched[0]
            self._move(first, first.before(end), taken)
        return self._cut(taken, end)

    @property
    def _first(self) -> int:
        """The offset of the first record."""
        first = self._fetched[0]
        return int(first.records.offsets[first.at])

    def _move(self, first: _Fetched, until: int, taken: list[Records]) -> None:
        taken.append(first.records[first.at : until])
        self.rows -= int(first.rows[until] - first.rows[first.at])
        self.bytes -= int(first.bytes[until] - first.bytes[first.at])
        first.at = until
        if until == len(first.records):
            self._fetched.popleft()

    def _cut(self, taken: list[Records], end: int) -> Range:
        start, self.start = self.start, end
        return Range(start, end, Records.joined(taken))
