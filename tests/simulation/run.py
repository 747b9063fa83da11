"""The block protocol against seeds, for as long as there is time: `python tests/simulation/run.py --help`.

Each seed is a world of its own (see `wild_plan`): the production Session and stages on logs, groups and stores in
memory, in virtual time, with faults. Afterwards the conservation law is checked. A seed that fails is printed with what
it found, and `--replay SEED` shows what happened in it, in the smallest world in which it still fails.

What is counted: *runs*, whole lives of a world under one seed, each another interleaving; *steps*, callbacks that the
event loop ran, each of which the seed could have put elsewhere; *occasions*, places at which a fault could have struck.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import structlog  # noqa: E402
from block_world import Plan, World, wild_plan, wild_run  # noqa: E402
from virtual_loop import VirtualLoop  # noqa: E402

_SEEDS_AT_ONCE = 100
_HANGS_AFTER_S = 60


@dataclass
class Found:
    """What some seeds gave. `failures`: seed and what was found."""

    runs: int = 0
    steps: int = 0
    occasions: int = 0
    deaths: int = 0
    repairs: int = 0
    cpu_s: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Found") -> None:
        """Takes the other's in."""
        for name in ("runs", "steps", "occasions", "deaths", "repairs", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.happened.update(other.happened)
        self.failures.update(other.failures)


def run_plan(plan: Plan, found: Found, prepare: Callable[[World], None] = lambda world: None) -> str:
    """One run; what it found, empty for nothing."""
    worlds: list[World] = []

    def keep(world: World) -> None:
        worlds.append(world)
        prepare(world)

    signal.alarm(_HANGS_AFTER_S)
    loops: list[VirtualLoop] = []

    def loop() -> VirtualLoop:
        loops.append(VirtualLoop())
        return loops[0]

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(wild_run(plan, prepare=keep))
    except Exception as error:  # noqa: BLE001 - whatever a run ends with is a finding
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        found.runs += 1
        found.steps += loops[0].steps
        for world in worlds:
            found.occasions += world.occasions
            found.deaths += world.killed
            found.repairs += world.repaired
            found.happened.update(world.happened)
            found.happened.update({f"at {name}": times for name, times in world.passed.items()})
    return ""


def run_seeds(seeds: list[int]) -> Found:
    """In a process of its own."""
    found = Found()
    began_s = time.process_time()
    for seed in seeds:
        if failure := run_plan(wild_plan(seed), found):
            found.failures[seed] = failure
    gc.collect()
    found.cpu_s = time.process_time() - began_s
    return found


def shrink(plan: Plan, most: int = 400) -> Plan:
    """The smallest plan found in which it still fails, by leaving away one thing after the other."""
    tries = count()
    smaller: Plan | None = plan
    while smaller is not None:
        plan = smaller
        smaller = next(
            (one for one in plan.simpler() if next(tries) < most and run_plan(one, Found())),
            None,
        )
    return plan


def replay(seed: int, *, smallest: bool) -> dict[str, Any]:
    """The seed's plan, what it found and what happened, a line each."""
    plan = wild_plan(seed)
    if smallest and run_plan(plan, Found()):
        plan = shrink(plan)
    traces: list[list[str]] = []
    worlds: list[World] = []

    def keep(world: World) -> None:
        worlds.append(world)
        traces.append(world.trace())

    def note(logger: Any, method: str, event: dict[str, Any]) -> str:
        name = event.pop("event")
        if worlds:
            worlds[-1].note("session", name, *(f"{key}={value}" for key, value in event.items()))
        raise structlog.DropEvent

    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(0))
    failure = run_plan(plan, Found(), keep)
    return {"seed": seed, "plan": asdict(plan), "found": failure, "trace": [line for trace in traces for line in trace]}


def _quiet() -> None:
    """Sessions' logs go nowhere; a run that hangs ends; no collector in the midst of runs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), processors=[_drop])
    signal.signal(signal.SIGALRM, _hangs)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def _drop(logger: Any, method: str, event: Any) -> Any:
    raise structlog.DropEvent


def _hangs(number: int, frame: Any) -> None:
    raise TimeoutError(f"hangs: no end after {_HANGS_AFTER_S} s")


def _chunks(first: int, after: int | None) -> Iterator[list[int]]:
    seeds = iter(range(first, after)) if after is not None else count(first)
    while chunk := list(islice(seeds, _SEEDS_AT_ONCE)):
        yield chunk


def main() -> int:
    """Exits 1 when a seed fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seeds", default="0:", metavar="FIRST:AFTER", help="which seeds; `1000:` for all from there")
    parser.add_argument("--minutes", type=float, help="stop after so many; needed where the seeds have no end")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: one a core")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one and tell what happened in it")
    parser.add_argument("--as-it-is", action="store_true", help="with --replay: do not look for a smaller world first")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = parser.parse_args()
    if chosen.replay is not None:
        _quiet()
        told = replay(chosen.replay, smallest=not chosen.as_it_is)
        lines = [f"plan: {told['plan']}", *told["trace"], told["found"] or "nothing found"]
        print(json.dumps(told) if chosen.json else "\n".join(lines))
        return 1 if told["found"] else 0
    first, _, after = chosen.seeds.partition(":")
    if not after and chosen.minutes is None:
        parser.error("seeds without an end need --minutes")
    return _many(
        _chunks(int(first or 0), int(after) if after else None), chosen.minutes, chosen.jobs, as_json=chosen.json
    )


def _many(chunks: Iterator[list[int]], minutes: float | None, jobs: int, *, as_json: bool) -> int:
    found = Found()
    started = told = time.monotonic()
    ends = started + minutes * 60 if minutes is not None else float("inf")
    in_time = iter(lambda: next(chunks, None) if time.monotonic() < ends else None, None)
    with multiprocessing.Pool(jobs, _quiet) as pool:
        waiting = [pool.apply_async(run_seeds, (chunk,)) for chunk in islice(in_time, jobs * 2)]
        while waiting:
            done = waiting.pop(0).get()
            found.add(done)
            waiting += [pool.apply_async(run_seeds, (chunk,)) for chunk in islice(in_time, 1)]
            for seed, failure in done.failures.items():
                print(f"seed {seed} fails: {failure[:300]}", file=sys.stderr, flush=True)
            if time.monotonic() - told > 10 and not as_json:
                told = time.monotonic()
                print(f"{told - started:5.0f} s  {_rates(found, told - started)}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({**asdict(found), "seconds": round(seconds, 1), "jobs": jobs}))
    else:
        print(f"{seconds:.0f} s with {jobs} processes: {_rates(found, seconds)}")
        print(f"deaths {found.deaths}, repairs {found.repairs}, {dict(found.happened.most_common())}")
        print(f"failing seeds: {sorted(found.failures) or 'none'}")
    return 1 if found.failures else 0


def _rates(found: Found, seconds: float) -> str:
    return (
        f"{found.runs} runs ({found.runs / seconds:.0f}/s), {found.steps} steps ({found.steps / seconds:.0f}/s), "
        f"{found.occasions} occasions for a fault ({found.occasions / seconds:.0f}/s), {len(found.failures)} fail; "
        f"per second of one core {found.runs / found.cpu_s:.0f} runs, {found.steps / found.cpu_s:.0f} steps"
    )


if __name__ == "__main__":
    sys.exit(main())
