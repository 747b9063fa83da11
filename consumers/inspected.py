"""What the inspector shows: lines of events with the verdict that the worker gave, for the developer who integrates.

Rules: values, and rows of the store turned into them. A duplicate is shown with the content of the event that counts:
its own is the same. A refused line is shown with its faults and its first characters, and with what of it could be
read.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from consumers.receipts import Fault, Position
from consumers.usage import decimal_text

InspectedVerdict = Literal["accepted", "duplicate", "conflict", "rejected"]
VERDICTS: Final[tuple[InspectedVerdict, ...]] = ("accepted", "duplicate", "conflict", "rejected")
RAW_BYTES_MAX: Final = 4096  # of a refused line; `tally rejects show` has all of it


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """One line that was judged. `data`: the JSON object as sent; `features`: those that the event moved; `errors`:
    why the line was refused; `raw`: the first 4,096 bytes of a line that was refused or in conflict, else None."""

    verdict: InspectedVerdict
    position: Position
    append_time: datetime
    transaction_id: str | None
    client_id: str | None
    entity_id: str | None
    timestamp: datetime | None
    event_name: str | None
    feature_id: str | None
    value: str | None
    data: Any
    features: tuple[str, ...]
    errors: tuple[Fault, ...]
    raw: str | None


class LineFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of one account. None: any. Of a refused line, customer and event name are what could be read."""

    account: str
    verdicts: tuple[InspectedVerdict, ...] = VERDICTS
    customer: str | None = None
    event_name: str | None = None
    transaction_id: str | None = None
    transaction_id_prefix: str | None = None

    def __post_init__(self) -> None:
        if not self.account:
            raise ValueError("an account has a name; rows of account '' are the worker's marks")


# Columns of both kinds of rows have the same names, so that one function reads them.
FACT_COLUMNS: Final = """epoch, `partition`, `offset`, line, append_time, transaction_id, client_id, entity_id,
    timestamp, event_name, feature_id, value, data, `meters.feature` AS features"""
REFUSED_COLUMNS: Final = f"""toString(r.verdict) AS verdict, r.epoch AS epoch, r.`partition` AS `partition`,
    r.`offset` AS `offset`, r.line AS line, r.append_time AS append_time, r.transaction_id AS transaction_id,
    JSONExtractString(r.bytes, 'clientId') AS client_id, JSONExtractString(r.bytes, 'entityId') AS entity_id,
    parseDateTime64BestEffortOrNull(JSONExtractString(r.bytes, 'timestamp'), 6, 'UTC') AS timestamp,
    JSONExtractString(r.bytes, 'eventName') AS event_name, JSONExtractString(r.bytes, 'featureId') AS feature_id,
    r.reason AS reason, r.field AS field, r.message AS message, r.`errors.field` AS fields, r.`errors.code` AS codes,
    r.`errors.message` AS messages, base64Encode(substring(r.bytes, 1, {RAW_BYTES_MAX})) AS raw"""

_CONDITIONS: Final = {
    "customer": "client_id = {customer:String}",
    "event_name": "event_name = {event_name:String}",
    "transaction_id": "transaction_id = {transaction_id:String}",
    "transaction_id_prefix": "startsWith(transaction_id, {transaction_id_prefix:String})",
}


def line_conditions(chosen: LineFilter) -> tuple[str, dict[str, Any]]:
    """The filter, but for account and verdict, as conditions (`1` for none) over either kind of columns, with their
    parameters."""
    given = {name: value for name in _CONDITIONS if (value := getattr(chosen, name)) is not None}
    return " AND ".join(_CONDITIONS[name] for name in given) or "1", given


def counted_line(topic: str, verdict: InspectedVerdict, row: Mapping[str, Any]) -> Inspected:
    """An accepted event, or a duplicate of one, from FACT_COLUMNS."""
    return Inspected(
        verdict=verdict,
        position=_position(topic, row),
        append_time=row["append_time"],
        transaction_id=row["transaction_id"],
        client_id=row["client_id"],
        entity_id=row["entity_id"] or None,
        timestamp=row["timestamp"],
        event_name=row["event_name"] or None,
        feature_id=row["feature_id"] or None,
        value=decimal_text(row["value"]),
        data=msgspec.Raw(row["data"].encode()) if row["data"] else None,
        features=tuple(row["features"]),
        errors=(),
        raw=None,
    )


def refused_line(topic: str, row: Mapping[str, Any]) -> Inspected:
    """A refused line or a conflict, from REFUSED_COLUMNS."""
    faults: Sequence[Fault] = [
        Fault(*fault) for fault in zip(row["fields"], row["codes"], row["messages"], strict=True)
    ] or [Fault(row["field"], row["reason"], row["message"])]
    return Inspected(
        verdict=row["verdict"],
        position=_position(topic, row),
        append_time=row["append_time"],
        transaction_id=row["transaction_id"] or None,
        client_id=row["client_id"] or None,
        entity_id=row["entity_id"] or None,
        timestamp=row["timestamp"],
        event_name=row["event_name"] or None,
        feature_id=row["feature_id"] or None,
        value=None,
        data=None,
        features=(),
        errors=tuple(faults),
        raw=base64.b64decode(row["raw"]).decode("utf-8", "backslashreplace"),
    )


def _position(topic: str, row: Mapping[str, Any]) -> Position:
    return Position(topic, row["epoch"], row["partition"], row["offset"], row["line"])
