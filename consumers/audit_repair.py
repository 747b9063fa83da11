"""Repair: rollups that drift are rebuilt from facts and corrections, while workers go on counting.

Rules: a rollup is rebuilt only from facts that the ledger vouches for; facts, ids and ledger themselves are never
touched, since nothing here could tell what they were. A partition (year) of a rollup is made anew in a shadow table by
the rollup's own view and swapped in at once, so that a reader finds either the old cells or the new ones. Workers need
not stop: the shadow holds exactly the blocks before a fixed position of each partition, so what the swap has thrown
away are the blocks from there up to the first that landed after it. How many those are is the difference between the
ledger and the marks (pipeline.stages.sink); they are added from facts once their worker is done with them. Calls block.
"""

# ruff: noqa: S608 - tables and years are those of this package's constants and of the store; values are bound

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from consumers.audit import ALL_TIME, SETTINGS, SLICE_ROWS, Auditor, AuditReport
from consumers.audit_sql import PROGRESS, settled, settled_until
from consumers.windows import Period
from pipeline.adapters.rollup_view import MARKED, MARKING, SPARSE, insert_from
from pipeline.ports import Reader
from pipeline.stages.sink import MARK_ACCOUNT, mark_name

ROUNDS_MAX: Final = 5
SETTLE_S: Final = 60.0  # how long a block that was stated before the swap may take until it is counted
_POLL_S: Final = 0.1
_POLLS_MAX: Final = 200
_BLOCKS_AT_ONCE: Final = 500
_STALE_S: Final = 86_400  # a shadow as old as that was left behind by a repair that was killed
_FOR_EVER: Final = 2**63 - 1

# One part for each statement, under no token: what is inserted here may have been inserted before the swap.
_INSERT: Final = {
    **SETTINGS,
    "max_execution_time": 0,
    "insert_deduplicate": 0,
    "min_insert_block_size_rows": 1 << 30,
    "min_insert_block_size_bytes": 1 << 34,
}
#: Which table a broken promise of this check is about, and where it can be had back from.
_RESTORE: Final = {
    "ranges": ("blocks", "the ledger: restore table `blocks`; it is written before anything else and never rewritten"),
    "verdicts": ("blocks", "the ledger: restore table `blocks`"),
    "rejects": ("rejects", "restore table `rejects`, or read the lines again from the topic of rejects"),
    "repeats": (
        "repeats",
        "restore table `repeats`; receipts count from it how often an id was seen, nothing else does",
    ),
    "blocks": ("events", "facts and ledger differ: restore table `events`, or `blocks` where the facts are right"),
    "ids": ("events", "an id has several facts: restore table `events`"),
    "positions": ("events, event_ids", "facts and ids differ: restore the one that lacks the position"),
    "conservation": ("events, event_ids, blocks", "the counts of facts, ids and ledger differ: see the other findings"),
}
#: Findings that forbid a rebuild: the rollup may be all that is left of what facts have lost.
_ABOUT_FACTS: Final = frozenset({"blocks", "ids", "positions"})

_Bounds = Mapping[int, tuple[int, int]]  # partition → epoch and offset before which everything is settled


class Writer(Reader, Protocol):
    """The store, as far as a repair needs it."""

    def command(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Run a statement that gives no rows. Blocks."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """One partition of a rollup that was made anew. `blocks`: added after the swap, because they had landed meanwhile;
    `open`: partitions of the topic whose last block nobody has finished, so that it could not be added."""

    table: str
    year: int
    facts: int
    blocks: int
    open: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was rebuilt, what cannot be repaired here (a line each), and the audit after it."""

    rebuilt: tuple[Rebuilt, ...]
    beyond: tuple[str, ...]
    report: AuditReport


class _Block(NamedTuple):
    """A row of the ledger: a block with rows in a month."""

    epoch: int
    partition: int
    month: int
    start: int


class Repairer:
    """Rebuilds what an audit finds broken in rollups. One at a time on a store."""

    def __init__(
        self,
        store: Writer,
        auditor: Auditor,
        *,
        topic: str,
        settle_s: float = SETTLE_S,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._auditor = auditor
        self._topic = topic
        self._settle_s = settle_s
        self._say = say

    def run(self, *, account: str | None = None, period: Period | None = None) -> RepairReport:
        """Audit, rebuild what drifts, audit again, until nothing does or ROUNDS_MAX is reached.

        Whole years are audited, as whole years are rebuilt. Raises what the store raises; killed at any point it leaves
        a store that it can repair when run again.
        """
        self._drop_stale()
        years = _whole_years(period or ALL_TIME)
        rebuilt: list[Rebuilt] = []
        report = self._auditor.run(account=account, period=years)
        for _ in range(ROUNDS_MAX):
            if not report.broken or not facts_hold(report):
                break
            for table, year in report.broken:
                rebuilt.append(self.rebuild(table, year))
                last = rebuilt[-1]
                self._say(f"{table} {year}: rebuilt from {last.facts:,} facts, {last.blocks:,} blocks added after it")
            report = self._auditor.run(account=account, period=years)
        return RepairReport(tuple(rebuilt), tuple(_beyond(report)), report)

    def rebuild(self, table: str, year: int, *, before_swap: Callable[[], None] = lambda: None) -> Rebuilt:
        """Make one partition of a rollup anew. `before_swap` is called when the shadow is full."""
        bounds = self._bounds()
        shadow = f"repair_{secrets.token_hex(6)}_{table}"
        self._create(shadow, table)
        try:
            facts = self._fill(shadow, table, year, bounds)
            before_swap()
            self._swap(shadow, table, year)
        finally:
            self._store.command(f"DROP TABLE IF EXISTS {shadow} SYNC")
        blocks, open_ = self._complete(table, year, bounds)
        return Rebuilt(table, year, facts, blocks, open_)

    # -- private

    def _create(self, shadow: str, table: str) -> None:
        """A plain table beside the rollup with the same columns and keys: it remembers no tokens, and a replicated
        table takes partitions from a plain one, which its replicas then fetch."""
        ((partition, order),) = self._rows(
            "SELECT partition_key, sorting_key FROM system.tables"
            " WHERE database = currentDatabase() AND name = {table:String}",
            {"table": table},
        )
        self._store.command(
            f"CREATE TABLE {shadow} AS {table} ENGINE = AggregatingMergeTree"
            f" PARTITION BY {partition} ORDER BY ({order})"
            " COMMENT 'Being rebuilt by tally audit --repair; to be dropped when that has ended'"
        )

    def _fill(self, shadow: str, table: str, year: int, bounds: _Bounds) -> int:
        """The rollup's views over facts of settled blocks and over corrections; the number of facts."""
        whole = Period(datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))
        total = 0
        for reads, of in (("ingest", "events"), ("corrections", "corrections")):
            condition = settled("block_start") if reads == "ingest" else "1"
            for slice_, rows in self._slices(of, whole):
                parameters = {**settled_until(self._topic, bounds), "from": slice_.start, "to": slice_.end}
                source = (
                    f"SELECT * FROM {of} WHERE timestamp >= {{from:DateTime64(6, 'UTC')}}"
                    f" AND timestamp < {{to:DateTime64(6, 'UTC')}} AND {condition}"
                )
                insert = insert_from(self._store, table, source, into=shadow, reads=reads, parameters=parameters)
                self._store.command(insert, parameters, _INSERT)
                total += rows if reads == "ingest" else 0
        return total

    def _slices(self, table: str, whole: Period) -> Iterator[tuple[Period, int]]:
        """Days put together to slices of a bounded number of rows (a day is the least), none over a month's end."""
        days = self._rows(
            "SELECT toUnixTimestamp(toStartOfDay(timestamp)) AS day, toYYYYMM(timestamp) AS month, count() AS rows"
            f" FROM {table}"
            " WHERE timestamp >= {from:DateTime64(6, 'UTC')} AND timestamp < {to:DateTime64(6, 'UTC')}"
            " GROUP BY day, month ORDER BY day",
            {"from": whole.start, "to": whole.end},
        )
        taken: list[tuple[int, int, int]] = []
        for day, month, rows in days:
            if taken and (taken[0][1] != month or sum(r for *_, r in taken) + rows > SLICE_ROWS):
                yield _of_days(taken)
                taken = []
            taken.append((day, month, rows))
        if taken:
            yield _of_days(taken)

    def _swap(self, shadow: str, table: str, year: int) -> None:
        ((rows,),) = self._rows(f"SELECT count() FROM {shadow}")
        if rows:
            self._store.command(f"ALTER TABLE {table} REPLACE PARTITION {int(year)} FROM {shadow}")
        else:  # nothing belongs there
            self._store.command(f"ALTER TABLE {table} DROP PARTITION {int(year)}")

    def _complete(self, table: str, year: int, bounds: _Bounds) -> tuple[int, tuple[int, ...]]:
        """Adds the blocks that the swap has thrown away. Their number, and the partitions where one is not settled."""
        stated = {p: last for p, last in self._last_stated().items() if p in bounds and last >= bounds[p]}
        if not stated:
            return 0, ()
        now = self._await_settled(stated)
        open_ = tuple(sorted(p for p, last in stated.items() if now[p] <= last))
        candidates: dict[tuple[int, int, int], list[int]] = {}
        for block in self._ledger(table, year, bounds):
            place = (block.epoch, block.start)
            if place <= stated.get(block.partition, (-1, -1)) and place < now[block.partition]:
                candidates.setdefault((block.epoch, block.partition, block.month), []).append(block.start)
        added = 0
        for group, lost in self._lost(table, year, bounds, stated, candidates).items():
            starts = candidates[group][:lost]
            for at in range(0, len(starts), _BLOCKS_AT_ONCE):
                self._add(table, group, starts[at : at + _BLOCKS_AT_ONCE])
            added += len(starts)
        return added, open_

    def _await_settled(self, stated: _Bounds) -> _Bounds:
        end = time.monotonic() + self._settle_s
        while True:
            now = self._bounds()
            if all(now[p] > last for p, last in stated.items()) or time.monotonic() > end:
                return now
            time.sleep(_POLL_S)

    def _lost(
        self,
        table: str,
        year: int,
        bounds: _Bounds,
        stated: _Bounds,
        candidates: Mapping[tuple[int, int, int], Sequence[int]],
    ) -> dict[tuple[int, int, int], int]:
        """How many blocks of each epoch, partition and month the table lacks: ledger minus marks.

        What lands meanwhile makes that a range; one looks until it has shrunk to a number. Nothing is said of a group
        where the marks say something that lost blocks do not explain: the next audit finds it.
        """
        below = self._ledger_counts(table, year, bounds)
        low, high = dict.fromkeys(candidates, -_FOR_EVER), dict.fromkeys(candidates, _FOR_EVER)
        for _ in range(_POLLS_MAX):
            landed = self._after(table, year, stated, self._bounds())
            marks = self._marks(table, year)
            might = self._after(table, year, stated, None)
            for group, starts in candidates.items():
                known = below.get(group, 0) + len(starts) - marks.get(group, 0)
                low[group] = max(low[group], known + landed.get(group, 0))
                high[group] = min(high[group], known + might.get(group, 0))
            if all(low[group] == high[group] for group in candidates):
                break
            time.sleep(_POLL_S / 2)
        return {
            group: low[group]
            for group, starts in candidates.items()
            if low[group] == high[group] and 0 < low[group] <= len(starts)
        }

    def _add(self, table: str, group: tuple[int, int, int], starts: Sequence[int]) -> None:
        epoch, partition, month = group
        parameters = {"epoch": epoch, "partition": partition, "month": month, "starts": list(starts)}
        source = (
            "SELECT * FROM events WHERE toYYYYMM(timestamp) = {month:UInt32} AND epoch = {epoch:UInt32}"
            " AND `partition` = {partition:UInt32} AND block_start IN {starts:Array(UInt64)}"
        )
        insert = insert_from(self._store, table, source, into=table, parameters=parameters)
        self._store.command(insert, parameters, _INSERT)

    # -- private: what the store says

    def _bounds(self) -> dict[int, tuple[int, int]]:
        """Where each partition is settled up to: the worker's report, or its last block where that is later. A block
        that has a successor in the ledger has arrived everywhere."""
        reported = {p: (epoch, position) for p, epoch, position in self._rows(PROGRESS, {"topic": self._topic})}
        last = self._last_stated()
        return {p: max(place, last.get(p, place)) for p, place in reported.items()}

    def _last_stated(self) -> dict[int, tuple[int, int]]:
        rows = self._rows(
            "SELECT `partition`, max((epoch, `start`)) FROM blocks WHERE topic = {topic:String} AND month = 0"
            " GROUP BY `partition`",
            {"topic": self._topic},
        )
        return {partition: (place[0], place[1]) for partition, place in rows}

    def _ledger(self, table: str, year: int, bounds: _Bounds) -> list[_Block]:
        """Blocks that mark the table in the year from the bounds on, in the order of the log."""
        rows = self._rows(
            "SELECT epoch, `partition`, month, `start` FROM blocks FINAL WHERE topic = {topic:String}"
            f" AND intDiv(month, 100) = {{year:UInt32}} AND NOT {settled('`start`')} AND {_marking(table)}"
            " ORDER BY epoch, `partition`, month, `start`",
            {"year": year, **settled_until(self._topic, bounds)},
        )
        return [_Block(*row) for row in rows]

    def _ledger_counts(self, table: str, year: int, bounds: _Bounds) -> dict[tuple[int, int, int], int]:
        """Number of blocks before the bounds that mark the table, by epoch, partition and month."""
        rows = self._rows(
            "SELECT epoch, `partition`, month, count() FROM blocks FINAL WHERE topic = {topic:String}"
            f" AND intDiv(month, 100) = {{year:UInt32}} AND {settled('`start`')} AND {_marking(table)}"
            " GROUP BY epoch, `partition`, month",
            {"year": year, **settled_until(self._topic, bounds)},
        )
        return {(epoch, partition, month): blocks for epoch, partition, month, blocks in rows}

    def _after(
        self, table: str, year: int, stated: _Bounds, settled_: _Bounds | None
    ) -> dict[tuple[int, int, int], int]:
        """Number of blocks past those that were stated at the swap: settled ones, or all that the ledger knows."""
        counts: dict[tuple[int, int, int], int] = {}
        for block in self._ledger(table, year, stated):
            place = (block.epoch, block.start)
            if place > stated.get(block.partition, place) and (settled_ is None or place < settled_[block.partition]):
                group = (block.epoch, block.partition, block.month)
                counts[group] = counts.get(group, 0) + 1
        return counts

    def _marks(self, table: str, year: int) -> dict[tuple[int, int, int], int]:
        """Number of blocks that have arrived in the table by epoch, partition and month."""
        name, when = MARKED[table]
        rows = self._rows(
            f"SELECT {name} AS name, toYYYYMM({when}) AS month, sum(events) FROM {table}"
            f" WHERE account = {{account:String}} AND toYear({when}) = {{year:UInt32}} GROUP BY name, month",
            {"account": MARK_ACCOUNT, "year": year},
        )
        places = self._rows(
            "SELECT DISTINCT epoch, `partition` FROM blocks WHERE topic = {topic:String} AND month = 0",
            {"topic": self._topic},
        )
        names = {mark_name(self._topic, epoch, partition): (epoch, partition) for epoch, partition in places}
        return {(*names[mark], month): int(found) for mark, month, found in rows if mark in names}

    def _drop_stale(self) -> None:
        """Shadows that a killed repair has left."""
        rows = self._rows(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND match(name, '^repair_[0-9a-f]{12}_')"
            f" AND metadata_modification_time < now() - {_STALE_S}"
        )
        for (name,) in rows:
            self._store.command(f"DROP TABLE IF EXISTS {name} SYNC")

    def _rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        return self._store.query(sql, parameters, SETTINGS).rows


def _marking(table: str) -> str:
    """Of rows of the ledger: whether the block marks that rollup."""
    return f"{MARKING} AND sparse = 1" if table in SPARSE else MARKING


def facts_hold(report: AuditReport) -> bool:
    """Whether the ledger vouches for the facts, so that a rollup may be rebuilt from them."""
    return not any(
        finding.check in _ABOUT_FACTS
        or (finding.check == "conservation" and finding.where.get("count") != "events by verdict")
        for finding in report.findings
    )


def _beyond(report: AuditReport) -> Iterator[str]:
    """What is broken and not to be repaired from anything in the store."""
    checks = dict.fromkeys(finding.check for finding in report.findings)
    for check in checks:
        if check in _RESTORE:
            tables, advice = _RESTORE[check]
            yield f"{check} ({tables}): {advice}"
    if report.broken and not facts_hold(report):
        partitions = ", ".join(f"{table} {year}" for table, year in report.broken)
        yield f"rollups ({partitions}): not rebuilt, since their facts are in doubt; restore those first, then repair"


def _whole_years(period: Period) -> Period:
    end = period.end.astimezone(UTC)
    last = end.year if end == datetime(end.year, 1, 1, tzinfo=UTC) else end.year + 1
    return Period(datetime(period.start.astimezone(UTC).year, 1, 1, tzinfo=UTC), datetime(last, 1, 1, tzinfo=UTC))


def _of_days(taken: Sequence[tuple[int, int, int]]) -> tuple[Period, int]:
    first, last = taken[0][0], taken[-1][0]
    return (
        Period(datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last + 86_400, UTC)),
        sum(rows for *_, rows in taken),
    )
