"""The client of a program that records usage: `Tally`, and `AsyncTally` for asyncio.

Rules: `record` checks the event, gives it its id and instant, and returns once it is queued, or durable where there is
a spool; sending is the sender's. Both clients have the same sender, in a thread of its own, so that neither a busy
event loop nor one that has ended keeps an event back.
"""

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self

from producers.client.answers import Refusal
from producers.client.event import Recorded, usage_event
from producers.client.outbox import MemoryOutbox, Outbox, OutboxFull
from producers.client.sender import Sender, Sending, Stats
from producers.client.spool import Spool, Synchronous
from producers.client.wire import Wire

OnError = Callable[[Recorded, Refusal], object]
AsyncOnError = Callable[[Recorded, Refusal], Awaitable[None] | object]

QUEUE_EVENTS_MAX: Final = 10_000
QUEUE_BYTES_MAX: Final = 64 << 20
SPOOL_BYTES_MAX: Final = 1 << 30
BLOCK_S: Final = 5.0
TIMEOUT_S: Final = 30.0

_TOLD_WAIT_S: Final = 30.0  # how long the sender waits for an event loop to take an on_error
_log = logging.getLogger("producers.client")


class Tally:
    """Records usage events. Any thread may use it; make one for the program, and close it or use it with `with`.

    `url`, `key`: the API and a key with the scope `ingest` (default: the environment's TALLY_API_KEY). `spool`: a file
    in which events wait until they are received, whatever happens to the program. `on_error(event, refusal)`: told of
    each event that is not received, in the sender's thread; without it that is logged. `block_s`: how long `record`
    waits for room at most (0: not at all, None: for ever). The rest is in the README's table.
    Raises ValueError for settings that make no sense, SpoolError when the spool cannot be opened.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        spool: str | os.PathLike[str] | None = None,
        spool_bytes_max: int = SPOOL_BYTES_MAX,
        synchronous: Synchronous = "NORMAL",
        on_error: OnError | None = None,
        queue_events_max: int = QUEUE_EVENTS_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        block_s: float | None = BLOCK_S,
        timeout_s: float = TIMEOUT_S,
        sending: Sending | None = None,
    ) -> None:
        wire = Wire(url, os.environ.get("TALLY_API_KEY", "") if key is None else key, timeout_s=timeout_s)
        self._outbox: Outbox = (
            MemoryOutbox(queue_events_max, queue_bytes_max)
            if spool is None
            else Spool(spool, bytes_max=spool_bytes_max, synchronous=synchronous)
        )
        self._on_error = on_error
        self._block_s = block_s
        self._many_max = queue_events_max
        self._sender = Sender(self._outbox, wire, sending or Sending(), self._tell)
        if self.durable:
            self._sender.start()  # what a program before this one has left

    @property
    def durable(self) -> bool:
        """Whether recorded events outlive the program."""
        return self._outbox.durable

    def record(
        self,
        client_id: str,
        *,
        event_name: str | None = None,
        feature_id: str | None = None,
        value: int | str | Decimal = 1,
        data: Mapping[str, Any] | None = None,
        timestamp: datetime | str | None = None,
        transaction_id: str | None = None,
        entity_id: str | None = None,
    ) -> str:
        """Takes one event; its transactionId. With a spool, returns once it is durable.

        `timestamp`: default now. `transaction_id`: default a new UUIDv7. Waits for room up to `block_s`. Raises
        InvalidEvent naming the argument; OutboxFull, SpoolError or Closed where the event is not recorded.
        """
        event = usage_event(
            client_id,
            event_name=event_name,
            feature_id=feature_id,
            value=value,
            data=data,
            timestamp=timestamp,
            transaction_id=transaction_id,
            entity_id=entity_id,
        )
        self._sender.put([event], self._block_s)
        return event.transaction_id

    def record_many(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Takes all of them or none, with a spool in one commit; their transactionIds. Each is a mapping of `record`'s
        arguments. Raises what `record` raises, and ValueError for more than the queue can hold."""
        made = [usage_event(**event) for event in events]
        self._sender.put(self._bounded(made), self._block_s)
        return [event.transaction_id for event in made]

    def flush(self, timeout_s: float | None = 30.0) -> int:
        """Waits until what was recorded before is received or refused, up to that long (None: for ever); how many
        events are left. An attempt is made at once, also in the midst of a back-off."""
        return self._sender.flush(timeout_s)

    def stats(self) -> Stats:
        """Counts, and why events wait where they do."""
        return self._sender.stats()

    def close(self, timeout_s: float | None = None) -> int:
        """Takes no more, and sends what there is for up to that long (default: `close_timeout_s`). How many events were
        not received: without a spool each was told to `on_error` as `unsent`. Called at exit by itself."""
        return self._sender.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # -- for the package

    @property
    def poll_s(self) -> float | None:
        """How often to look for room that other processes make."""
        return self._outbox.poll_s

    def put(self, event: Recorded, *, block_s: float | None) -> None:
        """What `record` does with an event that is made."""
        self._sender.put([event], block_s)

    def tell(self, event: Recorded, refusal: Refusal) -> None:
        """Reports an event that was never put, as one that is refused."""
        self._tell(event, refusal)

    # -- private

    def _bounded(self, events: Sequence[Recorded]) -> Sequence[Recorded]:
        if len(events) > self._many_max:
            raise ValueError(f"{len(events)} events at once; at most queue_events_max, {self._many_max}")
        return events

    def _tell(self, event: Recorded, refusal: Refusal) -> None:
        if self._on_error is None:
            _log.error("event %s is not received: %s (%s)", event.transaction_id, refusal.message, refusal.code)
            return
        try:
            self._on_error(event, refusal)
        except Exception:  # noqa: BLE001 - logged with its trace
            # the program's own mistake must not keep other events from being sent
            _log.exception("on_error failed for event %s: %s", event.transaction_id, refusal.message)


class AsyncTally:
    """The same for asyncio: takes the arguments of Tally. `on_error` may be a coroutine function; it runs in the event
    loop that has recorded last, and where that has ended, in the sender's thread."""

    def __init__(
        self, url: str, key: str | None = None, *, on_error: AsyncOnError | None = None, **settings: Any
    ) -> None:
        self._block_s: float | None = settings.pop("block_s", BLOCK_S)
        self._on_error = on_error
        self._loop: asyncio.AbstractEventLoop | None = None
        self.tally = Tally(url, key, on_error=None if on_error is None else self._call, block_s=0, **settings)

    async def record(self, client_id: str, **fields: Any) -> str:
        """As Tally.record, which see for the arguments; waits for room without holding the loop. When it is cancelled
        while it waits for room nothing is recorded; while it waits for a spool's commit, that is done all the same."""
        event = usage_event(client_id, **fields)
        await self.put(event, block_s=self._block_s)
        return event.transaction_id

    async def record_many(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """As Tally.record_many."""
        made = [usage_event(**event) for event in events]
        await self._put(self.tally._bounded(made), self._block_s)
        return [event.transaction_id for event in made]

    async def flush(self, timeout_s: float | None = 30.0) -> int:
        """As Tally.flush."""
        return await asyncio.to_thread(self.tally.flush, timeout_s)

    def stats(self) -> Stats:
        """As Tally.stats."""
        return self.tally.stats()

    async def close(self, timeout_s: float | None = None) -> int:
        """As Tally.close."""
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self.tally.close, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def put(self, event: Recorded, *, block_s: float | None) -> None:
        """What `record` does with an event that is made."""
        await self._put([event], block_s)

    def tell(self, event: Recorded, refusal: Refusal) -> None:
        """Reports an event that was never put; returns at once."""
        asyncio.get_running_loop().run_in_executor(None, self.tally.tell, event, refusal)

    # -- private

    async def _put(self, events: Sequence[Recorded], block_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        await put_async(self.tally, events, block_s=block_s)

    def _call(self, event: Recorded, refusal: Refusal) -> None:
        """In the sender's thread."""
        loop = self._loop
        if loop is None or not loop.is_running():
            asyncio.run(self._told(event, refusal))
            return
        told = asyncio.run_coroutine_threadsafe(self._told(event, refusal), loop)
        try:
            told.result(_TOLD_WAIT_S)
        except (FutureTimeout, CancelledError) as error:
            raise RuntimeError("the event loop did not run on_error to its end") from error

    async def _told(self, event: Recorded, refusal: Refusal) -> None:
        if self._on_error is not None:
            found = self._on_error(event, refusal)
            if inspect.isawaitable(found):
                await found


async def put_async(tally: Tally, events: Sequence[Recorded], *, block_s: float | None) -> None:
    """Tally.put without holding the event loop: neither for room nor for a spool's commit."""
    sender = tally._sender
    loop, room = asyncio.get_running_loop(), asyncio.Event()
    full: OutboxFull | None = None
    stop = sender.listen(lambda: _set(loop, room)) if block_s != 0 else None
    try:
        async with asyncio.timeout(block_s or None):
            while True:
                room.clear()
                try:
                    if not tally.durable:
                        return sender.put(events, 0)
                    return await asyncio.to_thread(sender.put, events, 0)
                except OutboxFull as error:
                    full = error
                    if block_s == 0:
                        raise
                with suppress(TimeoutError):  # another process that empties a spool tells nobody here
                    await asyncio.wait_for(room.wait(), tally.poll_s)
    except TimeoutError:
        raise full or OutboxFull("the spool did not answer in time") from None
    finally:
        if stop is not None:
            stop()


def _set(loop: asyncio.AbstractEventLoop, room: asyncio.Event) -> None:
    """From any thread; a loop that has ended waits for nothing."""
    try:
        loop.call_soon_threadsafe(room.set)
    except RuntimeError:
        return
