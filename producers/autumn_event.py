"""Autumn's dialect: the fields of a call become the event.

Rules: `customer_id`, exactly one of `feature_id` and `event_name`, `value` (taken as the number is spelled, never
through a float), `properties`, `idempotency_key`, `entity_id`, and `timestamp` as an integer of epoch milliseconds or
RFC 3339 text; without it the time of arrival. What the clients may send beside and what changes nothing while every use
is unlimited (`overage_behavior`, `async`, `with_preview`) is checked and taken; `lock` and `product_id` would, and are
refused as not built. Any other field is an error.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from pipeline.event import ONE, EventError, FieldError, decode_event, make_event
from producers.intake import Intake
from producers.problems import Problem, bad_fields
from producers.verdicts import Stated

# the dialect's field -> the event's
_TRACK_FIELDS: Final = {
    "customer_id": "clientId",
    "feature_id": "featureId",
    "event_name": "eventName",
    "value": "value",
    "properties": "data",
    "idempotency_key": "transactionId",
    "timestamp": "timestamp",
    "entity_id": "entityId",
}
_CHECK_FIELDS: Final = (
    "customer_id",
    "feature_id",
    "required_balance",
    "send_event",
    "entity_id",
    "properties",
    "customer_data",
    "with_preview",
)
_BESIDE: Final = ("customer_data", "overage_behavior", "async")
_NOT_BUILT: Final = {
    "lock": "reserving a balance is not built yet",
    "product_id": "checking a product is not built yet; check a feature",
}
_NOT_GIVEN: Final = msgspec.Raw(b"")
_OWN_NAMES: Final = {wire: own for own, wire in _TRACK_FIELDS.items()}
_BOTH_NAMES: Final = (
    "give feature_id or event_name, not both; check that it is the right one, "
    "especially with a mix of snake_case and kebab-case"
)


def tracked_quickly(body: bytes, intake: Intake) -> tuple[Stated, bytes] | None:
    """What `tracked` makes of a body, with the line of the event's own dialect that says the same; None for whatever is
    not plain and right, which `tracked` then explains or takes. The fields are renamed without being looked at, and
    the event's own decoder judges them."""
    try:
        wire = _decode_wire(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    line = _encode_line(_Line(*msgspec.structs.astuple(wire)))
    if (
        b"\\" in body
        or body.count(b":") != line.count(b":")  # a key that comes twice comes out once
        or (wire.feature_id is None) is (wire.event_name is None)
        or bytes(wire.value).startswith(b'"')  # taken in the event's own dialect
    ):
        return None
    arrival_us = intake.clock_us()
    try:
        event = decode_event(
            line, arrival_us=arrival_us, ahead_max_us=intake.ahead_max_us, timestamp_default_us=arrival_us
        )
    except EventError:
        return None
    return Stated(event, wire.timestamp is None), line


def tracked(fields: Mapping[str, Any], intake: Intake) -> Stated:
    """The event that a call to track states. Raises Problem naming fields in the dialect's words."""
    errors = _faults_beside(fields)
    as_track = {name: value for name, value in fields.items() if name not in _NOT_BUILT}
    return _event(as_track, (*_TRACK_FIELDS, *_BESIDE), intake, errors)


def checked(fields: Mapping[str, Any], intake: Intake) -> Stated:
    """The event that a check would send: a use of `required_balance`, by default 1. Raises Problem."""
    errors = _faults_beside(fields)
    if fields.get("feature_id") is None and fields.get("product_id") is None:
        errors.append(FieldError("feature_id", "required", "feature_id is required"))
    if "value" in fields:
        errors.append(FieldError("value", "unknown_field", "a check takes required_balance instead"))
    if errors:
        raise bad_fields(errors)
    beside = ("required_balance", "send_event", "with_preview", *_NOT_BUILT)
    as_track = {name: value for name, value in fields.items() if name not in beside}
    as_track["value"] = fields.get("required_balance")
    try:
        return _event(as_track, _CHECK_FIELDS, intake, [])
    except Problem as problem:
        renamed = [
            FieldError("required_balance", e.code, e.message) if e.field == "value" else e for e in problem.errors
        ]
        raise bad_fields(renamed) from problem


def _faults_beside(fields: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong with the fields that are no part of the event."""
    errors = [FieldError(name, "not_built", told) for name, told in _NOT_BUILT.items() if fields.get(name) is not None]
    errors += [
        FieldError(name, "type", "must be true or false")
        for name in ("async", "send_event", "with_preview")
        if not isinstance(fields.get(name), bool | None)
    ]
    if fields.get("overage_behavior") not in (None, "cap", "overflow"):
        errors.append(FieldError("overage_behavior", "format", "must be cap or overflow"))
    if not isinstance(fields.get("customer_data"), dict | None):
        errors.append(FieldError("customer_data", "type", "must be an object"))
    return errors


def _event(fields: Mapping[str, Any], known: Iterable[str], intake: Intake, errors: list[FieldError]) -> Stated:
    arrival_us = intake.clock_us()
    given = {wire: fields.get(own) for own, wire in _TRACK_FIELDS.items()}
    errors += _faults_of_dialect(fields, given, known)
    defaulted = given["timestamp"] is None or isinstance(given["timestamp"], Decimal)
    try:
        event = make_event(
            client_id=given["clientId"],
            timestamp=arrival_us if defaulted else _microseconds(given["timestamp"]),
            arrival_us=arrival_us,
            ahead_max_us=intake.ahead_max_us,
            transaction_id=given["transactionId"],
            event_name=given["eventName"],
            feature_id=given["featureId"],
            value=ONE if given["value"] is None else given["value"],
            entity_id=given["entityId"],
            data=given["data"],
        )
    except EventError as error:
        raise bad_fields([*errors, *map(_renamed, error.errors)]) from error
    if errors:
        raise bad_fields(errors)
    return Stated(event, defaulted)


def _faults_of_dialect(fields: Mapping[str, Any], given: Mapping[str, Any], known: Iterable[str]) -> list[FieldError]:
    """What the event's own rules would let pass or could not name."""
    errors = [
        FieldError(name, "unknown_field", f"is no field here; fields are {', '.join(known)}")
        for name in fields
        if name not in {*known, "value"}
    ]
    if given["eventName"] is None and given["featureId"] is None:
        errors.append(FieldError("feature_id", "required", "give feature_id or event_name"))
    if isinstance(given["value"], str):
        errors.append(FieldError("value", "type", "must be a number, not a string"))
    if isinstance(given["timestamp"], Decimal):
        errors.append(FieldError("timestamp", "type", "must be an integer of epoch milliseconds, or RFC 3339 text"))
    return errors


def _microseconds(timestamp: object) -> object:
    if isinstance(timestamp, int) and not isinstance(timestamp, bool):
        return timestamp * 1_000
    return timestamp


def _renamed(error: FieldError) -> FieldError:
    own = _OWN_NAMES.get(error.field, error.field)
    if error.code == "exclusive":
        return FieldError(own, error.code, _BOTH_NAMES)
    return FieldError(own, error.code, error.message.replace(error.field, own) if error.field else error.message)


class _Wire(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A plain call to track, not checked."""

    customer_id: str
    timestamp: str | None = None
    idempotency_key: str | None = None
    event_name: str | None = None
    feature_id: str | None = None
    value: msgspec.Raw = _NOT_GIVEN
    entity_id: str | None = None
    properties: msgspec.Raw = _NOT_GIVEN


class _Line(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """The same fields under the event's own names, in the same order."""

    client_id: str
    timestamp: str | None = None
    transaction_id: str | None = None
    event_name: str | None = None
    feature_id: str | None = None
    value: msgspec.Raw = _NOT_GIVEN
    entity_id: str | None = None
    data: msgspec.Raw = _NOT_GIVEN


_decode_wire = msgspec.json.Decoder(_Wire).decode
_encode_line = msgspec.json.Encoder().encode
