"""The README against the product: what there is, is told; what is told, is there."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from pipeline import metrics
from pipeline.settings import Settings
from tally import cli, make_api

_REPOSITORY = Path(__file__).parents[1]
_README = (_REPOSITORY / "README.md").read_text()
_MAKEFILE = (_REPOSITORY / "Makefile").read_text()


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


_COMMANDS: Mapping[tuple[str, ...], click.Command] = dict(_commands(cli))


def _shell_lines() -> list[str]:
    """The lines of the README's code blocks, joined where they go on."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", _README, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def _tally_lines() -> list[str]:
    """Each use of the command in them."""
    parts = (part.strip() for line in _shell_lines() for part in re.split(r"\s(?:&&|\|)\s|;\s", line))
    return [part for part in parts if re.match(r"(\.venv/bin/)?tally ", part)]


@pytest.mark.parametrize("name", [f"TALLY_{name.upper()}" for name in Settings.model_fields])
def test_every_setting_is_told(name: str) -> None:
    """By its environment variable."""
    assert f"`{name}`" in _README


@pytest.mark.parametrize("name", [" ".join(path) for path in _COMMANDS])
def test_every_command_is_told(name: str) -> None:
    """As it is typed."""
    assert f"`tally {name}`" in _README


@pytest.mark.parametrize(
    "name",
    [f"{name}_total" for name, *_ in (*metrics.COUNTERS, metrics.AUDIT_FAILURES)]
    + [
        name
        for name, *_ in (
            *metrics.GAUGES,
            metrics.LAG,
            metrics.STOPPED,
            metrics.IDS,
            metrics.EXPIRED,
            *metrics.AUDIT_GAUGES,
        )
    ],
)
def test_every_metric_is_told(name: str) -> None:
    """As the page of worker or auditor spells it."""
    assert f"`{name}`" in _README


def test_every_route_is_told() -> None:
    """Method and path of everything in the API's own description, and the worker's pages."""
    routes = {
        f"{method.upper()} {path}"
        for path, item in make_api().openapi_schema.to_schema()["paths"].items()
        for method in item
    }
    pages = re.findall(r'app\.page\("([^"]+)"\)', (_REPOSITORY / "pipeline" / "app.py").read_text())
    assert len(pages) >= 3
    missing = {route for route in routes | {f"GET {page}" for page in pages} if f"`{route}`" not in _README}
    assert not missing


def test_no_route_is_told_that_is_not_there() -> None:
    """A table that outlives its routes misleads."""
    told = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`\s]*)`", _README))
    schema = make_api().openapi_schema.to_schema()["paths"]
    routes = {f"{method.upper()} {path}" for path, item in schema.items() for method in item}
    assert told - routes - {"GET /openapi.json", "GET /metrics", "GET /docs", "GET /graphql"} == set()


def test_no_setting_is_told_that_is_not_there() -> None:
    """The same for settings."""
    told = set(re.findall(r"\bTALLY_[A-Z_]+\b", _README))
    assert (
        told - {f"TALLY_{name.upper()}" for name in Settings.model_fields} - {"TALLY_API_KEY", "TALLY_FAIL_POINT"}
        == set()
    )


@pytest.mark.parametrize("line", _tally_lines())
def test_each_command_in_the_readme_can_be_typed(line: str) -> None:
    """Command, options and arguments are those of the program."""
    words = shlex.split(line, comments=True)[1:]
    path = max((path for path in _COMMANDS if tuple(words[: len(path)]) == path), key=len, default=())
    assert path, f"there is no such command: {line}"
    command = _COMMANDS[path]
    command.make_context(path[-1], words[len(path) :], resilient_parsing=False)


def test_each_make_command_in_the_readme_is_there() -> None:
    """`make WORD` is a target of the Makefile."""
    told = set(re.findall(r"(?:`|^)make (\w+)", _README, re.MULTILINE))
    assert {"demo", "test", "faults", "check", "bench"} <= told
    targets = set(re.findall(r"^(\w+):", _MAKEFILE, re.MULTILINE))
    assert told <= targets


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tests|pipeline|producers|consumers|sql)/[^`*{ ]+)`", _README)))
)
def test_each_path_in_the_readme_is_there(path: str) -> None:
    """Files and folders that the README sends its reader to."""
    assert (_REPOSITORY / path).exists()
