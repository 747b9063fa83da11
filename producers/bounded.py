"""How long a door waits for a change of the catalog: changes of one process take turns, and while Kafka is away each of
those before may take its whole time-out."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from pipeline.ports import CatalogUnavailable

BOUND_S: Final = 20.0  # the longest that one look at the log's end takes

_T = TypeVar("_T")


async def in_time(change: Awaitable[_T], bound_s: float = BOUND_S) -> _T:
    """What the change gives. Raises CatalogUnavailable past the bound; the change may still have been made."""
    try:
        async with asyncio.timeout(bound_s):
            return await change
    except TimeoutError as error:
        raise CatalogUnavailable(
            f"the catalog took no change within {bound_s:g} s; is Kafka reachable?", retry_after_s=5
        ) from error
