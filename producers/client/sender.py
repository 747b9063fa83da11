"""The sender: takes events out of the outbox by batches until the API has said what became of each.

Rules: one batch is on its way at a time, so the order is kept. An event leaves the outbox when it is received, or when
`tell` has been told why it is not; in doubt it is sent again, the same bytes under the same id. Waits grow by doubling,
with jitter, and are never shorter than the API's own Retry-After. The thread is a daemon and starts with the first
event, in whichever process records it: after a fork the child begins with nothing of its parent's.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Protocol

from producers.client.answers import Denied, Judged, Outcome, Refusal, TooLarge, Unknown
from producers.client.event import Recorded
from producers.client.outbox import CLOSED, Closed, Outbox, OutboxFull
from producers.client.spool import SpoolError

Tell = Callable[[Recorded, Refusal], None]

_log = logging.getLogger("producers.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """When batches are sent, and how again. Seconds, bytes, events."""

    flush_events: int = 10
    flush_every_s: float = 10.0
    batch_events_max: int = 1_000
    batch_bytes_max: int = 1 << 20
    retry_first_s: float = 0.25
    retry_max_s: float = 30.0
    give_up_s: float | None = None
    close_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None and not given > 0:
                raise ValueError(f"{field.name} must be above 0, not {given}")
        if self.batch_events_max > 10_000 or self.batch_bytes_max > 9_000_000:
            raise ValueError("the API takes at most 10,000 events and 10 MB a request")


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of this client in this process since it was made.

    With a spool `received`, `refused` and `waiting` take in what other processes have left there; without one,
    recorded = received + refused + unsent + waiting. `failing`: why events wait to be sent again, if they do.
    """

    recorded: int = 0
    received: int = 0
    refused: int = 0
    unsent: int = 0
    waiting: int = 0
    batches: int = 0
    retries: int = 0
    failing: str | None = None


class Port(Protocol):
    """What a sender needs of the wire."""

    def post(self, batch: Sequence[Recorded]) -> Outcome: ...

    def forked(self) -> None: ...

    def close(self) -> None: ...


class Sender:
    """Sends what is put into the outbox. `tell` is called, in the sender's thread, for each event that is refused."""

    def __init__(self, outbox: Outbox, wire: Port, sending: Sending, tell: Tell) -> None:
        self._outbox = outbox
        self._wire = wire
        self._sending = sending
        self._tell = tell
        self._begin()
        self.closed = False
        with _fork_lock:
            _senders.add(self)
        atexit.register(self.close)

    def _begin(self) -> None:
        """As it is at first, and again in a forked child."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._recorded: int = 0
        self._received: int = 0
        self._refused: int = 0
        self._unsent: int = 0
        self._batches: int = 0
        self._retries: int = 0
        self._failing: str | None = None
        self._listeners: dict[object, Callable[[], None]] = {}
        self._limit: int = self._sending.batch_events_max
        self._failures: int = 0
        self._not_before_s: float = 0.0  # the back-off, of the monotonic clock
        self._told_s: float = 0.0  # the part of it that the API has asked for, which a flush does not shorten
        self._flush_to: int = 0
        self._fresh: int = 0  # recorded since the thread was last woken
        self._seen_s: float = 0.0  # when the oldest event was first seen at the latest, of the monotonic clock
        self._removals: int = 0
        self._idle: bool = False
        self._left: int = 0  # when it was closed
        self._stopping: bool = False

    def put(self, events: Sequence[Recorded], block_s: float | None) -> None:
        """Into the outbox. Waits up to `block_s` (None: for ever) for room; raises OutboxFull, SpoolError or Closed."""
        end_s = None if block_s is None else time.monotonic() + block_s
        while True:
            with self._changed:
                seen = self._removals
                if self.closed:
                    raise Closed(CLOSED)
                self._start()
            try:
                self._outbox.put(events)
                break
            except OutboxFull:
                if not self._wait_for_room(seen, end_s):
                    raise
        with self._changed:
            self._recorded += len(events)
            self._fresh += len(events)
            if self._fresh >= self._sending.flush_events or self._idle:
                self._fresh = 0
                self._changed.notify_all()

    def start(self) -> None:
        """Begins with what is in the outbox, without waiting for an event."""
        with self._changed:
            self._start()

    def flush(self, timeout_s: float | None) -> int:
        """Waits until nothing recorded before this call is left, up to that long; how many events are left."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        last = self._outbox.last_position()
        with self._changed:  # what waits after a failure is tried once more now, unless the API has said when
            self._failures = 0
            self._not_before_s = min(self._not_before_s, max(self._told_s, time.monotonic()))
            self._flush_to = max(self._flush_to, last)
        while True:
            with self._changed:
                seen = self._removals
            oldest = self._outbox.peek(1, 0)
            if not oldest or oldest[0].position > last:
                return 0
            with self._changed:
                self._start()
            if not self._wait_for_room(seen, end_s):
                return self._outbox.waiting_up_to(last)

    def close(self, timeout_s: float | None = None) -> int:
        """Takes no more, sends what there is for up to that long, and ends. How many events were not received; without
        a spool each of them is told as `unsent`. Safe to call again."""
        with self._changed:
            if self.closed:
                return 0
            self.closed = True
        atexit.unregister(self.close)
        end_s = time.monotonic() + (self._sending.close_timeout_s if timeout_s is None else timeout_s)
        left = self._last_flush(end_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self._wire.close()
        elif not self.in_own_thread:
            thread.join(max(0.0, end_s - time.monotonic()))  # it ends its connections by itself
        self._outbox.close()
        return self._tell_the_rest(left)

    def stats(self) -> Stats:
        """As of now. With a spool it counts the rows that are left."""
        waiting = self._left
        with contextlib.suppress(SpoolError, OutboxFull, Closed):  # as it was when it was closed
            waiting = self._outbox.waiting()
        with self._changed:
            return Stats(
                recorded=self._recorded,
                received=self._received,
                refused=self._refused,
                unsent=self._unsent,
                waiting=waiting,
                batches=self._batches,
                retries=self._retries,
                failing=self._failing,
            )

    def listen(self, called: Callable[[], None]) -> Callable[[], None]:
        """Has `called` called, from whichever thread, whenever there is more room; what is returned ends that."""
        with self._changed:
            self._listeners[key := object()] = called
        return lambda: self._unlisten(key)

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller is the sender's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    # -- the thread

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                self._turn()
        finally:
            self._wire.close()

    def _wait_until_due(self) -> bool:
        """True when there is something to send now; False when it is all over."""
        with self._changed:
            while not self._stopping:
                try:
                    wait_s = self._due_in_s()
                except Closed:
                    return False
                except (SpoolError, OutboxFull, OSError) as error:
                    _log.error("the spool cannot be read, which is tried again: %s", error)
                    wait_s = self._sending.retry_max_s
                if wait_s is not None and wait_s <= 0:
                    self._fresh = 0
                    self._seen_s = time.monotonic()
                    return True
                self._idle = wait_s == self._outbox.poll_s
                self._changed.wait(wait_s)
                self._idle = False
        return False

    def _due_in_s(self) -> float | None:
        """Seconds until the next batch; None: not before something is recorded."""
        poll_s = self._outbox.poll_s
        now_s = time.monotonic()
        oldest = self._outbox.peek(1, 0)
        if not oldest or not self._outbox.claim():
            self._seen_s = now_s
            return poll_s
        if self._not_before_s > now_s:
            return self._not_before_s - now_s
        if oldest[0].position <= self._flush_to or self._outbox.has(self._sending.flush_events):
            return 0.0
        # by the wall clock for what another program has left, and by the other where that clock was set back
        age_s = max(time.time() - oldest[0].recorded_s, now_s - self._seen_s)
        due_s = self._sending.flush_every_s - age_s
        return due_s if poll_s is None else min(due_s, poll_s)

    def _turn(self) -> None:
        """Sends one batch and does what its outcome asks for."""
        try:
            batch = self._outbox.peek(self._limit, self._sending.batch_bytes_max)
            if batch:
                self._settle(batch, self._wire.post(batch))
        except Closed:
            return  # the answer came too late: what is in the spool is sent again, which counts once
        except (SpoolError, OutboxFull) as error:
            # what could not be removed is sent again, which counts once
            self._fail(f"the spool cannot be written: {error}", None)
        except Exception as error:  # noqa: BLE001 - logged with its trace
            # whatever it is, the events are still in the outbox, and a thread that ended would never send them
            _log.exception("the sender goes on after an error of its own")
            self._fail(repr(error), None)

    def _settle(self, batch: list[Recorded], outcome: Outcome) -> None:
        with self._changed:
            self._batches += 1
        match outcome:
            case Judged(received, refused, again, reason, wait_s):
                self._done(received, refused)
                if again:
                    self._fail(reason, wait_s)
                    self._give_up(again, reason)
                else:
                    self._recover()
            case TooLarge(refusal):
                if len(batch) == 1:
                    self._done([], [(batch[0], refusal)])
                else:
                    self._limit = max(1, len(batch) // 2)
            case Denied(refusal) if self._outbox.durable:
                # nothing is wrong with the events: they stay, until the key or the address is set right
                self._fail(refusal.message, self._sending.retry_max_s)
            case Denied(refusal):
                self._done([], [(event, refusal) for event in batch])
            case Unknown(reason, wait_s):
                self._fail(reason, wait_s)
                self._give_up(batch, reason)

    def _done(self, received: list[Recorded], refused: list[tuple[Recorded, Refusal]]) -> None:
        """They leave the outbox; the refused ones not before they are told."""
        if self._stopping and not self._outbox.durable:
            return  # close() has told of them, or is about to
        for event, refusal in refused:
            self._tell(event, refusal)
        self._outbox.remove([*received, *(event for event, _ in refused)])
        with self._changed:
            self._received += len(received)
            self._refused += len(refused)
        self._there_is_room()

    def _give_up(self, events: list[Recorded], reason: str) -> None:
        """Those that have been waiting for longer than they may."""
        if self._sending.give_up_s is not None:
            before_s = time.time() - self._sending.give_up_s
            refusal = Refusal("gave_up", f"not received within {self._sending.give_up_s:g} s: {reason}")
            if old := [event for event in events if event.recorded_s < before_s]:
                self._done([], [(event, refusal) for event in old])

    def _fail(self, reason: str, told_s: float | None) -> None:
        """The next attempt waits, longer each time."""
        with self._changed:
            if self._failing is None:
                _log.warning("events wait to be sent, and are tried again: %s", reason)
            self._failing = reason
            self._retries += 1
            wait_s = min(self._sending.retry_first_s * 2.0**self._failures, self._sending.retry_max_s)
            self._failures = min(self._failures + 1, 32)
            now_s = time.monotonic()
            self._told_s = now_s + (told_s or 0.0)
            self._not_before_s = max(self._told_s, now_s + wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries

    def _recover(self) -> None:
        with self._changed:
            if self._failing is not None:
                _log.info("events are sent again")
            self._failing = None
            self._failures = 0
        self._limit = min(self._limit * 2, self._sending.batch_events_max)

    # -- beside it

    def _start(self) -> None:
        """The thread, when there is none. Needs the lock."""
        if self._thread is not None or self._stopping:
            return
        thread = threading.Thread(target=self._run, name="tally-sender", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending and starts none: whoever waits sends by itself
            return
        self._thread = thread
        if multiprocessing.parent_process() is not None:  # such a child ends without atexit
            from multiprocessing.util import Finalize  # noqa: PLC0415 - costs nothing where there is no such child

            Finalize(None, self.close, exitpriority=0)

    def _wait_for_room(self, seen: int, end_s: float | None) -> bool:
        """Until something left the outbox after `seen`; False when it is too late for that."""
        if self.in_own_thread:
            return False
        poll_s = self._outbox.poll_s  # others that send what is in a spool tell nobody here, so one looks
        with self._changed:
            self._flush_to = max(self._flush_to, self._outbox.last_position())
            self._changed.notify_all()
            wait_s = None if end_s is None else end_s - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                return False
            if self._thread is not None:
                found = self._changed.wait_for(lambda: self._removals != seen, _least(wait_s, poll_s))
                return found or poll_s is not None
        if self._outbox.claim():
            self._turn()
        time.sleep(max(0.0, _least(wait_s, poll_s, self._not_before_s - time.monotonic()) or 0.0))
        return True

    def _there_is_room(self) -> None:
        with self._changed:
            self._removals += 1
            self._changed.notify_all()
            called = list(self._listeners.values())
        for one in called:
            one()

    def _unlisten(self, key: object) -> None:
        with self._changed:
            self._listeners.pop(key, None)

    def _last_flush(self, end_s: float) -> int:
        """How many are left after it."""
        try:
            if not self._outbox.durable or self._outbox.claim():
                return self.flush(max(0.0, end_s - time.monotonic()))
            return self._outbox.waiting()  # another process sends them
        except (SpoolError, OutboxFull, OSError) as error:
            _log.error("the spool cannot be read while the client is closed: %s", error)
            return 0

    def _tell_the_rest(self, left: int) -> int:
        """What is left at the end is never left in silence; how many that is."""
        if self._outbox.durable:
            self._left = left
            if left:
                _log.warning("%d events stay in the spool, to be sent by another client on it", left)
            return left
        rest = self._outbox.peek(sys.maxsize, sys.maxsize)
        if rest:
            reason = self._failing or "the time for closing was over"
            _log.error("%d events were not sent: %s", len(rest), reason)
            for event in rest:
                self._tell(event, Refusal("unsent", f"not received before the client was closed: {reason}"))
            self._unsent = len(rest)
            self._outbox.remove(rest)
        return len(rest)

    # -- forks

    def before_fork(self) -> None:
        """Takes the locks, so that a child finds everything whole."""
        self._changed.acquire()
        self._outbox.suspend()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._outbox.resume(in_child=False)
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Begins anew, with nothing of the parent's."""
        self._begin()
        self._wire.forked()
        self._outbox.resume(in_child=True)


def _least(*waits_s: float | None) -> float | None:
    return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)


_senders: Final[weakref.WeakSet[Sender]] = weakref.WeakSet()
_forking: Final[list[Sender]] = []
_fork_lock = threading.RLock()


def _before_fork() -> None:
    _fork_lock.acquire()
    _forking.extend(_senders)
    for sender in _forking:
        sender.before_fork()


def _after_fork_in_parent() -> None:
    for sender in _forking:
        sender.after_fork_in_parent()
    _forking.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock  # noqa: PLW0603 - the parent's may be waited for by threads that do not exist here
    _fork_lock = threading.RLock()
    for sender in _forking:
        sender.after_fork_in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
