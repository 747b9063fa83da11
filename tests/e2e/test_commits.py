"""Real events, twice over: every number that plain Python gets from the files comes out of the store."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from running_stack import RunningStack, Tenant, catalog_of
from waiting import counted, usage, values

from pipeline.adapters.clickhouse import Store

_DATA = Path(__file__).parents[1] / "data"
_EXPECTED: dict[str, Any] = json.loads((_DATA / "expected.json").read_text())
_ALL = {"start": "2010-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"}
_CATALOG = """
features:
  - {id: commits, name: Commits, event_names: [commit, merge], aggregation: count}
  - {id: insertions, name: Lines inserted, event_names: [commit, merge], aggregation: sum, value_key: insertions}
dimensions:
  - {key: repo, type: string}
  - {key: insertions, type: number}
"""


@pytest.fixture(scope="module")
def commits(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    """An account that was sent both files, the second twice."""

    async def key() -> str:
        async with catalog_of(stack.settings) as catalog:
            return (await catalog.ensure_first_account("commits")).secret

    tenant = Tenant("commits", asyncio.run(key()))
    catalog = tmp_path_factory.mktemp("commits") / "catalog.yaml"
    catalog.write_text(_CATALOG)
    stack.tally("apply", str(catalog), "--account", tenant.account)
    files = [str(_DATA / "commits-1.ndjson.gz"), *[str(_DATA / "commits-2-resent.ndjson.gz")] * 2]
    summary = stack.tally_json("send", *files, "--account", tenant.account)
    assert summary["rejected"] == 0
    assert summary["sent"] == _EXPECTED["sent"] + 12_198
    counted(stack, tenant)
    return tenant


@pytest.fixture(params=["rollups", "facts"])
def source(request: pytest.FixtureRequest) -> str:
    """Both ways to the same numbers."""
    return str(request.param)


def test_each_event_is_counted_once(stack: RunningStack, commits: Tenant, source: str) -> None:
    """By event name, over all time."""
    found = usage(stack, commits, group_by="event_name", source=source, **_ALL)
    assert {name: int(value) for name, value in values(found, "event_name").items()} == _EXPECTED["by_event"]
    assert sum(row["events"] for row in found["data"]) == _EXPECTED["counted"]


def test_each_customer_is_there(stack: RunningStack, commits: Tenant, source: str) -> None:
    """One group per author."""
    found = usage(stack, commits, feature="commits", group_by="customer", source=source, **_ALL)
    assert len(found["data"]) == _EXPECTED["clients"]


def test_insertions_by_repository(stack: RunningStack, commits: Tenant, source: str) -> None:
    """A feature fed by a number of the data, by a dimension."""
    found = usage(stack, commits, feature="insertions", dimension="repo", source=source, **_ALL)
    totals = {name: int(value) for name, value in values(found, "dimension:repo").items() if int(value)}
    assert totals == _EXPECTED["insertions_by_repo"]


def test_commits_by_utc_year(stack: RunningStack, commits: Tenant, source: str) -> None:
    """Months of UTC, added up."""
    found = usage(stack, commits, feature="commits", granularity="month", source=source, **_ALL)
    years: dict[str, int] = {}
    for row in found["data"]:
        years[row["start"][:4]] = years.get(row["start"][:4], 0) + int(row["value"])
    assert years == _EXPECTED["commits_by_utc_year"]


def test_months_of_new_york(stack: RunningStack, commits: Tenant, source: str) -> None:
    """Months in which daylight saving begins and ends."""
    for month, count in _EXPECTED["new_york_month_sample"].items():
        year, number = map(int, month.split("-"))
        end = f"{year + number // 12}-{number % 12 + 1:02d}-01"
        found = usage(
            stack,
            commits,
            feature="commits",
            granularity="month",
            zone="America/New_York",
            start=f"{month}-01",
            end=end,
            source=source,
        )
        assert [int(row["value"]) for row in found["data"]] == [count], month


def test_the_command_line_says_the_same(stack: RunningStack, commits: Tenant, source: str) -> None:
    """`tally usage` by repository and by month of New York, as JSON and as CSV."""
    wanted = ["--account", commits.account, "--source", source, "--start", "2010-01-01", "--end", "2030-01-01"]
    found = stack.tally_json("usage", "--feature", "insertions", "--dimension", "repo", *wanted)
    totals = {name: int(value) for name, value in values(found, "dimension:repo").items() if int(value)}
    assert totals == _EXPECTED["insertions_by_repo"]
    rows = stack.tally(
        "usage", "--feature", "commits", "--by", "month", "--zone", "America/New_York", "--csv", *wanted
    ).splitlines()
    for month, count in _EXPECTED["new_york_month_sample"].items():
        assert any(row.startswith(f"{month}-01") and f",{count}" in row for row in rows), month


def test_sql_reads_the_same(stack: RunningStack, commits: Tenant) -> None:
    """An analyst's query of facts."""
    columns = "count(), uniqExact(client_id), min(timestamp), max(timestamp)"
    statement = f"SELECT {columns} FROM events WHERE account = '{commits.account}'"
    row = stack.tally("sql", statement, "--csv").splitlines()[1]
    assert row.startswith(f"{_EXPECTED['counted']},{_EXPECTED['clients']},")
    assert _EXPECTED["first"][:19].replace("T", " ") in row
    assert _EXPECTED["last"][:19].replace("T", " ") in row


def test_the_audit_finds_nothing(stack: RunningStack, commits: Tenant, stack_store: Store) -> None:
    """Over everything in the store, and the resent files show as duplicates."""
    report = stack.tally_json("audit")
    assert report["drift"] == 0
    assert report["duplicates"] >= _EXPECTED["duplicates"] + 12_198
