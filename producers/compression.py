"""Compressed bodies: gzip and zstd back to bytes, never more of them than the limit.

Rules: one pass, cut just past the limit, so that a small body that unpacks to gigabytes costs what the limit costs. A
stream that is cut off, or followed by something else, is refused: half a body must not pass for a whole one.
"""

import zlib
from collections.abc import Callable
from typing import Final

import zstandard

from pipeline.event import FieldError
from producers.problems import Problem, bad_fields

_GZIP_MEMBERS_MAX: Final = 100  # as many files as were joined; more is an attempt to keep us busy
_ZSTD_WINDOW_MAX: Final = 8 << 20
_ZSTD_STEP: Final = 1024  # bytes of input at a time: they unpack to 32 MiB at worst
_GZIP_WINDOW: Final = 31  # zlib's number for "a gzip header and the largest window"


def decompress(body: bytes, encoding: str, *, bytes_max: int) -> bytes:
    """The body as it was before compression, `bytes_max` at most. Raises Problem 400, 413 or 415."""
    unpack = _UNPACKERS.get(encoding.strip().lower())
    if unpack is None:
        raise Problem(
            415,
            "unsupported_media_type",
            f"Content-Encoding {encoding!r} is not gzip or zstd",
            headers={"Accept-Encoding": "gzip, zstd"},
        )
    try:
        plain = unpack(body, bytes_max)
    except (zlib.error, zstandard.ZstdError) as error:
        raise bad_fields([FieldError("", "encoding", f"the body is no {encoding}: {error}")]) from error
    if len(plain) > bytes_max:
        raise Problem(413, "too_large", f"the body is larger than {bytes_max} bytes; send fewer events at a time")
    return plain


def _as_it_is(body: bytes, _: int) -> bytes:
    return body


def _gunzip(body: bytes, bytes_max: int) -> bytes:
    """Every member of the stream, cut just past the limit."""
    plain = b""
    for _ in range(_GZIP_MEMBERS_MAX):
        member = zlib.decompressobj(wbits=_GZIP_WINDOW)
        plain += member.decompress(body, bytes_max + 1 - len(plain))
        body = member.unused_data
        if len(plain) > bytes_max or (member.eof and not body):
            return plain
        if not member.eof:
            raise zlib.error("it is cut off")
    raise zlib.error(f"it has more than {_GZIP_MEMBERS_MAX} members")


def _unzstd(body: bytes, bytes_max: int) -> bytes:
    """One frame, cut past the limit."""
    if not body:
        return b""
    frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj()
    plain = bytearray()
    for start in range(0, len(body), _ZSTD_STEP):
        plain += frame.decompress(body[start : start + _ZSTD_STEP])
        if len(plain) > bytes_max:
            return bytes(plain)
        if frame.eof:
            break
    if not frame.eof or frame.unused_data or start + _ZSTD_STEP < len(body):
        raise zstandard.ZstdError("it is cut off, or something follows the frame")
    return bytes(plain)


_UNPACKERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "": _as_it_is,
    "identity": _as_it_is,
    "gzip": _gunzip,
    "x-gzip": _gunzip,  # RFC 9110: the same
    "zstd": _unzstd,
}
