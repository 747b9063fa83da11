"""The oracle's own judgement of a log, on logs small enough to judge by hand, and the plan that it makes again."""

from typing import Any

import pytest
from events import MOVED, PLAIN, RAISED, SPELLED, content, home, identity, line, plan
from oracle import LogLine, judge, said

from pipeline.event import content_hash, decode_event, id_hash, partition_of

ARRIVAL_US = 1_800_000_000_000_000


def _line(offset: int, known: str | None, n: int, value: Any = 1, *, partition: int = 0, home: bool = True) -> LogLine:
    event = {"clientId": "c", "timestamp": "2025-08-01T00:00:00Z", "value": value, "data": {"n": n}}
    return LogLine(partition, offset, 0, {**event, **({"transactionId": known} if known else {})}, home, False)


def test_the_first_in_its_own_partition_counts() -> None:
    """Later ones are duplicates or conflicts; what lies elsewhere is sent on; no id means another event each time."""
    lines = [
        _line(0, "a", 1),
        _line(1, "a", 1, "1.0"),
        _line(2, "a", 1, 2),
        _line(3, None, 2),
        _line(4, None, 2),
        LogLine(0, 5, 0, None, True, False),
        _line(0, "b", 3, 9, partition=1, home=False),
        _line(1, "c", 4, partition=1),
    ]
    judged = judge("account", lines)
    assert dict(judged.counts[0]) == {"accepted": 3, "duplicates": 1, "conflicts": 1, "rejected": 1}
    assert dict(judged.counts[1]) == {"rerouted": 1, "accepted": 1}
    assert {n: [found.offset for found in lines] for n, lines in judged.accepted.items()} == {1: [0], 2: [3, 4], 4: [1]}
    assert judged.refused == {(0, 2, 0, "conflict"), (0, 5, 0, "rejected")}


def test_a_timestamp_that_a_door_filled_in_is_not_compared() -> None:
    """Two tries of one request are the same event."""
    one, other = (
        LogLine(0, 0, 0, {"clientId": "c", "timestamp": f"2026-01-01T00:00:0{s}Z", "data": {}}, True, True)
        for s in (1, 2)
    )
    assert said(one) == said(other)


@pytest.mark.parametrize("seed", [1, 2])
def test_variants_are_what_the_product_takes_them_for(seed: int) -> None:
    """SPELLED is the same event, RAISED and MOVED are others; values and instants are the plan's."""
    for n in range(300):
        plain, spelled, raised, moved = (
            decode_event(line(seed, (n, variant)), arrival_us=ARRIVAL_US, ahead_max_us=0)
            for variant in (PLAIN, SPELLED, RAISED, MOVED)
        )
        assert content_hash(plain) == content_hash(spelled)
        assert len({content_hash(event) for event in (plain, raised, moved)}) == 3
        wanted = content(seed, n)
        assert plain.timestamp_us == spelled.timestamp_us == wanted.timestamp_us
        assert plain.value * 10**9 == wanted.value
        assert plain.transaction_id == identity(seed, n)


def test_a_plan_is_the_same_each_time_and_has_everything_in_it() -> None:
    """Of every kind of batch there is one, also in a small plan; envelopes hold the ids of their partition."""
    batches = plan(3, "account", 2_000, 6)
    assert batches == plan(3, "account", 2_000, 6) != plan(4, "account", 2_000, 6)
    assert {batch.door for batch in batches} == {"kafka", "bulk", "kable", "autumn"}
    assert any(batch.bad and batch.door == "kafka" for batch in batches)
    assert any(batch.anonymous for batch in batches)
    assert any(batch.timeless for batch in batches)
    assert {variant for batch in batches for _, variant in batch.items} == {PLAIN, SPELLED, RAISED, MOVED}
    assert max(len(batch.items) for batch in plan(3, "account", 20_000, 6)) == 1000
    misplaced = sum(
        home("account", identity(3, n), 6) != batch.partition
        for batch in batches
        if batch.door == "kafka" and not batch.anonymous
        for n, _ in batch.items
    )
    assert 0 < misplaced < 500


def test_the_partition_of_an_id_is_the_products() -> None:
    """The plan's own rule and the product's give the same one."""
    for n in range(200):
        known = identity(5, n)
        assert home("account", known, 6) == partition_of(id_hash("account", known), 6)
