"""Kafka's own clients, as a program uses them: librdkafka with its defaults and with every compression; kcat."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

from confluent_kafka import Producer
from facts import facts
from running_stack import RunningStack, Tenant
from waiting import counted

from pipeline.adapters.clickhouse import Store

_TOPIC = "tally.events"
_README = Path(__file__).parents[2] / "README.md"


def _line(identity: str) -> str:
    return json.dumps(
        {
            "clientId": "c",
            "timestamp": "2026-11-03T10:00:00Z",
            "transactionId": identity,
            "eventName": "e",
            "value": 0.5,
        }
    )


def test_confluents_producer(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Nothing set but the address, then how it compresses too: keys of its own, partitions of its own choosing, each
    event twice, and many in one record. Each counts once."""
    refused = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            refused.append(error)

    sent: list[str] = []
    for compression in (None, "gzip", "snappy", "lz4", "zstd"):
        options = {"bootstrap.servers": stack.kafka, **({"compression.type": compression} if compression else {})}
        producer = Producer(options)
        ids, many = ([f"{compression}-{kind}-{n}" for n in range(200)] for kind in ("one", "many"))
        for key in ("c", None):
            for identity in ids:
                headers = {"account": tenant.account}
                producer.produce(_TOPIC, _line(identity), key=key, headers=headers, on_delivery=delivered)
        headers = [("account", tenant.account.encode())]
        producer.produce(_TOPIC, "\n".join(_line(i) for i in many), headers=headers, on_delivery=delivered)
        assert producer.flush(60) == 0
        sent += [*ids, *many]
    assert not refused
    counted(stack, tenant)  # up to the sending on of what lies in another partition than its id's
    found = facts(stack, tenant, stack_store)
    assert set(found) == set(sent)
    assert {(row[0], row[1], row[4]) for row in found.values()} == {("c", "e", "0.5")}


def _kcat_line() -> str:
    """The README's line, with what is filled in at its front."""
    [line] = [line for line in _README.read_text().splitlines() if "kcat -P" in line]
    return line


def test_the_readmes_kcat_line_is_what_librdkafka_does(
    stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path
) -> None:
    """The line itself where kcat is installed; otherwise the same options to the library that kcat is made of: each
    line of the file a record, the header, the broker."""
    file = tmp_path / "events.ndjson"
    file.write_text("".join(f"{_line(f'k-{n}')}\n" for n in range(50)))
    line = _kcat_line().replace("$KAFKA", stack.kafka).replace("$ACCOUNT", tenant.account)
    if shutil.which("kcat"):
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        words = shlex.split(line)
        given = dict(zip(words[2::2], words[3::2], strict=True))
        assert set(given) == {"-b", "-t", "-H", "-z", "-l"}
        header, _, value = given["-H"].partition("=")
        producer = Producer({"bootstrap.servers": given["-b"], "compression.type": given["-z"]})
        for record in (tmp_path / given["-l"]).read_text().splitlines():
            producer.produce(given["-t"], record, headers={header: value})
        assert producer.flush(60) == 0
    counted(stack, tenant)
    assert set(facts(stack, tenant, stack_store)) == {f"k-{n}" for n in range(50)}
