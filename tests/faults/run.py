"""The fault harness: rounds of load and faults on a cluster of real processes, each checked to the last event.

``python tests/faults/run.py --minutes 60`` runs through all faults in an order that the seed draws, over and over.
A round has an account of its own, a load that runs while its faults strike, and a check of everything that was
acknowledged (see oracle.py); the whole store is audited in between. The load ends when the last fault of the round has
struck: `--events` bounds it, `--rate` says how fast it is. A round that fails prints the command that does it again;
its folder with all logs is kept.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))
sys.path[1:1] = [str(_HERE.parent), str(_HERE.parents[1])]

import clock_faults  # noqa: E402
import disk_faults  # noqa: E402,F401 - puts its faults into the registry
import log_faults  # noqa: E402,F401
import network_faults  # noqa: E402
import store_faults  # noqa: E402,F401
from between import proxied_cluster  # noqa: E402
from cluster import Cluster, ClusterError  # noqa: E402
from events import CATALOG  # noqa: E402
from faults import FAULTS, Fault, NotStruck  # noqa: E402
from load import Load  # noqa: E402
from oracle import Oracle, Report  # noqa: E402
from report import RESULTS, recorded, strikes  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from running_stack import catalog_of  # noqa: E402

from pipeline.catalog_file import apply_file, read_catalog_file  # noqa: E402
from pipeline.settings import Settings  # noqa: E402

_ACKNOWLEDGED_S: Final = 240.0
_COUNTED_S: Final = 240.0
_WINDOW_DAYS: Final = "0.0005"  # 43 s: ids expire under way, and their repetitions are looked up in the store
_FAULTS_A_ROUND: Final = (6, 16)
_AUDIT_SHARE: Final = 8  # an audit of the whole store, which grows, takes about this fraction of the time


@dataclass
class Round:
    """A round and what came of it. `outcome`: ok, failed (a number is wrong) or stuck (not counted in time)."""

    seed: int
    faults: list[str]
    events: int
    rate: int
    struck: list[str] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    outcome: str = "ok"
    told: str = ""
    seconds: float = 0.0
    report: Report = field(default_factory=Report)

    @property
    def again(self) -> str:
        """The command that does this round again."""
        return (
            f".venv/bin/python tests/faults/run.py --seed {self.seed} --rounds 1 --events {self.events} "
            f"--rate {self.rate} --faults {','.join(self.faults)}"
        )


class Driver:
    """Runs rounds on one cluster."""

    def __init__(self, cluster: Cluster, *, say: Callable[[str], None] = lambda _: None) -> None:
        self._cluster = cluster
        self._oracle = Oracle(cluster)
        self._say = say
        self._audit_due = 0.0

    def close(self) -> None:
        """Gives connections back."""
        self._oracle.close()

    def know_hits(self, hits: Mapping[str, int]) -> None:
        """Strikes of points in rounds before, so that what was struck least is drawn most."""
        self._cluster.hits.update(hits)

    def audit(self, report: Report) -> None:
        """The whole store, as an operator audits it."""
        self._oracle.audit(report)

    def run(
        self,
        seed: int,
        faults: Sequence[Fault],
        *,
        events: int,
        load_s: float,
        audit: bool | None = None,
        cut: bool = False,
    ) -> Round:
        """One round: `events` different events sent over at least `load_s` seconds while the faults strike in turn;
        `cut`: only as many of them as are sent until the last has struck. `audit`: whether the whole store is audited;
        None: when it is due."""
        found = Round(seed, [fault.name for fault in faults], events, round(events / load_s))
        begun = time.monotonic()
        hits = self._cluster.hits.copy()
        folder = self._cluster.folder / f"round-{seed}"
        folder.mkdir(exist_ok=True)
        try:
            self._round(found, faults, folder, load_s, cut=cut)
            if audit or (audit is None and time.monotonic() > self._audit_due):
                self._say("audit")
                audited = time.monotonic()
                self._oracle.audit(found.report)
                took_s = time.monotonic() - audited
                self._audit_due = time.monotonic() + _AUDIT_SHARE * took_s
        except (ClusterError, TimeoutError) as error:
            found.outcome, found.told = "stuck", str(error)
        if found.outcome == "ok" and not found.report.clean:
            found.outcome, found.told = "failed", "\n".join(found.report.findings)
        found.seconds = time.monotonic() - begun
        found.hits = dict(self._cluster.hits - hits)
        if found.outcome == "ok":
            shutil.rmtree(folder)
        return found

    def _round(self, found: Round, faults: Sequence[Fault], folder: Path, load_s: float, *, cut: bool) -> None:
        cluster, draw = self._cluster, random.Random(found.seed)
        account = f"faults-{found.seed}-{os.urandom(3).hex()}"  # a seed may run twice on one cluster
        cluster.await_all_ready()
        key = asyncio.run(_account(cluster, account))
        starts = cluster.await_counted(seconds=_COUNTED_S)
        load = Load(folder, seed=found.seed, account=account, key=key, events=found.events, seconds=load_s, at=cluster)
        try:
            while load.running and not load.acknowledged:
                time.sleep(0.05)
            for fault in faults:
                self._strike(found, fault, draw)
            if cut:
                load.enough()
            self._say("waiting for the load")
            journal = load.join(_ACKNOWLEDGED_S)
        finally:
            load.close()
        self._say("counting")
        cluster.await_all_ready()
        ends = cluster.await_counted(seconds=_COUNTED_S)
        self._say("checking")
        found.report = self._oracle.check(found.seed, account, found.events, journal, starts, ends, load.unsent)

    def _strike(self, found: Round, fault: Fault, draw: random.Random) -> None:
        self._say(fault.name)
        time.sleep(draw.random())
        try:
            position = len(found.struck) + len(found.missed)  # the same fault again draws anew
            fault.inject(self._cluster, random.Random(f"{found.seed} {position} {fault.name}"))
        except NotStruck as why:
            found.missed.append(f"{fault.name}: {why}")
        else:
            found.struck.append(fault.name)
        for name in self._cluster.parts:
            self._cluster.cont(name)


async def _account(cluster: Cluster, account: str) -> str:
    """A fresh account with the harness's catalog; its key."""
    settings = Settings(home=cluster.folder, kafka=cluster.kafka, clickhouse=cluster.clickhouse)
    async with catalog_of(settings) as service:
        key = (await service.ensure_first_account(account)).secret
        await apply_file(service, read_catalog_file(CATALOG), account=account)
    return str(key)


def deck(seed: int, faults: Sequence[Fault], hits: int) -> Iterator[Fault]:
    """All faults in a drawn order, each once and those that strike a fail point as often as the point needs for `hits`;
    then all again in another order."""
    draw = random.Random(seed)
    points = sorted({point for fault in faults for point in fault.often})
    while True:
        cards = list(faults)
        for point in points:
            some = [fault for fault in faults if point in fault.often]
            cards += islice(cycle(some), max(0, hits - sum(point in card.often for card in cards)))
        yield from draw.sample(cards, len(cards))


def record(rounds: Sequence[Round], results: Path = RESULTS) -> None:
    """Appends what came of the rounds to the committed results."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=_HERE, capture_output=True, text=True, check=False)
    head = {"commit": commit.stdout.strip(), "day": datetime.now(UTC).date().isoformat()}
    with results.open("a") as file:
        for found in rounds:
            report = found.report
            row = {
                "seed": found.seed, **head, "struck": found.struck, "hits": found.hits, "sent": report.sent,
                "accepted": report.accepted, "lost": report.lost, "doubled": report.doubled,
                "wrong": report.wrong + report.wrong_cells + report.drift, "outcome": found.outcome,
                "seconds": round(found.seconds, 1),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


# ------------------------------------------------------------------------------------------------ the program


@dataclass
class Budget:
    """When to stop: whichever of the given limits comes first."""

    minutes: float
    rounds: int
    begun: float = field(default_factory=time.monotonic)

    def spent(self, rounds: int) -> bool:
        """Whether no further round is to begin."""
        if self.rounds:
            return rounds >= self.rounds
        return time.monotonic() - self.begun > self.minutes * 60


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit code: 0, or 1 when a round failed."""
    options = _options(argv)
    console = Console(stderr=True)
    chosen = _chosen(options.faults)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="tally-faults-"))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 30)
    console.print(f"seed {seed}, {len(chosen)} faults, folder {folder}")
    rounds: list[Round] = []
    budget = Budget(options.minutes, options.rounds)
    with ExitStack() as stack, _progress(console) as bar:
        bar.task("starting the cluster")
        driver = _driver(stack, folder, options.workers, chosen, bar.say)
        driver.know_hits(strikes(recorded()) if options.record else {})
        budget.begun = time.monotonic()
        faults = iter(chosen) if options.rounds == 1 else deck(seed, chosen, options.hits)
        seeds = iter(options.seeds) if options.seeds else iter(range(seed, seed + (1 << 30)))
        for round_seed in seeds:
            if budget.spent(len(rounds)):
                break
            number = len(chosen) if options.rounds == 1 else random.Random(round_seed).randint(*_FAULTS_A_ROUND)
            some = [next(faults) for _ in range(min(number, len(chosen)))]
            bar.task(f"round {len(rounds) + 1}, seed {round_seed}")
            last = bool(options.rounds) and len(rounds) + 1 >= options.rounds
            events, load_s = options.events, options.events / options.rate
            found = driver.run(round_seed, some, events=events, load_s=load_s, audit=last or None, cut=True)
            rounds.append(found)
            if options.record:
                record([found])
            console.print(_line(found))
            if found.outcome != "ok":
                console.print(f"[red]{found.outcome}[/red]: {found.told}\nagain: {found.again}", highlight=False)
                break
        if rounds and rounds[-1].outcome == "ok":
            bar.task("audit of everything")
            everything = Round(rounds[-1].seed, [], 0, 0)  # after all rounds, of which each was recorded as it ended
            driver.audit(everything.report)
            if not everything.report.clean:
                everything.outcome, everything.told = "failed", "\n".join(everything.report.findings)
                rounds.append(everything)
                if options.record:
                    record([everything])
    failed = any(found.outcome != "ok" for found in rounds)
    _tell(rounds, time.monotonic() - budget.begun, as_json=options.json, console=console)
    if failed:
        console.print(f"the folder with all logs is kept: {folder}")
    elif not options.folder:
        shutil.rmtree(folder)
    return int(failed)


def _cluster(folder: Path, workers: int, chosen: Sequence[Fault]) -> AbstractContextManager[Cluster]:
    """The plainest cluster that all of the faults can be done to."""
    options: dict[str, Any] = {"workers": workers, "settings": {"TALLY_DEDUP_WINDOW_DAYS": _WINDOW_DAYS}}
    names = {fault.name for fault in chosen}
    if names & clock_faults.NAMES:
        options["settings"]["FAULTS_CLOCK"] = str(clock_faults.clock_file(folder))
        options["worker_argv"] = clock_faults.clocked
    return proxied_cluster(folder, **options) if names & network_faults.NAMES else Cluster(folder, **options)


def _driver(
    stack: ExitStack, folder: Path, workers: int, chosen: Sequence[Fault], say: Callable[[str], None]
) -> Driver:
    cluster = stack.enter_context(_cluster(folder, workers, chosen))
    driver = Driver(cluster, say=say)
    stack.callback(driver.close)
    return driver


def _chosen(names: str) -> list[Fault]:
    if not names:
        return list(FAULTS.values())
    if names == "quick":
        return [fault for fault in FAULTS.values() if fault.quick]
    unknown = [name for name in names.split(",") if name not in FAULTS]
    if unknown:
        sys.exit(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return [FAULTS[name] for name in names.split(",")]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/faults/run.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no round after so long")
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds instead; 1 strikes all of --faults in it")
    parser.add_argument("--events", type=int, default=900_000, help="different events of a round, at most")
    parser.add_argument("--rate", type=int, default=5_000, help="of those each second")
    parser.add_argument("--hits", type=int, default=4, help="of each fail point in a pass through all faults, at least")
    parser.add_argument("--seed", type=int, help="of the first round; drawn and printed if not given")
    parser.add_argument("--seeds", type=lambda s: [int(n) for n in s.split(",")], help="seeds of the rounds instead")
    parser.add_argument("--faults", default="", help="names, comma-separated, or quick; all if not given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="data folder, kept; otherwise a temporary one, kept when a round fails")
    parser.add_argument("--record", action="store_true", help=f"append the results to {RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
    return parser.parse_args(argv)


class _Bar:
    """What is going on, on one line of a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", doing="", total=None)

    def task(self, told: str) -> None:
        """A new round."""
        self._progress.reset(self._task, description=told, doing="")

    def say(self, doing: str) -> None:
        """What is being done in it."""
        self._progress.update(self._task, doing=doing)


@contextmanager
def _progress(console: Console) -> Iterator[_Bar]:
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[doing]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)


def _line(found: Round) -> str:
    report = found.report
    missed = f" [yellow]not struck: {len(found.missed)}[/yellow]" if found.missed else ""
    return (
        f"{found.outcome:6} seed {found.seed}: {', '.join(found.struck)}{missed}; sent {report.sent:,}, "
        f"lost {report.lost}, doubled {report.doubled}, wrong cells {report.wrong_cells}, {found.seconds:.0f} s"
    )


def _tell(rounds: Sequence[Round], seconds: float, *, as_json: bool, console: Console) -> None:
    sums: Mapping[str, int] = {
        name: sum(getattr(found.report, name) for found in rounds)
        for name in ("sent", "accepted", "unknown", "lost", "doubled", "wrong", "wrong_cells", "drift")
    }
    if as_json:
        told: dict[str, Any] = {**sums, "seconds": round(seconds, 1)}
        told["rounds"] = [{**asdict(found), "again": found.again} for found in rounds]
        print(json.dumps(told, default=str))
        return
    table = Table(title=f"{len(rounds)} rounds in {seconds / 60:.1f} minutes")
    for name in ("fault", "struck", "not struck"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for name in FAULTS:
        struck = sum(found.struck.count(name) for found in rounds)
        missed = sum(told.startswith(f"{name}:") for found in rounds for told in found.missed)
        if struck or missed:
            table.add_row(name, str(struck), str(missed or ""))
    console.print(table)
    console.print(", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in sums.items()), highlight=False)


if __name__ == "__main__":
    sys.exit(main())
