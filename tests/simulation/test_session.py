"""The block protocol, one situation at a time: the production Session on logs, groups and stores in memory."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import block_world
import pytest
from block_world import CHANGELOG, DEADLINE_MS, LEASE_MS, REJECTS, TOPIC, Violation, World, event_line
from virtual_loop import run_virtually

from pipeline.adapters.block_store_fake import MemoryBlocks, known_as
from pipeline.block import RULES, Committed, Intent, Verdict, decode_metadata, encode_metadata
from pipeline.event import FieldError, id_hash, partition_of
from pipeline.fail_points import POINTS
from pipeline.ports import Border, CommitAnswer, LogUnavailable, Member, StoreError, StoreUnavailable
from pipeline.session import Session, SessionOver
from pipeline.stages.build import RULE_SETS, RuleSet
from pipeline.stages.dedup import identify
from pipeline.stages.sink import Block


def a_world(**fields: Any) -> World:
    """A partition with three records: news, a repetition, a conflict, a refusal and one without id."""
    world = World(**fields)
    world.produce(0, [event_line("a", 1), event_line("b", 2, month=2)])
    world.produce(0, [event_line("a", 1), event_line("b", 3), b'{"clientId": 7}'])
    world.produce(0, [event_line(None, 4)])
    return world


def committed(world: World) -> Committed:
    """What the group holds of partition 0."""
    found = decode_metadata(*world.coordinator.committed[0])
    assert found is not None
    return found


def record_commits(world: World) -> list[Committed]:
    """Every commit that is applied from now on."""
    seen: list[Committed] = []
    before = world.coordinator.on_commit

    def note(number: int, offset: int, metadata: str) -> None:
        found = decode_metadata(offset, metadata)
        assert found is not None
        seen.append(found)
        before(number, offset, metadata)

    world.coordinator.on_commit = note
    return seen


async def until(condition: Callable[[], Any], within_s: float = 100.0) -> None:
    """Lets the world go on until something holds."""
    ends = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < ends, "it never happened"
        await asyncio.sleep(0.001)


async def stopped(world: World) -> str:
    """Runs until partition 0 waits for a person; its reason."""
    for worker in world.workers:
        if not worker.alive:
            worker.start()
    world.expire()
    await until(lambda: world.stopped)
    return world.stopped[0]


async def restart(world: World, **options: Any) -> None:
    """The worker dies, and the group notices."""
    world.workers[0].kill(**options)
    world.expire()


# ------------------------------------------------------------------------------------------------ the normal way


def test_a_first_start_states_where_it_begins_and_counts_everything() -> None:
    """Without any offset the log's first one is noted in the store and committed, then blocks follow gaplessly."""

    async def go() -> None:
        world = a_world()
        commits = record_commits(world)
        await world.run()
        assert commits[0] == Committed(0, 0, None)
        assert world.blocks.epochs["first", 0].known
        assert committed(world) == Committed(0, 3, None)

    run_virtually(go)


def test_blocks_follow_each_other_and_each_end_is_the_next_intent() -> None:
    """Every intent begins where the commit before it ended, and is acknowledged before its end is."""

    async def go() -> None:
        world = World(rows_max=2)
        for number in range(12):
            world.produce(0, [event_line(f"t{number}", 1)])
        commits = record_commits(world)
        await world.run()
        assert [c.offset for c in commits] == sorted(c.offset for c in commits)
        blocks = [(c.offset, c.intent.end) for c in commits if c.intent is not None]
        assert len(blocks) >= 6
        assert [end for _, end in blocks] == [*[start for start, _ in blocks[1:]], 12]
        assert {end for _, end in blocks} == {c.offset for c in commits if c.offset > 0}

    run_virtually(go)


def test_empty_blocks_have_intents_ledger_rows_and_changelog_records_too() -> None:
    """A block of refusals only is a block: the ledger stays gapless."""

    async def go() -> None:
        world = World()
        world.produce(0, [b'{"clientId": 7}'])
        commits = record_commits(world)
        await world.run()
        assert any(c.intent is not None and c.intent.rows == 0 for c in commits)
        assert len(world.log.records(CHANGELOG, 0)) == 1
        assert len(world.log.records(REJECTS, 0)) == 1

    run_virtually(go)


def test_misplaced_events_are_sent_on_before_the_block_ends_and_count_where_they_belong() -> None:
    """While the other partition does not acknowledge, the end is not committed."""

    async def go() -> None:
        world = World(partitions=2)
        identity = next(f"t{n}" for n in range(99) if partition_of(id_hash("acme", f"t{n}"), 2) == 1)
        world.produce(0, [event_line(identity, 5)])
        write = world.log.append
        acknowledged = False

        def refuse(topic: str, number: int, value: bytes | None, headers: Any = ()) -> int:
            if topic == TOPIC and not acknowledged:
                raise LogUnavailable("no")
            return write(topic, number, value, headers)

        world.log.append = refuse  # type: ignore[method-assign]
        world.workers[0].start()
        await until(lambda: world.passed["ledger_written"])
        await asyncio.sleep(3)
        assert committed(world).offset == 0
        acknowledged = True
        await world.run()
        sent = world.log.records(TOPIC, 1)
        assert [dict(r.headers)["origin"] for r in sent] == [b"events:0:0:0:0"]
        assert dict(sent[0].headers)["account"] == b"acme"

    run_virtually(go)


def test_what_lies_in_a_partition_that_was_added_later_counts_where_its_id_belongs() -> None:
    """The number that ids are spread over stays: nothing moves, and a client that knows better is corrected."""

    async def go() -> None:
        world = World(partitions=3, modulus=2)
        world.produce(2, [event_line("a", 1), event_line("b", 2), event_line(None, 3)])
        world.produce(partition_of(id_hash("acme", "a"), 2), [event_line("a", 1)])
        await world.run()
        assert world.ids() == 3
        assert world.blocks.ledger[0, 2, 0].block.counts.rerouted == 2

    run_virtually(go)


def test_a_full_worker_pauses_and_goes_on_when_the_store_is_back() -> None:
    """With the store away no more than a few blocks are fetched; the membership stays."""

    async def go() -> None:
        world = World(rows_max=3)
        worker = world.workers[0]
        worker.start()
        await until(lambda: 0 in world.coordinator.committed)
        world.away_until_ms = world.now_ms() + 3_000
        for number in range(60):
            world.produce(0, [event_line(f"t{number}", 1)])
        await until(lambda: worker.group.opened and worker.group.opened[0].paused)
        await asyncio.sleep(1)
        assert worker.group.opened[0].paused
        assert worker.group.opened[0].position < 20
        await world.run()
        assert world.coordinator.generation == 1

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ deaths


@pytest.mark.parametrize("disk_lost", [False, True])
@pytest.mark.parametrize("passing", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_neither_loses_nor_doubles(point: str, passing: int, disk_lost: bool) -> None:
    """Killed at a fail point, with and without its disk, the next worker finishes exactly what was begun."""

    async def go() -> None:
        world = a_world(kill_at=(point, passing), disk_lost=disk_lost, rows_max=3)
        await world.run()
        world.produce(0, [event_line("a", 1), event_line("d", 4), event_line("b", 3)])
        await world.run()
        assert world.killed == 1
        assert world.coordinator.generation > 1

    run_virtually(go)


def test_a_block_larger_than_todays_limits_is_still_built_again() -> None:
    """A worker started with smaller blocks takes all of the block that was under way before it pauses."""

    async def go() -> None:
        world = World(rows_max=50, kill_at=("intent_committed", 1), close_s=5)
        for number in range(40):
            world.produce(0, [event_line(f"t{number}", 1)])
        world.workers[0].start()
        await until(lambda: world.killed)
        intent = committed(world).intent
        assert intent is not None
        assert intent.end == 40
        world.rows_max = 1
        await world.run()

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ commits


def test_a_refused_commit_ends_the_session_and_nothing_has_left_it() -> None:
    """A worker that was expelled meanwhile states an intent in vain."""

    async def go() -> None:
        world = World()
        worker = world.workers[0]
        worker.start()
        await until(lambda: 0 in world.coordinator.committed)
        worker.silent = True
        world.coordinator.leave("member-1")
        world.produce(0, [event_line("a", 1)])
        session = worker.sessions[0][0]
        await until(lambda: session.standing.state == "over")
        assert not world.blocks.ledger
        assert not world.blocks.arrivals
        assert not world.log.records(CHANGELOG, 0)
        world.calm()
        await world.run()

    run_virtually(go)


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_without_an_answer_is_never_sent_again_by_the_same_member(applied: bool) -> None:
    """The worker leaves the group and comes back as another member, whether the commit was applied or not."""

    async def go() -> None:
        world = a_world()
        worker = world.workers[0]
        worker.start()
        commit = worker.group.commit
        sent: list[tuple[int, Member]] = []

        async def unanswered(number: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
            sent.append((offset, member))
            if len(sent) == 2:
                if applied:
                    await commit(number, offset, metadata, member)
                return CommitAnswer.UNKNOWN
            return await commit(number, offset, metadata, member)

        worker.group.commit = unanswered  # type: ignore[method-assign]
        await world.run()
        assert len({member.member_id for _, member in sent}) == 2
        assert sent[1][1] != sent[2][1]

    run_virtually(go)


async def _a_zombie_speaks(world: World) -> None:
    """The first worker is expelled during a long insert, and is a member again before its old session hears of it."""
    first, second = world.workers
    first.start()
    await until(lambda: 0 in world.coordinator.committed)
    first.store_takes_s = 0.9
    world.produce(0, [event_line("a", 1)])
    await until(lambda: world.passed["before_insert"])
    old = first.sessions[0][0]
    assert first.group.member is not None
    first.silent = True
    world.coordinator.leave(first.group.member.member_id)
    second.start()
    world.produce(0, [event_line("b", 2)])
    await until(lambda: committed(world).offset == 2, 0.8)
    first.group.join()
    await until(lambda: old.standing.state == "over", 3)
    assert committed(world).offset == 2


def id_in(partition: int, number: int, partitions: int = 4) -> str:
    """An id that belongs to the partition, the same for the same number."""
    names = (f"{number}/{attempt}" for attempt in itertools.count())
    return next(name for name in names if partition_of(id_hash("acme", name), partitions) == partition)


def test_blocks_stay_open_while_the_store_is_busy() -> None:
    """A closed block that waits for the store would only need one more for what comes meanwhile."""

    async def go() -> None:
        world = World(partitions=4, rows_max=1_000, shared_lease_ms=0)
        world.workers[0].start()
        world.workers[0].store_takes_s = 0.5
        for number in range(100):
            for partition in range(4):
                world.produce(partition, [event_line(id_in(partition, number), 1)])
            await asyncio.sleep(0.1)
        await world.run()
        # in turn, half a second for each insert, ten seconds long; each partition by itself closes 26
        assert len(world.blocks.ledger) <= 22

    run_virtually(go)


def test_partitions_that_cannot_be_stored_do_not_keep_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their blocks have all the turns, for ever."""

    async def go() -> None:
        world = World(partitions=4, rows_max=1_000)
        insert = world.blocks._insert

        def some(blocks: Sequence[Block], *how: Any, **named: Any) -> None:
            if min(block.partition for block in blocks) < 2:
                raise StoreError(1, "no")
            insert(blocks, *how, **named)

        monkeypatch.setattr(world.blocks, "_insert", some)
        world.workers[0].start()
        for number in range(3):
            for partition in range(4):
                world.produce(partition, [event_line(id_in(partition, number), 1)])
            await asyncio.sleep(5)
        offsets = {number: offset for number, (offset, _) in world.coordinator.committed.items()}
        assert offsets[2] == offsets[3] == 3 > offsets[0] == offsets[1]
        monkeypatch.undo()
        await world.run(1_000)

    run_virtually(go)


@pytest.mark.parametrize("lie_elsewhere", [False, True])
def test_a_block_full_of_lines_for_other_topics_sends_them_in_parts(
    monkeypatch: pytest.MonkeyPatch, lie_elsewhere: bool
) -> None:
    """Records wait for each other at the producer: all of a large block at once would run past their time-out, and
    again each time they are repeated."""
    under_way, most = 0, 0
    before = block_world._Writer.write

    async def counted(self: Any, *args: Any, **named: Any) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await before(self, *args, **named)
        finally:
            under_way -= 1

    async def go() -> None:
        world = World(partitions=2)
        ids = (f"id-{n}" for n in range(1 << 16))
        elsewhere = [event_line(i, 1) for i in ids if partition_of(id_hash("acme", i), world.partitions) != 0][:1300]
        world.produce(0, elsewhere if lie_elsewhere else [b'{"clientId": 7}'] * 1300)
        world.calm()
        await world.run()
        assert len(world.log.records(REJECTS, 0)) == (0 if lie_elsewhere else 1300)

    monkeypatch.setattr(block_world._Writer, "write", counted)
    run_virtually(go)
    assert 100 <= most <= 1000


def test_a_zombie_commits_as_who_it_was_and_is_refused() -> None:
    """A member that was expelled and came back is refused for what it began before."""

    async def go() -> None:
        world = World(workers_count=2)
        await _a_zombie_speaks(world)
        world.calm()
        await world.run()

    run_virtually(go)


def test_a_zombie_that_commits_as_who_it_is_now_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the planted bug: the commit passes, and takes back what the owner has committed."""

    async def as_of_now(self: Session, offset: int, intent: Intent | None) -> None:
        member = self._out.group.member or self._member  # type: ignore[attr-defined]
        metadata = encode_metadata(self._place.epoch, intent)
        if await self._out.group.commit(self._partition, offset, metadata, member) is not CommitAnswer.DONE:
            raise SessionOver("refused")

    async def go() -> None:
        world = World(workers_count=2)
        await _a_zombie_speaks(world)

    monkeypatch.setattr(Session, "_commit", as_of_now)
    with pytest.raises(AssertionError):
        run_virtually(go)


# ------------------------------------------------------------------------------------------------ inserts


def test_an_insert_whose_answer_was_lost_counts_once() -> None:
    """All rows arrived; the same rows under the same token are sent again."""

    async def go() -> None:
        world = a_world()
        insert = world.blocks.insert
        tries: list[str] = []

        def lost(block: Block, deadline_ms: int) -> None:
            insert(block, deadline_ms)
            tries.append(block.token)
            if len(tries) == 1:
                raise StoreUnavailable("the answer was lost")

        world.blocks.insert = lost  # type: ignore[method-assign]
        await world.run()
        assert tries[0] == tries[1]
        assert world.repaired == 0

    run_virtually(go)


def test_a_table_that_missed_the_block_is_repaired_once_the_owner_is_proved() -> None:
    """The engine died between noting a token and taking the rows: facts are there, a rollup is not."""

    async def go() -> None:
        world = a_world(rows_max=50)
        fail_after(world, 3, note_next=True)
        commits = record_commits(world)
        await world.run()
        assert world.repaired == 1
        starts = [c.offset for c in commits if c.intent is not None]
        assert starts.count(0) == 2  # stated, and proved before the repair
        assert world.now_ms() > commits[1].intent.stated_ms + LEASE_MS + DEADLINE_MS  # type: ignore[union-attr]

    run_virtually(go)


def fail_after(world: World, steps: int, *, note_next: bool = False, later_s: float | None = None) -> None:
    """The first insert stops after so many tables; the rest never comes, or comes later."""
    insert, first = world.blocks.insert, iter([True])

    def half_done(block: Block, deadline_ms: int) -> None:
        if not next(first, False):
            insert(block, deadline_ms)
            return
        left = world.blocks.steps([block], block.token, deadline_ms, sparse=block.sparse)
        for step in left[:steps]:
            step()
        if note_next:
            known = known_as(block.token, sparse=block.sparse)
            world.blocks.note_token(world.blocks.places(block)[steps], known)
        if later_s is not None:
            asyncio.get_running_loop().call_later(later_s, lambda: [step() for step in left[steps:]])
        raise StoreUnavailable("the answer was lost")

    world.blocks.insert = half_done  # type: ignore[method-assign]


def away_for(world: World, ms: int) -> None:
    """Inserts do not reach the store for so long after the block was first stated."""
    insert = world.blocks.insert
    stated_ms: list[int] = []

    def away(block: Block, deadline_ms: int) -> None:
        stated_ms.append(world.now_ms())
        if world.now_ms() - stated_ms[0] < ms:
            raise StoreUnavailable("away")
        insert(block, deadline_ms)

    world.blocks.insert = away  # type: ignore[method-assign]


async def _an_insert_comes_late(world: World) -> None:
    """Its worker is dead; the next one finds the lease over and the block half there, the rest on its way."""
    fail_after(world, 2, later_s=2.5)
    away_for(world, LEASE_MS - 1_000)
    world.workers[0].start()
    await until(lambda: world.blocks.arrivals)
    await restart(world)
    await asyncio.sleep(1)
    world.workers[0].start()
    await world.drain()
    await asyncio.sleep(5)
    world.check()


def test_nothing_is_repaired_while_an_insert_may_still_come() -> None:
    """Who finds a block half there waits until nothing of it can land any more."""
    run_virtually(lambda: _an_insert_comes_late(a_world(rows_max=50)))


def test_repairing_at_once_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the planted bug: the late rows come on top of the repair."""

    async def at_once(self: Session, holder: Any) -> None:
        """No wait."""

    monkeypatch.setattr(Session, "_wait_until_settled", at_once)
    with pytest.raises(Violation):
        run_virtually(lambda: _an_insert_comes_late(a_world(rows_max=50)))


def test_an_old_statement_is_renewed_only_after_a_look_that_found_nothing() -> None:
    """With the store away for longer than the lease, the block is stated anew with a new time, then inserted."""

    async def go() -> None:
        world = a_world(rows_max=50)
        commits = record_commits(world)
        away_for(world, LEASE_MS)
        await world.run()
        stated = [c.intent.stated_ms for c in commits if c.intent is not None and c.offset == 0]
        assert stated[0] == stated[1] < stated[2]
        assert stated[2] - stated[0] > LEASE_MS + DEADLINE_MS

    run_virtually(go)


def test_an_insert_must_begin_in_the_first_half_of_its_deadline() -> None:
    """The other half is for an insert that began in time to end: nothing lands after t0 + L + D."""

    async def go() -> None:
        world = a_world()
        seen: list[int] = []
        insert = world.blocks.insert

        def note(block: Block, deadline_ms: int) -> None:
            seen.append(deadline_ms - world.now_ms())
            insert(block, deadline_ms)

        world.blocks.insert = note  # type: ignore[method-assign]
        await world.run()
        assert all(left <= DEADLINE_MS // 2 for left in seen)

    run_virtually(go)


def test_a_worker_that_is_stopped_before_its_insert_does_not_come_back_with_a_fresh_deadline() -> None:
    """SIGSTOP between the look at the lease and the insert: by then another may have added what was missing under
    other tokens, so that the store must refuse it."""

    async def go() -> None:
        world = a_world()
        stopped_ms = LEASE_MS + DEADLINE_MS
        clock, jumps, late = world.now_ms, [0], []
        world.now_ms = world.blocks._now_ms = lambda: clock() + jumps[0]  # type: ignore[method-assign]
        worker = world.workers[0]
        go_by, insert = worker.fail_point, world.blocks.insert

        def stop(name: str) -> None:
            go_by(name)
            if name == "before_insert" and not jumps[0]:
                jumps[0] = stopped_ms

        def note(block: Block, deadline_ms: int) -> None:
            late.append(world.now_ms() - deadline_ms)
            insert(block, deadline_ms)

        worker.fail_point = stop  # type: ignore[method-assign]
        world.blocks.insert = note  # type: ignore[method-assign]
        await world.run()
        assert late[0] > 0
        assert late[1] < 0  # stated anew, the block is inserted after all

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ offsets and ledger


async def counted(world: World) -> None:
    """All is counted, and the worker is down."""
    await world.run()
    await restart(world)


@pytest.mark.parametrize("leaves", [None, (0, ""), (2, ""), (1, '{"tag":"another"}')])
def test_lost_or_moved_offsets_are_taken_from_the_ledger_after_a_wait(leaves: tuple[int, str] | None) -> None:
    """Whether offsets expired or a tool has moved them, nothing counts twice and nothing is skipped."""

    async def go() -> None:
        world = a_world(rows_max=3)
        await counted(world)
        world.coordinator.committed.clear()
        if leaves is not None:
            world.coordinator.committed[0] = leaves
        world.produce(0, [event_line("c", 9)])
        began_ms = world.now_ms()
        commits = record_commits(world)
        await world.run()
        assert commits[0].intent is not None
        assert world.now_ms() - began_ms > LEASE_MS + DEADLINE_MS

    run_virtually(go)


def test_offsets_lost_before_the_first_block_begin_where_the_epoch_began() -> None:
    """The epoch's row tells lost offsets from a new topic."""

    async def go() -> None:
        world = World()
        world.workers[0].start()
        await until(lambda: 0 in world.coordinator.committed)
        await restart(world)
        world.coordinator.committed.clear()
        world.produce(0, [event_line("a", 1)])
        await world.run()

    run_virtually(go)


def test_a_ledger_ahead_of_the_group_is_believed() -> None:
    """A group that was put back a few commits finds the blocks in the ledger, and counts none of them twice."""

    async def go() -> None:
        world = a_world(rows_max=3)
        commits = record_commits(world)
        await counted(world)
        world.coordinator.committed[0] = (commits[1].offset, encode_metadata(0, commits[1].intent))
        await world.run()

    run_virtually(go)


@pytest.mark.parametrize("keeps", [0, 1])
def test_a_store_that_was_put_back_stops_the_partition_with_the_reason(keeps: int) -> None:
    """Going on would leave a hole that nobody sees."""

    async def go() -> None:
        world = a_world(rows_max=2)
        await counted(world)
        assert len(world.blocks.ledger) > 1
        for name in sorted(world.blocks.ledger)[keeps:]:
            del world.blocks.ledger[name]
        assert "put back to an older state" in await stopped(world)

    run_virtually(go)


@pytest.mark.parametrize("lacks", ["events", "usage_15m", "rejects"])
def test_a_store_put_back_into_the_midst_of_its_last_block_is_noticed(lacks: str) -> None:
    """The ledger entry is written before the rows: it alone proves nothing. The way that the message tells is whole."""

    async def go() -> None:
        world = a_world(rows_max=10, close_s=1.0)
        await counted(world)
        world.put_back = True
        if lacks == "rejects":
            world.blocks.rejects.clear()
        else:
            del world.blocks.arrivals[lacks, 202601]
        assert "lacks parts of its last block" in await stopped(world)
        await restart(world)
        world.stopped.clear()
        world.coordinator.committed[0] = (0, "")
        await world.run()

    run_virtually(go)


def test_an_empty_store_under_a_group_that_has_counted_stops_the_partition() -> None:
    """Not even the epoch's row is there: another store, or all of it is lost."""

    async def go() -> None:
        world = a_world()
        await counted(world)
        world.blocks.ledger.clear()
        world.blocks.epochs.clear()
        world.blocks.arrivals.clear()
        assert "is empty" in await stopped(world)

    run_virtually(go)


@pytest.mark.parametrize(("first", "end"), [(2, 4), (0, 0)])
def test_events_that_left_the_log_uncounted_stop_the_partition(first: int, end: int) -> None:
    """Retention was shorter than the outage: that is said, instead of going on behind the gap."""

    async def go() -> None:
        world = World()
        world.produce(0, [event_line("a", 1)])
        await counted(world)
        if end:
            for number in range(3):
                world.produce(0, [event_line(f"b{number}", 1)])
            world.log.delete_before(TOPIC, 0, first)
        else:
            world.log.make_anew(TOPIC, 0)
        reason = await stopped(world)
        assert ("deleted before they were counted" if end else "the log was put back to an older state") in reason

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ building again


def test_a_block_that_comes_out_different_stops_the_partition() -> None:
    """The reason is the whole sentence, wherever in the task groups it was raised."""

    async def go() -> None:
        world = a_world(kill_at=("intent_committed", 1))
        world.workers[0].start()
        await until(lambda: world.killed)
        found = committed(world)
        assert found.intent is not None
        changed = Intent(0, 0, found.intent.end, found.intent.rows, 1, found.intent.catalog_version, 1, 0)
        world.coordinator.committed[0] = (0, encode_metadata(0, changed))
        assert (await stopped(world)).startswith("block 0-")

    run_virtually(go)


def test_a_block_of_other_rules_stops_the_partition_and_not_the_worker() -> None:
    """An upgrade over a block that was under way."""

    async def go() -> None:
        world = a_world(kill_at=("intent_committed", 1))
        world.workers[0].start()
        await until(lambda: world.killed)
        world.coordinator.committed[0] = (0, encode_metadata(0, Intent(0, 0, 3, 3, 1, 1, 99, 0)))
        assert "rules 99" in await stopped(world)
        assert not world.faulty

    run_virtually(go)


def _refusing_nines(lines: Any, **options: Any) -> None:
    """Newer rules: an event of value 9 is refused."""
    identify(lines, **options)
    for line in lines:
        if line.event is not None and line.event.value == 9:
            line.verdict, line.errors, line.event = Verdict.REJECTED, (FieldError("value", "nine", "is 9"),), None


NEWER = {**RULE_SETS, RULES + 1: RuleSet(identify=_refusing_nines)}


def test_a_newer_worker_finishes_a_block_under_the_rules_that_it_was_begun_with() -> None:
    """And begins the next under its own: both versions lie in the ledger, each with its own verdicts."""

    async def go() -> None:
        world = World(kill_at=("intent_committed", 1))
        world.produce(0, [event_line("a", 9)])
        world.workers[0].start()
        await until(lambda: world.killed)
        world.expire()
        world.workers[0].rule_sets = NEWER
        world.workers[0].start()
        await world.drain()
        world.produce(0, [event_line("b", 9), event_line("c", 1)])
        await world.drain()
        entries = [world.blocks.ledger[name] for name in sorted(world.blocks.ledger)]
        assert [(e.intent.rules, e.block.counts.accepted, e.block.counts.rejected) for e in entries] == [
            (RULES, 1, 0),
            (RULES + 1, 1, 1),
        ]

    run_virtually(go)


def test_a_worker_that_does_not_know_the_rules_leaves_the_block_to_a_newer_one() -> None:
    """A rolling upgrade, and one that is taken back: the former worker says why it waits, and harms nothing."""

    async def go() -> None:
        world = World(kill_at=("inserted", 1))
        world.workers[0].rule_sets = NEWER
        world.produce(0, [event_line("a", 1)])
        world.workers[0].start()
        await until(lambda: world.killed)
        world.expire()
        world.workers[0].rule_sets = RULE_SETS
        world.workers[0].start()
        session = await _session_of(world)
        await until(lambda: session.standing.stopped)
        known = ", ".join(map(str, sorted(RULE_SETS)))
        assert f"begun under rules {RULES + 1}, this worker knows {known}:" in session.standing.stopped
        assert "newer version" in session.standing.stopped
        await restart(world)
        world.workers[0].rule_sets = NEWER
        await world.run()

    run_virtually(go)


async def _session_of(world: World) -> Session:
    await until(lambda: world.workers[0].sessions)
    return world.workers[0].sessions[0][0]


def test_a_block_is_built_again_with_the_catalog_that_it_was_stated_with() -> None:
    """A feature made since does not meter it."""

    async def go() -> None:
        world = a_world(kill_at=("intent_committed", 1))
        world.workers[0].start()
        await until(lambda: world.killed)
        world.catalog.more()
        intent = committed(world).intent
        assert intent is not None
        await world.run()
        facts = [fact for _, fact in world.blocks.facts("events") if fact.position.offset < intent.end]
        assert {len(fact.features) for fact in facts} == {1}

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ the table


def test_a_changelog_that_is_gone_is_made_up_for_from_the_store() -> None:
    """Ids are known though neither disk nor changelog knows them."""

    async def go() -> None:
        world = a_world(rows_max=2)
        await counted_without_changelog(world)
        await world.drain()
        assert world.verdicts_counted() == (world.ids(), 0)

    run_virtually(go)


async def counted_without_changelog(world: World) -> None:
    """Everything was counted, disk and changelog are gone, and old ids come again."""
    await world.run()
    await restart(world, disk_lost=True)
    world.log.make_anew(CHANGELOG, 0)
    world.produce(0, [event_line("a", 1), event_line("b", 2, month=2)])
    world.workers[0].start()


def test_a_changelog_that_was_made_anew_and_grew_is_not_taken_for_whole() -> None:
    """It is as long as the one before, and lacks the same blocks: the rebuilding survives being cut short."""

    async def go() -> None:
        world = a_world(rows_max=2)
        await world.run()
        world.log.make_anew(CHANGELOG, 0)  # while the worker runs: its own table knows all
        for number in range(6):
            world.produce(0, [event_line(f"n{number}", 1)])
            await world.drain()
        await restart(world, disk_lost=True)
        world.produce(0, [event_line("a", 1), event_line("n1", 1)])
        ids, cut = world.blocks.ids, iter([True])

        def cut_short(number: int, after: bytes, since: Border) -> bytes:
            if next(cut, False):
                world.workers[0].flush()
                world.workers[0].kill()
            return ids(number, after, since)

        world.blocks.ids = cut_short  # type: ignore[method-assign]
        world.workers[0].start()
        await world.drain()
        assert world.verdicts_counted() == (world.ids(), 0)

    run_virtually(go)


def test_a_reading_of_the_changelog_that_is_cut_short_begins_again() -> None:
    """A broker that goes away meanwhile does not end the worker."""

    async def go() -> None:
        world = a_world(rows_max=2)
        await counted(world)
        world.workers[0].disk[0].entries.clear()
        world.faults.log = 0.5
        world.workers[0].start()
        await asyncio.sleep(5)
        world.calm()
        await world.run()

    run_virtually(go)


def test_the_fake_store_promises_what_the_tests_lean_on() -> None:
    """It forgets no token within lease and deadline."""

    async def go() -> None:
        world = a_world()
        await world.run()
        block = next(iter(world.blocks.ledger.values())).block
        MemoryBlocks.insert(world.blocks, block, world.now_ms())
        assert world.blocks.landed(block).complete

    run_virtually(go)


def test_rows_that_lie_in_the_store_twice_stop_the_partition() -> None:
    """Adding cannot mend it: the whole sentence is said, from however deep in the task groups."""

    async def go() -> None:
        world = a_world(rows_max=50)
        insert = world.blocks.insert

        def doubled(block: Block, deadline_ms: int) -> None:
            insert(block, deadline_ms)
            place = world.blocks.places(block)[0]
            world.blocks.arrivals[place].append(world.blocks.arrivals[place][-1])
            raise StoreUnavailable("the answer was lost")

        world.blocks.insert = doubled  # type: ignore[method-assign]
        assert "of partition 0 lies in the store more or less than once" in await stopped(world)

    run_virtually(go)
