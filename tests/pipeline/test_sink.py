"""Sink: columns say what the lines say, sums are exact, and the checksum covers every difference."""

from datetime import timedelta
from decimal import Context, Decimal, localcontext

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_mapping import ONE, mapper_of

from pipeline.block import RULES, Counts, Line, LogRecord, Place, Verdict
from pipeline.catalog import Account, Dimension, Feature
from pipeline.event import Event, content_hash, decode_event, encode_event, id_hash
from pipeline.stages.build import RULE_SETS, build_block
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import Block, make_block, mark_name, scaled, unscaled

PLACE = Place("tally.events", 3, 0, 1, "acme", 10**15)
MONTH_US = 31 * 86_400_000_000
MAPPER = mapper_of(
    Account(id="acme", name="Acme", mode="live"),
    Feature(account="acme", id="used", name="Used", event_names=("use",)),
    Feature(account="acme", id="bytes", name="Bytes", event_names=("use",), value_key="size"),
    Dimension(account="acme", key="region", type="string"),
    Dimension(account="acme", key="size", type="number"),
)
VALUES = st.integers(-(10**37), 10**37).map(unscaled)
EVENTS = st.builds(
    Event,
    client_id=st.sampled_from(["c1", "c2"]),
    timestamp_us=st.integers(0, 5 * MONTH_US),
    transaction_id=st.none() | st.sampled_from("abcdefgh"),
    event_name=st.sampled_from([None, "use", "other"]),
    value=VALUES,
    entity_id=st.sampled_from([None, "seat"]),
    data=st.sampled_from([b"", b'{"region":"eu","size":2.5}', b'{"size":"x","region":7}']),
)


def records(events: list[Event], per_record: int = 2) -> list[LogRecord]:
    """The events as they lie in the log."""
    chunks = [events[i : i + per_record] for i in range(0, len(events), per_record)]
    return [LogRecord(n, 1000 + n, b"\n".join(map(encode_event, chunk)), ()) for n, chunk in enumerate(chunks)]


def block_of(events: list[Event], per_record: int = 2, mapper: Mapper = MAPPER) -> Block:
    """A block of them."""
    found = records(events, per_record)
    return build_block(PLACE, found, start=0, end=len(found), mapper=mapper, catalog_version=4, lookup=lambda keys: {})


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_columns_say_what_the_accepted_events_say(events: list[Event]) -> None:
    """Row by row in the order of facts, without the duplicates; absent texts are empty."""
    block = block_of(events)
    firsts = {e.transaction_id or n: e for n, e in reversed(list(enumerate(events)))}
    expected = [e for n, e in enumerate(events) if firsts[e.transaction_id or n] is e]
    expected.sort(key=lambda e: (e.client_id.encode(), e.timestamp_us))
    assert block.rows is not None
    rows = block.rows.to_pylist()[len(block.months) :]
    assert [
        (r["account"], r["client_id"], r["transaction_id"], r["event_name"], r["entity_id"], r["value"], r["data"])
        for r in rows
    ] == [
        ("acme", e.client_id, e.transaction_id or "", e.event_name or "", e.entity_id or "", e.value, e.data)
        for e in expected
    ]
    assert [int(r["timestamp"].timestamp() * 1_000_000) for r in rows] == pytest.approx(
        [e.timestamp_us for e in expected], abs=1
    )
    for row, e in zip(rows, expected, strict=True):
        if e.transaction_id is not None:
            assert int.from_bytes(row["id_hash"], "little") == id_hash("acme", e.transaction_id)
        measured = dict(zip(row["meters.feature"], row["meters.quantity"], strict=True))
        with_size = e.event_name == "use" and b"2.5" in e.data
        assert measured == ({"used": e.value} if e.event_name == "use" else {}) | (
            {"bytes": Decimal("2.5")} if with_size else {}
        )
        dims = dict(zip(row["dims.name"], zip(row["dims.text"], row["dims.number"], strict=True), strict=True))
        assert dims == ({"region": ("eu", 0), "size": ("", Decimal("2.5"))} if b"2.5" in e.data else {})
    assert {(r["epoch"], r["partition"], r["block_start"], r["catalog_version"]) for r in rows} == {(3, 0, 0, 4)}


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_every_month_has_one_mark_of_no_customers_account(events: list[Event]) -> None:
    """Marks come first, one a month, and carry the block's start."""
    block = block_of(events)
    assert block.rows is not None
    marks = [row for row in block.rows.to_pylist() if row["account"] == ""]
    assert marks == block.rows.to_pylist()[: len(marks)]
    assert [(m["timestamp"].year * 100 + m["timestamp"].month) for m in marks] == [m.month for m in block.months]
    for mark in marks:
        name = mark_name("tally.events", 3, 0)
        assert (mark["client_id"], mark["event_name"], mark["value"]) == (name, name, 0)
        assert (mark["meters.feature"], mark["dims.text"]) == ([name], [name])
    assert block.rows.num_rows == block.counts.accepted + len(block.months)


@given(st.lists(EVENTS, min_size=1, max_size=8), st.integers(1, 30))
def test_sums_of_the_ledger_are_exact_whatever_the_decimal_context(events: list[Event], precision: int) -> None:
    """38 digits each, more in the sum."""
    with localcontext(Context(prec=precision)):
        block = block_of(events)
    assert block.rows is not None
    rows = [row for row in block.rows.to_pylist() if row["account"]]
    for month in block.months:
        mine = [r for r in rows if r["timestamp"].year * 100 + r["timestamp"].month == month.month]
        with localcontext(Context(prec=80)):
            assert month.value_sum == sum((r["value"] for r in mine), Decimal(0))
        assert month.rows == len(mine)
        assert month.id_hash_sum == sum(int.from_bytes(r["id_hash"], "little") for r in mine) % 2**128


@given(VALUES)
def test_scaled_values_come_back(value: Decimal) -> None:
    """In units of 10**-9."""
    assert unscaled(scaled(value)) == value
    with localcontext(Context(prec=60)):
        assert scaled(value) == int(value * 10**9)


@pytest.mark.parametrize("text", ["1e28", "-1e28", "0.000000001", "-0", "0e5", "1.000000000000", "12300e-2"])
def test_odd_spellings_of_values_scale_and_become_columns(text: str) -> None:
    """Exponents and trailing zeros that the event's rules let pass."""
    value = Decimal(text)
    with localcontext(Context(prec=60)):
        assert scaled(value) == int(value * 10**9)
    line = Line(
        0, 0, 0, "acme", b"", Event(client_id="c", timestamp_us=0, value=value), key=1, verdict=Verdict.ACCEPTED
    )
    block = _made([line])
    assert block.rows is not None
    assert block.rows["value"][-1].as_py() == value


def _made(lines: list[Line], mapper: Mapper = MAPPER, rules: int = RULES) -> Block:
    return make_block(
        lines,
        PLACE,
        start=0,
        end=1,
        mapper=mapper,
        catalog_version=4,
        rules=rules,
        sightings={},
    )


def a_line(**fields: object) -> Line:
    """An accepted line with these fields changed."""
    event = Event(client_id="c", timestamp_us=5, event_name="use", value=ONE, document={"size": 3, "region": "eu"})
    values: dict[str, object] = {
        "offset": 1, "line": 2, "append_ms": 3, "account": "acme", "raw": b"", "event": event, "key": 7, "content": 9,
        "verdict": Verdict.ACCEPTED,
    }  # fmt: skip
    return Line(**{**values, **fields})  # type: ignore[arg-type]


def test_the_checksum_differs_on_any_difference() -> None:
    """Verdicts, ids, contents, positions, meters and dimensions: a block built otherwise is noticed."""
    event = a_line().event
    assert event is not None
    other_mapper = mapper_of(
        Account(id="acme", name="Acme", mode="live"),
        Feature(account="acme", id="used", name="Used", event_names=("use",)),
    )
    crcs = [
        _made([a_line()]).crc,
        _made([a_line(key=8)]).crc,
        _made([a_line(content=10)]).crc,
        _made([a_line(offset=2)]).crc,
        _made([a_line(line=3)]).crc,
        _made([a_line(verdict=Verdict.DUPLICATE)]).crc,
        _made([a_line(), a_line(verdict=Verdict.DUPLICATE)]).crc,
        _made([a_line(), a_line(verdict=Verdict.REJECTED)]).crc,
        _made([a_line(), a_line(verdict=Verdict.REROUTED)]).crc,
        _made([a_line(), a_line(offset=2, key=8)]).crc,
        _made([a_line(event=msgspec.structs.replace(event, value=Decimal(2)))]).crc,
        _made([a_line(event=msgspec.structs.replace(event, event_name="other"))]).crc,
        _made([a_line(event=msgspec.structs.replace(event, document={"size": 4, "region": "eu"}))]).crc,
        _made([a_line(event=msgspec.structs.replace(event, document={"size": 3, "region": "us"}))]).crc,
        _made([a_line()], other_mapper).crc,
    ]
    assert len(set(crcs)) == len(crcs)


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_the_same_log_gives_the_same_block_to_the_bit(events: list[Event]) -> None:
    """Rows, counts and checksum, whenever and wherever it is built."""
    one, two = block_of(events), block_of(events)
    assert one.rows is not None
    assert one.rows.equals(two.rows)
    assert msgspec.structs.replace(one, rows=None, forwards=(), rejects=()) == msgspec.structs.replace(
        two, rows=None, forwards=(), rejects=()
    )


def test_the_checksum_of_a_known_block_is_that_of_every_version_before() -> None:
    """A worker must be able to finish what one before an upgrade has begun; else RULES has to be raised."""
    other = a_line(offset=2, key=8, verdict=Verdict.DUPLICATE)
    found = {
        rules: (_made([a_line(), other], rules=rules).crc, _made([_in_the_midst(), other], rules=rules).crc)
        for rules in RULE_SETS
    }
    assert found == STABLE_CRC


STABLE_CRC = {
    1: (0x940F9173B2C0A9C0, 0x940F9173B2C0A9C0),
    2: (0x940F9173B2C0A9C0, 0x1CC32E42069C3308),
    3: (0xCC56C7C0AE0D4212, 0x078D640D3FF9767E),
}


def _in_the_midst() -> Line:
    """A line whose timestamp is far from the ends of its month."""
    event = a_line().event
    assert event is not None
    return a_line(event=msgspec.structs.replace(event, timestamp_us=MONTH_US // 2))


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_a_block_with_a_row_at_the_end_of_a_month_goes_to_sparse_tables(events: list[Event]) -> None:
    """Its marks have a distinct value, by which their views know them; those of any other one have none."""
    block = block_of(events)
    assert block.rows is not None
    rows = block.rows.to_pylist()
    times = {row["timestamp"] for row in rows if row["account"]}
    at_an_end = {(at + timedelta(hours=14)).month != (at - timedelta(hours=12)).month for at in times}
    assert block.sparse is (True in at_an_end)
    marks = [row for row in rows if row["account"] == ""]
    assert {int.from_bytes(row["meters.distinct_hash"][0], "little") for row in marks} == {int(block.sparse)}


def test_a_block_with_a_distinct_value_goes_to_sparse_tables() -> None:
    """And any block under the rules of before."""
    counts_distinct = mapper_of(
        Account(id="acme", name="Acme", mode="live"),
        Feature(account="acme", id="who", name="", event_names=("use",), aggregation="unique", unique_key="region"),
    )
    line = _in_the_midst()
    assert [_made([line], mapper).sparse for mapper in (MAPPER, counts_distinct)] == [False, True]
    assert _made([line], rules=1).sparse


def test_a_block_without_accepted_lines_has_no_rows_and_no_months() -> None:
    """It is stated and noted in the ledger all the same."""
    block = _made(
        [a_line(verdict=Verdict.REJECTED), a_line(verdict=Verdict.CONFLICT), a_line(verdict=Verdict.REROUTED)]
    )
    assert (block.rows, block.months) == (None, ())
    assert block.counts == Counts(3, 0, 0, 1, 1, 1)
    assert (len(block.rejects), len(block.forwards)) == (2, 1)


def _content(event: Event) -> int:
    """Of what the line says: the strategy's events have data that nobody has parsed."""
    return content_hash(decode_event(encode_event(event), arrival_us=1 << 60, ahead_max_us=0))


@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_repeats_are_the_duplicates_and_conflicts_by_position(events: list[Event]) -> None:
    """With the hash of their id, whether or not the block has rows; None when there are none."""
    block = block_of(events)
    first: dict[str, Event] = {}
    expected = []
    for n, e in enumerate(events):
        if e.transaction_id is None:
            continue
        known = first.setdefault(e.transaction_id, e)
        if known is not e:
            verdict = Verdict.DUPLICATE if _content(known) == _content(e) else Verdict.CONFLICT
            expected.append((n // 2, n % 2, id_hash("acme", e.transaction_id), int(verdict)))
    rows = [] if block.repeats is None else block.repeats.to_pylist()
    assert [(r["offset"], r["line"], int.from_bytes(r["id_hash"], "little"), r["verdict"]) for r in rows] == expected
    assert (block.repeats is None) is (not expected)
    assert {(r["topic"], r["epoch"], r["partition"], r["block_start"]) for r in rows} <= {("tally.events", 3, 0, 0)}
    assert all(round(r["append_time"].timestamp() * 1000) == 1000 + r["offset"] for r in rows)


def test_the_token_names_the_range_and_nothing_that_changes_between_tries() -> None:
    """Topic, epoch, partition, start and end."""
    block = _made([a_line()])
    assert block.token == "tally.events:3:0:0-1"
    assert block.intent(1).stated_ms != block.intent(2).stated_ms
    assert block.intent(1).crc == block.intent(2).crc
