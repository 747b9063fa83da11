"""The production form: what can be known of it without Docker, and with `-m docker` that it comes up and counts."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
import yaml
from docker_stack import REPOSITORY, compose, require_docker

from pipeline.settings import Settings

COMPOSE = (REPOSITORY / "docker-compose.yml").read_text()
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
OURS = ("init", "worker", "api", "auditor")


def test_every_setting_of_the_containers_exists() -> None:
    """A name that no setting has would do nothing, silently."""
    services = compose()["services"]
    given = {name for service in OURS for name in services[service]["environment"]}
    given |= set(re.findall(r"(TALLY_[A-Z_]+)=", DOCKERFILE))
    known = {f"TALLY_{name.upper()}" for name in Settings.model_fields}
    assert given
    assert given <= known
    of_compose = {"TALLY_IMAGE", "TALLY_WORKERS"}
    assert set(re.findall(r"\$\{(TALLY_[A-Z_]+)", COMPOSE)) <= known | of_compose


def test_images_are_pinned_and_data_is_kept() -> None:
    """No image floats, and what must survive lies in named volumes."""
    found = compose()
    for name, service in found["services"].items():
        if name not in OURS:
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
    kept = {volume.split(":")[0] for name in ("kafka", "clickhouse") for volume in found["services"][name]["volumes"]}
    assert kept <= set(found["volumes"])


def test_workers_can_be_many() -> None:
    """No fixed name, no published port, and a folder of each replica's own."""
    worker = compose()["services"]["worker"]
    assert "container_name" not in worker
    assert "ports" not in worker
    assert worker["volumes"] == ["/var/lib/tally"]
    assert worker["environment"]["TALLY_WORKER_DIR"].startswith("/var/lib/tally/")
    assert "/readyz" in worker["healthcheck"]["test"][-1]


def test_nothing_is_open_to_the_network_and_no_password_is_in_the_file() -> None:
    """Ports are published on this host only; the store's password has no default."""
    found = compose()
    for service in found["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for service in (*OURS, "clickhouse"):
        for name, value in found["services"][service]["environment"].items():
            assert "PASSWORD" not in name or ":?" in value


def test_the_servers_configuration_is_sound() -> None:
    """Well-formed, and all that Replicated engines need: Keeper, macros and the default path."""
    configs = compose()["configs"]
    root = Xml.fromstring(configs["clickhouse"]["content"])  # noqa: S314 - our own file
    keeper, client = root.find("keeper_server/tcp_port"), root.find("zookeeper/node/port")
    assert keeper is not None
    assert client is not None
    assert keeper.text == client.text
    macros = {macro.tag for macro in root.find("macros") or ()}
    paths = (root.findtext("default_replica_path") or "") + (root.findtext("default_replica_name") or "")
    assert macros == set(re.findall(r"\{(\w+)\}", paths)) - {"uuid"}
    jobs = yaml.safe_load(configs["prometheus"]["content"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["worker", "auditor", "clickhouse"]
    assert "$" not in configs["clickhouse"]["content"]


def test_the_image_holds_what_the_build_needs() -> None:
    """Everything the Dockerfile copies is there and not ignored, and it does not run as root."""
    copied = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M) for name in line.split()]
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert f"!{name}" in allowed
    assert re.search(r"^USER (?!root)", DOCKERFILE, re.M)


# ------------------------------------------------------------------------------------------------ with Docker


class _Project:
    """A compose project of the test's own, on ports of its own."""

    def __init__(self) -> None:
        ports = {"KAFKA_PORT": "0", "CLICKHOUSE_PORT": "0", "API_PORT": "0"}
        self._environment = {**os.environ, **ports, "TALLY_CLICKHOUSE_PASSWORD": uuid.uuid4().hex, "TALLY_WORKERS": "2"}
        self._name = f"tally-{uuid.uuid4().hex[:8]}"

    def run(self, *arguments: str) -> str:
        """`docker compose …`; its output."""
        command = ["docker", "compose", "--project-name", self._name, "--ansi", "never", *arguments]
        try:
            done = subprocess.run(
                command, cwd=REPOSITORY, env=self._environment, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            pytest.fail("the command `docker` is missing: install Docker, or run without `-m docker`", pytrace=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    def api(self) -> str:
        """Address of the API."""
        return f"http://{self.run('port', 'api', '8080').strip()}"


@pytest.fixture(scope="module")
def project() -> Iterator[_Project]:
    """The whole of docker-compose.yml, built and healthy."""
    require_docker()
    project = _Project()
    project.run("config", "--quiet")
    try:
        project.run("up", "--build", "--detach", "--wait", "--wait-timeout", "600")
        yield project
    finally:
        project.run("down", "--volumes", "--timeout", "10")


def _ask(address: str, key: str, document: object = None) -> Any:
    body = None if document is None else json.dumps(document).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as answer:  # noqa: S310
        return json.loads(answer.read())


@pytest.mark.docker
def test_events_go_all_the_way_through_containers(project: _Project) -> None:
    """Sent to the API with the key that init printed, counted by one of two workers, read back; a worker is killed."""
    printed = project.run("logs", "--no-log-prefix", "init")
    key = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])["api_key"]
    events = [
        {
            "clientId": "anna",
            "timestamp": "2026-01-05T10:00:00Z",
            "transactionId": f"t{i}",
            "eventName": "call",
            "value": i,
        }
        for i in range(100)
    ]
    api = project.api()
    _ask(f"{api}/v1/events", key, events[:60])
    project.run("kill", "--signal", "KILL", "worker")
    project.run("up", "--detach", "--wait", "--no-recreate", "worker")
    _ask(f"{api}/v1/events", key, events)
    question = f"{api}/v1/usage?event_name=call&start=2026-01-01T00:00:00Z&end=2026-02-01T00:00:00Z"
    end = time.monotonic() + 240
    while not (rows := _ask(question, key)["data"]) or rows[0]["events"] < len(events):
        assert time.monotonic() < end, f"after four minutes only {rows}"
        time.sleep(0.5)
    assert (rows[0]["events"], float(rows[0]["value"])) == (100, 4950.0)
    engines = project.run(
        "exec", "clickhouse", "sh", "-c",
        'clickhouse-client --user "$CLICKHOUSE_USER" --password "$CLICKHOUSE_PASSWORD" --query "SELECT DISTINCT engine'
        " FROM system.tables WHERE database = 'tally' AND engine LIKE '%MergeTree' AND name != 'schema_versions'\"",
    )  # fmt: skip
    assert engines.split()
    assert all(engine.startswith("Replicated") for engine in engines.split())
