"""The progress bar of `tally rejects replay`: lines done, refused, time left, on a terminal only."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ReplayProgress:
    """A bar on `console` while the context lasts; nothing at all where that is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("replaying"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[refused]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("replay", total=total, refused="")
        self._refused = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, *, done: int, refused: int) -> None:
        """Moves on by what has happened since the last call."""
        self._refused += refused
        shown = f"[red]{self._refused:,} refused[/red]" if self._refused else ""
        self._bar.update(self._task, advance=done, refused=shown)
