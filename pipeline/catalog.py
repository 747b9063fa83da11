"""The catalog: accounts, API keys, customers, features and dimensions, as values read from a log of records.

Rules: values in, values out; nothing here reads a clock, a file, the network or randomness. The catalog is a
function of the log alone: its version is the offset of the last record read, and every process that has read that
far gives the same answers. A record that no rule fits is skipped and reported, never fatal, so that one stray write
to the topic cannot stop all workers; skipping too is a function of the log alone.

Records. The key is a JSON array, the value the JSON of the struct.
Revisioned: ["account", id, unique], ["feature", account, id, unique], ["dimension", account, key, unique]. `unique`
makes each key appear once, so that compaction keeps every revision; `rev` is the record's offset.
Latest only: ["customer", account, id], ["key", hash] and ["seen", account, id], a customer that a door met before
anyone described it: it never replaces what ["customer", ...] says, in whatever order the two were written.
A null value removes a latest-only record and is refused for the others, which have `archived`.

Time. The revision that holds for an event is the one, among those with rev <= version, with the largest
`effective_from_us` <= the event's timestamp (ties: the largest rev). The *head* is the one that holds in the end:
largest (effective_from_us, rev).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, TypeVar

import msgspec

Mode = Literal["live", "test"]
Scope = Literal["ingest", "read", "admin"]
FeatureType = Literal["BINARY", "CONSUMABLE"]
Aggregation = Literal["sum", "count", "max", "min", "latest", "unique", "average"]
DimensionType = Literal["string", "number"]

EMPTY_VERSION: Final = -1
TEST_SUFFIX: Final = ":test"
_SKIPPED_KEPT_MAX: Final = 100  # enough to find the cause; the count goes on


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant. Test mode is an account of its own, named like the live one with `:test` behind.

    `segment`: where the door for Segment finds a field of the event in a message, by a dotted path; test mode reads the
    live account's.
    """

    id: str
    name: str
    mode: Mode
    segment: dict[str, str] = {}
    rev: int = EMPTY_VERSION


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its secret. `hash`: SHA-256 of the secret in hex. `hint`: the secret's last 4 characters.

    `expires_us`: until when it is good, set when it was rotated. `events_per_s`, `burst`: the key's own limit in each
    process of the API; None: the default; 0 events per second: none.
    """

    hash: str
    account: str
    name: str
    scopes: tuple[Scope, ...]
    hint: str
    created_us: int
    revoked_us: int | None = None
    expires_us: int | None = None
    events_per_s: int | None = None
    burst: int | None = None
    rev: int = EMPTY_VERSION


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """Someone who uses the account's product; `id` is the events' clientId."""

    account: str
    id: str
    name: str = ""
    email: str = ""
    metadata: dict[str, Any] = {}
    created_us: int = 0
    rev: int = EMPTY_VERSION


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of something metered. `filter`: path in the event's data -> values of which it must have one."""

    account: str
    id: str
    name: str
    type: FeatureType = "CONSUMABLE"
    unit_label: str = ""
    unit_label_plural: str = ""
    metadata: dict[str, Any] = {}
    event_names: tuple[str, ...] = ()
    aggregation: Aggregation = "sum"
    value_key: str | None = None
    unique_key: str | None = None
    filter: dict[str, tuple[str | int | bool, ...]] = {}
    effective_from_us: int = 0
    archived: bool = False
    rev: int = EMPTY_VERSION


class Dimension(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of a declared key (dotted path) of `data`: string ones are grouped by, number ones summed."""

    account: str
    key: str
    type: DimensionType
    effective_from_us: int = 0
    archived: bool = False
    rev: int = EMPTY_VERSION


Definition = Account | Key | Customer | Feature | Dimension
_R = TypeVar("_R", Feature, Dimension)
_L = TypeVar("_L", Key, Customer)


def test_mode_account(account_id: str) -> str:
    """The account in which test mode of a live account happens. No live account has a colon in its id."""
    return f"{account_id}{TEST_SUFFIX}"


def holding(revisions: Iterable[_R], timestamp_us: int) -> _R | None:
    """The revision that holds at an instant; None before the first."""
    held = [revision for revision in revisions if revision.effective_from_us <= timestamp_us]
    return _head(held) if held else None


class Removed(msgspec.Struct, frozen=True):
    """The customer or API key of this id (a key's: its hash) was removed by the record at `rev`."""

    kind: Literal["customer", "key"]
    account: str
    id: str
    rev: int


class Applied(msgspec.Struct, frozen=True):
    """The record at `offset` is part of the catalog now."""

    offset: int


class Skipped(msgspec.Struct, frozen=True):
    """The record at `offset` is no record of this catalog, and why."""

    offset: int
    reason: str


def encode_account(account: Account, unique: str) -> tuple[bytes, bytes]:
    """Key and value of the record that states a revision of an account; `unique` is used for no other record."""
    return _encode(["account", account.id, unique], account)


def encode_key(key: Key) -> tuple[bytes, bytes]:
    """Key and value of the record that states an API key."""
    return _encode(["key", key.hash], key)


def encode_customer(customer: Customer, *, seen: bool = False) -> tuple[bytes, bytes]:
    """Key and value of the record that states a customer; `seen`: a door met it, nobody has described it."""
    return _encode(["seen" if seen else "customer", customer.account, customer.id], customer)


def encode_feature(feature: Feature, unique: str) -> tuple[bytes, bytes]:
    """Key and value of the record that states a revision of a feature; `unique` is used for no other record."""
    return _encode(["feature", feature.account, feature.id, unique], feature)


def encode_dimension(dimension: Dimension, unique: str) -> tuple[bytes, bytes]:
    """Key and value of the record that states a revision of a dimension; `unique` is used for no other record."""
    return _encode(["dimension", dimension.account, dimension.key, unique], dimension)


class Catalog:
    """Everything that the log has said up to `version`, with every revision kept.

    Not thread-safe: apply and look up in one thread. Values that it hands out never change.
    """

    def __init__(self) -> None:
        self.version = EMPTY_VERSION
        self.skipped: list[Skipped] = []
        self.skipped_count = 0
        self._accounts: dict[str, list[Account]] = {}
        self._keys: dict[str, Key] = {}
        self._customers: dict[str, dict[str, Customer]] = {}
        self._seen: dict[str, dict[str, Customer]] = {}
        self._features: dict[str, dict[str, list[Feature]]] = {}
        self._dimensions: dict[str, dict[str, list[Dimension]]] = {}
        self._removed: dict[tuple[str, str, str], Removed] = {}
        self._fed_by: dict[str, tuple[int, dict[str, tuple[str, ...]]]] = {}
        self._mapping_revs: list[int] = []
        self._mapping_revs_of: dict[str, list[int]] = {}

    # -- the log

    def apply(self, offset: int, key: bytes | None, value: bytes | None) -> Applied | Skipped:
        """Take in the record at `offset`. Raises ValueError when offsets do not ascend: the log was read wrongly."""
        if offset <= self.version:
            raise ValueError(f"catalog record {offset} comes after {self.version}: the log was read out of order")
        self.version = offset
        try:
            self._take(offset, _decode_key(key or b""), value)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            skipped = Skipped(offset, str(error))
            self.skipped_count += 1
            self.skipped = [*self.skipped[1 - _SKIPPED_KEPT_MAX :], skipped]
            return skipped
        return Applied(offset)

    def _take(self, offset: int, key: list[str], value: bytes | None) -> None:
        match key:
            case ["account", id_, _]:
                account = _definition(Account, offset, value)
                _agree(key, account.id == id_)
                self._accounts.setdefault(id_, []).append(account)
                self._note_mapping(offset, id_)
            case ["feature", owner, id_, _]:
                feature = _definition(Feature, offset, value)
                _agree(key, (feature.account, feature.id) == (owner, id_))
                self._features.setdefault(owner, {}).setdefault(id_, []).append(feature)
                self._note_mapping(offset, owner)
            case ["dimension", owner, name, _]:
                dimension = _definition(Dimension, offset, value)
                _agree(key, (dimension.account, dimension.key) == (owner, name))
                self._dimensions.setdefault(owner, {}).setdefault(name, []).append(dimension)
                self._note_mapping(offset, owner)
            case ["customer" | "seen" as kind, owner, id_]:
                customer = None if value is None else _definition(Customer, offset, value)
                _agree(key, customer is None or (customer.account, customer.id) == (owner, id_))
                of_kind = self._customers if kind == "customer" else self._seen
                _replace(of_kind.setdefault(owner, {}), id_, customer)
                self._note_removed(Removed("customer", owner, id_, offset), self.customer(owner, id_))
            case ["key", hash_]:
                api_key = None if value is None else _definition(Key, offset, value)
                _agree(key, api_key is None or api_key.hash == hash_)
                account_of = (api_key or self._keys.get(hash_) or _NOBODYS).account
                _replace(self._keys, hash_, api_key)
                self._note_removed(Removed("key", account_of, hash_, offset), api_key)
            case _:
                raise ValueError(f"no record of this version of Tallystream has the key {key!r}")

    def _note_removed(self, removed: Removed, remaining: Customer | Key | None) -> None:
        place = removed.kind, removed.account if removed.kind == "customer" else "", removed.id
        self._removed.pop(place, None)
        if remaining is None:
            self._removed[place] = removed

    def _note_mapping(self, offset: int, account: str) -> None:
        self._mapping_revs.append(offset)
        self._mapping_revs_of.setdefault(account, []).append(offset)

    # -- look-ups

    def account(self, account_id: str, at_version: int | None = None) -> Account | None:
        """The account as of a version (default: now), or None when there is none."""
        revisions = self._accounts.get(account_id, ())
        return next((a for a in reversed(revisions) if at_version is None or a.rev <= at_version), None)

    def accounts(self) -> tuple[Account, ...]:
        """Every account, by id."""
        return tuple(revisions[-1] for _, revisions in sorted(self._accounts.items()))

    def key(self, hash_hex: str) -> Key | None:
        """The API key with this hash, revoked or not."""
        return self._keys.get(hash_hex)

    def keys(self, account: str) -> tuple[Key, ...]:
        """The API keys of an account, revoked ones too, oldest first."""
        found = [key for key in self._keys.values() if key.account == account]
        return tuple(sorted(found, key=lambda key: (key.created_us, key.hash)))

    def customer(self, account: str, customer_id: str) -> Customer | None:
        """The customer as described, or as a door met it first."""
        found = self._customers.get(account, {}).get(customer_id)
        return found or self._seen.get(account, {}).get(customer_id)

    def is_described(self, account: str, customer_id: str) -> bool:
        """Whether someone described the customer, rather than a door having met it only."""
        return customer_id in self._customers.get(account, {})

    def customers(self, account: str) -> tuple[Customer, ...]:
        """The customers of an account, by id."""
        merged = {**self._seen.get(account, {}), **self._customers.get(account, {})}
        return tuple(customer for _, customer in sorted(merged.items()))

    def feature(self, account: str, feature_id: str) -> Feature | None:
        """The head of a feature, archived or not."""
        revisions = self._features.get(account, {}).get(feature_id)
        return _head(revisions) if revisions else None

    def feature_revisions(self, account: str, feature_id: str) -> tuple[Feature, ...]:
        """Every revision of a feature in the order written."""
        return tuple(self._features.get(account, {}).get(feature_id, ()))

    def features(self, account: str) -> tuple[Feature, ...]:
        """The heads of an account's features, archived ones too, by id."""
        return tuple(_head(revisions) for _, revisions in sorted(self._features.get(account, {}).items()))

    def feature_ids_for(self, account: str, event_name: str) -> tuple[str, ...]:
        """Ids of the features, not archived, that an event name feeds, as of their heads. Doors ask per event."""
        version = self.mapping_version_of(account, self.version)
        made_at, fed_by = self._fed_by.get(account, (EMPTY_VERSION, {}))
        if made_at != version:
            fed_by = _feature_ids_by_event(self.features(account))
            self._fed_by[account] = version, fed_by
        return fed_by.get(event_name, ())

    def dimension(self, account: str, key: str) -> Dimension | None:
        """The head of a dimension, archived or not."""
        revisions = self._dimensions.get(account, {}).get(key)
        return _head(revisions) if revisions else None

    def dimension_revisions(self, account: str, key: str) -> tuple[Dimension, ...]:
        """Every revision of a dimension in the order written."""
        return tuple(self._dimensions.get(account, {}).get(key, ()))

    def dimensions(self, account: str) -> tuple[Dimension, ...]:
        """The heads of an account's dimensions, archived ones too, by key."""
        return tuple(_head(revisions) for _, revisions in sorted(self._dimensions.get(account, {}).items()))

    # -- for the mapping

    def mapping_version(self, version: int) -> int:
        """The last version up to `version` that changed how events are mapped (-1: none).

        Raises ValueError for a version that has not been read yet: wait for it first.
        """
        if version > self.version:
            raise ValueError(f"catalog version {version} is ahead of what was read ({self.version}); wait for it")
        return _last_up_to(self._mapping_revs, version)

    def mapping_version_of(self, account: str, version: int) -> int:
        """The same for one account."""
        return _last_up_to(self._mapping_revs_of.get(account, []), version)

    def mapped_accounts(self) -> tuple[str, ...]:
        """Ids of accounts that any record about mapping names."""
        return tuple(self._mapping_revs_of)

    def features_at(self, account: str, version: int) -> dict[str, list[Feature]]:
        """Revisions by feature id as a reader of that version saw them, in the order written."""
        return _up_to(self._features.get(account, {}), version)

    def dimensions_at(self, account: str, version: int) -> dict[str, list[Dimension]]:
        """Revisions by dimension key as a reader of that version saw them, in the order written."""
        return _up_to(self._dimensions.get(account, {}), version)

    # -- for the mirror

    def changed_after(self, version: int) -> Iterator[Definition | Removed]:
        """What records after `version` stated: all revisions, the latest state of the rest, and what was removed."""
        for accounts in self._accounts.values():
            yield from _after(accounts, version)
        yield from _after(list(self._keys.values()), version)
        for owner in {**self._customers, **self._seen}:
            described = self._customers.get(owner, {})
            yield from _after(list(described.values()), version)
            yield from (c for c in _after(list(self._seen.get(owner, {}).values()), version) if c.id not in described)
        for features in self._features.values():
            for feature_revisions in features.values():
                yield from _after(feature_revisions, version)
        for dimensions in self._dimensions.values():
            for dimension_revisions in dimensions.values():
                yield from _after(dimension_revisions, version)
        yield from _after(list(self._removed.values()), version)


_D = TypeVar("_D", Account, Key, Customer, Feature, Dimension)
_S = TypeVar("_S", Account, Key, Customer, Feature, Dimension, Removed)
_NOBODYS: Final = Key(hash="", account="", name="", scopes=(), hint="", created_us=0)
_decode_key = msgspec.json.Decoder(list[str]).decode
_decoders: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Account, Key, Customer, Feature, Dimension)
}


def _encode(key: list[str], definition: Definition) -> tuple[bytes, bytes]:
    fields = msgspec.structs.asdict(definition)
    del fields["rev"]  # the record's offset says it
    return msgspec.json.encode(key), msgspec.json.encode(fields)


def _definition(kind: type[_D], offset: int, value: bytes | None) -> _D:
    if value is None:
        raise ValueError(f"a revision of {kind.__name__} cannot be removed; archive it")
    decoded: _D = _decoders[kind].decode(value)
    return msgspec.structs.replace(decoded, rev=offset)


def _agree(key: list[str], agrees: bool) -> None:
    if not agrees:
        raise ValueError(f"the record's value names another object than its key {key!r}")


def _replace(latest: dict[str, _L], name: str, value: _L | None) -> None:
    """Put the value at the end, so that iteration follows the log's order."""
    latest.pop(name, None)
    if value is not None:
        latest[name] = value


def _head(revisions: list[_R]) -> _R:
    return max(revisions, key=lambda revision: (revision.effective_from_us, revision.rev))


def _feature_ids_by_event(features: tuple[Feature, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for feature in features:
        for event_name in () if feature.archived else dict.fromkeys(feature.event_names):
            found[event_name] = (*found.get(event_name, ()), feature.id)
    return found


def _last_up_to(revs: list[int], version: int) -> int:
    index = bisect_right(revs, version)
    return revs[index - 1] if index else EMPTY_VERSION


def _up_to(revisions: dict[str, list[_R]], version: int) -> dict[str, list[_R]]:
    found = {name: [r for r in listed if r.rev <= version] for name, listed in revisions.items()}
    return {name: listed for name, listed in found.items() if listed}


def _after(ordered: list[_S], version: int) -> Iterator[_S]:
    """The tail that came after the version; the list follows the log's order."""
    for definition in reversed(ordered):
        if definition.rev <= version:
            return
        yield definition
