"""Dedup tables that are full before a worker starts: files of the store's own format, made in key order with the
product's options and taken in whole.

Keys are spread as hashes are, values are sightings of events that follow each other in the log, as a worker writes
them; no id is one of the benchmarks' events. The worker opens such a table as its own: nothing of it is in the
changelog, whose beginning is the marker of a table that has none.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rocksdict import IngestExternalFileOptions, SstFileWriter

from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.block import KEY_BYTES, TABLE_RULES, Position, Sighting, pack_sighting

CHUNK: Final = 200_000
_RECORD_EVENTS: Final = 10
_PER_SECOND: Final = 5_000
_FIRST_APPEND_S: Final = 1_790_000_000


@dataclass(frozen=True, slots=True)
class Filled:
    """Tables of `ids` ids in all, one in each folder. `schema`: what their format is, as a hash; `bytes_per_id`: on
    disk, the first table after the product's own compaction."""

    folders: tuple[Path, ...]
    ids: int
    seconds: float
    schema: str
    bytes_per_id: float

    def put_in(self, table_dir: Path, topic: str) -> None:
        """Gives a worker these tables under the names that it opens. Their files of ids never change once they are
        written, so they are linked; what RocksDB appends to is copied."""
        for partition, folder in enumerate(self.folders):
            name = table_name(topic, partition)
            shutil.copytree(folder, table_dir / name, copy_function=_link_or_copy)


def table_name(topic: str, partition: int) -> str:
    """The folder of a partition's table, as `SightingStore.open` names it."""
    return f"{topic}-{partition}.rules{TABLE_RULES}.v2"


def filled(folder: Path, ids: int, partitions: int, cache_bytes: int) -> Filled:
    """Makes tables of so many ids in all below `folder`; takes a second for each million or so."""
    began = time.monotonic()
    tables = Tables(folder, cache_bytes, tables=partitions)
    shares = [len(range(partition, ids, partitions)) for partition in range(partitions)]
    for partition, share in enumerate(shares):
        table = tables.open(str(partition))
        fill_by_files(tables, table, folder, share, seed=partition)
        table.close()
    seconds = time.monotonic() - began
    folders = tuple(folder / str(partition) for partition in range(partitions))
    return Filled(folders, ids, seconds, schema_of(folders[0]), _compacted(folders[0], shares[0], cache_bytes))


def schema_of(table: Path) -> str:
    """A hash of everything that makes the format: sizes, a packed sighting, and the options as RocksDB wrote them."""
    options = max(table.glob("OPTIONS-*")).read_text()
    options = re.sub(
        r"^.*(wal_dir|db_log_dir|_version)=.*$", "", options, flags=re.MULTILINE
    )  # of the place, not the format
    sample = pack_sighting(Sighting(Position(3, 1_000_003, 7), 0x123456789A, _FIRST_APPEND_S))
    return hashlib.sha256(f"{TABLE_RULES} {KEY_BYTES} {sample.hex()}\n{options}".encode()).hexdigest()[:16]


def sightings(count: int, first: int, *, mixed: bool = False) -> list[bytes]:
    """Packed first sightings of events that follow each other in the log; in any order when `mixed`."""
    rng = np.random.default_rng(first)
    number = np.arange(first, first + count, dtype=np.uint64)
    if mixed:
        number = rng.permutation(number)
    offset, line = np.divmod(number, np.uint64(_RECORD_EVENTS))
    content = rng.integers(0, 1 << 40, count, dtype=np.uint64)
    append_s = np.uint64(_FIRST_APPEND_S) + number // np.uint64(_PER_SECOND)
    packed = np.empty(count, dtype=[("place", ">u8"), ("rest", ">u8"), ("low", ">u2"), ("high", ">u2")])
    packed["place"] = line << np.uint64(24) | offset >> np.uint64(24)
    packed["rest"] = (offset & np.uint64(0xFFFFFF)) << np.uint64(40) | content
    packed["low"], packed["high"] = append_s & np.uint64(0xFFFF), append_s >> np.uint64(16)
    joined = packed.tobytes()
    place = Position(0, int(offset[0]), int(line[0]))
    if joined[:20] != pack_sighting(Sighting(place, int(content[0]), int(append_s[0]))):
        raise AssertionError("the worker packs sightings in another way than this script")
    return [joined[i : i + 20] for i in range(0, len(joined), 20)]


def keys_in_order(ids: int, seed: int = 7) -> Iterator[tuple[int, list[bytes]]]:
    """Random keys in ascending order, a chunk at a time, each with the number of its first one: the k-th of n evenly
    spread prefixes with random bits below, which is how sorted hashes look."""
    rng = np.random.default_rng(seed)
    step = (1 << 64) // max(ids, 1)
    for first in range(0, ids, CHUNK):
        count = min(CHUNK, ids - first)
        high = (np.arange(first, first + count, dtype=np.uint64) * np.uint64(step)) + rng.integers(
            0, max(step, 1), count, dtype=np.uint64
        )
        low = rng.integers(0, 1 << 63, count, dtype=np.uint64)
        joined = np.stack([high, low], axis=1).astype(">u8").tobytes()
        yield first, [joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)]


def fill_by_files(tables: Tables, table: SightingTable, folder: Path, ids: int, seed: int = 7) -> list[bytes]:
    """Puts that many ids into an empty table; some of their keys."""
    sample: list[bytes] = []
    files = []
    options = tables._options()
    for first, keys in keys_in_order(ids, seed):
        file = str(folder / f"{first}.sst")
        writer = SstFileWriter(options)
        writer.open(file)
        for key, value in zip(keys, sightings(len(keys), first, mixed=True), strict=True):
            writer[key] = value
        writer.finish()
        files.append(file)
        table._seen.add(b"".join(keys))  # as for everything that the table writes itself: its filter must be whole
        sample += keys[:: max(1, len(keys) // 2_000)]
    if files:
        how = IngestExternalFileOptions()
        how.set_move_files(True)
        table._db.ingest_external_file(files, how)
    return sample


def folder_bytes(folder: Path) -> int:
    """What the files hold."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _compacted(folder: Path, ids: int, cache_bytes: int) -> float:
    """Bytes an id of a copy of the table after the product's own compaction, which writes all of it anew."""
    if not ids:
        return 0.0
    copy = folder.with_name(f"{folder.name}-compacted")
    shutil.copytree(folder, copy, copy_function=_link_or_copy)
    table = Tables(copy.parent, cache_bytes).open(copy.name)
    table.compact()
    table.close()
    size = folder_bytes(copy)
    shutil.rmtree(copy)
    return round(size / ids, 2)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".sst"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
