"""A block is in the store entirely and once, whatever happens to its inserts."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from stored_events import StoredEvent, block_rows, insert_block, random_events

from pipeline.adapters.clickhouse import Store
from pipeline.ports import StoreError

# Every target of a block with what it must hold of it: number of rows or events, and a sum.
TARGETS = {
    "events": "count(), toString(sum(value))",
    "event_ids": "count(), toString(sum(id_hash))",
    "usage_client_day": "sum(events), toString(sum(total))",
    "usage_client_edge_15m": "sum(events), toString(sum(total))",
    "usage_15m": "sum(events), toString(sum(total))",
    "usage_dimension_15m": "sum(events), toString(sum(total))",
    "usage_uniques_client_day": "sum(events), toString(uniqExact(distinct_hash))",
    "events_client_day": "sum(events), toString(sum(total))",
    "events_15m": "sum(events), toString(sum(total))",
    "events_dimension_15m": "sum(events), toString(sum(total))",
}
TOKEN = {"insert_deduplication_token": "0:tally.events:0:0-100"}
FIRST = datetime(2023, 5, 20, tzinfo=UTC)


def _block(days: int) -> list[StoredEvent]:
    return random_events(3, 400, "acme", FIRST, days)


def _held(store: Store) -> dict[str, tuple[int, str]]:
    return {table: store.query(f"SELECT {what} FROM {table}").rows[0] for table, what in TARGETS.items()}


def _expected(events: list[StoredEvent]) -> dict[str, tuple[int, Decimal]]:
    meters = [(e, m) for e in events for m in e.meters]
    ends = [m for e, m in meters if _beside_a_months_end(e.timestamp)]
    distinct = {m.distinct_hash for _, m in meters if m.distinct_hash}
    quantity = sum((m.quantity for _, m in meters), Decimal(0))
    value = sum((e.value for e in events), Decimal(0))
    numbers = sum((n for e in events for n in e.numbers.values()), Decimal(0))
    by_text = sum((e.value * len(e.texts) for e in events), Decimal(0))
    return {
        "events": (len(events), value),
        "event_ids": (len(events), Decimal(sum(e.id_hash for e in events) % (1 << 128))),
        "usage_client_day": (len(meters), quantity),
        "usage_client_edge_15m": (len(ends), sum((m.quantity for m in ends), Decimal(0))),
        "usage_15m": (len(meters), quantity),
        "usage_dimension_15m": (
            sum(len(e.texts) for e, _ in meters),
            sum((m.quantity * len(e.texts) for e, m in meters), Decimal(0)),
        ),
        "usage_uniques_client_day": (sum(1 for _, m in meters if m.distinct_hash), Decimal(len(distinct))),
        "events_client_day": (len(events), value),
        "events_15m": (len(events), value),
        "events_dimension_15m": (sum(len(e.texts) + len(e.numbers) for e in events), by_text + numbers),
    }


def _beside_a_months_end(at: datetime) -> bool:
    """Somewhere on earth another month begins within the last 12 hours, or in the next 14."""
    return (at + timedelta(hours=14)).month != (at - timedelta(hours=12)).month


def _assert_exact(store: Store, events: list[StoredEvent]) -> None:
    held = {table: (number, Decimal(total)) for table, (number, total) in _held(store).items()}
    assert held == _expected(events)


def test_targets_are_all_the_views_of_the_entry(store: Store) -> None:
    """No view is forgotten by the tests below (sets is fed by set events only, which are not built yet; plain
    blocks and shapes are on their way to others)."""
    views = store.query(
        "SELECT substring(name, 11) FROM system.tables"
        " WHERE database = currentDatabase() AND name LIKE 'ingest\\_to\\_%'"
    )
    assert {name for (name,) in views.rows} == {*TARGETS, "sets", "ingest_plain", "ingest_shapes_15m"}


@pytest.mark.parametrize("days", [1, 420], ids=["one month", "fifteen months"])
def test_a_block_sent_three_times_counts_once(store: Store, days: int) -> None:
    """Same rows, same token: every target stays exact, also when the block spans several partitions of it."""
    events = _block(days)
    for _ in range(3):
        store.insert_arrow("ingest", block_rows(events, start=0), TOKEN)
        _assert_exact(store, events)


def test_the_token_tells_blocks_apart_not_the_rows(store: Store) -> None:
    """Identical rows under another token are another block."""
    events = _block(1)
    store.insert_arrow("ingest", block_rows(events, start=0), TOKEN)
    store.insert_arrow("ingest", block_rows(events, start=0), {"insert_deduplication_token": "another"})
    assert _held(store)["events"][0] == 2 * len(events)


@pytest.mark.parametrize("target", TARGETS)
def test_a_block_cut_short_and_sent_again_is_exact(store: Store, target: str) -> None:
    """One target refuses its rows: the insert fails, some targets have theirs; sent again, all have them once."""
    events = _block(60)
    refusing = "epoch > 9" if target in ("events", "event_ids") else "events < 0"
    store.command(f"ALTER TABLE {target} ADD CONSTRAINT cut CHECK {refusing}")
    try:
        with pytest.raises(StoreError, match="cut"):
            store.insert_arrow("ingest", block_rows(events, start=0), TOKEN)
    finally:
        store.command(f"ALTER TABLE {target} DROP CONSTRAINT cut")
    store.insert_arrow("ingest", block_rows(events, start=0), TOKEN)
    _assert_exact(store, events)


def test_an_insert_past_its_deadline_is_dropped_whole(store: Store) -> None:
    """The server refuses it, and no target has a row of it."""
    late = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(StoreError, match="in_time") as refused:
        store.insert_arrow("ingest", block_rows(_block(1), start=0, deadline=late), TOKEN)
    assert refused.value.code == 469
    assert {number for number, _ in _held(store).values()} == {0}


def test_a_block_over_more_months_than_the_server_takes_by_default(store: Store) -> None:
    """A backfill over thirteen years is one block."""
    events = random_events(4, 500, "acme", datetime(2012, 1, 1, tzinfo=UTC), 365 * 13)
    store.insert_arrow("ingest", block_rows(events, start=0), TOKEN)
    _assert_exact(store, events)


def test_sums_do_not_wrap(store: Store) -> None:
    """The sum of many of the largest values has more digits than a value may have."""
    largest = Decimal("99999999999999999999999999999.999999999")
    events = [StoredEvent("acme", "anna", FIRST, offset=i, value=largest) for i in range(1000)]
    insert_block(store, events, start=0, end=1000)
    total = Decimal("99999999999999999999999999999999.999999000")
    assert store.query("SELECT sum(total) FROM events_15m").rows == [(total,)]
    assert store.query("SELECT total FROM v_events_daily").rows == [(total,)]


def test_a_ledger_entry_written_again_replaces_itself(store: Store) -> None:
    """Idempotent by topic, epoch, partition, start and month."""
    events = _block(60)
    for _ in range(2):
        insert_block(store, events, start=0, end=100)
    assert store.query("SELECT count(), sum(accepted) FROM blocks FINAL WHERE month = 0").rows == [(1, len(events))]


def test_corrections_feed_every_rollup(store: Store) -> None:
    """Taking everything out by corrections leaves sums of nothing and marks the cells."""
    insert_block(store, _block(30), start=0, end=100)
    store.command(
        "INSERT INTO corrections SELECT *, -1, 'void', epoch, partition, offset, line, 'test', append_time FROM events"
    )
    for table in sorted(set(TARGETS) - {"events", "event_ids"}):
        assert store.query(f"SELECT sum(events) FROM {table}").rows == [(0,)]
        if table != "usage_uniques_client_day":
            assert store.query(f"SELECT sum(total), sum(withdrawn) > 0 FROM {table}").rows == [(0, 1)]
