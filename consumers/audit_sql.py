"""Statements of the audit. Each gives what is wrong, nothing when all is well, except the counts.

Rules: both sides of every comparison are recomputed from rows, in one pass over each table, so that a statement can
spill to disk. Messages state differences, which stay the same while a running worker adds to both sides. What lies
past a worker's progress is under way and not looked at by the checks of blocks and positions.
"""

# ruff: noqa: S608 - the parts are constants of this module; values are bound by the server

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from consumers.windows import CELL, DAY, Period, covering

FOUND_MAX: Final = 10_000  # rows of one check: past that a store is rebuilt, not read
_NO_PARTITION: Final = 4_294_967_295
CELLS_SHOWN: Final = 100
CELLS_FOLLOWED: Final = 10_000  # differing cells of one slice that are looked for again; 12 bytes each

VERDICTS: Final = ("events", "accepted", "duplicates", "conflicts", "rejected", "rerouted")


def settled(offset: str) -> str:
    """Whether a position lies before what its partition's worker has reported as counted."""
    return (
        f"(epoch, {offset}) < (transform(`partition`, {{partitions:Array(UInt32)}}, {{epochs:Array(UInt32)}},"
        " toUInt32(4294967295)), transform(`partition`, {partitions:Array(UInt32)}, {positions:Array(UInt64)},"
        " toUInt64(18446744073709551615)))"
    )


def settled_until(topic: str, places: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """The parameters of such a statement: the topic, and epoch and offset before which each partition is settled."""
    known = {**places, _NO_PARTITION: (0, 0)}  # an empty array has no type to compare with
    return {
        "topic": topic,
        "partitions": list(known),
        "epochs": [epoch for epoch, _ in known.values()],
        "positions": [offset for _, offset in known.values()],
    }


_BLOCKS: Final = f"blocks FINAL WHERE topic = {{topic:String}} AND {settled('`start`')}"
# account '' holds the marks of blocks (pipeline.stages.sink), id 0 their ids: they are no events
_FACTS: Final = f"events WHERE account != '' AND {settled('block_start')}"
_IDS: Final = f"event_ids WHERE id_hash != 0 AND {settled('`offset`')}"

PROGRESS: Final = (
    "SELECT `partition`, epoch, position FROM progress FINAL WHERE topic = {topic:String} ORDER BY `partition`"
)

# rules 0: no block, but a range that was given up (pipeline.block.GAP_RULES)
COUNTS: Final = (
    f"SELECT {', '.join(f'sum({name})' for name in VERDICTS)}, countIf(rules != 0) FROM {_BLOCKS} AND month = 0"
)

FACT_COUNTS: Final = f"SELECT (SELECT count() FROM {_FACTS}) AS stored, (SELECT count() FROM {_IDS}) AS ids"

RANGES: Final = f"""SELECT epoch, `partition`, `start`, `end`, message
FROM
(
    SELECT
        epoch,
        `partition`,
        `start`,
        `end`,
        lagInFrame(`end`, 1, if(known = 1, first_offset, `start`)) OVER (
            PARTITION BY epoch, `partition` ORDER BY `start`
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS expected,
        multiIf(
            `end` < `start`,
            'the block ends before it starts',
            `start` > expected,
            concat('gap: offsets ', toString(expected), ' to ', toString(`start` - 1), ' are in no block'),
            `start` < expected,
            concat('overlap: offsets ', toString(`start`), ' to ', toString(expected - 1), ' are in two blocks'),
            ''
        ) AS message
    FROM
    (
        SELECT epoch, `partition`, `start`, `end`
        FROM {_BLOCKS} AND month = 0
    ) AS b
    LEFT JOIN
    (
        SELECT epoch, `partition`, first_offset, toUInt8(1) AS known
        FROM epochs FINAL
        WHERE topic = {{topic:String}}
    ) AS e USING (epoch, `partition`)
)
WHERE message != ''
ORDER BY epoch, `partition`, `start`
LIMIT {FOUND_MAX}"""

# Every range that was given up, whoever has told of it; told = 0 where the ledger has it without its reason.
GAPS: Final = """SELECT epoch, `partition`, `start`, `end`, told, message
FROM
(
    SELECT
        b.epoch AS epoch,
        b.`partition` AS `partition`,
        b.`start` AS `start`,
        b.`end` AS `end`,
        g.told AS told,
        if(
            told = 1,
            concat(
                'given up: ', toString(`end` - `start`), ' records at most, by ', told_by, ' at ',
                formatDateTime(told_at, '%Y-%m-%dT%H:%i:%SZ', 'UTC'), ': ', reason
            ),
            'given up, and nobody has told why'
        ) AS message
    FROM
    (
        SELECT epoch, `partition`, `start`, `end`
        FROM blocks FINAL WHERE topic = {topic:String} AND month = 0 AND rules = 0 AND `end` > `start`
    ) AS b
    LEFT JOIN
    (
        SELECT epoch, `partition`, `start`, `end`, reason, told_by, told_at, toUInt8(1) AS told
        FROM gaps FINAL
        WHERE topic = {topic:String}
    ) AS g ON b.epoch = g.epoch AND b.`partition` = g.`partition` AND b.`start` = g.`start` AND b.`end` = g.`end`
)
ORDER BY epoch, `partition`, `start`"""

VERDICT_SUMS: Final = f"""SELECT epoch, `partition`, `start`, message
FROM
(
    SELECT
        epoch,
        `partition`,
        `start`,
        sumIf(events, month = 0) AS read,
        sumIf(accepted + duplicates + conflicts + rejected + rerouted, month = 0) AS judged,
        sumIf(accepted, month = 0) AS counted,
        sumIf(rows, month = 0) AS rows_stated,
        sumIf(rows, month > 0) AS rows_by_month,
        multiIf(
            countIf(month = 0) != 1,
            'months of a block are there, the block itself is not',
            read != judged,
            concat('read ', toString(read), ' events, judged ', toString(judged)),
            counted != rows_by_month,
            concat('accepted ', toString(counted), ' events, its months have ', toString(rows_by_month), ' rows'),
            counted != rows_stated,
            concat('accepted ', toString(counted), ' events, states ', toString(rows_stated), ' rows'),
            ''
        ) AS message
    FROM {_BLOCKS}
    GROUP BY epoch, `partition`, `start`
)
WHERE message != ''
ORDER BY epoch, `partition`, `start`
LIMIT {FOUND_MAX}"""

BLOCK_SUMS: Final = f"""SELECT epoch, `partition`, `start`, month, message
FROM
(
    SELECT
        epoch,
        `partition`,
        `start`,
        month,
        toInt64(sum(found_rows)) - toInt64(sum(stated_rows)) AS rows_over,
        sum(found_value) - sum(stated_value) AS value_over,
        multiIf(
            rows_over != 0 OR value_over != 0,
            concat(
                'facts have ', toString(rows_over), ' rows and value ', toString(value_over), ' more than the ledger'
            ),
            sum(stated_ids) != sum(found_ids),
            'facts have other ids than the ledger',
            sum(found_rows) > 0 AND (min(lowest) < `start` OR max(highest) >= max(`end`)),
            'facts of the block lie at offsets outside it',
            ''
        ) AS message
    FROM
    (
        SELECT
            epoch,
            `partition`,
            `start`,
            month,
            `end`,
            rows AS stated_rows,
            value_sum AS stated_value,
            id_hash_sum AS stated_ids,
            toUInt64(0) AS found_rows,
            toDecimal256(0, 9) AS found_value,
            toUInt128(0) AS found_ids,
            toUInt64(18446744073709551615) AS lowest,
            toUInt64(0) AS highest
        FROM {_BLOCKS} AND month BETWEEN {{month_from:UInt32}} AND {{month_to:UInt32}}
        UNION ALL
        SELECT
            epoch,
            `partition`,
            block_start AS `start`,
            toYYYYMM(timestamp) AS month,
            toUInt64(0) AS `end`,
            toUInt64(0) AS stated_rows,
            toDecimal256(0, 9) AS stated_value,
            toUInt128(0) AS stated_ids,
            count() AS found_rows,
            sum(toDecimal256(value, 9)) AS found_value,
            sum(id_hash) AS found_ids,
            min(`offset`) AS lowest,
            max(`offset`) AS highest
        FROM {_FACTS}
            AND toYYYYMM(timestamp) BETWEEN {{month_from:UInt32}} AND {{month_to:UInt32}}
        GROUP BY epoch, `partition`, `start`, month
    )
    GROUP BY epoch, `partition`, `start`, month
)
WHERE message != ''
ORDER BY epoch, `partition`, `start`, month
LIMIT {FOUND_MAX}"""

REJECTS: Final = f"""SELECT epoch, `partition`, `start`, message
FROM
(
    SELECT
        epoch,
        `partition`,
        `start`,
        toInt64(sum(found_rejected)) - toInt64(sum(rejected)) AS rejected_over,
        toInt64(sum(found_conflicts)) - toInt64(sum(conflicts)) AS conflicts_over,
        concat(
            'rejects have ', toString(rejected_over), ' refused lines and ', toString(conflicts_over),
            ' conflicts more than the ledger'
        ) AS message
    FROM
    (
        SELECT epoch, `partition`, `start`, rejected, conflicts, 0 AS found_rejected, 0 AS found_conflicts
        FROM {_BLOCKS} AND month = 0
        UNION ALL
        SELECT
            r.epoch AS epoch,
            r.`partition` AS `partition`,
            b.`start` AS `start`,
            0 AS rejected,
            0 AS conflicts,
            countIf(r.verdict = 'rejected') AS found_rejected,
            countIf(r.verdict = 'conflict') AS found_conflicts
        FROM
        (
            SELECT epoch, `partition`, `offset`, verdict
            FROM rejects FINAL
            WHERE topic = {{topic:String}} AND {settled("`offset`")}
        ) AS r
        ASOF LEFT JOIN
        (
            SELECT epoch, `partition`, `start`
            FROM {_BLOCKS} AND month = 0
        ) AS b ON r.epoch = b.epoch AND r.`partition` = b.`partition` AND r.`offset` >= b.`start`
        GROUP BY epoch, `partition`, `start`
    )
    GROUP BY epoch, `partition`, `start`
)
WHERE rejected_over != 0 OR conflicts_over != 0
ORDER BY epoch, `partition`, `start`
LIMIT {FOUND_MAX}"""

REPEATS: Final = f"""SELECT epoch, `partition`, `start`, message
FROM
(
    SELECT
        epoch,
        `partition`,
        `start`,
        toInt64(sum(found_duplicates)) - toInt64(sum(duplicates)) AS duplicates_over,
        toInt64(sum(found_conflicts)) - toInt64(sum(conflicts)) AS conflicts_over,
        concat(
            'repeats have ', toString(duplicates_over), ' duplicates and ', toString(conflicts_over),
            ' conflicts more than the ledger'
        ) AS message
    FROM
    (
        SELECT
            epoch, `partition`, `start`, duplicates, conflicts, 0 AS found_duplicates, 0 AS found_conflicts,
            repeats_kept AS kept, toUInt8(1) AS stated
        FROM {_BLOCKS} AND month = 0
        UNION ALL
        SELECT
            epoch,
            `partition`,
            block_start AS `start`,
            0 AS duplicates,
            0 AS conflicts,
            countIf(verdict = 'duplicate') AS found_duplicates,
            countIf(verdict = 'conflict') AS found_conflicts,
            toUInt8(0) AS kept,
            toUInt8(0) AS stated
        FROM repeats FINAL
        WHERE topic = {{topic:String}} AND {settled("block_start")}
        GROUP BY epoch, `partition`, block_start
    )
    GROUP BY epoch, `partition`, `start`
    HAVING max(kept) = 1 OR max(stated) = 0
)
WHERE duplicates_over != 0 OR conflicts_over != 0
ORDER BY epoch, `partition`, `start`
LIMIT {FOUND_MAX}"""

IDS: Final = f"""SELECT toString(id_hash) AS id, concat('counted ', toString(count()), ' times') AS message
FROM {_FACTS} AND modulo(id_hash, {{slices:UInt32}}) = {{slice:UInt32}}
GROUP BY id_hash
HAVING count() > 1
ORDER BY id
LIMIT {FOUND_MAX}"""

POSITIONS: Final = f"""SELECT
    epoch,
    `partition`,
    `offset`,
    line,
    multiIf(
        sum(facts) = 0, 'its id is kept, the fact is missing',
        sum(ids) = 0, 'its fact is there, the id is missing',
        min(id_hash) != max(id_hash), 'fact and id differ',
        concat('stored ', toString(sum(facts)), ' times, its id ', toString(sum(ids)), ' times')
    ) AS message
FROM
(
    SELECT epoch, `partition`, `offset`, line, id_hash, 1 AS facts, 0 AS ids
    FROM {_FACTS} AND modulo(cityHash64(epoch, `partition`, `offset`, line), {{slices:UInt32}}) = {{slice:UInt32}}
    UNION ALL
    SELECT epoch, `partition`, `offset`, line, id_hash, 0 AS facts, 1 AS ids
    FROM {_IDS}
        AND modulo(cityHash64(epoch, `partition`, `offset`, line), {{slices:UInt32}}) = {{slice:UInt32}}
)
GROUP BY epoch, `partition`, `offset`, line
HAVING sum(facts) != 1 OR sum(ids) != 1 OR min(id_hash) != max(id_hash)
ORDER BY epoch, `partition`, `offset`, line
LIMIT {FOUND_MAX}"""

MONTHS: Final = (
    "SELECT toYYYYMM(timestamp) AS month, count() AS facts"
    " FROM events WHERE account != '' GROUP BY month ORDER BY month"
)

_ORDER: Final = (
    "bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)"
    " + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)"
    " + bitShiftLeft(toUInt256(epoch), 128) + bitShiftLeft(toUInt256(`partition`), 96)"
    " + bitShiftLeft(toUInt256(`offset`), 32) + line"
)


class _Join(NamedTuple):
    """An array join: the arrays it reads, the names it gives to their elements, and which of those are wanted."""

    arrays: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        pairs = zip(self.arrays, self.names, strict=True)
        return "ARRAY JOIN " + ", ".join(f"{array} AS {name}" for array, name in pairs)


_METERS: Final = _Join(
    ("meters.feature", "meters.rev", "meters.quantity", "meters.distinct_hash"),
    ("feature", "rev", "quantity", "distinct_hash"),
)
_DIMS: Final = _Join(
    ("dims.name", "dims.rev", "dims.text", "dims.number", "dims.is_number"),
    ("dimension", "dimension_rev", "text", "number", "is_number"),
)
_PLAIN: Final = (
    "account", "client_id", "entity_id", "event_name", "timestamp", "append_time", "value",
    "epoch", "`partition`", "`offset`", "line", "sign",
)  # fmt: skip
_DAY: Final = "toDate(timestamp)"
_BUCKET: Final = "toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC')"


@dataclass(frozen=True, slots=True)
class RollupCheck:
    """A rollup and how its cells are recomputed: keys with their expressions over a row, the array joins that make
    rows of facts, which rows count, and the amount that is aggregated ("" where only events are counted)."""

    table: str
    keys: tuple[str, ...]
    expressions: tuple[str, ...]
    joins: tuple[_Join, ...]
    where: str
    amount: str
    latest: bool = False

    @property
    def time(self) -> str:
        """The key that is the cell's time: `day` or `bucket`."""
        return "day" if "day" in self.keys else "bucket"


def _check(table: str, keys: str, joins: tuple[_Join, ...], amount: str, **extra: Any) -> RollupCheck:
    names = tuple(keys.split())
    computed = {"day": _DAY, "bucket": _BUCKET, "value": "text"}
    return RollupCheck(
        table, names, tuple(computed.get(n, n) for n in names), joins, extra.pop("where", ""), amount, **extra
    )


ROLLUPS: Final[tuple[RollupCheck, ...]] = (
    _check("usage_client_day", "account feature rev client_id entity_id day", (_METERS,), "quantity", latest=True),
    _check(
        "usage_client_edge_15m",
        "account feature rev bucket client_id entity_id",
        (_METERS,),
        "quantity",
        where="if(account = '', distinct_hash != 0,"  # marks of blocks that go to sparse tables
        " toYYYYMM(timestamp + INTERVAL 14 HOUR) != toYYYYMM(timestamp - INTERVAL 12 HOUR))",
    ),
    _check("usage_15m", "account feature rev bucket", (_METERS,), "quantity", latest=True),
    _check(
        "usage_dimension_15m",
        "account feature rev dimension dimension_rev value bucket",
        (_METERS, _DIMS),
        "quantity",
        where="is_number = 0",
    ),
    _check(
        "usage_uniques_client_day",
        "account feature rev client_id entity_id day distinct_hash",
        (_METERS,),
        "",
        where="distinct_hash != 0",
    ),
    _check("events_client_day", "account event_name client_id entity_id day", (), "value"),
    _check("events_15m", "account event_name bucket", (), "value"),
    _check(
        "events_dimension_15m",
        "account event_name dimension dimension_rev is_number text bucket",
        (_DIMS,),
        "if(is_number = 1, number, value)",
    ),
)


def rollup_cells(check: RollupCheck, account: str | None, period: Period) -> tuple[str, dict[str, Any]]:
    """Compare each cell of a rollup that the period touches with facts and corrections, both ways.

    One row: cells compared, cells that differ, and (fingerprint, year) of up to CELLS_FOLLOWED of those. A fingerprint
    is of a cell and its difference, and the least ones are taken: whoever looks twice meets the same ones again, in
    whatever order the store works and however many others are under way.
    """
    cells, parameters = _compared_cells(check, account, period)
    sql = (
        "SELECT count() AS compared, countIf(message != '') AS broken,"
        f" groupArraySortedIf({CELLS_FOLLOWED})((fingerprint, year), message != '')\nFROM\n(\n{cells}\n)"
    )
    return sql, parameters


def rollup_differences(
    check: RollupCheck, account: str | None, period: Period, fingerprints: Sequence[int]
) -> tuple[str, dict[str, Any]]:
    """The cells with these fingerprints: rows of keys and message."""
    cells, parameters = _compared_cells(check, account, period)
    keys = ", ".join(f"toString({key})" for key in check.keys)
    sql = (
        f"SELECT {keys}, message\nFROM\n(\n{cells}\n)\n"
        f"WHERE message != '' AND fingerprint IN {{fingerprints:Array(UInt64)}}\nORDER BY {', '.join(check.keys)}"
    )
    return sql, {**parameters, "fingerprints": list(fingerprints)}


def _compared_cells(check: RollupCheck, account: str | None, period: Period) -> tuple[str, dict[str, Any]]:
    """Each cell's keys, year, message ('' where all is well) and fingerprint."""
    cells = covering(period, DAY if check.time == "day" else CELL)
    shape = "%Y-%m-%d" if check.time == "day" else "%Y-%m-%d %H:%M:%S"
    type_ = "Date" if check.time == "day" else "DateTime('UTC')"
    parameters: dict[str, Any] = {"from": cells.start.strftime(shape), "to": cells.end.strftime(shape)}
    if account is not None:
        parameters["account"] = account
    keys = ", ".join(check.keys)
    one_account = " AND account = {account:String}" if account is not None else ""
    stated = (
        f"        SELECT {keys}, toUInt8(1) AS side, {_merged(check)}\n        FROM {check.table}\n"
        f"        WHERE {check.time} >= {{from:{type_}}} AND {check.time} < {{to:{type_}}}{one_account}\n"
        f"        GROUP BY {keys}"
    )
    # Cells begin at whole days or quarters, so the bounds of cells are bounds of timestamps.
    within = (
        f"kind = 'delta' AND timestamp >= toDateTime64({{from:{type_}}}, 6, 'UTC')"
        f" AND timestamp < toDateTime64({{to:{type_}}}, 6, 'UTC'){one_account}"
    )
    found = (
        f"        SELECT {', '.join(_aliased(check))}, toUInt8(0) AS side, {_recomputed(check)}\n"
        f"        FROM\n        (\n{_signed(check, within)}\n        )\n        GROUP BY {keys}"
    )
    sql = (
        f"    SELECT {keys}, toYear({check.time}) AS year, {_message(check)},"
        f" cityHash64({keys}, message) AS fingerprint\n"
        f"    FROM\n    (\n{stated}\n        UNION ALL\n{found}\n    )\n    GROUP BY {keys}"
    )
    return sql, parameters


def _aliased(check: RollupCheck) -> Sequence[str]:
    pairs = zip(check.expressions, check.keys, strict=True)
    return [key if expression == key else f"{expression} AS {key}" for expression, key in pairs]


def _merged(check: RollupCheck) -> str:
    if not check.amount:
        return "sum(events) AS n"
    states = (
        "sum(events) AS n, sum(total) AS amount_sum, min(min_value) AS smallest, max(max_value) AS largest,"
        " sum(withdrawn) AS taken_out"
    )
    return f"{states}, argMaxMerge(latest) AS last" if check.latest else states


def _recomputed(check: RollupCheck) -> str:
    if not check.amount:
        return "sum(toInt64(sign)) AS n"
    amount = check.amount
    states = (
        f"sum(toInt64(sign)) AS n, sum(toDecimal256({amount}, 9) * sign) AS amount_sum,"
        f" min({amount}) AS smallest, max({amount}) AS largest, countIf(sign < 0) AS taken_out"
    )
    return f"{states}, argMaxIf({amount}, {_ORDER}, sign > 0) AS last" if check.latest else states


def _signed(check: RollupCheck, within: str) -> str:
    """Rows of facts (sign 1) and corrections, joined with their meters and dimensions."""
    arrays = [array for join in check.joins for array in join.arrays]
    facts = ", ".join([*_PLAIN[:-1], "toInt8(1) AS sign", *arrays])
    rows = (
        f"            SELECT {facts} FROM events WHERE {within}\n            UNION ALL\n"
        f"            SELECT {', '.join([*_PLAIN, *arrays])} FROM corrections WHERE {within}"
    )
    names = list(_PLAIN)
    for at, join in enumerate(check.joins):
        names += join.names
        following = [array for later in check.joins[at + 1 :] for array in later.arrays]
        selected = ", ".join([*names, *following])
        rows = f"            SELECT {selected} FROM\n            (\n{rows}\n            )\n            {join.text}"
    return f"{rows}\n            WHERE {check.where}" if check.where else rows


def _message(check: RollupCheck) -> str:
    """Why a cell is wrong, or ''. Two sides meet here: 1 the rollup's, 0 what was recomputed."""
    over = "sumIf(n, side = 1) - sumIf(n, side = 0)"
    tests = [f"{over} != 0, concat('the rollup has ', toString({over}), ' events more than facts')"]
    if check.amount:
        amount = "sumIf(amount_sum, side = 1) - sumIf(amount_sum, side = 0)"
        tests.append(f"{amount} != 0, concat('the rollup has ', toString({amount}), ' more than facts')")
        tests.append(
            "sumIf(taken_out, side = 1) != sumIf(taken_out, side = 0), 'corrections are missing in the rollup'"
        )
        compared = [("smallest", "smallest"), ("largest", "largest")] + ([("last", "latest")] if check.latest else [])
        tests += [
            f"sum(taken_out) = 0 AND min({column}) != max({column}), 'the {name} value differs'"
            for column, name in compared
        ]
    tests.append("count() != 2, 'the cell is on one side only'")
    return f"multiIf({', '.join(tests)}, '') AS message"
