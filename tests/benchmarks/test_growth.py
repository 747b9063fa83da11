"""What growth, latency and sizing come to, and the tables that are filled before a worker starts."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bench_events import events, moment
from bench_figures import growth_table, latency_table, verdicts
from bench_growth import CASES, growth_figures, growth_medians
from bench_latency import LIST, Probes, countable_figure, latency_figures, percentile, probe
from bench_sizing import cores, sizing
from filled_tables import Filled, filled, schema_of, table_name

from pipeline.adapters.rocks import Tables
from pipeline.block import unpack_sighting
from pipeline.ports import Border, Marker

_CACHE = 8 << 20


def _run(name: str, rate: int, run: int = 1, ids: int = 0, **more: Any) -> dict[str, Any]:
    title = next(case.title for case in CASES if case.name == name)
    costs = {"competitor": rate * 2, "broker": rate * 20, "engine": rate}
    found = {"events": 1000, "events_per_s": rate, "rss_mib": 500, "rss_peak_mib": 600, "per_cpu_s": costs}
    return {"name": name, "title": title, "run": run, "ids": ids, "checked": "right", **found, **more}


def _probes(waits: dict[str, float], *, size: int = 1) -> Probes:
    probes = Probes()
    for name, wait in waits.items():
        probes.sizes[name], probes.answered[name], probes.countable[name] = size, 100.0, 100.0 + wait
    return probes


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Three tables of a thousand ids in all."""
    return filled(tmp_path_factory.mktemp("filled"), 1_000, 3, _CACHE)


def test_a_filled_table_is_one_that_the_worker_opens_as_its_own(tables: Filled, tmp_path: Path) -> None:
    """All ids are there with sightings that unpack, and it begins at the changelog's beginning: nothing is restored."""
    tables.put_in(tmp_path, "topic")
    held = 0
    for partition in range(3):
        table = Tables(tmp_path, _CACHE, tables=3).open(table_name("topic", partition))
        entries = table.page(b"", 10_000)
        held += len(entries)
        assert table.get_many([key for key, _ in entries]) == dict(entries)
        assert {unpack_sighting(value).position.epoch for _, value in entries} == {0}
        assert (table.marker(), table.border()) == (Marker(0, 0, 0), Border(0, 0))
        table.put({b"n" * 16: entries[0][1]})
        table.close()
    assert held == 1_000


def test_a_worker_that_writes_into_its_copy_leaves_the_filled_table_as_it_was(tables: Filled, tmp_path: Path) -> None:
    """Files of ids are shared between the copies, what is appended to is not."""
    before = {file.name: file.read_bytes() for file in tables.folders[0].iterdir()}
    tables.put_in(tmp_path, "topic")
    table = Tables(tmp_path, _CACHE).open(table_name("topic", 0))
    table.put({bytes([number]) * 16: b"v" * 20 for number in range(200)})
    table.compact()
    table.close()
    assert {file.name: file.read_bytes() for file in tables.folders[0].iterdir()} == before


def test_the_schema_is_the_same_for_the_same_options_and_another_for_others(tables: Filled, tmp_path: Path) -> None:
    """Wherever the table lies."""
    same = Tables(tmp_path / "a", _CACHE, tables=3)
    same.open("0").close()
    assert schema_of(tmp_path / "a" / "0") == tables.schema
    other = Tables(tmp_path / "b", 1 << 30, tables=3)
    other.open("0").close()
    assert schema_of(tmp_path / "b" / "0") != tables.schema


def test_growth_takes_medians_of_rates_and_the_most_memory() -> None:
    """What any run found wrong stands in the row; one that failed leaves its note."""
    runs = [_run("ids-0", rate, run) for run, rate in enumerate((100, 300, 200))]
    runs[2] |= {"rss_peak_mib": 900, "checked": "tokens: sum 1 instead of 2"}
    failed = {"name": "late", "title": "late", "run": 1, "note": "it ended"}
    rows = growth_medians([*runs, failed])
    assert (rows[0]["events_per_s"], rows[0]["rss_peak_mib"], rows[0]["spread"]) == (200, 900, (100, 300))
    assert rows[0]["checked"] == "tokens: sum 1 instead of 2"
    assert (rows[1]["runs"], rows[1]["note"]) == (0, "it ended")
    lines = growth_table({"rows": rows, "tables": []})
    assert any(line.startswith("| empty table") and "| 900 |" in line for line in lines)
    assert any(line.startswith("| late |") and line.endswith("| it ended |") for line in lines)


def test_the_figures_of_50_million_ids_are_of_50_million_ids() -> None:
    """A quick run, with fewer, has none; memory is told in bytes, the largest table tells bytes an id."""
    made = [{"ids": 10_000_000, "bytes_per_id_compacted": 30.0}, {"ids": 50_000_000, "bytes_per_id_compacted": 29.0}]
    full = growth_medians([_run("ids-0", 1_000), _run("ids-50m", 900, ids=50_000_000)])
    ratios, figures = growth_figures(full, made)
    assert ratios == {"ids50m_vs_empty": 0.9}
    assert figures == {"worker_rss_bytes_50m": 600 << 20, "dedup_bytes_per_id": 29.0}
    quick = growth_medians([_run("ids-0", 1_000), _run("ids-50m", 900, ids=1_000_000)])
    assert growth_figures(quick, [{"ids": 1_000_000, "bytes_per_id_compacted": 31.0}]) == ({}, {})


def test_targets_that_are_bounds_from_above_are_missed_above_them() -> None:
    """And those from below are as before."""
    found = {"countable_p99_s": 1.2, "dedup_bytes_per_id": 29, "worker_rss_bytes_50m": 1 << 30, "ids50m_vs_empty": 0.79}
    judged = {one["key"]: one["verdict"] for one in verdicts(found)}
    assert (judged["countable_p99_s"], judged["dedup_bytes_per_id"]) == ("missed", "met")
    assert (judged["worker_rss_bytes_50m"], judged["ids50m_vs_empty"]) == ("met", "missed")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """By nearest rank: the 99th of a hundred, and the last of fewer."""
    hundred = [float(number) for number in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([1.0, 2.0, 3.0], 0.99) == 3.0


def test_latency_tells_singles_from_lists_and_what_never_became_countable() -> None:
    """One that was countable before its answer arrived has waited no time at all."""
    probes = _probes({"a": -0.2, "b": 0.5})
    probes.sizes["c"], probes.answered["c"] = LIST, 100.0
    row = latency_figures(probes)
    assert row["single"] == {"requests": 2, "p50_s": 0.0, "p99_s": 0.5}
    assert "list" not in row
    assert row["probe_events"] == 2 + LIST
    assert row["checked"].startswith("1 requests not countable")


def test_the_figure_of_latency_is_of_half_load_and_the_longer_kind() -> None:
    """Idle and full load have none."""
    kinds = {"single": {"p50_s": 0.1, "p99_s": 0.4}, "list": {"p50_s": 0.2, "p99_s": 0.7}}
    common = {"rate_per_s": 10, "left": 0, "rss_mib": 1, "checked": "right"}
    rows = [{"name": "idle", **common}, {"name": "half", **common, **kinds}, {"name": "full", "note": "it ended"}]
    assert countable_figure(rows) == {"countable_p99_s": 0.7}
    assert countable_figure(rows[:1]) == {}
    lines = latency_table({"rows": rows})
    assert any("| half | 10 | 0 | 0.10 | 0.40 | 0.20 | 0.70 | 0 | 1 | right |" in line for line in lines)
    assert lines[-1].endswith("| it ended |")


def test_probes_happen_in_the_month_of_the_load() -> None:
    """Otherwise every block would be of two months, with a part of facts for each."""
    load = [json.loads(event.line)["timestamp"] for event in events(2_000, duplicates=0.0)]
    assert {when[:7] for when in load} == {f"{moment(after_s):%Y-%m}" for after_s in (0.0, 3_600.0)}
    assert min(load) < f"{moment(0.0):%Y-%m-%dT%H:%M:%S}" < max(load)


@pytest.mark.parametrize("size", [1, LIST])
def test_probes_are_as_many_events_as_they_say(size: int) -> None:
    """Each with an id of its own that begins with the request's name."""
    body, kind = probe("half-1-7", size, datetime(2026, 11, 1, tzinfo=UTC))
    documents = [json.loads(line) for line in body.splitlines()]
    ids = {document.get("transactionId") or document["idempotency_key"] for document in documents}
    assert ids == {f"half-1-7/{number}" for number in range(size)}
    assert kind == ("application/json" if size == 1 else "application/x-ndjson")


def test_sizing_says_of_each_row_whether_it_was_measured() -> None:
    """What was not measured is not there; cores are whole and half loaded."""
    document = {
        "growth": {
            "rows": growth_medians([_run("ids-0", 50_000), {"name": "late", "title": "", "run": 1, "note": "no"}])
        },
        "figures": {"dedup_bytes_per_id": 29.0},
    }
    lines = sizing(document).splitlines()[2:]
    assert lines
    assert all(line.rstrip(" |").split("| ")[-1].startswith(("measured", "calculated")) for line in lines)
    assert any("20 cores of workers" in line and "40 cores of ClickHouse" in line for line in lines)
    assert not any("countable" in line or "two workers" in line for line in lines)
    assert "recorded yet" in sizing({})
    assert (cores(1_000_000, 100_000), cores(1, 100_000)) == (20, 1)
