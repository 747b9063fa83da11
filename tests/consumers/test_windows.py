"""Windows in zones with daylight saving."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from consumers.windows import (
    CELL,
    DAY,
    Period,
    beside_month_end,
    months,
    offsets,
    rest,
    whole_cells,
    whole_month_cells,
    window_from_date,
    window_from_start,
)

NEW_YORK = ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


@pytest.mark.parametrize(("day", "hours"), [(date(2024, 3, 10), 23), (date(2024, 11, 3), 25), (date(2024, 6, 1), 24)])
def test_days_have_23_24_or_25_hours(day: date, hours: int) -> None:
    """New York's clocks change on these."""
    window = window_from_date(day, "day", NEW_YORK)
    assert window.end - window.start == timedelta(hours=hours)


def test_a_day_without_midnight_begins_with_the_change() -> None:
    """São Paulo skipped midnight on 2018-11-04."""
    window = window_from_date(date(2018, 11, 4), "day", ZoneInfo("America/Sao_Paulo"))
    assert window == Period(datetime(2018, 11, 4, 3, tzinfo=UTC), datetime(2018, 11, 5, 2, tzinfo=UTC))


def test_a_day_with_two_midnights_begins_with_the_first() -> None:
    """Havana sets its clocks back from 1:00 to 0:00."""
    window = window_from_date(date(2024, 11, 3), "day", ZoneInfo("America/Havana"))
    assert window == Period(datetime(2024, 11, 3, 4, tzinfo=UTC), datetime(2024, 11, 4, 5, tzinfo=UTC))


def test_an_hour_is_cut_where_the_clock_is_changed() -> None:
    """Lord Howe sets its clocks back by half an hour at 2:00: 1:00 to 2:00, then 1:30 to 2:00 once more."""
    first = window_from_start(datetime(2024, 4, 6, 14, tzinfo=UTC), "hour", LORD_HOWE)
    again = window_from_start(first.end, "hour", LORD_HOWE)
    assert first == Period(datetime(2024, 4, 6, 14, tzinfo=UTC), datetime(2024, 4, 6, 15, tzinfo=UTC))
    assert again == Period(datetime(2024, 4, 6, 15, tzinfo=UTC), datetime(2024, 4, 6, 15, 30, tzinfo=UTC))


def test_offsets_of_a_year() -> None:
    """Two changes, to the second."""
    year = Period(datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
    clock = offsets(NEW_YORK, year)
    assert clock.offset_s == (-18000, -14400, -18000)
    assert [datetime.fromtimestamp(s, UTC) for s in clock.since_s[1:]] == [
        datetime(2024, 3, 10, 7, tzinfo=UTC),
        datetime(2024, 11, 3, 6, tzinfo=UTC),
    ]
    assert clock.on_cells
    assert not offsets(ZoneInfo("Africa/Monrovia"), Period(datetime(1970, 1, 1, tzinfo=UTC), year.start)).on_cells


def test_months_follow_the_local_calendar() -> None:
    """February of a leap year, cut at both ends."""
    period = Period(datetime(2024, 1, 31, 12, tzinfo=UTC), datetime(2024, 3, 1, 12, tzinfo=UTC))
    cut = [datetime(2024, 2, 1, 5, tzinfo=UTC), datetime(2024, 3, 1, 5, tzinfo=UTC)]
    assert list(months(period, NEW_YORK)) == [
        Period(period.start, cut[0]),
        Period(cut[0], cut[1]),
        Period(cut[1], period.end),
    ]


def test_whole_cells_and_the_rest() -> None:
    """What lies on the grid, and the two edges beside it."""
    period = Period(datetime(2024, 1, 1, 0, 7, tzinfo=UTC), datetime(2024, 1, 1, 1, 0, 0, 1, tzinfo=UTC))
    cells = whole_cells(period, CELL)
    assert cells == Period(datetime(2024, 1, 1, 0, 15, tzinfo=UTC), datetime(2024, 1, 1, 1, tzinfo=UTC))
    assert rest(period, cells) == (Period(period.start, cells.start), Period(cells.end, period.end))
    assert whole_cells(period, DAY) is None
    assert rest(period, None) == (period,)


@pytest.mark.parametrize(
    ("start", "end", "beside"),
    [
        ("2024-02-29T10:00", "2024-03-01T12:00", True),
        ("2024-02-29T09:45", "2024-02-29T10:15", False),
        ("2024-03-01T11:45", "2024-03-01T12:15", False),
        ("2023-12-31T23:00", "2024-01-01T00:00", True),
        ("2024-03-15T00:00", "2024-03-15T00:15", False),
    ],
)
def test_ends_of_months_are_where_some_zone_has_one(start: str, end: str, *, beside: bool) -> None:
    """From 14 hours before the end of a UTC month to 12 hours after it."""
    assert beside_month_end(_utc(start, end)) is beside


@pytest.mark.parametrize(
    ("start", "end", "inner"),
    [
        ("2026-09-30T22:00", "2026-10-31T23:00", ("2026-09-30T22:00", "2026-10-31T23:00")),
        ("2026-10-01T12:00", "2026-10-31T10:00", ("2026-10-01T12:00", "2026-10-31T10:00")),
        ("2026-09-30T22:07", "2026-10-31T23:01", ("2026-09-30T22:15", "2026-10-31T23:00")),
        ("2026-09-10T00:00", "2026-12-10T00:00", ("2026-09-30T10:00", "2026-12-01T12:00")),
        ("2026-10-10T00:00", "2026-10-20T00:00", None),
        ("2026-10-01T12:15", "2026-10-31T10:00", None),
        ("2026-10-01T00:01", "2026-10-01T00:14", None),
    ],
)
def test_whole_cells_of_months(start: str, end: str, inner: tuple[str, str] | None) -> None:
    """What lies between two ends of months is one cell, which is taken whole or not at all."""
    assert whole_month_cells(_utc(start, end)) == (None if inner is None else _utc(*inner))


def _utc(start: str, end: str) -> Period:
    return Period(datetime.fromisoformat(start).replace(tzinfo=UTC), datetime.fromisoformat(end).replace(tzinfo=UTC))
