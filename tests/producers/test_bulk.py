"""The bulk door: arrays and NDJSON, compressed or not."""

import gzip
import json

import pytest
import zstandard
from door_bench import Doors

EVENTS = [{"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "transactionId": f"t{n}"} for n in range(5)]
NDJSON = b"\n".join(json.dumps(event).encode() for event in EVENTS) + b"\n"


@pytest.mark.parametrize(
    ("content", "content_type", "encoding"),
    [
        (json.dumps(EVENTS).encode(), "application/json", ""),
        (NDJSON, "application/x-ndjson", ""),
        (NDJSON.replace(b"\n", b"\r\n\r\n"), "application/x-ndjson; charset=utf-8", ""),
        (gzip.compress(NDJSON, mtime=0), "application/x-ndjson", "gzip"),
        (gzip.compress(NDJSON[:150], mtime=0) + gzip.compress(NDJSON[150:], mtime=0), "application/x-ndjson", "gzip"),
        (zstandard.compress(json.dumps(EVENTS).encode()), "application/json", "zstd"),
    ],
)
async def test_every_form_is_received(doors: Doors, content: bytes, content_type: str, encoding: str) -> None:
    """Each event with its verdict."""
    answer = await doors.post("/v1/events/batch", content=content, content_type=content_type, content_encoding=encoding)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 5)
    assert sorted(e["transactionId"] for e in doors.events()) == [f"t{n}" for n in range(5)]


async def test_a_bad_line_sinks_only_itself(doors: Doors) -> None:
    """Truncated, badly encoded and wrong lines beside good ones."""
    content = b'{"cl\n' + NDJSON + b'{"clientId":"\xff"}\n{"clientId":5}'
    answer = await doors.post("/v1/events/batch", content=content, content_type="application/x-ndjson")
    statuses = [v["status"] for v in answer.json()["events"]]
    assert statuses == ["rejected", *["received"] * 5, "rejected", "rejected"]


@pytest.mark.parametrize(
    ("content", "content_type", "encoding", "status"),
    [
        (NDJSON, "application/x-ndjson", "gzip", 400),
        (NDJSON, "application/x-ndjson", "zstd", 400),
        (NDJSON, "application/x-ndjson", "br", 415),
        (NDJSON, "text/csv", "", 415),
        (gzip.compress(NDJSON, mtime=0)[:-12], "application/x-ndjson", "gzip", 400),
        (zstandard.compress(NDJSON)[:-4], "application/x-ndjson", "zstd", 400),
        (gzip.compress(b"", mtime=0) * 200, "application/x-ndjson", "gzip", 400),
        (gzip.compress(b" " * 20_000_000, mtime=0), "application/x-ndjson", "gzip", 413),
        (zstandard.compress(b" " * 20_000_000), "application/x-ndjson", "zstd", 413),
        (b"\n\n", "application/x-ndjson", "", 400),
        (b"", "application/json", "", 400),
        (json.dumps(EVENTS[0]).encode(), "application/json", "", 422),
        (b"{}\n" * 10_001, "application/x-ndjson", "", 413),
        (b"[1,2]", "application/json", "", 400),
    ],
)
async def test_what_is_no_batch_is_refused(
    doors: Doors, content: bytes, content_type: str, encoding: str, status: int
) -> None:
    """Limits count what is unpacked; nothing is written."""
    answer = await doors.post("/v1/events/batch", content=content, content_type=content_type, content_encoding=encoding)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
    assert not doors.log.records
