"""The operator's ways out, on a real broker and engine with a worker that is started and stopped by hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from waiting import until

from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka_admin import committed_offsets, group_members, log_bounds
from pipeline.local.port import choose
from pipeline.local.stack import Services, start_services
from pipeline.settings import Settings

_PARTITIONS = 2
_TALLY = [sys.executable, "-m", "tally"]


class Place:
    """Broker, engine and one worker, each started and stopped by the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.services: Services = start_services(home)
        self.worker_port = choose("worker", wanted=None, remembered=None, taken=set())
        self.worker: subprocess.Popen[bytes] | None = None
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TALLY_")},
            "TALLY_HOME": str(home),
            "TALLY_KAFKA": self.services.kafka,
            "TALLY_CLICKHOUSE": self.services.clickhouse,
            "TALLY_PARTITIONS": str(_PARTITIONS),
            "TALLY_SESSION_TIMEOUT_S": "6",
            "TALLY_LEASE_S": "4",
            "TALLY_DEADLINE_S": "6",
            "TALLY_CLOCK_SKEW_MAX_S": "1",
            "TALLY_WORKER_PORT": str(self.worker_port),
        }
        self.settings = Settings(
            home=home,
            kafka=self.services.kafka,
            clickhouse=self.services.clickhouse,
            partitions=_PARTITIONS,
            session_timeout_s=6,
            lease_s=4,
            deadline_s=6,
            clock_skew_max_s=1,
        )
        self.store = Store(self.settings)
        self.admin = AdminClient({"bootstrap.servers": self.services.kafka, "log_level": 0})
        self.tally("init")

    def tally(self, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
        """The command to its end; its output."""
        done = subprocess.run(
            [*_TALLY, *arguments],
            cwd=self.home,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"tally {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same with --json, parsed."""
        done = subprocess.run(
            [*_TALLY, *arguments, "--json"], cwd=self.home, env=self.environment, capture_output=True, check=False
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def start_worker(self, extra: Mapping[str, str] | None = None) -> None:
        """A worker in the background."""
        with (self.home / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [*_TALLY, "worker"],
                cwd=self.home,
                env={**self.environment, **(extra or {})},
                stdout=log,
                stderr=log,
            )

    def stop_worker(self, number: int = signal.SIGTERM) -> None:
        """Ends it and waits until the group knows."""
        if self.worker is not None:
            self.worker.send_signal(number)
            self.worker.wait(60)
            self.worker = None
        until(lambda: not group_members(self.settings), why="the group is empty")

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.worker_port}/readyz", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except OSError:
            return {"ready": False, "reasons": []}
        return found

    def until_stopped(self) -> str:
        """Waits until every partition waits for a person; the reasons."""

        def reasons() -> str:
            found = self.ready()["reasons"]
            return " ".join(found) if len([told for told in found if "is stopped" in told]) == _PARTITIONS else ""

        return until(reasons, seconds=120, why="all partitions are stopped")

    def send(self, name: str, number: int) -> None:
        """That many events with ids of their own."""
        lines = (
            f'{{"clientId":"c","timestamp":"2025-05-01T00:00:00Z","transactionId":"{name}-{i}","eventName":"{name}"}}'
            for i in range(number)
        )
        self.tally("send", "-", stdin="\n".join(lines))

    def counted(self, name: str) -> int:
        """Events of that name in facts."""
        found: int = self.store.query("SELECT count() FROM events WHERE event_name = {n:String}", {"n": name}).rows[0][
            0
        ]
        return found

    def until_counted(self, name: str, number: int) -> None:
        """Waits for them."""
        until(lambda: self.counted(name) == number, seconds=120, why=f"{number} events of {name} are counted")

    def until_idle(self) -> None:
        """Waits until all offsets are committed, so that nothing is under way."""

        def idle() -> bool:
            found = self.json("offsets", "show")
            return all(p["lag"] == 0 and p["intent"] is None for p in found)

        until(idle, seconds=120, why="nothing is under way")

    def delete_log(self) -> None:
        """What a retention that is too short does."""
        ends = log_bounds(self.settings, self.settings.topic_events, range(_PARTITIONS))
        places = [TopicPartition(self.settings.topic_events, p, end) for p, (_, end) in ends.items()]
        for done in self.admin.delete_records(places).values():
            done.result(20)

    def stop(self) -> None:
        """All of it."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        self.store.close()
        self.services.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One for each test: they move offsets and put stores back."""
    found = Place(tmp_path)
    yield found
    found.stop()


def test_a_store_that_was_put_back_is_counted_up_again_from_the_log(place: Place) -> None:
    """Copied while all is down, as the README says; refused with the way out, which leads to exact numbers."""
    place.start_worker()
    place.send("before", 3_000)
    place.until_counted("before", 3_000)
    place.until_idle()
    place.stop_worker()
    place.services.stop()
    shutil.copytree(place.home / "clickhouse", place.home / "backup", symlinks=True)

    place.services = start_services(place.home)
    place.start_worker()
    place.send("after", 2_000)
    place.send("before", 500)
    place.until_counted("after", 2_000)
    place.until_idle()
    place.stop_worker()
    place.store.close()
    place.services.stop()
    shutil.rmtree(place.home / "clickhouse")
    (place.home / "backup").rename(place.home / "clickhouse")

    place.services = start_services(place.home)
    assert place.counted("after") == 0
    shown = place.json("offsets", "show", code=1)
    assert {partition["state"] for partition in shown} == {"store_behind"}
    assert "the log still holds what comes after the ledger" in shown[0]["says"]
    place.start_worker()
    stopped = place.until_stopped()
    assert "tally offsets reset --partition 0 --to ledger" in stopped
    assert "has members" in place.tally("offsets", "reset", "--all", "--to", "ledger", code=2)
    place.stop_worker()

    moved = place.json("offsets", "reset", "--all", "--to", "ledger")
    assert [entry["offset"] for entry in moved] == [partition["ledger"][0] for partition in shown]
    assert {partition["state"] for partition in place.json("offsets", "show")} == {"offsets_lost"}
    place.start_worker()
    place.until_counted("after", 2_000)
    place.until_idle()
    until(lambda: place.ready()["ready"], why="the worker is ready")
    assert place.counted("before") == 3_000
    assert place.json("audit")["drift"] == 0


def test_events_that_left_the_log_uncounted_are_given_up_and_told(place: Place) -> None:
    """Stopped, with the way out; afterwards the next events count and every audit tells of the gap."""
    place.start_worker()
    place.send("before", 1_000)
    place.until_counted("before", 1_000)
    place.until_idle()
    place.stop_worker()
    place.send("lost", 400)
    place.delete_log()

    shown = place.json("offsets", "show", code=1)
    assert {partition["state"] for partition in shown} == {"events_deleted"}
    place.start_worker()
    stopped = place.until_stopped()
    assert "tally offsets skip --partition 1" in stopped
    skip = ("offsets", "skip", "--reason", "retention of an hour", "--partition")
    assert "has members" in place.tally(*skip, "0", code=2)
    place.stop_worker()

    for number in range(_PARTITIONS):
        done = place.json(*skip, str(number))
        assert done["gap"] == [shown[number]["position"], shown[number]["first"]]
    assert place.json(*skip, "0")["gap"] is None  # done again it finds nothing to give up
    place.send("after", 300)
    place.start_worker()
    place.until_counted("after", 300)
    place.until_idle()
    until(lambda: place.ready()["ready"], why="the worker is ready")
    report = place.json("audit")
    assert (report["drift"], len(report["gaps"])) == (0, _PARTITIONS)
    assert "retention of an hour" in report["gaps"][0]["message"]
    assert "lost and given up" in place.tally("audit")
    assert (place.counted("before"), place.counted("lost")) == (1_000, 0)


@pytest.mark.parametrize("point", ["ledger_written", "inserted"])
def test_a_block_under_way_when_its_events_were_deleted(place: Place, point: str) -> None:
    """Killed before its rows were sent, it is given up with the rest; killed after, it stays counted."""
    place.start_worker({"TALLY_FAIL_POINT": f"{point}:1"})
    place.send("lost", 500)
    assert place.worker is not None
    place.worker.wait(120)
    place.stop_worker(signal.SIGKILL)
    landed = place.counted("lost")
    place.send("more", 100)
    place.delete_log()
    for partition in place.json("offsets", "show", code=1):
        if partition["state"] == "events_deleted":
            place.tally("offsets", "skip", "--partition", str(partition["partition"]), "--reason", "a test")
    place.send("after", 200)
    place.start_worker()
    place.until_counted("after", 200)
    place.until_idle()
    assert place.counted("lost") == landed
    assert (landed > 0) == (point == "inserted")
    report = place.json("audit")
    assert report["drift"] == 0
    assert report["gaps"]


def test_offsets_that_a_tool_has_moved_are_found_again(place: Place) -> None:
    """Reset on a store that is right does no harm; nothing there is no partition 9."""
    place.start_worker()
    place.send("one", 200)
    place.until_counted("one", 200)
    place.until_idle()
    place.stop_worker()
    place.tally("offsets", "reset", "--partition", "0", "--to", "ledger")
    assert committed_offsets(place.settings, place.settings.topic_events, [0])[0][1] == ""
    assert "no partition 9" in place.tally("offsets", "reset", "--partition", "9", "--to", "ledger", code=2)
    place.send("one", 300)
    place.start_worker()
    place.until_counted("one", 300)
    place.until_idle()
    assert place.json("audit")["drift"] == 0
