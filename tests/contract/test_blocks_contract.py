"""What every Blocks promises to the block protocol: the one on the engine, and the one in memory that the simulation
leans on."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.block_store_fake import SPARSE, TABLES, MemoryBlocks
from pipeline.adapters.clickhouse import Store
from pipeline.block import RULES, LogRecord, Place
from pipeline.catalog import Account, Catalog, Feature, encode_account, encode_feature
from pipeline.event import id_hash, partition_of
from pipeline.ports import Blocks, Border, Epoch, StoreError
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.stages.sink import Block

TOPIC = "tally.events"
STATED_MS = 1_767_225_600_123
FAR_MS = 4_000_000_000_000
MONTHS = (202601, 202602)
PLACES = [("event_ids", 0), *((table, month) for table in TABLES if table != "event_ids" for month in MONTHS)]


@dataclass
class Bench:
    """Blocks with their clock. `lose(table, month)` takes away what lies there, as a crash can; 0: all months."""

    blocks: Blocks
    now_ms: Callable[[], int]
    lose: Callable[[str, int], None]


@pytest.fixture
def engine(store: Store) -> Bench:
    """On the real engine."""
    name = store.query("SELECT currentDatabase()").rows[0][0]
    blocks = BlockStore(store, topic=TOPIC, database=name)
    when = {
        "events": "timestamp",
        "usage_client_day": "day",
        "usage_15m": "bucket",
        "usage_client_edge_15m": "bucket",
    }

    def lose(table: str, month: int) -> None:
        where = f"toYYYYMM({when[table]}) = {month}" if month else "1"
        store.command(f"ALTER TABLE {table} DELETE WHERE {where} SETTINGS mutations_sync = 2")

    return Bench(blocks, blocks.now_ms, lose)


@pytest.fixture
def memory() -> Bench:
    """The fake."""

    def now_ms() -> int:
        return time.time_ns() // 1_000_000

    blocks = MemoryBlocks(now_ms, token_window_ms=10**9)
    return Bench(blocks, now_ms, lambda table, month: blocks.arrivals.__delitem__((table, month)))


@pytest.fixture(params=["memory", "engine"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each of the two in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found


def _mapper() -> Mapper:
    catalog = Catalog()
    feature = Feature(account="acme", id="calls", name="Calls", event_names=("call",), aggregation="count")
    records = [encode_account(Account(id="acme", name="Acme", mode="live"), "0"), encode_feature(feature, "1")]
    for offset, record in enumerate(records):
        catalog.apply(offset, *record)
    return Mappers(catalog).at(catalog.version)


@dataclass
class Partition:
    """One partition's log and first sightings: builds block after block, as a worker does."""

    number: int = 0
    epoch: int = 0
    end: int = 0
    seen: dict[bytes, bytes] = field(default_factory=dict)
    mapper: Mapper = field(default_factory=_mapper)

    def block(self, lines: Iterable[bytes], rules: int = RULES) -> Block:
        """The next block, a record a line; an offset without a record follows."""
        start = self.end
        records = [LogRecord(start + i, STATED_MS + i, line, (("account", b"acme"),)) for i, line in enumerate(lines)]
        self.end = start + len(records) + 1
        block = build_block(
            Place(TOPIC, self.epoch, self.number, self.number + 1, "acme", 10**15),
            records,
            start=start,
            end=self.end,
            mapper=self.mapper,
            catalog_version=7,
            lookup=lambda keys: {key: self.seen[key] for key in keys if key in self.seen},
            rules=rules,
        )
        self.seen.update(block.sightings)
        return block


def events(name: str, number: int = 12) -> list[bytes]:
    """Events over both months, some of them when these begin, and so for sparse tables."""
    return [
        json.dumps(
            {
                "clientId": f"c{i % 3}",
                "timestamp": f"2026-0{1 + i % 2}-{'01' if i % 4 < 2 else 11 + i % 9}T00:00:00Z",
                "transactionId": f"{name}-{i}",
                "eventName": "call",
                "value": i,
            }
        ).encode()
        for i in range(number)
    ]


def plain_events(name: str, number: int = 12) -> list[bytes]:
    """Events over both months far from their ends, of which no sparse table gets anything."""
    return [line.replace(b"-01T", b"-15T") for line in events(name, number)]


def own_events(partition: Partition, name: str, lines: Callable[[str, int], list[bytes]] = events) -> list[bytes]:
    """Such events, by default over both months, whose ids belong to that partition."""
    several = lines(f"{name}/{partition.number}", 60)
    ids = [json.loads(event)["transactionId"] for event in several]
    n = partition.number + 1
    return [e for e, i in zip(several, ids, strict=True) if partition_of(id_hash("acme", i), n) == partition.number]


def put(bench: Bench, *blocks: Block) -> None:
    """Ledger, then rows."""
    for block in blocks:
        bench.blocks.write_ledger([(block, STATED_MS)])
        bench.blocks.insert(block, FAR_MS)


def places(arrivals: Any) -> dict[tuple[str, int], int]:
    """Of those tables that both have."""
    return {place: times for place, times in arrivals.items() if place[0] in TABLES}


# ------------------------------------------------------------------------------------------------ epochs and ledger


def test_epochs_are_lives_of_a_topic(bench: Bench) -> None:
    """The first is 0 for each partition; a topic made anew begins the next, and old ids keep their number."""
    blocks = bench.blocks
    assert blocks.epoch("A", 0) == Epoch(0, False, 0)
    blocks.begin_epoch(0, 0, "A", 2, 17)
    assert blocks.epoch("A", 0) == Epoch(0, True, 17)
    assert blocks.epoch("A", 1) == Epoch(0, False, 0)
    assert blocks.epoch("B", 1) == Epoch(1, False, 0)
    blocks.begin_epoch(1, 1, "B", 2, 0)
    assert blocks.epoch("B", 0) == Epoch(1, False, 0)
    assert blocks.epoch("A", 0) == Epoch(0, True, 17)


def test_the_ledger_gives_the_newest_block_back_as_its_latest_statement(bench: Bench) -> None:
    """By epoch and partition; the same block written again replaces itself."""
    partition = Partition()
    assert bench.blocks.last_block(0, 0) is None
    for block in (partition.block(events("a")), partition.block([]), partition.block([b"{"])):
        bench.blocks.write_ledger([(block, STATED_MS)])
        bench.blocks.write_ledger([(block, STATED_MS + 5)])
        # it does not tell whether the block went with others, so it may have
        assert bench.blocks.last_block(0, 0) == block.intent(STATED_MS + 5, shared=True)
    assert bench.blocks.last_block(0, 1) is None
    assert bench.blocks.last_block(1, 0) is None


def test_one_request_tells_the_ledger_of_several_blocks(bench: Bench) -> None:
    """Each under its own partition, with the time of its own statement."""
    one, other = (Partition(number) for number in (0, 1))
    first, second = one.block(own_events(one, "a")), other.block(own_events(other, "a"))
    bench.blocks.write_ledger([(first, STATED_MS), (second, STATED_MS + 5)])
    assert bench.blocks.last_block(0, 0) == first.intent(STATED_MS, shared=True)
    assert bench.blocks.last_block(0, 1) == second.intent(STATED_MS + 5, shared=True)


def test_how_far_was_counted_before_an_offset(bench: Bench) -> None:
    """The last block that ends at or before it; those of earlier epochs come before all of a later one."""
    assert bench.blocks.counted_before(0, 0, 100) is None
    old, new = Partition(), Partition(epoch=1)
    for block in (old.block([b"{"] * 9), old.block([b"{"] * 9), new.block([b"{"] * 6)):
        bench.blocks.write_ledger([(block, STATED_MS)])
    asked = [(0, 9), (0, 10), (0, 19), (0, 25), (1, 6), (1, 7)]
    found = [bench.blocks.counted_before(epoch, 0, offset) for epoch, offset in asked]
    assert found == [None, (0, 10), (0, 10), (0, 20), (0, 20), (1, 7)]
    assert bench.blocks.counted_before(1, 3, 10) is None


# ------------------------------------------------------------------------------------------------ rows


def test_a_block_inserted_thrice_has_landed_once(bench: Bench) -> None:
    """Nothing, then everything, in every table and month, whatever blocks lie there from before."""
    partition = Partition()
    put(bench, partition.block(events("before")))
    block = partition.block(events("a"))
    bench.blocks.write_ledger([(block, STATED_MS)])
    assert not bench.blocks.whole(0, 0, block.start)
    landed = bench.blocks.landed(block)
    assert landed.nothing
    assert places(landed.arrivals) == dict.fromkeys(PLACES, 0)
    for deadline in (FAR_MS, FAR_MS, FAR_MS + 1):
        bench.blocks.insert(block, deadline)
    landed = bench.blocks.landed(block)
    assert landed.complete
    assert places(landed.arrivals) == dict.fromkeys(PLACES, 1)
    assert bench.blocks.whole(0, 0, block.start)


def test_blocks_of_several_partitions_in_one_insert_land_once_each(bench: Bench) -> None:
    """However often it is sent under the same token; each is told apart by its own marks."""
    partitions = [Partition(number) for number in range(3)]
    put(bench, *[partition.block(own_events(partition, "before")) for partition in partitions])
    blocks = [partition.block(own_events(partition, "a")) for partition in partitions]
    for block in blocks:
        bench.blocks.write_ledger([(block, STATED_MS)])
        assert bench.blocks.landed(block).nothing
    for deadline in (FAR_MS, FAR_MS + 1):
        bench.blocks.insert_together(blocks[:2], "one+other", deadline)
    assert [bench.blocks.landed(block).complete for block in blocks] == [True, True, False]
    assert bench.blocks.landed(blocks[2]).nothing
    assert all(bench.blocks.whole(0, block.partition, block.start) for block in blocks[:2])
    with pytest.raises(StoreError):
        bench.blocks.insert_together(blocks[1:], "late", bench.now_ms() - 1)
    assert bench.blocks.landed(blocks[2]).nothing


@pytest.mark.parametrize("place", PLACES)
def test_of_several_blocks_each_is_repaired_by_itself(bench: Bench, place: tuple[str, int]) -> None:
    """What a table lacks of an insert of two is told of both, and added for the one that is repaired."""
    partitions = [Partition(number) for number in range(2)]
    blocks = [partition.block(own_events(partition, "a")) for partition in partitions]
    for block in blocks:
        bench.blocks.write_ledger([(block, STATED_MS)])
    bench.blocks.insert_together(blocks, "both", FAR_MS)
    bench.lose(*place)
    for block in blocks:
        landed = bench.blocks.landed(block)
        assert landed.missing == [place]
        assert not landed.surplus
        bench.blocks.repair(block, landed)
        assert bench.blocks.landed(block).complete
        assert bench.blocks.whole(0, block.partition, block.start)


def test_a_block_of_which_sparse_tables_get_nothing_is_not_marked_there(bench: Bench) -> None:
    """Between others of which they do, each is told whole, and what they lose is told of the others alone."""
    partition = Partition()
    kinds = (events, plain_events, plain_events, events)
    blocks = [partition.block(lines(str(n))) for n, lines in enumerate(kinds)]
    assert [block.sparse for block in blocks] == [True, False, False, True]
    for block in blocks:
        with pytest.raises(StoreError):
            bench.blocks.insert(block, bench.now_ms() - 1)
        for _ in range(2):  # known by its token, whichever way it takes
            put(bench, block)
        landed = bench.blocks.landed(block)
        assert landed.complete
        assert any(table == SPARSE for table, _ in landed.arrivals) is block.sparse
    assert [bench.blocks.whole(0, 0, block.start) for block in blocks] == [True] * 4
    bench.lose(SPARSE, MONTHS[0])
    assert [bench.blocks.whole(0, 0, block.start) for block in blocks] == [False, True, True, False]


def test_blocks_of_both_kinds_in_one_insert_land_once_each(bench: Bench) -> None:
    """It goes to the sparse tables, which take no mark of the block that they get nothing of: a later one is told by
    the number of marks."""
    plain, sparse = Partition(0), Partition(1)
    for name in ("a", "b"):
        blocks = [plain.block(own_events(plain, name, plain_events)), sparse.block(own_events(sparse, name))]
        assert [block.sparse for block in blocks] == [False, True]
        for block in blocks:
            bench.blocks.write_ledger([(block, STATED_MS)])
        for deadline in (FAR_MS, FAR_MS + 1):
            bench.blocks.insert_together(blocks, name, deadline, sparse=True)
        assert [bench.blocks.landed(block).complete for block in blocks] == [True, True]
    last = plain.block(own_events(plain, "c"))
    put(bench, last)
    assert bench.blocks.landed(last).complete
    assert bench.blocks.whole(0, 0, last.start)


def test_blocks_under_the_former_rules_are_marked_everywhere(bench: Bench) -> None:
    """As they were before an upgrade, and before and after those of now."""
    partition = Partition()
    rules = (1, RULES, 1, RULES)
    blocks = [partition.block(plain_events(str(n)), rules=number) for n, number in enumerate(rules)]
    assert [block.sparse for block in blocks] == [True, False, True, False]
    for block in blocks:
        put(bench, block)
        assert bench.blocks.landed(block).complete
    assert [bench.blocks.whole(0, 0, block.start) for block in blocks] == [True] * 4
    bench.lose(SPARSE, MONTHS[0])
    assert [bench.blocks.whole(0, 0, block.start) for block in blocks] == [False, True, False, True]


@pytest.mark.parametrize("place", PLACES)
def test_after_each_partial_arrival_what_is_missing_is_told_and_added(bench: Bench, place: tuple[str, int]) -> None:
    """The token that is remembered there refuses the rows: only a repair, which may be sent twice, brings them."""
    block = Partition().block(events("a"))
    put(bench, block)
    bench.lose(*place)
    bench.blocks.insert(block, FAR_MS)
    landed = bench.blocks.landed(block)
    assert landed.missing == [place]
    assert not landed.surplus
    assert not bench.blocks.whole(0, 0, block.start)
    for _ in range(2):
        bench.blocks.repair(block, landed)
    assert bench.blocks.landed(block).complete
    assert bench.blocks.whole(0, 0, block.start)


def test_rows_that_came_under_another_token_are_surplus_and_left_alone(bench: Bench) -> None:
    """Adding cannot mend them."""
    block = Partition().block(events("a"))
    put(bench, block)
    other = Block(**{name: getattr(block, name) for name in block.__struct_fields__} | {"end": block.end + 1})
    bench.blocks.insert(other, FAR_MS)
    for _ in range(2):
        landed = bench.blocks.landed(block)
        assert not landed.complete
        assert not landed.missing
        assert set(PLACES) <= set(landed.surplus)
        bench.blocks.repair(block, landed)


def test_an_insert_past_its_deadline_is_refused_and_lands_nowhere(bench: Bench) -> None:
    """By the store's clock; a later one may still insert the same block."""
    block = Partition().block(events("a"))
    bench.blocks.write_ledger([(block, STATED_MS)])
    with pytest.raises(StoreError) as refused:
        bench.blocks.insert(block, bench.now_ms() - 1)
    assert refused.value.code == 469
    assert bench.blocks.landed(block).nothing
    bench.blocks.insert(block, bench.now_ms() + 60_000)
    assert bench.blocks.landed(block).complete


def test_partitions_and_epochs_do_not_stand_in_for_each_other(bench: Bench) -> None:
    """The same range elsewhere is another block."""
    put(bench, Partition().block(events("a")))
    for other in (Partition(epoch=1).block(events("a")), Partition(number=1).block(events("a"))):
        bench.blocks.write_ledger([(other, STATED_MS)])
        if other.rows is not None:
            assert bench.blocks.landed(other).nothing
            assert not bench.blocks.whole(other.epoch, other.partition, other.start)


def test_a_block_without_rows_is_whole_once_its_rejects_are_there(bench: Bench) -> None:
    """It has no rows to insert; refused lines may be written as often as one likes."""
    partition = Partition()
    empty, refused = partition.block([]), partition.block([b"nonsense", b"{"])
    put(bench, empty, refused)
    assert bench.blocks.landed(refused).complete
    assert bench.blocks.whole(0, 0, empty.start)
    assert not bench.blocks.whole(0, 0, refused.start)
    for _ in range(3):
        bench.blocks.write_rejects(refused)
    assert bench.blocks.whole(0, 0, refused.start)


def test_ids_come_page_by_page_in_the_order_of_hashes_from_a_border_on(bench: Bench) -> None:
    """All ids of the partition that were first seen at or after it, and no mark."""
    one, other = Partition(), Partition(epoch=1)
    first, second = one.block(events("a")), one.block([*events("b"), *events("a")])
    put(bench, first, second)
    other.seen = dict(one.seen)
    third = other.block(events("c"))
    put(bench, third, Partition(number=1).block(events("d", 40)))
    later = second.sightings | third.sightings
    for border, expected in (
        (Border(0, 0), other.seen),
        (Border(0, second.start), later),
        (Border(0, second.end), third.sightings),
        (Border(1, third.end), {}),
    ):
        found = b""
        while page := bench.blocks.ids(0, found[-16:], border):
            found += page
        hashes = [int.from_bytes(found[at : at + 16], "little") for at in range(0, len(found), 16)]
        assert hashes == sorted(int.from_bytes(key, "little") for key in expected)


def test_ids_are_found_with_their_first_sightings(bench: Bench) -> None:
    """As the table of first sightings had them; unknown ones and those of other partitions are absent."""
    one, later, other = Partition(), Partition(epoch=1), Partition(number=1)
    put(bench, one.block(events("a")), one.block([*events("b"), *events("a")]))
    later.seen = dict(one.seen)
    put(bench, later.block([*events("c"), *events("a")]), other.block(events("d", 40)))
    assert other.seen
    assert bench.blocks.find(0, [*later.seen, *other.seen, bytes(15) + b"x"]) == later.seen
    assert bench.blocks.find(0, []) == {}


def test_the_last_block_before_an_append_time_is_told(bench: Bench) -> None:
    """Among those that end at or before an offset; blocks without lines tell no time."""
    partition = Partition()
    blocks = [partition.block(lines) for lines in ([b"{"] * 3, [b"{"] * 5, [])]
    for block in blocks:
        bench.blocks.write_ledger([(block, STATED_MS)])
    ends = [(0, block.end) for block in blocks]
    newest = blocks[1].append_ms_max
    asked = [(blocks[2].end, newest + 1), (blocks[2].end, newest), (blocks[0].end, FAR_MS), (blocks[2].end, 1)]
    found = [bench.blocks.counted_before(0, 0, offset, appended_before_ms=before) for offset, before in asked]
    assert found == [ends[1], ends[0], ends[0], None]
    assert bench.blocks.counted_before(0, 0, blocks[2].end) == ends[2]
