"""Faults of the network between workers and broker, and between workers and engine. They need a cluster with proxies
(`between.proxied_cluster`); on another one they have not struck."""

import random
import time
from collections.abc import Callable
from typing import Final

from between import Between, between
from cluster import Cluster, ClusterError, until
from faults import FAULTS, SILENT_S, Fault, Inject, NotStruck, add
from proxy import Proxy

_ANSWERS_S: Final = 30.0
_Strike = Callable[[Proxy, random.Random], None]


def _proxies(cluster: Cluster) -> Between:
    found = between(cluster)
    if found is None:
        raise NotStruck("this cluster has no proxies between its parts")
    return found


def _on(side: str, strike: _Strike, *, all_workers: bool = False) -> Inject:
    """Does something to the connections of one worker, or of all; healed in any case."""

    def inject(cluster: Cluster, draw: random.Random) -> None:
        found = _proxies(cluster)
        names = cluster.running_workers
        try:
            for name in names if all_workers else [draw.choice(names)]:
                strike((found.kafka if side == "kafka" else found.engine)[name], draw)
            time.sleep(_length(strike, draw))
        finally:
            found.heal()

    return inject


def _length(strike: _Strike, draw: random.Random) -> float:
    return 0.0 if strike is _flap else SILENT_S + draw.random() * 6


def _cut(proxy: Proxy, draw: random.Random) -> None:
    proxy.cut()


def _flap(proxy: Proxy, draw: random.Random) -> None:
    """Cut and healed again and again: each request has a chance to be torn in the middle."""
    for _ in range(draw.randint(5, 12)):
        proxy.cut()
        time.sleep(draw.random() * 0.3)
        proxy.heal()
        time.sleep(draw.random() * 0.8)


def _delay(proxy: Proxy, draw: random.Random) -> None:
    proxy.delay(up_s=draw.random() * 0.5, down_s=draw.random() * 0.5)


def _half_open(proxy: Proxy, draw: random.Random) -> None:
    proxy.half_open()


def _deaf(proxy: Proxy, draw: random.Random) -> None:
    """Requests arrive, answers do not."""
    proxy.drop("down")


def _mute(proxy: Proxy, draw: random.Random) -> None:
    """Requests do not arrive."""
    proxy.drop("up")


_STRIKES: Final[dict[str, tuple[str, _Strike]]] = {
    "cut": ("network cut", _cut),
    "flaps": ("network cut again and again", _flap),
    "delayed": ("network slow", _delay),
    "half-open": ("network half open: connections stay, nothing passes", _half_open),
    "answers-dropped": ("network half open: requests arrive, answers do not", _deaf),
    "requests-dropped": ("network half open: requests do not arrive", _mute),
}
for _side, _what in (("kafka", "broker"), ("engine", "engine")):
    for _name, (_row, _strike) in _STRIKES.items():
        add(Fault(f"net-{_what}-{_name}", f"{_row}, one worker and the {_what}", _on(_side, _strike)))
    add(Fault(f"net-{_what}-cut-all", f"network cut, all workers and the {_what}", _on(_side, _cut, all_workers=True)))


def _isolated(cluster: Cluster, draw: random.Random) -> None:
    """A worker that reaches neither while its connections stay: it comes back as a zombie with a block in hand."""
    found = _proxies(cluster)
    name = draw.choice(cluster.running_workers)
    try:
        found.kafka[name].half_open()
        found.engine[name].half_open()
        time.sleep(SILENT_S + draw.random() * 6)
    finally:
        found.heal()


def _no_broker_but_engine(cluster: Cluster, draw: random.Random) -> None:
    """The worst zombie: fenced off from the group, and yet it could write to the store."""
    found = _proxies(cluster)
    name = draw.choice(cluster.running_workers)
    try:
        found.engine[name].delay(up_s=SILENT_S / 2, down_s=SILENT_S / 2)
        time.sleep(draw.random())
        found.kafka[name].cut()
        time.sleep(SILENT_S + draw.random() * 6)
    finally:
        found.heal()


def _answers_lost(cluster: Cluster, draw: random.Random) -> None:
    """Blocks are stored, their answers are not passed on: several in a row, at each worker."""
    found = _proxies(cluster)
    proxies = [found.engine[name] for name in cluster.running_workers]
    before = sum(proxy.swallowed for proxy in proxies)
    for proxy in proxies:
        # the query is part of the request's address
        proxy.swallow(draw.randint(1, 4), match=b"insert_deduplication_token")
    try:
        until(lambda: sum(p.swallowed for p in proxies) > before, seconds=_ANSWERS_S, why="an answer is lost")
        time.sleep(draw.random() * 4)
    except ClusterError as error:
        raise NotStruck(str(error)) from None
    finally:
        found.heal()


def _ledger_answers_lost(cluster: Cluster, draw: random.Random) -> None:
    """The same for any request to the store, looks and ledger among them."""
    found = _proxies(cluster)
    for name in cluster.running_workers:
        found.engine[name].swallow(draw.randint(3, 12), match=b"POST ")
    try:
        time.sleep(4 + draw.random() * 4)
    finally:
        found.heal()


add(Fault("net-worker-isolated", "network half open, a worker and everything", _isolated))
add(Fault("net-zombie-writes", "network cut to the broker, the engine still there", _no_broker_but_engine))
add(Fault("net-insert-answers-lost", "inserted, answer lost on the way", _answers_lost))
add(Fault("net-store-answers-lost", "any answer of the store lost on the way", _ledger_answers_lost))

#: Faults that need such a cluster.
NAMES: Final = frozenset(name for name in FAULTS if name.startswith("net-"))
