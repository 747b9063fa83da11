"""Problems: every refusal of the HTTP doors as `application/problem+json` (RFC 9457).

Rules: a caller's mistake is a 4xx that names the field and says what to do; an outage is a 503 with `Retry-After`;
a defect of ours is a 500 that tells nothing of the inside and is logged with its trace. `code` is stable and for
programs, `detail` and `message` are for people. `errors[]` holds field, code and message.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.types import ExceptionHandlersMap

from pipeline.catalog_input import AlreadyExists, CatalogError, NotFound
from pipeline.event import EventError, FieldError
from pipeline.ports import CatalogUnavailable, LogUnavailable
from producers.incoming import Answer

MEDIA_TYPE: Final = "application/problem+json"

AnyRequest = Request[Any, Any, Any]

_log = structlog.get_logger(__name__)
_CODES: Final = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    422: "bad_fields",
    429: "busy",
    503: "unavailable",
}


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """A refusal: HTTP status, stable code, text for people, faults of fields, and members of the answer's own."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.members = dict(members or {})


def problem_of(error: Exception) -> Problem:
    """The problem that an exception amounts to; what is nobody's mistake but ours is a 500 without particulars."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _http_problem(error)
    if isinstance(error, LogUnavailable | CatalogUnavailable):
        return unavailable(str(error), error.retry_after_s)
    match error:
        case NotFound():
            found = Problem(404, "not_found", str(error), errors=error.errors)
        case AlreadyExists():
            found = Problem(409, "exists", str(error), errors=error.errors)
        case EventError() | CatalogError():
            found = bad_fields(error.errors)
        case SerializationException():
            found = Problem(400, "syntax", str(error) or "the body cannot be decoded")
        case _:
            found = Problem(500, "internal", "something is wrong on this side; it has been logged")
    return found


def bad_fields(errors: Sequence[FieldError]) -> Problem:
    """A problem for faults of fields: 400 when it is no JSON at all, 413 when it is only too large, otherwise 422."""
    status, code = 422, "bad_fields"
    if any(not e.field and e.code in {"syntax", "encoding"} for e in errors):
        status, code = 400, "syntax"
    elif errors and all(e.code == "too_large" for e in errors):
        status, code = 413, "too_large"
    elif errors and all(e.code == "not_built" for e in errors):
        code = "not_built"
    detail = "; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors[:5])
    return Problem(status, code, detail or "the request has a bad field", errors=errors)


def unavailable(detail: str, retry_after_s: int, members: Mapping[str, Any] | None = None) -> Problem:
    """A 503 that says when to try again."""
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(max(1, retry_after_s))}, members=members)


def problem_response(problem: Problem) -> Response[bytes]:
    """The HTTP answer for a problem, of a route of the framework."""
    return problem_answer(problem).response()


def problem_answer(problem: Problem) -> Answer:
    """The HTTP answer for a problem."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "errors": problem.errors,
        **problem.members,
    }
    return Answer(msgspec.json.encode(body), problem.status, MEDIA_TYPE, problem.headers)


def refusal(scope: Any, error: Exception, *, with_message: bool = False) -> Answer:
    """What a request is answered whose door has raised; defects of ours are logged. `with_message`: for dialects
    whose clients read `message` beside `code`."""
    problem = problem_of(error)
    if problem.status >= 500 and problem.code == "internal":
        _log.error("request_failed", method=scope["method"], path=scope["path"], exc_info=error)
    elif with_message:
        problem.members.setdefault("message", problem.detail)
    return problem_answer(problem)


def handle(request: AnyRequest, error: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything that a route raises."""
    return refusal(request.scope, error).response()


def handle_with_message(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The same for dialects whose clients read `message`."""
    return refusal(request.scope, error, with_message=True).response()


EXCEPTION_HANDLERS: Final[ExceptionHandlersMap] = {Exception: handle, HTTPException: handle}
ANSWERED_WITH_MESSAGE: Final[ExceptionHandlersMap] = {
    Exception: handle_with_message,
    HTTPException: handle_with_message,
}

_DETAILS: Final = {
    404: "there is no such address; see /openapi.json for those that there are",
    405: "this address does not take that method; see the Allow header",
    413: "the body is larger than this address takes; send fewer events at a time",
}


def _http_problem(error: HTTPException) -> Problem:
    status = error.status_code
    if isinstance(error, ValidationException):
        return bad_fields(_litestar_faults(error))
    if status == 503:
        return unavailable(error.detail, 5)
    if status >= 500:
        return Problem(500, "internal", "something is wrong on this side; it has been logged")
    said_nothing = status == 413 or error.detail == HTTPStatus(status).phrase
    detail = _DETAILS.get(status, error.detail) if said_nothing else error.detail
    return Problem(status, _CODES.get(status, "refused"), detail, headers=error.headers)


def _litestar_faults(error: ValidationException) -> list[FieldError]:
    faults = error.extra if isinstance(error.extra, list) else []
    found = [
        FieldError(str(fault.get("key", "")), "format", str(fault.get("message", "is not valid")))
        for fault in faults
        if isinstance(fault, dict)
    ]
    return found or [FieldError("", "format", error.detail)]
