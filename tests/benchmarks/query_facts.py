"""Facts for the queries' part of `make bench`: made inside the engine and inserted into `ingest`, so that the views of
the product fill the rollups.

Events arrive in order of time, a million in a block: an account of 20,000 customers by Zipf 1.1, one event name on two
features, three declared dimensions, 35 days around October 2026 (in which Berlin's clock is set back), and a small
account beside it. The same number gives the same facts.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa

from pipeline.adapters.clickhouse import INSERT_SETTINGS, Store

ACCOUNT: Final = "large"
OTHER_ACCOUNT: Final = "small"
FEATURES: Final = ("generations", "tokens")
EVENT_NAME: Final = "generation"
CUSTOMERS: Final = 20_000
ZIPF: Final = 1.1
DAYS: Final = 35
FIRST: Final = datetime(2026, 9, 29, tzinfo=UTC)
BLOCK_EVENTS: Final = 1_000_000
_OTHER_EACH: Final = 200  # one event in so many is of the other account

_TEXTS: Final = {
    "region": ("eu-central-1", "us-east-1", "ap-south-1", "sa-east-1"),
    "model": ("large-2026", "small-2026", "draft"),
    "status": ("ok", "ok", "ok", "retried", "failed"),
}
_ALIAS: Final = """CREATE TABLE {database}.zipf (slot UInt32, stays UInt64, other UInt32)
ENGINE = Join(ANY, LEFT, slot)"""


def load(store: Store, database: str, number: int, after_block: Callable[[int], None] = lambda _: None) -> None:
    """Fills `database`, which is migrated and empty. `after_block` is told how many are in. Blocks for minutes."""
    store.command(_ALIAS.format(database=database))
    store.insert_arrow(f"{database}.zipf", _alias_rows())
    for first in range(0, number, BLOCK_EVENTS):
        last = min(first + BLOCK_EVENTS, number)
        store.command(
            _insert(database, first, last, number),
            settings={**_SETTINGS, "insert_deduplication_token": f"facts-{first}"},
        )
        after_block(last)
    store.command(f"DROP TABLE {database}.zipf")


_SETTINGS: Final = {
    **INSERT_SETTINGS,
    "max_block_size": BLOCK_EVENTS,
    "max_insert_block_size": BLOCK_EVENTS,
    "parallel_view_processing": 1,
    "max_memory_usage": 0,
}


def _alias_rows() -> pa.Table:
    """Walker's alias method: a slot is drawn evenly and keeps its customer with `stays` of 2**32, else it is `other`.
    So one random number and one look-up give exact Zipf weights."""
    weights = [rank**-ZIPF for rank in range(1, CUSTOMERS + 1)]
    scale = CUSTOMERS / sum(weights)
    share = [weight * scale for weight in weights]
    other = list(range(CUSTOMERS))
    small = [i for i, s in enumerate(share) if s < 1]
    large = [i for i, s in enumerate(share) if s >= 1]
    while small and large:
        less, more = small.pop(), large[-1]
        other[less] = more
        share[more] -= 1 - share[less]
        if share[more] < 1:
            small.append(large.pop())
    stays = [min(int(s * (1 << 32)), 1 << 32) for s in share]
    return pa.table(
        {
            "slot": pa.array(range(CUSTOMERS), pa.uint32()),
            "stays": pa.array(stays, pa.uint64()),
            "other": pa.array(other, pa.uint32()),
        }
    )


def _insert(database: str, first: int, last: int, number: int) -> str:
    """One block; everything of an event follows from its number n."""
    start_us = int(FIRST.timestamp()) * 1_000_000
    step_us = DAYS * 86_400_000_000 / number
    drawn = ", ".join(
        f"{list(values)}[1 + bitAnd(bitShiftRight(h2, {16 * i}), 65535) % {len(values)}]"
        for i, values in enumerate(_TEXTS.values())
    )
    columns = {
        "account": f"if(n % {_OTHER_EACH} = 0, '{OTHER_ACCOUNT}', '{ACCOUNT}')",
        "client_id": "concat('customer-', leftPad(toString((rank + 1) * 7919 % 1000003), 6, '0'))",
        "timestamp": f"fromUnixTimestamp64Micro(toInt64({start_us} + n * {step_us!r}), 'UTC')",
        "append_time": f"fromUnixTimestamp64Milli(intDiv(toInt64({start_us} + n * {step_us!r}), 1000), 'UTC')",
        "transaction_id": "concat(lower(hex(h1)), '-', lower(hex(h2)), '-', toString(n))",
        "id_hash": "bitShiftLeft(toUInt128(h1), 64) + h2",
        "event_name": f"'{EVENT_NAME}'",
        "kind": "'delta'",
        "value": "toDecimal128(amount, 9)",
        "data": 'concat(\'{"region":"\', texts[1], \'","model":"\', texts[2], \'","status":"\', texts[3],'
        ' \'","stream":true,"tokens":\', toString(tokens), \'}\')',
        "`meters.feature`": f"{list(FEATURES)}",
        "`meters.rev`": "[toUInt64(10), 11]",
        "`meters.quantity`": "[toDecimal128(amount, 9), toDecimal128(tokens, 9)]",
        "`meters.distinct_hash`": "[toUInt128(0), toUInt128(0)]",
        "`dims.name`": f"{list(_TEXTS)}",
        "`dims.rev`": "[toUInt64(12), 13, 14]",
        "`dims.text`": "texts",
        "`dims.number`": "[toDecimal128(0, 9), toDecimal128(0, 9), toDecimal128(0, 9)]",
        "`dims.is_number`": "[toUInt8(0), 0, 0]",
        "catalog_version": "14",
        "epoch": "0",
        "`partition`": "n % 6",
        "`offset`": "intDiv(n, 6)",
        "line": "0",
        "block_start": str(first // 6),
        "content_hash": "h1",
        "deadline": "toDateTime64('2099-01-01 00:00:00', 3, 'UTC')",
    }
    return f"""INSERT INTO {database}.ingest ({", ".join(columns)})
SELECT {", ".join(columns.values())}
FROM
(
    SELECT n, h1, h2, 1 + bitAnd(h1, 65535) % 9 AS amount, bitAnd(bitShiftRight(h1, 16), 1048575) % 100000 AS tokens,
        [{drawn}] AS texts,
        if(bitAnd(h3, 4294967295) < joinGet('{database}.zipf', 'stays', slot), slot,
            joinGet('{database}.zipf', 'other', slot)) AS rank
    FROM
    (
        SELECT number AS n, cityHash64(n) AS h1, intHash64(cityHash64(n, 'other')) AS h2,
            cityHash64(n, 'slot') AS h3,
            toUInt32(bitShiftRight(h3, 32) % {CUSTOMERS}) AS slot
        FROM numbers({first}, {last - first})
    )
)"""
