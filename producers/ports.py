"""Ports: what the doors expect of the outside.

Rules: Protocols only, no implementation. The composition root fills them: `pipeline.catalog_service.CatalogService`
satisfies `CatalogPort` as it is. The log's port is `pipeline.ports.LogWriter`.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.api_keys import Principal
from pipeline.catalog import Catalog, Customer, Feature


class CatalogPort(Protocol):
    """The catalog as this process has read it, and the changes that doors make.

    Coroutines raise pipeline.ports.CatalogUnavailable while the log is away, and CatalogError for what cannot be
    stated. The names of changed fields are those of `pipeline.catalog_input`.
    """

    @property
    def catalog(self) -> Catalog:
        """What was read so far; looking up never blocks."""

    def principal(self, secret: str) -> Principal | None:
        """Whom the secret speaks for; None when it is revoked, or unknown so far: catch up, then ask again."""

    async def catch_up(self) -> int:
        """Reads everything acknowledged before the call; the version reached."""

    async def ensure_customers(self, account: str, customer_ids: Iterable[str]) -> None:
        """Makes unknown customers known by their id alone; leaves the others as they are."""

    async def create_customer(self, customer: Customer) -> Customer: ...

    async def update_customer(self, account: str, customer_id: str, fields: Mapping[str, object]) -> Customer: ...

    async def create_feature(self, feature: Feature) -> Feature: ...

    async def update_feature(self, account: str, feature_id: str, fields: Mapping[str, object]) -> Feature: ...
