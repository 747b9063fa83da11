"""Answers for people and programs on a terminal: tables with a small bar chart, JSON, CSV.

Rules: values in, text out. Colour and width are the console's affair; a file or pipe gets plain text.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from consumers.audit import AuditReport, Finding
from consumers.documents import audit_document, instant_text, usage_document
from consumers.usage import DIMENSION_PREFIX, UsageResult, UsageRow, decimal_text, zone_of

OutputFormat = Literal["table", "json", "csv"]
BAR_CHARS: Final = 24
_PARTS: Final = " ▏▎▍▌▋▊▉█"
_PLAIN_WIDTH: Final = 200  # of a file or pipe


def render_usage(result: UsageResult, fmt: OutputFormat, console: Console | None = None) -> str:
    """A usage answer as text that ends with a newline. `console`: whose width and colours a table takes."""
    if fmt == "json":
        return json.dumps(usage_document(result), indent=2, ensure_ascii=False) + "\n"
    if fmt == "csv":
        return _usage_csv(result)
    return _text(_usage_table(result), console) + _completeness(result)


def render_audit(report: AuditReport, fmt: OutputFormat, console: Console | None = None) -> str:
    """An audit's report as text that ends with a newline; as CSV its findings."""
    if fmt == "json":
        return json.dumps(audit_document(report), indent=2, ensure_ascii=False) + "\n"
    if fmt == "csv":
        all_ = (*report.findings, *report.gaps)
        rows = ((f.check, " ".join(f"{k}={v}" for k, v in f.where.items()), f.message) for f in all_)
        return _csv(("check", "where", "message"), rows)
    counts = Table(title="Audit", show_header=False)
    counts.add_column("what")
    counts.add_column("count", justify="right")
    for name in ("events", "accepted", "duplicates", "conflicts", "rejected", "rerouted", "blocks", "stored", "cells"):
        counts.add_row(name, f"{getattr(report, name):,}")
    counts.add_row("drift", f"{report.drift:,}", style="bold red" if report.drift else "bold green")
    text = _text(counts, console)
    if report.gaps:
        text += _text(_findings(f"{len(report.gaps):,} ranges of events were lost and given up", report.gaps), console)
    if not report.drift:
        left = "event that was not lost" if report.gaps else "event"
        return text + f"Every {left} counts once; facts, ids, ledger and every rollup agree.\n"
    title = f"{report.drift:,} broken promises, the first {len(report.findings):,}"
    return text + _text(_findings(title, report.findings), console)


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


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def _local(result: UsageResult, instant: datetime) -> str:
    local = instant.astimezone(zone_of(result.query.zone))
    return local.isoformat(sep=" ", timespec="seconds" if local.second or local.microsecond else "minutes")


def _escaped(text: str) -> str:
    """Square brackets are markup to rich."""
    return text.replace("[", "\\[")


def _text(table: Table, console: Console | None) -> str:
    target = console or Console(width=_PLAIN_WIDTH, color_system=None, force_terminal=False)
    with target.capture() as capture:
        target.print(table)
    return capture.get()
