"""What building a block costs: processor time an event, line by line and in columns, over the same records.

``python tests/benchmarks/build_block.py [--events 60000] [--json]``. Events of about 220 bytes with four keys of data,
one name that feeds two features, three dimensions; in records of 1 and of 100 events. The table of first sightings is
left out: tests/benchmarks/dedup_growth.py measures it.
"""

import argparse
import json
import random
import statistics
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.table import Table

from pipeline.block import RULES, LogRecord, Place
from pipeline.catalog import Account, Catalog, Dimension, Feature, encode_account, encode_dimension, encode_feature
from pipeline.records import Records
from pipeline.stages.build import RuleSet, build_block
from pipeline.stages.columnar import warm_up
from pipeline.stages.mapping import Mapper, Mappers

_NOW_MS = 1_795_300_000_000
_RUNS = 5
_WAYS = {"by lines": {RULES: RuleSet(columns=None)}, "in columns": {RULES: RuleSet()}}


def mapper_for(account: str, event_name: str, number: str) -> Mapper:
    """A catalog in which the event name feeds two features, by its value and by that number of its data, and three
    dimensions are declared, as in bench_events."""
    catalog = Catalog()
    names = (event_name,)
    objects = [
        encode_account(Account(id=account, name="", mode="live"), "0"),
        encode_feature(Feature(account=account, id="uses", name="", event_names=names), "1"),
        encode_feature(Feature(account=account, id=number, name="", event_names=names, value_key=number), "2"),
        *[
            encode_dimension(Dimension(account=account, key=key, type="string"), f"d{n}")
            for n, key in enumerate(("region", "model", "status"))
        ],
    ]
    for offset, record in enumerate(objects):
        catalog.apply(offset, *record)
    return Mappers(catalog).at(catalog.version)


def _line(draw: random.Random) -> bytes:
    data = {
        "region": draw.choice(("eu", "us", "ap")),
        "model": draw.choice("abc"),
        "status": "ok",
        "bytes": draw.randrange(100_000),
    }
    day, hour, second = draw.randrange(1, 20), draw.randrange(24), draw.randrange(60)
    event = {
        "clientId": f"customer-{draw.randrange(20_000)}",
        "timestamp": f"2026-11-{day:02d}T{hour:02d}:00:{second:02d}.123456Z",
        "transactionId": str(uuid.UUID(int=draw.getrandbits(128))),
        "eventName": "used",
        "value": draw.randrange(1000),
        "data": data,
    }
    return json.dumps(event, separators=(",", ":")).encode()


def _records(lines: list[bytes], size: int) -> list[LogRecord]:
    headers = (("account", b"acme"),)
    values = [b"\n".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    return [LogRecord(offset, _NOW_MS, value, headers) for offset, value in enumerate(values)]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw = random.Random(1)
    lines = [_line(draw) for _ in range(options.events)]
    mapper, place = mapper_for("acme", "used", "bytes"), Place("events", 0, 0, 1, "acme", 86_400_000_000)
    warm_up()
    found = []
    for size in (1, 100):
        records = _records(lines, size)
        checksums = set()
        for way, rule_sets in _WAYS.items():
            took = []
            # as they come: in columns from the fetched bytes
            given = Records.of(records) if way == "in columns" else records
            for _ in range(_RUNS):
                begun = time.process_time()
                block = build_block(
                    place,
                    given,
                    start=0,
                    end=len(records),
                    mapper=mapper,
                    catalog_version=mapper.version,
                    lookup=lambda _: {},
                    rule_sets=rule_sets,
                )
                took.append((time.process_time() - begun) / options.events * 1e6)
                checksums.add(block.crc)
            found.append({"events a record": size, "way": way, "µs an event": round(statistics.median(took), 2)})
        assert len(checksums) == 1, "lines and columns must give the same block"
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    table = Table(title=f"build_block, {options.events:,} events of {len(lines[0])} bytes, median of {_RUNS}")
    for name in found[0]:
        table.add_column(name, justify="right")
    for row in found:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
