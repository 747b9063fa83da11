"""Repeats in the store: every duplicate and conflict once, by position; the audit holds them to the ledger."""

from collections.abc import Callable, Iterator

import pytest

from consumers.audit import Auditor
from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.block import LogRecord, Place
from pipeline.catalog import Account, Catalog, encode_account
from pipeline.event import id_hash
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mappers
from pipeline.stages.sink import Block

TOPIC = "tally.events"
APPENDED_MS = 1_767_225_600_123
NOW = {"mutations_sync": 2}
LINE = '{{"clientId":"c","timestamp":"2025-12-01T00:00:00Z","transactionId":"{}","value":{}}}'


def _blocks() -> Iterator[Block]:
    """Three blocks: firsts with repeats among them, then nothing but repeats, then none."""
    catalog = Catalog()
    catalog.apply(0, *encode_account(Account(id="acme", name="Acme", mode="live"), "0"))
    mapper = Mappers(catalog).at(catalog.version)
    seen: dict[bytes, bytes] = {}
    start = 0
    for lines in ([("a", 1), ("b", 1), ("a", 1), ("a", 2)], [("a", 1), ("b", 1), ("b", 3)], [("c", 1)]):
        records = [
            LogRecord(start + n, APPENDED_MS + n, LINE.format(*line).encode(), (("account", b"acme"),))
            for n, line in enumerate(lines)
        ]
        block = build_block(
            Place(TOPIC, 0, 0, 1, "acme", 10**15),
            records,
            start=start,
            end=start + len(lines),
            mapper=mapper,
            catalog_version=0,
            lookup=lambda keys: {key: seen[key] for key in keys if key in seen},
        )
        seen.update(block.sightings)
        start = block.end
        yield block


@pytest.fixture
def filled(store: Store) -> Store:
    """The blocks, each written as the worker does, its repeats and rejects thrice."""
    blocks = BlockStore(store, topic=TOPIC, database=store.query("SELECT currentDatabase()").rows[0][0])
    written = list(_blocks())
    for block in written:
        blocks.write_ledger([(block, APPENDED_MS)])
        blocks.insert(block, 4_000_000_000_000)
        for _ in range(3):
            blocks.write_rejects(block)
        blocks.write_repeats([block])
    for _ in range(2):  # as blocks that go together
        blocks.write_repeats(written)
    return store


def test_every_repeat_is_there_once(filled: Store) -> None:
    """By position, with the hash of its id, its verdict and its block; no raw id."""
    rows = filled.query(
        "SELECT epoch, `partition`, `offset`, line, id_hash, verdict, toUnixTimestamp64Milli(append_time), block_start"
        " FROM repeats FINAL ORDER BY `offset`"
    ).rows
    a, b = id_hash("acme", "a"), id_hash("acme", "b")
    assert rows == [
        (0, 0, 2, 0, a, "duplicate", APPENDED_MS + 2, 0),
        (0, 0, 3, 0, a, "conflict", APPENDED_MS + 3, 0),
        (0, 0, 4, 0, a, "duplicate", APPENDED_MS, 4),
        (0, 0, 5, 0, b, "duplicate", APPENDED_MS + 1, 4),
        (0, 0, 6, 0, b, "conflict", APPENDED_MS + 2, 4),
    ]
    assert _findings(filled) == []


def _findings(store: Store) -> list[tuple[str, str, str]]:
    report = Auditor(store, topic=TOPIC).run()
    return [(f.check, f.where["start"], f.message) for f in report.findings]


def _lose(store: Store) -> None:
    store.command("ALTER TABLE repeats DELETE WHERE offset = 4", settings=NOW)


def _change(store: Store) -> None:
    store.command("ALTER TABLE repeats UPDATE verdict = 'conflict' WHERE offset = 4", settings=NOW)


def _invent(store: Store) -> None:
    store.command("INSERT INTO repeats SELECT * REPLACE (9 AS line) FROM repeats WHERE offset = 4 LIMIT 1")


def _invent_block(store: Store) -> None:
    store.command("INSERT INTO repeats SELECT * REPLACE (77 AS block_start) FROM repeats WHERE offset = 4 LIMIT 1")
    store.command("ALTER TABLE repeats DELETE WHERE offset = 4 AND block_start = 4", settings=NOW)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_lose, [("4", "repeats have -1 duplicates and 0 conflicts more than the ledger")]),
        (_change, [("4", "repeats have -1 duplicates and 1 conflicts more than the ledger")]),
        (_invent, [("4", "repeats have 1 duplicates and 0 conflicts more than the ledger")]),
        (
            _invent_block,
            [
                ("4", "repeats have -1 duplicates and 0 conflicts more than the ledger"),
                ("77", "repeats have 1 duplicates and 0 conflicts more than the ledger"),
            ],
        ),
    ],
    ids=["lost", "changed", "invented", "block invented"],
)
def test_repeats_that_are_not_those_of_the_ledger_are_named(
    filled: Store, damage: Callable[[Store], None], found: list[tuple[str, str]]
) -> None:
    """By block, both ways."""
    damage(filled)
    assert _findings(filled) == [("repeats", *one) for one in found]


def test_blocks_from_before_repeats_were_kept_are_not_held_to_them(filled: Store) -> None:
    """Their ledger says so."""
    filled.command("TRUNCATE TABLE repeats")
    assert len(_findings(filled)) == 2
    filled.command("ALTER TABLE blocks UPDATE repeats_kept = 0 WHERE 1", settings=NOW)
    assert _findings(filled) == []
