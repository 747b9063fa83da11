"""Mapping events to features and dimensions, at a version and for ever the same."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.catalog import (
    Account,
    Catalog,
    Customer,
    Dimension,
    Feature,
    encode_account,
    encode_customer,
    encode_dimension,
    encode_feature,
)
from pipeline.event import parse_document
from pipeline.stages.mapping import DimensionValue, Mapper, Mappers, Meter, distinct_hash, stored_number

ONE = Decimal(1)
Definition = Account | Customer | Feature | Dimension


def catalog_of(*definitions: Definition) -> Catalog:
    """A catalog whose log holds these, from offset 0 on."""
    catalog = Catalog()
    for definition in definitions:
        state(catalog, definition)
    return catalog


def state(catalog: Catalog, definition: Definition) -> None:
    """One more record."""
    offset = catalog.version + 1
    match definition:
        case Account():
            record = encode_account(definition, str(offset))
        case Customer():
            record = encode_customer(definition)
        case Feature():
            record = encode_feature(definition, str(offset))
        case Dimension():
            record = encode_dimension(definition, str(offset))
    catalog.apply(offset, *record)


def mapper_of(*definitions: Definition) -> Mapper:
    """The mapper of the latest version."""
    catalog = catalog_of(*definitions)
    return Mappers(catalog).at(catalog.version)


def feature(feature_id: str, **fields: Any) -> Feature:
    """A feature of `acme`."""
    return Feature(account="acme", id=feature_id, name=feature_id, **fields)


def quantities(
    mapper: Mapper, event_name: str, data: dict[str, Any] | None, value: Decimal = ONE
) -> dict[str, Decimal]:
    """Feature to quantity, for an event of today."""
    found = mapper.meters("acme", event_name, None, 10**15, value, data)
    return {meter.feature: meter.quantity for meter in found}


def test_the_writing_assistant_of_the_seed() -> None:
    """Three events feed total-generations; only one of them feeds blog-posts too."""
    names = ("email_generation", "social_media_generation", "blog_post_generation")
    mapper = mapper_of(feature("total-generations", event_names=names), feature("blog-posts", event_names=names[2:]))

    assert {name: quantities(mapper, name, None) for name in names} == {
        "email_generation": {"total-generations": 1},
        "social_media_generation": {"total-generations": 1},
        "blog_post_generation": {"total-generations": 1, "blog-posts": 1},
    }


def test_one_event_gives_each_feature_its_own_quantity() -> None:
    """12 tokens to one feature, 3,000 bytes to another, one call to a third, its value to a fourth."""
    mapper = mapper_of(
        feature("bytes", event_names=("e",), value_key="size.bytes"),
        feature("calls", event_names=("e",), aggregation="count"),
        feature("tokens", event_names=("e",), aggregation="max", value_key="tokens"),
        feature("value", event_names=("e",), aggregation="latest"),
    )

    data = parse_document(b'{"tokens": 12, "size": {"bytes": 3000}}')

    assert quantities(mapper, "e", data, Decimal("2.5")) == {
        "bytes": 3000,
        "calls": 1,
        "tokens": 12,
        "value": Decimal("2.5"),
    }
    assert quantities(mapper, "e", None) == {"calls": 1, "value": 1}


def test_a_feature_named_by_the_event_needs_no_event_name_but_passes_its_filter() -> None:
    """featureId goes straight to the feature."""
    mapper = mapper_of(feature("seats", filter={"plan": ("pro",)}), feature("gone", archived=True))

    assert mapper.meters("acme", None, "seats", 0, ONE, {"plan": "pro"}) == (Meter("seats", 0, ONE),)
    assert mapper.meters("acme", None, "seats", 0, ONE, {"plan": "free"}) == ()
    assert mapper.meters("acme", None, "gone", 0, ONE, None) == ()
    assert mapper.meters("acme", None, "unknown", 0, ONE, None) == ()
    assert mapper.meters("acme", None, None, 0, ONE, None) == ()
    assert mapper.meters("other", None, "seats", 0, ONE, {"plan": "pro"}) == ()


@pytest.mark.parametrize(
    ("document", "passes"),
    [
        (b'{"n": 1}', True),
        (b'{"n": 1.0}', True),
        (b'{"n": 1e0}', True),
        (b'{"n": true}', False),
        (b'{"n": "1"}', False),
        (b'{"n": "a"}', True),
        (b'{"n": false}', True),
        (b'{"n": 0}', False),
        (b'{"n": null}', False),
        (b'{"n": [1]}', False),
        (b'{"n": 1e999999999}', False),
        (b"{}", False),
    ],
)
def test_a_filter_compares_values_of_the_same_type(document: bytes, passes: bool) -> None:
    """1 and 1.0 are the same number; "1" and true are neither."""
    mapper = mapper_of(feature("f", event_names=("e",), filter={"n": (1, "a", False)}))

    assert bool(quantities(mapper, "e", parse_document(document))) is passes


def test_every_condition_of_a_filter_must_hold() -> None:
    """Conditions are joined by and, the values of one by or."""
    mapper = mapper_of(feature("f", event_names=("e",), filter={"a": ("x", "y"), "b.c": (2,)}))

    assert quantities(mapper, "e", {"a": "y", "b": {"c": 2}}) == {"f": 1}
    assert quantities(mapper, "e", {"a": "y", "b": {"c": 3}}) == {}
    assert quantities(mapper, "e", {"a": "z", "b": {"c": 2}}) == {}


def test_a_key_with_dots_wins_over_the_nested_path() -> None:
    """The exact key counts even where it says null."""
    mapper = mapper_of(feature("f", event_names=("e",), value_key="a.b.c"))

    assert quantities(mapper, "e", {"a.b.c": 5, "a": {"b": {"c": 7}}}) == {"f": 5}
    assert quantities(mapper, "e", {"a": {"b": {"c": 7}}}) == {"f": 7}
    assert quantities(mapper, "e", {"a.b.c": None, "a": {"b": {"c": 7}}}) == {}
    assert quantities(mapper, "e", {"a": {"b": 7}}) == {}


@pytest.mark.parametrize("document", [b"{}", b'{"u": null}'])
def test_unique_without_its_key_meters_nothing(document: bytes) -> None:
    """No key, nothing distinct to count."""
    mapper = mapper_of(feature("f", event_names=("e",), aggregation="unique", unique_key="u"))

    assert quantities(mapper, "e", parse_document(document)) == {}


def test_unique_carries_the_hash_of_its_value() -> None:
    """Events with the same value have the same hash, others none in common."""
    mapper = mapper_of(feature("f", event_names=("e",), aggregation="unique", unique_key="u"))
    documents = [b'{"u":"1"}', b'{"u":1}', b'{"u":1.0}', b'{"u":true}', b'{"u":[1]}', b'{"u":{"a":1}}', b'{"u":""}']

    found = [mapper.meters("acme", "e", None, 0, Decimal(9), parse_document(d))[0] for d in documents]

    assert all(meter.quantity == 1 and meter.distinct_hash > 0 for meter in found)
    assert found[1].distinct_hash == found[2].distinct_hash
    assert len({meter.distinct_hash for meter in found}) == len(documents) - 1


def test_distinct_hashes_never_change() -> None:
    """They are stored for ever: a new version must name old values alike."""
    assert [distinct_hash(v) for v in ("", "1", 1, True, None)] == [
        0xDDCB22B511C75A0AD6B9D4D14FF6BE13,
        0xA240618B9E4162F59A275E3F454930D1,
        0xC1CEEB55317C7B23653C8EC9B4987474,
        0x190E8FCDD645BB7C76033E85F0ACF92D,
        0xCE8F15881282A4001982E3A7BB241055,
    ]


def test_revisions_hold_from_their_time_on_the_events_clock() -> None:
    """A later definition counts from its time; a late event still gets the one of its own time."""
    mapper = mapper_of(
        feature("f", event_names=("e",)),
        feature("f", event_names=("e",), aggregation="count", effective_from_us=100),
        feature("f", event_names=("other",), effective_from_us=200),
        feature("f", event_names=("e",), archived=True, effective_from_us=300),
    )
    value = Decimal(7)

    found = {at: mapper.meters("acme", "e", None, at, value, None) for at in (0, 99, 100, 199, 200, 300)}

    assert found == {
        0: (Meter("f", 0, value),),
        99: (Meter("f", 0, value),),
        100: (Meter("f", 1, ONE),),
        199: (Meter("f", 1, ONE),),
        200: (),
        300: (),
    }
    assert mapper.meters("acme", "other", None, 250, value, None) == (Meter("f", 2, value),)


def test_of_revisions_with_the_same_time_the_last_written_holds() -> None:
    """A correction replaces the whole stretch of what it corrects, and is seen from its version on."""
    catalog = catalog_of(
        feature("f", event_names=("e",), effective_from_us=5), feature("f", event_names=("e",), effective_from_us=5)
    )
    mappers = Mappers(catalog)

    assert mappers.at(0).meters("acme", "e", None, 5, ONE, None) == (Meter("f", 0, ONE),)
    assert mappers.at(1).meters("acme", "e", None, 5, ONE, None) == (Meter("f", 1, ONE),)
    assert mappers.at(1).meters("acme", "e", None, 4, ONE, None) == ()


def test_dimensions_take_values_of_their_type_only() -> None:
    """A missing, null or wrongly typed value is absent and refuses nothing."""
    mapper = mapper_of(
        Dimension(account="acme", key="repo", type="string"),
        Dimension(account="acme", key="size.files", type="number"),
        Dimension(account="acme", key="old", type="string", archived=True),
    )

    assert mapper.dimensions("acme", 0, parse_document(b'{"repo":"r","size":{"files":1.50},"old":"o","x":1}')) == (
        DimensionValue("repo", 0, "r", None),
        DimensionValue("size.files", 1, "", Decimal("1.5")),
    )
    assert mapper.dimensions("acme", 0, parse_document(b'{"repo":1,"size.files":"2"}')) == ()
    assert mapper.dimensions("acme", 0, parse_document(b'{"repo":null,"size":{"files":true}}')) == ()
    assert mapper.dimensions("acme", 0, None) == ()
    assert mapper.dimensions("other", 0, {"repo": "r"}) == ()


def test_a_dimension_may_change_its_type() -> None:
    """Each event is read with the type that holds at its time."""
    mapper = mapper_of(
        Dimension(account="acme", key="k", type="string"),
        Dimension(account="acme", key="k", type="number", effective_from_us=10),
    )

    assert mapper.dimensions("acme", 9, {"k": "a"}) == (DimensionValue("k", 0, "a", None),)
    assert mapper.dimensions("acme", 10, {"k": "a"}) == ()
    assert mapper.dimensions("acme", 10, {"k": 3}) == (DimensionValue("k", 1, "", Decimal(3)),)


@pytest.mark.parametrize(
    ("number", "stored"),
    [
        (5, "5"),
        (-(10**29) + 1, str(-(10**29) + 1)),
        (10**29, None),
        (Decimal("0.1"), "0.1"),
        (Decimal("0.30000000000000004"), "0.3"),
        (Decimal("0.0000000005"), "0"),
        (Decimal("0.0000000015"), "0.000000002"),
        (Decimal("99999999999999999999999999999.9999999999"), None),
        (Decimal("12345678901234567890123456789.123456789"), "12345678901234567890123456789.123456789"),
        (Decimal("1E+28"), "1E+28"),
        (Decimal("1E+29"), None),
        (Decimal("1E+999999999"), None),
        (Decimal("1E-999999999"), "0"),
        (Decimal("0E+999999999"), "0"),
        (Decimal("NaN"), None),
        (Decimal("Infinity"), None),
        (True, None),
        ("5", None),
        (None, None),
        ([], None),
    ],
)
def test_numbers_from_data_become_what_the_store_holds(number: object, stored: str | None) -> None:
    """29 digits before the point, 9 after it, rounded half to even; the rest is absent."""
    assert stored_number(number) == (None if stored is None else Decimal(stored))


def test_floats_are_refused_loudly() -> None:
    """A float in data means that a decoder was set up wrongly: every number after it would be suspect."""
    with pytest.raises(TypeError, match="floats"):
        stored_number(1.5)


def test_known_accounts_are_those_of_the_version() -> None:
    """An account made later is unknown to a block that was built before."""
    catalog = catalog_of(feature("f"), Account(id="acme", name="Acme", mode="live"))
    mappers = Mappers(catalog)

    assert [mappers.at(version).known_account("acme") for version in (-1, 0, 1)] == [False, False, True]
    assert not mappers.at(1).known_account("other")


def test_customers_cost_no_new_mapper() -> None:
    """Doors make customers all the time; the mapping does not depend on them."""
    catalog = catalog_of(feature("f"))
    mappers = Mappers(catalog)
    before = mappers.at(0)
    state(catalog, Customer(account="acme", id="c"))

    assert mappers.at(1) is before


# ------------------------------------------------------------------------------------------------ the definition

TIMES = st.integers(0, 4)
NAMED: list[tuple[str | None, str | None]] = [("e", None), ("h", None), (None, "f"), (None, None)]
DEFINITIONS = st.one_of(
    st.builds(
        Feature,
        account=st.sampled_from(["acme", "other"]),
        id=st.sampled_from(["f", "g"]),
        name=st.just("n"),
        event_names=st.sets(st.sampled_from(["e", "h"])).map(lambda names: tuple(sorted(names))),
        aggregation=st.sampled_from(["sum", "count", "unique"]),
        value_key=st.sampled_from([None, "a.b"]),
        unique_key=st.just("u"),
        filter=st.sampled_from([{}, {"u": ("x", 1)}]),
        effective_from_us=TIMES,
        archived=st.booleans(),
    ),
    st.builds(
        Dimension,
        account=st.sampled_from(["acme", "other"]),
        key=st.sampled_from(["u", "a.b"]),
        type=st.sampled_from(["string", "number"]),
        effective_from_us=TIMES,
        archived=st.booleans(),
    ),
    st.builds(Account, id=st.sampled_from(["acme", "other"]), name=st.just("n"), mode=st.just("live")),
    st.builds(Customer, account=st.just("acme"), id=st.just("c")),
)
DATA = st.sampled_from([None, {}, {"u": "x"}, {"u": 1, "a": {"b": 2}}, {"a.b": Decimal("0.5"), "u": "y"}, {"a.b": "t"}])


@given(st.lists(DEFINITIONS, max_size=12), DATA)
def test_every_version_maps_as_the_definition_says_now_and_later(log: list[Definition], data: Any) -> None:
    """The compiled mapping equals the definition written out, and a version answers alike at once and in the end."""
    catalog = Catalog()
    following, at_once = Mappers(catalog), []
    for version, definition in enumerate(log):
        state(catalog, definition)
        at_once.append(answers(following.at(version), data))
        assert at_once[-1] == defined_answers(catalog, version, data)

    anew = Mappers(catalog)
    assert [answers(anew.at(version), data) for version in range(len(log))] == at_once
    assert [answers(following.at(v), data) for v in reversed(range(len(log)))] == at_once[::-1]


def answers(mapper: Mapper, data: Any) -> list[object]:
    """What a mapper says for events of every kind and time."""
    return [
        (
            mapper.known_account(account),
            mapper.meters(account, event_name, feature_id, at, Decimal(7), data),
            mapper.dimensions(account, at, data),
        )
        for account in ("acme", "other")
        for event_name, feature_id in NAMED
        for at in range(6)
    ]


def defined_answers(catalog: Catalog, version: int, data: Any) -> list[object]:
    """The same, from the words of the specification, slowly."""
    found: list[object] = []
    for account in ("acme", "other"):
        for event_name, feature_id in NAMED:
            for at in range(6):
                features = [held(catalog.feature_revisions(account, f), version, at) for f in ("f", "g")]
                meters = [defined_meter(f, event_name, feature_id, Decimal(7), data) for f in features if f is not None]
                dimensions = [held(catalog.dimension_revisions(account, d), version, at) for d in ("a.b", "u")]
                values = [defined_dimension(d, data) for d in dimensions if d is not None]
                known = catalog.account(account, version) is not None
                found.append((known, tuple(m for m in meters if m), tuple(v for v in values if v)))
    return found


def held(revisions: tuple[Any, ...], version: int, at: int) -> Any:
    """The revision that holds; None when there is none or it is archived."""
    candidates = [r for r in revisions if r.rev <= version and r.effective_from_us <= at]
    best = max(candidates, key=lambda r: (r.effective_from_us, r.rev), default=None)
    return None if best is None or best.archived else best


def defined_meter(
    f: Feature, event_name: str | None, feature_id: str | None, value: Decimal, data: Any
) -> Meter | None:
    """What one feature gets from the event."""
    if feature_id != f.id if feature_id is not None else event_name not in f.event_names:
        return None
    if f.filter and at_path(data, "u") not in ("x", 1):
        return None
    if f.aggregation == "count":
        return Meter(f.id, f.rev, ONE)
    if f.aggregation == "unique":
        given = at_path(data, "u")
        return None if given is None else Meter(f.id, f.rev, ONE, distinct_hash(given))
    if f.value_key is None:
        return Meter(f.id, f.rev, value)
    number = at_path(data, "a.b")
    return Meter(f.id, f.rev, Decimal(number)) if isinstance(number, int | Decimal) else None


def defined_dimension(d: Dimension, data: Any) -> DimensionValue | None:
    """What one dimension gets from the event."""
    given = at_path(data, d.key)
    if d.type == "string":
        return DimensionValue(d.key, d.rev, given, None) if isinstance(given, str) else None
    return DimensionValue(d.key, d.rev, "", Decimal(given)) if isinstance(given, int | Decimal) else None


def at_path(data: Any, path: str) -> Any:
    """The exact key, else the nested one."""
    data = data or {}
    return data[path] if path in data else data.get("a", {}).get("b") if path == "a.b" else None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_equal_values_have_equal_hashes_whatever_their_spelling(value: Any) -> None:
    """Key order and the spelling of numbers do not matter."""
    assert distinct_hash(respelled(value)) == distinct_hash(value)


def respelled(value: Any) -> Any:
    """The same JSON value, written otherwise."""
    if isinstance(value, dict):
        return {key: respelled(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [respelled(part) for part in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(f"{value}.000")
    return value
