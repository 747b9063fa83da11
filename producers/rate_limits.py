"""How many events a second each API key may send: a token bucket for each, in the memory of one process.

Rules: what is limited are events, whatever the door and however many in a request. A request is taken whole or refused
whole, before anything is published. One of more events than the burst is taken when the bucket is full, and is paid
off afterwards, so that no request is refused for ever. Each process of the API counts for itself.

Own code, since libraries (limits, pyrate-limiter, throttled-py) refuse for ever what is larger than the burst, and
keep a list of hits or a lock where two numbers do. No lock: one event loop calls.
"""

import math
from collections.abc import Callable
from typing import Final

from pipeline.api_keys import Principal
from producers.problems import Problem

BURST_S: Final = 10  # seconds' worth of events, unless the key has a burst of its own
_ROUNDING: Final = 1e-6  # who has waited as told is not told to wait again
_BUCKETS_MAX: Final = 10_000  # then full ones are dropped; a full bucket is as good as none


class _Bucket:
    """`tokens` at the instant `at_s`; below 0 while something large is paid off."""

    __slots__ = ("at_s", "burst", "per_s", "tokens")

    def __init__(self, per_s: int, burst: int, at_s: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self.tokens = float(burst)
        self.at_s = at_s

    def at(self, now_s: float) -> float:
        """Tokens now."""
        return min(self.burst, self.tokens + (now_s - self.at_s) * self.per_s)


class RateLimits:
    """The buckets of one process. `clock_s` ascends; `default_events_per_s` is for keys that say nothing, 0: none."""

    def __init__(self, clock_s: Callable[[], float], *, default_events_per_s: int = 0) -> None:
        self._clock_s = clock_s
        self._default = default_events_per_s
        self._buckets: dict[str, _Bucket] = {}

    def take(self, principal: Principal, events: int) -> None:
        """Counts so many events of a key, or raises Problem 429 with Retry-After and counts none."""
        per_s = self._default if principal.events_per_s is None else principal.events_per_s
        if not per_s:
            return
        burst = principal.burst or per_s * BURST_S
        now_s = self._clock_s()
        bucket = self._buckets.get(principal.key)
        if bucket is None or (bucket.per_s, bucket.burst) != (per_s, burst):
            bucket = self._new(principal.key, _Bucket(per_s, burst, now_s))
        tokens = bucket.at(now_s)
        wanted = min(events, burst)
        if tokens + _ROUNDING < wanted:
            wait_s = max(1, math.ceil((wanted - tokens) / per_s))
            told = f"the key ending in {principal.hint} may send {per_s} events a second; send them again in {wait_s} s"
            raise Problem(429, "rate_limited", told, headers={"Retry-After": str(wait_s)})
        bucket.tokens = tokens - events
        bucket.at_s = now_s

    def _new(self, key: str, bucket: _Bucket) -> _Bucket:
        if len(self._buckets) >= _BUCKETS_MAX:
            kept = [(name, old) for name, old in self._buckets.items() if old.at(bucket.at_s) < old.burst]
            self._buckets = dict(kept)
        self._buckets[key] = bucket
        return bucket
