"""Asks the product for everything it counted and compares it with what plain Python expects.

Rules: a client of the product and nothing more. Every number is asked for twice, from rollups and straight from
facts. A check holds only if the names are the same, none missing and none too many, and every value is equal.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from demo_doors import DemoError, Shop
from demo_events import NO_NAME, Expected, Use, by_name, day_in, month_in, usage

SOURCES = ("rollups", "facts")
MIXED = ("auto", "facts")  # customers' rollups hold UTC days: months of another zone take facts at their edges
NEW_YORK = ZoneInfo("America/New_York")
KOLKATA = ZoneInfo("Asia/Kolkata")  # half an hour off: hours of UTC are too coarse
ALL_TIME = {"start": "2010-01-01T00:00:00Z", "end": "2099-01-01T00:00:00Z"}
COMPLETE_WITHIN_S = 120.0
POLL_S = 0.1
_MONTH_STARTS = {"start": "2013-01-01", "end": "2027-01-01"}

Numbers = Mapping[str, Decimal]


@dataclass(frozen=True)
class Check:
    """Numbers by name as they must be, and as each source gives them."""

    title: str
    expected: Numbers
    found: Mapping[str, Numbers]

    @property
    def faults(self) -> list[str]:
        """What differs, in words; empty when everything is equal."""
        return [
            f"{self.title} ({source}), {name}: expected {_text(self.expected.get(name))}, "
            f"found {_text(numbers.get(name))}"
            for source, numbers in self.found.items()
            for name in sorted({*self.expected, *numbers})
            if self.expected.get(name) != numbers.get(name)
        ]


async def wait_until_counted(shop: Shop) -> None:
    """Returns once all that was acknowledged before this call is counted, wherever it had to be sent on to.

    The product says so itself: `complete_until` of any usage answer. What lay in another partition than its id's is
    acknowledged a second time, so this looks twice. Raises DemoError when it takes too long.
    """
    async with shop.client() as client:
        for _ in range(2):
            await _complete(client, datetime.now(UTC) + timedelta(milliseconds=5))


async def _complete(client: httpx.AsyncClient, since: datetime) -> None:
    end = asyncio.get_running_loop().time() + COMPLETE_WITHIN_S
    while True:
        until = (await _ask(client, {**ALL_TIME, "feature": "commits"}))["complete_until"]
        if until is not None and datetime.fromisoformat(until) >= since:
            return
        if asyncio.get_running_loop().time() > end:
            raise DemoError(
                f"after {COMPLETE_WITHIN_S:.0f} s not everything is counted (complete until {until}); "
                "see tally status and the worker's log"
            )
        await asyncio.sleep(POLL_S)


async def check_usage(shop: Shop, expected: Expected) -> list[Check]:
    """Every number that can be asked for over HTTP."""
    async with shop.client() as client:
        return [await check(client, expected) for check in _CHECKS]


def check_verdicts(shop: Shop, expected: Expected) -> Check:
    """What SQL finds in the store: events kept once, and those refused, listed with their reason."""
    where = f"WHERE account = '{shop.account}'"
    statement = (
        f"SELECT 'accepted' AS verdict, count() AS events FROM events {where} "
        f"UNION ALL SELECT toString(verdict), count() FROM rejects FINAL {where} GROUP BY verdict"
    )
    rows = [json.loads(line) for line in shop.tally("sql", statement, "--json").splitlines()]
    return Check(
        "Verdicts, by SQL",
        {
            "accepted": Decimal(len(expected.events)),
            "conflict": Decimal(expected.conflicts),
            "rejected": Decimal(expected.rejected),
        },
        {"facts": {row["verdict"]: Decimal(row["events"]) for row in rows}},
    )


def check_audit(report: Mapping[str, Any], expected: Expected, *, alone: bool) -> Check:
    """The audit: no promise is broken; `alone` in the store, every count of it is ours."""
    must = {"drift": 0}
    if alone:
        must |= {
            "accepted": len(expected.events),
            "duplicates": expected.duplicates,
            "conflicts": expected.conflicts,
            "rejected": expected.rejected,
            "stored": len(expected.events),
            "read, less sent on": expected.sent,
        }
    found = {**report, "read, less sent on": report["events"] - report["rerouted"]}
    return Check("Audit", _decimals(must), {"ledger": _decimals({name: found[name] for name in must})})


# ------------------------------------------------------------------------------------------------ usage


async def _features(client: httpx.AsyncClient, expected: Expected) -> Check:
    must: dict[str, Decimal] = {}
    for feature in expected.features:
        if uses := expected.uses(feature):
            events, value = usage(feature, uses)
            must |= {feature.id: value, f"{feature.id}, events": Decimal(events)}
    return await _check(client, "Usage by feature", must, _with_events, ALL_TIME)


async def _event_names(client: httpx.AsyncClient, expected: Expected) -> Check:
    must = by_name(expected.events)
    return await _check(client, "Values by event name", must, _by_group, {**ALL_TIME, "group_by": "event_name"})


async def _deletions(client: httpx.AsyncClient, expected: Expected) -> Check:
    values: dict[str, Decimal] = defaultdict(Decimal)
    for event in expected.events:
        if "deletions" in event.get("data", {}):
            values[event["eventName"]] += event["data"]["deletions"]
    asked = {**ALL_TIME, "group_by": "event_name", "number": "deletions"}
    return await _check(client, "Deletions, a number dimension", dict(values), _by_group, asked)


def _by_repository(feature: str, title: str) -> "_Ask":
    async def ask(client: httpx.AsyncClient, expected: Expected) -> Check:
        must = _grouped(expected, feature, lambda use: str(use.event["data"]["repo"]))
        asked = {**ALL_TIME, "feature": feature, "dimension": "repo"}
        return await _check(client, title, must, _by_group, asked)

    return ask


async def _customers(client: httpx.AsyncClient, expected: Expected) -> Check:
    must = _grouped(expected, "insertions", lambda use: str(use.event["clientId"]))
    asked = {**ALL_TIME, "feature": "insertions", "group_by": "customer"}
    return await _check(client, "Lines inserted by each customer", must, _by_group, asked)


async def _months(client: httpx.AsyncClient, expected: Expected) -> Check:
    must = _grouped(expected, "commits", lambda use: month_in(use.event, NEW_YORK))
    asked = {**_MONTH_STARTS, "feature": "commits", "granularity": "month", "zone": NEW_YORK.key}
    return await _check(client, "Commits by month of New York", must, _by_window(NEW_YORK, 7), asked)


async def _days(client: httpx.AsyncClient, expected: Expected) -> Check:
    must = _grouped(expected, "insertions", lambda use: day_in(use.event, KOLKATA))
    asked = {**_MONTH_STARTS, "feature": "insertions", "granularity": "day", "zone": KOLKATA.key}
    return await _check(client, "Lines inserted by day of Kolkata", must, _by_window(KOLKATA, 10), asked)


async def _generations(client: httpx.AsyncClient, expected: Expected) -> Check:
    must = _grouped(
        expected, "total-generations", lambda use: f"{use.event['clientId']} {month_in(use.event, NEW_YORK)}"
    )
    asked = {**_MONTH_STARTS, "feature": "total-generations", "group_by": "customer", "granularity": "month"}

    def named(row: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
        for name, value in _by_window(NEW_YORK, 7)(row):
            yield f"{row['group']['customer']} {name}", value

    title = "Generations by customer and month of New York"
    return await _check(client, title, must, named, {**asked, "zone": NEW_YORK.key}, sources=MIXED)


_Ask = Callable[[httpx.AsyncClient, Expected], Awaitable[Check]]
_Read = Callable[[Mapping[str, Any]], Iterator[tuple[str, Decimal]]]
_CHECKS: Sequence[_Ask] = (
    _features,
    _event_names,
    _by_repository("commits", "Commits by repository"),
    _by_repository("insertions", "Lines inserted by repository"),
    _deletions,
    _generations,
    _months,
    _days,
    _customers,
)


async def _check(
    client: httpx.AsyncClient,
    title: str,
    must: Numbers,
    read: _Read,
    parameters: Mapping[str, str],
    *,
    sources: Sequence[str] = SOURCES,
) -> Check:
    found = {}
    for source in sources:
        answer = await _ask(client, {**parameters, "source": source})
        found[source] = dict(named for row in answer["data"] for named in read(row))
    return Check(title, must, found)


async def _ask(client: httpx.AsyncClient, parameters: Mapping[str, str]) -> Any:
    answer = await client.get("/v1/usage", params=parameters)
    if answer.status_code != httpx.codes.OK:
        raise DemoError(f"GET /v1/usage answered {answer.status_code}: {answer.text}")
    return answer.json()


def _grouped(expected: Expected, feature: str, name: Callable[[Use], str]) -> dict[str, Decimal]:
    """A feature's usage by the name that each use has."""
    declared = expected.feature(feature)
    uses: dict[str, list[Use]] = defaultdict(list)
    for use in expected.uses(declared):
        uses[name(use)].append(use)
    return {group: usage(declared, some)[1] for group, some in uses.items()}


def _with_events(row: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
    name = row["group"]["feature"]
    yield name, Decimal(row["value"])
    yield f"{name}, events", Decimal(row["events"])


def _by_group(row: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
    (name,) = row["group"].values()
    yield name or NO_NAME, Decimal(row["value"])


def _by_window(zone: ZoneInfo, chars: int) -> _Read:
    def read(row: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
        yield datetime.fromisoformat(row["start"]).astimezone(zone).isoformat()[:chars], Decimal(row["value"])

    return read


def _decimals(numbers: Mapping[str, int]) -> dict[str, Decimal]:
    return {name: Decimal(number) for name, number in numbers.items()}


def _text(number: Decimal | None) -> str:
    return "nothing" if number is None else f"{number:,f}"
