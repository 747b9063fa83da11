"""Inserts that blocks of several partitions share: what an insert costs the store hardly depends on its rows.

Such an insert carries a token that only its sender can name, so that whoever takes one of the partitions over cannot
send it again. Therefore:
- a block goes with others only where its statement says that it may (`Intent.shared`), and only within the shared lease
  after that statement. Past it, and before each further try, it is stated anew, which proves that its session still is
  the owner;
- every try of an insert carries the same token, and the rows of those blocks whose sessions still are there; the first
  one also those of sessions that have ended meanwhile, whose successors then find the block instead of waiting for it;
- whoever finds such a statement and is not its sender looks until the shared lease and the shared deadline are over,
  and acts by itself only then (`Session._look_for_shared`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import structlog

from pipeline.futures import tell
from pipeline.pace import Pace
from pipeline.ports import StoreError, StoreUnavailable
from pipeline.stages.sink import Block

_RETRY_FIRST_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
_COMING_S: Final = 0.2  # for each, so that partitions fall into step; past that each goes on as it comes
_ALL_COMING_S: Final = 1.0
_Place = tuple[int, int]  # partition and start of a block
_log = structlog.get_logger(__name__)


class SharedLimits(msgspec.Struct, frozen=True):
    """`lease_ms`: how long after its statement a block may begin to go with others; 0: never. `deadline_ms`: how long
    after that the store may work on the insert at most. `tries_ms`: how long an insert is tried again while the store
    does not answer; one that is refused, only for a lease, since one block may be the reason for all. `rows_max` and
    `bytes_max` are of all blocks of an insert, as sent, `block_rows_max` and `block_bytes_max` of each that goes with
    others."""

    lease_ms: int
    deadline_ms: int
    tries_ms: int
    rows_max: int
    bytes_max: int
    block_rows_max: int
    block_bytes_max: int

    @property
    def settled_ms(self) -> int:
        """So long after its statement nothing of a block can arrive with others any more."""
        return self.lease_ms + self.deadline_ms


class Sent(Enum):
    """What became of a block that was to go with others."""

    DONE = "done"
    DOUBTFUL = "done, after a try whose outcome is unknown"
    GIVEN_UP = "tried for too long"


class _Member:
    """A block on its way. `done` is cancelled with its session."""

    __slots__ = ("begun", "block", "done", "restate", "stated_ms")

    def __init__(
        self, block: Block, stated_ms: int, restate: Callable[[], Awaitable[int]], begun: Callable[[], None]
    ) -> None:
        self.block = block
        self.stated_ms = stated_ms
        self.restate = restate
        self.begun = begun
        self.done: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()


class _Insert:
    """Blocks that go together; the same token on every try."""

    __slots__ = ("_members", "begun_ms", "error", "sparse", "token")

    def __init__(self, members: Sequence[_Member], begun_ms: int) -> None:
        self._members = members
        self.begun_ms = begun_ms
        self.error: StoreUnavailable | StoreError | None = None
        self.token = "+".join(member.block.token for member in members)
        # whoever leaves: the store knows a token again only where it comes the same way
        self.sparse = any(member.block.sparse for member in members)

    def members(self) -> list[_Member]:
        """Those whose sessions still wait."""
        return [member for member in self._members if not member.done.done()]

    def left(self, stated_since_ms: int) -> list[_Member]:
        """Those whose sessions ended before anything of them was sent, under a statement that is young enough."""
        gone = [] if self.error else [member for member in self._members if member.done.cancelled()]
        return [member for member in gone if member.stated_ms >= stated_since_ms]

    def end(self, outcome: Sent | Exception) -> None:
        _tell_all(self._members, outcome)


class _Coming:
    """Blocks that are on their way to the same point, and a way to wait for them there."""

    def __init__(self) -> None:
        self._places: set[_Place] = set()
        self._one_less = asyncio.Event()

    def add(self, place: _Place) -> None:
        self._places.add(place)

    def discard(self, place: _Place) -> None:
        """It has come, or does not come any more."""
        self._places.discard(place)
        self._one_less.set()

    async def until_all_came(self) -> None:
        """Returns once none is on its way; sooner where the next one does not come a moment after the one before."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _ALL_COMING_S
        while self._places and loop.time() < end_s:
            self._one_less.clear()
            try:
                async with asyncio.timeout(_COMING_S):
                    await self._one_less.wait()
            except TimeoutError:
                return


class _InsertTogether(Protocol):
    def __call__(self, blocks: Sequence[Block], token: str, deadline_ms: int, /, *, sparse: bool) -> None: ...


class SharedInserts:
    """One for all sessions of a worker, in its event loop. `insert` is `Blocks.insert_together`; `inserting` has a
    place for each insert that may be under way."""

    def __init__(
        self,
        insert: _InsertTogether,
        io: Executor,
        now_ms: Callable[[], int],
        inserting: asyncio.Semaphore,
        limits: SharedLimits,
    ) -> None:
        self.limits = limits
        self._insert = insert
        self._io = io
        self._now_ms = now_ms
        self._inserting = inserting
        self._one_at_a_time = asyncio.Lock()  # what comes meanwhile goes together
        self._waiting: list[_Member] = []
        self._begun: set[_Place] = set()  # blocks whose turn has come and that the store has not taken
        self._unstated = _Coming()  # those of them that are still built, or stated
        self._coming = _Coming()  # and those that are told to the ledger
        self._pace = Pace()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = False

    def comes(self, partition: int, start: int) -> None:
        """A session closes the block that begins there as soon as it can be built."""
        self._begun.add((partition, start))
        self._unstated.add((partition, start))
        self._coming.add((partition, start))

    def closed(self, partition: int, start: int, rows: int) -> None:
        """It has closed it, with about so many rows."""
        self._pace.closed((partition, start), rows)

    def built(self, partition: int, start: int) -> None:
        """It has been built, and waits to be stated."""
        self._pace.built((partition, start))

    def stored(self, partition: int, start: int) -> None:
        """The store has taken it, or its session is over."""
        self._begun.discard((partition, start))
        self._pace.built((partition, start))
        self._comes_no_more(partition, start)

    def wanted(self, block: Block) -> bool:
        """Whether the block, closed and about to be stated, shall go with others: it is small, and there are some."""
        wanted = (
            self.limits.lease_ms > 0
            and any(partition != block.partition for partition, _ in self._begun)
            and block.rows is not None
            and block.rows.num_rows <= self.limits.block_rows_max
            and block.rows.nbytes <= self.limits.block_bytes_max
        )
        if not wanted:
            self._comes_no_more(block.partition, block.start)
        return wanted

    async def until_others_are_stated(self, partition: int, start: int) -> None:
        """Returns once the blocks that go with this stated one are stated as well: one request then tells the ledger of
        all, and the insert waits for all anyway."""
        self._unstated.discard((partition, start))
        await self._unstated.until_all_came()

    async def insert(
        self, block: Block, stated_ms: int, restate: Callable[[], Awaitable[int]], begun: Callable[[], None]
    ) -> Sent:
        """Sends the block with those that wait as well, again and again where the outcome is unknown.

        `begun` is called whenever it is sent. `restate` commits the block's statement anew and gives the new one's
        time; it raises when the session is no longer the owner, which then is raised here. Cancelled before the block
        was sent, it is sent once all the same, while its statement allows that.
        """
        member = _Member(block, stated_ms, restate, begun)
        self._waiting.append(member)
        self._comes_no_more(block.partition, block.start)
        if not self._gathering:
            self._gathering = True
            self._begin(self._gather())
        return await member.done

    async def until_others_close(self) -> None:
        """Returns once a block of another partition closes that goes with others."""
        await self._pace.until_others_close()

    def closes(self) -> None:
        """A block closes before it is full."""
        if self.limits.lease_ms > 0:
            self._pace.closes()

    async def until_one_may_close(self) -> None:
        """Returns once a block that closes now need not wait, when it is built, for an insert of several."""
        await self._pace.until_one_may_close()

    async def drain(self) -> None:
        """Lets what waits be sent, for a lease at most. The sessions must be over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.limits.lease_ms / 1000)

    def close(self) -> None:
        """Ends all that has not been sent. The sessions must be over."""
        for task in self._tasks:
            task.cancel()

    # -- private

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _gather(self) -> None:
        """Sends what waits, until nothing does."""
        members: list[_Member] = []
        try:
            while self._waiting:
                async with self._one_at_a_time:
                    await self._coming.until_all_came()  # one that just misses an insert needs one more
                    async with self._inserting:
                        members = self._take()
                        insert = _Insert(members, self._now_ms())
                        if not await self._try(insert):
                            self._begin(self._try_again(insert))
                            members = []
        except Exception as error:  # noqa: BLE001 - a fault of the program: every session that waits raises it
            waiting, self._waiting = self._waiting, []
            _tell_all([*members, *waiting], error)
        finally:
            self._gathering = False

    def _comes_no_more(self, partition: int, start: int) -> None:
        self._unstated.discard((partition, start))
        self._coming.discard((partition, start))

    def _take(self) -> list[_Member]:
        """The first that wait, as many as fit; at least one."""
        taken: list[_Member] = []
        rows = size = 0
        for member in self._waiting:
            if member.block.rows is not None:
                rows += member.block.rows.num_rows
                size += member.block.rows.nbytes
            if taken and (rows > self.limits.rows_max or size > self.limits.bytes_max):
                break
            taken.append(member)
        self._waiting = self._waiting[len(taken) :]
        return sorted(taken, key=lambda member: member.block.partition)

    async def _try_again(self, insert: _Insert) -> None:
        try:
            await self._until_sent(insert)
        except Exception as error:  # noqa: BLE001 - a fault of the program: every session that waits raises it
            insert.end(error)

    async def _until_sent(self, insert: _Insert) -> None:
        wait_s = _RETRY_FIRST_S
        while insert.members():
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RETRY_MAX_S)
            refused = isinstance(insert.error, StoreError)
            tries_ms = self.limits.lease_ms if refused else self.limits.tries_ms
            if self._now_ms() - insert.begun_ms > tries_ms:
                insert.end(Sent.GIVEN_UP)
                return
            await self._restate(insert.members())
            async with self._one_at_a_time, self._inserting:
                if await self._try(insert):
                    return

    async def _try(self, insert: _Insert) -> bool:
        """One try, unless all sessions are over; whether the insert is done with."""
        while True:
            # before the leases are looked at: a worker that stands still in between must not come back with a fresh one
            looked_ms = self._now_ms()
            members = insert.members()
            late = [member for member in members if looked_ms - member.stated_ms > self.limits.lease_ms]
            if not late:
                break
            await self._restate(late)
        blocks = [member.block for member in [*members, *insert.left(looked_ms - self.limits.lease_ms)]]
        if not blocks:
            return True
        deadline_ms = looked_ms + self.limits.deadline_ms // 2
        rows = sum(block.rows.num_rows for block in blocks if block.rows is not None)
        self._pace.insert_begins(rows, len(blocks))
        for member in members:
            member.begun()
        done = False
        try:
            call = partial(self._insert, blocks, insert.token, deadline_ms, sparse=insert.sparse)
            await asyncio.get_running_loop().run_in_executor(self._io, call)
        except (StoreUnavailable, StoreError) as error:
            insert.error = error
            _log.warning("waiting", doing="shared insert", blocks=len(blocks), error=str(error)[:500])
            return False
        except Exception as error:  # noqa: BLE001 - a fault of the program: every session that waits raises it
            insert.end(error)
            return True
        else:
            done = True
        finally:
            self._pace.insert_ends(done=done)
        insert.end(Sent.DOUBTFUL if insert.error else Sent.DONE)
        return True

    async def _restate(self, members: Sequence[_Member]) -> None:
        """States these blocks anew; who is no longer the owner is told so."""
        found = await asyncio.gather(*(member.restate() for member in members), return_exceptions=True)
        for member, outcome in zip(members, found, strict=True):
            if isinstance(outcome, int):
                member.stated_ms = outcome
            elif isinstance(outcome, Exception):
                tell(member.done, outcome)
            else:
                member.done.cancel()


def _tell_all(members: Sequence[_Member], outcome: Sent | Exception) -> None:
    for member in members:
        tell(member.done, outcome)
