"""Identify: the names of ids, compiled: `pipeline.event.id_hash` of many at once. Pure.

XXH3 with 128 bits, of 17 to 128 bytes as nearly all ids have with their account; other lengths are left to the library.
`tests/pipeline/test_columnar.py` holds the two against each other.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.compiled import compiled, multiply, put_word, word_at

#: What of an id this module names; the rest is the library's.
BYTES_MIN: Final = 17
BYTES_MAX: Final = 128

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_MIX = np.uint64(0x165667919E3779F9)
_U0 = np.uint64(0)
_U32 = np.uint64(32)
_U37 = np.uint64(37)
# the first 128 bytes of the algorithm's default secret
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    ),
    np.uint8,
)

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


def identify(
    buffer: _Bytes, spans: _Ints, chosen: _Bytes, account: _Ints, accounts: list[str]
) -> tuple[_Words, npt.NDArray[np.bool_]]:
    """Low and high word of each id's name, and for which rows they are here. `spans`: start and length of each id;
    `chosen`: 1 for the rows that have one; `account`: which of `accounts` each is of."""
    names = [name.encode() for name in accounts]
    prefixes = [len(name).to_bytes(4, "little") + name for name in names]
    keys = np.zeros((len(spans), 2), np.uint64)
    named = np.zeros(len(spans), np.bool_)
    ends = np.cumsum([0, *map(len, prefixes)]).astype(np.int64)
    joined = np.frombuffer(b"".join([*prefixes, bytes(8)]), np.uint8)
    _identify(buffer, spans, chosen, account, joined, ends, keys, named)
    return keys, named


@compiled
def _mixed(buffer: Any, i: Any, secret: Any, k: Any) -> Any:
    low, high = multiply(word_at(buffer, i) ^ word_at(secret, k), word_at(buffer, i + 8) ^ word_at(secret, k + 8))
    return low ^ high


@compiled
def _both(low: Any, high: Any, buffer: Any, one: Any, other: Any, k: Any) -> Any:
    low = (low + _mixed(buffer, one, _SECRET, k)) ^ (word_at(buffer, other) + word_at(buffer, other + 8))
    high = (high + _mixed(buffer, other, _SECRET, k + 16)) ^ (word_at(buffer, one) + word_at(buffer, one + 8))
    return low, high


@compiled
def _avalanche(h: Any) -> Any:
    h = (h ^ (h >> _U37)) * _MIX
    return h ^ (h >> _U32)


@compiled
def _xxh3(buffer: Any, size: Any) -> Any:
    """Low and high word of the first `size` bytes' XXH3, 17 to 128 of them."""
    low, high = np.uint64(size) * _P1, _U0
    if size > 32:
        if size > 64:
            if size > 96:
                low, high = _both(low, high, buffer, 48, size - 64, 96)
            low, high = _both(low, high, buffer, 32, size - 48, 64)
        low, high = _both(low, high, buffer, 16, size - 32, 32)
    low, high = _both(low, high, buffer, 0, size - 16, 0)
    return _avalanche(low + high), _U0 - _avalanche(low * _P1 + high * _P4 + np.uint64(size) * _P2)


@compiled
def _identify(
    buffer: Any, spans: Any, chosen: Any, account: Any, prefixes: Any, ends: Any, keys: Any, named: Any
) -> None:
    text = np.zeros(BYTES_MAX + 24, np.uint8)
    whole = len(buffer) - 8
    last = np.int64(-1)
    for row in range(len(spans)):
        if chosen[row] == 0:
            continue
        first, prefix = ends[account[row]], ends[account[row] + 1] - ends[account[row]]
        start, length = spans[row, 0], spans[row, 1]
        size = prefix + 4 + length
        if size < BYTES_MIN or size > BYTES_MAX:
            continue
        if account[row] != last:  # the prefix stays where it is from row to row
            last = account[row]
            for k in range(prefix):
                text[k] = prefixes[first + k]
        put_word(text, prefix, np.uint64(length))  # four bytes of length; the id overwrites the rest
        k = 0
        at = prefix + 4
        while k < length and start + k <= whole:
            put_word(text, at + k, word_at(buffer, start + k))
            k += 8
        while k < length:
            text[at + k] = buffer[start + k]
            k += 1
        keys[row, 0], keys[row, 1] = _xxh3(text, size)
        named[row] = True
