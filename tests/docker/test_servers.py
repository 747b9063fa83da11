"""What only a server can show: Replicated engines with Keeper, killed in the middle of blocks. With `-m docker`."""

import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from counted_log import CountedLog, events
from docker_stack import FAMILY, clickhouse_server
from store_contents import TARGETS, contents
from stored_events import block_rows, fresh_store, random_events

from consumers.audit import Auditor
from consumers.audit_repair import Repairer
from pipeline.adapters.clickhouse import Store
from pipeline.ports import StoreError, StoreUnavailable

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Any]]:
    """A server of these tests' own, which may be killed."""
    with clickhouse_server() as running:
        yield running


@pytest.fixture
def store(server: tuple[str, Any]) -> Iterator[Store]:
    """A migrated database with Replicated engines."""
    store = fresh_store(server[0], engine_family=FAMILY)
    yield store
    store.close()


def _insert(store: Store, number: int) -> None:
    events = random_events(number, 300, "acme", datetime(2023, 10, 20, tzinfo=UTC), 120)
    store.close()  # connections to a server that was killed
    store.insert_arrow(
        "ingest", block_rows(events, start=number * 1000), {"insert_deduplication_token": f"tally.events:0:0:{number}"}
    )


def test_every_table_that_holds_rows_is_replicated(store: Store) -> None:
    """None was forgotten."""
    engines = dict(
        store.query(
            "SELECT name, engine FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%Tree'"
        ).rows
    )
    assert set(TARGETS) <= set(engines)
    assert {name for name, engine in engines.items() if not engine.startswith("Replicated")} <= {"schema_versions"}


def test_blocks_count_once_through_kills_of_the_server(server: tuple[str, Any], store: Store) -> None:
    """Sent again under the same token until acknowledged, server and Keeper killed meanwhile: once everywhere."""
    _, container = server
    seed, blocks, kills = 5, 6, 0
    draw = random.Random(seed)
    for number in range(blocks):
        killer = threading.Timer(draw.random() * 0.3, container.kill)
        killer.start()
        with suppress(StoreUnavailable, StoreError):
            _insert(store, number)
        killer.join()
        container.start()
        kills += 1
        while True:
            try:
                _insert(store, number)
                break
            except (StoreUnavailable, StoreError):
                continue  # the server is starting, or its tables are read-only until Keeper is back
    found = contents(store)
    reference = fresh_store(server[0], engine_family=FAMILY)
    for number in range(blocks):
        _insert(reference, number)
    assert found == contents(reference), f"seed {seed}, {kills} kills"
    reference.close()


def test_a_replicated_rollup_is_rebuilt_from_a_plain_shadow(store: Store) -> None:
    """The partition of a plain table takes the place of the replicated one's; a repair ends with no drift."""
    log = CountedLog(store)
    for seed in (1, 2):
        log.count(events(seed, 100, 60))
    before = contents(store)
    for table in TARGETS[2:]:
        store.command(f"ALTER TABLE {table} DROP PARTITION 2025")
    auditor = Auditor(store, topic=log.topic, pauses_s=(0,))
    assert Repairer(store, auditor, topic=log.topic).run().report.drift == 0
    assert contents(store) == before
