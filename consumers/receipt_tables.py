"""Receipts on a terminal. Values in, text out."""

import msgspec
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from consumers.documents import instant_text
from consumers.receipts import Bucket, Receipt
from consumers.tables import OutputFormat
from consumers.terminal import escaped, table_text

_COLOURS = {"accepted": "green", "rejected": "red", "in_flight": "yellow", "undecided": "yellow"}


def render_receipt(receipt: Receipt, fmt: OutputFormat, console: Console | None = None) -> str:
    """A receipt as text that ends with a newline; as JSON the document that the API gives."""
    if fmt == "json":
        return msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode() + "\n"
    parts: list[RenderableType] = [_facts(receipt)]
    if receipt.features:
        parts.append(_features(receipt))
    if receipt.buckets:
        parts.append(_buckets(receipt))
    if receipt.conflicts or receipt.refusals:
        parts.append(_troubles(receipt))
    title = Text.assemble("Receipt ", (receipt.transaction_id, "bold"))
    return table_text(Panel(Group(*parts), title=title, border_style=_COLOURS[receipt.verdict]), console)


def _facts(receipt: Receipt) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column("what", style="dim")
    table.add_column("value", overflow="fold")
    event, block = receipt.event, receipt.block
    seen = f"{receipt.times_seen} times: {receipt.duplicates} duplicates, {receipt.conflicts} conflicts"
    committed = "committed" if block and block.committed else "not known to be committed yet"
    for name, value in (
        ("verdict", f"{receipt.verdict}: {receipt.detail}"),
        ("account", receipt.account),
        ("position", receipt.position and receipt.position.text),
        ("appended", receipt.append_time and instant_text(receipt.append_time)),
        ("seen", seen if receipt.verdict == "accepted" else None),
        ("block", block and f"{block.start} to {block.end}, stated {instant_text(block.stated_at)}, {committed}"),
        ("customer", event and event.client_id + (f" / {event.entity_id}" if event.entity_id else "")),
        ("timestamp", event and instant_text(event.timestamp)),
        ("event", event and (event.event_name or event.feature_id)),
        ("value", event and event.value),
        ("data", event and event.data and bytes(event.data).decode()),
    ):
        if value:
            table.add_row(name, escaped(str(value)))
    return table


def _features(receipt: Receipt) -> Table:
    table = Table(title=f"features moved, by version {receipt.catalog_version} of the catalog", title_justify="left")
    for column in ("feature", "quantity", "revision"):
        table.add_column(column, justify="left" if column == "feature" else "right", overflow="fold")
    for moved in receipt.features:
        quantity = "one distinct value" if moved.distinct else moved.quantity
        table.add_row(escaped(moved.feature), quantity, str(moved.revision))
    return table


def _buckets(receipt: Receipt) -> Table:
    table = Table(title="rollup cells", title_justify="left")
    for column in ("table", "start", "key"):
        table.add_column(column, overflow="fold", no_wrap=column != "key")
    for bucket in receipt.buckets:
        table.add_row(bucket.table, instant_text(bucket.start), escaped(_key(bucket)))
    return table


def _key(bucket: Bucket) -> str:
    names = ("feature", "revision", "event_name", "client_id", "entity_id", "dimension", "value")
    return " ".join(f"{name}={value}" for name in names if (value := getattr(bucket, name)) not in (None, ""))


def _troubles(receipt: Receipt) -> Table:
    table = Table(title="refused", title_justify="left")
    for column in ("position", "appended", "why"):
        table.add_column(column, overflow="fold")
    for conflict in receipt.conflicts_at:
        why = "conflict: the same id with other content; the first stands"
        table.add_row(conflict.position.text, instant_text(conflict.append_time), why)
    for refusal in receipt.refusals:
        why = "; ".join(f"{f.field}: {f.message}".removeprefix(": ") for f in refusal.errors)
        table.add_row(refusal.position.text, instant_text(refusal.append_time), escaped(why))
    return table
