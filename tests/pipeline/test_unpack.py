"""Records unpacked in columns are those that the driver unpacks one by one, whatever batch they come in."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import unpack as unpacking
from pipeline.adapters import kafka
from pipeline.block import LogRecord
from pipeline.records import Records

_headers = st.lists(
    st.tuples(st.sampled_from(["account", "catalog", "x", "é", ""]), st.none() | st.binary(max_size=4)), max_size=3
)
_values = st.none() | st.binary(max_size=200) | st.sampled_from([b"", b"\n", b"a\nb\n", b"\n" * 300, b"x" * 70_000])
_records = st.lists(
    st.tuples(st.none() | st.binary(max_size=3), _values, _headers, st.integers(0, 1 << 40)), min_size=1, max_size=30
)


def _batch(records: Any, *, base: int, codec: int, flags: int = 0, producer: int = -1) -> bytes:
    """A batch as a broker keeps it. `flags`: of the attributes, which no checksum of this builder knows."""
    builder = DefaultRecordBatchBuilder(2, codec, int(bool(flags & 0x10)), producer, 0, 0, 1 << 30)
    for offset, (key, value, headers, time) in enumerate(records):
        assert builder.append(offset, time, key, value, headers) is not None
    whole = bytearray(builder.build())
    whole[:8] = base.to_bytes(8, "big")
    whole[22] |= flags
    return bytes(whole)


def _by_driver(data: bytes, position: int, aborted: Any = (), *, records: Any = None) -> PartitionRecords:
    return PartitionRecords(
        TopicPartition("events", 0),
        records or MemoryRecords(data),
        list(aborted),
        position,
        None,
        None,
        False,  # attributes are changed behind the checksum's back
        READ_COMMITTED,
    )


def _in_columns(data: bytes, position: int, aborted: Any = ()) -> tuple[Any, Any]:
    """What the bridge reads, and the position afterwards."""
    state = SimpleNamespace(paused=False, position=position)
    state.consumed_to = lambda offset: setattr(state, "position", offset)
    assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
    tp = TopicPartition("events", 0)
    source = _by_driver(data, position, aborted, records=kafka._FetchedBytes(data))
    result = FetchResult(tp, assignment=assignment, partition_records=source, backoff=0)
    fetched = kafka.FetchedRecords()
    fetched[tp] = result
    found = []
    while result.has_more():
        taken = result.getall(None)
        assert isinstance(taken, Records) or taken == []
        found += list(taken)
        assert not result.has_more() or state.position == found[-1].offset + 1
    return found, state.position


def _expected(data: bytes, position: int, aborted: Any = ()) -> tuple[Any, Any]:
    source = _by_driver(data, position, aborted)
    found = [LogRecord(r.offset, r.timestamp, r.value, tuple(r.headers)) for r in source]
    return found, source.next_fetch_offset


@given(
    st.lists(st.tuples(_records, st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from([0, 0x08])), max_size=4), st.data()
)
@settings(max_examples=120, deadline=None)
def test_the_same_records_as_the_driver_gives(batches: Any, data: Any) -> None:
    """Every codec, either kind of timestamp, from any position, with gaps between batches."""
    base, whole = 100, b""
    for records, codec, flags in batches:
        base += data.draw(st.integers(0, 3))
        whole += _batch(records, base=base, codec=codec, flags=flags)
        base += len(records)
    if not whole:
        return
    position = data.draw(st.integers(90, base))
    assert _in_columns(whole, position) == _expected(whole, position)


def test_few_rows_at_a_time_and_the_position_moves_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch ends with a batch; the next one goes on behind it."""
    monkeypatch.setattr(kafka, "_FETCH_ROWS", 3)
    whole = b"".join(_batch([(None, b"v", [], 7)] * 2, base=2 * n, codec=4) for n in range(5))
    assert _in_columns(whole, 0) == _expected(whole, 0)


def test_aborted_transactions_and_control_records_are_left_out() -> None:
    """As the driver leaves them out, with the position behind them."""
    plain = [(None, b"seen", [], 1)]
    marker = [(b"\x00\x00\x00\x00", b"\x00\x00\x00\x00\x00\x00", [], 1)]
    whole = (
        _batch(plain, base=0, codec=4, flags=0x10, producer=7)
        + _batch(plain, base=1, codec=4)
        + _batch(marker, base=2, codec=0, flags=0x30, producer=7)
        + _batch(plain, base=3, codec=0, flags=0x10, producer=7)
        + _batch(marker, base=4, codec=0, flags=0x30, producer=7)
    )
    found = _in_columns(whole, 0, [(7, 0)])
    assert found == _expected(whole, 0, [(7, 0)])
    assert [record.offset for record in found[0]] == [1, 3]
    assert found[1] == 5


def test_the_former_format_is_read_one_by_one() -> None:
    """Topics from before Kafka 0.11."""
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    for offset in range(3):
        builder.append(offset, 5, None, b"v%d" % offset)
    whole = bytes(builder.build())
    assert _in_columns(whole, 1) == _expected(whole, 1)
    assert len(_in_columns(whole, 1)[0]) == 2


@given(_records, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_are_never_read_beyond_and_never_taken_for_others(records: Any, draw: random.Random) -> None:
    """What is taken at all is what the driver takes; what it refuses is refused."""
    whole = bytearray(_batch(records, base=0, codec=0))
    for _ in range(draw.randrange(1, 4)):
        whole[draw.randrange(61, len(whole))] = draw.randrange(256)
    try:
        expected = _expected(bytes(whole), 0)
    except (CorruptRecordException, UnicodeDecodeError, IndexError, ValueError, MemoryError, OverflowError):
        with pytest.raises((CorruptRecordException, UnicodeDecodeError, IndexError, ValueError, MemoryError)):
            _in_columns(bytes(whole), 0)
        return
    assert _in_columns(bytes(whole), 0) == expected


def test_a_batch_with_a_false_checksum_is_refused() -> None:
    """The driver's own check, before anything is unpacked."""
    whole = bytearray(_batch([(None, b"value", [], 1)], base=0, codec=0))
    whole[-2] ^= 1
    source = _by_driver(bytes(whole), 0, records=kafka._FetchedBytes(bytes(whole)))
    source._check_crcs = True
    source._records = kafka._Batches(source._records)
    with pytest.raises(CorruptRecordException, match="CRC"):
        next(source)


def test_the_workers_consumer_keeps_the_bytes_and_others_read_on() -> None:
    """What the driver makes of fetched bytes, by the name under which it looks it up."""
    whole = _batch([(None, b"v", [], 1)], base=0, codec=0)
    kept = kafka._FetchedBytes(whole)
    assert "MemoryRecords" in fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert {"_records", "has_next", "next_batch", "_consumer_record"} <= {
        *PartitionRecords._unpack_records.__code__.co_names
    }
    assert kept.size_in_bytes() == len(whole)
    assert [r.value for r in _by_driver(whole, 0, records=kept)] == [b"v"]


def test_slices_hold_on_to_no_bytes_but_their_own() -> None:
    """A block's records must not keep a whole fetch in memory."""
    records = [LogRecord(n, 1, None if n == 3 else b"v%d\n" % n, (("account", b"a"),)) for n in range(9)]
    whole = Records.of(records)
    assert list(whole) == records
    assert whole[2:5] == records[2:5]
    assert len(whole[2:5].buffer) == sum(len(r.value or b"") for r in records[2:5])
    assert list(whole[4:4]) == []
    assert Records.joined([whole[:2], whole[2:7], whole[7:]]) == records
    assert list(Records.joined([])) == []
    assert whole[-1] == records[-1]
    assert whole.lines.tolist() == [2, 2, 2, 1, 2, 2, 2, 2, 2]


def test_many_headers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record its own: still right, and what is kept of them is bounded."""
    monkeypatch.setattr(unpacking, "_HEADERS_KEPT", 50)
    records = [(None, b"v", [("trace", b"%d" % n)], 1) for n in range(500)]
    whole = _batch(records, base=0, codec=0)
    assert _in_columns(whole, 0) == _expected(whole, 0)
    assert len(unpacking._known) <= 50
