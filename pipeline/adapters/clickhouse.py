"""The store: ClickHouse over its HTTP protocol. The only module that imports clickhouse-connect.

Rules: one call is one request. An insert is never repeated by the client library, since only the worker's block
protocol knows whether a block may be sent again; reads and everything else are not repeated either once the server
has answered. Decimals come back as Decimal, times as aware UTC. Every wait has a bound. Calls block: from an event
loop, use a thread. One Store may be shared by threads.
"""

import logging
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.exceptions import Error as ClientError
from clickhouse_connect.driver.httpclient import HttpClient
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3.exceptions import HTTPError

from pipeline.ports import StoreError, StoreUnavailable
from pipeline.settings import Settings

CONNECT_TIMEOUT_S: Final = 5
ANSWER_TIMEOUT_S: Final = 120  # the longest silence of a server that is at work; it sends headers meanwhile
_PIECE_BYTES: Final = 256 << 10
CONNECTIONS_MAX: Final = 16

# What every insert carries: a block hangs on its token through all views, nothing is buffered or half-done silently,
# and one request stays one block. Views group their rows already, so merging them once more is a waste.
INSERT_SETTINGS: Final[Mapping[str, Any]] = {
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "async_insert": 0,
    "materialized_views_ignore_errors": 0,
    "max_partitions_per_insert_block": 0,  # a backfill over years touches more months than the default of 100
    "optimize_on_insert": 0,
    "min_insert_block_size_rows": 1_048_449,
    "min_insert_block_size_bytes": 268_435_456,
}

_HINTS: Final = {
    60: "; run `tally migrate`",  # UNKNOWN_TABLE
    81: "; run `tally migrate`",  # UNKNOWN_DATABASE
    193: "; check TALLY_CLICKHOUSE_USER and TALLY_CLICKHOUSE_PASSWORD",  # WRONG_PASSWORD
    516: "; check TALLY_CLICKHOUSE_USER and TALLY_CLICKHOUSE_PASSWORD",  # AUTHENTICATION_FAILED
}

logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)  # it warns, with a traceback, of what it raises anyway


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of a query: names and ClickHouse types of the columns, and one tuple a row."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]

    def named(self) -> Iterator[dict[str, Any]]:
        """Each row as a dict by column name."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)


class Store:
    """Connections to one database. Nothing is sent before the first call."""

    def __init__(self, settings: Settings, *, answer_timeout_s: int = ANSWER_TIMEOUT_S) -> None:
        self._settings = settings
        self._answer_timeout_s = answer_timeout_s
        self._client: HttpClient | None = None
        self._lock = threading.Lock()

    def query(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Result:
        """Run a SELECT; `parameters` are bound by the server where the text says {name:Type}.

        Raises StoreUnavailable, StoreError. Blocks.
        """
        with store_errors(self._settings.clickhouse):
            answer = self._connected().query(sql, parameters=_dict(parameters), settings=_dict(settings))
            rows = answer.result_rows
            return Result(
                tuple(answer.column_names), tuple(t.name for t in answer.column_types), list(map(tuple, rows))
            )

    def read(
        self,
        sql: str,
        fmt: str,
        settings: Mapping[str, Any] | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Run a SELECT and give the answer as the server writes it in the format `fmt`. Raises as `query`. Blocks."""
        with store_errors(self._settings.clickhouse):
            return self._connected().raw_query(sql, parameters=_dict(parameters), settings=_dict(settings), fmt=fmt)

    def command(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Run a statement that gives no rows. Raises StoreUnavailable, StoreError. Blocks."""
        with store_errors(self._settings.clickhouse):
            self._connected().command(sql, parameters=_dict(parameters), settings=_dict(settings))

    def insert_arrow(self, table: str, rows: pa.Table, settings: Mapping[str, Any] | None = None) -> None:
        """Insert `rows` by column name into `table` in exactly one request, as one block, without any repetition.

        `settings` are added to INSERT_SETTINGS (`insert_deduplication_token` belongs there).
        Raises StoreUnavailable when the outcome is unknown, StoreError when the server refused. Blocks.
        """
        if not rows.num_rows:
            raise StoreError(0, f"nothing to insert into {table}: an empty block has no rows to send")
        self._insert(table, _ipc(rows.combine_chunks()), "ArrowStream", settings)

    def insert_encoded(self, table: str, rows: bytes, fmt: str, settings: Mapping[str, Any] | None = None) -> None:
        """The same with rows as the server wrote them in the format `fmt`, which tells the columns; see `read`."""
        self._insert(table, pa.py_buffer(rows), fmt, settings)

    def _insert(self, table: str, body: pa.Buffer, fmt: str, settings: Mapping[str, Any] | None) -> None:
        pieces: Any = _once(body)  # the library's type is for bytes; its sockets take any buffer
        told = {**INSERT_SETTINGS, **(settings or {})}
        with store_errors(self._settings.clickhouse):
            # A generator: the client library repeats a request on a closed connection only if it can rewind the body.
            # With its size, the body goes out as it is instead of in chunks, each of which would be copied.
            size = {"Content-Length": str(body.size)}
            self._connected().raw_insert(table, None, pieces, settings=told, fmt=fmt, transport_settings=size)

    def ping(self) -> None:
        """Prove that the server answers and the database is there. Raises StoreUnavailable, StoreError. Blocks."""
        self.query("SELECT 1")

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close_connections()

    def _connected(self) -> HttpClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> HttpClient:
        address = urlsplit(self._settings.clickhouse)
        client = clickhouse_connect.get_client(
            host=address.hostname,
            port=address.port or (8443 if address.scheme == "https" else 8123),
            interface=address.scheme,
            username=self._settings.clickhouse_user,
            password=self._settings.clickhouse_password.get_secret_value(),
            database=self._settings.database,
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=self._answer_timeout_s,
            query_retries=0,
            autogenerate_session_id=False,  # a session would forbid several threads
            tz_mode="aware",
            tz_source="server",
            pool_mgr=get_pool_manager(maxsize=CONNECTIONS_MAX),
            show_clickhouse_errors="scrub",
        )
        if not isinstance(client, HttpClient):
            raise StoreError(0, f"TALLY_CLICKHOUSE={self._settings.clickhouse} must begin with http:// or https://")
        client.http_retries = 0
        return client


@contextmanager
def store_errors(address: str) -> Iterator[None]:
    """Turn the client library's exceptions into StoreUnavailable and StoreError."""
    try:
        yield
    except (HTTPError, TimeoutError, ConnectionError) as error:
        raise StoreUnavailable(_away(address, error)) from error
    except ClientError as error:
        if error.code is None and isinstance(error.__cause__, HTTPError):
            raise StoreUnavailable(_away(address, error.__cause__)) from error
        if error.code is None and "HTTP status 5" in str(error):
            raise StoreUnavailable(_away(address, error)) from error  # a proxy, or a server that is going down
        raise StoreError(error.code or 0, f"{error}{_HINTS.get(error.code or 0, '')}") from error
    except ClickHouseError as error:
        raise StoreError(0, str(error)) from error


def _away(address: str, error: Exception) -> str:
    return f"ClickHouse at {address} does not answer ({error}); see `tally status` and TALLY_CLICKHOUSE"


def _dict(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(values)


def _once(body: pa.Buffer) -> Generator[memoryview, None, None]:
    """Piece by piece: the HTTP client copies what it is given, and a copy of a whole block is memory never seen before,
    which the system clears page by page."""
    whole = memoryview(body)
    for at in range(0, len(whole), _PIECE_BYTES):
        yield whole[at : at + _PIECE_BYTES]


def _ipc(rows: pa.Table) -> pa.Buffer:
    """The stream in a buffer of just its size: one that grows is copied several times."""
    size = pa.MockOutputStream()
    _write_stream(rows, size)
    buffer = pa.allocate_buffer(size.size())
    _write_stream(rows, pa.FixedSizeBufferWriter(buffer))
    return buffer


def _write_stream(rows: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
