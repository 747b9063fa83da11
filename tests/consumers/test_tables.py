"""Answers as tables, JSON and CSV."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from consumers.audit import AuditReport, Finding
from consumers.tables import bar, render_audit, render_usage
from consumers.usage import UsageQuery, UsageResult, UsageRow, decimal_text, value_of

START, NEXT, END = (datetime(2024, 3, d, tzinfo=UTC) for d in (1, 2, 3))


def _result(**changes: object) -> UsageResult:
    query = UsageQuery(account="acme", start=START, end=END, granularity="day", group_by=("feature",))
    rows = (
        UsageRow(START, NEXT, {"feature": "tok[ens]"}, "sum", 3, Decimal("1234.500000000")),
        UsageRow(NEXT, END, {"feature": "tok[ens]"}, "sum", 1, Decimal("617.25")),
        UsageRow(NEXT, END, {"feature": "peak"}, "max", 0, None),
    )
    values = {
        "query": query,
        "rows": rows,
        "complete_until": END,
        "lag_s": Decimal("0.250"),
        "read_from": ("usage_15m",),
    }
    return UsageResult(**{**values, **changes})  # type: ignore[arg-type]


def test_a_table_shows_values_bars_and_completeness() -> None:
    """Names with brackets are names; the second bar is half as long as the first."""
    text = render_usage(_result(), "table")
    lines = [line for line in text.splitlines() if "tok[ens]" in line]
    assert "1234.5 " in lines[0]
    assert (lines[0].count("█"), lines[1].count("█")) == (24, 12)
    assert "Complete until 2024-03-03 00:00+00:00 (0.25 s ago)" in text


def test_a_table_says_when_nobody_knows_how_complete_it_is() -> None:
    """Before a worker has reported."""
    assert "incomplete" in render_usage(_result(complete_until=None, lag_s=None), "table")


def test_json_has_decimals_as_strings() -> None:
    """And null where there is no value."""
    document = json.loads(render_usage(_result(), "json"))
    assert [row["value"] for row in document["data"]] == ["1234.5", "617.25", None]
    assert document["complete_until"] == "2024-03-03T00:00:00Z"
    assert document["lag_s"] == "0.25"


def test_csv_has_a_line_for_each_row() -> None:
    """With a header."""
    rows = list(csv.reader(io.StringIO(render_usage(_result(), "csv"))))
    assert rows[0] == ["start", "end", "feature", "aggregation", "events", "value"]
    assert rows[1] == ["2024-03-01T00:00:00Z", "2024-03-02T00:00:00Z", "tok[ens]", "sum", "3", "1234.5"]
    assert len(rows) == 4


def test_an_audit_shows_its_findings() -> None:
    """Counts first, then what is broken and where."""
    finding = Finding("ranges", {"partition": "0", "start": "5"}, "gap: offsets 3 to 4 are in no block")
    report = AuditReport(10, 8, 1, 0, 1, 0, 2, 8, 99, 1, (finding,))
    text = render_audit(report, "table")
    assert "drift" in text
    assert "gap: offsets 3 to 4 are in no block" in text
    assert json.loads(render_audit(report, "json"))["findings"][0]["where"] == {"partition": "0", "start": "5"}
    assert (
        render_audit(report, "csv").splitlines()[1] == "ranges,partition=0 start=5,gap: offsets 3 to 4 are in no block"
    )
    assert "agree" in render_audit(AuditReport(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ()), "table")


def test_an_audit_shows_what_was_lost_and_told_even_without_drift() -> None:
    """In every form."""
    gap = Finding("told_gap", {"partition": "0", "start": "5"}, "given up: 3 records at most, by ops: retention")
    report = AuditReport(10, 8, 1, 0, 1, 0, 2, 8, 99, 0, (), gaps=(gap,))
    for shape in ("table", "json", "csv"):
        assert "given up: 3 records at most" in render_audit(report, shape)
    assert "Every event that was not lost counts once" in render_audit(report, "table")


@pytest.mark.parametrize(
    ("value", "text"),
    [("0E-9", "0"), ("-0", "0"), ("100", "100"), ("1E+3", "1000"), ("0.000000001", "0.000000001"), ("-2.50", "-2.5")],
)
def test_decimals_are_written_plainly(value: str, text: str) -> None:
    """All digits, no exponent, no trailing zeros."""
    assert decimal_text(Decimal(value)) == text


def test_bars_of_what_is_not_positive_are_empty() -> None:
    """A refund has no length; the least has at least an eighth."""
    assert bar(Decimal(-3), Decimal(5)) == bar(None, Decimal(5)) == bar(Decimal(0), Decimal(0)) == ""
    assert bar(Decimal("0.001"), Decimal(1000)) == "▏"


def test_an_average_keeps_every_digit_of_a_large_sum() -> None:
    """Rounded half to even at the ninth digit, never through a float."""
    total = Decimal("99999999999999999999999999999999999999.000000001")
    assert value_of("average", 2, {"total": total}) == Decimal("49999999999999999999999999999999999999.500000000")
