"""Columnar: the stages decode, dedup, mapping and sink over a large block at once, in columns.

The same block to the bit as the stages give line by line (`tests/pipeline/test_columnar.py` holds the two against each
other): this is their fast form for a busy partition, where no event becomes a Python object. Lines that the scanner
leaves (see `pipeline.stages.scan`) are decoded one by one and put into the same columns. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from pipeline.stages.mapping import Mapper, Mappers, stored_number
from pipeline.stages.pieces import grouped
from pipeline.stages.rows import rows_of
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
    Block,
    MonthEntry,
    checksum,
    counts_of,
    int128_words,
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
_LOW: Final = np.uint64(0xFFFF_FFFF)


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
        found.value[row] = int128_words(scaled(event.value))
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
                found.numbers[row, number] = int128_words(scaled(exact))
        found.taken[row] = 1

    def _identify(self) -> _Words:
        """The key of every event, low and high word, 0 for other lines; and verdicts that need no table."""
        found, place = self.found, self.place
        spans = found.spans[:, TRANSACTION]
        has_id = (found.taken == 1) & (spans[:, 0] >= 0)
        keys, named = identify(self.buffer, spans, has_id.view(np.uint8), self.account, self.accounts)
        for row in np.flatnonzero(has_id & ~named).tolist():
            name = self.accounts[int(self.account[row])]
            keys[row] = int128_words(id_hash(name, self.text(row, TRANSACTION) or ""))
        n = np.uint64(place.partitions)
        lies = (keys[:, 1] % n * np.uint64((1 << 64) % place.partitions) + keys[:, 0] % n) % n
        self.verdicts[has_id & (lies == place.partition)] = Verdict.ACCEPTED
        self.verdicts[has_id & (lies != place.partition)] = Verdict.REROUTED
        for row in np.flatnonzero((found.taken == 1) & (spans[:, 0] < 0)).tolist():
            # a derived id carries its position and stays in the partition where it lies
            where = int(self.offset[row]), int(self.number[row])
            keys[row] = int128_words(derived_id_hash(place.epoch, place.topic, place.partition, *where))
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
        here = np.uint64(self.place.epoch << _OFFSET_BITS) | self.offset[rows].astype(np.uint64)
        mine = here, self.number[rows], self.found.content[rows] & np.uint64(CONTENT_MASK)
        where, line, content = map(np.concatenate, zip(unpack_sightings(seen.values()), mine, strict=True))
        first, id_of = grouped(keys[:, 0])
        if not np.array_equal(keys, keys[first[id_of]]):  # ids may be made to share their names' first half
            _, first, id_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
            id_of = id_of.reshape(-1)  # of another shape in some versions
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
            rows, sparse = rows_of(self, accepted, mapper, [m.month for m in months], start, catalog_version, rules)
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
