"""A user's own SELECT: answers in three shapes, nothing written."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from stored_events import StoredEvent, insert_block

from consumers.sql_query import SqlFormat, SqlRefused, run_sql
from pipeline.adapters.clickhouse import Store

EVENT = StoredEvent("acme", "anna", datetime(2024, 3, 1, tzinfo=UTC), 0, value=Decimal("0.1"))


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [("csv", '"client_id","total"\n"anna",0.1\n'), ("json", None), ("table", None)],
)
def test_an_answer_in_each_format(store: Store, fmt: SqlFormat, expected: str | None) -> None:
    """A trailing semicolon does no harm; JSON has decimals as strings."""
    insert_block(store, [EVENT], start=0, end=1)
    text = run_sql(store, "SELECT client_id, total FROM v_events_daily; ", fmt)
    assert expected is None or text == expected
    if fmt == "json":
        assert json.loads(text) == {"client_id": "anna", "total": "0.1"}
    assert "anna" in text


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO sets (account) VALUES ('x')",
        "DROP TABLE events",
        "TRUNCATE TABLE events",
        "ALTER TABLE events DELETE WHERE 1",
        "CREATE TABLE mine (n UInt8) ENGINE = Memory",
        "OPTIMIZE TABLE events FINAL",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
    ],
)
def test_writes_are_refused(store: Store, sql: str) -> None:
    """By the server, whatever the text looks like; nothing is changed."""
    insert_block(store, [EVENT], start=0, end=1)
    with pytest.raises(SqlRefused):
        run_sql(store, sql, "table")
    assert store.query("SELECT count() FROM events").rows == [(1,)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "no statement"),
        ("DROP TABLE events", "only reading"),
        ("SELEC 1", "Syntax error"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELECT number FROM numbers(2000000)", "LIMIT"),
    ],
)
def test_errors_say_what_to_do(store: Store, sql: str, message: str) -> None:
    """In the user's words."""
    with pytest.raises(SqlRefused, match=message):
        run_sql(store, sql, "csv")
