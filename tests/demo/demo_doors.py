"""The doors as clients use them: HTTP, GraphQL, the command line, a Kafka producer.

Rules: a client of the product and nothing more: none of its packages is imported. Every answer is looked at; what a
door did not acknowledge is an error. Each function gives the number of events that its door acknowledged.
"""

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer
from demo_events import IMAGES, STUDIO, Delivery, Wire

TALLY = str(Path(sys.executable).with_name("tally"))
TOPIC = "tally.events"
AT_ONCE = 16  # requests under way
LIST_EVENTS = 1_000  # of one request
RECORD_EVENTS = 200  # of one Kafka record


class DemoError(Exception):
    """The product did not do as asked; the message says what."""


@dataclass(frozen=True)
class Shop:
    """Where the product runs and who asks: addresses, the account and its admin key."""

    home: Path
    api: str
    kafka: str
    account: str
    key: str

    def client(self) -> httpx.AsyncClient:
        """A client of the API with the account's key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.api, headers=headers, timeout=60.0)

    def tally(self, *arguments: str) -> str:
        """Runs a command to its end; its output. Raises DemoError unless it exits with 0."""
        done = subprocess.run(
            [TALLY, *arguments], env=environment(self.home), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"tally {' '.join(arguments)} exited {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout


def environment(home: Path) -> dict[str, str]:
    """The environment of a command: the machine's own, without settings of another stack."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    return {**inherited, "TALLY_HOME": str(home)}


async def deliver(shop: Shop, delivery: Delivery) -> int:
    """Sends a delivery through its door; how many events were acknowledged."""
    if delivery.path is not None:
        return await asyncio.to_thread(_send_file, shop, delivery.path)
    return await _DOORS[delivery.door](shop, delivery)


def _send_file(shop: Shop, path: Path) -> int:
    summary = json.loads(shop.tally("send", str(path), "--account", shop.account, "--json"))
    return int(summary["sent"])


async def _kable(shop: Shop, delivery: Delivery) -> int:
    async with shop.client() as client:
        headers = {"Kable-Client-Id": shop.account, "Kable-Client-Secret": shop.key}
        del client.headers["Authorization"]

        async def one(event: Wire) -> int:
            answer = await _post(client, "/api/v1/events/create", event, headers)
            return int(answer["status"] == "received" and answer["transactionId"] == event["transactionId"])

        return await _each(one, delivery.events)


async def _kable_list(shop: Shop, delivery: Delivery) -> int:
    async with shop.client() as client:

        async def some(events: Sequence[Wire]) -> int:
            return int((await _post(client, "/api/v1/events", events))["accepted"])

        return await _each(some, _chunks(delivery.events, LIST_EVENTS))


async def _bulk(shop: Shop, delivery: Delivery) -> int:
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    async with shop.client() as client:

        async def some(events: Sequence[Wire]) -> int:
            body = gzip.compress(b"\n".join(_json(event) for event in events))
            return int((await _post(client, "/v1/events/batch", body, headers))["accepted"])

        return await _each(some, _chunks(delivery.events, 2 * LIST_EVENTS))


_AUTUMN_NAMES = {
    "clientId": "customer_id",
    "eventName": "event_name",
    "featureId": "feature_id",
    "transactionId": "idempotency_key",
    "data": "properties",
}


async def _autumn(shop: Shop, delivery: Delivery) -> int:
    async with shop.client() as client:

        async def one(event: Wire) -> int:
            body = {_AUTUMN_NAMES.get(name, name): value for name, value in event.items()}
            answer = await _post(client, "/v1/events", body)
            return int(answer["message"] == "Event recorded successfully")

        return await _each(one, delivery.events)


_CREATE = """mutation create($user: CreateUserInput!, $feature: CreateFeatureInput!) {
  createUser(input: $user) { id }
  createFeature(input: $feature) { id }
}"""
_RECORD = "mutation createUsageEvent($input: CreateUsageEventInput!) { createUsageEvent(input: $input) }"


async def _kana(shop: Shop, delivery: Delivery) -> int:
    async with shop.client() as client:
        client.headers["Authorization"] = shop.key  # this dialect sends the bare key
        feature = {"id": IMAGES.id, "name": "Images", "type": "CONSUMABLE", "unitLabel": "image"}
        made = await _graphql(client, _CREATE, {"user": {"id": STUDIO, "name": "A studio"}, "feature": feature})
        if made != {"createUser": {"id": STUDIO}, "createFeature": {"id": IMAGES.id}}:
            raise DemoError(f"GraphQL made something else: {made}")

        async def one(event: Wire) -> int:
            use = {"userId": event["clientId"], "featureId": event["featureId"], "delta": event["value"]}
            return int((await _graphql(client, _RECORD, {"input": use}))["createUsageEvent"])

        return await _each(one, delivery.events)


async def _kafka(shop: Shop, delivery: Delivery) -> int:
    """Any producer: records of many lines, in whatever partition comes next, the account in a header."""
    values = [b"\n".join(_json(event) for event in events) for events in _chunks(delivery.events, RECORD_EVENTS)]
    if delivery.broken_lines:
        values[-1] = b"\n".join([values[-1], *delivery.broken_lines])
    producer = AIOKafkaProducer(bootstrap_servers=shop.kafka, acks="all", compression_type="gzip")
    await producer.start()
    try:
        partitions = sorted(await producer.partitions_for(TOPIC))
        headers = [("account", shop.account.encode())]
        for number, value in enumerate(values):
            partition = partitions[number % len(partitions)]
            await producer.send_and_wait(TOPIC, value, partition=partition, headers=headers)
    finally:
        await producer.stop()
    return len(delivery.events) + len(delivery.broken_lines)


_DOORS: Mapping[str, Callable[[Shop, Delivery], Awaitable[int]]] = {
    "kable": _kable,
    "kable list": _kable_list,
    "bulk": _bulk,
    "autumn": _autumn,
    "kana": _kana,
    "kafka": _kafka,
}


async def _graphql(client: httpx.AsyncClient, query: str, variables: Mapping[str, Any]) -> Any:
    answer = await _post(client, "/graphql", {"query": query, "variables": variables})
    if "errors" in answer:
        raise DemoError(f"GraphQL refused: {answer['errors']}")
    return answer["data"]


async def _post(client: httpx.AsyncClient, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
    content = body if isinstance(body, bytes) else _json(body)
    answer = await client.post(path, content=content, headers={"Content-Type": "application/json", **(headers or {})})
    if answer.status_code != httpx.codes.OK:
        raise DemoError(f"POST {path} answered {answer.status_code}: {answer.text}")
    return answer.json()


async def _each(send: Callable[[Any], Awaitable[int]], things: Sequence[Any]) -> int:
    """Sends all, a few at once; the sum of what was acknowledged."""
    places = asyncio.Semaphore(AT_ONCE)

    async def in_turn(thing: Any) -> int:
        async with places:
            return await send(thing)

    return sum(await asyncio.gather(*map(in_turn, things)))


def _chunks(events: Sequence[Wire], size: int) -> list[Sequence[Wire]]:
    return [events[start : start + size] for start in range(0, len(events), size)]


def _json(document: Any) -> bytes:
    """JSON with decimals spelled as they are."""
    if isinstance(document, Mapping):
        return b"{" + b",".join(json.dumps(k).encode() + b":" + _json(v) for k, v in document.items()) + b"}"
    if isinstance(document, list | tuple):
        return b"[" + b",".join(map(_json, document)) + b"]"
    return str(document).encode() if isinstance(document, Decimal) else json.dumps(document).encode()
