"""Use cases of the catalog on the log in memory, which keeps the promises of the one on Kafka."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

import pytest

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.api_keys import KeyRefused, make_secret, recognise
from pipeline.catalog import Customer, Feature, Key, encode_customer, holding
from pipeline.catalog_input import AlreadyExists, CatalogError, NotFound, customer_from, dimension_from, feature_from
from pipeline.catalog_service import CatalogService
from pipeline.ports import CatalogUnavailable


class Bench:
    """A service on a log in memory with a clock that tests set."""

    def __init__(self, log: MemoryCatalogLog) -> None:
        self.log = log
        self.now_us = 1_000
        self.client = CatalogClient(log)
        self.service = CatalogService(self.client, clock_us=lambda: self.now_us)

    @property
    def records(self) -> int:
        """How many records the log has."""
        return len(self.log.records)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A started service with an empty catalog."""
    bench = Bench(MemoryCatalogLog())
    await bench.client.start()
    yield bench
    await bench.client.stop()


@pytest.fixture
async def other(bench: Bench) -> AsyncIterator[Bench]:
    """The service of another process on the same log."""
    other = Bench(bench.log)
    await other.client.start()
    yield other
    await other.client.stop()


def seats(**fields: object) -> Feature:
    """A feature as a request makes it."""
    return feature_from("acme", {"id": "seats", **fields})


async def test_a_created_feature_holds_for_all_time(bench: Bench) -> None:
    """Created before the event is sent, it maps the event, whatever the event's timestamp."""
    feature = await bench.service.create_feature(seats())

    assert feature.effective_from_us == 0
    assert bench.service.feature("acme", "seats") == feature


async def test_creating_twice_is_refused_also_across_processes(bench: Bench, other: Bench) -> None:
    """The second process reads to the end before it says that there is none."""
    await bench.service.create_feature(seats())

    with pytest.raises(AlreadyExists) as refused:
        await other.service.create_feature(seats(name="Other"))

    assert [(e.field, e.code) for e in refused.value.errors] == [("id", "exists")]
    assert bench.records == 1


async def test_creating_at_once_in_one_process_makes_one(bench: Bench) -> None:
    """Requests wait for each other."""
    outcomes = await asyncio.gather(*(bench.service.create_feature(seats()) for _ in range(5)), return_exceptions=True)

    assert sorted(type(o).__name__ for o in outcomes) == ["AlreadyExists"] * 4 + ["Feature"]
    assert bench.records == 1


async def test_creating_an_archived_feature_tells_the_way_back(bench: Bench) -> None:
    """The id stays taken: its usage is still there."""
    await bench.service.create_feature(seats(archived=True))

    with pytest.raises(AlreadyExists, match="archived false"):
        await bench.service.create_feature(seats())


async def test_an_update_holds_from_its_time_and_keeps_the_past(bench: Bench) -> None:
    """Events before the change are metered as before, late ones too."""
    first = await bench.service.create_feature(seats())
    bench.now_us = 5_000
    second = await bench.service.update_feature("acme", "seats", {"aggregation": "max"})

    revisions = bench.service.catalog.feature_revisions("acme", "seats")
    assert revisions == (first, second)
    assert second.effective_from_us == 5_000
    assert holding(revisions, 4_999) == first
    assert holding(revisions, 5_000) == second


async def test_an_update_that_changes_nothing_makes_no_revision(bench: Bench) -> None:
    """Repeating a request is harmless."""
    await bench.service.create_feature(seats(unit_label="seat"))
    bench.now_us = 5_000

    same = await bench.service.update_feature("acme", "seats", {"unit_label": "seat"})

    assert same.rev == 0
    assert bench.records == 1


async def test_replacing_gives_what_is_not_said_its_default(bench: Bench) -> None:
    """PUT states the whole feature, PATCH a part of it."""
    await bench.service.create_feature(seats(unit_label="seat", aggregation="unique", unique_key="u"))

    changed = await bench.service.update_feature("acme", "seats", {"name": "Seats"})
    assert (changed.unit_label, changed.unique_key) == ("seat", "u")
    replaced = await bench.service.update_feature("acme", "seats", {"name": "Seats"}, replace=True)
    assert (replaced.unit_label, replaced.aggregation, replaced.unique_key) == ("", "sum", None)


async def test_a_back_dated_update_builds_on_what_held_then(bench: Bench) -> None:
    """A correction of the past does not carry later changes into it, and later ones stand."""
    await bench.service.create_feature(seats())
    bench.now_us = 9_000_000
    head = await bench.service.update_feature("acme", "seats", {"aggregation": "max"})

    past = await bench.service.update_feature(
        "acme", "seats", {"unit_label": "seat", "effective_from": "1970-01-01T00:00:05Z"}
    )

    assert (past.aggregation, past.unit_label) == ("sum", "seat")
    assert bench.service.feature("acme", "seats") == head
    again = await bench.service.update_feature(
        "acme", "seats", {"unit_label": "seat", "effective_from": "1970-01-01T00:00:06Z"}
    )
    assert again == past


async def test_after_a_dated_change_the_next_one_still_becomes_the_head(bench: Bench) -> None:
    """What was written last is what holds in the end, also when the change before lies in the future."""
    await bench.service.create_feature(seats())
    await bench.service.update_feature("acme", "seats", {"name": "Later", "effective_from": "2030-01-01T00:00:00Z"})

    last = await bench.service.update_feature("acme", "seats", {"name": "Last"})

    assert bench.service.feature("acme", "seats") == last


async def test_unknown_objects_are_named(bench: Bench) -> None:
    """404 in every place."""
    for call in (
        bench.service.update_feature("acme", "f", {}),
        bench.service.update_dimension("acme", "d", {}),
        bench.service.update_customer("acme", "c", {}),
        bench.service.revoke_key("acme", "k"),
    ):
        with pytest.raises(NotFound, match="there is no"):
            await call


async def test_the_address_and_the_body_must_agree(bench: Bench) -> None:
    """An id never changes."""
    await bench.service.create_feature(seats())

    with pytest.raises(CatalogError, match="never changes"):
        await bench.service.update_feature("acme", "seats", {"id": "chairs"})


async def test_dimensions_have_revisions_like_features(bench: Bench) -> None:
    """A new type holds from its time on."""
    await bench.service.create_dimension(dimension_from("acme", {"key": "repo", "type": "string"}))
    bench.now_us = 5_000
    changed = await bench.service.update_dimension("acme", "repo", {"type": "number"})

    assert changed.effective_from_us == 5_000
    assert [d.type for d in bench.service.catalog.dimension_revisions("acme", "repo")] == ["string", "number"]
    with pytest.raises(AlreadyExists):
        await bench.service.create_dimension(dimension_from("acme", {"key": "repo", "type": "string"}))


async def test_customers_met_by_a_door_can_still_be_created(bench: Bench) -> None:
    """Autumn's clients make customers by sending events; describing them later is no conflict."""
    await bench.service.ensure_customers("acme", ["c"])
    met = bench.service.customer("acme", "c")
    bench.now_us = 9_000
    await bench.service.ensure_customers("acme", ["c", "c", "d"])
    assert bench.records == 2

    described = await bench.service.create_customer(customer_from("acme", {"id": "c", "name": "Carla"}))

    assert described.created_us == met.created_us == 1_000
    with pytest.raises(AlreadyExists):
        await bench.service.create_customer(customer_from("acme", {"id": "c"}))
    assert [c.name for c in bench.service.catalog.customers("acme")] == ["Carla", ""]


async def test_meeting_a_customer_that_another_process_described_keeps_the_description(
    bench: Bench, other: Bench
) -> None:
    """A door that is behind must not wipe out a name."""
    await bench.log.append(*_described("c", "Carla"))
    await other.service.ensure_customers("acme", ["c"])

    await bench.service.catch_up()
    assert bench.service.customer("acme", "c").name == "Carla"


async def test_a_key_opens_its_account_until_it_is_revoked(bench: Bench) -> None:
    """The secret is in the answer only; the log has its SHA-256."""
    await bench.service.create_account({"id": "acme"})
    created = await bench.service.create_key("acme", {"name": "ci", "scopes": ["ingest"]})

    assert created.secret.startswith("tally_live_")
    assert len(base64.urlsafe_b64decode(created.secret.removeprefix("tally_live_") + "=")) == 32
    assert created.key.hash == hashlib.sha256(created.secret.encode()).hexdigest()
    assert not any(created.secret.encode() in (record.value or b"") for record in bench.log.records)
    principal = bench.service.principal(created.secret)
    assert principal is not None
    assert (principal.account, set(principal.scopes), principal.hint) == ("acme", {"ingest"}, created.secret[-4:])

    bench.now_us = 7_000
    revoked = await bench.service.revoke_key("acme", created.key.hash)
    assert revoked.revoked_us == 7_000
    assert bench.service.principal(created.secret) is None
    assert recognise(bench.service.catalog, created.secret, 7_000) == KeyRefused("revoked")
    assert await bench.service.revoke_key("acme", created.key.hash) == revoked


@pytest.mark.parametrize("secret", ["", "tally_live_x", "x" * 10_000, "\ud800", "é" * 200])
async def test_what_is_no_secret_opens_nothing(bench: Bench, secret: str) -> None:
    """Whatever bytes a header may carry."""
    assert bench.service.principal(secret) is None


def test_a_source_that_gives_too_little_randomness_is_refused() -> None:
    """A guessable key must not come about."""
    with pytest.raises(ValueError, match="randomness"):
        make_secret("live", lambda _: b"short")


async def test_test_mode_is_an_account_of_its_own(bench: Bench) -> None:
    """A live account manages both kinds of keys, the test account only its own."""
    await bench.service.create_account({"id": "acme", "name": "Acme"})
    live = await bench.service.create_key("acme", {"scopes": ["admin"]})
    test = await bench.service.create_key("acme", {"scopes": ["admin"], "mode": "test"})

    assert test.secret.startswith("tally_test_")
    assert (live.key.account, test.key.account) == ("acme", "acme:test")
    assert bench.service.keys("acme") == (live.key, test.key)
    assert bench.service.keys("acme:test") == (test.key,)
    with pytest.raises(NotFound):
        bench.service.key("acme:test", live.key.hash)
    with pytest.raises(CatalogError, match="test keys only"):
        await bench.service.create_key("acme:test", {"scopes": ["admin"], "mode": "live"})
    with pytest.raises(AlreadyExists):
        await bench.service.create_account({"id": "acme"})


async def test_another_accounts_keys_are_invisible(bench: Bench) -> None:
    """Not even their existence is told."""
    for name in ("acme", "rival"):
        await bench.service.create_account({"id": name})
    key = await bench.service.create_key("rival", {"scopes": ["read"]})

    with pytest.raises(NotFound):
        await bench.service.revoke_key("acme", key.key.hash)


async def test_the_first_account_is_made_once(bench: Bench, other: Bench) -> None:
    """A restart that still knows its secret makes no new key; one that lost it, or had it revoked, gets another."""
    first = await bench.service.ensure_first_account("default")
    records = bench.records

    assert await other.service.ensure_first_account("default", first.secret) == first
    assert bench.records == records
    second = await other.service.ensure_first_account("default", "lost")
    assert second.secret != first.secret
    found = recognise(other.service.catalog, second.secret, 0)
    assert isinstance(found, Key)
    assert set(found.scopes) == {"ingest", "read", "admin"}


async def test_while_the_log_is_away_changes_fail_and_look_ups_go_on(bench: Bench) -> None:
    """An outage of Kafka is no 404."""
    await bench.service.create_feature(seats())
    await bench.log.break_off()

    with pytest.raises(CatalogUnavailable):
        await bench.service.update_feature("acme", "seats", {"name": "x"})
    with pytest.raises(CatalogUnavailable):
        await bench.service.ensure_customers("acme", ["c"])
    assert bench.service.feature("acme", "seats").id == "seats"


def _described(customer_id: str, name: str) -> tuple[bytes, bytes]:
    return encode_customer(Customer(account="acme", id=customer_id, name=name))


async def test_a_key_is_rotated_with_an_overlap(bench: Bench) -> None:
    """The successor is like it; the old one is good until its time is over, and no second rotation makes that later."""
    await bench.service.create_account({"id": "acme"})
    fields = {"name": "ci", "scopes": ["ingest"], "mode": "test", "events_per_s": 5, "burst": 7}
    first = await bench.service.create_key("acme", fields)
    bench.now_us = 1_000_000
    second = await bench.service.rotate_key("acme", first.key.hash, {"overlap_s": 10})
    assert second.secret != first.secret
    like = ("account", "name", "scopes", "events_per_s", "burst", "expires_us")
    assert [getattr(second.key, name) for name in like] == [getattr(first.key, name) for name in like]

    await bench.service.rotate_key("acme", first.key.hash, {})
    assert bench.service.key("acme", first.key.hash).expires_us == 11_000_000
    bench.now_us = 10_999_999
    assert bench.service.principal(first.secret) is not None
    bench.now_us = 11_000_000
    assert bench.service.principal(first.secret) is None
    assert recognise(bench.service.catalog, first.secret, bench.now_us) == KeyRefused("expired")
    found = bench.service.principal(second.secret)
    assert found is not None
    assert (found.account, found.key, found.events_per_s, found.burst) == ("acme:test", second.key.hash, 5, 7)
    with pytest.raises(CatalogError, match="good no more"):
        await bench.service.rotate_key("acme", first.key.hash, {})


@pytest.mark.parametrize(
    "fields",
    [
        {"events_per_s": -1},
        {"events_per_s": "5"},
        {"events_per_s": True},
        {"burst": 5},
        {"events_per_s": 0, "burst": 5},
    ],
)
async def test_a_limit_that_cannot_be_is_refused(bench: Bench, fields: dict[str, object]) -> None:
    """No key is made."""
    await bench.service.create_account({"id": "acme"})
    with pytest.raises(CatalogError):
        await bench.service.create_key("acme", {"scopes": ["ingest"], **fields})
    assert bench.service.keys("acme") == ()
