"""Questions for usage, out of rollups and out of the same facts: the part `queries` of `make bench`.

The product's answers are those of `consumers.usage_reader`, with which `GET /v1/usage` and `tally usage` answer. The
others are plain SQL over `events`, as one would write it who has no rollups. Both run in turn over one connection,
warm, with as many threads; both must give the same numbers. Ratios compare statement with statement; p99 is of the
product's whole answers, with how far the workers are, asked one after the other and not behind scans of facts, which
leave no cache as it was. An account-wide scan takes seconds: it runs as often as fits into `_RAW_S`, at least three
times, the rest twenty times, and one customer's questions two hundred times (twenty of few facts).

Two projections of facts are opt-in (sql/optional); they are switched on here, their storage is listed. October is asked
about as a month that is over: the store merges facts of a month, and cells of a year, a day after the last of them,
here a second after it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from query_facts import ACCOUNT, FEATURES, load

from consumers.usage import UsageQuery
from consumers.usage_plan import QUARTERS, SHAPES
from consumers.usage_reader import UsageReader
from consumers.usage_sql import build
from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.rollup_view import MARKED
from pipeline.migrate import migrate, sql_dir
from pipeline.ports import Progress
from pipeline.settings import Settings

FACTS: Final = 100_000_000
FACTS_QUICK: Final = 1_000_000
ZONES: Final = ("UTC", "Europe/Berlin")  # whose clock is set back in the month
MONTH: Final = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
OPTIONAL: Final = [Path("optional") / f"{name}.sql" for name in (SHAPES, QUARTERS)]
_FEATURE: Final = FEATURES[1]
_RUNS: Final = 20
_RUNS_OF_ONE: Final = 200
_RAW_S: Final = 20.0
_RAW_RUNS_MIN: Final = 3
_MERGES_S: Final = 300.0
_RESTED_S: Final = 600.0
_RESTING: Final = ("events", *MARKED)
_RESTED: Final = "ALTER TABLE {} MODIFY SETTING min_age_to_force_merge_seconds = 1"
_IN_PARTS: Final = """SELECT count() FROM
(
    SELECT 1 FROM system.parts WHERE database = {database:String} AND table IN {tables:Array(String)} AND active
    GROUP BY table, partition HAVING count() > 1
)"""
_STORAGE: Final = """SELECT table, sum(rows) AS held, sum(bytes_on_disk) AS bytes FROM
(
    SELECT table, rows, bytes_on_disk FROM system.parts WHERE database = {database:String} AND active
    UNION ALL
    SELECT concat('projection ', name), rows, bytes_on_disk FROM system.projection_parts
    WHERE database = {database:String} AND active
)
WHERE table != 'schema_versions' GROUP BY table HAVING held > 0 ORDER BY bytes DESC"""

_RAW: Final = """SELECT
    {columns}count() AS events,
    sum(`meters.quantity`[indexOf(`meters.feature`, {{feature:String}})]) AS total
FROM events
WHERE account = {{account:String}}{where} AND timestamp >= {{start:DateTime64(6, 'UTC')}}
    AND timestamp < {{end:DateTime64(6, 'UTC')}} AND kind = 'delta' AND has(`meters.feature`, {{feature:String}})
{rest}"""
_OF_MODEL: Final = " AND `dims.text`[indexOf(`dims.name`, 'model')] = 'draft'"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: of the product, and of facts as the parts of `_RAW`. `wide`: of all customers."""

    title: str
    wide: bool
    asked: Mapping[str, Any]
    columns: str = ""
    where: str = ""
    rest: str = ""


def questions(zone: str, largest: str, median: str) -> list[Question]:
    """All of them in one zone."""
    day = f"toDate(timestamp, '{zone}') AS day, "
    by_day = "GROUP BY day ORDER BY day"
    of_one = " AND client_id = {customer:String}"
    wide = [
        Question(
            "all customers of a feature",
            True,
            {"group_by": ("customer",)},
            "client_id, ",
            rest="GROUP BY client_id ORDER BY client_id",
        ),
        Question("a feature by day", True, {"granularity": "day"}, day, rest=by_day),
        Question(
            "top 100 customers by a dimension",
            True,
            {"group_by": ("customer",), "where": {"model": "draft"}, "top": 100},
            "client_id, ",
            _OF_MODEL,
            "GROUP BY client_id ORDER BY total DESC, client_id LIMIT 100",
        ),
    ]
    one = []
    for name, customer in (("largest", largest), ("median", median)):
        asked = {"customer": customer}
        one.append(Question(f"{name} customer by day", False, {**asked, "granularity": "day"}, day, of_one, by_day))
        one.append(Question(f"{name} customer's balance", False, asked, where=of_one))
    return [*wide, *one]


def measure(
    store: Store,
    settings: Settings,
    facts: int,
    *,
    threads: int,
    engine_cpu_s: Callable[[], float],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Loads the facts into the database of `settings` and asks everything. The part `queries` of the results: rows,
    storage per event, load and merges, ratios and figures. `engine_cpu_s`: processor seconds of the engine so far.
    Blocks for minutes. Raises StoreError, StoreUnavailable, TimeoutError."""
    migrate(settings)
    for file in OPTIONAL:
        for statement in (sql_dir() / file).read_text().split(";\n"):
            if statement.strip():
                store.command(statement)

    def took(work: Callable[[], None]) -> dict[str, float]:
        began, cpu_s = time.perf_counter(), engine_cpu_s()
        work()
        return {"seconds": round(time.perf_counter() - began, 1), "engine_us": (engine_cpu_s() - cpu_s) / facts * 1e6}

    loaded = took(lambda: load(store, settings.database, facts, lambda number: say(f"{number:,} facts")))
    _report(store, settings)
    say("merges")
    _until_merged(store)
    merged = took(lambda: _rest(store, settings))
    sizes = store.query(
        "SELECT client_id FROM events WHERE account = {account:String} GROUP BY client_id ORDER BY count() DESC",
        {"account": ACCOUNT},
    ).rows
    largest, median = sizes[0][0], sizes[len(sizes) // 2][0]
    rows = []
    for zone in ZONES:
        for question in questions(zone, largest, median):
            say(f"{question.title}, {zone}")
            runs = _RUNS if question.wide or facts <= FACTS_QUICK else _RUNS_OF_ONE
            rows.append(_compared(store, settings, query_of(question, zone), question, threads=threads, runs=runs))
    storage = [
        {"table": table, "rows": held, "bytes_per_event": round(size / facts, 3)}
        for table, held, size in store.query(_STORAGE, {"database": settings.database}).rows
    ]
    told = {"facts": facts, "threads": threads, "load": loaded, "merge": merged, "rows": rows, "storage": storage}
    return told | outcome(rows)


def outcome(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios and figures by their names in bench.json. Pure."""
    wide = [row["ratio"] for row in rows if row["wide"]]
    one = [row for row in rows if not row["wide"]]
    worst = max(row["p99_ms"] for row in one)
    return {
        "ratios": {
            "usage_query_vs_raw": min(wide),
            "usage_customer_vs_raw": min(row["ratio"] for row in one),
            "usage_customer_20ms_vs_p99": round(20 / worst, 3),
        },
        "figures": {"usage_customer_p99_ms": worst},
    }


def query_table(queries: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: each question, then storage by table."""
    lines = [
        f"Questions over {queries['facts']:,} facts, a month, {queries['threads']} threads, warm; ms, medians:",
        "",
        "| | zone | facts | product | times | whole answer p99 | runs (facts) | read from | numbers |",
        "|---|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for row in queries["rows"]:
        figures = [f"{row['raw_ms']:,.1f}", f"{row['ms']:,.1f}", f"{row['ratio']:.3g}", f"{row['p99_ms']:,.1f}"]
        told = f"{row['runs']} ({row['raw_runs']}) | {', '.join(row['read_from'])} | {row['checked']}"
        lines.append(f"| {row['title']} | {row['zone']} | {' | '.join(figures)} | {told} |")
    lines += ["", "| storage | rows | bytes an event |", "|---|--:|--:|"]
    for one in queries["storage"]:
        lines.append(f"| {one['table']} | {one['rows']:,} | {one['bytes_per_event']:.2f} |")
    load, merge = (
        f"{queries[step]['seconds']:.0f} s, {queries[step]['engine_us']:.1f} µs" for step in ("load", "merge")
    )
    lines += ["", f"Loaded in {load} of the engine's processors an event; merged into one part in {merge}."]
    return lines


def query_of(question: Question, zone: str) -> UsageQuery:
    """The question to the product, about the local month."""
    start, end = (at.replace(tzinfo=ZoneInfo(zone)) for at in MONTH)
    return UsageQuery(account=ACCOUNT, feature=_FEATURE, start=start, end=end, zone=zone, **question.asked)


def _compared(
    store: Store, settings: Settings, query: UsageQuery, question: Question, *, threads: int, runs: int
) -> dict[str, Any]:
    """One question asked of both in turn: a row of the results."""
    made = build(query, "sums", [_FEATURE], projections=[SHAPES, QUARTERS], corrected=False)  # as the reader knows
    raw = _RAW.format(columns=question.columns, where=question.where, rest=question.rest)
    bound = {"account": ACCOUNT, "feature": _FEATURE, "customer": query.customer or ""}
    bound |= {name: f"{at:%Y-%m-%d %H:%M:%S}" for name, at in zip(("start", "end"), query.period, strict=True)}
    alike = {"max_threads": threads}
    reader = UsageReader(store, topic=settings.topic_events, partitions=settings.partitions)

    def asked() -> list[tuple[Any, ...]]:
        return made.rows(store.query(made.sql, made.parameters, {**alike, **made.settings}).rows)

    ours = [row for row in asked() if any(row[-2:])]  # a row of nothing: all of the customer lies in what is subtracted
    others = store.query(raw, bound, alike).rows
    answer = reader.usage(query, {_FEATURE: "sum"})
    told = [(row.events, row.value) for row in answer.rows]
    same = ours == others and told == [row[-2:] for row in ours]

    times: dict[str, list[float]] = {"ours": [], "raw": [], "answer": []}
    for _ in range(runs):
        times["ours"].append(_timed(asked))
        if len(times["raw"]) < _RAW_RUNS_MIN or sum(times["raw"]) < _RAW_S:
            times["raw"].append(_timed(lambda: store.query(raw, bound, alike)))
    for _ in range(runs):
        times["answer"].append(_timed(lambda: reader.usage(query, {_FEATURE: "sum"})))
    ms, raw_ms = (statistics.median(times[name]) * 1e3 for name in ("ours", "raw"))
    return {
        "title": question.title,
        "zone": query.zone,
        "wide": question.wide,
        "rows": len(ours),
        "ms": round(ms, 3),
        "raw_ms": round(raw_ms, 3),
        "ratio": round(raw_ms / ms, 3),
        "p99_ms": round(sorted(times["answer"])[-(-runs * 99 // 100) - 1] * 1e3, 3),
        "runs": runs,
        "raw_runs": len(times["raw"]),
        "read_from": list(answer.read_from),
        "checked": "same" if same else "DIFFERENT",
    }


def _timed(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _report(store: Store, settings: Settings) -> None:
    """How far every partition is counted, as workers say it: until they have, each answer asks for it anew."""
    now_ms = int(time.time() * 1000)
    BlockStore(store, topic=settings.topic_events, database=settings.database).write_progress(
        [Progress(partition, 0, now_ms, position=1, end=1) for partition in range(settings.partitions)]
    )


def _until_merged(store: Store) -> None:
    """Waits until the engine merges nothing, not for ever: what is warm is not measured beside merges."""
    end, quiet = time.monotonic() + _MERGES_S, 0
    while quiet < 3 and time.monotonic() < end:
        time.sleep(1.0)
        quiet = quiet + 1 if store.query("SELECT count() FROM system.merges").rows[0][0] == 0 else 0


def _rest(store: Store, settings: Settings) -> None:
    """Has the engine merge each month of facts, and each year of a rollup, into one part, and waits for it. Raises
    TimeoutError."""
    for table in _RESTING:
        store.command(_RESTED.format(table))
    end = time.monotonic() + _RESTED_S
    while store.query(_IN_PARTS, {"database": settings.database, "tables": list(_RESTING)}).rows[0][0]:
        if time.monotonic() > end:
            raise TimeoutError(f"facts and rollups are not merged after {_RESTED_S:.0f} s")
        time.sleep(1.0)
