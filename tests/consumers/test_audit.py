"""The audit finds nothing in a store that is right, and each kind of damage in one that is not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from stored_events import StoredEvent, block_rows, insert_block, random_events

from consumers.audit import Auditor, AuditReport
from consumers.windows import Period
from pipeline.adapters.clickhouse import Store

FIRST = datetime(2024, 2, 20, tzinfo=UTC)
NOW = {"mutations_sync": 2}


@pytest.fixture
def filled(store: Store) -> Store:
    """Three blocks over two months, with duplicates, a conflict and a rejected line among them."""
    events = random_events(11, 300, "acme", FIRST, 30)
    insert_block(store, events[:140], start=0, end=20, duplicates=3)
    insert_block(store, events[140:140], start=20, end=21, duplicates=2)
    insert_block(store, events[147:], start=21, end=60, rejected=1, conflicts=1)
    columns = "INSERT INTO rejects (topic, epoch, partition, offset, line, verdict) VALUES"
    store.command(f"{columns} ('tally.events', 0, 0, 50, 0, 'rejected'), ('tally.events', 0, 0, 51, 0, 'conflict')")
    return store


def test_a_store_that_is_right_has_no_drift(filled: Store) -> None:
    """Every count of the ledger is there, every cell of every rollup was compared."""
    report = _audit(filled)
    assert report.findings == ()
    assert report.drift == 0
    assert report.events == report.accepted + report.duplicates + report.conflicts + report.rejected + report.rerouted
    assert (report.accepted, report.duplicates, report.conflicts, report.rejected) == (293, 5, 1, 1)
    assert report.stored == 293
    assert report.blocks == 3
    assert report.cells > 1000


_GAP = (
    "INSERT INTO blocks (topic, epoch, partition, start, end, month, rules, stated_at, append_time_max)"
    " VALUES ('tally.events', 0, 0, 60, 75, 0, 0, now64(3), 0)"
)


def test_a_range_that_was_given_up_is_told_each_time_and_is_no_drift(filled: Store) -> None:
    """Who, when and why; the blocks go on behind it."""
    filled.command(_GAP)
    filled.command(
        "INSERT INTO gaps VALUES ('tally.events', 0, 0, 60, 75, 'retention was too short', 'ops@host', '2026-05-01')"
    )
    insert_block(filled, random_events(12, 10, "acme", FIRST, 3)[:0], start=75, end=80)
    report = _audit(filled)
    assert (report.drift, report.blocks) == (0, 4)
    (gap,) = report.gaps
    assert (gap.check, gap.where["start"], gap.where["end"]) == ("told_gap", "60", "75")
    assert gap.message == "given up: 15 records at most, by ops@host at 2026-05-01T00:00:00Z: retention was too short"
    (row,) = filled.query("SELECT start, end, offsets, reason, told_by FROM v_gaps").rows
    assert row == (60, 75, 15, "retention was too short", "ops@host")


def test_a_range_that_was_given_up_without_a_word_is_drift(filled: Store) -> None:
    """Nobody can silence a gap by a row in the ledger."""
    filled.command(_GAP)
    report = _audit(filled)
    assert report.drift == 1
    assert report.findings[0].message == "given up, and nobody has told why"


def test_an_empty_store_has_no_drift(store: Store) -> None:
    """Nothing sent, nothing wrong."""
    assert _audit(store).drift == 0


def _delete_fact(store: Store) -> None:
    store.command("ALTER TABLE events DELETE WHERE offset = 3 AND line = 2", settings=NOW)


def _alter_fact(store: Store) -> None:
    store.command("ALTER TABLE events UPDATE value = value + 1 WHERE offset = 3 AND line = 2", settings=NOW)


def _move_fact_to_another_customer(store: Store) -> None:
    store.command("CREATE TABLE moved AS events")
    store.command("INSERT INTO moved SELECT * FROM events WHERE offset = 3")
    store.command("ALTER TABLE moved UPDATE value = 5 WHERE 1", settings=NOW)
    store.command("ALTER TABLE events DELETE WHERE offset = 3", settings=NOW)
    store.command("INSERT INTO events SELECT * REPLACE ('zoe' AS client_id) FROM moved")
    store.command("DROP TABLE moved")


def _alter_rollup(store: Store) -> None:
    store.command(
        "INSERT INTO usage_client_day SELECT * REPLACE (0 AS events, toDecimal256('0.000000001', 9) AS total)"
        " FROM usage_client_day LIMIT 1"
    )


def _lose_rollup_cell(store: Store) -> None:
    store.command("ALTER TABLE events_15m DELETE WHERE bucket IN (SELECT min(bucket) FROM events_15m)", settings=NOW)


def _invent_rollup_cell(store: Store) -> None:
    store.command(
        "INSERT INTO events_dimension_15m SELECT * REPLACE (toDateTime('2031-01-01 00:00:00', 'UTC') AS bucket)"
        " FROM events_dimension_15m LIMIT 1"
    )


def _alter_distinct_value(store: Store) -> None:
    store.command("INSERT INTO usage_uniques_client_day SELECT * FROM usage_uniques_client_day LIMIT 1")


def _lose_block(store: Store) -> None:
    store.command("ALTER TABLE blocks DELETE WHERE start = 20", settings=NOW)


def _lose_block_but_not_its_months(store: Store) -> None:
    store.command("ALTER TABLE blocks DELETE WHERE start = 0 AND month = 0", settings=NOW)


def _overlap_blocks(store: Store) -> None:
    store.command("ALTER TABLE blocks UPDATE `end` = 22 WHERE start = 20", settings=NOW)


def _miscount_verdicts(store: Store) -> None:
    store.command("ALTER TABLE blocks UPDATE duplicates = 4 WHERE start = 0", settings=NOW)


def _insert_twice_without_token(store: Store) -> None:
    events = random_events(11, 300, "acme", FIRST, 30)
    store.insert_arrow("ingest", block_rows(events[147:], start=21))


def _lose_id(store: Store) -> None:
    store.command("ALTER TABLE event_ids DELETE WHERE offset = 3 AND line = 2", settings=NOW)


def _store_one_fact_for_another(store: Store) -> None:
    store.command("INSERT INTO events SELECT * REPLACE (1 AS line) FROM events WHERE offset = 3 AND line = 2")
    store.command("ALTER TABLE events DELETE WHERE offset = 3 AND line = 2", settings=NOW)


def _lose_reject(store: Store) -> None:
    store.command("ALTER TABLE rejects DELETE WHERE verdict = 'conflict'", settings=NOW)


@pytest.mark.parametrize(
    ("damage", "checks"),
    [
        (_delete_fact, {"blocks", "positions", "conservation", "rollup events_15m"}),
        (_alter_fact, {"blocks", "rollup events_15m", "rollup events_client_day"}),
        (_move_fact_to_another_customer, {"rollup usage_client_day", "rollup events_client_day"}),
        (_alter_rollup, {"rollup usage_client_day"}),
        (_lose_rollup_cell, {"rollup events_15m"}),
        (_invent_rollup_cell, {"rollup events_dimension_15m"}),
        (_alter_distinct_value, {"rollup usage_uniques_client_day"}),
        (_lose_block, {"ranges"}),
        (_lose_block_but_not_its_months, {"verdicts", "conservation"}),
        (_overlap_blocks, {"ranges"}),
        (_miscount_verdicts, {"verdicts", "conservation"}),
        (_insert_twice_without_token, {"blocks", "ids", "positions", "conservation"}),
        (_lose_id, {"positions", "conservation"}),
        (_store_one_fact_for_another, {"positions"}),
        (_lose_reject, {"rejects"}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_damage_is_found_and_named(filled: Store, damage: Callable[[Store], None], checks: set[str]) -> None:
    """Each planted fault gives drift, and findings of the checks that it breaks."""
    damage(filled)
    report = _audit(filled)
    assert report.drift > 0
    assert checks <= {finding.check for finding in report.findings}
    assert all(finding.message for finding in report.findings)


def test_a_gap_names_the_offsets_that_are_missing(filled: Store) -> None:
    """Offsets 20 to 20 were in the block that is gone."""
    _lose_block(filled)
    (finding,) = [f for f in _audit(filled).findings if f.check == "ranges"]
    assert finding.where == {"epoch": "0", "partition": "0", "start": "21", "end": "60"}
    assert finding.message == "gap: offsets 20 to 20 are in no block"


def test_a_gap_before_the_first_block_is_found(filled: Store) -> None:
    """The epoch says where counting began."""
    filled.command(
        "INSERT INTO epochs (topic, epoch, partition, first_offset, started_at) VALUES ('tally.events', 1, 0, 5, 0)"
    )
    event = StoredEvent("acme", "anna", FIRST, offset=9, epoch=1)
    insert_block(filled, [event], start=9, end=10)
    assert [f.message for f in _audit(filled).findings] == ["gap: offsets 5 to 8 are in no block"]


def test_what_is_still_under_way_is_no_drift(filled: Store) -> None:
    """A ledger entry past the worker's progress whose rows have not come yet is not looked at."""
    filled.command(
        "INSERT INTO progress (topic, partition, epoch, complete_until, position, `end`)"
        " VALUES ('tally.events', 0, 0, now64(3), 60, 70)"
    )
    filled.command(
        "INSERT INTO blocks (topic, epoch, partition, start, `end`, month, events, accepted, rows, rules)"
        " VALUES ('tally.events', 0, 0, 60, 70, 0, 9, 9, 9, 1), ('tally.events', 0, 0, 60, 70, 202402, 0, 0, 9, 1)"
    )
    assert _audit(filled).drift == 0


def test_one_broken_cell_is_found_among_thousands_under_way(filled: Store) -> None:
    """However many cells change between two looks, the one that stays wrong is followed and named."""

    def count_elsewhere(_: float = 0) -> None:
        bucket = "addMinutes(toDateTime('2031-01-01 00:00:00', 'UTC'), 15 * number) AS bucket"
        filled.command(
            f"INSERT INTO events_15m SELECT cell.* REPLACE ({bucket})"
            " FROM (SELECT * FROM events_15m WHERE account = 'acme' LIMIT 1) AS cell CROSS JOIN numbers(3000) AS n",
            settings={"insert_deduplicate": 0},
        )

    filled.command("INSERT INTO events_15m SELECT * FROM events_15m WHERE account = 'acme' ORDER BY bucket LIMIT 1")
    ((bucket,),) = filled.query("SELECT toString(min(bucket)) FROM events_15m WHERE account = 'acme'").rows
    count_elsewhere()
    report = Auditor(filled, topic="tally.events", pauses_s=(0.01, 0.01, 0.01), sleep=count_elsewhere).run()
    assert [(finding.check, finding.where["bucket"]) for finding in report.findings] == [("rollup events_15m", bucket)]
    assert (report.drift, report.broken) == (1, (("events_15m", 2024),))


def test_cells_can_be_checked_for_one_account_and_period(filled: Store) -> None:
    """Damage outside of what was asked for is not compared; inside it is."""
    _invent_rollup_cell(filled)
    auditor = Auditor(filled, topic="tally.events", pauses_s=(0,))
    year = Period(datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
    assert auditor.run(account="acme", period=year).drift == 0
    later = Period(year.end, year.end + timedelta(days=3650))
    assert auditor.run(account="acme", period=later).drift == 1
    assert auditor.run(account="nobody", period=later).drift == 0


def _audit(store: Store) -> AuditReport:
    return Auditor(store, topic="tally.events", pauses_s=(0,)).run()
