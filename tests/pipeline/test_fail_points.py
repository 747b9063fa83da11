"""Fail points: nothing in production, a kill at a named point in tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.fail_points import POINTS, fail_points


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_setting_nothing_happens_anywhere(setting: str | None) -> None:
    """As in production."""
    hit = fail_points(setting)
    for point in POINTS:
        hit(point)


@pytest.mark.parametrize(
    "setting",
    ["nowhere", "inserted:", "inserted:x", "inserted:-1", ":1", "Inserted", "inserted:1:die", "inserted:1:stop+"],
)
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


@pytest.mark.parametrize("delay", ["", "+20"])
def test_a_zombie_stands_still_until_it_is_told_to_go_on(delay: str) -> None:
    """SIGSTOP at the point, or some milliseconds later; SIGCONT ends it."""
    program = (
        "from pipeline.fail_points import fail_points\n"
        f"hit = fail_points('before_insert:1:stop{delay}')\n"
        "hit('before_insert')\n"
        "import time\n"
        "time.sleep(0.2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0


def test_a_running_process_takes_its_point_from_a_file(tmp_path: Path) -> None:
    """Once there is one; the file is gone then, and counting begins with it."""
    file = tmp_path / "fault"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.fail_points import fail_points\n"
        "hit = fail_points('@' + sys.argv[1])\n"
        "hit('inserted')\n"
        "Path(sys.argv[1]).write_text('inserted:2')\n"
        "for number in range(3):\n"
        "    print(number, Path(sys.argv[1]).exists(), flush=True)\n"
        "    hit('inserted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stdout.splitlines() == ["0 True", "1 False"]
