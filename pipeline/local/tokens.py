"""Makes the engine's tokens agree with its parts, before it opens a data folder that a killed process may have left.

A MergeTree table remembers the tokens of its inserts in `deduplication_logs/deduplication_log_N.txt`, one record a
line: `1 <tab> part <tab> block id` for a part added, `2 …` for one dropped. The engine writes the record first and
then renames the part's directory from `tmp_insert_…` to its name. Killed in between it leaves a *burnt* token: no
rows, and the same insert, sent again, is dropped as known. The table then lacks those rows while all others have them.

Rules:
- A token stays if a directory of the table covers its part: the same partition and a range of block numbers that
  contains the part's. So it stays through merges and mutations, also such that left no row (an empty part covers).
- Any other token goes, since a token without a part only serves to lose rows. A part that was dropped, detached,
  truncated or expired takes its tokens with it in the engine too (record 2), so this forgets nothing that the engine
  would keep. `detached/…` and `tmp_…` are no parts of the table. A part that the engine finds broken when it opens
  counts as there, until the engine has moved it to `detached`: that errs towards a repair instead of a double.
- It needs to happen at every start: the number of a lost part is given out again, and a merge may then cover it.
- The engine's own lock on the folder is held meanwhile: a running engine's log is never touched.
- A record cut off at a log's end goes too, since the engine would append to it and then read neither. A log with
  records of an unknown kind is left as it is, with a warning.

Whoever inserts must still read back after a doubt: a failing disk, unlike a kill, can lose what was written.
"""

import fcntl
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PART: Final = re.compile(rb"([^_]+)_(\d+)_(\d+)_\d+(?:_\d+)?")
_LOG: Final = re.compile(r"deduplication_log_(\d+)\.txt")
_ADD: Final = b"1"
_DROP: Final = b"2"
_LOCK_FILE: Final = "status"  # the engine locks it for as long as it has the folder
_NEW_NAME: Final = "tokens.new"
_log = logging.getLogger(__name__)


class FolderInUseError(Exception):
    """Another engine has the folder."""


class _UnknownRecordError(Exception):
    """A log does not have the form that this module knows."""


def settle_tokens(folder: Path) -> int:
    """Remove the burnt tokens of every table in the engine's data folder; how many there were.

    Blocks while it reads all logs (some 10 MB a table at most). Raises FolderInUseError, OSError.
    """
    if not (folder / "store").is_dir():
        return 0
    with locked(folder):
        return sum(_settle_table(table, folder / _NEW_NAME) for table in _tables(folder))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps the engine's own lock on an existing folder. Raises FolderInUseError."""
    file = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"{folder} is in use") from error
        yield
    finally:
        os.close(file)


def _tables(folder: Path) -> list[Path]:
    return sorted(logs.parent for logs in folder.glob("store/*/*/deduplication_logs"))


def _settle_table(table: Path, new: Path) -> int:
    found = (_Log.read(path) for path in (table / "deduplication_logs").iterdir() if _LOG.fullmatch(path.name))
    logs = sorted(found, key=lambda log: log.number)
    try:
        burnt = list(_burnt(logs, _Covered.by_parts_of(table)))
    except _UnknownRecordError as error:
        _log.warning("%s: the tokens are left as they are: %s", table, error)
        return 0
    for log, index, part in burnt:
        _log.warning("%s: the token of part %s is removed: the part was never finished", table, part.decode())
        log.removed.add(index)
    for log in logs:
        if log.torn:
            _log.warning("%s: a record that was cut off is removed: %r", log.path, log.torn)
        if log.torn or log.removed:
            _replace(log.path, new, log.kept())
    return len(burnt)


@dataclass(slots=True)
class _Log:
    """One file of a table's records; `torn` is what follows the last whole one."""

    number: int
    path: Path
    records: list[bytes]
    torn: bytes
    removed: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> "_Log":
        named = _LOG.fullmatch(path.name)
        if named is None:
            raise ValueError(f"{path} is no deduplication log")
        *records, torn = path.read_bytes().split(b"\n")
        return cls(int(named.group(1)), path, records, torn)

    def kept(self) -> bytes:
        return b"".join(record + b"\n" for i, record in enumerate(self.records) if i not in self.removed)


class _Covered:
    """The ranges of block numbers that a table's part directories hold, by partition."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._ranges: dict[bytes, list[tuple[int, int]]] = {}
        found = sorted((partition, low, -high) for partition, low, high in filter(None, map(_range, names)))
        for partition, low, negative_high in found:  # the widest of those with the same start comes first
            ranges = self._ranges.setdefault(partition, [])
            if not ranges or -negative_high > ranges[-1][1]:
                ranges.append((low, -negative_high))

    @classmethod
    def by_parts_of(cls, table: Path) -> "_Covered":
        with os.scandir(table) as entries:
            return cls(os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False))

    def __contains__(self, part: bytes) -> bool:
        wanted = _range(part)
        if wanted is None:
            raise _UnknownRecordError(f"{part!r} is not a part's name")
        partition, low, high = wanted
        ranges = self._ranges.get(partition, [])
        at = bisect_right(ranges, low, key=lambda held: held[0]) - 1
        return at >= 0 and ranges[at][1] >= high


def _range(name: bytes) -> tuple[bytes, int, int] | None:
    """Partition, first and last block number of a part, from its name; None when it is not a part's name."""
    found = _PART.fullmatch(name)
    return (found.group(1), int(found.group(2)), int(found.group(3))) if found else None


def _burnt(logs: Iterable[_Log], covered: _Covered) -> Iterator[tuple[_Log, int, bytes]]:
    """The records of tokens that hold and whose part is not there, read in the order in which the engine reads them."""
    holding: dict[bytes, list[tuple[_Log, int, bytes]]] = {}
    for log in logs:
        for index, record in enumerate(log.records):
            kind, _, rest = record.partition(b"\t")
            part, tab, block_id = rest.partition(b"\t")
            if not tab or kind not in (_ADD, _DROP):
                raise _UnknownRecordError(f"{log.path.name} has the record {record!r}")
            if kind == _DROP:
                holding.pop(block_id, None)
            else:
                holding.setdefault(block_id, []).append((log, index, part))
    for places in holding.values():
        yield from (place for place in places if place[2] not in covered)


def _replace(path: Path, new: Path, content: bytes) -> None:
    """Atomic and durable. The new file is prepared outside: the engine takes every name beside a log for a log's."""
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
