"""The worker's metrics: every one named and explained, totals that outlive their sessions."""

from prometheus_client.parser import text_string_to_metric_families

from pipeline.metrics import COUNTERS, EXPIRED, GAUGES, IDS, LAG, STOPPED, WorkerMetrics
from pipeline.session import Standing


def values(metrics: WorkerMetrics) -> dict[tuple[str, str], float]:
    """What a scrape finds: (sample, partition) → value."""
    return {
        (sample.name, sample.labels["partition"]): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_every_metric_is_there_with_its_explanation() -> None:
    """Names and texts are those of the list."""
    metrics = WorkerMetrics(lambda: [Standing(0)], lambda: {0: 1}, lambda: {0: 1}, lambda: {0: 1})
    found = {family.name: family.documentation for family in text_string_to_metric_families(metrics.text().decode())}
    assert found == {name: text for name, text, *_ in (*COUNTERS, *GAUGES, LAG, IDS, EXPIRED, STOPPED)}


def test_every_counter_reads_an_attribute_that_standings_have() -> None:
    """A renamed attribute would fail a scrape in production."""
    assert {attribute for *_, attribute in (*COUNTERS, *GAUGES)} <= set(Standing.__struct_fields__)


def test_totals_outlive_the_session_that_counted_them() -> None:
    """A rebalance must not look like a reset."""
    standings = [Standing(2, events=10, rows=7, counted=50)]
    metrics = WorkerMetrics(lambda: standings, lambda: {2: 4}, dict, dict)
    assert values(metrics)["tally_events_total", "2"] == 10
    metrics.ended(standings.pop())
    assert values(metrics)["tally_events_total", "2"] == 10
    standings.append(Standing(2, events=5, stopped="broken"))
    found = values(metrics)
    assert found["tally_events_total", "2"] == 15
    assert found["tally_accepted_total", "2"] == 7
    assert found["tally_counted_offset", "2"] == 0
    assert found["tally_lag_records", "2"] == 4
    assert found["tally_partition_stopped", "2"] == 1
