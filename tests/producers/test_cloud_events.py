"""The door for CloudEvents: its three forms, and what is refused."""

import base64
import gzip
import json
from typing import Any

import pytest
import zstandard
from door_bench import NOW_US, Doors

from pipeline.event import format_timestamp
from producers.cloud_events import BATCH, STRUCTURED, transaction_id_of

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/app",
    "type": "prompt",
    "subject": "c",
    "time": "2026-01-01T00:00:00Z",
    "data": {"tokens": 2},
}
KEPT = {
    "clientId": "c",
    "timestamp": "2026-01-01T00:00:00Z",
    "transactionId": "4:/app1",
    "eventName": "prompt",
    "data": {"tokens": 2},
}
PATH = "/api/v1/events"


def binary(event: dict[str, Any]) -> dict[str, str]:
    """The headers of the binary form."""
    return {f"ce-{name}": value for name, value in event.items() if name != "data"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (EVENT, STRUCTURED),
        (EVENT, STRUCTURED + "; charset=UTF-8"),
        ([EVENT], BATCH),
        (EVENT, "application/json"),
        ([EVENT], "application/json"),
        ({**EVENT, "datacontenttype": "application/vnd.x+json; charset=utf-8", "partitionkey": "x"}, STRUCTURED),
        ({**EVENT, "data": None, "data_base64": base64.b64encode(b'{"tokens":2}').decode()}, STRUCTURED),
    ],
)
async def test_each_json_form_states_the_same_event(doors: Doors, body: object, content_type: str) -> None:
    """204 and nothing in it; extension attributes are taken and left out."""
    answer = await doors.post(PATH, body, content_type=content_type)
    assert (answer.status_code, answer.content) == (204, b""), answer.text
    assert doors.events() == [KEPT]
    assert "defaulted" not in doors.log.records[0].headers


async def test_the_binary_form(doors: Doors) -> None:
    """Attributes are headers, percent-encoded; without data there is no body."""
    headers = {**binary(EVENT), "ce-subject": "k%C3%A4ufer 1"}
    assert (await doors.post(PATH, EVENT["data"], **headers)).status_code == 204
    assert (await doors.post(PATH, content=b"", **{**headers, "ce-id": "2", "content-type": ""})).status_code == 204
    first, second = doors.events()
    assert first == {**KEPT, "clientId": "käufer 1"}
    assert second["transactionId"] == "4:/app2"
    assert "data" not in second


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_a_batch_may_be_compressed(doors: Doors, encoding: str, pack: Any) -> None:
    """As at the door for large amounts."""
    content = pack(json.dumps([EVENT] * 3).encode())
    assert (await doors.post(PATH, content=content, content_type=BATCH, content_encoding=encoding)).status_code == 204
    assert len(doors.events()) == 3


async def test_a_time_that_is_missing_is_the_time_of_arrival(doors: Doors) -> None:
    """Marked as filled in here, event by event: a retry is a duplicate, and its neighbour keeps its own time."""
    timeless = {name: value for name, value in EVENT.items() if name != "time"}
    assert (await doors.post(PATH, [EVENT, {**timeless, "id": "2"}], content_type=BATCH)).status_code == 204
    marked = {
        e["transactionId"]: r.headers.get("defaulted") for r in doors.log.records for e in [json.loads(r.value or b"")]
    }
    assert marked == {"4:/app1": None, "4:/app2": b"timestamp"}
    assert {e["transactionId"]: e["timestamp"] for e in doors.events()}["4:/app2"] == format_timestamp(NOW_US)


def test_no_two_events_share_an_id() -> None:
    """Source and id are told apart wherever one ends."""
    pairs = [("a", "bc"), ("ab", "c"), ("1:a", "b"), ("1", ":ab"), ("", "1:a")]
    assert len({transaction_id_of(*pair) for pair in pairs}) == len(pairs)


BAD = {
    "no subject": ({**EVENT, "subject": None}, "subject", "required"),
    "empty subject": ({**EVENT, "subject": ""}, "subject", "range"),
    "number as subject": ({**EVENT, "subject": 5}, "subject", "type"),
    "no id": ({**EVENT, "id": None}, "id", "required"),
    "empty source": ({**EVENT, "source": ""}, "source", "range"),
    "long source": ({**EVENT, "source": "x" * 256}, "id", "range"),
    "no type": ({**EVENT, "type": None}, "type", "required"),
    "other version": ({**EVENT, "specversion": "0.3"}, "specversion", "unsupported"),
    "time without offset": ({**EVENT, "time": "2026-01-01T00:00:00"}, "time", "format"),
    "time as number": ({**EVENT, "time": 1767225600}, "time", "type"),
    "data no object": ({**EVENT, "data": [1]}, "data", "type"),
    "data no JSON": ({**EVENT, "datacontenttype": "text/xml", "data": "<a/>"}, "datacontenttype", "unsupported"),
    "both datas": ({**EVENT, "data_base64": "e30="}, "data_base64", "exclusive"),
    "broken Base64": ({**EVENT, "data": None, "data_base64": "%"}, "data_base64", "format"),
    "Base64 of no JSON": ({**EVENT, "data": None, "data_base64": "YWJj"}, "data_base64", "format"),
    "no attribute": ({**EVENT, "Subject": "x"}, "Subject", "unknown_field"),
    "NaN": ({**EVENT, "data": {"a": float("nan")}}, "data", "format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_attribute_is_named(doors: Doors, name: str) -> None:
    """By its own name; nothing is written."""
    body, field, code = BAD[name]
    answer = await doors.post(PATH, body, content_type=STRUCTURED)
    assert answer.status_code == 422, answer.text
    assert (field, code) in {(e["field"], e["code"]) for e in answer.json()["errors"]}
    assert not doors.log.records


async def test_a_bad_event_sinks_no_other(doors: Doors) -> None:
    """422, since the dialect's clients look at the status alone; the verdicts tell which are in the log."""
    broken = b'{"specversion":"1.0",}'
    content = (
        b"[" + b",".join([json.dumps(EVENT).encode(), broken, json.dumps({**EVENT, "subject": 1}).encode()]) + b"]"
    )
    answer = await doors.post(PATH, content=content, content_type=BATCH)
    assert answer.status_code == 422
    assert [v["status"] for v in answer.json()["events"]] == ["received", "rejected", "rejected"]
    assert answer.json()["errors"][-1]["field"] == "[2].subject"
    assert doors.events() == [KEPT]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {"content-type": STRUCTURED}, 400),
        (b"", {"content-type": STRUCTURED}, 400),
        (b"{}", {"content-type": BATCH}, 422),
        (b"[]", {"content-type": BATCH}, 400),
        (b"x", {"content-type": STRUCTURED, "content-encoding": "br"}, 415),
        (b"<a/>", {**binary(EVENT), "content-type": "text/xml"}, 415),
        (b"[1]", binary(EVENT), 422),
        (b"{}", {**binary(EVENT), "ce-subject": "%FF"}, 422),
        (b"{}", {**binary(EVENT), "ce-specversion": "2.0"}, 422),
        (b"{}", {"ce-specversion": "1.0"}, 422),
        (b'{"specversion":"1.0","specversion":"1.0"}', {"content-type": STRUCTURED}, 422),
    ],
)
async def test_what_is_no_cloud_event_is_refused(
    doors: Doors, content: bytes, headers: dict[str, str], status: int
) -> None:
    """Never a 500."""
    answer = await doors.post(PATH, content=content, **headers)
    assert answer.status_code == status, answer.text
    assert not doors.log.records


async def test_kafka_away_is_a_503(doors: Doors) -> None:
    """With what was not confirmed, by its id."""
    doors.log.away = True
    answer = await doors.post(PATH, [EVENT], content_type=BATCH)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["events"][0]["transactionId"] == "4:/app1"


async def test_kables_events_may_speak_of_a_specversion(doors: Doors) -> None:
    """Inside their data it is a key like any other."""
    event = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "data": {"specversion": "1.0"}}
    assert (await doors.post(PATH, event)).status_code == 200
    assert (await doors.post(PATH, [event])).status_code == 200
    assert len(doors.events()) == 2
