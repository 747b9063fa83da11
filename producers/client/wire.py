"""The wire: batches of events to `POST /v1/events/batch` of the API, as NDJSON in gzip.

Rules: one module knows the HTTP client. A request that fails in any way at all has an unknown outcome, never a lost
one. A forked child makes connections of its own and leaves its parent's alone.
"""

import codecs
import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import httpx

from producers.client.answers import Outcome, Unknown, judge
from producers.client.event import Recorded

_PATH: Final = "/v1/events/batch"
_GZIP_FROM_BYTES: Final = 1_024  # below, packing costs more than it saves
_GZIP_LEVEL: Final = 1  # a sixth of the size at a fraction of the time that the higher ones take

_inherited: list[httpx.Client] = []  # a parent's clients: kept, so that nothing closes them in a child


class Wire:
    """Posts batches. One thread at a time. Raises ValueError for an address that is none."""

    def __init__(self, url: str, key: str, *, timeout_s: float) -> None:
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            raise ValueError(f"url must be the API's address, such as https://metering.example.com, not {url!r}")
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError("key must be an API key with the scope ingest")
        self._url = url
        self._timeout_s = timeout_s
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/x-ndjson",
            "User-Agent": f"tallystream-python/{_version()}",
        }
        # made here, not by the sender: it imports modules, and a fork in the midst of that leaves a child with halves
        self._client: httpx.Client | None = self._connect()
        codecs.lookup("idna")  # likewise imported at the first connection, by the socket module

    def post(self, batch: Sequence[Recorded]) -> Outcome:
        """What became of each event. Blocks up to the time-out; raises nothing that a network can cause."""
        body = b"\n".join(event.line for event in batch)
        headers = {}
        if len(body) >= _GZIP_FROM_BYTES:
            body, headers = gzip.compress(body, _GZIP_LEVEL), {"Content-Encoding": "gzip"}
        if self._client is None:
            self._client = self._connect()
        try:
            answer = self._client.post(_PATH, content=body, headers=headers)
        except httpx.HTTPError as error:  # also an answer that cannot be decoded: it may have been a good one
            return Unknown(f"no answer from {self._url}: {error!r}")
        return judge(
            answer.status_code, answer.headers.get("retry-after"), answer.content, batch, now=datetime.now(UTC)
        )

    def forked(self) -> None:
        """In a child: the connections are the parent's."""
        if self._client is not None:
            _inherited.append(self._client)
            self._client = None

    def close(self) -> None:
        """Ends the connections; `post` makes new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, headers=self._headers, timeout=self._timeout_s)


def _version() -> str:
    try:
        return version("tallystream")
    except PackageNotFoundError:  # run from its sources
        return "0"
