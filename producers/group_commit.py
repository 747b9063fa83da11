"""Group commit: lines that come at the same time go to the log as one record, whichever requests they came with.

Rules: what shares partition and kind shares a record, up to its largest size. While nothing is on its way, records
leave at the end of the event loop's turn; otherwise lines gather until what is on its way is acknowledged, `HOLD_S` at
most: the client would hold further records back just so, since it has one request to a broker under way at a time, and
a record costs the process and the worker the same with one line as with fifty. Records leave in the order of their
first lines. A record's fate is the fate of all lines in it; nobody who waits for one is told before the log has
answered.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Final, Generic, TypeVar

from pipeline.ports import Header, LogUnavailable, LogWriter

Kind = TypeVar("Kind", bound=Hashable)

Fate = Exception | None  # of a record: None once the log has it
Settled = Callable[[Fate], None]

HOLD_S: Final = 0.01  # beside the seconds after which a write is given up, nothing


class Gathered:
    """A record: its lines and, once settled, `offset`, or `error` when it is not known to be in the log."""

    __slots__ = ("error", "headers", "lines", "offset", "partition", "size", "waiting")

    def __init__(self, partition: int, headers: Sequence[Header]) -> None:
        self.partition = partition
        self.headers = headers
        self.lines: list[bytes] = []
        self.size = 0
        self.offset = -1
        self.error: Exception | None = None
        self.waiting: list[Settled] = []  # told once the log has answered; they do not raise


class GroupCommit(Generic[Kind]):
    """The records of one topic that are not acknowledged yet. For callers of one event loop. `headers`: those of a kind
    of lines; no record has two kinds."""

    def __init__(
        self,
        log: LogWriter,
        headers: Callable[[Kind], Sequence[Header]],
        *,
        topic: str,
        record_bytes_max: int,
        hold_s: float = HOLD_S,
    ) -> None:
        self._log = log
        self._headers = headers
        self._topic = topic
        self._record_bytes_max = record_bytes_max
        self._hold_s = hold_s
        self._open: dict[tuple[int, Kind], Gathered] = {}  # held, and taking lines
        self._held: list[Gathered] = []
        self._due: asyncio.Handle | None = None  # when those leave; None while there are none
        self._on_the_way: set[asyncio.Task[None]] = set()

    def add(self, partition: int, kind: Kind, line: bytes) -> tuple[Gathered, int]:
        """Puts a line into a record of its kind; which one, and its number there."""
        key = (partition, kind)
        record = self._open.get(key)
        size = len(line) + 1
        if record is None or record.size + size > self._record_bytes_max:
            record = self._open[key] = Gathered(partition, self._headers(kind))
            self._hold(record)
        number = len(record.lines)
        record.lines.append(line)
        record.size += size
        return record, number

    async def settled(self, records: Collection[Gathered]) -> None:
        """Waits until the log has answered for all of them, at most the log's time-out and `HOLD_S`. To be called in
        the turn of the event loop in which their lines were added."""
        waiter = _Waiter(len(records), asyncio.get_running_loop().create_future())
        for record in records:
            record.waiting.append(waiter.one_less)
        await waiter.future

    def _hold(self, record: Gathered) -> None:
        self._held.append(record)
        if self._due is None:
            loop = asyncio.get_running_loop()
            if self._on_the_way:
                self._due = loop.call_later(self._hold_s, self._leave)
            else:
                self._due = loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._due = None
        leaving, self._held = self._held, []
        self._open.clear()
        for record in leaving:
            task = asyncio.create_task(self._write(record), name="record")
            self._on_the_way.add(task)
            task.add_done_callback(self._arrived)

    async def _write(self, record: Gathered) -> None:
        value = b"\n".join(record.lines)
        try:
            record.offset = await self._log.write(
                self._topic, value, partition=record.partition, headers=record.headers
            )
        except asyncio.CancelledError:
            record.error = LogUnavailable("the process stops, and the record is not acknowledged")
            raise
        except Exception as error:  # noqa: BLE001 - a defect too is for those to be told who wait
            record.error = error
        finally:
            for settled in record.waiting:
                settled(record.error)

    def _arrived(self, task: "asyncio.Task[None]") -> None:
        self._on_the_way.discard(task)
        if self._due is not None and not self._on_the_way and not task.cancelled():
            self._due.cancel()
            self._leave()


class _Waiter:
    """Somebody who waits for `left` records."""

    __slots__ = ("future", "left")

    def __init__(self, left: int, future: "asyncio.Future[None]") -> None:
        self.left = left
        self.future = future

    def one_less(self, _: Fate) -> None:
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)
