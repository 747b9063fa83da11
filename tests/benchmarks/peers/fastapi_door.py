"""The door that is compared with: a FastAPI endpoint of the same duty, as its documentation and aiokafka's write it.

Key checked, body validated by Pydantic, id made into the record's key, `send_and_wait`; acks of all in-sync replicas,
idempotence, linger of 2 ms and lz4 as the product's own writer has them. Served by uvicorn on uvloop, one worker.
"""

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

KEY = os.environ["BENCH_KEY"]
TOPIC = os.environ["BENCH_TOPIC"]


class Event(BaseModel):
    """What is sent."""

    customer_id: str
    event_name: str
    value: int
    timestamp: datetime
    idempotency_key: str
    properties: dict[str, Any]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The producer lives as long as the application."""
    app.state.producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["BENCH_KAFKA"],
        acks="all",
        enable_idempotence=True,
        linger_ms=2,
        compression_type="lz4",
        max_batch_size=512 << 10,
    )
    await app.state.producer.start()
    yield
    await app.state.producer.stop()


app = FastAPI(lifespan=lifespan)


@app.get("/readyz")
async def readyz() -> dict[str, bool]:
    """Whether it can be asked."""
    return {"ready": True}


@app.post("/v1/events")
async def track(event: Event, authorization: Annotated[str, Header()]) -> dict[str, str]:
    """One event; answers once the broker has acknowledged it."""
    if not hmac.compare_digest(authorization, f"Bearer {KEY}"):
        raise HTTPException(401)
    await app.state.producer.send_and_wait(TOPIC, event.model_dump_json().encode(), event.idempotency_key.encode())
    return {"message": "Event recorded successfully", "id": event.idempotency_key, "customer_id": event.customer_id}
