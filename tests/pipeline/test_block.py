"""Blocks' metadata in commits, and sightings in 20 bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.block import (
    METADATA_BYTES_MAX,
    SIGHTING_BYTES,
    Committed,
    Intent,
    Position,
    Sighting,
    decode_metadata,
    earlier,
    encode_metadata,
    pack_sighting,
    unpack_sighting,
)

U63 = st.integers(0, 2**63 - 1)
INTENTS = st.builds(
    Intent,
    epoch=st.integers(0, 2**16 - 1),
    start=U63,
    end=U63,
    rows=st.integers(0, 2**32),
    crc=st.integers(0, 2**64 - 1),
    catalog_version=st.integers(-1, 2**63 - 1),
    rules=st.integers(1, 2**31),
    stated_ms=U63,
)
POSITIONS = st.builds(Position, st.integers(0, 2**16 - 1), st.integers(0, 2**48 - 1), st.integers(0, 2**24 - 1))
SIGHTINGS = st.builds(Sighting, POSITIONS, st.integers(0, 2**40 - 1), st.integers(0, 2**32 - 1))


@given(INTENTS)
def test_an_intent_comes_back_from_its_commit_and_fits_into_kafkas_limit(intent: Intent) -> None:
    """Whatever the numbers, the metadata is below offset.metadata.max.bytes."""
    text = encode_metadata(intent.epoch, intent)
    assert decode_metadata(intent.start, text) == Committed(intent.epoch, intent.start, intent)
    assert len(text.encode()) <= METADATA_BYTES_MAX


def test_a_commit_without_an_intent_comes_back_with_its_epoch() -> None:
    """The end of a block when nothing is under way."""
    assert decode_metadata(7, encode_metadata(3, None)) == Committed(3, 7, None)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "leader epoch 3", '{"tag": "tallystream/9", "epoch": 0}', '{"tag": "tallystream/1"}', "\x00"],
)
def test_metadata_of_others_is_none(text: str) -> None:
    """A tool that moved the offset leaves none, or its own."""
    assert decode_metadata(7, text) is None


@given(st.text())
def test_no_metadata_makes_the_reading_fail(text: str) -> None:
    """Anything may be in a commit; it is ours or nobody's."""
    assert decode_metadata(0, text) is None


@given(INTENTS)
def test_metadata_is_read_by_field_names_so_that_later_versions_may_add_some(intent: Intent) -> None:
    """What a later version adds does not hide the intent from this one."""
    text = json.dumps({**json.loads(encode_metadata(intent.epoch, intent)), "later": 1})
    found = decode_metadata(intent.start, text)
    assert found is not None
    assert found.intent == intent


@given(SIGHTINGS)
def test_a_sighting_comes_back_from_its_20_bytes(sighting: Sighting) -> None:
    """All of its range."""
    packed = pack_sighting(sighting)
    assert len(packed) == SIGHTING_BYTES
    assert unpack_sighting(packed) == sighting


@given(SIGHTINGS, SIGHTINGS)
def test_the_earlier_of_two_is_the_one_with_the_smaller_position(one: Sighting, other: Sighting) -> None:
    """Epoch before offset before line, whichever comes first."""
    smaller = min(one.position, other.position)
    assert unpack_sighting(earlier(pack_sighting(one), pack_sighting(other))).position == smaller
    assert unpack_sighting(earlier(pack_sighting(other), pack_sighting(one))).position == smaller
