"""The SQL that answers a question for usage: pure, values in, (sql, parameters) out.

Rules: what is read where is `usage_plan`. Values are bound by the server, never pasted. Each level of a statement, and
each step such as a sort, takes the engine a millisecond to plan, which of small answers is most of the time: one
customer's quarters are asked for on one level, and the rows put together here.
"""

# ruff: noqa: S608 - the parts are constants of this module; values are bound by the server

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from consumers.usage import DIMENSION_PREFIX, EXACT, UsageError, UsageQuery, zone_of
from consumers.usage_plan import (
    EVENTS_DIMENSION,
    QUARTERS,
    SHAPES,
    STANDING,
    USAGE_EDGE,
    Family,
    Plan,
    Rollup,
    make_plan,
)
from consumers.windows import Offsets, Period, count_at_most, offsets

ROWS_MAX: Final = 200_000  # of an answer; more is refused rather than cut
_SETS_WINDOWS_MAX: Final = 1000  # of an answer by sets of features: each of them may have a row in each window
_CHANGES_MAX: Final = 4  # of a zone's clock that are compared one by one, which costs less than a look-up

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

# The opt-in projection of facts (sql/optional): events of one customer with the same dimensions and features as one
# row, for each quarter of an hour beside ends of UTC months and for all that lies between. The engine takes it only
# for the very expressions that it was made of.
_SHAPES_CELL: Final = (
    "if(toYYYYMM(timestamp + toIntervalHour(14)) != toYYYYMM(timestamp - toIntervalHour(12)),"
    " toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC'),"
    " toDateTime(toStartOfMonth(timestamp), 'UTC') + toIntervalHour(12))"
)
_SHAPES_FEATURES: Final = "CAST(`meters.feature`, 'Array(LowCardinality(String))')"
_SHAPES_NAMES: Final = "CAST(`dims.name`, 'Array(LowCardinality(String))')"
_SHAPES_TEXTS: Final = "CAST(`dims.text`, 'Array(LowCardinality(String))')"
# And one (sql/optional/usage_customer_15m.sql) of a customer's quarters of an hour.
_QUARTERS_CELL: Final = "toStartOfFifteenMinutes(timestamp)"
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
# What an answer is made of, and what branches call it.
_STATES: Final[dict[Family, tuple[str, ...]]] = {
    "sums": ("sum({n}) AS events", "sum({quantity_sum}) AS total"),
    "extremes": ("sum({n}) AS events", "min({quantity_min}) AS smallest", "max({quantity_max}) AS largest"),
    "latest": ("sum({n}) AS events", "argMaxMerge({quantity_latest}) AS latest"),
    "uniques": ("sum({n}) AS events", "countIf({n} > 0) AS uniques"),
}
_BRANCH_STATES: Final = {
    name: name for name in ("n", "quantity_sum", "quantity_min", "quantity_max", "quantity_latest")
}

# The columns of rollups that hold it. Distinct values have to be put together first, on a level of their own.
_ROLLUP_STATES: Final[dict[Family, dict[str, str]]] = {
    "sums": {"n": "events", "quantity_sum": "total"},
    "extremes": {"n": "events", "quantity_min": "min_value", "quantity_max": "max_value"},
    "latest": {"n": "events", "quantity_latest": "latest"},
}


# Whether the account has corrections, told with each row: a request beside it would cost the store more than the look.
_CORRECTED: Final = "EXISTS(SELECT 1 FROM corrections WHERE account = {account:String}) AS corrected"

# The engine compares neither with other projections nor with facts, and reads all columns at once: the rows are few, or
# most of them are wanted.
_PROJECTION_SETTINGS: Final = {"optimize_use_implicit_projections": 0, "optimize_move_to_prewhere": 0}

# What one customer's answer reads is a few rows of each part: two threads open parts side by side, more wait for each
# other, and one thread sooner finds the marks. Rows are sooner read whole than by conditions in turn.
_FEW_ROWS: Final = {"max_threads": 2, "max_threads_for_indexes": 1, "optimize_move_to_prewhere": 0}


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with its server-side parameters and settings, the tables it reads, and what the columns of `rows` are."""

    sql: str
    parameters: dict[str, Any]
    read_from: tuple[str, ...]
    columns: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    sets: bool = False
    tells: bool = False

    def rows(self, answered: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The store's answer as rows of `columns`: where it is by `sets` of features, their totals put together."""
        if not self.sets:
            return list(answered)
        wanted, by_feature = set(self.parameters["features"]), "feature" in self.columns
        sums: dict[tuple[Any, ...], tuple[int, Decimal]] = {}
        plain = (row[:-1] for row in answered) if self.tells else answered
        for *keys, features, events, totals in plain:
            for feature, total in zip(features, totals, strict=True):
                if feature in wanted:
                    key = (*keys, feature) if by_feature else tuple(keys)
                    number, before = sums.get(key, (0, Decimal(0)))
                    sums[key] = number + events, EXACT.add(before, total)
        return [(*key, *sums[key]) for key in sorted(sums)]

    def corrected(self, answered: Sequence[tuple[Any, ...]]) -> bool | None:
        """Whether the account has corrections, where the answer `tells` it, which an empty one does not; else None."""
        return bool(answered[0][-1]) if self.tells and answered else None


def build(
    query: UsageQuery,
    family: Family,
    features: Sequence[str] = (),
    *,
    withdrawn: bool = False,
    projections: Collection[str] = (),
    corrected: bool | None = True,
    count: bool = False,
) -> Statement:
    """One statement for one family of aggregations.

    `features`: those it is about, unless the query counts events. `withdrawn`: whether corrections took something out
    of this account. `projections`: those that facts have. `corrected`: whether the account has any corrections,
    without which facts are all there is; None: not known, so facts are read, and the answer tells it if it can.
    `count`: `top` ranks by it, not by the sum. Columns: `window` (unless the granularity is none), the query's groups
    in order, `events`, and the family's states. Raises UsageError when the query insists on rollups that cannot answer.
    """
    plan = make_plan(query, family, withdrawn=withdrawn, projections=projections)
    if query.source == "rollups" and not (plan.cells or plan.shapes or plan.quarters):
        raise UsageError("source", "range", "no rollup has whole cells for this; use source=auto or source=facts")
    parts = _Parts(query, family, tuple(features))
    tells = corrected is None
    corrected = bool(corrected)
    if _by_sets(query, plan, corrected=corrected):
        return Statement(
            parts.quarters_by_sets(plan.quarters, tells=tells),
            parts.parameters,
            ("events",),
            parts.columns(),
            {**_preferring(QUARTERS), **_FEW_ROWS},
            sets=True,
            tells=tells,
        )
    one = query.customer is not None and family in ("sums", "extremes") and not plan.reads_events
    settings: Mapping[str, Any] = _FEW_ROWS if one else {}
    if plan.rollup and family in _ROLLUP_STATES and not (plan.ends or plan.taken or plan.reads_events):
        text = parts.rollup_alone(plan.rollup, plan.cells, count=count)
        return Statement(text, parts.parameters, (plan.rollup.table,), parts.columns(), settings)
    branches, tables = [], []
    if plan.rollup and plan.cells:
        branches.append(parts.rollup_branch(plan.rollup, plan.cells, "cell"))
        tables.append(plan.rollup.table)
    if plan.ends:
        branches.append(parts.rollup_branch(USAGE_EDGE, plan.ends, "end"))
    if plan.taken and plan.rollup_takes:
        branches.append(parts.rollup_branch(USAGE_EDGE, plan.taken, "taken", sign="-"))
    if plan.ends or (plan.taken and plan.rollup_takes):
        tables.append(USAGE_EDGE.table)
    if plan.shapes:
        branches += parts.shapes_branches(plan.shapes, corrected=corrected)
        settings = _preferring(SHAPES)
    if plan.quarters:
        branches += parts.quarters_branches(plan.quarters, corrected=corrected)
    taken = () if plan.rollup_takes else plan.taken
    if plan.edges or taken:
        branches.append(
            parts.facts_branch(plan.edges, taken, net=withdrawn and family in STANDING, corrected=corrected)
        )
    if plan.reads_events:
        tables += ["events", "corrections"] if withdrawn else ["events"]
    return Statement(parts.outer(branches, count=count), parts.parameters, tuple(tables), parts.columns(), settings)


def _by_sets(query: UsageQuery, plan: Plan, *, corrected: bool) -> bool:
    """Whether quarters of one customer are all that is read, and their sets of features need no more rows than an
    answer may have."""
    alone = bool(plan.quarters) and not plan.edges and not corrected
    plain = query.groups in ((), ("feature",)) and query.top is None
    return alone and plain and count_at_most(query.period, query.granularity) <= _SETS_WINDOWS_MAX


def _preferring(projection: str) -> dict[str, Any]:
    return {"preferred_optimize_projection_name": projection, **_PROJECTION_SETTINGS}


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

    def columns(self) -> tuple[str, ...]:
        """Names of the answer's columns, groups by what they are."""
        states = [state.rpartition(" ")[2] for state in _STATES[self.family]]
        return (*(["window"] if self.query.granularity != "none" else []), *self.query.groups, *states)

    def outer(self, branches: Sequence[str], *, count: bool) -> str:
        """Merge the branches by window and group; with `top` the largest by sum or `count` first."""
        keys = self._key_names()
        source = "\n    UNION ALL\n".join(branches)
        if self.family == "uniques":
            inner = ", ".join([*keys, "distinct_hash"])
            source = f"    SELECT {inner}, sum(n) AS n FROM\n    (\n{_indented(source)}\n    )\n    GROUP BY {inner}"
        columns = [*keys, *self._states(_BRANCH_STATES)]
        return self._answer(["SELECT", ",\n".join(f"    {c}" for c in columns), "FROM", "(", source, ")"], count=count)

    def rollup_alone(self, rollup: Rollup, cells: Sequence[Period], *, count: bool) -> str:
        """An answer of whole cells of one rollup, on one level."""
        keys, where = self._from_rollup(rollup, cells, "cell")
        text = _select([*keys, *self._states(_ROLLUP_STATES[self.family])], rollup.table, where)
        return self._answer([_outdented(text)], count=count)

    def _states(self, columns: Mapping[str, str]) -> list[str]:
        return [state.format(**columns) for state in _STATES[self.family]]

    def _answer(self, lines: Sequence[str], *, count: bool) -> str:
        """The statement with its groups and their order."""
        keys, lines = self._key_names(), list(lines)
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
        keys, where = self._from_rollup(rollup, cells, prefix)
        if self.family == "uniques":
            states = ["distinct_hash", "events AS n"]
        else:
            states = [f"{sign}{column} AS {name}" for name, column in _ROLLUP_STATES[self.family].items()]
        return _select([*keys, *states], rollup.table, where)

    def _from_rollup(self, rollup: Rollup, cells: Sequence[Period], prefix: str) -> tuple[list[str], list[str]]:
        """Keys of an answer by what the rollup calls them, and conditions on its cells."""
        columns = self._keys(rollup.column)
        value = "text" if self.query.by_events else "value"
        columns = [c.replace("dimension_text_0", value) for c in columns]
        where = ["account = {account:String}", *self._subject(), *self._customer()]
        if rollup is EVENTS_DIMENSION:
            number = self.query.number is not None
            where.append(f"dimension = {{{'number' if number else 'dimension_0'}:String}}")
            where.append(f"is_number = {int(number)}")
        elif self.dimensions:
            where.append("dimension = {dimension_0:String}")
        if "value_0" in self.parameters:
            where.append(f"{value} = {{value_0:String}}")
        where.append(self._ranges(rollup.column, rollup.type, cells, prefix))
        return columns, where

    def _values_asked(self, text_of: Callable[[int], str]) -> list[str]:
        """Conditions on the dimensions of which one value is asked for."""
        asked = (i for i in range(len(self.dimensions)) if f"value_{i}" in self.parameters)
        return [f"{text_of(i)} = {{value_{i}:String}}" for i in asked]

    def shapes_branches(self, periods: Sequence[Period], *, corrected: bool) -> list[str]:
        """Cells of the projection, and the corrections of the same time."""
        groups = self._keys("timestamp")
        plain = [column for column in ("client_id", "entity_id") if any(g.startswith(f"{column} AS") for g in groups)]
        grouped = [i for i, _ in enumerate(self.dimensions) if any(f"dimension_at_{i}]" in g for g in groups)]
        at = [f"indexOf({_SHAPES_NAMES}, {{dimension_{i}:String}})" for i, _ in enumerate(self.dimensions)]
        text = [f"{_SHAPES_TEXTS}[{found}]" for found in at]
        where = ["account = {account:String}", "kind = 'delta'", *self._customer()]
        if self._only_feature():
            metered, metered_as = "place", f"indexOf({_SHAPES_FEATURES}, {{feature:String}})"
            where.append(f"{metered_as} > 0")
        else:
            metered, metered_as = "features", _SHAPES_FEATURES
            where.append(f"hasAny({_SHAPES_FEATURES}, {{features:Array(String)}})")
        for i, found in enumerate(at):
            if not self.query.where.get(self.dimensions[i]):  # a text that is not empty is a string dimension's
                where.append(f"{found} > 0 AND `dims.is_number`[{found}] = 0")
        where += self._values_asked(text.__getitem__)
        where.append(self._ranges(_SHAPES_CELL, "DateTime('UTC')", periods, "shape"))
        named = [f"{metered_as} AS {metered}", *(f"{text[i]} AS dimension_text_{i}" for i in grouped)]
        selected = [*plain, *named, "count() AS n", f"{_CELL_SUMS} AS quantities"]
        keys = [*plain, metered, *(f"dimension_text_{i}" for i in grouped)]
        columns = [g.replace("dims.text[dimension_at_", "dimension_text_").replace("] AS", " AS") for g in groups]
        return self._projected(selected, where, keys, columns, periods, corrected=corrected)

    def _only_feature(self) -> bool:
        """Whether one feature is asked for and no group. An event has it once at most, so its place among the event's
        features is all that has to be known of them: a number, cheaper to group by than a list of names."""
        features = self.parameters["features"]
        if len(features) != 1 or "feature" in self.query.groups:
            return False
        self.parameters["feature"] = features[0]
        return True

    def quarters_branches(self, periods: Sequence[Period], *, corrected: bool) -> list[str]:
        """Cells of the other projection, and the corrections of the same time."""
        columns = self._keys("bucket")
        plain = [name for name in ("client_id", "entity_id") if any(c.startswith(f"{name} AS") for c in columns)]
        keys = [*plain, *(["bucket"] if self.query.granularity != "none" else []), "features"]
        named = [f"{_QUARTERS_CELL} AS bucket" if key == "bucket" else key for key in keys[:-1]]
        selected = [*named, "`meters.feature` AS features", "count() AS n", f"{_CELL_SUMS} AS quantities"]
        return self._projected(selected, self._of_quarters(periods), keys, columns, periods, corrected=corrected)

    def quarters_by_sets(self, periods: Sequence[Period], *, tells: bool) -> str:
        """The same on one level, for `Statement.rows`: by window and set of features, in no order."""
        keys = ["features"] if self.query.granularity == "none" else ["window", "features"]
        windows = [f"{self._window(_QUARTERS_CELL)} AS window"] if "window" in keys else []
        columns = [*windows, "`meters.feature` AS features", "count() AS events", f"{_CELL_SUMS} AS totals"]
        columns += [_CORRECTED] if tells else []
        text = _outdented(_select(columns, "events", self._of_quarters(periods)))
        return f"{text}\nGROUP BY {', '.join(keys)}\nLIMIT {ROWS_MAX + 1}"

    def _of_quarters(self, periods: Sequence[Period]) -> list[str]:
        where = ["account = {account:String}", "kind = 'delta'", *self._customer()]
        where.append("hasAny(`meters.feature`, {features:Array(String)})")
        return [*where, self._ranges(_QUARTERS_CELL, "DateTime('UTC')", periods, "quarter")]

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
        placed = "place" in keys
        quantity = "quantities[place]" if placed else "quantity"
        cells = (
            f"    SELECT {', '.join([*columns, 'toInt64(n) AS n', f'{quantity} AS quantity_sum'])}\n    FROM\n    (\n"
            f"{_indented(inner)}\n    )"
        )
        if not placed:
            cells += (
                "\n    ARRAY JOIN features AS feature, quantities AS quantity"
                "\n    WHERE feature IN {features:Array(String)}"
            )
        if not corrected:
            return [cells]
        return [cells, self._measured_rows(self._rows_of("corrections", periods, (), "corrected"))]

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

    def _key_names(self) -> list[str]:
        return [*(["window"] if self.query.granularity != "none" else []), *self._group_names()]

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


def _outdented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())
