"""The inspector on the real stack: what came in with its verdict, listed and live."""

import http.client
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from records import TIME, event, send
from running_stack import RunningStack, Tenant, fresh_tenant
from waiting import counted, until

from pipeline.event import id_hash, partition_of


class Sent:
    """What a module's account has sent: its lines by verdict, and another account that sent the same ids."""

    def __init__(self, stack: RunningStack) -> None:
        self.stack = stack
        self.tenant = fresh_tenant(stack)
        self.other = fresh_tenant(stack)
        self.client = httpx.Client(base_url=stack.api, headers=self.tenant.headers, timeout=120)

    def home(self, identity: str, tenant: Tenant | None = None) -> int:
        return partition_of(id_hash((tenant or self.tenant).account, identity), 6)

    def page(self, **parameters: str) -> dict[str, Any]:
        answer = self.client.get("/v1/events", params={"start": "2020-01-01", **parameters})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until_listed(self, number: int) -> list[dict[str, Any]]:
        """All lines of the account, once there are so many."""

        def listed() -> list[dict[str, Any]] | None:
            found: list[dict[str, Any]] = self.page(limit="200")["data"]
            return found if len(found) >= number else None

        found = until(listed, why=f"{number} lines are judged")
        assert len(found) == number
        return found

    def shown(self, **parameters: str) -> list[tuple[str, str | None]]:
        return [(line["verdict"], line["transaction_id"]) for line in self.page(**parameters)["data"]]


@pytest.fixture(scope="module")
def sent(stack: RunningStack) -> Iterator[Sent]:
    """Three accepted events, a duplicate, a conflict and a refused line; another account's with the same ids."""
    sent = Sent(stack)
    lines = [
        event(transactionId="a-1", eventName="call", value=2.5, data={"region": "eu"}),
        event(transactionId="a-1", eventName="call", value=2.5, data={"region": "eu"}),
        event(transactionId="a-1", eventName="call", value=3),
    ]
    send(stack, sent.tenant.account, [(b"\n".join(lines), sent.home("a-1"))])
    more = [
        (event(transactionId="a-2", eventName="mail", clientId="ben", timestamp="2026-11-05T00:00:00Z"), 0),
        (event(transactionId="b-1", eventName="call", clientId="ben", entityId="seat"), 1),
        (event(transactionId="bad", clientId="ben", eventName="call", value="much"), 2),
    ]
    send(stack, sent.tenant.account, more)
    send(stack, sent.other.account, [(event(transactionId="a-1", eventName="secret", clientId="other"), 3)] * 2)
    sent.until_listed(6)
    yield sent
    sent.client.close()


_ALL = {("accepted", "a-1"), ("duplicate", "a-1"), ("conflict", "a-1"), ("accepted", "a-2"), ("accepted", "b-1")}


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, {*_ALL, ("rejected", "bad")}),
        ({"verdict": "accepted"}, {("accepted", "a-1"), ("accepted", "a-2"), ("accepted", "b-1")}),
        ({"verdict": "duplicate"}, {("duplicate", "a-1")}),
        ({"verdict": "conflict,rejected"}, {("conflict", "a-1"), ("rejected", "bad")}),
        ({"customer": "ben"}, {("accepted", "a-2"), ("accepted", "b-1"), ("rejected", "bad")}),
        ({"event_name": "mail"}, {("accepted", "a-2")}),
        ({"transaction_id": "a-1"}, {("accepted", "a-1"), ("duplicate", "a-1"), ("conflict", "a-1")}),
        ({"transaction_id_prefix": "a-"}, {one for one in _ALL if one[1] != "b-1"}),
        ({"transaction_id_prefix": "a-", "customer": "ben"}, {("accepted", "a-2")}),
        ({"by": "timestamp"}, {*_ALL, ("rejected", "bad")}),
        ({"by": "timestamp", "start": "2026-11-04"}, {("accepted", "a-2")}),
        ({"by": "timestamp", "end": TIME}, set()),
        ({"end": "2026-01-01"}, set()),
        ({"customer": "other"}, set()),
        ({"event_name": "secret"}, set()),
        ({"customer": "' OR 1=1 --"}, set()),
    ],
    ids=lambda given: str(sorted(given)),  # a set in the order of its hashes is called otherwise in each process
)
def test_lines_are_listed_by_what_is_asked_for(
    sent: Sent, parameters: dict[str, str], wanted: set[tuple[str, str | None]]
) -> None:
    """Each once, of this account only."""
    shown = sent.shown(**parameters)
    assert set(shown) == wanted
    assert len(shown) == len(wanted)


def test_a_line_tells_what_it_was_and_why_it_was_refused(sent: Sent) -> None:
    """Content, position, and the field at fault with its reason; a duplicate has the content of the first."""
    found = {line["verdict"]: line for line in sent.page(transaction_id="a-1")["data"]}
    (refused,) = sent.page(verdict="rejected")["data"]
    first = found["accepted"]
    assert {name: first[name] for name in ("client_id", "event_name", "value", "data", "timestamp")} == {
        "client_id": "c",
        "event_name": "call",
        "value": "2.5",
        "data": {"region": "eu"},
        "timestamp": TIME,
    }
    same = {name: value for name, value in first.items() if name not in ("verdict", "position")}
    assert {name: found["duplicate"][name] for name in same} == same
    assert [found[verdict]["position"]["line"] for verdict in ("accepted", "duplicate", "conflict")] == [0, 1, 2]
    assert json.loads(found["conflict"]["raw"])["value"] == 3
    assert (refused["client_id"], refused["position"]["partition"]) == ("ben", 2)
    assert [(fault["field"], fault["code"]) for fault in refused["errors"]] == [("value", "format")]


def test_pages_are_stable_while_events_come_in(stack: RunningStack) -> None:
    """Every line that was there when the walk began comes up once, in order; none that came in later moves one."""
    sent = Sent(stack)
    draw = random.Random(11)
    lines = [event(transactionId=f"p-{i}", timestamp=f"2026-11-0{draw.randrange(1, 9)}T00:00:00Z") for i in range(9)]
    send(stack, sent.tenant.account, [(b"\n".join([*lines, lines[0], b'{"clientId": 1}']), 0)])
    sent.until_listed(11)
    wholes = {by: sent.page(by=by)["data"] for by in ("append_time", "timestamp")}
    assert {by: len(whole) for by, whole in wholes.items()} == {"append_time": 11, "timestamp": 10}  # one has no time
    pages = {by: sent.page(by=by, limit="3") for by in wholes}
    later = [event(transactionId=f"later-{i}", timestamp="2026-11-20T00:00:00Z") for i in range(3)]
    send(stack, sent.tenant.account, [(b"\n".join(later), 0)])
    sent.until_listed(14)
    for by, page in pages.items():
        walked = page["data"]
        while page["next_cursor"]:
            page = sent.page(by=by, limit="3", cursor=page["next_cursor"])  # noqa: PLW2901
            walked += page["data"]
        assert walked == wholes[by]
        keys = [(line[by], *list(line["position"].values())[1:]) for line in walked]
        assert keys == sorted(keys, reverse=True)
    sent.client.close()


@pytest.mark.parametrize(
    ("query", "field", "code"),
    [
        ("custmer=anna", "custmer", "unknown_field"),
        ("verdict=good", "verdict", "format"),
        ("limit=0", "limit", "range"),
        ("limit=201", "limit", "range"),
        ("limit=²", "limit", "range"),
        ("by=size", "by", "format"),
        ("start=yesterday", "start", "format"),
        ("start=2026-02-02&end=2026-02-01", "end", "range"),
        ("customer=a&customer=b", "customer", "duplicate_key"),
        ("customer=" + "x" * 300, "customer", "too_large"),
        ("transaction_id=a&transaction_id_prefix=b", "transaction_id_prefix", "exclusive"),
        ("cursor=nonsense", "cursor", "format"),
        ("account=other", "account", "unknown_field"),
    ],
)
def test_wrong_parameters_are_named(sent: Sent, query: str, field: str, code: str) -> None:
    """422 with field and code."""
    answer = sent.client.get(f"/v1/events?{query}")
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == (field, code)


def test_a_cursor_belongs_to_its_question_and_account(sent: Sent) -> None:
    """With other filters, in another period or with another account's key it is refused."""
    cursor = sent.page(limit="1")["next_cursor"]
    other = {"params": {"cursor": cursor}, "headers": sent.other.headers}
    for answer in (
        sent.client.get("/v1/events", params={"cursor": cursor, "customer": "ben"}),
        sent.client.get("/v1/events", params={"cursor": cursor, "start": "2021-01-01"}),
        sent.client.get("/v1/events", **other),
    ):
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "exclusive")


# ------------------------------------------------------------------------------------------------ live


class Reading:
    """An open tail as a reader sees it."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        self._lines = answer.iter_lines()
        self.last_id = ""

    def next(self) -> tuple[str, dict[str, Any]]:
        """Name (`message` when it has none) and data of the next event."""
        name, data = "message", None
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "id":
                self.last_id = value
            elif field == "data":
                data = json.loads(value)
            elif not line and data is not None:
                return name, data
        raise AssertionError("the tail ended without a last event")

    def lines(self, number: int) -> list[tuple[str, str | None]]:
        """Verdict and id of so many lines."""
        found = []
        while len(found) < number:
            name, data = self.next()
            assert name == "message", (name, data)
            found.append((data["verdict"], data["transaction_id"]))
        return found


@contextmanager
def _tail(
    stack: RunningStack, headers: Mapping[str, str], after: str | None = None, **parameters: str
) -> Iterator[Reading]:
    given = {**headers, **({"Last-Event-ID": after} if after else {})}
    with httpx.stream("GET", f"{stack.api}/v1/events/tail", params=parameters, headers=given, timeout=120) as answer:
        reading = Reading(answer)
        name, _ = reading.next()
        assert name == "open"
        yield reading


def test_a_tail_tells_each_line_once_and_goes_on_where_it_was(stack: RunningStack) -> None:
    """Every verdict, of this account only; after Last-Event-ID from the middle of a record, and by the command."""
    sent = Sent(stack)
    send(stack, sent.tenant.account, [(event(transactionId="before"), 0)])
    sent.until_listed(1)
    listed = datetime.now(UTC)  # in the store; a tail begins after what workers have reported as counted
    until(lambda: datetime.fromisoformat(sent.page()["complete_until"]) > listed, why="that is reported")
    with (
        _tail(stack, sent.tenant.headers) as reading,
        _tail(stack, sent.tenant.headers, verdict="rejected") as narrowed,
        _tail(stack, sent.other.headers) as others,
    ):
        start = reading.last_id
        send(stack, sent.other.account, [(event(transactionId="x", eventName="secret"), sent.home("x", sent.other))])
        first = event(transactionId="x", data={"text": "two\nlines"})
        lines = [first, first, event(transactionId="x", value=2), event(transactionId="x", clientId=None)]
        send(stack, sent.tenant.account, [(b"\n".join([*lines, first]).replace(b", ", b",\r "), sent.home("x"))])
        wanted = [(verdict, "x") for verdict in ("accepted", "duplicate", "conflict", "rejected", "duplicate")]
        assert reading.lines(2) == wanted[:2]
        middle = reading.last_id
        assert reading.lines(3) == wanted[2:]
        assert narrowed.lines(1) == [("rejected", "x")]
        assert others.next()[1]["event_name"] == "secret"
        send(stack, sent.other.account, [(event(transactionId="y"), 0)])
        assert others.lines(1) == [("accepted", "y")]
    with _tail(stack, sent.tenant.headers, after=middle) as reading:
        assert reading.lines(3) == wanted[2:]
    told = stack.tally("tail", "--account", sent.tenant.account, "--after", start, "--count", "5", "--json")
    lines_told = [json.loads(line) for line in told.splitlines()]
    assert [(line["verdict"], line["transaction_id"]) for line in lines_told] == wanted
    assert lines_told[0]["data"] == {"text": "two\nlines"}
    page = stack.tally("tail", "--account", sent.tenant.account, "--after", middle, "--count", "2")
    assert "clientId: " in page
    assert "conflict" in page
    sent.client.close()


def test_a_key_that_is_revoked_loses_its_tail(stack: RunningStack, sent: Sent) -> None:
    """Within seconds, with a last event that says so; a key without the scope never had one."""
    made = {}
    for scope in ("read", "ingest"):
        made[scope] = sent.client.post("/v1/catalog/keys", json={"name": scope, "scopes": [scope]}).json()
    for path in ("/v1/events", "/v1/events/tail"):
        ingest = {"Authorization": f"Bearer {made['ingest']['secret']}"}
        assert httpx.get(f"{stack.api}{path}", headers=ingest, timeout=60).status_code == 403
        assert httpx.get(f"{stack.api}{path}", timeout=60).status_code == 401
    with _tail(stack, {"Authorization": f"Bearer {made['read']['secret']}"}) as reading:
        assert sent.client.delete(f"/v1/catalog/keys/{made['read']['id']}").is_success
        name, data = reading.next()
        assert (name, data["reason"]) == ("end", "revoked")


def test_a_tail_cannot_go_on_after_anything_else(sent: Sent) -> None:
    """A token that no tail gave, and parameters that are none."""
    for headers, query, field in (
        ({"Last-Event-ID": "nonsense"}, "", "Last-Event-ID"),
        ({}, "?colour=red", "colour"),
        ({}, "?verdict=good", "verdict"),
    ):
        answer = sent.client.get(f"/v1/events/tail{query}", headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_ids_that_look_like_the_inspectors_paths_have_receipts(stack: RunningStack, sent: Sent) -> None:
    """`tail` is asked for percent-encoded, a slash as any other id."""
    for identity in ("tail", "/"):
        send(stack, sent.other.account, [(event(transactionId=identity), sent.home(identity, sent.other))])
    counted(stack, sent.other)
    for path, identity in (("/v1/events/%74ail", "tail"), ("/v1/events/%2F", "/")):
        connection = http.client.HTTPConnection(urlsplit(stack.api).netloc, timeout=60)
        connection.request("GET", path, headers=sent.other.headers)
        assert json.load(connection.getresponse())["transaction_id"] == identity
        connection.close()
