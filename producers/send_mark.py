"""How far the sending of a file has come: a small file beside it, so that a sending that was ended goes on.

Rules: the mark is made, durably, before the first event is sent, and names what the ids of lines without one are made
of; so the same line has the same id in every attempt. It moves only over what is acknowledged or in the rejects file,
without gaps, and may lag behind: what lies between is sent again under its ids, which counts once. It belongs to one
content of the file and one place it is sent to; anything else is refused, never guessed. It is removed when all files
of the command are sent.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import msgspec

from producers.file_rows import FileRefused

_PIECE_BYTES: Final = 1 << 16


class Mark(msgspec.Struct, kw_only=True):
    """The state. `line`: everything up to it is done. `rejects_bytes`: length of the rejects file by then. `done`: all
    of the file is."""

    to: str
    content: str
    ids: str
    line: int = 0
    lines: int = 0
    sent: int = 0
    rejected: int = 0
    without_id: int = 0
    rejects_bytes: int = 0
    done: bool = False


class MarkFile:
    """The mark of one file on disk."""

    def __init__(self, path: Path, mark: Mark) -> None:
        self._path = path
        self._saved_s = 0.0
        self.mark = mark
        self.resumed_at = mark.line

    @classmethod
    def open(cls, path: str, *, to: str, new_id: Callable[[], str]) -> Self:
        """The mark that an earlier sending left, or a new one. Raises FileRefused for one of something else."""
        beside, content = mark_path(path), _content(Path(path))
        try:
            found = msgspec.json.decode(beside.read_bytes(), type=Mark)
        except FileNotFoundError:
            made = cls(beside, Mark(to=to, content=content, ids=new_id()))
            made.save()
            return made
        except msgspec.MsgspecError as error:
            raise FileRefused(
                f"{beside}: is no mark of a sending ({error}); remove it to send the file anew"
            ) from error
        if (found.to, found.content) != (to, content):
            what = "the file has changed since" if found.to == to else f"that was to {found.to}"
            raise FileRefused(
                f"{path}: an earlier sending stopped after line {found.line}, and {what}. Finish that one first, or "
                f"remove {beside} to send all of this anew: lines without transactionId count again then"
            )
        return cls(beside, found)

    def due(self, every_s: float) -> bool:
        """Whether it was last saved so long ago: a save waits for the disk."""
        return time.monotonic() - self._saved_s >= every_s

    def save(self) -> None:
        """Durably, all or nothing."""
        beside = self._path.with_name(self._path.name + ".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(self.mark))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        self._saved_s = time.monotonic()

    def remove(self) -> None:
        """All is sent."""
        self._path.unlink(missing_ok=True)


def mark_path(path: str) -> Path:
    """Where the mark of this file lies."""
    return Path(f"{path}.sending")


def _content(path: Path) -> str:
    """Tells contents of the file apart, without reading gigabytes: its length, beginning and end."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        seen = hashlib.blake2b(size.to_bytes(8), digest_size=16)
        seen.update(file.read(_PIECE_BYTES))
        file.seek(max(0, size - _PIECE_BYTES))
        seen.update(file.read(_PIECE_BYTES))
    return seen.hexdigest()
