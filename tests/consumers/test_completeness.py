"""Until when everything is counted: how old an answer may be, and what several threads ask for."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from consumers.completeness import Complete, Completeness

_FIRST = datetime(2026, 11, 1, tzinfo=UTC)
_PARTITIONS = 3


class _Answer:
    columns = ("partitions", "complete", "lag_s")

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.rows = [row]


class _Store:
    """Tells a time that is a second later at each question."""

    def __init__(self) -> None:
        self.asked = 0
        self.reported = _PARTITIONS
        self.down = False
        self.free = threading.Event()
        self.free.set()

    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> _Answer:
        assert "FROM progress" in sql
        assert parameters == {"topic": "events"}
        assert settings is None
        self.asked += 1
        number = self.asked
        self.free.wait()
        if self.down:
            raise ConnectionError("the store is away")
        return _Answer((self.reported, _FIRST + timedelta(seconds=number), Decimal("0.250")))


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _made(store: _Store, clock: _Clock) -> Completeness:
    return Completeness(store, topic="events", partitions=_PARTITIONS, clock=clock)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_an_answer_serves_for_a_second_and_is_counted_on() -> None:
    """What is told stays true; how far it is behind grows with the clock."""
    store, clock = _Store(), _Clock()
    complete = _made(store, clock)
    assert complete() == Complete(100.0, _FIRST + timedelta(seconds=1), Decimal("0.250"))
    clock.now += 0.9
    assert complete() == Complete(100.0, _FIRST + timedelta(seconds=1), Decimal("1.150"))
    assert store.asked == 1


def test_after_a_second_it_is_read_beside_the_answer_once() -> None:
    """However many ask meanwhile; none of them waits for the store."""
    store, clock = _Store(), _Clock()
    complete = _made(store, clock)
    complete()
    store.free.clear()
    clock.now += 1.5
    for _ in range(5):
        assert complete().until == _FIRST + timedelta(seconds=1)
    _until(lambda: store.asked == 2)
    assert complete().until == _FIRST + timedelta(seconds=1)
    store.free.set()
    _until(lambda: complete().until == _FIRST + timedelta(seconds=2))
    assert store.asked == 2


def test_after_two_seconds_nothing_old_is_told() -> None:
    """The store is asked first, by one of those who wait for it; where it is away, they are told so."""
    store, clock = _Store(), _Clock()
    complete = _made(store, clock)
    complete()
    clock.now += 2.1
    told: list[datetime | None] = []
    threads = [threading.Thread(target=lambda: told.append(complete().until)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [_FIRST + timedelta(seconds=2)] * 4
    assert store.asked == 2
    clock.now += 2.1
    store.down = True
    with pytest.raises(ConnectionError):
        complete()


def test_a_failure_beside_an_answer_is_told_to_who_has_to_wait() -> None:
    """The answer before it holds until it is two seconds old."""
    store, clock = _Store(), _Clock()
    complete = _made(store, clock)
    complete()
    store.down = True
    clock.now += 1.5
    assert complete().until == _FIRST + timedelta(seconds=1)
    _until(lambda: store.asked == 2)
    clock.now += 1
    with pytest.raises(ConnectionError):
        complete()


def test_until_all_have_reported_it_is_asked_each_time() -> None:
    """Nothing is promised meanwhile, nor kept."""
    store, clock = _Store(), _Clock()
    complete = _made(store, clock)
    store.reported = _PARTITIONS - 1
    assert [complete(), complete()] == [Complete(100.0)] * 2
    store.reported = _PARTITIONS
    assert complete().until == _FIRST + timedelta(seconds=3)
