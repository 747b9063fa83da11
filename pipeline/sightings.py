"""First sightings of a block, packed: what it adds to the table and to the changelog, without an object for each.
Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from pipeline.block import KEY_BYTES, SIGHTING_BYTES

_ENTRY_BYTES = KEY_BYTES + SIGHTING_BYTES
_entry = np.dtype([("key", f"V{KEY_BYTES}"), ("sighting", f"V{SIGHTING_BYTES}")])


def sorted_keys(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The order of these keys (low and high word each) by their first eight bytes."""
    return np.argsort(keys[:, 0].byteswap())


def each(packed: bytes, size: int) -> list[bytes]:
    """The pieces of `size` bytes that lie one after the other."""
    found: list[bytes] = np.frombuffer(packed, f"V{size}").tolist()
    return found


class Keys(Sequence[bytes]):
    """Keys of 16 bytes that lie one after the other: made when they are asked for, which few are."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @staticmethod
    def joined(keys: Sequence[bytes]) -> bytes:
        """Any keys, one after the other."""
        return keys._packed if isinstance(keys, Keys) else b"".join(keys)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return each(self._packed, KEY_BYTES)[index]
        at = range(len(self))[index] * KEY_BYTES
        return self._packed[at : at + KEY_BYTES]

    def __len__(self) -> int:
        return len(self._packed) // KEY_BYTES

    def __iter__(self) -> Iterator[bytes]:
        return iter(each(self._packed, KEY_BYTES))


class Sightings(Mapping[bytes, bytes]):
    """Keys and packed sightings, each id once, in the order of the log. `packed`: 36 bytes each, the key before its
    sighting. `order`: by the first eight bytes of their keys."""

    __slots__ = ("_found", "_order", "packed")

    def __init__(self, packed: npt.NDArray[np.uint8], order: npt.NDArray[np.int64]) -> None:
        self.packed = packed.tobytes()
        self._order = order
        self._found: dict[bytes, bytes] | None = None

    def by_key(self) -> tuple[list[bytes], list[bytes]]:
        """Keys and sightings, in the order of the keys' first eight bytes."""
        entries = np.frombuffer(self.packed, _entry).take(self._order)
        return entries["key"].tolist(), entries["sighting"].tolist()

    def keys_joined(self) -> bytes:
        """The keys, one after the other."""
        return np.frombuffer(self.packed, _entry)["key"].tobytes()

    def __getitem__(self, key: bytes) -> bytes:
        return self._all()[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._order)

    def _all(self) -> dict[bytes, bytes]:
        if self._found is None:
            entries = each(self.packed, _ENTRY_BYTES)
            self._found = {entry[:KEY_BYTES]: entry[KEY_BYTES:] for entry in entries}
        return self._found
