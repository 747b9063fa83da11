"""Connections on the wire: requests that come whole and in parts are answered alike, in order, and all is bounded."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from door_bench import Doors
from test_door import AUTUMN, BODIES, EVENT, HEADERS, KABLE, MARKED, PATHS, USE
from uvicorn.config import Config
from uvicorn.server import Server

from producers.api import Services, build_app
from producers.connection import AHEAD_MAX, KEPT_BYTES, Connections
from producers.door import Api

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class QuietServer(Server):
    """Signals are the test's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


class Served:
    """The doors of a test, listening."""

    def __init__(self, doors: Doors, server: Server, port: int) -> None:
        self.doors = doors
        self.server = server
        self.port = port

    def connections(self) -> list[Any]:
        """As the server sees them."""
        return list(self.server.server_state.connections)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Opened]:
        """A connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def head(self, path: str, body: bytes, **headers: str) -> bytes:
        """Of a POST with the admin key, unless other headers are given; an empty header is left out."""
        given = {"authorization": f"Bearer {self.doors.key}", "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"content-length": str(len(body)), **given}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
        return f"POST {path} HTTP/1.1\r\nhost: tally\r\n{lines}\r\n".encode("latin-1")


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next answer: status, headers but the date, body."""
    status = int((await reader.readline()).split(b" ", 2)[1])
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(": ")
        headers[name] = value
    headers.pop("date", None)
    return status, headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until it is so."""
    while not condition():  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0)


@asynccontextmanager
async def listening(
    doors: Doors, connections: Connections | None = None, app: Api | None = None
) -> AsyncIterator[Served]:
    """The doors behind a port, in the event loop of the test."""
    made: Any = connections or Connections()
    options: dict[str, Any] = {"log_config": None, "access_log": False, "proxy_headers": False, "server_header": False}
    served = app or doors.app
    config = Config(lambda: served, port=0, factory=True, interface="asgi3", http=made, ws="none", **options)
    config.lifespan = "off"
    server = QuietServer(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield Served(doors, server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await serving


async def both(served: Served, path: str, body: bytes, **headers: str) -> tuple[Any, Any]:
    """The answers to a request that comes whole, and to one whose body comes once its head was read."""
    head = served.head(path, body, **headers)
    answers = []
    for parts in ([head + body], [head, body]):
        async with served.connected() as (reader, writer):
            for part in parts:
                writer.write(part)
                if part is head:
                    await until(lambda: any(one.idle_since is None for one in served.connections()))
            answers.append(await answer_of(reader))
        await until(lambda: not served.connections())
    return answers[0], answers[1]


@pytest.mark.parametrize("path", PATHS)
async def test_whole_and_in_parts_is_answered_alike(doors: Doors, path: str) -> None:
    """Whatever bodies and headers: status, headers and body, and as many events in the log."""
    plain: list[tuple[bytes, dict[str, str]]] = [(body, {}) for body in BODIES]
    marked = [(body, headers) for body in MARKED for headers in HEADERS if "content_length" not in headers]
    statuses = set()
    async with listening(doors) as served:
        for body, headers in [*plain, *marked]:
            before = len(doors.events())
            whole, parts = await both(served, path, body, **headers)
            assert whole == parts, (body[:100], headers)
            assert (len(doors.events()) - before) % 2 == 0
            statuses.add(whole[0])
    assert {401, 415} <= statuses


@pytest.mark.parametrize("path", [*KABLE, *AUTUMN])
async def test_troubles_are_told_alike(doors: Doors, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is away, a key without the scope, and a defect."""
    body = json.dumps(EVENT if path in KABLE else USE).encode()
    reader = await doors.key_with("read")
    async with listening(doors) as served:
        doors.log.away = True
        whole, parts = await both(served, path, body)
        assert (whole[0], whole) == (503, parts)
        assert "retry-after" in whole[1]
        doors.log.away = False
        whole, parts = await both(served, path, body, authorization=f"Bearer {reader}")
        assert (whole[0], whole) == (403, parts)

        async def broken(*_: Any, **__: Any) -> int:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(doors.log, "write", broken)
        whole, parts = await both(served, path, body)
        assert (whole[0], whole) == (500, parts)
        assert b"secret" not in whole[2]


async def test_a_key_made_by_another_process_a_moment_ago_is_good(doors: Doors) -> None:
    """The short way does not say no before the catalog was read to its end."""
    async with listening(doors) as served, served.connected() as (reader, writer):
        body = json.dumps(USE).encode()
        unknown = {**USE, "customer_id": "new", "idempotency_key": "n"}
        writer.write(served.head("/v1/events", body, authorization="Bearer tally_live_unknown") + body)
        assert (await answer_of(reader))[0] == 401
        body = json.dumps(unknown).encode()
        writer.write(served.head("/v1/events", body) + body)
        assert (await answer_of(reader))[0] == 200
    assert doors.catalog.catalog.customer("acme", "new") is not None


async def test_requests_ahead_of_their_turn_are_answered_in_order(doors: Doors) -> None:
    """On the short way and the ordinary one, in one write, whatever takes longer."""
    sent = b""
    async with listening(doors) as served, served.connected() as (reader, writer):
        for number in range(6):
            event = json.dumps({**EVENT, "transactionId": f"t-{number}"}).encode()
            body = event if number % 2 else b"[" + event + b"]"
            sent += served.head("/api/v1/events", body) + body + b"GET /livez HTTP/1.1\r\nhost: tally\r\n\r\n"
        writer.write(sent)
        for number in range(6):
            told = json.loads((await answer_of(reader))[2])
            assert told["events"][0]["transactionId"] == f"t-{number}"
            assert json.loads((await answer_of(reader))[2]) == {"status": "live"}


async def test_more_requests_ahead_than_are_kept_are_not_answered(doors: Doors) -> None:
    """The last one that is says that the connection closes."""
    async with listening(doors) as served, served.connected() as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nhost: tally\r\n\r\n" * 1000)
        said = [(await answer_of(reader))[1].get("connection") for _ in range(AHEAD_MAX + 1)]
        assert said == [None] * AHEAD_MAX + ["close"]
        assert await reader.read() == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"CONNECT tally:80 HTTP/1.1\r\nhost: tally\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: tally\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(doors: Doors, sent: bytes) -> None:
    """Nothing of it is an event."""
    async with listening(doors) as served, served.connected() as (reader, writer):
        writer.write(sent)
        found, headers, _ = await answer_of(reader)
        assert (found, headers["connection"]) == (400, "close")
        assert await reader.read() == b""
        assert doors.events() == []


@pytest.mark.parametrize("kind", ["head", "trailer"])
async def test_heads_and_trailers_without_end_are_refused(doors: Doors, kind: str) -> None:
    """No more than a little of them is kept."""
    async with listening(doors) as served, served.connected() as (reader, writer):
        chunked = served.head("/v1/events", b"", content_length="", transfer_encoding="chunked")
        writer.write(chunked + b"0\r\nx: a" if kind == "trailer" else chunked[:-10])
        await until(lambda: bool(served.connections() and served.connections()[0].headers))
        writer.write(b"a" * (KEPT_BYTES + 1))
        found, headers, _ = await answer_of(reader)
        assert (found, headers["connection"]) == (431, "close")
        assert await reader.read() == b""


async def test_a_request_to_upgrade_is_answered_as_any_other(doors: Doors) -> None:
    """Some clients ask for HTTP/2 with their first request, the body with it."""
    body = json.dumps(USE).encode()
    asked = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAAA"}
    async with listening(doors) as served, served.connected() as (reader, writer):
        for _ in range(2):
            writer.write((served.head("/v1/events", body, **asked) + body) * 2)
            assert [(await answer_of(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_is_closed_when_the_client_says_so(doors: Doors, version: str) -> None:
    """HTTP/1.0 always says so. What comes behind is no request."""
    body = json.dumps(USE).encode()
    async with listening(doors) as served, served.connected() as (reader, writer):
        said = {"connection": "close"} if version == "1.1" else {}
        head = served.head("/v1/events", body, **said).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        writer.write((head + body) * 2)
        status, headers, _ = await answer_of(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""
    assert len(doors.events()) == 1


@pytest.mark.parametrize("sent", [b"", b"POST /v1/events HTTP/1.1\r\nhost: ta"])
async def test_whoever_sends_no_whole_head_is_cut_off(doors: Doors, sent: bytes) -> None:
    """Idle time counts, after an answer too; a request under way does not."""
    connections = Connections(head_s=0.05, look_s=0.01)
    async with listening(doors, connections) as served, served.connected() as (reader, writer):
        body = json.dumps(USE).encode()
        writer.write(served.head("/v1/events", body) + body)
        assert (await answer_of(reader))[0] == 200
        writer.write(sent)
        assert await reader.read() == b""


async def test_connections_past_the_most_wait_for_their_turn(doors: Doors) -> None:
    """As many as may wait; the next one is closed at once."""
    ask = b"GET /livez HTTP/1.1\r\nhost: tally\r\n\r\n"
    async with (
        listening(doors, Connections(served_max=1, waiting_max=1)) as served,
        served.connected() as (first, first_writer),
        served.connected() as (second, second_writer),
    ):
        first_writer.write(ask)
        assert (await answer_of(first))[0] == 200
        await until(lambda: len(served.connections()) == 2)
        async with served.connected() as (third, _):
            assert await third.read() == b""
        second_writer.write(ask)
        answer = asyncio.create_task(answer_of(second))
        first_writer.write(ask)
        assert (await answer_of(first))[0] == 200
        assert not answer.done()
        first_writer.close()
        assert (await answer)[0] == 200


async def test_what_would_go_on_for_ever_is_told_that_the_process_stops(doors: Doors) -> None:
    """Before its connection is waited for."""
    stopped = asyncio.Event()
    app = build_app(Services(doors.intake, {}), stopping=[stopped.set])
    async with listening(doors, app=app) as served, served.connected() as (reader, _):
        await until(lambda: bool(served.connections()))
        served.server.should_exit = True
        await stopped.wait()
        assert await reader.read() == b""
