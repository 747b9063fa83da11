"""Who is asking: an API key becomes the request's principal, and a route says which scope it needs.

Rules: the account comes from the key, never from the body. A key is taken from `Authorization: Bearer KEY`,
`Authorization: KEY` (Kana), `Authorization: Basic` with the key as user and no password (Segment), `X-API-Key: KEY` or
`Kable-Client-Secret: KEY`; two different keys in one request are refused. `Kable-Client-Id` beside a key must be the
key's account or the key's name: a mixed-up pair of credentials would bill the wrong account. 401: no key, unknown,
revoked. 403: the key lacks the scope. `admin` includes the others.
Routes are closed unless they carry `opt={"public": True}`; a router of another package reads `request.state.principal`.
"""

import hmac
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Guard, Receive, Scope, Send

from pipeline.api_keys import Principal
from pipeline.event import FieldError
from producers.incoming import Incoming
from producers.intake import CatalogReader
from producers.problems import Problem

_PUBLIC: Final = "public"
PUBLIC: Final = {_PUBLIC: True}  # opt of a route that needs no key

OPENAPI_PATH: Final = "/openapi.json"  # the framework's own route, which takes no opt
_KEY_LENGTH_MAX: Final = 512  # longer cannot be one of ours; hashing it would be the sender's to pay


class Authentication(ASGIMiddleware):
    """Puts the principal of every request into `request.state.principal`, or refuses with 401."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = _PUBLIC

    def __init__(self, catalog: CatalogReader, used: Callable[[Principal], None] | None = None) -> None:
        self._catalog = catalog
        self._used = used

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Refuses by raising Problem, which the exception handlers turn into the answer."""
        if scope["path"] == OPENAPI_PATH:
            await next_app(scope, receive, send)
            return
        scope["state"]["principal"] = await self.principal(Headers.from_scope(scope))
        await next_app(scope, receive, send)

    async def principal(self, headers: Mapping[str, str]) -> Principal:
        """Who sends these headers, their names in small letters. Raises Problem 401, and CatalogUnavailable."""
        principal = await self._catalog.principal(_secret(headers))
        if principal is None:
            raise unauthenticated("the API key is unknown or revoked; make another with POST /v1/catalog/keys")
        return self._matching(principal, headers)

    def known_principal(self, headers: Mapping[str, str]) -> Principal | None:
        """The same without waiting for the catalog: None where only its end would tell."""
        principal = self._catalog.known_principal(_secret(headers))
        return None if principal is None else self._matching(principal, headers)

    def _matching(self, principal: Principal, headers: Mapping[str, str]) -> Principal:
        """The principal, when the headers name no other; notes that the key was used."""
        client_id = headers.get("kable-client-id")
        if client_id is not None and client_id not in (principal.account, principal.name):
            raise unauthenticated("Kable-Client-Id names another account than the key belongs to", "Kable-Client-Id")
        if self._used is not None:
            self._used(principal)
        return principal


def needs(*scopes: Literal["ingest", "read", "admin"]) -> Guard:
    """A guard that lets keys pass that have one of the scopes, or `admin`."""

    # async although it awaits nothing: Litestar would call a plain function in another thread, for each request
    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        require_scope(principal_of(connection), *scopes)

    return guard


def require_scope(principal: Principal, *scopes: str) -> None:
    """Raises Problem 403 unless the key has one of the scopes, or `admin`."""
    if not principal.scopes.intersection({*scopes, "admin"}):
        wanted = " or ".join(scopes)
        raise Problem(
            403,
            "forbidden",
            f"the key ending in {principal.hint} lacks the scope {wanted}; use another key or make one that has it",
            errors=[FieldError("Authorization", "scope", f"needs the scope {wanted}")],
        )


def principal_of(connection: ASGIConnection[Any, Any, Any, Any] | Incoming) -> Principal:
    """The principal that was found for a request."""
    principal: Principal = connection.scope["state"]["principal"]
    return principal


def key_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The key that the request carries: for answers that go on for long, to ask again whether it still is good."""
    return _secret(connection.headers)


def unauthenticated(detail: str, header: str = "Authorization") -> Problem:
    """A 401 with the challenge that HTTP asks for."""
    return Problem(
        401,
        "unauthenticated",
        detail,
        errors=[FieldError(header, "unauthenticated", detail)],
        headers={"WWW-Authenticate": 'Bearer realm="tallystream"'},
    )


def _secret(headers: Mapping[str, str]) -> str:
    places = (_authorization(headers), headers.get("x-api-key"), headers.get("kable-client-secret"))
    given = [key for key in places if key]
    if not given:
        raise unauthenticated("no API key; send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    if len(given) > 1 and any(not hmac.compare_digest(key.encode(), given[0].encode()) for key in given[1:]):
        raise unauthenticated("two different API keys in one request; send one")
    if len(given[0]) > _KEY_LENGTH_MAX:
        raise unauthenticated("the API key is unknown or revoked; it is longer than any key")
    return given[0]


def _authorization(headers: Mapping[str, str]) -> str | None:
    given = (headers.get("authorization") or "").strip()
    scheme, _, rest = given.partition(" ")
    if not rest:
        return None if scheme.lower() == "bearer" else scheme or None
    if scheme.lower() == "basic":
        return _basic_user(rest.strip())
    if scheme.lower() != "bearer":
        raise unauthenticated(f"the scheme {scheme[:32]} is not taken here; send `Authorization: Bearer KEY`")
    return rest.strip()


def _basic_user(credentials: str) -> str:
    """The user of HTTP Basic, which is the key."""
    try:
        user, _, password = b64decode(credentials, validate=True).decode("utf-8").partition(":")
    except ValueError as error:
        raise unauthenticated("the credentials of Basic are no Base64; send the API key as user") from error
    if not user or password:
        raise unauthenticated("with Basic the API key is the user, and there is no password")
    return user
