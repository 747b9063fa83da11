"""`tally send` is stopped in the midst of a file; the same command again, and each line counts once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from running_stack import RunningStack, Tenant
from waiting import until

from pipeline.adapters.clickhouse import Store
from producers.send_mark import mark_path

LINES = 100_000


def test_a_stopped_sending_goes_on_and_counts_each_line_once(
    stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path
) -> None:
    """Lines without ids of their own, straight to Kafka; first Ctrl-C, then kill -9, then to the end."""
    path = tmp_path / "usage.csv"
    with path.open("w") as file:
        file.write("clientId,at,eventName\n")
        file.writelines(f"c,2026-01-31T12:00:00Z,e{n}\n" for n in range(LINES))
    command = ["send", str(path), "--map", "timestamp=at", "--account", tenant.account]
    mark = mark_path(str(path))
    for number in (signal.SIGINT, signal.SIGKILL):
        before = _done(mark)
        with subprocess.Popen(
            [sys.executable, "-m", "tally", *command], cwd=stack.home, env=stack.environment(), stderr=subprocess.PIPE
        ) as program:
            until(lambda: program.poll() is not None or _done(mark) > before, why="more is marked as done")  # noqa: B023
            program.send_signal(number)
            told = program.communicate()[1].decode()
        assert before < _done(mark) < LINES, f"it was not stopped in the midst of the file: {told}"
        assert ("interrupted" in told) == (number == signal.SIGINT)
    summary = stack.tally_json(*command)
    assert (summary["lines"], summary["sent"], summary["rejected"]) == (LINES, LINES, 0)
    assert summary["files"][0]["resumed_at"] > 0
    assert not mark.exists()
    query = "SELECT count(), uniqExact(event_name) FROM events WHERE account = {a:String}"

    def counted() -> tuple[int, ...]:
        return tuple(stack_store.query(query, {"a": tenant.account}).rows[0])

    until(lambda: counted()[0] >= LINES, why="all lines are counted")
    assert counted() == (LINES, LINES)


def _done(mark: Path) -> int:
    """The line up to which the mark says that all is done."""
    try:
        return int(json.loads(mark.read_bytes()).get("line", 0))
    except FileNotFoundError:
        return 0
