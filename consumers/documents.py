"""What answers look like as JSON: decimals as strings, instants as RFC 3339 in UTC."""

from datetime import UTC, datetime
from typing import Any

from consumers.audit import AuditReport, Finding
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


def audit_document(report: AuditReport) -> dict[str, Any]:
    """An audit's report."""
    return {
        "drift": report.drift,
        "events": report.events,
        "accepted": report.accepted,
        "duplicates": report.duplicates,
        "conflicts": report.conflicts,
        "rejected": report.rejected,
        "rerouted": report.rerouted,
        "blocks": report.blocks,
        "stored": report.stored,
        "cells": report.cells,
        "findings": [_finding_document(finding) for finding in report.findings],
        "gaps": [_finding_document(gap) for gap in report.gaps],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {"check": finding.check, "where": dict(finding.where), "message": finding.message}


def instant_text(instant: datetime) -> str:
    """RFC 3339 in UTC, with a fraction only where there is one."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
