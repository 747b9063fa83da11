"""What the client's sender must not do: import anything while the program may fork."""

import subprocess
import sys
from pathlib import Path

_FIRST_POST = """
import socket, sys
from producers.client.event import Recorded
from producers.client.wire import Wire

nobody = socket.socket()
nobody.bind(("127.0.0.1", 0))  # taken and not listened on: connecting is refused
wire = Wire(f"http://127.0.0.1:{nobody.getsockname()[1]}", "key", timeout_s=30)
before = set(sys.modules)
outcome = wire.post([Recorded("a", b"{}", 0.0, 1)])
print(type(outcome).__name__, sorted(set(sys.modules) - before))
wire.close()
nobody.close()
"""


def test_looking_up_and_connecting_imports_nothing() -> None:
    """A child forked in the midst of an import is left with half a module: it could send nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_POST],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Unknown []\n"
