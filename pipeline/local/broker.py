"""The Kafka broker of the embedded stack: one KRaft node from Apache's own jars, on 127.0.0.1.

Rules: storage is formatted once; the same ports and data serve every start. Kafka locks its folder
with a file lock of the operating system, which a killed process cannot leave behind, so a ``.lock`` file
that is found there means nothing by itself.
"""

import os
import shlex
import socket
import struct
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.local import jars
from pipeline.local.part import Part, PartError

JVM_OPTIONS = "KAFKA_JVM_PERFORMANCE_OPTS"
"""The variable by which Kafka's own start script is told the compiler and the garbage collector."""

_JVM_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"  # quick to start; the optimizing compiler wants half a minute
_FORMAT_S = 120
_PROPERTIES = """\
# Written by `tally up` at every start; changes here are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={advertised}
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
unclean.leader.election.enable=false
default.replication.factor=1
min.insync.replicas=1
# one node, started often: few partitions of Kafka's own topics
offsets.topic.replication.factor=1
offsets.topic.num.partitions=10
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# after a kill the node is let in again once its former session has run out
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# the default of 128 MB is a quarter of this heap
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
"""
_LOGGING = """\
status=warn
appenders=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=warn
rootLogger.appenderRefs=console
rootLogger.appenderRef.console.ref=console
logger.server.name=kafka.server
logger.server.level=info
"""
_METADATA_REQUEST = struct.pack(">hhihi?", 3, 4, 1, -1, 0, False)  # key, version, correlation, no client, no topics
_METADATA_BROKERS = struct.Struct(">iii")  # correlation, throttle time, number of brokers


class Listener(NamedTuple):
    """One more port of the broker, whose clients are sent on to another one: where a proxy or a tunnel listens.

    `name`: upper-case letters, not PLAINTEXT or CONTROLLER. Both ports are on 127.0.0.1.
    """

    name: str
    port: int
    advertised_port: int


def broker_part(
    folder: Path,
    port: int,
    controller_port: int,
    say: Callable[[str], None],
    further: Sequence[Listener] = (),
) -> Part:
    """The broker as a part of the stack; writes its files, downloads its jars and formats its storage if needed.

    Blocks: for seconds on the first start in a folder, for minutes on the first start of a machine.
    Raises JarError and PartError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = ":".join(str(jar) for jar in jars.kafka_jars(say))
    properties, logging = folder / "server.properties", folder / "log4j2.properties"
    data = folder / "data"
    listeners = (Listener("PLAINTEXT", port, port), *further)
    properties.write_text(
        _PROPERTIES.format(
            listeners=",".join(f"{one.name}://127.0.0.1:{one.port}" for one in listeners),
            advertised=",".join(f"{one.name}://127.0.0.1:{one.advertised_port}" for one in listeners),
            protocols=",".join(f"{one.name}:PLAINTEXT" for one in listeners),
            controller_port=controller_port,
            data=_escaped(data),
        )
    )
    logging.write_text(_LOGGING)
    java = [str(jars.java()), f"-Dlog4j2.configurationFile={logging}", "-cp", classes]
    if not (data / "meta.properties").exists():
        _format(java, properties)
    quiet = ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
    argv = [
        java[0],
        *_jvm_options(),
        "-Xms128m",
        "-Xmx512m",
        *quiet,
        *java[1:],
        "kafka.Kafka",
        str(properties),
    ]
    return Part("kafka", argv, ready=lambda: answers(port), address=f"127.0.0.1:{port}")


def answers(port: int) -> bool:
    """Whether the broker on this port takes requests and counts itself among the live brokers (waits 2 s at most)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
            peer.sendall(struct.pack(">i", len(_METADATA_REQUEST)) + _METADATA_REQUEST)
            head = _read(peer, 4 + _METADATA_BROKERS.size)
    except OSError:
        return False
    if len(head) < 4 + _METADATA_BROKERS.size:
        return False
    correlation, _, brokers = _METADATA_BROKERS.unpack_from(head, 4)
    return bool(correlation == 1 and brokers >= 1)


def cluster_id(random: bytes) -> str:
    """A cluster's id from 16 random bytes: base64, first a letter: Kafka's tool takes ``-`` for an option."""
    return urlsafe_b64encode(bytes([random[0] & 0x7F]) + random[1:]).decode().rstrip("=")


def _read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := peer.recv(size - len(data))):
        data += piece
    return data


def _format(java: list[str], properties: Path) -> None:
    """Give the storage its identity. Interrupted half-way, it is simply done again."""
    tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster_id(uuid.uuid4().bytes)]
    command = [java[0], *shlex.split(_JVM_OPTIONS), *java[1:], *tool, "-c", str(properties)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_S, check=False)  # noqa: S603 - own command
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PartError(f"Kafka's storage tool could not run ({error}); is {java[0]} executable?") from error
    if done.returncode:
        raise PartError(
            f"Kafka could not format its storage ({properties}): {done.stderr.strip() or done.stdout.strip()}"
        )


def _jvm_options() -> list[str]:
    text = os.environ.get(JVM_OPTIONS, _JVM_OPTIONS)
    try:
        return shlex.split(text)
    except ValueError as error:
        raise PartError(f"{JVM_OPTIONS} cannot be read ({error}): {text}") from error


def _escaped(path: Path) -> str:
    """A path in a Java properties file; Kafka splits this list at commas."""
    if "," in str(path):
        raise PartError(f"Kafka cannot keep data under {path}: choose a data folder without a comma in its name")
    return str(path).replace("\\", "\\\\")
