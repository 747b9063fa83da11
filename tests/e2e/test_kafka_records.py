"""Plain Kafka records: any client, any key, any partition; bad lines are kept with their bytes and reason."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from running_stack import RunningStack, Tenant
from waiting import counted, until, usage

from pipeline.adapters.clickhouse import Store
from pipeline.event import id_hash, partition_of

_TOPIC = "tally.events"
_TIME = "2026-11-03T10:00:00Z"
_WINDOW = {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"}


def _send(stack: RunningStack, account: str | None, records: Sequence[tuple[bytes, int | None]]) -> None:
    async def run() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all")
        await producer.start()
        headers = [] if account is None else [("account", account.encode())]
        for value, partition in records:
            await producer.send_and_wait(_TOPIC, value, partition=partition, headers=headers)
        await producer.stop()

    asyncio.run(run())


def _event(**fields: Any) -> bytes:
    return json.dumps({"clientId": "c", "timestamp": _TIME, **fields}).encode()


def _rejects(store: Store, account: str) -> list[tuple[Any, ...]]:
    rows = store.query(
        "SELECT verdict, reason, field, message, bytes FROM rejects FINAL WHERE account = {a:String} "
        "ORDER BY `partition`, `offset`, line",
        {"a": account},
    ).rows
    return list(rows)


def test_misplaced_events_count_once(stack: RunningStack, tenant: Tenant) -> None:
    """The same id in every partition is one event: five are sent on to where the id belongs."""
    records = [(_event(transactionId=f"t{i}", eventName="e"), p) for i in range(20) for p in range(6)]
    _send(stack, tenant.account, records)
    counted(stack, tenant)
    counted(stack, tenant)  # what was sent on was acknowledged after the first look
    found = usage(stack, tenant, event_name="e", **_WINDOW)["data"]
    assert [(row["events"], row["value"]) for row in found] == [(20, "20")]


def test_lines_without_id_are_events_of_their_own(stack: RunningStack, tenant: Tenant) -> None:
    """Ten equal lines in one record are ten events, wherever the record lies."""
    _send(stack, tenant.account, [(b"\n".join([_event(eventName="e")] * 10), 3), (_event(eventName="e") + b"\n", 1)])
    counted(stack, tenant)
    assert usage(stack, tenant, event_name="e", **_WINDOW)["data"][0]["value"] == "11"


def test_a_conflict_is_listed_as_such(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """The first stands; the same id with other content is kept with the rejects; other spelling is a duplicate."""
    where = partition_of(id_hash(tenant.account, "x"), 6)
    first = _event(transactionId="x", eventName="e", value=1, data={"a": 1, "b": 2})
    again = _event(data={"b": 2.0, "a": 1}, value=1.0, eventName="e", transactionId="x")
    other = _event(transactionId="x", eventName="e", value=2)
    _send(stack, tenant.account, [(first, where), (again, where), (other, where)])
    counted(stack, tenant)
    assert usage(stack, tenant, event_name="e", **_WINDOW)["data"][0]["value"] == "1"
    rejects = _rejects(stack_store, tenant.account)
    assert [(verdict, reason, field) for verdict, reason, field, _, _ in rejects] == [
        ("conflict", "conflict", "transactionId")
    ]


def test_bad_lines_are_kept_and_nothing_else_is_lost(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Each bad line names its field; good lines before, between and after count."""
    good = [_event(eventName="good", transactionId=f"g{i}") for i in range(12)]
    bad: list[tuple[bytes, str, str]] = [
        (b'{"timestamp":"2026-11-03T10:00:00Z"}', "required", "clientId"),
        (b'{"clientId":"c"}', "required", "timestamp"),
        (_event(eventName="a", featureId="b"), "exclusive", "eventName"),
        (b'{"clientId":7,"timestamp":"2026-11-03T10:00:00Z"}', "type", "clientId"),
        (b'{"clientId":"c","timestamp":"2026-11-03T10:00:00"}', "format", "timestamp"),
        (b'{"clientId":"c","timestamp":"2026-11-03T10:00:00Z","value":NaN}', "format", "value"),
        (_event(data={"x": "y" * 100_000}), "too_large", "data"),
        (b'{"clientId":"\xff\xfe","timestamp":"2026-11-03T10:00:00Z"}', "encoding", ""),
        (b'{"clientId":"c","timestamp":"2026-11-03T10:00:00Z"', "syntax", ""),
        (_event(transaction_id="typo"), "unknown_field", "transaction_id"),
        (_event(kind="set"), "not_built", "kind"),
        (_event(timestamp="2036-01-01T00:00:00Z"), "range", "timestamp"),
    ]
    lines = [line for pair in zip(good, [line for line, _, _ in bad], strict=True) for line in pair]
    _send(stack, tenant.account, [(b"\n".join(lines), 0)])
    counted(stack, tenant)
    counted(stack, tenant)
    assert usage(stack, tenant, event_name="good", **_WINDOW)["data"][0]["value"] == "12"
    found = _rejects(stack_store, tenant.account)
    assert [(reason, field) for _, reason, field, _, _ in found] == [(reason, field) for _, reason, field in bad]
    kept = stack_store.query(
        "SELECT hex(bytes) FROM rejects FINAL WHERE account = {a:String} AND reason = 'encoding'",
        {"a": tenant.account},
    ).rows[0][0]
    assert bytes.fromhex(kept) == bad[7][0]


def test_an_empty_record_and_an_unknown_account_are_rejects(stack: RunningStack, stack_store: Store) -> None:
    """Nothing vanishes: the audit stays whole."""
    _send(stack, "nobody-has-this", [(_event(eventName="e"), 0), (b"", 0), (b"\n\n", 0)])
    _send(stack, "nobody-has-this", [(b"not json at all", 2)])
    found = until(
        lambda: rows if len(rows := _rejects(stack_store, "nobody-has-this")) == 4 else None, why="four rejects"
    )
    assert [reason for _, reason, _, _, _ in found] == ["unknown_account", "syntax", "syntax", "syntax"]
    assert stack.tally_json("audit")["drift"] == 0
