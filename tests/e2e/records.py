"""Records as any Kafka client sends them, and the rejects that come of them."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from running_stack import RunningStack

TOPIC = "tally.events"
TIME = "2026-11-03T10:20:00Z"


def event(**fields: Any) -> bytes:
    """One line; a field that is None is left out."""
    line = {"clientId": "c", "timestamp": TIME, **fields}
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode()


def send(
    stack: RunningStack,
    account: str,
    records: Sequence[tuple[bytes, int]],
    headers: Sequence[tuple[str, bytes]] = (),
) -> list[int]:
    """Each value to its partition, with the header `account`; their offsets."""

    async def run() -> list[int]:
        producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all")
        await producer.start()
        try:
            told = [("account", account.encode()), *headers]
            return [
                (await producer.send_and_wait(TOPIC, value, partition=partition, headers=told)).offset
                for value, partition in records
            ]
        finally:
            await producer.stop()

    return asyncio.run(run())
