"""The outbox: events that were recorded and are not yet known to be received. In memory here, on disk in `spool`.

Rules: events stay in it until they are removed by name, so that whatever happens to a request they are still there.
The order is that of recording. One sender reads it at a time (`claim`).
"""

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, Protocol

from producers.client.event import Recorded

CLOSED: Final = "the client is closed; record before close(), or make another client"


class OutboxFull(Exception):  # noqa: N818 - a state, which passes
    """There is no room for the event now: it is not recorded."""


class Closed(RuntimeError):  # noqa: N818 - a state
    """The client is closed: the event is not recorded."""


class Outbox(Protocol):
    """What a sender and its recorders share. Every method may be called from any thread; none waits for room."""

    @property
    def durable(self) -> bool:
        """Whether what is in it outlives the process."""

    @property
    def poll_s(self) -> float | None:
        """How often to look for what other processes have put in or removed; None: nobody else can."""

    def put(self, events: Sequence[Recorded]) -> None:
        """All of them or none. Raises OutboxFull, or Closed after `close`."""

    def claim(self) -> bool:
        """Whether this process is the one that sends; stays so once it is."""

    def peek(self, events_max: int, bytes_max: int) -> list[Recorded]:
        """The oldest, in order; at least one if there is any. They stay."""

    def remove(self, events: Collection[Recorded]) -> None:
        """Received or told as refused: they are never seen again."""

    def waiting(self) -> int:
        """How many are in it."""

    def waiting_up_to(self, position: int) -> int:
        """How many are in it that were recorded up to there."""

    def has(self, count: int) -> bool:
        """Whether so many or more are in it."""

    def last_position(self) -> int:
        """The position of what was put in last."""

    def suspend(self) -> None:
        """Just before a fork: takes the lock and lets go of whatever a child must not share."""

    def resume(self, *, in_child: bool) -> None:
        """Just after it, in both processes."""

    def close(self) -> None:
        """Takes nothing more from this process."""


class MemoryOutbox:
    """In this process's memory, bounded in events and bytes."""

    durable: Final = False
    poll_s: Final = None

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._events: dict[int, Recorded] = {}
        self._bytes = 0
        self._last = 0
        self._closed = False

    def put(self, events: Sequence[Recorded]) -> None:
        """See Outbox."""
        size = sum(len(event.line) for event in events)
        with self._lock:
            if self._closed:
                raise Closed(CLOSED)
            count = len(self._events)
            if count + len(events) > self._events_max or (count and self._bytes + size > self._bytes_max):
                raise OutboxFull(f"{count} events, {self._bytes} bytes are waiting to be sent")
            for event in events:
                self._last += 1
                self._events[self._last] = replace(event, position=self._last)
            self._bytes += size

    def claim(self) -> bool:
        """See Outbox."""
        return True

    def peek(self, events_max: int, bytes_max: int) -> list[Recorded]:
        """See Outbox."""
        with self._lock:
            return within(list(islice(self._events.values(), events_max)), bytes_max)

    def remove(self, events: Collection[Recorded]) -> None:
        """See Outbox."""
        with self._lock:
            for event in events:
                if self._events.pop(event.position, None) is not None:
                    self._bytes -= len(event.line)

    def waiting(self) -> int:
        """See Outbox."""
        return len(self._events)

    def waiting_up_to(self, position: int) -> int:
        """See Outbox."""
        with self._lock:
            return sum(1 for found in self._events if found <= position)

    def has(self, count: int) -> bool:
        """See Outbox."""
        return len(self._events) >= count

    def last_position(self) -> int:
        """See Outbox."""
        return self._last

    def suspend(self) -> None:
        """See Outbox."""
        self._lock.acquire()

    def resume(self, *, in_child: bool) -> None:
        """The parent's events are the parent's to send."""
        if in_child:
            self._lock = threading.Lock()
            self._events, self._bytes = {}, 0
        else:
            self._lock.release()

    def close(self) -> None:
        """What is still in it can be looked at and removed."""
        with self._lock:
            self._closed = True


def within(events: list[Recorded], bytes_max: int) -> list[Recorded]:
    """The first of them whose lines fit, and one at least."""
    size = 0
    for count, event in enumerate(events):
        size += len(event.line) + 1
        if size > bytes_max and count:
            return events[:count]
    return events
