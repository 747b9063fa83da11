"""The engine's tokens and parts after a kill: a burnt token goes, every other one stays."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from engine_process import REPOSITORY, EngineProcess
from store_contents import contents
from stored_events import block_rows, definition_of, random_events

from pipeline.adapters.clickhouse import Store
from pipeline.local.tokens import FolderInUseError, settle_tokens
from pipeline.migrate import migrate
from pipeline.ports import StoreError, StoreUnavailable
from pipeline.settings import Settings

Engines = Callable[..., EngineProcess]
REMOVED = "is removed: the part was never finished"


# ------------------------------------------------------------------------------------------------ what stays, what goes


def _table(folder: Path, parts: list[str], *logs: str) -> Path:
    """A table's folder with these part directories and logs; returns the folder of the logs."""
    table = folder / "store" / "0ab" / "0abc"
    (table / "deduplication_logs").mkdir(parents=True)
    for part in parts:
        (table / part).mkdir(parents=True)
    for number, text in enumerate(logs, 1):
        (table / "deduplication_logs" / f"deduplication_log_{number}.txt").write_text(text)
    return table / "deduplication_logs"


def _logs(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    "directory",
    ["202305_3_3_0", "202305_1_9_2", "202305_3_3_0_17", "202305_3_9_1_17"],
    ids=["itself", "merged", "mutated", "merged and mutated"],
)
def test_a_token_stays_with_its_part(tmp_path: Path, directory: str) -> None:
    """Under its own name, or in a part of the same partition whose blocks contain its own."""
    log = "1\t202305_3_3_0\tx\n"
    logs = _table(tmp_path, ["202305_11_11_0", directory, "202305_1_1_0"], log)
    assert settle_tokens(tmp_path) == 0
    assert _logs(logs) == [log]


@pytest.mark.parametrize(
    "directory",
    [
        "202304_1_9_2",
        "202305_4_9_1",
        "202305_1_2_1",
        "tmp_insert_202305_3_3_0",
        "delete_tmp_202305_3_3_0",
        "tmp_merge_202305_1_9_2",
        "detached/202305_3_3_0",
        "detached/broken-on-start_202305_3_3_0",
    ],
)
def test_a_token_without_its_part_goes(tmp_path: Path, directory: str, caplog: pytest.LogCaptureFixture) -> None:
    """Other blocks, another partition, and directories that are no parts of the table do not keep it."""
    others = "1\t202305_21_21_0\tw\n", "1\t202305_22_22_0\ty\n"
    logs = _table(tmp_path, [directory, "202305_21_22_1"], others[0] + "1\t202305_3_3_0\tx\n" + others[1])
    assert settle_tokens(tmp_path) == 1
    assert _logs(logs) == ["".join(others)]
    assert f"the token of part 202305_3_3_0 {REMOVED}" in caplog.text
    assert settle_tokens(tmp_path) == 0


def test_dropped_parts_have_no_token_to_remove(tmp_path: Path) -> None:
    """The engine has forgotten them itself; the same insert again under a new part has a token of its own."""
    first, second = "1\tall_1_1_0\tx\n1\tall_2_2_0\ty\n2\tall_1_1_0\tx\n", "2\tall_2_2_0\ty\n1\tall_3_3_0\tx\n"
    logs = _table(tmp_path, ["all_3_3_0"], first, second)
    assert settle_tokens(tmp_path) == 0
    (logs.parent / "all_3_3_0").rmdir()
    assert settle_tokens(tmp_path) == 1
    assert _logs(logs) == [first, "2\tall_2_2_0\ty\n"]


def test_logs_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """The tenth comes after the ninth."""
    logs = _table(tmp_path, [])
    (logs / "deduplication_log_9.txt").write_text("1\tall_1_1_0\tx\n")
    (logs / "deduplication_log_10.txt").write_text("2\tall_1_1_0\tx\n")
    assert settle_tokens(tmp_path) == 0


def test_a_record_that_was_cut_off_goes(tmp_path: Path) -> None:
    """What the engine would append behind it could not be read."""
    logs = _table(tmp_path, ["all_1_1_0"], "1\tall_1_1_0\tx\n1\tall_2_")
    assert settle_tokens(tmp_path) == 0
    assert _logs(logs) == ["1\tall_1_1_0\tx\n"]


@pytest.mark.parametrize("record", ["3\tall_1_1_0\tx", "1\tall_1_1_0", "1\tall\tx"])
def test_a_log_of_another_form_is_left_alone(tmp_path: Path, record: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is guessed; a warning says so."""
    log = f"1\tall_9_9_0\tw\n{record}\n"
    logs = _table(tmp_path, [], log)
    assert settle_tokens(tmp_path) == 0
    assert _logs(logs) == [log]
    assert "left as they are" in caplog.text


def test_a_running_engine_is_not_touched(engines: Engines) -> None:
    """It holds the folder's lock."""
    engine = engines()
    httpx.post(engine.url, content="CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a").raise_for_status()
    with pytest.raises(FolderInUseError):
        settle_tokens(engine.path)


# ------------------------------------------------------------------------------------------------ the engine itself


class _UnsettledEngine(EngineProcess):
    """The engine as it is without the step."""

    @staticmethod
    def spawn(path: Path, port: int, *options: str) -> "subprocess.Popen[str]":
        program = "import pipeline.local.engine as e; e.settle_tokens = lambda _: 0; raise SystemExit(e.main())"
        command = [sys.executable, "-c", program, "--path", str(path), "--port", str(port), *options]
        return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def _block(number: int, rows: int) -> pa.Table:
    """Rows over five months and two years with meters and dimensions, the same each time."""
    events = random_events(number, rows, "acme", datetime(2023, 10, 20, tzinfo=UTC), 120)
    return block_rows(events, start=number * 1000)


def _insert(store: Store, number: int, rows: pa.Table) -> None:
    store.close()  # connections to an engine that was killed
    store.insert_arrow("ingest", rows, {"insert_deduplication_token": f"tally.events:0:0:{number}"})


@contextmanager
def _store(engine: EngineProcess, database: str = "tally") -> Iterator[Store]:
    """A migrated store on the engine."""
    settings = Settings(clickhouse=engine.url, home=engine.path, database=database)
    migrate(settings)
    store = Store(settings)
    yield store
    store.close()


def _folders(engine: EngineProcess, store: Store) -> dict[str, Path]:
    """The folder of each table."""
    rows = store.query("SELECT name, toString(uuid) FROM system.tables WHERE database = currentDatabase()").rows
    return {name: engine.path / "store" / uuid[:3] / uuid for name, uuid in rows}


def _burn(table: Path) -> str:
    """Takes the name from the part that was inserted last, as if the engine had been killed before it gave it."""
    _, part, _ = (table / "deduplication_logs" / "deduplication_log_1.txt").read_text().splitlines()[-1].split("\t")
    (table / part).rename(table / f"tmp_insert_{part}")
    return part


def test_a_burnt_token_loses_rows_without_the_step_and_none_with_it(tmp_path: Path) -> None:
    """A kill between record and rename, in facts and in a view: the retry is dropped, then restores every row."""
    bare = _UnsettledEngine(tmp_path / "engine")
    with _store(bare) as store:
        store.command("SYSTEM STOP MERGES")
        rows = _block(1, 300)
        _insert(store, 0, _block(0, 300))
        _insert(store, 1, rows)
        whole = contents(store)
        folders = _folders(bare, store)
        bare.kill()
        burnt = [_burn(folders[table]) for table in ("events", "usage_15m")]

        bare.start()
        _insert(store, 1, rows)  # acknowledged, and dropped
        lost = contents(store)
        assert {table for table in whole if lost[table] != whole[table]} == {"events", "usage_15m"}
        bare.kill()

        engine = EngineProcess(bare.path)
    with _store(engine) as store:
        assert contents(store) == lost
        _insert(store, 1, rows)
        assert contents(store) == whole
        _insert(store, 0, _block(0, 300))
        assert contents(store) == whole
    log = engine.stop()
    assert log.count(REMOVED) == 2
    assert all(f"the token of part {part} {REMOVED}" in log for part in burnt)


def test_tokens_stay_through_merges_mutations_and_drops(engines: Engines) -> None:
    """After each of them, and a restart, the step removes nothing and a retry adds nothing."""
    engine = engines()
    with _store(engine) as store:
        for number in range(3):
            _insert(store, number, _block(number, 300))
        store.command("OPTIMIZE TABLE events FINAL")
        store.command("OPTIMIZE TABLE usage_15m FINAL")
        store.command("ALTER TABLE events DELETE WHERE toYYYYMM(timestamp) = 202311 SETTINGS mutations_sync = 2")
        store.command("ALTER TABLE events_15m DROP PARTITION 2023")
        store.command("TRUNCATE TABLE event_ids")
        before = contents(store)
        log = engine.stop()
        engine.start()
        assert contents(store) == before
        _insert(store, 1, _block(1, 300))
        after = contents(store)
        assert {table for table in before if after[table] != before[table]} == {"events_15m", "event_ids"}
    log += engine.stop()
    assert REMOVED not in log


def _made_anew(store: Store, view: str) -> None:
    """Dropped and made again under its name, as a migration does it."""
    made = definition_of(store, view)
    store.command(f"DROP VIEW {view}")
    store.command(made)


@pytest.mark.parametrize("view", ["ingest_to_usage_client_day", "ingest_to_usage_15m", "ingest_to_ingest_shapes_15m"])
def test_a_view_that_is_made_anew_keeps_its_tokens(engines: Engines, view: str) -> None:
    """Tokens go by names: a block that was sent before a migration and is sent again after it counts once."""
    engine = engines()
    with _store(engine) as store:
        for number in range(3):
            _insert(store, number, _block(number, 300))
        whole = contents(store)
        _made_anew(store, view)
        _insert(store, 2, _block(2, 300))
        assert contents(store) == whole
        engine.stop()
        engine.start()
        _insert(store, 1, _block(1, 300))
        assert contents(store) == whole


def test_a_view_whose_query_is_altered_has_other_tokens_until_the_engine_starts_again(engines: Engines) -> None:
    """Why migrations make views anew: after MODIFY QUERY the same block counts twice, once before and after a start."""
    engine = engines()
    with _store(engine) as store:
        made = store.query("SELECT as_select FROM system.tables WHERE name = 'ingest_to_usage_client_day'").rows[0][0]
        store.command(f"ALTER TABLE ingest_to_usage_client_day MODIFY QUERY {made}")
        _insert(store, 0, _block(0, 300))
        once = contents(store)
        engine.stop()
        engine.start()
        _insert(store, 0, _block(0, 300))
        twice = contents(store)
        assert {table for table in once if once[table] != twice[table]} == {"usage_client_day"}


class _Killer(threading.Thread):
    """Kills the engine as soon as the log of tokens grows: most likely before the part has its name."""

    def __init__(self, engine: EngineProcess, log: Path, records: int) -> None:
        super().__init__()
        self._engine = engine.process.pid
        self._log = log
        self._size = log.stat().st_size
        self._more = records * 50
        self._over = threading.Event()
        self._fired = False
        self.start()

    def run(self) -> None:
        while self._log.stat().st_size <= self._size + self._more:
            if self._over.is_set():
                return
        os.kill(self._engine, signal.SIGKILL)
        self._fired = True

    def fired(self) -> bool:
        """Ends it; whether it has killed."""
        self._over.set()
        self.join()
        return self._fired


def test_blocks_count_once_through_kills_at_the_worst_moment(engines: Engines) -> None:
    """Sent again under the same token until acknowledged: facts and every rollup hold each block exactly once."""
    seed = 11
    kills_of_a_block, blocks = 3, 4
    source = random.Random(seed)
    engine = engines()
    with _store(engine) as store:
        folders = _folders(engine, store)
        watched = [table for table in contents(store) if table not in ("events", "event_ids")] + ["events"] * 5
        logs = ""
        for number in range(blocks):
            rows = _block(number, 300)
            for _ in range(kills_of_a_block):
                table = source.choice(watched)
                at = folders[table] / "deduplication_logs" / "deduplication_log_1.txt"
                killer = _Killer(engine, at, source.randrange(3) if table == "events" else 0)
                with suppress(StoreUnavailable, StoreError):
                    _insert(store, number, rows)
                if killer.fired():
                    logs += engine.process.communicate()[1]
                    engine.start()
            _insert(store, number, rows)
        found = contents(store)
    with _store(engine, "reference") as reference:
        for number in range(blocks):
            _insert(reference, number, _block(number, 300))
        assert found == contents(reference), f"seed {seed}, {logs.count(REMOVED)} burnt tokens"


def _insert_twice_at_once(engine: EngineProcess, number: int, rows: pa.Table) -> list[Exception]:
    """Two clients send the same block under the same token at one instant; what was answered but done."""
    stores = [Store(Settings(clickhouse=engine.url, home=engine.path)) for _ in range(2)]
    both = threading.Barrier(2)
    errors: list[Exception] = []

    def send(store: Store) -> None:
        both.wait()
        try:
            store.insert_arrow("ingest", rows, {"insert_deduplication_token": f"tally.events:0:0:{number}"})
        except (StoreUnavailable, StoreError) as error:
            errors.append(error)

    for store in stores:
        store.ping()  # connected before the start
    threads = [threading.Thread(target=send, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    return errors


def test_a_block_that_two_send_at_once_counts_once(engines: Engines) -> None:
    """A zombie and its heir in the same instant: both are told that it is done, and it is there once."""
    engine = engines()
    with _store(engine) as store:
        for number in range(6):
            assert _insert_twice_at_once(engine, number, _block(number, 300)) == []
        found = contents(store)
    with _store(engine, "reference") as reference:
        for number in range(6):
            _insert(reference, number, _block(number, 300))
        assert found == contents(reference)


def test_a_block_that_two_send_at_once_counts_once_though_the_engine_is_killed(engines: Engines) -> None:
    """Killed while both are under way; sent again by both until acknowledged."""
    seed = 23
    source = random.Random(seed)
    engine = engines()
    with _store(engine) as store:
        folders = _folders(engine, store)
        watched = [table for table in contents(store) if table != "event_ids"]
        for number in range(3):
            rows = _block(number, 300)
            for _ in range(2):
                table = source.choice(watched)
                at = folders[table] / "deduplication_logs" / "deduplication_log_1.txt"
                killer = _Killer(engine, at, source.randrange(2))
                _insert_twice_at_once(engine, number, rows)
                if killer.fired():
                    engine.process.communicate()
                    engine.start()
            assert _insert_twice_at_once(engine, number, rows) == []
        store.close()
        found = contents(store)
    with _store(engine, "reference") as reference:
        for number in range(3):
            _insert(reference, number, _block(number, 300))
        assert found == contents(reference), f"seed {seed}"
