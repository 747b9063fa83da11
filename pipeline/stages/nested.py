"""Nested: the lists that rows carry, what they are metered by and their dimensions, from what the scanner found.
Compiled; pure.

Rows come in groups that are asked the same *questions*: one revision of a feature or of a dimension each. A question
takes the event's value, the constant one, or what one column of the data holds where it is of the right kind; what
looks deeper than a column is answered in Python, by a column more.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.compiled import AHEAD, ahead, compiled
from pipeline.stages.scan import NUMBER, Scanned

#: Where a question looks, beside columns of the data.
VALUE: Final = -1
ONE: Final = -2

_ONE: Final = np.uint64(1_000_000_000)

_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_Bytes = npt.NDArray[np.uint8]


class Question(NamedTuple):
    """One revision of a feature or dimension. `source`: a column of the data, VALUE or ONE; `kind`: what a column must
    hold, TEXT or NUMBER."""

    name: str
    rev: int
    source: int
    kind: int = NUMBER


class Answers(NamedTuple):
    """The values of all rows, one after the other: those of row i from offsets[i] to offsets[i + 1]. `names`: numbers
    of `known`. Of a number there are words, of a text there is a span (start, length)."""

    known: list[str]
    offsets: npt.NDArray[np.int32]
    names: _Ints
    revs: _Words
    words: _Words
    hashes: _Words
    spans: _Ints
    is_number: _Bytes


class Column(NamedTuple):
    """A column more than the scanner has: its number; of each line the kind, the span of a text, number and hash."""

    number: int
    kinds: _Bytes
    texts: _Ints
    numbers: _Words
    hashes: _Words


class Sources:
    """What questions may look at: the scanner's columns, and others."""

    def __init__(self, found: Scanned) -> None:
        self.found = found
        self._others: list[Column] = []

    def deeper(self) -> Iterator[Column]:
        """Columns for the questions of one group of rows. Groups have no row in common, so the next one's are the
        same."""
        yield from self._others
        lines, scanned = self.found.kinds.shape
        while True:
            column = Column(
                scanned + len(self._others),
                np.zeros(lines, np.uint8),
                np.zeros((lines, 2), np.int64),
                np.zeros((lines, 2), np.uint64),
                np.zeros((lines, 2), np.uint64),
            )
            self._others.append(column)
            yield column

    def all(self) -> tuple[_Bytes, _Ints, _Words, _Words]:
        """Kinds, spans, numbers and hashes by line and column; no hashes at all where the scanner has found all."""
        found = self.found
        if not self._others:
            return found.kinds, found.texts, found.numbers, np.zeros((0, 0, 2), np.uint64)
        kinds, texts, numbers, hashes = (np.stack(parts, axis=1) for parts in list(zip(*self._others, strict=True))[1:])
        return (
            np.concatenate([found.kinds, kinds], axis=1),
            np.concatenate([found.texts, texts], axis=1),
            np.concatenate([found.numbers, numbers], axis=1),
            np.concatenate([np.zeros_like(found.numbers), hashes], axis=1),
        )


class Asked(NamedTuple):
    """What some rows are asked: the group of each, -1 for none, and the questions of each group."""

    sources: Sources
    group: _Ints
    questions: list[list[Question]]

    def ask(self, rows: _Ints, questions: list[Question]) -> None:
        """Makes a group of these rows."""
        self.group[rows] = len(self.questions)
        self.questions.append(questions)


def answers(asked: Asked, lines: _Ints, order: _Ints, before: int) -> Answers:
    """What rows answer, in that order, behind room for `before` rows that have one value each. `lines`: which one of
    the scanner's each row is."""
    sources, rows, group = asked.sources, lines[order], asked.group[order]
    questions = [question for of_group in asked.questions for question in of_group]
    known: dict[str, int] = {}
    first = np.cumsum([0, *map(len, asked.questions)]).astype(np.int64)
    name = np.array([known.setdefault(question.name, len(known)) for question in questions], np.int64)
    rev = np.array([question.rev for question in questions], np.uint64)
    source = np.array([question.source for question in questions], np.int64)
    kind = np.array([question.kind for question in questions], np.uint8)
    kinds, texts, numbers, hashes = sources.all()
    offsets = np.arange(before + len(rows) + 1, dtype=np.int32)
    total = _count(rows, group, first, source, kind, kinds, offsets, before)
    answered = Answers(
        list(known),
        offsets,
        np.zeros(total, np.int64),
        np.zeros(total, np.uint64),
        np.zeros((total, 2), np.uint64),
        np.zeros((total, 2), np.uint64),
        np.zeros((total, 2), np.int64),
        np.zeros(total, np.uint8),
    )
    values = sources.found.value
    _answer(rows, group, first, name, rev, source, kind, kinds, texts, numbers, hashes, values, before, *answered[2:])
    return answered


@compiled
def _count(rows: Any, group: Any, first: Any, source: Any, kind: Any, kinds: Any, offsets: Any, before: Any) -> Any:
    at = before
    for i in range(len(rows)):
        asked = group[i]
        if i + AHEAD < len(rows):
            ahead(kinds, rows[i + AHEAD] * kinds.shape[1])
        if asked >= 0:
            row = rows[i]
            for q in range(first[asked], first[asked + 1]):
                if source[q] < 0 or kinds[row, source[q]] == kind[q]:
                    at += 1
        offsets[before + i + 1] = at
    return at


@compiled
def _answer(
    rows: Any,
    group: Any,
    first: Any,
    name: Any,
    rev: Any,
    source: Any,
    kind: Any,
    kinds: Any,
    texts: Any,
    numbers: Any,
    hashes: Any,
    values: Any,
    before: Any,
    names: Any,
    revs: Any,
    words: Any,
    found_hashes: Any,
    spans: Any,
    is_number: Any,
) -> None:
    at = before
    for i in range(len(rows)):
        asked = group[i]
        if i + AHEAD < len(rows):
            soon = rows[i + AHEAD]
            ahead(kinds, soon * kinds.shape[1])
            ahead(values, soon * 2)
            ahead(numbers, soon * kinds.shape[1] * 2)
            ahead(texts, soon * kinds.shape[1] * 2)
        if asked < 0:
            continue
        row = rows[i]
        for q in range(first[asked], first[asked + 1]):
            column = source[q]
            if column >= 0:
                if kinds[row, column] != kind[q]:
                    continue
                if kind[q] == NUMBER:
                    words[at, 0], words[at, 1] = numbers[row, column, 0], numbers[row, column, 1]
                    is_number[at] = 1
                else:
                    spans[at, 0], spans[at, 1] = texts[row, column, 0], texts[row, column, 1]
                if len(hashes) > 0:
                    found_hashes[at, 0], found_hashes[at, 1] = hashes[row, column, 0], hashes[row, column, 1]
            elif column == VALUE:
                words[at, 0], words[at, 1] = values[row, 0], values[row, 1]
            else:
                words[at, 0] = _ONE
            names[at] = name[q]
            revs[at] = rev[q]
            at += 1
