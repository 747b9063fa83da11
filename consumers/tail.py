"""The live tail: what comes in, line by line with its verdict, as the workers count it.

Rules: nothing is buffered. A tail is a position for each partition; each look asks the store what was judged between
there and how far the partition is counted, so that a slow reader costs no memory and a tail goes on exactly where it
was, in whatever process. Lines come in the order of their partition. Below the counted position a block is whole, and
what is read is proved so: the ledger says which months and how many repeats a block has, and the same read must see
the block's marks and repeats. What is passed over is told, with its range. Calls block.

What a look costs: one row a partition of `progress`; of a partition with news its new blocks in the ledger (a range of
the sorting key), refused lines (the same), facts of the account in the parts where the new blocks' marks lie, and
repeats in parts written since. Parts just written are small, so this does not grow with the store, but a part that has
just been merged is read once more. Of duplicates only hashes are kept: those of a block are looked up among the
account's facts by their bloom filter, which grows with the account.
"""

# ruff: noqa: S608 - the parts are constants of this package; values are bound by the server

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from consumers.inspected import (
    FACT_COLUMNS,
    REFUSED_COLUMNS,
    Inspected,
    LineFilter,
    counted_line,
    line_conditions,
    refused_line,
)
from pipeline.block import GAP_RULES
from pipeline.ports import Reader
from pipeline.stages.sink import MARK_ACCOUNT, mark_name

LINES_MAX: Final = 100  # of one look, of at most 64 KiB of data each
BEHIND_MAX: Final = 1_000_000  # offsets of a partition; a tail further behind goes on at its end, and says so
_BLOCKS_MAX: Final = 10  # of a partition in one look
_EVENTS_MAX: Final = 60_000  # in those blocks, unless the first has more
_IDS_AT_ONCE: Final = 2_000  # of 40 characters each in the request
_PARTITIONS_MAX: Final = 10_000
_SLACK: Final = timedelta(seconds=60)  # between the clocks of worker and store
_SETTINGS: Final = {"max_execution_time": 30, "max_memory_usage": 1 << 30}

Why = Literal["too_far_behind", "given_up", "not_in_ledger", "not_in_store"]

_WHY: Final[Mapping[Why, str]] = {
    "too_far_behind": f"more than {BEHIND_MAX} offsets behind; GET /v1/events lists them",
    "given_up": "events were lost and given up, as `tally audit` tells; GET /v1/events lists what was refused there",
    "not_in_ledger": "the ledger has no block there; see `tally audit`",
    "not_in_store": "the store does not hold all that its ledger says of it; see `tally audit`",
}


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a tail stands in a partition: the block's first offset, and the next line to be told."""

    epoch: int
    start: int
    offset: int
    line: int


class Told(msgspec.Struct, frozen=True):
    """A line, and the token that a tail goes on with after it."""

    line: Inspected
    token: str


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets [start, end) of a partition that a tail did not look at, or could not see all of, and why."""

    partition: int
    epoch: int
    start: int
    end: int
    reason: Why
    detail: str
    token: str


class Look(msgspec.Struct, frozen=True):
    """What one look has found. `more`: there is more already."""

    found: tuple[Told | Skipped, ...]
    token: str
    more: bool


class TokenError(ValueError):
    """The token is none of a tail of this topic."""


class _Block(msgspec.Struct, frozen=True):
    """What the ledger says of a block."""

    start: int
    end: int
    months: Sequence[int]
    rules: int
    events: int
    accepted: int
    duplicates: int
    refused: int
    again_kept: int
    stated_at: datetime


class Tail:
    """Follows one account's lines. From now on, or from where the token of an earlier tail says. For one thread.

    Raises TokenError, and what the store raises.
    """

    def __init__(self, store: Reader, chosen: LineFilter, *, topic: str, token: str | None = None) -> None:
        self._store = store
        self._chosen = chosen
        self._topic = topic
        self._conditions, self._told = line_conditions(chosen)
        self._turn = 0
        if token is None:
            counted = self._counted().items()
            self._places = {partition: Place(epoch, at, at, 0) for partition, (epoch, at) in counted}
        else:
            self._places = _places(token, topic)

    @property
    def token(self) -> str:
        """Where the tail stands."""
        body = msgspec.msgpack.encode((self._topic, self._places))
        return base64.urlsafe_b64encode(body).rstrip(b"=").decode()

    def look(self, lines_max: int = LINES_MAX) -> Look:
        """What was judged since the last look, at most that many lines; partitions take turns to be first. Blocks."""
        counted = self._counted()
        waiting = [p for p in sorted(counted) if self._behind(p, *counted[p])]
        at = next((i for i, p in enumerate(waiting) if p >= self._turn), 0)
        found: list[Told | Skipped] = []
        more = False
        for partition in waiting[at:] + waiting[:at]:
            if len(found) >= lines_max:
                return Look(tuple(found), self.token, True)
            more = self._look_at(partition, *counted[partition], lines_max - len(found), found) or more
            self._turn = partition + 1
        return Look(tuple(found), self.token, more)

    # -- one partition

    def _behind(self, partition: int, epoch: int, position: int) -> bool:
        place = self._places.setdefault(partition, Place(epoch, 0, 0, 0))  # its very first events
        return (place.epoch, place.start) < (epoch, position)

    def _look_at(self, partition: int, epoch: int, position: int, room: int, found: list[Told | Skipped]) -> bool:
        """Adds what was judged; True when the partition has more already."""
        place = self._places[partition]
        if place.epoch == epoch and position - place.start > BEHIND_MAX:
            self._skip(partition, (place.offset, position), "too_far_behind", found)
            return False
        end = position if place.epoch == epoch else None  # all of an epoch before
        blocks = self._blocks(partition, place, end)
        if not blocks and end is None:
            self._places[partition] = Place(epoch, 0, 0, 0)
            return True
        if not blocks or (place.start and blocks[0].start > place.start):
            following = blocks[0].start if blocks else position
            self._skip(partition, (place.offset, following), "not_in_ledger", found)
        elif blocks[0].rules == GAP_RULES:
            self._skip(partition, (blocks[0].start, blocks[0].end), "given_up", found)
        else:
            self._read(partition, _run(blocks), room, found)
        place = self._places[partition]
        return end is None or place.start < end

    def _skip(self, partition: int, offsets: tuple[int, int], reason: Why, found: list[Told | Skipped]) -> None:
        start, end = offsets
        epoch = self._places[partition].epoch
        self._places[partition] = Place(epoch, end, end, 0)
        found.append(
            Skipped(
                partition=partition,
                epoch=epoch,
                start=start,
                end=end,
                reason=reason,
                detail=_WHY[reason],
                token=self.token,
            )
        )

    def _read(self, partition: int, blocks: Sequence[_Block], room: int, found: list[Told | Skipped]) -> None:
        """The blocks' lines from the place on, as many as there is room for."""
        place, end = self._places[partition], blocks[-1].end
        lines: list[Inspected] = []
        whole = full = True
        for narrow in (True, True, False):  # a merge between two parts of a read makes it see too little: read again
            lines, whole, full = self._lines(partition, place, blocks, room, narrow=narrow)
            if whole:
                break
        lines.sort(key=lambda line: (line.position.offset, line.position.line))
        for line in lines[:room]:
            at = line.position
            self._places[partition] = Place(place.epoch, place.start, at.offset, at.line + 1)
            found.append(Told(line, self.token))
        if not full and len(lines) <= room:
            self._places[partition] = Place(place.epoch, end, end, 0)
            if not whole:
                self._skip(partition, (place.offset, end), "not_in_store", found)

    def _lines(
        self, partition: int, place: Place, blocks: Sequence[_Block], room: int, *, narrow: bool
    ) -> tuple[list[Inspected], bool, bool]:
        """The lines; whether the read has seen all that the ledger says; whether there may be more of them."""
        verdicts = self._chosen.verdicts
        bounds = {
            "topic": self._topic,
            "account": self._chosen.account,
            "epoch": place.epoch,
            "partition": partition,
            "block": place.start,
            "end": blocks[-1].end,
            "next_offset": place.offset,
            "next_line": place.line,
            "limit": room,
        }
        lines: list[Inspected] = []
        whole, full = True, False
        if "accepted" in verdicts and any(block.accepted for block in blocks):
            facts, whole = self._facts(bounds, blocks, narrow=narrow)
            full |= len(facts) >= room
            lines += facts
        if {"conflict", "rejected"}.intersection(verdicts) and any(block.refused for block in blocks):
            refused = self._refused(bounds)
            full |= len(refused) >= room
            lines += refused
        if "duplicate" in verdicts and any(block.duplicates for block in blocks):
            again, all_seen = self._duplicates(bounds, blocks, room, narrow=narrow)
            full |= len(again) >= room
            lines += again
            whole = whole and all_seen
        return lines, whole, full

    def _facts(self, bounds: Mapping[str, Any], blocks: Sequence[_Block], *, narrow: bool) -> tuple[Any, bool]:
        marks = {(block.start, month) for block in blocks for month in block.months}
        told = {
            **self._told,
            **bounds,
            "mark": mark_name(self._topic, bounds["epoch"], bounds["partition"]),
            "months": sorted({month for _, month in marks}),
            "limit": bounds["limit"] + len(marks),
        }
        rows = self._rows(_FACTS % (self._conditions, _PARTS_OF_MARKS if narrow else "1"), told)
        seen = {(row["block_start"], row["month"]) for row in rows if row["account"] == MARK_ACCOUNT}
        facts = [counted_line(self._topic, "accepted", row) for row in rows if row["account"] != MARK_ACCOUNT]
        return facts, marks <= seen

    def _refused(self, bounds: Mapping[str, Any]) -> list[Inspected]:
        verdicts = [verdict for verdict in self._chosen.verdicts if verdict in ("conflict", "rejected")]
        rows = self._rows(_REFUSED % self._conditions, {**self._told, **bounds, "verdicts": verdicts})
        return [refused_line(self._topic, row) for row in rows]

    def _duplicates(
        self, bounds: Mapping[str, Any], blocks: Sequence[_Block], room: int, *, narrow: bool
    ) -> tuple[list[Inspected], bool]:
        since = min(block.stated_at for block in blocks) - _SLACK
        told = {**bounds, "since": since.replace(microsecond=0)}
        rows = self._rows(_REPEATS % (_PARTS_SINCE if narrow else "1"), told)
        all_seen = len(rows) >= sum(block.again_kept for block in blocks)
        first = (bounds["next_offset"], bounds["next_line"])
        again = [row for row in rows if row["verdict"] == "duplicate" and (row["offset"], row["line"]) >= first]
        found: list[Inspected] = []
        for at in range(0, len(again), _IDS_AT_ONCE):
            part = again[at : at + _IDS_AT_ONCE]
            ids = {"ids": sorted({row["id_hash"] for row in part})}
            facts = {
                row["id_hash"]: row for row in self._rows(_FIRST % self._conditions, {**bounds, **self._told, **ids})
            }
            for row in part:
                if (fact := facts.get(row["id_hash"])) and len(found) < room:
                    found.append(counted_line(self._topic, "duplicate", {**fact, **row}))
            if len(found) >= room:
                break
        return found, all_seen

    # -- the store

    def _counted(self) -> dict[int, tuple[int, int]]:
        """Epoch and position up to which each partition is counted."""
        rows = self._rows(_PROGRESS, {"topic": self._topic})
        return {row["partition"]: (row["epoch"], row["position"]) for row in rows}

    def _blocks(self, partition: int, place: Place, end: int | None) -> list[_Block]:
        where = {
            "topic": self._topic,
            "epoch": place.epoch,
            "partition": partition,
            "block": place.start,
            "end": (1 << 63) - 1 if end is None else end,
        }
        return [_Block(*row) for row in self._store.query(_BLOCKS, where, _SETTINGS).rows]

    def _rows(self, sql: str, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        answer = self._store.query(sql, told, _SETTINGS)
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def _run(blocks: Sequence[_Block]) -> Sequence[_Block]:
    """The first blocks that hang together, none a gap, with no more events than one look takes."""
    events, taken = blocks[0].events, 1
    while taken < len(blocks):
        after = blocks[taken]
        events += after.events
        if events > _EVENTS_MAX or after.start != blocks[taken - 1].end or after.rules == GAP_RULES:
            break
        taken += 1
    return blocks[:taken]


def _places(token: str, topic: str) -> dict[int, Place]:
    """What a token says. Raises TokenError."""
    try:
        body = base64.b64decode(token + "=" * (-len(token) % 4), "-_", validate=True)
        named, places = msgspec.msgpack.decode(body, type=tuple[str, dict[int, Place]])
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise TokenError("the token is none that a tail gave; leave it out to begin now") from error
    numbers = [number for p, place in places.items() for number in (p, *msgspec.structs.astuple(place))]
    sane = all(0 <= number < 1 << 62 for number in numbers) and len(places) <= _PARTITIONS_MAX
    if not sane or named != topic or any(place.offset < place.start for place in places.values()):
        raise TokenError("the token is none of a tail of this topic; leave it out to begin now")
    return places


# ------------------------------------------------------------------------------------------------ statements

_PROGRESS: Final = "SELECT `partition`, epoch, position FROM progress FINAL WHERE topic = {topic:String}"
_BLOCKS: Final = f"""SELECT
    `start`,
    max(`end`),
    groupArrayIf(month, month > 0),
    maxIf(rules, month = 0),
    maxIf(events, month = 0),
    maxIf(accepted, month = 0),
    maxIf(duplicates, month = 0),
    maxIf(conflicts + rejected, month = 0),
    maxIf((duplicates + conflicts) * repeats_kept, month = 0),
    min(stated_at)
FROM blocks
FINAL
WHERE topic = {{topic:String}} AND epoch = {{epoch:UInt32}} AND `partition` = {{partition:UInt32}}
    AND `start` >= {{block:UInt64}} AND `start` < {{end:UInt64}}
GROUP BY `start`
ORDER BY `start`
LIMIT {_BLOCKS_MAX}"""
_RANGE: Final = """epoch = {epoch:UInt32} AND `partition` = {partition:UInt32}
    AND `offset` >= {block:UInt64} AND `offset` < {end:UInt64}"""
_NEXT: Final = "(`offset`, line) >= ({next_offset:UInt64}, {next_line:UInt32})"
# A block's rows lie in the part of its mark, whatever is merged.
_PARTS_OF_MARKS: Final = """_part IN (
        SELECT DISTINCT _part
        FROM events
        WHERE account = '' AND client_id = {mark:String} AND block_start >= {block:UInt64}
            AND block_start < {end:UInt64} AND toYYYYMM(timestamp) IN {months:Array(UInt32)}
    )"""
_FACTS: Final = f"""SELECT account, block_start, toYYYYMM(timestamp) AS month, {FACT_COLUMNS}
FROM events
WHERE account IN ({{account:String}}, '') AND {_RANGE} AND toYYYYMM(timestamp) IN {{months:Array(UInt32)}}
    AND ((account = '' AND client_id = {{mark:String}}) OR (account != '' AND {_NEXT} AND %s))
    AND %s
ORDER BY account != '', `offset`, line
LIMIT {{limit:UInt32}}"""
_REFUSED: Final = f"""SELECT *
FROM
(
    SELECT {REFUSED_COLUMNS}
    FROM rejects AS r
    FINAL
    WHERE r.topic = {{topic:String}} AND r.account = {{account:String}} AND r.epoch = {{epoch:UInt32}}
        AND r.`partition` = {{partition:UInt32}} AND r.`offset` >= {{block:UInt64}} AND r.`offset` < {{end:UInt64}}
        AND has({{verdicts:Array(String)}}, toString(r.verdict))
)
WHERE {_NEXT} AND %s
ORDER BY `offset`, line
LIMIT {{limit:UInt32}}"""
_PARTS_SINCE: Final = """_part IN (
        SELECT name FROM system.parts
        WHERE database = currentDatabase() AND table = 'repeats' AND modification_time >= {since:DateTime('UTC')}
    )"""
_REPEATS: Final = f"""SELECT DISTINCT
    epoch, `partition`, `offset`, line, id_hash, toString(verdict) AS verdict, append_time
FROM repeats
WHERE topic = {{topic:String}} AND {_RANGE} AND %s
ORDER BY `offset`, line"""
_FIRST: Final = """SELECT id_hash, transaction_id, client_id, entity_id, timestamp, event_name, feature_id, value, data,
    `meters.feature` AS features
FROM events
WHERE account = {account:String} AND id_hash IN {ids:Array(UInt128)} AND %s
LIMIT 1 BY id_hash"""
