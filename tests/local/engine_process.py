"""An engine of one test's own, as a process that can be killed and started again."""

import subprocess
import sys
import time
from pathlib import Path

import httpx

from pipeline.local.port import choose

REPOSITORY = Path(__file__).parents[2]


class EngineProcess:
    """An engine of one test's own, to be killed, stopped and started again on the same data and port."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.port = choose("test", wanted=None, remembered=None, taken=set())
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = self.spawn(self.path, self.port, *self._options)
        while True:
            try:
                if httpx.get(f"{self.url}/ping").text == "Ok.\n":
                    return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the engine ended with {self.process.returncode}") from None
            time.sleep(0.02)

    @staticmethod
    def spawn(path: Path, port: int, *options: str) -> "subprocess.Popen[str]":
        """The bare process."""
        command = [sys.executable, "-m", "pipeline.local.engine", "--path", str(path), "--port", str(port), *options]
        return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)

    def kill(self) -> None:
        """``kill -9``, and wait."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        """SIGTERM, and wait; what it logged."""
        self.process.terminate()
        return self.process.communicate()[1]
