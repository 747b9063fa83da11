"""Serving the API with Granian: HTTP/1.1, as many processes as the settings say.

Rules: each process builds the application for itself, so that clients of the log live in the event loop that uses
them. A process keeps at most `CONNECTIONS_MAX` connections; more wait in the socket's queue. A connection has 30 s for
the headers of its next request, idle time included, and little of it is buffered; bodies are `producers.body_limits`'.
HTTP/2 is not spoken: Granian has no time-out for a connection that has not said which of the two it wants, so that a
few thousand silent ones would take every place. A proxy in front speaks it to clients.
"""

import resource
import socket
from pathlib import Path
from typing import Final

import structlog
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from producers.body_limits import CONNECTIONS_MAX

_log = structlog.get_logger(__name__)
_BACKLOG: Final = 2048
_FILES_SPARE: Final = 512  # beside the connections: the broker's, the store's, libraries
_HEADER_MS: Final = 30_000
_BUFFER_BYTES: Final = 64 << 10  # of a connection, unread; headers must fit
_HTTP1: Final = HTTP1Settings(header_read_timeout=_HEADER_MS, max_buffer_size=_BUFFER_BYTES)


def serve(target: str, *, host: str, port: int, workers: int = 1, ready_file: Path | None = None) -> None:
    """Serves until the process gets SIGINT or SIGTERM. Blocks.

    `target`: `module:function` that returns the application. `port` 0 takes a free one. `ready_file` gets
    `HOST:PORT` just before the processes start. Raises OSError when the address is taken.
    """
    _allow_files(CONNECTIONS_MAX + _FILES_SPARE)
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
        backpressure=CONNECTIONS_MAX,  # Granian counts connections, not requests
        backlog=_BACKLOG,
        http1_settings=_HTTP1,
        http=HTTPModes.http1,
        log_level=LogLevels.warning,
        respawn_failed_workers=workers > 1,
        websockets=False,
    ).serve()


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _allow_files(number: int) -> None:
    """As many open files as the connections need, if the system grants them; its default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        _log.warning("few_open_files", limit=hard, wanted=number, do="raise the hard limit of open files (ulimit -Hn)")
        number = hard
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
