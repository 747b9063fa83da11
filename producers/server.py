"""Serving the API with Granian: HTTP/1.1 and HTTP/2, as many processes as the settings say.

Rules: each process builds the application for itself, so that clients of the log live in the event loop that uses
them. A process takes at most `_BACKPRESSURE` requests at a time; more wait in the socket's queue.
"""

import socket
from pathlib import Path
from typing import Final

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server import Server

_BACKPRESSURE: Final = 256
_BACKLOG: Final = 1024


def serve(target: str, *, host: str, port: int, workers: int = 1, ready_file: Path | None = None) -> None:
    """Serves until the process gets SIGINT or SIGTERM. Blocks.

    `target`: `module:function` that returns the application. `port` 0 takes a free one. `ready_file` gets
    `HOST:PORT` just before the processes start. Raises OSError when the address is taken.
    """
    port = port or free_port(host)
    if ready_file is not None:
        ready_file.write_text(f"{host}:{port}")
    Server(
        target,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        factory=True,
        workers=workers,
        loop=Loops.uvloop,
        backpressure=_BACKPRESSURE,
        backlog=_BACKLOG,
        log_level=LogLevels.warning,
        respawn_failed_workers=workers > 1,
        websockets=False,
    ).serve()


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
