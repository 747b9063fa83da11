"""Build: the stages in their order, from the records of a range to a block. Pure."""

from collections.abc import Sequence

import msgspec

from pipeline.block import RULES, Line, LogRecord
from pipeline.stages.decode import decode_records
from pipeline.stages.dedup import Lookup, identify, judge
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import Block, make_block


class Place(msgspec.Struct, frozen=True):
    """The partition whose blocks are built, and what the verdicts depend on besides the log."""

    topic: str
    epoch: int
    partition: int
    partitions: int
    default_account: str
    ahead_max_us: int


class UnknownRules(Exception):  # noqa: N818 - says what is the matter
    """The block was stated under rules that this version does not know."""


def read_lines(
    place: Place, records: Sequence[LogRecord], *, start: int, end: int, mapper: Mapper, rules: int = RULES
) -> list[Line]:
    """The lines of the block [start, end) with their ids, and the verdicts that need no table. Raises UnknownRules."""
    if rules != RULES:
        raise UnknownRules(
            f"block {start}-{end} of partition {place.partition} was begun under rules {rules}, this worker has "
            f"{RULES}: run the version that began it until the partition is idle, then upgrade"
        )
    lines = list(decode_records(records, default_account=place.default_account, ahead_max_us=place.ahead_max_us))
    identify(
        lines,
        topic=place.topic,
        epoch=place.epoch,
        partition=place.partition,
        partitions=place.partitions,
        known_account=mapper.known_account,
    )
    return lines


def finish_block(
    place: Place,
    lines: Sequence[Line],
    *,
    start: int,
    end: int,
    mapper: Mapper,
    catalog_version: int,
    lookup: Lookup,
    rules: int = RULES,
) -> Block:
    """The block of these lines, which it fills in."""
    sightings = judge(lines, epoch=place.epoch, lookup=lookup)
    return make_block(
        lines,
        topic=place.topic,
        epoch=place.epoch,
        partition=place.partition,
        start=start,
        end=end,
        mapper=mapper,
        catalog_version=catalog_version,
        rules=rules,
        sightings=sightings,
    )


def build_block(
    place: Place,
    records: Sequence[LogRecord],
    *,
    start: int,
    end: int,
    mapper: Mapper,
    catalog_version: int,
    lookup: Lookup,
    rules: int = RULES,
) -> Block:
    """Both in one: the block [start, end) of these records. The same arguments and the same log always give the same
    block. Raises UnknownRules."""
    lines = read_lines(place, records, start=start, end=end, mapper=mapper, rules=rules)
    return finish_block(
        place,
        lines,
        start=start,
        end=end,
        mapper=mapper,
        catalog_version=catalog_version,
        lookup=lookup,
        rules=rules,
    )
