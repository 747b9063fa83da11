"""A filter of ids: a Bloom filter on numpy, with its file. A table has two, of the ids that have expired and of all it
holds.

It answers "may this id have been added?" for many ids at once: never no for one that was, and for one that was not
seldom yes, with 20 bits an id in less than one of a thousand. Ids are only ever added. It is made of segments of
doubling size, each a split-block filter as Parquet's (one block of 32 bytes and one bit in each of its 8 words per id),
so that it grows without being built anew. Keys are hashes already; their bytes are used as they are.

The file holds all segments and how far they reach, under a checksum; a file that is damaged or missing is an empty
filter that reaches nowhere, which whoever opens it compares with the table's border.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from struct import Struct as Packing
from typing import Any, Final

import numpy as np
import structlog
import xxhash

from pipeline.compiled import AHEAD, ahead, compiled
from pipeline.ports import Border
from pipeline.sightings import Keys

BITS_PER_ID: Final = 20
_FIRST_IDS: Final = 1 << 20
_WORDS: Final = 8  # of 32 bits in a block
_SALTS: Final = np.array(
    [0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D, 0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31], dtype=np.uint32
)  # odd numbers of Parquet's specification
_MAGIC: Final = b"tally-expired-1\n"
_head = Packing("<IQI")
_part = Packing("<QQ")

log = structlog.get_logger(__name__)


class IdFilter:
    """Look-ups and additions from one thread at a time; `save` may
    run beside look-ups. `most_ids`: in one segment."""

    def __init__(
        self,
        path: Path,
        *,
        first_ids: int = _FIRST_IDS,
        most_ids: int = 1 << 62,
        bits_per_id: int = BITS_PER_ID,
    ) -> None:
        self._path = path
        self._first_ids = first_ids
        self._most_ids = most_ids
        self._bits_per_id = bits_per_id
        self._segments: list[_Segment] = []
        self.reach = Border(0, 0)
        self._load()

    @property
    def size_bytes(self) -> int:
        """Room that it takes in memory."""
        return sum(segment.words.nbytes for segment in self._segments)

    def __len__(self) -> int:
        return sum(segment.ids for segment in self._segments)

    def add(self, keys: bytes) -> None:
        """Adds ids: their keys of 16 bytes, one after the other."""
        halves = np.frombuffer(keys, dtype="<u8").reshape(-1, 2)
        while len(halves):
            if not self._segments or not self._segments[-1].room:
                ids = min(self._first_ids << min(len(self._segments), 60), self._most_ids)
                self._segments.append(_Segment(ids, self._bits_per_id))
            room = self._segments[-1].room
            self._segments[-1].add(halves[:room])
            halves = halves[room:]

    def among(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the keys that may be of expired ids."""
        if not self._segments or not keys:
            return []
        halves = np.frombuffer(Keys.joined(keys), dtype="<u8").reshape(-1, 2)
        found = np.zeros(len(halves), dtype=np.uint8)
        for segment in self._segments:
            _find(segment.words, halves, found)
        return [keys[i] for i in np.flatnonzero(found).tolist()]

    def sparse(self, ids: int) -> bool:
        """Whether it holds far more ids than these, so that it is worth being made anew."""
        return len(self) > 2 * ids + self._first_ids

    def save(self, reach: Border) -> None:
        """Makes everything that was added durable: it now reaches up to that border. Blocks. Raises OSError."""
        parts = [_head.pack(*reach, len(self._segments))]
        for segment in self._segments:
            parts += [_part.pack(len(segment.words), segment.ids), segment.words.data]
        digest = xxhash.xxh3_64()
        # a name of its own: a session that is over may still be writing when the next one begins
        number, name = tempfile.mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(_MAGIC)
                for part in parts:
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(self._path.parent)
        self.reach = reach

    def _load(self) -> None:
        for left_over in self._path.parent.glob(f"{self._path.name}.*"):
            left_over.unlink(missing_ok=True)
        try:
            found = self._path.read_bytes()
        except FileNotFoundError:
            return
        body = memoryview(found)[len(_MAGIC) : -8]
        if not found.startswith(_MAGIC) or xxhash.xxh3_64_digest(body) != found[-8:]:
            log.warning("expired_ids_damaged", path=str(self._path), then="filled anew")
            return
        epoch, end, count = _head.unpack_from(body)
        at = _head.size
        for _ in range(count):
            blocks, ids = _part.unpack_from(body, at)
            at += _part.size
            size = blocks * _WORDS * 4
            words = np.frombuffer(body[at : at + size], dtype=np.uint32).reshape(-1, _WORDS).copy()
            self._segments.append(_Segment.of(words, ids, self._bits_per_id))
            at += size
        self.reach = Border(epoch, end)


class _Segment:
    """A filter for a number of ids that was settled when it was made."""

    __slots__ = ("bits_per_id", "ids", "words")

    def __init__(self, ids_max: int, bits_per_id: int) -> None:
        self.words: Any = np.zeros((max(1, ids_max * bits_per_id // (_WORDS * 32)), _WORDS), dtype=np.uint32)
        self.bits_per_id = bits_per_id
        self.ids = 0

    @classmethod
    def of(cls, words: Any, ids: int, bits_per_id: int) -> "_Segment":
        made = cls(0, bits_per_id)
        made.words, made.ids = words, ids
        return made

    @property
    def room(self) -> int:
        """How many more ids it takes."""
        return max(0, len(self.words) * _WORDS * 32 // self.bits_per_id - self.ids)

    def add(self, halves: Any) -> None:
        """Adds ids."""
        _put(self.words, halves)
        self.ids += len(halves)


_U27 = np.uint64(27)
_U32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint32(1)


@compiled
def _block(halves: Any, row: Any, blocks: Any) -> Any:
    """Which of so many blocks an id's bits lie in."""
    return np.int64((halves[row, 1] >> _U32) * blocks >> _U32)


@compiled
def _put(words: Any, halves: Any) -> None:
    blocks = np.uint64(len(words))
    for row in range(len(halves)):
        if row + AHEAD < len(halves):
            ahead(words, _block(halves, row + AHEAD, blocks) * _WORDS)
        block = _block(halves, row, blocks)
        low = halves[row, 0] >> _U32
        for k in range(_WORDS):
            words[block, k] |= _ONE << np.uint32((low * np.uint64(_SALTS[k]) & _LOW) >> _U27)


@compiled
def _find(words: Any, halves: Any, found: Any) -> None:
    """Marks those that are held: one bit for each word of a block."""
    blocks = np.uint64(len(words))
    for row in range(len(halves)):
        if row + AHEAD < len(halves):
            ahead(words, _block(halves, row + AHEAD, blocks) * _WORDS)
        block = _block(halves, row, blocks)
        low = halves[row, 0] >> _U32
        held = True
        for k in range(_WORDS):
            if words[block, k] & _ONE << np.uint32((low * np.uint64(_SALTS[k]) & _LOW) >> _U27) == 0:
                held = False
                break
        if held:
            found[row] = 1


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled; blocks for a second or so."""
    halves = np.frombuffer(bytes(16), dtype="<u8").reshape(-1, 2)
    segment = _Segment(1, BITS_PER_ID)
    segment.add(halves)
    _find(segment.words, halves, np.zeros(1, dtype=np.uint8))


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
