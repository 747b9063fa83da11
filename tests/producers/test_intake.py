"""Reading the catalog to its end: shared by those who ask together, in success and in failure."""

import asyncio

import pytest

from pipeline.catalog import Catalog
from pipeline.ports import CatalogUnavailable
from producers.intake import CatalogReader


class SlowCatalog:
    """As much of a catalog as reading to the end needs; each reading waits for `go`."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.begun = 0
        self.go = asyncio.Event()
        self.away = False

    async def catch_up(self) -> int:
        """Counts, waits, and fails while away."""
        self.begun += 1
        await self.go.wait()
        if self.away:
            raise CatalogUnavailable("away")
        return self.catalog.version


async def ask(reader: CatalogReader, count: int) -> "list[asyncio.Task[None]]":
    """So many callers, all waiting."""
    tasks = [asyncio.create_task(reader.catch_up()) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_callers_share_the_reading_that_begins_after_they_asked() -> None:
    """A reading that is under way may have missed what they know of; one more serves all of them."""
    slow = SlowCatalog()
    reader = CatalogReader(slow)  # type: ignore[arg-type]
    first = await ask(reader, 10)
    assert slow.begun == 1
    second = await ask(reader, 100)
    assert slow.begun == 1
    slow.go.set()
    await asyncio.gather(*first, *second)
    assert slow.begun == 2
    await reader.catch_up()
    assert slow.begun == 3


async def test_a_failure_is_shared_too() -> None:
    """Otherwise each caller in turn would wait for the whole time-out."""
    slow = SlowCatalog()
    slow.away = True
    reader = CatalogReader(slow)  # type: ignore[arg-type]
    first, second = await ask(reader, 5), await ask(reader, 50)
    slow.go.set()
    outcomes = await asyncio.gather(*first, *second, return_exceptions=True)
    assert all(isinstance(outcome, CatalogUnavailable) for outcome in outcomes)
    assert slow.begun == 2
    slow.away = False
    await reader.catch_up()


async def test_a_caller_that_gives_up_takes_nobody_with_it() -> None:
    """A client that disconnects must not fail the others."""
    slow = SlowCatalog()
    reader = CatalogReader(slow)  # type: ignore[arg-type]
    gone, stays = await ask(reader, 2)
    gone.cancel()
    slow.go.set()
    await stays
    with pytest.raises(asyncio.CancelledError):
        await gone
