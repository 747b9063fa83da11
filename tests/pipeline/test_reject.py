"""A refused line's position and the id of its replay."""

import pytest

from pipeline.event import readable_transaction_id
from pipeline.reject import RejectPosition, parse_position, replay_id

AT = RejectPosition("tally.events", 2, 3, 4, 5)


def test_a_position_is_read_back_whole_or_by_its_last_four() -> None:
    """The topic is the settings' then."""
    assert parse_position(AT.text, topic="other") == AT
    assert parse_position("2:3:4:5", topic="other") == AT._replace(topic="other")


@pytest.mark.parametrize("text", ["", "1:2:3", "t:1:2:3", "a b:1:2:3:4", "t:1:2:3:4:5", "t:-1:2:3:4", "t:1:2:3:x"])
def test_what_is_no_position_is_refused(text: str) -> None:
    """With the form that is wanted."""
    with pytest.raises(ValueError, match="topic:epoch:partition:offset:line"):
        parse_position(text, topic="t")


def test_the_id_of_a_replay_is_a_function_of_the_position() -> None:
    """Stable over versions, since a line that was replayed once must keep it; and one for each position."""
    assert replay_id(AT) == "reject-717f3f148605180f3a0b1459aa41e00d"
    others = [AT._replace(**{name: getattr(AT, name) + 1}) for name in ("epoch", "partition", "offset", "line")]
    assert len({replay_id(at) for at in [AT, *others, AT._replace(topic="t")]}) == 6


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"transactionId":"a","clientId":7}', "a"),
        (b'{"transactionId":"a","value":NaN}', "a"),
        (b'{"transactionId":"\\u00fc\\/"}', "\u00fc/"),
        (b'{"transactionId":7}', None),
        (b'{"transactionId":""}', None),
        (b'{"transactionId":"' + b"x" * 257 + b'"}', None),
        (b'{"transactionId":"\\ud800"}', None),
        (b'{"clientId":"c"}', None),
        (b'{"transactionId":"a"', None),
        (b'["transactionId","a"]', None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_an_id_is_read_wherever_it_can_be(line: bytes, found: str | None) -> None:
    """Also in lines that are no events."""
    assert readable_transaction_id(line) == found
