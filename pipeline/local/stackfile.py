"""``TALLY_HOME/stack.json``: where the stack listens and which processes it consists of.

Written whole and atomically by whoever holds the lock on the folder; read by everyone. The addresses
stay when the stack is down, so that it comes up on the same ones.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

import msgspec

State = Literal["starting", "ready", "stopping", "stopped", "failed"]


class StackError(Exception):
    """The stack cannot do what was asked. The message says what to do next."""


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """A process, told from later ones with the same id by its start time (epoch seconds)."""

    pid: int
    started: float


class PartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A part as the supervisor saw it last."""

    pid: int
    started: float
    state: Literal["starting", "up", "down"]
    restarts: int = 0
    address: str = ""
    log: str = ""
    awaited: bool = True


class StackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of stack.json, except for what the composition root adds to it."""

    state: State = "stopped"
    error: str = ""
    kafka: str = ""
    kafka_controller: str = ""
    clickhouse: str = ""
    api: str = ""
    worker_port: int = 0
    auditor_port: int = 0
    supervisor: ProcessId | None = None
    parts: dict[str, PartRecord] = {}


class StackFile:
    """stack.json of one data folder."""

    def __init__(self, home: Path) -> None:
        self.path = home / "stack.json"

    def read(self) -> StackRecord:
        """What it says; an empty record when there is none. Raises StackError when it cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=StackRecord)
        except FileNotFoundError:
            return StackRecord()
        except (OSError, msgspec.DecodeError) as error:
            raise StackError(f"{self.path} cannot be read ({error}): remove it and run `tally up`") from error

    def write(self, record: StackRecord, extra: Mapping[str, object]) -> None:
        """Replace it. ``extra`` are further entries; the file is for its owner's eyes only."""
        document = {**extra, **msgspec.to_builtins(record)}
        part = self.path.with_suffix(".json.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


class FolderLock:
    """Only one stack on a data folder. The lock goes with its process, however that ends."""

    def __init__(self, home: Path) -> None:
        self._path = home / "stack.lock"
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Raises StackError when another process has it."""
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StackError(
                f"another instance (process {holder}) already runs on {self._path.parent}:"
                " stop it with `tally down`, or choose another data folder with TALLY_HOME"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def port_of(address: str) -> int | None:
    """The port in ``host:port`` or in an URL."""
    return urlsplit(address if "//" in address else f"//{address}").port
