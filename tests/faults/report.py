"""The README's table of faults, made from the committed results: ``python tests/faults/report.py [--write]``.

One row a fault: how often it struck, events sent in the rounds it struck in, lost and doubled events, wrong cells,
and rounds that failed or were stuck. A round with several faults counts for each of them. Before it, how often each
fail point of the worker and each cut of the engine's writing was struck, by whichever fault. `--write` puts both
between the marks in README.md.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parents[1])]

from readme_marks import README, put_between  # noqa: E402

RESULTS: Final = _HERE / "results.ndjson"
BEGIN: Final = "<!-- faults: made by tests/faults/report.py -->"
END: Final = "<!-- end of faults -->"
put_in = partial(put_between, BEGIN, END)


def table(rounds: Iterable[Mapping[str, Any]], rows: Mapping[str, str]) -> str:
    """The table in Markdown. `rows`: fault and the row of the crash table that it stands for."""
    by_fault: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    found = list(rounds)
    for one in found:
        for fault in one["struck"]:
            by_fault[fault].append(one)
    lines = [
        "| what happens | fault | times | events sent | lost | doubled | wrong numbers | rounds not ok |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for fault, row in rows.items():
        some = by_fault.get(fault, [])
        if some:
            sums = _sums(some)
            lines.append(f"| {row} | `{fault}` | {len(some)} | {' | '.join(sums)} |")
    sums = _sums(found)
    struck = sum(len(one["struck"]) for one in found)
    lines.append(f"| **all {len(found)} rounds** | {len(by_fault)} faults | {struck} | {' | '.join(sums)} |")
    return "\n".join(lines)


def recorded(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The committed rounds."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def strikes(rounds: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How often each point was struck; rounds from before points were counted tell none."""
    hits: Counter[str] = Counter()
    for one in rounds:
        hits.update(one.get("hits", {}))
    return hits


def points(rounds: Iterable[Mapping[str, Any]], known: Sequence[str]) -> str:
    """Strikes of each point, those that were never struck included. `known`: the points in the order of their rows."""
    hits = strikes(rounds)
    told = ", ".join(f"`{name}` {hits[name]}" for name in known)
    return f"Strikes by point: {told}."


def _sums(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = [sum(one[name] for one in rounds) for name in ("sent", "lost", "doubled", "wrong")]
    return [f"{count:,}" for count in (*counts, sum(one["outcome"] != "ok" for one in rounds))]


def main() -> None:
    """The program."""
    from run import FAULTS  # with those of all modules

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    rounds = recorded()
    known = dict.fromkeys(point for fault in FAULTS.values() for point in fault.often)
    made = f"{points(rounds, [*known])}\n\n{table(rounds, {fault.name: fault.row for fault in FAULTS.values()})}"
    if options.write:
        README.write_text(put_in(README.read_text(), made))
    else:
        print(made)


if __name__ == "__main__":
    main()
