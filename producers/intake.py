"""Intake: the one way from a door to the log, shared by all doors of a process.

Rules: an event gets its transactionId before anything is sent, so that an answer can name it even when Kafka is away
and sending again counts once. What is in flight is bounded: past the bound a request is refused with 429 at once; so
it is past its key's limit (`producers.rate_limits`), here for every door.
Before a door says that a key, customer or feature does not exist it reads the catalog to its end, since another
process may have made it a moment ago.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from pipeline.api_keys import Principal
from pipeline.event import Event
from pipeline.ports import LogUnavailable
from producers.group_commit import Fate, Settled
from producers.ports import CatalogPort
from producers.problems import Problem
from producers.publisher import Publisher, Receipt
from producers.rate_limits import RateLimits

IN_FLIGHT_EVENTS_MAX: Final = 200_000  # about 200 MB at 1 kB an event
_KEY_PREFIX: Final = "tally_"  # anything else is no key of ours, not even one made a moment ago


class Delivery(msgspec.Struct, frozen=True):
    """Receipts in the order of the events. `retry_after_s` is set when some event is not known to be in the log."""

    receipts: list[Receipt]
    retry_after_s: int | None


class CatalogReader:
    """Look-ups that do not say no before the catalog has been read to its end."""

    def __init__(self, port: CatalogPort) -> None:
        self.port = port
        self._reading: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The version that this process has read."""
        return self.port.catalog.version

    def known_principal(self, secret: str) -> Principal | None:
        """Whom the key belongs to, as far as the catalog has been read; None says nothing."""
        return self.port.principal(secret)

    async def principal(self, secret: str) -> Principal | None:
        """Whom the key belongs to, or None. Raises CatalogUnavailable when that cannot be told now."""
        found = self.port.principal(secret)
        if found is None and secret.startswith(_KEY_PREFIX):
            await self.catch_up()
            found = self.port.principal(secret)
        return found

    async def has_customer(self, account: str, customer_id: str) -> bool:
        """Whether the account has this customer."""
        if self.port.catalog.customer(account, customer_id) is None:
            await self.catch_up()
        return self.port.catalog.customer(account, customer_id) is not None

    async def has_feature(self, account: str, feature_id: str) -> bool:
        """Whether the account has this feature, not archived."""
        if not self._feature_is_there(account, feature_id):
            await self.catch_up()
        return self._feature_is_there(account, feature_id)

    async def feeds_something(self, account: str, event_name: str) -> bool:
        """Whether the event name feeds any feature of the account."""
        if not self.port.catalog.feature_ids_for(account, event_name):
            await self.catch_up()
        return bool(self.port.catalog.feature_ids_for(account, event_name))

    async def catch_up(self) -> None:
        """Reads to the log's end as of this call. Callers share the reading that begins after they asked, and its
        failure: one at a time is under way, one more is wanted at most."""
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._reading), name="catalog catch-up")
            self._next.add_done_callback(_note_failure)
        await asyncio.shield(self._next)

    async def _read_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._reading, self._next = self._next, None
        await self.port.catch_up()

    def _feature_is_there(self, account: str, feature_id: str) -> bool:
        feature = self.port.catalog.feature(account, feature_id)
        return feature is not None and not feature.archived


class Intake:
    """Publishes what doors have checked. `clock_us` tells UTC microseconds since 1970."""

    def __init__(
        self,
        publisher: Publisher,
        catalog: CatalogReader,
        *,
        clock_us: Callable[[], int],
        ahead_max_us: int,
        new_id: Callable[[], str],
        in_flight_events_max: int = IN_FLIGHT_EVENTS_MAX,
        limits: RateLimits | None = None,
    ) -> None:
        self.catalog = catalog
        self.clock_us = clock_us
        self.ahead_max_us = ahead_max_us
        self._publisher = publisher
        self._new_id = new_id
        self._in_flight_events_max = in_flight_events_max
        self._limits = limits or RateLimits(time.monotonic)
        self._in_flight_events = 0

    async def receive(
        self,
        sender: Principal,
        events: Sequence[Event],
        *,
        defaulted: bool | Sequence[bool] = False,
        as_sent: Sequence[bytes | None] | None = None,
    ) -> Delivery:
        """Waits for the log's acknowledgement, at most its time-out. Raises Problem 429 when too much is in flight,
        or past the limit of the sender's key: nothing was published then. `defaulted`, `as_sent`: see
        Publisher.publish."""
        if not events:
            return Delivery([], None)
        self._admit(sender, len(events))
        named = [event if event.transaction_id is not None else self._named(event) for event in events]
        self._in_flight_events += len(named)
        try:
            receipts = await self._publisher.publish(
                sender.account, named, catalog_version=self.catalog.version, defaulted=defaulted, as_sent=as_sent
            )
        except LogUnavailable as error:
            receipts = [Receipt(event.transaction_id or "", str(error)) for event in named]
            return Delivery(receipts, error.retry_after_s)
        finally:
            self._in_flight_events -= len(named)
        return Delivery(receipts, 5 if any(receipt.error for receipt in receipts) else None)

    def send(
        self,
        sender: Principal,
        event: Event,
        settled: Settled,
        *,
        defaulted: bool = False,
        as_sent: bytes | None = None,
    ) -> str:
        """`receive` of one event for callers that do not wait; its transactionId. Raises as `receive` does. `settled`
        is called once, later: with None when the log has the event, LogUnavailable when it is not known to."""
        self._admit(sender, 1)
        named = event if event.transaction_id is not None else self._named(event)
        self._in_flight_events += 1

        def landed(fate: Fate) -> None:
            self._in_flight_events -= 1
            settled(fate)

        version = self.catalog.version
        self._publisher.send(
            sender.account, named, landed, catalog_version=version, defaulted=defaulted, as_sent=as_sent
        )
        return named.transaction_id or ""

    def _admit(self, sender: Principal, events: int) -> None:
        if self._in_flight_events + events > self._in_flight_events_max:
            raise Problem(429, "busy", "too many events are in flight; send them again", headers={"Retry-After": "1"})
        self._limits.take(sender, events)

    def _named(self, event: Event) -> Event:
        return msgspec.structs.replace(event, transaction_id=self._new_id())


def _note_failure(reading: asyncio.Task[None]) -> None:
    """Whoever waited has been told; when all have gone away nobody needs to be."""
    if not reading.cancelled():
        reading.exception()
