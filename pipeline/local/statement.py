"""What a SQL text asks for, as far as the gateway must know it before the engine sees the text.

Pure. The engine parses the statement; here only its outline is read: comments, strings, brackets and
the few words outside of them that say where results or data go. Rules follow ClickHouse's own
parser: the data of an INSERT begin after FORMAT's name, blanks, and one line end.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

_TOKEN = re.compile(
    rb"""
    (?P<blank>\s+ | --[^\n]* | \#[ !][^\n]* | /\*.*?\*/)
  | (?P<quoted>'[^'\\]*(?:(?:\\.|'')[^'\\]*)*' | "[^"\\]*(?:(?:\\.|"")[^"\\]*)*" | `[^`\\]*(?:(?:\\.|``)[^`\\]*)*`)
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<open>[(\[{])
  | (?P<close>[)\]}])
  | (?P<end>;)
  | (?P<other>[0-9][0-9A-Za-z_.]*|.)
    """,
    re.DOTALL | re.VERBOSE,
)
_DATA_START = re.compile(rb"[ \t\f]*\r?\n?")
_REMEMBERED_MAX = 256
_REMEMBERED_BYTES_MAX = 8 << 10  # so 2 MiB of them at most
_READING = frozenset({b"SELECT", b"WITH", b"FROM"})
_TELLING = frozenset({b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN", b"CHECK"})
_SESSION = frozenset({b"SET", b"USE"})


class Kind(Enum):
    """What happens with a statement."""

    READ = "read"  # returns rows and changes nothing: may be streamed
    TELL = "tell"  # returns rows about tables or queries, which the engine does not stream
    INSERT_DATA = "insert data"  # INSERT … FORMAT name, data follow
    INSERT_VALUES = "insert values"  # INSERT … VALUES, its data are part of the SQL text
    SESSION = "session"  # SET, USE: changes what later statements of the same session see
    OTHER = "other"


class StatementError(ValueError):
    """The gateway cannot run this text. ``code`` and ``name`` are ClickHouse's."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.message = message


@dataclass(frozen=True, slots=True)
class Statement:
    """Outline of a SQL text. ``format`` is what its FORMAT clause names, "" without one.

    For INSERT_DATA: the statement is ``text[:sql_end]`` (no FORMAT clause), its data ``text[data_start:]``. ``verb``:
    the leading word in capitals, INSERT also behind WITH.
    """

    kind: Kind
    format: str = ""
    sql_end: int = 0
    data_start: int = 0
    verb: bytes = b""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: bytes
    start: int
    end: int


def outline(text: bytes) -> Statement:
    """Read the outline of ``text``. Raises StatementError for what no HTTP client may send.

    Short texts are remembered: values come beside them, so the same ones come again and again.
    """
    return _remembered(text) if len(text) <= _REMEMBERED_BYTES_MAX else _outline(text)


def _outline(text: bytes) -> Statement:
    tokens = _top_level(text)
    first = next(tokens, None)
    if first is None:
        raise StatementError(62, "SYNTAX_ERROR", "Empty query")
    word = first.text.upper()
    if word == b"INSERT":
        return replace(_insert(text, tokens), verb=word)
    return _query(first, tokens)


_remembered = lru_cache(maxsize=_REMEMBERED_MAX)(_outline)


def _top_level(text: bytes) -> Iterator[_Token]:
    """Tokens outside of brackets, lazily, so that an INSERT's data are never read as SQL."""
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind == "blank":
            continue
        if kind == "close":
            depth = max(0, depth - 1)
        elif depth == 0:
            yield _Token(kind, match.group(), match.start(), match.end())
        if kind == "open":
            depth += 1


def _insert(text: bytes, tokens: Iterator[_Token]) -> Statement:
    before = b"INSERT"
    for token in tokens:
        word = token.text.upper() if token.kind == "word" else b""
        if before in {b"INSERT", b"INTO", b"TABLE"} and word not in {b"INTO", b"TABLE", b"FUNCTION"}:
            before = b"name"  # the table's own name may be any word
            continue
        if word == b"FORMAT":
            return _with_data(text, token, next(tokens, None))
        if word == b"VALUES":
            return Statement(Kind.INSERT_VALUES)
        if word == b"INFILE":
            raise StatementError(
                48, "NOT_IMPLEMENTED", "FROM INFILE is not supported over HTTP: send the data as the body"
            )
        if word in {b"SELECT", b"WITH"}:
            return _insert_select(tokens)
        before = word or b"other"
    return Statement(Kind.OTHER)


def _with_data(text: bytes, clause: _Token, name: _Token | None) -> Statement:
    if name is None or name.kind != "word":
        raise StatementError(62, "SYNTAX_ERROR", "FORMAT needs the name of a format")
    if name.text.upper() == b"VALUES":
        return Statement(Kind.INSERT_VALUES)
    after = _DATA_START.match(text, name.end)
    start = after.end() if after else name.end
    return Statement(Kind.INSERT_DATA, name.text.decode(), clause.start, start)


def _insert_select(tokens: Iterator[_Token]) -> Statement:
    # `INSERT … SELECT … FROM input(…) FORMAT X` with data behind: the engine's embedded parser reads
    # such data only up to its buffer and drops the rest without a word, so it is refused.
    if any(token.kind == "word" and token.text.upper() == b"FORMAT" for token in tokens):
        raise StatementError(
            48,
            "NOT_IMPLEMENTED",
            "INSERT … SELECT with data of its own (input()) is not supported by the embedded engine",
        )
    return Statement(Kind.OTHER)


def _query(first: _Token, tokens: Iterator[_Token]) -> Statement:
    rest = list(tokens)
    ends = [at for at, token in enumerate(rest) if token.kind == "end"]
    if ends and any(token.kind != "end" for token in rest[ends[0] :]):
        raise StatementError(62, "SYNTAX_ERROR", "Multi-statements are not allowed")
    words = [token.text.upper() if token.kind == "word" else b"" for token in rest if token.kind != "end"]
    if any(pair == (b"INTO", b"OUTFILE") for pair in itertools.pairwise(words)):
        raise StatementError(48, "NOT_IMPLEMENTED", "INTO OUTFILE is not allowed over HTTP: read the answer's body")
    leading = first.text.upper()
    if leading in _SESSION:
        return Statement(Kind.SESSION)
    if leading == b"CREATE" and words[:1] == [b"TEMPORARY"]:
        raise StatementError(
            48,
            "NOT_IMPLEMENTED",
            "temporary tables are not supported by the embedded engine, which keeps nothing between two requests:"
            " use a table of engine Memory and drop it",
        )
    reads = (leading in _READING and b"INSERT" not in words) or first.kind == "open"
    kind = Kind.READ if reads else Kind.TELL if leading in _TELLING else Kind.OTHER
    return Statement(kind, _format_clause(rest, words), verb=b"INSERT" if b"INSERT" in words else leading)


def _format_clause(rest: list[_Token], words: list[bytes]) -> str:
    """Name behind the last FORMAT, when only SETTINGS or nothing may follow it."""
    for at in range(len(words) - 2, -1, -1):
        if words[at] == b"FORMAT" and words[at + 1]:
            tail = words[at + 2 :]
            return rest[at + 1].text.decode() if not tail or tail[0] in {b"SETTINGS", b"PARALLEL"} else ""
    return ""
