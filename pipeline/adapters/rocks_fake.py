"""The table of first sightings in memory: the fake of `adapters/rocks.py`, for tests and experiments.

Rules: passes the same contract suite as the one on RocksDB.
"""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.block import earlier
from pipeline.ports import Marker, TableClosed


class MemoryTable:
    """Table in a dict."""

    def __init__(self, entries: Mapping[bytes, bytes] | None = None, marker: Marker | None = None) -> None:
        self.entries = dict(entries or {})
        self.closed = False
        self._marker = marker or Marker(0, 0, 0)

    def copy(self) -> "MemoryTable":
        """The same content, open."""
        return MemoryTable(self.entries, self._marker)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed sightings of those keys that are there."""
        self._check()
        return {key: self.entries[key] for key in keys if key in self.entries}

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes the sightings of a stated block."""
        self._check()
        self.entries.update(entries)

    def restore(self, entries: Iterable[tuple[bytes, bytes]], marker: Marker | None = None) -> None:
        """Takes entries that were read back: the smaller position always wins."""
        self._check()
        for key, value in entries:
            known = self.entries.get(key)
            self.entries[key] = value if known is None else earlier(known, value)
        if marker is not None:
            self._marker = marker

    def marker(self) -> Marker:
        """How far the table was read back."""
        self._check()
        return self._marker

    def ids_estimate(self) -> int:
        """How many ids the table holds."""
        return len(self.entries)

    def close(self) -> None:
        """No use after this."""
        self.closed = True

    def _check(self) -> None:
        if self.closed:
            raise TableClosed
