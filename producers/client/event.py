"""A usage event on the client's side: checked at once, given its id and its instant, and spelled as it will be sent.

Rules: standard library only. What passes here passes the API's own decoder with the same content, and what is refused
here would be refused there (`tests/producers/test_client_event.py` holds both together). The line is made once and
never again, so that every attempt sends the same bytes under the same id. No number passes through a float, except the
floats of `data`, which go out in their shortest decimal form.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from json.encoder import encode_basestring
from math import isfinite
from typing import Any, Final

from pipeline.transaction_id import new_transaction_id

ID_CHARS_MAX: Final = 256
DATA_BYTES_MAX: Final = 64 * 1024
DATA_DEPTH_MAX: Final = 64
WHOLE_DIGITS_MAX: Final = 29
FRACTION_DIGITS_MAX: Final = 9


class InvalidEvent(ValueError):  # noqa: N818 - named after the event, not after the act
    """The event cannot be recorded. `field` is the argument's name, with the path inside `data`; `reason` says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event that `record` has taken. `line`: its JSON, as it is sent. `recorded_s`: Unix seconds.

    `position`: its place in the queue or spool; rises with the order of recording.
    """

    transaction_id: str
    line: bytes
    recorded_s: float
    position: int = 0


def usage_event(
    client_id: str,
    *,
    event_name: str | None = None,
    feature_id: str | None = None,
    value: int | str | Decimal = 1,
    data: Mapping[str, Any] | None = None,
    timestamp: datetime | str | None = None,
    transaction_id: str | None = None,
    entity_id: str | None = None,
) -> Recorded:
    """The event that these arguments state. Reads the clock, and the system's randomness for an id.

    Raises InvalidEvent, which names the argument.
    """
    if event_name is not None and feature_id is not None:
        raise InvalidEvent("event_name", "give event_name or feature_id, not both")
    now = datetime.now(UTC)
    identity = new_transaction_id() if transaction_id is None else transaction_id
    members = [
        f'"clientId":{_name("client_id", client_id)}',
        f'"timestamp":"{_timestamp(now if timestamp is None else timestamp)}"',
        f'"transactionId":{_name("transaction_id", identity)}',
    ]
    for field, wire, given in (
        ("event_name", "eventName", event_name),
        ("feature_id", "featureId", feature_id),
        ("entity_id", "entityId", entity_id),
    ):
        if given is not None:
            members.append(f'"{wire}":{_name(field, given)}')
    members.append(f'"value":{_value(value)}')
    if data is not None:
        members.append(f'"data":{_data(data)}')
    return Recorded(identity, f"{{{','.join(members)}}}".encode(), now.timestamp())


# ------------------------------------------------------------------------------------------------ private

_RANGE: Final = f"at most {WHOLE_DIGITS_MAX} digits before the point and {FRACTION_DIGITS_MAX} after it"
_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2100, 1, 1, tzinfo=UTC)
_rfc3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
).fullmatch
_number = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII).fullmatch


def _name(field: str, given: object) -> str:
    """An id or name as JSON."""
    if not isinstance(given, str):
        raise InvalidEvent(field, f"must be a string, not {type(given).__name__}")
    if not 1 <= len(given) <= ID_CHARS_MAX:
        raise InvalidEvent(field, f"must have 1 to {ID_CHARS_MAX} characters, not {len(given)}")
    return _text(field, given)


def _text(field: str, given: str) -> str:
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InvalidEvent(field, "has a lone surrogate, which is no character") from None
    return encode_basestring(given)


def _timestamp(given: object) -> str:
    """RFC 3339 with microseconds and offset; text is passed on as it was given, once it is known to be an instant."""
    if isinstance(given, str):
        at, text = _instant(given), given
    elif isinstance(given, datetime):
        if given.utcoffset() is None:
            raise InvalidEvent("timestamp", "has no offset from UTC; give an aware datetime, as datetime.now(UTC) is")
        at = given.astimezone(UTC)
        text = at.isoformat(timespec="microseconds")
    else:
        raise InvalidEvent("timestamp", f"must be a datetime or RFC 3339 text, not {type(given).__name__}")
    if not _FIRST <= at < _END:
        raise InvalidEvent("timestamp", "must lie between 1970 and 2100")
    return text


def _instant(text: str) -> datetime:
    match = _rfc3339(text)
    if match is None:
        raise InvalidEvent("timestamp", "must be an RFC 3339 instant with offset, such as 2026-01-31T12:00:00+02:00")
    date, minute, second, fraction, offset = match.groups()
    leap = second == "60"
    try:
        at = datetime.fromisoformat(f"{date}T{minute}:{'59' if leap else second}{offset.upper()}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidEvent("timestamp", f"no such date or time ({error})") from None
    if leap and (at.hour, at.minute) != (23, 59):
        raise InvalidEvent("timestamp", "second 60 exists only at 23:59:60 UTC")
    return at.replace(microsecond=int((fraction or "0")[:6].ljust(6, "0")))


def _value(given: object) -> str:
    """An exact, finite number within the store's range, as JSON."""
    if isinstance(given, bool) or not isinstance(given, int | str | Decimal):
        hint = "; a float is not exact, give a Decimal or the number as text" if isinstance(given, float) else ""
        raise InvalidEvent("value", f"must be an int, a Decimal or decimal text, not {type(given).__name__}{hint}")
    if isinstance(given, str) and (len(given) > 64 or _number(given) is None):
        raise InvalidEvent("value", "must be a decimal number such as 12.5")
    if isinstance(given, int) and given.bit_length() > 128:
        raise InvalidEvent("value", _RANGE)
    number = Decimal(given)
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):
        raise InvalidEvent("value", "must be finite; NaN and Infinity are refused")
    if not number:
        return "0"
    cut = -exponent - FRACTION_DIGITS_MAX  # digits behind the last place that the store has
    if len(digits) + exponent > WHOLE_DIGITS_MAX or (cut > 0 and (cut >= len(digits) or any(digits[-cut:]))):
        raise InvalidEvent("value", _RANGE)
    return f"{number:f}"


def _data(given: object) -> str:
    if not isinstance(given, Mapping):
        raise InvalidEvent("data", f"must be a mapping, not {type(given).__name__}")
    text = _json("data", given, 1)
    if (size := len(text.encode())) > DATA_BYTES_MAX:
        raise InvalidEvent("data", f"has {size} bytes as JSON; at most {DATA_BYTES_MAX}")
    return text


def _json(path: str, given: object, depth: int) -> str:
    """A value of `data` as JSON. The standard encoder would pass Decimals through a float, or refuse them."""
    match given:
        case str():
            return _text(path, given)
        case bool():
            return "true" if given else "false"
        case None:
            return "null"
        case int() | float() | Decimal():
            return _data_number(path, given)
        case Mapping() | list() | tuple() if depth > DATA_DEPTH_MAX:
            raise InvalidEvent("data", f"is nested deeper than {DATA_DEPTH_MAX}")
        case Mapping():
            return f"{{{','.join(_member(path, key, part, depth) for key, part in given.items())}}}"
        case list() | tuple():
            return f"[{','.join(_json(f'{path}[{n}]', part, depth + 1) for n, part in enumerate(given))}]"
    raise InvalidEvent(path, f"{type(given).__name__} has no form in JSON; give text, a number, a list or a mapping")


def _member(path: str, key: object, value: object, depth: int) -> str:
    if not isinstance(key, str):
        raise InvalidEvent(path, f"keys must be strings, not {type(key).__name__}")
    return f"{_text(path, key)}:{_json(f'{path}.{key}', value, depth + 1)}"


def _data_number(path: str, given: int | float | Decimal) -> str:
    if isinstance(given, int):
        try:
            return int.__repr__(given)
        except ValueError:  # past the interpreter's limit of digits
            raise InvalidEvent(path, "has more digits than Python writes") from None
    if not (given.is_finite() if isinstance(given, Decimal) else isfinite(given)):
        raise InvalidEvent(path, "must be finite; NaN and Infinity are no JSON numbers")
    return Decimal.__str__(given) if isinstance(given, Decimal) else float.__repr__(given)
