"""How the process takes memory from the system, and looks for garbage.

What fits a worker, whose blocks are made in one thread and dropped in another: glibc gives each thread an arena of its
own, up to eight for each core, and what one thread frees in another's arena stays there; Arrow's own allocator keeps a
third share. Two arenas and no allocator beside them hold a worker's memory down to what it uses (README, "Sizing"), at
the same speed: it builds in one thread.
"""

import ctypes
import gc
import os
import sys
from typing import Final

import pyarrow as pa

_M_ARENA_MAX: Final = -8  # of malloc.h
_ARENAS: Final = 2
_GARBAGE_EVERY: Final = 20_000  # containers made and not dropped yet; 700 are the requests of a moment


def keep_memory_together() -> None:
    """Call before the first threads. What MALLOC_ARENA_MAX or ARROW_DEFAULT_MEMORY_POOL say goes before it."""
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    if "MALLOC_ARENA_MAX" not in os.environ and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # other C libraries keep no arenas
            mallopt(_M_ARENA_MAX, _ARENAS)


def load_late_imports() -> None:
    """Call before requests come. Arrow imports pandas, where it is installed, for the first list that it is given: a
    third of a second in which an event loop would stand still."""
    pa.array([])


def look_for_garbage_rarely() -> None:
    """Call once what stays is there: the collector leaves that alone from now on, and looks at the rest after
    `_GARBAGE_EVERY` containers. An API with a hundred requests under way has it look at them, and at all of the
    framework, at every other one otherwise, which takes a third of a request's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_EVERY)
