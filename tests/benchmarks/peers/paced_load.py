"""Sends ready-made records at an even rate: ``BENCH_LINES`` holds `partition TAB key TAB value` a line. They wait for
others for 20 ms, as the README advises a client that sends thousands of events a second.

Says `begun` with its first record and `done {json}` once all are acknowledged: how many were sent, in how many
seconds, and how far behind the plan it was at worst.
"""

import json
import os
import time
from pathlib import Path

from confluent_kafka import Producer

TICK_S = 0.01


def main() -> None:
    """The program."""
    rate, topic = float(os.environ["BENCH_RATE"]), os.environ["BENCH_TOPIC"]
    records = []
    for line in Path(os.environ["BENCH_LINES"]).read_bytes().splitlines():
        partition, key, value = line.split(b"\t", 2)
        records.append((int(partition), key, value))
    producer = Producer(
        {
            "bootstrap.servers": os.environ["BENCH_KAFKA"],
            "acks": "all",
            "compression.type": "lz4",
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
        }
    )
    print("begun", flush=True)
    began, sent, behind_s = time.perf_counter(), 0, 0.0
    while sent < len(records):
        now = time.perf_counter() - began
        due = min(int(now * rate) + 1, len(records))
        for partition, key, value in records[sent:due]:
            producer.produce(topic, value, key, partition)
        sent = due
        producer.poll(0)
        behind_s = max(behind_s, time.perf_counter() - began - sent / rate)
        time.sleep(TICK_S)
    seconds = time.perf_counter() - began
    left = producer.flush(60)
    print("done", json.dumps({"sent": sent - left, "seconds": seconds, "behind_s": round(behind_s, 3)}), flush=True)


if __name__ == "__main__":
    main()
