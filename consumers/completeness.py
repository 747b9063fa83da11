"""Until when everything acknowledged is counted: what every answer about usage says of itself.

Rules: it is read before the numbers, so that it never promises more than they hold. A former time promises less and
holds still, so one that was read a moment ago serves for many answers; how far that is behind is counted on since then.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from pipeline.ports import Reader

_PROGRESS: Final = """SELECT
    count() AS partitions,
    min(complete_until) AS complete,
    toDecimal64(toUnixTimestamp64Milli(now64(3)) - toUnixTimestamp64Milli(complete), 3) / 1000 AS lag_s
FROM progress
FINAL
WHERE topic = {topic:String}"""
_NEW_S: Final = 1.0  # as often as workers report
_KNOWN_S: Final = 2.0
_MILLI: Final = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class Complete:
    """`until` when everything acknowledged is counted, and how many seconds that is behind; None for both until every
    partition has reported. `asked_s`: when the store was asked, by the process's clock."""

    asked_s: float
    until: datetime | None = None
    lag_s: Decimal | None = None


class Completeness:
    """What the workers have reported, of all `partitions` of the events topic. Used from several threads at once."""

    def __init__(
        self,
        store: Reader,
        *,
        topic: str,
        partitions: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._topic = topic
        self._partitions = partitions
        self._clock = clock
        self._read: Complete | None = None
        self._reading = threading.Lock()
        self._beside = ThreadPoolExecutor(1, "completeness")

    def __call__(self) -> Complete:
        """What holds for numbers that are read from now on. At most two seconds old: after one it is read anew beside
        the answer. Raises what the store raises. May block."""
        read, now = self._read, self._clock()
        if read is None or now - read.asked_s > _KNOWN_S:
            read = self._anew(_KNOWN_S)
        elif now - read.asked_s > _NEW_S and not self._reading.locked():
            self._beside.submit(self._anew, _NEW_S)  # if it fails, the next one that has to read it says so
        if read.lag_s is None:
            return read
        passed = Decimal(self._clock() - read.asked_s).quantize(_MILLI)
        return replace(read, lag_s=max(Decimal(0), read.lag_s + passed))

    def _anew(self, seconds: float) -> Complete:
        """Reads it unless another thread did within so many seconds. Blocks."""
        with self._reading:
            now = self._clock()
            if self._read is not None and now - self._read.asked_s <= seconds:
                return self._read
            found, until, lag_s = self._store.query(_PROGRESS, {"topic": self._topic}).rows[0]
            if found < self._partitions:
                self._read = None  # who asks next may be the first to be promised something
                return Complete(now)
            self._read = read = Complete(now, until, Decimal(lag_s))
            return read
