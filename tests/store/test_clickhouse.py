"""The store's client: exact types, one request a call, errors that say whether the outcome is known."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from stored_events import fresh_store

from pipeline.adapters.clickhouse import Store
from pipeline.ports import StoreError, StoreUnavailable
from pipeline.settings import Settings


class CuttingProxy:
    """Forwards connections to the engine; once `cut` is set, reads the beginning of a request and closes."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.cut = threading.Event()
        self.requests_cut = 0
        self._upstream = (str(address.hostname), int(address.port or 0))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, target, source is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.cut.is_set() and from_client:
                    self.requests_cut += data.count(b"POST /")
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy(clickhouse_url: str) -> Iterator[CuttingProxy]:
    """A way to the engine that can be cut."""
    proxy = CuttingProxy(clickhouse_url)
    yield proxy
    proxy.close()


def test_decimals_and_times_come_back_exact(store: Store) -> None:
    """Decimal as Decimal with all digits, instants aware and in UTC, 128-bit numbers whole."""
    result = store.query(
        "SELECT toDecimal128('-0.000000001', 9) AS d, toDateTime64('2024-02-29 23:59:59.999999', 6, 'UTC') AS t,"
        " toDateTime('2024-02-29 23:59:59', 'UTC') AS s, toUInt128('340282366920938463463374607431768211455') AS u"
    )
    assert result.columns == ("d", "t", "s", "u")
    assert result.types[0] == "Decimal(38, 9)"
    ((d, t, s, u),) = result.rows
    assert d == Decimal("-0.000000001")
    assert t == datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
    assert s.utcoffset() is not None
    assert s == datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
    assert u == (1 << 128) - 1


@pytest.mark.parametrize("text", ["it's", "back\\slash", "tab\tnew\nline", "{x:String}", "ü€\U0001f600", "", "%s"])
def test_parameters_are_values_whatever_they_contain(store: Store, text: str) -> None:
    """Bound by the server, alone and in a list."""
    result = store.query("SELECT {a:String}, {b:Array(String)}", {"a": text, "b": [text, text]})
    assert result.rows == [(text, [text, text])]


def test_an_answer_with_an_error_has_its_code(store: Store) -> None:
    """And a hint where there is one."""
    with pytest.raises(StoreError, match="tally migrate") as unknown:
        store.query("SELECT * FROM nowhere")
    assert unknown.value.code == 60
    with pytest.raises(StoreError) as wrong:
        store.query("SELECT throwIf(1)")
    assert wrong.value.code == 395


def test_a_missing_database_says_to_migrate(clickhouse_url: str) -> None:
    """The first thing a newcomer meets."""
    with pytest.raises(StoreError, match="tally migrate"):
        Store(Settings(clickhouse=clickhouse_url, database="not_there")).ping()


def test_a_server_that_is_away_is_unavailable() -> None:
    """Refused connections are no error of the request; the message names the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}.*tally status"):
        Store(Settings(clickhouse=f"http://127.0.0.1:{port}")).ping()


def test_an_insert_whose_connection_breaks_is_sent_once(proxy: CuttingProxy) -> None:
    """The outcome is unknown: the client must not send it again by itself."""
    store = fresh_store(proxy.url)
    store.command("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
    rows = pa.table({"n": pa.array(range(100), pa.uint64())})
    store.insert_arrow("kept", rows)
    proxy.cut.set()
    with pytest.raises(StoreUnavailable):
        store.insert_arrow("kept", rows)
    assert proxy.requests_cut == 1
    proxy.cut.clear()
    assert store.query("SELECT count() FROM kept").rows == [(100,)]
    store.close()


def test_one_store_serves_several_threads(store: Store) -> None:
    """Each gets its own answer."""

    def ask(i: int) -> int:
        answer: int = store.query("SELECT sum(number) FROM numbers({n:UInt64})", {"n": i}).rows[0][0]
        return answer

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(64))) == [i * (i - 1) // 2 for i in range(64)]


def test_an_empty_insert_is_refused(store: Store) -> None:
    """A block without rows has nothing to send, and a server would not know its token."""
    with pytest.raises(StoreError, match="empty block"):
        store.insert_arrow("ingest", pa.table({"account": pa.array([], pa.string())}))


def test_a_closed_store_opens_again(store: Store) -> None:
    """Closing gives connections back, no more."""
    store.close()
    assert store.query("SELECT 1").rows == [(1,)]
