"""When API keys were last used, to the minute: kept in memory, brought to the store now and then.

Rules: a request costs one entry of a dictionary, never a write. Every `FLUSH_S` what is new goes to the store in one
insert; what a crash loses is at most that. A store that is away delays it: entries are kept, one a key at most.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import structlog

from pipeline.api_keys import Principal
from pipeline.ports import StoreError, StoreUnavailable

FLUSH_S: Final = 30.0
_MINUTE_US: Final = 60_000_000
_SCHEMA: Final = pa.schema([("account", pa.string()), ("hash", pa.string()), ("used", pa.uint32())])
_LAST: Final = """SELECT hash, toUnixTimestamp(max(used)) FROM key_uses WHERE account IN {accounts:Array(String)}
GROUP BY hash"""

_log = structlog.get_logger(__name__)


class UsesStore(Protocol):
    """Where uses are kept. Blocks; called in a thread."""

    def insert_arrow(self, table: str, rows: Any, settings: Mapping[str, Any] | None = None) -> None:
        """See pipeline.adapters.clickhouse."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """See pipeline.adapters.clickhouse."""


class KeyUses:
    """The uses that one process has seen, and those that the store knows. `clock_us`: UTC microseconds since 1970."""

    def __init__(self, store: UsesStore, clock_us: Callable[[], int]) -> None:
        self._store = store
        self._clock_us = clock_us
        self._new: dict[tuple[str, str], int] = {}  # (account, hash) -> when

    def note(self, principal: Principal) -> None:
        """The key was used now."""
        self._new[principal.account, principal.key] = self._clock_us()

    async def last(self, accounts: Sequence[str]) -> dict[str, int]:
        """Hash -> begin of the minute of the last use, of the keys of these accounts that were used at all. What other
        processes saw in the last `FLUSH_S` is not in it. Raises StoreUnavailable, StoreError."""
        answer = await asyncio.to_thread(self._store.query, _LAST, {"accounts": list(accounts)})
        found = {hash_: used_s * 1_000_000 for hash_, used_s in answer.rows}
        for (account, hash_), used_us in self._new.items():
            if account in accounts:
                found[hash_] = max(found.get(hash_, 0), _minute(used_us))
        return found

    async def flush(self) -> None:
        """Brings what is new to the store. Raises StoreUnavailable, StoreError; it is kept then."""
        taken, self._new = self._new, {}
        if not taken:
            return
        rows = [{"account": a, "hash": h, "used": _minute(at) // 1_000_000} for (a, h), at in taken.items()]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        try:
            await asyncio.to_thread(self._store.insert_arrow, "key_uses", table, {"insert_deduplicate": 0})
        except (StoreUnavailable, StoreError):
            self._new = {**taken, **self._new}
            raise

    async def run(self, *, every_s: float = FLUSH_S) -> None:
        """Flushes until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(every_s)
                await self._try_flush()
        finally:
            await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except (StoreUnavailable, StoreError) as error:
            _log.warning("key_uses_behind", keys=len(self._new), reason=str(error))


def _minute(at_us: int) -> int:
    return at_us // _MINUTE_US * _MINUTE_US
