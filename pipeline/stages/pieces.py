"""Pieces: texts of many rows that lie in one buffer, gathered, compared, grouped and put in order. Compiled; pure.

`spans[row, field]` are start and length of a field's piece in the buffer; a start of -1 and a length of -1 are none.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.compiled import AHEAD, ahead, alike, byte_at, compiled, put_word, word_at

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint64]
_Ints = npt.NDArray[np.int64]

_WORD: Final = 8  # room behind each field's pieces, since they are written by words
_MIX = np.uint64(0x9E3779B185EBCA87)
_U1 = np.uint64(1)
_U8 = np.uint64(8)
_U32 = np.uint64(32)


class Texts(NamedTuple):
    """Texts one after the other, and the offsets at which they begin and end."""

    offsets: npt.NDArray[np.int32]
    pieces: _Bytes


def gather(buffer: _Bytes, spans: _Ints, rows: _Ints, before: Sequence[Texts]) -> list[Texts]:
    """Each field's pieces of these rows, behind those of `before`. All fields of a row are read at once: where rows
    come in another order than they lie in, what costs is to come by one."""
    fields = spans.shape[1]
    sizes = np.zeros(fields, np.int64)
    _sum(spans, rows, sizes)
    first = len(before[0].offsets)
    offsets = np.empty((fields, first + len(rows)), np.int32)
    heads = np.array([len(texts.pieces) for texts in before])
    starts = np.cumsum([0, *(heads + sizes + _WORD)])
    pieces = np.empty(int(starts[-1]), np.uint8)
    for field, texts in enumerate(before):
        offsets[field, :first] = texts.offsets
        pieces[starts[field] : starts[field] + heads[field]] = texts.pieces
    _gather(buffer, spans, rows, offsets, first, pieces, starts, heads.copy())
    ends = starts[:-1] + heads + sizes
    return [Texts(offsets[f], pieces[starts[f] : ends[f]]) for f in range(fields)]


def grouped(mixed: _Words) -> tuple[_Ints, _Ints]:
    """The first row of each value, in their order, and which of them each row has."""
    return _grouped(mixed, np.zeros(1 << (2 * len(mixed)).bit_length(), np.int64))  # type: ignore[no-any-return]


def same(buffer: _Bytes, spans: _Ints, rows: _Ints, others: _Ints, field: int) -> bool:
    """Whether a field's pieces of these rows read like those of the others."""
    return bool(_same(buffer, spans, rows, others, field))


def ranks(buffer: _Bytes, spans: _Ints, rows: _Ints, field: int) -> _Ints:
    """The place of each row's piece among all of them in the order of their bytes; equal ones share one. All must be
    there. Eight bytes behind what all begin with nearly always tell them apart; else whole pieces are compared."""
    words = np.zeros(len(rows), np.uint64)
    _words_behind(buffer, spans, rows, field, _shared(buffer, spans, rows, field), words)
    order = np.argsort(words)
    ascending = words[order]
    if (ascending[1:] == ascending[:-1]).any():
        given = zip(spans[rows, field, 0].tolist(), spans[rows, field, 1].tolist(), strict=True)
        whole = [buffer[start : start + length].tobytes() for start, length in given]
        place = {piece: number for number, piece in enumerate(sorted(set(whole)))}
        return np.array([place[piece] for piece in whole], np.int64)
    found = np.empty(len(rows), np.int64)
    found[order] = np.arange(len(rows))
    return found


@compiled
def _sum(spans: Any, rows: Any, sizes: Any) -> None:
    for i in range(len(rows)):
        for field in range(spans.shape[1]):
            sizes[field] += max(spans[rows[i], field, 1], 0)


@compiled
def _gather(
    buffer: Any, spans: Any, rows: Any, offsets: Any, first: Any, pieces: Any, starts: Any, written: Any
) -> None:
    whole = len(buffer) - 8
    fields = spans.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        if i + 2 * AHEAD < len(rows):
            ahead(spans, rows[i + 2 * AHEAD] * fields * 2)
            ahead(spans, rows[i + 2 * AHEAD] * fields * 2 + 8)
            soon = rows[i + AHEAD]
            for field in range(fields):
                if spans[soon, field, 1] > 0:
                    ahead(buffer, spans[soon, field, 0])
                    if spans[soon, field, 1] > 64:
                        ahead(buffer, spans[soon, field, 0] + 64)
        for field in range(fields):
            start, length = spans[row, field, 0], spans[row, field, 1]
            if length > 0:
                at = starts[field] + written[field]
                if start + length <= whole:
                    k = 0
                    while k < length:  # up to seven bytes beyond, which the next piece overwrites
                        put_word(pieces, at + k, word_at(buffer, start + k))
                        k += 8
                else:
                    for k in range(length):
                        pieces[at + k] = byte_at(buffer, start + k)
                written[field] += length
            offsets[field, first + i] = written[field]


@compiled
def _same(buffer: Any, spans: Any, rows: Any, others: Any, field: Any) -> Any:
    for i in range(len(rows)):
        one, other = rows[i], others[i]
        start, begin, length = spans[one, field, 0], spans[other, field, 0], spans[one, field, 1]
        if length != spans[other, field, 1] or (start < 0) != (begin < 0):
            return False
        if not alike(buffer, start, begin, length):
            return False
    return True


@compiled
def _grouped(mixed: Any, table: Any) -> Any:
    firsts = np.empty(len(mixed), np.int64)
    groups = np.empty(len(mixed), np.int64)
    mask = np.uint64(len(table) - 1)
    count = 0
    for row in range(len(mixed)):
        at = (mixed[row] * _MIX >> _U32) & mask
        while table[at] != 0 and mixed[firsts[table[at] - 1]] != mixed[row]:
            at = (at + _U1) & mask
        if table[at] == 0:
            firsts[count] = row
            count += 1
            table[at] = count
        groups[row] = table[at] - 1
    return firsts[:count], groups


@compiled
def _shared(buffer: Any, spans: Any, rows: Any, field: Any) -> Any:
    """How many of their first bytes all pieces have in common."""
    first, most = spans[rows[0], field, 0], spans[rows[0], field, 1]
    for i in range(1, len(rows)):
        start, length = spans[rows[i], field, 0], min(most, spans[rows[i], field, 1])
        k = 0
        while k < length and byte_at(buffer, first + k) == byte_at(buffer, start + k):
            k += 1
        most = k
    return most


@compiled
def _words_behind(buffer: Any, spans: Any, rows: Any, field: Any, skipped: Any, words: Any) -> None:
    """Of each piece the eight bytes behind those skipped, the first one highest; 0 beyond its end."""
    for i in range(len(rows)):
        start, length = spans[rows[i], field, 0] + skipped, spans[rows[i], field, 1] - skipped
        word = np.uint64(0)
        for k in range(8):
            word = word << _U8
            if k < length:
                word |= np.uint64(byte_at(buffer, start + k))
        words[i] = word
