"""Changelog records: what a block added, and how far the changelog reaches."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.changelog import ENTRIES_MAX, BadChange, Change, pack_changes, unpack_change

ENTRIES = st.dictionaries(st.binary(min_size=16, max_size=16), st.binary(min_size=20, max_size=20), max_size=20)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(1, 99), ENTRIES)
def test_what_a_block_added_comes_back(epoch: int, start: int, length: int, entries: dict[bytes, bytes]) -> None:
    """Entries in their order, with the block's range and epoch."""
    (record,) = pack_changes(epoch, start, start + length, entries)
    assert unpack_change(record) == Change(epoch, start, start + length, list(entries.items()))


def test_a_block_that_added_nothing_still_says_how_far_it_reaches() -> None:
    """Otherwise a reader could not tell a quiet block from a missing one."""
    assert [unpack_change(r) for r in pack_changes(1, 5, 9, {})] == [Change(1, 5, 9, [])]


def test_only_the_last_record_of_a_large_block_reaches_its_end() -> None:
    """Whoever finds only the first ones knows that the block is not all there."""
    entries = {n.to_bytes(16, "little"): n.to_bytes(20, "little") for n in range(2 * ENTRIES_MAX + 1)}
    records = list(pack_changes(0, 10, 90, entries))
    changes = [unpack_change(record) for record in records]
    assert [c.end for c in changes] == [10, 10, 90]
    assert dict(entry for c in changes for entry in c.entries) == entries
    assert max(map(len, records)) < 512 * 1024


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(1, 99), ENTRIES)
def test_records_of_the_former_version_are_read(
    epoch: int, start: int, length: int, entries: dict[bytes, bytes]
) -> None:
    """A changelog outlives the workers that wrote it."""
    pieces = b"".join(key + sighting for key, sighting in entries.items())
    record = struct.pack("<BIQQ", 2, epoch, start, start + length) + pieces
    assert unpack_change(record) == Change(epoch, start, start + length, list(entries.items()))


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x02",
        b"\x03",
        b"\x01" + bytes(20),
        bytes(21),
        b"\x02" + bytes(21),
        b"\x03" + bytes(21),
        b"\x04" + bytes(20),
    ],
)
def test_a_damaged_record_or_one_of_another_version_is_refused(record: bytes) -> None:
    """Reading on would lose first sightings."""
    with pytest.raises(BadChange):
        unpack_change(record)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_change_or_a_bad_one(record: bytes) -> None:
    """Never another exception."""
    try:
        unpack_change(record)
    except BadChange as error:
        assert "record" in str(error)  # noqa: PT017 - either outcome is right
