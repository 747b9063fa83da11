"""Kafka is away: every door says so and when to try again, and what is sent again counts once.

Away is a broker that stands still with its connections open (SIGSTOP, as behind a dead switch) and one that was killed.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
import psutil
import pytest
from facts import facts
from running_stack import RunningStack, Tenant
from waiting import until

from pipeline.adapters.clickhouse import Store
from pipeline.local.port import choose

_TIME: Final = "2026-11-03T10:00:00Z"
_PATIENCE_S: Final = 60.0  # an answer that takes longer is none: the bound is 10 s for records, 20 s for the catalog
_LIST: Final = 60  # events of a list: some in every partition

Away = Callable[[RunningStack], AbstractContextManager[None]]


@dataclass(frozen=True)
class Call:
    """One request, and the ids of the events that it states."""

    name: str
    path: str
    ids: list[str]
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, address: str, tenant: Tenant) -> httpx.Response:
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", **tenant.headers, **self.headers}
        return httpx.post(address + self.path, content=content, headers=headers, timeout=_PATIENCE_S)


def _calls() -> list[Call]:
    """Every door once, with customers that are known and customers that are not."""

    def kable(identity: str) -> dict[str, Any]:
        return {"clientId": "c", "timestamp": _TIME, "transactionId": identity, "eventName": "e"}

    def autumn(identity: str, customer: str = "c") -> dict[str, Any]:
        return {"customer_id": customer, "feature_id": "f", "value": 2, "idempotency_key": identity}

    def segment(identity: str) -> dict[str, Any]:
        return {"type": "track", "userId": "c", "event": "e", "messageId": identity}

    def cloud(identity: str) -> dict[str, Any]:
        return {"specversion": "1.0", "source": "s", "id": identity, "type": "e", "subject": "c", "data": {"n": 1}}

    def many(name: str) -> list[str]:
        return [f"{name}-{n}" for n in range(_LIST)]

    lines = b"\n".join(json.dumps(kable(i)).encode() for i in many("bulk"))
    binary = {"ce-specversion": "1.0", "ce-source": "s", "ce-id": "binary", "ce-type": "e", "ce-subject": "c"}
    check = {"customer_id": "c", "feature_id": "f", "send_event": True}
    use = 'mutation { createUsageEvent(input: {userId: "c", featureId: "f", delta: 3}) }'
    return [
        Call("Kable", "/api/v1/events/create", ["kable"], kable("kable")),
        Call("Kable, a list", "/api/v1/events", many("list"), [kable(i) for i in many("list")]),
        Call("bulk", "/v1/events/batch", many("bulk"), lines, {"Content-Type": "application/x-ndjson"}),
        Call("Autumn, events", "/v1/events", ["events"], autumn("events")),
        Call("Autumn, track", "/v1/track", ["track"], autumn("track", "unknown")),
        Call("Autumn, balances.track", "/v1/balances.track", ["balances"], autumn("balances")),
        Call("Autumn, check", "/v1/check", ["check"], {**check, "required_balance": 2}, _key("check")),
        Call("Autumn, balances.check", "/v1/balances.check", ["checked"], check, _key("checked")),
        Call("Autumn, batch", "/v1/balances.batch_track", many("batch"), [autumn(i) for i in many("batch")]),
        Call("Kana", "/graphql", ["kana"], {"query": use}, _key("kana")),
        Call("Segment", "/segment/v1/track", ["segment"], segment("segment")),
        Call("Segment, batch", "/segment/v1/batch", many("seg"), {"batch": [segment(i) for i in many("seg")]}),
        Call("Segment, import", "/segment/v1/import", ["import"], {"batch": [segment("import")]}),
        Call("CloudEvents", "/api/v1/events", ["1:sone"], cloud("one"), _cloud_type("")),
        Call("CloudEvents, a batch", "/api/v1/events", ["1:smany"], [cloud("many")], _cloud_type("-batch")),
        Call("CloudEvents, binary", "/api/v1/events", ["1:sbinary"], {"n": 1}, binary),
        Call("OpenMeter", "/api/v1/events", ["1:sjson"], [cloud("json")]),
    ]


def _changes_of_the_catalog() -> list[Call]:
    """They take turns, so that one after another each would wait for those before it: the bound is each one's own."""
    described = {"name": "Ann", "email": "ann@example.com"}
    uses = [
        {"customer_id": f"n-{n}", "feature_id": "f", "idempotency_key": f"new-{n}", "customer_data": described}
        for n in range(4)
    ]
    return [Call("Autumn, described", "/v1/track", [f"new-{n}"], use) for n, use in enumerate(uses)]


def _calls_without_ids() -> list[Call]:
    """The doors at which an event may have none."""
    plain = {"clientId": "c", "timestamp": _TIME, "eventName": "e"}
    use = 'mutation { createUsageEvent(input: {userId: "c", featureId: "f", delta: 3}) }'
    return [
        Call("bulk", "/v1/events/batch", [], [plain] * _LIST),
        Call("Autumn", "/v1/track", [], {"customer_id": "c", "feature_id": "f"}),
        Call("Kana", "/graphql", [], {"query": use}),
    ]


def _key(identity: str) -> dict[str, str]:
    return {"Idempotency-Key": identity}


def _cloud_type(kind: str) -> dict[str, str]:
    return {"Content-Type": f"application/cloudevents{kind}+json"}


@contextmanager
def _standing_still(stack: RunningStack) -> Iterator[None]:
    try:
        with stack.standing_still("kafka"):
            yield
    finally:
        _until_back(stack)


@contextmanager
def _killed(stack: RunningStack) -> Iterator[None]:
    """The broker is dead, and killed again each time that it is started, before it listens."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.5):
            with suppress(psutil.NoSuchProcess):
                broker = psutil.Process(stack.part("kafka")["pid"])
                for process in [*broker.children(recursive=True), broker]:
                    process.kill()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        until(lambda: not _listens(stack.kafka), why="the broker is dead")
        try:
            yield
        finally:
            over.set()
            killing.result()
            _until_back(stack)


def _listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def _until_back(stack: RunningStack) -> None:
    until(lambda: _ready(stack.api), why="Kafka is back")


def _define(stack: RunningStack, tenant: Tenant) -> None:
    for kind, body in (("features", {"id": "f"}), ("customers", {"id": "c"})):
        answer = httpx.post(f"{stack.api}/v1/catalog/{kind}", headers=tenant.headers, json=body)
        assert answer.status_code == 201, answer.text


def _until_received(stack: RunningStack, tenant: Tenant, call: Call) -> None:
    """Sends the same bytes again as long as the answer is 503."""
    answer = until(
        lambda: found if (found := call.send(stack.api, tenant)).status_code != 503 else None,
        why=f"{call.name} is taken",
    )
    assert answer.is_success, (call.name, answer.text)
    assert "errors" not in answer.text, (call.name, answer.text)


def _again(call: Call, refused: httpx.Response) -> Call:
    """A call whose events had no id, under the ids that the refusal tells."""
    told = refused.json()
    if call.path == "/graphql":
        named = told["errors"][0]["extensions"]["idempotencyKey"]
        return replace(call, ids=[named], headers=_key(named))
    if "idempotency_key" in told:
        return replace(call, ids=[told["idempotency_key"]], headers=_key(told["idempotency_key"]))
    assert {event["status"] for event in told["events"]} == {"unconfirmed"}
    ids = [event["transactionId"] for event in told["events"]]
    return replace(call, ids=ids, body=[{**event, "transactionId": i} for event, i in zip(call.body, ids, strict=True)])


@pytest.mark.parametrize("away", [_standing_still, _killed], ids=["stands still", "killed"])
def test_every_door_says_so_and_what_is_sent_again_counts_once(
    stack: RunningStack, tenant: Tenant, stack_store: Store, away: Away
) -> None:
    """503 with Retry-After from each, asked all at once; then the same again, what had no id under the one that it was
    told: no event is lost and none counts twice."""
    _define(stack, tenant)
    # those that change the catalog take twice as long to be refused, whatever ails the broker: once will do
    named = _calls() + (_changes_of_the_catalog() if away is _standing_still else [])
    unnamed = _calls_without_ids()
    made = Call("createUser", "/graphql", [], {"query": 'mutation { createUser(input: {id: "u"}) { id } }'})
    unknown = Tenant(tenant.account, "tally_live_" + "A" * 43)
    with away(stack), ThreadPoolExecutor(len(named) + len(unnamed) + 2) as pool:
        asked = [(call, pool.submit(call.send, stack.api, tenant)) for call in (*named, *unnamed, made)]
        asked.append((named[0], pool.submit(named[0].send, stack.api, unknown)))  # may have been made a moment ago
        for call, answer in asked:
            found = answer.result()
            assert found.status_code == 503, (call.name, found.status_code, found.text)
            assert int(found.headers["retry-after"]) >= 1, call.name
        assert httpx.get(f"{stack.api}/readyz", timeout=_PATIENCE_S).status_code == 503
        assert httpx.get(f"{stack.api}/livez", timeout=_PATIENCE_S).status_code == 200
        again = [*named, *(_again(call, answer.result()) for call, answer in asked if call in unnamed)]
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_until_received, stack, tenant, call) for call in again]:
            done.result()
    counted = facts(stack, tenant, stack_store)
    assert set(counted) == {identity for call in again for identity in call.ids}
    assert stack.tally_json("audit")["drift"] == 0


# ------------------------------------------------------------------------------------------------ the API is stopped


class Begun:
    """A request that the API has begun to read; its event is on its way once `end` was called."""

    def __init__(self, port: int, tenant: Tenant, identity: str) -> None:
        event = {"clientId": "c", "timestamp": _TIME, "transactionId": identity, "eventName": "e"}
        self.identity = identity
        self._body = json.dumps(event).encode()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        head = (
            f"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {tenant.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        assert self._socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # told when the door asks for the body

    def end(self) -> None:
        """Sends the body."""
        self._socket.sendall(self._body)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body. Raises where the connection was cut instead."""
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        found = response.status, dict(response.getheaders()), json.loads(response.read())
        self._socket.close()
        return found


@contextmanager
def _own_api(stack: RunningStack) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A further API on the same broker, ready; the test ends it."""
    port = choose("api", wanted=None, remembered=None, taken=set())
    environment = stack.environment({"TALLY_API_PORT": str(port)})
    with (stack.home / f"api-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tally", "api"], cwd=stack.home, env=environment, stdout=log, stderr=log
        )
    try:
        until(lambda: _ready(f"http://127.0.0.1:{port}"), why="the API is ready")
        yield process, port
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=_PATIENCE_S).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("back", [True, False], ids=["Kafka comes back", "Kafka stays away"])
def test_an_api_that_is_stopped_answers_what_it_has_begun(
    stack: RunningStack, tenant: Tenant, stack_store: Store, back: bool
) -> None:
    """SIGTERM with requests on their way: new connections are refused, each request that was begun has its answer,
    what was answered 200 is counted, what was answered 503 counts once when it is sent again, and the process ends."""
    with _own_api(stack) as (process, port):
        with _standing_still(stack):
            begun = [Begun(port, tenant, f"t-{n}") for n in range(20)]
            for request in begun:
                request.end()
            process.send_signal(signal.SIGTERM)
            until(lambda: not _listens(f"127.0.0.1:{port}"), why="the API takes no new connection")
            if not back:
                answers = [request.answer() for request in begun]
                assert process.wait(_PATIENCE_S) == 0
        if back:
            answers = [request.answer() for request in begun]
            assert process.wait(_PATIENCE_S) == 0
    if back:
        assert [status for status, _, _ in answers] == [200] * len(begun)
    else:
        assert [(status, "retry-after" in headers) for status, headers, _ in answers] == [(503, True)] * len(begun)
        for request in begun:
            event = {"clientId": "c", "timestamp": _TIME, "transactionId": request.identity, "eventName": "e"}
            _until_received(stack, tenant, Call("Kable", "/api/v1/events", [request.identity], event))
    assert set(facts(stack, tenant, stack_store)) == {request.identity for request in begun}
