"""The catalog's log: the fake and Kafka keep the same promises; what the client does when the log goes away."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from catalog_log_contract import CatalogLogContract

from pipeline.adapters.catalog_log import CatalogClient, KafkaCatalogLog
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog import Feature, encode_feature
from pipeline.ports import CatalogLog, CatalogUnavailable
from pipeline.settings import Settings


class TestMemoryCatalogLog(CatalogLogContract):
    """The fake."""

    @pytest.fixture
    async def log(self) -> CatalogLog:
        """An empty log."""
        return MemoryCatalogLog()

    @pytest.fixture
    async def second(self, log: CatalogLog) -> CatalogLog:
        """The same log: its clients are independent."""
        return log


class TestKafkaCatalogLog(CatalogLogContract):
    """The real one, on a broker."""

    @pytest.fixture
    async def settings(self, kafka_bootstrap: str, tmp_path: Path) -> Settings:
        """Settings of a fresh compacted topic."""
        topic = f"catalog-{uuid.uuid4()}"
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
        finally:
            await admin.close()
        return Settings(kafka=kafka_bootstrap, topic_catalog=topic, home=tmp_path)

    @pytest.fixture
    async def log(self, settings: Settings) -> AsyncIterator[CatalogLog]:
        """A started client of the topic."""
        log = KafkaCatalogLog(settings)
        await log.start()
        yield log
        await log.stop()

    @pytest.fixture
    async def second(self, settings: Settings) -> AsyncIterator[CatalogLog]:
        """Another one, as another process has."""
        log = KafkaCatalogLog(settings)
        await log.start()
        yield log
        await log.stop()


async def test_without_a_broker_start_says_what_to_look_at(tmp_path: Path, unused_tcp_port: int) -> None:
    """No broker: an outage that names the setting, not a hang."""
    log = KafkaCatalogLog(Settings(kafka=f"127.0.0.1:{unused_tcp_port}", home=tmp_path))

    with pytest.raises(CatalogUnavailable, match="TALLY_KAFKA"):
        await log.start()


async def test_the_client_goes_on_after_the_log_was_away() -> None:
    """While the log is away the catalog stays readable and writes fail; afterwards it follows again by itself."""
    log = MemoryCatalogLog()
    client = CatalogClient(log)
    await client.start()
    await client.append(*_feature("before"))

    await log.break_off()
    with pytest.raises(CatalogUnavailable):
        await client.append(*_feature("during"))
    assert client.catalog.feature("acme", "before") is not None
    log.away = False

    await client.append(*_feature("after"))
    assert client.catalog.feature("acme", "after") is not None
    await client.stop()


async def test_waiting_for_a_version_is_bounded() -> None:
    """A version that never comes is an outage past the time-out, and names both versions."""
    client = CatalogClient(MemoryCatalogLog())
    await client.start()

    with pytest.raises(CatalogUnavailable, match="has read version -1 and not yet 7"):
        await client.wait_for(7, timeout_s=0.01)
    await client.stop()


async def test_a_waiter_returns_when_its_version_is_read() -> None:
    """The worker waits for the version that a door has seen."""
    log = MemoryCatalogLog()
    client = CatalogClient(log)
    await client.start()

    waiting = asyncio.create_task(client.wait_for(1))
    await log.append(*_feature("a"))
    await log.append(*_feature("b"))

    await waiting
    assert client.catalog.version == 1
    await client.stop()


async def test_a_record_from_elsewhere_is_reported_and_does_no_harm() -> None:
    """A stray write to the topic is skipped; definitions around it count."""
    log = MemoryCatalogLog()
    client = CatalogClient(log)
    await client.start()
    await log.append(b"not json", b"hello")

    await client.append(*_feature("a"))

    assert client.catalog.skipped_count == 1
    assert client.catalog.skipped[0].offset == 0
    assert client.catalog.feature("acme", "a") is not None
    await client.stop()


async def test_a_client_that_was_stopped_says_so() -> None:
    """No wait without an end after stop()."""
    client = CatalogClient(MemoryCatalogLog())
    await client.start()
    await client.stop()

    with pytest.raises(CatalogUnavailable, match="not started"):
        await client.wait_for(0)


async def test_compaction_keeps_every_revision_and_the_latest_of_the_rest() -> None:
    """A client that starts after compaction has the same catalog as one that saw every record."""
    log = MemoryCatalogLog()
    before = CatalogClient(log)
    await before.start()
    for n in range(3):
        await before.append(*encode_feature(Feature(account="acme", id="f", name=f"name {n}"), f"u{n}"))
        await before.append(b'["key","abc"]', _KEY % n)
    log.compact()

    after = CatalogClient(log)
    await after.start()

    assert [f.rev for f in after.catalog.feature_revisions("acme", "f")] == [0, 2, 4]
    assert after.catalog.feature_revisions("acme", "f") == before.catalog.feature_revisions("acme", "f")
    assert after.catalog.key("abc") == before.catalog.key("abc")
    await after.stop()
    await before.stop()


_KEY = b'{"hash":"abc","account":"acme","name":"key %d","scopes":["read"],"hint":"","created_us":1}'


def _feature(feature_id: str) -> tuple[bytes, bytes]:
    return encode_feature(Feature(account="acme", id=feature_id, name=feature_id), f"unique of {feature_id}")


async def test_a_change_waits_for_others_no_longer_than_its_time_out() -> None:
    """While the log is away each change before it takes its own time-out: whoever waits behind many is told."""
    client = CatalogClient(MemoryCatalogLog(), timeout_s=0.05)
    await client.start()
    try:
        async with client.changing():
            with pytest.raises(CatalogUnavailable, match="other changes"):
                async with client.changing():
                    pytest.fail("two at once")
        async with client.changing() as catalog:  # the one that gave up holds nothing
            assert catalog is client.catalog
    finally:
        await client.stop()
