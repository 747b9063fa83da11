"""Scan: lines of JSON become columns without a Python object for any event. Compiled; pure.

A line that this scanner takes is one that `pipeline.event.decode_event` takes too, with the same meaning; whatever is
unusual (an escape, an exponent, an unknown or doubled key, a null, a number of more than 18 digits) is left to
`decode_event`, which alone knows how to explain a refusal. So the scanner may be strict, and is never asked why.
`tests/pipeline/test_scan.py` holds the two against each other.

All offsets count bytes of one buffer. Numbers are in units of 10**-9, as two's complement of 128 bits in two words.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.compiled import byte_at as _byte
from pipeline.compiled import compiled
from pipeline.compiled import half_at as _half
from pipeline.compiled import trailing_zeros as _zeros
from pipeline.compiled import word_at as _word
from pipeline.event import (
    DATA_BYTES_MAX,
    ID_CHARS_MAX,
    LINE_BYTES_MAX,
    TAG_ARRAY,
    TAG_EVENT,
    TAG_FALSE,
    TAG_NONE,
    TAG_NULL,
    TAG_NUMBER,
    TAG_OBJECT,
    TAG_TEXT,
    TAG_TRUE,
    YEAR_2100_US,
    text_hash,
)

#: What a wanted key of the data holds.
ABSENT: Final = 0
TEXT: Final = 1
NUMBER: Final = 2
OTHER: Final = 3

#: Text fields, in the order of `Scanned.spans`.
CLIENT: Final = 0
TRANSACTION: Final = 1
EVENT_NAME: Final = 2
FEATURE: Final = 3
ENTITY: Final = 4
DATA: Final = 5

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint64]
_Ints = npt.NDArray[np.int64]


class Scanned(NamedTuple):
    """What was scanned, a row a line. `taken` is 0 for lines left to `decode_event`, whose other columns mean nothing.

    `spans[row, field]`: start and length in the buffer, start -1 for none. `value`: low and high word. `client`: 64-bit
    hash of the customer, `name`: of event name or feature id. Of each wanted key: `kinds`, and a span or a number.
    """

    taken: _Bytes
    spans: _Ints
    timestamp_us: _Ints
    value: _Words
    content: _Words
    client: _Words
    name: _Words
    kinds: _Bytes
    texts: _Ints
    numbers: _Words


def split(buffer: _Bytes, starts: _Ints, ends: _Ints, lines: int) -> tuple[_Ints, _Ints, _Ints, _Ints]:
    """Start, end, record and number of every line that is not blank. `starts`, `ends`: where each record's bytes lie.
    `lines`: at least as many as there are line feeds and records. A record without lines has one empty line."""
    return _split(buffer, starts, ends, lines)  # type: ignore[no-any-return]


def scan(
    buffer: _Bytes, starts: _Ints, ends: _Ints, latest_us: _Ints, stampless: _Bytes, wanted: tuple[str, ...]
) -> Scanned:
    """Scans the lines [starts, ends). `latest_us`: the last timestamp a line may have; `stampless`: lines whose
    content leaves the timestamp out. `wanted`: keys of the data's top level to be read out."""
    count, keys = len(starts), len(wanted)
    found = Scanned(
        taken=np.zeros(count, np.uint8),
        spans=np.full((count, 6, 2), -1, np.int64),
        timestamp_us=np.zeros(count, np.int64),
        value=np.zeros((count, 2), np.uint64),
        content=np.zeros(count, np.uint64),
        client=np.zeros(count, np.uint64),
        name=np.zeros(count, np.uint64),
        kinds=np.zeros((count, keys), np.uint8),
        texts=np.zeros((count, keys, 2), np.int64),
        numbers=np.zeros((count, keys, 2), np.uint64),
    )
    names = [key.encode() for key in wanted]
    wanted_bytes = np.frombuffer(b"".join(names) or b"\0", np.uint8)
    wanted_ends = np.cumsum([0, *map(len, names)]).astype(np.int64)
    wanted_hashes = np.array([text_hash(key) for key in wanted], np.uint64)
    _scan(buffer, starts, ends, latest_us, stampless, wanted_hashes, wanted_bytes, wanted_ends, *found)
    return found


# ------------------------------------------------------------------------------------------------ hashing
# XXH64 as its specification says; `pipeline.event` has the same by the xxhash library.

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U9 = np.uint64(9)
_U10 = np.uint64(10)
_U31 = np.uint64(31)
_U32 = np.uint64(32)
_U64 = np.uint64(64)
_LOW = np.uint64(0xFFFFFFFF)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@compiled
def _rotate(word: Any, bits: Any) -> Any:
    return (word << np.uint64(bits)) | (word >> (_U64 - np.uint64(bits)))


@compiled
def _avalanche(h: Any) -> Any:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> _U32)


@compiled
def _xxh64(buffer: Any, start: Any, end: Any, seed: Any) -> Any:
    i = start
    length = np.uint64(end - start)
    if end - start >= 32:
        a = seed + _P1 + _P2
        b = seed + _P2
        c = seed + _U0
        d = seed - _P1
        while i + 32 <= end:
            a = _rotate(a + _word(buffer, i) * _P2, 31) * _P1
            b = _rotate(b + _word(buffer, i + 8) * _P2, 31) * _P1
            c = _rotate(c + _word(buffer, i + 16) * _P2, 31) * _P1
            d = _rotate(d + _word(buffer, i + 24) * _P2, 31) * _P1
            i += 32
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        h = (h ^ (_rotate(a * _P2, 31) * _P1)) * _P1 + _P4
        h = (h ^ (_rotate(b * _P2, 31) * _P1)) * _P1 + _P4
        h = (h ^ (_rotate(c * _P2, 31) * _P1)) * _P1 + _P4
        h = (h ^ (_rotate(d * _P2, 31) * _P1)) * _P1 + _P4
    else:
        h = seed + _P5
    h += length
    while i + 8 <= end:
        h = _rotate(h ^ (_rotate(_word(buffer, i) * _P2, 31) * _P1), 27) * _P1 + _P4
        i += 8
    if i + 4 <= end:
        h = _rotate(h ^ (_half(buffer, i) * _P1), 23) * _P2 + _P3
        i += 4
    while i < end:
        h = _rotate(h ^ (np.uint64(_byte(buffer, i)) * _P5), 11) * _P1
        i += 1
    return _avalanche(h)


_TEXT = np.uint64(TAG_TEXT)
_NUMBER = np.uint64(TAG_NUMBER)
_OBJECT = np.uint64(TAG_OBJECT)
_ARRAY = np.uint64(TAG_ARRAY)
_TRUE = np.uint64(TAG_TRUE)
_FALSE = np.uint64(TAG_FALSE)
_NULL = np.uint64(TAG_NULL)
_NONE = np.uint64(TAG_NONE)
_EVENT = np.uint64(TAG_EVENT)


@compiled
def _chained(h: Any, part: Any) -> Any:
    """`pipeline.event.chained`."""
    return _avalanche(h * _P1 + part + _P4)


@compiled
def _paired(key: Any, value: Any) -> Any:
    """`pipeline.event.paired`."""
    return _avalanche(key * _P1 + _rotate(value, 31) * _P2)


@compiled
def _closed(total: Any, count: Any, tag: Any) -> Any:
    """`pipeline.event.closed`."""
    return _avalanche(total + np.uint64(count) * _P3 + tag)


@compiled
def _number_hash(negative: Any, digits: Any, fraction: Any) -> Any:
    """`pipeline.event.number_hash` of digits * 10**-fraction."""
    exponent = -fraction
    if digits == _U0:
        negative, exponent = False, 0
    else:
        while digits % _U10 == _U0:
            digits //= _U10
            exponent += 1
    sign = _U1 if negative else _U0
    return _chained(_chained(_NUMBER + sign, digits), np.uint64(exponent + 4096))


# ------------------------------------------------------------------------------------------------ lines


@compiled
def _split(buffer: Any, record_starts: Any, record_ends: Any, most: Any) -> Any:
    starts = np.empty(most, np.int64)
    ends = np.empty(most, np.int64)
    records = np.empty(most, np.int64)
    numbers = np.empty(most, np.int64)
    whole = len(buffer) - 8
    count = 0
    for record in range(len(record_ends)):
        begin, stop = record_starts[record], record_ends[record]
        found = False
        number = 0
        start = begin
        i = begin
        while i <= stop:
            while i < stop and i <= whole:  # to the next line feed, eight bytes at a time
                feeds = _zero_bytes(_word(buffer, i) ^ _FEEDS)
                if feeds != _U0:
                    i += _zeros(feeds) >> 3
                    break
                i += 8
            while i < stop and _byte(buffer, i) != 10:
                i += 1
            i = min(i, stop)
            at = start
            while at < i and (_byte(buffer, at) == 32 or 9 <= _byte(buffer, at) <= 13):
                at += 1
            if at < i:
                starts[count], ends[count], records[count], numbers[count] = start, i, record, number
                count += 1
                found = True
            i += 1
            start = i
            number += 1
        if not found:
            starts[count], ends[count], records[count], numbers[count] = begin, begin, record, 0
            count += 1
    return starts[:count], ends[:count], records[:count], numbers[:count]


@compiled
def _space(buffer: Any, i: Any, end: Any) -> Any:
    while i < end:
        c = _byte(buffer, i)
        if c > 32 or (c != 32 and c != 9 and c != 13 and c != 10):
            break
        i += 1
    return i


_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_FEEDS = np.uint64(0x0A0A0A0A0A0A0A0A)
_QUOTES = np.uint64(0x2222222222222222)
_ESCAPES = np.uint64(0x5C5C5C5C5C5C5C5C)
_SPACES = np.uint64(0x2020202020202020)


@compiled
def _zero_bytes(word: Any) -> Any:
    """A word whose lowest bit that is set lies in the lowest byte of `word` that is 0; bits above mean nothing."""
    return (word - _ONES) & ~word & _HIGHS


@compiled
def _string_end(buffer: Any, i: Any, end: Any) -> Any:
    """Where the text that begins at i is closed; -1 when it is not, or has an escape or a control character."""
    while i + 8 <= end:
        word = _word(buffer, i)
        control = (word - _SPACES) & ~word & _HIGHS
        found = _zero_bytes(word ^ _QUOTES) | _zero_bytes(word ^ _ESCAPES) | control
        if found != _U0:
            i += _zeros(found) >> 3
            return i if _byte(buffer, i) == 34 else -1
        i += 8
    while i < end:
        c = _byte(buffer, i)
        if c == 34:
            return i
        if c == 92 or c < 32:
            return -1
        i += 1
    return -1


@compiled
def _ascii(buffer: Any, i: Any, end: Any) -> Any:
    bits = _U0
    while i + 8 <= end:
        bits |= _word(buffer, i)
        i += 8
    while i < end:
        bits |= np.uint64(_byte(buffer, i))
        i += 1
    return bits & _HIGHS == _U0


@compiled
def _utf8(buffer: Any, i: Any, end: Any) -> Any:
    """Whether the bytes are well-formed UTF-8 (Unicode, table 3-7)."""
    while i < end:
        c = _byte(buffer, i)
        if c < 0x80:
            i += 1
            continue
        low, high, more = 0x80, 0xBF, 0
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            more = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return False
        if i + more >= end or not low <= _byte(buffer, i + 1) <= high:
            return False
        for k in range(2, more + 1):
            if not 0x80 <= _byte(buffer, i + k) <= 0xBF:
                return False
        i += more + 1
    return True


@compiled
def _number(buffer: Any, i: Any, end: Any) -> Any:
    """A number of at most 18 digits without exponent: where it ends (-1: none such), its sign, its digits, and how
    many of them lie behind the point."""
    negative = False
    if i < end and _byte(buffer, i) == 45:
        negative = True
        i += 1
    first = i
    digits = _U0
    while i < end and 48 <= _byte(buffer, i) <= 57:
        if i - first < 18:
            digits = digits * _U10 + np.uint64(_byte(buffer, i) - 48)
        i += 1
    whole = i - first
    if whole == 0 or whole > 18 or (whole > 1 and _byte(buffer, first) == 48):
        return -1, negative, digits, 0
    fraction = 0
    if i < end and _byte(buffer, i) == 46:
        i += 1
        point = i
        while i < end and 48 <= _byte(buffer, i) <= 57:
            if whole + i - point < 18:
                digits = digits * _U10 + np.uint64(_byte(buffer, i) - 48)
            i += 1
        fraction = i - point
        if fraction == 0 or whole + fraction > 18:
            return -1, negative, digits, 0
    if i < end and (_byte(buffer, i) == 101 or _byte(buffer, i) == 69):
        return -1, negative, digits, 0
    return i, negative, digits, fraction


@compiled
def _scaled(negative: Any, digits: Any, fraction: Any) -> Any:
    """digits * 10**(9 - fraction) as two words."""
    factor = _U1
    for _ in range(9 - fraction):
        factor *= _U10
    low = (digits & _LOW) * factor
    high = (digits >> _U32) * factor
    word = low + (high << _U32)
    above = (high + (low >> _U32)) >> _U32
    if negative:
        word = (word ^ _ALL) + _U1
        above = (above ^ _ALL) + (_U1 if word == _U0 else _U0)
    return word, above


@compiled
def _two(buffer: Any, i: Any) -> Any:
    """Two digits; -1 when they are none."""
    a, b = _byte(buffer, i), _byte(buffer, i + 1)
    if 48 <= a <= 57 and 48 <= b <= 57:
        return (np.int64(a) - 48) * 10 + np.int64(b) - 48
    return -1


@compiled
def _instant(buffer: Any, i: Any, end: Any) -> Any:
    """Microseconds of an RFC 3339 instant; -1 for what needs a closer look."""
    if end - i < 20 or _byte(buffer, i + 4) != 45 or _byte(buffer, i + 7) != 45:
        return -1
    if _byte(buffer, i + 13) != 58 or _byte(buffer, i + 16) != 58:
        return -1
    if _byte(buffer, i + 10) != 84:
        return -1
    century, rest = _two(buffer, i), _two(buffer, i + 2)
    month, day = _two(buffer, i + 5), _two(buffer, i + 8)
    hour, minute, second = _two(buffer, i + 11), _two(buffer, i + 14), _two(buffer, i + 17)
    if century < 19 or rest < 0 or not 1 <= month <= 12 or day < 1 or hour < 0 or minute < 0 or second < 0:
        return -1
    if hour > 23 or minute > 59 or second > 59:
        return -1
    year = century * 100 + rest
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = 31
    if month == 2:
        days = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        days = 30
    if day > days:
        return -1
    i += 19
    us = np.int64(0)
    if _byte(buffer, i) == 46:
        i += 1
        unit = np.int64(100_000)
        first = i
        while i < end and 48 <= _byte(buffer, i) <= 57:
            us += (np.int64(_byte(buffer, i)) - 48) * unit
            unit //= 10
            i += 1
        if i == first or i == end:
            return -1
    offset = 0
    if _byte(buffer, i) == 90:
        if i + 1 != end:
            return -1
    elif _byte(buffer, i) == 43 or _byte(buffer, i) == 45:
        if i + 6 != end or _byte(buffer, i + 3) != 58:
            return -1
        hours, minutes = _two(buffer, i + 1), _two(buffer, i + 4)
        if not 0 <= hours <= 23 or not 0 <= minutes <= 59:
            return -1
        offset = hours * 3600 + minutes * 60
        if _byte(buffer, i) == 45:
            offset = -offset
    else:
        return -1
    # days since 1970 of a civil date, counted from March
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    number = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    found = (number * 86400 + hour * 3600 + minute * 60 + second - offset) * 1_000_000 + us
    return found if 0 <= found < YEAR_2100_US else -1


_CLIENT_ID, _TIMESTAMP, _TRANSACTION_ID, _EVENT_NAME, _FEATURE_ID, _VALUE, _KIND, _ENTITY_ID, _DATA = range(9)


def _first_and_last(name: bytes) -> tuple[int, int]:
    """A name's first and its last eight bytes; together with its length they are all of it, up to sixteen."""
    return int.from_bytes(name[:8], "little"), int.from_bytes(name[-8:], "little")


_C, _T, _I, _N, _F, _V, _K, _E, _D = (
    tuple(map(np.uint64, _first_and_last(name)))
    for name in (
        b"clientId", b"timestamp", b"transactionId", b"eventName", b"featureId", b"value", b"kind", b"entityId", b"data"
    )
)  # fmt: skip
_DELTA = np.frombuffer(b"delta", np.uint8)
_LITERALS = np.frombuffer(b"truefalsenull", np.uint8)


@compiled
def _field(buffer: Any, start: Any, end: Any) -> Any:
    """Number of the event's field that the bytes name; -1 for none."""
    length = end - start
    if length >= 8:
        first, last = _word(buffer, start), _word(buffer, end - 8)
        if length == 9:
            if first == _T[0] and last == _T[1]:
                return _TIMESTAMP
            if first == _N[0] and last == _N[1]:
                return _EVENT_NAME
            if first == _F[0] and last == _F[1]:
                return _FEATURE_ID
        elif length == 8:
            if first == _C[0]:
                return _CLIENT_ID
            if first == _E[0]:
                return _ENTITY_ID
        elif length == 13 and first == _I[0] and last == _I[1]:
            return _TRANSACTION_ID
    elif length >= 4:
        first = _half(buffer, start)
        if length == 4:
            if first == _D[0]:
                return _DATA
            if first == _K[0]:
                return _KIND
        elif length == 5 and first | np.uint64(_byte(buffer, start + 4)) << _U32 == _V[0]:
            return _VALUE
    return -1


@compiled
def _which(buffer: Any, start: Any, end: Any, name: Any, hashes: Any, names: Any, ends: Any) -> Any:
    """Number of the wanted key that the bytes are, whose hash is `name`; -1 for none."""
    for number in range(len(ends) - 1):
        if hashes[number] == name and ends[number + 1] - ends[number] == end - start:
            if _is(buffer, start, end, names, ends[number], ends[number + 1]):
                return number
    return -1


@compiled
def _is(buffer: Any, i: Any, end: Any, text: Any, first: Any, last: Any) -> Any:
    if i + (last - first) > end:
        return False
    for k in range(last - first):
        if _byte(buffer, i + k) != text[first + k]:
            return False
    return True


_DEPTH_MAX = 8
_KEYS_MAX = 64
_KEY_OR_END, _KEY, _ANY, _ANY_OR_END, _COMMA_OR_END = range(5)


@compiled
def _document(
    buffer: Any,
    i: Any,
    end: Any,
    row: Any,
    wanted_hashes: Any,
    wanted_bytes: Any,
    wanted_ends: Any,
    kinds: Any,
    texts: Any,
    numbers: Any,
    keys: Any,
    totals: Any,
    counts: Any,
    names: Any,
    bases: Any,
    arrays: Any,
) -> Any:
    """The JSON object that begins at i: where it ends (-1: left to a closer look), and its hash. `keys` to `arrays`
    are room for open objects and arrays."""
    depth = 0
    totals[0], counts[0], bases[0], arrays[0] = _U0, 0, 0, False
    known = 0  # keys of all open objects
    state = _KEY_OR_END
    want = -1
    i += 1
    while True:
        i = _space(buffer, i, end)
        if i >= end:
            return -1, _U0
        c = _byte(buffer, i)
        value = _U0
        if state == _KEY_OR_END or state == _KEY:
            if c == 34:
                stop = _string_end(buffer, i + 1, end)
                if stop < 0 or known >= _KEYS_MAX:
                    return -1, _U0
                name = _xxh64(buffer, i + 1, stop, _TEXT)
                for k in range(bases[depth], known):
                    if keys[k] == name:
                        return -1, _U0
                keys[known] = name
                known += 1
                names[depth] = name
                if depth == 0:
                    want = _which(buffer, i + 1, stop, name, wanted_hashes, wanted_bytes, wanted_ends)
                i = _space(buffer, stop + 1, end)
                if i >= end or _byte(buffer, i) != 58:
                    return -1, _U0
                i += 1
                state = _ANY
                continue
            if c != 125 or state == _KEY:
                return -1, _U0
        elif state == _COMMA_OR_END and c == 44:
            state = _ANY if arrays[depth] else _KEY
            i += 1
            continue
        if state == _ANY or (state == _ANY_OR_END and c != 93):
            if c == 123 or c == 91:
                if depth == 0 and want >= 0:
                    kinds[row, want] = OTHER
                depth += 1
                if depth >= _DEPTH_MAX:
                    return -1, _U0
                totals[depth], counts[depth], bases[depth] = _U0, 0, known
                arrays[depth] = c == 91
                state = _ANY_OR_END if c == 91 else _KEY_OR_END
                i += 1
                continue
            if c == 34:
                stop = _string_end(buffer, i + 1, end)
                if stop < 0:
                    return -1, _U0
                value = _xxh64(buffer, i + 1, stop, _TEXT)
                if depth == 0 and want >= 0:
                    kinds[row, want] = TEXT
                    texts[row, want, 0], texts[row, want, 1] = i + 1, stop - i - 1
                i = stop + 1
            elif c == 45 or 48 <= c <= 57:
                stop, negative, digits, fraction = _number(buffer, i, end)
                if stop < 0:
                    return -1, _U0
                value = _number_hash(negative, digits, fraction)
                if depth == 0 and want >= 0:
                    if fraction > 9:
                        return -1, _U0
                    kinds[row, want] = NUMBER
                    numbers[row, want, 0], numbers[row, want, 1] = _scaled(negative, digits, fraction)
                i = stop
            else:
                if _is(buffer, i, end, _LITERALS, 0, 4):
                    value, i = _TRUE, i + 4
                elif _is(buffer, i, end, _LITERALS, 4, 9):
                    value, i = _FALSE, i + 5
                elif _is(buffer, i, end, _LITERALS, 9, 13):
                    value, i = _NULL, i + 4
                else:
                    return -1, _U0
                if depth == 0 and want >= 0:
                    kinds[row, want] = OTHER
        else:  # the end of what is open
            if c != (93 if arrays[depth] else 125):
                return -1, _U0
            value = _closed(totals[depth], counts[depth], _ARRAY if arrays[depth] else _OBJECT)
            i += 1
            if depth == 0:
                return i, value
            known = bases[depth]
            depth -= 1
        if arrays[depth]:
            totals[depth] = _chained(totals[depth], value)
        else:
            totals[depth] += _paired(names[depth], value)
        counts[depth] += 1
        state = _COMMA_OR_END


@compiled
def _scan(
    buffer: Any,
    starts: Any,
    ends: Any,
    latest_us: Any,
    stampless: Any,
    wanted_hashes: Any,
    wanted_bytes: Any,
    wanted_ends: Any,
    taken: Any,
    spans: Any,
    timestamps: Any,
    values: Any,
    contents: Any,
    clients: Any,
    event_names: Any,
    kinds: Any,
    texts: Any,
    numbers: Any,
) -> None:
    keys = np.empty(_KEYS_MAX, np.uint64)
    totals = np.empty(_DEPTH_MAX, np.uint64)
    counts = np.empty(_DEPTH_MAX, np.int64)
    names = np.empty(_DEPTH_MAX, np.uint64)
    bases = np.empty(_DEPTH_MAX, np.int64)
    arrays = np.empty(_DEPTH_MAX, np.bool_)
    for row in range(len(starts)):
        i, end = starts[row], ends[row]
        if end - i > LINE_BYTES_MAX:
            continue
        start = i
        i = _space(buffer, i, end)
        if i >= end or _byte(buffer, i) != 123:
            continue
        i += 1
        given = 0
        value = _number_hash(False, _U1, 0)
        value_low, value_high = _scaled(False, _U1, 0)
        document = _NONE
        us = np.int64(-1)
        good = False
        while True:
            i = _space(buffer, i, end)
            if i >= end or _byte(buffer, i) != 34:
                break
            stop = _string_end(buffer, i + 1, end)
            if stop < 0:
                break
            field = _field(buffer, i + 1, stop)
            if field < 0 or given & (1 << field):
                break
            given |= 1 << field
            i = _space(buffer, stop + 1, end)
            if i >= end or _byte(buffer, i) != 58:
                break
            i = _space(buffer, i + 1, end)
            if i >= end:
                break
            if field == _VALUE:
                stop, negative, digits, fraction = _number(buffer, i, end)
                if stop < 0 or fraction > 9:
                    break
                value = _number_hash(negative, digits, fraction)
                value_low, value_high = _scaled(negative, digits, fraction)
                i = stop
            elif field == _DATA:
                if _byte(buffer, i) != 123:
                    break
                stop, document = _document(
                    buffer, i, end, row, wanted_hashes, wanted_bytes, wanted_ends, kinds, texts, numbers,
                    keys, totals, counts, names, bases, arrays,
                )  # fmt: skip
                if stop < 0 or stop - i > DATA_BYTES_MAX:
                    break
                spans[row, DATA, 0], spans[row, DATA, 1] = i, stop - i
                i = stop
            else:
                if _byte(buffer, i) != 34:
                    break
                i += 1
                stop = _string_end(buffer, i, end)
                if stop < 0:
                    break
                if field == _TIMESTAMP:
                    us = _instant(buffer, i, stop)
                    if us < 0:
                        break
                elif field == _KIND:
                    if stop - i != 5 or not _is(buffer, i, stop, _DELTA, 0, 5):
                        break
                else:
                    if stop == i or stop - i > ID_CHARS_MAX:
                        break
                    if field == _CLIENT_ID:
                        place = CLIENT
                    elif field == _TRANSACTION_ID:
                        place = TRANSACTION
                    elif field == _EVENT_NAME:
                        place = EVENT_NAME
                    elif field == _FEATURE_ID:
                        place = FEATURE
                    else:
                        place = ENTITY
                    spans[row, place, 0], spans[row, place, 1] = i, stop - i
                i = stop + 1
            i = _space(buffer, i, end)
            if i >= end:
                break
            if _byte(buffer, i) == 125:
                good = _space(buffer, i + 1, end) == end
                break
            if _byte(buffer, i) != 44:
                break
            i += 1
        named = (given >> _EVENT_NAME) & 1, (given >> _FEATURE_ID) & 1
        if not good or us < 0 or us > latest_us[row] or spans[row, CLIENT, 0] < 0 or (named[0] and named[1]):
            continue
        if not _ascii(buffer, start, end) and not _utf8(buffer, start, end):
            continue
        content = _EVENT
        name = _NONE
        for place in (CLIENT, EVENT_NAME, FEATURE, ENTITY):
            part = _NONE
            at = spans[row, place, 0]
            if at >= 0:
                part = _xxh64(buffer, at, at + spans[row, place, 1], _TEXT)
                if place == CLIENT:
                    clients[row] = part
                elif place != ENTITY:
                    name = part
            content = _chained(content, part)
        content = _chained(content, _NONE if stampless[row] else np.uint64(us))
        content = _chained(content, value)
        contents[row] = _chained(content, document)
        event_names[row] = name
        timestamps[row] = us
        values[row, 0], values[row, 1] = value_low, value_high
        taken[row] = 1
