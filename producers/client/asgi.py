"""Middleware for ASGI: an event for each HTTP request, once it is answered.

    app = MeteredASGI(app, tally, lambda exchange: {"client_id": exchange.headers["x-customer"], "event_name": "call"})

Rules: the request neither fails nor waits because it is metered; see `observing`. Lifespan and WebSocket pass by.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from producers.client.observing import EventOf, Exchange, observe_async
from producers.client.tally import AsyncTally, Tally

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class MeteredASGI:
    """Wraps an application. `event_of` turns an Exchange into arguments of `record`, or None for no event."""

    def __init__(self, app: Application, tally: Tally | AsyncTally, event_of: EventOf[Exchange]) -> None:
        self._app = app
        self._tally = tally
        self._event_of = event_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; the event is recorded after the application has returned, or raised."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, size = 500, 0

        async def noted(message: Message) -> None:
            nonlocal status, size
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))

        started_s = time.monotonic()
        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - started_s
            await observe_async(self._tally, self._event_of, _exchange(scope, status, size, seconds))


def _exchange(scope: Scope, status: int, size: int, seconds: float) -> Exchange:
    return Exchange(
        method=scope["method"],
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
        status=status,
        response_bytes=size,
        seconds=seconds,
        scope=scope,
    )
