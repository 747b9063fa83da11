"""A request as a door reads it, and the answer it gives: the same whether the framework's route called the door or
`producers.door` did, past the framework.

Rules: names of headers are asked for in small letters. A header that comes twice counts as the framework counts it.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

import msgspec
from litestar import Request, Response
from litestar.datastructures import Headers
from litestar.exceptions import ClientException, InternalServerException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Receive, Scope

JSON: Final = "application/json"
_NO_OPTIONS: Final[dict[str, str]] = {}


class Incoming(Protocol):
    """What a door asks of a request. Litestar's Request is one."""

    @property
    def scope(self) -> Any:
        """ASGI's; `state.principal` is the sender."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By name in small letters."""

    @property
    def content_type(self) -> tuple[str, dict[str, str]]:
        """The media type in small letters, "" without one, and its parameters."""

    async def body(self) -> bytes:
        """The whole body. Raises Problem and HTTPException: 400, 408, 413, 429."""


class Answer(msgspec.Struct, frozen=True):
    """What a door answers."""

    body: bytes
    status: int = 200
    media_type: str | None = JSON
    headers: Mapping[str, str] = {}

    def response(self) -> Response[bytes]:
        """The same for a route of the framework."""
        return Response(self.body, status_code=self.status, media_type=self.media_type, headers=self.headers)


class Call:
    """A request past the framework. `body_bytes_max`: of its body; `whole`: the body where it is there, and `receive`
    is not asked then."""

    __slots__ = ("_body_bytes_max", "_headers", "_receive", "scope", "whole")

    def __init__(self, scope: Any, receive: Receive | None, body_bytes_max: int, whole: bytes | None = None) -> None:
        self.scope = scope
        self._receive = receive
        self._body_bytes_max = body_bytes_max
        self._headers = headers_of(scope)
        self.whole = whole

    @property
    def headers(self) -> Mapping[str, str]:
        """See Incoming."""
        return self._headers

    @property
    def content_type(self) -> tuple[str, dict[str, str]]:
        """See Incoming."""
        given = self._headers.get("content-type", "")
        if given in (JSON, ""):
            return given, _NO_OPTIONS
        request: Request[Any, Any, Any] = Request(self.scope)
        return request.content_type

    async def body(self) -> bytes:
        """See Incoming; bounds and refusals are those of Litestar's Request."""
        if self.whole is None:
            self.whole = await self._read()
        return self.whole

    async def _read(self) -> bytes:
        announced = self._headers.get("content-length")
        try:
            if announced is not None and int(announced) > self._body_bytes_max:
                raise RequestEntityTooLarge
        except ValueError:
            raise ClientException(f"Invalid content-length: {announced!r}") from None
        parts: list[bytes] = []
        size = 0
        receive = cast("Receive", self._receive)
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise InternalServerException("client disconnected prematurely")
            part = message["body"]
            size += len(part)
            if size > self._body_bytes_max:
                raise RequestEntityTooLarge
            if not message.get("more_body", False):
                return part if not parts else b"".join((*parts, part))
            parts.append(part)


def headers_of(scope: Scope) -> Mapping[str, str]:
    """A request's headers by name in small letters."""
    raw = list(scope["headers"])
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    return found if len(found) == len(raw) else Headers.from_scope(scope)
