"""A session: what one worker does for one partition from the moment it is given it until it loses it.

The block protocol. State what a block is in the commit at its start, act, commit its end; whoever finds a statement
without its end rebuilds the same block and acts again, and every act can be repeated without effect. Rules that must
never be bent:
- nothing of a block leaves the worker before its intent is acknowledged;
- a commit carries the member and generation under which the partition was given, and is sent once: refused or
  unanswered, the session ends and everything built is dropped;
- rows are inserted only within the lease after the statement, and the store refuses them past their deadline; later,
  or after any doubt, the store is read back first, table by table;
- a block's end is committed only when rows, ledger, changelog, forwards, rejects and repeats are acknowledged.
Block k+1 is built while block k is being stored; more than two blocks are never held.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec
import structlog

from pipeline.block import KEY_BYTES, Committed, Intent, Line, Place, decode_metadata, encode_metadata
from pipeline.changelog import Change, pack_changes, reach_of, unpack_change
from pipeline.going_on import LedgerAhead, Lost, StoreBehind, going_on, is_gap, out_of_log, store_behind
from pipeline.inbox import Inbox, Range
from pipeline.ports import (
    Batch,
    Blocks,
    Border,
    CatalogUnavailable,
    CommitAnswer,
    Epoch,
    Group,
    Landed,
    LogReader,
    LogTrimmer,
    LogUnavailable,
    LogWriter,
    Marker,
    Member,
    StoreError,
    StoreUnavailable,
    Table,
    TableClosed,
)
from pipeline.shared_inserts import Sent, SharedInserts
from pipeline.stages.build import RULE_SETS, RuleSet, UnknownRules, finish_block, open_keys, read_records
from pipeline.stages.decode import catalog_stamp
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import Block
from pipeline.tidying import Tidier
from pipeline.together import TogetherWriter

_RETRY_FIRST_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
TAKEN_MAX: Final = 2  # one is read, and of the next one the catalog's version is asked meanwhile
_BUFFERED_BLOCKS: Final = 1  # fetched ahead, in blocks' worth, before the partition is paused
_OPEN_LONGER_S: Final = 2.0  # at most, while others wait for the store: one partition's trouble is not another's
REPEATS_LINGER_S: Final = 0.1  # beside an insert that takes longer: one for all partitions whose blocks go together
_RESTORE_ENTRIES: Final = 50_000
_WRITES_AT_ONCE: Final = (
    500  # all lines of a large block at once would wait for each other past their time-out, for ever
)
_T = TypeVar("_T")


class SessionOver(Exception):  # noqa: N818 - the normal end: the partition is, or may be, another worker's
    """The session has lost its partition, or cannot know that it still has it."""


class PartitionStopped(Exception):  # noqa: N818
    """Something is wrong that a person must look at; the partition does not go on, and says so."""


class MapperSource(Protocol):
    """The catalog as sessions use it."""

    def version(self) -> int:
        """The last version that was read."""

    def mapper(self, version: int) -> Mapper:
        """The mapping at a version that was read."""

    async def wait_for(self, version: int) -> None:
        """Returns once the version is read. Raises CatalogUnavailable."""

    async def end(self) -> int:
        """The version that the log's end stands for. Raises CatalogUnavailable."""


class Limits(msgspec.Struct, frozen=True):
    """Sizes and times of the protocol; see the settings of the same names."""

    rows_max: int
    bytes_max: int
    close_s: float
    lease_ms: int
    deadline_ms: int
    window_ms: int = 0
    tidy_every_s: float = 1.0


class Outside(msgspec.Struct, frozen=True):
    """Everything outside a session, shared by all sessions of a worker. `cpu` runs one thing at a time; `inserting` has
    a place for each insert that may be under way, since many at once only make each other miss their deadline;
    `closing` has one for each block that is closed and not inserted, unless it is full; `taking` has TAKEN_MAX, one
    for each block whose records are taken and not read yet, so that one whose turn is later holds what comes
    meanwhile; `building` is held while a block is built, so that the first is on its way to the store before the
    next is begun; `shared` joins small blocks of several partitions; `ledger` and `repeats` join what several tell the
    store; new blocks are begun under the newest of `rule_sets`."""

    group: Group
    writer: LogWriter
    reader: LogReader
    trimmer: LogTrimmer
    blocks: Blocks
    catalog: MapperSource
    now_ms: Callable[[], int]
    cpu: Executor
    io: Executor
    inserting: asyncio.Semaphore
    closing: asyncio.Semaphore
    taking: asyncio.Semaphore
    building: asyncio.Lock
    shared: SharedInserts
    ledger: TogetherWriter[tuple[Block, int]]
    repeats: TogetherWriter[Block]
    topic_rejects: str
    topic_changelog: str
    fail_point: Callable[[str], None]
    rule_sets: Mapping[int, RuleSet] = msgspec.field(default_factory=lambda: RULE_SETS)


class _Lease(Enum):
    INSERT = "insert"
    DONE = "done"


class Standing(msgspec.Struct):
    """How a session stands, for health, metrics and progress. `counted` is the offset up to which all is committed."""

    partition: int
    epoch: int = 0
    counted: int = 0
    append_ms: int = 0
    state: str = "starting"
    stopped: str = ""
    paused: bool = False
    moved_at_s: float = 0.0
    blocks: int = 0
    events: int = 0
    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    rerouted: int = 0
    recalled: int = 0
    insert_s: float = 0.0
    build_s: float = 0.0
    retries: int = 0
    repairs: int = 0


class Session:
    """One partition under one membership. `run` until it returns or is cancelled; `offer` what is fetched."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        outside: Outside,
        limits: Limits,
        place: Place,
        member: Member,
        topic_id: str,
        open_table: Callable[[], Table],
    ) -> None:
        self._out = outside
        self._limits = limits
        self._place = place
        self._partition = place.partition
        self._member = member
        self._topic_id = topic_id
        self._open_table = open_table
        self._opening = -1
        self._inbox: Inbox | None = None
        self._must_reach = 0
        self._next: Block | None = None
        self._next_ready = asyncio.Event()
        self._next_taken = asyncio.Event()
        self._turn_taken = False
        self._waiting: dict[int, bool] = {}  # closed blocks that the store has not taken, by start: with a turn or not
        self._none_waits = asyncio.Event()
        self._none_waits.set()
        self._log = structlog.get_logger(__name__).bind(partition=place.partition, generation=member.generation)
        self.standing = Standing(place.partition, moved_at_s=time.monotonic())

    # -- from outside

    def offer(self, batch: Batch) -> None:
        """Takes a fetched batch. One of an earlier reading is dropped: its records come again. Raises GapInLog."""
        if self._inbox is None or batch.opening != self._opening:
            return
        self._inbox.add(batch.start, batch.end, batch.records)
        self._regulate()

    async def run(self) -> None:
        """Everything, until the partition is lost. A partition that must not go on stays with this session, idle,
        with its reason in `standing.stopped`. Other exceptions are faults of the program."""
        try:
            committed = await self._take()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._store_blocks(committed), name=f"store {self._partition}")
                tasks.create_task(self._tidier.run(), name=f"tidy {self._partition}")
        except* (SessionOver, TableClosed) as over:
            self.standing.state = "over"
            self._log.info("session_over", reason=repr(_first(over)))
        except* PartitionStopped as stopped:
            self._stop(str(_first(stopped)))

    def _stop(self, reason: str) -> None:
        self.standing.state = "stopped"
        self.standing.stopped = reason
        self._out.group.pause(self._partition)
        self._log.critical("partition_stopped", reason=reason)

    # -- taking the partition

    async def _take(self) -> Committed:
        """Steps 1 and 2: where to go on, with which intent, and the table brought up to there."""
        # in the builder's thread, as everything that touches the table: opening, use and closing never overlap
        self._table = await self._cpu(self._open_table)
        epoch: Epoch = await self._store(lambda: self._out.blocks.epoch(self._topic_id, self._partition))
        self._place = msgspec.structs.replace(self._place, epoch=epoch.number)
        self.standing.epoch = epoch.number
        committed = await self._where_to_go_on(epoch)
        await self._check_retention(committed)
        # over again from the changelog's end on: entries that were taken twice do no harm
        await self._retry(lambda: self._restore(committed), LogUnavailable)
        self.standing.counted = committed.offset
        self._tidier = await self._tidy()
        self._log.info(
            "partition_taken",
            epoch=epoch.number,
            offset=committed.offset,
            intent=committed.intent.end if committed.intent else None,
        )
        return committed

    async def _where_to_go_on(self, epoch: Epoch) -> Committed:
        ours = await self._committed(epoch.number)
        if ours is None and epoch.known:
            # Offsets are lost, or a tool has moved them. Nothing stated before may land any more when we begin.
            self._log.warning("offsets_lost", wait_s=(self._limits.lease_ms + self._limits.deadline_ms) / 1000)
            await asyncio.sleep((self._limits.lease_ms + self._limits.deadline_ms) / 1000)
            ours = await self._committed(epoch.number)
        ledger = await self._store(lambda: self._out.blocks.last_block(epoch.number, self._partition))
        match going_on(self._partition, ours, ledger, epoch):
            case StoreBehind(committed, reason):
                await self._stop_as_owner(committed, reason)
            case Lost(known):
                found = known or Committed(epoch.number, await self._first_offset(epoch), None)
                await self._commit(found.offset, found.intent)  # what was restored is stated before it is acted on
            case LedgerAhead(found):
                self._log.warning("ledger_ahead", ledger=found.offset, group=ours.offset if ours else None)
            case Committed() as found:
                await self._check_last_block(found, ledger)
        return found

    async def _check_last_block(self, committed: Committed, last: Intent | None) -> None:
        """A block's ledger entry is written before its rows: a store put back to the moment between has only the
        first."""
        if last is None or is_gap(last) or committed.offset != last.end:
            return
        if not await self._store(lambda: self._out.blocks.whole(last.epoch, self._partition, last.start)):
            lacks = f"lacks parts of its last block, {last.start} to {last.end}"
            await self._stop_as_owner(committed, store_behind(self._partition, committed.offset, lacks))

    async def _check_retention(self, committed: Committed) -> None:
        """What is not counted yet must still be in the log: reading on from elsewhere would lose it silently."""
        first, end = await self._bounds(self._place.topic)
        reason = out_of_log(self._partition, committed.offset, first, end)
        if reason is not None:
            await self._stop_as_owner(committed, reason)

    async def _stop_as_owner(self, committed: Committed, reason: str) -> NoReturn:
        """Only the owner may say that a partition must not go on, and may have seen it all: a commit of what is there
        anyway proves who that is."""
        await self._commit(committed.offset, committed.intent)
        raise PartitionStopped(reason)

    async def _committed(self, epoch: int) -> Committed | None:
        """The group's commit, if it is ours and of this epoch."""
        found = await self._retry(lambda: self._out.group.committed(self._partition), LogUnavailable)
        ours = None if found is None else decode_metadata(*found)
        return ours if ours is not None and ours.epoch == epoch else None

    async def _first_offset(self, epoch: Epoch) -> int:
        if epoch.known:
            return epoch.first_offset
        first, _ = await self._bounds(self._place.topic)
        await self._store(
            lambda: self._out.blocks.begin_epoch(
                epoch.number, self._partition, self._topic_id, self._place.partitions, first
            )
        )
        return first

    async def _restore(self, committed: Committed) -> None:
        """Brings the table up to the committed offset. The changelog's end is fixed after that offset was read. What
        the changelog no longer lists is in the filter, and where it is not, in the permanent ids: whatever was counted
        is there."""
        first, end = await self._bounds(self._out.topic_changelog)
        marker, remembered, border = await self._cpu(
            lambda: (self._table.marker(), self._table.remembered(), self._table.border())
        )
        listed = first <= marker.offset <= end
        reached, whole = await self._replay(
            marker if listed else Marker(first, 0, 0), end, whole=listed and remembered >= border
        )
        needed = await self._store(
            lambda: self._out.blocks.counted_before(committed.epoch, self._partition, committed.offset)
        )
        if needed is not None and (not whole or reached < needed):
            self._log.warning("table_incomplete", reaches=reached, needed=needed, then="filling the filter of old ids")
            await self._fill_filter(remembered, max(border, Border(*needed)))
            await self._cpu(self._table.restore, [], Marker(end, *max(reached, needed)))

    async def _replay(self, marker: Marker, end: int, *, whole: bool) -> tuple[tuple[int, int], bool]:
        """Epoch and end that the changelog reaches, and whether it is whole: its blocks follow each other from the
        marker on. One that was deleted and made anew may be longer than the marker and yet lack what was never read.
        The marker moves only while it is whole, so that a rebuilding that is cut short begins again."""
        reached = (marker.epoch, marker.end)
        if marker.offset == end:
            return reached, whole
        self.standing.state = "restoring"
        entries: list[tuple[bytes, bytes]] = []
        number = 0
        started = time.monotonic()
        async for records in self._out.reader.read_range(
            self._out.topic_changelog, self._partition, marker.offset, end
        ):
            for record in records:
                change = unpack_change(record.value or b"")
                if whole and (change.epoch, change.start) > reached:
                    whole = await self._none_counted_between(reached, change)
                entries += change.entries
                reached = max(reached, (change.epoch, change.end))
            number += len(records)
            if len(entries) >= _RESTORE_ENTRIES:
                moved = Marker(records[-1].offset + 1, *reached) if whole else None
                await self._cpu(self._table.restore, entries, moved)
                entries = []
        await self._cpu(self._table.restore, entries, Marker(end, *reached) if whole else None)
        self._log.info("table_restored", records=number, seconds=round(time.monotonic() - started, 2))
        return reached, whole

    async def _none_counted_between(self, reached: tuple[int, int], change: Change) -> bool:
        before = await self._store(lambda: self._out.blocks.counted_before(change.epoch, self._partition, change.start))
        return before is None or before <= reached

    async def _fill_filter(self, remembered: Border, border: Border) -> None:
        """Puts all counted ids that the filter does not have into it: the table may then miss any below the border."""
        self.standing.state = "rebuilding"
        after = b""
        while page := await self._store(lambda: self._out.blocks.ids(self._partition, after, remembered)):  # noqa: B023
            await self._cpu(self._table.remember_expired, page)
            after = page[-KEY_BYTES:]
        await self._io(self._table.save_expired, max(remembered, border))
        await self._cpu(self._table.expire, [], border)

    async def _tidy(self) -> Tidier:
        return Tidier(
            self._table,
            await self._cpu(self._table.marker),
            self._out.reader,
            self._out.trimmer,
            self._out.blocks,
            self._out.cpu,
            self._out.io,
            topic=self._out.topic_changelog,
            partition=self._partition,
            window_ms=self._limits.window_ms,
            every_s=self._limits.tidy_every_s,
            fail_point=self._out.fail_point,
        )

    # -- block after block

    async def _store_blocks(self, committed: Committed) -> None:
        """Steps 3 to 9. The builder runs beside, one block ahead."""
        self._inbox = Inbox(committed.offset)
        self._opening = await self._out.group.open_at(self._partition, committed.offset)
        self.standing.state = "running"
        current: tuple[Block, Intent] | None = None
        if committed.intent is not None:
            current = (await self._rebuild_block(committed, committed.intent), committed.intent)
        recovered = current is not None
        builder = asyncio.create_task(self._build_blocks(), name=f"build {self._partition}")
        try:
            while True:
                if current is None:
                    current = await self._state_next(builder)
                await self._store_block(*current, recovered=recovered)
                recovered = False
                current = await self._commit_end(current[0])
        finally:
            builder.cancel()
            await asyncio.gather(builder, return_exceptions=True)
            self._give_turns_back()

    async def _rebuild_block(self, stated: Committed, intent: Intent) -> Block:
        """Step 3: the block that was under way, from its intent. It must come out the same to the bit."""
        inbox = self._running_inbox()
        self._must_reach = intent.end
        await inbox.wait_beyond(intent.end - 1)
        taken = inbox.take_until(intent.end)
        self._regulate()
        try:
            block = await self._build(taken, intent.catalog_version, intent.rules)
        except UnknownRules as error:
            await self._stop_as_owner(stated, str(error))
        if (block.counts.accepted, block.crc) != (intent.rows, intent.crc):
            await self._stop_as_owner(
                stated,
                f"block {intent.start}-{intent.end} of partition {self._partition}, built again, has "
                f"{block.counts.accepted} rows and checksum {block.crc:016x}, stated were {intent.rows} and "
                f"{intent.crc:016x}; keep the topic as it is and report this with both worker logs",
            )
        self._log.info("block_rebuilt", start=intent.start, end=intent.end, rows=intent.rows)
        await self._now_stated(block)
        return block

    async def _build_blocks(self) -> None:
        """Builds the next block whenever the one before was taken."""
        inbox = self._running_inbox()
        while True:
            await inbox.wait_beyond(inbox.start)
            await self._gather(inbox)
            start = inbox.start
            self._waiting[start], self._turn_taken = self._turn_taken, False
            self._out.shared.comes(self._partition, start)
            self._none_waits.clear()
            await self._out.taking.acquire()
            with ExitStack() as turn:
                turn.callback(self._out.taking.release)
                taken = inbox.take(self._limits.rows_max, self._limits.bytes_max)
                self._out.shared.closed(self._partition, start, int(taken.records.lines.sum()))
                self._regulate()
                version = await self._catalog_for(taken)
                self._next = await self._build(taken, version, max(self._out.rule_sets), read=turn.close)
            self._out.shared.built(self._partition, start)
            del taken  # the block does not need them any more, and may wait for long
            self._next_taken.clear()
            self._next_ready.set()
            await self._next_taken.wait()

    async def _gather(self, inbox: Inbox) -> None:
        """Waits until the block is full, or its time is up and it is its turn."""
        full = asyncio.create_task(inbox.wait_until_holds(self._limits.rows_max, self._limits.bytes_max))
        turn = asyncio.create_task(self._turn())
        try:
            await asyncio.wait({full, turn}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            full.cancel()
            turn.cancel()
            await asyncio.gather(full, turn, return_exceptions=True)

    async def _turn(self) -> None:
        """Once the block's time is up, or others close theirs: until the store has the partition's last one, and is
        about to end what others share. What a block costs the store hardly depends on its events: one that closed
        sooner would only wait, and the events that come meanwhile would need one more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_s):
                await self._out.shared.until_others_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_LONGER_S):
                await self._none_waits.wait()
                await self._out.shared.until_one_may_close()
                await self._out.closing.acquire()
                self._turn_taken = True
        self._out.shared.closes()

    def _waits_no_more(self, start: int) -> None:
        """The store has taken the block that begins there, or the session is over."""
        turn = self._waiting.pop(start, None)
        if turn is not None:
            self._out.shared.stored(self._partition, start)
        if turn:
            self._out.closing.release()
        if not self._waiting:
            self._none_waits.set()

    def _give_turns_back(self) -> None:
        for start in list(self._waiting):
            self._waits_no_more(start)
        if self._turn_taken:
            self._turn_taken = False
            self._out.closing.release()

    async def _catalog_for(self, taken: Range) -> int:
        """The version to map with: all that was acknowledged before the records were fetched, so that a feature made
        before an event was sent maps it, through whichever process it was made."""
        end = await self._retry(self._out.catalog.end, CatalogUnavailable, LogUnavailable)
        stamp = catalog_stamp(taken.records)
        if stamp > end:
            self._log.warning(
                "stamped_with_another_catalog", stamp=stamp, end=end, hint="is TALLY_TOPIC_CATALOG right?"
            )
        return end

    async def _build(self, taken: Range, version: int, rules: int, *, read: Callable[[], None] = lambda: None) -> Block:
        """The block of these records. `read` is called once the builder has read them: what may follow is to ask the
        store, and to finish."""
        await self._retry(lambda: self._out.catalog.wait_for(version), CatalogUnavailable)
        mapper = self._out.catalog.mapper(version)
        started = time.monotonic()

        def judge() -> tuple[Any, dict[bytes, bytes], list[bytes]]:
            lines = read_records(
                self._place,
                taken.records,
                start=taken.start,
                end=taken.end,
                mapper=mapper,
                rules=rules,
                rule_sets=self._out.rule_sets,
            )
            keys = open_keys(lines)
            found = dict(self._table.get_many(keys))
            return lines, found, [key for key in self._table.may_be_expired(keys) if key not in found]

        def finish(lines: Any, found: dict[bytes, bytes]) -> Block:
            return finish_block(
                self._place,
                lines,
                start=taken.start,
                end=taken.end,
                mapper=mapper,
                catalog_version=version,
                lookup=lambda keys: found,
                rules=rules,
                rule_sets=self._out.rule_sets,
            )

        def build() -> tuple[Any, dict[bytes, bytes], list[bytes], Block | None]:
            lines, found, unsure = judge()
            return lines, found, unsure, None if unsure else finish(lines, found)

        async with self._out.building:
            lines, found, unsure, block = await self._cpu(build)
        read()
        if block is None:
            # whatever its timestamp: "once" has no end date
            found |= await self._store(lambda: self._out.blocks.find(self._partition, unsure))
            self.standing.recalled += len(unsure)
            async with self._out.building:
                block = await self._cpu(finish, lines, found)
        self.standing.build_s += time.monotonic() - started
        return block

    async def _state_next(self, builder: asyncio.Task[None]) -> tuple[Block, Intent]:
        """Steps 4 and 5 when nothing is under way: the next block's intent on its own."""
        block = await self._next_block(builder)
        self._out.fail_point("before_intent")
        intent = self._intent(block)
        await self._commit(block.start, intent)
        self._out.fail_point("intent_committed")
        self._take_next()
        return block, intent

    def _intent(self, block: Block) -> Intent:
        return block.intent(self._out.now_ms(), shared=self._out.shared.wanted(block))

    async def _next_block(self, builder: asyncio.Task[None]) -> Block:
        ready = asyncio.create_task(self._next_ready.wait())
        try:
            await asyncio.wait({ready, builder}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._next is None:
            builder.result()  # raises what the builder failed with
            raise AssertionError("the builder ended without a block or an error")
        return self._next

    def _take_next(self) -> None:
        self._next = None
        self._next_ready.clear()

    async def _now_stated(self, block: Block) -> None:
        """The block's ids go into the table, before the next block is built."""
        await self._cpu(self._table.put, block.sightings)
        self._out.fail_point("table_written")
        self._next_taken.set()

    async def _store_block(self, block: Block, intent: Intent, *, recovered: bool) -> None:
        """Steps 6 to 8, and 9 without the commit."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._effects(block, recovered=recovered))
            tasks.create_task(self._rows(block, intent, recovered=recovered)).add_done_callback(
                lambda _: self._waits_no_more(block.start)
            )
        self.standing.insert_s += time.monotonic() - started

    async def _commit_end(self, block: Block) -> tuple[Block, Intent] | None:
        """Commits the block's end, which is the next block's intent where that one is ready."""
        self._out.fail_point("before_end")
        following = self._next
        if following is not None and following.start != block.end:
            raise AssertionError(f"block {following.start} was built after one that ends at {block.end}")
        intent = None if following is None else self._intent(following)
        await self._commit(block.end, intent)
        self._out.fail_point("end_committed")
        if intent is not None:
            self._out.fail_point("intent_committed")
        self._note(block)
        if following is None or intent is None:
            return None
        self._take_next()
        return following, intent

    # -- effects outside the store

    async def _effects(self, block: Block, *, recovered: bool) -> None:
        """The table, forwards, rejects, repeats and the changelog: each at least once, all acknowledged. The table's
        marker goes by the changelog, so its entries come first; the store need not wait for them."""
        if not recovered:
            await self._now_stated(block)
        await self._forward(block)
        await self._reject(block)
        self._out.fail_point("before_changelog")
        for change in pack_changes(block.epoch, block.start, block.end, block.sightings):
            offset = await self._write(self._out.topic_changelog, change, self._partition)
            self._tidier.wrote(offset, *reach_of(change))
        self._out.fail_point("changelog_acknowledged")

    async def _forward(self, block: Block) -> None:
        """Events whose id belongs to another partition go there as they came, and get their verdict there."""
        if not block.forwards:
            return
        self._out.fail_point("before_forwards")
        await self._each(block, block.forwards, self._forward_line)
        self._out.fail_point("forwards_acknowledged")

    async def _forward_line(self, block: Block, line: Line) -> None:
        kept = [(name, value) for name, value in line.headers if name in ("account", "catalog", "defaulted")]
        if not any(name == "account" for name, _ in kept):
            kept.append(("account", line.account.encode()))
        await self._write(
            block.topic, line.raw, line.key % self._place.partitions, [*kept, ("origin", _position(block, line))]
        )

    async def _reject(self, block: Block) -> None:
        if block.rejects:
            self._out.fail_point("before_rejects")
            await self._each(block, block.rejects, self._reject_line)
            self._out.fail_point("rejects_acknowledged")
            await self._store(lambda: self._out.blocks.write_rejects(block))
        if block.repeats is not None:
            await self._retry(lambda: self._out.repeats.write(block), StoreUnavailable, StoreError)

    async def _reject_line(self, block: Block, line: Line) -> None:
        headers = [
            ("account", line.account.encode()),
            ("position", _position(block, line)),
            ("verdict", line.verdict.name.lower().encode()),
            ("reason", msgspec.json.encode(line.errors)),
        ]
        await self._write(self._out.topic_rejects, line.raw, self._partition, headers)

    async def _each(self, block: Block, lines: Sequence[Line], write: Callable[[Block, Line], Awaitable[None]]) -> None:
        for start in range(0, len(lines), _WRITES_AT_ONCE):
            await asyncio.gather(*[write(block, line) for line in lines[start : start + _WRITES_AT_ONCE]])

    async def _write(self, topic: str, value: bytes, partition: int, headers: Sequence[tuple[str, bytes]] = ()) -> int:
        return await self._retry(
            lambda: self._out.writer.write(topic, value, partition=partition, headers=headers), LogUnavailable
        )

    # -- rows

    async def _rows(self, block: Block, intent: Intent, *, recovered: bool) -> None:
        """Ledger, then insert, both under the lease; after any doubt everything is read back."""
        holder = _Statement(intent)
        if intent.shared and not recovered:
            await self._out.shared.until_others_are_stated(self._partition, block.start)
        if await self._ledger(block, holder) is _Lease.DONE or block.rows is None:
            return
        if holder.intent.shared:
            send = self._look_for_shared if recovered else self._insert_shared
            if await send(block, holder) is _Lease.DONE:
                return
        await self._insert_alone(block, holder, doubt=recovered)

    async def _insert_shared(self, block: Block, holder: "_Statement") -> _Lease:
        """In one insert with blocks of other partitions."""

        async def restate() -> int:
            self.standing.retries += 1
            await self._restate(block, holder, shared=True)
            return holder.intent.stated_ms

        self._out.fail_point("before_insert")
        sent = await self._out.shared.insert(block, holder.intent.stated_ms, restate, self._none_waits.set)
        if sent is Sent.GIVEN_UP:
            return await self._look_for_shared(block, holder)
        self._out.fail_point("inserted")
        if sent is Sent.DOUBTFUL:
            await self._prove(block, holder)
        return _Lease.DONE

    async def _look_for_shared(self, block: Block, holder: "_Statement") -> _Lease:
        """Whoever stated the block may have sent it with others, under a token that is not known here. Until that is
        settled the block is only looked for. Then: all is there, or nothing and it may be inserted alone, or it is
        completed once nothing else of it can arrive either."""
        settled_ms = holder.intent.stated_ms + self._out.shared.limits.settled_ms
        wait_s = _RETRY_FIRST_S
        while True:
            left_ms = settled_ms - self._out.now_ms()  # before the look
            landed = await self._landed(block)
            if landed.complete:
                return _Lease.DONE
            if left_ms < 0:
                break
            await asyncio.sleep(min(wait_s, left_ms / 1000 + 0.01))
            wait_s = min(wait_s * 2, 1.0)
        if landed.nothing:
            return _Lease.INSERT
        await self._prove(block, holder)
        return _Lease.DONE

    async def _insert_alone(self, block: Block, holder: "_Statement", *, doubt: bool) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            if self._too_old(holder) and await self._renew(block, holder) is _Lease.DONE:
                return
            try:
                async with self._out.inserting:
                    # Half of D to begin, half to end what began in time and for clocks that differ: the store looks at
                    # the deadline once, when the rows arrive, and writes table by table afterwards. Counted from before
                    # the lease was looked at: a worker that is stopped in between must not come back with a fresh one.
                    looked_ms = self._out.now_ms()
                    if self._too_old(holder):
                        continue  # others were first for too long
                    self._out.fail_point("before_insert")
                    await self._io(self._out.blocks.insert, block, looked_ms + self._limits.deadline_ms // 2)
                self._out.fail_point("inserted")
                break
            except (StoreUnavailable, StoreError) as error:
                doubt = True
                wait_s = await self._pause_after(error, "insert", wait_s)
        if doubt:
            await self._prove(block, holder)

    async def _ledger(self, block: Block, holder: "_Statement") -> _Lease:
        wait_s = _RETRY_FIRST_S
        state = _Lease.INSERT
        while True:
            if state is _Lease.INSERT and self._too_old(holder):
                state = await self._renew(block, holder)
            try:
                await self._out.ledger.write((block, holder.intent.stated_ms))
            except (StoreUnavailable, StoreError) as error:
                wait_s = await self._pause_after(error, "ledger", wait_s)
            else:
                self._out.fail_point("ledger_written")
                return state

    def _too_old(self, holder: "_Statement") -> bool:
        return self._out.now_ms() - holder.intent.stated_ms > self._limits.lease_ms

    async def _renew(self, block: Block, holder: "_Statement") -> _Lease:
        """Step 6 with an old statement: wait until nothing of it can land any more, prove ownership, look, and only
        when nothing is there state it anew. Afterwards a block that is there is whole."""
        self._out.fail_point("before_renewal")
        await self._wait_until_settled(holder)
        await self._commit(block.start, holder.intent)
        landed = await self._landed(block)
        if not landed.nothing:
            await self._complete(block, landed)
            return _Lease.DONE
        await self._restate(block, holder, shared=False)
        self._out.fail_point("renewed")
        return _Lease.INSERT

    async def _restate(self, block: Block, holder: "_Statement", *, shared: bool) -> None:
        """States the block anew, with a new time; proves that this session still is the owner."""
        intent = msgspec.structs.replace(holder.intent, stated_ms=self._out.now_ms(), shared=shared)
        await self._commit(block.start, intent)
        holder.intent = intent

    async def _prove(self, block: Block, holder: "_Statement") -> None:
        """After a doubt: facts being there proves nothing about a view, so every table is asked."""
        landed = await self._landed(block)
        if landed.complete:
            return
        await self._wait_until_settled(holder)
        await self._commit(block.start, holder.intent)
        await self._complete(block, await self._landed(block))

    async def _complete(self, block: Block, landed: Landed) -> None:
        if landed.missing and not landed.surplus:
            self._log.warning("block_repaired", start=block.start, end=block.end, missing=landed.missing)
            self.standing.repairs += 1
            self._out.fail_point("before_repair")
            await self._store(lambda: self._out.blocks.repair(block, landed))
            self._out.fail_point("repaired")
            landed = await self._landed(block)
        if not landed.complete:
            raise PartitionStopped(
                f"block {block.start}-{block.end} of partition {self._partition} lies in the store more or less than "
                f"once: {landed.arrivals}; run `tally audit` for the cells, and close no period before it is clean"
            )

    async def _landed(self, block: Block) -> Landed:
        if block.rows is None:
            return Landed({})
        return await self._store(lambda: self._out.blocks.landed(block))

    async def _wait_until_settled(self, holder: "_Statement") -> None:
        end_ms = holder.intent.stated_ms + self._limits.lease_ms + self._limits.deadline_ms
        while (left_ms := end_ms - self._out.now_ms()) >= 0:  # noqa: ASYNC110 - the clock may be set meanwhile
            await asyncio.sleep(left_ms / 1000 + 0.01)

    # -- plumbing

    async def _commit(self, offset: int, intent: Intent | None) -> None:
        """One commit. Raises SessionOver unless it is known to be done."""
        metadata = encode_metadata(self._place.epoch, intent)
        answer = await self._out.group.commit(self._partition, offset, metadata, self._member)
        if answer is CommitAnswer.DONE:
            return
        if answer is CommitAnswer.UNKNOWN:
            # It may yet be applied: only a new membership makes sure that it cannot be mistaken for a later one.
            await self._out.group.rejoin()
        raise SessionOver(f"commit of offset {offset} {answer.value}")

    async def _store(self, work: Callable[[], _T]) -> _T:
        """Asks the store until it answers; for what may be repeated at will."""

        async def once() -> _T:
            return await self._io(work)

        return await self._retry(once, StoreUnavailable, StoreError)

    async def _bounds(self, topic: str) -> tuple[int, int]:
        return await self._retry(lambda: self._out.reader.bounds(topic, self._partition), LogUnavailable)

    async def _retry(self, work: Callable[[], Awaitable[_T]], *errors: type[Exception]) -> _T:
        wait_s = _RETRY_FIRST_S
        while True:
            try:
                return await work()
            except errors as error:
                wait_s = await self._pause_after(error, "wait", wait_s)

    async def _pause_after(self, error: Exception, doing: str, wait_s: float) -> float:
        self.standing.retries += 1
        self._log.warning("waiting", doing=doing, error=str(error)[:500], retry_s=wait_s)
        await asyncio.sleep(wait_s)
        return min(wait_s * 2, _RETRY_MAX_S)

    async def _cpu(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._out.cpu, work, *arguments)

    async def _io(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._out.io, work, *arguments)

    def _regulate(self) -> None:
        """Pauses the partition while more is fetched than the next blocks can take, but not before a block that is to
        be built again is here: it may be larger than today's limits."""
        inbox = self._running_inbox()
        rows, size = _BUFFERED_BLOCKS * self._limits.rows_max, _BUFFERED_BLOCKS * self._limits.bytes_max
        full = inbox.rows >= rows or inbox.bytes >= size
        if full and inbox.end >= self._must_reach and not self.standing.paused:
            self._out.group.pause(self._partition)
            self.standing.paused = True
        elif self.standing.paused and inbox.rows < rows // 2 and inbox.bytes < size // 2:
            self._out.group.resume(self._partition)
            self.standing.paused = False

    def _note(self, block: Block) -> None:
        standing, counts = self.standing, block.counts
        standing.counted = block.end
        standing.append_ms = max(standing.append_ms, block.append_ms_max)
        self._tidier.counted(block.epoch, block.end, standing.append_ms)
        standing.moved_at_s = time.monotonic()
        standing.blocks += 1
        standing.events += counts.events
        standing.rows += counts.accepted
        standing.duplicates += counts.duplicates
        standing.conflicts += counts.conflicts
        standing.rejected += counts.rejected
        standing.rerouted += counts.rerouted

    def _running_inbox(self) -> Inbox:
        if self._inbox is None:
            raise AssertionError(f"partition {self._partition} is not opened")
        return self._inbox


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in nested groups: task groups lie in task groups here."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _position(block: Block, line: Line) -> bytes:
    """Where the line lies, for the headers of what is sent on."""
    return f"{block.topic}:{block.epoch}:{block.partition}:{line.offset}:{line.line}".encode()


class _Statement:
    """The intent that is in force; a lease that is renewed replaces it."""

    __slots__ = ("intent",)

    def __init__(self, intent: Intent) -> None:
        self.intent = intent
