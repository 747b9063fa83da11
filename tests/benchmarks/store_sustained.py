"""What the engine carries for minutes, when merges have to keep up, instead of in a burst.

``python tests/benchmarks/store_sustained.py [--seconds 300] [--parts 300] [--json]``. Blocks like the worker's are
inserted one after the other by one who never waits, into facts, ids and all rollups; the engine on one core, who
inserts on another. Each block is one of a few with other ids, at a later time. Each quarter of a minute: events a
second, the longest insert, and the most active parts that a month of a table has. `--parts`: from so many on the
engine lets inserts wait for merges (its `parts_to_delay_insert`, by default 1000), which shows sooner what it carries
for ever.
"""

import argparse
import binascii
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bench_events import ACCOUNT, EVENT_NAME, events
from bench_place import COMPETITOR_CORES
from bench_place import Place as Bench
from build_block import mapper_for
from rich.console import Console
from rich.table import Table

from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.block import LogRecord, Place
from pipeline.records import Records
from pipeline.stages.build import build_block
from pipeline.stages.columnar import warm_up
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import MARK_ACCOUNT, Block

_FAR_MS: Final = 4_000_000_000_000  # a deadline that never comes
_APPENDED_MS: Final = 1_795_300_000_000
_BLOCKS: Final = 6
_STEP_S: Final = 15.0
_LATER_US: Final = 300_000  # a block's events are so much later than the former one's, as when they come live
_ID_BYTES: Final = 18  # 36 characters
_TABLES: Final = "SELECT name FROM system.tables WHERE engine LIKE '%MergeTree' AND database = "
_PARTS: Final = (
    "SELECT table, max(parts) FROM (SELECT table, count() AS parts FROM system.parts WHERE active AND database = "
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--parts", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True, soft_wrap=True)
    warm_up()
    rows = []
    with tempfile.TemporaryDirectory(prefix="sustained-") as folder, Bench(Path(folder)) as bench:
        settings = bench.fresh("sustained", "sustained")
        bench.tally(settings, "init")
        os.sched_setaffinity(0, COMPETITOR_CORES)
        blocks = _blocks(settings.block_rows_max)
        store = BlockStore(Store(settings), topic="sustained", database=settings.database)
        if options.parts is not None:
            for (name,) in bench.query(f"{_TABLES}'{settings.database}'"):
                bench.command(
                    f"ALTER TABLE {settings.database}.{name} MODIFY SETTING parts_to_delay_insert = {options.parts}"
                )
        parts = f"{_PARTS}'{settings.database}' GROUP BY table, partition_id) GROUP BY table ORDER BY 2 DESC LIMIT 1"
        for row in _inserted(store, blocks, options.seconds):
            [(fullest, most)] = bench.query(parts)
            rows.append({**row, "parts, most": most, "in": fullest})
            console.print(f"{row}, {most} parts in {fullest}", markup=False, highlight=False)
    if options.json:
        print(json.dumps(rows))
        return
    table = Table(title="inserts for minutes, engine on one core")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console().print(table)


def _inserted(store: BlockStore, blocks: Sequence[Block], seconds: float) -> Iterator[dict[str, Any]]:
    """Inserts for so long, a row for each step. Blocks."""
    began = step = time.monotonic()
    done, longest_s = 0, 0.0
    for number in itertools.count():
        block = _again(blocks[number % len(blocks)], number)
        before = time.monotonic()
        store.insert(block, _FAR_MS)
        now = time.monotonic()
        longest_s = max(longest_s, now - before)
        done += block.counts.accepted
        if now - step >= _STEP_S:
            yield {
                "until, s": round(now - began),
                "events/s": round(done / (now - step)),
                "longest insert, s": round(longest_s, 2),
            }
            step, done, longest_s = time.monotonic(), 0, 0.0
        if now - began >= seconds:
            return


def _blocks(rows_max: int) -> list[Block]:
    mapper = mapper_for(ACCOUNT, EVENT_NAME, "tokens")
    sent = [event.line for event in events(_BLOCKS * rows_max, duplicates=0.0)]
    return [_block(partition, sent[partition::_BLOCKS], mapper) for partition in range(_BLOCKS)]


def _block(partition: int, lines: Sequence[bytes], mapper: Mapper) -> Block:
    headers = (("account", ACCOUNT.encode()),)
    return build_block(
        # one partition for all, so that none is sent on
        Place("sustained", 0, 0, 1, ACCOUNT, 86_400_000_000 * 365),
        Records.of([LogRecord(offset, _APPENDED_MS, line, headers) for offset, line in enumerate(lines)]),
        start=0,
        end=len(lines),
        mapper=mapper,
        catalog_version=mapper.version,
        lookup=lambda _: {},
    )


def _again(block: Block, number: int) -> Block:
    """The block with other ids, at a later time and place; its marks keep theirs."""
    rows = block.rows
    assert rows is not None
    count = rows.num_rows
    ends = np.arange(0, (count + 1) * 2 * _ID_BYTES, 2 * _ID_BYTES, dtype=np.int32)
    names = pa.StringArray.from_buffers(
        count, pa.py_buffer(ends), pa.py_buffer(binascii.hexlify(os.urandom(count * _ID_BYTES)))
    )
    hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, pa.py_buffer(os.urandom(count * 16))])
    mark = pc.equal(rows["account"], MARK_ACCOUNT)
    later = pa.scalar(number * _LATER_US, pa.duration("us"))
    anew = {
        "transaction_id": names,
        "id_hash": pc.if_else(mark, rows["id_hash"], hashes),
        "timestamp": pc.if_else(mark, rows["timestamp"], pc.add(rows["timestamp"], later)),
        "offset": pc.add(rows["offset"], pa.scalar(number * count, pa.uint64())),
        "block_start": pc.add(rows["block_start"], pa.scalar(number * count, pa.uint64())),
    }
    columns = [anew.get(name, rows[name]) for name in rows.schema.names]
    moved = pa.RecordBatch.from_arrays(columns, schema=rows.schema)
    return msgspec.structs.replace(block, start=number * count, end=(number + 1) * count, rows=moved)


if __name__ == "__main__":
    main()
