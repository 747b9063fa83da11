"""The event: the one shape that every door publishes, and the rules that make a line of JSON one.

Rules: values in, values out; nothing here reads a clock, a file or the environment. A line is either an
:class:`Event` or an :class:`EventError` that names every offending field. Numbers never pass through a float.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import lru_cache
from json import JSONDecodeError, JSONDecoder
from struct import Struct as Packing
from typing import Annotated, Any, Final

import msgspec
from xxhash import xxh3_128_intdigest, xxh64_intdigest

ID_CHARS_MAX: Final = 256
DATA_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 128 * 1024  # the fields beside `data` fit many times over
WHOLE_DIGITS_MAX: Final = 29  # Decimal(38, 9) of the store
FRACTION_DIGITS_MAX: Final = 9
DATA_DEPTH_MAX: Final = 64
YEAR_2100_US: Final = 4_102_444_800_000_000
KINDS_NOT_BUILT: Final = frozenset({"set", "void", "amend"})
ONE: Final = Decimal(1)

# What starts the hash of each kind of value, so that no two kinds meet; kept for ever, as the hashes are.
TAG_TEXT: Final = 0x7465_7874
TAG_NUMBER: Final = 0x6E75_6D62_6572
TAG_OBJECT: Final = 0x6F62_6A65_6374
TAG_ARRAY: Final = 0x6172_7261_79
TAG_TRUE: Final = 0xA5F1_3C5D_7472_7565
TAG_FALSE: Final = 0xC3D2_E1F0_6661_6C73
TAG_NULL: Final = 0x9B97_F4A8_6E75_6C6C
TAG_NONE: Final = 0xD6E8_FEB8_6E6F_6E65
TAG_EVENT: Final = 0x6576_656E_74

EVENT_FIELDS: Final = (
    "clientId",
    "timestamp",
    "transactionId",
    "eventName",
    "featureId",
    "value",
    "kind",
    "targetId",
    "entityId",
    "data",
)


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with one field. `code` is stable, `message` is for people."""

    field: str
    code: str
    message: str


class EventError(ValueError):
    """The event cannot be counted; `errors` says why, one entry per fault, at least one."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in self.errors))


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One use, checked. `timestamp_us` is UTC since 1970 in microseconds; `data` is the JSON object as it was sent
    (empty when there was none); `document` is the same parsed, with exact numbers (int or Decimal)."""

    client_id: str
    timestamp_us: int
    transaction_id: str | None = None
    event_name: str | None = None
    feature_id: str | None = None
    value: Decimal = ONE
    kind: str = "delta"
    entity_id: str | None = None
    data: bytes = b""
    document: dict[str, Any] | None = None


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class _Wire(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    client_id: _Id
    timestamp: str | None = None
    transaction_id: _Id | None = None
    event_name: _Id | None = None
    feature_id: _Id | None = None
    value: msgspec.Raw = msgspec.Raw(b"")
    kind: str = "delta"
    target_id: _Id | None = None
    entity_id: _Id | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _WireOut(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    client_id: str
    timestamp: str
    transaction_id: str | None = None
    event_name: str | None = None
    feature_id: str | None = None
    value: Decimal = ONE
    entity_id: str | None = None
    data: msgspec.Raw | None = None


def decode_event(line: bytes, *, arrival_us: int, ahead_max_us: int, timestamp_default_us: int | None = None) -> Event:
    """The event that one line of JSON states.

    `timestamp_default_us` is used where the line has no timestamp; without it a missing timestamp is an error.
    Raises EventError naming every wrong field.
    """
    if len(line) > LINE_BYTES_MAX:
        raise EventError([FieldError("", "too_large", f"the event has {len(line)} bytes; at most {LINE_BYTES_MAX}")])
    try:
        wire = _decode_wire(line)
        timestamp_us = timestamp_default_us if wire.timestamp is None else parse_timestamp(wire.timestamp)
        if (
            timestamp_us is None
            or timestamp_us > arrival_us + ahead_max_us
            or wire.kind != "delta"
            or wire.target_id is not None
            or (wire.event_name is not None and wire.feature_id is not None)
        ):
            raise _Doubtful  # noqa: TRY301 - settled a few lines below
        value = _raw_value(bytes(wire.value)) if wire.value else ONE
        data = bytes(wire.data) if wire.data else b""
        document = _decode_document(data) if data else None
        if b"\\" in line or line.count(b":") != _colons(wire, data, document):
            raise _Doubtful  # noqa: TRY301
    except (_Doubtful, msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        return _decode_slowly(line, arrival_us, ahead_max_us, timestamp_default_us)
    return Event(
        client_id=wire.client_id,
        timestamp_us=timestamp_us,
        transaction_id=wire.transaction_id,
        event_name=wire.event_name,
        feature_id=wire.feature_id,
        value=value,
        entity_id=wire.entity_id,
        data=data if document is not None else b"",
        document=document,
    )


def make_event(
    *,
    client_id: object,
    timestamp: object,
    arrival_us: int,
    ahead_max_us: int,
    transaction_id: object = None,
    event_name: object = None,
    feature_id: object = None,
    value: object = ONE,
    kind: object = "delta",
    target_id: object = None,
    entity_id: object = None,
    data: object = None,
) -> Event:
    """An event from values of another dialect, under the same rules as a line's.

    `timestamp`: RFC 3339 text, or an int of microseconds since 1970 that the door has converted itself.
    `value`: int, Decimal or text. `data`: a mapping, or the bytes of a JSON object. Raises EventError with the
    fields' names on the wire (`clientId`, `eventName`, ...); a door renames them to its own.
    """
    errors: list[FieldError] = []
    _check_id(errors, "clientId", client_id, required=True)
    for name, given in (
        ("transactionId", transaction_id),
        ("eventName", event_name),
        ("featureId", feature_id),
        ("entityId", entity_id),
    ):
        _check_id(errors, name, given, required=False)
    if event_name is not None and feature_id is not None:
        errors.append(FieldError("eventName", "exclusive", "give eventName or featureId, not both"))
        errors.append(FieldError("featureId", "exclusive", "give eventName or featureId, not both"))
    _check_kind(errors, kind, target_id)
    timestamp_us = _check_timestamp(errors, timestamp, arrival_us + ahead_max_us)
    exact = _check_value(errors, value)
    raw, document = _check_data(errors, data)
    if errors:
        raise EventError(errors)
    return msgspec.convert(
        {
            "client_id": client_id,
            "timestamp_us": timestamp_us,
            "transaction_id": transaction_id,
            "event_name": event_name,
            "feature_id": feature_id,
            "value": exact,
            "entity_id": entity_id,
            "data": raw,
            "document": document,
        },
        Event,
    )


def encode_event(event: Event) -> bytes:
    """The event as one line of JSON without a line break inside; `decode_event` gives it back."""
    data = event.data
    if b"\n" in data or b"\r" in data:
        data = msgspec.json.format(data, indent=-1)
    return _encode_wire(
        _WireOut(
            client_id=event.client_id,
            timestamp=format_timestamp(event.timestamp_us),
            transaction_id=event.transaction_id,
            event_name=event.event_name,
            feature_id=event.feature_id,
            value=event.value,
            entity_id=event.entity_id,
            data=msgspec.Raw(data) if data else None,
        )
    )


def content_hash(event: Event, *, without_timestamp: bool = False) -> int:
    """64-bit hash of what the event says, whatever the order of its keys or the spelling of its numbers.

    `without_timestamp` leaves out a timestamp that a door filled in by itself, so that a retry is a duplicate and
    not a conflict. Stable over processes and versions: the table of first sightings keeps it for ever. The parts are
    XXH64 of texts and numbers, put together by its avalanche; `pipeline.stages.scan` does the same without decoding.
    """
    h = TAG_EVENT
    for text in (event.client_id, event.event_name, event.feature_id, event.entity_id):
        h = chained(h, TAG_NONE if text is None else text_hash(text))
    h = chained(h, TAG_NONE if without_timestamp else event.timestamp_us)
    h = chained(h, number_hash(event.value))
    return chained(h, TAG_NONE if event.document is None else value_hash(event.document))


def value_hash(value: object) -> int:
    """64-bit hash of a JSON value with exact numbers. Raises RecursionError past Python's depth."""
    if isinstance(value, str):
        return text_hash(value)
    if isinstance(value, bool):
        return TAG_TRUE if value else TAG_FALSE
    if isinstance(value, int | Decimal):
        return number_hash(value)
    if isinstance(value, dict):
        pairs = sum(paired(text_hash(key), value_hash(part)) for key, part in value.items())
        return closed(pairs, len(value), TAG_OBJECT)
    if isinstance(value, list):
        h = 0
        for part in value:
            h = chained(h, value_hash(part))
        return closed(h, len(value), TAG_ARRAY)
    return TAG_NULL


def text_hash(text: str) -> int:
    """64-bit hash of a text."""
    return xxh64_intdigest(text.encode("utf-8", "surrogatepass"), TAG_TEXT)


def number_hash(number: int | Decimal) -> int:
    """64-bit hash of a number: 1, 1.0 and 1e0 have the same."""
    sign, digits, exponent = Decimal(number).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    if not text or not isinstance(exponent, int):
        sign, whole, exponent = 0, 0, 0
    else:
        whole, exponent = int(text), exponent + len(digits) - len(text)
    if whole > _MASK:
        whole = xxh64_intdigest(text.encode(), TAG_NUMBER)
    return chained(chained(TAG_NUMBER + sign, whole), exponent + 4096)


def chained(h: int, part: int) -> int:
    """The hash after `part`, where order matters."""
    return _avalanche(h * _P1 + part + _P4)


def paired(key: int, value: int) -> int:
    """The share of one key in its object's hash; shares are added, since order does not matter."""
    return _avalanche(key * _P1 + ((value << 31 | value >> 33) & _MASK) * _P2)


def closed(total: int, count: int, tag: int) -> int:
    """The hash of a whole object or array."""
    return _avalanche(total + count * _P3 + tag)


def id_hash(account: str, transaction_id: str) -> int:
    """128-bit name of an id within its account; length-prefixed, so that no two pairs share their bytes."""
    return id_hashes(account)(transaction_id)


@lru_cache(maxsize=1024)
def id_hashes(account: str) -> Callable[[str], int]:
    """`id_hash` for many ids of one account."""
    encoded = account.encode()
    prefix = _length(len(encoded)) + encoded

    def of(transaction_id: str) -> int:
        t = transaction_id.encode()
        return xxh3_128_intdigest(prefix + _length(len(t)) + t)

    return of


def derived_id_hash(epoch: int, topic: str, partition: int, offset: int, line: int) -> int:
    """Name of an event that came without an id: its position, stable whenever it is read again."""
    return xxh3_128_intdigest(_position(epoch, partition, offset, line) + topic.encode())


def readable_transaction_id(line: bytes) -> str | None:
    """The id that a line names, also where the line as a whole is no event; None where none can be read."""
    try:
        found = _decode_id(line).transaction_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = None
    if found is None:  # the fast decoder is stricter than the one that explains refusals
        try:
            found = _strict_fields(line).get("transactionId")
        except EventError:
            return None
    return found if isinstance(found, str) and 1 <= len(found) <= ID_CHARS_MAX and _is_text(found) else None


def partition_of(hash128: int, partitions: int) -> int:
    """The partition in which an id always lies."""
    return hash128 % partitions


def parse_timestamp(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 instant with offset. Raises ValueError with the reason.

    A leap second counts as the last microsecond of its minute and more than six fractional digits are cut, so that
    an instant never moves over the border of a day or month.
    """
    match = _rfc3339(text)
    if match is None:
        raise ValueError(_why_no_timestamp(text))
    minute, second, fraction, offset = match.groups()
    start_us = _minutes.get((minute, offset))
    if start_us is None:
        start_us = _minute_start_us(minute, offset)
    seconds = int(second)
    if seconds == 60:
        if (start_us // 60_000_000) % 1440 != 1439:
            raise ValueError("second 60 exists only at 23:59:60 UTC")
        return start_us + 59_999_999
    if seconds > 60:
        raise ValueError(f"second {second} does not exist")
    us = start_us + seconds * 1_000_000
    if fraction is not None:
        us += int(fraction[:6].ljust(6, "0"))
    if not 0 <= us < YEAR_2100_US:
        raise ValueError("must lie between 1970 and 2100")
    return us


def format_timestamp(us: int) -> str:
    """RFC 3339 in UTC, with microseconds where there are any."""
    seconds, rest = divmod(us, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:06d}Z" if rest else f"{text}Z"


def parse_value(given: object) -> Decimal:
    """An exact, finite Decimal within the store's range from an int, a Decimal or text. Raises ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | str | Decimal):
        raise ValueError("must be a number")  # noqa: TRY004 - one error type tells callers all
    if isinstance(given, str) and (_number_text(given) is None or len(given) > 64):
        raise ValueError("must be a decimal number such as 12.5")
    if isinstance(given, int) and given.bit_length() > 128:
        raise ValueError(_RANGE)
    return checked_value(Decimal(given))


def checked_value(value: Decimal) -> Decimal:
    """The value, when it fits Decimal(38, 9) exactly; raises ValueError otherwise."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError("must be finite; NaN and Infinity are refused")  # noqa: TRY004
    if not value:
        return _ZERO
    if exponent > WHOLE_DIGITS_MAX or len(digits) + exponent > WHOLE_DIGITS_MAX:
        raise ValueError(_RANGE)
    if exponent < -FRACTION_DIGITS_MAX and any(digits[exponent + FRACTION_DIGITS_MAX :]):
        raise ValueError(_RANGE)
    if exponent < -FRACTION_DIGITS_MAX and len(digits) <= -(exponent + FRACTION_DIGITS_MAX):
        raise ValueError(_RANGE)
    return value


def parse_document(data: bytes) -> dict[str, Any]:
    """The JSON object as Python values with exact numbers (int or Decimal, never float). Raises EventError."""
    errors: list[FieldError] = []
    _, document = _check_data(errors, data)
    if errors or document is None:
        raise EventError(errors or [FieldError("data", "type", "must be a JSON object")])
    return document


# ------------------------------------------------------------------------------------------------ private


class _Doubtful(Exception):  # noqa: N818 - not an error: the slow path finds out and explains
    """The fast path cannot vouch for the line."""


_MASK = 0xFFFF_FFFF_FFFF_FFFF
_P1 = 0x9E37_79B1_85EB_CA87  # XXH64's primes
_P2 = 0xC2B2_AE3D_27D4_EB4F
_P3 = 0x1656_67B1_9E37_79F9
_P4 = 0x85EB_CA77_C2B2_AE63
_ZERO = Decimal(0)
_RANGE = f"at most {WHOLE_DIGITS_MAX} digits before the point and {FRACTION_DIGITS_MAX} after it"
_length = Packing("<I").pack
_position = Packing("<IIQI").pack
_EXACT = Context(prec=DATA_BYTES_MAX * 2, Emax=999_999_999_999_999_999, Emin=-999_999_999_999_999_999)
_rfc3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII).fullmatch
_number_text = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII).fullmatch
_MINUTES_MAX = 65_536
_small = {str(n).encode(): Decimal(n) for n in range(1, 1025)}  # most values; sharing them spares the making
_minutes: dict[tuple[str, str], int] = {}


def _avalanche(h: int) -> int:
    """XXH64's last step."""
    h &= _MASK
    h = (h ^ h >> 33) * _P2 & _MASK
    h = (h ^ h >> 29) * _P3 & _MASK
    return h ^ h >> 32


def _plain_number(number: Decimal) -> Decimal | int:
    """One form per number: 1, 1.0 and 1e0 are the same."""
    number = number.normalize(_EXACT)
    _, digits, exponent = number.as_tuple()
    if isinstance(exponent, int) and 0 <= exponent <= 64 and len(digits) <= 64:
        return int(number)
    return number


def _float_hook(text: str) -> Decimal | int:
    return _plain_number(_EXACT.create_decimal(text))


class _WireId(msgspec.Struct, gc=False):
    transaction_id: str | None = msgspec.field(name="transactionId", default=None)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


_decode_id = msgspec.json.Decoder(_WireId).decode
_decode_wire = msgspec.json.Decoder(_Wire).decode
_decode_document_fast = msgspec.json.Decoder(dict[str, Any], float_hook=_float_hook).decode
_encode_wire = msgspec.json.Encoder(decimal_format="number").encode
_encode_canonical = msgspec.json.Encoder(decimal_format="number", order="deterministic").encode


def _raw_value(raw: bytes) -> Decimal:
    if raw.isdigit() and len(raw) < WHOLE_DIGITS_MAX:
        return _small.get(raw) or Decimal(int(raw))
    return parse_value(raw.strip(b'"').decode("ascii"))


def _decode_document(data: bytes) -> dict[str, Any] | None:
    if data == b"null":
        return None
    if len(data) > DATA_BYTES_MAX or data.count(b"[") + data.count(b"{") > DATA_DEPTH_MAX:
        raise _Doubtful  # large, or perhaps deep: the slow path looks closely
    return _decode_document_fast(data)


def _colons(wire: _Wire, data: bytes, document: dict[str, Any] | None) -> int:
    """How many colons the line has when no key comes twice: fewer keys came out than went in otherwise."""
    count = 1 + wire.client_id.count(":")
    for text in (wire.timestamp, wire.transaction_id, wire.event_name, wire.feature_id, wire.entity_id):
        if text is not None:
            count += 1 + text.count(":")
    if wire.value:
        count += 1
    if document is not None:
        inside = data.count(b":")
        if inside != len(document):  # some are in texts, or of objects inside
            inside = _encode_canonical(document).count(b":")
        count += 1 + inside
    return count


def _minute_start_us(minute: str, offset: str) -> int:
    try:
        start = datetime.fromisoformat(f"{minute.upper().replace(' ', 'T')}:00+00:00")
    except ValueError as error:
        raise ValueError(f"no such date or time ({error})") from error
    us = (int(start.timestamp()) - _offset_s(offset)) * 1_000_000
    if len(_minutes) >= _MINUTES_MAX:
        _minutes.clear()
    _minutes[minute, offset] = us
    return us


def _offset_s(offset: str) -> int:
    if offset in ("Z", "z"):
        return 0
    hours, minutes = int(offset[1:3]), int(offset[4:6])
    if hours > 23 or minutes > 59:
        raise ValueError(f"offset {offset} does not exist")
    return (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)


def _why_no_timestamp(text: str) -> str:
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        return "a bare date; give an instant such as 2026-01-31T12:00:00Z"
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?", text, re.ASCII):
        return "has no offset from UTC; append Z or an offset such as +02:00"
    if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII):
        return "is an epoch number; give an RFC 3339 instant such as 2026-01-31T12:00:00Z"
    return "must be an RFC 3339 instant with offset, such as 2026-01-31T12:00:00Z"


def _check_id(errors: list[FieldError], field: str, given: object, *, required: bool) -> None:
    if given is None:
        if required:
            errors.append(FieldError(field, "required", f"{field} is required"))
    elif not isinstance(given, str):
        errors.append(FieldError(field, "type", f"must be a string, not {_json_type(given)}"))
    elif not 1 <= len(given) <= ID_CHARS_MAX:
        errors.append(FieldError(field, "range", f"must have 1 to {ID_CHARS_MAX} characters, not {len(given)}"))
    elif any("\ud800" <= c <= "\udfff" for c in given):
        errors.append(FieldError(field, "encoding", "has a lone surrogate, which is no character"))


def _check_kind(errors: list[FieldError], kind: object, target_id: object) -> None:
    if not isinstance(kind, str) or kind not in {"delta", *KINDS_NOT_BUILT}:
        errors.append(FieldError("kind", "format", "must be delta, set, void or amend"))
    elif kind != "delta":
        errors.append(FieldError("kind", "not_built", f"kind {kind!r} is not built yet; only delta is counted"))
    if target_id is not None and kind == "delta":
        errors.append(FieldError("targetId", "not_built", "targetId belongs to void and amend, not built yet"))


def _check_timestamp(errors: list[FieldError], given: object, latest_us: int) -> int:
    us = 0
    if given is None:
        errors.append(FieldError("timestamp", "required", "timestamp is required"))
    elif isinstance(given, int) and not isinstance(given, bool):
        us = given
        if not 0 <= us < YEAR_2100_US:
            errors.append(FieldError("timestamp", "range", "must lie between 1970 and 2100"))
    elif not isinstance(given, str):
        errors.append(FieldError("timestamp", "type", f"must be an RFC 3339 string, not {_json_type(given)}"))
    else:
        try:
            us = parse_timestamp(given)
        except ValueError as error:
            errors.append(FieldError("timestamp", "format", str(error)))
    if us > latest_us:
        errors.append(FieldError("timestamp", "range", "lies too far ahead of its arrival"))
    return us


def _check_value(errors: list[FieldError], given: object) -> Decimal:
    try:
        return parse_value(given)
    except ValueError as error:
        errors.append(FieldError("value", "range" if str(error) == _RANGE else "format", str(error)))
    return ONE


def _check_data(errors: list[FieldError], given: object) -> tuple[bytes, dict[str, Any] | None]:
    if given is None or given == b"":
        return b"", None
    try:
        raw = given if isinstance(given, bytes) else _encode_wire(given)
        if len(raw) > DATA_BYTES_MAX:
            errors.append(FieldError("data", "too_large", f"has {len(raw)} bytes; at most {DATA_BYTES_MAX}"))
            return b"", None
        document = _decode_document_fast(raw)
        if _depth(document) > DATA_DEPTH_MAX:
            raise RecursionError  # noqa: TRY301
    except msgspec.ValidationError:
        errors.append(FieldError("data", "type", "must be a JSON object"))
    except RecursionError:
        errors.append(FieldError("data", "range", f"is nested deeper than {DATA_DEPTH_MAX}"))
    except (ArithmeticError, msgspec.MsgspecError, TypeError, ValueError) as error:
        errors.append(FieldError("data", "format", f"is no JSON object with finite numbers ({error})"))
    else:
        return raw, document
    return b"", None


def _depth(value: object) -> int:
    """Levels of nesting, without recursion; stops counting past the limit."""
    level, depth = [value], 0
    while level and depth <= DATA_DEPTH_MAX:
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        depth += 1
    return depth


def _json_type(given: object) -> str:
    if isinstance(given, bool):
        return "a boolean"
    if isinstance(given, int | float | Decimal):
        return "a number"
    if isinstance(given, Mapping):
        return "an object"
    return "an array" if isinstance(given, list | tuple) else "null" if given is None else type(given).__name__


class _DuplicateKey(Exception):  # noqa: N818 - turned into an EventError at once
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        raise _DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _spelled_number(text: str) -> Any:
    """NaN and what no number can hold become non-finite, so that the check of their field refuses them by name."""
    try:
        return int(text) if text.lstrip("-").isdigit() else _EXACT.create_decimal(text)
    except (ArithmeticError, ValueError):
        return Decimal("Infinity")


_decode_strictly = JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_spelled_number,
    parse_int=_spelled_number,
    parse_constant=Decimal,
    strict=True,
).decode
_decode_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _decode_slowly(line: bytes, arrival_us: int, ahead_max_us: int, timestamp_default_us: int | None) -> Event:
    """The same verdict as the fast path, with every fault found and named."""
    fields = _strict_fields(line)
    errors = [
        FieldError(name, "unknown_field", f"is no field of an event; fields are {', '.join(EVENT_FIELDS)}")
        for name in fields
        if name not in EVENT_FIELDS
    ]
    raw_data = _raw_data(line) if isinstance(fields.get("data"), dict) else None
    timestamp = fields.get("timestamp")
    if isinstance(timestamp, int) and not isinstance(timestamp, bool):
        errors.append(FieldError("timestamp", "type", "must be an RFC 3339 string, not a number"))
        timestamp = 0
    elif timestamp is None:
        timestamp = timestamp_default_us
    try:
        event = make_event(
            client_id=fields.get("clientId"),
            timestamp=timestamp,
            arrival_us=arrival_us,
            ahead_max_us=ahead_max_us,
            transaction_id=fields.get("transactionId"),
            event_name=fields.get("eventName"),
            feature_id=fields.get("featureId"),
            value=fields.get("value", ONE),
            kind=fields.get("kind", "delta"),
            target_id=fields.get("targetId"),
            entity_id=fields.get("entityId"),
            data=fields.get("data") if raw_data is None else raw_data,
        )
    except EventError as error:
        raise EventError([*errors, *error.errors]) from None
    if errors:
        raise EventError(errors)
    return event


def _raw_data(line: bytes) -> bytes | None:
    """The bytes of `data` as they were sent; None where the line holds something (a NaN) that is refused elsewhere."""
    try:
        return bytes(_decode_raw_fields(line)["data"])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _strict_fields(line: bytes) -> dict[str, Any]:
    """The line's fields by the standard library's decoder, which tells duplicates; raises EventError."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventError([FieldError("", "encoding", f"byte {error.start} is no UTF-8")]) from error
    try:
        fields = _decode_strictly(text)
    except _DuplicateKey as error:
        raise EventError([FieldError(str(error), "duplicate_key", f"key {str(error)!r} comes twice")]) from error
    except JSONDecodeError as error:
        raise EventError([FieldError("", "syntax", f"is no JSON: {error.msg} at byte {error.pos}")]) from error
    except RecursionError as error:
        raise EventError([FieldError("data", "range", f"is nested deeper than {DATA_DEPTH_MAX}")]) from error
    except (ValueError, ArithmeticError) as error:
        raise EventError([FieldError("", "syntax", f"is no JSON: {error}")]) from error
    if not isinstance(fields, dict):
        raise EventError([FieldError("", "type", f"must be a JSON object, not {_json_type(fields)}")])
    return fields
