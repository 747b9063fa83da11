"""What the gateway reads in a SQL text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local.statement import Kind, StatementError, outline


@pytest.mark.parametrize(
    ("text", "kind", "format_name"),
    [
        (b"SELECT 1", Kind.READ, ""),
        (b"/* FORMAT CSV */ select 'FORMAT JSON' -- FORMAT TSV", Kind.READ, ""),
        (b"SELECT 1 FORMAT JSON", Kind.READ, "JSON"),
        (b"SELECT 1 format CSVWithNames SETTINGS max_threads = 1;\n", Kind.READ, "CSVWithNames"),
        (b"SELECT (SELECT 1) AS format, `FORMAT` FROM t", Kind.READ, ""),
        (b"SELECT format FROM t", Kind.READ, ""),
        (b"WITH 1 AS x SELECT x", Kind.READ, ""),
        (b"WITH 1 AS x INSERT INTO t SELECT x", Kind.OTHER, ""),
        (b"(SELECT 1) UNION ALL (SELECT 2) FORMAT TSV", Kind.READ, "TSV"),
        (b"SHOW TABLES FORMAT JSON", Kind.TELL, "JSON"),
        (b"CREATE TABLE t (a Int8) ENGINE = Memory", Kind.OTHER, ""),
        (b"INSERT INTO t SELECT 1", Kind.OTHER, ""),
        (b"INSERT INTO t (a, b) VALUES (1, 'FORMAT CSV')", Kind.INSERT_VALUES, ""),
        (b"INSERT INTO values VALUES (1)", Kind.INSERT_VALUES, ""),
        (b"insert into format format CSV\n1", Kind.INSERT_DATA, "CSV"),
        (b"SET max_threads = 1", Kind.SESSION, ""),
    ],
)
def test_kind_and_format_are_read_outside_of_strings_and_comments(text: bytes, kind: Kind, format_name: str) -> None:
    """Only words that the engine's parser would see count."""
    statement = outline(text)
    assert (statement.kind, statement.format) == (kind, format_name)


@given(st.binary(), st.sampled_from([b"\n", b" \n", b"\r\n", b"\t\r\n"]))
def test_data_of_an_insert_begin_after_one_line_end(data: bytes, end: bytes) -> None:
    """Whatever bytes follow, they arrive as they are."""
    head = b"INSERT INTO `t'` (`a)`, b) SETTINGS insert_deduplication_token = 'FORMAT x' FORMAT RowBinary"
    text = head + end + data
    statement = outline(text)
    assert statement.kind is Kind.INSERT_DATA
    assert text[: statement.sql_end] == head[: -len(b"FORMAT RowBinary")]
    assert text[statement.data_start :] == data


def test_a_text_that_is_remembered_is_read_like_a_longer_one() -> None:
    """What is remembered is the outline, not data or parameters; long texts are read each time."""
    for blanks in (b" ", b" " * 20_000):
        assert [outline(b"SELECT" + blanks + b"1 FORMAT CSV").format for _ in range(2)] == ["CSV", "CSV"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"", "SYNTAX_ERROR"),
        (b" -- nothing", "SYNTAX_ERROR"),
        (b"SELECT 1; SELECT 2", "SYNTAX_ERROR"),
        (b"SELECT 1 INTO OUTFILE '/tmp/x'", "NOT_IMPLEMENTED"),
        (b"INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV", "NOT_IMPLEMENTED"),
        (b"INSERT INTO t SELECT * FROM input('a Int8') FORMAT CSV\n1", "NOT_IMPLEMENTED"),
        (b"CREATE TEMPORARY TABLE t (a Int8)", "NOT_IMPLEMENTED"),
    ],
)
def test_what_cannot_be_run_over_http_is_refused(text: bytes, name: str) -> None:
    """Refused by name instead of half-done."""
    with pytest.raises(StatementError) as caught:
        outline(text)
    assert caught.value.name == name
