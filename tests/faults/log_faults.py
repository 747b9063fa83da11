"""Faults of Kafka's own data: the changelog cut or made anew, the group's offsets gone."""

import random
import shutil
import time
from collections.abc import Callable
from typing import Any, Final

from cluster import GROUP, PARTITIONS, Cluster, until
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from faults import Fault, add

_CHANGELOG: Final = f"{GROUP}-dedup-changelog"
_ANSWER_S: Final = 30.0


def _admin(cluster: Cluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": cluster.kafka, "log_level": 0})


def _done(work: Callable[[], dict[Any, Any]], *, why: str) -> None:
    """Repeats until Kafka has done it."""

    def tried() -> bool:
        try:
            for future in work().values():
                future.result(_ANSWER_S)
        except KafkaException:
            return False
        return True

    until(tried, seconds=90, why=why, step_s=0.5)


def _without_disks(cluster: Cluster) -> None:
    """All tables are lost too: what the changelog lacks must come from the store."""
    workers = cluster.running_workers
    for name in workers:
        cluster.kill(name, down=True)
        shutil.rmtree(cluster.worker_dir(name), ignore_errors=True)
    cluster.start(*workers)


def _changelog_truncated(cluster: Cluster, draw: random.Random) -> None:
    """Its beginning is deleted, by a retention that somebody has set, say."""
    admin = _admin(cluster)
    offset = draw.choice((-1, draw.randint(1, 20)))  # -1: all of it

    def cut() -> dict[Any, Any]:
        found: dict[Any, Any] = admin.delete_records(
            [TopicPartition(_CHANGELOG, number, offset) for number in range(PARTITIONS)]
        )
        return found

    if offset < 0:
        _done(cut, why="the changelog is cut")
    else:
        for number in range(PARTITIONS):  # some may be shorter than that
            try:
                admin.delete_records([TopicPartition(_CHANGELOG, number, offset)])[
                    TopicPartition(_CHANGELOG, number, offset)
                ].result(_ANSWER_S)
            except (KafkaException, KeyError):
                continue
    time.sleep(draw.random() * 3)
    _without_disks(cluster)


def _changelog_anew(cluster: Cluster, draw: random.Random) -> None:
    """Deleted and made anew under the running workers; they lose their disks afterwards."""
    admin = _admin(cluster)
    _done(lambda: admin.delete_topics([_CHANGELOG]), why="the changelog is deleted")
    time.sleep(draw.random() * 3)

    def made_anew() -> bool:
        cluster.tally("migrate", codes=(0, 2))  # refused while the deletion is still under way
        return _CHANGELOG in admin.list_topics(timeout=10).topics

    until(made_anew, seconds=60, why="the changelog is made anew", step_s=0.5)
    time.sleep(1 + draw.random() * 4)
    _without_disks(cluster)


def _offsets_deleted(cluster: Cluster, draw: random.Random) -> None:
    """The whole group is deleted while no worker runs."""
    workers = cluster.running_workers
    for name in workers:
        cluster.kill(name, down=True)
    admin = _admin(cluster)
    _done(lambda: admin.delete_consumer_groups([GROUP]), why="the group is empty and deleted")
    cluster.start(*workers)


add(Fault("log-changelog-truncated", "changelog truncated, local tables lost", _changelog_truncated))
add(Fault("log-changelog-anew", "changelog deleted and made anew, local tables lost", _changelog_anew))
add(Fault("log-offsets-deleted", "the group's offsets are lost", _offsets_deleted))
