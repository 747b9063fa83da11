"""What is in a file of events, one line or row at a time: NDJSON, CSV and Parquet, plain or in gzip (but Parquet).

Rules: whatever the format, what comes out is the event's own JSON on one line, so that one decoder judges all; a row
that cannot be spelled so comes out with its fault. Memory is bounded by a line, or by a row group's columns. A column
that no field was named for is refused before anything is sent: one that was silently left out could be the id.
"""

import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.event import EVENT_FIELDS, LINE_BYTES_MAX, EventError, FieldError, parse_document

STDIN: Final = "-"
Format = Literal["ndjson", "csv", "parquet"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)

_GZIP_MAGIC: Final = b"\x1f\x8b"
_PARQUET_ROWS: Final = 5_000
_LEFT_OUT: Final = "-"
_DATA: Final = "data."


class FileRefused(ValueError):  # noqa: N818 - told to the user before anything is sent
    """The file cannot be sent, and why."""


class Row(msgspec.Struct, frozen=True):
    """One line or row. `number`: of the line (of its last one where a row has several), or of the row, from 1; rises.
    `raw`: the event's JSON, or what is there where `errors` says why that is none."""

    number: int
    raw: bytes
    errors: tuple[FieldError, ...] = ()


class Target(msgspec.Struct, frozen=True):
    """Where a column goes: a field of the event, or `data.KEY`; `number`: text becomes a number."""

    field: str
    number: bool = False


class Columns(msgspec.Struct, frozen=True):
    """Which column is which field, beside those that are named like one. `named`: column -> target."""

    named: Mapping[str, Target] = msgspec.field(default_factory=dict)

    def targets(self, header: Sequence[str]) -> list[Target | None]:
        """For each column of a file; None for one that is left out. Raises FileRefused naming what is wrong."""
        if missing := [column for column in self.named if column not in header]:
            raise FileRefused(f"--map names the column {missing[0]!r}; the file has {', '.join(header)}")
        targets = [self._target(column) for column in header]
        fields = [target.field for target in targets if target is not None]
        if twice := [field for field in fields if fields.count(field) > 1]:
            raise FileRefused(f"two columns are {twice[0]}; leave one out with --map -=COLUMN")
        if wanting := [field for field in ("clientId", "timestamp") if field not in fields]:
            raise FileRefused(f"no column is {wanting[0]}; name it with --map {wanting[0]}=COLUMN")
        if "data" in fields and any(field.startswith(_DATA) for field in fields):
            raise FileRefused("a column is data as a whole and others are parts of it; choose one of the two")
        return targets

    def _target(self, column: str) -> Target | None:
        target = self.named.get(column)
        if target is None and column not in EVENT_FIELDS and not column.startswith(_DATA):
            raise FileRefused(
                f"the column {column!r} is no field of an event; name its field with --map FIELD={column}, keep it "
                f"with --map data.{column}={column}, or leave it out with --map -={column}"
            )
        target = target or Target(column)
        return None if target.field == _LEFT_OUT else target


def parse_columns(given: Iterable[str]) -> Columns:
    """The columns of `--map FIELD=COLUMN`: a field, `data.KEY`, `data.KEY:number` or `-`. Raises FileRefused."""
    named: dict[str, Target] = {}
    for text in given:
        field, equals, column = text.partition("=")
        name, colon, kind = field.partition(":")
        known = name in EVENT_FIELDS or name == _LEFT_OUT or (len(name) > len(_DATA) and name.startswith(_DATA))
        if not equals or not column or not known or (colon and (kind != "number" or not name.startswith(_DATA))):
            raise FileRefused(f"--map {text}: write FIELD=COLUMN, data.KEY=COLUMN, data.KEY:number=COLUMN or -=COLUMN")
        if column in named:
            raise FileRefused(f"--map names the column {column!r} twice")
        named[column] = Target(name, bool(colon))
    return Columns(named)


def format_of(path: str, given: str | None = None) -> str:
    """Of the file, by its name where it is not given: NDJSON unless it ends in .csv, .csv.gz or .parquet."""
    if given is not None:
        return given
    name = path.removesuffix(".gz")
    return next((known for known in ("csv", "parquet") if name.endswith(f".{known}")), "ndjson")


@contextmanager
def open_rows(path: str, format_: str, columns: Columns) -> Iterator[tuple[Iterator[Row], Callable[[], int] | None]]:
    """The rows, and how many bytes of the file have been read (None: not known).

    Raises FileRefused when its columns are not those of events, OSError when it cannot be opened.
    """
    if format_ == "parquet":
        with _open_parquet(path) as file:
            yield _parquet_rows(file, columns, path)
        return
    if columns.named and format_ != "csv":
        raise FileRefused(f"{path}: --map is for CSV and Parquet; NDJSON names its fields itself")
    with ExitStack() as stack:
        opened = sys.stdin.buffer if path == STDIN else stack.enter_context(Path(path).open("rb"))
        file = cast(io.BufferedReader, opened)
        packed = file.peek(2)[:2] == _GZIP_MAGIC
        stream = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file)
        rows = _csv_rows(stream, columns, path) if format_ == "csv" else _lines(stream)
        yield rows, None if path == STDIN else file.tell


# ------------------------------------------------------------------------------------------------ private


def _lines(stream: BinaryIO) -> Iterator[Row]:
    """NDJSON. Blank lines are no events; of one that is too long the beginning is kept: enough to refuse it."""
    number = 0
    while raw := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        if not raw.endswith(b"\n"):
            _skip_rest(stream)
        if raw.strip():
            yield Row(number, raw.rstrip(b"\r\n"))


def _skip_rest(stream: BinaryIO) -> None:
    while (rest := stream.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
        pass


def _csv_rows(stream: BinaryIO, columns: Columns, path: str) -> Iterator[Row]:
    """The header is read at once, the rows as they are asked for."""
    # what is no UTF-8 is kept as lone surrogates, which the row is then refused for
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    try:
        targets = columns.targets(next(reader, []))
    except csv.Error as error:
        raise FileRefused(f"{path}: its first line is no header of CSV: {error}") from error
    except FileRefused as error:
        raise FileRefused(f"{path}: {error}") from error

    def rows() -> Iterator[Row]:
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                text.detach()  # the stream is closed by who has opened it
                return
            except csv.Error as error:
                yield Row(reader.line_num, b"", (FieldError("", "syntax", f"is no CSV: {error}"),))
                continue
            if cells:
                yield _csv_row(reader.line_num, cells, targets)

    return rows()


def _csv_row(number: int, cells: list[str], targets: list[Target | None]) -> Row:
    raw = ",".join(cells).encode("utf-8", "surrogateescape")
    if len(cells) != len(targets):
        message = f"has {len(cells)} cells and the header {len(targets)}"
        return Row(number, raw, (FieldError("", "syntax", message),))
    found = [(target, cell) for target, cell in zip(targets, cells, strict=True) if target is not None and cell]
    return _row(number, raw, found)


def _open_parquet(path: str) -> Any:
    if path == STDIN:
        raise FileRefused("Parquet is read from its end, so not from standard input; name the file")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise FileRefused(f"{path}: is no Parquet file: {error}") from error


def _parquet_rows(file: Any, columns: Columns, path: str) -> tuple[Iterator[Row], Callable[[], int]]:
    try:
        targets = columns.targets(file.schema_arrow.names)
    except FileRefused as error:
        raise FileRefused(f"{path}: {error}") from error
    size, total, done = Path(path).stat().st_size, file.metadata.num_rows, 0

    def rows() -> Iterator[Row]:
        nonlocal done
        for batch in file.iter_batches(_PARQUET_ROWS):
            for cells in zip(*(_cells(column) for column in batch.columns), strict=True):
                done += 1
                found = [
                    (t, cell) for t, cell in zip(targets, cells, strict=True) if t is not None and cell is not None
                ]
                yield _row(done, repr(cells).encode("utf-8", "replace"), found)

    return rows(), lambda: size * done // total if total else size


def _cells(column: Any) -> list[Any]:
    """Python values; instants to the microsecond, cut and not rounded, as a timestamp's text is."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return cast(list[Any], column.to_pylist())


def _row(number: int, raw: bytes, found: list[tuple[Target, Any]]) -> Row:
    """The row as an event's JSON, or with its faults."""
    fields: dict[str, Any] = {}
    data: dict[str, Any] = {}
    errors: list[FieldError] = []
    for target, cell in found:
        try:
            if target.field == "data":
                fields["data"] = _whole_data(cell)
            elif target.field.startswith(_DATA):
                data[target.field.removeprefix(_DATA)] = _number(cell) if target.number else _plain(cell)
            else:
                fields[target.field] = _plain(cell)
        except EventError as error:
            errors += error.errors
        except (ValueError, ArithmeticError) as error:
            errors.append(FieldError(target.field, "format", str(error)))
    if data:
        fields["data"] = data
    try:
        line = _encode(fields)
    except (ValueError, TypeError) as error:
        errors.append(FieldError("", "encoding", f"cannot be written as JSON: {error}"))
    return Row(number, raw, tuple(errors)) if errors else Row(number, line)


def _whole_data(cell: Any) -> Any:
    """A column that is `data` holds JSON as text, or is a structure."""
    if not isinstance(cell, str | bytes):
        return _plain(cell)
    raw = cell.encode("utf-8", "surrogateescape") if isinstance(cell, str) else cell
    parse_document(raw)
    return msgspec.Raw(raw)


def _number(cell: Any) -> Any:
    if not isinstance(cell, str):
        return _plain(cell)
    number = Decimal(cell.strip()) if cell.isascii() else None
    if number is None or not number.is_finite():
        raise ValueError(f"{cell[:32]!r} is no number")
    return number


def _plain(cell: Any) -> Any:
    """A value that JSON has. An instant without offset stays one, for the decoder to refuse."""
    if isinstance(cell, datetime):
        return cell.astimezone(UTC).isoformat() if cell.tzinfo else cell.isoformat()
    if isinstance(cell, date | time):
        return cell.isoformat()
    if isinstance(cell, float):
        number = Decimal(repr(cell))  # its shortest form, which is what whoever wrote it meant
        if not number.is_finite():
            raise ValueError("must be finite; NaN and Infinity are refused")
        return number
    if isinstance(cell, bytes):
        raise ValueError("is binary; give text")  # noqa: TRY004 - one error type tells all
    if isinstance(cell, dict):
        return {key: _plain(value) for key, value in cell.items()}
    return [_plain(value) for value in cell] if isinstance(cell, list) else cell


_encode = msgspec.json.Encoder(decimal_format="number").encode
