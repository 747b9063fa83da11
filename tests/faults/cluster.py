"""A cluster of real processes on this machine that faults can be done to: broker, engine, API and workers.

Each part is a process of its own with its log in `logs/`; one thread of the harness starts them, and starts again what
died. Rules: a part that a fault keeps down stays down until the fault says otherwise; addresses never change.
`Cluster(worker_kafka=..., worker_clickhouse=...)` puts something of the caller's, such as a TCP proxy, between workers
and broker or engine.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import psutil
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.local.broker import Listener, broker_part
from pipeline.local.part import Child, Part, tail
from pipeline.local.port import choose
from pipeline.local.stack import engine_part
from pipeline.local.stackfile import port_of

GROUP = "tally-worker"
TOPIC = "tally.events"
TOPIC_REJECTS = "tally.rejects"
PARTITIONS = 6
SETTINGS: Mapping[str, str] = {
    "TALLY_LEASE_S": "8",
    "TALLY_DEADLINE_S": "16",
    "TALLY_SHARED_LEASE_S": "2",
    "TALLY_SHARED_DEADLINE_S": "8",
    "TALLY_CLOCK_SKEW_MAX_S": "1",
    "TALLY_SESSION_TIMEOUT_S": "6",
    "TALLY_PARTITIONS": str(PARTITIONS),
}
"""Short times, so that waits for a lease or a session stay short; 6 s is the least that brokers allow by default."""

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_LOOK_S = 0.02
_PAUSE_S = 0.3  # before a part that died is started again
_T = TypeVar("_T")


class ClusterError(Exception):
    """The cluster does not do what the harness needs; the message says what and where the logs are."""


@dataclass
class _Process:
    """A part under supervision. `env` is what the next start gets on top; `once` only the very next one."""

    part: Part
    wanted: bool = False
    child: Child | None = None
    env: dict[str, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)
    started: int = 0
    deaths: list[int] = field(default_factory=list)
    due: float = 0.0
    stopped: bool = False


class Cluster:
    """Broker, engine, API and `workers` workers in `folder`; a context that ends them all.

    `worker_kafka`: address that the workers get for the broker, which then advertises it on a listener of its own at
    `proxied_kafka`, where whatever listens at `worker_kafka` has to connect to. `worker_clickhouse`: URL that the
    workers get for the engine at `clickhouse`. Either may be a mapping from a worker's number (from 1) to its address.
    `worker_argv`: the program of a worker, given its number; default: `tally worker`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        settings: Mapping[str, str] | None = None,
        worker_kafka: str | Mapping[int, str] | None = None,
        worker_clickhouse: str | Mapping[int, str] | None = None,
        broker_properties: Mapping[str, str] | None = None,
        workers_max: int = 3,
        worker_argv: Callable[[int], Sequence[str]] | None = None,
    ) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.settings = {**SETTINGS, **(settings or {})}
        self.workers = workers
        self.workers_max = workers_max
        taken: set[int] = set()
        ports = {
            name: choose(name, wanted=None, remembered=None, taken=taken)
            for name in (
                "kafka",
                "controller",
                "clickhouse",
                "api",
                *(f"worker-{n}" for n in range(1, workers_max + 1)),
            )
        }
        self.kafka = f"127.0.0.1:{ports['kafka']}"
        self.clickhouse = f"http://127.0.0.1:{ports['clickhouse']}"
        self.api = f"http://127.0.0.1:{ports['api']}"
        self.proxied_kafka: dict[str, str] = {}
        self._worker_kafka = worker_kafka
        self._worker_clickhouse = worker_clickhouse
        self._worker_argv = worker_argv or (lambda _: [sys.executable, "-m", "tally", "worker"])
        self._ports = ports
        self._properties = dict(broker_properties or {})
        self._processes: dict[str, _Process] = {}
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self.hits: Counter[str] = Counter()  # fail points and cuts that were struck, by name
        self._supervisor = threading.Thread(target=self._supervise, name="supervise", daemon=True)
        self._define()

    # -- life

    def __enter__(self) -> Self:
        self._supervisor.start()
        try:
            self.start("kafka", "clickhouse")
            self.tally("migrate")
            self.start("api", *(f"worker-{n}" for n in range(1, self.workers + 1)))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all parts, workers first."""
        with self._lock:
            for process in self._processes.values():
                process.wanted = False
        for name in reversed(self._processes):
            self.cont(name)
            child = self._processes[name].child
            if child is not None:
                child.stop()
        self._ending.set()
        self._supervisor.join()

    # -- what can be done to the parts

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are wanted, in the order of their start."""
        return [name for name, process in self._processes.items() if process.wanted]

    @property
    def running_workers(self) -> list[str]:
        """Names of the workers that are wanted."""
        return [name for name in self.parts if name.startswith("worker")]

    def start(self, *names: str, once: Mapping[str, str] | None = None, ready_s: float = 120.0) -> None:
        """Starts parts that do not run and waits until they are ready (`ready_s` 0: does not wait). `once` goes into
        the environment of this start alone, and not of one after a death."""
        with self._lock:
            for name in names:
                process = self._processes[name]
                process.once = dict(once or {})
                process.due = 0.0
                process.wanted = True
        if ready_s:
            for name in names:
                self.await_ready(name, seconds=ready_s)

    def stop(self, name: str) -> None:
        """Ends a part as an operator does (SIGTERM) and keeps it down."""
        with self._lock:
            process = self._processes[name]
            process.wanted = False
            child = process.child
        self.cont(name)
        if child is not None:
            child.stop()

    def kill(self, name: str, *, down: bool = False) -> None:
        """SIGKILL; the part is started again at once unless `down`."""
        with self._lock:
            process = self._processes[name]
            process.wanted = process.wanted and not down
            child = process.child
            victims = _family(child.pid) if child is not None and child.ended() is None else []
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
        if child is not None:
            until(lambda: child.ended() is not None, seconds=10, why=f"{name} is dead")

    def sigstop(self, name: str) -> None:
        """The part stands still and does not know it."""
        self._signal(name, signal.SIGSTOP)
        self._processes[name].stopped = True

    def cont(self, name: str) -> None:
        """A part that stands still goes on."""
        self._signal(name, signal.SIGCONT)
        self._processes[name].stopped = False

    def arm(self, name: str, setting: str) -> None:
        """Puts a fail point (see pipeline/fail_points.py) into a worker that runs; it strikes once."""
        file = self._fail_point_file(name)
        new = file.with_suffix(".new")
        new.write_text(setting)
        new.replace(file)

    def disarm(self, name: str) -> None:
        """Takes a fail point back, also one that the worker has read and not come by often enough."""
        self.arm(name, "")

    def arm_engine(self, action: str) -> None:
        """A fault for the engine's next insert of a block; see engine_with_faults.py."""
        new = self.engine_arm.with_suffix(".new")
        new.write_text(action)
        new.replace(self.engine_arm)

    def restart_with(self, name: str, once: Mapping[str, str], *, ready: bool = True) -> None:
        """Kills a part and starts it with something more in its environment, this one time."""
        self.kill(name, down=True)
        self.start(name, once=once, ready_s=120.0 if ready else 0)

    def deaths(self, name: str) -> list[int]:
        """Exit codes of all ends of the part, oldest first; -9 is a SIGKILL."""
        return list(self._processes[name].deaths)

    def starts(self, name: str) -> int:
        """How often the part was started."""
        return self._processes[name].started

    def pid(self, name: str) -> int:
        """Process id; 0 when it does not run."""
        child = self._processes[name].child
        return child.pid if child is not None and child.ended() is None else 0

    def standing_still(self, name: str) -> bool:
        """Whether the part's process was stopped by SIGSTOP, by whomever."""
        try:
            return Path(f"/proc/{self.pid(name)}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        except (FileNotFoundError, ProcessLookupError):
            return False

    # -- what can be seen of it

    def ready(self, name: str) -> bool:
        """Whether the part says that it is ready."""
        return bool(self.pid(name)) and self._processes[name].part.is_ready()

    def await_ready(self, name: str, *, seconds: float = 120.0) -> None:
        """Blocks until the part is ready. Raises ClusterError past that."""
        try:
            until(lambda: self.ready(name), seconds=seconds, why=f"{name} is ready")
        except ClusterError as error:
            raise ClusterError(f"{error}; {self.log(name)} ends with:\n{tail(self.log(name))}") from None

    def await_all_ready(self, *, seconds: float = 180.0) -> None:
        """Blocks until all parts that are wanted are ready."""
        for name in self.parts:
            self.await_ready(name, seconds=seconds)

    def log(self, name: str) -> Path:
        """The part's log file."""
        return self.logs / f"{name}.log"

    def worker_dir(self, name: str) -> Path:
        """Folder of a worker's dedup table."""
        return self.folder / name

    def metrics(self, name: str) -> dict[str, float]:
        """The worker's metrics, summed over partitions; empty while it does not answer."""
        try:
            text = httpx.get(f"{self._url(name)}/metrics", timeout=2).text
        except httpx.TransportError:
            return {}
        found: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                labelled, _, value = line.rpartition(" ")
                metric = labelled.split("{")[0]
                found[metric] = found.get(metric, 0.0) + float(value)
        return found

    def readiness(self, name: str) -> dict[str, Any]:
        """What the worker's /readyz says, whatever its status."""
        try:
            found: dict[str, Any] = httpx.get(f"{self._url(name)}/readyz", timeout=2).json()
        except httpx.TransportError as error:
            return {"ready": False, "reasons": [repr(error)]}
        return found

    def ends(self) -> dict[int, int]:
        """End offset of each partition of the events topic. Raises ClusterError while the broker is away."""
        with plain_consumer(self.kafka) as consumer:
            try:
                return {
                    p: consumer.get_watermark_offsets(TopicPartition(TOPIC, p), timeout=5, cached=False)[1]
                    for p in range(PARTITIONS)
                }
            except Exception as error:  # the client has one type for everything
                raise ClusterError(f"the broker tells no offsets: {error}") from error

    def counted(self) -> dict[int, int]:
        """The group's committed offset of each partition. Raises ClusterError while the broker is away."""
        admin = AdminClient({"bootstrap.servers": self.kafka, "log_level": 0})
        asked = ConsumerGroupTopicPartitions(GROUP, [TopicPartition(TOPIC, p) for p in range(PARTITIONS)])
        try:
            found = admin.list_consumer_group_offsets([asked], request_timeout=5)[GROUP].result()
        except Exception as error:
            raise ClusterError(f"the broker tells no commits: {error}") from error
        return {tp.partition: max(tp.offset, 0) for tp in found.topic_partitions}

    def await_counted(self, *, seconds: float) -> dict[int, int]:
        """Blocks until everything in the log is counted, what was sent on included; the ends. Raises ClusterError."""
        deadline = time.monotonic() + seconds
        told = "nothing yet"
        while time.monotonic() < deadline:
            try:
                ends = self.ends()
                counted = self.counted()
                # what a block sends on is in the log before the block's end is committed
                if all(counted[p] >= ends[p] for p in ends) and self.ends() == ends:
                    return ends
                told = ", ".join(f"{p}: {counted[p]} of {ends[p]}" for p in ends if counted[p] < ends[p])
            except ClusterError as error:
                told = str(error)
            time.sleep(0.2)
        reasons = {name: self.readiness(name)["reasons"] for name in self.running_workers}
        raise ClusterError(f"not counted after {seconds:.0f} s: {told}; workers say {reasons}; logs in {self.logs}")

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a process beside the cluster."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
        addresses = {"TALLY_HOME": str(self.folder), "TALLY_KAFKA": self.kafka, "TALLY_CLICKHOUSE": self.clickhouse}
        return {**inherited, **self.settings, **addresses, **(extra or {})}

    def tally(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Runs a `tally` command to its end; its output. Raises ClusterError unless it exits as expected."""
        done = subprocess.run(
            [sys.executable, "-m", "tally", *arguments],
            cwd=_ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in codes:
            raise ClusterError(f"tally {' '.join(arguments)} exited {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    # -- private

    def _define(self) -> None:
        api_env = {"TALLY_API_PORT": str(self._ports["api"])}
        argv = [sys.executable, "-m", "tally", "api"]
        engine = engine_part(self.folder, self._ports["clickhouse"])
        engine_argv = [sys.executable, str(_HERE / "engine_with_faults.py"), *engine.argv[3:]]
        engine_env = {**engine.env, "FAULTS_ARM": str(self.engine_arm)}
        self._processes["kafka"] = _Process(self._broker())
        self._processes["clickhouse"] = _Process(
            Part("clickhouse", engine_argv, engine_env, engine.ready, engine.address)
        )
        self._processes["api"] = _Process(Part("api", argv, self.environment(api_env), f"{self.api}/readyz"))
        for number in range(1, self.workers_max + 1):
            name = f"worker-{number}"
            env = {
                "TALLY_WORKER_DIR": str(self.worker_dir(name)),
                "TALLY_WORKER_PORT": str(self._ports[name]),
                "TALLY_INSTANCE": name,
                "TALLY_FAIL_POINT": f"@{self._fail_point_file(name)}",
                "TALLY_KAFKA": _of(self._worker_kafka, number) or self.kafka,
                "TALLY_CLICKHOUSE": _of(self._worker_clickhouse, number) or self.clickhouse,
            }
            ready = f"{self._url(name)}/readyz"
            self._processes[name] = _Process(Part(name, self._worker_argv(number), self.environment(env), ready))

    @property
    def engine_arm(self) -> Path:
        """A file with what the engine shall do at its next insert; see engine_with_faults.py."""
        return self.folder / "engine-fault"

    def _fail_point_file(self, name: str) -> Path:
        return self.folder / f"{name}.fault"

    def _broker(self) -> Part:
        """The product's broker with a listener more for each address that workers were given instead of its own."""
        given = [self._worker_kafka] if isinstance(self._worker_kafka, str) else (self._worker_kafka or {}).values()
        taken = set(self._ports.values())
        listeners = []
        for number, address in enumerate(sorted(set(given))):
            port = choose("proxied kafka", wanted=None, remembered=None, taken=taken)
            self.proxied_kafka[address] = f"127.0.0.1:{port}"
            listeners.append(Listener(f"PROXIED{number}", port, port_of(address) or 0))
        ports = self._ports["kafka"], self._ports["controller"]
        part = broker_part(self.folder / "kafka", *ports, lambda _: None, listeners)
        if self._properties:
            path = self.folder / "kafka" / "server.properties"
            more = "".join(f"{name}={value}\n" for name, value in self._properties.items())
            path.write_text(path.read_text() + more)  # of a property that is there twice, the later one counts
        return part

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

    def _supervise(self) -> None:
        """Starts what is wanted and does not run. The only thread that starts parts: the kernel ends them with it."""
        while not self._ending.wait(_LOOK_S):
            with self._lock:
                for name, process in self._processes.items():
                    self._look(name, process)

    def _look(self, name: str, process: _Process) -> None:
        child = process.child
        if child is not None and (code := child.ended()) is not None:
            process.deaths.append(code)
            process.child = None
            process.stopped = False
            process.due = time.monotonic() + _PAUSE_S
        if process.child is None and process.wanted and time.monotonic() >= process.due:
            part = Part(name, process.part.argv, {**process.part.env, **process.env, **process.once})
            process.once = {}
            process.child = Child(part, self.log(name))
            process.started += 1


@contextmanager
def plain_consumer(kafka: str) -> Iterator[Consumer]:
    """A Kafka client of another make than the product's, for looking at topics."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "faults-look",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.message.max.bytes": 4 << 20,
            "log_level": 0,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def until(condition: Callable[[], _T], *, seconds: float, why: str, step_s: float = 0.05) -> _T:
    """What `condition` gives once it is true. Raises ClusterError with `why` when that takes too long."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise ClusterError(f"after {seconds:.0f} s still not: {why}")
        time.sleep(step_s)
    return found


def _family(pid: int) -> list[psutil.Process]:
    """A process and its children, which would go on without it: the API's server has some."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _of(given: str | Mapping[int, str] | None, number: int) -> str | None:
    return given if given is None or isinstance(given, str) else given.get(number)
