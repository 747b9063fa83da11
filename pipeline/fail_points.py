"""Named points of the block protocol at which a fault can be put; see tests/faults.

`TALLY_FAIL_POINT=name` kills the process with SIGKILL the first time it comes by, `name:3` the third time, counted over
all its partitions. `name:3:stop` stops it with SIGSTOP instead: it is a zombie until someone sends SIGCONT.
`name:3:kill+5` and `name:3:stop+5` let it go on and strike 5 ms later, while what was begun at the point is under way.
`@FILE` takes the setting from a file once there is one, and removes it: a fault for a process that runs already.
Unset, as in production, a point is an empty function.
"""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: Points that every block comes by, in the protocol's order; rejects only where a block has any.
POINTS: Final = (
    "before_intent",
    "intent_committed",
    "table_written",
    "ledger_written",
    "before_insert",
    "inserted",
    "before_rejects",
    "rejects_acknowledged",
    "before_changelog",
    "changelog_acknowledged",
    "before_end",
    "end_committed",
)
#: Points of what only some blocks need: forwards, and what follows a doubt or an old statement.
FORWARD_POINTS: Final = ("before_forwards", "forwards_acknowledged")
REPAIR_POINTS: Final = ("before_renewal", "renewed", "before_repair", "repaired")
#: Points of expiry, in its order, which goes on beside the blocks; see `pipeline.tidying`.
EXPIRY_POINTS: Final = ("filter_saved", "expired_deleted", "changelog_trimmed")
_ALL: Final = (*POINTS, *FORWARD_POINTS, *REPAIR_POINTS, *EXPIRY_POINTS)
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_setting = re.compile(r"(?P<name>[a-z_]+)(:(?P<times>\d*))?(:(?P<action>kill|stop)(\+(?P<delay_ms>\d+))?)?").fullmatch


def fail_points(setting: str | None) -> Callable[[str], None]:
    """What the points call; one for the whole process. Raises ValueError for a point that does not exist."""
    if not setting:
        return _nothing
    if setting.startswith("@"):
        return _armed_by(Path(setting[1:]))
    found = _setting(setting)
    if found is None or found["name"] not in _ALL:
        raise ValueError(
            f"TALLY_FAIL_POINT={setting!r}: points are {', '.join(_ALL)}, with `:N` for the N-th time "
            "and `:N:kill`, `:N:stop`, `:N:kill+MS` or `:N:stop+MS` for what happens"
        )
    name, number = found["name"], _SIGNALS[found["action"] or "kill"]
    left = [int(found["times"] or 1)]
    delay_ms = int(found["delay_ms"] or 0)

    def strike() -> None:
        os.kill(os.getpid(), number)

    def hit(point: str) -> None:
        if point == name:
            left[0] -= 1
            if left[0] == 0 and delay_ms:
                threading.Timer(delay_ms / 1000, strike).start()
            elif left[0] == 0:
                strike()

    return hit


def _armed_by(file: Path) -> Callable[[str], None]:
    armed: list[Callable[[str], None]] = []

    def hit(point: str) -> None:
        if file.exists():
            armed[:] = [fail_points(file.read_text().strip())]
            file.unlink()
        for strike in armed:
            strike(point)

    return hit


def _nothing(point: str) -> None:
    """No fault."""
