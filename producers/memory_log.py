"""The events' log in memory: the fake of `pipeline.adapters.kafka.RecordWriter` for tests and experiments.

Rules: passes the same contract suite as the writer to Kafka. `away` makes everything unreachable, `away_partitions`
some partitions only.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.ports import LogUnavailable


class WrittenRecord(NamedTuple):
    """A record as it was written."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


class MemoryLog:
    """LogWriter in a list, in the order of acknowledgement."""

    def __init__(self) -> None:
        self.records: list[WrittenRecord] = []
        self.away = False
        self.away_partitions: set[int] = set()

    async def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> int:
        """Keeps the record; its offset within the partition."""
        if self.away or partition in self.away_partitions:
            raise LogUnavailable(f"partition {partition} was switched off")
        offset = sum(record.partition == partition and record.topic == topic for record in self.records)
        self.records.append(WrittenRecord(topic, partition, key, value, dict(headers)))
        return offset

    def lines(self) -> list[bytes]:
        """Every event's line, in the order written."""
        return [line for record in self.records for line in (record.value or b"").split(b"\n")]
