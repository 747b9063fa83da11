"""Who may come in, and with what."""

import pytest
from door_bench import Doors

EVENT = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"}
PATHS = [
    "/api/v1/events",
    "/api/v1/events/create",
    "/v1/events",
    "/v1/track",
    "/v1/usage",
    "/v1/check",
    "/v1/events/batch",
    "/graphql",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "key", ["", "Bearer wrong", "Bearer tally_live_wrong", "Basic dXNlcjpwYXNz", "Bearer", "x" * 5000]
)
async def test_a_wrong_or_missing_key_is_a_401_at_every_door(doors: Doors, path: str, key: str) -> None:
    """With the challenge that HTTP asks for, and nothing written."""
    answer = await doors.post(path, EVENT, authorization=key)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert not doors.log.records


@pytest.mark.parametrize(("scope", "path"), [("read", path) for path in PATHS[:4]] + [("ingest", "/v1/check")])
async def test_a_key_without_the_scope_is_a_403(doors: Doors, scope: str, path: str) -> None:
    """The answer names the scope that is missing."""
    answer = await doors.post(path, EVENT, authorization=f"Bearer {await doors.key_with(scope)}")
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["code"] == "scope"
    assert not doors.log.records


async def test_every_header_that_a_dialect_uses_carries_the_key(doors: Doors) -> None:
    """Bearer, bare, X-API-Key and Kable's pair."""
    key = await doors.key_with("ingest", name="billing")
    ways = [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"authorization": key},
        {"authorization": "", "x_api_key": key},
        {"authorization": "", "kable_client_secret": key},
        {"authorization": "", "kable_client_id": "acme", "kable_client_secret": key},
        {"authorization": "", "kable_client_id": "billing", "kable_client_secret": key},
        {"authorization": f"Bearer {key}", "x_api_key": key},
    ]
    for way in ways:
        assert (await doors.post("/api/v1/events", EVENT, **way)).status_code == 200, way


async def test_credentials_that_do_not_fit_together_are_refused(doors: Doors) -> None:
    """Another account's client id, or two different keys."""
    key, other = await doors.key_with("ingest"), await doors.key_with("ingest")
    for way in (
        {"authorization": "", "kable_client_id": "other", "kable_client_secret": key},
        {"authorization": key, "x_api_key": other},
    ):
        assert (await doors.post("/api/v1/events", EVENT, **way)).status_code == 401


async def test_a_revoked_key_is_a_401(doors: Doors) -> None:
    """From the moment that this process has read it."""
    created = await doors.catalog.create_key("acme", {"scopes": ["ingest"]})
    assert (await doors.post("/api/v1/events", EVENT, authorization=created.secret)).status_code == 200
    await doors.catalog.revoke_key("acme", created.key.hash)
    assert (await doors.post("/api/v1/events", EVENT, authorization=created.secret)).status_code == 401


async def test_the_account_comes_from_the_key(doors: Doors) -> None:
    """The test account's key writes to the test account."""
    created = await doors.catalog.create_key("acme", {"scopes": ["ingest"], "mode": "test"})
    assert (await doors.post("/api/v1/events", EVENT, authorization=created.secret)).status_code == 200
    assert doors.log.records[0].headers["account"] == b"acme:test"


async def test_an_unknown_key_while_the_catalog_is_away_is_a_503(doors: Doors) -> None:
    """It may exist: a 401 would make a client give its events up."""
    await doors.catalog_log.break_off()
    answer = await doors.post("/api/v1/events", EVENT, authorization="tally_live_made_elsewhere")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
