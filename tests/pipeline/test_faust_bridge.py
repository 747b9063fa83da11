"""What the bridge leans on in Faust, mode and aiokafka is still there; and how it behaves on it.

A new version of one of them fails here, by the name of what it lacks, before it fails in production.
"""

import asyncio
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka import TopicPartition, codec
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher as fetcher_module
from aiokafka.consumer import subscription_state
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator, OffsetCommitRequest
from aiokafka.producer.sender import Sender
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.tables.manager import TableManager as FaustTableManager
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage
from virtual_loop import run_virtually

from pipeline.adapters import faust_bridge, kafka
from pipeline.adapters.faust_bridge import App, BatchConsumer, GroupGate
from pipeline.block import LogRecord
from pipeline.ports import Batch, CommitAnswer, Member
from pipeline.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Nothing listens there."""
    return Settings(home=tmp_path, kafka="127.0.0.1:1", cache_bytes=8 << 20)


def parameters(function: Any) -> list[str]:
    """Names of its parameters, without self."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def sent_fields(request: OffsetCommitRequest) -> tuple[Any, ...]:
    """What goes over the wire, in its order."""
    fields: tuple[Any, ...] = request.build(lambda *values: values)  # type: ignore[arg-type]
    return fields


# ------------------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (driver, ["ConsumerRebalanceListener", "AIOKafkaConsumerThread", "Consumer", "Transport", "ensure_TPset"]),
        (driver.AIOKafkaConsumerThread, ["_create_worker_consumer", "_ensure_consumer", "__post_init__"]),
        (driver.ConsumerRebalanceListener, ["on_partitions_revoked", "on_partitions_assigned"]),
        (
            driver.Consumer,
            ["_new_consumer_thread", "getmany", "perform_seek", "verify_event_path", "RebalanceListener", "wait",
             "flow_active", "should_stop"],
        ),
        (Fetcher, ["fetched_records", "seek_to", "_update_fetch_positions"]),
        (FetchResult, ["getall", "check_assignment", "has_more", "_update_position"]),
        (PartitionRecords, ["_consumer_record"]),
        (fetcher_module, ["MemoryRecords"]),
        (MemoryRecords, ["has_next", "next_batch", "size_in_bytes"]),
        (codec, ["gzip_decode", "snappy_decode", "lz4_decode", "zstd_decode"]),
        (subscription_state.SubscriptionState, ["fetch_context", "subscription", "seek"]),
        (subscription_state.Assignment, ["state_value", "active"]),
        (subscription_state.TopicPartitionState, ["position", "has_valid_position"]),
        (
            GroupCoordinator,
            ["_send_req", "_maybe_leave_group", "reset_generation", "ensure_coordinator_known", "coordinator_dead",
             "fetch_committed_offsets", "request_rejoin"],
        ),
        (FaustTableManager, ["add", "_update_channels", "on_rebalance"]),
        (faust.Table, ["_new_store", "maybe_start"]),
        (faust.App, ["_new_transport", "crash", "on_rebalance_start"]),
        (aiokafka.AIOKafkaConsumer, ["seek", "end_offsets", "beginning_offsets"]),
        (Sender, ["sender_task", "close"]),
        (AIOKafkaClient, ["close"]),
    ],
)  # fmt: skip
def test_what_the_bridge_overrides_and_calls_exists(owner: Any, names: list[str]) -> None:
    """By name."""
    missing = [name for name in names if not hasattr(owner, name) and name not in getattr(owner, "__annotations__", ())]
    assert missing == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Fetcher.fetched_records, ["partitions", "timeout", "max_records"]),
        (FetchResult, ["tp", "assignment", "partition_records", "backoff"]),
        (PartitionRecords._consumer_record, ["tp", "record"]),
        (driver.Consumer.getmany, ["timeout"]),
        (driver.AIOKafkaConsumerThread._create_worker_consumer, ["transport"]),
        (driver.ConsumerRebalanceListener.on_partitions_revoked, ["revoked"]),
        (driver.ConsumerRebalanceListener.on_partitions_assigned, ["assigned"]),
        (driver.Consumer.verify_event_path, ["now", "tp"]),
        (GroupCoordinator._send_req, ["request"]),
        (GroupCoordinator._maybe_leave_group, []),
        (GroupCoordinator.fetch_committed_offsets, ["partitions"]),
        (aiokafka.AIOKafkaConsumer.seek, ["partition", "offset"]),
        (subscription_state.Assignment.state_value, ["tp"]),
        (FaustTableManager.add, ["table"]),
    ],
)
def test_what_the_bridge_calls_takes_what_it_gives(function: Any, expected: list[str]) -> None:
    """By signature."""
    assert parameters(function) == expected


def test_a_commit_request_takes_generation_and_member_from_the_caller() -> None:
    """The heart of the fence: the driver's own commit stamps those of the moment."""
    request = OffsetCommitRequest("group", 7, "member", -1, [("topic", [(0, 5, "metadata")])])
    assert sent_fields(request) == ("group", 7, "member", -1, [("topic", [(0, 5, "metadata")])])
    assert hasattr(OffsetCommitRequest, "DEFAULT_RETENTION_TIME")


def test_faust_still_drops_messages_before_its_read_position() -> None:
    """That is why the bridge forgets that position for every batch; were it renamed, replays would vanish."""
    source = inspect.getsource(faust_consumer.Consumer._drain_messages)
    assert "self._read_offset.__getitem__" in source
    assert "offset >= r_offset" in source


def test_faust_still_calls_the_signals_while_the_group_waits() -> None:
    """Sessions end before the worker joins again, and begin while nobody can move the partitions."""
    thread = driver.AIOKafkaConsumerThread
    assert "await self.consumer.threadsafe_partitions_revoked" in inspect.getsource(thread.on_partitions_revoked)
    assert "await self.consumer.threadsafe_partitions_assigned" in inspect.getsource(thread.on_partitions_assigned)
    assert "await promise" in inspect.getsource(faust_consumer.ThreadDelegateConsumer.threadsafe_partitions_assigned)


def test_the_driver_still_lets_a_seek_win_over_its_own_first_position() -> None:
    """A position that the driver looked up by itself must not replace the one a session asked for."""
    source = inspect.getsource(Fetcher._update_fetch_positions)
    lookup, _, after = source.partition("await tp_state.fetch_committed()")
    assert lookup
    assert "if tp_state.has_valid_position" in after


def test_faust_messages_take_a_batch_as_their_value() -> None:
    """Built by position."""
    assert parameters(ConsumerMessage.__init__)[:13] == [
        "topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum",
        "serialized_key_size", "serialized_value_size", "tp", "time_in",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ how it behaves


class _Fetcher:
    """A driver's fetcher that gives what a test puts into it."""

    def __init__(self, state: SimpleNamespace) -> None:
        self.asked: list[set[Any]] = []
        self.batches: list[list[Any]] = []
        self._records: dict[Any, Any] = {}
        self._state = state
        self._subscriptions = SimpleNamespace(
            fetch_context=subscription_state.SubscriptionState.fetch_context.__get__(
                SimpleNamespace(_fetch_count=0, _last_fetch_ended=0)
            ),
            subscription=SimpleNamespace(assignment=SimpleNamespace(active=True, state_value=lambda tp: state)),
        )

    async def fetched_records(self, partitions: set[Any], timeout: float, max_records: int) -> dict[Any, Any]:  # noqa: ASYNC109
        self.asked.append(set(partitions))
        await asyncio.sleep(timeout)
        if not self.batches:
            return {}
        found = self.batches.pop(0)
        self._state.position = found[-1].offset + 1
        return {TopicPartition("tally.events", 0): found}


def thread_over(fetcher: _Fetcher, state: SimpleNamespace) -> Any:
    """The bridge's consumer thread on a driver that a test drives."""
    thread = object.__new__(faust_bridge._ConsumerThread)
    thread.member, thread.opened, thread._openings, thread._fetch_rows_max = Member(3, "m"), {}, 0, 100

    def seek(tp: Any, offset: int) -> None:
        state.position = offset

    consumer = SimpleNamespace(_fetcher=fetcher, seek=seek, _coordinator=SimpleNamespace(generation=4, member_id="n"))
    thread._ensure_consumer = lambda: consumer
    return thread


def found(*offsets: int) -> list[LogRecord]:
    """Records as the driver gives them to the bridge."""
    return [LogRecord(n, 1, b"v", ()) for n in offsets]


def opened_thread() -> tuple[Any, _Fetcher]:
    """A thread and its fetcher."""
    state = SimpleNamespace(position=0)
    fetcher = _Fetcher(state)
    return thread_over(fetcher, state), fetcher


def test_batches_say_where_they_begin_and_end_and_for_whom_they_are() -> None:
    """Ranges without gaps, though offsets have some; records before the start are left out."""

    async def go() -> None:
        thread, fetcher = opened_thread()
        opening = await thread.open_at(TP("tally.events", 0), 5)
        fetcher.batches = [found(4, 5, 8), found(11)]
        records = [LogRecord(5, 1, b"v", ()), LogRecord(8, 1, b"v", ())]
        assert await thread.fetch(0.1) == [Batch(0, opening, 5, 9, records)]
        assert await thread.fetch(0.1) == [Batch(0, opening, 9, 12, [LogRecord(11, 1, b"v", ())])]
        assert await thread.fetch(0.1) == []

    run_virtually(go)


def test_the_driver_unpacks_what_it_fetched_into_the_pipelines_records() -> None:
    """From the bytes of a batch, whether it was fetched before the bridge looked or since."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for offset in range(3):
        builder.append(offset, 1_700_000_000_000 + offset, b"k", b"v%d" % offset, [("account", b"acme")])
    bytes_ = bytes(builder.build())
    expected = [LogRecord(n, 1_700_000_000_000 + n, b"v%d" % n, (("account", b"acme"),)) for n in range(3)]

    def fetched(partition: int) -> tuple[TopicPartition, FetchResult]:
        tp = TopicPartition("tally.events", partition)
        state = SimpleNamespace(paused=False, position=0, consumed_to=lambda offset: None)
        assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
        unpacked = PartitionRecords(tp, MemoryRecords(bytes_), [], 0, None, None, True, 0)
        return tp, FetchResult(tp, assignment=assignment, partition_records=unpacked, backoff=0)

    before, result = fetched(0)
    thread, fetcher = opened_thread()
    fetcher._records[before] = result

    async def go() -> None:
        await thread.open_at(TP("tally.events", 1), 0)
        await thread.fetch(0.0)

    run_virtually(go)
    since, result = fetched(1)
    fetcher._records[since] = result
    assert [fetcher._records[tp].getall() for tp in (before, since)] == [expected, expected]


def test_only_opened_partitions_are_read_and_no_set_of_them_is_ever_empty() -> None:
    """To the driver an empty set means all; a worker that pauses everything waits instead of spinning."""

    async def go() -> None:
        thread, fetcher = opened_thread()
        began = asyncio.get_running_loop().time()
        assert await thread.fetch(0.1) == []
        await thread.open_at(TP("tally.events", 0), 5)
        thread.opened[TP("tally.events", 0)].paused = True
        assert await thread.fetch(0.1) == []
        assert asyncio.get_running_loop().time() - began >= 0.2
        assert fetcher.asked == []
        thread.opened[TP("tally.events", 0)].paused = False
        await thread.fetch(0.1)
        assert fetcher.asked == [{TP("tally.events", 0)}]

    run_virtually(go)


def test_a_fetch_that_outlives_its_opening_gives_nothing() -> None:
    """The partition was taken away, or the assignment ended, while the fetch waited."""

    async def go() -> None:
        thread, fetcher = opened_thread()
        await thread.open_at(TP("tally.events", 0), 5)
        fetcher.batches = [found(5), found(6)]
        fetching = asyncio.create_task(thread.fetch(0.1))
        await asyncio.sleep(0.05)
        thread.opened.clear()
        assert await fetching == []
        await thread.open_at(TP("tally.events", 0), 6)
        fetcher._subscriptions.subscription.assignment.active = False
        assert await thread.fetch(0.1) == []

    run_virtually(go)


def test_what_was_fetched_for_an_earlier_position_is_thrown_away_when_a_session_opens() -> None:
    """Records and errors alike."""

    async def go() -> None:
        thread, fetcher = opened_thread()
        fetcher._records[TopicPartition("tally.events", 0)] = "stale"
        assert await thread.open_at(TP("tally.events", 0), 5) == 1
        assert await thread.open_at(TP("tally.events", 0), 5) == 2
        assert fetcher._records == {}

    run_virtually(go)


def test_no_batch_is_dropped_while_the_flow_is_stopped() -> None:
    """New sessions open their partitions before Faust lets the flow go on: the batch waits for it."""

    async def go() -> None:
        consumer: Any = object.__new__(BatchConsumer)
        batch = Batch(0, 1, 0, 1, [])
        flow = asyncio.Event()

        async def run(work: Any) -> list[Batch]:
            work.close()
            consumer.flow_active = False
            return [batch]

        async def fetch(wait_s: float) -> list[Batch]:
            return []

        async def wait(event: asyncio.Event) -> None:
            await event.wait()

        consumer.flow_active, consumer.can_resume_flow, consumer.wait = True, flow, wait
        consumer._thread = SimpleNamespace(run=run, fetch=fetch, opened={1: 1})
        consumer._message = lambda batch: (TP("t", 0), batch)
        consumer._stopped = SimpleNamespace(is_set=lambda: False)
        consumer._crashed = SimpleNamespace(is_set=lambda: False)
        consumer.beacon = SimpleNamespace(root=None)
        reading = asyncio.create_task(anext(consumer.getmany(1.0)))
        await asyncio.sleep(5)
        assert not reading.done()
        flow.set()
        assert await reading == (TP("t", 0), batch)

    run_virtually(go)


def test_the_listener_notes_who_the_worker_is_before_anybody_is_told() -> None:
    """And forgets it, and all openings, at the first sign of a rebalance."""

    async def go() -> None:
        thread, _ = opened_thread()
        seen: list[Any] = []
        thread.app = SimpleNamespace(on_rebalance_start=lambda: seen.append(thread.member))

        async def note(*_: Any) -> None:
            seen.append(thread.member)

        thread.on_partitions_assigned = thread.on_partitions_revoked = note
        listener = faust_bridge._Listener(thread)
        await thread.open_at(TP("tally.events", 0), 5)
        await listener.on_partitions_revoked([])
        assert (seen, thread.opened) == ([None, None], {})
        await listener.on_partitions_assigned([])
        assert seen[-1] == Member(4, "n")

    run_virtually(go)


@pytest.mark.parametrize(("generation", "member_id"), [(-1, "m"), (5, "")])
def test_a_commit_without_membership_is_never_sent(generation: int, member_id: str) -> None:
    """Kafka takes one of generation -1 from anybody while the group is empty."""

    async def go() -> None:
        nobody: Any = SimpleNamespace()  # has nothing that could be called
        answers = await kafka.commit_as(
            nobody, "t", {0: (1, "")}, generation=generation, member_id=member_id, timeout_s=1
        )
        assert answers == {0: CommitAnswer.REFUSED}

    run_virtually(go)


async def _answered(*codes: Mapping[int, int] | type[BaseException]) -> tuple[list[str], list[Any]]:
    """What `commit_as` makes of these answers of the coordinator for partitions 0 and 1, and what it sent."""
    sent: list[Any] = []
    left = iter(codes)

    async def send(request: Any) -> Any:
        sent.append(request)
        code = next(left)
        if isinstance(code, type):
            raise code
        return SimpleNamespace(topics=[("t", list(code.items()))])

    async def known() -> None:
        await asyncio.sleep(0)

    coordinator = SimpleNamespace(
        group_id="g", _send_req=send, ensure_coordinator_known=known, coordinator_dead=lambda: None, generation=99
    )
    consumer: Any = SimpleNamespace(_coordinator=coordinator)
    offsets = {0: (5, "metadata"), 1: (6, "other")}
    answers = await kafka.commit_as(consumer, "t", offsets, generation=7, member_id="m", timeout_s=5)
    return [answers[partition].name for partition in offsets], sent


@pytest.mark.parametrize(
    ("codes", "answer", "times"),
    [
        ((0,), "DONE", 1),
        ((22,), "REFUSED", 1),  # illegal generation
        ((25,), "REFUSED", 1),  # unknown member
        ((27,), "REFUSED", 1),  # rebalance in progress
        ((14, 16, 0), "DONE", 3),  # coordinator loading, not the coordinator: a definite no
        ((7,), "UNKNOWN", 1),  # the coordinator timed out writing it
        ((-1,), "UNKNOWN", 1),
        ((aiokafka.errors.KafkaConnectionError,), "UNKNOWN", 1),
        ((aiokafka.errors.RequestTimedOutError,), "UNKNOWN", 1),
        ((14,) * 99, "UNKNOWN", 50),
    ],
)
def test_a_commit_is_sent_again_only_after_a_definite_no(codes: Any, answer: str, times: int) -> None:
    """Under the membership that was captured, whatever the coordinator's object says by now."""

    async def go() -> None:
        names, sent = await _answered(*({0: code, 1: code} if isinstance(code, int) else code for code in codes))
        assert names == [answer, answer]
        assert len(sent) == times or (answer == "UNKNOWN" and times == 50)
        assert {sent_fields(request)[1:3] for request in sent} == {(7, "m")}

    run_virtually(go)


def test_of_commits_that_share_a_request_only_those_that_were_not_applied_are_sent_again() -> None:
    """Each has its own answer; one that the coordinator says nothing of may have been applied."""

    async def go() -> None:
        names, sent = await _answered({0: 0, 1: 14}, {1: 0})
        assert names == ["DONE", "DONE"]
        assert [sent_fields(request)[4] for request in sent] == [
            [("t", [(0, 5, "metadata"), (1, 6, "other")])],
            [("t", [(1, 6, "other")])],
        ]
        names, sent = await _answered({0: 16, 1: 22}, {0: 0})
        assert (names, len(sent)) == (["DONE", "REFUSED"], 2)
        names, sent = await _answered({1: 0})
        assert (names, len(sent)) == (["UNKNOWN", "DONE"], 1)
        names, sent = await _answered({0: 14, 1: 0}, aiokafka.errors.RequestTimedOutError)
        assert (names, len(sent)) == (["UNKNOWN", "DONE"], 2)

    run_virtually(go)


def test_the_app_is_made_of_the_bridges_parts_and_keeps_fausts_hands_off(settings: Settings) -> None:
    """Transport, table manager and table; no declaration of topics, no recovery, a crash for a failed agent."""

    async def go() -> None:
        app = App(settings)
        table = app.Table("dedup", key_type=bytes, value_type=bytes, partitions=settings.partitions)
        assert isinstance(app.transport, faust_bridge.Transport)
        assert isinstance(app.consumer, BatchConsumer)
        assert isinstance(app.consumer._thread, faust_bridge._ConsumerThread)
        assert isinstance(app.tables, faust_bridge.TableManager)
        assert isinstance(table.data, faust_bridge.SightingStore)
        assert app.tables.changelog_topics == set()
        assert not app.conf.topic_allow_declare
        assert app.conf.topic_disable_leader
        assert GroupGate(app).member() is None
        app.consumer._thread.thread_loop.close()  # made by the thread's object, which was never started

    asyncio.run(go())


def test_the_consumer_is_given_what_the_protocol_asks_for(settings: Settings) -> None:
    """No own commits, no reset of lost offsets, committed records only."""

    async def go() -> None:
        consumer = kafka.group_consumer(settings)
        assert consumer._enable_auto_commit is False
        assert consumer._auto_offset_reset == "none"
        assert consumer._isolation_level == "read_committed"
        assert consumer._group_id == settings.group
        await consumer.stop()

    asyncio.run(go())


def test_a_partitions_table_is_opened_once_and_closed_once(settings: Settings) -> None:
    """By number; closing one that is not open does nothing."""

    async def go() -> None:
        app = App(settings)
        store = app.Table("dedup", key_type=bytes, value_type=bytes).data
        table = store.open(3)
        assert store.open(3) is table
        assert list(store.opened()) == [3]
        store.close(3)
        store.close(3)
        assert store.open(3) is not table
        store.close(3)
        for broken in (store.reset_state, lambda: store.apply_changelog_batch(None, None, None)):
            with pytest.raises(NotImplementedError):
                broken()

    asyncio.run(go())
