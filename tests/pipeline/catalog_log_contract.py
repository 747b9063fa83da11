"""What every CatalogLog promises; the fake and the one on Kafka run the same tests."""

import asyncio
from contextlib import aclosing

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.catalog import Feature, encode_feature
from pipeline.ports import CatalogLog, CatalogRecord


async def take(log: CatalogLog, from_offset: int, count: int) -> list[CatalogRecord]:
    """The first `count` records from an offset on."""
    found: list[CatalogRecord] = []
    async with asyncio.timeout(30), aclosing(log.read(from_offset)) as records:
        async for record in records:
            found.append(record)
            if len(found) == count:
                break
    return found


class CatalogLogContract:
    """Subclass it with fixtures `log` (started, empty) and `second` (another client of the same log, started)."""

    async def test_an_empty_log_ends_at_zero(self, log: CatalogLog) -> None:
        """Version -1 means empty: the end is the offset of the first record to come."""
        assert await log.end_offset() == 0

    async def test_records_come_back_in_order_with_their_bytes(self, log: CatalogLog) -> None:
        """What was appended is read back as it was, at the offset that append told; None stays None."""
        offsets = [await log.append(b"a", b"1"), await log.append(b"b", None), await log.append(b"a", b"\x00\xff")]

        records = await take(log, 0, 3)

        assert [record.offset for record in records] == offsets == sorted(offsets)
        assert [(record.key, record.value) for record in records] == [(b"a", b"1"), (b"b", None), (b"a", b"\x00\xff")]
        assert all(record.timestamp_ms > 1_600_000_000_000 for record in records)

    async def test_the_end_is_behind_what_was_acknowledged(self, log: CatalogLog, second: CatalogLog) -> None:
        """Another client sees the end move as soon as append has returned."""
        offset = await log.append(b"a", b"1")

        assert await second.end_offset() == offset + 1

    async def test_reading_begins_at_any_offset(self, log: CatalogLog) -> None:
        """A reader that broke off goes on where it stopped."""
        offsets = [await log.append(b"k%d" % n, b"v%d" % n) for n in range(5)]

        assert [record.key for record in await take(log, offsets[3], 2)] == [b"k3", b"k4"]

    async def test_a_reader_gets_records_that_come_later(self, log: CatalogLog, second: CatalogLog) -> None:
        """Reading does not end at the end: another client's record arrives at the reader that waits."""
        reading = asyncio.create_task(take(second, 0, 2))
        await log.append(b"a", b"1")
        await log.append(b"b", b"2")

        assert [record.key for record in await reading] == [b"a", b"b"]

    async def test_a_client_reads_its_own_writes(self, log: CatalogLog) -> None:
        """After append returns, the catalog has the revision, with the record's offset as its rev."""
        client = CatalogClient(log)
        await client.start()

        rev = await client.append(*encode_feature(Feature(account="acme", id="f", name="F"), "u1"))

        feature = client.catalog.feature("acme", "f")
        assert feature is not None
        assert feature.rev == rev == client.catalog.version
        await client.stop()

    async def test_catching_up_shows_what_another_process_wrote(self, log: CatalogLog, second: CatalogLog) -> None:
        """A change acknowledged to one process is in the catalog of another after catch_up."""
        writer, reader = CatalogClient(log), CatalogClient(second)
        await writer.start()
        await reader.start()

        rev = await writer.append(*encode_feature(Feature(account="acme", id="f", name="F"), "u1"))
        version = await reader.catch_up()

        assert version >= rev
        assert reader.catalog.feature("acme", "f") == writer.catalog.feature("acme", "f")
        await reader.stop()
        await writer.stop()

    async def test_a_late_client_starts_with_everything(self, log: CatalogLog, second: CatalogLog) -> None:
        """start() returns once the catalog has what was in the log when it was called."""
        records = [encode_feature(Feature(account="acme", id=f"f{n}", name="F"), f"u{n}") for n in range(100)]
        writer = CatalogClient(log)
        await writer.start()
        offsets = await writer.append_all(records)

        late = CatalogClient(second)
        await late.start()

        assert len(set(offsets)) == 100
        assert late.catalog.version == max(offsets)
        assert [f.id for f in late.catalog.features("acme")] == sorted(f"f{n}" for n in range(100))
        await late.stop()
        await writer.stop()
