"""`tally send` is stopped in the midst of a file; the same command again, and each line counts once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from client_programs import proxy_to
from running_stack import RunningStack, Tenant

from pipeline.adapters.clickhouse import Store
from producers.send_mark import mark_path

LINES = 150_000  # thirty batches, of which four are on their way at a time
ANSWER_S = 2.0  # how long each answer takes, so that there is a midst on any machine


@pytest.mark.faults
def test_a_stopped_sending_goes_on_and_counts_each_line_once(
    stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path
) -> None:
    """Lines without ids of their own, through the API; first Ctrl-C, then kill -9, then to the end."""
    path = tmp_path / "usage.csv"
    with path.open("w") as file:
        file.write("clientId,at,eventName\n")
        file.writelines(f"c,2026-01-31T12:00:00Z,e{n}\n" for n in range(LINES))
    mark = mark_path(str(path))
    with proxy_to(stack.api) as (proxy, url):
        command = ["send", str(path), "--map", "timestamp=at", "--api", url, "--key", tenant.key]
        proxy.delay(down_s=ANSWER_S)
        for number in (signal.SIGINT, signal.SIGKILL):
            before = _done(mark)
            with subprocess.Popen(
                [sys.executable, "-m", "tally", *command],
                cwd=stack.home,
                env=stack.environment(),
                stderr=subprocess.PIPE,
            ) as program:
                while program.poll() is None and _done(mark) <= before:
                    time.sleep(0.05)  # another program writes the file: nothing to await
                program.send_signal(number)
                told = program.communicate()[1].decode()
            assert before < _done(mark) < LINES, f"it was not stopped in the midst of the file: {told}"
            assert ("interrupted" in told) == (number == signal.SIGINT)
        proxy.heal()
        summary = stack.tally_json(*command)
    assert (summary["lines"], summary["sent"], summary["rejected"]) == (LINES, LINES, 0)
    assert summary["files"][0]["resumed_at"] > 0
    assert not mark.exists()
    end = time.monotonic() + 300
    while (counted := _counted(stack_store, tenant))[0] < LINES:
        assert time.monotonic() < end, f"{counted} of {LINES} are counted"
        time.sleep(0.1)
    assert counted == (LINES, LINES)


def _counted(store: Store, tenant: Tenant) -> tuple[int, ...]:
    """Rows, and lines of the file among them."""
    query = "SELECT count(), uniqExact(event_name) FROM events WHERE account = {a:String}"
    return tuple(store.query(query, {"a": tenant.account}).rows[0])


def _done(mark: Path) -> int:
    """The line up to which the mark says that all is done."""
    try:
        return int(json.loads(mark.read_bytes())["line"])
    except FileNotFoundError:
        return 0
