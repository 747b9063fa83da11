"""Encodings of bodies: HTTP's content codings and ClickHouse's own compressed frames.

Pure: bytes in, bytes out. A frame (``compress=1``, ``decompress=1``) is CityHash128 of what follows
(two u64 LE) ‖ method (0x82 LZ4, 0x90 ZSTD, 0x02 none) ‖ size of method, sizes and data (u32 LE) ‖ size of the
data once decompressed (u32 LE) ‖ data; ClickHouse's CompressedWriteBuffer is the definition.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

import lz4.block  # type: ignore[import-untyped]  # publishes no types
import lz4.frame  # type: ignore[import-untyped]  # publishes no types
import zstandard
from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]  # publishes no types

FRAME_BYTES = 1 << 20
"""Data of one frame at most, as on a server (max_compress_block_size)."""

_PIECE_BYTES = 1 << 20
_SLICE_BYTES = 1 << 11
_HEAD = struct.Struct("<BII")
_HASH_BYTES = 16
_HASH_MASK = (1 << 64) - 1
_LZ4, _ZSTD, _NONE = 0x82, 0x90, 0x02


class EncodingError(ValueError):
    """The body is not in the encoding that it says."""


class TooLargeError(ValueError):
    """The body is larger than is allowed once decoded."""


class Encoder(Protocol):
    """Compresses a stream piece by piece."""

    def compress(self, data: bytes, /) -> bytes:
        """Some output, perhaps empty."""

    def flush(self) -> bytes:
        """What is left, with the end mark."""


class _Lz4Encoder:
    def __init__(self) -> None:
        self._frame = lz4.frame.LZ4FrameCompressor()
        self._head = cast(bytes, self._frame.begin())

    def compress(self, data: bytes, /) -> bytes:
        head, self._head = self._head, b""
        return head + cast(bytes, self._frame.compress(data))

    def flush(self) -> bytes:
        return self._head + cast(bytes, self._frame.flush())


class FrameEncoder:
    """ClickHouse frames with LZ4, one for each FRAME_BYTES of data."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def compress(self, data: bytes, /) -> bytes:
        """Whole frames; the rest waits."""
        self._rest += data
        whole = len(self._rest) - len(self._rest) % FRAME_BYTES
        ready, self._rest = bytes(self._rest[:whole]), self._rest[whole:]
        return b"".join(_frame(ready[at : at + FRAME_BYTES]) for at in range(0, whole, FRAME_BYTES))

    def flush(self) -> bytes:
        """The last frame, or nothing."""
        return _frame(bytes(self._rest)) if self._rest else b""


_ENCODERS: dict[str, Callable[[], Encoder]] = {
    "zstd": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    "lz4": _Lz4Encoder,
    "gzip": lambda: zlib.compressobj(3, zlib.DEFLATED, 31),
    "deflate": lambda: zlib.compressobj(3),
}


def encoder_for(accept_encoding: str) -> tuple[str, Encoder] | None:
    """The best coding that an Accept-Encoding header allows, with its encoder; None: send as it is."""
    accepted = set()
    for item in accept_encoding.lower().split(","):
        name, _, quality = item.partition(";")
        if quality.replace(" ", "") not in {"q=0", "q=0.0"}:
            accepted.add(name.strip())
    best = next((coding for coding in _ENCODERS if coding in accepted), None)
    return None if best is None else (best, _ENCODERS[best]())


def decode(body: bytes | bytearray, coding: str, limit: int) -> bytes | bytearray:
    """Undo a Content-Encoding. Raises EncodingError, and TooLargeError past ``limit`` bytes."""
    if coding in {"", "identity"}:
        return body
    try:
        return b"".join(_bounded(_pieces(body, coding), limit))
    except (zlib.error, zstandard.ZstdError, RuntimeError, EOFError, OSError) as error:
        raise EncodingError(f"the body is not valid {coding}: {error}") from error


def decode_frames(body: bytes | bytearray, limit: int) -> bytes:
    """Data of a sequence of ClickHouse frames. Raises EncodingError, and TooLargeError past ``limit`` bytes."""
    return b"".join(_bounded(_frames(memoryview(body)), limit))


def _bounded(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooLargeError(f"the body is larger than {limit} bytes once decompressed")
        yield piece


def _pieces(body: bytes | bytearray, coding: str) -> Iterator[bytes]:
    if coding == "zstd":
        return _expand(body)
    if coding == "lz4":
        return _read_all(cast(IO[bytes], lz4.frame.open(io.BytesIO(body), "rb")))
    if coding in {"gzip", "x-gzip", "deflate"}:
        return _inflate(body)
    raise EncodingError(f"Content-Encoding {coding} is not supported: use zstd, lz4, gzip or deflate")


def _read_all(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _expand(body: bytes | bytearray) -> Iterator[bytes]:
    """Zstd, frame after frame. Small slices: one of them can swell to 2**15 times its size."""
    stream, rest = zstandard.ZstdDecompressor().decompressobj(), memoryview(body)
    while rest:
        piece, rest = rest[:_SLICE_BYTES], rest[_SLICE_BYTES:]
        yield stream.decompress(piece)
        if stream.eof and (rest or stream.unused_data):
            rest = memoryview(body)[len(body) - len(rest) - len(stream.unused_data) :]
            stream = zstandard.ZstdDecompressor().decompressobj()
    if not stream.eof:
        raise EncodingError("the compressed body ends too early")


def _inflate(body: bytes | bytearray) -> Iterator[bytes]:
    """Gzip (several members too) or zlib, told apart by their first bytes."""
    while body:
        stream = zlib.decompressobj(47)
        while not stream.eof:
            piece = stream.decompress(body, _PIECE_BYTES)
            if not piece and not stream.unconsumed_tail and not stream.eof:
                raise EncodingError("the compressed body ends too early")
            body = stream.unconsumed_tail
            yield piece
        body = stream.unused_data


def _frame(data: bytes) -> bytes:
    packed = cast(bytes, lz4.block.compress(data, store_size=False))
    tail = _HEAD.pack(_LZ4, _HEAD.size + len(packed), len(data)) + packed
    return _hash(tail) + tail


def _frames(body: memoryview) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        head_at = at + _HASH_BYTES
        if head_at + _HEAD.size > len(body):
            raise EncodingError("the last compressed frame is cut off")
        method, packed_size, size = _HEAD.unpack_from(body, head_at)
        end = head_at + packed_size
        if packed_size < _HEAD.size or end > len(body):
            raise EncodingError("the last compressed frame is cut off")
        if _hash(bytes(body[head_at:end])) != body[at:head_at]:
            raise EncodingError("the checksum of a compressed frame is wrong: the body was altered on its way")
        yield _unpack(method, bytes(body[head_at + _HEAD.size : end]), size)
        at = end


def _unpack(method: int, packed: bytes, size: int) -> bytes:
    if size > 1 << 30:
        raise EncodingError(f"a compressed frame of {size} bytes is too large")
    try:
        if method == _LZ4:
            return cast(bytes, lz4.block.decompress(packed, uncompressed_size=size))
        if method == _ZSTD:
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise EncodingError(f"a compressed frame cannot be decompressed: {error}") from error
    if method == _NONE:
        return packed
    raise EncodingError(f"compression method 0x{method:02x} is not supported: use LZ4 or ZSTD")


def _hash(data: bytes) -> bytes:
    value: int = CityHash128(data)
    return struct.pack("<QQ", value >> 64, value & _HASH_MASK)  # the library's high half goes first
