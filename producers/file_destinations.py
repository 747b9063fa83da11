"""Where `tally send` sends to: straight to Kafka, or to the API of another machine.

Rules: both try again for `patience_s` while the other side is away, always with the same ids, so that nothing counts
twice; after that they raise DestinationAway. A request refused as a whole (a wrong key) is not tried again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import httpx
import msgspec

from pipeline.event import Event, FieldError, encode_event
from pipeline.ports import LogUnavailable
from producers.files import DestinationAway
from producers.publisher import Publisher

PATIENCE_S: Final = 60.0
_WAIT_FIRST_S: Final = 0.25
_WAIT_MAX_S: Final = 5.0
_TIMEOUT_S: Final = 30.0
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})

Faults = tuple[FieldError, ...]


class Nowhere:
    """The destination of a dry run, which delivers nothing."""

    async def deliver(self, events: Sequence[Event]) -> Sequence[Faults]:
        """Raises RuntimeError: nothing may come here."""
        raise RuntimeError(f"a dry run would have sent {len(events)} events")


class KafkaDestination:
    """Publishes to the events topic for one account. `catalog_version`: what the worker must at least have read."""

    def __init__(
        self, publisher: Publisher, *, account: str, catalog_version: int, patience_s: float = PATIENCE_S
    ) -> None:
        self._publisher = publisher
        self._account = account
        self._catalog_version = catalog_version
        self._patience_s = patience_s

    async def deliver(self, events: Sequence[Event]) -> Sequence[Faults]:
        """No faults: what Kafka takes is received. Raises DestinationAway."""
        left = list(events)
        patience = _Patience(self._patience_s)
        while left:
            try:
                receipts = await self._publisher.publish(self._account, left, catalog_version=self._catalog_version)
            except LogUnavailable as error:
                await patience.wait(str(error))
                continue
            failed = [(event, r.error) for event, r in zip(left, receipts, strict=True) if r.error is not None]
            left = [event for event, _ in failed]
            if failed:
                await patience.wait(str(failed[0][1]))
        return [()] * len(events)


class ApiDestination:
    """Posts to `/v1/events/batch` of an API. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        patience_s: float = PATIENCE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"},
            timeout=_TIMEOUT_S,
            transport=transport,
        )
        self._patience_s = patience_s

    async def __aenter__(self) -> "ApiDestination":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def deliver(self, events: Sequence[Event]) -> Sequence[Faults]:
        """The API's faults per event. Raises DestinationAway, also when it refuses the request as a whole."""
        faults: dict[int, Faults] = {}
        left = list(enumerate(events))
        patience = _Patience(self._patience_s)
        while left:
            lines = b"\n".join(encode_event(event) for _, event in left)
            try:
                answer = await self._client.post("/v1/events/batch", content=lines)
            except httpx.TransportError as error:
                await patience.wait(f"the API does not answer: {error!r}")
                continue
            verdicts = _verdicts(answer, len(left))
            if verdicts is None:
                await patience.wait(f"the API answers {answer.status_code}: {answer.text[:200]}")
                continue
            unconfirmed = []
            for (index, event), verdict in zip(left, verdicts, strict=True):
                if verdict["status"] == "unconfirmed":
                    unconfirmed.append((index, event))
                else:
                    faults[index] = msgspec.convert(verdict.get("errors", ()), Faults)
            left = unconfirmed
            if left:
                await patience.wait("the API could not write some events")
        return [faults[index] for index in range(len(events))]


class _Patience:
    """Waits longer each time, with jitter, until there is none left."""

    def __init__(self, seconds: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._until_s = now_s() + seconds
        self._wait_s = _WAIT_FIRST_S

    async def wait(self, reason: str) -> None:
        """Returns when it is time to try again; raises DestinationAway when it is over."""
        pause_s = self._wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing
        if self._now_s() + pause_s > self._until_s:
            raise DestinationAway(f"gave up: {reason}")
        await asyncio.sleep(pause_s)
        self._wait_s = min(2 * self._wait_s, _WAIT_MAX_S)


def _verdicts(answer: httpx.Response, count: int) -> list[dict[str, Any]] | None:
    """The verdicts of an answer; None when it is to be tried again. Raises DestinationAway for a refusal."""
    try:
        body = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {}
    verdicts = body.get("events")
    if isinstance(verdicts, list) and len(verdicts) == count:
        return verdicts
    if answer.status_code in _RETRIED:
        return None
    raise DestinationAway(f"the API refused with {answer.status_code}: {body.get('detail', answer.text[:200])}")
