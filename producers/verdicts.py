"""Verdicts of a door for many events at once: each is received or rejected by itself, a bad one sinks no other.

Rules: `received` means acknowledged by all in-sync replicas; `rejected` carries the faults; `unconfirmed` may or may
not be in the log, and sending it again with the same transactionId is safe. HTTP 200 when any was received and none
is unconfirmed, 400 when all were rejected, 503 with the whole list when any is unconfirmed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final, Literal

import msgspec

from pipeline.api_keys import Principal
from pipeline.event import Event, EventError, FieldError, decode_event
from producers.idempotency import named_by
from producers.incoming import Answer
from producers.intake import Delivery, Intake
from producers.problems import Problem, bad_fields, problem_answer, unavailable

_TURN_EVENTS: Final = 1_000  # decoded in one turn of the event loop: some 10 ms, then others may go on


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What the door says of the event at `index` of the request."""

    index: int
    status: Literal["received", "rejected", "unconfirmed"]
    transaction_id: str | None = None
    errors: tuple[FieldError, ...] = ()


class Verdicts(msgspec.Struct, frozen=True):
    """One verdict per event, in the order of the request."""

    events: list[Verdict]
    retry_after_s: int | None

    def count(self, status: str) -> int:
        """How many have this status."""
        return sum(verdict.status == status for verdict in self.events)


class Stated(msgspec.Struct, frozen=True, gc=False):
    """An event of another dialect. `defaulted`: the door filled in its timestamp."""

    event: Event
    defaulted: bool


Refused = tuple[FieldError, ...]  # why an item is no event


async def receive_lines(
    intake: Intake, sender: Principal, lines: Sequence[bytes], *, key: str | None = None
) -> Verdicts:
    """Decode each line, publish the good ones, tell what became of each. Timestamps are required.

    `key`: the Idempotency-Key of a request with one line.
    """
    arrival_us, ahead_max_us = intake.clock_us(), intake.ahead_max_us
    events: list[Event] = []
    indexes: list[int] = []  # of those in the request
    as_sent: list[bytes | None] = []
    refused: dict[int, Verdict] = {}
    for index, line in enumerate(lines):
        if index % _TURN_EVENTS == _TURN_EVENTS - 1:
            await asyncio.sleep(0)
        try:
            event = decode_event(line, arrival_us=arrival_us, ahead_max_us=ahead_max_us)
        except EventError as error:
            refused[index] = Verdict(index, "rejected", errors=error.errors)
            continue
        # what says all, and on one line, goes to the worker as it came: that spares writing it anew
        own_line = line if event.transaction_id is not None and b"\n" not in line else None
        if key is not None:
            named = named_by(event, key)
            if isinstance(named, FieldError):
                refused[index] = Verdict(index, "rejected", errors=(named,))
                continue
            event = named
        events.append(event)
        indexes.append(index)
        as_sent.append(own_line)
    delivery = await intake.receive(sender, events, as_sent=as_sent)
    return Verdicts(_in_order(refused, _of_delivery(indexes, delivery)), delivery.retry_after_s)


def unconfirmed(index: int, transaction_id: str, why: str) -> Verdict:
    """The verdict of an event that is not known to be in the log."""
    return Verdict(index, "unconfirmed", transaction_id, (FieldError("", "unavailable", why),))


async def receive_stated(intake: Intake, sender: Principal, items: Mapping[int, Stated | Refused]) -> Verdicts:
    """Publish the events among the items, tell what became of each item; its key is its index in the request."""
    stated = {index: item for index, item in items.items() if isinstance(item, Stated)}
    refused = {
        index: Verdict(index, "rejected", errors=item) for index, item in items.items() if not isinstance(item, Stated)
    }
    delivery = await intake.receive(
        sender, [item.event for item in stated.values()], defaulted=[item.defaulted for item in stated.values()]
    )
    return Verdicts(_in_order(refused, _of_delivery(list(stated), delivery)), delivery.retry_after_s)


def raise_unless_all(verdicts: Verdicts) -> None:
    """For dialects whose clients read the status alone: raises Problem unless every event was received.

    The good ones are in the log all the same, and `events` of the answer tells which; sending all again is safe where
    they carry ids.
    """
    received, rejected = verdicts.count("received"), verdicts.count("rejected")
    members = {"accepted": received, "rejected": rejected, "events": verdicts.events}
    if verdicts.retry_after_s is not None:
        detail = f"{received} of {len(verdicts.events)} events are in the log; send the others again, or all"
        raise unavailable(detail, verdicts.retry_after_s, members)
    if rejected and len(verdicts.events) == 1:
        raise bad_fields(verdicts.events[0].errors)
    if rejected:
        faults = _first_faults(verdicts)
        first = f"{faults[0].field}: {faults[0].message}"
        detail = f"{rejected} of {len(verdicts.events)} events were refused, the others received; see `events`; {first}"
        raise Problem(422, "bad_fields", detail, errors=faults, members=members)


def verdicts_answer(verdicts: Verdicts) -> Answer:
    """The answer for a list of events."""
    received, rejected = verdicts.count("received"), verdicts.count("rejected")
    members = {"accepted": received, "rejected": rejected, "events": verdicts.events}
    if verdicts.retry_after_s is not None:
        detail = (
            f"{received} of {len(verdicts.events)} events are in the log; send the unconfirmed ones again as listed"
        )
        return problem_answer(unavailable(detail, verdicts.retry_after_s, members))
    if not received:
        detail = f"none of the {rejected} events can be counted; see `events` for each one's faults"
        return problem_answer(Problem(400, "none_accepted", detail, errors=_first_faults(verdicts), members=members))
    return Answer(msgspec.json.encode(members))


def _of_delivery(indexes: list[int], delivery: Delivery) -> list[Verdict]:
    return [
        Verdict(index, "received", receipt.transaction_id)
        if receipt.error is None
        else unconfirmed(index, receipt.transaction_id, receipt.error)
        for index, receipt in zip(indexes, delivery.receipts, strict=True)
    ]


def _in_order(refused: Mapping[int, Verdict], others: list[Verdict]) -> list[Verdict]:
    """All of them, in the order of the request."""
    return sorted([*refused.values(), *others], key=attrgetter("index")) if refused else others


def _first_faults(verdicts: Verdicts) -> list[FieldError]:
    """The faults of the first few refused events, their fields as paths into the list."""
    refused = (verdict for verdict in verdicts.events if verdict.errors)
    return [
        FieldError(f"[{verdict.index}].{error.field}".rstrip("."), error.code, error.message)
        for verdict in islice(refused, 5)
        for error in verdict.errors
    ]
