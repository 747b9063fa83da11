"""The publisher: where events lie, how records are cut, and what receipts say."""

import asyncio
import json
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.event import Event, decode_event, id_hash, partition_of
from pipeline.ports import LogUnavailable
from producers.memory_log import MemoryLog
from producers.publisher import Publisher, Receipt

PARTITIONS = 6
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def event(transaction_id: str | None, data: bytes = b"") -> Event:
    """An event of customer `c`."""
    return Event(client_id="c", timestamp_us=1_700_000_000_000_000, transaction_id=transaction_id, data=data)


def publish(log: MemoryLog, events: Sequence[Event], account: str = "acme", defaulted: bool = False) -> list[Receipt]:
    """Publish once on a fresh event loop."""
    publisher = Publisher(log, topic="events", partitions=PARTITIONS)
    return asyncio.run(publisher.publish(account, events, catalog_version=7, defaulted=defaulted))


@given(st.lists(ids, min_size=1, max_size=40), st.lists(ids, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_an_id_lies_in_one_partition_whatever_is_sent_beside_it(first: list[str], second: list[str]) -> None:
    """All records with an id lie in the partition that its hash names, and receipts follow the order of the events."""
    log = MemoryLog()
    for sent in (first, second, first):
        receipts = publish(log, [event(i) for i in sent])
        assert [r.transaction_id for r in receipts] == sent
        assert all(r.error is None for r in receipts)
    seen = [
        (json.loads(line)["transactionId"], r.partition) for r in log.records for line in (r.value or b"").split(b"\n")
    ]
    assert sorted(i for i, _ in seen) == sorted([*first, *second, *first])
    assert all(partition == partition_of(id_hash("acme", i), PARTITIONS) for i, partition in seen)


def test_events_of_one_partition_keep_their_order() -> None:
    """Within a partition the log has the request's order, so that of two events with one id the first stands."""
    log = MemoryLog()
    sent = [event(f"t{n}") for n in range(500)]
    publish(log, sent)
    for record in log.records:
        order = [int(json.loads(line)["transactionId"][1:]) for line in (record.value or b"").split(b"\n")]
        assert order == sorted(order)


def test_one_record_per_partition_and_request() -> None:
    """A list of 500 events is at most six records."""
    log = MemoryLog()
    publish(log, [event(f"t{n}") for n in range(500)])
    assert sorted(r.partition for r in log.records) == list(range(PARTITIONS))


def test_records_are_cut_at_512_kib() -> None:
    """A large request becomes several records, none above 512 KiB, with every event once."""
    log = MemoryLog()
    data = msgspec.json.encode({"text": "x" * 60_000})
    publish(log, [event("same", data) for _ in range(20)])
    assert len(log.records) == 3
    assert all(len(r.value or b"") <= 512 * 1024 for r in log.records)
    assert len(log.lines()) == 20


def test_headers_name_account_catalog_version_and_filled_in_timestamps() -> None:
    """What the worker must know of a record beside its lines."""
    log = MemoryLog()
    publish(log, [event("a")], account="ümlaut")
    publish(log, [event("a")], defaulted=True)
    assert log.records[0].headers == {"account": "ümlaut".encode(), "catalog": b"7"}
    assert log.records[1].headers == {"account": b"acme", "catalog": b"7", "defaulted": b"timestamp"}


def test_an_event_without_id_gets_one() -> None:
    """A UUIDv7, told in the receipt and written with the event."""
    log = MemoryLog()
    [receipt] = publish(log, [event(None)])
    assert json.loads(log.lines()[0])["transactionId"] == receipt.transaction_id
    assert receipt.transaction_id[14] == "7"


def test_what_is_written_decodes_to_what_was_published() -> None:
    """The line in the log is the event."""
    log = MemoryLog()
    sent = decode_event(
        b'{"clientId":"c","timestamp":"2026-01-01T01:00:00.5+01:00","transactionId":"t","value":-0.10,'
        b'"data":{"a":1.50,\n"b":[1]}}',
        arrival_us=1_800_000_000_000_000,
        ahead_max_us=0,
    )
    publish(log, [sent])
    found = decode_event(log.lines()[0], arrival_us=1_800_000_000_000_000, ahead_max_us=0)
    assert (found.timestamp_us, found.value, found.document) == (sent.timestamp_us, sent.value, sent.document)


def test_a_partition_that_is_away_is_told_per_event() -> None:
    """Events of the other partitions are received; those of this one say why not."""
    log = MemoryLog()
    log.away_partitions = {2}
    sent = [event(f"t{n}") for n in range(60)]
    receipts = publish(log, sent)
    for receipt in receipts:
        lies_in_2 = partition_of(id_hash("acme", receipt.transaction_id), PARTITIONS) == 2
        assert (receipt.error is not None) == lies_in_2
    assert {r.error is None for r in receipts} == {True, False}


def test_nothing_acknowledged_is_an_error() -> None:
    """No receipt pretends that something is in the log."""
    log = MemoryLog()
    log.away = True
    with pytest.raises(LogUnavailable):
        publish(log, [event("a"), event("b")])
