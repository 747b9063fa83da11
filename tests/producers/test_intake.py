"""Intake: events that are sent without waiting; reading the catalog to its end, shared by those who ask together."""

import asyncio

import pytest

from pipeline.api_keys import Principal
from pipeline.catalog import Catalog
from pipeline.event import Event
from pipeline.ports import CatalogUnavailable, LogUnavailable
from producers.group_commit import Fate
from producers.intake import CatalogReader, Intake
from producers.memory_log import MemoryLog
from producers.problems import Problem
from producers.publisher import Publisher


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


def intake_of(log: MemoryLog, **bounds: int) -> Intake:
    """On that log."""
    reader = CatalogReader(SlowCatalog())  # type: ignore[arg-type]
    publisher = Publisher(log, topic="events", partitions=6)
    return Intake(publisher, reader, clock_us=lambda: 0, ahead_max_us=0, new_id=lambda: "made", **bounds)


SENDER = Principal("acme", frozenset(), "", "")
EVENT = Event(client_id="c", timestamp_us=0)


async def test_the_fate_of_an_event_that_is_sent_is_told_later() -> None:
    """Not before the log has answered; an event without an id gets one at once."""
    log, fates = MemoryLog(), asyncio.Queue[Fate]()
    intake = intake_of(log)
    assert intake.send(SENDER, EVENT, fates.put_nowait) == "made"
    assert fates.empty()
    assert await fates.get() is None
    assert b'"transactionId":"made"' in log.lines()[0]
    log.away = True
    intake.send(SENDER, EVENT, fates.put_nowait)
    assert isinstance(await fates.get(), LogUnavailable)


async def test_events_that_are_sent_count_among_those_in_flight() -> None:
    """Until their fate is told, whatever it is; one more than there may be is refused."""
    log, fates = MemoryLog(), asyncio.Queue[Fate]()
    log.away = True
    intake = intake_of(log, in_flight_events_max=1)
    for _ in range(3):
        intake.send(SENDER, EVENT, fates.put_nowait)
        with pytest.raises(Problem) as refused:
            intake.send(SENDER, EVENT, fates.put_nowait)
        assert refused.value.status == 429
        await fates.get()
