"""The consumer group in memory: the fake of `adapters/faust_bridge.py`'s gate, for tests and experiments.

Rules: a `Coordinator` is the broker's side and does with commits what Kafka does: it takes them from any member of the
current generation, whoever owns the partition, and refuses all others. A `MemoryGroup` is one worker's side; its user
fetches by hand, in the steps he wants.
"""

from collections.abc import Callable, Mapping

from pipeline.adapters.log_fake import MemoryLog
from pipeline.block import LogRecord
from pipeline.ports import Batch, CommitAnswer, LogUnavailable, Member


class Coordinator:
    """Members, generation, owners and commits of a group. `on_commit` hears of each commit that was applied."""

    def __init__(self, partitions: int) -> None:
        self.generation = 0
        self.owners: Mapping[int, str] = {}
        self.committed: dict[int, tuple[int, str]] = {}
        self.on_commit: Callable[[int, int, str], None] = lambda partition, offset, metadata: None
        self._partitions = partitions
        self.members: list[str] = []
        self._joined = 0

    def join(self) -> str:
        """A new member; its id. The group moves on to the next generation."""
        self._joined += 1
        member_id = f"member-{self._joined}"
        self.members.append(member_id)
        self.rebalance()
        return member_id

    def leave(self, member_id: str) -> None:
        """A member left, or was expelled."""
        if member_id in self.members:
            self.members.remove(member_id)
            self.rebalance()

    def rebalance(self) -> None:
        """The next generation, in which the partitions move."""
        self.generation += 1
        members = self.members
        self.owners = {
            number: members[(number + self.generation) % len(members)] for number in range(self._partitions) if members
        }

    def has(self, member_id: str) -> bool:
        """Whether this is a member."""
        return member_id in self.members

    def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        """What the broker does with a commit."""
        if member.generation != self.generation or member.member_id not in self.members:
            return CommitAnswer.REFUSED
        self.committed[partition] = (offset, metadata)
        self.on_commit(partition, offset, metadata)
        return CommitAnswer.DONE


class _Opened:
    __slots__ = ("opening", "paused", "position")

    def __init__(self, opening: int, position: int) -> None:
        self.opening = opening
        self.position = position
        self.paused = False


class MemoryGroup:
    """Group for one worker. `away = True` makes reading the offset fail and commits go unanswered and unapplied."""

    def __init__(self, coordinator: Coordinator, log: MemoryLog, topic: str) -> None:
        self.away = False
        self.member: Member | None = None
        self.opened: dict[int, _Opened] = {}
        self._coordinator = coordinator
        self._log = log
        self._topic = topic
        self._openings = 0

    def join(self) -> Member:
        """Takes part in the current generation, as a new member unless this is one. Readings end."""
        self.opened.clear()
        member_id = self.member.member_id if self.member is not None else ""
        if not self._coordinator.has(member_id):
            member_id = self._coordinator.join()
        self.member = Member(self._coordinator.generation, member_id)
        return self.member

    def fetch(self, partition: int, records_max: int) -> Batch | None:
        """The next batch of an opened partition that is not paused; None when there is none."""
        opened = self.opened.get(partition)
        if opened is None or opened.paused:
            return None
        start = opened.position
        found = self._log.records(self._topic, partition)[start : start + records_max]
        if not found:
            return None
        opened.position = start + len(found)
        records = [LogRecord(r.offset, r.timestamp_ms, r.value, tuple(r.headers)) for r in found]
        return Batch(partition, opened.opening, start, opened.position, records)

    async def committed(self, partition: int) -> tuple[int, str] | None:
        """The group's offset and metadata; None when there is none."""
        if self.away:
            raise LogUnavailable("the group was switched off")
        return self._coordinator.committed.get(partition)

    async def commit(self, partition: int, offset: int, metadata: str, member: Member) -> CommitAnswer:
        """One commit under that membership."""
        if self.away:
            return CommitAnswer.UNKNOWN
        return self._coordinator.commit(partition, offset, metadata, member)

    async def rejoin(self) -> None:
        """Leaves the group; whoever drives this worker joins it anew."""
        if self.member is not None:
            self._coordinator.leave(self.member.member_id)
            self.member = None

    async def open_at(self, partition: int, offset: int) -> int:
        """Batches of the partition come from `offset` on; the opening's number."""
        self._openings += 1
        self.opened[partition] = _Opened(self._openings, offset)
        return self._openings

    def pause(self, partition: int) -> None:
        """No more batches until `resume`."""
        if partition in self.opened:
            self.opened[partition].paused = True

    def resume(self, partition: int) -> None:
        """Batches come again."""
        if partition in self.opened:
            self.opened[partition].paused = False
