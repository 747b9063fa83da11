"""Broker, engine and one worker that a test starts and stops by hand: for what an operator does to a stopped worker."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from waiting import until

from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka_admin import log_bounds, members
from pipeline.local.port import choose
from pipeline.local.stack import Services, start_services
from pipeline.settings import Settings

PARTITIONS = 2
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
            "TALLY_PARTITIONS": str(PARTITIONS),
            "TALLY_SESSION_TIMEOUT_S": "6",
            "TALLY_LEASE_S": "4",
            "TALLY_DEADLINE_S": "6",
            "TALLY_SHARED_LEASE_S": "1",
            "TALLY_CLOCK_SKEW_MAX_S": "1",
            "TALLY_WORKER_PORT": str(self.worker_port),
        }
        self.settings = Settings(
            home=home,
            kafka=self.services.kafka,
            clickhouse=self.services.clickhouse,
            partitions=PARTITIONS,
            session_timeout_s=6,
            lease_s=4,
            deadline_s=6,
            clock_skew_max_s=1,
        )
        self.store = Store(self.settings)
        self.admin = AdminClient({"bootstrap.servers": self.services.kafka, "log_level": 0})
        self.tally("init")

    def run(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """The command to its end, whatever it comes to."""
        return subprocess.run(
            [*_TALLY, *arguments],
            cwd=self.home,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def tally(self, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
        """The command to its end; its output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == code, f"tally {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same with --json, parsed."""
        done = self.run(*arguments, "--json")
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
        until(lambda: not members(self.settings), why="the group is empty")

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
            return " ".join(found) if len([told for told in found if "is stopped" in told]) == PARTITIONS else ""

        return until(reasons, seconds=240, why="all partitions are stopped")

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
        until(lambda: self.counted(name) == number, seconds=240, why=f"{number} events of {name} are counted")

    def until_idle(self) -> None:
        """Waits until all offsets are committed, so that nothing is under way."""

        def idle() -> bool:
            found = self.json("offsets", "show")
            return all(p["lag"] == 0 and p["intent"] is None for p in found)

        until(idle, seconds=240, why="nothing is under way")

    def delete_log(self) -> None:
        """What a retention that is too short does."""
        ends = log_bounds(self.settings, self.settings.topic_events, range(PARTITIONS))
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
