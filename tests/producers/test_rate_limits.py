"""Each key's events per second: a bucket that fills by itself, and every door goes through it."""

import math
from typing import Any

import pytest
from door_bench import DAY_US, NOW_US, PARTITIONS, Doors
from hypothesis import given
from hypothesis import strategies as st

from pipeline.api_keys import Principal
from pipeline.transaction_id import new_transaction_id
from producers.api import Services, build_app
from producers.intake import Intake
from producers.problems import Problem
from producers.publisher import Publisher
from producers.rate_limits import RateLimits


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _key(name: str, per_s: int | None = None, burst: int | None = None) -> Principal:
    return Principal("acme", frozenset(), "", "hint", name, per_s, burst)


def _wait_s(limits: RateLimits, key: Principal, events: int) -> int:
    """Whole seconds until it may come again, 0 when it was taken."""
    try:
        limits.take(key, events)
    except Problem as problem:
        return int(problem.headers["Retry-After"])
    return 0


def test_a_burst_is_taken_and_then_the_rate_holds() -> None:
    """After the seconds that were told it is taken."""
    clock = Clock()
    limits, key = RateLimits(clock), _key("a", 10, 20)
    assert [_wait_s(limits, key, 10) for _ in range(3)] == [0, 0, 1]
    clock.now_s += 1
    assert [_wait_s(limits, key, 5) for _ in range(3)] == [0, 0, 1]


def test_what_is_refused_is_not_counted() -> None:
    """Asking too often does not put it off."""
    clock = Clock()
    limits, key = RateLimits(clock), _key("a", 1, 4)
    assert _wait_s(limits, key, 4) == 0
    assert {_wait_s(limits, key, 3) for _ in range(50)} == {3}
    clock.now_s += 3
    assert _wait_s(limits, key, 3) == 0


def test_a_request_larger_than_the_burst_is_paid_off_afterwards() -> None:
    """It is taken once the bucket is full; what comes next waits for all of it."""
    clock = Clock()
    limits, key = RateLimits(clock), _key("a", 10, 20)
    assert _wait_s(limits, key, 100) == 0
    assert _wait_s(limits, key, 1) == 9  # 80 owed and one wanted
    clock.now_s += 9
    assert _wait_s(limits, key, 1) == 0


def test_keys_have_buckets_of_their_own_and_a_default() -> None:
    """Ten seconds of it at once; 0 is no limit, and none is the default's default."""
    limits = RateLimits(Clock(), default_events_per_s=5)
    assert [_wait_s(limits, _key(name), 50) for name in ("a", "b", "a")] == [0, 0, 10]
    assert {_wait_s(limits, _key("free", 0), 10_000) for _ in range(100)} == {0}
    assert {_wait_s(RateLimits(Clock()), _key("c"), 10_000) for _ in range(100)} == {0}
    assert _wait_s(limits, _key("a", 100), 50) == 0  # another limit begins anew


def test_buckets_that_are_full_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that owe are kept."""
    monkeypatch.setattr("producers.rate_limits._BUCKETS_MAX", 10)
    clock = Clock()
    limits = RateLimits(clock, default_events_per_s=1)
    assert _wait_s(limits, _key("owes"), 1000) == 0
    for number in range(100):
        clock.now_s += 2
        assert _wait_s(limits, _key(f"k{number}"), 1) == 0
    assert _wait_s(limits, _key("owes"), 1) == 791
    assert len(limits._buckets) <= 10


@given(st.integers(1, 100), st.integers(1, 300), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500)), max_size=60))
def test_never_more_than_the_rate_allows(per_s: int, burst: int, asked: list[tuple[float, int]]) -> None:
    """Over any time: the burst, what the rate gave, and what the last request went beyond; no wait is in vain."""
    clock = Clock()
    limits, key = RateLimits(clock), _key("a", per_s, burst)
    taken = last = 0
    for pause_s, events in asked:
        clock.now_s += pause_s
        if wait_s := _wait_s(limits, key, events):
            clock.now_s += wait_s
            assert _wait_s(limits, key, events) == 0
        taken, last = taken + events, events
        assert taken - max(0, last - burst) <= burst + math.ceil(per_s * (clock.now_s - 1000.0)) + 1


# ------------------------------------------------------------------------------------------------ doors

_EVENT = {"clientId": "124", "timestamp": "2026-01-01T00:00:00Z"}
_USE = {"customer_id": "124", "feature_id": "ai-messages", "value": 1}
_CLOUD = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "subject": "124"}
_TRACK = {"type": "track", "userId": "124", "event": "e"}
_DOORS: dict[str, tuple[str, Any, int]] = {
    "Kable": ("/api/v1/events", _EVENT, 1),
    "Kable's list": ("/api/v1/events", [_EVENT] * 3, 3),
    "Kable's create": ("/api/v1/events/create", _EVENT, 1),
    "CloudEvents": ("/api/v1/events", _CLOUD, 1),
    "bulk": ("/v1/events/batch", [_EVENT] * 2, 2),
    "Autumn's events": ("/v1/events", _USE, 1),
    "Autumn's track": ("/v1/track", _USE, 1),
    "Autumn's balances.track": ("/v1/balances.track", _USE, 1),
    "Autumn's batch": ("/v1/balances.batch_track", [_USE] * 3, 3),
    "Autumn's check": ("/v1/check", {"customer_id": "124", "feature_id": "ai-messages", "send_event": True}, 1),
    "Segment's track": ("/segment/v1/track", _TRACK, 1),
    "Segment's batch": ("/segment/v1/batch", {"batch": [_TRACK, {**_TRACK, "event": "f"}]}, 2),
    "Kana": (
        "/graphql",
        {"query": 'mutation { createUsageEvent(input: {userId: "124", featureId: "ai-messages", delta: 1}) }'},
        1,
    ),
}


@pytest.mark.parametrize("door", _DOORS)
async def test_every_door_keeps_to_the_keys_limit(doors: Doors, door: str) -> None:
    """A list counts its events; a refused request publishes nothing; another key goes on."""
    path, body, events = _DOORS[door]
    clock = Clock()
    intake = Intake(
        Publisher(doors.log, topic="events", partitions=PARTITIONS),
        doors.intake.catalog,
        clock_us=lambda: NOW_US,
        ahead_max_us=DAY_US,
        new_id=new_transaction_id,
        limits=RateLimits(clock),
    )
    fields = {"scopes": ["admin"], "events_per_s": 1, "burst": 2 * events}
    key = (await doors.catalog.create_key("acme", fields)).secret
    client = doors.on(build_app(Services(intake, {})))

    async def post(secret: str) -> Any:
        return await client.post(path, json=body, headers={"authorization": f"Bearer {secret}"})

    for _ in range(2):
        answer = await post(key)
        assert answer.is_success, answer.text
        assert "errors" not in (answer.json() if answer.content else {})
    before = len(doors.log.lines())
    assert before == 2 * events
    refused = await post(key)
    assert refused.status_code == 429, refused.text
    assert refused.headers["retry-after"] == str(events)
    if door == "Kana":
        (error,) = refused.json()["errors"]
        assert error["extensions"] == {"code": "TOO_MANY_REQUESTS", "retryAfter": 1}
    else:
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "rate_limited"
    assert len(doors.log.lines()) == before
    assert (await post(doors.key)).is_success
    clock.now_s += events
    assert (await post(key)).is_success
