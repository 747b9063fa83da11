"""The demo says no when a number is wrong: it is run against a store in which one row was altered."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from running_stack import RunningStack, Tenant

_DEMO = Path(__file__).with_name("demo.py")


def _demo(stack: RunningStack, tenant: Tenant, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo on the session's stack, for an account of its own."""
    of = ["--home", str(stack.home), "--account", tenant.account, "--key", tenant.key]
    return subprocess.run(
        [sys.executable, str(_DEMO), *of, *more], env=stack.environment(), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def shop(stack: RunningStack) -> Tenant:
    """An account for which the demo has sent everything, and found every number equal."""
    import asyncio

    from running_stack import catalog_of

    async def key() -> str:
        async with catalog_of(stack.settings) as catalog:
            return (await catalog.ensure_first_account("demo")).secret

    tenant = Tenant("demo", asyncio.run(key()))
    done = _demo(stack, tenant)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every number equals what was sent" in done.stdout
    return tenant


def _ask(stack: RunningStack, statement: str) -> str:
    answer = httpx.post(stack.clickhouse, params={"database": "tally", "query": statement}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.text.strip()


@contextmanager
def _altered(stack: RunningStack, table: str, change: str, where: str) -> Iterator[None]:
    """One row of the store says something else for a while; then its partition is what it was, part by part.

    A mutation would do the same to every part of the table, one after the other.
    """
    part, partition = _ask(
        stack, f"SELECT _part, _partition_id FROM {table} WHERE {where} ORDER BY _part LIMIT 1"
    ).split()
    one = f"{where} AND _part = '{part}'"
    assert _ask(stack, f"SELECT count() FROM {table} WHERE {one}") == "1"
    for copy in ("kept", "changed"):
        _ask(stack, f"CREATE TABLE {table}_{copy} AS {table}")
    try:
        _ask(stack, f"ALTER TABLE {table}_kept REPLACE PARTITION ID '{partition}' FROM {table}")
        column, value = change.split(" = ", 1)
        selected = f"* REPLACE (if({one}, {value}, {column}) AS {column})"
        _ask(stack, f"INSERT INTO {table}_changed SELECT {selected} FROM {table} WHERE _partition_id = '{partition}'")
        _ask(stack, f"ALTER TABLE {table} REPLACE PARTITION ID '{partition}' FROM {table}_changed")
        try:
            yield
        finally:
            _ask(stack, f"ALTER TABLE {table} REPLACE PARTITION ID '{partition}' FROM {table}_kept")
    finally:
        for copy in ("kept", "changed"):
            _ask(stack, f"DROP TABLE {table}_{copy}")


def test_one_altered_row_of_a_rollup_is_found(stack: RunningStack, shop: Tenant) -> None:
    """One more in one cell out of hundreds of thousands."""
    key = _ask(
        stack,
        "SELECT client_id, entity_id, day, rev FROM usage_client_day "
        f"WHERE account = '{shop.account}' AND feature = 'insertions' ORDER BY day, client_id LIMIT 1 FORMAT Values",
    )
    cell = f"account = '{shop.account}' AND feature = 'insertions' AND (client_id, entity_id, day, rev) = {key}"
    with _altered(stack, "usage_client_day", "total = total + 1", cell):
        done = _demo(stack, shop, "--check-only")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Lines inserted by each customer (rollups)" in done.stdout
    assert "Audit (ledger), drift: expected 0, found 1" in done.stdout


def test_one_altered_fact_is_found(stack: RunningStack, shop: Tenant) -> None:
    """One event of one customer adds more to its feature than was sent."""
    more = (
        "`meters.quantity` = arrayMap((f, q) -> if(f = 'ai-messages', q + 1, q), `meters.feature`, `meters.quantity`)"
    )
    with _altered(stack, "events", more, f"account = '{shop.account}' AND transaction_id = 'message-3'"):
        done = _demo(stack, shop, "--check-only")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "Usage by feature (facts), ai-messages: expected 12,345,683.700000001, found 12,345,684.700000001"
        in done.stdout
    )
