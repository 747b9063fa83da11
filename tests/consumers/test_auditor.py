"""The running audit: quick ones that see all that is new and nothing twice, full ones when they are due."""

import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from counted_log import APPENDED_MS, CountedLog, events, plain_events
from prometheus_client.parser import text_string_to_metric_families
from store_contents import TARGETS
from stored_events import definition_of

from consumers.audit_quick import Quick, QuickAuditor, State
from consumers.auditor import Audited, RunningAudit
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.rollup_view import SPARSE
from pipeline.metrics import AuditMetrics
from pipeline.ports import StoreUnavailable

NOW = {"mutations_sync": 2}
ROLLUPS = TARGETS[2:]


@pytest.fixture
def log(store: Store) -> CountedLog:
    """Two blocks over several months, duplicates and a refused line in the second."""
    log = CountedLog(store)
    log.count(events(1, 80, 60))
    log.count([*events(2, 40, 60), *events(1, 80, 60)[:5], b"{}"])
    return log


def _quick(log: CountedLog) -> QuickAuditor:
    return QuickAuditor(log.store, topic=log.topic, pauses_s=(0.02, 0.02))


def _running(log: CountedLog, full_every_s: float = 3600) -> RunningAudit:
    return RunningAudit(log.store, topic=log.topic, every_s=0.01, full_every_s=full_every_s)


def test_it_goes_on_where_the_last_one_ended(log: CountedLog) -> None:
    """From nothing it sees everything; then nothing; then what is new. The state is that of a look at the whole."""
    quick = _quick(log)
    first = quick.run(State())
    assert first.findings == ()
    assert (first.blocks, first.events, first.accepted, first.duplicates, first.rejected) == (2, 126, 120, 5, 1)
    assert first.marks > 0
    assert first.state == quick.state()
    again = quick.run(first.state)
    assert (again.blocks, again.events, again.state) == (0, 0, first.state)
    log.count(events(3, 30, 60))
    third = quick.run(again.state)
    assert (third.blocks, third.accepted, third.drift) == (1, 30, 0)
    assert third.state == quick.state() != first.state


def test_sparse_rollups_have_marks_of_those_blocks_alone_that_go_there(log: CountedLog) -> None:
    """A look at the whole tells it, and one that goes on from a state that knew no others; their loss is found."""
    quick = _quick(log)
    whole = quick.run(State()).state
    former = msgspec.structs.replace(whole, months=tuple(msgspec.structs.replace(m, sparse=None) for m in whole.months))
    blocks = [log.count(plain_events(3, 30)), log.count(events(4, 30, 60)), log.count(plain_events(5, 30))]
    assert [block.sparse for block in blocks] == [False, True, False]
    for state in (whole, former):
        told = quick.run(state)
        assert (told.blocks, told.findings) == (3, ())
        assert told.state == quick.state()
    assert any(month.sparse != month.blocks for month in quick.state().months)
    for table in sorted(SPARSE):
        log.store.command(f"ALTER TABLE {table} DELETE WHERE account = ''", settings=NOW)
    assert {f.check for f in quick.run(whole).findings} == {f"quick: rollup {table}" for table in SPARSE}


def test_a_block_that_was_given_up_is_no_drift(log: CountedLog) -> None:
    """Its months stay in the ledger, without rows, and it has left no marks."""
    quick = _quick(log)
    before = quick.run(State()).state
    log.give_up(events(3, 30, 60))
    log.count(events(4, 30, 60))
    for state in (State(), before):
        told = quick.run(state)
        assert told.findings == ()
        assert told.state == quick.state()


def _lose_facts(log: CountedLog) -> None:
    log.store.command("ALTER TABLE events DELETE WHERE account != '' AND block_start = 126", settings=NOW)


def _alter_a_fact(log: CountedLog) -> None:
    log.store.command("ALTER TABLE events UPDATE value = value + 1 WHERE account != '' AND offset = 130", settings=NOW)


def _count_a_block_twice(log: CountedLog) -> None:
    for table in ROLLUPS:
        log.store.command(f"INSERT INTO {table} SELECT * FROM {table}", settings={"insert_deduplicate": 0})


def _lose_an_old_fact(log: CountedLog) -> None:
    log.store.command("ALTER TABLE events DELETE WHERE account != '' AND offset = 7", settings=NOW)


def _lose_ids(log: CountedLog) -> None:
    log.store.command("ALTER TABLE event_ids DELETE WHERE id_hash != 0 AND offset = 131", settings=NOW)


def _lose_a_block(log: CountedLog) -> None:
    log.store.command("ALTER TABLE blocks DELETE WHERE start = 126", settings=NOW)


def _lose_the_block_of_months(log: CountedLog) -> None:
    log.store.command("ALTER TABLE blocks DELETE WHERE start = 126 AND month = 0", settings=NOW)


def _miscount(log: CountedLog) -> None:
    log.store.command("ALTER TABLE blocks UPDATE rejected = 3 WHERE start = 126 AND month = 0", settings=NOW)


def _lose_a_reject(log: CountedLog) -> None:
    log.store.command("ALTER TABLE rejects DELETE WHERE offset >= 126", settings=NOW)


@pytest.mark.parametrize(
    ("damage", "checks"),
    [
        (_lose_facts, {"quick: blocks", "quick: rows"}),
        (_alter_a_fact, {"quick: blocks"}),
        (_count_a_block_twice, {f"quick: rollup {table}" for table in ROLLUPS}),
        (_lose_an_old_fact, {"quick: rows"}),
        (_lose_ids, {"quick: ids", "quick: rows"}),
        (_lose_a_block, {"quick: rows", "quick: ranges"}),
        (_lose_the_block_of_months, {"quick: verdicts", "quick: ranges"}),
        (_miscount, {"quick: verdicts", "quick: rejects"}),
        (_lose_a_reject, {"quick: rejects"}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_damage_to_what_is_new_is_found(
    log: CountedLog, damage: Callable[[CountedLog], None], checks: set[str]
) -> None:
    """With its place; the state stays, so that the next audit looks again."""
    before = _quick(log).run(State()).state
    log.count([*events(5, 50, 60), b"no JSON"])
    log.count(events(6, 20, 60))
    damage(log)
    found = _quick(log).run(before)
    assert checks <= {finding.check for finding in found.findings}
    assert found.drift == len(found.findings)
    assert found.state == before
    assert all(finding.where and finding.message for finding in found.findings)


def test_a_block_that_never_reached_a_rollup_is_named(log: CountedLog) -> None:
    """By its table, partition and month, from marks alone."""
    state = _quick(log).run(State()).state
    block = log.build([(value, APPENDED_MS) for value in events(8, 10, 1)])
    view = definition_of(log.store, "ingest_to_usage_15m")
    log.store.command("DROP VIEW ingest_to_usage_15m")
    try:
        log.store_block(block)
        log.report()
    finally:
        log.store.command(view)
    (finding,) = _quick(log).run(state).findings
    assert finding.check == "quick: rollup usage_15m"
    assert finding.where == {"epoch": "0", "partition": "0", "month": "202511"}
    assert finding.message == "the rollup has -1 blocks against the ledger"


def test_what_is_under_way_is_no_drift(log: CountedLog) -> None:
    """A block whose rows have landed and that is not reported, and one that is stated and has not landed."""
    state = _quick(log).run(State()).state
    log.store_block(log.build([(value, APPENDED_MS) for value in events(8, 10, 60)]))
    stated = log.build([(value, APPENDED_MS) for value in events(9, 10, 60)])
    log.blocks.write_ledger([(stated, time.time_ns() // 1_000_000)])
    found = _quick(log).run(state)
    assert (found.findings, found.blocks) == ((), 0)


def test_it_holds_beside_a_load(log: CountedLog) -> None:
    """Block after block without a pause: no audit finds anything, and together they have seen every block once."""
    stopping, counted = threading.Event(), []
    state = _quick(log).run(State()).state

    def load() -> None:
        while not stopping.is_set():
            counted.append(log.count(events(1000 + len(counted), 10, 60)))

    worker = threading.Thread(target=load)
    worker.start()
    audits: list[Quick] = []
    try:
        for _ in range(6):
            audits.append(_quick(log).run(state))
            state = audits[-1].state
    finally:
        stopping.set()
        worker.join()
    audits.append(_quick(log).run(state))
    assert [audit.findings for audit in audits] == [()] * 7
    assert sum(audit.blocks for audit in audits) == len(counted) > 0


def test_the_first_audit_is_full_and_then_quick_until_the_next_is_due(log: CountedLog) -> None:
    """Each is kept with its counts; a restart goes on from what is kept."""
    assert [_running(log).once().scope, _running(log).once().scope] == ["full", "quick"]
    assert _running(log, full_every_s=0).once().scope == "full"
    log.count(events(4, 9, 3))
    assert (last := _running(log).once()).counts["accepted"] == 9
    assert (last.scope, last.drift, last.blocks) == ("quick", 0, 1)
    rows = log.store.query(
        "SELECT scope, drift, accepted, duplicates, rejected, blocks, cells > 0, findings FROM audits"
        " WHERE topic = {topic:String} ORDER BY at",
        {"topic": log.topic},
    ).rows
    assert rows[0] == ("full", 0, 120, 5, 1, 2, 1, [])
    assert rows[-1] == ("quick", 0, 9, 0, 0, 1, 1, [])
    assert log.store.query("SELECT count() FROM v_audits").rows[0][0] >= 4


def test_drift_is_kept_told_and_looked_at_again(log: CountedLog) -> None:
    """Until it is gone: the second quick audit starts where the last clean one ended."""
    _running(log).once()
    log.count(events(7, 20, 2))
    log.store.command("ALTER TABLE events DELETE WHERE account != '' AND offset = 130", settings=NOW)
    heard: list[Audited] = []
    for _ in range(2):
        running = RunningAudit(log.store, topic=log.topic, every_s=1, full_every_s=3600, heard=heard.append)
        running.once()
    assert [(audited.scope, audited.drift > 0, audited.blocks, audited.state) for audited in heard] == [
        ("quick", True, 1, "")
    ] * 2
    assert any("quick: blocks epoch=0 partition=0 start=126 month=202511" in text for text in heard[0].findings)


def test_it_runs_until_it_is_told_to_stop_and_counts_failures() -> None:
    """A store that is away ends nothing."""
    metrics, stopping = AuditMetrics(), threading.Event()

    class Away:
        def query(self, *_: object) -> None:
            if len(asked) == 2:
                stopping.set()
            asked.append(1)
            raise StoreUnavailable("away")

        insert_arrow = query

    asked: list[int] = []
    running = RunningAudit(
        Away(),  # type: ignore[arg-type]
        topic="t",
        every_s=0.01,
        full_every_s=1,
        failed=metrics.failed,
    )
    running.run(stopping)
    assert len(asked) == 3
    assert _samples(metrics)["tally_audit_failures_total", ""] == 3


def test_metrics_tell_the_last_audit_of_each_scope() -> None:
    """By their names in the list, over HTTP as in text."""
    import urllib.request

    from pipeline.local.port import choose

    metrics = AuditMetrics()
    metrics.heard("full", drift=3, at_s=1000.5, duration_s=2.25)
    metrics.heard("quick", drift=0, at_s=1060.0, duration_s=0.125)
    port = choose("TALLY_AUDITOR_PORT", wanted=None, remembered=None, taken=set())
    stop = metrics.serve("127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b'tally_audit_drift{scope="full"} 3.0' in answer.read()
    stop()
    assert _samples(metrics) == {
        ("tally_audit_drift", "full"): 3,
        ("tally_audit_drift", "quick"): 0,
        ("tally_audit_time_seconds", "full"): 1000.5,
        ("tally_audit_time_seconds", "quick"): 1060,
        ("tally_audit_duration_seconds", "full"): 2.25,
        ("tally_audit_duration_seconds", "quick"): 0.125,
        ("tally_audit_failures_total", ""): 0,
    }


def _samples(metrics: AuditMetrics) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("scope", "")): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
