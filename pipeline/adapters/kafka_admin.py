"""Kafka's topics, made and checked at each start, and what an operator asks of the group and the log. The one module
that imports confluent_kafka, whose admin client tells topic ids; they are how a topic that was deleted and made anew is
told from the one before."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import structlog
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from pipeline.ports import LogUnavailable
from pipeline.settings import Settings

_TIMEOUT_S: Final = 20.0
_LISTED_EVERY_S: Final = 0.05
_FOREVER: Final = "-1"
_COORDINATOR_S: Final = 60.0
_COMING: Final = ("NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS")
_NO_ANSWER: Final = (KafkaException, TimeoutError)  # the client raises the one, its futures the other
_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class TopicMismatch(Exception):  # noqa: N818 - says what is the matter
    """A topic is not as the settings say; going on could lose or double events."""


class BrokerUnavailable(Exception):  # noqa: N818
    """No broker answers."""


def ensure_topics(settings: Settings) -> None:
    """Makes the topics that are missing and checks all of them; blocks. Raises TopicMismatch, BrokerUnavailable."""
    client = _client(settings)
    wanted = _wanted(settings)
    try:
        present = client.list_topics(timeout=_TIMEOUT_S).topics
        missing = {name: topic for name, topic in wanted.items() if name not in present}
        made_of = client.create_topics(list(missing.values()), operation_timeout=_TIMEOUT_S) if missing else {}
        for name, made in made_of.items():
            try:
                made.result(_TIMEOUT_S)
                log.info("topic_made", topic=name, partitions=wanted[name].num_partitions)
            except KafkaException as error:
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                    raise
        if made_of:
            _await_listed(client, missing)
        check_topics(settings)
    except _NO_ANSWER as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka} did not answer: {error}") from error


def _await_listed(client: AdminClient, names: Iterable[str]) -> None:
    """The controller has made them; a broker hears of it a moment later, and knows no such topic until then."""
    ends = time.monotonic() + _TIMEOUT_S
    while not set(names) <= set(client.list_topics(timeout=_TIMEOUT_S).topics) and time.monotonic() < ends:
        time.sleep(_LISTED_EVERY_S)


def check_topics(settings: Settings) -> None:
    """Raises TopicMismatch, naming every difference, unless all topics are as the settings say; blocks."""
    client = _client(settings)
    wanted = _wanted(settings)
    try:
        present = client.list_topics(timeout=_TIMEOUT_S).topics
        absent = sorted(set(wanted) - set(present))
        if absent:
            raise TopicMismatch(f"topics are missing: {', '.join(absent)}; run `tally migrate`")
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
        configs = {r.name: f.result(_TIMEOUT_S) for r, f in client.describe_configs(resources).items()}
    except _NO_ANSWER as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka} did not answer: {error}") from error
    faults = [
        fault
        for name, topic in wanted.items()
        for fault in (
            *_partition_faults(settings, name, topic.num_partitions, present),
            *_replica_faults(name, settings.replication, present[name].partitions),
            *_config_faults(name, topic.config or {}, configs[name]),
        )
    ]
    if faults:
        raise TopicMismatch("; ".join(faults))


class TopicLife(NamedTuple):
    """Kafka's id of a topic, another one after it was deleted and made anew, and its number of partitions."""

    identity: str
    partitions: int


def topic_life(settings: Settings, topic: str) -> TopicLife:
    """The topic as it is now; blocks. Raises BrokerUnavailable."""
    client = _client(settings)  # it must live until the answer is there
    try:
        found = client.describe_topics(TopicCollection([topic]), request_timeout=_TIMEOUT_S)[topic].result(_TIMEOUT_S)
        return TopicLife(str(found.topic_id), len(found.partitions))
    except _NO_ANSWER as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka} tells no id of {topic}: {error}") from error


def topic_id(settings: Settings, topic: str) -> str:
    """Kafka's id of the topic; blocks. Raises BrokerUnavailable."""
    return topic_life(settings, topic).identity


def members(settings: Settings) -> list[str]:
    """Names and hosts of the workers in the group, as the broker sees them; blocks. Raises BrokerUnavailable."""
    client = _client(settings)

    def ask() -> list[str]:
        groups = client.describe_consumer_groups([settings.group], request_timeout=_TIMEOUT_S)
        return sorted(
            f"{m.group_instance_id or m.client_id} on {m.host}"
            for m in groups[settings.group].result(_TIMEOUT_S).members
        )

    return _of_group(settings, ask) or []


def committed(settings: Settings) -> dict[int, int]:
    """The group's offsets of the events topic by partition, where there are any; blocks. Raises BrokerUnavailable."""
    client = _client(settings)

    def ask() -> dict[int, int]:
        asked = [ConsumerGroupTopicPartitions(settings.group)]
        found = client.list_consumer_group_offsets(asked, request_timeout=_TIMEOUT_S)[settings.group].result(_TIMEOUT_S)
        return {
            place.partition: place.offset
            for place in found.topic_partitions or ()
            if place.topic == settings.topic_events and place.offset >= 0
        }

    return _of_group(settings, ask) or {}


def _of_group(settings: Settings, ask: Callable[[], _T]) -> _T | None:
    """What the group's coordinator answers; None when there is no such group, or no topic that it could read. A broker
    that has just started makes the topic of offsets only when it is first asked, and has no coordinator until then."""
    ends = time.monotonic() + _COORDINATOR_S
    while True:
        try:
            there = settings.topic_events in _client(settings).list_topics(timeout=_TIMEOUT_S).topics
            return ask() if there else None
        except _NO_ANSWER as error:
            name = error.args[0].name() if isinstance(error, KafkaException) else "no answer"
            if name == "GROUP_ID_NOT_FOUND":
                return None
            if (name not in _COMING and isinstance(error, KafkaException)) or time.monotonic() > ends:
                raise BrokerUnavailable(f"Kafka at {settings.kafka} tells nothing of the group: {name}") from error
        time.sleep(0.5)


def log_bounds(settings: Settings, topic: str, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
    """First offset of each partition, and the offset after its last readable record; blocks. Raises
    BrokerUnavailable."""
    client = _client(settings)
    places = [TopicPartition(topic, p) for p in partitions]

    def ask(spec: Any) -> dict[int, int]:
        asked = client.list_offsets(
            dict.fromkeys(places, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_TIMEOUT_S,
        )
        return {place.partition: answer.result(_TIMEOUT_S).offset for place, answer in asked.items()}

    try:
        first, end = ask(OffsetSpec.earliest()), ask(OffsetSpec.latest())
    except _NO_ANSWER as error:
        raise BrokerUnavailable(f"Kafka at {settings.kafka} tells no bounds of {topic}: {error}") from error
    return {number: (first[number], end[number]) for number in first}


class Trimmer:
    """Lets the old end of partitions go (Kafka's DeleteRecords). Connects for each call, which are rare."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def trim(self, topic: str, partition: int, offset: int) -> None:
        """Records below that offset are there no more; blocks. Raises LogUnavailable."""
        client = _client(self._settings)
        try:
            (done,) = client.delete_records([TopicPartition(topic, partition, offset)]).values()
            done.result(_TIMEOUT_S)
        except _NO_ANSWER as error:
            raise LogUnavailable(f"Kafka lets no records of {topic}/{partition} go: {error}") from error


def _wanted(settings: Settings) -> dict[str, NewTopic]:
    durable = {
        "min.insync.replicas": str(settings.min_insync),
        "unclean.leader.election.enable": "false",
        # the broker's clock stamps every record: append times ascend with the offsets, whatever a producer's clock says
        "message.timestamp.type": "LogAppendTime",
    }
    retained = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.retention_hours * 3_600_000),
        "retention.bytes": _FOREVER,
    }
    kept = {"cleanup.policy": "delete", "retention.ms": _FOREVER, "retention.bytes": _FOREVER}

    def topic(name: str, partitions: int, config: Mapping[str, str]) -> NewTopic:
        return NewTopic(name, partitions, settings.replication, config={**durable, **config})

    return {
        settings.topic_events: topic(settings.topic_events, settings.partitions, retained),
        settings.topic_rejects: topic(settings.topic_rejects, settings.partitions, retained),
        settings.topic_changelog: topic(settings.topic_changelog, settings.partitions, kept),
        settings.topic_catalog: topic(settings.topic_catalog, 1, {"cleanup.policy": "compact"}),
    }


def _partition_faults(settings: Settings, name: str, wanted: int, present: Mapping[str, Any]) -> list[str]:
    """An id's partition is its hash modulo TALLY_PARTITIONS, for ever. A topic may have more partitions: what lies
    there is sent on to the partition of its id. Then rejects and changelog need as many."""
    found = len(present[name].partitions)
    if name == settings.topic_catalog:
        return [] if found == wanted else [f"topic {name} has {found} partitions, it must have {wanted}"]
    if found < wanted:
        return [
            f"topic {name} has {found} partitions, TALLY_PARTITIONS says {wanted}: set it to the number that the "
            "topics were made with; another one would move ids between partitions and count them twice"
        ]
    needed = len(present[settings.topic_events].partitions)
    if found < needed:
        return [
            f"topic {name} has {found} partitions, {settings.topic_events} was given {needed}: leave TALLY_PARTITIONS "
            f"at {wanted}, so that ids stay where they are, and run kafka-topics.sh --alter --topic {name} "
            f"--partitions {needed}"
        ]
    return []


def _replica_faults(name: str, wanted: int, partitions: Mapping[int, Any]) -> list[str]:
    fewest = min(len(p.replicas) for p in partitions.values())
    if fewest >= wanted:
        return []
    return [f"topic {name} has {fewest} replicas, TALLY_REPLICATION asks for {wanted}: reassign its partitions"]


def _config_faults(name: str, wanted: Mapping[str, str], found: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, value in wanted.items():
        present = found[key].value
        if present == value or (key.startswith("retention.") and _keeps_longer(present, value)):
            continue
        faults.append(
            f"topic {name} has {key}={present}, it must be {value}: "
            f"kafka-configs.sh --alter --topic {name} --add-config {key}={value}"
        )
    return faults


def _keeps_longer(present: str, wanted: str) -> bool:
    return present == _FOREVER or (wanted != _FOREVER and int(present) >= int(wanted))


def _client(settings: Settings) -> AdminClient:
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka,
        "security.protocol": settings.kafka_security,
        "socket.timeout.ms": int(_TIMEOUT_S * 1000),
        "log_level": 0,  # librdkafka writes to stderr by itself; errors come back as exceptions
    }
    if settings.kafka_security.startswith("SASL"):
        options["sasl.mechanism"] = "SCRAM-SHA-512"
        options["sasl.username"] = settings.kafka_user
        options["sasl.password"] = settings.kafka_password.get_secret_value()
    return AdminClient(options)
