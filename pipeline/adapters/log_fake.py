"""The log in memory: the fake of `adapters/kafka.py`'s writer and ranges, for tests and experiments.

Rules: partitions exist as soon as they are named; the append time is the clock's that is passed in; a record is
readable as soon as it is written. `away = True` makes it unreachable until it is set to False again.
"""

from collections.abc import AsyncIterator, Callable, Sequence

from pipeline.ports import Header, LogUnavailable, Record

_READ_RECORDS = 100


class MemoryLog:
    """LogWriter and LogReader over lists, one per topic and partition."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.away = False
        self._now_ms = now_ms
        self._records: dict[tuple[str, int], list[Record]] = {}
        self._first: dict[tuple[str, int], int] = {}

    def append(
        self, topic: str, partition: int, value: bytes | None, headers: Sequence[Header] = (), key: bytes | None = None
    ) -> int:
        """Keeps the record; its offset."""
        records = self._records.setdefault((topic, partition), [])
        at_ms = max(self._now_ms(), records[-1].timestamp_ms if records else 0)
        records.append(Record(len(records), key, value, at_ms, tuple(headers)))
        return len(records) - 1

    def records(self, topic: str, partition: int) -> Sequence[Record]:
        """Everything that was written, also what was deleted since."""
        return self._records.get((topic, partition), ())

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """What retention does."""
        self._first[topic, partition] = max(offset, self._first.get((topic, partition), 0))

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Records below that offset are there no more."""
        self._check()
        self.delete_before(topic, partition, offset)

    def make_anew(self, topic: str, partition: int) -> None:
        """What deleting the topic and making it again does."""
        self._records.pop((topic, partition), None)
        self._first.pop((topic, partition), None)

    async def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> int:
        """Keeps the record; its offset."""
        self._check()
        return self.append(topic, partition, value, headers, key)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset, and the offset after the last record."""
        self._check()
        return self.bounds_now(topic, partition)

    def bounds_now(self, topic: str, partition: int) -> tuple[int, int]:
        """The same, reachable or not."""
        return self._first.get((topic, partition), 0), len(self.records(topic, partition))

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The records of [start, end) in batches, then stops. Raises LogUnavailable where they are gone."""
        for at in range(start, end, _READ_RECORDS):
            self._check()
            if at < self._first.get((topic, partition), 0):
                raise LogUnavailable(f"{topic}/{partition} does not hold offset {at} any more")
            yield self.records(topic, partition)[at : min(end, at + _READ_RECORDS)]

    def _check(self) -> None:
        if self.away:
            raise LogUnavailable("the log was switched off")
