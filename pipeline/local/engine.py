"""The process that holds the ClickHouse engine and serves its HTTP protocol on 127.0.0.1.

``python -m pipeline.local.engine --path FOLDER --port PORT``. It ends on SIGTERM or SIGINT: running
statements are let end for a while, then asked to stop, then the engine is closed. A folder that a
killed process left behind is taken over: the engine's lock goes with the process that held it, and tokens of
inserts that it left half done are removed.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # publishes no types

from pipeline.local.gateway import Gateway
from pipeline.local.handle import Engine, EngineError
from pipeline.local.room import RESERVE_BYTES, Room, Watch, put_aside
from pipeline.local.server import Limits, Server
from pipeline.local.tokens import FolderInUseError, settle_tokens

DRAIN_S = 20.0
"""How long running statements may go on after SIGTERM."""

_CANCEL_S = 10.0
_LOOK_S = 1.0
_log = logging.getLogger("engine")


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes. Returns the exit code: 0, or 1 when it could not start or has to start anew."""
    options = _options(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    limits = Limits(body_bytes=options.body_bytes_max, bodies_bytes=2 * options.body_bytes_max)
    try:
        put_aside(options.path)
        settle_tokens(options.path)
        engine = Engine(options.path, memory_bytes_max=options.memory_bytes_max)
    except (EngineError, FolderInUseError, OSError) as error:
        _log.error("the engine cannot use %s: %s; is another one running on it?", options.path, error)
        return 1
    threading.Thread(target=_let_merges_wait, args=(engine,), name="merges", daemon=True).start()
    room = Room(options.path, reserve_bytes=options.reserve_bytes)
    try:
        gateway = Gateway(engine, room, body_bytes_max=limits.body_bytes)
        server = Server(options.port, gateway, limits)
    except OSError as error:
        _log.error("port %d cannot be listened on (%s): choose another one", options.port, error)
        engine.close()
        return 1
    hollow: list[Path] = []

    def end(parts: list[Path]) -> None:
        _log.critical("parts that were never written: %s; ending, to begin without them", ", ".join(map(str, parts)))
        hollow.extend(parts)
        server.stop()

    watch = Watch(options.path, room, merge=engine.merge, hollow=end)
    watch.start()
    _serve(server, gateway, engine, watch)
    return 1 if hollow else 0


def _let_merges_wait(engine: Engine) -> None:
    while not engine.let_merges_wait():
        time.sleep(_LOOK_S)


def memory_default() -> int:
    """Half of the machine's memory, 8 GiB at most: broker, worker and API need theirs."""
    return min(int(psutil.virtual_memory().total) // 2, 8 << 30)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.local.engine", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="data folder")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--body-bytes-max", type=int, default=512 << 20, help="largest body, as sent and decompressed")
    parser.add_argument("--memory-bytes-max", type=int, default=memory_default(), help="memory of all queries together")
    parser.add_argument("--reserve-bytes", type=int, default=RESERVE_BYTES, help="of the disk, never to be filled")
    return parser.parse_args(argv)


def _serve(server: Server, gateway: Gateway, engine: Engine, watch: Watch) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    _log.info("ClickHouse %s listens on http://127.0.0.1:%d", engine.version, server.port)
    server.run()
    _log.info("stopping: waiting for running statements")
    if not server.drain(DRAIN_S):
        _log.warning("statements still run after %g s: cancelling them", DRAIN_S)
        engine.cancel_all()
        server.drain(_CANCEL_S)
    watch.stop()
    gateway.close()
    engine.close()
    _log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
