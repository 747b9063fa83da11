"""Ranges that are given up, in the store: a row of the ledger that is no block, and who, when and why beside it.

Rules: the range takes a block's place in the ledger, so that ranges stay gapless and a worker goes on behind it; it is
written in one insert, after its reason. A block that was under way there must have left no rows.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple

import pyarrow as pa

from pipeline.adapters.block_store import BLOCKS_SCHEMA, BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.block import GAP_RULES, Counts
from pipeline.ports import Landed
from pipeline.stages.sink import Block, MonthEntry

_MILLIS: Final = pa.timestamp("ms", "UTC")
_GAPS: Final = pa.schema(
    [
        ("topic", pa.string()),
        ("epoch", pa.uint32()),
        ("partition", pa.uint32()),
        ("start", pa.uint64()),
        ("end", pa.uint64()),
        ("reason", pa.string()),
        ("told_by", pa.string()),
        ("told_at", _MILLIS),
    ]
)


class Gap(NamedTuple):
    """Offsets [start, end) of one partition that are given up, and who did so, when (UTC) and why."""

    epoch: int
    partition: int
    start: int
    end: int
    reason: str
    told_by: str
    told_at: datetime


class GapStore:
    """Blocks that cannot be built again, and ranges in their place. Methods block and raise StoreUnavailable,
    StoreError."""

    def __init__(self, store: Store, blocks: BlockStore, *, topic: str) -> None:
        self._store = store
        self._blocks = blocks
        self._topic = topic

    def block_at(self, epoch: int, partition: int, start: int) -> Block | None:
        """The ledger's block that starts there, without its rows; None when there is none."""
        rows = self._store.query(
            """SELECT month, `end`, events, accepted, duplicates, conflicts, rejected, rerouted, rows, value_sum,
            id_hash_sum, crc, catalog_version, rules, sparse FROM blocks FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
            AND `start` = {start:UInt64} ORDER BY month""",
            {"topic": self._topic, "epoch": epoch, "partition": partition, "start": start},
        ).rows
        if not rows or rows[0][0] != 0:
            return None
        whole = rows[0]
        return Block(
            topic=self._topic,
            epoch=epoch,
            partition=partition,
            start=start,
            end=whole[1],
            counts=Counts(*whole[2:8]),
            crc=whole[11],
            catalog_version=whole[12],
            rules=whole[13],
            append_ms_max=0,
            months=tuple(MonthEntry(row[0], row[8], Decimal(row[9]), row[10]) for row in rows[1:] if row[8]),
            rows=None,
            sparse=bool(whole[14]),
            sightings={},
            repeats=None,
            rejects=(),
            forwards=(),
            bytes=0,
        )

    def settle(self, block: Block) -> Landed:
        """What has arrived of a block that nobody can build again, once its rollups were completed from its facts.
        Only while no worker runs and nothing of it can land any more."""
        landed = self._blocks.landed(block)
        rollups_only = all(table not in ("events", "event_ids") for table, _ in landed.missing)
        if landed.missing and rollups_only and not landed.surplus:
            self._blocks.repair(block, landed)
            return self._blocks.landed(block)
        return landed

    def give_up(self, gap: Gap, under_way: Block | None) -> None:
        """Notes the gap, then puts it into the ledger, in the place of the block that was under way there (which has
        left no rows). Idempotent."""
        row = {"topic": self._topic, **gap._asdict()}
        self._store.insert_arrow("gaps", pa.Table.from_pylist([row], _GAPS))
        kept = self._rejects_kept(gap)
        plain = {
            **dict.fromkeys(BLOCKS_SCHEMA.names, 0),
            "topic": self._topic,
            "epoch": gap.epoch,
            "partition": gap.partition,
            "start": gap.start,
            "end": gap.end,
            "value_sum": Decimal(0),
            "id_hash_sum": bytes(16),
            "rules": GAP_RULES,
            "stated_at": gap.told_at,
            "append_time_max": datetime.fromtimestamp(0, UTC),
        }
        months = [0, *(entry.month for entry in under_way.months)] if under_way else [0]
        rows = [{**plain, "month": month, **(kept if not month else {})} for month in months]
        self._store.insert_arrow("blocks", pa.Table.from_pylist(rows, BLOCKS_SCHEMA))

    def _rejects_kept(self, gap: Gap) -> dict[str, int]:
        """Lines of the range that were refused and kept before it was lost."""
        rejected, conflicts = self._store.query(
            """SELECT countIf(verdict = 'rejected'), countIf(verdict = 'conflict') FROM rejects FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
            AND `offset` >= {start:UInt64} AND `offset` < {end:UInt64}""",
            {
                "topic": self._topic,
                "epoch": gap.epoch,
                "partition": gap.partition,
                "start": gap.start,
                "end": gap.end,
            },
        ).rows[0]
        return {"events": rejected + conflicts, "rejected": rejected, "conflicts": conflicts}
