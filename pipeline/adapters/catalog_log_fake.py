"""The catalog's log in memory: the fake of `adapters/catalog_log.py` for tests and experiments.

Rules: passes the same contract suite as the one on Kafka. Two clients of one fake see each other's records, as two
processes do.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

from pipeline.ports import CatalogRecord, CatalogUnavailable


class MemoryCatalogLog:
    """CatalogLog in a list. `away = True` makes it unreachable until it is set to False again."""

    def __init__(self) -> None:
        self.away = False
        self.records: list[CatalogRecord] = []
        self._next_offset = 0
        self._grown = asyncio.Condition()

    async def start(self) -> None:
        """Nothing to connect."""
        self._check()

    async def stop(self) -> None:
        """Nothing to disconnect: other clients may go on."""

    async def append(self, key: bytes, value: bytes | None) -> int:
        """Keep the record."""
        self._check()
        async with self._grown:
            offset = self._next_offset
            self._next_offset += 1
            self.records.append(CatalogRecord(offset, key, value, time.time_ns() // 1_000_000))
            self._grown.notify_all()
        return offset

    async def end_offset(self) -> int:
        """The offset after the last record."""
        self._check()
        return self._next_offset

    async def read(self, from_offset: int) -> AsyncGenerator[CatalogRecord, None]:
        """Records from that offset on, then those that come."""
        position = from_offset
        while True:
            self._check()
            for record in [record for record in self.records if record.offset >= position]:
                yield record
                position = record.offset + 1
            async with self._grown:
                while not self.away and self._next_offset <= position:
                    await self._grown.wait()

    def compact(self) -> None:
        """Drop every record whose key comes again later, as the broker does in time; offsets keep their gaps."""
        last = {record.key: record.offset for record in self.records}
        self.records = [record for record in self.records if last[record.key] == record.offset]

    async def break_off(self) -> None:
        """Become unreachable, also for those who are reading."""
        self.away = True
        async with self._grown:
            self._grown.notify_all()

    def _check(self) -> None:
        if self.away:
            raise CatalogUnavailable("the log was switched off")
