"""Named points of the block protocol at which a fault can be put; see tests/faults.

`TALLY_FAIL_POINT=name` kills the process with SIGKILL the first time it comes by, `name:3` the third time. Unset, as
in production, a point is an empty function.
"""

import os
import signal
from collections.abc import Callable
from typing import Final

EXPIRY_POINTS: Final = ("filter_saved", "expired_deleted", "changelog_trimmed")
POINTS: Final = (
    "before_intent",
    "intent_committed",
    "table_written",
    "ledger_written",
    "before_insert",
    "inserted",
    "rejects_acknowledged",
    "changelog_acknowledged",
    "before_end",
    "end_committed",
    *EXPIRY_POINTS,
)


def fail_points(setting: str | None) -> Callable[[str], None]:
    """What the points call. Raises ValueError for a point that does not exist."""
    if not setting:
        return _nothing
    name, _, times = setting.partition(":")
    if name not in POINTS or (times and not times.isdigit()):
        raise ValueError(f"TALLY_FAIL_POINT={setting!r}: points are {', '.join(POINTS)}, with `:N` for the N-th time")
    left = [int(times or 1)]

    def hit(point: str) -> None:
        if point == name:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hit


def _nothing(point: str) -> None:
    """No fault."""
