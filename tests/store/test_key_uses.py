"""The last use of keys: one entry each in memory, brought to the store, kept while that is away."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.adapters.clickhouse import Store
from pipeline.api_keys import Principal
from pipeline.key_uses import KeyUses
from pipeline.ports import StoreUnavailable

_MINUTE_US = 60_000_000
_NOW_US = 1_700_000_040_000_000 // _MINUTE_US * _MINUTE_US


class FailingStore:
    """Loses its server when told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.inserts = 0

    def insert_arrow(self, table: str, rows: Any, settings: Mapping[str, Any] | None = None) -> None:
        """As the store does."""
        if self.away:
            raise StoreUnavailable("switched off")
        self.inserts += 1
        self._store.insert_arrow(table, rows, settings)

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """As the store does."""
        if self.away:
            raise StoreUnavailable("switched off")
        return self._store.query(sql, parameters)


def _key(name: str, account: str = "acme") -> Principal:
    return Principal(account, frozenset(), "", "", name)


async def test_uses_of_several_processes_come_together(store: Store) -> None:
    """The last of them, to the minute, of the accounts asked for; a thousand requests are one row."""
    now_us = _NOW_US
    failing = FailingStore(store)
    one, two = (KeyUses(failing, lambda: now_us) for _ in range(2))
    for _ in range(1000):
        one.note(_key("a"))
    one.note(_key("b", "other"))
    one.note(_key("t", "acme:test"))
    await one.flush()
    await one.flush()
    assert failing.inserts == 1
    now_us += 90_000_000
    two.note(_key("a"))
    assert await one.last(["acme", "acme:test"]) == {"a": _NOW_US, "t": _NOW_US}
    assert await two.last(["acme"]) == {"a": _NOW_US + _MINUTE_US}  # in its memory so far
    await two.flush()
    assert await one.last(["acme"]) == {"a": _NOW_US + _MINUTE_US}


async def test_a_store_that_is_away_delays_them(store: Store) -> None:
    """What was noted meanwhile is newer than what could not be written."""
    now_us = _NOW_US
    failing = FailingStore(store)
    uses = KeyUses(failing, lambda: now_us)
    uses.note(_key("a"))
    failing.away = True
    with pytest.raises(StoreUnavailable):
        await uses.flush()
    now_us += 2 * _MINUTE_US
    uses.note(_key("a"))
    uses.note(_key("b"))
    with pytest.raises(StoreUnavailable):
        await uses.flush()
    failing.away = False
    await uses.flush()
    assert await KeyUses(store, lambda: 0).last(["acme"]) == dict.fromkeys("ab", now_us)
