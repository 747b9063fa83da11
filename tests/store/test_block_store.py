"""The store of blocks on the real engine: what landed is told table by table, and a repair brings back exactly that."""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from counted_log import FAR_MS, MAPPERS, VERSION, catalog_of, events
from store_contents import TARGETS, contents

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.gap_store import Gap, GapStore
from pipeline.block import LogRecord, Place
from pipeline.catalog import Dimension, Feature
from pipeline.going_on import is_gap
from pipeline.ports import Border, Epoch, Progress, StoreError
from pipeline.settings import Settings
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.stages.sink import MARK_ACCOUNT, Block

TOPIC = "tally.events"
STATED_MS = 1_767_225_600_123
ROLLUPS = TARGETS[2:]


MAPPER = MAPPERS.at(VERSION)


@dataclass
class Partition:
    """One partition's log and its first sightings: builds block after block as a worker does."""

    number: int = 0
    epoch: int = 0
    end: int = 0
    seen: dict[bytes, bytes] = field(default_factory=dict)

    def block(self, lines: Iterable[str | bytes], *, skip: int = 0, mapper: Mapper | None = None) -> Block:
        """The next block: a record a line, after `skip` offsets that hold none."""
        start = self.end
        records = [
            LogRecord(start + skip + i, STATED_MS + i, line.encode() if isinstance(line, str) else line, _HEADERS)
            for i, line in enumerate(lines)
        ]
        self.end = start + skip + len(records)
        block = build_block(
            Place(TOPIC, self.epoch, self.number, self.number + 1, "acme", 10**15),
            records,
            start=start,
            end=self.end,
            mapper=mapper or MAPPER,
            catalog_version=7,
            lookup=lambda keys: {key: self.seen[key] for key in keys if key in self.seen},
        )
        self.seen.update(block.sightings)
        return block


_HEADERS = (("account", b"acme"),)


@pytest.fixture
def blocks(store: Store) -> BlockStore:
    """A store of blocks without any."""
    name = store.query("SELECT currentDatabase()").rows[0][0]
    return BlockStore(store, topic=TOPIC, database=name)


@pytest.fixture
def unmerged(store: Store) -> Iterable[None]:
    """Parts stay as they were inserted, so that a test can take one away."""
    for table in TARGETS:
        store.command(f"SYSTEM STOP MERGES {table}")
    yield
    for table in TARGETS:
        store.command(f"SYSTEM START MERGES {table}")


def _put(blocks: BlockStore, *several: Block) -> None:
    for block in several:
        blocks.write_ledger([(block, STATED_MS)])
        blocks.insert(block, FAR_MS)


def _parts(store: Store) -> set[tuple[str, str]]:
    """Every part of every target."""
    rows = store.query(
        "SELECT table, name FROM system.parts"
        " WHERE database = currentDatabase() AND active AND table IN {t:Array(String)}",
        {"t": list(TARGETS)},
    ).rows
    return {(table, name) for table, name in rows}


def _drop(store: Store, parts: Iterable[tuple[str, str]]) -> None:
    for table, name in parts:
        store.command(f"ALTER TABLE {table} DROP PART '{name}'")


def _months(block: Block) -> list[int]:
    return [month.month for month in block.months]


# ------------------------------------------------------------------------------------------------ epochs and ledger


def test_epochs_are_lives_of_a_topic(blocks: BlockStore) -> None:
    """A topic's first life is 0 for each partition; made anew it begins the next, and old ids keep their number."""
    assert blocks.epoch("A", 0) == Epoch(0, False, 0)
    blocks.begin_epoch(0, 0, "A", 2, 17)
    assert blocks.epoch("A", 0) == Epoch(0, True, 17)
    assert blocks.epoch("A", 1) == Epoch(0, False, 0)
    assert blocks.epoch("B", 1) == Epoch(1, False, 0)
    blocks.begin_epoch(1, 1, "B", 2, 0)
    assert blocks.epoch("B", 0) == Epoch(1, False, 0)
    assert blocks.epoch("A", 0) == Epoch(0, True, 17)
    assert blocks.epoch("C", 0) == Epoch(2, False, 0)


def test_the_ledger_gives_the_newest_block_back_as_its_intent(blocks: BlockStore) -> None:
    """To the bit, for blocks with rows and without, by partition and epoch."""
    partition = Partition()
    assert blocks.last_block(0, 0) is None
    for block in (partition.block(events(1, 20, 60)), partition.block([], skip=5), partition.block(["{"])):
        blocks.write_ledger([(block, STATED_MS)])
        assert blocks.last_block(0, 0) == block.intent(STATED_MS, shared=True)
    assert blocks.last_block(0, 1) is None
    assert blocks.last_block(1, 0) is None


def test_the_ledger_is_idempotent_and_keeps_the_latest_statement(store: Store, blocks: BlockStore) -> None:
    """The same block thrice is one head row and one row a month, with exact counts and sums."""
    partition = Partition()
    lines = events(1, 50, 60)
    partition.block(lines[:5])
    block = partition.block([*lines, lines[7].replace(b"anna", b"eve").replace(b"ben", b"eve"), "nonsense"])
    for stated in (STATED_MS, STATED_MS, STATED_MS + 5000):
        blocks.write_ledger([(block, stated)])
    assert blocks.last_block(0, 0) == block.intent(STATED_MS + 5000, shared=True)
    rows = store.query(
        "SELECT month, events, accepted, duplicates, conflicts, rejected, rerouted, rows, value_sum, id_hash_sum"
        " FROM blocks FINAL ORDER BY month"
    ).rows
    accepted = [json.loads(line) for line in lines[5:]]
    total = Decimal(sum(event["value"] for event in accepted))
    hashes = sum(month.id_hash_sum for month in block.months) % (1 << 128)
    assert rows[0] == (0, 52, 45, 5, 1, 1, 0, 45, total, hashes)
    assert rows[1:] == [(m.month, 0, 0, 0, 0, 0, 0, m.rows, m.value_sum, m.id_hash_sum) for m in block.months]
    assert (sum(m.rows for m in block.months), sum(m.value_sum for m in block.months)) == (45, total)


def test_how_far_was_counted_before_an_offset(blocks: BlockStore) -> None:
    """The last block that ends at or before it; those of earlier epochs come before all of a later one."""
    assert blocks.counted_before(0, 0, 100) is None
    old, new = Partition(), Partition(epoch=1)
    for block in (old.block([], skip=10), old.block([], skip=10), new.block([], skip=7)):
        blocks.write_ledger([(block, STATED_MS)])
    asked = [(0, 9), (0, 10), (0, 19), (0, 25), (1, 6), (1, 7)]
    found = [blocks.counted_before(epoch, 0, offset) for epoch, offset in asked]
    assert found == [None, (0, 10), (0, 10), (0, 20), (0, 20), (1, 7)]
    assert blocks.counted_before(1, 3, 10) is None


# ------------------------------------------------------------------------------------------------ rows


def test_a_block_inserted_thrice_is_there_once(store: Store, blocks: BlockStore) -> None:
    """In facts, ids and every rollup, with other deadlines too; what it holds is what was sent."""
    partition = Partition()
    _put(blocks, partition.block(events(1, 30, 90)))
    lines = events(2, 300, 90)
    block = partition.block(lines)
    _put(blocks, block)
    once = contents(store)
    for deadline in (FAR_MS, FAR_MS + 1):
        blocks.insert(block, deadline)
    assert contents(store) == once
    assert blocks.landed(block).complete
    sent = [json.loads(line) for line in (*events(1, 30, 90), *lines)]
    totals = store.query(f"SELECT count(), sum(value) FROM events WHERE account != '{MARK_ACCOUNT}'").rows
    assert totals == [(len(sent), Decimal(sum(event["value"] for event in sent)))]
    calls = [event for event in sent if event["eventName"] == "call"]
    rolled = store.query("SELECT sum(events), sum(total), max(max_value) FROM usage_15m WHERE feature = 'tokens'").rows
    tokens = [event["data"]["tokens"] for event in calls]
    assert rolled == [(len(calls), Decimal(sum(tokens)), Decimal(max(tokens)))]


def test_a_block_is_one_part_of_a_view_however_many_rows_it_makes(store: Store, blocks: BlockStore) -> None:
    """More rows than the server puts into one part by itself: they would part from the mark that stands for them."""
    number, features, dimensions = 9_000, 12, 10
    calls: Any = {"account": "acme", "event_names": ("call",), "aggregation": "count"}
    catalog = catalog_of(
        [Feature(id=f"f{i}", name=f"F{i}", **calls) for i in range(features)],
        [Dimension(account="acme", key=f"d{i}", type="string") for i in range(dimensions)],
    )
    mapper = Mappers(catalog).at(catalog.version)
    data = [json.dumps({f"d{d}": f"v{i}" for d in range(dimensions)}) for i in range(number)]
    head = '"clientId":"anna","timestamp":"2025-11-20T10:00:00Z","eventName":"call"'
    block = Partition().block(
        [f'{{{head},"transactionId":"{i}","data":{data[i]}}}' for i in range(number)], mapper=mapper
    )
    _put(blocks, block)
    parts = store.query(
        "SELECT rows FROM system.parts WHERE database = currentDatabase() AND active AND table = 'usage_dimension_15m'"
    ).rows
    assert parts == [(number * features * dimensions + 1,)]
    assert blocks.landed(block).complete


def test_landed_before_and_after(blocks: BlockStore) -> None:
    """Nothing, then everything, month by month, whatever lies there from blocks before."""
    partition = Partition()
    before, block = partition.block(events(1, 40, 90)), partition.block(events(2, 40, 60))
    _put(blocks, before)
    blocks.write_ledger([(block, STATED_MS)])
    months = _months(block)
    places = {("event_ids", 0), *((table, month) for table in ("events", *ROLLUPS) for month in months)}
    landed = blocks.landed(block)
    assert landed.nothing
    assert landed.arrivals == dict.fromkeys(places, 0)
    blocks.insert(block, FAR_MS)
    landed = blocks.landed(block)
    assert landed.complete
    assert landed.arrivals == dict.fromkeys(places, 1)


def test_partitions_and_epochs_do_not_stand_in_for_each_other(blocks: BlockStore) -> None:
    """The same range of another partition, or of another life of the topic, is another block."""
    lines = events(1, 40, 60)
    _put(blocks, Partition().block(lines))
    other = Partition(epoch=1).block(lines)
    blocks.write_ledger([(other, STATED_MS)])
    assert blocks.landed(other).nothing
    blocks.insert(other, FAR_MS)
    assert blocks.landed(other).complete


def test_a_block_without_rows_is_complete(blocks: BlockStore) -> None:
    """It has nothing to insert and nothing to miss."""
    block = Partition().block(["nonsense"])
    _put(blocks, block)
    assert blocks.landed(block).complete


@pytest.mark.usefixtures("unmerged")
@pytest.mark.parametrize("table", TARGETS)
def test_a_table_that_a_block_did_not_reach_is_repaired_exactly(store: Store, blocks: BlockStore, table: str) -> None:
    """It alone is missing, and after the repair every table holds what it held, states included."""
    partition = Partition()
    _put(blocks, partition.block(events(1, 60, 70)))
    before = _parts(store)
    block = partition.block(events(2, 200, 70))
    _put(blocks, block)
    whole = contents(store)
    _drop(store, [part for part in _parts(store) - before if part[0] == table])
    assert contents(store)[table] != whole[table]

    landed = blocks.landed(block)
    assert not landed.nothing
    assert set(landed.missing) == {(table, month) for month in ([0] if table == "event_ids" else _months(block))}
    assert not landed.surplus
    blocks.repair(block, landed)
    assert contents(store) == whole
    assert blocks.landed(block).complete


@pytest.mark.usefixtures("unmerged")
@pytest.mark.parametrize("seed", range(4))
def test_whatever_parts_are_missing_a_repair_brings_them_back(store: Store, blocks: BlockStore, seed: int) -> None:
    """A kill leaves some of a block's parts: single months of facts, single years of rollups, in several tables."""
    draw = random.Random(seed)
    partition = Partition()
    _put(blocks, partition.block(events(1, 60, 100)))
    before = _parts(store)
    block = partition.block(events(2, 200, 100))
    _put(blocks, block)
    whole = contents(store)
    made = sorted(_parts(store) - before)
    assert len(made) > 2 * len(ROLLUPS)
    _drop(store, draw.sample(made, draw.randrange(1, len(made))))
    for _ in range(2):  # a repair whose answer was lost is made again
        blocks.repair(block, blocks.landed(block))
        assert contents(store) == whole, f"seed {seed}"
    assert blocks.landed(block).complete


@pytest.mark.usefixtures("unmerged")
def test_a_repair_sent_twice_adds_nothing(store: Store, blocks: BlockStore) -> None:
    """Also when it goes by a reading from before the first one."""
    block = Partition().block(events(2, 100, 70))
    _put(blocks, block)
    whole = contents(store)
    _drop(store, _parts(store))
    landed = blocks.landed(block)
    assert landed.nothing
    for _ in range(3):
        blocks.repair(block, landed)
    assert contents(store) == whole


class _Threads(Store):
    """A store whose server reads in other chunks."""

    how: Mapping[str, int]

    def read(self, sql: str, fmt: str, settings: Mapping[str, Any] | None = None, *, parameters: Any = None) -> bytes:
        return super().read(sql, fmt, {**(settings or {}), **self.how}, parameters=parameters)

    def command(self, sql: str, parameters: Any = None, settings: Mapping[str, Any] | None = None) -> None:
        super().command(sql, parameters, {**(settings or {}), **self.how})


@pytest.mark.usefixtures("unmerged")
def test_a_repair_made_by_two_adds_nothing_whatever_the_servers_threads(
    store: Store, clickhouse_url: str, blocks: BlockStore
) -> None:
    """A zombie and its successor go by the same reading, and the server has other threads for the second."""
    block = Partition().block(events(2, 100, 2000))
    _put(blocks, block)
    whole = contents(store)
    _drop(store, _parts(store))
    landed = blocks.landed(block)
    ways: list[dict[str, int]] = [
        {"max_threads": 1},
        {"max_threads": 4, "group_by_two_level_threshold": 1},
        {"max_threads": 2, "max_block_size": 100},
    ]
    database = store.query("SELECT currentDatabase()").rows[0][0]
    for how in ways:
        other = _Threads(Settings(clickhouse=clickhouse_url, database=database))
        other.how = how
        BlockStore(other, topic=TOPIC, database=database).repair(block, landed)
        other.close()
    assert contents(store) == whole


def test_rows_lost_by_a_mutation_are_noticed(store: Store, blocks: BlockStore) -> None:
    """A view's rows of the block and its mark are deleted, whose part and token stay."""
    block = Partition().block(events(2, 100, 30))
    _put(blocks, block)
    whole = contents(store)
    store.command("ALTER TABLE usage_15m DELETE WHERE 1 SETTINGS mutations_sync = 2")
    blocks.insert(block, FAR_MS)
    landed = blocks.landed(block)
    assert set(landed.missing) == {("usage_15m", month) for month in _months(block)}
    blocks.repair(block, landed)
    assert contents(store) == whole


def test_a_block_that_is_there_twice_is_surplus_everywhere(store: Store, blocks: BlockStore) -> None:
    """Under another token the engine takes it again; adding cannot mend that, and a repair leaves it alone."""
    partition = Partition()
    _put(blocks, partition.block(events(1, 40, 60)))
    block = partition.block(events(2, 40, 60))
    _put(blocks, block)
    other = Block(**{name: getattr(block, name) for name in block.__struct_fields__} | {"end": block.end + 1})
    blocks.insert(other, FAR_MS)
    twice = contents(store)
    landed = blocks.landed(block)
    assert not landed.complete
    assert not landed.missing
    assert set(landed.surplus) == set(landed.arrivals)
    blocks.repair(block, landed)
    assert contents(store) == twice


def test_an_insert_past_its_deadline_lands_nowhere(store: Store, blocks: BlockStore) -> None:
    """Refused by the server's clock; a later one may still insert the same block."""
    block = Partition().block(events(2, 40, 60))
    blocks.write_ledger([(block, STATED_MS)])
    with pytest.raises(StoreError, match="in_time") as refused:
        blocks.insert(block, blocks.now_ms() - 1)
    assert refused.value.code == 469
    assert blocks.landed(block).nothing
    assert contents(store) == {table: [] for table in TARGETS}
    blocks.insert(block, blocks.now_ms() + 60_000)
    assert blocks.landed(block).complete


# ------------------------------------------------------------------------------------------------ the rest


def test_ids_come_page_by_page(blocks: BlockStore) -> None:
    """All ids of the partition and no mark, as keys of the table, whatever a page holds; or those since a border."""
    one, other = Partition(), Partition(number=1)
    first, second = one.block(events(1, 70, 60)), one.block(events(2, 30, 60))
    _put(blocks, first, second)
    _put(blocks, other.block(events(3, 10, 60)))
    for most in (1000, 7):
        for since, expected in ((Border(0, 0), one.seen), (Border(0, second.start), second.sightings)):
            found: list[bytes] = []
            while page := blocks.ids(0, found[-1] if found else b"", since, most=most):
                keys = [page[i : i + 16] for i in range(0, len(page), 16)]
                assert len(keys) <= most
                found += keys
            assert sorted(found) == sorted(expected)


def test_ids_are_found_with_their_first_sightings(blocks: BlockStore) -> None:
    """Exactly as the table had them; unknown ones and those of other partitions are absent."""
    one, other = Partition(), Partition(number=1)
    _put(blocks, one.block(events(1, 70, 60)), one.block(events(2, 30, 60)))
    _put(blocks, other.block(events(3, 10, 60)))
    asked = [*one.seen, *other.seen, bytes(15) + b"x"]
    assert blocks.find(0, asked) == one.seen
    assert blocks.find(0, asked[:1] * 5_000) == dict(list(one.seen.items())[:1])
    assert blocks.find(0, []) == {}


def test_thousands_of_ids_are_found_at_once(blocks: BlockStore) -> None:
    """A block that is sent again after a year asks for all of its ids."""
    partition = Partition()
    _put(blocks, partition.block(events(1, 5_000, 60)))
    assert blocks.find(0, list(partition.seen)) == partition.seen


def test_the_last_block_before_a_time_is_told(blocks: BlockStore) -> None:
    """By append time, among those that end at or before an offset; blocks without lines tell no time."""
    partition = Partition()
    built = [
        msgspec.structs.replace(partition.block(events(n, 10, 60)), append_ms_max=append_ms)
        for n, append_ms in enumerate((STATED_MS, STATED_MS + 1000, 0, STATED_MS + 2000))
    ]
    for block in built:
        blocks.write_ledger([(block, STATED_MS)])
    ends = [(0, block.end) for block in built]
    far = built[-1].end + 1
    assert blocks.counted_before(0, 0, far) == ends[-1]
    assert blocks.counted_before(0, 0, far, appended_before_ms=built[1].append_ms_max + 1) == ends[1]
    assert blocks.counted_before(0, 0, far, appended_before_ms=built[1].append_ms_max) == ends[0]
    assert blocks.counted_before(0, 0, built[0].end, appended_before_ms=FAR_MS) == ends[0]
    assert blocks.counted_before(0, 0, far, appended_before_ms=built[0].append_ms_max) is None


def test_refused_lines_are_kept_with_bytes_and_reason(store: Store, blocks: BlockStore) -> None:
    """Once each, however often they are written, and a block without any writes nothing."""
    partition = Partition()
    lines = events(1, 3, 10)
    broken = b'{"clientId":"\xff\x00"'
    changed = lines[0].replace(b"clientId", b"entityId").replace(b'"entityId": "', b'"clientId": "x')
    block = partition.block([*lines, broken, changed])
    for _ in range(3):
        blocks.write_rejects(block)
    blocks.write_rejects(partition.block(events(2, 3, 10)))
    rows = store.query(
        "SELECT account, topic, epoch, `partition`, `offset`, line, verdict, reason, field, transaction_id,"
        " hex(bytes), toUnixTimestamp64Milli(append_time) FROM rejects FINAL ORDER BY `offset`"
    ).rows
    assert [row[:7] for row in rows] == [
        ("acme", TOPIC, 0, 0, 3, 0, "rejected"),
        ("acme", TOPIC, 0, 0, 4, 0, "conflict"),
    ]
    assert [bytes.fromhex(row[10]) for row in rows] == [broken, changed]
    assert [row[9] for row in rows] == ["", "1-0"]
    assert rows[1][7:9] == ("conflict", "transactionId")
    assert [row[11] for row in rows] == [STATED_MS + 3, STATED_MS + 4]


def test_progress_is_the_latest_of_each_partition(store: Store, blocks: BlockStore) -> None:
    """Written again and again, read once a partition."""
    blocks.write_progress([])
    blocks.write_progress([Progress(0, 0, STATED_MS, 10, 12), Progress(1, 0, STATED_MS + 1, 5, 5)])
    blocks.write_progress([Progress(0, 1, STATED_MS + 2, 12, 12)])
    rows = store.query(
        "SELECT topic, `partition`, epoch, toUnixTimestamp64Milli(complete_until), position, `end` FROM progress FINAL"
        " ORDER BY `partition`"
    ).rows
    assert rows == [(TOPIC, 0, 1, STATED_MS + 2, 12, 12), (TOPIC, 1, 0, STATED_MS + 1, 5, 5)]


# ------------------------------------------------------------------------------------------------ ranges given up


def _gap(block: Block) -> Gap:
    return Gap(0, 0, block.start, block.end + 30, "retention", "ops@host", datetime(2026, 5, 1, tzinfo=UTC))


def test_a_range_takes_the_place_of_a_block_that_left_nothing(store: Store, blocks: BlockStore) -> None:
    """The block's months go with it; written again it is the same; it counts for no table."""
    gaps = GapStore(store, blocks, topic=TOPIC)
    partition = Partition()
    first, under_way = partition.block(events(1, 20, 60)), partition.block([*events(2, 20, 60), "nonsense"])
    _put(blocks, first)
    blocks.write_ledger([(under_way, STATED_MS)])
    blocks.write_rejects(under_way)
    found = gaps.block_at(0, 0, under_way.start)
    assert found is not None
    assert (found.end, found.counts, found.months) == (under_way.end, under_way.counts, under_way.months)
    assert gaps.settle(found).nothing
    for _ in range(2):
        gaps.give_up(_gap(under_way), found)
    last = blocks.last_block(0, 0)
    assert last is not None
    assert (is_gap(last), last.start, last.end) == (True, under_way.start, under_way.end + 30)
    assert blocks.counted_before(0, 0, 10**9) == (0, first.end)
    where = f"FROM blocks FINAL WHERE `start` = {under_way.start}"
    sums = store.query(f"SELECT sum(events), sum(accepted), sum(rejected), sum(rows), count() {where}").rows[0]
    assert sums == (1, 0, 1, 0, 1 + len(under_way.months))  # the line that was refused is kept, and stays told
    assert store.query("SELECT reason, told_by, offsets FROM v_gaps").rows == [
        ("retention", "ops@host", len(events(2, 20, 60)) + 1 + 30)
    ]


def test_months_of_a_range_that_was_given_up_have_no_marks(store: Store, blocks: BlockStore) -> None:
    """Blocks after it are told whole by theirs, and are not completed where nothing is missing."""
    gaps = GapStore(store, blocks, topic=TOPIC)
    partition = Partition()
    under_way = partition.block(events(2, 20, 60))
    _put(blocks, partition.block(events(1, 20, 60)))
    blocks.write_ledger([(under_way, STATED_MS)])
    gaps.give_up(_gap(under_way), gaps.block_at(0, 0, under_way.start))
    assert blocks.unfilled() == []
    after = partition.block(events(3, 20, 60))
    _put(blocks, after)
    assert blocks.landed(after).complete
    assert blocks.whole(0, 0, after.start)
    assert blocks.fill({0: after.end}) == []


@pytest.mark.usefixtures("unmerged")
def test_a_block_that_cannot_be_built_again_is_completed_from_its_facts(store: Store, blocks: BlockStore) -> None:
    """As long as facts and ids are there; without them what is missing is told."""
    gaps = GapStore(store, blocks, topic=TOPIC)
    partition = Partition()
    _put(blocks, partition.block(events(1, 20, 60)))
    before = _parts(store)
    block = partition.block(events(2, 30, 60))
    _put(blocks, block)
    whole = contents(store)
    added = _parts(store) - before
    _drop(store, [part for part in added if part[0] in ("usage_15m", "events_client_day")])
    found = gaps.block_at(0, 0, block.start)
    assert found is not None
    assert gaps.settle(found).complete
    assert contents(store) == whole
    _drop(store, [part for part in added if part[0] == "event_ids"])
    assert gaps.settle(found).missing == [("event_ids", 0)]


def test_no_block_starts_in_the_middle_of_one(store: Store, blocks: BlockStore) -> None:
    """Nothing is made up."""
    block = Partition().block(events(1, 20, 60))
    _put(blocks, block)
    assert GapStore(store, blocks, topic=TOPIC).block_at(0, 0, block.start + 1) is None
