"""Recording beside something else: requests and calls that must not fail or wait because they are metered.

Rules: whatever goes wrong here is logged or told to `on_error`, never raised, and nothing waits for room.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from producers.client.answers import Refusal
from producers.client.event import InvalidEvent, Recorded, usage_event
from producers.client.outbox import Closed, OutboxFull
from producers.client.spool import SpoolError
from producers.client.tally import AsyncTally, Tally, put_async

Fields = Mapping[str, Any]  # the arguments of Tally.record
Seen = TypeVar("Seen")
EventOf = Callable[[Seen], Fields | None]

_NOT_RECORDED: Final = (OutboxFull, SpoolError, Closed)
_log = logging.getLogger("producers.client")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what came of it. `headers`: names in lower case; the last value of each. `status` 500 where the
    application raised before it answered. `scope`: ASGI's scope or WSGI's environ, where frameworks leave the user."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int
    response_bytes: int
    seconds: float
    scope: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has ended. `error`: what it raised, with `result` None."""

    args: tuple[Any, ...]
    seconds: float
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    error: BaseException | None = None


def observe(tally: Tally, event_of: EventOf[Seen], seen: Seen) -> None:
    """Records what `event_of` makes of `seen`; nothing where that is None."""
    event = _event(event_of, seen)
    if event is not None:
        try:
            tally.put(event, block_s=0)
        except _NOT_RECORDED as error:
            tally.tell(event, _refusal(error))


async def observe_async(tally: Tally | AsyncTally, event_of: EventOf[Seen], seen: Seen) -> None:
    """The same in an event loop, which a spool's commit does not hold."""
    event = _event(event_of, seen)
    if event is not None:
        try:
            if isinstance(tally, AsyncTally):
                await tally.put(event, block_s=0)
            else:
                await put_async(tally, [event], block_s=0)
        except _NOT_RECORDED as error:
            tally.tell(event, _refusal(error))


def _event(event_of: EventOf[Seen], seen: Seen) -> Recorded | None:
    try:
        fields = event_of(seen)
        return None if fields is None else usage_event(**fields)
    except InvalidEvent as error:
        _log.error("no event is recorded of %s: %s", type(seen).__name__, error)
    except Exception:  # noqa: BLE001 - logged with its trace
        # the program's own function: its mistake is not its users' to bear
        _log.exception("no event is recorded of %s", type(seen).__name__)
    return None


def _refusal(error: Exception) -> Refusal:
    return Refusal("not_recorded", str(error))
