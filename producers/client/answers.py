"""What the API's answer to a batch means for each of its events. Pure.

Rules: an event is received only where the API's own verdict says so, under its own id: a 200 from something else on the
way (a proxy's page, a portal) proves nothing. What is not known to be received or refused is sent again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from producers.client.event import Recorded

RETRY_AFTER_MAX_S: Final = 300.0  # longer is a mistake of something on the way; asking again costs one request


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One thing wrong with one field, as the API says it. `code` is stable, `message` is for people."""

    field: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was not received. `code` is stable: `bad_fields`, `too_large`, `denied`, `gave_up` or `unsent`.

    `status`: HTTP status, 0 where there was none. After `gave_up` and `unsent` the event may have been received:
    sending it again under its transactionId counts it once.
    """

    code: str
    message: str
    status: int = 0
    faults: tuple[FieldFault, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict for each event; `again` is not known to be in the log. `wait_s`: the API's own Retry-After, or None."""

    received: list[Recorded]
    refused: list[tuple[Recorded, Refusal]]
    again: list[Recorded]
    reason: str = ""
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing is known of any event: all are to be sent again."""

    reason: str
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The batch is too large as a whole; the same events may pass in smaller ones."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Denied:
    """The request was refused as a whole, for no fault of an event: sending it again unchanged is no use."""

    refusal: Refusal


Outcome = Judged | Unknown | TooLarge | Denied

_AGAIN: Final = frozenset({408, 425, 429})  # and every 5xx


def judge(status: int, retry_after: str | None, body: bytes, batch: Sequence[Recorded], *, now: datetime) -> Outcome:
    """What an HTTP answer says of the batch that it answers. `now`: for a Retry-After that is a date."""
    told = _object(body)
    wait_s = _seconds(retry_after, now)
    detail = str(told.get("detail") or body[:200].decode("utf-8", "replace"))
    reason = f"the API answers {status}: {detail}"
    verdicts = told.get("events")
    if isinstance(verdicts, list) and len(verdicts) == len(batch):
        return _of_verdicts(verdicts, batch, status, reason, wait_s)
    if status >= 500 or status in _AGAIN:
        return Unknown(reason, wait_s)
    if 200 <= status < 300:
        return Unknown(f"the answer {status} is none of the API's: {detail}", wait_s)
    if status == 413:
        return TooLarge(Refusal("too_large", reason, status))
    return Denied(Refusal("denied", reason, status, _faults(told.get("errors"))))


def _of_verdicts(
    verdicts: Sequence[Any], batch: Sequence[Recorded], status: int, reason: str, wait_s: float | None
) -> Judged:
    judged = Judged([], [], [], reason, wait_s)
    for event, verdict in zip(batch, verdicts, strict=True):
        found = verdict if isinstance(verdict, dict) else {}
        said = found.get("status")
        if said == "received" and found.get("transactionId") == event.transaction_id:
            judged.received.append(event)
        elif said == "rejected":
            judged.refused.append((event, _refusal(_faults(found.get("errors")), status)))
        else:
            judged.again.append(event)
    return judged


def _refusal(faults: tuple[FieldFault, ...], status: int) -> Refusal:
    message = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in faults)
    return Refusal("bad_fields", message or "the API refuses the event", status, faults)


def _faults(errors: object) -> tuple[FieldFault, ...]:
    found = [error for error in errors if isinstance(error, Mapping)] if isinstance(errors, list) else []
    return tuple(FieldFault(*(str(error.get(name, "")) for name in ("field", "code", "message"))) for error in found)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(retry_after: str | None, now: datetime) -> float | None:
    """RFC 9110: seconds, or a date. None where there is none that can be read."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_MAX_S)
