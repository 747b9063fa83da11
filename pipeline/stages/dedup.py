"""Dedup: the verdict of every line, a function of the log alone. Pure.

An event at position p is first iff no smaller position is known for its id; its own position is its own replay; a
smaller one makes it a duplicate (same content) or a conflict (other content). Routing comes before: an id that lies
in another partition than its own is sent there and gets its verdict there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.block import CONTENT_MASK, Line, Position, Sighting, Verdict, pack_sighting, unpack_sighting
from pipeline.event import FieldError, content_hash, derived_id_hash, id_hash, partition_of

#: Finds the packed sightings of many ids at once; ids that were never seen are absent.
Lookup = Callable[[Sequence[bytes]], Mapping[bytes, bytes]]


def identify(
    lines: Iterable[Line],
    *,
    topic: str,
    epoch: int,
    partition: int,
    partitions: int,
    known_account: Callable[[str], bool],
) -> None:
    """Fills in each event's key and content hash, and the verdicts that need no table: refused and rerouted."""
    for line in lines:
        event = line.event
        if event is None:
            continue
        if not known_account(line.account):
            line.errors = (unknown_account(line.account),)
            line.event = None
            continue
        if event.transaction_id is None:
            # a derived id carries its position and stays in the partition where it lies
            line.key = derived_id_hash(epoch, topic, partition, line.offset, line.line)
        else:
            line.key = id_hash(line.account, event.transaction_id)
            if partition_of(line.key, partitions) != partition:
                line.verdict = Verdict.REROUTED
                continue
        line.verdict = Verdict.ACCEPTED
        line.content = content_hash(event, without_timestamp=line.defaulted) & CONTENT_MASK


def open_keys(lines: Iterable[Line]) -> list[bytes]:
    """The table's keys of the lines that `judge` will settle, in their order."""
    return [line.key.to_bytes(16, "little") for line in lines if line.verdict == Verdict.ACCEPTED]


def judge(lines: Sequence[Line], *, epoch: int, lookup: Lookup) -> dict[bytes, bytes]:
    """Settles first sightings, duplicates and conflicts; returns what the block adds to the table: key → packed
    sighting, in the order of the log."""
    open_lines = [line for line in lines if line.verdict == Verdict.ACCEPTED]
    keys = open_keys(lines)
    seen = lookup(keys)
    added: dict[bytes, bytes] = {}
    for line, key in zip(open_lines, keys, strict=True):
        known = added.get(key) or seen.get(key)
        position = Position(epoch, line.offset, line.line)
        if known is None:
            added[key] = pack_sighting(Sighting(position, line.content, line.append_ms // 1000))
            continue
        first = unpack_sighting(known)
        if first.position >= position:
            added[key] = pack_sighting(Sighting(position, line.content, line.append_ms // 1000))
        elif first.content == line.content:
            line.verdict = Verdict.DUPLICATE
        else:
            line.verdict = Verdict.CONFLICT
            line.errors = (conflict_with(first),)
    return added


def unknown_account(account: str) -> FieldError:
    """Why a line of an account that does not exist is refused."""
    message = f"account {account!r} does not exist; create it, or send with an account that does"
    return FieldError("account", "unknown_account", message)


def conflict_with(first: Sighting) -> FieldError:
    """Why a line is not counted whose id stands for other content."""
    message = f"transactionId was used before with other content, at offset {first.position.offset}"
    return FieldError("transactionId", "conflict", message)
