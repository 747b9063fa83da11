"""The audit: proves from the store alone that every event was counted exactly once (design §3, conservation law).

Rules: nothing is taken from another check's word. The ledger's ranges are gapless and do not overlap; what a block
read is what became of it; accepted = rows in facts = distinct positions = distinct ids; facts and corrections make up
every rollup, cell by cell, to the last digit. Work is cut into slices so that memory is bounded, and the statements
spill to disk past that. On a store that is being written, a finding counts only if it is there a second time with
the same difference. Calls block.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from consumers.audit_sql import (
    BLOCK_SUMS,
    COUNTS,
    FACT_COUNTS,
    GAPS,
    IDS,
    MONTHS,
    POSITIONS,
    PROGRESS,
    RANGES,
    REJECTS,
    ROLLUPS,
    VERDICT_SUMS,
    VERDICTS,
    RollupCheck,
    rollup_cells,
)
from consumers.usage_reader import Reader
from consumers.windows import Period

FINDINGS_MAX: Final = 100  # of each check; drift counts all of them
SLICE_ROWS: Final = 4_000_000  # facts that one statement compares at once
_SETTINGS: Final = {"max_execution_time": 600, "max_bytes_before_external_group_by": 1 << 30}
_ALL_TIME: Final = Period(datetime(1970, 1, 1, tzinfo=UTC), datetime(2106, 1, 1, tzinfo=UTC))
_NO_PARTITION: Final = (4_294_967_295, 0, 0)  # an empty array has no type to compare with

_BLOCK: Final = ("epoch", "partition", "start")
_CHECKS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("ranges", RANGES, (*_BLOCK, "end")),
    ("verdicts", VERDICT_SUMS, _BLOCK),
    ("blocks", BLOCK_SUMS, (*_BLOCK, "month")),
    ("rejects", REJECTS, _BLOCK),
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
class AuditReport:
    """What the audit counted and what does not add up. `drift`: number of broken promises, 0 when all hold;
    `findings` are the first FINDINGS_MAX of each check. `stored`: rows in facts; `cells`: compared in rollups.
    `gaps`: ranges of events that were lost before they were counted, and given up by a person who said why. They are no
    drift, since they are told; they are told every time."""

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
    gaps: tuple[Finding, ...] = ()


class Auditor:
    """Runs the audit over the whole store, the cell checks over one account or period where that is asked for."""

    def __init__(self, store: Reader, *, topic: str) -> None:
        self._store = store
        self._topic = topic

    def run(self, *, account: str | None = None, period: Period | None = None) -> AuditReport:
        """Check everything. Raises what the store raises. Blocks: some seconds for a million facts."""
        scope = self._scope()
        counts, stored, conservation = self._conservation(scope)
        if conservation:
            again = set(map(str, self._conservation(scope)[2]))
            conservation = [finding for finding in conservation if str(finding) in again]
        drift, findings = len(conservation), list(conservation)
        gaps, untold = self._gaps()
        drift, findings = drift + len(untold), [*findings, *untold]
        for check, sql, keys, parameters in _statements(scope, stored):
            rows = self._twice(sql, parameters)
            drift += len(rows)
            findings += _findings(check, keys, rows)
        cells = 0
        for slice_ in self._slices(period or _ALL_TIME):
            for rollup in ROLLUPS:
                compared, broken, found = self._cells(rollup, account, slice_)
                cells, drift = cells + compared, drift + broken
                findings += found
        return AuditReport(
            **counts, stored=stored, cells=cells, drift=drift, findings=tuple(findings), gaps=tuple(gaps)
        )

    def _scope(self) -> dict[str, Any]:
        """The topic, and how far each partition is settled; parameters of the ledger's statements."""
        rows = [*self._rows(PROGRESS, {"topic": self._topic}), _NO_PARTITION]
        partitions, epochs, positions = (list(column) for column in zip(*rows, strict=True))
        return {"topic": self._topic, "partitions": partitions, "epochs": epochs, "positions": positions}

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

    def _cells(self, rollup: RollupCheck, account: str | None, slice_: Period) -> tuple[int, int, list[Finding]]:
        """Cells compared, cells that differ, and the first of those."""
        statement = rollup_cells(rollup, account, slice_)
        if statement is None:
            return 0, 0, []
        compared, broken, rows = self._rows(*statement)[0]
        if broken:
            again = self._rows(*statement)[0]
            standing = set(map(tuple, again[2]))
            rows = [row for row in rows if tuple(row) in standing]
            broken = min(broken, again[1]) if rows else 0
        return compared, broken, _findings(f"rollup {rollup.table}", rollup.keys, rows)

    def _twice(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        rows = self._rows(sql, parameters)
        if not rows:
            return rows
        again = set(self._rows(sql, parameters))
        return [row for row in rows if row in again]

    def _rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        return self._store.query(sql, parameters, _SETTINGS).rows


def _statements(scope: Mapping[str, Any], stored: int) -> Iterator[tuple[str, str, tuple[str, ...], Mapping[str, Any]]]:
    for check, sql, keys in _CHECKS:
        yield check, sql, keys, scope
    slices = max(1, -(-stored // SLICE_ROWS))
    for check, sql, keys in _SLICED_CHECKS:
        for slice_ in range(slices):
            yield check, sql, keys, {**scope, "slices": slices, "slice": slice_}


def _findings(check: str, keys: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Finding]:
    """Findings of rows that are the keys' values, then the message."""
    return [
        Finding(check, {key: str(value) for key, value in zip(keys, row[:-1], strict=True)}, str(row[-1]))
        for row in rows[:FINDINGS_MAX]
    ]
