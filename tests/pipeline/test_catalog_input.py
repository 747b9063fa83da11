"""What people may write about the catalog, and how they are told what is wrong."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog_input import (
    FILTER_PATHS_MAX,
    CatalogError,
    account_from,
    customer_from,
    dimension_fields,
    dimension_from,
    feature_fields,
    feature_from,
    key_request_from,
)


def faults(make: Any, *args: Any, **kwargs: Any) -> set[tuple[str, str]]:
    """Field and code of everything refused."""
    with pytest.raises(CatalogError) as refused:
        make(*args, **kwargs)
    assert all(error.message for error in refused.value.errors)
    return {(error.field, error.code) for error in refused.value.errors}


def test_a_feature_needs_no_more_than_its_id() -> None:
    """Everything else has a default: a sum of values since 1970, named like its id."""
    feature = feature_from("acme", {"id": "seats"})

    assert (feature.account, feature.id, feature.name, feature.aggregation) == ("acme", "seats", "seats", "sum")
    assert (feature.type, feature.effective_from_us, feature.archived) == ("CONSUMABLE", 0, False)


@pytest.mark.parametrize(
    ("field", "value", "where", "code"),
    [
        ("id", None, "id", "required"),
        ("id", 124, "id", "type"),
        ("id", "", "id", "range"),
        ("id", "x" * 257, "id", "range"),
        ("id", "\ud800", "id", "encoding"),
        ("name", 5, "name", "type"),
        ("name", "x" * 2000, "name", "range"),
        ("type", "consumable", "type", "format"),
        ("type", ["BINARY"], "type", "format"),
        ("event_names", "commit", "event_names", "type"),
        ("event_names", None, "event_names", "type"),
        ("event_names", ["ok", 5], "event_names[1]", "type"),
        ("event_names", ["e"] * 1001, "event_names", "range"),
        ("aggregation", "median", "aggregation", "format"),
        ("aggregation", "unique", "unique_key", "required"),
        ("unique_key", "u", "unique_key", "exclusive"),
        ("value_key", 5, "value_key", "type"),
        ("filter", ["a"], "filter", "type"),
        ("filter", {"a": []}, "filter.a", "range"),
        ("filter", {"a": [1.5]}, "filter.a", "type"),
        ("filter", {"a": [Decimal("1.5")]}, "filter.a", "type"),
        ("filter", {"a": None}, "filter.a", "type"),
        ("filter", {"a": [2**70]}, "filter.a", "range"),
        ("filter", {"": ["a"]}, "filter", "range"),
        ("metadata", [], "metadata", "type"),
        ("metadata", {"a": Decimal("NaN")}, "metadata", "format"),
        ("metadata", {"a": "x" * 20_000}, "metadata", "too_large"),
        ("effective_from", 5, "effective_from", "type"),
        ("effective_from", "2026-01-01", "effective_from", "format"),
        ("archived", "yes", "archived", "type"),
        ("event_name", "commit", "event_name", "unknown_field"),
    ],
)
def test_a_bad_field_of_a_feature_is_named(field: str, value: object, where: str, code: str) -> None:
    """Each with a stable code."""
    assert faults(feature_from, "acme", {"id": "f", field: value}) == {(where, code)}


@pytest.mark.parametrize("aggregation", ["count", "unique"])
def test_a_value_key_that_nobody_would_read_is_refused(aggregation: str) -> None:
    """It would be a mistake that nobody notices."""
    given = {"id": "f", "aggregation": aggregation, "value_key": "v"}
    if aggregation == "unique":
        given["unique_key"] = "u"

    assert faults(feature_from, "acme", given) == {("value_key", "exclusive")}


def test_every_fault_is_told_at_once() -> None:
    """One round trip is enough to correct a request."""
    given = {"id": 5, "type": "X", "archived": 1, "more": 1}

    assert faults(feature_from, "acme", given) == {
        ("id", "type"),
        ("type", "format"),
        ("archived", "type"),
        ("more", "unknown_field"),
    }


def test_what_is_not_given_stays_as_it_was() -> None:
    """A change names only what changes; null clears what may be absent."""
    base = feature_from("acme", {"id": "f", "unit_label": "u", "value_key": "v", "filter": {"a": "x"}})

    changed = feature_from("acme", {"name": "New", "value_key": None}, base=base)

    assert (changed.name, changed.unit_label, changed.value_key, changed.filter) == ("New", "u", None, {"a": ("x",)})
    assert faults(feature_from, "acme", {"id": "g"}, base=base) == {("id", "immutable")}


FEATURES = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=256)},
    optional={
        "name": st.text(max_size=20),
        "type": st.sampled_from(["BINARY", "CONSUMABLE"]),
        "event_names": st.lists(st.text(min_size=1, max_size=9), max_size=4),
        "filter": st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.lists(st.text(max_size=3) | st.integers(-9, 9) | st.booleans(), min_size=1),
            max_size=FILTER_PATHS_MAX,
        ),
        "metadata": st.dictionaries(st.text(max_size=3), st.integers() | st.none() | st.text(max_size=3), max_size=3),
        "effective_from": st.sampled_from(["1970-01-01T00:00:00Z", "2026-08-01T12:00:00.000001+05:45"]),
        "archived": st.booleans(),
    },
)


@given(FEATURES)
def test_the_fields_of_a_feature_make_the_same_feature(fields: dict[str, Any]) -> None:
    """What is shown can be sent back."""
    feature = feature_from("acme", fields)

    assert feature_from("acme", feature_fields(feature)) == feature


def test_dimensions_and_customers_are_checked_alike() -> None:
    """Required fields, types and unknown names."""
    dimension = dimension_from("acme", {"key": "a.b", "type": "number"})

    assert dimension_from("acme", dimension_fields(dimension)) == dimension
    assert faults(dimension_from, "acme", {}) == {("key", "required"), ("type", "required")}
    assert faults(dimension_from, "acme", {"key": "k", "type": "text"}) == {("type", "format")}
    assert faults(customer_from, "acme", {"id": 124}) == {("id", "type")}
    assert faults(customer_from, "acme", {"id": "c", "customer_id": "c"}) == {("customer_id", "unknown_field")}


@pytest.mark.parametrize("account_id", ["acme:test", "-acme", "a b", "ä", "x" * 129])
def test_account_ids_leave_room_for_test_mode(account_id: str) -> None:
    """No live account can be mistaken for another one's test account."""
    assert faults(account_from, {"id": account_id}) == {("id", "format")}


def test_a_key_needs_scopes_that_exist() -> None:
    """Scopes are told in their fixed order."""
    assert key_request_from({"scopes": ["read", "ingest", "read"]}).scopes == ("ingest", "read")
    assert faults(key_request_from, {}) == {("scopes", "required")}
    assert faults(key_request_from, {"scopes": []}) == {("scopes", "type")}
    assert faults(key_request_from, {"scopes": ["write"], "mode": "prod"}) == {("scopes", "format"), ("mode", "format")}
