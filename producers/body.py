"""Bodies: bytes of a request to JSON, under the limits, with exact numbers and no key taken twice.

Rules: nothing is parsed before its size and media type are known. Numbers are int or Decimal, never float. In a list
every event is cut out as bytes, so that each can be refused alone, also when it is no JSON.
"""

import asyncio
import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from pipeline.event import FieldError
from producers.compression import decompress
from producers.incoming import JSON, Incoming
from producers.problems import Problem, bad_fields

BODY_BYTES_MAX: Final = 10_000_000
EVENTS_MAX: Final = 10_000
_DEPTH_MAX: Final = 100  # an event's data may have 64 levels


async def read_body(request: Incoming, *media_types: str, compressed: bool = False) -> bytes:
    """The body, when it has one of the media types (default: JSON). Raises Problem 400, 413 or 415.

    `compressed`: the address takes gzip and zstd too, and the body is given as it was before.
    """
    check_media_type(request, *(media_types or (JSON,)))
    encoding = request.headers.get("content-encoding", "identity")
    if not compressed and encoding.lower() != "identity":
        raise Problem(415, "unsupported_media_type", "this address takes no compressed body; send it as it is")
    body = await request.body()
    if compressed:
        body = decompress(body, encoding, bytes_max=BODY_BYTES_MAX)
    if not body.strip():
        raise bad_fields([FieldError("", "syntax", "the body is empty; send JSON")])
    return body


def check_media_type(request: Incoming, *media_types: str) -> str:
    """The request's media type. Raises Problem 415 when it is none of these, or not in UTF-8."""
    media_type, options = request.content_type
    charset = options.get("charset", "utf-8").strip('"').lower()
    if media_type.lower() not in media_types or charset not in ("utf-8", "utf8"):
        wanted = " or ".join(media_types)
        given = request.headers.get("content-type", "none")
        raise Problem(
            415,
            "unsupported_media_type",
            f"send Content-Type: {wanted} in UTF-8, not {given}",
            errors=[FieldError("Content-Type", "unsupported", f"must be {wanted}")],
            headers={"Accept": ", ".join(media_types)},
        )
    return media_type.lower()


def decode_object(body: bytes, *, exact: bool = True) -> dict[str, Any]:
    """The JSON object of a body. Raises Problem 400 for what is no JSON, 422 for a key given twice or no object.

    `exact`: numbers with a point are Decimal, and NaN is for the check of its field to refuse. Otherwise float.
    """
    try:
        found = (_decode_exactly if exact else _decode_plainly)(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise bad_fields([FieldError("", "encoding", f"byte {error.start} of the body is no UTF-8")]) from error
    except _DuplicateKey as error:
        key = str(error)
        raise bad_fields([FieldError(key, "duplicate_key", f"key {key!r} comes twice")]) from error
    except json.JSONDecodeError as error:
        raise bad_fields([FieldError("", "syntax", f"is no JSON: {error.msg} at character {error.pos}")]) from error
    except (ValueError, RecursionError) as error:
        raise bad_fields([FieldError("", "syntax", f"is no JSON: {error}")]) from error
    if not isinstance(found, dict):
        raise bad_fields([FieldError("", "type", "must be a JSON object")])
    return found


async def split_list(body: bytes) -> list[bytes]:
    """The items of a JSON array, each as its own bytes. Raises Problem 400, or 413 past the most events."""
    try:
        items = [bytes(item) for item in _decode_list(body)]
    except (msgspec.MsgspecError, RecursionError):
        # some item is no JSON, or the whole is cut off: look closely, outside the event loop's own turn
        items = await asyncio.to_thread(split_broken_list, body)
    if not items:
        raise bad_fields([FieldError("", "syntax", "the list is empty; send at least one event")])
    if len(items) > EVENTS_MAX:
        raise too_many(len(items))
    return items


def split_broken_list(body: bytes) -> list[bytes]:
    """The items of an array by brackets and strings alone, whatever else is wrong inside them. Raises Problem."""
    start = end = body.index(b"[") + 1
    items: list[bytes] = []
    depth = 1
    while depth:
        token = _token_inside(body, end) if depth > 1 else _token_between(body, end)
        if token is None or token[0] == b'"' or depth > _DEPTH_MAX or len(items) > EVENTS_MAX:
            break
        end = token.end()
        match token[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}":
                depth -= 1
        if depth == 0 or (depth == 1 and token[0] == b","):
            items.append(body[start : token.start()].strip())
            start = end
    if len(items) > EVENTS_MAX:
        raise too_many(len(items))
    if depth or body[end - 1 : end] != b"]" or body[end:].strip():
        raise bad_fields([FieldError("", "syntax", f"is no JSON: the list is cut off or broken at byte {end}")])
    return items


def too_many(count: int) -> Problem:
    """A 413 for a list of too many events."""
    return Problem(413, "too_large", f"the list has {count} events or more; send at most {EVENTS_MAX} at a time")


class _DuplicateKey(Exception):  # noqa: N818 - turned into a Problem at once
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(key)
        found[key] = value
    return found


def _number(text: str) -> Decimal:
    """The number as it is spelled; what none can hold is infinite, for the check of its field to refuse."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("Infinity")


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) < 64 else _number(text)  # a number of a million digits costs seconds as int


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


_decode_exactly = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_number, parse_int=_whole, parse_constant=Decimal
).decode
_decode_plainly = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_whole, parse_constant=_no_number).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
# possessive, and a quote that nothing closes is a token of its own: a hostile body costs one pass, not its square
_STRING = rb'"(?:[^"\\]++|\\.)*+"|"'
_token_between = re.compile(rb"[\[\]{},]|" + _STRING, re.DOTALL).search
_token_inside = re.compile(rb"[\[\]{}]|" + _STRING, re.DOTALL).search
