"""The store is away for a while: the worker waits, keeps its membership, tells so, and catches up by itself."""

import time

import httpx
import pytest
from running_stack import RunningStack, Tenant
from waiting import counted, until, usage

from pipeline.adapters.clickhouse import Store
from pipeline.ports import StoreUnavailable
from pipeline.settings import Settings

_WINDOW = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}


def _metric(stack: RunningStack, name: str) -> float:
    lines = httpx.get(f"{stack.worker}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_events_sent_while_the_store_hangs_count_once_it_is_back(stack: RunningStack, tenant: Tenant) -> None:
    """The engine's process is stopped, not ended."""
    restarts = stack.part("worker")["restarts"]
    lines = "\n".join(
        f'{{"clientId":"c","timestamp":"2025-05-01T00:00:00Z","transactionId":"{i}","eventName":"away"}}'
        for i in range(5_000)
    )
    with stack.standing_still("clickhouse"):
        stack.tally("send", "-", "--account", tenant.account, stdin=lines)
        until(lambda: _metric(stack, "tally_lag_records") > 0, why="lag shows")
        time.sleep(10)  # longer than requests of this stack stay valid: late ones are refused when the store wakes
    counted(stack, tenant, seconds=200)
    assert usage(stack, tenant, event_name="away", **_WINDOW)["data"][0]["value"] == "5000"
    assert stack.part("worker")["restarts"] == restarts
    until(lambda: httpx.get(f"{stack.worker}/readyz").status_code == 200, why="the worker is ready")
    assert stack.tally_json("audit")["drift"] == 0


def test_the_worker_says_when_it_is_ready(stack: RunningStack) -> None:
    """Live always, ready with reasons, metrics by partition."""
    assert httpx.get(f"{stack.worker}/livez").text.strip() == "ok"
    ready = until(
        lambda: found if (found := httpx.get(f"{stack.worker}/readyz")).status_code == 200 else None, why="ready"
    )
    assert ready.json() == {"ready": True, "reasons": []}
    text = httpx.get(f"{stack.worker}/metrics").text
    assert 'tally_accepted_total{partition="0"}' in text
    assert "# HELP tally_lag_records" in text


def test_a_store_that_is_not_there_is_told_by_name() -> None:
    """The address, and where to look."""
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        Store(Settings(clickhouse="http://127.0.0.1:1")).ping()
