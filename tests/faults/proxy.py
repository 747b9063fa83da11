"""A TCP proxy with a hand on it: what a network does to two programs, done on purpose.

It stands between one client and one server of this machine. Rules: bytes pass unchanged and in order, or not at all;
controls act at once on every open connection and on those to come; it runs in a thread of its own, so that tests
stay plain functions. Modes by direction: `up` is from client to server, `down` the answer.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

Direction = Literal["up", "down"]
_CHUNK: Final = 1 << 16
_T = TypeVar("_T")


@dataclass
class _State:
    """How the proxy behaves now. Delays in seconds, by direction."""

    refusing: bool = False
    black_hole: bool = False  # connections are taken and nobody is behind them
    dropped: frozenset[Direction] = frozenset()
    up_s: float = 0.0
    down_s: float = 0.0
    swallow: int = 0  # answers that will be lost after their request was passed on
    match: bytes = b""  # in the request whose answer is lost


class _Link:
    """One connection, both ways. `doomed`: its answer is swallowed, then it is reset."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self.ends = [end for end in (client, server) if end is not None]
        self.doomed = False
        self.tail = b""

    def reset(self) -> None:
        """Ends both sides with RST, as a firewall does."""
        for end in self.ends:
            sock = end.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class Proxy:
    """Listens on `port` (0: a free one) of 127.0.0.1 and passes everything to `target` (host, port); without one,
    until `aim`, it resets what comes."""

    def __init__(self, target: tuple[str, int] | None = None, port: int = 0) -> None:
        self._target = target
        self._state = _State()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.swallowed = 0
        self.passed = {"up": 0, "down": 0}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._serve, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]

    # -- controls

    def aim(self, target: tuple[str, int]) -> None:
        """Where connections that come from now on are passed to."""
        self._target = target

    def cut(self) -> None:
        """Resets every connection and every new one, until `heal`."""
        self._set(refusing=True)
        self._call(self._reset_all)

    def refuse(self) -> None:
        """New connections are reset; those that are open go on, until `heal`."""
        self._set(refusing=True)

    def delay(self, *, up_s: float = 0.0, down_s: float = 0.0) -> None:
        """Every piece waits that long, by direction, until `heal`."""
        self._set(up_s=up_s, down_s=down_s)

    def half_open(self) -> None:
        """Nothing passes any more in either direction; connections stay, new ones are taken: a dead switch."""
        self._set(black_hole=True)

    def drop(self, direction: Direction) -> None:
        """Bytes of one direction vanish, those of the other pass; what was dropped never comes."""
        self._set(dropped=frozenset([direction]))

    def swallow(self, answers: int, *, match: bytes = b"") -> None:
        """The next so many answers to requests with `match` in them are lost: each request arrives, its answer is
        taken from the server and the connection is reset instead of passing it on."""
        self._set(swallow=answers, match=match)

    def heal(self) -> None:
        """Everything passes again. Connections that were half open are reset: their streams have holes."""

        def act() -> None:
            torn = self._state.black_hole or self._state.dropped
            self._state = _State()
            self._changed.set()
            if torn:
                self._reset_all()

        self._call(act)

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def stop(self) -> None:
        """Ends every connection and stops listening."""
        if not self._thread.is_alive():
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    # -- in the proxy's thread

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        link = _Link(writer, None)
        self._links.add(link)
        try:
            await self._link(link, reader, writer)
        except* (OSError, asyncio.CancelledError):
            pass  # either side has ended it
        finally:
            link.reset()
            self._links.discard(link)

    async def _link(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state.refusing or self._target is None:
            return
        if self._state.black_hole:
            await self._wait_while_dead()
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            return
        link.ends.append(to_server)
        await self._both(link, (reader, to_server), (from_server, writer))

    async def _both(
        self,
        link: _Link,
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        down: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass(link, "up", *up))
            tasks.create_task(self._pass(link, "down", *down))

    async def _pass(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(_CHUNK):
            wait_s = self._state.up_s if direction == "up" else self._state.down_s
            if wait_s:
                await asyncio.sleep(wait_s)
            if self._state.black_hole or direction in self._state.dropped:
                continue  # it was sent, and is nowhere
            if direction == "up":
                self._look(link, piece)
            elif link.doomed:
                self.swallowed += 1
                raise ConnectionResetError
            writer.write(piece)
            await writer.drain()
            self.passed[direction] += len(piece)
        if writer.can_write_eof():
            writer.write_eof()
        if direction == "down":
            raise ConnectionResetError  # the server has ended it: so does the proxy

    def _look(self, link: _Link, piece: bytes) -> None:
        """Whether this request's answer is to be lost; the mark may lie across two pieces."""
        if self._state.swallow <= 0 or link.doomed:
            return
        mark = self._state.match
        seen = link.tail + piece
        if mark in seen:
            link.doomed = True
            self._state.swallow -= 1
        link.tail = seen[-(len(mark) - 1) :] if len(mark) > 1 else b""

    async def _wait_while_dead(self) -> None:
        while self._state.black_hole:
            self._changed.clear()
            await self._changed.wait()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _end(self) -> None:
        self._server.close()
        self._reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    # -- from other threads

    def _set(self, **changes: Any) -> None:
        def act() -> None:
            for name, value in changes.items():
                setattr(self._state, name, value)

        self._call(act)

    def _call(self, act: Any) -> None:
        async def run() -> None:
            act()

        self._do(run())

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
