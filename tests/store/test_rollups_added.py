"""A rollup that a migration adds to a store with events: filled from facts up to where the group has counted, and fed
by the blocks from there on, so that it holds what it would have held from the first day."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from store_contents import TARGETS, contents
from stored_events import definition_of, emptied

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.block import LogRecord, Place
from pipeline.catalog import Account, Catalog, Dimension, Feature, encode_account, encode_dimension, encode_feature
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.stages.sink import Block

TOPIC = "tally.events"
STATED_MS = 1_767_225_600_123
FAR_MS = 4_000_000_000_000
ROLLUPS = TARGETS[2:]
Contents = dict[str, list[tuple[Any, ...]]]


def _mapper() -> Mapper:
    catalog = Catalog()
    records = [
        encode_account(Account(id="acme", name="Acme", mode="live"), "0"),
        encode_feature(Feature(account="acme", id="calls", name="C", event_names=("call",)), "1"),
        encode_feature(
            Feature(
                account="acme", id="users", name="U", event_names=("call",), aggregation="unique", unique_key="user"
            ),
            "2",
        ),
        encode_dimension(Dimension(account="acme", key="model", type="string"), "3"),
    ]
    for offset, record in enumerate(records):
        catalog.apply(offset, *record)
    return Mappers(catalog).at(catalog.version)


def _blocks(epoch: int, partition: int, number: int) -> list[Block]:
    """So many blocks of a partition, each with events of two months, but the second: sparse rollups get none of it."""
    mapper = _mapper()
    built = []
    for i in range(number):
        plain = i == 1
        lines = [
            json.dumps(
                {
                    "clientId": f"c{line % 3}",
                    "timestamp": f"2026-0{1 if plain else 1 + (i + line) % 2}-1{line % 9}T0{line % 10}:00:00Z",
                    "transactionId": f"{epoch}-{partition}-{i}-{line}",
                    "eventName": "call",
                    "value": line,
                    "data": {"model": f"m{line % 2}"} | ({} if plain else {"user": f"u{line % 4}"}),
                }
            ).encode()
            for line in range(12)
        ]
        records = [LogRecord(10 * i, STATED_MS, b"\n".join(lines), (("account", b"acme"),))]
        place = Place(TOPIC, epoch, partition, partition + 1, "acme", 10**15)
        built.append(
            build_block(
                place,
                records,
                start=10 * i,
                end=10 * (i + 1),
                mapper=mapper,
                catalog_version=7,
                lookup=lambda keys: {},
            )
        )
    return built


HISTORY = [*_blocks(0, 0, 3), *_blocks(0, 1, 3), *_blocks(1, 0, 4)]
LAST_OF_0, LAST_OF_1 = HISTORY[-1], HISTORY[5]


@pytest.fixture
def blocks(store: Store) -> BlockStore:
    """A store of blocks without any."""
    return _blocks_in(store)


@pytest.fixture(scope="module")
def whole(migrated_store: Store) -> Contents:
    """What a store holds whose rollups were all there from the first day."""
    _put(_blocks_in(emptied(migrated_store)), HISTORY)
    return contents(migrated_store)


def _blocks_in(store: Store) -> BlockStore:
    return BlockStore(store, topic=TOPIC, database=store.query("SELECT currentDatabase()").rows[0][0])


def _put(blocks: BlockStore, several: list[Block]) -> None:
    for block in several:
        blocks.write_ledger([(block, STATED_MS)])
        blocks.insert(block, FAR_MS)


@pytest.fixture
def without(store: Store) -> "Callable[[str], Callable[[], None]]":
    """Takes a rollup away, as if it were of a later version; call the result to make it and its views."""

    def take(table: str) -> Callable[[], None]:
        names = (table, f"corrections_to_{table}", f"ingest_to_{table}")
        statements = [definition_of(store, name) for name in names]
        for name in reversed(names):
            store.command(f"DROP TABLE {name} SYNC")
        return lambda: [store.command(statement) for statement in statements] and None

    return take


@pytest.mark.parametrize("table", ROLLUPS)
@pytest.mark.parametrize("under_way", [False, True])
def test_a_rollup_added_later_holds_what_it_would_have_held(
    store: Store,
    whole: Contents,
    without: Callable[[str], Callable[[], None]],
    table: str,
    under_way: bool,
) -> None:
    """Also with a block that was under way when the workers stopped: facts hold it, the group has not counted it, and
    whoever takes the partition inserts it again."""
    blocks = _blocks_in(store)
    add = without(table)
    _put(blocks, HISTORY)
    add()
    assert blocks.unfilled() == [table]
    filled = blocks.fill({0: LAST_OF_0.start if under_way else LAST_OF_0.end, 1: LAST_OF_1.end})
    assert filled == [(table, 202601), (table, 202602)]
    assert blocks.unfilled() == []
    if under_way:
        assert set(blocks.landed(LAST_OF_0).missing) == {(table, 202601), (table, 202602)}
        blocks.insert(LAST_OF_0, FAR_MS)
    assert contents(store) == whole
    assert all(blocks.landed(block).complete for block in (LAST_OF_0, LAST_OF_1))
    assert blocks.fill({0: LAST_OF_0.end, 1: LAST_OF_1.end}) == []


def test_a_filling_that_was_killed_goes_on_with_the_months_that_lack(
    store: Store, blocks: BlockStore, without: Callable[[str], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each month is there whole or not at all."""
    _put(blocks, HISTORY)
    whole = contents(store)
    add = without("usage_15m")
    add()
    counted = {0: LAST_OF_0.end, 1: LAST_OF_1.end}
    fill = BlockStore._fill_month
    monkeypatch.setattr(BlockStore, "_fill_month", lambda self, *a: fill(self, *a) if a[1] == 202601 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        blocks.fill(counted)
    monkeypatch.undo()
    assert blocks.unfilled() == ["usage_15m"]
    assert blocks.fill(counted) == [("usage_15m", 202602)]
    assert contents(store) == whole


def test_a_month_that_is_there_in_part_is_left_alone_and_named(store: Store, blocks: BlockStore) -> None:
    """Filling it would double what is there."""
    _put(blocks, HISTORY)
    store.command(
        "ALTER TABLE events_15m DELETE WHERE account = '' AND event_name = 'tally.events:1:0'"
        " AND toYYYYMM(bucket) = 202601"
        " SETTINGS mutations_sync = 2"
    )
    with pytest.raises(ValueError, match=r"events_15m holds 202601 in part: tally.events:1:0 are missing"):
        blocks.fill({0: LAST_OF_0.end, 1: LAST_OF_1.end})
