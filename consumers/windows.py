"""Windows of time in a customer's zone: hours, days and months that daylight saving makes longer or shorter.

Rules: pure. Instants are aware UTC; a period is [start, end). A day or month is everything that the local calendar
calls so (23, 24 or 25 hours); an hour is cut where the clock is changed, so that no two hours share an instant.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

Granularity = Literal["none", "hour", "day", "month"]
GRANULARITIES: Final[tuple[Granularity, ...]] = ("none", "hour", "day", "month")

CELL: Final = timedelta(minutes=15)  # the finest rollup; every zone's hours begin on one
DAY: Final = timedelta(days=1)
BEFORE_MONTH_END: Final = timedelta(hours=14)  # a month begins there first (UTC+14) ...
AFTER_MONTH_END: Final = timedelta(hours=12)  # ... and there last (UTC-12)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


class Period(NamedTuple):
    """[start, end), aware UTC."""

    start: datetime
    end: datetime


class Offsets(NamedTuple):
    """A zone's clock over a period: from instant `since_s[i]` (Unix seconds) on it is `offset_s[i]` seconds ahead of
    UTC. `since_s[0]` is 0 and stands for everything before the first change."""

    since_s: tuple[int, ...]
    offset_s: tuple[int, ...]

    @property
    def on_cells(self) -> bool:
        """Whether all hours, days and months of the zone begin on a quarter of an hour UTC."""
        cell_s = int(CELL.total_seconds())
        return all(number % cell_s == 0 for number in (*self.since_s, *self.offset_s))


@lru_cache(maxsize=256)
def offsets(zone: ZoneInfo, period: Period) -> Offsets:
    """How the zone's clock is set in the period. Changes are found to the second, at most one a day."""
    since, ahead = [0], [_offset_s(zone, period.start)]
    at = period.start
    while at < period.end:
        after = min(at + DAY, period.end)
        if _offset_s(zone, after) != ahead[-1]:
            since.append(_seconds(_change(zone, at, after)))
            ahead.append(_offset_s(zone, after))
        at = after
    return Offsets(tuple(since), tuple(ahead))


def window_from_start(start: datetime, granularity: Granularity, zone: ZoneInfo) -> Period:
    """The hour that begins at `start` (an instant at which an hour begins)."""
    if granularity != "hour":
        raise ValueError(f"only hours are known by their first instant, not a {granularity}")
    local = start.astimezone(zone)
    full = start + timedelta(hours=1) - timedelta(minutes=local.minute, seconds=local.second)
    ahead = _offset_s(zone, start)
    return Period(start, full if _offset_s(zone, full - _SECOND) == ahead else _change(zone, start, full))


def window_from_date(first: date, granularity: Granularity, zone: ZoneInfo) -> Period:
    """The local day, or the local month that begins on that day."""
    if granularity == "day":
        return Period(day_start(first, zone), day_start(first + DAY, zone))
    if granularity == "month":
        return Period(day_start(first, zone), day_start(next_month(first), zone))
    raise ValueError(f"only days and months are known by their date, not {granularity}")


def day_start(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a local day: where midnight is skipped, the moment of the change."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return midnight.astimezone(UTC)


def next_month(day: date) -> date:
    """The first of the month after `day`."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def months(period: Period, zone: ZoneInfo) -> Iterator[Period]:
    """The period cut at the beginnings of local months."""
    at = period.start
    while at < period.end:
        following = min(day_start(next_month(at.astimezone(zone).date()), zone), period.end)
        yield Period(at, following)
        at = following


def whole_cells(period: Period, cell: timedelta) -> Period | None:
    """The largest part of the period made of whole cells of UTC, or None when it has none."""
    start = _EPOCH + -((_EPOCH - period.start) // cell) * cell
    end = _EPOCH + (period.end - _EPOCH) // cell * cell
    return Period(start, end) if start < end else None


def beside_month_end(period: Period) -> bool:
    """Whether the period lies where one UTC month's end is a month's end in some zone."""
    return period.end <= _month_start(period.start + BEFORE_MONTH_END) + AFTER_MONTH_END


def whole_month_cells(period: Period) -> Period | None:
    """The largest part of the period made of quarters of an hour beside ends of UTC months and of all that lies between
    two such ends, which is one cell; None when it has none."""
    quarters = whole_cells(period, CELL)
    if quarters is None:
        return None
    start, end = quarters
    first, last = (_month_start(at + BEFORE_MONTH_END) for at in quarters)
    if start > first + AFTER_MONTH_END:
        start = _month_start(first + 31 * DAY) - BEFORE_MONTH_END
    end = min(end, last + AFTER_MONTH_END)
    return Period(start, end) if start < end else None


def covering(period: Period, cell: timedelta) -> Period:
    """The smallest period of whole cells of UTC that holds this one."""
    start = _EPOCH + (period.start - _EPOCH) // cell * cell
    end = _EPOCH + -((_EPOCH - period.end) // cell) * cell
    return Period(start, end)


def rest(period: Period, inner: Period | None) -> tuple[Period, ...]:
    """What of the period lies outside `inner`."""
    if inner is None:
        return (period,)
    edges = (Period(period.start, inner.start), Period(inner.end, period.end))
    return tuple(edge for edge in edges if edge.start < edge.end)


def count_at_most(period: Period, granularity: Granularity) -> int:
    """An upper bound of the number of windows in the period."""
    shortest = {"none": None, "hour": timedelta(minutes=30), "day": timedelta(hours=20), "month": timedelta(days=27)}
    step = shortest[granularity]
    return 1 if step is None else (period.end - period.start) // step + 2


def _month_start(at: datetime) -> datetime:
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The instant between the two at which the clock is changed."""
    old = _offset_s(zone, before)
    low, high = _seconds(before), _seconds(after)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_s(zone, _EPOCH + timedelta(seconds=middle)) == old:
            low = middle
        else:
            high = middle
    return _EPOCH + timedelta(seconds=high)


def _offset_s(zone: ZoneInfo, at: datetime) -> int:
    ahead = at.astimezone(zone).utcoffset()
    if ahead is None:
        raise ValueError(f"{zone} has no offset at {at}")
    return int(ahead.total_seconds())


def _seconds(at: datetime) -> int:
    return (at - _EPOCH) // _SECOND
