"""The command `tally`: the command line, and the wiring of processes.

The one module that sees all three packages. Commands are thin: they read the settings, call a function of a package
and render what it gives. Exit codes: 0 done, 1 done with something to look at (rejected lines, drift), 2 could not be
done.
"""

import asyncio
import getpass
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial, wraps
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import orjson
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from consumers.audit import ALL_TIME, Auditor
from consumers.audit_deep import Deep, DeepAuditor
from consumers.audit_progress import AuditProgress
from consumers.audit_repair import Repairer
from consumers.auditor import Audited, RunningAudit
from consumers.documents import audited_document
from consumers.inspected import VERDICTS
from consumers.inspector import Inspector, line_filter, line_query
from consumers.inspector_lines import render_found
from consumers.receipt_tables import render_receipt
from consumers.receipts import Receipt, ReceiptError, ReceiptReader, UnknownTransaction
from consumers.reject_tables import render_reject, render_rejects
from consumers.rejects import RejectFilter, RejectsReader, write_notes
from consumers.sql_query import SqlRefused, run_sql
from consumers.tables import render_audit, render_usage
from consumers.tail import Tail, TokenError
from consumers.usage import UsageError
from consumers.usage_params import instant_from, period_from, query_from
from consumers.usage_reader import UsageReader
from pipeline.adapters.block_store import BlockStore
from pipeline.adapters.catalog_log import CatalogClient, KafkaCatalogLog
from pipeline.adapters.clickhouse import Store
from pipeline.adapters.kafka import LogRanges, RecordWriter
from pipeline.adapters.kafka_admin import (
    BrokerUnavailable,
    TopicMismatch,
    committed,
    ensure_topics,
    members,
    topic_id,
)
from pipeline.block import Place
from pipeline.catalog import Key, test_mode_account
from pipeline.catalog_file import Change, apply_file, plan, read_catalog_file, render_plan
from pipeline.catalog_service import CatalogService
from pipeline.connecting import until_connected
from pipeline.event import EventError, format_timestamp
from pipeline.key_uses import KeyUses
from pipeline.logs import configure_logs
from pipeline.memory import load_late_imports, look_for_garbage_rarely
from pipeline.metrics import AuditMetrics
from pipeline.migrate import MigrationError, is_new, migrate, pending
from pipeline.offsets import STOPPED, Offsets, OffsetsRefused, render_offsets, wait_until_settled
from pipeline.ports import CatalogUnavailable, LogUnavailable, StoreError, StoreUnavailable
from pipeline.reject import RejectedLine, RejectPosition, ReplayNote, parse_position
from pipeline.settings import Settings
from pipeline.stages.mapping import Mappers
from pipeline.transaction_id import new_transaction_id
from producers.file_destinations import PATIENCE_S, ApiDestination, KafkaDestination, Nowhere
from producers.file_rows import FORMATS, FileRefused, parse_columns
from producers.files import Rules, Summary, input_bytes, send_files
from producers.publisher import Publisher
from producers.replay import Mends, Replayed, Replayer
from producers.replay_progress import ReplayProgress
from producers.send_progress import SendProgress

if TYPE_CHECKING:
    from litestar import Litestar

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_AUDIT_TIMEOUT_S = 3600  # one statement may compare millions of facts
_FAILURES = (
    BrokerUnavailable,
    CatalogUnavailable,
    EventError,
    FileRefused,
    LogUnavailable,
    MigrationError,
    OffsetsRefused,
    ReceiptError,
    SqlRefused,
    StoreError,
    StoreUnavailable,
    TokenError,
    TopicMismatch,
    UsageError,
)


def main() -> None:
    """The entry point."""
    cli(prog_name="tally")


def _told(command: _F) -> _F:
    """Failures that a person can do something about come as one line, not as a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except _FAILURES as error:
            raise _failure(str(error)) from error

    return run  # type: ignore[return-value]


def _failure(message: str) -> click.ClickException:
    error = click.ClickException(message)
    error.exit_code = 2
    return error


def _settings() -> Settings:
    try:
        settings = Settings()
    except (ValidationError, ValueError) as error:
        raise _failure(f"the settings are wrong: {error}") from error
    configure_logs(settings)
    return settings


def _print_json(document: object) -> None:
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode())


def _now_us() -> int:
    return time.time_ns() // 1000


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("tallystream"), prog_name="tally")
def cli() -> None:
    """Usage metering that companies can bill from: every event counted exactly once."""


# ------------------------------------------------------------------------------------------------ embedded stack


@cli.command()
@click.option("--detach", "-d", is_flag=True, help="Return once everything is ready; stop it with `tally down`.")
@click.option("--json", "as_json", is_flag=True, help="Print addresses and the API key as JSON.")
@click.option("--kafka-port", type=int, help="Port of Kafka; a free one otherwise.")
@click.option("--clickhouse-port", type=int, help="Port of ClickHouse's HTTP interface; a free one otherwise.")
@click.option("--api-port", type=int, help="Port of the API; a free one otherwise.")
@click.option("--worker-port", type=int, help="Port of the worker's pages; a free one otherwise.")
def up(detach: bool, as_json: bool, **ports: int | None) -> None:
    """Run Kafka, ClickHouse, worker and API on this machine, and keep them running."""
    from pipeline.local.jars import JarError  # noqa: PLC0415 - the embedded stack is an extra
    from pipeline.local.part import PartError  # noqa: PLC0415
    from pipeline.local.port import PortTakenError  # noqa: PLC0415
    from pipeline.local.stack import Ports  # noqa: PLC0415
    from pipeline.local.stackfile import StackError  # noqa: PLC0415

    settings = _settings()
    chosen = {name.removesuffix("_port"): port for name, port in ports.items()}
    stack = _stack(settings, Ports(**chosen))
    again = [f"--{name}-port={port}" for name, port in chosen.items() if port]
    try:
        stack.up(detach=detach, argv=[sys.executable, "-m", "tally", "up", *again])
    except (StackError, PartError, PortTakenError, JarError) as error:
        raise _failure(str(error)) from error
    if detach:
        _print_addresses(settings, as_json)


@cli.command()
def down() -> None:
    """Stop the embedded stack of this data folder and wait for its end."""
    from pipeline.local.stackfile import StackError  # noqa: PLC0415

    try:
        ran = _stack(_settings()).down()
    except StackError as error:
        raise _failure(str(error)) from error
    click.echo("stopped" if ran else "nothing was running")


@cli.command()
@click.option("--json", "as_json", is_flag=True)
def status(as_json: bool) -> None:
    """Tell how the parts of the embedded stack are. Exits 1 unless all are ready; the auditor may still be starting."""
    found = _stack(_settings()).status()
    parts = [
        {
            "name": part.name,
            "state": part.state,
            "ready": part.ready,
            "pid": part.pid,
            "restarts": part.restarts,
            "address": part.address,
            "log": part.log,
        }
        for part in found.parts
    ]
    if as_json:
        _print_json({"running": found.running, "state": found.state, "error": found.error, "parts": parts})
    else:
        table = Table(title=f"{found.state}{': ' + found.error if found.error else ''}")
        for column in ("part", "state", "ready", "pid", "restarts", "address"):
            table.add_column(column, justify="right" if column in ("pid", "restarts") else "left")
        for part in parts:
            ready = "yes" if part["ready"] else "no"
            shown = [str(part[name]) for name in ("name", "state", "pid", "restarts", "address")]
            table.add_row(*shown[:2], ready, *shown[2:])
        Console().print(table)
    starting = {part.name for part in found.parts if part.state == "starting" and not part.awaited}
    if not found.running or not all(part["ready"] or part["name"] in starting for part in parts):
        sys.exit(1)


def _stack(settings: Settings, ports: Any = None) -> Any:
    """The embedded stack with this product's worker and API in it."""
    from pipeline.local.part import Part  # noqa: PLC0415 - the embedded stack is an extra
    from pipeline.local.stack import Addresses, Stack  # noqa: PLC0415

    def parts(at: Addresses) -> Sequence[Part]:
        common = {
            "TALLY_HOME": str(settings.home_dir),
            "TALLY_KAFKA": at.kafka,
            "TALLY_CLICKHOUSE": at.clickhouse,
            "TALLY_API_PORT": str(at.api_port),
            "TALLY_WORKER_PORT": str(at.worker_port),
            "TALLY_AUDITOR_PORT": str(at.auditor_port),
            "TALLY_INSTANCE": settings.instance or "worker-1",
        }
        worker = f"http://127.0.0.1:{at.worker_port}"
        auditor = f"http://127.0.0.1:{at.auditor_port}"
        run = [sys.executable, "-m", "tally"]
        return [
            Part("worker", [*run, "worker"], common, f"{worker}/readyz", worker, start_s=120.0),
            Part("api", [*run, "api"], common, f"{at.api}/readyz", at.api),
            Part("auditor", [*run, "auditor"], common, f"{auditor}/metrics", auditor, awaited=False),
        ]

    def prepare(at: Addresses) -> Mapping[str, object]:
        return _prepare(settings.model_copy(update={"kafka": at.kafka, "clickhouse": at.clickhouse}))

    return Stack(settings.home_dir, parts=parts, prepare=prepare, ports=ports, say=_say)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _prepare(settings: Settings) -> Mapping[str, object]:
    """Tables, topics, and the first account with its key; what stack.json shall remember."""
    _migrate(settings)
    key = asyncio.run(_first_key(settings))
    return {"database": settings.database, "partitions": settings.partitions, "api_key": key}


async def _first_key(settings: Settings) -> str:
    async with _catalog(settings) as service:
        return (await service.ensure_first_account(settings.default_account, _known_key(settings))).secret


def _known_key(settings: Settings) -> str | None:
    """The key that an earlier start has noted."""
    try:
        found = json.loads((settings.home_dir / "stack.json").read_text()).get("api_key")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _print_addresses(settings: Settings, as_json: bool) -> None:
    found = json.loads((settings.home_dir / "stack.json").read_text())
    shown = {name: found[name] for name in ("api", "kafka", "clickhouse", "api_key")}
    shown["worker"] = f"http://127.0.0.1:{found['worker_port']}"
    shown["home"] = str(settings.home_dir)
    if as_json:
        _print_json(shown)
        return
    table = Table(show_header=False, box=None)
    for name, value in shown.items():
        table.add_row(name, value)
    Console().print(table)


# ------------------------------------------------------------------------------------------------ processes


def _migrate(settings: Settings) -> list[str]:
    """Tables and topics as this version needs them, and rollups that are new filled from facts; the files applied.

    Refuses to change anything while workers run, and waits for what a killed one has sent: a block must find the same
    tables from its insert to its proof.
    """
    missing = pending(settings)
    if missing and (present := members(settings)):
        raise MigrationError(
            f"{', '.join(missing)} cannot be applied while workers run: {', '.join(present)}. Stop them (one that was "
            f"killed counts for {settings.session_timeout_s:.0f} s more), migrate, and start those of this version"
        )
    if missing and not is_new(missing):
        # what lands later would go through other views than a try before it, which then has another name
        wait_until_settled(settings, _say)
    applied = migrate(settings)
    ensure_topics(settings)
    store = Store(settings)
    try:
        blocks = BlockStore(store, topic=settings.topic_events, database=settings.database)
        if blocks.moduli() and (applied or (blocks.unfilled() and not members(settings))):
            for table, month in blocks.fill(committed(settings)):
                _say(f"{table} filled with the events of {month}")
    except ValueError as error:
        raise MigrationError(str(error)) from error
    finally:
        store.close()
    return applied


@cli.command("migrate")
@_told
def migrate_command() -> None:
    """Make or bring up to date the store's tables and the topics; safe to repeat."""
    applied = _migrate(_settings())
    click.echo(f"{len(applied)} migrations applied" if applied else "the store is up to date")


@cli.command()
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@_told
def init(account: str | None) -> None:
    """Do what `tally migrate` does, then make the first account; its admin key is printed once, when it is made."""
    settings = _settings()
    _migrate(settings)
    name = account or settings.default_account

    async def first() -> str | None:
        async with _catalog(settings) as service:
            await service.catch_up()
            if service.catalog.account(name) is not None:
                return None
            return (await service.ensure_first_account(name)).secret

    key = asyncio.run(first())
    _print_json({"account": name, "api_key": key} if key else {"account": name, "api_key": None, "note": "was there"})


@cli.command()
def worker() -> None:
    """Run a worker, as `faust -A pipeline.app worker` does."""
    _settings()
    os.execv(sys.executable, [sys.executable, "-m", "faust", "-A", "pipeline.app", "worker"])  # noqa: S606 - no shell


@cli.command()
def api() -> None:
    """Serve the HTTP API."""
    from producers.server import serve  # noqa: PLC0415

    settings = _settings()
    try:
        serve("tally:make_api", host=settings.api_host, port=settings.api_port, workers=settings.api_workers)
    except OSError as error:
        raise _failure(
            f"{settings.api_host}:{settings.api_port} cannot be listened on ({error}); choose another TALLY_API_PORT"
        ) from error


@cli.command()
@click.option("--once", is_flag=True, help="Do the one audit that is due, then end; exits 1 on drift.")
@click.option("--json", "as_json", is_flag=True, help="Print each audit as a line of JSON.")
@_told
def auditor(once: bool, as_json: bool) -> None:
    """Audit the store again and again, keep each result in the table `audits`, and serve metrics."""
    settings = _settings()
    metrics = AuditMetrics()

    def heard(audited: Audited) -> None:
        metrics.heard(audited.scope, drift=audited.drift, at_s=audited.at.timestamp(), duration_s=audited.seconds)
        if as_json:
            click.echo(orjson.dumps(audited_document(audited)).decode())

    running = RunningAudit(
        Store(settings, answer_timeout_s=_AUDIT_TIMEOUT_S),
        topic=settings.topic_events,
        every_s=settings.audit_every_s,
        full_every_s=settings.audit_full_every_s,
        heard=heard,
        failed=metrics.failed,
    )
    if once:
        sys.exit(1 if running.once().drift else 0)
    try:
        stop_page = metrics.serve(settings.api_host, settings.auditor_port)
    except OSError as error:
        raise _failure(
            f"{settings.api_host}:{settings.auditor_port} cannot be listened on ({error}); choose another "
            "TALLY_AUDITOR_PORT"
        ) from error
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    running.run(stopping)
    stop_page()


def make_api() -> "Litestar":
    """The API of one process; the server calls it in each."""
    # Web frameworks take longer to load than all the rest: no other command waits for them.
    from litestar import Request, Router  # noqa: PLC0415
    from litestar.di import Provide  # noqa: PLC0415

    from consumers.api import usage_router  # noqa: PLC0415
    from consumers.inspector_api import Tails, inspector_handlers  # noqa: PLC0415
    from consumers.receipt_api import hidden_receipt_handler, receipt_router, respond  # noqa: PLC0415
    from producers.api import Services, build_app  # noqa: PLC0415
    from producers.auth import key_of, needs  # noqa: PLC0415
    from producers.catalog_api import catalog_router  # noqa: PLC0415
    from producers.intake import CatalogReader, Intake  # noqa: PLC0415
    from producers.rate_limits import RateLimits  # noqa: PLC0415

    settings = _settings()
    writer = RecordWriter(settings, linger_ms=0)
    ranges = LogRanges(settings)
    client = CatalogClient(KafkaCatalogLog(settings))
    service = CatalogService(client)
    publisher = Publisher(writer, topic=settings.topic_events, partitions=settings.partitions)
    store = Store(settings)
    reader = UsageReader(store, topic=settings.topic_events, partitions=settings.partitions)
    receipts = _receipts(settings, store, ranges)
    intake = Intake(
        publisher,
        CatalogReader(service),
        clock_us=_now_us,
        ahead_max_us=settings.ahead_max_hours * 3_600_000_000,
        new_id=new_transaction_id,
        limits=RateLimits(time.monotonic, default_events_per_s=settings.key_events_per_s),
    )

    uses = KeyUses(store, _now_us)
    inspector = Inspector(store, reader.complete, topic=settings.topic_events)
    tails = Tails(lambda chosen, token: Tail(store, chosen, topic=settings.topic_events, token=token))

    @asynccontextmanager
    async def connected(_: "Litestar") -> AsyncIterator[None]:
        await until_connected(writer.start, LogUnavailable)
        await until_connected(client.start, CatalogUnavailable)
        noting = asyncio.create_task(uses.run(), name="key uses")
        load_late_imports()
        look_for_garbage_rarely()
        yield
        noting.cancel()
        await asyncio.wait([noting])
        await client.stop()
        await ranges.stop()
        await writer.stop()
        store.close()

    async def kafka_answers() -> None:
        await ranges.bounds(settings.topic_events, 0)

    def account_of(request: Request[Any, Any, Any]) -> str:
        account: str = request.state.principal.account
        return account

    def permitted_of(request: Request[Any, Any, Any]) -> Callable[[], bool]:
        key = key_of(request)

        def permitted() -> bool:
            found = service.principal(key)
            return found is not None and bool(found.scopes & {"read", "admin"})

        return permitted

    account = Provide(account_of, sync_to_thread=False)
    inspecting = inspector_handlers(
        lambda of, given: inspector.page(line_query(given, of, datetime.now(UTC))),
        tails,
        partial(respond, receipts.receipt),
        [needs("read")],
        {"account": account, "permitted": Provide(permitted_of, sync_to_thread=False)},
    )
    reading = Router(
        path="/",
        guards=[needs("read")],
        dependencies={"account": account},
        route_handlers=[usage_router(reader.usage, lambda: datetime.now(UTC)), receipt_router(receipts.receipt)],
    )
    return build_app(
        Services(intake, {"kafka": kafka_answers}, uses.note),
        [
            catalog_router(service, uses.last),
            reading,
            *inspecting,
            hidden_receipt_handler(receipts.receipt, [needs("read")], account),
        ],
        version=metadata.version("tallystream"),
        lifespan=[connected],
        stopping=[tails.stop],
    )


def _receipts(settings: Settings, store: Store, ranges: LogRanges) -> ReceiptReader:
    return ReceiptReader(
        store,
        ranges,
        topic=settings.topic_events,
        partitions=settings.partitions,
        default_account=settings.default_account,
    )


@asynccontextmanager
async def _catalog(settings: Settings) -> AsyncIterator[CatalogService]:
    client = CatalogClient(KafkaCatalogLog(settings))
    await client.start()
    try:
        yield CatalogService(client)
    finally:
        await client.stop()


# ------------------------------------------------------------------------------------------------ offsets


@cli.group()
def offsets() -> None:
    """Where the workers go on, and the ways out when a partition is stopped."""


@offsets.command("show")
@click.option("--json", "as_json", is_flag=True)
@_told
def offsets_show(as_json: bool) -> None:
    """Tell where each partition goes on: the group's commit, the ledger, the log. Exits 1 if one cannot go on."""
    settings = _settings()
    found = Offsets(settings, Store(settings)).show()
    if as_json:
        _print_json([msgspec.to_builtins(partition) for partition in found])
    else:
        Console().print(render_offsets(found))
        for partition in found:
            if partition.says:
                click.echo(f"partition {partition.partition}: {partition.says}")
    if any(partition.state in STOPPED for partition in found):
        sys.exit(1)


@offsets.command("reset")
@click.option("--partition", "numbers", type=int, multiple=True, help="This partition; may be given more than once.")
@click.option("--all", "every", is_flag=True, help="All partitions.")
@click.option("--to", type=click.Choice(["ledger"]), required=True, help="Where to: the store's ledger.")
@click.option("--json", "as_json", is_flag=True)
@_told
def offsets_reset(numbers: tuple[int, ...], every: bool, to: str, as_json: bool) -> None:
    """Make the workers go on from the store's ledger, after the store was put back. No worker may run."""
    settings = _settings()
    if bool(numbers) == every:
        raise click.UsageError("give --partition N, or --all")
    done = Offsets(settings, Store(settings)).reset(range(settings.partitions) if every else numbers)
    if as_json:
        _print_json([msgspec.to_builtins(partition) for partition in done])
        return
    for partition in done:
        before = "no offset" if partition.before is None else str(partition.before)
        click.echo(f"partition {partition.partition}: from {before} to the ledger at {partition.offset}")


@offsets.command("skip")
@click.option("--partition", type=int, required=True, help="The partition.")
@click.option("--reason", required=True, help="Why the events are gone; every audit shows it.")
@click.option("--json", "as_json", is_flag=True)
@_told
def offsets_skip(partition: int, reason: str, as_json: bool) -> None:
    """Give up events that were deleted from Kafka before they were counted; told in every audit. No worker may run."""
    settings = _settings()
    told_by = f"{getpass.getuser()}@{socket.gethostname()}"
    done = Offsets(settings, Store(settings)).skip(partition, reason=reason, told_by=told_by, say=_say)
    if as_json:
        _print_json(msgspec.to_builtins(done))
        return
    lost = "nothing was given up" if done.gap is None else f"offsets {done.gap[0]} to {done.gap[1] - 1} are given up"
    click.echo(f"partition {partition}: {lost}; the workers go on at {done.position}")
    if done.says:
        click.echo(done.says)


# ------------------------------------------------------------------------------------------------ catalog


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--account", help="Whose definitions, where the file does not say; default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--dry-run", is_flag=True, help="Show the difference and change nothing.")
@click.option("--json", "as_json", is_flag=True)
@_told
def apply(file: Path, account: str | None, dry_run: bool, as_json: bool) -> None:
    """Make features, dimensions and customers as FILE (YAML) says; shows the difference."""
    settings = _settings()
    wanted = read_catalog_file(file.read_text())
    owner = wanted.account or account or settings.default_account

    async def run() -> Sequence[Any]:
        async with _catalog(settings) as service:
            if dry_run:
                await service.catch_up()
                return plan(service.catalog, wanted, account=owner, now_us=_now_us())
            return await apply_file(service, wanted, account=owner)

    changes = asyncio.run(run())
    if as_json:
        _print_json([_change_document(change) for change in changes])
    else:
        Console().print(render_plan(changes))
        if dry_run:
            click.echo("nothing was changed (--dry-run)")


def _change_document(change: Change) -> dict[str, object]:
    fields = {field.name: {"before": field.before, "after": field.after} for field in change.fields}
    return {"kind": change.kind, "id": change.id, "action": change.action, "fields": fields}


@cli.group()
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--name", default="", help="What it is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["ingest", "read", "admin"]), default=["ingest"])
@click.option("--mode", type=click.Choice(["live", "test"]), help="Test keys act for an account of their own.")
@click.option(
    "--events-per-s", type=int, help="Limit per process of the API; 0 for none. Default: TALLY_KEY_EVENTS_PER_S."
)
@click.option("--burst", type=int, help="Events at once above the limit. Default: ten seconds of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it is so without, too.")
@_told
def keys_create(account: str | None, scopes: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make a key. Its secret is shown now and never again."""
    settings = _settings()

    async def run() -> Any:
        async with _catalog(settings) as service:
            fields = {"scopes": list(scopes), **given}
            return await service.create_key(account or settings.default_account, fields)

    created = asyncio.run(run())
    _print_json({"key": created.secret, "id": created.key.hash, "scopes": list(created.key.scopes)})


@keys.command("list")
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_told
def keys_list(account: str | None, as_json: bool) -> None:
    """Tell the keys of an account and of its test mode: scopes, limits, last use, until when they are good."""
    settings = _settings()
    name = account or settings.default_account
    store = Store(settings)

    async def run() -> Any:
        async with _catalog(settings) as service:
            return service.keys(name), await KeyUses(store, _now_us).last((name, test_mode_account(name)))

    try:
        found, used = asyncio.run(run())
    finally:
        store.close()
    rows = [_key_document(key, used.get(key.hash)) for key in found]
    if as_json:
        _print_json(rows)
        return
    table = Table(*(rows[0] if rows else ("id",)))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)


def _key_document(key: Key, used_us: int | None) -> dict[str, object]:
    instants = {"created": key.created_us, "last_used": used_us, "expires": key.expires_us, "revoked": key.revoked_us}
    return {
        "id": key.hash,
        "account": key.account,
        "name": key.name,
        "scopes": ",".join(key.scopes),
        "hint": key.hint,
        "events_per_s": key.events_per_s,
        "burst": key.burst,
        **{name: None if at_us is None else format_timestamp(at_us) for name, at_us in instants.items()},
    }


@keys.command("rotate")
@click.argument("key_id")
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--overlap-s", type=int, default=86_400, show_default=True, help="How long the old one stays good.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it is so without, too.")
@_told
def keys_rotate(key_id: str, account: str | None, overlap_s: int, as_json: bool) -> None:
    """Make the successor of the key with this id. Its secret is shown now; the old one is good for the overlap."""
    settings = _settings()

    async def run() -> Any:
        async with _catalog(settings) as service:
            return await service.rotate_key(account or settings.default_account, key_id, {"overlap_s": overlap_s})

    created = asyncio.run(run())
    _print_json({"key": created.secret, "id": created.key.hash, "scopes": list(created.key.scopes)})


@keys.command("revoke")
@click.argument("key_id")
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@_told
def keys_revoke(key_id: str, account: str | None) -> None:
    """Revoke the key with this id for good."""
    settings = _settings()

    async def run() -> None:
        async with _catalog(settings) as service:
            await service.revoke_key(account or settings.default_account, key_id)

    asyncio.run(run())
    click.echo("revoked")


# ------------------------------------------------------------------------------------------------ ways in


@cli.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--account", help="Account to send for, straight to Kafka; default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--api", "url", help="Send through this API instead, with --key.")
@click.option("--key", envvar="TALLY_API_KEY", help="API key for --api; better in the environment as TALLY_API_KEY.")
@click.option(
    "--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Where bad lines go; default: FILE.rejects."
)
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="Of all FILES; default: by their names, or ndjson."
)
@click.option(
    "--map", "maps", multiple=True, metavar="FIELD=COLUMN", help="Column of CSV or Parquet that is this field."
)
@click.option("--dry-run", is_flag=True, help="Check every line, write the rejects file, send nothing.")
@click.option("--json", "as_json", is_flag=True)
@_told
def send(  # noqa: PLR0917 - click passes them by name
    files: tuple[str, ...],
    account: str | None,
    url: str | None,
    key: str | None,
    rejects: Path | None,
    format_: str | None,
    maps: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send FILES of events (NDJSON, CSV, Parquet, also .gz; - for standard input). Exits 1 if any line was rejected.

    A sending that was interrupted or killed goes on where it stopped when the same command is given again.
    """
    settings = _settings()
    if url and not key:
        raise click.UsageError("--api needs --key, or TALLY_API_KEY in the environment")
    rules = Rules(
        clock_us=_now_us,
        new_id=new_transaction_id,
        ahead_max_us=settings.ahead_max_hours * 3_600_000_000,
        format=format_,
        columns=parse_columns(maps),
        dry_run=dry_run,
    )
    to = account or settings.default_account

    async def run() -> Summary:
        sender = partial(send_files, files, rules=rules, to=url or f"account {to}", rejects_path=rejects)
        with SendProgress(Console(stderr=True), input_bytes(files)) as bar:
            if dry_run:
                return await sender(destination=Nowhere(), progress=bar)
            if url and key:
                async with ApiDestination(url, key) as destination:
                    return await sender(destination=destination, progress=bar)
            async with _publishing(settings) as (publisher, version):
                direct = KafkaDestination(publisher, account=to, catalog_version=version)
                return await sender(destination=direct, progress=bar)

    try:
        summary = asyncio.run(run())
    except FileNotFoundError as error:
        raise _failure(f"{error.filename}: no such file") from error
    except KeyboardInterrupt as error:
        raise _failure("interrupted; the same command goes on where this one stopped") from error
    if as_json:
        _print_json(summary.as_json())
    else:
        click.echo(summary.as_text())
    sys.exit(summary.exit_code)


@asynccontextmanager
async def _publishing(settings: Settings) -> AsyncIterator[tuple[Publisher, int]]:
    """A publisher, and the version of the catalog that its records are stamped with."""
    writer = RecordWriter(settings)
    ranges = LogRanges(settings)
    await until_connected(writer.start, LogUnavailable, patience_s=PATIENCE_S)
    try:
        catalog_end = partial(ranges.bounds, settings.topic_catalog, 0)
        _, end = await until_connected(catalog_end, LogUnavailable, patience_s=PATIENCE_S)
        yield Publisher(writer, topic=settings.topic_events, partitions=settings.partitions), end - 1
    finally:
        await ranges.stop()
        await writer.stop()


# ------------------------------------------------------------------------------------------------ ways out


@cli.command()
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--feature", help="One feature; every feature otherwise.")
@click.option("--event-name", help="Events of one name, as they were sent.")
@click.option("--customer", help="One customer.")
@click.option("--entity", help="One part of a customer.")
@click.option("--start", help="RFC 3339, or a local date or time of --zone; default: start of the month.")
@click.option("--end", help="The same, not included; default: now.")
@click.option("--granularity", "--by", type=click.Choice(["none", "hour", "day", "month"]), help="Rows per window.")
@click.option("--zone", help="IANA time zone of days and months, such as America/New_York; default: UTC.")
@click.option("--group-by", multiple=True, help="customer, entity, feature, event_name or dimension:NAME.")
@click.option("--dimension", multiple=True, help="Group by this dimension.")
@click.option("--where", multiple=True, metavar="NAME=VALUE", help="Only events whose dimension has this value.")
@click.option("--number", help="With --event-name: the number dimension to add up instead of the value.")
@click.option("--top", help="With --group-by: only so many groups, those with the largest sum or count.")
@click.option("--aggregation", help="sum, count, max, min, latest, unique or average; default: the feature's own.")
@click.option("--source", type=click.Choice(["auto", "rollups", "facts"]), help="Where to read from; same numbers.")
@click.option("--json", "fmt", flag_value="json", help="As JSON.")
@click.option("--csv", "fmt", flag_value="csv", help="As CSV.")
@_told
def usage(account: str | None, fmt: str | None, where: tuple[str, ...], **options: Any) -> None:
    """Usage by feature, customer, event name or dimension, between two instants."""
    settings = _settings()
    given: dict[str, list[str]] = {}
    for name, value in options.items():
        if value:
            given[name] = list(value) if isinstance(value, tuple) else [value]
    for condition in where:
        name, separator, value = condition.partition("=")
        if not separator:
            raise click.UsageError(f"--where {condition}: give NAME=VALUE")
        given[f"filter[{name}]"] = [value]
    query = query_from(given, account or settings.default_account, datetime.now(UTC))
    reader = UsageReader(Store(settings), topic=settings.topic_events, partitions=settings.partitions)
    shape: Any = fmt or "table"
    click.echo(render_usage(reader.usage(query), shape, Console()), nl=False)


@cli.command()
@click.argument("statement")
@click.option("--json", "fmt", flag_value="json", help="As JSON.")
@click.option("--csv", "fmt", flag_value="csv", help="As CSV.")
@_told
def sql(statement: str, fmt: str | None) -> None:
    """Run a SELECT against the store."""
    shape: Any = fmt or "table"
    click.echo(run_sql(Store(_settings()), statement, shape), nl=False)


@cli.command()
@click.argument("transaction_id", metavar="ID")
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--json", "fmt", flag_value="json", help="The document that the API gives.")
@_told
def receipt(transaction_id: str, account: str | None, fmt: str | None) -> None:
    """Tell what became of the event with this transactionId. Exits 1 unless it is counted."""
    settings = _settings()

    async def run() -> Receipt:
        ranges = LogRanges(settings)
        try:
            reader = _receipts(settings, Store(settings), ranges)
            return await reader.receipt(account or settings.default_account, transaction_id)
        finally:
            await ranges.stop()

    try:
        found = asyncio.run(run())
    except UnknownTransaction as error:
        if fmt:
            _print_json({"verdict": "unknown", "code": "unknown_transaction", "detail": str(error)})
        else:
            click.echo(str(error), err=True)
        sys.exit(1)
    shape: Any = fmt or "table"
    click.echo(render_receipt(found, shape, Console()), nl=False)
    sys.exit(0 if found.verdict == "accepted" else 1)


@cli.command()
@click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT.")
@click.option("--verdict", "verdicts", multiple=True, type=click.Choice(VERDICTS), help="May be given more than once.")
@click.option("--customer", help="Of this customer.")
@click.option("--event-name", help="Of this name.")
@click.option("--transaction-id", help="With this id.")
@click.option("--transaction-id-prefix", help="With ids that begin so.")
@click.option("--after", "token", help="Go on after this token, which --json gives with each line.")
@click.option("--count", type=click.IntRange(1), help="End after so many lines; without it, with Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_told
def tail(
    account: str | None, verdicts: tuple[str, ...], token: str | None, count: int | None, as_json: bool, **texts: Any
) -> None:
    """Show what comes in as it is counted, line by line with its verdict."""
    settings = _settings()
    given = {name: value for name, value in texts.items() if value is not None}
    if verdicts:
        given["verdict"] = ",".join(verdicts)
    chosen = line_filter(account or settings.default_account, given)
    follower = Tail(Store(settings), chosen, topic=settings.topic_events, token=token)
    console = Console()
    _say(f"{chosen.account}: what comes in from now on; Ctrl-C ends it" if token is None else chosen.account)
    shown = 0
    try:
        while count is None or shown < count:
            look = follower.look(_TAIL_LINES if count is None else min(_TAIL_LINES, count - shown))
            for one in look.found:
                click.echo(render_found(one, "json" if as_json else "table", console), nl=False)
            shown += len(look.found)
            if not look.more:
                time.sleep(_TAIL_EVERY_S)
    except KeyboardInterrupt:
        return


_TAIL_LINES = 100
_TAIL_EVERY_S = 1.0


@cli.group()
def rejects() -> None:
    """Refused lines and conflicts, and sending them again."""


def _reject_options(command: _F) -> _F:
    """Options that choose rejects."""
    for option in (
        click.option("--status", type=click.Choice(_REJECT_STATUSES), help="replayed: any but open and conflict."),
        click.option("--verdict", type=click.Choice(["rejected", "conflict"])),
        click.option("--partition", type=click.IntRange(0)),
        click.option("--end", help="The same, not included."),
        click.option("--start", help="Append time: RFC 3339, or a date or time in UTC."),
        click.option("--event-name", help="Where it could be read."),
        click.option("--field", help="Any fault is of this field."),
        click.option("--reason", "--code", help="Any fault has this code, such as required or unknown_account."),
        click.option("--all-accounts", is_flag=True, help="Those of every account."),
        click.option("--account", help="Default: TALLY_DEFAULT_ACCOUNT."),
    ):
        command = option(command)
    return command


_REJECT_STATUSES = ["open", "replayed", "in_flight", "accepted", "duplicate", "conflict", "rejected_again"]


def _reject_filter(settings: Settings, given: Mapping[str, Any]) -> RejectFilter:
    """What the options choose."""
    chosen = {name: value for name, value in given.items() if value is not None}
    account = chosen.pop("account", None) or settings.default_account
    if chosen.pop("all_accounts", False):
        account = None
    for name in ("start", "end"):
        if name in chosen:
            chosen[name] = instant_from(name, chosen[name])
    return RejectFilter(topic=settings.topic_events, account=account, **chosen)


@rejects.command("list")
@_reject_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@click.option("--json", "fmt", flag_value="json", help="As JSON.")
@click.option("--csv", "fmt", flag_value="csv", help="As CSV.")
@_told
def rejects_list(limit: int, fmt: str | None, **given: Any) -> None:
    """List refused lines and conflicts, the newest first, and what became of them."""
    settings = _settings()
    rows = RejectsReader(Store(settings)).newest(_reject_filter(settings, given), limit=limit)
    shape: Any = fmt or "table"
    click.echo(render_rejects(rows, shape, Console()), nl=False)


@rejects.command("show")
@click.argument("position")
@click.option("--json", "fmt", flag_value="json", help="As JSON.")
@_told
def rejects_show(position: str, fmt: str | None) -> None:
    """Show the line refused at POSITION (topic:epoch:partition:offset:line, or the last four) and all about it."""
    settings = _settings()
    at = _position(position, settings)
    found = RejectsReader(Store(settings)).show(at)
    if found is None:
        raise _failure(f"no line was refused at {at.text}; `tally rejects list` tells the positions")
    shape: Any = fmt or "table"
    click.echo(render_reject(found, shape, Console()), nl=False)


def _position(text: str, settings: Settings) -> RejectPosition:
    try:
        return parse_position(text, topic=settings.topic_events)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@rejects.command("replay")
@click.argument("positions", metavar="[POSITION]...", nargs=-1)
@_reject_options
@click.option("--all", "everything", is_flag=True, help="Every open line of the account, where nothing else chooses.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Give a field its right name, before --unset, --set.")
@click.option("--unset", multiple=True, metavar="FIELD", help="Leave a field out.")
@click.option("--set", "set_", multiple=True, metavar="FIELD=VALUE", help="Mend a field of every line; data.KEY too.")
@click.option("--dry-run", is_flag=True, help="Check with the worker's decoder, and send nothing.")
@click.option("--json", "as_json", is_flag=True)
@_told
def rejects_replay(  # noqa: PLR0917 - click passes them by name
    positions: tuple[str, ...],
    everything: bool,
    limit: int | None,
    rename: tuple[str, ...],
    unset: tuple[str, ...],
    set_: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Send refused lines again, as they came or mended; each counts once, however often. Exits 1 if any could not be.

    Without --status, only open ones; at a POSITION, whatever became of it.
    """
    settings = _settings()
    if not positions and not everything and not any(value for value in given.values()):
        raise click.UsageError("name positions, choose by an option such as --reason, or say --all")
    mends = Mends(rename=_pairs("--rename", rename), unset=unset, set=_pairs("--set", set_))
    store = Store(settings)
    reader = RejectsReader(store)
    if positions:
        chosen = [RejectFilter(topic=at.topic, position=at) for at in (_position(text, settings) for text in positions)]
    else:
        status = given.pop("status") or (None if given["verdict"] == "conflict" else "open")  # conflicts are told off
        chosen = [_reject_filter(settings, {**given, "status": status})]
    total = sum(reader.count(one) for one in chosen)
    pages = (page for one in chosen for page in reader.pages(one))
    summary = asyncio.run(_replay(settings, store, pages, min(total, limit or total), mends, dry_run=dry_run))
    if as_json:
        _print_json(summary)
    else:
        click.echo(_replay_text(summary))
    sys.exit(1 if summary["refused"] or len(positions) > total else 0)


async def _replay(
    settings: Settings,
    store: Store,
    pages: Iterator[Sequence[RejectedLine]],
    total: int,
    mends: Mends,
    *,
    dry_run: bool,
) -> dict[str, Any]:
    """Replays page after page; what was chosen, sent and refused."""

    async def note(notes: Sequence[ReplayNote]) -> None:
        await asyncio.to_thread(write_notes, store, notes)

    summary: dict[str, Any] = {"chosen": 0, "sent": 0, "valid": 0, "refused": 0, "dry_run": dry_run, "lines": []}
    with ReplayProgress(Console(stderr=True), total) as bar:
        async with _publishing(settings) as (publisher, version):
            replayer = Replayer(
                publisher,
                note,
                clock_us=_now_us,
                ahead_max_us=settings.ahead_max_hours * 3_600_000_000,
                catalog_version=version,
                mends=mends,
            )
            while summary["chosen"] < total and (page := await asyncio.to_thread(next, pages, None)):
                lines = page[: total - summary["chosen"]]
                done = replayer.check(lines) if dry_run else await replayer.replay(lines)
                _add_to(summary, done)
                bar(done=len(lines), refused=sum(bool(one.errors) for one in done))
    return summary


def _add_to(summary: dict[str, Any], done: Sequence[Replayed]) -> None:
    """Counts, and the first lines by name."""
    summary["chosen"] += len(done)
    for one in done:
        outcome = "refused" if one.errors else "sent" if one.place is not None else "valid"
        summary[outcome] += 1
        if len(summary["lines"]) < _REPLAYED_SHOWN:
            to = None if one.place is None else ":".join(map(str, one.place))
            errors = [{"field": e.field, "code": e.code, "message": e.message} for e in one.errors]
            line = {"position": one.position.text, "outcome": outcome, "transaction_id": one.transaction_id}
            summary["lines"].append({**line, "to": to, "errors": errors})


_REPLAYED_SHOWN = 100


def _replay_text(summary: Mapping[str, Any]) -> str:
    told = f"{summary['valid']:,} could be sent" if summary["dry_run"] else f"{summary['sent']:,} sent"
    lines = [f"{summary['chosen']:,} chosen, {told}, {summary['refused']:,} refused"]
    for line in summary["lines"]:
        for error in line["errors"]:
            where = f"{error['field']}: " if error["field"] else ""
            lines.append(f"  {line['position']}  {where}{error['message']}")
    return "\n".join(lines)


def _pairs(option: str, given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} {text}: give NAME=VALUE")
        pairs.append((name, value))
    return tuple(pairs)


@cli.command()
@click.option("--account", help="Compare the rollups of this account only.")
@click.option("--start", help="Only rollups and months from here on: RFC 3339, or a local date or time of --zone.")
@click.option("--end", help="The same, not included.")
@click.option("--zone", help="IANA time zone of --start and --end; default: UTC.")
@click.option("--deep", is_flag=True, help="Also count the events topic again, as far as Kafka still has it.")
@click.option("--repair", is_flag=True, help="Rebuild rollups that drift from facts, then audit again.")
@click.option("--json", "fmt", flag_value="json", help="As JSON.")
@click.option("--csv", "fmt", flag_value="csv", help="The findings as CSV.")
@_told
def audit(  # noqa: PLR0917 - click passes them by name
    account: str | None,
    start: str | None,
    end: str | None,
    zone: str | None,
    deep: bool,
    repair: bool,
    fmt: str | None,
) -> None:
    """Check that every event counts exactly once, everywhere. Exits 1 and names what drifts."""
    narrowed = account or start or end
    if deep and (repair or narrowed):
        raise click.UsageError("--deep compares the whole log: give it alone, before a --repair")
    settings = _settings()
    period = period_from(start, end, zone, ALL_TIME)
    store = Store(settings, answer_timeout_s=_AUDIT_TIMEOUT_S)
    auditor = Auditor(store, topic=settings.topic_events)
    repaired = None
    if repair:
        repaired = Repairer(store, auditor, topic=settings.topic_events, say=_say).run(account=account, period=period)
        report = repaired.report
    else:
        report = auditor.run(account=account, period=period)
    read_again = asyncio.run(_deep_audit(settings, store)) if deep else None
    shape: Any = fmt or "table"
    click.echo(render_audit(report, shape, Console(), deep=read_again, repair=repaired), nl=False)
    if report.drift or (read_again is not None and read_again.drift):
        sys.exit(1)


async def _deep_audit(settings: Settings, store: Store) -> Deep:
    """Reads the catalog to its end, then the events topic; a bar on standard error."""
    client = CatalogClient(KafkaCatalogLog(settings))
    ranges = LogRanges(settings)
    place = Place(
        settings.topic_events,
        0,
        0,
        settings.partitions,
        settings.default_account,
        settings.ahead_max_hours * 3_600_000_000,
    )
    await client.start()
    try:
        await client.catch_up()
        with AuditProgress(Console(stderr=True)) as bar:
            mapper_at = Mappers(client.catalog).at
            life = topic_id(settings, settings.topic_events)
            return await DeepAuditor(store, ranges, mapper_at, place, topic_id=life, tell=bar.tell).run()
    finally:
        await ranges.stop()
        await client.stop()


@cli.command()
@click.option("--json", "as_json", is_flag=True)
def config(as_json: bool) -> None:
    """Print every setting with its value and meaning, secrets masked."""
    settings = _settings()
    rows = [
        {"name": f"TALLY_{name.upper()}", "value": str(getattr(settings, name)), "meaning": field.description}
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        _print_json(rows)
        return
    table = Table()
    for column in ("setting", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[str(value) for value in row.values()])
    Console().print(table)


if __name__ == "__main__":
    main()
