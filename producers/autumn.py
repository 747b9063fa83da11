"""The door for Autumn's API: recording use, checking access, and setting usage, which is refused.

Addresses are those of the documents (`POST /v1/events`, `/v1/usage`, `/v1/check`) and of its clients (`/v1/track`,
`/v1/balances.track`, …). Rules: see `producers.autumn_event` for the fields. An unknown customer is created, as
`customer_data` describes it; an unknown feature or event name is a 404. Without `idempotency_key` the header
`Idempotency-Key` is the id, and of a batch what the ids of its items are made of (autumn-js can give them none). A
batch is taken whole or not at all: its answer has no room for the fate of each. Setting
usage is refused as `not_built` until entitlements exist, with 422 and not 5xx, which clients would retry. Until then
every check of a known feature answers "unlimited". Refusals are problem+json with `message` and `code` beside, which
Autumn's clients read.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from litestar import Response, Router, post
from litestar.handlers import HTTPRouteHandler

from pipeline.api_keys import Principal
from pipeline.catalog_input import AlreadyExists, CatalogError, customer_from
from pipeline.event import Event, FieldError
from pipeline.ports import LogUnavailable
from producers.auth import needs, principal_of, require_scope
from producers.autumn_event import checked, tracked, tracked_quickly
from producers.body import BODY_BYTES_MAX, check_media_type, decode_object, read_body, split_list
from producers.bounded import in_time
from producers.door import Door, Tell
from producers.group_commit import Fate
from producers.idempotency import idempotency_key, named_by, part_key
from producers.incoming import JSON, Answer, Call, Incoming
from producers.intake import Delivery, Intake
from producers.problems import ANSWERED_WITH_MESSAGE, AnyRequest, Problem, bad_fields, unavailable
from producers.verdicts import Stated

_BODY_BYTES_MAX: Final = 256 * 1024  # one event's data has at most 64 KiB
_TURN_EVENTS: Final = 500  # decoded in one turn of the event loop
_NEWER: Final = "/v1/balances."  # the clients of today want other fields in the answer


def autumn_doors(intake: Intake) -> list[Door]:
    """The doors: one event, and many."""

    async def track(request: Incoming) -> Answer:
        """One use of a feature, or one event by its name; answers once the log has acknowledged."""
        body = await read_body(request)
        stated, line, described = _tracked(body, intake)
        named = _under_key(stated, request)
        own = line if named is stated else None
        transaction_id = await _record(intake, principal_of(request), named, described, own)
        newer = request.scope["path"].startswith(_NEWER)
        return _answer(_recorded(named.event, transaction_id, newer=newer))

    def track_at_once(call: Call, tell: Tell) -> bool:
        """A plain event whose names and customer are known."""
        check_media_type(call, JSON)
        if "idempotency-key" in call.headers or "content-encoding" in call.headers:
            return False
        plain = tracked_quickly(call.whole or b"", intake)
        if plain is None:
            return False
        principal, (stated, line) = principal_of(call), plain
        event, catalog = stated.event, intake.catalog.port.catalog
        if not _is_known(intake, principal.account, event) or not catalog.customer(principal.account, event.client_id):
            return False
        newer = call.scope["path"].startswith(_NEWER)

        def settled(fate: Fate) -> None:
            tell(lambda: _answer(_recorded(event, _confirmed(identity, fate), newer=newer)))

        own = line if _says_all(stated, line) else None
        identity = intake.send(principal, event, settled, defaulted=stated.defaulted, as_sent=own)
        return True

    async def batch_track(request: Incoming) -> Answer:
        """A list of uses, each as for one; all of them or, when one is wrong, none. 202, as the clients expect."""
        key = idempotency_key(request)
        body = (await read_body(request)).strip()
        if not body.startswith(b"["):
            raise bad_fields([FieldError("", "type", "must be a JSON array of events")])
        account = principal_of(request).account
        items = await _all_tracked(intake, account, await split_list(body))
        if key is not None:
            items = [_as_part(item, key, index) for index, item in enumerate(items)]
        await in_time(intake.catalog.port.ensure_customers(account, [item.event.client_id for item in items]))
        delivery = await intake.receive(
            principal_of(request), [item.event for item in items], defaulted=[item.defaulted for item in items]
        )
        if delivery.retry_after_s is not None:
            raise _unconfirmed(delivery)
        return _answer({"success": True, "event_ids": [receipt.transaction_id for receipt in delivery.receipts]}, 202)

    return [
        Door(
            ["/v1/events", "/v1/track", "/v1/balances.track"],
            track,
            summary="Record one usage event (Autumn)",
            body_bytes_max=_BODY_BYTES_MAX,
            with_message=True,
            at_once=track_at_once,
        ),
        Door(
            ["/v1/balances.batch_track"],
            batch_track,
            summary="Record many usage events (Autumn)",
            body_bytes_max=BODY_BYTES_MAX,
            status=202,
            with_message=True,
        ),
    ]


def autumn_router(intake: Intake) -> Router:
    """The routes that check."""

    @post(
        ["/v1/check", "/v1/balances.check"],
        status_code=200,
        summary="Check access (Autumn)",
        tags=["checks"],
        guards=[needs("read")],
        request_max_body_size=_BODY_BYTES_MAX,
    )
    async def check(request: AnyRequest) -> Response[bytes]:
        """Whether a customer may use a feature: always, until entitlements exist."""
        fields = decode_object(await read_body(request))
        principal = principal_of(request)
        stated = checked(fields, intake)
        await _refuse_unknown(intake, principal.account, stated.event)
        if fields.get("send_event"):
            require_scope(principal, "ingest")
            await _record(intake, principal, _under_key(stated, request), fields.get("customer_data"))
        newer = request.scope["path"].startswith(_NEWER)
        return _answer(_allowed(stated.event, newer=newer)).response()

    return Router(path="/", route_handlers=[check], exception_handlers=ANSWERED_WITH_MESSAGE)


def autumn_usage_handlers() -> list[HTTPRouteHandler]:
    """What sets usage. Handlers by themselves: reading usage shares a path, and two routers cannot both answer its
    OPTIONS."""

    @post(
        ["/v1/usage", "/v1/balances.update"],
        status_code=200,
        summary="Set usage (Autumn); not built yet",
        tags=["events"],
        guards=[needs("ingest")],
        request_max_body_size=_BODY_BYTES_MAX,
        exception_handlers=ANSWERED_WITH_MESSAGE,
    )
    async def set_usage(request: AnyRequest) -> Response[bytes]:
        """Refused by name: kept half it would be wrong."""
        await read_body(request)
        told = "setting usage (kind `set`) is not built yet; record changes with POST /v1/events"
        raise bad_fields([FieldError("kind", "not_built", told)])

    return [set_usage]


async def know_customer(intake: Intake, account: str, customer_id: str, described: Mapping[str, Any] | None) -> None:
    """Makes the customer known; one that nobody described yet is described as given. Raises Problem 422."""
    given = {
        name: value for name, value in (described or {}).items() if name in ("name", "email", "metadata") and value
    }
    if given and not intake.catalog.port.catalog.is_described(account, customer_id):
        try:
            await in_time(intake.catalog.port.create_customer(customer_from(account, {"id": customer_id, **given})))
        except AlreadyExists:
            pass  # another process described it in between; the first description stands
        except CatalogError as error:
            faults = [FieldError(f"customer_data.{e.field}", e.code, e.message) for e in error.errors]
            raise bad_fields(faults) from error
    elif intake.catalog.port.catalog.customer(account, customer_id) is None:  # asked here: most are known
        await in_time(intake.catalog.port.ensure_customers(account, [customer_id]))


def _tracked(body: bytes, intake: Intake) -> tuple[Stated, bytes | None, Mapping[str, Any] | None]:
    """The event of a call to track, its line where it can go to the log as it is, and how the customer is described.
    Raises Problem."""
    plain = tracked_quickly(body, intake)
    if plain is None:
        fields = decode_object(body)
        return tracked(fields, intake), None, fields.get("customer_data")
    stated, line = plain
    return stated, line if _says_all(stated, line) else None, None


def _says_all(stated: Stated, line: bytes) -> bool:
    """Whether the line can go to the log as it is."""
    return stated.event.transaction_id is not None and not stated.defaulted and b"\n" not in line


def _under_key(stated: Stated, request: Incoming) -> Stated:
    named = named_by(stated.event, idempotency_key(request), "idempotency_key")
    if isinstance(named, FieldError):
        raise bad_fields([named])
    return stated if named is stated.event else Stated(named, stated.defaulted)


def _as_part(stated: Stated, key: str, index: int) -> Stated:
    """An item of a batch under the batch's key: its own id stands, otherwise key and place are it."""
    if stated.event.transaction_id is not None:
        return stated
    return Stated(msgspec.structs.replace(stated.event, transaction_id=part_key(key, index)), stated.defaulted)


async def _record(
    intake: Intake,
    principal: Principal,
    stated: Stated,
    customer_data: Mapping[str, Any] | None,
    line: bytes | None = None,
) -> str:
    """The event's id once the log has it; `line` says the same where it is known. Raises Problem."""
    await _refuse_unknown(intake, principal.account, stated.event)
    await know_customer(intake, principal.account, stated.event.client_id, customer_data)
    delivery = await intake.receive(principal, [stated.event], defaulted=stated.defaulted, as_sent=[line])
    receipt = delivery.receipts[0]
    if receipt.error is not None:
        raise _unconfirmed_event(receipt.transaction_id, delivery.retry_after_s or 5)
    return receipt.transaction_id


def _confirmed(identity: str, fate: Fate) -> str:
    """The event's id, when the log has it. Raises Problem, and the error that is a defect."""
    if fate is None:
        return identity
    raise _unconfirmed_event(identity, fate.retry_after_s) if isinstance(fate, LogUnavailable) else fate


def _unconfirmed_event(identity: str, retry_after_s: int) -> Problem:
    told = "the event is not confirmed; send it again with this idempotency_key"
    return unavailable(told, retry_after_s, {"idempotency_key": identity})


async def _all_tracked(intake: Intake, account: str, lines: Sequence[bytes]) -> list[Stated]:
    """The events of a batch. Raises Problem with the faults of all, their fields as paths into the list."""
    items: list[Stated] = []
    problems: dict[int, Problem] = {}
    for index, line in enumerate(lines):
        if index % _TURN_EVENTS == _TURN_EVENTS - 1:
            await asyncio.sleep(0)
        try:
            items.append(tracked(decode_object(line), intake))
        except Problem as problem:
            problems[index] = problem
    if not problems:
        problems = await _unknown_names(intake, account, items)
    if problems:
        faults = [
            FieldError(f"[{index}].{e.field}".rstrip("."), e.code, e.message)
            for index, problem in list(problems.items())[:20]
            for e in problem.errors
        ]
        first = next(iter(problems.values()))
        detail = f"nothing was recorded: {len(problems)} of {len(lines)} events are refused; {faults[0].message}"
        raise Problem(404 if first.status == 404 else 422, first.code, detail, errors=faults)
    return items


async def _unknown_names(intake: Intake, account: str, items: Sequence[Stated]) -> dict[int, Problem]:
    """Problems 404 by index; the catalog is read to its end once, however many names it does not have."""
    if any(not _is_known(intake, account, item.event) for item in items):
        await intake.catalog.catch_up()
    return {
        index: _not_found(intake, account, item.event)
        for index, item in enumerate(items)
        if not _is_known(intake, account, item.event)
    }


async def _refuse_unknown(intake: Intake, account: str, event: Event) -> None:
    """Raises Problem 404 for a feature or event name that the account does not have."""
    if not _is_known(intake, account, event):
        await intake.catalog.catch_up()
    if not _is_known(intake, account, event):
        raise _not_found(intake, account, event)


def _is_known(intake: Intake, account: str, event: Event) -> bool:
    """Whether the feature or event name is in what this process has read of the catalog."""
    catalog = intake.catalog.port.catalog
    if event.feature_id is None:
        return bool(catalog.feature_ids_for(account, event.event_name or ""))
    feature = catalog.feature(account, event.feature_id)
    return feature is not None and not feature.archived


def _not_found(intake: Intake, account: str, event: Event) -> Problem:
    if event.feature_id is not None:
        field, name, code = "feature_id", event.feature_id, "feature_not_found"
        told = f"there is no feature {name!r}; create it with POST /v1/catalog/features"
    else:
        field, name, code = "event_name", event.event_name or "", "event_name_not_found"
        told = f"no feature is fed by the event name {name!r}; add it to a feature's event names"
    told += _look_alike(intake, account, name)
    return Problem(404, code, told, errors=[FieldError(field, code, told)])


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


def _unconfirmed(delivery: Delivery) -> Problem:
    events = [
        {
            "index": index,
            "status": "received" if receipt.error is None else "unconfirmed",
            "idempotency_key": receipt.transaction_id,
        }
        for index, receipt in enumerate(delivery.receipts)
    ]
    told = "not every event is confirmed; send the others again, or all, each with its idempotency_key"
    return unavailable(told, delivery.retry_after_s or 5, {"events": events})


def _recorded(event: Event, transaction_id: str, *, newer: bool) -> dict[str, Any]:
    """The answer of the documents, `id` and `code` for autumn-py, the rest for the clients of today."""
    name = {"event_name": event.event_name} if event.feature_id is None else {"feature_id": event.feature_id}
    entity = {} if event.entity_id is None else {"entity_id": event.entity_id}
    return {
        "message": "Event recorded successfully",
        "event_id": transaction_id,
        "customer_id": event.client_id,
        **name,
        "id": transaction_id,
        "code": "event_received",
        **({"value": event.value, "balance": None, **entity} if newer else {}),
    }


def _allowed(event: Event, *, newer: bool) -> dict[str, Any]:
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
        **({"entity_id": event.entity_id, "required_balance": event.value, "flag": None} if newer else {}),
    }


_encode = msgspec.json.Encoder(decimal_format="number").encode


def _answer(body: dict[str, Any], status: int = 200) -> Answer:
    return Answer(_encode(body), status)
