"""The door for CloudEvents 1.0 over HTTP: structured, batched and binary, at Kable's address `/api/v1/events`.

Rules: `subject` is the customer, `type` the event name, `source` and `id` together the id (`transaction_id_of`), `time`
the timestamp, without it the time of arrival; `data` is a JSON object, also as `data_base64`. The form is told by the
media type, by the header `ce-specversion`, or by objects of plain JSON that carry `specversion`, as OpenMeter's client
sends them. Extension attributes (lower-case letters and digits) are taken and not metered; any other name is an error.
204 once the log has acknowledged every event. A bad event of a batch sinks no other, but the answer is then 422 with a
verdict for each: the dialect's clients look at the status alone. A list may be gzip or zstd.
"""

import asyncio
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from pipeline.api_keys import Principal
from pipeline.event import ID_CHARS_MAX, EventError, FieldError, make_event
from producers.auth import principal_of
from producers.body import decode_object, read_body, split_list
from producers.incoming import JSON, Answer, Incoming
from producers.intake import Intake
from producers.problems import Problem, bad_fields
from producers.verdicts import Refused, Stated, raise_unless_all, receive_stated

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
_PREFIX: Final = "ce-"
_SPEC_VERSION: Final = "specversion"
_TEXTS: Final = ("specversion", "id", "source", "type", "subject", "time")
_NAMES: Final = {"clientId": "subject", "eventName": "type", "timestamp": "time", "transactionId": "id"}
_TURN_EVENTS: Final = 500  # decoded in one turn of the event loop
_attribute_name = re.compile(r"[a-z0-9]+|data_base64").fullmatch
_json_type = re.compile(r"[^/]+/(?:[^;]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL).fullmatch


def is_cloud_event(request: Incoming) -> bool:
    """Whether the headers alone say so: the media type of the dialect, or the binary form."""
    return f"{_PREFIX}{_SPEC_VERSION}" in request.headers or request.content_type[0].lower() in (STRUCTURED, BATCH)


async def states_cloud_events(body: bytes) -> bool:
    """Whether a body of plain JSON is of this dialect: an object with `specversion`, or a list that starts with one."""
    if b'"specversion"' not in body:
        return False
    try:
        first = (await split_list(body))[0] if body.startswith(b"[") else body
        return _SPEC_VERSION in decode_object(first)
    except Problem:
        return False  # the event's own dialect explains what is wrong


async def receive_request(intake: Intake, request: Incoming) -> Answer:
    """A request that `is_cloud_event`: 204 once everything is acknowledged. Raises Problem."""
    sender = principal_of(request)
    if request.content_type[0].lower() in (STRUCTURED, BATCH):
        body = (await read_body(request, STRUCTURED, BATCH, compressed=True)).strip()
        if request.content_type[0].lower() == BATCH and not body.startswith(b"["):
            raise bad_fields([FieldError("", "type", "a batch must be a JSON array")])
        return await receive_body(intake, sender, body)
    return await _receive(intake, sender, [_stated(*await _binary(request), intake)])


async def receive_body(intake: Intake, sender: Principal, body: bytes) -> Answer:
    """One event in structured form, or a list of them. Raises Problem."""
    if not body.startswith(b"["):
        return await _receive(intake, sender, [_decoded(body, intake)])
    items: list[Stated | Refused] = []
    for index, item in enumerate(await split_list(body)):
        if index % _TURN_EVENTS == _TURN_EVENTS - 1:
            await asyncio.sleep(0)
        items.append(_decoded(item, intake))
    return await _receive(intake, sender, items)


def transaction_id_of(source: str, event_id: str) -> str:
    """The id of an event: unique with its source only, so both; the source's length keeps `a`+`bc` from `ab`+`c`."""
    return f"{len(source)}:{source}{event_id}"


async def _receive(intake: Intake, sender: Principal, items: list[Stated | Refused]) -> Answer:
    raise_unless_all(await receive_stated(intake, sender, dict(enumerate(items))))
    return Answer(b"", 204, None)


def _decoded(body: bytes, intake: Intake) -> Stated | Refused:
    try:
        attributes = decode_object(body)
    except Problem as problem:
        return problem.errors
    errors = [
        FieldError(name, "unknown_field", "is no attribute: those have lower-case letters and digits only")
        for name in attributes
        if not _attribute_name(name)
    ]
    data = attributes.pop("data", None)
    packed = attributes.pop("data_base64", None)
    if data is not None and packed is not None:
        errors.append(FieldError("data_base64", "exclusive", "give data or data_base64, not both"))
    elif packed is not None:
        try:
            data = decode_object(b64decode(packed, validate=True))
        except (TypeError, ValueError, Problem) as error:
            errors.append(FieldError("data_base64", "format", f"must be a JSON object in Base64 ({error})"))
    return _stated(attributes, data, intake, errors)


async def _binary(request: Incoming) -> tuple[dict[str, Any], object]:
    """Attributes from the headers, percent-decoded, and data from the body. Raises Problem."""
    attributes: dict[str, Any] = {
        name.lower().removeprefix(_PREFIX): _header_text(name.lower(), value)
        for name, value in request.headers.items()
        if name.lower().startswith(_PREFIX)
    }
    if not await request.body():
        return attributes, None
    media_type = request.content_type[0]
    if not _json_type(media_type):
        raise _no_json(media_type or "none")
    return attributes, decode_object(await read_body(request, media_type, compressed=True))


def _header_text(name: str, value: str) -> str:
    """An attribute's value: percent-encoded UTF-8 as the binding says, or bare UTF-8 as some clients write it."""
    try:
        return unquote(value.encode("latin-1").decode("utf-8"), errors="strict")
    except UnicodeDecodeError as error:
        raise bad_fields([FieldError(name, "encoding", "is no UTF-8, percent-encoded")]) from error


def _no_json(given: str) -> Problem:
    told = f"data must be JSON to be metered; send Content-Type: {JSON}, not {given}"
    return Problem(415, "unsupported_media_type", told, errors=[FieldError("Content-Type", "unsupported", told)])


def _stated(
    attributes: Mapping[str, Any], data: object, intake: Intake, errors: list[FieldError] | None = None
) -> Stated | Refused:
    """The event that attributes and data state, or every fault in the dialect's words."""
    found = _faults(attributes, data, errors or [])
    arrival_us = intake.clock_us()
    source, event_id, time = attributes.get("source"), attributes.get("id"), attributes.get("time")
    whole = isinstance(source, str) and isinstance(event_id, str)
    try:
        event = make_event(
            client_id=attributes.get("subject"),
            event_name=attributes.get("type"),
            timestamp=time if isinstance(time, str) else arrival_us,
            arrival_us=arrival_us,
            ahead_max_us=intake.ahead_max_us,
            transaction_id=transaction_id_of(str(source), str(event_id)) if whole else None,
            data=data,
        )
    except EventError as error:
        told = {(fault.field, fault.code) for fault in found}
        found += [fault for fault in map(_renamed, error.errors) if (fault.field, fault.code) not in told]
    return tuple(found) if found else Stated(event, time is None)


def _faults(attributes: Mapping[str, Any], data: object, found: list[FieldError]) -> list[FieldError]:
    """What the event's own rules would let pass or could not name."""
    for name in _TEXTS:
        given = attributes.get(name)
        if given is None and name != "time":
            found.append(FieldError(name, "required", f"{name} is required"))
        elif given is not None and not isinstance(given, str):
            found.append(FieldError(name, "type", "must be a string"))
        elif given == "":
            found.append(FieldError(name, "range", "must not be empty"))
    if isinstance(version := attributes.get(_SPEC_VERSION), str) and version not in ("", "1.0"):
        found.append(FieldError(_SPEC_VERSION, "unsupported", "must be 1.0"))
    content_type = attributes.get("datacontenttype")
    if (
        data is not None
        and content_type is not None
        and not (isinstance(content_type, str) and _json_type(content_type))
    ):
        found.append(FieldError("datacontenttype", "unsupported", "data must be JSON to be metered"))
    return found


def _renamed(error: FieldError) -> FieldError:
    if error.field == "transactionId" and error.code == "range":
        return FieldError(
            "id", "range", f"with its source it has more than {ID_CHARS_MAX} characters, the most of an id"
        )
    own = _NAMES.get(error.field, error.field)
    return FieldError(own, error.code, error.message.replace(error.field, own) if error.field else error.message)
