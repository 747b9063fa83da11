"""Room on the engine's disk, which has to be watched from outside: the embedded engine takes a write that the system
refused (disk full, file too large) for done. It answers "inserted", and even puts a merged part of empty files in the
place of its sources. A server does not; `tests/local/test_room.py` shows what the embedded one does.

Rules:
- An insert is refused while less than RESERVE_BYTES would be left after it, so that the disk is never filled by it.
- After an insert something is written beside it: if that is refused, so may have been the insert's own writes, and
  its answer is an error. Whoever inserts reads back after an error.
- Merges stop while there is less room than that.
- A part of empty files is looked for all the while. The engine that has one is ended, since it believes in it; at the
  next start such a part is put aside before anything else, so that the sources of a merge, which stay on the disk for
  minutes, are taken instead, and the token of an insert goes (`pipeline.local.tokens`).
"""

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from pipeline.local.handle import EngineError
from pipeline.local.tokens import locked

RESERVE_BYTES: Final = 256 << 20
_INSERT_FACTOR: Final = 4  # facts, ids and rollups of what an insert brings, and the file it comes in
_PROOF: Final = bytes(64 << 10)
_LOOK_S: Final = 0.25
_PARTS_EVERY: Final = 40  # looks
_NEVER_EMPTY: Final = ("checksums.txt", "data.packed")  # one of them is in every part
_log = logging.getLogger(__name__)


class Room:
    """The room on the disk of one data folder."""

    def __init__(self, folder: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes

    @property
    def scarce(self) -> bool:
        """Whether less than the reserve is left."""
        return self._free() < self._reserve_bytes

    def require(self, insert_bytes: int) -> None:
        """Raises EngineError (243) unless an insert of that size leaves the reserve untouched."""
        free, wanted = self._free(), self._reserve_bytes + _INSERT_FACTOR * insert_bytes
        if free < wanted:
            raise _no_room(f"{free >> 20} MiB are left on the disk of {self._folder}, {wanted >> 20} MiB are needed")

    def prove(self) -> None:
        """Raises EngineError (243) when nothing can be written here."""
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                file.write(_PROOF)
                file.flush()
        except OSError as error:
            raise _no_room(f"nothing can be written to {self._folder} ({error.strerror})") from error

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free


class Watch:
    """Looks at room and parts in a thread of its own. `merge` is told whether the engine may merge, `hollow` that it
    holds parts of empty files."""

    def __init__(
        self, folder: Path, room: Room, *, merge: Callable[[bool], None], hollow: Callable[[list[Path]], None]
    ) -> None:
        self._folder = folder
        self._room = room
        self._merge = merge
        self._hollow = hollow
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="room", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; blocks until it has."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        merging, looks = True, 0
        while True:
            try:
                if merging == self._room.scarce:
                    merging = not merging
                    self._merge(merging)
                    _log.warning("merges %s: %s", *(("go on", "there is room") if merging else ("stop", "no room")))
                if looks % _PARTS_EVERY == 0 and (found := list(hollow_parts(self._folder))):
                    self._hollow(found)
                    return
            except (EngineError, OSError):
                _log.exception("the engine's disk cannot be looked at")
            if self._ended.wait(_LOOK_S):
                return
            looks += 1


def hollow_parts(folder: Path) -> Iterator[Path]:
    """Folders of parts whose files are empty."""
    for file in chain.from_iterable(folder.glob(f"store/*/*/*/{name}") for name in _NEVER_EMPTY):
        try:
            if not file.stat().st_size and not file.parent.name.startswith(("tmp", "delete_tmp")):
                yield file.parent
        except FileNotFoundError:
            continue  # merged meanwhile


def put_aside(folder: Path) -> list[Path]:
    """Moves parts of empty files out of their tables; where they lie now. Raises FolderInUseError, OSError."""
    moved: list[Path] = []
    if not (folder / "store").is_dir():
        return moved
    with locked(folder):
        for part in list(hollow_parts(folder)):
            to = part.parent / "detached" / f"hollow_{part.name}"
            to.parent.mkdir(exist_ok=True)
            shutil.rmtree(to, ignore_errors=True)
            part.rename(to)
            _log.error("%s was never written, though the engine said so: it is in %s now; run `tally audit`", part, to)
            moved.append(to)
    return moved


def _no_room(told: str) -> EngineError:
    return EngineError(f"Code: 243. DB::Exception: {told}: make room, then send it again. (NOT_ENOUGH_SPACE)")
