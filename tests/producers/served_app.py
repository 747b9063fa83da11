"""The application that the wire tests serve: real doors on a log and a catalog in memory."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog_input import customer_from, feature_from
from pipeline.catalog_service import CatalogService
from pipeline.transaction_id import new_transaction_id
from producers.api import Services, build_app
from producers.intake import CatalogReader, Intake
from producers.memory_log import MemoryLog
from producers.publisher import Publisher


class HeldLog(MemoryLog):
    """A log that says when a write has begun and acknowledges once it is told to, both by files of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def write(self, topic: str, value: bytes | None, **rest: Any) -> int:
        """As the log in memory does, when the file `go` is there."""
        (self._folder / "begun").touch()
        while not (self._folder / "go").exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(0.02)
        return await super().write(topic, value, **rest)


def make_app() -> Litestar:
    """Called by each serving process."""
    catalog_log = MemoryCatalogLog()
    held = os.environ.get("SERVED_HELD_FOLDER")
    log = MemoryLog() if held is None else HeldLog(Path(held))
    client = CatalogClient(catalog_log)
    catalog = CatalogService(client)
    intake = Intake(
        Publisher(log, topic="events", partitions=6),
        CatalogReader(catalog),
        clock_us=lambda: time.time_ns() // 1000,
        ahead_max_us=0,
        new_id=new_transaction_id,
    )

    @asynccontextmanager
    async def running(_: Litestar) -> AsyncIterator[None]:
        if (never := os.environ.get("SERVED_NEVER")) is not None:
            _begun(never)
            await asyncio.Event().wait()
        await client.start()
        first = await catalog.ensure_first_account("acme")
        await catalog.create_feature(feature_from("acme", {"id": "calls"}))
        await catalog.create_customer(customer_from("acme", {"id": "c"}))
        _tell(first.secret)
        yield
        await client.stop()

    return build_app(Services(intake, {"catalog": catalog_log.end_offset}), lifespan=[running])


def _begun(path: str) -> None:
    Path(path).touch()


def _tell(secret: str) -> None:
    """Leaves the key where the test looks for it."""
    Path(os.environ["SERVED_KEY_FILE"]).write_text(secret)
