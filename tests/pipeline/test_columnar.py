"""Columns against lines: both forms of the stages give the same block to the bit, whatever comes in."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from pipeline.block import RULES, LogRecord, Place, Position, Sighting, Verdict, pack_sighting, unpack_sighting
from pipeline.catalog import (
    Account,
    Catalog,
    Dimension,
    Feature,
    encode_account,
    encode_dimension,
    encode_feature,
)
from pipeline.event import content_hash, decode_event, derived_id_hash, id_hash, parse_timestamp
from pipeline.stages import columnar
from pipeline.stages import rows as layout
from pipeline.stages import scan as scanner
from pipeline.stages.build import RULE_SETS, RuleSet, build_block
from pipeline.stages.columnar import Columns
from pipeline.stages.identify import BYTES_MAX, BYTES_MIN, identify
from pipeline.stages.mapping import Mapper, Mappers
from pipeline.stages.pieces import Texts, gather, grouped, ranks
from pipeline.stages.scan import scan, split
from pipeline.stages.sink import Block

_NOW_MS = 1_795_300_000_000
_AHEAD_US = 86_400_000_000
_JUNE_US = 1_780_272_000_000_000
_ACCOUNTS = ("acme", "büro")


def _catalog() -> Mapper:
    catalog = Catalog()
    features: list[dict[str, Any]] = [
        {"id": "calls", "event_names": ("used", "read"), "aggregation": "count"},
        {"id": "plain", "event_names": ("used",)},
        {"id": "bytes", "event_names": ("used", "größe"), "value_key": "bytes"},
        {"id": "deep", "event_names": ("used",), "value_key": "a.b"},
        {"id": "filtered", "event_names": ("used", "read"), "filter": {"region": ("eu", 3, True)}},
        {"id": "repos", "event_names": ("used",), "aggregation": "unique", "unique_key": "repo"},
        {"id": "changing", "event_names": ("used",)},
        {"id": "changing", "event_names": ("read",), "effective_from_us": _JUNE_US},
    ]
    dimensions: list[dict[str, Any]] = [
        {"key": "region", "type": "string"},
        {"key": "bytes", "type": "number"},
        {"key": "a.b", "type": "number"},
        {"key": "a.c", "type": "string"},
        {"key": "repo", "type": "string", "effective_from_us": _JUNE_US},
    ]
    records = [encode_account(Account(id=name, name=name, mode="live"), "0") for name in _ACCOUNTS]
    for account in _ACCOUNTS:
        for number, fields in enumerate(features[: None if account == "acme" else 3]):
            records.append(encode_feature(Feature(account=account, name="F", **fields), f"{account}{number}"))
        for number, fields in enumerate(dimensions[: None if account == "acme" else 2]):
            records.append(encode_dimension(Dimension(account=account, **fields), f"{account}-{number}"))
    for offset, record in enumerate(records):
        catalog.apply(offset, *record)
    return Mappers(catalog).at(catalog.version)


_MAPPER = _catalog()


def _both(
    records: Sequence[LogRecord],
    known: Mapping[bytes, bytes] | None = None,
    *,
    partitions: int = 2,
    rules: int = RULES,
) -> tuple[Block, Block]:
    place = Place("events", 3, 1, partitions, "acme", _AHEAD_US)
    seen = known or {}
    common: dict[str, Any] = {
        "start": records[0].offset,
        "end": records[-1].offset + 1,
        "mapper": _MAPPER,
        "catalog_version": 40,
        "lookup": lambda keys: {key: seen[key] for key in keys if key in seen},
        "rules": rules,
    }
    by_line = build_block(place, records, **common, rule_sets={rules: RuleSet(columns=None)})
    return by_line, Columns(place, records, _MAPPER).finish(**common)


def _same(lines: Block, columns: Block) -> None:
    for name in Block.__struct_fields__:
        one, other = getattr(lines, name), getattr(columns, name)
        if name == "rows" and one is not None:
            assert one.schema == other.schema
            for column in one.schema.names:
                assert one.column(column).to_pylist() == other.column(column).to_pylist(), column
        assert one == other, name


# ------------------------------------------------------------------------------------------------ what may come in

_text = st.text(min_size=0, max_size=12) | st.sampled_from(["used", "read", "größe", "a", "\x00", "\ud7ff", '"', "\\"])
_numbers = (
    st.integers(-(10**30), 10**30)
    | st.integers(-1000, 1000)
    | st.sampled_from(["1.50", "0.1", "-0", "-0.0", "1e3", "1E-9", "0.0000000001", "12345678901234567890.123456789"])
    | st.decimals(-(10**20), 10**20, places=9).map(str)
)


class _Raw(str):
    """JSON as it is spelled."""


_scalars = _text | st.booleans() | st.none() | _numbers.map(lambda n: _Raw(str(n)))
_documents = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_data = st.dictionaries(
    st.sampled_from(["region", "bytes", "repo", "a", "a.b", "x"]),
    _scalars | st.fixed_dictionaries({}, optional={"b": _scalars, "c": _scalars}) | _documents,
    max_size=5,
)
_timestamps = st.sampled_from(
    [
        "2026-05-31T23:59:59.999999Z",
        "2026-06-01T00:00:00Z",
        "2026-06-01T02:00:00.1234567+02:00",
        "2026-11-20T10:00:00z",
        "2026-11-20 10:00:00Z",
        "2026-06-30T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2024-02-29T00:00:00-12:30",
        "1970-01-01T00:00:00+00:01",
        "1970-01-01T00:00:00Z",
        "2100-01-01T00:00:00Z",
        "2026-11-23T00:00:00Z",
        "2026-11-20",
        "2026-11-20T24:00:00Z",
        "2026-11-20T10:00:00.Z",
        "2026-11-20T10:00:00",
    ]
)


def _spell(value: Any, draw: random.Random) -> str:
    """JSON with spaces here and there, and some texts escaped."""
    space = draw.choice(["", "", "", " ", "\t", "\r"])
    if isinstance(value, _Raw):
        return f"{space}{value}"
    if isinstance(value, dict):
        items = [*value.items(), *[item for item in value.items() if draw.random() < 0.02]]
        pairs = (f"{_spell(key, draw)}{space}:{_spell(part, draw)}" for key, part in items)
        return "{" + ",".join(pairs) + space + "}"
    if isinstance(value, list):
        return "[" + ",".join(_spell(part, draw) for part in value) + space + "]"
    return space + json.dumps(value, ensure_ascii=draw.random() < 0.2)


def _harmed(line: bytes, draw: random.Random) -> bytes:
    """The line with a few bytes changed, taken out, or doubled: nearly an event, and often none."""
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        at = draw.randrange(len(line) + 1)
        piece = draw.choice(
            [b"0", b"\x80", b"\xed\xa0\x80", b"\xc3", b",", b":", b"9", b"-", b".", b"\t", b"}", b'"', b"e"]
        )
        kept = at + draw.choice([0, 0, 1, 3])
        line = line[:at] + draw.choice([piece, piece, b"", line[at:kept]]) + line[kept:]
    return line


_events = st.fixed_dictionaries(
    {},
    optional={
        "clientId": _text | st.sampled_from(["c1", "c2", "c" * 256, "c" * 257, "ü" * 256]),
        "timestamp": _timestamps | st.none(),
        "transactionId": st.sampled_from([f"t{i}" for i in range(12)]) | _text,
        "eventName": st.sampled_from(["used", "read", "größe", "other"]),
        "featureId": st.sampled_from(["calls", "repos", "none"]),
        "value": _numbers.map(lambda n: _Raw(str(n))) | st.sampled_from(["12", "x"]),
        "kind": st.sampled_from(["delta", "delta", "set"]),
        "entityId": _text,
        "targetId": _text,
        "data": _data | st.none() | st.sampled_from([[], 1]),
        "other": _scalars,
    },
)
_usual = st.fixed_dictionaries(
    {"clientId": st.sampled_from(["c1", "ü2"]), "timestamp": _timestamps},
    optional={
        "transactionId": st.sampled_from([f"t{i}" for i in range(8)]),
        "eventName": st.sampled_from(["used", "read", "größe", "other"]),
        "value": _numbers.map(lambda n: _Raw(str(n))),
        "entityId": st.just("seat"),
        "data": _data,
    },
)
_broken = st.sampled_from(
    [b"", b" ", b"{", b"{}", b"[]", b"null", b"\xff", b'{"clientId":"a","clientId":"b"}', b"\x0b", b'{"clientId":1}']
)
_headers = st.sampled_from(
    [
        (),
        (("account", b"acme"),),
        (("account", b"acme"), ("catalog", b"7")),
        (("account", "büro".encode()),),
        (("account", b"acme"), ("defaulted", b"timestamp")),
        (("account", b"nobody"),),
        (("account", b"\xff"),),
        (("account", b""),),
    ]
)


@st.composite
def _records(draw: st.DrawFn) -> list[LogRecord]:
    spelling = random.Random(draw(st.integers(0, 1 << 30)))
    made = []
    offset = 100
    for _ in range(draw(st.integers(1, 8))):
        lines = draw(st.lists(_usual | _usual | _events | _broken, max_size=6))
        value = b"\n".join(
            line if isinstance(line, bytes) else _harmed(_spell(line, spelling).encode("utf-8", "replace"), spelling)
            for line in lines
        )
        made.append(LogRecord(offset, _NOW_MS + offset, value if lines else None, draw(_headers)))
        offset += draw(st.integers(1, 3))
    return made


@given(_records(), st.integers(2, 3), st.sampled_from([RULES, RULES, *RULE_SETS]))
@settings(max_examples=200, deadline=None)
def test_columns_give_the_block_that_lines_give(records: list[LogRecord], partitions: int, rules: int) -> None:
    """Events of every shape, broken lines, unknown accounts, misplaced ids, duplicates and conflicts."""
    _same(*_both(records, partitions=partitions, rules=rules))


_clients = st.text(alphabet="ab\x00\x01\x7fü", min_size=1, max_size=4)


@given(
    st.sampled_from(["", "customer-", "org_0123456789abcdef/"]),
    st.lists(st.tuples(_clients, st.integers(0, 9), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([63, 1]),
)
@settings(max_examples=200, deadline=None)
def test_rows_come_in_the_order_of_facts(begin: str, rows: list[tuple[str, int, bool]], bits: int) -> None:
    """By account, customer's bytes, timestamp and place in the log, whatever customers begin with, and also where these
    do not fit into one number; the block's marks are before them."""
    records = [
        LogRecord(
            100 + i,
            _NOW_MS,
            json.dumps({"clientId": begin + client, "timestamp": f"2026-11-20T10:00:00.00000{time}Z"}).encode(),
            (("account", _ACCOUNTS[other].encode()),),
        )
        for i, (client, time, other) in enumerate(rows)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_BITS", bits)
        lines, columns = _both(records)
    _same(lines, columns)
    assert columns.rows is not None
    places = [
        (row["account"].encode(), row["client_id"].encode(), row["timestamp"], row["offset"])
        for row in columns.rows.to_pylist()
    ]
    assert len(places) == columns.counts.accepted + len(columns.months)
    assert places == sorted(places)
    assert [account for account, *_ in places[: len(columns.months) + 1]].count(b"") == len(columns.months)


@given(_records(), st.integers(0, 1 << 30))
@settings(max_examples=80, deadline=None)
def test_and_with_ids_that_were_seen_before(records: list[LogRecord], seed: int) -> None:
    """Sightings before, at and after the events' own positions, with the same content and with another."""
    first, _ = _both(records)
    draw = random.Random(seed)
    known = {}
    for key, entry in first.sightings.items():
        if draw.random() < 0.5:
            continue
        own = unpack_sighting(entry).position
        elsewhere = Position(draw.choice([2, 3, 3]), draw.randrange(90, 120), draw.randrange(3))
        position = draw.choice([own, elsewhere])
        content = unpack_sighting(entry).content if draw.random() < 0.6 else 5
        known[key] = pack_sighting(Sighting(position, content, 7))
    _same(*_both(records, known))


def test_the_usual_line_is_scanned() -> None:
    """The comparison means something: the fast form takes what a metering client sends."""
    line = (
        '{"clientId":"c-ü","timestamp":"2026-11-20T10:00:00.123+01:00","transactionId":"t-1","eventName":"used",'
        '"value":-12.5,"kind":"delta","entityId":"e","data":{"region":"eu","bytes":12,"n":[1,{"a":null}],"f":true}}'
    ).encode()
    buffer = np.frombuffer(line, np.uint8)
    found = scan(
        buffer,
        np.array([0]),
        np.array([len(line)]),
        np.array([_NOW_MS * 1000]),
        np.zeros(1, np.uint8),
        ("bytes", "region", "absent"),
    )
    event = decode_event(line, arrival_us=_NOW_MS * 1000, ahead_max_us=0)
    assert found.taken.tolist() == [1]
    assert found.timestamp_us.tolist() == [event.timestamp_us]
    assert int(found.content[0]) == content_hash(event)
    assert found.kinds[0].tolist() == [scanner.NUMBER, scanner.TEXT, scanner.ABSENT]
    assert found.numbers[0, 0].tolist() == [12_000_000_000, 0]
    assert found.value[0].tolist() == [(1 << 64) - 12_500_000_000, (1 << 64) - 1]


@given(st.binary(max_size=300) | st.text(max_size=120).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_the_hash_is_xxh64(text: bytes) -> None:
    """The compiled one and the library's."""
    buffer = np.frombuffer(text + b"\0", np.uint8)
    assert int(scanner._xxh64(buffer, 0, len(text), np.uint64(77))) == xxh64_intdigest(text, 77)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.text(max_size=160).map(str.encode)), min_size=1, max_size=8),
    st.lists(st.text(min_size=1, max_size=90), min_size=4, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_ids_are_named_as_the_library_names_them(ids: list[tuple[int, bytes]], accounts: list[str]) -> None:
    """Those of usual length here, the others left to it; none mistaken for another."""
    buffer = np.frombuffer(b"".join(text for _, text in ids) or b"\0", np.uint8)
    sizes = np.array([len(text) for _, text in ids])
    spans = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
    account = np.array([number for number, _ in ids])
    keys, named = identify(buffer, spans, np.ones(len(ids), np.uint8), account, accounts)
    for row, (number, text) in enumerate(ids):
        size = 8 + len(accounts[number].encode()) + len(text)
        assert named[row] == (BYTES_MIN <= size <= BYTES_MAX)
        if named[row]:
            assert int.from_bytes(keys[row].tobytes(), "little") == id_hash(accounts[number], text.decode())


@given(
    st.lists(st.tuples(st.binary(max_size=80), st.booleans()), max_size=40),
    st.lists(st.binary(max_size=9), min_size=2, max_size=2),
    st.randoms(use_true_random=False),
)
def test_pieces_are_gathered_whole(
    given_pieces: list[tuple[bytes, bool]], before: list[bytes], draw: random.Random
) -> None:
    """Of any length, to the last byte of the buffer, in any order, behind others; a negative length is none."""
    fields = len(before)
    given_pieces = given_pieces[: len(given_pieces) // fields * fields]
    buffer = np.frombuffer(b"".join(piece for piece, _ in given_pieces) or b"\0", np.uint8)
    sizes = np.array([len(piece) for piece, _ in given_pieces], np.int64)
    lengths = np.where(np.array([there for _, there in given_pieces], bool), sizes, -1)
    spans = np.stack([np.cumsum(sizes) - sizes, lengths], axis=1).reshape(-1, fields, 2)
    rows = np.array(draw.sample(range(len(spans)), len(spans)), np.int64)
    heads = [Texts(np.array([0, len(text)], np.int32), np.frombuffer(text, np.uint8)) for text in before]
    for field, texts in enumerate(gather(buffer, spans, rows, heads)):
        whole = texts.pieces.tobytes()
        expected = [given_pieces[row * fields + field] for row in rows.tolist()]
        assert [whole[a:b] for a, b in pairwise(texts.offsets.tolist())] == [
            before[field],
            *(piece if there else b"" for piece, there in expected),
        ]


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 4), min_size=1, max_size=60))
def test_rows_are_grouped_by_value(values: list[int]) -> None:
    """In the order of their first rows."""
    first, group = grouped(np.array(values, np.uint64))
    assert [values[row] for row in first.tolist()] == list(dict.fromkeys(values))
    assert [values[first[number]] for number in group.tolist()] == values


@given(st.binary(max_size=20), st.lists(st.binary(max_size=12), min_size=1, max_size=30))
def test_pieces_are_ranked_by_their_bytes(begin: bytes, ends: list[bytes]) -> None:
    """Equal ones alike; also where the first eight bytes behind what all begin with do not tell."""
    pieces = [begin + end for end in ends]
    sizes = np.array([len(piece) for piece in pieces])
    spans = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)[:, np.newaxis]
    buffer = np.frombuffer(b"".join(pieces) or b"\0", np.uint8)
    found = ranks(buffer, spans, np.arange(len(pieces)), 0).tolist()
    place = {piece: number for number, piece in enumerate(sorted(set(pieces)))}
    assert found == [place[piece] for piece in pieces]


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_lines_are_cut_as_bytes_are(values: list[bytes]) -> None:
    """At line feeds alone; blank lines count as numbers only."""
    buffer = np.frombuffer(b"\n".join(values) or b"\0", np.uint8)
    ends = np.cumsum([len(value) + 1 for value in values]) - 1
    found = [
        column.tolist() for column in split(buffer, ends - [len(value) for value in values], ends, len(buffer) + 1)
    ]
    expected = []
    at = 0
    for record, value in enumerate(values):
        lines = [(i, line) for i, line in enumerate(value.split(b"\n")) if line and not line.isspace()]
        expected += [(record, number, line) for number, line in lines] or [(record, 0, b"")]
        at += len(value) + 1
    text = buffer.tobytes()
    assert [(r, n, text[a:b]) for a, b, r, n in zip(*found, strict=True)] == expected


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda event, seed: _harmed(_spell(event, random.Random(seed)).encode("utf-8", "replace"), random.Random(seed)),
        _usual | _events,
        st.integers(0, 1 << 30),
    )
)
@settings(max_examples=400, deadline=None)
def test_what_the_scanner_takes_is_an_event(line: bytes) -> None:
    """Any bytes: taken only if decode_event takes them, and then with the same content."""
    buffer = np.frombuffer(line or b"\0", np.uint8)
    limits = np.array([_NOW_MS * 1000 + _AHEAD_US])
    found = scan(buffer, np.array([0]), np.array([len(line)]), limits, np.zeros(1, np.uint8), ("region", "bytes"))
    if found.taken[0]:
        event = decode_event(line, arrival_us=_NOW_MS * 1000, ahead_max_us=_AHEAD_US)
        assert int(found.content[0]) == content_hash(event)


_HEAD = b'{"clientId":"c","timestamp":"2026-11-20T10:00:00Z"'
_DOUBTFUL = [
    _HEAD,
    _HEAD + b"},",
    _HEAD + b"}}",
    _HEAD + b",}",
    _HEAD[1:] + b"}",
    b"[" + _HEAD + b"}]",
    _HEAD + b',"value":012}',
    _HEAD + b',"value":+1}',
    _HEAD + b',"value":1.}',
    _HEAD + b',"value":.5}',
    _HEAD + b',"value":-}',
    _HEAD + b',"value":--1}',
    _HEAD + b',"value":1x}',
    _HEAD + b',"value":1e400}',
    _HEAD + b',"value":NaN}',
    _HEAD + b',"value":true}',
    _HEAD + b',"value":0.0000000001}',
    _HEAD + b',"value":123456789012345678901234567890}',
    _HEAD + b',"value":1,"value":1}',
    _HEAD + b',"clientId":"d"}',
    _HEAD + b',"data":{"a":1,"a":1}}',
    _HEAD + b',"data":{"a":{"b":1,"c":2,"b":3}}}',
    _HEAD + b',"data":{"x":[{"k":1,"k":1}]}}',
    _HEAD + b',"data":{"a":1,}}',
    _HEAD + b',"data":{"a":[1,]}}',
    _HEAD + b',"data":{"a":[1 2]}}',
    _HEAD + b',"data":{"a":]}}',
    _HEAD + b',"data":{"a":[}}}',
    _HEAD + b',"data":{"a" 1}}',
    _HEAD + b',"data":{a:1}}',
    _HEAD + b',"data":{"a":01}}',
    _HEAD + b',"data":{"a":tru}}',
    _HEAD + b',"data":{"a":nul',
    _HEAD + b',"data":{"a":1}',
    _HEAD + b',"data":{"a":"\xff"}}',
    _HEAD + b',"data":{"a":"\xc3"}}',
    _HEAD + b',"data":{"a":"\xc0\xaf"}}',
    _HEAD + b',"data":{"a":"\xe2\x82\xff"}}',
    _HEAD + b',"data":{"a":"\xe2\x82\xc0"}}',
    _HEAD + b',"data":{"a":"\xe2\xc0\x80"}}',
    _HEAD + b',"data":{"a":"\xc3\xc0"}}',
    _HEAD + b',"data":{"a":"\xed\xa0\x80"}}',
    _HEAD + b',"data":{"a":"\xe0\x9f\xbf"}}',
    _HEAD + b',"data":{"a":"\xf4\x90\x80\x80"}}',
    _HEAD + b',"data":{"a":"\xf0\x8f\xbf\xbf"}}',
    _HEAD + b',"data":{"a":"\x01"}}',
    _HEAD + b',"data":{"\x9f":1}}',
    _HEAD + b',"data":[1]}',
    _HEAD + b',"entityId":""}',
    _HEAD + b',"entityId":"\x80"}',
    _HEAD + b',"entityId":"a',
    _HEAD + b',"eventName":"a","featureId":"b"}',
    _HEAD + b',"kind":"set"}',
    _HEAD + b',"kind":"delt"}',
    _HEAD + b',"targetId":"x"}',
    _HEAD + b',"eventname":"x"}',
    _HEAD.replace(b"c", b"", 1) + b"}",
    b'{"timestamp":"2026-11-20T10:00:00Z"}',
    b'{"clientId":"c"}',
    *[
        b'{"clientId":"c","timestamp":"%s"}' % text.encode()
        for text in (
            "2026-02-29T10:00:00Z",
            "2100-02-28T10:00:00Z",
            "2026-04-31T10:00:00Z",
            "2026-13-01T10:00:00Z",
            "2026-00-01T10:00:00Z",
            "2026-01-00T10:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T10:60:00Z",
            "2026-01-01T10:00:61Z",
            "2026-01-01T10:00:60Z",
            "2026-01-01T10:00:00.Z",
            "2026-01-01T10:00:00+24:00",
            "2026-01-01T10:00:00+01:60",
            "2026-01-01T10:00:00+0100",
            "2026-01-01T10:00:00",
            "2026-01-01T10:00:00.5",
            "2026-01-01T10:00:00ZZ",
            "2026-01-01X10:00:00Z",
            "2026-1-01T10:00:00ZZ",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2026-11-23T10:00:00Z",
        )
    ],
]


@pytest.mark.parametrize("line", _DOUBTFUL)
def test_what_is_wrong_or_odd_is_not_taken(line: bytes) -> None:
    """Neither as a whole nor in a block, at its end or between others."""
    buffer = np.frombuffer(line, np.uint8)
    limits = np.array([_NOW_MS * 1000 + _AHEAD_US])
    found = scan(buffer, np.array([0]), np.array([len(line)]), limits, np.zeros(1, np.uint8), ("a",))
    assert found.taken.tolist() == [0]
    good = _HEAD + b"}"
    _same(*_both([LogRecord(100, _NOW_MS, b"\n".join([good, line, good, line]), ())]))


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01T00:00:00Z",
        "2000-02-29T23:59:59.9Z",
        "2024-02-29T00:00:00-12:30",
        "2026-03-01T00:00:00.123456789+14:00",
        "2026-12-31T23:59:59.000001Z",
        "2099-12-31T23:59:59.999999Z",
    ],
)
def test_instants_are_read_as_decode_event_reads_them(text: str) -> None:
    """Leap days, offsets, fractions beyond the sixth digit, the first and the last instant."""
    line = f'{{"clientId":"c","timestamp":"{text}"}}'.encode()
    latest = np.array([1 << 62])
    found = scan(np.frombuffer(line, np.uint8), np.array([0]), np.array([len(line)]), latest, np.zeros(1, np.uint8), ())
    assert found.taken.tolist() == [1]
    assert found.timestamp_us.tolist() == [parse_timestamp(text)]


def test_names_whose_hashes_meet_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of names can be made to collide by whoever chooses the names; features must not mix, nor customers."""

    def colliding(*arguments: Any) -> Any:
        found = scan(*arguments)
        return found._replace(name=np.zeros_like(found.name), client=np.zeros_like(found.client))

    records = [
        LogRecord(
            100 + i,
            _NOW_MS,
            msgspec.json.encode(
                {
                    "clientId": f"c{i % 5}",
                    "timestamp": f"2026-11-20T10:00:0{i * 7 % 10}Z",
                    "eventName": ["used", "read", "größe"][i % 3],
                }
            ),
            (("account", _ACCOUNTS[i % 2].encode()),),
        )
        for i in range(12)
    ]
    monkeypatch.setattr(columnar, "scan", colliding)
    lines, columns = _both(records)
    _same(lines, columns)
    assert columns.counts.accepted == 12


@given(_records(), st.integers(0, 1 << 30))
@settings(max_examples=80, deadline=None)
def test_ids_that_share_half_of_their_names_are_told_apart(records: list[LogRecord], seed: int) -> None:
    """Whoever makes ids so must neither have events taken for others' nor slip a repetition through."""
    draw = random.Random(seed)
    place = Place("events", 3, 1, 1, "acme", _AHEAD_US)

    def halved(*arguments: Any) -> Any:
        keys, named = identify(*arguments)
        keys[:, 0] = 7
        return keys, named

    def judged(seen: Mapping[bytes, bytes]) -> tuple[Columns, dict[bytes, bytes]]:
        columns = Columns(place, records, _MAPPER)
        found = columns.judge(lambda keys: {key: seen[key] for key in keys if key in seen})
        return columns, dict(found)

    _, added = judged({})
    before = {key: pack_sighting(Sighting(Position(draw.choice([2, 9]), 1, 0), 5, 7)) for key in added}
    seen = {key: entry for key, entry in before.items() if draw.random() < 0.5}
    columns, _ = judged(seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "identify", halved)
        for other in (id_hash, derived_id_hash):
            patch.setattr(columnar, other.__name__, lambda *name, other=other: other(*name) >> 64 << 64 | 7)
        alike, _ = judged({b"\7" + bytes(7) + key[8:]: entry for key, entry in seen.items()})
    assert alike.verdicts.tolist() == columns.verdicts.tolist()
    assert alike.errors == columns.errors


def test_a_large_block_is_built_in_columns() -> None:
    """And a small one by lines: `build_block` chooses by size."""
    built: list[int] = []

    def noted(place: Place, records: Sequence[LogRecord], mapper: Mapper) -> Columns:
        built.append(len(records))
        return Columns(place, records, mapper)

    place = Place("events", 0, 0, 1, "acme", _AHEAD_US)
    line = b'{"clientId":"c","timestamp":"2026-11-20T10:00:00Z","transactionId":"t%d","eventName":"used"}'
    for count in (3, 1000):
        records = [LogRecord(i, _NOW_MS, line % i, ()) for i in range(count)]
        block = build_block(
            place,
            records,
            start=0,
            end=count,
            mapper=_MAPPER,
            catalog_version=40,
            lookup=lambda _: {},
            rule_sets={RULES: RuleSet(columns=noted)},
        )
        assert block.counts.accepted == count
        assert len(block.sightings) == count
        assert id_hash("acme", "t0").to_bytes(16, "little") in block.sightings
    assert built == [1000]
    assert Verdict.ACCEPTED == 0


_AFTER_WARM_UP = """
from pipeline.block import RULES, LogRecord, Place
from pipeline.catalog import Account, Catalog, Dimension, Feature, encode_account, encode_dimension, encode_feature
from pipeline.stages import identify, nested, pieces, scan
from pipeline.stages.columnar import Columns, warm_up
from pipeline.stages.mapping import Mappers

def compiled():
    parts = [part for module in (identify, nested, pieces, scan) for part in vars(module).items()]
    return {name: len(part.signatures) for name, part in parts if hasattr(part, "signatures")}

warm_up()
before = compiled()
catalog = Catalog()
catalog.apply(0, *encode_account(Account(id="a", name="", mode="live"), "0"))
catalog.apply(1, *encode_feature(Feature(account="a", id="f", name="", event_names=("used",), value_key="n"), "1"))
catalog.apply(2, *encode_dimension(Dimension(account="a", key="d", type="string"), "2"))
mapper = Mappers(catalog).at(catalog.version)
line = (b'{"clientId":"c","timestamp":"1970-01-01T00:00:00Z","transactionId":"t%d","eventName":"used",'
    b'"data":{"d":"x","n":1}}')
for count in (1, 2, 1000):
    lines = [LogRecord(i, 0, line % i, ()) for i in range(count)]
    block = Columns(Place("events", 0, 0, 1, "a", 0), lines, mapper).finish(
        start=0, end=count, mapper=mapper, catalog_version=catalog.version, lookup=lambda _: {}, rules=RULES)
    assert block.counts.accepted == count, block.counts
print([name for name, number in compiled().items() if number > before[name]])
"""


def test_nothing_is_compiled_once_a_worker_is_warm() -> None:
    """Its first block of some size stood still for a second while arrays of another layout were compiled for."""
    done = subprocess.run([sys.executable, "-c", _AFTER_WARM_UP], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
