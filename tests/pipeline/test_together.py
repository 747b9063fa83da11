"""Group commit: who comes while a write is under way shares the next one, and its failure."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.together import TogetherWriter

WRITERS = 6


@pytest.fixture
def io() -> Iterator[ThreadPoolExecutor]:
    """Threads that may write at once."""
    with ThreadPoolExecutor(WRITERS) as threads:
        yield threads


class _Slow:
    """Writes that go on when they are let; the second one fails where it is asked to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.writes: list[list[int]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._fails = fails

    def __call__(self, numbers: Sequence[int]) -> None:
        self.writes.append(list(numbers))
        self.begun.set()
        assert self.go_on.wait(10)
        if self._fails and len(self.writes) == 2:
            raise ConnectionError("the server went away")


async def _all_at_once(slow: _Slow, io: ThreadPoolExecutor) -> list[asyncio.Task[None]]:
    """One write that is under way while the others come; all are over."""
    writer = TogetherWriter(slow, io)
    tasks = [asyncio.create_task(writer.write(0))]
    await asyncio.get_running_loop().run_in_executor(io, slow.begun.wait, 10)
    tasks += [asyncio.create_task(writer.write(number)) for number in range(1, WRITERS)]
    await asyncio.sleep(0.01)
    assert slow.writes == [[0]]
    slow.go_on.set()
    await asyncio.wait(tasks)
    return tasks


def test_those_who_come_meanwhile_share_one_write(io: ThreadPoolExecutor) -> None:
    async def go() -> None:
        slow = _Slow()
        for task in await _all_at_once(slow, io):
            task.result()
        assert slow.writes == [[0], list(range(1, WRITERS))]

    asyncio.run(go())


def test_a_write_that_fails_fails_for_all_who_share_it_and_for_nobody_else(io: ThreadPoolExecutor) -> None:
    async def go() -> None:
        first, *shared = await _all_at_once(_Slow(fails=True), io)
        first.result()
        for task in shared:
            with pytest.raises(ConnectionError):
                task.result()

    asyncio.run(go())


def test_after_a_failure_the_next_write_is_tried(io: ThreadPoolExecutor) -> None:
    tried: list[list[int]] = []

    def write(numbers: Sequence[int]) -> None:
        tried.append(list(numbers))
        if len(tried) == 1:
            raise ConnectionError

    async def go() -> None:
        writer = TogetherWriter(write, io)
        with pytest.raises(ConnectionError):
            await writer.write(1)
        await writer.write(1)
        assert tried == [[1], [1]]

    asyncio.run(go())


def test_those_who_are_woken_at_once_share_a_write(io: ThreadPoolExecutor) -> None:
    """Whoever wakes the others goes on first, and finds no write under way."""
    writes: list[list[int]] = []

    async def go() -> None:
        writer = TogetherWriter(lambda numbers: writes.append(sorted(numbers)), io)
        woken = asyncio.Event()

        async def wait(number: int) -> None:
            await woken.wait()
            await writer.write(number)

        tasks = [asyncio.create_task(wait(number)) for number in range(1, WRITERS)]
        await asyncio.sleep(0)
        woken.set()
        await writer.write(0)
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert writes == [list(range(WRITERS))]


def test_the_first_one_waits_for_others_where_it_may(io: ThreadPoolExecutor) -> None:
    """Those who come one after the other share a write, too."""
    writes: list[list[int]] = []

    async def go() -> None:
        writer = TogetherWriter(lambda numbers: writes.append(sorted(numbers)), io, linger_s=0.5)
        tasks = []
        for number in range(WRITERS):
            tasks.append(asyncio.create_task(writer.write(number)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)

    asyncio.run(go())
    assert writes == [list(range(WRITERS))]


def test_who_is_gone_before_the_write_begins_is_not_written(io: ThreadPoolExecutor) -> None:
    """A session that has ended owns its partition no longer."""
    writes: list[list[int]] = []

    async def go() -> None:
        writer = TogetherWriter(lambda numbers: writes.append(sorted(numbers)), io, linger_s=0.05)
        gone, stays = [asyncio.create_task(writer.write(number)) for number in range(2)]
        await asyncio.sleep(0)
        gone.cancel()
        await stays

    asyncio.run(go())
    assert writes == [[1]]


def test_closed_it_writes_no_more(io: ThreadPoolExecutor) -> None:
    writes: list[list[int]] = []

    async def go() -> None:
        writer = TogetherWriter(lambda numbers: writes.append(sorted(numbers)), io, linger_s=0.01)
        waits = asyncio.create_task(writer.write(0))
        await asyncio.sleep(0)
        waits.cancel()
        writer.close()
        await asyncio.sleep(0.05)

    asyncio.run(go())
    assert writes == []
