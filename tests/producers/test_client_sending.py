"""How the client sends: against a server on the wire that answers by a script, and a spool on a disk without room.

The API itself never answers like that on demand; what it does answer is in `test_client.py`.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from gzip import decompress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from client_programs import run

from producers.client import Closed, OutboxFull, Recorded, Refusal, Sending, SpoolError, Tally
from producers.client.event import usage_event
from producers.client.spool import Spool

SOON = Sending(retry_first_s=0.01, retry_max_s=0.05, flush_every_s=60)
Ids = list[str]
Answer = tuple[int, dict[str, str], bytes]


def received(ids: Ids) -> Answer:
    """What the API says when all is well."""
    told = [{"index": n, "status": "received", "transactionId": identity} for n, identity in enumerate(ids)]
    return 200, {}, json.dumps({"events": told}).encode()


@dataclass
class Script:
    """Answers requests; keeps the ids of each, and when it came."""

    answer: Callable[[int, Ids], Answer] = lambda _, ids: received(ids)
    requests: list[Ids] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    url: str = ""

    @property
    def ids(self) -> Ids:
        """All of them, in the order in which they came."""
        return [identity for request in self.requests for identity in request]


@pytest.fixture
def script() -> Iterator[Script]:
    """A server of HTTP/1.1 on a port of its own."""
    found = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            found.at_s.append(time.monotonic())
            found.requests.append([json.loads(line)["transactionId"] for line in body.splitlines()])
            status, headers, content = found.answer(len(found.requests), found.requests[-1])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=[False, True], ids=["memory", "spool"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Both kinds of outbox."""
    return tmp_path / "usage.spool" if request.param else None


def names(count: int) -> Ids:
    """Ids that sort in the order of recording."""
    return [f"t{n:04}" for n in range(count)]


def test_batches_are_bounded_and_in_order(script: Script, spool: Path | None) -> None:
    """In events and in bytes; one event is sent however large."""
    sending = Sending(batch_events_max=7, batch_bytes_max=2_000, flush_every_s=60, flush_events=1_000)
    with Tally(script.url, "k", spool=spool, sending=sending) as tally:
        tally.record_many([{"client_id": "c", "transaction_id": name} for name in names(20)])
        tally.record("c", transaction_id="t0020", data={"a": "x" * 5_000})
        tally.record("c", transaction_id="t0021")
        assert tally.flush() == 0
    assert script.ids == names(22)
    assert [len(ids) for ids in script.requests] == [7, 7, 6, 1, 1]


def test_a_batch_goes_when_enough_events_wait(script: Script, spool: Path | None) -> None:
    """Without a flush."""
    come = threading.Event()
    script.answer = lambda _, ids: (come.set(), received(ids))[1]
    with Tally(script.url, "k", spool=spool, sending=Sending(flush_events=3, flush_every_s=600)) as tally:
        for name in names(3):
            tally.record("c", transaction_id=name)
        assert come.wait(60)


def test_a_batch_goes_when_the_oldest_event_has_waited(script: Script, spool: Path | None) -> None:
    """Without a flush."""
    come = threading.Event()
    script.answer = lambda _, ids: (come.set(), received(ids))[1]
    with Tally(script.url, "k", spool=spool, sending=Sending(flush_events=1_000, flush_every_s=0.05)) as tally:
        tally.record("c")
        assert come.wait(60)


def test_only_what_is_in_doubt_is_sent_again(script: Script, spool: Path | None) -> None:
    """A 503 that says what it has; then a page that is no answer of the API; then all is well."""

    def answer(number: int, ids: Ids) -> Answer:
        if number == 1:
            told = [{"status": "received", "transactionId": ids[0]}, {"status": "rejected", "errors": []}]
            return 503, {}, json.dumps({"events": [*told, *({"status": "unconfirmed"} for _ in ids[2:])]}).encode()
        return (200, {}, b"<html>") if number == 2 else received(ids)

    script.answer = answer
    told: Ids = []
    with Tally(
        script.url, "k", spool=spool, sending=SOON, on_error=lambda e, _: told.append(e.transaction_id)
    ) as tally:
        tally.record_many([{"client_id": "c", "transaction_id": name} for name in names(4)])
        assert tally.flush() == 0
        assert (tally.stats().received, tally.stats().refused, tally.stats().retries) == (3, 1, 2)
    assert script.requests == [names(4), names(4)[2:], names(4)[2:]]
    assert told == ["t0001"]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept(script: Script, status: int) -> None:
    """Also by a flush, which would otherwise try at once."""
    script.answer = lambda number, ids: (status, {"Retry-After": "1"}, b"") if number == 1 else received(ids)
    with Tally(script.url, "k", sending=SOON) as tally:
        tally.record("c")
        assert tally.flush() == 0
    first, second = script.at_s
    assert second - first >= 1.0


def test_a_batch_that_is_too_large_goes_in_parts(script: Script, spool: Path | None) -> None:
    """Something on the way takes three events at most, and none that is called t0004."""

    def answer(_: int, ids: Ids) -> Answer:
        return (413, {}, b"") if len(ids) > 3 or "t0004" in ids else received(ids)

    script.answer = answer
    told: list[tuple[str, str]] = []
    with Tally(
        script.url, "k", spool=spool, sending=SOON, on_error=lambda e, r: told.append((e.transaction_id, r.code))
    ) as tally:
        tally.record_many([{"client_id": "c", "transaction_id": name} for name in names(9)])
        assert tally.flush() == 0
        assert (tally.stats().received, tally.stats().refused) == (8, 1)
    assert told == [("t0004", "too_large")]


def test_an_event_may_be_given_up(script: Script, spool: Path | None) -> None:
    """Only when that was chosen, and told."""
    script.answer = lambda *_: (500, {}, b"")
    told: Ids = []
    sending = Sending(retry_first_s=0.01, retry_max_s=0.02, give_up_s=0.1)
    with Tally(script.url, "k", spool=spool, sending=sending, on_error=lambda _, r: told.append(r.code)) as tally:
        tally.record("c")
        assert tally.flush() == 0
    assert told == ["gave_up"]
    assert script.requests


def test_on_error_may_record_and_close(script: Script) -> None:
    """In the sender's thread, which does not wait for itself."""
    script.answer = lambda _, ids: (400, {}, json.dumps({"events": [{"status": "rejected"} for _ in ids]}).encode())
    seen: list[str] = []

    def on_error(event: Recorded, _: Refusal) -> None:
        seen.append(event.transaction_id)
        if event.transaction_id == "t":
            tally.record("c", transaction_id="about t")
            with pytest.raises(OutboxFull):
                tally.record("c")
        else:
            tally.close()

    tally = Tally(script.url, "k", queue_events_max=2, block_s=None, on_error=on_error)
    tally.record("c", transaction_id="t")
    tally.flush()
    tally.flush()
    assert seen[:2] == ["t", "about t"]
    tally.close()


_FULL = """
import resource, pathlib
tally = Tally(URL, KEY, spool=SPOOL, block_s=0, sending=Sending(close_timeout_s=0.1))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    while True:
        say(tally.record("c", data={"a": "x" * 1000}))
except Exception as error:
    sys.stderr.write(type(error).__name__)
os._exit(0)
"""


def test_a_full_disk_raises_and_keeps_what_was_recorded(script: Script, tmp_path: Path) -> None:
    """A limit on the size of files stands for it; the next client, with room, sends everything."""
    said, err = run(_FULL, "http://127.0.0.1:9", "k", tmp_path / "spool")
    assert err.splitlines()[-1].endswith(("SpoolError", "OutboxFull"))
    assert len(said) > 10
    with Tally(script.url, "k", spool=tmp_path / "spool") as tally:
        assert tally.flush() == 0
    assert script.ids == said


def record_or_none(tally: Tally) -> str | None:
    """One event; None where the spool says that it is full."""
    try:
        return tally.record("c", data={"a": "x" * 1000})
    except OutboxFull:
        return None


def test_a_spool_has_a_size_at_most(script: Script, tmp_path: Path) -> None:
    """Its events are sent all the same, and then there is room again."""
    away = Tally("http://127.0.0.1:9", "k", spool=tmp_path / "spool", spool_bytes_max=200_000, block_s=0)
    ids = list(iter(lambda: record_or_none(away), None))
    assert len(ids) > 10
    away.close(0)
    with Tally(script.url, "k", spool=tmp_path / "spool", spool_bytes_max=200_000, block_s=60) as tally:
        ids += [tally.record("c", data={"a": "x" * 1000}) for _ in range(200)]
        assert tally.flush() == 0
    assert script.ids == ids


def test_one_process_at_a_time_sends_from_a_spool(tmp_path: Path) -> None:
    """The next one as soon as it is gone; both may put."""
    first, second = (Spool(tmp_path / "s", bytes_max=1 << 20) for _ in range(2))
    assert (first.claim(), second.claim(), first.claim()) == (True, False, True)
    first.put([usage_event("a", transaction_id="1")])
    second.put([usage_event("b", transaction_id="2")])
    assert [event.transaction_id for event in second.peek(9, 1 << 20)] == ["1", "2"]
    first.close()
    assert second.claim()
    second.remove(second.peek(1, 0))
    assert [event.transaction_id for event in second.peek(9, 1 << 20)] == ["2"]
    second.close()
    with pytest.raises(Closed):
        second.put([usage_event("a")])
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_what_is_no_spool_is_left_alone(tmp_path: Path) -> None:
    """Another program's database, a text, a folder."""
    (tmp_path / "text").write_text("some text that is long enough to be looked at by SQLite" * 20)
    subprocess.run(
        [sys.executable, "-c", "import sqlite3; sqlite3.connect('other').execute('CREATE TABLE a (b)')"],
        cwd=tmp_path,
        check=True,
    )
    for name in ("text", "other", ".", "missing/spool"):
        with pytest.raises(SpoolError, match="spool"):
            Tally("http://127.0.0.1:9", "k", spool=tmp_path / name)


@pytest.mark.parametrize(
    "bad", [{"url": "localhost:80"}, {"url": ""}, {"key": ""}, {"key": "a\nb"}, {"sending": {"flush_events": 0}},
            {"sending": {"batch_events_max": 20_000}}]
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    """When the client is made."""
    given = {"url": "http://127.0.0.1:9", "key": "k", **bad}
    with pytest.raises(ValueError, match=r"url|key|flush_events|at most"):
        Tally(given["url"], given["key"], sending=Sending(**given.get("sending", {})))


_ALONE = """
import sys

ALLOWED = {"httpx", "httpcore", "h11", "anyio", "idna", "certifi", "sniffio", "typing_extensions", "exceptiongroup"}
OURS = ("producers", "producers.client", "pipeline", "pipeline.transaction_id")

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = name in OURS or name.startswith("producers.client.")
        if not ours and top not in sys.stdlib_module_names | ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Only())
from producers.client import *
sending = Sending(close_timeout_s=0.1)
Tally("http://127.0.0.1:9", "k", sending=sending, on_error=lambda _, refusal: print(refusal.code)).record("c")
"""


def test_the_client_needs_httpx_and_the_standard_library_alone() -> None:
    """It is imported and records where nothing else can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", _ALONE], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "unsent\n"), done.stderr
