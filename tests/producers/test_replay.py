"""Replay: what a mend makes of a line, which lines are not sent, and that nothing is noted that was not sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from pipeline.event import EventError, decode_event, id_hash
from pipeline.ports import LogUnavailable
from pipeline.reject import RejectedLine, RejectPosition, ReplayNote, replay_id
from producers.memory_log import MemoryLog
from producers.publisher import Publisher
from producers.replay import Mends, Replayer, mend

NOW_US = 1_767_225_600_000_000
TIME = b'"timestamp":"2025-01-01T00:00:00Z"'


@dataclass
class Notes:
    """What was noted, in order; breaks after so many calls."""

    found: list[ReplayNote] = field(default_factory=list)
    calls_left: int = 99

    async def write(self, notes: Sequence[ReplayNote]) -> None:
        if not self.calls_left:
            raise ConnectionError("the store is away")
        self.calls_left -= 1
        self.found += notes


def _line(raw: bytes, offset: int = 0, **changes: object) -> RejectedLine:
    values = {"account": "acme", "verdict": "rejected", "defaulted": False, "transaction_id": None, **changes}
    return RejectedLine(position=RejectPosition("events", 0, 1, offset, 0), raw=raw, **values)  # type: ignore[arg-type]


def _replayer(log: MemoryLog, notes: Notes, mends: Mends | None = None) -> Replayer:
    publisher = Publisher(log, topic="events", partitions=4)
    return Replayer(publisher, notes.write, clock_us=lambda: NOW_US, ahead_max_us=0, catalog_version=3, mends=mends)


@pytest.mark.parametrize(
    ("raw", "mends", "made"),
    [
        (b'{"clientId":7}', Mends(set=(("clientId", "7"),)), b'{"clientId":"7"}'),
        (b'{"value":NaN}', Mends(set=(("value", "1.50"),)), b'{"value":1.50}'),
        (b'{"value":1,"x":2}', Mends(unset=("x",)), b'{"value":1}'),
        (b'{"transaction_id":"a"}', Mends(rename=(("transaction_id", "transactionId"),)), b'{"transactionId":"a"}'),
        (b'{"x":"a"}', Mends(rename=(("x", "eventName"),), set=(("eventName", "b"),)), b'{"eventName":"b"}'),
        (
            b'{"data":{"a":1}}',
            Mends(set=(("data.b", "x"), ("data.c", "[1.10]"))),
            b'{"data":{"a":1,"b":"x","c":[1.10]}}',
        ),
        (b'{"data":{"a":1,"b":2}}', Mends(unset=("data.a",)), b'{"data":{"b":2}}'),
        (b"{}", Mends(set=(("data.a", "1"),)), b'{"data":{"a":1}}'),
        (
            b'{"v":12345678901234567890123456789012345678901.1}',
            Mends(),
            b'{"v":12345678901234567890123456789012345678901.1}',
        ),
        (b'{"a":1,"a":2}', Mends(set=(("a", "3"),)), b'{"a":"3"}'),
        (b'{"value":"x"}', Mends(set=(("value", "y"),)), b'{"value":"y"}'),
    ],
)
def test_a_mend_changes_what_it_names_and_nothing_else(raw: bytes, mends: Mends, made: bytes) -> None:
    """Rename, then unset, then set; numbers keep their digits."""
    assert mend(raw, mends) == made


@pytest.mark.parametrize(
    ("raw", "mends", "code"),
    [
        (b'{"clientId"', Mends(set=(("clientId", "c"),)), "syntax"),
        (b'{"clientId":"\xff"}', Mends(set=(("clientId", "c"),)), "syntax"),
        (b"[1]", Mends(set=(("clientId", "c"),)), "type"),
        (b'{"a":1,"a":2}', Mends(set=(("b", "3"),)), "duplicate_key"),
        (b'{"data":{"a":1,"a":2}}', Mends(set=(("b", "3"),)), "duplicate_key"),
        (b'{"a":1,"b":2}', Mends(rename=(("a", "b"),)), "duplicate_key"),
        (b'{"data":7}', Mends(set=(("data.a", "3"),)), "type"),
        (b"[" * 5000, Mends(set=(("a", "3"),)), "syntax"),
    ],
)
def test_a_line_that_cannot_be_taken_apart_is_not_mended(raw: bytes, mends: Mends, code: str) -> None:
    """And nothing is chosen in silence where a key comes twice."""
    with pytest.raises(EventError) as caught:
        mend(raw, mends)
    assert caught.value.errors[0].code == code


async def test_each_line_keeps_an_id_and_is_noted_where_it_lies() -> None:
    """Its own, or one of its position that is noted before it is sent; headers as they were."""
    log, notes = MemoryLog(), Notes()
    own = _line(b'{"clientId":"c","transactionId":"t",' + TIME + b"}", 1, transaction_id="t")
    none = _line(b'{"clientId":"c",' + TIME + b"}", 2, defaulted=True)
    done = await _replayer(log, notes).replay([own, none])
    assert [one.transaction_id for one in done] == ["t", replay_id(none.position)]
    planned, *sent = notes.found
    assert (planned.position, planned.transaction_id, planned.place) == (none.position, replay_id(none.position), None)
    assert [note.position for note in sent] == [own.position, none.position]
    for note, one in zip(sent, done, strict=True):
        assert note.place == one.place
        assert note.place is not None
        partition, offset, line = note.place
        record = [found for found in log.records if found.partition == partition][offset]
        event = decode_event((record.value or b"").split(b"\n")[line], arrival_us=NOW_US, ahead_max_us=0)
        assert event.transaction_id == note.transaction_id
        assert note.id_hash == id_hash("acme", note.transaction_id)
        assert (record.headers.get("defaulted") == b"timestamp") is (note.position == none.position)


async def test_a_crash_between_sending_and_noting_neither_loses_nor_doubles() -> None:
    """The line is open still, and goes out again under the same id, whatever is asked for."""
    log = MemoryLog()
    none = _line(b'{"clientId":"c",' + TIME + b"}")
    notes = Notes(calls_left=1)  # the id is noted, what was sent is not
    with pytest.raises(ConnectionError):
        await _replayer(log, notes).replay([none])
    (planned,) = notes.found
    pinned = _line(none.raw, transaction_id=planned.transaction_id)  # as it is read back
    again = Notes()
    refused = await _replayer(log, again, Mends(set=(("transactionId", "new"),))).replay([pinned])
    assert refused[0].errors[0].code == "changed"
    (done,) = await _replayer(log, again).replay([pinned])
    assert (done.transaction_id, done.errors) == (planned.transaction_id, ())


async def test_lines_that_would_be_refused_again_are_not_sent() -> None:
    """Each says why; the good ones among them go."""
    log, notes = MemoryLog(), Notes()
    lines = [
        _line(b'{"clientId":7,' + TIME + b"}", 1),
        _line(b'{"clientId":"c","transactionId":"t",' + TIME + b"}", 2, verdict="conflict", transaction_id="t"),
        _line(b'{"clientId":"c",' + TIME + b"}", 3, account=""),
        _line(b'{"clientId":"c",' + TIME + b"}", 4),
    ]
    replayer = _replayer(log, notes)
    done = await replayer.replay(lines)
    assert [one.errors[0].code if one.errors else None for one in done] == ["type", "conflict", "encoding", None]
    assert [one.errors for one in replayer.check(lines)] == [one.errors for one in done]
    assert {note.position for note in notes.found} == {lines[3].position}


async def test_only_what_was_acknowledged_is_noted_as_sent() -> None:
    """The rest stays open, and the failure is told."""
    log, notes = MemoryLog(), Notes()
    log.away_partitions = {1, 2, 3}
    lines = [
        _line(f'{{"clientId":"c","transactionId":"t{i}",'.encode() + TIME + b"}", i, transaction_id=f"t{i}")
        for i in range(20)
    ]
    with pytest.raises(LogUnavailable, match="replay again"):
        await _replayer(log, notes).replay(lines)
    there = {line.position for line in lines if id_hash("acme", line.transaction_id or "") % 4 == 0}
    assert 0 < len(there) < 20
    assert {note.position for note in notes.found} == there
