"""The session's stack on servers in containers, for `-m docker`: Kafka, and ClickHouse with Keeper and Replicated
engines. Migrations, worker and API are processes of this checkout, started by the product's own command.

Without Docker, what was asked for fails with the reason; it never skips.
"""

import gc
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from pipeline.local.port import choose

REPOSITORY: Final = Path(__file__).parents[1]
FAMILY: Final = "ReplicatedMergeTree"
#: Tests that kill or look at the parts of `tally up`; everything else that takes the stack runs on servers as well.
_EMBEDDED_ONLY: Final = (
    "tests/local/",
    "tests/demo/",
    "tests/e2e/test_kafka_away.py",
    "tests/e2e/test_kills.py",
    "tests/e2e/test_store_away.py",
)
_TALLY: Final = [sys.executable, "-m", "tally"]
_START_S: Final = 180.0


def docker_chosen(config: pytest.Config) -> bool:
    """Whether this run was asked for tests on containers."""
    expression: str = config.getoption("markexpr")
    return "docker" in expression and "not docker" not in expression


def mark_shared(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-m docker`, the tests that take the stack are tests on containers."""
    if not docker_chosen(config):
        return
    for item in items:
        where = item.path.relative_to(REPOSITORY).as_posix()
        if "stack" in getattr(item, "fixturenames", ()) and not where.startswith(_EMBEDDED_ONLY):
            item.add_marker(pytest.mark.docker)


def compose() -> dict[str, Any]:
    """The project's docker-compose.yml, whose images and server configuration the containers here share."""
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    return found


@contextmanager
def start_docker_stack(home: Path, extra: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """The stack on containers, ready: `api`, `kafka`, `clickhouse`, `worker` and `api_key`. Its addresses are in
    `home`/stack.json, where every `tally` command finds them. The engine family is set for this process too, so that
    stores which tests migrate themselves are replicated."""
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as running, pytest.MonkeyPatch.context() as environment:
        environment.setenv("TALLY_ENGINE_FAMILY", FAMILY)
        kafka = running.enter_context(kafka_server())
        clickhouse, _ = running.enter_context(clickhouse_server())
        taken: set[int] = set()
        api_port, worker_port = (choose(name, wanted=None, remembered=None, taken=taken) for name in ("api", "worker"))
        found = {
            "api": f"http://127.0.0.1:{api_port}",
            "kafka": kafka,
            "clickhouse": clickhouse,
            "worker": f"http://127.0.0.1:{worker_port}",
        }
        (home / "stack.json").write_text(json.dumps({**found, "state": "ready", "worker_port": worker_port}))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
        env = {
            **inherited,
            "TALLY_HOME": str(home),
            "TALLY_ENGINE_FAMILY": FAMILY,
            "TALLY_API_PORT": str(api_port),
            "TALLY_WORKER_PORT": str(worker_port),
            **(extra or {}),
        }
        key = json.loads(_done([*_TALLY, "init"], env))["api_key"]
        for part in ("worker", "api"):
            running.enter_context(_process(part, env, home / f"{part}.log"))
            _until(partial(_answers, f"{found[part]}/readyz"), f"{part} is ready; see {home / part}.log")
        yield {**found, "api_key": key}


@contextmanager
def kafka_server() -> Iterator[str]:
    """A broker in a container; its bootstrap address."""
    service = compose()["services"]["kafka"]
    port = choose("kafka", wanted=None, remembered=None, taken=set())
    environment = {name: value for name, value in service["environment"].items() if "$" not in str(value)}
    environment |= {
        # the address that clients are told must be known before the start: the port is chosen here, not by Docker
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": "INTERNAL://:9092,CONTROLLER://:9093,HOST://:19092",
        "KAFKA_ADVERTISED_LISTENERS": f"INTERNAL://localhost:9092,HOST://127.0.0.1:{port}",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    }
    with _container(service["image"], environment) as container:
        container.with_bind_ports(19092, port)
        container.start()
        ask = ["/opt/kafka/bin/kafka-broker-api-versions.sh", "--bootstrap-server", "localhost:9092"]
        _until(lambda: container.exec(ask).exit_code == 0, "the broker answers")
        yield f"127.0.0.1:{port}"


@contextmanager
def clickhouse_server() -> Iterator[tuple[str, Any]]:
    """A server with its own Keeper in a container: address of its HTTP interface, and the container (of the docker
    package). The user `default` needs no password."""
    found = compose()
    config: str = found["configs"]["clickhouse"]["content"]
    port = choose("clickhouse", wanted=None, remembered=None, taken=set())
    with _container(found["services"]["clickhouse"]["image"], {"CLICKHOUSE_SKIP_USER_SETUP": "1"}) as container:
        # a port of our own choice is the same after the container was killed and started again
        container.with_bind_ports(8123, port)
        container.with_copy_into_container(config.encode(), "/etc/clickhouse-server/config.d/tally.xml")
        container.start()
        address = f"http://127.0.0.1:{port}"
        _until(lambda: _answers(f"{address}/ping"), "ClickHouse answers")
        yield address, container.get_wrapped_container()


def require_docker() -> None:
    """Fails the test, with what to do, unless Docker answers."""
    reason = _docker_reason()
    if reason:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # its client leaves the socket that it could not connect
            gc.collect()
        pytest.fail(f"Docker does not answer ({reason}): start it, or run the tests without `-m docker`", pytrace=False)


def _docker_reason() -> str:
    import docker
    from docker.errors import DockerException  # type: ignore[import-not-found]

    try:
        client = docker.from_env()
    except DockerException as error:
        return str(error)
    client.close()
    return ""


@contextmanager
def _container(image: str, environment: Mapping[str, Any]) -> Iterator[Any]:
    """A container that is not started yet, and its end."""
    require_docker()
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image)
    for name, value in environment.items():
        container.with_env(name, str(value))
    try:
        yield container
    finally:
        container.stop()


@contextmanager
def _process(part: str, env: Mapping[str, str], log: Path) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen([*_TALLY, part], env=dict(env), cwd=REPOSITORY, stdout=output, stderr=output) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _done(command: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(env), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310 - own addresses
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _until(condition: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + _START_S
    while not condition():
        assert time.monotonic() < end, f"after {_START_S} s still not: {why}"
        time.sleep(0.2)
