"""kill -9 in the middle of the load: the same numbers, whoever dies."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest
from running_stack import RunningStack, Tenant
from waiting import counted, until, usage

from pipeline.adapters.kafka_admin import log_bounds

_WINDOW = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}
_EVENTS = 20_000


def _lines(seed: int) -> str:
    """Events over twelve months with a tenth of them twice."""
    draw = random.Random(seed)
    ids = [*range(_EVENTS), *draw.sample(range(_EVENTS), _EVENTS // 10)]
    draw.shuffle(ids)
    rows = [
        f'{{"clientId":"c{i % 97}","timestamp":"2025-{i % 12 + 1:02d}-{i % 28 + 1:02d}T{i % 24:02d}:00:00Z",'
        f'"transactionId":"{seed}-{i}","eventName":"load","value":{i % 13}}}'
        for i in ids
    ]
    return "\n".join(rows)


def _kill(stack: RunningStack, part: str) -> None:
    """SIGKILL to the part and its children."""
    process = psutil.Process(stack.part(part)["pid"])
    for victim in [*process.children(recursive=True), process]:
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _records(stack: RunningStack) -> int:
    """How many the log has."""
    settings = stack.settings
    return sum(end for _, end in log_bounds(settings, settings.topic_events, range(settings.partitions)).values())


def _load(stack: RunningStack, tenant: Tenant, seed: int) -> Callable[[], None]:
    """Sends in the background; call the result to wait for its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tally", "send", "-", "--account", tenant.account],
        cwd=stack.home,
        env=stack.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told: list[str] = []
    feeding = threading.Thread(target=lambda: told.append(process.communicate(_lines(seed))[0]))
    feeding.start()

    def join() -> None:
        feeding.join()
        assert process.returncode == 0, told

    return join


@pytest.mark.parametrize("victim", ["worker", "clickhouse", "kafka"])
def test_a_part_killed_during_the_load_changes_no_number(stack: RunningStack, tenant: Tenant, victim: str) -> None:
    """Killed three times while events come in and once after; the stack starts it again by itself."""
    seed = hash(victim) % 1000
    restarts = stack.part(victim)["restarts"]
    before = _records(stack)
    join = _load(stack, tenant, seed)
    # one that has not begun looks for Kafka only now and then, and might meet each of its absences
    until(lambda: _records(stack) > before, why="the load has begun")
    for done in range(1, 4):
        _kill(stack, victim)
        until(
            lambda done=done: stack.part(victim)["restarts"] >= restarts + done and stack.part(victim)["ready"],
            why=f"{victim} is back",
        )
    join()
    counted(stack, tenant)
    found = usage(stack, tenant, event_name="load", **_WINDOW)["data"][0]
    assert found["events"] == _EVENTS
    assert int(found["value"]) == sum(i % 13 for i in range(_EVENTS))
    by_facts = usage(stack, tenant, event_name="load", source="facts", **_WINDOW)["data"][0]
    assert (by_facts["events"], by_facts["value"]) == (found["events"], found["value"])
    assert stack.tally_json("audit")["drift"] == 0


def test_a_sender_that_starts_while_kafka_is_away_waits_for_it(stack: RunningStack, tenant: Tenant) -> None:
    restarts = stack.part("kafka")["restarts"]
    _kill(stack, "kafka")
    _load(stack, tenant, seed=77)()
    until(lambda: stack.part("kafka")["restarts"] > restarts, why="kafka is back")
    counted(stack, tenant)
    assert usage(stack, tenant, event_name="load", **_WINDOW)["data"][0]["events"] == _EVENTS
