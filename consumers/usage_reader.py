"""Asks the store for usage.

Rules: until when an answer is complete is known before the numbers are read, so that it never promises more than they
hold. Calls block.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any, Final

from consumers.completeness import Completeness
from consumers.usage import Aggregation, UsageError, UsageQuery, UsageResult, UsageRow, value_of, zone_of
from consumers.usage_plan import FAMILIES, Family, make_plan
from consumers.usage_sql import ROWS_MAX, Statement, build
from consumers.windows import Period, window_from_date, window_from_start
from pipeline.ports import Reader

# An answer is asked for whole: to send it in pieces takes the store longer, and it is refused beyond ROWS_MAX.
_READ_SETTINGS: Final = {
    "max_execution_time": 60,
    "max_bytes_before_external_group_by": 1 << 30,
    "wait_end_of_query": 1,
}
_BESIDE_MAX: Final = 4  # questions for corrections at once, beside those for numbers
_AGGREGATIONS: Final = """SELECT
    id,
    toString(argMax(aggregation, rev)) AS latest
FROM features
WHERE account = {account:String}
GROUP BY id
ORDER BY id"""
_METERED: Final = """SELECT DISTINCT feature
FROM usage_15m
WHERE account = {account:String}
ORDER BY feature"""
_PROJECTIONS: Final = """SELECT name
FROM system.projections
WHERE database = currentDatabase() AND table = 'events'"""
_CORRECTED: Final = """SELECT count() AS found
FROM
(
    SELECT 1
    FROM corrections
    WHERE account = {account:String} AND sign <= {most:Int8}
    LIMIT 1
)"""


class UsageReader:
    """Answers usage queries. `partitions`: of the events topic; all must have reported for `complete_until`."""

    def __init__(self, store: Reader, *, topic: str, partitions: int) -> None:
        self._store = store
        self.complete = Completeness(store, topic=topic, partitions=partitions)
        self._projections: frozenset[str] | None = None
        self._corrected: set[str] = set()  # accounts that were seen to have corrections, which never go away
        self._uncorrected: dict[str, float] = {}  # accounts that had none, and when that was asked
        self._beside = ThreadPoolExecutor(_BESIDE_MAX, "usage-corrections")

    def usage(self, query: UsageQuery, aggregations: Mapping[str, Aggregation] | None = None) -> UsageResult:
        """The answer, exact, whichever tables it comes from.

        `aggregations`: of the account's features, read from the catalog's mirror unless given. Raises UsageError and
        what the store raises. Blocks.
        """
        complete = self.complete()
        chosen = self._chosen(query, aggregations)
        if query.top is not None and any(a not in ("sum", "count") for _, a in chosen):
            raise UsageError("top", "exclusive", f"groups are compared by sum or count, not by {chosen[0][1]}")
        withdrawn = any(a in ("max", "min", "latest") for _, a in chosen) and self._withdrawn(query.account)
        rows: list[UsageRow] = []
        tables: list[str] = []
        for family in dict.fromkeys(FAMILIES[a] for _, a in chosen):
            members = {f: a for f, a in chosen if FAMILIES[a] == family}
            statement, answered = self._asked(query, family, members, complete.asked_s, withdrawn=withdrawn)
            if len(rows) + len(answered) > ROWS_MAX:
                raise UsageError("group_by", "too_large", f"more than {ROWS_MAX} rows: ask for less at once")
            rows.extend(_rows(query, statement.columns, answered, members))
            tables.extend(statement.read_from)
        if query.top is None:  # else they come by rank
            rows.sort(key=lambda row: (row.start, *row.group.values()))
        return UsageResult(query, tuple(rows), complete.until, complete.lag_s, tuple(dict.fromkeys(tables)))

    def _asked(
        self,
        query: UsageQuery,
        family: Family,
        members: Mapping[str | None, Aggregation],
        complete_s: float,
        *,
        withdrawn: bool,
    ) -> tuple[Statement, list[tuple[Any, ...]]]:
        """The statement of one family and the rows of its answer. `complete_s`: when it was asked until when they are
        complete.

        Where nothing is known of corrections, facts alone are asked, and with them or at the same time whether there
        are any, unless that was asked since `complete_s`: what was corrected later is not promised. To plan a statement
        over corrections too takes longer than the whole question.
        """
        projections = self._known_projections() if query.dimensions or query.customer is not None else frozenset()
        account = query.account

        def made(*, corrected: bool | None) -> Statement:
            return build(
                query,
                family,
                sorted(f for f in members if f is not None),
                withdrawn=withdrawn,
                projections=projections,
                corrected=corrected,
                count="count" in members.values(),
            )

        plan = make_plan(query, family, withdrawn=withdrawn, projections=projections)
        if not withdrawn and account not in self._corrected and plan.reads_events:
            if self._uncorrected.get(account, 0.0) > complete_s:
                statement = made(corrected=False)
                return statement, statement.rows(self._answer(statement))
            asked_s, statement = time.monotonic(), made(corrected=None)
            answer, corrected = self._answer_and_corrected(statement, account)
            if not corrected:
                self._uncorrected[account] = asked_s
                return statement, statement.rows(answer)
            self._corrected.add(account)
        statement = made(corrected=True)
        return statement, statement.rows(self._answer(statement))

    def _answer_and_corrected(self, statement: Statement, account: str) -> tuple[Sequence[tuple[Any, ...]], bool]:
        """The store's answer and whether the account has corrections: told by the answer, or by another one beside."""
        if statement.tells:
            answer = self._answer(statement)
            told = statement.corrected(answer)
            return answer, self._has_corrections(account) if told is None else told
        found: Future[bool] = self._beside.submit(self._has_corrections, account)
        try:
            answer = self._answer(statement)
        finally:
            corrected = found.result()
        return answer, corrected

    def _answer(self, statement: Statement) -> Sequence[tuple[Any, ...]]:
        answer = self._store.query(statement.sql, statement.parameters, {**_READ_SETTINGS, **statement.settings}).rows
        if len(answer) > ROWS_MAX:
            raise UsageError("group_by", "too_large", f"more than {ROWS_MAX} rows: ask for less at once")
        return answer

    def _chosen(
        self, query: UsageQuery, aggregations: Mapping[str, Aggregation] | None
    ) -> list[tuple[str | None, Aggregation]]:
        """The features that the query is about with their aggregations; (None, …) where it counts events."""
        if query.by_events:
            return [(None, query.aggregation or "sum")]
        if query.feature is not None and query.aggregation is not None:
            return [(query.feature, query.aggregation)]
        known = self._aggregations(query.account) if aggregations is None else dict(aggregations)
        if query.feature is not None:
            return [(query.feature, known.get(query.feature, "sum"))]
        metered = [row[0] for row in self._store.query(_METERED, {"account": query.account}).rows]
        return [(f, query.aggregation or known.get(f, "sum")) for f in dict.fromkeys([*metered, *known])] or [
            ("", "sum")
        ]

    def _known_projections(self) -> frozenset[str]:
        """Those that facts have; looked up once, since they only change what an answer takes."""
        if self._projections is None:
            self._projections = frozenset(name for (name,) in self._store.query(_PROJECTIONS).rows)
        return self._projections

    def _aggregations(self, account: str) -> dict[str, Aggregation]:
        return dict(self._store.query(_AGGREGATIONS, {"account": account}).rows)

    def _withdrawn(self, account: str) -> bool:
        """Whether corrections took something out of the account. Asked after how far the workers are."""
        return self._has_corrections(account, most=-1)

    def _has_corrections(self, account: str, *, most: int = 1) -> bool:
        return bool(self._store.query(_CORRECTED, {"account": account, "most": most}).rows[0][0])


def _rows(
    query: UsageQuery,
    columns: Sequence[str],
    answered: Sequence[tuple[Any, ...]],
    members: Mapping[str | None, Aggregation],
) -> list[UsageRow]:
    names = query.groups
    keys = len(names) + (query.granularity != "none")
    fixed: Aggregation | None = next(iter(members.values())) if len(set(members.values())) == 1 else None
    rows = []
    for row in answered:
        states = dict(zip(columns[keys:], row[keys:], strict=True))
        group = dict(zip(names, row[keys - len(names) : keys], strict=True))
        if not states["events"] and not states.get("total"):
            continue  # nothing there, or all of it was withdrawn
        aggregation = fixed or members[group["feature"]]
        window = _window(query, row[0])
        value = value_of(aggregation, states["events"], states)
        rows.append(UsageRow(window.start, window.end, group, aggregation, states["events"], value))
    return rows


def _window(query: UsageQuery, first: object) -> Period:
    """The window of a row, cut to the period that was asked for."""
    period = query.period
    zone = zone_of(query.zone)
    if query.granularity == "none":
        return period
    if isinstance(first, datetime):
        window = window_from_start(first.astimezone(UTC), query.granularity, zone)
    elif isinstance(first, date):
        window = window_from_date(first, query.granularity, zone)
    else:
        raise TypeError(f"a window must be a date or an instant, not {first!r}")
    return Period(max(window.start, period.start), min(window.end, period.end))
