"""Doors: the short way and the framework's route give the same answers, byte for byte."""

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
from door_bench import Doors

EVENT = {"clientId": "124", "timestamp": "2026-01-01T00:00:00Z", "transactionId": "t"}
USE = {"customer_id": "124", "event_name": "email_generation", "idempotency_key": "t"}
CLOUD = {"specversion": "1.0", "id": "1", "source": "s", "type": "email_generation", "subject": "124"}
TRACK = {"userId": "124", "event": "email_generation", "messageId": "m", "properties": {"a": 1}}

KABLE = ("/api/v1/events", "/api/v1/events/create")
AUTUMN = ("/v1/events", "/v1/track", "/v1/balances.track")
LISTS = ("/v1/events/batch", "/v1/balances.batch_track", "/segment/v1/batch", "/segment/v1/import")
SEGMENT = ("/segment/v1/track", "/segment/v1/identify")
PATHS = (*KABLE, *AUTUMN, *LISTS, *SEGMENT)

BODIES = [
    b"",
    b" ",
    b"{",
    b"[]",
    b"[1,2]",
    b'"text"',
    b"\xff",
    b"{}",
    json.dumps(EVENT).encode(),
    json.dumps({**EVENT, "value": "x"}).encode(),
    json.dumps([EVENT, {}]).encode(),
    json.dumps(EVENT).encode() + b"\n" + json.dumps(EVENT).encode(),
    json.dumps(USE).encode(),
    json.dumps({**USE, "event_name": "nothing"}).encode(),
    json.dumps({**USE, "customer_data": {"email": 1}}).encode(),
    json.dumps([USE, USE]).encode(),
    json.dumps([USE, {}]).encode(),
    json.dumps(CLOUD).encode(),
    json.dumps([CLOUD, {**CLOUD, "subject": ""}]).encode(),
    json.dumps(TRACK).encode(),
    json.dumps({"batch": [{**TRACK, "type": "track"}, {"type": "page"}]}).encode(),
    json.dumps({"batch": [{**TRACK, "type": "track"}, {"type": "track"}]}).encode(),
    gzip.compress(json.dumps(EVENT).encode(), mtime=0),
    b"[" + b" " * 300_000 + b"]",
]
MARKED = [json.dumps(body).encode() for body in (EVENT, USE, [EVENT], {"batch": [{**TRACK, "type": "track"}]})]
MARKED.append(gzip.compress(MARKED[0], mtime=0))
HEADERS: list[dict[str, str]] = [
    {},
    {"content_type": "application/x-ndjson"},
    {"content_type": "application/json; charset=utf-8"},
    {"content_type": 'application/JSON;charset="latin-1"'},
    {"content_type": ""},
    {"content_type": "application/cloudevents+json"},
    {"content_type": "application/cloudevents-batch+json; charset=UTF-8"},
    {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "s", "ce_type": "email_generation", "ce_subject": "124"},
    {"content_encoding": "gzip"},
    {"content_encoding": "br"},
    {"idempotency_key": '"k"'},
    {"idempotency_key": "x" * 300},
    {"authorization": ""},
    {"authorization": "Bearer tally_live_unknown"},
    {"authorization": "Digest a"},
    {"authorization": "Basic !"},
    {"x_api_key": "another"},
    {"kable_client_id": "somebody"},
    {"content_length": "99999999"},
]


async def both(doors: Doors, path: str, **given: Any) -> tuple[httpx.Response, httpx.Response]:
    """The answers of the short way, and of the framework's route, which alone takes a slash at the end."""
    return await doors.post(path, **given), await doors.post(path + "/", **given)


def said(answer: httpx.Response, path: str) -> tuple[int, list[tuple[str, str]], str]:
    """All that a client sees of it."""
    return answer.status_code, sorted(answer.headers.multi_items()), answer.text.replace(path + "/", path)


@pytest.mark.parametrize("path", PATHS)
async def test_both_ways_say_the_same(doors: Doors, path: str) -> None:
    """Of whatever bodies and headers: status, headers and body, and as many events in the log."""
    statuses = set()
    plain: list[tuple[bytes, dict[str, str]]] = [(body, {}) for body in BODIES]
    for body, headers in [*plain, *((body, headers) for body in MARKED for headers in HEADERS)]:
        before = len(doors.events())
        short = await doors.post(path, content=body, **headers)
        between = len(doors.events())
        long = await doors.post(path + "/", content=body, **headers)
        assert said(short, path) == said(long, path), (body[:100], headers)
        assert len(doors.events()) - between == between - before
        statuses.add(short.status_code)
    assert {401, 415} <= statuses


@pytest.mark.parametrize("path", PATHS)
async def test_both_ways_ask_for_the_scope(doors: Doors, path: str) -> None:
    """A key that may only read is refused, in the same words."""
    key = await doors.key_with("read")
    short, long = await both(doors, path, body=EVENT, authorization=f"Bearer {key}")
    assert short.status_code == 403
    assert said(short, path) == said(long, path)


@pytest.mark.parametrize("path", PATHS)
async def test_both_ways_say_that_the_log_is_away(doors: Doors, path: str) -> None:
    """503 with Retry-After."""
    doors.log.away = True
    whole = {**TRACK, "type": "track"}
    bodies: dict[str, object] = {
        **dict.fromkeys(KABLE, EVENT),
        **dict.fromkeys(AUTUMN, USE),
        **{path: {"batch": [whole]} for path in LISTS},
        **dict.fromkeys(SEGMENT, TRACK),
        "/v1/events/batch": [EVENT],
        "/v1/balances.batch_track": [USE],
    }
    short, long = await both(doors, path, body=bodies[path])
    assert said(short, path) == said(long, path)
    if path != "/segment/v1/identify":
        assert (short.status_code, "retry-after" in short.headers) == (503, True)


@pytest.mark.parametrize("path", PATHS)
async def test_a_defect_is_a_500_that_tells_nothing(doors: Doors, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both ways."""

    def broken() -> int:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(doors.intake, "clock_us", broken)
    body = {"/segment/v1/batch": {"batch": [{**TRACK, "type": "track"}]}}.get(path, EVENT)
    body = {"/v1/balances.batch_track": [USE], "/v1/events/batch": [EVENT]}.get(path, body)
    if path.startswith("/segment/v1/import"):
        body = {"batch": [{**TRACK, "type": "track"}]}
    short, long = await both(doors, path, body=USE if path in AUTUMN else body)
    assert said(short, path) == said(long, path)
    if path != "/segment/v1/identify":
        assert short.status_code == 500
        assert "secret" not in short.text


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_other_methods_are_the_framework_s(doors: Doors, method: str) -> None:
    """As on any other address."""
    headers = {"authorization": f"Bearer {doors.key}"}
    one = await doors.client.request(method, "/v1/events/batch", headers=headers)
    other = await doors.client.request(method, "/v1/events/batch/", headers=headers)
    assert said(one, "/v1/events/batch") == said(other, "/v1/events/batch")
    assert one.status_code == (204 if method == "OPTIONS" else 405)


async def test_headers_that_come_twice_count_alike(doors: Doors) -> None:
    """Whose key counts is no matter of the way."""
    twice = [
        ("authorization", f"Bearer {doors.key}"),
        ("authorization", "Bearer tally_live_unknown"),
        ("content-type", "application/json"),
        ("content-type", "text/plain"),
    ]
    for headers in (twice, twice[::-1]):
        short = await doors.client.post("/v1/events", content=json.dumps(USE), headers=headers)
        long = await doors.client.post("/v1/events/", content=json.dumps(USE), headers=headers)
        assert said(short, "/v1/events") == said(long, "/v1/events")


async def test_a_body_in_parts_is_put_together_and_bounded(doors: Doors) -> None:
    """Without a length said beforehand."""

    async def parts(size: int, count: int) -> Any:
        for _ in range(count):
            yield b" " * size
            await asyncio.sleep(0)
        yield json.dumps(USE).encode()

    headers = {"authorization": f"Bearer {doors.key}", "content-type": "application/json"}
    for path in ("/v1/events", "/v1/events/"):
        whole = await doors.client.post(path, content=parts(10, 3), headers=headers)
        assert whole.status_code == 200
        large = await doors.client.post(path, content=parts(100_000, 3), headers=headers)
        assert (large.status_code, large.json()["code"]) == (413, "too_large")
