"""The store in memory: the fake of `adapters/block_store.py`, for tests and experiments.

Rules: like the engine it writes an insert table by table and month by month, each under the insert's token, which it
remembers per table and month and by the way that the rows took; it looks at the deadline once, when the rows arrive.
`events` are facts, `event_ids` the permanent ids, the others stand for rollups, the last one for those that only a
sparse block has rows for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from pipeline.block import Intent, Position, Sighting, Verdict, pack_sighting
from pipeline.ports import Border, Epoch, Landed, Progress, StoreError
from pipeline.stages.sink import MARK_ACCOUNT, Block

SPARSE: Final = "usage_client_edge_15m"
TABLES: Final = ("events", "event_ids", "usage_client_day", "usage_15m", SPARSE)
Place = tuple[str, int]
BlockName = tuple[int, int, int]


class Fact(NamedTuple):
    """A row as the tests see it."""

    key: int
    position: Position
    content: int
    append_s: int
    month: int
    features: tuple[str, ...]


class Arrival(NamedTuple):
    """Rows of a block that came into one table and month together."""

    block: BlockName
    facts: tuple[Fact, ...]


class Entry(NamedTuple):
    """A block in the ledger."""

    block: Block
    intent: Intent


class MemoryBlocks:
    """Blocks in dicts."""

    def __init__(self, now_ms: Callable[[], int], *, token_window_ms: int) -> None:
        self.epochs: dict[tuple[str, int], Epoch] = {}
        self.ledger: dict[BlockName, Entry] = {}
        self.arrivals: dict[Place, list[Arrival]] = {}
        self.rejects: dict[tuple[int, Position], Verdict] = {}
        self.repeats: dict[tuple[int, Position], tuple[int, int]] = {}
        self.progress: list[Progress] = []
        self._now_ms = now_ms
        self._token_window_ms = token_window_ms
        self._tokens: dict[tuple[Place, str], int] = {}
        self._rows: dict[tuple[BlockName, int, int], tuple[Fact, ...]] = {}

    # -- epochs and ledger

    def epoch(self, topic_id: str, partition: int) -> Epoch:
        """The epoch of the topic with this id."""
        known = self.epochs.get((topic_id, partition))
        if known is not None:
            return known
        same = {e.number for (identity, _), e in self.epochs.items() if identity == topic_id}
        highest = max((e.number for e in self.epochs.values()), default=-1)
        return Epoch(min(same) if same else highest + 1, known=False, first_offset=0)

    def begin_epoch(self, epoch: int, partition: int, topic_id: str, partitions: int, first_offset: int) -> None:
        """Notes the partition's very first start."""
        self.epochs[topic_id, partition] = Epoch(epoch, known=True, first_offset=first_offset)

    def last_block(self, epoch: int, partition: int) -> Intent | None:
        """The ledger's newest block of the partition."""
        names = [name for name in self.ledger if name[:2] == (epoch, partition)]
        return msgspec.structs.replace(self.ledger[max(names)].intent, shared=True) if names else None

    def whole(self, epoch: int, partition: int, start: int) -> bool:
        """Whether the ledger's block that begins there has arrived in every table, with its rejects."""
        block = self.ledger[epoch, partition, start].block
        rejects = {Position(epoch, line.offset, line.line) for line in block.rejects}
        known = {position for number, position in self.rejects if number == partition}
        return all(MemoryBlocks.landed(self, block).arrivals.values()) and rejects <= known

    def counted_before(
        self, epoch: int, partition: int, offset: int, *, appended_before_ms: int | None = None
    ) -> tuple[int, int] | None:
        """Epoch and end of the last block at or before that offset, and appended before that time."""
        ends = [
            (e, entry.block.end)
            for (e, p, _), entry in self.ledger.items()
            if p == partition and (appended_before_ms is None or 0 < entry.block.append_ms_max < appended_before_ms)
        ]
        return max((end for end in ends if end <= (epoch, offset)), default=None)

    def write_ledger(self, stated: Sequence[tuple[Block, int]]) -> None:
        """The entries of these blocks; the same block written again replaces itself."""
        for block, when_ms in stated:
            self.ledger[block_name(block)] = Entry(block, block.intent(when_ms))

    # -- rows

    def insert(self, block: Block, deadline_ms: int) -> None:
        """All rows, step by step."""
        self.insert_together([block], block.token, deadline_ms, sparse=block.sparse)

    def insert_together(self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool = True) -> None:
        """All rows of these blocks, step by step."""
        for step in self.steps(blocks, token, deadline_ms, sparse=sparse):
            step()

    def steps(
        self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool = True
    ) -> list[Callable[[], None]]:
        """What an insert does one after the other; whoever stops in between leaves it half done."""
        if self._now_ms() > deadline_ms:
            raise StoreError(469, "the insert came after its deadline")
        if not sparse and any(block.sparse for block in blocks):
            raise AssertionError("rows for a sparse table went where no view brings them to it")
        name = known_as(token, sparse=sparse)
        return [lambda place=place: self._land(place, blocks, name) for place in self.places_of(blocks)]  # type: ignore[misc]

    def places_of(self, blocks: Sequence[Block]) -> list[Place]:
        """Tables and months that these blocks go to, in the order of writing."""
        reached = {place for block in blocks for place in self.places(block)}
        return sorted(reached, key=lambda place: (TABLES.index(place[0]), place[1]))

    def places(self, block: Block) -> list[Place]:
        """Tables and months that the block goes to, in the order of writing."""
        if block.rows is None:
            return []
        months = [entry.month for entry in block.months]
        tables = [table for table in TABLES if table != SPARSE or block.sparse]
        return [(table, month) for table in tables for month in ([0] if table == "event_ids" else months)]

    def landed(self, block: Block) -> Landed:
        """What has arrived of the block, table by table."""
        name = block_name(block)
        return Landed(
            {
                place: sum(arrival.block == name for arrival in self.arrivals.get(place, ()))
                for place in self.places(block)
            }
        )

    def repair(self, block: Block, landed: Landed) -> None:
        """Adds what is missing, under tokens of their own."""
        for place in landed.missing:
            self._land(place, [block], f"{block.token}:repair")

    def write_rejects(self, block: Block) -> None:
        """Refused lines and conflicts, by position."""
        for line in block.rejects:
            self.rejects[block.partition, Position(block.epoch, line.offset, line.line)] = line.verdict

    def write_repeats(self, blocks: Sequence[Block]) -> None:
        """Verdict and id hash of duplicates and conflicts, by position."""
        for block in blocks:
            for row in block.repeats.to_pylist() if block.repeats is not None else ():
                position = Position(block.epoch, row["offset"], row["line"])
                self.repeats[block.partition, position] = row["verdict"], int.from_bytes(row["id_hash"], "little")

    def write_progress(self, rows: list[Progress]) -> None:
        """How far the partitions are counted."""
        self.progress = list(rows)

    def ids(self, partition: int, after: bytes, since: Border) -> bytes:
        """Keys of ids first seen at or after that border, a few at a time."""
        facts = self._ids_of(partition)
        above = int.from_bytes(after, "little")
        found = sorted({f.key for f in facts if f.key > above and f.position[:2] >= since})
        return b"".join(key.to_bytes(16, "little") for key in found[:3])

    def find(self, partition: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed first sightings of those ids that were ever counted."""
        wanted = {int.from_bytes(key, "little") for key in keys}
        facts = sorted((f for f in self._ids_of(partition) if f.key in wanted), key=lambda f: f.position, reverse=True)
        return {f.key.to_bytes(16, "little"): pack_sighting(Sighting(f.position, f.content, f.append_s)) for f in facts}

    def note_token(self, place: Place, token: str) -> None:
        """Rows under this token (see `known_as`) are taken for known in that table and month from now on."""
        self._tokens[place, token] = self._now_ms()

    def facts(self, table: str) -> list[tuple[int, Fact]]:
        """Every row of a table with its partition."""
        return [
            (arrival.block[1], fact)
            for (name, _), arrivals in self.arrivals.items()
            if name == table
            for arrival in arrivals
            for fact in arrival.facts
        ]

    def _ids_of(self, partition: int) -> list[Fact]:
        arrivals = self.arrivals.get(("event_ids", 0), ())
        return [fact for arrival in arrivals if arrival.block[1] == partition for fact in arrival.facts]

    def _land(self, place: Place, blocks: Sequence[Block], token: str) -> None:
        known_ms = self._tokens.get((place, token))
        if known_ms is not None and self._now_ms() - known_ms <= self._token_window_ms:
            return
        self.note_token(place, token)
        for block in blocks:
            if place in self.places(block):
                facts = tuple(fact for fact in self._facts(block) if place[1] in (0, fact.month))
                self.arrivals.setdefault(place, []).append(Arrival(block_name(block), facts))

    def _facts(self, block: Block) -> tuple[Fact, ...]:
        """The block's rows, read once: an insert writes them to many places."""
        name = (block_name(block), block.end, block.crc)
        if name not in self._rows:
            self._rows[name] = tuple(_facts(block))
        return self._rows[name]


def known_as(token: str, *, sparse: bool) -> str:
    """What tables remember of a token: it comes through one view more where sparse tables get something."""
    return f"{token}, by way of sparse tables" if sparse else token


def block_name(block: Block) -> BlockName:
    """Epoch, partition and start: a block's name."""
    return block.epoch, block.partition, block.start


def _facts(block: Block) -> Iterator[Fact]:
    rows: Mapping[str, list[object]] = block.rows.to_pydict() if block.rows is not None else {"account": []}
    for i, account in enumerate(rows["account"]):
        if account == MARK_ACCOUNT:
            continue
        when, appended = rows["timestamp"][i], rows["append_time"][i]
        yield Fact(
            int.from_bytes(rows["id_hash"][i], "little"),  # type: ignore[arg-type]
            Position(block.epoch, rows["offset"][i], rows["line"][i]),  # type: ignore[arg-type]
            rows["content_hash"][i],  # type: ignore[arg-type]
            int(appended.timestamp()),  # type: ignore[attr-defined]
            when.year * 100 + when.month,  # type: ignore[attr-defined]
            tuple(rows["meters.feature"][i]),  # type: ignore[arg-type]
        )
