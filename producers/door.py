"""A door: addresses that take events by POST, the function that answers, and the short way to it.

Rules: a door is declared once. Its route in the framework (`Door.route`) describes it, and answers where an address
is spelled in another way (a slash at the end) or asked with another method; a POST to one of its addresses goes past
the framework (`Api`), whose layers took most of the time. Both ways have the same bounds of bodies, the same look at
the key, the same function and the same refusals, so that nobody can tell them apart.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from litestar import Litestar, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from producers.auth import Authentication, needs, require_scope
from producers.body_limits import BodyLimits
from producers.incoming import JSON, Answer, Call, Incoming
from producers.problems import ANSWERED_WITH_MESSAGE, AnyRequest, refusal

_SCOPE: Final = "ingest"
_NO_CONTENT: Final = 204
_JSON_HEADER: Final = (b"content-type", JSON.encode())


Make = Callable[[], Answer]  # may raise as `Door.receive` may
Tell = Callable[[Make], None]  # to be called once


@dataclass(frozen=True, slots=True)
class Door:
    """`receive` answers, or raises what `producers.problems` knows; its docstring describes the operation.
    `with_message`: refusals have `message` beside `code`.
    `at_once` does the same for a request whose body is whole, without waiting for anything but the log, and tells what
    makes the answer later; or it says False, before it has done anything, and `receive` is asked."""

    paths: Sequence[str]
    receive: Callable[[Incoming], Awaitable[Answer]]
    summary: str
    body_bytes_max: int
    status: int = 200
    with_message: bool = False
    at_once: Callable[[Call, Tell], bool] | None = None

    def route(self) -> HTTPRouteHandler:
        """The route of the framework."""
        receive = self.receive

        async def handler(request: AnyRequest) -> Response[bytes]:
            return (await receive(request)).response()

        handler.__name__, handler.__doc__ = receive.__name__, receive.__doc__
        return post(
            list(self.paths),
            status_code=self.status,
            summary=self.summary,
            tags=["events"],
            guards=[needs(_SCOPE)],
            request_max_body_size=self.body_bytes_max,
            exception_handlers=ANSWERED_WITH_MESSAGE if self.with_message else None,
        )(handler)


class Api(Litestar):
    """An application with doors, which are tried before its routes."""

    def __init__(
        self,
        doors: Iterable[Door],
        limits: BodyLimits,
        authentication: Authentication,
        *,
        stopping: Iterable[Callable[[], None]] = (),
        **options: Any,
    ) -> None:
        doors = list(doors)
        self.doors: Mapping[bytes, Door] = {path.encode(): door for door in doors for path in door.paths}
        self._authentication = authentication
        self._stopping = list(stopping)
        self._short: dict[str, ASGIApp] = {path: limits(self._short_way(door)) for door in doors for path in door.paths}
        handlers = [*options.pop("route_handlers", ()), *(door.route() for door in doors)]
        super().__init__(route_handlers=handlers, middleware=[limits, authentication], **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST":
            short = self._short.get(scope["path"])
            if short is not None:
                scope.setdefault("state", {})
                await short(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    async def answer(self, door: Door, call: Call) -> Answer:
        """What the door says, or why it refuses."""
        try:
            principal = await self._authentication.principal(call.headers)
            require_scope(principal, _SCOPE)
            call.scope["state"]["principal"] = principal
            return await door.receive(call)
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is answered 500 and logged
            return refusal(call.scope, error, with_message=door.with_message)

    def answer_at_once(self, door: Door, call: Call, tell: Callable[[Answer], None]) -> bool:
        """The same without waiting, where the door can: False otherwise. `tell` is called once, now or later."""
        if door.at_once is None:
            return False

        def made(make: Make) -> None:
            try:
                answer = make()
            except Exception as error:  # noqa: BLE001 - as above
                answer = refusal(call.scope, error, with_message=door.with_message)
            tell(answer)

        try:
            principal = self._authentication.known_principal(call.headers)
            if principal is None:
                return False
            require_scope(principal, _SCOPE)
            call.scope["state"]["principal"] = principal
            return door.at_once(call, made)
        except Exception as error:  # noqa: BLE001 - as above
            tell(refusal(call.scope, error, with_message=door.with_message))
            return True

    def stopping(self) -> None:
        """The process is told to stop: what would answer for ever ends. May be called more than once."""
        for stop in self._stopping:
            stop()

    def _short_way(self, door: Door) -> ASGIApp:
        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            answer = await self.answer(door, Call(scope, receive, door.body_bytes_max))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers_of_answer(answer)})
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})

        return answered


def headers_of_answer(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Those that the framework's route would send."""
    length = (b"content-length", b"%d" % len(answer.body))
    if answer.media_type == JSON and not answer.headers:
        return [_JSON_HEADER, length]
    found = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.media_type is not None:
        found.append((b"content-type", answer.media_type.encode("latin-1")))
    return found if answer.status == _NO_CONTENT else [*found, length]
