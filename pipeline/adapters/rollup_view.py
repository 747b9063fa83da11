"""The statement of a rollup's own materialized view, over other rows than those of an insert.

Whoever rebuilds a rollup runs the very SELECT that fills it block by block, so that the two cannot come to differ.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

#: Rollups that every block marks, with the column that holds the mark's name and the one that holds its month.
MARKED: Final = {
    "usage_client_day": ("feature", "day"),
    "usage_client_edge_15m": ("feature", "bucket"),
    "usage_15m": ("feature", "bucket"),
    "usage_dimension_15m": ("feature", "bucket"),
    "usage_uniques_client_day": ("feature", "day"),
    "events_client_day": ("event_name", "day"),
    "events_15m": ("event_name", "bucket"),
    "events_dimension_15m": ("event_name", "bucket"),
}


class _Rows(Protocol):
    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def rows(self) -> Sequence[tuple[Any, ...]]: ...


class _Reader(Protocol):
    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> _Rows: ...


def insert_from(
    store: _Reader,
    view_of: str,
    source: str,
    *,
    into: str,
    reads: str = "ingest",
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """`INSERT INTO into SELECT …`: what the view `<reads>_to_<view_of>` makes of `source` in the place of `reads`.

    `source`: a SELECT with the columns of `reads`, which may ask for `parameters` by name; run the statement with them.
    Raises RuntimeError when the view reads from elsewhere, and what the store raises. Blocks.
    """
    columns, select = select_over(store, view_of, source, reads=reads, parameters=parameters)
    return f"INSERT INTO {into} ({columns}) {select}"


def select_over(
    store: _Reader, view_of: str, source: str, *, reads: str = "ingest", parameters: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """The columns, and the SELECT, of the view `<reads>_to_<view_of>` over `source`; see `insert_from`."""
    database, select = store.query(
        "SELECT database, as_select FROM system.tables WHERE database = currentDatabase() AND name = {view:String}",
        {"view": f"{reads}_to_{view_of}"},
    ).rows[0]
    over, replaced = re.subn(
        rf"\b(`?{re.escape(database)}`?\.)?`?{reads}`?(?=\s|$)", lambda _: f"({source})", select, count=1
    )
    if replaced != 1:
        raise RuntimeError(f"view {reads}_to_{view_of} does not read from {reads}: {select[:200]}")
    shown = store.query(f"SELECT * FROM ({over}) LIMIT 0", parameters)  # noqa: S608 - the view's own text
    return ", ".join(f"`{column}`" for column in shown.columns), over
