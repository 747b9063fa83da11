"""Migrations: brings the store's tables and views to the state that this version of the code needs.

Rules: the numbered files of `sql/` are applied in order, each once; a file is never edited after it landed (the
library's checksum tells). The engine family is a parameter: the same files serve the embedded engine and a cluster.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from clickhouse_migrations.exceptions import MigrationException
from clickhouse_migrations.migration import MigrationStorage

from pipeline.adapters.clickhouse import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, store_errors
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clickhouse_migrations.clickhouse_cluster import ClickhouseCluster

# Blocks whose tokens are remembered, per table. It has to reach much further back than lease and deadline together
# (three minutes by default) at the most blocks and months a second that the workers write.
DEDUP_BLOCKS: Final = 100_000
DEDUP_SECONDS: Final = 604_800  # a week: an outage of the store's clients may last a long weekend

_VARIABLES: Final = {
    "MergeTree": {"REPLICATED": "", "DEDUP_WINDOW": f"non_replicated_deduplication_window = {DEDUP_BLOCKS}"},
    "ReplicatedMergeTree": {
        "REPLICATED": "Replicated",
        "DEDUP_WINDOW": f"replicated_deduplication_window = {DEDUP_BLOCKS}, "
        f"replicated_deduplication_window_seconds = {DEDUP_SECONDS}",
    },
}


class MigrationError(Exception):
    """The migrations cannot be applied; the message says what to do."""


def migrate(settings: Settings) -> list[str]:
    """Create the database if need be, apply what is missing and return the names of the files applied, in order.

    Raises MigrationError (edited or missing files), StoreError (a statement failed: the next run goes on there),
    StoreUnavailable. Blocks.
    """
    files = MigrationStorage(sql_dir()).migration_filenames()
    with _explained(settings):
        applied = _cluster(settings).migrate(
            settings.database, sql_dir(), variables=variables(settings), migration_log_format="compact"
        )
    return [files[migration.version] for migration in applied]


def pending(settings: Settings) -> list[str]:
    """Names of the files that `migrate` would apply; changes nothing.

    Raises MigrationError when an applied file was edited or is missing here, StoreError, StoreUnavailable. Blocks.
    """
    files = MigrationStorage(sql_dir()).migration_filenames()
    with _explained(settings):
        rows = _cluster(settings).status(settings.database, sql_dir())
    for row in rows:
        if row.state not in ("applied", "pending"):
            raise MigrationError(
                f"migration {files.get(row.version, row.version)} is {row.state}: the store was migrated by other "
                "files; restore the file as it landed and put the change into a new one"
            )
    return [files[row.version] for row in rows if row.state == "pending"]


def is_new(missing: Sequence[str]) -> bool:
    """Whether a store that lacks these files has none yet."""
    return len(missing) == len(MigrationStorage(sql_dir()).migration_filenames())


def sql_dir() -> Path:
    """Folder of the migrations: inside the package when installed, beside it in the repository."""
    installed = Path(__file__).parent / "_sql"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "sql"


def variables(settings: Settings) -> dict[str, str]:
    """What the migrations' placeholders stand for with this engine family."""
    return _VARIABLES[settings.engine_family]


def _cluster(settings: Settings) -> "ClickhouseCluster":
    address = urlsplit(settings.clickhouse)
    from clickhouse_migrations.clickhouse_cluster import ClickhouseCluster  # noqa: PLC0415 - its driver loads slowly

    return ClickhouseCluster(
        db_host=address.hostname,
        db_port=str(address.port or (8443 if address.scheme == "https" else 8123)),
        db_user=settings.clickhouse_user,
        db_password=settings.clickhouse_password.get_secret_value(),
        secure=address.scheme == "https",
        driver="clickhouse-connect",
        migrations_table_engine=settings.engine_family,
        connect_timeout=CONNECT_TIMEOUT_S,
        query_timeout=ANSWER_TIMEOUT_S,
    )


@contextmanager
def _explained(settings: Settings) -> "Iterator[None]":
    try:
        with store_errors(settings.clickhouse):
            yield
    except MigrationException as error:
        raise MigrationError(
            f"{error} Files in {sql_dir()} must be exactly those that migrated the database {settings.database!r}: "
            "restore edited or missing ones and put changes into a new file"
        ) from error
