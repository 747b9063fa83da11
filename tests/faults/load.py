"""Sends a plan of events, as a process of its own, and keeps a journal of what was acknowledged.

``python tests/faults/load.py --seed N --account A --events N --api URL --key K --kafka HOST:PORT --journal FILE``

A batch whose outcome is not known is sent again with the same ids until it is acknowledged, as clients do; the journal
gets a line only then: batch number, tries, and how many tries ended in the unknown. It ends when all is acknowledged;
once the file JOURNAL.enough is there it begins no further batch, and JOURNAL.unsent tells how many it left.
"""

import argparse
import asyncio
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx
from confluent_kafka import KafkaException, Producer
from events import Batch, autumn, line, plan

PARTITIONS = 6
_AT_ONCE = 4  # requests under way
_IN_FLIGHT = 64  # records handed to the producer and not yet answered
_LOOK_S = 0.1
_OWN_TIMEOUT_MS = 4000  # then the outcome counts as unknown


@dataclass(frozen=True)
class Acknowledged:
    """One line of the journal."""

    batch: int
    tries: int
    unknown: int


def read_journal(path: Path) -> list[Acknowledged]:
    """What was acknowledged, in that order; a half-written last line says nothing."""
    found = []
    for text in path.read_text().splitlines(keepends=True):
        if text.endswith("\n"):
            found.append(Acknowledged(**json.loads(text)))
    return found


def _enough(journal: Path) -> Path:
    return journal.with_suffix(".enough")


def _unsent(journal: Path) -> Path:
    return journal.with_suffix(".unsent")


class Load:
    """A load that runs in its own process, with its journal in a folder."""

    def __init__(
        self, folder: Path, *, seed: int, account: str, key: str, events: int, seconds: float, at: Any
    ) -> None:
        self.seed = seed
        self.account = account
        self.events = events
        self.journal = folder / "journal.ndjson"
        self._log = (folder / "load.log").open("ab")
        argv = {
            "seed": seed, "account": account, "key": key, "events": events, "seconds": seconds,
            "api": at.api, "kafka": at.kafka, "journal": self.journal,
        }  # fmt: skip
        options = [f"--{name}={value}" for name, value in argv.items()]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *options], stdout=self._log, stderr=self._log
        )

    @property
    def acknowledged(self) -> int:
        """Batches acknowledged so far."""
        return self.journal.read_bytes().count(b"\n") if self.journal.exists() else 0

    def enough(self) -> None:
        """No further batch is begun; those under way are sent until they are acknowledged."""
        _enough(self.journal).touch()

    @property
    def unsent(self) -> int:
        """Batches that were never begun; known once it has ended."""
        return int(_unsent(self.journal).read_text())

    @property
    def running(self) -> bool:
        """Whether it still sends."""
        return self._process.poll() is None

    def join(self, seconds: float) -> list[Acknowledged]:
        """Blocks until all is acknowledged. Raises TimeoutError, RuntimeError when the load itself failed."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.close()
            raise TimeoutError(f"not all was acknowledged within {seconds:.0f} s; see {self._log.name}") from error
        self._log.close()
        if code:
            raise RuntimeError(f"the load ended with {code}; see {self._log.name}")
        return read_journal(self.journal)

    def close(self) -> None:
        """Ends it where it is."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class _Sender:
    def __init__(self, options: argparse.Namespace, journal: TextIO) -> None:
        self._options = options
        self._seed: int = options.seed
        self._journal = journal
        self._lock = threading.Lock()
        self._tries: dict[int, int] = {}
        self._unknown: dict[int, int] = {}
        self._begun = 0.0
        self._enough = _enough(Path(options.journal))
        self._look_s = 0.0

    def run(self) -> int:
        """Sends the plan; how many batches of it were left, because that was enough."""
        batches = plan(self._seed, self._options.account, self._options.events, PARTITIONS)
        events = sum(len(batch.items) for batch in batches)
        due_s: dict[int, float] = {}
        sent = 0
        for batch in batches:
            due_s[batch.number] = self._options.seconds * sent / events
            sent += len(batch.items)
        records = [batch for batch in batches if batch.door == "kafka"]
        requests = [batch for batch in batches if batch.door != "kafka"]
        failed: list[BaseException] = []
        self._begun = time.monotonic()

        def send_records() -> None:
            try:
                self._send_records(records, due_s)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failed.append(error)

        thread = threading.Thread(target=send_records)
        thread.start()
        asyncio.run(self._send_requests(requests, due_s))
        thread.join()
        if failed:
            raise failed[0]
        return len(batches) - len(self._tries)

    def _left(self, todo: list[Batch]) -> list[Batch]:
        """What is still to be begun: nothing once there was enough."""
        if (now_s := time.monotonic()) > self._look_s:
            self._look_s = now_s + _LOOK_S
            if self._enough.exists():
                self._look_s = 0.0  # for the other thread
                todo[:] = [batch for batch in todo if batch.number in self._tries]
        return todo

    # -- straight to Kafka

    def _send_records(self, batches: Sequence[Batch], due_s: Mapping[int, float]) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._options.kafka,
                "acks": "all",
                "compression.type": "lz4",
                "linger.ms": 5,
                "message.timeout.ms": _OWN_TIMEOUT_MS,
                "socket.timeout.ms": _OWN_TIMEOUT_MS,
                "reconnect.backoff.max.ms": 500,
                "log_level": 2,
            }
        )
        again: list[Batch] = []
        in_flight = [0]
        todo = list(reversed(batches))
        while self._left(todo) or again or in_flight[0]:
            producer.poll(0.005 if in_flight[0] else 0)
            if again:
                todo += again
                again.clear()
                time.sleep(0.05)
            if not todo or in_flight[0] >= _IN_FLIGHT:
                continue
            batch = todo.pop()
            while (wait_s := due_s[batch.number] - (time.monotonic() - self._begun)) > 0:
                producer.poll(min(wait_s, 0.05))

            def delivered(error: Any, _: Any, batch: Batch = batch) -> None:
                in_flight[0] -= 1
                if error is None:
                    self._acknowledged(batch)
                else:
                    self._unknown[batch.number] = self._unknown.get(batch.number, 0) + 1
                    again.append(batch)

            self._try(batch)
            lines = [line(self._seed, item, anonymous=batch.anonymous) for item in batch.items]
            headers = [("account", self._options.account.encode())]
            in_flight[0] += 1
            try:
                value = b"\n".join([*lines, *batch.bad])
                producer.produce(
                    "tally.events", value, partition=batch.partition, headers=headers, on_delivery=delivered
                )
            except (KafkaException, BufferError):
                delivered(True, None)

    # -- through the API

    async def _send_requests(self, batches: Sequence[Batch], due_s: Mapping[int, float]) -> None:
        todo = list(reversed(batches))
        headers = {"Authorization": f"Bearer {self._options.key}", "Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=self._options.api, headers=headers, timeout=10.0) as client:

            async def sender() -> None:
                while self._left(todo):
                    batch = todo.pop()
                    await asyncio.sleep(max(0.0, due_s[batch.number] - (time.monotonic() - self._begun)))
                    while not await self._request(client, batch):  # noqa: ASYNC110 - a client's retries
                        await asyncio.sleep(0.1)

            await asyncio.gather(*(sender() for _ in range(_AT_ONCE)))

    async def _request(self, client: httpx.AsyncClient, batch: Batch) -> bool:
        """One try; whether all of it was acknowledged. Anything but that, a lost connection or a refusal for now is a
        fault of the product."""
        self._try(batch)
        path, body, headers = self._as_request(batch)
        try:
            answer = await client.post(path, content=body, headers=headers)
        except httpx.TransportError:
            answer = None
        if answer is None or answer.status_code in (429, 500, 502, 503, 504):
            self._unknown[batch.number] = self._unknown.get(batch.number, 0) + 1
            return False
        told: dict[str, Any] = answer.json()
        if answer.status_code != 200 or told.get("accepted", 1) != len(batch.items):
            raise RuntimeError(f"POST {path} answered {answer.status_code}: {answer.text[:2000]}")
        self._acknowledged(batch)
        return True

    def _as_request(self, batch: Batch) -> tuple[str, bytes, dict[str, str]]:
        if batch.door == "autumn":
            body = autumn(self._seed, batch.items[0], anonymous=batch.anonymous, timeless=batch.timeless)
            return "/v1/events", body, {}
        lines = [*(line(self._seed, item, anonymous=batch.anonymous) for item in batch.items), *batch.bad]
        if batch.door == "bulk":
            headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
            return "/v1/events/batch", gzip.compress(b"\n".join(lines), 1), headers
        return "/api/v1/events", b"[" + b",".join(lines) + b"]" if len(lines) > 1 else lines[0], {}

    # -- journal

    def _try(self, batch: Batch) -> None:
        self._tries[batch.number] = self._tries.get(batch.number, 0) + 1

    def _acknowledged(self, batch: Batch) -> None:
        told = {
            "batch": batch.number,
            "tries": self._tries[batch.number],
            "unknown": self._unknown.get(batch.number, 0),
        }
        with self._lock:
            self._journal.write(json.dumps(told) + "\n")
            self._journal.flush()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("seed", int), ("events", int), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("account", "key", "api", "kafka", "journal"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    with Path(options.journal).open("w") as journal:
        unsent = _Sender(options, journal).run()
    _unsent(Path(options.journal)).write_text(str(unsent))


if __name__ == "__main__":
    main()
