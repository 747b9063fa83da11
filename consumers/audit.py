"""The audit: proves from the store alone that every event was counted exactly once (design §3, conservation law).

Rules: nothing is taken from another check's word. The ledger's ranges are gapless and do not overlap; what a block
read is what became of it; accepted = rows in facts = distinct positions = distinct ids; facts and corrections make up
every rollup, cell by cell, to the last digit. Work is cut into slices so that memory is bounded, and the statements
spill to disk past that. On a store that is being written, a finding counts only if it is there with the same
difference however often one looks. Calls block.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from consumers.audit_sql import (
    BLOCK_SUMS,
    CELLS_FOLLOWED,
    CELLS_SHOWN,
    COUNTS,
    FACT_COUNTS,
    GAPS,
    IDS,
    MONTHS,
    POSITIONS,
    PROGRESS,
    RANGES,
    REJECTS,
    REPEATS,
    ROLLUPS,
    VERDICT_SUMS,
    VERDICTS,
    RollupCheck,
    rollup_cells,
    rollup_differences,
    settled_until,
)
from consumers.windows import Period
from pipeline.ports import Reader

_R = TypeVar("_R")
FINDINGS_MAX: Final = 100  # of each check; drift counts all of them
SLICE_ROWS: Final = 4_000_000  # facts that one statement compares at once
SETTINGS: Final = {"max_execution_time": 600, "max_bytes_before_external_group_by": 1 << 30}
PAUSES_S: Final = (0.2, 0.5, 1.0)
ALL_TIME: Final = Period(datetime(1970, 1, 1, tzinfo=UTC), datetime(2106, 1, 1, tzinfo=UTC))

_BLOCK: Final = ("epoch", "partition", "start")
_CHECKS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("ranges", RANGES, (*_BLOCK, "end")),
    ("verdicts", VERDICT_SUMS, _BLOCK),
    ("blocks", BLOCK_SUMS, (*_BLOCK, "month")),
    ("rejects", REJECTS, _BLOCK),
    ("repeats", REPEATS, _BLOCK),
)
_SLICED_CHECKS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("ids", IDS, ("id_hash",)),
    ("positions", POSITIONS, ("epoch", "partition", "offset", "line")),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise. `check` is stable, `where` names the block, position or cell, `message` is for people."""

    check: str
    where: Mapping[str, str]
    message: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What cells and months of facts were compared: one account or all (None), and a period of event time. The ledger,
    ids, positions and rejects are not by event time: they are always checked whole."""

    account: str | None = None
    period: Period = ALL_TIME

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.account is None and self.period == ALL_TIME


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audit counted and what does not add up. `drift`: number of broken promises, 0 when all hold;
    `findings` are the first FINDINGS_MAX of each check. `stored`: rows in facts; `cells`: compared in rollups;
    `broken`: partitions (table, year) of rollups with cells that differ. `gaps`: ranges of events that were lost before
    they were counted, and given up by a person who said why. They are no drift, since they are told; they are told
    every time."""

    events: int
    accepted: int
    duplicates: int
    conflicts: int
    rejected: int
    rerouted: int
    blocks: int
    stored: int
    cells: int
    drift: int
    findings: tuple[Finding, ...]
    scope: Scope = Scope()
    broken: tuple[tuple[str, int], ...] = ()
    gaps: tuple[Finding, ...] = ()


class Auditor:
    """Runs the audit over the whole store, the checks of cells and months over one account or period where asked for.

    `pauses_s`: a finding on a store that is being written must be there again after each of these.
    """

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

    def run(self, *, account: str | None = None, period: Period | None = None) -> AuditReport:
        """Check everything. Raises what the store raises. Blocks: some seconds for a million facts."""
        about = Scope(account, period or ALL_TIME)
        scope = self._scope(about.period)
        counts, stored, conservation = self._conservation(scope)
        standing = self._standing(conservation, lambda: self._conservation(scope)[2])
        drift, findings = len(standing), list(standing)
        gaps, untold = self._gaps()
        drift, findings = drift + len(untold), [*findings, *untold]
        for check, sql, keys, parameters in _statements(scope, stored):
            look = partial(self._rows, sql, parameters)
            rows = self._standing(look(), look)
            drift += len(rows)
            findings += found(check, keys, rows)
        cells = 0
        broken: set[tuple[str, int]] = set()
        for slice_ in self._slices(about.period):
            for rollup in ROLLUPS:
                compared, differ, differing, years = self._cells(rollup, account, slice_)
                cells, drift = cells + compared, drift + differ
                findings += differing
                broken |= {(rollup.table, year) for year in years}
        return AuditReport(
            **counts,
            stored=stored,
            cells=cells,
            drift=drift,
            findings=tuple(findings),
            scope=about,
            broken=tuple(sorted(broken)),
            gaps=tuple(gaps),
        )

    def _scope(self, period: Period) -> dict[str, Any]:
        """The topic, how far each partition is settled, the months of the period; parameters of the statements."""
        last = period.end - timedelta(microseconds=1)
        progress = self._rows(PROGRESS, {"topic": self._topic})
        return {
            **settled_until(self._topic, {p: (epoch, offset) for p, epoch, offset in progress}),
            "month_from": period.start.year * 100 + period.start.month,
            "month_to": last.year * 100 + last.month,
        }

    def _conservation(self, scope: Mapping[str, Any]) -> tuple[dict[str, int], int, list[Finding]]:
        counts = dict(zip((*VERDICTS, "blocks"), map(int, self._rows(COUNTS, scope)[0]), strict=True))
        stored, ids = map(int, self._rows(FACT_COUNTS, scope)[0])
        verdicts = sum(counts[name] for name in VERDICTS[1:])
        findings = [
            Finding("conservation", {"count": name}, f"{name}: {found - expected:+d} against the ledger's {against}")
            for name, found, against, expected in (
                ("events by verdict", verdicts, "events", counts["events"]),
                ("rows in facts", stored, "accepted", counts["accepted"]),
                ("ids", ids, "accepted", counts["accepted"]),
            )
            if found != expected
        ]
        return counts, stored, findings

    def _gaps(self) -> tuple[list[Finding], list[Finding]]:
        """Ranges that were given up: those that are told, and those that nobody has told of."""
        told: list[Finding] = []
        untold: list[Finding] = []
        for *where, known, message in self._rows(GAPS, {"topic": self._topic}):
            place = {key: str(value) for key, value in zip((*_BLOCK, "end"), where, strict=True)}
            if known:
                told.append(Finding("told_gap", place, message))
            else:
                untold.append(Finding("ranges", place, message))
        return told, untold

    def _slices(self, period: Period) -> Iterator[Period]:
        """All of the period, cut between months into slices of a bounded number of facts."""
        start, rows = period.start, 0
        for month, facts in self._rows(MONTHS):
            first = datetime(month // 100, month % 100, 1, tzinfo=UTC)
            if rows and rows + facts > SLICE_ROWS and start < first < period.end:
                yield Period(start, first)
                start, rows = first, 0
            rows += facts
        yield Period(start, period.end)

    def _cells(
        self, rollup: RollupCheck, account: str | None, slice_: Period
    ) -> tuple[int, int, list[Finding], set[int]]:
        """Cells compared, cells that differ, the first of those, and the years in which they lie."""
        look = partial(self._differing, rollup_cells(rollup, account, slice_))
        compared, differ, differing = look()

        def again() -> Sequence[tuple[int, int]]:
            nonlocal differ
            _, now, still = look()
            differ = min(differ, now)
            return still

        standing = self._standing(differing, again)
        if not standing:
            return compared, 0, [], set()
        shown = [fingerprint for fingerprint, _ in standing[:CELLS_SHOWN]]
        rows = self._rows(*rollup_differences(rollup, account, slice_, shown))
        years = {year for _, year in standing}
        drift = differ if differ > CELLS_FOLLOWED else len(standing)
        return compared, drift, found(f"rollup {rollup.table}", rollup.keys, rows), years

    def _differing(self, statement: tuple[str, Mapping[str, Any]]) -> tuple[int, int, Sequence[tuple[int, int]]]:
        ((compared, differ, differing),) = self._rows(*statement)
        return compared, differ, [(fingerprint, year) for fingerprint, year in differing]

    def _standing(self, rows: Sequence[_R], again: Callable[[], Sequence[_R]]) -> Sequence[_R]:
        """What is found again with the same difference however often one looks: the rest was under way."""
        for pause_s in self._pauses_s:
            if not rows:
                break
            self._sleep(pause_s)
            seen = set(map(repr, again()))
            rows = [row for row in rows if repr(row) in seen]
        return rows

    def _rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        return self._store.query(sql, parameters, SETTINGS).rows


def _statements(scope: Mapping[str, Any], stored: int) -> Iterator[tuple[str, str, tuple[str, ...], Mapping[str, Any]]]:
    for check, sql, keys in _CHECKS:
        yield check, sql, keys, scope
    slices = max(1, -(-stored // SLICE_ROWS))
    for check, sql, keys in _SLICED_CHECKS:
        for slice_ in range(slices):
            yield check, sql, keys, {**scope, "slices": slices, "slice": slice_}


def found(check: str, keys: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Finding]:
    """Findings of rows that are the keys' values, then the message."""
    return [
        Finding(check, {key: str(value) for key, value in zip(keys, row[:-1], strict=True)}, str(row[-1]))
        for row in rows[:FINDINGS_MAX]
    ]
