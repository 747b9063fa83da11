"""RocksDB: the table of first sightings on local disk. The one module that imports rocksdict.

It is a cache of the changelog: keys are 16-byte id hashes, values packed sightings, and two more keys hold the marker,
the changelog offset up to which the table was read back, and the border, below which ids may have been taken out.
There is no write-ahead log; entries, marker and border go through one column family in one batch, so whatever survives
a crash is a prefix of what was written, with a marker no newer than its entries and a border no older than what is
missing. A table that cannot be opened is thrown away and read back anew; its filter lies beside it.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from struct import Struct as Packing
from typing import Any, Final
from weakref import WeakSet

import structlog
from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DbClosedError,
    DBCompressionType,
    Env,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from pipeline.adapters.id_filter import IdFilter
from pipeline.block import KEY_BYTES, earlier
from pipeline.ports import Border, Marker, TableClosed
from pipeline.sightings import Sightings

# shorter than a key, so that they can be none
_MARKER: Final = b"changelog-marker"[: KEY_BYTES - 1]
_BORDER: Final = b"expiry-border"
BLOOM_BITS: Final = 10  # 1 % false hits; ids are nearly always new, so the filter spares nearly all reads
_WRITE_BUFFER_MAX: Final = 64 << 20
_WRITE_BUFFER_MIN: Final = 4 << 20  # 40,000 ids or so; smaller ones only make work for compaction

# The filter of all ids in a table, in memory: a new id is looked for nowhere else. RocksDB has filters of its own, one
# for each file that might hold an id, but is slower to ask. This one takes its room from the cache's.
_SEEN_BITS: Final = 10  # a hundredth of new ids is looked for in vain, for each segment
_SWEEP_LEAST: Final = 5_000
_SEEN_IDS_FIRST: Final = 1 << 18
_SEEN_IDS_MOST: Final = 1 << 21  # in one segment: what is not used yet of the last is all that is wasted

_BLOCK_BYTES: Final = 4096  # 8 or 16 KiB save one byte in a hundred and make look-ups slower by half

_marker = Packing("<QIQ")
_border = Packing("<IQ")

log = structlog.get_logger(__name__)


class Tables:
    """The tables of this worker, one folder each below `folder`, all within one cache of `cache_bytes`: blocks, filters
    and what is not on disk yet. `tables` is how many there may be, which share the room for the last."""

    def __init__(self, folder: Path, cache_bytes: int, *, tables: int = 1) -> None:
        self._folder = folder
        self._cache = Cache(cache_bytes)
        self._cache_bytes = cache_bytes
        self._opened_tables: WeakSet[SightingTable] = WeakSet()
        self._write_buffer_bytes = min(max(cache_bytes // 4 // tables, _WRITE_BUFFER_MIN), _WRITE_BUFFER_MAX)
        # only counts them as the cache's: its own limit, which would flush whichever table is written to next, is no
        # smaller than all of them together, full and being flushed
        self._write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            4 * self._write_buffer_bytes * tables, False, self._cache
        )
        Env().lower_thread_pool_cpu_priority()  # compactions: they share a core with the building

    def open(self, name: str) -> "SightingTable":
        """Opens or makes a table; blocks. Raises OSError when the disk refuses."""
        path = self._folder / name
        path.mkdir(parents=True, exist_ok=True)
        expired = IdFilter(self._folder / f"{name}.expired")
        try:
            return self._table(path, expired)
        except Exception as error:
            if f"{path / 'LOCK'}" in str(error):  # only a lock that is held names that file
                raise OSError(f"{path} is in use by another worker: give each worker a TALLY_WORKER_DIR") from error
            log.warning("table_thrown_away", path=str(path), error=str(error), then="read back from the changelog")
            shutil.rmtree(path)
            path.mkdir(parents=True)
            return self._table(path, expired)

    def _table(self, path: Path, expired: IdFilter) -> "SightingTable":
        db = self._opened(path)
        try:
            table = SightingTable(db, expired, path / "seen-ids", self._share_room)
        except BaseException:
            db.close()  # its lock would keep it from being opened anew
            raise
        self._opened_tables.add(table)
        self._share_room()
        return table

    def _share_room(self) -> None:
        """Filters and cache have the room together; of the cache at least half is left."""
        filters = sum(table.filter_bytes() for table in list(self._opened_tables))
        self._cache.set_capacity(max(self._cache_bytes - filters, self._cache_bytes // 2))

    def _opened(self, path: Path) -> Rdict:
        options = self._options()
        # named for its column family too: without that a table that is there already is opened with options from its
        # own file, which can name no shared cache, and gets RocksDB's 8 MB
        return Rdict(str(path), options, column_families={"default": options})

    def _options(self) -> Options:
        blocks = BlockBasedOptions()
        blocks.set_bloom_filter(BLOOM_BITS, False)
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_block_size(_BLOCK_BYTES)
        blocks.set_format_version(5)
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(self._write_buffer_bytes)
        options.set_write_buffer_manager(self._write_buffers)
        options.set_memtable_prefix_bloom_ratio(0.02)  # new ids need not be searched for in what was just written
        options.set_memtable_whole_key_filtering(True)
        options.set_max_background_jobs(2)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_bottommost_compression_type(DBCompressionType.zstd())  # nine ids of ten lie there
        options.set_level_compaction_dynamic_level_bytes(True)
        return options


class SightingTable:
    """First sightings of one partition's ids. Methods block on the disk; use from one thread at a time."""

    def __init__(self, db: Rdict, expired: IdFilter, seen: Path, grown: Callable[[], None]) -> None:
        without_log = WriteOptions()
        without_log.disable_wal = True  # type: ignore[method-assign, assignment]  # a property, typed as a method
        db.set_write_options(without_log)
        self._db = db
        self._closed = False
        self._scanning = ReadOptions()
        # a sweep must not push out what look-ups need
        self._scanning.fill_cache(False)  # type: ignore[call-arg]  # typed without its argument
        self._expired = expired
        self._grown = grown
        self._seen_path = seen
        self._seen = self._seen_ids()
        # Whether every id of the table is in it: saved when the table was closed, and nothing was written since, or
        # there is none. Otherwise every id is looked for in the table, a part of which is swept through each time.
        self._whole = self._seen.reach == Border(0, self._written())
        self._swept = b""
        if not self._whole:
            self._begin_sweep()

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed sightings of those keys that are there."""
        if self._closed:
            raise TableClosed
        if not self._whole:
            self._sweep(max(len(keys), _SWEEP_LEAST))
        # neighbours share filter and index blocks: a third faster, with the sorting
        wanted: Any = sorted(self._seen.among(keys) if self._whole else keys)
        if not wanted:
            return {}
        try:
            found: Any = self._db.get(wanted)
        except DbClosedError as error:
            raise TableClosed from error
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes the sightings of a stated block."""
        self._remember(entries)
        self._write(_batch_of(entries))

    def restore(self, entries: Iterable[tuple[bytes, bytes]], marker: Marker | None = None) -> None:
        """Takes entries that were read back: the smaller position always wins. The marker after them is written in
        the same batch; what is there already is not written again."""
        taken = list(entries)
        merged = dict(taken)
        if len(merged) < len(taken):
            for key, value in taken:
                merged[key] = earlier(merged[key], value)
        for key, known in self.get_many(list(merged)).items():
            if earlier(known, merged[key]) is known:
                del merged[key]
        self._remember(merged)
        batch = _batch_of(merged)
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

    def page(self, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Entries with keys above `after`, in their order, at most so many; empty after the last."""
        found: list[tuple[bytes, bytes]] = []
        try:
            entries: Any = self._db.items(from_key=after + b"\0", read_opt=self._scanning)
            for key, value in entries:
                if len(key) == KEY_BYTES:
                    found.append((key, value))
                if len(found) == most:
                    break
        except DbClosedError as error:
            raise TableClosed from error
        return found

    def border(self) -> Border:
        """Ids first seen before it may be missing here."""
        try:
            found: Any = self._db.get(_BORDER)
        except DbClosedError as error:
            raise TableClosed from error
        return Border(*_border.unpack(found)) if found is not None else Border(0, 0)

    def expire(self, keys: Sequence[bytes], border: Border) -> None:
        """Moves the border and takes these keys out, in one batch."""
        batch = WriteBatch(raw_mode=True)
        batch.put(_BORDER, _border.pack(*border))
        for key in keys:
            batch.delete(key)
        self._write(batch)
        if self._whole and self._seen.sparse(self.ids_estimate()):
            self._begin_sweep()

    def may_be_expired(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those that the filter holds, and a few that it does not."""
        return self._expired.among(keys)

    def remember_expired(self, keys: bytes) -> None:
        """Adds keys of 16 bytes, one after the other, to the filter."""
        self._expired.add(keys)

    def save_expired(self, reach: Border) -> None:
        """Makes the filter durable. Raises OSError."""
        self._expired.save(reach)

    def remembered(self) -> Border:
        """How far the filter reached when it was last saved."""
        return self._expired.reach

    def expired_estimate(self) -> int:
        """How many ids the filter holds; those that were added twice count twice."""
        return len(self._expired)

    def compact(self) -> None:
        """Writes everything anew at the bottom level; blocks for as long as that takes."""
        how = CompactOptions()
        how.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        self._db.flush(True)
        self._db.compact_range(None, None, how)

    def cached_bytes(self) -> int:
        """What the block cache holds, of all tables that share it."""
        try:
            return int(self._db.property_int_value("rocksdb.block-cache-usage") or 0)
        except DbClosedError:
            return 0

    def ids_estimate(self) -> int:
        """About how many ids the table holds."""
        try:
            return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)
        except DbClosedError:
            return 0

    def close(self) -> None:
        """Brings everything to disk and closes."""
        self._closed = True
        try:
            self._db.flush(True)
            if self._whole:
                self._save_seen()
            self._db.close()
        except DbClosedError:
            return

    def filter_bytes(self) -> int:
        """What the filter of all ids takes in memory."""
        return self._seen.size_bytes

    def _save_seen(self) -> None:
        try:
            self._seen.save(Border(0, self._written()))
        except OSError as error:
            log.warning("filter_not_saved", path=str(self._seen_path), error=str(error), then="made anew")

    def _written(self) -> int:
        """How many changes the table has seen: another number after any."""
        return int(self._db.latest_sequence_number())

    def _seen_ids(self) -> IdFilter:
        return IdFilter(self._seen_path, first_ids=_SEEN_IDS_FIRST, most_ids=_SEEN_IDS_MOST, bits_per_id=_SEEN_BITS)

    def _begin_sweep(self) -> None:
        self._seen_path.unlink(missing_ok=True)
        self._seen = self._seen_ids()
        self._swept = b""
        self._whole = False
        self._sweep(1)

    def _sweep(self, most: int) -> None:
        """Takes the next ids of the table into the filter; those that come meanwhile are put in as they are written."""
        found = self.page(self._swept, most)
        if found:
            self._seen.add(b"".join([key for key, _ in found]))
            self._swept = found[-1][0]
            self._grown()
        self._whole = len(found) < most

    def _remember(self, entries: Mapping[bytes, bytes]) -> None:
        """Before they are written: whatever is in the table is in the filter."""
        room = self._seen.size_bytes
        self._seen.add(entries.keys_joined() if isinstance(entries, Sightings) else b"".join(entries))
        if self._seen.size_bytes != room:
            self._grown()

    def _write(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch)
        except DbClosedError as error:
            raise TableClosed from error


def _batch_of(entries: Mapping[bytes, bytes]) -> WriteBatch:
    """In the order of their keys: each goes in beside the one before, which takes a fifth of the time of finding a
    place for hashes as they come."""
    batch = WriteBatch(raw_mode=True)
    if isinstance(entries, Sightings):
        keys, values = entries.by_key()
    else:
        keys = sorted(entries)
        values = [entries[key] for key in keys]
    deque(map(batch.put, keys, values), maxlen=0)
    return batch
