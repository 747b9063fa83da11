"""Topics are made as production wants them, and every start checks that they still are."""

import asyncio
import socket
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from pipeline.adapters.kafka import LogRanges, RecordWriter
from pipeline.adapters.kafka_admin import (
    BrokerUnavailable,
    TopicMismatch,
    Trimmer,
    check_topics,
    committed,
    ensure_topics,
    log_bounds,
    members,
    topic_id,
    topic_life,
)
from pipeline.ports import LogUnavailable
from pipeline.settings import Settings


@pytest.fixture
def settings(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    """Names of the test's own."""
    name = uuid.uuid4().hex[:8]
    return Settings(
        home=tmp_path,
        kafka=kafka_bootstrap,
        topic_events=f"{name}.events",
        topic_rejects=f"{name}.rejects",
        topic_catalog=f"{name}.catalog",
        group=name,
        partitions=3,
    )


def _alter(settings: Settings, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    client = AdminClient({"bootstrap.servers": settings.kafka})
    for done in client.incremental_alter_configs([resource]).values():
        done.result(20)
    end = time.monotonic() + 20
    while client.describe_configs([resource])[resource].result(20)[name].value != value:
        assert time.monotonic() < end, "the broker never took the setting"


def test_topics_are_made_once_and_pass_the_check(settings: Settings) -> None:
    """Making them again changes nothing; an id tells this topic from a later one of the same name."""
    ensure_topics(settings)
    first = topic_id(settings, settings.topic_events)
    ensure_topics(settings)
    check_topics(settings)
    assert topic_id(settings, settings.topic_events) == first


def test_missing_topics_say_what_to_do(settings: Settings) -> None:
    """Before `tally migrate` or `tally init`."""
    with pytest.raises(TopicMismatch, match="run `tally migrate`"):
        check_topics(settings)


def test_another_number_of_partitions_is_refused(settings: Settings) -> None:
    """Ids would move between partitions and count twice."""
    ensure_topics(settings)
    with pytest.raises(TopicMismatch, match="has 3 partitions, TALLY_PARTITIONS says 4"):
        check_topics(settings.model_copy(update={"partitions": 4}))


def test_partitions_that_were_added_need_as_many_of_rejects_and_changelog(settings: Settings) -> None:
    """The message says how, topic by topic; the number that ids are spread over stays."""
    ensure_topics(settings)
    before = topic_life(settings, settings.topic_events)
    for topic in (settings.topic_events, settings.topic_rejects, settings.topic_changelog):
        _grow(settings, topic, 5)
        if topic != settings.topic_changelog:
            with pytest.raises(TopicMismatch, match=r"leave TALLY_PARTITIONS at 3.*changelog --partitions 5"):
                check_topics(settings)
    check_topics(settings)
    assert topic_life(settings, settings.topic_events) == (before.identity, 5)


def _grow(settings: Settings, topic: str, partitions: int) -> None:
    client = AdminClient({"bootstrap.servers": settings.kafka})
    client.create_partitions([NewPartitions(topic, partitions)])[topic].result(20)
    end = time.monotonic() + 20
    while len(client.list_topics(topic, timeout=20).topics[topic].partitions) != partitions:
        assert time.monotonic() < end, "the broker never made the partitions"
        time.sleep(0.1)


def test_a_group_that_nobody_is_in_has_no_members(settings: Settings) -> None:
    """Nor does one that never was, nor one without a topic."""
    assert members(settings) == []
    ensure_topics(settings)
    assert members(settings) == []
    assert committed(settings) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unclean.leader.election.enable", "true"),
        ("message.timestamp.type", "CreateTime"),
        ("retention.ms", "1000"),
        ("cleanup.policy", "compact"),
    ],
)
def test_a_changed_setting_is_named_with_the_way_back(settings: Settings, name: str, value: str) -> None:
    """Each of these would sooner or later lose or misjudge events."""
    ensure_topics(settings)
    _alter(settings, settings.topic_events, name, value)
    with pytest.raises(TopicMismatch, match=f"{name}={value}.*--add-config"):
        check_topics(settings)


def test_a_longer_retention_is_welcome(settings: Settings) -> None:
    """More than asked for is no fault."""
    ensure_topics(settings)
    _alter(settings, settings.topic_events, "retention.ms", "-1")
    check_topics(settings)


def test_fewer_replicas_than_asked_for_are_refused(settings: Settings) -> None:
    """A topic made by hand, say."""
    ensure_topics(settings)
    with pytest.raises(TopicMismatch, match="has 1 replicas, TALLY_REPLICATION asks for 3"):
        check_topics(settings.model_copy(update={"replication": 3}))


def test_no_broker_is_told_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address that was tried."""
    monkeypatch.setattr("pipeline.adapters.kafka_admin._TIMEOUT_S", 1.0)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        check_topics(Settings(home=tmp_path, kafka="127.0.0.1:1"))


async def test_the_old_end_of_a_partition_goes_and_the_rest_stays(settings: Settings) -> None:
    """Only of that partition, and asking for it again does no harm."""
    ensure_topics(settings)
    writer, ranges = RecordWriter(settings), LogRanges(settings)
    await writer.start()
    topic = settings.topic_changelog
    for number in range(6):
        await writer.write(topic, b"%d" % number, partition=1)
        await writer.write(topic, b"other", partition=0)
    for _ in range(2):
        await asyncio.to_thread(Trimmer(settings).trim, topic, 1, 4)
    assert await ranges.bounds(topic, 1) == (4, 6)
    assert await ranges.bounds(topic, 0) == (0, 6)
    found = [record.value async for records in ranges.read_range(topic, 1, 4, 6) for record in records]
    assert found == [b"4", b"5"]
    with pytest.raises(LogUnavailable):
        async for _ in ranges.read_range(topic, 1, 3, 6):
            pass
    await writer.stop()
    await ranges.stop()


async def test_a_broker_that_is_away_lets_nothing_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tidying goes on later."""
    monkeypatch.setattr("pipeline.adapters.kafka_admin._TIMEOUT_S", 1.0)
    with pytest.raises(LogUnavailable, match="lets no records"):
        await asyncio.to_thread(Trimmer(Settings(home=tmp_path, kafka="127.0.0.1:1")).trim, "t", 0, 1)


def test_a_broker_that_takes_connections_and_never_answers_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks waits for it, instead of ending by a time-out that nobody expects."""
    monkeypatch.setattr("pipeline.adapters.kafka_admin._TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = settings.model_copy(update={"kafka": f"127.0.0.1:{silent.getsockname()[1]}"})
        for ask in (
            lambda: ensure_topics(away),
            lambda: check_topics(away),
            lambda: topic_life(away, away.topic_events),
            lambda: log_bounds(away, away.topic_events, [0]),
        ):
            with pytest.raises(BrokerUnavailable):
                ask()
