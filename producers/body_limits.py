"""What bodies may take of a process: time, bytes and number, for every route alike.

Rules: connections and heads are bounded by `producers.connection`, bodies here. A body has `GRACE_S` and a second more
for every `BYTES_PER_S_MIN` that have come, then it is 408. Unfinished bodies may take half of the connections, those of
one account a quarter, so that whoever lets bodies stall stalls nobody else. A body may always hold its first
`SMALL_BYTES`; what it has beyond comes out of a pool that all requests share, of which one account gets half: past it,
429. What was held is given back when the request ends. After a refusal the connection is closed: what the sender still
puts into it is no next request. What `producers.connection` answers past ASGI was small and whole when it was read.
Runs before `producers.auth`: a request without a good key is answered before anyone reads its body. What of a body was
not read when the answer is due is read for a moment and thrown away, so that the sender reads the answer and not that
the connection was reset.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final, cast

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.types.asgi_types import HTTPReceiveMessage

from producers.problems import Problem

CONNECTIONS_MAX: Final = 4096  # of a process, idle and stalled ones too
GRACE_S: Final = 10.0
BYTES_PER_S_MIN: Final = 50_000  # ten megabytes may take 210 s
UNFINISHED_MAX: Final = CONNECTIONS_MAX // 2
SMALL_BYTES: Final = 64 << 10  # times the connections: 256 MiB
POOL_BYTES: Final = 256 << 20
LOOK_S: Final = 0.5
UNWANTED_S: Final = 2.0
UNWANTED_BYTES: Final = 20_000_000  # twice the largest body
_ACCOUNTS_MAX: Final = 10_000  # remembered; then those that hold nothing are forgotten
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class Held:
    """What the requests of someone hold now, and may hold: bodies that are not whole, and bytes beyond the small."""

    __slots__ = ("bytes", "bytes_max", "unfinished", "unfinished_max")

    def __init__(self, unfinished_max: int, bytes_max: int) -> None:
        self.unfinished_max = unfinished_max
        self.bytes_max = bytes_max
        self.unfinished = 0
        self.bytes = 0


class BodyLimits:
    """Bounds the bodies of all requests of a process: a middleware, one for each application. An account gets half of
    what all get."""

    def __init__(
        self,
        *,
        grace_s: float = GRACE_S,
        bytes_per_s_min: int = BYTES_PER_S_MIN,
        unfinished_max: int = UNFINISHED_MAX,
        small_bytes: int = SMALL_BYTES,
        pool_bytes: int = POOL_BYTES,
        unwanted_s: float = UNWANTED_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.grace_s = grace_s
        self.bytes_per_s_min = bytes_per_s_min
        self.small_bytes = small_bytes
        self.unwanted_s = unwanted_s
        self.all = Held(unfinished_max, pool_bytes)
        self.waiting: set[_Body] = set()  # for their next part
        self._look_s = look_s
        self._looking: asyncio.TimerHandle | None = None
        self._accounts: dict[str, Held] = {}

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """The application, of HTTP alone, with bounds: refusals are raised as Problem where the body is read."""

        async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
            if cast("HTTPScope", scope)["method"] in _BODILESS:
                await app(scope, receive, send)
                return
            body = _Body(self, scope, receive, send)
            try:
                await app(scope, body.receive, body.send)
            except Exception:
                await body.read_unwanted()  # whoever turns the exception into an answer sends past us
                raise
            finally:
                body.end()

        return bounded

    def account(self, name: str) -> Held:
        """What that account holds."""
        held = self._accounts.get(name)
        if held is None:
            if len(self._accounts) >= _ACCOUNTS_MAX:
                self._accounts = {name: held for name, held in self._accounts.items() if held.unfinished or held.bytes}
            held = self._accounts[name] = Held(self.all.unfinished_max // 2, self.all.bytes_max // 2)
        return held

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees to it that bodies that are overdue are ended. One timer for all of them: each its own would cost every
        request more than all the rest here."""
        if self._looking is None:
            self._looking = loop.call_later(self._look_s, self._end_overdue, loop)

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = None
        now = loop.time()
        for body in self.waiting:
            if body.due < now:
                body.give_up()
        if self.waiting:
            self.look(loop)


class _Body:
    """One request's body as it comes in."""

    __slots__ = (
        "_account",
        "_beyond",
        "_given_up",
        "_limits",
        "_receive",
        "_received",
        "_refused",
        "_scope",
        "_send",
        "_task",
        "_unfinished",
        "due",
    )

    def __init__(self, limits: BodyLimits, scope: Scope, receive: Receive, send: Send) -> None:
        self.due = 0.0  # by the loop's clock, if no more bytes come
        self._limits = limits
        self._scope = scope
        self._receive = receive
        self._send = send
        self._account: Held | None = None  # None until somebody reads
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False
        self._unfinished = False
        self._refused = False
        self._received = 0
        self._beyond = 0  # of it, bytes out of the pool

    async def receive(self) -> HTTPReceiveMessage:
        """The next part. Raises Problem 400 when the sender went away, 408 and 429."""
        account = self._account
        if account is None:
            account = self._begin()
        elif not self._unfinished:
            return await self._receive()  # type: ignore[return-value]  # only HTTP comes here
        waiting = self._limits.waiting
        waiting.add(self)
        try:
            message: HTTPReceiveMessage = await self._receive()  # type: ignore[assignment]
        except asyncio.CancelledError:
            if not self._given_up or cast("asyncio.Task[Any]", self._task).uncancel():
                raise
            raise self._too_slow() from None
        finally:
            waiting.discard(self)
        if message["type"] != "http.request":
            self._refused = True
            raise _refusal(400, "incomplete", "the sender went away before the body was whole")
        if not message.get("more_body", False):
            self._finish(account)
        size = len(message["body"])
        self._received += size
        self.due += size / self._limits.bytes_per_s_min
        if self._received > self._limits.small_bytes:
            self._take_from_pool(account)
        return message

    async def send(self, message: Message) -> None:
        """An answer that comes before the body was read waits for what is on its way."""
        if (self._unfinished or self._account is None) and message["type"] == "http.response.start":
            await self.read_unwanted()
        await self._send(message)

    async def read_unwanted(self) -> None:
        """Reads on for a moment and throws it away: a connection that is closed with bytes unread is reset, and the
        sender sees that instead of the answer."""
        if self._refused or not (self._unfinished or self._account is None):
            return
        try:
            account = self._begin() if self._account is None else self._account
        except Problem:  # no room
            return
        read = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.unwanted_s):
                while self._unfinished and read < UNWANTED_BYTES:
                    message: HTTPReceiveMessage = await self._receive()  # type: ignore[assignment]
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    read += len(message["body"])
        self._finish(account)

    def give_up(self) -> None:
        """Ends the wait for the next part, which is overdue."""
        self._given_up = True
        cast("asyncio.Task[Any]", self._task).cancel()

    def end(self) -> None:
        """Gives back what was held."""
        account = self._account
        if account is None:
            return
        self._finish(account)
        if self._beyond:
            self._limits.all.bytes -= self._beyond
            account.bytes -= self._beyond
            self._beyond = 0

    def _begin(self) -> Held:
        principal = self._scope["state"].get("principal")
        account = self._account = self._limits.account("" if principal is None else principal.account)
        together = self._limits.all
        if account.unfinished >= account.unfinished_max or together.unfinished >= together.unfinished_max:
            self._refused = True
            raise _refusal(429, "busy", "too many bodies are coming in; send it again", retry_after_s=1)
        self._unfinished = True
        account.unfinished += 1
        together.unfinished += 1
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.due = loop.time() + self._limits.grace_s
        self._limits.look(loop)
        return account

    def _take_from_pool(self, account: Held) -> None:
        more = self._received - self._limits.small_bytes - self._beyond
        for held in (account, self._limits.all):
            if held.bytes + more > held.bytes_max:
                told = "too many large bodies are coming in; send it again, or fewer events at a time"
                raise _refusal(429, "busy", told, retry_after_s=1)
        self._beyond += more
        account.bytes += more
        self._limits.all.bytes += more

    def _finish(self, account: Held) -> None:
        if self._unfinished:
            self._unfinished = False
            account.unfinished -= 1
            self._limits.all.unfinished -= 1

    def _too_slow(self) -> Problem:
        self._refused = True
        limits = self._limits
        told = (
            f"the body came too slowly: {self._received} bytes in {limits.grace_s:g} s and a second for each "
            f"{limits.bytes_per_s_min} bytes; send fewer events at a time"
        )
        return _refusal(408, "too_slow", told)


def _refusal(status: int, code: str, told: str, *, retry_after_s: int | None = None) -> Problem:
    headers = {"Connection": "close", **({} if retry_after_s is None else {"Retry-After": str(retry_after_s)})}
    return Problem(status, code, told, headers=headers)
