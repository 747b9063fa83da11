"""GET /v1/usage over HTTP on a real store: answers, and errors that name what is wrong."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.exceptions import ImproperlyConfiguredException
from litestar.testing import TestClient
from stored_events import Metered, StoredEvent, insert_block

from consumers.api import usage_router
from consumers.usage_reader import UsageReader
from pipeline.adapters.clickhouse import Store
from pipeline.settings import Settings

NOW = datetime(2024, 3, 15, 12, tzinfo=UTC)


def _account() -> str:
    return "acme"


def _client(store: Store) -> TestClient[Litestar]:
    reader = UsageReader(store, topic="tally.events", partitions=1)
    app = Litestar(
        [usage_router(reader.usage, lambda: NOW)],
        dependencies={"account": Provide(_account, sync_to_thread=False)},
        openapi_config=None,
    )
    return TestClient(app)


@pytest.fixture
def client(store: Store) -> Iterator[TestClient[Litestar]]:
    """An application with the usage routes, over a store with three events of two accounts."""
    store.command("INSERT INTO features (account, id, rev, aggregation) VALUES ('acme', 'a/b', 3, 'max')")
    meters = (Metered("tokens", 1, Decimal("0.1")), Metered("a/b", 3, Decimal(7)))
    events = [
        StoredEvent("acme", "anna", datetime(2024, 3, 10, 6, 59, tzinfo=UTC), 0, meters=meters, texts={"region": "eu"}),
        StoredEvent("acme", "ben", datetime(2024, 3, 11, 3, 59, tzinfo=UTC), 1, meters=meters, texts={"region": "us"}),
        StoredEvent("other", "anna", datetime(2024, 3, 10, tzinfo=UTC), 2, meters=meters),
    ]
    insert_block(store, events, start=0, end=3)
    with _client(store) as client:
        yield client


def _data(client: TestClient[Litestar], path: str) -> list[dict[str, Any]]:
    response = client.get(path)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


def test_usage_of_every_feature_by_its_own_aggregation(client: TestClient[Litestar]) -> None:
    """Decimals are strings; the period is the month so far unless another is asked for."""
    response = client.get("/v1/usage")
    assert response.json() == {
        "account": "acme",
        "start": "2024-03-01T00:00:00Z",
        "end": "2024-03-15T12:00:00Z",
        "zone": "UTC",
        "granularity": "none",
        "group_by": ["feature"],
        "complete_until": None,
        "lag_s": None,
        "read_from": ["usage_15m"],
        "data": [
            {
                "start": "2024-03-01T00:00:00Z",
                "end": "2024-03-15T12:00:00Z",
                "group": {"feature": feature},
                "aggregation": aggregation,
                "events": 2,
                "value": value,
            }
            for feature, aggregation, value in (("a/b", "max", "7"), ("tokens", "sum", "0.2"))
        ],
    }


def test_days_of_new_york_have_their_own_edges(client: TestClient[Litestar]) -> None:
    """Both events are of 10 March there, a day of 23 hours."""
    query = "zone=America/New_York&granularity=day&start=2024-03-10&end=2024-03-11T00:00:00-04:00"
    (row,) = _data(client, f"/v1/usage/features/tokens?{query}")
    assert (row["start"], row["end"]) == ("2024-03-10T05:00:00Z", "2024-03-11T04:00:00Z")
    assert (row["events"], row["value"]) == (2, "0.2")


def test_groups_filters_and_paths(client: TestClient[Litestar]) -> None:
    """By customer, by dimension, by event name; ids in a path may be escaped."""
    by_customer = _data(client, "/v1/usage?feature=tokens&group_by=customer")
    assert [row["group"] for row in by_customer] == [{"customer": "anna"}, {"customer": "ben"}]
    by_region = _data(client, "/v1/usage/events/call?dimension=region")
    assert [(row["group"], row["value"]) for row in by_region] == [
        ({"dimension:region": "eu"}, "1"),
        ({"dimension:region": "us"}, "1"),
    ]
    (filtered,) = _data(client, "/v1/usage?feature=a/b&filter[region]=us")
    assert (filtered["aggregation"], filtered["events"], filtered["value"]) == ("max", 1, "7")
    assert len(_data(client, "/v1/usage/customers/anna")) == 2
    assert _data(client, "/v1/usage?customer=nobody") == []


def test_the_account_cannot_be_asked_for(client: TestClient[Litestar]) -> None:
    """It comes from the key; as a parameter it is unknown."""
    response = client.get("/v1/usage?account=other")
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "account"


def test_an_application_without_an_account_does_not_start() -> None:
    """Forgetting to wire it must not turn it into a parameter of the request."""
    reader = UsageReader(Store(Settings()), topic="tally.events", partitions=1)
    with pytest.raises(ImproperlyConfiguredException, match="account"):
        Litestar([usage_router(reader.usage, lambda: NOW)], openapi_config=None)


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        ("custmer=anna", "custmer", "unknown_field"),
        ("start=yesterday", "start", "format"),
        ("start=2024-13-01", "start", "format"),
        ("end=1710000000", "end", "format"),
        ("start=2024-03-02&end=2024-03-01", "end", "range"),
        ("granularity=week", "granularity", "format"),
        ("zone=Mars/Olympus", "zone", "format"),
        ("customer=a&customer=b", "customer", "duplicate_key"),
        ("feature=a&event_name=b", "event_name", "exclusive"),
        ("group_by=colour", "group_by", "format"),
        ("aggregation=median", "aggregation", "format"),
        ("source=rollups&feature=tokens&start=2024-03-01T00:01&end=2024-03-01T00:02", "source", "range"),
        ("customer=" + "x" * 300, "customer", "too_large"),
    ],
)
def test_wrong_parameters_are_named(client: TestClient[Litestar], query: str, field: str, code: str) -> None:
    """422 problem+json with field, code and message."""
    response = client.get(f"/v1/usage?{query}")
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("application/problem+json")
    (error,) = response.json()["errors"]
    assert (error["field"], error["code"]) == (field, code)
    assert error["message"]


def test_what_is_in_the_path_is_not_asked_for_again(client: TestClient[Litestar]) -> None:
    """Two answers to one question would be a guess."""
    response = client.get("/v1/usage/features/tokens?feature=a")
    assert response.status_code == 422
    assert response.json()["errors"][0] == {
        "field": "feature",
        "code": "exclusive",
        "message": "is already in the path",
    }


def test_a_store_that_is_away_is_503() -> None:
    """With the time after which to ask again."""
    with _client(Store(Settings(clickhouse="http://127.0.0.1:1"))) as client:
        response = client.get("/v1/usage")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "does not answer" in response.json()["detail"]
