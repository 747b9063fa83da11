"""Build: the stages in their order, from the records of a range to a block. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline.block import RULES, Line, LogRecord, Place
from pipeline.records import Records
from pipeline.stages import dedup
from pipeline.stages.decode import decode_records
from pipeline.stages.dedup import Lookup, identify, judge
from pipeline.stages.mapping import Mapper
from pipeline.stages.sink import Block, make_block

if TYPE_CHECKING:
    from pipeline.stages.columnar import Columns

#: From so many bytes on, columns are faster than lines; the block is the same.
COLUMNAR_BYTES: Final = 32 * 1024


class UnknownRules(Exception):  # noqa: N818 - says what is the matter
    """The block was stated under rules that this version does not know."""


def in_columns(place: Place, records: Sequence[LogRecord], mapper: Mapper) -> "Columns":
    """The lines of these records, in columns."""
    from pipeline.stages.columnar import Columns  # noqa: PLC0415 - the compiler behind it takes a second to load

    return Columns(place, records, mapper)


class RuleSet(msgspec.Struct, frozen=True):
    """The stages of one version of the rules, in their order. Each pure; `judge` alone asks for what was seen before,
    so that a caller may look it up between `read_records` and `finish_block`. `columns` does the same for large blocks;
    None where nothing does."""

    decode: Callable[..., Iterable[Line]] = decode_records
    identify: Callable[..., None] = identify
    judge: Callable[..., dict[bytes, bytes]] = judge
    make: Callable[..., Block] = make_block
    columns: Callable[..., Any] | None = in_columns


#: All versions that this worker can build blocks under; new blocks are begun under the newest. An upgrade that changes
#: the rules adds a set and leaves the former ones as they are, until no group can hold an intent of theirs.
#: These differ in what is marked where (SPARSE_RULES), and in the order of rows (SORTED_RULES).
RULE_SETS: Final[dict[int, RuleSet]] = {rules: RuleSet() for rules in (1, 2, RULES)}


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
    stages = _stages(place, start, end, rules, rule_sets)
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


def read_records(
    place: Place,
    records: Sequence[LogRecord],
    *,
    start: int,
    end: int,
    mapper: Mapper,
    rules: int = RULES,
    rule_sets: Mapping[int, RuleSet] = RULE_SETS,
) -> "list[Line] | Columns":
    """The same, in columns where the block is large. Raises UnknownRules."""
    columns = _stages(place, start, end, rules, rule_sets).columns
    records = Records.of(records)
    if columns is not None and records.sizes.sum() >= COLUMNAR_BYTES:
        read: Columns = columns(place, records, mapper)
        return read
    return read_lines(place, records, start=start, end=end, mapper=mapper, rules=rules, rule_sets=rule_sets)


def open_keys(lines: "list[Line] | Columns") -> Sequence[bytes]:
    """The table's keys of the lines whose verdict is still open, in any order."""
    return dedup.open_keys(lines) if isinstance(lines, list) else lines.open_keys()


def _stages(place: Place, start: int, end: int, rules: int, rule_sets: Mapping[int, RuleSet]) -> RuleSet:
    stages = rule_sets.get(rules)
    if stages is None:
        known = ", ".join(map(str, sorted(rule_sets)))
        raise UnknownRules(
            f"block {start}-{end} of partition {place.partition} was begun under rules {rules}, this worker knows "
            f"{known}: a worker of {'a newer' if rules > max(rule_sets) else 'the former'} version has to finish it; "
            "start one, or upgrade this one"
        )
    return stages


def finish_block(
    place: Place,
    lines: "list[Line] | Columns",
    *,
    start: int,
    end: int,
    mapper: Mapper,
    catalog_version: int,
    lookup: Lookup,
    rules: int = RULES,
    rule_sets: Mapping[int, RuleSet] = RULE_SETS,
) -> Block:
    """The block of the lines that `read_lines` or `read_records` gave under the same rules; it fills them in. `lookup`
    tells the first sightings of ids, and may block."""
    if not isinstance(lines, list):
        return lines.finish(
            start=start, end=end, mapper=mapper, catalog_version=catalog_version, lookup=lookup, rules=rules
        )
    stages = rule_sets[rules]
    sightings = stages.judge(lines, epoch=place.epoch, lookup=lookup)
    return stages.make(
        lines,
        place,
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
    lines = read_records(place, records, start=start, end=end, mapper=mapper, rules=rules, rule_sets=rule_sets)
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
