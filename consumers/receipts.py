"""Receipts: what became of one transactionId, from the store where it is counted, from the log where it is not yet.

Rules: what is not in the store is looked for in the log, in the order that leaves no gap: first how far the partitions
are counted, then where they end, then the store, then what lies between. An event that the worker sends on to another
partition is in one of the two tails, or in the store. Only when nothing is uncounted, or all of it was read, is an id
unknown. The look into the log has bounds; an answer that they cut short says so.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol, cast

import msgspec

from consumers.usage import decimal_text
from consumers.windows import Period, beside_month_end
from pipeline.event import ID_CHARS_MAX, id_hash, partition_of, readable_transaction_id
from pipeline.ports import Reader, Record
from pipeline.reject import RejectPosition

Verdict = Literal["accepted", "rejected", "in_flight", "undecided"]
SHOWN_MAX: Final = 100  # conflicts and refused lines that one receipt names; the counts are of all
_CELL: Final = timedelta(minutes=15)
_DAY: Final = timedelta(days=1)
_SETTINGS: Final = {"max_execution_time": 60}


class UnknownTransaction(LookupError):  # noqa: N818 - an answer, told as 404
    """No event with this id was ever sent for the account, as far as Kafka has acknowledged any."""


class ReceiptError(ValueError):
    """The id cannot be that of an event, and why."""


class Position(msgspec.Struct, frozen=True):
    """Where a line lies in the log."""

    topic: str
    epoch: int
    partition: int
    offset: int
    line: int

    @property
    def text(self) -> str:
        """`topic:epoch:partition:offset:line`."""
        return RejectPosition(self.topic, self.epoch, self.partition, self.offset, self.line).text


class Fault(msgspec.Struct, frozen=True):
    """One fault of a refused line: field (empty for the line as a whole), stable code, words."""

    field: str
    code: str
    message: str


class Occurrence(msgspec.Struct, frozen=True):
    """One more time that the id was seen."""

    position: Position
    append_time: datetime


class Refusal(msgspec.Struct, frozen=True):
    """A line with this id that was refused, and why."""

    position: Position
    append_time: datetime
    errors: tuple[Fault, ...]


class CountedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The event that counts. `data` is the JSON object as it was sent, None where there was none."""

    client_id: str
    entity_id: str | None
    timestamp: datetime
    event_name: str | None
    feature_id: str | None
    kind: str
    value: str
    data: Any


class Moved(msgspec.Struct, frozen=True):
    """A feature that the event moved: by which quantity, under which revision of the feature. `distinct`: the feature
    counts distinct values, and the quantity is not added up."""

    feature: str
    revision: int
    quantity: str
    distinct: bool


class BlockOf(msgspec.Struct, frozen=True):
    """The block that counted the event. `committed`: its end is known to be committed."""

    start: int
    end: int
    stated_at: datetime
    committed: bool


class Bucket(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cell of a rollup that the event moved: the table, its key, and the span of time [start, end)."""

    table: str
    start: datetime
    end: datetime
    event_name: str | None = None
    feature: str | None = None
    revision: int | None = None
    client_id: str | None = None
    entity_id: str | None = None
    dimension: str | None = None
    value: str | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an id. `position` and `append_time` are those of the event that counts; of the first refused line
    where none does; of the line that waits to be counted where that was found. `times_seen` counts it and all
    duplicates and conflicts; None while it is not known."""

    account: str
    transaction_id: str
    verdict: Verdict
    detail: str
    position: Position | None = None
    append_time: datetime | None = None
    times_seen: int | None = None
    duplicates: int = 0
    conflicts: int = 0
    conflicts_at: tuple[Occurrence, ...] = ()
    event: CountedEvent | None = None
    features: tuple[Moved, ...] = ()
    catalog_version: int | None = None
    block: BlockOf | None = None
    buckets: tuple[Bucket, ...] = ()
    rejected: int = 0
    refusals: tuple[Refusal, ...] = ()


class Log(Protocol):
    """The log, as far as receipts read it (pipeline.ports.LogReader)."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset, and the offset after the last readable record. Raises LogUnavailable."""

    def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The records of [start, end) in batches, then stops. Raises LogUnavailable."""


class ScanBounds(msgspec.Struct, frozen=True):
    """How much of the log one receipt looks through, and how many of a process do so at once."""

    records_max: int = 200_000
    bytes_max: int = 64 << 20
    seconds_max: float = 5.0
    at_once_max: int = 4


class _Tail(msgspec.Struct, frozen=True):
    """Records of one partition that are not counted yet."""

    epoch: int
    partition: int
    start: int
    end: int


class ReceiptReader:
    """Answers what became of an id. One per event loop; `default_account`: of records without the header `account`."""

    def __init__(
        self,
        store: Reader,
        log: Log,
        *,
        topic: str,
        partitions: int,
        default_account: str,
        bounds: ScanBounds | None = None,
    ) -> None:
        self._store = store
        self._log = log
        self._topic = topic
        self._partitions = partitions
        self._default_account = default_account
        self._bounds = bounds or ScanBounds()
        self._scans = asyncio.Semaphore(self._bounds.at_once_max)

    async def receipt(self, account: str, transaction_id: str) -> Receipt:
        """The receipt of an id of the account.

        Raises UnknownTransaction, ReceiptError, LogUnavailable and what the store raises. The store is asked in
        threads.
        """
        if not 1 <= len(transaction_id) <= ID_CHARS_MAX:
            raise ReceiptError(f"a transactionId has 1 to {ID_CHARS_MAX} characters, not {len(transaction_id)}")
        key = id_hash(account, transaction_id)
        found = await asyncio.to_thread(self._stored, account, transaction_id, key)
        if found is not None:
            return found
        tails = await self._tails()
        found = await asyncio.to_thread(self._stored, account, transaction_id, key)
        if found is not None:
            return found
        if not tails:
            raise UnknownTransaction(_unknown(transaction_id))
        home = partition_of(key, self._partitions)
        return await self._in_flight(account, transaction_id, sorted(tails, key=lambda t: t.partition != home))

    # -- the store

    def _stored(self, account: str, transaction_id: str, key: int) -> Receipt | None:
        """What the store says; None when it has nothing, or not all of it yet."""
        where = {"account": account, "key": key, "topic": self._topic}
        rejected, refusals = self._refusals(where)
        sighting = self._rows(_SIGHTING, {**where, "partition": partition_of(key, self._partitions)})
        if not sighting:
            return _refused(account, transaction_id, rejected, refusals) if refusals else None
        epoch, partition, offset, line, append_time = sighting[0]
        at = {"epoch": epoch, "partition": partition, "offset": offset, "line": line}
        fact = self._fact({**where, **at})
        block = self._block(epoch, partition, offset)
        if fact is None and not (block and block.committed):
            return None  # the insert is under way: the log has it
        counts, conflicts_at = self._repeats(where)
        receipt = Receipt(
            account=account,
            transaction_id=transaction_id,
            verdict="accepted",
            detail="counted once",
            position=Position(self._topic, epoch, partition, offset, line),
            append_time=append_time,
            times_seen=1 + sum(counts),
            duplicates=counts[0],
            conflicts=counts[1],
            conflicts_at=conflicts_at,
            block=block,
            rejected=rejected,
            refusals=refusals,
        )
        return receipt if fact is None else _with_fact(receipt, fact)

    def _refusals(self, where: Mapping[str, Any]) -> tuple[int, tuple[Refusal, ...]]:
        """How many lines with the id were refused, and the first of them."""
        rows = self._rows(_REFUSALS, where)
        found = tuple(
            Refusal(Position(self._topic, *position), append_time, tuple(map(Fault, *faults)))
            for _, *position, append_time, faults in ((*row[:6], row[6:]) for row in rows)
        )
        return (rows[0][0] if rows else 0), found

    def _repeats(self, where: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[Occurrence, ...]]:
        """Duplicates and conflicts of the id, and where the first conflicts lie."""
        duplicates, conflicts = self._rows(_REPEATS, where)[0]
        rows = self._rows(_CONFLICTS, where) if conflicts else ()
        at = tuple(Occurrence(Position(self._topic, *position), time) for *position, time in rows)
        return (int(duplicates), int(conflicts)), at

    def _block(self, epoch: int, partition: int, offset: int) -> BlockOf | None:
        """The block that holds the offset."""
        where = {"topic": self._topic, "epoch": epoch, "partition": partition, "offset": offset}
        rows = self._rows(_BLOCK, where)
        if not rows:
            return None
        start, end, stated_at, committed = rows[0]
        return BlockOf(start, end, stated_at, bool(committed))

    def _fact(self, where: Mapping[str, Any]) -> dict[str, Any] | None:
        answer = self._store.query(_FACT, where, _SETTINGS)
        return dict(zip(answer.columns, answer.rows[0], strict=True)) if answer.rows else None

    def _rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        return self._store.query(sql, parameters, _SETTINGS).rows

    # -- the log

    async def _tails(self) -> list[_Tail]:
        """What is not counted yet, partition by partition. How far is counted is read before where the log ends."""
        counted = await asyncio.to_thread(self._rows, _PROGRESS, {"topic": self._topic})
        reached = {partition: (epoch, position) for partition, epoch, position in counted}
        tails = []
        bounds = await asyncio.gather(*(self._log.bounds(self._topic, p) for p in range(self._partitions)))
        for partition, (first, end) in enumerate(bounds):
            epoch, position = reached.get(partition, (0, first))
            # past the end: the topic was made anew, and nothing of it is counted
            start = max(first, position) if position <= end else first
            if start < end:
                tails.append(_Tail(epoch, partition, start, end))
        return tails

    async def _in_flight(self, account: str, transaction_id: str, tails: Sequence[_Tail]) -> Receipt:
        """The line with this id in the tails. Raises UnknownTransaction when all were read and none has it."""
        search = _Search(account, transaction_id, self._default_account, self._bounds)
        try:
            async with asyncio.timeout(self._bounds.seconds_max), self._scans:
                for tail in tails:
                    if await self._searched(search, tail):
                        break
        except TimeoutError:
            search.cut = f"{self._bounds.seconds_max:g} s of reading"
        if search.found is not None:
            tail, record, line = search.found
            return Receipt(
                account=account,
                transaction_id=transaction_id,
                verdict="in_flight",
                detail="received and not counted yet; ask again",
                position=Position(self._topic, tail.epoch, tail.partition, record.offset, line),
                append_time=datetime.fromtimestamp(record.timestamp_ms / 1000, UTC),
            )
        if search.cut is None:
            raise UnknownTransaction(_unknown(transaction_id))
        waiting = sum(tail.end - tail.start for tail in tails)
        return Receipt(
            account=account,
            transaction_id=transaction_id,
            verdict="undecided",
            detail=f"not counted so far; {waiting} records are not counted yet, more than {search.cut} that a receipt "
            "looks through, and the id may be among them: ask again",
        )

    async def _searched(self, search: "_Search", tail: _Tail) -> bool:
        """Reads one tail; True when there is no need to read on."""
        batches = self._log.read_range(self._topic, tail.partition, tail.start, tail.end)
        async with aclosing(cast("AsyncGenerator[Sequence[Record], None]", batches)) as reading:
            async for records in reading:
                for record in records:
                    if search.look_at(tail, record):
                        return True
                await asyncio.sleep(0)  # records that are there already must not hold up other requests
        return False


def _unknown(transaction_id: str) -> str:
    return (
        f"no event with transactionId {transaction_id!r} was received for this account; everything acknowledged before "
        "this request was looked at"
    )


def _refused(account: str, transaction_id: str, rejected: int, refusals: tuple[Refusal, ...]) -> Receipt:
    first = refusals[0]
    why = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in first.errors)
    return Receipt(
        account=account,
        transaction_id=transaction_id,
        verdict="rejected",
        detail=f"refused and not counted: {why}",
        position=first.position,
        append_time=first.append_time,
        times_seen=rejected,
        rejected=rejected,
        refusals=refusals,
    )


def _with_fact(receipt: Receipt, fact: Mapping[str, Any]) -> Receipt:
    """The receipt with the event, the features that it moved, and the cells that it lies in."""
    event = CountedEvent(
        client_id=fact["client_id"],
        entity_id=fact["entity_id"] or None,
        timestamp=fact["timestamp"],
        event_name=fact["event_name"] or None,
        feature_id=fact["feature_id"] or None,
        kind=fact["kind"],
        value=decimal_text(fact["value"]),
        data=msgspec.Raw(fact["data"].encode()) if fact["data"] else None,
    )
    meters = zip(*(fact[f"meters.{name}"] for name in ("feature", "rev", "quantity", "distinct_hash")), strict=True)
    features = tuple(Moved(name, rev, decimal_text(quantity), bool(hash_)) for name, rev, quantity, hash_ in meters)
    dims = zip(*(fact[f"dims.{name}"] for name in ("name", "text", "number", "is_number")), strict=True)
    values = [(name, decimal_text(number) if is_number else text, is_number) for name, text, number, is_number in dims]
    return msgspec.structs.replace(
        receipt,
        event=event,
        features=features,
        catalog_version=fact["catalog_version"],
        buckets=tuple(_buckets(event, features, values)) if event.kind == "delta" else (),
    )


def _buckets(
    event: CountedEvent, features: Sequence[Moved], dimensions: Sequence[tuple[str, str, bool]]
) -> Iterator[Bucket]:
    """The cells of all rollups that the event lies in: whole UTC days by customer, quarters of an hour account-wide."""
    day = event.timestamp.replace(hour=0, minute=0, second=0, microsecond=0)
    cell = day + (event.timestamp - day) // _CELL * _CELL
    by_customer = Bucket(
        table="", start=day, end=day + _DAY, client_id=event.client_id, entity_id=event.entity_id or ""
    )
    by_quarter = Bucket(table="", start=cell, end=cell + _CELL)
    cell_of = msgspec.structs.replace
    for feature in features:
        of = {"feature": feature.feature, "revision": feature.revision}
        yield cell_of(by_customer, table="usage_client_day", **of)
        yield cell_of(by_quarter, table="usage_15m", **of)
        if beside_month_end(Period(cell, cell + _CELL)):
            yield cell_of(by_customer, table="usage_client_edge_15m", start=cell, end=cell + _CELL, **of)
        if feature.distinct:
            yield cell_of(by_customer, table="usage_uniques_client_day", **of)
        for name, text, is_number in dimensions:
            if not is_number:
                yield cell_of(by_quarter, table="usage_dimension_15m", **of, dimension=name, value=text)
    named = {"event_name": event.event_name or ""}
    yield cell_of(by_customer, table="events_client_day", **named)
    yield cell_of(by_quarter, table="events_15m", **named)
    for name, text, is_number in dimensions:
        value = "" if is_number else text
        yield cell_of(by_quarter, table="events_dimension_15m", **named, dimension=name, value=value)


class _Search:
    """Looks for one id in records, within bounds. `found`: tail, record and line number; `cut`: the bound that ended
    the search before its end."""

    def __init__(self, account: str, transaction_id: str, default_account: str, bounds: ScanBounds) -> None:
        self.found: tuple[_Tail, Record, int] | None = None
        self.cut: str | None = None
        self._account = account.encode()
        self._id = transaction_id
        # A string without escapes holds these very bytes; what has escapes is decoded to see.
        self._spelled = json.dumps(transaction_id, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass")
        self._default_account = default_account.encode()
        self._bounds = bounds
        self._records = 0
        self._bytes = 0

    def look_at(self, tail: _Tail, record: Record) -> bool:
        """True when the search is over."""
        value = record.value or b""
        self._records += 1
        self._bytes += len(value)
        if self._records > self._bounds.records_max:
            self.cut = f"{self._bounds.records_max} records"
        elif self._bytes > self._bounds.bytes_max:
            self.cut = f"{self._bounds.bytes_max} bytes"
        elif self._spelled in value or b"\\" in value:
            line = self._line_of(record, value)
            if line is not None:
                self.found = tail, record, line
        return self.found is not None or self.cut is not None

    def _line_of(self, record: Record, value: bytes) -> int | None:
        if dict(record.headers).get("account", self._default_account) != self._account:
            return None
        for number, raw in enumerate(value.split(b"\n")):
            if (self._spelled in raw or b"\\" in raw) and readable_transaction_id(raw) == self._id:
                return number
        return None


# ------------------------------------------------------------------------------------------------ statements

_SIGHTING: Final = """SELECT epoch, `partition`, `offset`, line, append_time
FROM event_ids
WHERE `partition` = {partition:UInt32} AND id_hash = {key:UInt128}
ORDER BY epoch, `offset`, line
LIMIT 1"""
_FACT: Final = """SELECT
    client_id, entity_id, timestamp, event_name, feature_id, toString(kind) AS kind, value, data, catalog_version,
    `meters.feature`, `meters.rev`, `meters.quantity`, `meters.distinct_hash`,
    `dims.name`, `dims.text`, `dims.number`, `dims.is_number`
FROM events
WHERE account = {account:String} AND id_hash = {key:UInt128} AND epoch = {epoch:UInt32}
    AND `partition` = {partition:UInt32} AND `offset` = {offset:UInt64} AND line = {line:UInt32}
LIMIT 1"""
_BLOCK: Final = """SELECT
    `start`,
    `end`,
    stated_at,
    (
        SELECT max((epoch, position))
        FROM progress
        FINAL
        WHERE topic = {topic:String} AND `partition` = {partition:UInt32}
    ) >= (epoch, `end`) AS committed
FROM blocks
FINAL
WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32} AND month = 0
    AND `start` <= {offset:UInt64} AND `end` > {offset:UInt64}
LIMIT 1"""
_REPEATS: Final = """SELECT countIf(verdict = 'duplicate'), countIf(verdict = 'conflict')
FROM repeats
FINAL
WHERE id_hash = {key:UInt128} AND topic = {topic:String}"""
_CONFLICTS: Final = f"""SELECT epoch, `partition`, `offset`, line, append_time
FROM repeats
FINAL
WHERE id_hash = {{key:UInt128}} AND topic = {{topic:String}} AND verdict = 'conflict'
ORDER BY epoch, `partition`, `offset`, line
LIMIT {SHOWN_MAX}"""  # noqa: S608 - a constant
_REFUSALS: Final = f"""SELECT
    count() OVER () AS total, epoch, `partition`, `offset`, line, append_time,
    `errors.field`, `errors.code`, `errors.message`
FROM rejects
FINAL
WHERE topic = {{topic:String}} AND account = {{account:String}} AND id_hash = {{key:UInt128}} AND verdict = 'rejected'
ORDER BY append_time, epoch, `partition`, `offset`, line
LIMIT {SHOWN_MAX}"""  # noqa: S608 - a constant
_PROGRESS: Final = "SELECT `partition`, epoch, position FROM progress FINAL WHERE topic = {topic:String}"
