"""A small world around the production Session: log, group, store and workers in memory, with faults by a seed.

The oracle knows nothing of the stages: it reads the log as JSON and says what every line's verdict must be. The
conservation law is checked at the end, and at each commit everything below the committed offset must be there.
"""

import asyncio
import json
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from virtual_loop import VirtualExecutor

from pipeline.adapters.block_store_fake import SPARSE, TABLES, MemoryBlocks, block_name, known_as
from pipeline.adapters.group_fake import Coordinator, MemoryGroup
from pipeline.adapters.log_fake import MemoryLog
from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.adapters.rocks_fake import MemoryFile, MemoryTable
from pipeline.block import RULES, Committed, Place, Position, Verdict, decode_metadata, unpack_sighting
from pipeline.catalog import Account, Catalog, Feature, encode_account, encode_feature
from pipeline.changelog import unpack_change
from pipeline.event import derived_id_hash, id_hash, partition_of
from pipeline.ports import Border, CommitAnswer, Header, Landed, LogUnavailable, Member, Record, StoreUnavailable
from pipeline.session import REPEATS_LINGER_S, TAKEN_MAX, Limits, Outside, Session
from pipeline.shared_inserts import SharedInserts, SharedLimits
from pipeline.stages.build import RULE_SETS, RuleSet
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.stages.sink import Block, make_block
from pipeline.together import TogetherWriter

TOPIC, REJECTS, CHANGELOG = "events", "rejects", "changelog"
START_MS = 1_790_000_000_000
LEASE_MS, DEADLINE_MS = 4_000, 2_000
SHARED_LEASE_MS, SHARED_DEADLINE_MS = 500, 1_000
WINDOWS_MS = (400, 0, 1_500)  # of the dedup table, by the seed; most runs last ten seconds


def _make_under_newer_rules(*lines: Any, **options: Any) -> Block:
    """The same verdicts with another checksum: a block that was rebuilt under the wrong rules is noticed."""
    block = make_block(*lines, **options)
    block.crc ^= 1
    return block


NEWER_RULES: Mapping[int, RuleSet] = {**RULE_SETS, RULES + 1: RuleSet(make=_make_under_newer_rules)}


class Violation(AssertionError):  # noqa: N818 - says what happened
    """The protocol's promise is broken."""


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Faults:
    """Chances of what may go wrong, per occasion. All zero: nothing does."""

    kill: float = 0.0
    commit_unknown: float = 0.0
    insert: float = 0.0
    store: float = 0.0
    log: float = 0.0
    slow: float = 0.0
    touch: float = 0.0  # death right before or after anything that reaches the outside


HARSH = Faults(kill=0.006, commit_unknown=0.03, insert=0.12, store=0.02, log=0.04, slow=0.03)
SKEW_MS = 200

#: What may happen to a world between its events, with weights.
USUAL = {
    "produce": 30,
    "kill": 3,
    "start": 12,
    "silent": 6,
    "expel": 9,
    "expire": 6,
    "speak": 9,
    "flush": 6,
    "catalog": 3,
    "away": 2,
    "night": 2,
    "filters": 1,
}
#: Harm from outside that the protocol must bear too: offsets lost, moved by a tool or put back; the changelog
#: truncated or made anew; clocks that are set.
HARM = {"offsets": 2, "tool": 2, "offsets back": 2, "changelog cut": 2, "changelog anew": 1, "clock": 4}


class _Blocks(MemoryBlocks):
    """The store with lost answers, half-done inserts, inserts that go on after the client has given up, and tokens
    that were noted before a crash took the rows. It forgets tokens as soon as the protocol allows it."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.now_ms, token_window_ms=LEASE_MS + 2 * DEADLINE_MS)
        self.world = world
        self.life = 0

    def last_block(self, epoch: int, partition: int) -> Any:
        self.world.hiccup()
        return super().last_block(epoch, partition)

    def landed(self, block: Block) -> Any:
        self.world.hiccup()
        return super().landed(block)

    def ids(self, partition: int, after: bytes, since: Border) -> bytes:
        self.world.hiccup()
        return super().ids(partition, after, since)

    def find(self, partition: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        self.world.hiccup()
        found = super().find(partition, keys)
        self.world.recalled += len(found)
        return found

    def write_ledger(self, stated: Sequence[tuple[Block, int]]) -> None:
        self.world.hiccup()
        for block, _ in stated:
            self.world.must_be_stated(block, "ledger")
        super().write_ledger(stated)
        self.world.hiccup()

    def repair(self, block: Block, landed: Landed) -> None:
        self.world.repaired += 1
        super().repair(block, landed)

    def write_rejects(self, block: Block) -> None:
        self.world.must_be_stated(block, "rejects")
        super().write_rejects(block)
        self.world.hiccup()

    def snapshot(self) -> dict[str, Any]:
        """A backup: all that is stored now, tokens too."""
        kept = ("epochs", "ledger", "arrivals", "rejects", "repeats", "_tokens")
        return {name: {key: _copied(value) for key, value in getattr(self, name).items()} for name in kept}

    def put_back(self, snapshot: dict[str, Any]) -> None:
        """The backup is restored; inserts of before do not reach it."""
        self.life += 1
        for name, value in snapshot.items():
            setattr(self, name, value)

    def write_repeats(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self.world.must_be_stated(block, "repeats")
        super().write_repeats(blocks)
        self.world.hiccup()

    def insert(self, block: Block, deadline_ms: int) -> None:
        self._insert([block], block.token, deadline_ms, DEADLINE_MS, sparse=block.sparse)

    def insert_together(self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool = True) -> None:
        self.world.happened["together"] += len(blocks) > 1
        self.world.happened["together, of both kinds"] += len({block.sparse for block in blocks}) > 1
        self._insert(blocks, token, deadline_ms, SHARED_DEADLINE_MS, sparse=sparse)

    def _insert(self, blocks: Sequence[Block], token: str, deadline_ms: int, within_ms: int, *, sparse: bool) -> None:
        world = self.world
        for block in blocks:
            world.must_be_stated(block, "insert")
        world.hiccup()
        steps = self.steps(blocks, token, deadline_ms, sparse=sparse)
        if not world.chance(world.faults.insert):
            for step in steps:
                step()
            world.note("store", token, "inserted")
            return
        now = world.random.randrange(len(steps) + 1)
        for step in steps[:now]:
            step()
        if now < len(steps) and world.chance(0.3):
            self.note_token(self.places_of(blocks)[now], known_as(token, sparse=sparse))
        elif world.chance(0.5):  # the server goes on without its client, until a while after the deadline at most
            left_s = max(0.0, (deadline_ms - world.now_ms()) / 1000)
            later_s = world.random.uniform(0, left_s + (within_ms / 2 - world.skew_ms) / 1000)
            asyncio.get_running_loop().call_later(later_s, self._late, self.life, steps[now:])
        world.note("store", token, f"inserted {now} of {len(steps)} places, no answer")
        raise StoreUnavailable("the answer was lost")

    def _late(self, life: int, steps: list[Callable[[], None]]) -> None:
        for step in steps if life == self.life else ():
            self.world.note("store", "late arrival")
            step()


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


class _Log(MemoryLog):
    def __init__(self, world: "World") -> None:
        super().__init__(world.now_ms)
        self.world = world

    def append(
        self, topic: str, partition: int, value: bytes | None, headers: Sequence[Header] = (), key: bytes | None = None
    ) -> int:
        offset = super().append(topic, partition, value, headers, key)
        if topic == TOPIC:
            for worker in self.world.workers:
                worker.wake()
        return offset


class _Writer:
    """One worker's producer: a record may arrive without an acknowledgement."""

    def __init__(self, worker: "SimWorker") -> None:
        self.worker = worker

    async def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> int:
        world = self.worker.world
        await asyncio.sleep(world.random.uniform(0, 0.02))
        self.worker.touch()
        if world.chance(world.faults.log):
            raise LogUnavailable("not sent")
        if topic == CHANGELOG and value is not None:
            change = unpack_change(value)
            world.must_be_known(partition, change.start, "changelog")
            world.remembered[partition] = max(world.remembered[partition], change.end)
        offset = world.log.append(topic, partition, value, headers)
        if world.chance(world.faults.log):
            raise LogUnavailable("the acknowledgement was lost")
        self.worker.touch()
        return offset


class _Trimmer:
    """One worker's deletions; a zombie's may come late."""

    def __init__(self, worker: "SimWorker") -> None:
        self.worker = worker

    def trim(self, topic: str, partition: int, offset: int) -> None:
        world = self.worker.world
        if world.chance(world.faults.log):
            raise LogUnavailable("not sent")
        world.log.trim(topic, partition, offset)
        world.trimmed += 1
        if world.chance(world.faults.log):
            raise LogUnavailable("the answer was lost")


class _Reader:
    def __init__(self, worker: "SimWorker") -> None:
        self.worker = worker

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        await asyncio.sleep(self.worker.world.random.uniform(0, 0.01))
        self.worker.touch()
        return await self.worker.world.log.bounds(topic, partition)

    async def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        async for records in self.worker.world.log.read_range(topic, partition, start, end):
            await asyncio.sleep(0.001)
            self.worker.touch()
            if self.worker.world.chance(self.worker.world.faults.log):
                raise LogUnavailable("the reading was cut short")
            yield records


class _Group(MemoryGroup):
    """Commits that take their time, are lost, or are applied without an answer."""

    def __init__(self, worker: "SimWorker") -> None:
        super().__init__(worker.world.coordinator, worker.world.log, TOPIC)
        self.worker = worker

    async def committed(self, partition: int) -> tuple[int, str] | None:
        await asyncio.sleep(self.worker.world.random.uniform(0, 0.01))
        self.worker.touch()
        return await super().committed(partition)

    async def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        world = self.worker.world
        self.worker.touch()
        await asyncio.sleep(world.random.uniform(0, 0.02))
        if world.chance(world.faults.slow):
            await asyncio.sleep(world.random.uniform(0, 2.0))
        if world.chance(world.faults.commit_unknown):
            if world.chance(0.5):
                await super().commit(partition, offset, metadata, member)
            await asyncio.sleep(world.random.uniform(0, 1.0))
            self.worker.must_live()
            return CommitAnswer.UNKNOWN
        answer = await super().commit(partition, offset, metadata, member)
        await asyncio.sleep(world.random.uniform(0, 0.01))
        self.worker.touch()
        return answer

    async def open_at(self, partition: int, offset: int) -> int:
        await asyncio.sleep(0)
        self.worker.touch()
        self.worker.wake()
        return await super().open_at(partition, offset)

    def resume(self, partition: int) -> None:
        self.worker.wake()
        super().resume(partition)


class _CatalogOfWorld:
    """The catalog as all workers of the world read it."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self._mappers = Mappers(self.catalog)
        self._state(encode_account(Account(id="acme", name="Acme", mode="live"), "0"))
        self.more()

    def more(self) -> None:
        """A feature that meters the same events from now on."""
        number = self.catalog.version + 1
        feature = Feature(account="acme", id=f"feature-{number}", name="F", event_names=("used",))
        self._state(encode_feature(feature, str(number)))

    def _state(self, record: tuple[bytes, bytes]) -> None:
        self.catalog.apply(self.catalog.version + 1, *record)

    def version(self) -> int:
        return self.catalog.version

    def mapper(self, version: int) -> Mapper:
        return self._mappers.at(version)

    async def wait_for(self, version: int) -> None:
        assert version <= self.catalog.version

    async def end(self) -> int:
        return self.catalog.version


class _Thread(VirtualExecutor):
    """A worker's thread, which may end with its process before or after what it does."""

    def __init__(self, worker: "SimWorker", takes_s: Callable[[], float], *, serial: bool) -> None:
        super().__init__(takes_s, serial=serial)
        self._worker = worker

    def do(self, work: Callable[[], Any]) -> Any:
        self._worker.touch()
        found = work()
        self._worker.touch()
        return found


class SimWorker:
    """A worker process: its membership, its disk and its sessions. `clock_ms`: how far its clock is ahead."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.alive = False
        self.silent = False
        self.clock_ms = 0
        self.rule_sets: Mapping[int, RuleSet] = RULE_SETS
        self.store_takes_s: float | None = None
        self._woken = asyncio.Event()
        self.disk = [MemoryTable() for _ in range(world.partitions)]
        self.sessions: dict[int, tuple[Session, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """The process begins with what is on its disk."""
        world = self.world
        self.alive, self.silent = True, False
        world.note("worker", self.number, "starts")
        self.tables: dict[int, MemoryTable | SightingTable] = {}
        self.sessions = {}
        self.group = _Group(self)
        self.cpu = _Thread(self, lambda: world.random.uniform(0, 0.01), serial=True)
        self.io = _Thread(self, self._io_s, serial=False)
        self.inserting = asyncio.Semaphore(1)  # the least there can be: partitions wait for each other
        self.closing = asyncio.Semaphore(2 * world.partitions if world.shared_lease_ms else 2)
        self.taking = asyncio.Semaphore(TAKEN_MAX)
        self.building = asyncio.Lock()
        self.ledger = TogetherWriter(world.blocks.write_ledger, self.io)
        self.repeats = TogetherWriter(world.blocks.write_repeats, self.io, linger_s=REPEATS_LINGER_S)
        self.shared = SharedInserts(
            world.blocks.insert_together,
            self.io,
            self.now_ms,
            self.inserting,
            SharedLimits(
                world.shared_lease_ms,
                SHARED_DEADLINE_MS,
                LEASE_MS,
                rows_max=4 * world.rows_max,
                bytes_max=1 << 20,
                block_rows_max=world.rows_max,
                block_bytes_max=1 << 20,
            ),
        )
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._pump())]

    def _io_s(self) -> float:
        if self.store_takes_s is not None:
            return self.store_takes_s
        slow = self.world.chance(self.world.faults.slow)
        usual_s = 0.2 if self.world.busy else 0.03
        return self.world.random.uniform(0, 3.0 if slow else usual_s)

    def must_live(self) -> None:
        """A dead process does nothing any more."""
        if not self.alive:
            raise Killed

    def touch(self) -> None:
        """Something reaches the outside, or its answer comes in: the process may die here."""
        self.must_live()
        if self.world.chance(self.world.faults.touch):
            self.kill(disk_lost=self.world.chance(0.3))
            raise Killed

    def wake(self) -> None:
        """There may be something to fetch."""
        self._woken.set()

    def now_ms(self) -> int:
        """The process's clock."""
        return self.world.now_ms() + self.clock_ms

    def kill(self, *, disk_lost: bool = False) -> None:
        """SIGKILL. What was not flushed is gone, with the disk everything."""
        self.alive = False
        self.world.note("worker", self.number, "dies", "with its disk" if disk_lost else "")
        self.world.killed += 1
        self.cpu.dead = self.io.dead = True
        for one in (self.shared, self.ledger, self.repeats):
            one.close()
        for task in [*self._tasks, *(task for _, task in self.sessions.values())]:
            task.cancel()
        if self.world.folder is not None:
            for table in self.tables.values():
                table.close()
        if disk_lost:
            self.disk = [MemoryTable() for _ in self.disk]
            if self.world.folder is not None:
                shutil.rmtree(self.world.folder / str(self.number), ignore_errors=True)

    def lose_filters(self) -> None:
        """The files of expired ids are gone or damaged; the tables are not."""
        for table in self.disk:
            table.expired.file.__dict__.update(MemoryFile().__dict__)

    def upgrade(self) -> None:
        """The process ends, and begins as a version that begins blocks under newer rules."""
        if self.rule_sets is not NEWER_RULES:
            if self.alive:
                self.kill()
            self.rule_sets = NEWER_RULES
            self.start()

    def flush(self) -> None:
        """The memory tables reach the disk."""
        for number, table in self.tables.items():
            if isinstance(table, MemoryTable):
                self.disk[number] = table.copy()

    def fail_point(self, name: str) -> None:
        """Counts, and kills by chance or where a test asks for it."""
        world = self.world
        world.passed[name] += 1
        if world.kill_at == (name, world.passed[name]):
            self.kill(disk_lost=world.disk_lost)
            raise Killed
        if world.chance(world.faults.kill):
            self.kill(disk_lost=world.disk_lost or world.chance(0.3))
            raise Killed

    async def _follow(self) -> None:
        """Heartbeats: a group that has moved on ends all sessions, then begins new ones."""
        while True:
            member = self.group.member
            moved = member is None or member.generation != self.world.coordinator.generation
            if moved and not self.silent:
                self.group.join()
                if self.world.chance(self.world.faults.slow * 10):  # sessions hear of it a little later
                    await asyncio.sleep(self.world.random.uniform(0, 0.5))
                await self._release()
                self._take()
            elif not self.silent and any(s.standing.state == "over" for s, _ in self.sessions.values()):
                await asyncio.sleep(self.world.random.uniform(0, 1.0))
                await self.group.rejoin()
            await asyncio.sleep(self.world.random.uniform(0.05, 0.2))

    async def _release(self) -> None:
        sessions, self.sessions = self.sessions, {}
        for _, task in sessions.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in sessions.values()), return_exceptions=True)
        for number in sessions:
            await asyncio.get_running_loop().run_in_executor(self.cpu, self._close, number)

    def _take(self) -> None:
        member = self.group.member
        if member is None:
            return  # it left meanwhile; the next heartbeat joins anew
        for number in range(self.world.partitions):
            if self.world.coordinator.owners.get(number) == member.member_id:
                session = self.world.session(self, number, member)
                task = asyncio.create_task(session.run())
                task.add_done_callback(lambda task, session=session: self._ended(session, task))
                self.sessions[number] = (session, task)

    def _ended(self, session: Session, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.alive:
            self.world.faulty.append(error)
        if f"under rules {RULES + 1}," in session.standing.stopped and self.rule_sets is not NEWER_RULES:
            self.world.happened["newer rules refused"] += 1  # goes on when a newer worker has the partition
        elif session.standing.stopped and self.alive:
            self.world.stopped[session.standing.partition] = session.standing.stopped

    async def _pump(self) -> None:
        while True:
            idle = True
            for number, (session, _) in list(self.sessions.items()):
                batch = self.group.fetch(number, 1 + int(self.world.random.random() * 4))
                if batch is not None:
                    session.offer(batch)
                    idle = False
            if idle:
                self._woken.clear()
                await self._woken.wait()
            await asyncio.sleep(self.world.random.uniform(0.005, 0.06))

    def open(self, number: int) -> MemoryTable | SightingTable:
        """In the builder's thread."""
        folder = self.world.folder
        self.tables[number] = (
            self.disk[number].copy()
            if folder is None
            else Tables(folder / str(self.number), 8 << 20).open(f"t-{number}")
        )
        return self.tables[number]

    def _close(self, number: int) -> None:
        table = self.tables.pop(number, None)
        if isinstance(table, MemoryTable):
            self.disk[number] = table.copy()
        if table is not None:
            table.close()


@dataclass
class World:
    """All of it. `kill_at`: the fail point and the number of its passing at which the worker dies. `modulus`: over how
    many partitions ids are spread; the others were added later. `folder`: tables on RocksDB, below it; otherwise in
    memory. `busy`: much comes in everywhere and the store is slow, so that blocks go to it together."""

    seed: int = 0
    partitions: int = 1
    workers_count: int = 1
    faults: Faults = field(default_factory=Faults)
    kill_at: tuple[str, int] | None = None
    rows_max: int = 6
    close_s: float = 0.05
    topic_id: str = "first"
    disk_lost: bool = False
    window_ms: int = 0
    folder: Path | None = None
    tidy_every_s: float = 1.0
    skew_ms: int = 0
    modulus: int = 0
    busy: bool = False
    shared_lease_ms: int = SHARED_LEASE_MS
    happenings: dict[str, int] = field(default_factory=lambda: dict(USUAL))

    def __post_init__(self) -> None:
        self.modulus = self.modulus or self.partitions
        self.random = random.Random(self.seed)
        self.passed: Counter[str] = Counter()
        self.remembered: Counter[int] = Counter()
        self.stopped: dict[int, str] = {}
        self.faulty: list[BaseException] = []
        self.stated: set[tuple[int, int, int, int]] = set()
        self.sent_ids: set[tuple[str, ...]] = set()
        self.log = _Log(self)
        self.coordinator = Coordinator(self.partitions)
        self.coordinator.on_commit = self._committed
        self.blocks = _Blocks(self)
        self.catalog = _CatalogOfWorld()
        self.workers = [SimWorker(self, number) for number in range(self.workers_count)]
        self.killed = 0
        self.away_until_ms = 0
        self.repaired = 0
        self.trimmed = 0
        self.recalled = 0
        self.occasions = 0
        self.happened: Counter[str] = Counter()
        self.put_back = False
        self._trace: list[str] | None = None
        self._epoch = 0
        self._past: list[dict[int, Sequence[Record]]] = []
        self._changelog_is_whole = True
        self._commits: dict[int, list[tuple[int, str]]] = {}
        self._contents: dict[str, int] = {}

    # -- time and chance

    def now_ms(self) -> int:
        """The clock of everybody."""
        try:
            return START_MS + int(asyncio.get_running_loop().time() * 1000)
        except RuntimeError:
            return START_MS

    def chance(self, probability: float) -> bool:
        """By the seed; draws nothing where it cannot happen."""
        if probability <= 0:
            return False
        self.occasions += 1
        return self.random.random() < probability

    def hiccup(self) -> None:
        """A question to the store that is not answered."""
        if self.now_ms() < self.away_until_ms or self.chance(self.faults.store):
            raise StoreUnavailable("no answer")

    # -- what happens

    def session(self, worker: SimWorker, number: int, member: Member) -> Session:
        """A production session on this world."""
        outside = Outside(
            group=worker.group,
            writer=_Writer(worker),
            reader=_Reader(worker),
            trimmer=_Trimmer(worker),
            blocks=self.blocks,
            catalog=self.catalog,
            now_ms=worker.now_ms,
            cpu=worker.cpu,
            io=worker.io,
            inserting=worker.inserting,
            closing=worker.closing,
            taking=worker.taking,
            building=worker.building,
            shared=worker.shared,
            ledger=worker.ledger,
            repeats=worker.repeats,
            topic_rejects=REJECTS,
            topic_changelog=CHANGELOG,
            fail_point=worker.fail_point,
            rule_sets=worker.rule_sets,
        )
        limits = Limits(self.rows_max, 1 << 20, self.close_s, LEASE_MS, DEADLINE_MS, self.window_ms, self.tidy_every_s)
        place = Place(TOPIC, 0, number, self.modulus, "acme", 10**15)
        return Session(outside, limits, place, member, self.topic_id, lambda: worker.open(number))

    def produce(self, number: int, lines: Sequence[bytes]) -> None:
        """A record that a client writes."""
        offset = self.log.append(TOPIC, number, b"\n".join(lines), (("account", b"acme"),))
        for index, line in enumerate(lines):
            event = _parsed(line)
            if event is not None:
                identity = event.get("transactionId")
                self.sent_ids.add((identity,) if identity else tuple(map(str, (self._epoch, number, offset, index))))

    def produce_at_random(self, number: int) -> None:
        """A record with news, repetitions, conflicts, events without id, misplaced ones and nonsense."""
        self.produce(number, [self._line(number) for _ in range(self.random.randint(1, 3))])

    def _line(self, number: int) -> bytes:
        kind = self.random.random()
        if kind < 0.06:
            return b'{"clientId": 7}'
        identity = self._identity()
        if kind > 0.2 and number < self.modulus:
            while partition_of(id_hash("acme", identity), self.modulus) != number:
                identity = self._identity()
        value = self._contents.setdefault(identity, self.random.randrange(1, 9))
        if self.random.random() < 0.15:
            value += 10
        return event_line(None if kind < 0.1 else identity, value, month=1 + value % 2)

    def _identity(self) -> str:
        """One of the last dozen, as clients that retry send them, or any that ever was."""
        newest = 12 + len(self.sent_ids) // 2
        first = 0 if self.random.random() < 0.25 else newest - 12
        return f"t{self.random.randrange(first, newest)}"

    # -- what must hold at every moment

    def must_be_stated(self, block: Block, what: str) -> None:
        """Nothing of a block leaves the worker before its intent is acknowledged."""
        if (block.partition, block.start, block.end, block.crc) not in self.stated:
            raise Violation(f"{what} of {block_name(block)} before its intent, seed {self.seed}")

    def must_be_known(self, number: int, start: int, what: str) -> None:
        """The same by position."""
        if not any(stated[:2] == (number, start) for stated in self.stated):
            raise Violation(f"{what} of partition {number} at {start} before its intent, seed {self.seed}")

    def _committed(self, number: int, offset: int, metadata: str) -> None:
        found = decode_metadata(offset, metadata)
        assert found is not None
        self.note("commit", number, found)
        self._commits.setdefault(number, []).append((offset, metadata))
        try:
            self._check_below(number, found.epoch, offset)
        except Violation as error:
            self.faulty.append(error)
        if found.intent is not None:
            self.stated.add((number, offset, found.intent.end, found.intent.crc))

    def _check_below(self, number: int, epoch: int, offset: int) -> None:
        """What a committed offset promises: everything before it is stored, everywhere, and will be remembered. Not
        when somebody has put the store back: then it must be noticed, which `check` looks after."""
        if self.put_back:
            return
        done = [e for name, e in self.blocks.ledger.items() if name[:2] == (epoch, number) and e.block.end <= offset]
        for entry in done:
            block = entry.block
            landed = MemoryBlocks.landed(self.blocks, block)
            if not landed.complete:
                raise Violation(f"{block_name(block)} acknowledged with {landed}, seed {self.seed}")
            for line in block.rejects:
                if (number, Position(epoch, line.offset, line.line)) not in self.blocks.rejects:
                    raise Violation(f"{block_name(block)} acknowledged without a reject, seed {self.seed}")
            again = sum(
                first == number and block.start <= at.offset < block.end and at.epoch == epoch
                for first, at in self.blocks.repeats
            )
            if again != block.counts.duplicates + block.counts.conflicts:
                raise Violation(f"{block_name(block)} acknowledged with {again} repeats, seed {self.seed}")
        counted = max((entry.block.end for entry in done), default=None)
        if counted is not None and counted != offset:
            raise Violation(f"offset {offset} committed, the ledger reaches {counted}, seed {self.seed}")
        if done and self.remembered[number] < offset:
            reached = self.remembered[number]
            raise Violation(f"offset {offset} committed, the changelog reaches {reached}, seed {self.seed}")

    # -- how a run goes

    async def run(self, until_s: float = 120.0) -> None:
        """Starts the workers that are down, lets everything drain, checks."""
        for worker in self.workers:
            if not worker.alive:
                worker.start()
        await self.drain(until_s)
        self.check()

    async def drain(self, until_s: float = 120.0) -> None:
        """Returns once everything in the log is counted; restarts what died. Raises Violation when that never is."""
        ends = asyncio.get_running_loop().time() + until_s
        while not self.drained():
            self._raise_faults()
            if asyncio.get_running_loop().time() > ends:
                raise Violation(f"does not drain, seed {self.seed}: {self.coordinator.committed}")
            for worker in self.workers:
                if not worker.alive:
                    worker.start()
            self.expire()
            await asyncio.sleep(0.2)
        self._raise_faults()

    def expire(self) -> None:
        """Members that no living worker is were not heard of for too long."""
        present = {w.group.member.member_id for w in self.workers if w.alive and w.group.member is not None}
        for member_id in set(self.coordinator.members) - present:
            self.coordinator.leave(member_id)

    def drained(self) -> bool:
        """All is committed, nothing is under way."""
        for number in range(self.partitions):
            if number in self.stopped:
                return True
            found = self.coordinator.committed.get(number)
            committed = None if found is None else decode_metadata(*found)
            end = len(self.log.records(TOPIC, number))
            if committed is None or committed != Committed(self._epoch, end, None):
                return False
        return True

    def _raise_faults(self) -> None:
        for error in self.faulty:
            raise Violation(f"seed {self.seed}: {error!r}") from error

    async def chaos(self, steps: int) -> None:
        """Things happen at random moments."""
        for _ in range(steps):
            await asyncio.sleep(self.random.expovariate(4.0))
            self._raise_faults()
            await self._happens()

    async def _happens(self) -> None:  # noqa: PLR0912 - a branch a happening
        worker = self.random.choice(self.workers)
        kind = self.random.choices(list(self.happenings), list(self.happenings.values()))[0]
        self.happened[kind] += 1
        self.note(kind, worker.number)
        if kind == "produce":
            for number in range(self.partitions) if self.busy else [self.random.randrange(self.partitions)]:
                self.produce_at_random(number)
        elif kind == "catalog":
            self.catalog.more()
        elif kind == "expire":
            self.expire()
        elif kind == "away":
            self.away_until_ms = self.now_ms() + self.random.randrange(LEASE_MS + DEADLINE_MS)
        elif kind == "night":
            await asyncio.sleep(self.random.uniform(0, 2.5 * (LEASE_MS + DEADLINE_MS) / 1000))
        elif kind in HARM:
            self._harm(kind, worker, self.random.randrange(self.partitions))
        elif kind == "upgrade":
            worker.upgrade()
        elif kind == "start" and not worker.alive:
            worker.start()
        elif worker.alive:
            if kind == "kill":
                worker.kill(disk_lost=self.chance(0.3))
            elif kind == "flush":
                worker.flush()
            elif kind == "filters":
                worker.lose_filters()
            elif kind in ("silent", "speak"):
                worker.silent = kind == "silent"
            elif kind == "expel" and worker.silent and worker.group.member is not None:
                self.coordinator.leave(worker.group.member.member_id)

    def _harm(self, kind: str, worker: SimWorker, number: int) -> None:
        committed = self.coordinator.committed
        if kind == "offsets":
            committed.pop(number, None)
        elif kind == "tool":
            where = self.random.randint(0, len(self.log.records(TOPIC, number)))
            if not self.coordinator.members:  # a broker refuses whoever is no member while there are any
                committed[number] = (where, "")
        elif kind == "offsets back" and self._commits.get(number):
            committed[number] = self.random.choice(self._commits[number])
        elif kind == "changelog cut":
            first, end = self.log.bounds_now(CHANGELOG, number)
            self.log.delete_before(CHANGELOG, number, self.random.randint(first, end))
        elif kind == "changelog anew":
            self._changelog_is_whole = False
            self.log.make_anew(CHANGELOG, number)
        elif kind == "clock":
            worker.clock_ms = self.random.randint(-self.skew_ms, self.skew_ms)

    def calm(self) -> None:
        """No more faults; those that were silent speak. Who was harmed in his offsets takes his partitions anew, as
        after a restart: an idle owner has nothing to commit."""
        self.faults = Faults()
        self.away_until_ms = 0
        for worker in self.workers:
            worker.silent = False
            if "upgrade" in self.happenings:
                worker.upgrade()
        if self.happenings != USUAL and self.coordinator.members:
            self.coordinator.rebalance()

    def all_die(self) -> None:
        """Every process ends, and the group notices."""
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        self.expire()

    def make_topic_anew(self) -> None:
        """Somebody deletes the events topic while no worker runs, and makes it again: another life of it."""
        self._epoch += 1
        self.topic_id = f"life-{self._epoch}"
        self._past.append({number: list(self.log.records(TOPIC, number)) for number in range(self.partitions)})
        self._commits.clear()
        self.remembered.clear()
        for number in range(self.partitions):
            self.log.make_anew(TOPIC, number)
            if self.chance(0.5):  # a broker that has not forgotten the old one's offsets yet
                self.coordinator.committed.pop(number, None)

    def note(self, *what: Any) -> None:
        """For the trace of a seed that is replayed."""
        if self._trace is not None:
            self._trace.append(f"{(self.now_ms() - START_MS) / 1000:9.3f}  {' '.join(map(str, what))}")

    def trace(self) -> list[str]:
        """What happens from now on, a line each; grows."""
        self._trace = []
        return self._trace

    # -- the law

    def check(self) -> None:
        """The conservation law, the verdicts of all lines, and that nothing was lost or counted twice."""
        self._raise_faults()
        if self.stopped:
            raise Violation(f"stopped, seed {self.seed}: {self.stopped}")
        expected = {number: self.verdicts(number) for number in range(self.partitions)}
        accepted = {
            (number, position, key)
            for number, lines in expected.items()
            for position, (verdict, key) in lines.items()
            if verdict is Verdict.ACCEPTED
        }
        for table in TABLES:
            found = Counter((number, fact.position, fact.key) for number, fact in self.blocks.facts(table))
            self._same(f"twice in {table}", {row for row, times in found.items() if times > 1}, set())
            self._same(table, set(found), self._of_sparse_blocks(accepted) if table == SPARSE else accepted)
        kept = {key for _, _, key in accepted}
        lost = {identity for identity in self.sent_ids if self._key(identity) not in kept}
        self._same("ids never counted", lost, set())
        for number, lines in expected.items():
            self._check_ledger(number, {position: verdict for position, (verdict, _) in lines.items()})
            self._check_changelog(number, {key: position for n, position, key in accepted if n == number})
            refused = {p: v for p, (v, _) in lines.items() if v in (Verdict.REJECTED, Verdict.CONFLICT)}
            again = {p: (v, k) for p, (v, k) in lines.items() if v in (Verdict.DUPLICATE, Verdict.CONFLICT)}
            self._same("repeats", {p: row for (n, p), row in self.blocks.repeats.items() if n == number}, again)
            self._same("rejects", {p: v for (n, p), v in self.blocks.rejects.items() if n == number}, refused)

    def _key(self, identity: tuple[str, ...]) -> int:
        if len(identity) == 1:
            return id_hash("acme", identity[0])
        epoch, number, offset, line = map(int, identity)
        return derived_id_hash(epoch, TOPIC, number, offset, line)

    def _of_sparse_blocks(self, rows: set[tuple[int, Position, int]]) -> set[tuple[int, Position, int]]:
        """Those of the rows, with their partition, whose block in the ledger has some for sparse tables."""
        ends = {name: entry.block.end for name, entry in self.blocks.ledger.items() if entry.block.sparse}
        return {
            (number, position, key)
            for number, position, key in rows
            if any(
                (epoch, of) == (position.epoch, number) and start <= position.offset < end
                for (epoch, of, start), end in ends.items()
            )
        }

    def _lives(self, number: int) -> list[Sequence[Record]]:
        """The partition's records in each life of the topic."""
        return [*(past[number] for past in self._past), self.log.records(TOPIC, number)]

    def verdicts(self, number: int) -> dict[Position, tuple[Verdict, int]]:
        """What the log says of each line of a partition, read the slow and plain way."""
        seen: dict[int, int] = {}
        found: dict[Position, tuple[Verdict, int]] = {}
        lines = (
            (Position(epoch, record.offset, line), raw)
            for epoch, records in enumerate(self._lives(number))
            for record in records
            for line, raw in enumerate((record.value or b"").split(b"\n"))
        )
        for position, raw in lines:
            event = _parsed(raw)
            if event is None:
                found[position] = (Verdict.REJECTED, 0)
                continue
            identity = event.get("transactionId")
            key = self._key((identity,) if identity else tuple(map(str, _split(number, position))))
            if identity and partition_of(key, self.modulus) != number:
                found[position] = (Verdict.REROUTED, key)
            elif key not in seen:
                seen[key] = event["value"]
                found[position] = (Verdict.ACCEPTED, key)
            else:
                same = seen[key] == event["value"]
                found[position] = (Verdict.DUPLICATE if same else Verdict.CONFLICT, key)
        return found

    def ids(self) -> int:
        """How many events the whole log holds that count."""
        return sum(v is Verdict.ACCEPTED for n in range(self.partitions) for v, _ in self.verdicts(n).values())

    def verdicts_counted(self) -> tuple[int, int]:
        """Rows in facts, and how many of them stand for an id that has another row."""
        keys = [fact.key for _, fact in self.blocks.facts("events")]
        return len(keys), len(keys) - len(set(keys))

    def _check_ledger(self, number: int, verdicts: dict[Position, Verdict]) -> None:
        for epoch, records in enumerate(self._lives(number)):
            at = 0
            for name in sorted(name for name in self.blocks.ledger if name[:2] == (epoch, number)):
                block = self.blocks.ledger[name].block
                self._same(f"start of {name}", block.start, at)
                at = block.end
                first, after = Position(epoch, block.start, 0), Position(epoch, block.end, 0)
                counts = Counter(v for position, v in verdicts.items() if first <= position < after)
                got = block.counts
                self._same(
                    f"counts of {name}",
                    (got.events, got.accepted, got.duplicates, got.conflicts, got.rejected, got.rerouted),
                    (counts.total(), *(counts[verdict] for verdict in Verdict)),
                )
            self._same(f"ledger's end of {number} in life {epoch}", at, len(records))

    def _check_changelog(self, number: int, firsts: dict[int, Position]) -> None:
        found: dict[int, Position] = {}
        for record in self.log.records(CHANGELOG, number):
            for key, value in unpack_change(record.value or b"").entries:
                position = unpack_sighting(value).position
                known = found.get(int.from_bytes(key, "little"))
                found[int.from_bytes(key, "little")] = position if known is None else min(known, position)
        if not self._changelog_is_whole:  # what is left of it must still be true
            firsts = {key: position for key, position in firsts.items() if key in found}
        self._same(f"changelog of {number}", found, firsts)

    def _same(self, what: str, found: Any, expected: Any) -> None:
        if found == expected:
            return
        if isinstance(found, set):
            found, expected = sorted(found - expected), f"without {sorted(expected - found)}"
        raise Violation(f"{what}: {found}, expected {expected}, seed {self.seed}")


def event_line(identity: str | None, value: int, *, month: int = 1) -> bytes:
    """An event as a client writes it: in the midst of the first month, at the beginning of others, where a sparse table
    gets something of it."""
    day = 15 if month == 1 else "01"
    event: dict[str, Any] = {"clientId": "c", "timestamp": f"2026-0{month}-{day}T00:00:00Z", "eventName": "used"}
    if identity is not None:
        event["transactionId"] = identity
    return json.dumps({**event, "value": value}).encode()


def _split(number: int, position: Position) -> tuple[int, int, int, int]:
    return position.epoch, number, position.offset, position.line


@lru_cache(maxsize=4096)
def _parsed(line: bytes) -> dict[str, Any] | None:
    event: dict[str, Any] = json.loads(line)
    return event if isinstance(event["clientId"], str) else None


async def random_run(seed: int, *, steps: int = 40, prepare: Callable[[World], None] = lambda world: None) -> World:
    """A run with everything going wrong that may, then calm, then the law."""
    busy = seed % 3 == 0
    partitions = 6 if busy else 2
    world = World(seed=seed, partitions=partitions, workers_count=2, faults=HARSH, tidy_every_s=0.1, busy=busy)
    world.window_ms = WINDOWS_MS[seed % len(WINDOWS_MS)]
    prepare(world)
    await _suffer(world, steps)
    return world


@dataclass(frozen=True)
class Plan:
    """What a seed's world is like: its size, which faults and harm there are and how often, for how many steps, and
    what comes after. Few kinds at a time let rare meetings happen that all of them at once would drown."""

    seed: int
    partitions: int
    workers: int
    rows_max: int
    faults: Faults
    happenings: dict[str, int]
    steps: int
    after: str
    modulus: int = 0
    window_ms: int = 0
    busy: bool = False

    def simpler(self) -> Iterator["Plan"]:
        """The same with one thing less, for each thing."""
        if self.after:
            yield replace(self, after="")
        for steps in range(0, self.steps, max(1, self.steps // 8)):
            yield replace(self, steps=steps)
        for name, chance in vars(self.faults).items():
            if chance:
                yield replace(self, faults=replace(self.faults, **{name: 0.0}))
        for name in self.happenings:
            if len(self.happenings) > 1:
                yield replace(self, happenings={k: v for k, v in self.happenings.items() if k != name})
        if self.window_ms:
            yield replace(self, window_ms=0)
        for name, less in (("partitions", self.partitions - 1), ("workers", self.workers - 1)):
            if less:
                yield replace(self, **{name: less}, modulus=0)


def wild_plan(seed: int) -> Plan:
    """The plan that a seed stands for."""
    draw = random.Random(f"world {seed}")
    chances = {
        name: value * draw.choice((0, 0, 0.5, 1, 3)) for name, value in vars(replace(HARSH, touch=0.004)).items()
    }
    harm = {kind: weight for kind, weight in HARM.items() if draw.random() < 0.25}
    usual = {kind: weight for kind, weight in USUAL.items() if draw.random() < 0.8}
    plan = Plan(
        seed=seed,
        partitions=draw.choice((1, 1, 2, 3)),
        workers=draw.choice((1, 2, 2, 3)),
        rows_max=draw.choice((2, 4, 6, 12)),
        faults=Faults(**chances),
        happenings={**usual, "produce": 20, **harm},
        steps=draw.choice((5, 10, 20, 40)),
        after=draw.choices(("", "topic anew", "store put back"), (8, 1, 1))[0],
    )
    if draw.random() < 0.2:  # workers of a newer version among those of the former
        plan.happenings["upgrade"] = 2
    modulus = draw.randint(1, plan.partitions) if draw.random() < 0.1 else 0
    plan = replace(plan, modulus=modulus, window_ms=draw.choice(WINDOWS_MS))
    return replace(plan, busy=True, partitions=plan.partitions + 3, modulus=0) if seed % 4 == 3 else plan


async def wild_run(plan: Plan, *, prepare: Callable[[World], None] = lambda world: None) -> World:
    """A run by a plan."""
    world = World(
        seed=plan.seed,
        partitions=plan.partitions,
        workers_count=plan.workers,
        faults=plan.faults,
        rows_max=plan.rows_max,
        skew_ms=SKEW_MS if "clock" in plan.happenings else 0,
        happenings=plan.happenings,
        modulus=plan.modulus,
        busy=plan.busy,
        window_ms=plan.window_ms,
        tidy_every_s=0.1,
    )
    prepare(world)
    snapshot = world.blocks.snapshot()
    if plan.after == "store put back":
        moment_s = world.random.uniform(0, plan.steps / 3)
        asyncio.get_running_loop().call_later(moment_s, lambda: snapshot.update(world.blocks.snapshot()))
    await _suffer(world, plan.steps)
    if plan.after:
        world.happened[plan.after] += 1
        world.note(plan.after)
        world.all_die()
    if plan.after == "topic anew":
        world.make_topic_anew()
        world.faults = plan.faults
        await _suffer(world, plan.steps)
    elif plan.after == "store put back":
        await _put_back(world, snapshot)
    return world


async def _suffer(world: World, steps: int) -> None:
    for number in range(world.partitions):
        for _ in range(4):
            world.produce_at_random(number)
    for worker in world.workers:
        worker.start()
    await world.chaos(steps)
    world.calm()
    await world.run()


async def _put_back(world: World, snapshot: dict[str, Any]) -> None:
    """The store as it was at some moment: every partition either stops and says so, and goes on whole as the message
    says it will, or was not touched by it."""
    world.put_back = True
    world.blocks.put_back(snapshot)
    for worker in world.workers:
        worker.start()
    await asyncio.sleep(3 * (LEASE_MS + DEADLINE_MS) / 1000)
    for number, reason in world.stopped.items():
        world.note("stopped", number, reason)
        if "put back to an older state" not in reason:
            raise Violation(f"partition {number} stopped with {reason}, seed {world.seed}")
    world.all_die()
    for number in world.stopped:
        world.coordinator.committed[number] = (0, "")
    world.stopped.clear()
    await world.run()
