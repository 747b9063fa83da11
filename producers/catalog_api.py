"""REST of the catalog: `/v1/catalog/features`, `customers`, `dimensions` and `keys`.

Rules: the account comes from the API key; reading needs the scope `read`, changing `admin`. Field names are those of
catalog files. POST creates (201; 409 `exists`), PATCH changes the given fields, PUT gives the others their defaults,
DELETE of a key revokes it, POST to its `rotate` makes its successor. An answer to a change is given once this process
has read the change back. Errors are problem+json: 404 `not_found`, 409 `exists`, 422 with every bad field, 503 with
Retry-After while Kafka is away. An id stands at the end of the address, percent-encoded; it may have slashes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.params import FromPath, QueryParameter

from pipeline.catalog import TEST_SUFFIX, Customer, Dimension, Feature, Key, test_mode_account
from pipeline.catalog_input import (
    customer_fields,
    customer_from,
    dimension_fields,
    dimension_from,
    feature_fields,
    feature_from,
)
from pipeline.catalog_service import CatalogService
from pipeline.event import format_timestamp
from pipeline.ports import StoreError, StoreUnavailable
from producers.auth import needs, principal_of
from producers.body import decode_object, read_body
from producers.problems import AnyRequest

PAGE_MAX: Final = 1000
_PATH: Final = "/v1/catalog"

Limit = Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="items in the answer at most")]
After = Annotated[str, QueryParameter(description="`next` of the page before")]
Body = dict[str, Any]
LastUsed = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]  # of the keys of accounts, by id, UTC microseconds

_READ: Final = [needs("read")]
_ADMIN: Final = [needs("admin")]
_T = TypeVar("_T")


def catalog_router(service: CatalogService, last_used: LastUsed | None = None) -> Router:
    """The routes over one service. Authentication comes before them, `producers.problems` behind them. `last_used` may
    raise StoreUnavailable or StoreError."""
    return Router(
        path=_PATH,
        route_handlers=[
            *_feature_routes(service),
            *_dimension_routes(service),
            *_customer_routes(service),
            *_key_routes(service, last_used),
        ],
        tags=["catalog"],
    )


def feature_body(feature: Feature) -> Body:
    """A feature revision as JSON says it."""
    return {**feature_fields(feature), "rev": feature.rev}


def dimension_body(dimension: Dimension) -> Body:
    """A dimension revision as JSON says it."""
    return {**dimension_fields(dimension), "rev": dimension.rev}


def customer_body(customer: Customer) -> Body:
    """A customer as JSON says it."""
    return {**customer_fields(customer), "created": format_timestamp(customer.created_us)}


def key_body(key: Key, used: Mapping[str, int] | None = None) -> Body:
    """An API key as JSON says it: all but the secret, which only the answer to its creation has.

    `used`: when keys were last used; None when that cannot be told now, and `last_used` is left out.
    """
    body = {
        "id": key.hash,
        "account": key.account,
        "mode": "test" if key.account.endswith(TEST_SUFFIX) else "live",
        "name": key.name,
        "scopes": key.scopes,
        "hint": key.hint,
        "created": format_timestamp(key.created_us),
        "revoked": _instant(key.revoked_us),
        "expires": _instant(key.expires_us),
        "events_per_s": key.events_per_s,
        "burst": key.burst,
    }
    return body if used is None else {**body, "last_used": _instant(used.get(key.hash))}


# ------------------------------------------------------------------------------------------------ private


def _feature_routes(service: CatalogService) -> list[Any]:
    @get("/features", guards=_READ)
    async def list_features(request: AnyRequest, limit: Limit = 100, after: After = "") -> Response[bytes]:
        """The account's features as they are now, by id, archived ones too."""
        return _page(service.catalog.features(_account(request)), lambda f: f.id, feature_body, limit, after)

    @get("/features/{feature_id:path}", guards=_READ)
    async def get_feature(request: AnyRequest) -> Response[bytes]:
        """A feature with all its revisions in the order written."""
        account, name = _account(request), _name(request)
        body = feature_body(service.feature(account, name))
        revisions = [feature_body(f) for f in service.catalog.feature_revisions(account, name)]
        return _json({**body, "revisions": revisions})

    @post("/features", guards=_ADMIN)
    async def create_feature(request: AnyRequest) -> Response[bytes]:
        """A new feature."""
        wanted = feature_from(_account(request), await _fields(request))
        return _json(feature_body(await service.create_feature(wanted)), 201)

    @patch("/features/{feature_id:path}", guards=_ADMIN)
    async def change_feature(request: AnyRequest) -> Response[bytes]:
        """A revision with the given fields changed; it holds from now on, or from `effective_from`."""
        fields = await _fields(request)
        return _json(feature_body(await service.update_feature(_account(request), _name(request), fields)))

    @put("/features/{feature_id:path}", guards=_ADMIN)
    async def replace_feature(request: AnyRequest) -> Response[bytes]:
        """A revision with exactly the given fields; it holds from now on, or from `effective_from`."""
        fields, account, name = await _fields(request), _account(request), _name(request)
        return _json(feature_body(await service.update_feature(account, name, fields, replace=True)))

    return [list_features, get_feature, create_feature, change_feature, replace_feature]


def _dimension_routes(service: CatalogService) -> list[Any]:
    @get("/dimensions", guards=_READ)
    async def list_dimensions(request: AnyRequest, limit: Limit = 100, after: After = "") -> Response[bytes]:
        """The account's dimensions as they are now, by key, archived ones too."""
        return _page(service.catalog.dimensions(_account(request)), lambda d: d.key, dimension_body, limit, after)

    @get("/dimensions/{key:path}", guards=_READ)
    async def get_dimension(request: AnyRequest) -> Response[bytes]:
        """A dimension with all its revisions in the order written."""
        account, name = _account(request), _name(request)
        body = dimension_body(service.dimension(account, name))
        revisions = [dimension_body(d) for d in service.catalog.dimension_revisions(account, name)]
        return _json({**body, "revisions": revisions})

    @post("/dimensions", guards=_ADMIN)
    async def create_dimension(request: AnyRequest) -> Response[bytes]:
        """A new dimension."""
        wanted = dimension_from(_account(request), await _fields(request))
        return _json(dimension_body(await service.create_dimension(wanted)), 201)

    @patch("/dimensions/{key:path}", guards=_ADMIN)
    async def change_dimension(request: AnyRequest) -> Response[bytes]:
        """A revision with the given fields changed; it holds from now on, or from `effective_from`."""
        fields = await _fields(request)
        return _json(dimension_body(await service.update_dimension(_account(request), _name(request), fields)))

    @put("/dimensions/{key:path}", guards=_ADMIN)
    async def replace_dimension(request: AnyRequest) -> Response[bytes]:
        """A revision with exactly the given fields; it holds from now on, or from `effective_from`."""
        fields, account, name = await _fields(request), _account(request), _name(request)
        return _json(dimension_body(await service.update_dimension(account, name, fields, replace=True)))

    return [list_dimensions, get_dimension, create_dimension, change_dimension, replace_dimension]


def _customer_routes(service: CatalogService) -> list[Any]:
    @get("/customers", guards=_READ)
    async def list_customers(request: AnyRequest, limit: Limit = 100, after: After = "") -> Response[bytes]:
        """The account's customers, by id, also those that a door met and nobody described."""
        return _page(service.catalog.customers(_account(request)), lambda c: c.id, customer_body, limit, after)

    @get("/customers/{customer_id:path}", guards=_READ)
    async def get_customer(request: AnyRequest) -> Response[bytes]:
        """A customer."""
        return _json(customer_body(service.customer(_account(request), _name(request))))

    @post("/customers", guards=_ADMIN)
    async def create_customer(request: AnyRequest) -> Response[bytes]:
        """A new customer."""
        wanted = customer_from(_account(request), await _fields(request))
        return _json(customer_body(await service.create_customer(wanted)), 201)

    @patch("/customers/{customer_id:path}", guards=_ADMIN)
    async def change_customer(request: AnyRequest) -> Response[bytes]:
        """The customer with the given fields changed."""
        fields = await _fields(request)
        return _json(customer_body(await service.update_customer(_account(request), _name(request), fields)))

    @put("/customers/{customer_id:path}", guards=_ADMIN)
    async def replace_customer(request: AnyRequest) -> Response[bytes]:
        """The customer with exactly the given fields."""
        fields, account, name = await _fields(request), _account(request), _name(request)
        return _json(customer_body(await service.update_customer(account, name, fields, replace=True)))

    return [list_customers, get_customer, create_customer, change_customer, replace_customer]


def _key_routes(service: CatalogService, last_used: LastUsed | None) -> list[Any]:
    never: Mapping[str, int] | None = None if last_used is None else {}  # of a key that was just made

    async def used(account: str) -> Mapping[str, int] | None:
        """None while the store is away: keys are listed and revoked all the same."""
        if last_used is None:
            return None
        try:
            return await last_used((account, test_mode_account(account)))
        except (StoreUnavailable, StoreError):
            return None

    @get("/keys", guards=_ADMIN)
    async def list_keys(request: AnyRequest, limit: Limit = 100, after: After = "") -> Response[bytes]:
        """The account's API keys by id, revoked ones too; a live account also sees those of its test mode."""
        keys = sorted(service.keys(_account(request)), key=lambda key: key.hash)
        known = await used(_account(request))
        return _page(keys, lambda k: k.hash, lambda k: key_body(k, known), limit, after)

    @get("/keys/{key_id:str}", guards=_ADMIN)
    async def get_key(request: AnyRequest, key_id: FromPath[str]) -> Response[bytes]:
        """An API key."""
        return _json(key_body(service.key(_account(request), key_id), await used(_account(request))))

    @post("/keys", guards=_ADMIN)
    async def create_key(request: AnyRequest) -> Response[bytes]:
        """A new API key. `secret` is in this answer and nowhere else."""
        created = await service.create_key(_account(request), await _fields(request))
        return _json({**key_body(created.key, never), "secret": created.secret}, 201)

    @post("/keys/{key_id:str}/rotate", guards=_ADMIN)
    async def rotate_key(request: AnyRequest, key_id: FromPath[str]) -> Response[bytes]:
        """A new API key like this one, with its `secret`. The old one is good for `overlap_s` more (a day unless said
        otherwise), then refused."""
        body = await _fields(request)
        created = await service.rotate_key(_account(request), key_id, body)
        return _json({**key_body(created.key, never), "secret": created.secret}, 201)

    @delete("/keys/{key_id:str}", guards=_ADMIN, status_code=200)
    async def revoke_key(request: AnyRequest, key_id: FromPath[str]) -> Response[bytes]:
        """Revokes an API key for good."""
        revoked = await service.revoke_key(_account(request), key_id)
        return _json(key_body(revoked, await used(_account(request))))

    return [list_keys, get_key, create_key, rotate_key, revoke_key]


def _instant(at_us: int | None) -> str | None:
    return None if at_us is None else format_timestamp(at_us)


def _account(request: AnyRequest) -> str:
    return principal_of(request).account


def _name(request: AnyRequest) -> str:
    """The id at the end of the address as it was sent: Litestar's path has double and last slashes taken away."""
    section_and_name = request.scope["raw_path"].partition(b"?")[0].partition(f"{_PATH}/".encode())[2]
    return unquote_to_bytes(section_and_name.partition(b"/")[2]).decode("utf-8", "replace")


async def _fields(request: AnyRequest) -> Body:
    return decode_object(await read_body(request))


def _page(
    items: Sequence[_T], name: Callable[[_T], str], body: Callable[[_T], Body], limit: int, after: str
) -> Response[bytes]:
    """One page of items that ascend by name; `next` is null on the last one."""
    rest = [item for item in items if name(item) > after] if after else items
    page = rest[:limit]
    return _json({"items": [body(item) for item in page], "next": name(page[-1]) if len(rest) > limit else None})


def _json(body: Body, status_code: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status_code, media_type="application/json")
