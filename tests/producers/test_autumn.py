"""Autumn's door, the seed's examples first."""

import pytest
from door_bench import NOW_US, Doors

from pipeline.event import format_timestamp

USE = {"customer_id": "user-123", "feature_id": "ai-messages", "value": 1}


@pytest.mark.parametrize("path", ["/v1/events", "/v1/track"])
async def test_the_seeds_feature_example(doors: Doors, path: str) -> None:
    """Request and answer as documented, with `id` and `code` beside."""
    answer = await doors.post(path, {"customer_id": "user-123", "feature_id": "ai-messages", "value": 1})
    assert answer.status_code == 200
    body = answer.json()
    event_id = body["event_id"]
    assert body == {
        "message": "Event recorded successfully",
        "event_id": event_id,
        "customer_id": "user-123",
        "feature_id": "ai-messages",
        "id": event_id,
        "code": "event_received",
    }
    [event] = doors.events()
    assert event["transactionId"] == event_id
    assert (event["clientId"], event["featureId"], event["timestamp"]) == (
        "user-123",
        "ai-messages",
        format_timestamp(NOW_US),
    )
    assert doors.log.records[0].headers["defaulted"] == b"timestamp"


async def test_the_seeds_event_name_example(doors: Doors) -> None:
    """The name is kept; which features it feeds is the worker's to say."""
    answer = await doors.post(
        "/v1/events", {"customer_id": "user-123", "value": 1, "event_name": "blog_post_generation"}
    )
    assert answer.json()["event_name"] == "blog_post_generation"
    assert "feature_id" not in answer.json()
    assert doors.events()[0]["eventName"] == "blog_post_generation"


async def test_an_unknown_customer_is_created(doors: Doors) -> None:
    """Before the event is written, and under the version that the record is stamped with."""
    assert doors.catalog.catalog.customer("acme", "user-123") is None
    await doors.post("/v1/events", USE)
    assert doors.catalog.catalog.customer("acme", "user-123") is not None
    assert int(doors.log.records[0].headers["catalog"]) == doors.catalog.catalog.version


@pytest.mark.parametrize(
    ("number", "written"), [(b"0.1", b"0.1"), (b"2.50", b"2.50"), (b"-3", b"-3"), (b"1e2", b"1E+2"), (b"1.0", b"1.0")]
)
async def test_a_value_is_taken_as_it_is_spelled(doors: Doors, number: bytes, written: bytes) -> None:
    """Never through a float; negative gives balance back."""
    body = b'{"customer_id":"c","feature_id":"ai-messages","value":' + number + b"}"
    assert (await doors.post("/v1/events", content=body)).status_code == 200
    assert b'"value":' + written + b"}" in doors.log.lines()[0] or number == b"1.0"


async def test_all_fields_reach_the_event(doors: Doors) -> None:
    """Under the event's own names; epoch milliseconds become an instant."""
    stated = {
        **USE,
        "value": 2,
        "properties": {"model": "m", "n": 1.5},
        "idempotency_key": "k-1",
        "entity_id": "seat-1",
        "timestamp": 1767225600123,
    }
    assert (await doors.post("/v1/events", stated)).json()["event_id"] == "k-1"
    assert doors.events() == [
        {
            "clientId": "user-123",
            "timestamp": "2026-01-01T00:00:00.123000Z",
            "transactionId": "k-1",
            "featureId": "ai-messages",
            "value": 2,
            "entityId": "seat-1",
            "data": {"model": "m", "n": 1.5},
        }
    ]
    assert "defaulted" not in doors.log.records[0].headers
    assert (await doors.post("/v1/events", {**USE, "timestamp": "2026-01-01T00:00:00+05:30"})).status_code == 200


BAD = {
    "missing customer": ({"feature_id": "ai-messages"}, "customer_id", "required"),
    "no name": ({"customer_id": "c"}, "feature_id", "required"),
    "both names": ({**USE, "event_name": "x"}, "event_name", "exclusive"),
    "number as id": ({**USE, "customer_id": 5}, "customer_id", "type"),
    "number as feature": ({**USE, "feature_id": 5}, "feature_id", "type"),
    "number as key": ({**USE, "idempotency_key": 5}, "idempotency_key", "type"),
    "no offset": ({**USE, "timestamp": "2026-01-01T00:00:00"}, "timestamp", "format"),
    "float timestamp": ({**USE, "timestamp": 1767225600123.5}, "timestamp", "type"),
    "huge timestamp": ({**USE, "timestamp": 10**30}, "timestamp", "range"),
    "boolean timestamp": ({**USE, "timestamp": True}, "timestamp", "type"),
    "far ahead": ({**USE, "timestamp": NOW_US // 1000 + 90_000_000}, "timestamp", "range"),
    "NaN": ({**USE, "value": float("nan")}, "value", "format"),
    "string value": ({**USE, "value": "1"}, "value", "type"),
    "too precise": ({**USE, "value": 0.1 + 0.2}, "value", "range"),
    "100 KB of data": ({**USE, "properties": {"a": "x" * 100_000}}, "properties", "too_large"),
    "NaN in properties": ({**USE, "properties": {"a": float("inf")}}, "properties", "format"),
    "properties no object": ({**USE, "properties": []}, "properties", "type"),
    "unknown field": ({**USE, "featureId": "x"}, "featureId", "unknown_field"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_field_is_named_in_the_dialects_words(doors: Doors, name: str) -> None:
    """422 (413 for what is only too large), `message` and `code` as Autumn's clients read them, nothing written."""
    body, field, code = BAD[name]
    answer = await doors.post("/v1/events", body)
    assert answer.status_code == (413 if code == "too_large" else 422), answer.text
    assert (field, code) in {(e["field"], e["code"]) for e in answer.json()["errors"]}
    assert answer.json()["message"]
    assert not doors.log.records


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b'{"customer_id":"\xff"}',
        b'{"a":1,"a":2}',
        b"[]",
        b"[" * 100_000,
        b'{"value":' + b"9" * 200_000 + b"}",
    ],
)
async def test_bytes_that_are_no_object_are_refused(doors: Doors, body: bytes) -> None:
    """400 or 422, never a 500."""
    assert (await doors.post("/v1/events", content=body)).status_code in (400, 422)


async def test_both_names_tell_to_check_the_spelling(doors: Doors) -> None:
    """As the seed advises."""
    answer = await doors.post("/v1/events", {**USE, "event_name": "ai_messages"})
    assert "snake_case and kebab-case" in answer.json()["message"]


async def test_unknown_names_are_a_404_that_helps(doors: Doors) -> None:
    """Code and hint at what was meant."""
    answer = await doors.post("/v1/events", {"customer_id": "c", "feature_id": "total_generations"})
    assert (answer.status_code, answer.json()["code"]) == (404, "feature_not_found")
    assert "'total-generations'" in answer.json()["message"]
    answer = await doors.post("/v1/events", {"customer_id": "c", "event_name": "nothing"})
    assert (answer.status_code, answer.json()["code"]) == (404, "event_name_not_found")
    assert not doors.log.records
    assert doors.catalog.catalog.customer("acme", "c") is None


async def test_setting_usage_is_refused_by_name(doors: Doors) -> None:
    """Not half-kept."""
    answer = await doors.post("/v1/usage", {"customer_id": "user-123", "feature_id": "seats", "value": 3})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_built")
    assert answer.json()["errors"][0]["field"] == "kind"
    assert not doors.log.records


async def test_a_check_answers_unlimited(doors: Doors) -> None:
    """Until entitlements exist; nothing is recorded."""
    answer = await doors.post("/v1/check", {"customer_id": "user-123", "feature_id": "ai-messages"})
    assert answer.json() == {
        "allowed": True,
        "code": "feature_found",
        "customer_id": "user-123",
        "feature_id": "ai-messages",
        "balance": None,
        "usage": None,
        "included_usage": None,
        "unlimited": True,
        "overage_allowed": False,
        "next_reset_at": None,
    }
    assert not doors.log.records


async def test_a_check_may_send_its_event(doors: Doors) -> None:
    """One event of the required balance, when the key may write."""
    wanted = {"customer_id": "user-123", "feature_id": "ai-messages", "required_balance": 3, "send_event": True}
    assert (await doors.post("/v1/check", wanted)).json()["allowed"] is True
    assert [e["value"] for e in doors.events()] == [3]
    reader = await doors.key_with("read")
    assert (await doors.post("/v1/check", wanted, authorization=reader)).status_code == 403
    assert len(doors.events()) == 1


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"customer_id": "c", "feature_id": "nothing"}, 404, "feature_id"),
        ({"customer_id": "c"}, 422, "feature_id"),
        ({"customer_id": 1, "feature_id": "ai-messages"}, 422, "customer_id"),
        ({"customer_id": "c", "feature_id": "ai-messages", "send_event": 1}, 422, "send_event"),
        ({"customer_id": "c", "feature_id": "ai-messages", "value": 1}, 422, "value"),
        ({"customer_id": "c", "feature_id": "ai-messages", "required_balance": "x"}, 422, "required_balance"),
    ],
)
async def test_a_bad_check_is_refused(doors: Doors, body: dict[str, object], status: int, field: str) -> None:
    """By its field."""
    answer = await doors.post("/v1/check", body)
    assert answer.status_code == status
    assert field in {e["field"] for e in answer.json()["errors"]}


async def test_kafka_away_is_a_503_with_the_key_to_send_again(doors: Doors) -> None:
    """So that a retry counts once."""
    doors.log.away = True
    answer = await doors.post("/v1/events", USE)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["idempotency_key"]
