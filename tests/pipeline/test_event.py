"""The event and its rules: a line of JSON is an event or says by field why it is none."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import event as rules
from pipeline.event import (
    DATA_BYTES_MAX,
    LINE_BYTES_MAX,
    YEAR_2100_US,
    Event,
    EventError,
    content_hash,
    decode_event,
    derived_id_hash,
    encode_event,
    format_timestamp,
    id_hash,
    make_event,
    parse_timestamp,
    parse_value,
    partition_of,
)

NOW_US = int(datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US = 86_400_000_000


def line(**fields: Any) -> bytes:
    """A good event with these fields changed; ... leaves one out."""
    good = {"clientId": "c1", "timestamp": "2026-06-15T12:00:00Z", **fields}
    return json.dumps({name: value for name, value in good.items() if value is not ...}).encode()


def decode(raw: bytes) -> Event:
    """As the worker does."""
    return decode_event(raw, arrival_us=NOW_US, ahead_max_us=DAY_US)


def faults(raw: bytes) -> list[tuple[str, str]]:
    """Field and code of everything that is wrong."""
    with pytest.raises(EventError) as caught:
        decode(raw)
    assert caught.value.errors
    return [(error.field, error.code) for error in caught.value.errors]


# ------------------------------------------------------------------------------------------------ fields

REFUSED = [
    (line(clientId=...), "clientId", "required"),
    (line(clientId=""), "clientId", "range"),
    (line(clientId="x" * 257), "clientId", "range"),
    (line(clientId=7), "clientId", "type"),
    (line(clientId=None), "clientId", "required"),
    (line(timestamp=...), "timestamp", "required"),
    (line(timestamp=1_700_000_000), "timestamp", "type"),
    (line(timestamp="2026-06-15"), "timestamp", "format"),
    (line(timestamp="2026-06-15T12:00:00"), "timestamp", "format"),
    (line(timestamp="2026-02-29T12:00:00Z"), "timestamp", "format"),
    (line(timestamp="2026-06-15T24:00:00Z"), "timestamp", "format"),
    (line(timestamp="1969-12-31T23:59:59Z"), "timestamp", "format"),
    (line(timestamp="2100-01-01T00:00:00Z"), "timestamp", "format"),
    (line(timestamp="2026-06-16T12:00:00.000001Z"), "timestamp", "range"),
    (line(transactionId=""), "transactionId", "range"),
    (line(transactionId=5), "transactionId", "type"),
    (line(eventName="a" * 257), "eventName", "range"),
    (line(featureId=[]), "featureId", "type"),
    (line(eventName="a", featureId="b"), "eventName", "exclusive"),
    (line(eventName="a", featureId="b"), "featureId", "exclusive"),
    (line(value=None), "value", "format"),
    (line(value=True), "value", "format"),
    (line(value="NaN"), "value", "format"),
    (line(value="Infinity"), "value", "format"),
    (line(value="1_000"), "value", "format"),
    (line(value=10**29), "value", "range"),
    (line(value="0.0000000001"), "value", "range"),
    (line(kind="set"), "kind", "not_built"),
    (line(kind="void", targetId="t"), "kind", "not_built"),
    (line(kind="other"), "kind", "format"),
    (line(kind=1), "kind", "format"),
    (line(targetId="t"), "targetId", "not_built"),
    (line(entityId=0), "entityId", "type"),
    (line(data=[]), "data", "type"),
    (line(data="text"), "data", "type"),
    (line(data={"x": "y" * DATA_BYTES_MAX}), "data", "too_large"),
    (line(transaction_id="t"), "transaction_id", "unknown_field"),
    (b'{"clientId":"c","clientId":"d","timestamp":"2026-06-15T12:00:00Z"}', "clientId", "duplicate_key"),
    (b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":1,"a":2}}', "a", "duplicate_key"),
    (b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":{"b":1,"b":1}}}', "b", "duplicate_key"),
    (b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":1,"value":1}', "value", "duplicate_key"),
    (b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":NaN}', "value", "format"),
    (b'{"clientId":"\\ud800","timestamp":"2026-06-15T12:00:00Z"}', "clientId", "encoding"),
    (b"[]", "", "type"),
    (b"7", "", "type"),
    (b"{", "", "syntax"),
    (b'{"clientId":"c"} {}', "", "syntax"),
    (b"\xff\xfe", "", "encoding"),
    (b"x" * (LINE_BYTES_MAX + 1), "", "too_large"),
]


@pytest.mark.parametrize(("raw", "field", "code"), REFUSED)
def test_a_broken_rule_is_named_by_its_field(raw: bytes, field: str, code: str) -> None:
    """Field and code are stable; clients act on them."""
    assert (field, code) in faults(raw)


def test_all_faults_of_a_line_are_named_at_once() -> None:
    """Who sends it need not try again field by field."""
    found = {field for field, _ in faults(line(clientId=1, timestamp="x", value="y", extra=1, eventName=""))}
    assert found == {"clientId", "timestamp", "value", "extra", "eventName"}


def test_what_is_left_out_has_its_default_and_null_is_left_out() -> None:
    """value 1, kind delta, nothing else."""
    bare = decode(line())
    assert bare == Event(client_id="c1", timestamp_us=NOW_US)
    names = ("transactionId", "eventName", "featureId", "entityId", "data", "targetId")
    assert decode(line(**dict.fromkeys(names), kind="delta")) == bare


def test_ids_of_256_characters_of_any_script_are_taken() -> None:
    """Characters count, not bytes."""
    assert decode(line(clientId="ß" * 256, transactionId="語" * 256)).transaction_id == "語" * 256


def test_a_door_may_default_the_timestamp() -> None:
    """Only where there is none."""
    options = {"arrival_us": NOW_US, "ahead_max_us": 0, "timestamp_default_us": 5}
    assert decode_event(line(timestamp=...), **options).timestamp_us == 5
    assert decode_event(line(), **options).timestamp_us == NOW_US


# ------------------------------------------------------------------------------------------------ timestamps


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-06-15T12:00:00+00:00", "2026-06-15T12:00:00Z"),
        ("2026-06-15t12:00:00z", "2026-06-15T12:00:00Z"),
        ("2026-06-15 12:00:00Z", "2026-06-15T12:00:00Z"),
        ("2026-06-15T17:45:00+05:45", "2026-06-15T12:00:00Z"),
        ("2026-06-14T21:00:00-15:00", "2026-06-15T12:00:00Z"),
        ("2026-06-15T12:00:00.1234569Z", "2026-06-15T12:00:00.123456Z"),
        ("2026-06-15T12:00:00.9999999999Z", "2026-06-15T12:00:00.999999Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
        ("2017-01-01T00:59:60.7+01:00", "2016-12-31T23:59:59.999999Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
        ("2099-12-31T23:59:59.999999Z", "2099-12-31T23:59:59.999999+00:00"),
        # no zone has a say: these local times are skipped or doubled somewhere
        ("2026-03-29T02:30:00+01:00", "2026-03-29T01:30:00Z"),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00Z"),
    ],
)
def test_spellings_of_an_instant(text: str, same: str) -> None:
    """Offsets, leap seconds and long fractions; nothing is rounded over a border."""
    assert parse_timestamp(text) == parse_timestamp(same)


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2026-06-15T12:00Z", "2026-06-15T12:00:00.Z", "2026-06-15T12:00:61Z", "2026-06-15T12:00:60Z",
        "2026-06-15T12:60:00Z", "2026-13-01T00:00:00Z", "2026-06-15T12:00:00+24:00", "2026-06-15T12:00:00+0200",
        "2026-06-15T12:00:00Z ", "\uff12026-06-15T12:00:00Z", "20260615T120000Z", "2026-W25-1T12:00:00Z",
    ],
)  # fmt: skip
def test_what_is_no_instant_is_refused_with_a_reason(text: str) -> None:
    """RFC 3339 with an offset, nothing else."""
    with pytest.raises(ValueError, match=r"\w"):
        parse_timestamp(text)


@given(st.integers(0, YEAR_2100_US - 1))
def test_an_instant_comes_back_from_its_text(us: int) -> None:
    """To the microsecond."""
    assert parse_timestamp(format_timestamp(us)) == us


@given(st.text(alphabet="0123456789-:.TZ+ ", max_size=32))
def test_parsing_a_timestamp_raises_nothing_but_value_errors(text: str) -> None:
    """Whatever the text."""
    try:
        us = parse_timestamp(text)
    except ValueError:
        return
    assert 0 <= us < YEAR_2100_US


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("given_value", "exact"),
    [
        (b"0.1", "0.1"),
        (b"1.10", "1.1"),
        (b"1e3", "1000"),
        (b"-2.5E-3", "-0.0025"),
        (b'"12.5"', "12.5"),
        (b'"+.5"', "0.5"),
        (b"-0", "0"),
        (b"99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
        (b"0.123456789000", "0.123456789"),
        (b"123456789012345678.987654321", "123456789012345678.987654321"),
        (b"1e28", "1e28"),
    ],
)
def test_values_are_exact(given_value: bytes, exact: str) -> None:
    """No float on the way: every digit that was sent is counted."""
    raw = b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":' + given_value + b"}"
    assert decode(raw).value == Decimal(exact)


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=70))
@example("1e9999")
@example("1e-9999")
@example("0e999")
def test_a_value_fits_the_store_exactly_or_is_refused(given_value: Any) -> None:
    """29 digits before the point, 9 after it."""
    try:
        value = parse_value(given_value)
    except ValueError:
        return
    assert value == Decimal(str(given_value))
    assert value.is_finite()
    with rules_context():
        assert value == value.quantize(Decimal("1e-9"))
        assert abs(value) < Decimal(10) ** 29


def rules_context() -> Any:
    """Enough digits for every value of the store."""
    import decimal

    return decimal.localcontext(decimal.Context(prec=60))


# ------------------------------------------------------------------------------------------------ any bytes

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
NUMBERS = st.integers(-(10**20), 10**20) | st.decimals(-(10**12), 10**12, allow_nan=False, places=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(IDS, inner, max_size=3),
    max_leaves=8,
)
LINES = st.fixed_dictionaries(
    {"clientId": IDS, "timestamp": st.integers(0, NOW_US).map(format_timestamp)},
    optional={
        "transactionId": IDS,
        "eventName": IDS,
        "value": st.integers(-(10**28), 10**28) | st.just("12.50"),
        "entityId": IDS,
        "data": st.dictionaries(IDS, JSON, max_size=4),
    },
)
ODD = st.dictionaries(st.sampled_from([*rules.EVENT_FIELDS, "extra"]), JSON, max_size=6)


@settings(max_examples=300)
@given(st.binary(max_size=60) | LINES.map(lambda e: json.dumps(e).encode()) | ODD.map(lambda e: json.dumps(e).encode()))
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":"\\ud800"}}')
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"\\ud800":1}}')
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":1e400}}')
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":1e-99999999999999999999}}')
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":1e99999999999999999999}')
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":' + b"[" * 5000 + b"]" * 5000 + b"}")
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","data":{"a":' + b"9" * 5000 + b"}}")
@example(b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":' + b"9" * 5000 + b"}")
def test_any_bytes_are_an_event_that_comes_back_or_an_error_with_reasons(raw: bytes) -> None:
    """Never another exception, and what was taken survives being written and read again."""
    try:
        found = decode(raw)
    except EventError as error:
        assert error.errors  # noqa: PT017 - either outcome is right
        return
    again = decode(encode_event(found))
    assert b"\n" not in encode_event(found)
    assert msgspec.structs.replace(again, data=b"") == msgspec.structs.replace(found, data=b"")
    assert content_hash(again) == content_hash(found)


@settings(max_examples=300)
@given(LINES.map(lambda e: json.dumps(e, ensure_ascii=False).encode()) | ODD.map(lambda e: json.dumps(e).encode()))
@example(b'{"clientId":"a:b","timestamp":"2026-06-15T12:00:00Z","data":{"x:y":"1:2"}}')
def test_the_fast_and_the_slow_path_say_the_same(raw: bytes) -> None:
    """The slow one exists to explain, not to decide otherwise."""

    def outcome(read: Any) -> Any:
        try:
            return read()
        except EventError as error:
            return {(e.field, e.code) for e in error.errors}

    assert outcome(lambda: decode(raw)) == outcome(lambda: rules._decode_slowly(raw, NOW_US, DAY_US, None))


def test_make_event_and_decode_event_agree() -> None:
    """Doors of other dialects make the same event."""
    made = make_event(
        client_id="c1", timestamp=NOW_US, value="2.50", event_name="e", data={"b": 1, "a": [Decimal("0.10")]},
        arrival_us=NOW_US, ahead_max_us=0,
    )  # fmt: skip
    sent = decode(line(value="2.50", eventName="e", data={"a": [0.1], "b": 1}))
    assert content_hash(made) == content_hash(sent)
    assert decode(encode_event(made)) == made


# ------------------------------------------------------------------------------------------------ content and ids


def content(**fields: Any) -> int:
    """The content hash of a good event with these fields changed."""
    return content_hash(decode(line(**fields)))


def test_the_order_of_keys_and_the_spelling_of_numbers_and_instants_do_not_matter() -> None:
    """The same event is a duplicate, however it is written."""
    one = b'{"clientId":"c","timestamp":"2026-06-15T12:00:00Z","value":2.50,"data":{"a":1,"b":{"x":1e2,"y":[1.0]}}}'
    two = b'{"data":{"b":{"y":[1],"x":100},"a":1.00},"value":"2.5","timestamp":"2026-06-15T14:00:00+02:00",'
    two += b'"clientId":"c"}'
    assert content_hash(decode(one)) == content_hash(decode(two))


def test_every_field_but_the_id_is_content() -> None:
    """Another value under the same id is a conflict."""
    hashes = [
        content(),
        content(clientId="c2"),
        content(timestamp="2026-06-15T12:00:00.000001Z"),
        content(eventName="e"),
        content(featureId="e"),
        content(entityId="e"),
        content(value=2),
        content(value=-1),
        content(data={}),
        content(data={"a": 1}),
        content(data={"a": "1"}),
        content(data={"a": None}),
        content(data={"a": [1]}),
        content(data={"a": True}),
        content(data={"a": 1.5}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert content(transactionId="t") == content(transactionId="u") == content()


def test_a_timestamp_that_a_door_filled_in_is_no_content() -> None:
    """A retry of an event without one is a duplicate."""
    early, late = decode(line()), decode(line(timestamp="2026-06-15T11:00:00Z"))
    assert content_hash(early, without_timestamp=True) == content_hash(late, without_timestamp=True)


def test_content_hashes_are_those_of_every_version_before() -> None:
    """They lie in the store for ever: a change would turn duplicates into conflicts."""
    event = decode(line(eventName="e", value="2.50", entityId="s", data={"b": [1, 2.5, None], "a": "ü"}))
    assert content_hash(event) == STABLE_CONTENT
    assert id_hash("acme", "tx-1") == STABLE_ID
    assert derived_id_hash(1, "tally.events", 2, 3, 4) == STABLE_DERIVED


STABLE_CONTENT = 11269998982619016778
STABLE_ID = 0xD539563C347E352D7CC3E9F38F099D94
STABLE_DERIVED = 0x740B83D44EDF46B103D37DB644EDE2E1


def test_account_and_id_are_length_prefixed() -> None:
    """No two pairs share their bytes."""
    assert id_hash("ab", "c") != id_hash("a", "bc")
    assert id_hash("a", "") != id_hash("", "a")


@given(IDS, IDS, st.integers(1, 64))
def test_an_id_always_lies_in_the_same_partition(account: str, identity: str, partitions: int) -> None:
    """Within the topic's range."""
    assert 0 <= partition_of(id_hash(account, identity), partitions) < partitions
    assert id_hash(account, identity) < 2**128
