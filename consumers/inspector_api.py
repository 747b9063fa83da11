"""The inspector over HTTP: `GET /v1/events` lists lines with their verdicts, `GET /v1/events/tail` tells what comes in.

Rules: the account comes from the API key, which is looked at again while a tail runs: a key that was revoked ends it.
A tail is server-sent events: unnamed ones are lines, each with the id that a tail goes on after (`Last-Event-ID`);
`open`, `skipped` and `end` tell of the tail itself; a comment is the heartbeat. It asks for more only once the reader
has taken what it was given, so that a slow one costs no more than one look; one that takes nothing for long is told
`too_slow` as its last event, and cut off when it takes not even that. An id `tail` is asked for as `/v1/events/%74ail`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ASGIApp, ExceptionHandlersMap, Guard, Receive, Scope, Send

from consumers.api import problem
from consumers.inspected import LineFilter
from consumers.inspector import LinePage, line_filter
from consumers.receipt_api import RECEIPT_HANDLERS
from consumers.tail import Skipped, Tail, TokenError, Told
from consumers.usage import UsageError
from pipeline.ports import StoreError, StoreUnavailable

_Request = Request[Any, Any, State]
Page = Callable[[str, Mapping[str, Sequence[str]]], LinePage]
NewTail = Callable[[LineFilter, str | None], Tail]
Permission = Callable[[], bool]
Receipt = Callable[[_Request, str], Any]
_FILTERS: Final = ("verdict", "customer", "event_name", "transaction_id", "transaction_id_prefix")
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
_PIECE_BYTES: Final = 16 << 10  # the server holds some pieces for a reader that does not take them


class TailLimits(msgspec.Struct, frozen=True):
    """Times in seconds: between looks, between heartbeats, until a reader is slow, until a slow one is cut off; tails
    at once, of the process and of an account."""

    poll_s: float = 1.0
    heartbeat_s: float = 15.0
    slow_s: float = 30.0
    cut_s: float = 300.0
    at_once: int = 64
    of_account: int = 8


class TooManyTails(Exception):  # noqa: N818 - an answer
    """As many tails as there may be are running."""


class Streamed(Response[None]):
    """An answer that writes itself."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(None, media_type="text/event-stream")
        self._app = app

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """The application that writes it."""
        return self._app


class Tails:
    """The tails of a process. `stop` ends them all; for the event loop that serves."""

    def __init__(self, new_tail: NewTail, limits: TailLimits | None = None) -> None:
        self._new_tail = new_tail
        self._limits = limits or TailLimits()
        self._running: Counter[str] = Counter()
        self._stopping = asyncio.Event()
        # threads of their own: looks must not wait behind questions for usage, nor those behind looks
        self._threads = ThreadPoolExecutor(2, "tail")

    def stop(self) -> None:
        """Ends every tail with a last event; new ones are refused."""
        self._stopping.set()

    async def open(self, chosen: LineFilter, token: str | None, permitted: Permission) -> "Streamed":
        """A tail as the answer to a request. Raises TooManyTails, TokenError and what the store raises."""
        account = chosen.account
        full = self._running.total() >= self._limits.at_once or self._running[account] >= self._limits.of_account
        if full or self._stopping.is_set():
            raise TooManyTails
        self._running[account] += 1
        try:
            tail = await self._in_thread(self._new_tail, chosen, token)
        except BaseException:
            self._running[account] -= 1
            raise
        return Streamed(self._answer(tail, account, permitted))

    def _answer(self, tail: Tail, account: str, permitted: Permission) -> ASGIApp:
        async def answer(_: Scope, receive: Receive, send: Send) -> None:
            writing = asyncio.create_task(self._write(tail, send, account, permitted), name="tail")
            leaving = asyncio.create_task(_left(receive), name="tail's reader")
            try:
                await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    with suppress(TimeoutError):  # cut off: it took not even the last event
                        await writing
            finally:
                self._running[account] -= 1
                for task in (writing, leaving):
                    task.cancel()
                await asyncio.gather(writing, leaving, return_exceptions=True)

        return answer

    async def _write(self, tail: Tail, send: Send, account: str, permitted: Permission) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = ""
        try:
            async with aclosing(self._pieces(tail, account, permitted)) as pieces:
                async for piece in pieces:
                    if not await self._taken(send, piece):
                        last = _control("end", reason="too_slow", detail=_ENDS["too_slow"])
                        break
        except (StoreError, StoreUnavailable):
            last = _control("end", reason="store_away", detail=_ENDS["store_away"])
        async with asyncio.timeout(self._limits.cut_s):
            await send({"type": "http.response.body", "body": last.encode(), "more_body": False})

    async def _taken(self, send: Send, piece: bytes) -> bool:
        """Whether the reader has taken what was before the piece in good time. Raises TimeoutError past the bound at
        which it is cut off."""
        sending = asyncio.ensure_future(send({"type": "http.response.body", "body": piece, "more_body": True}))
        try:
            done, _ = await asyncio.wait({sending}, timeout=self._limits.slow_s)
            async with asyncio.timeout(self._limits.cut_s):
                await sending
        finally:
            sending.cancel()
        return bool(done)

    async def _pieces(self, tail: Tail, account: str, permitted: Permission) -> AsyncGenerator[bytes, None]:
        """The stream in pieces, without end but for a last event."""
        loop, limits = asyncio.get_running_loop(), self._limits
        yield ("retry: 3000\n" + _control("open", tail.token, account=account)).encode()
        said_at = loop.time()
        while True:
            if self._stopping.is_set() or not permitted():
                reason = "stopping" if self._stopping.is_set() else "revoked"
                yield _control("end", reason=reason, detail=_ENDS[reason]).encode()
                return
            look = await self._in_thread(tail.look)
            for piece in _joined(look.found):
                yield piece
                said_at = loop.time()
            if not look.more:
                if loop.time() - said_at >= limits.heartbeat_s:
                    yield b": still here\n\n"
                    said_at = loop.time()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), limits.poll_s)

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)


_ENDS: Final = {
    "too_slow": "this reader took nothing for too long; go on from the last id with Last-Event-ID",
    "store_away": "the store does not answer; go on from the last id with Last-Event-ID",
    "stopping": "this process is stopping; go on from the last id with Last-Event-ID",
    "revoked": "the key was revoked",
}


def inspector_handlers(
    page: Page, tails: Tails, receipt: Receipt, guards: Sequence[Guard], dependencies: Mapping[str, Provide]
) -> list[HTTPRouteHandler]:
    """The two routes, each by itself, since other routers answer the same paths. `dependencies`: `account`, and
    `permitted`, which tells whether the request's key still is good. `receipt` answers for ids that look like one of
    these paths."""

    @get(
        "/v1/events",
        summary="What came in, with its verdict",
        operation_id="ListEvents",
        guards=list(guards),
        dependencies={"account": dependencies["account"]},
        exception_handlers=_HANDLERS,
        tags=["events"],
        responses={200: ResponseSpec(LinePage, generate_examples=False, description="A page, the newest first")},
    )
    async def list_events(request: _Request, account: NamedDependency[str]) -> Response[Any]:
        """The newest first, of the last day unless `start` says otherwise. Parameters: verdict (accepted, duplicate,
        conflict, rejected; several with commas), customer, event_name, transaction_id, transaction_id_prefix, start,
        end, by (append_time or timestamp: which of them start, end and the order mean), limit (50, at most 200) and
        cursor (`next_cursor` of the page before, with the same filters)."""
        if _raw_path(request) != b"/v1/events":
            answer: Response[Any] = await receipt(request, account)
            return answer
        return Response(await asyncio.to_thread(page, account, _given(request)))

    @get(
        "/v1/events/tail",
        summary="What comes in, live (server-sent events)",
        operation_id="TailEvents",
        guards=list(guards),
        dependencies={"account": dependencies["account"], "permitted": dependencies["permitted"]},
        exception_handlers=_HANDLERS,
        tags=["events"],
        responses={
            200: ResponseSpec(
                None,
                generate_examples=False,
                description="Events without a name are lines as /v1/events lists them; open, skipped and end tell of "
                "the tail; each has the id to go on after with Last-Event-ID",
                media_type="text/event-stream",
            )
        },
    )
    async def tail_events(
        request: _Request, account: NamedDependency[str], permitted: NamedDependency[Any]
    ) -> Response[Any]:
        """Parameters: verdict, customer, event_name, transaction_id and transaction_id_prefix, as of /v1/events, and
        `last_event_id` for those who cannot send the header."""
        if _raw_path(request) != b"/v1/events/tail":
            answer: Response[Any] = await receipt(request, account)
            return answer
        given = {name: _one(name, values) for name, values in _given(request).items()}
        for name in given:
            if name not in (*_FILTERS, "last_event_id"):
                raise UsageError(name, "unknown_field", f"no such parameter; known are {', '.join(_FILTERS)}")
        token = request.headers.get("last-event-id") or given.pop("last_event_id", None)
        return await tails.open(line_filter(account, given), token, permitted)

    return [list_events, tail_events]


def _joined(found: Sequence[Told | Skipped]) -> Sequence[bytes]:
    """Events in pieces of some size."""
    pieces, piece = [], bytearray()
    for one in found:
        if isinstance(one, Told):
            # data is as it was sent: what ends a line there is white space between tokens, and would end one here
            document = msgspec.json.encode(one.line).translate(_ONE_LINE)
            piece += b"id: %b\ndata: %b\n\n" % (one.token.encode(), document)
        else:
            told = {name: value for name, value in msgspec.structs.asdict(one).items() if name != "token"}
            piece += _control("skipped", one.token, **told).encode()
        if len(piece) >= _PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
    return [*pieces, bytes(piece)] if piece else pieces


def _control(name: str, token: str | None = None, **told: Any) -> str:
    identity = "" if token is None else f"id: {token}\n"
    return f"{identity}event: {name}\ndata: {msgspec.json.encode(told).decode()}\n\n"


async def _left(receive: Receive) -> None:
    """Returns once the reader has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _raw_path(request: _Request) -> bytes:
    raw: bytes = request.scope.get("raw_path") or b""
    return raw.partition(b"?")[0]


def _given(request: _Request) -> dict[str, Sequence[str]]:
    return {name: request.query_params.getall(name) for name in request.query_params}


def _one(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise UsageError(name, "duplicate_key", "may be given once")
    return values[0]


def _wrong(_: _Request, error: UsageError) -> Response[dict[str, Any]]:
    errors = [{"field": error.field, "code": error.code, "message": str(error)}]
    return problem(422, "The question cannot be answered", f"{error.field}: {error}", errors=errors, code="bad_fields")


def _wrong_token(_: _Request, error: TokenError) -> Response[dict[str, Any]]:
    errors = [{"field": "Last-Event-ID", "code": "format", "message": str(error)}]
    return problem(422, "The tail cannot go on there", str(error), errors=errors, code="bad_fields")


def _too_many(_: _Request, __: TooManyTails) -> Response[dict[str, Any]]:
    detail = "as many tails as there may be are running; end one, or try again"
    return problem(429, "Too many tails", detail, retry_after_s=5, code="busy")


_HANDLERS: Final[ExceptionHandlersMap] = {
    UsageError: _wrong,
    TokenError: _wrong_token,
    TooManyTails: _too_many,
    **RECEIPT_HANDLERS,
}
