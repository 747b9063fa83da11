"""`make demo`: real events through every door, to usage on the screen, every number checked against what was sent.

A client of the product and nothing more. Starts the stack in a temporary folder with `tally up`, applies the catalog,
sends (see `demo_events`), waits until the product says that all is counted, shows usage and the audit, compares. Exit
codes: 0 every number is equal, 1 some number is not, 2 it could not be done, 130 interrupted. Whatever happens the
stack is stopped and its folder removed, unless --keep is given.

With --home it uses a stack that runs already, with an account of its own, and leaves it alone; --check-only then
compares what was sent there before.
"""

import argparse
import asyncio
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from aiokafka.errors import KafkaError
from demo_checks import Check, check_audit, check_usage, check_verdicts, wait_until_counted
from demo_doors import TALLY, DemoError, Shop, deliver, environment
from demo_events import CATALOG, Expected, Plan, expect, make_plan
from rich.console import Console
from rich.markup import escape
from rich.table import Table

CONSOLE = Console(highlight=False)
FAULTS_SHOWN = 20
_SHORT = 12  # a check with at most so many numbers is shown number by number
_SHOWN_USAGE: Sequence[Sequence[str]] = (
    ("--start", "2010-01-01"),
    ("--start", "2010-01-01", "--feature", "insertions", "--dimension", "repo"),
    (
        "--feature",
        "commits",
        "--by",
        "month",
        "--zone",
        "America/New_York",
        "--start",
        "2024-01-01",
        "--end",
        "2025-01-01",
    ),
    ("--feature", "total-generations", "--group-by", "customer", "--start", "2025-01-01", "--end", "2026-01-01"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; its exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.monotonic()
    try:
        with _shop(options) as shop:
            equal = _run(shop, options)
    except (DemoError, httpx.HTTPError, KafkaError, OSError) as error:
        CONSOLE.print(f"\n[bold red]The demo could not be done:[/] {escape(str(error) or repr(error))}", soft_wrap=True)
        if options.home is None:
            CONSOLE.print("To look around in what it leaves: make demo ARGS=--keep")
        return 2
    except KeyboardInterrupt:
        CONSOLE.print("\nInterrupted; nothing was left behind." if not options.keep else "\nInterrupted.")
        return 130
    CONSOLE.print(f"\n{_verdict(equal)} [dim]({time.monotonic() - started:.0f} s)[/]")
    return 0 if equal else 1


def _verdict(equal: bool) -> str:
    if equal:
        return "[bold green]✓ Every number equals what was sent, each event counted once.[/]"
    return "[bold red]✗ Some numbers differ from what was sent; they are listed above.[/]"


def _run(shop: Shop, options: argparse.Namespace) -> bool:
    """Sends and checks; whether every number is equal."""
    plan = make_plan()
    expected = expect(plan)
    if not options.check_only:
        _send(shop, plan, expected)
    with _step("waiting until everything is counted"):
        asyncio.run(wait_until_counted(shop))
    own = options.home is None
    if own:
        _show_usage(shop)
    checks = _check(shop, expected, alone=own)
    _show_checks(checks)
    return not any(check.faults for check in checks)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Real events through every door, every number checked.")
    parser.add_argument("--keep", action="store_true", help="leave the stack running and say how to use it")
    parser.add_argument(
        "--home", type=Path, help="use the stack that runs on this data folder; needs --account and --key"
    )
    parser.add_argument("--account", help="an account that nothing was sent for")
    parser.add_argument("--key", help="its admin key")
    parser.add_argument("--check-only", action="store_true", help="compare only; everything was sent before")
    options = parser.parse_args(arguments)
    if (options.home is None) != (options.account is None) or (options.home is None) != (options.key is None):
        parser.error("--home, --account and --key belong together")
    if options.check_only and options.home is None:
        parser.error("--check-only needs --home")
    return options


# ------------------------------------------------------------------------------------------------ the stack


@contextmanager
def _shop(options: argparse.Namespace) -> Iterator[Shop]:
    """A running product: the one of --home, or one of our own that is gone afterwards."""
    if options.home is not None:
        stack = json.loads((options.home / "stack.json").read_text())
        yield Shop(options.home, stack["api"], stack["kafka"], options.account, options.key)
        return
    home = Path(tempfile.mkdtemp(prefix="tallystream-demo-"))
    try:
        CONSOLE.rule("[bold]Tallystream: every event counted once", style="dim")
        with _step(f"Kafka, ClickHouse, worker and API in {home}"):
            shop = _start(home)
        yield shop
    finally:
        if options.keep:
            _tell_how_to_use(home)
        else:
            _clean_up(home)


def _start(home: Path) -> Shop:
    """`tally up`, telling what it tells. Raises DemoError when it does not come up."""
    command = [TALLY, "up", "--detach", "--json"]
    with subprocess.Popen(
        command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as starting:
        told = []
        for line in starting.stderr or ():
            told.append(line)
            CONSOLE.print(f"    [dim]{escape(line.rstrip())}[/]")
        printed = starting.stdout.read() if starting.stdout else ""
    if starting.returncode != 0:
        raise DemoError(f"tally up exited {starting.returncode}: {''.join(told[-5:])}")
    stack: Mapping[str, str] = json.loads(printed)
    return Shop(home, stack["api"], stack["kafka"], "default", stack["api_key"])


def _clean_up(home: Path) -> None:
    """Stops what runs and removes the folder. A second interruption must not leave a broker behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        subprocess.run([TALLY, "down"], env=environment(home), capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, before)


def _tell_how_to_use(home: Path) -> None:
    CONSOLE.print(f"\nThe stack keeps running on {home}. Use it, then stop and remove it:")
    tally = shlex.quote(TALLY)
    for line in (
        f"export TALLY_HOME={shlex.quote(str(home))}",
        f"{tally} status",
        f"{tally} usage --start 2010-01-01 --feature insertions --dimension repo",
        f'{tally} sql "SELECT event_name, count() FROM v_events GROUP BY event_name"',
        f'{tally} down && rm -r "$TALLY_HOME"',
    ):
        CONSOLE.print(f"  {escape(line)}", soft_wrap=True)


# ------------------------------------------------------------------------------------------------ sending


def _send(shop: Shop, plan: Plan, expected: Expected) -> None:
    """The catalog, then every delivery through its door."""
    with _step("the catalog: tally apply tests/data/catalog.yaml"):
        shop.tally("apply", str(CATALOG), "--account", shop.account)
    for delivery in plan.deliveries:
        must = len(delivery.events) + len(delivery.broken_lines)
        with _step(f"{must:>6,} [cyan]{delivery.door:<10}[/] {delivery.what}"):
            acknowledged = asyncio.run(deliver(shop, delivery))
        if acknowledged != must:
            raise DemoError(f"{delivery.door} acknowledged {acknowledged:,} of {must:,}")
    CONSOLE.print(
        f"[bold]{expected.sent:,} sent: {len(expected.events):,} different events, {expected.duplicates:,} duplicates, "
        f"{expected.conflicts} conflict, {expected.rejected} broken line[/]",
        soft_wrap=True,
    )


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Tells what is being done (on a terminal), then what was, and how long it took."""
    started = time.monotonic()
    with CONSOLE.status(what):
        yield
    CONSOLE.print(f"[green]✓[/] {what} [dim]({time.monotonic() - started:.1f} s)[/]", soft_wrap=True)


# ------------------------------------------------------------------------------------------------ showing and comparing


def _show_usage(shop: Shop) -> None:
    """The product's own tables."""
    for asked in (*(("usage", *usage) for usage in _SHOWN_USAGE), ("audit",)):
        CONSOLE.print(f"\n[bold]$ tally {shlex.join(asked)}[/]", soft_wrap=True)
        CONSOLE.file.flush()
        subprocess.run([TALLY, *asked], env=environment(shop.home), check=False)


def _check(shop: Shop, expected: Expected, *, alone: bool) -> list[Check]:
    with _step("comparing every number with plain Python over the input, from rollups and from facts"):
        report = _audit(shop)
        checks = asyncio.run(check_usage(shop, expected))
        return [*checks, check_verdicts(shop, expected), check_audit(report, expected, alone=alone)]


def _audit(shop: Shop) -> Mapping[str, Any]:
    """The audit's report; it exits with 1 when it finds something, which is the report's to say."""
    command = [TALLY, "audit", "--json"]
    done = subprocess.run(command, env=environment(shop.home), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise DemoError(f"tally audit exited {done.returncode}: {done.stderr}")
    report: Mapping[str, Any] = json.loads(done.stdout)
    return report


def _show_checks(checks: Sequence[Check]) -> None:
    table = Table(title="Expected by plain Python, found from rollups and from facts")
    table.add_column("what")
    table.add_column("expected", justify="right")
    table.add_column("found", justify="right")
    table.add_column("")
    for check in checks:
        table.add_section()
        for row in _rows(check):
            table.add_row(*row)
    CONSOLE.print(table)
    faults = [fault for check in checks for fault in check.faults]
    for fault in faults[:FAULTS_SHOWN]:
        CONSOLE.print(f"[red]✗[/] {escape(fault)}", soft_wrap=True)
    if len(faults) > FAULTS_SHOWN:
        CONSOLE.print(f"[red]✗[/] and {len(faults) - FAULTS_SHOWN:,} more")


def _rows(check: Check) -> Iterator[tuple[str, str, str, str]]:
    """Number by number where they are few, else how many of them are equal."""
    mark = "[green]✓[/]" if not check.faults else "[red]✗[/]"
    if len(check.expected) > _SHORT:
        wrong = len(check.faults)
        told = f"{len(check.expected):,} equal" if not wrong else f"[red]{wrong:,} differ[/]"
        yield f"[bold]{check.title}[/]", f"{len(check.expected):,} numbers", told, mark
        return
    yield f"[bold]{check.title}[/]", "", "", mark
    for name, must in check.expected.items():
        values = [numbers.get(name) for numbers in check.found.values()]
        wrong_values = [value for value in values if value != must]
        shown = must if not wrong_values else wrong_values[0]
        told = "nothing" if shown is None else f"{shown:,f}"
        yield f"  {escape(name)}", f"{must:,f}", told, "[green]✓[/]" if not wrong_values else "[red]✗[/]"


if __name__ == "__main__":
    sys.exit(main())
