"""The two pages for people: whole, from this server alone, without a key."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from door_bench import Doors

STATIC = Path(__file__).parents[2] / "producers" / "static"


@pytest.mark.parametrize("path", ["/docs", "/graphql"])
async def test_a_page_loads_nothing_from_elsewhere(doors: Doors, path: str) -> None:
    """Each script and style is there, and the policy forbids any other source."""
    answer = await doors.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "//" not in answer.text
    loaded = re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', answer.text)
    assert len(loaded) >= 3
    for name in loaded:
        found = await doors.client.get(f"/{name}")
        assert (found.status_code, found.headers["content-encoding"]) == (200, "gzip")
        plain = await doors.client.get(f"/{name}", headers={"accept-encoding": "identity"})
        assert plain.content == found.content
        assert plain.headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")


@pytest.mark.parametrize("name", ["nothing.js", "docs.html", "README.md", "..%2Fpages.py", "../pages.py"])
async def test_nothing_else_is_given(doors: Doors, name: str) -> None:
    """Only scripts and styles, by their names."""
    assert (await doors.client.get(f"/assets/{name}")).status_code in (401, 404)


def test_the_vendored_files_are_as_published() -> None:
    """Sums in the folder's README, for each file."""
    table = (STATIC / "README.md").read_text()
    told = dict(re.findall(r"\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|", table))
    packed = {path.stem: path.read_bytes() for path in STATIC.glob("*.gz")}
    assert told == {name: hashlib.sha256(gzip.decompress(content)).hexdigest() for name, content in packed.items()}
