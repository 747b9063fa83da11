"""The live tail on a real store: nothing told twice, nothing passed over in silence, nothing buffered."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from litestar.types import Message

from consumers.inspected import LineFilter
from consumers.inspector_api import TailLimits, Tails, TooManyTails
from consumers.tail import BEHIND_MAX, Skipped, Tail, TokenError, Told
from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.block import LogRecord, Place
from pipeline.catalog import Account, Catalog, encode_account
from pipeline.ports import Progress
from pipeline.stages.build import build_block
from pipeline.stages.mapping import Mappers
from pipeline.stages.sink import Block

TOPIC = "tally.events"
APPENDED_MS = 1_767_225_600_123
_FAR_MS = 4_000_000_000_000
_CHOSEN = LineFilter(account="acme")


class Worker:
    """Writes one partition's blocks as the worker does, step by step."""

    def __init__(self, store: Store, epoch: int = 0) -> None:
        catalog = Catalog()
        catalog.apply(0, *encode_account(Account(id="acme", name="Acme", mode="live"), "0"))
        self._mapper = Mappers(catalog).at(catalog.version)
        self.store = store
        self.blocks = BlockStore(store, topic=TOPIC, database=store.query("SELECT currentDatabase()").rows[0][0])
        self.epoch = epoch
        self.end = 0
        self._seen: dict[bytes, bytes] = {}

    def build(self, *lines: tuple[str, str, Any]) -> Block:
        """A block of these lines, one a record: month of 2025, id, value."""
        records = [
            LogRecord(
                self.end + n,
                APPENDED_MS + self.end + n,
                json.dumps(
                    {"clientId": "c", "timestamp": f"2025-{month}-01T00:00:00Z", "transactionId": i, "value": value}
                ).encode(),
                (("account", b"acme"),),
            )
            for n, (month, i, value) in enumerate(lines)
        ]
        block = build_block(
            Place(TOPIC, self.epoch, 0, 1, "acme", 10**15),
            records,
            start=self.end,
            end=self.end + len(lines),
            mapper=self._mapper,
            catalog_version=0,
            lookup=lambda keys: {key: self._seen[key] for key in keys if key in self._seen},
        )
        self._seen.update(block.sightings)
        self.end = block.end
        return block

    def write(self, block: Block, *, rows: bool = True) -> None:
        """Ledger, rows, rejects, repeats."""
        self.blocks.write_ledger([(block, APPENDED_MS)])
        if rows:
            self.blocks.insert(block, _FAR_MS)
        self.blocks.write_rejects(block)
        self.blocks.write_repeats([block])

    def commit(self, position: int | None = None) -> None:
        """All so far is counted."""
        at = self.end if position is None else position
        self.blocks.write_progress([Progress(0, self.epoch, APPENDED_MS, at, at)])


def _tail(store: Store, token: str | None = None, chosen: LineFilter = _CHOSEN) -> Tail:
    return Tail(store, chosen, topic=TOPIC, token=token)


def _all(tail: Tail, lines_max: int = 100) -> list[Told | Skipped]:
    """Everything until there is no more."""
    found: list[Told | Skipped] = []
    while True:
        look = tail.look(lines_max)
        assert len(look.found) <= lines_max + 1  # a skipped range is told beside them
        found += look.found
        if not look.more:
            return found


def _shown(found: Sequence[Told | Skipped]) -> list[tuple[Any, ...]]:
    return [
        (one.line.verdict, one.line.transaction_id, one.line.position.offset)
        if isinstance(one, Told)
        else (one.reason, one.start, one.end)
        for one in found
    ]


@pytest.fixture
def filled(store: Store) -> Worker:
    """Three blocks over three months with every verdict; nothing of them is counted before `commit`."""
    worker = Worker(store)
    worker.commit()
    for lines in (
        [("01", "a", 1), ("02", "b", 1), ("01", "a", 1), ("01", "a", 2)],
        [("01", "a", 1), ("02", "b", "much")],
        [("03", "c", 1), ("02", "b", 1), ("01", "d", 1)],
    ):
        worker.write(worker.build(*lines))
    return worker


_WANTED = [
    ("accepted", "a", 0),
    ("accepted", "b", 1),
    ("duplicate", "a", 2),
    ("conflict", "a", 3),
    ("duplicate", "a", 4),
    ("rejected", "b", 5),
    ("accepted", "c", 6),
    ("duplicate", "b", 7),
    ("accepted", "d", 8),
]


def test_every_line_is_told_once_however_few_at_a_time(filled: Worker) -> None:
    """In the order of the log; nothing before it is counted; the same after a merge, and from a token."""
    begun = _tail(filled.store).token
    assert _all(_tail(filled.store, begun)) == []
    filled.commit()
    for lines_max in (1, 100):
        assert _shown(_all(_tail(filled.store, begun), lines_max)) == _WANTED
    for table in ("events", "repeats", "blocks", "rejects"):
        filled.store.command(f"OPTIMIZE TABLE {table} FINAL")
    told = [one for one in _all(_tail(filled.store, begun), 4) if isinstance(one, Told)]
    assert _shown(told) == _WANTED
    for number in (0, 2, 4, 7, 8):
        assert _shown(_all(_tail(filled.store, told[number].token))) == _WANTED[number + 1 :]


def test_rows_that_the_store_lacks_are_told(filled: Worker) -> None:
    """A block of the ledger whose rows, or repeats, are not there: what is there is told, and that there was more."""
    begun = _tail(filled.store).token
    filled.write(filled.build(("01", "lost", 1), ("01", "much", "much")), rows=False)
    filled.commit()
    assert _shown(_all(_tail(filled.store, begun))) == [*_WANTED, ("rejected", "much", 10), ("not_in_store", 0, 11)]
    filled.store.command("TRUNCATE TABLE repeats")
    filled.store.command("TRUNCATE TABLE progress")
    filled.commit(9)
    shown = _shown(_all(_tail(filled.store, begun)))
    assert shown == [*(one for one in _WANTED if one[0] != "duplicate"), ("not_in_store", 0, 9)]


def test_ranges_that_were_given_up_or_are_missing_are_told(filled: Worker) -> None:
    """With their offsets; the tail goes on behind them."""
    begun = _tail(filled.store).token
    gap = {"topic": TOPIC, "epoch": 0, "partition": 0, "start": 9, "end": 20, "rules": 0}
    filled.store.insert_arrow("blocks", pa.Table.from_pylist([gap]))
    filled.end = 20
    filled.write(filled.build(("01", "e", 1)))
    filled.end = 30
    filled.write(filled.build(("01", "f", 1)))
    filled.commit()
    wanted = [*_WANTED, ("given_up", 9, 20), ("accepted", "e", 20), ("not_in_ledger", 21, 30), ("accepted", "f", 30)]
    for lines_max in (1, 100):
        assert _shown(_all(_tail(filled.store, begun), lines_max)) == wanted


def test_a_tail_that_is_too_far_behind_goes_on_at_the_end_and_says_so(filled: Worker) -> None:
    """Rather than read through everything."""
    begun = _tail(filled.store).token
    filled.commit(BEHIND_MAX + 1)
    tail = _tail(filled.store, begun)
    assert _shown(_all(tail)) == [("too_far_behind", 0, BEHIND_MAX + 1)]
    assert _all(_tail(filled.store, tail.token)) == []


def test_a_topic_that_is_made_anew_is_told_after_the_rest_of_the_former(filled: Worker) -> None:
    """The tail goes from one epoch to the next."""
    begun = _tail(filled.store).token
    again = Worker(filled.store, epoch=1)
    again.write(again.build(("01", "new", 1)))
    again.commit()
    assert _shown(_all(_tail(filled.store, begun))) == [*_WANTED, ("accepted", "new", 0)]


@pytest.mark.parametrize("token", ["", "x", "AAAA", "k6l0", "é", "a" * 10_000])
def test_a_token_of_something_else_is_refused(store: Store, token: str) -> None:
    """Also that of another topic."""
    with pytest.raises(TokenError):
        _tail(store, token)
    other = Tail(store, _CHOSEN, topic="another")
    with pytest.raises(TokenError):
        _tail(store, other.token)


def test_rows_of_no_account_cannot_be_asked_for() -> None:
    """They are the worker's marks."""
    with pytest.raises(ValueError, match="marks"):
        LineFilter(account="")


# ------------------------------------------------------------------------------------------------ as an answer


class Reader:
    """What a server does with an answer for a reader: `taking` is set while it takes what it is sent."""

    def __init__(self) -> None:
        self.taking = asyncio.Event()
        self.taking.set()
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        self.kept_waiting = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> Any:
        """Nothing until the reader has left."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Waits while the reader takes nothing."""
        if not self.taking.is_set():
            self.kept_waiting.set()
        await self.taking.wait()
        if message["type"] == "http.response.body":
            self.pieces.put_nowait(message["body"].decode() + ("" if message.get("more_body") else "(over)"))

    async def next(self) -> str:
        """The next piece."""
        async with asyncio.timeout(60):
            return await self.pieces.get()


def _running(tails: Tails, answer: Any, reader: Reader) -> "asyncio.Task[None]":
    return asyncio.create_task(answer.to_asgi_response()({}, reader.receive, reader.send))


async def _opened(
    store: Store, limits: TailLimits, permitted: Callable[[], bool] = lambda: True
) -> tuple[Tails, Reader, "asyncio.Task[None]"]:
    tails = Tails(lambda chosen, token: _tail(store, token, chosen), limits)
    reader = Reader()
    running = _running(tails, await tails.open(_CHOSEN, None, permitted), reader)
    assert "event: open" in await reader.next()
    return tails, reader, running


async def test_a_reader_that_takes_nothing_is_told_and_dropped(filled: Worker) -> None:
    """Once it takes again: its last event says that it was too slow; what it missed it gets after its last id."""
    _, reader, running = await _opened(filled.store, TailLimits(poll_s=0.01, slow_s=0.05))
    reader.taking.clear()
    await asyncio.to_thread(filled.commit)
    await reader.kept_waiting.wait()
    await asyncio.sleep(0.3)  # in the same loop as the 0.05 s of the tail, which are over before
    reader.taking.set()
    pieces = [await reader.next()]
    while "(over)" not in pieces[-1]:
        pieces.append(await reader.next())
    assert 'event: end\ndata: {"reason":"too_slow"' in pieces[-1]
    ids = [line.removeprefix("id: ") for line in "".join(pieces).splitlines() if line.startswith("id: ")]
    shown = "".join(pieces).count("\ndata: ") - 1  # but the end
    assert _shown(await asyncio.to_thread(_all, _tail(filled.store, ids[-1]))) == _WANTED[shown:]
    await running


async def test_a_reader_that_never_takes_anything_is_cut_off(filled: Worker) -> None:
    """Past a bound nothing is kept for it."""
    tails, reader, running = await _opened(filled.store, TailLimits(poll_s=0.01, slow_s=0.01, cut_s=0.05, of_account=1))
    reader.taking.clear()
    await asyncio.to_thread(filled.commit)
    async with asyncio.timeout(60):
        await running
    assert await tails.open(_CHOSEN, None, lambda: True)  # its place is free again


async def test_a_quiet_tail_gives_a_sign_of_life_and_ends_with_the_process(filled: Worker) -> None:
    """A comment; then the reason, as its last event."""
    tails, reader, running = await _opened(filled.store, TailLimits(poll_s=0.01, heartbeat_s=0.02))
    assert await reader.next() == ": still here\n\n"
    tails.stop()
    while "(over)" not in (piece := await reader.next()):
        last = piece
    assert 'event: end\ndata: {"reason":"stopping"' in last
    await running
    with pytest.raises(TooManyTails):
        await tails.open(_CHOSEN, None, lambda: True)


async def test_tails_are_so_many_and_a_reader_that_leaves_makes_room(filled: Worker) -> None:
    """Of an account, and of the process."""
    tails, reader, running = await _opened(filled.store, TailLimits(poll_s=0.01, at_once=2, of_account=1))
    with pytest.raises(TooManyTails):
        await tails.open(_CHOSEN, None, lambda: True)
    await tails.open(LineFilter(account="second"), None, lambda: True)
    with pytest.raises(TooManyTails):
        await tails.open(LineFilter(account="third"), None, lambda: True)
    reader.left.set()
    await running
    await tails.open(_CHOSEN, None, lambda: True)


async def test_a_store_that_goes_away_ends_the_tail_with_a_last_event(filled: Worker) -> None:
    """With the reason; the reader comes back by itself after its last id."""
    _, reader, running = await _opened(filled.store, TailLimits(poll_s=0.01))
    filled.store.command("RENAME TABLE progress TO progress_away")
    try:
        while "(over)" not in (last := await reader.next()):
            pass
    finally:
        filled.store.command("RENAME TABLE progress_away TO progress")
    assert 'event: end\ndata: {"reason":"store_away"' in last
    await running
