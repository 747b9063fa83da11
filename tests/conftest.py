"""One stack for the session: broker, engine, worker and API, started by the product's own command.

Tests take an account of their own, or topics and databases of their own, so that they never meet. With `-m docker` the
same tests run on servers in containers.
"""

from collections.abc import Iterator

import hypothesis
import pytest
from docker_stack import docker_chosen, mark_shared, start_docker_stack
from running_stack import RunningStack, Tenant, fresh_tenant, start_stack
from stored_events import emptied, fresh_store

from pipeline.adapters.clickhouse import Store

# no test asserts a time: on a busy machine an example may take what it takes
hypothesis.settings.register_profile(
    "without_deadline", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("without_deadline")

_SHORT_LEASE = {
    "TALLY_LEASE_S": "12",
    "TALLY_DEADLINE_S": "24",
    "TALLY_SHARED_LEASE_S": "2",
    "TALLY_SHARED_DEADLINE_S": "8",
    "TALLY_CLOCK_SKEW_MAX_S": "1",
}


_LONG = ("e2e", "demo", "faults", "docker")  # minutes each: begun first, so that no process is left with one at the end


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Marks the tests that run on containers too; the long ones come first, in whatever order they have among them."""
    mark_shared(config, items)
    yield
    items.sort(key=lambda item: item.path.parent.name not in _LONG)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The session's stack, with the broker's default time-outs and a short lease, so that waits for it stay short."""
    home = tmp_path_factory.mktemp("stack")
    if docker_chosen(request.config):
        with start_docker_stack(home, _SHORT_LEASE) as found:
            yield RunningStack(home, **found)
        return
    running = start_stack(home, _SHORT_LEASE)
    yield running
    running.tally("down")


@pytest.fixture(scope="session")
def kafka_bootstrap(stack: RunningStack) -> str:
    """Address of the broker."""
    return stack.kafka


@pytest.fixture(scope="session")
def clickhouse_url(stack: RunningStack) -> str:
    """Address of the engine's HTTP interface."""
    return stack.clickhouse


@pytest.fixture(scope="session")
def stack_store(stack: RunningStack) -> Iterator[Store]:
    """The stack's own store."""
    store = Store(stack.settings)
    yield store
    store.close()


@pytest.fixture(scope="session")
def migrated_store(clickhouse_url: str) -> Iterator[Store]:
    """A database beside the stack's own, migrated once."""
    store = fresh_store(clickhouse_url)
    yield store
    store.close()


@pytest.fixture
def store(migrated_store: Store) -> Store:
    """The same with no rows in it and no tokens remembered."""
    return emptied(migrated_store)


@pytest.fixture
def tenant(stack: RunningStack) -> Tenant:
    """A fresh account."""
    return fresh_tenant(stack)
