"""The text of usage statements, whole: what changes here changes what every answer is read from."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from consumers.usage import UsageError, UsageQuery
from consumers.usage_plan import QUARTERS, SHAPES, make_plan
from consumers.usage_sql import build
from consumers.windows import Period

# ruff: noqa: E501 - statements stand as they are sent


def test_a_month_of_one_customer_in_new_york() -> None:
    """Whole UTC days from the rollup, the hours at the ends of the local month from facts."""
    query = UsageQuery(
        account="acme",
        feature="tokens",
        customer="anna",
        start=datetime(2024, 3, 1, 5, tzinfo=UTC),
        end=datetime(2024, 4, 1, 4, tzinfo=UTC),
        zone="America/New_York",
        granularity="month",
    )
    statement = build(query, "sums", ["tokens"])
    assert statement.read_from == ("usage_client_day", "events")
    assert statement.parameters == {
        "account": "acme",
        "features": ["tokens"],
        "customer": "anna",
        "since_1": 1710054000,
        "ahead_0": -18000,
        "ahead_1": -14400,
        "cell_from_0": "2024-03-02",
        "cell_to_0": "2024-04-01",
        "edge_from_0": "2024-03-01 05:00:00.000000",
        "edge_to_0": "2024-03-02 00:00:00.000000",
        "edge_from_1": "2024-04-01 00:00:00.000000",
        "edge_to_1": "2024-04-01 04:00:00.000000",
    }
    assert (
        statement.sql
        == """SELECT
    window,
    sum(n) AS events,
    sum(quantity_sum) AS total
FROM
(
    SELECT toStartOfMonth(toDate(toDateTime(toInt64(toUnixTimestamp(toDateTime(day, 'UTC'))) + multiIf(toInt64(toUnixTimestamp(toDateTime(day, 'UTC'))) >= {since_1:Int64}, {ahead_1:Int64}, {ahead_0:Int64}), 'UTC'))) AS window, events AS n, total AS quantity_sum
    FROM usage_client_day
    WHERE account = {account:String} AND feature IN {features:Array(String)} AND client_id = {customer:String} AND day >= {cell_from_0:Date} AND day < {cell_to_0:Date}
    UNION ALL
    SELECT toStartOfMonth(toDate(toDateTime(toInt64(toUnixTimestamp(timestamp)) + multiIf(toInt64(toUnixTimestamp(timestamp)) >= {since_1:Int64}, {ahead_1:Int64}, {ahead_0:Int64}), 'UTC'))) AS window, toInt64(sign) AS n, toDecimal256(quantity, 9) AS quantity_sum
    FROM
    (
        SELECT timestamp, `meters.feature`, `meters.quantity`, toInt8(1) AS sign
        FROM events
        WHERE account = {account:String} AND kind = 'delta' AND client_id = {customer:String} AND hasAny(`meters.feature`, {features:Array(String)}) AND (timestamp >= {edge_from_0:DateTime64(6, 'UTC')} AND timestamp < {edge_to_0:DateTime64(6, 'UTC')} OR timestamp >= {edge_from_1:DateTime64(6, 'UTC')} AND timestamp < {edge_to_1:DateTime64(6, 'UTC')})
    )
    ARRAY JOIN meters.feature AS feature, meters.quantity AS quantity
    WHERE feature IN {features:Array(String)}
    UNION ALL
    SELECT toStartOfMonth(toDate(toDateTime(toInt64(toUnixTimestamp(timestamp)) + multiIf(toInt64(toUnixTimestamp(timestamp)) >= {since_1:Int64}, {ahead_1:Int64}, {ahead_0:Int64}), 'UTC'))) AS window, toInt64(sign) AS n, toDecimal256(quantity, 9) * sign AS quantity_sum
    FROM
    (
        SELECT timestamp, `meters.feature`, `meters.quantity`, corrections.sign AS sign
        FROM corrections
        WHERE account = {account:String} AND kind = 'delta' AND client_id = {customer:String} AND hasAny(`meters.feature`, {features:Array(String)}) AND (timestamp >= {edge_from_0:DateTime64(6, 'UTC')} AND timestamp < {edge_to_0:DateTime64(6, 'UTC')} OR timestamp >= {edge_from_1:DateTime64(6, 'UTC')} AND timestamp < {edge_to_1:DateTime64(6, 'UTC')})
    )
    ARRAY JOIN meters.feature AS feature, meters.quantity AS quantity
    WHERE feature IN {features:Array(String)}
)
GROUP BY window
ORDER BY window
LIMIT 200001"""
    )


def test_events_by_a_dimension_by_local_hour() -> None:
    """Quarters of an hour make up the hours of +05:30; nothing is left for facts."""
    query = UsageQuery(
        account="acme",
        event_name="call",
        group_by=("dimension:region",),
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 3, 2, tzinfo=UTC),
        zone="Asia/Kolkata",
        granularity="hour",
    )
    statement = build(query, "sums", [])
    assert statement.read_from == ("events_dimension_15m",)
    assert statement.parameters == {
        "account": "acme",
        "event_name": "call",
        "dimension_0": "region",
        "ahead_0": 19800,
        "cell_from_0": "2024-03-01 00:00:00",
        "cell_to_0": "2024-03-02 00:00:00",
    }
    assert (
        statement.sql
        == """SELECT toDateTime(greatest(intDiv(toInt64(toUnixTimestamp(bucket)) + {ahead_0:Int64}, 3600) * 3600 - {ahead_0:Int64}, toInt64(0)), 'UTC') AS window, text AS group_0, sum(events) AS events, sum(total) AS total
FROM events_dimension_15m
WHERE account = {account:String} AND event_name = {event_name:String} AND dimension = {dimension_0:String} AND is_number = 0 AND bucket >= {cell_from_0:DateTime('UTC')} AND bucket < {cell_to_0:DateTime('UTC')}
GROUP BY window, group_0
ORDER BY window, group_0
LIMIT 200001"""
    )


def test_distinct_values_of_every_feature() -> None:
    """Values are counted after they were merged over customers and days."""
    query = UsageQuery(
        account="acme",
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 3, 3, tzinfo=UTC),
    )
    statement = build(query, "uniques", ["seats", "users"])
    assert statement.read_from == ("usage_uniques_client_day",)
    assert statement.parameters == {
        "account": "acme",
        "features": ["seats", "users"],
        "cell_from_0": "2024-03-01",
        "cell_to_0": "2024-03-03",
    }
    assert (
        statement.sql
        == """SELECT
    group_0,
    sum(n) AS events,
    countIf(n > 0) AS uniques
FROM
(
    SELECT group_0, distinct_hash, sum(n) AS n FROM
    (
        SELECT feature AS group_0, distinct_hash, events AS n
        FROM usage_uniques_client_day
        WHERE account = {account:String} AND feature IN {features:Array(String)} AND day >= {cell_from_0:Date} AND day < {cell_to_0:Date}
    )
    GROUP BY group_0, distinct_hash
)
GROUP BY group_0
ORDER BY group_0
LIMIT 200001"""
    )


def test_two_dimensions_from_facts() -> None:
    """No rollup has both: one statement over facts and corrections."""
    query = UsageQuery(
        account="acme",
        feature="tokens",
        where={"model": "large"},
        group_by=("dimension:region",),
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 3, 2, tzinfo=UTC),
    )
    statement = build(query, "latest", ["tokens"])
    assert statement.read_from == ("events",)
    assert statement.parameters == {
        "account": "acme",
        "features": ["tokens"],
        "dimension_0": "region",
        "dimension_1": "model",
        "value_1": "large",
        "edge_from_0": "2024-03-01 00:00:00.000000",
        "edge_to_0": "2024-03-02 00:00:00.000000",
    }
    assert (
        statement.sql
        == """SELECT
    group_0,
    sum(n) AS events,
    argMaxMerge(quantity_latest) AS latest
FROM
(
    SELECT dims.text[dimension_at_0] AS group_0, toInt64(sign) AS n, initializeAggregation('argMaxState', quantity, bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202) + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160) + bitShiftLeft(toUInt256(epoch), 128) + bitShiftLeft(toUInt256(`partition`), 96) + bitShiftLeft(toUInt256(`offset`), 32) + line) AS quantity_latest
    FROM
    (
        SELECT timestamp, append_time, epoch, `partition`, `offset`, line, `meters.feature`, `meters.quantity`, `dims.text`, arrayFirstIndex((name, is_number) -> name = {dimension_0:String} AND is_number = 0, dims.name, dims.is_number) AS dimension_at_0, arrayFirstIndex((name, is_number) -> name = {dimension_1:String} AND is_number = 0, dims.name, dims.is_number) AS dimension_at_1, toInt8(1) AS sign
        FROM events
        WHERE account = {account:String} AND kind = 'delta' AND hasAny(`meters.feature`, {features:Array(String)}) AND dimension_at_0 > 0 AND dimension_at_1 > 0 AND dims.text[dimension_at_1] = {value_1:String} AND timestamp >= {edge_from_0:DateTime64(6, 'UTC')} AND timestamp < {edge_to_0:DateTime64(6, 'UTC')}
        UNION ALL
        SELECT timestamp, append_time, epoch, `partition`, `offset`, line, `meters.feature`, `meters.quantity`, `dims.text`, arrayFirstIndex((name, is_number) -> name = {dimension_0:String} AND is_number = 0, dims.name, dims.is_number) AS dimension_at_0, arrayFirstIndex((name, is_number) -> name = {dimension_1:String} AND is_number = 0, dims.name, dims.is_number) AS dimension_at_1, corrections.sign AS sign
        FROM corrections
        WHERE account = {account:String} AND kind = 'delta' AND hasAny(`meters.feature`, {features:Array(String)}) AND dimension_at_0 > 0 AND dimension_at_1 > 0 AND dims.text[dimension_at_1] = {value_1:String} AND timestamp >= {edge_from_0:DateTime64(6, 'UTC')} AND timestamp < {edge_to_0:DateTime64(6, 'UTC')}
    )
    ARRAY JOIN meters.feature AS feature, meters.quantity AS quantity
    WHERE feature IN {features:Array(String)}
)
GROUP BY group_0
ORDER BY group_0
LIMIT 200001"""
    )


def test_nothing_of_a_question_gets_into_the_text() -> None:
    """Whatever the values are, they are parameters."""
    evil = "'; DROP TABLE events; --"
    query = UsageQuery(
        account=evil,
        feature=evil,
        customer=evil,
        entity=evil,
        where={evil: evil},
        group_by=(f"dimension:{evil}x",),
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 3, 2, tzinfo=UTC),
    )
    assert "DROP" not in build(query, "sums", [evil]).sql


def test_cells_and_edges_make_up_the_period() -> None:
    """Nothing is read twice and nothing is left out, month by month."""
    query = UsageQuery(
        account="acme",
        customer="anna",
        start=datetime(2024, 2, 10, 3, 4, 5, tzinfo=UTC),
        end=datetime(2024, 12, 10, 3, 4, 5, 6, tzinfo=UTC),
        zone="Australia/Lord_Howe",
        granularity="month",
    )
    plan = make_plan(query, "sums")
    parts = sorted([*plan.cells, *plan.edges])
    assert plan.rollup is not None
    assert Period(parts[0].start, parts[-1].end) == query.period
    assert all(one.end == following.start for one, following in pairwise(parts))
    assert len(plan.edges) == 12  # both ends, and ten local midnights between


def _month(zone: str, **asked: Any) -> UsageQuery:
    at = ZoneInfo(zone)
    start, end = datetime(2026, 10, 1, tzinfo=at), datetime(2026, 11, 1, tzinfo=at)
    return UsageQuery(account="acme", feature="tokens", start=start, end=end, zone=zone, **asked)


def _spans(*periods: Period) -> list[str]:
    return [f"{period.start:%d %H:%M}-{period.end:%d %H:%M}" for period in periods]


@pytest.mark.parametrize(
    ("zone", "cells", "ends", "taken"),
    [
        ("Europe/Berlin", ["01 00:00-01 00:00"], ["30 22:00-01 00:00"], ["31 23:00-01 00:00"]),
        ("America/New_York", ["01 00:00-01 00:00"], ["01 00:00-01 04:00"], ["01 00:00-01 04:00"]),
        ("Asia/Kathmandu", ["01 00:00-01 00:00"], ["30 18:15-01 00:00"], ["31 18:15-01 00:00"]),
        ("UTC", ["01 00:00-01 00:00"], [], []),
    ],
)
def test_a_month_of_all_customers_reads_no_facts(
    zone: str, cells: list[str], ends: list[str], taken: list[str]
) -> None:
    """Days of UTC, quarters of an hour beside the ends of months added, and those subtracted that lie beyond."""
    plan = make_plan(_month(zone, group_by=("customer",)), "sums")
    found = _spans(*plan.cells), _spans(*plan.ends), _spans(*plan.taken), plan.edges
    assert found == (cells, ends, taken, ())


def test_smallest_and_largest_of_all_customers_are_not_subtracted() -> None:
    """What is in the rollup beside ends of months is added; the rest of the day comes from facts."""
    plan = make_plan(_month("Europe/Berlin", group_by=("customer",)), "extremes")
    assert (_spans(*plan.ends), plan.taken) == (["30 22:00-01 00:00"], ())
    assert _spans(*plan.edges) == ["31 00:00-31 23:00"]


def test_a_month_of_one_customer_takes_the_shorter_part_of_a_day_from_facts() -> None:
    """Two hours are added, one is subtracted: facts are sorted by customer."""
    query = _month("Europe/Berlin", customer="anna")
    plan = make_plan(query, "sums")
    assert (_spans(*plan.edges), _spans(*plan.taken), plan.ends) == (["30 22:00-01 00:00"], ["31 23:00-01 00:00"], ())
    assert build(query, "sums", ["tokens"]).read_from == ("usage_client_day", "events")


def test_customers_by_dimension_are_read_from_the_projection_where_there_is_one() -> None:
    """All of a local month lies in its cells; without it facts give the same."""
    query = _month("Europe/Berlin", group_by=("customer",), where={"model": "draft"}, top=100)
    plan = make_plan(query, "sums", projections=[SHAPES])
    assert (plan.shapes, plan.edges) == ((query.period,), ())
    assert make_plan(query, "sums").edges == (query.period,)
    made = build(query, "sums", ["tokens"], projections=[SHAPES])
    assert made.parameters == {
        "account": "acme",
        "features": ["tokens"],
        "feature": "tokens",
        "dimension_0": "model",
        "value_0": "draft",
        "shape_from_0": "2026-09-30 22:00:00",
        "shape_to_0": "2026-10-31 23:00:00",
        "corrected_from_0": "2026-09-30 22:00:00.000000",
        "corrected_to_0": "2026-10-31 23:00:00.000000",
        "top": 100,
    }
    assert made.sql.endswith("GROUP BY group_0\nORDER BY total DESC, group_0\nLIMIT {top:UInt32}")
    assert "count() AS n, sumForEach(CAST(`meters.quantity`, 'Array(Decimal(76, 9))')) AS quantities" in made.sql


def test_what_reads_few_rows_takes_two_threads() -> None:
    """Sums of one customer out of cells; what may be many rows has the threads it is given."""
    alone = {"customer": "anna", "granularity": "day"}
    for query in (_month("UTC", **alone), _month("Europe/Berlin", **alone)):
        made = build(query, "sums", ["tokens"], projections=[QUARTERS], corrected=False)
        assert (made.settings["max_threads"], made.settings["optimize_move_to_prewhere"]) == (2, 0)
    for query, family in (
        (_month("UTC", **alone), "uniques"),
        (_month("UTC"), "sums"),
        (_month("Asia/Tokyo", **alone), "sums"),
    ):
        assert "max_threads" not in build(query, family, ["tokens"]).settings


def test_of_one_feature_only_its_place_is_grouped_by() -> None:
    """Where a text is asked for, what else could be there need not be looked at; an empty one says nothing."""
    query = _month("Europe/Berlin", group_by=("customer",), where={"model": "draft"}, top=100)

    def sql_of(query: UsageQuery, *features: str) -> str:
        return build(query, "sums", features, projections=[SHAPES], corrected=False).sql

    one = sql_of(query, "tokens")
    assert "GROUP BY client_id, place\n" in one
    assert "ARRAY JOIN" not in one
    assert "dims.is_number" not in one
    every = replace(query, feature=None, top=None)
    assert "GROUP BY client_id, features\n" in sql_of(every, "calls", "tokens")
    assert "GROUP BY client_id, features\n" in sql_of(every, "tokens")
    for other in ({"where": {"model": ""}}, {"where": {}, "group_by": ("dimension:model", "customer")}):
        assert "`dims.is_number`[" in sql_of(replace(query, **other), "tokens")


def test_local_days_of_a_customer_are_read_from_facts() -> None:
    """UTC days are no days of New York."""
    query = UsageQuery(
        account="acme",
        customer="anna",
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 4, 1, tzinfo=UTC),
        zone="America/New_York",
        granularity="day",
    )
    assert make_plan(query, "sums").rollup is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"start": datetime(2024, 3, 1)}, "start"),  # noqa: DTZ001 - naive on purpose
        ({"end": datetime(2024, 2, 1, tzinfo=UTC)}, "end"),
        ({"end": datetime(2101, 2, 1, tzinfo=UTC)}, "end"),
        ({"feature": "a", "event_name": "b"}, "event_name"),
        ({"feature": "a", "number": "b"}, "number"),
        ({"event_name": "a", "aggregation": "unique"}, "aggregation"),
        ({"aggregation": "median"}, "aggregation"),
        ({"granularity": "week"}, "granularity"),
        ({"source": "cache"}, "source"),
        ({"zone": "Europe/Nowhere"}, "zone"),
        ({"zone": "../etc/passwd"}, "zone"),
        ({"zone": ""}, "zone"),
        ({"group_by": ("colour",)}, "group_by"),
        ({"group_by": ("dimension:",)}, "group_by"),
        ({"group_by": ("customer", "customer")}, "group_by"),
        ({"granularity": "hour", "end": datetime(2029, 2, 1, tzinfo=UTC)}, "granularity"),
        ({"account": ""}, "account"),
        ({"feature": "a", "group_by": ("customer",), "top": 0}, "top"),
        ({"feature": "a", "top": 5}, "top"),
        ({"feature": "a", "group_by": ("customer",), "granularity": "day", "top": 5}, "top"),
        ({"group_by": ("customer",), "top": 5}, "top"),
    ],
)
def test_a_wrong_question_names_its_field(changes: dict[str, object], field: str) -> None:
    """Before anything is sent."""
    asked = {
        "account": "acme",
        "start": datetime(2024, 3, 1, tzinfo=UTC),
        "end": datetime(2024, 4, 1, tzinfo=UTC),
        **changes,
    }
    with pytest.raises(UsageError) as wrong:
        UsageQuery(**asked)  # type: ignore[arg-type]
    assert wrong.value.field == field


def test_corrections_are_left_out_where_there_are_none() -> None:
    """An account that corrected nothing is asked about facts alone; one whose days come from cells needs neither."""
    start = datetime(2024, 3, 1, tzinfo=UTC)
    query = UsageQuery(account="acme", feature="tokens", start=start, end=datetime(2024, 3, 2, 5, 1, tzinfo=UTC))
    assert "corrections" in build(query, "sums", ["tokens"]).sql
    assert "corrections" not in build(query, "sums", ["tokens"], corrected=False).sql
    assert make_plan(query, "sums").reads_events
    assert not make_plan(replace(query, end=datetime(2024, 3, 2, tzinfo=UTC)), "sums").reads_events


def test_one_customers_local_days_come_from_quarters_where_facts_have_them() -> None:
    """Facts give what is less than a quarter; whole days of UTC stay with their rollup; extremes have no projection."""
    berlin = _month("Europe/Berlin", customer="anna", granularity="day")
    assert _plan_of(berlin) == ((berlin.period,), ())
    odd = replace(berlin, start=berlin.start + timedelta(minutes=7))
    assert [_spans(*found) for found in _plan_of(odd)] == [["30 22:15-31 23:00"], ["30 22:07-30 22:15"]]
    assert make_plan(berlin, "extremes", projections=[QUARTERS]).edges == (berlin.period,)
    assert make_plan(_month("UTC", customer="anna", granularity="day"), "sums", projections=[QUARTERS]).cells
    for other in ({"source": "facts"}, {"event_name": "used", "feature": None}, {"where": {"model": "a"}}):
        assert not make_plan(replace(berlin, **other), "sums", projections=[QUARTERS]).quarters
    assert not make_plan(_month("Europe/Berlin", group_by=("customer",)), "sums", projections=[QUARTERS]).quarters


def test_sums_by_sets_of_features_are_put_together_exactly() -> None:
    """To the last of 76 digits, by window and feature; what was not asked for is left out."""
    query = replace(_month("Europe/Berlin", customer="anna", granularity="day"), feature=None)
    known, made = (
        build(query, "sums", ["calls", "tokens"], projections=[QUARTERS], corrected=corrected)
        for corrected in (False, None)
    )
    assert made.columns == ("window", "feature", "events", "total")
    day, after, large = date(2026, 10, 1), date(2026, 10, 2), Decimal("9" * 60 + "." + "9" * 9)
    answered = [
        (after, ["tokens"], 1, [Decimal(5)], False),
        (day, ["calls", "tokens"], 2, [Decimal(2), large], False),
        (day, ["seats", "tokens"], 3, [Decimal(7), Decimal("1e-9")], False),
    ]
    assert [made.corrected(answered[:number]) for number in (3, 0)] == [False, None]
    assert made.corrected([(*answered[0][:-1], True)])
    assert made.rows(answered) == [
        (day, "calls", 2, Decimal(2)),
        (day, "tokens", 5, Decimal("1" + "0" * 60)),
        (after, "tokens", 1, Decimal(5)),
    ]
    assert known.rows([row[:-1] for row in answered]) == made.rows(answered)
    assert [known.corrected(answered), "corrections" in known.sql, "corrections" in made.sql] == [None, False, True]


def test_rows_of_other_statements_are_as_the_store_gives_them() -> None:
    """Sets of features are asked for only where their rows cannot be too many and nothing else is added."""
    berlin = _month("Europe/Berlin", customer="anna", granularity="day")
    assert build(berlin, "sums", ["tokens"], projections=[QUARTERS], corrected=False).sets
    odd = replace(berlin, start=berlin.start + timedelta(minutes=7))
    for query, corrected in ((berlin, True), (odd, False), (replace(berlin, group_by=("entity",)), False)):
        made = build(query, "sums", ["tokens"], projections=[QUARTERS], corrected=corrected)
        assert not made.sets
        assert made.rows([("a", 1)]) == [("a", 1)]
        assert made.corrected([("a", 1)]) is None


def _plan_of(query: UsageQuery) -> tuple[tuple[Period, ...], tuple[Period, ...]]:
    plan = make_plan(query, "sums", projections=[QUARTERS])
    assert not plan.cells
    return plan.quarters, plan.edges
