"""Unpack: a batch of records as Kafka lays it out (message format 2) becomes columns. Compiled; pure.

Whatever is not as the format says is left to the caller's driver, which knows how to complain.
"""

from typing import Any, Final

import numpy as np

from pipeline.block import LogRecord
from pipeline.compiled import alike, byte_at, compiled, word_at
from pipeline.records import Headers, Records

_RECORD_BYTES_MIN: Final = 7
_HEADERS_KEPT: Final = 4096
_RECENT: Final = 8  # headers that are compared with before they count as new ones

_FEEDS = np.uint64(0x0A0A0A0A0A0A0A0A)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
_ONES = np.uint64(0x0101010101010101)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U7 = np.uint64(7)
_U56 = np.uint64(56)
_U127 = np.uint64(127)
_known: dict[bytes, Headers] = {}


def unpack(payload: bytes, count: int, base_offset: int, first_ms: int, append_ms: int) -> Records | None:
    """The `count` records of a batch, from its bytes behind the batch's header, unpacked. `append_ms`: the broker's
    append time, which all have; -1 where each has its own, after `first_ms`. None when the bytes are not as they should
    be."""
    if not 0 <= count <= len(payload) // _RECORD_BYTES_MIN:
        return None
    columns = np.zeros((6, count), np.int64)
    spans = np.empty((count, 2), np.int64)
    found = _unpack(np.frombuffer(payload, np.uint8), count, base_offset, first_ms, append_ms, columns, spans)
    if found < 0:
        return None
    headers = []
    for start, end in spans[:found].tolist():
        packed = payload[start:end]
        given = _known.get(packed)
        if given is None:
            try:
                given = _headers(packed)
            except UnicodeDecodeError:
                return None
            if len(_known) >= _HEADERS_KEPT:
                _known.clear()
            _known[packed] = given
        headers.append(given)
    starts, lengths, lines, offsets, times, header = columns
    return Records(payload, starts, lengths, lines, offsets, times, header, headers)


def warm_up() -> None:
    """Compiles, or loads what an earlier process compiled; blocks for a second or so."""
    if unpack(b"\x0e\x00\x00\x00\x01\x02x\x00", 1, 0, 0, 0) != [LogRecord(0, 0, b"x", ())]:
        raise AssertionError("a record of one byte is not unpacked")


def _headers(packed: bytes) -> Headers:
    """Headers whose sizes `_unpack` has looked at."""
    at = 0

    def number() -> int:
        nonlocal at
        word, shift = 0, 0
        while True:
            byte = packed[at]
            at += 1
            word |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return word >> 1 ^ -(word & 1)

    def piece(size: int) -> bytes:
        nonlocal at
        at += size
        return packed[at - size : at]

    found: list[tuple[str, bytes]] = []
    for _ in range(number()):
        name = piece(number()).decode()
        size = number()
        found.append((name, piece(size) if size >= 0 else None))  # type: ignore[arg-type]  # as the driver has it
    return tuple(found)


@compiled
def _varint(buffer: Any, i: Any, end: Any) -> Any:
    """A number and where it ends; -1 when it does not."""
    if i < end and byte_at(buffer, i) < 128:
        word = np.uint64(byte_at(buffer, i))
        return np.int64(word >> _U1) ^ -np.int64(word & _U1), i + 1
    word, shift = _U0, _U0
    while i < end and shift < 64:
        byte = np.uint64(byte_at(buffer, i))
        i += 1
        word |= (byte & _U127) << shift
        shift += _U7
        if byte < 128:
            return np.int64(word >> _U1) ^ -np.int64(word & _U1), i
    return np.int64(0), -1


@compiled
def _lines(buffer: Any, i: Any, end: Any) -> Any:
    """Line feeds, and one."""
    number = np.int64(1)
    while i + 8 <= end:
        word = word_at(buffer, i) ^ _FEEDS
        # exactly the bytes that are 0 get their highest bit, which adds up in the highest byte of the product
        zeros = ~(((word & _LOW) + _LOW) | word | _LOW)
        if zeros != _U0:
            number += np.int64(((zeros >> _U7) * _ONES) >> _U56)
        i += 8
    while i < end:
        if byte_at(buffer, i) == 10:
            number += 1
        i += 1
    return number


@compiled
def _unpack(buffer: Any, count: Any, base_offset: Any, first_ms: Any, append_ms: Any, columns: Any, spans: Any) -> Any:
    """Fills in the columns and where each of the different headers lies; how many there are, -1 for damaged bytes."""
    i, end = 0, len(buffer)
    different = 0
    for row in range(count):
        size, i = _varint(buffer, i, end)
        if i < 0 or size < 0 or size > end - i:
            return -1
        stop = i + size
        if i == stop or byte_at(buffer, i) != 0:  # attributes, of which there are none yet
            return -1
        i += 1
        after, i = _varint(buffer, i, stop)
        if i < 0:
            return -1
        offset, i = _varint(buffer, i, stop)
        if i < 0:
            return -1
        size, i = _varint(buffer, i, stop)
        if i < 0 or size > stop - i:
            return -1
        i += max(size, 0)
        size, i = _varint(buffer, i, stop)
        if i < 0 or size > stop - i:
            return -1
        columns[0, row] = i
        columns[1, row] = size if size >= 0 else -1
        columns[2, row] = _lines(buffer, i, i + size)
        columns[3, row] = base_offset + offset
        if row > 0 and columns[3, row] <= columns[3, row - 1]:
            return -1
        columns[4, row] = append_ms if append_ms >= 0 else first_ms + after
        i += max(size, 0)
        begin = i
        headers, i = _varint(buffer, i, stop)
        if i < 0 or headers < 0:
            return -1
        while headers > 0:
            size, i = _varint(buffer, i, stop)
            if i < 0 or size < 0 or size > stop - i:
                return -1
            i += size
            size, i = _varint(buffer, i, stop)
            if i < 0 or size > stop - i:
                return -1
            i += max(size, 0)
            headers -= 1
        if i != stop:
            return -1
        number = -1
        for k in range(different - 1, max(different - 1 - _RECENT, -1), -1):
            if spans[k, 1] - spans[k, 0] == i - begin and alike(buffer, spans[k, 0], begin, i - begin):
                number = k
                break
        if number < 0:
            number = different
            spans[number, 0], spans[number, 1] = begin, i
            different += 1
        columns[5, row] = number
    return different if i == end else -1
