"""Builds the wheel and looks at what a user would install. A program for `make check`; needs no network.

What is in it is read from the wheel, and the SQL is looked for by the product itself, run from the unpacked wheel
outside of the repository.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]
_PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import consumers.usage, pipeline.migrate, producers.api, tally
places = [module.__file__ for module in (tally, pipeline.migrate, producers.api, consumers.usage)]
assert all(place.startswith(sys.argv[1]) for place in places), places
found = pipeline.migrate.sql_dir()
assert str(found).startswith(sys.argv[1]), found
print(len(list(found.glob("*.sql"))))
"""


def main() -> int:
    """0 when the wheel is whole; else what is missing is printed."""
    with tempfile.TemporaryDirectory(prefix="tallystream-wheel-") as folder:
        wheel = _build(Path(folder))
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            archive.extractall(unpacked)
        faults = [f"{name} is missing" for name in sorted(_wanted(names) - names)]
        faults += [f"{name} does not belong there" for name in sorted(names) if _alien(name)]
        if not faults:
            faults = _probe(unpacked)
        for fault in faults:
            print(f"{wheel.name}: {fault}", file=sys.stderr)
        if not faults:
            print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size // 1024} KiB, whole")
    return 1 if faults else 0


def _build(folder: Path) -> Path:
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(_REPOSITORY)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _wanted(names: set[str]) -> set[str]:
    """Every module and statement of the repository, and what the product reads beside them."""
    modules = {
        path.relative_to(_REPOSITORY).as_posix()
        for package in ("pipeline", "producers", "consumers")
        for path in (_REPOSITORY / package).rglob("*.py")
    }
    statements = {f"pipeline/_sql/{path.name}" for path in (_REPOSITORY / "sql").glob("*.sql")}
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    others = {"tally.py", "pipeline/local/kafka-jars.sha256", f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"}
    pages = {f"producers/static/{path.name}" for path in (_REPOSITORY / "producers" / "static").iterdir()}
    return modules | statements | pages | others


def _alien(name: str) -> bool:
    top = name.split("/", maxsplit=1)[0]
    return top not in ("pipeline", "producers", "consumers", "tally.py") and not top.endswith(".dist-info")


def _probe(unpacked: Path) -> list[str]:
    """Imports the packages from the wheel and asks for the SQL."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(unpacked)], cwd=unpacked.parent, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return [f"cannot be used: {done.stderr}"]
    there = len(list((_REPOSITORY / "sql").glob("*.sql")))
    return [] if int(done.stdout) == there else [f"finds {done.stdout.strip()} of {there} SQL files"]


if __name__ == "__main__":
    sys.exit(main())
