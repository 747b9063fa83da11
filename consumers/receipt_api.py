"""Receipts over HTTP: `GET /v1/events/{transactionId}`.

Rules: the account comes from the API key. An id may hold any characters; it is read from the path as the client has
percent-encoded it, since a decoded path has lost which slash was part of the id. 200: counted or refused; 202 with
Retry-After: received and not counted yet, or not decided within the bounds; 404 `unknown_transaction`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap, Guard

from consumers.api import STORE_HANDLERS, problem
from consumers.receipts import Receipt, ReceiptError, UnknownTransaction

RETRY_AFTER_S: Final = 1
_PREFIX: Final = b"/v1/events/"
_WAITING: Final = frozenset({"in_flight", "undecided"})

Answer = Callable[[str, str], Awaitable[Receipt]]
_Request = Request[Any, Any, State]


def receipt_router(answer: Answer) -> Router:
    """The route. `answer` gives the receipt of an account's id and must not block."""

    @get(
        "/{transaction_id:path}",
        summary="What became of an event",
        operation_id="GetReceipt",
        responses={
            202: ResponseSpec(
                Receipt,
                generate_examples=False,
                description="Received and not counted yet, or not decided; see Retry-After",
            ),
            404: ResponseSpec(
                dict[str, Any],
                generate_examples=False,
                description="unknown_transaction",
                media_type="application/problem+json",
            ),
        },
    )
    async def receipt(
        request: _Request, account: NamedDependency[str], transaction_id: FromPath[str]
    ) -> Response[Receipt]:
        """The receipt of a transactionId: verdict, position, times seen, features moved, block, rollup cells. Percent-
        encode every character of the id that is not a letter or digit."""
        return await respond(answer, request, account)

    return Router(path="/v1/events", route_handlers=[receipt], exception_handlers=RECEIPT_HANDLERS, tags=["events"])


def hidden_receipt_handler(answer: Answer, guards: Sequence[Guard], account: Provide) -> HTTPRouteHandler:
    """The same for the id that another route's path would hide: `batch`. By itself: two routers cannot both answer a
    path's OPTIONS. Ids that look like the inspector's paths are its own to tell apart (consumers.inspector_api)."""

    @get(
        "/v1/events/batch",
        include_in_schema=False,
        guards=list(guards),
        dependencies={"account": account},
        exception_handlers=RECEIPT_HANDLERS,
    )
    async def hidden_receipt(request: _Request, account: NamedDependency[str]) -> Response[Receipt]:
        return await respond(answer, request, account)

    return hidden_receipt


async def respond(answer: Answer, request: _Request, account: str) -> Response[Receipt]:
    """The receipt of the id in the request's path. Raises what RECEIPT_HANDLERS answer."""
    found = await answer(account, _identity(request))
    if found.verdict in _WAITING:
        return Response(found, status_code=202, headers={"Retry-After": str(RETRY_AFTER_S)})
    return Response(found, status_code=200)


def _identity(request: _Request) -> str:
    """The id as the client sent it. Raises ReceiptError."""
    raw: bytes = request.scope.get("raw_path") or b""
    path, _, _ = raw.partition(b"?")
    if not path.startswith(_PREFIX) or path == _PREFIX:
        raise ReceiptError("name a transactionId: GET /v1/events/{transactionId}, percent-encoded")
    try:
        return unquote_to_bytes(path.removeprefix(_PREFIX)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReceiptError(f"the id in the path is no UTF-8 ({error.reason})") from error


def _unknown(_: _Request, error: UnknownTransaction) -> Response[dict[str, Any]]:
    fault = {"field": "transactionId", "code": "unknown_transaction", "message": str(error)}
    return problem(404, "Unknown transaction", str(error), errors=[fault], code="unknown_transaction")


def _wrong(_: _Request, error: ReceiptError) -> Response[dict[str, Any]]:
    fault = {"field": "transactionId", "code": "format", "message": str(error)}
    return problem(422, "No transactionId", str(error), errors=[fault], code="bad_fields")


RECEIPT_HANDLERS: Final[ExceptionHandlersMap] = {UnknownTransaction: _unknown, ReceiptError: _wrong, **STORE_HANDLERS}
