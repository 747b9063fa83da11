"""What every Group promises to the block protocol: commits on the real broker, and on the one in memory."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.adapters.faust_bridge import GroupGate
from pipeline.adapters.group_fake import Coordinator, MemoryGroup
from pipeline.adapters.kafka import group_consumer
from pipeline.adapters.log_fake import MemoryLog
from pipeline.block import Intent, encode_metadata
from pipeline.local.broker import broker_part
from pipeline.local.part import Child
from pipeline.local.port import choose
from pipeline.ports import CommitAnswer, Group, LogUnavailable, Member
from pipeline.settings import Settings

STATED = encode_metadata(2**31, Intent(2**31, 2**40, 2**40 + 60_000, 60_000, 2**64 - 1, 2**40, 7, 2**42))


@dataclass
class Joined:
    """A worker in the group. `member()`: who it is now, once the group has settled."""

    group: Group
    member: Callable[[], Awaitable[Member]]
    leave: Callable[[], Awaitable[None]]


@dataclass
class Bench:
    """A group over a topic of two partitions, without any offset."""

    join: Callable[[], Awaitable[Joined]]
    joined: list[Joined] = field(default_factory=list)

    async def worker(self) -> Joined:
        """One worker more."""
        self.joined.append(await self.join())
        return self.joined[-1]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes the membership as the bridge does, at each assignment."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.member: Member | None = None

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self.member = None

    async def on_partitions_assigned(self, assigned: Any) -> None:
        coordinator = self._consumer._coordinator
        self.member = Member(coordinator.generation, coordinator.member_id)


async def on_broker(settings: Settings, *, timeout_s: float = 15.0) -> Joined:
    """A worker's consumer and its gate, without the rest of the worker."""
    consumer = group_consumer(settings)
    listener = _Listener(consumer)
    consumer.subscribe([settings.topic_events], listener=listener)
    await consumer.start()

    async def run(work: Any) -> Any:
        return await work

    thread = SimpleNamespace(run=run, _ensure_consumer=lambda: consumer)
    app: Any = SimpleNamespace(settings=settings, consumer=SimpleNamespace(_thread=thread))

    async def member() -> Member:
        async with asyncio.timeout(90):
            while listener.member is None or listener.member.generation != consumer._coordinator.generation:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return listener.member

    return Joined(GroupGate(app, timeout_s=timeout_s), member, consumer.stop)


@pytest.fixture
async def kafka(kafka_settings: Settings) -> AsyncIterator[Bench]:
    """The real broker."""
    bench = Bench(lambda: on_broker(kafka_settings))
    yield bench
    for worker in bench.joined:
        await worker.leave()


@pytest.fixture
def memory() -> Bench:
    """The fake."""
    coordinator = Coordinator(2)
    log = MemoryLog(lambda: 0)

    async def join() -> Joined:
        group = MemoryGroup(coordinator, log, "events")
        group.join()

        async def member() -> Member:
            return group.join()

        return Joined(group, member, group.rejoin)

    return Bench(join)


@pytest.fixture(params=["memory", "kafka"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each of the two in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found


async def test_a_commit_is_read_back_with_its_metadata(bench: Bench) -> None:
    """By whoever asks; the other partition still has none, and the latest commit counts, also a smaller one."""
    worker = await bench.worker()
    member = await worker.member()
    assert await worker.group.committed(0) is None
    assert await worker.group.commit(0, 2**40, STATED, member) is CommitAnswer.DONE
    assert await worker.group.committed(0) == (2**40, STATED)
    assert await worker.group.committed(1) is None
    assert await worker.group.commit(0, 3, "", member) is CommitAnswer.DONE
    assert await worker.group.committed(0) == (3, "")


async def test_commits_of_several_partitions_at_once_are_each_done(bench: Bench) -> None:
    """They share requests; those of a former membership are refused, whatever comes with them."""
    worker = await bench.worker()
    before = await worker.member()
    one, two = await asyncio.gather(*(worker.group.commit(number, 5 + number, STATED, before) for number in range(2)))
    assert one is two is CommitAnswer.DONE
    assert [await worker.group.committed(number) for number in range(2)] == [(5, STATED), (6, STATED)]
    await worker.group.rejoin()
    after = await worker.member()
    answers = await asyncio.gather(
        worker.group.commit(0, 7, "old", before),
        worker.group.commit(1, 8, "new", after),
        worker.group.commit(0, 9, "new", after),
        worker.group.commit(0, 10, "later", after),
    )
    assert answers == [CommitAnswer.REFUSED, CommitAnswer.DONE, CommitAnswer.DONE, CommitAnswer.DONE]
    assert [await worker.group.committed(number) for number in range(2)] == [(10, "later"), (8, "new")]


async def test_a_commit_under_an_old_generation_is_refused_and_changes_nothing(bench: Bench) -> None:
    """Also when the member is still, or again, in the group: it is who it was when it fetched that counts."""
    first = await bench.worker()
    before = await first.member()
    assert await first.group.commit(0, 1, "a", before) is CommitAnswer.DONE
    second = await bench.worker()
    newcomer = await second.member()
    assert await first.group.commit(0, 2, "b", before) is CommitAnswer.REFUSED
    assert await second.group.committed(0) == (1, "a")
    now = await first.member()
    assert now.generation > before.generation
    assert await first.group.commit(0, 2, "b", now) is CommitAnswer.DONE
    assert await second.group.committed(0) == (2, "b")
    assert (await second.member()).member_id == newcomer.member_id != now.member_id


async def test_the_owner_of_a_partition_is_not_what_the_broker_looks_at(bench: Bench) -> None:
    """Any member of the current generation may commit anything: that is why a session never outlives its own."""
    first, second = await bench.worker(), await bench.worker()
    members = [await second.member(), await first.member()]
    for number in range(2):
        for worker, member in zip((second, first), members, strict=True):
            assert await worker.group.commit(number, 7, "", member) is CommitAnswer.DONE


async def test_after_leaving_and_joining_anew_what_was_begun_before_is_refused(bench: Bench) -> None:
    """Another member id: a commit that was on its way cannot be taken for the new member's."""
    worker = await bench.worker()
    before = await worker.member()
    await worker.group.rejoin()
    assert await worker.group.commit(0, 1, "old", before) is CommitAnswer.REFUSED
    await asyncio.sleep(0)
    after = await worker.member()
    assert after.member_id != before.member_id
    assert await worker.group.commit(0, 1, "old", before) is CommitAnswer.REFUSED
    assert await worker.group.commit(0, 2, "new", after) is CommitAnswer.DONE
    assert await worker.group.committed(0) == (2, "new")


# ------------------------------------------------------------------------------------------------ no answer


def _stop(pid: int) -> None:
    """Returns once every thread stands still: the signal is sent before that, and until then they may still answer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while any(
        state.read_text().rpartition(")")[2].split()[0] != "T" for state in Path(f"/proc/{pid}/task").glob("*/stat")
    ):
        assert time.monotonic() < deadline, "it does not stand still"
        time.sleep(0.001)


@dataclass
class Frozen:
    """A broker of the test's own that can be stopped in its tracks, and a worker in a group on it."""

    worker: Joined
    freeze: Callable[[], None]
    thaw: Callable[[], None]


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[Frozen]:
    """A second broker, on SIGSTOP and SIGCONT."""
    port = choose("kafka", wanted=None, remembered=None, taken=set())
    controller = choose("controller", wanted=None, remembered=None, taken={port})
    child = Child(broker_part(tmp_path / "kafka", port, controller, lambda line: None), tmp_path / "kafka.log")
    try:
        child.await_ready()
        settings = Settings(home=tmp_path, kafka=f"127.0.0.1:{port}", topic_events="events", group="g", partitions=1)
        client = AdminClient({"bootstrap.servers": settings.kafka})
        client.create_topics([NewTopic("events", 1, 1)])["events"].result(60)
        worker = await on_broker(settings, timeout_s=1.0)
        await worker.member()
        yield Frozen(worker, lambda: _stop(child.pid), lambda: os.kill(child.pid, signal.SIGCONT))
        await worker.leave()
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.stop()


async def test_a_commit_that_the_broker_does_not_answer_is_unknown_and_may_still_be_applied(frozen: Frozen) -> None:
    """The request lies in the stopped broker's socket: neither done nor refused. What settles it is the next
    membership, under which whatever is still on its way is refused."""
    worker = frozen.worker
    before = await worker.member()
    assert await worker.group.commit(0, 1, "first", before) is CommitAnswer.DONE
    frozen.freeze()
    try:
        assert await worker.group.commit(0, 2, "no answer", before) is CommitAnswer.UNKNOWN
        with pytest.raises(LogUnavailable):
            await worker.group.committed(0)
    finally:
        frozen.thaw()
    async with asyncio.timeout(60):
        while (found := await _committed(worker.group)) != (2, "no answer"):
            assert found in {None, (1, "first")}
            await asyncio.sleep(0.1)
    await worker.group.rejoin()
    after = await worker.member()
    assert await worker.group.commit(0, 3, "late", before) is CommitAnswer.REFUSED
    assert await worker.group.commit(0, 4, "new", after) is CommitAnswer.DONE
    assert await worker.group.committed(0) == (4, "new")


async def _committed(group: Group) -> tuple[int, str] | None:
    try:
        return await group.committed(0)
    except LogUnavailable:
        return None


@pytest.mark.parametrize("applied", [False, True])
async def test_the_simulated_broker_leaves_a_commit_unanswered_too(applied: bool) -> None:
    """Away, it has not applied it; the simulation's own group also applies some without an answer."""
    coordinator = Coordinator(1)
    group = MemoryGroup(coordinator, MemoryLog(lambda: 0), "events")
    before = group.join()
    group.away = True
    assert await group.commit(0, 2, "no answer", before) is CommitAnswer.UNKNOWN
    with pytest.raises(LogUnavailable):
        await group.committed(0)
    group.away = False
    if applied:
        coordinator.commit(0, 2, "no answer", before)
    assert await group.committed(0) == ((2, "no answer") if applied else None)
    await group.rejoin()
    after = group.join()
    assert await group.commit(0, 3, "late", before) is CommitAnswer.REFUSED
    assert await group.commit(0, 4, "new", after) is CommitAnswer.DONE
