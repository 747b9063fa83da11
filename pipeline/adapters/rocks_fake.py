"""The table of first sightings in memory: the fake of `adapters/rocks.py`, for tests and experiments.

Rules: passes the same contract suite as the one on RocksDB.
"""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.block import KEY_BYTES, earlier
from pipeline.ports import Border, Marker, TableClosed


class MemoryTable:
    """Table in a dict."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.expired = MemoryFilter()
        self.closed = False
        self._marker = Marker(0, 0, 0)
        self._border = Border(0, 0)

    def copy(self) -> "MemoryTable":
        """The same content, open; the filter as it was saved."""
        made = MemoryTable()
        made.entries = dict(self.entries)
        made.expired = self.expired.saved()  # also of what is saved later: whoever opens the copy copies it anew
        made._marker, made._border = self._marker, self._border
        return made

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

    def page(self, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Entries with keys above `after`, in their order, at most so many; empty after the last."""
        self._check()
        return [(key, self.entries[key]) for key in sorted(self.entries) if key > after][:most]

    def border(self) -> Border:
        """Ids first seen before it may be missing here."""
        self._check()
        return self._border

    def expire(self, keys: Sequence[bytes], border: Border) -> None:
        """Moves the border and takes these keys out, in one batch."""
        self._check()
        self._border = border
        for key in keys:
            self.entries.pop(key, None)

    def may_be_expired(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those that the filter holds, and one of eight that it does not."""
        self._check()
        if not self.expired.keys:
            return []
        return [key for key in keys if key in self.expired.keys or key[-1] % 8 == 0]

    def remember_expired(self, keys: bytes) -> None:
        """Adds keys of 16 bytes, one after the other, to the filter."""
        self._check()
        self.expired.keys.update(keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES))

    def save_expired(self, reach: Border) -> None:
        """Makes the filter durable."""
        self.expired.save(reach)

    def remembered(self) -> Border:
        """How far the filter reached when it was last saved."""
        self._check()
        return self.expired.reach

    def expired_estimate(self) -> int:
        """How many ids the filter holds."""
        return len(self.expired.keys)

    def ids_estimate(self) -> int:
        """How many ids the table holds."""
        return len(self.entries)

    def close(self) -> None:
        """No use after this."""
        self.closed = True

    def _check(self) -> None:
        if self.closed:
            raise TableClosed


class MemoryFilter:
    """Expired ids beside their file, which outlives the process as soon as it is written."""

    def __init__(self, file: "MemoryFile | None" = None) -> None:
        self.file = file or MemoryFile()
        self.keys = set(self.file.keys)
        self.reach = self.file.reach

    def save(self, reach: Border) -> None:
        """What a crash leaves from now on."""
        self.file.keys, self.file.reach = frozenset(self.keys), reach
        self.reach = reach

    def saved(self) -> "MemoryFilter":
        """What the next process finds."""
        return MemoryFilter(self.file)


class MemoryFile:
    """A file of expired ids; deleting it is making it anew."""

    def __init__(self) -> None:
        self.keys: frozenset[bytes] = frozenset()
        self.reach = Border(0, 0)
