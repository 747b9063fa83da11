"""The progress bar of `tally send`: bytes read, events sent, rate and time left, on a terminal only."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


class SendProgress:
    """A bar on `console` while the context lasts; nothing at all where that is no terminal.

    `total_bytes` None: it is not known how much there is, and the bar only pulses.
    """

    def __init__(self, console: Console, total_bytes: int | None) -> None:
        self._bar = Progress(
            TextColumn("sending"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[sent]:,} events, {task.fields[rate]:,.0f}/s"),
            TextColumn("{task.fields[rejected]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("send", total=total_bytes, sent=0, rate=0.0, rejected="")
        self._sent = 0
        self._rejected = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, *, read_bytes: int, sent: int, rejected: int) -> None:
        """Moves on by what has happened since the last call."""
        self._sent += sent
        self._rejected += rejected
        elapsed_s = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            advance=read_bytes,
            sent=self._sent,
            rate=self._sent / elapsed_s if elapsed_s else 0.0,
            rejected=f"[red]{self._rejected:,} rejected[/red]" if self._rejected else "",
        )
