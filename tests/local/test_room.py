"""Disks that refuse a write: what the engine itself does with that, and that nothing is lost by it here."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from engine_process import EngineProcess

from pipeline.local.room import Room

_ALONE = """
import resource, signal, sys
from chdb import _chdb

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
connection = _chdb.connect(sys.argv[1])
connection.query("CREATE TABLE t (k UInt64) ENGINE = MergeTree ORDER BY k", "TSV", params={})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
connection.query("INSERT INTO t SELECT number FROM numbers(10)", "TSV", params={})
"""
_TOKEN = {"insert_deduplication_token": "block-5"}
_FIVE = "INSERT INTO t SELECT number % 30, toString(number), 1 FROM numbers(3000)"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine with a table of four parts, 3,000 rows each."""
    found = EngineProcess(tmp_path / "data")
    _ask(
        found,
        "CREATE TABLE t (d UInt8, k String, n SimpleAggregateFunction(sum, Int64)) ENGINE = AggregatingMergeTree"
        " ORDER BY (k, d) SETTINGS non_replicated_deduplication_window = 100",
    )
    _ask(found, "SYSTEM STOP MERGES t")
    for number in range(4):
        _ask(found, _FIVE, insert_deduplication_token=f"block-{number}")
    _ask(found, "SYSTEM START MERGES t")
    yield found
    found.kill()


def _ask(engine: EngineProcess, sql: str, **settings: str) -> str:
    answer = httpx.post(engine.url, params=settings, content=sql, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.text.strip()


def _refused(engine: EngineProcess, sql: str, **settings: str) -> None:
    answer = httpx.post(engine.url, params=settings, content=sql, timeout=60)
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (500, "243"), answer.text
    assert "NOT_ENOUGH_SPACE" in answer.text


def _full(engine: EngineProcess, work: Callable[[], None]) -> None:
    """No file may grow while that is done."""
    process = psutil.Process(engine.process.pid)
    _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    work()
    process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))


def _rows(engine: EngineProcess) -> str:
    return _ask(engine, "SELECT sum(n) FROM t")


def _begun_anew(engine: EngineProcess) -> str:
    """It ends by itself within seconds; what it logged."""
    told = engine.process.communicate(timeout=60)[1]
    assert engine.process.returncode == 1
    engine.start()
    return str(told)


def test_the_engine_alone_takes_a_refused_write_for_done(tmp_path: Path) -> None:
    """Why `pipeline.local.room` is there. A version that raises an error here needs it no more."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path / "data")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    sizes = [file.stat().st_size for file in tmp_path.glob("data/store/*/*/all_*/*")]
    assert sizes
    assert sum(sizes) == 0


def test_an_insert_that_was_not_written_is_refused_and_counts_once_when_sent_again(engine: EngineProcess) -> None:
    """Also though its token was noted: the engine ends, and begins without the part and its token."""
    _full(engine, lambda: _refused(engine, _FIVE, **_TOKEN))
    assert "parts that were never written" in _begun_anew(engine)
    assert _rows(engine) == "12000"
    _ask(engine, _FIVE, **_TOKEN)
    _ask(engine, _FIVE, **_TOKEN)
    assert _rows(engine) == "15000"


def test_data_that_cannot_be_put_by_are_refused(engine: EngineProcess) -> None:
    """Those of INSERT … FORMAT go through a file."""
    _full(engine, lambda: _refused(engine, "INSERT INTO t FORMAT TSV\n1\ta\t1\n"))
    assert _rows(engine) == "12000"


def test_a_merge_that_was_not_written_loses_nothing(engine: EngineProcess) -> None:
    """Its sources are taken again."""
    _full(engine, lambda: _refused(engine, "OPTIMIZE TABLE t FINAL"))
    _begun_anew(engine)
    assert _rows(engine) == "12000"
    _ask(engine, "OPTIMIZE TABLE t FINAL")
    assert _rows(engine) == "12000"


def test_the_last_of_the_disk_is_not_taken(tmp_path: Path) -> None:
    """Inserts are refused and merges stop; what makes room is not refused."""
    engine = EngineProcess(tmp_path / "data", "--reserve-bytes", str(1 << 60))
    try:
        _ask(engine, "CREATE TABLE t (k UInt64) ENGINE = MergeTree ORDER BY k")
        _refused(engine, "INSERT INTO t VALUES (1)")
        _refused(engine, " -- a block\n/* of */ insert into t select 1")
        _refused(engine, "WITH 1 AS one INSERT INTO t SELECT one")
        _ask(engine, "DROP TABLE t")
        _ask(engine, "SELECT sleep(1)")
    finally:
        told = engine.stop()
    assert "merges stop: no room" in told


def test_room_is_there_where_there_is_room(tmp_path: Path) -> None:
    """The reserve and what an insert becomes."""
    room = Room(tmp_path, reserve_bytes=1)
    room.require(1)
    room.prove()
    assert not room.scarce
    assert Room(tmp_path, reserve_bytes=1 << 60).scarce
