"""Ports: what the pipeline expects of the outside, one Protocol per outside thing.

Rules: no implementation here. Each port has its adapters and fakes in `pipeline/adapters`; all adapters of one port
pass the same contract suite in `tests`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pipeline.block import Intent, LogRecord
from pipeline.stages.sink import Block

# ------------------------------------------------------------------------------------------------ catalog


class CatalogRecord(NamedTuple):
    """One record of the catalog's log. `value` None removes what the key names; `timestamp_ms`: UTC, by the log."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class CatalogUnavailable(Exception):  # noqa: N818 - an outage, not a mistake of the caller
    """The catalog's log cannot be reached, or the catalog is behind it. Nothing is wrong with the request: retry.

    After a failed write the outcome may be unknown: the record may still be there. Writing again is safe, since every
    record states a whole object.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CatalogLog(Protocol):
    """An append-only log of keyed records in one total order, compacted by key.

    Offsets ascend and may have gaps. The last record is never compacted away.
    """

    async def start(self) -> None:
        """Connect; does nothing when connected. Raises CatalogUnavailable when that takes too long."""

    async def stop(self) -> None:
        """Disconnect; readers end. May be called more than once."""

    async def append(self, key: bytes, value: bytes | None) -> int:
        """Write one record durably; its offset. Raises CatalogUnavailable within a bounded time."""

    async def end_offset(self) -> int:
        """The offset after the last record that readers can see. Raises CatalogUnavailable within a bounded time."""

    def read(self, from_offset: int) -> AsyncGenerator[CatalogRecord, None]:
        """Records from that offset on, then those that come, for ever. Raises CatalogUnavailable when it cannot go on:
        read again from the offset after the last record."""


class MirrorStore(Protocol):
    """Where the catalog's mirror tables are. Blocks; the caller uses a thread."""

    def insert_arrow(self, table: str, rows: Any, settings: Mapping[str, Any] | None = None) -> None:
        """Insert a pyarrow.Table by column name in one request. Raises StoreUnavailable, StoreError."""


# ------------------------------------------------------------------------------------------------ the log


class LogUnavailable(Exception):  # noqa: N818 - a state of the log, told to callers as 503
    """Kafka did not acknowledge within the bound; what was sent may or may not arrive. Sending the same ids again
    is safe."""

    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


Header = tuple[str, bytes]


class Record(NamedTuple):
    """A record as it lies in the log. `timestamp_ms` is the broker's append time."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[Header]


class LogWriter(Protocol):
    """Writes records and tells the offset once all in-sync replicas have them."""

    async def write(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> int:
        """One record; its offset after the acknowledgement. Raises LogUnavailable past a bound."""


class LogReader(Protocol):
    """Reads ranges of partitions."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset, and the offset after the last readable record. Raises LogUnavailable."""

    def read_range(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The records of [start, end) in batches, then stops. Raises LogUnavailable."""


class LogTrimmer(Protocol):
    """Lets the old end of a partition go. Blocks; the caller uses a thread."""

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Records below that offset are there no more. Raises LogUnavailable."""


# ------------------------------------------------------------------------------------------------ the group


class Member(NamedTuple):
    """Who a worker was in the group when its partitions were assigned."""

    generation: int
    member_id: str


class CommitAnswer(Enum):
    """What became of a commit."""

    DONE = "done"
    REFUSED = "refused"  # another generation owns the partition
    UNKNOWN = "unknown"  # no answer: it may have been applied, or may yet be


class Batch(NamedTuple):
    """What one fetch gave of one partition: the records in [start, end). Offsets may have gaps, ranges never.
    `opening` tells the reading that it belongs to from earlier ones."""

    partition: int
    opening: int
    start: int
    end: int
    records: Sequence[LogRecord]


class Group(Protocol):
    """The consumer group, and the flow of batches, as a session sees them."""

    async def committed(self, partition: int) -> tuple[int, str] | None:
        """The group's offset and metadata; None when there is none. Raises LogUnavailable."""

    async def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        """One commit under that membership, sent once."""

    async def rejoin(self) -> None:
        """Leaves the group and joins anew: every session of this worker ends and is begun afresh."""

    async def open_at(self, partition: int, offset: int) -> int:
        """Batches of the partition come from `offset` on; returns the opening's number."""

    def pause(self, partition: int) -> None:
        """No more batches until `resume`; one that is under way still comes."""

    def resume(self, partition: int) -> None:
        """Batches come again."""


# ------------------------------------------------------------------------------------------------ the table


class Marker(NamedTuple):
    """Everything in the changelog below `offset` is in the table: all ids first seen before `end` of `epoch`."""

    offset: int
    epoch: int
    end: int


class Border(NamedTuple):
    """Between ids: those first seen before `end` of `epoch` lie below it."""

    epoch: int
    end: int


class TableClosed(Exception):  # noqa: N818 - told to a session that has lost its partition
    """The table was closed while it was in use: its partition went to another worker."""


class Table(Protocol):
    """First sightings of one partition's ids, beside them a filter of the ids that are no longer there.

    Every id first seen before the end of what the table was told is in the table or, below `border`, in the filter,
    provided that `remembered` is not below `border`. Methods block; used by one thread at a time, except
    `save_expired`. Raise TableClosed.
    """

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """The packed sightings of those keys that are there."""

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes the sightings of a stated block."""

    def restore(self, entries: Iterable[tuple[bytes, bytes]], marker: Marker | None = None) -> None:
        """Takes entries that were read back, the smaller position always wins, and moves the marker with them."""

    def marker(self) -> Marker:
        """How far the table was read back."""

    def page(self, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Entries with keys above `after`, in their order, at most so many; empty after the last."""

    def border(self) -> Border:
        """Ids first seen before it may be missing here."""

    def expire(self, keys: Sequence[bytes], border: Border) -> None:
        """Moves the border and takes these keys out, in one batch. The filter has them already."""

    def may_be_expired(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those that the filter holds, and a few that it does not."""

    def remember_expired(self, keys: bytes) -> None:
        """Adds keys of 16 bytes, one after the other, to the filter. Lost unless it is saved."""

    def save_expired(self, reach: Border) -> None:
        """Makes the filter durable; it now holds all ids below that border that the table may miss. May run in another
        thread while the table is looked up. Raises OSError."""

    def remembered(self) -> Border:
        """How far the filter reached when it was last saved."""


# ------------------------------------------------------------------------------------------------ the store


class Rows(Protocol):
    """What a query gives: one tuple a row."""

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def rows(self) -> Sequence[tuple[Any, ...]]: ...


class Reader(Protocol):
    """The store, as far as reading goes."""

    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Rows:
        """Run a SELECT with server-side parameters. Blocks."""


class StoreUnavailable(Exception):  # noqa: N818 - named for what is the matter, as LogUnavailable is
    """No answer from the server: refused, reset or timed out. What the request did is unknown."""


class StoreError(Exception):
    """The server answered with an error. `code` is ClickHouse's, 0 when the client refused before sending."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class Epoch(NamedTuple):
    """A life of the events topic, as one partition sees it. `known` is False at the partition's very first start."""

    number: int
    known: bool
    first_offset: int


class Progress(NamedTuple):
    """How far one partition is counted: every event acknowledged before `complete_until_ms` is."""

    partition: int
    epoch: int
    complete_until_ms: int
    position: int
    end: int


class Landed(NamedTuple):
    """Where a block's rows are: per table and month (0: all months) how many times they arrived; -1 for a number of
    times that no whole insert explains."""

    arrivals: dict[tuple[str, int], int]

    @property
    def complete(self) -> bool:
        """Everywhere exactly once."""
        return all(times == 1 for times in self.arrivals.values())

    @property
    def nothing(self) -> bool:
        """Nowhere at all."""
        return not any(self.arrivals.values())

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Tables and months that the block has not reached."""
        return [place for place, times in self.arrivals.items() if times == 0]

    @property
    def surplus(self) -> list[tuple[str, int]]:
        """Tables and months where something is wrong that adding cannot mend."""
        return [place for place, times in self.arrivals.items() if times not in (0, 1)]


class Blocks(Protocol):
    """The store as the block protocol sees it. Methods block and raise StoreUnavailable or StoreError."""

    def epoch(self, topic_id: str, partition: int) -> Epoch:
        """The epoch of the topic with this id."""

    def begin_epoch(self, epoch: int, partition: int, topic_id: str, partitions: int, first_offset: int) -> None:
        """Notes the partition's very first start."""

    def last_block(self, epoch: int, partition: int) -> Intent | None:
        """The ledger's newest block of the partition, or the range that was given up after it (rules GAP_RULES)."""

    def whole(self, epoch: int, partition: int, start: int) -> bool:
        """Whether the ledger's block that begins there has arrived in every table, with its rejects."""

    def counted_before(
        self, epoch: int, partition: int, offset: int, *, appended_before_ms: int | None = None
    ) -> tuple[int, int] | None:
        """Epoch and end of the last block that ends at or before that offset, and whose events were all appended
        before that time where one is given."""

    def write_ledger(self, stated: Sequence[tuple[Block, int]]) -> None:
        """The rows of the ledger of these blocks, each with the time of its statement, in one request; idempotent."""

    def insert(self, block: Block, deadline_ms: int) -> None:
        """All rows in one insert under the block's token; refused past the deadline."""

    def insert_together(self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool = True) -> None:
        """All rows of blocks of several partitions in one insert under that token; refused past the deadline. `sparse`:
        by the way that reaches tables which get rows of few blocks as well; the same on each try, and True where any of
        the blocks is (`Block.sparse`)."""

    def landed(self, block: Block) -> Landed:
        """What has arrived of the block, table by table."""

    def repair(self, block: Block, landed: Landed) -> None:
        """Adds what is missing. Only for the proven owner, once nobody else can still insert the block."""

    def write_rejects(self, block: Block) -> None:
        """Refused lines and conflicts; idempotent."""

    def write_repeats(self, blocks: Sequence[Block]) -> None:
        """Duplicates and conflicts of these blocks by position, in one request; idempotent."""

    def ids(self, partition: int, after: bytes, since: Border) -> bytes:
        """Keys of the partition's ids first seen at or after that border, in the order of their hashes and above the
        key `after`; 16 bytes each, one after the other, a page at a time; empty after the last."""

    def find(self, partition: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed first sightings of those ids that were ever counted."""
