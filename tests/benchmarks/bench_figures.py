"""What the runs of `make bench` come to: medians, ratios, targets met or missed, and the table. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench_queries import query_table

CEILINGS: Final = ("read", "decode", "msgspec", "insert")
TITLES: Final = {
    "worker": "**this worker**: dedup, mapping, facts and all rollups",
    "faust": "textbook Faust agent",
    "quix": "Quix Streams",
    "flink": "Apache Flink SQL, sink to nowhere",
    "plain": "confluent-kafka and a Python set",
    "read": "ceiling: aiokafka read",
    "decode": "ceiling: read + the worker's decoding",
    "msgspec": "ceiling: read + msgspec",
    "insert": "ceiling: insert of ready blocks",
    "api": "**this API**, 1 event a request",
    "fastapi": "FastAPI on uvicorn, 1 event a request",
    "api-500": "**this API**, lists of 500",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio or figure that issue and README promise: at least `least`, or at most where `most` is told."""

    key: str
    text: str
    least: float = 0.0
    most: float | None = None

    def met(self, measured: float) -> bool:
        """Whether that is enough."""
        return measured <= self.most if self.most is not None else measured >= self.least


TARGETS: Final = (
    Target("worker_vs_quix", "worker against Quix Streams, records of 1", 10),
    Target("worker_vs_flink", "worker against Flink SQL, per CPU-second of the process", 2),
    Target("worker_vs_flink_wall", "worker against Flink SQL, by the clock", 1.5),
    Target("worker_vs_textbook_faust", "worker against the textbook Faust agent", 80),
    Target("worker_vs_read_decode", "worker against aiokafka read + decode", 0.6),
    Target("records100_vs_single", "worker, records of 100 against records of 1", 1.5),
    Target("api_single_vs_fastapi", "API against the FastAPI endpoint, 1 event a request", 3),
    Target("api_p99_vs_fastapi", "its p99 against the endpoint's (1: no worse; larger is better)", 1),
    Target("api_batch_events_per_s", "API, lists of 500, events a second", 100_000),
    Target("ids50m_vs_empty", "worker with 50 million ids in its table against an empty one", 0.8),
    Target("countable_p99_s", "from the HTTP answer to countable at half load, p99, seconds", most=1),
    Target("dedup_bytes_per_id", "the table on disk, bytes an id, compacted", most=32),
    Target("worker_rss_bytes_50m", "the worker's memory with 50 million ids, at most, bytes", most=1 << 30),
    Target("usage_query_vs_raw", "account-wide usage of a month against facts, the slowest question", 20),
    Target("usage_customer_vs_raw", "one customer's usage of a month against facts, the slowest question", 0.91),
    Target("usage_customer_20ms_vs_p99", "20 ms against the p99 of those answers (larger is better)", 1),
)


def medians(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each competitor and size of records, in the order of the runs, with the median of each figure.

    A row that has no figures keeps its note; `wrong` is the first thing that any run found wrong.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["name"], run["record_events"]].append(run)
    rows = []
    for (name, record_events), some in groups.items():
        good = [run for run in some if "events_per_s" in run]
        row: dict[str, Any] = {"name": name, "record_events": record_events, "runs": len(good)}
        row["note"] = next((run["note"] for run in some if run.get("note")), "")
        row["checked"] = next((run["checked"] for run in some if run.get("checked") not in ("", "right", None)), "")
        if good:
            row["checked"] = row["checked"] or good[0].get("checked", "")
            row["events"] = good[0]["events"]
            for figure in ("events_per_s", "seconds", "rss_mib", "p99_ms"):
                if figure in good[0]:
                    row[figure] = statistics.median(run[figure] for run in good)
            row["spread"] = (min(r["events_per_s"] for r in good), max(r["events_per_s"] for r in good))
            row["per_cpu_s"] = {
                process: statistics.median(run["per_cpu_s"][process] for run in good)
                for process in good[0].get("per_cpu_s", {})
            }
        rows.append(row)
    return rows


def ratios(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures by their names in bench.json, as far as the rows have what they are made of."""
    by = {(row["name"], row["record_events"]): row for row in rows if "events_per_s" in row}

    def rate(name: str, record_events: int = 1) -> float | None:
        row = by.get((name, record_events))
        return None if row is None else row["events_per_s"]

    def per_cpu_s(name: str) -> float | None:
        row = by.get((name, 1))
        return None if row is None else row["per_cpu_s"]["competitor"]

    decoded = rate("decode"), rate("msgspec")
    pairs = {
        "worker_vs_quix": (rate("worker"), rate("quix")),
        "worker_vs_flink": (per_cpu_s("worker"), per_cpu_s("flink")),
        "worker_vs_flink_wall": (rate("worker"), rate("flink")),
        "worker_vs_textbook_faust": (rate("worker"), rate("faust")),
        "worker_vs_plain_consumer": (rate("worker"), rate("plain")),
        "worker_vs_read_decode": (rate("worker"), max((one for one in decoded if one), default=None)),
        "worker_vs_insert": (rate("worker"), rate("insert")),
        "records100_vs_single": (rate("worker", 100), rate("worker")),
        "api_single_vs_fastapi": (rate("api"), rate("fastapi")),
    }
    found = {name: round(one / other, 3) for name, (one, other) in pairs.items() if one and other}
    if ("api", 1) in by and ("fastapi", 1) in by:
        found["api_p99_vs_fastapi"] = round(by["fastapi", 1]["p99_ms"] / by["api", 1]["p99_ms"], 3)
    batch = rate("api-500", 500)
    return found, {} if batch is None else {"api_batch_events_per_s": round(batch)}


def verdicts(found: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each target with what was measured, and whether that is enough; `measured` None: not measured."""
    judged = []
    for target in TARGETS:
        measured = found.get(target.key)
        verdict = "not measured" if measured is None else "met" if target.met(measured) else "missed"
        bound = {"least": target.least} if target.most is None else {"most": target.most}
        judged.append({"key": target.key, "text": target.text, **bound, "measured": measured, "verdict": verdict})
    return judged


def table(document: Mapping[str, Any]) -> str:
    """All of it in Markdown: machine, rows by size of records, targets."""
    machine, rows = document["machine"], document["rows"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}; commit {machine['commit']}, {document['date']}; medians of {document['runs']} "
        f"{'run' if document['runs'] == 1 else 'runs'}"
        f"{', few events: rates of a start, not of a worker' if document['quick'] else ''}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in machine['packages'].items())}.",
    ]
    for size in sorted({row["record_events"] for row in rows if row["name"] not in ("api", "fastapi", "api-500")}):
        some = [row for row in rows if row["record_events"] == size and not row["name"].startswith(("api", "fastapi"))]
        lines += ["", f"Records of {size} event{'' if size == 1 else 's'}:", "", *_rows(some)]
    doors = [row for row in rows if row["name"].startswith(("api", "fastapi"))]
    if doors:
        lines += ["", "Doors, acknowledged by the broker before the answer:", "", *_doors(doors)]
    for name, part in (("growth", growth_table), ("latency", latency_table), ("queries", query_table)):
        if name in document:
            lines += ["", *_of_commit(document[name]), *part(document[name])]
    lines += ["", "| target | wanted | measured | |", "|---|--:|--:|---|"]
    for one in document["targets"]:
        measured = "-" if one["measured"] is None else _short(one["measured"])
        wanted = f"≤ {_short(one['most'])}" if "most" in one else f"≥ {_short(one['least'])}"
        lines.append(f"| {one['text']} | {wanted} | {measured} | {one['verdict']} |")
    return "\n".join(lines)


def _of_commit(part: Mapping[str, Any]) -> list[str]:
    """Told where a part was measured before the rest."""
    return [f"Measured at commit {part['commit']}:", ""] if "commit" in part else []


def growth_table(growth: Mapping[str, Any]) -> list[str]:
    """What the worker does as things grow, each row one change against the first one, in Markdown."""
    tables = [
        f"{one['ids']:,} ids loaded directly into tables of schema `{one['schema']}`, "
        f"{one['bytes_per_id_compacted']} bytes an id on disk, compacted"
        for one in growth["tables"]
    ]
    first = next((row for row in growth["rows"] if row["name"] == "ids-0" and "events_per_s" in row), None)
    lines = [
        f"One change against the first row each{''.join(f'; {told}' for told in tables)}.",
        "",
        "| | events/s | of the first | per CPU-s: worker | broker | engine | MiB, most | result |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in growth["rows"]:
        if "events_per_s" not in row:
            lines.append(f"| {row['title']} | | | | | | | {_first_line(row['note'])} |")
            continue
        share = f"{row['events_per_s'] / first['events_per_s']:.2f}" if first and row is not first else ""
        cpu = [_count(row["per_cpu_s"].get(process)) for process in ("competitor", "broker", "engine")]
        cells = [row["title"], _count(row["events_per_s"]), share, *cpu, str(row["rss_peak_mib"])]
        told = "; ".join(text for text in (row["checked"], _first_line(row["note"])) if text)
        lines.append(f"| {' | '.join(cells)} | {told} |")
    return lines


def latency_table(latency: Mapping[str, Any]) -> list[str]:
    """Seconds from the HTTP answer to being countable, by load, in Markdown."""
    lines = [
        "From the HTTP answer to being countable, in seconds; full load is what was counted of events that came as fast"
        " as a backlog is counted; `left`: records not counted yet when the load ended:",
        "",
        "| load | events/s asked | sent | single: p50 | p99 | list of 100: p50 | p99 | left | worker, MiB | result |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in latency["rows"]:
        if "note" in row:
            lines.append(f"| {row['name']} | | | | | | | | | {_first_line(row['note'])} |")
            continue
        waits = [
            f"{row[kind][p]:.2f}" if kind in row else "-" for kind in ("single", "list") for p in ("p50_s", "p99_s")
        ]
        cells = [row["name"], f"{row['rate_per_s']:,}", f"{row.get('sent_per_s', 0):,}", *waits, f"{row['left']:,}"]
        lines.append(f"| {' | '.join(cells)} | {row['rss_mib']} | {row['checked']} |")
    return lines


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    worker = next((row for row in rows if row["name"] == "worker" and "events_per_s" in row), None)
    lines = [
        "| | events | events/s | worker is, times | per CPU-s: itself | broker | engine | MiB | result |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        title = TITLES.get(row["name"], row["name"])
        if "events_per_s" not in row:
            lines.append(f"| {title} | | | | | | | | {_first_line(row['note'])} |")
            continue
        times = _short(worker["events_per_s"] / row["events_per_s"]) if worker and row is not worker else ""
        cpu = [_count(row["per_cpu_s"].get(process)) for process in ("competitor", "broker", "engine")]
        cells = [f"{row['events']:,}", _count(row["events_per_s"]), times, *cpu, f"{row['rss_mib']:.0f}"]
        told = "; ".join(text for text in (row["checked"], _first_line(row["note"])) if text)
        lines.append(f"| {title} | {' | '.join(cells)} | {told} |")
    return lines


def _doors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| | events/s | p99, ms | per CPU-s: itself | result |", "|---|--:|--:|--:|---|"]
    for row in rows:
        title = TITLES.get(row["name"], row["name"])
        if "events_per_s" not in row:
            lines.append(f"| {title} | | | | {_first_line(row['note'])} |")
            continue
        itself = _count(row["per_cpu_s"].get("competitor"))
        told = "; ".join(text for text in (row["checked"], _first_line(row["note"])) if text)
        lines.append(f"| {title} | {_count(row['events_per_s'])} | {row['p99_ms']:.1f} | {itself} | {told} |")
    return lines


def _first_line(text: str) -> str:
    """What fits into a cell; the log has the rest."""
    return text.partition("\n")[0].replace("|", "/")


def _count(number: float | None) -> str:
    """Three digits that mean something; a process that did next to nothing has no rate."""
    if number is None or number <= 0 or number > 1e8:
        return "-"
    digits = max(0, len(str(int(number))) - 3)
    return f"{round(number, -digits):,.0f}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
