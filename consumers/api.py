"""Usage over HTTP: `GET /v1/usage`, and the same by feature, event name or customer in the path.

Rules: the account is a dependency named `account` that whoever assembles the application provides from the API key,
never a parameter of the request. Wrong parameters are 422 problem+json that names them; a store that is away is 503.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ExceptionHandlersMap

from consumers.documents import usage_document
from consumers.usage import UsageError, UsageQuery, UsageResult
from consumers.usage_params import query_from
from pipeline.ports import StoreError, StoreUnavailable

RETRY_AFTER_S: Final = 5
_BUSY: Final = {159: "too slow", 241: "too large", 202: "too many at once"}  # TIMEOUT, MEMORY_LIMIT, TOO_MANY_QUERIES

Account = NamedDependency[str]
_Request = Request[Any, Any, State]


def usage_router(answer: Callable[[UsageQuery], UsageResult], now: Callable[[], datetime]) -> Router:
    """Routes under /v1/usage. `answer` may block (it runs in a thread); `now` gives aware UTC."""

    def respond(request: _Request, account: str, fixed: Mapping[str, str]) -> dict[str, Any]:
        parameters = {**_given(request), **{name: [value] for name, value in fixed.items()}}
        for name in fixed:
            if name in request.query_params:
                raise UsageError(name, "exclusive", "is already in the path")
        return usage_document(answer(query_from(parameters, account, now())))

    @get("/", sync_to_thread=True, summary="Usage of the account, by feature or by event name")
    def usage(request: _Request, account: Account) -> dict[str, Any]:
        return respond(request, account, {})

    @get("/features/{feature:str}", sync_to_thread=True, summary="Usage of one feature")
    def feature_usage(request: _Request, account: Account, feature: FromPath[str]) -> dict[str, Any]:
        return respond(request, account, {"feature": feature})

    @get("/events/{event_name:str}", sync_to_thread=True, summary="Events of one name, mapped to a feature or not")
    def event_usage(request: _Request, account: Account, event_name: FromPath[str]) -> dict[str, Any]:
        return respond(request, account, {"event_name": event_name})

    @get("/customers/{customer:str}", sync_to_thread=True, summary="Usage of one customer")
    def customer_usage(request: _Request, account: Account, customer: FromPath[str]) -> dict[str, Any]:
        return respond(request, account, {"customer": customer})

    return Router(
        path="/v1/usage",
        route_handlers=[usage, feature_usage, event_usage, customer_usage],
        exception_handlers={UsageError: _wrong_question, **STORE_HANDLERS},
        tags=["usage"],
    )


def _given(request: _Request) -> dict[str, Sequence[str]]:
    return {name: request.query_params.getall(name) for name in request.query_params}


def _wrong_question(_: _Request, error: UsageError) -> Response[dict[str, Any]]:
    errors = [{"field": error.field, "code": error.code, "message": str(error)}]
    return problem(422, "The question cannot be answered", f"{error.field}: {error}", errors=errors)


def _store_away(_: _Request, error: StoreUnavailable) -> Response[dict[str, Any]]:
    return problem(503, "The store is away", str(error), retry_after_s=RETRY_AFTER_S)


def _store_refuses(_: _Request, error: StoreError) -> Response[dict[str, Any]]:
    if error.code in _BUSY:
        detail = f"The question is {_BUSY[error.code]} for the store: ask for a shorter period or fewer groups"
        return problem(503, "The store gave up", detail, retry_after_s=RETRY_AFTER_S)
    raise error


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    retry_after_s: int | None = None,
    code: str | None = None,
) -> Response[dict[str, Any]]:
    """RFC 9457. `code` is stable and for programs."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": list(errors)}
    return Response(
        body if code is None else {**body, "code": code},
        status_code=status,
        media_type="application/problem+json",
        headers={} if retry_after_s is None else {"Retry-After": str(retry_after_s)},
    )


STORE_HANDLERS: Final[ExceptionHandlersMap] = {StoreUnavailable: _store_away, StoreError: _store_refuses}
