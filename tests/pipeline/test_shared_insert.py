"""Blocks that share an insert: which do; and of faults of the program whoever waits is told, nobody waits for ever."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from pipeline.block import RULES, Counts
from pipeline.ports import StoreUnavailable
from pipeline.settings import Settings
from pipeline.shared_inserts import Sent, SharedInserts, SharedLimits
from pipeline.stages.sink import Block
from pipeline.worker import shared_limits

_LIMITS = SharedLimits(
    lease_ms=5_000,
    deadline_ms=5_000,
    tries_ms=60_000,
    rows_max=1_000,
    bytes_max=1_000_000,
    block_rows_max=250,
    block_bytes_max=250_000,
)
_PARTITIONS = 3


class _FaultError(Exception):
    """What no code expects."""


class _Clock:
    """Stands still; raises at its readings of these numbers, counted from 1."""

    def __init__(self, *faults: int) -> None:
        self.read = 0
        self.faults = faults

    def __call__(self) -> int:
        self.read += 1
        if self.read in self.faults:
            raise _FaultError
        return 1_000


class _Store:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.held: list[int] = []
        self.together: list[int] = []  # how many blocks each insert had
        self.sparse: list[bool] = []
        self.tried = threading.Event()

    def insert(self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool) -> None:
        assert token
        assert deadline_ms > 0
        self.sparse.append(sparse)
        self.tried.set()
        if self.errors:
            raise self.errors.pop(0)
        self.held += [block.partition for block in blocks]
        self.together.append(len(blocks))


@pytest.fixture
def io() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def _block(partition: int, *, sparse: bool = False) -> Block:
    return Block(
        topic="events",
        epoch=0,
        partition=partition,
        start=0,
        end=1,
        counts=Counts(events=1, accepted=1),
        crc=0,
        catalog_version=0,
        rules=RULES,
        append_ms_max=0,
        months=(),
        rows=None,
        sparse=sparse,
        sightings={},
        rejects=(),
        repeats=None,
        forwards=(),
        bytes=100,
    )


def _rows(number: int, size: int) -> pa.RecordBatch:
    """So many rows of so many bytes together, to the byte."""
    width = size // number
    return pa.RecordBatch.from_pydict({"data": pa.array([bytes(width)] * number, pa.binary(width))})


async def _sent_by_all(shared: SharedInserts, rows: pa.RecordBatch | None = None) -> list[Sent | BaseException]:
    """What each of the partitions is told, whose blocks have these rows each."""

    async def restate() -> int:
        return 1_000

    blocks = [_block(partition) for partition in range(_PARTITIONS)]
    for block in blocks:
        block.rows = rows
    async with asyncio.timeout(30):
        waiting = (shared.insert(block, 1_000, restate, lambda: None) for block in blocks)
        return await asyncio.gather(*waiting, return_exceptions=True)


def _shared(store: _Store, io: ThreadPoolExecutor, clock: _Clock) -> SharedInserts:
    return SharedInserts(store.insert, io, clock, asyncio.Semaphore(1), _LIMITS)


async def test_a_fault_before_a_try_reaches_every_session(io: ThreadPoolExecutor) -> None:
    """Also those whose blocks were not taken yet; what comes later is sent as ever."""
    store = _Store()
    shared = _shared(store, io, _Clock(1))
    assert [type(told) for told in await _sent_by_all(shared)] == [_FaultError] * _PARTITIONS
    assert store.held == []
    assert await _sent_by_all(shared) == [Sent.DONE] * _PARTITIONS
    assert sorted(store.held) == list(range(_PARTITIONS))


async def test_a_fault_before_a_further_try_reaches_every_session(io: ThreadPoolExecutor) -> None:
    """The first try's outcome is unknown; before the second one the clock is read for the third time."""
    store = _Store(StoreUnavailable("no answer"))
    shared = _shared(store, io, _Clock(3))
    assert [type(told) for told in await _sent_by_all(shared)] == [_FaultError] * _PARTITIONS
    assert await _sent_by_all(shared) == [Sent.DONE] * _PARTITIONS


async def test_a_fault_of_the_insert_itself_reaches_every_session(io: ThreadPoolExecutor) -> None:
    """Neither is it tried again."""
    store = _Store(_FaultError())
    shared = _shared(store, io, _Clock())
    assert [type(told) for told in await _sent_by_all(shared)] == [_FaultError] * _PARTITIONS
    assert store.held == []


async def test_a_try_of_unknown_outcome_is_followed_by_another(io: ThreadPoolExecutor) -> None:
    """And all are told that the first may have arrived."""
    store = _Store(StoreUnavailable("no answer"))
    assert await _sent_by_all(_shared(store, io, _Clock())) == [Sent.DOUBTFUL] * _PARTITIONS
    assert sorted(store.held) == list(range(_PARTITIONS))


async def test_each_try_takes_the_way_of_the_first(io: ThreadPoolExecutor) -> None:
    """Also once the session has ended for whose block it was taken: the store knows a token again only where it comes
    the same way."""
    store = _Store(StoreUnavailable("no answer"))
    shared = _shared(store, io, _Clock())

    async def restate() -> int:
        return 1_000

    def sent(block: Block) -> "asyncio.Task[Sent]":
        return asyncio.create_task(shared.insert(block, 1_000, restate, lambda: None))

    async with asyncio.timeout(30):
        sparse, *others = [sent(_block(0, sparse=True)), sent(_block(1)), sent(_block(2))]
        await asyncio.to_thread(store.tried.wait)
        sparse.cancel()
        assert await asyncio.gather(*others) == [Sent.DOUBTFUL] * 2
        assert await sent(_block(3)) is Sent.DONE
    assert sorted(store.held) == [1, 2, 3]
    assert store.sparse == [True, True, False]


@pytest.mark.parametrize(
    ("rows", "size", "together"),
    [
        (333, 333, [3]),
        (500, 500, [2, 1]),
        (501, 501, [1, 1, 1]),
        (1, 333_333, [3]),
        (1, 500_000, [2, 1]),
        (1, 500_001, [1, 1, 1]),
        (1, 2_000_000, [1, 1, 1]),
    ],
)
async def test_an_insert_takes_what_fits_by_rows_and_by_bytes(
    io: ThreadPoolExecutor, rows: int, size: int, together: list[int]
) -> None:
    """And at least one block, however large; the next insert takes what is left."""
    store = _Store()
    assert await _sent_by_all(_shared(store, io, _Clock()), _rows(rows, size)) == [Sent.DONE] * _PARTITIONS
    assert store.together == together
    assert sorted(store.held) == list(range(_PARTITIONS))


@pytest.mark.parametrize(
    ("rows", "size", "others", "wanted"),
    [(250, 250_000, True, True), (251, 251, True, False), (1, 250_001, True, False), (1, 100, False, False)],
)
def test_a_block_goes_with_others_up_to_its_size_and_where_there_are_any(
    io: ThreadPoolExecutor, rows: int, size: int, others: bool, wanted: bool
) -> None:
    async def go() -> bool:
        shared = _shared(_Store(), io, _Clock())
        for partition in (0, 1) if others else (0,):
            shared.comes(partition, 0)
        block = _block(0)
        block.rows = _rows(rows, size)
        return shared.wanted(block)

    assert asyncio.run(go()) is wanted


def test_full_blocks_go_alone_and_six_of_half_their_size_together() -> None:
    """Six partitions of a busy worker: had one of them to go alone, each insert would cost the store as much again."""
    settings = Settings()
    limits = shared_limits(settings)
    assert limits.block_rows_max < settings.block_rows_max
    assert 6 * limits.block_rows_max <= limits.rows_max
