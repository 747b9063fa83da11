"""A usage question from text: the parameters of `GET /v1/usage` and of `tally usage` are the same.

Rules: pure; the time comes from the caller. An unknown or repeated parameter is an error that names it.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from consumers.usage import DIMENSION_PREFIX, UsageError, UsageQuery, zone_of
from consumers.windows import Period, day_start
from pipeline.event import parse_timestamp

TEXT_CHARS_MAX: Final = 256
_TEXTS: Final = (
    "feature",
    "event_name",
    "number",
    "customer",
    "entity",
    "granularity",
    "zone",
    "aggregation",
    "source",
)
_OTHERS: Final = ("start", "end", "group_by", "dimension", "top")
_WHERE: Final = re.compile(r"filter\[(.+)\]", re.DOTALL)
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_LOCAL: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?")
_WHOLE: Final = re.compile(r"[0-9]{1,9}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def instant_from(name: str, text: str, zone: str = "UTC") -> datetime:
    """The instant that the parameter `name` gives: RFC 3339, or a local date or time of the zone. Raises UsageError."""
    return _instant(name, text, zone_of(zone))


def query_from(parameters: Mapping[str, Sequence[str]], account: str, now: datetime) -> UsageQuery:
    """The question that the parameters ask, each a name with its values.

    feature | event_name, number, customer, entity, granularity, zone, aggregation, source: as in UsageQuery.
    top: a whole number.
    start, end: RFC 3339, or a local date or time of the zone; by default from the start of the month until now.
    group_by: names separated by commas. dimension: a name to group by. filter[NAME]: the value a dimension must have.
    Raises UsageError.
    """
    values: dict[str, Any] = {"account": account}
    where: dict[str, str] = {}
    groups: list[str] = []
    for name, given in parameters.items():
        if name in ("group_by", "dimension"):
            prefix = DIMENSION_PREFIX if name == "dimension" else ""
            groups += [prefix + part.strip() for text in given for part in text.split(",") if part.strip()]
            continue
        text = _single(name, given)
        if found := _WHERE.fullmatch(name):
            where[found[1]] = text
        elif name == "top":
            values[name] = _number(name, text)
        elif name in _TEXTS:
            values[name] = text
        elif name not in _OTHERS:
            known = ", ".join([*_TEXTS, *_OTHERS, "filter[NAME]"])
            raise UsageError(name, "unknown_field", f"no such parameter; known are {known}")
    zone = zone_of(values.get("zone", "UTC"))
    start = parameters.get("start")
    end = parameters.get("end")
    month = day_start(now.astimezone(zone).date().replace(day=1), zone)
    values["start"] = month if start is None else _instant("start", start[0], zone)
    values["end"] = max(now, values["start"] + timedelta(seconds=1)) if end is None else _instant("end", end[0], zone)
    return UsageQuery(**values, where=where, group_by=tuple(groups))


def period_from(start: str | None, end: str | None, zone: str | None, without: Period) -> Period:
    """The period [start, end) as `query_from` reads it; bounds that are not given are those of `without`.

    Raises UsageError.
    """
    at = zone_of(zone or "UTC")
    period = Period(
        without.start if start is None else _instant("start", start, at),
        without.end if end is None else _instant("end", end, at),
    )
    if period.start >= period.end:
        raise UsageError("end", "range", f"the period ends at {period.end.isoformat()}, not after its start")
    return period


def _single(name: str, given: Sequence[str]) -> str:
    if len(given) != 1:
        raise UsageError(name, "duplicate_key", "may be given once")
    if len(given[0]) > TEXT_CHARS_MAX:
        raise UsageError(name, "too_large", f"has {len(given[0])} characters; at most {TEXT_CHARS_MAX}")
    return given[0]


def _number(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise UsageError(name, "format", f"{text!r} is no whole number")
    return int(text)


def _instant(name: str, text: str, zone: ZoneInfo) -> datetime:
    """RFC 3339 with an offset, or the zone's local date or time."""
    try:
        if _DATE.fullmatch(text):
            return day_start(date.fromisoformat(text), zone)
        if _LOCAL.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)
        # A plus sign that nobody encoded arrives as a space.
        return _EPOCH + timedelta(microseconds=parse_timestamp(text.replace(" ", "+")))
    except (ValueError, OverflowError) as error:
        raise UsageError(name, "format", f"{text!r} is neither RFC 3339 nor a local date or time ({error})") from error
