"""What changes under way: a mapping over a block, partitions of the topic, the store's tables. Each is safe, or refused
with the way on. A worker, topics, a group and a database of the test's own, on the session's broker and engine."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from running_stack import RunningStack
from waiting import until

import tally
from pipeline import migrate as migrations
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka import move_offsets
from pipeline.adapters.kafka_admin import members
from pipeline.block import RULES, Intent, encode_metadata
from pipeline.local.port import choose
from pipeline.migrate import MigrationError, sql_dir
from pipeline.settings import Settings

pytestmark = pytest.mark.faults  # workers of its own for each, a minute and more
_WAIT_S = 240.0


class Own:
    """Topics of one partition, a database, and workers that are started by hand."""

    def __init__(self, stack: RunningStack, home: Path) -> None:
        name = f"own-{uuid.uuid4().hex[:8]}"
        self.settings = Settings(
            home=home,
            kafka=stack.kafka,
            clickhouse=stack.clickhouse,
            database=name.replace("-", "_"),
            topic_events=f"{name}.events",
            topic_rejects=f"{name}.rejects",
            topic_catalog=f"{name}.catalog",
            group=name,
            partitions=1,
            worker_port=choose("worker", wanted=None, remembered=None, taken=set()),
            lease_s=12,
            deadline_s=16,
            clock_skew_max_s=1,
            session_timeout_s=10,
        )
        self.workers: list[subprocess.Popen[bytes]] = []
        self.tally("init")
        self.store = Store(self.settings)

    def environment(self, **extra: str) -> dict[str, str]:
        """The same settings for a process."""
        names = "home kafka clickhouse database topic_events topic_rejects topic_catalog group partitions worker_port"
        times = "lease_s deadline_s clock_skew_max_s session_timeout_s"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
        return {
            **inherited,
            **{f"TALLY_{n.upper()}": str(getattr(self.settings, n)) for n in f"{names} {times}".split()},
            **extra,
        }

    def tally(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs the command; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "tally", *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def apply(self, feature: str) -> None:
        """Makes the catalog's one feature so."""
        path = self.settings.home / "catalog.yaml"
        path.write_text(f"features:\n  - {feature}\n")
        self.tally("apply", str(path))

    def send(self, *numbers: int) -> None:
        """An event each, of 5 tokens."""
        lines = [_event(f"t{number}") for number in numbers]
        self.tally("send", "-", stdin="\n".join(lines))

    def start(self, **extra: str) -> "Callable[[], str]":
        """A worker; call the result for what it has said."""
        log = self.settings.home / f"worker-{len(self.workers)}.log"
        with log.open("wb") as file:
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tally", "worker"],
                    env=self.environment(**extra),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        return log.read_text

    def ended(self) -> int:
        """Waits for the last worker's end; its code."""
        return self.workers[-1].wait(_WAIT_S)

    def stop(self) -> None:
        """Ends the last worker, tidily."""
        self.workers[-1].send_signal(signal.SIGTERM)
        self.ended()

    def counted(self, events: int) -> None:
        """Waits until the ledger's blocks hold so many events, and the group has counted their ends."""

        def there() -> bool:
            found = self.store.query("SELECT sum(events) FROM blocks FINAL WHERE month = 0").rows[0][0]
            assert self.workers[-1].poll() is None, "the worker has ended"
            return bool(found == events)

        until(there, seconds=_WAIT_S, why=f"{events} events are counted")


def _event(identity: str | None) -> str:
    event = {"clientId": "c", "timestamp": "2025-05-01T00:00:00Z", "eventName": "call", "data": {"tokens": 5}}
    return json.dumps(event if identity is None else {**event, "transactionId": identity})


@pytest.fixture
def own(stack: RunningStack, tmp_path: Path) -> Iterator[Own]:
    """Of the test's own, gone with it."""
    made = Own(stack, tmp_path)
    yield made
    for worker in made.workers:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    made.store.close()


def test_a_block_is_finished_under_the_mapping_it_was_begun_with(own: Own) -> None:
    """The mapping changes while a worker is dead in the midst of a block: the block is built again as it was stated,
    what comes later is mapped anew, and both versions stand beside each other in facts and rollups."""
    own.apply("{id: calls, name: Calls, event_names: [call], aggregation: count}")
    own.send(*range(10))
    own.start(TALLY_FAIL_POINT="before_insert")
    assert own.ended() == -signal.SIGKILL
    own.apply(
        "{id: calls, name: Calls, event_names: [call], aggregation: sum, value_key: tokens,"
        " effective_from: '2025-01-01T00:00:00Z'}"
    )
    own.send(*range(5, 20))
    own.start()
    own.counted(25)
    own.stop()
    rows = own.store.query(
        "SELECT catalog_version, meters.rev[1], meters.quantity[1], count() FROM events WHERE account != ''"
        " GROUP BY ALL ORDER BY 1"
    ).rows
    assert [(quantity, number) for _, _, quantity, number in rows] == [(Decimal(1), 10), (Decimal(5), 10)]
    assert rows[0][0] < rows[1][0]
    assert rows[0][1] < rows[1][1]
    rolled = own.store.query(
        "SELECT rev, sum(events), sum(total) FROM usage_15m WHERE account != '' GROUP BY rev ORDER BY rev"
    ).rows
    assert rolled == [(rows[0][1], 10, Decimal(10)), (rows[1][1], 10, Decimal(50))]
    assert json.loads(own.tally("audit", "--json"))["drift"] == 0


def test_partitions_that_are_added_are_noticed_and_change_no_number(own: Own) -> None:
    """The running worker stops, the next says what to do, and then what lies in a new partition counts where its id
    belongs. The number that ids are spread over cannot be changed."""
    own.send(*range(10))
    told = own.start()
    own.counted(10)
    _grow(own, own.settings.topic_events)
    assert own.ended() != 0
    assert "had 1 partitions" in told()
    assert "leave TALLY_PARTITIONS as it is" in told()

    told = own.start()
    assert own.ended() != 0
    assert f"kafka-topics.sh --alter --topic {own.settings.topic_changelog} --partitions 3" in told()
    _grow(own, own.settings.topic_rejects)
    _grow(own, own.settings.topic_changelog)
    told = own.start(TALLY_PARTITIONS="3")
    assert own.ended() != 0
    assert "spread over 1 partitions" in told()
    assert "Set TALLY_PARTITIONS=1" in told()

    producer = Producer({"bootstrap.servers": own.settings.kafka, "acks": "all"})
    for line in (_event("t3"), _event("new"), _event(None)):
        producer.produce(own.settings.topic_events, line.encode(), partition=2)
    assert producer.flush(30) == 0
    own.start()
    own.counted(10 + 3 + 2)
    own.stop()
    rows = own.store.query(
        "SELECT sum(accepted), sum(duplicates), sum(rerouted) FROM blocks FINAL WHERE month = 0"
    ).rows
    assert rows == [(12, 1, 2)]
    assert own.store.query("SELECT count(), uniqExact(id_hash) FROM events WHERE account != ''").rows == [(12, 12)]
    assert json.loads(own.tally("audit", "--json"))["drift"] == 0


def _grow(own: Own, topic: str) -> None:
    client = AdminClient({"bootstrap.servers": own.settings.kafka})
    client.create_partitions([NewPartitions(topic, 3)])[topic].result(30)


def _with_a_later_file(folder: Path) -> Path:
    """The migrations and one more, 9999_later.sql."""
    newer = folder / "sql"
    shutil.copytree(sql_dir(), newer)
    (newer / "9999_later.sql").write_text(
        "CREATE TABLE later (n UInt8 COMMENT 'n') ENGINE = MergeTree ORDER BY n COMMENT 'later';\n"
    )
    return newer


def test_the_store_is_not_migrated_under_running_workers(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tally migrate` names who runs; once they are stopped it goes on, and a worker of the former version refuses."""
    own.send(*range(10))
    own.start()
    own.counted(10)
    newer = _with_a_later_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "sql_dir", lambda: newer)
        with pytest.raises(MigrationError, match=r"9999_later.sql cannot be applied while workers run: .*Stop them"):
            tally._migrate(own.settings)
        own.stop()
        until(lambda: not members(own.settings), why="the group is empty")
        assert tally._migrate(own.settings) == ["9999_later.sql"]
    told = own.start()
    assert own.ended() != 0
    assert "the store was migrated by other files" in told()


def test_the_store_is_migrated_once_nothing_that_a_killed_worker_sent_can_land(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A block is stated: `tally migrate` says so and waits for lease and deadline."""
    own.send(*range(10))
    own.start()
    own.counted(10)
    own.stop()
    until(lambda: not members(own.settings), why="the group is empty")
    settings = own.settings.model_copy(update={"lease_s": 2.0, "deadline_s": 3.0})
    stated_ms = int(time.time() * 1000)
    stated = encode_metadata(0, Intent(0, 3, 5, 2, 0, 0, RULES, stated_ms))
    asyncio.run(move_offsets(settings, settings.topic_events, {0: 3}, stated))
    newer = _with_a_later_file(tmp_path)
    monkeypatch.setattr(migrations, "sql_dir", lambda: newer)
    assert tally._migrate(settings) == ["9999_later.sql"]
    assert "until nothing that a worker stated before can land" in capsys.readouterr().err
    assert time.time() * 1000 >= stated_ms + 5000
