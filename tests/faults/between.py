"""Proxies between each worker and the broker, and between each worker and the engine."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cluster import Cluster
from proxy import Proxy

_WORKERS_MAX: Final = 3
_betweens: dict[int, "Between"] = {}
_lock = threading.Lock()


class Between:
    """The proxies of a cluster, by worker: `worker-1` and so on."""

    def __init__(self, kafka: Mapping[str, Proxy], engine: Mapping[str, Proxy]) -> None:
        self.kafka = kafka
        self.engine = engine

    def heal(self) -> None:
        """Everything passes again."""
        for proxy in (*self.kafka.values(), *self.engine.values()):
            proxy.heal()


@contextmanager
def proxied_cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster whose workers reach broker and engine through proxies of their own; `between` gives them."""
    with ExitStack() as undo:
        names = [f"worker-{number}" for number in range(1, _WORKERS_MAX + 1)]
        kafka = {name: undo.enter_context(Proxy()) for name in names}
        engine = {name: undo.enter_context(Proxy()) for name in names}
        cluster = Cluster(
            folder,
            worker_kafka={n: f"127.0.0.1:{kafka[name].port}" for n, name in enumerate(names, 1)},
            worker_clickhouse={n: f"http://127.0.0.1:{engine[name].port}" for n, name in enumerate(names, 1)},
            workers_max=_WORKERS_MAX,
            **options,
        )
        for proxy in kafka.values():
            proxy.aim(_address(cluster.proxied_kafka[f"127.0.0.1:{proxy.port}"]))
        for proxy in engine.values():
            proxy.aim(_address(cluster.clickhouse))
        with _lock:
            _betweens[id(cluster)] = Between(kafka, engine)
        undo.callback(_betweens.pop, id(cluster))
        yield undo.enter_context(cluster)


def between(cluster: Cluster) -> Between | None:
    """The proxies of this cluster; None when it has none."""
    return _betweens.get(id(cluster))


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(text if "//" in text else f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or 0
