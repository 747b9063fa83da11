"""Kana's door, the seed's mutation first."""

from typing import Any
from unittest.mock import ANY

import pytest
from door_bench import Doors
from graphql import get_introspection_query

USAGE_QUERY = """mutation createUsageEvent($input: CreateUsageEventInput!) {
  createUsageEvent(input: $input)
}"""
USE = {"userId": "124", "featureId": "ai-messages", "delta": 1}


async def record(doors: Doors, use: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    """The seed's mutation with these variables."""
    answer = await doors.post("/graphql", {"query": USAGE_QUERY, "variables": {"input": use}}, **headers)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("prefix", ["", "Bearer "])
async def test_the_seeds_example(doors: Doors, prefix: str) -> None:
    """True once the log has it."""
    assert await record(doors, USE, authorization=prefix + doors.key) == (200, {"data": {"createUsageEvent": True}})
    [event] = doors.events()
    assert (event["clientId"], event["featureId"]) == ("124", "ai-messages")
    assert doors.log.records[0].headers["defaulted"] == b"timestamp"


@pytest.mark.parametrize("field", ["userId", "featureId"])
@pytest.mark.parametrize("wrong", [124, 1.5, True, None, ["124"], {"id": "124"}])
async def test_only_string_is_accepted_as_id_in_variables(doors: Doors, field: str, wrong: object) -> None:
    """The error names the field and, for another type, says so; nothing is written."""
    status, body = await record(doors, {**USE, field: wrong})
    assert status == 400
    [error] = body["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert field in error["message"]
    assert wrong is None or "Only String is accepted" in error["message"]
    assert not doors.log.records


@pytest.mark.parametrize("field", ["userId", "featureId"])
async def test_only_string_is_accepted_as_id_in_literals(doors: Doors, field: str) -> None:
    """An integer literal is not coerced either."""
    use = {"userId": '"124"', "featureId": '"ai-messages"', field: "124"}
    query = (
        f"mutation {{ createUsageEvent(input: {{userId: {use['userId']}, featureId: {use['featureId']}, delta: 1}}) }}"
    )
    answer = await doors.post("/graphql", {"query": query})
    [error] = answer.json()["errors"]
    assert error["extensions"] == {"code": "BAD_USER_INPUT", "field": field}
    assert "Only String is accepted" in error["message"]
    assert not doors.log.records


async def test_unknown_user_and_feature_are_named(doors: Doors) -> None:
    """With a stable code."""
    for use, field, name in (
        ({**USE, "userId": "nobody"}, "userId", "nobody"),
        ({**USE, "featureId": "nothing"}, "featureId", "nothing"),
    ):
        status, body = await record(doors, use)
        [error] = body["errors"]
        assert (status, error["extensions"]["code"], error["extensions"]["field"]) == (200, "NOT_FOUND", field)
        assert name in error["message"]
    assert not doors.log.records


@pytest.mark.parametrize("delta", [2**31, -(2**31) - 1, 1.5, "1", None])
async def test_delta_is_a_32_bit_int(doors: Doors, delta: object) -> None:
    """Anything else is refused."""
    status, body = await record(doors, {**USE, "delta": delta})
    assert (status, body["errors"][0]["extensions"]["code"]) == (400, "BAD_USER_INPUT")
    assert "delta" in body["errors"][0]["message"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"query":"mutation {"}', 400, "GRAPHQL_PARSE_FAILED"),
        (b'{"query":"{ nothing }"}', 400, "GRAPHQL_VALIDATION_FAILED"),
        (b'{"query":"query($id: String!) { user(id: $id) {id} }"}', 400, "BAD_USER_INPUT"),
        (b'{"query":5}', 422, "BAD_USER_INPUT"),
        (b'{"query":"{users{id}}","variables":[]}', 422, "BAD_USER_INPUT"),
        (b'{"query":"{users{id}}","operationName":3}', 422, "BAD_USER_INPUT"),
        (b'{"query":"query A {users{id}} query B {users{id}}"}', 422, "BAD_USER_INPUT"),
        (b'{"query":"', 400, "BAD_USER_INPUT"),
        (b'{"query":"\xff"}', 400, "BAD_USER_INPUT"),
        (b'{"query":"{users{id}}","variables":{"a":NaN}}', 400, "BAD_USER_INPUT"),
        (b'[{"query":"{users{id}}"}]', 422, "BAD_USER_INPUT"),
        (b"", 400, "BAD_USER_INPUT"),
        (b'{"query":"{' + b"users{id} " * 3000 + b'}"}', 400, "GRAPHQL_PARSE_FAILED"),
        (b'{"query":"' + b"x" * 300_000 + b'"}', 413, "BAD_USER_INPUT"),
        (b'{"query":"' + b"{a" * 20_000 + b'"}', 400, "GRAPHQL_PARSE_FAILED"),
        (b'{"query":"subscription {a}"}', 400, "GRAPHQL_VALIDATION_FAILED"),
        (b'{"query":" "}', 422, "BAD_USER_INPUT"),
    ],
)  # fmt: skip
async def test_what_cannot_be_executed_is_told_as_graphql_errors(
    doors: Doors, content: bytes, status: int, code: str
) -> None:
    """Each with a code; never a 500."""
    answer = await doors.post("/graphql", content=content)
    assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["extensions"]["code"] == code, answer.text


async def test_wrong_key_and_missing_scope(doors: Doors) -> None:
    """UNAUTHENTICATED and FORBIDDEN."""
    status, body = await record(doors, USE, authorization="wrong")
    assert (status, body["errors"][0]["extensions"]["code"]) == (401, "UNAUTHENTICATED")
    status, body = await record(doors, USE, authorization=await doors.key_with("read"))
    assert (status, body["errors"][0]["extensions"]["code"]) == (403, "FORBIDDEN")


async def test_kafka_away_is_unavailable(doors: Doors) -> None:
    """503 with Retry-After."""
    doors.log.away = True
    answer = await doors.post("/graphql", {"query": USAGE_QUERY, "variables": {"input": USE}})
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (503, "UNAVAILABLE")
    assert "retry-after" in answer.headers


async def test_a_use_that_is_not_confirmed_is_told_with_the_key_to_send_it_again_under(doors: Doors) -> None:
    """So that it counts once, whether or not the log had it."""
    doors.log.away = True
    key = (await record(doors, USE))[1]["errors"][0]["extensions"]["idempotencyKey"]
    assert await record(doors, USE, idempotency_key="mine") == (503, ANY)
    doors.log.away = False
    assert await record(doors, USE, idempotency_key=key) == (200, {"data": {"createUsageEvent": True}})
    assert [event["transactionId"] for event in doors.events()] == [key]


@pytest.mark.parametrize(
    ("document", "variables"),
    [
        (
            "mutation createPackage($input: CreatePackageInput!) { createPackage(input: $input) { id name metadata } }",
            {"input": {"id": "pro", "name": "Pro", "features": [{"id": "ai-messages", "limit": 500}]}},
        ),
        ('mutation { createPackage(input: {id: "pro", prices: [{amount: 5}]}) { id status prices { amount } } }', {}),
        (
            "mutation updatePackage($input: UpdatePackageInput!) { updatePackage(input: $input) { metadata } }",
            {"input": {"id": "pro", "metadata": {"a": 1}}},
        ),
        (
            "mutation($packageIds: [String!]!, $userId: String!)"
            "{ subscribe(packageIds: $packageIds, userId: $userId) { id } }",
            {"packageIds": ["pro"], "userId": "124"},
        ),
        ('mutation { subscribe(packageIds: ["pro"], userId: "124") { status } }', {}),
        ('{ package(id: "pro") { id } }', {}),
        ("{ packages { id features { id limit } } }", {}),
        ('{ feature(id: "ai-messages") { entitlement(userId: "124") { limit } } }', {}),
        ('{ feature(id: "ai-messages") { packages { id } } }', {}),
    ],
)
async def test_packages_are_refused_by_name(doors: Doors, document: str, variables: dict[str, Any]) -> None:
    """Whatever is asked of them: nothing is half-kept, and the message says what there is instead."""
    answer = await doors.post("/graphql", {"query": document, "variables": variables})
    errors = answer.json()["errors"]
    assert {error["extensions"]["code"] for error in errors} == {"NOT_BUILT"}, answer.text
    assert all("not built yet" in error["message"] for error in errors)


async def test_what_is_not_built_takes_nothing_else_with_it(doors: Doors) -> None:
    """Beside it everything is answered; a key that may not ask hears that first."""
    query = '{ feature(id: "ai-messages") { id packages { id } } }'
    answer = (await doors.post("/graphql", {"query": query})).json()
    assert answer["data"] == {"feature": {"id": "ai-messages", "packages": None}}
    assert [error["path"] for error in answer["errors"]] == [["feature", "packages"]]
    subscribe = 'mutation { subscribe(packageIds: ["pro"], userId: "124") { id } }'
    key = await doors.key_with("ingest")
    refused = await doors.post("/graphql", {"query": subscribe}, authorization=key)
    assert refused.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_the_schema_tells_what_each_field_does(doors: Doors) -> None:
    """Tools show it; each root field and each type has its words."""
    query = "{ __schema { types { name description kind fields { name description } } } }"
    types = (await doors.post("/graphql", {"query": query})).json()["data"]["__schema"]["types"]
    own = [kind for kind in types if not kind["name"].startswith("__")]
    assert [kind["name"] for kind in own if not kind["description"]] == []
    roots = [field for kind in own if kind["name"] in {"Query", "Mutation"} for field in kind["fields"]]
    assert [field["name"] for field in roots if not field["description"]] == []


async def test_users_and_features_are_created_changed_and_read(doors: Doors) -> None:
    """And usable at once."""
    query = """mutation($user: CreateUserInput!, $feature: CreateFeatureInput!) {
      createUser(input: $user) { id name email metadata }
      createFeature(input: $feature) { id name type unitLabel unitLabelPlural metadata }
      updateUser(input: {id: "u1", email: "new"}) { name email }
      updateFeature(input: {id: "calls", unitLabelPlural: "calls"}) { name unitLabel unitLabelPlural }
      createUsageEvent(input: {userId: "u1", featureId: "calls", delta: -2})
    }"""
    user = {"id": "u1", "name": "Test User", "email": "test@usekana.com", "metadata": {"plan": "x", "n": 1.5}}
    feature = {"id": "calls", "name": "API Calls", "type": "CONSUMABLE", "unitLabel": "call"}
    answer = await doors.post("/graphql", {"query": query, "variables": {"user": user, "feature": feature}})
    assert answer.json() == {
        "data": {
            "createUser": user,
            "createFeature": {**feature, "unitLabelPlural": "", "metadata": {}},
            "updateUser": {"name": "Test User", "email": "new"},
            "updateFeature": {"name": "API Calls", "unitLabel": "call", "unitLabelPlural": "calls"},
            "createUsageEvent": True,
        }
    }
    asked = '{ user(id: "u1") {name} users(first: 1, after: "124") {id} feature(id: "calls") {type} features {id} }'
    data = (await doors.post("/graphql", {"query": asked})).json()["data"]
    assert data["user"] == {"name": "Test User"}
    assert data["users"] == [{"id": "u1"}]
    assert data["feature"] == {"type": "CONSUMABLE"}
    assert {"id": "calls"} in data["features"]


@pytest.mark.parametrize(
    ("mutation", "code", "field"),
    [
        ('createUser(input: {id: "124"}) {id}', "ALREADY_EXISTS", "id"),
        ('createUser(input: {id: ""}) {id}', "BAD_USER_INPUT", "id"),
        ('updateUser(input: {id: "nobody"}) {id}', "NOT_FOUND", "id"),
        ('createFeature(input: {id: "ai-messages"}) {id}', "ALREADY_EXISTS", "id"),
        ('updateFeature(input: {id: "nothing"}) {id}', "NOT_FOUND", "id"),
    ],
)
async def test_changes_that_cannot_be_made_have_codes(doors: Doors, mutation: str, code: str, field: str) -> None:
    """And the field at fault."""
    answer = await doors.post("/graphql", {"query": f"mutation {{ {mutation} }}"})
    [error] = answer.json()["errors"]
    assert (error["extensions"]["code"], error["extensions"]["field"]) == (code, field)


async def test_every_use_is_unlimited(doors: Doors) -> None:
    """Until entitlements exist; unknown names are errors."""
    query = """query($f: String!) { canUseFeature(userId: "124", featureId: $f, delta: 5) {
        access reason consumption { budget used overageEnabled } } }"""
    answer = await doors.post("/graphql", {"query": query, "variables": {"f": "ai-messages"}})
    consumption = {"budget": None, "used": None, "overageEnabled": False}
    assert answer.json()["data"]["canUseFeature"] == {"access": True, "reason": "UNLIMITED", "consumption": consumption}
    answer = await doors.post("/graphql", {"query": query, "variables": {"f": "nothing"}})
    assert answer.json()["errors"][0]["extensions"]["code"] == "NOT_FOUND"


async def test_the_schema_can_be_asked_for(doors: Doors) -> None:
    """Common tools introspect it; the inputs are as documented."""
    query = '{ __type(name: "CreateUsageEventInput") { inputFields { name type { kind ofType { name } } } } }'
    fields = (await doors.post("/graphql", {"query": query})).json()["data"]["__type"]["inputFields"]
    types = {f["name"]: (f["type"]["kind"], f["type"]["ofType"]["name"]) for f in fields}
    assert types == {
        "userId": ("NON_NULL", "String"),
        "featureId": ("NON_NULL", "String"),
        "delta": ("NON_NULL", "Int"),
    }


@pytest.mark.parametrize(
    "query",
    [
        "{ __schema { types { " + "fields { type { " * 10 + "name" + " } }" * 10 + " } } }",
        "{ " + " ".join(f"a{n}: users {{ id }}" for n in range(101)) + " }",
        "query Q { ...A } fragment A on Query { ...B } fragment B on Query { ...A }",
        "{ ...F }",
        "{ " + "a { " * 13 + "b" + " }" * 13 + " }",
        "{ ...A } fragment A on Query { a { b { ...B } } } fragment B on B { c { d { e { f { ...C } } } } } "
        "fragment C on C { g { h { i { j { k { l { m } } } } } } }",
        "{ features { " + "id " * 500 + "} }",
        "{ ...F0 } " + "".join(f"fragment F{n} on Query {{ features {{ id }} }} " for n in range(101)),
        "{ ...F0 } "
        + "".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }} " for n in range(60))
        + "fragment F60 on Query { a: features { id } }",
    ],
)
async def test_documents_that_ask_for_too_much_are_refused(doors: Doors, query: str) -> None:
    """By depth, fields, aliases, fragments, circles: 400 with a code, before anything is looked up."""
    answer = await doors.post("/graphql", {"query": query})
    assert (answer.status_code, answer.json()["data"]) == (400, None), answer.text
    assert {error["extensions"]["code"] for error in answer.json()["errors"]} == {"GRAPHQL_VALIDATION_FAILED"}


async def test_fragments_that_double_each_other_cost_nothing(doors: Doors) -> None:
    """Two to the hundredth of the same field are one field; the document is as quick as any."""
    doubled = "".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }} " for n in range(99))
    answer = await doors.post("/graphql", {"query": "{ ...F0 } " + doubled + "fragment F99 on Query { users { id } }"})
    assert answer.json()["data"]["users"], answer.text


async def test_tools_can_introspect_everything(doors: Doors) -> None:
    """The longest question that they ask."""
    options = {"specified_by_url": True, "directive_is_repeatable": True, "input_value_deprecation": True}
    query = get_introspection_query(schema_description=True, **options)
    answer = await doors.post("/graphql", {"query": query})
    assert "errors" not in answer.json(), answer.text
