"""How the process takes memory from the system: what fits a worker, whose blocks are made in one thread and dropped in
another.

glibc gives each thread an arena of its own, up to eight for each core, and what one thread frees in another's arena
stays there; Arrow's own allocator keeps a third share. Two arenas and no allocator beside them hold a worker's memory
down to what it uses (README, "Sizing"), at the same speed: it builds in one thread.
"""

import ctypes
import os
import sys
from typing import Final

import pyarrow as pa

_M_ARENA_MAX: Final = -8  # of malloc.h
_ARENAS: Final = 2


def keep_memory_together() -> None:
    """Call before the first threads. What MALLOC_ARENA_MAX or ARROW_DEFAULT_MEMORY_POOL say goes before it."""
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    if "MALLOC_ARENA_MAX" not in os.environ and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # other C libraries keep no arenas
            mallopt(_M_ARENA_MAX, _ARENAS)
