"""The catalog's mirror in the store, so that SQL can join names, revisions and customers.

Rules: the topic is the truth; the mirror follows it and may be written again from the beginning at any time: every
row carries its record's offset and the tables keep the latest row of each key. `catalog_version` is written after
all rows up to that version. Secrets are not in the catalog, so none can get here. Several workers may mirror the
same catalog at once. A store that is away delays the mirror and nothing else.
"""

import asyncio
from typing import Any, Final

import msgspec
import pyarrow as pa
import structlog

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.catalog import EMPTY_VERSION, Account, Catalog, Customer, Definition, Dimension, Feature, Key, Removed
from pipeline.ports import MirrorStore, StoreError, StoreUnavailable

ROWS_AT_ONCE_MAX: Final = 50_000
_GATHER_S: Final = 1.0  # changes of one second go together: a burst of new customers is one part, not thousands
_RETRY_FIRST_S: Final = 1.0
_RETRY_MAX_S: Final = 30.0
_INSERT_SETTINGS: Final = {"insert_deduplicate": 0}  # rows replace each other by key; a token could drop a rewrite

_INSTANT: Final = pa.timestamp("us", tz="UTC")
_SCHEMAS: Final[dict[str, pa.Schema]] = {
    "accounts": pa.schema([("id", pa.string()), ("name", pa.string()), ("mode", pa.string()), ("rev", pa.uint64())]),
    "keys": pa.schema(
        [
            ("hash", pa.string()),
            ("account", pa.string()),
            ("name", pa.string()),
            ("scopes", pa.list_(pa.string())),
            ("hint", pa.string()),
            ("created", _INSTANT),
            ("revoked", _INSTANT),
            ("expires", _INSTANT),
            ("events_per_s", pa.uint32()),
            ("burst", pa.uint32()),
            ("rev", pa.uint64()),
            ("deleted", pa.uint8()),
        ]
    ),
    "customers": pa.schema(
        [
            ("account", pa.string()),
            ("id", pa.string()),
            ("name", pa.string()),
            ("email", pa.string()),
            ("metadata", pa.string()),
            ("created", _INSTANT),
            ("rev", pa.uint64()),
            ("deleted", pa.uint8()),
        ]
    ),
    "features": pa.schema(
        [
            ("account", pa.string()),
            ("id", pa.string()),
            ("rev", pa.uint64()),
            ("name", pa.string()),
            ("type", pa.string()),
            ("unit_label", pa.string()),
            ("unit_label_plural", pa.string()),
            ("metadata", pa.string()),
            ("event_names", pa.list_(pa.string())),
            ("aggregation", pa.string()),
            ("value_key", pa.string()),
            ("unique_key", pa.string()),
            ("filter", pa.string()),
            ("effective_from", _INSTANT),
            ("archived", pa.uint8()),
        ]
    ),
    "dimensions": pa.schema(
        [
            ("account", pa.string()),
            ("key", pa.string()),
            ("rev", pa.uint64()),
            ("type", pa.string()),
            ("effective_from", _INSTANT),
            ("archived", pa.uint8()),
        ]
    ),
    "catalog_version": pa.schema([("topic", pa.string()), ("version", pa.int64())]),
}

_log = structlog.get_logger(__name__)


def mirror_tables(catalog: Catalog, topic: str, *, after: int = EMPTY_VERSION) -> list[tuple[str, pa.Table]]:
    """What to insert into which table so that a mirror of version `after` becomes one of the catalog's version.

    In the order to insert; `catalog_version` comes last.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _SCHEMAS}
    for definition in catalog.changed_after(after):
        table, row = _row(definition)
        rows[table].append(row)
    rows["catalog_version"].append({"topic": topic, "version": catalog.version})
    return [
        (name, pa.Table.from_pylist(listed[start : start + ROWS_AT_ONCE_MAX], schema=_SCHEMAS[name]))
        for name, listed in rows.items()
        for start in range(0, len(listed), ROWS_AT_ONCE_MAX)
    ]


class CatalogMirror:
    """Keeps the store's mirror in step with a started CatalogClient. One per process."""

    def __init__(self, client: CatalogClient, store: MirrorStore, topic: str) -> None:
        self.version: int | None = None  # of the mirror, as far as this process has written it
        self._client = client
        self._store = store
        self._topic = topic

    async def write(self) -> None:
        """Bring the mirror to the version read so far. Raises StoreUnavailable, StoreError."""
        catalog = self._client.catalog
        version = catalog.version
        tables = mirror_tables(catalog, self._topic, after=EMPTY_VERSION if self.version is None else self.version)
        for name, table in tables:
            await asyncio.to_thread(self._store.insert_arrow, name, table, _INSERT_SETTINGS)
        self.version = version

    async def run(self, *, gather_s: float = _GATHER_S, retry_first_s: float = _RETRY_FIRST_S) -> None:
        """Follow until cancelled. A store that is away or refuses is tried again, at most every 30 seconds.

        Raises CatalogUnavailable when the catalog is not followed any more.
        """
        wait_s = retry_first_s
        while True:
            if self.version is not None:
                await self._client.changed(self.version)
                await asyncio.sleep(gather_s)
            try:
                await self.write()
                wait_s = retry_first_s
            except (StoreUnavailable, StoreError) as error:
                _log.warning("catalog_mirror_behind", version=self.version, reason=str(error), retry_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _RETRY_MAX_S)


def _row(definition: Definition | Removed) -> tuple[str, dict[str, Any]]:  # noqa: PLR0911 - one for each kind
    match definition:
        case Account():
            fields = msgspec.structs.asdict(definition)
            del fields["segment"]  # the doors' affair
            return "accounts", fields
        case Key():
            return "keys", _key_row(definition, deleted=0)
        case Customer():
            return "customers", _customer_row(definition, deleted=0)
        case Feature():
            return "features", _feature_row(definition)
        case Dimension():
            return "dimensions", _revision_row(definition)
        case Removed(kind="customer"):
            gone = Customer(account=definition.account, id=definition.id, rev=definition.rev)
            return "customers", _customer_row(gone, deleted=1)
    removed = Key(
        hash=definition.id, account=definition.account, name="", scopes=(), hint="", created_us=0, rev=definition.rev
    )
    return "keys", _key_row(removed, deleted=1)


def _key_row(key: Key, *, deleted: int) -> dict[str, Any]:
    return {**_renamed(key, created="created_us", revoked="revoked_us", expires="expires_us"), "deleted": deleted}


def _customer_row(customer: Customer, *, deleted: int) -> dict[str, Any]:
    return {**_renamed(customer, created="created_us"), "metadata": _json(customer.metadata), "deleted": deleted}


def _feature_row(feature: Feature) -> dict[str, Any]:
    return {
        **_revision_row(feature),
        "metadata": _json(feature.metadata),
        "value_key": feature.value_key or "",
        "unique_key": feature.unique_key or "",
        "filter": _json(feature.filter),
    }


def _revision_row(revision: Feature | Dimension) -> dict[str, Any]:
    return {**_renamed(revision, effective_from="effective_from_us"), "archived": int(revision.archived)}


def _renamed(definition: Definition, **columns: str) -> dict[str, Any]:
    """The fields by name, and columns whose name leaves out the unit that their type says."""
    fields = msgspec.structs.asdict(definition)
    return {**fields, **{column: fields[field] for column, field in columns.items()}}


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
