"""Answers for people and programs on a terminal: tables with a small bar chart, JSON, CSV.

Rules: values in, text out. Colour and width are the console's affair; a file or pipe gets plain text.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from consumers.audit import AuditReport, Finding
from consumers.audit_deep import Deep
from consumers.audit_repair import RepairReport
from consumers.documents import audit_document, instant_text, usage_document
from consumers.terminal import csv_text as _csv
from consumers.terminal import escaped as _escaped
from consumers.terminal import table_text as _text
from consumers.usage import DIMENSION_PREFIX, UsageResult, UsageRow, decimal_text, zone_of

OutputFormat = Literal["table", "json", "csv"]
BAR_CHARS: Final = 24
_PARTS: Final = " ▏▎▍▌▋▊▉█"


def render_usage(result: UsageResult, fmt: OutputFormat, console: Console | None = None) -> str:
    """A usage answer as text that ends with a newline. `console`: whose width and colours a table takes."""
    if fmt == "json":
        return json.dumps(usage_document(result), indent=2, ensure_ascii=False) + "\n"
    if fmt == "csv":
        return _usage_csv(result)
    return _text(_usage_table(result), console) + _completeness(result)


def render_audit(
    report: AuditReport,
    fmt: OutputFormat,
    console: Console | None = None,
    *,
    deep: Deep | None = None,
    repair: RepairReport | None = None,
) -> str:
    """An audit's report as text that ends with a newline; as CSV its findings. `deep`, `repair`: what was read from
    the log and what was rebuilt, where that was asked for."""
    if fmt == "json":
        return json.dumps(audit_document(report, deep, repair), indent=2, ensure_ascii=False) + "\n"
    findings = (*report.findings, *(deep.findings if deep else ()))
    if fmt == "csv":
        told = (*findings, *report.gaps)
        rows = ((f.check, " ".join(f"{k}={v}" for k, v in f.where.items()), f.message) for f in told)
        return _csv(("check", "where", "message"), rows)
    drift = report.drift + (deep.drift if deep else 0)
    counts = Table(title="Audit", show_header=False)
    counts.add_column("what")
    counts.add_column("count", justify="right")
    for name in ("events", "accepted", "duplicates", "conflicts", "rejected", "rerouted", "blocks", "stored", "cells"):
        counts.add_row(name, f"{getattr(report, name):,}")
    if deep:
        counts.add_row("read again from the log", f"{deep.events:,}")
    counts.add_row("drift", f"{drift:,}", style="bold red" if drift else "bold green")
    text = _text(counts, console) + _audited(report) + _read_again(deep) + _rebuilt(repair)
    if report.gaps:
        text += _text(_findings(f"{len(report.gaps):,} ranges of events were lost and given up", report.gaps), console)
    if not drift:
        left = "event that was not lost" if report.gaps else "event"
        return text + f"Every {left} counts once; facts, ids, ledger and every rollup agree.\n"
    title = f"{drift:,} broken promises, the first {len(findings):,}"
    return text + _text(_findings(title, findings), console)


def _read_again(deep: Deep | None) -> str:
    """What of the log could not be compared."""
    if deep is None:
        return ""
    gone = [
        f"Partition {partition}: offsets {start} to {end - 1} are not retained any more.\n"
        for partition, (start, end) in sorted(deep.not_retained.items())
    ]
    if gone:
        gone.append(f"{deep.events_not_retained:,} events were not compared with the log for that.\n")
    return "".join(gone + [f"Not compared with the log: {why}.\n" for why in deep.skipped])


def _rebuilt(repair: RepairReport | None) -> str:
    """What a repair has done and what it could not."""
    if repair is None:
        return ""
    lines = [f"Rebuilt {r.table} {r.year} from {r.facts:,} facts, {r.blocks:,} blocks added." for r in repair.rebuilt]
    lines += [
        f"{r.table} {r.year}: partitions {', '.join(map(str, r.open))} have a block that no worker has finished; "
        "start the workers, then repair again."
        for r in repair.rebuilt
        if r.open
    ]
    lines += [f"Not to be repaired from here: {line}." for line in repair.beyond]
    return "\n".join(lines or ["Nothing to rebuild."]) + "\n"


def _audited(report: AuditReport) -> str:
    """What a narrowed audit has left out; nothing when it was whole."""
    if report.scope.whole:
        return ""
    start, end = (instant_text(instant) for instant in report.scope.period)
    whose = "all accounts" if report.scope.account is None else f"account {report.scope.account}"
    return (
        f"Rollups of {whose} in cells that touch {start} to {end}, facts of those months against the ledger.\n"
        "Not by event time, and checked whole: ledger, verdicts, ids, positions, rejects and the counts above.\n"
    )


def _findings(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title)
    for column in ("check", "where", "what"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, " ".join(f"{k}={v}" for k, v in finding.where.items()), finding.message)
    return table


def _usage_table(result: UsageResult) -> Table:
    query = result.query
    title = f"Usage from {_local(result, query.start)} to {_local(result, query.end)} ({query.zone})"
    table = Table(title=title)
    if query.granularity != "none":
        table.add_column(query.granularity)
    for group in query.groups:
        table.add_column(group.removeprefix(DIMENSION_PREFIX), overflow="fold")
    table.add_column("events", justify="right")
    table.add_column("usage", justify="right")
    table.add_column("")
    largest = _largest(result.rows)
    for row in result.rows:
        window = [_local(result, row.start)] if query.granularity != "none" else []
        usage = "" if row.value is None else f"{decimal_text(row.value)}"
        scale = largest.get(_subject(row), Decimal(0))
        table.add_row(*window, *map(_escaped, row.group.values()), f"{row.events:,}", usage, bar(row.value, scale))
    return table


def bar(value: Decimal | None, largest: Decimal) -> str:
    """A bar of at most BAR_CHARS characters, in eighths; nothing for values that are not positive."""
    if value is None or value <= 0 or largest <= 0:
        return ""
    eighths = max(1, int(value * BAR_CHARS * 8 / largest))
    return _PARTS[8] * (eighths // 8) + _PARTS[eighths % 8].strip()


def _subject(row: UsageRow) -> str:
    """What bars are compared within: features have units of their own."""
    return row.group.get("feature", "")


def _largest(rows: Sequence[UsageRow]) -> dict[str, Decimal]:
    largest: dict[str, Decimal] = {}
    for row in rows:
        if row.value is not None:
            largest[_subject(row)] = max(row.value, largest.get(_subject(row), Decimal(0)))
    return largest


def _completeness(result: UsageResult) -> str:
    if result.complete_until is None:
        return "No worker has reported yet: this may be incomplete (see `tally status`).\n"
    lag = "" if result.lag_s is None else f" ({decimal_text(result.lag_s)} s ago)"
    return f"Complete until {_local(result, result.complete_until)}{lag}: everything acknowledged before is counted.\n"


def _usage_csv(result: UsageResult) -> str:
    groups = result.query.groups
    rows = (
        (
            instant_text(row.start),
            instant_text(row.end),
            *row.group.values(),
            row.aggregation,
            row.events,
            "" if row.value is None else decimal_text(row.value),
        )
        for row in result.rows
    )
    return _csv(("start", "end", *groups, "aggregation", "events", "value"), rows)


def _local(result: UsageResult, instant: datetime) -> str:
    local = instant.astimezone(zone_of(result.query.zone))
    return local.isoformat(sep=" ", timespec="seconds" if local.second or local.microsecond else "minutes")
