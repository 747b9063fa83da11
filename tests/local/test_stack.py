"""The supervisor: start, watch, restart, stop, and being killed itself."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest
from stack_program import make

from pipeline.local.port import PortTakenError, choose
from pipeline.local.stack import ALLOCATOR_OPTIONS, Ports, Services, Stack, StackStatus, engine_part, start_services
from pipeline.local.stackfile import StackError

PARTS = ["clickhouse", "kafka", "worker", "api"]


def _up(home: Path, ports: Ports | None = None) -> Stack:
    stack = make(home, ports)
    program = Path(__file__).with_name("stack_program.py")
    asked = json.dumps({name: port for name, port in asdict(ports or Ports()).items() if port})
    stack.up(detach=True, argv=[sys.executable, str(program), str(home), asked])
    return stack


def _until(stack: Stack, wanted: Callable[[StackStatus], bool]) -> StackStatus:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if wanted(status := stack.status()):
            return status
        time.sleep(0.05)
    raise AssertionError(f"still {stack.status()}")


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """The repository on the path of child processes."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def home(tmp_path: Path, environment: None) -> Iterator[Path]:
    """A data folder; whatever still runs on it is stopped."""
    yield tmp_path
    make(tmp_path).down()


def test_up_watch_and_down(home: Path) -> None:
    """All parts come up, a killed one comes back and is counted, a second instance is refused, down leaves nothing."""
    stack = _up(home)
    status = stack.status()
    assert (status.running, status.state) == (True, "ready")
    assert [(part.name, part.state, part.ready, part.restarts) for part in status.parts] == [
        (name, "up", True, 0) for name in PARTS
    ]
    document = json.loads((home / "stack.json").read_text())
    assert document["prepared_with"] == document["clickhouse"]
    assert httpx.get(f"{document['clickhouse']}/ping").text == "Ok.\n"
    assert httpx.get(document["api"]).status_code == 200
    assert all((home / "logs" / f"{name}.log").exists() for name in [*PARTS, "supervisor"])

    with pytest.raises(StackError, match=f"another instance .process {status.pid}. already runs on {home}"):
        _up(home)
    with pytest.raises(StackError, match="already runs"):
        start_services(home)

    pids = {part.name: part.pid for part in status.parts}
    for name in ("clickhouse", "worker"):
        os.kill(pids[name], signal.SIGKILL)
    after = _until(stack, lambda now: all(part.ready for part in now.parts) and sum(p.restarts for p in now.parts) == 2)
    restarts = {part.name: part.restarts for part in after.parts}
    assert restarts == {"clickhouse": 1, "kafka": 0, "worker": 1, "api": 0}
    assert "clickhouse ended with signal 9" in (home / "logs" / "supervisor.log").read_text()

    assert stack.down()
    assert not any(psutil.pid_exists(part.pid) for part in after.parts)
    assert stack.status().state == "stopped"
    assert not stack.down()


def test_a_killed_supervisor_leaves_nothing_and_the_next_one_takes_over(home: Path) -> None:
    """Same data, same addresses, no part twice."""
    stack = _up(home)
    before = stack.status()
    url = json.loads((home / "stack.json").read_text())["clickhouse"]
    httpx.post(url, content="CREATE TABLE t ENGINE = MergeTree ORDER BY n AS SELECT 42 AS n").raise_for_status()
    os.kill(before.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before.pid)], timeout=10)
    assert not stack.status().running
    _up(home)
    after = stack.status()
    assert {part.name: part.address for part in after.parts} == {part.name: part.address for part in before.parts}
    assert not any(psutil.pid_exists(part.pid) for part in before.parts)
    assert httpx.post(url, content="SELECT n FROM t").text == "42\n"


def test_what_fails_at_the_start_is_told_and_stopped(home: Path) -> None:
    """The caller of a detached start gets the reason; nothing runs on."""
    (home / "broken").touch()
    with pytest.raises(StackError, match="the test said so"):
        _up(home)
    status = make(home).status()
    assert (status.running, status.state, status.error) == (False, "failed", "the test said so")
    assert not any(part.pid for part in status.parts)


def test_a_part_that_is_not_awaited_keeps_nobody_waiting(home: Path) -> None:
    """The stack is ready without it, it starts last, and goes down with the others."""
    (home / "late").touch()
    stack = _up(home)
    status = stack.status()
    assert (status.running, status.state) == (True, "ready")
    assert [(part.name, part.state, part.awaited) for part in status.parts] == [
        *((name, "up", True) for name in PARTS),
        ("late", "starting", False),
    ]
    assert stack.down()
    assert not any(psutil.pid_exists(part.pid) for part in status.parts)


def test_a_port_that_was_asked_for_must_be_free(home: Path) -> None:
    """The error names the port and its setting; a remembered one gives way instead."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} \(TALLY_API_PORT\) is taken"):
            _up(home, Ports(api=port))
        with pytest.raises(PortTakenError):
            choose("x", wanted=port, remembered=None, taken=set())
        assert choose("x", wanted=None, remembered=port, taken=set()) != port
    assert choose("x", wanted=None, remembered=port, taken=set()) == port


def test_too_little_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    """With the numbers, and nothing left behind."""
    stack = Stack(tmp_path, disk_free_min_bytes=1 << 60)
    with pytest.raises(StackError, match="MiB are free on the disk"):
        stack.up()
    assert not stack.status().running


def test_the_engine_keeps_free_memory_for_a_minute_unless_told_otherwise(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that reads its allocator's options by another name, or not at all, takes them from nobody."""
    stats = httpx.post(services.clickhouse, content="SELECT stats FROM system.jemalloc_stats FORMAT RawBLOB").text
    assert re.findall(r"opt\.(dirty_decay_ms|oversize_threshold): (\d+)", stats) == [
        ("oversize_threshold", "0"),
        ("dirty_decay_ms", "60000"),
    ]
    monkeypatch.setenv(ALLOCATOR_OPTIONS, "dirty_decay_ms:0")
    assert engine_part(tmp_path, 1).env[ALLOCATOR_OPTIONS] == "dirty_decay_ms:0"
