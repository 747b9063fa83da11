"""Ids for events that came without one: UUID version 7 (RFC 9562), so that they sort by time."""

import os
import time
import uuid


def new_transaction_id() -> str:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then random bits. Reads the clock and the system's randomness."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    low, middle = random & (1 << 62) - 1, random >> 68
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | middle << 64 | 0b10 << 62 | low
    return str(uuid.UUID(int=value))
