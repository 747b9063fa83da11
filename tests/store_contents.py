"""Everything that a store holds of the events, table by table, in a form that two stores can be compared by.

Rows of rollups are merged by their keys and their states are finalised, so that neither the number of parts nor a
merge shows, and everything else does.
"""

import re
from typing import Any

from pipeline.adapters.clickhouse import Store

TARGETS = (
    "events",
    "event_ids",
    "usage_client_day",
    "usage_client_edge_15m",
    "usage_15m",
    "usage_dimension_15m",
    "usage_uniques_client_day",
    "events_client_day",
    "events_15m",
    "events_dimension_15m",
)
_AGGREGATE = re.compile(r"(Simple)?AggregateFunction\((\w+),")


def contents(store: Store, tables: tuple[str, ...] = TARGETS) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each table, in an order of their own."""
    return {table: _rows(store, table) for table in tables}


def _rows(store: Store, table: str) -> list[tuple[Any, ...]]:
    columns = store.query(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
        " ORDER BY position",
        {"table": table},
    ).rows
    aggregates = {name: _AGGREGATE.match(type_) for name, type_ in columns}
    shown = ", ".join(_merged(name, found) if found else f"`{name}`" for name, found in aggregates.items())
    keys = ", ".join(f"`{name}`" for name, found in aggregates.items() if not found)
    grouped = f" GROUP BY {keys}" if any(aggregates.values()) else ""
    return sorted(store.query(f"SELECT {shown} FROM {table}{grouped}").rows, key=repr)


def _merged(name: str, found: "re.Match[str]") -> str:
    simple, function = found.groups()
    return f"{function}{'' if simple else 'Merge'}(`{name}`)"
