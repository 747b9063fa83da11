"""RocksDB: the table of first sightings on local disk. The one module that imports rocksdict.

It is a cache of the changelog: keys are 16-byte id hashes, values packed sightings, and one more key holds the marker,
the changelog offset up to which the table was read back. There is no write-ahead log; entries and marker go through
one column family in one batch, so whatever survives a crash is a prefix of what was written, with a marker no newer
than its entries. A table that cannot be opened is thrown away and read back anew.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from struct import Struct as Packing
from typing import Any, Final

import structlog
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from pipeline.block import KEY_BYTES, earlier
from pipeline.ports import Marker, TableClosed

_MARKER: Final = b"changelog-marker"[: KEY_BYTES - 1]  # shorter than a key, so that it can be none
_BLOOM_BITS: Final = 10  # 1 % false hits; ids are nearly always new, so the filter spares nearly all reads
_WRITE_BUFFER_BYTES: Final = 64 << 20

_marker = Packing("<QIQ")

log = structlog.get_logger(__name__)


class Tables:
    """The tables of this worker, one folder each below `folder`, all on one block cache of `cache_bytes`."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        self._folder = folder
        self._cache = Cache(cache_bytes)

    def open(self, name: str) -> "SightingTable":
        """Opens or makes a table; blocks. Raises OSError when the disk refuses."""
        path = self._folder / name
        path.mkdir(parents=True, exist_ok=True)
        try:
            return SightingTable(Rdict(str(path), self._options()))
        except Exception as error:
            if f"{path / 'LOCK'}" in str(error):  # only a lock that is held names that file
                raise OSError(f"{path} is in use by another worker: give each worker a TALLY_WORKER_DIR") from error
            log.warning("table_thrown_away", path=str(path), error=str(error), then="read back from the changelog")
            shutil.rmtree(path)
            path.mkdir(parents=True)
            return SightingTable(Rdict(str(path), self._options()))

    def _options(self) -> Options:
        blocks = BlockBasedOptions()
        blocks.set_bloom_filter(_BLOOM_BITS, False)
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_max_background_jobs(2)
        options.set_compression_type(DBCompressionType.lz4())
        return options


class SightingTable:
    """First sightings of one partition's ids. Methods block on the disk; use from one thread at a time."""

    def __init__(self, db: Rdict) -> None:
        without_log = WriteOptions()
        without_log.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, typed as a method
        db.set_write_options(without_log)
        self._db = db

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed sightings of those keys that are there."""
        if not keys:
            return {}
        try:
            found: Any = self._db.get(list(keys))
        except DbClosedError as error:
            raise TableClosed from error
        return {key: value for key, value in zip(keys, found, strict=True) if value is not None}

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes the sightings of a stated block."""
        batch = WriteBatch(raw_mode=True)
        for key, value in entries.items():
            batch.put(key, value)
        self._write(batch)

    def restore(self, entries: Iterable[tuple[bytes, bytes]], marker: Marker | None = None) -> None:
        """Takes entries that were read back: the smaller position always wins. The marker after them is written in
        the same batch."""
        merged: dict[bytes, bytes] = {}
        for key, value in entries:
            known = merged.get(key)
            merged[key] = value if known is None else earlier(known, value)
        for key, known in self.get_many(list(merged)).items():
            merged[key] = earlier(known, merged[key])
        batch = WriteBatch(raw_mode=True)
        for key, value in merged.items():
            batch.put(key, value)
        if marker is not None:
            batch.put(_MARKER, _marker.pack(*marker))
        self._write(batch)

    def marker(self) -> Marker:
        """How far the table was read back; the beginning for a new one."""
        try:
            found: Any = self._db.get(_MARKER)
        except DbClosedError as error:
            raise TableClosed from error
        return Marker(*_marker.unpack(found)) if found is not None else Marker(0, 0, 0)

    def ids_estimate(self) -> int:
        """About how many ids the table holds."""
        try:
            return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)
        except DbClosedError:
            return 0

    def close(self) -> None:
        """Brings everything to disk and closes."""
        try:
            self._db.flush(True)
            self._db.close()
        except DbClosedError:
            return

    def _write(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch)
        except DbClosedError as error:
            raise TableClosed from error
