"""The door for Segment's libraries, their host set to `…/segment`: `POST /segment/v1/track`, `/segment/v1/batch`, …

Rules: Basic auth with the API key as user. Of a `track` call `userId` is the customer, `event` the event name,
`messageId` the id, `timestamp` the timestamp (without it the time of arrival) and `properties` the data; an account may
have each of them from another place of the message, and `value`, `featureId` and `entityId` too (`Account.segment`,
dotted paths). Calls that identify, group, alias or view are accepted and not metered; so is everything else that the
libraries send along. 200 once the log has acknowledged every event. A bad message of a batch sinks no other, but the
answer is then 422 with a verdict for each, which the libraries hand to `on_error`. Bodies may be gzip or zstd.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from pipeline.catalog import TEST_SUFFIX
from pipeline.event import ONE, EventError, FieldError, make_event
from producers.auth import principal_of
from producers.body import BODY_BYTES_MAX, EVENTS_MAX, decode_object, read_body, too_many
from producers.door import Door
from producers.idempotency import idempotency_key, named_by, refuse_for_list
from producers.incoming import Answer, Incoming
from producers.intake import Intake
from producers.problems import bad_fields
from producers.verdicts import Refused, Stated, raise_unless_all, receive_stated

NOT_METERED: Final = ("identify", "group", "page", "screen", "alias")
PATHS: Final = {
    "clientId": "userId",
    "timestamp": "timestamp",
    "transactionId": "messageId",
    "eventName": "event",
    "data": "properties",
}
_TURN_EVENTS: Final = 500  # looked at in one turn of the event loop
_DONE: Final = Answer(b'{"success":true}')
_DECODED_AT_ONCE_BYTES: Final = 128 * 1024  # what is larger is decoded beside the event loop


def segment_doors(intake: Intake) -> list[Door]:
    """The doors: one call, a batch, and the calls that are not metered."""

    async def track(request: Incoming) -> Answer:
        """A `track` call; answers once the log has acknowledged."""
        message = await _body(request)
        item = _stated(message, _paths(intake, request), intake)
        if isinstance(item, Stated) and (key := idempotency_key(request)) is not None:
            named = named_by(item.event, key, "messageId")
            item = (named,) if isinstance(named, FieldError) else msgspec.structs.replace(item, event=named)
        return await _receive(intake, request, {0: item})

    async def batch(request: Incoming) -> Answer:
        """Messages of any kind in `batch`; those that are no `track` call are not metered."""
        refuse_for_list(request)
        messages = (await _body(request)).get("batch")
        if not isinstance(messages, list) or not messages:
            raise bad_fields([FieldError("batch", "type", "must be a list of messages, at least one")])
        if len(messages) > EVENTS_MAX:
            raise too_many(len(messages))
        paths = _paths(intake, request)
        items: dict[int, Stated | Refused] = {}
        for index, message in enumerate(messages):
            if index % _TURN_EVENTS == _TURN_EVENTS - 1:
                await asyncio.sleep(0)
            item = _of_batch(message, paths, intake)
            if item is not None:
                items[index] = item
        return await _receive(intake, request, items)

    async def accept(request: Incoming) -> Answer:
        """Who a user is or what was looked at: nothing is recorded."""
        await _body(request)
        return _DONE

    return [
        _door(["/track"], track, "Record one usage event (Segment)"),
        _door(["/batch", "/import"], batch, "Record many usage events (Segment)"),
        _door([f"/{call}" for call in NOT_METERED], accept, "Accept a call that is not metered (Segment)"),
    ]


def _door(paths: Sequence[str], receive: Callable[[Incoming], Awaitable[Answer]], summary: str) -> Door:
    return Door(
        [f"/segment/v1{path}" for path in paths],
        receive,
        summary=summary,
        body_bytes_max=BODY_BYTES_MAX,
        with_message=True,
    )


async def _body(request: Incoming) -> dict[str, Any]:
    body = await read_body(request, compressed=True)
    if len(body) > _DECODED_AT_ONCE_BYTES:
        return await asyncio.to_thread(decode_object, body)
    return decode_object(body)


def _paths(intake: Intake, request: Incoming) -> dict[str, str]:
    """Where the account has the event's fields in a message."""
    account = intake.catalog.port.catalog.account(principal_of(request).account.removesuffix(TEST_SUFFIX))
    own = account.segment if account is not None else {}
    return {name: path for name, path in {**PATHS, **own}.items() if path}


async def _receive(intake: Intake, request: Incoming, items: Mapping[int, Stated | Refused]) -> Answer:
    raise_unless_all(await receive_stated(intake, principal_of(request), items))
    return _DONE


def _of_batch(message: object, paths: Mapping[str, str], intake: Intake) -> Stated | Refused | None:
    """The event of one message, its faults, or None for a call that is not metered."""
    if not isinstance(message, dict):
        return (FieldError("", "type", "must be a JSON object"),)
    kind = message.get("type")
    if kind == "track":
        return _stated(message, paths, intake)
    if kind in NOT_METERED:
        return None
    return (FieldError("type", "format", f"must be track, {', '.join(NOT_METERED)}"),)


def _stated(message: Mapping[str, Any], paths: Mapping[str, str], intake: Intake) -> Stated | Refused:
    """The event that a `track` call states, or every fault under the names that the message has."""
    given = {name: _at(message, path) for name, path in paths.items()}
    timestamp, event_name = given.get("timestamp"), given.get("eventName")
    faults: list[FieldError] = []
    if isinstance(timestamp, int | Decimal):
        faults.append(FieldError(paths["timestamp"], "type", "must be an RFC 3339 string, not a number"))
    if event_name is None and given.get("featureId") is None:
        name = paths.get("eventName") or paths.get("featureId") or "event"
        faults.append(FieldError(name, "required", f"{name} is required"))
    arrival_us = intake.clock_us()
    try:
        event = make_event(
            client_id=given.get("clientId"),
            timestamp=arrival_us if timestamp is None or faults else timestamp,
            arrival_us=arrival_us,
            ahead_max_us=intake.ahead_max_us,
            transaction_id=given.get("transactionId"),
            event_name=event_name,
            feature_id=given.get("featureId"),
            value=ONE if given.get("value") is None else given["value"],
            entity_id=given.get("entityId"),
            data=given.get("data"),
        )
    except EventError as error:
        faults += [_renamed(fault, paths) for fault in error.errors]
    return tuple(faults) if faults else Stated(event, timestamp is None)


def _at(message: object, path: str) -> object:
    """What lies at a dotted path, or None."""
    for name in path.split("."):
        if not isinstance(message, Mapping):
            return None
        message = message.get(name)
    return message


def _renamed(fault: FieldError, paths: Mapping[str, str]) -> FieldError:
    own = paths.get(fault.field, fault.field)
    return FieldError(own, fault.code, fault.message.replace(fault.field, own) if fault.field else fault.message)
