"""Quix Streams: state in RocksDB with its changelog, a batching sink of our own as its documentation describes it.

State belongs to the message's key, and equal ids always come under equal keys (of single events the id itself), so no
regrouping is needed. Tuned: a checkpoint every 20,000 messages instead of every 5 s, nothing collected. The end is the
last checkpoint: rows inserted, state flushed, offsets committed.
"""

from job import FOLDER, GROUP, KAFKA, RECORD_EVENTS, ROWS, TOPIC, Sink, begun, done, loads, rows_of
from quixstreams import Application, State
from quixstreams.sinks import BatchingSink, SinkBatch


class ClickHouseSink(BatchingSink):
    """Writes the rows of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._sink = Sink()

    def write(self, batch: SinkBatch) -> None:
        """One insert for each partition."""
        self._sink.insert([row for item in batch for row in item.value])


class FirstLook:
    """Tells when the first message arrives."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, value: bytes) -> None:
        if not self._told:
            begun()
            self._told = True


def first(event: dict, state: State) -> bool:
    """Whether the id is new; it is known from now on."""
    transaction_id = event["transactionId"]
    if state.exists(transaction_id):
        return False
    state.set(transaction_id, 1)
    return True


def main() -> None:
    """Counts all events of the topic."""
    app = Application(
        broker_address=KAFKA,
        consumer_group=GROUP,
        auto_offset_reset="earliest",
        state_dir=FOLDER,
        commit_every=max(1, 20_000 // RECORD_EVENTS),
        loglevel="WARNING",
    )
    frame = app.dataframe(app.topic(TOPIC, value_deserializer="bytes")).update(FirstLook())
    if RECORD_EVENTS == 1:
        frame = frame.apply(loads)
    else:
        frame = frame.apply(lambda value: [loads(line) for line in value.split(b"\n")], expand=True)
    frame = frame.filter(first, stateful=True).apply(rows_of)
    frame.sink(ClickHouseSink())
    # outputs: one list of rows for each new id; the time-out ends a run whose count is wrong
    app.run(count=ROWS // 2, timeout=20, collect=False)
    done()


if __name__ == "__main__":
    main()
