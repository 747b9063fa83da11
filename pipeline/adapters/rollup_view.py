"""The statement of a rollup's own materialized view, over other rows than those of an insert.

Whoever rebuilds a rollup runs the very SELECT that fills it block by block, so that the two cannot come to differ.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pipeline.block import GAP_RULES
from pipeline.ports import Reader

#: Rollups that blocks mark, with the column that holds the mark's name and the one that holds its month.
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
#: Those of them that get rows of few blocks, and marks of no others (`Block.sparse`; `sparse` in the ledger).
SPARSE: Final = frozenset({"usage_client_edge_15m", "usage_uniques_client_day"})
#: Rows of the ledger that stand for marks: of the months of blocks, but those that were given up, which have left none.
MARKING: Final = f"month > 0 AND rules != {GAP_RULES}"


def insert_from(
    store: Reader,
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
    store: Reader, view_of: str, source: str, *, reads: str = "ingest", parameters: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """The columns, and the SELECT, of the view `<reads>_to_<view_of>` over `source`; see `insert_from`.

    Where that view reads from a table `<reads>_…` that keeps no rows and has a view of its own, its SELECT too.
    """
    over = _over(store, f"{reads}_to_{view_of}", reads, source)
    shown = store.query(f"SELECT * FROM ({over}) LIMIT 0", parameters)  # noqa: S608 - the view's own text
    return ", ".join(f"`{column}`" for column in shown.columns), over


def _over(store: Reader, view: str, reads: str, source: str) -> str:
    """The view's SELECT with `source` in the place of `reads`."""
    rows = store.query(
        "SELECT database, as_select FROM system.tables WHERE database = currentDatabase() AND name = {view:String}",
        {"view": view},
    ).rows
    database, select = rows[0] if rows else ("", "there is no such view")
    found = re.search(rf"\b(?:`?{re.escape(database)}`?\.)?`?({re.escape(reads)}(?:_\w+)?)`?(?=\s|$)", select)
    if found is None:
        raise RuntimeError(f"view {view} does not read from {reads}, nor from what is made of it: {select[:200]}")
    inner = source if found[1] == reads else _over(store, f"{reads}_to_{found[1]}", reads, source)
    return f"{select[: found.start()]}({inner}){select[found.end() :]}"
