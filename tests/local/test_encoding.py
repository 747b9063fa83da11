"""Encodings of bodies."""

import gzip
import zlib

import lz4.frame  # type: ignore[import-untyped]  # publishes no types
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local.encoding import (
    FRAME_BYTES,
    EncodingError,
    FrameEncoder,
    TooLargeError,
    decode,
    decode_frames,
    encoder_for,
)

_PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "identity": bytes,
}


@given(st.binary(max_size=3000), st.sampled_from(sorted(_PACK)))
def test_every_coding_of_a_request_is_undone(data: bytes, coding: str) -> None:
    """What was packed comes out, several members one after another included."""
    assert decode(_PACK[coding](data), coding, 3000) == data
    if coding != "deflate":
        assert decode(_PACK[coding](data) + _PACK[coding](data), coding, 6000) == data + data


@pytest.mark.parametrize("coding", sorted(set(_PACK) - {"identity"}))
def test_a_body_that_swells_is_stopped(coding: str) -> None:
    """A small body cannot fill the memory."""
    with pytest.raises(TooLargeError):
        decode(_PACK[coding](bytes(10_000_000)), coding, 1_000_000)


@pytest.mark.parametrize("coding", sorted(set(_PACK) - {"identity"}))
def test_a_broken_body_is_an_error(coding: str) -> None:
    """Neither cut nor garbled bodies pass."""
    packed = _PACK[coding](bytes(range(256)) * 100)
    with pytest.raises(EncodingError):
        decode(packed[:-9], coding, 1 << 20)
    with pytest.raises(EncodingError):
        decode(b"garbage" + packed, coding, 1 << 20)


def test_an_unknown_coding_is_named() -> None:
    """The message says which ones there are."""
    with pytest.raises(EncodingError, match="br is not supported: use zstd"):
        decode(b"x", "br", 10)


@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_frames_round_trip(pieces: list[bytes]) -> None:
    """However the data were cut, they come out whole."""
    encoder = FrameEncoder()
    packed = b"".join(encoder.compress(piece) for piece in pieces) + encoder.flush()
    assert decode_frames(packed, 1 << 20) == b"".join(pieces)


def test_frames_are_bounded_and_checked() -> None:
    """One frame holds a MiB; a flipped bit is seen."""
    encoder = FrameEncoder()
    packed = encoder.compress(bytes(FRAME_BYTES + 5)) + encoder.flush()
    assert len(decode_frames(packed, 1 << 21)) == FRAME_BYTES + 5
    with pytest.raises(TooLargeError):
        decode_frames(packed, FRAME_BYTES)
    with pytest.raises(EncodingError, match="checksum"):
        decode_frames(packed[:30] + bytes([packed[30] ^ 1]) + packed[31:], 1 << 21)
    with pytest.raises(EncodingError, match="cut off"):
        decode_frames(packed[:-1], 1 << 21)


def test_the_answer_is_encoded_as_the_client_accepts() -> None:
    """Preference is ours, permission the client's."""
    assert [pair and pair[0] for pair in map(encoder_for, ("gzip, deflate", "br", "", "gzip;q=0, lz4", "zstd"))] == [
        "gzip",
        None,
        None,
        "lz4",
        "zstd",
    ]
