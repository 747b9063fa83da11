"""Every metric of the worker and of the running audit: name and meaning in one place."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
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
#: name, help, of the running audit; by scope, `full` or `quick`
AUDIT_GAUGES = (
    ("tally_audit_drift", "Broken promises that the last audit has found; 0 when all hold"),
    ("tally_audit_time_seconds", "When the last audit ended, in seconds since 1970"),
    ("tally_audit_duration_seconds", "How long the last audit took"),
)
AUDIT_FAILURES = ("tally_audit_failures", "Audits that could not be done, because the store was away or refused")


class AuditMetrics:
    """A Prometheus collector over the last audit of each scope, and its page."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float, float]] = {}
        self._failures = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def heard(self, scope: str, *, drift: int, at_s: float, duration_s: float) -> None:
        """Takes note of an audit."""
        self._last[scope] = (float(drift), at_s, duration_s)

    def failed(self) -> None:
        """Takes note of an audit that could not be done."""
        self._failures += 1

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        last = sorted(self._last.items())
        for i, (name, text) in enumerate(AUDIT_GAUGES):
            family = GaugeMetricFamily(name, text, labels=["scope"])
            for scope, values in last:
                family.add_metric([scope], values[i])
            yield family
        yield CounterMetricFamily(*AUDIT_FAILURES, value=self._failures)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serves the page in a thread of its own; returns what ends it. Raises OSError when the port is taken."""
        server, thread = start_http_server(port, host, self._registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


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
