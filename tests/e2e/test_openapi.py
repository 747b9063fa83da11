"""The API's own description against the API: its examples run, and no answer is against its schemas."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import from_schema, nodes
from running_stack import RunningStack, Tenant
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from producers.kana import SCHEMA

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_VALUES = (
    st.integers().map(nodes.Int)
    | st.floats(allow_nan=False, allow_infinity=False).map(nodes.Float)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(nodes.String)
    | st.just(nodes.Object([]))
)
_DOCUMENTS = from_schema(
    SCHEMA.as_str(), custom_scalars=dict.fromkeys(("JSON", "CreatePackageInput", "UpdatePackageInput"), _VALUES)
)
_FEW = settings(
    max_examples=4,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def prepared(stack: RunningStack, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client of an account that has what the examples speak of."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as client:
        for feature, names in (
            ("ai-messages", []),
            ("seats", []),
            ("api-calls", []),
            ("blog-posts", ["blog_post_generation"]),
        ):
            answer = client.post("/v1/catalog/features", json={"id": feature, "event_names": names})
            assert answer.status_code == 201, answer.text
        assert client.post("/v1/catalog/customers", json={"id": "124"}).status_code == 201
        yield client


def test_every_example_runs(prepared: httpx.Client) -> None:
    """As it stands in the document; what is not built yet says so."""
    document = prepared.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    ran = 0
    for path, item in document["paths"].items():
        for media_type, content in item.get("post", {}).get("requestBody", {}).get("content", {}).items():
            for example in content.get("examples", {}).values():
                answer = prepared.post(path, json=example["value"], headers={"Content-Type": media_type})
                built = any(status.startswith("2") for status in item["post"]["responses"])
                assert answer.is_success == built, f"{path}: {answer.status_code} {answer.text}"
                assert built or answer.json()["code"] == "not_built"
                assert "errors" not in answer.text or not built
                ran += 1
    assert ran >= 20


def test_no_answer_is_against_the_schema(prepared: httpx.Client, stack: RunningStack, tenant: Tenant) -> None:
    """Requests that the document allows and requests that it does not, at every address: no 5xx, and the answers'
    status, media type and shape are as told."""
    document = _without_own_keys(prepared.get("/openapi.json").json())
    schema = schemathesis.openapi.from_dict(document)
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            requested = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            if operation.body or operation.query or operation.path_parameters:
                requested |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

            @_FEW
            @given(requested)
            def holds(case: schemathesis.Case) -> None:
                case.call_and_validate(stack.api, session, headers=tenant.headers, checks=_CHECKS)

            holds()


def test_no_graphql_document_fails(prepared: httpx.Client) -> None:
    """Any document that the schema allows is answered: data, or errors that each have a code; never a 5xx."""

    @settings(_FEW, max_examples=40)
    @given(_DOCUMENTS)
    def holds(document: str) -> None:
        codes = {error["extensions"]["code"] for error in _answered(prepared, document).get("errors", [])}
        assert "GRAPHQL_PARSE_FAILED" not in codes

    holds()


def test_no_broken_graphql_document_fails(prepared: httpx.Client) -> None:
    """Nor does any that was cut, doubled or written over somewhere: told by a code what is wrong with it."""

    @settings(_FEW, max_examples=60)
    @given(_DOCUMENTS, st.data())
    def holds(document: str, data: st.DataObject) -> None:
        start, end = sorted(data.draw(st.integers(0, len(document))) for _ in range(2))
        put = data.draw(st.sampled_from(["", document[start:end] * 2, "{", '"', "$x", "...F", "@skip", "é\u0000"]))
        _answered(prepared, document[:start] + put + document[end:])

    holds()


def _answered(client: httpx.Client, document: str) -> dict[str, Any]:
    """The answer, which is GraphQL's: data, or errors with a message and a code, none of them a defect."""
    answer = client.post("/graphql", json={"query": document})
    assert answer.status_code < 500, f"{document}: {answer.text}"
    found: dict[str, Any] = answer.json()
    errors = found.get("errors", [])
    assert errors or found.get("data") is not None, document
    assert all(error["message"] and error["extensions"]["code"] != "INTERNAL_SERVER_ERROR" for error in errors), errors
    return found


def _without_own_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what makes and revokes keys: a chance revocation of the test's own would end it."""
    paths = {path: item for path, item in document["paths"].items() if not path.startswith("/v1/catalog/keys/")}
    return {**document, "paths": paths}
