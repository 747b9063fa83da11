"""Middleware for WSGI (PEP 3333): an event for each request, once its answer has been sent.

    app = MeteredWSGI(app, tally, lambda exchange: {"client_id": exchange.headers["x-customer"], "event_name": "call"})

Rules: the request neither fails nor waits because it is metered; see `observing`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from producers.client.observing import EventOf, Exchange, observe
from producers.client.tally import Tally

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class MeteredWSGI:
    """Wraps an application. `event_of` turns an Exchange into arguments of `record`, or None for no event."""

    def __init__(self, app: Application, tally: Tally, event_of: EventOf[Exchange]) -> None:
        self._app = app
        self._tally = tally
        self._event_of = event_of

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """One request; the event is recorded when the server closes the answer, as PEP 3333 has it do."""
        answer = _Answer(environ, start_response, self._record)
        try:
            answer.parts = self._app(environ, answer.start)
        except BaseException:
            self._record(answer)
            raise
        return answer

    def _record(self, answer: "_Answer") -> None:
        observe(self._tally, self._event_of, answer.exchange())


class _Answer:
    """The application's answer, looked at as it passes."""

    def __init__(self, environ: Environ, start_response: StartResponse, ended: Callable[["_Answer"], None]) -> None:
        self.parts: Iterable[bytes] = ()
        self._environ = environ
        self._start_response = start_response
        self._ended = ended
        self._status = 500
        self._size = 0
        self._started_s = time.monotonic()

    def start(self, status: str, *rest: Any, **more: Any) -> Callable[[bytes], object]:
        """WSGI's start_response."""
        write = self._start_response(status, *rest, **more)
        self._status = int(status[:3])

        def noted(part: bytes) -> object:
            self._size += len(part)
            return write(part)

        return noted

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            self._size += len(part)
            yield part

    def close(self) -> None:
        """The server calls it once, also when the client went away."""
        try:
            if (close := getattr(self.parts, "close", None)) is not None:
                close()
        finally:
            self._ended(self)

    def exchange(self) -> Exchange:
        """What is known of it now."""
        environ = self._environ
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): given
            for name, given in environ.items()
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }
        return Exchange(
            method=environ["REQUEST_METHOD"],
            path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            headers=headers,
            status=self._status,
            response_bytes=self._size,
            seconds=time.monotonic() - self._started_s,
            scope=environ,
        )
