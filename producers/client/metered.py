"""A decorator that records an event for each call of a function, plain or async.

    @metered(tally, lambda call: {"client_id": call.args[0], "feature_id": "tokens", "value": call.result.tokens})
    def complete(customer, prompt): ...

Rules: the call neither fails nor waits because it is metered; see `observing`. A call that raised makes an event too,
when `event_of` gives one: `call.error` says what it was.
"""

import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar, cast

from producers.client.observing import Call, EventOf, observe, observe_async
from producers.client.tally import AsyncTally, Tally

_P = ParamSpec("_P")
_R = TypeVar("_R")


def metered(tally: Tally | AsyncTally, event_of: EventOf[Call]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """The decorator. `event_of` turns a Call into arguments of `record`, or None for no event.

    Raises TypeError for a generator function, whose call ends before it has done anything, and for AsyncTally on a
    plain function.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: call record where it ends")
        if inspect.iscoroutinefunction(function):
            return cast(Callable[_P, _R], _around_async(function, tally, event_of))
        if isinstance(tally, AsyncTally):
            raise TypeError(f"{function.__qualname__} is no coroutine function: meter it with Tally")
        return _around(function, tally, event_of)

    return decorate


def _around(function: Callable[_P, _R], tally: Tally, event_of: EventOf[Call]) -> Callable[_P, _R]:
    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        started_s = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            observe(tally, event_of, Call(args, time.monotonic() - started_s, kwargs, error=error))
            raise
        observe(tally, event_of, Call(args, time.monotonic() - started_s, kwargs, result))
        return result

    return call


def _around_async(
    function: Callable[_P, Awaitable[Any]], tally: Tally | AsyncTally, event_of: EventOf[Call]
) -> Callable[_P, Awaitable[Any]]:
    @functools.wraps(function)
    async def call(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        started_s = time.monotonic()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            await observe_async(tally, event_of, Call(args, time.monotonic() - started_s, kwargs, error=error))
            raise
        await observe_async(tally, event_of, Call(args, time.monotonic() - started_s, kwargs, result))
        return result

    return call
