"""Group commit: writers that come while a write is under way share the next one."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class _Waiting(Generic[_T]):
    __slots__ = ("done", "error", "rows")

    def __init__(self, rows: Sequence[_T]) -> None:
        self.rows = rows
        self.done = False
        self.error: Exception | None = None


class TogetherWriter(Generic[_T]):
    """Joins writes of several threads. Only for rows that may be written again at will: where a shared write fails,
    it fails for all who share it."""

    def __init__(self, write: Callable[[Sequence[_T]], None]) -> None:
        self._write = write
        self._waiting: list[_Waiting[_T]] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def write(self, rows: Sequence[_T], *, linger_s: float = 0.0) -> None:
        """Returns once `rows` are written, raises what their write raised. Blocks for two writes and waits at most.
        `linger_s`: how long one that is the first waits for others."""
        mine = _Waiting(rows)
        with self._lock:
            self._waiting.append(mine)
        with self._writing:  # whoever comes first writes for all who came meanwhile
            if not mine.done:
                time.sleep(linger_s)
                self._write_all()
        if mine.error is not None:
            raise mine.error

    def _write_all(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        error: Exception | None = None
        try:
            self._write([row for one in waiting for row in one.rows])
        except Exception as raised:  # noqa: BLE001 - each who shares it raises it
            error = raised
        for one in waiting:
            one.done, one.error = True, error
