"""Usage: what a question for usage is, and what its answer is.

Rules: values only. A question is checked when it is made; an answer carries exact decimals and says until when it is
complete. What is read where is `usage_plan`, as SQL `usage_sql`; who asks the store is `usage_reader`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from consumers.windows import GRANULARITIES, Granularity, Period, count_at_most

Aggregation = Literal["sum", "count", "max", "min", "latest", "unique", "average"]
AGGREGATIONS: Final[tuple[Aggregation, ...]] = ("sum", "count", "max", "min", "latest", "unique", "average")
Source = Literal["auto", "rollups", "facts"]
SOURCES: Final[tuple[Source, ...]] = ("auto", "rollups", "facts")

WINDOWS_MAX: Final = 20_000  # two years of hours
DIMENSIONS_MAX: Final = 8
TOP_MAX: Final = 10_000
DIMENSION_PREFIX: Final = "dimension:"
_PLAIN_GROUPS: Final = ("customer", "entity", "feature", "event_name")
_YEARS: Final = (1970, 2100)  # of event timestamps, contract §1
EXACT: Final = Context(prec=100)  # Decimal(76, 9) fits with room for a division
_NINE_DIGITS: Final = Decimal("1e-9")


class UsageError(ValueError):
    """The question cannot be answered as asked. `field` names what is wrong, `code` is stable."""

    def __init__(self, name: str, code: str, message: str) -> None:
        self.field = name
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A question for the usage of one account in [start, end).

    Neither `feature` nor `event_name`: every feature, each by its own aggregation. With `event_name` (or grouped by
    it and without a feature) events are counted as they were sent, mapped or not; `number` then takes a number
    dimension instead of the event's value. `where` keeps events whose string dimension has that value. `aggregation`
    None: the feature's own, else sum. `top`: only so many groups of one feature (or of events), those with the largest
    sum or count, over the whole period. Raises UsageError.
    """

    account: str
    start: datetime
    end: datetime
    feature: str | None = None
    event_name: str | None = None
    number: str | None = None
    customer: str | None = None
    entity: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    granularity: Granularity = "none"
    zone: str = "UTC"
    aggregation: Aggregation | None = None
    source: Source = "auto"
    top: int | None = None

    def __post_init__(self) -> None:
        _check_period(self.start, self.end)
        if not self.account:
            raise UsageError("account", "required", "an account is needed")
        if self.feature is not None and self.event_name is not None:
            raise UsageError("event_name", "exclusive", "give a feature or an event name, not both")
        for name, value, allowed in (
            ("granularity", self.granularity, GRANULARITIES),
            ("source", self.source, SOURCES),
            ("aggregation", self.aggregation, (None, *AGGREGATIONS)),
        ):
            if value not in allowed:
                raise UsageError(name, "format", f"must be one of {', '.join(a for a in allowed if a)}")
        zone_of(self.zone)
        for group in self.group_by:
            if group not in _PLAIN_GROUPS and not group.removeprefix(DIMENSION_PREFIX):
                raise UsageError("group_by", "format", "a dimension to group by needs a name: dimension:NAME")
            if group not in _PLAIN_GROUPS and not group.startswith(DIMENSION_PREFIX):
                raise UsageError(
                    "group_by", "format", f"{group!r} is none of {', '.join(_PLAIN_GROUPS)} or dimension:NAME"
                )
        if len(set(self.group_by)) < len(self.group_by):
            raise UsageError("group_by", "duplicate_key", "names one thing twice")
        if len(self.dimensions) > DIMENSIONS_MAX:
            raise UsageError("group_by", "too_large", f"at most {DIMENSIONS_MAX} dimensions at once")
        if count_at_most(self.period, self.granularity) > WINDOWS_MAX:
            raise UsageError(
                "granularity",
                "too_large",
                f"more than {WINDOWS_MAX} windows: ask for a shorter period or longer windows",
            )
        self._check_events()
        self._check_top()

    def _check_events(self) -> None:
        if not self.by_events and self.number is not None:
            raise UsageError("number", "exclusive", "a number dimension is summed by event name, not by feature")
        if self.by_events and self.aggregation == "unique":
            raise UsageError("aggregation", "exclusive", "distinct values are counted by features only")

    def _check_top(self) -> None:
        if self.top is None:
            return
        if not 1 <= self.top <= TOP_MAX:
            raise UsageError("top", "range", f"must lie between 1 and {TOP_MAX}")
        if not self.group_by or self.granularity != "none":
            raise UsageError("top", "exclusive", "needs group_by, and no granularity")
        if self.feature is None and not self.by_events:
            raise UsageError("top", "exclusive", "needs one feature, or events: sums of features are not compared")

    @property
    def by_events(self) -> bool:
        """Whether events are counted as sent, rather than what features made of them."""
        if self.feature is not None or "feature" in self.group_by:
            return False
        return self.event_name is not None or self.number is not None or "event_name" in self.group_by

    @property
    def groups(self) -> tuple[str, ...]:
        """What the answer is grouped by: as asked, and by feature where every feature is meant."""
        if self.by_events or self.feature is not None or "feature" in self.group_by:
            return self.group_by
        return ("feature", *self.group_by)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The string dimensions that filter or group, each once, in a stable order."""
        grouped = (g.removeprefix(DIMENSION_PREFIX) for g in self.group_by if g.startswith(DIMENSION_PREFIX))
        return tuple(dict.fromkeys([*grouped, *self.where]))

    @property
    def period(self) -> Period:
        """[start, end) in UTC."""
        return Period(self.start.astimezone(UTC), self.end.astimezone(UTC))


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Usage of one group in one window. `value` is None where an aggregate of nothing has no value."""

    start: datetime
    end: datetime
    group: Mapping[str, str]
    aggregation: Aggregation
    events: int
    value: Decimal | None


@dataclass(frozen=True, slots=True)
class UsageResult:
    """Rows by window and group; windows without events have none.

    `complete_until`: every event acknowledged before it is counted (None: no worker has said so yet). `lag_s`: how
    far that is behind the store's clock. `read_from`: the tables that the answer came from.
    """

    query: UsageQuery
    rows: tuple[UsageRow, ...]
    complete_until: datetime | None
    lag_s: Decimal | None
    read_from: tuple[str, ...]


def zone_of(name: str) -> ZoneInfo:
    """The IANA zone of that name. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a folder is an OSError
        raise UsageError("zone", "format", f"{name!r} is no IANA time zone, such as Europe/Berlin") from error


def value_of(aggregation: Aggregation, events: int, states: Mapping[str, Any]) -> Decimal | None:
    """The usage that merged states stand for. Averages are rounded half to even at nine digits, as values are."""
    if aggregation == "sum":
        return Decimal(states["total"])
    if aggregation == "count":
        return Decimal(events)
    if aggregation == "unique":
        return Decimal(states["uniques"])
    if events <= 0:
        return None
    if aggregation == "average":
        return EXACT.divide(states["total"], Decimal(events)).quantize(_NINE_DIGITS, ROUND_HALF_EVEN, EXACT)
    return Decimal(states[{"max": "largest", "min": "smallest", "latest": "latest"}[aggregation]])


def decimal_text(value: Decimal) -> str:
    """A decimal as JSON carries it: all its digits, no exponent, no trailing zeros."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"-0", ""} else text


def _check_period(start: datetime, end: datetime) -> None:
    for name, instant in (("start", start), ("end", end)):
        if instant.tzinfo is None:
            raise UsageError(name, "format", "needs an offset from UTC")
        if not _YEARS[0] <= instant.astimezone(UTC).year <= _YEARS[1]:
            raise UsageError(name, "range", f"must lie between {_YEARS[0]} and {_YEARS[1]}")
    if start >= end:
        raise UsageError("end", "range", "must be after start")
