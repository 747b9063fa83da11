"""Refused lines and conflicts, and what became of those that were replayed: read from the view `v_rejects`.

Rules: what a caller chooses goes to the server as parameters. Lines may hold any bytes, so they travel as base64.
Pages are cut by position, and a walk ends where the rejects ended when it began: a line that is refused again while
it is walked does not come up in the same walk. Calls block and raise what the store raises.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

import msgspec
import pyarrow as pa

from pipeline.ports import Reader
from pipeline.reject import RejectedLine, RejectPosition, ReplayNote

RejectVerdict = Literal["rejected", "conflict"]
RejectStatus = Literal["open", "in_flight", "accepted", "duplicate", "conflict", "rejected_again"]
REPLAYED: Final = ("in_flight", "accepted", "duplicate", "rejected_again")
LIST_MAX: Final = 10_000  # rows of one list; more is for `tally sql` or a CSV by periods
PAGE_LINES: Final = 100  # lines of at most half a megabyte each in memory at once
_SETTINGS: Final = {"max_execution_time": 120}
_POSITION: Final = "topic, epoch, `partition`, `offset`, line"


class FieldFault(msgspec.Struct, frozen=True):
    """One fault of a line: field (empty for the line as a whole), stable code, words."""

    field: str
    code: str
    message: str


class RejectRow(msgspec.Struct, frozen=True, kw_only=True):
    """One refused line. `replayed_at`, `replayed_as`, `replayed_to` (partition:offset:line) and `counted_at` (position
    of the event that counts under the replay's id) are there once it was replayed."""

    position: str
    account: str
    verdict: str
    status: str
    reason: str
    field: str
    message: str
    transaction_id: str | None
    event_name: str | None
    append_time: datetime
    replays: int
    replayed_at: datetime | None
    replayed_id: str | None
    replayed_as: str | None
    replayed_to: str | None
    counted_at: str | None


class RejectDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A refused line with its bytes (`text` where they are UTF-8, else `base64`), its headers and all faults."""

    row: RejectRow
    text: str | None
    base64: str | None
    headers: tuple[tuple[str, str], ...]
    errors: tuple[FieldFault, ...]


class RejectFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines. `account` None: all; `start` and `end` (not included) are append times; `status` "replayed": any
    of REPLAYED."""

    topic: str
    account: str | None = None
    reason: str | None = None
    field: str | None = None
    event_name: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    partition: int | None = None
    verdict: RejectVerdict | None = None
    status: RejectStatus | Literal["replayed"] | None = None
    position: RejectPosition | None = None


class NoteStore(Protocol):
    """Where notes of replays are written."""

    def insert_arrow(self, table: str, rows: Any, settings: Mapping[str, Any] | None = None) -> None:
        """Insert a pyarrow.Table by column name in one request."""


class RejectsReader:
    """Reads refused lines."""

    def __init__(self, store: Reader) -> None:
        self._store = store

    def newest(self, chosen: RejectFilter, *, limit: int) -> list[RejectRow]:
        """The newest lines first, at most `limit` and LIST_MAX."""
        where, parameters = conditions(chosen)
        sql = (
            f"SELECT {_COLUMNS} FROM v_rejects WHERE {where}"  # noqa: S608 - columns and conditions are constants
            f" ORDER BY append_time DESC, {_POSITION} LIMIT {{limit:UInt32}}"
        )
        found = self._store.query(sql, {**parameters, "limit": min(limit, LIST_MAX)}, _SETTINGS)
        return [_row(dict(zip(found.columns, row, strict=True))) for row in found.rows]

    def show(self, position: RejectPosition) -> RejectDetail | None:
        """The line at that position; None when none was refused there."""
        chosen = RejectFilter(topic=position.topic, position=position)
        where, parameters = conditions(chosen)
        sql = f"SELECT {_COLUMNS}, base64Encode(bytes) AS raw FROM v_rejects WHERE {where}"  # noqa: S608
        found = self._store.query(sql, parameters, _SETTINGS)
        if not found.rows:
            return None
        row = dict(zip(found.columns, found.rows[0], strict=True))
        more = self._store.query(
            f"SELECT `errors.field`, `errors.code`, `errors.message`, `headers.name`,"  # noqa: S608
            f" arrayMap(v -> base64Encode(v), `headers.value`) FROM rejects FINAL WHERE {where}",
            parameters,
            _SETTINGS,
        ).rows[0]
        raw = base64.b64decode(row["raw"])
        text = _text(raw)
        faults = tuple(map(FieldFault, *more[:3]))
        return RejectDetail(
            row=_row(row),
            text=text,
            base64=None if text is not None else row["raw"],
            headers=tuple((name, _header(value)) for name, value in zip(*more[3:], strict=True)),
            errors=faults or (FieldFault(row["field"], row["reason"], row["message"]),),
        )

    def count(self, chosen: RejectFilter) -> int:
        """How many lines the filter chooses."""
        where, parameters = conditions(chosen)
        return int(self._store.query(f"SELECT count() FROM v_rejects WHERE {where}", parameters, _SETTINGS).rows[0][0])  # noqa: S608

    def pages(self, chosen: RejectFilter, *, page_lines: int = PAGE_LINES) -> Iterator[Sequence[RejectedLine]]:
        """All chosen lines that are there now, by position, at most `page_lines` in memory at once."""
        where, parameters = conditions(chosen)
        ends = self._store.query(
            f"SELECT epoch, `partition`, max(`offset`) FROM v_rejects WHERE {where}"  # noqa: S608
            " GROUP BY epoch, `partition` ORDER BY epoch, `partition`",
            parameters,
            _SETTINGS,
        ).rows
        for epoch, partition, end in ends:
            bound = {**parameters, "page_epoch": epoch, "page_partition": partition, "page_end": end}
            after = (0, -1)
            while rows := self._page(where, bound, after, page_lines):
                yield [_line(row) for row in rows]
                after = (rows[-1]["offset"], rows[-1]["line"])

    def _page(
        self, where: str, parameters: Mapping[str, Any], after: tuple[int, int], lines: int
    ) -> list[dict[str, Any]]:
        offset, line = after
        sql = (
            f"SELECT {_POSITION}, account, verdict, transaction_id, replayed_id, base64Encode(bytes) AS raw, defaulted"  # noqa: S608
            f" FROM v_rejects WHERE {where} AND epoch = {{page_epoch:UInt32}}"
            " AND `partition` = {page_partition:UInt32} AND `offset` >= {page_offset:UInt64}"
            " AND `offset` <= {page_end:UInt64}"
            " AND (`offset` > {page_offset:UInt64} OR toInt64(line) > {page_line:Int64})"
            " ORDER BY `offset`, line LIMIT {lines:UInt32}"
        )
        given = {**parameters, "page_offset": offset, "page_line": line, "lines": lines}
        found = self._store.query(sql, given, _SETTINGS)
        return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def write_notes(store: NoteStore, notes: Sequence[ReplayNote]) -> None:
    """Appends notes of replays; the same note written again replaces itself. Blocks."""
    rows = [
        {
            **note.position._asdict(),
            "replayed_at": datetime.fromtimestamp(note.replayed_ms / 1000, UTC),
            "transaction_id": note.transaction_id,
            "id_hash": note.id_hash.to_bytes(16, "little"),
            "means": note.means,
            "sent": int(note.place is not None),
            **dict(zip(("to_partition", "to_offset", "to_line"), note.place or (0, 0, 0), strict=True)),
        }
        for note in notes
    ]
    store.insert_arrow("reject_replays", pa.Table.from_pylist(rows, _NOTES))


def conditions(chosen: RejectFilter) -> tuple[str, dict[str, Any]]:
    """The filter as conditions over `v_rejects` with their parameters."""
    parts = ["topic = {topic:String}"]
    parameters: dict[str, Any] = {"topic": chosen.topic}
    for name, sql in _CONDITIONS.items():
        value = getattr(chosen, name)
        if value is not None:
            parts.append(sql)
            parameters[name] = value
    if chosen.status is not None:
        parts.append("has({status:Array(String)}, status)")
        parameters["status"] = list(REPLAYED) if chosen.status == "replayed" else [chosen.status]
    if chosen.position is not None:
        for name, type_ in (("epoch", "UInt32"), ("partition", "UInt32"), ("offset", "UInt64"), ("line", "UInt32")):
            parts.append(f"`{name}` = {{at_{name}:{type_}}}")
            parameters[f"at_{name}"] = getattr(chosen.position, name)
    return " AND ".join(parts), parameters


# ------------------------------------------------------------------------------------------------ private

_CONDITIONS: Final = {
    "account": "account = {account:String}",
    "reason": "has(reasons, {reason:String})",
    "field": "has(fields, {field:String})",
    "event_name": "event_name = {event_name:String}",
    "start": "append_time >= {start:DateTime64(3, 'UTC')}",
    "end": "append_time < {end:DateTime64(3, 'UTC')}",
    "partition": "`partition` = {partition:UInt32}",
    "verdict": "verdict = {verdict:String}",
}
_COLUMNS: Final = (
    f"{_POSITION}, account, verdict, status, reason, field, message, transaction_id, event_name, append_time, replays,"
    " replayed_at, replayed_id, replayed_as, to_partition, to_offset, to_line, counted, counted_epoch, counted_offset,"
    " counted_line"
)
_NOTES: Final = pa.schema(
    [
        ("topic", pa.string()),
        ("epoch", pa.uint32()),
        ("partition", pa.uint32()),
        ("offset", pa.uint64()),
        ("line", pa.uint32()),
        ("replayed_at", pa.timestamp("ms", "UTC")),
        ("transaction_id", pa.string()),
        ("id_hash", pa.binary(16)),
        ("means", pa.string()),
        ("sent", pa.uint8()),
        ("to_partition", pa.uint32()),
        ("to_offset", pa.uint64()),
        ("to_line", pa.uint32()),
    ]
)


def _row(found: Mapping[str, Any]) -> RejectRow:
    replayed = found["replays"] > 0
    topic, partition = found["topic"], found["to_partition"]
    counted = (topic, found["counted_epoch"], partition, found["counted_offset"], found["counted_line"])
    return RejectRow(
        position=RejectPosition(topic, found["epoch"], found["partition"], found["offset"], found["line"]).text,
        account=found["account"],
        verdict=found["verdict"],
        status=found["status"],
        reason=found["reason"],
        field=found["field"],
        message=found["message"],
        transaction_id=found["transaction_id"] or None,
        event_name=found["event_name"] or None,
        append_time=found["append_time"],
        replays=found["replays"],
        replayed_at=found["replayed_at"] if replayed else None,
        replayed_id=found["replayed_id"] or None,
        replayed_as=found["replayed_as"] if replayed else None,
        replayed_to=f"{partition}:{found['to_offset']}:{found['to_line']}" if replayed else None,
        counted_at=RejectPosition(*counted).text if replayed and found["counted"] else None,
    )


def _line(found: Mapping[str, Any]) -> RejectedLine:
    return RejectedLine(
        position=RejectPosition(found["topic"], found["epoch"], found["partition"], found["offset"], found["line"]),
        account=found["account"],
        raw=base64.b64decode(found["raw"]),
        verdict=found["verdict"],
        defaulted=bool(found["defaulted"]),
        transaction_id=found["transaction_id"] or found["replayed_id"] or None,
    )


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _header(encoded: str) -> str:
    """A header's value as text, with what is no UTF-8 escaped."""
    return base64.b64decode(encoded).decode("utf-8", "backslashreplace")
