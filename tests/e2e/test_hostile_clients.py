"""Clients that mean ill, or cannot do better, against the running API: memory stays bounded, others are served."""

import asyncio
import json
import resource
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from running_stack import RunningStack, Tenant, fresh_tenant

CONNECTIONS: Final = 1000
GROWTH_BYTES_MAX: Final = 600 << 20  # the pool of an account, small bodies, buffers of connections, and generous room
_TIME: Final = "2026-11-03T10:20:00Z"
_EVENT: Final = {"clientId": "c", "timestamp": _TIME, "eventName": "e"}
_TIME_LIMIT: Final = httpx.Timeout(300)

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _head(stack: RunningStack, tenant: Tenant, length: int) -> bytes:
    """Of a request that announces so long a body."""
    return (
        f"POST /api/v1/events HTTP/1.1\r\nHost: {urlsplit(stack.api).netloc}\r\n"
        f"Authorization: Bearer {tenant.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _rss(stack: RunningStack) -> int:
    """Bytes of memory of the API's processes."""
    whole = psutil.Process(stack.part("api")["pid"])
    return sum(process.memory_info().rss for process in [whole, *whole.children(recursive=True)])


@asynccontextmanager
async def _connected(stack: RunningStack, number: int = CONNECTIONS) -> AsyncIterator[list[Opened]]:
    """So many connections at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    address = urlsplit(stack.api)
    opened = [await asyncio.open_connection(address.hostname, address.port) for _ in range(number)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in opened), return_exceptions=True)


async def _served(stack: RunningStack, tenant: Tenant, name: str) -> None:
    """A well-behaved client asks for health, records events and reads, as ever."""
    async with httpx.AsyncClient(base_url=stack.api, headers=tenant.headers, timeout=_TIME_LIMIT) as client:
        assert (await client.get("/livez")).status_code == 200
        for number in range(5):
            body = {**_EVENT, "transactionId": f"{name}-{number}"}
            answer = await client.post("/api/v1/events", json=body)
            assert answer.status_code == 200, answer.text
        assert (await client.get("/v1/catalog/features")).status_code == 200


async def _last_words(reader: asyncio.StreamReader) -> bytes:
    """Everything that the server says until it closes the connection."""
    found = b""
    try:
        while part := await reader.read(1 << 16):
            found += part
    except ConnectionResetError:
        pass  # closed with bytes of ours unread
    return found


def _statuses(answers: Iterable[bytes]) -> set[bytes]:
    return {answer.split(b" ", 2)[1] if answer else b"" for answer in answers}


async def test_a_thousand_connections_at_once_are_all_answered(stack: RunningStack, tenant: Tenant) -> None:
    """Each with an event of its own, all open before any is sent."""
    async with _connected(stack) as opened:
        for number, (_, writer) in enumerate(opened):
            body = json.dumps({**_EVENT, "transactionId": f"many-{number}"}).encode()
            writer.write(_head(stack, tenant, len(body)) + body)
        answers = await asyncio.gather(*(reader.readline() for reader, _ in opened))
    assert _statuses(answers) == {b"200"}


async def test_a_thousand_bodies_that_stall_hold_up_nobody(stack: RunningStack, tenant: Tenant) -> None:
    """Others, and the same account, are answered while they are open; each stalled one then gets its 408, and its
    connection is closed."""
    other = await asyncio.to_thread(fresh_tenant, stack)
    async with _connected(stack) as opened:
        for _, writer in opened:
            writer.write(_head(stack, tenant, 1_000_000) + b"[{")
        waiting = [asyncio.create_task(_last_words(reader)) for reader, _ in opened]
        await _served(stack, other, "others")
        await _served(stack, tenant, "own")
        assert not all(task.done() for task in waiting), "they were to be open meanwhile"
        answers = await asyncio.gather(*waiting)
    assert _statuses(answers) == {b"408"}
    assert all(b"connection: close" in answer.lower() and b"too_slow" in answer for answer in answers)


async def test_large_bodies_that_stall_take_bounded_memory(stack: RunningStack, tenant: Tenant) -> None:
    """A thousand of 600 kB: what no room is left for is told to come again, and small requests are served."""
    other = await asyncio.to_thread(fresh_tenant, stack)
    before = await asyncio.to_thread(_rss, stack)

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(stack, tenant, 9_000_000) + b"[")
        try:
            for _ in range(10):
                writer.write(b" " * 60_000)
                await writer.drain()
        except ConnectionError:
            pass  # refused and closed: its answer tells

    async with _connected(stack) as opened:
        waiting = [asyncio.create_task(_last_words(reader)) for reader, _ in opened]
        sending = [asyncio.create_task(send(writer)) for _, writer in opened]
        await _served(stack, other, "others-large")
        await _served(stack, tenant, "own-large")
        await asyncio.gather(*sending)
        grown = await asyncio.to_thread(_rss, stack) - before
        answers = await asyncio.gather(*waiting)
    assert grown < GROWTH_BYTES_MAX
    assert {b"408", b"429"} <= _statuses(answers) <= {b"408", b"429", b""}  # reset before its answer was read: b""
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
    assert all(b"retry-after: 1" in answer.lower() and b"connection: close" in answer.lower() for answer in refused)
    await _served(stack, tenant, "after-large")


@pytest.mark.parametrize("kind", ["headers", "nothing", "half-and-gone", "unread"])
async def test_other_stalled_connections_hold_up_nobody(stack: RunningStack, tenant: Tenant, kind: str) -> None:
    """A thousand that stop in their headers, say nothing at all, or never read; a thousand that hang up in mid-body."""
    before = await asyncio.to_thread(_rss, stack)
    head = _head(stack, tenant, 100)
    async with _connected(stack) as opened:
        for _, writer in opened:
            if kind == "headers":
                writer.write(head[:-10])
            elif kind == "half-and-gone":
                writer.write(head + b"[{")
                writer.close()
            elif kind == "unread":
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of sockets can
                writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: tally\r\n\r\n")
        await _served(stack, tenant, kind)
        assert await asyncio.to_thread(_rss, stack) - before < GROWTH_BYTES_MAX
        if kind in ("headers", "nothing"):
            await asyncio.gather(*(_last_words(reader) for reader, _ in opened))  # the server closes them by itself
    await _served(stack, tenant, f"after-{kind}")


_START: Final = f'{{"clientId":"c","timestamp":"{_TIME}",'.encode()
_DOCUMENTS: Final = {
    "deep object": _START + b'"data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "deep list": b"[" * 1_000_000,
    "deep list in data": _START + b'"data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "a million digits": _START + b'"value":' + b"9" * 1_000_000 + b"}",
    "a huge exponent": _START + b'"value":1e999999999}',
    "no number": _START + b'"value":NaN}',
    "a key twice": _START + b'"clientId":"d"}',
    "a key twice in data": _START + b'"data":{"a":1,"a":2}}',
    "no UTF-8": _START + b'"eventName":"\xff\xfe"}',
    "half a surrogate": _START + b'"eventName":"\\ud800"}',
    "cut off": _START + b'"eventName":"e',
    "two documents": _START[:-1] + b"}" + _START[:-1] + b"}",
    "a million quotes": b'"' * 1_000_000,
    "nothing": b"",
}
_DOORS: Final = ("/api/v1/events", "/api/v1/events/create", "/v1/events", "/segment/v1/track", "/graphql")


@pytest.mark.parametrize("door", [*_DOORS, "/v1/events/batch"])
async def test_hostile_documents_are_refused(stack: RunningStack, tenant: Tenant, door: str) -> None:
    """Deep, huge, ambiguous or broken: refused with a reason, never a 5xx nor recorded, and others are served."""
    before = await asyncio.to_thread(_rss, stack)
    headers = {**tenant.headers, "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=stack.api, headers=headers, timeout=_TIME_LIMIT) as client:
        asked = [
            client.post(door, content=b"[" + body + b"]" if door.endswith("batch") else body)
            for body in _DOCUMENTS.values()
        ]
        served = _served(stack, tenant, f"documents-{door}")
        answers, _ = await asyncio.gather(asyncio.gather(*asked), served)
    for name, answer in zip(_DOCUMENTS, answers, strict=True):
        told = (name, answer.status_code, answer.text[:500])
        assert answer.status_code < 500, told
        document = answer.json()
        if answer.is_success:  # doors that have a verdict for each event
            assert document.get("accepted", 0) == 0, told
            assert document.get("errors") or document.get("results"), told
        else:
            assert document.get("detail") or document.get("errors"), told
    assert await asyncio.to_thread(_rss, stack) - before < GROWTH_BYTES_MAX


def _bomb() -> bytes:
    """A gigabyte of spaces in one megabyte."""
    packing = zlib.compressobj(wbits=31)
    return b"".join([*(packing.compress(b" " * (1 << 20)) for _ in range(1024)), packing.flush()])


async def test_gzip_bombs_are_refused_at_the_limit_of_a_body(stack: RunningStack, tenant: Tenant) -> None:
    """Twenty at once, each a gigabyte unpacked, where bodies may be compressed; elsewhere they are not unpacked."""
    bomb = await asyncio.to_thread(_bomb)
    before = await asyncio.to_thread(_rss, stack)
    headers = {**tenant.headers, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(base_url=stack.api, headers=headers, timeout=_TIME_LIMIT) as client:
        taken = [client.post(door, content=bomb) for door in ("/v1/events/batch", "/api/v1/events") for _ in range(10)]
        refused = [client.post("/graphql", content=bomb) for _ in range(5)]
        answers, _ = await asyncio.gather(asyncio.gather(*taken, *refused), _served(stack, tenant, "bombs"))
    assert [answer.status_code for answer in answers] == [413] * 20 + [415] * 5
    assert await asyncio.to_thread(_rss, stack) - before < GROWTH_BYTES_MAX
