"""What a test's account has in the store, once everything that was acknowledged is counted."""

from typing import Any

from running_stack import RunningStack, Tenant
from waiting import counted

from pipeline.adapters.clickhouse import Store

_FIELDS = "transaction_id, client_id, event_name, feature_id, entity_id, toString(value), data, toString(timestamp)"


def facts(stack: RunningStack, tenant: Tenant, store: Store) -> dict[str, tuple[Any, ...]]:
    """Every counted event by its id: customer, event name, feature, entity, value, data, timestamp. Fails where one id
    stands twice, or was sent with other content."""
    counted(stack, tenant)
    refused = store.query("SELECT verdict, message FROM rejects WHERE account = {a:String}", {"a": tenant.account}).rows
    assert not refused
    rows = store.query(f"SELECT {_FIELDS} FROM events WHERE account = {{a:String}}", {"a": tenant.account}).rows
    found = {str(row[0]): tuple(row[1:]) for row in rows}
    assert len(found) == len(rows), "an id is counted twice"
    return found
