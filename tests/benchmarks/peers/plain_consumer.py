"""A plain consumer: confluent-kafka, a Python set of ids, the mapping, batched inserts, the commit after the insert.

Knows nothing after a restart: its ids are in memory alone.
"""

from confluent_kafka import Consumer
from job import BATCH, EVENTS, GROUP, KAFKA, TOPIC, Sink, begun, done, loads, rows_of


def main() -> None:
    """Counts all events of the topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": KAFKA,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 65536,
        }
    )
    consumer.subscribe([TOPIC], on_assign=lambda *_: begun())
    sink, seen, rows, read = Sink(), set(), [], 0
    while read < EVENTS:
        messages = consumer.consume(5_000, timeout=1)
        for message in messages:
            if message.error():
                raise SystemExit(str(message.error()))
            for line in message.value().split(b"\n"):
                read += 1
                event = loads(line)
                if event["transactionId"] not in seen:
                    seen.add(event["transactionId"])
                    rows += rows_of(event)
        if len(rows) >= BATCH or read == EVENTS:
            sink.insert(rows)
            consumer.commit(asynchronous=False)
            rows = []
    done()


if __name__ == "__main__":
    main()
