"""The door for large amounts: `POST /v1/events/batch`, a JSON array or NDJSON, also compressed.

Rules: the event's own dialect, timestamps required, verdicts per event. At most 10,000 events and 10 MB, counted after
decompression; `Content-Encoding: gzip` or `zstd`. Blank lines of NDJSON are no events and have no index.
"""

from typing import Final

from pipeline.event import FieldError
from producers.auth import principal_of
from producers.body import BODY_BYTES_MAX, EVENTS_MAX, check_media_type, read_body, split_list, too_many
from producers.door import Door
from producers.idempotency import refuse_for_list
from producers.incoming import JSON, Answer, Incoming
from producers.intake import Intake
from producers.problems import bad_fields
from producers.verdicts import receive_lines, verdicts_answer

NDJSON: Final = "application/x-ndjson"
_MEDIA_TYPES: Final = (JSON, NDJSON, "application/ndjson", "application/jsonl")


def bulk_door(intake: Intake) -> Door:
    """This door."""

    async def create_batch(request: Incoming) -> Answer:
        """A JSON array or NDJSON of usage events; answers once the log has acknowledged."""
        refuse_for_list(request)
        media_type = check_media_type(request, *_MEDIA_TYPES)
        body = (await read_body(request, *_MEDIA_TYPES, compressed=True)).strip()
        if media_type == JSON and not body.startswith(b"["):
            raise bad_fields([FieldError("", "type", f"must be a JSON array; for one event a line send {NDJSON}")])
        lines = await split_list(body) if media_type == JSON else _split_lines(body)
        return verdicts_answer(await receive_lines(intake, principal_of(request), lines))

    return Door(["/v1/events/batch"], create_batch, summary="Record many usage events", body_bytes_max=BODY_BYTES_MAX)


def _split_lines(body: bytes) -> list[bytes]:
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise bad_fields([FieldError("", "syntax", "the body is empty; send at least one event")])
    if len(lines) > EVENTS_MAX:
        raise too_many(len(lines))
    return lines
