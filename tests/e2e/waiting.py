"""Waiting for the pipeline: until everything sent so far is counted, or a condition holds."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
from running_stack import RunningStack, Tenant

_T = TypeVar("_T")


def until(condition: Callable[[], _T], *, seconds: float = 180.0, why: str) -> _T:
    """What `condition` gives once it is true; fails with `why` when that takes too long."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"after {seconds} s still not: {why}"
        time.sleep(0.1)
    return found


def counted(stack: RunningStack, tenant: Tenant, *, seconds: float = 300.0) -> None:
    """Returns once every event that was acknowledged before this call is counted."""
    sent = datetime.now(UTC) + timedelta(milliseconds=5)

    def complete() -> bool:
        answer = usage(stack, tenant, start="2020-01-01T00:00:00Z")
        until_ = answer["complete_until"]
        return until_ is not None and datetime.fromisoformat(until_) >= sent

    until(complete, seconds=seconds, why=f"complete until {sent}")


def usage(stack: RunningStack, tenant: Tenant, **parameters: str) -> dict[str, Any]:
    """`GET /v1/usage`."""
    answer = httpx.get(f"{stack.api}/v1/usage", params=parameters, headers=tenant.headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def values(answer: dict[str, Any], group: str) -> dict[str, str]:
    """Value by group."""
    return {row["group"][group]: row["value"] for row in answer["data"]}
