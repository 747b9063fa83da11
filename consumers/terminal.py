"""Text for a terminal, a file or a pipe: what all answers of the command line are made with."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console, RenderableType

_PLAIN_WIDTH: Final = 200  # of a file or pipe


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with a header, lines ended by a newline."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def escaped(text: str) -> str:
    """Square brackets are markup to rich."""
    return text.replace("[", "\\[")


def table_text(table: RenderableType, console: Console | None) -> str:
    """What rich makes of it, in the width and colours of the console; without one, plain."""
    target = console or Console(width=_PLAIN_WIDTH, color_system=None, force_terminal=False)
    with target.capture() as capture:
        target.print(table)
    return capture.get()
