"""The progress of `tally audit --deep`: offsets of each partition that are compared, on a terminal only."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from consumers.audit_deep import Told


class AuditProgress:
    """Bars on `console` while the context lasts, one for each partition that is read; nothing where that is no
    terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("partition {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("offsets"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def tell(self, told: Told) -> None:
        """Moves the partition's bar."""
        if told.partition not in self._tasks:
            self._tasks[told.partition] = self._bars.add_task(str(told.partition), total=told.total)
        self._bars.update(self._tasks[told.partition], completed=told.done)
