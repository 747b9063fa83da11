"""The table of first sightings: on RocksDB as in memory, and what only the disk can do."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from table_contract import ClosableTable, TableContract, key, sighting
from xxhash import xxh3_128_digest

from pipeline.adapters import rocks
from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.adapters.rocks_fake import MemoryTable
from pipeline.ports import Border, Marker

CACHE_BYTES = 8 << 20


class TestMemoryTable(TableContract):
    """The fake."""

    table = staticmethod(MemoryTable)


class TestSightingTable(TableContract):
    """The real one."""

    table: Callable[[], ClosableTable]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.table = lambda: Tables(tmp_path, CACHE_BYTES).open("t-0")


def reopened(folder: Path, name: str = "t-0") -> SightingTable:
    """The table as the next process finds it."""
    return Tables(folder, CACHE_BYTES).open(name)


def test_what_was_closed_is_there_again_with_its_marker(tmp_path: Path) -> None:
    """A worker that is started again reads back only what is new."""
    table = reopened(tmp_path)
    table.restore([(key(n), sighting(n)) for n in range(1000)], Marker(7, 1, 99))
    table.put({key(5000): sighting(5000)})
    table.close()
    table = reopened(tmp_path)
    assert table.marker() == Marker(7, 1, 99)
    assert len(table.get_many([key(n) for n in range(1000)])) == 1000
    assert table.get_many([key(5000)]) == {key(5000): sighting(5000)}
    assert table.ids_estimate() > 0
    table.close()


def hashed(number: int) -> bytes:
    """A key as ids have it: the filter takes all its bits for random."""
    return xxh3_128_digest(number.to_bytes(8, "little"))


def test_new_ids_are_looked_for_in_the_filter_alone(tmp_path: Path) -> None:
    """In a new table, and in one that was closed in order; every id that is there is found."""
    table = reopened(tmp_path)
    here, others = [hashed(n) for n in range(20_000)], [hashed(n) for n in range(100_000, 120_000)]
    table.put({one: sighting(1) for one in here})
    table.close()
    table = reopened(tmp_path)
    assert table._whole
    asked: list[bytes] = []
    get = table._db.get
    table._db = type("Db", (), {"get": lambda self, keys: asked.extend(keys) or get(keys)})()  # type: ignore[assignment]
    assert table.get_many(others) == {}
    assert len(asked) < 1000
    assert table.get_many(here) == dict.fromkeys(here, sighting(1))


def test_without_its_filter_a_table_is_asked_for_everything_until_the_filter_is_whole(tmp_path: Path) -> None:
    """After a kill nothing says what the table holds: the filter is made anew, a part with each block."""
    table = reopened(tmp_path)
    ids = [hashed(n) for n in range(30_000)]
    table.put({one: sighting(1) for one in ids})
    table.close()
    saved = (tmp_path / "t-0" / "seen-ids").read_bytes()
    table = reopened(tmp_path)
    table.put({hashed(30_000): sighting(2)})
    table._db.flush(True)
    table._db.close()  # killed: what was saved before knows nothing of the last id
    (tmp_path / "t-0" / "seen-ids").write_bytes(saved)
    table = reopened(tmp_path)
    assert not table._whole
    sweeps = 0
    while not table._whole:
        assert table.get_many([*ids[:3], hashed(30_000), hashed(99_999)]) == {
            **dict.fromkeys(ids[:3], sighting(1)),
            hashed(30_000): sighting(2),
        }
        table.put({hashed(200_000 + sweeps): sighting(3)})
        sweeps += 1
    assert sweeps > 2
    found = table.get_many([*ids, hashed(30_000), *[hashed(200_000 + n) for n in range(sweeps)]])
    assert len(found) == len(ids) + 1 + sweeps
    table.close()


def test_a_filter_of_ids_that_are_mostly_gone_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that expire stay in it; it must not grow for ever."""
    monkeypatch.setattr(rocks, "_SEEN_IDS_FIRST", 1000)
    table = reopened(tmp_path)
    ids = [hashed(n) for n in range(20_000)]
    table.put({one: sighting(1) for one in ids})
    table.compact()  # the number of ids is an estimate until then
    assert len(table._seen) == 20_000
    table.expire(ids[1000:], Border(0, 5))
    table.compact()
    table.expire([], Border(0, 6))
    while not table._whole:
        table.get_many(ids[:1])
    assert len(table._seen) == 1000
    assert table.get_many(ids) == dict.fromkeys(ids[:1000], sighting(1))
    table.close()


def test_after_a_kill_the_marker_is_no_newer_than_the_entries(tmp_path: Path) -> None:
    """Without a write-ahead log the end is lost, but never an entry below the marker."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.adapters.rocks import Tables\n"
        "from pipeline.ports import Marker\n"
        "table = Tables(Path(sys.argv[1]), 8 << 20).open('t-0')\n"
        "for n in range(1, 40):\n"
        "    entries = [((n * 5000 + i).to_bytes(16, 'little'), bytes(20)) for i in range(5000)]\n"
        "    table.restore(entries, Marker(n, 0, n))\n"
        "    if n % 10 == 0:\n"
        "        table._db.flush(True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    table = reopened(tmp_path)
    reached = table.marker().offset
    assert 30 <= reached < 40
    keys = [key(n * 5000 + i) for n in range(1, reached + 1) for i in range(0, 5000, 500)]
    assert len(table.get_many(keys)) == len(keys)
    table.close()


def _without_manifest_pointer(table: Path) -> None:
    (table / "CURRENT").write_bytes(b"nonsense\n")


def _without_a_file(table: Path) -> None:
    next(table.glob("*.sst")).unlink()


@pytest.mark.parametrize("damage", [_without_manifest_pointer, _without_a_file])
@pytest.mark.parametrize("folder", ["plain", "blocks of a locksmith"])
def test_a_damaged_table_is_thrown_away(tmp_path: Path, folder: str, damage: Callable[[Path], None]) -> None:
    """It is a cache: an empty one is read back from the changelog. The folder's name has no say in it."""
    place = tmp_path / folder
    table = reopened(place)
    table.restore([(key(1), sighting(1))], Marker(1, 0, 1))
    table.close()
    damage(place / "t-0")
    with capture_logs() as logs:
        table = reopened(place)
    assert [entry["event"] for entry in logs] == ["table_thrown_away"]
    assert (table.marker(), table.get_many([key(1)])) == (Marker(0, 0, 0), {})
    table.close()


def test_a_table_in_use_by_another_worker_is_not_touched(tmp_path: Path) -> None:
    """The message says how two workers of one machine get along."""
    table = reopened(tmp_path)
    table.put({key(1): sighting(1)})
    with pytest.raises(OSError, match="TALLY_WORKER_DIR"):
        reopened(tmp_path)
    assert table.get_many([key(1)])
    table.close()


def test_a_table_that_was_there_before_uses_the_shared_cache(tmp_path: Path) -> None:
    """RocksDB's options file names no cache: a table opened by it alone would read from 8 MB of its own."""
    for _ in range(2):
        tables = Tables(tmp_path, CACHE_BYTES)
        one, other = tables.open("t-0"), tables.open("t-1")
        one.restore([(key(n), sighting(n)) for n in range(20_000)])
        one.compact()
        one.get_many([key(n) for n in range(20_000)])
        assert other.cached_bytes() == one.cached_bytes() > 100_000
        one.close()
        other.close()


def test_tables_of_one_worker_do_not_meet(tmp_path: Path) -> None:
    """A folder each, one cache."""
    tables = Tables(tmp_path, CACHE_BYTES)
    one, two = tables.open("t-0"), tables.open("t-1")
    one.put({key(1): sighting(1)})
    assert two.get_many([key(1)]) == {}
    one.close()
    assert two.marker() == Marker(0, 0, 0)
    two.close()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99), st.booleans()), max_size=30),
    st.lists(st.integers(1, 30), max_size=5),
)
def test_rocksdb_and_memory_hold_the_same(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int, bool]], cuts: list[int]
) -> None:
    """Whatever is restored in whatever batches."""
    real, fake = reopened(tmp_path_factory.mktemp("table")), MemoryTable()
    edges = sorted({0, len(entries), *[cut for cut in cuts if cut < len(entries)]})
    for start, end in pairwise(edges):
        batch = [(key(n), sighting(offset, epoch=int(later))) for n, offset, later in entries[start:end]]
        for table in (real, fake):
            table.restore(batch, Marker(end, 0, end))
    keys = [key(n) for n in range(6)]
    assert real.get_many(keys) == fake.get_many(keys)
    assert real.marker() == fake.marker()
    real.close()
