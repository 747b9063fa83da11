"""The application as a whole: addresses, health, limits, and defects of ours."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from door_bench import Doors
from litestar import get, post
from litestar.params import FromQuery

from pipeline.transaction_id import new_transaction_id
from producers.api import Services, build_app
from producers.auth import PUBLIC, needs
from producers.intake import Intake
from producers.memory_log import MemoryLog
from producers.problems import AnyRequest, Problem
from producers.publisher import Publisher

EVENT = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"}


async def test_an_unknown_address_is_a_404_problem(doors: Doors) -> None:
    """With where to look."""
    answer = await doors.post("/v1/nothing", EVENT)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_another_method_is_a_405_problem(doors: Doors) -> None:
    """With the methods that there are."""
    answer = await doors.client.get("/v1/events")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert "POST" in answer.headers["allow"]


async def test_health_needs_no_key_and_tells_what_is_away(doors: Doors) -> None:
    """Alive always, ready only while Kafka answers."""
    assert (await doors.client.get("/livez")).status_code == 200
    assert (await doors.client.get("/readyz")).json() == {"status": "ready", "checks": ["kafka"]}
    await doors.catalog_log.break_off()
    answer = await doors.client.get("/readyz")
    assert (answer.status_code, list(answer.json()["away"])) == (503, ["kafka"])
    assert (await doors.client.get("/livez")).status_code == 200


async def test_a_check_that_hangs_is_not_ready(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr("producers.api._CHECK_TIMEOUT_S", 0.01)
    app = build_app(Services(doors.intake, {"kafka": asyncio.Event().wait}))
    answer = await doors.on(app).get("/readyz")
    assert answer.status_code == 503
    assert "no answer" in answer.json()["detail"]


async def test_the_openapi_page_lists_every_door(doors: Doors) -> None:
    """Readable without a key."""
    paths = (await doors.client.get("/openapi.json")).json()["paths"]
    doors_and_health = {"/api/v1/events", "/api/v1/events/create", "/v1/events", "/v1/track", "/v1/usage", "/v1/check"}
    assert doors_and_health | {"/v1/events/batch", "/graphql", "/livez", "/readyz"} <= set(paths)


async def test_too_much_in_flight_is_a_429(doors: Doors) -> None:
    """Refused at once instead of kept in memory without bound."""
    intake = Intake(
        Publisher(doors.log, topic="events", partitions=6),
        doors.intake.catalog,
        clock_us=doors.intake.clock_us,
        ahead_max_us=0,
        new_id=new_transaction_id,
        in_flight_events_max=2,
    )
    client = doors.on(build_app(Services(intake, {})))
    headers = {"authorization": doors.key}
    answer = await client.post("/api/v1/events", json=[EVENT] * 3, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert (await client.post("/api/v1/events", json=[EVENT] * 2, headers=headers)).status_code == 200


async def test_a_defect_is_a_500_without_particulars(doors: Doors) -> None:
    """The trace is in the log, not in the answer."""
    log = MemoryLog()
    log.write = AsyncMock(side_effect=RuntimeError("secret internals"))  # type: ignore[method-assign]
    intake = Intake(
        Publisher(log, topic="events", partitions=6),
        doors.intake.catalog,
        clock_us=doors.intake.clock_us,
        ahead_max_us=0,
        new_id=new_transaction_id,
    )
    client = doors.on(build_app(Services(intake, {})))
    headers = {"authorization": doors.key}
    usage = {"query": 'mutation { createUsageEvent(input: {userId: "124", featureId: "ai-messages", delta: 1}) }'}
    calls = {
        "/api/v1/events": EVENT,
        "/v1/events": {"customer_id": "124", "feature_id": "ai-messages"},
        "/graphql": usage,
    }
    for path, body in calls.items():
        answer = await client.post(path, json=body, headers=headers)
        assert answer.status_code == (200 if path == "/graphql" else 500)
        assert "secret" not in answer.text
        assert "internal" in answer.text.lower()


async def test_routers_of_other_packages_find_the_principal(doors: Doors) -> None:
    """Behind the same keys, with guards and errors of their own."""

    @get("/v1/own", guards=[needs("read")])
    async def own(request: AnyRequest, days: FromQuery[int]) -> dict[str, str]:
        return {"account": request.state.principal.account, "days": str(days)}

    @post("/v1/broken")
    async def broken() -> None:
        raise Problem(409, "exists", "it is there already")

    @get("/v1/open", opt=PUBLIC)
    async def public() -> str:
        return "open"

    client = doors.on(build_app(Services(doors.intake, {}), [own, broken, public]))
    headers = {"authorization": doors.key}
    assert (await client.get("/v1/own?days=3", headers=headers)).json() == {"account": "acme", "days": "3"}
    refused = await client.get("/v1/own?days=x", headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "days")
    assert (await client.get("/v1/own?days=3")).status_code == 401
    assert (await client.post("/v1/broken", headers=headers)).json()["code"] == "exists"
    assert (await client.get("/v1/open")).status_code == 200


async def test_what_another_process_made_a_moment_ago_is_known(doors: Doors) -> None:
    """A feature created elsewhere is found before the door says that there is none; so is a key."""
    from pipeline.adapters.catalog_log import CatalogClient
    from pipeline.catalog_input import feature_from
    from pipeline.catalog_service import CatalogService

    other = CatalogClient(doors.catalog_log)
    await other.start()
    elsewhere = CatalogService(other)
    await elsewhere.create_feature(feature_from("acme", {"id": "new-feature"}))
    created = await elsewhere.create_key("acme", {"scopes": ["ingest"]})
    await other.stop()
    body = {"customer_id": "c", "feature_id": "new-feature"}
    assert (await doors.post("/v1/events", body, authorization=created.secret)).status_code == 200
    assert int(doors.log.records[0].headers["catalog"]) >= doors.catalog.catalog.feature("acme", "new-feature").rev
