"""Environments of competitors whose packages do not go together with the project's: one folder each under `build/`.

Made by pip when first asked for and kept while the list of packages stays the same. Nothing goes into `.venv`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pipeline.local.jars import JarError, fetch

BUILD: Final = Path(__file__).resolve().parents[2] / "build"
QUIX: Final = ("quixstreams==3.28.1", "clickhouse-connect==1.12.0", "orjson==3.13.0")
FLINK: Final = ("apache-flink==2.1.1", "setuptools<81")  # its start script needs pkg_resources
FASTAPI: Final = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "aiokafka[lz4]==0.14.0")
FLINK_KAFKA: Final = "org.apache.flink:flink-sql-connector-kafka:4.0.1-2.0"
FLINK_JAVA: Final = (17, 11, 21)  # versions it runs on, the recommended one first
_SUMS: Final = Path(__file__).resolve().parent / "peers" / "flink-jars.sha256"
_SAY = Callable[[str], None]


class Missing(Exception):  # noqa: N818 - says what a row has instead of figures
    """A competitor cannot run here; the message is what its row says."""


def environment(name: str, packages: Sequence[str], say: _SAY) -> Path:
    """Python of `build/bench-NAME` with these packages; may download for minutes. Raises Missing."""
    folder = BUILD / f"bench-{name}"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(packages)
    if installed.exists() and installed.read_text() == wanted:
        return python
    say(f"installing {', '.join(packages)} into {folder}: once only, some minutes")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--retries", "3", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr or done.stdout).strip().splitlines()
            raise Missing(f"{packages[0]} could not be installed: {why[-1] if why else done.returncode}")
    installed.write_text(wanted)
    return python


def flink_jar(say: _SAY) -> Path:
    """Flink's Kafka connector, checked against its sum. Raises Missing."""
    try:
        return fetch(FLINK_KAFKA, _SUMS, BUILD / "bench-flink-jars", say)[0]
    except JarError as error:
        raise Missing(str(error)) from error


def flink_java() -> Path:
    """The home of a Java that Flink runs on: `JAVA_HOME`, then what Debian installs, then the path. Raises Missing."""
    on_path = shutil.which("java")
    places = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    places += sorted(Path("/usr/lib/jvm").glob("*")) if Path("/usr/lib/jvm").exists() else []
    places += [Path(on_path).resolve().parents[1]] if on_path else []
    by_version = {version: home for home in reversed(places) if (version := _java_version(home)) is not None}
    for version in FLINK_JAVA:
        if version in by_version:
            return by_version[version]
    raise Missing("Java 17 is missing: on Debian, apt install openjdk-17-jre-headless")


def _java_version(home: Path) -> int | None:
    program = home / "bin" / "java"
    if not program.exists():
        return None
    told = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    return int(found[1]) if found else None
