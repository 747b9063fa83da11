"""The deep audit finds in the log what the store alone cannot tell: changes that were made everywhere alike."""

import json
import uuid
from pathlib import Path

import pytest
from counted_log import AHEAD_MAX_US, APPENDED_MS, HEADERS, MAPPERS, CountedLog, events

from consumers.audit import Auditor
from consumers.audit_deep import Deep, DeepAuditor, Told
from consumers.audit_repair import Repairer
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka import LogRanges, RecordWriter
from pipeline.adapters.kafka_admin import ensure_topics
from pipeline.block import Place
from pipeline.event import id_hash, partition_of
from pipeline.ports import LogReader
from pipeline.settings import Settings

NOW = {"mutations_sync": 2}


async def _deep(log: CountedLog, reader: LogReader | None = None, told: list[Told] | None = None) -> Deep:
    place = Place(log.topic, 0, 0, log.partitions, "acme", AHEAD_MAX_US)
    tell = (told if told is not None else []).append
    return await DeepAuditor(log.store, reader or log, MAPPERS.at, place, pauses_s=(0,), tell=tell).run()


def _changed(line: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode()


@pytest.fixture
def log(store: Store) -> CountedLog:
    """Blocks with duplicates, a conflict, refused lines, an empty record and many lines in one record."""
    log = CountedLog(store)
    first = events(1, 100, 40)
    log.count(first)
    log.count([*first[:7], _changed(first[8], value=77), b"{}", b"", b"no JSON"])
    log.count(first[20:23])
    log.count([b"\n".join(events(2, 50, 3)), *events(3, 20, 90)])
    return log


async def test_a_store_that_is_what_the_log_says_has_no_drift(log: CountedLog) -> None:
    """Every line is compared, whatever became of it."""
    told: list[Told] = []
    deep = await _deep(log, told=told)
    assert deep.findings == ()
    assert (deep.drift, deep.events, deep.blocks) == (0, 100 + 11 + 3 + 70, 4)
    assert (deep.skipped, dict(deep.not_retained)) == ((), {})
    assert told[-1] == Told(0, log.end, log.end)


async def test_a_value_changed_everywhere_alike_is_found(log: CountedLog) -> None:
    """In facts, ledger and rollups: the store agrees with itself, the log names the position and both values."""
    log.store.command(
        "ALTER TABLE blocks UPDATE value_sum = value_sum + 5 WHERE start = 0 AND month IN"
        " (0, (SELECT toYYYYMM(timestamp) FROM events WHERE account != '' AND offset = 3))",
        settings=NOW,
    )
    log.store.command("ALTER TABLE events UPDATE value = value + 5 WHERE account != '' AND offset = 3", settings=NOW)
    _rebuild_rollups(log)
    deep = await _deep(log)
    (finding,) = deep.findings
    assert (finding.check, finding.where["offset"], finding.where["line"]) == ("log: facts", "3", "0")
    assert "value: the log has" in finding.message


async def test_an_event_removed_everywhere_is_found(log: CountedLog) -> None:
    """Fact, id, its duplicate's reason, ledger counts and rollups: nothing in the store tells of it any more."""
    store = log.store
    ((id_, value, month),) = store.query(
        "SELECT id_hash, value, toYYYYMM(timestamp) FROM events WHERE account != '' AND offset = 40"
    ).rows
    store.command("ALTER TABLE events DELETE WHERE account != '' AND offset = 40", settings=NOW)
    store.command("ALTER TABLE event_ids DELETE WHERE id_hash != 0 AND offset = 40", settings=NOW)
    store.command(
        "ALTER TABLE blocks UPDATE events = events - if(month = 0, 1, 0), accepted = accepted - if(month = 0, 1, 0),"
        " rows = rows - 1, value_sum = value_sum - {value:Decimal(38, 9)}, id_hash_sum = id_hash_sum - {id:UInt128}"
        " WHERE start = 0 AND month IN (0, {month:UInt32})",
        {"value": value, "id": id_, "month": month},
        NOW,
    )
    _rebuild_rollups(log)
    deep = await _deep(log)
    found = {(f.check, f.where.get("offset", f.where.get("start"))) for f in deep.findings}
    assert found == {("log: ids", "40"), ("log: ledger", "0"), ("log: facts", "40")}
    (ledger,) = [f for f in deep.findings if f.check == "log: ledger"]
    assert ledger.message == ("events: the ledger has 99, the log 100; accepted: the ledger has 99, the log 100")


async def test_a_fact_that_the_log_does_not_have_is_found(log: CountedLog) -> None:
    """Invented at the line of a duplicate."""
    log.store.command(
        "INSERT INTO events SELECT * REPLACE (101 AS offset, 100 AS block_start) FROM"
        " (SELECT * FROM events WHERE account != '' AND offset = 5)"
    )
    (finding,) = (await _deep(log)).findings
    assert (finding.check, finding.where["offset"]) == ("log: facts", "101")
    assert "no accepted event there" in finding.message


async def test_rejects_are_compared_line_by_line(log: CountedLog) -> None:
    """One is gone, one has another verdict."""
    log.store.command("ALTER TABLE rejects DELETE WHERE offset = 108", settings=NOW)
    log.store.command("ALTER TABLE rejects UPDATE verdict = 'rejected' WHERE offset = 107", settings=NOW)
    findings = (await _deep(log)).findings
    assert {(f.check, f.where["offset"]) for f in findings} == {("log: rejects", "107"), ("log: rejects", "108")}


async def test_an_id_with_another_first_position_is_found(log: CountedLog) -> None:
    """Repetitions would be judged by it."""
    log.store.command("ALTER TABLE event_ids UPDATE line = 9 WHERE id_hash != 0 AND offset = 21", settings=NOW)
    (finding,) = (await _deep(log)).findings
    assert (finding.check, finding.where["offset"]) == ("log: ids", "21")


async def test_a_checksum_that_the_log_does_not_give_is_found(log: CountedLog) -> None:
    """The ledger alone was changed."""
    log.store.command("ALTER TABLE blocks UPDATE crc = crc + 1 WHERE start = 100", settings=NOW)
    (finding,) = (await _deep(log)).findings
    assert (finding.check, finding.where["start"], finding.where["end"]) == ("log: ledger", "100", "111")


async def test_what_the_log_no_longer_has_is_told(log: CountedLog) -> None:
    """A block that is retained in part is not compared; nothing is found wrong with it."""
    log.first = 105
    log.store.command("ALTER TABLE events UPDATE value = value + 5 WHERE offset = 3", settings=NOW)
    deep = await _deep(log)
    assert deep.drift == 0
    assert dict(deep.not_retained) == {0: (0, 105)}
    assert (deep.events, deep.events_not_retained) == (3 + 70, 111)


async def test_blocks_of_other_rules_are_not_judged(log: CountedLog) -> None:
    """They are counted as skipped, with the reason."""
    log.store.command("ALTER TABLE blocks UPDATE rules = 99 WHERE start = 0", settings=NOW)
    deep = await _deep(log)
    assert deep.drift == 0
    assert deep.skipped == ("1 blocks: counted under rules 99, this version knows 1, 2, 3",)


async def test_an_event_sent_on_must_be_counted_where_it_belongs(store: Store) -> None:
    """It lay in partition 0 of two; once partition 1 has it, all is well."""
    here, there = CountedLog(store, partitions=2), CountedLog(store, partition=1, partitions=2)
    there.topic = here.topic
    lines = events(4, 30, 5)
    place = [partition_of(id_hash("acme", json.loads(line)["transactionId"]), 2) for line in lines]
    here.count(lines)
    lost = await _deep(here)
    assert {f.check for f in lost.findings} == {"log: rerouted"}
    assert {int(f.where["offset"]) for f in lost.findings} == {i for i, p in enumerate(place) if p == 1}
    there.count([line for line, p in zip(lines, place, strict=True) if p == 1])
    reader = {0: here, 1: there}

    class Both:
        async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
            return await reader[partition].bounds(topic, partition)

        def read_range(self, topic: str, partition: int, start: int, end: int):
            return reader[partition].read_range(topic, partition, start, end)

    deep = await _deep(here, Both())
    assert (deep.findings, deep.events) == ((), 30 + place.count(1))


async def test_it_reads_the_broker(store: Store, kafka_bootstrap: str, tmp_path: Path) -> None:
    """The same on Kafka: append times, headers and offsets as the broker gives them; a damaged fact is found."""
    name = uuid.uuid4().hex[:8]
    settings = Settings(
        home=tmp_path,
        kafka=kafka_bootstrap,
        topic_events=f"{name}.events",
        topic_rejects=f"{name}.rejects",
        topic_catalog=f"{name}.catalog",
        group=name,
        partitions=1,
    )
    ensure_topics(settings)
    writer, ranges = RecordWriter(settings), LogRanges(settings)
    await writer.start()
    lines = events(6, 60, 20)
    for line in [*lines, lines[3]]:
        await writer.write(settings.topic_events, line, partition=0, headers=HEADERS)
    await writer.stop()
    log = CountedLog(store, topic=settings.topic_events)
    read = [record async for batch in ranges.read_range(log.topic, 0, 0, 61) for record in batch]
    for at in range(0, 61, 25):
        log.count_records([(record.value or b"", record.timestamp_ms) for record in read[at : at + 25]])
    assert ((deep := await _deep(log, ranges)).findings, deep.events) == ((), 61)
    store.command("ALTER TABLE events UPDATE data = '{}' WHERE account != '' AND offset = 30", settings=NOW)
    (finding,) = (await _deep(log, ranges)).findings
    await ranges.stop()
    assert (finding.check, finding.where["offset"]) == ("log: facts", "30")
    assert read[0].timestamp_ms > APPENDED_MS


def _rebuild_rollups(log: CountedLog) -> None:
    auditor = Auditor(log.store, topic=log.topic, pauses_s=())
    assert Repairer(log.store, auditor, topic=log.topic).run().report.drift == 0
