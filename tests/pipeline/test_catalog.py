"""The catalog's values and how the log makes them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog import (
    Account,
    Applied,
    Catalog,
    Customer,
    Dimension,
    Feature,
    Key,
    Removed,
    Skipped,
    encode_account,
    encode_customer,
    encode_dimension,
    encode_feature,
    encode_key,
)
from pipeline.stages.mapping import Mappers

KEY = Key(hash="ab" * 32, account="acme", name="k", scopes=("read",), hint="wxyz", created_us=5)


def catalog_of(*records: tuple[bytes | None, bytes | None]) -> Catalog:
    """A catalog that has read these records from offset 0 on."""
    catalog = Catalog()
    for offset, (key, value) in enumerate(records):
        catalog.apply(offset, key, value)
    return catalog


def feature(feature_id: str = "f", **fields: object) -> Feature:
    """A feature of the account `acme`."""
    return Feature(account="acme", id=feature_id, name=feature_id, **fields)  # type: ignore[arg-type]


def test_every_kind_of_record_comes_back_as_it_was_written() -> None:
    """Encoding and applying are inverse; `rev` is the offset."""
    account = Account(id="acme", name="Acme", mode="live")
    customer = Customer(account="acme", id="c", name="C", email="c@x", metadata={"a": [1, None]}, created_us=7)
    rich = feature(
        type="BINARY",
        event_names=("a", "b"),
        aggregation="unique",
        unique_key="user.id",
        filter={"plan": ("pro", 1, True)},
        metadata={"x": 1},
        effective_from_us=9,
        archived=True,
    )
    dimension = Dimension(account="acme", key="a.b", type="number")
    catalog = catalog_of(
        encode_account(account, "u"),
        encode_customer(customer),
        encode_feature(rich, "u"),
        encode_dimension(dimension, "u"),
        encode_key(KEY),
    )

    assert catalog.account("acme") == Account(id="acme", name="Acme", mode="live", rev=0)
    assert [d.rev for d in (catalog.customers("acme")[0], catalog.features("acme")[0])] == [1, 2]
    assert catalog.customer("acme", "c") == Customer(
        account="acme", id="c", name="C", email="c@x", metadata={"a": [1, None]}, created_us=7, rev=1
    )
    found = catalog.feature("acme", "f")
    assert found is not None
    assert found.filter == {"plan": ("pro", 1, True)}
    assert [type(v) for v in found.filter["plan"]] == [str, int, bool]
    assert (found.unique_key, found.archived, found.effective_from_us) == ("user.id", True, 9)
    assert catalog.dimension("acme", "a.b") == Dimension(account="acme", key="a.b", type="number", rev=3)
    assert catalog.key(KEY.hash) is not None
    assert catalog.version == 4


def test_the_value_in_the_log_leaves_the_revision_to_the_offset() -> None:
    """A revision number inside the value could contradict the record's place."""
    assert "rev" not in json.loads(encode_feature(feature(), "u")[1])


def test_offsets_must_ascend() -> None:
    """Reading the log twice or backwards is a defect that must not go unnoticed."""
    catalog = catalog_of(encode_key(KEY))

    with pytest.raises(ValueError, match="out of order"):
        catalog.apply(0, *encode_key(KEY))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"", b"{}"),
        (b"\xff", b"{}"),
        (b'["feature","acme","f","u"]', b"\xff"),
        (b'["feature","acme","f","u"]', None),
        (b'["feature","acme","f"]', encode_feature(feature(), "u")[1]),
        (b'["feature","acme","other","u"]', encode_feature(feature(), "u")[1]),
        (b'["plan","acme","p","u"]', b"{}"),
        (b'["key","00"]', encode_key(KEY)[1]),
        (b'["customer","acme","c"]', b'{"account":"acme","id":5}'),
        (b"[" * 100_000, b"{}"),
    ],
)
def test_what_is_no_record_is_skipped_with_its_reason(key: bytes | None, value: bytes | None) -> None:
    """A stray write moves the version on, changes nothing, and can be asked for."""
    catalog = Catalog()

    outcome = catalog.apply(3, key, value)

    assert isinstance(outcome, Skipped)
    assert outcome.reason
    assert catalog.version == 3
    assert (catalog.skipped_count, catalog.skipped) == (1, [outcome])
    assert catalog.features("acme") == ()


def test_skipped_records_are_counted_beyond_those_kept() -> None:
    """A flood of them costs no memory."""
    catalog = catalog_of(*[(b"?", b"?")] * 250)

    assert catalog.skipped_count == 250
    assert [s.offset for s in catalog.skipped] == list(range(150, 250))


def test_a_null_value_removes_customers_and_keys() -> None:
    """The mirror is told of it, until the same id comes again."""
    customer = encode_customer(Customer(account="acme", id="c"))
    catalog = catalog_of(customer, encode_key(KEY), (customer[0], None), (encode_key(KEY)[0], None))

    assert catalog.customer("acme", "c") is None
    assert catalog.key(KEY.hash) is None
    assert set(catalog.changed_after(1)) == {
        Removed("customer", "acme", "c", 2),
        Removed("key", "acme", KEY.hash, 3),
    }
    assert isinstance(catalog.apply(4, *customer), Applied)
    assert catalog.customer("acme", "c") is not None
    assert [d.rev for d in catalog.changed_after(3)] == [4]


@pytest.mark.parametrize("seen_first", [True, False])
def test_meeting_a_customer_never_overwrites_its_description(seen_first: bool) -> None:
    """A door may meet a customer while another process describes it: the description stands in either order."""
    seen = encode_customer(Customer(account="acme", id="c", created_us=1), seen=True)
    described = encode_customer(Customer(account="acme", id="c", name="Carla", created_us=2))
    catalog = catalog_of(*([seen, described] if seen_first else [described, seen]))

    customer = catalog.customer("acme", "c")
    assert customer is not None
    assert customer.name == "Carla"
    assert [c.name for c in catalog.customers("acme")] == ["Carla"]
    assert [d.name for d in catalog.changed_after(-1) if isinstance(d, Customer)] == ["Carla"]


def test_the_head_is_what_holds_in_the_end() -> None:
    """A revision put in before the head's time is kept and does not become the head."""
    catalog = catalog_of(
        encode_feature(feature(name_of := "f"), "1"),
        encode_feature(feature(name_of, unit_label="late", effective_from_us=100), "2"),
        encode_feature(feature(name_of, unit_label="early", effective_from_us=50), "3"),
    )

    head = catalog.feature("acme", "f")
    assert head is not None
    assert head.unit_label == "late"
    assert [f.unit_label for f in catalog.feature_revisions("acme", "f")] == ["", "late", "early"]


def test_features_of_an_event_name_leave_out_archived_ones_and_other_accounts() -> None:
    """Doors ask this before they accept an event name; the answer follows every change."""
    catalog = catalog_of(
        encode_feature(feature("a", event_names=("e",)), "1"),
        encode_feature(feature("b", event_names=("e", "g"), archived=True), "2"),
        encode_feature(Feature(account="other", id="c", name="c", event_names=("e",)), "3"),
    )
    assert catalog.feature_ids_for("acme", "e") == ("a",)
    assert catalog.feature_ids_for("acme", "g") == ()
    assert catalog.feature_ids_for("nobody", "e") == ()

    catalog.apply(3, *encode_feature(feature("b", event_names=("e",), effective_from_us=1), "4"))

    assert catalog.feature_ids_for("acme", "e") == ("a", "b")


def test_an_account_can_be_asked_for_as_of_a_version() -> None:
    """Replays ask what was known then."""
    catalog = catalog_of(
        encode_key(KEY),
        encode_account(Account(id="acme", name="Old", mode="live"), "1"),
        encode_account(Account(id="acme", name="New", mode="live"), "2"),
    )

    names = [found.name if (found := catalog.account("acme", at_version=v)) else None for v in range(3)]
    assert names == [None, "Old", "New"]
    assert [a.name for a in catalog.accounts()] == ["New"]


def test_a_version_that_was_not_read_yet_is_no_answer() -> None:
    """Mapping with a version ahead of the log would differ when it is read."""
    with pytest.raises(ValueError, match="wait for it"):
        Mappers(Catalog()).at(0)


@given(st.lists(st.sampled_from(["f", "g", "customer", "seen", "key", "stray"]), max_size=30), st.integers(-1, 30))
def test_changes_after_a_version_complete_a_mirror_of_it(kinds: list[str], split: int) -> None:
    """Mirroring in two steps leaves the same rows as in one, whatever the records and wherever it broke off."""
    catalog, first = Catalog(), {}
    for offset, kind in enumerate(kinds):
        catalog.apply(offset, *_record(kind, offset))
        if offset == split:
            first = {_place(d): d for d in catalog.changed_after(-1)}

    whole = {_place(d): d for d in catalog.changed_after(-1)}
    steps = {**first, **{_place(d): d for d in catalog.changed_after(split if split < len(kinds) else -1)}}

    assert steps == whole


def _record(kind: str, offset: int) -> tuple[bytes, bytes]:
    match kind:
        case "f" | "g":
            return encode_feature(feature(kind), str(offset))
        case "customer" | "seen":
            customer = Customer(account="acme", id="c", name=str(offset))
            return encode_customer(customer, seen=kind == "seen")
        case "key":
            return encode_key(KEY)
    return b"?", b"?"


def _place(definition: object) -> object:
    match definition:
        case Feature(account=account, id=name, rev=rev):
            return "feature", account, name, rev
        case Customer(account=account, id=name) | Removed(kind="customer", account=account, id=name):
            return "customer", account, name
        case Key(hash=name) | Removed(kind="key", id=name):
            return "key", name
    raise AssertionError(definition)
