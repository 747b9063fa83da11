"""Cutting a list into its events, also when some are no JSON."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.body import decode_object, split_broken_list
from producers.problems import Problem

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(values, min_size=1, max_size=10), st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None)
def test_a_list_is_cut_where_its_items_end(items: list[object], indent: int | None, ascii_only: bool) -> None:
    """Whatever the items hold: brackets, commas and quotes in strings included."""
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    cut = split_broken_list(text)
    assert [json.loads(item.decode("utf-8", "surrogatepass")) for item in cut] == items


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_cut_or_refused(body: bytes) -> None:
    """Never another error."""
    assert _refusal(lambda: split_broken_list(b"[" + body)) in (None, 400, 413)


def test_a_broken_item_stays_one_item() -> None:
    """Its neighbours are whole."""
    assert split_broken_list(b' [{"a":NaN}, {"b" 1}, {"c":[1,2]}, ] ') == [
        b'{"a":NaN}',
        b'{"b" 1}',
        b'{"c":[1,2]}',
        b"",
    ]


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    """A refusal is a 400 or 422."""
    assert _refusal(lambda: decode_object(body)) in (None, 400, 422)
    assert _refusal(lambda: decode_object(body, exact=False)) in (None, 400, 422)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 1_000_000 + b"}"])
def test_hostile_bodies_are_refused_or_cheap(body: bytes) -> None:
    """Deep nesting and endless numbers are no crash."""
    assert _refusal(lambda: decode_object(body)) in (None, 400)


def _refusal(read: Callable[[], object]) -> int | None:
    """The status with which the bytes are refused, or None."""
    try:
        read()
    except Problem as problem:
        return problem.status
    return None
