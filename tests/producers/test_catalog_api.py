"""REST of the catalog, with authentication in front and problems behind, as a process serves it."""

from typing import Any

import httpx
import pytest
from door_bench import Doors

from producers.api import Services, build_app
from producers.catalog_api import catalog_router


@pytest.fixture
def http(doors: Doors) -> httpx.AsyncClient:
    """A client with the admin key of `acme`."""
    app = build_app(Services(doors.intake, {}), [catalog_router(doors.catalog)])
    client = doors.on(app)
    client.headers["authorization"] = f"Bearer {doors.key}"
    return client


def faults(answer: httpx.Response) -> list[tuple[str, str]]:
    """Field and code of each error; the answer is a problem."""
    assert answer.headers["content-type"] == "application/problem+json"
    return [(error["field"], error["code"]) for error in answer.json()["errors"]]


async def test_a_feature_from_creation_to_archive(http: httpx.AsyncClient) -> None:
    """Every change is a revision; the answer to it is what holds."""
    created = await http.post("/v1/catalog/features", json={"id": "tokens", "event_names": ["chat"], "value_key": "n"})
    assert created.status_code == 201
    assert created.json()["effective_from"] == "1970-01-01T00:00:00Z"

    changed = await http.patch("/v1/catalog/features/tokens", json={"unit_label": "token", "value_key": None})
    assert changed.status_code == 200
    assert (changed.json()["unit_label"], changed.json()["value_key"], changed.json()["event_names"]) == (
        "token",
        None,
        ["chat"],
    )
    replaced = await http.put("/v1/catalog/features/tokens", json={"archived": True})
    assert (replaced.json()["unit_label"], replaced.json()["archived"]) == ("", True)

    shown = (await http.get("/v1/catalog/features/tokens")).json()
    assert [r["rev"] for r in shown["revisions"]] == [created.json()["rev"], changed.json()["rev"], shown["rev"]]
    assert shown["rev"] == replaced.json()["rev"]


async def test_what_is_shown_can_be_sent_back(http: httpx.AsyncClient) -> None:
    """A body without `rev` and `revisions` is one that PUT takes, and it changes nothing."""
    body = {"id": "f", "filter": {"plan": ["pro", 1, True]}, "metadata": {"price": 0.1, "n": None}}
    shown = (await http.post("/v1/catalog/features", json=body)).json()
    assert shown["filter"] == body["filter"]
    assert shown["metadata"] == body["metadata"]
    rev = shown.pop("rev")

    again = await http.put("/v1/catalog/features/f", json=shown)

    assert again.status_code == 200
    assert again.json()["rev"] == rev


async def test_dimensions_and_customers(http: httpx.AsyncClient) -> None:
    """The same verbs for each."""
    assert (await http.post("/v1/catalog/dimensions", json={"key": "repo", "type": "string"})).status_code == 201
    assert (await http.patch("/v1/catalog/dimensions/repo", json={"type": "number"})).json()["type"] == "number"
    assert len((await http.get("/v1/catalog/dimensions/repo")).json()["revisions"]) == 2
    assert (await http.put("/v1/catalog/dimensions/repo", json={"type": "string"})).json()["type"] == "string"
    assert [d["key"] for d in (await http.get("/v1/catalog/dimensions")).json()["items"]] == ["repo"]

    assert (await http.post("/v1/catalog/customers", json={"id": "u", "email": "u@example.com"})).status_code == 201
    assert (await http.patch("/v1/catalog/customers/u", json={"name": "Uma"})).json()["email"] == "u@example.com"
    assert (await http.put("/v1/catalog/customers/u", json={"name": "Uma"})).json()["email"] == ""
    assert (await http.get("/v1/catalog/customers/u")).json()["name"] == "Uma"


async def test_lists_come_in_pages(http: httpx.AsyncClient) -> None:
    """`next` leads from page to page until all were seen once."""
    for n in range(5):
        await http.post("/v1/catalog/customers", json={"id": f"c{n}"})
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get("/v1/catalog/customers", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert seen == ["124", "c0", "c1", "c2", "c3", "c4"]
    assert (await http.get("/v1/catalog/customers", params={"limit": 0})).status_code == 422


@pytest.mark.parametrize("name", ["a/b", "a b", "ä", "100%", "a.b.c", "a?b", "https://a/b/", "/v1/catalog/keys/x"])
async def test_any_id_has_an_address(http: httpx.AsyncClient, name: str) -> None:
    """Customers choose their ids; percent-encoding makes an address of each."""
    await http.post("/v1/catalog/dimensions", json={"key": name, "type": "string"})

    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    shown = await http.get(f"/v1/catalog/dimensions/{quoted}")

    assert shown.status_code == 200
    assert shown.json()["key"] == name


async def test_a_key_is_shown_once_and_revoked_for_good(http: httpx.AsyncClient, doors: Doors) -> None:
    """The secret is in the answer to its creation only; a revoked key opens nothing."""
    created = (await http.post("/v1/catalog/keys", json={"name": "ci", "scopes": ["read"]})).json()
    secret = created.pop("secret")
    assert secret.startswith("tally_live_")
    assert secret not in (await http.get("/v1/catalog/keys")).text
    assert (await http.get(f"/v1/catalog/keys/{created['id']}")).json() == created
    reader = {"authorization": f"Bearer {secret}"}
    assert (await http.get("/v1/catalog/features", headers=reader)).status_code == 200

    revoked = await http.delete(f"/v1/catalog/keys/{created['id']}")

    assert revoked.status_code == 200
    assert revoked.json()["revoked"] is not None
    assert (await http.get("/v1/catalog/features", headers=reader)).status_code == 401


async def test_test_mode_sees_nothing_of_live(http: httpx.AsyncClient) -> None:
    """A test key acts for an account of its own."""
    made = (await http.post("/v1/catalog/keys", json={"scopes": ["admin"], "mode": "test"})).json()
    assert (made["mode"], made["account"]) == ("test", "acme:test")

    listed = await http.get("/v1/catalog/features", headers={"authorization": f"Bearer {made['secret']}"})

    assert listed.json() == {"items": [], "next": None}


async def test_scopes_divide_reading_from_changing(http: httpx.AsyncClient, doors: Doors) -> None:
    """`read` reads, `admin` changes, `ingest` does neither; keys are for `admin` alone."""
    reader = {"authorization": f"Bearer {await doors.key_with('read')}"}
    sender = {"authorization": f"Bearer {await doors.key_with('ingest')}"}

    assert (await http.get("/v1/catalog/features", headers=reader)).status_code == 200
    assert (await http.post("/v1/catalog/features", headers=reader, json={"id": "x"})).status_code == 403
    assert (await http.get("/v1/catalog/keys", headers=reader)).status_code == 403
    assert (await http.get("/v1/catalog/features", headers=sender)).status_code == 403
    assert (await http.get("/v1/catalog/features", headers={"authorization": ""})).status_code == 401


async def test_every_refusal_names_its_field(http: httpx.AsyncClient) -> None:
    """404, 409 and 422 with the field; 400 for what is no JSON; never a 500."""
    taken = await http.post("/v1/catalog/features", json={"id": "ai-messages"})
    assert (taken.status_code, faults(taken)) == (409, [("id", "exists")])
    missing = await http.get("/v1/catalog/features/none")
    assert (missing.status_code, faults(missing)) == (404, [("id", "not_found")])
    bad = await http.post("/v1/catalog/features", json={"id": 124, "event_name": "x"})
    assert (bad.status_code, faults(bad)) == (422, [("event_name", "unknown_field"), ("id", "type")])
    renamed = await http.patch("/v1/catalog/features/ai-messages", json={"id": "other"})
    assert (renamed.status_code, faults(renamed)) == (422, [("id", "immutable")])
    twice = await http.post(
        "/v1/catalog/features", content=b'{"id":"a","id":"b"}', headers={"content-type": "application/json"}
    )
    assert (twice.status_code, faults(twice)) == (422, [("id", "duplicate_key")])
    cut = await http.post("/v1/catalog/features", content=b'{"id":', headers={"content-type": "application/json"})
    assert cut.status_code == 400
    assert (await http.post("/v1/catalog/features", content=b"x")).status_code == 415


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"id":"f","metadata":{"a":1e999}}', "metadata"),
        (b'{"id":"f","metadata":{"a":NaN}}', "metadata"),
        (b'{"id":"f","filter":{"a":1e999999999}}', "filter.a"),
        (b'{"id":"\\ud800"}', "id"),
        (b'{"id":"f","metadata":{"a":"\\ud800"}}', "metadata"),
        (b'{"id":"f","metadata":{"\\ud800":1}}', "metadata"),
        (b'{"id":"f","name":"\\ud800"}', "name"),
        (b'{"id":"f","effective_from":"9999-01-01T00:00:00Z"}', "effective_from"),
    ],
)
async def test_odd_values_are_refused_by_field(http: httpx.AsyncClient, body: bytes, field: str) -> None:
    """Numbers that nothing holds, lone surrogates, times out of range."""
    answer = await http.post("/v1/catalog/features", content=body, headers={"content-type": "application/json"})

    assert (answer.status_code, [field for field, _ in faults(answer)]) == (422, [field])


async def test_without_kafka_changes_are_503_and_look_ups_answer(http: httpx.AsyncClient, doors: Doors) -> None:
    """With the time to try again."""
    await doors.catalog_log.break_off()

    refused = await http.post("/v1/catalog/features", json={"id": "new"})

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert (await http.get("/v1/catalog/features")).status_code == 200
