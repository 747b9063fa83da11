"""What the harness sends: a seeded plan of batches, and what each event says.

Everything is a function of the seed: the load sends the plan, the oracle makes it again and looks up in the journal
what of it was acknowledged. Nothing of the product is imported; the hash that names an id's partition is its public
rule (xxh3_128 over length-prefixed account and id, modulo the partitions).

An event is known by its number n, which it carries in its data, and by its variant: PLAIN; SPELLED says the same with
other bytes; RAISED and MOVED say something else under the same id (a conflict), MOVED several hours later.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from struct import Struct as Packing
from typing import Any, Final, Literal

from xxhash import xxh3_128_intdigest

PLAIN, SPELLED, RAISED, MOVED = range(4)
Door = Literal["kafka", "bulk", "kable", "autumn"]
Item = tuple[int, int]  # number, variant

_BASE: Final = datetime(2025, 8, 1, tzinfo=UTC)
_BASE_US: Final = int(_BASE.timestamp()) * 1_000_000
_SPAN_MS: Final = 92 * 86_400_000  # three whole months
_NAMES: Final = ("call", "mail", "chat", "blob", "")
_MASK: Final = (1 << 64) - 1
_EAST: Final = timezone(timedelta(hours=5, minutes=45))
_length = Packing("<I").pack

CATALOG: Final = """\
features:
  - {id: use-sum, name: Sum, event_names: [call, mail]}
  - {id: use-count, name: Count, event_names: [call, chat], aggregation: count}
  - {id: use-max, name: Max, event_names: [call, blob], aggregation: max, value_key: latency}
  - {id: use-min, name: Min, event_names: [mail], aggregation: min}
  - {id: use-latest, name: Latest, event_names: [chat], aggregation: latest}
  - {id: use-average, name: Average, event_names: [blob], aggregation: average, value_key: latency}
  - {id: use-unique, name: Unique, event_names: [call, mail, chat], aggregation: unique, unique_key: user}
  - {id: use-filtered, name: Filtered, event_names: [call, mail], filter: {repo: [r1, r2]}}
dimensions:
  - {key: repo, type: string}
  - {key: tier, type: string}
  - {key: latency, type: number}
"""


@dataclass(frozen=True, slots=True)
class Content:
    """What an event says, apart from its id. `timestamp_us` is UTC; `value` and `latency` in billionths."""

    client: str
    entity: str
    timestamp_us: int
    name: str
    value: int
    repo: str
    tier: str
    latency: int | None
    user: str

    @property
    def meters(self) -> Iterator[tuple[str, int, int]]:
        """Feature, quantity in billionths and hash of a counted value, as the catalog above says."""
        if self.name in ("call", "mail"):
            yield "use-sum", self.value, 0
            if self.repo in ("r1", "r2"):
                yield "use-filtered", self.value, 0
        if self.name in ("call", "chat"):
            yield "use-count", 1_000_000_000, 0
        if self.name in ("call", "blob") and self.latency is not None:
            yield "use-max", self.latency, 0
            if self.name == "blob":
                yield "use-average", self.latency, 0
        if self.name == "mail":
            yield "use-min", self.value, 0
        if self.name == "chat":
            yield "use-latest", self.value, 0
        if self.name in ("call", "mail", "chat"):
            yield "use-unique", 1_000_000_000, xxh3_128_intdigest(b"s" + self.user.encode())


@dataclass(slots=True)
class Batch:
    """What is sent at once: one Kafka record, or one request. `partition`: where a record goes; `bad`: lines that are
    no events; `anonymous`: the events carry no id."""

    number: int
    door: Door
    items: list[Item]
    partition: int = 0
    bad: list[bytes] = field(default_factory=list)
    anonymous: bool = False
    timeless: bool = False


def identity(seed: int, n: int) -> str:
    """The transactionId of event n."""
    return f"{seed}-{n}"


def home(account: str, transaction_id: str, partitions: int) -> int:
    """The partition that an id belongs to."""
    a, t = account.encode(), transaction_id.encode()
    return xxh3_128_intdigest(_length(len(a)) + a + _length(len(t)) + t) % partitions


def content(seed: int, n: int, variant: int = PLAIN) -> Content:
    """What event n says in a variant."""
    h = _mix(seed << 32 ^ n)
    g = _mix(h)
    kind = g & 7
    value = 1_000_000_000 if kind < 2 else (g >> 8) % 1000 * 1_000_000_000
    if kind > 5:
        value = ((g >> 8) % 2_000_000 - 500_000) * 1_000_000  # three digits after the point, also negative
    timestamp_us = _BASE_US + (h >> 20) % _SPAN_MS * 1000 + n % 1000
    return Content(
        client=f"c{h % 41}",
        entity="" if h >> 8 & 3 else "seat",
        timestamp_us=timestamp_us + (5 * 3_600_000_000 if variant == MOVED else 0),
        name=_NAMES[(h >> 12) % 5],
        value=value + (1_000_000_000 if variant == RAISED else 0),
        repo=f"r{g >> 32 & 7}",
        tier="" if g >> 36 & 1 else ("gold", "tin")[g >> 37 & 1],
        latency=None if not g >> 38 & 3 else (g >> 40) % 100_000 * 125_000,
        user=f"u{h >> 56 & 63}",
    )


def line(seed: int, item: Item, *, anonymous: bool = False) -> bytes:
    """The event as a line of JSON."""
    n, variant = item
    c = content(seed, n, variant)
    latency = "" if c.latency is None else f',"latency":{_number(c.latency)}'
    tier = f',"tier":"{c.tier}"' if c.tier else ""
    data = f'{{"n":{n},"repo":"{c.repo}","user":"{c.user}"{tier}{latency}}}'
    named = "" if anonymous else f'"transactionId":"{identity(seed, n)}",'
    entity = f'"entityId":"{c.entity}",' if c.entity else ""
    name = f'"eventName":"{c.name}",' if c.name else ""
    if variant == SPELLED:
        data = f'{{{data[1:-1].split(",", 1)[1]}, "n": {n}}}'
        instant = (_BASE + timedelta(microseconds=c.timestamp_us - _BASE_US)).astimezone(_EAST).isoformat()
        rest = f'"data": {data}, "timestamp": "{instant}", "clientId": "{c.client}"'
        return f'{{{name} "value": "{_number(c.value)}e0", {entity} {named} {rest}}}'.encode()
    value = "" if c.value == 1_000_000_000 else f'"value":{_number(c.value)},'
    head = f'"clientId":"{c.client}","timestamp":"{instant_of(c.timestamp_us)}"'
    return f'{{{head},{named}{name}{entity}{value}"data":{data}}}'.encode()


def autumn(seed: int, item: Item, *, anonymous: bool, timeless: bool) -> bytes:
    """The event in Autumn's dialect; `timeless` leaves the timestamp to the door."""
    event: dict[str, Any] = json.loads(line(seed, item, anonymous=anonymous), parse_float=Decimal)
    names = {"clientId": "customer_id", "eventName": "event_name", "transactionId": "idempotency_key"}
    names |= {"data": "properties", "entityId": "entity_id"}
    fields = {names.get(name, name): value for name, value in event.items() if not (timeless and name == "timestamp")}
    return _json(fields).encode()


def instant_of(us: int) -> str:
    """RFC 3339 in UTC."""
    day, rest = divmod(us, 86_400_000_000)
    seconds, micros = divmod(rest, 1_000_000)
    return f"{_day(day)}T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{micros:06d}Z"


def plan(seed: int, account: str, events: int, partitions: int) -> list[Batch]:
    """Batches with `events` different events or a few more, and their repetitions, in the order of their sending.

    Most go to Kafka in envelopes of up to 1,000 lines, each with the ids of one partition; the rest through the doors,
    or misplaced, without ids, with bad lines.
    """
    return _Planner(seed, account, events, partitions).batches()


class _Planner:
    def __init__(self, seed: int, account: str, events: int, partitions: int) -> None:
        self._draw = random.Random(seed)
        self._seed = seed
        self._account = account
        self._events = events
        self._partitions = partitions
        self._next = 0
        self._sent: list[list[int]] = [[] for _ in range(partitions)]
        self._batches: list[Batch] = []

    def batches(self) -> list[Batch]:
        """The whole plan."""
        draw = self._draw
        small = max(4, min(60, self._events // 300))  # requests of one event, whatever the size of the plan
        while self._next < self._events:
            kind = draw.random()
            if kind < 0.80:
                self._envelopes(draw.choice((1, 20, 300, 1000, 1000, 1000)))
            elif kind < 0.90:
                self._list("bulk", draw.choice((10, 200, 1000)))
            elif kind < 0.94:
                self._list("kable", draw.choice((1, 20, 100)))
            elif kind < 0.96:
                self._misplaced(draw.choice((1, 20, 60)))
            elif kind < 0.98:
                self._anonymous(draw.choice((1, 5, 50)))
            else:
                self._bad()
        for number in range(small):
            self._single(("autumn", "kable", "autumn", "kafka")[number % 4], number)
        self._envelopes(20)
        self._list("bulk", 30)
        self._list("kable", 5)
        self._misplaced(20)
        self._anonymous(5)
        self._bad()
        draw.shuffle(self._batches)  # repetitions may now come before what they repeat: that is the same event
        for number, batch in enumerate(self._batches):
            batch.number = number
        return self._batches

    def _fresh(self, size: int) -> list[int]:
        found = list(range(self._next, self._next + size))
        self._next += size
        for n in found:
            self._sent[self._home(n)].append(n)
        return found

    def _home(self, n: int) -> int:
        return home(self._account, identity(self._seed, n), self._partitions)

    def _repeats(self, size: int, where: int | None = None) -> list[Item]:
        """Events sent before, of one partition or any: most the same, some with other content."""
        draw = self._draw
        sent = self._sent[draw.randrange(self._partitions) if where is None else where]
        if not sent:
            return []
        variants = (PLAIN, PLAIN, PLAIN, SPELLED, SPELLED, RAISED, MOVED)
        return [(draw.choice(sent), draw.choice(variants)) for _ in range(size)]

    def _mixed(self, fresh: list[int], where: int | None = None) -> list[Item]:
        items: list[Item] = [(n, PLAIN) for n in fresh]
        if self._draw.random() < 0.5 or len(items) < 10:
            items += self._repeats(1 + len(items) // 25, where)
            self._draw.shuffle(items)
        return items

    def _envelopes(self, size: int) -> None:
        by_home: dict[int, list[int]] = {}
        for n in self._fresh(size * self._partitions):
            by_home.setdefault(self._home(n), []).append(n)
        for partition, numbers in by_home.items():
            for start in range(0, len(numbers), 980):
                items = self._mixed(numbers[start : start + 980], partition)[:1000]
                self._batches.append(Batch(0, "kafka", items, partition))

    def _list(self, door: Door, size: int) -> None:
        self._batches.append(Batch(0, door, self._mixed(self._fresh(size))))
        if self._draw.random() < 0.3:
            self._batches[-1].bad.append(b'{"clientId":"","timestamp":"2025-08-01T00:00:00Z"}')

    def _misplaced(self, size: int) -> None:
        items = self._mixed(self._fresh(size))
        self._batches.append(Batch(0, "kafka", items, self._draw.randrange(self._partitions)))

    def _anonymous(self, size: int) -> None:
        start, self._next = self._next, self._next + size
        items = [(n, PLAIN) for n in range(start, start + size)]
        self._batches.append(Batch(0, "kafka", items, self._draw.randrange(self._partitions), anonymous=True))

    def _bad(self) -> None:
        draw = self._draw
        lines = [f'{{"clientId":"c{draw.randrange(9)}","bad":{draw.getrandbits(60)}}}'.encode() for _ in range(3)]
        items = self._mixed(self._fresh(1))
        bad = draw.sample([*lines, b"no json", b'{"clientId":"c1"}', b"\xff\xfe"], draw.randrange(1, 6))
        self._batches.append(Batch(0, "kafka", items, draw.randrange(self._partitions), bad))

    def _single(self, door: Door, number: int) -> None:
        anonymous = number % 5 == 0
        items: list[Item] = []
        while not items or (door == "autumn" and not content(self._seed, items[0][0]).name):
            if anonymous:
                items = [(self._next, PLAIN)]
                self._next += 1
            else:
                items = [(n, PLAIN) for n in self._fresh(1)]
        timeless = door == "autumn" and number % 3 == 0
        where = self._draw.randrange(self._partitions)
        self._batches.append(Batch(0, door, items, where, anonymous=anonymous, timeless=timeless))
        if not anonymous:
            self._batches.append(Batch(0, door, items, where, timeless=timeless))  # the client's own retry


def _mix(x: int) -> int:
    """splitmix64: scattered bits of a number."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


_days: dict[int, str] = {}


def _day(day: int) -> str:
    if day not in _days:
        _days[day] = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")
    return _days[day]


def _number(billionths: int) -> str:
    sign, digits = ("-" if billionths < 0 else ""), f"{abs(billionths):010d}"
    return f"{sign}{digits[:-9]}.{digits[-9:]}".rstrip("0").rstrip(".")


def _json(given: Any) -> str:
    """JSON with decimals spelled as they are."""
    if isinstance(given, Mapping):
        return "{" + ",".join(f"{json.dumps(name)}:{_json(part)}" for name, part in given.items()) + "}"
    return str(given) if isinstance(given, Decimal) else json.dumps(given)
