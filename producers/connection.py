"""A connection of the API: uvicorn's HTTP/1.1 protocol, with bounds, and with a short way for the doors.

Rules: a POST to a door whose head and small body came in one read is answered past ASGI: no channels, one write.
Whatever is large, comes in parts, or behind a request that is not answered yet, goes the ordinary way, where
`producers.body_limits` bounds bodies. Both ways give the same answers, in the order of the requests.
uvicorn bounds neither connections nor heads, so that is done here: a process serves `CONNECTIONS_MAX` connections, as
many as `WAITING_MAX` more wait for one of them to end, and others are closed. A connection has `HEAD_S` for the head of
its next request, idle time included. What is kept of a head or trailer is `KEPT_BYTES` and one read; what is kept of
requests that came ahead of their turn is one read, and `AHEAD_MAX` of them: the last one is told that the connection
closes.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from producers.body_limits import CONNECTIONS_MAX, SMALL_BYTES
from producers.door import Api, Door, headers_of_answer
from producers.incoming import Answer, Call

WAITING_MAX: Final = 2048  # as many as the socket's queue takes
HEAD_S: Final = 30.0  # longer than the pauses of clients that keep a connection
KEPT_BYTES: Final = 64 << 10
AHEAD_MAX: Final = 32  # some 4 kB each in uvicorn's objects
LOOK_S: Final = 1.0
_CLOSE: Final = b"connection: close\r\n"
_REFUSALS: Final = {400: b"this is no HTTP/1.1 request", 431: b"the head of the request is too large"}


class Connections:
    """The connections of one process. uvicorn calls it for each new one."""

    def __init__(
        self,
        *,
        served_max: int = CONNECTIONS_MAX,
        waiting_max: int = WAITING_MAX,
        head_s: float = HEAD_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._served_max = served_max
        self._waiting_max = waiting_max
        self._head_s = head_s
        self._look_s = look_s
        self._served: set[Connection] = set()
        self._waiting: deque[Connection] = deque()
        self._looking: asyncio.TimerHandle | None = None

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "Connection":
        """A protocol for the next connection."""
        return Connection(self, config, server_state, app_state, _loop)

    def begun(self, connection: "Connection") -> None:
        """It is served now, or once another one has ended."""
        if len(self._served) < self._served_max:
            self._serve(connection)
        elif len(self._waiting) < self._waiting_max:
            self._waiting.append(connection)
            connection.loop.call_soon(self._hold, connection)  # the event loop begins to read after this call
        else:
            connection.transport.abort()

    def ended(self, connection: "Connection") -> None:
        """Whoever has waited longest takes its place."""
        if connection not in self._served:
            return
        self._served.discard(connection)
        while self._waiting:
            following = self._waiting.popleft()
            if not following.transport.is_closing():
                self._serve(following)
                following.transport.resume_reading()
                return

    def _serve(self, connection: "Connection") -> None:
        self._served.add(connection)
        connection.idle_since = connection.loop.time()
        if self._looking is None:
            self._looking = connection.loop.call_later(self._look_s, self._look, connection.loop)

    def _hold(self, connection: "Connection") -> None:
        if connection not in self._served and not connection.transport.is_closing():
            connection.transport.pause_reading()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes those whose time is over. One timer for all: each its own would cost every request more."""
        latest = loop.time() - self._head_s
        for connection in self._served:
            if connection.idle_since is not None and connection.idle_since < latest:
                connection.idle_since = None
                connection.transport.close()  # once what was answered is sent
        self._looking = loop.call_later(self._look_s, self._look, loop) if self._served else None


class Connection(HttpToolsProtocol):
    """One connection. `idle_since`: since when it waits for a whole head; None while a request is answered."""

    def __init__(
        self,
        all_of_them: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.idle_since: float | None = None
        self._all = all_of_them
        self._api = cast("Api", config.loaded_app)
        self._doors = self._api.doors
        self._door: Door | None = None  # of a request on the short way that is not whole yet
        self._parts: list[bytes] = []  # of its body
        self._kept = 0
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._all.begun(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._all.ended(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deaf:
            return
        self._kept += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            self._go_on_in_http(data[asked.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(400)
            return
        if self._door is not None:  # it is not whole
            self._take_long_way(b"".join(self._parts))
            self._parts = []
        if self._kept > KEPT_BYTES:
            self._refuse(431)

    def on_message_begin(self) -> None:
        """Of the parser."""
        self._kept = 0
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """Of the parser."""
        self._kept = 0
        self.idle_since = None
        if self.parser.should_upgrade():
            return  # the parser ends the message here, and raises
        free = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing() or not (free or self.cycle.keep_alive):
            raise _Unwanted
        if free and self.url in self._doors and self.parser.get_method() == b"POST" and not self.flow.write_paused:
            self._door = self._doors[self.url]
        elif not free and len(self.pipeline) >= AHEAD_MAX:
            raise _Unwanted
        else:
            self._take_long_way()

    def on_body(self, body: bytes) -> None:
        """Of the parser."""
        self._kept = 0
        if self._door is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Of the parser."""
        self._kept = 0
        if self.parser.should_upgrade():
            return
        door, self._door = self._door, None
        if door is None:
            super().on_message_complete()
            return
        body, self._parts = b"".join(self._parts), []
        if len(body) > SMALL_BYTES:
            self._take_long_way(body)  # it counts in the pool of large ones
            super().on_message_complete()
            return
        alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        short = _Short(keep_alive=alive)
        self.cycle = cast("RequestResponseCycle", short)
        scope = {"type": "http", "method": "POST", "path": self.url.decode(), "headers": self.headers, "state": {}}
        call = Call(scope, None, door.body_bytes_max, body)
        if not self._api.answer_at_once(door, call, partial(self._write, short)):
            task = self.loop.create_task(self._answered(short, door, call))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """The answer was written: the next request's turn."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.idle_since = self.loop.time()

    def shutdown(self) -> None:
        """The process stops: what was begun is answered."""
        self._api.stopping()
        super().shutdown()

    async def _answered(self, short: "_Short", door: Door, call: Call) -> None:
        self._write(short, await self._api.answer(door, call))

    def _write(self, short: "_Short", answer: Answer) -> None:
        if self.transport.is_closing():
            return
        parts = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *headers_of_answer(answer)):
            parts += (name, b": ", value, b"\r\n")
        if not short.keep_alive:
            parts.append(_CLOSE)
        parts += (b"\r\n", answer.body)
        self.transport.write(b"".join(parts))
        short.response_complete = True
        if not short.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _go_on_in_http(self, rest: bytes) -> None:
        """A request that asks for another protocol is answered as if it had not: clients ask for HTTP/2 so, the body
        with it, which the parser would not read."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(400)
            return
        first = b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())
        headers = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.data_received(b"\r\n".join((first, *headers, b"", rest)))

    def _take_long_way(self, body: bytes = b"") -> None:
        """uvicorn makes its objects for the request, which the short way does without; `body`: what there is of it."""
        self._door = None
        url, headers, expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expected
        self.scope["headers"] = headers
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _refuse(self, status: int) -> None:
        """Nothing more is read of this connection; what came before is still answered."""
        self._deaf = True
        self._door = None
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self.transport.is_closing():
            return
        if not under_way or not (self.cycle.response_started or self.pipeline):
            told = _REFUSALS[status]
            length = b"content-type: text/plain\r\ncontent-length: %d\r\n" % len(told)
            self.transport.write(b"".join((STATUS_LINE[status], length, _CLOSE, b"\r\n", told)))
        self.transport.close()


class _Short:
    """A request on the short way, as uvicorn's protocol looks at those under way."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")
    more_body = False  # it is whole

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NOBODY_WAITS


class _NobodyWaits:
    def set(self) -> None:
        """Nobody waits."""


_NOBODY_WAITS: Final = _NobodyWaits()


class _Unwanted(Exception):  # noqa: N818 - told to the parser, to end it
    """A request behind the last one of the connection, or behind more than are kept."""
