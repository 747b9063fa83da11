"""What the demo sends, through which door, and what must come of it.

Rules: plain Python over the input files and nothing else. Nothing is asked of the product here and none of its
packages is imported, so that the numbers have a second, independent origin. Values are Decimal, never float.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import yaml

DATA = Path(__file__).parents[1] / "data"
CATALOG = DATA / "catalog.yaml"
FIRST_FILE = DATA / "commits-1.ndjson.gz"
SECOND_FILE = DATA / "commits-2-resent.ndjson.gz"
NO_NAME = "(no event name)"
BROKEN_LINE = b'{"timestamp":"2026-03-01T00:00:00Z","eventName":"commit","value":1}'  # names no customer

Door = Literal["file", "kable", "kable list", "bulk", "autumn", "kana", "kafka"]
Wire = Mapping[str, Any]  # an event as JSON: clientId, timestamp, transactionId, eventName or featureId, value, data


@dataclass(frozen=True)
class Delivery:
    """Events that go through one door, one after the other with the other deliveries. `path`: the file they are."""

    door: Door
    what: str
    events: Sequence[Wire]
    path: Path | None = None
    broken_lines: Sequence[bytes] = ()


@dataclass(frozen=True)
class Feature:
    """A feature as the catalog's file declares it."""

    id: str
    event_names: frozenset[str] = frozenset()
    aggregation: str = "sum"
    value_key: str | None = None
    unique_key: str | None = None


#: made through Kana's door, so that file and GraphQL both make features
IMAGES = Feature("images")
STUDIO = "studio-1"


@dataclass(frozen=True)
class Plan:
    """All deliveries in their order, and the features that meter them."""

    deliveries: Sequence[Delivery]
    features: Sequence[Feature]


@dataclass(frozen=True)
class Use:
    """What one counted event adds to one feature."""

    event: Wire
    quantity: Decimal
    distinct: str | None


def make_plan() -> Plan:
    """The demo's deliveries. Reads the data files."""
    first, second = read_events(FIRST_FILE), read_events(SECOND_FILE)
    listed, single, bulk, plain = second[:4_000], second[4_000:4_100], second[4_100:8_000], second[8_000:]
    letters = list(_assistant())
    deliveries = [
        Delivery("file", "commits up to 2024, a file", first, path=FIRST_FILE),
        Delivery("kable list", "commits since 2023, in lists", listed),
        Delivery("kable", "commits, one at a time", single),
        Delivery("bulk", "commits, compressed lines", bulk),
        Delivery("kafka", "commits as plain records, and a broken line", plain, broken_lines=[BROKEN_LINE]),
        Delivery("autumn", "a writing assistant, by event name", letters),
        Delivery("autumn", "messages, by feature", list(_messages())),
        Delivery("kana", "images of a studio", list(_images())),
        # the same again, through other doors
        Delivery("autumn", "sent again: 50 of the list, 50 single ones", [*listed[-50:], *single[:50]]),
        Delivery("bulk", "sent again: 500 of the file", first[1_000:1_500]),
        Delivery("kafka", "sent again: 400 of the list", listed[:400]),
        Delivery("kable list", "sent again: 300 of the plain records", plain[-300:]),
        Delivery("kable", "sent again: 20 of the assistant", letters[:20]),
        Delivery("file", "sent again: the second file", second, path=SECOND_FILE),
        # the same id with other content: the first stands
        Delivery("kable", "sent again with another number", [_altered(first)]),
    ]
    return Plan(deliveries, [*read_features(CATALOG), IMAGES])


def _altered(events: Iterable[Wire]) -> Wire:
    """One of the events with other content under the same id."""
    event = next(event for event in events if event["data"].get("insertions", 0) > 1)
    return {**event, "data": {**event["data"], "insertions": 1}}


def read_events(path: Path) -> list[Wire]:
    """The lines of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line, parse_float=Decimal) for line in lines]


def read_features(path: Path) -> list[Feature]:
    """The features of a catalog file."""
    declared = yaml.safe_load(path.read_text())["features"]
    return [
        Feature(
            id=feature["id"],
            event_names=frozenset(feature.get("event_names", ())),
            aggregation=feature.get("aggregation", "sum"),
            value_key=feature.get("value_key"),
            unique_key=feature.get("unique_key"),
        )
        for feature in declared
    ]


def _assistant() -> Iterator[Wire]:
    """Three kinds of generation by three customers over the months in which New York changes its clocks."""
    kinds = ("email_generation", "social_media_generation", "blog_post_generation")
    for number in range(120):
        month = 3 if number % 2 else 11
        yield {
            "clientId": f"user-{123 + number % 3}",
            "timestamp": f"2025-{month:02d}-{1 + number % 28:02d}T{number % 24:02d}:59:59.{number:06d}-05:00",
            "transactionId": f"letter-{number}",
            "eventName": kinds[min(number % 5, 2)],
            "value": 1,
            "data": {"language": ("en", "es", "sv")[number % 3], "words": number * 7},
        }


def _messages() -> Iterator[Wire]:
    """Values that a float cannot add up, and one that gives back."""
    for number, value in enumerate(("0.1", "0.2", "0.7", "3", "-0.3", "12345678.000000001", "2")):
        yield {
            "clientId": "user-123",
            "timestamp": f"2026-02-{number + 1:02d}T00:00:00+05:45",
            "transactionId": f"message-{number}",
            "featureId": "ai-messages",
            "value": Decimal(value),
        }


def _images() -> Iterator[Wire]:
    """This door has neither ids nor times: each call is an event of its own, now."""
    for delta in (5, 1, 1, 12, -2):
        yield {"clientId": STUDIO, "featureId": IMAGES.id, "value": delta}


# ------------------------------------------------------------------------------------------------ what must come of it


@dataclass(frozen=True)
class Expected:
    """What counts once, in the order in which it was sent, and what does not."""

    events: Sequence[Wire]
    sent: int
    duplicates: int
    conflicts: int
    rejected: int
    features: Sequence[Feature]

    def uses(self, feature: Feature) -> list[Use]:
        """What the events add to a feature."""
        return [use for event in self.events if (use := _use(feature, event)) is not None]

    def feature(self, name: str) -> Feature:
        """The feature of this id."""
        return next(feature for feature in self.features if feature.id == name)


def expect(plan: Plan) -> Expected:
    """Counts every id once, the first sighting standing."""
    first: dict[str, str] = {}
    counted: list[Wire] = []
    duplicates = conflicts = 0
    for event in (event for delivery in plan.deliveries for event in delivery.events):
        event_id, content = event.get("transactionId"), json.dumps(event, sort_keys=True, default=str)
        if event_id is None or event_id not in first:
            counted.append(event)
        elif first[event_id] == content:
            duplicates += 1
        else:
            conflicts += 1
        if event_id is not None:
            first.setdefault(event_id, content)
    broken = sum(len(delivery.broken_lines) for delivery in plan.deliveries)
    sent = sum(len(delivery.events) for delivery in plan.deliveries) + broken
    return Expected(counted, sent, duplicates, conflicts, broken, plan.features)


def total(feature: Feature, uses: Iterable[Use]) -> Decimal:
    """A feature's usage from what was added to it."""
    quantities = [use.quantity for use in uses]
    if feature.aggregation == "max":
        return max(quantities)
    return sum(quantities, Decimal(0))


def usage(feature: Feature, uses: Sequence[Use]) -> tuple[int, Decimal]:
    """(events, usage) of a feature."""
    if feature.aggregation == "unique":
        return len(uses), Decimal(len({use.distinct for use in uses}))
    return len(uses), total(feature, uses)


def month_in(event: Wire, zone: ZoneInfo) -> str:
    """The event's local month, such as 2024-03."""
    return datetime.fromisoformat(event["timestamp"]).astimezone(zone).strftime("%Y-%m")


def day_in(event: Wire, zone: ZoneInfo) -> str:
    """The event's local day, such as 2024-03-10."""
    return datetime.fromisoformat(event["timestamp"]).astimezone(zone).strftime("%Y-%m-%d")


def by_name(events: Iterable[Wire]) -> dict[str, Decimal]:
    """The events' values, added up by event name."""
    values: dict[str, Decimal] = defaultdict(Decimal)
    for event in events:
        values[event.get("eventName", NO_NAME)] += event.get("value", 1)
    return dict(values)


def _use(feature: Feature, event: Wire) -> Use | None:
    if "featureId" in event:
        if event["featureId"] != feature.id:
            return None
    elif event.get("eventName") not in feature.event_names:
        return None
    data: Mapping[str, Any] = event.get("data", {})
    if feature.aggregation == "count":
        return Use(event, Decimal(1), None)
    if feature.aggregation == "unique":
        key = data.get(feature.unique_key or "")
        return None if key is None else Use(event, Decimal(1), str(key))
    if feature.value_key is None:
        return Use(event, Decimal(event.get("value", 1)), None)
    return Use(event, Decimal(data[feature.value_key]), None) if feature.value_key in data else None
