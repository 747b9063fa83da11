"""`tally send`: every line has its verdict, and the counts are exact."""

import base64
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from door_bench import DAY_US, NOW_US, Doors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.event import Event, FieldError
from pipeline.transaction_id import new_transaction_id
from producers.file_destinations import ApiDestination, KafkaDestination
from producers.file_rows import FileRefused
from producers.files import DestinationAway, Rules, Summary, input_bytes, send_files
from producers.memory_log import MemoryLog
from producers.publisher import Publisher
from producers.send_progress import SendProgress

RULES = Rules(clock_us=lambda: NOW_US, new_id=new_transaction_id, ahead_max_us=DAY_US, batch_lines_max=10)


def line(n: int) -> bytes:
    """A good line."""
    return json.dumps({"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "transactionId": f"t{n}"}).encode()


def kafka(log: MemoryLog, patience_s: float = 0.0) -> KafkaDestination:
    """Straight to the log."""
    publisher = Publisher(log, topic="events", partitions=6)
    return KafkaDestination(publisher, account="acme", catalog_version=3, patience_s=patience_s)


def names_in(folder: Path) -> list[str]:
    """The files of a folder."""
    return sorted(found.name for found in folder.iterdir())


def ids(log: MemoryLog) -> list[str]:
    """The transactionIds in the log."""
    return sorted(json.loads(found)["transactionId"] for found in log.lines())


def counts(summary: Summary) -> tuple[int, int, int]:
    """Lines, sent, rejected."""
    return summary.total("lines"), summary.total("sent"), summary.total("rejected")


@pytest.mark.parametrize("packed", [False, True])
async def test_a_file_is_sent_whole(tmp_path: Path, packed: bool) -> None:
    """Plain or gzip, with or without a last line break; blank lines are no events."""
    path = tmp_path / ("events.ndjson.gz" if packed else "events.ndjson")
    content = b"\n\r\n".join(line(n) for n in range(95))
    path.write_bytes(gzip.compress(content) if packed else content)
    log, moved = MemoryLog(), []
    summary = await send_files([str(path)], kafka(log), RULES, progress=lambda **moves: moved.append(moves))
    assert counts(summary) == (95, 95, 0)
    assert summary.exit_code == 0
    assert ids(log) == sorted(f"t{n}" for n in range(95))
    assert log.records[0].headers == {"account": b"acme", "catalog": b"3"}
    assert sum(m["read_bytes"] for m in moved) == input_bytes([str(path)]) == path.stat().st_size
    assert sum(m["sent"] for m in moved) == 95
    assert summary.files[0].rejects_file is None
    assert names_in(tmp_path) == [path.name]


async def test_bad_lines_go_to_the_rejects_file_and_the_rest_goes_on(tmp_path: Path) -> None:
    """With line number, faults and the line itself; exit code 1."""
    path = tmp_path / "events.ndjson"
    long = b'{"clientId":"' + b"x" * 300_000 + b'"}'
    path.write_bytes(b"\n".join([line(0), b'{"clientId":5}', line(1), b'{"clientId":"\xff"}', long, b"{", line(2)]))
    log = MemoryLog()
    summary = await send_files([str(path)], kafka(log), RULES)
    assert (counts(summary), summary.exit_code) == ((7, 3, 4), 1)
    assert ids(log) == ["t0", "t1", "t2"]
    assert summary.files[0].rejects_file == f"{path}.rejects"
    rejects = [json.loads(found) for found in (tmp_path / "events.ndjson.rejects").read_text().splitlines()]
    assert [(r["line"], r["errors"][0]["field"], r["errors"][0]["code"]) for r in rejects] == [
        (2, "clientId", "type"),
        (4, "", "encoding"),
        (5, "", "too_large"),
        (6, "", "syntax"),
    ]
    assert rejects[0]["raw"] == '{"clientId":5}'
    assert base64.b64decode(rejects[1]["raw_base64"]) == b'{"clientId":"\xff"}'
    assert "4 lines rejected" in summary.as_text()


async def test_several_files_share_a_rejects_file_that_was_asked_for(tmp_path: Path) -> None:
    """Each line says its file."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"{}\n" + line(1))
    rejects = tmp_path / "bad.ndjson"
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    summary = await send_files(paths, kafka(MemoryLog()), RULES, rejects_path=rejects)
    assert counts(summary) == (4, 2, 2)
    assert [json.loads(found)["file"] for found in rejects.read_text().splitlines()] == paths


async def test_standard_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name `-`, gzip as well."""
    monkeypatch.chdir(tmp_path)
    for content in (line(1) + b"\n" + line(2), gzip.compress(line(1) + b"\n" + line(2))):
        stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))
        monkeypatch.setattr(sys, "stdin", stdin)
        log = MemoryLog()
        assert counts(await send_files(["-"], kafka(log), RULES)) == (2, 2, 0)
        assert ids(log) == ["t1", "t2"]
    assert input_bytes(["-"]) is None


async def test_lines_without_id_are_counted_and_said(tmp_path: Path) -> None:
    """Sent again they would count again."""
    path = tmp_path / "events"
    path.write_bytes(b'{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"}\n' + line(1))
    log = MemoryLog()
    summary = await send_files([str(path)], kafka(log), RULES)
    assert summary.total("without_id") == 1
    assert "have no transactionId" in summary.as_text()
    assert all(json.loads(found)["transactionId"] for found in log.lines())


@pytest.mark.parametrize("name", ["missing.ndjson", "table.csv", "table.parquet", "."])
async def test_what_cannot_be_sent_is_said_before_anything_is(tmp_path: Path, name: str) -> None:
    """Also when it is the second of two files."""
    for there in ("a", "table.csv", "table.parquet"):
        (tmp_path / there).write_bytes(line(1))
    log = MemoryLog()
    with pytest.raises(FileRefused, match=name):
        await send_files([str(tmp_path / "a"), str(tmp_path / name)], kafka(log), RULES)
    assert not log.records


async def test_a_cut_off_gzip_file_is_a_failure_and_the_next_file_is_sent(tmp_path: Path) -> None:
    """What was read before counts."""
    packed = gzip.compress(b"\n".join(line(n) for n in range(20_000)), compresslevel=1)
    (tmp_path / "a.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b").write_bytes(line(99_999))
    log = MemoryLog()
    summary = await send_files([str(tmp_path / "a.gz"), str(tmp_path / "b")], kafka(log), RULES)
    assert summary.exit_code == 1
    assert summary.files[0].failure
    assert summary.files[0].sent > 0
    assert summary.files[1].sent == 1
    assert len(ids(log)) == summary.total("sent")


async def test_kafka_away_ends_the_sending_with_exact_counts(tmp_path: Path) -> None:
    """What is unconfirmed is counted as such, and the user is told that sending again is safe."""
    path = tmp_path / "events"
    path.write_bytes(b"\n".join(line(n) for n in range(95)))
    log = MemoryLog()
    log.away_partitions = {0}
    summary = await send_files([str(path)], kafka(log), RULES)
    file = summary.files[0]
    assert summary.exit_code == 1
    assert file.lines == file.sent + file.rejected + file.unconfirmed
    assert file.unconfirmed > 0
    assert "transactionId counts once" in summary.as_text()


async def test_a_short_outage_is_waited_out_with_the_same_ids(tmp_path: Path) -> None:
    """Only what failed is sent again."""
    path = tmp_path / "events"
    path.write_bytes(b'{"clientId":"c","timestamp":"2026-01-01T00:00:00Z"}\n' * 8)

    class Flaky(MemoryLog):
        async def write(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.away, first = False, not self.records and not hasattr(self, "failed")
            if first:
                self.failed = self.away = True
            return await super().write(*args, **kwargs)

    log = Flaky()
    summary = await send_files([str(path)], kafka(log, patience_s=30.0), RULES)
    assert counts(summary) == (8, 8, 0)
    assert len(set(ids(log))) == len(ids(log)) == 8


@given(
    st.lists(st.sampled_from([line(1), b"{}", b"", b"\xff", b'"x"']), max_size=60), st.sampled_from([b"\n", b"\r\n"])
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_lines_are_sent_plus_rejected(tmp_path: Path, lines: Sequence[bytes], end: bytes) -> None:
    """Whatever the mixture and wherever batches end."""
    path = tmp_path / "events"
    path.write_bytes(end.join(lines))
    log = MemoryLog()
    summary = await send_files([str(path)], kafka(log), RULES)
    good, blank = lines.count(line(1)), lines.count(b"")
    assert counts(summary) == (len(lines) - blank, good, len(lines) - blank - good)
    assert len(ids(log) if log.records else []) == good


async def test_a_file_is_sent_through_the_api(doors: Doors, tmp_path: Path) -> None:
    """The API's verdicts count like one's own."""
    path = tmp_path / "events"
    path.write_bytes(b"\n".join([*(line(n) for n in range(25)), b"{}"]))
    transport = httpx.ASGITransport(app=doors.app)
    async with ApiDestination("http://tally", doors.key, transport=transport) as api:
        summary = await send_files([str(path)], api, RULES)
    assert counts(summary) == (26, 25, 1)
    assert ids(doors.log) == sorted(f"t{n}" for n in range(25))


async def test_the_api_may_reject_what_this_side_let_pass(doors: Doors) -> None:
    """Such as a timestamp that its clock finds too far ahead."""
    ahead = Event(client_id="c", timestamp_us=NOW_US + 3 * DAY_US, transaction_id="t")
    good = Event(client_id="c", timestamp_us=NOW_US, transaction_id="u")
    async with ApiDestination("http://tally", doors.key, transport=httpx.ASGITransport(app=doors.app)) as api:
        assert await api.deliver([good, ahead]) == [
            (),
            (FieldError("timestamp", "range", "lies too far ahead of its arrival"),),
        ]


async def test_a_wrong_key_is_not_tried_again(doors: Doors) -> None:
    """The API's own words reach the user."""
    async with ApiDestination("http://tally", "wrong", transport=httpx.ASGITransport(app=doors.app)) as api:
        with pytest.raises(DestinationAway, match=r"401.*unknown or revoked"):
            await api.deliver([Event(client_id="c", timestamp_us=NOW_US, transaction_id="t")])


def test_the_progress_bar_shows_on_a_terminal_only() -> None:
    """And is silent in a pipe."""
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with SendProgress(console, 100) as progress:
            progress(read_bytes=50, sent=1_234, rejected=2)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("1,234 events" in shown and "2 rejected" in shown) == terminal
