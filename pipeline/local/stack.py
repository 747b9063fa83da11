"""The embedded stack: broker, engine, worker and API as child processes under one supervisor.

Order: broker and engine, then what the caller has prepared (tables, topics, first key), then the caller's
own parts one after another; the other way round when it stops. A part that ends is started again
with growing waits. Rules: one stack on a data folder (lock); every process is recorded in stack.json, so that what a
killed supervisor leaves is found; on Linux the kernel ends its parts as well.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from pipeline.local.broker import Listener, broker_part
from pipeline.local.part import (
    LOG_BYTES_MAX,
    Child,
    Part,
    StartCancelledError,
    end_process,
    process_started,
    same_process,
    tail,
)
from pipeline.local.port import choose
from pipeline.local.stackfile import FolderLock, PartRecord, ProcessId, StackError, StackFile, StackRecord, port_of

DISK_FREE_MIN_BYTES = 1 << 30
"""The engine and the broker both stop taking data when a disk is full: do not even start near that."""

RESTART_WAITS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 60.0
"""A part that ran so long starts again with the shortest wait."""

ALLOCATOR_OPTIONS = "JE_MALLOC_CONF"
"""Variable with options of the engine's allocator, instead of those below."""

_LOOK_S = 0.2
_PROBE_EVERY_S = 5.0
_ORPHAN_S = 30.0
# What is free goes back to the system after a minute instead of seconds: inserts come several times a second, and
# touch a third of the new pages then, which a virtual machine has to find first.
_ALLOCATOR_OPTIONS = "oversize_threshold:0,dirty_decay_ms:60000"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports that were asked for; None: the one of last time, or a free one."""

    kafka: int | None = None
    kafka_controller: int | None = None
    clickhouse: int | None = None
    api: int | None = None
    worker: int | None = None
    auditor: int | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens: Kafka as host:port, ClickHouse and API as URLs, all on 127.0.0.1."""

    home: Path
    kafka: str
    clickhouse: str
    api: str
    api_port: int
    worker_port: int
    auditor_port: int


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part as it is now. ``ready`` is at most some seconds old."""

    name: str
    state: Literal["up", "starting", "down"]
    pid: int
    restarts: int
    address: str
    ready: bool
    log: str
    awaited: bool = True


@dataclass(frozen=True, slots=True)
class StackStatus:
    """``running``: a supervisor is alive. ``state``: what stack.json says about the whole."""

    running: bool
    state: str
    error: str
    pid: int
    parts: tuple[PartStatus, ...]


PartsOf = Callable[[Addresses], Sequence[Part]]
Prepare = Callable[[Addresses], Mapping[str, object] | None]
Say = Callable[[str], None]


class Stack:
    """The stack of one data folder.

    ``parts`` gives the caller's own parts in their order; ``prepare`` runs once broker and engine are ready, and what
    it returns is added to stack.json. ``say`` hears what a person should know.
    """

    def __init__(
        self,
        home: Path,
        *,
        parts: PartsOf = lambda _: (),
        prepare: Prepare = lambda _: None,
        ports: Ports | None = None,
        say: Say = _log.info,
        disk_free_min_bytes: int = DISK_FREE_MIN_BYTES,
    ) -> None:
        self.home = home.expanduser().absolute()
        self._parts = parts
        self._prepare = prepare
        self._ports = ports or Ports()
        self._say = say
        self._disk_free_min_bytes = disk_free_min_bytes
        self._file = StackFile(self.home)

    def up(self, *, detach: bool = False, argv: Sequence[str] = (), timeout_s: float = 600.0) -> StackRecord:
        """Run the stack until a signal or `down` comes; with ``detach``, return once all of it is ready.

        For ``detach``, ``argv`` is a command that runs this same stack in the foreground. Raises StackError, PartError,
        PortTakenError and JarError.
        """
        if detach:
            return self._up_detached(argv, timeout_s)
        with Supervisor(self.home, self._ports, self._say, self._disk_free_min_bytes) as supervisor:
            stopping = _stop_on_signals()
            with suppress(StartCancelledError):
                supervisor.start_services(stopping)
                supervisor.start_parts(self._parts, self._prepare, stopping)
                supervisor.watch(stopping)
        return supervisor.record

    def down(self, *, timeout_s: float = 120.0) -> bool:
        """Stop everything and wait for its end; False when nothing ran. Raises StackError when it does not end."""
        record = self._file.read()
        supervisor = record.supervisor and same_process(record.supervisor.pid, record.supervisor.started)
        if supervisor:
            end_process(supervisor, timeout_s)
        left = end_orphans(self._file.read(), self._say)
        if left or record.state in {"starting", "ready", "stopping"}:
            self._file.write(stopped(self._file.read()), self._extra())
        return bool(supervisor) or left

    def status(self) -> StackStatus:
        """What runs now. Does not block."""
        record = self._file.read()
        ended = record.state in {"stopped", "failed"}
        supervisor = record.supervisor and same_process(record.supervisor.pid, record.supervisor.started)
        alive = bool(supervisor) and not ended
        parts = tuple(_part_status(name, part) for name, part in record.parts.items())
        state = record.state if alive or ended else "supervisor is gone"
        pid = record.supervisor.pid if record.supervisor and alive else 0
        return StackStatus(alive, state, record.error, pid, parts)

    def _extra(self) -> dict[str, object]:
        return _extra_entries(self._file)

    def _up_detached(self, argv: Sequence[str], timeout_s: float) -> StackRecord:
        if not argv:
            raise StackError("no command to run the stack in the background was given")
        logs = _folder(self.home / "logs")
        lock = FolderLock(self.home)
        lock.take()  # says at once who has it; the background process takes it for itself
        lock.release()
        log_file = logs / "supervisor.log"
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
            log_file.replace(logs / "supervisor.log.1")
        with log_file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - own command
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self._await_detached(process, log_file, timeout_s)

    def _await_detached(self, process: "subprocess.Popen[bytes]", log_file: Path, timeout_s: float) -> StackRecord:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            record = self._file.read()
            ours = record.supervisor is not None and record.supervisor.pid == process.pid
            if ours and record.state == "ready":
                process.returncode = 0  # it lives on by itself: no warning about a child that was not waited for
                return record
            if ended:
                raise StackError(
                    record.error if ours and record.error else f"the stack did not start:\n{tail(log_file)}"
                )
            time.sleep(_LOOK_S / 4)
        process.terminate()
        process.wait()
        raise StackError(f"the stack was not ready within {timeout_s:g} s; its log ({log_file}):\n{tail(log_file)}")


@dataclass(slots=True)
class _Watched:
    """A part under supervision."""

    part: Part
    child: Child
    state: Literal["starting", "up", "down"] = "starting"
    restarts: int = 0
    in_a_row: int = 0
    since: float = field(default_factory=time.monotonic)
    due: float = 0.0
    probed: float = 0.0


class Supervisor:
    """Starts, watches and stops the parts of one data folder; a context that stops them all at its end.

    To be used from one thread, which must live as long as the parts: the kernel ends them with it.
    """

    def __init__(
        self,
        home: Path,
        ports: Ports,
        say: Say,
        disk_free_min_bytes: int = DISK_FREE_MIN_BYTES,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.home = home
        self._listeners = listeners
        self.record = StackRecord()
        self.addresses: Addresses
        self._ports = ports
        self._say = say
        self._disk_free_min_bytes = disk_free_min_bytes
        self._file = StackFile(home)
        self._lock = FolderLock(_folder(home))
        self._extra: dict[str, object] = {}
        self._watched: dict[str, _Watched] = {}
        self._taken: set[int] = set()

    def __enter__(self) -> Self:
        self._lock.take()
        with ExitStack() as undo:
            undo.callback(self._lock.release)
            before = self._file.read()
            self._extra = _extra_entries(self._file)
            end_orphans(before, self._say)
            _check_disk(self.home, self._disk_free_min_bytes)
            me = ProcessId(pid=os.getpid(), started=process_started(os.getpid()))
            self.record = msgspec.structs.replace(stopped(before), state="starting", supervisor=me)
            self._choose_ports()
            self._write()
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._state("stopping")
            for watched in reversed(self._watched.values()):
                watched.child.stop()
                watched.state = "down"
                self._write()
            failed = error is not None and not isinstance(error, KeyboardInterrupt)
            self._state("failed" if failed else "stopped", str(error) if failed else "")
        finally:
            self._lock.release()

    def start_services(self, stopping: threading.Event) -> None:
        """Start broker and engine and wait until both are ready."""
        logs = _folder(self.home / "logs")
        engine = engine_part(self.home, port_of(self.record.clickhouse) or 0)
        self._start(engine, logs)
        controller_port = port_of(self.record.kafka_controller) or 0
        kafka_port = port_of(self.record.kafka) or 0
        broker = broker_part(self.home / "kafka", kafka_port, controller_port, self._say, self._listeners)
        self._start(broker, logs)
        for name in (engine.name, "kafka"):
            self._await(name, stopping)

    def start_parts(self, parts: PartsOf, prepare: Prepare, stopping: threading.Event) -> None:
        """Prepare, then start the caller's parts one after another; the stack is ready after that.

        Parts that are not awaited start last and become ready while the stack is already used.
        """
        self._extra.update(prepare(self.addresses) or {})
        for part in sorted(parts(self.addresses), key=lambda part: not part.awaited):
            self._start(part, self.home / "logs")
            if part.awaited:
                self._await(part.name, stopping)
        self._state("ready")
        self._say(f"ready: api {self.record.api}, kafka {self.record.kafka}, clickhouse {self.record.clickhouse}")

    def watch(self, stopping: threading.Event) -> None:
        """Start parts again when they end, until ``stopping`` is set."""
        while not stopping.wait(_LOOK_S):
            for watched in self._watched.values():
                self._look(watched)

    def pids(self) -> dict[str, int]:
        """Process ids of the parts."""
        return {name: watched.child.pid for name, watched in self._watched.items()}

    def restart(self, name: str) -> None:
        """Start a part again that has ended (or was killed), and wait until it is ready."""
        watched = self._watched[name]
        watched.child.stop()
        self._again(watched)
        self._await(name, threading.Event())

    def _choose_ports(self) -> None:
        asked, before, taken = self._ports, self.record, self._taken
        kafka = choose("TALLY_KAFKA", wanted=asked.kafka, remembered=port_of(before.kafka), taken=taken)
        controller = choose(
            "kafka controller", wanted=asked.kafka_controller, remembered=port_of(before.kafka_controller), taken=taken
        )
        engine = choose("TALLY_CLICKHOUSE", wanted=asked.clickhouse, remembered=port_of(before.clickhouse), taken=taken)
        api = choose("TALLY_API_PORT", wanted=asked.api, remembered=port_of(before.api), taken=taken)
        worker = choose("TALLY_WORKER_PORT", wanted=asked.worker, remembered=before.worker_port or None, taken=taken)
        auditor = choose(
            "TALLY_AUDITOR_PORT", wanted=asked.auditor, remembered=before.auditor_port or None, taken=taken
        )
        self.record = msgspec.structs.replace(
            before,
            kafka=f"127.0.0.1:{kafka}",
            kafka_controller=f"127.0.0.1:{controller}",
            clickhouse=f"http://127.0.0.1:{engine}",
            api=f"http://127.0.0.1:{api}",
            worker_port=worker,
            auditor_port=auditor,
        )
        self.addresses = Addresses(
            self.home, self.record.kafka, self.record.clickhouse, self.record.api, api, worker, auditor
        )

    def _start(self, part: Part, logs: Path) -> None:
        self._watched[part.name] = _Watched(part, Child(part, logs / f"{part.name}.log"))
        self._write()

    def _await(self, name: str, stopping: threading.Event) -> None:
        watched = self._watched[name]
        watched.child.await_ready(stopping.is_set)
        watched.state = "up"
        self._write()

    def _look(self, watched: _Watched) -> None:
        now = time.monotonic()
        if watched.due:
            if now >= watched.due:
                self._again(watched)
        elif (code := watched.child.ended()) is not None:
            self._ended(watched, code, now)
        elif watched.state == "starting" or now - watched.probed > _PROBE_EVERY_S:
            watched.probed = now
            state: Literal["up", "starting"] = "up" if watched.part.is_ready() else "starting"
            if state != watched.state:
                watched.state = state
                self._say(f"{watched.part.name} is {'ready' if state == 'up' else 'not ready'}")
                self._write()

    def _ended(self, watched: _Watched, code: int, now: float) -> None:
        watched.in_a_row = 0 if now - watched.since > STEADY_S else watched.in_a_row
        wait_s = RESTART_WAITS_S[min(watched.in_a_row, len(RESTART_WAITS_S) - 1)]
        watched.due = now + wait_s
        watched.state = "down"
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._say(
            f"{watched.part.name} ended with {how} (log: {watched.child.log_file}); starting again in {wait_s:g} s"
        )
        self._write()

    def _again(self, watched: _Watched) -> None:
        watched.child = Child(watched.part, watched.child.log_file)
        watched.restarts += 1
        watched.in_a_row += 1
        watched.due = 0.0
        watched.since = time.monotonic()
        watched.state = "starting"
        self._write()

    def _state(self, state: Literal["ready", "stopping", "stopped", "failed"], error: str = "") -> None:
        supervisor = None if state == "stopped" else self.record.supervisor
        self.record = msgspec.structs.replace(self.record, state=state, error=error, supervisor=supervisor)
        self._write()

    def _write(self) -> None:
        parts = {
            name: PartRecord(
                pid=watched.child.pid,
                started=watched.child.started,
                state=watched.state,
                restarts=watched.restarts,
                address=watched.part.address,
                log=str(watched.child.log_file),
                awaited=watched.part.awaited,
            )
            for name, watched in self._watched.items()
        }
        self.record = msgspec.structs.replace(self.record, parts=parts)
        self._file.write(self.record, self._extra)


class Services:
    """A broker and an engine for tests: `start_services` makes it; a context that stops both at its end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.kafka = supervisor.record.kafka
        self.clickhouse = supervisor.record.clickhouse

    def pids(self) -> dict[str, int]:
        """Process ids by name: ``kafka``, ``clickhouse``."""
        return self._supervisor.pids()

    def kill(self, name: str) -> None:
        """``kill -9`` one of them; it stays down until `restart`."""
        os.kill(self.pids()[name], signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Start one again on the same data and port; blocks until it is ready."""
        self._supervisor.restart(name)

    def stop(self) -> None:
        """Stop both and wait for their end."""
        self._supervisor.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_services(
    home: Path, *, ports: Ports | None = None, say: Say = _log.info, listeners: Sequence[Listener] = ()
) -> Services:
    """Start broker and engine on a data folder, return when both are ready (seconds). Nothing watches them.
    `listeners`: further ones of the broker.

    To be called from the main thread: on Linux the kernel ends both when the calling thread ends.
    Raises StackError, PartError, PortTakenError and JarError.
    """
    supervisor = Supervisor(home.expanduser().absolute(), ports or Ports(), say, listeners=listeners)
    with ExitStack() as undo:
        undo.push(supervisor.__enter__())
        supervisor.start_services(threading.Event())
        undo.pop_all()
    return Services(supervisor)


def engine_part(home: Path, port: int) -> Part:
    """The ClickHouse engine as a part of the stack."""
    argv = [sys.executable, "-m", "pipeline.local.engine", "--path", str(home / "clickhouse"), "--port", str(port)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH", "")) if entry)
    address = f"http://127.0.0.1:{port}"
    allocator = os.environ.get(ALLOCATOR_OPTIONS, _ALLOCATOR_OPTIONS)
    env = {"PYTHONPATH": path, "TZ": "UTC", ALLOCATOR_OPTIONS: allocator}
    return Part("clickhouse", argv, env, f"{address}/ping", address)


def end_orphans(record: StackRecord, say: Say) -> bool:
    """End what a killed supervisor left, last part first; True when there was something."""
    found = False
    for name, part in reversed(record.parts.items()):
        process = same_process(part.pid, part.started)
        if process:
            say(f"ending {name} (process {part.pid}), which an earlier supervisor left behind")
            end_process(process, _ORPHAN_S)
            found = True
    return found


def stopped(record: StackRecord) -> StackRecord:
    """The same addresses with nothing running."""
    return msgspec.structs.replace(record, state="stopped", error="", supervisor=None, parts={})


def _extra_entries(file: StackFile) -> dict[str, object]:
    """What the composition root put into stack.json at an earlier start."""
    if not file.path.exists():
        return {}
    document = msgspec.json.decode(file.path.read_bytes(), type=dict[str, object])
    return {name: value for name, value in document.items() if name not in StackRecord.__struct_fields__}


def _part_status(name: str, part: PartRecord) -> PartStatus:
    alive = same_process(part.pid, part.started) is not None
    state = part.state if alive else "down"
    return PartStatus(
        name, state, part.pid if alive else 0, part.restarts, part.address, state == "up", part.log, part.awaited
    )


def _check_disk(home: Path, free_min_bytes: int) -> None:
    free = shutil.disk_usage(home).free
    if free < free_min_bytes:
        raise StackError(
            f"only {free >> 20} MiB are free on the disk of {home}, {free_min_bytes >> 20} are needed:"
            " free some, or choose another data folder with TALLY_HOME"
        )


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"the data folder {path} cannot be made ({error}): choose another one with TALLY_HOME"
        ) from error
    return path


def _stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
