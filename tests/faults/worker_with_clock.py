"""A worker whose clock can be set while it runs; run it like `tally worker`.

The file named by FAULTS_CLOCK holds by how many milliseconds the clock is wrong; without it the clock is right. Only
what the worker takes for the time of day is shifted, as a clock that was set is: time that passes is not.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from faust.cli.faust import cli

import pipeline.worker

_file = Path(os.environ["FAULTS_CLOCK"])
_EVERY_S: Final = 0.05
_seen = [0.0, 0]


def shift_ms() -> int:
    """How wrong the clock is now."""
    now = time.monotonic()
    if now - _seen[0] > _EVERY_S:
        try:
            _seen[:] = [now, int(_file.read_text())]
        except (FileNotFoundError, ValueError):
            _seen[:] = [now, 0]
    return int(_seen[1])


def main() -> None:
    """The worker itself, with this clock."""
    pipeline.worker.time = SimpleNamespace(  # type: ignore[attr-defined]
        time_ns=lambda: time.time_ns() + shift_ms() * 1_000_000,
        time=lambda: time.time() + shift_ms() / 1000,
        monotonic=time.monotonic,
    )
    sys.argv = ["faust", "-A", "pipeline.app", "worker"]
    cli()


if __name__ == "__main__":
    main()
