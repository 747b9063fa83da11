"""Every metric of the worker: name and meaning in one place."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.session import Standing

#: name, help, attribute of a session's standing
COUNTERS = (
    ("tally_events", "Lines read from the events topic", "events"),
    ("tally_accepted", "Events counted", "rows"),
    ("tally_duplicates", "Events seen before with the same content", "duplicates"),
    ("tally_conflicts", "Events seen before with other content", "conflicts"),
    ("tally_rejected", "Lines refused", "rejected"),
    ("tally_rerouted", "Events sent on to the partition of their id", "rerouted"),
    ("tally_blocks", "Blocks counted", "blocks"),
    ("tally_retries", "Waits for Kafka, the catalog or the store", "retries"),
    ("tally_repairs", "Blocks that had to be completed in the store", "repairs"),
    ("tally_recalled", "Ids that the filter of expired ids sent to the store to be looked up", "recalled"),
    ("tally_build_seconds", "Time spent building blocks", "build_s"),
    ("tally_store_seconds", "Time spent storing blocks", "insert_s"),
)
GAUGES = (
    ("tally_counted_offset", "Offset up to which the partition is counted", "counted"),
    ("tally_paused", "1 while more is fetched than the store takes", "paused"),
)
LAG = ("tally_lag_records", "Records of the partition that are not counted yet")
STOPPED = ("tally_partition_stopped", "1 when the partition waits for a person; see the log and /readyz")
IDS = ("tally_dedup_ids", "Ids in the partition's table of first sightings, roughly")
EXPIRED = ("tally_dedup_expired_ids", "Ids in the partition's filter of expired ids, roughly")


class WorkerMetrics:
    """A Prometheus collector over the sessions of a worker. Totals outlive the sessions that counted them."""

    def __init__(
        self,
        standings: Callable[[], Iterable[Standing]],
        lags: Callable[[], Mapping[int, int]],
        ids: Callable[[], Mapping[int, int]],
        expired: Callable[[], Mapping[int, int]],
    ) -> None:
        self._standings = standings
        self._lags = lags
        self._ids = ids
        self._expired = expired
        self._ended: dict[tuple[str, int], float] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def ended(self, standing: Standing) -> None:
        """Keeps the totals of a session that is over."""
        for _, _, attribute in COUNTERS:
            key = (attribute, standing.partition)
            self._ended[key] = self._ended.get(key, 0.0) + getattr(standing, attribute)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        standings = list(self._standings())
        for name, text, attribute in COUNTERS:
            totals = {p: total for (kept, p), total in self._ended.items() if kept == attribute}
            for standing in standings:
                totals[standing.partition] = totals.get(standing.partition, 0.0) + getattr(standing, attribute)
            yield _by_partition(CounterMetricFamily(name, text, labels=["partition"]), totals)
        for name, text, attribute in GAUGES:
            values = {s.partition: float(getattr(s, attribute)) for s in standings}
            yield _by_partition(GaugeMetricFamily(name, text, labels=["partition"]), values)
        yield _by_partition(GaugeMetricFamily(*LAG, labels=["partition"]), self._lags())
        yield _by_partition(GaugeMetricFamily(*IDS, labels=["partition"]), self._ids())
        yield _by_partition(GaugeMetricFamily(*EXPIRED, labels=["partition"]), self._expired())
        stopped = {s.partition: float(bool(s.stopped)) for s in standings}
        yield _by_partition(GaugeMetricFamily(*STOPPED, labels=["partition"]), stopped)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


def _by_partition(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[int, float]
) -> CounterMetricFamily | GaugeMetricFamily:
    for partition, value in sorted(values.items()):
        family.add_metric([str(partition)], value)
    return family
