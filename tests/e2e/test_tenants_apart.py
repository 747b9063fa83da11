"""Two accounts with the same ids for everything, at every route that the API has: neither sees nor touches the other's.

Rules: the cases are held to the routes of the running product; a route without one fails by name. `theirs` has been
there before and is looked at again after everything that `mine` does.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest
from litestar.routes import HTTPRoute
from running_stack import RunningStack, fresh_tenant
from waiting import until

from tally import make_api

_TIME: Final = "2026-11-03T10:20:00Z"


class Party:
    """One account as it uses the API; `name` is in everything that it makes, ids apart."""

    def __init__(self, stack: RunningStack, name: str) -> None:
        self.name = name
        self.tenant = fresh_tenant(stack)
        self.http = httpx.Client(base_url=stack.api, headers=self.tenant.headers, timeout=120)

    def call(self, method: str, path: str, *statuses: int, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code in (statuses or (200, 201)), (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def graphql(self, query: str) -> Any:
        return self.call("POST", "/graphql", json={"query": query})


class World:
    """Both, after each has made the same catalog and sent the same ids with values of its own through every door."""

    def __init__(self, stack: RunningStack) -> None:
        self.theirs, self.mine = Party(stack, "theirs"), Party(stack, "mine")
        for party, value in ((self.theirs, 5), (self.mine, 7)):
            _define(party)
            _send(party, value)
        self.key_of_theirs = self.theirs.call("GET", "/v1/catalog/keys")["items"][0]["id"]
        for party in (self.theirs, self.mine):
            until(lambda party=party: len(_lines(party)) == len(_IDS) + 1, why=f"{party.name}: all doors' are counted")
        self.before = self.state()

    def state(self) -> Any:
        """Everything that the other account has, as it sees it itself; what moves by itself left out."""
        shown = {path: self.theirs.call("GET", path) for path in _LISTS}
        usage = self.theirs.call("GET", "/v1/usage?start=2020-01-01&group_by=customer,feature")["data"]
        return shown, [(row["group"], row["value"]) for row in usage], _lines(self.theirs)


_LISTS: Final = tuple(f"/v1/catalog/{kind}" for kind in ("customers", "dimensions", "features", "keys"))
_IDS: Final = (
    "create",
    "events",
    "autumn",
    "track",
    "batch",
    "balances",
    "many",
    "seg-track",
    "seg-batch",
    "seg-import",
)


_METERED: Final = sum(not name.startswith("seg-") for name in _IDS)  # Segment's name feeds no feature


def _define(party: Party) -> None:
    party.call("POST", "/v1/catalog/features", json={"id": "f", "name": party.name, "event_names": ["e"]})
    party.call("POST", "/v1/catalog/features", json={"id": f"only-{party.name}", "event_names": [party.name]})
    party.call("POST", "/v1/catalog/dimensions", json={"key": "d", "type": "string"})
    party.call("POST", "/v1/catalog/customers", json={"id": "c", "name": party.name})
    party.call("POST", "/v1/catalog/customers", json={"id": f"only-{party.name}"})


def _send(party: Party, value: int) -> None:
    """One event through each door; none may be a duplicate or a conflict."""
    kable = {"clientId": "c", "timestamp": _TIME, "eventName": "e", "value": value, "data": {"d": party.name}}
    autumn = {"customer_id": "c", "event_name": "e", "value": value, "properties": {"d": party.name}}
    party.call("POST", "/api/v1/events/create", json={**kable, "transactionId": "create"})
    party.call("POST", "/api/v1/events", json=[{**kable, "transactionId": "events"}])
    party.call("POST", "/v1/events", json={**autumn, "idempotency_key": "autumn"})
    party.call("POST", "/v1/track", json={**autumn, "idempotency_key": "track"})
    party.call("POST", "/v1/balances.track", json={**autumn, "idempotency_key": "balances"})
    party.call("POST", "/v1/balances.batch_track", 202, json=[{**autumn, "idempotency_key": "many"}])
    message = {"userId": "c", "event": "s", "timestamp": _TIME, "properties": {"d": party.name}, "type": "track"}
    party.call("POST", "/segment/v1/track", json={**message, "messageId": "seg-track"})
    for path in ("batch", "import"):
        party.call("POST", f"/segment/v1/{path}", json={"batch": [{**message, "messageId": f"seg-{path}"}]})
    line = json.dumps({**kable, "transactionId": "batch"})
    party.call("POST", "/v1/events/batch", content=line, headers={"Content-Type": "application/x-ndjson"})
    made = party.graphql(f'mutation {{ createUsageEvent(input: {{userId: "c", featureId: "f", delta: {value}}}) }}')
    assert made["data"] == {"createUsageEvent": True}


def _lines(party: Party) -> Any:
    return party.call("GET", "/v1/events?start=2020-01-01&limit=200")["data"]


@pytest.fixture(scope="module")
def world(stack: RunningStack) -> Iterator[World]:
    """Two accounts that have used everything."""
    world = World(stack)
    yield world
    for party in (world.mine, world.theirs):
        party.http.close()


def _own_event(identity: str, *, valued: bool = True) -> Callable[[World], None]:
    """The same id through the same door: each has its own, accepted, with its own content."""

    def check(world: World) -> None:
        for party, value in ((world.mine, "7" if valued else "1"), (world.theirs, "5" if valued else "1")):
            (line,) = party.call("GET", f"/v1/events?start=2020-01-01&transaction_id={identity}")["data"]
            assert (line["verdict"], line["value"], line["data"]) == ("accepted", value, {"d": party.name})

    return check


def _refused(method: str, path: str, status: int, body: Any = None) -> Callable[[World], None]:
    """What only the other has is not there."""

    def check(world: World) -> None:
        options = {} if body is None else {"json": body}
        world.mine.call(method, path.format(key=world.key_of_theirs), status, **options)

    return check


def _own(method: str, path: str, body: Any = None) -> Callable[[World], None]:
    """What both have is one's own, and nothing of the other is in the answer."""

    def check(world: World) -> None:
        options = {} if body is None else {"json": body}
        answer = json.dumps(world.mine.call(method, path, **options))
        assert "theirs" not in answer
        assert world.theirs.tenant.account not in answer
        assert world.key_of_theirs not in answer

    return check


def _usage(path: str) -> Callable[[World], None]:
    """Six events of 7, and none of 5."""

    def check(world: World) -> None:
        answer = world.mine.call("GET", f"{path}?start=2020-01-01&dimension=d")
        assert answer["account"] == world.mine.tenant.account
        assert "theirs" not in json.dumps(answer)
        assert sum(int(row["value"]) for row in answer["data"]) % 7 == 0
        assert sum(row["events"] for row in answer["data"]) >= _METERED

    return check


def _receipt(world: World) -> None:
    found = world.mine.call("GET", "/v1/events/events")
    assert (found["account"], found["times_seen"], found["event"]["value"]) == (world.mine.tenant.account, 1, "7")
    (graphql,) = [line for line in _lines(world.theirs) if line["transaction_id"] not in _IDS]
    world.mine.call("GET", f"/v1/events/{graphql['transaction_id']}", 404)


def _receipt_of_batch(world: World) -> None:
    found = world.mine.call("GET", "/v1/events/batch")
    assert (found["transaction_id"], found["event"]["value"]) == ("batch", "7")


def _tail(world: World) -> None:
    """From the other's first token on: the same places of the log, and only one's own lines."""
    told = []
    with world.theirs.http.stream("GET", "/v1/events/tail") as answer:
        token = next(line for line in answer.iter_lines() if line.startswith("id: ")).removeprefix("id: ")
    world.mine.call(
        "POST", "/api/v1/events", json={"clientId": "c", "timestamp": _TIME, "transactionId": "tailed", "data": {}}
    )
    with world.mine.http.stream("GET", "/v1/events/tail", headers={"Last-Event-ID": token}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and "transaction_id" in line:
                told.append(json.loads(line.removeprefix("data: ")))
            if told and told[-1]["transaction_id"] == "tailed":
                break
    assert {line["value"] for line in told} <= {"7", "1"}  # 5 is the other's


def _graphql(world: World) -> None:
    everything = "{ users { id name } features { id name } }"
    assert "theirs" not in json.dumps(world.mine.graphql(everything))
    assert "only-theirs" in json.dumps(world.theirs.graphql(everything))
    for query in (
        '{ user(id: "only-theirs") { id } }',
        '{ feature(id: "only-theirs") { id } }',
        'mutation { createUsageEvent(input: {userId: "only-theirs", featureId: "f", delta: 1}) }',
        'mutation { createUsageEvent(input: {userId: "c", featureId: "only-theirs", delta: 1}) }',
        '{ canUseFeature(userId: "only-theirs", featureId: "f") { access } }',
    ):
        assert world.mine.graphql(query)["errors"], query


def _nobody(path: str) -> Callable[[World], None]:
    """Needs no key, and tells of no account."""

    def check(world: World) -> None:
        answer = httpx.get(str(world.mine.http.base_url.join(path)), timeout=120)
        assert answer.status_code in (200, 401, 404)  # the last two: pages of descriptions that are not served
        for party in (world.mine, world.theirs):
            assert party.tenant.account not in answer.text

    return check


def _key(world: World) -> None:
    created = world.mine.call("POST", "/v1/catalog/keys", json={"name": "n", "scopes": ["read"]})
    with httpx.Client(base_url=world.mine.http.base_url, timeout=120) as other:
        answer = other.get("/v1/usage", headers={"Authorization": f"Bearer {created['secret']}"})
    assert answer.json()["account"] == world.mine.tenant.account


_CASES: Final[dict[str, Callable[[World], None]]] = {
    "POST /api/v1/events": _own_event("events"),
    "POST /api/v1/events/create": _own_event("create"),
    "POST /v1/events": _own_event("autumn"),
    "POST /v1/track": _own_event("track"),
    "POST /v1/events/batch": _own_event("batch"),
    "POST /v1/balances.track": _own_event("balances"),
    "POST /v1/balances.batch_track": _own_event("many"),
    "POST /segment/v1/track": _own_event("seg-track", valued=False),
    "POST /segment/v1/batch": _own_event("seg-batch", valued=False),
    "POST /segment/v1/import": _own_event("seg-import", valued=False),
    "POST /v1/balances.check": _refused(
        "POST", "/v1/balances.check", 404, {"customer_id": "c", "feature_id": "only-theirs"}
    ),
    "POST /v1/balances.update": _refused(
        "POST", "/v1/balances.update", 422, {"customer_id": "c", "feature_id": "f", "value": 1}
    ),
    "POST /v1/customers": _own("POST", "/v1/customers", {"id": "c"}),
    "POST /v1/customers.get_or_create": _own("POST", "/v1/customers.get_or_create", {"customer_id": "c"}),
    "POST /v1/customers.get": _refused("POST", "/v1/customers.get", 404, {"customer_id": "only-theirs"}),
    "GET /v1/customers/{customer_id:str}": _refused("GET", "/v1/customers/only-theirs", 404),
    "POST /v1/customers/{customer_id:str}/balances": _refused("POST", "/v1/customers/only-theirs/balances", 422, {}),
    "POST /v1/features.list": _own("POST", "/v1/features.list", {}),
    "POST /v1/features.get": _refused("POST", "/v1/features.get", 404, {"feature_id": "only-theirs"}),
    "GET /graphql": _nobody("/graphql"),
    "GET /docs": _nobody("/docs"),
    "GET /assets/{name:str}": _nobody("/assets/docs.js"),
    "POST /graphql": _graphql,
    "POST /v1/check": _refused("POST", "/v1/check", 404, {"customer_id": "c", "feature_id": "only-theirs"}),
    "POST /v1/usage": _refused("POST", "/v1/usage", 422, {"customer_id": "c", "feature_id": "f", "value": 1}),
    "GET /v1/events": _own("GET", "/v1/events?start=2020-01-01&limit=200"),
    "GET /v1/events/tail": _tail,
    "GET /v1/events/{transaction_id:path}": _receipt,
    "GET /v1/events/batch": _receipt_of_batch,
    "GET /v1/usage": _usage("/v1/usage"),
    "GET /v1/usage/features/{feature:str}": _usage("/v1/usage/features/f"),
    "GET /v1/usage/events/{event_name:str}": _usage("/v1/usage/events/e"),
    "GET /v1/usage/customers/{customer:str}": _usage("/v1/usage/customers/c"),
    "GET /v1/catalog/keys": _own("GET", "/v1/catalog/keys"),
    "POST /v1/catalog/keys": _key,
    "GET /v1/catalog/keys/{key_id:str}": _refused("GET", "/v1/catalog/keys/{key}", 404),
    "DELETE /v1/catalog/keys/{key_id:str}": _refused("DELETE", "/v1/catalog/keys/{key}", 404),
    "POST /v1/catalog/keys/{key_id:str}/rotate": _refused("POST", "/v1/catalog/keys/{key}/rotate", 404, {}),
    "GET /livez": _nobody("/livez"),
    "GET /readyz": _nobody("/readyz"),
    "GET /openapi.json": _nobody("/openapi.json"),
    "GET /": _nobody("/"),
    "GET /{path:str}": _nobody("/anything"),
}
for _call in ("screen", "identify", "group", "alias", "page"):
    _CASES[f"POST /segment/v1/{_call}"] = _own("POST", f"/segment/v1/{_call}", {"userId": "c", "messageId": "x"})
for _kind, _id, _body in (
    ("features", "feature_id", {"id": "new", "name": "mine"}),
    ("customers", "customer_id", {"id": "new", "name": "mine"}),
    ("dimensions", "key", {"key": "new", "type": "string"}),
):
    _one = {"features": "f", "customers": "c", "dimensions": "d"}[_kind]
    _change = {"type": "number"} if _kind == "dimensions" else {"name": "mine anew"}
    _CASES[f"GET /v1/catalog/{_kind}"] = _own("GET", f"/v1/catalog/{_kind}")
    _CASES[f"POST /v1/catalog/{_kind}"] = _own("POST", f"/v1/catalog/{_kind}", _body)
    _CASES[f"GET /v1/catalog/{_kind}/{{{_id}:path}}"] = _own("GET", f"/v1/catalog/{_kind}/{_one}")
    for _method in ("PATCH", "PUT"):
        _CASES[f"{_method} /v1/catalog/{_kind}/{{{_id}:path}}"] = _own(_method, f"/v1/catalog/{_kind}/{_one}", _change)


def _routes() -> set[str]:
    """Method and path of every route, described or not."""
    return {
        f"{method} {route.path}"
        for route in make_api().routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS", "HEAD"}
    }


def test_every_route_has_a_case() -> None:
    """A route that is added names itself here until it has one; a case without a route is none."""
    routes = _routes()
    assert routes - _CASES.keys() == set(), "these routes have no case in this module"
    assert _CASES.keys() - routes == set(), "these cases have no route"


@pytest.mark.parametrize("route", sorted(_CASES))
def test_an_account_neither_sees_nor_touches_anothers(world: World, route: str) -> None:
    """By this route, with the same ids for everything."""
    _CASES[route](world)


def test_the_other_account_is_as_it_was(world: World) -> None:
    """After every route was used again by the one: catalog, usage, events of the other are the same to the last."""
    for route in sorted(_CASES):
        if not route.startswith(("POST /v1/catalog", "GET /v1/events/tail")):  # made once, in the cases
            _CASES[route](world)
    assert world.state() == world.before
