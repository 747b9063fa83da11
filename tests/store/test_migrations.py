"""Migrations make the store, once, the same for both engine families."""

import random
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import migrate as migrations
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.rollup_view import MARKED
from pipeline.migrate import MigrationError, migrate, pending, sql_dir, variables
from pipeline.settings import Settings

FILES = sorted(path.name for path in sql_dir().glob("*.sql"))


def _settings(url: str) -> Settings:
    return Settings(clickhouse=url, database=f"migrated_{random.SystemRandom().randrange(1 << 40)}")


def test_everything_is_applied_in_order_and_only_once(clickhouse_url: str) -> None:
    """The database is created; a second run has nothing to do."""
    settings = _settings(clickhouse_url)
    assert pending(settings) == FILES
    assert migrate(settings) == FILES
    assert pending(settings) == []
    assert migrate(settings) == []


def test_a_landed_file_must_not_be_edited(clickhouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum tells; the message says what to do."""
    folder = tmp_path / "sql"
    shutil.copytree(sql_dir(), folder)
    monkeypatch.setattr(migrations, "sql_dir", lambda: folder)
    settings = _settings(clickhouse_url)
    migrate(settings)
    (folder / FILES[3]).write_text((folder / FILES[3]).read_text() + "-- a thought afterwards\n")
    with pytest.raises(MigrationError, match=f"{FILES[3]}.*put the change into a new one"):
        pending(settings)
    with pytest.raises(MigrationError, match="put changes into a new file"):
        migrate(settings)


def test_a_new_file_is_pending(clickhouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is new is applied."""
    folder = tmp_path / "sql"
    shutil.copytree(sql_dir(), folder)
    monkeypatch.setattr(migrations, "sql_dir", lambda: folder)
    settings = _settings(clickhouse_url)
    migrate(settings)
    (folder / "9000_more.sql").write_text("CREATE VIEW more AS SELECT 1 AS one;\n")
    assert pending(settings) == ["9000_more.sql"]
    assert migrate(settings) == ["9000_more.sql"]


def test_files_are_numbered_without_gaps() -> None:
    """0001, 0002, …: what lands next is plain to see."""
    assert [name[:5] for name in FILES] == [f"{i:04}_" for i in range(1, len(FILES) + 1)]


@pytest.mark.parametrize("family", ["MergeTree", "ReplicatedMergeTree"])
def test_every_statement_parses_for_both_engine_families(store: Store, family: str) -> None:
    """What the embedded engine cannot run is at least read by its parser."""
    values = variables(Settings(engine_family=family))  # type: ignore[arg-type]
    for path in sorted(sql_dir().glob("*.sql")):
        text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], path.read_text())
        for statement in filter(str.strip, re.sub(r"--.*", "", text).split(";\n")):
            (formatted,) = store.query("SELECT formatQuery({sql:String})", {"sql": statement}).rows[0]
            assert ("Replicated" in formatted) == (family == "ReplicatedMergeTree" and "MergeTree" in statement)


def test_every_table_view_and_column_has_a_comment(store: Store) -> None:
    """Analysts read the store without asking."""
    bare_tables = store.query(
        "SELECT name FROM system.tables"
        " WHERE database = currentDatabase() AND comment = '' AND name != 'schema_versions'"
    )
    bare_columns = store.query(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND comment = ''"
        " AND table != 'schema_versions' AND table NOT LIKE 'ingest\\_to\\_%' AND table NOT LIKE 'corrections\\_to\\_%'"
    )
    assert (bare_tables.rows, bare_columns.rows) == ([], [])


def test_every_target_of_a_block_remembers_tokens(store: Store) -> None:
    """A target without a window would double the first block that is sent again."""
    rows = store.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
        " AND name != 'schema_versions' AND engine_full NOT LIKE '%non\\_replicated\\_deduplication\\_window = 100000%'"
    )
    assert rows.rows == []


def test_views_for_people_can_be_read(store: Store) -> None:
    """Each of them runs."""
    views = store.query("SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'v\\_%'").rows
    assert len(views) >= 8
    for (name,) in views:
        assert store.query(f"SELECT * FROM {name}").rows == []


def test_a_month_that_rests_is_merged_into_one_part(clickhouse_url: str) -> None:
    """A day after its last insert, here a second; what it holds stays the same."""
    settings = _settings(clickhouse_url)
    migrate(settings)
    with closing(Store(settings)) as store:
        told = _made(store, "events")
        assert "min_age_to_force_merge_seconds = 86400, min_age_to_force_merge_on_partition_only = 1" in told
        for id_ in ("a", "b", "c"):
            row = "('acme', '2026-10-01 00:00:00', {id:String})"
            store.command(f"INSERT INTO events (account, timestamp, transaction_id) VALUES {row}", {"id": id_})
        assert _parts(store, "events") == [3]
        store.command("ALTER TABLE events MODIFY SETTING min_age_to_force_merge_seconds = 1")
        _until_merged(store, "events")
        assert store.query("SELECT transaction_id FROM events ORDER BY transaction_id").rows == [("a",), ("b",), ("c",)]


def test_cells_that_rest_are_merged_into_one_part(clickhouse_url: str) -> None:
    """In every rollup, a day after the last insert, here a second; a cell's rows become one, which adds up to the
    same."""
    settings = _settings(clickhouse_url)
    migrate(settings)
    with closing(Store(settings)) as store:
        for rollup, (_, when) in MARKED.items():
            assert "min_age_to_force_merge_seconds = 86400" in _made(store, rollup)
            for number in (1, 2, 4):
                cell = f"('acme', '2026-10-01', {number})"
                store.command(f"INSERT INTO {rollup} (account, {when}, events) VALUES {cell}")
            assert _parts(store, rollup) == [3]
            store.command(f"ALTER TABLE {rollup} MODIFY SETTING min_age_to_force_merge_seconds = 1")
        for rollup in MARKED:
            _until_merged(store, rollup)
            assert store.query(f"SELECT events FROM {rollup}").rows == [(7,)]


def _made(store: Store, table: str) -> str:
    """The statement that makes a table."""
    told = "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
    return str(store.query(told, {"table": table}).rows[0][0])


def _until_merged(store: Store, table: str) -> None:
    """Until its one partition is one part."""
    end = time.monotonic() + 120
    while _parts(store, table) != [1]:
        assert time.monotonic() < end, f"the parts of {table} are not merged"
        time.sleep(0.2)


def _parts(store: Store, table: str) -> list[int]:
    """Number of parts of each of its partitions."""
    rows = store.query(
        "SELECT partition, count() FROM system.parts WHERE database = currentDatabase() AND table = {table:String}"
        " AND active GROUP BY partition ORDER BY partition",
        {"table": table},
    ).rows
    return [number for _, number in rows]
