"""What people write about the catalog, checked and made into its values: one set of rules for REST, GraphQL and files.

Rules: pure. Fields carry the names of this module everywhere (JSON bodies, catalog files, tables of the store); every
fault is found at once and named by its field. Nothing is converted silently: a number is no id.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeGuard, get_args

import msgspec

from pipeline.catalog import Account, Aggregation, Customer, Dimension, DimensionType, Feature, FeatureType, Mode, Scope
from pipeline.event import EVENT_FIELDS, ID_CHARS_MAX, FieldError, format_timestamp, parse_timestamp

NAME_CHARS_MAX: Final = 1024
METADATA_BYTES_MAX: Final = 16 * 1024
EVENT_NAMES_MAX: Final = 1000
FILTER_PATHS_MAX: Final = 32
FILTER_VALUES_MAX: Final = 1000

FEATURE_FIELDS: Final = (
    "id",
    "name",
    "type",
    "unit_label",
    "unit_label_plural",
    "metadata",
    "event_names",
    "aggregation",
    "value_key",
    "unique_key",
    "filter",
    "effective_from",
    "archived",
)
DIMENSION_FIELDS: Final = ("key", "type", "effective_from", "archived")
CUSTOMER_FIELDS: Final = ("id", "name", "email", "metadata")
ACCOUNT_FIELDS: Final = ("id", "name", "segment")
# what is a correction no Segment library says
SEGMENT_FIELDS: Final = tuple(name for name in EVENT_FIELDS if name not in ("kind", "targetId"))
KEY_FIELDS: Final = ("name", "scopes", "mode", "events_per_s", "burst")
ROTATION_FIELDS: Final = ("overlap_s",)
OVERLAP_S: Final = 86_400
OVERLAP_S_MAX: Final = 90 * 86_400
EVENTS_PER_S_MAX: Final = 1_000_000
BURST_MAX: Final = 100_000_000


class CatalogError(ValueError):
    """What was asked cannot be stated in the catalog; `errors` names every field at fault, at least one."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in self.errors))


class AlreadyExists(CatalogError):  # noqa: N818 - the outcome, told to callers as 409
    """There is one with this id already."""


class NotFound(CatalogError):  # noqa: N818 - the outcome, told to callers as 404
    """There is none with this id."""


class KeyRequest(msgspec.Struct, frozen=True):
    """What a new API key shall be. `mode` None: that of the account that asks."""

    name: str
    scopes: tuple[Scope, ...]
    mode: Mode | None
    events_per_s: int | None = None
    burst: int | None = None


def feature_from(account: str, given: Mapping[str, object], *, base: Feature | None = None) -> Feature:
    """A feature from given fields; those not given are as in `base`, or have their defaults.

    `effective_from_us` is the base's or 0 unless `effective_from` is given. Raises CatalogError.
    """
    checked = _Checked(given, FEATURE_FIELDS)
    old = base or Feature(account=account, id="", name="")
    feature_id = checked.id("id", base.id if base else None)
    feature = Feature(
        account=account,
        id=feature_id,
        name=checked.text("name", old.name or feature_id, NAME_CHARS_MAX),
        type=checked.choice("type", old.type, get_args(FeatureType)),
        unit_label=checked.text("unit_label", old.unit_label, NAME_CHARS_MAX),
        unit_label_plural=checked.text("unit_label_plural", old.unit_label_plural, NAME_CHARS_MAX),
        metadata=checked.metadata("metadata", old.metadata),
        event_names=checked.ids("event_names", old.event_names, EVENT_NAMES_MAX),
        aggregation=checked.choice("aggregation", old.aggregation, get_args(Aggregation)),
        value_key=checked.path("value_key", old.value_key),
        unique_key=checked.path("unique_key", old.unique_key),
        filter=checked.filter("filter", old.filter),
        effective_from_us=checked.instant("effective_from", old.effective_from_us),
        archived=checked.flag("archived", old.archived),
    )
    checked.raise_if_wrong(_keys_fit(feature))
    return feature


def dimension_from(account: str, given: Mapping[str, object], *, base: Dimension | None = None) -> Dimension:
    """A dimension from given fields; those not given are as in `base`, or have their defaults. Raises CatalogError."""
    checked = _Checked(given, DIMENSION_FIELDS)
    dimension = Dimension(
        account=account,
        key=checked.id("key", base.key if base else None),
        type=checked.choice("type", base.type if base else None, get_args(DimensionType)),
        effective_from_us=checked.instant("effective_from", base.effective_from_us if base else 0),
        archived=checked.flag("archived", base.archived if base else False),
    )
    checked.raise_if_wrong()
    return dimension


def customer_from(account: str, given: Mapping[str, object], *, base: Customer | None = None) -> Customer:
    """A customer from given fields; those not given are as in `base`, or empty. Raises CatalogError."""
    checked = _Checked(given, CUSTOMER_FIELDS)
    old = base or Customer(account=account, id="")
    customer = Customer(
        account=account,
        id=checked.id("id", base.id if base else None),
        name=checked.text("name", old.name, NAME_CHARS_MAX),
        email=checked.text("email", old.email, NAME_CHARS_MAX),
        metadata=checked.metadata("metadata", old.metadata),
        created_us=old.created_us,
    )
    checked.raise_if_wrong()
    return customer


def feature_fields(feature: Feature) -> dict[str, object]:
    """The feature's fields as `feature_from` takes them."""
    fields: dict[str, object] = {name: getattr(feature, name) for name in FEATURE_FIELDS if name != "effective_from"}
    return {**fields, "effective_from": format_timestamp(feature.effective_from_us)}


def dimension_fields(dimension: Dimension) -> dict[str, object]:
    """The dimension's fields as `dimension_from` takes them."""
    fields: dict[str, object] = {
        name: getattr(dimension, name) for name in DIMENSION_FIELDS if name != "effective_from"
    }
    return {**fields, "effective_from": format_timestamp(dimension.effective_from_us)}


def customer_fields(customer: Customer) -> dict[str, object]:
    """The customer's fields as `customer_from` takes them."""
    return {name: getattr(customer, name) for name in CUSTOMER_FIELDS}


def account_from(given: Mapping[str, object]) -> Account:
    """A live account from given fields. Raises CatalogError."""
    checked = _Checked(given, ACCOUNT_FIELDS)
    account_id = checked.id("id", None)
    if account_id and not _account_id(account_id):
        checked.wrong(
            "id", "format", "must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    account = Account(
        id=account_id,
        name=checked.text("name", account_id, NAME_CHARS_MAX),
        mode="live",
        segment=checked.paths("segment", SEGMENT_FIELDS),
    )
    checked.raise_if_wrong()
    return account


def key_request_from(given: Mapping[str, object]) -> KeyRequest:
    """What a new API key shall be, from given fields. Raises CatalogError."""
    checked = _Checked(given, KEY_FIELDS)
    request = KeyRequest(
        name=checked.text("name", "", NAME_CHARS_MAX),
        scopes=checked.scopes("scopes"),
        mode=checked.choice("mode", "live", get_args(Mode)) if given.get("mode") is not None else None,
        events_per_s=checked.whole("events_per_s", None, 0, EVENTS_PER_S_MAX),
        burst=checked.whole("burst", None, 1, BURST_MAX),
    )
    lonely = request.burst is not None and not request.events_per_s
    checked.raise_if_wrong([FieldError("burst", "exclusive", "needs events_per_s beside it")] if lonely else ())
    return request


def overlap_from(given: Mapping[str, object]) -> int:
    """How many seconds a rotated key stays good, from given fields. Raises CatalogError."""
    checked = _Checked(given, ROTATION_FIELDS)
    overlap_s = checked.whole("overlap_s", OVERLAP_S, 0, OVERLAP_S_MAX)
    checked.raise_if_wrong()
    return OVERLAP_S if overlap_s is None else overlap_s


# ------------------------------------------------------------------------------------------------ private

_encode_metadata = msgspec.json.Encoder(decimal_format="number").encode  # exact numbers come from JSON bodies
_account_id = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII).fullmatch


def _keys_fit(feature: Feature) -> list[FieldError]:
    """A key that the aggregation would never read is a mistake that nobody would notice."""
    errors = []
    if feature.aggregation == "unique" and feature.unique_key is None:
        errors.append(
            FieldError("unique_key", "required", "aggregation unique needs unique_key: the data key to count")
        )
    if feature.aggregation != "unique" and feature.unique_key is not None:
        errors.append(FieldError("unique_key", "exclusive", f"aggregation {feature.aggregation} has no unique_key"))
    if feature.aggregation in ("count", "unique") and feature.value_key is not None:
        errors.append(FieldError("value_key", "exclusive", f"aggregation {feature.aggregation} takes no value"))
    return errors


class _Checked:
    """Reads fields one by one and collects what is wrong with them; a field at fault reads as its default."""

    def __init__(self, given: Mapping[str, object], fields: tuple[str, ...]) -> None:
        self._given = given
        self._errors = [
            FieldError(str(name), "unknown_field", f"is no field here; fields are {', '.join(fields)}")
            for name in given
            if name not in fields
        ]

    def wrong(self, field: str, code: str, message: str) -> None:
        self._errors.append(FieldError(field, code, message))

    def raise_if_wrong(self, more: Sequence[FieldError] = ()) -> None:
        """Raises CatalogError with what was found; rules over several fields count only where each is right."""
        if self._errors or more:
            raise CatalogError(self._errors or more)

    def id(self, field: str, default: str | None) -> str:
        given: object = self._given.get(field, default)
        if given is None:
            self.wrong(field, "required", f"{field} is required")
            return ""
        if default is not None and given != default:
            self.wrong(field, "immutable", f"never changes; it is {default!r}")
            return default
        return given if self._is_id(given, field) else ""

    def text(self, field: str, default: str, chars_max: int) -> str:
        given = self._given.get(field)
        if given is None:
            return default
        if not isinstance(given, str):
            self.wrong(field, "type", f"must be a string, not {_type_name(given)}")
        elif len(given) > chars_max:
            self.wrong(field, "range", f"has {len(given)} characters; at most {chars_max}")
        elif self._encodes(field, given):
            return given
        return default

    def choice(self, field: str, default: Any, allowed: tuple[str, ...]) -> Any:
        given = self._given.get(field, default)
        if given is None and default is None:
            self.wrong(field, "required", f"{field} is required: {' or '.join(allowed)}")
        elif given not in allowed:
            self.wrong(field, "format", f"must be one of {', '.join(allowed)}")
        else:
            return given
        return allowed[0]

    def flag(self, field: str, default: bool) -> bool:
        given = self._given.get(field, default)
        if isinstance(given, bool):
            return given
        self.wrong(field, "type", "must be true or false")
        return default

    def instant(self, field: str, default: int) -> int:
        given = self._given.get(field)
        if given is None:
            return default
        if not isinstance(given, str):
            self.wrong(field, "type", f"must be an RFC 3339 string, not {_type_name(given)}")
            return default
        try:
            return parse_timestamp(given)
        except ValueError as error:
            self.wrong(field, "format", str(error))
            return default

    def path(self, field: str, default: str | None) -> str | None:
        given: object = self._given.get(field, default)
        if given is None:
            return None
        return given if self._is_id(given, field) else default

    def paths(self, field: str, names: tuple[str, ...]) -> dict[str, str]:
        """Dotted paths by name; an empty one means "not taken"."""
        given = self._given.get(field)
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.wrong(field, "type", f"must be an object, not {_type_name(given)}")
            return {}
        for name, path in given.items():
            if name not in names:
                self.wrong(
                    f"{field}.{name}", "unknown_field", f"is no field of an event; fields are {', '.join(names)}"
                )
            elif path != "":
                self._is_id(path, f"{field}.{name}")
        return {str(name): str(path) for name, path in given.items()}

    def ids(self, field: str, default: tuple[str, ...], count_max: int) -> tuple[str, ...]:
        given = self._given.get(field, default)
        if not isinstance(given, list | tuple):
            self.wrong(field, "type", f"must be a list of strings, not {_type_name(given)}")
            return default
        if len(given) > count_max:
            self.wrong(field, "range", f"has {len(given)} entries; at most {count_max}")
            return default
        right = [self._is_id(entry, f"{field}[{index}]") for index, entry in enumerate(given)]
        return tuple(dict.fromkeys(given)) if all(right) else default

    def whole(self, field: str, default: int | None, least: int, most: int) -> int | None:
        given = self._given.get(field)
        if given is None:
            return default
        if isinstance(given, bool) or not isinstance(given, int):
            self.wrong(field, "type", f"must be a whole number, not {_type_name(given)}")
        elif not least <= given <= most:
            self.wrong(field, "range", f"must be {least} to {most}")
        else:
            return given
        return default

    def scopes(self, field: str) -> tuple[Scope, ...]:
        given, allowed = self._given.get(field), get_args(Scope)
        if given is None:
            self.wrong(field, "required", f"scopes are required: any of {', '.join(allowed)}")
        elif not isinstance(given, list | tuple) or not given:
            self.wrong(field, "type", f"must be a list with any of {', '.join(allowed)}")
        elif unknown := [scope for scope in given if scope not in allowed]:
            self.wrong(field, "format", f"{unknown[0]!r} is no scope; scopes are {', '.join(allowed)}")
        else:
            return tuple(scope for scope in allowed if scope in given)
        return ()

    def metadata(self, field: str, default: dict[str, Any]) -> dict[str, Any]:
        given = self._given.get(field)
        if given is None:
            return default
        if not isinstance(given, Mapping):
            self.wrong(field, "type", f"must be an object, not {_type_name(given)}")
            return default
        try:
            encoded = _encode_metadata(given)
            plain: dict[str, Any] = msgspec.json.decode(encoded, type=dict[str, Any])
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            self.wrong(field, "format", f"is no JSON object ({error})")
            return default
        if len(encoded) > METADATA_BYTES_MAX:
            self.wrong(field, "too_large", f"has {len(encoded)} bytes; at most {METADATA_BYTES_MAX}")
            return default
        return plain

    def filter(
        self, field: str, default: dict[str, tuple[str | int | bool, ...]]
    ) -> dict[str, tuple[str | int | bool, ...]]:
        given = self._given.get(field)
        if given is None:
            return default
        if not isinstance(given, Mapping) or len(given) > FILTER_PATHS_MAX:
            self.wrong(
                field, "type", f"must be an object of at most {FILTER_PATHS_MAX} data keys, each with its values"
            )
            return default
        return {
            str(path): self._allowed(f"{field}.{path}", allowed)
            for path, allowed in sorted(given.items(), key=str)
            if self._is_id(path, field)
        }

    def _allowed(self, field: str, given: object) -> tuple[str | int | bool, ...]:
        values = given if isinstance(given, list | tuple) else (given,)
        if not 1 <= len(values) <= FILTER_VALUES_MAX:
            self.wrong(field, "range", f"needs 1 to {FILTER_VALUES_MAX} values")
            return ()
        for value in values:
            if not isinstance(value, str | int):
                self.wrong(field, "type", f"must be a string, whole number or boolean, not {_type_name(value)}")
                return ()
            if isinstance(value, int) and value.bit_length() > 63:
                self.wrong(field, "range", "is beyond 64 bits")
                return ()
            if isinstance(value, str) and not self._encodes(field, value):
                return ()
        return tuple(values)

    def _is_id(self, given: object, field: str) -> TypeGuard[str]:
        if not isinstance(given, str):
            self.wrong(field, "type", f"must be a string, not {_type_name(given)}")
        elif not 1 <= len(given) <= ID_CHARS_MAX:
            self.wrong(field, "range", f"must have 1 to {ID_CHARS_MAX} characters, not {len(given)}")
        else:
            return self._encodes(field, given)
        return False

    def _encodes(self, field: str, given: str) -> bool:
        if any("\ud800" <= c <= "\udfff" for c in given):
            self.wrong(field, "encoding", "has a lone surrogate, which is no character")
            return False
        return True


_TYPE_NAMES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    str: "a string",
    dict: "an object",
    list: "a list",
    tuple: "a list",
}


def _type_name(given: object) -> str:
    return _TYPE_NAMES.get(type(given), type(given).__name__)
