"""The door for Autumn's API: `POST /v1/events` and `/v1/track`, `/v1/usage`, `/v1/check`.

Rules: `customer_id`, exactly one of `feature_id` and `event_name`, `value` (taken as the number is spelled, never
through a float), `properties`, `idempotency_key`, `entity_id`, and `timestamp` as an integer of epoch milliseconds or
RFC 3339 text; without it the time of arrival. An unknown customer is created, an unknown feature or event name is a
404. Setting usage is refused as `not_built` until entitlements exist, with 422 and not 5xx, which clients would
retry. Until then every check of a known feature answers "unlimited". Refusals are problem+json with `message` and
`code` beside, which Autumn's clients read.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec
from litestar import Response, Router, post
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from pipeline.api_keys import Principal
from pipeline.event import Event, EventError, FieldError, make_event
from producers.auth import needs, principal_of, require_scope
from producers.body import decode_object, read_body
from producers.intake import Intake
from producers.problems import AnyRequest, Problem, bad_fields, handle_with_message, unavailable

_BODY_BYTES_MAX: Final = 256 * 1024  # one event's data has at most 64 KiB
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
_CHECK_FIELDS: Final = ("customer_id", "feature_id", "required_balance", "send_event", "entity_id", "properties")
_OWN_NAMES: Final = {wire: own for own, wire in _TRACK_FIELDS.items()}
_BOTH_NAMES: Final = (
    "give feature_id or event_name, not both; check that it is the right one, "
    "especially with a mix of snake_case and kebab-case"
)


def autumn_router(intake: Intake) -> Router:
    """The routes of this door."""

    @post(
        ["/v1/events", "/v1/track"],
        status_code=200,
        summary="Record one usage event (Autumn)",
        tags=["events"],
        guards=[needs("ingest")],
    )
    async def track(request: AnyRequest) -> Response[bytes]:
        """One use of a feature, or one event by its name; answers once the log has acknowledged."""
        fields = decode_object(await read_body(request))
        event, defaulted = _event(fields, _TRACK_FIELDS, intake)
        return _json(await _record(intake, principal_of(request), event, defaulted=defaulted))

    @post("/v1/check", status_code=200, summary="Check access (Autumn)", tags=["checks"], guards=[needs("read")])
    async def check(request: AnyRequest) -> Response[bytes]:
        """Whether a customer may use a feature: always, until entitlements exist."""
        fields = decode_object(await read_body(request))
        return _json(await _check(intake, principal_of(request), fields))

    return Router(
        path="/",
        route_handlers=[track, check],
        request_max_body_size=_BODY_BYTES_MAX,
        exception_handlers={Exception: handle_with_message, HTTPException: handle_with_message},
    )


def autumn_usage_handler() -> HTTPRouteHandler:
    """`POST /v1/usage`, by itself: reading usage shares the path, and two routers cannot both answer its OPTIONS."""

    @post(
        "/v1/usage",
        status_code=200,
        summary="Set usage (Autumn); not built yet",
        tags=["events"],
        guards=[needs("ingest")],
        request_max_body_size=_BODY_BYTES_MAX,
        exception_handlers={Exception: handle_with_message, HTTPException: handle_with_message},
    )
    async def set_usage(request: AnyRequest) -> Response[bytes]:
        """Refused by name: kept half it would be wrong."""
        await read_body(request)
        told = "setting usage (kind `set`) is not built yet; record changes with POST /v1/events"
        raise bad_fields([FieldError("kind", "not_built", told)])

    return set_usage


async def _record(intake: Intake, principal: Principal, event: Event, *, defaulted: bool) -> dict[str, Any]:
    await _refuse_unknown(intake, principal.account, event)
    await intake.catalog.port.ensure_customers(principal.account, [event.client_id])
    delivery = await intake.receive(principal.account, [event], defaulted=defaulted)
    receipt = delivery.receipts[0]
    if receipt.error is not None:
        told = "the event is not confirmed; send it again with this idempotency_key"
        raise unavailable(told, delivery.retry_after_s or 5, {"idempotency_key": receipt.transaction_id})
    name = {"event_name": event.event_name} if event.feature_id is None else {"feature_id": event.feature_id}
    return {
        "message": "Event recorded successfully",
        "event_id": receipt.transaction_id,
        "customer_id": event.client_id,
        **name,
        "id": receipt.transaction_id,
        "code": "event_received",
    }


async def _check(intake: Intake, principal: Principal, fields: Mapping[str, Any]) -> dict[str, Any]:
    send_event = fields.get("send_event", False)
    if not isinstance(send_event, bool):
        raise bad_fields([FieldError("send_event", "type", "must be true or false")])
    try:
        event, _ = _event(_as_track(fields), _CHECK_FIELDS, intake)
    except Problem as problem:
        renamed = [
            FieldError("required_balance", e.code, e.message) if e.field == "value" and e.code != "unknown_field" else e
            for e in problem.errors
        ]
        raise bad_fields(renamed) from problem
    await _refuse_unknown(intake, principal.account, event)
    if send_event:
        require_scope(principal, "ingest")
        await _record(intake, principal, event, defaulted=True)
    return {
        "allowed": True,
        "code": "feature_found",
        "customer_id": event.client_id,
        "feature_id": event.feature_id,
        "balance": None,
        "usage": None,
        "included_usage": None,
        "unlimited": True,
        "overage_allowed": False,
        "next_reset_at": None,
    }


def _as_track(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A check as the event that it would send; both share all rules of their fields."""
    if fields.get("feature_id") is None:
        raise bad_fields([FieldError("feature_id", "required", "feature_id is required")])
    if "value" in fields:
        raise bad_fields([FieldError("value", "unknown_field", "a check takes required_balance instead")])
    renamed = {name: value for name, value in fields.items() if name not in ("required_balance", "send_event")}
    return {**renamed, "value": fields.get("required_balance", 1)}


def _event(fields: Mapping[str, Any], known: Iterable[str], intake: Intake) -> tuple[Event, bool]:
    """The event, and whether its timestamp was filled in here. Raises Problem naming fields in the dialect's words."""
    arrival_us = intake.clock_us()
    given = {wire: fields.get(own) for own, wire in _TRACK_FIELDS.items()}
    errors = _faults_of_dialect(fields, given, known)
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
            value=1 if given["value"] is None else given["value"],
            entity_id=given["entityId"],
            data=given["data"],
        )
    except EventError as error:
        raise bad_fields([*errors, *map(_renamed, error.errors)]) from error
    if errors:
        raise bad_fields(errors)
    return event, defaulted


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


async def _refuse_unknown(intake: Intake, account: str, event: Event) -> None:
    """Raises Problem 404 for a feature or event name that the account does not have."""
    if event.feature_id is not None:
        if await intake.catalog.has_feature(account, event.feature_id):
            return
        field, name, code = "feature_id", event.feature_id, "feature_not_found"
        told = f"there is no feature {name!r}; create it with POST /v1/catalog/features"
    else:
        name = event.event_name or ""
        if await intake.catalog.feeds_something(account, name):
            return
        field, code = "event_name", "event_name_not_found"
        told = f"no feature is fed by the event name {name!r}; add it to a feature's event names"
    told += _look_alike(intake, account, name)
    raise Problem(404, code, told, errors=[FieldError(field, code, told)])


def _look_alike(intake: Intake, account: str, name: str) -> str:
    """A hint for the usual mistake: the other parameter, or the other spelling."""
    catalog = intake.catalog.port.catalog
    for other in dict.fromkeys((name, name.replace("_", "-"), name.replace("-", "_"))):
        feature = catalog.feature(account, other)
        if feature is not None and not feature.archived:
            return f"; did you mean feature_id {other!r}?"
        if catalog.feature_ids_for(account, other):
            return f"; did you mean event_name {other!r}?"
    return ""


def _json(body: dict[str, Any]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=200, media_type="application/json")
