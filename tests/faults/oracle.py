"""What must be in the store after a round, and what is.

Computed only from what was acknowledged: the plan of the round, the journal, and the log itself, read with a plain
consumer and a plain JSON decoder. The log decides three things that no sender can know: which of several contents of
an id came first, how often an event without an id was appended by tries whose outcome was unknown, and how many lines
of each verdict each partition holds. No stage of the pipeline is imported; rollups are made again by plain SQL over
the expected rows in a scratch table.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import httpx
import orjson
import pyarrow as pa
from cluster import PARTITIONS, TOPIC, TOPIC_REJECTS, Cluster, plain_consumer
from confluent_kafka import TopicPartition
from events import MOVED, PLAIN, RAISED, SPELLED, Batch, Content, content, home, identity, plan
from load import Acknowledged

VERDICTS: Final = ("accepted", "duplicates", "conflicts", "rejected", "rerouted")
_FINDINGS_MAX: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SILENT_S: Final = 60.0
_SAME: Final = frozenset({PLAIN, SPELLED})


@dataclass(slots=True)
class Report:
    """What a round came to. `sent`: events acknowledged, repetitions included; `lost`: acknowledged and not in facts,
    `doubled`: surplus rows in facts, `wrong_cells`: cells of rollups, ledger rows or rejects that differ."""

    sent: int = 0
    accepted: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    wrong_cells: int = 0
    drift: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every number is what it must be."""
        return not (self.lost or self.doubled or self.wrong or self.wrong_cells or self.drift or self.findings)

    def find(self, told: str) -> None:
        """Notes something that is not as it must be; the first few are kept."""
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(told)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log. `event` is None for one that is no event; `home`: it lies in the partition of its id."""

    partition: int
    offset: int
    line: int
    event: Mapping[str, Any] | None
    home: bool
    timeless: bool


@dataclass(slots=True)
class Judged:
    """The log's lines by verdict: accepted lines by event number, positions of refused lines, counts a partition."""

    accepted: dict[int, list[LogLine]] = field(default_factory=dict)
    refused: set[tuple[int, int, int, str]] = field(default_factory=set)
    counts: dict[int, Counter[str]] = field(default_factory=dict)
    numbers: Counter[int] = field(default_factory=Counter)


class Oracle:
    """Checks rounds of one cluster. Blocks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._http = httpx.Client(base_url=cluster.clickhouse, timeout=120)

    def close(self) -> None:
        """Gives the connection back."""
        self._http.close()

    def check(  # noqa: PLR0917 - called in one place
        self,
        seed: int,
        account: str,
        events: int,
        journal: Sequence[Acknowledged],
        starts: Mapping[int, int],
        ends: Mapping[int, int],
        unsent: int = 0,
    ) -> Report:
        """The round whose records lie in [starts, ends) of each partition, with nothing else between; `unsent` batches
        of its plan were never begun."""
        batches = plan(seed, account, events, PARTITIONS)
        done = {entry.batch for entry in journal}
        report = Report(unknown=sum(entry.unknown for entry in journal))
        if len(done) + unsent != len(batches):
            report.find(f"{len(batches) - len(done) - unsent} of {len(batches)} batches were never acknowledged")
        sent = [batch for batch in batches if batch.number in done]
        report.sent = sum(len(batch.items) for batch in sent)
        judged = judge(account, read_lines(self._cluster.kafka, account, starts, ends, report))
        expected = _expected(seed, sent, judged, report)
        report.accepted = len(expected)
        totals: Counter[str] = sum(judged.counts.values(), Counter())
        report.verdicts = {name: totals[name] for name in VERDICTS}
        self._load(expected)
        self._facts(account, report)
        for table in _ROLLUPS:
            self._rollup(account, table, report)
        self._ledger(judged, starts, ends, report)
        self._rejects(account, judged, report)
        return report

    def audit(self, report: Report) -> None:
        """`tally audit` over the whole store, as an operator runs it."""
        found = json.loads(self._cluster.tally("audit", "--json", codes=(0, 1)))
        report.drift = found["drift"]
        for finding in found["findings"][:_FINDINGS_MAX]:
            report.find(f"audit: {finding}")

    # -- private

    def _query(self, sql: str, **parameters: Any) -> list[list[Any]]:
        asked = {f"param_{name}": value for name, value in parameters.items()}
        settings = {"output_format_json_quote_decimals": 1, "output_format_json_quote_64bit_integers": 0}
        answer = self._http.post("/", params={**asked, **settings}, content=f"{sql} FORMAT JSONCompact".encode())
        if not answer.is_success:
            raise RuntimeError(f"{answer.text[:2000]} in {sql[:2000]}")
        rows: list[list[Any]] = answer.json()["data"]
        return rows

    def _command(self, sql: str, content: bytes = b"") -> None:
        answer = self._http.post("/", params={"query": sql}, content=content)
        if not answer.is_success:
            raise RuntimeError(f"{answer.text[:2000]} in {sql[:2000]}")

    def _load(self, expected: Sequence[tuple[int, str, Content]]) -> None:
        """The expected rows into the scratch table."""
        self._command("CREATE DATABASE IF NOT EXISTS faults")
        self._command("DROP TABLE IF EXISTS faults.expected")
        self._command(_EXPECTED)
        sink = pa.BufferOutputStream()
        table = _arrow(expected)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self._command("INSERT INTO faults.expected FORMAT ArrowStream", bytes(sink.getvalue()))

    def _facts(self, account: str, report: Report) -> None:
        """Each expected event once, with its values."""
        rows = self._query(
            f"""SELECT n, sum(e) AS wanted, sum(f) AS found,
                groupUniqArrayIf(told, e = 1) AS told_wanted, groupUniqArrayIf(told, f = 1) AS told_found
            FROM (SELECT n, 1 AS e, 0 AS f, {_TOLD} FROM faults.expected
                UNION ALL SELECT JSONExtractUInt(data, 'n') AS n, 0, 1, {_FACT_TOLD}
                FROM tally.events WHERE account = {{account:String}})
            GROUP BY n HAVING wanted != found OR NOT hasAll(told_wanted, told_found)""",
            account=account,
        )
        for n, wanted, found, told_wanted, told_found in rows:
            report.lost += max(0, wanted - found)
            report.doubled += max(0, found - wanted)
            report.wrong += wanted == found
            report.find(f"event {n}: wanted {wanted} times {told_wanted}, found {found} times {told_found}")

    def _rollup(self, account: str, table: str, report: Report) -> None:
        keys, measures, source = _ROLLUPS[table]
        mine, theirs = (f"tuple({aggregates})" for aggregates in _AGGREGATES[measures])
        rows = self._query(
            f"""SELECT * FROM (SELECT {keys}, toString(groupArrayIf(measures, side = 0)) AS wanted,
                toString(groupArrayIf(measures, side = 1)) AS found
            FROM (SELECT {keys}, 0 AS side, {mine} AS measures FROM ({source}) GROUP BY {keys}
                UNION ALL SELECT {keys}, 1 AS side, {theirs} AS measures FROM tally.{table}
                WHERE account = {{account:String}} GROUP BY {keys})
            GROUP BY {keys}) WHERE wanted != found""",
            account=account,
        )
        report.wrong_cells += len(rows)
        for row in rows[:3]:
            report.find(f"{table}: {row}")

    def _ledger(self, judged: Judged, starts: Mapping[int, int], ends: Mapping[int, int], report: Report) -> None:
        """What each partition's blocks say became of its lines."""
        for partition in range(PARTITIONS):
            sums = ", ".join(f"sum({name})" for name in ("events", *VERDICTS, "rows", "`end` - `start`"))
            found = self._query(
                f"""SELECT {sums} FROM tally.blocks FINAL WHERE topic = '{TOPIC}' AND month = 0
                AND `partition` = {partition} AND `start` >= {starts[partition]} AND `end` <= {ends[partition]}"""
            )[0]
            counts = judged.counts.get(partition, Counter())
            verdicts = [counts[name] for name in VERDICTS]
            wanted = [sum(verdicts), *verdicts, counts["accepted"], ends[partition] - starts[partition]]
            if [int(number) for number in found] != wanted:
                report.wrong_cells += 1
                report.find(f"ledger of partition {partition}: wanted {wanted}, found {found}")

    def _rejects(self, account: str, judged: Judged, report: Report) -> None:
        """Refused lines and conflicts, in the table and in the topic, each at its position."""
        rows = self._query(
            """SELECT `partition`, `offset`, line, toString(verdict) FROM tally.rejects FINAL
            WHERE account = {account:String}""",
            account=account,
        )
        stored = {(int(p), int(o), int(n), str(verdict)) for p, o, n, verdict in rows}
        told = _rejects_told(self._cluster.kafka, account)
        for where, found in (("table", stored), ("topic", told)):
            if len(rows) != len(stored) or found != judged.refused:
                report.wrong_cells += len(found ^ judged.refused) or 1
                report.find(f"rejects in the {where}: {sorted(found ^ judged.refused)[:5]} differ")


# ------------------------------------------------------------------------------------------------ the log


def read_lines(
    kafka: str, account: str, starts: Mapping[int, int], ends: Mapping[int, int], report: Report
) -> Iterable[LogLine]:
    """All lines of [starts, ends), partition by partition in their order."""
    for partition in range(PARTITIONS):
        for record in _records(kafka, TOPIC, partition, starts[partition], ends[partition]):
            headers = {name: value or b"" for name, value in record.headers() or ()}
            if headers.get("account") != account.encode():
                report.find(f"partition {partition} offset {record.offset()}: of account {headers.get('account')!r}")
            timeless = headers.get("defaulted") == b"timestamp"
            for number, raw in enumerate((record.value() or b"").split(b"\n")):
                try:
                    event = orjson.loads(raw)
                    event = event if "timestamp" in event and "bad" not in event else None
                except orjson.JSONDecodeError:
                    event = None
                known = event.get("transactionId") if event else None
                at_home = known is None or home(account, known, PARTITIONS) == partition
                yield LogLine(partition, record.offset(), number, event, at_home, timeless)


def judge(account: str, lines: Iterable[LogLine]) -> Judged:
    """The verdict of every line: the first of an id in its own partition counts, whatever comes later does not."""
    judged = Judged()
    first: dict[str, LogLine] = {}
    for line in lines:
        counts = judged.counts.setdefault(line.partition, Counter())
        position = (line.partition, line.offset, line.line)
        event = line.event
        if event is None:
            counts["rejected"] += 1
            judged.refused.add((*position, "rejected"))
            continue
        judged.numbers[event["data"]["n"]] += 1
        known = event.get("transactionId")
        if not line.home:
            counts["rerouted"] += 1
        elif known is None or known not in first:
            counts["accepted"] += 1
            judged.accepted.setdefault(event["data"]["n"], []).append(line)
            if known is not None:
                first[known] = line
        elif said(line) == said(first[known]):
            counts["duplicates"] += 1
        else:
            counts["conflicts"] += 1
            judged.refused.add((*position, "conflict"))
    return judged


def said(line: LogLine) -> tuple[Any, ...]:
    """What the line says, whatever its spelling. A timestamp that a door filled in is not the sender's word."""
    event: Mapping[str, Any] = line.event or {}
    instant = None if line.timeless else _instant_us(event["timestamp"])
    value = _billionths(event.get("value", 1))
    return (event["clientId"], event.get("entityId"), instant, event.get("eventName"), value, event["data"])


def _expected(seed: int, sent: Sequence[Batch], judged: Judged, report: Report) -> list[tuple[int, str, Content]]:
    """Number, id ('' where a door or nobody gave one) and content of every row that facts must hold."""
    variants: dict[int, set[int]] = {}
    unsettled: set[int] = set()
    for batch in sent:
        for n, variant in batch.items:
            variants.setdefault(n, set()).add(variant)
            if batch.anonymous or batch.timeless:
                unsettled.add(n)
    for n in judged.accepted:
        if n not in variants:
            report.find(f"event {n} lies in the log and was never acknowledged")
    expected = []
    for n, said_ in variants.items():
        lines = judged.accepted.get(n, [])
        if not lines:
            report.lost += 1
            report.find(f"event {n} was acknowledged and is not in its partition of the log")
            continue
        known = {line.event.get("transactionId") for line in lines if line.event} == {identity(seed, n)}
        if known and said_ <= _SAME and n not in unsettled:
            expected.append((n, identity(seed, n), content(seed, n)))
            continue
        for line in lines:
            expected.append((n, identity(seed, n) if known else "", _content_of(seed, n, line)))
    return expected


def _content_of(seed: int, n: int, line: LogLine) -> Content:
    """What that line says. It must be one of the variants that could have been sent, but for a door's timestamp."""
    event: Mapping[str, Any] = line.event or {}
    value, instant = _billionths(event.get("value", 1)), _instant_us(event["timestamp"])
    for variant in (PLAIN, RAISED, MOVED):
        found = content(seed, n, variant)
        if found.value == value and (line.timeless or found.timestamp_us == instant):
            break
    else:
        raise RuntimeError(f"event {n} lies in the log as nobody sent it: {event}")
    return Content(**{**{name: getattr(found, name) for name in Content.__slots__}, "timestamp_us": instant})


def _records(kafka: str, topic: str, partition: int, start: int, end: int) -> Iterable[Any]:
    if start >= end:
        return
    with plain_consumer(kafka) as consumer:
        consumer.assign([TopicPartition(topic, partition, start)])
        position = start
        silent_until = time.monotonic() + _SILENT_S
        while position < end:
            if time.monotonic() > silent_until:
                raise RuntimeError(f"{topic}/{partition} gives nothing after offset {position}, its end is {end}")
            for record in consumer.consume(500, 0.05):
                silent_until = time.monotonic() + _SILENT_S
                if record.error():
                    raise RuntimeError(f"{topic}/{partition} cannot be read: {record.error()}")
                position = record.offset() + 1
                if record.offset() < end:
                    yield record


def _rejects_told(kafka: str, account: str) -> set[tuple[int, int, int, str]]:
    """Positions and verdicts in the topic of rejects, each at least once."""
    found = set()
    for partition in range(PARTITIONS):
        with plain_consumer(kafka) as consumer:
            low, end = consumer.get_watermark_offsets(TopicPartition(TOPIC_REJECTS, partition), timeout=10)
        for record in _records(kafka, TOPIC_REJECTS, partition, low, end):
            headers = {name: (value or b"").decode() for name, value in record.headers() or ()}
            if headers["account"] == account:
                *_, where, offset, number = headers["position"].split(":")
                found.add((int(where), int(offset), int(number), headers["verdict"]))
    return found


def _instant_us(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND


def _billionths(value: Any) -> int:
    return int(Decimal(str(value)).scaleb(9))


# ------------------------------------------------------------------------------------------------ the store

_EXPECTED: Final = """CREATE TABLE faults.expected
(
    n UInt64, id String, client_id String, entity_id String, timestamp DateTime64(6, 'UTC'), event_name String,
    value Decimal(38, 9), `meters.feature` Array(String), `meters.quantity` Array(Decimal(38, 9)),
    `meters.distinct_hash` Array(UInt128), `dims.name` Array(String), `dims.text` Array(String),
    `dims.number` Array(Decimal(38, 9)), `dims.is_number` Array(UInt8)
)
ENGINE = Memory"""
_TOLD: Final = "tuple(id, client_id, entity_id, timestamp, event_name, value) AS told"
# an id that a door gave is not in the plan: such an event is known by its number alone
_FACT_TOLD: Final = _TOLD.replace("(id,", "(if(transaction_id LIKE '%-%-%', '', transaction_id),")

# measures over expected rows, and over the rollup's states
_SUMS: Final = (
    "count(), sum(toDecimal256(q, 9)), min(q), max(q)",
    "sum(events), sum(total), min(min_value), max(max_value)",
)
_AGGREGATES: Final = {
    "latest": (f"{_SUMS[0]}, argMax(q, timestamp)", f"{_SUMS[1]}, argMaxMerge(latest)"),
    "sums": _SUMS,
    "count": ("count()", "sum(events)"),
}
_TIMES: Final = "timestamp, toDate(timestamp) AS day, toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket"
_METERS: Final = f"""SELECT client_id, entity_id, {_TIMES}, `dims.name`, `dims.text`, `dims.is_number`,
    feature, q, distinct_hash FROM faults.expected
    ARRAY JOIN `meters.feature` AS feature, `meters.quantity` AS q, `meters.distinct_hash` AS distinct_hash"""
_EVENTS: Final = f"SELECT event_name, client_id, entity_id, {_TIMES}, value AS q FROM faults.expected"
_DIMENSIONS: Final = f"""SELECT event_name, {_TIMES}, dimension, text, is_number,
    if(is_number = 1, number, value) AS q FROM faults.expected
    ARRAY JOIN `dims.name` AS dimension, `dims.text` AS text, `dims.number` AS number, `dims.is_number` AS is_number"""
_METERED_DIMENSIONS: Final = f"""SELECT feature, timestamp, bucket, dimension, text AS value, q FROM ({_METERS})
    ARRAY JOIN `dims.name` AS dimension, `dims.text` AS text, `dims.is_number` AS is_number WHERE is_number = 0"""
#: Table: its keys but for the revision, of which there is one; its measures; the expected rows that make it up.
_ROLLUPS: Final = {
    "usage_client_day": ("feature, client_id, entity_id, day", "latest", _METERS),
    "usage_client_edge_15m": (
        "feature, client_id, entity_id, bucket",
        "sums",
        f"SELECT * FROM ({_METERS})"
        " WHERE toYYYYMM(timestamp + INTERVAL 14 HOUR) != toYYYYMM(timestamp - INTERVAL 12 HOUR)",
    ),
    "usage_15m": ("feature, bucket", "latest", _METERS),
    "usage_dimension_15m": ("feature, dimension, value, bucket", "sums", _METERED_DIMENSIONS),
    "usage_uniques_client_day": (
        "feature, client_id, entity_id, day, distinct_hash",
        "count",
        f"SELECT * FROM ({_METERS}) WHERE distinct_hash != 0",
    ),
    "events_client_day": ("event_name, client_id, entity_id, day", "sums", _EVENTS),
    "events_15m": ("event_name, bucket", "sums", _EVENTS),
    "events_dimension_15m": ("event_name, dimension, is_number, text, bucket", "sums", _DIMENSIONS),
}


def _arrow(expected: Sequence[tuple[int, str, Content]]) -> pa.Table:
    exact = pa.decimal128(38, 9)
    wide = pa.binary(16)
    meters = [list(c.meters) for _, _, c in expected]
    texts = [[("repo", c.repo), *([("tier", c.tier)] if c.tier else [])] for _, _, c in expected]
    numbers = [[] if c.latency is None else [c.latency] for _, _, c in expected]
    both = list(zip(texts, numbers, strict=True))
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "n": ([n for n, _, _ in expected], pa.uint64()),
        "id": ([known for _, known, _ in expected], pa.string()),
        "client_id": ([c.client for _, _, c in expected], pa.string()),
        "entity_id": ([c.entity for _, _, c in expected], pa.string()),
        "timestamp": ([c.timestamp_us for _, _, c in expected], pa.timestamp("us", "UTC")),
        "event_name": ([c.name for _, _, c in expected], pa.string()),
        "value": ([_exact(c.value) for _, _, c in expected], exact),
        "meters.feature": ([[m[0] for m in ms] for ms in meters], pa.list_(pa.string())),
        "meters.quantity": ([[_exact(m[1]) for m in ms] for ms in meters], pa.list_(exact)),
        "meters.distinct_hash": ([[m[2].to_bytes(16, "little") for m in ms] for ms in meters], pa.list_(wide)),
        "dims.name": ([[*(name for name, _ in t), *("latency" for _ in n)] for t, n in both], pa.list_(pa.string())),
        "dims.text": ([[*(text for _, text in t), *("" for _ in n)] for t, n in both], pa.list_(pa.string())),
        "dims.number": ([[*(_exact(0) for _ in t), *map(_exact, n)] for t, n in both], pa.list_(exact)),
        "dims.is_number": ([[*(0 for _ in t), *(1 for _ in n)] for t, n in both], pa.list_(pa.uint8())),
    }
    return pa.table({name: pa.array(values, kind) for name, (values, kind) in columns.items()})


def _exact(billionths: int) -> Decimal:
    return Decimal(billionths).scaleb(-9)
