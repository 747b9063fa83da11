"""Rows: the columns of `ingest` for the accepted lines of a large block, in the order of facts. Pure.

Facts are sorted by account, customer and timestamp. Rows that come so are neither sorted nor moved by the store, which
was a sixth of what an insert costs it. Lines that follow each other here lie apart in memory, so they are read ahead.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.block import CONTENT_MASK, SORTED_RULES
from pipeline.stages.mapping import DimensionRule, Mapper, Rule, measure, stored_number
from pipeline.stages.nested import ONE, VALUE, Answers, Asked, Column, Question, Sources, answers
from pipeline.stages.pieces import Texts, gather, grouped, ranks, same
from pipeline.stages.scan import ABSENT, CLIENT, DATA, EVENT_NAME, FEATURE, NUMBER, TEXT
from pipeline.stages.sink import MARK_ACCOUNT, int128_words, is_sparse, marks, scaled

if TYPE_CHECKING:
    from pipeline.stages.columnar import Columns

_Ints = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]
_BITS: Final = 63  # of a number that is sorted by itself
_SIGN: Final = 1 << 127
_WHOLE: Final = 1 << 128
#: In the order of the scanner's spans.
_TEXTS: Final = ("client_id", "transaction_id", "event_name", "feature_id", "entity_id", "data")


def rows_of(  # noqa: PLR0917 - called once
    lines: "Columns",
    accepted: _Ints,
    mapper: Mapper,
    months: Sequence[int],
    start: int,
    catalog_version: int,
    rules: int,
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


def _by_customer(lines: "Columns", accepted: _Ints) -> _Ints:
    """The order of facts: by account, customer and timestamp, and as they lie in the log."""
    found = lines.found
    first, group_of = grouped(found.client[accepted])
    if not same(lines.buffer, found.spans, accepted, accepted[first[group_of]], CLIENT):
        first = group_of = np.arange(len(accepted))  # hashes may be made to collide
    customer = ranks(lines.buffer, found.spans, accepted[first], CLIENT)[group_of]
    accounts = range(len(lines.accounts))
    account = np.empty(len(accounts), np.int64)
    account[sorted(accounts, key=lambda number: lines.accounts[number].encode())] = accounts
    who = account[lines.account[accepted]] * len(first) + customer
    when = found.timestamp_us[accepted]
    when -= when.min()
    low, middle = len(accepted).bit_length(), int(when.max()).bit_length()
    if int(who.max()).bit_length() + middle + low > _BITS:
        return np.lexsort((when, who))
    packed = who << middle + low | when << low | np.arange(len(accepted))
    packed.sort()  # numbers by themselves, in a fraction of the time
    return packed & (1 << low) - 1


def _columns(
    lines: "Columns",
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
        "timestamp": fixed("timestamp", found.timestamp_us),
        "append_time": fixed("append_time", lines.append_ms),
        "id_hash": fixed("id_hash", lines.keys),
        "kind": everywhere("kind", 1),
        "target_id": everywhere("target_id", ""),
        "value": fixed("value", found.value),
        **texts,
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


def _asked_of_features(lines: "Columns", rows: _Ints, mapper: Mapper) -> Asked:
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


def _asked_of_dimensions(lines: "Columns", rows: _Ints, mapper: Mapper) -> Asked:
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


def _alike(lines: "Columns", accepted: _Ints, first: _Ints) -> bool:
    """Whether every row has account and name of its group's first row; hashes may be made to collide."""
    others = accepted[first]
    return bool(np.array_equal(lines.account[accepted], lines.account[others])) and all(
        same(lines.buffer, lines.found.spans, accepted, others, number) for number in (EVENT_NAME, FEATURE)
    )


def _grouped(lines: "Columns", accepted: _Ints) -> tuple[_Ints, _Ints]:
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


def _metered(lines: "Columns", rows: _Ints, rule: Rule, deeper: Iterator[Column]) -> Question:
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
            column.numbers[row] = int128_words(int(meter.quantity) if own else scaled(meter.quantity))
            column.hashes[row] = int128_words(meter.distinct_hash)
    return Question(rule.feature, rule.rev, column.number)


def _said(lines: "Columns", rows: _Ints, rule: DimensionRule, deeper: Iterator[Column]) -> Question:
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
            column.numbers[row] = int128_words(scaled(number))
    if extra:
        lines.bytes += b"".join(extra)
        lines.buffer = np.frombuffer(lines.bytes, np.uint8)
    return Question(name, rev, column.number, TEXT if is_text else NUMBER)
