"""Waiting for servers that come up later than the process that needs them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 5.0


async def until_connected(
    connect: Callable[[], Awaitable[_T]], *away: type[Exception], patience_s: float = float("inf")
) -> _T:
    """What `connect` gives, tried again with growing pauses while it raises one of `away`, and each pause is logged.

    Raises what `connect` raised when the next pause would exceed the patience, in seconds.
    """
    give_up_s = time.monotonic() + patience_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return await connect()
        except away as error:
            if time.monotonic() + wait_s > give_up_s:
                raise
            log.warning("waiting_to_start", error=str(error), retry_s=wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
