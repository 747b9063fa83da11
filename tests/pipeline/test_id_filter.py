"""The filter of ids: never a wrong no, few wrong yeses, and a file that is whole or not there."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pipeline.adapters.id_filter import IdFilter
from pipeline.ports import Border


def keys(count: int, seed: int = 0) -> list[bytes]:
    """Keys as hashes are."""
    draw = random.Random(seed)
    return [draw.randbytes(16) for _ in range(count)]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 400), max_size=6), st.integers(0, 99))
def test_whatever_was_added_is_there_also_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    """Over any number of segments, added in any portions."""
    path = tmp_path_factory.mktemp("filter") / "ids"
    filter_ = IdFilter(path, first_ids=64)
    everything: list[bytes] = []
    for number, size in enumerate(sizes):
        some = keys(size, seed * 10 + number)
        filter_.add(b"".join(some))
        everything += some
        assert filter_.among(everything) == everything
    filter_.save(Border(3, 2**41))
    again = IdFilter(path, first_ids=64)
    assert again.among(everything) == everything
    assert (again.reach, len(again)) == (Border(3, 2**41), sum(sizes))
    other = keys(500, seed + 10_000)
    assert again.among(other) == filter_.among(other)
    again.add(b"".join(other))
    assert again.among(everything + other) == everything + other


def test_it_is_seldom_wrong_when_full(tmp_path: Path) -> None:
    """Less than one of a thousand in each segment: each wrong yes asks the store in vain."""
    filter_ = IdFilter(tmp_path / "ids", first_ids=50_000)
    filter_.add(b"".join(keys(50_000)))
    assert len(filter_.among(keys(100_000, 1))) < 100


def test_what_was_not_saved_is_not_there(tmp_path: Path) -> None:
    """Nor does the reach tell of it."""
    path = tmp_path / "ids"
    filter_ = IdFilter(path)
    one, other = keys(10), keys(10, 1)
    filter_.add(b"".join(one))
    filter_.save(Border(0, 5))
    filter_.add(b"".join(other))
    again = IdFilter(path)
    assert again.among(one) == one
    assert again.among(other) == []
    assert again.reach == Border(0, 5)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "nonsense"])
def test_a_damaged_file_is_no_filter(tmp_path: Path, damage: str) -> None:
    """It reaches nowhere, which is what a session compares with the table's border."""
    path = tmp_path / "ids"
    filter_ = IdFilter(path, first_ids=64)
    filter_.add(b"".join(keys(100)))
    filter_.save(Border(0, 5))
    found = bytearray(path.read_bytes())
    if damage == "bit":
        found[len(found) // 2] ^= 4
    path.write_bytes({"bit": found, "cut": found[:-9], "empty": b"", "nonsense": b"x" * 99}[damage])
    with capture_logs() as logs:
        again = IdFilter(path)
    assert [entry["event"] for entry in logs] == ["expired_ids_damaged"]
    assert (again.reach, len(again), again.among(keys(100))) == (Border(0, 0), 0, [])


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing beside it; what a kill leaves beside it is cleared away."""
    path = tmp_path / "ids"
    filter_ = IdFilter(path)
    filter_.add(b"".join(keys(10)))
    filter_.save(Border(0, 5))

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        filter_.save(Border(0, 9))
    assert filter_.reach == Border(0, 5)
    assert [file.name for file in tmp_path.iterdir()] == ["ids"]
    (tmp_path / "ids.killed").write_bytes(b"half")
    assert IdFilter(path).reach == Border(0, 5)
    assert [file.name for file in tmp_path.iterdir()] == ["ids"]
