"""The publisher: events of one account become records of the events topic, and an answer comes only after the
broker's acknowledgement.

Rules: an id always goes to the same partition; one record per partition and request, cut at the record's largest
size; a record never mixes accounts, nor events whose timestamp the door filled in with others.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from pipeline.adapters.kafka import RECORD_BYTES_MAX
from pipeline.event import Event, encode_event, id_hash, partition_of
from pipeline.ports import Header, LogUnavailable, LogWriter
from pipeline.transaction_id import new_transaction_id


class Receipt(msgspec.Struct, frozen=True):
    """What became of one event: `error` is None once the broker has it, otherwise why it is not known to.
    `place`: where it lies then: partition, offset, line of the record."""

    transaction_id: str
    error: str | None
    place: tuple[int, int, int] | None = None


class Publisher:
    """Publishes events to one topic of `partitions` partitions. Safe for concurrent callers of one event loop."""

    def __init__(
        self,
        log: LogWriter,
        *,
        topic: str,
        partitions: int,
        record_bytes_max: int = RECORD_BYTES_MAX,
        new_id: Callable[[], str] = new_transaction_id,
    ) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions
        self._record_bytes_max = record_bytes_max
        self._new_id = new_id

    async def publish(
        self,
        account: str,
        events: Sequence[Event],
        *,
        catalog_version: int,
        defaulted: bool | Sequence[bool] = False,
        as_sent: Sequence[bytes | None] | None = None,
    ) -> list[Receipt]:
        """One receipt per event, in order. `catalog_version` is the version that the door has seen: the worker maps
        with that one or a later. `defaulted`: whether the door filled in the timestamps, of all or of each. `as_sent`:
        for events whose line, as `decode_event` took it, says all, that line; None for those that are to be written
        anew.

        Waits for acks=all, at most the log's time-out. Raises LogUnavailable when nothing at all was acknowledged.
        """
        ids = [event.transaction_id or self._new_id() for event in events]
        lines: dict[tuple[int, bool], list[tuple[int, bytes]]] = defaultdict(list)
        marks = [defaulted] * len(events) if isinstance(defaulted, bool) else defaulted
        own_lines = as_sent if as_sent is not None else [None] * len(events)
        for index, (event, identity, line, mark) in enumerate(zip(events, ids, own_lines, marks, strict=True)):
            if line is None:
                if event.transaction_id is None:
                    event = msgspec.structs.replace(event, transaction_id=identity)  # noqa: PLW2901
                line = encode_event(event)  # noqa: PLW2901
            lines[partition_of(id_hash(account, identity), self._partitions), mark].append((index, line))
        headers = [("account", account.encode()), ("catalog", str(catalog_version).encode())]
        records = [
            (partition, record, [*headers, ("defaulted", b"timestamp")] if mark else headers)
            for (partition, mark), found in lines.items()
            for record in _cut(found, self._record_bytes_max)
        ]
        writes = [self._write(partition, [line for _, line in record], own) for partition, record, own in records]
        outcomes = [await writes[0]] if len(writes) == 1 else await asyncio.gather(*writes)
        receipts: dict[int, Receipt] = {}
        for (partition, record, _), outcome in zip(records, outcomes, strict=True):
            for number, (index, _) in enumerate(record):
                if isinstance(outcome, LogUnavailable):
                    receipts[index] = Receipt(ids[index], str(outcome))
                else:
                    receipts[index] = Receipt(ids[index], None, (partition, outcome, number))
        failed = [outcome for outcome in outcomes if isinstance(outcome, LogUnavailable)]
        if failed and len(failed) == len(outcomes):
            raise failed[0]
        return [receipts[index] for index in range(len(events))]

    async def _write(self, partition: int, lines: list[bytes], headers: Sequence[Header]) -> int | LogUnavailable:
        """The record's offset, or why it is not known."""
        try:
            return await self._log.write(self._topic, b"\n".join(lines), partition=partition, headers=headers)
        except LogUnavailable as error:
            return error


def _cut(lines: list[tuple[int, bytes]], bytes_max: int) -> list[list[tuple[int, bytes]]]:
    records: list[list[tuple[int, bytes]]] = [[]]
    size = 0
    for index, line in lines:
        if records[-1] and size + len(line) + 1 > bytes_max:
            records.append([])
            size = 0
        records[-1].append((index, line))
        size += len(line) + 1
    return records
