"""The engine's process: its end, wished for or not, and what it leaves behind."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from engine_process import EngineProcess

_SLEEPERS = "SELECT count() FROM system.processes WHERE query LIKE '%(sleepEachRow%' AND query NOT LIKE '%processes%'"
Engines = Callable[..., EngineProcess]
HTTP = httpx.Client(verify=False, timeout=60)  # noqa: S501 - plain HTTP


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    """Close the connections at the end."""
    yield
    HTTP.close()


def _block(number: int, rows: int) -> bytes:
    """An Arrow stream of rows over three months, the same bytes each time."""
    source = random.Random(number)
    at = [1_756_684_800_000_000 + source.randrange(80 * 86_400_000_000) for _ in range(rows)]
    table = pa.table(
        {"at": pa.array(at, pa.timestamp("us", "UTC")), "k": [f"k{source.randrange(50)}" for _ in range(rows)]}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _tables(url: str) -> None:
    window = "SETTINGS non_replicated_deduplication_window = 1000"
    for sql in (
        "CREATE TABLE front (at DateTime64(6, 'UTC'), k String) ENGINE = Null",
        "CREATE TABLE facts (at DateTime64(6, 'UTC'), k String) ENGINE = MergeTree"
        f" PARTITION BY toYYYYMM(at) ORDER BY k {window}",
        "CREATE TABLE days (day Date, k String, n SimpleAggregateFunction(sum, UInt64)) ENGINE = AggregatingMergeTree"
        f" PARTITION BY toYYYYMM(day) ORDER BY (day, k) {window}",
        "CREATE MATERIALIZED VIEW front_facts TO facts AS SELECT at, k FROM front",
        "CREATE MATERIALIZED VIEW front_days TO days AS"
        " SELECT toDate(at) AS day, k, count() AS n FROM front GROUP BY day, k",
    ):
        HTTP.post(url, content=sql).raise_for_status()


def _merging_niceness(pid: int) -> set[int]:
    """Niceness of each thread that merges parts."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (thread / "comm").read_text().strip() == "MergeMutate":
                found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    return found


def test_merges_have_what_statements_leave(engines: Engines) -> None:
    """All threads that merge give way, those of a later table too."""
    engine = engines()
    _tables(engine.url)
    deadline = time.monotonic() + 30
    while _merging_niceness(engine.process.pid) != {19} and time.monotonic() < deadline:
        time.sleep(0.1)
    HTTP.post(engine.url, content="CREATE TABLE more (k String) ENGINE = MergeTree ORDER BY k").raise_for_status()
    for number in range(40):
        HTTP.post(engine.url, content=f"INSERT INTO more VALUES ('{number}')").raise_for_status()
    HTTP.post(engine.url, content="OPTIMIZE TABLE more FINAL").raise_for_status()
    assert _merging_niceness(engine.process.pid) == {19}
    assert os.getpriority(os.PRIO_PROCESS, engine.process.pid) < 19


def test_blocks_count_once_through_kill_9(engines: Engines) -> None:
    """Inserts with a token, retried until acknowledged while the engine is killed: facts and view exact to the row."""
    engine = engines()
    _tables(engine.url)
    blocks, rows, kills = 14, 20_000, 0
    source = random.Random(7)
    number = 0
    while number < blocks:
        killer = threading.Timer(source.random() * 0.08, engine.process.kill) if source.random() < 0.6 else None
        if killer:
            killer.start()
        try:
            done = HTTP.post(
                engine.url,
                params={
                    "query": "INSERT INTO front FORMAT ArrowStream",
                    "insert_deduplication_token": f"b{number}",
                    "deduplicate_blocks_in_dependent_materialized_views": "1",
                },
                content=_block(number, rows),
            ).is_success
        except httpx.TransportError:
            done = False
        number += done
        if killer:
            killer.join()
            engine.kill()
            engine.start()
            kills += 1
    counts = HTTP.post(engine.url, content="SELECT (SELECT count() FROM facts), (SELECT sum(n) FROM days)").text
    assert counts == f"{blocks * rows}\t{blocks * rows}\n", f"after {kills} kills, seed 7"
    assert kills >= 4


def test_sigterm_lets_running_statements_end_and_keeps_the_data(engines: Engines) -> None:
    """A statement under way gets its answer; what was written is there after the next start."""
    engine = engines()
    HTTP.post(engine.url, content="CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").raise_for_status()
    HTTP.post(engine.url, content="INSERT INTO t SELECT number FROM numbers(10)").raise_for_status()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(HTTP.post, engine.url, content="SELECT sum(sleepEachRow(0.2)) FROM t", timeout=30)
        while HTTP.post(engine.url, content=_SLEEPERS).text != "1\n":
            pass
        log = engine.stop()
        assert slow.result().text == "0\n"
    assert engine.process.returncode == 0
    assert log.endswith("stopped\n")
    engine.start()
    assert HTTP.post(engine.url, content="SELECT count() FROM t").text == "10\n"


def test_a_second_engine_on_the_same_data_or_port_says_why(engines: Engines, tmp_path: Path) -> None:
    """Both end with 1 and a message that names folder or port."""
    engine = engines()
    same_data = engine.spawn(engine.path, 0)
    same_port = engine.spawn(tmp_path / "other", engine.port)
    data_log, port_log = same_data.communicate()[1], same_port.communicate()[1]
    assert (same_data.returncode, same_port.returncode) == (1, 1)
    assert f"cannot use {engine.path}" in data_log
    assert "is another one running on it?" in data_log
    assert f"port {engine.port} cannot be listened on" in port_log
    assert HTTP.post(engine.url, content="SELECT 1").text == "1\n"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused_and_the_engine_lives(engines: Engines, declared: bool) -> None:
    """413 and a message, whether its size was declared or not."""
    engine = engines("--body-bytes-max", "1000000")
    body = b"SELECT 1 --" + b"x" * 3_000_000
    answer = HTTP.post(engine.url, content=body if declared else iter([body[:1_500_000], body[1_500_000:]]))
    assert answer.status_code == 413
    assert "larger than 1000000 bytes" in answer.text
    assert HTTP.post(engine.url, content="SELECT 1").text == "1\n"
