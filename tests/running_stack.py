"""A running stack and an account of a test's own, as the tests of the whole product use them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.adapters.catalog_log import CatalogClient, KafkaCatalogLog
from pipeline.catalog_service import CatalogService
from pipeline.local.stack import Stack
from pipeline.settings import Settings

_TALLY = [sys.executable, "-m", "tally"]


@dataclass(frozen=True)
class RunningStack:
    """A stack that `tally up` has started: its addresses, and its command."""

    home: Path
    api: str
    kafka: str
    clickhouse: str
    worker: str
    api_key: str

    @property
    def settings(self) -> Settings:
        """The settings of a process beside the stack."""
        return Settings(home=self.home, kafka=self.kafka, clickhouse=self.clickhouse)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a process of the stack finds in its environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
        return {**inherited, "TALLY_HOME": str(self.home), **(extra or {})}

    def tally(self, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
        """Runs the command to its end; its standard output. Fails unless it exits with `code`."""
        done = subprocess.run(
            [*_TALLY, *arguments],
            cwd=self.home,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"tally {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def tally_json(self, *arguments: str, code: int = 0) -> Any:
        """The same with --json, parsed."""
        return json.loads(self.tally(*arguments, "--json", code=code))

    def part(self, name: str) -> dict[str, Any]:
        """How a part stands, as `tally status` says; asked many times a second, so not by starting the command."""
        return asdict(next(part for part in Stack(self.home).status().parts if part.name == name))

    @contextmanager
    def standing_still(self, name: str) -> Iterator[None]:
        """A part's processes are stopped, not ended, and go on afterwards: connections stay open meanwhile and nothing
        is answered, as behind a dead switch."""
        first = psutil.Process(self.part(name)["pid"])
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGCONT)


def start_stack(home: Path, extra: Mapping[str, str] | None = None) -> RunningStack:
    """`tally up --detach` on a folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    environment = {**inherited, "TALLY_HOME": str(home), **(extra or {})}
    done = subprocess.run(
        [*_TALLY, "up", "--detach", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"tally up exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    found = json.loads(done.stdout)
    return RunningStack(home, found["api"], found["kafka"], found["clickhouse"], found["worker"], found["api_key"])


@dataclass(frozen=True)
class Tenant:
    """An account of a test's own, with an admin key."""

    account: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What a request of this account carries."""
        return {"Authorization": f"Bearer {self.key}"}


def fresh_tenant(stack: RunningStack) -> Tenant:
    """A fresh account on that stack."""
    account = f"t-{uuid.uuid4().hex[:12]}"

    async def make() -> str:
        async with catalog_of(stack.settings) as catalog:
            return (await catalog.ensure_first_account(account)).secret

    return Tenant(account, asyncio.run(make()))


@asynccontextmanager
async def catalog_of(settings: Settings) -> AsyncIterator[CatalogService]:
    """The catalog as an operator changes it."""
    client = CatalogClient(KafkaCatalogLog(settings))
    await client.start()
    try:
        yield CatalogService(client)
    finally:
        await client.stop()
