"""What every test of the simulation has."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keeps the sessions' logs to itself."""
    with capture_logs():
        yield
