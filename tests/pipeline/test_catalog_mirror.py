"""The mirror: rows for the store's tables, complete and in order, whatever happens on the way."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog_file import apply_file, read_catalog_file
from pipeline.catalog_input import customer_from, feature_from
from pipeline.catalog_mirror import CatalogMirror, mirror_tables
from pipeline.catalog_service import CatalogService
from pipeline.ports import StoreUnavailable

DATA = Path(__file__).parent.parent / "data"
SQL = Path(__file__).parent.parent.parent / "sql"


class RememberingStore:
    """A MirrorStore that keeps what it was given, and is away as often as told."""

    def __init__(self) -> None:
        self.inserts: list[tuple[str, pa.Table]] = []
        self.failures = 0
        self.grown = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def insert_arrow(self, table: str, rows: pa.Table, settings: Mapping[str, Any] | None = None) -> None:
        """Called in a thread, as the real one is."""
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store was switched off")
        self.inserts.append((table, rows))
        self._loop.call_soon_threadsafe(self.grown.set)

    @property
    def version(self) -> int | None:
        """What `catalog_version` says last."""
        found = [rows.column("version")[0].as_py() for table, rows in self.inserts if table == "catalog_version"]
        return found[-1] if found else None


async def filled() -> CatalogService:
    """A service with the demo's catalog, a key, and one feature in two revisions."""
    client = CatalogClient(MemoryCatalogLog())
    await client.start()
    service = CatalogService(client, clock_us=lambda: 1_700_000_000_000_001)
    await service.ensure_first_account("acme")
    await apply_file(service, read_catalog_file((DATA / "catalog.yaml").read_text()), account="acme")
    await service.update_feature("acme", "seats", {"filter": {"plan": ["pro", 1]}, "metadata": {"b": 1, "a": None}})
    return service


async def test_every_table_gets_its_rows_and_the_version_last() -> None:
    """All revisions of features, instants in UTC, JSON as text, no secret."""
    service = await filled()

    tables = mirror_tables(service.catalog, "tally.catalog")

    assert [name for name, _ in tables] == [
        "accounts",
        "keys",
        "customers",
        "features",
        "dimensions",
        "catalog_version",
    ]
    rows = {name: table.to_pylist() for name, table in tables}
    assert {row["id"]: row["mode"] for row in rows["accounts"]} == {"acme": "live", "acme:test": "test"}
    assert rows["keys"][0]["revoked"] is None
    assert rows["keys"][0]["created"] == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert rows["customers"][0]["email"] == "uma@example.com"
    seats = sorted((row for row in rows["features"] if row["id"] == "seats"), key=lambda row: row["rev"])
    assert [row["filter"] for row in seats] == ["{}", '{"plan":["pro",1]}']
    assert seats[1]["metadata"] == '{"a":null,"b":1}'
    assert seats[0]["effective_from"] == datetime(1970, 1, 1, tzinfo=UTC)
    assert len(rows["features"]) == 11
    assert len(rows["dimensions"]) == 4
    assert rows["catalog_version"] == [{"topic": "tally.catalog", "version": service.catalog.version}]


async def test_the_columns_are_those_of_the_tables() -> None:
    """Each column of the mirror exists in its table, and each one without a default is filled."""
    service = await filled()

    for name, table in mirror_tables(service.catalog, "tally.catalog"):
        texts = [path.read_text() for path in SQL.glob(f"*_{name}.sql")]
        text = next(text for text in texts if f"CREATE TABLE IF NOT EXISTS {name}\n" in text)
        lines = text.split("(", 1)[1].split("ENGINE")[0].splitlines()
        columns = {words[0] for line in lines if len(words := line.split()) > 1 and "DEFAULT" not in line}
        for path in SQL.glob("*.sql"):
            if f"ALTER TABLE {name}\n" in (later := path.read_text()):
                columns |= set(re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", later))
        assert set(table.column_names) == columns, name


async def test_only_what_changed_is_written_again() -> None:
    """After a change the mirror is brought up to date with that change alone."""
    service = await filled()
    before = service.catalog.version
    await service.create_feature(feature_from("acme", {"id": "new"}))

    tables = mirror_tables(service.catalog, "tally.catalog", after=before)

    assert [(name, table.num_rows) for name, table in tables] == [("features", 1), ("catalog_version", 1)]


async def test_the_mirror_follows_changes_and_outlasts_an_outage_of_the_store() -> None:
    """Nothing is lost when the store is away in the middle: what was not written whole is written again."""
    client = CatalogClient(MemoryCatalogLog())
    await client.start()
    service, store = CatalogService(client), RememberingStore()
    mirror = CatalogMirror(client, store, "tally.catalog")
    running = asyncio.create_task(mirror.run(gather_s=0, retry_first_s=0))

    await service.create_customer(customer_from("acme", {"id": "c"}))
    await until(store, 0)
    store.failures = 1
    await service.create_customer(customer_from("acme", {"id": "d"}))
    await until(store, 1)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    names = {row["id"] for table, rows in store.inserts if table == "customers" for row in rows.to_pylist()}
    assert names == {"c", "d"}
    await client.stop()


async def until(store: RememberingStore, version: int) -> None:
    """Wait for the mirror to say this version."""
    async with asyncio.timeout(30):
        while store.version != version:
            store.grown.clear()
            await store.grown.wait()
