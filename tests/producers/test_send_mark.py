"""A sending that was stopped goes on: nothing is lost and nothing counts twice, also lines without an id."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from door_bench import DAY_US, NOW_US
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.event import Event, FieldError
from pipeline.transaction_id import new_transaction_id
from producers.file_destinations import Nowhere
from producers.file_rows import FileRefused
from producers.files import DestinationAway, Rules, Summary, send_files
from producers.send_mark import mark_path

RULES = Rules(clock_us=lambda: NOW_US, new_id=new_transaction_id, ahead_max_us=DAY_US, batch_lines_max=3)
FIELDS = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z"}


class Killed(BaseException):
    """What nobody has foreseen, in the midst of a delivery. A real kill is in `test_send_stopped.py`."""


class Counting:
    """A destination that counts an id once, as the worker does; and is away, or the program's end, at some batch."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.deliveries = 0
        self.away_from = self.killed_at = 10**9

    async def deliver(self, events: Sequence[Event]) -> Sequence[tuple[FieldError, ...]]:
        """Takes the batch, and may then fail all the same: its answer is lost."""
        self.deliveries += 1
        number = self.deliveries
        await asyncio.sleep(0)
        for event in events:
            assert event.transaction_id is not None
            assert self.names.setdefault(event.transaction_id, event.event_name or "") == event.event_name
        if number >= self.killed_at:
            raise Killed
        if number >= self.away_from:
            raise DestinationAway("no answer")
        return [()] * len(events)


def write_events(path: Path, count: int, *, bad: int | None = None) -> None:
    """Events without ids, told apart by their names; one of them bad."""
    lines = [json.dumps({**FIELDS, "eventName": f"{path.name}-{n}"} if n != bad else {"n": n}) for n in range(count)]
    path.write_text("\n".join(lines))


def send(
    paths: Sequence[Path], to: Counting, *, name: str = "", rejects: Path | None = None, mark_every_s: float = 0
) -> Summary:
    """One attempt."""
    rules = msgspec.structs.replace(RULES, mark_every_s=mark_every_s)
    return asyncio.run(send_files([str(path) for path in paths], to, rules, to=name, rejects_path=rejects))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=3),
    st.integers(0, 18),
    st.booleans(),
    st.sampled_from([0.0, 60.0]),
)
@settings(max_examples=20)
def test_each_line_counts_once_however_often_the_sending_was_stopped(
    tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[bool, int]], bad: int, shared: bool, mark_every_s: float
) -> None:
    """By the destination's failure or by a kill, in any batch of two files; rejects are told once, too. Also where the
    mark lags behind."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / "a", folder / "b"]
    write_events(paths[0], 9, bad=bad)
    write_events(paths[1], 9, bad=bad - 9)
    rejects = folder / "bad" if shared else None
    to = Counting()
    for kill, after in stops:
        setattr(to, "killed_at" if kill else "away_from", to.deliveries + after)
        try:
            if not any(file.failure for file in send(paths, to, rejects=rejects, mark_every_s=mark_every_s).files):
                return  # it was done before the stop; sent anew, lines without id would count again
        except Killed:
            pass
        to.killed_at = to.away_from = 10**9
    summary = send(paths, to, rejects=rejects, mark_every_s=mark_every_s)
    bad_lines = zip(paths, (bad, bad - 9), strict=True)
    wanted = [f"{path.name}-{n}" for path, skip in bad_lines for n in range(9) if n != skip]
    assert sorted(to.names.values()) == sorted(wanted)
    told = [json.loads(line) for path in folder.glob("*.rejects") for line in path.read_text().splitlines()]
    told += [json.loads(line) for line in rejects.read_text().splitlines()] if rejects and rejects.exists() else []
    assert len(told) == (bad < 18) == summary.total("rejected")
    assert (summary.total("lines"), summary.total("sent")) == (18, 18 - (bad < 18))
    assert not list(folder.glob("*.sending*"))


def test_a_mark_is_of_one_content_and_one_destination(tmp_path: Path) -> None:
    """Anything else is refused, with the way out."""
    path, to = tmp_path / "a", Counting()
    write_events(path, 20)
    to.away_from = 3
    assert send([path], to, name="here").exit_code == 1
    with pytest.raises(FileRefused, match="that was to here"):
        send([path], to, name="there")
    path.write_text(path.read_text() + "\n" + json.dumps({**FIELDS, "eventName": "late"}))
    with pytest.raises(FileRefused, match=r"changed since.*remove .*a\.sending"):
        send([path], to, name="here")
    mark_path(str(path)).write_text("{")
    with pytest.raises(FileRefused, match="no mark"):
        send([path], to, name="here")


def test_a_dry_run_sends_nothing_and_leaves_no_mark(tmp_path: Path) -> None:
    """It tells what could be sent, and writes down what could not."""
    path = tmp_path / "a"
    write_events(path, 20, bad=7)
    rules = Rules(clock_us=RULES.clock_us, new_id=RULES.new_id, ahead_max_us=DAY_US, dry_run=True)
    summary = asyncio.run(send_files([str(path)], Nowhere(), rules))
    assert (summary.total("sent"), summary.total("rejected"), summary.exit_code) == (19, 1, 1)
    assert "nothing was" in summary.as_text()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a", "a.rejects"]
