"""Benches of the ports: each contract runs on the adapter with the running stack, and on the fake of the simulation."""

import uuid
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.settings import Settings

PARTITIONS = 2


@pytest.fixture
def kafka_settings(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    """A topic and a group of the test's own."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    client = AdminClient({"bootstrap.servers": kafka_bootstrap})
    client.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(20)
    return Settings(home=tmp_path, kafka=kafka_bootstrap, topic_events=name, group=name, partitions=PARTITIONS)
