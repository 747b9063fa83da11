"""The door for files: `tally send FILE…`, NDJSON, CSV and Parquet, `-` for standard input.

Rules: every line is checked here and has its own verdict; a bad one goes to the rejects file with its line number and
the rest goes on. Memory is bounded: at most `IN_FLIGHT_MAX` batches are on their way at once. A line is counted as sent
only once the log has acknowledged it, and the mark beside the file moves over what is done without gaps: a sending that
was interrupted or killed goes on there, with the same ids for lines that have none of their own. Standard input leaves
no mark.
"""

import asyncio
import base64
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, Self, cast

import msgspec
import pyarrow as pa

from pipeline.event import Event, EventError, FieldError, decode_event
from producers.file_rows import STDIN, Columns, FileRefused, Row, format_of, open_rows
from producers.send_mark import Mark, MarkFile

BATCH_LINES_MAX: Final = 5_000
BATCH_BYTES_MAX: Final = 2 << 20
IN_FLIGHT_MAX: Final = 4


class DestinationAway(Exception):  # noqa: N818 - a state of the other side
    """The destination did not take the events within the patience; they may or may not be there."""


class Destination(Protocol):
    """Where events go. `deliver` returns the faults of each event, none for one that is received."""

    async def deliver(self, events: Sequence[Event]) -> Sequence[tuple[FieldError, ...]]:
        """Waits for the acknowledgement, trying again for a while. Raises DestinationAway. Events have ids."""


class Progress(Protocol):
    """Told about what has happened since the last call."""

    def __call__(self, *, read_bytes: int, sent: int, rejected: int) -> None: ...


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How files are read and lines are checked. `clock_us` tells UTC microseconds since 1970, `new_id` a fresh id.
    `format`: of all files, whatever their names. `dry_run`: nothing is sent and no mark is left."""

    clock_us: Callable[[], int]
    new_id: Callable[[], str]
    ahead_max_us: int
    format: str | None = None
    columns: Columns = Columns()
    dry_run: bool = False
    mark_every_s: float = 0.25
    batch_lines_max: int = BATCH_LINES_MAX
    batch_bytes_max: int = BATCH_BYTES_MAX


class FileSummary(msgspec.Struct, omit_defaults=True):
    """What became of one file, earlier attempts that stopped in it included. `lines` counts no blank ones;
    lines = sent + rejected + unconfirmed, where a dry run's `sent` could be sent. `resumed_at`: the line after which
    this attempt went on; 0 for the beginning."""

    path: str
    lines: int = 0
    sent: int = 0
    rejected: int = 0
    unconfirmed: int = 0
    without_id: int = 0
    resumed_at: int = 0
    rejects_file: str | None = None
    failure: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What became of all files. `seconds`: wall-clock time."""

    files: list[FileSummary]
    seconds: float
    dry_run: bool = False

    def total(self, field: str) -> int:
        """The sum of a count over all files."""
        return sum(int(getattr(file, field)) for file in self.files)

    @property
    def exit_code(self) -> int:
        """0 when every line of every file was sent, otherwise 1."""
        return int(any(file.rejected or file.unconfirmed or file.failure for file in self.files))

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        totals = {name: self.total(name) for name in ("lines", "sent", "rejected", "unconfirmed", "without_id")}
        files = [msgspec.structs.asdict(file) for file in self.files]
        return {**totals, "dry_run": self.dry_run, "seconds": round(self.seconds, 3), "files": files}

    def as_text(self) -> str:
        """For people: what happened, and what to do next."""
        rate = self.total("sent") / self.seconds if self.seconds else 0
        did = "could be sent; nothing was: checked" if self.dry_run else "sent"
        told = [
            f"{self.total('sent'):,} of {self.total('lines'):,} events {did} in {self.seconds:.1f} s ({rate:,.0f}/s)"
        ]
        for file in self.files:
            if file.resumed_at:
                told.append(
                    f"{file.path}: went on after line {file.resumed_at:,}, where an earlier sending had stopped"
                )
            if file.rejected:
                told.append(f"{file.path}: {file.rejected:,} lines rejected, see {file.rejects_file}")
            if file.failure:
                told.append(f"{file.path}: {file.failure}. {_AGAIN[file.path == STDIN]}")
            elif file.without_id:
                told.append(f"{file.path}: {file.without_id:,} lines have no transactionId; sent anew they count again")
        return "\n".join(told)


_AGAIN: Final = {
    False: "The same command goes on where this one stopped: nothing is lost, and a transactionId counts once",
    True: "Sent again, a transactionId counts once, and lines without one count again",
}


async def send_files(
    paths: Sequence[str],
    destination: Destination,
    rules: Rules,
    *,
    to: str = "",
    rejects_path: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Send files one after the other. Bad lines go to `rejects_path`, by default `<FILE>.rejects` beside each.

    `to`: names the destination and its account; a sending that stopped goes on only there. Raises FileRefused before
    anything is sent when a file is not there, its columns are not named, or its mark is of something else.
    """
    for path in paths:
        _check_path(path, rules)
    marks = [
        None if path == STDIN or rules.dry_run else MarkFile.open(path, to=to, new_id=rules.new_id) for path in paths
    ]
    started_s = time.monotonic()
    files: list[FileSummary] = []
    for path, mark in zip(paths, marks, strict=True):
        append = rejects_path is not None and bool(files)
        sending = _Sending(path, destination, rejects_path or _rejects_beside(path), progress, mark, append=append)
        files.append(sending.summary)
        try:
            await sending.run(rules)
        except DestinationAway as error:
            sending.summary.failure = str(error)
            break
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:  # what reading and unpacking raise
            sending.summary.failure = f"cannot be read further: {error}"
    if not any(file.failure for file in files):
        for mark in marks:  # not before: a file that is done must not be sent anew because the next one was not
            if mark is not None:
                mark.remove()
    return Summary(files, time.monotonic() - started_s, rules.dry_run)


def input_bytes(paths: Sequence[str]) -> int | None:
    """How many bytes there are to read, for a progress bar; None when that is not known."""
    return None if STDIN in paths else sum(Path(path).stat().st_size for path in paths)


class _Line(msgspec.Struct, frozen=True):
    row: Row
    event: Event | None
    errors: tuple[FieldError, ...]


class _Batch(msgspec.Struct, frozen=True):
    """`last`: the number of the last line that was read for it."""

    lines: list[_Line]
    last: int
    read_bytes: int
    without_id: int


class _Sending:
    """One file on its way."""

    def __init__(
        self,
        path: str,
        destination: Destination,
        rejects_path: Path,
        progress: Progress | None,
        mark: MarkFile | None,
        *,
        append: bool,
    ) -> None:
        done = mark.mark if mark is not None else Mark(to="", content="", ids="")
        self.summary = FileSummary(
            path, done.lines, done.sent, done.rejected, without_id=done.without_id, resumed_at=done.line
        )
        if done.rejected:
            self.summary.rejects_file = str(rejects_path)
        self._destination = destination
        self._rejects = _Rejects(rejects_path, path, append=append, keep_bytes=done.rejects_bytes)
        self._progress = progress
        self._mark = mark
        self._mark_every_s = 0.0
        self._last = done.line

    async def run(self, rules: Rules) -> None:
        """To the end of the file, or as far as it goes: what is under way when it ends is waited for and counted."""
        path = self.summary.path
        if self._mark is not None:
            if self._mark.mark.done:
                return
            self._mark_every_s = rules.mark_every_s
            self._mark.mark.rejects_bytes = self._rejects.end()
            self._mark.save()
        prefix = self._mark.mark.ids if self._mark is not None else rules.new_id()
        under_way: list[asyncio.Task[list[_Line]]] = []
        batches: list[_Batch] = []
        with open_rows(path, format_of(path, rules.format), rules.columns) as (rows, position), self._rejects:
            reading = _batches(rows, position, rules, prefix, after=self.summary.resumed_at)
            try:
                # reading, unpacking and checking happen in a thread while earlier batches are on the wire
                while (batch := await asyncio.to_thread(next, reading, None)) is not None:
                    if len(under_way) >= IN_FLIGHT_MAX:
                        await asyncio.wait(under_way[:1])
                        self._settle(batches[0], under_way[0].result())
                        del batches[0], under_way[0]
                    under_way.append(asyncio.create_task(self._deliver(batch, rules)))
                    batches.append(batch)
            finally:
                await self._settle_the_rest(batches, under_way)
            if self._mark is not None:
                self._mark.mark.done = True
                self._save()

    async def _deliver(self, batch: _Batch, rules: Rules) -> list[_Line]:
        """The rejected lines of the batch."""
        good = [line for line in batch.lines if line.event is not None]
        rejected = [line for line in batch.lines if line.event is None]
        if good and not rules.dry_run:
            faults = await self._destination.deliver([cast(Event, line.event) for line in good])
            refused = [(line, errors) for line, errors in zip(good, faults, strict=True) if errors]
            rejected += [msgspec.structs.replace(line, errors=errors) for line, errors in refused]
        return rejected

    async def _settle_the_rest(self, batches: list[_Batch], under_way: list[asyncio.Task[list[_Line]]]) -> None:
        """Counts what is done, in order; what comes after a batch that failed is not done. Raises that one's error."""
        if under_way:
            await asyncio.wait(under_way)
        failures: list[asyncio.Task[list[_Line]]] = []
        unsettled = 0
        for batch, task in zip(batches, under_way, strict=True):
            if task.cancelled() or task.exception() is not None or failures:
                failures.append(task)
                unsettled += len(batch.lines)
            else:
                self._settle(batch, task.result())
        self._save()
        self.summary.lines += unsettled
        self.summary.unconfirmed += unsettled
        if failures and not failures[0].cancelled() and (error := failures[0].exception()) is not None:
            raise error

    def _save(self) -> None:
        if self._mark is not None:
            mark, summary = self._mark.mark, self.summary
            mark.line, mark.lines, mark.sent, mark.rejected = self._last, summary.lines, summary.sent, summary.rejected
            mark.without_id, mark.rejects_bytes = summary.without_id, self._rejects.end()
            self._mark.save()

    def _settle(self, batch: _Batch, rejected: list[_Line]) -> None:
        """The batch is done, and all before it: its bad lines are written down, then the mark moves over it."""
        sent = len(batch.lines) - len(rejected)
        self._last = batch.last
        self.summary.lines += len(batch.lines)
        self.summary.without_id += batch.without_id
        self.summary.sent += sent
        self.summary.rejected += len(rejected)
        for line in sorted(rejected, key=lambda line: line.row.number):
            self.summary.rejects_file = str(self._rejects.path)
            self._rejects.write(line)
        if self._mark is not None and self._mark.due(self._mark_every_s):
            self._save()
        if self._progress is not None:
            self._progress(read_bytes=batch.read_bytes, sent=sent, rejected=len(rejected))


class _Rejects(AbstractContextManager["_Rejects"]):
    """The rejects file: NDJSON, made when the first line is rejected. `keep_bytes`: what an earlier attempt has
    written and noted; what it wrote behind that is written again."""

    def __init__(self, path: Path, source: str, *, append: bool, keep_bytes: int) -> None:
        self.path = path
        self._source = source
        self._keep_bytes = path.stat().st_size if append and not keep_bytes and path.exists() else keep_bytes
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._keep_bytes and self.path.exists():
            os.truncate(self.path, min(self._keep_bytes, self.path.stat().st_size))
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: _Line) -> None:
        """One line."""
        if self._file is None:
            self._file = self._open()
        told: dict[str, Any] = {"file": self._source, "line": line.row.number, "errors": line.errors}
        try:
            told["raw"] = line.row.raw.decode("utf-8")
        except UnicodeDecodeError:
            told["raw_base64"] = base64.b64encode(line.row.raw).decode()
        self._file.write(msgspec.json.encode(told) + b"\n")

    def end(self) -> int:
        """How long it is, durably; what is kept while nothing was written."""
        if self._file is None:
            return self._keep_bytes
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _open(self) -> BinaryIO:
        keep = self._keep_bytes > 0 and self.path.exists()
        file = cast(BinaryIO, self.path.open("r+b" if keep else "w+b"))
        file.seek(0, os.SEEK_END)
        return file


def _check_path(path: str, rules: Rules) -> None:
    if path != STDIN:
        if not Path(path).is_file():
            raise FileRefused(f"{path}: there is no such file")
        if not os.access(path, os.R_OK):
            raise FileRefused(f"{path}: may not be read; check its permissions")
        if path.endswith(".zst"):
            raise FileRefused(f"{path}: zstd files are not read; unpack it, or use gzip")
    if path != STDIN or format_of(path, rules.format) == "parquet":
        try:
            with open_rows(path, format_of(path, rules.format), rules.columns):
                pass  # its columns are looked at, nothing more
        except (OSError, EOFError, zlib.error) as error:
            raise FileRefused(f"{path}: cannot be read: {error}") from error


def _rejects_beside(path: str) -> Path:
    return Path("stdin.rejects" if path == STDIN else f"{path}.rejects")


def _batches(
    rows: Iterator[Row], position: Callable[[], int] | None, rules: Rules, prefix: str, *, after: int
) -> Iterator[_Batch]:
    """The lines after the one with that number, checked; the last batch may be empty."""
    lines: list[_Line] = []
    size = without_id = read_before = last = 0
    arrival_us = rules.clock_us()
    for row in rows:
        if row.number <= after:
            continue
        size += len(row.raw) + 1
        last = row.number
        line = _check_row(row, rules, arrival_us)
        if line.event is not None and line.event.transaction_id is None:
            without_id += 1
            named = msgspec.structs.replace(line.event, transaction_id=f"{prefix}-{row.number}")
            line = msgspec.structs.replace(line, event=named)
        lines.append(line)
        if len(lines) >= rules.batch_lines_max or size >= rules.batch_bytes_max:
            read = position() - read_before if position else size
            yield _Batch(lines, last, read, without_id)
            read_before += read
            lines, size, without_id = [], 0, 0
            arrival_us = rules.clock_us()
    yield _Batch(lines, max(last, after), position() - read_before if position else size, without_id)


def _check_row(row: Row, rules: Rules, arrival_us: int) -> _Line:
    if row.errors:
        return _Line(row, None, row.errors)
    try:
        event = decode_event(row.raw, arrival_us=arrival_us, ahead_max_us=rules.ahead_max_us)
    except EventError as error:
        return _Line(row, None, error.errors)
    return _Line(row, event, ())
