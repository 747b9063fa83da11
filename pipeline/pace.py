"""When blocks close while an insert is under way: so that they are built when it ends, and no sooner.

One that closes sooner only waits, and the events that come meanwhile need one more; one that closes when the insert has
ended leaves the store idle until it is built. So both are timed by the row, and the next blocks close as long before
the expected end as building as many rows takes: they hold what came meanwhile, which is more when an insert took
longer.
"""

import asyncio
from collections.abc import Hashable
from typing import Final

_NEWEST: Final = 0.2  # the weight of the last one in the means
_ROWS_OF_NONE: Final = 15_000  # what an insert costs the store whatever it holds, in rows (55 ms, at 3.7 µs a row)
_ROWS_OF_BLOCK: Final = 600  # what a block costs its builder whatever it holds, in rows (4 ms, at 7 µs a row)
_ROWS_EARLY: Final = 7_500  # of an insert during which the next blocks need not have been open for their time
_SLOWER: Final = 1.3  # than the mean: a store that waits costs every event more than a block that does


class Pace:
    """One for all sessions of a worker, in its event loop. Inserts that are timed are one after the other.

    A block closes once its time is up or others close, and no insert is under way that it would wait for. Beside an
    insert of many rows the next ones close whatever their time: they have many, too, and the store must not wait.
    """

    def __init__(self) -> None:
        self._may_close = asyncio.Event()
        self._may_close.set()
        self._some_close = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._building: set[Hashable] = set()
        self._building_rows = self._inserting_rows = 0
        self._building_since_s = self._inserting_since_s = 0.0
        self._build_row_s: float | None = None
        self._insert_row_s: float | None = None

    async def until_one_may_close(self) -> None:
        """Returns once a block that closes now is not built before the insert under way ends, or none is."""
        await self._may_close.wait()

    async def until_others_close(self) -> None:
        """Returns once another one closes, whose insert this one's may be."""
        await self._some_close.wait()

    def closes(self) -> None:
        """One closes, and its insert has room for others."""
        self._some_close.set()
        self._some_close = asyncio.Event()

    def closed(self, block: Hashable, rows: int) -> None:
        """A block of so many rows is to be built. Those that overlap are timed as one: they are built one after the
        other."""
        if not self._building:
            self._building_since_s = _now_s()
            self._building_rows = 0
        self._building.add(block)
        self._building_rows += rows + _ROWS_OF_BLOCK

    def built(self, block: Hashable) -> None:
        """It is; or its session is over. Does nothing the second time."""
        if block not in self._building:
            return
        self._building.discard(block)
        if not self._building:
            self._build_row_s = _mean(self._build_row_s, (_now_s() - self._building_since_s) / self._building_rows)

    def insert_begins(self, rows: int, blocks: int) -> None:
        """An insert of so many rows of so many blocks is on its way to the store."""
        self._inserting_since_s = _now_s()
        self._inserting_rows = rows + _ROWS_OF_NONE
        self._may_close.clear()
        if self._insert_row_s is not None:
            build_s = (self._build_row_s or 0.0) * (rows + blocks * _ROWS_OF_BLOCK)
            wait_s = self._insert_row_s * self._inserting_rows - _SLOWER * build_s
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._near_end)

    def insert_ends(self, *, done: bool) -> None:
        """It is done, or has failed, which tells nothing about how long one takes."""
        if done:
            took_s = _now_s() - self._inserting_since_s
            self._insert_row_s = _mean(self._insert_row_s, took_s / self._inserting_rows)
        if self._timer is not None:
            self._timer.cancel()
        if not self._may_close.is_set():
            self._near_end()

    def _near_end(self) -> None:
        self._may_close.set()
        if self._inserting_rows >= _ROWS_EARLY + _ROWS_OF_NONE:
            self.closes()


def _mean(before: float | None, last: float) -> float:
    return last if before is None else before + _NEWEST * (last - before)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
