"""The spool: an outbox in a file, so that what was recorded survives the program.

Rules: `put` returns after the commit. SQLite in WAL mode; with `synchronous=NORMAL` a commit is in the system's page
cache, which outlives the program however it ends (SIGKILL, crash), and with `FULL` it is on the disk, which outlives a
loss of power too. Rows leave only once the API has said what became of them. Any number of processes may record into
one spool; the one that holds the lock of `PATH.lock` sends. The system lets go of that lock when its holder dies, so
the next one goes on at once. No connection is open across a fork: SQLite's locks belong to the process, and a child
that inherited them would believe that it holds what it does not.
"""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from producers.client.event import Recorded
from producers.client.outbox import CLOSED, Closed, OutboxFull, within

Synchronous = Literal["NORMAL", "FULL"]

_BUSY_S: Final = 10.0  # how long one waits for another process's commit, which takes milliseconds
_SCHEMA: Final = 1
_APPLICATION_ID: Final = 0x7461_6C79  # "taly": no other program's database is taken for a spool
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    transaction_id TEXT NOT NULL,
    recorded_s REAL NOT NULL,
    line BLOB NOT NULL
)
"""


class SpoolError(Exception):
    """The spool cannot be used now; an event that was being recorded is not recorded."""


class Spool:
    """An Outbox in the file `path`, of at most `bytes_max`. Raises SpoolError when it cannot be opened."""

    durable: Final = True
    poll_s: Final = 1.0  # how soon another process's events are noticed

    def __init__(self, path: str | os.PathLike[str], *, bytes_max: int, synchronous: Synchronous = "NORMAL") -> None:
        if sys.platform == "win32":
            raise SpoolError("a spool needs the file locks of Linux or macOS; leave `spool` out")
        if synchronous not in ("NORMAL", "FULL"):
            raise ValueError(f"synchronous must be NORMAL or FULL, not {synchronous!r}")
        self.path = Path(path).absolute()
        self._bytes_max = bytes_max
        self._synchronous = synchronous
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self._closed = False
        self._last = 0
        with self._using():
            pass

    def put(self, events: Sequence[Recorded]) -> None:
        """See Outbox. Returns once they are durable; raises SpoolError, for a full disk OutboxFull."""
        rows = [(event.transaction_id, event.recorded_s, event.line) for event in events]
        with self._using() as found, _transaction(found):
            for row in rows:
                done = found.execute("INSERT INTO events (transaction_id, recorded_s, line) VALUES (?, ?, ?)", row)
                self._last = done.lastrowid or self._last

    def claim(self) -> bool:
        """See Outbox."""
        if sys.platform == "win32":
            return False
        import fcntl  # noqa: PLC0415 - not there on every system on which the client runs without a spool

        with self._lock:
            if self._lock_fd is not None or self._closed:
                return self._lock_fd is not None
            fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                return False
            self._lock_fd = fd
            return True

    def peek(self, events_max: int, bytes_max: int) -> list[Recorded]:
        """See Outbox."""
        query = "SELECT transaction_id, line, recorded_s, position FROM events ORDER BY position LIMIT ?"
        return within([Recorded(*row) for row in self._rows(query, events_max)], bytes_max)

    def remove(self, events: Collection[Recorded]) -> None:
        """See Outbox."""
        rows = [(event.position,) for event in events]
        with self._using() as found, _transaction(found):
            found.executemany("DELETE FROM events WHERE position = ?", rows)

    def waiting(self) -> int:
        """See Outbox."""
        return int(self._rows("SELECT count(*) FROM events")[0][0])

    def waiting_up_to(self, position: int) -> int:
        """See Outbox."""
        return int(self._rows("SELECT count(*) FROM events WHERE position <= ?", position)[0][0])

    def has(self, count: int) -> bool:
        """See Outbox."""
        return bool(self._rows("SELECT 1 FROM events LIMIT 1 OFFSET ?", count - 1))

    def last_position(self) -> int:
        """What this process put in last, and what it found when it came."""
        return self._last

    def suspend(self) -> None:
        """See Outbox."""
        self._lock.acquire()
        self._disconnect()

    def resume(self, *, in_child: bool) -> None:
        """The parent goes on sending: the lock's file is shared by both until the child lets go of it."""
        if not in_child:
            self._lock.release()
            return
        self._lock = threading.RLock()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def close(self) -> None:
        """Others may send from now on."""
        with self._lock:
            self._closed = True
            self._disconnect()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    # -- private

    def _rows(self, query: str, *parameters: int) -> list[Any]:
        with self._using() as found:
            return found.execute(query, parameters).fetchall()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; opened when there is none."""
        with self._lock:
            try:
                if self._closed:
                    raise Closed(CLOSED)
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
            except sqlite3.DatabaseError as error:
                if "full" in str(error):
                    raise OutboxFull(f"the spool {self.path} or its disk is full ({error}); make room") from error
                raise SpoolError(f"the spool {self.path} cannot be used: {error}") from error
            except OSError as error:
                raise SpoolError(f"the spool {self.path} cannot be opened: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        # it holds what customers did: nobody else's to read; the files beside it get the same mode
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        found = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(found)
        except BaseException:
            found.close()
            raise
        return found

    def _prepare(self, found: sqlite3.Connection) -> None:
        # tables first: another process makes them and the numbers in one transaction
        tables = found.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        application, version = (found.execute(f"PRAGMA {name}").fetchone()[0] for name in _NAMES)
        if (application, version) not in ((0, 0), (_APPLICATION_ID, _SCHEMA)) or (not application and tables):
            raise SpoolError(f"{self.path} is no spool of this version; name another file")
        mode = _in_wal_mode(found)
        if mode != "wal":
            raise SpoolError(f"{self.path} lies on a file system without shared memory ({mode}); name a local one")
        found.execute(f"PRAGMA synchronous = {self._synchronous}")
        page_bytes = found.execute("PRAGMA page_size").fetchone()[0]
        found.execute(f"PRAGMA max_page_count = {max(16, self._bytes_max // page_bytes)}")
        if not application:
            with _transaction(found):
                found.execute(_TABLE)
                found.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                found.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._last = max(self._last, found.execute("SELECT max(position) FROM events").fetchone()[0] or 0)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):  # what was committed is in the file already
                self._connection.close()
            self._connection = None


_NAMES: Final = ("application_id", "user_version")


def _in_wal_mode(found: sqlite3.Connection) -> str:
    """The mode that it has come to. SQLite does not wait here by itself while another process does the same."""
    end_s = time.monotonic() + _BUSY_S
    while True:
        try:
            return str(found.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end_s:
                raise
            time.sleep(0.01)


@contextmanager
def _transaction(found: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; the lock is taken first, so that no one has to start again."""
    found.execute("BEGIN IMMEDIATE")
    try:
        yield
        found.execute("COMMIT")
    except BaseException:
        if found.in_transaction:  # SQLite ends it by itself after some errors
            found.execute("ROLLBACK")
        raise
