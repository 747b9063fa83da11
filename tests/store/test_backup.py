"""A backup by the server's own statements, as the README documents it, brings back everything that the worker needs."""

import uuid
from datetime import UTC, datetime

from store_contents import contents
from stored_events import fresh_store, insert_block, random_events

from pipeline.migrate import migrate
from pipeline.settings import Settings


def test_a_restored_database_is_whole_and_goes_on(clickhouse_url: str) -> None:
    """Tables, views and the list of migrations; the next block reaches every table through the restored views."""
    store = fresh_store(clickhouse_url)
    name = store.query("SELECT currentDatabase()").rows[0][0]
    events = random_events(3, 120, "acme", datetime(2025, 1, 20, tzinfo=UTC), 30)
    insert_block(store, events[:70], start=0, end=10)
    before = contents(store)
    backup = f"Memory('{uuid.uuid4().hex}')"
    store.command(f"BACKUP DATABASE {name} TO {backup}")
    insert_block(store, events[70:], start=10, end=30)
    after = contents(store)
    store.command(f"DROP DATABASE {name} SYNC")
    store.command(f"RESTORE DATABASE {name} FROM {backup}")
    assert contents(store) == before
    assert migrate(Settings(clickhouse=clickhouse_url, database=name)) == []
    insert_block(store, events[70:], start=10, end=30)
    assert contents(store) == after
    store.close()
