"""The doors of one process on a log and a catalog in memory; everything between is the real thing."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from door_bench import DAY_US, NOW_US, PARTITIONS, Doors

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog_input import customer_from, feature_from
from pipeline.catalog_service import CatalogService
from pipeline.transaction_id import new_transaction_id
from producers.api import Services, build_app
from producers.intake import CatalogReader, Intake
from producers.memory_log import MemoryLog
from producers.publisher import Publisher

sys.path.append(str(Path(__file__).parents[1] / "faults"))  # the proxy, for tests of what networks do to clients


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    """An account `acme` with the seed's two features, one consumable and an admin key."""
    log, catalog_log = MemoryLog(), MemoryCatalogLog()
    client = CatalogClient(catalog_log)
    await client.start()
    catalog = CatalogService(client)
    first = await catalog.ensure_first_account("acme")
    generations = ["email_generation", "social_media_generation", "blog_post_generation"]
    await catalog.create_feature(feature_from("acme", {"id": "total-generations", "event_names": generations}))
    await catalog.create_feature(feature_from("acme", {"id": "blog-posts", "event_names": generations[2:]}))
    await catalog.create_feature(feature_from("acme", {"id": "ai-messages"}))
    await catalog.create_customer(customer_from("acme", {"id": "124"}))
    intake = Intake(
        Publisher(log, topic="events", partitions=PARTITIONS),
        CatalogReader(catalog),
        clock_us=lambda: NOW_US,
        ahead_max_us=DAY_US,
        new_id=new_transaction_id,
    )
    app = build_app(Services(intake, {"kafka": catalog_log.end_offset}))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tally") as http:
        yield Doors(app, http, log, catalog_log, catalog, intake, first.secret)
    await client.stop()
