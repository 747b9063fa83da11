"""A block: one gapless range [start, end) of one partition, with the verdict of every line in it.

Its *intent* is the metadata of the commit at `start`: who rebuilds the range with the intent's versions gets the same
rows and the same checksum, so that a block is either counted once or not at all, whoever finishes it.
"""

from enum import IntEnum
from struct import Struct as Packing
from typing import Final, NamedTuple

import msgspec

from pipeline.event import Event, FieldError

#: Newest version of the stages' rules. Whoever changes what a line's verdict, meters or checksum are raises it and
#: keeps the former set in `stages.build.RULE_SETS`: a block is rebuilt under the version that its intent names.
RULES: Final = 3
#: From these rules on only blocks that a sparse table gets something of are marked there (`Block.sparse`).
SPARSE_RULES: Final = 2
#: From these rules on rows are in the order of the table `events`, behind the block's marks, which that begins with.
SORTED_RULES: Final = 3
#: The rules under which the tables of ids were begun: they are named by them, and read back anew where they are raised.
#: Whoever changes what a line's verdict is raises them to RULES.
TABLE_RULES: Final = 1
#: In the place of a version: the ledger's entry is no block but a range that was given up (`tally offsets skip`).
GAP_RULES: Final = 0
_TAG: Final = "tallystream/1"
#: The tag of a statement whose block may have gone to the store with others'. A worker that does not know it takes the
#: offset for lost, and so waits until nothing of the block can arrive any more.
_TAG_SHARED: Final = "tallystream/2"
METADATA_BYTES_MAX: Final = 4096  # Kafka's offset.metadata.max.bytes


class Verdict(IntEnum):
    """What became of a line. Stable numbers: they go into the checksum."""

    ACCEPTED = 0
    DUPLICATE = 1
    CONFLICT = 2
    REJECTED = 3
    REROUTED = 4


class Position(NamedTuple):
    """Where an event lies; ordered as the log is, older topic epochs first."""

    epoch: int
    offset: int
    line: int


class Place(msgspec.Struct, frozen=True):
    """The partition whose blocks are built, and what the verdicts depend on besides the log."""

    topic: str
    epoch: int
    partition: int
    partitions: int
    default_account: str
    ahead_max_us: int


class Sighting(NamedTuple):
    """The first sighting of an id: its position, 40 bits of its content hash, and append time in seconds."""

    position: Position
    content: int
    append_s: int


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """A record of the events topic. `append_ms`: the broker's append time; headers as they came."""

    offset: int
    append_ms: int
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Line(msgspec.Struct, gc=False):
    """One line of a record on its way through the stages; each stage fills in its part."""

    offset: int
    line: int
    append_ms: int
    account: str
    raw: bytes
    event: Event | None = None
    errors: tuple[FieldError, ...] = ()
    headers: tuple[tuple[str, bytes], ...] = ()
    defaulted: bool = False
    key: int = 0
    content: int = 0
    verdict: Verdict = Verdict.REJECTED


class Counts(msgspec.Struct, frozen=True):
    """Lines of a block by verdict. events = the sum of the others."""

    events: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    rerouted: int = 0


class Intent(msgspec.Struct, frozen=True):
    """What a worker states before it acts on a block. `stated_ms` (t0) is the time of the statement. `shared`: the
    block may go to the store in one insert with blocks of other partitions."""

    epoch: int
    start: int
    end: int
    rows: int
    crc: int
    catalog_version: int
    rules: int
    stated_ms: int
    shared: bool = False


class _Metadata(msgspec.Struct, omit_defaults=True):
    """The commit metadata on the wire."""

    tag: str
    epoch: int
    end: int = -1
    rows: int = 0
    crc: str = ""
    catalog: int = -1
    rules: int = 0
    t0: int = 0


class Committed(NamedTuple):
    """A commit of ours, read back. `intent` is None when no block was under way."""

    epoch: int
    offset: int
    intent: Intent | None


def encode_metadata(epoch: int, intent: Intent | None) -> str:
    """Commit metadata of an intent, or of none."""
    if intent is None:
        return msgspec.json.encode(_Metadata(_TAG, epoch)).decode()
    return msgspec.json.encode(
        _Metadata(
            _TAG_SHARED if intent.shared else _TAG,
            epoch,
            intent.end,
            intent.rows,
            f"{intent.crc:016x}",
            intent.catalog_version,
            intent.rules,
            intent.stated_ms,
        )
    ).decode()


def decode_metadata(offset: int, text: str) -> Committed | None:
    """The commit at `offset`, or None when its metadata is not ours (a tool has moved the offset)."""
    try:
        found = msgspec.json.decode(text, type=_Metadata)
        crc = int(found.crc or "0", 16)
    except (msgspec.MsgspecError, ValueError):
        return None
    if found.tag not in (_TAG, _TAG_SHARED):
        return None
    if found.end < 0:
        return Committed(found.epoch, offset, None)
    return Committed(
        found.epoch,
        offset,
        Intent(
            found.epoch,
            offset,
            found.end,
            found.rows,
            crc,
            found.catalog,
            found.rules,
            found.t0,
            found.tag == _TAG_SHARED,
        ),
    )


# ------------------------------------------------------------------------------------------------ sightings

KEY_BYTES: Final = 16
SIGHTING_BYTES: Final = 20
CONTENT_MASK: Final = (1 << 40) - 1
# The constant bits come first and together, behind the key's own constant bytes, and what varies follows in one piece:
# so a sorted table of 50 million ids compresses best (measured by tests/benchmarks/dedup_growth.py).
_sighting = Packing(">QQHH")
pack_raw = _sighting.pack
unpack_raw = _sighting.unpack


def pack_sighting(sighting: Sighting) -> bytes:
    """20 bytes: epoch (16 bits), line (24), offset (48), content hash (40), append second (low 16, high 16)."""
    (epoch, offset, line), content, append_s = sighting
    return pack_raw(
        epoch << 48 | line << 24 | offset >> 24,
        (offset & 0xFFFFFF) << 40 | content,
        append_s & 0xFFFF,
        append_s >> 16,
    )


def unpack_sighting(packed: bytes) -> Sighting:
    """The sighting that `pack_sighting` packed."""
    place, rest, append_low, append_high = unpack_raw(packed)
    position = Position(place >> 48, (place & 0xFFFFFF) << 24 | rest >> 40, place >> 24 & 0xFFFFFF)
    return Sighting(position, rest & CONTENT_MASK, append_high << 16 | append_low)


def record_of(packed: bytes) -> tuple[int, int]:
    """Epoch and offset of a packed sighting, which is what borders are compared with."""
    place, rest, _, _ = unpack_raw(packed)
    return place >> 48, (place & 0xFFFFFF) << 24 | rest >> 40


def earlier(one: bytes, other: bytes) -> bytes:
    """The packed sighting with the smaller position."""
    if one == other:
        return one
    return one if unpack_sighting(one).position <= unpack_sighting(other).position else other
