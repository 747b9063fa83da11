"""A door's wait for the catalog has an end."""

import asyncio

import pytest

from pipeline.ports import CatalogUnavailable
from producers.bounded import in_time


async def test_a_change_that_is_made_is_given_back() -> None:
    """As it is, its own failure too."""

    async def made() -> int:
        return 5

    async def refused() -> int:
        raise ValueError("no")

    assert await in_time(made()) == 5
    with pytest.raises(ValueError, match="no"):
        await in_time(refused())


async def test_a_change_whose_turn_does_not_come_is_unavailable() -> None:
    """It is given up, and those behind it may go on."""
    turn = asyncio.Lock()

    async def change() -> None:
        async with turn:
            await asyncio.Event().wait()

    for _ in range(2):
        with pytest.raises(CatalogUnavailable, match="Kafka") as told:
            await in_time(change(), 0.01)
        assert told.value.retry_after_s >= 1
        assert not turn.locked()
