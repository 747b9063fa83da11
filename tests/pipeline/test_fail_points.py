"""Fail points: nothing in production, a kill at a named point in tests."""

import subprocess
import sys

import pytest

from pipeline.fail_points import POINTS, fail_points


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_setting_nothing_happens_anywhere(setting: str | None) -> None:
    """As in production."""
    hit = fail_points(setting)
    for point in POINTS:
        hit(point)


@pytest.mark.parametrize("setting", ["nowhere", "inserted:", "inserted:x", "inserted:-1", ":1", "Inserted"])
def test_a_point_that_does_not_exist_is_refused_with_those_that_do(setting: str) -> None:
    """A fault test that never comes by its fault would prove nothing."""
    if setting == "inserted:":
        fail_points(setting)  # without a number it is the first time
        return
    with pytest.raises(ValueError, match="before_intent"):
        fail_points(setting)


def test_the_process_is_killed_the_nth_time_it_comes_by() -> None:
    """By SIGKILL, at that point only."""
    program = (
        "from pipeline.fail_points import fail_points\n"
        "hit = fail_points('inserted:2')\n"
        "for point in ('inserted', 'before_end', 'inserted', 'end_committed'):\n"
        "    print(point, flush=True)\n"
        "    hit(point)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stdout.split() == ["inserted", "before_end", "inserted"]
