"""Tables of the README that programs make: each between two marks of its own."""

from pathlib import Path
from typing import Final

README: Final = Path(__file__).resolve().parents[1] / "README.md"


def put_between(begin: str, end: str, readme: str, made: str) -> str:
    """The README with `made` between its marks. Raises ValueError when they are not there."""
    before, found_begin, rest = readme.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"README.md has not the marks {begin} and {end}")
    return f"{before}{begin}\n{made}\n{end}{after}"
