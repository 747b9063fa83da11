"""CloudEvents as their own clients send them, base URL and key changed and nothing else: each event counts once."""

import json
from datetime import UTC, datetime

import httpx
import pytest
from client_environments import PROGRAMS, run_python
from cloudevents.http import CloudEvent, to_binary, to_structured
from facts import facts
from openmeter import Client
from openmeter.models import Event
from running_stack import RunningStack, Tenant

from pipeline.adapters.clickhouse import Store


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openmeters_client(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """One event, a batch, and plain JSON, every event of them sent at least twice; what is bad is told."""
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def event(n: int, subject: str = "customer-1") -> Event:
        return Event(
            id=f"e{n}", source="my-app", specversion="1.0", type="prompt", subject=subject, time=at, data={"tokens": n}
        )

    with Client(endpoint=stack.api, token=tenant.key) as client:
        for _ in range(2):
            client.events.ingest_event(event(0))
        client.events.ingest_events([event(n) for n in range(4)])
        client.events.ingest_events_json([event(n) for n in range(2, 6)])
        client.events.ingest_events_json(event(0))
        with pytest.raises(Exception, match=r"1 of 2 events were refused"):
            client.events.ingest_events([event(6), event(7, subject="")])
    found = facts(stack, tenant, stack_store)
    assert set(found) == {f"6:my-appe{n}" for n in range(7)}
    customer, name, feature, _, value, data, _ = found["6:my-appe3"]
    assert (customer, name, feature, value, json.loads(data)) == ("customer-1", "prompt", "", "1", {"tokens": 3})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_cloudevents_sdk(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Structured and binary state the same event, so it counts once; without a time it is the time of arrival."""

    def event(number: str, data: dict[str, object], **changed: str | None) -> CloudEvent:
        attributes = {
            "id": number,
            "source": "/app",
            "type": "prompt",
            "subject": "ä/1",
            "time": "2026-11-01T12:00:00Z",
        }
        return CloudEvent({**attributes, "datacontenttype": "application/json", **changed}, data)

    both, bare = event("1", {"tokens": 1.5}), event("2", {"tokens": 2})
    sudden = event("3", {"tokens": 3}, time=None)
    for form, stated in (
        (to_structured, both),
        (to_binary, both),
        (to_binary, bare),
        (to_structured, sudden),
        (to_structured, sudden),
    ):
        headers, body = form(stated)
        headers = {name: value.encode() for name, value in headers.items() if value is not None}
        headers["Authorization"] = f"Bearer {tenant.key}".encode()
        answer = httpx.post(f"{stack.api}/api/v1/events", headers=headers, content=body)
        assert answer.status_code == 204, answer.text
    found = facts(stack, tenant, stack_store)
    assert {i: (row[0], json.loads(row[5])) for i, row in found.items()} == {
        "4:/app1": ("ä/1", {"tokens": 1.5}),
        "4:/app2": ("ä/1", {"tokens": 2}),
        "4:/app3": ("ä/1", {"tokens": 3}),
    }


def test_the_cloudevents_sdk_of_today(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Its second major version, in an environment of its own."""
    told = run_python(PROGRAMS / "cloud_events_calls.py", f"{stack.api}/api/v1/events", tenant.key)
    assert json.loads(told) == [204] * 6
    found = facts(stack, tenant, stack_store)
    assert set(found) == {f"11:/app/ümlautnow-{n}" for n in range(3)}
    assert {row[0] for row in found.values()} == {"kunde 1"}
