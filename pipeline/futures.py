"""What those are told who wait for one answer together."""

import asyncio
from typing import TypeVar

_T = TypeVar("_T")


def tell(future: "asyncio.Future[_T]", outcome: _T | Exception) -> None:
    """Gives whoever waits the outcome, or raises it there; nothing where that is over already."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
