"""Records of the events topic in columns: as many as one likes without an object for each.

A `Records` reads as the sequence of its `LogRecord`s, made when asked for. Values lie in one buffer, wherever the
driver has unpacked them; records with the same headers share one entry of `headers`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from pipeline.block import LogRecord

Headers = tuple[tuple[str, bytes], ...]
_Ints = npt.NDArray[np.int64]


class Records(Sequence[LogRecord]):
    """Immutable. `starts` and `lengths` of values count bytes of `buffer`, a length of -1 is no value; `lines`: line
    feeds and one, of each; `header`: which of `headers` each has."""

    __slots__ = ("append_ms", "buffer", "header", "headers", "lengths", "lines", "offsets", "starts")

    def __init__(  # noqa: PLR0917 - columns
        self,
        buffer: bytes,
        starts: _Ints,
        lengths: _Ints,
        lines: _Ints,
        offsets: _Ints,
        append_ms: _Ints,
        header: _Ints,
        headers: Sequence[Headers],
    ) -> None:
        self.buffer = buffer
        self.starts = starts
        self.lengths = lengths
        self.lines = lines
        self.offsets = offsets
        self.append_ms = append_ms
        self.header = header
        self.headers = headers

    @classmethod
    def of(cls, records: Sequence[LogRecord]) -> "Records":
        """These records in columns."""
        if isinstance(records, Records):
            return records
        values = [record.value or b"" for record in records]
        number = len(values)
        sizes = np.fromiter(map(len, values), np.int64, number)
        numbers: dict[Headers, int] = {}
        return cls(
            b"".join(values),
            np.cumsum(sizes) - sizes,
            np.fromiter((-1 if record.value is None else len(record.value) for record in records), np.int64, number),
            np.fromiter((value.count(b"\n") + 1 for value in values), np.int64, number),
            np.fromiter((record.offset for record in records), np.int64, number),
            np.fromiter((record.append_ms for record in records), np.int64, number),
            np.fromiter((numbers.setdefault(record.headers, len(numbers)) for record in records), np.int64, number),
            list(numbers),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Records]") -> "Records":
        """All of these, one after the other."""
        if len(parts) == 1:
            return parts[0]
        at = np.cumsum([0, *(len(part.buffer) for part in parts)]).tolist()
        numbers: dict[Headers, int] = {}
        # few records differ in their headers: one look-up for each difference
        known = [
            np.array([numbers.setdefault(headers, len(numbers)) for headers in part.headers], np.int64)
            for part in parts
        ]

        def columns(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, np.int64)])

        shifted = [part.starts + begin for part, begin in zip(parts, at[:-1], strict=True)]
        header = [of_part[part.header] for part, of_part in zip(parts, known, strict=True)]
        return cls(
            b"".join([part.buffer for part in parts]),
            np.concatenate(shifted or [np.empty(0, np.int64)]),
            columns("lengths"),
            columns("lines"),
            columns("offsets"),
            columns("append_ms"),
            np.concatenate(header or [np.empty(0, np.int64)]),
            list(numbers),
        )

    @property
    def sizes(self) -> _Ints:
        """Bytes of each value; 0 for none."""
        return np.maximum(self.lengths, 0)

    def used_headers(self) -> list[Headers]:
        """The headers that any of these records has, each once."""
        return [self.headers[number] for number in np.unique(self.header).tolist()]

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> LogRecord: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "LogRecord | Records":
        if isinstance(index, slice):
            return self._slice(index)
        start, length = int(self.starts[index]), int(self.lengths[index])
        return LogRecord(
            int(self.offsets[index]),
            int(self.append_ms[index]),
            None if length < 0 else self.buffer[start : start + length],
            self.headers[int(self.header[index])],
        )

    def __iter__(self) -> Iterator[LogRecord]:
        buffer, headers = self.buffer, self.headers
        columns = (self.offsets, self.append_ms, self.starts, self.lengths, self.header)
        for offset, append_ms, start, length, header in zip(*(column.tolist() for column in columns), strict=True):
            value = None if length < 0 else buffer[start : start + length]
            yield LogRecord(offset, append_ms, value, headers[header])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # compares by content

    def _slice(self, index: slice) -> "Records":
        starts, lengths = self.starts[index], self.lengths[index]
        buffer, first = self.buffer, 0
        if len(starts) < len(self) and (index.step is None or index.step > 0):
            # what is left must not hold on to the bytes of what was taken
            first = int(starts[0]) if len(starts) else 0
            buffer = buffer[first : int(starts[-1] + max(int(lengths[-1]), 0)) if len(starts) else 0]
        return Records(
            buffer,
            starts - first,
            lengths,
            self.lines[index],
            self.offsets[index],
            self.append_ms[index],
            self.header[index],
            self.headers,
        )
