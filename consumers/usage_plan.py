"""Where each part of a question's period is read: pure, a question in, a plan out.

Rules: an answer from rollups always equals the answer from facts. A rollup is read for whole cells only (UTC days by
customer, quarters of an hour account-wide); what is left at the edges of the period, and at those of a month in the
customer's zone, comes from facts in the same statement. What no rollup has (several dimensions, a dimension by
customer, the latest value by dimension, distinct values within a day, smallest, largest and latest where something
was withdrawn) comes from facts entirely.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from consumers.usage import Aggregation, UsageQuery, zone_of
from consumers.windows import (
    CELL,
    DAY,
    Period,
    beside_month_end,
    covering,
    months,
    offsets,
    rest,
    whole_cells,
    whole_month_cells,
)

Family = Literal["sums", "extremes", "latest", "uniques"]
FAMILIES: Final[dict[Aggregation, Family]] = {
    "sum": "sums",
    "count": "sums",
    "average": "sums",
    "max": "extremes",
    "min": "extremes",
    "latest": "latest",
    "unique": "uniques",
}
_RANGES_MAX: Final = 64  # edges of months; past that the statement would be longer than the scan it spares
STANDING: Final[tuple[Family, ...]] = ("extremes", "latest")  # what was withdrawn cannot be subtracted from them

# The opt-in projections of facts (sql/optional).
SHAPES: Final = "usage_shapes"
QUARTERS: Final = "usage_customer_15m"


@dataclass(frozen=True, slots=True)
class Rollup:
    """A rollup table: the length of its cells, the column that holds their start, and that column's type."""

    table: str
    cell: timedelta
    column: str
    type: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each part of the period is read: `cells` from `rollup`, `ends` from the rollup of the hours beside ends of
    months, `shapes` and `quarters` from those projections, `edges` from facts. `taken`: what is in the cells and not in
    the period, to be subtracted: from `ends` where `rollup_takes`, else from facts."""

    rollup: Rollup | None
    cells: tuple[Period, ...]
    edges: tuple[Period, ...]
    ends: tuple[Period, ...] = ()
    taken: tuple[Period, ...] = ()
    rollup_takes: bool = False
    shapes: tuple[Period, ...] = ()
    quarters: tuple[Period, ...] = ()

    @property
    def reads_events(self) -> bool:
        """Whether single events are read, beside which their corrections belong; rollups hold both."""
        return bool(self.shapes or self.quarters or self.edges or (self.taken and not self.rollup_takes))


_USAGE_DAY: Final = Rollup("usage_client_day", DAY, "day", "Date")
USAGE_EDGE: Final = Rollup("usage_client_edge_15m", CELL, "bucket", "DateTime('UTC')")
_USAGE_CELL: Final = Rollup("usage_15m", CELL, "bucket", "DateTime('UTC')")
_USAGE_DIMENSION: Final = Rollup("usage_dimension_15m", CELL, "bucket", "DateTime('UTC')")
_UNIQUES_DAY: Final = Rollup("usage_uniques_client_day", DAY, "day", "Date")
_EVENTS_DAY: Final = Rollup("events_client_day", DAY, "day", "Date")
_EVENTS_CELL: Final = Rollup("events_15m", CELL, "bucket", "DateTime('UTC')")
EVENTS_DIMENSION: Final = Rollup("events_dimension_15m", CELL, "bucket", "DateTime('UTC')")


def make_plan(query: UsageQuery, family: Family, *, withdrawn: bool = False, projections: Collection[str] = ()) -> Plan:
    """Cut the period into what a rollup has, what projections have and what facts have to give."""
    plan = _from_rollups(query, family, withdrawn=withdrawn, shapes=SHAPES in projections)
    if plan.reads_events and not plan.shapes and QUARTERS in projections and _has_quarters(query, family):
        inner = whole_cells(query.period, CELL)
        if inner:
            return Plan(None, (), rest(query.period, inner), quarters=(inner,))
    return plan


def _from_rollups(query: UsageQuery, family: Family, *, withdrawn: bool, shapes: bool) -> Plan:
    period = query.period
    facts = Plan(None, (), (period,))
    if query.source == "facts":
        return facts
    rollup = _rollup(query, family)
    if rollup is None and shapes and _has_shapes(query, family):
        inner = whole_month_cells(period)
        return Plan(None, (), rest(period, inner), shapes=(inner,)) if inner else facts
    if rollup is None or (withdrawn and family in STANDING):
        return facts
    pieces = _pieces(query, rollup)
    inner_cells = [whole_cells(piece, rollup.cell) for piece in pieces]
    edges = [edge for piece, cells in zip(pieces, inner_cells, strict=True) for edge in rest(piece, cells)]
    cells = [found for found in inner_cells if found is not None]
    if not cells or len(cells) + len(edges) > _RANGES_MAX:
        return facts
    if rollup is _USAGE_DAY and family in ("sums", "extremes"):
        return _with_ends(query, family, cells, edges)
    return Plan(rollup, _joined(cells), _joined(edges))


def _pieces(query: UsageQuery, rollup: Rollup) -> tuple[Period, ...]:
    """The period in parts whose whole cells lie in one window each, or in windows that begin with cells; none where a
    window has no whole cells."""
    zone = zone_of(query.zone)
    clock = offsets(zone, query.period)
    if rollup.cell == CELL and clock.on_cells:
        return (query.period,)
    if query.granularity == "none" or (clock.offset_s == (0,) and query.granularity != "hour"):
        return (query.period,)
    return tuple(months(query.period, zone)) if query.granularity == "month" else ()


def _with_ends(query: UsageQuery, family: Family, cells: Sequence[Period], edges: Sequence[Period]) -> Plan:
    """What is left of days at the edges, read where that takes the least.

    Of one customer, from facts, which are sorted by customer. Of all, from the rollup of the hours beside ends of
    months, where it has them. Sums of a whole period may read one day more instead and subtract the rest of it.
    """
    days, ends, taken, facts = list(cells), list[Period](), list[Period](), list[Period]()
    one = query.customer is not None
    for edge in edges:
        day = covering(edge, DAY)
        other = Period(day.start, edge.start) if edge.end == day.end else Period(edge.end, day.end)
        may_take = family == "sums" and query.granularity == "none"  # else a row could fall into another window
        if (not one and _in_ends(edge)) or (one and not (may_take and _length(other) < _length(edge))):
            (facts if one else ends).append(edge)
        elif may_take and (one or _in_ends(other)):
            days.append(day)
            taken.append(other)
        else:
            facts.append(edge)
    return Plan(_USAGE_DAY, _joined(days), _joined(facts), tuple(ends), tuple(taken), rollup_takes=not one)


def _in_ends(period: Period) -> bool:
    return whole_cells(period, CELL) == period and beside_month_end(period)


def _length(period: Period) -> timedelta:
    return period.end - period.start


def _has_shapes(query: UsageQuery, family: Family) -> bool:
    """Whether the projection has what is asked for. It knows no event names, and its cells are no windows."""
    plain = query.event_name is None and "event_name" not in query.group_by and not query.by_events
    return plain and bool(query.dimensions) and family == "sums" and query.granularity == "none"


def _has_quarters(query: UsageQuery, family: Family) -> bool:
    """Whether the other projection has what is asked for: sums of one customer, in windows that quarters make up."""
    if query.source == "facts" or query.customer is None or family != "sums" or query.by_events or query.dimensions:
        return False
    if query.event_name is not None or "event_name" in query.group_by or query.number is not None:
        return False
    return query.granularity == "none" or offsets(zone_of(query.zone), query.period).on_cells


def _rollup(query: UsageQuery, family: Family) -> Rollup | None:
    """The rollup whose keys the question needs, or None."""
    return _event_rollup(query, family) if query.by_events else _meter_rollup(query, family)


def _by_customer(query: UsageQuery) -> bool:
    named = query.customer is not None or query.entity is not None
    return named or bool({"customer", "entity"} & set(query.group_by))


def _event_rollup(query: UsageQuery, family: Family) -> Rollup | None:
    if family not in ("sums", "extremes"):
        return None
    by_customer = _by_customer(query)
    dimensions = len(query.dimensions)
    if query.number is not None:
        return None if dimensions or by_customer else EVENTS_DIMENSION
    if dimensions:
        return EVENTS_DIMENSION if dimensions == 1 and not by_customer else None
    return _EVENTS_DAY if by_customer else _EVENTS_CELL


def _meter_rollup(query: UsageQuery, family: Family) -> Rollup | None:
    if "event_name" in query.group_by or query.event_name is not None:
        return None
    by_customer = _by_customer(query)
    if query.dimensions:
        simple = len(query.dimensions) == 1 and not by_customer and family in ("sums", "extremes")
        return _USAGE_DIMENSION if simple else None
    if family == "uniques":
        return _UNIQUES_DAY
    return _USAGE_DAY if by_customer else _USAGE_CELL


def _joined(periods: Sequence[Period]) -> tuple[Period, ...]:
    """The same time with touching periods made one."""
    joined: list[Period] = []
    for period in sorted(periods):
        if joined and joined[-1].end == period.start:
            joined[-1] = Period(joined[-1].start, period.end)
        else:
            joined.append(period)
    return tuple(joined)
