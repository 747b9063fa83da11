"""The examples of the documents that the product was asked for, through the doors of today's clients."""

import json
import re
import shlex
from pathlib import Path

import httpx
from running_stack import RunningStack, Tenant
from waiting import counted, usage, values

_DOCUMENTS = Path(__file__).parents[1] / "data" / "documents"

_EVENTS = ["email_generation", "social_media_generation", "blog_post_generation"]


def _feature(stack: RunningStack, tenant: Tenant, feature: str, events: list[str]) -> None:
    answer = httpx.post(
        f"{stack.api}/v1/catalog/features",
        headers=tenant.headers,
        json={"id": feature, "name": feature, "event_names": events},
    )
    assert answer.status_code == 201, answer.text


def _autumn(stack: RunningStack, tenant: Tenant, **body: object) -> httpx.Response:
    return httpx.post(f"{stack.api}/v1/events", headers=tenant.headers, json={"customer_id": "user-123", **body})


def _graphql(stack: RunningStack, tenant: Tenant, query: str, variables: dict[str, object]) -> dict[str, object]:
    answer = httpx.post(
        f"{stack.api}/graphql", headers={"Authorization": tenant.key}, json={"query": query, "variables": variables}
    )
    found: dict[str, object] = answer.json()
    return found


def test_three_events_feed_two_features(stack: RunningStack, tenant: Tenant) -> None:
    """All three count as generations, only blog posts count as blog posts; an event sent right after its feature was
    made is mapped."""
    _feature(stack, tenant, "total-generations", _EVENTS)
    _feature(stack, tenant, "blog-posts", _EVENTS[2:])
    for name, count in zip(_EVENTS, (3, 2, 1), strict=True):
        for _ in range(count):
            answer = _autumn(stack, tenant, value=1, event_name=name)
            assert answer.status_code == 200, answer.text
            assert answer.json()["message"] == "Event recorded successfully"
            assert answer.json()["event_name"] == name
    counted(stack, tenant)
    assert values(usage(stack, tenant), "feature") == {"total-generations": "6", "blog-posts": "1"}


def test_a_negative_value_gives_back(stack: RunningStack, tenant: Tenant) -> None:
    """Fractions stay exact."""
    _feature(stack, tenant, "ai-messages", [])
    for value in (1, 0.1, 0.2, -0.3):
        assert _autumn(stack, tenant, value=value, feature_id="ai-messages").status_code == 200
    counted(stack, tenant)
    assert values(usage(stack, tenant), "feature") == {"ai-messages": "1"}


def test_setting_usage_is_refused_by_name(stack: RunningStack, tenant: Tenant) -> None:
    """Until entitlements exist it is not half-kept; checks answer unlimited."""
    _feature(stack, tenant, "seats", [])
    body = {"customer_id": "user-123", "feature_id": "seats", "value": 3}
    refused = httpx.post(f"{stack.api}/v1/usage", headers=tenant.headers, json=body)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "not_built")
    check = httpx.post(
        f"{stack.api}/v1/check", headers=tenant.headers, json={"customer_id": "user-123", "feature_id": "seats"}
    ).json()
    assert (check["allowed"], check["unlimited"]) == (True, True)


def test_kana_records_usage_of_a_feature_by_a_user(stack: RunningStack, tenant: Tenant) -> None:
    """The guide's mutation, after creating user and feature; a number as id is refused."""
    made = _graphql(
        stack,
        tenant,
        "mutation M($u: CreateUserInput!, $f: CreateFeatureInput!) { createUser(input: $u) { id } "
        "createFeature(input: $f) { id } }",
        {
            "u": {"id": "124", "name": "Test User", "email": "test@usekana.com"},
            "f": {"id": "api-calls", "name": "API Calls", "type": "CONSUMABLE"},
        },
    )
    assert made["data"] == {"createUser": {"id": "124"}, "createFeature": {"id": "api-calls"}}, made
    mutation = "mutation createUsageEvent($input: CreateUsageEventInput!) {\n  createUsageEvent(input: $input)\n}"
    for delta in (1, 4):
        recorded = _graphql(
            stack, tenant, mutation, {"input": {"userId": "124", "featureId": "api-calls", "delta": delta}}
        )
        assert recorded["data"] == {"createUsageEvent": True}, recorded
    refused = _graphql(stack, tenant, mutation, {"input": {"userId": 124, "featureId": "api-calls", "delta": 1}})
    assert "String" in str(refused["errors"])
    counted(stack, tenant)
    assert values(usage(stack, tenant), "feature") == {"api-calls": "5"}


def test_kable_events_carry_dimensions(stack: RunningStack, tenant: Tenant) -> None:
    """One event sent three times counts once; a key of the data is a dimension."""
    headers = {"Kable-Client-Id": tenant.account, "Kable-Client-Secret": tenant.key}
    answer = httpx.post(
        f"{stack.api}/v1/catalog/dimensions", headers=tenant.headers, json={"key": "region", "type": "string"}
    )
    assert answer.status_code == 201, answer.text
    event = {
        "clientId": "c-1",
        "timestamp": "2026-11-01T12:00:00+01:00",
        "transactionId": "t-1",
        "eventName": "call",
        "data": {"region": "eu", "bytes": 12},
    }
    for _ in range(3):
        assert httpx.post(f"{stack.api}/api/v1/events/create", headers=headers, json=event).status_code == 200
    other = {**event, "transactionId": "t-2", "data": {"region": "us"}}
    assert httpx.post(f"{stack.api}/api/v1/events", headers=headers, json=[other, event]).status_code == 200
    counted(stack, tenant)
    window = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}
    found = usage(stack, tenant, event_name="call", dimension="region", **window)
    assert values(found, "dimension:region") == {"eu": "1", "us": "1"}


def test_autumns_curl_lines_run_as_they_stand(stack: RunningStack, tenant: Tenant) -> None:
    """Only host and key are changed; the answers have what the document shows."""
    _feature(stack, tenant, "ai-messages", [])
    _feature(stack, tenant, "blog-posts", _EVENTS[2:])
    _feature(stack, tenant, "seats", [])
    text = (_DOCUMENTS / "autumn.sh").read_text()
    text = text.replace("https://api.useautumn.com", stack.api).replace("am_sk_1234567890", tenant.key)
    by_feature, set_usage, by_name = [_curl(line) for line in re.split(r"^(?=curl )", text, flags=re.MULTILINE) if line]
    shown = {"message": "Event recorded successfully", "customer_id": "user-123"}
    assert by_feature.json() | shown | {"feature_id": "ai-messages"} == by_feature.json()
    assert by_name.json() | shown | {"event_name": "blog_post_generation"} == by_name.json()
    assert (set_usage.status_code, set_usage.json()["code"]) == (422, "not_built")
    counted(stack, tenant)
    assert values(usage(stack, tenant), "feature") == {"ai-messages": "1", "blog-posts": "1"}


def test_kanas_mutation_runs_as_it_stands(stack: RunningStack, tenant: Tenant) -> None:
    """The guide's query, with its user and feature."""
    assert httpx.post(f"{stack.api}/v1/catalog/customers", headers=tenant.headers, json={"id": "124"}).is_success
    _feature(stack, tenant, "api-calls", [])
    query = (_DOCUMENTS / "kana.graphql").read_text()
    variables = {"input": {"userId": "124", "featureId": "api-calls", "delta": 1}}
    assert _graphql(stack, tenant, query, variables) == {"data": {"createUsageEvent": True}}
    counted(stack, tenant)
    assert values(usage(stack, tenant), "feature") == {"api-calls": "1"}


def _curl(line: str) -> httpx.Response:
    """Does what the command line says."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:2] == ["curl", "-X"]
    assert len(words) == 10
    method, url, *options = words[2:]
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in given if option == "-H")
    [body] = [value for option, value in given if option == "-d"]
    assert json.loads(body)
    return httpx.request(method, url, headers=headers, content=body)
