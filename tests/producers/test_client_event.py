"""The client's events: what it takes the API takes with the same content, what the API refuses it refuses at once."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import event as server
from pipeline.event import YEAR_2100_US, Event, EventError, decode_event, parse_document, parse_timestamp
from producers.client import InvalidEvent
from producers.client import event as client
from producers.client.event import usage_event

AT = datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC)
LONE = "\ud800"


def decoded(line: bytes) -> Event:
    """By the API's own decoder, whatever the timestamp."""
    return decode_event(line, arrival_us=YEAR_2100_US, ahead_max_us=0)


def test_the_limits_are_the_apis() -> None:
    """Stated twice, because the client imports nothing of the server."""
    for name in ("ID_CHARS_MAX", "DATA_BYTES_MAX", "DATA_DEPTH_MAX", "WHOLE_DIGITS_MAX", "FRACTION_DIGITS_MAX"):
        assert getattr(client, name) == getattr(server, name)


def test_an_event_gets_an_id_and_its_instant_at_once() -> None:
    """A UUIDv7, and now in UTC to the microsecond."""
    before = datetime.now(UTC)
    first, second = usage_event("c"), usage_event("c")
    assert first.transaction_id != second.transaction_id
    found = decoded(first.line)
    assert found.transaction_id == first.transaction_id
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=found.timestamp_us)
    assert before <= at <= datetime.now(UTC)
    assert re.search(rb'"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"', first.line)


def test_everything_given_arrives() -> None:
    """Under the names of the wire, with exact numbers."""
    event = usage_event(
        'c"\n',
        feature_id="f",
        value=Decimal("1.50"),
        data={"a": [1, 2.5, Decimal("0.1"), None, True, {"ü": "x"}], "n": 10**30},
        timestamp=AT.astimezone(timezone(timedelta(hours=2))),
        transaction_id="t",
        entity_id="seat",
    )
    found = decoded(event.line)
    assert (found.client_id, found.feature_id, found.entity_id) == ('c"\n', "f", "seat")
    assert (found.transaction_id, found.value) == ("t", Decimal("1.5"))
    assert found.timestamp_us == (AT - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert found.document == {"a": [1, Decimal("2.5"), Decimal("0.1"), None, True, {"ü": "x"}], "n": 10**30}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"client_id": 7}, "client_id"),
    "empty": ({"client_id": ""}, "client_id"),
    "long": ({"client_id": "x" * 257}, "client_id"),
    "surrogate": ({"client_id": LONE}, "client_id"),
    "id no text": ({"transaction_id": 7}, "transaction_id"),
    "empty id": ({"transaction_id": ""}, "transaction_id"),
    "both names": ({"event_name": "a", "feature_id": "b"}, "event_name"),
    "entity": ({"entity_id": 1}, "entity_id"),
    "float": ({"value": 1.5}, "value"),
    "bool": ({"value": True}, "value"),
    "nan": ({"value": Decimal("NaN")}, "value"),
    "infinity": ({"value": "Infinity"}, "value"),
    "words": ({"value": "many"}, "value"),
    "thirty digits": ({"value": 10**29}, "value"),
    "ten places": ({"value": "0.0000000001"}, "value"),
    "naive": ({"timestamp": AT.replace(tzinfo=None)}, "timestamp"),
    "bare date": ({"timestamp": "2026-01-31"}, "timestamp"),
    "no offset": ({"timestamp": "2026-01-31T12:00:00"}, "timestamp"),
    "epoch": ({"timestamp": 1767225600}, "timestamp"),
    "month 13": ({"timestamp": "2026-13-01T00:00:00Z"}, "timestamp"),
    "too old": ({"timestamp": "1969-12-31T23:59:59Z"}, "timestamp"),
    "too late": ({"timestamp": "2100-01-01T00:00:00Z"}, "timestamp"),
    "no leap second": ({"timestamp": "2026-01-01T12:00:60Z"}, "timestamp"),
    "list": ({"data": [1]}, "data"),
    "deep": ({"data": reduce(lambda inner, _: {"a": inner}, range(65), {})}, "data"),
    "large": ({"data": {"a": "x" * 65_536}}, "data"),
    "nan inside": ({"data": {"a": {"b": [0, float("nan")]}}}, "data.a.b[1]"),
    "surrogate inside": ({"data": {"a": LONE}}, "data.a"),
    "key": ({"data": {1: 2}}, "data"),
    "object": ({"data": {"when": AT}}, "data.when"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named_at_once(name: str) -> None:
    """By its name in Python, with the path inside data."""
    arguments, field = BAD[name]
    with pytest.raises(InvalidEvent) as caught:
        usage_event(**{"client_id": "c", **arguments})
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


_texts = st.text(max_size=12) | st.sampled_from(["x" * 256, "x" * 257, LONE, "a:b", '"\\', "\x00\x7f\u2028"])
_numbers = (
    st.integers()
    | st.decimals(allow_nan=True, allow_infinity=True)
    | st.from_regex(r"[+-]?[0-9]{0,31}\.?[0-9]{0,11}([eE][+-]?[0-9]{1,3})?", fullmatch=True)
    | st.floats(allow_nan=False)
)
_leaves = st.none() | st.booleans() | _texts | st.integers() | st.decimals(allow_nan=True) | st.floats()
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=8
)
_documents = st.dictionaries(_texts, _values, max_size=4)


def _server_says(fields: dict[str, Any]) -> Event | None:
    """What the rules of the server make of the same values."""
    try:
        return server.make_event(
            timestamp="2026-01-01T00:00:00Z", arrival_us=YEAR_2100_US, ahead_max_us=0, transaction_id="t", **fields
        )
    except EventError:
        return None


@given(client_id=_texts, value=_numbers, entity_id=st.none() | _texts)
def test_ids_and_values_are_judged_as_the_server_judges(client_id: str, value: Any, entity_id: str | None) -> None:
    """Taken by both with the same content, or refused by both."""
    fields = {"client_id": client_id, "value": value, "entity_id": entity_id}
    wanted = _server_says(fields)
    try:
        event = usage_event(timestamp="2026-01-01T00:00:00Z", transaction_id="t", **fields)
    except InvalidEvent:
        assert wanted is None
        return
    found = decoded(event.line)
    assert wanted is not None
    assert (found.client_id, found.value, found.entity_id) == (client_id, wanted.value, entity_id)


@given(_documents)
def test_what_the_client_takes_as_data_arrives_exactly(data: dict[str, Any]) -> None:
    """Decimals digit for digit; floats by their shortest form."""
    try:
        event = usage_event("c", data=data)
    except InvalidEvent:
        with pytest.raises(EventError):
            server.make_event(client_id="c", timestamp=0, arrival_us=0, ahead_max_us=0, data=_exact(data))
        return
    found = decoded(event.line).document
    assert found == parse_document(client._data(data).encode())
    assert found == _exact(data)


def _exact(value: Any) -> Any:
    """Floats by their shortest form."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {key: _exact(part) for key, part in value.items()}
    return [_exact(part) for part in value] if isinstance(value, list) else value


_INSTANT = r"(1969|2016|2026|2099)-\d\d-[0-3]\d[Tt ][0-2]\d:\d\d:[0-6]\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?"
_zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(min_value=datetime(1960, 1, 1), max_value=datetime(2110, 1, 1), timezones=_zones).map(  # noqa: DTZ001
        lambda at: at.isoformat()
    )
    | st.from_regex(_INSTANT, fullmatch=True)
)
def test_timestamps_are_judged_as_the_server_judges(text: str) -> None:
    """The same texts are instants, and the same ones."""
    try:
        wanted = parse_timestamp(text)
    except ValueError:
        with pytest.raises(InvalidEvent):
            usage_event("c", timestamp=text)
        return
    assert decoded(usage_event("c", timestamp=text).line).timestamp_us == wanted
