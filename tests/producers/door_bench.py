"""What tests of the doors hold in their hands: the app, the log in memory behind it, and a key."""

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx
from litestar import Litestar

from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog_service import CatalogService
from producers.intake import Intake
from producers.memory_log import MemoryLog

PARTITIONS = 6
DAY_US = 86_400_000_000
NOW_US = time.time_ns() // 1000


@dataclass
class Doors:
    """What a test holds in its hands."""

    app: Litestar
    client: httpx.AsyncClient
    log: MemoryLog
    catalog_log: MemoryCatalogLog
    catalog: CatalogService
    intake: Intake
    key: str

    def events(self) -> list[dict[str, Any]]:
        """The events in the log, in the order written."""
        return [json.loads(line) for line in self.log.lines()]

    def on(self, app: Litestar) -> httpx.AsyncClient:
        """A client of another application."""
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://tally")

    async def key_with(self, *scopes: str, name: str = "") -> str:
        """The secret of a new key."""
        return (await self.catalog.create_key("acme", {"scopes": list(scopes), "name": name})).secret

    async def post(
        self, path: str, body: object = None, *, content: bytes | None = None, **headers: str
    ) -> httpx.Response:
        """A POST of JSON with the admin key, unless other headers are given; an empty header is left out."""
        given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        given = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **given}
        given = {name: value for name, value in given.items() if value}
        return await self.client.post(
            path, content=json.dumps(body).encode() if content is None else content, headers=given
        )
