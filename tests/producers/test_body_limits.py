"""Bodies are bounded in time, number and bytes, for all together and for each account."""

import asyncio
from typing import Any

import pytest

from pipeline.api_keys import Principal
from producers.body_limits import BodyLimits
from producers.problems import Problem


class Request:
    """A request to an app that reads its body and then works until it is let go."""

    def __init__(self, limits: BodyLimits, account: str = "acme", *, works: bool = False) -> None:
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.let_go = asyncio.Event()
        if not works:
            self.let_go.set()
        principal = Principal(account, frozenset(), "", "")
        self.task = asyncio.create_task(
            self._run(limits, {"type": "http", "method": "POST", "state": {"principal": principal}})
        )

    async def _run(self, limits: BodyLimits, scope: Any) -> bytes:
        body = b""

        async def app(_: Any, receive: Any, __: Any) -> None:
            nonlocal body
            while True:
                message = await receive()
                body += message["body"]
                if not message["more_body"]:
                    break
            await self.let_go.wait()

        await limits(app)(scope, self.parts.get, None)  # type: ignore[arg-type]
        return body

    async def send(self, body: bytes, *, more: bool = True) -> None:
        """A part of the body, and a turn of the loop for the app to read it."""
        await self.parts.put({"type": "http.request", "body": body, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    async def refusal(self) -> tuple[int, str, str]:
        """Status, code and what becomes of the connection."""
        with pytest.raises(Problem) as refused:
            await self.task
        return refused.value.status, refused.value.code, refused.value.headers["Connection"]


def _limits(**given: Any) -> BodyLimits:
    return BodyLimits(
        **{"unfinished_max": 8, "small_bytes": 10, "pool_bytes": 100, "unwanted_s": 0.01, "look_s": 0.005, **given}
    )


def _nothing_held(limits: BodyLimits) -> bool:
    held = [limits.all, *(limits.account(name) for name in ("", "acme", "other"))]
    return not limits.waiting and all((one.unfinished, one.bytes) == (0, 0) for one in held)


async def test_a_body_in_parts_comes_through_whole() -> None:
    """As sent, and nothing is held afterwards."""
    limits = _limits()
    request = Request(limits)
    for number in range(5):
        await request.send(b"%d" % number * 12, more=number < 4)
    assert await request.task == b"".join(b"%d" % number * 12 for number in range(5))
    assert _nothing_held(limits)


async def test_a_body_that_stops_is_a_408() -> None:
    """However little or much of it had come."""
    limits = _limits(grace_s=0.01)
    stopped, half = Request(limits), Request(limits)
    await half.send(b"x" * 20)
    for request in (stopped, half):
        assert await request.refusal() == (408, "too_slow", "close")
    assert _nothing_held(limits)


async def test_a_body_that_keeps_coming_gets_more_time() -> None:
    """Each part buys as long as the slowest rate allows."""
    limits = _limits(grace_s=0.0, bytes_per_s_min=1)
    request = Request(limits)
    request.parts.put_nowait({"type": "http.request", "body": b"x" * 50, "more_body": True})
    await asyncio.sleep(0.02)
    await request.send(b"y", more=False)
    assert await request.task == b"x" * 50 + b"y"


async def test_a_sender_that_goes_away_is_its_own_fault() -> None:
    """No defect of ours to be logged."""
    limits = _limits()
    request = Request(limits)
    await request.send(b"x")
    await request.parts.put({"type": "http.disconnect"})
    assert (await request.refusal())[:2] == (400, "incomplete")
    assert _nothing_held(limits)


async def test_unfinished_bodies_are_bounded_and_others_are_served() -> None:
    """An account gets half of them; the other account's request goes through."""
    limits = _limits()
    stalled = [Request(limits) for _ in range(4)]
    await asyncio.sleep(0)
    assert await Request(limits).refusal() == (429, "busy", "close")
    other = Request(limits, "other")
    await other.send(b"[]", more=False)
    assert await other.task == b"[]"
    await stalled[0].send(b"", more=False)
    again = Request(limits)
    await again.send(b"[]", more=False)
    assert await again.task == b"[]"
    for request in stalled[1:]:
        await request.send(b"", more=False)
        await request.task
    assert _nothing_held(limits)


async def test_all_accounts_together_are_bounded() -> None:
    """Of unfinished bodies: those of a third account are too many."""
    limits = _limits()
    stalled = [Request(limits, account) for account in ("a", "b") for _ in range(4)]
    await asyncio.sleep(0)
    assert (await Request(limits, "c").refusal())[0] == 429
    for request in stalled:
        request.task.cancel()
    await asyncio.wait([request.task for request in stalled])
    assert _nothing_held(limits)


async def test_held_bytes_are_bounded_but_small_bodies_always_fit() -> None:
    """Whole or not, until the request has ended; an account has half of the pool."""
    limits = _limits()
    working = Request(limits, works=True)
    await working.send(b"x" * 60, more=False)  # all that one account may hold
    large = Request(limits)
    await large.send(b"x" * 10)
    await large.send(b"x")
    assert await large.refusal() == (429, "busy", "close")
    small = Request(limits)
    await small.send(b"x" * 10, more=False)
    assert await small.task == b"x" * 10
    other = Request(limits, "other")
    await other.send(b"x" * 60, more=False)
    assert await other.task == b"x" * 60
    working.let_go.set()
    await working.task
    assert _nothing_held(limits)


async def test_what_nobody_read_is_read_before_the_answer() -> None:
    """By an answer, or an exception that somebody else turns into one; a sender that stalls is not waited for long."""
    for parts in (3, 1):
        for raises in (True, False):
            limits = _limits()
            incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            sent: list[Any] = []
            for number in range(parts):
                incoming.put_nowait({"type": "http.request", "body": b"x" * 90, "more_body": number < 2})

            async def app(_: Any, __: Any, send: Any, raises: bool = raises) -> None:
                if raises:
                    raise Problem(401, "unauthenticated", "no key")
                await send({"type": "http.response.start", "status": 401, "headers": []})

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            scope: Any = {"type": "http", "method": "POST", "state": {}}
            handled = limits(app)(scope, incoming.get, send)  # type: ignore[arg-type]
            if raises:
                with pytest.raises(Problem, match="no key"):
                    await handled
            else:
                await handled
            assert (len(sent), incoming.qsize()) == (0 if raises else 1, 0)
            assert _nothing_held(limits)
