"""The header `Idempotency-Key` at the doors of single events."""

from typing import Any

import pytest
from door_bench import Doors

KABLE: dict[str, Any] = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"}
AUTUMN = {"customer_id": "c", "feature_id": "ai-messages"}
TRACK = {"userId": "c", "event": "e", "timestamp": "2026-01-01T00:00:00Z"}
KANA = {"query": 'mutation { createUsageEvent(input: {userId: "124", featureId: "ai-messages", delta: 1}) }'}
ONE = {
    "/api/v1/events": (KABLE, "transactionId"),
    "/api/v1/events/create": (KABLE, "transactionId"),
    "/v1/events": (AUTUMN, "idempotency_key"),
    "/v1/track": (AUTUMN, "idempotency_key"),
    "/v1/balances.track": (AUTUMN, "idempotency_key"),
    "/segment/v1/track": (TRACK, "messageId"),
}


@pytest.mark.parametrize("path", [*ONE, "/graphql"])
@pytest.mark.parametrize("spelled", ["key 1", '"key 1"', r'"key \1"'.replace("\\", "")])
async def test_it_is_the_id_of_an_event_that_has_none(doors: Doors, path: str, spelled: str) -> None:
    """Bare or quoted, at every door of single events; so a retry counts once."""
    body = KANA if path == "/graphql" else ONE[path][0]
    assert (await doors.post(path, body, idempotency_key=spelled)).status_code == 200
    assert [e["transactionId"] for e in doors.events()] == ["key 1"]


@pytest.mark.parametrize("path", ONE)
async def test_two_different_ids_are_refused(doors: Doors, path: str) -> None:
    """Which of them would count? The same twice is one."""
    body, field = ONE[path]
    answer = await doors.post(path, {**body, field: "k"}, idempotency_key="other")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert not doors.log.records
    assert (await doors.post(path, {**body, field: "k"}, idempotency_key="k")).status_code == 200


@pytest.mark.parametrize("path", [*ONE, "/graphql"])
@pytest.mark.parametrize("key", ['""', "x" * 257])
async def test_a_key_that_can_be_no_id_is_refused(doors: Doors, path: str, key: str) -> None:
    """Rather than left out in silence."""
    answer = await doors.post(path, KANA if path == "/graphql" else ONE[path][0], idempotency_key=key)
    assert answer.status_code == 422
    assert not doors.log.records


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/events", [KABLE]),
        ("/v1/events/batch", [KABLE]),
        ("/segment/v1/batch", {"batch": [{**TRACK, "type": "track"}]}),
        ("/graphql", {"query": "mutation { a: %s b: %s }" % ((KANA["query"][11:-2],) * 2)}),
    ],
)
async def test_it_names_no_list(doors: Doors, path: str, body: object) -> None:
    """Its events have ids of their own."""
    answer = await doors.post(path, body, idempotency_key="k")
    assert answer.status_code in (200, 422)
    assert "Idempotency-Key" in answer.text
    assert len(doors.events()) <= 1
