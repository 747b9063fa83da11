"""Sink: the accepted lines of a block become columns for the store, rows of the ledger and a checksum. Pure.

One insert feeds every table, but the engine writes table by table and month by month. So each block also carries one
*mark* a month: a row of account '' (no customer's) that flows through every view like an event and lands in the same
part as the block's rows. A mark's value is the block's start; the largest one of a table and month tells whether the
block has arrived there, their number whether any arrived twice. Some tables get rows of few blocks: of distinct values,
and where months end. A block of which they get nothing is not marked there either, and the store spares itself their
views (see `Block.sparse`).
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64

from pipeline.block import SORTED_RULES, SPARSE_RULES, Counts, Intent, Line, Place, Verdict
from pipeline.event import Event
from pipeline.stages.mapping import DimensionValue, Mapper, Meter

MARK_ACCOUNT: Final = ""
_T = TypeVar("_T")
_DECIMAL = pa.decimal128(38, 9)
_HASH = pa.binary(16)
_MICROSECONDS = pa.timestamp("us", "UTC")
_MILLISECONDS = pa.timestamp("ms", "UTC")
_ZERO: Final = Decimal(0)
_EXACT: Final = Context(prec=200)  # the default of 28 digits would round
_AGAIN: Final = frozenset({Verdict.DUPLICATE, Verdict.CONFLICT})  # 1 and 2, as in the table `repeats`
_EDGE_AFTER_US: Final = 12 * 3_600_000_000  # what `usage_client_edge_15m` keeps of a month: its first 12 hours
_EDGE_BEFORE_US: Final = 14 * 3_600_000_000  # and its last 14
_MONTH_LINE: Final = 0xFFFF_FFFF  # a mark's line number; no event has it


class MonthEntry(msgspec.Struct, frozen=True):
    """The ledger's row for one month (YYYYMM) of a block: rows, exact sum of values, sum of id hashes mod 2**128."""

    month: int
    rows: int
    value_sum: Decimal
    id_hash_sum: int


class Block(msgspec.Struct, kw_only=True, gc=False):
    """A block that is ready to be stated and then acted on.

    `sparse`: whether it is marked in the tables that get rows of few blocks (`SPARSE` in `adapters/rollup_view.py`), as
    each block was under rules before SPARSE_RULES. Since then, only if a row of it goes there. `rows`: the marks,
    then the events in the order of facts; before SORTED_RULES the events in the order of the log, then the marks."""

    topic: str
    epoch: int
    partition: int
    start: int
    end: int
    counts: Counts
    crc: int
    catalog_version: int
    rules: int
    append_ms_max: int
    months: tuple[MonthEntry, ...]
    rows: pa.RecordBatch | None
    sparse: bool
    sightings: Mapping[bytes, bytes]
    rejects: tuple[Line, ...]
    repeats: pa.RecordBatch | None
    forwards: tuple[Line, ...]
    bytes: int

    def intent(self, stated_ms: int, *, shared: bool = False) -> Intent:
        """What is committed before anything of the block leaves the worker."""
        return Intent(
            self.epoch,
            self.start,
            self.end,
            self.counts.accepted,
            self.crc,
            self.catalog_version,
            self.rules,
            stated_ms,
            shared,
        )

    @property
    def token(self) -> str:
        """The insert's deduplication token: the block's range, the same on every try."""
        return f"{self.topic}:{self.epoch}:{self.partition}:{self.start}-{self.end}"


def mark_name(topic: str, epoch: int, partition: int) -> str:
    """The name under which a partition's marks lie in every table."""
    return f"{topic}:{epoch}:{partition}"


def make_block(
    lines: Sequence[Line],
    place: Place,
    *,
    start: int,
    end: int,
    mapper: Mapper,
    catalog_version: int,
    rules: int,
    sightings: dict[bytes, bytes],
) -> Block:
    """The block of these judged lines."""
    accepted = [line for line in lines if line.verdict == Verdict.ACCEPTED]
    verdicts = bytes([line.verdict for line in lines])
    months = _months(accepted)
    rows, sparse = None, False
    if accepted:
        if in_order := rules >= SORTED_RULES:
            accepted.sort(key=_by_customer)
        measured = [_measure(line, mapper) for line in accepted]
        timestamps = np.array([_event(line).timestamp_us for line in accepted], np.int64)
        distinct = any(meter.distinct_hash for meters, _ in measured for meter in meters)
        sparse = is_sparse(rules, timestamps, distinct=distinct)
        rows = _columns(
            accepted,
            measured,
            months,
            place,
            start=start,
            catalog_version=catalog_version,
            sparse=sparse,
            marks_first=in_order,
        )
    return Block(
        topic=place.topic,
        epoch=place.epoch,
        partition=place.partition,
        start=start,
        end=end,
        counts=counts_of(verdicts),
        crc=checksum(verdicts, rows),
        catalog_version=catalog_version,
        rules=rules,
        append_ms_max=max((line.append_ms for line in lines), default=0),
        months=months,
        rows=rows,
        sparse=sparse,
        sightings=sightings,
        rejects=tuple(line for line in lines if line.verdict in (Verdict.REJECTED, Verdict.CONFLICT)),
        repeats=_repeats(lines, place, start),
        forwards=tuple(line for line in lines if line.verdict == Verdict.REROUTED),
        bytes=sum(len(line.raw) for line in lines),
    )


def _by_customer(line: Line) -> tuple[bytes, bytes, int]:
    """The order of facts; lines come as they lie in the log."""
    event = _event(line)
    return line.account.encode(), event.client_id.encode(), event.timestamp_us


def counts_of(verdicts: bytes) -> Counts:
    """How often each verdict was given."""
    return Counts(len(verdicts), *[verdicts.count(verdict) for verdict in Verdict])


def is_sparse(rules: int, timestamps_us: npt.NDArray[np.int64], *, distinct: bool) -> bool:
    """`Block.sparse` of a block with these timestamps, at least one; `distinct`: whether a row has a distinct value.

    All rows are of kind delta: whoever lets in others has to ask for them here, since `sets` is fed by the same way.
    """
    return rules < SPARSE_RULES or distinct or _at_an_end_of_a_month(timestamps_us)


def _at_an_end_of_a_month(timestamps_us: npt.NDArray[np.int64]) -> bool:
    """Whether a month begins within 14 hours after one of the timestamps, or began within 12 before it: as the view
    of `usage_client_edge_15m` asks."""
    outermost = np.array([timestamps_us.min(), timestamps_us.max()])
    if _months_of(outermost[:1] - _EDGE_AFTER_US) == _months_of(outermost[1:] + _EDGE_BEFORE_US):
        return False  # nearly always, and a few nanoseconds an event spared
    return bool((_months_of(timestamps_us - _EDGE_AFTER_US) != _months_of(timestamps_us + _EDGE_BEFORE_US)).any())


def _months_of(timestamps_us: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    return timestamps_us.astype("datetime64[us]").astype("datetime64[M]")


def month_of(timestamp_us: int) -> int:
    """YYYYMM, in UTC."""
    moment = datetime.fromtimestamp(timestamp_us // 1_000_000, UTC)
    return moment.year * 100 + moment.month


def checksum(verdicts: bytes, rows: pa.RecordBatch | None) -> int:
    """64 bits over all verdicts and over what the rows say; over values in Arrow's layout, which its specification
    fixes, not over a library's serialisation: an upgrade of that library leaves the checksum alone."""
    digest = xxh3_64(verdicts)
    if rows is not None:
        for name in _SUMMED:
            for part in _values(rows.column(name)):
                digest.update(part)
    return digest.intdigest()


def marks(
    place: Place, months: Sequence[int], *, start: int, catalog_version: int, append_ms: int, sparse: bool
) -> pa.RecordBatch:
    """The rows that mark a block in each of these months."""
    entries = [MonthEntry(month, 0, _ZERO, 0) for month in months]
    return _columns(
        [], [], entries, place, start=start, catalog_version=catalog_version, append_ms=append_ms, sparse=sparse
    )


# ------------------------------------------------------------------------------------------------ private

_Measured = tuple[tuple[Meter, ...], tuple[DimensionValue, ...]]


def _measure(line: Line, mapper: Mapper) -> _Measured:
    event = _event(line)
    return (
        mapper.meters(
            line.account, event.event_name, event.feature_id, event.timestamp_us, event.value, event.document
        ),
        mapper.dimensions(line.account, event.timestamp_us, event.document),
    )


def _event(line: Line) -> Event:
    if line.event is None:
        raise AssertionError(f"line {line.offset}:{line.line} was accepted without an event")
    return line.event


def _months(accepted: Sequence[Line]) -> tuple[MonthEntry, ...]:
    rows: dict[int, int] = {}
    values: dict[int, int] = {}
    hashes: dict[int, int] = {}
    days: dict[int, int] = {}
    for line in accepted:
        event = _event(line)
        day = event.timestamp_us // 86_400_000_000
        month = days.get(day)
        if month is None:
            month = days[day] = month_of(event.timestamp_us)
        rows[month] = rows.get(month, 0) + 1
        values[month] = values.get(month, 0) + scaled(event.value)
        hashes[month] = hashes.get(month, 0) + line.key
    return month_entries([(month, rows[month], values[month], hashes[month]) for month in sorted(rows)])


def month_entries(found: Iterable[tuple[int, int, int, int]]) -> tuple[MonthEntry, ...]:
    """Entries of month, rows, sum of values in units of 10**-9, and sum of id hashes."""
    return tuple(MonthEntry(month, rows, unscaled(value), hashes % (1 << 128)) for month, rows, value, hashes in found)


def scaled(value: Decimal) -> int:
    """The value in units of 10**-9, exact: sums of ints never round."""
    return int(value.scaleb(9, _EXACT))


def int128_words(number: int) -> tuple[int, int]:
    """Two's complement of 128 bits, low word first."""
    return number & 0xFFFF_FFFF_FFFF_FFFF, number >> 64 & 0xFFFF_FFFF_FFFF_FFFF


def unscaled(units: int) -> Decimal:
    """The Decimal of so many units of 10**-9, whatever the precision of the context."""
    digits = tuple(map(int, str(abs(units))))
    return Decimal((int(units < 0), digits, -9))


#: What the checksum covers. Texts and values are covered by the content hash.
_SUMMED: Final = (
    "id_hash",
    "content_hash",
    "offset",
    "line",
    "meters.feature",
    "meters.rev",
    "meters.quantity",
    "meters.distinct_hash",
    "dims.name",
    "dims.rev",
    "dims.text",
    "dims.number",
    "dims.is_number",
)


def _values(column: pa.Array) -> Iterator[memoryview]:
    """The buffers of a column without nulls, cut to what they hold; lists as offsets and values."""
    if column.offset or column.null_count:
        raise AssertionError("columns of a block are whole and have no nulls")
    kind, count = column.type, len(column)
    if pa.types.is_list(kind):
        yield memoryview(column.buffers()[1])[: (count + 1) * 4]
        yield from _values(column.values)
    elif pa.types.is_string(kind):
        _, offsets, texts = column.buffers()
        where = memoryview(offsets)[: (count + 1) * 4]
        yield where
        if texts is not None:
            yield memoryview(texts)[: int.from_bytes(where[-4:], "little")]
    else:
        yield memoryview(column.buffers()[1] or b"")[: count * kind.bit_width // 8]


def _columns(
    accepted: Sequence[Line],
    measured: Sequence[_Measured],
    months: Sequence[MonthEntry],
    place: Place,
    *,
    start: int,
    catalog_version: int,
    sparse: bool,
    marks_first: bool = True,
    append_ms: int | None = None,
) -> pa.RecordBatch:
    """The rows of `ingest` (see sql/), without the deadline, which each try sets anew. The marks of a `sparse` block
    have a distinct value, by which the views of sparse tables know them."""
    events = [_event(line) for line in accepted]
    name = mark_name(place.topic, place.epoch, place.partition)
    marks = len(months)
    first = Decimal(start)
    mark_times = [int(datetime(m.month // 100, m.month % 100, 1, tzinfo=UTC).timestamp()) * 1_000_000 for m in months]
    append_max = append_ms if append_ms is not None else max(line.append_ms for line in accepted)
    mark_measure: _Measured = (
        (Meter(name, place.epoch, first, int(sparse)),),
        (DimensionValue("block", place.epoch, name, None),),
    )
    total = len(events) + marks

    def joined(values: Iterable[_T], of_marks: Iterable[_T]) -> list[_T]:
        return [*of_marks, *values] if marks_first else [*values, *of_marks]

    def column(values: Iterable[object], mark: object, kind: pa.DataType) -> pa.Array:
        return pa.array(joined(values, [mark] * marks), kind)

    def text(values: Iterable[str | None], mark: str) -> pa.Array:
        return column((v or "" for v in values), mark, pa.string())

    all_measured = joined(measured, [mark_measure] * marks)

    columns: dict[str, pa.Array] = {
        "account": text((line.account for line in accepted), MARK_ACCOUNT),
        "client_id": text((e.client_id for e in events), name),
        "entity_id": text((e.entity_id for e in events), ""),
        "timestamp": pa.array(joined([e.timestamp_us for e in events], mark_times), pa.int64()).cast(_MICROSECONDS),
        "append_time": column((line.append_ms for line in accepted), append_max, pa.int64()).cast(_MILLISECONDS),
        "transaction_id": text((e.transaction_id for e in events), ""),
        "id_hash": column((line.key.to_bytes(16, "little") for line in accepted), bytes(16), _HASH),
        "event_name": text((e.event_name for e in events), name),
        "feature_id": text((e.feature_id for e in events), ""),
        "kind": column((1 for _ in events), 1, pa.int8()),
        "target_id": text(("" for _ in events), ""),
        "value": column((e.value for e in events), first, _DECIMAL),
        "data": column((e.data for e in events), b"", pa.binary()),
        **_nested(
            "meters",
            [meters for meters, _ in all_measured],
            {
                "feature": (lambda m: m.feature, pa.string()),
                "rev": (lambda m: m.rev, pa.uint64()),
                "quantity": (lambda m: m.quantity, _DECIMAL),
                "distinct_hash": (lambda m: m.distinct_hash.to_bytes(16, "little"), _HASH),
            },
        ),
        **_nested(
            "dims",
            [dims for _, dims in all_measured],
            {
                "name": (lambda d: d.name, pa.string()),
                "rev": (lambda d: d.rev, pa.uint64()),
                "text": (lambda d: d.text, pa.string()),
                "number": (lambda d: _ZERO if d.number is None else d.number, _DECIMAL),
                "is_number": (lambda d: int(d.number is not None), pa.uint8()),
            },
        ),
        "catalog_version": column((catalog_version for _ in events), catalog_version, pa.int64()),
        "epoch": pa.repeat(pa.scalar(place.epoch, pa.uint32()), total),
        "partition": pa.repeat(pa.scalar(place.partition, pa.uint32()), total),
        "offset": column((line.offset for line in accepted), start, pa.uint64()),
        "line": column((line.line for line in accepted), _MONTH_LINE, pa.uint32()),
        "block_start": pa.repeat(pa.scalar(start, pa.uint64()), total),
        "content_hash": column((line.content for line in accepted), 0, pa.uint64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _repeats(lines: Sequence[Line], place: Place, start: int) -> pa.RecordBatch | None:
    again = [line for line in lines if line.verdict in _AGAIN]
    return repeat_rows(
        place,
        start,
        offsets=array("Q", [line.offset for line in again]),
        numbers=array("I", [line.line for line in again]),
        keys=b"".join([line.key.to_bytes(16, "little") for line in again]),
        verdicts=array("b", [line.verdict for line in again]),
        append_ms=array("q", [line.append_ms for line in again]),
    )


def repeat_rows(
    place: Place, start: int, *, offsets: Any, numbers: Any, keys: bytes, verdicts: Any, append_ms: Any
) -> pa.RecordBatch | None:
    """The rows of `repeats`: duplicates and conflicts by position, with the hash of their id. None when there are none.
    Half of a block may be duplicates, so columns are made from buffers (arrays of 64, 32, 8 and 64 bits), not from
    rows."""
    total = len(offsets)
    if not total:
        return None
    return pa.RecordBatch.from_pydict(
        {
            "topic": pa.repeat(place.topic, total),
            "epoch": pa.repeat(pa.scalar(place.epoch, pa.uint32()), total),
            "partition": pa.repeat(pa.scalar(place.partition, pa.uint32()), total),
            "offset": pa.array(np.asarray(offsets), pa.uint64()),
            "line": pa.array(np.asarray(numbers), pa.uint32()),
            "id_hash": pa.Array.from_buffers(_HASH, total, [None, pa.py_buffer(keys)]),
            "verdict": pa.array(np.asarray(verdicts), pa.int8()),
            "append_time": pa.array(np.asarray(append_ms), pa.int64()).cast(_MILLISECONDS),
            "block_start": pa.repeat(pa.scalar(start, pa.uint64()), total),
        }
    )


def _nested(
    name: str,
    lists: Sequence[Sequence[object]],
    fields: Mapping[str, tuple[Callable[..., object], pa.DataType]],
) -> dict[str, pa.Array]:
    """The columns of a Nested: equally long lists that share their offsets."""
    offsets = array("i", [0])
    for values in lists:
        offsets.append(offsets[-1] + len(values))
    where = pa.array(offsets, pa.int32())
    flat = [value for values in lists for value in values]
    return {
        f"{name}.{field}": pa.ListArray.from_arrays(where, pa.array([read(value) for value in flat], kind))
        for field, (read, kind) in fields.items()
    }
