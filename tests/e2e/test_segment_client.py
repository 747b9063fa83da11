"""Segment's own library, its host and write key changed and nothing else: each message counts once."""

import json

from client_environments import PROGRAMS, run_python
from facts import facts
from running_stack import RunningStack, Tenant
from waiting import usage, values

from pipeline.adapters.clickhouse import Store


def test_segments_library(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Plain and compressed; what identifies or views is not metered; a message without a user is handed back by name,
    and the good one in its batch counts."""
    failures = json.loads(run_python(PROGRAMS / "segment_calls.py", f"{stack.api}/segment", tenant.key))
    assert len(failures) == 1
    assert "userId" in failures[0]
    found = facts(stack, tenant, stack_store)
    assert {i for i in found if i.startswith(("plain-", "gzip-"))} == {
        f"{k}-{n}" for k in ("plain", "gzip") for n in range(5)
    }
    assert len(found) == 10 + 2 + 1
    customer, name, *_, data, at = found["gzip-4"]
    assert (customer, name, json.loads(data), at[:19]) == (
        "u-1",
        "made",
        {"tokens": 4, "kind": "gzip"},
        "2026-11-01 12:04:00",
    )
    answer = usage(stack, tenant, event_name="made", group_by="customer", start="2026-01-01T00:00:00Z")
    assert values(answer, "customer") == {"u-1": "10", "u-2": "2", "u-3": "1"}


def test_an_account_says_where_the_fields_are(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Another customer, quantity and feature, by dotted paths of a catalog file."""
    import httpx

    file = stack.home / f"{tenant.account}.yaml"
    file.write_text(
        f"""account: {tenant.account}
accounts:
  - id: {tenant.account}
    segment: {{clientId: context.groupId, value: properties.quantity, featureId: event, eventName: ""}}
features: [{{id: calls}}]
"""
    )
    assert "segment" in stack.tally("apply", str(file))
    message = {"userId": "u", "event": "calls", "messageId": "m", "properties": {"quantity": 2.5}}
    answer = httpx.post(
        f"{stack.api}/segment/v1/track", auth=(tenant.key, ""), json={**message, "context": {"groupId": "company"}}
    )
    assert (answer.status_code, answer.json()) == (200, {"success": True}), answer.text
    refused = httpx.post(f"{stack.api}/segment/v1/track", auth=(tenant.key, ""), json=message)
    assert [e["field"] for e in refused.json()["errors"]] == ["context.groupId"]
    [(customer, name, feature, _, value, _, _)] = facts(stack, tenant, stack_store).values()
    assert (customer, name, feature, value) == ("company", "", "calls", "2.5")
