"""When blocks close beside an insert: a clock of its own, no time passes."""

import asyncio
from collections.abc import Awaitable

from virtual_loop import run_virtually

from pipeline.pace import Pace

MANY = 45_000  # rows; with what an insert costs anyway, four times that of none


async def waits(awaitable: Awaitable[None]) -> float:
    """How long it takes, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await awaitable
    return round(loop.time() - began, 3)


async def one_insert(pace: Pace, rows: int, seconds: float, *, build_s: float = 0.0, done: bool = True) -> None:
    """An insert of one block that takes so long, and the build of as many rows that come after it."""
    pace.insert_begins(rows, 1)
    pace.closed("block", rows)
    await asyncio.sleep(build_s)
    pace.built("block")
    await asyncio.sleep(seconds - build_s)
    pace.insert_ends(done=done)


def test_without_an_insert_one_may_close_at_once() -> None:
    async def go() -> None:
        assert await waits(Pace().until_one_may_close()) == 0

    run_virtually(go)


def test_beside_the_first_insert_one_closes_when_it_ends() -> None:
    async def go() -> None:
        pace = Pace()
        insert = asyncio.create_task(one_insert(pace, MANY, 2.0))
        await asyncio.sleep(0)
        assert await waits(pace.until_one_may_close()) == 2.0
        await insert

    run_virtually(go)


def test_later_ones_close_so_that_they_are_built_when_it_ends() -> None:
    """A build takes 0.4 s, the insert 2 s, and one of none a quarter of that: it closes then less than 1.6 s before."""

    async def go() -> None:
        pace = Pace()
        await one_insert(pace, MANY, 2.0, build_s=0.4)
        pace.insert_begins(MANY, 1)
        assert 1.2 < await waits(pace.until_one_may_close()) < 1.6
        pace.insert_ends(done=True)
        pace.insert_begins(MANY // 3, 1)
        assert 0.7 < await waits(pace.until_one_may_close()) < 0.9  # a third to build, too

    run_virtually(go)


def test_they_close_sooner_as_soon_as_there_are_more_of_them() -> None:
    """A row takes longer to build than to insert here, but what an insert costs anyway hides that while there are few.
    With ten times as many rows the store would wait for the builder, unless the next ones close at once."""

    async def go() -> None:
        pace = Pace()
        for _ in range(5):
            await one_insert(pace, 5_000, 2.0, build_s=1.0)
        pace.insert_begins(5_000, 1)
        assert await waits(pace.until_one_may_close()) > 0.5
        pace.insert_ends(done=True)
        pace.insert_begins(50_000, 1)
        assert await waits(pace.until_one_may_close()) == 0

    run_virtually(go)


def test_an_insert_that_fails_tells_nothing_about_their_time() -> None:
    async def go() -> None:
        pace = Pace()
        await one_insert(pace, MANY, 2.0)
        await one_insert(pace, MANY, 30.0, done=False)
        pace.insert_begins(MANY, 1)
        assert await waits(pace.until_one_may_close()) == 2.0

    run_virtually(go)


def test_blocks_close_together_whatever_their_time_beside_an_insert_of_many() -> None:
    """Not beside one of few: each would cost the store what one of many does."""

    async def go() -> None:
        pace = Pace()
        closing = asyncio.create_task(waits(pace.until_others_close()))
        await one_insert(pace, 5_000, 2.0)
        assert not closing.done()
        await one_insert(pace, MANY, 2.0)
        assert 2.0 < await closing <= 4.0
        closing = asyncio.create_task(waits(pace.until_others_close()))
        await asyncio.sleep(1.0)
        pace.closes()
        assert await closing == 1.0

    run_virtually(go)
