"""Commits that come while one is under way share the next request; each is sent once and has its own answer."""

import asyncio
from collections.abc import Mapping

import pytest
from virtual_loop import run_virtually

from pipeline.adapters.shared_commits import SharedCommits
from pipeline.ports import CommitAnswer, Member

M1, M2 = Member(1, "m"), Member(2, "m")


class Coordinator:
    """Takes a second for each request; refuses all but the newest generation."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, dict[int, tuple[int, str]]]] = []
        self.fails = 0

    async def send(self, offsets: Mapping[int, tuple[int, str]], member: Member) -> Mapping[int, CommitAnswer]:
        """As the coordinator does."""
        self.requests.append((member.generation, dict(offsets)))
        await asyncio.sleep(1)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault")
        return dict.fromkeys(offsets, CommitAnswer.DONE if member == M2 else CommitAnswer.REFUSED)


def test_what_comes_while_a_request_is_under_way_goes_together_in_the_next_one() -> None:
    """In their order, whoever came first."""

    async def go() -> None:
        kafka = Coordinator()
        commits = SharedCommits(kafka.send)
        first = asyncio.create_task(commits.commit(0, 10, "a", M2))
        await asyncio.sleep(0.5)
        later = [asyncio.create_task(commits.commit(number, number, "b", M2)) for number in (3, 1, 2)]
        assert await first is CommitAnswer.DONE
        assert not any(task.done() for task in later)
        assert await asyncio.gather(*later) == [CommitAnswer.DONE] * 3
        assert kafka.requests == [(2, {0: (10, "a")}), (2, {3: (3, "b"), 1: (1, "b"), 2: (2, "b")})]
        assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.01)
        assert await commits.commit(0, 11, "c", M2) is CommitAnswer.DONE

    run_virtually(go)


def test_what_comes_in_the_same_moment_goes_together() -> None:
    """Sessions whose blocks shared an insert are told one after the other, some turns of the loop apart."""

    async def go() -> None:
        kafka = Coordinator()
        commits = SharedCommits(kafka.send)

        async def turns_later(number: int) -> CommitAnswer:
            for _ in range(number):
                await asyncio.sleep(0)
            return await commits.commit(number, number, "", M2)

        assert await asyncio.gather(*map(turns_later, range(6))) == [CommitAnswer.DONE] * 6
        assert kafka.requests == [(2, {number: (number, "") for number in range(6)})]

    run_virtually(go)


def test_one_of_a_partition_goes_after_the_other_and_memberships_never_mix() -> None:
    """Else the later one's answer would be the former's, or an old session would commit as the new member."""

    async def go() -> None:
        kafka = Coordinator()
        commits = SharedCommits(kafka.send)
        asked = [(0, 1, M1), (0, 2, M2), (1, 3, M1), (1, 4, M2), (0, 5, M2)]
        answers = await asyncio.gather(*(commits.commit(partition, at, "", member) for partition, at, member in asked))
        assert [answer is CommitAnswer.DONE for answer in answers] == [False, True, False, True, True]
        assert kafka.requests == [
            (1, {0: (1, ""), 1: (3, "")}),
            (2, {0: (2, ""), 1: (4, "")}),
            (2, {0: (5, "")}),
        ]

    run_virtually(go)


def test_a_commit_whose_session_ends_is_not_sent_any_more_and_takes_no_other_with_it() -> None:
    """One that is under way already may be applied, as ever."""

    async def go() -> None:
        kafka = Coordinator()
        commits = SharedCommits(kafka.send)
        first = asyncio.create_task(commits.commit(0, 1, "", M2))
        await asyncio.sleep(0.5)
        second, third = (asyncio.create_task(commits.commit(number, 1, "", M2)) for number in (1, 2))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        assert await third is CommitAnswer.DONE
        assert first.cancelled()
        assert second.cancelled()
        assert [sorted(offsets) for _, offsets in kafka.requests] == [[0], [2]]

    run_virtually(go)


def test_a_fault_is_raised_by_each_who_shares_the_request_and_by_nobody_else() -> None:
    """Nobody waits for ever."""

    async def go() -> None:
        kafka = Coordinator()
        kafka.fails = 1
        commits = SharedCommits(kafka.send)
        one, two = (asyncio.create_task(commits.commit(number, 1, "", M2)) for number in (0, 1))
        await asyncio.sleep(0.5)
        three = asyncio.create_task(commits.commit(2, 1, "", M2))
        for task in (one, two):
            with pytest.raises(RuntimeError, match="a fault"):
                await task
        assert await three is CommitAnswer.DONE

    run_virtually(go)
