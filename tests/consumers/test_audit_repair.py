"""A repair brings back what facts say, whatever rollups say, also while blocks go on landing; what it cannot know it
leaves alone."""

import threading
from collections.abc import Callable

import pytest
from counted_log import CountedLog, events, plain_events
from store_contents import TARGETS, contents

from consumers.audit import Auditor
from consumers.audit_repair import Repairer, RepairReport
from pipeline.adapters.clickhouse import Store

NOW = {"mutations_sync": 2}
ROLLUPS = TARGETS[2:]


def _repairer(log: CountedLog, settle_s: float = 20) -> Repairer:
    return Repairer(
        log.store, Auditor(log.store, topic=log.topic, pauses_s=(0.05,)), topic=log.topic, settle_s=settle_s
    )


def _repair(log: CountedLog) -> RepairReport:
    return _repairer(log).run()


@pytest.fixture
def log(store: Store) -> CountedLog:
    """Three blocks over three months and two years."""
    log = CountedLog(store)
    for seed in (1, 2, 3):
        log.count(events(seed, 120, 60))
    return log


def _lose_cells(store: Store, table: str) -> None:
    name = "bucket" if table.endswith("15m") else "day"
    store.command(
        f"ALTER TABLE {table} DELETE WHERE account = 'acme' AND {name} IN (SELECT max({name}) FROM {table})",
        settings=NOW,
    )


def _double_cells(store: Store, table: str) -> None:
    store.command(f"INSERT INTO {table} SELECT * FROM {table}", settings={"insert_deduplicate": 0})


def _invent_cells(store: Store, table: str) -> None:
    name, moment = (
        ("bucket", "toDateTime('2031-05-01 00:00:00', 'UTC')")
        if table.endswith("15m")
        else ("day", "toDate('2031-05-01')")
    )
    store.command(
        f"INSERT INTO {table} SELECT * REPLACE ({moment} AS {name}) FROM {table} LIMIT 3",
        settings={"insert_deduplicate": 0},
    )


def _lose_a_year(store: Store, table: str) -> None:
    store.command(f"ALTER TABLE {table} DROP PARTITION 2025")


@pytest.mark.parametrize("damage", [_lose_cells, _double_cells, _invent_cells, _lose_a_year])
def test_a_repaired_rollup_is_what_it_was(store: Store, log: CountedLog, damage: Callable[[Store, str], None]) -> None:
    """Every rollup damaged in the same way: all cells come back to the last digit, no drift is left, no shadow."""
    before = contents(store)
    for table in ROLLUPS:
        damage(store, table)
    done = _repair(log)
    assert done.report.drift == 0
    assert done.beyond == ()
    assert {last.table for last in done.rebuilt} == set(ROLLUPS)
    assert contents(store) == before
    left = store.query("SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'repair%'")
    assert left.rows == []
    assert all(log.blocks.landed(block).complete for block in (log.count(events(9, 5, 60)),))


def test_only_what_drifts_is_rebuilt(store: Store, log: CountedLog) -> None:
    """One table, one year; a second repair has nothing to do."""
    store.command("ALTER TABLE usage_15m DROP PARTITION 2025")
    done = _repair(log)
    assert [(last.table, last.year) for last in done.rebuilt] == [("usage_15m", 2025)]
    assert _repair(log).rebuilt == ()


def test_corrections_are_part_of_what_is_rebuilt(store: Store, log: CountedLog) -> None:
    """Cells that were withdrawn stay withdrawn."""
    store.command(
        "INSERT INTO corrections SELECT *, -1, 'void', epoch, partition, offset, line, 'test', append_time FROM events"
        " WHERE account != '' AND modulo(offset, 3) = 0"
    )
    before = contents(store)
    for table in ROLLUPS:
        _lose_a_year(store, table)
    assert _repair(log).report.drift == 0
    assert contents(store) == before


def test_blocks_that_land_between_reading_and_swap_are_there_after_it(store: Store, log: CountedLog) -> None:
    """Eight blocks land after the shadow is full; the swap takes them away and the repair brings exactly them back."""
    for table in ROLLUPS:
        _lose_a_year(store, table)
        seed = 100 * (ROLLUPS.index(table) + 1)

        def land(seed: int = seed) -> None:
            for i in range(8):
                log.count(plain_events(seed + i, 9) if i % 3 == 0 else events(seed + i, 9, 60))

        assert _repairer(log).rebuild(table, 2025, before_swap=land).blocks >= 8
    last = _repair(log)
    assert (last.report.drift, last.rebuilt) == (0, ())


def test_a_block_that_nobody_finished_is_left_to_its_worker(store: Store, log: CountedLog) -> None:
    """It landed before the swap and was never reported: the repair tells of it, and its owner finds it missing."""
    for table in ROLLUPS:
        _lose_a_year(store, table)
    (half_done,) = (log.build([(value, 1_767_225_600_123) for value in events(7, 20, 10)]),)
    done = _repairer(log, settle_s=0.1).rebuild("usage_15m", 2025, before_swap=lambda: log.store_block(half_done))
    assert (done.blocks, done.open) == (0, (0,))
    assert {table for table, _ in log.blocks.landed(half_done).missing} >= {"usage_15m"}
    log.blocks.repair(half_done, log.blocks.landed(half_done))
    log.report()
    assert log.blocks.landed(half_done).arrivals["usage_15m", 202511] == 1


def test_a_block_that_was_given_up_is_not_missed(store: Store, log: CountedLog) -> None:
    """The ledger has its months; a repair adds nothing for it, nor for blocks after it that are there."""
    log.give_up(events(7, 30, 60))
    log.count(events(8, 30, 60))
    before = contents(store)
    for table in ROLLUPS:
        _lose_a_year(store, table)
    assert {last.table for last in _repair(log).rebuilt} == set(ROLLUPS)
    assert contents(store) == before


def test_a_repair_beside_a_load_ends_exact(store: Store, log: CountedLog) -> None:
    """A worker counts block after block meanwhile, without a pause."""
    for table in ROLLUPS:
        _double_cells(store, table)
    stopping, counted = threading.Event(), []

    def load() -> None:
        while not stopping.is_set():
            seed = 1000 + len(counted)
            counted.append(log.count(plain_events(seed, 30) if seed % 3 == 0 else events(seed, 30, 60)))

    worker = threading.Thread(target=load)
    worker.start()
    try:
        done = _repair(log)
    finally:
        stopping.set()
        worker.join()
    assert len(counted) > 3
    assert {last.table for last in done.rebuilt} == set(ROLLUPS)
    report = Auditor(store, topic=log.topic, pauses_s=(0,)).run()
    assert (report.findings, report.accepted) == ((), 360 + 30 * len(counted))


def test_rollups_are_not_rebuilt_from_facts_in_doubt(store: Store, log: CountedLog) -> None:
    """The rollup may be all that is left of a lost fact."""
    store.command("ALTER TABLE events DELETE WHERE account != '' AND offset = 3", settings=NOW)
    before = contents(store, ROLLUPS)
    done = _repair(log)
    assert done.rebuilt == ()
    assert done.report.drift > 0
    assert contents(store, ROLLUPS) == before
    assert any(line.startswith("blocks (events)") and "restore" in line for line in done.beyond)
    assert any("not rebuilt" in line for line in done.beyond)


def test_a_broken_ledger_is_named_and_rollups_are_repaired_all_the_same(store: Store, log: CountedLog) -> None:
    """Counts of verdicts say nothing about facts."""
    store.command("ALTER TABLE blocks UPDATE duplicates = 4 WHERE start = 0 AND month = 0", settings=NOW)
    _lose_a_year(store, "events_15m")
    done = _repair(log)
    assert [last.table for last in done.rebuilt] == ["events_15m"]
    assert {finding.check for finding in done.report.findings} == {"verdicts", "conservation", "repeats"}
    assert any("blocks" in line for line in done.beyond)
