"""Serving the API with uvicorn on uvloop: HTTP/1.1, as many processes as the settings say.

Rules: each process builds the application for itself, so that clients of the log live in the event loop that uses
them. What a client may take of a process besides the bodies (`producers.body_limits`) is `producers.connection`'s. A
process that is told to stop takes no new connection, answers what was begun, and ends.
"""

import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import structlog
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn.supervisors import Multiprocess

from producers.body_limits import CONNECTIONS_MAX
from producers.connection import WAITING_MAX, Connections

_log = structlog.get_logger(__name__)
_BACKLOG: Final = 2048
_FILES_SPARE: Final = 512  # beside the connections: the broker's, the store's, libraries


def serve(target: str, *, host: str, port: int, workers: int = 1, ready_file: Path | None = None) -> None:
    """Serves until the process gets SIGINT or SIGTERM. Blocks.

    `target`: `module:function` that returns the application. `port` 0 takes a free one. `ready_file` gets
    `HOST:PORT` just before the processes start. Raises OSError when the address is taken.
    """
    _allow_files(CONNECTIONS_MAX + WAITING_MAX + _FILES_SPARE)
    config = Config(
        target,
        factory=True,
        interface="asgi3",
        http=cast("Any", Connections()),  # called as the class of a protocol would be
        loop="uvloop",
        ws="none",
        lifespan="on",
        workers=workers,
        timeout_worker_healthcheck=30,
        backlog=_BACKLOG,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    with _listening(host, port) as listener:
        if ready_file is not None:
            ready_file.write_text(f"{host}:{listener.getsockname()[1]}")
        if workers > 1:
            Multiprocess(config, [listener]).run()
            return
        with suppress(KeyboardInterrupt):
            _Server(config).run([listener])


class _Server(Server):
    """A signal that ends it is no failure. While nothing is served yet it ends at once: the application may be waiting
    for its log."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn, which would raise the signal once more."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        super().handle_exit(sig, frame)
        if not self.started:
            logging.getLogger("uvicorn.error").disabled = True  # it would show where it was interrupted
            raise KeyboardInterrupt


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # now: who comes before the application is built waits
    except OSError:
        listener.close()
        raise
    return listener


def _allow_files(number: int) -> None:
    """As many open files as the connections need, if the system grants them; its default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        _log.warning("few_open_files", limit=hard, wanted=number, do="raise the hard limit of open files (ulimit -Hn)")
        number = hard
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
