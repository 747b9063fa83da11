"""Group commit: what comes together shares a record, and each line's receipt is its own."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.event import Event, encode_event
from pipeline.ports import LogUnavailable
from producers.group_commit import GroupCommit
from producers.memory_log import MemoryLog
from producers.publisher import Publisher, Receipt

PARTITIONS = 3


class GatedLog(MemoryLog):
    """A log that acknowledges once it is told to. `begun`: a token for each write that has come."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun: asyncio.Semaphore = asyncio.Semaphore(0)
        self.values: list[bytes] = []

    async def write(self, topic: str, value: bytes | None, **rest: Any) -> int:
        """As the log in memory does, after `go`."""
        self.values.append(value or b"")
        self.begun.release()
        await self.go.wait()
        return await super().write(topic, value, **rest)


def gathering(log: MemoryLog, *, record_bytes_max: int = 1000, hold_s: float = 60.0) -> GroupCommit[str]:
    """Lines of kinds that are their own header; nothing but an acknowledgement lets held records go."""
    return GroupCommit(
        log,
        lambda kind: [("kind", kind.encode())],
        topic="events",
        record_bytes_max=record_bytes_max,
        hold_s=hold_s,
    )


async def send(records: GroupCommit[str], line: bytes, partition: int = 0, kind: str = "a") -> tuple[int, int]:
    """One line: its record's offset and its number there."""
    record, number = records.add(partition, kind, line)
    await records.settled([record])
    if record.error is not None:
        raise record.error
    return record.offset, number


def event(transaction_id: str, text: str = "") -> Event:
    """An event of customer `c`."""
    return Event(
        client_id="c",
        timestamp_us=1_700_000_000_000_000,
        transaction_id=transaction_id,
        data=b'{"text":"%s"}' % text.encode() if text else b"",
    )


requests = st.lists(
    st.tuples(
        st.sampled_from(["acme", "ümlaut"]),
        st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), min_size=1, max_size=8),
        st.booleans(),
        st.integers(0, 400),
    ),
    min_size=1,
    max_size=20,
)


@given(requests, st.integers(600, 2000))
@settings(max_examples=80, deadline=None)
def test_each_receipt_names_its_own_line(sent: list[tuple[str, list[str], bool, int]], record_bytes_max: int) -> None:
    """Of requests that come together: place by place, the record's account, mark and line are those of the event, no
    record is too large, and the log holds what was sent and no more."""
    log = MemoryLog()
    publisher = Publisher(log, topic="events", partitions=PARTITIONS, record_bytes_max=record_bytes_max)

    async def publish() -> list[list[Receipt]]:
        return await asyncio.gather(
            *(
                publisher.publish(account, [event(i, "x" * size) for i in ids], catalog_version=1, defaulted=defaulted)
                for account, ids, defaulted, size in sent
            )
        )

    answers = asyncio.run(publish())
    places = set()
    for (account, ids, defaulted, size), receipts in zip(sent, answers, strict=True):
        for identity, receipt in zip(ids, receipts, strict=True):
            assert receipt.place is not None
            partition, offset, number = receipt.place
            record = [r for r in log.records if r.partition == partition][offset]
            assert record.headers["account"] == account.encode()
            assert ("defaulted" in record.headers) == defaulted
            found = (record.value or b"").split(b"\n")[number]
            assert identity == receipt.transaction_id
            assert found == encode_event(event(identity, "x" * size))
            places.add(receipt.place)
    assert len(places) == len(log.lines()) == sum(len(ids) for _, ids, _, _ in sent)
    assert all(len(r.value or b"") <= record_bytes_max for r in log.records)


async def test_what_comes_in_one_turn_of_the_loop_is_one_record() -> None:
    """With nothing on its way it leaves at once, together; other kinds and partitions are records of their own."""
    log = MemoryLog()
    records = gathering(log)
    answers = await asyncio.gather(
        *(send(records, b"%d" % n) for n in range(5)), send(records, b"other", kind="b"), send(records, b"there", 1)
    )
    assert answers == [*((0, n) for n in range(5)), (1, 0), (0, 0)]
    assert [(r.partition, r.headers, r.value) for r in log.records] == [
        (0, {"kind": b"a"}, b"0\n1\n2\n3\n4"),
        (0, {"kind": b"b"}, b"other"),
        (1, {"kind": b"a"}, b"there"),
    ]


async def test_what_comes_while_a_record_is_on_its_way_gathers_until_it_is_acknowledged() -> None:
    """Nobody is told anything before, and then they all leave together."""
    log = GatedLog()
    records = gathering(log)
    first = asyncio.create_task(send(records, b"first"))
    await log.begun.acquire()
    others: list[asyncio.Task[tuple[int, int]]] = []
    for number in range(10):
        others.append(asyncio.create_task(send(records, b"%d" % number)))
        await asyncio.sleep(0)
    assert log.values == [b"first"]
    assert not any(task.done() for task in (first, *others))
    log.go.set()
    assert await first == (0, 0)
    assert await asyncio.gather(*others) == [(1, number) for number in range(10)]
    assert log.values == [b"first", b"\n".join(b"%d" % number for number in range(10))]


async def test_a_record_that_is_not_acknowledged_holds_others_back_for_a_moment_only() -> None:
    """They leave although nothing comes back."""
    log = GatedLog()
    records = gathering(log, hold_s=0.001)
    first = asyncio.create_task(send(records, b"first"))
    await log.begun.acquire()
    second = asyncio.create_task(send(records, b"second"))
    await log.begun.acquire()
    assert log.values == [b"first", b"second"]
    assert not first.done()
    assert not second.done()
    log.go.set()
    assert await asyncio.gather(first, second) == [(0, 0), (1, 0)]


async def test_records_are_cut_and_keep_the_order_of_their_lines() -> None:
    """A line that does not fit opens the next record, also for those that come later and would fit."""
    log = MemoryLog()
    records = gathering(log, record_bytes_max=10)
    answers = await asyncio.gather(
        *(send(records, line) for line in (b"aaaa", b"bbbb", b"cccccc", b"d", b"eeeeeeeeeeeee"))
    )
    assert answers == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert log.lines() == [b"aaaa", b"bbbb", b"cccccc", b"d", b"eeeeeeeeeeeee"]


async def test_a_record_that_fails_fails_all_in_it_and_no_other() -> None:
    """Each request hears of it; a request with lines in several records hears which."""
    log = MemoryLog()
    log.away_partitions = {1}
    records = gathering(log)
    answers: Sequence[Any] = await asyncio.gather(
        *(send(records, b"%d" % n, partition=n % 2) for n in range(6)), return_exceptions=True
    )
    assert answers[::2] == [(0, 0), (0, 1), (0, 2)]
    assert all(isinstance(answer, LogUnavailable) for answer in answers[1::2])


async def test_a_defect_of_the_log_is_told_to_all_who_wait() -> None:
    """Nobody waits for ever, and nobody takes it for an acknowledgement."""

    class BrokenLog(MemoryLog):
        async def write(self, topic: str, value: bytes | None, **rest: Any) -> int:
            raise ZeroDivisionError("broken")

    publisher = Publisher(BrokenLog(), topic="events", partitions=PARTITIONS)
    answers = await asyncio.gather(
        *(publisher.publish("acme", [event(f"t{n}")], catalog_version=1) for n in range(8)), return_exceptions=True
    )
    assert all(isinstance(answer, ZeroDivisionError) for answer in answers)


async def test_who_goes_away_takes_nobody_along() -> None:
    """The record leaves whole, and the others are told where their lines lie."""
    log = GatedLog()
    records = gathering(log)
    leaving = asyncio.create_task(send(records, b"gone"))
    staying = asyncio.create_task(send(records, b"here"))
    await log.begun.acquire()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    log.go.set()
    assert await staying == (0, 1)
    assert log.lines() == [b"gone", b"here"]


async def test_after_a_failure_records_go_on_leaving() -> None:
    """What was held behind a record that failed leaves as behind one that was acknowledged."""
    log = GatedLog()
    records = gathering(log)
    first = asyncio.create_task(send(records, b"first"))
    await log.begun.acquire()
    second = asyncio.create_task(send(records, b"second"))
    await asyncio.sleep(0)
    log.away = True
    log.go.set()
    with pytest.raises(LogUnavailable):
        await first
    log.away = False
    assert await second == (0, 0)
