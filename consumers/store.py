"""The store, as far as reading goes: a port, so that whoever wires the process decides which one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """What a query gives: one tuple a row."""

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def rows(self) -> Sequence[tuple[Any, ...]]: ...


class Reader(Protocol):
    """The store, as far as reading goes."""

    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Rows:
        """Run a SELECT with server-side parameters. Blocks."""
