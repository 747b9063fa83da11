"""The README's tables and plot of `make bench`, from the recorded results: ``bench_report.py [--write]``.

Without `--write` the tables are printed. With it, they go between their marks in README.md and the plot into
tests/benchmarks/results/bench.svg, which the README shows.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent)]

from bench_figures import CEILINGS, table  # noqa: E402
from bench_sizing import sizing  # noqa: E402
from readme_marks import README, put_between  # noqa: E402

RESULTS: Final = _HERE / "results" / "bench.json"
PLOT: Final = _HERE / "results" / "bench.svg"
BEGIN: Final = "<!-- bench: made by tests/benchmarks/bench_report.py -->"
END: Final = "<!-- end of bench -->"
put_in = partial(put_between, BEGIN, END)
put_sizing = partial(put_between, "<!-- sizing: made by tests/benchmarks/bench_report.py -->", "<!-- end of sizing -->")
_LABELS: Final = {
    "worker": "this worker",
    "faust": "textbook Faust agent",
    "quix": "Quix Streams",
    "flink": "Flink SQL, no sink",
    "plain": "confluent-kafka + set",
    "read": "aiokafka read",
    "decode": "read + decode",
    "msgspec": "read + msgspec",
    "insert": "insert of blocks",
}
_OURS, _PEER, _CEILING = "#0b6e4f", "#8d99ae", "#d9dde5"


def bars(document: Mapping[str, Any], record_events: int) -> list[tuple[str, float, str]]:
    """Label, events a second and colour of each bar, the fastest first; ceilings after those that do the whole job."""
    rows = [row for row in document["rows"] if row["record_events"] == record_events and row["name"] in _LABELS]
    rows = [row for row in rows if "events_per_s" in row]
    rows.sort(key=lambda row: (row["name"] in CEILINGS, -row["events_per_s"]))
    colours = {"worker": _OURS, **dict.fromkeys(CEILINGS, _CEILING)}
    return [(_LABELS[row["name"]], row["events_per_s"], colours.get(row["name"], _PEER)) for row in rows]


def plot(document: Mapping[str, Any], file: Path) -> None:
    """Bars for records of 1 and of 100 events, on a logarithmic scale: rates lie a thousandfold apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    sizes = [size for size in (1, 100) if bars(document, size)]
    every = [rate for size in sizes for _, rate, _ in bars(document, size)]
    slowest, fastest = min(every), max(every)
    figure, axes = pyplot.subplots(1, len(sizes), figsize=(5.2 * len(sizes), 3.6), squeeze=False, sharex=True)
    for axis, size in zip(axes[0], sizes, strict=True):
        found = bars(document, size)
        names, rates, colours = zip(*found, strict=True)
        drawn = axis.barh(range(len(found)), rates, color=colours)
        axis.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=3)
        axis.set_yticks(range(len(found)), names)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlim(slowest / 3, fastest * 9)
        axis.set_title(f"records of {size} event{'' if size == 1 else 's'}", loc="left")
    figure.supxlabel("events a second on one core, logarithmic; pale: ceilings, which do one step only", fontsize=9)
    figure.tight_layout()
    # without a date, so that the same results give the same file
    figure.savefig(file, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put table and plot into their places")
    options = parser.parse_args()
    if not RESULTS.exists():
        parser.error(f"there is no {RESULTS.relative_to(README.parent)} yet: bench.py --record makes it")
    document = json.loads(RESULTS.read_text())
    made, sized = table(document), sizing(document)
    if not options.write:
        print(f"{made}\n\n{sized}")
        return
    plot(document, PLOT)
    readme = put_in(README.read_text(), f"{made}\n\n![Rates side by side]({PLOT.relative_to(README.parent)})")
    README.write_text(put_sizing(readme, sized))


if __name__ == "__main__":
    main()
