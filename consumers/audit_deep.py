"""The deep audit: counts the events topic again, as far as Kafka still has it, and compares the store line by line.

Rules: every block of the ledger is built anew from the log by the worker's own stages, under the catalog version and
rules that the ledger names; only the first positions of ids come from the store, and those must be what the log says.
So a change that was made everywhere in the store alike still shows. Each partition is read once, from its first
retained offset to its counted position; memory holds some blocks at a time. What the log no longer holds is told, not
guessed. Store calls run in a thread.
"""

# ruff: noqa: S608 - the ids in the text are numbers that this module has hashed; everything else is bound

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from consumers.audit import FINDINGS_MAX, PAUSES_S, SETTINGS, Finding
from consumers.audit_sql import PROGRESS, VERDICTS
from pipeline.block import Line, LogRecord, Place, Position, Sighting, Verdict, pack_sighting, unpack_sighting
from pipeline.ports import LogReader, Reader, Record
from pipeline.stages.build import RULE_SETS, finish_block, read_lines
from pipeline.stages.dedup import open_keys
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import MARK_ACCOUNT, Block

LINES_AT_ONCE: Final = 20_000  # compared with one question to the store; a block may exceed it
BLOCKS_AT_ONCE: Final = 200
_PAGE: Final = 10_000  # blocks of the ledger held at a time
_IDS_AT_ONCE: Final = 5_000  # their text stays far below the server's max_query_size
_REMEMBERED_MAX: Final = 100_000  # ids that the store should have and has not; past that it is to be restored anyway

_COLUMNS: Final = (
    "account", "client_id", "entity_id", "timestamp", "append_time", "transaction_id", "id_hash", "event_name",
    "feature_id", "kind", "target_id", "value", "data", "meters.feature", "meters.rev", "meters.quantity",
    "meters.distinct_hash", "dims.name", "dims.rev", "dims.text", "dims.number", "dims.is_number", "catalog_version",
)  # fmt: skip
_LEDGER: Final = f"""SELECT `start`, `end`, {", ".join(VERDICTS)}, crc, catalog_version, rules
FROM blocks FINAL
WHERE topic = {{topic:String}} AND epoch = {{epoch:UInt32}} AND `partition` = {{partition:UInt32}} AND month = 0
    AND `start` >= {{first:UInt64}} AND `end` <= {{end:UInt64}}
ORDER BY `start`
LIMIT {_PAGE}"""
_RETAINED: Final = """SELECT countIf(`start` < {first:UInt64}), sumIf(events, `start` < {first:UInt64}),
    minIf(`start`, `start` < {first:UInt64})
FROM blocks FINAL
WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32} AND month = 0"""
_FACTS: Final = f"""SELECT `offset`, line, block_start, {", ".join(f"`{column}`" for column in _COLUMNS)}
FROM events
WHERE account != '' AND epoch = {{epoch:UInt32}} AND `partition` = {{partition:UInt32}}
    AND block_start >= {{start:UInt64}} AND block_start < {{end:UInt64}}"""
_REJECTS: Final = """SELECT `offset`, line, toString(verdict)
FROM rejects FINAL
WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
    AND `offset` >= {start:UInt64} AND `offset` < {end:UInt64}"""
_EPOCHS: Final = """SELECT `partition`, epoch FROM epochs FINAL
WHERE topic = {topic:String} AND topic_id = {topic_id:String}"""


@dataclass(frozen=True, slots=True)
class Deep:
    """What was read again. `events`: lines of the log that were compared; `not_retained`: offsets that are counted and
    no longer in the log, by partition, as [start, end); `skipped`: blocks that could not be compared, with the reason;
    `drift`: number of broken promises, of which `findings` are the first."""

    events: int
    blocks: int
    not_retained: Mapping[int, tuple[int, int]]
    events_not_retained: int
    skipped: tuple[str, ...]
    drift: int
    findings: tuple[Finding, ...]


class Told(NamedTuple):
    """Progress: of which partition so many of so many offsets are compared."""

    partition: int
    done: int
    total: int


class _Stated(NamedTuple):
    """A block as the ledger has it."""

    start: int
    end: int
    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    rerouted: int
    crc: int
    catalog_version: int
    rules: int


@dataclass(slots=True)
class _Tally:
    """What was found so far; bounded."""

    events: int = 0
    blocks: int = 0
    drift: int = 0
    not_retained: dict[int, tuple[int, int]] = field(default_factory=dict)
    events_not_retained: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    shown: dict[str, int] = field(default_factory=dict)
    missing: dict[bytes, bytes] = field(default_factory=dict)
    rerouted: dict[int, dict[str, str]] = field(default_factory=dict)

    def broken(self, check: str, where: Mapping[str, object], message: str) -> None:
        self.drift += 1
        self.shown[check] = self.shown.get(check, 0) + 1
        if self.shown[check] <= FINDINGS_MAX:
            self.findings.append(Finding(check, {name: str(value) for name, value in where.items()}, message))


class DeepAuditor:
    """Compares log and store. `place`: topic, number of partitions and the rules of the workers' settings (its epoch
    and partition are ignored); `mapper_at`: the catalog's mapping at a version, raises ValueError for one it has not.
    """

    def __init__(
        self,
        store: Reader,
        log: LogReader,
        mapper_at: Callable[[int], Mapper],
        place: Place,
        *,
        topic_id: str | None = None,
        pauses_s: Sequence[float] = PAUSES_S,
        tell: Callable[[Told], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._log = log
        self._mapper_at = mapper_at
        self._place = place
        self._topic_id = topic_id
        self._pauses_s = pauses_s
        self._tell = tell

    async def run(self) -> Deep:
        """Read and compare everything that is retained. Raises what log and store raise."""
        tally = _Tally()
        for partition, epoch, position in await self._counted():
            await self._partition(tally, partition, epoch, position)
        await self._sent_on(tally)
        return Deep(
            tally.events,
            tally.blocks,
            tally.not_retained,
            tally.events_not_retained,
            tuple(f"{blocks:,} blocks: {why}" for why, blocks in tally.skipped.items()),
            tally.drift,
            tuple(tally.findings),
        )

    async def _counted(self) -> list[tuple[int, int, int]]:
        """Partitions with their epoch and counted position; those of an earlier topic of the name are left out."""
        rows = await self._rows(PROGRESS, {"topic": self._place.topic})
        if self._topic_id is None:
            return [(int(p), int(epoch), int(position)) for p, epoch, position in rows]
        lives = set(await self._rows(_EPOCHS, {"topic": self._place.topic, "topic_id": self._topic_id}))
        return [(int(p), int(epoch), int(position)) for p, epoch, position in rows if (p, epoch) in lives]

    async def _partition(self, tally: _Tally, partition: int, epoch: int, position: int) -> None:
        place = Place(
            self._place.topic,
            epoch,
            partition,
            self._place.partitions,
            self._place.default_account,
            self._place.ahead_max_us,
        )
        first, end = await self._log.bounds(place.topic, partition)
        where = {"topic": place.topic, "epoch": epoch, "partition": partition, "first": first, "end": position}
        ((gone, events, lowest),) = await self._rows(_RETAINED, where)
        if gone:
            tally.not_retained[partition] = (lowest, first)
            tally.events_not_retained += events
        if end < position:
            tally.broken(
                "log",
                {"epoch": epoch, "partition": partition, "start": end, "end": position},
                f"offsets {end} to {position - 1} are counted, and the log ends before them",
            )
        last = min(position, end)
        told = partial(self._told, partition, first, last)
        while stated := [_Stated(*row) for row in await self._rows(_LEDGER, {**where, "first": first, "end": last})]:
            await self._blocks(tally, place, stated, told)
            first = stated[-1].end
        told(last)

    def _told(self, partition: int, first: int, last: int, now: int) -> None:
        self._tell(Told(partition, max(0, now - first), max(0, last - first)))

    async def _blocks(
        self, tally: _Tally, place: Place, stated: Sequence[_Stated], told: Callable[[int], None]
    ) -> None:
        """The blocks in the order of the log; what lies between two of them is in the ledger's own findings."""
        chunk: list[tuple[_Stated, list[LogRecord]]] = []
        lines = 0
        batches = self._log.read_range(place.topic, place.partition, stated[0].start, stated[-1].end)
        async for block, records in _cut(batches, stated):
            chunk.append((block, records))
            lines += block.events
            if lines >= LINES_AT_ONCE or len(chunk) >= BLOCKS_AT_ONCE:
                await self._compare(tally, place, chunk)
                told(block.end)
                chunk, lines = [], 0
        if chunk:
            await self._compare(tally, place, chunk)

    async def _compare(self, tally: _Tally, place: Place, chunk: Sequence[tuple[_Stated, list[LogRecord]]]) -> None:
        """Some blocks, one after another, against one look at the store."""
        built: list[tuple[_Stated, Block]] = []
        for stated, records in chunk:
            block = await self._build(tally, place, stated, records)
            if block is not None:
                built.append((stated, block))
        if not built:
            return
        span = {"start": built[0][0].start, "end": built[-1][0].end}
        where = {"topic": place.topic, "epoch": place.epoch, "partition": place.partition, **span}
        facts: dict[int, dict[tuple[int, int], list[tuple[Any, ...]]]] = {}
        for offset, line, start, *rest in await self._rows(_FACTS, where):
            facts.setdefault(start, {}).setdefault((offset, line), []).append(tuple(rest))
        rejects = {(offset, line): verdict for offset, line, verdict in await self._rows(_REJECTS, where)}
        for stated, block in built:
            tally.blocks += 1
            tally.events += block.counts.events
            _compare_ledger(tally, stated, block)
            _compare_facts(tally, block, facts.get(stated.start, {}))
            _compare_rejects(tally, block, rejects)

    async def _build(self, tally: _Tally, place: Place, stated: _Stated, records: Sequence[LogRecord]) -> Block | None:
        """The block as the log and the ids' first positions give it. None where that cannot be known."""
        if stated.rules not in RULE_SETS:
            why = f"counted under rules {stated.rules}, this version knows {', '.join(map(str, sorted(RULE_SETS)))}"
            tally.skipped[why] = tally.skipped.get(why, 0) + 1
            return None
        try:
            mapper = self._mapper_at(stated.catalog_version)
        except ValueError:
            why = f"catalog version {stated.catalog_version} is not in the catalog's topic"
            tally.skipped[why] = tally.skipped.get(why, 0) + 1
            return None
        lines = read_lines(place, records, start=stated.start, end=stated.end, mapper=mapper, rules=stated.rules)
        known = await self._known(place.partition, (int.from_bytes(key, "little") for key in open_keys(lines)))
        self._check_ids(tally, place, lines, known)
        return finish_block(
            place,
            lines,
            start=stated.start,
            end=stated.end,
            mapper=mapper,
            catalog_version=stated.catalog_version,
            lookup=lambda keys: {key: known[key] for key in keys if key in known},
            rules=stated.rules,
        )

    def _check_ids(self, tally: _Tally, place: Place, lines: Sequence[Line], known: dict[bytes, bytes]) -> None:
        """Every id of the log must be kept with a position at or before this one. One that is not counts from here on
        as first seen where the log has it, so that its repetitions are not told as well."""
        for line in lines:
            if line.verdict == Verdict.REROUTED and len(tally.rerouted) < _REMEMBERED_MAX:
                tally.rerouted.setdefault(line.key, _where(place.epoch, place.partition, line.offset, line.line))
            if line.verdict != Verdict.ACCEPTED:
                continue
            key = line.key.to_bytes(16, "little")
            here = Position(place.epoch, line.offset, line.line)
            kept = known.get(key)
            first = None if kept is None else unpack_sighting(kept)
            if first is not None and first.position < here:
                continue
            if first is not None and first.position == here and first.content == line.content:
                continue
            if key in tally.missing and unpack_sighting(tally.missing[key]).position <= here:
                known[key] = tally.missing[key]
                continue
            message = (
                "the log has this id here, event_ids has it nowhere"
                if first is None
                else "event_ids has other content for this id"
                if first.position == here
                else f"event_ids has this id at offset {first.position.offset} line {first.position.line}, after it"
            )
            tally.broken("log: ids", _where(place.epoch, place.partition, line.offset, line.line), message)
            known[key] = pack_sighting(Sighting(here, line.content, line.append_ms // 1000))
            if len(tally.missing) < _REMEMBERED_MAX:
                tally.missing[key] = known[key]

    async def _known(self, partition: int, keys: Iterable[int]) -> dict[bytes, bytes]:
        """First positions of these ids, packed as the worker's table has them."""
        ids = sorted(set(keys))
        known: dict[bytes, bytes] = {}
        for at in range(0, len(ids), _IDS_AT_ONCE):
            # one literal that the engine cuts up: it would take a second to read thousands of them
            listed = ",".join(map(str, ids[at : at + _IDS_AT_ONCE]))
            rows = await self._rows(
                "SELECT id_hash, epoch, `offset`, line, content_hash, toUnixTimestamp(append_time) FROM event_ids"
                " WHERE `partition` = {partition:UInt32}"
                f" AND id_hash IN (SELECT toUInt128(arrayJoin(splitByChar(',', '{listed}'))))"
                " ORDER BY id_hash, epoch, `offset`, line LIMIT 1 BY id_hash",
                {"partition": partition},
            )
            for number, epoch, offset, line, content, append_s in rows:
                sighting = Sighting(Position(epoch, offset, line), content, append_s)
                known[number.to_bytes(16, "little")] = pack_sighting(sighting)
        return known

    async def _sent_on(self, tally: _Tally) -> None:
        """Ids that lay in another partition than their own were sent there: they must have been counted there."""
        for pause_s in (0.0, *self._pauses_s):  # they may be on their way
            if not tally.rerouted:
                return
            await asyncio.sleep(pause_s)
            by_partition: dict[int, list[int]] = {}
            for number in tally.rerouted:
                by_partition.setdefault(number % self._place.partitions, []).append(number)
            for partition, numbers in by_partition.items():
                for key in await self._known(partition, numbers):
                    tally.rerouted.pop(int.from_bytes(key, "little"), None)
        for where in tally.rerouted.values():
            tally.broken("log: rerouted", where, "was sent on to the partition of its id and is not counted there")

    async def _rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        return (await asyncio.to_thread(self._store.query, sql, parameters, SETTINGS)).rows


async def _cut(
    batches: AsyncIterator[Sequence[Record]], stated: Sequence[_Stated]
) -> AsyncIterator[tuple[_Stated, list[LogRecord]]]:
    """The records of each block, which come in the order of the log. A block without records is one as well."""
    waiting = iter(stated)
    block = next(waiting, None)
    records: list[LogRecord] = []
    async for batch in batches:
        for record in batch:
            while block is not None and record.offset >= block.end:
                yield block, records
                block, records = next(waiting, None), []
            if block is not None and record.offset >= block.start:
                headers = tuple((name, bytes(value)) for name, value in record.headers)
                records.append(LogRecord(record.offset, record.timestamp_ms, record.value, headers))
    while block is not None:
        yield block, records
        block, records = next(waiting, None), []


def _compare_ledger(tally: _Tally, stated: _Stated, block: Block) -> None:
    where = {"epoch": block.epoch, "partition": block.partition, "start": stated.start, "end": stated.end}
    differ = [
        f"{name}: the ledger has {getattr(stated, name)}, the log {getattr(block.counts, name)}"
        for name in VERDICTS
        if getattr(stated, name) != getattr(block.counts, name)
    ]
    if differ:
        tally.broken("log: ledger", where, "; ".join(differ))
    elif stated.crc != block.crc:
        tally.broken(
            "log: ledger", where, f"checksum: the ledger has {stated.crc:016x}, the log gives {block.crc:016x}"
        )


def _compare_facts(tally: _Tally, block: Block, facts: Mapping[tuple[int, int], Sequence[tuple[Any, ...]]]) -> None:
    expected = dict(_expected(block))
    for position, row in expected.items():
        where = _where(block.epoch, block.partition, *position)
        stored = facts.get(position, ())
        if not stored:
            tally.broken("log: facts", where, f"the log has {_told(row)}, facts have nothing")
        for other in stored:
            differ = [
                f"{name}: the log has {mine!r}, facts have {theirs!r}"
                for name, mine, theirs in zip(_COLUMNS, row, map(_plain, other), strict=True)
                if mine != theirs
            ]
            if differ:
                tally.broken("log: facts", where, "; ".join(differ))
        if len(stored) > 1:
            tally.broken("log: facts", where, f"stored {len(stored)} times")
    for position, rows in facts.items():
        if position not in expected:
            where = _where(block.epoch, block.partition, *position)
            tally.broken("log: facts", where, f"facts have {_told(rows[0])}, the log has no accepted event there")


def _compare_rejects(tally: _Tally, block: Block, stored: Mapping[tuple[int, int], str]) -> None:
    expected = {
        (line.offset, line.line): "conflict" if line.verdict == Verdict.CONFLICT else "rejected"
        for line in block.rejects
    }
    for position, verdict in expected.items():
        if stored.get(position) != verdict:
            where = _where(block.epoch, block.partition, *position)
            tally.broken(
                "log: rejects", where, f"the log has a {verdict}, rejects have {stored.get(position, 'nothing')}"
            )
    for position, verdict in stored.items():
        if block.start <= position[0] < block.end and position not in expected:
            where = _where(block.epoch, block.partition, *position)
            tally.broken("log: rejects", where, f"rejects have a {verdict}, the log has none there")


def _expected(block: Block) -> Iterable[tuple[tuple[int, int], tuple[Any, ...]]]:
    """The block's facts by position, in the form in which the store gives them back."""
    if block.rows is None:
        return
    names = block.rows.schema.names
    forms: dict[str, Callable[[Any], Any]] = {
        "data": bytes.decode,
        "id_hash": _hash,
        "meters.distinct_hash": _hash,
        "kind": lambda _: "delta",  # the only kind that is built
    }
    columns = [
        [forms.get(name, _plain)(value) for value in block.rows.column(names.index(name)).to_pylist()]
        for name in _COLUMNS
    ]
    offsets = block.rows.column(names.index("offset")).to_pylist()
    lines = block.rows.column(names.index("line")).to_pylist()
    for offset, line, *row in zip(offsets, lines, *columns, strict=True):
        if row[0] != MARK_ACCOUNT:
            yield (offset, line), tuple(row)


def _plain(value: Any) -> Any:
    """Arrow's and the store's values in one form: instants in UTC, lists as tuples."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value


def _hash(value: bytes | list[bytes]) -> Any:
    """A 128-bit hash, or a list of them, as numbers."""
    return int.from_bytes(value, "little") if isinstance(value, bytes) else tuple(map(_hash, value))


def _told(row: Sequence[Any]) -> str:
    found = dict(zip(_COLUMNS, row, strict=True))
    return f"account {found['account']!r}, transactionId {found['transaction_id']!r}, value {found['value']}"


def _where(epoch: int, partition: int, offset: int, line: int) -> dict[str, str]:
    return {"epoch": str(epoch), "partition": str(partition), "offset": str(offset), "line": str(line)}
