"""Ports of the embedded stack: remembered ones while they are free, else new ones."""

import random
import socket

_FIRST, _LAST = 20_000, 32_000
"""Below the range that operating systems take for outgoing connections, so that a remembered port stays free."""

_TRIES = 200


class PortTakenError(Exception):
    """A port that was asked for is in use. The message names it and what to do."""


def choose(name: str, *, wanted: int | None, remembered: int | None, taken: set[int]) -> int:
    """A port for ``name``: exactly ``wanted`` if given, else the remembered one, else a free one; added to ``taken``.

    Raises PortTakenError when ``wanted`` is in use; a remembered port in use gives way to a new one.
    """
    if wanted:
        if wanted in taken or not is_free(wanted):
            raise PortTakenError(
                f"port {wanted} ({name}) is taken: stop what listens there, choose another one, or leave it out"
            )
        port = wanted
    elif remembered and remembered not in taken and is_free(remembered):
        port = remembered
    else:
        port = _free(taken)
    taken.add(port)
    return port


def is_free(port: int) -> bool:
    """Whether one could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free(taken: set[int]) -> int:
    for _ in range(_TRIES):
        port = random.randrange(_FIRST, _LAST)  # noqa: S311 - no secret
        if port not in taken and is_free(port):
            return port
    raise PortTakenError(f"no free port between {_FIRST} and {_LAST}: give one explicitly")
