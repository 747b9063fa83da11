"""Build: the stages in their order, from the records of a range to a block. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

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


class RuleSet(msgspec.Struct, frozen=True):
    """The stages of one version of the rules, in their order. Each pure; `judge` alone asks for what was seen before,
    so that a caller may look it up between `read_lines` and `finish_block`."""

    decode: Callable[..., Iterable[Line]] = decode_records
    identify: Callable[..., None] = identify
    judge: Callable[..., dict[bytes, bytes]] = judge
    make: Callable[..., Block] = make_block


#: All versions that this worker can build blocks under; new blocks are begun under the newest. An upgrade that changes
#: the rules adds a set and leaves the former ones as they are, until no group can hold an intent of theirs.
RULE_SETS: Final[dict[int, RuleSet]] = {RULES: RuleSet()}


def read_lines(
    place: Place,
    records: Sequence[LogRecord],
    *,
    start: int,
    end: int,
    mapper: Mapper,
    rules: int = RULES,
    rule_sets: Mapping[int, RuleSet] = RULE_SETS,
) -> list[Line]:
    """The lines of the block [start, end) with their ids, and the verdicts that need no table. Raises UnknownRules."""
    stages = rule_sets.get(rules)
    if stages is None:
        known = ", ".join(map(str, sorted(rule_sets)))
        raise UnknownRules(
            f"block {start}-{end} of partition {place.partition} was begun under rules {rules}, this worker knows "
            f"{known}: a worker of {'a newer' if rules > max(rule_sets) else 'the former'} version has to finish it; "
            "start one, or upgrade this one"
        )
    lines = list(stages.decode(records, default_account=place.default_account, ahead_max_us=place.ahead_max_us))
    stages.identify(
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
    rule_sets: Mapping[int, RuleSet] = RULE_SETS,
) -> Block:
    """The block of the lines that `read_lines` gave under the same rules; it fills them in. `lookup` tells the first
    sightings of ids, and may block."""
    stages = rule_sets[rules]
    sightings = stages.judge(lines, epoch=place.epoch, lookup=lookup)
    return stages.make(
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
    rule_sets: Mapping[int, RuleSet] = RULE_SETS,
) -> Block:
    """Both in one: the block [start, end) of these records. The same arguments and the same log always give the same
    block. Raises UnknownRules."""
    lines = read_lines(place, records, start=start, end=end, mapper=mapper, rules=rules, rule_sets=rule_sets)
    return finish_block(
        place,
        lines,
        start=start,
        end=end,
        mapper=mapper,
        catalog_version=catalog_version,
        lookup=lookup,
        rules=rules,
        rule_sets=rule_sets,
    )
