"""Refused lines on the real stack: listed, shown, replayed as they came or mended, and what became of them."""

import asyncio
import base64
import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from records import event, send
from running_stack import RunningStack, Tenant, catalog_of
from waiting import counted, until, usage

from consumers.rejects import RejectFilter, RejectsReader
from pipeline.adapters.clickhouse import Store
from pipeline.event import id_hash, partition_of

_WINDOW = {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"}


def _list(stack: RunningStack, tenant: Tenant, *options: str) -> list[dict[str, Any]]:
    """As the command lists them; without options as its reader does, which spares a process where a test waits."""
    found: list[dict[str, Any]]
    if options:
        found = stack.tally_json("rejects", "list", "--account", tenant.account, *options)
        return found
    rows = RejectsReader(Store(stack.settings)).newest(
        RejectFilter(topic="tally.events", account=tenant.account), limit=1000
    )
    found = msgspec.to_builtins(rows)
    return found


def _wait_for(stack: RunningStack, tenant: Tenant, number: int) -> list[dict[str, Any]]:
    """The account's rejects once there are so many."""
    return until(lambda: r if len(r := _list(stack, tenant)) == number else None, why=f"{number} rejects")


def _replay(stack: RunningStack, tenant: Tenant, *options: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = stack.tally_json("rejects", "replay", "--account", tenant.account, *options, code=code)
    return found


def _status(stack: RunningStack, tenant: Tenant, position: str) -> dict[str, Any]:
    return next(row for row in _list(stack, tenant) if row["position"] == position)


def _events(stack: RunningStack, tenant: Tenant, name: str = "e") -> tuple[int, str]:
    rows = usage(stack, tenant, event_name=name, **_WINDOW)["data"]
    return (rows[0]["events"], rows[0]["value"]) if rows else (0, "0")


async def _create_account(stack: RunningStack, account: str) -> None:
    async with catalog_of(stack.settings) as catalog:
        await catalog.ensure_first_account(account)


def test_rejects_are_listed_by_what_they_are(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """By reason, field, event name, partition, verdict, status and append time; as a table, CSV and JSON."""
    home = partition_of(id_hash(tenant.account, "x"), 6)
    first, other = event(transactionId="x", eventName="e"), event(transactionId="x", eventName="e", value=2)
    bad = [(event(eventName="e", clientId=7), 1), (event(eventName="f", value="x", timestamp="now"), 2)]
    send(stack, tenant.account, [(first, home), (other, home), *bad])
    rows = _wait_for(stack, tenant, 3)
    assert {row["status"] for row in rows} == {"open", "conflict"}
    first_appended = datetime.fromisoformat(rows[-1]["append_time"])
    choices: list[tuple[dict[str, Any], int]] = [
        ({"reason": "type"}, 1),
        ({"reason": "format"}, 1),
        ({"field": "value"}, 1),
        ({"field": "timestamp"}, 1),
        ({"event_name": "f"}, 1),
        ({"partition": 1, "verdict": "rejected"}, 1),
        ({"verdict": "conflict"}, 1),
        ({"status": "open"}, 2),
        ({"status": "replayed"}, 0),
        ({"start": first_appended}, 3),
        ({"end": first_appended}, 0),
        ({"start": datetime(2099, 1, 1, tzinfo=UTC)}, 0),
    ]
    reader = RejectsReader(stack_store)
    for fields, number in choices:
        chosen = RejectFilter(topic="tally.events", account=tenant.account, **fields)
        assert (len(reader.newest(chosen, limit=9)), reader.count(chosen)) == (number, number), fields
    every = ("--reason", "format", "--field", "value", "--event-name", "f", "--partition", "2", "--verdict", "rejected")
    times = ("--start", rows[-1]["append_time"], "--end", "2099-01-01", "--status", "open", "--limit", "1")
    assert [row["field"] for row in _list(stack, tenant, *every, *times)] == ["timestamp"]
    text = stack.tally("rejects", "list", "--account", tenant.account, "--csv")
    assert sorted(row["position"] for row in csv.DictReader(io.StringIO(text))) == sorted(r["position"] for r in rows)
    assert "3 rejects" in stack.tally("rejects", "list", "--account", tenant.account)
    everyone = {row["position"] for row in stack.tally_json("rejects", "list", "--all-accounts", "--limit", "10000")}
    assert everyone >= {row["position"] for row in rows}


def test_a_reject_is_shown_with_its_bytes_headers_and_every_fault(stack: RunningStack, tenant: Tenant) -> None:
    """Text where it is text, else base64; by the whole position or the last four."""
    line, broken = event(clientId=None, value="much", transactionId="id"), b'{"clientId":"\xff\x1b[2J"}'
    (offset,) = send(stack, tenant.account, [(line + b"\n" + broken, 4)], [("trace", b"\xfe1")])
    rows = _wait_for(stack, tenant, 2)
    position = next(row["position"] for row in rows if row["transaction_id"] == "id")
    assert position.split(":")[0] == "tally.events"
    assert position.split(":")[2:] == ["4", str(offset), "0"]
    for name in (position, position.partition(":")[2]):
        shown = stack.tally_json("rejects", "show", name)
        assert (shown["text"], shown["base64"]) == (line.decode(), None)
    assert shown["headers"] == [["account", tenant.account], ["trace", "\\xfe1"]]
    assert [(e["field"], e["code"]) for e in shown["errors"]] == [("clientId", "required"), ("value", "format")]
    second = stack.tally_json("rejects", "show", position[:-1] + "1")
    assert (second["text"], base64.b64decode(second["base64"])) == (None, broken)
    assert "required" in stack.tally("rejects", "show", position)
    stack.tally("rejects", "show", "0:0:999999999:0", code=2)
    stack.tally("rejects", "show", "nonsense", code=2)


def test_a_replay_counts_once_however_often(stack: RunningStack, tenant: Tenant) -> None:
    """An account that is made later: lines with and without an id, sent as they came, thrice."""
    late = Tenant(f"late-{tenant.account}", tenant.key)
    lines = [event(transactionId="own", eventName="e", value=5), event(eventName="e", value=7)]
    send(stack, late.account, [(b"\n".join(lines), 2)])
    rows = _wait_for(stack, late, 2)
    assert {row["reason"] for row in rows} == {"unknown_account"}
    again = _replay(stack, late, "--all")
    assert (again["chosen"], again["sent"], again["refused"]) == (2, 2, 0)
    until(
        lambda: {r["status"] for r in _list(stack, late) if r["replays"]} == {"rejected_again"},
        why="refused again, since the account is not there yet",
    )
    refused = _list(stack, late)
    assert len(refused) == 4  # the replays are rejects of their own
    asyncio.run(_create_account(stack, late.account))
    positions = [row["position"] for row in rows]
    for _ in range(2):
        assert _replay(stack, late, *positions)["sent"] == 2
        counted(stack, tenant)
        counted(stack, tenant)
    found = {row["position"]: row for row in _list(stack, late) if row["position"] in positions}
    assert {row["status"] for row in found.values()} == {"accepted"}
    assert {row["replays"] for row in found.values()} == {3}
    assert "own" in {row["replayed_id"] for row in found.values()}
    assert all(row["counted_at"] for row in found.values())
    # what was refused again has the same ids: replaying it as well adds nothing
    left = _replay(stack, late, "--all")
    assert left["sent"] == 2
    counted(stack, tenant)
    until(lambda: "in_flight" not in {r["status"] for r in _list(stack, late)}, why="all are counted")
    assert sorted(r["status"] for r in _list(stack, late)) == ["accepted", "accepted", "duplicate", "duplicate"]
    total = stack.tally_json(
        "usage", "--account", late.account, "--event-name", "e", "--start", "2026-11-01", "--end", "2026-12-01"
    )
    assert [(row["events"], row["value"]) for row in total["data"]] == [(2, "12")]
    assert stack.tally_json("audit")["drift"] == 0


def test_set_unset_and_rename_mend_lines(stack: RunningStack, tenant: Tenant) -> None:
    """A dry run tells what would be sent and sends nothing; numbers keep every digit."""
    digits = "12345678901234567890.123456789"
    raw = event(eventName="e", transaction_id="typo", note="x").decode()
    line = (raw[:-1] + f', "value": {digits}, "data": {{"n": {digits}}}}}').encode()
    send(stack, tenant.account, [(line, 3)])
    (row,) = _wait_for(stack, tenant, 1)
    mends = ("--rename", "transaction_id=transactionId", "--unset", "note", "--set", "data.k=1", "--set", "clientId=c2")
    assert _replay(stack, tenant, "--reason", "unknown_field", code=1)["refused"] == 1
    tried = _replay(stack, tenant, "--reason", "unknown_field", *mends, "--dry-run")
    assert (tried["valid"], tried["sent"]) == (1, 0)
    counted(stack, tenant)
    assert (_status(stack, tenant, row["position"])["status"], _events(stack, tenant)) == ("open", (0, "0"))
    assert _replay(stack, tenant, "--reason", "unknown_field", *mends)["sent"] == 1
    counted(stack, tenant)
    mended = _status(stack, tenant, row["position"])
    assert (mended["status"], mended["replayed_id"]) == ("accepted", "typo")
    assert mended["replayed_as"] == "rename transaction_id=transactionId; unset note; set data.k=1; set clientId=c2"
    assert _events(stack, tenant) == (1, digits)
    receipt = stack.tally_json("receipt", "typo", "--account", tenant.account)
    assert receipt["event"]["client_id"] == "c2"
    assert f'"n": {digits}' in stack.tally("receipt", "typo", "--account", tenant.account, "--json")
    assert receipt["event"]["data"]["k"] == 1


def test_an_id_stays_with_its_line(stack: RunningStack, tenant: Tenant) -> None:
    """Neither a line's own id nor the one of an earlier replay can be changed: it could count twice."""
    lines = [event(transactionId="own", clientId=7, eventName="e"), event(clientId=7, eventName="e")]
    send(stack, tenant.account, [(b"\n".join(lines), 2)])
    rows = _wait_for(stack, tenant, 2)
    own, none = (next(r["position"] for r in rows if bool(r["transaction_id"]) is has) for has in (True, False))
    refused = _replay(stack, tenant, own, "--set", "clientId=c", "--set", "transactionId=new", code=1)
    assert refused["lines"][0]["errors"][0]["code"] == "changed"
    assert _replay(stack, tenant, none, "--set", "clientId=c", "--set", "transactionId=given")["sent"] == 1
    counted(stack, tenant)
    counted(stack, tenant)
    assert _status(stack, tenant, none)["replayed_id"] == "given"
    refused = _replay(stack, tenant, none, "--set", "clientId=c", "--set", "transactionId=another", code=1)
    assert refused["lines"][0]["errors"][0]["code"] == "changed"
    assert _events(stack, tenant) == (1, "1")


def test_a_replay_with_other_content_is_a_conflict(stack: RunningStack, tenant: Tenant) -> None:
    """The first replay stands, and the reject still tells that it counts; one whose id counts already conflicts."""
    home = partition_of(id_hash(tenant.account, "taken"), 6)
    send(stack, tenant.account, [(event(transactionId="taken", eventName="e"), home)])
    send(stack, tenant.account, [(event(transactionId="taken", eventName="e", clientId=9), home)])
    (row,) = _wait_for(stack, tenant, 1)
    assert _replay(stack, tenant, row["position"], "--set", "clientId=other")["sent"] == 1
    counted(stack, tenant)
    counted(stack, tenant)
    assert _status(stack, tenant, row["position"])["status"] == "conflict"
    assert _replay(stack, tenant, row["position"], "--set", "clientId=c")["sent"] == 1
    counted(stack, tenant)
    counted(stack, tenant)
    assert _status(stack, tenant, row["position"])["status"] == "duplicate"
    assert _events(stack, tenant) == (1, "1")
    conflict = next(r for r in _list(stack, tenant) if r["verdict"] == "conflict")
    assert _replay(stack, tenant, "--verdict", "conflict", code=1)["refused"] == 1
    refused = _replay(stack, tenant, conflict["position"], code=1)
    assert refused["lines"][0]["errors"][0] == {
        "field": "transactionId",
        "code": "conflict",
        "message": "the id counts with other content, and the first stands; send a new event under an id of its own",
    }


def test_a_replay_must_be_told_what_to_send(stack: RunningStack, tenant: Tenant) -> None:
    """Neither everything by accident, nor a position where nothing was refused."""
    stack.tally("rejects", "replay", code=2)
    stack.tally("rejects", "replay", "--all", "--set", "value", code=2)
    assert stack.tally_json("rejects", "replay", "0:0:999999999:0", code=1)["chosen"] == 0
    assert _replay(stack, tenant, "--all")["chosen"] == 0


@pytest.mark.parametrize("page_lines", [1, 7, 1000])
def test_many_are_walked_page_by_page_each_once(
    stack: RunningStack, tenant: Tenant, stack_store: Store, page_lines: int
) -> None:
    """Over records and partitions, and without those that come while it goes on."""
    bad = [event(clientId=i, eventName="e") for i in range(60)]
    send(stack, tenant.account, [(b"\n".join(bad[p * 10 : p * 10 + 10]), p) for p in range(6)])
    _wait_for(stack, tenant, 60)
    pages = RejectsReader(stack_store).pages(
        RejectFilter(topic="tally.events", account=tenant.account), page_lines=page_lines
    )
    first = next(pages)
    send(stack, tenant.account, [(event(clientId=99, eventName="e"), p) for p in range(6)])
    _wait_for(stack, tenant, 66)
    found = [line for page in [first, *pages] for line in page]
    assert sorted(json.loads(line.raw)["clientId"] for line in found) == list(range(60))
    assert len({line.position for line in found}) == 60
