"""An event loop whose clock jumps from one timer to the next, and executors in its time: runs are exact and quick."""

import asyncio
import selectors
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class NothingHappensAnyMore(Exception):  # noqa: N818
    """Every task waits, and no timer is set: the program is stuck."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise NothingHappensAnyMore
        self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Single-threaded; `time()` starts at 0 and moves only when every task waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def _write_to_self(self) -> None:
        """Nobody sleeps in the selector."""


def run_virtually(main: Callable[[], Any]) -> Any:
    """Runs a coroutine function on a new virtual loop, and cancels what it leaves behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class VirtualExecutor(Executor):
    """Work takes the virtual time that `takes_s` says and has its effect at the end of it, cancelled or not, as a
    thread has. `serial`: one thing at a time; what still waits can be cancelled. Dead ones do nothing any more."""

    def __init__(self, takes_s: Callable[[], float], *, serial: bool) -> None:
        self.dead = False
        self._takes_s = takes_s
        self._serial = serial
        self._busy = False
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> "Future[_T]":
        future: Future[_T] = Future()
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        self._begin()
        return future

    def _begin(self) -> None:
        while self._waiting and not (self._serial and self._busy):
            future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                self._busy = True
                asyncio.get_running_loop().call_later(self._takes_s(), self._finish, future, work)

    def _finish(self, future: "Future[Any]", work: Callable[[], Any]) -> None:
        self._busy = False
        if self.dead:
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(error)
        self._begin()
