"""Results that the engine hands out block by block, joined to one document. Pure.

The engine encodes each block of a streamed result as a document of its own. Formats without head
and foot can simply follow each other; of those with a head, the first one's is kept and the others'
are taken off. All other formats cannot be streamed: `joiner` answers None for them.
"""

import re
from collections.abc import Callable
from typing import Protocol

_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_ARROW_CONTINUATION = b"\xff\xff\xff\xff"
_HEADLESS = frozenset(
    [
        "native",
        "rowbinary",
        "csv",
        "tsv",
        "tabseparated",
        "tsvraw",
        "tabseparatedraw",
        "raw",
        "jsoneachrow",
        "jsonlines",
        "ndjson",
        "jsonstringseachrow",
        "jsoncompacteachrow",
        "jsoncompactstringseachrow",
    ]
)
_LINE = re.compile(rb"[^\n]*\n")
_CSV_LINE = re.compile(rb'(?:[^"\n]|"[^"]*")*\n')  # a quoted name may hold a line end


class JoinError(ValueError):
    """A later block's head differs from the first one's, so that the documents cannot be joined."""


class Joiner(Protocol):
    """Turns documents of one format into pieces of one document."""

    needs_head: bool
    """Whether an empty result still has bytes (its head)."""

    def add(self, document: bytes) -> bytes:
        """The piece that one more document adds."""

    def end(self) -> bytes:
        """The last piece."""


class _Plain:
    needs_head = False

    def add(self, document: bytes) -> bytes:
        return document

    def end(self) -> bytes:
        return b""


class _Headed:
    """Keeps the first document's head and foot only. ``measure`` gives the size of a document's head."""

    needs_head = True

    def __init__(self, measure: Callable[[bytes], int], foot: bytes = b"") -> None:
        self._measure = measure
        self._foot = foot
        self._head: bytes | None = None

    def add(self, document: bytes) -> bytes:
        body = document.removesuffix(self._foot)
        if self._head is None:
            self._head = body[: self._measure(body)]
            return body
        if not body.startswith(self._head):
            raise JoinError("two blocks of one result have different heads")
        return body[len(self._head) :]

    def end(self) -> bytes:
        return self._foot if self._head is not None else b""


def joiner(format_name: str) -> Joiner | None:
    """A joiner for a format, by ClickHouse's name of it; None when its documents cannot be joined."""
    name = format_name.lower()
    if name in _HEADLESS:
        return _Plain()
    if name == "arrowstream":
        return _Headed(_arrow_head, _ARROW_END)
    if name in {"rowbinarywithnames", "rowbinarywithnamesandtypes"}:
        return _Headed(lambda body: _binary_head(body, 2 if name.endswith("types") else 1))
    lines = 2 if name.endswith("withnamesandtypes") else 1 if name.endswith("withnames") else 0
    if lines and name.partition("with")[0] in _HEADLESS:
        line = _CSV_LINE if name.startswith("csv") else _LINE
        return _Headed(lambda body: _text_head(body, line, lines))
    return None


def _text_head(body: bytes, line: re.Pattern[bytes], lines: int) -> int:
    """Size of the first lines."""
    at = 0
    for _ in range(lines):
        match = line.match(body, at)
        at = match.end() if match else len(body)
    return at


def _binary_head(body: bytes, lists: int) -> int:
    """Size of RowBinary's head: number of columns, then their names, then their types."""
    columns, at = _varint(body, 0)
    for _ in range(columns * lists):
        size, at = _varint(body, at)
        at += size
    return at


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _arrow_head(body: bytes) -> int:
    """Size of the schema message that opens an Arrow IPC stream (it has no body)."""
    if not body.startswith(_ARROW_CONTINUATION):
        raise JoinError("not an Arrow stream")
    return 8 + int.from_bytes(body[4:8], "little")
