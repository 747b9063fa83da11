"""What Autumn's clients call beside the documents' addresses: batches, newer answers, customers and features."""

from typing import Any

import pytest
from door_bench import Doors

USE: dict[str, Any] = {"customer_id": "u", "feature_id": "ai-messages", "value": 2}
BATCH = "/v1/balances.batch_track"


async def test_the_newer_address_answers_with_value_and_balance(doors: Doors) -> None:
    """Which the clients of today want; what changes nothing while use is unlimited is taken."""
    beside = {"entity_id": "seat", "overage_behavior": "cap", "async": False, "value": 0.1}
    answer = await doors.post("/v1/balances.track", {**USE, **beside})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["value"], answer.json()["balance"], answer.json()["entity_id"]) == (0.1, None, "seat")
    answer = await doors.post(
        "/v1/balances.check", {**USE, "value": None} | {"required_balance": 3, "with_preview": True}
    )
    assert answer.status_code == 422
    check = {"customer_id": "u", "feature_id": "ai-messages", "required_balance": 3, "with_preview": True}
    answer = await doors.post("/v1/balances.check", check)
    assert (answer.json()["allowed"], answer.json()["flag"], answer.json()["required_balance"]) == (True, None, 3)


@pytest.mark.parametrize(
    ("path", "change", "field", "code"),
    [
        ("/v1/track", {"lock": {"lock_id": "l", "enabled": True}}, "lock", "not_built"),
        ("/v1/track", {"overage_behavior": "x"}, "overage_behavior", "format"),
        ("/v1/track", {"async": "yes"}, "async", "type"),
        ("/v1/track", {"customer_data": "Ann"}, "customer_data", "type"),
        ("/v1/track", {"customer_data": {"name": 5}}, "customer_data.name", "type"),
        ("/v1/check", {"value": None, "product_id": "pro"}, "product_id", "not_built"),
    ],
)
async def test_what_is_beside_the_event_is_checked(
    doors: Doors, path: str, change: dict[str, object], field: str, code: str
) -> None:
    """Named, and nothing is written."""
    body = {name: value for name, value in {**USE, **change}.items() if value is not None}
    answer = await doors.post(path, body)
    assert answer.status_code == 422
    assert (field, code) in {(e["field"], e["code"]) for e in answer.json()["errors"]}
    assert not doors.log.records


async def test_a_customer_is_described_by_the_first_call_that_does(doors: Doors) -> None:
    """Met first, described later; a description stands."""
    await doors.post("/v1/track", USE)
    for name in ("Ann", "Other"):
        described = {"name": name, "email": None, "fingerprint": "f"}
        assert (await doors.post("/v1/track", {**USE, "customer_data": described})).status_code == 200
    found = doors.catalog.catalog.customer("acme", "u")
    assert found is not None
    assert found.name == "Ann"
    assert len(doors.events()) == 3


async def test_a_batch_is_recorded(doors: Doors) -> None:
    """By feature and by event name; items with and without a timestamp of their own lie in records of their own."""
    timed = {"customer_id": "v", "event_name": "email_generation", "timestamp": 1767225600000, "idempotency_key": "k"}
    answer = await doors.post(BATCH, [USE, timed])
    assert (answer.status_code, answer.json()["success"]) == (202, True), answer.text
    assert sorted(answer.json()["event_ids"]) == sorted(e["transactionId"] for e in doors.events())
    assert {r.headers.get("defaulted") for r in doors.log.records} == {None, b"timestamp"}
    assert doors.catalog.catalog.customer("acme", "v") is not None


async def test_a_batchs_key_makes_the_ids_of_its_items(doors: Doors) -> None:
    """Where they have none; the same batch again has the same ids."""
    for _ in range(2):
        assert (
            await doors.post(BATCH, [USE, {**USE, "idempotency_key": "k"}], idempotency_key="b-1")
        ).status_code == 202
    assert sorted(e["transactionId"] for e in doors.events()) == ["3:b-10", "3:b-10", "k", "k"]


@pytest.mark.parametrize(
    ("bad", "status", "field"),
    [
        ({"customer_id": "u"}, 422, "[1].feature_id"),
        ({**USE, "feature_id": "nothing"}, 404, "[1].feature_id"),
        ({"customer_id": "u", "event_name": "nothing"}, 404, "[1].event_name"),
        ("text", 422, "[1]"),
    ],
)
async def test_a_batch_with_a_bad_item_is_not_recorded_at_all(
    doors: Doors, bad: object, status: int, field: str
) -> None:
    """The answer of these clients has no room for the fate of each; an unknown name costs one look at the catalog."""
    answer = await doors.post(BATCH, [USE, bad, USE])
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, field), answer.text
    assert not doors.log.records
    assert doors.catalog.catalog.customer("acme", "u") is None


@pytest.mark.parametrize(
    ("content", "status"), [(b"{}", 422), (b"[]", 400), (b"", 400), (b"[{}" + b",{}" * 10_000 + b"]", 413)]
)
async def test_what_is_no_batch_is_refused(doors: Doors, content: bytes, status: int) -> None:
    """By its shape."""
    assert (await doors.post(BATCH, content=content)).status_code == status


async def test_a_batch_is_unconfirmed_while_kafka_is_away(doors: Doors) -> None:
    """With the keys to send again under."""
    doors.log.away = True
    answer = await doors.post(BATCH, [USE, USE])
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert all(e["status"] == "unconfirmed" and e["idempotency_key"] for e in answer.json()["events"])


async def test_customers_are_made_and_found(doors: Doors) -> None:
    """By either generation of clients; a known one is given as it is."""
    made = await doors.post("/v1/customers.get_or_create", {"customer_id": "n", "name": "N", "metadata": {"a": 1}})
    assert (made.json()["id"], made.json()["name"], made.json()["metadata"]) == ("n", "N", {"a": 1})
    again = await doors.post("/v1/customers", {"id": "n", "name": "Other"})
    assert again.json() == made.json()
    assert (await doors.post("/v1/customers.get", {"customer_id": "n"})).json() == made.json()
    headers = {"authorization": f"Bearer {doors.key}"}
    assert (await doors.client.get("/v1/customers/n", headers=headers)).json() == made.json()
    for answer in (
        await doors.client.get("/v1/customers/nobody", headers=headers),
        await doors.post("/v1/customers.get", {"customer_id": "nobody"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "customer_not_found")
    for wrong in (None, 5, "", "x" * 257, "\ud800"):
        assert (await doors.post("/v1/customers.get_or_create", {"customer_id": wrong})).status_code == 422


async def test_features_are_found(doors: Doors) -> None:
    """Listed and by id."""
    listed = (await doors.post("/v1/features.list", {})).json()["list"]
    assert [feature["id"] for feature in listed] == ["ai-messages", "blog-posts", "total-generations"]
    assert (await doors.post("/v1/features.get", {"feature_id": "blog-posts"})).json() == listed[1]
    assert (await doors.post("/v1/features.get", {"feature_id": "x"})).status_code == 404


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/balances.update", "/v1/customers/u/balances"])
async def test_setting_usage_is_refused_by_name_everywhere(doors: Doors, path: str) -> None:
    """Not half-kept."""
    answer = await doors.post(path, {"customer_id": "u", "feature_id": "ai-messages", "usage": 3})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_built")
