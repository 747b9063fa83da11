"""The changelog of the dedup table: what each block added, packed into few records. Pure.

A block writes at least one record, also when it added nothing, so that who reads back knows how far the changelog
reaches. Entries are independent of each other: a record read twice, or the first of two, does no harm.

Behind the head a record holds the first bytes of all its entries, then the second ones and so on: most bytes of a
sighting are those of its neighbours, so that it packs to less, and sooner. Records of version 2 have each entry in one
piece.
"""

from collections.abc import Iterator, Mapping
from struct import Struct as Packing
from typing import Final, NamedTuple

import numpy as np

from pipeline.block import KEY_BYTES, SIGHTING_BYTES
from pipeline.sightings import Sightings

_header = Packing("<BIQQ")
_VERSION: Final = 3
_IN_ONE_PIECE: Final = 2
_ENTRY_BYTES: Final = KEY_BYTES + SIGHTING_BYTES
ENTRIES_MAX: Final = 14_000  # half a megabyte a record


class Change(NamedTuple):
    """One record: sightings of the block [start, end) of an epoch."""

    epoch: int
    start: int
    end: int
    entries: list[tuple[bytes, bytes]]


class BadChange(ValueError):  # noqa: N818 - says what is the matter
    """The record is no change that this version can read."""


def pack_changes(epoch: int, start: int, end: int, entries: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The block's records. Only the last one carries `end`; the others say that they reach nowhere yet."""
    packed = entries.packed if isinstance(entries, Sightings) else b"".join([k + v for k, v in entries.items()])
    size = ENTRIES_MAX * _ENTRY_BYTES
    chunks = [packed[i : i + size] for i in range(0, len(packed), size)] or [b""]
    for number, chunk in enumerate(chunks):
        reach = end if number == len(chunks) - 1 else start
        yield _header.pack(_VERSION, epoch, start, reach) + _turned(chunk, -1, _ENTRY_BYTES)


def place_of(record: bytes) -> tuple[int, int]:
    """Epoch and start of the block that a record belongs to, without its entries. Raises BadChange."""
    epoch, start, _ = _header_of(record)
    return epoch, start


def reach_of(record: bytes) -> tuple[int, int]:
    """Epoch and how far the record reaches: its block's end for the last one of a block, otherwise its start. Raises
    BadChange."""
    epoch, _, end = _header_of(record)
    return epoch, end


def unpack_change(record: bytes) -> Change:
    """The change that a record holds. Raises BadChange."""
    epoch, start, end = _header_of(record)
    packed = record[_header.size :]
    if record[0] != _IN_ONE_PIECE:
        packed = _turned(packed, _ENTRY_BYTES, -1)
    entries = [
        (packed[i : i + KEY_BYTES], packed[i + KEY_BYTES : i + _ENTRY_BYTES])
        for i in range(0, len(packed), _ENTRY_BYTES)
    ]
    return Change(epoch, start, end, entries)


def _turned(packed: bytes, rows: int, columns: int) -> bytes:
    """Bytes that lie row by row, column by column."""
    return np.frombuffer(packed, np.uint8).reshape(rows, columns).T.tobytes() if packed else b""


def _header_of(record: bytes) -> tuple[int, int, int]:
    if len(record) < _header.size or (len(record) - _header.size) % _ENTRY_BYTES:
        raise BadChange(f"a changelog record of {len(record)} bytes is damaged")
    version, epoch, start, end = _header.unpack_from(record)
    if version not in (_IN_ONE_PIECE, _VERSION):
        raise BadChange(
            f"a changelog record has version {version}; this worker reads versions {_IN_ONE_PIECE} and {_VERSION}"
        )
    return epoch, start, end
