"""A refused line and its replay, as the ways out read them and the ways in send them again. Values only."""

import re
from typing import Final, NamedTuple

import msgspec

from pipeline.event import derived_id_hash

_POSITION: Final = re.compile(r"(?:(?P<topic>[\w.-]+):)?(\d{1,9}):(\d{1,9}):(\d{1,18}):(\d{1,9})", re.ASCII)


class RejectPosition(NamedTuple):
    """Where a refused line lies. A topic's name has no colon, so that the text form is unambiguous."""

    topic: str
    epoch: int
    partition: int
    offset: int
    line: int

    @property
    def text(self) -> str:
        """`topic:epoch:partition:offset:line`, as in the headers of the rejects topic."""
        return ":".join(map(str, self))


class RejectedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A refused line as it came. `verdict`: rejected or conflict; `defaulted`: a door had filled in its timestamp;
    `transaction_id`: its own, where one could be read, or the one of an earlier replay."""

    position: RejectPosition
    account: str
    raw: bytes
    verdict: str
    defaulted: bool
    transaction_id: str | None


class ReplayNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent for a refused line: when (ms since 1970), under which id, how, and where it lies (partition, offset,
    line of the record); `place` None: it is about to be sent."""

    position: RejectPosition
    replayed_ms: int
    transaction_id: str
    id_hash: int
    means: str
    place: tuple[int, int, int] | None


def parse_position(text: str, *, topic: str) -> RejectPosition:
    """The position that `topic:epoch:partition:offset:line` names, or the last four with `topic`. Raises ValueError."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no position; give topic:epoch:partition:offset:line, or the last four")
    epoch, partition, offset, line = map(int, found.groups()[1:])
    return RejectPosition(found["topic"] or topic, epoch, partition, offset, line)


def replay_id(position: RejectPosition) -> str:
    """The transactionId of the replay of a line that has none: a function of its position, so that the same line
    counts once however often it is replayed."""
    topic, epoch, partition, offset, line = position
    return f"reject-{derived_id_hash(epoch, topic, partition, offset, line):032x}"
