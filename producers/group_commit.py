"""Group commit: lines that come at the same time go to the log as one record, whichever requests they came with.

Rules: what shares partition and headers shares a record, up to its largest size. While nothing of a partition is on its
way, a record leaves at the end of the event loop's turn; otherwise lines gather until what is on its way is
acknowledged, `HOLD_S` at most: the client would hold a second record back just so, and each record costs the process
and the worker the same with one line as with fifty. Records leave a partition in the order of their first lines. A
record's fate is the fate of all lines in it; nobody who waits for one is told before the log has answered.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Final

from pipeline.ports import Header, LogUnavailable, LogWriter

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
        self.waiting: list[_Waiter] = []


class GroupCommit:
    """The records of one topic that are not acknowledged yet. For callers of one event loop."""

    def __init__(self, log: LogWriter, *, topic: str, record_bytes_max: int, hold_s: float = HOLD_S) -> None:
        self._log = log
        self._topic = topic
        self._record_bytes_max = record_bytes_max
        self._hold_s = hold_s
        self._lanes: dict[int, _Lane] = {}
        self._writes: set[asyncio.Task[None]] = set()

    def add(
        self, partition: int, key: Hashable, line: bytes, headers: Callable[[], Sequence[Header]]
    ) -> tuple[Gathered, int]:
        """Puts a line into a record; which one, and its number there. `key` stands for what `headers` gives."""
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane()
        record = lane.open.get(key)
        size = len(line) + 1
        if record is None or record.size + size > self._record_bytes_max:
            record = lane.open[key] = Gathered(partition, headers())
            self._hold(lane, record)
        number = len(record.lines)
        record.lines.append(line)
        record.size += size
        return record, number

    async def settled(self, records: Collection[Gathered]) -> None:
        """Waits until the log has answered for all of them, at most the log's time-out and `HOLD_S`. To be called in
        the turn of the event loop in which their lines were added."""
        waiter = _Waiter(len(records), asyncio.get_running_loop().create_future())
        for record in records:
            record.waiting.append(waiter)
        await waiter.future

    def _hold(self, lane: "_Lane", record: Gathered) -> None:
        lane.held.append(record)
        if lane.due is None:
            loop = asyncio.get_running_loop()
            if lane.on_the_way:
                lane.due = loop.call_later(self._hold_s, self._leave, lane)
            else:
                lane.due = loop.call_soon(self._leave, lane)

    def _leave(self, lane: "_Lane") -> None:
        lane.due = None
        leaving, lane.held = lane.held, []
        lane.open.clear()
        lane.on_the_way += len(leaving)
        for record in leaving:
            task = asyncio.create_task(self._write(lane, record), name="record")
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _write(self, lane: "_Lane", record: Gathered) -> None:
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
            for waiter in record.waiting:
                waiter.one_less()
        lane.on_the_way -= 1
        if lane.due is not None and not lane.on_the_way:
            lane.due.cancel()
            self._leave(lane)


class _Lane:
    """One partition: `held` are its records that wait, `open` those of them that take lines."""

    __slots__ = ("due", "held", "on_the_way", "open")

    def __init__(self) -> None:
        self.open: dict[Hashable, Gathered] = {}
        self.held: list[Gathered] = []
        self.on_the_way = 0
        self.due: asyncio.Handle | None = None


class _Waiter:
    """Somebody who waits for `left` records."""

    __slots__ = ("future", "left")

    def __init__(self, left: int, future: "asyncio.Future[None]") -> None:
        self.left = left
        self.future = future

    def one_less(self) -> None:
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)
