"""Commits that share a request. The coordinator appends a request's commits at once, but takes a connection's requests
one after the other and may let each wait for others (Kafka's group.coordinator.append.linger.ms): six commits of six
partitions took 20 to 45 ms, the same in one request 5 to 15.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pipeline.futures import tell
from pipeline.ports import CommitAnswer, Member

_LINGER_S: Final = 0.001  # sessions that were told of their insert together come within less
Send = Callable[[Mapping[int, tuple[int, str]], Member], Awaitable[Mapping[int, CommitAnswer]]]


class _Waiting:
    __slots__ = ("answer", "member", "offset", "partition")

    def __init__(self, partition: int, offset: tuple[int, str], member: Member) -> None:
        self.partition = partition
        self.offset = offset
        self.member = member
        self.answer: asyncio.Future[CommitAnswer] = asyncio.get_running_loop().create_future()


class SharedCommits:
    """Commits of all sessions of a worker: what comes in the same moment, or while a request is under way, goes
    together in the next one. Used from one event loop. `send` sends offsets and metadata by partition, once, under that
    membership, and tells what became of each."""

    def __init__(self, send: Send) -> None:
        self._send: Final = send
        self._waiting: list[_Waiting] = []
        self._sending: asyncio.Task[None] | None = None

    async def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        """One commit, sent once; not at all when cancelled before. Raises what `send` raises."""
        mine = _Waiting(partition, (offset, metadata), member)
        self._waiting.append(mine)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all())
        return await mine.answer

    async def _send_all(self) -> None:
        await asyncio.sleep(_LINGER_S)
        while together := self._take():
            offsets = {one.partition: one.offset for one in together}
            answers: Mapping[int, CommitAnswer | Exception]
            try:
                answers = await self._send(offsets, together[0].member)
            except Exception as error:  # noqa: BLE001 - a fault of the program: each who shares the request raises it
                answers = dict.fromkeys(offsets, error)
            for one in together:
                tell(one.answer, answers[one.partition])

    def _take(self) -> list[_Waiting]:
        """Those that may go with the first one: of its membership, one of each partition, in their order."""
        waiting = [one for one in self._waiting if not one.answer.done()]
        together: dict[int, _Waiting] = {}
        self._waiting = []
        for one in waiting:
            if one.partition in together or one.member != waiting[0].member:
                self._waiting.append(one)
            else:
                together[one.partition] = one
        return list(together.values())
