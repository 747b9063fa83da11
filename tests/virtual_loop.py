"""An event loop whose clock jumps from one timer to the next, and executors in its time: runs are exact and quick.

The loop keeps asyncio's promises of order (first come, first served; timers by their time) and leaves out what a
simulation does not need: no selector, no threads, no debug mode.
"""

import asyncio
import contextvars
import heapq
import selectors
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_BATCH: Final = 256


class NothingHappensAnyMore(Exception):  # noqa: N818
    """Every task waits, and no timer is set: the program is stuck."""


class _Handle:
    """What is to be called, once; asyncio's handles without their debugging."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(self, when: float, callback: Callable[..., Any], args: Any, context: Any) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when


class VirtualLoop(asyncio.SelectorEventLoop):
    """Single-threaded; `time()` starts at 0 and moves only when every task waits. `steps`: callbacks run so far;
    `jumps`: timers fired."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.steps = 0
        self.jumps = 0
        self._now_s = 0.0
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._number = 0

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = _Handle(self._now_s, callback, args, context or contextvars.copy_context())
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = _Handle(when, callback, args, context or contextvars.copy_context())
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        if isinstance(executor, VirtualExecutor):
            return executor.begin(self, lambda: func(*args))
        return super().run_in_executor(executor, func, *args)

    def _run_once(self) -> None:
        """What BaseEventLoop.run_forever repeats until it is stopped."""
        soon, timers = self._soon, self._timers
        for _ in range(_BATCH):
            if not soon:
                while timers and timers[0][2]._cancelled:
                    heapq.heappop(timers)
                if not timers:
                    raise NothingHappensAnyMore
                self._now_s = max(self._now_s, timers[0][0])
                while timers and timers[0][0] <= self._now_s:
                    handle = heapq.heappop(timers)[2]
                    if not handle._cancelled:
                        soon.append(handle)
                        self.jumps += 1
            now = len(soon)
            self.steps += now
            for _ in range(now):
                handle = soon.popleft()
                if not handle._cancelled:
                    self._call(handle)
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _call(self, handle: _Handle) -> None:
        try:
            handle._context.run(handle._callback, *handle._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self.call_exception_handler({"message": f"Exception in {handle._callback!r}", "exception": error})


def run_virtually(main: Callable[[], Any]) -> Any:
    """Runs a coroutine function on a new virtual loop, and cancels what it leaves behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class VirtualExecutor(Executor):
    """Work takes the virtual time that `takes_s` says and has its effect at the end of it, cancelled or not, as a
    thread has. `serial`: one thing at a time; what still waits can be cancelled. Dead ones do nothing any more.
    Only for `run_in_executor` of a VirtualLoop."""

    def __init__(self, takes_s: Callable[[], float], *, serial: bool) -> None:
        self.dead = False
        self._takes_s = takes_s
        self._serial = serial
        self._busy = False
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()

    def begin(self, loop: VirtualLoop, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """The work's result, to be awaited."""
        future: asyncio.Future[_T] = loop.create_future()
        self._waiting.append((future, work))
        self._next(loop)
        return future

    def _next(self, loop: VirtualLoop) -> None:
        while self._waiting and not (self._serial and self._busy):
            future, work = self._waiting.popleft()
            if not future.cancelled():
                self._busy = True
                loop.call_later(self._takes_s(), self._finish, loop, future, work)

    def _finish(self, loop: VirtualLoop, future: "asyncio.Future[Any]", work: Callable[[], Any]) -> None:
        self._busy = False
        if self.dead:
            return
        try:
            result = self.do(work)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)
        self._next(loop)

    def do(self, work: Callable[[], _T]) -> _T:
        """Does it; a subclass may let the thread's process end before or after."""
        return work()
