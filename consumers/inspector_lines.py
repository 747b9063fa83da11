"""What `tally tail` prints: a line of text or of JSON for each line that came in."""

from datetime import UTC
from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from consumers.inspected import Inspected
from consumers.tables import OutputFormat
from consumers.tail import Skipped, Told

_COLOURS: Final = {"accepted": "green", "duplicate": "cyan", "conflict": "magenta", "rejected": "red"}
_RAW_CHARS: Final = 120
_ONE_LINE: Final = str.maketrans("\r\n", "  ")  # in data as it was sent: white space between tokens


def render_found(found: Told | Skipped, fmt: OutputFormat, console: Console) -> str:
    """One line that ends with a newline; as JSON with the token to go on after. `skipped` is a line of its own kind."""
    if fmt == "json":
        told = msgspec.structs.asdict(found.line) if isinstance(found, Told) else _gap(found)
        document = {"token": found.token, **told}
        return msgspec.json.encode(document).decode().translate(_ONE_LINE) + "\n"
    text = _line(found.line) if isinstance(found, Told) else _skipped(found)
    with console.capture() as capture:
        console.print(text, soft_wrap=True)
    return capture.get()


def _gap(found: Skipped) -> dict[str, object]:
    return {"skipped": {name: value for name, value in msgspec.structs.asdict(found).items() if name != "token"}}


def _line(line: Inspected) -> Text:
    at = line.append_time.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]
    text = Text.assemble(
        (at, "dim"), "  ", (f"{line.verdict:<9}", _COLOURS[line.verdict]), "  ", (_shown(line.transaction_id), "bold")
    )
    customer = _shown(line.client_id) + (f"/{_shown(line.entity_id)}" if line.entity_id else "")
    text.append(f"  {customer}  {_shown(line.event_name or line.feature_id)}")
    if line.value is not None:
        text.append(f"  {line.value}")
    if line.features:
        text.append(f"  → {', '.join(map(_shown, line.features))}", "dim")
    for fault in line.errors:
        where = f"{_shown(fault.field)}: " if fault.field else ""
        text.append(f"\n    {where}{_shown(fault.message)} ({fault.code})", "red")
    if line.raw is not None:
        text.append(f"\n    {_shown(line.raw[:_RAW_CHARS])}{'…' if len(line.raw) > _RAW_CHARS else ''}", "dim")
    return text


def _skipped(found: Skipped) -> Text:
    where = f"partition {found.partition}, offsets {found.start} to {found.end - 1}"
    return Text(f"skipped: {where}: {found.detail}", "yellow")


def _shown(text: str | None) -> str:
    """A stranger's text must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text or "-")
