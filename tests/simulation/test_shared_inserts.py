"""Blocks of several partitions in one insert, one situation at a time: the production Session in memory."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from block_world import SHARED_DEADLINE_MS, SHARED_LEASE_MS, Violation, World, _Thread, event_line
from test_session import id_in, record_commits, until
from virtual_loop import run_virtually

from pipeline.block import decode_metadata
from pipeline.ports import StoreError, StoreUnavailable
from pipeline.session import TAKEN_MAX, Session, _Lease
from pipeline.stages.sink import Block

PARTITIONS = 4
Insert = Callable[..., None]


def a_busy_world(**fields: Any) -> World:
    """Four partitions with an event each, and a store that takes a while: the first block goes alone, the other three
    together."""
    world = World(partitions=PARTITIONS, rows_max=1_000, **fields)
    for worker in world.workers:
        start = worker.start

        def slow(worker: Any = worker, start: Callable[[], None] = start) -> None:
            start()
            worker.store_takes_s = 0.1

        worker.start = slow  # type: ignore[method-assign]
    more(world, 0)
    return world


def more(world: World, number: int) -> None:
    """An event in each partition."""
    for partition in range(PARTITIONS):
        world.produce(partition, [event_line(id_in(partition, number, PARTITIONS), 1)])


async def events_keep_coming(world: World, number: int, *, build_s: float, insert_s: float) -> None:
    """So many times an event in each partition, one each tenth of a second, while to build a block and to insert what
    goes together take so long."""
    worker = world.workers[0]
    worker.start()
    worker.store_takes_s = 0.01
    worker.cpu = _Thread(worker, lambda: build_s, serial=True)
    worker.shared._io = _Thread(worker, lambda: insert_s, serial=False)
    for each in range(number):
        more(world, each)
        await asyncio.sleep(0.1)


def times_of(world: World, method: str) -> list[float]:
    """When this method of the store is called, as it happens."""
    work, times = getattr(world.blocks, method), []

    def noted(*arguments: Any, **named: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        work(*arguments, **named)

    setattr(world.blocks, method, noted)
    return times


def of_shared(world: World, instead: Callable[[int, Insert, Sequence[Block], str, int], None]) -> list[str]:
    """Shared inserts go to `instead`, with their number and what would do them. Their tokens, as they come."""
    insert, tokens = world.blocks.insert_together, []

    def changed(blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool) -> None:
        if len(blocks) < 2 and "+" not in token:
            insert(blocks, token, deadline_ms, sparse=sparse)
            return
        tokens.append(token)
        instead(len(tokens), partial(insert, sparse=sparse), blocks, token, deadline_ms)

    world.blocks.insert_together = changed  # type: ignore[method-assign]
    return tokens


def the_first_stops_halfway(world: World, then: Callable[[], None]) -> list[str]:
    """The first shared insert reaches two places, then `then` happens. The tokens of all, as they come."""

    def half(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
        if number > 1:
            insert(blocks, token, deadline_ms)
            return
        for step in world.blocks.steps(blocks, token, deadline_ms, sparse=any(b.sparse for b in blocks))[:2]:
            step()
        then()

    return of_shared(world, half)


def test_small_blocks_go_together_while_the_store_is_busy() -> None:
    """One insert takes half a second, and four partitions fill a block in that time: they share inserts."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        inserts: list[int] = []
        one, several = world.blocks.insert, world.blocks.insert_together

        def alone(block: Block, deadline_ms: int) -> None:
            inserts.append(1)
            one(block, deadline_ms)

        def together(blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool) -> None:
            inserts.append(len(blocks))
            several(blocks, token, deadline_ms, sparse=sparse)

        world.blocks.insert = alone  # type: ignore[method-assign]
        world.blocks.insert_together = together  # type: ignore[method-assign]
        world.workers[0].start()
        world.workers[0].store_takes_s = 0.5
        for number in range(100):
            more(world, number)
            await asyncio.sleep(0.1)
        await world.run()
        assert max(inserts) == PARTITIONS - 1  # that of the first is under way
        assert len(inserts) < len(world.blocks.ledger) * 3 / 4

    run_virtually(go)


@pytest.mark.parametrize("late_s", [0.1, 0.3, 0.5])
def test_partitions_that_are_out_of_step_fall_into_it(late_s: float) -> None:
    """Two whose events come later than those of the others: else inserts of some alternate with inserts of others, and
    every event waits for two."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        sizes: list[int] = []
        together = world.blocks.insert_together

        def insert(blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool) -> None:
            sizes.append(len(blocks))
            together(blocks, token, deadline_ms, sparse=sparse)

        world.blocks.insert_together = insert  # type: ignore[method-assign]
        worker = world.workers[0]
        worker.start()
        worker.store_takes_s = 0.02
        worker.shared._io = _Thread(worker, lambda: 0.5, serial=False)
        for number in range(100):
            for partition in range(PARTITIONS) if number * 0.1 >= late_s else range(2):
                world.produce(partition, [event_line(id_in(partition, number, PARTITIONS), 1)])
            await asyncio.sleep(0.1)
        assert set(sizes[4:]) == {PARTITIONS}
        await world.run()

    run_virtually(go)


def test_the_next_blocks_are_built_when_an_insert_ends() -> None:
    """An insert takes 0.3 s, building four a quarter of that: otherwise the store would wait for them, each time."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        begun = times_of(world, "insert_together")
        await events_keep_coming(world, 100, build_s=0.02, insert_s=0.3)
        assert max(later - one for one, later in pairwise(begun[3:])) < 0.3 + PARTITIONS * 0.02
        await world.run()

    run_virtually(go)


def test_whose_turn_to_be_built_is_later_holds_what_comes_meanwhile() -> None:
    """Blocks that go together are built one after the other, a tenth of a second each; one more waits closed. Had all
    closed with the first, an event that came since would wait for another insert."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        spread: list[int] = []
        together = world.blocks.insert_together

        def insert(blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool) -> None:
            spread.append(max(block.end for block in blocks) - min(block.end for block in blocks))
            together(blocks, token, deadline_ms, sparse=sparse)

        world.blocks.insert_together = insert  # type: ignore[method-assign]
        await events_keep_coming(world, 200, build_s=0.1, insert_s=0.8)
        assert len(spread) > 8
        assert min(spread[3:]) >= PARTITIONS - 2
        await world.run()

    run_virtually(go)


def test_a_session_that_ends_while_it_waits_to_be_built_holds_up_nobody() -> None:
    """Its partition's next session builds the block; all events count once."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        worker = world.workers[0]
        asyncio.get_running_loop().call_later(3.05, world.coordinator.rebalance)
        await events_keep_coming(world, 60, build_s=0.3, insert_s=0.2)
        await world.run()
        assert worker.taking._value == TAKEN_MAX

    run_virtually(go)


def test_one_request_tells_the_ledger_of_blocks_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far apart they are built: an insert waits for the last of them, and each request costs the store."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        write, at_once = world.blocks.write_ledger, list[int]()

        def noted(stated: Sequence[tuple[Block, int]]) -> None:
            at_once.append(len(stated))
            write(stated)

        monkeypatch.setattr(world.blocks, "write_ledger", noted)
        await events_keep_coming(world, 40, build_s=0.03, insert_s=0.05)
        assert len(at_once) > 10
        assert set(at_once[4:]) == {PARTITIONS}
        await world.run()

    run_virtually(go)


def test_an_idle_store_gets_each_block_alone() -> None:
    """Who takes such a block over need not wait."""

    async def go() -> None:
        world = World(partitions=PARTITIONS, rows_max=1_000)
        commits = record_commits(world)
        world.workers[0].start()
        for partition in range(PARTITIONS):
            world.produce(partition, [event_line(id_in(partition, 0, PARTITIONS), 1)])
            await asyncio.sleep(2)
        await world.run()
        assert not any(c.intent.shared for c in commits if c.intent is not None)

    run_virtually(go)


def test_without_a_shared_lease_each_block_goes_alone() -> None:
    """The setting is a way back."""

    async def go() -> None:
        world = a_busy_world(shared_lease_ms=0)
        await world.run()
        assert not world.happened["together"]

    run_virtually(go)


def test_a_try_without_an_answer_is_done_again_under_the_same_token_and_a_new_statement() -> None:
    """Every block of it is stated anew before, which proves that its session still is the owner; all count once."""

    async def go() -> None:
        world = a_busy_world()

        def lost(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            insert(blocks, token, deadline_ms)
            if number < 3:
                raise StoreUnavailable("the answer was lost")

        tokens = of_shared(world, lost)
        commits = record_commits(world)
        await world.run()
        assert len(tokens) >= 3
        assert len(set(tokens[:3])) == 1
        together = len(tokens[0].split("+"))
        assert together > 1
        stated = [c.intent.stated_ms for c in commits if c.intent is not None and c.intent.shared]
        assert len(stated) >= 3 * together
        assert world.repaired == 0

    run_virtually(go)


def test_a_refused_insert_is_given_up_after_a_lease_and_each_block_goes_alone() -> None:
    """One of them may be what the store refuses: it must not hold up the others for ever."""

    async def go() -> None:
        world = a_busy_world()

        def refused(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            raise StoreError(1, "no")

        tokens = of_shared(world, refused)
        await world.run()
        assert len(tokens) > 1

    run_virtually(go)


def test_whoever_takes_over_finds_what_went_with_others() -> None:
    """The worker dies once the insert has arrived: the next one only looks, and sends nothing."""

    async def go() -> None:
        world = a_busy_world(workers_count=1)

        def dies(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            insert(blocks, token, deadline_ms)
            if number == 1:
                world.workers[0].kill()

        tokens = of_shared(world, dies)
        alone: list[str] = []
        one = world.blocks.insert

        def note(block: Block, deadline_ms: int) -> None:
            alone.append(block.token)
            one(block, deadline_ms)

        world.blocks.insert = note  # type: ignore[method-assign]
        await world.run()
        assert len(tokens) == 1
        assert not set(tokens[0].split("+")) & set(alone)

    run_virtually(go)


async def _a_shared_insert_comes_late(world: World) -> None:
    """The worker dies with it on its way; it arrives as late as it may, after another worker has taken over."""

    def late(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
        if number > 1:
            insert(blocks, token, deadline_ms)
            return
        steps = world.blocks.steps(blocks, token, deadline_ms, sparse=any(b.sparse for b in blocks))
        arrives_s = SHARED_DEADLINE_MS / 1000 * 0.9
        asyncio.get_running_loop().call_later(arrives_s, lambda: [step() for step in steps])
        world.workers[0].kill()

    tokens = of_shared(world, late)
    await world.run()
    assert tokens


def test_a_shared_insert_that_comes_late_counts_once() -> None:
    """Whoever takes over acts only once it can come no more."""
    run_virtually(lambda: _a_shared_insert_comes_late(a_busy_world()))


def test_acting_before_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the planted bug: the block is sent alone, and comes with others as well."""

    async def at_once(self: Session, block: Block, holder: Any) -> _Lease:
        return _Lease.INSERT

    monkeypatch.setattr(Session, "_look_for_shared", at_once)
    with pytest.raises(Violation):
        run_virtually(lambda: _a_shared_insert_comes_late(a_busy_world()))


def test_what_arrived_in_part_is_completed_by_the_next_owner() -> None:
    """The engine and the worker die in the midst of it: some tables have the blocks, others do not."""

    async def go() -> None:
        world = a_busy_world()
        tokens = the_first_stops_halfway(world, world.workers[0].kill)
        await world.run()
        assert world.repaired == len(tokens[0].split("+"))

    run_virtually(go)


def test_what_arrived_in_part_is_completed_by_a_further_try_of_its_sender() -> None:
    """No wait and no repair where the worker lives: the same token adds what is missing."""

    async def go() -> None:
        world = a_busy_world()

        def no_answer() -> None:
            raise StoreUnavailable("the engine died")

        the_first_stops_halfway(world, no_answer)
        await world.run()
        assert world.repaired == 0

    run_virtually(go)


def test_who_has_lost_a_partition_leaves_the_insert_and_the_others_go_on() -> None:
    """The first try fails, then one of the partitions goes to another worker: its rows are in no further try."""

    async def go() -> None:
        world = a_busy_world(workers_count=2)
        seen: list[set[int]] = []

        def fails(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            seen.append({block.partition for block in blocks})
            if number == 1:
                raise StoreUnavailable("no answer")
            insert(blocks, token, deadline_ms)

        tokens = of_shared(world, fails)
        first = world.workers[0]
        first.start()
        await until(lambda: tokens)
        lost = min(seen[0])
        task = first.sessions[lost][1]
        task.cancel()
        await until(lambda: len(seen) > 1)
        assert seen[1] == seen[0] - {lost}
        assert tokens[0] == tokens[1]
        first.kill()
        await world.run()

    run_virtually(go)


def test_a_late_block_is_stated_anew_before_it_goes_with_others() -> None:
    """Past the shared lease after its statement nobody expects it to come with others."""

    async def go() -> None:
        world = a_busy_world()
        began: list[int] = []

        def look(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            for block in blocks:
                found = decode_metadata(*world.coordinator.committed[block.partition])
                assert found is not None
                assert found.intent is not None
                assert found.intent.shared
                began.append(world.now_ms() - found.intent.stated_ms)
            insert(blocks, token, deadline_ms)

        of_shared(world, look)
        world.workers[0].start()
        takes_ms = 2 * SHARED_LEASE_MS
        world.workers[0].store_takes_s = takes_ms / 1000
        await world.run()
        # the insert itself comes after the look at the lease
        assert began
        assert max(began) <= SHARED_LEASE_MS + takes_ms

    run_virtually(go)


def test_a_block_whose_session_ends_before_it_was_sent_goes_with_the_others_all_the_same() -> None:
    """A rebalance while it waits: its successor finds it, instead of waiting until it can come no more."""

    async def go() -> None:
        world = a_busy_world()
        seen: list[set[int]] = []

        def note(number: int, insert: Insert, blocks: Sequence[Block], token: str, deadline_ms: int) -> None:
            seen.append({block.partition for block in blocks})
            insert(blocks, token, deadline_ms)

        of_shared(world, note)
        first = world.workers[0]
        first.start()
        async with first.shared._one_at_a_time:  # an insert is under way
            await until(lambda: len(first.shared._waiting) > 1)
            gone = first.shared._waiting[0].block.partition
            first.sessions[gone][1].cancel()
        await until(lambda: seen)
        assert gone in seen[0]
        first.kill()
        await world.run()

    run_virtually(go)
