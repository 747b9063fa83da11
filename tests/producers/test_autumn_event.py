"""A plain call to track is decoded the quick way, and nobody can tell."""

import json
from typing import Any

import msgspec
from door_bench import DAY_US, NOW_US
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.event import Event, content_hash, decode_event
from producers.autumn_event import tracked, tracked_quickly
from producers.body import decode_object
from producers.intake import Intake
from producers.problems import Problem
from producers.verdicts import Stated

ARRIVAL: Any = msgspec.defstruct("Arrival", ["clock_us", "ahead_max_us"])(lambda: NOW_US, DAY_US)
INTAKE: Intake = ARRIVAL  # as much of an intake as decoding needs

PLAIN: dict[str, object] = {
    "customer_id": "124",
    "event_name": "email_generation",
    "idempotency_key": "a:b",
    "timestamp": "2026-01-01T00:00:00.5+01:00",
    "value": 2,
    "properties": {"region": "eu:1", "tokens": 17, "nested": {"a": [1, {"b": None}]}},
}

texts = st.one_of(st.text(max_size=12), st.sampled_from(["", ":", "a:b", "é", '"', "\\", "x" * 257, "\n"]))
numbers = st.one_of(
    st.sampled_from(["1", "0", "-0.0", "1.50", "1e3", "1E-9", "1e-10", "1e40", "NaN", "true", '"3"', "null", "1" * 70]),
    st.integers().map(str),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 10**20), texts), lambda of: st.lists(of, max_size=2)
)
members = {
    "customer_id": st.one_of(texts, st.integers(), st.none()).map(json.dumps),
    "event_name": st.one_of(texts, st.none()).map(json.dumps),
    "feature_id": st.one_of(texts, st.none()).map(json.dumps),
    "idempotency_key": st.one_of(texts, st.none()).map(json.dumps),
    "entity_id": st.one_of(texts, st.none()).map(json.dumps),
    "timestamp": st.one_of(
        st.sampled_from(["2026-01-01T00:00:00Z", "2026-06-30T23:59:60Z", "2026-01-01", "1970-01-01T00:00:00+01:00", 5]),
        st.none(),
    ).map(json.dumps),
    "value": numbers,
    "properties": st.one_of(st.dictionaries(texts, values, max_size=3), values).map(json.dumps),
    "customer_data": st.just("{}"),
    "unknown": st.just("1"),
}
bodies = st.lists(
    st.sampled_from(list(members)).flatmap(lambda name: st.tuples(st.just(name), members[name])), max_size=8
).flatmap(lambda pairs: st.tuples(st.just(pairs), st.sampled_from([":", " :", ": ", ":\n"]), st.booleans()))


def explained(body: bytes) -> Stated | None:
    """What the way that explains refusals makes of it."""
    try:
        return tracked(decode_object(body), INTAKE)
    except Problem:
        return None


def said(event: Event) -> tuple[object, ...]:
    """All that is counted of an event, and its id."""
    return event.transaction_id, event.timestamp_us, event.value, event.kind, content_hash(event)


@given(bodies)
@settings(max_examples=600, deadline=None)
def test_the_quick_way_takes_nothing_that_the_other_refuses(
    made: tuple[list[tuple[str, str]], str, bool],
) -> None:
    """Keys that come twice, odd numbers, wrong types, unknown fields: what it takes is the same event, and its line
    says so to the worker."""
    pairs, colon, plain_too = made
    given_pairs = [*((k, json.dumps(v)) for k, v in PLAIN.items() if plain_too and k not in dict(pairs)), *pairs]
    body = ("{" + ",".join(f'"{name}"{colon}{value}' for name, value in given_pairs) + "}").encode()
    found = tracked_quickly(body, INTAKE)
    if found is None:
        return
    stated, line = found
    slow = explained(body)
    assert slow is not None
    assert stated.defaulted == slow.defaulted
    assert said(stated.event) == said(slow.event)
    read = decode_event(line, arrival_us=NOW_US, ahead_max_us=DAY_US, timestamp_default_us=NOW_US)
    assert said(read) == said(slow.event)


def test_a_plain_call_goes_the_quick_way() -> None:
    """With every field that the dialect shares with the event, in either spelling of its name."""
    assert tracked_quickly(json.dumps(PLAIN).encode(), INTAKE) is not None
    feature = {"customer_id": "124", "feature_id": "ai-messages", "entity_id": "seat"}
    found = tracked_quickly(json.dumps(feature).encode(), INTAKE)
    assert found is not None
    assert found[0].defaulted
