"""The store as the block protocol sees it: epochs, ledger, inserts, and proofs of what has landed.

Every method blocks and may raise StoreUnavailable (outcome unknown) or StoreError. Nothing here repeats anything by
itself: the session decides, under its lease.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.adapters.clickhouse import Store
from pipeline.adapters.rollup_view import MARKED, MARKING, SPARSE, select_over
from pipeline.block import GAP_RULES, Intent, Line, Position, Sighting, Verdict, earlier, pack_sighting
from pipeline.event import id_hash, readable_transaction_id
from pipeline.ports import Border, Epoch, Landed, Progress
from pipeline.stages.sink import MARK_ACCOUNT, Block, mark_name, scaled, unscaled

# A block is one part in each table and month, or year, that it touches, whatever a view makes of it: else a kill could
# part a view's rows from the mark that stands for them. Views multiply rows, by meters and dimensions, beyond the size
# at which the server would begin another part.
_WHOLE: Final = {
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "min_insert_block_size_rows": 1 << 30,
    "min_insert_block_size_bytes": 1 << 34,
}
_CELLS: Final = "RowBinaryWithNamesAndTypes"  # knows states of aggregate functions, and refuses what does not fit
_FAR: Final = datetime(2200, 1, 1, tzinfo=UTC)
_PAGE_IDS: Final = 500_000  # 8 MB
_FIND_AT_ONCE: Final = 2_000  # of 40 characters each in the request


class BlockStore:
    """One per process; used from several threads at once."""

    def __init__(
        self, store: Store, *, topic: str, database: str, insert_s_max: int = 25, shared_s_max: int = 5
    ) -> None:
        self._store = store
        self._insert_s_max = insert_s_max
        self._shared_s_max = shared_s_max
        self._topic = topic
        self._database = database

    def now_ms(self) -> int:
        """The store's clock."""
        found: datetime = self._store.query("SELECT now64(3, 'UTC')").rows[0][0]
        return int(found.timestamp() * 1000)

    def schema_version(self) -> int:
        """Number of the last migration that was applied."""
        found: int = self._store.query("SELECT max(version) FROM schema_versions").rows[0][0]
        return found

    def moduli(self) -> set[int]:
        """Every number of partitions that ids were spread over since the topic's first life; at most one, when all is
        well. Empty before the first start."""
        rows = self._store.query(
            "SELECT DISTINCT partitions FROM epochs FINAL WHERE topic = {topic:String}", {"topic": self._topic}
        ).rows
        return {row[0] for row in rows}

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
        """The ledger's newest block of the partition, in the form of its intent; or the range given up after it."""
        rows = self._store.query(
            """SELECT `start`, `end`, rows, crc, catalog_version, rules, toUnixTimestamp64Milli(stated_at)
            FROM blocks FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32} AND month = 0
            ORDER BY `start` DESC LIMIT 1""",
            self._where(epoch, partition),
        ).rows
        # the ledger does not tell whether the block went with others, so it may have
        return None if not rows else msgspec.structs.replace(Intent(epoch, *rows[0]), shared=True)

    def whole(self, epoch: int, partition: int, start: int) -> bool:
        """Whether the ledger's block that begins there has arrived in every table, by its marks, with its rejects.
        Rows are not counted: some may have been erased since."""
        where = {**self._where(epoch, partition), "start": start}
        rows = self._store.query(
            """SELECT month, `end`, conflicts + rejected, sparse FROM blocks FINAL
            WHERE topic = {topic:String} AND epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
            AND `start` = {start:UInt64} ORDER BY month""",
            where,
        ).rows
        months = [month for month, *_ in rows if month]
        refused = sum(number for month, _, number, _ in rows if month == 0)
        end = max((end for _, end, *_ in rows), default=start)
        marked = self._all_marked(where, months, sparse=any(sparse for *_, sparse in rows))
        return marked and refused <= self._refused(where, end)

    def counted_before(
        self, epoch: int, partition: int, offset: int, *, appended_before_ms: int | None = None
    ) -> tuple[int, int] | None:
        """Epoch and end of the last block at or before that offset, in any epoch, and with all its events appended
        before that time where one is given; None when there is none."""
        rows = self._store.query(
            """SELECT epoch, `end` FROM blocks FINAL
            WHERE topic = {topic:String} AND `partition` = {partition:UInt32} AND month = 0
            AND rules != {gap:UInt32}
            AND (epoch < {epoch:UInt32} OR (epoch = {epoch:UInt32} AND `end` <= {offset:UInt64}))
            AND append_time_max >= {since:DateTime64(3, 'UTC')} AND append_time_max < {before:DateTime64(3, 'UTC')}
            ORDER BY epoch DESC, `end` DESC LIMIT 1""",
            {
                **self._where(epoch, partition),
                "offset": offset,
                "gap": GAP_RULES,
                # a block without any line has no append time, and tells nothing of the time
                "since": _instant(0 if appended_before_ms is None else 1),
                "before": _FAR if appended_before_ms is None else _instant(appended_before_ms),
            },
        ).rows
        return (rows[0][0], rows[0][1]) if rows else None

    def write_ledger(self, stated: Sequence[tuple[Block, int]]) -> None:
        """The rows of the ledger of these blocks, each with the time of its statement; the same block written again
        replaces itself."""
        self._store.insert_arrow("blocks", _ledger([row for block, when in stated for row in _entries(block, when)]))

    # -- rows

    def insert(self, block: Block, deadline_ms: int) -> None:
        """All rows of the block in one insert under the block's token. The server refuses it past the deadline, and
        ends it when it runs longer than it may: a view must not be written long after the deadline was looked at."""
        if block.rows is not None:
            self._insert_rows([block.rows], block.token, deadline_ms, self._insert_s_max, sparse=block.sparse)

    def insert_together(self, blocks: Sequence[Block], token: str, deadline_ms: int, *, sparse: bool = True) -> None:
        """The same for blocks of several partitions under that token: one part in each table and month, with a mark of
        each block. `sparse`: see `pipeline.ports.Blocks`."""
        batches = [block.rows for block in blocks if block.rows is not None]
        if batches:
            self._insert_rows(batches, token, deadline_ms, self._shared_s_max, sparse=sparse)

    def _insert_rows(
        self, batches: Sequence[pa.RecordBatch], token: str, deadline_ms: int, run_s_max: int, *, sparse: bool
    ) -> None:
        rows = pa.Table.from_batches(batches)
        deadline = pa.repeat(pa.scalar(deadline_ms, pa.int64()), rows.num_rows).cast(pa.timestamp("ms", "UTC"))
        rows = rows.append_column("deadline", deadline)
        told = {
            "insert_deduplication_token": token,
            "max_execution_time": run_s_max,
            "query_plan_enable_optimizations": 0,  # one plan for each view, without any key or join: 6 ms for nothing
            **_WHOLE,
        }
        # views of tables that get nothing cost as much as any: a fifth of what a small insert costs the store
        self._store.insert_arrow("ingest" if sparse else "ingest_plain", rows, told)

    def landed(self, block: Block) -> Landed:
        """What has arrived of the block: its rows in facts, its ids, and its mark in every rollup. Of a block without
        rows nothing is missing."""
        if not block.months:
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
        months = [entry.month for entry in block.months]
        before = self._blocks_before(where, months)
        mark = mark_name(block.topic, block.epoch, block.partition)
        for table in _marked(sparse=block.sparse):
            found = self._marks_found(table, mark, months)
            for month in months:
                arrivals[table, month] = found.get(month, 0) - before[month][table in SPARSE]
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

    def write_repeats(self, blocks: Sequence[Block]) -> None:
        """Duplicates and conflicts of these blocks by position, one row each; idempotent by position."""
        repeats = [block.repeats for block in blocks if block.repeats is not None]
        if repeats:
            self._store.insert_arrow("repeats", pa.Table.from_batches(repeats))

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

    # -- rollups that a migration has added

    def unfilled(self) -> list[str]:
        """Rollups that lack blocks which others hold, beyond the one a partition that may be under way. Workers may
        run: what a table lacks after all others were read does not come any more."""
        most: dict[tuple[bool, str, int], int] = {}  # of sparse tables by themselves: fewer blocks mark them
        for table in MARKED:
            for place, number in self._all_marks(table).items():
                most[table in SPARSE, *place] = max(number, most.get((table in SPARSE, *place), 0))
        marks = {table: self._all_marks(table) for table in MARKED}
        return [
            table
            for table, found in marks.items()
            if any(
                number - found.get((name, month), 0) > 1
                for (sparse, name, month), number in most.items()
                if sparse is (table in SPARSE)
            )
        ]

    def fill(self, committed: Mapping[int, int]) -> list[tuple[str, int]]:
        """Fills rollups that were added after their events, month by month, from facts and corrections; the tables and
        months that were filled. Only while no worker runs.

        `committed`: the group's offsets. What lies beyond is not taken from facts: whoever takes the partition inserts
        that block again, and the new rollup, which knows no token of it, takes it then. A month is one insert and one
        part, so that a run that was killed goes on where it was. Blocks. Raises StoreError, StoreUnavailable, and
        ValueError when a month is there in part.
        """
        borders = self._borders(committed)
        marks = self._ledgers_marks(borders)
        filled = []
        for table in MARKED:
            expected = {place: numbers[table in SPARSE] for place, numbers in marks.items()}
            found = self._all_marks(table)
            for month in sorted({month for _, month in expected}):
                lacking = [
                    place for place, number in expected.items() if place[1] == month and found.get(place, 0) < number
                ]
                if not lacking:
                    continue
                if any(found.get(place) for place in expected if place[1] == month):
                    raise ValueError(
                        f"{table} holds {month} in part: {', '.join(name for name, _ in lacking)} are missing. Run "
                        "`tally audit`; if the table is new, drop it with its views and make it by its migration again"
                    )
                self._fill_month(table, month, borders)
                filled.append((table, month))
        return filled

    def _borders(self, committed: Mapping[int, int]) -> dict[tuple[int, int], int]:
        """Per epoch and partition, the offset up to which blocks are whole: the end of the ledger's last block where
        the group has counted it, else its start."""
        rows = self._store.query(
            """SELECT epoch, `partition`, max(`start`), argMax(`end`, `start`) FROM blocks FINAL
            WHERE topic = {topic:String} AND month = 0 GROUP BY epoch, `partition`""",
            {"topic": self._topic},
        ).rows
        newest = {p: max(e for e, other, *_ in rows if other == p) for _, p, *_ in rows}
        return {
            (epoch, partition): end if epoch != newest[partition] or committed.get(partition) == end else start
            for epoch, partition, start, end in rows
        }

    def _ledgers_marks(self, borders: Mapping[tuple[int, int], int]) -> dict[tuple[str, int], tuple[int, int]]:
        """Blocks before the borders by mark and month: all, and those that mark sparse tables."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for (epoch, partition), border in borders.items():
            rows = self._store.query(
                f"""SELECT month, count(), countIf(sparse = 1) FROM blocks FINAL
                WHERE topic = {{topic:String}} AND epoch = {{epoch:UInt32}} AND `partition` = {{partition:UInt32}}
                AND {MARKING} AND `start` < {{border:UInt64}} GROUP BY month""",  # noqa: S608 - a constant, and parameters
                {**self._where(epoch, partition), "border": border},
            ).rows
            mark = mark_name(self._topic, epoch, partition)
            found |= {(mark, month): (number, sparse) for month, number, sparse in rows}
        return found

    def _all_marks(self, table: str) -> dict[tuple[str, int], int]:
        name, when = MARKED[table]
        rows = self._store.query(
            f"""SELECT {name} AS mark, toYYYYMM({when}) AS month, sum(events) FROM {table}
            WHERE account = {{account:String}} AND startsWith({name}, {{topic:String}}) GROUP BY mark, month""",  # noqa: S608
            {"account": MARK_ACCOUNT, "topic": f"{self._topic}:"},
        ).rows
        return {(mark, month): number for mark, month, number in rows}

    def _fill_month(self, table: str, month: int, borders: Mapping[tuple[int, int], int]) -> None:
        counted = " OR ".join(
            f"(epoch = {epoch} AND `partition` = {partition} AND block_start < {border})"
            for (epoch, partition), border in borders.items()
        )
        facts = f"SELECT * FROM {self._database}.events WHERE toYYYYMM(timestamp) = {month} AND ({counted})"  # noqa: S608
        corrections = f"SELECT * FROM {self._database}.corrections WHERE toYYYYMM(timestamp) = {month}"  # noqa: S608
        columns, added = select_over(self._store, table, facts)
        _, taken = select_over(self._store, table, corrections, reads="corrections")
        self._store.command(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM ({added})"  # noqa: S608
            f" UNION ALL SELECT {columns} FROM ({taken})",
            None,
            {"insert_deduplicate": 0, "max_insert_block_size": 1 << 30, **_WHOLE},
        )

    # -- private

    def _where(self, epoch: int, partition: int) -> dict[str, Any]:
        return {"topic": self._topic, "epoch": epoch, "partition": partition}

    def _all_marked(self, where: Mapping[str, Any], months: Sequence[int], *, sparse: bool) -> bool:
        if not months:
            return True
        facts = self._store.query(
            """SELECT uniqExact(toYYYYMM(timestamp)) FROM events WHERE account = '' AND epoch = {epoch:UInt32}
            AND `partition` = {partition:UInt32} AND block_start = {start:UInt64}""",
            where,
        ).rows[0][0]
        ids = self._store.query(
            """SELECT count() FROM event_ids WHERE `partition` = {partition:UInt32} AND id_hash = 0
            AND epoch = {epoch:UInt32} AND `offset` = {start:UInt64}""",
            where,
        ).rows[0][0]
        if facts < len(months) or ids < len(months):
            return False
        name = mark_name(self._topic, where["epoch"], where["partition"])
        before = self._blocks_before(where, months)
        return all(
            found.get(month, 0) > before[month][table in SPARSE]
            for table in _marked(sparse=sparse)
            for found in [self._marks_found(table, name, months)]
            for month in months
        )

    def _refused(self, where: Mapping[str, Any], end: int) -> int:
        found: int = self._store.query(
            """SELECT uniqExact(`offset`, line) FROM rejects WHERE topic = {topic:String} AND epoch = {epoch:UInt32}
            AND `partition` = {partition:UInt32} AND `offset` >= {start:UInt64} AND `offset` < {end:UInt64}""",
            {**where, "end": end},
        ).rows[0][0]
        return found

    def _blocks_before(self, where: Mapping[str, Any], months: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Per month, how many blocks of the partition before the one at `start` have rows there, and how many of those
        mark sparse tables."""
        rows = self._store.query(
            f"""SELECT month, count(), countIf(sparse = 1) FROM blocks FINAL
            WHERE topic = {{topic:String}} AND epoch = {{epoch:UInt32}} AND `partition` = {{partition:UInt32}}
            AND {MARKING} AND month IN {{months:Array(UInt32)}} AND `start` < {{start:UInt64}}
            GROUP BY month""",  # noqa: S608 - a constant, and parameters
            {**where, "months": months},
        ).rows
        return dict.fromkeys(months, (0, 0)) | {month: (number, sparse) for month, number, sparse in rows}

    def _marks_found(self, table: str, mark: str, months: Sequence[int]) -> dict[int, int]:
        name, when = MARKED[table]
        rows = self._store.query(
            f"""SELECT toYYYYMM({when}) AS month, sum(events) FROM {table}
            WHERE account = {{account:String}} AND {name} = {{name:String}} AND month IN {{months:Array(UInt32)}}
            GROUP BY month""",  # noqa: S608 - names from the constant above, values are parameters
            {"account": MARK_ACCOUNT, "name": mark, "months": months},
        ).rows
        return {row[0]: row[1] for row in rows}

    def _insert_direct(self, table: str, month: int, block: Block) -> None:
        rows = pa.Table.from_batches([block.rows])
        if table == "events":
            months = pc.add(pc.multiply(pc.year(rows["timestamp"]), 100), pc.month(rows["timestamp"]))
            rows = rows.filter(pc.equal(months, month)).drop_columns(["content_hash"])
        else:
            rows = rows.select(["partition", "id_hash", "epoch", "offset", "line", "content_hash", "append_time"])
        self._store.insert_arrow(table, rows, _repair(block, table, month))

    def _insert_from_facts(self, table: str, month: int, block: Block) -> None:
        """Runs the rollup's own view over the block's facts of one month.

        The cells come here and go back: what an INSERT … SELECT is known by depends, besides its token, on how many
        chunks the SELECT gives, and so on the server's threads. Of two who repair a block, as a zombie and its
        successor do, the second would not be known as such.
        """
        source = (  # numbers, and a name that the settings have checked
            f"SELECT * FROM {self._database}.events WHERE epoch = {block.epoch} AND `partition` = {block.partition}"  # noqa: S608
            f" AND block_start = {block.start} AND toYYYYMM(timestamp) = {month}"
        )
        columns, select = select_over(self._store, table, source)
        types = self._store.query(
            """SELECT name, type FROM system.columns
            WHERE database = currentDatabase() AND table = {table:String}""",
            {"table": table},
        ).rows
        as_stored = ", ".join(f"CAST(`{name}` AS {kind}) AS `{name}`" for name, kind in types if f"`{name}`" in columns)
        cells = self._store.read(f"SELECT {as_stored} FROM ({select})", _CELLS)  # noqa: S608 - the view's own text
        self._store.insert_encoded(table, cells, _CELLS, _repair(block, table, month))


def _marked(*, sparse: bool) -> list[str]:
    """The rollups that a block marks."""
    return [table for table in MARKED if sparse or table not in SPARSE]


def _repair(block: Block, table: str, month: int) -> dict[str, Any]:
    """Settings of an insert of one month's missing rows, which two who repair the block must name alike."""
    return {"insert_deduplication_token": f"{block.token}:repair:{table}:{month}", **_WHOLE}


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
    identity = line.event.transaction_id if line.event else readable_transaction_id(line.raw)
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
        "transaction_id": identity or "",
        "bytes": line.raw,
        "append_time": _instant(line.append_ms),
        "errors.field": [e.field for e in line.errors],
        "errors.code": [e.code for e in line.errors],
        "errors.message": [e.message for e in line.errors],
        "headers.name": [name for name, _ in line.headers],
        "headers.value": [value for _, value in line.headers],
        "id_hash": (id_hash(line.account, identity) if identity else 0).to_bytes(16, "little"),
    }


def _entries(block: Block, stated_ms: int) -> list[dict[str, Any]]:
    """The block's rows of the ledger: of the whole, and of each month."""
    counts = block.counts
    head = {
        "sparse": int(block.sparse),
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
        "repeats_kept": 1,
        "rows": counts.accepted,
        "value_sum": unscaled(sum(scaled(m.value_sum) for m in block.months)),
        "id_hash_sum": sum(m.id_hash_sum for m in block.months) % (1 << 128),
    }
    months = [
        {"month": m.month, "rows": m.rows, "value_sum": m.value_sum, "id_hash_sum": m.id_hash_sum} for m in block.months
    ]
    return [{**head, **row} for row in (whole, *months)]


def _ledger(rows: Sequence[dict[str, Any]]) -> pa.Table:
    plain = [
        {
            **dict.fromkeys(
                ("events", "accepted", "duplicates", "conflicts", "rejected", "rerouted", "repeats_kept"), 0
            ),
            **row,
            "id_hash_sum": row["id_hash_sum"].to_bytes(16, "little"),
        }
        for row in rows
    ]
    return pa.Table.from_pylist(plain, BLOCKS_SCHEMA)


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
BLOCKS_SCHEMA = pa.schema(
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
        ("repeats_kept", pa.uint8()),
        ("rows", pa.uint64()),
        ("value_sum", pa.decimal256(76, 9)),
        ("id_hash_sum", pa.binary(16)),
        ("crc", pa.uint64()),
        ("catalog_version", pa.int64()),
        ("rules", pa.uint32()),
        ("sparse", pa.uint8()),
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
        ("errors.field", pa.list_(pa.string())),
        ("errors.code", pa.list_(pa.string())),
        ("errors.message", pa.list_(pa.string())),
        ("headers.name", pa.list_(pa.string())),
        ("headers.value", pa.list_(pa.binary())),
        ("id_hash", pa.binary(16)),
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
