"""Mapping: which features and dimensions an event is metered by, as the catalog said at one version.

Rules: pure. A :class:`Mapper` answers for one version and answers the same for ever, so that a block can be rebuilt.
Everything that the event itself does not decide is worked out when the mapper is made; per event remain two
look-ups by name, and a comparison of timestamps only where revisions took effect after 1970.

Quantities. sum, max, min, latest and average take the event's value, or the number at `value_key` in its data; count
takes 1; unique takes 1 and a hash of the value at `unique_key`. Where that key is missing, null or no number, the
feature is not metered by this event. Numbers from data are rounded half to even to 9 digits after the point, the
store's scale (0.30000000000000004 is what floats of many senders look like); with more than 29 digits before the
point they are absent.
Paths. A key of the data's top level that equals the whole path wins over the nested one that its dots spell.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

import msgspec
from xxhash import xxh3_128_intdigest

from pipeline.catalog import Catalog, Dimension, Feature
from pipeline.event import FRACTION_DIGITS_MAX, ONE, WHOLE_DIGITS_MAX


class Meter(msgspec.Struct, frozen=True, gc=False):
    """What an event adds to one revision of a feature. `distinct_hash` is 0 unless the aggregation is unique."""

    feature: str
    rev: int
    quantity: Decimal
    distinct_hash: int = 0


class DimensionValue(msgspec.Struct, frozen=True, gc=False):
    """What an event says for one revision of a dimension: `text` of a string dimension, else `number`."""

    name: str
    rev: int
    text: str
    number: Decimal | None


class Mapper:
    """The mapping of all accounts at one catalog version. Immutable; safe to share between threads."""

    __slots__ = ("_accounts", "version")

    def __init__(self, version: int, accounts: "dict[str, _AccountRules]") -> None:
        self.version = version
        self._accounts = accounts

    def known_account(self, account: str) -> bool:
        """Whether the account exists at this version."""
        rules = self._accounts.get(account)
        return rules is not None and rules.known

    def wanted(self, accounts: Iterable[str]) -> tuple[str, ...]:
        """Keys of the data's top level that the answers for these accounts' events may need."""
        found = [self._accounts[name].keys for name in accounts if name in self._accounts]
        return tuple(sorted(frozenset().union(*found)))

    def route(self, account: str, event_name: str | None, feature_id: str | None) -> "Route | None":
        """What such events lead to over time."""
        rules = self._accounts.get(account)
        return None if rules is None else rules.route(event_name, feature_id)

    def dimension_timeline(self, account: str) -> "DimensionTimeline | None":
        """The account's dimensions over time."""
        rules = self._accounts.get(account)
        return None if rules is None else rules.dimensions

    def meters(  # noqa: PLR0917 - called per event; keywords cost time
        self,
        account: str,
        event_name: str | None,
        feature_id: str | None,
        timestamp_us: int,
        value: Decimal,
        data: dict[str, Any] | None,
    ) -> tuple[Meter, ...]:
        """What the event adds to which features, by feature id. `data` holds ints and Decimals, never floats."""
        rules = self._accounts.get(account)
        if rules is None:
            return ()
        route = rules.by_event.get(event_name) if feature_id is None else rules.by_feature.get(feature_id)
        if route is None:
            return ()
        choice = route.latest if timestamp_us >= route.latest_from_us else route.choice(timestamp_us)
        if choice.constant is not None:
            return choice.constant
        if choice.plain is not None:
            return tuple([Meter(feature, rev, value) for feature, rev in choice.plain])
        found = [measure(rule, value, data) for rule in choice.rules]
        return tuple([meter for meter in found if meter is not None])

    def dimensions(self, account: str, timestamp_us: int, data: dict[str, Any] | None) -> tuple[DimensionValue, ...]:
        """The declared keys that the data has, with values of the declared type, by name."""
        rules = self._accounts.get(account)
        if rules is None or not data:
            return ()
        timeline = rules.dimensions
        if timeline is None:
            return ()
        found = []
        for name, rev, is_text, path in timeline.at(timestamp_us):
            given = data.get(name) if path is None else path.of(data)
            if is_text:
                if type(given) is str:
                    found.append(DimensionValue(name, rev, given, None))
            elif given is not None and (number := stored_number(given)) is not None:
                found.append(DimensionValue(name, rev, "", number))
        return tuple(found)


class Mappers:
    """The mappers of one catalog, by version. Makes one when first asked for; keeps the last few.

    Call it in the thread that applies records to the catalog; the mappers it returns may go anywhere.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._made: OrderedDict[int, Mapper] = OrderedDict()
        self._rules: dict[str, _AccountRules] = {}

    def at(self, version: int) -> Mapper:
        """The mapper for a version; the same answers whenever it is asked for.

        `version` of the mapper is the last one up to there that changed any mapping. Raises ValueError for a version
        that the catalog has not read yet.
        """
        version = self._catalog.mapping_version(version)
        mapper = self._made.get(version)
        if mapper is None:
            accounts = {name: self._rules_of(name, version) for name in self._catalog.mapped_accounts()}
            self._rules = accounts
            mapper = self._made[version] = Mapper(version, accounts)
            if len(self._made) > _MAPPERS_KEPT_MAX:
                self._made.popitem(last=False)
        self._made.move_to_end(version)
        return mapper

    def _rules_of(self, account: str, version: int) -> "_AccountRules":
        """Rules of one account; those of the mapper made last serve again where nothing changed between the two."""
        of_account = self._catalog.mapping_version_of(account, version)
        last = self._rules.get(account)
        if last is not None and last.version == of_account:
            return last
        return _AccountRules(self._catalog, account, of_account)


def distinct_hash(given: object) -> int:
    """128-bit name of a JSON value: equal for equal values, whatever their spelling; never 0.

    The string "1" and the number 1 are two values, 1 and 1.0 are one. Stable over processes and versions.
    """
    return xxh3_128_intdigest(_canonical(given)) or 1


def stored_number(given: object) -> Decimal | None:
    """The number as the store's Decimal(38, 9) holds it, or None when it is no number or too large.

    Raises TypeError on a float: data must be decoded with exact numbers.
    """
    if type(given) is int:
        small = _SMALL.get(given)
        if small is not None:
            return small
        return Decimal(given) if -_WHOLE_LIMIT < given < _WHOLE_LIMIT else None
    if type(given) is not Decimal:
        if type(given) is float:
            raise TypeError("data was decoded with floats; numbers must come as int or Decimal")
        return None
    if not given.is_finite() or given.adjusted() >= WHOLE_DIGITS_MAX:
        return None if given else _ZERO  # zero, whatever its exponent, is a number
    return _rounded(given)


# ------------------------------------------------------------------------------------------------ private

_MAPPERS_KEPT_MAX: Final = 8  # blocks under way refer to the present version and a few before it
_ZERO: Final = Decimal(0)
_SMALL: Final = {n: Decimal(n) for n in range(1024)}  # most numbers; sharing them spares the making
_LAST_DIGIT: Final = Decimal(1).scaleb(-FRACTION_DIGITS_MAX)
_WHOLE_LIMIT: Final = 10**WHOLE_DIGITS_MAX
# Precision holds 29 + 9 digits and one that rounding may add; the default of 28 would raise or round away.
_ROUNDING: Final = Context(
    prec=64, rounding=ROUND_HALF_EVEN, Emax=999_999_999_999_999_999, Emin=-999_999_999_999_999_999
)


def _rounded(number: Decimal) -> Decimal | None:
    """At most 9 digits after the point; None when rounding makes the number too large."""
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= -FRACTION_DIGITS_MAX:
        return number
    if number.adjusted() < -FRACTION_DIGITS_MAX - 1:
        return _ZERO  # far below the last digit, also where its exponent is beyond any context
    rounded = _ROUNDING.quantize(number, _LAST_DIGIT)
    return rounded if -_WHOLE_LIMIT < rounded < _WHOLE_LIMIT else None


class Path:
    """A dotted path into the data."""

    __slots__ = ("key", "steps")

    def __init__(self, key: str) -> None:
        self.key = key
        self.steps = tuple(key.split(".")) if "." in key else ()

    def of(self, data: dict[str, Any]) -> Any:
        """The value there; None when there is none."""
        key = self.key
        if key in data:
            return data[key]
        if not self.steps:
            return None
        given: Any = data
        for step in self.steps:
            if type(given) is not dict:
                return None
            given = given.get(step)
        return given


class _Condition:
    """One entry of a filter. Sets by type, since Python takes True for 1."""

    __slots__ = ("flags", "numbers", "path", "texts")

    def __init__(self, path: str, allowed: tuple[str | int | bool, ...]) -> None:
        self.path = Path(path)
        self.texts = frozenset(a for a in allowed if type(a) is str)
        self.flags = frozenset(a for a in allowed if type(a) is bool)
        self.numbers = frozenset(a for a in allowed if type(a) is int)

    def holds(self, data: dict[str, Any]) -> bool:
        given = self.path.of(data)
        kind = type(given)
        if kind is str:
            return given in self.texts
        if kind is bool:
            return given in self.flags
        return (kind is int or kind is Decimal) and given in self.numbers


class Rule:
    """One revision of a feature, ready to measure with."""

    __slots__ = ("conditions", "constant", "feature", "needs_data", "rev", "unique", "value")

    def __init__(self, feature: Feature) -> None:
        self.feature = feature.id
        self.rev = feature.rev
        self.conditions = tuple(_Condition(path, allowed) for path, allowed in sorted(feature.filter.items()))
        takes_value = feature.aggregation not in ("count", "unique")
        self.value = Path(feature.value_key) if takes_value and feature.value_key is not None else None
        self.unique = Path(feature.unique_key or "") if feature.aggregation == "unique" else None
        self.constant = Meter(feature.id, feature.rev, ONE) if feature.aggregation == "count" else None
        self.needs_data = bool(self.conditions or self.value or self.unique)


# name, rev, whether it is text, and the path where the name is one: a tuple, since it is unpacked per event
DimensionRule = tuple[str, int, bool, Path | None]


def _dimension_rule(dimension: Dimension) -> DimensionRule:
    path = Path(dimension.key) if "." in dimension.key else None
    return dimension.key, dimension.rev, dimension.type == "string", path


def measure(rule: Rule, value: Decimal, data: dict[str, Any] | None) -> Meter | None:
    """What an event with this value and data adds under the rule."""
    if rule.needs_data:
        if data is None:
            return None
        for condition in rule.conditions:
            if not condition.holds(data):
                return None
    if rule.constant is not None:
        return rule.constant
    if rule.unique is not None and data is not None:
        given = rule.unique.of(data)
        return None if given is None else Meter(rule.feature, rule.rev, ONE, distinct_hash(given))
    if rule.value is not None and data is not None:
        number = stored_number(rule.value.of(data))
        return None if number is None else Meter(rule.feature, rule.rev, number)
    return Meter(rule.feature, rule.rev, value)


class _Choice:
    """The rules that hold for one stretch of time, with short cuts for what most events need."""

    __slots__ = ("constant", "plain", "rules")

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.constant: tuple[Meter, ...] | None = None
        self.plain: tuple[tuple[str, int], ...] | None = None
        if any(rule.needs_data for rule in rules):
            return
        constants = tuple(rule.constant for rule in rules if rule.constant is not None)
        if len(constants) == len(rules):
            self.constant = constants
        elif not constants:
            self.plain = tuple((rule.feature, rule.rev) for rule in rules)


class _Timeline:
    """Which revision of one object holds when: `starts` ascend, `held[i]` holds from starts[i] to the next."""

    __slots__ = ("held", "starts")

    def __init__(self, revisions: Sequence[Feature] | Sequence[Dimension]) -> None:
        by_start: dict[int, Any] = {r.effective_from_us: r for r in revisions}  # they ascend by rev: the last one stays
        self.starts = sorted(by_start)
        self.held = [by_start[start] for start in self.starts]

    def at(self, timestamp_us: int) -> Any:
        index = bisect_right(self.starts, timestamp_us)
        return self.held[index - 1] if index else None


class Route:
    """What one event name, or one feature id, leads to over time."""

    __slots__ = ("_event_name", "_made", "_rules", "_timelines", "latest", "latest_from_us", "starts")

    def __init__(self, event_name: str | None, timelines: list[_Timeline], rules: dict[int, Rule]) -> None:
        self._event_name = event_name
        self._timelines = timelines
        self._rules = rules
        self.starts = sorted({start for timeline in timelines for start in timeline.starts})
        self._made: dict[int, _Choice] = {}
        self.latest_from_us = self.starts[-1]
        self.latest = self.choice(self.latest_from_us)

    def choice(self, timestamp_us: int) -> _Choice:
        """What holds at an instant; made at most once per stretch between two revisions."""
        stretch = bisect_right(self.starts, timestamp_us)
        choice = self._made.get(stretch)
        if choice is None:
            held = (timeline.at(timestamp_us) for timeline in self._timelines)
            rules = tuple(self._rules[f.rev] for f in held if f is not None and self._takes(f))
            choice = self._made[stretch] = _Choice(rules)
        return choice

    def _takes(self, feature: Feature) -> bool:
        return not feature.archived and (self._event_name is None or self._event_name in feature.event_names)


class DimensionTimeline:
    """The dimensions that hold at an instant."""

    __slots__ = ("_latest", "_latest_from_us", "_made", "_timelines", "starts")

    def __init__(self, timelines: list[_Timeline]) -> None:
        self._timelines = timelines
        self.starts = sorted({start for timeline in timelines for start in timeline.starts})
        self._made: dict[int, tuple[DimensionRule, ...]] = {}
        self._latest_from_us = self.starts[-1]
        self._latest = self._choice(self._latest_from_us)

    def at(self, timestamp_us: int) -> tuple[DimensionRule, ...]:
        return self._latest if timestamp_us >= self._latest_from_us else self._choice(timestamp_us)

    def _choice(self, timestamp_us: int) -> tuple[DimensionRule, ...]:
        stretch = bisect_right(self.starts, timestamp_us)
        rules = self._made.get(stretch)
        if rules is None:
            held = (timeline.at(timestamp_us) for timeline in self._timelines)
            rules = tuple(_dimension_rule(d) for d in held if d is not None and not d.archived)
            self._made[stretch] = rules
        return rules


class _AccountRules:
    """The mapping of one account at one version."""

    __slots__ = ("by_event", "by_feature", "dimensions", "keys", "known", "version")

    def __init__(self, catalog: Catalog, account: str, version: int) -> None:
        self.version = version
        self.known = catalog.account(account, version) is not None
        features = sorted(catalog.features_at(account, version).items())
        rules = {revision.rev: Rule(revision) for _, revisions in features for revision in revisions}
        timelines = {name: _Timeline(revisions) for name, revisions in features}
        self.by_feature = {name: Route(None, [timeline], rules) for name, timeline in timelines.items()}
        feeding: dict[str | None, list[_Timeline]] = {}
        for name, revisions in features:
            for event_name in sorted({e for revision in revisions for e in revision.event_names}):
                feeding.setdefault(event_name, []).append(timelines[name])
        self.by_event = {name: Route(name, fed, rules) for name, fed in feeding.items()}
        declared = [_Timeline(revisions) for _, revisions in sorted(catalog.dimensions_at(account, version).items())]
        self.dimensions = DimensionTimeline(declared) if declared else None
        values = [rule.value for rule in rules.values() if rule.value is not None]
        names = {d.key for timeline in declared for d in timeline.held}
        self.keys = frozenset({path.key for path in values if not path.steps} | {n for n in names if "." not in n})

    def route(self, event_name: str | None, feature_id: str | None) -> Route | None:
        return self.by_event.get(event_name) if feature_id is None else self.by_feature.get(feature_id)


def _canonical(given: object) -> bytes:
    """A tag for the type, then the value; lists and objects with the length of each part before it."""
    match given:
        case None:
            return b"0"
        case bool():
            return b"t" if given else b"f"
        case str():
            return b"s" + given.encode("utf-8", "surrogatepass")
        case int() | Decimal():
            return b"n" + _canonical_number(Decimal(given))
        case list():
            return b"l" + b"".join(_measured(_canonical(part)) for part in given)
        case dict():
            pairs = sorted((name.encode("utf-8", "surrogatepass"), part) for name, part in given.items())
            return b"o" + b"".join(_measured(name) + _measured(_canonical(part)) for name, part in pairs)
    raise TypeError(f"{type(given).__name__} is no JSON value with exact numbers")


def _measured(part: bytes) -> bytes:
    return len(part).to_bytes(4, "little") + part


def _canonical_number(number: Decimal) -> bytes:
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits))
    stripped = text.rstrip("0")
    if not stripped:
        return b"0"
    return f"{'-' if sign else ''}{stripped}e{int(exponent) + len(text) - len(stripped)}".encode()
