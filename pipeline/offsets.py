"""The workers' offsets as an operator sees and mends them: told, reset to the ledger, and moved over what is lost.

Rules: nothing is changed while the group has members, and nothing is given up without a reason that every audit shows.
What a partition would do is decided by `pipeline.going_on`, as the worker decides it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from rich.table import Table

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.gap_store import Gap, GapStore
from pipeline.adapters.kafka import group_offsets, move_offsets
from pipeline.adapters.kafka_admin import log_bounds, members, topic_id
from pipeline.block import Committed, Intent, decode_metadata, encode_metadata
from pipeline.going_on import LedgerAhead, Lost, StoreBehind, from_ledger, going_on, is_gap, out_of_log
from pipeline.ports import Epoch, LogUnavailable
from pipeline.settings import Settings

State = Literal["counting", "new", "offsets_lost", "ledger_ahead", "store_behind", "events_deleted", "log_behind"]
STOPPED: Final = frozenset({"store_behind", "events_deleted", "log_behind"})  # a person has to do something
_MEMBERS_SHOWN: Final = 5
_GROUPS_FOUND_S: Final = 30


class OffsetsRefused(Exception):  # noqa: N818 - says what is in the way
    """The offsets were not touched; the message says why and what to do."""


class PartitionOffsets(msgspec.Struct, frozen=True):
    """One partition. `committed` is the group's offset (None: none), with the intent stated there; `ours` says whether
    a worker wrote it. `ledger`: the last entry as [start, end), `first` and `end` the log's bounds. `position` is where
    a worker would go on, `lag` the records from there on. `state` is stable, `says` is for people."""

    partition: int
    epoch: int
    committed: int | None
    ours: bool
    intent: tuple[int, int] | None
    ledger: tuple[int, int] | None
    first: int
    end: int
    position: int
    lag: int
    state: State
    says: str


class Reset(msgspec.Struct, frozen=True):
    """A partition whose offset was put to the ledger; `before` None: there was none."""

    partition: int
    before: int | None
    offset: int


class Skipped(msgspec.Struct, frozen=True):
    """What `skip` did to a partition: the range that was given up (None: nothing was lost), where workers go on, and
    what became of a block that was under way."""

    partition: int
    gap: tuple[int, int] | None
    position: int
    says: str


def wait_until_settled(settings: Settings, say: Callable[[str], None]) -> None:
    """Returns when nothing that a worker of the group has stated can land in the store any more: at once where no block
    is under way, else after lease and deadline together, at most. `say` hears of the wait. Raises LogUnavailable."""
    committed = [decode_metadata(*raw) for raw in _offsets(settings).values()]
    stated = [ours.intent.stated_ms for ours in committed if ours is not None and ours.intent is not None]
    if stated:
        _wait(settings, max(stated), say)


def _offsets(settings: Settings) -> dict[int, tuple[int, str]]:
    """The group's; a broker that has just started finds its groups after some seconds."""
    deadline = time.monotonic() + _GROUPS_FOUND_S
    while True:
        try:
            return asyncio.run(group_offsets(settings, settings.topic_events, range(settings.partitions)))
        except LogUnavailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _wait(settings: Settings, stated_ms: int | None, say: Callable[[str], None]) -> None:
    """None: stated nobody knows when."""
    span_s = settings.lease_s + settings.deadline_s
    left_s = span_s if stated_ms is None else stated_ms / 1000 + span_s - time.time()
    if left_s > 0:
        left_s = min(left_s, span_s)
        say(f"waiting {left_s:.0f} s, until nothing that a worker stated before can land in the store any more")
        time.sleep(left_s)


class Offsets:
    """Offsets of one topic and group. Methods block, outside of any event loop. Raise BrokerUnavailable,
    LogUnavailable, StoreUnavailable, StoreError."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._topic = settings.topic_events
        self._blocks = BlockStore(store, topic=self._topic, database=settings.database)
        self._gaps = GapStore(store, self._blocks, topic=self._topic)

    def show(self) -> list[PartitionOffsets]:
        """How every partition stands."""
        return [found.shown for found in self._look(range(self._settings.partitions))]

    def reset(self, partitions: Iterable[int]) -> list[Reset]:
        """Makes the workers go on from the ledger. Raises OffsetsRefused while the group has members."""
        self._must_be_idle()
        found = self._look(partitions)
        targets = {seen.shown.partition: self._ledger_says(seen) for seen in found}
        asyncio.run(move_offsets(self._settings, self._topic, targets))
        return [Reset(s.shown.partition, s.shown.committed, targets[s.shown.partition]) for s in found]

    def skip(self, partition: int, *, reason: str, told_by: str, say: Callable[[str], None]) -> Skipped:
        """Gives up what was deleted from the log before it was counted, and only that. Waits until nothing that was
        stated before can land any more: lease and deadline together, at most. `say` hears of the wait.

        Raises OffsetsRefused while the group has members, or when the partition is stopped by something else.
        """
        self._must_be_idle()
        (seen,) = self._look([partition])
        if seen.shown.state not in ("events_deleted", "offsets_lost", "ledger_ahead", "counting"):
            raise OffsetsRefused(seen.shown.says)
        if seen.shown.first <= seen.shown.position:
            return Skipped(partition, None, seen.shown.position, "nothing is lost: the log still holds what comes next")
        intent = seen.found.intent if seen.found else None
        _wait(self._settings, None if intent is None else intent.stated_ms, say)
        self._must_be_idle()
        return self._skip(seen, reason, told_by)

    # -- private

    def _skip(self, seen: "_Seen", reason: str, told_by: str) -> Skipped:
        shown = seen.shown
        start, says = shown.position, ""
        block = self._gaps.block_at(shown.epoch, shown.partition, start)
        if block is not None:
            landed = self._gaps.settle(block)
            if landed.complete and block.months:
                says = f"block {block.start}-{block.end}, which was under way, is whole in the store and stays counted"
                if block.counts.rerouted:
                    says += f"; of {block.counts.rerouted} events that it sent on some may be lost"
                    reason = f"{reason} (of {block.counts.rerouted} events sent on from {start} some may be lost)"
                start, block = block.end, None
            elif not landed.nothing:
                raise OffsetsRefused(
                    f"block {block.start}-{block.end} of partition {shown.partition} was under way and lies in the "
                    f"store in part: {landed.missing}. Its events are gone from the log, so that it cannot be "
                    "completed: restore the store's last backup, run `tally offsets reset --to ledger`, then this again"
                )
            else:
                says = f"block {block.start}-{block.end}, which was under way, left nothing in the store: given up too"
        end = max(start, shown.first)
        if end > start:
            gap = Gap(shown.epoch, shown.partition, start, end, reason, told_by, datetime.now(UTC))
            self._gaps.give_up(gap, block)
        # as a worker would commit it: by the ledger alone a last block that is whole would be done again
        metadata = encode_metadata(shown.epoch, None)
        asyncio.run(move_offsets(self._settings, self._topic, {shown.partition: end}, metadata))
        return Skipped(shown.partition, (start, end) if end > start else None, end, says)

    def _ledger_says(self, seen: "_Seen") -> int:
        if seen.ledger is not None:
            return from_ledger(seen.ledger).offset
        return seen.epoch.first_offset if seen.epoch.known else seen.shown.first

    def _must_be_idle(self) -> None:
        present = members(self._settings)
        if present:
            raise OffsetsRefused(
                f"the group {self._settings.group} has members: {', '.join(present[:_MEMBERS_SHOWN])}. Stop all "
                "workers; one that was killed, or that has a TALLY_INSTANCE, is taken for a member for another "
                f"TALLY_SESSION_TIMEOUT_S ({self._settings.session_timeout_s:g} s)"
            )

    def _look(self, partitions: Iterable[int]) -> "Sequence[_Seen]":
        numbers = sorted(set(partitions))
        outside = [number for number in numbers if not 0 <= number < self._settings.partitions]
        if outside:
            raise OffsetsRefused(f"there is no partition {outside[0]}: TALLY_PARTITIONS is {self._settings.partitions}")
        identity = topic_id(self._settings, self._topic)
        committed = asyncio.run(group_offsets(self._settings, self._topic, numbers))
        bounds = log_bounds(self._settings, self._topic, numbers)
        return [self._seen(number, identity, committed.get(number), bounds[number]) for number in numbers]

    def _seen(self, number: int, identity: str, raw: tuple[int, str] | None, bounds: tuple[int, int]) -> "_Seen":
        epoch = self._blocks.epoch(identity, number)
        ours = None if raw is None else decode_metadata(*raw)
        if ours is not None and ours.epoch != epoch.number:
            ours = None
        ledger = self._blocks.last_block(epoch.number, number)
        state, found, says = _stands(number, ours, ledger, epoch, bounds)
        position = found.offset if found else bounds[0]
        shown = PartitionOffsets(
            partition=number,
            epoch=epoch.number,
            committed=None if raw is None else raw[0],
            ours=ours is not None,
            intent=None if ours is None or ours.intent is None else (ours.intent.start, ours.intent.end),
            ledger=None if ledger is None else (ledger.start, ledger.end),
            first=bounds[0],
            end=bounds[1],
            position=position,
            lag=max(0, bounds[1] - max(position, bounds[0])),
            state=state,
            says=says,
        )
        return _Seen(shown, epoch, ledger, found)


def render_offsets(found: Sequence[PartitionOffsets]) -> Table:
    """A table of them for a terminal."""
    table = Table()
    columns = ("partition", "epoch", "committed", "intent", "last block", "log", "goes on at", "lag", "state")
    for column in columns:
        table.add_column(column, justify="left" if column == "state" else "right")
    for one in found:
        committed = "" if one.committed is None else f"{one.committed}{'' if one.ours else ' (not by a worker)'}"
        ranges = [_range(one.intent), _range(one.ledger), _range((one.first, one.end))]
        numbers = [str(one.partition), str(one.epoch), committed, *ranges, str(one.position), str(one.lag)]
        table.add_row(*numbers, one.state, style="bold red" if one.state in STOPPED else "")
    return table


def _range(found: tuple[int, int] | None) -> str:
    return "" if found is None else f"{found[0]}-{found[1]}"


class _Seen(msgspec.Struct, frozen=True):
    shown: PartitionOffsets
    epoch: Epoch
    ledger: Intent | None
    found: Committed | None


def _stands(
    number: int, ours: Committed | None, ledger: Intent | None, epoch: Epoch, bounds: tuple[int, int]
) -> tuple[State, Committed | None, str]:
    state: State
    found: Committed | None
    match going_on(number, ours, ledger, epoch):
        case StoreBehind(found, reason):
            from_ = ledger.start if ledger is not None else epoch.first_offset if epoch.known else bounds[0]
            in_log = "the log still holds" if bounds[0] <= from_ else f"the log begins at {bounds[0]} and lacks some of"
            return "store_behind", found, f"{reason}; {in_log} what comes after the ledger"
        case Lost(None):
            return "new", None, "no worker has taken it yet"
        case Lost(found):
            state, says = "offsets_lost", "the group has no commit of a worker: it goes on from the ledger"
        case LedgerAhead(found):
            gap = ledger is not None and is_gap(ledger)
            state = "ledger_ahead"
            says = "goes on behind a range that was given up" if gap else "the ledger is ahead of the group, and right"
        case Committed() as found:
            state, says = "counting", ""
    if found is not None and (reason_ := out_of_log(number, found.offset, *bounds)) is not None:
        return "events_deleted" if found.offset < bounds[0] else "log_behind", found, reason_
    return state, found, says
