"""Customers and features as Autumn's clients ask for them beside recording use.

Rules: `POST /v1/customers.get_or_create` and `POST /v1/customers` make an unknown customer and give a known one as it
is; what belongs to billing in their fields is taken and not kept. `POST /v1/customers.get`, `GET /v1/customers/{id}`,
`POST /v1/features.list` and `/v1/features.get` look up. A customer has no balances while every use is unlimited; to set
one (`POST /v1/customers/{id}/balances`) is refused as not built. Features are made at `/v1/catalog/features`.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import Response, Router, get, post
from litestar.params import FromPath

from pipeline.catalog import TEST_SUFFIX, Customer, Feature
from pipeline.event import ID_CHARS_MAX, FieldError
from producers.auth import needs, principal_of
from producers.autumn import know_customer
from producers.body import decode_object, read_body
from producers.intake import Intake
from producers.problems import ANSWERED_WITH_MESSAGE, AnyRequest, Problem, bad_fields

_BODY_BYTES_MAX: Final = 256 * 1024
_INGEST: Final = [needs("ingest")]
_READ: Final = [needs("read")]


def autumn_customers_router(intake: Intake) -> Router:
    """The routes."""

    @post("/customers.get_or_create", status_code=200, guards=_INGEST, summary="Get or make a customer (Autumn)")
    async def get_or_create(request: AnyRequest) -> Response[bytes]:
        """The customer, made when it is unknown."""
        fields = decode_object(await read_body(request))
        return await _made(intake, request, _id(fields, "customer_id"), fields)

    @post("/customers", status_code=200, guards=_INGEST, summary="Get or make a customer (Autumn)")
    async def create(request: AnyRequest) -> Response[bytes]:
        """The customer, made when it is unknown."""
        fields = decode_object(await read_body(request))
        return await _made(intake, request, _id(fields, "id"), fields)

    @post("/customers.get", status_code=200, guards=_READ, summary="One customer (Autumn)")
    async def get_customer(request: AnyRequest) -> Response[bytes]:
        """The customer by its id."""
        customer_id = _id(decode_object(await read_body(request)), "customer_id")
        return _json(_customer(await _found(intake, principal_of(request).account, customer_id)))

    @get("/customers/{customer_id:str}", guards=_READ, summary="One customer (Autumn)")
    async def customer(request: AnyRequest, customer_id: FromPath[str]) -> Response[bytes]:
        """The customer by its id."""
        return _json(_customer(await _found(intake, principal_of(request).account, customer_id)))

    @post(
        "/customers/{customer_id:str}/balances",
        status_code=200,
        guards=_INGEST,
        summary="Set balances (Autumn); not built yet",
    )
    async def set_balances(request: AnyRequest, customer_id: FromPath[str]) -> Response[bytes]:
        """Refused by name: kept half it would be wrong."""
        await read_body(request)
        told = f"setting the balances of {customer_id!r} is not built yet; record changes with POST /v1/events"
        raise bad_fields([FieldError("kind", "not_built", told)])

    @post("/features.list", status_code=200, guards=_READ, summary="List features (Autumn)")
    async def list_features(request: AnyRequest) -> Response[bytes]:
        """The account's features that are not archived."""
        await intake.catalog.catch_up()
        found = intake.catalog.port.catalog.features(principal_of(request).account)
        return _json({"list": [_feature(feature) for feature in found if not feature.archived]})

    @post("/features.get", status_code=200, guards=_READ, summary="One feature (Autumn)")
    async def get_feature(request: AnyRequest) -> Response[bytes]:
        """A feature by its id."""
        account, feature_id = principal_of(request).account, _id(decode_object(await read_body(request)), "feature_id")
        if not await intake.catalog.has_feature(account, feature_id):
            told = f"there is no feature {feature_id!r}; create it with POST /v1/catalog/features"
            raise Problem(404, "feature_not_found", told, errors=[FieldError("feature_id", "feature_not_found", told)])
        feature = intake.catalog.port.catalog.feature(account, feature_id)
        return _json(_feature(feature) if feature is not None else {})

    return Router(
        path="/v1",
        route_handlers=[get_or_create, create, get_customer, customer, set_balances, list_features, get_feature],
        tags=["catalog"],
        request_max_body_size=_BODY_BYTES_MAX,
        exception_handlers=ANSWERED_WITH_MESSAGE,
    )


async def _made(intake: Intake, request: AnyRequest, customer_id: str, fields: Mapping[str, Any]) -> Response[bytes]:
    account = principal_of(request).account
    if intake.catalog.port.catalog.customer(account, customer_id) is None:
        await intake.catalog.catch_up()
    await know_customer(intake, account, customer_id, fields)
    return _json(_customer(await _found(intake, account, customer_id)))


async def _found(intake: Intake, account: str, customer_id: str) -> Customer:
    if await intake.catalog.has_customer(account, customer_id):
        found = intake.catalog.port.catalog.customer(account, customer_id)
        if found is not None:
            return found
    told = f"there is no customer {customer_id!r}; POST /v1/customers.get_or_create makes it"
    raise Problem(404, "customer_not_found", told, errors=[FieldError("customer_id", "customer_not_found", told)])


def _id(fields: Mapping[str, Any], field: str) -> str:
    given = fields.get(field)
    if given is None:
        raise bad_fields([FieldError(field, "required", f"{field} is required")])
    if not isinstance(given, str):
        raise bad_fields([FieldError(field, "type", "must be a string")])
    if not 1 <= len(given) <= ID_CHARS_MAX:
        raise bad_fields([FieldError(field, "range", f"must have 1 to {ID_CHARS_MAX} characters, not {len(given)}")])
    if any("\ud800" <= c <= "\udfff" for c in given):
        raise bad_fields([FieldError(field, "encoding", "has a lone surrogate, which is no character")])
    return given


def _customer(customer: Customer) -> dict[str, Any]:
    """One customer for all versions of the clients: `products` and `features` are autumn-py's, `subscriptions` and what
    follows those of today."""
    return {
        "id": customer.id,
        "name": customer.name or None,
        "email": customer.email or None,
        "created_at": customer.created_us // 1_000,
        "fingerprint": None,
        "stripe_id": None,
        "env": "sandbox" if customer.account.endswith(TEST_SUFFIX) else "live",
        "metadata": customer.metadata,
        "products": [],
        "features": {},
        "send_email_receipts": False,
        "billing_controls": {},
        "subscriptions": [],
        "purchases": [],
        "licenses": [],
        "balances": {},
        "flags": {},
    }


def _feature(feature: Feature) -> dict[str, Any]:
    return {
        "id": feature.id,
        "name": feature.name,
        "type": "boolean" if feature.type == "BINARY" else "metered",
        "consumable": feature.type != "BINARY",
        "archived": feature.archived,
        "event_names": feature.event_names,
    }


def _json(body: dict[str, Any]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=200, media_type="application/json")
