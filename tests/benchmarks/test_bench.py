"""The parts of `make bench` that decide numbers and words; nothing is measured here."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import amended, with_recorded
from bench_events import DUPLICATES, envelopes, events, expected
from bench_figures import medians, ratios, table, verdicts
from bench_place import differences
from bench_queries import outcome
from bench_report import BEGIN, END, bars, plot, put_in

_MACHINE = {
    "cpu": "a core",
    "cores": 2,
    "memory_gib": 8,
    "system": "Linux 6",
    "python": "3.11",
    "commit": "abc",
    "packages": {"quixstreams": "3"},
}


def _run(name: str, rate: int, size: int = 1, run: int = 1, checked: str = "right", **more: Any) -> dict[str, Any]:
    per_cpu_s = {"competitor": rate * 2, "broker": 0, "engine": 10**9}
    found = {"events": 1000, "events_per_s": rate, "seconds": 1.0, "rss_mib": 10, "per_cpu_s": per_cpu_s}
    return {"name": name, "record_events": size, "run": run, "checked": checked, **found, **more}


def _document(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rows = medians(runs)
    found, figures = ratios(rows)
    targets = verdicts({**found, **figures})
    facts = {"machine": _MACHINE, "date": "2026-11-21", "runs": 1, "quick": False}
    return {**facts, "rows": rows, "targets": targets, "ratios": found}


def test_the_events_are_the_same_each_time_and_a_short_list_begins_a_long_one() -> None:
    """So a slow competitor counts the first part of what a fast one counts."""
    long = list(events(3_000))
    assert long[:1_000] == list(events(1_000))
    assert all(230 <= len(event.line) <= 270 for event in long)
    repeated = sum(event.again for event in long) / len(long)
    assert DUPLICATES / 2 < repeated < DUPLICATES * 2


def test_what_is_expected_agrees_with_the_lines_themselves() -> None:
    """Counted again from the JSON, by id."""
    sent = list(events(2_000))
    by_id = {document["transactionId"]: document for document in (json.loads(event.line) for event in sent)}
    found = expected(sent)
    assert (found.events, found.ids) == (2_000, len(by_id))
    assert found.sums == {
        "generations": sum(document["value"] for document in by_id.values()),
        "tokens": sum(document["data"]["tokens"] for document in by_id.values()),
    }


def test_envelopes_hold_every_line_once_in_order() -> None:
    """The last one may be shorter; records of one event are the events."""
    lines = [str(number).encode() for number in range(250)]
    values = envelopes(lines, 100)
    assert [value.count(b"\n") + 1 for value in values] == [100, 100, 50]
    assert b"\n".join(values).split(b"\n") == lines
    assert envelopes(lines, 1) == lines


def test_a_wrong_number_is_told_plainly() -> None:
    """Rows, ids and sums of each feature, and features that nobody asked for."""
    wanted = expected(list(events(500)))
    right = {name: (wanted.ids, wanted.ids, total) for name, total in wanted.sums.items()}
    assert differences(right, wanted) == ""
    doubled = right | {"tokens": (wanted.ids + 5, wanted.ids, wanted.sums["tokens"])}
    assert differences(doubled, wanted) == f"tokens: rows {wanted.ids + 5} instead of {wanted.ids}"
    assert "generations: rows 0" in differences({"other": (1, 1, 1)}, wanted)


def test_a_row_is_the_median_of_its_runs_and_keeps_what_went_wrong_in_one() -> None:
    """A run that failed leaves a note and no figures."""
    runs = [_run("quix", rate, run=run) for run, rate in enumerate((100, 900, 200))]
    runs.append({"name": "quix", "record_events": 1, "run": 4, "note": "it ended"})
    runs[1]["checked"] = "tokens: sum 1 instead of 2"
    (row,) = medians(runs)
    assert (row["events_per_s"], row["runs"], row["spread"]) == (200, 3, (100, 900))
    assert (row["note"], row["checked"]) == ("it ended", "tokens: sum 1 instead of 2")


def test_ratios_take_what_they_are_named_for() -> None:
    """Flink's by processor time of the process; the decoding ceiling is the higher of the two."""
    rows = medians(
        [
            _run("worker", 1_000),
            _run("worker", 2_500, size=100),
            _run("flink", 400, per_cpu_s={"competitor": 500, "broker": 1, "engine": 1}),
            _run("decode", 1_200),
            _run("msgspec", 2_000),
            _run("api", 30, p99_ms=5.0),
            _run("fastapi", 10, p99_ms=10.0),
            _run("api-500", 120_000, size=500, p99_ms=50.0),
            {"name": "quix", "record_events": 1, "run": 1, "note": "could not be installed"},
        ]
    )
    found, figures = ratios(rows)
    assert found == {
        "worker_vs_flink": 4.0,
        "worker_vs_flink_wall": 2.5,
        "worker_vs_read_decode": 0.5,
        "records100_vs_single": 2.5,
        "api_single_vs_fastapi": 3.0,
        "api_p99_vs_fastapi": 2.0,
    }
    assert figures == {"api_batch_events_per_s": 120_000}
    judged = {one["key"]: one["verdict"] for one in verdicts({**found, **figures})}
    assert (judged["worker_vs_flink"], judged["worker_vs_read_decode"]) == ("met", "missed")
    assert judged["worker_vs_quix"] == "not measured"


def test_the_table_has_a_row_for_each_and_says_why_one_has_no_figures() -> None:
    """Also a message of several lines stays in its cell."""
    runs = [_run("worker", 98_765), _run("faust", 2_345, checked="tokens: ids 1 instead of 2")]
    runs.append({"name": "flink", "record_events": 1, "run": 1, "note": "Java 17 is missing\nand more"})
    lines = table(_document(runs)).splitlines()
    assert any("| 1,000 | 98,800 |  | 198,000 | - | - | 10 | right |" in line for line in lines)
    assert any("2,340 | 42.1 |" in line and "ids 1 instead of 2" in line for line in lines)
    assert any(line.startswith("| Apache Flink") and line.endswith("| Java 17 is missing |") for line in lines)
    assert all(line.count("|") == 10 for line in lines if line.startswith(("| Apache", "| textbook")))


def _asked(title: str, ratio: float, p99_ms: float, *, wide: bool) -> dict[str, Any]:
    times = {"ms": 10.0, "raw_ms": ratio * 10, "ratio": ratio, "p99_ms": p99_ms, "runs": 20, "raw_runs": 3}
    return {"title": title, "zone": "UTC", "wide": wide, "read_from": ["events"], "checked": "same", **times}


def test_the_slowest_question_counts_and_questions_of_one_customer_are_judged_apart() -> None:
    """A slow answer about everybody is no miss of the 20 ms, a ratio of one customer none of the 20 times."""
    rows = [
        _asked("all", 31.0, 400.0, wide=True),
        _asked("top", 24.0, 900.0, wide=True),
        _asked("largest", 1.5, 10.0, wide=False),
        _asked("median", 0.8, 40.0, wide=False),
    ]
    found = outcome(rows)
    assert found["ratios"] == {
        "usage_query_vs_raw": 24.0,
        "usage_customer_vs_raw": 0.8,
        "usage_customer_20ms_vs_p99": 0.5,
    }
    assert found["figures"] == {"usage_customer_p99_ms": 40.0}
    storage = [{"table": "events", "rows": 1000, "bytes_per_event": 117.25}]
    took = {"load": {"seconds": 3, "engine_us": 5.25}, "merge": {"seconds": 1, "engine_us": 1.75}}
    queries = {"facts": 1000, "threads": 2, "rows": rows, "storage": storage, **took}
    lines = table({**_document([]), "queries": queries}).splitlines()
    assert "| all | UTC | 310.0 | 10.0 | 31 | 400.0 | 20 (3) | events | same |" in lines
    assert "| events | 1,000 | 117.25 |" in lines
    assert lines[lines.index("| events | 1,000 | 117.25 |") + 2].endswith("merged into one part in 1 s, 1.8 µs.")


def test_a_part_that_is_not_measured_stays_as_recorded_and_says_of_which_commit() -> None:
    """Also when it was carried over before."""
    latency = {"rows": [], "ratios": {}, "figures": {"countable_p99_s": 2.0}}
    growth = {"rows": [], "tables": [], "ratios": {}, "figures": {}}
    first = with_recorded({"growth": growth}, {"machine": _MACHINE, "latency": latency, "growth": {"rows": [1]}})
    assert first == {"growth": growth, "latency": {"commit": "abc", **latency}}
    again = with_recorded({}, {"machine": {"commit": "def"}, **first})
    assert (again["growth"]["commit"], again["latency"]["commit"]) == ("def", "abc")
    told = table({**_document([_run("worker", 1)]), **again})
    assert told.index("at commit abc") < told.index("From the HTTP answer")


def test_a_part_that_is_measured_alone_takes_its_place_among_what_is_recorded() -> None:
    """Rates and other parts stay as they are, the commit of the new one is told, and targets follow."""
    latency = {"rows": [], "ratios": {}, "figures": {"countable_p99_s": 2.0}}
    recorded = {**_document([_run("worker", 1)]), "latency": latency, "figures": {"countable_p99_s": 2.0}}
    found = amended(recorded, {"latency": {**latency, "figures": {"countable_p99_s": 0.5}}}, "def")
    assert found["latency"]["commit"] == "def"
    assert found["figures"]["countable_p99_s"] == 0.5
    assert (found["rows"], found["machine"]) == (recorded["rows"], recorded["machine"])
    assert {target["key"]: target["verdict"] for target in found["targets"]}["countable_p99_s"] == "met"


def test_the_table_takes_the_place_of_the_one_before() -> None:
    """Between the marks and nowhere else; without them the README is not touched."""
    once = put_in(f"a\n{BEGIN}\n{END}\nb", "one")
    assert put_in(once, "two") == once.replace("one", "two")
    with pytest.raises(ValueError, match="marks"):
        put_in("a", "one")


def test_the_plot_has_the_worker_first_and_ceilings_last(tmp_path: Path) -> None:
    """By rate among those that do the whole job."""
    document = _document([_run("read", 9_000_000), _run("faust", 2_000), _run("worker", 100_000), _run("quix", 20_000)])
    assert [label for label, *_ in bars(document, 1)] == [
        "this worker",
        "Quix Streams",
        "textbook Faust agent",
        "aiokafka read",
    ]
    plot(document, tmp_path / "bench.svg")
    assert "Quix Streams" in (tmp_path / "bench.svg").read_text()
