"""ClickHouse's HTTP protocol in front of the embedded engine: one request, one statement.

Follows the server's HTTP interface: the statement is ``query`` and the body together; ``param_x`` are
values of query parameters, every other name is a setting of this one statement; GET, HEAD and the user
``reader`` may only read. An error before the first MiB of an answer has its own status and
X-ClickHouse-Exception-Code; a later one ends the body with the server's ``__exception__`` block
and a cut connection, so that no client takes half a result for a whole one.
"""

import binascii
import io
import json
import logging
import secrets
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

from multipart import MultipartError, MultipartParser, parse_options_header

from pipeline.local.encoding import (
    Encoder,
    EncodingError,
    FrameEncoder,
    TooLargeError,
    decode,
    decode_frames,
    encoder_for,
)
from pipeline.local.handle import Engine, EngineError, Handle, Output
from pipeline.local.joining import JoinError, joiner
from pipeline.local.room import Room
from pipeline.local.server import Answer, DisconnectedError, Request
from pipeline.local.statement import Kind, Statement, StatementError, outline

HELD_BYTES = 1 << 20
"""So much of a result is held back before the head goes out, so that an early error has a status of its own."""

_PACKED_BYTES_MIN = 1 << 10  # what fits into one packet anyway takes longer to pack and unpack than to send

RESULT_BYTES_MAX = 1 << 30
"""Bound of results that must be held whole (``wait_end_of_query``)."""

_KEPT_MAX = 16
_SESSIONS_MAX = 1024
_SESSION_STATEMENTS_MAX = 256
_TRANSPORT = frozenset(
    [
        "query",
        "database",
        "default_format",
        "query_id",
        "session_id",
        "session_timeout",
        "session_check",
        "close_session",
        "user",
        "password",
        "quota_key",
        "compress",
        "decompress",
        "stacktrace",
        "role",
        "buffer_size",
        "wait_end_of_query",
        "client_protocol_version",
    ]
)
_STATUS: Mapping[int, frozenset[str]] = {
    400: frozenset(
        [
            "SYNTAX_ERROR",
            "BAD_ARGUMENTS",
            "TYPE_MISMATCH",
            "INCORRECT_DATA",
            "CANNOT_PARSE_TEXT",
            "CANNOT_PARSE_ESCAPE_SEQUENCE",
            "CANNOT_PARSE_QUOTED_STRING",
            "CANNOT_PARSE_DATE",
            "CANNOT_PARSE_DATETIME",
            "CANNOT_PARSE_NUMBER",
            "CANNOT_PARSE_UUID",
            "CANNOT_PARSE_IPV4",
            "CANNOT_PARSE_IPV6",
            "CANNOT_PARSE_BOOL",
            "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
            "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING",
            "UNKNOWN_ELEMENT_IN_AST",
            "UNKNOWN_TYPE_OF_AST_NODE",
            "TOO_DEEP_AST",
            "TOO_BIG_AST",
            "UNEXPECTED_AST_STRUCTURE",
            "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
            "UNKNOWN_COMPRESSION_METHOD",
            "BAD_QUERY_PARAMETER",
            "UNKNOWN_QUERY_PARAMETER",
            "CANNOT_READ_ALL_DATA",
            "CHECKSUM_DOESNT_MATCH",
        ]
    ),
    403: frozenset(["ACCESS_DENIED"]),
    404: frozenset(
        [
            "UNKNOWN_TABLE",
            "UNKNOWN_FUNCTION",
            "UNKNOWN_IDENTIFIER",
            "UNKNOWN_TYPE",
            "UNKNOWN_STORAGE",
            "UNKNOWN_DATABASE",
            "UNKNOWN_SETTING",
            "UNKNOWN_DIRECTION_OF_SORTING",
            "UNKNOWN_AGGREGATE_FUNCTION",
            "UNKNOWN_FORMAT",
            "UNKNOWN_DATABASE_ENGINE",
            "UNKNOWN_TYPE_OF_QUERY",
        ]
    ),
    408: frozenset(["TIMEOUT_EXCEEDED"]),
    413: frozenset(["QUERY_IS_TOO_LARGE"]),
    501: frozenset(["NOT_IMPLEMENTED"]),
    503: frozenset(["CANNOT_SCHEDULE_TASK", "SOCKET_TIMEOUT"]),
}
_TYPES = (
    ("json", "application/json; charset=UTF-8"),
    ("csv", "text/csv; charset=UTF-8"),
    ("tsv", "text/tab-separated-values; charset=UTF-8"),
    ("tabseparated", "text/tab-separated-values; charset=UTF-8"),
    ("arrowstream", "application/vnd.apache.arrow.stream"),
    ("pretty", "text/plain; charset=UTF-8"),
    ("vertical", "text/plain; charset=UTF-8"),
)
_WRITING = frozenset({b"INSERT", b"ALTER", b"OPTIMIZE", b"CREATE", b"REPLACE", b"ATTACH"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request, read: SQL text, data of an INSERT, and how both are to be run and answered."""

    text: bytes
    data: bytes | bytearray
    statement: Statement
    format: str
    params: dict[str, str]
    settings: dict[str, str]
    database: str
    session: str
    session_timeout_s: float
    readonly: bool
    hold: bool
    encoder: tuple[str, Encoder] | None
    query_id: str
    tag: str
    head_only: bool

    @property
    def sql(self) -> bytes:
        """The statement with what follows it."""
        return self.text if not self.data else self.text + b"\n" + self.data


@dataclass(slots=True)
class _Counts:
    """Sums of the engine's counts over a statement's blocks."""

    started: float = field(default_factory=time.monotonic)
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0

    def add(self, output: Output) -> None:
        self.read_rows += output.rows_read
        self.read_bytes += output.bytes_read
        self.written_rows += output.rows_written
        self.written_bytes += output.bytes_written
        self.result_rows += output.rows_written or output.rows_read
        self.result_bytes += len(output.data)

    def summary(self) -> str:
        values = {
            "read_rows": self.read_rows,
            "read_bytes": self.read_bytes,
            "written_rows": self.written_rows,
            "written_bytes": self.written_bytes,
            "total_rows_to_read": 0,
            "result_rows": self.result_rows,
            "result_bytes": self.result_bytes,
            "elapsed_ns": int((time.monotonic() - self.started) * 1e9),
        }
        return json.dumps({name: str(value) for name, value in values.items()}, separators=(",", ":"))


class _Sessions:
    """What SET and USE did in each session, to be done again before its next statement."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, tuple[float, tuple[bytes, ...]]] = OrderedDict()

    def statements(self, session: str) -> tuple[bytes, ...]:
        with self._lock:
            expires, statements = self._sessions.get(session, (0.0, ()))
            return statements if time.monotonic() < expires else ()

    def add(self, session: str, statement: bytes, timeout_s: float) -> None:
        before = self.statements(session)
        if len(before) >= _SESSION_STATEMENTS_MAX:
            raise StatementError(373, "SESSION_IS_LOCKED", "the session holds too many SET statements: open a new one")
        with self._lock:
            self._sessions[session] = (time.monotonic() + timeout_s, (*before, statement))
            self._sessions.move_to_end(session)
            while len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)


_Prepared = tuple[str, tuple[tuple[str, str], ...]]  # database, and settings by name


class _Kept:
    """Handles on which a reading statement came to its end, for the next one with the same database and settings: to
    open and prepare a handle takes half a millisecond, as long as a small statement."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: list[tuple[_Prepared, Handle]] = []
        self._most = _KEPT_MAX

    def take(self, prepared: _Prepared) -> Handle | None:
        with self._lock:
            for i, (found, handle) in enumerate(self._handles):
                if found == prepared:
                    del self._handles[i]
                    return handle
        return None

    def keep(self, prepared: _Prepared, handle: Handle) -> None:
        with self._lock:
            self._handles.insert(0, (prepared, handle))
            over = self._handles[self._most :]
            del self._handles[self._most :]
        for _, unused in over:
            unused.close()

    def close(self) -> None:
        """Close them all, and those that come later."""
        with self._lock:
            handles, self._handles, self._most = self._handles, [], 0
        for _, handle in handles:
            handle.close()


class Gateway:
    """Answers requests on one engine; any number of threads may call it at once."""

    def __init__(self, engine: Engine, room: Room, *, body_bytes_max: int) -> None:
        self._engine = engine
        self._room = room
        self._body_bytes_max = body_bytes_max
        self._sessions = _Sessions()
        self._kept = _Kept()

    def close(self) -> None:
        """Give back the handles that no request uses; those in use, when it ends."""
        self._kept.close()

    def __call__(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        if request.path in {"/ping", "/replicas_status"} or (request.path == "/" and _says_nothing(request)):
            answer.whole(200, [*self._headers("", ""), ("Content-Type", "text/html; charset=UTF-8")], b"Ok.\n")
        elif request.path not in {"/", "/query"}:
            body = f"There is no handle {request.path}\nUse / or /ping for health checks, / with a query.\n"
            answer.whole(404, self._headers("", ""), body.encode())
        else:
            self._statement(request, answer)

    def _statement(self, request: Request, answer: Answer) -> None:
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        tag = secrets.token_hex(8)
        try:
            self._run(self._read(request, query_id, tag), answer)
        except (StatementError, EncodingError, TooLargeError, EngineError, JoinError) as error:
            self._fail(error, query_id, tag, answer)
        except DisconnectedError:
            raise
        except Exception:  # noqa: BLE001 - the client gets an answer, the log the trace
            _log.exception("the gateway failed on a statement")
            self._fail(EngineError("the gateway failed; see the engine's log. (LOGICAL_ERROR)"), query_id, tag, answer)

    def _read(self, request: Request, query_id: str, tag: str) -> _Ask:
        query, headers = request.query, request.headers
        if headers.get("content-type", "").startswith("multipart/form-data"):
            query = {**query, **_form(bytes(request.body), headers["content-type"])}
            request = replace(request, body=b"")
        body = decode(request.body, headers.get("content-encoding", "").lower(), self._body_bytes_max)
        if _flag(query, "decompress"):
            body = decode_frames(body, self._body_bytes_max)
        text, data = (query["query"].encode(), body) if query.get("query") else (bytes(body), b"")
        statement = outline(text)
        if data and statement.kind not in {Kind.INSERT_DATA, Kind.INSERT_VALUES}:
            text, data = text + b"\n" + data, b""
            statement = outline(text)
        settings = {name: value for name, value in query.items() if name not in _TRANSPORT and name[:6] != "param_"}
        user = query.get("user") or headers.get("x-clickhouse-user") or _basic_user(headers.get("authorization", ""))
        return _Ask(
            text=text,
            data=data,
            statement=statement,
            format=statement.format
            or query.get("default_format")
            or headers.get("x-clickhouse-format", "TabSeparated"),
            params={name[6:]: value for name, value in query.items() if name[:6] == "param_"},
            settings=settings,
            database=query.get("database") or headers.get("x-clickhouse-database", ""),
            session=query.get("session_id", ""),
            session_timeout_s=_seconds(query.get("session_timeout", "60")),
            readonly=request.method in {"GET", "HEAD"} or user == "reader",
            hold=_flag(query, "wait_end_of_query"),
            encoder=_encoder(query, headers),
            query_id=query_id,
            tag=tag,
            head_only=request.method == "HEAD",
        )

    def _run(self, ask: _Ask, answer: Answer) -> None:
        counts = _Counts()
        with self._prepared(ask) as handle:
            if ask.statement.kind is Kind.READ:
                pieces = _rows(handle, ask, counts)
            else:
                pieces = _once(self._effect(handle, ask, counts))
            with closing(pieces):  # a client that went away: the statement is cancelled
                self._send(ask, pieces, counts, answer)
        if ask.statement.kind is Kind.SESSION and ask.session:
            self._sessions.add(ask.session, ask.text, ask.session_timeout_s)

    def _effect(self, handle: Handle, ask: _Ask, counts: _Counts) -> bytes:
        """Run a statement that changes something; what it prints is small. Where it puts rows somewhere, it is not
        taken for done unless there was room."""
        statement = ask.statement
        if statement.verb == b"INSERT":
            self._room.require(len(ask.text) + len(ask.data))
        if statement.kind is Kind.INSERT_DATA:
            handle.set({f"param_{name}": value for name, value in ask.params.items()})
            pieces = [memoryview(ask.text)[statement.data_start :], memoryview(ask.data)]
            output = handle.insert(ask.text[: statement.sql_end], statement.format, pieces)
        else:
            output = handle.run(ask.sql, ask.format, ask.params)
        if statement.verb in _WRITING:
            self._room.prove()
        counts.add(output)
        return output.data

    @contextmanager
    def _prepared(self, ask: _Ask) -> Iterator[Handle]:
        """A handle with database and settings of this statement, in one SET: read-only forbids all further changes,
        and each statement that prepares takes the engine as long as planning a small one. A statement that fails or is
        broken off leaves no handle behind."""
        whole = {"max_result_bytes": str(RESULT_BYTES_MAX)} if ask.hold else {}
        settings = {"implicit_select": "0", **whole, **ask.settings}
        if settings.get("readonly", "0") == "0":
            settings.pop("readonly", None)
            settings |= {"readonly": "2"} if ask.readonly else {}
        alike = ask.statement.kind is Kind.READ and not ask.session and not ask.head_only
        prepared = (ask.database, tuple(settings.items()))
        kept = self._kept.take(prepared) if alike else None
        handle = kept or self._engine.open()
        try:
            if kept is None:
                self._prepare(handle, ask, settings)
            yield handle
        except BaseException:
            handle.close()
            raise
        if alike:
            self._kept.keep(prepared, handle)
        else:
            handle.close()

    def _prepare(self, handle: Handle, ask: _Ask, settings: Mapping[str, str]) -> None:
        if ask.database:
            handle.use(ask.database)
        for statement in self._sessions.statements(ask.session) if ask.session else ():
            handle.run(statement)
        handle.set(settings)

    def _send(self, ask: _Ask, pieces: Iterator[bytes], counts: _Counts, answer: Answer) -> None:
        limit = RESULT_BYTES_MAX if ask.hold else HELD_BYTES
        held, complete = _hold(pieces, limit)
        if ask.hold and not complete:
            raise EngineError(f"Code: 396. DB::Exception: the result is over {limit} bytes. (TOO_MANY_ROWS_OR_BYTES)")
        headers = self._headers(ask.query_id, counts.summary())
        if ask.statement.kind in {Kind.READ, Kind.TELL} or held:
            headers += [("X-ClickHouse-Format", ask.format), ("Content-Type", _content_type(ask.format))]
        headers.append(("X-ClickHouse-Exception-Tag", ask.tag))
        name, encoder = ask.encoder or ("", None)
        if complete and len(held) < _PACKED_BYTES_MIN and name:
            name, encoder = "", None
        if name:
            headers += [("Content-Encoding", name), ("Vary", "Accept-Encoding")]
        if ask.head_only:
            answer.start(200, headers)
            answer.end()
        elif complete:
            answer.whole(200, headers, encoder.compress(held) + encoder.flush() if encoder else held)
        else:
            answer.start(200, headers)
            self._send_rest(held, pieces, encoder, ask.tag, answer)

    def _send_rest(
        self, held: bytes, pieces: Iterator[bytes], encoder: Encoder | None, tag: str, answer: Answer
    ) -> None:
        pack = encoder.compress if encoder else bytes
        answer.write(pack(held))
        try:
            for piece in pieces:
                answer.write(pack(piece))
        except (EngineError, JoinError) as error:
            answer.write(pack(_exception_block(self._message(error), tag)))
            answer.write(encoder.flush() if encoder else b"")
            answer.abort()
            raise DisconnectedError("the statement failed in the middle of its result") from error
        answer.write(encoder.flush() if encoder else b"")
        answer.end()

    def _fail(self, error: Exception, query_id: str, tag: str, answer: Answer) -> None:
        code, name = _code(error)
        status = (
            413 if isinstance(error, TooLargeError) else next((s for s, names in _STATUS.items() if name in names), 500)
        )
        headers = self._headers(query_id, _Counts().summary())
        headers += [
            ("X-ClickHouse-Exception-Code", str(code)),
            ("X-ClickHouse-Exception-Tag", tag),
            ("Content-Type", "text/plain; charset=UTF-8"),
        ]
        answer.whole(status, headers, f"{self._message(error)}\n".encode())

    def _message(self, error: Exception) -> str:
        if isinstance(error, EngineError):
            text = error.message.rstrip()
        else:
            code, name = _code(error)
            text = f"Code: {code}. DB::Exception: {error}. ({name})"
        return text if "(version " in text else f"{text} (version {self._engine.version})"

    def _headers(self, query_id: str, summary: str) -> list[tuple[str, str]]:
        headers = [
            ("X-ClickHouse-Server-Display-Name", self._engine.host),
            ("X-ClickHouse-Timezone", self._engine.timezone),
        ]
        if query_id:
            headers.append(("X-ClickHouse-Query-Id", query_id))
        if summary:
            headers.append(("X-ClickHouse-Summary", summary))
        return headers


def _says_nothing(request: Request) -> bool:
    return not request.query.get("query") and not request.body and request.method in {"GET", "HEAD"}


def _rows(handle: Handle, ask: _Ask, counts: _Counts) -> Generator[bytes]:
    """Encoded rows of a reading statement, piece by piece where the format allows it and the client wants no whole."""
    joined = None if "output_format_json_array_of_rows" in ask.settings else joiner(ask.format)
    if joined is None or ask.hold:
        output = handle.run(ask.text, ask.format, ask.params)
        counts.add(output)
        yield output.data
        return
    blocks = 0
    with closing(handle.stream(ask.text, ask.format, ask.params)) as stream:
        for block in stream:
            blocks += 1
            counts.add(block)
            yield joined.add(block.data)
    if not blocks and joined.needs_head:  # an empty result has a head too, which the stream leaves out
        yield handle.run(ask.text, ask.format, ask.params).data
    else:
        yield joined.end()


def _form(body: bytes, content_type: str) -> dict[str, str]:
    """The plain fields of a form: a client's way to send parameters that are too long for an address."""
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    try:
        parts = list(MultipartParser(io.BytesIO(body), boundary, strict=True))
    except MultipartError as error:
        raise StatementError(36, "BAD_ARGUMENTS", f"the form cannot be read: {error}") from error
    if any(part.filename for part in parts):
        message = "files in a form (external tables) are not supported here: fill a table first"
        raise StatementError(48, "NOT_IMPLEMENTED", message)
    return {part.name: part.value for part in parts}


def _once(data: bytes) -> Generator[bytes]:
    yield data


def _hold(pieces: Iterator[bytes], limit: int) -> tuple[bytes, bool]:
    """The first bytes of an answer, up to about ``limit``, and whether they are all of it."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) > limit:
            return bytes(held), False
    return bytes(held), True


def _exception_block(message: str, tag: str) -> bytes:
    """How a server ends a body that it cannot complete: marker, tag, message, its size, tag, marker."""
    text = f"{message}\n".encode()
    return b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (tag.encode(), text, len(text), tag.encode())


def _encoder(query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[str, Encoder] | None:
    if _flag(query, "compress"):
        return "", FrameEncoder()
    if query.get("enable_http_compression", "1") in {"0", "false"}:
        return None
    return encoder_for(headers.get("accept-encoding", ""))


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "0").lower() not in {"0", "false", ""}


def _seconds(text: str) -> float:
    if not text.isdecimal() or int(text) > 3600:
        raise StatementError(
            374, "INVALID_SESSION_TIMEOUT", f"session_timeout {text!r} is not a number of seconds up to 3600"
        )
    return float(text)


def _basic_user(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return binascii.a2b_base64(token).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise StatementError(516, "AUTHENTICATION_FAILED", "the Authorization header cannot be read") from None


def _content_type(format_name: str) -> str:
    name = format_name.lower()
    if name in {"jsoneachrow", "jsonlines", "ndjson"}:
        return "application/x-ndjson; charset=UTF-8"
    return next((kind for start, kind in _TYPES if name.startswith(start)), "application/octet-stream")


def _code(error: Exception) -> tuple[int, str]:
    if isinstance(error, EngineError | StatementError):
        return error.code, error.name
    if isinstance(error, TooLargeError):
        return 307, "TOO_MANY_BYTES"
    if isinstance(error, JoinError):
        return 49, "LOGICAL_ERROR"
    return 89, "UNKNOWN_COMPRESSION_METHOD"
