"""The textbook Faust agent: one event at a time, a table of ids in RocksDB with its changelog, batched inserts.

As Faust's documentation writes it, with what it says for speed: raw values, orjson, RocksDB through rocksdict, a large
stream buffer. The end is the acknowledgement of the last insert; its own commits come some seconds later.
"""

import asyncio

import faust
from job import BATCH, EVENTS, FOLDER, GROUP, KAFKA, PARTITIONS, TOPIC, Sink, begun, done, loads, rows_of

app = faust.App(
    GROUP,
    broker=f"kafka://{KAFKA}",
    store="rocksdb://?driver=rocksdict",
    datadir=FOLDER,
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    value_serializer="raw",
    key_serializer="raw",
    stream_buffer_maxsize=16_384,
    broker_max_poll_records=5_000,
    web_enabled=False,
)
app.conf.consumer_auto_offset_reset = "earliest"
topic = app.topic(TOPIC, value_type=bytes, key_type=bytes)
seen = app.Table("seen", default=int, key_type=str, value_type=int, partitions=PARTITIONS)


@app.agent(topic)
async def count(stream):
    """Each event once."""
    sink, rows, read = Sink(), [], 0
    async for value in stream:
        if not read:
            begun()
        for line in value.split(b"\n"):
            read += 1
            event = loads(line)
            if event["transactionId"] not in seen:
                seen[event["transactionId"]] = 1
                rows += rows_of(event)
        if len(rows) >= BATCH or read == EVENTS:
            await asyncio.to_thread(sink.insert, rows)
            rows = []
        if read == EVENTS:
            done()


if __name__ == "__main__":
    app.main()
