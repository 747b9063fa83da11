"""Refused lines and replays on a terminal. Values in, text out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from consumers.documents import instant_text
from consumers.rejects import RejectDetail, RejectRow
from consumers.tables import OutputFormat
from consumers.terminal import csv_text, escaped, table_text

_CSV = tuple(field.name for field in msgspec.structs.fields(RejectRow))


def render_rejects(rows: Sequence[RejectRow], fmt: OutputFormat, console: Console | None = None) -> str:
    """A list of refused lines as text that ends with a newline."""
    if fmt == "json":
        return _json([msgspec.to_builtins(row) for row in rows])
    if fmt == "csv":
        return csv_text(_CSV, ([_cell(getattr(row, name)) for name in _CSV] for row in rows))
    table = Table(title=f"{len(rows):,} rejects, the newest first")
    table.add_column("position", no_wrap=True)
    for column in ("appended", "account", "status", "reason", "field", "id"):
        table.add_column(column, overflow="fold")
    for row in rows:
        position = row.position.partition(":")[2]  # the topic is that of the settings
        shown = (position, instant_text(row.append_time), row.account, row.status, row.reason, row.field)
        table.add_row(*map(escaped, (*shown, row.transaction_id or row.replayed_id or "")))
    return table_text(table, console)


def reject_document(detail: RejectDetail) -> dict[str, Any]:
    """One refused line as JSON has it: the row's fields, then its bytes, headers and faults."""
    found: dict[str, Any] = msgspec.to_builtins(detail)
    return {**found.pop("row"), **found}


def render_reject(detail: RejectDetail, fmt: OutputFormat, console: Console | None = None) -> str:
    """One refused line with all that is known of it."""
    if fmt != "table":
        return _json(reject_document(detail))
    row = detail.row
    table = Table(title=f"Reject {row.position}", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for name, value in (
        ("account", row.account),
        ("appended", instant_text(row.append_time)),
        ("verdict", row.verdict),
        ("status", row.status),
        ("transactionId", row.transaction_id),
        ("replayed", None if row.replayed_at is None else f"{row.replays} times, last {instant_text(row.replayed_at)}"),
        ("replayed as", row.replayed_as),
        ("replayed under", row.replayed_id if row.replays else None),
        ("replayed to", row.replayed_to),
        ("counted at", row.counted_at),
        *((f"header {name}", value) for name, value in detail.headers),
        *((f"fault {fault.code}", f"{fault.field}: {fault.message}".removeprefix(": ")) for fault in detail.errors),
    ):
        if value:
            table.add_row(name, escaped(value))
    body = f"base64:\n{detail.base64}" if detail.text is None else f"text:\n{_printable(detail.text)}"
    return f"{table_text(table, console)}{body}\n"


def _printable(text: str) -> str:
    """A stranger's line must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _cell(value: object) -> object:
    return "" if value is None else instant_text(value) if isinstance(value, datetime) else value


def _json(document: object) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
