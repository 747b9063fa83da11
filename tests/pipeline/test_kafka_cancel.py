"""Readers of ranges that are cancelled while their driver swallows cancellations, as aiokafka does when it stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from pipeline.adapters import kafka
from pipeline.adapters.kafka import LogRanges, read_range
from pipeline.ports import LogUnavailable, Record
from pipeline.settings import Settings


class _Driver:
    """Stops as the driver's fetcher does: it waits for a task of its own and suppresses what cancels the wait."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        """Connected at once."""

    async def beginning_offsets(self, _: Sequence[Any]) -> Any:
        """Broken, so that the caller disconnects."""
        raise TimeoutError

    def assign(self, _: Any) -> None:
        """Nothing to do."""

    def seek(self, *_: Any) -> None:
        """Nothing to do."""

    async def getmany(self, **_: Any) -> dict[Any, Any]:
        """Nothing is there."""
        return {}

    async def position(self, _: Any) -> int:
        """Already past the range."""
        return 10

    async def stop(self) -> None:
        """Swallows cancellations until its own task has ended."""
        self.stopping.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.may_stop.wait()
        self.stopped.set()


async def _read(ranges: AsyncIterator[Sequence[Record]]) -> None:
    async for _ in ranges:
        pass


async def _bounds() -> None:
    with contextlib.suppress(LogUnavailable):
        await LogRanges(Settings()).bounds("topic", 0)


@pytest.mark.parametrize("work", [lambda: _read(read_range(Settings(), "topic", 0, 0, 5)), _bounds])
async def test_a_reader_that_is_cancelled_while_it_disconnects_ends(
    work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a session would go on after the rebalance that ended it, and the worker wait for it for ever."""
    driver = _Driver()
    monkeypatch.setattr(kafka, "_reader", lambda _: driver)

    async def session() -> None:
        await work()
        await asyncio.Event().wait()  # what a session does next: it waits for records that nobody brings

    task = asyncio.create_task(session())
    await driver.stopping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    driver.may_stop.set()
    await asyncio.wait_for(driver.stopped.wait(), 5)
