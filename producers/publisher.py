"""The publisher: events of one account become records of the events topic, and an answer comes only after the
broker's acknowledgement.

Rules: an id always goes to the same partition; events of requests that come together share a record
(`producers.group_commit`), cut at its largest size; a record never mixes accounts, nor events whose timestamp the door
filled in with others.
"""

from collections.abc import Callable, Sequence

import msgspec

from pipeline.adapters.kafka import RECORD_BYTES_MAX
from pipeline.event import Event, encode_event, id_hash, id_hashes, partition_of
from pipeline.ports import Header, LogUnavailable, LogWriter
from pipeline.transaction_id import new_transaction_id
from producers.group_commit import Gathered, GroupCommit, Settled

_Kind = tuple[str, int, bool]  # account, catalog version, whether the door filled in the timestamps


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
        self._records = GroupCommit(log, _headers, topic=topic, record_bytes_max=record_bytes_max)
        self._partitions = partitions
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
        if not events:
            return []
        ids = [event.transaction_id or self._new_id() for event in events]
        marks = [defaulted] * len(events) if isinstance(defaulted, bool) else defaulted
        own_lines = as_sent if as_sent is not None else [None] * len(events)
        hashed, add = id_hashes(account), self._records.add
        places: list[tuple[Gathered, int]] = []
        for event, identity, line, mark in zip(events, ids, own_lines, marks, strict=True):
            if line is None:
                if event.transaction_id is None:
                    event = msgspec.structs.replace(event, transaction_id=identity)  # noqa: PLW2901
                line = encode_event(event)  # noqa: PLW2901
            partition = partition_of(hashed(identity), self._partitions)
            places.append(add(partition, (account, catalog_version, mark), line))
        records = {record for record, _ in places}
        await self._records.settled(records)
        errors = [record.error for record in records if record.error is not None]
        for error in errors:
            if not isinstance(error, LogUnavailable) or len(errors) == len(records):
                raise error
        return [
            Receipt(identity, None, (record.partition, record.offset, number))
            if record.error is None
            else Receipt(identity, str(record.error))
            for identity, (record, number) in zip(ids, places, strict=True)
        ]

    def send(
        self,
        account: str,
        event: Event,
        settled: Settled,
        *,
        catalog_version: int,
        defaulted: bool,
        as_sent: bytes | None,
    ) -> None:
        """`publish` of one event that has an id, for callers that do not wait. `settled` is called once, later, with
        None or what `publish` would raise; it must not raise."""
        line = encode_event(event) if as_sent is None else as_sent
        partition = partition_of(id_hash(account, event.transaction_id or ""), self._partitions)
        record, _ = self._records.add(partition, (account, catalog_version, defaulted), line)
        record.waiting.append(settled)


def _headers(kind: _Kind) -> list[Header]:
    account, catalog_version, defaulted = kind
    headers = [("account", account.encode()), ("catalog", str(catalog_version).encode())]
    return [*headers, ("defaulted", b"timestamp")] if defaulted else headers
