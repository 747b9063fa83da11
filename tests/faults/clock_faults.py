"""A worker's clock that is set while it counts. They need a cluster whose workers are `worker_with_clock.py`
(`clocked`); on another one they have not struck."""

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cluster import Cluster
from faults import FAULTS, Fault, Inject, NotStruck, add

_LAUNCHER: Final = Path(__file__).with_name("worker_with_clock.py")


def clocked(_: int) -> Sequence[str]:
    """`worker_argv` of a cluster: workers whose clock can be set."""
    return [sys.executable, str(_LAUNCHER)]


def clock_file(folder: Path) -> Path:
    """Where a cluster's workers look; give it to them as FAULTS_CLOCK."""
    return folder / "clock"


def _set(low_s: float, high_s: float) -> Inject:
    def inject(cluster: Cluster, draw: random.Random) -> None:
        if "FAULTS_CLOCK" not in cluster.settings:
            raise NotStruck("the clocks of this cluster's workers cannot be set")
        file = Path(cluster.settings["FAULTS_CLOCK"])
        try:
            for _ in range(draw.randint(1, 3)):
                file.write_text(str(int(1000 * draw.uniform(low_s, high_s))))
                time.sleep(2 + draw.random() * 6)
        finally:
            file.unlink(missing_ok=True)

    return inject


# within the tolerated skew of 1 s nothing may even stall; past it inserts come after their deadline and are refused
add(Fault("clock-back-a-little", "clock set back within the tolerated skew", _set(-1.0, -0.1)))
add(Fault("clock-back-far", "clock set back by more than a lease", _set(-40.0, -5.0)))
add(Fault("clock-back-an-hour", "clock set back by an hour", _set(-3660.0, -3600.0)))

#: Faults that need such a cluster.
NAMES: Final = frozenset(name for name in FAULTS if name.startswith("clock-"))
