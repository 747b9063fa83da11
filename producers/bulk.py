"""The door for large amounts: `POST /v1/events/batch`, a JSON array or NDJSON, also compressed.

Rules: the event's own dialect, timestamps required, verdicts per event. At most 10,000 events and 10 MB, counted after
decompression; `Content-Encoding: gzip` or `zstd`. Blank lines of NDJSON are no events and have no index.
"""

import zlib
from collections.abc import Callable
from typing import Final

import zstandard
from litestar import Response, Router, post

from pipeline.event import FieldError
from producers.auth import needs, principal_of
from producers.body import BODY_BYTES_MAX, EVENTS_MAX, JSON, check_media_type, split_list, too_many
from producers.intake import Intake
from producers.problems import AnyRequest, Problem, bad_fields
from producers.verdicts import receive_lines, verdicts_response

NDJSON: Final = "application/x-ndjson"
_MEDIA_TYPES: Final = (JSON, NDJSON, "application/ndjson", "application/jsonl")
_GZIP_MEMBERS_MAX: Final = 100  # as many files as were joined; more is an attempt to keep us busy
_ZSTD_WINDOW_MAX: Final = 8 << 20
_ZSTD_STEP: Final = 1024  # bytes of input at a time: they unpack to 32 MiB at worst
_GZIP_WINDOW: Final = 31  # zlib's number for "a gzip header and the largest window"


def bulk_router(intake: Intake) -> Router:
    """The routes of this door."""

    @post(
        "/v1/events/batch",
        status_code=200,
        summary="Record many usage events",
        tags=["events"],
        guards=[needs("ingest")],
        request_max_body_size=BODY_BYTES_MAX,
    )
    async def create_batch(request: AnyRequest) -> Response[bytes]:
        """A JSON array or NDJSON of usage events; answers once the log has acknowledged."""
        media_type = check_media_type(request, *_MEDIA_TYPES)
        body = decompress(await request.body(), request.headers.get("content-encoding", "identity")).strip()
        if media_type == JSON and not body.startswith(b"["):
            raise bad_fields([FieldError("", "type", f"must be a JSON array; for one event a line send {NDJSON}")])
        lines = await split_list(body) if media_type == JSON else _split_lines(body)
        return verdicts_response(await receive_lines(intake, principal_of(request).account, lines))

    return Router(path="/", route_handlers=[create_batch])


def decompress(body: bytes, encoding: str) -> bytes:
    """The body as it was before compression, never more than the limit. Raises Problem 400, 413 or 415."""
    unpack = _UNPACKERS.get(encoding.lower())
    if unpack is None:
        raise Problem(415, "unsupported_media_type", f"Content-Encoding {encoding!r} is not gzip or zstd")
    try:
        plain = unpack(body)
    except (zlib.error, zstandard.ZstdError) as error:
        raise bad_fields([FieldError("", "encoding", f"the body is no {encoding}: {error}")]) from error
    if len(plain) > BODY_BYTES_MAX:
        raise Problem(413, "too_large", f"the body is larger than {BODY_BYTES_MAX} bytes; send fewer events at a time")
    return plain


def _gunzip(body: bytes) -> bytes:
    """Every member of the stream, cut just past the limit."""
    plain = b""
    for _ in range(_GZIP_MEMBERS_MAX):
        member = zlib.decompressobj(wbits=_GZIP_WINDOW)
        plain += member.decompress(body, BODY_BYTES_MAX + 1 - len(plain))
        body = member.unused_data
        if len(plain) > BODY_BYTES_MAX or (member.eof and not body):
            return plain
        if not member.eof:
            raise zlib.error("it is cut off")
    raise zlib.error(f"it has more than {_GZIP_MEMBERS_MAX} members")


def _unzstd(body: bytes) -> bytes:
    """One frame, cut past the limit."""
    if not body:
        return b""
    frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj()
    plain = bytearray()
    for start in range(0, len(body), _ZSTD_STEP):
        plain += frame.decompress(body[start : start + _ZSTD_STEP])
        if len(plain) > BODY_BYTES_MAX:
            return bytes(plain)
        if frame.eof:
            break
    if not frame.eof or frame.unused_data or start + _ZSTD_STEP < len(body):
        raise zstandard.ZstdError("it is cut off, or something follows the frame")
    return bytes(plain)


def _split_lines(body: bytes) -> list[bytes]:
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise bad_fields([FieldError("", "syntax", "the body is empty; send at least one event")])
    if len(lines) > EVENTS_MAX:
        raise too_many(len(lines))
    return lines


_UNPACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    "identity": bytes,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
