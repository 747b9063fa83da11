"""The real broker: its data survive a kill, and its settings are what the worker relies on."""

import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported at run time
    AdminClient,
    ConfigResource,
    NewTopic,
)
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local.broker import JVM_OPTIONS, answers, broker_part, cluster_id
from pipeline.local.part import PartError
from pipeline.local.stack import Services
from pipeline.local.stackfile import port_of


def _produce(address: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": address, "acks": "all", "enable.idempotence": True})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def _consume(address: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    while len(values) < count:
        message = consumer.poll(10)
        assert message is not None
        assert message.error() is None
        values.append(message.value() or b"")
    consumer.close()
    return values


def test_java_is_told_what_kafkas_own_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of what lets it start quickly; what cannot be read is refused by the variable's name."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").touch()  # nothing to format
    quick = broker_part(tmp_path, 1, 2, print).argv
    monkeypatch.setenv(JVM_OPTIONS, "-XX:+UseG1GC '-Dname=two words'")
    told = broker_part(tmp_path, 1, 2, print).argv
    assert told[1:3] == ["-XX:+UseG1GC", "-Dname=two words"]
    assert "-XX:TieredStopAtLevel=1" in quick
    assert "-XX:TieredStopAtLevel=1" not in told
    monkeypatch.setenv(JVM_OPTIONS, "'")
    with pytest.raises(PartError, match=JVM_OPTIONS):
        broker_part(tmp_path, 1, 2, print)


@given(st.binary(min_size=16, max_size=16))
def test_a_cluster_id_is_never_taken_for_an_option(random: bytes) -> None:
    """One random id in 64 would begin with a dash, and the first start would fail."""
    assert cluster_id(random)[0].isalpha()
    assert len(cluster_id(random)) == 22


def test_records_survive_kill_9_and_the_address_stays(services: Services) -> None:
    """Acknowledged before the kill, read after it, from the same address."""
    topic = f"t{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": services.kafka})
    admin.create_topics([NewTopic(topic, 1)])[topic].result()
    _produce(services.kafka, topic, [b"one", b"two"])
    services.kill("kafka")
    services.restart("kafka")
    _produce(services.kafka, topic, [b"three"])
    assert _consume(services.kafka, topic, 3) == [b"one", b"two", b"three"]


def test_settings_of_the_broker(services: Services) -> None:
    """No topic appears by itself, no leader that lacks records."""
    admin = AdminClient({"bootstrap.servers": services.kafka})
    resource = ConfigResource(ConfigResource.Type.BROKER, "1")
    settings = admin.describe_configs([resource])[resource].result()
    assert settings["auto.create.topics.enable"].value == "false"
    assert settings["unclean.leader.election.enable"].value == "false"
    assert settings["group.initial.rebalance.delay.ms"].value == "0"
    producer = Producer({"bootstrap.servers": services.kafka, "message.timeout.ms": 500})
    failures: list[object] = []
    try:
        producer.produce("no.such.topic", b"x", on_delivery=lambda error, _: failures.append(error))
    except KafkaException as error:
        failures.append(error)
    producer.flush(10)
    assert failures


@pytest.mark.parametrize("which", ["clickhouse", "closed"])
def test_readiness_is_kafkas_own_answer(services: Services, which: str) -> None:
    """An open port alone is not a broker."""
    assert answers(port_of(services.kafka) or 0)
    assert not answers((port_of(services.clickhouse) or 0) if which == "clickhouse" else 1)
