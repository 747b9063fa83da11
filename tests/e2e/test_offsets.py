"""The operator's ways out, on a real broker and engine with a worker that is started and stopped by hand."""

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from place import PARTITIONS, Place
from waiting import until

from pipeline.adapters.kafka import group_offsets
from pipeline.local.stack import start_services

pytestmark = pytest.mark.faults  # broker, engine and worker of its own for each, half a minute and more


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One for each test: they move offsets and put stores back."""
    found = Place(tmp_path)
    yield found
    found.stop()


def test_a_store_that_was_put_back_is_counted_up_again_from_the_log(place: Place) -> None:
    """Copied while all is down, as the README says; refused with the way out, which leads to exact numbers."""
    place.start_worker()
    place.send("before", 3_000)
    place.until_counted("before", 3_000)
    place.until_idle()
    place.stop_worker()
    place.services.stop()
    shutil.copytree(place.home / "clickhouse", place.home / "backup", symlinks=True)

    place.services = start_services(place.home)
    place.start_worker()
    place.send("after", 2_000)
    place.send("before", 500)
    place.until_counted("after", 2_000)
    place.until_idle()
    place.stop_worker()
    place.store.close()
    place.services.stop()
    shutil.rmtree(place.home / "clickhouse")
    (place.home / "backup").rename(place.home / "clickhouse")

    place.services = start_services(place.home)
    assert place.counted("after") == 0
    shown = place.json("offsets", "show", code=1)
    assert {partition["state"] for partition in shown} == {"store_behind"}
    assert "the log still holds what comes after the ledger" in shown[0]["says"]
    place.start_worker()
    stopped = place.until_stopped()
    assert "tally offsets reset --partition 0 --to ledger" in stopped
    assert "has members" in place.tally("offsets", "reset", "--all", "--to", "ledger", code=2)
    place.stop_worker()

    moved = place.json("offsets", "reset", "--all", "--to", "ledger")
    assert [entry["offset"] for entry in moved] == [partition["ledger"][0] for partition in shown]
    assert {partition["state"] for partition in place.json("offsets", "show")} == {"offsets_lost"}
    place.start_worker()
    place.until_counted("after", 2_000)
    place.until_idle()
    until(lambda: place.ready()["ready"], why="the worker is ready")
    assert place.counted("before") == 3_000
    assert place.json("audit")["drift"] == 0


def test_events_that_left_the_log_uncounted_are_given_up_and_told(place: Place) -> None:
    """Stopped, with the way out; afterwards the next events count and every audit tells of the gap."""
    place.start_worker()
    place.send("before", 1_000)
    place.until_counted("before", 1_000)
    place.until_idle()
    place.stop_worker()
    place.send("lost", 400)
    place.delete_log()

    shown = place.json("offsets", "show", code=1)
    assert {partition["state"] for partition in shown} == {"events_deleted"}, shown
    place.start_worker()
    stopped = place.until_stopped()
    assert "tally offsets skip --partition 1" in stopped
    skip = ("offsets", "skip", "--reason", "retention of an hour", "--partition")
    assert "has members" in place.tally(*skip, "0", code=2)
    place.stop_worker()

    for number in range(PARTITIONS):
        done = place.json(*skip, str(number))
        assert done["gap"] == [shown[number]["position"], shown[number]["first"]]
    assert place.json(*skip, "0")["gap"] is None  # done again it finds nothing to give up
    assert {(p["state"], p["ours"]) for p in place.json("offsets", "show")} == {("counting", True)}
    place.send("after", 300)
    place.start_worker()
    place.until_counted("after", 300)
    place.until_idle()
    until(lambda: place.ready()["ready"], why="the worker is ready")
    report = place.json("audit")
    assert (report["drift"], len(report["gaps"])) == (0, PARTITIONS)
    assert "retention of an hour" in report["gaps"][0]["message"]
    assert "lost and given up" in place.tally("audit")
    assert (place.counted("before"), place.counted("lost")) == (1_000, 0)


@pytest.mark.parametrize("point", ["ledger_written", "inserted"])
def test_a_block_under_way_when_its_events_were_deleted(place: Place, point: str) -> None:
    """Killed before its rows were sent, it is given up with the rest; killed after, it stays counted."""
    place.start_worker({"TALLY_FAIL_POINT": f"{point}:1"})
    place.send("lost", 500)
    assert place.worker is not None
    place.worker.wait(120)
    place.stop_worker(signal.SIGKILL)
    landed = place.counted("lost")
    place.send("more", 100)
    place.delete_log()
    for partition in place.json("offsets", "show", code=1):
        if partition["state"] == "events_deleted":
            place.tally("offsets", "skip", "--partition", str(partition["partition"]), "--reason", "a test")
    place.send("after", 200)
    place.start_worker()
    place.until_counted("after", 200)
    place.until_idle()
    assert place.counted("lost") == landed
    assert (landed > 0) == (point == "inserted")
    report = place.json("audit")
    assert report["drift"] == 0
    assert report["gaps"]


def test_offsets_that_a_tool_has_moved_are_found_again(place: Place) -> None:
    """Reset on a store that is right does no harm; nothing there is no partition 9."""
    place.start_worker()
    place.send("one", 200)
    place.until_counted("one", 200)
    place.until_idle()
    place.stop_worker()
    place.tally("offsets", "reset", "--partition", "0", "--to", "ledger")
    assert asyncio.run(group_offsets(place.settings, place.settings.topic_events, [0]))[0][1] == ""
    assert "no partition 9" in place.tally("offsets", "reset", "--partition", "9", "--to", "ledger", code=2)
    place.send("one", 300)
    place.start_worker()
    place.until_counted("one", 300)
    place.until_idle()
    assert place.json("audit")["drift"] == 0


def test_an_events_topic_that_was_made_anew_is_a_new_epoch(place: Place) -> None:
    """Under a running worker, which ends and is started again, as its supervisor does; old ids are still known."""
    place.start_worker()
    place.send("old", 500)
    place.until_counted("old", 500)
    place.until_idle()
    topic = place.settings.topic_events
    place.admin.delete_topics([topic])[topic].result(20)

    def made_anew() -> bool:
        place.run("migrate")  # refused while the deletion is still under way
        return topic in place.admin.list_topics(timeout=10).topics

    until(made_anew, why="the topic is made anew")
    place.send("old", 500)
    place.send("new", 300)
    assert place.worker is not None
    assert place.worker.wait(120) != 0
    place.start_worker()
    place.until_counted("new", 300)
    place.until_idle()
    assert place.counted("old") == 500
    assert place.json("audit")["drift"] == 0
    epochs = place.store.query("SELECT DISTINCT epoch FROM blocks ORDER BY epoch").rows
    assert epochs == [(0,), (1,)]
