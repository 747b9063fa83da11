"""Decode: records of the events topic become lines, each an event or a refusal with its reasons. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from pipeline.block import Line, LogRecord
from pipeline.event import EventError, FieldError, decode_event
from pipeline.records import Records

LINES_MAX: Final = 1 << 24  # a line's number has 24 bits in the table of first sightings


def decode_records(records: Iterable[LogRecord], *, default_account: str, ahead_max_us: int) -> Iterator[Line]:
    """The lines of all records in the log's order. Blank lines between events count for nothing; a record without
    any line is one refused line, so that nothing vanishes."""
    for record in records:
        headers = dict(record.headers)
        account, fault = account_of(headers.get("account"), default_account)
        defaulted = headers.get("defaulted") == b"timestamp"
        found = False
        for number, raw in enumerate((record.value or b"").split(b"\n")):
            if not raw or raw.isspace():
                continue
            found = True
            line = Line(
                offset=record.offset,
                line=number,
                append_ms=record.append_ms,
                account=account,
                raw=raw,
                headers=record.headers,
                defaulted=defaulted,
            )
            _decode(line, fault, ahead_max_us)
            yield line
        if not found:
            empty = (empty_record(),)
            yield Line(
                record.offset,
                0,
                record.append_ms,
                account,
                b"",
                errors=empty,
                headers=record.headers,
                defaulted=defaulted,
            )


def catalog_stamp(records: Iterable[LogRecord]) -> int:
    """The newest catalog version that a door has stamped on the records; -1 when none has. A stamp that is no
    number says nothing."""
    newest = -1
    headers = records.used_headers() if isinstance(records, Records) else [record.headers for record in records]
    for given in headers:
        for name, value in given:
            if name == "catalog" and len(value) <= 18 and value.isdigit():
                newest = max(newest, int(value))
    return newest


def _decode(line: Line, fault: FieldError | None, ahead_max_us: int) -> None:
    if fault is not None:
        line.errors = (fault,)
        return
    if line.line >= LINES_MAX:
        line.errors = (FieldError("", "too_large", "the record has too many lines"),)
        return
    try:
        line.event = decode_event(line.raw, arrival_us=line.append_ms * 1000, ahead_max_us=ahead_max_us)
    except EventError as error:
        line.errors = error.errors


def empty_record() -> FieldError:
    """Why a record without any line is refused."""
    return FieldError("", "syntax", "the record is empty; an event is one line of JSON")


def account_of(header: bytes | None, default_account: str) -> tuple[str, FieldError | None]:
    """The account that a record's header names, or why it names none."""
    if header is None:
        return default_account, None
    try:
        account = header.decode("utf-8")
    except UnicodeDecodeError:
        return "", FieldError("account", "encoding", "the header `account` is no UTF-8")
    if not 1 <= len(account) <= 256:
        return "", FieldError("account", "range", "the header `account` must have 1 to 256 characters")
    return account, None
