"""Autumn's own clients, base URL and key changed and nothing else: each use counts once.

The clients of today answer by themselves when a server fails; that is switched off, and the store is what is looked at.
"""

import json
import socket
from decimal import Decimal

import autumn
import httpx
import pytest
from autumn_sdk import Autumn
from autumn_sdk.errors import AutumnDefaultError
from autumn_sdk.models import RequestBody
from client_environments import PROGRAMS, run_javascript
from facts import facts
from running_stack import RunningStack, Tenant
from waiting import usage, values

from pipeline.adapters.clickhouse import Store

_START = "2026-01-01T00:00:00Z"


def _features(stack: RunningStack, tenant: Tenant) -> None:
    for feature, names in (("calls", ["call_made"]), ("seats", [])):
        answer = httpx.post(
            f"{stack.api}/v1/catalog/features", headers=tenant.headers, json={"id": feature, "event_names": names}
        )
        assert answer.status_code == 201, answer.text


def _total(stack: RunningStack, tenant: Tenant) -> dict[str, str]:
    return values(usage(stack, tenant, feature="calls", group_by="customer", start=_START), "customer")


def test_autumn_py(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """The first client: track, check, customers; setting usage is refused, unknown names are errors."""
    _features(stack, tenant)
    client = autumn.Client(tenant.key, base_url=stack.api, max_retries=0)
    assert client.check("ann", feature_id="calls").allowed
    data = autumn.models.meta.CustomerData(name="Ann", email="ann@example.com")
    tracked = client.track("ann", "calls", value=2, properties={"model": "m"}, customer_data=data)
    assert (tracked.code, tracked.customer_id, tracked.feature_id) == ("event_received", "ann", "calls")
    for _ in range(3):
        assert client.track("ann", event_name="call_made", value=-1, idempotency_key="py-once").id == "py-once"
    client.track("ann", "calls", value=3, entity_id="seat-1")
    client.check("ann", feature_id="calls", required_balance=5, send_event=True)
    client.customers.create(id="ben", name="Ben")
    assert [client.customers.get(i).name for i in ("ann", "ben")] == ["Ann", "Ben"]
    for refused, status in (
        (lambda: client.track("ann", "nothing"), 404),
        (lambda: client.track("ann", event_name="nothing"), 404),
        (lambda: client.features.set_usage("ann", "seats", 3), 422),
        (lambda: client.customers.get("nobody"), 404),
    ):
        with pytest.raises(autumn.error.AutumnHTTPError) as told:
            refused()
        assert (told.value.status_code, bool(told.value.message)) == (status, True)
    client.http.close()
    found = facts(stack, tenant, stack_store)
    assert sorted(row[4] for row in found.values()) == ["-1", "2", "3", "5"]
    assert [row[3] for row in found.values() if row[4] == "3"] == ["seat-1"]
    assert found["py-once"][:3] == ("ann", "call_made", "")
    assert _total(stack, tenant) == {"ann": "9"}


def test_autumn_sdk(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """The client of today: balances.track, batch_track and check; a float is taken by its shortest decimal form."""
    _features(stack, tenant)
    with Autumn(secret_key=tenant.key, server_url=stack.api, fail_open=False) as client:
        customer = client.customers.get_or_create(customer_id="ann", name="Ann", metadata={"plan": "x"})
        assert (customer.id, customer.name, customer.metadata) == ("ann", "Ann", {"plan": "x"})
        assert client.check(customer_id="ann", feature_id="calls", required_balance=3).allowed
        client.check(customer_id="ann", feature_id="calls", required_balance=0.25, send_event=True)
        tracked = client.track(customer_id="ann", feature_id="calls", value=0.1, timestamp=1793534400123, async_=False)
        assert (tracked.customer_id, tracked.value, tracked.balance) == ("ann", 0.1, None)
        client.track(customer_id="ann", event_name="call_made", value=0.2, entity_id="seat-1")
        for _ in range(3):
            again = {"Idempotency-Key": '"sdk-once"'}
            client.track(customer_id="ann", feature_id="calls", value=7, http_headers=again)
            batch = [
                RequestBody(customer_id="ann", feature_id="calls", value=1, idempotency_key="sdk-b1"),
                RequestBody(customer_id="ben", event_name="call_made", idempotency_key="sdk-b2"),
            ]
            assert client.batch_track(request=batch).success
        for bad in (
            RequestBody(customer_id="ann", feature_id="nothing"),
            RequestBody(customer_id="", feature_id="calls"),
        ):
            with pytest.raises(AutumnDefaultError, match="nothing was recorded"):
                client.batch_track(request=[batch[0], bad, RequestBody(customer_id="ann", feature_id="calls")])
        with pytest.raises(AutumnDefaultError, match="not built"):
            client.balances.update(customer_id="ann", feature_id="seats", usage=3)
    found = facts(stack, tenant, stack_store)
    assert sorted(Decimal(row[4]) for row in found.values()) == [
        Decimal(v) for v in ("0.1", "0.2", "0.25", "1", "1", "7")
    ]
    assert [row[6][:23] for row in found.values() if row[4] == "0.1"] == ["2026-11-01 12:00:00.123"]
    assert _total(stack, tenant) == {"ann": "8.55", "ben": "1"}


def test_autumn_js(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """The JavaScript library, on Node."""
    _features(stack, tenant)
    told = json.loads(run_javascript(PROGRAMS / "autumn_calls.mjs", stack.api, tenant.key))
    assert told == {
        "customer": ["js", "A script", "A script"],
        "features": ["calls", "seats"],
        "check": [True, "js"],
        "tracked": ["js", 1.5],
        "unknown": "404",
        "set": "422",
    }
    found = facts(stack, tenant, stack_store)
    assert {"js-once", "8:js-batch0", "8:js-batch1"} < set(found)
    assert sorted(row[4] for row in found.values()) == ["-0.5", "1.5", "16", "2", "4", "8"]
    assert _total(stack, tenant) == {"js": "15", "js-2": "16"}


def test_the_clients_tell_that_a_server_is_away() -> None:
    """What the tests above rely on: with the switch set, no client answers in a server's place."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken and not listened on: connecting is refused
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with Autumn(secret_key="k", server_url=address, fail_open=False) as client, pytest.raises(httpx.ConnectError):
            client.track(customer_id="ann", feature_id="calls")
        told = json.loads(run_javascript(PROGRAMS / "autumn_calls.mjs", address, "k", "away"))
        assert told["failed"] == "ConnectionError"
