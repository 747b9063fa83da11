"""Usage out of rollups, out of facts, and counted in plain Python: always the same number."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from stored_events import StoredEvent, fresh_store, insert_block, random_events

from consumers.usage import UsageError, UsageQuery
from consumers.usage_plan import QUARTERS, SHAPES
from consumers.usage_reader import UsageReader
from consumers.usage_sql import build
from pipeline.adapters.clickhouse import Store
from pipeline.migrate import sql_dir

ZONES = ("UTC", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe")
AGGREGATIONS = ("sum", "count", "max", "min", "latest", "unique", "average")
# The clocks of New York and Lord Howe change in these: 2024-03-10 and 2024-11-03, 2024-04-07 and 2024-10-06.
PERIODS = (datetime(2024, 3, 3, tzinfo=UTC), datetime(2024, 9, 30, tzinfo=UTC))
DAYS = 44
QUERIES = 60

Key = tuple[datetime, tuple[tuple[str, str], ...]]


@pytest.mark.parametrize("first", PERIODS, ids=["spring", "autumn"])
def test_rollups_facts_and_plain_python_agree(store: Store, first: datetime) -> None:
    """Random questions in five zones: one answer from wherever it is read, equal to the events themselves."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    events = random_events(seed, 900, "acme", first, DAYS)
    others = random_events(seed + 1, 50, "other", first, DAYS)
    insert_block(store, events[:500], start=0, end=72)
    insert_block(store, events[500:], start=72, end=1000)
    insert_block(store, [_in_partition(e, 1) for e in others], start=0, end=100)
    reader = UsageReader(store, topic="tally.events", partitions=1)
    draw = random.Random(seed)
    read: set[str] = set()
    for asked in (*_questions_of_each_source(first), *(_random_query(draw, first) for _ in range(QUERIES))):
        read |= _sources_that_agree(reader, asked, events, told=f"seed {seed}")
    assert {"usage_15m", "usage_client_day", "events"} <= read


def test_a_question_that_rollups_cannot_answer_is_refused_when_they_are_insisted_on(store: Store) -> None:
    """Two dimensions at once are in no rollup."""
    start = datetime(2024, 3, 1, tzinfo=UTC)
    query = UsageQuery(
        account="acme",
        feature="sum",
        start=start,
        end=start + timedelta(days=9),
        where={"region": "a", "model": "b"},
        source="rollups",
    )
    with pytest.raises(UsageError, match="no rollup"):
        UsageReader(store, topic="tally.events", partitions=1).usage(query)


def test_an_answer_says_until_when_it_is_complete(store: Store) -> None:
    """The least of the partitions' times, once all of them have reported."""
    start = datetime(2024, 3, 1, tzinfo=UTC)
    query = UsageQuery(account="acme", start=start, end=start + timedelta(days=1))
    reader = UsageReader(store, topic="tally.events", partitions=2)
    columns = "INSERT INTO progress (topic, partition, epoch, complete_until, position, `end`, written_at) VALUES"
    store.command(f"{columns} ('tally.events', 0, 0, '2026-01-01 00:00:05', 9, 9, 1)")
    assert reader.usage(query).complete_until is None
    store.command(f"{columns} ('tally.events', 1, 0, '2026-01-01 00:00:04', 9, 9, 1)")
    store.command(f"{columns} ('tally.events', 0, 0, '2026-01-01 00:00:07.5', 9, 9, 2)")
    answer = reader.usage(query)
    assert answer.complete_until == datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC)
    assert answer.lag_s is not None
    assert answer.lag_s > 0


def test_a_withdrawn_event_leaves_every_aggregate(store: Store) -> None:
    """A correction with sign -1 counts against sums and takes its event out of the other aggregates."""
    start = datetime(2024, 3, 3, tzinfo=UTC)
    events = random_events(5, 200, "acme", start, 20)
    insert_block(store, events, start=0, end=100)
    voided = [e for i, e in enumerate(events) if i % 3 == 0]
    targets = ", ".join(f"({e.offset}, {e.line})" for e in voided)
    store.command(
        "INSERT INTO corrections SELECT *, -1, 'void', epoch, partition, offset, line, 'test', append_time"
        f" FROM events WHERE (offset, line) IN ({targets})"
    )
    kept = [e for e in events if e not in voided]
    reader = UsageReader(store, topic="tally.events", partitions=1)
    for group_by in ((), ("customer",)):
        asked = _query(start, group_by=group_by, granularity="month")
        answer = reader.usage(UsageQuery(**asked), {name: name for name in AGGREGATIONS})
        found = {(row.start, tuple(row.group.items())): (row.events, row.value) for row in answer.rows}
        assert found == _expected(asked, kept)


def test_what_was_corrected_is_in_the_first_answer_that_promises_it(store: Store) -> None:
    """One reader, which knows that the account had no corrections when it last asked."""
    start = datetime(2024, 3, 5, tzinfo=UTC)
    insert_block(store, random_events(6, 50, "mended", start, 20), start=0, end=100)
    reader = UsageReader(store, topic="tally.mended", partitions=1)
    asked = UsageQuery(
        account="mended", start=start, end=start + timedelta(days=30), group_by=("event_name",), source="facts"
    )
    columns = "INSERT INTO progress (topic, partition, epoch, complete_until, position, `end`, written_at) VALUES"

    def told() -> int:
        return sum(row.events for row in reader.usage(asked).rows)

    store.command(f"{columns} ('tally.mended', 0, 0, '2026-01-01 00:00:05', 9, 9, 1)")
    assert [told(), told()] == [50, 50]
    store.command(
        "INSERT INTO corrections SELECT *, -1, 'void', epoch, partition, offset, line, 'test', append_time"
        " FROM events WHERE account = 'mended' LIMIT 1"
    )
    store.command(f"{columns} ('tally.mended', 0, 0, '2026-01-01 00:00:09', 9, 9, 2)")
    end = time.monotonic() + 60
    while reader.complete().until != datetime(2026, 1, 1, 0, 0, 9, tzinfo=UTC):
        assert time.monotonic() < end, "the workers' newest report is never read"
        time.sleep(0.05)
    assert told() == 49


MONTH_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati", "Etc/GMT+12")


@pytest.mark.parametrize("voided", [False, True], ids=["nothing withdrawn", "a third withdrawn"])
def test_local_months_agree_wherever_they_are_read(fresh: Store, *, voided: bool) -> None:
    """By customer, by dimension of customers and by two dimensions: cells beside the ends of months, what is subtracted
    there, and the opt-in projections give what facts give, and so does plain Python."""
    first = datetime(2024, 9, 28, tzinfo=UTC)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    events = random_events(seed, 900, "acme", first, 38)
    insert_block(fresh, events[:500], start=0, end=72)
    _add_projections(fresh)
    insert_block(fresh, events[500:], start=72, end=1000)
    kept = events
    if voided:
        targets = ", ".join(f"({e.offset}, {e.line})" for e in events[::3])
        fresh.command(
            "INSERT INTO corrections SELECT *, -1, 'void', epoch, partition, offset, line, 'test', append_time"
            f" FROM events WHERE (offset, line) IN ({targets})"
        )
        kept = [e for i, e in enumerate(events) if i % 3]
    reader = UsageReader(fresh, topic="tally.events", partitions=1)
    read: set[str] = set()
    groups: tuple[dict[str, Any], ...] = (
        {"group_by": ("customer",)},
        {"group_by": ("customer", "entity"), "granularity": "month"},
        {"customer": "anna"},
        {"customer": "anna", "granularity": "day"},
        {"customer": "ben", "group_by": ("entity", "customer"), "granularity": "hour"},
        {"group_by": ("customer",), "where": {"model": "a"}},
        {"group_by": ("customer", "dimension:region", "dimension:model")},
        {"customer": "ben", "group_by": ("dimension:region",)},
    )
    for zone in MONTH_ZONES:
        at = ZoneInfo(zone)
        start, end = datetime(2024, 10, 1, tzinfo=at), datetime(2024, 11, 1, tzinfo=at)
        # also one that begins within a cell, and one that begins in the midst of the month
        begins = (start, start + timedelta(minutes=7), start + timedelta(days=9, hours=3))
        for i, group in enumerate(groups):
            for begin in (start, begins[1 + i % 2]):
                asked = {"account": "acme", "feature": "sum", "start": begin, "end": end, "zone": zone, **group}
                if i == 0:  # all aggregations, beside ends of months
                    del asked["feature"]
                read |= _sources_that_agree(reader, asked, kept, told=f"seed {seed}")
    assert {"usage_client_edge_15m", "usage_client_day", "events"} <= read


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (SHAPES, {"group_by": ("customer",), "where": {"model": "a"}}),
        (QUARTERS, {"customer": "anna", "granularity": "day"}),
        (QUARTERS, {"customer": "anna", "group_by": ("entity",)}),
    ],
)
def test_the_projection_is_what_the_engine_reads(fresh: Store, name: str, asked: dict[str, Any]) -> None:
    """The statement is made of the very expressions of the projection, else the engine would not take it: with
    corrections and without, which is another one."""
    first = datetime(2024, 9, 28, tzinfo=UTC)
    insert_block(fresh, random_events(1, 300, "acme", first, 38), start=0, end=72)
    _add_projections(fresh)
    at = ZoneInfo("Europe/Berlin")
    start, end = datetime(2024, 10, 1, tzinfo=at), datetime(2024, 11, 1, tzinfo=at)
    query = UsageQuery(account="acme", feature="sum", start=start, end=end, zone=at.key, **asked)
    for corrected in (True, False):
        made = build(query, "sums", ["sum"], projections=[name], corrected=corrected)
        plan = fresh.query(f"EXPLAIN {made.sql}", made.parameters, made.settings)
        text = "\n".join(line for (line,) in plan.rows)
        assert f"ReadFromMergeTree ({name})" in text, text


@pytest.mark.parametrize("customer", ["anna", "nobody"])
def test_corrections_are_seen_by_a_reader_that_saw_none(fresh: Store, customer: str) -> None:
    """Also those of a customer without any facts, whose answer was empty."""
    first = datetime(2024, 9, 28, tzinfo=UTC)
    events = random_events(3, 200, "acme", first, 38)
    insert_block(fresh, events, start=0, end=72)
    _add_projections(fresh)
    reader = UsageReader(fresh, topic="tally.events", partitions=1)
    at = ZoneInfo("Europe/Berlin")
    period = {"start": datetime(2024, 10, 1, tzinfo=at), "end": datetime(2024, 11, 1, tzinfo=at), "zone": at.key}
    asked: dict[str, Any] = {"account": "acme", "feature": "sum", "customer": customer, "granularity": "day", **period}
    _sources_that_agree(reader, asked, events, told="none yet")
    for sign, client in ((-1, "client_id"), (1, "'nobody'")):
        fresh.command(
            f"INSERT INTO corrections SELECT * REPLACE ({client} AS client_id), {sign}, 'amend', epoch, partition,"
            " offset, line, 'test', append_time FROM (SELECT * FROM events WHERE client_id = 'anna')"
        )
    moved = [replace(event, client_id="nobody") if event.client_id == "anna" else event for event in events]
    _sources_that_agree(reader, asked, moved, told="moved")


def test_the_largest_come_first(fresh: Store) -> None:
    """By sum or by count, only so many; other aggregations are refused."""
    first = datetime(2024, 9, 28, tzinfo=UTC)
    events = random_events(11, 400, "acme", first, 38)
    insert_block(fresh, events, start=0, end=72)
    reader = UsageReader(fresh, topic="tally.events", partitions=1)
    for aggregation in ("sum", "count"):
        asked = _query(first, feature="sum", group_by=("customer",), aggregation=aggregation)
        ranked = sorted(_expected(asked, events).items(), key=lambda item: -(item[1][1] or 0))
        answer = reader.usage(UsageQuery(**asked, top=2))
        assert [(row.group["customer"], row.value) for row in answer.rows] == [
            (dict(group)["customer"], value) for (_, group), (_, value) in ranked[:2]
        ]
    with pytest.raises(UsageError, match="by sum or count"):
        reader.usage(UsageQuery(**{**asked, "aggregation": "average"}, top=2))


@pytest.fixture
def fresh(clickhouse_url: str) -> Iterator[Store]:
    """A database of the test's own, since facts get a projection."""
    made = fresh_store(clickhouse_url)
    yield made
    made.close()


def _add_projections(store: Store) -> None:
    for name in (SHAPES, QUARTERS):
        for statement in (sql_dir() / "optional" / f"{name}.sql").read_text().split(";\n"):
            if statement.strip():
                store.command(statement, settings={"mutations_sync": 1})


def _query(first: datetime, **changes: Any) -> dict[str, Any]:
    return {"account": "acme", "start": first, "end": first + timedelta(days=DAYS), **changes}


def _questions_of_each_source(first: datetime) -> list[dict[str, Any]]:
    """One that days answer, one that quarters of an hour answer, and one that only facts can."""
    month = {"account": "acme", "start": first, "end": first + timedelta(days=30)}
    return [
        {**month, "feature": "sum", "customer": "anna", "granularity": "day"},
        {**month, "feature": "sum", "granularity": "hour", "zone": "Asia/Kathmandu"},
        {**month, "feature": "sum", "where": {"region": "a"}, "group_by": ("dimension:model",)},
    ]


def _random_query(draw: random.Random, first: datetime) -> dict[str, Any]:
    start = first + timedelta(minutes=draw.randrange(60 * 24 * 20))
    start = draw.choice((start, start.replace(hour=0, minute=0), start + timedelta(seconds=1.5)))
    asked: dict[str, Any] = {
        "account": "acme",
        "start": start,
        "end": start + timedelta(minutes=draw.choice((1, 40, 60 * 24 * 3, 60 * 24 * draw.randrange(1, 40)))),
        "zone": draw.choice(ZONES),
        "granularity": draw.choice(("none", "hour", "day", "month")),
    }
    groups = ["customer", "entity", "dimension:region", "dimension:model", "event_name"]
    by_events = draw.random() < 0.35
    if by_events:
        asked["event_name"] = draw.choice(("call", "mail", ""))
        asked["aggregation"] = draw.choice((None, "sum", "count", "max", "min", "average", "latest"))
        if draw.random() < 0.3:
            asked["number"] = "latency"
    elif draw.random() < 0.6:
        asked["feature"] = draw.choice((*AGGREGATIONS, "unheard of"))
    asked["group_by"] = tuple(draw.sample(groups, draw.choice((0, 0, 1, 1, 2))))
    if draw.random() < 0.4:
        asked["customer"] = draw.choice(("anna", "c'\\\t\u00fc", "nobody"))
    if draw.random() < 0.15:
        asked["entity"] = "seat"
    if draw.random() < 0.25:
        asked["where"] = {draw.choice(("region", "model")): draw.choice(("a", "", "it's"))}
    return asked


def _sources_that_agree(
    reader: UsageReader, asked: dict[str, Any], events: Iterable[StoredEvent], told: str
) -> set[str]:
    """Asks rollups and facts, holds both against the events, and gives the tables that were read."""
    read: set[str] = set()
    expected = _expected(asked, events)
    for source in ("auto", "facts"):
        answer = reader.usage(UsageQuery(**asked, source=source), {name: name for name in AGGREGATIONS})
        found = {(row.start, tuple(row.group.items())): (row.events, row.value) for row in answer.rows}
        assert found == expected, f"{told}, {source}: {asked}"
        read.update(answer.read_from)
    return read


def _expected(asked: dict[str, Any], events: Iterable[StoredEvent]) -> dict[Key, tuple[int, Decimal | None]]:
    """The answer by definition: look at each event, keep what was asked for, put it where it belongs."""
    query = UsageQuery(**asked)
    cells: dict[Key, list[tuple[tuple[Any, ...], Decimal, int]]] = defaultdict(list)
    kinds: dict[Key, str] = {}
    for event in events:
        if not query.start <= event.timestamp < query.end:
            continue
        if query.customer not in (None, event.client_id) or query.entity not in (None, event.entity_id):
            continue
        if query.event_name not in (None, event.event_name) or any(d not in event.texts for d in query.dimensions):
            continue
        if any(event.texts[name] != value for name, value in query.where.items()):
            continue
        order = (event.timestamp, event.append_time, event.epoch, event.partition, event.offset, event.line)
        for feature, quantity, distinct in _amounts(query, event):
            group = {
                "customer": event.client_id,
                "entity": event.entity_id,
                "event_name": event.event_name,
                "feature": feature,
                **{f"dimension:{name}": value for name, value in event.texts.items()},
            }
            start = query.start
            if query.granularity != "none":
                start = max(start, _window_start(event.timestamp, query.granularity, query.zone))
            key = (start, tuple((name, group[name]) for name in query.groups))
            cells[key].append((order, quantity, distinct))
            kinds[key] = query.aggregation or (feature if feature in AGGREGATIONS else "sum")
    return {key: (len(rows), _aggregate[kinds[key]](sorted(rows))) for key, rows in cells.items()}


def _amounts(query: UsageQuery, event: StoredEvent) -> list[tuple[str, Decimal, int]]:
    if query.by_events:
        if query.number is None:
            return [("", event.value, 0)]
        return [("", event.numbers[query.number], 0)] if query.number in event.numbers else []
    return [(m.feature, m.quantity, m.distinct_hash) for m in event.meters if query.feature in (None, m.feature)]


def _average(rows: list[tuple[Any, Decimal, int]]) -> Decimal:
    with localcontext(prec=100):
        total = sum((quantity for _, quantity, _ in rows), Decimal(0))
        return (total / len(rows)).quantize(Decimal("1e-9"), ROUND_HALF_EVEN)


_aggregate: dict[str, Callable[[list[tuple[Any, Decimal, int]]], Decimal]] = {
    "sum": lambda rows: sum((quantity for _, quantity, _ in rows), Decimal(0)),
    "count": lambda rows: Decimal(len(rows)),
    "max": lambda rows: max(quantity for _, quantity, _ in rows),
    "min": lambda rows: min(quantity for _, quantity, _ in rows),
    "latest": lambda rows: rows[-1][1],
    "unique": lambda rows: Decimal(len({distinct for _, _, distinct in rows})),
    "average": _average,
}


@cache
def _window_start(at: datetime, granularity: str, zone: str) -> datetime:
    """Walk back by quarters of an hour for as long as the local clock shows the same window."""
    cell = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
    before = cell - timedelta(minutes=15)
    if _label(before, granularity, zone) != _label(cell, granularity, zone):
        return cell
    while _label(before, granularity, zone) == _label(cell, granularity, zone):
        cell, before = before, before - timedelta(minutes=15)
    return cell


def _label(at: datetime, granularity: str, zone: str) -> tuple[Any, ...]:
    local = at.astimezone(ZoneInfo(zone))
    if granularity == "hour":
        return (local.date(), local.hour, local.utcoffset())
    return (local.date(),) if granularity == "day" else (local.year, local.month)


def _in_partition(event: StoredEvent, partition: int) -> StoredEvent:
    return StoredEvent(
        event.account,
        event.client_id,
        event.timestamp,
        event.offset,
        event.line,
        partition,
        meters=event.meters,
        texts=event.texts,
    )
