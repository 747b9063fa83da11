"""Decode: records become lines, and nothing vanishes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.block import Line, LogRecord
from pipeline.stages.decode import catalog_stamp, decode_records

GOOD = b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z"}'
NOW_MS = 1_790_000_000_000


def record(value: bytes | None, *headers: tuple[str, bytes], offset: int = 5) -> LogRecord:
    """A record of the events topic."""
    return LogRecord(offset, NOW_MS, value, headers)


def decode(*records: LogRecord) -> list[Line]:
    """As a block does."""
    return list(decode_records(records, default_account="default", ahead_max_us=0))


def test_lines_keep_their_place_and_blank_ones_count_for_nothing() -> None:
    """Numbers are those of the lines as they lie, so that a position never moves."""
    lines = decode(record(GOOD + b"\n\n \r\n" + GOOD + b"\r\n" + b"broken\n"))
    assert [(line.offset, line.line, line.event is not None) for line in lines] == [
        (5, 0, True),
        (5, 3, True),
        (5, 4, False),
    ]


@pytest.mark.parametrize("value", [None, b"", b"\n", b" \r\n\t"])
def test_a_record_without_any_line_is_one_refused_line(value: bytes | None) -> None:
    """So that it is seen, and counted."""
    (line,) = decode(record(value))
    assert (line.offset, line.line, line.errors[0].code) == (5, 0, "syntax")


def test_the_account_comes_from_the_header_else_from_the_settings() -> None:
    """Never from the body."""
    assert [line.account for line in decode(record(GOOD), record(GOOD, ("account", "ä".encode())))] == ["default", "ä"]


@pytest.mark.parametrize(("header", "code"), [(b"\xff", "encoding"), (b"", "range"), (b"x" * 257, "range")])
def test_a_broken_account_header_refuses_all_its_lines(header: bytes, code: str) -> None:
    """With its name; they stay with nobody."""
    lines = decode(record(GOOD + b"\n" + GOOD, ("account", header)))
    assert [(line.event, line.errors[0].field, line.errors[0].code) for line in lines] == [(None, "account", code)] * 2


def test_a_timestamp_ahead_of_the_append_time_is_refused() -> None:
    """Arrival is the broker's time, the same whenever the line is read again."""
    later = b'{"clientId":"c","timestamp":"2099-01-01T00:00:00Z"}'
    assert decode(record(later))[0].errors[0].field == "timestamp"


def test_a_door_says_that_it_filled_in_the_timestamps() -> None:
    """Only by the exact word."""
    lines = decode(record(GOOD, ("defaulted", b"timestamp")), record(GOOD, ("defaulted", b"yes")))
    assert [line.defaulted for line in lines] == [True, False]


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_lines_with_an_event_or_with_reasons(values: list[bytes]) -> None:
    """Every record has at least one line, in the log's order."""
    lines = decode(*[record(value, offset=n) for n, value in enumerate(values)])
    assert {line.offset for line in lines} == set(range(len(values)))
    assert [(line.offset, line.line) for line in lines] == sorted((line.offset, line.line) for line in lines)
    assert all((line.event is None) == bool(line.errors) for line in lines)


@pytest.mark.parametrize(
    ("stamps", "newest"),
    [([], -1), ([b"3", b"12", b"7"], 12), ([b"", b"-1", b"x", b"\xff", b"1" * 19], -1), ([b"0"], 0)],
)
def test_the_newest_catalog_stamp_counts_and_nonsense_says_nothing(stamps: list[bytes], newest: int) -> None:
    """Anybody may write headers."""
    assert catalog_stamp(record(GOOD, ("catalog", stamp)) for stamp in stamps) == newest
