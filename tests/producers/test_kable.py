"""Kable's door: the dialect is the event's own."""

import json
from decimal import Decimal

import pytest
from door_bench import NOW_US, PARTITIONS, Doors

from pipeline.event import format_timestamp, id_hash, partition_of

EVENT = {
    "clientId": "acme-customer",
    "timestamp": "2026-01-31T12:00:00+02:00",
    "transactionId": "t-1",
    "data": {"path": "/v1", "ms": 12},
}
BARE = {"clientId": "c", "timestamp": "2026-01-31T12:00:00Z"}
START = b'{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"'
BAD = {
    "missing clientId": ({"timestamp": "2026-01-01T00:00:00Z"}, "clientId", "required", 422),
    "missing timestamp": ({"clientId": "c"}, "timestamp", "required", 422),
    "number as id": ({**EVENT, "clientId": 7}, "clientId", "type", 422),
    "number as transactionId": ({**EVENT, "transactionId": 7}, "transactionId", "type", 422),
    "empty id": ({**EVENT, "clientId": ""}, "clientId", "range", 422),
    "both names": ({**EVENT, "eventName": "a", "featureId": "b"}, "eventName", "exclusive", 422),
    "no offset": ({**EVENT, "timestamp": "2026-01-01T00:00:00"}, "timestamp", "format", 422),
    "bare date": ({**EVENT, "timestamp": "2026-01-01"}, "timestamp", "format", 422),
    "epoch number": ({**EVENT, "timestamp": 1767225600}, "timestamp", "type", 422),
    "far ahead": ({**EVENT, "timestamp": format_timestamp(NOW_US + 90_000_000_000)}, "timestamp", "range", 422),
    "NaN": ({**BARE, "value": float("nan")}, "value", "format", 422),
    "infinity": ({**BARE, "value": float("inf")}, "value", "format", 422),
    "NaN in data": ({**EVENT, "data": {"a": float("nan")}}, "data", "syntax", 422),
    "100 KB of data": ({**EVENT, "data": {"a": "x" * 100_000}}, "data", "too_large", 413),
    "huge event": ({**EVENT, "data": {"a": "x" * 200_000}}, "", "too_large", 413),
    "data no object": ({**EVENT, "data": [1]}, "data", "type", 422),
    "unknown field": ({**EVENT, "transaction_id": "t"}, "transaction_id", "unknown_field", 422),
    "kind set": ({**EVENT, "kind": "set"}, "kind", "not_built", 422),
    "no object": ("event", "", "type", 422),
}  # fmt: skip
BAD_BYTES = {
    "truncated": (b'{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"', 400, "syntax"),
    "truncated list": (b'[{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"},{"cli', 400, "syntax"),
    "empty": (b"  ", 400, "syntax"),
    "bad UTF-8": (b'{"clientId":"\xff\xfe","timestamp":"2026-01-01T00:00:00Z"}', 400, "encoding"),
    "duplicate key": (b'{"clientId":"c","clientId":"d","timestamp":"2026-01-01T00:00:00Z"}', 422, "duplicate_key"),
    "empty list": (b"[]", 400, "syntax"),
    "rubbish behind": (b'{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"} x', 400, "syntax"),
    "rubbish behind list": (b'[{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"}] x', 400, "syntax"),
    "deep": (START + b',"data":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 422, "range"),
    "open string": (b'[{"clientId":"' + b'\\"' * 50_000, 400, "syntax"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/api/v1/events/create", "/api/v1/events"])
async def test_one_event_is_received(doors: Doors, path: str) -> None:
    """The answer names its transactionId; the log has it under its account, catalog version and partition."""
    answer = await doors.post(path, EVENT)
    assert (answer.status_code, answer.json()["status"], answer.json()["transactionId"]) == (200, "received", "t-1")
    [record] = doors.log.records
    assert record.partition == partition_of(id_hash("acme", "t-1"), PARTITIONS)
    assert record.headers == {"account": b"acme", "catalog": str(doors.catalog.catalog.version).encode()}
    assert doors.events() == [EVENT]


async def test_an_event_over_several_lines_is_one_line_of_the_log(doors: Doors) -> None:
    """What says all goes to the log as it came, but never with a line break: those part events."""
    spread = json.dumps([EVENT, {**EVENT, "transactionId": "t-2"}], indent=2)
    answer = await doors.post("/api/v1/events", content=spread.encode())
    assert answer.json()["accepted"] == 2
    assert sorted(event["transactionId"] for event in doors.events()) == ["t-1", "t-2"]
    assert sorted(len(record.value.split(b"\n")) for record in doors.log.records if record.value) in ([1, 1], [2])


async def test_an_event_without_id_gets_a_uuid7(doors: Doors) -> None:
    """Returned to the sender, so that the event can be asked for."""
    answer = await doors.post("/api/v1/events", {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"})
    assert answer.json()["transactionId"] == doors.events()[0]["transactionId"]
    assert answer.json()["transactionId"][14] == "7"


async def test_numbers_stay_exact(doors: Doors) -> None:
    """Value and data come out of the log digit by digit."""
    body = START + b',"value":12345678901234567890123456789.123456789,"data":{"a":0.10000000000000000001}}'
    assert (await doors.post("/api/v1/events", content=body)).status_code == 200
    found = json.loads(doors.log.lines()[0], parse_float=Decimal)
    assert found["value"] == Decimal("12345678901234567890123456789.123456789")
    assert found["data"] == {"a": Decimal("0.10000000000000000001")}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_event_is_refused_by_its_field(doors: Doors, name: str) -> None:
    """Alone with its status; in a list as one verdict beside good ones."""
    event, field, code, status = BAD[name]
    alone = await doors.post("/api/v1/events/create", event)
    assert alone.status_code == status, alone.text
    assert alone.headers["content-type"] == "application/problem+json"
    assert field in {e["field"] for e in alone.json()["errors"]}
    assert all(e["message"] for e in alone.json()["errors"])
    assert not doors.log.records

    listed = await doors.post("/api/v1/events", [EVENT, event, {**EVENT, "transactionId": "t-2"}])
    assert listed.status_code == 200, listed.text
    body = listed.json()
    assert (body["accepted"], body["rejected"]) == (2, 1)
    assert [v["status"] for v in body["events"]] == ["received", "rejected", "received"]
    assert field in {e["field"] for e in body["events"][1]["errors"]}
    assert {e["transactionId"] for e in doors.events()} == {"t-1", "t-2"}
    if code != "syntax":
        assert code in {e["code"] for e in body["events"][1]["errors"]}


@pytest.mark.parametrize("name", BAD_BYTES)
async def test_bytes_that_are_no_event_are_refused(doors: Doors, name: str) -> None:
    """400 for what is no JSON; never a 500, and nothing written."""
    body, status, code = BAD_BYTES[name]
    answer = await doors.post("/api/v1/events", content=body)
    assert answer.status_code == status, answer.text
    assert code in {e["code"] for e in answer.json()["errors"]}
    assert not doors.log.records


async def test_bad_utf8_in_a_list_sinks_only_its_event(doors: Doors) -> None:
    """The bytes of one event are its own matter."""
    good = json.dumps(EVENT).encode()
    answer = await doors.post("/api/v1/events", content=b'[{"clientId":"\xff"},' + good + b"]")
    assert [v["status"] for v in answer.json()["events"]] == ["rejected", "received"]


async def test_a_list_without_any_good_event_is_a_400(doors: Doors) -> None:
    """With every event's faults in it."""
    answer = await doors.post("/api/v1/events", [{"clientId": 1}, {"clientId": 2}])
    assert answer.status_code == 400
    assert [v["status"] for v in answer.json()["events"]] == ["rejected", "rejected"]
    assert answer.json()["errors"][0]["field"] == "[0].clientId"


async def test_too_many_events_are_a_413(doors: Doors) -> None:
    """10,000 are taken, one more is not."""
    event = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"}
    assert (await doors.post("/api/v1/events", [event] * 10_001)).status_code == 413
    assert not doors.log.records
    answer = await doors.post("/api/v1/events", [event] * 10_000)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 10_000)
    broken = b"[" + b"{NaN}," * 10_001 + b"{}]"
    assert (await doors.post("/api/v1/events", content=broken)).status_code == 413


async def test_a_body_past_ten_megabytes_is_a_413(doors: Doors) -> None:
    """Whether or not its length is announced."""
    body = b"[" + b" " * 10_000_001
    assert (await doors.post("/api/v1/events", content=body)).status_code == 413

    async def stream():  # type: ignore[no-untyped-def]
        for _ in range(11):
            yield b" " * 1_000_000

    headers = {"authorization": doors.key, "content-type": "application/json"}
    assert (await doors.client.post("/api/v1/events", content=stream(), headers=headers)).status_code == 413


@pytest.mark.parametrize(
    "given", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"]
)
async def test_another_media_type_is_a_415(doors: Doors, given: str) -> None:
    """The answer says which one is taken."""
    answer = await doors.post("/api/v1/events", EVENT, content_type=given)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


async def test_some_partitions_away_is_a_503_that_lists_what_was_received(doors: Doors) -> None:
    """Sent again as listed, every event is in the log and none twice under another id."""
    doors.log.away_partitions = {0, 3}
    sent = [{"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "transactionId": f"t{n}"} for n in range(40)]
    answer = await doors.post("/api/v1/events", [*sent, {"clientId": 5}])
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    verdicts = answer.json()["events"]
    assert {v["status"] for v in verdicts} == {"received", "unconfirmed", "rejected"}
    in_log = {e["transactionId"] for e in doors.events()}
    assert {v["transactionId"] for v in verdicts if v["status"] == "received"} == in_log
    doors.log.away_partitions = set()
    again = [
        {**sent[v["index"]], "transactionId": v["transactionId"]} for v in verdicts if v["status"] == "unconfirmed"
    ]
    assert (await doors.post("/api/v1/events", again)).status_code == 200
    assert sorted(e["transactionId"] for e in doors.events()) == sorted(e["transactionId"] for e in sent)


async def test_kafka_away_is_a_503_with_the_ids_to_send_again(doors: Doors) -> None:
    """Also for one event without an id of its own."""
    doors.log.away = True
    answer = await doors.post("/api/v1/events", {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"})
    assert answer.status_code == 503
    assert answer.json()["events"][0]["transactionId"]


async def test_unknown_customers_and_features_are_kept(doors: Doors) -> None:
    """They may be mapped later."""
    answer = await doors.post("/api/v1/events", {**EVENT, "featureId": "nobody-made-this"})
    assert answer.status_code == 200
    assert doors.events()[0]["featureId"] == "nobody-made-this"
