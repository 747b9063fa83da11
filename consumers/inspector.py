"""Lists what came in with its verdict, the newest first, page by page: `GET /v1/events`.

Rules: a page is cut by the last line's own time and position, never by a number of lines, so that what comes in
meanwhile moves nothing: it is newer than the cursor and in no later page. Every statement binds the account. Facts are
not sorted by append time: an answer reads the account's rows of those months that were written to since `start`, and a
period that is too much for the store is refused by it, within bounds of time and memory. Calls block.
"""

# ruff: noqa: S608 - the parts are constants of this package; values are bound by the server

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from xxhash import xxh3_64_intdigest

from consumers.completeness import Complete
from consumers.inspected import (
    FACT_COLUMNS,
    REFUSED_COLUMNS,
    VERDICTS,
    Inspected,
    InspectedVerdict,
    LineFilter,
    counted_line,
    line_conditions,
    refused_line,
)
from consumers.usage import UsageError
from consumers.usage_params import instant_from
from pipeline.ports import Reader

LimitedBy = Literal["append_time", "timestamp"]
PERIOD: Final = timedelta(days=1)  # before `end`, or before now, where no start is given
LIMIT: Final = 50
LIMIT_MAX: Final = 200  # lines of at most 64 KiB of data each
_TEXT_CHARS_MAX: Final = 256
_SETTINGS: Final = {"max_execution_time": 30, "max_memory_usage": 1 << 30}
_SLACK_S: Final = 60  # between the clocks of broker and store
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class After(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The line that a page ended with: its time (microseconds since 1970) and position."""

    at_us: int
    epoch: int
    partition: int
    offset: int
    line: int


class LineQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines in [start, end), by `by`; at most `limit`, older than `after`. `end` None: no end."""

    chosen: LineFilter
    by: LimitedBy
    start: datetime
    end: datetime | None
    limit: int = LIMIT
    after: After | None = None


class LinePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page. `complete_until`: every line acknowledged before is judged and would be here. `next_cursor` None: there
    is no older line in the period."""

    account: str
    by: LimitedBy
    start: datetime
    end: datetime | None
    complete_until: datetime | None
    data: tuple[Inspected, ...]
    next_cursor: str | None


class Inspector:
    """Answers queries for lines. `complete`: until when everything is counted."""

    def __init__(self, store: Reader, complete: Callable[[], Complete], *, topic: str) -> None:
        self._store = store
        self._complete = complete
        self._topic = topic

    def page(self, query: LineQuery) -> LinePage:
        """One page, the newest first. Raises what the store raises. Blocks."""
        complete_until = self._complete().until  # before the lines, so that it promises no more than they hold
        period, window, bounds = _window(query)
        conditions, texts = line_conditions(query.chosen)
        chosen = query.chosen.verdicts
        refused = [verdict for verdict in chosen if verdict in ("conflict", "rejected")]
        told = {
            **texts,
            **bounds,
            "topic": self._topic,
            "account": query.chosen.account,
            "verdicts": refused,
            "since": max(_EPOCH, query.start - timedelta(seconds=_SLACK_S)).replace(microsecond=0),
            "limit": query.limit + 1,  # one more than the page takes tells whether there is more
        }
        found: list[Inspected] = []
        if "accepted" in chosen:
            rows = self._rows(_facts(query.by, window, conditions), told)
            found += [counted_line(self._topic, "accepted", row) for row in rows]
        if "duplicate" in chosen:
            rows = self._rows(_duplicates(query.by, period, window, conditions), told)
            found += [counted_line(self._topic, "duplicate", row) for row in rows]
        if refused:
            rows = self._rows(_refused(query.by, window, conditions), told)
            found += [refused_line(self._topic, row) for row in rows]
        found.sort(key=lambda one: after_of(one, query.by), reverse=True)
        page = found[: query.limit]
        more = len(found) > query.limit
        return LinePage(
            account=query.chosen.account,
            by=query.by,
            start=query.start,
            end=query.end,
            complete_until=complete_until,
            data=tuple(page),
            next_cursor=_cursor(query, after_of(page[-1], query.by)) if more else None,
        )

    def _rows(self, sql: str, told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        answer = self._store.query(sql, told, _SETTINGS)
        return (dict(zip(answer.columns, row, strict=True)) for row in answer.rows)


def line_query(parameters: Mapping[str, Any], account: str, now: datetime) -> LineQuery:
    """The query that the parameters of `GET /v1/events` ask: each a name with its values. Raises UsageError.

    verdict (one or more, separated by commas), customer, event_name, transaction_id, transaction_id_prefix, by
    (append_time or timestamp), start, end, limit, cursor.
    """
    given = {name: _single(name, values) for name, values in parameters.items()}
    for name in given:
        if name not in _PARAMETERS:
            raise UsageError(name, "unknown_field", f"no such parameter; known are {', '.join(_PARAMETERS)}")
    chosen = line_filter(account, given)
    by: Any = given.get("by", "append_time")
    if by not in ("append_time", "timestamp"):
        raise UsageError("by", "format", f"{by!r} is neither append_time nor timestamp")
    end = instant_from("end", given["end"]) if "end" in given else None
    start = instant_from("start", given["start"]) if "start" in given else (end or now) - PERIOD
    if end is not None and start >= end:
        raise UsageError("end", "range", f"the period ends at {end.isoformat()}, not after its start")
    query = LineQuery(chosen=chosen, by=by, start=start, end=end, limit=_limit(given.get("limit")))
    return query if "cursor" not in given else _continued(query, given)


def line_filter(account: str, given: Mapping[str, str]) -> LineFilter:
    """The lines that these parameters choose, by verdict, customer, event name and id. Raises UsageError."""
    texts = {name: given[name] for name in _TEXTS if name in given}
    if "transaction_id" in texts and "transaction_id_prefix" in texts:
        raise UsageError("transaction_id_prefix", "exclusive", "give transaction_id or its prefix, not both")
    verdicts: list[InspectedVerdict] = []
    for text in given.get("verdict", ",".join(VERDICTS)).split(","):
        verdict: Any = text.strip()
        if verdict not in VERDICTS:
            raise UsageError("verdict", "format", f"{verdict!r} is none of {', '.join(VERDICTS)}")
        verdicts.append(verdict)
    return LineFilter(account=account, verdicts=tuple(dict.fromkeys(verdicts)), **texts)


def after_of(line: Inspected, by: LimitedBy) -> After:
    """Where the line stands in the order of a list: by its time, then by its position."""
    at = line.append_time if by == "append_time" else line.timestamp
    if at is None:
        raise ValueError(f"the line at {line.position.text} has no {by}")
    where = line.position
    return After((at - _EPOCH) // _MICROSECOND, where.epoch, where.partition, where.offset, where.line)


# ------------------------------------------------------------------------------------------------ private

_TEXTS: Final = ("customer", "event_name", "transaction_id", "transaction_id_prefix")
_PARAMETERS: Final = ("verdict", *_TEXTS, "by", "start", "end", "limit", "cursor")


def _single(name: str, values: Any) -> str:
    if len(values) != 1:
        raise UsageError(name, "duplicate_key", "may be given once")
    text: str = values[0]
    if len(text) > _TEXT_CHARS_MAX and name != "cursor":
        raise UsageError(name, "too_large", f"has {len(text)} characters; at most {_TEXT_CHARS_MAX}")
    return text


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LIMIT_MAX and len(text) < 9):
        raise UsageError("limit", "range", f"must be a whole number from 1 to {LIMIT_MAX}")
    return int(text)


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a walk stands: what it asks for (a hash), its period in microseconds, and the last line told."""

    asks: int
    start_us: int
    end_us: int | None
    after: After


def _asks(query: LineQuery) -> int:
    """What a walk may not change on its way."""
    return xxh3_64_intdigest(msgspec.msgpack.encode((query.chosen, query.by)))


def _cursor(query: LineQuery, after: After) -> str:
    end_us = None if query.end is None else (query.end - _EPOCH) // _MICROSECOND
    cursor = _Cursor(_asks(query), (query.start - _EPOCH) // _MICROSECOND, end_us, after)
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).rstrip(b"=").decode()


def _continued(query: LineQuery, given: Mapping[str, str]) -> LineQuery:
    """The query from the cursor on, in the cursor's period."""
    text = given["cursor"]
    try:
        cursor = msgspec.msgpack.decode(base64.b64decode(text + "=" * (-len(text) % 4), "-_", True), type=_Cursor)
        start = _EPOCH + cursor.start_us * _MICROSECOND
        end = None if cursor.end_us is None else _EPOCH + cursor.end_us * _MICROSECOND
        where = msgspec.structs.astuple(cursor.after)
        if not all(0 <= number < 1 << 62 for number in where):
            raise ValueError("a position is a number")  # noqa: TRY301
    except (ValueError, binascii.Error, OverflowError, msgspec.MsgspecError) as error:
        raise UsageError("cursor", "format", "is no next_cursor of this address") from error
    if cursor.asks != _asks(query):
        raise UsageError("cursor", "exclusive", "belongs to another question: repeat its filters, or leave it out")
    for name, instant, kept in (("start", query.start, start), ("end", query.end, end)):
        if name in given and instant != kept:
            raise UsageError(name, "exclusive", "is not that of the cursor's first page")
    return msgspec.structs.replace(query, start=start, end=end, after=cursor.after)


def _window(query: LineQuery) -> tuple[str, str, dict[str, Any]]:
    """The period, and what of it lies after the cursor, as conditions with their parameters."""
    ms = query.by == "append_time"
    unit, from_unix = (1000, "fromUnixTimestamp64Milli") if ms else (1, "fromUnixTimestamp64Micro")
    instant = f"{from_unix}({{%s:Int64}}, 'UTC')"
    period = f"{query.by} >= {instant % 'start_at'}"
    told = {"start_at": -(-((query.start - _EPOCH) // _MICROSECOND) // unit)}
    if query.end is not None:
        period += f" AND {query.by} < {instant % 'end_at'}"
        told["end_at"] = -(-((query.end - _EPOCH) // _MICROSECOND) // unit)
    if query.after is None:
        return period, period, told
    at = instant % "after_at"
    told |= {f"after_{name}": value for name, value in msgspec.structs.asdict(query.after).items()}
    told["after_at"] = told.pop("after_at_us") // unit
    rest = (
        f" AND {query.by} <= {at} AND ({query.by} < {at} OR ({_POSITION})"
        " < ({after_epoch:UInt32}, {after_partition:UInt32}, {after_offset:UInt64}, {after_line:UInt32}))"
    )
    return period, period + rest, told


_POSITION: Final = "epoch, `partition`, `offset`, line"
_TOPIC: Final = "topic = {topic:String} AND verdict = 'duplicate'"
_ACCOUNT: Final = "account = {account:String}"
# Months of event time that were written to since: merges make new parts of old ones, but never move a row to another
# month, so that none is missed. Parts that have just been replaced are listed too.
_MONTHS: Final = """_partition_id IN (
    SELECT DISTINCT partition_id FROM system.parts
    WHERE database = currentDatabase() AND table = 'events' AND modification_time >= {since:DateTime('UTC')}
)"""
_CONTENT: Final = """transaction_id, client_id, entity_id, timestamp, event_name, feature_id, value, data,
        `meters.feature` AS features"""


def _facts(by: str, window: str, conditions: str) -> str:
    """Accepted events."""
    months = _MONTHS if by == "append_time" else "1"
    return f"""SELECT {FACT_COLUMNS}
FROM events
WHERE {_ACCOUNT} AND {window} AND {months} AND {conditions}
{_newest(by)}"""


def _duplicates(by: str, period: str, window: str, conditions: str) -> str:
    """Duplicates. `repeats` has neither account nor content, only ids' hashes: they are looked up among the account's
    facts, by the period's repeats where it is one of append times, else the repeats by the period's facts."""
    if by == "append_time":
        again = f"{_TOPIC} AND {window}"
        facts = f"{_ACCOUNT} AND {conditions} AND id_hash IN (SELECT id_hash FROM repeats WHERE {again})"
    else:
        facts = f"{_ACCOUNT} AND {period} AND {conditions}"
        again = f"{_TOPIC} AND id_hash IN (SELECT id_hash FROM events WHERE {facts})"
    return f"""SELECT r.epoch AS epoch, r.`partition` AS `partition`, r.`offset` AS `offset`, r.line AS line,
    r.append_time AS append_time, e.* EXCEPT id_hash
FROM (SELECT DISTINCT {_POSITION}, id_hash, append_time FROM repeats WHERE {again}) AS r
INNER JOIN (SELECT id_hash, {_CONTENT} FROM events WHERE {facts}) AS e ON e.id_hash = r.id_hash
WHERE {window if by == "timestamp" else "1"}
{_newest(by)}"""


def _refused(by: str, window: str, conditions: str) -> str:
    """Refused lines and conflicts; by event time, those that have one that can be read."""
    return f"""SELECT *
FROM
(
    SELECT {REFUSED_COLUMNS}
    FROM rejects AS r
    FINAL
    WHERE r.topic = {{topic:String}} AND r.account = {{account:String}}
        AND has({{verdicts:Array(String)}}, toString(r.verdict))
)
WHERE {window} AND {conditions}
{_newest(by)}"""


def _newest(by: str) -> str:
    return f"ORDER BY {by} DESC, epoch DESC, `partition` DESC, `offset` DESC, line DESC\nLIMIT {{limit:UInt32}}"
