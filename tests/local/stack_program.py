"""A composition root for tests: broker, engine and two small web servers in the place of worker and API."""

import json
import logging
import sys
from pathlib import Path

from pipeline.local.part import Part
from pipeline.local.stack import Addresses, Ports, Stack


def make(home: Path, ports: Ports | None = None) -> Stack:
    """The stack as both the command and the tests see it."""

    def parts(addresses: Addresses) -> list[Part]:
        late = Part("late", [sys.executable, "-c", "import time; time.sleep(600)"], ready=lambda: False, awaited=False)
        where = [("worker", addresses.worker_port), ("api", addresses.api_port)]
        return [late] * (home / "late").exists() + [
            Part(
                name,
                [
                    sys.executable,
                    "-m",
                    "http.server",
                    "--bind",
                    "127.0.0.1",
                    "--directory",
                    str(home / "web"),
                    str(port),
                ],
                ready=f"http://127.0.0.1:{port}/",
                address=f"http://127.0.0.1:{port}",
            )
            for name, port in where
        ]

    def prepare(addresses: Addresses) -> dict[str, object]:
        if (home / "broken").exists():
            raise ValueError("the test said so")
        (home / "web").mkdir(exist_ok=True)
        return {"database": "tally", "prepared_with": addresses.clickhouse}

    return Stack(home, parts=parts, prepare=prepare, ports=ports, say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    make(Path(sys.argv[1]), Ports(**json.loads(sys.argv[2]))).up()
