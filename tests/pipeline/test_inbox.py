"""The inbox: fetched records as one gapless range."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_loop import run_virtually

from pipeline.block import LogRecord
from pipeline.inbox import GapInLog, Inbox


def record(offset: int, lines: int = 1) -> LogRecord:
    """A record of that many lines, two bytes each."""
    return LogRecord(offset, 0, b"\n".join([b"x"] * lines), ())


@given(
    st.lists(st.lists(st.integers(1, 3), max_size=4), max_size=6),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), max_size=8),
)
def test_however_it_is_filled_and_emptied_ranges_follow_each_other(
    batches: list[list[int]], bounds: list[tuple[int, int]]
) -> None:
    """Every record comes out once, in order; ranges have no gaps, though offsets may."""
    inbox = Inbox(10)
    at, given_records = 10, []
    for gaps in batches:
        records = []
        for gap in gaps:
            records.append(record(at + gap - 1))
            at += gap
        inbox.add(inbox.end, at, records)
        given_records += records
    taken = [inbox.take(rows, size) for rows, size in bounds]
    taken.append(inbox.take(10**6, 10**9))
    assert [r for found in taken for r in found.records] == given_records
    assert [found.start for found in taken] == [10, *[found.end for found in taken[:-1]]]
    assert (taken[-1].end, inbox.rows, inbox.bytes) == (at, 0, 0)


def test_a_range_keeps_within_its_bounds_but_holds_at_least_one_record() -> None:
    """A record larger than a block makes a block of its own."""
    inbox = Inbox(0)
    inbox.add(0, 4, [record(0, 5), record(1, 2), record(2, 2), record(3, 9)])
    assert [len(inbox.take(4, 100).records) for _ in range(3)] == [1, 2, 1]


def test_bytes_bound_a_range_too() -> None:
    """Whichever bound is reached first."""
    inbox = Inbox(0)
    inbox.add(0, 3, [record(n, 2) for n in range(3)])  # three bytes each
    assert inbox.take(100, 6).end == 2


@pytest.mark.parametrize(("start", "end"), [(1, 2), (6, 7), (5, 4)])
def test_a_batch_that_does_not_follow_is_refused(start: int, end: int) -> None:
    """Going on would lose what lies between."""
    inbox = Inbox(0)
    inbox.add(0, 5, [record(2)])
    with pytest.raises(GapInLog):
        inbox.add(start, end, [])


def test_a_block_is_taken_again_up_to_its_old_end_whatever_came_since() -> None:
    """The end comes from the intent, also where it lies behind the last record."""
    inbox = Inbox(0)
    inbox.add(0, 9, [record(0), record(3), record(7)])
    assert inbox.take_until(5) == (0, 5, [record(0), record(3)])
    assert inbox.take(9, 99) == (5, 9, [record(7)])
    with pytest.raises(GapInLog):
        inbox.take_until(10)


def test_waiting_ends_when_the_range_reaches_beyond_the_offset() -> None:
    """And not before, though batches come."""

    async def go() -> None:
        inbox = Inbox(0)
        waiting = asyncio.create_task(inbox.wait_beyond(4))
        await asyncio.sleep(1)
        inbox.add(0, 4, [record(1)])
        await asyncio.sleep(1)
        assert not waiting.done()
        inbox.add(4, 5, [])
        await waiting

    run_virtually(go)
