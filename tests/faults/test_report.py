"""The README's table says what the results say."""

import pytest
from report import points, put_in, table

_ROUNDS = [
    {"struck": ["a", "b"], "sent": 1000, "lost": 0, "doubled": 0, "wrong": 0, "outcome": "ok"},
    {"struck": ["a"], "sent": 500, "lost": 2, "doubled": 1, "wrong": 3, "outcome": "stuck"},
    {"struck": [], "sent": 10, "lost": 0, "doubled": 0, "wrong": 0, "outcome": "ok"},
]


def test_a_fault_has_the_sums_of_its_rounds_and_one_that_never_struck_no_row() -> None:
    """A round with two faults counts for both, and once in the sum of all."""
    lines = table(_ROUNDS, {"a": "first", "b": "second", "c": "third"}).splitlines()
    assert lines[2:] == [
        "| first | `a` | 2 | 1,500 | 2 | 1 | 3 | 1 |",
        "| second | `b` | 1 | 1,000 | 0 | 0 | 0 | 0 |",
        "| **all 3 rounds** | 2 faults | 3 | 1,510 | 2 | 1 | 3 | 1 |",
    ]


def test_a_points_strikes_add_up_over_rounds() -> None:
    """Rounds from before strikes were counted say nothing; a point that was never struck is told as such."""
    rounds = [*_ROUNDS, {"hits": {"inserted": 2}}, {"hits": {"inserted": 1, "renewed": 4}}]
    assert points(rounds, ["inserted", "renewed", "repaired"]) == (
        "Strikes by point: `inserted` 3, `renewed` 4, `repaired` 0."
    )


def test_the_table_takes_the_place_of_the_one_before() -> None:
    """Between the marks and nowhere else; without them the README is not touched."""
    once = put_in("a\n<!-- faults: made by tests/faults/report.py -->\n<!-- end of faults -->\nb", "one")
    assert put_in(once, "two") == once.replace("one", "two")
    with pytest.raises(ValueError, match="marks"):
        put_in("a", "one")
