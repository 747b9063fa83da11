"""Dedup without end: ids leave the table and still count once; a lost table comes back as it was."""

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from block_world import CHANGELOG, TOPIC, Violation, World, event_line, random_run
from virtual_loop import run_virtually

from pipeline.adapters.rocks import SightingTable, Tables
from pipeline.adapters.rocks_fake import MemoryTable
from pipeline.block import unpack_sighting
from pipeline.changelog import pack_changes, unpack_change
from pipeline.event import id_hash
from pipeline.fail_points import EXPIRY_POINTS
from pipeline.ports import Border, Marker
from pipeline.tidying import Tidier

WINDOW_MS = 4_000
OLD = ("a", "b", "c")


def key(identity: str) -> bytes:
    """The table's key of an id."""
    return id_hash("acme", identity).to_bytes(16, "little")


def table_of(world: World) -> MemoryTable | SightingTable:
    """What the first worker has of partition 0."""
    return world.workers[0].tables[0]


async def counted_and_grown_old(world: World) -> None:
    """Three ids are counted; then the log goes on for longer than the window."""
    world.produce(0, [event_line(identity, 1) for identity in OLD])
    await world.run()
    for number in range(3):
        await asyncio.sleep(WINDOW_MS / 2000)
        world.produce(0, [event_line(f"new{number}", 1)])
        await world.drain()


async def come_again(world: World) -> None:
    """The old ids once more: same content, other content, and a new id beside them. Then the law."""
    world.produce(0, [event_line("a", 1), event_line("b", 2), event_line("d", 1)])
    world.produce(0, [event_line("c", 1)])
    await world.run()
    assert world.verdicts_counted() == (world.ids(), 0)


def test_an_id_that_has_left_the_table_still_counts_once() -> None:
    """It is found in the permanent ids, whatever its timestamp; the table holds the newer ones only."""

    async def go() -> None:
        world = World(window_ms=WINDOW_MS)
        await counted_and_grown_old(world)
        await asyncio.sleep(3)
        assert not table_of(world).get_many([key(identity) for identity in OLD])
        assert table_of(world).get_many([key("new2")])
        assert world.log._first[CHANGELOG, 0] > 0
        await come_again(world)
        assert world.recalled >= len(OLD)

    run_virtually(go)


def test_without_a_window_every_id_stays() -> None:
    """0 keeps all of them, and the changelog from its beginning on."""

    async def go() -> None:
        world = World()
        await counted_and_grown_old(world)
        await asyncio.sleep(3)
        assert len(table_of(world).get_many([key(identity) for identity in OLD])) == len(OLD)
        assert (await world.log.bounds(CHANGELOG, 0))[0] == 0
        await come_again(world)
        assert world.recalled == 0

    run_virtually(go)


@pytest.mark.parametrize("loss", ["memory", "disk", "filter"])
@pytest.mark.parametrize("point", EXPIRY_POINTS)
def test_a_death_between_any_two_steps_of_expiry_loses_no_id(point: str, loss: str) -> None:
    """Whether the memory table, the whole disk or the filter's file is gone."""

    async def go() -> None:
        world = World(window_ms=WINDOW_MS, kill_at=(point, 1), disk_lost=loss == "disk")
        await counted_and_grown_old(world)
        await asyncio.sleep(5)
        assert world.killed == 1
        if loss == "filter":
            world.workers[0].lose_filters()
        world.expire()
        await come_again(world)

    run_virtually(go)


@pytest.mark.parametrize("point", EXPIRY_POINTS)
@pytest.mark.parametrize("loss", ["memory", "disk", "filter"])
def test_the_same_on_rocksdb(tmp_path: Path, point: str, loss: str) -> None:
    """With the production table and the filter's real file."""

    async def go() -> None:
        world = World(window_ms=WINDOW_MS, kill_at=(point, 1), disk_lost=loss == "disk", folder=tmp_path)
        await counted_and_grown_old(world)
        await asyncio.sleep(5)
        assert world.killed == 1
        if loss == "filter":
            (tmp_path / "0" / "t-0.expired").unlink()
        world.expire()
        await come_again(world)

    run_virtually(go)


def test_deletions_that_neither_border_nor_filter_know_of_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the planted bug: ids leave before the filter is saved, and the border moves last."""

    async def hasty(self: Tidier, border: Border) -> None:
        def take(keys: list[bytes]) -> None:
            self._table.remember_expired(b"".join(keys))
            self._table.expire(keys, self._table.border())

        await self._sweep(take, border)
        self._fail_point("expired_deleted")
        await self._io(self._table.save_expired, border)
        await self._cpu(self._table.expire, [], border)

    async def go() -> None:
        world = World(window_ms=WINDOW_MS, kill_at=("expired_deleted", 1), folder=tmp_path)
        await counted_and_grown_old(world)
        await asyncio.sleep(5)
        world.expire()
        await come_again(world)

    monkeypatch.setattr(Tidier, "_expire_below", hasty)
    with pytest.raises(Violation):
        run_virtually(go)


def test_with_the_store_away_an_old_id_waits_for_its_verdict() -> None:
    """It is never guessed."""

    async def go() -> None:
        world = World(window_ms=WINDOW_MS)
        await counted_and_grown_old(world)
        await asyncio.sleep(3)
        world.away_until_ms = world.now_ms() + 60_000
        world.produce(0, [event_line("a", 1)])
        before = world.passed["intent_committed"]
        await asyncio.sleep(30)
        assert world.passed["intent_committed"] == before
        world.away_until_ms = 0
        await come_again(world)

    run_virtually(go)


def test_the_marker_moves_while_the_worker_lives() -> None:
    """What the session itself wrote is in its table: a restart reads back nothing of it."""

    async def go() -> None:
        world = World()
        for number in range(20):
            world.produce(0, [event_line(f"t{number}", 1)])
            await world.run()
        await asyncio.sleep(2)
        end = len(world.log.records(CHANGELOG, 0))
        assert end >= 20
        assert table_of(world).marker().offset == end
        assert table_of(world).marker().end == len(world.log.records(TOPIC, 0))

    run_virtually(go)


def test_the_marker_passes_over_another_workers_records_only_once_they_are_read_back() -> None:
    """A zombie's entry that the table did not have is there when the marker has passed it."""

    async def go() -> None:
        world = World()
        world.produce(0, [event_line("a", 1)])
        await world.run()
        table = table_of(world)
        (written,) = unpack_change(world.log.records(CHANGELOG, 0)[0].value or b"").entries
        (record,) = pack_changes(0, 0, 1, {key("of a zombie"): written[1]})
        world.log.append(CHANGELOG, 0, record)
        world.produce(0, [event_line("b", 1)])
        await world.drain()
        await asyncio.sleep(2)
        assert table.marker().offset == 3
        assert table.get_many([key("of a zombie")]) == {key("of a zombie"): written[1]}

    run_virtually(go)


def test_a_changelog_made_anew_under_a_running_worker_does_not_move_the_marker() -> None:
    """What it lacks is made up for at the next start."""

    async def go() -> None:
        world = World()
        for number in range(4):
            world.produce(0, [event_line(f"t{number}", 1)])
            await world.run()
        await asyncio.sleep(2)
        before = table_of(world).marker()
        world.log.make_anew(CHANGELOG, 0)
        world.produce(0, [event_line("n", 1)])
        await world.drain()
        await asyncio.sleep(2)
        assert table_of(world).marker() == before

    run_virtually(go)


# ------------------------------------------------------------------------------------------------ lost and restored


def known(world: World, number: int, table: MemoryTable | SightingTable) -> dict[bytes, Any]:
    """What look-ups would find of every id that was ever counted, as a session asks: table, filter, permanent ids."""
    keys = sorted({fact.key.to_bytes(16, "little") for n, fact in world.blocks.facts("events") if n == number})
    found = dict(table.get_many(keys))
    unsure = table.may_be_expired([k for k in keys if k not in found])
    found |= super(type(world.blocks), world.blocks).find(number, unsure)
    return {k: unpack_sighting(value) for k, value in found.items()}


async def answers(world: World) -> dict[int, dict[bytes, Any]]:
    """What the owners of the partitions know, once each has its tables."""
    for _ in range(200):
        running = {
            number: worker.tables[number]
            for worker in world.workers
            for number, (session, _) in worker.sessions.items()
            if session.standing.state == "running" and number in worker.tables
        }
        if len(running) == world.partitions and world.drained():
            return {number: known(world, number, table) for number, table in running.items()}
        world.expire()
        await asyncio.sleep(0.1)
    raise AssertionError(f"no calm, seed {world.seed}")


@pytest.mark.parametrize("rocks", [False, True])
def test_a_restored_table_equals_the_lost_one(tmp_path: Path, rocks: bool) -> None:
    """After everything that may go wrong, with and without expiry: all disks are lost, and every look-up has the same
    answer as before."""

    async def go(seed: int) -> None:
        def on_disk(world: World) -> None:
            world.folder = tmp_path / str(seed) if rocks else None

        world = await random_run(seed, steps=25, prepare=on_disk)
        before = await answers(world)
        assert any(before.values())
        for worker in world.workers:
            worker.kill(disk_lost=True)
        world.expire()
        world.produce(0, [event_line(None, 1)])
        world.produce(1, [event_line(None, 1)])
        await world.run()
        after = await answers(world)
        for number, found in before.items():
            assert {k: after[number].get(k) for k in found} == found, seed

    for seed in range(6 if rocks else 30):
        run_virtually(lambda seed=seed: go(seed))


def test_a_table_whose_filter_was_saved_earlier_than_its_border_is_filled_up(tmp_path: Path) -> None:
    """An old copy of the filter's file is not taken for the whole."""

    async def go() -> None:
        world = World(window_ms=WINDOW_MS, folder=tmp_path)
        file = tmp_path / "0" / "t-0.expired"
        await counted_and_grown_old(world)
        await asyncio.sleep(3)
        shutil.copy(file, tmp_path / "copy")
        old = table_of(world).remembered()
        for number in range(3):
            await asyncio.sleep(WINDOW_MS / 1000)
            world.produce(0, [event_line(f"newer{number}", 1)])
            await world.drain()
        await asyncio.sleep(3)
        assert table_of(world).border() > old
        world.workers[0].kill()
        shutil.copy(tmp_path / "copy", file)
        world.expire()
        world.produce(0, [event_line("new0", 1), event_line("new2", 2)])
        await come_again(world)
        assert table_of(world).remembered() > old

    run_virtually(go)


def test_a_killed_process_leaves_a_border_no_older_than_what_is_missing(tmp_path: Path) -> None:
    """Border and deletions share their batches, and a crash leaves a prefix of them."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.adapters.rocks import Tables\n"
        "from pipeline.ports import Border, Marker\n"
        "table = Tables(Path(sys.argv[1]), 8 << 20).open('t-0')\n"
        "for n in range(40):\n"
        "    keys = [(n * 5000 + i).to_bytes(16, 'little') for i in range(5000)]\n"
        "    table.restore([(key, bytes(20)) for key in keys], Marker(n + 1, 0, n + 1))\n"
        "    table.expire(keys, Border(0, n + 1))\n"
        "    if n % 10 == 0:\n"
        "        table._db.flush(True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    table = Tables(tmp_path, 8 << 20).open("t-0")
    border, marker = table.border(), table.marker()
    assert border.end >= 31
    assert Marker(marker.offset, 0, marker.offset) == marker
    for n in range(40):
        keys = [(n * 5000 + i).to_bytes(16, "little") for i in range(0, 5000, 250)]
        missing = len(keys) - len(table.get_many(keys))
        assert not missing or n < border.end or n >= marker.offset
    assert table.remembered() == Border(0, 0)
    table.close()
