"""The events that everything in `make bench` counts, and what they must come to by plain Python.

Events of about 250 bytes, 5 % of them sent twice, one name that feeds two features, three declared dimensions. They
come as live ones do: in the order of their timestamps but for half a minute, of customers of whom a few send most
(Zipf, 1.1), over a midnight in the midst of a month; `month_end` has them come over the end of one, where rollups keep
more (one hour in 28), and `days` scatters them over so many days before, as a backfill does. The same seed gives the
same events, and a shorter list is the beginning of a longer one: a slow competitor gets the first part of what a fast
one gets.
"""

import random
import uuid
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Final

ACCOUNT: Final = "default"
EVENT_NAME: Final = "generation"
DUPLICATES: Final = 0.05
CUSTOMERS: Final = 20_000
CATALOG: Final = """\
features:
  - id: generations
    name: Generations
    event_names: [generation]
  - id: tokens
    name: Tokens
    event_names: [generation]
    value_key: tokens
dimensions:
  - {key: region, type: string}
  - {key: model, type: string}
  - {key: status, type: string}
"""
"""`generations` adds up the events' values, `tokens` a number of their data."""

_MIDNIGHT: Final = datetime(2026, 10, 15, tzinfo=UTC)
_FIRST_S: Final = int(_MIDNIGHT.timestamp()) - 15
_MONTH_END_S: Final = int(datetime(2026, 10, 31, 23, 59, 45, tzinfo=UTC).timestamp())
_PER_S: Final = 10_000  # events in a second of their timestamps
_LATE_S: Final = 30.0
_ZIPF: Final = list(accumulate(1 / rank**1.1 for rank in range(1, CUSTOMERS + 1)))
_REGIONS: Final = ("eu-central-1", "us-east-1", "ap-south-1", "sa-east-1")
_MODELS: Final = ("large-2026", "small-2026", "draft")
_STATUSES: Final = ("ok", "ok", "ok", "retried", "failed")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a list of events must come to: events sent, distinct ids, and the sum of each feature over those ids."""

    events: int
    ids: int
    sums: dict[str, int]


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is sent. `tokens` and `value` are what the features add up; `again`: its id came before."""

    transaction_id: str
    line: bytes
    value: int
    tokens: int
    again: bool = False


def events(
    number: int, seed: int = 1, *, duplicates: float = DUPLICATES, days: int = 0, month_end: bool = False
) -> Iterator[Event]:
    """That many events in the order in which they are sent. A repetition is equal to the byte."""
    draw = random.Random(seed)
    first_s = _MONTH_END_S if month_end else _FIRST_S
    sent: list[Event] = []
    for position in range(number):
        if sent and draw.random() < duplicates:
            first = draw.choice(sent)
            yield Event(first.transaction_id, first.line, first.value, first.tokens, again=True)
        else:
            after_s = -draw.random() * days * 86_400 if days else position / _PER_S + draw.random() * _LATE_S
            sent.append(_event(draw, first_s, after_s))
            yield sent[-1]


def moment(after_s: float) -> datetime:
    """So long after the midnight that the events come over: what else happens then is of their month."""
    return _MIDNIGHT + timedelta(seconds=after_s)


def expected(sent: Sequence[Event]) -> Expected:
    """Plain counting: a dictionary of the ids, nothing of the pipeline's code."""
    first = {}
    for event in sent:
        first.setdefault(event.transaction_id, event)
    sums = {
        "generations": sum(event.value for event in first.values()),
        "tokens": sum(event.tokens for event in first.values()),
    }
    return Expected(len(sent), len(first), sums)


def envelopes(lines: Sequence[bytes], size: int) -> list[bytes]:
    """Values of Kafka records with `size` lines each; the last one may have fewer."""
    return list(lines) if size == 1 else [b"\n".join(lines[i : i + size]) for i in range(0, len(lines), size)]


def _event(draw: random.Random, first_s: int, after_s: float) -> Event:
    transaction_id = str(uuid.UUID(int=draw.getrandbits(128)))
    ms = int(after_s * 1000)
    customer = bisect(_ZIPF, draw.random() * _ZIPF[-1])
    when = datetime.fromtimestamp(first_s + ms // 1000, UTC)
    value, tokens = 1 + int(draw.random() * 9), int(draw.random() * 100_000)
    timestamp = f"{when:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
    line = (
        f'{{"clientId":"customer-{customer}","timestamp":"{timestamp}",'
        f'"transactionId":"{transaction_id}","eventName":"{EVENT_NAME}","value":{value},'
        f'"data":{{"region":"{draw.choice(_REGIONS)}","model":"{draw.choice(_MODELS)}",'
        f'"status":"{draw.choice(_STATUSES)}","stream":true,"tokens":{tokens}}}}}'
    )
    return Event(transaction_id, line.encode(), value, tokens)
