"""A user's own SELECT against the store: read-only, with limits, as a table, CSV or JSON.

Rules: the server enforces what may be done (readonly), not a look at the text. Calls block.
"""

from typing import Final, Literal, Protocol

from pipeline.ports import StoreError

SqlFormat = Literal["table", "csv", "json"]
SECONDS_MAX: Final = 60
ROWS_MAX: Final = 1_000_000
BYTES_MAX: Final = 256 << 20

_FORMATS: Final[dict[SqlFormat, str]] = {
    "table": "PrettyCompactNoEscapes",
    "csv": "CSVWithNames",
    "json": "JSONEachRow",
}
_LIMITS: Final = {
    "readonly": 1,
    "max_execution_time": SECONDS_MAX,
    "max_result_rows": ROWS_MAX,
    "max_result_bytes": BYTES_MAX,
    "result_overflow_mode": "throw",
    "output_format_json_quote_decimals": 1,  # decimals leave as strings
    "output_format_json_quote_64bit_integers": 0,
}
_WRITES: Final = {164: "READONLY", 392: "QUERY_IS_PROHIBITED", 497: "ACCESS_DENIED"}
_HINTS: Final = {
    158: f"more than {ROWS_MAX} rows: add a LIMIT",
    159: f"it took longer than {SECONDS_MAX} s: narrow it with WHERE",
    307: "it reads too much: narrow it with WHERE",
    396: f"more than {ROWS_MAX} rows or {BYTES_MAX >> 20} MiB: add a LIMIT",
}


class SqlRefused(Exception):  # noqa: N818 - an answer, not a fault of the program
    """The statement was not run, or not to its end; the message says why and what to do."""


class SqlStore(Protocol):
    """The store, as far as whole answers in a format of the server go."""

    def read(self, sql: str, fmt: str, settings: dict[str, object] | None = None) -> bytes:
        """Run a SELECT. Blocks."""


def run_sql(store: SqlStore, sql: str, fmt: SqlFormat) -> str:
    """The answer to a SELECT as text. Raises SqlRefused, and StoreUnavailable. Blocks."""
    text = sql.strip().rstrip(";").rstrip()
    if not text:
        raise SqlRefused("there is no statement; try: SELECT * FROM v_usage_daily LIMIT 10")
    try:
        return store.read(text, _FORMATS[fmt], dict(_LIMITS)).decode("utf-8", errors="replace")
    except StoreError as error:
        if error.code in _WRITES:
            raise SqlRefused("only reading is allowed here: start with SELECT, WITH, SHOW or DESCRIBE") from error
        raise SqlRefused(_HINTS.get(error.code, str(error))) from error
