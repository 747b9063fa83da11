"""Columnar: the stages decode, dedup, mapping and sink over a large block at once, in columns.

The same block to the bit as the stages give line by line (`tests/pipeline/test_columnar.py` holds the two against each
other): this is their fast form for a busy partition, where no event becomes a Python object. Lines that the scanner
leaves (see `pipeline.stages.scan`) are decoded one by one and put into the same columns. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.block import (
    CONTENT_MASK,
    KEY_BYTES,
    RULES,
    SIGHTING_BYTES,
    SORTED_RULES,
    Line,
    LogRecord,
    Place,
    Position,
    Sighting,
    Verdict,
)
from pipeline.catalog import Account, Catalog, Dimension, Feature, encode_account, encode_dimension, encode_feature
from pipeline.event import (
    Event,
    EventError,
    FieldError,
    content_hash,
    decode_event,
    derived_id_hash,
    id_hash,
    parse_document,
    text_hash,
)
from pipeline.records import Records
from pipeline.sightings import Keys, Sightings, sorted_keys
from pipeline.stages.decode import LINES_MAX, account_of, empty_record
from pipeline.stages.dedup import Lookup, conflict_with, unknown_account
from pipeline.stages.identify import identify
from pipeline.stages.mapping import DimensionRule, Mapper, Mappers, Rule, measure, stored_number
from pipeline.stages.nested import ONE, VALUE, Answers, Asked, Column, Question, Sources, answers
from pipeline.stages.pieces import Texts, gather, grouped, ranks, same
from pipeline.stages.scan import (
    ABSENT,
    CLIENT,
    DATA,
    ENTITY,
    EVENT_NAME,
    FEATURE,
    NUMBER,
    OTHER,
    TEXT,
    TRANSACTION,
    Scanned,
    scan,
    split,
)
from pipeline.stages.sink import (
    MARK_ACCOUNT,
    Block,
    MonthEntry,
    checksum,
    counts_of,
    is_sparse,
    marks,
    month_entries,
    month_of,
    repeat_rows,
    scaled,
)

_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_Bytes = npt.NDArray[np.uint8]
_sighting = np.dtype([("place", ">u8"), ("rest", ">u8"), ("append_low", ">u2"), ("append_high", ">u2")])
_DAY_US: Final = 86_400_000_000
_OFFSET_BITS: Final = 48
_OFFSETS: Final = (1 << _OFFSET_BITS) - 1
_BITS: Final = 63  # of a number that is sorted by itself
#: In the order of the scanner's spans.
_TEXTS: Final = ("client_id", "transaction_id", "event_name", "feature_id", "entity_id", "data")
_LOW: Final = np.uint64(0xFFFF_FFFF)
_SIGN: Final = 1 << 127
_WHOLE: Final = 1 << 128


def warm_up() -> None:
    """Compiles what is compiled, or loads it from the cache of an earlier process; blocks, for some seconds the first
    time. Called before a worker joins its group, so that no block waits for it."""
    catalog = Catalog()
    objects = (
        encode_account(Account(id="a", name="", mode="live"), "0"),
        encode_feature(Feature(account="a", id="f", name="", event_names=("e",), value_key="n"), "1"),
        encode_dimension(Dimension(account="a", key="d", type="string"), "2"),
    )
    for offset, (key, value) in enumerate(objects):
        catalog.apply(offset, key, value)
    line = b'{"clientId":"c","timestamp":"1970-01-01T00:00:00Z","eventName":"e","data":{"d":"x","n":1}}'
    mapper = Mappers(catalog).at(catalog.version)
    for count in (1, 2):  # a column of one row is of another layout, for which all is compiled once more
        Columns(Place("", 0, 0, 1, "a", 0), [LogRecord(n, 0, line, ()) for n in range(count)], mapper).finish(
            start=0,
            end=count,
            mapper=mapper,
            catalog_version=catalog.version,
            lookup=lambda _: {},
            rules=RULES,
        )


class Columns:
    """The lines of a block in columns, in the order of the log."""

    def __init__(self, place: Place, log_records: Sequence[LogRecord], mapper: Mapper) -> None:
        self.place = place
        self.records = records = Records.of(log_records)
        self.bytes = records.buffer
        sizes = np.maximum(records.lengths, 0)
        self.starts, self.ends, self.record, self.number = split(
            np.frombuffer(self.bytes, np.uint8), records.starts, records.starts + sizes, int(records.lines.sum())
        )
        self.offset = records.offsets[self.record]
        self.append_ms = records.append_ms[self.record]
        self.accounts, account, defaulted, faults = _accounts(records, place.default_account)
        header = records.header[self.record]
        self.account, self.defaulted = account[header], defaulted[header]
        self.known = np.array([mapper.known_account(name) for name in self.accounts], bool)
        self.wanted = mapper.wanted(self.accounts)
        latest_us = self.append_ms * 1000 + place.ahead_max_us
        self.found: Scanned = scan(
            np.frombuffer(self.bytes, np.uint8), self.starts, self.ends, latest_us, self.defaulted, self.wanted
        )
        self.verdicts = np.full(len(self.starts), Verdict.REJECTED, np.uint8)
        self.errors: dict[int, tuple[FieldError, ...]] = {}
        self.events: dict[int, Event] = {}
        self._refuse(header, faults)
        self._decode_the_rest()
        self.buffer = np.frombuffer(self.bytes, np.uint8)
        self.keys = self._identify()

    def _refuse(self, header: _Ints, faults: dict[int, FieldError]) -> None:
        """Lines whose record or account refuses them, whatever they say."""
        taken = self.found.taken
        for number, fault in faults.items():
            for row in np.flatnonzero(header == number).tolist():
                self.errors[row] = (fault,)
                taken[row] = 0
        for row in np.flatnonzero(self.starts == self.ends).tolist():
            self.errors[row] = (empty_record(),)
        for row in np.flatnonzero(self.number >= LINES_MAX).tolist():
            self.errors[row] = (FieldError("", "too_large", "the record has too many lines"),)
            taken[row] = 0

    def _decode_the_rest(self) -> None:
        """What the scanner left, one by one; the texts of events are put behind the buffer."""
        extra: list[bytes] = []
        at = len(self.bytes)

        def put(text: bytes) -> tuple[int, int]:
            nonlocal at
            extra.append(text)
            at += len(text)
            return at - len(text), len(text)

        for row in np.flatnonzero(self.found.taken == 0).tolist():
            if row in self.errors:
                continue
            try:
                event = decode_event(
                    self.raw(row),
                    arrival_us=int(self.append_ms[row]) * 1000,
                    ahead_max_us=self.place.ahead_max_us,
                )
            except EventError as error:
                self.errors[row] = error.errors
                continue
            self.events[row] = event
            self._take(row, event, put)
        for number in np.flatnonzero(~self.known).tolist():
            for row in np.flatnonzero((self.account == number) & (self.found.taken == 1)).tolist():
                self.errors[row] = (unknown_account(self.accounts[number]),)
                self.found.taken[row] = 0
        if extra:
            self.bytes += b"".join(extra)

    def _take(self, row: int, event: Event, put: Any) -> None:
        found = self.found
        texts = (
            event.client_id,
            event.transaction_id,
            event.event_name,
            event.feature_id,
            event.entity_id,
        )
        for field, text in zip((CLIENT, TRANSACTION, EVENT_NAME, FEATURE, ENTITY), texts, strict=True):
            found.spans[row, field] = (-1, -1) if text is None else put(text.encode())
        found.spans[row, DATA] = put(event.data) if event.data else (-1, -1)
        found.timestamp_us[row] = event.timestamp_us
        found.value[row] = _words(scaled(event.value))
        found.content[row] = content_hash(event, without_timestamp=bool(self.defaulted[row]))
        found.client[row] = text_hash(event.client_id)
        name = event.event_name if event.feature_id is None else event.feature_id
        found.name[row] = 0 if name is None else text_hash(name)
        document = event.document or {}
        for number, key in enumerate(self.wanted):
            found.kinds[row, number] = ABSENT
            if key not in document:
                continue
            given = document[key]
            found.kinds[row, number] = OTHER
            if type(given) is str:
                found.kinds[row, number] = TEXT
                found.texts[row, number] = put(given.encode())
            elif (exact := stored_number(given)) is not None:
                found.kinds[row, number] = NUMBER
                found.numbers[row, number] = _words(scaled(exact))
        found.taken[row] = 1

    def _identify(self) -> _Words:
        """The key of every event, low and high word, 0 for other lines; and verdicts that need no table."""
        found, place = self.found, self.place
        spans = found.spans[:, TRANSACTION]
        has_id = (found.taken == 1) & (spans[:, 0] >= 0)
        keys, named = identify(self.buffer, spans, has_id.view(np.uint8), self.account, self.accounts)
        for row in np.flatnonzero(has_id & ~named).tolist():
            name = self.accounts[int(self.account[row])]
            keys[row] = _words(id_hash(name, self.text(row, TRANSACTION) or ""))
        n = np.uint64(place.partitions)
        lies = (keys[:, 1] % n * np.uint64((1 << 64) % place.partitions) + keys[:, 0] % n) % n
        self.verdicts[has_id & (lies == place.partition)] = Verdict.ACCEPTED
        self.verdicts[has_id & (lies != place.partition)] = Verdict.REROUTED
        for row in np.flatnonzero((found.taken == 1) & (spans[:, 0] < 0)).tolist():
            # a derived id carries its position and stays in the partition where it lies
            where = int(self.offset[row]), int(self.number[row])
            keys[row] = _words(derived_id_hash(place.epoch, place.topic, place.partition, *where))
            self.verdicts[row] = Verdict.ACCEPTED
        return keys

    def open_keys(self) -> Keys:
        """The table's keys of the lines whose verdict is still open, in an order that suits the table."""
        return Keys(self.open[self.order].tobytes())

    @cached_property
    def open(self) -> _Words:
        """The keys of the lines whose verdict is open until `judge` settles it, in their order."""
        keys: _Words = self.keys[self.verdicts == Verdict.ACCEPTED]
        return keys

    @cached_property
    def order(self) -> _Ints:
        """The order of the open keys by their first eight bytes."""
        return sorted_keys(self.open)

    def judge(self, lookup: Lookup) -> Mapping[bytes, bytes]:
        """Settles first sightings, duplicates and conflicts; what the block adds to the table."""
        rows = np.flatnonzero(self.verdicts == Verdict.ACCEPTED)
        keys, order = self.open, self.order
        packed = np.empty((len(rows), KEY_BYTES + SIGHTING_BYTES), np.uint8)
        packed[:, :KEY_BYTES] = keys.view(np.uint8)
        packed[:, KEY_BYTES:] = pack_sightings(
            self.place.epoch,
            self.offset[rows],
            self.number[rows],
            self.found.content[rows] & np.uint64(CONTENT_MASK),
            self.append_ms[rows] // 1000,
        )
        seen = lookup(self.open_keys())
        doubtful = self._doubtful(seen)
        if not len(doubtful):
            return Sightings(packed, order)
        added = np.ones(len(rows), bool)
        added[doubtful] = self._judge_doubtful(rows[doubtful], seen)
        number = np.cumsum(added) - 1
        return Sightings(packed[added], number[order[added[order]]])

    def _doubtful(self, seen: Mapping[bytes, bytes]) -> _Ints:
        """Which of the open lines, in their order, have an id that was seen before or that another line may have."""
        order = self.order
        first = self.open[order, 0].byteswap()
        again = np.zeros(len(order), bool)
        same = first[1:] == first[:-1]
        again[1:] |= same
        again[:-1] |= same
        if seen:
            words = np.frombuffer(b"".join(seen), ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
            at = np.searchsorted(first, words)
            at = at[at < len(first)]
            again[at] = True  # whichever it is, others beside it with the same eight bytes are in already
        return np.sort(order[again])

    def _judge_doubtful(self, rows: _Ints, seen: Mapping[bytes, bytes]) -> npt.NDArray[np.bool_]:
        """Which of these lines, in the order of the log, are first sightings. Verdicts and errors of the others.

        The first of an id's lines is its first sighting unless what was seen before lies before it; all others are
        compared with whichever it is."""
        before = len(seen)
        keys = np.concatenate([np.frombuffer(b"".join(seen), np.uint64).reshape(-1, 2), self.keys[rows]])
        mine = self._epoch_and_offset(rows), self.number[rows], self.found.content[rows] & np.uint64(CONTENT_MASK)
        where, line, content = map(np.concatenate, zip(unpack_sightings(seen.values()), mine, strict=True))
        first, id_of = grouped(keys[:, 0])
        if not np.array_equal(keys, keys[first[id_of]]):  # ids may be made to share their names' first half
            _, first, id_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        of_line = id_of[before:]
        known = np.zeros(len(first), np.int64)
        known[of_line[::-1]] = np.arange(before, len(keys))[::-1]  # what is written last stays: an id's first line
        earlier = (where[first] < where[known]) | (where[first] == where[known]) & (line[first] < line[known])
        known = np.where((first < before) & earlier, first, known)
        again = known[of_line] != np.arange(before, len(keys))
        other = content[known[of_line]] != content[before:]
        self.verdicts[rows[again]] = np.where(other[again], Verdict.CONFLICT, Verdict.DUPLICATE)
        for row, at in zip(rows[again & other].tolist(), known[of_line][again & other].tolist(), strict=True):
            position = Position(int(where[at]) >> _OFFSET_BITS, int(where[at]) & _OFFSETS, int(line[at]))
            self.errors[row] = (conflict_with(Sighting(position, int(content[at]), 0)),)
        first_sightings: npt.NDArray[np.bool_] = ~again
        return first_sightings

    def _epoch_and_offset(self, rows: _Ints) -> _Words:
        """Both in one number, in the order of positions."""
        return np.uint64(self.place.epoch << _OFFSET_BITS) | self.offset[rows].astype(np.uint64)

    def key_bytes(self, rows: _Ints) -> bytes:
        """The keys of these lines, one after the other."""
        return self.keys[rows].tobytes()

    def finish(
        self,
        *,
        start: int,
        end: int,
        mapper: Mapper,
        catalog_version: int,
        lookup: Lookup,
        rules: int,
    ) -> Block:
        """The block [start, end) of these lines; see `pipeline.stages.build.finish_block`."""
        place = self.place
        sightings = self.judge(lookup)
        verdicts = self.verdicts.tobytes()
        accepted = np.flatnonzero(self.verdicts == Verdict.ACCEPTED)
        months = _months(self, accepted)
        rows, sparse = None, False
        if len(accepted):
            rows, sparse = _rows(self, accepted, mapper, [m.month for m in months], start, catalog_version, rules)
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
            append_ms_max=int(self.append_ms.max(initial=0)),
            months=months,
            rows=rows,
            sparse=sparse,
            sightings=sightings,
            rejects=tuple(self.lines_of(Verdict.REJECTED, Verdict.CONFLICT)),
            repeats=_repeats(self, start),
            forwards=tuple(self.lines_of(Verdict.REROUTED)),
            bytes=int((self.ends - self.starts).sum()),
        )

    def raw(self, row: int) -> bytes:
        """The line as it came."""
        return self.bytes[int(self.starts[row]) : int(self.ends[row])]

    def text(self, row: int, field: int) -> str | None:
        """A text field of an event."""
        start, length = self.found.spans[row, field].tolist()
        return None if start < 0 else self.bytes[start : start + length].decode()

    def document(self, row: int) -> dict[str, Any] | None:
        """An event's data, parsed; for rules that look deeper than the scanner does."""
        event = self.events.get(row)
        if event is not None:
            return event.document
        start, length = self.found.spans[row, DATA].tolist()
        return None if start < 0 else parse_document(self.bytes[start : start + length])

    def lines_of(self, *verdicts: Verdict) -> Iterator[Line]:
        """The lines with these verdicts, as the stages that work line by line make them."""
        for row in np.flatnonzero(np.isin(self.verdicts, verdicts)).tolist():
            record = self.records[int(self.record[row])]
            verdict = Verdict(int(self.verdicts[row]))
            is_event = verdict is not Verdict.REJECTED
            yield Line(
                offset=int(self.offset[row]),
                line=int(self.number[row]),
                append_ms=int(self.append_ms[row]),
                account=self.accounts[int(self.account[row])],
                raw=self.raw(row),
                event=self._event(row) if is_event else None,
                errors=self.errors.get(row, ()),
                headers=record.headers,
                defaulted=bool(self.defaulted[row]),
                key=int.from_bytes(self.keys[row].tobytes(), "little"),
                content=int(self.found.content[row]) & CONTENT_MASK if verdict is Verdict.CONFLICT else 0,
                verdict=verdict,
            )

    def _event(self, row: int) -> Event:
        return self.events.get(row) or decode_event(
            self.raw(row), arrival_us=int(self.append_ms[row]) * 1000, ahead_max_us=self.place.ahead_max_us
        )


def pack_sightings(epoch: int, offset: _Ints, line: _Ints, content: _Words, append_s: _Ints) -> _Bytes:
    """Each as `pipeline.block.pack_sighting` packs it, a row each."""
    at = offset.astype(np.uint64)
    packed = np.empty(len(offset), _sighting)
    packed["place"] = np.uint64(epoch << 48) | line.astype(np.uint64) << np.uint64(24) | at >> np.uint64(24)
    packed["rest"] = (at & np.uint64(0xFF_FFFF)) << np.uint64(40) | content
    packed["append_low"] = append_s & 0xFFFF
    packed["append_high"] = append_s >> 16
    return packed.view(np.uint8).reshape(-1, SIGHTING_BYTES)


def unpack_sightings(packed: Iterable[bytes]) -> tuple[_Words, _Ints, _Words]:
    """Of each, what `pipeline.block.unpack_sighting` finds: epoch (above) and offset in one number, line, content."""
    found = np.frombuffer(b"".join(packed), _sighting)
    place, rest = found["place"].astype(np.uint64), found["rest"].astype(np.uint64)
    offset = (place & np.uint64(0xFF_FFFF)) << np.uint64(24) | rest >> np.uint64(40)
    where = place >> np.uint64(_OFFSET_BITS) << np.uint64(_OFFSET_BITS) | offset
    line = (place >> np.uint64(24) & np.uint64(0xFF_FFFF)).astype(np.int64)
    return where, line, rest & np.uint64(CONTENT_MASK)


def _accounts(records: Records, default_account: str) -> tuple[list[str], _Ints, _Bytes, dict[int, FieldError]]:
    """The accounts' names; for each of the records' headers the account's number and whether a door filled in the
    timestamp; and faults."""
    names: dict[str, int] = {}
    account = np.zeros(len(records.headers), np.int64)
    defaulted = np.zeros(len(records.headers), np.uint8)
    faults: dict[int, FieldError] = {}
    for number in np.unique(records.header).tolist():
        headers = dict(records.headers[number])
        name, fault = account_of(headers.get("account"), default_account)
        account[number] = names.setdefault(name, len(names))
        defaulted[number] = headers.get("defaulted") == b"timestamp"
        if fault is not None:
            faults[number] = fault
    return list(names), account, defaulted, faults


# ------------------------------------------------------------------------------------------------ numbers


def _words(number: int) -> tuple[int, int]:
    """Two's complement of 128 bits, low word first."""
    return number & 0xFFFF_FFFF_FFFF_FFFF, number >> 64 & 0xFFFF_FFFF_FFFF_FFFF


def _sum(words: _Words, *, signed: bool) -> int:
    """The exact sum of 128-bit numbers; at most 2**32 of them."""
    halves = [int((words[:, k] >> np.uint64(shift) & _LOW).sum()) for k in (0, 1) for shift in (0, 32)]
    total = sum(half << 32 * k for k, half in enumerate(halves))
    return total - (int((words[:, 1] >> np.uint64(63)).sum()) << 128 if signed else 0)


# ------------------------------------------------------------------------------------------------ beside the rows


def _months(lines: Columns, accepted: _Ints) -> tuple[MonthEntry, ...]:
    if not len(accepted):
        return ()
    days = lines.found.timestamp_us[accepted] // _DAY_US
    days -= (first := int(days.min()))
    used = np.flatnonzero(np.bincount(days))  # of 47,000 days at most, between 1970 and 2100
    month_of_day = np.zeros(int(used[-1]) + 1, np.int64)
    month_of_day[used] = [month_of((first + day) * _DAY_US) for day in used.tolist()]
    months = month_of_day[days]
    keys = np.frombuffer(lines.key_bytes(accepted), "<u8").reshape(-1, 2)
    found = []
    distinct = np.unique(month_of_day[used]).tolist()
    for month in distinct:
        within = months == month if len(distinct) > 1 else slice(None)
        values = lines.found.value[accepted[within]]
        found.append((month, len(values), _sum(values, signed=True), _sum(keys[within], signed=False)))
    return month_entries(found)


def _repeats(lines: Columns, start: int) -> pa.RecordBatch | None:
    again = np.flatnonzero((lines.verdicts == Verdict.DUPLICATE) | (lines.verdicts == Verdict.CONFLICT))
    return repeat_rows(
        lines.place,
        start,
        offsets=lines.offset[again].astype(np.uint64),
        numbers=lines.number[again].astype(np.uint32),
        keys=lines.key_bytes(again),
        verdicts=lines.verdicts[again].astype(np.int8),
        append_ms=lines.append_ms[again],
    )


# ------------------------------------------------------------------------------------------------ rows


def _rows(  # noqa: PLR0917 - called once
    lines: Columns, accepted: _Ints, mapper: Mapper, months: Sequence[int], start: int, catalog_version: int, rules: int
) -> tuple[pa.RecordBatch, bool]:
    """The rows of `ingest` for the accepted lines with the block's marks, and `Block.sparse`."""
    in_order = rules >= SORTED_RULES
    order = _by_customer(lines, accepted) if in_order else np.arange(len(accepted))
    before = len(months) if in_order else 0
    meters = answers(_asked_of_features(lines, accepted, mapper), accepted, order, before)
    dimensions = answers(_asked_of_dimensions(lines, accepted, mapper), accepted, order, before)
    sparse = is_sparse(rules, lines.found.timestamp_us[accepted], distinct=bool(meters.hashes.any()))
    marked = marks(
        lines.place,
        months,
        start=start,
        catalog_version=catalog_version,
        append_ms=int(lines.append_ms[accepted].max()),
        sparse=sparse,
    )
    batch = _columns(
        lines, accepted[order], meters, dimensions, marked[:before], start=start, catalog_version=catalog_version
    )
    if in_order:
        return batch, sparse
    return pa.Table.from_batches([batch, marked]).combine_chunks().to_batches()[0], sparse


def _by_customer(lines: Columns, accepted: _Ints) -> _Ints:
    """The order of facts: by account, customer and timestamp, and as they lie in the log."""
    found = lines.found
    first, group_of = grouped(found.client[accepted])
    if not same(lines.buffer, found.spans, accepted, accepted[first[group_of]], CLIENT):
        first = group_of = np.arange(len(accepted))  # hashes may be made to collide
    customer = ranks(lines.buffer, found.spans, accepted[first], CLIENT)[group_of]
    names = [name.encode() for name in lines.accounts]
    account = np.array([sorted(names).index(name) for name in names])[lines.account[accepted]]
    who = account * len(first) + customer
    when = found.timestamp_us[accepted]
    when -= when.min()
    low, middle = len(accepted).bit_length(), int(when.max()).bit_length()
    if int(who.max()).bit_length() + middle + low > _BITS:
        return np.lexsort((when, who))
    packed = who << middle + low | when << low | np.arange(len(accepted))
    packed.sort()  # numbers by themselves, in a fraction of the time
    return packed & (1 << low) - 1


def _columns(
    lines: Columns,
    rows: _Ints,
    meters: Answers,
    dimensions: Answers,
    marked: pa.RecordBatch,
    *,
    start: int,
    catalog_version: int,
) -> pa.RecordBatch:
    """Rows of `ingest`: those of `marked`, then those of these lines."""
    found, place = lines.found, lines.place
    before = marked.num_rows
    total = before + len(rows)

    def fixed(name: str, values: npt.NDArray[Any]) -> pa.Array:
        taken = np.empty((total, *values.shape[1:]), values.dtype)
        np.take(values, rows, axis=0, out=taken[before:], mode="clip")  # other modes make a copy of it first
        return _fixed(marked.column(name), taken)

    def everywhere(name: str, value: object) -> pa.Array:
        return pa.repeat(pa.scalar(value, marked.schema.field(name).type), total)

    texts = dict(
        zip(_TEXTS, _gathered([marked.column(name) for name in _TEXTS], lines.buffer, found.spans, rows), strict=True)
    )
    accounts = pa.array([MARK_ACCOUNT, *lines.accounts], pa.string())
    account = np.zeros(total, np.int64)
    account[before:] = lines.account[rows] + 1
    columns = {
        "account": accounts.take(pa.array(account)),
        "client_id": texts["client_id"],
        "entity_id": texts["entity_id"],
        "timestamp": fixed("timestamp", found.timestamp_us),
        "append_time": fixed("append_time", lines.append_ms),
        "transaction_id": texts["transaction_id"],
        "id_hash": fixed("id_hash", lines.keys),
        "event_name": texts["event_name"],
        "feature_id": texts["feature_id"],
        "kind": everywhere("kind", 1),
        "target_id": everywhere("target_id", ""),
        "value": fixed("value", found.value),
        "data": texts["data"],
    }
    columns |= _nested("meters", marked, meters, ("quantity", meters.words), ("distinct_hash", meters.hashes))
    columns |= _nested("dims", marked, dimensions, ("number", dimensions.words), ("is_number", dimensions.is_number))
    each = np.arange(before, len(dimensions.spans))
    of_marks = [marked.column("dims.text").flatten()]
    (said,) = _gathered(of_marks, lines.buffer, dimensions.spans[:, np.newaxis], each)
    columns |= {
        "dims.text": pa.ListArray.from_arrays(pa.array(dimensions.offsets), said),
        "catalog_version": everywhere("catalog_version", catalog_version),
        "epoch": everywhere("epoch", place.epoch),
        "partition": everywhere("partition", place.partition),
        "offset": fixed("offset", lines.offset),
        "line": fixed("line", lines.number.astype(np.uint32)),
        "block_start": everywhere("block_start", start),
        "content_hash": fixed("content_hash", found.content & np.uint64(CONTENT_MASK)),
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in marked.schema.names})


def _nested(
    name: str, marked: pa.RecordBatch, answered: Answers, *fields: tuple[str, npt.NDArray[Any]]
) -> dict[str, pa.Array]:
    """Lists of names, revisions and these fields."""
    before = marked.num_rows
    label = "feature" if name == "meters" else "name"
    known = [text.encode() for text in answered.known]
    ends = np.cumsum([0, *map(len, known)])
    spans = np.stack([ends[:-1], np.diff(ends)], axis=1)[:, np.newaxis]
    joined = np.frombuffer(b"".join([*known, bytes(8)]), np.uint8)
    (names,) = _gathered([marked.column(f"{name}.{label}").flatten()], joined, spans, answered.names[before:])
    offsets = pa.array(answered.offsets)
    values = {
        label: names,
        **{
            field: _fixed(marked.column(f"{name}.{field}").flatten(), given)
            for field, given in (("rev", answered.revs), *fields)
        },
    }
    return {f"{name}.{field}": pa.ListArray.from_arrays(offsets, given) for field, given in values.items()}


def _fixed(first: pa.Array, values: npt.NDArray[Any]) -> pa.Array:
    """A column of these values, the first of which are given by one that is there already."""
    size = len(first) * first.type.bit_width // 8
    if size:
        values.reshape(-1).view(np.uint8)[:size] = np.frombuffer(first.buffers()[1], np.uint8)[:size]
    return pa.Array.from_buffers(first.type, len(values), [None, pa.py_buffer(values)])


def _gathered(first: Sequence[pa.Array], buffer: _Bytes, spans: _Ints, rows: _Ints) -> list[pa.Array]:
    """For each field a column of its pieces of these rows, behind the texts of one that is there already."""
    found = gather(buffer, spans, rows, [_texts(column) for column in first])
    return [
        pa.Array.from_buffers(
            column.type, len(texts.offsets) - 1, [None, pa.py_buffer(texts.offsets), pa.py_buffer(texts.pieces)]
        )
        for column, texts in zip(first, found, strict=True)
    ]


def _texts(column: pa.Array) -> Texts:
    if not len(column):
        return Texts(np.zeros(1, np.int32), np.zeros(0, np.uint8))
    _, offsets, given = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[: len(column) + 1]
    return Texts(ends, np.frombuffer(given or b"", np.uint8)[: ends[-1]])


# ------------------------------------------------------------------------------------------------ what rows are asked


def _asked_of_features(lines: Columns, rows: _Ints, mapper: Mapper) -> Asked:
    """What the features that hold ask these rows."""
    found = lines.found
    timestamps = found.timestamp_us[rows]
    is_feature = (found.spans[rows, FEATURE, 0] >= 0).astype(np.uint64)
    mixed = found.name[rows] * np.uint64(2654435761) + lines.account[rows].astype(np.uint64) * np.uint64(2)
    first, group_of = grouped(mixed + is_feature)
    if not _alike(lines, rows, first[group_of]):
        first, group_of = _grouped(lines, rows)
    asked = Asked(Sources(found), np.full(len(rows), -1), [])
    for number, one in enumerate(first.tolist()):
        row = int(rows[one])
        account = lines.accounts[int(lines.account[row])]
        route = mapper.route(account, lines.text(row, EVENT_NAME), lines.text(row, FEATURE))
        if route is None:
            continue
        for instant, within in _stretches(route.starts, timestamps, np.flatnonzero(group_of == number)):
            deeper = asked.sources.deeper()
            asked.ask(within, [_metered(lines, rows[within], rule, deeper) for rule in route.choice(instant).rules])
    return asked


def _asked_of_dimensions(lines: Columns, rows: _Ints, mapper: Mapper) -> Asked:
    """What the dimensions that hold ask these rows."""
    timestamps = lines.found.timestamp_us[rows]
    has_data = lines.found.spans[rows, DATA, 0] >= 0
    asked = Asked(Sources(lines.found), np.full(len(rows), -1), [])
    for number, account in enumerate(lines.accounts):
        timeline = mapper.dimension_timeline(account)
        chosen = np.flatnonzero((lines.account[rows] == number) & has_data)
        if timeline is None or not len(chosen):
            continue
        for instant, within in _stretches(timeline.starts, timestamps, chosen):
            deeper = asked.sources.deeper()
            asked.ask(within, [_said(lines, rows[within], rule, deeper) for rule in timeline.at(instant)])
    return asked


def _stretches(starts: Sequence[int], timestamps: _Ints, rows: _Ints) -> Iterator[tuple[int, _Ints]]:
    """A timestamp of each stretch between two revisions that has rows, and those rows."""
    given = timestamps[rows]
    first, last = np.searchsorted(np.array(starts, np.int64), [given.min(), given.max()], side="right")
    if first == last:
        yield int(given[0]), rows
        return
    stretch = np.searchsorted(np.array(starts, np.int64), timestamps[rows], side="right")
    for number in np.unique(stretch).tolist():
        within = rows[stretch == number]
        yield int(timestamps[within[0]]), within


def _alike(lines: Columns, accepted: _Ints, first: _Ints) -> bool:
    """Whether every row has account and name of its group's first row; hashes may be made to collide."""
    others = accepted[first]
    return bool(np.array_equal(lines.account[accepted], lines.account[others])) and all(
        same(lines.buffer, lines.found.spans, accepted, others, number) for number in (EVENT_NAME, FEATURE)
    )


def _grouped(lines: Columns, accepted: _Ints) -> tuple[_Ints, _Ints]:
    """First row and rows of each account and name, by the names themselves."""
    groups: dict[tuple[int, str | None, str | None], int] = {}
    firsts: list[int] = []
    group_of = np.empty(len(accepted), np.int64)
    for i, row in enumerate(accepted.tolist()):
        named = int(lines.account[row]), lines.text(row, EVENT_NAME), lines.text(row, FEATURE)
        group_of[i] = groups.setdefault(named, len(groups))
        if len(groups) > len(firsts):
            firsts.append(i)
    return np.array(firsts, np.int64), group_of


def _metered(lines: Columns, rows: _Ints, rule: Rule, deeper: Iterator[Column]) -> Question:
    """How one revision of a feature asks these rows."""
    if rule.constant is not None and not rule.conditions:
        return Question(rule.feature, rule.rev, ONE)
    if not rule.needs_data:
        return Question(rule.feature, rule.rev, VALUE)
    if rule.value is not None and not rule.value.steps and not rule.conditions:
        return Question(rule.feature, rule.rev, lines.wanted.index(rule.value.key))
    column = next(deeper)
    for row in rows.tolist():
        low, high = lines.found.value[row].tolist()
        value = high << 64 | low
        exact = Decimal(value - _WHOLE if value & _SIGN else value)
        meter = measure(rule, exact, lines.document(row))
        column.kinds[row] = ABSENT if meter is None else NUMBER
        if meter is not None:
            # the event's own value is taken in units of 10**-9, a number of the data as it is
            own = rule.value is None and rule.unique is None and rule.constant is None
            column.numbers[row] = _words(int(meter.quantity) if own else scaled(meter.quantity))
            column.hashes[row] = _words(meter.distinct_hash)
    return Question(rule.feature, rule.rev, column.number)


def _said(lines: Columns, rows: _Ints, rule: DimensionRule, deeper: Iterator[Column]) -> Question:
    """How one revision of a dimension asks these rows."""
    name, rev, is_text, path = rule
    if path is None:
        return Question(name, rev, lines.wanted.index(name), TEXT if is_text else NUMBER)
    column = next(deeper)
    extra: list[bytes] = []
    at = len(lines.bytes)
    for row in rows.tolist():
        document = lines.document(row)
        given = path.of(document) if document else None
        column.kinds[row] = ABSENT
        if type(given) is str:
            text = given.encode()
            column.kinds[row] = TEXT
            column.texts[row] = at, len(text)
            extra.append(text)
            at += len(text)
        elif given is not None and (number := stored_number(given)) is not None:
            column.kinds[row] = NUMBER
            column.numbers[row] = _words(scaled(number))
    if extra:
        lines.bytes += b"".join(extra)
        lines.buffer = np.frombuffer(lines.bytes, np.uint8)
    return Question(name, rev, column.number, TEXT if is_text else NUMBER)
