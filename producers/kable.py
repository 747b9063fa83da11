"""The door for Kable's events API: `POST /api/v1/events/create`, also `/api/v1/events`.

Rules: the dialect is the event's own. The body is one event or a list; `timestamp` is required. One event: 200 or the
refusal's own status (400 no JSON, 413 too large, 422 bad fields); without transactionId the header `Idempotency-Key`
is its id. A list: verdicts per event (see `producers.verdicts`). `clientId` need not be a known customer, nor the names
known features. CloudEvents share the address: see `producers.cloud_events`.
"""

from typing import Final

import msgspec

from pipeline.event import EventError, decode_event
from pipeline.ports import LogUnavailable
from producers.auth import principal_of
from producers.body import BODY_BYTES_MAX, check_media_type, read_body, split_list
from producers.cloud_events import is_cloud_event, receive_body, receive_request, states_cloud_events
from producers.door import Door, Tell
from producers.group_commit import Fate
from producers.idempotency import idempotency_key, refuse_for_list
from producers.incoming import JSON, Answer, Call, Incoming
from producers.intake import Intake
from producers.problems import bad_fields
from producers.verdicts import Verdict, Verdicts, receive_lines, unconfirmed, verdicts_answer

_LOOKED_AT: Final = ("idempotency-key", "content-encoding", "ce-specversion")  # headers that change what a body says


def kable_door(intake: Intake) -> Door:
    """This door."""

    async def create_events(request: Incoming) -> Answer:
        """One usage event or a list of them, or CloudEvents; answers once the log has acknowledged."""
        if is_cloud_event(request):
            return await receive_request(intake, request)
        body = (await read_body(request, compressed=True)).strip()
        sender = principal_of(request)
        if await states_cloud_events(body):
            return await receive_body(intake, sender, body)
        if body.startswith(b"["):
            refuse_for_list(request)
            return verdicts_answer(await receive_lines(intake, sender, await split_list(body)))
        verdicts = await receive_lines(intake, sender, [body], key=idempotency_key(request))
        verdict = verdicts.events[0]
        if verdict.status == "rejected":
            raise bad_fields(verdict.errors)
        return verdicts_answer(verdicts) if verdict.status == "unconfirmed" else _received(verdict)

    def create_at_once(call: Call, tell: Tell) -> bool:
        """One right event that needs no closer look."""
        if call.content_type[0] != JSON or not call.headers.keys().isdisjoint(_LOOKED_AT):
            return False
        check_media_type(call, JSON)
        line = (call.whole or b"").strip()
        if not line.startswith(b"{") or b'"specversion"' in line:
            return False
        try:
            event = decode_event(line, arrival_us=intake.clock_us(), ahead_max_us=intake.ahead_max_us)
        except EventError:
            return False

        def settled(fate: Fate) -> None:
            tell(lambda: _settled(identity, fate))

        own_line = line if event.transaction_id is not None and b"\n" not in line else None
        identity = intake.send(principal_of(call), event, settled, as_sent=own_line)
        return True

    return Door(
        ["/api/v1/events/create", "/api/v1/events"],
        create_events,
        summary="Record usage events (Kable, CloudEvents)",
        body_bytes_max=BODY_BYTES_MAX,
        at_once=create_at_once,
    )


def _settled(identity: str, fate: Fate) -> Answer:
    """What `create_events` answers. Raises the error that is a defect."""
    if fate is None:
        return _received(Verdict(0, "received", identity))
    if not isinstance(fate, LogUnavailable):
        raise fate
    return verdicts_answer(Verdicts([unconfirmed(0, identity, str(fate))], fate.retry_after_s))


def _received(verdict: Verdict) -> Answer:
    """One event's answer is a list's answer with the verdict on top as well."""
    body = {
        "status": verdict.status,
        "transactionId": verdict.transaction_id,
        "accepted": 1,
        "rejected": 0,
        "events": [verdict],
    }
    return Answer(msgspec.json.encode(body))
