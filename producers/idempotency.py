"""The header `Idempotency-Key`: the transactionId of a request that states one event and has no id in its body.

Rules: 1 to 256 characters, bare or as the quoted string of the HTTP draft ("…"); both spell the same key. An event that
names another id in its body is refused. A list is refused too, since a key that is silently left out would count twice;
where a dialect's client can name a list in no other way, the items' ids are made of the key (`part_key`).
"""

import re
from typing import Final

import msgspec

from pipeline.event import ID_CHARS_MAX, Event, FieldError
from producers.incoming import Incoming
from producers.problems import bad_fields

HEADER: Final = "Idempotency-Key"
_NAME: Final = HEADER.lower()
_quoted = re.compile(r'"((?:[^"\\]|\\["\\])*)"').fullmatch
_unescaped = re.compile(r"\\(.)").sub


def idempotency_key(request: Incoming) -> str | None:
    """The key, or None without the header. Raises Problem 422 for one that can be no id."""
    given = request.headers.get(_NAME)
    if given is None:
        return None
    quoted = _quoted(given.strip())
    key = _unescaped(r"\1", quoted[1]) if quoted else given.strip()
    if not 1 <= len(key) <= ID_CHARS_MAX:
        raise bad_fields([FieldError(HEADER, "range", f"must have 1 to {ID_CHARS_MAX} characters, not {len(key)}")])
    return key


def part_key(key: str, index: int) -> str:
    """The id of an item of a list that came under one key. Raises Problem 422 where it would be too long."""
    made = f"{len(key)}:{key}{index}"
    if len(made) > ID_CHARS_MAX:
        raise bad_fields([FieldError(HEADER, "range", "is too long for the key of a list; 240 characters are not")])
    return made


def refuse_for_list(request: Incoming) -> None:
    """Raises Problem 422 when a list of events came with the header."""
    if request.headers.get(_NAME) is not None:
        told = "names one event, and this is a list; give each event its own id instead"
        raise bad_fields([FieldError(HEADER, "exclusive", told)])


def named_by(event: Event, key: str | None, field: str = "transactionId") -> Event | FieldError:
    """The event under the key. FieldError when it has another id already; `field` is the dialect's name of that."""
    if key is None or event.transaction_id == key:
        return event
    if event.transaction_id is not None:
        return FieldError(HEADER, "exclusive", f"differs from {field} in the body; give one of the two")
    return msgspec.structs.replace(event, transaction_id=key)
