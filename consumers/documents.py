"""What answers look like as JSON: decimals as strings, instants as RFC 3339 in UTC."""

from datetime import UTC, datetime
from typing import Any

from consumers.audit import ALL_TIME, AuditReport, Finding
from consumers.audit_deep import Deep
from consumers.audit_repair import RepairReport
from consumers.auditor import Audited
from consumers.usage import UsageResult, decimal_text


def usage_document(result: UsageResult) -> dict[str, Any]:
    """A usage answer. `data` has one object for each window and group in which something happened."""
    query = result.query
    return {
        "account": query.account,
        "start": instant_text(query.start),
        "end": instant_text(query.end),
        "zone": query.zone,
        "granularity": query.granularity,
        "group_by": list(query.groups),
        "complete_until": None if result.complete_until is None else instant_text(result.complete_until),
        "lag_s": None if result.lag_s is None else decimal_text(result.lag_s),
        "read_from": list(result.read_from),
        "data": [
            {
                "start": instant_text(row.start),
                "end": instant_text(row.end),
                "group": dict(row.group),
                "aggregation": row.aggregation,
                "events": row.events,
                "value": None if row.value is None else decimal_text(row.value),
            }
            for row in result.rows
        ],
    }


def audit_document(report: AuditReport, deep: Deep | None = None, repair: RepairReport | None = None) -> dict[str, Any]:
    """An audit's report, with what was read from the log and what was rebuilt where that was asked for. `drift` and
    `findings` are those of store and log together."""
    return {
        "drift": report.drift + (deep.drift if deep else 0),
        "scope": {
            "account": report.scope.account,
            "start": None if report.scope.period.start == ALL_TIME.start else instant_text(report.scope.period.start),
            "end": None if report.scope.period.end == ALL_TIME.end else instant_text(report.scope.period.end),
            "by_scope": ["months of facts", "rollups"],
            "whole": ["ledger", "ids", "positions", "rejects"],
        },
        "events": report.events,
        "accepted": report.accepted,
        "duplicates": report.duplicates,
        "conflicts": report.conflicts,
        "rejected": report.rejected,
        "rerouted": report.rerouted,
        "blocks": report.blocks,
        "stored": report.stored,
        "cells": report.cells,
        "findings": [_finding_document(finding) for finding in (*report.findings, *(deep.findings if deep else ()))],
        "gaps": [_finding_document(gap) for gap in report.gaps],
        **({} if deep is None else {"deep": _deep_document(deep)}),
        **({} if repair is None else {"repair": _repair_document(repair)}),
    }


def audited_document(audited: Audited) -> dict[str, Any]:
    """One audit of the running ones."""
    return {
        "at": instant_text(audited.at),
        "scope": audited.scope,
        "drift": audited.drift,
        **audited.counts,
        "blocks": audited.blocks,
        "cells": audited.cells,
        "seconds": round(audited.seconds, 3),
        "findings": list(audited.findings),
    }


def _deep_document(deep: Deep) -> dict[str, Any]:
    return {
        "drift": deep.drift,
        "events": deep.events,
        "blocks": deep.blocks,
        "not_retained": {
            "events": deep.events_not_retained,
            "offsets": [
                {"partition": partition, "start": start, "end": end}
                for partition, (start, end) in sorted(deep.not_retained.items())
            ],
        },
        "skipped": list(deep.skipped),
    }


def _repair_document(repair: RepairReport) -> dict[str, Any]:
    return {
        "rebuilt": [
            {
                "table": last.table,
                "year": last.year,
                "facts": last.facts,
                "blocks_added": last.blocks,
                "partitions_open": list(last.open),
            }
            for last in repair.rebuilt
        ],
        "beyond": list(repair.beyond),
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {"check": finding.check, "where": dict(finding.where), "message": finding.message}


def instant_text(instant: datetime) -> str:
    """RFC 3339 in UTC, with a fraction only where there is one."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
