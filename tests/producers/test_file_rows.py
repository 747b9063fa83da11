"""CSV and Parquet become events' JSON; a column that nobody named is refused, never left out in silence."""

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.event import decode_event
from producers.file_rows import Columns, FileRefused, Row, format_of, open_rows, parse_columns

CENTURY_US = 4_102_444_800_000_000
HEAD = b"customer,at,transactionId,value,region,ms,note\n"
MAPS = ["clientId=customer", "timestamp=at", "data.region=region", "data.ms:number=ms", "-=note"]


def rows(path: Path, maps: list[str] = MAPS) -> list[Row]:
    """All of a file."""
    with open_rows(str(path), format_of(str(path)), parse_columns(maps)) as (found, _):
        return list(found)


def written(path: Path, content: bytes) -> Path:
    """The file."""
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_csv_row_is_an_event(tmp_path: Path, packed: bool) -> None:
    """Quotes, line breaks inside, a mark of UTF-8 at the beginning; an empty cell is no field."""
    content = (
        b"\xef\xbb\xbf"
        + HEAD
        + (b'"a, ""b""",2026-01-31T12:00:00Z,t-1,1.50,"eu\nwest",012,skip\r\nc,2026-01-31T12:00:00+02:00,,,,,\n')
    )
    path = written(tmp_path / ("e.csv.gz" if packed else "e.csv"), gzip.compress(content) if packed else content)
    first, second = rows(path)
    assert (first.number, second.number) == (3, 4)
    event = decode_event(first.raw, arrival_us=CENTURY_US, ahead_max_us=0)
    assert (event.client_id, event.transaction_id, event.value) == ('a, "b"', "t-1", Decimal("1.5"))
    assert event.document == {"region": "eu\nwest", "ms": 12}
    assert json.loads(second.raw) == {"clientId": "c", "timestamp": "2026-01-31T12:00:00+02:00"}


def test_columns_named_like_fields_need_no_map(tmp_path: Path) -> None:
    """Also `data` as JSON, of which nothing leaks into other fields."""
    path = written(
        tmp_path / "e.csv",
        b'clientId,timestamp,data\na,2026-01-01T00:00:00Z,"{""n"": 1.10}"\na,2026-01-01T00:00:00Z,"{}, ""value"": 5"\n',
    )
    good, bad = rows(path, [])
    assert good.raw == b'{"clientId":"a","timestamp":"2026-01-01T00:00:00Z","data":{"n": 1.10}}'
    assert (bad.errors[0].field, bad.errors[0].code) == ("data", "format")


def test_a_bad_row_is_told_and_the_next_one_is_read(tmp_path: Path) -> None:
    """Cells that are missing, no UTF-8, no number."""
    line = b"c,2026-01-31T12:00:00Z,t,1,eu,%s,\n"
    path = written(tmp_path / "e.csv", HEAD + b"c,x\n" + line % b"\xff" + line % b"NaN" + line % b"many" + line % b"5")
    found = rows(path)
    assert [(row.number, row.errors[0].field) for row in found[:-1]] == [
        (2, ""),
        (3, "data.ms"),
        (4, "data.ms"),
        (5, "data.ms"),
    ]
    assert found[0].raw == b"c,x"
    assert not found[-1].errors


@pytest.mark.parametrize(
    ("header", "maps", "told"),
    [
        ("clientId,timestamp,transaction_id", [], "'transaction_id' is no field"),
        ("clientId,timestamp", ["data.a=other"], "the file has clientId, timestamp"),
        ("clientId,at", [], "no column|is no field"),
        ("timestamp", [], "no column is clientId"),
        ("clientId,timestamp,c", ["clientId=c"], "two columns are clientId"),
        ("clientId,timestamp,data,data.a", [], "as a whole"),
        ("", [], "no column is clientId"),
        ("clientId,timestamp", ["transaction_id=c"], "write FIELD=COLUMN"),
        ("clientId,timestamp", ["clientId:number=c"], "write FIELD=COLUMN"),
        ("clientId,timestamp", ["data.=c"], "write FIELD=COLUMN"),
        ("clientId,timestamp", ["clientId"], "write FIELD=COLUMN"),
        ("clientId,timestamp", ["clientId=a", "-=a"], "twice"),
    ],
)  # fmt: skip
def test_columns_are_all_named_or_the_file_is_refused(tmp_path: Path, header: str, maps: list[str], told: str) -> None:
    """Before anything is read."""
    path = written(tmp_path / "e.csv", header.encode() + b"\n")
    with pytest.raises(FileRefused, match=told):
        rows(path, maps)


def test_ndjson_takes_no_map(tmp_path: Path) -> None:
    """It names its fields itself."""
    with pytest.raises(FileRefused, match="NDJSON"):
        rows(written(tmp_path / "e.ndjson", b"{}"))


def test_a_parquet_row_is_an_event(tmp_path: Path) -> None:
    """Exact decimals, instants of any unit in UTC, structures as data; what has no form in JSON is told."""
    at = datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    table = pa.table(
        {
            "clientId": ["a", "b", "c", "d"],
            "timestamp": pa.array([at] * 4, pa.timestamp("us", "Europe/Berlin")),
            "value": pa.array([Decimal("0.000000001"), None, Decimal(7), Decimal(7)], pa.decimal128(38, 9)),
            "data.share": [0.1, None, float("nan"), 1.0],
            "data.tags": [["x"], [], None, None],
            "data.raw": pa.array([None, None, None, b"\xff"], pa.binary()),
            "data.when": pa.array([1, None, None, None], pa.timestamp("ns", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=2)
    found = rows(tmp_path / "e.parquet", [])
    assert [row.number for row in found] == [1, 2, 3, 4]
    event = decode_event(found[0].raw, arrival_us=CENTURY_US, ahead_max_us=0)
    assert event.timestamp_us == (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert event.value == Decimal("0.000000001")
    assert event.document == {"share": Decimal("0.1"), "tags": ["x"], "when": "1970-01-01T00:00:00+00:00"}
    assert json.loads(found[1].raw) == {
        "clientId": "b",
        "timestamp": "2026-01-31T10:00:00.000005+00:00",
        "data": {"tags": []},
    }
    assert [row.errors[0].field for row in found[2:]] == ["data.share", "data.raw"]


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    """Nor is standard input one."""
    with pytest.raises(FileRefused, match=r"e\.parquet"):
        rows(written(tmp_path / "e.parquet", b"PAR1"), [])
    with pytest.raises(FileRefused, match="standard input"), open_rows("-", "parquet", Columns()):
        pass


@given(st.lists(st.dictionaries(st.sampled_from(["clientId", "value", "data.a"]), st.text(max_size=6)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_csv_keeps_every_text(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Whatever is in it, as Python's own writer of CSV spells it; empty is absent."""
    import csv

    path = tmp_path / "e.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, ["timestamp", "clientId", "value", "data.a"])
        writer.writeheader()
        writer.writerows({"timestamp": "t", **event} for event in events)
    found = rows(path, [])
    assert len(found) == len(events)
    for row, event in zip(found, events, strict=True):
        if row.errors:
            assert any("\ud800" <= char <= "\udfff" for text in event.values() for char in text)
            continue
        flat = json.loads(row.raw)
        inner = flat.pop("data", {})
        assert {**flat, **{f"data.{key}": value for key, value in inner.items()}} == {
            "timestamp": "t",
            **{key: text for key, text in event.items() if text},
        }
