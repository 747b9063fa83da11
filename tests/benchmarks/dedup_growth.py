"""What the dedup table costs as it grows: bytes per id on disk, memory, rates, and the time to restore.

    python tests/benchmarks/dedup_growth.py [--ids 50000000] [--restore 10000000] [--bulk] [--json]

Uses the production table class under production options. Ids are random 128-bit hashes with sightings as a running
worker writes them. The table is filled in key order through the class's own batches, with --bulk by files made with
its options (quicker, and compacted from the start). `rate_of_empty` compares looking up and writing new ids with an
empty table, by the clock and by processor time.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from filled_tables import CHUNK, fill_by_files, folder_bytes, keys_in_order, sightings
from rich.console import Console
from rich.progress import track

from pipeline.adapters.id_filter import IdFilter
from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.changelog import pack_changes, unpack_change
from pipeline.ports import Border, Marker

CACHE_BYTES = 256 << 20  # TALLY_CACHE_BYTES
BLOCK = 60_000
_random = random.Random(1)
_console = Console(stderr=True)  # standard output is for the figures


def fill(table: SightingTable, ids: int, *, quiet: bool) -> list[bytes]:
    """Puts that many ids; some of their keys. Positions are spread over the keys as hashes spread them."""
    sample: list[bytes] = []
    spread = np.random.default_rng(3).permutation(-(-ids // CHUNK))
    chunks = track(keys_in_order(ids), "filling", total=len(spread), disable=quiet, console=_console)
    for (_, keys), place in zip(chunks, spread.tolist(), strict=True):
        values = sightings(len(keys), place * CHUNK, mixed=True)
        table.put(dict(zip(keys, values, strict=True)))
        sample += keys[:: max(1, len(keys) // 2_000)]
    return sample


def rates(table: SightingTable, known: list[bytes], *, blocks: int = 8) -> dict[str, float]:
    """Whole blocks as a session handles them: look-ups of new ids, writes of them, look-ups of the same ids again, as
    clients retry, and of ids from anywhere in the table. Microseconds per id, by the clock and by the thread's
    processor time, which a busy machine changes less."""
    rng = np.random.default_rng(time.time_ns() % (1 << 32))
    clock: Counter[str] = Counter()
    cpu: Counter[str] = Counter()
    for number in range(blocks):
        joined = rng.bytes(16 * BLOCK)
        keys = [joined[i : i + 16] for i in range(0, len(joined), 16)]
        entries = dict(zip(keys, sightings(BLOCK, number * BLOCK), strict=True))
        steps: dict[str, tuple[Callable[[], object], int]] = {
            "new": (partial(table.get_many, keys), BLOCK),
            "write": (partial(table.put, entries), BLOCK),
            "again": (partial(table.get_many, keys), BLOCK),
        }
        if known:
            steps["old"] = (partial(table.get_many, _random.sample(known, 3_000)), 3_000)
        for name, (work, ids) in steps.items():
            began, began_cpu = time.perf_counter(), time.thread_time()
            work()
            clock[name] += (time.perf_counter() - began) / ids / blocks * 1e6
            cpu[name] += (time.thread_time() - began_cpu) / ids / blocks * 1e6
    return {
        **{f"{name}_us": round(found, 2) for name, found in clock.items()},
        **{f"{name}_cpu_us": round(found, 2) for name, found in cpu.items()},
    }


def measure(folder: Path, ids: int, *, quiet: bool, bulk: bool = False) -> dict[str, Any]:
    """A table of that many ids."""
    tables = Tables(folder, CACHE_BYTES)
    table = tables.open("t-0")
    known = fill_by_files(tables, table, folder, ids) if bulk else fill(table, ids, quiet=quiet)
    table.close()
    found: dict[str, Any] = {"ids": ids}
    table = tables.open("t-0")
    if ids:
        if not bulk:
            found["bytes_per_id_as_written"] = round(folder_bytes(folder) / ids, 2)
            table.compact()
        found["bytes_per_id_compacted"] = round(folder_bytes(folder) / ids, 2)
    rates(table, known, blocks=2)  # warms the cache as a running worker has it
    found |= rates(table, known)
    found["rss_mib"] = psutil.Process().memory_info().rss >> 20
    table.close()
    return found


def restore(folder: Path, ids: int, *, quiet: bool) -> dict[str, Any]:
    """The production way from packed changelog records to a table, without the broker."""
    records = []
    rng = np.random.default_rng(5)
    for first in track(range(0, ids, BLOCK), "packing", disable=quiet, console=_console):
        count = min(BLOCK, ids - first)
        joined = rng.bytes(16 * count)
        entries = {joined[16 * i : 16 * i + 16]: value for i, value in enumerate(sightings(count, first))}
        records += pack_changes(0, first, first + count, entries)
    table = Tables(folder, CACHE_BYTES).open("t-0")
    started, started_cpu = time.perf_counter(), time.thread_time()
    entries_read = 0
    for offset, record in track(list(enumerate(records)), "restoring", disable=quiet, console=_console):
        change = unpack_change(record)
        table.restore(change.entries, Marker(offset + 1, change.epoch, change.end))
        entries_read += len(change.entries)
    seconds = time.perf_counter() - started
    table.close()
    cpu_s = time.thread_time() - started_cpu
    return {"ids": entries_read, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_s, 1)}


def expired(folder: Path, ids: int, *, quiet: bool) -> dict[str, Any]:
    """The filter of expired ids."""
    filter_ = IdFilter(folder / "filter")
    rng = np.random.default_rng(9)
    before = psutil.Process().memory_info().rss
    for _ in track(range(ids // CHUNK), "expiring", disable=quiet, console=_console):
        filter_.add(rng.bytes(16 * CHUNK))
    started = time.perf_counter()
    filter_.save(Border(0, ids))
    saving = time.perf_counter() - started
    joined = rng.bytes(16 * BLOCK)
    keys = [joined[i : i + 16] for i in range(0, len(joined), 16)]
    started = time.perf_counter()
    hits = sum(len(filter_.among(keys)) for _ in range(10))
    looking = time.perf_counter() - started
    return {
        "ids": ids,
        "bytes_per_id": round(folder_bytes(folder) / max(ids, 1), 2),
        "rss_mib": (psutil.Process().memory_info().rss - before) >> 20,
        "false_hits": hits / (10 * BLOCK),
        "lookups_per_s": round(10 * BLOCK / looking),
        "save_s": round(saving, 2),
    }


_PARTS = {"measure": measure, "bulk": partial(measure, bulk=True), "restore": restore, "expired": expired}


def in_a_process(part: str, ids: int, *, quiet: bool) -> dict[str, Any]:
    """One part in a process and a folder of its own, so that memory is its alone."""
    folder = Path(tempfile.mkdtemp(prefix="dedup-growth-"))
    try:
        command = [sys.executable, __file__, "--part", part, str(ids), str(folder), *(["--json"] if quiet else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """The whole measurement, or one part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=50_000_000, help="ids of the largest table")
    parser.add_argument("--restore", type=int, default=10_000_000, help="ids to restore")
    parser.add_argument("--bulk", action="store_true", help="fill by ready-made files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part:
        name, ids, folder = told.part
        print(json.dumps(_PARTS[name](Path(folder), int(ids), quiet=told.json)))
        return
    report: dict[str, Any] = {"tables": []}
    for ids in sorted({0, told.ids // 5, told.ids}):
        report["tables"].append(in_a_process("bulk" if told.bulk else "measure", ids, quiet=told.json))
        if not told.json:
            print(report["tables"][-1], flush=True)
    empty, largest = report["tables"][0], report["tables"][-1]
    for kind in ("_us", "_cpu_us"):
        cost = [table[f"new{kind}"] + table[f"write{kind}"] for table in (empty, largest)]
        report[f"rate_of_empty_by{kind}"] = round(cost[0] / cost[1], 2)
    for part, ids in (("restore", told.restore), ("expired", told.ids)):
        report[part] = in_a_process(part, ids, quiet=told.json)
        if not told.json:
            print(part, report[part], flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
