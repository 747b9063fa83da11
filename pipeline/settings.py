"""Settings: read once, validated at start, printed masked by ``tally config``.

Every setting is an environment variable ``TALLY_<NAME>``. Addresses that nobody set come from the
embedded stack: ``tally up`` leaves them in ``TALLY_HOME/stack.json``, below the environment in rank.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


class Home(BaseSettings):
    """Where the data folder is; known before everything else, since other settings may lie in it."""

    model_config = SettingsConfigDict(env_prefix="TALLY_", extra="ignore")

    home: Path = Field(
        default=Path("~/.tally"), description="data folder of the embedded stack and of the worker's cache"
    )


class Settings(BaseSettings):
    """Everything that one process needs to know. Immutable; unknown names are refused."""

    model_config = SettingsConfigDict(env_prefix="TALLY_", frozen=True, extra="forbid")

    home: Path = Field(
        default=Path("~/.tally"), description="data folder of the embedded stack and of the worker's cache"
    )

    # -- Kafka
    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers, comma-separated")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="security protocol of the brokers"
    )
    kafka_user: str = Field(default="", description="SASL user name (mechanism SCRAM-SHA-512)")
    kafka_password: SecretStr = Field(default=SecretStr(""), description="SASL password")
    topic_events: str = Field(default="tally.events", description="topic that all doors publish to")
    topic_rejects: str = Field(default="tally.rejects", description="topic of refused lines, with reason and position")
    topic_catalog: str = Field(
        default="tally.catalog", description="compacted topic that holds the truth of the catalog"
    )
    partitions: int = Field(
        default=6,
        ge=1,
        le=1024,
        description="partitions that ids are spread over; fixed for the life of topic and store",
    )
    replication: int = Field(default=1, ge=1, description="replicas of each topic (3 in production)")
    min_insync: int = Field(default=1, ge=1, description="min.insync.replicas of each topic (2 in production)")
    retention_hours: int = Field(
        default=168, ge=1, description="retention of the events topic; longer than the longest outage to survive"
    )

    # -- ClickHouse
    clickhouse: str = Field(default="http://127.0.0.1:8123", description="address of ClickHouse's HTTP interface")
    clickhouse_user: str = Field(default="default", description="user of the store")
    clickhouse_password: SecretStr = Field(default=SecretStr(""), description="password of the store")
    database: str = Field(default="tally", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="database of the store")
    engine_family: Literal["MergeTree", "ReplicatedMergeTree"] = Field(
        default="MergeTree", description="table engines that `tally migrate` creates"
    )

    # -- API
    api_host: str = Field(default="127.0.0.1", description="address that the API listens on")
    api_port: int = Field(default=8080, ge=0, le=65535, description="port of the API; 0 takes a free one")
    api_workers: int = Field(default=1, ge=1, description="processes of the API")
    key_events_per_s: int = Field(
        default=0,
        ge=0,
        description="events per second that a key without a limit of its own may send to each process of the API; "
        "0 for no limit",
    )
    default_account: str = Field(
        default="default", description="account of Kafka records that carry no `account` header"
    )
    ahead_max_hours: int = Field(default=24, ge=0, description="how far a timestamp may lie ahead of its arrival")

    # -- worker
    group: str = Field(default="tally-worker", description="consumer group and Faust app id of the workers")
    worker_port: int = Field(default=6066, ge=0, le=65535, description="web port of the worker: health and metrics")
    worker_dir: Path | None = Field(
        default=None, description="folder of the dedup table; default: `worker` under the data folder"
    )
    instance: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,200}$",
        description="name of this worker among those of its group (static membership): started again under the same "
        "name it has its partitions back at once, instead of after the session time-out; empty for none",
    )
    session_timeout_s: float = Field(default=45.0, gt=0, description="consumer session time-out")
    block_rows_max: int = Field(default=60_000, ge=1, le=1_000_000, description="events in one block at most")
    block_bytes_max: int = Field(
        default=64 << 20, ge=1 << 20, le=256 << 20, description="bytes of events in one block at most"
    )
    block_close_ms: int = Field(default=250, ge=0, description="a block closes this long after its first event")
    inserts_max: int = Field(
        default=2,
        ge=1,
        description="blocks that a worker inserts at the same time at most; each must end within half of D, so a slow "
        "store is better given few at once",
    )
    lease_s: float = Field(
        default=120.0, gt=0, description="how long an intent may be acted on before the store is read back (L)"
    )
    deadline_s: float = Field(default=60.0, gt=0, description="the store drops an insert older than this (D)")
    shared_lease_s: float = Field(
        default=5.0,
        ge=0,
        description="how long after its intent a small block may begin to go to the store in one insert with others of "
        "the same worker, while the store is busy. Who takes such a block over waits for the end of this and the next, "
        "unless it has arrived; 0: each goes alone",
    )
    shared_deadline_s: float = Field(
        default=20.0, gt=0, description="the store drops an insert of several blocks older than this"
    )
    clock_skew_max_s: float = Field(
        default=5.0, gt=0, description="largest tolerated difference between the clocks of worker and store"
    )
    dedup_window_days: float = Field(
        default=7.0,
        ge=0,
        description="how many days of ids, by append time, the dedup table answers by itself; older ones are looked up "
        "in the store, so that an id counts once for ever. 0 keeps all ids in the table",
    )
    cache_bytes: int = Field(default=256 << 20, ge=8 << 20, description="block cache of the dedup table")

    # -- the running audit
    audit_every_s: float = Field(default=60.0, gt=0, description="how often `tally auditor` looks at what is new")
    audit_full_every_s: float = Field(default=3600.0, gt=0, description="how often it audits the whole store")
    auditor_port: int = Field(default=6067, ge=0, le=65535, description="port of its metrics, on TALLY_API_HOST")

    # -- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="level of the logs")
    log_json: bool = Field(default=False, description="one JSON object a line instead of text")

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.min_insync > self.replication:
            told = f"TALLY_MIN_INSYNC={self.min_insync} exceeds TALLY_REPLICATION={self.replication}"
            raise ValueError(f"{told}: nothing could be written")
        if self.insert_s_max < 1:
            raise ValueError(
                f"TALLY_DEADLINE_S={self.deadline_s} leaves no time to insert: it must exceed twice "
                f"TALLY_CLOCK_SKEW_MAX_S={self.clock_skew_max_s} by two seconds or more"
            )
        return self

    @property
    def insert_s_max(self) -> int:
        """How long the store may work on one insert: half the deadline is for it to arrive, this for its execution,
        and the rest for clocks that differ."""
        return int(self.deadline_s / 2 - self.clock_skew_max_s)

    @property
    def shared_s_max(self) -> int:
        """The same for an insert of several blocks; below 1 there is no time for one, and each block goes alone."""
        return int(min(self.shared_deadline_s, self.deadline_s) / 2 - self.clock_skew_max_s)

    @property
    def home_dir(self) -> Path:
        """The data folder with ``~`` resolved."""
        return self.home.expanduser().absolute()

    @property
    def table_dir(self) -> Path:
        """Folder of the worker's dedup table."""
        return self.worker_dir.expanduser().absolute() if self.worker_dir else self.home_dir / "worker"

    @property
    def topic_changelog(self) -> str:
        """Topic that the dedup table is restored from, named as Faust names a table's changelog."""
        return f"{self.group}-dedup-changelog"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _stack_addresses(init_settings))


def _stack_addresses(init: PydanticBaseSettingsSource) -> dict[str, Any]:
    """What the embedded stack of this data folder listens on, or nothing when there is none."""
    home = Path(init().get("home") or Home().home).expanduser()
    try:
        stack = json.loads((home / "stack.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{home / 'stack.json'} cannot be read ({error}); run `tally up` again or remove it"
        ) from error
    return {name: stack[name] for name in ("kafka", "clickhouse", "database", "partitions") if name in stack}
