"""The README's table of sizing, from the results of `make bench`. Pure.

Every row says whether it was measured on the machine of the run, or what it was calculated from. Calculated rows use
events per CPU-second, which other cores of the same kind give as well; a row whose figures were not measured is left
out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.adapters.rocks import BLOOM_BITS

MILLION: Final = 1_000_000
_LOADED: Final = 0.5  # of what a core can do: room for catching up, and the load at which latency is measured
_DAY_S: Final = 86_400


def sizing(document: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    rows = [*_measured(document), *_calculated(document)]
    if not rows:
        return "No run with the parts `growth` and `latency` is recorded yet."
    return "\n".join(["| | carries | from |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _measured(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    grown, waited = _rows(document, "growth"), _rows(document, "latency")
    figures, rows = document.get("figures", {}), []
    said = "measured"
    if "ids-0" in grown:
        rows.append(("one worker, one core, records of one event", _rate(grown["ids-0"]), said))
    hundred = next(
        (r for r in _good(document.get("rows", ())) if (r["name"], r["record_events"]) == ("worker", 100)), None
    )
    if hundred:
        rows.append(("the same, records of 100 events", _rate(hundred), said))
    if "ids-50m" in grown:
        found = grown["ids-50m"]
        rows.append((f"the same with {found['ids']:,} ids in its table", _rate(found), said))
        rows.append(("its memory then, at most", f"{found['rss_peak_mib']:,} MiB", said))
    if "partitions-1" in grown:
        rows.append(("one partition, all of a worker for it", _rate(grown["partitions-1"]), said))
    if "partitions-48" in grown:
        found = grown["partitions-48"]
        rows.append(("one worker with 48 partitions", f"{_rate(found)} in {found['rss_peak_mib']:,} MiB", said))
    if "workers-2" in grown:
        told = (
            f"{said}; the second worker shares its core with broker and engine, so this is no figure for two cores more"
        )
        rows.append(("two workers on the machine's two cores", _rate(grown["workers-2"]), told))
    if "dedup_bytes_per_id" in figures:
        rows.append(("an id in the worker's table, on disk", f"{figures['dedup_bytes_per_id']} bytes", said))
    if "half" in waited:
        waits = {kind: waited["half"][kind] for kind in ("single", "list") if kind in waited["half"]}
        told = ", ".join(f"{kind} p50 {one['p50_s']:.2f} s, p99 {one['p99_s']:.2f} s" for kind, one in waits.items())
        rows.append((f"from answer to countable at {waited['half']['rate_per_s']:,} events/s", told, said))
    return rows


def _calculated(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    first = _rows(document, "growth").get("ids-0")
    if first is None:
        return []
    costs = first["per_cpu_s"]
    rows = []
    if costs.get("engine"):
        told = (
            f"calculated: {_count(costs['engine'])} events per CPU-second of the engine, all rollups, at {_LOADED:.0%}"
        )
        rows.append(("one ClickHouse node of 16 cores", f"{_count(costs['engine'] * 16 * _LOADED)} events/s", told))
    parts = [
        f"{cores(MILLION, costs[process])} cores of {name}"
        for process, name in (
            ("competitor", "workers, one worker a core"),
            ("broker", "Kafka"),
            ("engine", "ClickHouse"),
        )
        if costs.get(process)
    ]
    if parts:
        told = (
            f"calculated from events per CPU-second of each, at {_LOADED:.0%}, without replicas of Kafka and ClickHouse"
        )
        rows.append(("1 million events/s, records of one event", ", ".join(parts), told))
    size = document.get("figures", {}).get("dedup_bytes_per_id")
    if size:
        ids = first["events_per_s"] * _LOADED * _DAY_S
        disk, filters = ids * size / (1 << 30), ids * BLOOM_BITS / 8 / (1 << 30)
        held = f"{_count(ids / MILLION)} million ids, {_count(disk)} GiB of disk, {_count(filters)} GiB of filters"
        rows.append(
            (
                f"each day of `TALLY_DEDUP_WINDOW_DAYS`, of a worker that counts {_count(ids / _DAY_S)} events/s",
                held,
                f"calculated from bytes an id and {BLOOM_BITS} bits of filter, every id new",
            )
        )
    return rows


def cores(events_per_s: float, per_cpu_s: float) -> int:
    """Whole cores for so many events a second, each loaded by half."""
    return math.ceil(events_per_s / (per_cpu_s * _LOADED))


def _rows(document: Mapping[str, Any], part: str) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in document.get(part, {}).get("rows", ()) if not row.get("note")}


def _good(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if "events_per_s" in row]


def _rate(row: Mapping[str, Any]) -> str:
    return f"{_count(row['events_per_s'])} events/s"


def _count(number: float) -> str:
    """Two digits that mean something: nobody sizes by the third."""
    digits = max(0, len(str(int(number))) - 2)
    return f"{round(number, -digits):,.0f}"
