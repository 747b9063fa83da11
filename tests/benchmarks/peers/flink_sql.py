"""Apache Flink SQL: deduplicate by id, map, RocksDB state, one task slot: ``flink_sql.py JAR [--check] TOPIC…``.

Its documented pattern for keeping the first row, with mini-batches and incremental checkpoints every 5 s. The sink is
Flink's `blackhole`, which takes rows and does nothing: an easier job than everybody else's. One job for each topic, in
one process; each reads what is in the topic when it starts, then ends. The time includes the start of a job: whoever
measures takes the difference between a long and a short topic. With `--check`, the rows go into an aggregation instead,
and its result is printed.
"""

import os
import sys
import time
from pathlib import Path

from pyflink.table import EnvironmentSettings, TableEnvironment

SETTINGS = {
    "parallelism.default": "1",
    "state.backend.type": "rocksdb",
    "execution.checkpointing.interval": "5s",
    "execution.checkpointing.incremental": "true",
    "execution.checkpointing.checkpoints-after-tasks-finish": "false",  # a job does not wait for one more at its end
    "table.exec.mini-batch.enabled": "true",
    "table.exec.mini-batch.allow-latency": "500 ms",
    "table.exec.mini-batch.size": "5000",
    "table.optimizer.simplify-operator-name-enabled": "true",
    "taskmanager.memory.process.size": "3g",
}
SOURCE = """
CREATE TABLE sent (
    clientId STRING, `timestamp` STRING, transactionId STRING, eventName STRING, `value` BIGINT,
    data ROW<region STRING, model STRING, status STRING, tokens BIGINT>, seen AS PROCTIME()
) WITH (
    'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{kafka}',
    'properties.group.id' = '{group}', 'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
    'format' = 'json'
)
"""
SINK = """
CREATE TABLE counted (
    clientId STRING, `timestamp` STRING, transactionId STRING, feature STRING, quantity BIGINT, region STRING,
    model STRING, status STRING
) WITH ('connector' = 'blackhole')
"""
ROWS = """
SELECT clientId, `timestamp`, transactionId, feature,
       CASE WHEN feature = 'tokens' THEN data.tokens ELSE `value` END AS quantity, data.region, data.model, data.status
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY transactionId ORDER BY seen ASC) AS sighting FROM sent)
CROSS JOIN UNNEST(
    CASE WHEN eventName = 'generation' THEN ARRAY['generations', 'tokens'] ELSE ARRAY['none', 'none'] END
) AS fed (feature)
WHERE sighting = 1
"""


def main() -> None:
    """One job after the other."""
    check = "--check" in sys.argv
    jar, *topics = [word for word in sys.argv[1:] if word != "--check"]
    table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    folder = Path(os.environ["BENCH_FOLDER"])
    places = {
        "pipeline.jars": f"file://{jar}",
        "execution.checkpointing.dir": f"file://{folder}/checkpoints",
        "state.backend.rocksdb.localdir": f"{folder}/state",
    }
    for name, value in {**SETTINGS, **places}.items():
        table.get_config().set(name, value)
    table.execute_sql(SINK)
    for topic in topics:
        table.execute_sql("DROP TABLE IF EXISTS sent")
        kafka, group = os.environ["BENCH_KAFKA"], os.environ["BENCH_GROUP"]
        table.execute_sql(SOURCE.format(topic=topic, kafka=kafka, group=group))
        print("begun", flush=True)
        if check:
            print_result(table)
        else:
            table.execute_sql(f"INSERT INTO counted {ROWS}").wait()
        print("done", flush=True)
    time.sleep(600)  # until it is killed, so that what it has used can still be read


def print_result(table: TableEnvironment) -> None:
    """Rows, ids and sum of each feature: of all the updates of the result, the last one stands."""
    last = {}
    query = f"SELECT feature, COUNT(*), COUNT(DISTINCT transactionId), SUM(quantity) FROM ({ROWS}) GROUP BY feature"
    with table.execute_sql(query).collect() as found:
        for feature, rows, ids, total in found:
            last[feature] = (rows, ids, total)
    for feature, numbers in last.items():
        print("result", feature, *numbers, flush=True)


if __name__ == "__main__":
    main()
