"""The SQL that answers a question for usage: pure, values in, (sql, parameters) out.

Rules: an answer from rollups always equals the answer from facts. A rollup is read for whole cells only (UTC days by
customer, quarters of an hour account-wide); what is left at the edges of the period, and at those of a month in the
customer's zone, comes from facts in the same statement. What no rollup has (several dimensions, a dimension by
customer, the latest value by dimension, distinct values within a day, smallest, largest and latest where something
was withdrawn) comes from facts entirely. Values are bound by the server, never pasted.
"""

# ruff: noqa: S608 - the parts are constants of this module; values are bound by the server

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from consumers.usage import DIMENSION_PREFIX, Aggregation, UsageError, UsageQuery, zone_of
from consumers.windows import (
    CELL,
    DAY,
    Offsets,
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
ROWS_MAX: Final = 200_000  # of an answer; more is refused rather than cut
_CHANGES_MAX: Final = 4  # of a zone's clock that are compared one by one, which costs less than a look-up
_RANGES_MAX: Final = 64  # edges of months; past that the statement would be longer than the scan it spares

# Neither smallest nor largest: what a row that takes something out contributes to them.
_NO_MINIMUM: Final = "toDecimal128('99999999999999999999999999999.999999999', 9)"
_NO_MAXIMUM: Final = "toDecimal128('-99999999999999999999999999999.999999999', 9)"

# One number that orders events by timestamp, append time and position, as the rollups' `latest` packs it.
_ORDER: Final = (
    "bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)"
    " + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)"
    " + bitShiftLeft(toUInt256(epoch), 128) + bitShiftLeft(toUInt256(`partition`), 96)"
    " + bitShiftLeft(toUInt256(`offset`), 32) + line"
)
_STANDING: Final[tuple[Family, ...]] = ("extremes", "latest")  # what was withdrawn cannot be subtracted from them

# The opt-in projection of facts (sql/optional): events of one customer with the same dimensions and features as one
# row, for each quarter of an hour beside ends of UTC months and for all that lies between. The engine takes it only
# for the very expressions that it was made of.
SHAPES: Final = "usage_shapes"
_SHAPES_CELL: Final = (
    "if(toYYYYMM(timestamp + toIntervalHour(14)) != toYYYYMM(timestamp - toIntervalHour(12)),"
    " toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC'),"
    " toDateTime(toStartOfMonth(timestamp), 'UTC') + toIntervalHour(12))"
)
# And one (sql/optional/usage_customer_15m.sql) of a customer's quarters of an hour.
QUARTERS: Final = "usage_customer_15m"
_QUARTERS_CELL: Final = "toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC')"
_CELL_SUMS: Final = "sumForEach(CAST(`meters.quantity`, 'Array(Decimal(76, 9))'))"
_WHOLE_ROW: Final = (
    "client_id",
    "entity_id",
    "timestamp",
    "append_time",
    "event_name",
    "value",
    "`meters.feature`",
    "`meters.rev`",
    "`meters.quantity`",
    "`meters.distinct_hash`",
    "`dims.name`",
    "`dims.text`",
    "`dims.number`",
    "`dims.is_number`",
    "epoch",
    "`partition`",
    "`offset`",
    "line",
)
_STATES: Final[dict[Family, tuple[str, ...]]] = {
    "sums": ("sum(n) AS events", "sum(quantity_sum) AS total"),
    "extremes": (
        "sum(n) AS events",
        "min(quantity_min) AS smallest",
        "max(quantity_max) AS largest",
    ),
    "latest": ("sum(n) AS events", "argMaxMerge(quantity_latest) AS latest"),
    "uniques": ("sum(n) AS events", "countIf(n > 0) AS uniques"),
}


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


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with its server-side parameters, and the tables it reads."""

    sql: str
    parameters: dict[str, Any]
    read_from: tuple[str, ...]


_USAGE_DAY: Final = Rollup("usage_client_day", DAY, "day", "Date")
_USAGE_EDGE: Final = Rollup("usage_client_edge_15m", CELL, "bucket", "DateTime('UTC')")
_USAGE_CELL: Final = Rollup("usage_15m", CELL, "bucket", "DateTime('UTC')")
_USAGE_DIMENSION: Final = Rollup("usage_dimension_15m", CELL, "bucket", "DateTime('UTC')")
_UNIQUES_DAY: Final = Rollup("usage_uniques_client_day", DAY, "day", "Date")
_EVENTS_DAY: Final = Rollup("events_client_day", DAY, "day", "Date")
_EVENTS_CELL: Final = Rollup("events_15m", CELL, "bucket", "DateTime('UTC')")
_EVENTS_DIMENSION: Final = Rollup("events_dimension_15m", CELL, "bucket", "DateTime('UTC')")


def build(
    query: UsageQuery,
    family: Family,
    features: Sequence[str] = (),
    *,
    withdrawn: bool = False,
    projections: Collection[str] = (),
    corrected: bool = True,
    count: bool = False,
) -> Statement:
    """One statement for one family of aggregations.

    `features`: those it is about, unless the query counts events. `withdrawn`: whether corrections took something out
    of this account. `projections`: those that facts have. `corrected`: whether the account has any corrections,
    without which facts are all there is. `count`: `top` ranks by it, not by the sum. Columns:
    `window` (unless the granularity is none), the query's groups in order, `events`, and the family's states. Raises
    UsageError when the query insists on rollups that cannot answer.
    """
    plan = make_plan(query, family, withdrawn=withdrawn, projections=projections)
    if query.source == "rollups" and not (plan.cells or plan.shapes or plan.quarters):
        raise UsageError("source", "range", "no rollup has whole cells for this; use source=auto or source=facts")
    parts = _Parts(query, family, tuple(features))
    branches, tables = [], []
    if plan.rollup and plan.cells:
        branches.append(parts.rollup_branch(plan.rollup, plan.cells, "cell"))
        tables.append(plan.rollup.table)
    if plan.ends:
        branches.append(parts.rollup_branch(_USAGE_EDGE, plan.ends, "end"))
    if plan.taken and plan.rollup_takes:
        branches.append(parts.rollup_branch(_USAGE_EDGE, plan.taken, "taken", sign="-"))
    if plan.ends or (plan.taken and plan.rollup_takes):
        tables.append(_USAGE_EDGE.table)
    if plan.shapes:
        branches += parts.shapes_branches(plan.shapes, corrected=corrected)
    if plan.quarters:
        branches += parts.quarters_branches(plan.quarters, corrected=corrected)
    taken = () if plan.rollup_takes else plan.taken
    if plan.edges or taken:
        branches.append(
            parts.facts_branch(plan.edges, taken, net=withdrawn and family in _STANDING, corrected=corrected)
        )
    if plan.reads_events:
        tables += ["events", "corrections"] if withdrawn else ["events"]
    return Statement(parts.outer(branches, count=count), parts.parameters, tuple(tables))


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
    if rollup is None or (withdrawn and family in _STANDING):
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
        return None if dimensions or by_customer else _EVENTS_DIMENSION
    if dimensions:
        return _EVENTS_DIMENSION if dimensions == 1 and not by_customer else None
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


class _Parts:
    """Text of one statement while it is put together; collects its parameters."""

    def __init__(self, query: UsageQuery, family: Family, features: tuple[str, ...]) -> None:
        self.query = query
        self.family = family
        self.dimensions = query.dimensions
        self.parameters: dict[str, Any] = {"account": query.account}
        if not query.by_events:
            self.parameters["features"] = list(features)
        for name, value in (
            ("event_name", query.event_name),
            ("customer", query.customer),
            ("entity", query.entity),
            ("number", query.number),
        ):
            if value is not None:
                self.parameters[name] = value
        for i, dimension in enumerate(self.dimensions):
            self.parameters[f"dimension_{i}"] = dimension
            if dimension in query.where:
                self.parameters[f"value_{i}"] = query.where[dimension]
        if query.granularity != "none":
            clock: Offsets = offsets(zone_of(query.zone), query.period)
            self.clock = clock
            if len(clock.since_s) > _CHANGES_MAX:
                self.parameters |= {"since": list(clock.since_s), "ahead": list(clock.offset_s)}
            elif clock.offset_s != (0,) or query.granularity == "hour":
                self.parameters |= {f"since_{i}": at for i, at in enumerate(clock.since_s) if i}
                self.parameters |= {f"ahead_{i}": ahead for i, ahead in enumerate(clock.offset_s)}

    def outer(self, branches: Sequence[str], *, count: bool) -> str:
        """Merge the branches by window and group; with `top` the largest by sum or `count` first."""
        keys = [*(["window"] if self.query.granularity != "none" else []), *self._group_names()]
        columns = [*keys, *_STATES[self.family]]
        source = "\n    UNION ALL\n".join(branches)
        if self.family == "uniques":
            inner = ", ".join([*keys, "distinct_hash"])
            source = f"    SELECT {inner}, sum(n) AS n FROM\n    (\n{_indented(source)}\n    )\n    GROUP BY {inner}"
        lines = ["SELECT", ",\n".join(f"    {c}" for c in columns), "FROM", "(", source, ")"]
        if keys:
            lines += [f"GROUP BY {', '.join(keys)}"]
        if self.query.top is not None:
            self.parameters["top"] = self.query.top
            rank = "events" if count else "total"
            return "\n".join([*lines, f"ORDER BY {rank} DESC, {', '.join(keys)}", "LIMIT {top:UInt32}"])
        if keys:
            lines += [f"ORDER BY {', '.join(keys)}"]
        return "\n".join([*lines, f"LIMIT {ROWS_MAX + 1}"])

    def rollup_branch(self, rollup: Rollup, cells: Sequence[Period], prefix: str, sign: Literal["", "-"] = "") -> str:
        """Whole cells from a rollup, to be added, or to be subtracted from sums."""
        columns = self._keys(rollup.column)
        states = {
            "sums": [f"{sign}events AS n", f"{sign}total AS quantity_sum"],
            "extremes": ["events AS n", "min_value AS quantity_min", "max_value AS quantity_max"],
            "latest": ["events AS n", "latest AS quantity_latest"],
            "uniques": ["distinct_hash", "events AS n"],
        }[self.family]
        value = "text" if self.query.by_events else "value"
        columns = [c.replace("dimension_text_0", value) for c in columns]
        where = ["account = {account:String}", *self._subject(), *self._customer()]
        if rollup is _EVENTS_DIMENSION:
            number = self.query.number is not None
            where.append(f"dimension = {{{'number' if number else 'dimension_0'}:String}}")
            where.append(f"is_number = {int(number)}")
        elif self.dimensions:
            where.append("dimension = {dimension_0:String}")
        if "value_0" in self.parameters:
            where.append(f"{value} = {{value_0:String}}")
        where.append(self._ranges(rollup.column, rollup.type, cells, prefix))
        return _select([*columns, *states], rollup.table, where)

    def _values_asked(self, text_of: Callable[[int], str]) -> list[str]:
        """Conditions on the dimensions of which one value is asked for."""
        asked = (i for i in range(len(self.dimensions)) if f"value_{i}" in self.parameters)
        return [f"{text_of(i)} = {{value_{i}:String}}" for i in asked]

    def shapes_branches(self, periods: Sequence[Period], *, corrected: bool) -> list[str]:
        """Cells of the projection, and the corrections of the same time."""
        groups = self._keys("timestamp")
        plain = [column for column in ("client_id", "entity_id") if any(g.startswith(f"{column} AS") for g in groups)]
        texts = [f"{self._text(i)} AS dimension_text_{i}" for i in range(len(self.dimensions))]
        where = ["account = {account:String}", "kind = 'delta'", *self._customer()]
        where.append("hasAny(`meters.feature`, {features:Array(String)})")
        where += [f"{self._at(i)} > 0" for i in range(len(self.dimensions))]
        where += self._values_asked(self._text)
        where.append(self._ranges(_SHAPES_CELL, "DateTime('UTC')", periods, "shape"))
        keys = [*plain, "`meters.feature`", *(f"dimension_text_{i}" for i in range(len(self.dimensions)))]
        selected = [*plain, "`meters.feature`", *texts, "count() AS n", f"{_CELL_SUMS} AS quantities"]
        columns = [g.replace("dims.text[dimension_at_", "dimension_text_").replace("] AS", " AS") for g in groups]
        return self._projected(selected, where, keys, columns, periods, corrected=corrected)

    def quarters_branches(self, periods: Sequence[Period], *, corrected: bool) -> list[str]:
        """Cells of the other projection, and the corrections of the same time."""
        columns = self._keys("bucket")
        plain = [name for name in ("client_id", "entity_id") if any(c.startswith(f"{name} AS") for c in columns)]
        where = ["account = {account:String}", "kind = 'delta'", *self._customer()]
        where.append("hasAny(`meters.feature`, {features:Array(String)})")
        where.append(self._ranges(_QUARTERS_CELL, "DateTime('UTC')", periods, "quarter"))
        keys = [*plain, *(["bucket"] if self.query.granularity != "none" else []), "`meters.feature`"]
        named = [f"{_QUARTERS_CELL} AS bucket" if key == "bucket" else key for key in keys]
        selected = [*named, "count() AS n", f"{_CELL_SUMS} AS quantities"]
        return self._projected(selected, where, keys, columns, periods, corrected=corrected)

    def _projected(
        self,
        selected: Sequence[str],
        where: Sequence[str],
        keys: Sequence[str],
        columns: Sequence[str],
        periods: Sequence[Period],
        *,
        corrected: bool,
    ) -> list[str]:
        """Cells of a projection, which the engine takes for the very expressions it was made of."""
        inner = f"{_select(selected, 'events', where)}\n    GROUP BY {', '.join(keys)}"
        cells = (
            f"    SELECT {', '.join([*columns, 'toInt64(n) AS n', 'quantity AS quantity_sum'])}\n    FROM\n    (\n"
            f"{_indented(inner)}\n    )\n    ARRAY JOIN `meters.feature` AS feature, quantities AS quantity"
            "\n    WHERE feature IN {features:Array(String)}"
        )
        if not corrected:
            return [cells]
        return [cells, self._measured_rows(self._rows_of("corrections", periods, (), "corrected"))]

    def _at(self, i: int) -> str:
        return (
            f"arrayFirstIndex((name, is_number) -> name = {{dimension_{i}:String}} AND is_number = 0,"
            " `dims.name`, `dims.is_number`)"
        )

    def _text(self, i: int) -> str:
        return f"`dims.text`[{self._at(i)}]"

    def facts_branch(self, periods: Sequence[Period], taken: Sequence[Period], *, net: bool, corrected: bool) -> str:
        """Rows of facts and corrections of `periods`, and those of `taken` with the other sign; `net`: only those that
        nothing took out, as smallest and largest need."""
        tables = ("events", "corrections") if corrected else ("events",)
        rows = [self._rows_of(table, periods, taken, "edge", net=net) for table in tables]
        if self.family == "sums":  # most rows are facts, whose sign need not be multiplied with
            facts = self._measured_rows(rows[0], signed=bool(taken))
            return "\n    UNION ALL\n".join([facts, *map(self._measured_rows, rows[1:])])
        source = "\n    UNION ALL\n".join(rows)
        if net:
            source = self._standing_rows(source)
        return self._measured_rows(source)

    def _measured_rows(self, source: str, *, signed: bool = True) -> str:
        where = []
        amount = "value"
        joins = ""
        if not self.query.by_events:
            joins = f"\n    ARRAY JOIN meters.feature AS feature, {self._array} AS {self._array.partition('.')[2]}"
            amount = "quantity"
            where.append("feature IN {features:Array(String)}")
        elif self.query.number is not None:
            amount = "dims.number[number_at]"
        if self.family == "uniques":
            where.append("distinct_hash != 0")
        columns = [*self._keys("timestamp"), *self._fact_states(amount, signed=signed)]
        text = f"    SELECT {', '.join(columns)}\n    FROM\n    (\n{_indented(source)}\n    ){joins}"
        return text + (f"\n    WHERE {' AND '.join(where)}" if where else "")

    def _fact_states(self, amount: str, *, signed: bool) -> list[str]:
        if self.family == "uniques":
            return ["distinct_hash", "toInt64(sign) AS n"]
        if self.family == "latest":
            return [
                "toInt64(sign) AS n",
                f"initializeAggregation('argMaxState', {amount}, {_ORDER}) AS quantity_latest",
            ]
        if self.family == "sums":
            return ["toInt64(sign) AS n", f"toDecimal256({amount}, 9){' * sign' if signed else ''} AS quantity_sum"]
        return [
            "toInt64(sign) AS n",
            f"if(sign > 0, {amount}, {_NO_MINIMUM}) AS quantity_min",
            f"if(sign > 0, {amount}, {_NO_MAXIMUM}) AS quantity_max",
        ]

    def _needed(self) -> list[str]:
        """Columns of facts that the answer is made of: what is not read costs nothing, and what is not named need not
        be looked at when the statement is planned, which of small answers is most of the time."""
        groups = {"customer": "client_id", "entity": "entity_id", "event_name": "event_name"}
        needed = ["timestamp", *(groups[name] for name in self.query.groups if name in groups)]
        if self.family == "latest":
            needed += ["append_time", "epoch", "`partition`", "`offset`", "line"]
        if not self.query.by_events:
            needed += ["`meters.feature`", f"`{self._array}`"]
        elif self.query.number is None:
            needed.append("value")
        if self.query.number is not None:
            needed.append("`dims.number`")
        if self.dimensions:
            needed.append("`dims.text`")
        return needed

    @property
    def _array(self) -> str:
        """What is read of an event's features beside their names."""
        return "meters.distinct_hash" if self.family == "uniques" else "meters.quantity"

    def _rows_of(
        self, table: str, periods: Sequence[Period], taken: Sequence[Period], prefix: str, *, net: bool = False
    ) -> str:
        """Rows of facts (sign 1) or corrections; `net`: with all that tells one from another."""
        columns = ", ".join(_WHOLE_ROW if net else self._needed())
        extra = [
            f"arrayFirstIndex((name, is_number) -> name = {{dimension_{i}:String}} AND is_number = 0,"
            f" dims.name, dims.is_number) AS dimension_at_{i}"
            for i in range(len(self.dimensions))
        ]
        if self.query.number is not None:
            extra.append(
                "arrayFirstIndex((name, is_number) -> name = {number:String} AND is_number = 1,"
                " dims.name, dims.is_number) AS number_at"
            )
        where = ["account = {account:String}", "kind = 'delta'", *self._customer()]
        if self.query.event_name is not None:
            where.append("event_name = {event_name:String}")
        if not self.query.by_events:
            where.append("hasAny(`meters.feature`, {features:Array(String)})")
        where += [f"dimension_at_{i} > 0" for i in range(len(self.dimensions))]
        where += self._values_asked("dims.text[dimension_at_{}]".format)
        if self.query.number is not None:
            where.append("number_at > 0")
        instant = "DateTime64(6, 'UTC')"
        where.append(self._ranges("timestamp", instant, [*periods, *taken], prefix))
        sign = "toInt8(1)" if table == "events" else f"{table}.sign"
        if taken:
            sign = f"if({self._ranges('timestamp', instant, taken, 'taken')}, toInt8(-{sign}), {sign})"
        return _select([", ".join([columns, *extra]), f"{sign} AS sign"], table, where)

    def _standing_rows(self, source: str) -> str:
        """Rows that stand after corrections: those put in oftener than taken out, by position and content."""
        keys = ", ".join(column for column in _WHOLE_ROW if column != "append_time")
        extra = [f"dimension_at_{i}" for i in range(len(self.dimensions))]
        if self.query.number is not None:
            extra.append("number_at")
        grouped = ", ".join([keys, *extra])
        return (
            f"    SELECT {grouped}, min(append_time) AS append_time, sum(sign) AS sign\n    FROM\n    (\n"
            f"{_indented(source)}\n    )\n    GROUP BY {grouped}\n    HAVING sign > 0"
        )

    def _keys(self, time_column: str) -> list[str]:
        columns = [] if self.query.granularity == "none" else [f"{self._window(time_column)} AS window"]
        facts = time_column == "timestamp"
        for group, name in zip(self.query.groups, self._group_names(), strict=True):
            if group.startswith(DIMENSION_PREFIX):
                i = self.dimensions.index(group.removeprefix(DIMENSION_PREFIX))
                columns.append(f"dims.text[dimension_at_{i}] AS {name}" if facts else f"dimension_text_{i} AS {name}")
            else:
                column = {"customer": "client_id", "entity": "entity_id"}.get(group, group)
                columns.append(f"{column} AS {name}")
        return columns

    def _group_names(self) -> list[str]:
        return [f"group_{i}" for i in range(len(self.query.groups))]

    def _window(self, column: str) -> str:
        """Hours by their first instant, days and months by their local date."""
        instant = "toDateTime(day, 'UTC')" if column == "day" else column
        at = f"toInt64(toUnixTimestamp({instant}))"
        since, ahead = self._changes(at)
        local = f"{at} + {ahead}"
        if self.query.granularity == "hour":
            return f"toDateTime(greatest(intDiv({local}, 3600) * 3600 - {ahead}, {since}), 'UTC')"
        day = f"toDate(toDateTime({local}, 'UTC'))"
        if self.clock.offset_s == (0,):
            day = "day" if column == "day" else f"toDate({column})"
        return day if self.query.granularity == "day" else f"toStartOfMonth({day})"

    def _changes(self, at: str) -> tuple[str, str]:
        """When the clock was last changed before the instant `at`, and how far ahead of UTC it is since."""
        number = len(self.clock.since_s)
        if number > _CHANGES_MAX:
            since = f"roundDown({at}, {{since:Array(Int64)}})"
            return since, f"transform({since}, {{since:Array(Int64)}}, {{ahead:Array(Int64)}})"
        if number == 1:
            return "toInt64(0)", "{ahead_0:Int64}"
        tests = [(f"{at} >= {{since_{i}:Int64}}", i) for i in range(number - 1, 0, -1)]
        since = ", ".join(f"{test}, {{since_{i}:Int64}}" for test, i in tests)
        ahead = ", ".join(f"{test}, {{ahead_{i}:Int64}}" for test, i in tests)
        return f"multiIf({since}, toInt64(0))", f"multiIf({ahead}, {{ahead_0:Int64}})"

    def _subject(self) -> list[str]:
        if not self.query.by_events:
            return ["feature IN {features:Array(String)}"]
        return ["event_name = {event_name:String}"] if self.query.event_name is not None else []

    def _customer(self) -> list[str]:
        return [
            f"{column} = {{{name}:String}}"
            for column, name in (("client_id", "customer"), ("entity_id", "entity"))
            if name in self.parameters
        ]

    def _ranges(self, column: str, type_: str, periods: Sequence[Period], prefix: str) -> str:
        """`column` in any of the periods; bounds go into the parameters as text of the column's type."""
        tests = []
        for i, period in enumerate(periods):
            for side, instant in (("from", period.start), ("to", period.end)):
                shape = {"Date": "%Y-%m-%d", "DateTime('UTC')": "%Y-%m-%d %H:%M:%S"}.get(type_, "%Y-%m-%d %H:%M:%S.%f")
                self.parameters[f"{prefix}_{side}_{i}"] = instant.strftime(shape)
            tests.append(f"{column} >= {{{prefix}_from_{i}:{type_}}} AND {column} < {{{prefix}_to_{i}:{type_}}}")
        return tests[0] if len(tests) == 1 else f"({' OR '.join(tests)})"


def _select(columns: Sequence[str], table: str, where: Sequence[str]) -> str:
    return f"    SELECT {', '.join(columns)}\n    FROM {table}\n    WHERE {' AND '.join(where)}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
