"""The door for files: `tally send FILE…`, NDJSON in the event's own dialect, plain or gzip, `-` for standard input.

Rules: every line is checked here and has its own verdict; a bad one goes to the rejects file with its line number and
the rest goes on. Memory is bounded: at most `IN_FLIGHT_MAX` batches are on their way. A line is counted as sent only
once the log has acknowledged it. Sending an interrupted file again from its start is safe, because a transactionId
counts once; lines without one get a new id each time, which the summary says.
"""

import asyncio
import base64
import gzip
import io
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, Self, cast

import msgspec

from pipeline.event import LINE_BYTES_MAX, Event, EventError, FieldError, decode_event

STDIN: Final = "-"
BATCH_LINES_MAX: Final = 5_000
BATCH_BYTES_MAX: Final = 2 << 20
IN_FLIGHT_MAX: Final = 4

_GZIP_MAGIC: Final = b"\x1f\x8b"
_NOT_BUILT: Final = (".csv", ".parquet", ".zst")


class DestinationAway(Exception):  # noqa: N818 - a state of the other side
    """The destination did not take the events within the patience; they may or may not be there."""


class FileRefused(ValueError):  # noqa: N818 - told to the user before anything is sent
    """The file cannot be sent, and why."""


class Destination(Protocol):
    """Where events go. `deliver` returns the faults of each event, none for one that is received."""

    async def deliver(self, events: Sequence[Event]) -> Sequence[tuple[FieldError, ...]]:
        """Waits for the acknowledgement, trying again for a while. Raises DestinationAway. Events have ids."""


class Progress(Protocol):
    """Told about what has happened since the last call."""

    def __call__(self, *, read_bytes: int, sent: int, rejected: int) -> None: ...


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How lines are checked. `clock_us` tells UTC microseconds since 1970, `new_id` a fresh transactionId."""

    clock_us: Callable[[], int]
    new_id: Callable[[], str]
    ahead_max_us: int
    batch_lines_max: int = BATCH_LINES_MAX
    batch_bytes_max: int = BATCH_BYTES_MAX


class FileSummary(msgspec.Struct, omit_defaults=True):
    """What became of one file. `lines` counts no blank ones; lines = sent + rejected + unconfirmed."""

    path: str
    lines: int = 0
    sent: int = 0
    rejected: int = 0
    unconfirmed: int = 0
    without_id: int = 0
    rejects_file: str | None = None
    failure: str | None = None


class Summary(msgspec.Struct, frozen=True):
    """What became of all files. `seconds`: wall-clock time."""

    files: list[FileSummary]
    seconds: float

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
        return {**totals, "seconds": round(self.seconds, 3), "files": files}

    def as_text(self) -> str:
        """For people: what happened, and what to do next."""
        rate = self.total("sent") / self.seconds if self.seconds else 0
        told = [
            f"{self.total('sent'):,} of {self.total('lines'):,} events sent in {self.seconds:.1f} s ({rate:,.0f}/s)"
        ]
        for file in self.files:
            if file.rejected:
                told.append(f"{file.path}: {file.rejected:,} lines rejected, see {file.rejects_file}")
            if file.failure:
                told.append(f"{file.path}: {file.failure}. Send it again from the start: a transactionId counts once")
            if file.without_id:
                told.append(
                    f"{file.path}: {file.without_id:,} lines have no transactionId; sent again they count again"
                )
        return "\n".join(told)


async def send_files(
    paths: Sequence[str],
    destination: Destination,
    rules: Rules,
    *,
    rejects_path: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Send files one after the other. Bad lines go to `rejects_path`, by default `<FILE>.rejects` beside each.

    Raises FileRefused before anything is sent when a file is not there or of a kind that is not built.
    """
    for path in paths:
        _check_path(path)
    started_s = time.monotonic()
    files: list[FileSummary] = []
    for path in paths:
        sending = _Sending(path, destination, rejects_path or _rejects_beside(path), progress, append=bool(files))
        files.append(sending.summary)
        try:
            await sending.run(rules)
        except DestinationAway as error:
            sending.summary.failure = str(error)
            break
        except (OSError, EOFError, zlib.error) as error:  # what reading and gzip raise
            sending.summary.failure = f"cannot be read further: {error}"
    return Summary(files, time.monotonic() - started_s)


def input_bytes(paths: Sequence[str]) -> int | None:
    """How many bytes there are to read, for a progress bar; None when that is not known."""
    return None if STDIN in paths else sum(Path(path).stat().st_size for path in paths)


class _Line(msgspec.Struct, frozen=True):
    number: int
    raw: bytes
    event: Event | None
    errors: tuple[FieldError, ...]


class _Batch(msgspec.Struct, frozen=True):
    lines: list[_Line]
    read_bytes: int
    without_id: int


class _Sending:
    """One file on its way."""

    def __init__(
        self, path: str, destination: Destination, rejects_path: Path, progress: Progress | None, *, append: bool
    ) -> None:
        self.summary = FileSummary(path)
        self._destination = destination
        self._rejects = _Rejects(rejects_path, path, append=append)
        self._progress = progress

    async def run(self, rules: Rules) -> None:
        under_way: set[asyncio.Task[None]] = set()
        with _open(self.summary.path) as (stream, position), self._rejects:
            batches = _batches(stream, position, rules)
            try:
                # reading, unpacking and checking happen in a thread while earlier batches are on the wire
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    if len(under_way) >= IN_FLIGHT_MAX:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        if failures := _failures(done):
                            raise failures[0]
                    under_way.add(asyncio.create_task(self._deliver(batch)))
            finally:
                # whatever ended the reading, what was sent is counted
                failures = _failures((await asyncio.wait(under_way))[0] if under_way else set())
        if failures:
            raise failures[0]

    async def _deliver(self, batch: _Batch) -> None:
        good = [line for line in batch.lines if line.event is not None]
        self.summary.lines += len(batch.lines)
        self.summary.without_id += batch.without_id
        self.summary.unconfirmed += len(good)
        rejected = [line for line in batch.lines if line.event is None]
        if good:
            faults = await self._destination.deliver([cast(Event, line.event) for line in good])
            refused = [(line, errors) for line, errors in zip(good, faults, strict=True) if errors]
            rejected += [msgspec.structs.replace(line, errors=errors) for line, errors in refused]
        sent = len(batch.lines) - len(rejected)
        self.summary.unconfirmed -= len(good)
        self.summary.sent += sent
        self.summary.rejected += len(rejected)
        for line in rejected:
            self.summary.rejects_file = str(self._rejects.path)
            self._rejects.write(line)
        if self._progress is not None:
            self._progress(read_bytes=batch.read_bytes, sent=sent, rejected=len(rejected))


class _Rejects(AbstractContextManager["_Rejects"]):
    """The rejects file: NDJSON, made when the first line is rejected."""

    def __init__(self, path: Path, source: str, *, append: bool) -> None:
        self.path = path
        self._source = source
        self._mode = "ab" if append else "wb"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: _Line) -> None:
        if self._file is None:
            self._file = cast(BinaryIO, self.path.open(self._mode))
        told: dict[str, Any] = {"file": self._source, "line": line.number, "errors": line.errors}
        try:
            told["raw"] = line.raw.decode("utf-8")
        except UnicodeDecodeError:
            told["raw_base64"] = base64.b64encode(line.raw).decode()
        self._file.write(msgspec.json.encode(told) + b"\n")


def _check_path(path: str) -> None:
    if path == STDIN:
        return
    if path.endswith(_NOT_BUILT):
        raise FileRefused(f"{path}: {Path(path).suffix} files are not built yet; send NDJSON, plain or as .gz")
    if not Path(path).is_file():
        raise FileRefused(f"{path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise FileRefused(f"{path}: may not be read; check its permissions")


def _rejects_beside(path: str) -> Path:
    return Path("stdin.rejects" if path == STDIN else f"{path}.rejects")


@contextmanager
def _open(path: str) -> Iterator[tuple[BinaryIO, Callable[[], int] | None]]:
    """The unpacked stream, and how far the file itself has been read (None: not known)."""
    with ExitStack() as stack:
        opened = sys.stdin.buffer if path == STDIN else stack.enter_context(Path(path).open("rb"))
        file = cast(io.BufferedReader, opened)
        packed = file.peek(2)[:2] == _GZIP_MAGIC
        stream = stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
        yield cast(BinaryIO, stream), None if path == STDIN else file.tell


def _batches(stream: BinaryIO, position: Callable[[], int] | None, rules: Rules) -> Iterator[_Batch]:
    lines: list[_Line] = []
    size = without_id = number = read_before = 0
    arrival_us = rules.clock_us()
    while raw := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        size += len(raw)
        if not raw.endswith(b"\n"):
            size += _skip_rest(stream)
        if raw.strip():
            line = _check_line(number, raw.rstrip(b"\r\n"), rules, arrival_us)
            if line.event is not None and line.event.transaction_id is None:
                without_id += 1
                named = msgspec.structs.replace(line.event, transaction_id=rules.new_id())
                line = msgspec.structs.replace(line, event=named)
            lines.append(line)
        if len(lines) >= rules.batch_lines_max or size >= rules.batch_bytes_max:
            read = position() - read_before if position else size
            yield _Batch(lines, read, without_id)
            read_before += read
            lines, size, without_id = [], 0, 0
            arrival_us = rules.clock_us()
    yield _Batch(lines, position() - read_before if position else size, without_id)


def _check_line(number: int, raw: bytes, rules: Rules, arrival_us: int) -> _Line:
    try:
        event = decode_event(raw, arrival_us=arrival_us, ahead_max_us=rules.ahead_max_us)
    except EventError as error:
        return _Line(number, raw, None, error.errors)
    return _Line(number, raw, event, ())


def _skip_rest(stream: BinaryIO) -> int:
    """Passes over what is left of a line that is too long; how many bytes that was."""
    skipped = 0
    while rest := stream.readline(LINE_BYTES_MAX):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _failures(done: set[asyncio.Task[None]]) -> list[BaseException]:
    return [error for task in done if (error := task.exception()) is not None]
