"""Replay: refused lines are sent again, each as it came or mended, through the same publisher as every door.

Rules: a line is checked by the worker's own decoder before it is sent, and is not sent while it would be refused again.
A line with a transactionId keeps it; one without gets an id derived from its position. Either way it counts once,
however often it is replayed. That is why a replay is noted as sent *after* the broker's acknowledgement: a crash
between the two leaves the line open, and sending it again under the same id is a duplicate; noted before, a line that
was never sent would pass for one on its way. Only the id of a line that has none of its own is noted before as well,
so that no later mend can send it under another. A conflict is not replayed: the first event under its id stands.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final

import msgspec

from pipeline.event import Event, EventError, FieldError, decode_event, id_hash
from pipeline.ports import LogUnavailable
from pipeline.reject import RejectedLine, RejectPosition, ReplayNote, replay_id
from producers.publisher import Publisher

AS_IT_CAME: Final = "as it came"
_DATA_PREFIX: Final = "data."


class Mends(msgspec.Struct, frozen=True, kw_only=True):
    """Changes to a line's fields, in this order: rename (old, new), unset, set (field, value). A field is a name of
    the event, or `data.KEY`."""

    rename: tuple[tuple[str, str], ...] = ()
    unset: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """What was done, for the note."""
        done = [f"rename {old}={new}" for old, new in self.rename]
        done += [f"unset {name}" for name in self.unset]
        done += [f"set {name}={value}" for name, value in self.set]
        return "; ".join(done) or AS_IT_CAME


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one line: sent (`place`: where it lies), valid (a dry run), or not sent (`errors`: why)."""

    position: RejectPosition
    transaction_id: str | None = None
    place: tuple[int, int, int] | None = None
    errors: tuple[FieldError, ...] = ()


class Replayer:
    """Sends refused lines again. `note` writes notes durably; `catalog_version`: what the worker must have read."""

    def __init__(
        self,
        publisher: Publisher,
        note: Callable[[Sequence[ReplayNote]], Awaitable[None]],
        *,
        clock_us: Callable[[], int],
        ahead_max_us: int,
        catalog_version: int,
        mends: Mends | None = None,
    ) -> None:
        self._publisher = publisher
        self._note = note
        self._clock_us = clock_us
        self._ahead_max_us = ahead_max_us
        self._catalog_version = catalog_version
        self._mends = mends or Mends()

    def check(self, lines: Sequence[RejectedLine]) -> list[Replayed]:
        """What `replay` would do, without sending anything."""
        return [
            Replayed(position=line.position, transaction_id=found.transaction_id)
            if isinstance(found, Event)
            else Replayed(position=line.position, errors=found)
            for line, found in zip(lines, self._events(lines), strict=True)
        ]

    async def replay(self, lines: Sequence[RejectedLine]) -> list[Replayed]:
        """One answer per line, in order, once the broker has acknowledged what was sent and that is noted.

        Raises LogUnavailable when something was not acknowledged, and what `note` raises. Lines that are not noted
        stay open: replaying them again counts once.
        """
        events = self._events(lines)
        await self._plan(lines, events)
        sendings: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for index, (line, event) in enumerate(zip(lines, events, strict=True)):
            if isinstance(event, Event):
                sendings[line.account, self._still_defaulted(line)].append(index)
        places: dict[int, tuple[int, int, int]] = {}
        failed = None
        for (account, defaulted), indexes in sendings.items():
            try:
                found, failed = await self._send(account, defaulted, {i: events[i] for i in indexes})
            except LogUnavailable as error:
                found, failed = {}, str(error)
            places.update(found)
            if failed is not None:
                break
        done = [
            Replayed(position=line.position, transaction_id=event.transaction_id, place=places.get(index))
            if isinstance(event, Event)
            else Replayed(position=line.position, errors=event)
            for index, (line, event) in enumerate(zip(lines, events, strict=True))
        ]
        notes = [
            self._note_of(lines[index], event, places[index])
            for index, event in enumerate(events)
            if isinstance(event, Event) and index in places
        ]
        if notes:
            await self._note(notes)
        if failed is not None:
            raise LogUnavailable(f"{failed}; replay again, what was sent already counts once")
        return done

    # -- private

    async def _plan(self, lines: Sequence[RejectedLine], events: Sequence[Event | tuple[FieldError, ...]]) -> None:
        """Pins the ids of lines that have none of their own, before anything is sent under them."""
        pairs = zip(lines, events, strict=True)
        plans = [self._note_of(line, e, None) for line, e in pairs if isinstance(e, Event) and not line.transaction_id]
        if plans:
            await self._note(plans)

    async def _send(
        self, account: str, defaulted: bool, events: dict[int, Event | tuple[FieldError, ...]]
    ) -> tuple[dict[int, tuple[int, int, int]], str | None]:
        """Where the events lie, and why some may not be there."""
        found = [event for event in events.values() if isinstance(event, Event)]
        receipts = await self._publisher.publish(
            account, found, catalog_version=self._catalog_version, defaulted=defaulted
        )
        pairs = list(zip(events, receipts, strict=True))
        places = {index: receipt.place for index, receipt in pairs if receipt.place is not None}
        return places, next((receipt.error for _, receipt in pairs if receipt.error is not None), None)

    def _events(self, lines: Sequence[RejectedLine]) -> list[Event | tuple[FieldError, ...]]:
        arrival_us = self._clock_us()
        return [self._event(line, arrival_us) for line in lines]

    def _event(self, line: RejectedLine, arrival_us: int) -> Event | tuple[FieldError, ...]:
        """The event to send, or why none is sent."""
        if line.verdict == "conflict":
            message = "the id counts with other content, and the first stands; send a new event under an id of its own"
            return (FieldError("transactionId", "conflict", message),)
        if not line.account:
            return (FieldError("account", "encoding", "its record names no readable account; send it anew"),)
        try:
            raw = line.raw if self._mends == Mends() else mend(line.raw, self._mends)
            event = decode_event(raw, arrival_us=arrival_us, ahead_max_us=self._ahead_max_us)
        except EventError as error:
            return error.errors
        if event.transaction_id is None:
            return msgspec.structs.replace(event, transaction_id=line.transaction_id or replay_id(line.position))
        if line.transaction_id not in (None, event.transaction_id):
            message = f"must stay {line.transaction_id!r}: under another id the event could count twice"
            return (FieldError("transactionId", "changed", message),)
        return event

    def _still_defaulted(self, line: RejectedLine) -> bool:
        touched = {*self._mends.unset, *(n for pair in self._mends.rename for n in pair), *dict(self._mends.set)}
        return line.defaulted and "timestamp" not in touched

    def _note_of(self, line: RejectedLine, event: Event, place: tuple[int, int, int] | None) -> ReplayNote:
        identity = event.transaction_id or ""
        return ReplayNote(
            position=line.position,
            replayed_ms=self._clock_us() // 1000,
            transaction_id=identity,
            id_hash=id_hash(line.account, identity),
            means=self._mends.text,
            place=place,
        )


def mend(raw: bytes, mends: Mends) -> bytes:
    """The line with its fields changed; numbers keep their exact value. Raises EventError where the line cannot be
    taken apart, which no change of a field mends."""
    try:
        pairs: list[tuple[str, Any]] = _decode_pairs(raw.decode("utf-8"))
    except (UnicodeDecodeError, JSONDecodeError, RecursionError, ValueError, ArithmeticError) as error:
        raise EventError([FieldError("", "syntax", f"is no JSON, so no field can be mended ({error})")]) from error
    if not isinstance(pairs, _Pairs):
        raise EventError([FieldError("", "type", "is no JSON object, so no field can be mended")])
    set_ = dict(mends.set)
    gone = {*mends.unset, *set_}
    renamed = dict(mends.rename)
    fields: dict[str, Any] = {}
    for old, value in pairs:
        name = renamed.get(old, old)
        if name in gone:
            continue
        if name in fields:
            raise EventError([FieldError(name, "duplicate_key", f"key {name!r} comes twice; set or unset it")])
        fields[name] = _plain(value)
    for name in (n for n in gone if n.startswith(_DATA_PREFIX)):
        data = fields.setdefault("data", {})
        if isinstance(data, dict):
            data.pop(name.removeprefix(_DATA_PREFIX), None)
    for name, text in mends.set:
        _put(fields, name, text)
    try:
        return _encode(fields)
    except (ValueError, msgspec.MsgspecError) as error:
        raise EventError([FieldError("", "format", f"cannot be written as JSON ({error})")]) from error


class _Pairs(list[tuple[str, Any]]):
    """An object's members in their order, also where a key comes twice."""


_decode_pairs = JSONDecoder(
    object_pairs_hook=_Pairs, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal
).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def _plain(value: Any) -> Any:
    """Objects as dicts. Raises EventError where a key comes twice inside."""
    if isinstance(value, _Pairs):
        found = {name: _plain(inner) for name, inner in value}
        if len(found) != len(value):
            raise EventError([FieldError("data", "duplicate_key", "a key comes twice within it; set data as a whole")])
        return found
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _put(fields: dict[str, Any], name: str, text: str) -> None:
    """Ids and the timestamp are text as given; `value` and what lies in `data` are JSON where they are."""
    if name in {"data", "value"} or name.startswith(_DATA_PREFIX):
        value: Any = _json_or_text(text)
    else:
        value = text
    if not name.startswith(_DATA_PREFIX):
        fields[name] = value
        return
    data = fields.get("data")
    if not isinstance(data, dict):
        raise EventError([FieldError("data", "type", f"is no object, so {name} cannot be set; set data as a whole")])
    data[name.removeprefix(_DATA_PREFIX)] = value


def _json_or_text(text: str) -> Any:
    try:
        return _plain(_decode_pairs(text))
    except (JSONDecodeError, RecursionError, ValueError, ArithmeticError):
        return text
