"""Receipts on the real stack: what became of an id, whichever way it came and wherever it is."""

import asyncio
import json
import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from records import TOPIC, event, send
from running_stack import RunningStack, Tenant, catalog_of
from waiting import counted, until

from consumers.receipts import ReceiptReader, ScanBounds, UnknownTransaction
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka import LogRanges
from pipeline.catalog_input import dimension_from, feature_from
from pipeline.event import id_hash, partition_of


def _get(stack: RunningStack, tenant: Tenant, transaction_id: str) -> httpx.Response:
    # quote leaves dots alone, and clients take a path of dots apart
    path = "%2E" * len(transaction_id) if set(transaction_id) == {"."} else quote(transaction_id, safe="")
    return httpx.get(f"{stack.api}/v1/events/{path}", headers=tenant.headers, timeout=60)


def _receipt(stack: RunningStack, tenant: Tenant, transaction_id: str, status: int = 200) -> dict[str, Any]:
    answer = _get(stack, tenant, transaction_id)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _home(tenant: Tenant, transaction_id: str) -> int:
    return partition_of(id_hash(tenant.account, transaction_id), 6)


async def _define(stack: RunningStack, tenant: Tenant) -> None:
    async with catalog_of(stack.settings) as catalog:
        of = tenant.account
        await catalog.create_feature(feature_from(of, {"id": "calls", "event_names": ["call"]}))
        await catalog.create_feature(
            feature_from(
                of, {"id": "regions", "event_names": ["call"], "aggregation": "unique", "unique_key": "region"}
            )
        )
        await catalog.create_dimension(dimension_from(of, {"key": "region", "type": "string"}))
        await catalog.create_dimension(dimension_from(of, {"key": "ms", "type": "number"}))


async def test_a_counted_event_has_a_receipt_of_everything_that_it_moved(
    stack: RunningStack, tenant: Tenant, stack_store: Store
) -> None:
    """Position, features with quantity and revision, block; its buckets are just the cells that the rollups have."""
    await _define(stack, tenant)
    line = event(transactionId="t", eventName="call", value=2.5, entityId="seat", data={"region": "eu", "ms": 7})
    (offset,) = await _sent(stack, tenant, [(line, _home(tenant, "t"))])
    counted(stack, tenant)
    found = until(
        lambda: r if (r := _receipt(stack, tenant, "t"))["block"]["committed"] else None, why="the block is committed"
    )
    assert (found["verdict"], found["times_seen"], found["conflicts"]) == ("accepted", 1, 0)
    assert {**found["position"], "epoch": 0} == {
        "topic": TOPIC,
        "epoch": 0,
        "partition": _home(tenant, "t"),
        "offset": offset,
        "line": 0,
    }
    assert found["block"]["start"] <= offset < found["block"]["end"]
    moved = {f["feature"]: (f["quantity"], f["distinct"]) for f in found["features"]}
    assert moved == {"calls": ("2.5", False), "regions": (moved["regions"][0], True)}
    assert all(0 < f["revision"] <= found["catalog_version"] for f in found["features"])
    assert found["event"] == {
        "client_id": "c",
        "entity_id": "seat",
        "timestamp": "2026-11-03T10:20:00Z",
        "event_name": "call",
        "feature_id": None,
        "kind": "delta",
        "value": "2.5",
        "data": {"region": "eu", "ms": 7},
    }
    assert _told(found) == _cells(stack_store, tenant)


async def _sent(stack: RunningStack, tenant: Tenant, records: list[tuple[bytes, int]]) -> list[int]:
    return await asyncio.to_thread(send, stack, tenant.account, records)


_TABLES = {
    "usage_client_day": ("toDateTime(day, 'UTC')", "feature", "rev", "''", "''", "client_id", "entity_id"),
    "usage_client_edge_15m": ("bucket", "feature", "rev", "''", "''", "client_id", "entity_id"),
    "usage_15m": ("bucket", "feature", "rev", "''", "''", "''", "''"),
    "usage_uniques_client_day": ("toDateTime(day, 'UTC')", "feature", "rev", "''", "''", "client_id", "entity_id"),
    "usage_dimension_15m": ("bucket", "feature", "rev", "dimension", "value", "''", "''"),
    "events_client_day": ("toDateTime(day, 'UTC')", "event_name", "0", "''", "''", "client_id", "entity_id"),
    "events_15m": ("bucket", "event_name", "0", "''", "''", "''", "''"),
    "events_dimension_15m": ("bucket", "event_name", "0", "dimension", "text", "''", "''"),
}


def _cells(store: Store, tenant: Tenant) -> set[tuple[Any, ...]]:
    """Every cell of every rollup of the account."""
    found = set()
    for table, columns in _TABLES.items():
        keys = f"toString({columns[0]}), {', '.join(columns[1:])}"
        sql = f"SELECT DISTINCT {keys} FROM {table} WHERE account = {{a:String}}"
        found |= {(table, *row) for row in store.query(sql, {"a": tenant.account}).rows}
    return found


def _told(receipt: dict[str, Any]) -> set[tuple[Any, ...]]:
    return {
        (
            b["table"],
            b["start"].replace("T", " ").removesuffix("Z"),
            b["feature"] if b.get("feature") else b["event_name"],
            b.get("revision", 0),
            b.get("dimension", ""),
            b.get("value", ""),
            b.get("client_id", ""),
            b.get("entity_id", ""),
        )
        for b in receipt["buckets"]
    }


def test_times_seen_counts_every_door(stack: RunningStack, tenant: Tenant) -> None:
    """Kafka, misplaced, over HTTP and from a file: duplicates and conflicts, with the places of the latter."""
    line = event(transactionId="x", eventName="call", value=1)
    where = _home(tenant, "x")
    send(stack, tenant.account, [(line + b"\n" + line, where)])
    counted(stack, tenant)
    send(stack, tenant.account, [(line, (where + 1) % 6)])  # misplaced: sent on, then a duplicate
    body = [{"clientId": "c", "timestamp": json.loads(line)["timestamp"], "transactionId": "x", "data": {"other": 1}}]
    answer = httpx.post(f"{stack.api}/api/v1/events", json=body, headers=tenant.headers)
    assert answer.status_code == 200, answer.text
    stack.tally("send", "-", "--account", tenant.account, stdin=line.decode())
    counted(stack, tenant)
    found = until(lambda: r if (r := _receipt(stack, tenant, "x"))["times_seen"] == 5 else None, why="seen five times")
    assert (found["verdict"], found["duplicates"], found["conflicts"]) == ("accepted", 3, 1)
    (conflict,) = found["conflicts_at"]
    assert conflict["position"]["partition"] == where
    assert conflict["append_time"] > found["append_time"]
    assert stack.tally_json("audit")["drift"] == 0


def test_a_block_of_nothing_but_duplicates_is_seen_too(stack: RunningStack, tenant: Tenant) -> None:
    """It has no rows to insert, and its repeats are kept all the same."""
    line = event(transactionId="only", eventName="call")
    send(stack, tenant.account, [(line, _home(tenant, "only"))])
    counted(stack, tenant)
    for _ in range(3):
        send(stack, tenant.account, [(b"\n".join([line] * 10), _home(tenant, "only"))])
        counted(stack, tenant)
    assert _receipt(stack, tenant, "only")["times_seen"] == 31


def test_a_refused_line_with_an_id_has_a_receipt_with_its_reasons(stack: RunningStack, tenant: Tenant) -> None:
    """Until the same id is sent rightly: then that one counts, and the refusal is still told."""
    bad = event(transactionId="r", clientId=None, value="much", eventName="call")
    send(stack, tenant.account, [(bad, 2)])
    counted(stack, tenant)
    found = _receipt(stack, tenant, "r")
    assert (found["verdict"], found["rejected"], found["event"]) == ("rejected", 1, None)
    faults = [(f["field"], f["code"]) for f in found["refusals"][0]["errors"]]
    assert faults == [("clientId", "required"), ("value", "format")]
    assert found["position"]["partition"] == 2
    send(stack, tenant.account, [(event(transactionId="r", eventName="call"), _home(tenant, "r"))])
    counted(stack, tenant)
    found = _receipt(stack, tenant, "r")
    assert (found["verdict"], found["rejected"], len(found["refusals"])) == ("accepted", 1, 1)


def test_an_unknown_id_is_told_as_such(stack: RunningStack, tenant: Tenant) -> None:
    """404 with a code; the command exits 1 and says the same."""
    send(stack, tenant.account, [(event(transactionId="known", eventName="call"), 0)])
    answer = _get(stack, tenant, "never-sent")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["errors"][0]["code"]) == ("unknown_transaction",) * 2
    told = stack.tally_json("receipt", "never-sent", "--account", tenant.account, code=1)
    assert told["code"] == "unknown_transaction"


def test_what_waits_to_be_counted_is_told_from_what_was_never_sent(stack: RunningStack, tenant: Tenant) -> None:
    """With the worker stopped: in flight with its position, wherever it lies; an id that nobody sent is unknown."""
    counted(stack, tenant)
    with stack.standing_still("worker"):
        home = (_home(tenant, "w") + 1) % 6  # misplaced on purpose: all partitions are looked through
        (offset,) = send(stack, tenant.account, [(event(transactionId="a") + b"\n" + event(transactionId="w"), home)])
        found = _receipt(stack, tenant, "w", status=202)
        assert found["verdict"] == "in_flight"
        assert (found["position"]["partition"], found["position"]["offset"], found["position"]["line"]) == (
            home,
            offset,
            1,
        )
        assert _get(stack, tenant, "w").headers["retry-after"] == "1"
        assert _get(stack, tenant, "nobody-sent-this").status_code == 404
        told = stack.tally_json("receipt", "w", "--account", tenant.account, code=1)
        assert told["verdict"] == "in_flight"
    counted(stack, tenant)
    found = until(lambda: r if (r := _get(stack, tenant, "w")).status_code == 200 else None, why="counted").json()
    assert (found["verdict"], found["position"]["partition"]) == ("accepted", _home(tenant, "w"))


def test_another_spelling_of_the_id_in_the_log_is_found(stack: RunningStack, tenant: Tenant) -> None:
    """JSON may escape any character; another account's line with the same id is not taken for it."""
    counted(stack, tenant)
    spelled = b'{"clientId":"c","timestamp":"2026-11-03T10:20:00Z","transactionId":"\\u0073lash\\/\\u00fc"}'
    with stack.standing_still("worker"):
        send(stack, "somebody-else", [(spelled, 1)])
        assert _get(stack, tenant, "slash/ü").status_code == 404
        send(stack, tenant.account, [(spelled, 1)])
        assert _receipt(stack, tenant, "slash/ü", status=202)["position"]["partition"] == 1
    counted(stack, tenant)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (ScanBounds(records_max=5), "5 records"),
        (ScanBounds(bytes_max=500), "500 bytes"),
        (ScanBounds(seconds_max=0.0), "0 s"),
    ],
    ids=["records", "bytes", "seconds"],
)
async def test_a_look_that_is_cut_short_decides_nothing(
    stack: RunningStack, tenant: Tenant, stack_store: Store, bounds: ScanBounds, said: str
) -> None:
    """More is waiting than a receipt looks through: the answer says so, and is neither unknown nor in flight."""
    await asyncio.to_thread(counted, stack, tenant)
    ranges = LogRanges(stack.settings)
    names = {"topic": TOPIC, "partitions": 6, "default_account": "default"}
    try:
        with stack.standing_still("worker"):
            lines = [(event(transactionId=f"l{i}", eventName="call"), 3) for i in range(20)]
            await _sent(stack, tenant, lines)
            found = await ReceiptReader(stack_store, ranges, **names, bounds=bounds).receipt(tenant.account, "none")
            assert found.verdict == "undecided"
            assert said in found.detail
            with pytest.raises(UnknownTransaction):
                await ReceiptReader(stack_store, ranges, **names).receipt(tenant.account, "none")
    finally:
        await ranges.stop()
    await asyncio.to_thread(counted, stack, tenant)


def test_two_accounts_with_the_same_id_do_not_see_each_other(stack: RunningStack, tenant: Tenant) -> None:
    """Each has its own; a third has none."""
    other = _tenant(stack, "other")
    third = _tenant(stack, "third")
    for one, value in ((tenant, 1), (other, 2)):
        send(stack, one.account, [(event(transactionId="same", value=value), _home(one, "same"))])
    send(stack, other.account, [(event(transactionId="same", value=2), _home(other, "same"))])
    counted(stack, tenant)
    one, two = _receipt(stack, tenant, "same"), _receipt(stack, other, "same")
    assert (one["event"]["value"], one["times_seen"]) == ("1", 1)
    assert (two["event"]["value"], two["times_seen"]) == ("2", 2)
    assert _get(stack, third, "same").status_code == 404


def _tenant(stack: RunningStack, name: str) -> Tenant:
    account = f"{name}-{uuid.uuid4().hex[:12]}"

    async def make() -> str:
        async with catalog_of(stack.settings) as catalog:
            return (await catalog.ensure_first_account(account)).secret

    return Tenant(account, asyncio.run(make()))


_ODD = [
    "a/b",
    "/",
    "//",
    "/x/",
    "batch",
    "batch/",
    "..",
    ".",
    "a b+c",
    "ü€😀",
    "\n\t\0",
    "%2F",
    "?q#f",
    '"\\',
    "x" * 256,
    "-x",
]


def test_ids_of_any_characters_have_receipts(stack: RunningStack, tenant: Tenant) -> None:
    """Slashes, dots, names of other routes, control characters: none is taken for another."""
    send(stack, tenant.account, [(b"\n".join(event(transactionId=i, eventName=str(n)) for n, i in enumerate(_ODD)), 0)])
    counted(stack, tenant)
    counted(stack, tenant)
    for number, identity in enumerate(_ODD):
        found = _receipt(stack, tenant, identity)
        assert (found["transaction_id"], found["event"]["event_name"]) == (identity, str(number))
    told = json.loads(stack.tally("receipt", "--json", "--account", tenant.account, "--", "-x"))
    assert told["transaction_id"] == "-x"


def test_what_cannot_be_an_id_is_refused(stack: RunningStack, tenant: Tenant) -> None:
    """Too long, no UTF-8, none at all; and a key without the scope sees nothing."""
    for path in ("x" * 257, "%FF", ""):
        answer = httpx.get(f"{stack.api}/v1/events/{path}", headers=tenant.headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_fields"), path
    made = httpx.post(f"{stack.api}/v1/catalog/keys", json={"name": "in", "scopes": ["ingest"]}, headers=tenant.headers)
    ingest = {"Authorization": f"Bearer {made.json()['secret']}"}
    for path in ("x", "batch"):
        assert httpx.get(f"{stack.api}/v1/events/{path}", headers=ingest).status_code == 403
        assert httpx.get(f"{stack.api}/v1/events/{path}").status_code == 401


def test_the_command_gives_the_document_of_the_api(stack: RunningStack, tenant: Tenant) -> None:
    """And a page for people without --json."""
    send(stack, tenant.account, [(event(transactionId="cli", eventName="call", value=3), 0)])
    counted(stack, tenant)
    counted(stack, tenant)
    until(lambda: _receipt(stack, tenant, "cli")["block"]["committed"], why="the block is committed")
    assert stack.tally_json("receipt", "cli", "--account", tenant.account) == _receipt(stack, tenant, "cli")
    page = stack.tally("receipt", "cli", "--account", tenant.account)
    assert "accepted: counted once" in page
    assert "events_client_day" in page


def test_the_api_describes_the_route(stack: RunningStack) -> None:
    """With the schema of its answers."""
    schema = httpx.get(f"{stack.api}/openapi.json").json()
    responses = schema["paths"]["/v1/events/{transaction_id}"]["get"]["responses"]
    for status in ("200", "202"):
        assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Receipt")
    assert "404" in responses
    assert schema["components"]["schemas"]["Receipt"]["properties"]["verdict"]["enum"] == [
        "accepted",
        "rejected",
        "in_flight",
        "undecided",
    ]
