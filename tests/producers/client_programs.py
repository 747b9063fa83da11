"""Programs that use the client, each in a process of its own that may be killed; and what the store counted of them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from proxy import Proxy

from pipeline.adapters.clickhouse import Store

_REPOSITORY = Path(__file__).resolve().parents[2]
_HEAD = """
import multiprocessing, os, signal, sys
from producers.client import OutboxFull, Sending, Tally

URL, KEY, SPOOL = sys.argv[1], sys.argv[2], sys.argv[3] or None

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one write: lines of several processes do not mix
"""


def start(body: str, url: str, key: str, spool: Path | None = None) -> "subprocess.Popen[str]":
    """The program, its output in a pipe; it finds URL, KEY, SPOOL and `say`."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _HEAD + body, url, key, str(spool or "")],
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(body: str, url: str, key: str, spool: Path | None = None) -> tuple[list[str], str]:
    """The program to its end, which must be a good one: the lines it said, and its standard error."""
    with start(body, url, key, spool) as program:
        out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    return out.splitlines(), err


@contextmanager
def proxy_to(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the API, and its address."""
    target = urlsplit(url)
    assert target.hostname is not None
    assert target.port is not None
    with Proxy((target.hostname, target.port)) as proxy:
        yield proxy, f"http://127.0.0.1:{proxy.port}"


def counted(store: Store, account: str) -> list[str]:
    """The transactionIds that count, one for each row."""
    rows = store.query("SELECT transaction_id FROM events WHERE account = {a:String}", {"a": account}).rows
    return sorted(row[0] for row in rows)


def until_counted(store: Store, account: str, wanted: Sequence[str], *, seconds: float = 120.0) -> None:
    """Waits until as many are counted, then says that it is exactly these, each once."""
    end = time.monotonic() + seconds
    while len(found := counted(store, account)) < len(wanted):
        assert time.monotonic() < end, f"{len(found)} of {len(wanted)} are counted after {seconds} s"
        time.sleep(0.1)
    assert found == sorted(wanted)
