"""The store as the block protocol sees it: epochs, ledger, inserts, and proofs of what has landed.

Every method blocks and may raise StoreUnavailable (outcome unknown) or StoreError. Nothing here repeats anything by
itself: the session decides, under its lease.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.adapters.clickhouse import Store
from pipeline.block import Intent, Line, Position, Sighting, Verdict, earlier, pack_sighting
from pipeline.ports import Border, Epoch, Landed, Progress
from pipeline.stages.sink import MARK_ACCOUNT, Block, mark_name, scaled, unscaled

#: Rollups that every block marks, with the column that holds the mark's name and the one that holds its month.
_MARKED: Final = {
    "usage_client_day": ("feature", "day"),
    "usage_15m": ("feature", "bucket"),
    "usage_dimension_15m": ("feature", "bucket"),
    "usage_uniques_client_day": ("feature", "day"),
    "events_client_day": ("event_name", "day"),
    "events_15m": ("event_name", "bucket"),
    "events_dimension_15m": ("event_name", "bucket"),
}
# A block is one part in each table and month, or year, that it touches, whatever a view makes of it: else a kill could
# part a view's rows from the mark that stands for them. Views multiply rows, by meters and dimensions, beyond the size
# at which the server would begin another part.
_WHOLE: Final = {
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "min_insert_block_size_rows": 1 << 30,
    "min_insert_block_size_bytes": 1 << 34,
}
_FAR: Final = datetime(2200, 1, 1, tzinfo=UTC)
_PAGE_IDS: Final = 500_000  # 8 MB
_FIND_AT_ONCE: Final = 2_000  # of 40 characters each in the request


class BlockStore:
    """One per process; used from several threads at once."""

    def __init__(self, store: Store, *, topic: str, database: str, insert_s_max: int = 25) -> None:
        self._store = store
        self._insert_s_max = insert_s_max
        self._topic = topic
        self._database = database

    def now_ms(self) -> int:
        """The store's clock."""
        found: datetime = self._store.query("SELECT now64(3, 'UTC')").rows[0][0]
        return int(found.timestamp() * 1000)

    # -- epochs and ledger

    def epoch(self, topic_id: str, partition: int) -> Epoch:
        """The epoch of the topic with this id: a new one when the topic was made anew."""
        rows = self._store.query(
            "SELECT epoch, `partition`, topic_id, first_offset FROM epochs FINAL WHERE topic = {topic:String}",
            {"topic": self._topic},
        ).rows
        for number, where, identity, first in rows:
            if identity == topic_id and where == partition:
                return Epoch(number, True, first)
        same = {number for number, _, identity, _ in rows if identity == topic_id}
        others = [number for number, *_ in rows]
        return Epoch(min(same) if same else max(others, default=-1) + 1, False, 0)

    def begin_epoch(self, epoch: int, partition: int, topic_id: str, partitions: int, first_offset: int) -> None:
        """Notes the partition's very first start, so that lost offsets are never taken for a new topic."""
        row = {
            "topic": self._topic,
            "epoch": epoch,
            "partition": partition,
            "topic_id": topic_id,
            "partitions": partitions,
            "first_offset": first_offset,
            "started_at": datetime.now(UTC),
        }
        self._store.insert_arrow("epochs", pa.Table.from_pylist([row], _EPOCHS))

    def last_block(self, epoch: int, partition: int) -> Intent | None:
        """The ledger's newest block of the partition, in the form of its intent."""
        rows = self._store.query(
            """SELECT `start`, `end`, rows, crc, catalog_version, rules, toUnixTimestamp64Milli(stated_at)
            FROM blocks FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32} AND month = 0
            ORDER BY `start` DESC LIMIT 1""",
            self._where(epoch, partition),
        ).rows
        return None if not rows else Intent(epoch, *rows[0])

    def counted_before(
        self, epoch: int, partition: int, offset: int, *, appended_before_ms: int | None = None
    ) -> tuple[int, int] | None:
        """Epoch and end of the last block at or before that offset, in any epoch, and with all its events appended
        before that time where one is given; None when there is none."""
        rows = self._store.query(
            """SELECT epoch, `end` FROM blocks FINAL
            WHERE topic = {topic:String} AND `partition` = {partition:UInt32} AND month = 0
            AND (epoch < {epoch:UInt32} OR (epoch = {epoch:UInt32} AND `end` <= {offset:UInt64}))
            AND append_time_max >= {since:DateTime64(3, 'UTC')} AND append_time_max < {before:DateTime64(3, 'UTC')}
            ORDER BY epoch DESC, `end` DESC LIMIT 1""",
            {
                **self._where(epoch, partition),
                "offset": offset,
                # a block without any line has no append time, and tells nothing of the time
                "since": _instant(0 if appended_before_ms is None else 1),
                "before": _FAR if appended_before_ms is None else _instant(appended_before_ms),
            },
        ).rows
        return (rows[0][0], rows[0][1]) if rows else None

    def write_ledger(self, block: Block, stated_ms: int) -> None:
        """The block's rows of the ledger; the same block written again replaces itself."""
        counts = block.counts
        head = {
            "topic": block.topic,
            "epoch": block.epoch,
            "partition": block.partition,
            "start": block.start,
            "end": block.end,
            "crc": block.crc,
            "catalog_version": block.catalog_version,
            "rules": block.rules,
            "stated_at": _instant(stated_ms),
            "append_time_max": _instant(block.append_ms_max),
        }
        whole = {
            "month": 0,
            "events": counts.events,
            "accepted": counts.accepted,
            "duplicates": counts.duplicates,
            "conflicts": counts.conflicts,
            "rejected": counts.rejected,
            "rerouted": counts.rerouted,
            "rows": counts.accepted,
            "value_sum": unscaled(sum(scaled(m.value_sum) for m in block.months)),
            "id_hash_sum": sum(m.id_hash_sum for m in block.months) % (1 << 128),
        }
        months = [
            {"month": m.month, "rows": m.rows, "value_sum": m.value_sum, "id_hash_sum": m.id_hash_sum}
            for m in block.months
        ]
        self._store.insert_arrow("blocks", _ledger([{**head, **row} for row in (whole, *months)]))

    # -- rows

    def insert(self, block: Block, deadline_ms: int) -> None:
        """All rows of the block in one insert under the block's token. The server refuses it past the deadline, and
        ends it when it runs longer than it may: a view must not be written long after the deadline was looked at."""
        if block.rows is None:
            return
        deadline = pa.array([deadline_ms] * block.rows.num_rows, pa.int64()).cast(pa.timestamp("ms", "UTC"))
        rows = pa.Table.from_batches([block.rows]).append_column("deadline", deadline)
        told = {"insert_deduplication_token": block.token, "max_execution_time": self._insert_s_max, **_WHOLE}
        self._store.insert_arrow("ingest", rows, told)

    def landed(self, block: Block) -> Landed:
        """What has arrived of the block: its rows in facts, its ids, and its mark in every rollup. Of a block without
        rows nothing is missing."""
        if block.rows is None:
            return Landed({})
        where = {**self._where(block.epoch, block.partition), "start": block.start}
        arrivals: dict[tuple[str, int], int] = {}
        facts = dict(
            self._store.query(
                """SELECT toYYYYMM(timestamp) AS month, count() FROM events WHERE epoch = {epoch:UInt32}
                AND `partition` = {partition:UInt32} AND block_start = {start:UInt64} AND account != ''
                AND timestamp >= {low:DateTime64(6, 'UTC')} AND timestamp < {high:DateTime64(6, 'UTC')}
                GROUP BY month""",
                {**where, **_span(block)},
            ).rows
        )
        for entry in block.months:
            arrivals["events", entry.month] = _times(facts.get(entry.month, 0), entry.rows)
        ids = self._store.query(
            """SELECT count() FROM event_ids WHERE `partition` = {partition:UInt32} AND id_hash = 0
            AND epoch = {epoch:UInt32} AND `offset` = {start:UInt64}""",
            where,
        ).rows[0][0]
        arrivals["event_ids", 0] = _times(ids, len(block.months))
        expected = self._marks_expected(block)
        for table, (name, when) in _MARKED.items():
            found = self._marks_found(table, name, when, block)
            for month, count in expected.items():
                arrivals[table, month] = found.get(month, 0) - (count - 1)
        return Landed(arrivals)

    def repair(self, block: Block, landed: Landed) -> None:
        """Adds what is missing, table by table and month by month, under tokens of their own. Only for the block's
        proven owner, once nobody else can still insert it. What arrived more than once is not touched."""
        for table, month in landed.missing:
            if table in ("events", "event_ids"):
                self._insert_direct(table, month, block)
        for table, month in landed.missing:
            if table not in ("events", "event_ids"):
                self._insert_from_facts(table, month, block)

    # -- rejects, progress, rebuilding

    def write_rejects(self, block: Block) -> None:
        """Refused lines and conflicts with bytes, position and reason; idempotent by position."""
        if not block.rejects:
            return
        rows = [_reject(block, line) for line in block.rejects]
        self._store.insert_arrow("rejects", pa.Table.from_pylist(rows, _REJECTS))

    def write_progress(self, rows: Sequence[Progress]) -> None:
        """How far the partitions are counted."""
        if rows:
            found = [
                {
                    "topic": self._topic,
                    "partition": row.partition,
                    "epoch": row.epoch,
                    "complete_until": _instant(row.complete_until_ms),
                    "position": row.position,
                    "end": row.end,
                }
                for row in rows
            ]
            self._store.insert_arrow("progress", pa.Table.from_pylist(found, _PROGRESS))

    def ids(self, partition: int, after: bytes, since: Border, *, most: int = _PAGE_IDS) -> bytes:
        """Keys of the partition's ids first seen at or after that border, in the order of their hashes and above the
        key `after`; 16 bytes each, one after the other, at most so many; empty after the last."""
        return self._store.read(
            """SELECT id_hash FROM event_ids
            WHERE `partition` = {partition:UInt32} AND id_hash > {after:UInt128}
            AND (epoch > {epoch:UInt32} OR (epoch = {epoch:UInt32} AND `offset` >= {offset:UInt64}))
            ORDER BY id_hash LIMIT {most:UInt32}""",
            "RowBinary",  # a UInt128 is 16 bytes, little-endian: the table's key
            parameters={
                "partition": partition,
                "after": int.from_bytes(after, "little"),
                "epoch": since.epoch,
                "offset": since.end,
                "most": most,
            },
        )

    def find(self, partition: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The packed first sightings of those ids that were ever counted."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _FIND_AT_ONCE):
            hashes = [int.from_bytes(key, "little") for key in keys[start : start + _FIND_AT_ONCE]]
            rows = self._store.query(
                """SELECT id_hash, epoch, `offset`, line, content_hash, toUnixTimestamp(append_time) FROM event_ids
                WHERE `partition` = {partition:UInt32} AND id_hash IN {hashes:Array(UInt128)}""",
                {"partition": partition, "hashes": hashes},
            ).rows
            for identity, epoch, offset, line, content, append_s in rows:
                key = identity.to_bytes(16, "little")
                packed = pack_sighting(Sighting(Position(epoch, offset, line), content, append_s))
                found[key] = earlier(found[key], packed) if key in found else packed
        return found

    # -- private

    def _where(self, epoch: int, partition: int) -> dict[str, Any]:
        return {"topic": self._topic, "epoch": epoch, "partition": partition}

    def _marks_expected(self, block: Block) -> dict[int, int]:
        """Per month of the block, how many blocks of the partition have rows there, up to and with this one."""
        rows = self._store.query(
            """SELECT month, count() FROM blocks FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
            AND month IN {months:Array(UInt32)} AND `start` < {start:UInt64} GROUP BY month""",
            {
                **self._where(block.epoch, block.partition),
                "start": block.start,
                "months": [m.month for m in block.months],
            },
        ).rows
        before: dict[int, int] = {row[0]: row[1] for row in rows}
        return {m.month: before.get(m.month, 0) + 1 for m in block.months}

    def _marks_found(self, table: str, name: str, when: str, block: Block) -> dict[int, int]:
        rows = self._store.query(
            f"""SELECT toYYYYMM({when}) AS month, sum(events) FROM {table}
            WHERE account = {{account:String}} AND {name} = {{name:String}} AND month IN {{months:Array(UInt32)}}
            GROUP BY month""",  # noqa: S608 - names from the constant above, values are parameters
            {
                "account": MARK_ACCOUNT,
                "name": mark_name(block.topic, block.epoch, block.partition),
                "months": [m.month for m in block.months],
            },
        ).rows
        return {row[0]: row[1] for row in rows}

    def _insert_direct(self, table: str, month: int, block: Block) -> None:
        rows = pa.Table.from_batches([block.rows])
        if table == "events":
            months = pc.add(pc.multiply(pc.year(rows["timestamp"]), 100), pc.month(rows["timestamp"]))
            rows = rows.filter(pc.equal(months, month)).drop_columns(["content_hash"])
        else:
            rows = rows.select(["partition", "id_hash", "epoch", "offset", "line", "content_hash", "append_time"])
        token = f"{block.token}:repair:{table}:{month}"
        self._store.insert_arrow(table, rows, {"insert_deduplication_token": token, **_WHOLE})

    def _insert_from_facts(self, table: str, month: int, block: Block) -> None:
        """Runs the rollup's own view over the block's facts of one month."""
        select: str = self._store.query(
            "SELECT as_select FROM system.tables WHERE database = {database:String} AND name = {view:String}",
            {"database": self._database, "view": f"ingest_to_{table}"},
        ).rows[0][0]
        source = (  # numbers, and a name that the settings have checked
            f"(SELECT * FROM {self._database}.events WHERE epoch = {block.epoch} AND `partition` = {block.partition}"  # noqa: S608
            f" AND block_start = {block.start} AND toYYYYMM(timestamp) = {month})"
        )
        over_facts, replaced = re.subn(rf"\b(`?{self._database}`?\.)?`?ingest`?(?=\s|$)", source, select, count=1)
        if replaced != 1:
            raise RuntimeError(f"view ingest_to_{table} does not read from ingest: {select[:200]}")
        columns = ", ".join(f"`{c}`" for c in self._store.query(f"SELECT * FROM ({over_facts}) LIMIT 0").columns)  # noqa: S608
        self._store.command(
            f"INSERT INTO {table} ({columns}) {over_facts}",
            None,
            {"insert_deduplication_token": f"{block.token}:repair:{table}:{month}", **_WHOLE},
        )


def _times(found: int, expected: int) -> int:
    """0 for none, 1 for all once, otherwise -1: something adding cannot mend."""
    return 0 if not found else 1 if found == expected else -1


def _span(block: Block) -> dict[str, datetime]:
    """The months of the block as one span of time, which spares the other months' parts."""
    first, last = block.months[0].month, block.months[-1].month
    after = (last // 100 + last % 100 // 12, last % 100 % 12 + 1)
    return {"low": datetime(first // 100, first % 100, 1, tzinfo=UTC), "high": datetime(*after, 1, tzinfo=UTC)}


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _reject(block: Block, line: Line) -> dict[str, Any]:
    error = line.errors[0] if line.errors else None
    return {
        "account": line.account,
        "topic": block.topic,
        "epoch": block.epoch,
        "partition": block.partition,
        "offset": line.offset,
        "line": line.line,
        "verdict": 2 if line.verdict == Verdict.CONFLICT else 1,
        "reason": error.code if error else "conflict",
        "message": "; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in line.errors),
        "field": error.field if error else "",
        "transaction_id": (line.event.transaction_id or "") if line.event else "",
        "bytes": line.raw,
        "append_time": _instant(line.append_ms),
    }


def _ledger(rows: Sequence[dict[str, Any]]) -> pa.Table:
    plain = [
        {
            **dict.fromkeys(("events", "accepted", "duplicates", "conflicts", "rejected", "rerouted"), 0),
            **row,
            "id_hash_sum": row["id_hash_sum"].to_bytes(16, "little"),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(plain, _BLOCKS)


_MILLIS = pa.timestamp("ms", "UTC")
_EPOCHS = pa.schema(
    [
        ("topic", pa.string()),
        ("epoch", pa.uint32()),
        ("partition", pa.uint32()),
        ("topic_id", pa.string()),
        ("partitions", pa.uint32()),
        ("first_offset", pa.uint64()),
        ("started_at", _MILLIS),
    ]
)
_BLOCKS = pa.schema(
    [
        ("topic", pa.string()),
        ("epoch", pa.uint32()),
        ("partition", pa.uint32()),
        ("start", pa.uint64()),
        ("end", pa.uint64()),
        ("month", pa.uint32()),
        ("events", pa.uint64()),
        ("accepted", pa.uint64()),
        ("duplicates", pa.uint64()),
        ("conflicts", pa.uint64()),
        ("rejected", pa.uint64()),
        ("rerouted", pa.uint64()),
        ("rows", pa.uint64()),
        ("value_sum", pa.decimal256(76, 9)),
        ("id_hash_sum", pa.binary(16)),
        ("crc", pa.uint64()),
        ("catalog_version", pa.int64()),
        ("rules", pa.uint32()),
        ("stated_at", _MILLIS),
        ("append_time_max", _MILLIS),
    ]
)
_REJECTS = pa.schema(
    [
        ("account", pa.string()),
        ("topic", pa.string()),
        ("epoch", pa.uint32()),
        ("partition", pa.uint32()),
        ("offset", pa.uint64()),
        ("line", pa.uint32()),
        ("verdict", pa.int8()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("field", pa.string()),
        ("transaction_id", pa.string()),
        ("bytes", pa.binary()),
        ("append_time", _MILLIS),
    ]
)
_PROGRESS = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.uint32()),
        ("epoch", pa.uint32()),
        ("complete_until", _MILLIS),
        ("position", pa.uint64()),
        ("end", pa.uint64()),
    ]
)
