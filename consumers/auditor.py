"""The running audit: a quick one every minute, a full one every hour, each kept in the table `audits`.

Rules: the first audit of a store is a full one; a full one is due again after its interval, whoever ran the last, so
that a restart neither skips nor repeats it. A store that is away is a failure that is counted and tried again; nothing
ends the loop but `stopping`. Calls block.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

import msgspec
import pyarrow as pa
import structlog

from consumers.audit import Auditor, Finding
from consumers.audit_quick import QuickAuditor, State, TooMuchIsNew
from consumers.audit_sql import VERDICTS
from pipeline.ports import Reader, StoreError, StoreUnavailable

log = structlog.get_logger(__name__)

FINDINGS_KEPT: Final = 20
_LAST: Final = """SELECT
    argMaxIf(state, at, state != '') AS state,
    toUnixTimestamp64Milli(maxIf(at, scope = 'full')) AS full_ms
FROM audits
WHERE topic = {topic:String}"""
_SCHEMA: Final = pa.schema(
    [
        ("topic", pa.string()),
        ("at", pa.timestamp("ms", "UTC")),
        ("scope", pa.string()),
        ("drift", pa.uint64()),
        *[(name, pa.uint64()) for name in VERDICTS],
        ("blocks", pa.uint64()),
        ("cells", pa.uint64()),
        ("seconds", pa.float64()),
        ("findings", pa.list_(pa.string())),
        ("state", pa.string()),
    ]
)


class AuditStore(Reader, Protocol):
    """The store, as far as the running audit needs it."""

    def insert_arrow(self, table: str, rows: pa.Table, settings: Mapping[str, Any] | None = None) -> None:
        """Insert rows by column name. Blocks."""


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit as it is kept."""

    at: datetime
    scope: Literal["full", "quick"]
    drift: int
    counts: Mapping[str, int]  # VERDICTS
    blocks: int
    cells: int
    seconds: float
    findings: tuple[str, ...]
    state: str


class RunningAudit:
    """Audits one store again and again. `heard`: told of each audit; `failed`: of each that could not be done."""

    def __init__(
        self,
        store: AuditStore,
        *,
        topic: str,
        every_s: float,
        full_every_s: float,
        heard: Callable[[Audited], None] = lambda _: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._topic = topic
        self._every_s = every_s
        self._full_every_s = full_every_s
        self._heard = heard
        self._failed = failed
        self._full = Auditor(store, topic=topic)
        self._quick = QuickAuditor(store, topic=topic)

    def run(self, stopping: threading.Event) -> None:
        """Audit until told to stop; returns after the audit that is under way."""
        wait_s = 0.0
        while not stopping.wait(wait_s):
            began = time.monotonic()
            try:
                self.once()
            except (StoreError, StoreUnavailable) as error:
                self._failed()
                log.warning("audit_failed", error=str(error), retry_s=self._every_s)
            wait_s = max(1.0, self._every_s - (time.monotonic() - began))

    def once(self) -> Audited:
        """The audit that is due: kept, told and logged. Raises what the store raises."""
        state, full_ms = self._last()
        due = state is None or time.time() * 1000 - full_ms >= self._full_every_s * 1000
        audited = self.full() if due or state is None else self.quick(state)
        self._keep(audited)
        self._heard(audited)
        if audited.drift:
            log.error("audit_drift", scope=audited.scope, drift=audited.drift, findings=audited.findings[:3])
        return audited

    def full(self) -> Audited:
        """The whole store."""
        began = time.monotonic()
        state = self._quick.state()
        report = self._full.run()
        return Audited(
            datetime.now(UTC),
            "full",
            report.drift,
            {name: getattr(report, name) for name in VERDICTS},
            report.blocks,
            report.cells,
            time.monotonic() - began,
            _texts(report.findings),
            msgspec.json.encode(state).decode(),
        )

    def quick(self, state: State) -> Audited:
        """What is new since the state; the whole store where that is too much."""
        began = time.monotonic()
        try:
            report = self._quick.run(state)
        except TooMuchIsNew as reason:
            log.info("full_audit", reason=str(reason))
            return self.full()
        return Audited(
            datetime.now(UTC),
            "quick",
            report.drift,
            {name: getattr(report, name) for name in VERDICTS},
            report.blocks,
            report.marks,
            time.monotonic() - began,
            _texts(report.findings),
            "" if report.drift else msgspec.json.encode(report.state).decode(),
        )

    def _last(self) -> tuple[State | None, int]:
        """Where the last audit ended, and when the last full one did (milliseconds; 0: never)."""
        ((text, full_ms),) = self._store.query(_LAST, {"topic": self._topic}).rows
        return (msgspec.json.decode(text, type=State) if text else None), int(full_ms)

    def _keep(self, audited: Audited) -> None:
        row = {
            "topic": self._topic,
            "at": audited.at,
            "scope": audited.scope,
            "drift": audited.drift,
            **audited.counts,
            "blocks": audited.blocks,
            "cells": audited.cells,
            "seconds": audited.seconds,
            "findings": list(audited.findings),
            "state": audited.state,
        }
        self._store.insert_arrow("audits", pa.Table.from_pylist([row], _SCHEMA))


def _texts(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(
        f"{found.check} {' '.join(f'{name}={value}' for name, value in found.where.items())}: {found.message}"
        for found in findings[:FINDINGS_KEPT]
    )
