"""A part of the stack: one child process with its log, its readiness and its end."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]  # publishes no types

LOG_BYTES_MAX = 10 << 20
"""A log is turned over at this size; one older file is kept."""

_TETHER = str(Path(__file__).with_name("tether.py"))
_POLL_S = 0.05
_PROBE_S = 2.0
_TAIL_BYTES = 2000
_log = logging.getLogger(__name__)


class PartError(Exception):
    """A part cannot run. The message says why and what to do next."""


class StartCancelledError(PartError):
    """The start was given up because someone asked to stop."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is to run: a program, and how to know that it is ready.

    ``ready`` is an address that answers 200, or a function that may block for some seconds; None: ready once started.
    ``awaited``: whether the stack is ready only once this part is.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | Callable[[], bool] | None = None
    address: str = ""
    start_s: float = 60.0
    stop_s: float = 30.0
    awaited: bool = True

    def is_ready(self) -> bool:
        """Ask the part now."""
        if isinstance(self.ready, str):
            return _answers_ok(self.ready)
        return self.ready is None or self.ready()


class Child:
    """The running process of a part. Start it from a thread that lives as long as the child should."""

    def __init__(self, part: Part, log_file: Path) -> None:
        self.part = part
        self.log_file = log_file
        command = [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *part.argv]
        self._process = subprocess.Popen(  # noqa: S603 - own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **part.env},
            start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor, which stops the parts in order
        )
        self.started = process_started(self._process.pid)
        if self._process.stdout is not None:
            self._copier = threading.Thread(target=copy_log, args=(self._process.stdout, log_file), daemon=True)
            self._copier.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def await_ready(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Block until the part is ready. Raises PartError when it ends or takes longer than ``start_s``."""
        deadline = time.monotonic() + self.part.start_s
        while not self.part.is_ready():
            if (code := self.ended()) is not None:
                raise PartError(f"{self.part.name} ended with {_outcome(code)} before it was ready; {self._told()}")
            if stopping():
                raise StartCancelledError(f"{self.part.name} was told to stop before it was ready")
            if time.monotonic() > deadline:
                raise PartError(f"{self.part.name} was not ready within {self.part.start_s:g} s; {self._told()}")
            time.sleep(_POLL_S)

    def stop(self) -> int:
        """End it: SIGTERM, and SIGKILL when it does not listen within ``stop_s``. Returns the exit code."""
        if self.ended() is None:
            self._process.terminate()
        try:
            code = self._process.wait(self.part.stop_s)
        except subprocess.TimeoutExpired:
            _log.warning("%s did not stop within %g s: killing it", self.part.name, self.part.stop_s)
            self._process.kill()
            code = self._process.wait()
        self._copier.join(_PROBE_S)
        return code

    def _told(self) -> str:
        self._copier.join(_PROBE_S) if self.ended() is not None else None
        return f"its log ({self.log_file}) ends with:\n{tail(self.log_file)}"


def process_started(pid: int) -> float:
    """When a process started: tells it from a later one with the same id. 0 when there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def same_process(pid: int, started: float) -> psutil.Process | None:
    """The process that had this id and start time, if it still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def end_process(process: psutil.Process, timeout_s: float) -> None:
    """SIGTERM a process that is not our child, SIGKILL it later, and wait for its end."""
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return


def copy_log(source: IO[bytes], path: Path) -> None:
    """Copy a process's output into a log of bounded size, until it ends."""
    with source:
        file = path.open("ab")
        try:
            for line in source:
                if file.tell() + len(line) > LOG_BYTES_MAX:
                    file.close()
                    path.replace(path.with_name(f"{path.name}.1"))
                    file = path.open("ab")
                file.write(line)
                file.flush()
        finally:
            file.close()


def tail(path: Path) -> str:
    """The last lines of a log."""
    try:
        return path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").rstrip() or "(nothing)"
    except FileNotFoundError:
        return "(nothing)"


def _answers_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_S) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _outcome(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
