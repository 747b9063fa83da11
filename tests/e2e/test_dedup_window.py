"""Dedup without end on the real thing: ids older than the window leave the workers' disks and still count once."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from running_stack import RunningStack, Tenant, fresh_tenant, start_stack
from waiting import counted, until, usage

_WINDOW = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}
_EVENTS = 3_000
_SHORT = {
    "TALLY_LEASE_S": "12",
    "TALLY_DEADLINE_S": "16",
    "TALLY_CLOCK_SKEW_MAX_S": "1",
    "TALLY_DEDUP_WINDOW_DAYS": "0.0002",  # 17 s: ids expire while the test runs
}


@pytest.fixture(scope="module")
def short_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack of this module's own, whose ids expire after seconds; all other tests keep the usual week."""
    running = start_stack(tmp_path_factory.mktemp("short"), _SHORT)
    yield running
    running.tally("down")


def _lines(name: str, *, value: int = 1) -> str:
    return "\n".join(
        f'{{"clientId":"c","timestamp":"2025-06-{i % 28 + 1:02d}T00:00:00Z","transactionId":"{name}-{i}",'
        f'"eventName":"window","value":{value}}}'
        for i in range(_EVENTS)
    )


def _metric(stack: RunningStack, name: str) -> float:
    lines = httpx.get(f"{stack.worker}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def _send(stack: RunningStack, tenant: Tenant, lines: str) -> None:
    stack.tally("send", "-", "--account", tenant.account, stdin=lines)
    counted(stack, tenant, seconds=300)


def _events(stack: RunningStack, tenant: Tenant) -> int:
    return int(usage(stack, tenant, event_name="window", **_WINDOW)["data"][0]["events"])


@pytest.mark.faults
def test_ids_sent_again_after_the_window_count_once_also_on_a_new_disk(short_stack: RunningStack) -> None:
    """Other events go on until the first ones are expired; then the first come again, to the worker that knew them and
    to one whose folder is gone."""
    stack, tenant = short_stack, fresh_tenant(short_stack)
    _send(stack, tenant, _lines("old"))
    before = _metric(stack, "tally_dedup_expired_ids")
    rounds = iter(range(1000))

    def expired() -> bool:
        stack.tally("send", "-", "--account", tenant.account, stdin=_lines(f"new-{next(rounds)}"))
        return _metric(stack, "tally_dedup_expired_ids") >= before + 2 * _EVENTS

    until(expired, seconds=240, why="the first ids are expired")
    counted(stack, tenant, seconds=300)
    distinct = _events(stack, tenant)
    assert distinct == _EVENTS * (1 + next(rounds))
    recalled = _metric(stack, "tally_recalled_total")
    _send(stack, tenant, _lines("old"))
    assert _events(stack, tenant) == distinct
    assert _metric(stack, "tally_recalled_total") >= recalled + _EVENTS
    conflicts = _metric(stack, "tally_conflicts_total")
    _send(stack, tenant, _lines("old", value=2))
    assert _events(stack, tenant) == distinct
    assert _metric(stack, "tally_conflicts_total") == conflicts + _EVENTS

    restarts = stack.part("worker")["restarts"]
    worker = psutil.Process(stack.part("worker")["pid"])
    worker.send_signal(signal.SIGSTOP)  # nothing may be written into the folder while it goes
    folder = Path(stack.home) / "worker"
    shutil.rmtree(folder)
    os.kill(worker.pid, signal.SIGKILL)
    until(
        lambda: stack.part("worker")["restarts"] > restarts and stack.part("worker")["ready"], why="the worker is back"
    )
    _send(stack, tenant, _lines("old"))
    _send(stack, tenant, _lines("new-0"))
    assert _events(stack, tenant) == distinct
    assert stack.tally_json("audit")["drift"] == 0
