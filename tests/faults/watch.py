"""Watches the engine's folders for parts of tables, and strikes the moment one is begun or put in its place.

By inotify, so on Linux only. A part is a folder `tmp_insert_...` while it is written and gets its name by a rename.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_CREATED: Final = 0x100
_MOVED_TO: Final = 0x80
_EVENT: Final = struct.Struct("iIII")


class PartWatch:
    """Waits for parts in some tables' folders; a context."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_CLOEXEC)
        self._tables: dict[int, str] = {}
        for table, folder in folders.items():
            watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _CREATED | _MOVED_TO)
            if watch < 0:
                raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
            self._tables[watch] = table

    def __enter__(self) -> "PartWatch":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def strike_when(self, told: Callable[[str, bool, str], bool], strike: Callable[[], None], seconds: float) -> bool:
        """Calls `strike` once `told(table, begun, name)` is true of a part that was begun (else: put in place).
        False when that did not happen in time."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            if not select.select([self._descriptor], [], [], left_s)[0]:
                return False
            data = os.read(self._descriptor, 65_536)
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
                at += _EVENT.size + length
                merged = name.count("_") >= 3 and not name.endswith("_0")  # of a merge, not of an insert
                seen = watch in self._tables and not (merged or "merge" in name or "delete" in name)
                if seen and told(self._tables[watch], bool(mask & _CREATED), name):
                    strike()
                    return True
        return False
