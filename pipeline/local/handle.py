"""The ClickHouse engine in this process. The one module that imports chdb.

Rules: one engine per process and data folder; each request works on a handle of its own, opened and
closed with it, so that no setting, database or parameter outlives the request that named it. Data of
an INSERT go through a file. Behind the SQL text the engine reads binary data only up to its buffer and drops the
rest silently; its insert stream tells no error that a target raises (a constraint, a view, a full disk): both would
answer "done" with rows missing.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# As on a server in a container: a DateTime without a zone is in UTC. The engine reads this when it is loaded.
os.environ["TZ"] = "UTC"

from chdb import _chdb

_ERROR = re.compile(r"Code: (\d+)\. (?=DB::)")
_ERROR_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)(?: \(version [^)]*\))*\.?\s*$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MERGING_THREAD = "MergeMutate"
_MERGING_NICE = 19
_LARGE_BYTES = 512 << 10  # an insert's, which then has the engine to itself
SPOOL_PREFIX = "insert-"


class EngineError(Exception):
    """The engine refused or broke off a statement. ``code`` and ``name`` are ClickHouse's."""

    def __init__(self, message: str) -> None:
        found = _ERROR.search(message)
        name = _ERROR_NAME.search(message)
        self.code = int(found.group(1)) if found else 1002
        self.name = name.group(1) if name else "UNKNOWN_EXCEPTION"
        self.message = message[found.start() :] if found else f"Code: 1002. DB::Exception: {message}"
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Output:
    """What a statement gave: encoded rows and the engine's own counts."""

    data: bytes = b""
    rows_read: int = 0
    bytes_read: int = 0
    rows_written: int = 0
    bytes_written: int = 0


class Handle:
    """One request's way to the engine. Not for two threads at once; every method may block."""

    def __init__(self, connection: Any, spool: Path, inserting: threading.Lock) -> None:
        self._connection = connection
        self._spool = spool
        self._inserting = inserting

    def set(self, settings: Mapping[str, str]) -> None:
        """Settings of all further statements of this handle."""
        for name in settings:
            if not _NAME.fullmatch(name):
                raise EngineError(f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)")
        if settings:
            self.run("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in settings.items()))

    def use(self, database: str) -> None:
        """The database of names that carry none."""
        escaped = database.replace("\\", "\\\\").replace("`", "\\`")
        self.run(f"USE `{escaped}`")

    def run(
        self, sql: str | bytes, format_name: str = "TabSeparated", params: Mapping[str, str] | None = None
    ) -> Output:
        """Run one statement to its end; ``params`` hold values for ``{name:Type}``, escaped as in TSV."""
        with _engine_errors():
            result = self._connection.query(sql, format_name, params=dict(params or {}))
            return Output(
                result.bytes() or b"",
                result.rows_read(),
                result.bytes_read(),
                result.rows_written(),
                result.bytes_written(),
            )

    def stream(self, sql: str | bytes, format_name: str, params: Mapping[str, str]) -> Generator[Output]:
        """Run a reading statement block by block, each encoded as a document of its own.

        A result without rows gives no block. Closing the iterator early cancels the statement.
        """
        with _engine_errors():
            result = self._connection.send_query(sql, format_name, params=dict(params))
        try:
            while (block := self._fetch(result)) is not None:
                yield block
        except GeneratorExit:
            with _engine_errors():
                self._connection.streaming_cancel_query(result)
            raise

    def insert(self, sql: bytes, format_name: str, pieces: Iterable[memoryview]) -> Output:
        """Insert encoded rows as one statement; ``sql`` has no FORMAT clause."""
        if not _NAME.fullmatch(format_name):
            raise EngineError(f"Code: 73. DB::Exception: Unknown format {format_name}. (UNKNOWN_FORMAT)")
        with _spool_errors(), tempfile.NamedTemporaryFile(prefix=SPOOL_PREFIX, dir=self._spool) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            source = f" FROM INFILE {quote(file.name)} COMPRESSION 'none' FORMAT {format_name}"
            alone = self._inserting if file.tell() >= _LARGE_BYTES else contextlib.nullcontext()
            with alone, _engine_errors():
                result = self._connection.query(sql + source.encode(), "TabSeparated")
        # what such a statement has read is what it was given; it counts no rows as written
        return Output(b"", 0, 0, result.rows_read(), result.bytes_read())

    def close(self) -> None:
        """Give the handle back; its settings go with it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, result: Any) -> Output | None:
        with _engine_errors():
            block = self._connection.streaming_fetch_result(result)
            if not block.rows_read():
                return None
            return Output(block.bytes() or b"", block.rows_read(), block.bytes_read())


class Engine:
    """The engine of this process on one data folder.

    Raises EngineError when another process has the folder. ``memory_bytes_max`` bounds all its queries together.
    """

    def __init__(self, path: Path, *, memory_bytes_max: int) -> None:
        folder = path.absolute()
        if set(str(folder)) & set("?&#"):
            raise EngineError(f"the engine cannot use the data folder {folder}: choose one without ?, & and #")
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = folder / "spool"
        self._spool.mkdir(exist_ok=True)
        for left in self._spool.glob(f"{SPOOL_PREFIX}*"):
            left.unlink()  # of a process that was killed
        cache_bytes = memory_bytes_max // 8
        self._address = f"{folder}?max_server_memory_usage={memory_bytes_max}&mark_cache_size={cache_bytes}"
        # Two large inserts at once take 6 to 8 % more processor time than one after the other: they share the caches.
        # What is still on its way does not wait for this.
        self._inserting = threading.Lock()
        self._root = self._connect()
        with self.open() as handle:
            self.version, self.timezone, self.host = (
                handle.run("SELECT version(), serverTimezone(), displayName()").data.decode().rstrip("\n").split("\t")
            )

    def open(self) -> Handle:
        """A handle with default settings."""
        return Handle(self._connect(), self._spool, self._inserting)

    def cancel_all(self) -> None:
        """Ask every running statement to stop."""
        with self.open() as handle:
            handle.run("KILL QUERY WHERE query_id != queryID() ASYNC")

    def let_merges_wait(self) -> bool:
        """Has the engine's threads that merge parts give way to statements where both want the same core: an insert
        that meets a large merge would take twice its time. Merges then have next to nothing of a core that is always
        wanted; from a thousand parts on the engine lets inserts wait, which leaves the core to them. False while there
        are none: they come with the first table."""
        found = False
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                if (thread / "comm").read_text().strip() == _MERGING_THREAD:
                    os.setpriority(os.PRIO_PROCESS, int(thread.name), _MERGING_NICE)
                    found = True
        return found

    def merge(self, allowed: bool) -> None:
        """Lets parts be merged, or not; merges that run are ended."""
        with self.open() as handle:
            handle.run("SYSTEM START MERGES" if allowed else "SYSTEM STOP MERGES")

    def close(self) -> None:
        """Stop the engine; every other handle must be closed."""
        self._root.close()

    def _connect(self) -> Any:
        with _engine_errors():
            return _chdb.connect(self._address)  # type: ignore[attr-defined]  # publishes no types


def quote(text: str) -> str:
    """A SQL string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EngineError(str(error)) from error


@contextmanager
def _spool_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"Code: 243. DB::Exception: the data cannot be written to a file ({error.strerror}). (NOT_ENOUGH_SPACE)"
        )
        raise EngineError(message) from error
