"""Where a partition goes on: decided from the group's commit, the store's ledger and the log's bounds. Pure.

One decision for all who ask: the session that takes a partition, and the commands that tell and mend its offsets.
"""

from typing import NamedTuple

from pipeline.block import GAP_RULES, Committed, Intent
from pipeline.ports import Epoch


class Lost(NamedTuple):
    """There is no commit of ours: the ledger says where to go on, or it is the partition's first start (None)."""

    found: Committed | None


class LedgerAhead(NamedTuple):
    """The ledger knows of more than the group: the offsets were put back, or a range was given up."""

    found: Committed


class StoreBehind(NamedTuple):
    """The group has counted what the ledger does not know: the store was put back to an older state."""

    committed: Committed
    reason: str


Going = Committed | Lost | LedgerAhead | StoreBehind


def going_on(partition: int, ours: Committed | None, ledger: Intent | None, epoch: Epoch) -> Going:
    """What the commit (None: none of ours, of this epoch) and the ledger's last entry say together."""
    if ours is None:
        if ledger is not None:
            return Lost(from_ledger(ledger))
        return Lost(Committed(epoch.number, epoch.first_offset, None) if epoch.known else None)
    if ledger is None:
        behind = not epoch.known or ours.offset > epoch.first_offset
        return StoreBehind(ours, store_behind(partition, ours.offset, "is empty")) if behind else ours
    return _compared(partition, ours, ledger)


def _compared(partition: int, ours: Committed, ledger: Intent) -> Going:
    # a range that was given up takes the place of what was stated there; of a block the statement is as good
    stands = ours.intent is not None and not is_gap(ledger)
    if ledger.start > ours.offset or (ledger.start == ours.offset and not stands):
        return LedgerAhead(from_ledger(ledger))
    if ours.offset not in (ledger.start, ledger.end):
        return StoreBehind(
            ours, store_behind(partition, ours.offset, f"has {ledger.start} to {ledger.end} as its last block")
        )
    return ours


def from_ledger(last: Intent) -> Committed:
    """Where to go on by the ledger alone: its last block is done once more, after a range that was given up."""
    return Committed(last.epoch, last.end, None) if is_gap(last) else Committed(last.epoch, last.start, last)


def is_gap(entry: Intent) -> bool:
    """Whether the ledger's entry is a range that was given up, and no block."""
    return entry.rules == GAP_RULES


def out_of_log(partition: int, offset: int, first: int, end: int) -> str | None:
    """Why the log cannot be read on from the offset; None when it can: elsewhere it would lose events silently."""
    if first <= offset <= end:
        return None
    where = f"partition {partition} goes on at offset {offset}, but its log holds {first} to {end} only: "
    if offset < first:
        return (
            f"{where}events were deleted before they were counted. Put the records back; or, where that cannot be, "
            f"run `tally offsets skip --partition {partition} --reason TEXT` while no worker runs, which gives them up "
            "and notes that for every audit. Raise TALLY_RETENTION_HOURS above the longest time that no worker runs"
        )
    return (
        f"{where}events that were counted are gone from it: the log was put back to an older state. Put back the newer "
        "one, or the store to the same moment and then run "
        f"`tally offsets reset --partition {partition} --to ledger` while no worker runs"
    )


def store_behind(partition: int, counted: int, ledger: str) -> str:
    """What is the matter with a store that lacks what was counted, and the ways out."""
    return (
        f"the group has counted partition {partition} up to {counted}, the store's ledger {ledger}: the store was put "
        "back to an older state. Restore a newer backup, or run "
        f"`tally offsets reset --partition {partition} --to ledger` while no worker runs: the worker then goes on from "
        "the ledger and counts again what lies in the log since (`tally offsets show` tells whether all of it does)"
    )
