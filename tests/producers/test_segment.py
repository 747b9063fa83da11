"""The door for Segment's libraries."""

import base64
import gzip
import json
from typing import Any

import pytest
from door_bench import NOW_US, Doors

from pipeline.event import format_timestamp

TRACK: dict[str, Any] = {
    "type": "track",
    "userId": "u",
    "event": "made",
    "messageId": "m-1",
    "timestamp": "2026-01-01T00:00:00.123Z",
    "properties": {"n": 2},
    "context": {"library": {"name": "x"}},
    "anonymousId": "a",
    "integrations": {},
}
KEPT = {
    "clientId": "u",
    "timestamp": "2026-01-01T00:00:00.123000Z",
    "transactionId": "m-1",
    "eventName": "made",
    "data": {"n": 2},
}


def basic(key: str) -> str:
    """Basic auth with the key as user."""
    return "Basic " + base64.b64encode(f"{key}:".encode()).decode()


async def test_a_track_call(doors: Doors) -> None:
    """By Basic or Bearer; what the libraries send beside is not kept."""
    for authorization in (basic(doors.key), f"Bearer {doors.key}"):
        answer = await doors.post("/segment/v1/track", TRACK, authorization=authorization)
        assert (answer.status_code, answer.json()) == (200, {"success": True}), answer.text
    assert doors.events() == [KEPT, KEPT]


@pytest.mark.parametrize("path", ["/segment/v1/batch", "/segment/v1/import"])
async def test_a_batch(doors: Doors, path: str) -> None:
    """Compressed; calls of other kinds are accepted and not metered; a missing time is marked as filled in here."""
    timeless = {name: value for name, value in TRACK.items() if name != "timestamp"} | {"messageId": "m-2"}
    others = [{**TRACK, "type": kind} for kind in ("identify", "page", "group", "screen", "alias")]
    body = {"batch": [TRACK, *others, timeless], "sentAt": "2026-01-01T00:00:01Z", "writeKey": doors.key}
    content = gzip.compress(json.dumps(body).encode())
    answer = await doors.post(path, content=content, authorization=basic(doors.key), content_encoding="gzip")
    assert answer.status_code == 200, answer.text
    marked = {
        e["transactionId"]: (e["timestamp"], r.headers.get("defaulted"))
        for r in doors.log.records
        for e in [json.loads(r.value or b"")]
    }
    assert marked == {"m-1": (KEPT["timestamp"], None), "m-2": (format_timestamp(NOW_US), b"timestamp")}


@pytest.mark.parametrize("call", ["identify", "group", "page", "screen", "alias"])
async def test_other_calls_are_accepted_and_not_metered(doors: Doors, call: str) -> None:
    """At their own addresses too."""
    answer = await doors.post(f"/segment/v1/{call}", {"userId": "u", "traits": {}}, authorization=basic(doors.key))
    assert answer.json() == {"success": True}
    assert not doors.log.records


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"userId": None}, "userId", "required"),
        ({"userId": 5}, "userId", "type"),
        ({"event": None}, "event", "required"),
        ({"event": ""}, "event", "range"),
        ({"timestamp": 1767225600}, "timestamp", "type"),
        ({"timestamp": True}, "timestamp", "type"),
        ({"timestamp": []}, "timestamp", "type"),
        ({"timestamp": "2026-01-01T00:00:00"}, "timestamp", "format"),
        ({"messageId": 7}, "messageId", "type"),
        ({"properties": []}, "properties", "type"),
    ],
)
async def test_a_bad_message_is_named_and_sinks_no_other(
    doors: Doors, change: dict[str, object], field: str, code: str
) -> None:
    """422 with `message` and `code`, which the libraries hand to `on_error`."""
    answer = await doors.post("/segment/v1/track", {**TRACK, **change})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert answer.json()["errors"][0]["code"] == code
    answer = await doors.post("/segment/v1/batch", {"batch": [{**TRACK, **change}, TRACK]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, f"[0].{field}")
    assert field in answer.json()["message"]
    assert doors.events() == [KEPT]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"batch": []}, 422),
        ({"batch": {}}, 422),
        ({"batch": [1]}, 422),
        ({"batch": [{"type": "other"}]}, 422),
        ({"batch": [{}] * 10_001}, 413),
        ([], 422),
    ],
)
async def test_what_is_no_batch_is_refused(doors: Doors, body: object, status: int) -> None:
    """Nothing is written."""
    answer = await doors.post("/segment/v1/batch", body)
    assert answer.status_code == status
    assert answer.json()["message"]
    assert not doors.log.records


@pytest.mark.parametrize("credentials", ["Basic", "Basic !", "Basic Og==", "Basic dGFsbHlfeDp5"])
async def test_credentials_that_name_no_key_are_a_401(doors: Doors, credentials: str) -> None:
    """No Base64, no user, a password beside the key."""
    assert (await doors.post("/segment/v1/track", TRACK, authorization=credentials)).status_code == 401


async def test_kafka_away_is_a_503(doors: Doors) -> None:
    """The libraries send again, under the same ids."""
    doors.log.away = True
    answer = await doors.post("/segment/v1/batch", {"batch": [TRACK]})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
