"""ClickHouse's HTTP protocol, spoken to the embedded engine by clients that know nothing of it."""

import gzip
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import httpx
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from pipeline.local.encoding import FrameEncoder, decode_frames

HTTP = httpx.Client(verify=False, timeout=60)  # noqa: S501 - plain HTTP; one connection pool for all threads


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    """Close the connections at the end."""
    yield
    HTTP.close()


def ask(url: str, sql: str | bytes, **params: str) -> httpx.Response:
    """POST a statement as the body."""
    return HTTP.post(url, content=sql, params={"database": "tally", **params})


def cell(url: str, sql: str, **params: str) -> str:
    """The one value that a statement gives."""
    return ask(url, sql, **params).raise_for_status().text.rstrip("\n")


def running_now(word: str) -> str:
    """A statement that counts those with ``word`` in them that run now."""
    return f"SELECT count() FROM system.processes WHERE query LIKE '%{word}%' AND query NOT LIKE '%processes%'"


# -- clickhouse-connect


def test_server_side_parameters_keep_every_character(client: Client) -> None:
    """Strings with quotes, backslashes, tabs and line ends; arrays; instants; decimals."""
    text = 'it\'s "x" \\ \t \n ü {a:String}'
    at = datetime(2026, 3, 8, 7, 30, 15, tzinfo=UTC)
    rows = client.query(
        "SELECT {text:String}, {texts:Array(String)}, {at:DateTime('UTC')}, {n:Decimal(38, 9)},"
        " {none:Nullable(String)}",
        parameters={"text": text, "texts": [text, "'"], "at": at, "n": Decimal("12.000000001"), "none": None},
    ).result_rows
    assert rows == [(text, [text, "'"], at.replace(tzinfo=None), Decimal("12.000000001"), None)]


@pytest.mark.parametrize("compress", [False, "gzip", "zstd", "lz4"])
def test_inserts_and_results_in_every_compression(url: str, table: str, compress: bool | str) -> None:
    """Native inserts and results."""
    import clickhouse_connect

    client = clickhouse_connect.get_client(dsn=f"{url}/tally", interface="http", compress=compress)
    client.command(f"CREATE TABLE {table} (a UInt64, s LowCardinality(String), d Nullable(Float64)) ENGINE = Memory")
    rows = [(number, f"s{number % 7}", None if number % 3 else number / 2) for number in range(5000)]
    assert client.insert(table, rows, column_names=["a", "s", "d"]).written_rows == 5000
    assert client.query(f"SELECT * FROM {table} ORDER BY a").result_rows == rows
    client.close()


def test_a_whole_answer_has_its_length_and_is_packed_where_that_is_worth_it(url: str) -> None:
    """One that fits into a packet anyway is sent as it is."""
    for number, packed in ((1, False), (5000, True)):
        answer = ask(url, f"SELECT number FROM numbers({number})", default_format="TSV", enable_http_compression="1")
        assert ("content-encoding" in answer.headers) == packed
        assert answer.headers["content-length"].isdecimal()
        assert answer.text == "".join(f"{at}\n" for at in range(number))


def test_arrow_both_ways(client: Client, table: str) -> None:
    """An Arrow table goes in and comes out, whole and as a stream."""
    client.command(f"CREATE TABLE {table} (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    sent = pa.table({"a": pa.array(range(200_000), pa.uint64()), "s": [f"ü{n}" for n in range(200_000)]})
    assert client.insert_arrow(table, sent).written_rows == 200_000
    read = f"SELECT a, s FROM {table} ORDER BY a"
    assert client.query_arrow(read, use_strings=True).cast(sent.schema).equals(sent)
    with client.query_arrow_stream(read, use_strings=True) as stream:
        batches = list(stream)
    assert len(batches) > 1
    assert pa.Table.from_batches(batches).cast(sent.schema).equals(sent)


def test_rows_stream_in_blocks(client: Client) -> None:
    """A large result arrives block by block and completely."""
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
        sizes = [len(block) for block in stream]
    assert len(sizes) > 5
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize(
    ("fmt", "data"),
    [
        ("CSV", b'1,"x"\n2,"y"\n'),
        ("JSONEachRow", b'{"a":1,"s":"x"}\n{"a":2,"s":"y"}\n'),
        ("RowBinary", b"\x01\0\0\0\0\0\0\0\x01x\x02\0\0\0\0\0\0\0\x01y"),
        ("TSV", b"1\tx\n2\ty\n"),
        ("Values", b"(1, 'x'), (2, 'y')"),
    ],
)
def test_raw_inserts(client: Client, url: str, table: str, fmt: str, data: bytes) -> None:
    """Statement in the address and data in the body, or both in the body."""
    client.command(f"CREATE TABLE {table} (a UInt64, s String) ENGINE = Memory")
    client.raw_insert(table, ["a", "s"], data, fmt=fmt)
    answer = ask(url, f"INSERT INTO {table} (a, s) FORMAT {fmt}\n".encode() + data)
    assert json.loads(answer.headers["x-clickhouse-summary"])["written_rows"] == "2"
    packed = gzip.compress(data)
    sql = f"INSERT INTO {table} (a, s) FORMAT {fmt}"
    HTTP.post(
        url, params={"query": sql, "database": "tally"}, content=packed, headers={"Content-Encoding": "gzip"}
    ).raise_for_status()
    assert client.query(f"SELECT a, s, count() FROM {table} GROUP BY a, s ORDER BY a").result_rows == [
        (1, "x", 3),
        (2, "y", 3),
    ]


def test_large_binary_inserts_arrive_whole(url: str, table: str) -> None:
    """Far more than any buffer, in one body with its statement; one block, so that a token covers it."""
    window = "SETTINGS non_replicated_deduplication_window = 9"
    cell(url, f"CREATE TABLE {table} (a UInt64) ENGINE = MergeTree ORDER BY a {window}")
    data = b"".join(number.to_bytes(8, "little") for number in range(900_000))
    for _ in range(2):
        ask(
            url, f"INSERT INTO {table} FORMAT RowBinary\n".encode() + data, insert_deduplication_token="x"
        ).raise_for_status()
    assert cell(url, f"SELECT count(), sum(a), uniqExact(_part) FROM {table}") == f"900000\t{900_000 * 899_999 // 2}\t1"


def test_parameters_in_inserts(url: str, table: str) -> None:
    """Values and even the table's name."""
    cell(url, f"CREATE TABLE {table} (a UInt64, s String) ENGINE = Memory")
    params = {"param_t": table, "param_a": "5", "param_s": "it's"}
    cell(url, "INSERT INTO {t:Identifier} VALUES ({a:UInt64}, {s:String})", **params)
    cell(url, "INSERT INTO {t:Identifier} FORMAT CSV\n6,z\n", param_t=table)
    assert cell(url, f"SELECT groupArray((a, s)) FROM {table}") == "[(5,'it\\'s'),(6,'z')]"


def test_errors_carry_code_and_name(client: Client) -> None:
    """As a server gives them."""
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE") as caught:
        client.query("SELECT * FROM missing")
    assert caught.value.code == 60


# -- the protocol itself


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT * FROM missing", 404, 60),
        ("SELEC 1", 400, 62),
        ("nonsense", 400, 62),
        ("SELECT throwIf(1)", 500, 395),
        ("SELECT 1 SETTINGS no_such_setting = 1", 404, 115),
        ("SELECT 1; SELECT 2", 400, 62),
        ("INSERT INTO missing FORMAT CSV\n1", 404, 60),
        ("SELECT sleep(2) SETTINGS max_execution_time = 0.1", 408, 159),
        ("CREATE TEMPORARY TABLE x (a Int8)", 501, 48),
        ("", 400, 62),
        ("SELECT {x:String}", 400, 456),
    ],
)
def test_statuses(url: str, sql: str, status: int, code: int) -> None:
    """The status, the code's header and a message that ends with the version."""
    answer = ask(url, sql)
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (status, str(code))
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert "(version " in answer.text


def test_headers_of_an_answer(url: str) -> None:
    """What clients read besides the body."""
    answer = HTTP.get(url, params={"query": "SELECT 1 AS x", "default_format": "JSONEachRow", "query_id": "mine"})
    assert answer.json() == {"x": 1}
    assert answer.headers["x-clickhouse-format"] == "JSONEachRow"
    assert answer.headers["x-clickhouse-query-id"] == "mine"
    assert answer.headers["x-clickhouse-timezone"] == "UTC"
    assert answer.headers["x-clickhouse-server-display-name"]
    assert json.loads(answer.headers["x-clickhouse-summary"])["read_rows"] == "1"
    assert HTTP.head(url, params={"query": "SELECT 1"}).status_code == 200
    assert HTTP.get(f"{url}/ping").text == HTTP.get(url).text == "Ok.\n"
    assert HTTP.get(f"{url}/nothing").status_code == 404


def test_reading_requests_cannot_write(url: str, table: str) -> None:
    """GET, the user ``reader`` and ``readonly=1``: the engine itself refuses, and the way out is closed."""
    cell(url, f"CREATE TABLE {table} (a UInt8) ENGINE = Memory")
    insert = f"INSERT INTO {table} VALUES (1)"
    basic = ("reader", "")
    refused = [
        HTTP.get(url, params={"query": insert, "database": "tally"}),
        ask(url, insert, user="reader"),
        ask(url, f"INSERT INTO {table} FORMAT CSV\n1\n", user="reader"),
        HTTP.post(url, content=insert, params={"database": "tally"}, headers={"X-ClickHouse-User": "reader"}),
        HTTP.post(url, content=insert, params={"database": "tally"}, auth=basic),
        ask(url, insert, readonly="1"),
        ask(url, "SET readonly = 0", user="reader"),
        ask(url, f"DROP TABLE {table}", user="reader"),
        ask(url, "SELECT 1 SETTINGS readonly = 0", user="reader"),
    ]
    assert [answer.headers.get("x-clickhouse-exception-code") for answer in refused] == ["164"] * len(refused)
    assert cell(url, f"SELECT count() FROM {table}", user="reader", max_threads="1") == "0"
    assert (
        cell(url, "SELECT getSetting('readonly'), getSetting('max_threads')", readonly="1", max_threads="1") == "1\t1"
    )


def test_settings_hold_for_one_statement(url: str) -> None:
    """Under many at once, none sees another's; nothing stays behind."""
    read = "SELECT getSetting('max_threads'), getSetting('insert_deduplication_token'), sleep(0.01)"

    def one(number: int) -> bool:
        if number % 3 == 0:
            names = "('max_threads', 'insert_deduplication_token')"
            return cell(url, f"SELECT count() FROM system.settings WHERE changed AND name IN {names}") == "0"
        token = f"token '{number}'"
        seen = cell(url, read, max_threads=str(number), insert_deduplication_token=token)
        return seen.split("\t")[:2] == [str(number), token.replace("'", "\\'")]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(1, 200)))


def test_the_database_holds_for_one_statement(url: str) -> None:
    """By parameter or header."""
    assert cell(url, "SELECT currentDatabase()") == "tally"
    assert HTTP.post(url, content="SELECT currentDatabase()").text == "default\n"
    header = {"X-ClickHouse-Database": "system"}
    assert HTTP.post(url, content="SELECT currentDatabase()", headers=header).text == "system\n"
    assert ask(url, "SELECT 1", database="missing").status_code == 404


def test_a_database_that_is_made_anew_is_read_anew(url: str) -> None:
    """Handles are used again; what they were prepared for may have gone meanwhile, and statements on them fail."""
    for value in ("1", "2"):
        cell(url, "CREATE DATABASE anew")
        cell(url, f"CREATE VIEW anew.seen AS SELECT {value} AS a")
        for _ in range(3):
            assert cell(url, "SELECT a FROM seen", database="anew") == value
            assert ask(url, "SELECT throwIf(a > 0) FROM seen", database="anew").status_code == 500
        cell(url, "DROP DATABASE anew")
        assert ask(url, "SELECT a FROM seen", database="anew").status_code == 404


def test_a_session_remembers_set_and_use(url: str) -> None:
    """Within the session only."""
    read = "SELECT currentDatabase(), getSetting('max_threads')"
    HTTP.post(url, content="USE system", params={"session_id": "s1"}).raise_for_status()
    HTTP.post(url, content="SET max_threads = 3", params={"session_id": "s1"}).raise_for_status()
    assert HTTP.post(url, content=read, params={"session_id": "s1"}).text == "system\t3\n"
    assert HTTP.post(url, content=read, params={"session_id": "s2"}).text != "system\t3\n"


def test_statements_run_side_by_side(url: str) -> None:
    """Eight that wait for each other's rows: none would end if they took turns."""
    started = threading.Barrier(8)

    def one(_: int) -> str:
        started.wait()
        return cell(url, "SELECT sleepEachRow(0.2) FROM numbers(5) LIMIT 1 OFFSET 4", max_block_size="1")

    def running() -> int:
        return int(cell(url, running_now("sleepEachRow")))

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(one, number) for number in range(8)]
        most = 0
        while not all(answer.done() for answer in answers):
            most = max(most, running())
        assert {answer.result() for answer in answers} == {"0"}
    assert most >= 6


STREAMED = [
    "Native",
    "RowBinary",
    "RowBinaryWithNames",
    "RowBinaryWithNamesAndTypes",
    "CSV",
    "CSVWithNames",
    "CSVWithNamesAndTypes",
    "TSV",
    "TabSeparatedWithNames",
    "TSVWithNamesAndTypes",
    "JSONEachRow",
    "JSONCompactEachRowWithNamesAndTypes",
]


@pytest.mark.parametrize("fmt", STREAMED)
@pytest.mark.parametrize("rows", [0, 1, 250_000])
@pytest.mark.parametrize("whole", ["0", "1"])
def test_streamed_results_are_what_the_engine_would_write_at_once(
    url: str, fmt: str, rows: int, whole: str, table: str
) -> None:
    """Each document read back by the engine's own parser gives the same rows, heads and all, in pieces or whole."""
    sql = f"SELECT number AS `a\"b`, concat('x\n', toString(number)) AS s FROM numbers({rows})"
    document = ask(url, f"{sql} FORMAT {fmt}", wait_end_of_query=whole).raise_for_status().content
    cell(url, f'CREATE TABLE {table} (`a"b` UInt64, s String) ENGINE = Memory')
    if document:
        ask(url, f"INSERT INTO {table} FORMAT {fmt}\n".encode() + document).raise_for_status()
    checksum = f"SELECT count(), sum(cityHash64(*)) FROM {table}"
    assert cell(url, checksum) == cell(url, f"SELECT count(), sum(cityHash64(*)) FROM ({sql})")
    if rows == 0:
        assert bool(document) == ("With" in fmt)


def test_an_arrow_stream_is_one_stream(url: str) -> None:
    """Of many blocks, and of none: the columns are there either way."""
    for rows in (0, 250_000):
        document = ask(
            url, f"SELECT number AS n, toString(number) AS s FROM numbers({rows}) FORMAT ArrowStream"
        ).content
        table = pa.ipc.open_stream(document).read_all()
        assert (table.num_rows, table.column_names) == (rows, ["n", "s"])


def test_whole_documents_of_other_formats(url: str) -> None:
    """JSON has a foot, Parquet an index: they come whole."""
    assert ask(url, "SELECT number FROM numbers(100000) FORMAT JSON").json()["rows"] == 100_000
    assert ask(url, "SELECT number FROM numbers(1000) FORMAT Parquet").content[-4:] == b"PAR1"


def test_frames_of_the_native_compression(url: str, table: str) -> None:
    """``compress=1`` and ``decompress=1``."""
    packed = ask(url, "SELECT number FROM numbers(400000) FORMAT RowBinary", compress="1").content
    rows = b"".join(number.to_bytes(8, "little") for number in range(400_000))
    assert decode_frames(packed, 1 << 24) == rows
    cell(url, f"CREATE TABLE {table} (a UInt64) ENGINE = Memory")
    encoder = FrameEncoder()
    body = encoder.compress(rows) + encoder.flush()
    query = {"query": f"INSERT INTO {table} FORMAT RowBinary", "decompress": "1", "database": "tally"}
    HTTP.post(url, params=query, content=body).raise_for_status()
    assert cell(url, f"SELECT sum(a) FROM {table}") == str(sum(range(400_000)))
    broken = HTTP.post(url, params=query, content=body[:40] + b"?" + body[41:])
    assert broken.status_code == 400
    assert "checksum" in broken.text


FAILING = (
    "SELECT number, throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_block_size = 10000, max_threads = 1"
)


def test_an_error_in_the_middle_is_not_taken_for_the_end(client: Client, url: str) -> None:
    """clickhouse-connect raises, curl reports a broken transfer, and the body says why."""
    with pytest.raises(StreamFailureError, match="FUNCTION_THROW_IF"), client.query_row_block_stream(FAILING) as stream:
        for _ in stream:
            pass
    done = subprocess.run(["curl", "-sS", url, "--data-binary", FAILING], capture_output=True, check=False)
    assert done.returncode == 18
    assert done.stdout.endswith(b"__exception__\r\n")
    assert b"FUNCTION_THROW_IF_VALUE_IS_NON_ZERO" in done.stdout
    early = ask(url, FAILING, wait_end_of_query="1")
    assert early.status_code == 500
    assert early.headers["x-clickhouse-exception-code"] == "395"


def test_curl(url: str) -> None:
    """As the manual shows it."""

    def curl(*arguments: str, stdin: bytes = b"") -> str:
        return subprocess.run(
            ["curl", "-sS", "--fail", *arguments], input=stdin, capture_output=True, check=True
        ).stdout.decode()

    assert curl(f"{url}/?query=SELECT%201") == "1\n"
    assert curl("--compressed", url, "--data-binary", "SELECT 1 FORMAT CSV") == "1\n"
    assert curl("-u", "default:", url, "--data-binary", "@-", stdin=b"SELECT 2") == "2\n"
    assert curl(f"{url}/?query=SELECT%20%7Bx%3AString%7D&param_x=a%5Ctb") == "a\\tb\n"
    chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", url, "--data-binary", "@-"]
    assert curl(*chunked, stdin=b"SELECT 3") == "3\n"


def test_forms_are_refused_by_name(url: str) -> None:
    """External tables are not built; the answer says so."""
    answer = HTTP.post(url, params={"query": "SELECT 1"}, files={"x": b"1"})
    assert answer.status_code == 501
    assert "external tables" in answer.text


def test_tables_and_queries_are_described(client: Client, url: str, table: str) -> None:
    """Statements that tell about tables give rows too."""
    client.command(f"CREATE TABLE {table} (a UInt8) ENGINE = MergeTree ORDER BY a")
    assert client.query(f"SHOW TABLES LIKE '{table}'").result_rows == [(table,)]
    assert client.query(f"EXISTS TABLE {table}").result_rows == [(1,)]
    assert client.query(f"DESCRIBE TABLE {table}").result_rows[0][:2] == ("a", "UInt8")
    assert client.query("EXPLAIN SELECT 1").row_count > 0
    client.command(f"INSERT INTO {table} VALUES (1)")
    assert cell(url, f"CHECK TABLE {table} SETTINGS check_query_single_value_result = 1") == "1"


def test_other_sites_cannot_reach_it_through_a_browser(url: str) -> None:
    """Neither by a name of their own nor by a form."""
    assert HTTP.get(url, headers={"Host": "evil.example"}).status_code == 403
    assert HTTP.post(url, content="SELECT 1", headers={"Origin": "https://evil.example"}).status_code == 403
    assert HTTP.post(url, content="SELECT 1", headers={"Origin": "http://localhost:3000"}).status_code == 200


def test_a_client_that_leaves_ends_its_statement_only(url: str) -> None:
    """In the middle of a result, and in the middle of a body: nothing runs on, nothing is inserted."""
    mark = "SELECT number AS left_behind FROM system.numbers"
    with HTTP.stream("POST", url, content=mark) as answer:
        next(answer.iter_raw())
    running = running_now("left_behind")
    for _ in _attempts():
        if cell(url, running) == "0":
            break
    cell(url, "CREATE OR REPLACE TABLE left_behind (a UInt64) ENGINE = Memory")
    host = urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port)
    connection.putrequest("POST", "/?database=tally&query=INSERT%20INTO%20left_behind%20FORMAT%20CSV")
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    connection.send(b"1\n2\n")
    connection.close()
    assert cell(url, "SELECT count() FROM left_behind") == "0"


def test_requests_with_large_bodies_follow_each_other_on_a_connection(url: str, table: str) -> None:
    """Sent without waiting for an answer, or after "100 Continue": each has its own answer, and whole bodies."""
    cell(url, f"CREATE TABLE {table} (a UInt64) ENGINE = Memory")
    rows = b"".join(b"%d\n" % number for number in range(100_000))
    host = urlsplit(url)
    address = f"/?database=tally&query=INSERT%20INTO%20{table}%20FORMAT%20CSV"
    head = f"POST {address} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: {len(rows)}\r\n".encode()
    asks = f"GET /?query=SELECT%2042 HTTP/1.1\r\nHost: {host.netloc}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((host.hostname or "", host.port or 0)) as connection:
        connection.sendall(head + b"\r\n" + rows + head + b"\r\n" + rows + asks)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answers.count(b"HTTP/1.1 200") == 3
    assert b"42\n" in answers
    with socket.create_connection((host.hostname or "", host.port or 0)) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100")
        connection.sendall(rows)
        assert b"".join(iter(lambda: connection.recv(65_536), b"")).startswith(b"HTTP/1.1 200")
    assert cell(url, f"SELECT count(), sum(a) FROM {table}") == f"300000\t{3 * sum(range(100_000))}"


def test_a_large_body_that_breaks_off_inserts_nothing(url: str, table: str) -> None:
    """As a small one."""
    cell(url, f"CREATE TABLE {table} (a UInt64) ENGINE = Memory")
    host = urlsplit(url)
    with socket.create_connection((host.hostname or "", host.port or 0)) as connection:
        address = f"/?database=tally&query=INSERT%20INTO%20{table}%20FORMAT%20CSV"
        connection.sendall(f"POST {address} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: 900000\r\n\r\n".encode())
        connection.sendall(b"1\n" * 200_000)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65_536) == b""
    assert cell(url, f"SELECT count() FROM {table}") == "0"


def _attempts() -> Iterator[None]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        yield
    raise AssertionError("gave up waiting")
