"""An HTTP/1.1 server on the loopback interface, one thread a connection. h11 has the protocol's rules.

Threads because the engine's calls block: a result goes from its block to the socket without a
detour, and a slow reader slows its own query only. Bounds: connections, size of head and body, and the
bytes of all bodies together; each has an answer of its own when it is full.
"""

import contextlib
import http
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11

_HEAD_BYTES_MAX: Final = 1 << 20  # a server's http_max_uri_size: parameters travel in the address
_READ_BYTES: Final = 1 << 18
_LARGE_BYTES: Final = 1 << 18  # of a body: from here on each copy of it counts
_IDLE_S: Final = 300
_LINGER_S: Final = 2.0
_TOGETHER_BYTES_MAX: Final = 1 << 16  # past that a copy costs more than a packet
_KEEP_ALIVE: Final = ("Keep-Alive", f"timeout={_IDLE_S}")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1", ""})
_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The request is answered with a status and a text, before anything looked into it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DisconnectedError(Exception):
    """The client went away; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the server. ``bodies_bytes`` is for all bodies that are in memory at one time."""

    connections: int = 256
    body_bytes: int = 512 << 20
    bodies_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body as sent, a large one as a bytearray. Header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes | bytearray


class Answer:
    """One response: `start` once, `write` any number of times, then `end`, or `abort`."""

    def __init__(self, connection: "_Connection") -> None:
        self._connection = connection
        self.started = False

    def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the head. Without Content-Length among the headers, the body goes out in chunks."""
        self.started = True
        self._connection.send(_response(status, [*headers, _KEEP_ALIVE]))

    def write(self, data: bytes) -> None:
        """Send a piece of the body; blocks while the client is slow. Raises DisconnectedError."""
        if data:
            self._connection.send(h11.Data(data=data))

    def end(self) -> None:
        """The body is complete."""
        self._connection.send(h11.EndOfMessage())

    def abort(self) -> None:
        """The body stays incomplete, and the client can tell: the connection is cut before the last chunk."""
        self._connection.cut()

    def whole(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """The entire answer at once; a small one as one packet, so that the client is woken once."""
        self.started = True
        head = _response(status, [*headers, ("Content-Length", str(len(body))), _KEEP_ALIVE])
        if len(body) > _TOGETHER_BYTES_MAX:
            self._connection.send(head)
            self._connection.send(h11.Data(data=body), h11.EndOfMessage())
        else:
            self._connection.send(head, h11.Data(data=body), h11.EndOfMessage())


Handler = Callable[[Request, Answer], None]


@dataclass(slots=True)
class _Budget:
    """Bytes of bodies that may be in memory together."""

    free: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        with self.lock:
            if size > self.free:
                raise RefusedError(
                    503, "the bodies of all running requests are too large together: send fewer at a time"
                )
            self.free -= size

    def give(self, size: int) -> None:
        with self.lock:
            self.free += size


class Server:
    """Serves ``handler`` on 127.0.0.1. `run` blocks until `stop`."""

    def __init__(self, port: int, handler: Handler, limits: Limits) -> None:
        """Listen; ``port`` 0 takes a free one. Raises OSError when the port is taken."""
        self._handler = handler
        self._limits = limits
        self._budget = _Budget(limits.bodies_bytes)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._wake_in, self._wake_out = socket.socketpair()
        self._open: set[_Connection] = set()
        self._changed = threading.Condition()

    def run(self) -> None:
        """Accept connections until `stop` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_in, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_in in ready:
                    break
                self._accept()
        self._listener.close()

    def stop(self) -> None:
        """Make `run` return. May be called from a signal handler."""
        with contextlib.suppress(OSError):  # a second call finds the socket full or closed: run is ending anyhow
            self._wake_out.send(b"x")

    def drain(self, timeout_s: float) -> bool:
        """Let running requests end, close idle connections; True when none is left."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            for connection in self._open:
                connection.finish()
            while self._open and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return not self._open

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError as error:  # the client gave up while it was in the queue, or files ran out: go on serving
            _log.warning("a connection could not be accepted: %s", error)
            return
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(peer, self._limits.body_bytes, self._budget)
        with self._changed:
            full = len(self._open) >= self._limits.connections
            self._open.add(connection)
        handler = _too_many if full else self._handler
        threading.Thread(target=self._serve, args=(connection, handler), daemon=True).start()

    def _serve(self, connection: "_Connection", handler: Handler) -> None:
        try:
            connection.serve(handler)
        finally:
            connection.close()
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()


def _response(status: int, headers: Iterable[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, reason=http.HTTPStatus(status).phrase, headers=list(headers))


def _too_many(_: Request, answer: Answer) -> None:
    body = b"Code: 210. DB::Exception: Too many connections: close some and try again. (NETWORK_ERROR)\n"
    answer.whole(503, [("Connection", "close"), ("X-ClickHouse-Exception-Code", "210")], body)


class _Connection:
    """One client's connection: requests one after another."""

    def __init__(self, peer: socket.socket, body_bytes_max: int, budget: _Budget) -> None:
        self._peer = peer
        self._body_bytes_max = body_bytes_max
        self._budget = budget
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._state = threading.Lock()
        self._idle = True
        self._finishing = False

    def serve(self, handler: Handler) -> None:
        """Answer requests until either side is done."""
        try:
            while self._turn(handler):
                self._http.start_next_cycle()
        except (DisconnectedError, OSError) as error:
            _log.debug("client went away: %s", error)

    def send(self, *events: h11.Event) -> None:
        """Send events of the answer together."""
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            try:
                self._peer.sendall(data)
            except OSError as error:
                raise DisconnectedError(str(error)) from error

    def finish(self) -> None:
        """No further request: a waiting connection ends at once, a working one after its answer."""
        with self._state:
            self._finishing = True
            if self._idle:
                self.cut()

    def cut(self) -> None:
        """End both directions now."""
        with contextlib.suppress(OSError):  # the client may have done it already
            self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the socket."""
        self._peer.close()

    def _turn(self, handler: Handler) -> bool:
        """One request and its answer; whether another one may follow."""
        answer = Answer(self)
        taken = 0
        try:
            self._peer.settimeout(_IDLE_S)
            head = self._next_event()
            with self._state:
                self._idle = False
            if not isinstance(head, h11.Request):
                return False
            body: bytes | bytearray
            if (size := self._declared(head)) >= _LARGE_BYTES:
                self._budget.take(size)
                taken = size
                body = self._large_body(head, size)
            else:
                pieces: list[bytes] = []
                for piece in self._body():
                    self._budget.take(len(piece))
                    taken += len(piece)
                    pieces.append(piece)
                body = b"".join(pieces)
            self._peer.settimeout(None)  # a slow reader of the answer slows its own statement only
            handler(_request(head, body), answer)
        except h11.RemoteProtocolError as error:
            return self._refuse(answer, RefusedError(error.error_status_hint, f"not HTTP/1.1: {error}"))
        except RefusedError as refusal:
            return self._refuse(answer, refusal)
        finally:
            self._budget.give(taken)
        with self._state:
            self._idle = True
            return not self._finishing and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _next_event(self) -> h11.Event | type[h11.PAUSED] | type[h11.NEED_DATA]:
        while True:
            event = self._http.next_event()
            if not isinstance(event, type) or event is h11.PAUSED:
                return event
            if self._http.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                data = self._peer.recv(_READ_BYTES)
            except TimeoutError as error:
                raise DisconnectedError("idle for too long") from error
            self._http.receive_data(data)

    def _declared(self, head: h11.Request) -> int:
        """The size of the body, where the head tells it; else 0."""
        size = int(next((value for name, value in head.headers if name == b"content-length"), b"0"))
        if size > self._body_bytes_max:
            raise self._too_large()
        return size

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than {self._body_bytes_max} bytes: send it in several requests")

    def _large_body(self, head: h11.Request, size: int) -> bytearray:
        """From the socket to where it stays: through h11 each byte would be copied four times more. The answer then
        goes through a protocol that has seen the same request without its body."""
        if self._http.they_are_waiting_for_100_continue:
            self.send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray(size)
        early, _ = self._http.trailing_data
        got = min(len(early), size)
        body[:got] = early[:got]
        with memoryview(body) as whole:
            while got < size:
                more = self._peer.recv_into(whole[got:])
                if not more:
                    raise DisconnectedError("the body broke off")
                got += more
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._http.receive_data(_without_body(head) + early[size:])
        self._http.next_event()
        self._http.next_event()
        return body

    def _body(self) -> Iterable[bytes]:
        """Pieces of the body; complete, or an exception: a body that breaks off is never acted upon."""
        size = 0
        while isinstance(event := self._next_event(), h11.Data):
            size += len(event.data)
            if size > self._body_bytes_max:
                raise self._too_large()
            yield bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise DisconnectedError("the body broke off")

    def _refuse(self, answer: Answer, refusal: RefusedError) -> bool:
        """Answer and close, giving a client that is still sending the time to read the answer."""
        if answer.started or self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.cut()
            return False
        body = f"{refusal.message}\n".encode()
        answer.whole(refusal.status, [("Connection", "close"), ("Content-Type", "text/plain; charset=UTF-8")], body)
        self._peer.shutdown(socket.SHUT_WR)
        self._peer.settimeout(_LINGER_S)
        deadline = time.monotonic() + _LINGER_S
        while time.monotonic() < deadline and self._peer.recv(_READ_BYTES):
            pass
        return False


def _without_body(head: h11.Request) -> bytes:
    """The head of the same request without a body."""
    kept = [name + b": " + value for name, value in head.headers if name not in (b"content-length", b"expect")]
    first = b"%s %s HTTP/%s" % (head.method, head.target, head.http_version)
    return b"\r\n".join([first, *kept, b"", b""])


def _request(head: h11.Request, body: bytes | bytearray) -> Request:
    target = urlsplit(head.target.decode("latin-1"))
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    _local_only(headers)
    try:
        query = dict(parse_qsl(target.query, keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the address is not UTF-8: {error}") from error
    return Request(head.method.decode(), target.path, query, headers, body)


def _local_only(headers: dict[str, str]) -> None:
    """Web pages of other sites must not reach the engine through a visitor's browser."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    origin = urlsplit(headers.get("origin", "")).hostname or ""
    if host not in _LOOPBACK or origin not in _LOOPBACK:
        raise RefusedError(403, "this server answers to 127.0.0.1 and localhost only")
