"""Disks that are full: nothing can be written for a while, then there is room again.

Where mounting is allowed (root with CAP_SYS_ADMIN), the worker's folder lies on a small tmpfs that is filled to the
last byte: ENOSPC, and it stays full for whoever is started meanwhile. Otherwise, and for the engine, whose folder
cannot be moved under it, the running process may write nothing more to any file (RLIMIT_FSIZE by `prlimit`): EFBIG.
`how_full` says which.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
from cluster import Cluster, ClusterError, until
from faults import Fault, NotStruck, add

_TMPFS_MIB: Final = 64
_NOTICED_S: Final = 30.0


def how_full(folder: Path) -> str:
    """`tmpfs` where the folder could lie on one, else `rlimit`."""
    probe = folder / "mount-probe"
    probe.mkdir(parents=True, exist_ok=True)
    try:
        with _small_disk(probe):
            return "tmpfs"
    except (OSError, subprocess.CalledProcessError):
        return "rlimit"
    finally:
        with suppress(OSError):
            probe.rmdir()


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={_TMPFS_MIB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def _fill(folder: Path) -> Path:
    """Takes every byte that is left; the file to remove afterwards."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def _worker_disk_full(cluster: Cluster, draw: random.Random) -> None:
    """The worker cannot write its table: it may fail, and must not go on as if it had."""
    name = draw.choice(cluster.running_workers)
    if how_full(cluster.folder) == "rlimit":
        _forbid_writing(cluster, name, 4 + draw.random() * 6)
        return
    folder = cluster.worker_dir(name)
    cluster.kill(name, down=True)
    shutil.rmtree(folder, ignore_errors=True)  # it comes back from the changelog
    with _small_disk(folder):
        cluster.start(name)
        ballast = _fill(folder)
        try:
            _until_noticed(cluster, name, draw)
        finally:
            with suppress(FileNotFoundError):
                ballast.unlink()
        cluster.await_ready(name, seconds=180)
        time.sleep(1 + draw.random() * 2)
        cluster.kill(name, down=True)
    shutil.rmtree(folder, ignore_errors=True)
    cluster.start(name)


def _until_noticed(cluster: Cluster, name: str, draw: random.Random) -> None:
    """A table that is still in memory needs no disk: the fault counts once the worker has died of it, or time is up."""
    before = len(cluster.deaths(name))
    with suppress(ClusterError):
        until(lambda: len(cluster.deaths(name)) > before, seconds=_NOTICED_S / 2, why="the worker has noticed")
    time.sleep(1 + draw.random() * 3)


def _engine_disk_full(cluster: Cluster, draw: random.Random) -> None:
    """The engine cannot write a part: it refuses inserts, ends when it has taken one for written, and the workers wait
    and look."""
    _forbid_writing(cluster, "clickhouse", 4 + draw.random() * 8)


def _broker_disk_full(cluster: Cluster, draw: random.Random) -> None:
    """The broker cannot write its log: it takes its folder offline and ends; what it has acknowledged stands."""
    before = len(cluster.deaths("kafka"))
    _forbid_writing(cluster, "kafka", 4 + draw.random() * 4)
    if len(cluster.deaths("kafka")) == before:
        cluster.kill("kafka")
    cluster.await_ready("kafka", seconds=180)


def _forbid_writing(cluster: Cluster, name: str, seconds: float) -> None:
    """No file may grow, for any process of the part that runs now."""
    pid = cluster.pid(name)
    if not pid:
        raise NotStruck(f"{name} does not run")
    try:
        process = psutil.Process(pid)
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
        time.sleep(seconds)
        if cluster.pid(name) == pid:
            process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    except (psutil.NoSuchProcess, ProcessLookupError, OSError) as error:
        if isinstance(error, PermissionError) or os.name != "posix":
            raise NotStruck(f"limits of {name} cannot be changed: {error}") from error


add(Fault("disk-full-worker", "the worker's disk is full", _worker_disk_full))
add(Fault("disk-full-engine", "the engine's disk is full", _engine_disk_full))
add(Fault("disk-full-broker", "the broker's disk is full", _broker_disk_full))
