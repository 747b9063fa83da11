"""The quick audit: proves of what was counted since the last audit that it has arrived everywhere, exactly once.

Rules: its cost grows with what is new, not with the store. Blocks are looked up by their range in the ledger; their
facts and ids only in parts that were written since; that each has arrived in each rollup is told by marks
(pipeline.stages.sink), whose number per table, partition and month must be the ledger's; and the number of rows of
every month of facts, old ones too, comes from the parts' own counts. Values inside of old rows and cells are the full
audit's to compare. What is under way while one looks makes a number of blocks a range: a finding is what lies outside
of it however often one looks. Calls block.
"""

# ruff: noqa: S608 - the parts are constants of this module; values are bound by the server

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from consumers.audit import PAUSES_S, SETTINGS, Finding
from consumers.audit_sql import PROGRESS, VERDICTS, settled, settled_until
from pipeline.adapters.rollup_view import MARKED, MARKING, SPARSE
from pipeline.ports import Reader
from pipeline.stages.sink import MARK_ACCOUNT, mark_name

BLOCKS_MAX: Final = 200_000  # rows of the ledger; past that a full audit is the better one
_PARTITIONS_AT_ONCE: Final = 32  # their bounds go as parameters in the address of the request
_SLACK: Final = timedelta(seconds=60)  # clocks of workers and store differ; parts tell whole seconds
_MODULUS: Final = 1 << 128

_BLOCKS: Final = f"""SELECT epoch, `partition`, `start`, `end`, month, {", ".join(VERDICTS)}, rows, value_sum,
    id_hash_sum, stated_at, sparse
FROM blocks FINAL
WHERE topic = {{topic:String}} AND (month = 0 OR {MARKING}) AND (%s)
ORDER BY `partition`, epoch, `start`, month
LIMIT {BLOCKS_MAX + 1}"""
_FACTS: Final = """SELECT epoch, `partition`, block_start, toYYYYMM(timestamp) AS month, countIf(account != ''),
    sumIf(toDecimal256(value, 9), account != ''), sumIf(id_hash, account != ''), countIf(account = '')
FROM events
WHERE _part IN (
    SELECT name FROM system.parts
    WHERE database = currentDatabase() AND table = 'events' AND active AND modification_time >= {since:DateTime('UTC')}
) AND (%s)
GROUP BY epoch, `partition`, block_start, month"""
_IDS: Final = """SELECT epoch, `partition`, countIf(id_hash != 0), sum(id_hash), countIf(id_hash = 0)
FROM event_ids
WHERE _part IN (
    SELECT name FROM system.parts
    WHERE database = currentDatabase() AND table = 'event_ids' AND active
        AND modification_time >= {since:DateTime('UTC')}
) AND (%s)
GROUP BY epoch, `partition`"""
_REJECTS: Final = """SELECT epoch, `partition`, countIf(verdict = 'rejected'), countIf(verdict = 'conflict')
FROM rejects FINAL
WHERE topic = {topic:String} AND (%s)
GROUP BY epoch, `partition`"""
_STATED: Final = f"""SELECT epoch, `partition`, month, count(), sum(rows), countIf(sparse = 1)
FROM blocks FINAL
WHERE topic = {{topic:String}} AND {MARKING} AND NOT {settled("`start`")}
GROUP BY epoch, `partition`, month"""
_COUNTED: Final = f"""SELECT epoch, `partition`, month, count(), sum(rows), countIf(sparse = 1)
FROM blocks FINAL
WHERE topic = {{topic:String}} AND {MARKING} AND {settled("`start`")}
GROUP BY epoch, `partition`, month
ORDER BY epoch, `partition`, month"""
_ENDS: Final = f"""SELECT `partition`, tupleElement(max((epoch, `end`)) AS last, 1), tupleElement(last, 2)
FROM blocks FINAL
WHERE topic = {{topic:String}} AND month = 0 AND {settled("`start`")}
GROUP BY `partition`
ORDER BY `partition`"""
_PARTS: Final = """SELECT table, if(table = 'events', toUInt32OrZero(partition), 0) AS month, sum(rows)
FROM system.parts
WHERE database = currentDatabase() AND table IN ('events', 'event_ids') AND active
GROUP BY table, month"""
_EPOCHS: Final = "SELECT epoch, `partition`, first_offset FROM epochs FINAL WHERE topic = {topic:String}"

_Group = tuple[int, int, int]  # epoch, partition, month


class Month(msgspec.Struct, frozen=True, array_like=True):
    """Settled blocks with rows in a month (YYYYMM), and those rows, of one epoch and partition; `sparse`: those of the
    blocks that are marked in sparse tables too, all of them in a state from before there were others."""

    epoch: int
    partition: int
    month: int
    blocks: int
    rows: int
    sparse: int | None = None

    @property
    def in_sparse(self) -> int:
        """How many of the blocks are marked in sparse tables."""
        return self.blocks if self.sparse is None else self.sparse

    def marks(self, table: str) -> int:
        """How many of the blocks are marked in that rollup."""
        return self.in_sparse if table in SPARSE else self.blocks


class End(msgspec.Struct, frozen=True, array_like=True):
    """The end of a partition's last settled block."""

    partition: int
    epoch: int
    offset: int


class State(msgspec.Struct, frozen=True):
    """Up to where an audit has looked, and what lies before that; small: by partition and month."""

    ends: tuple[End, ...] = ()
    months: tuple[Month, ...] = ()


class Quick(NamedTuple):
    """What a quick audit has looked at, as in AuditReport; `marks`: numbers of blocks per table, partition and month
    that were compared; `state`: for the next one, the same as before when something drifts."""

    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    rerouted: int
    blocks: int
    marks: int
    drift: int
    findings: tuple[Finding, ...]
    state: State


class TooMuchIsNew(Exception):  # noqa: N818 - says what is the matter
    """More blocks than a quick audit takes: a full one is due."""


class _Row(NamedTuple):
    """A row of the ledger."""

    epoch: int
    partition: int
    start: int
    end: int
    month: int
    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    rerouted: int
    rows: int
    value_sum: Decimal
    id_hash_sum: int
    stated_at: datetime
    sparse: int


class _Span(NamedTuple):
    """What is new of a partition: from one position (epoch, offset) up to another."""

    partition: int
    since: tuple[int, int]
    until: tuple[int, int]


class QuickAuditor:
    """Looks at what is new since a state."""

    def __init__(
        self,
        store: Reader,
        *,
        topic: str,
        pauses_s: Sequence[float] = PAUSES_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._topic = topic
        self._pauses_s = pauses_s
        self._sleep = sleep

    def state(self) -> State:
        """Where the ledger is now: to be asked for before a full audit, after which quick ones go on from here."""
        places = settled_until(self._topic, self._progress())
        return State(
            tuple(End(*map(int, row)) for row in self._rows(_ENDS, places)),
            tuple(Month(*map(int, row)) for row in self._rows(_COUNTED, places)),
        )

    def run(self, state: State) -> Quick:
        """Look at everything since the state. Raises TooMuchIsNew and what the store raises."""
        progress = self._progress()
        spans = _spans(state, progress)
        ledger = [_Row(*row) for row in self._spanned(_BLOCKS, spans, "`start`")]
        if len(ledger) > BLOCKS_MAX:
            raise TooMuchIsNew(f"more than {BLOCKS_MAX:,} blocks since the last audit")
        after = _add(state, ledger)
        findings, marks = self._look(state, after, spans, ledger, progress)
        for pause_s in self._pauses_s:
            if not findings:
                break
            self._sleep(pause_s)
            again, marks = self._look(state, after, spans, ledger, progress)
            findings = [finding for finding in findings if finding in again]
        wholes = [row for row in ledger if row.month == 0]
        counts = {name: sum(getattr(row, name) for row in wholes) for name in VERDICTS}
        return Quick(
            **counts,
            blocks=len(wholes),
            marks=marks,
            drift=len(findings),
            findings=tuple(findings),
            state=state if findings else after,
        )

    # -- private

    def _look(
        self,
        state: State,
        after: State,
        spans: Sequence[_Span],
        ledger: Sequence[_Row],
        progress: Mapping[int, tuple[int, int]],
    ) -> tuple[list[Finding], int]:
        """One look at every promise; what was found, and the number of marks that were compared."""
        findings = [*self._ranges(state, ledger), *_verdicts(ledger)]
        if ledger:
            since = {"since": min(row.stated_at for row in ledger) - _SLACK}
            facts = self._spanned(_FACTS, spans, "block_start", since)
            findings += _facts(ledger, facts)
            ids = self._spanned(_IDS, spans, "`offset`", since)
            findings += _totals("quick: ids", ledger, ids, _expected_ids, ("ids", "their sum", "marks"))
            findings += _totals(
                "quick: rejects",
                ledger,
                self._spanned(_REJECTS, spans, "`offset`"),
                lambda row: (row.rejected, row.conflicts) if row.month == 0 else (0, 0),
                ("refused lines", "conflicts"),
            )
        touched = {(row.epoch, row.partition, row.month) for row in ledger if row.month}
        marks = {table: self._marks(table, touched) for table in MARKED} if touched else {}
        parts = {(str(table), int(month)): int(rows) for table, month, rows in self._rows(_PARTS, {})}
        stated = {
            (row[0], row[1], row[2]): Month(*map(int, row))
            for row in self._rows(_STATED, settled_until(self._topic, progress))
        }
        findings += _marks(after, touched, marks, stated)
        findings += _parts(after, parts, stated)
        return findings, len(touched) * len(marks)

    def _ranges(self, state: State, ledger: Sequence[_Row]) -> Iterator[Finding]:
        """Gaps and overlaps between new blocks, and between them and what was there before."""
        firsts = {(int(e), int(p)): int(first) for e, p, first in self._rows(_EPOCHS, {"topic": self._topic})}
        expected = {(end.epoch, end.partition): end.offset for end in state.ends}
        for row in ledger:
            if row.month:
                continue
            life = (row.epoch, row.partition)
            due = expected.get(life, firsts.get(life, row.start))
            where = {**_where(row), "end": str(row.end)}
            if row.start > due:
                yield Finding("quick: ranges", where, f"gap: offsets {due} to {row.start - 1} are in no block")
            elif row.start < due:
                yield Finding("quick: ranges", where, f"overlap: offsets {row.start} to {due - 1} are in two blocks")
            expected[life] = row.end

    def _marks(self, table: str, touched: set[_Group]) -> dict[_Group, int]:
        name, when = MARKED[table]
        names = {mark_name(self._topic, epoch, partition): (epoch, partition) for epoch, partition, _ in touched}
        found: dict[_Group, int] = {}
        listed = sorted(names)
        for at in range(0, len(listed), _PARTITIONS_AT_ONCE):
            rows = self._rows(
                f"SELECT {name} AS name, toYYYYMM({when}) AS month, sum(events) FROM {table}"
                f" WHERE account = {{account:String}} AND {name} IN {{names:Array(String)}}"
                " AND month IN {months:Array(UInt32)} GROUP BY name, month",
                {
                    "account": MARK_ACCOUNT,
                    "names": listed[at : at + _PARTITIONS_AT_ONCE],
                    "months": sorted({month for *_, month in touched}),
                },
            )
            found.update({(*names[mark], int(month)): int(blocks) for mark, month, blocks in rows})
        return found

    def _spanned(
        self, sql: str, spans: Sequence[_Span], column: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """A statement over all that is new, some partitions at a time."""
        rows: list[tuple[Any, ...]] = []
        for at in range(0, len(spans), _PARTITIONS_AT_ONCE):
            bounds: dict[str, Any] = {"topic": self._topic, **(parameters or {})}
            conditions = []
            for i, span in enumerate(spans[at : at + _PARTITIONS_AT_ONCE]):
                bounds |= {f"p{i}": span.partition, f"e{i}": span.since[0], f"s{i}": span.since[1]}
                bounds |= {f"f{i}": span.until[0], f"t{i}": span.until[1]}
                conditions.append(
                    f"(`partition` = {{p{i}:UInt32}} AND epoch >= {{e{i}:UInt32}} AND epoch <= {{f{i}:UInt32}}"
                    f" AND (epoch > {{e{i}:UInt32}} OR {column} >= {{s{i}:UInt64}})"
                    f" AND (epoch < {{f{i}:UInt32}} OR {column} < {{t{i}:UInt64}}))"
                )
            rows += self._rows(sql % " OR ".join(conditions), bounds)
        return rows

    def _progress(self) -> dict[int, tuple[int, int]]:
        rows = self._rows(PROGRESS, {"topic": self._topic})
        return {int(p): (int(epoch), int(position)) for p, epoch, position in rows}

    def _rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        return self._store.query(sql, parameters, SETTINGS).rows


def _spans(state: State, progress: Mapping[int, tuple[int, int]]) -> list[_Span]:
    since = {end.partition: (end.epoch, end.offset) for end in state.ends}
    spans = [_Span(p, since.get(p, (0, 0)), until) for p, until in sorted(progress.items())]
    return [span for span in spans if span.since < span.until]


def _add(state: State, ledger: Sequence[_Row]) -> State:
    """The state with these blocks."""
    ends = {end.partition: (end.epoch, end.offset) for end in state.ends}
    months = {(m.epoch, m.partition, m.month): (m.blocks, m.rows, m.in_sparse) for m in state.months}
    for row in ledger:
        if row.month:
            group = (row.epoch, row.partition, row.month)
            blocks, rows, sparse = months.get(group, (0, 0, 0))
            months[group] = (blocks + 1, rows + row.rows, sparse + row.sparse)
        else:
            ends[row.partition] = max(ends.get(row.partition, (0, 0)), (row.epoch, row.end))
    return State(
        tuple(End(p, epoch, offset) for p, (epoch, offset) in sorted(ends.items())),
        tuple(Month(*group, *counts) for group, counts in sorted(months.items())),
    )


def _verdicts(ledger: Sequence[_Row]) -> Iterator[Finding]:
    """What a block has read is what became of it, and its months have its rows."""
    by_month: dict[tuple[int, int, int], int] = {}
    for row in ledger:
        if row.month:
            place = (row.epoch, row.partition, row.start)
            by_month[place] = by_month.get(place, 0) + row.rows
    wholes = {(row.epoch, row.partition, row.start): row for row in ledger if not row.month}
    for place, row in wholes.items():
        judged = sum(getattr(row, name) for name in VERDICTS[1:])
        if row.events != judged:
            yield Finding("quick: verdicts", _where(row), f"read {row.events} events, judged {judged}")
        if not row.accepted == row.rows == by_month.get(place, 0):
            message = f"accepted {row.accepted} events, states {row.rows} rows, by month {by_month.get(place, 0)}"
            yield Finding("quick: verdicts", _where(row), message)
    for epoch, partition, start in by_month.keys() - wholes.keys():
        where = {"epoch": str(epoch), "partition": str(partition), "start": str(start)}
        yield Finding("quick: verdicts", where, "months of a block are there, the block itself is not")


def _facts(ledger: Sequence[_Row], facts: Sequence[tuple[Any, ...]]) -> Iterator[Finding]:
    """Rows, values, ids and the mark of each block and month."""
    found = {(e, p, start, month): tuple(rest) for e, p, start, month, *rest in facts}
    for row in ledger:
        if row.month:
            rows, value, ids, marks = found.pop((row.epoch, row.partition, row.start, row.month), (0, Decimal(0), 0, 0))
            where = {**_where(row), "month": str(row.month)}
            if rows != row.rows or value != row.value_sum:
                over = f"{rows - row.rows} rows and value {value - row.value_sum}"
                yield Finding("quick: blocks", where, f"facts have {over} more than the ledger")
            elif ids % _MODULUS != row.id_hash_sum:
                yield Finding("quick: blocks", where, "facts have other ids than the ledger")
            if marks != 1:
                yield Finding("quick: blocks", where, f"facts have {marks} marks of the block")
    for epoch, partition, start, month in found:
        where = {"epoch": str(epoch), "partition": str(partition), "start": str(start), "month": str(month)}
        yield Finding("quick: blocks", where, "facts have rows of a block and month that the ledger has not")


def _expected_ids(row: _Row) -> tuple[int, ...]:
    """Ids, their sum and marks that a row of the ledger stands for."""
    return (0, 0, 1) if row.month else (row.accepted, row.id_hash_sum, 0)


def _totals(
    check: str,
    ledger: Sequence[_Row],
    found: Sequence[tuple[Any, ...]],
    expected: Callable[[_Row], tuple[int, ...]],
    names: Sequence[str],
) -> Iterator[Finding]:
    """Sums over all new blocks of an epoch and partition, which have no block's name on them."""
    stated: dict[tuple[int, int], tuple[int, ...]] = {}
    spans: dict[tuple[int, int], tuple[int, int]] = {}
    for row in ledger:
        life = (row.epoch, row.partition)
        sums = stated.get(life, (0,) * len(names))
        stated[life] = tuple((a + b) % _MODULUS for a, b in zip(sums, expected(row), strict=True))
        low, high = spans.get(life, (row.start, row.end))
        spans[life] = (min(low, row.start), max(high, row.end))
    there = {(e, p): tuple(int(value) % _MODULUS for value in rest) for e, p, *rest in found}
    for (epoch, partition), sums in stated.items():
        other = there.get((epoch, partition), (0,) * len(names))
        low, high = spans[epoch, partition]
        where = {"epoch": str(epoch), "partition": str(partition), "start": str(low), "end": str(high)}
        differ = [f"{name}: {b} for the ledger's {a}" for name, a, b in zip(names, sums, other, strict=True) if a != b]
        if differ:
            yield Finding(check, where, "; ".join(differ))


def _marks(
    after: State,
    touched: set[_Group],
    marks: Mapping[str, Mapping[_Group, int]],
    stated: Mapping[_Group, Month],
) -> Iterator[Finding]:
    """Each block has arrived once in each rollup that it marks: as many marks as such blocks, and no more than those
    under way more."""
    blocks = {(m.epoch, m.partition, m.month): m for m in after.months}
    for table, found in marks.items():
        for group in sorted(touched):
            over = found.get(group, 0) - blocks[group].marks(table)
            if not 0 <= over <= (stated[group].marks(table) if group in stated else 0):
                where = dict(zip(("epoch", "partition", "month"), map(str, group), strict=True))
                yield Finding(f"quick: rollup {table}", where, f"the rollup has {over:+d} blocks against the ledger")


def _parts(after: State, parts: Mapping[tuple[str, int], int], stated: Mapping[_Group, Month]) -> Iterator[Finding]:
    """Rows of facts by month, and of ids, as the parts count them: events and one mark for each block and month."""
    settled_: dict[int, int] = {}
    under_way: dict[int, int] = {}
    for entry in after.months:
        settled_[entry.month] = settled_.get(entry.month, 0) + entry.rows + entry.blocks
    for entry in stated.values():
        under_way[entry.month] = under_way.get(entry.month, 0) + entry.rows + entry.blocks
    found = {month: rows for (table, month), rows in parts.items() if table == "events"}
    for month in sorted(settled_.keys() | under_way.keys() | found.keys()):
        over = found.get(month, 0) - settled_.get(month, 0)
        if not 0 <= over <= under_way.get(month, 0):
            message = f"facts have {over:+d} rows against the ledger"
            yield Finding("quick: rows", {"table": "events", "month": str(month)}, message)
    over = parts.get(("event_ids", 0), 0) - sum(settled_.values())
    if not 0 <= over <= sum(under_way.values()):
        yield Finding("quick: rows", {"table": "event_ids"}, f"event_ids have {over:+d} rows against the ledger")


def _where(row: _Row) -> dict[str, str]:
    return {"epoch": str(row.epoch), "partition": str(row.partition), "start": str(row.start)}
