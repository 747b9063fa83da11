"""Use cases of the catalog: what REST, GraphQL and the command line do with it.

Rules: every change is written to the log and read back before it is answered, so that whoever made it sees it.
Clock, ids and randomness are passed in. Fields come as plain mappings and are checked in one place
(`catalog_input`). All errors are CatalogError (AlreadyExists, NotFound among them) or CatalogUnavailable.
Live and test: creating the account `acme` also creates `acme:test`, an account of its own with mode test; its keys
begin with `tally_test_`. A live account manages the keys of both; the test account only its own.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.api_keys import KeyRefused, Principal, make_secret, principal_of, recognise, secret_hash
from pipeline.catalog import (
    TEST_SUFFIX,
    Account,
    Catalog,
    Customer,
    Dimension,
    Feature,
    Key,
    Scope,
    encode_account,
    encode_customer,
    encode_dimension,
    encode_feature,
    encode_key,
    test_mode_account,
)
from pipeline.catalog_input import (
    AlreadyExists,
    CatalogError,
    KeyRequest,
    NotFound,
    account_from,
    customer_fields,
    customer_from,
    dimension_fields,
    dimension_from,
    feature_fields,
    feature_from,
    key_request_from,
    overlap_from,
)
from pipeline.catalog_proposal import Action, propose_customer, propose_dimension, propose_feature
from pipeline.event import ID_CHARS_MAX, FieldError


class Change(Protocol):
    """One wanted change: `action` is create, update or unchanged; `after` is what shall be."""

    @property
    def action(self) -> Action: ...
    @property
    def after(self) -> Account | Feature | Dimension | Customer: ...


_C = TypeVar("_C", bound=Change)


class CreatedKey(msgspec.Struct, frozen=True):
    """A new API key with its secret, which cannot be had again."""

    key: Key
    secret: str


class FirstAccount(msgspec.Struct, frozen=True):
    """The account of a fresh installation and the secret of an admin key for it."""

    account: Account
    secret: str


class CatalogService:
    """The use cases over one started CatalogClient. One per process and event loop."""

    def __init__(
        self,
        client: CatalogClient,
        *,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._client = client
        self._clock_us = clock_us
        self._new_id = new_id
        self._random_bytes = random_bytes

    @property
    def catalog(self) -> Catalog:
        """What was read so far; look up here, change through the methods."""
        return self._client.catalog

    async def catch_up(self) -> int:
        """Read everything acknowledged before this call; the version reached."""
        return await self._client.catch_up()

    async def apply(self, propose: Callable[[Catalog, int], Sequence[_C]]) -> Sequence[_C]:
        """Write what `propose(catalog, now_us)` wants changed, while nobody else of this process changes anything."""
        async with self._client.changing() as catalog:
            changes = propose(catalog, self._clock_us())
            wanted = [change.after for change in changes if change.action != "unchanged"]
            for account in [after for after in wanted if isinstance(after, Account)]:
                await self._write_accounts(account)
            await self._client.append_all([self._record(after) for after in wanted if not isinstance(after, Account)])
            return changes

    # -- features

    async def create_feature(self, feature: Feature) -> Feature:
        """A new feature; it holds since 1970 unless it says otherwise. Checked once more. Raises AlreadyExists."""
        checked = feature_from(feature.account, feature_fields(feature))
        async with self._client.changing() as catalog:
            _refuse_existing(catalog.feature(checked.account, checked.id), "feature", "id")
            return await self._write_feature(checked)

    async def update_feature(
        self, account: str, feature_id: str, fields: Mapping[str, object], *, replace: bool = False
    ) -> Feature:
        """A revision with the given fields; the others stay, or get defaults with `replace`. No change, no revision.

        Raises NotFound.
        """
        async with self._client.changing() as catalog:
            if catalog.feature(account, feature_id) is None:
                raise _not_found("feature", "id", feature_id)
            given = _named("id", feature_id, fields)
            proposal = propose_feature(catalog, account, given, self._clock_us(), replace=replace)
            return proposal.after if proposal.action == "unchanged" else await self._write_feature(proposal.after)

    def feature(self, account: str, feature_id: str) -> Feature:
        """The head of a feature. Raises NotFound."""
        found = self.catalog.feature(account, feature_id)
        if found is None:
            raise _not_found("feature", "id", feature_id)
        return found

    async def _write_feature(self, feature: Feature) -> Feature:
        """Write a checked revision as it is; the same with its `rev`."""
        rev = await self._client.append(*encode_feature(feature, self._new_id()))
        return msgspec.structs.replace(feature, rev=rev)

    # -- dimensions

    async def create_dimension(self, dimension: Dimension) -> Dimension:
        """A new dimension; it holds since 1970 unless it says otherwise. Checked once more. Raises AlreadyExists."""
        checked = dimension_from(dimension.account, dimension_fields(dimension))
        async with self._client.changing() as catalog:
            _refuse_existing(catalog.dimension(checked.account, checked.key), "dimension", "key")
            return await self._write_dimension(checked)

    async def update_dimension(
        self, account: str, key: str, fields: Mapping[str, object], *, replace: bool = False
    ) -> Dimension:
        """A revision with the given fields, as for features. Raises NotFound."""
        async with self._client.changing() as catalog:
            if catalog.dimension(account, key) is None:
                raise _not_found("dimension", "key", key)
            given = _named("key", key, fields)
            proposal = propose_dimension(catalog, account, given, self._clock_us(), replace=replace)
            return proposal.after if proposal.action == "unchanged" else await self._write_dimension(proposal.after)

    def dimension(self, account: str, key: str) -> Dimension:
        """The head of a dimension. Raises NotFound."""
        found = self.catalog.dimension(account, key)
        if found is None:
            raise _not_found("dimension", "key", key)
        return found

    async def _write_dimension(self, dimension: Dimension) -> Dimension:
        """Write a checked revision as it is; the same with its `rev`."""
        rev = await self._client.append(*encode_dimension(dimension, self._new_id()))
        return msgspec.structs.replace(dimension, rev=rev)

    # -- customers

    async def create_customer(self, customer: Customer) -> Customer:
        """A new customer; one that a door only met so far may be created. Checked once more. Raises AlreadyExists."""
        checked = customer_from(customer.account, customer_fields(customer))
        async with self._client.changing() as catalog:
            before = catalog.customer(checked.account, checked.id)
            if catalog.is_described(checked.account, checked.id):
                _refuse_existing(before, "customer", "id")
            created_us = before.created_us if before else customer.created_us or self._clock_us()
            return await self._write_customer(msgspec.structs.replace(checked, created_us=created_us))

    async def update_customer(
        self, account: str, customer_id: str, fields: Mapping[str, object], *, replace: bool = False
    ) -> Customer:
        """The customer with the given fields; the others stay, or become empty with `replace`. Raises NotFound."""
        async with self._client.changing() as catalog:
            if catalog.customer(account, customer_id) is None:
                raise _not_found("customer", "id", customer_id)
            given = _named("id", customer_id, fields)
            proposal = propose_customer(catalog, account, given, self._clock_us(), replace=replace)
            return proposal.after if proposal.action == "unchanged" else await self._write_customer(proposal.after)

    async def ensure_customers(self, account: str, customer_ids: Iterable[str]) -> None:
        """Make customers that nobody described known, without touching those that are. Cheap where all are known."""
        unknown = [c for c in dict.fromkeys(customer_ids) if self.catalog.customer(account, c) is None]
        for customer_id in unknown:
            if not 1 <= len(customer_id) <= ID_CHARS_MAX:
                raise CatalogError([FieldError("id", "range", f"must have 1 to {ID_CHARS_MAX} characters")])
        now_us = self._clock_us()
        met = [Customer(account=account, id=customer_id, created_us=now_us) for customer_id in unknown]
        await self._client.append_all([encode_customer(customer, seen=True) for customer in met])

    def customer(self, account: str, customer_id: str) -> Customer:
        """The customer. Raises NotFound."""
        found = self.catalog.customer(account, customer_id)
        if found is None:
            raise _not_found("customer", "id", customer_id)
        return found

    async def _write_customer(self, customer: Customer) -> Customer:
        """Write a checked customer as it is; the same with its `rev`."""
        rev = await self._client.append(*encode_customer(customer))
        return msgspec.structs.replace(customer, rev=rev)

    # -- accounts

    async def create_account(self, fields: Mapping[str, object]) -> Account:
        """A live account and its test account beside it. Raises AlreadyExists."""
        account = account_from(fields)
        async with self._client.changing() as catalog:
            if catalog.account(account.id) is not None:
                raise AlreadyExists([FieldError("id", "exists", f"there is an account {account.id!r} already")])
            return await self._write_accounts(account)

    async def ensure_first_account(self, account_id: str, known_secret: str | None = None) -> FirstAccount:
        """The account, created when missing, and an admin secret for it.

        `known_secret` is one handed out before: it is returned when it still opens the account as admin, so that a
        restart makes no new key; otherwise a new key is made.
        """
        async with self._client.changing() as catalog:
            account = catalog.account(account_id)
            if account is None:
                account = await self._write_accounts(account_from({"id": account_id}))
            known = recognise(catalog, known_secret, self._clock_us()) if known_secret else KeyRefused("unknown")
            if known_secret and isinstance(known, Key) and known.account == account_id and "admin" in known.scopes:
                return FirstAccount(account, known_secret)
            every: tuple[Scope, ...] = ("ingest", "read", "admin")
            created = await self._write_key(account, KeyRequest("first key", every, None))
            return FirstAccount(account, created.secret)

    def _record(self, definition: Feature | Dimension | Customer) -> tuple[bytes, bytes]:
        match definition:
            case Feature():
                return encode_feature(definition, self._new_id())
            case Dimension():
                return encode_dimension(definition, self._new_id())
            case Customer():
                return encode_customer(definition)

    async def _write_accounts(self, account: Account) -> Account:
        """The test account first: when the second write fails, trying again still finds no live account."""
        test = Account(id=test_mode_account(account.id), name=f"{account.name} (test)", mode="test")
        if self.catalog.account(test.id) is None:
            await self._client.append(*encode_account(test, self._new_id()))
        rev = await self._client.append(*encode_account(account, self._new_id()))
        return msgspec.structs.replace(account, rev=rev)

    # -- API keys

    async def create_key(self, account: str, fields: Mapping[str, object]) -> CreatedKey:
        """A new key with its secret. A live account may ask for mode `test`; a test account for no other."""
        request = key_request_from(fields)
        async with self._client.changing() as catalog:
            owner = catalog.account(account)
            if owner is None:
                raise _not_found("account", "account", account)
            if request.mode == "test" and owner.mode == "live":
                owner = catalog.account(test_mode_account(account)) or owner
            if request.mode is not None and owner.mode != request.mode:
                raise CatalogError([FieldError("mode", "format", f"account {owner.id!r} has {owner.mode} keys only")])
            return await self._write_key(owner, request)

    def keys(self, account: str) -> tuple[Key, ...]:
        """Keys of the account, revoked ones too; a live account also sees those of its test account."""
        own = self.catalog.keys(account)
        return own if account.endswith(TEST_SUFFIX) else own + self.catalog.keys(test_mode_account(account))

    def key(self, account: str, key_id: str) -> Key:
        """The key with this id, which is its hash. Raises NotFound."""
        found = self.catalog.key(key_id)
        if found is None or found.account not in (account, test_mode_account(account)):
            raise _not_found("key", "id", key_id)
        return found

    async def revoke_key(self, account: str, key_id: str) -> Key:
        """Revoke a key for good; once revoked it stays as it is. Raises NotFound."""
        async with self._client.changing():
            key = self.key(account, key_id)
            if key.revoked_us is not None:
                return key
            revoked = msgspec.structs.replace(key, revoked_us=self._clock_us())
            rev = await self._client.append(*encode_key(revoked))
            return msgspec.structs.replace(revoked, rev=rev)

    async def rotate_key(self, account: str, key_id: str, fields: Mapping[str, object]) -> CreatedKey:
        """A new key like this one, which stays good for `overlap_s` from now, and never longer than it would be.

        The new one is written first: when the second write fails, the old one is good as before. Raises NotFound, and
        CatalogError for a key that is good no more.
        """
        overlap_s = overlap_from(fields)
        async with self._client.changing() as catalog:
            key = self.key(account, key_id)
            now_us = self._clock_us()
            if key.revoked_us is not None or (key.expires_us is not None and key.expires_us <= now_us):
                raise CatalogError([FieldError("id", "revoked", "the key is good no more; make another")])
            owner = catalog.account(key.account)
            if owner is None:
                raise _not_found("account", "account", key.account)
            created = await self._write_key(owner, KeyRequest(key.name, key.scopes, None, key.events_per_s, key.burst))
            over_us = now_us + overlap_s * 1_000_000
            expires_us = over_us if key.expires_us is None else min(key.expires_us, over_us)
            await self._client.append(*encode_key(msgspec.structs.replace(key, expires_us=expires_us)))
            return created

    def principal(self, secret: str) -> Principal | None:
        """Whom the secret speaks for; None when it is revoked or over, or unknown so far: catch up, then ask again."""
        found = recognise(self.catalog, secret, self._clock_us())
        return principal_of(found) if isinstance(found, Key) else None

    async def _write_key(self, account: Account, request: KeyRequest) -> CreatedKey:
        secret = make_secret(account.mode, self._random_bytes)
        key = Key(
            hash=secret_hash(secret),
            account=account.id,
            name=request.name,
            scopes=request.scopes,
            hint=secret[-4:],
            created_us=self._clock_us(),
            events_per_s=request.events_per_s,
            burst=request.burst,
        )
        rev = await self._client.append(*encode_key(key))
        return CreatedKey(msgspec.structs.replace(key, rev=rev), secret)


def _named(field: str, name: str, fields: Mapping[str, object]) -> dict[str, object]:
    """The fields with the name that the address says; a body that says another one is refused."""
    if fields.get(field, name) != name:
        raise CatalogError([FieldError(field, "immutable", f"never changes; it is {name!r}")])
    return {**fields, field: name}


def _refuse_existing(before: Feature | Dimension | Customer | None, kind: str, field: str) -> None:
    if before is not None:
        archived = not isinstance(before, Customer) and before.archived
        hint = "it is archived: update it with archived false" if archived else "update it instead"
        raise AlreadyExists([FieldError(field, "exists", f"there is a {kind} with this {field} already; {hint}")])


def _not_found(kind: str, field: str, name: str) -> NotFound:
    return NotFound([FieldError(field, "not_found", f"there is no {kind} {name!r}")])
