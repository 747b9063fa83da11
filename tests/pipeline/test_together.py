"""Group commit: who comes while a write is under way shares the next one, and its failure."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipeline.adapters.together import TogetherWriter

WRITERS = 6


class _Slow:
    """Writes that go on when they are let; the second one fails where it is asked to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.writes: list[list[int]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self._fails = fails

    def __call__(self, rows: Sequence[int]) -> None:
        self.writes.append(list(rows))
        self.begun.set()
        assert self.go_on.wait(10)
        if self._fails and len(self.writes) == 2:
            raise ConnectionError("the server went away")


def all_at_once(slow: _Slow) -> list[Future[None]]:
    """One write that is under way while the others come."""
    writer = TogetherWriter(slow)
    with ThreadPoolExecutor(WRITERS) as threads:
        found = [threads.submit(writer.write, [0, 0])]
        assert slow.begun.wait(10)
        found += [threads.submit(writer.write, [number]) for number in range(1, WRITERS)]
        while len(writer._waiting) < WRITERS - 1:
            threading.Event().wait(0.001)
        slow.go_on.set()
    return found


def test_those_who_come_meanwhile_share_one_write() -> None:
    slow = _Slow()
    for written in all_at_once(slow):
        written.result()
    first, *shared = slow.writes
    assert first == [0, 0]
    assert [sorted(rows) for rows in shared] == [list(range(1, WRITERS))]


def test_a_write_that_fails_fails_for_all_who_share_it_and_for_nobody_else() -> None:
    slow = _Slow(fails=True)
    first, *shared = all_at_once(slow)
    first.result()
    for written in shared:
        with pytest.raises(ConnectionError):
            written.result()


def test_after_a_failure_the_next_write_is_tried() -> None:
    tried: list[list[int]] = []

    def write(rows: Sequence[int]) -> None:
        tried.append(list(rows))
        if len(tried) == 1:
            raise ConnectionError

    writer = TogetherWriter(write)
    with pytest.raises(ConnectionError):
        writer.write([1])
    writer.write([1])
    assert tried == [[1], [1]]


def test_the_first_one_waits_for_others_where_it_may() -> None:
    """Those who come one after the other share a write, too."""
    writes: list[list[int]] = []
    writer = TogetherWriter(lambda rows: writes.append(sorted(rows)))
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(lambda number: writer.write([number], linger_s=0.5), range(WRITERS)))
    assert writes == [list(range(WRITERS))]
