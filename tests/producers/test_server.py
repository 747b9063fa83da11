"""The API on the wire: in a process of its own, spoken to by other people's clients."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent
EVENT = {"clientId": "c", "timestamp": "2026-01-01T00:00:00Z", "transactionId": "t"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and key of a running API on a log in memory; it stops cleanly on SIGTERM."""
    folder = tmp_path_factory.mktemp("served")
    with _process(folder) as process:
        try:
            address = asyncio.run(_ready(process, folder / "ready"))
            yield address, (folder / "key").read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0


def _process(folder: Path, workers: int = 1, **environment: str) -> "subprocess.Popen[bytes]":
    """The API as a process of its own; its address and key will be in the folder."""
    told = folder / "ready"
    code = f"""
from pathlib import Path
from producers.server import serve
serve("served_app:make_app", host="127.0.0.1", port=0, workers={workers}, ready_file=Path({str(told)!r}))
"""
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    given = {**os.environ, "PYTHONPATH": path, "SERVED_KEY_FILE": str(folder / "key"), **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=given, start_new_session=True)


async def _ready(process: "subprocess.Popen[bytes]", told: Path) -> str:
    """The address, once the API says that it is ready."""
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while process.poll() is None:
            try:
                address = _address(told)
                if (await client.get(f"{address}/readyz")).status_code == 200:
                    return address
            except (FileNotFoundError, httpx.TransportError):
                await asyncio.sleep(0.05)  # the process has just been started: nothing to await
    raise AssertionError(f"the API ended with {process.returncode}")


def _address(told: Path) -> str:
    """What the server left in its file. Raises FileNotFoundError until then."""
    return f"http://{told.read_text()}"


def post(served: tuple[str, str], path: str, content: bytes, **headers: str) -> httpx.Response:
    """A POST by httpx."""
    address, key = served
    given = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
    return httpx.post(address + path, content=content, headers=given)


def test_every_door_answers(served: tuple[str, str]) -> None:
    """Over HTTP/1.1 with httpx."""
    assert post(served, "/api/v1/events", json.dumps([EVENT] * 500).encode()).json()["accepted"] == 500
    use = {"customer_id": "c", "feature_id": "calls", "value": 1}
    assert post(served, "/v1/events", json.dumps(use).encode()).json()["code"] == "event_received"
    query = {"query": 'mutation { createUsageEvent(input: {userId: "c", featureId: "calls", delta: 1}) }'}
    assert post(served, "/graphql", json.dumps(query).encode()).json() == {"data": {"createUsageEvent": True}}
    lines = b"\n".join([json.dumps(EVENT).encode()] * 3)
    answer = post(served, "/v1/events/batch", lines, **{"Content-Type": "application/x-ndjson"})
    assert answer.json()["accepted"] == 3


def test_the_seeds_request_works(served: tuple[str, str]) -> None:
    """As documented, address and key aside, by the standard library's client (no curl on a fresh machine)."""
    address, key = served
    body = b'{\n"customer_id": "user-123",\n"feature_id": "calls",\n"value": 1\n}'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    wanted = urllib.request.Request(f"{address}/v1/events", body, headers, method="POST")  # noqa: S310 - own address
    with urllib.request.urlopen(wanted, timeout=30) as answer:  # noqa: S310
        assert json.load(answer)["message"] == "Event recorded successfully"


def test_bad_input_on_the_wire(served: tuple[str, str]) -> None:
    """Limits hold for announced and for streamed bodies; the server goes on serving."""
    assert post(served, "/api/v1/events", b"{").status_code == 400
    assert post(served, "/api/v1/events", b"\xff").status_code == 400
    assert post(served, "/api/v1/events", b"{}", Authorization="Bearer wrong").status_code == 401
    assert post(served, "/v1/nothing", b"{}").status_code == 404
    assert post(served, "/api/v1/events", b" " * 10_000_001).status_code == 413
    address, key = served
    chunks = (b" " * 1_000_000 for _ in range(11))
    headers = {"Authorization": key, "Content-Type": "application/json"}
    assert httpx.post(f"{address}/api/v1/events", content=chunks, headers=headers).status_code == 413
    assert httpx.get(f"{address}/livez").status_code == 200


def test_what_was_accepted_is_answered_on_shutdown(tmp_path: Path) -> None:
    """A request whose event is on its way when the process is told to stop gets its acknowledgement; then it ends."""
    with _process(tmp_path, SERVED_HELD_FOLDER=str(tmp_path)) as process:
        address = asyncio.run(_ready(process, tmp_path / "ready"))
        key = (tmp_path / "key").read_text()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, (address, key), "/api/v1/events", json.dumps(EVENT).encode())
            _wait_for(tmp_path / "begun")
            process.send_signal(signal.SIGTERM)
            _wait_until_refused(address)
            (tmp_path / "go").touch()
            assert answer.result(timeout=60).json()["status"] == "received"
        assert process.wait(timeout=60) == 0


def test_a_process_that_waits_for_its_log_can_be_stopped(tmp_path: Path) -> None:
    """It serves nobody yet, and ends without having failed."""
    with _process(tmp_path, SERVED_NEVER=str(tmp_path / "begun")) as process:
        _wait_for(tmp_path / "begun")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_several_processes_serve_and_stop_together(tmp_path: Path) -> None:
    """Each on the same address."""
    with _process(tmp_path, workers=2) as process:
        address = asyncio.run(_ready(process, tmp_path / "ready"))
        assert {httpx.get(f"{address}/livez").status_code for _ in range(20)} == {200}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/livez", timeout=5)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)  # another process makes the file


def _wait_until_refused(address: str) -> None:
    """Returns once the process takes no new connection: it has begun to stop."""
    while True:
        try:
            httpx.get(f"{address}/livez", timeout=5)
        except httpx.TransportError:
            return
        time.sleep(0.02)
