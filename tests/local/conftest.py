"""One engine and one broker for all tests of this folder; each test names its own tables and topics."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.client import Client
from engine_process import EngineProcess

from pipeline.local.stack import Services, start_services


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Broker and engine, ready."""
    with start_services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="session")
def url(services: Services) -> str:
    """Address of the engine, where a database ``tally`` exists."""
    httpx.post(services.clickhouse, content="CREATE DATABASE IF NOT EXISTS tally").raise_for_status()
    return services.clickhouse


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """An unmodified clickhouse-connect client."""
    connection = clickhouse_connect.get_client(dsn=f"{url}/tally", interface="http")
    yield connection
    connection.close()


@pytest.fixture
def table() -> str:
    """A table name that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Makes engines of the test's own; they end with the test."""
    made: list[EngineProcess] = []

    def make(*options: str) -> EngineProcess:
        made.append(EngineProcess(tmp_path / f"engine{len(made)}", *options))
        return made[-1]

    yield make
    for engine in made:
        if engine.process.poll() is None:
            engine.stop()
