"""A migrated store for the tests of this folder, empty at the start of each."""

from collections.abc import Iterator

import pytest
from stored_events import emptied, fresh_store

from pipeline.adapters.clickhouse import Store


@pytest.fixture(scope="package")
def migrated_store(clickhouse_url: str) -> Iterator[Store]:
    """A database of its own on the engine of the session."""
    store = fresh_store(clickhouse_url)
    yield store
    store.close()


@pytest.fixture
def store(migrated_store: Store) -> Store:
    """The same with no rows in it and no tokens remembered."""
    return emptied(migrated_store)
